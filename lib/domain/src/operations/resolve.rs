//! Ends an action that a person has dealt with: one that was escalated, or routed to a person who declines it.

use jiff::Timestamp;
use uuid::Uuid;

use crate::action::{ActionEvent, ActionState, IllegalTransition};
use crate::signal::ActionId;
use crate::transaction::{Account, Keys, Plan};

/// What a person says.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolution<'a> {
    /// About which action.
    pub action_id: &'a ActionId,
    pub by: &'a str,
    /// What was done about it.
    pub note: &'a str,
    pub receipt_id: Uuid,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// It is final now.
    Now,
    /// It was resolved before, by this receipt.
    Before(Uuid),
    /// It does not wait for a person.
    NotEscalated(ActionState),
    Unknown,
}

/// What has to be read to resolve an action: it, and its mark.
#[must_use]
pub fn keys(action_id: &ActionId) -> Keys {
    Keys {
        actions: [action_id.clone()].into(),
        mark: Some(action_id.clone()),
        ..Keys::default()
    }
}

/// Resolves an action; where its tenant's table is gone only its mark is left, and is written.
///
/// # Errors
/// [`IllegalTransition`] when the action does not take it.
pub fn resolve(
    account: &Account,
    resolution: &Resolution<'_>,
    now: Timestamp,
) -> Result<(Plan, Resolved), IllegalTransition> {
    let standing = account.actions.get(resolution.action_id);
    let nothing = |resolved| Ok((Plan::default(), resolved));
    let (Some(action), Some(account_id)) = (
        standing.or(account.marked.as_deref()),
        account.partition.account(),
    ) else {
        return nothing(Resolved::Unknown);
    };
    match action.state {
        state if state.is_a_persons() => {}
        ActionState::Resolved => {
            return nothing(Resolved::Before(action.last_receipt().unwrap_or_default()));
        }
        other => return nothing(Resolved::NotEscalated(other)),
    }
    let event = ActionEvent::Resolved {
        by: resolution.by.to_owned(),
        note: resolution.note.to_owned(),
    };
    let ended = action.next(&event, resolution.receipt_id, now)?;
    let draft = |payload| action.draft(account_id.as_str(), resolution.receipt_id, payload, 0, now);
    let mut plan = Plan {
        drafts: ended.receipt.map(draft).into_iter().collect(),
        ..Plan::default()
    };
    match standing {
        Some(_) => plan.actions.push(ended.action),
        None => plan.unmarked = Some(ended.action),
    }
    Ok((plan, Resolved::Now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::AccountId;
    use crate::action::Action;
    use crate::names::Partition;

    fn id() -> ActionId {
        ActionId::try_from("a".to_owned()).unwrap()
    }

    fn action(state: ActionState) -> Action {
        Action {
            state,
            receipts: vec![Uuid::from_u128(1)],
            ..Action::pending(id(), "t", "", Timestamp::UNIX_EPOCH)
        }
    }

    #[track_caller]
    fn check(standing: Option<ActionState>, marked: Option<ActionState>, expected: &str) {
        let account = Account {
            actions: standing.map(|state| (id(), action(state))).into_iter().collect(),
            marked: marked.map(|state| Box::new(action(state))),
            ..Account::unknown(&Partition::of(&AccountId::parse("c").unwrap()))
        };
        let resolution = Resolution {
            action_id: &id(),
            by: "ops",
            note: "by hand",
            receipt_id: Uuid::from_u128(2),
        };
        let (plan, resolved) = resolve(&account, &resolution, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(plan.drafts.len(), usize::from(resolved == Resolved::Now));
        let told = match resolved {
            Resolved::Now => format!(
                "{:?} {:?}",
                plan.actions.iter().map(|a| a.state.name()).collect::<Vec<_>>(),
                plan.unmarked.map(|a| a.state.name())
            ),
            Resolved::Before(receipt_id) => format!("resolved by {receipt_id}"),
            Resolved::NotEscalated(state) => state.name().to_owned(),
            Resolved::Unknown => "nothing".to_owned(),
        };
        assert_eq!(told, expected);
    }

    /// What stands in a table is written there; of what stands nowhere any more only the mark is.
    #[test]
    fn what_is_written() {
        use ActionState::{Complete, Escalated, Resolved, Routed};
        check(None, None, "nothing");
        check(Some(Escalated), Some(Escalated), "[\"resolved\"] None");
        check(None, Some(Escalated), "[] Some(\"resolved\")");
        check(Some(Routed), Some(Routed), "[\"resolved\"] None");
        check(None, Some(Routed), "[] Some(\"resolved\")");
        check(Some(Complete), Some(Escalated), "complete");
        let by = format!("resolved by {}", Uuid::from_u128(1));
        check(Some(Resolved), Some(Resolved), &by);
        check(None, Some(Resolved), &by);
        check(None, Some(ActionState::Pending), "pending");
    }
}
