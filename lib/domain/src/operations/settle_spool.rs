//! Appends receipts that waited in the spool while the tables did not answer.

use std::collections::BTreeSet;

use receipts::receipt::{Draft, Payload};

use crate::account::AccountId;
use crate::action::{Action, ActionState};
use crate::gate::RefusalCode;
use crate::names::{self, Partition};
use crate::signal::ActionId;
use crate::tenant::{Lifecycle, Tenant};
use crate::transaction::{Account, Keys, Plan};

/// What has to be read to append these receipts.
#[must_use]
pub fn keys(drafts: &[Draft]) -> Keys {
    Keys {
        actions: drafts.iter().filter_map(action_of).map(|(id, _)| id).collect(),
        once: drafts.iter().map(|draft| draft.receipt_id).collect(),
        ..Keys::default()
    }
}

/// Appends those that do not stand on the ledger yet, and tells how many it does not take at all.
#[must_use]
pub fn settle_spool(account: &Account, drafts: &[Draft]) -> (Plan, usize) {
    let mut plan = Plan::default();
    let mut appended = BTreeSet::new();
    let taken = |draft: &&Draft| takes(account.tenant.as_ref(), draft);
    for draft in drafts.iter().filter(taken) {
        if account.once.contains(&draft.receipt_id) || !appended.insert(draft.receipt_id) {
            continue;
        }
        // A refused signal must stay refused: a repeat of it finds its action final. One that was begun is brought to its
        // end by whoever finds it.
        let known = |id: &ActionId| {
            let begun = account.actions.get(id);
            begun.is_some_and(|action| action.state != ActionState::Pending)
                || plan.actions.iter().any(|action| action.action_id == *id)
        };
        if let Some((id, template)) = action_of(draft).filter(|(id, _)| !known(id)) {
            let code = RefusalCode::Unavailable;
            let before = account.actions.get(&id);
            let (receipt_id, at) = (draft.receipt_id, draft.occurred_at);
            let (refused, _) = Action::refused(before, id, template, code, "", receipt_id, at);
            plan.actions.push(refused);
        }
        plan.drafts.push(draft.clone());
        plan.once.push(draft.receipt_id);
    }
    let dropped = drafts.iter().filter(|draft| !taken(draft)).count();
    (plan, dropped)
}

/// The action that a receipt refuses, and its template.
fn action_of(draft: &Draft) -> Option<(ActionId, &str)> {
    match &draft.payload {
        Payload::ActionRefused {
            action_id, template, ..
        } => Some((ActionId::try_from(action_id.clone()).ok()?, template)),
        _ => None,
    }
}

/// Whether a ledger takes a spooled receipt. While storage fails the door can't see whose tenant is active, and anybody who
/// may sign can be refused: then as always a refusal at the door is only on an active tenant's record.
fn takes(tenant: Option<&Tenant>, draft: &Draft) -> bool {
    let at_the_door = matches!(draft.payload, Payload::SignalRefused { .. });
    !at_the_door || tenant.is_some_and(|tenant| tenant.lifecycle == Lifecycle::Active)
}

/// The tables' key of the ledger that a spooled receipt belongs to. A customer may be called `_system` too: what is about an
/// action is always a customer's, whatever it is called.
#[must_use]
pub fn partition(draft: &Draft) -> Partition {
    let customers = matches!(
        draft.payload,
        Payload::ActionRefused { .. } | Payload::SignalRefused { .. } | Payload::ActionFailed { .. }
    );
    if draft.account_id == names::SYSTEM_ACCOUNT && !customers {
        return Partition::system();
    }
    AccountId::parse(draft.account_id.as_str()).map_or_else(
        |_| Partition::from_key(draft.account_id.clone()),
        |id| Partition::of(&id),
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

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
    fn refusals_at_the_door_are_on_active_tenants_record_only() {
        let of = |payload| Draft::new(Uuid::nil(), names::SYSTEM_ACCOUNT, payload, Timestamp::UNIX_EPOCH);
        let mut tenant = Tenant::absent(AccountId::parse("c").unwrap(), Timestamp::UNIX_EPOCH);
        for lifecycle in Lifecycle::ALL {
            tenant.lifecycle = lifecycle;
            let active = lifecycle == Lifecycle::Active;
            assert_eq!(takes(Some(&tenant), &of(at_the_door())), active, "{lifecycle:?}");
            assert!(takes(Some(&tenant), &of(refused())), "{lifecycle:?}");
        }
        assert!(!takes(None, &of(at_the_door())));
        assert!(takes(None, &of(refused())));
    }

    #[test]
    fn a_customer_called_system_keeps_a_ledger_of_its_own() {
        let cleared = Payload::DegradedModeCleared {
            reason: "r".to_owned(),
            downtime_seconds: 1,
            actions_refused: 1,
        };
        let of = |payload| Draft::new(Uuid::nil(), names::SYSTEM_ACCOUNT, payload, Timestamp::UNIX_EPOCH);
        assert_eq!(partition(&of(cleared)), Partition::system());
        assert_eq!(partition(&of(refused())).as_str(), "___system");
        assert_eq!(partition(&of(at_the_door())).as_str(), "___system");
    }
}
