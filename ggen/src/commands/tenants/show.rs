//! `ggen tenants show`: all there is to know of one tenant.

mod answer;
mod text;

use std::fmt;
use std::io;

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::queues::{Backlog, QueueError, Teardown};
use aws::store::{Store, StoreError};
use clap::Args;
use domain::account::AccountId;
use domain::names::Partition;
use domain::transaction::Account;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use self::answer::{Lag, Queues, TenantView};
use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::Verdict;

/// Most receipts of one answer; `ggen export-receipts` writes whole ledgers.
const MAX_RECEIPTS: u64 = 1000;
/// The end of the command's help.
pub fn after_help() -> String {
    format!(
        "\
Examples:
  ggen tenants show --account-id customer-123
  ggen tenants show --account-id customer-123 --receipts 0 --format json | jq .backlog

The backlog is the queue's messages minus the actions in flight, since hidden messages are being processed. Signals wait for
a free place, for a free place of their entitlement, or to be polled; the age of the oldest is exact only while all places
are taken. In JSON: backlog.lag, .waits_for (place, entitlement, poll or null), .oldest_age_seconds, .places_in_use, .places.

Hashes and long names are shortened; --format json has them in full. Queue counts are SQS estimates. Exit code 1 if the
account is unknown.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen tenants show`.
#[derive(Args)]
pub struct ShowArgs {
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// How many of the latest receipts to show
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=MAX_RECEIPTS))]
    receipts: u64,
}

/// Why a tenant could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the tables")]
    Store(#[from] StoreError),
    #[error("cannot read the tenant's queues; everything else is shown")]
    Queue(#[from] QueueError),
    #[error("cannot read receipt {seq} of account {account}")]
    Receipt {
        account: String,
        seq: u64,
        source: serde_json::Error,
    },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct UnknownAccount<'a> {
    account_id: &'a AccountId,
    known: bool,
}

impl fmt::Display for UnknownAccount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NOT FOUND: account {} is unknown", self.account_id)
    }
}

/// Shows a tenant.
///
/// # Errors
/// [`ShowError`] when the stack does not answer; an account that never was is a verdict.
pub async fn show(args: &ShowArgs, out: &mut Out) -> Result<Verdict, ShowError> {
    let stack = Stack::from_env()?;
    let sdk = clients::load().await;
    let store = Store::new(&sdk, stack);
    let account = cloud::load(&store, &Partition::of(&args.account_id)).await?;
    if account.tenant.is_none() && account.head.size == 0 {
        let account_id = &args.account_id;
        out.show(&UnknownAccount {
            account_id,
            known: false,
        })?;
        return Ok(Verdict::NotGood);
    }
    let receipts = last_receipts(&store, &account, args.receipts).await?;
    let now = Timestamp::now();
    let mut shown = TenantView::of(&account, &args.account_id, receipts, now);
    let asked = match &mut shown.queues {
        Some(queues) => lags(queues, &Teardown::new(&sdk)).await,
        None => Ok(()),
    };
    shown.backlog = shown.backlog_of(account.tenant.as_ref(), now);
    // Who asks while queues do not answer wants to know the rest all the more.
    out.show(&shown)?;
    asked?;
    Ok(Verdict::Good)
}

/// The end of the ledger, as far as its head reaches.
async fn last_receipts(store: &Store, account: &Account, count: u64) -> Result<Vec<Value>, ShowError> {
    let size = account.head.size;
    let mut seq = size.saturating_sub(count);
    let mut receipts = Vec::new();
    while seq < size {
        let page = store.receipts_from(&account.partition, seq).await?;
        if page.is_empty() {
            break;
        }
        for line in page {
            if seq >= size {
                break;
            }
            let receipt = serde_json::from_str(&line).map_err(|source| ShowError::Receipt {
                account: account.partition.to_string(),
                seq,
                source,
            })?;
            receipts.push(receipt);
            seq += 1;
        }
    }
    Ok(receipts)
}

async fn lags(queues: &mut Queues, teardown: &Teardown) -> Result<(), QueueError> {
    for queue in [&mut queues.signals, &mut queues.dead_letters] {
        let Backlog {
            waiting,
            in_flight,
            delayed,
        } = teardown.backlog(&queue.url).await?;
        queue.lag = Some(Lag {
            waiting,
            in_flight,
            delayed,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
