//! An action's machine. `next(state, event, now)` is exhaustive: a pair without meaning is an [`IllegalTransition`].
//!
//! | state | claimed | handler ok | handler failed | deadline, lease expired | undo ok | undo failed | abandoned |
//! |---|---|---|---|---|---|---|---|
//! | pending | running | – | – | – | – | – | escalated |
//! | running | – | complete | failed, or escalated if unrecoverable | timed_out | – | – | escalated |
//! | timed_out, failed | – | – | – | – | rolled_back | same; escalated when that is final or the fifth time | escalated |
//! | escalated, routed, and all that are final | – | – | – | – | – | – | – |
//!
//! `pending` also goes straight to `refused` or `routed` when the gate says so. An action is abandoned when nobody will go
//! on with it: its tenant leaves, its signal was delivered too often, or nobody can say any more what it was to do.
//!
//! What is `escalated` or `routed` is a person's: `resolved` ends it for good, and `redriven` takes it up again where it was given
//! up, if there was anything left to do: `pending` if it never began, else to be undone. What was routed never began.

use jiff::Timestamp;
use receipts::receipt::{ActionOutcome, Draft, Payload};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::account::{AccountId, EntitlementId};
use crate::gate::{RefusalCode, RouteCode};
use crate::signal::{ActionId, Signal};

/// How long a handler has, in milliseconds, from the moment its call starts.
pub const DEADLINE_MS: u64 = 500;
/// Rollback calls before an action is escalated.
pub const ROLLBACK_ATTEMPTS: u64 = 5;
/// Deliveries before a signal goes to the dead-letter queue: SQS's most. A signal waits for a free place or for storage by
/// being delivered again, up to a minute apart, and a day of waiting must not lose it.
pub const MAX_DELIVERIES: u32 = 1000;
/// Error code of an action whose signal was delivered that often.
pub const DEAD_LETTERED: &str = "DEAD_LETTERED";
/// Error code of an action that was in flight when its tenant left.
pub const DECOMMISSIONED: &str = "DECOMMISSIONED";
/// Error code of an action that nobody went on with for an hour.
pub const STUCK: &str = "STUCK";
/// Error code of an action that the handler won't undo.
pub const ROLLBACK_REFUSED: &str = "ROLLBACK_REFUSED";
/// Error code of an action whose rollback failed [`ROLLBACK_ATTEMPTS`] times.
pub const ROLLBACK_EXHAUSTED: &str = "ROLLBACK_EXHAUSTED";
/// Error code of a call that nobody answered.
pub const HANDLER_UNREACHABLE: &str = "HANDLER_UNREACHABLE";
/// Error code of a call that may not be made.
pub const HANDLER_FORBIDDEN: &str = "HANDLER_FORBIDDEN";
/// Error code of a call that can't be written.
pub const UNENCODABLE_CALL: &str = "UNENCODABLE_CALL";
/// What the error code begins with of an answer that is told by its HTTP status.
pub const BY_STATUS: &str = "HTTP_";
/// What a handler's own error code begins with where it could be taken for one of ours.
pub const HANDLERS_OWN: &str = "handler:";

/// Error codes that say something only the governor can know.
const OURS: [&str; 9] = [
    DEAD_LETTERED,
    DECOMMISSIONED,
    HANDLER_FORBIDDEN,
    HANDLER_UNREACHABLE,
    LEDGER_BLOCKED,
    ROLLBACK_EXHAUSTED,
    ROLLBACK_REFUSED,
    STUCK,
    UNENCODABLE_CALL,
];

/// A handler's own error code as it is kept: never one of ours, and never that of another.
#[must_use]
pub fn handlers_code(said: &str) -> String {
    let ambiguous = OURS.contains(&said) || said.starts_with(BY_STATUS) || said.starts_with(HANDLERS_OWN);
    match ambiguous {
        true => format!("{HANDLERS_OWN}{said}"),
        false => said.to_owned(),
    }
}

/// Error code of an action whose outcome the ledger did not take, as something stands behind its head.
pub const LEDGER_BLOCKED: &str = "LEDGER_BLOCKED";
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
    RolledBack,
    /// Neither done nor undone: a person has to look.
    Escalated,
    /// The gate said no.
    Refused,
    /// The gate sent it to a person.
    Routed,
    /// It was escalated, and a person has dealt with it.
    Resolved,
}

