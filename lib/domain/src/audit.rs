//! Whether every action that a ledger tells of came to its end, and once.
//!
//! Follows the receipts of a ledger in order, then looks at the actions as the table has them. Holds the actions that are
//! still open, and sixteen bytes of each that is final.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use receipts::receipt::{Payload, Receipt};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::action::{Action, ActionState, LEASE_SECONDS, ROLLBACK_ATTEMPTS};

/// How long a message of a tenant's queue stays hidden after a delivery, in seconds: the time between two attempts.
const VISIBILITY_SECONDS: i64 = 30;

/// How long an action may be on its way: its claim, then every attempt to undo it, twice over for a slow queue.
#[must_use]
pub fn patience() -> SignedDuration {
    let attempts = i64::try_from(ROLLBACK_ATTEMPTS).unwrap_or(i64::MAX);
    let seconds = attempts
        .saturating_mul(VISIBILITY_SECONDS)
        .saturating_add(LEASE_SECONDS);
    SignedDuration::from_secs(seconds.saturating_mul(2))
}

/// The first action whose receipts do not add up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// Something happened to an action that was over.
    #[error(
        "receipt {receipt_id} at place {seq}: action {action_id:?} was final before; expected no `{found}` after that"
    )]
    AfterTheEnd {
        receipt_id: Uuid,
        seq: u64,
        action_id: String,
        found: &'static str,
    },
    /// An undo that undoes another receipt than the action's last one, or nothing.
    #[error(
        "receipt {receipt_id} at place {seq}: action {action_id:?} was undone: expected previous_action_receipt_id {}, found {found}",
        expected.map_or_else(|| "of a receipt about it".to_owned(), |id| id.to_string())
    )]
    Undone {
        receipt_id: Uuid,
        seq: u64,
        action_id: String,
        /// The last receipt about the action, if there is one that can be undone.
        expected: Option<Uuid>,
        /// What the receipt names.
        found: Uuid,
    },
    /// A person's word about an action that was not theirs to decide.
    #[error(
        "receipt {receipt_id} at place {seq}: expected action {action_id:?} to be escalated or routed before `{found}`"
    )]
    NotEscalated {
        receipt_id: Uuid,
        seq: u64,
        action_id: String,
        found: &'static str,
    },
    /// Begun, and never brought to an end.
    #[error(
        "action {action_id:?} has no final receipt: expected one soon after receipt {receipt_id} `{found}` at place {seq}"
    )]
    Open {
        receipt_id: Uuid,
        seq: u64,
        action_id: String,
        found: &'static str,
    },
    /// Final in the table, and the ledger does not say how.
    #[error(
        "action {action_id:?} is {found} in the table: expected a final receipt in the ledger, found none"
    )]
    Unreceipted { action_id: String, found: String },
    /// Final in both, and not the same.
    #[error("action {action_id:?} is {found} in the table: expected {expected}, as the ledger says")]
    Differs {
        action_id: String,
        expected: &'static str,
        found: String,
    },
    /// Final in the ledger, and not in the table.
    #[error(
        "action {action_id:?} has a final receipt in the ledger: expected a final state in the table, found {found}"
    )]
    NotFinal { action_id: String, found: String },
    /// Claimed or begun long ago, and nobody finished it.
    #[error("action {action_id:?} is {found} in the table since {since}: expected an end within {} s", patience().as_secs())]
    Stuck {
        action_id: String,
        found: String,
        /// When its claim ended.
        since: Timestamp,
    },
}

/// What was found of actions, when all of it was good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Actions {
    /// Actions with a final receipt.
    pub finished: u64,
    /// Actions that are on their way, and not for too long.
    pub in_progress: u64,
}

/// The operation by which an action is taken up again.
const REDRIVEN: &str = "action_redriven";

struct Last {
    receipt_id: Uuid,
    seq: u64,
    timestamp: Timestamp,
    operation: &'static str,
    /// Refused since: by the gate, or because storage failed while it was to be undone.
    refused: bool,
}

/// The receipts about actions, as far as they were read.
#[derive(Default)]
pub struct ActionAudit {
    open: BTreeMap<String, Last>,
    /// With the state that the last receipt says.
    finished: HashMap<u128, ActionState>,
    /// Those of the finished that wait for a person.
    escalated: HashSet<u128>,
    /// Refused, and nothing else heard of: while storage fails, the repeat of a signal is refused whose action may be
    /// running, and ends afterwards.
    refused: HashSet<u128>,
}

