//! The way of a change: look at a tenant's queue, decide, commit limit and receipt together, then pace its mapping.
//!
//! The decision is taken again from the tenant as it is read for the commit, so that runs beside each other make one
//! change. The gate holds the new limit from the commit on; a mapping that could not be paced is paced by the next run,
//! or else by the sweep.

use crate::report::{Answer, Report, ScaleError, WrittenDecision};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws::config::{self, ConfigError, Stack};
use aws::control::ControlStore;
use aws::pages::Pages;
use aws::queues::{Feeds, QueueError};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use aws::{clients, telemetry};
use domain::account::AccountId;
use domain::names::{Partition, printable};
use domain::operations;
use domain::operations::scale::ScaleOutcome;
use domain::scale::{self, Backlog, Costs, Decision, Patience, Queue, Verdict};
use domain::sweep::turn;
use domain::tenant::{BUSY, Lifecycle, Tenant, UNSETTLED};
use domain::transaction::{Account, Keys};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::receipt::{Concurrency, Payload, Scaling};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use crate::event::{Alarm, Event, Timing};

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

impl Scaler {
    /// Reads the environment and makes the clients.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let costs = config::concurrency_costs()?;
        let sdk = clients::load().await;
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            control: ControlStore::new(sdk.s3(), control),
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
            } => Box::pin(self.set(&account_id, concurrency))
                .await
                .map(Answer::ScaleOutcome),
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
    use domain::scale::WaitsFor;

    use crate::report::{TOLD, WaitingSignals};

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
