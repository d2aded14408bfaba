//! `ggen resolve`: a person says that an escalated action is dealt with, or declines a routed one.

use std::fmt;
use std::io;
use std::sync::Arc;

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use clap::Args;
use domain::account::AccountId;
use domain::action::{ActionState, IllegalTransition};
use domain::names::Partition;
use domain::operations::resolve::{self, Resolution, Resolved};
use domain::signal::ActionId;
use domain::transaction::Account;
use receipts::receipt::{Payload, Receipt};
use serde::Serialize;
use uuid::Uuid;

use super::escalations;
use crate::cloud::{self, NEEDS_A_STACK, ReadError};
use crate::out::Out;
use crate::report::Verdict;

fn after_help() -> String {
    format!(
        "\
Example:
  ggen resolve a-1 --account-id customer-123 --note 'service restarted by hand, ticket 4711'

The action must be escalated, or routed to a person who declines it. It becomes final, and a signed action_resolved receipt in the tenant's ledger says who resolved it and how. This
also works for tenants that have left. Repeating the command changes nothing.
{NEEDS_A_STACK}
Exit code 0 resolved, now or earlier with the same note; 1 it does not wait for a person, or there is no such action; 2 could not tell."
    )
}

/// Arguments of `ggen resolve`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct ResolveArgs {
    /// The action that waits for a person
    #[arg(value_name = "ACTION", value_parser = cloud::action_id)]
    action_id: ActionId,
    /// The account [default: the one account in which an action with this id waits for a person]
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: Option<AccountId>,
    /// What was done about it, for the receipt (1 to 512 characters)
    #[arg(long, value_name = "TEXT", value_parser = cloud::persons_text)]
    note: String,
    /// Who resolved it, for the receipt
    #[arg(long, value_name = "NAME", env = "USER", value_parser = cloud::persons_text)]
    who: String,
}

