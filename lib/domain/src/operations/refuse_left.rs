//! Refuses, on record, what stands on a queue that no governor is fed from any more.

use jiff::Timestamp;
use receipts::receipt::Draft;
use uuid::Uuid;

use crate::account::AccountId;
use crate::action::{Action, ActionState};
use crate::gate::RefusalCode;
use crate::names::printable;
use crate::signal::{ActionId, Signal};
use crate::transaction::{Account, Plan};

/// A signal that is left.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftSignal {
    /// The action it asks for.
    pub action_id: ActionId,
    /// The template it names, safe for a receipt.
    pub template: String,
    pub detail: String,
    pub receipt_id: Uuid,
}

impl LeftSignal {
    /// Reads a message of a queue; one that is no signal is known by its own id.
    #[must_use]
    pub fn read(message_id: &str, body: &str, detail: String, receipt_id: Uuid) -> Self {
        let (action_id, template) = match Signal::parse(body) {
            Ok(signal) => (signal.action_id, printable(&signal.template, 64)),
            Err(_) => (ActionId::of_message(message_id), String::new()),
        };
        Self {
            action_id,
            template,
            detail,
            receipt_id,
        }
    }
}

/// Refuses the signals whose actions have not begun.
#[must_use]
pub fn refuse_left(
    account: &Account,
    account_id: &AccountId,
    signals: &[LeftSignal],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    for signal in signals {
        let planned = plan
            .actions
            .iter()
            .any(|action: &Action| action.action_id == signal.action_id);
        let before = account.actions.get(&signal.action_id);
        if planned || before.is_some_and(|action| action.state != ActionState::Pending) {
            continue;
        }
        let (refused, payload) = Action::refused(
            before,
            signal.action_id.clone(),
            &signal.template,
            RefusalCode::Unavailable,
            &signal.detail,
            signal.receipt_id,
            now,
        );
        plan.actions.push(refused);
        plan.drafts
            .push(Draft::new(signal.receipt_id, account_id.as_str(), payload, now));
    }
    plan
}
