//! What a sweep does about tenants and actions that stand still between two states, and about resources that are not
//! where they should be.
//!
//! | found | done about it |
//! |---|---|
//! | provisioning that nobody went on with | `entitlement` goes on with it, forward or back |
//! | an event whose time has come | `entitlement` carries it out |
//! | an entitlement whose term has been over for a week | `entitlement` ends it, on record |
//! | decommissioning that nobody went on with | ordered again, now and then |
//! | an action whose claim is long over | its signal is put on the queue again, so that the governor undoes it |
//! | such an action that can't be undone, or wasn't after an hour | escalated, on record |
//! | a dead letter whose action nobody goes on with | escalated, on record; the letter stays for a person |
//! | a dead letter that is no signal | refused, on record; it stays as well |
//! | an action that was routed to a person an hour ago | told, with an alarm |
//! | counters that are not what the actions say | set right |
//! | tenants that are pinned to another policy than their plan's | `policy-upgrade` re-pins them |
//! | an active tenant's resource that is not there | `entitlement` makes it again |
//! | a resource that is no living tenant's | `cancel` takes it away |
//!
//! Each of them is harmless when it is done twice, or beside whoever was only slow.

mod actions;
mod resources;

pub use self::actions::{
    Letter, Stuck, action_of_letter, is_overdue, letter, may_have_stuck_actions, recounted, stuck,
};
pub use self::resources::{
    ExistingResources, Expected, Findings, Missing, Orphan, Resource, compare, orphan,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::tenant::{Lifecycle, Tenant};

/// Minutes between two looks at everything there is.
const EVERYTHING_MINUTES: i64 = 15;
/// Minutes between two orders of one decommissioning: a long archive may be under way.
const ORDER_MINUTES: i64 = 15;

/// How far a sweep goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Nowhere.
    #[default]
    None,
    /// To what is stuck or due.
    Due,
    /// To every tenant, and every resource there is.
    Everything,
}

impl Scope {
    /// How far it goes now: who asks every minute for what is due has everything looked at four times an hour.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        match self {
            Self::Due if minutes(now) % EVERYTHING_MINUTES == 0 => Self::Everything,
            scope => scope,
        }
    }

    /// A number that is the next one when a sweep of this scope comes round again.
    #[must_use]
    pub fn round(self, now: Timestamp) -> u64 {
        let every = match self {
            Self::None | Self::Due => 1,
            Self::Everything => EVERYTHING_MINUTES,
        };
        (minutes(now) / every).unsigned_abs()
    }
}

/// How long each thing may take before it counts as stuck, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Making what a tenant needs: longer than the function lives that does it.
    pub provisioning: i64,
    /// Decommissioning, before it is ordered again: longer than it takes when nothing is in the way.
    pub decommissioning: i64,
    /// An action, from the end of its claim on.
    pub action: i64,
    /// An action that was routed to a person, before they are reminded.
    pub person: i64,
    /// A tenant that is active, before its resources must be listed: listings lag.
    pub active: i64,
    /// A resource that is nobody's, before it is taken away: somebody may be about to note whose it is.
    pub orphan: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            provisioning: 60,
            decommissioning: 90,
            action: 60,
            person: 3600,
            active: 120,
            orphan: 600,
        }
    }
}

impl Patience {
    /// The usual patience, but for what is given: with everything that may be stuck, and with orphans.
    #[must_use]
    pub fn with(stuck: Option<u32>, orphan: Option<u32>) -> Self {
        let usual = Self::default();
        let of = |given: Option<u32>, usual: i64| given.map_or(usual, i64::from);
        Self {
            provisioning: of(stuck, usual.provisioning),
            decommissioning: of(stuck, usual.decommissioning),
            action: of(stuck, usual.action),
            person: of(stuck, usual.person),
            active: of(stuck, usual.active),
            orphan: of(orphan, usual.orphan),
        }
    }
}

/// What is to be done about a tenant that stands between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Go on with its provisioning, and then with what waits.
    Provisioning,
    /// Carry out events that wait, or end what expired: nothing went wrong, their time has come.
    Waiting,
    /// Order its decommissioning again.
    Decommissioning,
}

/// What is due of a tenant.
#[must_use]
pub fn due(tenant: &Tenant, now: Timestamp, patience: &Patience) -> Option<Due> {
    if tenant.lifecycle == Lifecycle::Decommissioning {
        // What waits is carried out once it is gone.
        let late = seconds(tenant.changed_at, now) - patience.decommissioning;
        return (late >= 0 && (late / 60) % ORDER_MINUTES == 0).then_some(Due::Decommissioning);
    }
    match &tenant.provisioning {
        Some(saga) => (seconds(saga.began_at, now) >= patience.provisioning).then_some(Due::Provisioning),
        None => {
            let waits = tenant.deferred.iter().any(|waiting| waiting.due_at <= now);
            let over = tenant.entitlements.values().any(|held| held.over(now).is_some());
            (waits || over).then_some(Due::Waiting)
        }
    }
}

/// As many as can be done at once, and how many are left: others in each round, so that none that always fails keeps the
/// others waiting for ever.
#[must_use]
pub fn turn<T>(mut items: Vec<T>, most: usize, round: u64) -> (Vec<T>, usize) {
    let all = items.len();
    if all > most {
        let done = usize::try_from(round).unwrap_or_default().wrapping_mul(most);
        items.rotate_left(done % all);
        items.truncate(most);
    }
    let left = all - items.len();
    (items, left)
}

fn minutes(now: Timestamp) -> i64 {
    now.as_second().div_euclid(60)
}

/// How long ago something was; negative when it is still to come.
fn seconds(then: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(then).as_secs()
}

#[cfg(test)]
mod tests;
