//! A sweep: what [`domain::sweep`] says is done, beside the probes and in a bounded time. What fails is told, and the next
//! sweep finds it again: nothing that it does is remembered but in what it mends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws::clients::Sdk;
use aws::config::{self, ConfigError, Stack};
use aws::entitlements::DecommissionOrder;
use aws::functions::{Functions, InvokeError};
use aws::inventory::{Inventory, InventoryError, Listed};
use aws::pages::Pages;
use aws::queues::{DeadLetters, LeftMessage, Messages, QueueError};
use aws::registry::{Registry, RegistryError};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use aws::telemetry;
use domain::account::{AccountId, PlanType, SkuId};
use domain::action::{Action, IllegalTransition};
use domain::names::{self, LedgerId, Partition, printable};
use domain::operations::record_dead_letters::{DeadLetter, record_dead_letters};
use domain::operations::recount::recount;
use domain::operations::wake::{StuckAction, wake};
use domain::sweep::{self, Due, Expected, Missing, Orphan, Patience, Resource, Scope, Stuck};
use domain::tenant::{BUSY, Lifecycle, Tenant, UNSETTLED};
use domain::transaction::{Account, Keys, Plan};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::{error, warn};
use uuid::Uuid;

/// How long a sweep may take, so that it ends well before its function does.
const BUDGET: Duration = Duration::from_secs(25);
/// How long listing the tenants in one state may take.
const LOOK_BUDGET: Duration = Duration::from_secs(4);
/// How long what is due may take to be handed over.
const DUE_BUDGET: Duration = Duration::from_secs(5);
/// How long stuck actions may take.
const WAKE_BUDGET: Duration = Duration::from_secs(5);
/// How long dead letters may take: well below [`HIDDEN`].
const LETTERS_BUDGET: Duration = Duration::from_secs(5);
/// How long looking for what waits for a person may take.
const PEOPLE_BUDGET: Duration = Duration::from_secs(4);
/// How long looking behind ledgers' heads may take.
const LEDGERS_BUDGET: Duration = Duration::from_secs(5);
/// How long of that new looks are begun.
const LEDGERS_TIME: Duration = Duration::from_secs(3);
/// Ledgers behind whose heads one sweep looks, and how many of them at one time.
const LEDGERS_AT_ONCE: (usize, usize) = (1_000, 16);
/// How long a letter that is looked at is hidden from whoever else works on letters.
const HIDDEN: Duration = Duration::from_secs(30);
/// Dead-letter queues that one sweep asks for what they hold, and how many of them at one time.
const LETTER_QUEUES_AT_ONCE: (usize, usize) = (1_000, 16);
/// Tenants whose dead letters one sweep looks at.
const LETTER_TENANTS_AT_ONCE: usize = 50;
/// Looks at one tenant's letters, ten at a time.
const LETTER_LOOKS: u64 = 5;
/// Tenants that one sweep looks at.
const TENANTS: usize = 5_000;
/// Tenants that one sweep hands over to who goes on with them.
const DUE_AT_ONCE: usize = 50;
/// Tenants whose actions one sweep looks at.
const WOKEN_AT_ONCE: usize = 50;
/// Stuck actions of one tenant that one sweep takes up: a transaction has room for them, with a receipt and a mark each.
const ACTIONS_AT_ONCE: usize = 30;
/// Tenants that one sweep has repaired.
const REPAIRS_AT_ONCE: usize = 50;
/// Plans whose tenants' pins one sweep compares.
const PLANS_AT_ONCE: usize = 100;
/// Orphans that one sweep looks at.
const ORPHANS_AT_ONCE: usize = 50;
/// The operation of an escalated action's receipt.
const ESCALATED: &str = "action_failed";
/// Names and errors that a report holds.
const TOLD: usize = 20;

/// What the schedule asks for beside probes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SweepRequest {
    /// How far to go.
    #[serde(default, rename = "sweep")]
    scope: Scope,
    /// Seconds after which something counts as stuck, instead of the usual ones.
    #[serde(default)]
    stuck_after_seconds: Option<u32>,
    /// Seconds after which what is nobody's is taken away, instead of the usual ones.
    #[serde(default)]
    orphan_age_seconds: Option<u32>,
}

impl SweepRequest {
    /// Whether anything is to be swept at all.
    #[must_use]
    pub fn is_something(&self) -> bool {
        self.scope != Scope::None
    }
}

