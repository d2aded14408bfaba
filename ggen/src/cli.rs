//! What can be asked of `ggen`, and its help.

use std::error::Error;
use std::fmt::Write as _;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    action, archive, audit, canonicalize, checkpoint, escalations, export_receipts, handler, hash, keys,
    policy, prove, redrive, resolve, scale, send_signal, switches, tenants, verify_archive, verify_receipt,
    webhook,
};
use crate::out::{Format, Out};
use crate::report::Verdict;

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or verified
  1  refused, or not verified
  2  could not tell: wrong usage, or something needed is missing or unreachable

`ggen <command> --help` shows a command's options and examples.";

/// Headings of `ggen --help`, each with its commands.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "Operate a stack",
        &[
            "tenants",
            "send-signal",
            "action",
            "escalations",
            "resolve",
            "redrive",
            "scale",
            "switches",
        ],
    ),
    (
        "Audit a live ledger",
        &["audit", "export-receipts", "checkpoint", "prove", "archive"],
    ),
    (
        "Verify (offline, no AWS account)",
        &["verify-archive", "verify-receipt", "canonicalize", "hash"],
    ),
    ("Policy", &["policy"]),
    ("Keys and webhooks", &["keys", "webhook"]),
    ("Development", &["handler"]),
];

/// Marketplace Governor's command line for operators, compliance and auditors
#[derive(Parser)]
#[command(name = "ggen", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// Output format: human, json or jsonl [default: human; export-receipts: jsonl, and csv]
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    pub format: Option<Format>,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands, one file below `commands/` each.
#[derive(Subcommand)]
pub enum Command {
    /// Show the state of one action, why, and its receipts
    #[command(subcommand)]
    Action(action::ActionCommand),
    /// Download the archive of a tenant that has left
    #[command(subcommand)]
    Archive(archive::ArchiveCommand),
    /// Check a whole live ledger: receipts, head, checkpoints and actions
    Audit(audit::AuditArgs),
    /// Write the canonical form (RFC 8785) of a JSON value
    Canonicalize(canonicalize::CanonicalizeArgs),
    /// Sign a checkpoint of a ledger, or prove that it continues an older one
    Checkpoint(checkpoint::CheckpointArgs),
    /// List the actions that wait for a person
    Escalations(escalations::EscalationsArgs),
    /// Export the receipts of a tenant, or of the system, in order
    ExportReceipts(export_receipts::ExportReceiptsArgs),
    /// Run the sample action handler, which succeeds, fails or stalls as a signal's parameters say
    Handler(handler::HandlerArgs),
    /// Print the hash of a receipt, of any JSON value, or of a file's bytes
    Hash(hash::HashArgs),
    /// Create, rotate and revoke keys; create secrets
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Compile or deploy a policy
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Write a short proof that a signed checkpoint covers a receipt
    Prove(prove::ProveArgs),
    /// Return dead letters to the queue, and resume escalated actions
    Redrive(redrive::RedriveArgs),
    /// Mark an escalated action as resolved
    Resolve(resolve::ResolveArgs),
    /// Set how many of a tenant's actions run at one time
    Scale(scale::ScaleArgs),
    /// Send signals to a tenant's governor
    SendSignal(send_signal::SendSignalArgs),
    /// Show or change what runs without approval by a person
    #[command(subcommand)]
    Switches(switches::SwitchesCommand),
    /// List tenants, or show the state of one
    #[command(subcommand)]
    Tenants(tenants::TenantsCommand),
    /// Check a tenant's archive: every receipt, the chain, the policies
    VerifyArchive(verify_archive::VerifyArchiveArgs),
    /// Check one receipt's form and signature, and its proof
    VerifyReceipt(verify_receipt::VerifyReceiptArgs),
    /// Sign a webhook as a marketplace would, or check one
    #[command(subcommand)]
    Webhook(webhook::WebhookCommand),
}

impl Command {
    /// Runs it.
    ///
    /// # Errors
    /// The command's own error, when it could not tell.
    pub fn run(self, out: &mut Out) -> Result<Verdict, Box<dyn Error>> {
        Ok(match self {
            Self::Action(command) => action::run(&command, out)?,
            Self::Archive(command) => archive::run(&command, out)?,
            Self::Audit(args) => audit::run(&args, out)?,
            Self::Canonicalize(args) => canonicalize::run(&args, out)?,
            Self::Checkpoint(args) => checkpoint::run(&args, out)?,
            Self::Escalations(args) => escalations::run(&args, out)?,
            Self::ExportReceipts(args) => export_receipts::run(&args, out)?,
            Self::Handler(args) => handler::run(&args, out)?,
            Self::Hash(args) => hash::run(&args, out)?,
            Self::Keys(command) => keys::run(command, out)?,
            Self::Policy(command) => policy::run(&command, out)?,
            Self::Prove(args) => prove::run(&args, out)?,
            Self::Redrive(args) => redrive::run(&args, out)?,
            Self::Resolve(args) => resolve::run(&args, out)?,
            Self::Scale(args) => scale::run(&args, out)?,
            Self::SendSignal(args) => send_signal::run(&args, out)?,
            Self::Switches(command) => switches::run(&command, out)?,
            Self::Tenants(command) => tenants::run(&command, out)?,
            Self::VerifyArchive(args) => verify_archive::run(&args, out)?,
            Self::VerifyReceipt(args) => verify_receipt::run(&args, out)?,
            Self::Webhook(command) => webhook::run(&command, out)?,
        })
    }
}

/// Reads the command line; on wrong usage or `--help` it answers and ends the process, as clap does.
pub fn parse() -> Cli {
    let mut command = grouped(Cli::command());
    let matches = command.get_matches_mut();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if cli.format == Some(Format::Csv) && !matches!(cli.command, Command::ExportReceipts(_)) {
        let problem = "--format csv is for export-receipts; this command writes human, json or jsonl";
        command.error(ErrorKind::InvalidValue, problem).exit();
    }
    cli
}

/// Puts the commands under headings, which clap does not do by itself.
fn grouped(command: clap::Command) -> clap::Command {
    let mut template = String::from("{about-with-newline}\n{usage-heading} {usage}\n");
    for (heading, names) in GROUPS {
        let _ = write!(template, "\n{heading}:\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(|found| found.get_about());
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(template, "  {name:<16}  {about}");
        }
    }
    template.push_str("\nOptions:\n{options}{after-help}");
    command.help_template(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        grouped(Cli::command()).debug_assert();
    }

    #[test]
    fn every_command_stands_under_one_heading() {
        let command = Cli::command();
        let mut commands: Vec<_> = command
            .get_subcommands()
            .map(|found| found.get_name().to_owned())
            .collect();
        let mut grouped: Vec<_> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().map(ToString::to_string))
            .collect();
        commands.sort();
        grouped.sort();
        assert_eq!(grouped, commands);
    }
}
