//! What the sample handler remembers: each action once, whether it was applied, and whether it was undone.
//!
//! Two rules make it a handler that a governor can trust. A repeated call answers as the first one did and applies
//! nothing more. An undone action stays undone: an apply that comes later, because it was slow, does nothing.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::call::{Answer, Call, Outcome};

/// Most actions that may be waiting out their delay at once.
const MAX_PENDING: usize = 1_000;

/// Whoever waits for an action's answer: the first caller and each that repeats the call.
pub type Waiting = watch::Receiver<Option<Answer>>;

/// Actions by id, the oldest forgotten beyond a limit.
pub struct Journal {
    limit: usize,
    pending: usize,
    /// By the key of the call.
    actions: HashMap<String, Record>,
    /// Keys in the order they were first heard of.
    order: VecDeque<String>,
}

struct Record {
    action_id: String,
    account_id: String,
    template: String,
    /// The call that was made, if one was: a rollback can be the first we hear of an action.
    call: Option<(u64, Waiting)>,
    applied: Option<Timestamp>,
    undone: Option<Undone>,
}

#[derive(Clone, Copy)]
struct Undone {
    at: Timestamp,
    never_happened: bool,
}

/// What to do with a call.
pub enum Begin {
    /// A new action: run it, then tell the sender's watchers.
    Run(watch::Sender<Option<Answer>>, Waiting),
    /// A repeat: answer as the first call is, or will be, answered.
    Repeat(Waiting),
    /// Not accepted.
    Refuse(Answer),
}

/// Everything applied and undone, oldest first.
#[derive(Debug, Default, Serialize)]
pub struct Log {
    applied: Vec<Entry>,
    undone: Vec<UndoneEntry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    action_id: String,
    template: String,
    account_id: String,
    at: Timestamp,
}

#[derive(Debug, Serialize)]
struct UndoneEntry {
    #[serde(flatten)]
    entry: Entry,
    never_happened: bool,
}

impl Journal {
    /// Remembers at most so many actions.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            pending: 0,
            actions: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// A call arrives.
    pub fn begin(&mut self, call: &Call) -> Begin {
        let fingerprint = fingerprint(call);
        if let Some(record) = self.actions.get(&call.key) {
            return match &record.call {
                Some((first, waiting)) if *first == fingerprint => Begin::Repeat(waiting.clone()),
                Some(_) => Begin::Refuse(Answer::problem(
                    422,
                    "IDEMPOTENCY_KEY_REUSED",
                    "another call was made with this Idempotency-Key",
                )),
                None => Begin::Refuse(Answer::rolled_back()),
            };
        }
        if self.pending >= MAX_PENDING {
            return Begin::Refuse(Answer::failure(503, "BUSY", true));
        }
        let (sender, waiting) = watch::channel(None);
        self.pending += 1;
        self.remember(call, Some((fingerprint, waiting.clone())));
        Begin::Run(sender, waiting)
    }

    /// The action's delay is over: applies it, unless it is to fail or was undone meanwhile.
    pub fn finish(&mut self, call: &Call, now: Timestamp) -> Answer {
        self.pending = self.pending.saturating_sub(1);
        match self.actions.get_mut(&call.key) {
            // Forgotten, and with it whether it was undone: applying it now could be wrong, not applying it can be told.
            None => Answer::failure(503, "FORGOTTEN", true),
            Some(Record { undone: Some(_), .. }) => Answer::rolled_back(),
            Some(record) => match call.parameters.outcome {
                Outcome::Succeed => {
                    record.applied = Some(now);
                    Answer::done("applied", &call.action_id)
                }
                Outcome::Fail | Outcome::FailRollback => Answer::failure(500, "SIMULATED_FAILURE", true),
                Outcome::FailUnrecoverable => Answer::failure(422, "SIMULATED_FAILURE", false),
            },
        }
    }

    /// Undoes an action, or makes sure that it never happens.
    pub fn undo(&mut self, call: &Call, now: Timestamp) -> Answer {
        if call.parameters.outcome == Outcome::FailRollback {
            return Answer::failure(503, "SIMULATED_FAILURE", true);
        }
        if !self.actions.contains_key(&call.key) {
            self.remember(call, None);
        }
        let undone = self.actions.get_mut(&call.key).map(|record| {
            let never_happened = record.applied.is_none();
            record
                .undone
                .get_or_insert(Undone {
                    at: now,
                    never_happened,
                })
                .never_happened
        });
        Answer::done(
            if undone == Some(false) {
                "undone"
            } else {
                "never_happened"
            },
            &call.action_id,
        )
    }

    /// What was applied and undone, of one action or of all.
    pub fn log(&self, action_id: Option<&str>) -> Log {
        let mut log = Log::default();
        let records = self.order.iter().filter_map(|key| self.actions.get(key));
        for record in records.filter(|record| action_id.is_none_or(|wanted| wanted == record.action_id)) {
            let entry = |at| Entry {
                action_id: record.action_id.clone(),
                template: record.template.clone(),
                account_id: record.account_id.clone(),
                at,
            };
            log.applied.extend(record.applied.map(entry));
            log.undone.extend(record.undone.map(|undone| UndoneEntry {
                entry: entry(undone.at),
                never_happened: undone.never_happened,
            }));
        }
        log
    }

