//! `ggen action`: how one action stands, and why.

use std::fmt;
use std::io;

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::store::{Store, StoreError};
use clap::{Args, Subcommand};
use domain::account::AccountId;
use domain::action::{Action, ActionState};
use domain::names::Partition;
use domain::signal::ActionId;
use domain::transaction::Keys;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::Verdict;
use crate::table::{self, Column, WIDTH, indented, short, when, words};

fn show_help() -> String {
    format!(
        "\
Examples:
  ggen action show restart-7 --account-id customer-123
  ggen action show restart-7 --account-id customer-123 --format json | jq -r .state

States: pending and running go on by themselves, and so do failed and timed_out, which are being undone. complete,
rolled_back, refused, routed, escalated and resolved are final. --format json includes the receipts whole. A signal that
no governor has looked at yet has no action: `ggen tenants show` counts those. Exit code 1 if there is no such action.
{NEEDS_A_STACK}"
    )
}

/// What to know of actions.
#[derive(Subcommand)]
pub enum ActionCommand {
    /// Show one action: its state, why, and its receipts
    #[command(after_help = show_help())]
    Show(ShowArgs),
}

/// Arguments of `ggen action show`.
#[derive(Args)]
pub struct ShowArgs {
    /// The action's id
    #[arg(value_name = "ACTION", value_parser = cloud::action_id)]
    action_id: ActionId,
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
}

/// Why an action could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ActionCommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the tables")]
    Store(#[from] StoreError),
    #[error("cannot read a receipt of action {action_id}")]
    Receipt {
        action_id: String,
        source: serde_json::Error,
    },
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

#[derive(Serialize)]
struct Unknown<'a> {
    account_id: &'a AccountId,
    action_id: &'a ActionId,
    known: bool,
}

impl fmt::Display for Unknown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (account, action) = (self.account_id, self.action_id.as_str());
        write!(
            f,
            "NOT FOUND: account {account} has no action {action}; a signal that still waits on its queue has none yet"
        )
    }
}

/// What follows from an action's receipts, for one who asks why.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Reason {
    code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Reason {
    /// What the last receipt says that gives a reason.
    fn of(receipts: &[Value]) -> Option<Self> {
        let text = |receipt: &Value, field: &str| Some(receipt.get(field)?.as_str()?.to_owned());
        receipts.iter().rev().find_map(|receipt| {
            let code = text(receipt, "code").or_else(|| text(receipt, "error_code"));
            let timeout = receipt
                .get("timeout_ms")
                .map(|ms| format!("TIMEOUT after {ms} ms"));
            Some(Self {
                code: code.or(timeout)?,
                detail: text(receipt, "detail"),
            })
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code)?;
        self.detail.iter().try_for_each(|detail| write!(f, ": {detail}"))
    }
}

#[derive(Serialize)]
struct ActionView<'a> {
    account_id: &'a AccountId,
    action_id: &'a ActionId,
    template: &'a str,
    state: &'static str,
    /// Whether nothing more happens to it by itself.
    is_final: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<Reason>,
    policy_hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entitlement_id: Option<&'a str>,
    started_at: String,
    rollback_attempts: u64,
    receipt_ids: &'a [Uuid],
    receipts: Vec<Value>,
    #[serde(skip)]
    rows: Vec<[String; 4]>,
}

const COLUMNS: [Column; 4] = [words("PLACE"), words("TIME"), words("RECEIPT"), words("ID")];

impl<'a> ActionView<'a> {
    fn of(account_id: &'a AccountId, action: &'a Action, lines: &[String]) -> serde_json::Result<Self> {
        let receipts: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line))
            .collect::<Result<_, _>>()?;
        let escalated = action.escalation.as_ref().map(|why| Reason {
            code: why.error_code.clone(),
            detail: None,
        });
        Ok(Self {
            account_id,
            action_id: &action.action_id,
            template: &action.template,
            state: action.state.name(),
            is_final: action.state.is_final(),
            // What is complete needs no reason.
            why: escalated
                .or_else(|| Reason::of(&receipts))
                .filter(|_| action.state != ActionState::Complete),
            policy_hash: &action.policy_hash,
            entitlement_id: action.entitlement_id.as_ref().map(|id| id.as_str()),
            started_at: format!("{:.3}", action.started_at),
            rollback_attempts: action.rollback_attempts,
            receipt_ids: &action.receipts,
            rows: receipts.iter().map(row).collect(),
            receipts,
        })
    }
}

fn row(receipt: &Value) -> [String; 4] {
    let text = |field: &str| match receipt.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    let time = text("timestamp").parse().map_or_else(|_| text("timestamp"), when);
    [text("seq"), time, text("operation"), text("receipt_id")]
}

