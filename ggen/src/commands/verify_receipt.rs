//! `ggen verify-receipt`: one receipt by itself, offline.

use std::fmt;
use std::io;
use std::path::PathBuf;

use clap::Args;
use receipts::archive::Limits;
use receipts::verify::{LineError, verify_line};
use serde::Serialize;
use serde_json::Value;

use crate::evidence::{PublicKeyError, Rejected, trusted_keys};
use crate::input::{self, InputError};
use crate::out::Out;
use crate::report::Verdict;

const EXAMPLES: &str = "\
Examples:
  ggen verify-receipt --receipt receipt.json --public-key auditor.pub
  sed -n 3p receipts/000000.jsonl | ggen verify-receipt --receipt - --public-key auditor.pub

The file holds one line of a ledger, byte for byte: canonical JSON (RFC 8785), with its signature. Its form, its values
and its Ed25519 signature are checked; its place in the ledger is verify-archive's business.
Exit code 0 VERIFIED, 1 NOT VERIFIED, 2 could not tell.";

/// Arguments of `ggen verify-receipt`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyReceiptArgs {
    /// The receipt, one line of a ledger; `-` for stdin
    #[arg(long, value_name = "FILE")]
    receipt: PathBuf,
    /// A public key you trust, SPKI PEM; repeat for several
    #[arg(long, value_name = "FILE", required = true)]
    public_key: Vec<PathBuf>,
}

/// Why a receipt could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyReceiptError {
    /// A key cannot be used.
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    /// The receipt cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The verdict cannot be written.
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct VerifiedReceipt {
    verified: bool,
    hash: String,
    receipt: Value,
}

impl fmt::Display for VerifiedReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VERIFIED")?;
        let fields = [
            "receipt_id",
            "account_id",
            "seq",
            "operation",
            "status",
            "occurred_at",
            "timestamp",
            "policy_hash",
            "key_id",
            "prev_hash",
        ];
        for field in fields {
            match self.receipt.get(field) {
                Some(Value::String(text)) => writeln!(f, "  {field:<12} {text}")?,
                Some(value) => writeln!(f, "  {field:<12} {value}")?,
                None => {}
            }
        }
        write!(f, "  {:<12} {}", "hash", self.hash)
    }
}

/// Checks one receipt.
///
/// # Errors
/// When a file cannot be read; a receipt that does not hold is a verdict.
pub fn run(args: &VerifyReceiptArgs, out: &mut Out) -> Result<Verdict, VerifyReceiptError> {
    let keys = trusted_keys(&args.public_key)?;
    let text = input::text(&args.receipt, Limits::default().line_bytes)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let subject = format!("receipt in {}", args.receipt.display());
    let checked = verify_line(line, &keys).and_then(|receipt| {
        let hash = receipt.hash().map_err(|source| LineError::Form { source })?;
        let receipt = serde_json::from_str(line).map_err(|source| LineError::Parse { source })?;
        Ok(VerifiedReceipt {
            verified: true,
            hash,
            receipt,
        })
    });
    match checked {
        Ok(verified) => {
            out.show(&verified)?;
            Ok(Verdict::Good)
        }
        Err(error) => {
            let mut rejected = Rejected::new(subject, &error);
            if matches!(error, LineError::NotCanonical { .. }) {
                rejected = rejected
                    .hint("if it was only reformatted, `jq -cS . FILE` gives the canonical line back");
            }
            out.show(&rejected)?;
            Ok(Verdict::NotGood)
        }
    }
}
