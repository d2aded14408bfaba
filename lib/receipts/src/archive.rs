//! A tenant's archive: one reproducible `.tar.gz`, written and checked in a stream.
//!
//! Members in order: `auditor.pub`, `receipts/000000.jsonl` … ([`CHUNK_LINES`] lines each, the last one fewer),
//! `policies/<hash>.json` by hash, `manifest.json`, `SHA256SUMS`, `VERIFY.md`. A signed `checkpoint` will stand first.
//! The same receipts, policies, key and time give the same bytes, so every byte of the tar is prescribed and the reader
//! compares instead of interpreting: a member that is a link, has another owner or leaves the folder has no spelling.

mod read;
mod write;

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::receipt::millis;

pub use read::{ArchiveError, ClosingError, Limits, Verified, verify, verify_closing};
pub use write::{ArchiveInput, ArchiveSummary, WriteError, Writer, write};

/// The format this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u64 = 1;

/// Receipts in a full member of `receipts/`: below a megabyte, the most the writer holds at once.
pub const CHUNK_LINES: u64 = 1_000;

const AUDITOR_PUB: &str = "auditor.pub";
const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";
const VERIFY: &str = "VERIFY.md";
/// Other words are another [`FORMAT_VERSION`]: the reader compares them, since an auditor does what they say.
const VERIFY_TEXT: &str = include_str!("VERIFY.md");

/// Deflate, no name, no time, default level, unknown system: the header of every archive.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

const BLOCK: usize = 512;
const ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// `manifest.json`, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format_version: u64,
    account_id: String,
    #[serde(with = "millis")]
    created_at: Timestamp,
    receipts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_seq: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_seq: Option<u64>,
    last_hash: String,
    key_ids: Vec<String>,
    chunk_lines: u64,
    chunks: Vec<Chunk>,
}

/// One member of `receipts/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chunk {
    name: String,
    lines: u64,
    sha256: String,
}

/// What an archive's members say about it, gathered on the way by writer and reader alike.
#[derive(Debug, Default)]
struct Contents {
    chunks: Vec<Chunk>,
    /// Every policy hash in a receipt, with the place of the first receipt that names it.
    policies: BTreeMap<String, u64>,
    /// `SHA256SUMS` so far.
    sums: String,
}

impl Contents {
    fn add_sum(&mut self, member: &str, sha256: &str) {
        self.sums.push_str(&format!("{sha256}  {member}\n"));
    }

    fn next_chunk(&self) -> String {
        format!("receipts/{:06}.jsonl", self.chunks.len())
    }

    fn name_policy(&mut self, policy_hash: Option<String>, place: u64) {
        if let Some(hash) = policy_hash {
            self.policies.entry(hash).or_insert(place);
        }
    }

    fn manifest(
        &self,
        account_id: &str,
        head: &crate::Head,
        key_id: &str,
        created_at: Timestamp,
    ) -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            account_id: account_id.to_owned(),
            created_at: millis::truncate(created_at),
            receipts: head.size,
            first_seq: (head.size > 0).then_some(0),
            last_seq: head.size.checked_sub(1),
            last_hash: head.last_hash.clone(),
            key_ids: vec![key_id.to_owned()],
            chunk_lines: CHUNK_LINES,
            chunks: self.chunks.clone(),
        }
    }
}

fn policy_member(hash: &str) -> String {
    format!("policies/{hash}.json")
}

/// The one header a member of this name and size has.
fn header(member: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(member)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

/// Bytes from a member's end to the next block.
fn padding(size: u64) -> usize {
    let beyond = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    if beyond == 0 { 0 } else { BLOCK - beyond }
}

/// Hashes and counts what passes through on its way to or from `inner`.
struct Tally<T> {
    inner: T,
    sha256: Sha256,
    bytes: u64,
}

impl<T> Tally<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            sha256: Sha256::new(),
            bytes: 0,
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn sha256(&self) -> String {
        hex::encode(self.sha256.clone().finalize())
    }
}

impl<W: io::Write> io::Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.pass(bytes.get(..written).unwrap_or(bytes));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: io::Read> io::Read for Tally<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.pass(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}
