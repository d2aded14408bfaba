//! A probe's way: write and read back, change the control object, book what the change made due. Sweeps go beside.
//!
//! The schedule's finest grain is a minute, so one invocation spaces several probes. Everything a probe leaves to do is
//! in the control object, so a crash is finished by the next probe.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use aws::clients::S3;
use aws::config::{self, ConfigError, Stack};
use aws::control::{ControlError, ControlStore};
use aws::log::{self, LogError};
use aws::pages::Pages;
use aws::secrets::{Secrets, SecretsError};
use aws::spool::{Spool, SpoolError};
use aws::store::{Store, StoreError};
use aws::{clients, telemetry};
use domain::control::{Control, Probe, Recovery};
use domain::names::{self, Partition, printable};
use domain::operations::append_once::append_once;
use domain::operations::settle_spool::{self, partition, settle_spool};
use domain::transaction::{Account, Keys};
use jiff::Timestamp;
use receipts::key::{KeyRing, Signer};
use receipts::parse_spool_line;
use receipts::receipt::{Draft, Payload};
use receipts::verify::LineError;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::sweep::{SweepReport, SweepRequest, Sweeper};

/// How long a probe may take before it counts as failed.
const PROBE_BUDGET: Duration = Duration::from_secs(5);
/// Receipts appended in one transaction: each takes two of a transaction's hundred items, actions a third.
const GROUP: usize = 30;
/// Spooled receipts taken up by one probe, so that a long spool never delays the next one.
const DRAINED_PER_PROBE: usize = 300;
/// Spooled receipts looked at by one probe, those included that do not verify and stay.
const LOOKED_PER_PROBE: usize = 2_000;

/// What the schedule asks for.
#[derive(Debug, Clone, Deserialize)]
pub struct Round {
    /// Probes to make, 1 to 6.
    #[serde(default = "Round::one")]
    probes: u32,
    /// Seconds between them.
    #[serde(default = "Round::ten")]
    interval_seconds: u64,
    /// What to sweep meanwhile.
    #[serde(flatten)]
    sweep: SweepRequest,
}

impl Round {
    fn one() -> u32 {
        1
    }

    fn ten() -> u64 {
        10
    }
}

/// What a round of probes found.
#[derive(Debug, Serialize)]
pub struct Report {
    probes: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<SweepReport>,
}

/// What one probe found and did.
#[derive(Debug, Serialize)]
struct Finding {
    good: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consecutive_failures: Option<u64>,
    duration_ms: u64,
    appended: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Finding {
    /// Whether storage works and the system is not degraded.
    fn is_sound(&self) -> bool {
        self.good && self.mode == Some("normal")
    }
}

/// How keys of the spool end behind the receipt id that hold a refusal, by the governor or at the front door.
const REFUSALS: [&str; 2] = ["-action_refused.json", "-signal_refused.json"];

/// Everything `health` needs, made once per process.
pub struct Health {
    store: Store,
    control: ControlStore,
    spool: Spool,
    secrets: Secrets,
    stack: Stack,
    s3: S3,
    audit_bucket: String,
    sweeper: Sweeper,
}

/// Why a probe could not be booked. The next one goes on.
#[derive(Debug, thiserror::Error)]
enum BookError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("key trail")]
    Trail(#[from] LogError),
}

