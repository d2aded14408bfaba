//! A tenant's archive: one reproducible `.tar.gz`, written and checked in a stream.
//!
//! Members in order: `checkpoint` (the ledger's end as a signed note), `checkpoints.jsonl` (earlier ones), `auditor.pub`,
//! `keys.jsonl` (the key trail), `receipts/000000.jsonl` … ([`CHUNK_LINES`] lines each, the last one fewer),
//! `policies/<hash>.json` by hash, `manifest.json`, `SHA256SUMS`, `VERIFY.md`, `report.html`.
//! The same receipts, policies, checkpoints, keys and time give the same bytes, so every byte of the tar is prescribed
//! and the reader compares instead of interpreting: a member that is a link, has another owner or leaves the folder has
//! no spelling.

mod closing;
mod error;
mod members;
mod read;
mod receipts;
mod report;
mod write;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::canonical::{FormError, jcs};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::key::KeyRing;
use crate::ledger::Head;
use crate::merkle::Hash;
use crate::millis;
use crate::origin;
use crate::receipt::Receipt;

pub use closing::{Closed, ClosingError, verify_closing};
pub use error::ArchiveError;
pub use members::Limits;
pub use read::{Verified, verify};
pub use write::{ArchiveInput, ArchiveSummary, Opening, WriteError, Writer, write};

/// The format this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u64 = 2;

/// Receipts in a full member of `receipts/`: below a megabyte, the most the writer holds at once.
pub const CHUNK_LINES: u64 = 1_000;

const CHECKPOINT: &str = "checkpoint";
const CHECKPOINTS: &str = "checkpoints.jsonl";
const AUDITOR_PUB: &str = "auditor.pub";
const KEYS: &str = "keys.jsonl";
const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";
const VERIFY: &str = "VERIFY.md";
const REPORT: &str = "report.html";
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
    origin: String,
    root: String,
    key_ids: BTreeSet<String>,
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
#[derive(Debug)]
struct Contents {
    /// `auditor.pub`.
    auditor_pub: String,
    /// `keys.jsonl`.
    key_trail: String,
    /// `checkpoint`.
    note: String,
    chunks: Vec<Chunk>,
    /// Every policy hash in a receipt, with the place of the first receipt that names it.
    policies: BTreeMap<String, u64>,
    /// Every key that signed a receipt.
    key_ids: BTreeSet<String>,
    /// Receipts by operation.
    operations: BTreeMap<&'static str, u64>,
    /// When the first receipt was appended, and the last.
    times: Option<(Timestamp, Timestamp)>,
    /// All lines, as long as they fit into the report.
    embedded: Option<String>,
    /// `SHA256SUMS` so far.
    sums: String,
}

impl Contents {
    fn new(note: &str, auditor_pub: &str, key_trail: &str) -> Self {
        Self {
            note: note.to_owned(),
            auditor_pub: auditor_pub.to_owned(),
            key_trail: key_trail.to_owned(),
            chunks: Vec::new(),
            policies: BTreeMap::new(),
            key_ids: BTreeSet::new(),
            operations: BTreeMap::new(),
            times: None,
            embedded: Some(String::new()),
            sums: String::new(),
        }
    }

    /// `report.html`.
    fn report(&self, account_id: &str, manifest: &str) -> String {
        report::render(&report::Parts {
            account_id,
            auditor_pub: &self.auditor_pub,
            key_trail: &self.key_trail,
            checkpoint: &self.note,
            manifest,
            operations: &self.operations,
            first_timestamp: self.times.map(|(first, _)| first),
            last_timestamp: self.times.map(|(_, last)| last),
            receipts: self.embedded.as_deref(),
        })
    }

    fn add_sum(&mut self, member: &str, sha256: &str) {
        self.sums.push_str(&format!("{sha256}  {member}\n"));
    }

    fn next_chunk(&self) -> String {
        format!("receipts/{:06}.jsonl", self.chunks.len())
    }

    /// Takes up the next receipt, and the line it stands in.
    fn add(&mut self, line: &str, receipt: &Receipt) {
        *self.operations.entry(receipt.payload.operation()).or_insert(0) += 1;
        let (first, _) = self.times.unwrap_or((receipt.timestamp, receipt.timestamp));
        self.times = Some((first, receipt.timestamp));
        if let Some(lines) = &mut self.embedded {
            if lines.len() + line.len() < report::EMBEDDED_BYTES {
                lines.push_str(line);
                lines.push('\n');
            } else {
                self.embedded = None;
            }
        }
        if let Some(hash) = &receipt.policy_hash
            && !self.policies.contains_key(hash)
        {
            self.policies.insert(hash.clone(), receipt.seq);
        }
        if !self.key_ids.contains(&receipt.key_id) {
            self.key_ids.insert(receipt.key_id.clone());
        }
    }

    fn manifest(
        &self,
        account_id: &str,
        head: &Head,
        checkpoint: &Checkpoint,
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
            origin: checkpoint.origin.clone(),
            root: hex::encode(checkpoint.root),
            key_ids: self.key_ids.clone(),
            chunk_lines: CHUNK_LINES,
            chunks: self.chunks.clone(),
        }
    }
}

/// The checkpoints of an archive: the one of its end, and those of earlier ends that lie on the way.
#[derive(Debug)]
struct Checkpoints {
    last: Checkpoint,
    /// By size, the next one first.
    earlier: VecDeque<Checkpoint>,
}

