//! The end of a tenant: drained, archived, deleted; and what is left of queues that are nobody's.

use std::time::Duration;

use aws::archive::{ArchiveError, Archived, Archives, DeadLetter};
use aws::entitlements::{DecommissionOrder, Entitlements};
use aws::functions::Functions;
use aws::log::LogError;
use aws::pages::Pages;
use aws::queues::{QueueError, Teardown, TenantQueues};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use aws::tables::{TableError, TenantTables};
use aws::telemetry;
use domain::account::AccountId;
use domain::action::{DECOMMISSIONED, IllegalTransition};
use domain::json::Object;
use domain::names::{self, LedgerId, Partition};
use domain::operations::abandon;
use domain::operations::decommission::{self, Closing};
use domain::operations::refuse_left::{self, LeftSignal};
use domain::tenant::{Lifecycle, Tenant};
use domain::transaction::{Account, Keys, Plan};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::ledger::Head;
use receipts::receipt::{Draft, Payload, Receipt};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use uuid::Uuid;

/// How long in-flight actions and waiting signals have to finish.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a message can be hidden after the governor was cut off from its queue: its visibility timeout and a bit.
const HIDDEN: Duration = Duration::from_secs(40);
/// How often the drain looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Receipts looked through at a time for the one that closed a ledger: they fit into a page of the table.
const LOOK_BACK: u64 = 32;
/// Times an archive is made again because a receipt was appended meanwhile.
const ARCHIVE_ATTEMPTS: u32 = 4;

/// Attempts to make tables that are looked for of a generation that is gone: each of them was undone when it failed.
const TABLE_ATTEMPTS: u64 = 8;
/// Actions abandoned in one transaction: each takes three of its hundred items.
const GROUP: usize = 30;

/// What ends tenants.
pub(crate) struct Decommissioner {
    pub(crate) entitlements: Entitlements,
    pub(crate) archives: Archives,
    pub(crate) teardown: Teardown,
    pub(crate) queues: TenantQueues,
    pub(crate) tables: TenantTables,
    pub(crate) functions: Functions,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) signing_key: String,
    pub(crate) entitlement_function: String,
}

/// What the decommission queue asks for.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ordered {
    /// A tenant leaves.
    Tenant(DecommissionOrder),
    /// A queue, and what goes with it, is nobody's.
    Orphan { orphan: String },
}

