//! An action's machine. `next(state, event)` is exhaustive: a pair without meaning is an [`IllegalTransition`].
//!
//! | state | claimed | handler ok | handler failed | deadline | lease expired | undo ok | undo failed |
//! |---|---|---|---|---|---|---|---|
//! | pending | running | – | – | – | – | – | – |
//! | running | – | complete | failed, or escalated if unrecoverable | timed_out | timed_out | – | – |
//! | timed_out, failed | – | – | – | – | – | rolled_back | same; escalated when the budget is spent |
//! | complete, rolled_back, escalated, refused, routed | – | – | – | – | – | – | – |
//!
//! `running`, `timed_out` and `failed` also become `escalated` when an action is abandoned: its tenant leaves, or nobody
//! can say any more what it was to do. `pending` also goes straight to `refused` or `routed` when the gate says so.

use jiff::Timestamp;
use receipts::receipt::{ActionOutcome, Payload};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::account::EntitlementId;
use crate::gate::{RefusalCode, RouteCode};
use crate::signal::ActionId;

/// How long a handler has, in milliseconds, from the moment its call starts.
pub const DEADLINE_MS: u64 = 500;
/// How long one rollback call has, in milliseconds.
pub const ROLLBACK_BUDGET_MS: u64 = 2_000;
/// Rollback calls before an action is escalated.
pub const ROLLBACK_ATTEMPTS: u64 = 5;
/// How long a claim holds, in seconds: longer than an invocation of the governor lives (15 s), shorter than a message
/// stays hidden (30 s), so that a redelivery after a crash finds the claim expired.
pub const LEASE_SECONDS: i64 = 20;

/// The key by which a handler tells a repeated call from another: `<128 bits of SHA-256 of the account id>-<action id>`,
/// at most 97 characters. Action ids are each tenant's own, and handlers serve all tenants.
#[must_use]
pub fn idempotency_key(account_id: &str, action_id: &str) -> String {
    let digest = Sha256::digest(account_id.as_bytes());
    let account = u128::from_be_bytes(digest.first_chunk().copied().unwrap_or_default());
    format!("{account:032x}-{action_id}")
}

/// Where an action stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionState {
    /// Asked for, nothing done.
    Pending,
    /// Claimed by a governor; the handler may be at work.
    Running,
    /// The handler said it is done.
    Complete,
    /// The handler said no, recoverably; undo is due.
    Failed,
    /// The handler did not answer in time; undo is due.
    TimedOut,
    /// Undone.
    RolledBack,
    /// Neither done nor undone: a person has to look.
    Escalated,
    /// The gate said no.
    Refused,
    /// The gate sent it to a person.
    Routed,
}

impl ActionState {
    /// Every state, for tables.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Running,
        Self::Complete,
        Self::Failed,
        Self::TimedOut,
        Self::RolledBack,
        Self::Escalated,
        Self::Refused,
        Self::Routed,
    ];

    /// Whether nothing more will happen to the action.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Complete | Self::RolledBack | Self::Escalated | Self::Refused | Self::Routed => true,
            Self::Pending | Self::Running | Self::Failed | Self::TimedOut => false,
        }
    }

    /// Whether the handler's work has to be undone.
    #[must_use]
    pub fn undo_due(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut)
    }
}

/// An action as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Which action.
    pub action_id: ActionId,
    /// Template of the policy it runs.
    pub template: String,
    /// Where it stands.
    pub state: ActionState,
    /// Hash of the enforcer that allowed it.
    pub policy_hash: String,
    /// Whose claim is in force: one id for each claim.
    pub owner: Uuid,
    /// When the claim ends and another governor may take over.
    pub lease_until: Timestamp,
    /// When the action was first claimed, refused or routed.
    pub started_at: Timestamp,
    /// Rollback calls made.
    pub rollback_attempts: u64,
    /// The last receipt about this action.
    pub last_receipt_id: Option<Uuid>,
    /// The entitlement it runs under; none for what was refused or routed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement_id: Option<EntitlementId>,
    /// What it was asked for with, kept until it is final: undoing it needs them, and its signal may be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
    /// When its signal was put on the queue again because nobody went on with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nudged_at: Option<Timestamp>,
}