/// When the last receipt about an action was made, by its id. A person may have decided while the ledger was being read.
fn last_heard_of(action: &Action) -> Timestamp {
    let id = action.last_receipt().and_then(|id| id.get_timestamp());
    let at = id.and_then(|id| {
        let (seconds, nanos) = id.to_unix();
        Timestamp::new(i64::try_from(seconds).ok()?, i32::try_from(nanos).ok()?).ok()
    });
    at.unwrap_or(Timestamp::MIN)
}

/// Enough of a digest to tell a million actions apart.
fn digest(action_id: &str) -> u128 {
    let digest: [u8; 32] = Sha256::digest(action_id.as_bytes()).into();
    let (half, _) = digest.split_at(16);
    half.try_into().map_or(0, u128::from_be_bytes)
}

impl ActionAudit {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next receipt of the ledger.
    ///
    /// # Errors
    /// [`ActionError`] when it is about an action and does not follow from the receipts before.
    pub fn receipt(&mut self, receipt: &Receipt) -> Result<(), ActionError> {
        let (action_id, ended) = match &receipt.payload {
            // A repeat of a signal may be refused while its action runs or is over: nothing happens to the action then.
            Payload::ActionRefused { action_id, .. } => {
                let digest = digest(action_id);
                // One that a person had taken up again meets the gate again.
                let open = self.open.get_mut(action_id);
                let redriven = open.as_ref().is_none_or(|last| last.operation == REDRIVEN);
                if redriven && !self.finished.contains_key(&digest) {
                    self.refused.insert(digest);
                    if let Some(last) = open {
                        last.refused = true;
                    }
                }
                return Ok(());
            }
            Payload::ActionRedriven { action_id, .. } => {
                self.persons_word(action_id, receipt)?;
                self.finished.remove(&digest(action_id));
                (action_id, None)
            }
            Payload::ActionResolved { action_id, .. } => {
                self.persons_word(action_id, receipt)?;
                self.finished.insert(digest(action_id), ActionState::Resolved);
                return Ok(());
            }
            Payload::ActionComplete(outcome) => (&outcome.action_id, Some(ActionState::Complete)),
            Payload::ActionRouted(outcome) => (&outcome.action_id, Some(ActionState::Routed)),
            Payload::ActionRolledBack {
                action_id,
                previous_action_receipt_id: found,
                ..
            } => {
                let expected = self.open.get(action_id).map(|last| last.receipt_id);
                if expected != Some(*found) && !self.finished.contains_key(&digest(action_id)) {
                    return Err(ActionError::Undone {
                        receipt_id: receipt.receipt_id,
                        seq: receipt.seq,
                        action_id: action_id.clone(),
                        expected,
                        found: *found,
                    });
                }
                (action_id, Some(ActionState::RolledBack))
            }
            Payload::ActionTimeout { action_id, .. } => (action_id, None),
            Payload::ActionFailed {
                action_id,
                is_recoverable,
                ..
            } => (action_id, (!is_recoverable).then_some(ActionState::Escalated)),
            _ => return Ok(()),
        };
        if self.finished.contains_key(&digest(action_id)) {
            return Err(ActionError::AfterTheEnd {
                receipt_id: receipt.receipt_id,
                seq: receipt.seq,
                action_id: action_id.clone(),
                found: receipt.payload.operation(),
            });
        }
        self.refused.remove(&digest(action_id));
        if ended.is_some_and(ActionState::is_a_persons) {
            self.escalated.insert(digest(action_id));
        }
        if let Some(state) = ended {
            self.open.remove(action_id);
            self.finished.insert(digest(action_id), state);
        } else {
            let last = Last {
                receipt_id: receipt.receipt_id,
                seq: receipt.seq,
                timestamp: receipt.timestamp,
                operation: receipt.payload.operation(),
                refused: false,
            };
            self.open.insert(action_id.clone(), last);
        }
        Ok(())
    }

