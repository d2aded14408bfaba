//! How many actions of a tenant may run at one time, and when that changes. The first row that fits counts.
//!
//! | # | when | what | receipt |
//! |---|---|---|---|
//! | 1 | the tenant is not active, or all it holds is suspended | nothing | – |
//! | 2 | a raise is on trial, less than a minute old | nothing | – |
//! | 3 | the trial is over, and more signals wait than when it began | back to the limit before, no raise for 10 minutes | `scale_reverted` |
//! | 4 | the trial is over otherwise | the raise stays; the rows below go on | – |
//! | 5 | more than 10 signals wait, and a raise was taken back less than 10 minutes ago | nothing | – |
//! | 5b | more than 10 wait for a poll of their queue: the tenant has had free places for a minute | nothing, as more places would not help | – |
//! | 6 | more than 10 wait for a place, and plans and budget allow more | twice as many, as far as both go; a trial begins | `governor_scaled` |
//! | 7 | more than 10 wait for a place, and that this limit can't be raised is on record | nothing | – |
//! | 8 | more than 10 wait for a place, and the plans allow no more | put on record | `quota_exceeded` |
//! | 9 | more than 10 wait for a place, and the budget affords no more | put on record | `quota_exceeded` |
//! | 10 | nothing waited or ran for 5 minutes, and the limit is above its base | back to the base | `governor_scaled` |
//! | 11 | nothing waited, and no more than half ran, for half an hour, and the limit is above its base | half the limit, or the base | `governor_scaled` |
//! | 12 | either has just begun, or was interrupted, or nothing waits any more after row 8 or 9, or plans keep a raise from counting | noted | – |
//! | 13 | else | nothing | – |
//!
//! A plan that shrinks takes effect by itself: [`Tenant::in_flight_action_limit`] is capped wherever it is read. A raise that
//! it makes void is forgotten, so that none comes back unasked with a larger plan. Costs are counted
//! from [`BASE_LIMIT`], which is free, so that no base that an operator sets moves the budget.

pub mod limit;

use std::fmt;

use jiff::Timestamp;
use receipts::receipt::{Concurrency, Payload, Scaling, UsdDelta};
use serde::Serialize;

use self::limit::{BASE_LIMIT, Idle, Scale, Trial};
use crate::entitlement::Standing;
use crate::tenant::{Lifecycle, Tenant};

/// More signals than these that wait for a place ask for a raise.
pub const LAG: u64 = 10;
/// Seconds for which a tenant still counts as full: a look once a minute would else see a place that is free between an
/// outcome and the next claim.
const FULL_SECONDS: i64 = 60;
/// Seconds without a raise after one was taken back.
const REST_SECONDS: i64 = 600;

/// How much longer half the places have to be free than all of them, for fewer to do.
const QUIET_IDLES: i64 = 6;

/// What a queue holds, as SQS counts it, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queue {
    /// Messages that can be received.
    pub visible: u64,
    /// Messages that were received, and are neither deleted nor back.
    pub hidden: u64,
    /// Messages that are delayed.
    pub delayed: u64,
}

impl Queue {
    /// Signals that wait: hidden messages are those of actions in flight, and others that wait to be shown again.
    #[must_use]
    pub fn lag(&self, in_flight: u64) -> u64 {
        let put_aside = self.hidden.saturating_sub(in_flight);
        self.visible
            .saturating_add(self.delayed)
            .saturating_add(put_aside)
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What waiting signals wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// A place: all are taken.
    Place,
    /// A place of their entitlement: all of those are taken, others of the tenant's are free.
    Entitlement,
    /// A poll of their queue, though places are free: its mapping is off or slow, or Lambda has no concurrency left.
    Poll,
}

/// A tenant's backlog, as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// Signals that wait.
    pub lag: u64,
    /// What for; nothing when none waits.
    pub waits_for: Option<WaitsFor>,
    /// About how old the oldest of them is, in seconds: as old as the oldest that was claimed last, as queues hand out old
    /// signals first. While they wait for a place the last claim is recent and this is close. While they wait for a poll it
    /// is the most they can be: they may have come long after the last claim. Unknown when none waits, or none was claimed
    /// yet.
    pub oldest_age_seconds: Option<u64>,
    pub places_in_use: u64,
    /// Places there are.
    pub places: u64,
}

impl Backlog {
    /// Whether more signals wait for a poll than are on their way from one action to the next in a tenant at work.
    #[must_use]
    pub fn is_unpolled(&self) -> bool {
        self.waits_for == Some(WaitsFor::Poll) && self.lag > LAG.max(self.places)
    }
}

