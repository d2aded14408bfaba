//! Which actions and dead letters the sweep takes up.

use jiff::Timestamp;

use super::{Patience, Scope, seconds};

/// Seconds before an action's signal is put on the queue once more.
const NUDGE_AGAIN_SECONDS: i64 = 300;
/// Seconds after its begin at which an action that was woken in vain is given up.
const GIVE_UP_SECONDS: i64 = 3600;
use crate::action::{Action, ActionState, Standing, standing};
use crate::admission;
use crate::names;
use crate::signal::Signal;
use crate::tenant::{Lifecycle, Tenant};

/// Whether a tenant's actions have to be looked at one by one: some are in flight, and their claims are over. Claims of a
/// busy tenant never are, so a sweep of everything looks at all that are in flight.
#[must_use]
pub fn may_have_stuck_actions(tenant: &Tenant, scope: Scope, now: Timestamp, patience: &Patience) -> bool {
    let in_flight = tenant.in_flight > 0 || tenant.entitlements.values().any(|held| held.in_flight > 0);
    let over = || {
        let over = |until: Timestamp| seconds(until, now) >= patience.action;
        tenant.lease_until.is_none_or(over)
    };
    // One that leaves has its actions ended by whoever decommissions it.
    tenant.lifecycle == Lifecycle::Active && in_flight && (scope == Scope::Everything || over())
}

/// What is to be done about an action that nobody goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// Put its signal on the queue again: the governor finds its claim over, and undoes it.
    Nudge,
    /// Give it up: a person has to look.
    Escalate,
}

/// What is due of an action.
#[must_use]
pub fn stuck(action: &Action, now: Timestamp, patience: &Patience) -> Option<Stuck> {
    let nudged = action.nudged_at.map(|at| seconds(at, now));
    let waits = seconds(action.lease_until, now) < patience.action
        || nudged.is_some_and(|ago| ago < NUDGE_AGAIN_SECONDS);
    if !action.state.in_flight() || waits {
        return None;
    }
    let in_vain = nudged.is_some() && seconds(action.started_at, now) >= GIVE_UP_SECONDS;
    Some(match action.parameters.is_none() || in_vain {
        true => Stuck::Escalate,
        false => Stuck::Nudge,
    })
}

/// Whether an action that the gate sent to a person waits for too long.
#[must_use]
pub fn is_overdue(action: &Action, now: Timestamp, patience: &Patience) -> bool {
    let since = action.escalation.as_ref().map(|waits| waits.at);
    action.state == ActionState::Routed && since.is_some_and(|since| seconds(since, now) >= patience.person)
}

/// What is to be done about a dead letter. It is left where it is in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    /// Its action is over, or a person's already: nothing.
    Known,
    /// Somebody is at work on its action: a later look tells.
    Busy,
    /// Nobody goes on with its action: a person has to look.
    Escalate,
    /// It is no signal: refused, on record.
    Refuse,
}

/// How long a letter is left alone whose action a person had taken up again, in seconds.
const REOPENED_SECONDS: i64 = 300;

/// What is due of a dead letter. `action` is what is known of the action it asks for or, of one that is no signal, of the
/// one that it is kept as.
#[must_use]
pub fn letter(is_signal: bool, action: Option<&Action>, now: Timestamp) -> Letter {
    // Taken up again a moment ago: another signal of it is on its way.
    let reopened = |action: &&Action| !action.receipts.is_empty() && !action.state.is_final();
    if action
        .filter(reopened)
        .is_some_and(|action| seconds(action.lease_until, now) < REOPENED_SECONDS)
    {
        return Letter::Busy;
    }
    match (standing(action, now), is_signal) {
        (Standing::Done, _) => Letter::Known,
        (Standing::Busy, _) => Letter::Busy,
        (Standing::New | Standing::Undo, true) => Letter::Escalate,
        (Standing::New, false) => Letter::Refuse,
        // It is another signal's action, which brings it to its end.
        (Standing::Undo, false) => Letter::Known,
    }
}

/// The action that a dead letter asks for, as far as it is known: one that never began is known by its letter alone.
#[must_use]
pub fn action_of_letter(signal: &Signal, known: Option<&Action>, tenant: &Tenant, now: Timestamp) -> Action {
    if let Some(begun) = known.filter(|action| action.state != ActionState::Pending) {
        return begun.clone();
    }
    let held = admission::held(signal, Some(tenant));
    let policy_hash = held.map(|(_, held)| held.policy.hash.as_str());
    let template = names::printable(&signal.template, 64);
    Action {
        receipts: known.map(|action| action.receipts.clone()).unwrap_or_default(),
        entitlement_id: held.map(|(id, _)| id.clone()),
        parameters: Some(signal.parameters.clone()),
        ..Action::pending(
            signal.action_id.clone(),
            &template,
            policy_hash.unwrap_or_default(),
            now,
        )
    }
}

/// The tenant with counters that are what its unfinished actions say; `None` when they are. Only right for a tenant that
/// was read before its actions were, and is still the same.
#[must_use]
pub fn recounted<'a>(tenant: &Tenant, unfinished: impl IntoIterator<Item = &'a Action>) -> Option<Tenant> {
    let mut next = tenant.written();
    next.in_flight = 0;
    for held in next.entitlements.values_mut() {
        held.in_flight = 0;
    }
    for action in unfinished {
        next.in_flight = next.in_flight.saturating_add(1);
        let of = action.entitlement_id.as_ref();
        if let Some(held) = of.and_then(|id| next.entitlements.get_mut(id)) {
            held.in_flight = held.in_flight.saturating_add(1);
        }
    }
    if next.in_flight == 0 {
        next.lease_until = None;
    }
    let same = next.in_flight == tenant.in_flight && next.entitlements == tenant.entitlements;
    (!same).then_some(next)
}
