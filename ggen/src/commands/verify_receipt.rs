//! `ggen verify-receipt`: one receipt, by itself or in its place under a checkpoint, offline or in a live ledger.

use std::fmt;
use std::io;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use domain::account::AccountId;
use domain::names::LedgerId;
use receipts::archive::Limits;
use receipts::checkpoint::{Checkpoint, CheckpointError, NOTE_BYTES};
use receipts::key::KeyRing;
use receipts::origin;
use receipts::proof::{InclusionProof, PROOF_BYTES, PortableProofError, ProofJson};
use receipts::receipt::Receipt;
use receipts::trail::TrailError;
use receipts::verify::{LineError, verify_line, verify_placed_line};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::cloud::{self, NEEDS_A_STACK, account_id};
use crate::evidence::{self, PublicKeyError, Rejected, TrustArgs};
use crate::input::{self, InputError};
use crate::ledger::{Live, LiveError};
use crate::out::Out;
use crate::report::{self, Verdict};

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen verify-receipt --receipt receipt.json --public-key auditor.pub
  sed -n 3p receipts/000000.jsonl | ggen verify-receipt --receipt - --public-key auditor.pub
  ggen verify-receipt --receipt receipt.json --public-key auditor.pub --proof receipt.tlog-proof
  ggen verify-receipt --receipt receipt.json --public-key auditor.pub --proof proof.json --checkpoint checkpoint
  ggen verify-receipt --receipt-id 0198c9a2-… --account-id customer-123 --public-key auditor.pub

The file holds one line of a ledger, byte for byte: canonical JSON (RFC 8785) with its signature. Checks the form, the
values and the Ed25519 signature. --proof also checks that a signed checkpoint covers the receipt in its place: a
c2sp.org/tlog-proof@v1 text, which includes its checkpoint, or JSON together with --checkpoint (see `ggen prove`). A receipt
signed with a revoked key needs a proof. --key-trail leads from the key you trust to the keys before and after it (`ggen
keys trail`, or keys.jsonl of an archive). With a file, nothing else is needed.

Only --receipt-id needs a stack: it takes receipt, key trail and proof from there.
{NEEDS_A_STACK}
Exit code 0 VERIFIED, 1 NOT VERIFIED, 2 could not tell."
    )
}

/// Arguments of `ggen verify-receipt`.
#[derive(Args)]
#[command(after_help = after_help(), group = ArgGroup::new("which").required(true))]
pub struct VerifyReceiptArgs {
    /// The receipt, one line of a ledger; `-` for stdin
    #[arg(long, value_name = "FILE", group = "which")]
    receipt: Option<PathBuf>,
    /// The receipt in the live ledger, by its id
    #[arg(long, value_name = "UUID", group = "which", conflicts_with_all = ["proof", "checkpoint", "key_trail"])]
    receipt_id: Option<Uuid>,
    /// The account whose ledger must have the receipt
    #[arg(long, value_name = "ID", value_parser = account_id, conflicts_with = "receipt")]
    account_id: Option<AccountId>,
    #[command(flatten)]
    trust: TrustArgs,
    /// Receipts of key rotations and revocations, one per line
    #[arg(long, value_name = "FILE")]
    key_trail: Option<PathBuf>,
    /// A proof that a checkpoint covers the receipt
    #[arg(long, value_name = "FILE")]
    proof: Option<PathBuf>,
    /// The signed checkpoint that the proof leads to
    #[arg(long, value_name = "FILE", requires = "proof")]
    checkpoint: Option<PathBuf>,
}

/// Why a receipt could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyReceiptError {
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("{} is a JSON proof, which needs --checkpoint", path.display())]
    NoCheckpoint { path: PathBuf },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

