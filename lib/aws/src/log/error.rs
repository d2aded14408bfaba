//! Why a log could not be read or signed.

use domain::names::{self};
use receipts::checkpoint::CheckpointError;
use receipts::merkle::RangeError;
use receipts::tile::TileError;
use receipts::trail::TrailError;

use crate::audit::AuditError;
use crate::store::StoreError;
use crate::telemetry;

/// Why a log could not be read, or a checkpoint not be signed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("reading the ledger")]
    Store(#[from] StoreError),
    /// The key trail does not hold.
    #[error("the key trail in s3://{bucket}/{prefix} is not good", prefix = names::KEYS_PREFIX)]
    Trail {
        bucket: String,
        /// Which line, and why.
        #[source]
        source: TrailError,
    },
    /// An object of the key trail that is there already, and other than what was to be put.
    #[error("s3://{bucket}/{key} has another receipt already, expected {expected}, found {found}")]
    KeyTrail {
        bucket: String,
        key: String,
        /// The receipt to put.
        expected: String,
        /// The receipt that is there.
        found: String,
    },
    /// An object that is not text.
    #[error("s3://{bucket}/{key} is not UTF-8")]
    Text { bucket: String, key: String },
    /// The ledger has no receipts, so that there is nothing to sign for.
    #[error("the ledger {ledger} has no receipts, and an empty ledger has no checkpoint")]
    Empty { ledger: String },
    /// A head whose Merkle range is not one of its size.
    #[error("the head of {ledger} can't be signed for")]
    Head {
        ledger: String,
        /// What does not fit.
        #[source]
        source: RangeError,
    },
    /// A tile is missing or not good.
    #[error("the tiles of {ledger}")]
    Tile {
        ledger: String,
        /// Which tile, and what is wrong.
        #[source]
        source: TileError,
    },
    /// A stored checkpoint that does not hold, or one that can't be made.
    #[error("the checkpoint s3://{bucket}/{key} is not good")]
    Checkpoint {
        bucket: String,
        key: String,
        #[source]
        source: CheckpointError,
    },
    /// A stored checkpoint by a key that nothing leads to.
    #[error(
        "the checkpoint s3://{bucket}/{key} is signed by key {key_id}, which the key trail does not lead to"
    )]
    UnknownKey {
        bucket: String,
        key: String,
        key_id: String,
    },
    /// The table has fewer receipts than it must have: than its own head says, or than are to be signed for.
    #[error("the table has {found} receipts of {ledger}, expected {expected}")]
    Short {
        ledger: String,
        /// Receipts there must be.
        expected: u64,
        /// Receipts there are.
        found: u64,
    },
    /// More receipts were signed for than the table has: it was rolled back.
    #[error(
        "the ledger {ledger} was rolled back: a checkpoint of {signed_size} receipts with root {signed_root} was signed, \
         the table's head has {size} receipts with root {root}"
    )]
    RolledBack {
        ledger: String,
        /// Receipts that were signed for.
        signed_size: u64,
        signed_root: String,
        /// Receipts by the table's head.
        size: u64,
        root: String,
    },
    /// The receipts are not those that were signed for, or not those that the head was made of.
    #[error(
        "the ledger {ledger} has forked at {size} receipts: {what} has the root {expected}, found {found}"
    )]
    Forked {
        ledger: String,
        /// Receipts in both.
        size: u64,
        /// What the ledger was held against.
        what: &'static str,
        /// Its root, in hex.
        expected: String,
        /// What was found instead, in hex.
        found: String,
    },
}

impl LogError {
    /// Whether the ledger contradicts what was signed. Trying again does not help then; a person must look.
    #[must_use]
    pub fn is_fork(&self) -> bool {
        matches!(
            self,
            Self::RolledBack { .. } | Self::Forked { .. } | Self::Short { .. }
        )
    }

    /// Counts the failure as `ledger_forked` or `checkpoint_failed`, and logs it with its causes.
    pub fn tell(&self, function: &str) {
        let (name, kind) = match self {
            Self::RolledBack { .. } => ("ledger_forked", "rolled_back"),
            Self::Forked { .. } => ("ledger_forked", "forked"),
            Self::Short { .. } => ("ledger_forked", "short"),
            Self::Audit(_) | Self::Store(_) => ("checkpoint_failed", "unavailable"),
            _ => ("checkpoint_failed", "not_good"),
        };
        telemetry::count(function, name, ("kind", kind));
        tracing::error!(error = crate::clients::explain(self), "no checkpoint");
    }
}
