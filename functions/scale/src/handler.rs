//! The way of a change: look at a tenant's queue, decide, commit limit and receipt together, then pace its mapping.
//!
//! The decision is taken again from the tenant as it is read for the commit, so that runs beside each other make one
//! change. The gate holds the new limit from the commit on; a mapping that could not be paced is paced by the next run,
//! or else by the sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::pages::Pages;
use aws::queues::{Feeds, QueueError};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use aws::{clients, telemetry};
use domain::account::AccountId;
use domain::names::{Partition, printable};
use domain::operations;
use domain::scale::{self, Backlog, Costs, Decision, Patience, Queue, Verdict, WaitsFor};
use domain::sweep::turn;
use domain::tenant::{BUSY, Lifecycle, Tenant, UNSETTLED};
use domain::transaction::{Account, Keys};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::receipt::{Concurrency, Payload, Scaling};
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::event::{Alarm, Event, EventError, Timing};

/// How long a run begins new looks: well below a minute, when the next one begins, and the function's timeout.
const BUDGET: Duration = Duration::from_secs(30);
/// How long looks that have begun may take longer.
const GRACE: Duration = Duration::from_secs(10);
/// Tenants that one run looks at, each with one call of SQS.
const TENANTS: usize = 2_000;
/// Tenants looked at side by side.
const AT_ONCE: usize = 32;
/// Tenants read at a time: what one BatchGetItem takes.
const READ_AT_ONCE: usize = 100;
/// Changes and errors that a report names.
const TOLD: usize = 50;

/// What a run found and did.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// Of a look at queues.
    Looked(Report),
    /// Of an operator's wish.
    ScaleOutcome(ScaleOutcome),
}

/// What a look at queues found and did.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Why nothing was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'static str>,
    /// Tenants whose queue was looked at.
    looked: usize,
    /// What was decided, and how often.
    decided: BTreeMap<&'static str, u64>,
    /// The first changes.
    changed: Vec<Changed>,
    /// Signals that wait, of all that was looked at, and what for.
    waiting: WaitingSignals,
    /// Alarms that asked for nothing, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
    /// Tenants that there was no room or time for; the next runs look at them.
    left: usize,
    errors: Vec<String>,
}

/// What waits, over all tenants that were looked at.
#[derive(Debug, Default, Serialize)]
struct WaitingSignals {
    /// Signals.
    signals: u64,
    /// The largest lag of one tenant.
    largest_lag: u64,
    /// About how old the oldest signal of the tenants counted below is, in seconds.
    oldest_age_seconds: u64,
    /// Tenants whose signals wait for a free place.
    tenants_for_a_place: u64,
    /// Tenants with free places, whose signals wait for one of their entitlement.
    tenants_for_an_entitlement: u64,
    /// Tenants whose signals nobody polls ([`Backlog::is_unpolled`]).
    tenants_for_a_poll: u64,
    /// The first of these.
    unpolled: Vec<AccountId>,
    places_in_use: u64,
    places: u64,
}

impl WaitingSignals {
    fn add(&mut self, account_id: &AccountId, backlog: &Backlog) {
        self.signals = self.signals.saturating_add(backlog.lag);
        self.largest_lag = self.largest_lag.max(backlog.lag);
        self.places_in_use = self.places_in_use.saturating_add(backlog.places_in_use);
        self.places = self.places.saturating_add(backlog.places);
        match backlog.waits_for {
            Some(WaitsFor::Place) => self.tenants_for_a_place += 1,
            Some(WaitsFor::Entitlement) => self.tenants_for_an_entitlement += 1,
            Some(WaitsFor::Poll) if backlog.is_unpolled() => {
                self.tenants_for_a_poll += 1;
                let (account, lag) = (account_id.as_str(), backlog.lag);
                warn!(
                    account,
                    lag,
                    places = backlog.places,
                    "signals wait though places are free: is the tenant's mapping enabled, has Lambda concurrency left?"
                );
                if self.unpolled.len() < TOLD {
                    self.unpolled.push(account_id.clone());
                }
            }
            // A few may just have come; after a week without any, they would pass for a week old.
            Some(WaitsFor::Poll) | None => return,
        }
        let age = backlog.oldest_age_seconds.unwrap_or_default();
        self.oldest_age_seconds = self.oldest_age_seconds.max(age);
    }