    /// A person decides about an action that was escalated or routed, and once.
    fn persons_word(&mut self, action_id: &str, receipt: &Receipt) -> Result<(), ActionError> {
        if self.escalated.remove(&digest(action_id)) {
            return Ok(());
        }
        Err(ActionError::NotEscalated {
            receipt_id: receipt.receipt_id,
            seq: receipt.seq,
            action_id: action_id.to_owned(),
            found: receipt.payload.operation(),
        })
    }

    /// Holds an action of the table, read after the receipts, against them.
    ///
    /// `read_until` is when reading the receipts began: what happened later may not be among them.
    ///
    /// # Errors
    /// [`ActionError`] when table and ledger contradict each other, or the action is stuck.
    pub fn action(&self, action: &Action, read_until: Timestamp) -> Result<(), ActionError> {
        let action_id = action.action_id.as_str();
        let digest = digest(action_id);
        let ended = self.finished.get(&digest).copied();
        let in_ledger = ended.is_some();
        let found = format!("{:?}", action.state).to_lowercase();
        let recent = |since: Timestamp| read_until.duration_since(since) < patience();
        if action.state == ActionState::Pending && (!in_ledger || self.escalated.contains(&digest)) {
            // Its signal waits on the queue, or for a place; what is delivered too often is escalated.
            return Ok(());
        }
        if let Some(expected) = ended.filter(|_| action.state.is_final())
            && expected != action.state
            && !(self.escalated.contains(&digest) && recent(last_heard_of(action)))
        {
            return Err(ActionError::Differs {
                action_id: action_id.to_owned(),
                expected: expected.name(),
                found: action.state.name().to_owned(),
            });
        }
        let refused = action.state == ActionState::Refused && self.refused.contains(&digest);
        match (action.state.is_final(), in_ledger) {
            (true, false) if !refused && !recent(action.lease_until) => Err(ActionError::Unreceipted {
                action_id: action_id.to_owned(),
                found,
            }),
            // Taken up again since the receipts were read.
            (false, true) if self.escalated.contains(&digest) && recent(action.lease_until) => Ok(()),
            (false, true) => Err(ActionError::NotFinal {
                action_id: action_id.to_owned(),
                found,
            }),
            (false, false) if !recent(action.lease_until) => Err(ActionError::Stuck {
                action_id: action_id.to_owned(),
                found,
                since: action.lease_until,
            }),
            (true, _) | (false, false) => Ok(()),
        }
    }