    fn remember(&mut self, call: &Call, made: Option<(u64, Waiting)>) {
        if self.order.len() >= self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.actions.remove(&oldest);
        }
        let record = Record {
            action_id: call.action_id.clone(),
            account_id: call.account_id.clone(),
            template: call.template.clone(),
            call: made,
            applied: None,
            undone: None,
        };
        self.order.push_back(call.key.clone());
        self.actions.insert(call.key.clone(), record);
    }
}

fn fingerprint(call: &Call) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&call.account_id, &call.template, &call.parameters).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::call::Parameters;
    use super::*;

    fn call(action_id: &str, outcome: Outcome) -> Call {
        Call {
            key: action_id.to_owned(),
            action_id: action_id.to_owned(),
            account_id: "customer-123".to_owned(),
            template: "restart-service".to_owned(),
            parameters: Parameters {
                outcome,
                ..Parameters::default()
            },
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_750_000_000).unwrap()
    }

    #[track_caller]
    fn check_log(journal: &Journal, applied: &[&str], undone: &[(&str, bool)]) {
        let log = journal.log(None);
        let ids: Vec<_> = log.applied.iter().map(|entry| entry.action_id.as_str()).collect();
        assert_eq!(ids, applied);
        let ids: Vec<_> = log
            .undone
            .iter()
            .map(|undone| (undone.entry.action_id.as_str(), undone.never_happened))
            .collect();
        assert_eq!(ids, undone);
    }

    #[track_caller]
    fn begin(journal: &mut Journal, call: &Call) {
        assert!(matches!(journal.begin(call), Begin::Run(..)));
    }

    #[test]
    fn outcomes() {
        for (outcome, status, applied) in [
            (Outcome::Succeed, 200, &["a"][..]),
            (Outcome::Fail, 500, &[]),
            (Outcome::FailUnrecoverable, 422, &[]),
            (Outcome::FailRollback, 500, &[]),
        ] {
            let mut journal = Journal::new(10);
            let call = call("a", outcome);
            begin(&mut journal, &call);
            assert_eq!(journal.finish(&call, now()).status, status);
            check_log(&journal, applied, &[]);
        }
    }

    #[test]
    fn a_rollback_beats_the_apply_that_comes_after_it() {
        let mut journal = Journal::new(10);
        let call = call("a", Outcome::Succeed);
        begin(&mut journal, &call);
        assert_eq!(journal.undo(&call, now()).status, 200);
        assert_eq!(journal.finish(&call, now()).status, 409);
        check_log(&journal, &[], &[("a", true)]);
    }

    #[test]
    fn a_rollback_beats_the_call_that_comes_after_it() {
        let mut journal = Journal::new(10);
        let call = call("a", Outcome::Succeed);
        assert_eq!(journal.undo(&call, now()).status, 200);
        assert!(matches!(journal.begin(&call), Begin::Refuse(answer) if answer.status == 409));
        check_log(&journal, &[], &[("a", true)]);
    }

    #[test]
    fn a_rollback_fails_as_often_as_it_is_asked_to() {
        let mut journal = Journal::new(10);
        let call = call("a", Outcome::FailRollback);
        begin(&mut journal, &call);
        journal.finish(&call, now());
        for _ in 0..6 {
            assert_eq!(journal.undo(&call, now()).status, 503);
        }
        check_log(&journal, &[], &[]);
    }

    #[test]
    fn undoing_twice_undoes_once() {
        let mut journal = Journal::new(10);
        let call = call("a", Outcome::Succeed);
        begin(&mut journal, &call);
        journal.finish(&call, now());
        assert_eq!(journal.undo(&call, now()), journal.undo(&call, now()));
        check_log(&journal, &["a"], &[("a", false)]);
    }

    #[test]
    fn a_repeat_runs_nothing_and_another_call_under_its_key_is_refused() {
        let mut journal = Journal::new(10);
        begin(&mut journal, &call("a", Outcome::Succeed));
        assert!(matches!(
            journal.begin(&call("a", Outcome::Succeed)),
            Begin::Repeat(_)
        ));
        assert!(
            matches!(journal.begin(&call("a", Outcome::Fail)), Begin::Refuse(answer) if answer.status == 422)
        );
    }

    #[test]
    fn the_oldest_is_forgotten_and_not_applied_late() {
        let mut journal = Journal::new(2);
        for id in ["a", "b", "c"] {
            begin(&mut journal, &call(id, Outcome::Succeed));
        }
        assert_eq!(journal.finish(&call("a", Outcome::Succeed), now()).status, 503);
        assert_eq!(journal.finish(&call("b", Outcome::Succeed), now()).status, 200);
        check_log(&journal, &["b"], &[]);
        assert_eq!((journal.actions.len(), journal.order.len()), (2, 2));
    }

    #[test]
    fn too_many_pending_actions_are_turned_away() {
        let mut journal = Journal::new(MAX_PENDING * 2);
        for id in 0..MAX_PENDING {
            begin(&mut journal, &call(&id.to_string(), Outcome::Succeed));
        }
        let one_more = call("more", Outcome::Succeed);
        assert!(matches!(journal.begin(&one_more), Begin::Refuse(answer) if answer.status == 503));
        journal.finish(&call("0", Outcome::Succeed), now());
        begin(&mut journal, &one_more);
    }
}
