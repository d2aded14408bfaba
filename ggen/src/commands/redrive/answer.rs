//! What became of the letters that were taken.

use std::fmt;

use domain::account::AccountId;
use domain::action::ActionState;
use domain::operations::redrive::Redriven;
use domain::signal::ActionId;
use domain::tenant::Lifecycle;
use serde::Serialize;
use uuid::Uuid;

use crate::cloud::takes_no_signals;
use crate::report::Verdict;

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// On the queue again.
    Returned,
    /// Its action has ended: removed.
    AlreadyOver,
    /// Stays: it is to be undone, and no place among the concurrent actions is free.
    NoPlace,
    /// Stays: what it ran under is cancelled.
    EntitlementGone,
    /// Stays: there is nothing left to do but what a person does.
    NothingToGoOnWith,
    /// Stays: it is no signal of this tenant.
    NotASignal,
    /// Stays: the tenant takes no signals any more.
    NotActive,
    /// Its signal waits on the queue, or its letter is one of those that are hidden now.
    Hidden,
    /// There is neither such an action nor a letter of it.
    Unknown,
}

impl Outcome {
    pub(super) fn of(redriven: Redriven) -> Self {
        match redriven {
            Redriven::Open | Redriven::Reopened(_) => Self::Returned,
            Redriven::AlreadyOver => Self::AlreadyOver,
            Redriven::NotActive => Self::NotActive,
            Redriven::NothingToGoOnWith => Self::NothingToGoOnWith,
            Redriven::NoPlace => Self::NoPlace,
            Redriven::EntitlementGone => Self::EntitlementGone,
        }
    }

