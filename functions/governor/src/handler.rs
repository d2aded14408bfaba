//! A batch's way: read, load, decide, claim, call, commit, report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::handler::{Call, ClientError, HandlerClient};
use aws::queues::Messages;
use aws::registry::{Registry, RegistryError};
use aws::secrets::{Secrets, SecretsError};
use aws::spool::{Spool, SpoolError};
use aws::store::{Account, Keys, Store, StoreError};
use aws::telemetry;
use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use domain::account::AccountId;
use domain::action::{self, Action, ActionEvent, ActionState};
use domain::admission::Enforcers;
use domain::control::Control;
use domain::gate::RefusalCode;
use domain::names;
use domain::names::printable;
use domain::signal::{ActionId, Signal};
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use lambda_runtime::Error;
use receipts::key::Signer;
use receipts::receipt::{Draft, Payload};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::{JoinSet, yield_now};
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::batch::{Asked, Batch, Fate, Message, Run, Step, decide};

/// How soon a signal that has to wait comes back, in seconds: after its first delivery, and at most.
const RETRY_SECONDS: (u32, u32) = (2, 60);

/// Messages that are claimed, and settled, in one transaction: each takes four of its hundred items at the most. SQS hands
/// out ten at a time.
const AT_ONCE: usize = 20;

/// Everything `governor` needs, made once per process.
pub struct Governor {
    store: Store,
    registry: Registry,
    control: ControlStore,
    spool: Spool,
    secrets: Secrets,
    handler: Arc<HandlerClient>,
    messages: Messages,
    stack: Stack,
    handler_secret: String,
    queue_prefix: String,
}

/// Why a batch, or a part of it, goes back to the queue.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The tables did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry did not answer.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A secret is not available.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The spool did not take a refusal.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Nobody knows whose queue this is.
    #[error("no tenant is known for queue {queue}")]
    Ownerless {
        /// The queue's name.
        queue: String,
    },
    /// An action could not take an event: a bug, told instead of hidden.
    #[error(transparent)]
    Illegal(#[from] action::IllegalTransition),
    /// No HTTP client for the handler.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The control object cannot be read.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A call to the handler ended without a word.
    #[error("a handler call was lost: {0}")]
    Lost(String),
}

impl BatchError {
    /// The kind of error, for a metric: few and the same for ever.
    fn kind(&self) -> &'static str {
        match self {
            Self::Store(_) => "tables",
            Self::Registry(_) => "registry",
            Self::Secrets(_) => "secrets",
            Self::Spool(_) => "spool",
            Self::Ownerless { .. } => "ownerless",
            Self::Illegal(_) => "illegal",
            Self::Client(_) => "client",
            Self::Control(_) => "control",
            Self::Lost(_) => "lost",
        }
    }
}

/// A request to look whether a tenant's governor can work.
#[derive(Debug, Deserialize)]
struct Boot {
    /// Whose.
    account_id: AccountId,
    /// The enforcer that will decide.
    policy_hash: String,
}

