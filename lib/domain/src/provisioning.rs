//! What is made for a tenant, step by step, and how it is unmade: the saga of provisioning.
//!
//! The intent is one record that names everything, so that every step finds what an earlier attempt made, and every undo
//! finds what may have been made. Steps are done in order; when one fails, all that may have been made is unmade in
//! reverse, and then the record goes. A crash anywhere is taken up with the record: forward, or back once it
//! says what failed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::account::EntitlementId;
use crate::entitlement::Entitlement;
use crate::webhook::event::EntitlementEvent;

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The tenant says what is being made.
    TenantRecord,
    DeadLetterQueue,
    /// The signal queue.
    Queue,
    /// The table of the tenant's own actions.
    ActionTable,
    /// The table of the tenant's own receipts.
    ReceiptTable,
    /// The enforcer that was pinned is there, and is what its hash says.
    PolicyPin,
    /// The mapping that feeds the governor.
    Mapping,
    /// The governor says that it can work for the tenant.
    GovernorBoot,
    /// The entitlement is active and on record.
    Receipt,
}

impl Step {
    /// The name used in receipts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TenantRecord => "tenant_record",
            Self::DeadLetterQueue => "dead_letter_queue",
            Self::Queue => "queue",
            Self::ActionTable => "action_table",
            Self::ReceiptTable => "receipt_table",
            Self::PolicyPin => "policy_pin",
            Self::Mapping => "mapping",
            Self::GovernorBoot => "governor_boot",
            Self::Receipt => "receipt",
        }
    }

    /// Whether doing it leaves something outside of the tables that has to be undone.
    #[must_use]
    pub fn leaves_something(self) -> bool {
        match self {
            Self::DeadLetterQueue | Self::Queue | Self::ActionTable | Self::ReceiptTable | Self::Mapping => {
                true
            }
            Self::TenantRecord | Self::PolicyPin | Self::GovernorBoot | Self::Receipt => false,
        }
    }
}

/// The delivery that asked, so that whoever finishes can keep its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRef {
    pub provider: String,
    /// The sender's id of the delivery.
    pub delivery_id: String,
    /// SHA-256 of its body in lower hex.
    pub body_sha256: String,
}

impl DeliveryRef {
    /// The text that tells one delivery from another of any provider.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}#{}", self.provider, self.delivery_id)
    }
}

/// Why and where provisioning failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub step: Step,
    pub reason: String,
    /// Whether the same request would fail again.
    pub lasting: bool,
    /// What runs that could not undo everything have undone, in the order of undoing.
    pub undone: Vec<Step>,
}

/// A provisioning under way: the intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioning {
    pub entitlement_id: EntitlementId,
    /// The entitlement as it will be.
    pub entitlement: Entitlement,
    /// The event that asked for it.
    pub event: EntitlementEvent,
    /// The delivery that brought the event.
    pub asked: DeliveryRef,
    /// Whether the tenant is new, with queues and a mapping to be made. Else only tables are.
    pub new_tenant: bool,
    /// Whether the plan asks for tables of its own.
    pub dedicated: bool,
    pub received_at: Timestamp,
    /// When it could be carried out first: it is kept for seven days from then on.
    pub due_since: Timestamp,
    /// How often carrying it out has failed before.
    pub attempts: u32,
    /// Whether its sender has an answer already.
    pub waited: bool,
    /// Which attempt to make tables this is, in names: of a tenant that is there already none is used twice.
    pub table_attempt: u64,
    pub began_at: Timestamp,
    /// Set once a step failed: everything is undone.
    pub failure: Option<Failure>,
}

impl Provisioning {
    /// The steps, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let all = [
            Step::TenantRecord,
            Step::DeadLetterQueue,
            Step::Queue,
            Step::ActionTable,
            Step::ReceiptTable,
            Step::PolicyPin,
            Step::Mapping,
            Step::GovernorBoot,
            Step::Receipt,
        ];
        let wanted = |step: &Step| match step {
            Step::DeadLetterQueue | Step::Queue | Step::Mapping | Step::GovernorBoot => self.new_tenant,
            Step::ActionTable | Step::ReceiptTable => self.dedicated,
            Step::TenantRecord | Step::PolicyPin | Step::Receipt => true,
        };
        all.into_iter().filter(wanted).collect()
    }

    /// What is undone after a failure, in order: whatever failed, an earlier run may have got further before it ended, and
    /// the failed step itself may have done its work and lost the answer.
    #[must_use]
    pub fn undo(&self) -> Vec<Step> {
        let mut steps = self.steps();
        steps.retain(|step| step.leaves_something());
        steps.reverse();
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::tests::{event, offer};
    use crate::webhook::event::Change;

    fn provisioning(new_tenant: bool, dedicated: bool) -> Provisioning {
        let event = event(Change::Suspended);
        let order = crate::entitlement::EventOrder::at(Timestamp::UNIX_EPOCH);
        Provisioning {
            entitlement_id: EntitlementId::parse("e").unwrap(),
            entitlement: Entitlement::granted(&offer("p"), "r", None, order, Timestamp::UNIX_EPOCH),
            event,
            asked: DeliveryRef {
                provider: "standard".to_owned(),
                delivery_id: "d".to_owned(),
                body_sha256: String::new(),
            },
            new_tenant,
            dedicated,
            received_at: Timestamp::UNIX_EPOCH,
            due_since: Timestamp::UNIX_EPOCH,
            attempts: 0,
            waited: false,
            table_attempt: 0,
            began_at: Timestamp::UNIX_EPOCH,
            failure: None,
        }
    }

    #[track_caller]
    fn check(new_tenant: bool, dedicated: bool, steps: &str) {
        let saga = provisioning(new_tenant, dedicated);
        let names: Vec<&str> = saga.steps().into_iter().map(Step::name).collect();
        assert_eq!(names.join(" "), steps);
    }

    #[test]
    fn steps() {
        check(
            true,
            false,
            "tenant_record dead_letter_queue queue policy_pin mapping governor_boot receipt",
        );
        check(
            true,
            true,
            "tenant_record dead_letter_queue queue action_table receipt_table policy_pin mapping governor_boot receipt",
        );
        check(
            false,
            true,
            "tenant_record action_table receipt_table policy_pin receipt",
        );
    }

    /// Everything that may have been made is unmade, last first, and nothing else.
    #[test]
    fn undo_is_the_reverse() {
        for (new_tenant, dedicated, undone) in [
            (true, false, "mapping queue dead_letter_queue"),
            (
                true,
                true,
                "mapping receipt_table action_table queue dead_letter_queue",
            ),
            (false, true, "receipt_table action_table"),
        ] {
            let saga = provisioning(new_tenant, dedicated);
            let names: Vec<&str> = saga.undo().into_iter().map(Step::name).collect();
            assert_eq!(names.join(" "), undone);
            assert!(saga.steps().is_sorted());
        }
    }
}