/// Why an order could not be carried out yet. It comes back through the queue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecommissionError {
    /// The message is not an order.
    #[error("message is not a decommission order")]
    Form(#[from] serde_json::Error),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Signals were still on the queue, and could not be taken off it.
    #[error("{waiting} signals on the queue could not be taken off within {} s", HIDDEN.as_secs())]
    NotDrained {
        /// Messages on the queue.
        waiting: u64,
    },
    /// Nobody knows whose queue this was: a person must look.
    #[error("no tenant is known for queue {queue}")]
    Ownerless { queue: String },
    /// The ledger's log could not be read, or contradicts the ledger.
    #[error("the ledger's checkpoints")]
    Log(#[from] LogError),
    /// Receipts were appended faster than they could be archived.
    #[error("receipts were appended during each of {ARCHIVE_ATTEMPTS} archives")]
    Moving,
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The tenant is not in a state this order makes sense in.
    #[error("tenant is {}", .0.name())]
    State(Lifecycle),
}

enum CloseError {
    Store(StoreError),
    Archive(ArchiveError),
    Refused(decommission::CloseError),
}

impl From<StoreError> for CloseError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Decommissioner {
    fn store(&self) -> &Store {
        &self.entitlements.store
    }

    pub(crate) async fn signer(&self) -> Result<Signer, SecretsError> {
        self.secrets.signer(&self.signing_key).await
    }

    /// Carries out an order of the decommission queue.
    ///
    /// # Errors
    /// [`DecommissionError`] when it could not be carried out yet.
    pub(crate) async fn carry_out(&self, body: &str) -> Result<(), DecommissionError> {
        let Object(ordered) = serde_json::from_str(body)?;
        match ordered {
            Ordered::Tenant(order) => Box::pin(self.decommission(&order)).await,
            Ordered::Orphan { orphan } => Box::pin(self.remove_orphan(&orphan)).await,
        }
    }

    async fn decommission(&self, order: &DecommissionOrder) -> Result<(), DecommissionError> {
        let store = self.store();
        let partition = Partition::of(&order.account_id);
        let account = store.load(&partition, &Keys::default()).await?;
        let Some(tenant) = account.tenant.filter(|t| t.generation == order.generation) else {
            info!(
                account = order.account_id.as_str(),
                "order is for a generation that is gone"
            );
            // It may have subscribed again before the run that closed its ledger had done all.
            return self.close_again(order, &partition, &account.head).await;
        };
        match tenant.lifecycle {
            Lifecycle::Decommissioning => {}
            Lifecycle::Decommissioned => {
                return self.close_again(order, &partition, &account.head).await;
            }
            state @ (Lifecycle::Absent | Lifecycle::Provisioning | Lifecycle::Active) => {
                return Err(DecommissionError::State(state));
            }
        }
        let signer = self.signer().await?;
        // First of all: of a tenant whose ledger is not the one that was signed for, nothing is taken away.
        let ledger = LedgerId::Customer(order.account_id.clone());
        let log = self.archives.log();
        log.issue(store, &signer, &ledger, &account.head).await?;
        let drained = self.drain(&partition, &tenant).await?;
        self.queues.remove_mapping(&tenant.fsm_id).await?;
        if !drained {
            self.abandon(&signer, &partition).await?;
        }
        let leaving = Leaving {
            signer: &signer,
            partition: &partition,
            account_id: &tenant.account_id,
            generation: tenant.generation,
        };
        self.refuse_left(&leaving, &tenant.resources.queue_url, Letters::Live)
            .await?;
        self.refuse_left(&leaving, &tenant.resources.dead_letter_queue_url, Letters::Dead)
            .await?;
        self.retire_tables(&signer, &partition, order).await?;
        for _ in 0..ARCHIVE_ATTEMPTS {
            let registry = &self.entitlements.registry;
            let account = store.load(&partition, &Keys::default()).await?;
            let leaving = account
                .tenant
                .as_ref()
                .filter(|t| t.lifecycle == Lifecycle::Decommissioning);
            let Some(tenant) = leaving.cloned() else {
                // Another run of this order was first; it may have ended before all of it was done.
                return self.close_again(order, &partition, &account.head).await;
            };
            let archived = self
                .archives
                .archive(store, registry, &signer, &order.account_id, &account.head)
                .await?;
            self.teardown.delete_queue(&tenant.resources.queue_url).await?;
            self.teardown
                .delete_queue(&tenant.resources.dead_letter_queue_url)
                .await?;
            if let Some(tables) = &tenant.tables {
                self.tables.delete(&tables.actions).await?;
                self.tables.delete(&tables.receipts).await?;
            }
            match self.close(&signer, &partition, order, &archived).await {
                Ok((seq, line, head, waiting)) => {
                    let closing = (seq, line.as_str());
                    self.archives
                        .close(store, &signer, &order.account_id, &archived.key, closing, &head)
                        .await?;
                    info!(
                        account = order.account_id.as_str(),
                        archive = archived.key,
                        "decommissioned"
                    );
                    if waiting {
                        self.resume(&order.account_id).await;
                    }
                    return Ok(());
                }
                Err(CloseError::Refused(decommission::CloseError::Moved)) => {}
                Err(CloseError::Refused(decommission::CloseError::State(Lifecycle::Decommissioned))) => {
                    let head = store.load(&partition, &Keys::default()).await?.head;
                    return self.close_again(order, &partition, &head).await;
                }
                Err(CloseError::Store(e)) => return Err(e.into()),
                Err(CloseError::Archive(e)) => return Err(e.into()),
                Err(CloseError::Refused(decommission::CloseError::State(state))) => {
                    return Err(DecommissionError::State(state));
                }
            }
        }
        Err(DecommissionError::Moving)
    }

    /// Has what waited for the end of the tenant carried out now; the sweep does it otherwise.
    async fn resume(&self, account_id: &AccountId) {
        let event = json!({ "resume": { "account_id": account_id } });
        if let Err(e) = self
            .functions
            .invoke_later(&self.entitlement_function, &event)
            .await
        {
            warn!(account = account_id.as_str(), error = %e, "what waits is left to the sweep");
        }
    }

    /// Brings the content of a tenant's own tables to where it stays: its actions into an archive of their own, its
    /// receipts into the shared ledger table. Then nothing is read from them any more.
    async fn retire_tables(
        &self,
        signer: &Signer,
        partition: &Partition,
        order: &DecommissionOrder,
    ) -> Result<(), DecommissionError> {
        let store = self.store();
        let keys = Keys::default();
        let end =
            |account: &Account, _| Ok::<_, DecommissionError>((decommission::end_own_tables(account), ()));
        let (committed, ()) = store.transact(signer, partition, &keys, None, end).await?;
        if decommission::own_tables(&committed.account).is_none() {
            return Ok(());
        }
        // Loaded again: the store then knows where each receipt stands.
        let account = store.load(partition, &keys).await?;
        let Some((_, tables)) = decommission::own_tables(&account) else {
            return Ok(());
        };
        let actions = self
            .archives
            .archive_actions(store, &order.account_id, order.generation)
            .await?;
        store.bring_home(partition, tables).await?;
        let note = |account: &Account, _| {
            Ok::<_, DecommissionError>((decommission::note_archived_actions(account, &actions), ()))
        };
        store.transact(signer, partition, &keys, None, note).await?;
        Ok(())
    }

    /// Takes away a queue, its dead-letter queue, mapping and tables that are no living tenant's. What stands on the queue
    /// is refused on record first.
    async fn remove_orphan(&self, queue: &str) -> Result<(), DecommissionError> {
        let Some(partition) = self.store().queue_owner(queue).await? else {
            return Err(DecommissionError::Ownerless {
                queue: queue.to_owned(),
            });
        };
        let account = self.store().load(&partition, &Keys::default()).await?;
        let tenant = account.tenant.as_ref();
        let in_use = tenant.is_some_and(|tenant| {
            let alive = !matches!(tenant.lifecycle, Lifecycle::Absent | Lifecycle::Decommissioned);
            tenant.fsm_id == queue && alive
        });
        let Some(account_id) = partition.account().filter(|_| !in_use) else {
            info!(queue, "is in use");
            return Ok(());
        };
        let signer = self.signer().await?;
        let generation = queue
            .rsplit_once("-g")
            .and_then(|(_, n)| n.parse().ok())
            .unwrap_or_default();
        let leaving = Leaving {
            signer: &signer,
            partition: &partition,
            account_id: &account_id,
            generation,
        };
        let mut removed = Vec::new();
        if self.queues.remove_mapping(queue).await? {
            removed.push("mapping");
        }
        let dead_letters = names::dead_letter_queue_name(queue);
        for (name, letters, what) in [
            (queue, Letters::Live, "queue"),
            (dead_letters.as_str(), Letters::Dead, "dead_letter_queue"),
        ] {
            if let Some(url) = self.queues.url(name).await? {
                self.refuse_left(&leaving, &url, letters).await?;
                self.teardown.delete_queue(&url).await?;
                removed.push(what);
            }
        }
        let own = tenant.and_then(|tenant| tenant.tables.as_ref());
        for attempt in 0..=TABLE_ATTEMPTS.max(tenant.map_or(0, |tenant| tenant.table_attempts)) {
            for table in [
                names::action_table_name(queue, attempt),
                names::receipt_table_name(queue, attempt),
            ] {
                let used = own.is_some_and(|own| [&own.actions, &own.receipts].contains(&&table));
                if !used && self.tables.delete(&table).await? {
                    removed.push("table");
                }
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        warn!(queue, ?removed, "removed what was nobody's");
        let payload = Payload::ResourceRepaired {
            resource: queue.to_owned(),
            finding: "orphan".to_owned(),
            repair: format!("removed {}", removed.join(", ")),
        };
        let draft = Draft::new(Uuid::now_v7(), account_id.as_str(), payload, Timestamp::now());
        let record = |_: &Account, _| Ok::<_, DecommissionError>((Plan::append(draft.clone()), ()));
        self.store()
            .transact(&signer, &partition, &Keys::default(), None, record)
            .await?;
        Ok(())
    }

    /// The run that closed the ledger may have ended before its closing receipt and checkpoint stood beside the archive.
    async fn close_again(
        &self,
        order: &DecommissionOrder,
        partition: &Partition,
        head: &Head,
    ) -> Result<(), DecommissionError> {
        let bucket = format!("s3://{}/", self.archives.bucket());
        let mut end = head.size;
        // Of this generation the last one is meant, and few receipts can come behind it.
        while end > 0 {
            let start = end.saturating_sub(LOOK_BACK);
            let lines = self.store().receipts_from(partition, start).await?;
            let few = usize::try_from(end - start).unwrap_or(usize::MAX);
            for line in lines.iter().take(few).rev() {
                let receipt: Receipt = serde_json::from_str(line)?;
                if let Payload::DecommissionComplete { archive_path, .. } = &receipt.payload
                    && let Some(key) = archive_path.strip_prefix(&bucket)
                {
                    let closing = (receipt.seq, line.as_str());
                    let signer = self.signer().await?;
                    self.archives
                        .close(self.store(), &signer, &order.account_id, key, closing, head)
                        .await?;
                    return Ok(());
                }
            }
            end = start;
        }
        Ok(())
    }

    /// Waits until no action is in flight and the queue is empty: the governor finishes what runs and refuses the rest.
    /// False when the time was over before.
    async fn drain(&self, partition: &Partition, tenant: &Tenant) -> Result<bool, DecommissionError> {
        let deadline = Instant::now() + DRAIN;
        let mut quiet = 0;
        loop {
            let account = self.store().load(partition, &Keys::default()).await?;
            let in_flight = account.tenant.map_or(0, |t| t.in_flight);
            let backlog = self.teardown.backlog(&tenant.resources.queue_url).await?;
            // SQS counts are approximate, so one look that finds nothing is not enough.
            quiet = if in_flight == 0 && backlog.is_empty() {
                quiet + 1
            } else {
                0
            };
            if quiet == 2 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends, on record, every action that did not end in its time: its claim is void, so nobody can finish it later.
    async fn abandon(&self, signer: &Signer, partition: &Partition) -> Result<(), DecommissionError> {
        let (mut unfinished, mut pages) = (Vec::new(), Pages::default());
        while let Some(actions) = pages
            .next(async |after| self.store().actions(partition, after).await)
            .await?
        {
            unfinished.extend(
                actions
                    .into_iter()
                    .filter(|a| a.state.in_flight())
                    .map(|a| a.action_id),
            );
        }
        for group in unfinished.chunks(GROUP) {
            let keys = Keys {
                actions: group.iter().cloned().collect(),
                ..Keys::default()
            };
            let group: Vec<_> = group.iter().map(|id| (id.clone(), Uuid::now_v7())).collect();
            let give_up = |account: &Account, now| {
                Ok::<_, DecommissionError>((abandon::abandon(account, &group, DECOMMISSIONED, now)?, ()))
            };
            let (committed, ()) = self
                .store()
                .transact(signer, partition, &keys, None, give_up)
                .await?;
            for sealed in &committed.sealed {
                telemetry::count("cancel", sealed.operation, ("stage", "decommissioning"));
                telemetry::count("cancel", "action_escalated", ("stage", "decommissioning"));
            }
            warn!(
                %partition,
                abandoned = committed.sealed.len(),
                "actions did not end in their time"
            );
        }
        Ok(())
    }

    /// Refuses, on record, what stands on a queue that the governor is no longer fed from. Dead letters are kept first.
    async fn refuse_left(
        &self,
        leaving: &Leaving<'_>,
        queue_url: &str,
        letters: Letters,
    ) -> Result<(), DecommissionError> {
        let hidden = Instant::now() + HIDDEN;
        loop {
            let left = self.teardown.receive(queue_url).await?;
            if left.is_empty() {
                // What a governor held when it was cut off is hidden for a while yet.
                let backlog = self.teardown.backlog(queue_url).await?;
                if backlog.is_empty() {
                    return Ok(());
                }
                if Instant::now() >= hidden {
                    let waiting = backlog
                        .waiting
                        .saturating_add(backlog.in_flight)
                        .saturating_add(backlog.delayed);
                    return Err(DecommissionError::NotDrained { waiting });
                }
                continue;
            }
            let mut details = Vec::with_capacity(left.len());
            for message in &left {
                details.push(match letters {
                    Letters::Live => "the tenant is being decommissioned".to_owned(),
                    Letters::Dead => {
                        let letter = DeadLetter {
                            message_id: &message.message_id,
                            sent_at_ms: message.sent_at_ms.as_deref(),
                            body: &message.body,
                        };
                        let (account_id, generation) = (leaving.account_id, leaving.generation);
                        let path = self
                            .archives
                            .keep_dead_letter(account_id, generation, &letter)
                            .await?;
                        let digest = receipts::sha256_hex(message.body.as_bytes());
                        format!("a dead letter, kept as {path}; SHA-256 of what it says: {digest}")
                    }
                });
            }
            let signals: Vec<LeftSignal> = left
                .iter()
                .zip(details)
                .map(|(left, detail)| LeftSignal::read(&left.message_id, &left.body, detail, Uuid::now_v7()))
                .collect();
            let keys = Keys {
                actions: signals.iter().map(|signal| signal.action_id.clone()).collect(),
                ..Keys::default()
            };
            let refuse = |account: &Account, now| {
                Ok::<_, DecommissionError>((
                    refuse_left::refuse_left(account, leaving.account_id, &signals, now),
                    (),
                ))
            };
            self.store()
                .transact(leaving.signer, leaving.partition, &keys, None, refuse)
                .await?;
            for message in &left {
                self.teardown
                    .delete_message(queue_url, &message.receipt_handle)
                    .await?;
            }
        }
    }

    async fn close(
        &self,
        signer: &Signer,
        partition: &Partition,
        order: &DecommissionOrder,
        archived: &Archived,
    ) -> Result<(u64, String, Head, bool), CloseError> {
        let receipt_id = Uuid::now_v7();
        let letters = self
            .archives
            .dead_letters(&order.account_id, order.generation)
            .await;
        let (dead_letters, dead_letters_path) = letters.map_err(CloseError::Archive)?;
        let closing = Closing {
            account_id: &order.account_id,
            requested_at: order.requested_at,
            path: format!("s3://{}/{}", self.archives.bucket(), archived.key),
            receipts: archived.summary.receipts,
            size_bytes: archived.summary.size_bytes,
            sha256: &archived.summary.sha256,
            version: archived.version.clone(),
            dead_letters: (dead_letters, &dead_letters_path),
        };
        let close = |account: &Account, now| {
            decommission::close(account, &closing, receipt_id, now).map_err(CloseError::Refused)
        };
        let (committed, waiting) = self
            .store()
            .transact(signer, partition, &Keys::default(), None, close)
            .await?;
        let sealed = committed.sealed.into_iter().next();
        let (seq, line) = sealed.map(|s| (s.seq, s.line)).unwrap_or_default();
        Ok((seq, line, committed.account.head, waiting))
    }
}

/// A generation that goes.
struct Leaving<'a> {
    signer: &'a Signer,
    partition: &'a Partition,
    account_id: &'a AccountId,
    generation: u64,
}

/// What stands on a queue.
#[derive(Debug, Clone, Copy)]
enum Letters {
    /// Signals that nobody took.
    Live,
    /// Signals that nobody could settle.
    Dead,
}

impl DecommissionError {
    /// Whether the ledger is not the one that was signed for: a person must look, and until then nothing is deleted.
    pub(crate) fn is_fork(&self) -> bool {
        match self {
            Self::Log(error) => error.is_fork(),
            Self::Archive(error) => error.is_fork(),
            _ => false,
        }
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Form(_) => "malformed",
            Self::Secrets(_) => "signing_key",
            Self::Store(_) => "tables",
            Self::Queue(_) => "queue",
            Self::Archive(_) | Self::Log(_) if self.is_fork() => "ledger_forked",
            Self::Archive(_) => "archive",
            Self::Log(_) => "log",
            Self::NotDrained { .. } => "not_drained",
            Self::Ownerless { .. } => "ownerless",
            Self::Table(_) => "own_tables",
            Self::Moving => "ledger_moving",
            Self::State(_) => "state",
            Self::Illegal(_) => "illegal",
        }
    }
}