impl fmt::Display for ActionView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut facts = vec![
            ["action", self.action_id.as_str()].map(str::to_owned),
            ["account", self.account_id.as_str()].map(str::to_owned),
            ["template", self.template].map(str::to_owned),
            ["state", self.state].map(str::to_owned),
        ];
        let mut fact = |name: &str, text: String| facts.push([name.to_owned(), text]);
        if let Some(why) = &self.why {
            fact("why", why.to_string());
        }
        fact("started", self.started_at.clone());
        if let Some(id) = self.entitlement_id {
            fact("entitlement", id.to_owned());
        }
        fact("policy", short(self.policy_hash));
        if self.rollback_attempts > 0 {
            fact("rollbacks", self.rollback_attempts.to_string());
        }
        f.write_str(&table::layout(&[words(""), words("")], &facts, WIDTH))?;
        let missing = self.receipt_ids.len().saturating_sub(self.rows.len());
        match (self.rows.is_empty(), missing) {
            (true, 0) => return f.write_str("no receipts yet"),
            (true, _) => {}
            (false, _) => {
                writeln!(f, "receipts")?;
                let rows = indented(&table::layout(&COLUMNS, &self.rows, WIDTH), 2);
                f.write_str(rows.trim_end_matches('\n'))?;
            }
        }
        match missing {
            0 => Ok(()),
            _ => write!(
                f,
                "\n{missing} more are not in the index yet: ask again in a moment"
            ),
        }
    }
}

/// Shows.
///
/// # Errors
/// When the stack does not answer; an action that is unknown is a verdict.
pub fn run(command: &ActionCommand, out: &mut Out) -> Result<Verdict, ActionCommandError> {
    let ActionCommand::Show(args) = command;
    cloud::block_on(show(args, out))?
}

async fn show(args: &ShowArgs, out: &mut Out) -> Result<Verdict, ActionCommandError> {
    let store = Store::new(&clients::load().await, Stack::from_env()?);
    let partition = Partition::of(&args.account_id);
    let keys = Keys {
        actions: [args.action_id.clone()].into(),
        ..Keys::default()
    };
    let account = store.load(&partition, &keys).await?;
    let Some(action) = account.actions.get(&args.action_id) else {
        out.show(&Unknown {
            account_id: &args.account_id,
            action_id: &args.action_id,
            known: false,
        })?;
        return Ok(Verdict::NotGood);
    };
    let lines = store.receipts_of(&partition, &action.receipts).await?;
    let view = ActionView::of(&args.account_id, action, &lines);
    let view = view.map_err(|source| ActionCommandError::Receipt {
        action_id: args.action_id.as_str().to_owned(),
        source,
    })?;
    out.show(&view)?;
    Ok(Verdict::Good)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_reason_counts() {
        let of = |receipts: &[Value]| Reason::of(receipts).map(|reason| reason.to_string());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[json!({"operation": "action_rolled_back"})]), None);
        let failed = json!({"operation": "action_failed", "error_code": "BROKEN"});
        let undone = json!({"operation": "action_rolled_back"});
        assert_eq!(of(&[failed.clone(), undone]).as_deref(), Some("BROKEN"));
        let timeout = json!({"operation": "action_timeout", "timeout_ms": 500});
        assert_eq!(
            of(std::slice::from_ref(&timeout)).as_deref(),
            Some("TIMEOUT after 500 ms")
        );
        assert_eq!(of(&[timeout, failed]).as_deref(), Some("BROKEN"));
        let refused =
            json!({"operation": "action_refused", "code": "DENIED", "detail": "replicas is over 10"});
        assert_eq!(of(&[refused]).as_deref(), Some("DENIED: replicas is over 10"));
    }

    #[test]
    fn an_action_is_told() {
        let id = |n| Uuid::from_u128(n);
        let account_id = AccountId::parse("customer-123").unwrap();
        let action_id = ActionId::try_from("a-1".to_owned()).unwrap();
        let mut action = Action::pending(
            action_id,
            "restart-service",
            &"ab".repeat(32),
            Timestamp::UNIX_EPOCH,
        );
        let told = |action: &Action, lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
            let view = ActionView::of(&account_id, action, &lines).unwrap();
            (view.to_string(), serde_json::to_value(&view).unwrap())
        };
        let (text, json) = told(&action, &[]);
        assert!(text.ends_with("no receipts yet"), "{text}");
        assert_eq!(
            (&json["state"], &json["is_final"]),
            (&json!("pending"), &json!(false))
        );

        action.receipts = vec![id(1), id(2)];
        let line = r#"{"seq":7,"timestamp":"2026-01-31T12:00:00.000Z","operation":"action_refused","receipt_id":"r-1","code":"DENIED"}"#;
        let (text, json) = told(&action, &[line]);
        for part in [
            "why       DENIED\n",
            "7      2026-01-31",
            "action_refused",
            "1 more are not in the index yet",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!(json["receipts"][0]["seq"], 7);
        assert_eq!(json["receipt_ids"].as_array().unwrap().len(), 2);
    }
}
