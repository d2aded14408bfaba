//! Opens an action again whose signal is to go back to the queue.

use jiff::Timestamp;
use uuid::Uuid;

use crate::account::AccountId;
use crate::action::{Action, ActionEvent, ActionState, IllegalTransition};
use crate::signal::{ActionId, Signal};
use crate::tenant::Lifecycle;
use crate::transaction::{Account, Plan};

/// A person asks for an action to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Redrive<'a> {
    pub action_id: &'a ActionId,
    /// What its dead letter says, if it has one.
    pub signal: Option<&'a Signal>,
    /// Who asks.
    pub by: &'a str,
    pub receipt_id: Uuid,
}

/// What becomes of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redriven {
    /// It may go back: its action is open, or was never heard of.
    Open,
    /// It may go back: its action was opened again, in a place of the tenant's if it needs one, and stands so.
    Reopened(ActionState),
    /// Its action is over.
    AlreadyOver,
    /// The tenant is not active.
    NotActive,
    /// Nobody knows what the action was to do.
    NothingToGoOnWith,
    /// No place is free for it.
    NoPlace,
    /// What it ran under is gone.
    EntitlementGone,
}

/// What is to be written before the signal may go back, and what becomes of it.
///
/// # Errors
/// [`IllegalTransition`] when the action does not take it.
pub fn redrive(
    account: &Account,
    redrive: &Redrive<'_>,
    now: Timestamp,
) -> Result<(Plan, Redriven), IllegalTransition> {
    let stays = |redriven| Ok((Plan::default(), redriven));
    let action = account.actions.get(redrive.action_id);
    let over = |action: &Action| action.state.is_final() && !action.state.is_a_persons();
    if action.is_some_and(over) {
        return stays(Redriven::AlreadyOver);
    }
    let active = account
        .tenant
        .as_ref()
        .filter(|tenant| tenant.lifecycle == Lifecycle::Active);
    let Some(tenant) = active else {
        return stays(Redriven::NotActive);
    };
    let Some(action) = action.filter(|action| action.state.is_a_persons()) else {
        return stays(Redriven::Open);
    };
    let parameters = action
        .parameters
        .clone()
        .or_else(|| redrive.signal.map(|signal| signal.parameters.clone()));
    let Some(resumes_at) = action.resumes_at().filter(|_| parameters.is_some()) else {
        return stays(Redriven::NothingToGoOnWith);
    };
    let placed = match (resumes_at.in_flight(), &action.entitlement_id) {
        (false, _) => None,
        (true, Some(id)) if tenant.entitlements.contains_key(id) => match tenant.taken_up(id, now) {
            Some(placed) => Some(placed),
            None => return stays(Redriven::NoPlace),
        },
        (true, _) => return stays(Redriven::EntitlementGone),
    };
    let known = Action {
        parameters,
        ..action.clone()
    };
    let event = ActionEvent::Redriven {
        by: redrive.by.to_owned(),
    };
    let opened = known.next(&event, redrive.receipt_id, now)?;
    let account_id = tenant.account_id.as_str();
    let draft = |payload| {
        opened
            .action
            .draft(account_id, redrive.receipt_id, payload, 0, now)
    };
    let state = opened.action.state;
    let plan = Plan {
        drafts: opened.receipt.map(draft).into_iter().collect(),
        actions: vec![opened.action.clone()],
        ..Plan::tenant(placed)
    };
    Ok((plan, Redriven::Reopened(state)))
}