/// What happens to an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionEvent {
    /// The gate said no.
    Refused {
        /// Why.
        code: RefusalCode,
        /// For people.
        detail: Option<String>,
        /// Rules that decided, when policy did.
        rules: Vec<String>,
    },
    /// The gate sent it to a person.
    Routed {
        /// Why.
        code: RouteCode,
    },
    /// A governor claimed it.
    Claimed,
    /// The handler answered 2xx.
    HandlerOk,
    /// The handler answered otherwise, or could not be reached.
    HandlerFailed {
        /// Its error code, or ours for a transport error.
        error_code: String,
        /// Whether undoing it makes the world whole.
        recoverable: bool,
    },
    /// The handler did not answer within the deadline.
    DeadlineExceeded,
    /// The claim ended without an outcome.
    LeaseExpired,
    /// The rollback route answered 2xx.
    UndoOk {
        /// How long the call took, in milliseconds.
        rollback_duration_ms: u64,
    },
    /// The rollback route answered otherwise, or not in time.
    UndoFailed,
    /// Nobody will go on with it: a person has to look.
    Abandoned {
        /// Why, as a machine-readable code.
        error_code: &'static str,
    },
}

/// An event that has no meaning in a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an action that is {state:?} has no transition for {event:?}")]
pub struct IllegalTransition {
    /// Where the action stands.
    pub state: ActionState,
    /// What happened.
    pub event: ActionEvent,
}

/// What follows from an event: the next state and the receipt it leaves, if it is one that leaves one.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The action afterwards.
    pub action: Action,
    /// What to put on record.
    pub receipt: Option<Payload>,
}

impl Action {
    /// A fresh action, not yet claimed.
    #[must_use]
    pub fn pending(action_id: ActionId, template: &str, policy_hash: &str, now: Timestamp) -> Self {
        Self {
            action_id,
            template: template.to_owned(),
            state: ActionState::Pending,
            policy_hash: policy_hash.to_owned(),
            owner: Uuid::nil(),
            lease_until: now,
            started_at: now,
            rollback_attempts: 0,
            last_receipt_id: None,
            entitlement_id: None,
            parameters: None,
            nudged_at: None,
        }
    }

    /// An action that is refused without having been begun, and what is put on record.
    #[must_use]
    pub fn refused(
        action_id: ActionId,
        template: &str,
        code: RefusalCode,
        detail: &str,
        receipt_id: Uuid,
        now: Timestamp,
    ) -> (Self, Payload) {
        let payload = Payload::ActionRefused {
            action_id: action_id.as_str().to_owned(),
            template: template.to_owned(),
            code: code.name().to_owned(),
            detail: Some(detail.to_owned()),
            rules: Vec::new(),
        };
        let action = Self {
            state: ActionState::Refused,
            last_receipt_id: Some(receipt_id),
            ..Self::pending(action_id, template, "", now)
        };
        (action, payload)
    }

    /// The action in the hands of `owner` until `lease_until`.
    #[must_use]
    pub fn owned_by(&self, owner: Uuid, lease_until: Timestamp) -> Self {
        Self {
            owner,
            lease_until,
            ..self.clone()
        }
    }