/// What a sweep found and did.
#[derive(Debug, Default, Serialize)]
pub struct SweepReport {
    /// Tenants that `entitlement` was asked to go on with.
    resumed: u64,
    /// Decommissionings ordered again.
    ordered: u64,
    /// Actions whose signal was put on the queue again.
    nudged: u64,
    /// Actions given up.
    escalated: u64,
    /// Dead letters put on record: their actions given up, or refused where a letter is no signal.
    dead_letters: u64,
    /// Actions that the gate sent to a person long ago, and nobody decided about.
    waiting: u64,
    /// Tenants whose counters were set right.
    recounted: u64,
    /// Plans whose tenants were pinned to another policy than the one in force, and are to follow.
    repinned: u64,
    /// What active tenants lacked, and are given again.
    missing: Vec<String>,
    /// Queues whose name is nobody's any more: what goes by it is taken away.
    orphans: Vec<String>,
    /// Ledgers that take no receipt: something stands behind their head.
    blocked: Vec<String>,
    /// What there was no room or time for; the next sweeps take it up.
    left: usize,
    errors: Vec<String>,
}

/// Why a part of a sweep failed.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error("writing a message: {0}")]
    Form(#[from] serde_json::Error),
    #[error("a look at a queue was broken off: {0}")]
    BrokenOff(#[from] JoinError),
    #[error("there was no more time for it")]
    Late,
}

/// Everything a sweep needs, made once per process.
pub struct Sweeper {
    store: Arc<Store>,
    secrets: Secrets,
    signing_key: String,
    functions: Functions,
    messages: Messages,
    dead_letters: DeadLetters,
    inventory: Inventory,
    entitlement: String,
    decommission_queue: String,
    registry: Registry,
    policy_upgrade: String,
}

impl Sweeper {
    /// Reads the environment and makes the clients.
    pub fn from_env(sdk: &Sdk, stack: &Stack) -> Result<Self, ConfigError> {
        let governor = config::required(config::GOVERNOR_FUNCTION_ARN)?;
        let prefix = config::queue_prefix()?;
        Ok(Self {
            store: Arc::new(Store::new(sdk, stack.clone())),
            secrets: Secrets::new(sdk),
            signing_key: stack.signing_key_secret.clone(),
            functions: Functions::new(sdk),
            messages: Messages::new(sdk),
            dead_letters: DeadLetters::new(sdk),
            inventory: Inventory::new(sdk, governor, &prefix),
            entitlement: config::required(config::ENTITLEMENT_FUNCTION)?,
            decommission_queue: config::required(config::DECOMMISSION_QUEUE_URL)?,
            registry: Registry::new(sdk.s3(), config::required(config::REGISTRY_BUCKET)?),
            policy_upgrade: config::required(config::POLICY_UPGRADE_FUNCTION)?,
        })
    }

    /// Sweeps as far as is asked for. Never fails: what went wrong stands in the report.
    pub async fn sweep(&self, asked: &SweepRequest, now: Timestamp) -> SweepReport {
        let mut sweep = Sweep {
            sweeper: self,
            scope: asked.scope.at(now),
            patience: Patience::with(asked.stuck_after_seconds, asked.orphan_age_seconds),
            now,
            deadline: Instant::now() + BUDGET,
            looked: 0,
            due: Vec::new(),
            suspects: BTreeSet::new(),
            letters: BTreeMap::new(),
            barred: Vec::new(),
            expected: Vec::new(),
            pins: BTreeMap::new(),
            swept: SweepReport::default(),
        };
        sweep.run().await;
        sweep.swept
    }
}

/// What somebody else is to do.
enum Handover {
    Resume(AccountId, Due),
    DecommissionOrder(DecommissionOrder),
}

/// One sweep.
struct Sweep<'a> {
    sweeper: &'a Sweeper,
    scope: Scope,
    patience: Patience,
    now: Timestamp,
    deadline: Instant,
    /// Tenants looked at.
    looked: usize,
    due: Vec<Handover>,
    /// Partitions of tenants that may have stuck actions.
    suspects: BTreeSet<Partition>,
    /// Dead-letter queues of active tenants, by partition.
    letters: BTreeMap<Partition, String>,
    /// Tenants that run nothing as their ledger is blocked.
    barred: Vec<Partition>,
    expected: Vec<Expected>,
    /// Hashes of the policies that active tenants are pinned to, by SKU and plan.
    pins: BTreeMap<(SkuId, PlanType), BTreeSet<String>>,
    swept: SweepReport,
}

