//! `ggen deliveries`: what marketplaces posted that changed nothing, and another try.

use std::fmt;
use std::io;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::entitlements::Retried;
use aws::pages::Pages;
use aws::store::{Store, StoreError, TurnedAwayAs};
use clap::{Args, Subcommand, ValueEnum};
use domain::transaction::{DeliveryRecord, Repeat, TurnedAway};
use domain::webhook::event::EntitlementEvent;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cloud::{self, InvokeError, NEEDS_A_STACK};
use crate::out::{Format, Out};
use crate::report::{self, Verdict};
use crate::table::{self, Column, minute, words};

/// Most deliveries of one answer.
const MAX_LIMIT: u64 = 100_000;
/// Columns that a line may take: ids are copied into the next command, so they should not be cut.
const WIDTH: usize = 170;

fn after_list() -> String {
    format!(
        "\
Examples:
  ggen deliveries list
  ggen deliveries list --answer refused --format jsonl | jq -r .delivery

Latest first. A delivery that changed nothing is kept for 30 days: as the event it was understood as, not as it was posted.
The list comes from an index that lags by a moment.
{NEEDS_A_STACK}
Exit code 0 none was refused, 1 some were, 2 could not tell."
    )
}

fn after_show() -> String {
    format!(
        "\
Examples:
  ggen deliveries show github#72d3162e-cc78-11e3-81ab-4c9367dc0958

{NEEDS_A_STACK}
Exit code 0 it is known, 1 it is not, 2 could not tell."
    )
}

fn after_retry() -> String {
    format!(
        "\
Examples:
  ggen policy deploy premium.yaml && ggen deliveries retry github#72d3162e-cc78-11e3-81ab-4c9367dc0958

Decides the event anew, as if it had come again, with its place among the others as of when it came first. The marketplace
gets the new answer if it delivers it again. Nothing is tried again that changed something.
{NEEDS_A_STACK}
Exit code 0 all were carried out or accepted, 1 one was not, 2 could not tell."
    )
}

/// What to know or do of deliveries.
#[derive(Subcommand)]
pub enum DeliveriesCommand {
    /// List the deliveries that changed nothing
    #[command(after_help = after_list())]
    List(ListArgs),
    /// Show what is known of one delivery
    #[command(after_help = after_show())]
    Show(ShowArgs),
    /// Decide deliveries anew that changed nothing
    #[command(after_help = after_retry())]
    Retry(RetryArgs),
}

/// Arguments of `ggen deliveries list`.
#[derive(Args)]
pub struct ListArgs {
    /// Only those that were answered so [default: both]
    #[arg(long, value_enum, value_name = "ANSWER")]
    answer: Option<Answer>,
    /// Most deliveries to list, latest first
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    limit: u64,
}

/// How a delivery that changed nothing was answered.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Answer {
    /// It could not be carried out (422)
    Refused,
    /// It asked for nothing, or for what was so already (200)
    Ignored,
}

/// Arguments of `ggen deliveries show`.
#[derive(Args)]
pub struct ShowArgs {
    /// Provider and id of the delivery, such as github#72d3162e-cc78-11e3-81ab-4c9367dc0958
    #[arg(value_name = "DELIVERY")]
    delivery: String,
}

/// Arguments of `ggen deliveries retry`.
#[derive(Args)]
pub struct RetryArgs {
    /// Provider and id of each delivery, as `ggen deliveries list` shows them
    #[arg(value_name = "DELIVERY", required = true)]
    deliveries: Vec<String>,
}

/// Why deliveries could not be looked at, or not be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeliveriesError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the deliveries")]
    Read(#[from] StoreError),
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

#[derive(Serialize)]
struct DeliveryLine {
    delivery: String,
    received_at: Timestamp,
    /// HTTP status of the answer.
    status: u16,
    account_id: Option<String>,
    /// What happened, in our words.
    change: Option<&'static str>,
    reason: String,
}

impl DeliveryLine {
    fn of(record: &DeliveryRecord, turned_away: &TurnedAway) -> Self {
        let event = turned_away.event.as_ref();
        Self {
            delivery: record.key.clone(),
            received_at: turned_away.received_at,
            status: record.status,
            account_id: event.map(|event| event.account_id.to_string()),
            change: event.map(|event| event.change.name()),
            reason: turned_away.reason.clone(),
        }
    }

    fn row(&self) -> [String; 6] {
        [
            minute(self.received_at),
            self.delivery.clone(),
            self.status.to_string(),
            self.account_id.clone().unwrap_or_default(),
            self.change.unwrap_or_default().to_owned(),
            self.reason.clone(),
        ]
    }
}

const COLUMNS: [Column; 6] = [
    words("RECEIVED"),
    words("DELIVERY"),
    words("ANSWER"),
    words("ACCOUNT"),
    words("EVENT"),
    words("REASON"),
];

#[derive(Serialize)]
struct DeliveryList {
    deliveries: Vec<DeliveryLine>,
    /// Whether there are more than were asked for.
    more: bool,
}

impl fmt::Display for DeliveryList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deliveries.is_empty() {
            return f.write_str("no deliveries that changed nothing");
        }
        let rows: Vec<_> = self.deliveries.iter().map(DeliveryLine::row).collect();
        f.write_str(table::layout(&COLUMNS, &rows, WIDTH).trim_end())
    }
}

