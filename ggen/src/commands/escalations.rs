//! `ggen escalations`: every action that waits for a person.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::pages::Pages;
use aws::store::{Store, StoreError};
use clap::Args;
use domain::account::AccountId;
use domain::action::{Action, ActionState};
use domain::names::Partition;
use domain::signal::ActionId;
use domain::tenant::Lifecycle;
use domain::transaction::Keys;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::cloud::{self, NEEDS_A_STACK, ReadError};
use crate::out::{Format, Out};
use crate::report::{self, Verdict};
use crate::table::{self, Column, minute, words};

/// Most actions of one answer.
const MAX_LIMIT: u64 = 100_000;
/// Columns that a line may take: ids are copied into the next command, so they should not be cut.
const WIDTH: usize = 170;

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen escalations
  ggen escalations --account-id customer-123 --format jsonl | jq -r .action_id

A person has to look at each of these actions and run `ggen resolve` or, where REDRIVE says yes, `ggen redrive`. An escalated
action was neither completed nor rolled back; a routed one has not begun, and waits to be released (`redrive`) or declined
(`resolve`). Oldest first. The list comes from an index that lags by a moment; the details are read from the
actions themselves. For a tenant that had its own tables and has left, they are as of the escalation. See
docs/escalations.md.
{NEEDS_A_STACK}
Exit code 0 none, 1 some, 2 could not tell."
    )
}

/// Arguments of `ggen escalations`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct EscalationsArgs {
    /// Only this account [default: all]
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: Option<AccountId>,
    /// Maximum number of actions to list, oldest first
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    limit: u64,
}

/// Why escalated actions could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum EscalationsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the escalated actions")]
    Find(#[from] ReadError),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

/// An action that waits for a person.
pub struct Escalated {
    pub account_id: AccountId,
    /// As it stands or, when it stands nowhere any more, as it was escalated.
    pub action: Action,
    pub lifecycle: Option<Lifecycle>,
    /// Whether it still stands in a table.
    pub stands: bool,
}

impl Escalated {
    /// Whether it can be taken up again, a letter of it or not.
    fn is_redrivable(&self) -> bool {
        let known = self.action.resumes_at().is_some() && self.action.parameters.is_some();
        known && self.stands && self.lifecycle == Some(Lifecycle::Active)
    }
}

/// Finds escalated actions: all, or those of one account, or those of one id.
pub async fn find(
    store: &Arc<Store>,
    of: Option<&AccountId>,
    action_id: Option<&ActionId>,
) -> Result<Vec<Escalated>, ReadError> {
    let wanted = of.map(Partition::of);
    let mut marked = BTreeMap::<Partition, Vec<Action>>::new();
    let mut pages = Pages::default();
    while let Some(page) = pages.next(async |after| store.escalations(after).await).await? {
        for (partition, action) in page {
            let asked_for = wanted.as_ref().is_none_or(|wanted| *wanted == partition)
                && action_id.is_none_or(|id| *id == action.action_id);
            if asked_for {
                marked.entry(partition).or_default().push(action);
            }
        }
    }
    let found = cloud::read_all(marked, |(partition, actions)| {
        let store = Arc::clone(store);
        async move { read(&store, &partition, actions).await }
    });
    Ok(found.await?.into_iter().flatten().collect())
}

/// Those of an account's marked actions that still wait for a person.
async fn read(
    store: &Store,
    partition: &Partition,
    marked: Vec<Action>,
) -> Result<Vec<Escalated>, StoreError> {
    let Some(account_id) = partition.account() else {
        return Ok(Vec::new());
    };
    let keys = Keys {
        actions: marked
            .iter()
            .map(|action| action.action_id.clone())
            .collect::<BTreeSet<_>>(),
        ..Keys::default()
    };
    let mut account = Box::pin(store.load(partition, &keys)).await?;
    let lifecycle = account.tenant.as_ref().map(|tenant| tenant.lifecycle);
    let found = marked.into_iter().map(|marked| {
        let standing = account.actions.remove(&marked.action_id);
        Escalated {
            account_id: account_id.clone(),
            stands: standing.is_some(),
            action: standing.unwrap_or(marked),
            lifecycle,
        }
    });
    // What was dealt with a moment ago may still be marked.
    Ok(found.filter(|found| found.action.state.is_a_persons()).collect())
}

#[derive(Serialize)]
struct EscalationLine {
    account_id: AccountId,
    action_id: ActionId,
    template: String,
    state: ActionState,
    error_code: String,
    since: Timestamp,
    /// Whether it can be taken up again.
    redrivable: bool,
    /// The last receipt about it.
    receipt_id: Option<Uuid>,
    lifecycle: Option<Lifecycle>,
}

impl EscalationLine {
    fn of(found: &Escalated) -> Self {
        let action = &found.action;
        let why = action.escalation.as_ref();
        Self {
            account_id: found.account_id.clone(),
            action_id: action.action_id.clone(),
            template: action.template.clone(),
            state: action.state,
            error_code: why.map(|why| why.error_code.clone()).unwrap_or_default(),
            since: why.map_or(action.started_at, |why| why.at),
            redrivable: found.is_redrivable(),
            receipt_id: action.last_receipt(),
            lifecycle: found.lifecycle,
        }
    }

    fn row(&self) -> [String; 8] {
        [
            minute(self.since),
            self.account_id.to_string(),
            self.action_id.as_str().to_owned(),
            self.template.clone(),
            self.state.name().to_owned(),
            self.error_code.clone(),
            if self.redrivable { "yes" } else { "no" }.to_owned(),
            self.receipt_id.map(|id| id.to_string()).unwrap_or_default(),
        ]
    }
}

const COLUMNS: [Column; 8] = [
    words("SINCE"),
    words("ACCOUNT"),
    words("ACTION"),
    words("TEMPLATE"),
    words("STATE"),
    words("WHY"),
    words("REDRIVE"),
    words("LAST RECEIPT"),
];

#[derive(Serialize)]
struct EscalationList {
    escalations: Vec<EscalationLine>,
    /// Whether there are more than were asked for.
    more: bool,
}

impl fmt::Display for EscalationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.escalations.is_empty() {
            return f.write_str("no actions wait for a person");
        }
        let rows: Vec<_> = self.escalations.iter().map(EscalationLine::row).collect();
        f.write_str(table::layout(&COLUMNS, &rows, WIDTH).trim_end())
    }
}

