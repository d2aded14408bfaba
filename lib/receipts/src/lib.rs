//! Receipts: what they say, their canonical bytes, their chain, and the archive an auditor checks offline.
//!
//! Pure: no clock, no environment, no network. Times, keys and identifiers are arguments.
//!
//! | module | what it owns |
//! |---|---|
//! | [`canonical`] | the bytes that are hashed and signed (RFC 8785), and which values may stand in them |
//! | [`key`] | Ed25519 keys: signing, and the ring of keys an auditor trusts |
//! | [`receipt`] | one typed payload for each operation, and the receipt around it |
//! | [`ledger`] | sealing drafts onto a head: sequence, chain, signature |
//! | [`spool`] | receipts that wait, signed, for the ledger to be written |
//! | [`verify`] | checking a line, and a chain of lines |
//! | [`trail`] | how the signing key passes on, and which keys are revoked |
//! | [`origin`] | the name of a ledger's log, and names for folders |
//! | [`merkle`] | the ledger as an RFC 6962 tree: roots and proofs |
//! | [`tile`] | that tree stored as C2SP tiles: writing them, and proofs that read a handful of them |
//! | [`checkpoint`] | a ledger's size and root as a signed note |
//! | [`proof`] | proofs that travel: a C2SP tlog-proof, and JSON beside a checkpoint |
//! | [`archive`] | writing and checking a tenant's archive |
//! | [`wording`] | what a reader of JSON finds wrong, in plain words |

pub mod archive;
pub mod canonical;
pub mod checkpoint;
pub mod key;
pub mod ledger;
pub mod merkle;
mod millis;
pub mod origin;
pub mod proof;
pub mod receipt;
#[cfg(test)]
mod schema;
pub mod spool;
pub mod tile;
pub mod trail;
pub mod verify;
pub mod wording;

pub use archive::{ArchiveInput, ArchiveSummary, Limits, Verified};
pub use canonical::{FormError, jcs, sha256_hex};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use key::{KeyRing, PublicKey, Revocation, Signer};
pub use ledger::{Appended, Head, Sealed, append};
pub use merkle::{CompactRange, ProofError, RangeError};
pub use origin::Ledger;
pub use proof::{ConsistencyProof, InclusionProof, PortableProofError, ProofJson};
pub use receipt::{Draft, Payload, Receipt, Status};
pub use spool::{parse_spool_line, spool_line};
pub use tile::{Tile, TileError, TileWriter, Tiles};
pub use trail::TrailError;
pub use verify::{Chain, ChainError, LineError, verify_line, verify_placed_line};