    /// The action after an event. `receipt_id` names the receipt this event leaves, if any.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event has no meaning now.
    pub fn next(&self, event: &ActionEvent, receipt_id: Uuid) -> Result<Transition, IllegalTransition> {
        let id = || self.action_id.as_str().to_owned();
        let failed = |code: &str, is_recoverable: bool| Payload::ActionFailed {
            action_id: id(),
            error_code: code.to_owned(),
            is_recoverable,
        };
        let outcome = |code: &str| ActionOutcome {
            action_id: id(),
            template: self.template.clone(),
            code: code.to_owned(),
        };
        let timeout = || Payload::ActionTimeout {
            action_id: id(),
            timeout_ms: DEADLINE_MS,
        };
        let attempts = self.rollback_attempts.saturating_add(1);
        let (state, receipt) = match (self.state, event) {
            (ActionState::Pending, ActionEvent::Refused { code, detail, rules }) => (
                ActionState::Refused,
                Some(Payload::ActionRefused {
                    action_id: id(),
                    template: self.template.clone(),
                    code: code.name().to_owned(),
                    detail: detail.clone(),
                    rules: rules.clone(),
                }),
            ),
            (ActionState::Pending, ActionEvent::Routed { code }) => (
                ActionState::Routed,
                Some(Payload::ActionRouted(outcome(code.name()))),
            ),
            (ActionState::Pending, ActionEvent::Claimed) => (ActionState::Running, None),
            (ActionState::Running, ActionEvent::HandlerOk) => (
                ActionState::Complete,
                Some(Payload::ActionComplete(outcome("COMPLETE"))),
            ),
            (
                ActionState::Running,
                ActionEvent::HandlerFailed {
                    error_code,
                    recoverable: true,
                },
            ) => (ActionState::Failed, Some(failed(error_code, true))),
            (
                ActionState::Running,
                ActionEvent::HandlerFailed {
                    error_code,
                    recoverable: false,
                },
            ) => (ActionState::Escalated, Some(failed(error_code, false))),
            // An expired claim says as little about the handler's work as a missed deadline does: undo it.
            (ActionState::Running, ActionEvent::DeadlineExceeded | ActionEvent::LeaseExpired) => {
                (ActionState::TimedOut, Some(timeout()))
            }
            (ActionState::Failed | ActionState::TimedOut, ActionEvent::UndoOk { rollback_duration_ms }) => (
                ActionState::RolledBack,
                Some(Payload::ActionRolledBack {
                    action_id: id(),
                    previous_action_receipt_id: self.last_receipt_id.unwrap_or_default(),
                    rollback_duration_ms: *rollback_duration_ms,
                }),
            ),
            (ActionState::Failed | ActionState::TimedOut, ActionEvent::UndoFailed) => {
                if attempts >= ROLLBACK_ATTEMPTS {
                    (ActionState::Escalated, Some(failed("ROLLBACK_EXHAUSTED", false)))
                } else {
                    (self.state, None)
                }
            }
            (
                ActionState::Running | ActionState::Failed | ActionState::TimedOut,
                ActionEvent::Abandoned { error_code },
            ) => (ActionState::Escalated, Some(failed(error_code, false))),
            (
                ActionState::Pending,
                ActionEvent::Abandoned { .. }
                | ActionEvent::HandlerOk
                | ActionEvent::HandlerFailed { .. }
                | ActionEvent::DeadlineExceeded
                | ActionEvent::LeaseExpired
                | ActionEvent::UndoOk { .. }
                | ActionEvent::UndoFailed,
            )
            | (
                ActionState::Running,
                ActionEvent::Refused { .. }
                | ActionEvent::Routed { .. }
                | ActionEvent::Claimed
                | ActionEvent::UndoOk { .. }
                | ActionEvent::UndoFailed,
            )
            | (
                ActionState::Failed | ActionState::TimedOut,
                ActionEvent::Refused { .. }
                | ActionEvent::Routed { .. }
                | ActionEvent::Claimed
                | ActionEvent::HandlerOk
                | ActionEvent::HandlerFailed { .. }
                | ActionEvent::DeadlineExceeded
                | ActionEvent::LeaseExpired,
            )
            | (
                ActionState::Complete
                | ActionState::RolledBack
                | ActionState::Escalated
                | ActionState::Refused
                | ActionState::Routed,
                _,
            ) => {
                return Err(IllegalTransition {
                    state: self.state,
                    event: event.clone(),
                });
            }
        };
        let undo_tried = matches!(event, ActionEvent::UndoOk { .. } | ActionEvent::UndoFailed);
        let action = Self {
            state,
            rollback_attempts: if undo_tried {
                attempts
            } else {
                self.rollback_attempts
            },
            last_receipt_id: if receipt.is_some() {
                Some(receipt_id)
            } else {
                self.last_receipt_id
            },
            parameters: self.parameters.clone().filter(|_| !state.is_final()),
            ..self.clone()
        };
        Ok(Transition { action, receipt })
    }
}

/// What to do about an action that a signal asks for, given what the table knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Never seen: to the gate.
    New,
    /// Final: acknowledge the signal, change nothing.
    Done,
    /// Another governor's claim is in force: back to the queue.
    Busy,
    /// A claim ended without an outcome, or undo is due: take over and undo.
    Undo,
}