/// The signal that asks once more for an action. What was routed never began: whoever releases it means the policy in force now.
#[must_use]
pub fn signal(account: &Account, account_id: &AccountId, action: &Action) -> Signal {
    let mut signal = action.signal(account_id);
    let held = account.tenant.as_ref().zip(action.entitlement_id.as_ref());
    let held = held.and_then(|(tenant, id)| tenant.entitlements.get(id));
    if let Some(held) = held.filter(|_| action.state == ActionState::Routed) {
        signal.policy_hash.clone_from(&held.policy.hash);
    }
    signal
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::account::{EntitlementId, PlanType, SkuId};
    use crate::action::Escalation;
    use crate::entitlement::{Entitlement, EventOrder, Isolation, Offer};
    use crate::entitlement::{PolicyPin, Quota};
    use crate::names::Partition;
    use crate::tenant::Tenant;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn id(text: &str) -> EntitlementId {
        EntitlementId::parse(text).unwrap()
    }

    /// A tenant with one entitlement, and so many places.
    fn tenant(places: u64) -> Tenant {
        let offer = Offer {
            sku_id: SkuId::parse("s").unwrap(),
            plan_type: PlanType::parse("p").unwrap(),
            policy: PolicyPin {
                version: "1.0.0".to_owned(),
                hash: "h".to_owned(),
            },
            quota: Quota {
                monthly_actions: 10,
                concurrent_actions: places,
            },
            isolation: Isolation::Pool,
        };
        let order = EventOrder::at(NOW);
        let mut tenant = Tenant::absent(AccountId::parse("c").unwrap(), NOW);
        tenant.lifecycle = Lifecycle::Active;
        let held = Entitlement::granted(&offer, "r", None, order, NOW);
        tenant.entitlements.insert(id("s"), held);
        tenant
    }

    fn action(state: ActionState, resume: Option<ActionState>) -> Action {
        let action_id = ActionId::try_from("a".to_owned()).unwrap();
        Action {
            state,
            escalation: Some(Escalation {
                error_code: "STUCK".to_owned(),
                resume,
                at: NOW,
            }),
            entitlement_id: Some(id("s")),
            parameters: Some(Map::new()),
            receipts: vec![Uuid::from_u128(1)],
            ..Action::pending(action_id, "t", "h", NOW)
        }
    }

    fn decided(
        tenant: Option<&Tenant>,
        action: Option<&Action>,
        signal: Option<&Signal>,
    ) -> (Plan, Redriven) {
        let id = ActionId::try_from("a".to_owned()).unwrap();
        let account = Account {
            tenant: tenant.cloned(),
            actions: action
                .map(|action| (id.clone(), action.clone()))
                .into_iter()
                .collect(),
            ..Account::unknown(&Partition::of(&AccountId::parse("c").unwrap()))
        };
        let asked = Redrive {
            action_id: &id,
            signal,
            by: "ops",
            receipt_id: Uuid::from_u128(2),
        };
        redrive(&account, &asked, NOW).unwrap()
    }

    fn name(tenant: Option<&Tenant>, action: Option<&Action>, signal: Option<&Signal>) -> String {
        let (plan, redriven) = decided(tenant, action, signal);
        match redriven {
            Redriven::Open => "return".to_owned(),
            Redriven::Reopened(state) => {
                let by = plan.drafts[0].payload.operation();
                let in_flight = plan.tenant.map(|tenant| tenant.in_flight);
                assert_eq!(plan.actions[0].state, state);
                format!("{by} {} {in_flight:?}", state.name())
            }
            stays => {
                assert!(plan.actions.is_empty() && plan.drafts.is_empty() && plan.tenant.is_none());
                format!("{stays:?}")
            }
        }
    }

    #[track_caller]
    fn check(places: u64, state: ActionState, resume: Option<ActionState>, expected: &str) {
        let action = action(state, resume);
        assert_eq!(
            name(Some(&tenant(places)), Some(&action), None),
            expected,
            "{state:?}"
        );
    }

    #[test]
    fn what_is_done_about_each_action() {
        use ActionState::{Escalated, Failed, Pending, Routed, Running, TimedOut};
        assert_eq!(name(Some(&tenant(1)), None, None), "return");
        for state in ActionState::ALL {
            let expected = match state {
                Escalated | Routed => "NothingToGoOnWith",
                state if state.is_final() => "AlreadyOver",
                _ => "return",
            };
            check(1, state, None, expected);
        }
        check(0, Escalated, Some(Pending), "action_redriven pending None");
        check(0, Routed, Some(Pending), "action_redriven pending None");
        check(1, Escalated, Some(TimedOut), "action_redriven timed_out Some(1)");
        check(1, Escalated, Some(Failed), "action_redriven failed Some(1)");
        check(0, Escalated, Some(TimedOut), "NoPlace");
        check(0, Running, None, "return");
    }

    #[test]
    fn who_is_gone_takes_nothing_up() {
        let resumes = action(ActionState::Escalated, Some(ActionState::TimedOut));
        let mut gone = tenant(1);
        gone.entitlements.clear();
        assert_eq!(name(Some(&gone), Some(&resumes), None), "EntitlementGone");
        gone.lifecycle = Lifecycle::Decommissioning;
        assert_eq!(name(Some(&gone), Some(&resumes), None), "NotActive");
        assert_eq!(name(None, Some(&resumes), None), "NotActive");
        assert_eq!(name(None, None, None), "NotActive");
        let complete = action(ActionState::Complete, None);
        assert_eq!(name(None, Some(&complete), None), "AlreadyOver");
    }

    /// A policy that was changed so that the action may run is the one that decides.
    #[test]
    fn what_was_routed_is_decided_by_the_policy_of_now() {
        let account_id = AccountId::parse("c").unwrap();
        let account = Account {
            tenant: Some(tenant(1)),
            ..Account::unknown(&Partition::of(&account_id))
        };
        for (state, expected) in [(ActionState::Routed, "h"), (ActionState::Escalated, "before")] {
            let action = Action {
                policy_hash: "before".to_owned(),
                ..action(state, Some(ActionState::Pending))
            };
            assert_eq!(signal(&account, &account_id, &action).policy_hash, expected);
        }
    }

    /// What nobody can say any more what it was to do, its letter may say.
    #[test]
    fn a_letter_knows_what_it_asked_for() {
        let forgotten = Action {
            parameters: None,
            ..action(ActionState::Escalated, Some(ActionState::TimedOut))
        };
        let tenant = tenant(1);
        assert_eq!(name(Some(&tenant), Some(&forgotten), None), "NothingToGoOnWith");
        let text = json!({
            "action_id": "a", "account_id": "c", "template": "t", "parameters": { "n": 1 }, "policy_hash": "h",
        });
        let signal = Signal::parse(&text.to_string()).unwrap();
        let (plan, _) = decided(Some(&tenant), Some(&forgotten), Some(&signal));
        assert_eq!(plan.actions[0].parameters, Some(signal.parameters));
    }
}
