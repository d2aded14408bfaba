//! `ggen tenants`: who there is, and how one of them stands.

mod list;
mod show;
pub(super) mod table;

use std::io;

use aws::config::ConfigError;
use aws::queues::QueueError;
use aws::store::StoreError;
use clap::Subcommand;
use domain::tenant::Tenant;
use jiff::Timestamp;
use policy::Isolation;

use crate::cloud;
use crate::out::Out;
use crate::report::Verdict;

/// What to know of tenants.
#[derive(Subcommand)]
pub enum TenantsCommand {
    /// List tenants by account, with what they hold and what is under way
    #[command(after_help = list::after_help())]
    List(list::ListArgs),
    /// Show all of one tenant: state, limits, ledger, queues, last receipts
    #[command(after_help = show::after_help())]
    Show(show::ShowArgs),
}

/// Why tenants could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the tables")]
    Store(#[from] StoreError),
    /// The queues do not say what they hold; the rest is shown.
    #[error("cannot read the tenant's queues; all else is shown")]
    Queue(#[from] QueueError),
    #[error("cannot read receipt {seq} of account {account}")]
    Receipt {
        account: String,
        seq: u64,
        source: serde_json::Error,
    },
    #[error("cannot write the answer as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("reading a tenant was broken off")]
    BrokenOff(#[from] tokio::task::JoinError),
    #[error("cannot go on")]
    System(#[from] io::Error),
}

/// Lists or shows.
///
/// # Errors
/// When the stack does not answer; a tenant that never was is a verdict.
pub fn run(command: &TenantsCommand, out: &mut Out) -> Result<Verdict, TenantsError> {
    match command {
        TenantsCommand::List(args) => cloud::block_on(list::list(args, out))?,
        TenantsCommand::Show(args) => cloud::block_on(show::show(args, out))?,
    }
}

/// Whose tables a tenant uses now.
fn isolation(tenant: &Tenant) -> &'static str {
    match &tenant.tables {
        Some(tables) if tables.archived.is_none() => Isolation::Dedicated.as_str(),
        _ => Isolation::Pool.as_str(),
    }
}

/// An instant for people, to the second.
fn when(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