/// A receipt that does not hold.
#[derive(Debug, thiserror::Error)]
enum ReceiptError {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("the key trail does not hold")]
    Trail(#[from] TrailError),
    #[error("the checkpoint does not hold")]
    Checkpoint(#[from] CheckpointError),
    #[error("the proof does not hold")]
    Proof(#[from] PortableProofError),
    #[error(
        "the proof is against another checkpoint than the one given: expected {expected:?}, found {found:?}"
    )]
    OtherCheckpoint { expected: String, found: String },
    #[error("the proof is for place {expected}, the receipt says {found}")]
    Place { expected: u64, found: u64 },
    #[error("the checkpoint is for {found:?}, expected the ledger of {expected:?}")]
    Origin { expected: String, found: String },
    #[error("the receipt says account {found:?}, expected {expected:?}")]
    Account { expected: String, found: String },
    #[error("the receipt says receipt_id {found}, expected {expected}")]
    Id { expected: Uuid, found: Uuid },
}

/// A proof in either form, with the note it is against.
enum Proof {
    Text(InclusionProof),
    Json(ProofJson, Vec<u8>),
}

impl Proof {
    fn read(bytes: &[u8], note: Option<Vec<u8>>) -> Option<Result<Self, ReceiptError>> {
        if bytes.trim_ascii_start().starts_with(b"{") {
            let note = note?;
            return Some(
                ProofJson::parse(bytes)
                    .map(|proof| Self::Json(proof, note))
                    .map_err(Into::into),
            );
        }
        let proof = match InclusionProof::parse(bytes) {
            Ok(proof) => proof,
            Err(error) => return Some(Err(error.into())),
        };
        Some(match note {
            Some(note) if note != proof.checkpoint().as_bytes() => Err(ReceiptError::OtherCheckpoint {
                expected: String::from_utf8_lossy(&note).into_owned(),
                found: proof.checkpoint().to_owned(),
            }),
            _ => Ok(Self::Text(proof)),
        })
    }

    fn verify(&self, line: &str, receipt: &Receipt, keys: &KeyRing) -> Result<Checkpoint, ReceiptError> {
        let (note, index) = match self {
            Self::Text(proof) => (proof.checkpoint().as_bytes(), proof.index()),
            Self::Json(proof, note) => (note.as_slice(), proof.index),
        };
        let (checkpoint, _) = Checkpoint::open(note, keys)?;
        if !origin::names(&checkpoint.origin, &receipt.account_id) {
            return Err(ReceiptError::Origin {
                expected: receipt.account_id.clone(),
                found: checkpoint.origin,
            });
        }
        let json = match self {
            Self::Text(proof) => &proof.under(&checkpoint),
            Self::Json(proof, _) => proof,
        };
        json.verify(line, &checkpoint)?;
        if index != receipt.seq {
            return Err(ReceiptError::Place {
                expected: index,
                found: receipt.seq,
            });
        }
        Ok(checkpoint)
    }
}

#[derive(Serialize)]
struct CoveringCheckpoint {
    origin: String,
    size: u64,
    root: String,
}

#[derive(Serialize)]
struct VerifiedReceipt {
    verified: bool,
    hash: String,
    /// The checkpoint that covers it, where that was proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<CoveringCheckpoint>,
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
        write!(f, "  {:<12} {}", "hash", self.hash)?;
        if let Some(CoveringCheckpoint { origin, size, root }) = &self.checkpoint {
            write!(
                f,
                "\n  {:<12} {origin}: one of {size} receipts with root {root}",
                "covered by"
            )?;
        }
        Ok(())
    }
}

/// What is to be checked, and with what.
struct Evidence {
    subject: String,
    line: String,
    keys: Result<KeyRing, ReceiptError>,
    proof: Option<Result<Proof, ReceiptError>>,
    account: Option<String>,
    receipt_id: Option<Uuid>,
}