/// What a tenant's queue and counters say of its backlog.
#[must_use]
pub fn backlog(tenant: &Tenant, queue: Queue, now: Timestamp) -> Backlog {
    let lag = queue.lag(tenant.in_flight);
    let lately = |full_at: Timestamp| seconds(full_at, now) < FULL_SECONDS;
    // Places that are held by claims which are long over wait for a poll themselves.
    let forsaken = tenant.lease_until.is_some_and(|until| !lately(until));
    let full = tenant.is_full() && !forsaken || tenant.full_at.is_some_and(lately);
    let mut held = tenant.entitlements.values();
    let waits_for = match full {
        true => WaitsFor::Place,
        false if held.any(|held| held.concurrent_left() == 0 || held.full_at.is_some_and(lately)) => {
            WaitsFor::Entitlement
        }
        false => WaitsFor::Poll,
    };
    let age = |sent_at: Timestamp| seconds(sent_at, now).max(0).unsigned_abs();
    Backlog {
        lag,
        waits_for: (lag > 0).then_some(waits_for),
        oldest_age_seconds: tenant
            .last_claim
            .filter(|_| lag > 0)
            .map(|last| age(last.sent_at)),
        places_in_use: tenant.in_flight,
        places: tenant.in_flight_action_limit(),
    }
}

/// An amount that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an amount in US dollars such as 1.0950: digits, at most four of them behind the point, under 100 million"
)]
pub struct AmountError;

/// An amount in US dollars, exact to 1/10,000, not negative, under a hundred million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usd(u64);

impl Usd {
    /// Parts of a dollar.
    const PARTS: u64 = 10_000;
    const DIGITS: usize = 4;
    const MOST: u64 = 100_000_000 * Self::PARTS;

    /// Reads an amount such as `1.0950`.
    ///
    /// # Errors
    /// [`AmountError`] when it is none.
    pub fn parse(text: &str) -> Result<Self, AmountError> {
        let (dollars, parts) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(dollars) || !digits(parts) || parts.len() > Self::DIGITS {
            return Err(AmountError);
        }
        let padded = format!("{parts:0<4}");
        let (dollars, parts) = (dollars.parse::<u64>().ok(), padded.parse::<u64>().ok());
        let amount = dollars.and_then(|dollars| dollars.checked_mul(Self::PARTS)?.checked_add(parts?));
        amount
            .filter(|amount| *amount < Self::MOST)
            .map(Self)
            .ok_or(AmountError)
    }
}

impl fmt::Display for Usd {
    /// With two digits behind the point, or four where two do not say it all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, parts) = (self.0 / Self::PARTS, self.0 % Self::PARTS);
        match parts % 100 {
            0 => write!(f, "{dollars}.{:02}", parts / 100),
            _ => write!(f, "{dollars}.{parts:04}"),
        }
    }
}

/// What concurrency costs, and may cost, each tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// One action at a time more, for a month.
    pub per_action: Usd,
    /// All that is above [`BASE_LIMIT`], for a month.
    pub budget: Usd,
}

impl Costs {
    /// Actions at one time that the budget affords.
    #[must_use]
    pub fn affordable(&self) -> u64 {
        let above = self.budget.0.checked_div(self.per_action.0);
        above.map_or(u64::MAX, |above| BASE_LIMIT.saturating_add(above))
    }

    /// What a change of the limit costs a month.
    #[must_use]
    pub fn of_change(&self, previous: u64, new: u64) -> UsdDelta {
        let change = (i128::from(new) - i128::from(previous)) * i128::from(self.per_action.0);
        let most = i128::from(Usd::MOST - 1);
        let parts = i64::try_from(change.clamp(-most, most)).unwrap_or_default();
        UsdDelta::from_ten_thousandths(parts).unwrap_or_default()
    }
}

/// How long things take to be believed, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A raise, before it is judged.
    pub trial: i64,
    /// A time without anything to do, before the raise is taken back.
    pub idle: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { trial: 60, idle: 300 }
    }
}

impl Patience {
    /// The usual patience, but for what is given.
    #[must_use]
    pub fn with(trial: Option<u32>, idle: Option<u32>) -> Self {
        let usual = Self::default();
        Self {
            trial: trial.map_or(usual.trial, i64::from),
            idle: idle.map_or(usual.idle, i64::from),
        }
    }
}

