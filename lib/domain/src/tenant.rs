//! A tenant's life.
//!
//! | state | subscribe | provisioned | provisioning failed | cancel | archived |
//! |---|---|---|---|---|---|
//! | absent | provisioning | – | – | – | – |
//! | provisioning | – | active | absent | – | – |
//! | active | – | – | – | decommissioning | – |
//! | decommissioning | – | – | – | – | decommissioned |
//! | decommissioned | provisioning (next generation) | – | – | – | – |
//!
//! A dash is an [`IllegalTransition`]: the caller says so to whoever asked, and nothing changes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::account::{AccountId, PlanType, SkuId};

/// Where a tenant stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Never seen, or provisioning was undone.
    Absent,
    /// Resources are being made; intent is recorded.
    Provisioning,
    /// The governor runs actions.
    Active,
    /// Accepts nothing new; drains, archives, deletes.
    Decommissioning,
    /// Archived and gone; the ledger stays.
    Decommissioned,
}

impl Lifecycle {
    /// Every state, for tables.
    pub const ALL: [Self; 5] = [
        Self::Absent,
        Self::Provisioning,
        Self::Active,
        Self::Decommissioning,
        Self::Decommissioned,
    ];

    /// The name used in the table and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Decommissioning => "decommissioning",
            Self::Decommissioned => "decommissioned",
        }
    }
}

/// What happens to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TenantEvent {
    /// A marketplace says the customer subscribed.
    Subscribe,
    /// Every resource stands.
    Provisioned,
    /// A step failed and what was done is undone.
    ProvisioningFailed,
    /// A marketplace says the customer cancelled.
    Cancel,
    /// Receipts are archived and resources deleted.
    Archived,
}

impl TenantEvent {
    /// Every event, for tables.
    pub const ALL: [Self; 5] = [
        Self::Subscribe,
        Self::Provisioned,
        Self::ProvisioningFailed,
        Self::Cancel,
        Self::Archived,
    ];
}

/// An event that has no meaning in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant that is {} has no transition for {event:?}", state.name())]
pub struct IllegalTransition {
    /// Where the tenant stands.
    pub state: Lifecycle,
    /// What happened.
    pub event: TenantEvent,
}

/// The state after an event.
///
/// # Errors
/// [`IllegalTransition`] when the event has no meaning in the state.
pub fn next(state: Lifecycle, event: TenantEvent) -> Result<Lifecycle, IllegalTransition> {
    use TenantEvent::{Archived, Cancel, Provisioned, ProvisioningFailed, Subscribe};
    match (state, event) {
        (Lifecycle::Absent | Lifecycle::Decommissioned, Subscribe) => Ok(Lifecycle::Provisioning),
        (Lifecycle::Provisioning, Provisioned) => Ok(Lifecycle::Active),
        (Lifecycle::Provisioning, ProvisioningFailed) => Ok(Lifecycle::Absent),
        (Lifecycle::Active, Cancel) => Ok(Lifecycle::Decommissioning),
        (Lifecycle::Decommissioning, Archived) => Ok(Lifecycle::Decommissioned),
        (
            Lifecycle::Absent | Lifecycle::Decommissioned,
            Provisioned | ProvisioningFailed | Cancel | Archived,
        )
        | (Lifecycle::Provisioning, Subscribe | Cancel | Archived)
        | (Lifecycle::Active, Subscribe | Provisioned | ProvisioningFailed | Archived)
        | (Lifecycle::Decommissioning, Subscribe | Provisioned | ProvisioningFailed | Cancel) => {
            Err(IllegalTransition { state, event })
        }
    }
}

/// What a plan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Actions a UTC calendar month.
    pub monthly_actions: u64,
    /// Actions at one time.
    pub concurrent_actions: u64,
}

/// Which enforcer decides for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPin {
    /// Semantic version of the policy.
    pub version: String,
    /// SHA-256 of the enforcer's bytes, lower hex.
    pub hash: String,
}

/// The cloud resources that are a tenant's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantResources {
    /// Name of the signal queue.
    pub queue: String,
    /// URL of the signal queue.
    pub queue_url: String,
    /// URL of the dead-letter queue.
    pub dead_letter_queue_url: String,
    /// Id of the event source mapping to the governor.
    pub mapping_id: String,
}

/// A tenant as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// The customer.
    pub account_id: AccountId,
    /// Where it stands.
    pub lifecycle: Lifecycle,
    /// How many times this account has been provisioned, from 1.
    pub generation: u64,
    /// The product.
    pub sku_id: SkuId,
    /// The plan.
    pub plan_type: PlanType,
    /// Where the customer wants it.
    pub region: String,
    /// Id of the governor's state machine: `<queue name>`.
    pub fsm_id: String,
    /// The enforcer that decides.
    pub policy: PolicyPin,
    /// What the plan allows.
    pub quota: Quota,
    /// Its resources.
    pub resources: TenantResources,
    /// Actions claimed and not final.
    pub in_flight: u64,
    /// UTC month (`YYYY-MM`) that `month_actions` counts.
    pub month: String,
    /// Actions executed in `month`.
    pub month_actions: u64,
    /// Actions completed since this generation began.
    pub actions_completed: u64,
    /// Actions failed, undone or escalated since this generation began.
    pub actions_failed: u64,
    /// When this generation began.
    pub subscribed_at: Timestamp,
    /// Changes with every write; every write is conditioned on the one it read.
    pub revision: u64,
}