    pub(super) fn is_settled(self) -> bool {
        matches!(self, Self::Returned | Self::AlreadyOver)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::AlreadyOver => "already over",
            Self::NoPlace
            | Self::EntitlementGone
            | Self::NothingToGoOnWith
            | Self::NotASignal
            | Self::NotActive
            | Self::Hidden => "left",
            Self::Unknown => "unknown",
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Self::Returned => "on the queue again",
            Self::AlreadyOver => "the action had ended; its letter was removed",
            Self::NoPlace => "no place is free to roll it back; try again",
            Self::EntitlementGone => "its entitlement was cancelled; resolve it",
            Self::NothingToGoOnWith => "there is nothing to resume; resolve it",
            Self::NotASignal => "not a signal of this tenant",
            Self::NotActive => "the tenant no longer takes signals",
            Self::Hidden => "its signal is on the queue, or its letter is hidden; try again in a minute",
            Self::Unknown => "no such action, and no letter for it",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct LetterResult {
    /// SQS's id of the letter, if there is one.
    pub(super) message_id: Option<String>,
    /// The action, unless the letter is no signal.
    pub(super) action_id: Option<ActionId>,
    pub(super) outcome: Outcome,
    /// Where the action stands, if it is known.
    pub(super) state: Option<ActionState>,
    /// The receipt by which it was opened again.
    pub(super) receipt_id: Option<Uuid>,
}

#[derive(Serialize)]
pub(super) struct Answer {
    pub(super) account_id: AccountId,
    /// Where the tenant stands, if there ever was one.
    pub(super) lifecycle: Option<Lifecycle>,
    /// Whether the system is degraded: signals would only be refused.
    pub(super) degraded: bool,
    pub(super) letters: Vec<LetterResult>,
    /// Letters that somebody else was at work on.
    pub(super) hidden: u64,
    /// Whether there were more letters than were asked for.
    pub(super) more: bool,
}

impl Answer {
    fn count(&self, of: impl Fn(Outcome) -> bool) -> usize {
        self.letters.iter().filter(|letter| of(letter.outcome)).count()
    }

    /// Whether the tenant takes no signals, and nothing else was found.
    fn is_refused(&self) -> bool {
        self.letters.is_empty() && (self.degraded || self.lifecycle != Some(Lifecycle::Active))
    }

    pub(super) fn verdict(&self) -> Verdict {
        let settled = self.letters.iter().all(|letter| letter.outcome.is_settled());
        Verdict::when(settled && self.hidden == 0 && !self.more && !self.is_refused())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_refused() && self.degraded {
            return f.write_str(
                "REFUSED: the system is degraded and refuses signals; try again once it has recovered",
            );
        }
        if self.is_refused() {
            return f.write_str(&takes_no_signals(&self.account_id, self.lifecycle));
        }
        for letter in &self.letters {
            let named = match (&letter.action_id, &letter.message_id) {
                (Some(action_id), _) => action_id.as_str(),
                (None, Some(message_id)) => message_id.as_str(),
                (None, None) => "",
            };
            let (name, detail) = (letter.outcome.name(), letter.outcome.detail());
            write!(f, "{name:<12}  {named}: {detail}")?;
            match (letter.outcome, letter.state) {
                (Outcome::AlreadyOver, Some(state)) => writeln!(f, " ({})", state.name())?,
                _ => writeln!(f)?,
            }
        }
        if self.hidden > 0 {
            writeln!(
                f,
                "{} letters are hidden while another run processes them, for up to a minute",
                self.hidden
            )?;
        }
        let settled = self.count(Outcome::is_settled);
        write!(
            f,
            "{} returned, {} already over, {} left",
            self.count(|outcome| outcome == Outcome::Returned),
            self.count(|outcome| outcome == Outcome::AlreadyOver),
            self.letters.len() - settled
        )?;
        match self.more {
            true => f.write_str("; there are more letters: raise --max"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_what_stays() {
        let letter = |action_id: Option<&str>, outcome, state| LetterResult {
            message_id: Some("m-1".to_owned()),
            action_id: action_id.map(|id| ActionId::try_from(id.to_owned()).unwrap()),
            outcome,
            state,
            receipt_id: None,
        };
        let mut answer = Answer {
            account_id: AccountId::parse("c").unwrap(),
            lifecycle: Some(Lifecycle::Active),
            degraded: false,
            letters: vec![
                letter(Some("a-1"), Outcome::Returned, Some(ActionState::Pending)),
                letter(Some("a-2"), Outcome::AlreadyOver, Some(ActionState::Complete)),
            ],
            hidden: 0,
            more: false,
        };
        assert_eq!(answer.verdict(), Verdict::Good);
        answer.more = true;
        assert_eq!(answer.verdict(), Verdict::NotGood);
        answer.more = false;
        answer.letters.push(letter(None, Outcome::NotASignal, None));
        assert_eq!(answer.verdict(), Verdict::NotGood);
        answer.more = true;
        let expected = "\
returned      a-1: on the queue again
already over  a-2: the action had ended; its letter was removed (complete)
left          m-1: not a signal of this tenant
1 returned, 1 already over, 1 left; there are more letters: raise --max";
        assert_eq!(answer.to_string(), expected);
        let none = Answer {
            letters: Vec::new(),
            hidden: 2,
            more: false,
            ..answer
        };
        assert_eq!(none.verdict(), Verdict::NotGood);
        assert!(none.to_string().starts_with("2 letters are hidden"), "{none}");
        let refused = |lifecycle| Answer {
            account_id: AccountId::parse("c").unwrap(),
            lifecycle,
            degraded: false,
            letters: Vec::new(),
            hidden: 0,
            more: false,
        };
        let degraded = Answer {
            degraded: true,
            ..refused(Some(Lifecycle::Active))
        };
        assert_eq!(degraded.verdict(), Verdict::NotGood);
        assert!(
            degraded
                .to_string()
                .starts_with("REFUSED: the system is degraded")
        );
        for (lifecycle, text) in [
            (None, "REFUSED: there is no tenant c"),
            (
                Some(Lifecycle::Decommissioning),
                "REFUSED: c is decommissioning and takes no signals",
            ),
        ] {
            let answer = refused(lifecycle);
            assert_eq!(
                (answer.verdict(), answer.to_string()),
                (Verdict::NotGood, text.to_owned())
            );
        }
        let nothing = refused(Some(Lifecycle::Active));
        assert_eq!(nothing.verdict(), Verdict::Good);
        assert_eq!(nothing.to_string(), "0 returned, 0 already over, 0 left");
    }
}
