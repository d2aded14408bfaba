//! What a sweep does about actions that nobody is at work on: each is nudged, and in the end given up.

use jiff::Timestamp;
use uuid::Uuid;

use super::abandon::Ending;
use crate::action::{Action, IllegalTransition, STUCK};
use crate::sweep::Stuck;
use crate::transaction::{Account, Plan};

/// An action that is stuck.
#[derive(Debug, Clone, PartialEq)]
pub struct StuckAction {
    /// As the sweep found it.
    pub action: Action,
    pub due: Stuck,
    /// Id of the receipt that it leaves, should it be given up.
    pub receipt_id: Uuid,
}

/// Notes which actions were nudged, and gives up those for which it is time. What somebody took up meanwhile is left to them.
///
/// # Errors
/// [`IllegalTransition`] when one cannot be given up.
pub fn wake(account: &Account, stuck: &[StuckAction], now: Timestamp) -> Result<Plan, IllegalTransition> {
    let Some(tenant) = &account.tenant else {
        return Ok(Plan::default());
    };
    let mut ending = Ending::of(tenant);
    for StuckAction {
        action: read,
        due,
        receipt_id,
    } in stuck
    {
        let same = |now: &&Action| now.owner == read.owner && now.state == read.state;
        let Some(action) = account.actions.get(&read.action_id).filter(same) else {
            continue;
        };
        match due {
            Stuck::Nudge => ending.keep(Action {
                nudged_at: Some(now),
                ..action.clone()
            }),
            Stuck::Escalate => {
                let given_up = action.abandoned(STUCK, *receipt_id, now)?;
                ending.end(action, given_up, *receipt_id, now);
            }
        }
    }
    Ok(ending.plan())
}