impl Governor {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable that is missing or makes no sense.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let audit = config::required(config::AUDIT_BUCKET)?;
        let handler_secret = config::required(config::HANDLER_SECRET_ID)?;
        let handler = HandlerClient::new(config::handler_target()?, config::rollback_budget()?);
        let queue_prefix = config::required(config::QUEUE_PREFIX)?;
        let sdk = clients::load().await;
        let s3 = clients::s3(&sdk);
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            registry: Registry::new(s3.clone(), registry),
            control: ControlStore::new(s3.clone(), control),
            spool: Spool::new(s3, audit),
            secrets: Secrets::new(&sdk),
            handler: Arc::new(handler),
            messages: Messages::new(&sdk),
            stack,
            handler_secret,
            queue_prefix,
        })
    }

    /// Answers one event: a queue's batch, or the request to look whether a tenant's governor can work.
    ///
    /// # Errors
    /// When the event is neither, or the answer cannot be written as JSON.
    pub async fn handle(&self, event: Value) -> Result<Value, Error> {
        if let Some(asked) = event.get("boot") {
            let ready = match self.boot(&Boot::deserialize(asked)?).await {
                Ok(()) => json!({ "ready": true }),
                Err(e) => {
                    telemetry::count("governor", "boot_failed", ("error", e.kind()));
                    error!(error = %e, "the governor cannot work for a tenant");
                    json!({ "ready": false, "reason": e.kind() })
                }
            };
            return Ok(ready);
        }
        let batch = serde_json::from_value(event)?;
        Ok(serde_json::to_value(Box::pin(self.batch(batch)).await)?)
    }

    /// Looks at everything that a signal of the tenant will need.
    async fn boot(&self, asked: &Boot) -> Result<(), BatchError> {
        self.registry.enforcer(&asked.policy_hash).await?;
        self.secrets.signer(&self.stack.signing_key_secret).await?;
        self.ready_to_call().await?;
        // Degraded is no reason not to be made; unreadable is one not to be relied upon.
        self.control.read().await?;
        info!(account = asked.account_id.as_str(), "ready");
        Ok(())
    }

    /// Governs one batch. Messages it could not settle are named in the answer and come back.
    async fn batch(&self, event: SqsEvent) -> SqsBatchResponse {
        let mut response = SqsBatchResponse::default();
        // One mapping has one queue, but nothing promises that a direct invocation keeps to that.
        let mut queues: BTreeMap<String, Vec<SqsMessage>> = BTreeMap::new();
        for message in event.records {
            let arn = message.event_source_arn.clone().unwrap_or_default();
            queues
                .entry(arn.rsplit(':').next().unwrap_or_default().to_owned())
                .or_default()
                .push(message);
        }
        for (queue, raw) in queues {
            let messages: Vec<Message> = raw.iter().map(|m| self.read(&queue, m)).collect();
            let fates = match Box::pin(self.govern(&queue, &messages)).await {
                Ok(fates) => fates,
                Err(e) => {
                    goes_back(&queue, &e);
                    vec![Fate::Later; messages.len()]
                }
            };
            for (message, fate) in messages.iter().zip(fates) {
                if fate == Fate::Later {
                    let mut failure = BatchItemFailure::default();
                    failure.item_identifier.clone_from(&message.message_id);
                    response.batch_item_failures.push(failure);
                }
            }
        }
        response
    }

    fn read(&self, queue: &str, message: &SqsMessage) -> Message {
        let message_id = message.message_id.clone().unwrap_or_default();
        let malformed = |detail: &str| Asked::Malformed {
            action_id: ActionId::of_message(&message_id),
            detail: printable(detail, 512),
        };
        let asked = match Signal::parse(message.body.as_deref().unwrap_or_default()) {
            Ok(signal) if names::queue_belongs_to(queue, &self.queue_prefix, &signal.account_id) => {
                Asked::Signal(signal)
            }
            Ok(_) => malformed("signal field `account_id`: is not the tenant of this queue"),
            Err(e) => malformed(&e.for_the_record()),
        };
        let number = |name: &str| {
            message
                .attributes
                .get(name)
                .and_then(|text| text.parse::<i64>().ok())
        };
        let sent_at = number("SentTimestamp").and_then(|ms| Timestamp::from_millisecond(ms).ok());
        Message {
            receipt_handle: message.receipt_handle.clone().unwrap_or_default(),
            sent_at: sent_at.unwrap_or_else(Timestamp::now),
            deliveries: number("ApproximateReceiveCount")
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(1),
            asked,
            message_id,
        }
    }

    async fn govern(&self, queue: &str, messages: &[Message]) -> Result<Vec<Fate>, BatchError> {
        let control = match self.control.read().await {
            Ok(control) => Some(control),
            Err(e) => {
                error!(error = %e, "control is unreadable: everything is refused");
                None
            }
        };
        let signer = self.secrets.signer(&self.stack.signing_key_secret).await?;
        if control.as_ref().is_none_or(Control::degraded) {
            return self.refuse_all(&signer, messages).await;
        }
        let (account_id, partition) = self.owner(queue, messages).await?;
        // SQS hands out no more than one group. Where there are several, what is claimed is called and settled, whatever
        // becomes of the others.
        let mut fates = Vec::with_capacity(messages.len());
        let mut claimed = Vec::new();
        for (group, messages) in messages.chunks(AT_ONCE).enumerate() {
            let claim = self.claim(&signer, &account_id, &partition, messages, control.as_ref());
            let claim = Box::pin(claim).await.inspect_err(|e| goes_back(queue, e));
            claimed.extend(claim.ok().map(|claimed| (group, claimed)));
            fates.push(vec![Fate::Later; messages.len()]);
        }
        let runs = self.run(claimed.iter().map(|(_, claimed)| claimed)).await?;
        for (group, claimed) in claimed {
            let (queue_url, messages) = (claimed.queue_url(), claimed.messages);
            let settled = Box::pin(self.commit(&signer, claimed, &runs)).await;
            let Ok(settled) = settled.inspect_err(|e| goes_back(queue, e)) else {
                continue;
            };
            if let Some(queue_url) = queue_url {
                self.hand_back(&queue_url, messages, &settled).await;
            }
            if let Some(fates) = fates.get_mut(group) {
                *fates = settled;
            }
        }
        Ok(fates.concat())
    }

    /// Reads what the messages are about, decides, and claims what is to run or to be undone. Messages with neither write
    /// nothing here.
    async fn claim<'m>(
        &self,
        signer: &Signer,
        account_id: &str,
        partition: &str,
        messages: &'m [Message],
        control: Option<&Control>,
    ) -> Result<Claimed<'m>, BatchError> {
        let started = Instant::now();
        let keys = Keys {
            actions: messages.iter().map(|m| m.action_id().clone()).collect(),
            ..Keys::default()
        };
        let account = self.store.load(partition, &keys).await?;
        let enforcers = self.enforcers(&account).await?;
        let decided = |account: &Account, now| decide(messages, account, control, &enforcers, now);
        let calls = decided(&account, Timestamp::now());
        let secret = match calls.iter().any(Step::calls_handler) {
            // Before anything is claimed: a claim whose call cannot be made ends as a timeout.
            true => Some(self.ready_to_call().await?),
            false => None,
        };
        let owner = Uuid::now_v7();
        let ids: Vec<(Uuid, Uuid)> = messages
            .iter()
            .map(|_| (Uuid::now_v7(), Uuid::now_v7()))
            .collect();
        let batch = Batch {
            account_id,
            messages,
            owner,
            ids: &ids,
        };
        let mut steps = Vec::new();
        let plan = |account: &Account| {
            let now = Timestamp::now();
            steps = decided(account, now);
            Ok::<_, BatchError>(batch.claim(&steps, account, now)?)
        };
        let committed = self.store.transact(signer, partition, &keys, Some(account), plan);
        let account = committed.await?.account;
        Ok(Claimed {
            account_id: account_id.to_owned(),
            messages,
            keys,
            owner,
            ids,
            steps,
            account,
            enforcers,
            secret,
            started,
        })
    }

    /// Calls the handler for every claimed action at once. What is lost here is found again when its claim is over.
    async fn run<'c>(
        &self,
        claimed: impl Iterator<Item = &'c Claimed<'c>>,
    ) -> Result<BTreeMap<ActionId, Run>, BatchError> {
        let mut calls = JoinSet::new();
        for (claimed, message) in claimed.flat_map(Claimed::to_call) {
            let Some(action) = claimed.account.actions.get(message.action_id()).cloned() else {
                continue;
            };
            let enforcer = claimed.enforcers.get(&action.policy_hash);
            let Some(spec) = enforcer.and_then(|e| e.action(&action.template)) else {
                // Only an undo can find its enforcer gone; a person has to undo it.
                calls.spawn(async move { no_rollback_route(action) });
                continue;
            };
            // Those the claim was made with: a repeated signal may say others.
            let parameters = action.parameters.clone().or_else(|| message.parameters());
            let call = Call {
                action_id: action.action_id.as_str().to_owned(),
                account_id: claimed.account_id.clone(),
                template: action.template.clone(),
                parameters: parameters.unwrap_or_default(),
            };
            let (act, undo) = (spec.handler.clone(), spec.rollback.clone());
            let handler = Arc::clone(&self.handler);
            let secret = match &claimed.secret {
                Some(secret) => secret.clone(),
                None => self.ready_to_call().await?,
            };
            calls.spawn(async move { carry_out(&handler, &secret, &act, &undo, &call, action).await });
        }
        let mut runs = BTreeMap::new();
        while let Some(joined) = calls.join_next().await {
            match joined.map_err(|e| BatchError::Lost(e.to_string())).flatten() {
                Ok(run) => {
                    runs.insert(run.action.action_id.clone(), run);
                }
                Err(e) => {
                    telemetry::count("governor", "call_lost", ("error", e.kind()));
                    error!(error = %e, "an action is left to whoever finds its claim over");
                }
            }
        }
        Ok(runs)
    }

    /// Commits every outcome and its receipts as one group, and says what becomes of each message.
    async fn commit(
        &self,
        signer: &Signer,
        claimed: Claimed<'_>,
        runs: &BTreeMap<ActionId, Run>,
    ) -> Result<Vec<Fate>, BatchError> {
        let Claimed {
            account_id,
            messages,
            keys,
            owner,
            ids,
            steps,
            account,
            started,
            ..
        } = claimed;
        let partition = account.partition.clone();
        let batch = Batch {
            account_id: &account_id,
            messages,
            owner,
            ids: &ids,
        };
        let mut fates = Vec::new();
        let mut escalated = Vec::new();
        let plan = |account: &Account| {
            let (plan, each) = batch.settle(&steps, runs, account, millis(started), Timestamp::now())?;
            fates = each;
            let actions = plan.actions.iter();
            escalated = actions
                .filter_map(|action| Some((action.action_id.clone(), action.escalation.clone()?)))
                .collect();
            Ok::<_, BatchError>(plan)
        };
        let committed = self
            .store
            .transact(signer, &partition, &keys, Some(account), plan);
        let committed = committed.await?;
        for sealed in &committed.sealed {
            telemetry::count("governor", sealed.operation, ("stage", "ledger"));
        }
        for (action_id, escalation) in escalated {
            let (action_id, error_code) = (action_id.as_str(), escalation.error_code);
            telemetry::count("governor", "action_escalated", ("stage", "ledger"));
            error!(
                account = account_id,
                action_id, error_code, "escalated: a person has to look"
            );
        }
        Ok(fates)
    }

    /// Whose queue it is: as a signal that fits the queue says, or as was noted when the queue was made.
    async fn owner(&self, queue: &str, messages: &[Message]) -> Result<(String, String), BatchError> {
        let said = messages.iter().find_map(|m| match &m.asked {
            Asked::Signal(signal) => Some(&signal.account_id),
            Asked::Malformed { .. } => None,
        });
        if let Some(account_id) = said {
            return Ok((account_id.as_str().to_owned(), names::partition_key(account_id)));
        }
        let noted = self.store.queue_owner(queue).await?;
        let known = noted.and_then(|partition| Some((names::account_of(&partition)?, partition)));
        let (account_id, partition) = known.ok_or_else(|| BatchError::Ownerless {
            queue: queue.to_owned(),
        })?;
        Ok((account_id.into(), partition))
    }

    /// What a call needs besides the action: an HTTP client, and the secret that signs, both kept.
    async fn ready_to_call(&self) -> Result<Secret, BatchError> {
        self.handler.prepare()?;
        Ok(self.secrets.standard(&self.handler_secret).await?)
    }

    /// The enforcers this batch needs, by hash: those the tenant's entitlements are pinned to, and those that let through what may
    /// have to be undone. One that is not what its hash says is left out: the gate then refuses.
    async fn enforcers(&self, account: &Account) -> Result<Enforcers, BatchError> {
        let held = account
            .tenant
            .iter()
            .flat_map(|tenant| tenant.entitlements.values());
        let pinned = held.map(|held| &held.policy.hash);
        let unfinished = account.actions.values().filter(|action| !action.state.is_final());
        let hashes: BTreeSet<&String> = pinned
            .chain(unfinished.map(|action| &action.policy_hash))
            .collect();
        let mut enforcers = Enforcers::new();
        for hash in hashes {
            match self.registry.enforcer(hash).await {
                Ok(enforcer) => {
                    enforcers.insert(hash.clone(), enforcer);
                }
                Err(e) if e.is_lasting() => {
                    telemetry::count("governor", "enforcer_refused", ("kind", "not_what_its_hash_says"));
                    error!(account = account.partition, error = %e, "enforcer refused");
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(enforcers)
    }

    /// Degraded: each signal is refused with a receipt in the spool, and nothing touches the tables.
    async fn refuse_all(&self, signer: &Signer, messages: &[Message]) -> Result<Vec<Fate>, BatchError> {
        let mut fates = Vec::with_capacity(messages.len());
        for message in messages {
            let Asked::Signal(signal) = &message.asked else {
                // Whose ledger a malformed message belongs to is only in the tables; it waits for them.
                fates.push(Fate::Later);
                continue;
            };
            let draft = unavailable(&signal.account_id, message);
            // A message that was delivered before may be about an action that runs: only the tables know, so it waits
            // for them, unless that earlier delivery refused it and was cut off before it could say so.
            if message.deliveries > 1 && !self.spool.has(&draft).await? {
                fates.push(Fate::Later);
                continue;
            }
            self.spool.keep(&draft, signer).await?;
            telemetry::count(
                "governor",
                "action_refused",
                ("code", RefusalCode::Unavailable.name()),
            );
            info!(action_id = signal.action_id.as_str(), "refused: degraded");
            fates.push(Fate::Acknowledged);
        }
        Ok(fates)
    }

    /// Makes messages that have to wait visible soon; without that they come back after the queue's own time.
    async fn hand_back(&self, queue_url: &str, messages: &[Message], fates: &[Fate]) {
        let handles: Vec<(String, u32)> = messages
            .iter()
            .zip(fates)
            .filter(|(message, fate)| **fate == Fate::Later && !message.receipt_handle.is_empty())
            .map(|(message, _)| (message.receipt_handle.clone(), retry_in(message.deliveries)))
            .collect();
        if handles.is_empty() {
            return;
        }
        if let Err(e) = self.messages.retry_in(queue_url, &handles).await {
            warn!(queue_url, error = %e, "signals come back later than they could");
        }
    }
}

/// Doubles with each delivery, so that a signal that has to wait long does not use up the queue's patience.
fn retry_in(deliveries: u32) -> u32 {
    let (first, most) = RETRY_SECONDS;
    first
        .saturating_mul(1 << deliveries.saturating_sub(1).min(8))
        .min(most)
}

/// Messages that were decided, and what of them is claimed.
struct Claimed<'m> {
    account_id: String,
    messages: &'m [Message],
    keys: Keys,
    /// This invocation's claim.
    owner: Uuid,
    ids: Vec<(Uuid, Uuid)>,
    steps: Vec<Step>,
    account: Account,
    enforcers: Enforcers,
    /// What signs the calls, when there are some.
    secret: Option<Secret>,
    started: Instant,
}

impl<'m> Claimed<'m> {
    /// Those of its messages for which the handler is called.
    fn to_call(&self) -> impl Iterator<Item = (&Self, &'m Message)> {
        let called = self.messages.iter().zip(&self.steps);
        called
            .filter(|(_, step)| step.calls_handler())
            .map(move |(message, _)| (self, message))
    }

    fn queue_url(&self) -> Option<String> {
        let tenant = self.account.tenant.as_ref();
        tenant.map(|tenant| tenant.resources.queue_url.clone())
    }
}

/// Says why messages go back to the queue that nobody decided about.
fn goes_back(queue: &str, e: &BatchError) {
    telemetry::count("governor", "batch_failed", ("error", e.kind()));
    error!(queue, error = %e, "batch goes back to the queue");
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Runs or undoes one claimed action.
async fn carry_out(
    handler: &HandlerClient,
    secret: &Secret,
    act: &str,
    undo: &str,
    call: &Call,
    action: Action,
) -> Result<Run, BatchError> {
    let mut run = Run::new(action);
    if run.action.state == ActionState::Running {
        let started = Instant::now();
        let event = handler
            .act(secret, act, call, Duration::from_millis(action::DEADLINE_MS))
            .await;
        run.take(&event, Uuid::now_v7(), millis(started), Timestamp::now())?;
    }
    if run.action.state.undo_due() {
        // Those that are over at the same moment all let go of their connections before the first of them is undone.
        yield_now().await;
        let started = Instant::now();
        let attempt = run.action.rollback_attempts + 1;
        let event = handler.undo(secret, undo, call, attempt).await;
        run.take(&event, Uuid::now_v7(), millis(started), Timestamp::now())?;
    }
    Ok(run)
}

/// An action whose policy cannot say any more how to undo it.
fn no_rollback_route(action: Action) -> Result<Run, BatchError> {
    let mut run = Run::new(action);
    if run.action.state.undo_due() {
        let never = ActionEvent::UndoFailed { recoverable: false };
        run.take(&never, Uuid::now_v7(), 0, Timestamp::now())?;
    }
    Ok(run)
}

/// The refusal of a signal while the system is degraded. The same signal always makes the same receipt id, so that a
/// redelivery leaves one receipt.
fn unavailable(account_id: &AccountId, message: &Message) -> Draft {
    let name = format!("{}\n{}", account_id.as_str(), message.action_id().as_str());
    Draft {
        receipt_id: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()),
        account_id: account_id.as_str().to_owned(),
        occurred_at: message.sent_at,
        duration_ms: 0,
        policy_hash: None,
        payload: Payload::ActionRefused {
            action_id: message.action_id().as_str().to_owned(),
            template: message.template(),
            code: RefusalCode::Unavailable.name().to_owned(),
            detail: Some("the system is degraded".to_owned()),
            rules: Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::retry_in;

    #[test]
    fn waiting_signals_come_back_ever_later() {
        let waits: Vec<u32> = [0, 1, 2, 3, 4, 5, 6, 7, 1000].map(retry_in).into();
        assert_eq!(waits, [2, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