impl Sweep<'_> {
    async fn run(&mut self) {
        for state in [UNSETTLED, BUSY] {
            let ended = within(self.deadline, LOOK_BUDGET, self.look(state)).await;
            self.note(state, ended);
        }
        let ended = within(self.deadline, DUE_BUDGET, self.hand_over()).await;
        self.note("what is due", ended);
        let barred = std::mem::take(&mut self.barred);
        let ended = within(self.deadline, LEDGERS_BUDGET, self.look_behind(barred)).await;
        self.note("blocked ledgers", ended);
        if self.scope == Scope::Everything {
            let state = Lifecycle::Active.name();
            let ended = within(self.deadline, LOOK_BUDGET, self.look(state)).await;
            self.note(state, ended);
            let ended = within(self.deadline, DUE_BUDGET, self.hand_over()).await;
            self.note("what expired", ended);
        }
        let ended = within(self.deadline, WAKE_BUDGET, self.wake()).await;
        self.note("stuck actions", ended);
        if self.scope == Scope::Everything {
            let ended = within(self.deadline, LETTERS_BUDGET, self.read_letters()).await;
            self.note("dead letters", ended);
            let ended = within(self.deadline, LOOK_BUDGET, self.compare_pins()).await;
            self.note("policies", ended);
            let ended = within(self.deadline, PEOPLE_BUDGET, self.remind()).await;
            self.note("actions that wait for a person", ended);
            let ended = within(self.deadline, LEDGERS_BUDGET, self.look_behind_heads()).await;
            self.note("ledgers", ended);
            let ended = within(self.deadline, BUDGET, self.take_stock()).await;
            self.note("resources", ended);
        }
    }

    fn note(&mut self, what: &str, ended: Result<(), SweepError>) {
        if let Err(e) = ended {
            self.failed(what, &e);
        }
    }

    fn failed(&mut self, what: &str, e: &SweepError) {
        telemetry::count("health", "sweep_failed", ("scope", scope_name(self.scope)));
        error!(what, error = %e, "a part of the sweep failed; the next one takes it up");
        self.tell(format!("{what}: {e}"));
    }

    fn tell(&mut self, text: String) {
        if self.swept.errors.len() < TOLD {
            self.swept.errors.push(printable(&text, 512));
        }
    }

    /// Reads the tenants that the index has in a state, and notes what is to be done about each.
    async fn look(&mut self, state: &str) -> Result<(), SweepError> {
        let (store, mut pages) = (&self.sweeper.store, Pages::default());
        while let Some(tenants) = pages
            .next(async |after| store.tenants_page(state, after).await)
            .await?
        {
            for tenant in tenants {
                if self.looked == TENANTS {
                    self.swept.left += 1;
                    self.tell(format!(
                        "{state}: more than {TENANTS} tenants, not all were looked at"
                    ));
                    return Ok(());
                }
                self.looked += 1;
                match tenant {
                    Ok(tenant) => self.judge(&tenant),
                    // One that nobody can read must not keep the others from being swept.
                    Err(e) => self.failed(state, &e.into()),
                }
            }
        }
        Ok(())
    }

    fn judge(&mut self, tenant: &Tenant) {
        match sweep::due(tenant, self.now, &self.patience) {
            Some(Due::Decommissioning) => self.due.push(Handover::DecommissionOrder(DecommissionOrder {
                account_id: tenant.account_id.clone(),
                generation: tenant.generation,
                requested_at: tenant.changed_at,
            })),
            Some(due @ (Due::Provisioning | Due::Waiting)) => {
                self.due.push(Handover::Resume(tenant.account_id.clone(), due));
            }
            None => {}
        }
        if sweep::may_have_stuck_actions(tenant, self.scope, self.now, &self.patience) {
            self.suspects.insert(Partition::of(&tenant.account_id));
        }
        if tenant.ledger_blocked.is_some() {
            self.barred.push(Partition::of(&tenant.account_id));
        }
        if self.scope == Scope::Everything {
            let expected = Expected::of(tenant, self.now, &self.patience);
            self.expected.extend(expected);
            // One that leaves has its letters kept, and put on record, by whoever decommissions it.
            if tenant.lifecycle == Lifecycle::Active {
                let queue_url = tenant.resources.dead_letter_queue_url.clone();
                self.letters.insert(Partition::of(&tenant.account_id), queue_url);
                for held in tenant.entitlements.values() {
                    let plan = (held.sku_id.clone(), held.plan_type.clone());
                    self.pins
                        .entry(plan)
                        .or_default()
                        .insert(held.policy.hash.clone());
                }
            }
        }
    }

    /// Has others go on with what is due.
    async fn hand_over(&mut self) -> Result<(), SweepError> {
        let due = std::mem::take(&mut self.due);
        let (due, left) = sweep::turn(due, DUE_AT_ONCE, Scope::Due.round(self.now));
        self.swept.left += left;
        for handed in due {
            match &handed {
                Handover::Resume(account_id, due) => match self.resume(account_id, false).await {
                    Ok(()) => {
                        self.swept.resumed += 1;
                        // An event whose time has come is no repair.
                        if *due == Due::Provisioning {
                            repaired("provisioning");
                        }
                    }
                    Err(e) => self.failed(account_id.as_str(), &e),
                },
                Handover::DecommissionOrder(order) => {
                    let body = serde_json::to_string(order).map_err(SweepError::from);
                    match self.order(body).await {
                        Ok(()) => {
                            self.swept.ordered += 1;
                            repaired("decommissioning");
                        }
                        Err(e) => self.failed(order.account_id.as_str(), &e),
                    }
                }
            }
        }
        Ok(())
    }

    async fn resume(&self, account_id: &AccountId, repair: bool) -> Result<(), SweepError> {
        let event = json!({ "resume": { "account_id": account_id, "repair": repair } });
        let Sweeper {
            functions,
            entitlement,
            ..
        } = self.sweeper;
        Ok(functions.invoke_later(entitlement, &event).await?)
    }

    async fn order(&self, body: Result<String, SweepError>) -> Result<(), SweepError> {
        let queue = &self.sweeper.decommission_queue;
        Ok(self.sweeper.messages.send(queue, body?).await?)
    }

    /// Looks at the actions of tenants that may have stuck ones.
    async fn wake(&mut self) -> Result<(), SweepError> {
        let suspects = std::mem::take(&mut self.suspects).into_iter().collect();
        let (suspects, left) = sweep::turn(suspects, WOKEN_AT_ONCE, self.scope.round(self.now));
        self.swept.left += left;
        for partition in suspects {
            let woken = Box::pin(self.wake_actions(&partition)).await;
            self.note(partition.as_str(), woken);
        }
        Ok(())
    }

    async fn wake_actions(&mut self, partition: &Partition) -> Result<(), SweepError> {
        let store = &self.sweeper.store;
        let account = store.load(partition, &Keys::default()).await?;
        let Some(tenant) = account.tenant.filter(|t| t.lifecycle == Lifecycle::Active) else {
            return Ok(());
        };
        let (mut unfinished, mut pages) = (Vec::new(), Pages::default());
        while let Some(actions) = pages
            .next(async |after| store.actions(partition, after).await)
            .await?
        {
            unfinished.extend(actions.into_iter().filter(|action| action.state.in_flight()));
        }
        if sweep::recounted(&tenant, &unfinished).is_some() {
            self.recount(partition, &tenant, &unfinished).await?;
        }
        let stuck = |action: Action| Some((sweep::stuck(&action, self.now, &self.patience)?, action));
        let mut due: Vec<(Stuck, Action)> = unfinished.into_iter().filter_map(stuck).collect();
        self.swept.left += due.len().saturating_sub(ACTIONS_AT_ONCE);
        due.truncate(ACTIONS_AT_ONCE);
        if due.is_empty() {
            return Ok(());
        }
        let mut settled = Vec::with_capacity(due.len());
        for (stuck, action) in due {
            if stuck == Stuck::Nudge
                && let Err(e) = self.nudge(&tenant, &action).await
            {
                self.failed(partition.as_str(), &e);
                continue;
            }
            settled.push(StuckAction {
                action,
                due: stuck,
                receipt_id: Uuid::now_v7(),
            });
        }
        self.note_stuck(partition, &settled).await
    }

    async fn nudge(&mut self, tenant: &Tenant, action: &Action) -> Result<(), SweepError> {
        let body = serde_json::to_string(&action.signal(&tenant.account_id))?;
        let queue = &tenant.resources.queue_url;
        self.sweeper.messages.send(queue, body).await?;
        self.swept.nudged += 1;
        repaired("nudged");
        let (account, action_id) = (tenant.account_id.as_str(), action.action_id.as_str());
        warn!(account, action_id, "signal put on the queue again");
        Ok(())
    }

    /// Sets counters right, unless the tenant has changed since it was read: what was counted is then something else.
    async fn recount(
        &mut self,
        partition: &Partition,
        read: &Tenant,
        unfinished: &[Action],
    ) -> Result<(), SweepError> {
        let signer = self.signer().await?;
        let recount = |account: &Account, _| Ok::<_, SweepError>(recount(account, read, unfinished));
        let store = &self.sweeper.store;
        let (_, done) = store
            .transact(&signer, partition, &Keys::default(), None, recount)
            .await?;
        if done {
            self.swept.recounted += 1;
            repaired("counters");
            warn!(
                %partition,
                in_flight = read.in_flight,
                unfinished = unfinished.len(),
                "counters were wrong"
            );
        }
        Ok(())
    }

    /// Notes which actions were nudged, and ends those that are given up. An action that somebody took up meanwhile is
    /// left to them.
    async fn note_stuck(&mut self, partition: &Partition, due: &[StuckAction]) -> Result<(), SweepError> {
        let signer = self.signer().await?;
        let keys = Keys {
            actions: due.iter().map(|stuck| stuck.action.action_id.clone()).collect(),
            ..Keys::default()
        };
        let wake = |account: &Account, now| Ok::<_, SweepError>((wake(account, due, now)?, ()));
        let store = &self.sweeper.store;
        let (committed, ()) = store.transact(&signer, partition, &keys, None, wake).await?;
        for sealed in &committed.sealed {
            self.swept.escalated += 1;
            repaired("escalated");
            telemetry::count("health", sealed.operation, ("stage", "sweep"));
            escalated("stuck");
            error!(%partition, receipt_id = %sealed.receipt_id, "an action was given up: a person has to look");
        }
        Ok(())
    }

    /// Has the actions of dead letters escalated, on record. The letters stay where they are: a person decides about them.
    async fn read_letters(&mut self) -> Result<(), SweepError> {
        let queues = std::mem::take(&mut self.letters).into_iter().collect();
        let (most, at_one_time) = LETTER_QUEUES_AT_ONCE;
        let (queues, left) = sweep::turn(queues, most, self.scope.round(self.now));
        self.swept.left += left;
        let (mut looking, mut found) = (JoinSet::new(), BTreeMap::new());
        for (partition, queue_url) in queues {
            if looking.len() >= at_one_time
                && let Some(looked) = looking.join_next().await
            {
                self.note_backlog(looked?, &mut found);
            }
            let letters = self.sweeper.dead_letters.clone();
            looking.spawn(async move {
                let waiting = letters.backlog(&queue_url).await.map(|backlog| backlog.waiting);
                (partition, queue_url, waiting)
            });
        }
        while let Some(looked) = looking.join_next().await {
            self.note_backlog(looked?, &mut found);
        }
        let found = found.into_iter().collect();
        let (found, left) = sweep::turn(found, LETTER_TENANTS_AT_ONCE, self.scope.round(self.now));
        self.swept.left += left;
        for (partition, (queue_url, waiting)) in found {
            let read = Box::pin(self.read_letters_of(&partition, &queue_url, waiting)).await;
            self.note(partition.as_str(), read);
        }
        Ok(())
    }

    /// Notes a dead-letter queue that holds something.
    fn note_backlog(
        &mut self,
        (partition, queue_url, waiting): (Partition, String, Result<u64, QueueError>),
        found: &mut BTreeMap<Partition, (String, u64)>,
    ) {
        match waiting {
            Ok(0) => {}
            Ok(waiting) => {
                found.insert(partition, (queue_url, waiting));
            }
            Err(e) => self.failed(partition.as_str(), &e.into()),
        }
    }

    async fn read_letters_of(
        &mut self,
        partition: &Partition,
        queue_url: &str,
        waiting: u64,
    ) -> Result<(), SweepError> {
        let (mut read, mut looks) = (0, 0);
        while read < waiting && looks < LETTER_LOOKS {
            let letters = self.sweeper.dead_letters.receive(queue_url, HIDDEN).await?;
            if letters.is_empty() {
                break;
            }
            read += letters.len() as u64;
            // Those that are on record already cost no write: others may stand behind them.
            let told = self.swept.dead_letters;
            let put = self.put_on_record(partition, queue_url, &letters).await;
            if self.swept.dead_letters > told || put.is_err() {
                looks += 1;
            }
            if let Err(e) = put {
                // One that can't be written must not keep the others off the record.
                warn!(%partition, error = %e, "dead letters one by one");
                for letter in &letters {
                    let alone = self.put_on_record(partition, queue_url, std::slice::from_ref(letter));
                    if let Err(e) = alone.await {
                        self.failed(partition.as_str(), &e);
                    }
                }
            }
        }
        self.swept.left += usize::try_from(waiting.saturating_sub(read)).unwrap_or(usize::MAX);
        Ok(())
    }

    async fn put_on_record(
        &mut self,
        partition: &Partition,
        queue_url: &str,
        letters: &[LeftMessage],
    ) -> Result<(), SweepError> {
        let account_id = partition.account();
        let dead: Vec<DeadLetter> = letters
            .iter()
            .map(|left| DeadLetter::read(&left.message_id, &left.body, account_id.as_ref(), Uuid::now_v7()))
            .collect();
        let keys = Keys {
            actions: dead.iter().map(|dead| dead.action_id.clone()).collect(),
            ..Keys::default()
        };
        let signer = self.signer().await?;
        let record = |account: &Account, now| {
            let plan = record_dead_letters(account, queue_url, &dead, now)?;
            Ok::<_, SweepError>((plan, ()))
        };
        let store = &self.sweeper.store;
        let (committed, ()) = store.transact(&signer, partition, &keys, None, record).await?;
        for sealed in &committed.sealed {
            self.swept.dead_letters += 1;
            telemetry::count("health", sealed.operation, ("stage", "dead_letters"));
            if sealed.operation == ESCALATED {
                escalated("dead_letters");
            }
            error!(%partition, receipt_id = %sealed.receipt_id, "a dead letter: a person has to look");
        }
        Ok(())
    }

    /// Counts what the gate sent to a person long ago: an alarm rings for as long as nobody decides.
    async fn remind(&mut self) -> Result<(), SweepError> {
        let (store, mut pages) = (&self.sweeper.store, Pages::default());
        let mut waiting = 0;
        while let Some(page) = pages.next(async |after| store.escalations(after).await).await? {
            let overdue =
                |(_, action): &&(Partition, Action)| sweep::is_overdue(action, self.now, &self.patience);
            for (partition, action) in page.iter().filter(overdue) {
                waiting += 1;
                telemetry::count("health", "routed_action_waits", ("stage", "sweep"));
                warn!(%partition, action_id = action.action_id.as_str(), "a person has to release or decline it");
            }
        }
        self.swept.waiting = waiting;
        Ok(())
    }

    /// Looks at ledgers for what keeps them from growing, however rarely they are written to.
    async fn look_behind_heads(&mut self) -> Result<(), SweepError> {
        let (mut ledgers, mut last) = (Vec::new(), None);
        loop {
            let page = self.sweeper.store.ledgers(last.as_ref()).await?;
            let Some(end) = page.last().cloned() else { break };
            ledgers.extend(page.iter().map(LedgerId::partition));
            last = Some(end);
        }
        let (ledgers, left) = sweep::turn(ledgers, LEDGERS_AT_ONCE.0, self.scope.round(self.now));
        self.swept.left += left;
        self.look_behind(ledgers).await
    }

    /// Looks as far as there is time: other ledgers come first in the next round.
    async fn look_behind(&mut self, ledgers: Vec<Partition>) -> Result<(), SweepError> {
        let until = self.deadline.min(Instant::now() + LEDGERS_TIME);
        let (mut looking, mut ledgers) = (JoinSet::new(), ledgers.into_iter());
        while let Some(partition) = ledgers.next() {
            if Instant::now() >= until {
                self.swept.left += 1 + ledgers.len();
                break;
            }
            if looking.len() >= LEDGERS_AT_ONCE.1
                && let Some(looked) = looking.join_next().await
            {
                self.note_behind(looked?).await;
            }
            let store = Arc::clone(&self.sweeper.store);
            looking.spawn(async move {
                let found = async {
                    let account = store.load(&partition, &Keys::default()).await?;
                    let found = store.behind_head_of(&account).await?;
                    Ok::<_, StoreError>((account, found))
                };
                let found = found.await;
                (partition, found)
            });
        }
        while let Some(looked) = looking.join_next().await {
            self.note_behind(looked?).await;
        }
        Ok(())
    }

    /// Bars a tenant whose ledger is blocked, and lets it go on once it isn't.
    async fn note_behind(
        &mut self,
        (partition, found): (Partition, Result<(Account, Option<u64>), StoreError>),
    ) {
        let (account, found) = match found {
            Ok(found) => found,
            Err(e) => return self.failed(partition.as_str(), &e.into()),
        };
        if let Some(seq) = found {
            telemetry::count("health", "ledger_blocked", ("stage", "sweep"));
            error!(%partition, seq, "something stands behind the ledger's head: a person has to look");
            let known = self.swept.blocked.iter().any(|known| known == partition.as_str());
            if !known && self.swept.blocked.len() < TOLD {
                self.swept.blocked.push(partition.to_string());
            }
        }
        if let Err(e) = Box::pin(self.bar(account, found)).await {
            self.failed(partition.as_str(), &e);
        }
    }

    async fn bar(&self, account: Account, blocked: Option<u64>) -> Result<(), SweepError> {
        let changes = |account: &Account| {
            account
                .tenant
                .as_ref()
                .and_then(|tenant| tenant.with_ledger(blocked))
        };
        if changes(&account).is_none() {
            return Ok(());
        }
        let signer = self.signer().await?;
        let bar = |account: &Account, _| Ok::<_, SweepError>((Plan::tenant(changes(account)), ()));
        let (partition, keys) = (account.partition.clone(), Keys::default());
        self.sweeper
            .store
            .transact(&signer, &partition, &keys, Some(account), bar)
            .await?;
        Ok(())
    }

    async fn signer(&self) -> Result<receipts::key::Signer, SecretsError> {
        self.sweeper.secrets.signer(&self.sweeper.signing_key).await
    }

    /// Has tenants follow the registry that are pinned to another policy than the one in force.
    async fn compare_pins(&mut self) -> Result<(), SweepError> {
        let pins = std::mem::take(&mut self.pins).into_iter().collect();
        let (pins, left) = sweep::turn(pins, PLANS_AT_ONCE, self.scope.round(self.now));
        self.swept.left += left;
        for ((sku_id, plan_type), hashes) in pins {
            // One that nobody can read must not keep the others from being compared.
            match self.compare_pin(&sku_id, &plan_type, &hashes).await {
                Ok(repinned) => self.swept.repinned += u64::from(repinned),
                Err(e) => self.failed(&format!("plan {plan_type} of SKU {sku_id}"), &e),
            }
        }
        Ok(())
    }

    /// Whether tenants of a plan were told to follow.
    async fn compare_pin(
        &self,
        sku_id: &SkuId,
        plan_type: &PlanType,
        hashes: &BTreeSet<String>,
    ) -> Result<bool, SweepError> {
        let sweeper = self.sweeper;
        let current = sweeper
            .registry
            .current(sku_id.as_str(), plan_type.as_str())
            .await?;
        let Some(current) = current.map(|current| current.entry.policy_hash) else {
            return Ok(false);
        };
        if hashes.iter().all(|hash| *hash == current) {
            return Ok(false);
        }
        warn!(
            sku = sku_id.as_str(),
            plan = plan_type.as_str(),
            "tenants are pinned to another policy than the one in force"
        );
        let event = json!({ "repin": { "sku_id": sku_id, "plan_type": plan_type } });
        sweeper
            .functions
            .invoke_later(&sweeper.policy_upgrade, &event)
            .await?;
        repaired("policy");
        Ok(true)
    }

    /// Holds the resources there are against those there should be.
    async fn take_stock(&mut self) -> Result<(), SweepError> {
        let listed = self.sweeper.inventory.list().await?;
        let findings = sweep::compare(&self.expected, &listed.found);
        let round = self.scope.round(self.now);
        let (missing, left) = sweep::turn(findings.missing, REPAIRS_AT_ONCE, round);
        self.swept.left += left;
        for missing in &missing {
            if let Err(e) = self.repair(missing).await {
                self.failed(missing.account_id.as_str(), &e);
            }
        }
        let (orphans, left) = sweep::turn(findings.orphans, ORPHANS_AT_ONCE, round);
        self.swept.left += left;
        for queue in &orphans {
            if let Err(e) = self.clear_away(queue, &listed).await {
                self.failed(queue, &e);
            }
        }
        Ok(())
    }

    async fn repair(&mut self, missing: &Missing) -> Result<(), SweepError> {
        let told = missing
            .resources
            .iter()
            .map(|resource| format!("{} {}", resource.name(), missing.queue));
        let room = TOLD.saturating_sub(self.swept.missing.len());
        self.swept.missing.extend(told.take(room));
        warn!(queue = missing.queue, resources = ?missing.resources, "a tenant lacks what it needs");
        self.resume(&missing.account_id, true).await?;
        // A mapping that lags behind its plans is no loss: normal work.
        if missing.resources != [Resource::MappingPace] {
            repaired("missing");
        }
        Ok(())
    }

    async fn clear_away(&mut self, queue: &str, listed: &Listed) -> Result<(), SweepError> {
        let store = &self.sweeper.store;
        let mut made_at = None;
        let mut there = listed.found.of(queue).len();
        for name in [queue.to_owned(), names::dead_letter_queue_name(queue)] {
            let Some(url) = listed.queue_urls.get(&name) else {
                continue;
            };
            match self.sweeper.inventory.made_at(url).await? {
                Some(at) => made_at = made_at.max(Some(at)),
                None => there -= 1,
            }
        }
        let owner = store.queue_owner(queue).await?;
        let tenant = match &owner {
            Some(partition) => store.load(partition, &Keys::default()).await?.tenant,
            None => None,
        };
        let verdict = sweep::orphan(queue, tenant.as_ref(), made_at, self.now, &self.patience);
        if there == 0 || verdict != Orphan::Nobodys {
            return Ok(());
        }
        if owner.is_none() {
            // Nothing says whose it was, nor that it was ours: a person has to look.
            telemetry::count("health", "orphan_without_owner", ("kind", "queue"));
            error!(queue, "named as a tenant's, and no tenant is known for it");
            self.tell(format!(
                "{queue}: named as a tenant's, and no tenant is known for it"
            ));
            return Ok(());
        }
        if self.swept.orphans.len() < TOLD {
            self.swept.orphans.push(queue.to_owned());
        }
        warn!(queue, "nobody's, to be taken away");
        self.order(Ok(json!({ "orphan": queue }).to_string())).await?;
        repaired("orphan");
        Ok(())
    }
}

