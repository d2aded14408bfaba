//! What can be wrong with an archive.

use std::io;

use thiserror::Error;

use super::{CHUNK_LINES, CheckpointsError, FORMAT_VERSION};
use crate::canonical::FormError;
use crate::key::KeyError;
use crate::trail::TrailError;
use crate::verify::ChainError;

/// The first thing that is wrong with an archive.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// Not gzip as archives are written.
    #[error(
        "the archive begins with the bytes {found}, expected the gzip header {expected}: it is not the file that the stack \
         stored; download it again"
    )]
    Gzip {
        /// In hex.
        expected: String,
        /// In hex.
        found: String,
    },
    /// The tar inside, without its gzip.
    #[error(
        "this is the tar inside an archive, without the compression: something on the way, such as a browser, unpacked it, \
         and the bytes that were signed for are lost; download it again as it is stored, for example with `ggen archive \
         download`"
    )]
    Unpacked,
    /// The stream broke off, or its checksum does not hold.
    #[error("reading `{member}` from the archive failed")]
    Read {
        /// The member, or the place.
        member: String,
        #[source]
        source: io::Error,
    },
    /// More than the reader was told to accept.
    #[error("`{member}`: {what} above the limit of {limit}")]
    TooLarge {
        /// The member, or the archive.
        member: String,
        what: &'static str,
        limit: u64,
    },
    /// A member that does not belong there.
    #[error("expected member {expected:?}, found {found:?}")]
    UnexpectedMember { expected: String, found: String },
    /// A tar header that is not the one this member has.
    #[error("the header of {member:?} has {found:#04x} at byte {at}, expected {expected:#04x}")]
    Header {
        member: String,
        at: usize,
        expected: u8,
        found: u8,
    },
    /// A member that is a link, a folder or a device.
    #[error("{member:?} is not a plain file but of tar type {found:?}")]
    NotAFile { member: String, found: char },
    /// Bytes that are no part of any member.
    #[error("{place}: expected {expected}, found other bytes")]
    StrayBytes { place: String, expected: &'static str },
    /// `auditor.pub` is no key.
    #[error("`auditor.pub` is not a public key")]
    PublicKey {
        #[source]
        source: KeyError,
    },
    /// `auditor.pub` is another key than the trusted ones.
    #[error("`auditor.pub` is key {found}, trusted are: {expected}")]
    UntrustedKey { expected: String, found: String },
    /// The key trail does not hold.
    #[error("`keys.jsonl` is not a good key trail")]
    Trail {
        #[source]
        source: TrailError,
    },
    /// A checkpoint does not hold, or the receipts do not bear it out.
    #[error("the archive's checkpoints do not hold")]
    Checkpoints {
        #[source]
        source: CheckpointsError,
    },
    /// A receipt that is wrong, or in the wrong place.
    #[error("`{member}` holds a bad receipt")]
    Receipt {
        member: String,
        #[source]
        source: ChainError,
    },
    /// A member of `receipts/` with the wrong number of lines.
    #[error(
        "`{member}`: expected {CHUNK_LINES} receipts (1 to {CHUNK_LINES} in the last one), found {found}"
    )]
    ChunkLines { member: String, found: u64 },
    /// Text where the archive prescribes another.
    #[error("`{member}`: {place}: expected {expected:?}, found {found:?}")]
    Document {
        member: String,
        place: String,
        expected: String,
        found: String,
    },
    /// The manifest is not one.
    #[error("`manifest.json` is not a manifest")]
    Manifest {
        #[source]
        source: serde_json::Error,
    },
    /// The manifest that the archive should have has no JSON form.
    #[error("working out the manifest that the archive should have failed")]
    ManifestForm {
        #[source]
        source: FormError,
    },
    /// A format this version does not read.
    #[error("`manifest.json`: format_version: expected {FORMAT_VERSION}, found {found}")]
    Format { found: u64 },
    /// A policy whose bytes are not those its name stands for.
    #[error("`{member}`: its bytes must have the SHA-256 of its name: expected {expected}, found {found}")]
    PolicyBytes {
        member: String,
        expected: String,
        /// The hash of its bytes.
        found: String,
    },
    /// A thread that checked receipts ended before it had.
    #[error("a thread that checked receipts ended early")]
    Thread,
    /// A receipt names a policy that is not there.
    #[error("the receipt at place {place} names a policy: expected `policies/{hash}.json`, found {found:?}")]
    MissingPolicy {
        /// The receipt's place in the ledger, from 0.
        place: u64,
        hash: String,
        found: String,
    },
}

pub(super) fn stray(place: &str, expected: &'static str) -> ArchiveError {
    ArchiveError::StrayBytes {
        place: place.to_owned(),
        expected,
    }
}
