//! Sealing drafts onto a ledger's head: sequence, chain, signature. Storing them is the caller's.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::canonical::{FormError, ZERO_HASH, hash_hex, sha256_hex};
use crate::key::Signer;
use crate::merkle::{CompactRange, Hash, RangeError, leaf_hash};
use crate::millis;
use crate::receipt::{Draft, Receipt, Signed};

/// Drafts that can't be appended.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Drafts of two tenants in one group.
    #[error("appending receipt {receipt_id} of account {found:?} to the ledger of account {expected:?}")]
    MixedAccounts {
        receipt_id: Uuid,
        expected: String,
        found: String,
    },
    /// A head whose Merkle range is not one of its size: there is nothing to build on.
    #[error("appending to a head of {size} receipts failed")]
    Head {
        /// Receipts in the ledger, as the head says.
        size: u64,
        #[source]
        source: RangeError,
    },
    /// A value that no receipt may hold.
    #[error("writing receipt {receipt_id} failed")]
    Form {
        receipt_id: Uuid,
        #[source]
        source: FormError,
    },
}

/// Where a ledger ends. A commit holds only if the stored head is still the one it was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Receipts in the ledger; the next `seq`.
    pub size: u64,
    /// The hash of the last receipt; 64 zeros for an empty ledger.
    pub last_hash: String,
    /// The last receipt's timestamp.
    #[serde(with = "millis")]
    pub timestamp: Timestamp,
    /// The [`CompactRange`] of the ledger's lines: its hashes in lower-case hex, left to right.
    // A head stored without one is read all the same, and refused where the range is needed.
    #[serde(default)]
    pub range: Vec<String>,
}

impl Head {
    /// The head of a ledger without receipts.
    pub fn empty() -> Self {
        Self {
            size: 0,
            last_hash: ZERO_HASH.to_owned(),
            timestamp: Timestamp::UNIX_EPOCH,
            range: Vec::new(),
        }
    }

    /// The root of the Merkle tree over the ledger's lines.
    ///
    /// # Errors
    /// [`RangeError`] when `range` is not one of `size` leaves.
    pub fn root(&self) -> Result<Hash, RangeError> {
        self.compact_range().map(|range| range.root())
    }

    /// The Merkle tree's right edge, to build on.
    ///
    /// # Errors
    /// [`RangeError`] when `range` is not one of `size` leaves.
    pub fn compact_range(&self) -> Result<CompactRange, RangeError> {
        CompactRange::from_hex(self.size, &self.range)
    }
}

/// A head in motion: its range as bytes beside the hex, so that a line costs its own hashes only.
#[derive(Debug, Clone)]
pub(crate) struct Tip {
    head: Head,
    range: CompactRange,
}

impl Tip {
    /// The end of a ledger without receipts.
    pub(crate) fn empty() -> Self {
        Self {
            head: Head::empty(),
            range: CompactRange::new(),
        }
    }

    pub(crate) fn of(head: Head) -> Result<Self, RangeError> {
        let range = head.compact_range()?;
        Ok(Self { head, range })
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    pub(crate) fn root(&self) -> Hash {
        self.range.root()
    }

    /// Moves behind a line that was checked or made for this place; `hash` is its receipt's.
    pub(crate) fn push(&mut self, leaf: Hash, hash: String, timestamp: Timestamp) {
        self.range.push(leaf);
        self.head.size = self.range.size();
        self.head.last_hash = hash;
        self.head.timestamp = timestamp;
        // Only the last hash is new, whatever it took the place of.
        if let Some((last, kept)) = self.range.hashes().split_last() {
            self.head.range.truncate(kept.len());
            self.head.range.push(hash_hex(last));
        }
    }
}

/// A receipt ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Place in the ledger.
    pub seq: u64,
    pub receipt_id: Uuid,
    pub operation: &'static str,
    /// SHA-256 of the canonical bytes without the signature, in lower-case hex.
    pub hash: String,
    /// The ledger line, without a line feed.
    pub line: String,
}

/// A group of receipts and the head after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// In the order of the drafts.
    pub sealed: Vec<Sealed>,
    /// The head once they are stored.
    pub head: Head,
}

/// Seals `drafts` in order behind `head`, as one group commit.
///
/// Their `timestamp` is `now`, or the head's where the clock went backwards.
///
/// # Errors
/// [`AppendError`] names the first draft that can't stand in this ledger, or says why none can; nothing is sealed then.
pub fn append(
    head: &Head,
    drafts: &[Draft],
    now: Timestamp,
    signer: &Signer,
) -> Result<Appended, AppendError> {
    let mut tip = Tip::of(head.clone()).map_err(|source| AppendError::Head {
        size: head.size,
        source,
    })?;
    let timestamp = millis::truncate(now).max(head.timestamp);
    let mut sealed = Vec::with_capacity(drafts.len());
    for draft in drafts {
        if let Some(first) = drafts
            .first()
            .filter(|first| first.account_id != draft.account_id)
        {
            return Err(AppendError::MixedAccounts {
                receipt_id: draft.receipt_id,
                expected: first.account_id.clone(),
                found: draft.account_id.clone(),
            });
        }
        let one = seal(tip.head(), draft, timestamp, signer).map_err(|source| AppendError::Form {
            receipt_id: draft.receipt_id,
            source,
        })?;
        tip.push(leaf_hash(&one.line), one.hash.clone(), timestamp);
        sealed.push(one);
    }
    Ok(Appended {
        sealed,
        head: tip.head,
    })
}

fn seal(head: &Head, draft: &Draft, timestamp: Timestamp, signer: &Signer) -> Result<Sealed, FormError> {
    let mut receipt = Receipt {
        receipt_id: draft.receipt_id,
        seq: head.size,
        timestamp,
        occurred_at: draft.occurred_at,
        account_id: draft.account_id.clone(),
        status: draft.payload.status(),
        duration_ms: draft.duration_ms,
        policy_hash: draft.policy_hash.clone(),
        prev_hash: head.last_hash.clone(),
        key_id: signer.key_id().to_owned(),
        signature: String::new(),
        payload: draft.payload.clone(),
    };
    let unsigned = receipt.text()?;
    receipt.signature = signer.sign(unsigned.as_bytes());
    Ok(Sealed {
        seq: receipt.seq,
        receipt_id: receipt.receipt_id,
        operation: receipt.payload.operation(),
        hash: sha256_hex(unsigned),
        line: receipt.text()?,
    })
}
