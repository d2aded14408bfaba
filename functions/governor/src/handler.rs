//! A batch's way: read it, then carry out what its [`Shift`] says until all is done, and report.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::handler::{Call, ClientError, HandlerClient};
use aws::queues::{LeftMessage, Messages};
use aws::registry::{Registry, RegistryError};
use aws::secrets::{Secrets, SecretsError};
use aws::spool::{Spool, SpoolError};
use aws::store::{Store, StoreError};
use aws::telemetry;
use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use domain::account::AccountId;
use domain::action::{self, Action, ActionEvent, ActionState};
use domain::admission::Enforcers;
use domain::control::Control;
use domain::gate::RefusalCode;
use domain::json::object;
use domain::names::{self, Partition, printable};
use domain::operations::block::block;
use domain::signal::{ActionId, Signal};
use domain::transaction::{self, Account, Keys};
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use lambda_runtime::Error;
use receipts::key::Signer;
use receipts::receipt::{Draft, Payload};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};
use uuid::Uuid;

use domain::governor::batch::{Content, Decided, Fate, Message, Run, Step};
use domain::governor::shift::{self, Effects, NextStep, Selection, Shift, Source};

/// How long an invocation may take: the function's timeout.
const INVOCATION: Duration = Duration::from_secs(15);
/// What of it is kept for writing, other writers included.
const WRITING: Duration = Duration::from_secs(5);
/// Until when signals are claimed at the least: what a large rollback budget leaves is taken from the time for writing.
const SHORTEST: Duration = Duration::from_secs(2);
/// How long the queue, and what a decision needs beside the tables, is waited for while outcomes wait.
const ANSWER: Duration = Duration::from_secs(2);

/// Everything `governor` needs, made once per process.
pub struct Governor {
    store: Store,
    registry: Registry,
    control: ControlStore,
    spool: Spool,
    secrets: Secrets,
    handler: Arc<HandlerClient>,
    /// How long an invocation takes up new signals.
    shift: Duration,
    messages: Messages,
    stack: Stack,
    handler_secret: String,
    queue_prefix: String,
}

/// Why a batch, or a part of it, goes back to the queue.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Nobody knows whose queue this is.
    #[error("no tenant is known for queue {queue}")]
    Ownerless { queue: String },
    #[error(transparent)]
    Illegal(#[from] action::IllegalTransition),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A call to the handler ended without a word.
    #[error("a handler call was lost: {0}")]
    Lost(String),
    /// What a decision needs did not come in time, while actions had ended whose outcomes were to be written.
    #[error("{what} did not answer within {} s", ANSWER.as_secs())]
    Slow { what: &'static str },
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
            Self::Slow { .. } => "slow",
        }
    }
}

/// A request to look whether a tenant's governor can work.
#[derive(Debug, Deserialize)]
struct Boot {
    account_id: AccountId,
    /// The enforcer that will decide.
    policy_hash: String,
}

