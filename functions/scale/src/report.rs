//! What a run of `scale` tells.

use std::collections::BTreeMap;

use aws::control::ControlError;
use aws::queues::QueueError;
use aws::secrets::SecretsError;
use aws::store::StoreError;
use aws::telemetry;
use domain::account::AccountId;
use domain::names::printable;
use domain::operations::scale::ScaleOutcome;
use domain::scale::{Backlog, Verdict, WaitsFor};
use receipts::receipt::{Concurrency, Scaling};
use serde::Serialize;
use tracing::{error, info, warn};

use crate::event::EventError;

/// Changes and errors that a report names.
pub(crate) const TOLD: usize = 50;

/// How one look ended.
pub(crate) type Looked = (
    AccountId,
    (
        Option<Backlog>,
        Result<Option<(WrittenDecision, u64)>, ScaleError>,
    ),
);

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
pub(crate) struct Report {
    /// Why nothing was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<&'static str>,
    /// Tenants whose queue was looked at.
    pub(crate) looked: usize,
    /// What was decided, and how often.
    pub(crate) decided: BTreeMap<&'static str, u64>,
    /// The first changes.
    pub(crate) changed: Vec<Changed>,
    /// Signals that wait, of all that was looked at, and what for.
    pub(crate) waiting: WaitingSignals,
    /// Alarms that asked for nothing, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignored: Vec<String>,
    /// Tenants that there was no room or time for; the next runs look at them.
    pub(crate) left: usize,
    pub(crate) errors: Vec<String>,
}

/// What waits, over all tenants that were looked at.
#[derive(Debug, Default, Serialize)]
pub(crate) struct WaitingSignals {
    pub(crate) signals: u64,
    /// The largest lag of one tenant.
    pub(crate) largest_lag: u64,
    /// About how old the oldest signal of the tenants counted below is, in seconds.
    pub(crate) oldest_age_seconds: u64,
    /// Tenants whose signals wait for a free place.
    pub(crate) tenants_for_a_place: u64,
    /// Tenants with free places, whose signals wait for one of their entitlement.
    pub(crate) tenants_for_an_entitlement: u64,
    /// Tenants whose signals nobody polls ([`Backlog::is_unpolled`]).
    pub(crate) tenants_for_a_poll: u64,
    /// The first of these.
    pub(crate) unpolled: Vec<AccountId>,
    pub(crate) places_in_use: u64,
    pub(crate) places: u64,
}

impl WaitingSignals {
    pub(crate) fn add(&mut self, account_id: &AccountId, backlog: &Backlog) {
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
    pub(crate) fn measure(&self) {
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
pub(crate) struct Changed {
    pub(crate) account_id: AccountId,
    pub(crate) verdict: Verdict,
    pub(crate) concurrency: Concurrency,
    /// From the look at the queue until the mapping was paced.
    pub(crate) applied_ms: u64,
}

/// Why a tenant could not be scaled. The next run takes it up.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    #[error(transparent)]
    Event(#[from] EventError),
    /// The mode is not known.
    #[error("the control object cannot be read")]
    Control(#[from] ControlError),
    #[error("the signing key is not available")]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// A decision that was written.
pub(crate) struct WrittenDecision {
    pub(crate) verdict: Verdict,
    pub(crate) scaling: Option<Scaling>,
    pub(crate) line: Option<String>,
    pub(crate) not_paced: Option<QueueError>,
}

impl Report {
    pub(crate) fn settle(&mut self, joined: Option<Result<Looked, tokio::task::JoinError>>) {
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

    pub(crate) fn made(&mut self, account_id: &AccountId, made: Option<(WrittenDecision, u64)>) {
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

    pub(crate) fn fail(&mut self, what: &str, e: &ScaleError) {
        telemetry::count("scale", "scale_failed", ("stage", "look"));
        error!(what, error = %e, "not scaled; the next run takes it up");
        if self.errors.len() < TOLD {
            self.errors.push(printable(&format!("{what}: {e}"), 512));
        }
    }
}
