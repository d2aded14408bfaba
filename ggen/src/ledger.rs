//! What the commands about a live ledger share: its receipts checked in order, one receipt found, its proof.

use std::io;

use aws::clients::{self, Sdk};
use aws::config::{ConfigError, Stack};
use aws::log::{Log, LogError};
use aws::store::{Store, StoreError};
use domain::names::LedgerId;
use receipts::checkpoint::{Checkpoint, CheckpointError};
use receipts::key::KeyRing;
use receipts::ledger::Head;
use receipts::proof::{InclusionProof, PortableProofError};
use receipts::receipt::Receipt;
use receipts::tile::{self, TileError};
use receipts::trail::TrailError;
use receipts::verify::{Chain, ChainError};
use uuid::Uuid;

use crate::evidence::PublicKeyError;
use crate::input::InputError;

/// Why a live ledger could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    #[error("cannot read the ledger")]
    Store(#[from] StoreError),
    #[error("cannot read the ledger's log")]
    Log(#[from] LogError),
    #[error("the stack's key trail does not hold")]
    Trail(#[from] TrailError),
    #[error("receipt {receipt_id} not found{}", of(account.as_deref()))]
    NoReceipt {
        receipt_id: Uuid,
        account: Option<String>,
    },
    #[error("receipt {receipt_id} is in several ledgers: choose one with --account-id")]
    Several { receipt_id: Uuid },
    #[error("cannot build a proof from the ledger's tiles")]
    Tile(#[from] TileError),
    #[error("cannot write the proof")]
    Proof(#[from] PortableProofError),
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

fn of(account: Option<&str>) -> String {
    match account {
        Some(account) => format!(" in the ledger of {account}"),
        None => "; for a tenant with tables of its own, pass --account-id".to_owned(),
    }
}

/// A receipt in its ledger.
pub struct FoundReceipt {
    pub ledger: LedgerId,
    pub seq: u64,
    /// Its line, without a line feed.
    pub line: String,
}

/// A stack's ledgers and their logs.
pub struct Live {
    pub store: Store,
    /// Checkpoints, tiles and the key trail.
    pub log: Log,
}

impl Live {
    /// The stack that the environment names.
    ///
    /// # Errors
    /// [`LiveError::Config`] naming the variable that is missing.
    pub async fn open() -> Result<Self, LiveError> {
        Self::of(&clients::load().await)
    }

    /// As [`Live::open`], for one who has clients of its own.
    ///
    /// # Errors
    /// As [`Live::open`].
    pub fn of(sdk: &Sdk) -> Result<Self, LiveError> {
        Ok(Self {
            store: Store::new(sdk, Stack::from_env()?),
            log: Log::from_env(sdk.s3())?,
        })
    }

    /// The trusted keys and those that the stack's key trail leads to.
    ///
    /// # Errors
    /// [`LiveError::Trail`] when it does not hold.
    pub async fn follow(&self, trusted: KeyRing) -> Result<KeyRing, LiveError> {
        let trail = self.log.key_trail().await?;
        Ok(trusted.follow(trail.iter().map(String::as_str))?)
    }

    /// Finds a receipt by its id.
    ///
    /// # Errors
    /// [`LiveError::NoReceipt`] and [`LiveError::Several`].
    pub async fn find(&self, receipt_id: Uuid, of: Option<&LedgerId>) -> Result<FoundReceipt, LiveError> {
        let partition = of.map(LedgerId::partition);
        let places = self.store.find_receipt(receipt_id, partition.as_ref()).await?;
        let mut places = places.into_iter().filter_map(|(partition, seq)| {
            let ledger = partition.ledger()?;
            of.is_none_or(|of| *of == ledger).then_some((ledger, seq))
        });
        let nowhere = || LiveError::NoReceipt {
            receipt_id,
            account: of.map(|of| of.ledger().account_id().to_owned()),
        };
        let (ledger, seq) = places.next().ok_or_else(nowhere)?;
        if places.next().is_some() {
            return Err(LiveError::Several { receipt_id });
        }
        let line = self.store.receipt(&ledger.partition(), seq).await?;
        let line = line.ok_or_else(nowhere)?;
        Ok(FoundReceipt { ledger, seq, line })
    }

    /// Proves a place under the latest checkpoint of its ledger that counts, out of a handful of tiles. `None` where no checkpoint
    /// reaches so far yet.
    ///
    /// # Errors
    /// [`LiveError`] when the log does not answer. The proof is not verified here.
    pub async fn prove(
        &self,
        ledger: &LedgerId,
        seq: u64,
        keys: &KeyRing,
    ) -> Result<Option<InclusionProof>, LiveError> {
        let latest = self.log.latest(ledger, keys).await?;
        let Some((size, _, note)) = latest.filter(|(size, ..)| seq < *size) else {
            return Ok(None);
        };
        let wanted = tile::inclusion_tiles(seq, size).map_err(TileError::Proof)?;
        let tiles = self.log.tiles(ledger, &wanted).await?;
        let hashes = tile::inclusion_proof_from(seq, size, &tiles)?;
        Ok(Some(InclusionProof::new(seq, hashes, note)?))
    }
}

/// A ledger that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger has an invalid receipt")]
    Chain(#[from] ChainError),
    #[error(
        "the ledger has {found_size} receipts and ends with hash {found}; its head says {size} receipts and hash {expected}"
    )]
    Head {
        size: u64,
        expected: String,
        found_size: u64,
        found: String,
    },
    #[error("the head's Merkle range is {expected:?}, the ledger's is {found:?}")]
    Range {
        expected: Vec<String>,
        found: Vec<String>,
    },
    #[error("the stored checkpoint of {size} receipts does not hold")]
    Note { size: u64, source: CheckpointError },
    /// A checkpoint that was signed over more receipts than there are: the table was put back.
    #[error("a checkpoint covers {expected} receipts, but the ledger has {found}: it was rolled back")]
    RolledBack { expected: u64, found: u64 },
    /// A checkpoint that was signed over other receipts: the ledger was rewritten.
    #[error(
        "the checkpoint of {size} receipts has root {expected}, but the receipts have root {found}: the ledger was rewritten"
    )]
    Forked {
        size: u64,
        /// Its root, in hex.
        expected: String,
        /// The root of the receipts, in hex.
        found: String,
    },
}

/// Follows a ledger up to the first thing that is wrong.
pub struct LedgerCheck {
    keys: KeyRing,
    chain: Chain,
    /// What was signed for, by size.
    checkpoints: Vec<Checkpoint>,
}

impl LedgerCheck {
    /// The ledger of an account, from its start.
    pub fn new(account_id: &str, keys: KeyRing) -> Self {
        Self {
            keys,
            chain: Chain::of(account_id),
            checkpoints: Vec::new(),
        }
    }

    /// Holds the ledger against its stored checkpoints as well: sizes and notes.
    ///
    /// # Errors
    /// [`LedgerError::Note`] for one that is not good.
    pub fn with_checkpoints(
        mut self,
        origin: &str,
        stored: impl IntoIterator<Item = (u64, String)>,
    ) -> Result<Self, LedgerError> {
        for (size, note) in stored {
            let (checkpoint, _) = Checkpoint::open_old(note, &self.keys)
                .map_err(|source| LedgerError::Note { size, source })?;
            if checkpoint.origin != origin {
                let source = CheckpointError::Origin {
                    expected: origin.to_owned(),
                    found: checkpoint.origin,
                };
                return Err(LedgerError::Note { size, source });
            }
            self.checkpoints.push(checkpoint);
        }
        // Taken from the end as the ledger grows.
        self.checkpoints
            .sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.size));
        Ok(self)
    }

    /// Checks the next line by itself, in its place, and against the checkpoints that end with it.
    ///
    /// # Errors
    /// [`LedgerError`] names the receipt, the rule and both values.
    pub fn push(&mut self, line: &str) -> Result<Receipt, LedgerError> {
        let receipt = self.chain.push(line, &self.keys)?;
        let size = self.chain.head().size;
        while let Some(checkpoint) = self.checkpoints.pop_if(|next| next.size <= size) {
            let found = self.chain.root();
            if checkpoint.root != found {
                return Err(LedgerError::Forked {
                    size,
                    expected: hex::encode(checkpoint.root),
                    found: hex::encode(found),
                });
            }
        }
        Ok(receipt)
    }

    /// Holds what was read against the head that was there before reading began.
    ///
    /// # Errors
    /// [`LedgerError`] says in what they differ.
    pub fn end(self, head: &Head) -> Result<(), LedgerError> {
        let end = self.chain.head();
        if let Some(expected) = self.checkpoints.iter().map(|checkpoint| checkpoint.size).max() {
            let found = end.size;
            return Err(LedgerError::RolledBack { expected, found });
        }
        if (end.size, &end.last_hash) != (head.size, &head.last_hash) {
            return Err(LedgerError::Head {
                size: head.size,
                expected: head.last_hash.clone(),
                found_size: end.size,
                found: end.last_hash.clone(),
            });
        }
        if end.range != head.range {
            return Err(LedgerError::Range {
                expected: head.range.clone(),
                found: end.range.clone(),
            });
        }
        Ok(())
    }
}