/// What becomes of a tenant's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It stays; something was noted for the next time.
    Noted,
    /// It stays: the raise did no harm.
    Confirmed,
    /// Raised, on trial.
    Raised,
    /// It stays, though signals wait or somebody asked for more.
    Exceeded,
    /// Back to where it was.
    Reverted,
    /// Back to its base.
    Lowered,
    /// As an operator asked.
    Set,
}

impl Verdict {
    /// The name used in metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Noted => "noted",
            Self::Confirmed => "confirmed",
            Self::Raised => "raised",
            Self::Exceeded => "exceeded",
            Self::Reverted => "reverted",
            Self::Lowered => "lowered",
            Self::Set => "set",
        }
    }
}

/// A decision that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What becomes of the limit.
    pub verdict: Verdict,
    /// The tenant's scale afterwards.
    pub scale: Scale,
    /// The receipt, where there is one.
    pub payload: Option<Payload>,
}

/// Whether a tenant's signals run at all.
#[must_use]
pub fn runs(tenant: &Tenant) -> bool {
    let standing = |held: &crate::entitlement::Entitlement| held.standing == Standing::Active;
    tenant.lifecycle == Lifecycle::Active && tenant.entitlements.values().any(standing)
}

/// Whether a tenant is to be looked at soon again: it runs more at one time than its base, or is on trial.
#[must_use]
pub fn is_scaled(tenant: &Tenant) -> bool {
    tenant.scale.limit.is_some() || tenant.scale.trial.is_some()
}

/// What is to be done about a tenant's limit, given what its queue holds. `None` when nothing is.
#[must_use]
pub fn decide(
    tenant: &Tenant,
    queue: Queue,
    costs: &Costs,
    patience: &Patience,
    now: Timestamp,
) -> Option<Decision> {
    if !runs(tenant) {
        return None;
    }
    let limit = tenant.in_flight_action_limit();
    let Backlog { lag, waits_for, .. } = backlog(tenant, queue, now);
    let mut scale = tenant.scale.clone();
    let mut verdict = Verdict::Noted;
    if let Some(trial) = scale.trial.take() {
        if seconds(trial.at, now) < patience.trial {
            return None;
        }
        if lag > trial.lag && limit > trial.from {
            return Some(revert(scale, limit, lag, &trial, costs, now));
        }
        verdict = Verdict::Confirmed;
    }
    let base = scale.base().max(1).min(tenant.concurrent_actions());
    if limit <= base {
        // A raise that the plans keep from counting must not come back with larger ones.
        scale.limit = None;
    }
    if scale.exceeded.is_some_and(|told| lag == 0 || told != limit) {
        scale.exceeded = None;
    }
    let resting = scale.rest_until.is_some_and(|until| now < until);
    if lag > LAG && waits_for == Some(WaitsFor::Place) && !resting {
        match room(tenant, costs) {
            Ok((new, check)) => return Some(raise(scale, limit, new, lag, check, costs, now)),
            Err(check) if scale.exceeded.is_none() => return Some(exceed(scale, limit, lag, &check, costs)),
            Err(_) => {}
        }
    }
    scale.idle = match queue.is_empty() && tenant.in_flight == 0 && limit > base {
        true => Some(idle(tenant, &scale, now)),
        false => None,
    };
    let quiet = lag == 0 && tenant.in_flight.saturating_mul(2) <= limit && limit > base;
    scale.quiet_since = quiet.then(|| scale.quiet_since.unwrap_or(now));
    let lower = |scale: Scale, to: u64, check: String| {
        Some(Decision {
            verdict: Verdict::Lowered,
            payload: Some(Payload::GovernorScaled(scaling(costs, limit, to, check))),
            scale: match to == base {
                true => Scale {
                    limit: None,
                    idle: None,
                    quiet_since: None,
                    ..scale
                },
                false => scale.with_limit(to),
            },
        })
    };
    match (&scale.idle, scale.quiet_since) {
        (Some(idle), _) if seconds(idle.since, now) >= patience.idle => {
            let check = format!("nothing waits or runs since {}", idle.since);
            lower(scale, base, check)
        }
        (_, Some(since)) if seconds(since, now) >= patience.idle.saturating_mul(QUIET_IDLES).max(1) => {
            let check = format!("nothing waits and half the places are free since {since}");
            lower(scale, (limit / 2).max(base), check)
        }
        _ => (scale != tenant.scale).then_some(Decision {
            verdict,
            scale,
            payload: None,
        }),
    }
}

