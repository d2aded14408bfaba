//! `ggen tenants`: who there is, and how one of them stands.

mod list;
mod show;

use std::io;

use clap::Subcommand;

use crate::cloud;
use crate::out::Out;
use crate::report::Verdict;

/// What to know of tenants.
#[derive(Subcommand)]
pub enum TenantsCommand {
    /// List tenants by account, with their entitlements and pending work
    #[command(after_help = list::after_help())]
    List(list::ListArgs),
    /// Show one tenant: state, limits, ledger, queues, last receipts
    #[command(after_help = show::after_help())]
    Show(show::ShowArgs),
}

/// Why tenants could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    #[error(transparent)]
    List(#[from] list::ListError),
    #[error(transparent)]
    Show(#[from] show::ShowError),
    #[error("cannot start the runtime")]
    System(#[from] io::Error),
}

/// Lists or shows.
///
/// # Errors
/// When the stack does not answer; a tenant that never was is a verdict.
pub fn run(command: &TenantsCommand, out: &mut Out) -> Result<Verdict, TenantsError> {
    match command {
        TenantsCommand::List(args) => Ok(cloud::block_on(list::list(args, out))??),
        TenantsCommand::Show(args) => Ok(cloud::block_on(show::show(args, out))??),
    }
}
