//! Puts dead letters on record: what they ask for is escalated, what is no signal is refused. The letters stay.

use std::collections::BTreeSet;

use jiff::Timestamp;
use uuid::Uuid;

use super::abandon::Ending;
use crate::account::AccountId;
use crate::action::{Action, DEAD_LETTERED, IllegalTransition, Transition};
use crate::gate::RefusalCode;
use crate::names::printable;
use crate::signal::{ActionId, Signal};
use crate::sweep::{Letter, action_of_letter, letter};
use crate::tenant::{Lifecycle, Tenant};
use crate::transaction::{Account, Plan};

/// A message of a dead-letter queue.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The action it asks for or, of one that is no signal, the one that it is kept as.
    pub action_id: ActionId,
    /// The signal, or what is wrong with it.
    signal: Result<Signal, String>,
    receipt_id: Uuid,
}

impl DeadLetter {
    /// Reads a message of an account's own queue.
    #[must_use]
    pub fn read(message_id: &str, body: &str, account_id: Option<&AccountId>, receipt_id: Uuid) -> Self {
        let signal = match Signal::parse(body) {
            Ok(signal) if account_id == Some(&signal.account_id) => Ok(signal),
            Ok(_) => Err("signal field `account_id`: is not the tenant of this queue".to_owned()),
            Err(e) => Err(printable(&e.for_the_record(), 512)),
        };
        let action_id = match &signal {
            Ok(signal) => signal.action_id.clone(),
            Err(_) => ActionId::of_message(message_id),
        };
        Self {
            action_id,
            signal,
            receipt_id,
        }
    }

    /// The action before, and once its letter is on record; `None` where there is nothing to do.
    fn settled(
        &self,
        known: Option<&Action>,
        tenant: &Tenant,
        now: Timestamp,
    ) -> Result<Option<(Action, Transition)>, IllegalTransition> {
        match (letter(self.signal.is_ok(), known, now), &self.signal) {
            (Letter::Escalate, Ok(signal)) => {
                let before = action_of_letter(signal, known, tenant, now);
                let given_up = before.abandoned(DEAD_LETTERED, self.receipt_id, now)?;
                Ok(given_up.receipt.is_some().then_some((before, given_up)))
            }
            (Letter::Refuse, Err(detail)) => {
                let (id, code) = (self.action_id.clone(), RefusalCode::MalformedSignal);
                let (action, payload) = Action::refused(known, id, "", code, detail, self.receipt_id, now);
                let refused = Transition {
                    action: action.clone(),
                    receipt: Some(payload),
                };
                Ok(Some((known.cloned().unwrap_or(action), refused)))
            }
            (Letter::Known | Letter::Busy | Letter::Escalate | Letter::Refuse, _) => Ok(None),
        }
    }
}

/// Puts letters of the queue on record, as far as it is still the tenant's.
///
/// # Errors
/// [`IllegalTransition`] when an action cannot be given up.
pub fn record_dead_letters(
    account: &Account,
    queue_url: &str,
    letters: &[DeadLetter],
    now: Timestamp,
) -> Result<Plan, IllegalTransition> {
    let theirs = |tenant: &&Tenant| {
        tenant.lifecycle == Lifecycle::Active && tenant.resources.dead_letter_queue_url == queue_url
    };
    let Some(tenant) = account.tenant.as_ref().filter(theirs) else {
        return Ok(Plan::default());
    };
    let mut ending = Ending::of(tenant);
    let mut seen = BTreeSet::new();
    for letter in letters.iter().filter(|letter| seen.insert(&letter.action_id)) {
        let known = account.actions.get(&letter.action_id);
        if let Some((before, after)) = letter.settled(known, tenant, now)? {
            ending.end(&before, after, letter.receipt_id, now);
        }
    }
    Ok(ending.plan())
}