/// What is known of one delivery.
#[derive(Serialize)]
struct Known {
    delivery: String,
    status: u16,
    state: &'static str,
    received_at: Option<Timestamp>,
    reason: Option<String>,
    event: Option<EntitlementEvent>,
    receipt: Value,
}

impl Known {
    fn of(record: DeliveryRecord) -> Self {
        let state = match record.repeat {
            Repeat::Answered => "carried out",
            Repeat::UnderWay => "being carried out",
            Repeat::TurnedAway(_) => "changed nothing",
        };
        let turned_away = record.turned_away();
        Self {
            state,
            received_at: turned_away.map(|delivery| delivery.received_at),
            reason: turned_away.map(|delivery| delivery.reason.clone()),
            event: turned_away.and_then(|delivery| delivery.event.clone()),
            receipt: serde_json::from_str(&record.receipt).unwrap_or_default(),
            delivery: record.key,
            status: record.status,
        }
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![
            ["delivery".to_owned(), self.delivery.clone()],
            ["state".to_owned(), self.state.to_owned()],
            ["answer".to_owned(), self.status.to_string()],
        ];
        let mut more = |name: &str, value: Option<String>| {
            rows.extend(value.map(|value| [name.to_owned(), value]));
        };
        more("received", self.received_at.map(|at| at.to_string()));
        more("reason", self.reason.clone());
        let event = self.event.as_ref();
        more("event", event.and_then(|event| serde_json::to_string(event).ok()));
        let receipt = self.receipt.get("receipt_id").and_then(Value::as_str);
        more("receipt", receipt.map(str::to_owned));
        // A line is as long as it is: the event is there to be read.
        f.write_str(table::layout(&[words(""), words("")], &rows, usize::MAX).trim_end())
    }
}

#[derive(Serialize)]
struct RetryLine {
    delivery: String,
    /// HTTP status that its sender gets from now on; none when there was nothing to decide.
    status: Option<u16>,
    said: String,
}

#[derive(Serialize)]
struct RetryList {
    deliveries: Vec<RetryLine>,
}

impl fmt::Display for RetryList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |line: &RetryLine| {
            let status = line
                .status
                .map_or_else(|| "REFUSED".to_owned(), |status| status.to_string());
            [line.delivery.clone(), status, line.said.clone()]
        };
        let rows: Vec<_> = self.deliveries.iter().map(row).collect();
        f.write_str(table::layout(&[words(""), words(""), words("")], &rows, WIDTH).trim_end())
    }
}

/// Lists, shows or tries again.
///
/// # Errors
/// When the stack does not answer; a delivery that is not known, or is refused again, is a verdict.
pub fn run(command: &DeliveriesCommand, out: &mut Out) -> Result<Verdict, DeliveriesError> {
    match command {
        DeliveriesCommand::List(args) => cloud::block_on(list(args, out))?,
        DeliveriesCommand::Show(args) => cloud::block_on(show(args, out))?,
        DeliveriesCommand::Retry(args) => cloud::block_on(retry(args, out))?,
    }
}

async fn store() -> Result<Store, ConfigError> {
    Ok(Store::new(&clients::load().await, Stack::from_env()?))
}

async fn list(args: &ListArgs, out: &mut Out) -> Result<Verdict, DeliveriesError> {
    let store = store().await?;
    let answers = match args.answer {
        None => vec![TurnedAwayAs::Refused, TurnedAwayAs::Ignored],
        Some(Answer::Refused) => vec![TurnedAwayAs::Refused],
        Some(Answer::Ignored) => vec![TurnedAwayAs::Ignored],
    };
    let mut deliveries = Vec::new();
    for answer in answers {
        let mut pages = Pages::default();
        while let Some(page) = pages
            .next(async |after| store.turned_away(answer, after).await)
            .await?
        {
            let lines = page
                .iter()
                .filter_map(|record| Some((record, record.turned_away()?)));
            deliveries.extend(lines.map(|(record, delivery)| DeliveryLine::of(record, delivery)));
        }
    }
    deliveries.sort_by(|one, other| {
        let key = |line: &DeliveryLine| (std::cmp::Reverse(line.received_at), line.delivery.clone());
        key(one).cmp(&key(other))
    });
    let refused = deliveries
        .iter()
        .any(|line| TurnedAwayAs::of(line.status) == TurnedAwayAs::Refused);
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let more = deliveries.len() > limit;
    deliveries.truncate(limit);
    let listed = DeliveryList { deliveries, more };
    out.list(&listed, &listed.deliveries)?;
    if more && out.format() != Some(Format::Json) {
        report::note(&format!("there are more than {limit}: raise --limit"));
    }
    Ok(Verdict::when(!refused))
}