/// Checks one receipt.
///
/// # Errors
/// When a file or the ledger cannot be read; a receipt that does not hold is a verdict.
pub fn run(args: &VerifyReceiptArgs, out: &mut Out) -> Result<Verdict, VerifyReceiptError> {
    let trusted = args.trust.keys()?;
    let evidence = match args.receipt_id {
        Some(receipt_id) => cloud::block_on(live(args, receipt_id, trusted))??,
        None => offline(args, trusted)?,
    };
    let subject = evidence.subject.clone();
    match check(evidence) {
        Ok(verified) => {
            out.show(&verified)?;
            Ok(Verdict::Good)
        }
        Err(error) => {
            let mut rejected = Rejected::new(subject, &error);
            if matches!(error, ReceiptError::Line(LineError::NotCanonical { .. })) {
                rejected =
                    rejected.hint("if it was only reformatted, `jq -cS . FILE` restores the canonical line");
            }
            Ok(rejected.show(out)?)
        }
    }
}

fn offline(args: &VerifyReceiptArgs, trusted: KeyRing) -> Result<Evidence, VerifyReceiptError> {
    let path = args.receipt.clone().unwrap_or_else(|| "-".into());
    let text = input::text(&path, Limits::default().line_bytes)?;
    let keys = evidence::follow(trusted, args.key_trail.as_deref())?.map_err(Into::into);
    let note = args
        .checkpoint
        .as_deref()
        .map(|path| input::bytes(path, NOTE_BYTES as u64));
    let note = note.transpose()?;
    let proof = match &args.proof {
        Some(path) => {
            let proof = Proof::read(&input::bytes(path, PROOF_BYTES as u64)?, note);
            Some(proof.ok_or_else(|| VerifyReceiptError::NoCheckpoint { path: path.clone() })?)
        }
        None => None,
    };
    Ok(Evidence {
        subject: format!("receipt in {}", path.display()),
        line: text.strip_suffix('\n').unwrap_or(&text).to_owned(),
        keys,
        proof,
        account: None,
        receipt_id: None,
    })
}

async fn live(
    args: &VerifyReceiptArgs,
    receipt_id: Uuid,
    trusted: KeyRing,
) -> Result<Evidence, VerifyReceiptError> {
    let live = Live::open().await?;
    let of = args.account_id.clone().map(LedgerId::Customer);
    let found = live.find(receipt_id, of.as_ref()).await?;
    let keys = live.follow(trusted).await?;
    let proof = live.prove(&found.ledger, found.seq, &keys).await?;
    if proof.is_none() {
        report::note("no checkpoint covers the receipt yet; run `ggen checkpoint`");
    }
    Ok(Evidence {
        subject: format!("receipt {receipt_id}"),
        line: found.line,
        keys: Ok(keys),
        proof: proof.map(|proof| Ok(Proof::Text(proof))),
        account: Some(found.ledger.ledger().account_id().to_owned()),
        receipt_id: Some(receipt_id),
    })
}

fn check(evidence: Evidence) -> Result<VerifiedReceipt, ReceiptError> {
    let Evidence {
        line,
        keys,
        proof,
        account,
        receipt_id,
        ..
    } = evidence;
    let keys = keys?;
    let (receipt, checkpoint) = match proof {
        Some(proof) => {
            // Its place is proved, so its date can be believed.
            let receipt = verify_placed_line(&line, &keys)?;
            let checkpoint = proof?.verify(&line, &receipt, &keys)?;
            (receipt, Some(checkpoint))
        }
        None => (verify_line(&line, &keys)?, None),
    };
    if let Some(expected) = account.filter(|account| *account != receipt.account_id) {
        let found = receipt.account_id;
        return Err(ReceiptError::Account { expected, found });
    }
    if let Some(expected) = receipt_id.filter(|id| *id != receipt.receipt_id) {
        let found = receipt.receipt_id;
        return Err(ReceiptError::Id { expected, found });
    }
    Ok(VerifiedReceipt {
        verified: true,
        hash: receipt.hash().map_err(|source| LineError::Form { source })?,
        checkpoint: checkpoint.map(|checkpoint| CoveringCheckpoint {
            origin: checkpoint.origin,
            size: checkpoint.size,
            root: hex::encode(checkpoint.root),
        }),
        receipt: serde_json::from_str(&line).map_err(|source| LineError::Parse { source })?,
    })
}
