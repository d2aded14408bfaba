//! What the commands that need a stack share: a runtime to wait in, and the ledger or tenant they are asked about.

use std::future::Future;
use std::io;

use aws::store::{Account, Keys, Store, StoreError};
use clap::Args;
use domain::account::{AccountId, IdError};
use domain::names;

/// The end of every help of a command that needs a stack.
pub const NEEDS_A_STACK: &str = "\
Needs the stack's names and AWS credentials in the environment (TENANTS_TABLE and so on): the template's outputs in the
cloud, target/local-cloud/env.sh for the local one.";

/// Runs to the end on this thread.
///
/// # Errors
/// When the system has no event queue to give.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future))
}

/// Whose ledger.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct LedgerArgs {
    /// The customer's account
    #[arg(long, value_name = "ID", value_parser = account_id)]
    account_id: Option<AccountId>,
    /// The control plane's own ledger: safe mode, policies, switches
    #[arg(long)]
    system: bool,
}

impl LedgerArgs {
    /// The account, as receipts name it.
    pub fn account(&self) -> &str {
        self.account_id
            .as_ref()
            .map_or(names::SYSTEM_ACCOUNT, AccountId::as_str)
    }

    /// The tables' key of the account.
    pub fn partition(&self) -> String {
        self.account_id
            .as_ref()
            .map_or_else(|| names::SYSTEM_ACCOUNT.to_owned(), names::partition_key)
    }
}

/// Reads an account id from the command line.
///
/// # Errors
/// [`IdError`], told as wrong usage.
pub fn account_id(text: &str) -> Result<AccountId, IdError> {
    AccountId::parse(text)
}

/// Reads an account's tenant and head.
///
/// # Errors
/// [`StoreError`] when the table does not answer.
pub async fn load(store: &Store, partition: &str) -> Result<Account, StoreError> {
    store.load(partition, &Keys::default()).await
}