async fn show(args: &ShowArgs, out: &mut Out) -> Result<Verdict, DeliveriesError> {
    let Some(record) = store().await?.delivery(&args.delivery).await? else {
        report::note(&format!("no delivery {} is known", args.delivery));
        return Ok(Verdict::NotGood);
    };
    out.show(&Known::of(record))?;
    Ok(Verdict::Good)
}

async fn retry(args: &RetryArgs, out: &mut Out) -> Result<Verdict, DeliveriesError> {
    let mut deliveries = Vec::with_capacity(args.deliveries.len());
    for delivery in &args.deliveries {
        let event = json!({ "retry": { "delivery": delivery } });
        let (_, retried) = cloud::invoke(config::ENTITLEMENT_FUNCTION, &event).await?;
        let (status, said) = match retried {
            Retried::Refused { refused } => (None, refused),
            Retried::Answered { status, receipt } => {
                let told = ["reason", "operation"]
                    .iter()
                    .find_map(|name| receipt.get(name)?.as_str());
                (Some(status), told.unwrap_or_default().to_owned())
            }
        };
        deliveries.push(RetryLine {
            delivery: delivery.clone(),
            status,
            said,
        });
    }
    let good = |line: &RetryLine| line.status.is_some_and(|status| status < 400);
    let verdict = Verdict::when(deliveries.iter().all(good));
    let listed = RetryList { deliveries };
    out.list(&listed, &listed.deliveries)?;
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use domain::account::AccountId;
    use domain::provisioning::DeliveryRef;
    use domain::webhook::event::Change;

    use super::*;

    fn record(status: u16, event: Option<EntitlementEvent>) -> DeliveryRecord {
        DeliveryRecord {
            key: "github#d-1".to_owned(),
            body_sha256: "00".to_owned(),
            status,
            receipt: r#"{"receipt_id":"r-1"}"#.to_owned(),
            repeat: Repeat::TurnedAway(Box::new(TurnedAway {
                asked: DeliveryRef {
                    provider: "github".to_owned(),
                    delivery_id: "d-1".to_owned(),
                    body_sha256: "00".to_owned(),
                },
                received_at: "2026-11-21T17:02:54.250Z".parse().unwrap(),
                reason: "no policy for plan 7 of github".to_owned(),
                event,
            })),
        }
    }

    fn cancelled() -> EntitlementEvent {
        EntitlementEvent {
            account_id: AccountId::parse("github-5").unwrap(),
            entitlement_id: None,
            product: None,
            version: None,
            effective_at: None,
            change: Change::Cancelled,
        }
    }

    #[test]
    fn one_line_each() {
        let (refused, ignored) = (record(422, Some(cancelled())), record(200, None));
        let line = |record: &DeliveryRecord| DeliveryLine::of(record, record.turned_away().unwrap());
        let listed = DeliveryList {
            deliveries: vec![line(&refused), line(&ignored)],
            more: false,
        };
        let expected = "\
RECEIVED           DELIVERY    ANSWER  ACCOUNT   EVENT         REASON
2026-11-21 17:02Z  github#d-1  422     github-5  cancellation  no policy for plan 7 of github
2026-11-21 17:02Z  github#d-1  200                             no policy for plan 7 of github";
        assert_eq!(listed.to_string(), expected);
    }

    #[test]
    fn one_whole() {
        let shown = Known::of(record(422, Some(cancelled()))).to_string();
        let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "delivery  github#d-1",
                "state     changed nothing",
                "answer    422",
                "received  2026-11-21T17:02:54.25Z",
                "reason    no policy for plan 7 of github",
                "event     {\"account_id\":\"github-5\",\"entitlement_id\":null,\"product\":null,\"version\":null,\
                 \"effective_at\":null,\"change\":\"cancelled\"}",
                "receipt   r-1",
            ]
        );
        let answered = Known::of(DeliveryRecord {
            repeat: Repeat::Answered,
            ..record(200, None)
        });
        assert_eq!((answered.state, answered.event), ("carried out", None));
    }
}
