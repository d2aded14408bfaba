//! `ggen`: the command line of Marketplace Governor for operators, compliance and auditors.
//!
//! [`cli`] says what can be asked, one file below [`commands`] answers each question, [`out`] writes the answer and
//! [`report`] turns it, or the error, into an exit code.

mod cli;
mod cloud;
mod commands;
mod evidence;
mod input;
mod json;
mod ledger;
mod out;
mod report;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::parse();
    let mut out = out::Out::new(cli.format);
    let outcome = cli.command.run(&mut out);
    report::exit_code(outcome, out)
}