impl ActionState {
    /// Every state, for tables.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Running,
        Self::Complete,
        Self::Failed,
        Self::TimedOut,
        Self::RolledBack,
        Self::Escalated,
        Self::Refused,
        Self::Routed,
        Self::Resolved,
    ];

    /// The name used in the table and in answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::RolledBack => "rolled_back",
            Self::Escalated => "escalated",
            Self::Refused => "refused",
            Self::Routed => "routed",
            Self::Resolved => "resolved",
        }
    }

    /// Whether nothing more will happen to the action, unless a person says so.
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Complete
            | Self::RolledBack
            | Self::Escalated
            | Self::Refused
            | Self::Routed
            | Self::Resolved => true,
            Self::Pending | Self::Running | Self::Failed | Self::TimedOut => false,
        }
    }

    /// Whether nothing more happens to the action until a person decides.
    #[must_use]
    pub fn is_a_persons(self) -> bool {
        matches!(self, Self::Escalated | Self::Routed)
    }

    /// Whether a place among the tenant's concurrent actions is taken.
    #[must_use]
    pub fn in_flight(self) -> bool {
        matches!(self, Self::Running | Self::Failed | Self::TimedOut)
    }

    /// Whether the handler's work has to be undone.
    #[must_use]
    pub fn undo_due(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut)
    }
}

/// Why an action waits for a person: it was escalated, or routed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escalation {
    /// The handler's error, or ours; of one that was routed, why the gate sent it to a person.
    pub error_code: String,
    /// Where it goes on when it is redriven; none when there is nothing to go on with.
    pub resume: Option<ActionState>,
    pub at: Timestamp,
}

/// An action as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    pub action_id: ActionId,
    /// Template of the policy it runs.
    pub template: String,
    pub state: ActionState,
    /// Hash of the enforcer that allowed it.
    pub policy_hash: String,
    /// Whose claim is in force: one id for each claim.
    pub owner: Uuid,
    /// When the claim ends and another governor may take over.
    pub lease_until: Timestamp,
    /// When the action was first claimed, refused or routed, or was taken up again.
    pub started_at: Timestamp,
    /// Rollback calls made.
    pub rollback_attempts: u64,
    /// Those of them that count no more, as a person had it taken up again since.
    pub rollbacks_forgiven: u64,
    /// The receipts about this action, in order.
    pub receipts: Vec<Uuid>,
    /// Why it waits for a person and where it goes on, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escalation: Option<Escalation>,
    /// The entitlement it runs under; none for what was refused or routed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entitlement_id: Option<EntitlementId>,
    /// What it was asked for with, kept while it may be gone on with: undoing it needs them, and its signal may be lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
    /// When its signal was put on the queue again because nobody went on with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nudged_at: Option<Timestamp>,
}

/// What happens to an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActionEvent {
    /// The gate said no.
    Refused {
        code: RefusalCode,
        detail: Option<String>,
        /// Rules that decided, when policy did.
        rules: Vec<String>,
    },
    /// The gate sent it to a person.
    Routed { code: RouteCode },
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
    UndoFailed {
        /// Whether it makes sense to try again.
        recoverable: bool,
    },
    /// Nobody will go on with it: a person has to look.
    Abandoned {
        /// Why, as a machine-readable code.
        error_code: &'static str,
    },
    /// A person has it taken up again.
    Redriven { by: String },
    /// A person has dealt with it.
    Resolved { by: String, note: String },
}

