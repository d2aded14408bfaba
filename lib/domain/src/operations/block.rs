//! A ledger that takes no receipt, as something stands behind its head that no writer of ours put there: a person has to look.
//! What has ended is escalated at once and nothing more is run, since nothing could be put on record.

use jiff::Timestamp;
use receipts::receipt::Draft;
use uuid::Uuid;

use super::abandon::abandon;
use crate::action::{IllegalTransition, LEDGER_BLOCKED};
use crate::signal::ActionId;
use crate::transaction::{Account, Plan};

/// An action whose outcome could not be put on record.
#[derive(Debug, Clone, PartialEq)]
pub struct Unrecorded {
    pub action_id: ActionId,
    /// Whose claim it ran under: another's is left alone.
    pub owner: Uuid,
    /// Id of the receipt of its escalation.
    pub receipt_id: Uuid,
}

/// Escalates what could not be put on record, and bars the tenant's governors. The receipts come back instead of being planned:
/// they wait in the spool until the ledger takes them.
///
/// # Errors
/// [`IllegalTransition`] when an action can't be escalated.
pub fn block(
    account: &Account,
    seq: u64,
    unrecorded: &[Unrecorded],
    now: Timestamp,
) -> Result<(Plan, Vec<Draft>), IllegalTransition> {
    let ours = unrecorded.iter().filter(|one| {
        let stored = account.actions.get(&one.action_id);
        stored.is_some_and(|action| action.owner == one.owner)
    });
    let ours: Vec<_> = ours.map(|one| (one.action_id.clone(), one.receipt_id)).collect();
    let mut plan = abandon(account, &ours, LEDGER_BLOCKED, now)?;
    let receipts = std::mem::take(&mut plan.drafts);
    match &mut plan.tenant {
        Some(tenant) => tenant.ledger_blocked = Some(seq),
        None => {
            plan.tenant = account
                .tenant
                .as_ref()
                .and_then(|tenant| tenant.with_ledger(Some(seq)))
        }
    }
    Ok((plan, receipts))
}

#[cfg(test)]
mod tests {
    use receipts::receipt::Payload;

    use super::*;
    use crate::account::AccountId;
    use crate::action::{Action, ActionState};
    use crate::names::Partition;
    use crate::tenant::Tenant;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn id(text: &str) -> ActionId {
        ActionId::try_from(text.to_owned()).unwrap()
    }

    fn account(states: &[(&str, ActionState)]) -> Account {
        let account_id = AccountId::parse("c").unwrap();
        let mut tenant = Tenant::absent(account_id.clone(), NOW);
        tenant.in_flight = 2;
        let actions = states.iter().map(|(name, state)| {
            let action = Action {
                state: *state,
                owner: Uuid::from_u128(1),
                ..Action::pending(id(name), "t", "h", NOW)
            };
            (id(name), action)
        });
        Account {
            tenant: Some(tenant),
            actions: actions.collect(),
            ..Account::unknown(&Partition::of(&account_id))
        }
    }

    fn unrecorded(name: &str, owner: u128) -> Unrecorded {
        Unrecorded {
            action_id: id(name),
            owner: Uuid::from_u128(owner),
            receipt_id: Uuid::from_u128(9),
        }
    }

    #[test]
    fn what_ran_is_a_persons_and_its_receipt_waits() {
        let account = account(&[("a", ActionState::Running), ("b", ActionState::Running)]);
        let (plan, receipts) = block(&account, 7, &[unrecorded("a", 1), unrecorded("b", 2)], NOW).unwrap();
        // That of another claim is that claim's to end.
        let [action] = plan.actions.as_slice() else {
            panic!("{:?}", plan.actions)
        };
        assert_eq!(
            (action.action_id.as_str(), action.state),
            ("a", ActionState::Escalated)
        );
        assert_eq!(action.resumes_at(), Some(ActionState::TimedOut));
        assert_eq!(action.last_receipt(), Some(Uuid::from_u128(9)));
        let tenant = plan.tenant.unwrap();
        assert_eq!((tenant.in_flight, tenant.ledger_blocked), (1, Some(7)));
        assert_eq!(tenant.revision, 1);
        assert!(plan.drafts.is_empty(), "the ledger takes none");
        let [draft] = receipts.as_slice() else {
            panic!("{receipts:?}")
        };
        let Payload::ActionFailed { error_code, .. } = &draft.payload else {
            panic!("{draft:?}")
        };
        assert_eq!(error_code, LEDGER_BLOCKED);
    }

    #[test]
    fn who_finds_it_blocked_bars_the_tenant_once() {
        let mut account = account(&[]);
        let (plan, receipts) = block(&account, 7, &[], NOW).unwrap();
        assert!(receipts.is_empty());
        let barred = plan.tenant.unwrap();
        assert_eq!((barred.ledger_blocked, barred.revision), (Some(7), 1));
        account.tenant = Some(barred.clone());
        assert!(block(&account, 7, &[], NOW).unwrap().0.is_empty());
        let free = barred.with_ledger(None).unwrap();
        assert_eq!((free.ledger_blocked, free.revision), (None, 2));
        assert_eq!(free.with_ledger(None), None);
    }
}
