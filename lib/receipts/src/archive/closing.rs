//! What closes an archive: the receipt and the checkpoint that stand beside it.

use thiserror::Error;
use uuid::Uuid;

use super::read::Verified;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::merkle::RangeError;
use crate::receipt::{Payload, Receipt};
use crate::verify::{Chain, ChainError};

/// A sidecar that does not close this archive.
#[derive(Debug, Error)]
pub enum ClosingError {
    /// What is said to have been verified can't have been.
    #[error("the archive's {receipts} receipts are no place to stand behind")]
    Verified {
        /// Receipts it is said to hold.
        receipts: u64,
        #[source]
        source: RangeError,
    },
    /// It is no good receipt, or does not stand right behind the archive's last one.
    #[error("the closing receipt does not stand behind the archive's last receipt")]
    Receipt {
        #[source]
        source: ChainError,
    },
    /// It is about something else.
    #[error("the closing receipt {receipt_id}: expected operation decommission_complete, found {found}")]
    Operation { receipt_id: Uuid, found: &'static str },
    /// The final checkpoint is not good.
    #[error("the final checkpoint is not good")]
    Checkpoint {
        #[source]
        source: CheckpointError,
    },
    /// The final checkpoint is another ledger's, or of another end.
    #[error("the final checkpoint's {field} is {found}, expected {expected}")]
    End {
        field: &'static str,
        expected: String,
        found: String,
    },
    /// It closes another archive.
    #[error("the closing receipt {receipt_id}: its `{field}` is {expected}, the archive's is {found}")]
    Archive {
        receipt_id: Uuid,
        field: &'static str,
        expected: String,
        found: String,
    },
}

/// What closes an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The `decommission_complete` receipt.
    pub receipt: Receipt,
    /// Whether the final checkpoint was there to vouch for it.
    pub checkpoint: Option<Checkpoint>,
}

/// Checks that the sidecar's `decommission_complete` receipt closes the archive that was verified: it stands right
/// behind the archive's last receipt, and names the archive's SHA-256, size and number of receipts. So an archive that
/// was cut, replaced by an older one or made again shows. With the final checkpoint, that it is the ledger's last word at
/// the time of signing.
///
/// # Errors
/// [`ClosingError`] names the rule and both values.
pub fn verify_closing(
    sidecar_line: &str,
    final_checkpoint: Option<&[u8]>,
    verified: &Verified,
) -> Result<Closed, ClosingError> {
    let mut chain =
        Chain::after(&verified.account_id, verified.head()).map_err(|source| ClosingError::Verified {
            receipts: verified.receipts,
            source,
        })?;
    // A file may end its only line.
    let line = sidecar_line.strip_suffix('\n').unwrap_or(sidecar_line);
    let receipt = chain
        .push(line, &verified.keys)
        .map_err(|source| ClosingError::Receipt { source })?;
    let receipt_id = receipt.receipt_id;
    let Payload::DecommissionComplete {
        receipts_archived,
        archive_size_bytes,
        archive_sha256,
        ..
    } = &receipt.payload
    else {
        return Err(ClosingError::Operation {
            receipt_id,
            found: receipt.payload.operation(),
        });
    };
    for (field, expected, found) in [
        ("archive_sha256", archive_sha256, &verified.sha256),
        (
            "receipts_archived",
            &receipts_archived.to_string(),
            &verified.receipts.to_string(),
        ),
        (
            "archive_size_bytes",
            &archive_size_bytes.to_string(),
            &verified.size_bytes.to_string(),
        ),
    ] {
        if expected != found {
            let (expected, found) = (expected.clone(), found.clone());
            return Err(ClosingError::Archive {
                receipt_id,
                field,
                expected,
                found,
            });
        }
    }
    let checkpoint = final_checkpoint
        .map(|note| check_end(note, &chain, verified))
        .transpose()?;
    Ok(Closed { receipt, checkpoint })
}

fn check_end(note: &[u8], chain: &Chain, verified: &Verified) -> Result<Checkpoint, ClosingError> {
    let (checkpoint, _) =
        Checkpoint::open(note, &verified.keys).map_err(|source| ClosingError::Checkpoint { source })?;
    let expected = Checkpoint {
        origin: verified.checkpoint.origin.clone(),
        size: chain.head().size,
        root: chain.root(),
    };
    for (field, expected, found) in [
        ("origin", &expected.origin, &checkpoint.origin),
        ("size", &expected.size.to_string(), &checkpoint.size.to_string()),
        ("root", &hex::encode(expected.root), &hex::encode(checkpoint.root)),
    ] {
        if expected != found {
            let (expected, found) = (expected.clone(), found.clone());
            return Err(ClosingError::End {
                field,
                expected,
                found,
            });
        }
    }
    Ok(checkpoint)
}