/// Why an action could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot find out which account the action belongs to")]
    Find(#[from] ReadError),
    #[error("cannot read or write the action")]
    Store(#[from] StoreError),
    /// The signing key cannot be read; nothing was changed.
    #[error("cannot read the signing key; nothing was changed")]
    Secrets(#[from] SecretsError),
    #[error(
        "the action is resolved, but its receipt {receipt_id} is not in the index yet: run the command again"
    )]
    NoReceipt { receipt_id: Uuid },
    #[error("cannot read the receipt that resolved the action")]
    Receipt(#[from] serde_json::Error),
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Outcome {
    /// It is final now.
    Resolved {
        receipt_id: Uuid,
    },
    /// It was resolved before, with the same note.
    AlreadyResolved {
        receipt_id: Uuid,
        who: String,
    },
    /// It was resolved before, otherwise.
    ResolvedOtherwise {
        receipt_id: Uuid,
        who: String,
        note: String,
    },
    /// It waits for no person.
    NotEscalated {
        state: ActionState,
    },
    Unknown,
    /// Actions of this id wait for a person in several accounts.
    Several {
        accounts: Vec<AccountId>,
    },
}

#[derive(Serialize)]
struct Answer {
    action_id: ActionId,
    account_id: Option<AccountId>,
    #[serde(flatten)]
    outcome: Outcome,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action_id = self.action_id.as_str();
        match &self.outcome {
            Outcome::Resolved { receipt_id } => write!(f, "RESOLVED: {action_id}\nreceipt {receipt_id}"),
            Outcome::AlreadyResolved { receipt_id, who } => {
                write!(f, "RESOLVED earlier, by {who}: {action_id}\nreceipt {receipt_id}")
            }
            Outcome::ResolvedOtherwise {
                receipt_id,
                who,
                note,
            } => write!(
                f,
                "REFUSED: {who} has already resolved {action_id}: {note}\nreceipt {receipt_id}"
            ),
            Outcome::NotEscalated { state } => {
                write!(
                    f,
                    "REFUSED: {action_id} is {} and waits for no person",
                    state.name()
                )
            }
            Outcome::Unknown => match &self.account_id {
                Some(account_id) => write!(f, "REFUSED: {account_id} has no action {action_id}"),
                None => write!(
                    f,
                    "REFUSED: no action {action_id} waits for a person; if it was resolved already, pass \
                     --account-id"
                ),
            },
            Outcome::Several { accounts } => {
                let accounts: Vec<&str> = accounts.iter().map(AccountId::as_str).collect();
                let accounts = accounts.join(", ");
                write!(
                    f,
                    "REFUSED: an action {action_id} of several accounts waits for a person; choose one with --account-id: \
                     {accounts}"
                )
            }
        }
    }
}

impl Outcome {
    fn verdict(&self) -> Verdict {
        Verdict::when(match self {
            Self::Resolved { .. } | Self::AlreadyResolved { .. } => true,
            Self::ResolvedOtherwise { .. }
            | Self::NotEscalated { .. }
            | Self::Unknown
            | Self::Several { .. } => false,
        })
    }
}

/// Resolves an action.
///
/// # Errors
/// When the stack does not answer; an action that is not escalated is a verdict.
pub fn run(args: &ResolveArgs, out: &mut Out) -> Result<Verdict, ResolveError> {
    let answer = cloud::block_on(resolve(args))??;
    out.show(&answer)?;
    Ok(answer.outcome.verdict())
}

async fn resolve(args: &ResolveArgs) -> Result<Answer, ResolveError> {
    let stack = Stack::from_env()?;
    let sdk = clients::load().await;
    let store = Arc::new(Store::new(&sdk, stack.clone()));
    let answer = |account_id, outcome| Answer {
        action_id: args.action_id.clone(),
        account_id,
        outcome,
    };
    let account_id = match &args.account_id {
        Some(account_id) => account_id.clone(),
        None => {
            let found = escalations::find(&store, None, Some(&args.action_id)).await?;
            let mut accounts: Vec<AccountId> = found.into_iter().map(|found| found.account_id).collect();
            match (accounts.pop(), accounts.is_empty()) {
                (None, _) => return Ok(answer(None, Outcome::Unknown)),
                (Some(one), true) => one,
                (Some(one), false) => {
                    accounts.push(one);
                    accounts.sort();
                    return Ok(answer(None, Outcome::Several { accounts }));
                }
            }
        }
    };
    let signer = Secrets::new(&sdk).signer(&stack.signing_key_secret).await?;
    let outcome = Box::pin(settle(&store, &signer, &account_id, args)).await?;
    Ok(answer(Some(account_id), outcome))
}

async fn settle(
    store: &Store,
    signer: &receipts::Signer,
    account_id: &AccountId,
    args: &ResolveArgs,
) -> Result<Outcome, ResolveError> {
    let partition = Partition::of(account_id);
    let resolution = Resolution {
        action_id: &args.action_id,
        by: &args.who,
        note: &args.note,
        receipt_id: Uuid::now_v7(),
    };
    let decide = |account: &Account, now| Ok::<_, ResolveError>(resolve::resolve(account, &resolution, now)?);
    let keys = resolve::keys(&args.action_id);
    let (_, resolved) = store.transact(signer, &partition, &keys, None, decide).await?;
    let outcome = match resolved {
        Resolved::Now => Outcome::Resolved {
            receipt_id: resolution.receipt_id,
        },
        Resolved::Before(receipt_id) => return said(store, &partition, receipt_id, &args.note).await,
        Resolved::NotEscalated(state) => Outcome::NotEscalated { state },
        Resolved::Unknown => Outcome::Unknown,
    };
    Ok(outcome)
}

/// How an action was resolved before, as its receipt says.
async fn said(
    store: &Store,
    partition: &Partition,
    receipt_id: Uuid,
    note: &str,
) -> Result<Outcome, ResolveError> {
    let unknown = || ResolveError::NoReceipt { receipt_id };
    let places = store.find_receipt(receipt_id, Some(partition)).await?;
    let place = places.into_iter().find(|(found, _)| found == partition);
    let (_, seq) = place.ok_or_else(unknown)?;
    let line = store.receipt(partition, seq).await?.ok_or_else(unknown)?;
    match serde_json::from_str::<Receipt>(&line)?.payload {
        Payload::ActionResolved { who, note: said, .. } if said == note => {
            Ok(Outcome::AlreadyResolved { receipt_id, who })
        }
        Payload::ActionResolved { who, note, .. } => Ok(Outcome::ResolvedOtherwise {
            receipt_id,
            who,
            note,
        }),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn args() -> ResolveArgs {
        ResolveArgs {
            action_id: ActionId::try_from("a".to_owned()).unwrap(),
            account_id: None,
            note: "by hand".to_owned(),
            who: "ops".to_owned(),
        }
    }

    #[track_caller]
    fn check_answer(outcome: Outcome, verdict: Verdict, text: &str, json: serde_json::Value) {
        assert_eq!(outcome.verdict(), verdict);
        let answer = Answer {
            action_id: args().action_id,
            account_id: None,
            outcome,
        };
        assert!(answer.to_string().starts_with(text), "{answer}");
        assert_eq!(serde_json::to_value(&answer).unwrap(), json);
    }

    #[test]
    fn answers() {
        let receipt_id = Uuid::from_u128(1);
        check_answer(
            Outcome::Resolved { receipt_id },
            Verdict::Good,
            "RESOLVED: a\nreceipt 0",
            json!({ "action_id": "a", "account_id": null, "outcome": "resolved", "receipt_id": receipt_id }),
        );
        check_answer(
            Outcome::NotEscalated {
                state: ActionState::RolledBack,
            },
            Verdict::NotGood,
            "REFUSED: a is rolled_back and waits for no person",
            json!({ "action_id": "a", "account_id": null, "outcome": "not_escalated", "state": "rolled_back" }),
        );
        check_answer(
            Outcome::Unknown,
            Verdict::NotGood,
            "REFUSED: no action a waits",
            json!({ "action_id": "a", "account_id": null, "outcome": "unknown" }),
        );
    }
}
