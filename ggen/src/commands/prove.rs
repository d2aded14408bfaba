//! `ggen prove`: a short proof that a signed checkpoint covers a receipt, out of the ledger's tiles.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use domain::account::AccountId;
use domain::names::LedgerId;
use receipts::checkpoint::{Checkpoint, CheckpointError};
use receipts::proof::{PortableProofError, ProofJson};
use serde::Serialize;
use uuid::Uuid;

use crate::cloud::{self, NEEDS_A_STACK, account_id};
use crate::evidence::{Rejected, TrustArgs};
use crate::ledger::{Live, LiveError};
use crate::out::Out;
use crate::report::Verdict;

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen prove --receipt-id 0198c9a2-… --public-key auditor.pub > receipt.tlog-proof
  ggen prove --receipt-id 0198c9a2-… --public-key auditor.pub --receipt receipt.json --checkpoint checkpoint --format json > proof.json

Writes a c2sp.org/tlog-proof@v1, which includes the signed checkpoint; --format json writes only the index, the size and the
hashes, for use together with a checkpoint. The proof is verified before it is written; `ggen verify-receipt --proof` checks
it offline. A receipt newer than its ledger's latest checkpoint can be proved once `ggen checkpoint` or the daily run has
signed one that covers it (exit code 2 until then).
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen prove`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct ProveArgs {
    /// The receipt
    #[arg(long, value_name = "UUID")]
    receipt_id: Uuid,
    /// The account whose ledger has it
    #[arg(long, value_name = "ID", value_parser = account_id)]
    account_id: Option<AccountId>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Also write the receipt to this file
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Also write the checkpoint to this file
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("no checkpoint covers receipt {receipt_id} at place {seq} yet: run `ggen checkpoint {ledger}`")]
    NotCovered {
        receipt_id: Uuid,
        seq: u64,
        /// Whose ledger, as an option.
        ledger: String,
    },
    #[error("cannot write {}", path.display())]
    Output { path: PathBuf, source: io::Error },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

/// A proof that does not hold, so that it is not handed out.
#[derive(Debug, thiserror::Error)]
enum WrongError {
    #[error("the ledger's latest checkpoint does not hold")]
    Checkpoint(#[from] CheckpointError),
    #[error("the ledger's tiles do not lead from the receipt to its checkpoint")]
    Proof(#[from] PortableProofError),
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    proof: ProofJson,
    #[serde(skip)]
    text: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text ends in a line feed of its own.
        f.write_str(self.text.strip_suffix('\n').unwrap_or(&self.text))
    }
}

/// Proves a receipt.
///
/// # Errors
/// When the ledger cannot be read, or no checkpoint covers the receipt yet; a ledger that contradicts its checkpoint is a
/// verdict.
pub fn run(args: &ProveArgs, out: &mut Out) -> Result<Verdict, ProveError> {
    cloud::block_on(prove(args, out))?
}

async fn prove(args: &ProveArgs, out: &mut Out) -> Result<Verdict, ProveError> {
    let trusted = args.trust.keys().map_err(LiveError::from)?;
    let live = Live::open().await?;
    let of = args.account_id.clone().map(LedgerId::Customer);
    let found = live.find(args.receipt_id, of.as_ref()).await?;
    let keys = live.follow(trusted).await?;
    let Some(proof) = live.prove(&found.ledger, found.seq, &keys).await? else {
        return Err(ProveError::NotCovered {
            receipt_id: args.receipt_id,
            seq: found.seq,
            ledger: match &found.ledger {
                LedgerId::Customer(account) => format!("--account-id {account}"),
                LedgerId::System => "--system".to_owned(),
            },
        });
    };
    let checked = || {
        let (checkpoint, _) = Checkpoint::open(proof.checkpoint(), &keys)?;
        let json = proof.under(&checkpoint);
        json.verify(&found.line, &checkpoint)?;
        Ok::<_, WrongError>(json)
    };
    let json = match checked() {
        Ok(json) => json,
        Err(error) => return Ok(Rejected::new(format!("receipt {}", args.receipt_id), &error).show(out)?),
    };
    for (path, text) in [
        (&args.receipt, format!("{}\n", found.line)),
        (&args.checkpoint, proof.checkpoint().to_owned()),
    ] {
        if let Some(path) = path {
            fs::write(path, text).map_err(|source| ProveError::Output {
                path: path.clone(),
                source,
            })?;
        }
    }
    out.show(&Answer {
        proof: json,
        text: proof.to_text(),
    })?;
    Ok(Verdict::Good)
}