/// An event that has no meaning in a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an action that is {state:?} has no transition for {event:?}")]
pub struct IllegalTransition {
    pub state: ActionState,
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
            rollbacks_forgiven: 0,
            receipts: Vec::new(),
            escalation: None,
            entitlement_id: None,
            parameters: None,
            nudged_at: None,
        }
    }

    /// An action that is refused without having been begun, and what is put on record. `before` is what was known of it.
    #[must_use]
    pub fn refused(
        before: Option<&Self>,
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
            receipts: before
                .map(|before| before.receipts.clone())
                .unwrap_or_default()
                .into_iter()
                .chain([receipt_id])
                .collect(),
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

    /// The signal that asked for it, as far as the action tells.
    #[must_use]
    pub fn signal(&self, account_id: &AccountId) -> Signal {
        Signal {
            action_id: self.action_id.clone(),
            account_id: account_id.clone(),
            sku_id: None,
            entitlement_id: self.entitlement_id.clone(),
            template: self.template.clone(),
            parameters: self.parameters.clone().unwrap_or_default(),
            policy_hash: self.policy_hash.clone(),
        }
    }

    /// The last receipt about it.
    #[must_use]
    pub fn last_receipt(&self) -> Option<Uuid> {
        self.receipts.last().copied()
    }

    /// Where it goes on when it is redriven; none when it waits for no person, or there is nothing to go on with.
    #[must_use]
    pub fn resumes_at(&self) -> Option<ActionState> {
        self.escalation.as_ref().and_then(|escalation| escalation.resume)
    }

    /// What is put on record about it. `duration_ms` is how long that took.
    #[must_use]
    pub fn draft(
        &self,
        account_id: &str,
        receipt_id: Uuid,
        payload: Payload,
        duration_ms: u64,
        now: Timestamp,
    ) -> Draft {
        Draft::new(receipt_id, account_id, payload, now)
            .under(&self.policy_hash)
            .lasting(duration_ms)
    }

    /// The action once it is given up, because of this: nobody's claim on it is in force any more, so that who comes late
    /// cannot finish it.
    ///
    /// # Errors
    /// [`IllegalTransition`] when it is over already.
    pub fn abandoned(
        &self,
        error_code: &'static str,
        receipt_id: Uuid,
        now: Timestamp,
    ) -> Result<Transition, IllegalTransition> {
        let given_up = self.next(&ActionEvent::Abandoned { error_code }, receipt_id, now)?;
        Ok(Transition {
            action: given_up.action.owned_by(Uuid::nil(), now),
            ..given_up
        })
    }

    /// The action after an event. `receipt_id` names the receipt this event leaves, if any.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event has no meaning now.
    pub fn next(
        &self,
        event: &ActionEvent,
        receipt_id: Uuid,
        now: Timestamp,
    ) -> Result<Transition, IllegalTransition> {
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
                    previous_action_receipt_id: self.last_receipt().unwrap_or_default(),
                    rollback_duration_ms: *rollback_duration_ms,
                }),
            ),
            (ActionState::Failed | ActionState::TimedOut, ActionEvent::UndoFailed { recoverable }) => {
                let spent = attempts.saturating_sub(self.rollbacks_forgiven) >= ROLLBACK_ATTEMPTS;
                match (recoverable, spent) {
                    (false, _) => (ActionState::Escalated, Some(failed(ROLLBACK_REFUSED, false))),
                    (true, true) => (ActionState::Escalated, Some(failed(ROLLBACK_EXHAUSTED, false))),
                    (true, false) => (self.state, None),
                }
            }
            (
                ActionState::Pending | ActionState::Running | ActionState::Failed | ActionState::TimedOut,
                ActionEvent::Abandoned { error_code },
            ) => (ActionState::Escalated, Some(failed(error_code, false))),
            (ActionState::Escalated | ActionState::Routed, ActionEvent::Redriven { by }) => {
                let Some(resume) = self.resumes_at() else {
                    return Err(self.illegal(event));
                };
                let payload = Payload::ActionRedriven {
                    action_id: id(),
                    previous_action_receipt_id: self.last_receipt().unwrap_or_default(),
                    who: by.clone(),
                };
                (resume, Some(payload))
            }
            (ActionState::Escalated | ActionState::Routed, ActionEvent::Resolved { by, note }) => (
                ActionState::Resolved,
                Some(Payload::ActionResolved {
                    action_id: id(),
                    previous_action_receipt_id: self.last_receipt().unwrap_or_default(),
                    who: by.clone(),
                    note: note.clone(),
                }),
            ),
            (
                ActionState::Pending,
                ActionEvent::HandlerOk
                | ActionEvent::HandlerFailed { .. }
                | ActionEvent::DeadlineExceeded
                | ActionEvent::LeaseExpired
                | ActionEvent::UndoOk { .. }
                | ActionEvent::UndoFailed { .. }
                | ActionEvent::Redriven { .. }
                | ActionEvent::Resolved { .. },
            )
            | (
                ActionState::Running,
                ActionEvent::Refused { .. }
                | ActionEvent::Routed { .. }
                | ActionEvent::Claimed
                | ActionEvent::UndoOk { .. }
                | ActionEvent::UndoFailed { .. }
                | ActionEvent::Redriven { .. }
                | ActionEvent::Resolved { .. },
            )
            | (
                ActionState::Failed | ActionState::TimedOut,
                ActionEvent::Refused { .. }
                | ActionEvent::Routed { .. }
                | ActionEvent::Claimed
                | ActionEvent::HandlerOk
                | ActionEvent::HandlerFailed { .. }
                | ActionEvent::DeadlineExceeded
                | ActionEvent::LeaseExpired
                | ActionEvent::Redriven { .. }
                | ActionEvent::Resolved { .. },
            )
            | (
                ActionState::Escalated | ActionState::Routed,
                ActionEvent::Refused { .. }
                | ActionEvent::Routed { .. }
                | ActionEvent::Claimed
                | ActionEvent::HandlerOk
                | ActionEvent::HandlerFailed { .. }
                | ActionEvent::DeadlineExceeded
                | ActionEvent::LeaseExpired
                | ActionEvent::UndoOk { .. }
                | ActionEvent::UndoFailed { .. }
                | ActionEvent::Abandoned { .. },
            )
            | (
                ActionState::Complete
                | ActionState::RolledBack
                | ActionState::Refused
                | ActionState::Resolved,
                ActionEvent::Refused { .. }
                | ActionEvent::Routed { .. }
                | ActionEvent::Claimed
                | ActionEvent::HandlerOk
                | ActionEvent::HandlerFailed { .. }
                | ActionEvent::DeadlineExceeded
                | ActionEvent::LeaseExpired
                | ActionEvent::UndoOk { .. }
                | ActionEvent::UndoFailed { .. }
                | ActionEvent::Abandoned { .. }
                | ActionEvent::Redriven { .. }
                | ActionEvent::Resolved { .. },
            ) => return Err(self.illegal(event)),
        };
        let redriven = matches!(event, ActionEvent::Redriven { .. });
        let undo_tried = matches!(event, ActionEvent::UndoOk { .. } | ActionEvent::UndoFailed { .. });
        let mut receipts = self.receipts.clone();
        receipts.extend(receipt.is_some().then_some(receipt_id));
        let escalation = match (state, &receipt) {
            (ActionState::Escalated, Some(Payload::ActionFailed { error_code, .. })) => Some(Escalation {
                error_code: error_code.clone(),
                resume: self.resumable(event),
                at: now,
            }),
            (ActionState::Routed, Some(Payload::ActionRouted(outcome))) => Some(Escalation {
                error_code: outcome.code.clone(),
                resume: Some(ActionState::Pending),
                at: now,
            }),
            _ => None,
        };
        let resumable = escalation.as_ref().is_some_and(|e| e.resume.is_some());
        let action = Self {
            state,
            rollback_attempts: match undo_tried {
                true => attempts,
                false => self.rollback_attempts,
            },
            rollbacks_forgiven: match redriven {
                true => self.rollback_attempts,
                false => self.rollbacks_forgiven,
            },
            receipts,
            escalation,
            // Nobody's claim is in force behind a person's word: who comes late can't finish it.
            owner: if redriven { Uuid::nil() } else { self.owner },
            lease_until: if redriven { now } else { self.lease_until },
            nudged_at: self.nudged_at.filter(|_| !redriven),
            // It has all its time again.
            started_at: if redriven { now } else { self.started_at },
            parameters: self.parameters.clone().filter(|_| !state.is_final() || resumable),
            ..self.clone()
        };
        Ok(Transition { action, receipt })
    }

    /// Where an action goes on that this event escalates now.
    fn resumable(&self, event: &ActionEvent) -> Option<ActionState> {
        match (self.state, event) {
            // The handler said that there is nothing to undo by.
            (_, ActionEvent::HandlerFailed { .. }) => None,
            // What the handler did is unknown.
            (ActionState::Running, _) => Some(ActionState::TimedOut),
            (state, _) => Some(state),
        }
    }

    fn illegal(&self, event: &ActionEvent) -> IllegalTransition {
        IllegalTransition {
            state: self.state,
            event: event.clone(),
        }
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
mod tests;