impl Health {
    /// Reads the environment and makes the clients.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let audit = config::required(config::AUDIT_BUCKET)?;
        let sdk = clients::load().await;
        let s3 = sdk.s3();
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            control: ControlStore::new(s3.clone(), control),
            spool: Spool::new(s3.clone(), audit.clone()),
            s3,
            audit_bucket: audit,
            secrets: Secrets::new(&sdk),
            sweeper: Sweeper::from_env(&sdk, &stack)?,
            stack,
        })
    }

    /// Makes a round of probes, and sweeps beside all but the first. Never fails: a probe that could not be booked, or a part
    /// of the sweep that failed, says so in the report.
    pub async fn handle(&self, round: Round) -> Report {
        let mut ticks = interval(Duration::from_secs(round.interval_seconds.clamp(1, 60)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Counting tenants walks an index: once a round is enough for a number that only describes.
        let mut active_tenants = None;
        ticks.tick().await;
        let mut probes = vec![self.probe(&mut active_tenants, true).await];
        // While storage fails a sweep would find it failing everywhere.
        let sound = probes.iter().all(Finding::is_sound);
        let rest = async {
            for _ in 1..round.probes.clamp(1, 6) {
                ticks.tick().await;
                probes.push(self.probe(&mut active_tenants, false).await);
            }
        };
        let sweep = async {
            match sound && round.sweep.is_something() {
                true => Some(self.sweeper.sweep(&round.sweep, Timestamp::now()).await),
                false => None,
            }
        };
        let ((), sweep) = tokio::join!(Box::pin(rest), Box::pin(sweep));
        Report { probes, sweep }
    }

    async fn probe(&self, active_tenants: &mut Option<u64>, sweep: bool) -> Finding {
        let started = tokio::time::Instant::now();
        let probe = self.look(active_tenants).await;
        let now = Timestamp::now();
        if let Probe::Failed { reason, error_code } = &probe {
            telemetry::count("health", "probe_failed", ("error_code", error_code));
            warn!(reason, "storage probe failed");
        }
        let booked = self.book(&probe, now, sweep).await;
        let (mode, failures, appended, failed) = match booked {
            Ok((control, appended)) => {
                let mode = if control.degraded() { "degraded" } else { "normal" };
                (Some(mode), Some(control.consecutive_failures), appended, None)
            }
            Err(e) => {
                telemetry::count("health", "booking_failed", ("probe", "booked"));
                error!(error = %e, "probe could not be booked; the next one goes on");
                (None, None, 0, Some(e.to_string()))
            }
        };
        Finding {
            good: matches!(probe, Probe::Good { .. }),
            mode,
            consecutive_failures: failures,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            appended,
            error: failed,
        }
    }

    async fn look(&self, active_tenants: &mut Option<u64>) -> Probe {
        let looked = timeout(PROBE_BUDGET, async {
            self.store.probe(Uuid::now_v7()).await?;
            match *active_tenants {
                Some(count) => Ok(count),
                None => self.store.count_active().await,
            }
        });
        match looked.await {
            Ok(Ok(count)) => {
                *active_tenants = Some(count);
                Probe::Good {
                    active_tenants: count,
                }
            }
            Ok(Err(e)) => Probe::Failed {
                reason: printable(&e.to_string(), 512),
                error_code: "STORAGE_UNAVAILABLE".to_owned(),
            },
            Err(_) => Probe::Failed {
                reason: format!("no answer from storage within {} s", PROBE_BUDGET.as_secs()),
                error_code: "STORAGE_TIMEOUT".to_owned(),
            },
        }
    }

    /// Changes the mode, then books what is due: the receipt of the switch, the spool, the receipts of recoveries.
    async fn book(&self, probe: &Probe, now: Timestamp, sweep: bool) -> Result<(Control, u64), BookError> {
        let fresh_id = Uuid::now_v7();
        let changed = self
            .control
            .change(|control| control.after_probe(probe, now, fresh_id))
            .await?;
        let mut control = changed.after;
        if control.degraded() != changed.before.degraded() {
            let mode = if control.degraded() { "degraded" } else { "normal" };
            telemetry::count("health", "mode_changed", ("mode", mode));
            warn!(mode, "mode changed");
        }
        if let Some((receipt_id, occurred_at, payload)) = control.announcement_due() {
            let signer = self.signer().await?;
            self.spool
                .keep(&system_draft(receipt_id, occurred_at, payload), &signer)
                .await?;
            control = self.control.change(Control::announced).await?.after;
        }
        let mut appended = 0;
        if control.degraded() || matches!(probe, Probe::Failed { .. }) {
            return Ok((control, appended));
        }
        let Some(recovery) = control.recoveries.first().cloned() else {
            // Nothing recovered, but a receipt may have come into the spool late, or from an operator: look now and then.
            if sweep {
                appended += self.drain(&self.signer().await?).await?.0;
            }
            return Ok((control, appended));
        };
        let signer = self.signer().await?;
        let recovery = self.counted(&recovery).await?;
        let (drained, left) = self.drain(&signer).await?;
        appended += drained;
        if !left {
            appended += self.clear(&signer, &recovery).await?;
            control = self
                .control
                .change(|control| control.booked(&recovery))
                .await?
                .after;
        }
        Ok((control, appended))
    }

    async fn signer(&self) -> Result<Signer, SecretsError> {
        self.secrets.signer(&self.stack.signing_key_secret).await
    }

    /// Counts the refusals in the spool before any is taken out, once for each recovery. One that was repeated waits under
    /// several keys, and is one.
    async fn counted(&self, recovery: &Recovery) -> Result<Recovery, BookError> {
        if recovery.actions_refused.is_some() {
            return Ok(recovery.clone());
        }
        // 16 bytes for each, however long the keys are.
        let mut ids = HashSet::new();
        let mut pages = Pages::default();
        let page = async |after| {
            let keys = self.spool.list(after).await?;
            let next = keys.last().cloned();
            Ok::<_, SpoolError>((keys, next))
        };
        while let Some(keys) = pages.next(&page).await? {
            ids.extend(keys.iter().filter_map(|key| refusal_of(key)));
        }
        let refused = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        let control = self
            .control
            .change(|control| control.counted(recovery, refused))
            .await?
            .after;
        let counted = control
            .recoveries
            .into_iter()
            .find(|r| r.receipt_id == recovery.receipt_id);
        Ok(counted.unwrap_or_else(|| recovery.clone()))
    }

    /// Appends spooled receipts to their ledgers, oldest first, and says whether more wait.
    async fn drain(&self, signer: &Signer) -> Result<(u64, bool), BookError> {
        let mut keys: VecDeque<String> = self.spool.list(None).await?.into();
        if keys.is_empty() {
            return Ok((0, false));
        }
        let mut ring = KeyRing::from(signer.public_key());
        let mut followed = false;
        let (mut appended, mut taken, mut looked, mut left) = (0u64, 0usize, 0usize, false);
        // Ledgers that take no receipt, as when a tenant's own table is gone: theirs stay in the spool, and hold up nobody.
        let mut broken = BTreeSet::new();
        while !keys.is_empty() {
            if taken >= DRAINED_PER_PROBE || looked >= LOOKED_PER_PROBE {
                left = true;
                break;
            }
            let mut by_ledger: BTreeMap<Partition, Vec<(String, Draft)>> = BTreeMap::new();
            while taken < DRAINED_PER_PROBE
                && looked < LOOKED_PER_PROBE
                && let Some(key) = keys.pop_front()
            {
                looked += 1;
                let line = self.spool.read(&key).await?;
                let mut parsed = parse_spool_line(&line, &ring);
                if !followed && matches!(parsed, Err(LineError::UnknownKey { .. })) {
                    // Perhaps the signing key was rotated since, or is kept here from before.
                    followed = true;
                    ring = log::key_ring(&self.s3, &self.audit_bucket, signer).await?;
                    parsed = parse_spool_line(&line, &ring);
                }
                if keys.is_empty() {
                    keys = self.spool.list(Some(key.clone())).await?.into();
                }
                match parsed {
                    Ok(draft) if broken.contains(&partition(&draft)) => {}
                    Ok(draft) => {
                        taken += 1;
                        by_ledger.entry(partition(&draft)).or_default().push((key, draft));
                    }
                    Err(e) => {
                        // It stays where it is, signed by nobody we trust, for a person to look at. What comes behind it
                        // goes on.
                        telemetry::count("health", "spool_unreadable", ("kind", "signature"));
                        error!(key, error = %e, "spooled receipt does not verify");
                    }
                }
            }
            for (partition, drafts) in by_ledger {
                match self.append_all(signer, &partition, &drafts).await {
                    Ok(count) => appended += count,
                    Err(e) => {
                        telemetry::count("health", "spool_unreadable", ("kind", "ledger"));
                        error!(account = %partition, error = %e, "spooled receipts could not be appended");
                        taken = taken.saturating_sub(drafts.len());
                        broken.insert(partition);
                    }
                }
            }
        }
        info!(appended, left, broken = broken.len(), "spool drained");
        Ok((appended, left))
    }

    async fn append_all(
        &self,
        signer: &Signer,
        partition: &Partition,
        drafts: &[(String, Draft)],
    ) -> Result<u64, BookError> {
        let mut appended = 0;
        for group in drafts.chunks(GROUP) {
            appended += self.append(signer, partition, group).await?;
        }
        Ok(appended)
    }

    async fn append(
        &self,
        signer: &Signer,
        partition: &Partition,
        group: &[(String, Draft)],
    ) -> Result<u64, BookError> {
        let drafts: Vec<Draft> = group.iter().map(|(_, draft)| draft.clone()).collect();
        let keys = settle_spool::keys(&drafts);
        let settle = |account: &Account, _| Ok::<_, BookError>(settle_spool(account, &drafts));
        let (committed, dropped) = self
            .store
            .transact(signer, partition, &keys, None, settle)
            .await?;
        if dropped > 0 {
            warn!(
                account = %partition,
                dropped, "refusals at the door of a tenant that is not active are on no ledger"
            );
        }
        for (key, _) in group {
            self.spool.remove(key).await?;
        }
        Ok(u64::try_from(committed.sealed.len()).unwrap_or(u64::MAX))
    }

    /// Appends the `degraded_mode_cleared` receipt, once.
    async fn clear(&self, signer: &Signer, recovery: &Recovery) -> Result<u64, BookError> {
        let taken = recovery
            .cleared_at
            .duration_since(recovery.degraded_since)
            .as_millis()
            .max(0);
        let taken = u64::try_from(taken).unwrap_or(0);
        let draft = system_draft(recovery.receipt_id, recovery.cleared_at, recovery.receipt()).lasting(taken);
        let keys = Keys {
            once: [recovery.receipt_id].into(),
            ..Keys::default()
        };
        let append = |account: &Account, _| Ok::<_, BookError>((append_once(account, &draft), ()));
        let (committed, ()) = self
            .store
            .transact(signer, &Partition::system(), &keys, None, append)
            .await?;
        Ok(u64::try_from(committed.sealed.len()).unwrap_or(u64::MAX))
    }
}

/// The receipt id in a key of the spool, where it holds a refusal.
fn refusal_of(key: &str) -> Option<Uuid> {
    let key = REFUSALS.iter().find_map(|end| key.strip_suffix(end))?;
    let (_, id) = key.strip_prefix(names::SPOOL_PREFIX)?.split_once('-')?;
    Uuid::try_parse(id).ok()
}

fn system_draft(receipt_id: Uuid, occurred_at: Timestamp, payload: Payload) -> Draft {
    Draft::new(receipt_id, names::SYSTEM_ACCOUNT, payload, occurred_at)
}

#[cfg(test)]
mod tests {
    use domain::gate::RefusalCode;

    use super::*;

    fn refused() -> Payload {
        Payload::ActionRefused {
            action_id: "a".to_owned(),
            template: "t".to_owned(),
            code: RefusalCode::Unavailable.name().to_owned(),
            detail: None,
            rules: Vec::new(),
        }
    }

    fn at_the_door() -> Payload {
        Payload::SignalRefused {
            action_id: "a".to_owned(),
            template: "t".to_owned(),
            code: RefusalCode::Unavailable.name().to_owned(),
            detail: None,
            rules: Vec::new(),
        }
    }

    #[test]
    fn a_refusal_that_waits_under_several_keys_is_one() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(u128::MAX));
        let mut keys = Vec::new();
        for (id, millis) in [(one, 0), (two, 5), (one, 7), (two, 1_800_000_000_000)] {
            for payload in [refused(), at_the_door()] {
                keys.push(names::spool_key(at(millis), id, payload.operation()));
            }
        }
        let ids: HashSet<Uuid> = keys.iter().filter_map(|key| refusal_of(key)).collect();
        assert_eq!(ids, HashSet::from([one, two]));
        for key in [
            names::spool_key(at(0), one, "action_complete"),
            names::spool_key(at(0), one, "degraded_mode"),
            "_spool/1-x-signal_refused.json".to_owned(),
            "_spool/-signal_refused.json".to_owned(),
            "_log/1-00000000-0000-0000-0000-000000000001-signal_refused.json".to_owned(),
        ] {
            assert_eq!(refusal_of(&key), None, "{key}");
        }
    }
}