/// Lists escalated actions.
///
/// # Errors
/// When the stack does not answer; that there are some is a verdict.
pub fn run(args: &EscalationsArgs, out: &mut Out) -> Result<Verdict, EscalationsError> {
    cloud::block_on(list(args, out))?
}

async fn list(args: &EscalationsArgs, out: &mut Out) -> Result<Verdict, EscalationsError> {
    let store = Arc::new(Store::new(&clients::load().await, Stack::from_env()?));
    let found = find(&store, args.account_id.as_ref(), None).await?;
    let mut escalations: Vec<EscalationLine> = found.iter().map(EscalationLine::of).collect();
    escalations.sort_by(|one, other| {
        let key = |line: &EscalationLine| (line.since, line.account_id.clone(), line.action_id.clone());
        key(one).cmp(&key(other))
    });
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let more = escalations.len() > limit;
    escalations.truncate(limit);
    let listed = EscalationList { escalations, more };
    out.list(&listed, &listed.escalations)?;
    if more && out.format() != Some(Format::Json) {
        report::note(&format!("there are more than {limit}: raise --limit"));
    }
    Ok(Verdict::when(listed.escalations.is_empty()))
}

#[cfg(test)]
mod tests {
    use domain::action::Escalation;
    use serde_json::{Map, Value, json};

    use super::*;

    fn escalated(resume: Option<ActionState>) -> Escalated {
        let id = ActionId::try_from("a-1".to_owned()).unwrap();
        let at: Timestamp = "2026-11-21T17:02:54.250Z".parse().unwrap();
        let action = Action {
            state: ActionState::Escalated,
            escalation: Some(Escalation {
                error_code: "ROLLBACK_EXHAUSTED".to_owned(),
                resume,
                at,
            }),
            parameters: Some(Map::new()),
            receipts: vec![Uuid::from_u128(1), Uuid::from_u128(2)],
            ..Action::pending(id, "restart-service", "00", Timestamp::UNIX_EPOCH)
        };
        Escalated {
            account_id: AccountId::parse("customer-1").unwrap(),
            action,
            lifecycle: Some(Lifecycle::Active),
            stands: true,
        }
    }

    #[test]
    fn one_line_each() {
        let escalations = vec![
            EscalationLine::of(&escalated(Some(ActionState::TimedOut))),
            EscalationLine::of(&escalated(None)),
        ];
        let expected = "\
SINCE              ACCOUNT     ACTION  TEMPLATE         STATE      WHY                 REDRIVE  LAST RECEIPT
2026-11-21 17:02Z  customer-1  a-1     restart-service  escalated  ROLLBACK_EXHAUSTED  yes      00000000-0000-0000-0000-000000000002
2026-11-21 17:02Z  customer-1  a-1     restart-service  escalated  ROLLBACK_EXHAUSTED  no       00000000-0000-0000-0000-000000000002";
        let listed = EscalationList {
            escalations,
            more: false,
        };
        assert_eq!(listed.to_string(), expected);
        let none = EscalationList {
            escalations: Vec::new(),
            more: false,
        };
        assert_eq!(none.to_string(), "no actions wait for a person");
    }

    #[test]
    fn nothing_is_shortened_for_programs() {
        let line: Value = serde_json::to_value(EscalationLine::of(&escalated(None))).unwrap();
        let expected = json!({
            "account_id": "customer-1",
            "action_id": "a-1",
            "template": "restart-service",
            "state": "escalated",
            "error_code": "ROLLBACK_EXHAUSTED",
            "since": "2026-11-21T17:02:54.25Z",
            "redrivable": false,
            "receipt_id": "00000000-0000-0000-0000-000000000002",
            "lifecycle": "active",
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn what_can_be_taken_up_again() {
        let resumes = || escalated(Some(ActionState::Pending));
        assert!(resumes().is_redrivable());
        assert!(!escalated(None).is_redrivable());
        let mut unknown = resumes();
        unknown.action.parameters = None;
        let gone = Escalated {
            lifecycle: Some(Lifecycle::Decommissioned),
            ..resumes()
        };
        let nowhere = Escalated {
            stands: false,
            ..resumes()
        };
        for other in [unknown, gone, nowhere] {
            assert!(!other.is_redrivable());
        }
    }
}