    /// What remains when all was read.
    ///
    /// # Errors
    /// [`ActionError::Open`] for the first action, in the order of their last receipts, that is on its way for too long.
    pub fn end(&self, now: Timestamp) -> Result<Actions, ActionError> {
        // What was taken up again may wait for a place, as long as it takes; the table tells when it is stuck.
        let waits = |last: &&Last| last.refused || last.operation == REDRIVEN;
        let late = |last: &&Last| !waits(last) && now.duration_since(last.timestamp) >= patience();
        let first = self
            .open
            .iter()
            .filter(|(_, last)| late(last))
            .min_by_key(|(_, last)| last.seq);
        if let Some((action_id, last)) = first {
            return Err(ActionError::Open {
                receipt_id: last.receipt_id,
                seq: last.seq,
                action_id: action_id.clone(),
                found: last.operation,
            });
        }
        Ok(Actions {
            finished: (self.finished.len() + self.refused.len()) as u64,
            in_progress: self.open.values().filter(|last| !last.refused).count() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use receipts::receipt::{ActionOutcome, Status};

    use super::*;
    use crate::signal::ActionId;

    const BEGIN: Timestamp = Timestamp::UNIX_EPOCH;

    fn outcome() -> ActionOutcome {
        ActionOutcome {
            action_id: "a".to_owned(),
            template: "t".to_owned(),
            code: "c".to_owned(),
        }
    }

    fn complete() -> Payload {
        Payload::ActionComplete(outcome())
    }

    fn timeout() -> Payload {
        Payload::ActionTimeout {
            action_id: "a".to_owned(),
            timeout_ms: 500,
        }
    }

    fn failed(is_recoverable: bool) -> Payload {
        Payload::ActionFailed {
            action_id: "a".to_owned(),
            error_code: "E".to_owned(),
            is_recoverable,
        }
    }

    fn refused() -> Payload {
        Payload::ActionRefused {
            action_id: "a".to_owned(),
            template: "t".to_owned(),
            code: "c".to_owned(),
            detail: None,
            rules: vec![],
        }
    }

    fn redriven() -> Payload {
        Payload::ActionRedriven {
            action_id: "a".to_owned(),
            previous_action_receipt_id: Uuid::nil(),
            who: "ops".to_owned(),
        }
    }

    fn resolved() -> Payload {
        Payload::ActionResolved {
            action_id: "a".to_owned(),
            previous_action_receipt_id: Uuid::nil(),
            who: "ops".to_owned(),
            note: "by hand".to_owned(),
        }
    }

    fn undone(previous: u128) -> Payload {
        Payload::ActionRolledBack {
            action_id: "a".to_owned(),
            previous_action_receipt_id: Uuid::from_u128(previous),
            rollback_duration_ms: 1,
        }
    }

    /// Receipt number n has the id n.
    fn follow(payloads: &[Payload]) -> Result<ActionAudit, ActionError> {
        let mut audit = ActionAudit::new();
        for (seq, payload) in payloads.iter().enumerate() {
            let receipt = Receipt {
                receipt_id: Uuid::from_u128(seq as u128),
                seq: seq as u64,
                timestamp: BEGIN,
                occurred_at: BEGIN,
                account_id: "x".to_owned(),
                status: Status::Success,
                duration_ms: 0,
                policy_hash: None,
                prev_hash: String::new(),
                key_id: String::new(),
                signature: String::new(),
                payload: payload.clone(),
            };
            audit.receipt(&receipt)?;
        }
        Ok(audit)
    }

    #[track_caller]
    fn check(payloads: &[Payload], seconds_later: i64, expected: Result<(u64, u64), &str>) {
        let now = BEGIN + SignedDuration::from_secs(seconds_later);
        let found = follow(payloads)
            .and_then(|audit| audit.end(now))
            .map(|actions| (actions.finished, actions.in_progress));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn actions_end_once() {
        let late = patience().as_secs();
        check(&[], 0, Ok((0, 0)));
        check(&[complete()], late, Ok((1, 0)));
        check(&[failed(false)], late, Ok((1, 0)));
        check(&[timeout(), undone(0)], late, Ok((1, 0)));
        check(&[failed(true), undone(0)], late, Ok((1, 0)));
        check(&[failed(true), failed(false)], late, Ok((1, 0)));
        check(&[complete(), refused(), refused()], late, Ok((1, 0)));
        check(&[timeout()], late - 1, Ok((0, 1)));
        check(
            &[timeout()],
            late,
            Err(
                "has no final receipt: expected one soon after receipt 00000000-0000-0000-0000-000000000000 `action_timeout` at place 0",
            ),
        );
        check(&[failed(true), refused()], late, Err("has no final receipt"));
        check(
            &[complete(), complete()],
            0,
            Err("was final before; expected no `action_complete`"),
        );
        check(&[refused()], late, Ok((1, 0)));
        check(&[refused(), complete()], late, Ok((1, 0)));
        check(&[refused(), timeout(), undone(1)], late, Ok((1, 0)));
        check(&[timeout(), undone(0), undone(1)], 0, Err("was final before"));
        check(
            &[timeout(), undone(7)],
            0,
            Err(
                "expected previous_action_receipt_id 00000000-0000-0000-0000-000000000000, found 00000000-0000-0000-0000-000000000007",
            ),
        );
        check(
            &[undone(0)],
            0,
            Err("expected previous_action_receipt_id of a receipt about it"),
        );
    }

    #[test]
    fn a_person_decides_about_escalated_actions_only() {
        let late = patience().as_secs();
        let escalated = || failed(false);
        check(&[escalated(), resolved()], late, Ok((1, 0)));
        check(&[escalated(), redriven(), undone(1)], late, Ok((1, 0)));
        check(&[escalated(), redriven(), complete()], late, Ok((1, 0)));
        check(&[escalated(), redriven(), refused()], late, Ok((1, 0)));
        check(&[escalated(), redriven()], late, Ok((0, 1)));
        // Refused while storage failed, and undone afterwards.
        check(&[escalated(), redriven(), refused(), undone(1)], late, Ok((1, 0)));
        check(
            &[escalated(), redriven(), timeout()],
            late,
            Err("has no final receipt"),
        );
        check(
            &[escalated(), redriven(), escalated(), resolved()],
            late,
            Ok((1, 0)),
        );
        for word in [resolved(), redriven()] {
            let never = "to be escalated or routed before";
            check(std::slice::from_ref(&word), 0, Err(never));
            check(&[complete(), word.clone()], 0, Err(never));
            check(&[failed(true), word.clone()], 0, Err(never));
            check(&[escalated(), resolved(), word], 0, Err(never));
        }
        let routed = || Payload::ActionRouted(outcome());
        check(&[routed()], late, Ok((1, 0)));
        check(&[routed(), resolved()], late, Ok((1, 0)));
        check(&[routed(), redriven(), complete()], late, Ok((1, 0)));
        check(&[routed(), redriven(), routed(), resolved()], late, Ok((1, 0)));
        check(&[routed(), redriven(), refused()], late, Ok((1, 0)));
        check(&[routed(), complete()], 0, Err("was final before"));
        check(&[escalated(), complete()], 0, Err("was final before"));
        check(&[escalated(), resolved(), complete()], 0, Err("was final before"));
    }

    /// The state that the table holds is the one that the ledger tells of.
    #[test]
    fn which_end_it_came_to_is_compared() {
        let id = ActionId::try_from("a".to_owned()).unwrap();
        let late = BEGIN + patience() + patience();
        let at = |when: Timestamp| {
            let seconds = when.as_second().unsigned_abs();
            Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0))
        };
        let ends = [
            (vec![complete()], ActionState::Complete),
            (vec![timeout(), undone(0)], ActionState::RolledBack),
            (vec![failed(false)], ActionState::Escalated),
            (vec![failed(false), resolved()], ActionState::Resolved),
            (vec![Payload::ActionRouted(outcome())], ActionState::Routed),
            (vec![refused()], ActionState::Refused),
            (vec![complete(), refused()], ActionState::Complete),
            (vec![failed(false), redriven(), refused()], ActionState::Refused),
            (vec![failed(false), redriven(), complete()], ActionState::Complete),
        ];
        for (payloads, expected) in &ends {
            for state in ActionState::ALL.into_iter().filter(|state| state.is_final()) {
                for heard in [BEGIN, late] {
                    let action = Action {
                        state,
                        receipts: vec![at(heard)],
                        ..Action::pending(id.clone(), "t", "", BEGIN)
                    };
                    let found = follow(payloads).unwrap().action(&action, late);
                    let moved_on = expected.is_a_persons() && heard == late;
                    assert_eq!(
                        found.is_ok(),
                        state == *expected || moved_on,
                        "{state:?} where the ledger says {expected:?}: {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_table_and_the_ledger_agree() {
        let id = ActionId::try_from("a".to_owned()).unwrap();
        let late = BEGIN + patience();
        let check = |payloads: &[Payload], state: ActionState, at: Timestamp, expected: &str| {
            let action = Action {
                state,
                ..Action::pending(id.clone(), "t", "", BEGIN)
            };
            let found = follow(payloads).unwrap().action(&action, at);
            let found = found.map_or_else(|error| error.to_string(), |()| "good".to_owned());
            assert!(found.contains(expected), "{found:?} does not say {expected:?}");
        };
        check(&[complete()], ActionState::Complete, late, "good");
        check(
            &[],
            ActionState::Complete,
            late,
            "is complete in the table: expected a final receipt",
        );
        // Done while the ledger was being read.
        check(&[], ActionState::Complete, BEGIN, "good");
        check(
            &[complete()],
            ActionState::Running,
            BEGIN,
            "expected a final state in the table, found running",
        );
        check(&[], ActionState::Running, BEGIN, "good");
        // It waits on the queue, for as long as it takes.
        check(&[], ActionState::Pending, late, "good");
        check(&[complete()], ActionState::Pending, late, "found pending");
        // A person had it taken up again while the ledger was being read.
        check(&[failed(false)], ActionState::Pending, late, "good");
        check(&[failed(false)], ActionState::TimedOut, BEGIN, "good");
        check(&[failed(false)], ActionState::TimedOut, late, "found timedout");
        check(
            &[],
            ActionState::Running,
            late,
            "is running in the table since 1970-01-01T00:00:00Z: expected an end within 340 s",
        );
    }
}
