//! `ggen policy`: from what compliance writes to what governors enforce.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use aws::config;
use clap::{Args, Subcommand};
use domain::ontology;
use policy::ontology::MAX_ONTOLOGY_BYTES;
use policy::{Compiled, is_permit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cloud::{self, InvokeError, NEEDS_A_STACK};
use crate::input::{self, InputError};
use crate::out::Out;
use crate::report::{self, Verdict};

const COMPILE_EXAMPLES: &str = "\
Examples:
  ggen policy compile policies/marketplace-sku-456/professional.yaml
  ggen policy compile professional.yaml --out enforcer.json

Needs no AWS account. A policy compiles to the same bytes everywhere; their SHA-256 is the policy_hash in receipts and
signals. Exit code 1 with the reason if the policy is refused.";

fn deploy_help() -> String {
    format!(
        "\
Example:
  ggen policy deploy policies/marketplace-sku-456/next/professional.yaml

Sends the policy to the policy-upgrade function, which compiles it, checks it against the one in force, stores it and
moves the plan's tenants to it. Prints the function's answer. Exit code 1 if the policy is refused, or if some tenants could
not be moved yet.
{NEEDS_A_STACK}"
    )
}

/// What to do with a policy.
#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Compile a policy and show its hash and summary
    #[command(after_help = COMPILE_EXAMPLES)]
    Compile(CompileArgs),
    /// Deploy a policy to its plan's tenants
    #[command(after_help = deploy_help())]
    Deploy(DeployArgs),
}

/// Arguments of `ggen policy compile`.
#[derive(Args)]
pub struct CompileArgs {
    /// The policy, YAML; `-` for stdin
    #[arg(value_name = "FILE")]
    policy: PathBuf,
    /// Write the compiled bundle to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Arguments of `ggen policy deploy`.
#[derive(Args)]
pub struct DeployArgs {
    /// The policy, YAML; `-` for stdin
    #[arg(value_name = "FILE")]
    policy: PathBuf,
}

/// Why a policy could not be compiled or deployed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("cannot write {}", path.display())]
    Output { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

#[derive(Serialize)]
struct Summary<'a> {
    policy_hash: &'a str,
    ontology_hash: &'a str,
    sku_id: &'a str,
    plan_type: &'a str,
    version: String,
    monthly_actions: u64,
    concurrent_actions: u64,
    actions: Vec<ActionSummary<'a>>,
    rules: Vec<&'a str>,
    bytes: usize,
}

#[derive(Serialize)]
struct ActionSummary<'a> {
    template: &'a str,
    tier: u64,
}

impl<'a> Summary<'a> {
    fn of(compiled: &'a Compiled) -> Self {
        let bundle = &compiled.bundle;
        let action = |action: &'a policy::ActionSpec| ActionSummary {
            template: &action.template,
            tier: action.tier.level(),
        };
        let ids = bundle.cedar_policies.iter().map(|policy| policy.id.as_str());
        Self {
            policy_hash: &compiled.hash,
            ontology_hash: &compiled.ontology_hash,
            sku_id: &bundle.sku_id,
            plan_type: &bundle.plan_type,
            version: bundle.version.to_string(),
            monthly_actions: bundle.quota.monthly_actions,
            concurrent_actions: bundle.quota.concurrent_actions,
            actions: bundle.actions.iter().map(action).collect(),
            rules: ids.filter(|id| !is_permit(id)).collect(),
            bytes: compiled.bytes.len(),
        }
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.policy_hash)?;
        writeln!(
            f,
            "  policy    {} {} version {}",
            self.sku_id, self.plan_type, self.version
        )?;
        writeln!(f, "  ontology  {}", self.ontology_hash)?;
        writeln!(
            f,
            "  quota     {} actions a month, {} at one time",
            self.monthly_actions, self.concurrent_actions
        )?;
        for action in &self.actions {
            writeln!(f, "  action    {} (tier {})", action.template, action.tier)?;
        }
        for rule in &self.rules {
            writeln!(f, "  rule      {rule}")?;
        }
        write!(f, "  bundle    {} bytes", self.bytes)
    }
}

#[derive(Serialize)]
struct Refused {
    refused: bool,
    policy: PathBuf,
    problem: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "REFUSED: {}\n  {}", self.policy.display(), self.problem)
    }
}

/// Compiles or deploys.
///
/// # Errors
/// When a file cannot be read or written, or the stack does not answer; a policy that is refused is a verdict.
pub fn run(command: &PolicyCommand, out: &mut Out) -> Result<Verdict, PolicyError> {
    match command {
        PolicyCommand::Compile(args) => compile(args, out),
        PolicyCommand::Deploy(args) => deploy(args, out),
    }
}

fn compile(args: &CompileArgs, out: &mut Out) -> Result<Verdict, PolicyError> {
    let yaml = input::text(&args.policy, MAX_ONTOLOGY_BYTES as u64)?;
    match ontology::compile(&yaml) {
        Ok(compiled) => {
            if let Some(path) = &args.out {
                fs::write(path, &compiled.bytes).map_err(|source| PolicyError::Output {
                    path: path.clone(),
                    source,
                })?;
            }
            out.show(&Summary::of(&compiled))?;
            Ok(Verdict::Good)
        }
        Err(error) => {
            out.show(&Refused {
                refused: true,
                policy: args.policy.clone(),
                problem: error.to_string(),
            })?;
            Ok(Verdict::NotGood)
        }
    }
}

/// The function's answer, as it is.
#[derive(Serialize)]
#[serde(transparent)]
struct Answer(Value);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// The part of the function's answer that is a verdict.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Outcome {
    Upgraded { governors_failed: u64 },
    Unchanged {},
    Refused {},
}

impl Outcome {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Upgraded { governors_failed } => Verdict::when(*governors_failed == 0),
            Self::Unchanged {} => Verdict::Good,
            Self::Refused {} => Verdict::NotGood,
        }
    }
}

fn deploy(args: &DeployArgs, out: &mut Out) -> Result<Verdict, PolicyError> {
    let ontology = input::text(&args.policy, MAX_ONTOLOGY_BYTES as u64)?;
    let event = json!({ "ontology": ontology });
    let (answer, outcome) = cloud::block_on(cloud::invoke(config::POLICY_UPGRADE_FUNCTION, &event))??;
    out.show(&Answer(answer))?;
    if let Outcome::Upgraded {
        governors_failed: failed @ 1..,
    } = outcome
    {
        report::note(&format!(
            "{failed} tenants still have the previous policy: deploy again to move them"
        ));
    }
    Ok(outcome.verdict())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(answer: Value, expected: Option<Verdict>) {
        let outcome = Outcome::deserialize(&answer).ok();
        assert_eq!(outcome.map(|outcome| outcome.verdict()), expected, "{answer}");
    }

    #[test]
    fn outcomes() {
        let upgraded =
            |failed: u64| json!({ "outcome": "upgraded", "policy_hash": "", "governors_failed": failed });
        check(upgraded(0), Some(Verdict::Good));
        check(upgraded(1), Some(Verdict::NotGood));
        check(
            json!({ "outcome": "unchanged", "policy_hash": "" }),
            Some(Verdict::Good),
        );
        check(
            json!({ "outcome": "refused", "reason": "" }),
            Some(Verdict::NotGood),
        );
        for silent in [
            json!({}),
            json!(null),
            json!({ "outcome": "fine" }),
            json!({ "outcome": "upgraded" }),
        ] {
            check(silent, None);
        }
    }
}