/// The UTC month of an instant, `YYYY-MM`.
#[must_use]
pub fn month_of(now: Timestamp) -> String {
    now.strftime("%Y-%m").to_string()
}

impl Tenant {
    /// How many actions are left this month.
    #[must_use]
    pub fn monthly_left(&self, now: Timestamp) -> u64 {
        let used = if self.month == month_of(now) {
            self.month_actions
        } else {
            0
        };
        self.quota.monthly_actions.saturating_sub(used)
    }

    /// How many actions may start now.
    #[must_use]
    pub fn concurrent_left(&self) -> u64 {
        self.quota.concurrent_actions.saturating_sub(self.in_flight)
    }

    /// The tenant after `count` actions were claimed.
    #[must_use]
    pub fn claimed(&self, count: u64, now: Timestamp) -> Self {
        let month = month_of(now);
        let used = if self.month == month {
            self.month_actions
        } else {
            0
        };
        Self {
            in_flight: self.in_flight.saturating_add(count),
            month,
            month_actions: used.saturating_add(count),
            revision: self.revision.saturating_add(1),
            ..self.clone()
        }
    }

    /// The tenant after actions it had claimed became final.
    #[must_use]
    pub fn released(&self, completed: u64, failed: u64) -> Self {
        Self {
            in_flight: self.in_flight.saturating_sub(completed.saturating_add(failed)),
            actions_completed: self.actions_completed.saturating_add(completed),
            actions_failed: self.actions_failed.saturating_add(failed),
            revision: self.revision.saturating_add(1),
            ..self.clone()
        }
    }

    /// The tenant after an event of its life.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event has no meaning now.
    pub fn after(&self, event: TenantEvent) -> Result<Self, IllegalTransition> {
        Ok(Self {
            lifecycle: next(self.lifecycle, event)?,
            revision: self.revision.saturating_add(1),
            ..self.clone()
        })
    }

    /// The tenant with another policy.
    #[must_use]
    pub fn repinned(&self, policy: PolicyPin, quota: Quota) -> Self {
        Self {
            policy,
            quota,
            revision: self.revision.saturating_add(1),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_event() {
        let mut table = String::new();
        for state in Lifecycle::ALL {
            for event in TenantEvent::ALL {
                let to = next(state, event).map_or("-", Lifecycle::name);
                table.push_str(&format!("{} {event:?} {to}\n", state.name()));
            }
        }
        let golden = "\
absent Subscribe provisioning
absent Provisioned -
absent ProvisioningFailed -
absent Cancel -
absent Archived -
provisioning Subscribe -
provisioning Provisioned active
provisioning ProvisioningFailed absent
provisioning Cancel -
provisioning Archived -
active Subscribe -
active Provisioned -
active ProvisioningFailed -
active Cancel decommissioning
active Archived -
decommissioning Subscribe -
decommissioning Provisioned -
decommissioning ProvisioningFailed -
decommissioning Cancel -
decommissioning Archived decommissioned
decommissioned Subscribe provisioning
decommissioned Provisioned -
decommissioned ProvisioningFailed -
decommissioned Cancel -
decommissioned Archived -
";
        assert_eq!(table, golden);
    }

    fn tenant() -> Tenant {
        Tenant {
            account_id: AccountId::parse("c").unwrap(),
            lifecycle: Lifecycle::Active,
            generation: 1,
            sku_id: SkuId::parse("s").unwrap(),
            plan_type: PlanType::parse("p").unwrap(),
            region: "us-east-1".to_owned(),
            fsm_id: "q".to_owned(),
            policy: PolicyPin {
                version: "1.0.0".to_owned(),
                hash: "00".to_owned(),
            },
            quota: Quota {
                monthly_actions: 10,
                concurrent_actions: 3,
            },
            resources: TenantResources::default(),
            in_flight: 0,
            month: "2026-01".to_owned(),
            month_actions: 0,
            actions_completed: 0,
            actions_failed: 0,
            subscribed_at: Timestamp::UNIX_EPOCH,
            revision: 7,
        }
    }

    #[test]
    fn counters_follow_claims_and_outcomes() {
        let january: Timestamp = "2026-01-31T23:59:59Z".parse().unwrap();
        let february: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
        let busy = tenant().claimed(3, january);
        assert_eq!((busy.in_flight, busy.month_actions, busy.revision), (3, 3, 8));
        assert_eq!(
            (
                busy.concurrent_left(),
                busy.monthly_left(january),
                busy.monthly_left(february)
            ),
            (0, 7, 10)
        );
        let done = busy.released(2, 1);
        assert_eq!(
            (
                done.in_flight,
                done.actions_completed,
                done.actions_failed,
                done.revision
            ),
            (0, 2, 1, 9)
        );
        let next_month = done.claimed(1, february);
        assert_eq!(
            (next_month.month.as_str(), next_month.month_actions),
            ("2026-02", 1)
        );
    }
}
