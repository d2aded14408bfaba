//! `ggen checkpoint`: a ledger's end, signed now; and whether it continues an older checkpoint.

use std::fmt;
use std::io;
use std::path::PathBuf;

use aws::config;
use clap::Args;
use receipts::checkpoint::{Checkpoint, CheckpointError, NOTE_BYTES};
use receipts::key::KeyRing;
use receipts::merkle::ProofError;
use receipts::proof::ConsistencyProof;
use receipts::tile::{self, TileError};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cloud::{self, InvokeError, LedgerArgs, NEEDS_A_STACK};
use crate::evidence::{Rejected, TrustArgs};
use crate::input;
use crate::ledger::{Live, LiveError};
use crate::out::Out;
use crate::report::Verdict;

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen checkpoint --account-id customer-123 --public-key auditor.pub > checkpoint
  ggen checkpoint --account-id customer-123 --public-key auditor.pub --since checkpoint.last-month
  ggen checkpoint --system --public-key auditor.pub --since old --format json

Asks the stack to sign the ledger's size and Merkle root, verifies the signature, and writes the note (C2SP
signed-note/v1.0.0, tlog-checkpoint/v1.0.0). The stack keeps every checkpoint under Object Lock and never signs one that
contradicts an older one. With --since and a checkpoint that you kept, the ledger's tiles must prove that today's ledger
begins with the receipts it covers; if not, the exit code is 1, whatever the stack says. --format json includes the proof
(RFC 9162 section 2.1.4).
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen checkpoint`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct CheckpointArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// An older checkpoint of the ledger that the new one must continue
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointCommandError {
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

/// A checkpoint that does not hold, or does not continue the older one.
#[derive(Debug, thiserror::Error)]
enum WrongError {
    #[error("it has {0} receipts: there is nothing to sign")]
    Empty(u64),
    #[error("the stack signs no checkpoint: {0}")]
    Refused(String),
    #[error("the new checkpoint does not hold")]
    New(#[source] CheckpointError),
    #[error("the older checkpoint does not hold")]
    Old(#[source] CheckpointError),
    #[error("the older checkpoint is for {found:?}, the new one for {expected:?}")]
    Origin { expected: String, found: String },
    #[error(
        "the ledger was rolled back: the older checkpoint covers {expected} receipts, the new one {found}"
    )]
    RolledBack { expected: u64, found: u64 },
    #[error("the new checkpoint does not continue the older one")]
    Fork(#[from] ProofError),
    #[error("the ledger's tiles do not prove that the new checkpoint continues the older one")]
    Tiles(#[from] TileError),
}

/// What the function that signs answers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Issued {
    Refused {
        refused: String,
    },
    /// Of a ledger without receipts there is none to sign.
    Checkpoint {
        size: u64,
        checkpoint: Option<String>,
    },
}

#[derive(Serialize)]
struct Answer {
    origin: String,
    size: u64,
    root: String,
    checkpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    continues: Option<ConsistencyProof>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.checkpoint.strip_suffix('\n').unwrap_or(&self.checkpoint))
    }
}

/// Has a checkpoint signed, and holds it against an older one.
///
/// # Errors
/// When the stack does not answer; a checkpoint that does not hold is a verdict.
pub fn run(args: &CheckpointArgs, out: &mut Out) -> Result<Verdict, CheckpointCommandError> {
    cloud::block_on(checkpoint(args, out))?
}

async fn checkpoint(args: &CheckpointArgs, out: &mut Out) -> Result<Verdict, CheckpointCommandError> {
    let since = args
        .since
        .as_deref()
        .map(|path| input::bytes(path, NOTE_BYTES as u64))
        .transpose()
        .map_err(LiveError::from)?;
    let trusted = args.trust.keys().map_err(LiveError::from)?;
    let event = match args.ledger.customer() {
        Some(account_id) => json!({ "account_id": account_id }),
        None => json!({ "system": true }),
    };
    let (_, issued) = cloud::invoke(config::CHECKPOINT_FUNCTION, &event).await?;
    let note = match issued {
        Issued::Checkpoint {
            checkpoint: Some(checkpoint),
            ..
        } => checkpoint,
        Issued::Checkpoint {
            size,
            checkpoint: None,
        } => {
            let subject = format!("ledger of account {}", args.ledger.account());
            return Ok(Rejected::new(subject, &WrongError::Empty(size)).show(out)?);
        }
        Issued::Refused { refused } => {
            let subject = format!("ledger of account {}", args.ledger.account());
            return Ok(Rejected::new(subject, &WrongError::Refused(refused)).show(out)?);
        }
    };
    let live = Live::open().await?;
    let keys = live.follow(trusted).await?;
    match hold(&live, args, note, since, &keys).await? {
        Ok(answer) => {
            out.show(&answer)?;
            if let Some(proof) = &answer.continues {
                let line = format!(
                    "CONSISTENT: the first {} of {} receipts are those of the older checkpoint",
                    proof.old_size, proof.new_size
                );
                crate::report::note(&line);
            }
            Ok(Verdict::Good)
        }
        Err(error) => {
            let subject = format!("checkpoint of account {}", args.ledger.account());
            Ok(Rejected::new(subject, &error).show(out)?)
        }
    }
}

async fn hold(
    live: &Live,
    args: &CheckpointArgs,
    note: String,
    since: Option<Vec<u8>>,
    keys: &KeyRing,
) -> Result<Result<Answer, WrongError>, LiveError> {
    let ledger = args.ledger.id();
    let expected = live.log.origin(&ledger);
    let new = match Checkpoint::open(&note, keys) {
        Ok((new, _)) if new.origin == expected => new,
        Ok((new, _)) => {
            let found = new.origin;
            let wrong = CheckpointError::Origin { expected, found };
            return Ok(Err(WrongError::New(wrong)));
        }
        Err(error) => return Ok(Err(WrongError::New(error))),
    };
    let continues = match since {
        None => None,
        // A key that was revoked since may have signed it: it is the auditor who kept it.
        Some(since) => match Checkpoint::open_old(since, keys) {
            Err(error) => return Ok(Err(WrongError::Old(error))),
            Ok((old, _)) => match continued(live, args, &old, &new).await? {
                Ok(proof) => Some(proof),
                Err(error) => return Ok(Err(error)),
            },
        },
    };
    Ok(Ok(Answer {
        origin: new.origin,
        size: new.size,
        root: hex::encode(new.root),
        checkpoint: note,
        continues,
    }))
}

async fn continued(
    live: &Live,
    args: &CheckpointArgs,
    old: &Checkpoint,
    new: &Checkpoint,
) -> Result<Result<ConsistencyProof, WrongError>, LiveError> {
    if old.origin != new.origin {
        return Ok(Err(WrongError::Origin {
            expected: new.origin.clone(),
            found: old.origin.clone(),
        }));
    }
    if old.size > new.size {
        return Ok(Err(WrongError::RolledBack {
            expected: old.size,
            found: new.size,
        }));
    }
    let wanted = match tile::consistency_tiles(old.size, new.size) {
        Ok(wanted) => wanted,
        Err(error) => return Ok(Err(error.into())),
    };
    let tiles = live.log.tiles(&args.ledger.id(), &wanted).await?;
    let hashes = match tile::consistency_proof_from(old.size, new.size, &tiles) {
        Ok(hashes) => hashes,
        Err(error) => return Ok(Err(error.into())),
    };
    let proof = ConsistencyProof {
        old_size: old.size,
        new_size: new.size,
        old_root: old.root,
        new_root: new.root,
        hashes,
    };
    Ok(proof.verify().map(|()| proof).map_err(Into::into))
}