/// Has a part of the sweep end in its time, and the sweep's.
async fn within(
    deadline: Instant,
    most: Duration,
    part: impl Future<Output = Result<(), SweepError>>,
) -> Result<(), SweepError> {
    let until = deadline.min(Instant::now() + most);
    // Whatever it waits for has happened or will not: each step stands for itself.
    timeout_at(until, Box::pin(part))
        .await
        .unwrap_or(Err(SweepError::Late))
}

/// Counts an action that a person has to look at.
fn escalated(found_as: &str) {
    telemetry::count("health", "action_escalated", ("stage", found_as));
}

fn repaired(kind: &str) {
    telemetry::count("health", "sweep_repaired", ("kind", kind));
}

fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::None => "none",
        Scope::Due => "due",
        Scope::Everything => "everything",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(event: &str, scope: Scope, orphan: i64) {
        let asked: SweepRequest = serde_json::from_str(event).unwrap();
        let patience = Patience::with(asked.stuck_after_seconds, asked.orphan_age_seconds);
        assert_eq!((asked.scope, patience.orphan), (scope, orphan), "{event}");
        assert_eq!(asked.is_something(), scope != Scope::None);
    }

    #[test]
    fn events_say_how_far_to_go() {
        check(
            include_str!("../../../events/health/probe.json"),
            Scope::None,
            600,
        );
        check(
            include_str!("../../../events/health/schedule.json"),
            Scope::Due,
            600,
        );
        check(
            include_str!("../../../events/health/sweep.json"),
            Scope::Everything,
            600,
        );
        check(
            r#"{"sweep":"everything","orphan_age_seconds":0}"#,
            Scope::Everything,
            0,
        );
        assert!(serde_json::from_str::<SweepRequest>(r#"{"sweep":"all"}"#).is_err());
    }

    /// What is deployed sends what the sample says.
    #[test]
    fn the_schedule_asks_for_what_the_sample_event_does() {
        let template = include_str!("../../../infra/template.yaml");
        let sample = include_str!("../../../events/health/schedule.json");
        let input = template
            .lines()
            .find_map(|line| line.trim().strip_prefix("Input: '{\"probes\""));
        let input = format!("{{\"probes\"{}", input.unwrap().trim_end_matches('\''));
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&input), read(sample));
    }
}