    /// Also when nothing waits, so that alarms have data and graphs a line.
    fn measure(&self) {
        telemetry::measure(
            "scale",
            &[
                ("signals_waiting", self.signals, "Count"),
                ("largest_lag", self.largest_lag, "Count"),
                ("oldest_signal_age", self.oldest_age_seconds, "Seconds"),
                ("places_in_use", self.places_in_use, "Count"),
                ("places", self.places, "Count"),
                ("tenants_waiting_for_a_place", self.tenants_for_a_place, "Count"),
                (
                    "tenants_waiting_for_an_entitlement",
                    self.tenants_for_an_entitlement,
                    "Count",
                ),
                ("tenants_waiting_for_a_poll", self.tenants_for_a_poll, "Count"),
            ],
        );
    }
}

/// A change of a tenant's limit, or that there can be none.
#[derive(Debug, Serialize)]
struct Changed {
    account_id: AccountId,
    verdict: Verdict,
    concurrency: Concurrency,
    /// From the look at the queue until the mapping was paced.
    applied_ms: u64,
}

/// What came of an operator's wish.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ScaleOutcome {
    /// The limit is as asked.
    Scaled {
        /// Before and after.
        concurrency: Concurrency,
        receipt: Value,
        /// Why the mapping is not paced yet.
        #[serde(skip_serializing_if = "Option::is_none")]
        not_paced: Option<String>,
    },
    /// It was so already.
    Unchanged {
        /// Actions at one time.
        concurrency: Concurrency,
    },
    /// The plans or the budget forbid it.
    Refused {
        /// What they say.
        reason: String,
        receipt: Value,
    },
    /// There is no such tenant.
    NotFound,
    /// The tenant runs nothing.
    NotActive {
        /// Where it stands.
        lifecycle: Lifecycle,
    },
}

