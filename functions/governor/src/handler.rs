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
use aws::store::{Account, Keys, Plan, Store, StoreError};
use aws::telemetry;
use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use domain::account::AccountId;
use domain::action::{self, Action, ActionEvent, ActionState};
use domain::control::Control;
use domain::gate::RefusalCode;
use domain::names;
use domain::names::printable;
use domain::signal::{ActionId, Signal};
use domain::tenant::Released;
use domain::webhook::signature::Secret;
use jiff::{SignedDuration, Timestamp};
use lambda_runtime::Error;
use receipts::key::Signer;
use receipts::receipt::{Draft, Payload};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::batch::{Asked, Enforcers, Message, Step, action_of, decide};

/// How soon a signal that has to wait comes back, in seconds: after its first delivery, and at most.
const RETRY_SECONDS: (u32, u32) = (2, 60);

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

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Settled: SQS may delete it.
    Acknowledged,
    /// Comes back soon.
    Later,
}

/// A claimed action on its way through the handler.
struct Run {
    action: Action,
    /// Receipts so far, in order, with how long each took.
    records: Vec<(Uuid, Payload, u64)>,
}

impl Governor {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable that is missing.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let audit = config::required(config::AUDIT_BUCKET)?;
        let handler_secret = config::required(config::HANDLER_SECRET_ID)?;
        let handler = HandlerClient::new(&config::required(config::HANDLER_BASE_URL)?);
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
                    telemetry::count("governor", "batch_failed", ("error", e.kind()));
                    error!(queue, error = %e, "batch goes back to the queue");
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
        let keys = Keys {
            actions: messages.iter().map(|m| m.action_id().clone()).collect(),
            ..Keys::default()
        };
        let account = self.store.load(&partition, &keys).await?;
        let enforcers = self.enforcers(&account).await?;
        let batch = Batch {
            governor: self,
            signer: &signer,
            account_id: &account_id,
            partition: &partition,
            keys: &keys,
            messages,
            control: control.as_ref(),
            enforcers: &enforcers,
            owner: Uuid::now_v7(),
            started: Instant::now(),
        };
        if batch
            .decided(&account, Timestamp::now())
            .iter()
            .any(Step::calls_handler)
        {
            // Before anything is claimed: a claim whose call cannot be made ends as a timeout.
            self.ready_to_call().await?;
        }
        let (steps, account) = batch.claim(account).await?;
        let runs = batch.run(&steps, &account).await?;
        let (fates, account) = batch.commit(&steps, account, &runs).await?;
        if let Some(tenant) = &account.tenant {
            self.hand_back(&tenant.resources.queue_url, messages, &fates)
                .await;
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
                Err(
                    e @ (RegistryError::Missing { .. }
                    | RegistryError::Bundle { .. }
                    | RegistryError::Hash { .. }),
                ) => {
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

/// One batch of one tenant.
struct Batch<'a> {
    governor: &'a Governor,
    signer: &'a Signer,
    account_id: &'a str,
    partition: &'a str,
    keys: &'a Keys,
    messages: &'a [Message],
    control: Option<&'a Control>,
    enforcers: &'a Enforcers,
    /// This invocation's claim.
    owner: Uuid,
    started: Instant,
}

impl Batch<'_> {
    fn decided(&self, account: &Account, now: Timestamp) -> Vec<Step> {
        decide(self.messages, account, self.control, self.enforcers, now)
    }

    /// Decides, and claims what is to run or to be undone. A batch with neither writes nothing here.
    async fn claim(&self, account: Account) -> Result<(Vec<Step>, Account), BatchError> {
        let mut steps = Vec::new();
        let plan = |account: &Account| {
            let now = Timestamp::now();
            let lease = now
                .saturating_add(SignedDuration::from_secs(action::LEASE_SECONDS))
                .unwrap_or(now);
            steps = self.decided(account, now);
            let mut plan = Plan::default();
            let mut executing = BTreeMap::new();
            for (message, step) in self.messages.iter().zip(&steps) {
                let before = action_of(message, account, now);
                let claimed = match step {
                    Step::Execute(id) => {
                        let count = executing.entry(id.clone()).or_default();
                        *count += 1u64;
                        let before = Action {
                            entitlement_id: Some(id.clone()),
                            parameters: message.parameters(),
                            ..before
                        };
                        before.next(&ActionEvent::Claimed, Uuid::nil())?
                    }
                    // Its governor is gone: the deadline it did not report is over.
                    Step::Undo if before.state == ActionState::Running => {
                        let receipt_id = Uuid::now_v7();
                        let expired = before.next(&ActionEvent::LeaseExpired, receipt_id)?;
                        if let Some(payload) = expired.receipt.clone() {
                            plan.drafts
                                .push(self.draft(receipt_id, &before.policy_hash, payload, 0));
                        }
                        expired
                    }
                    Step::Undo => action::Transition {
                        action: before,
                        receipt: None,
                    },
                    Step::Acknowledge | Step::Later | Step::Settle(_) => continue,
                };
                plan.actions.push(claimed.action.owned_by(self.owner, lease));
            }
            // Also what is undone has a claim that ends: the sweep waits for it.
            if !plan.actions.is_empty() {
                plan.tenant = account
                    .tenant
                    .as_ref()
                    .map(|tenant| tenant.claimed(&executing, now, lease));
            }
            Ok::<_, BatchError>(plan)
        };
        let store = &self.governor.store;
        let committed = store
            .transact(self.signer, self.partition, self.keys, Some(account), plan)
            .await?;
        Ok((steps, committed.account))
    }

    /// Calls the handler for every claimed action at once.
    async fn run(&self, steps: &[Step], account: &Account) -> Result<BTreeMap<usize, Run>, BatchError> {
        if !steps.iter().any(Step::calls_handler) {
            return Ok(BTreeMap::new());
        }
        let secret = self.governor.ready_to_call().await?;
        let mut calls = JoinSet::new();
        for (index, (message, step)) in self.messages.iter().zip(steps).enumerate() {
            if !step.calls_handler() {
                continue;
            }
            let Some(action) = account.actions.get(message.action_id()).cloned() else {
                continue;
            };
            let enforcer = self.enforcers.get(&action.policy_hash);
            let Some(spec) = enforcer.and_then(|e| e.action(&action.template)) else {
                // Only an undo can find its enforcer gone; in the end a person has to undo it.
                calls.spawn(async move { (index, no_rollback_route(action)) });
                continue;
            };
            // Those the claim was made with: a repeated signal may say others.
            let parameters = action.parameters.clone().or_else(|| message.parameters());
            let call = Call {
                action_id: action.action_id.as_str().to_owned(),
                account_id: self.account_id.to_owned(),
                template: action.template.clone(),
                parameters: parameters.unwrap_or_default(),
            };
            let (act, undo) = (spec.handler.clone(), spec.rollback.clone());
            let handler = Arc::clone(&self.governor.handler);
            let secret = secret.clone();
            calls.spawn(async move {
                (
                    index,
                    carry_out(&handler, &secret, &act, &undo, &call, action).await,
                )
            });
        }
        let mut runs = BTreeMap::new();
        while let Some(joined) = calls.join_next().await {
            let (index, run) = joined.map_err(|e| BatchError::Lost(e.to_string()))?;
            runs.insert(index, run?);
        }
        Ok(runs)
    }

    /// Commits every outcome and its receipts as one group, and says what becomes of each message.
    async fn commit(
        &self,
        steps: &[Step],
        account: Account,
        runs: &BTreeMap<usize, Run>,
    ) -> Result<(Vec<Fate>, Account), BatchError> {
        let settle_ids: Vec<Uuid> = steps.iter().map(|_| Uuid::now_v7()).collect();
        let mut fates = Vec::new();
        let plan = |account: &Account| {
            let now = Timestamp::now();
            let mut plan = Plan::default();
            let mut released = Vec::new();
            fates = Vec::with_capacity(steps.len());
            for (index, (message, step)) in self.messages.iter().zip(steps).enumerate() {
                fates.push(match (step, runs.get(&index)) {
                    (Step::Acknowledge, _) => Fate::Acknowledged,
                    (Step::Settle(event), _) => {
                        // Another governor may have settled the same signal first.
                        if !account.actions.contains_key(message.action_id()) {
                            let receipt_id = settle_ids.get(index).copied().unwrap_or_default();
                            let before = action_of(message, account, now);
                            let settled = before.next(event, receipt_id)?;
                            if let Some(payload) = settled.receipt {
                                plan.drafts.push(self.draft(
                                    receipt_id,
                                    &before.policy_hash,
                                    payload,
                                    self.elapsed(),
                                ));
                            }
                            plan.actions.push(settled.action);
                        }
                        Fate::Acknowledged
                    }
                    (Step::Execute(_) | Step::Undo, Some(run)) => {
                        let ours = account
                            .actions
                            .get(message.action_id())
                            .is_some_and(|a| a.owner == self.owner);
                        if ours {
                            for (receipt_id, payload, duration_ms) in &run.records {
                                let draft = self.draft(
                                    *receipt_id,
                                    &run.action.policy_hash,
                                    payload.clone(),
                                    *duration_ms,
                                );
                                plan.drafts.push(draft);
                            }
                            if run.action.state.is_final() {
                                released.push(Released {
                                    entitlement_id: run.action.entitlement_id.clone(),
                                    completed: run.action.state == ActionState::Complete,
                                });
                            }
                            // The claim ends here: what still has to be undone may be taken up at once.
                            plan.actions.push(run.action.owned_by(run.action.owner, now));
                        }
                        if ours && run.action.state.is_final() {
                            Fate::Acknowledged
                        } else {
                            Fate::Later
                        }
                    }
                    (Step::Later | Step::Execute(_) | Step::Undo, _) => Fate::Later,
                });
            }
            if !released.is_empty() {
                plan.tenant = account.tenant.as_ref().map(|tenant| tenant.released(&released));
            }
            Ok::<_, BatchError>(plan)
        };
        let store = &self.governor.store;
        let committed = store
            .transact(self.signer, self.partition, self.keys, Some(account), plan)
            .await?;
        for sealed in &committed.sealed {
            telemetry::count("governor", sealed.operation, ("stage", "ledger"));
        }
        let mut given_back = BTreeSet::new();
        for (message, fate) in self.messages.iter().zip(&mut fates) {
            // Two messages that ask for the same action have the same fate.
            if *fate == Fate::Later {
                given_back.insert(message.action_id());
            } else if given_back.contains(message.action_id()) {
                *fate = Fate::Later;
            }
        }
        Ok((fates, committed.account))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn draft(&self, receipt_id: Uuid, policy_hash: &str, payload: Payload, duration_ms: u64) -> Draft {
        Draft {
            receipt_id,
            account_id: self.account_id.to_owned(),
            occurred_at: Timestamp::now(),
            duration_ms,
            policy_hash: (!policy_hash.is_empty()).then(|| policy_hash.to_owned()),
            payload,
        }
    }
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
    let mut run = Run {
        action,
        records: Vec::new(),
    };
    if run.action.state == ActionState::Running {
        let started = Instant::now();
        let event = handler
            .act(secret, act, call, Duration::from_millis(action::DEADLINE_MS))
            .await;
        run.take(&event, started)?;
    }
    if run.action.state.undo_due() {
        let started = Instant::now();
        let event = handler
            .undo(
                secret,
                undo,
                call,
                Duration::from_millis(action::ROLLBACK_BUDGET_MS),
            )
            .await;
        run.take(&event, started)?;
    }
    Ok(run)
}

/// An action whose policy cannot say how to undo it: every attempt counts as failed, and it is escalated in the end.
fn no_rollback_route(action: Action) -> Result<Run, BatchError> {
    let mut run = Run {
        action,
        records: Vec::new(),
    };
    if run.action.state.undo_due() {
        run.take(&ActionEvent::UndoFailed, Instant::now())?;
    }
    Ok(run)
}

impl Run {
    fn take(&mut self, event: &ActionEvent, started: Instant) -> Result<(), BatchError> {
        let receipt_id = Uuid::now_v7();
        let next = self.action.next(event, receipt_id)?;
        self.action = next.action;
        if let Some(payload) = next.receipt {
            let taken = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.records.push((receipt_id, payload, taken));
        }
        Ok(())
    }
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
