//! One file per command.

pub mod audit;
pub mod canonicalize;
pub mod checkpoint;
pub mod escalations;
pub mod export_receipts;
pub mod handler;
pub mod hash;
pub mod keys;
pub mod policy;
pub mod prove;
pub mod redrive;
pub mod resolve;
pub mod scale;
pub mod send_signal;
pub mod switches;
pub mod tenants;
pub mod verify_archive;
pub mod verify_receipt;
pub mod webhook;

use std::error::Error;

use crate::cli::Command;
use crate::out::Out;
use crate::report::Verdict;

/// Runs a command.
///
/// # Errors
/// The command's own error, when it could not tell.
pub fn run(command: Command, out: &mut Out) -> Result<Verdict, Box<dyn Error>> {
    Ok(match command {
        Command::Audit(args) => audit::run(&args, out)?,
        Command::Canonicalize(args) => canonicalize::run(&args, out)?,
        Command::Checkpoint(args) => checkpoint::run(&args, out)?,
        Command::Escalations(args) => escalations::run(&args, out)?,
        Command::ExportReceipts(args) => export_receipts::run(&args, out)?,
        Command::Handler(args) => handler::run(&args, out)?,
        Command::Hash(args) => hash::run(&args, out)?,
        Command::Keys(command) => keys::run(command, out)?,
        Command::Policy(command) => policy::run(&command, out)?,
        Command::Prove(args) => prove::run(&args, out)?,
        Command::Redrive(args) => redrive::run(&args, out)?,
        Command::Resolve(args) => resolve::run(&args, out)?,
        Command::Scale(args) => scale::run(&args, out)?,
        Command::SendSignal(args) => send_signal::run(&args, out)?,
        Command::Switches(command) => switches::run(&command, out)?,
        Command::Tenants(command) => tenants::run(&command, out)?,
        Command::VerifyArchive(args) => verify_archive::run(&args, out)?,
        Command::VerifyReceipt(args) => verify_receipt::run(&args, out)?,
        Command::Webhook(command) => webhook::run(&command, out)?,
    })
}