/// Why a tenant could not be scaled. The next run takes it up.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// The event is none.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The mode is not known.
    #[error("the control object cannot be read")]
    Control(#[from] ControlError),
    #[error("the signing key is not available")]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue did not answer.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// In degraded mode the tables are not touched.
    #[error("the mode is degraded; nothing is scaled until storage has recovered")]
    Degraded,
    /// A receipt is no JSON.
    #[error("the receipt cannot be read back")]
    Receipt(#[from] serde_json::Error),
    /// It was broken off.
    #[error("a look at a queue was broken off")]
    BrokenOff,
}

/// What a process remembers between runs, so that what matters most is looked at first. Where it is lost, tenants have
/// their turn, and the sweep paces mappings.
#[derive(Default)]
struct Attention {
    /// Partitions of tenants above their base, or on trial.
    scaled: BTreeSet<Partition>,
    /// Partitions of tenants whose mapping could not be paced.
    unpaced: BTreeSet<Partition>,
    /// Partitions of tenants whose signals nobody polls: until that is over each run tells of them, or their alarm would stop.
    unpolled: BTreeSet<Partition>,
}

/// Everything `scale` needs, made once per process.
pub struct Scaler {
    store: Store,
    control: ControlStore,
    secrets: Secrets,
    signing_key: String,
    feeds: Feeds,
    costs: Costs,
    remembered: Mutex<Attention>,
}

/// A decision that was written.
struct WrittenDecision {
    verdict: Verdict,
    scaling: Option<Scaling>,
    line: Option<String>,
    not_paced: Option<QueueError>,
}

impl Scaler {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable that is missing or makes no sense.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let costs = config::concurrency_costs()?;
        let sdk = clients::load().await;
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            control: ControlStore::new(clients::s3(&sdk), control),
            secrets: Secrets::new(&sdk),
            signing_key: stack.signing_key_secret,
            feeds: Feeds::new(&sdk),
            costs,
            remembered: Mutex::default(),
        })
    }

    /// Does what is asked. Of a look at all queues, what went wrong for one tenant stands in the report.
    ///
    /// # Errors
    /// [`ScaleError`] when nothing at all, or not the one thing that was asked for, could be done.
    pub async fn handle(self: &Arc<Self>, event: Event) -> Result<Answer, ScaleError> {
        let degraded = self.control.read().await?.degraded();
        match event {
            Event::Set { .. } if degraded => Err(ScaleError::Degraded),
            Event::Set {
                account_id,
                concurrency,
            } => self.set(&account_id, concurrency).await.map(Answer::ScaleOutcome),
            Event::Poll(_) | Event::Alarms(..) if degraded => Ok(Answer::Looked(Report {
                skipped: Some("degraded"),
                ..Report::default()
            })),
            Event::Poll(asked) => self.poll(asked).await.map(Answer::Looked),
            Event::Alarms(alarms, asked) => self.alarms(&alarms, asked).await.map(Answer::Looked),
        }
    }

    async fn signer(&self) -> Result<Signer, SecretsError> {
        self.secrets.signer(&self.signing_key).await
    }

    /// Looks at all tenants' queues, as far as time and calls go: what is busy or scaled first, the others in turns.
    async fn poll(self: &Arc<Self>, asked: Timing) -> Result<Report, ScaleError> {
        let until = Instant::now() + BUDGET;
        let signer = Arc::new(self.signer().await?);
        let patience = Patience::with(asked.trial_seconds, asked.idle_seconds);
        let mut report = Report::default();
        let partitions = self.candidates(&mut report, until, Timestamp::now()).await;
        let mut running = JoinSet::new();
        for some in partitions.chunks(READ_AT_ONCE) {
            if Instant::now() >= until {
                report.left += some.len();
                continue;
            }
            let tenants = match self.store.tenants(some, "tenants to scale").await {
                Ok(tenants) => tenants,
                Err(e) => {
                    report.left += some.len();
                    report.fail("tenants", &e.into());
                    continue;
                }
            };
            for tenant in tenants {
                let tenant = match tenant {
                    Ok(tenant) if scale::runs(&tenant) => tenant,
                    Ok(tenant) => {
                        self.forget(&tenant);
                        continue;
                    }
                    // One that nobody can read must not keep the others from being looked at.
                    Err(e) => {
                        report.fail("tenant", &e.into());
                        continue;
                    }
                };
                if running.len() >= AT_ONCE {
                    // When time is up none is begun any more, whatever those that run wait for.
                    if let Ok(joined) = timeout_at(until, running.join_next()).await {
                        report.settle(joined);
                    }
                }
                if Instant::now() >= until {
                    report.left += 1;
                    continue;
                }
                report.looked += 1;
                let (scaler, signer) = (Arc::clone(self), Arc::clone(&signer));
                running.spawn(async move {
                    let looked = Box::pin(scaler.look(&signer, &tenant, &patience)).await;
                    (tenant.account_id, looked)
                });
            }
        }
        let ended = timeout_at(until + GRACE, async {
            while let Some(joined) = running.join_next().await {
                report.settle(Some(joined));
            }
        });
        if ended.await.is_err() {
            // Each is a commit and a call that can be given up at any point; the next run finds what was left.
            report.left += running.len();
            report.fail("time", &ScaleError::BrokenOff);
        }
        report.waiting.measure();
        info!(looked = report.looked, left = report.left, decided = ?report.decided, "queues looked at");
        Ok(report)
    }

    /// Partitions of the tenants to look at, those that matter most first.
    async fn candidates(&self, report: &mut Report, until: Instant, now: Timestamp) -> Vec<Partition> {
        let round = (now.as_second().div_euclid(60)).unsigned_abs();
        let mut first: BTreeSet<Partition> = {
            let remembered = self.remembered();
            let sets = [&remembered.scaled, &remembered.unpaced, &remembered.unpolled];
            sets.into_iter().flatten().cloned().collect()
        };
        for state in [BUSY, UNSETTLED] {
            first.extend(self.listed(state, report, until).await);
        }
        let mut others = self.listed(Lifecycle::Active.name(), report, until).await;
        others.retain(|partition| !first.contains(partition));
        let (mut chosen, left) = turn(first.into_iter().collect(), TENANTS, round);
        let room = TENANTS.saturating_sub(chosen.len());
        let (others, left_of_others) = turn(others, room, round);
        chosen.extend(others);
        report.left += left + left_of_others;
        chosen
    }

    async fn listed(&self, state: &str, report: &mut Report, until: Instant) -> Vec<Partition> {
        let mut listed = Vec::new();
        let mut pages = Pages::default();
        loop {
            match pages
                .next(async |after| self.store.tenants_in(state, after).await)
                .await
            {
                Ok(Some(partitions)) => listed.extend(partitions),
                Ok(None) => return listed,
                Err(e) => report.fail(state, &e.into()),
            }
            if Instant::now() >= until {
                return listed;
            }
        }
    }

    /// Looks at the queues that alarms are about.
    async fn alarms(&self, alarms: &[Alarm], asked: Timing) -> Result<Report, ScaleError> {
        let signer = self.signer().await?;
        let patience = Patience::with(asked.trial_seconds, asked.idle_seconds);
        let mut report = Report::default();
        for alarm in alarms {
            let queue = printable(&alarm.queue, 128);
            if !alarm.on {
                report.ignored.push(format!("the alarm about {queue} is not on"));
                continue;
            }
            let tenant = match self.store.queue_owner(&alarm.queue).await? {
                Some(partition) => self.store.load(&partition, &Keys::default()).await?.tenant,
                None => None,
            };
            let fed = |tenant: &Tenant| tenant.resources.queue == alarm.queue && scale::runs(tenant);
            let Some(tenant) = tenant.filter(fed) else {
                report
                    .ignored
                    .push(format!("{queue} is no queue of a tenant that runs"));
                continue;
            };
            report.looked += 1;
            let (backlog, made) = Box::pin(self.look(&signer, &tenant, &patience)).await;
            if let Some(backlog) = backlog {
                report.waiting.add(&tenant.account_id, &backlog);
            }
            report.made(&tenant.account_id, made?);
        }
        Ok(report)
    }

    /// Looks at one tenant's queue, and does what is decided. Gives what it saw, whatever became of that.
    async fn look(
        &self,
        signer: &Signer,
        tenant: &Tenant,
        patience: &Patience,
    ) -> (
        Option<Backlog>,
        Result<Option<(WrittenDecision, u64)>, ScaleError>,
    ) {
        let started = Instant::now();
        let seen = match self.feeds.backlog(&tenant.resources.queue_url).await {
            Ok(seen) => seen,
            Err(e) => return (None, Err(e.into())),
        };
        let queue = Queue {
            visible: seen.waiting,
            hidden: seen.in_flight,
            delayed: seen.delayed,
        };
        let now = Timestamp::now();
        let backlog = scale::backlog(tenant, queue, now);
        {
            let partition = Partition::of(&tenant.account_id);
            let mut remembered = self.remembered();
            match backlog.is_unpolled() {
                true => remembered.unpolled.insert(partition),
                false => remembered.unpolled.remove(&partition),
            };
        }
        let made = self.follow(signer, tenant, queue, patience, (started, now)).await;
        (Some(backlog), made)
    }

    async fn follow(
        &self,
        signer: &Signer,
        tenant: &Tenant,
        queue: Queue,
        patience: &Patience,
        (started, now): (Instant, Timestamp),
    ) -> Result<Option<(WrittenDecision, u64)>, ScaleError> {
        let decide = |tenant: &Tenant| scale::decide(tenant, queue, &self.costs, patience, now);
        if decide(tenant).is_none() {
            self.pace_again(tenant).await?;
            return Ok(None);
        }
        let of_same = |other: &Tenant| match other.generation == tenant.generation {
            true => decide(other),
            false => None,
        };
        let partition = Partition::of(&tenant.account_id);
        let made = self.change(signer, &partition, None, started, of_same).await?;
        Ok(made.map(|made| (made, milliseconds(started))))
    }

    /// Makes what an operator asks for a tenant's base.
    async fn set(&self, account_id: &AccountId, wanted: u64) -> Result<ScaleOutcome, ScaleError> {
        let started = Instant::now();
        let signer = self.signer().await?;
        let partition = Partition::of(account_id);
        let account = self.store.load(&partition, &Keys::default()).await?;
        let (lifecycle, limit) = match &account.tenant {
            Some(tenant) => (tenant.lifecycle, tenant.in_flight_action_limit()),
            None => return Ok(ScaleOutcome::NotFound),
        };
        if lifecycle != Lifecycle::Active {
            return Ok(ScaleOutcome::NotActive { lifecycle });
        }
        let set = |tenant: &Tenant| match tenant.lifecycle {
            Lifecycle::Active => scale::set(tenant, wanted, &self.costs),
            _ => None,
        };
        let made = self
            .change(&signer, &partition, Some(account), started, set)
            .await?;
        let Some(WrittenDecision {
            verdict,
            scaling: Some(scaling),
            line: Some(line),
            not_paced,
        }) = made
        else {
            let concurrency = Concurrency {
                previous: limit,
                new: limit,
            };
            return Ok(ScaleOutcome::Unchanged { concurrency });
        };
        let receipt = serde_json::from_str(&line)?;
        Ok(match verdict {
            Verdict::Exceeded => ScaleOutcome::Refused {
                reason: scaling.quota_check,
                receipt,
            },
            _ => ScaleOutcome::Scaled {
                concurrency: scaling.concurrency,
                receipt,
                not_paced: not_paced.map(|e| e.to_string()),
            },
        })
    }

    /// Commits what `decide` says of the tenant as it is read, with its receipt; then paces the mapping.
    async fn change(
        &self,
        signer: &Signer,
        partition: &Partition,
        account: Option<Account>,
        started: Instant,
        decide: impl Fn(&Tenant) -> Option<Decision>,
    ) -> Result<Option<WrittenDecision>, ScaleError> {
        let receipt_id = Uuid::now_v7();
        let scale = |account: &Account, now| {
            let duration_ms = milliseconds(started);
            Ok::<_, StoreError>(operations::scale::scale(
                account,
                &decide,
                receipt_id,
                duration_ms,
                now,
            ))
        };
        let (committed, decision) = self
            .store
            .transact(signer, partition, &Keys::default(), account, scale)
            .await?;
        let (Some(decision), Some(tenant)) = (decision, &committed.account.tenant) else {
            return Ok(None);
        };
        let (verdict, scaling) = (decision.verdict, decision.payload.as_ref().and_then(scaling_of));
        for sealed in &committed.sealed {
            telemetry::count("scale", sealed.operation, ("stage", "ledger"));
        }
        // What stays as it was needs no new pace; that a raise stays is the occasion to make sure of it.
        let not_paced = match verdict {
            Verdict::Noted | Verdict::Exceeded => None,
            _ => self.pace(tenant).await.err(),
        };
        self.remember(tenant);
        Ok(Some(WrittenDecision {
            verdict,
            scaling,
            line: committed.sealed.into_iter().next().map(|sealed| sealed.line),
            not_paced,
        }))
    }

    async fn pace(&self, tenant: &Tenant) -> Result<(), QueueError> {
        let partition = Partition::of(&tenant.account_id);
        let paced = self.feeds.pace(&tenant.resources.mapping_id, tenant.pace()).await;
        match &paced {
            Ok(()) => self.remembered().unpaced.remove(&partition),
            Err(e) => {
                warn!(account = %partition, error = %e, "the mapping keeps its concurrency for now");
                self.remembered().unpaced.insert(partition)
            }
        };
        paced
    }

    /// Paces a mapping that an earlier run could not pace.
    async fn pace_again(&self, tenant: &Tenant) -> Result<(), QueueError> {
        self.remember(tenant);
        let partition = Partition::of(&tenant.account_id);
        let unpaced = self.remembered().unpaced.contains(&partition);
        match unpaced {
            true => self.pace(tenant).await,
            false => Ok(()),
        }
    }

    fn remember(&self, tenant: &Tenant) {
        let partition = Partition::of(&tenant.account_id);
        let mut remembered = self.remembered();
        match scale::is_scaled(tenant) {
            true => remembered.scaled.insert(partition),
            false => remembered.scaled.remove(&partition),
        };
    }

    fn forget(&self, tenant: &Tenant) {
        let partition = Partition::of(&tenant.account_id);
        let mut remembered = self.remembered();
        remembered.scaled.remove(&partition);
        remembered.unpaced.remove(&partition);
        remembered.unpolled.remove(&partition);
    }

    fn remembered(&self) -> MutexGuard<'_, Attention> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How one look ended.
