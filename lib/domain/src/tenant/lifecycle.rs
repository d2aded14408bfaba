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

use serde::{Deserialize, Serialize};

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
    pub state: Lifecycle,
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
}