/// How an action stands at `now`.
#[must_use]
pub fn standing(action: Option<&Action>, now: Timestamp) -> Standing {
    let Some(action) = action else {
        return Standing::New;
    };
    match action.state {
        ActionState::Pending => Standing::New,
        state if state.is_final() => Standing::Done,
        _ if now < action.lease_until => Standing::Busy,
        _ => Standing::Undo,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn action(state: ActionState) -> Action {
        let id = ActionId::try_from("a-1".to_owned()).unwrap();
        Action {
            state,
            ..Action::pending(id, "restart-service", "00", Timestamp::UNIX_EPOCH)
        }
    }

    fn events() -> Vec<(&'static str, ActionEvent)> {
        vec![
            (
                "refused",
                ActionEvent::Refused {
                    code: RefusalCode::Denied,
                    detail: None,
                    rules: vec![],
                },
            ),
            (
                "routed",
                ActionEvent::Routed {
                    code: RouteCode::SafeMode,
                },
            ),
            ("claimed", ActionEvent::Claimed),
            ("ok", ActionEvent::HandlerOk),
            (
                "failed",
                ActionEvent::HandlerFailed {
                    error_code: "X".to_owned(),
                    recoverable: true,
                },
            ),
            (
                "fatal",
                ActionEvent::HandlerFailed {
                    error_code: "X".to_owned(),
                    recoverable: false,
                },
            ),
            ("deadline", ActionEvent::DeadlineExceeded),
            ("expired", ActionEvent::LeaseExpired),
            (
                "undone",
                ActionEvent::UndoOk {
                    rollback_duration_ms: 5,
                },
            ),
            ("undo-failed", ActionEvent::UndoFailed),
            (
                "abandoned",
                ActionEvent::Abandoned {
                    error_code: "DECOMMISSIONED",
                },
            ),
        ]
    }

    #[test]
    fn every_state_and_event() {
        let mut table = String::new();
        for state in ActionState::ALL {
            let row: Vec<String> = events()
                .iter()
                .map(|(name, event)| match action(state).next(event, Uuid::nil()) {
                    Ok(t) => {
                        let receipt = t.receipt.map_or("no receipt", |p| p.operation());
                        format!("{name}={:?}/{receipt}", t.action.state)
                    }
                    Err(_) => format!("{name}=-"),
                })
                .filter(|cell| !cell.ends_with("=-"))
                .collect();
            table.push_str(&format!("{state:?}: {}\n", row.join(" ")));
        }
        let golden = "\
Pending: refused=Refused/action_refused routed=Routed/action_routed claimed=Running/no receipt
Running: ok=Complete/action_complete failed=Failed/action_failed fatal=Escalated/action_failed deadline=TimedOut/action_timeout expired=TimedOut/action_timeout abandoned=Escalated/action_failed
Complete: \n\
Failed: undone=RolledBack/action_rolled_back undo-failed=Failed/no receipt abandoned=Escalated/action_failed
TimedOut: undone=RolledBack/action_rolled_back undo-failed=TimedOut/no receipt abandoned=Escalated/action_failed
RolledBack: \n\
Escalated: \n\
Refused: \n\
Routed: \n";
        assert_eq!(table, golden);
    }

    #[test]
    fn a_rollback_names_the_receipt_it_answers() {
        let timed_out = action(ActionState::Running)
            .next(&ActionEvent::DeadlineExceeded, Uuid::from_u128(1))
            .unwrap()
            .action;
        let undone = timed_out
            .next(
                &ActionEvent::UndoOk {
                    rollback_duration_ms: 7,
                },
                Uuid::from_u128(2),
            )
            .unwrap();
        let Some(Payload::ActionRolledBack {
            previous_action_receipt_id,
            ..
        }) = undone.receipt
        else {
            panic!()
        };
        assert_eq!(previous_action_receipt_id, Uuid::from_u128(1));
    }

    #[test]
    fn undo_is_tried_five_times_and_then_escalated() {
        let mut now = action(ActionState::TimedOut);
        for _ in 0..4 {
            now = now.next(&ActionEvent::UndoFailed, Uuid::nil()).unwrap().action;
            assert_eq!(now.state, ActionState::TimedOut);
        }
        let last = now.next(&ActionEvent::UndoFailed, Uuid::nil()).unwrap();
        assert_eq!(last.action.state, ActionState::Escalated);
        assert_eq!(last.receipt.unwrap().operation(), "action_failed");
    }

    #[test]
    fn standings() {
        let later = Timestamp::from_second(100).unwrap();
        let leased = |state| action(state).owned_by(Uuid::nil(), later);
        let before = Timestamp::from_second(99).unwrap();
        assert_eq!(standing(None, later), Standing::New);
        assert_eq!(
            standing(Some(&leased(ActionState::Complete)), later),
            Standing::Done
        );
        assert_eq!(
            standing(Some(&leased(ActionState::Running)), before),
            Standing::Busy
        );
        assert_eq!(
            standing(Some(&leased(ActionState::Running)), later),
            Standing::Undo
        );
        assert_eq!(
            standing(Some(&leased(ActionState::TimedOut)), later),
            Standing::Undo
        );
    }

    proptest! {
        #[test]
        fn a_final_state_never_changes_and_receipts_end_with_it(picks in proptest::collection::vec(0usize..10, 0..30)) {
            let events = events();
            let mut now = action(ActionState::Pending);
            let mut receipts = 0;
            for pick in picks {
                let was_final = now.state.is_final();
                if let Ok(t) = now.next(&events[pick].1, Uuid::nil()) {
                    prop_assert!(!was_final);
                    receipts += usize::from(t.receipt.is_some());
                    now = t.action;
                }
                prop_assert_eq!(now.state.is_final() && receipts == 0, false, "a final state leaves a receipt");
            }
        }
    }
}