type Looked = (
    AccountId,
    (
        Option<Backlog>,
        Result<Option<(WrittenDecision, u64)>, ScaleError>,
    ),
);

impl Report {
    fn settle(&mut self, joined: Option<Result<Looked, tokio::task::JoinError>>) {
        match joined {
            None => {}
            Some(Ok((account_id, (backlog, made)))) => {
                if let Some(backlog) = backlog {
                    self.waiting.add(&account_id, &backlog);
                }
                match made {
                    Ok(made) => self.made(&account_id, made),
                    Err(e) => self.fail(account_id.as_str(), &e),
                }
            }
            Some(Err(e)) => {
                error!(error = %e, "a look at a queue was broken off");
                self.fail("a look", &ScaleError::BrokenOff);
            }
        }
    }

    fn made(&mut self, account_id: &AccountId, made: Option<(WrittenDecision, u64)>) {
        let Some((made, applied_ms)) = made else {
            return;
        };
        let decided = self.decided.entry(made.verdict.name()).or_default();
        *decided += 1;
        if let Some(e) = made.not_paced {
            self.fail(account_id.as_str(), &e.into());
        }
        let Some(scaling) = made.scaling else {
            return;
        };
        let (account, verdict) = (account_id.as_str(), made.verdict.name());
        let Concurrency { previous, new } = scaling.concurrency;
        info!(
            account,
            verdict,
            previous,
            new,
            check = scaling.quota_check,
            applied_ms,
            "scaled"
        );
        if self.changed.len() < TOLD {
            self.changed.push(Changed {
                account_id: account_id.clone(),
                verdict: made.verdict,
                concurrency: scaling.concurrency,
                applied_ms,
            });
        }
    }

