//! What can be asked of `ggen`, and its help.

use std::error::Error;
use std::fmt::Write as _;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    action, archive, audit, canonicalize, checkpoint, deliveries, escalations, export_receipts, handler,
    hash, keys, policy, prove, redrive, resolve, scale, send_signal, switches, tenants, verify_archive,
    verify_receipt, webhook,
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
            "deliveries",
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
    /// Output format: human, json or jsonl; export-receipts: json, jsonl or csv [default: human; export-receipts: jsonl]
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
    /// Show what marketplaces posted that changed nothing, and try it again
    #[command(subcommand)]
    Deliveries(deliveries::DeliveriesCommand),
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
    /// Return dead letters to the queue, and take up actions that wait for a person
    Redrive(redrive::RedriveArgs),
    /// Close an action that waits for a person
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
            Self::Deliveries(command) => deliveries::run(&command, out)?,
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
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// The words of each call of `ggen` in a line of a document or of a help, as a shell splits them; far enough for what is
    /// written there. Placeholders such as `<NAME>` are no redirections.
    fn calls(line: &str) -> Vec<Vec<String>> {
        let mut commands = vec![Vec::new()];
        let (mut word, mut quote) = (None::<String>, None);
        let end = |word: &mut Option<String>, commands: &mut Vec<Vec<String>>| {
            commands.last_mut().unwrap().extend(word.take());
        };
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match (letter, quote) {
                ('\'' | '"', None) => {
                    word.get_or_insert_default();
                    quote = Some(letter);
                }
                (_, Some(open)) if letter == open => quote = None,
                ('\\', None | Some('"')) => word.get_or_insert_default().extend(letters.next()),
                // What a command in quotes gives is one word.
                ('#', None) if word.is_none() => break,
                (' ' | '\n', None) => end(&mut word, &mut commands),
                ('|' | ';' | '&' | '(' | ')' | '`', None) => {
                    end(&mut word, &mut commands);
                    commands.push(Vec::new());
                }
                ('<', None) if letters.peek() != Some(&' ') => word.get_or_insert_default().push(letter),
                ('>' | '<', None) => {
                    end(&mut word, &mut commands);
                    // The file it goes to, or comes from.
                    while letters.next_if(|letter| *letter == ' ').is_some() {}
                    while letters.next_if(|letter| !" |;)".contains(*letter)).is_some() {}
                }
                _ => word.get_or_insert_default().push(letter),
            }
        }
        end(&mut word, &mut commands);
        let calls = commands.into_iter().filter_map(|words| {
            let is_assignment = |word: &String| word.contains('=');
            let at = words.iter().position(|word| !is_assignment(word))?;
            let words = words.get(at..)?;
            matches!(words.first()?.as_str(), "ggen" | "$GGEN").then(|| words.to_vec())
        });
        calls.collect()
    }

    #[track_caller]
    fn check_call(words: &[String], place: &str) {
        // What stands for a UUID in documents.
        let words = words.iter().map(|word| match word.as_str() {
            "ID" | "0198c9a2-…" => "00000000-0000-0000-0000-000000000000",
            word => word,
        });
        let words = std::iter::once("ggen").chain(words.skip(1));
        match from_environment(Cli::command()).try_get_matches_from(words.clone()) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::DisplayHelp => {}
            Err(error) => panic!("{place}: {:?}\n{error}", words.collect::<Vec<_>>()),
        }
    }

    /// The command of one who has set every variable.
    fn from_environment(command: clap::Command) -> clap::Command {
        let command = command.mut_args(|arg| match arg.get_env() {
            Some(_) => arg.required(false),
            None => arg,
        });
        command.mut_subcommands(from_environment)
    }

    /// Every document of the project.
    fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                documents(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }

    #[test]
    fn commands_are_found_in_lines() {
        let of = |line: &str| calls(line);
        assert_eq!(
            of("SECRET=$($GGEN keys secret) ggen x 'a b' \"c\" # d"),
            [vec!["$GGEN", "keys", "secret"], vec!["ggen", "x", "a b", "c"]]
        );
        assert_eq!(
            of("echo a | A=1 ggen hash - > b.txt | jq ggen"),
            [vec!["ggen", "hash", "-"]]
        );
        assert!(of("cargo build -p ggen").is_empty());
    }

    #[test]
    fn every_command_in_the_documents_is_understood() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let (mut found, mut checked) = (Vec::new(), 0);
        documents(&root, &mut found);
        for path in found {
            let text = fs::read_to_string(&path).unwrap().replace("\\\n", " ");
            let mut fenced = None;
            for (number, line) in text.lines().enumerate() {
                if let Some(language) = line.trim_start().strip_prefix("```") {
                    fenced = fenced.is_none().then(|| language.to_owned());
                    continue;
                }
                let is_command = match &fenced {
                    Some(language) => matches!(language.as_str(), "sh" | "bash"),
                    None => line.starts_with("    "),
                };
                if is_command {
                    for call in calls(line) {
                        check_call(&call, &format!("{}:{}", path.display(), number + 1));
                        checked += 1;
                    }
                }
            }
        }
        assert!(checked > 50, "only {checked} commands were found");
    }

    #[test]
    fn every_example_in_a_help_is_understood() {
        fn check(command: &mut clap::Command, checked: &mut usize) {
            let help = command.render_long_help().to_string().replace("\\\n", " ");
            let name = command.get_name().to_owned();
            for line in help.lines().filter(|line| line.starts_with("  ggen ")) {
                for call in calls(line) {
                    check_call(&call, &name);
                    *checked += 1;
                }
            }
            command
                .get_subcommands_mut()
                .for_each(|command| check(command, checked));
        }
        let mut checked = 0;
        check(&mut Cli::command(), &mut checked);
        assert!(checked > 50, "only {checked} examples were found");
    }

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