impl Governor {
    /// Reads the environment and makes the clients.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let audit = config::required(config::AUDIT_BUCKET)?;
        let handler_secret = config::required(config::HANDLER_SECRET_ID)?;
        let rollback_budget = config::rollback_budget()?;
        let handler = HandlerClient::new(config::handler_target()?, rollback_budget);
        let queue_prefix = config::queue_prefix()?;
        let sdk = clients::load().await;
        let s3 = sdk.s3();
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            registry: Registry::new(s3.clone(), registry),
            control: ControlStore::new(s3.clone(), control),
            spool: Spool::new(s3, audit),
            secrets: Secrets::new(&sdk),
            handler: Arc::new(handler),
            shift: shift_of(rollback_budget),
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
        if let Some(boot) = event.get("boot") {
            let ready = match self.boot(&object(boot)?).await {
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
    async fn boot(&self, boot: &Boot) -> Result<(), BatchError> {
        self.registry.enforcer(&boot.policy_hash).await?;
        self.secrets.signer(&self.stack.signing_key_secret).await?;
        self.ready_to_call().await?;
        // Degraded is no reason not to be made; unreadable is one not to be relied upon.
        self.control.read().await?;
        info!(account = boot.account_id.as_str(), "ready");
        Ok(())
    }

    /// Governs one batch. Messages it could not settle are named in the answer and come back.
    async fn batch(&self, event: SqsEvent) -> SqsBatchResponse {
        let invoked = Instant::now();
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
            let messages: Vec<Message> = raw.into_iter().map(|m| self.handed_out(&queue, m)).collect();
            let ids: Vec<String> = messages.iter().map(|m| m.message_id.clone()).collect();
            let unsettled = match Box::pin(self.govern(&queue, messages, invoked)).await {
                Ok(unsettled) => unsettled,
                Err(e) => {
                    goes_back(&queue, &e);
                    ids
                }
            };
            for message_id in unsettled {
                let mut failure = BatchItemFailure::default();
                failure.item_identifier = message_id;
                response.batch_item_failures.push(failure);
            }
        }
        response
    }

    /// A message that the queue's mapping hands out.
    fn handed_out(&self, queue: &str, mut message: SqsMessage) -> Message {
        let sent_at = message.attributes.remove("SentTimestamp");
        let deliveries = message.attributes.remove("ApproximateReceiveCount");
        let left = LeftMessage {
            message_id: message.message_id.unwrap_or_default(),
            receipt_handle: message.receipt_handle.unwrap_or_default(),
            body: message.body.unwrap_or_default(),
            sent_at_ms: sent_at,
            deliveries,
        };
        self.read(queue, left)
    }

    fn read(&self, queue: &str, message: LeftMessage) -> Message {
        let malformed = |detail: &str| Content::Malformed {
            action_id: ActionId::of_message(&message.message_id),
            detail: printable(detail, 512),
        };
        let content = match Signal::parse(&message.body) {
            Ok(signal) if names::queue_belongs_to(queue, &self.queue_prefix, &signal.account_id) => {
                Content::Signal(signal)
            }
            Ok(_) => malformed("signal field `account_id`: is not the tenant of this queue"),
            Err(e) => malformed(&e.for_the_record()),
        };
        let sent_at = message.sent_at_ms.and_then(|ms| ms.parse().ok());
        let sent_at = sent_at.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        Message {
            message_id: message.message_id,
            receipt_handle: message.receipt_handle,
            sent_at: sent_at.unwrap_or_else(Timestamp::now),
            deliveries: message.deliveries.and_then(|n| n.parse().ok()).unwrap_or(1),
            content,
            body: message.body,
        }
    }

    async fn control(&self) -> Option<Control> {
        let read = self.control.read().await;
        read.inspect_err(|e| error!(error = %e, "control is unreadable: everything is refused"))
            .ok()
    }

    /// Works through a batch and, while places are free, through what else its queue holds. Gives the ids of the batch's
    /// messages that are not settled.
    async fn govern(
        &self,
        queue: &str,
        messages: Vec<Message>,
        invoked: Instant,
    ) -> Result<Vec<String>, BatchError> {
        let began = Instant::now();
        let control = self.control().await;
        let signer = self.secrets.signer(&self.stack.signing_key_secret).await?;
        let mut shift = Shift::new(self.shift.saturating_sub(invoked.elapsed()));
        if control.as_ref().is_none_or(Control::degraded) {
            let fates = self.refuse_all(&signer, &mut messages.iter()).await?;
            let fates = messages.into_iter().zip(fates);
            return Ok(fates
                .filter(|(_, fate)| *fate != Fate::Acknowledged)
                .map(|(message, _)| message.message_id)
                .collect());
        }
        let (account_id, partition) = self.owner(queue, &messages).await?;
        shift.take(messages, Source::Mapping, began.elapsed(), Uuid::now_v7);
        let mut work = Work {
            queue,
            account_id,
            partition,
            signer,
            began,
            shift,
            control: Some(control),
            secret: None,
            calls: JoinSet::new(),
        };
        loop {
            while let Some(joined) = work.calls.try_join_next() {
                work.joined(joined);
            }
            match work.shift.next(began.elapsed()) {
                NextStep::Receive(most) => self.receive(&mut work, most).await,
                NextStep::Commit => Box::pin(self.commit(&mut work)).await,
                NextStep::Release => {
                    let effects = work.shift.release(began.elapsed(), fastrand::f64());
                    self.carry_out(&mut work, effects).await;
                }
                NextStep::Wait(time) if work.calls.is_empty() => sleep(time).await,
                NextStep::Wait(time) => {
                    // A call that ended is taken in above, with all others that did.
                    if let Ok(Some(joined)) = timeout(time, work.calls.join_next()).await {
                        work.joined(joined);
                    }
                }
                NextStep::End => return Ok(work.shift.unsettled()),
            }
        }
    }

    async fn receive(&self, work: &mut Work<'_>, most: usize) {
        let Some(queue_url) = work.queue_url() else {
            work.shift.receives_no_more();
            return;
        };
        let received = timeout(ANSWER, Box::pin(self.messages.receive(&queue_url, most))).await;
        match received {
            Err(_) => {
                warn!(
                    queue = work.queue,
                    "the queue does not answer: the mapping brings further signals"
                );
                work.shift.receives_no_more();
            }
            Ok(Ok(received)) => {
                let messages: Vec<Message> = received.into_iter().map(|m| self.read(work.queue, m)).collect();
                let now = work.began.elapsed();
                work.shift.take(messages, Source::Received, now, Uuid::now_v7);
            }
            Ok(Err(e)) => {
                warn!(queue = work.queue, error = %e, "no further signals are received: the mapping brings them");
                work.shift.receives_no_more();
            }
        }
    }

    /// Writes a group: what is over, and what is decided of the signals in hand. What can't be written goes back to the queue.
    async fn commit(&self, work: &mut Work<'_>) {
        let chosen = work.shift.choose();
        if let Err(e) = self.try_commit(work, &chosen).await {
            goes_back(work.queue, &e);
            work.shift.failed(&chosen);
        }
    }

    async fn try_commit(&self, work: &mut Work<'_>, chosen: &Selection) -> Result<(), BatchError> {
        let control = match (chosen.decides(), work.control.take()) {
            (false, looked) => {
                work.control = looked;
                None
            }
            (true, Some(looked)) => looked,
            (true, None) => {
                // That it is slow is no reason to refuse what may wait.
                let control = Box::pin(async { Ok(self.control().await) });
                in_time("the control object", work.patience(), control).await?
            }
        };
        if chosen.decides() && control.as_ref().is_none_or(Control::degraded) {
            let fates = {
                let mut messages = work.shift.in_hand_of(chosen);
                let refused = Box::pin(self.refuse_all(&work.signer, &mut messages));
                in_time("the spool", work.patience(), refused).await?
            };
            let effects = work.shift.refused(chosen, &fates);
            self.carry_out(work, effects).await;
            return Ok(());
        }
        if let Some(actions) = work.shift.to_read(chosen) {
            let keys = Keys {
                actions: actions.into_iter().collect(),
                ..Keys::default()
            };
            work.shift.read(self.store.load(&work.partition, &keys).await?);
        }
        let Some(account) = work.shift.account().cloned() else {
            return Ok(());
        };
        let blocked = account.tenant.as_ref().and_then(|tenant| tenant.ledger_blocked);
        if chosen.decides()
            && let Some(seq) = blocked
        {
            telemetry::count("governor", "ledger_blocked", ("stage", "hand"));
            error!(
                account = work.account_id,
                seq, "nothing is run: something stands behind the ledger's head, and a person has to look"
            );
            let effects = work.shift.barred(chosen);
            self.carry_out(work, effects).await;
            return Ok(());
        }
        // What is over needs none: it is written whatever the registry says.
        let enforcers = match chosen.decides() {
            true => {
                let enforcers = Box::pin(self.enforcers(&account));
                in_time("the registry", work.patience(), enforcers).await?
            }
            false => Enforcers::new(),
        };
        let owner = Uuid::now_v7();
        let now = (work.began.elapsed(), Timestamp::now());
        let facts = (control.as_ref(), &enforcers);
        let decided = work
            .shift
            .plan(chosen, &account, (&work.account_id, owner), facts, now)?;
        if work.secret.is_none() && decided.steps.iter().any(Step::calls_handler) {
            // Before anything is claimed: a claim whose call cannot be made ends as a timeout.
            work.secret = Some(in_time("the secret", work.patience(), Box::pin(self.ready_to_call())).await?);
        }
        if chosen.decides() && work.shift.is_late(work.began.elapsed()) {
            // What was read took too long: the signals go back.
            return Ok(());
        }
        let written = Box::pin(self.store.commit(&work.signer, &account, &decided.plan, now.1));
        let written = match written.await {
            Err(StoreError::Blocked { seq, .. }) => return Box::pin(self.block(work, chosen, seq)).await,
            written => written?,
        };
        let Some(committed) = written else {
            let tenant = account.tenant.as_ref();
            let governors = tenant.map_or(1, |tenant| tenant.pace().maximum_concurrency.unsigned_abs());
            // Full jitter: writers that lost together do not come back together.
            let wait = |lost| Duration::from_millis(fastrand::u64(0..=longest_wait(lost, governors)));
            let lost = work.shift.outrun(work.began.elapsed(), wait);
            info!(account = work.account_id, lost, "another writer was first");
            if lost >= transaction::ATTEMPTS {
                return Err(StoreError::Contended {
                    account: work.partition.to_string(),
                }
                .into());
            }
            return Ok(());
        };
        for sealed in &committed.sealed {
            telemetry::count("governor", sealed.operation, ("stage", "ledger"));
        }
        told_escalated(&work.account_id, &decided);
        let now = work.began.elapsed();
        let effects = work
            .shift
            .written(chosen, &decided, committed.account, now, fastrand::f64());
        work.call(&self.handler, &effects, &enforcers);
        self.carry_out(work, effects).await;
        Ok(())
    }

    /// The ledger takes no receipt: what has ended is escalated at once, and nothing is run any more. The receipts wait in the
    /// spool.
    async fn block(&self, work: &mut Work<'_>, chosen: &Selection, seq: u64) -> Result<(), BatchError> {
        // The sweep's count rings, within a minute and for as long as it lasts.
        telemetry::count("governor", "ledger_blocked", ("stage", "over"));
        error!(
            account = work.account_id,
            seq,
            "an outcome can't be recorded: something stands behind the ledger's head, and a person has to look"
        );
        let unrecorded = work.shift.unrecorded(chosen);
        let keys = Keys {
            actions: unrecorded.iter().map(|one| one.action_id.clone()).collect(),
            ..Keys::default()
        };
        let bar = |account: &Account, now| Ok::<_, BatchError>(block(account, seq, &unrecorded, now)?);
        let barred = self
            .store
            .transact(&work.signer, &work.partition, &keys, None, bar);
        let (_, receipts) = barred.await?;
        for receipt in &receipts {
            // It is escalated already: that its receipt is late is for a person, too.
            if let Err(e) = self.spool.keep(receipt, &work.signer).await {
                telemetry::count("governor", "receipt_lost", ("stage", "spool"));
                error!(account = work.account_id, receipt_id = %receipt.receipt_id, error = %e, "not in the spool");
            }
            telemetry::count("governor", "action_escalated", ("stage", "ledger_blocked"));
        }
        let ids: BTreeSet<Uuid> = receipts.iter().map(|receipt| receipt.receipt_id).collect();
        let escalated = unrecorded.into_iter().filter(|one| ids.contains(&one.receipt_id));
        let escalated = escalated.map(|one| one.action_id).collect();
        let effects = work.shift.escalated(chosen, &escalated);
        self.carry_out(work, effects).await;
        Ok(())
    }

    /// Deletes, gives back and sends anew what a shift says. What fails comes back after the queue's own time, and is found
    /// settled then.
    async fn carry_out(&self, work: &mut Work<'_>, effects: Effects) {
        let queue = work.queue;
        if timeout(ANSWER, Box::pin(self.tell_queue(work, effects)))
            .await
            .is_err()
        {
            warn!(
                queue,
                "the queue does not answer: signals come back later than they could"
            );
        }
    }

    async fn tell_queue(&self, work: &mut Work<'_>, mut effects: Effects) {
        let Some(queue_url) = work.queue_url() else {
            return;
        };
        for index in std::mem::take(&mut effects.renew) {
            let Some(body) = work.shift.message(index).map(|message| message.body.clone()) else {
                continue;
            };
            match self.messages.send(&queue_url, body).await {
                Ok(()) => effects.delete.extend(work.shift.renewed(index).delete),
                Err(e) => warn!(queue = work.queue, error = %e, "a signal that waits is not sent anew yet"),
            }
        }
        if !effects.delete.is_empty() {
            let deleted = self.messages.delete(&queue_url, &effects.delete).await;
            if let Err(e) = deleted {
                warn!(queue = work.queue, error = %e, "settled signals come back, and are acknowledged then");
            }
        }
        if !effects.give_back.is_empty() {
            let given_back = self.messages.retry_in(&queue_url, &effects.give_back).await;
            if let Err(e) = given_back {
                warn!(queue = work.queue, error = %e, "signals come back later than they could");
            }
        }
    }

    /// Whose queue it is: as a signal that fits the queue says, or as was noted when the queue was made.
    async fn owner(&self, queue: &str, messages: &[Message]) -> Result<(String, Partition), BatchError> {
        let said = messages.iter().find_map(|m| match &m.content {
            Content::Signal(signal) => Some(&signal.account_id),
            Content::Malformed { .. } => None,
        });
        if let Some(account_id) = said {
            return Ok((account_id.as_str().to_owned(), Partition::of(account_id)));
        }
        let noted = self.store.queue_owner(queue).await?;
        let known = noted.and_then(|partition| Some((partition.account()?, partition)));
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
                    error!(account = %account.partition, error = %e, "enforcer refused");
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(enforcers)
    }

    /// Degraded: each signal is refused with a receipt in the spool, and nothing touches the tables.
    async fn refuse_all(
        &self,
        signer: &Signer,
        messages: &mut (dyn Iterator<Item = &Message> + Send),
    ) -> Result<Vec<Fate>, BatchError> {
        let mut fates = Vec::new();
        for message in messages {
            let Content::Signal(signal) = &message.content else {
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
}

/// One batch being worked through.
struct Work<'q> {
    queue: &'q str,
    account_id: String,
    partition: Partition,
    signer: Signer,
    began: Instant,
    shift: Shift,
    /// The control object as the first decision is taken by it; each later one looks again.
    control: Option<Option<Control>>,
    /// What signs the calls, once there are some.
    secret: Option<Secret>,
    calls: JoinSet<Called>,
}

/// A call that ended: of which message, with what, and how long it took.
type Called = (usize, Result<Run, BatchError>, Duration);

impl Work<'_> {
    /// How long what a decision needs may take. While actions run or are over their outcomes come first.
    fn patience(&self) -> Duration {
        match self.shift.is_idle() {
            true => INVOCATION,
            false => ANSWER,
        }
    }

    fn queue_url(&self) -> Option<String> {
        let tenant = self.shift.account()?.tenant.as_ref()?;
        Some(tenant.resources.queue_url.clone()).filter(|url| !url.is_empty())
    }

    /// Calls the handler for each action that was claimed. What is lost here is found again when its claim is over.
    fn call(&mut self, handler: &Arc<HandlerClient>, effects: &Effects, enforcers: &Enforcers) {
        let (Some(account), Some(secret)) = (self.shift.account(), &self.secret) else {
            return;
        };
        for index in effects.calls.iter().copied() {
            let Some(message) = self.shift.message(index) else {
                continue;
            };
            let Some(action) = account.actions.get(message.action_id()).cloned() else {
                continue;
            };
            let enforcer = enforcers.get(&action.policy_hash);
            let Some(spec) = enforcer.and_then(|e| e.action(&action.template)) else {
                // Only an undo can find its enforcer gone; a person has to undo it.
                self.calls
                    .spawn(async move { (index, no_rollback_route(action), Duration::ZERO) });
                continue;
            };
            // Those the claim was made with: a repeated signal may say others.
            let parameters = action.parameters.clone().or_else(|| message.parameters());
            let call = Call {
                action_id: action.action_id.as_str().to_owned(),
                account_id: self.account_id.clone(),
                template: action.template.clone(),
                parameters: parameters.unwrap_or_default(),
            };
            let (act, undo) = (spec.handler.clone(), spec.rollback.clone());
            let (handler, secret) = (Arc::clone(handler), secret.clone());
            self.calls.spawn(async move {
                let began = Instant::now();
                let run = carry_out(&handler, &secret, &act, &undo, &call, action).await;
                (index, run, began.elapsed())
            });
        }
    }

    fn joined(&mut self, joined: Result<Called, JoinError>) {
        let now = self.began.elapsed();
        let lost = |e: &BatchError| {
            telemetry::count("governor", "call_lost", ("error", e.kind()));
            error!(error = %e, "an action is left to whoever finds its claim over");
        };
        match joined {
            Ok((index, run, took)) => {
                let run = run.inspect_err(lost).ok();
                self.shift.ended(index, run, took, now);
            }
            Err(e) => lost(&BatchError::Lost(e.to_string())),
        }
        if self.calls.is_empty() {
            // Which one it was died with a lost call.
            self.shift.forsake();
        }
    }
}

/// How long an invocation takes up new signals, so that the last one's action, claimed [`shift::HELD`] later at the most, its
/// undo and what is written of both end in the invocation's time.
fn shift_of(rollback_budget: Duration) -> Duration {
    let deadline = Duration::from_millis(action::DEADLINE_MS);
    let left = INVOCATION.saturating_sub(deadline + rollback_budget + WRITING);
    left.max(SHORTEST).saturating_sub(shift::HELD)
}

/// How long a governor waits at the most that others outran so often, in milliseconds: time for each of them to write, and
/// less and less for who has lost often. What ends meanwhile is written along. Measured with instant actions, see "governors
/// of one tenant" in benches/README.md.
fn longest_wait(lost: u32, governors: u32) -> u64 {
    const EACH_MS: u32 = 40;
    const MOST_MS: u32 = 1_000;
    let all = governors.saturating_mul(EACH_MS).min(MOST_MS);
    let fewer = all >> (lost.saturating_sub(1) / 3).min(4);
    transaction::longest_wait(lost).max(u64::from(fewer))
}

fn told_escalated(account_id: &str, decided: &Decided) {
    for action in &decided.plan.actions {
        if let Some(escalation) = &action.escalation {
            let (action_id, error_code) = (action.action_id.as_str(), &escalation.error_code);
            telemetry::count("governor", "action_escalated", ("stage", "ledger"));
            error!(
                account = account_id,
                action_id, error_code, "escalated: a person has to look"
            );
        }
    }
}

async fn in_time<T>(
    what: &'static str,
    patience: Duration,
    call: impl Future<Output = Result<T, BatchError>>,
) -> Result<T, BatchError> {
    timeout(patience, call)
        .await
        .unwrap_or(Err(BatchError::Slow { what }))
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
    let payload = Payload::ActionRefused {
        action_id: message.action_id().as_str().to_owned(),
        template: message.template(),
        code: RefusalCode::Unavailable.name().to_owned(),
        detail: Some("the system is degraded".to_owned()),
        rules: Vec::new(),
    };
    let receipt_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
    Draft::new(receipt_id, account_id.as_str(), payload, message.sent_at)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{INVOCATION, WRITING, longest_wait, shift, shift_of};

    #[test]
    fn who_is_outrun_leaves_the_others_time() {
        let first = [1, 2, 10, u32::MAX].map(|governors| longest_wait(1, governors));
        assert_eq!(first, [40, 80, 400, 1_000]);
        let ever_less = [1, 3, 4, 7, 10, 13, 40].map(|lost| longest_wait(lost, 50));
        assert_eq!(ever_less, [1_000, 1_000, 500, 250, 125, 80, 62]);
    }

    #[test]
    fn a_shift_ends_in_its_invocations_time() {
        assert_eq!(
            shift_of(Duration::from_millis(2_000)),
            Duration::from_millis(6_500)
        );
        let deadline = Duration::from_millis(domain::action::DEADLINE_MS);
        for (budget, writing) in [(100, WRITING), (2_000, WRITING), (10_000, WRITING / 2)] {
            let budget = Duration::from_millis(budget);
            let claimed = shift_of(budget) + shift::HELD;
            assert!(claimed + deadline + budget + writing <= INVOCATION, "{budget:?}");
            assert!(shift_of(budget) >= Duration::from_secs(1), "{budget:?}");
        }
    }
}
