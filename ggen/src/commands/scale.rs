//! `ggen scale`: how many actions of a tenant may run at one time while nothing asks for more.

use std::fmt;
use std::io;

use aws::config;
use clap::Args;
use domain::account::AccountId;
use domain::operations::scale::ScaleOutcome;
use receipts::receipt::Concurrency;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cloud::{self, InvokeError, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::{self, Verdict};

fn after_help() -> String {
    format!(
        "\
Example:
  ggen scale --account-id customer-123 --concurrency 40

Sets the tenant's base concurrency. It rises above the base while more than ten signals wait for a free place, and returns
to it once the queue is empty. A value that the tenant's plans or the stack's budget do not allow is refused with exit code
1. Either way a signed receipt (governor_scaled or quota_exceeded) records the decision and its monthly cost.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen scale`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct ScaleArgs {
    /// The customer's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// Actions that may run at one time, 1 or more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    concurrency: u64,
}

/// Why it is not known whether the tenant was scaled.
#[derive(Debug, thiserror::Error)]
pub enum ScaleCommandError {
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

#[derive(Serialize)]
struct Answer {
    account_id: AccountId,
    #[serde(flatten)]
    outcome: ScaleOutcome,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = &self.account_id;
        let receipt_id = |receipt: &Value| {
            let id = receipt.get("receipt_id").and_then(Value::as_str);
            id.unwrap_or_default().to_owned()
        };
        match &self.outcome {
            ScaleOutcome::Scaled {
                concurrency, receipt, ..
            } => {
                let Concurrency { previous, new } = concurrency;
                writeln!(
                    f,
                    "SCALED: account {account} runs {new} at one time, {previous} before"
                )?;
                let cost = receipt.get("cost_delta_usd").unwrap_or(&Value::Null);
                write!(f, "cost {cost} USD a month\nreceipt {}", receipt_id(receipt))
            }
            ScaleOutcome::Unchanged { concurrency } => {
                write!(
                    f,
                    "UNCHANGED: account {account} runs {} at one time",
                    concurrency.new
                )
            }
            ScaleOutcome::Refused { reason, receipt } => {
                write!(f, "REFUSED: {reason}\nreceipt {}", receipt_id(receipt))
            }
            ScaleOutcome::NotFound => write!(f, "NOT FOUND: account {account} was never a tenant"),
            ScaleOutcome::NotActive { lifecycle } => {
                write!(
                    f,
                    "REFUSED: account {account} is {} and runs no actions",
                    lifecycle.name()
                )
            }
        }
    }
}

/// Gives a tenant a base.
///
/// # Errors
/// When the stack does not answer; a refusal is a verdict.
pub fn run(args: &ScaleArgs, out: &mut Out) -> Result<Verdict, ScaleCommandError> {
    cloud::block_on(scale(args, out))?
}

async fn scale(args: &ScaleArgs, out: &mut Out) -> Result<Verdict, ScaleCommandError> {
    let event = json!({ "account_id": args.account_id, "concurrency": args.concurrency });
    let (_, outcome) = cloud::invoke(config::SCALE_FUNCTION, &event).await?;
    let good = matches!(
        outcome,
        ScaleOutcome::Scaled { .. } | ScaleOutcome::Unchanged { .. }
    );
    if let ScaleOutcome::Scaled {
        not_paced: Some(why), ..
    } = &outcome
    {
        let line = format!(
            "the limit applies now, but the queue's polling could not be adjusted yet; a later run will do it: {why}"
        );
        report::note(&line);
    }
    out.show(&Answer {
        account_id: args.account_id.clone(),
        outcome,
    })?;
    Ok(Verdict::when(good))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    #[track_caller]
    fn check(answer: Value, expected: &str) {
        let answer = Answer {
            account_id: AccountId::parse("customer-123").unwrap(),
            outcome: ScaleOutcome::deserialize(&answer).unwrap(),
        };
        assert_eq!(answer.to_string(), expected);
    }

    #[test]
    fn every_outcome_is_told() {
        let concurrency = json!({ "previous": 10, "new": 20 });
        let receipt = json!({ "receipt_id": "r-1", "cost_delta_usd": 10.95 });
        check(
            json!({ "outcome": "scaled", "concurrency": concurrency, "receipt": receipt }),
            "SCALED: account customer-123 runs 20 at one time, 10 before\ncost 10.95 USD a month\nreceipt r-1",
        );
        check(
            json!({ "outcome": "unchanged", "concurrency": concurrency }),
            "UNCHANGED: account customer-123 runs 20 at one time",
        );
        check(
            json!({ "outcome": "refused", "reason": "the plans allow 10", "receipt": receipt }),
            "REFUSED: the plans allow 10\nreceipt r-1",
        );
        check(
            json!({ "outcome": "not_found" }),
            "NOT FOUND: account customer-123 was never a tenant",
        );
        check(
            json!({ "outcome": "not_active", "lifecycle": "decommissioned" }),
            "REFUSED: account customer-123 is decommissioned and runs no actions",
        );
    }
}
