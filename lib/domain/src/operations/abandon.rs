//! Ends, on record, actions that nobody will bring to their end: each is escalated, and its place is free again.

use jiff::Timestamp;
use uuid::Uuid;

use crate::action::{Action, ActionState, IllegalTransition, Transition};
use crate::signal::ActionId;
use crate::tenant::{Released, Tenant};
use crate::transaction::{Account, Plan};

/// Gives up those of the actions that are still in flight. Each comes with the id of the receipt that it leaves.
///
/// # Errors
/// [`IllegalTransition`] when one cannot be given up.
pub fn abandon(
    account: &Account,
    actions: &[(ActionId, Uuid)],
    error_code: &'static str,
    now: Timestamp,
) -> Result<Plan, IllegalTransition> {
    let Some(tenant) = &account.tenant else {
        return Ok(Plan::default());
    };
    let mut ending = Ending::of(tenant);
    for (id, receipt_id) in actions {
        let Some(action) = account.actions.get(id).filter(|action| action.state.in_flight()) else {
            continue;
        };
        let given_up = action.abandoned(error_code, *receipt_id, now)?;
        ending.end(action, given_up, *receipt_id, now);
    }
    Ok(ending.plan())
}

/// Actions of one tenant that end in one transaction, with the places that they leave.
pub(super) struct Ending<'a> {
    tenant: &'a Tenant,
    plan: Plan,
    released: Vec<Released>,
}

impl<'a> Ending<'a> {
    pub(super) fn of(tenant: &'a Tenant) -> Self {
        Self {
            tenant,
            plan: Plan::default(),
            released: Vec::new(),
        }
    }

    /// An action ends so; what it was before says whether it had a place.
    pub(super) fn end(&mut self, before: &Action, after: Transition, receipt_id: Uuid, now: Timestamp) {
        if before.state.in_flight() && after.action.state.is_final() {
            self.released.push(Released {
                entitlement_id: before.entitlement_id.clone(),
                completed: after.action.state == ActionState::Complete,
            });
        }
        let account_id = self.tenant.account_id.as_str();
        let draft = |payload| after.action.draft(account_id, receipt_id, payload, 0, now);
        self.plan.drafts.extend(after.receipt.map(draft));
        self.plan.actions.push(after.action);
    }

    /// An action is written as it is, without a receipt.
    pub(super) fn keep(&mut self, action: Action) {
        self.plan.actions.push(action);
    }

    pub(super) fn plan(self) -> Plan {
        let tenant = (!self.released.is_empty()).then(|| self.tenant.released(&self.released));
        Plan { tenant, ..self.plan }
    }
}