/// A checkpoint that the archive's receipts do not bear out, or that is none.
#[derive(Debug, Error)]
pub enum CheckpointsError {
    /// Not a good checkpoint.
    #[error("{which} is not good")]
    Note {
        which: String,
        #[source]
        source: CheckpointError,
    },
    /// Signed by another key than the archive's `auditor.pub`.
    #[error("`checkpoint` is signed by key {found}, `auditor.pub` is {expected}")]
    Signer {
        /// The key id of `auditor.pub`.
        expected: String,
        found: String,
    },
    /// `checkpoints.jsonl` is not in its form.
    #[error(
        "line {line} of `checkpoints.jsonl` is not {{\"checkpoint\":<note>,\"size\":<number>}} in canonical form"
    )]
    Line {
        /// Which, from 1.
        line: usize,
    },
    /// Another ledger's.
    #[error("{which} is of {found:?}, expected {expected}")]
    Origin {
        which: String,
        expected: String,
        found: String,
    },
    /// Not larger than the one before, or larger than the last.
    #[error("{which} is of {found} receipts, expected {expected}")]
    Size {
        which: String,
        expected: String,
        found: u64,
    },
    /// The tree over the receipts has another root: they are not the ledger that the checkpoint was signed over.
    #[error("the checkpoint of {size} receipts has the root {expected}, the receipts have {found}")]
    Root {
        size: u64,
        /// Its root, in hex.
        expected: String,
        /// The root of the receipts, in hex.
        found: String,
    },
}

const LAST: &str = "`checkpoint`";

/// A line of `checkpoints.jsonl`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Earlier {
    checkpoint: String,
    size: u64,
}

/// `checkpoints.jsonl` of these notes.
fn checkpoint_lines(notes: &[(u64, String)]) -> Result<String, FormError> {
    let mut lines = String::new();
    for (size, checkpoint) in notes {
        let (size, checkpoint) = (*size, checkpoint.clone());
        lines.push_str(&jcs(&Earlier { checkpoint, size })?);
        lines.push('\n');
    }
    Ok(lines)
}

impl Checkpoints {
    /// Reads the note of the end, signed by `signer`, and `checkpoints.jsonl`, each of them signed by a key of the ring
    /// under the same origin.
    fn open(note: &[u8], lines: &str, signer: &str, keys: &KeyRing) -> Result<Self, CheckpointsError> {
        let (last, key_id) = Checkpoint::open(note, keys).map_err(|source| CheckpointsError::Note {
            which: LAST.to_owned(),
            source,
        })?;
        if key_id != signer {
            return Err(CheckpointsError::Signer {
                expected: signer.to_owned(),
                found: key_id,
            });
        }
        let mut earlier = VecDeque::new();
        let mut before = None;
        for (at, line) in lines.split_inclusive('\n').enumerate() {
            let wrong = || CheckpointsError::Line { line: at + 1 };
            let text = line.strip_suffix('\n').ok_or_else(wrong)?;
            let read: Earlier = serde_json::from_str(text).map_err(|_| wrong())?;
            if jcs(&read).map_or(true, |canonical| canonical != text) {
                return Err(wrong());
            }
            let which = || format!("line {} of `checkpoints.jsonl`", at + 1);
            // A key that was revoked since may have signed an early one: its root is held against the receipts anyway.
            let (checkpoint, _) =
                Checkpoint::open_old(read.checkpoint.as_bytes(), keys).map_err(|source| {
                    CheckpointsError::Note {
                        which: which(),
                        source,
                    }
                })?;
            if checkpoint.origin != last.origin {
                return Err(CheckpointsError::Origin {
                    which: which(),
                    expected: last.origin,
                    found: checkpoint.origin,
                });
            }
            let size = checkpoint.size;
            if size != read.size || size > last.size || before.is_some_and(|before| size <= before) {
                return Err(CheckpointsError::Size {
                    which: which(),
                    expected: format!(
                        "more than before, at most {}, and what the line says: {}",
                        last.size, read.size
                    ),
                    found: size,
                });
            }
            before = Some(size);
            earlier.push_back(checkpoint);
        }
        Ok(Self { last, earlier })
    }

    /// Holds the checkpoints of this many receipts against the root over them.
    fn pass(&mut self, size: u64, root: impl FnOnce() -> Hash) -> Result<(), CheckpointsError> {
        let Some(checkpoint) = self.earlier.pop_front_if(|next| next.size <= size) else {
            return Ok(());
        };
        check_root(&checkpoint, size, &root())
    }

    /// Holds the last one against all receipts.
    fn end(&self, size: u64, root: &Hash) -> Result<(), CheckpointsError> {
        check_root(&self.last, size, root)
    }

    /// Whether they are of this account's ledger.
    fn check_account(&self, account_id: &str) -> Result<(), CheckpointsError> {
        if origin::names(&self.last.origin, account_id) {
            return Ok(());
        }
        Err(CheckpointsError::Origin {
            which: LAST.to_owned(),
            expected: format!("the ledger of {account_id:?}"),
            found: self.last.origin.clone(),
        })
    }
}

fn check_root(checkpoint: &Checkpoint, size: u64, root: &Hash) -> Result<(), CheckpointsError> {
    if checkpoint.size != size {
        return Err(CheckpointsError::Size {
            which: LAST.to_owned(),
            expected: format!("the number of receipts, {size}"),
            found: checkpoint.size,
        });
    }
    if checkpoint.root != *root {
        return Err(CheckpointsError::Root {
            size,
            expected: hex::encode(checkpoint.root),
            found: hex::encode(root),
        });
    }
    Ok(())
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