/// What an operator's wish does to a tenant's limit: it becomes the base, unless plans or budget forbid it. `None` when it
/// is so already.
#[must_use]
pub fn set(tenant: &Tenant, wanted: u64, costs: &Costs) -> Option<Decision> {
    let (limit, quota) = (tenant.in_flight_action_limit(), tenant.concurrent_actions());
    let refused = |check: String| {
        Some(Decision {
            verdict: Verdict::Exceeded,
            scale: tenant.scale.clone(),
            payload: Some(Payload::QuotaExceeded(scaling(costs, limit, limit, check))),
        })
    };
    if wanted > quota {
        return refused(format!(
            "{wanted} at one time are asked for, the plans allow {quota}"
        ));
    }
    if wanted > costs.affordable() {
        return refused(format!("{wanted} at one time are asked for, {}", afforded(costs)));
    }
    let scale = Scale {
        floor: Some(wanted),
        exceeded: tenant.scale.exceeded.filter(|told| *told == wanted),
        ..Scale::default()
    };
    let same = tenant.scale.floor == scale.floor && !is_scaled(tenant);
    (!same).then(|| Decision {
        verdict: Verdict::Set,
        scale,
        payload: Some(Payload::GovernorScaled(scaling(
            costs,
            limit,
            wanted,
            within(wanted, quota),
        ))),
    })
}

fn revert(scale: Scale, limit: u64, lag: u64, trial: &Trial, costs: &Costs, now: Timestamp) -> Decision {
    let check = format!("{lag} signals wait, {} did before the raise", trial.lag);
    let rest_until = now.checked_add(jiff::SignedDuration::from_secs(REST_SECONDS));
    Decision {
        verdict: Verdict::Reverted,
        payload: Some(Payload::ScaleReverted(scaling(costs, limit, trial.from, check))),
        scale: Scale {
            rest_until: rest_until.ok(),
            ..scale.with_limit(trial.from)
        },
    }
}

/// Twice the limit, as far as plans and budget go, and what the receipt says of it; else what forbids any more.
fn room(tenant: &Tenant, costs: &Costs) -> Result<(u64, String), String> {
    let (limit, quota) = (tenant.in_flight_action_limit(), tenant.concurrent_actions());
    let doubled = limit.saturating_mul(2).min(quota);
    let new = doubled.min(costs.affordable());
    if new > limit {
        let check = within(new, quota);
        return Ok(match new < doubled {
            true => (new, format!("{check}, {}", afforded(costs))),
            false => (new, check),
        });
    }
    Err(match limit >= quota {
        true => format!("the plans allow {quota} at one time"),
        false => afforded(costs),
    })
}

fn raise(
    scale: Scale,
    limit: u64,
    new: u64,
    lag: u64,
    check: String,
    costs: &Costs,
    now: Timestamp,
) -> Decision {
    let trial = Trial {
        from: limit,
        lag,
        at: now,
    };
    Decision {
        verdict: Verdict::Raised,
        payload: Some(Payload::GovernorScaled(scaling(costs, limit, new, check))),
        scale: Scale {
            trial: Some(trial),
            rest_until: None,
            ..scale.with_limit(new)
        },
    }
}

fn exceed(scale: Scale, limit: u64, lag: u64, check: &str, costs: &Costs) -> Decision {
    let check = format!("{lag} signals wait, {check}");
    Decision {
        verdict: Verdict::Exceeded,
        payload: Some(Payload::QuotaExceeded(scaling(costs, limit, limit, check))),
        scale: Scale {
            exceeded: Some(limit),
            idle: None,
            quiet_since: None,
            ..scale
        },
    }
}

/// Since when nothing is to do: as it was seen before, unless an action ended meanwhile.
fn idle(tenant: &Tenant, scale: &Scale, now: Timestamp) -> Idle {
    let ended = tenant.actions_completed.saturating_add(tenant.actions_failed);
    let seen = scale.idle.as_ref().filter(|seen| seen.ended == ended);
    seen.cloned().unwrap_or(Idle { since: now, ended })
}

fn scaling(costs: &Costs, previous: u64, new: u64, quota_check: String) -> Scaling {
    Scaling {
        concurrency: Concurrency { previous, new },
        quota_check,
        cost_delta_usd: costs.of_change(previous, new),
    }
}

fn within(new: u64, quota: u64) -> String {
    format!("within quota: {new} of {quota}")
}

fn afforded(costs: &Costs) -> String {
    format!("{} USD a month afford {}", costs.budget, costs.affordable())
}

fn seconds(then: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(then).as_secs()
}

#[cfg(test)]
mod tests;