    fn fail(&mut self, what: &str, e: &ScaleError) {
        telemetry::count("scale", "scale_failed", ("stage", "look"));
        error!(what, error = %e, "not scaled; the next run takes it up");
        if self.errors.len() < TOLD {
            self.errors.push(printable(&format!("{what}: {e}"), 512));
        }
    }
}

fn scaling_of(payload: &Payload) -> Option<Scaling> {
    match payload {
        Payload::GovernorScaled(scaling)
        | Payload::QuotaExceeded(scaling)
        | Payload::ScaleReverted(scaling) => Some(scaling.clone()),
        _ => None,
    }
}

fn milliseconds(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_told_by_what_it_waits_for() {
        let mut waiting = WaitingSignals::default();
        let mut add = |account: &str, lag, waits_for, oldest_age_seconds| {
            let backlog = Backlog {
                lag,
                waits_for,
                oldest_age_seconds,
                places_in_use: 4,
                places: 10,
            };
            waiting.add(&AccountId::parse(account).unwrap(), &backlog);
        };
        add("idle", 0, None, None);
        add("full", 25, Some(WaitsFor::Place), Some(40));
        add("full-once", 1, Some(WaitsFor::Place), Some(3));
        add("narrow", 7, Some(WaitsFor::Entitlement), Some(5));
        add("unpolled", 11, Some(WaitsFor::Poll), Some(90));
        add("never-polled", 12, Some(WaitsFor::Poll), None);
        // It has just come, a week after the last claim.
        add("about-to-be-polled", 10, Some(WaitsFor::Poll), Some(604_800));
        assert_eq!(
            serde_json::to_value(&waiting).unwrap(),
            serde_json::json!({
                "signals": 66, "largest_lag": 25, "oldest_age_seconds": 90, "tenants_for_a_place": 2,
                "tenants_for_an_entitlement": 1, "tenants_for_a_poll": 2,
                "unpolled": ["unpolled", "never-polled"], "places_in_use": 28, "places": 70,
            })
        );
    }

    #[test]
    fn a_report_names_so_many_and_counts_all() {
        let mut waiting = WaitingSignals::default();
        let backlog = Backlog {
            lag: 11,
            waits_for: Some(WaitsFor::Poll),
            oldest_age_seconds: None,
            places_in_use: 0,
            places: 10,
        };
        for n in 0..=TOLD {
            waiting.add(&AccountId::parse(format!("c-{n}")).unwrap(), &backlog);
        }
        assert_eq!((waiting.tenants_for_a_poll, waiting.unpolled.len()), (51, TOLD));
    }
}
