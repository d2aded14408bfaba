//! Writing an archive.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use super::{
    AUDITOR_PUB, CHECKPOINT, CHECKPOINTS, CHUNK_LINES, Checkpoints, CheckpointsError, Chunk, Contents, KEYS,
    MANIFEST, REPORT, SUMS, Tally, VERIFY, VERIFY_TEXT, ZEROS, checkpoint_lines, header, padding,
    policy_member,
};
use crate::canonical::{FormError, jcs, sha256_hex};
use crate::key::{KeyError, KeyRing, PublicKey};
use crate::trail::TrailError;
use crate::verify::{Chain, ChainError};

/// An archive that was not written to its end. What was written so far is worthless.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The receipts could not be read.
    #[error("reading the receipts to archive failed after {after} of them")]
    Lines {
        after: u64,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A receipt does not follow its predecessor; an archive of it would not verify.
    #[error("the receipts to archive are no good ledger")]
    Ledger {
        #[source]
        source: ChainError,
    },
    /// A receipt of a key that the key trail does not lead to, or that was revoked when it was appended.
    #[error(
        "receipt {receipt_id} at place {place} is signed by key {found}, the archive's keys are {expected}"
    )]
    Key {
        /// Its place in the ledger, from 0.
        place: u64,
        receipt_id: Uuid,
        /// The keys that the trail leads to from the archive's.
        expected: String,
        found: String,
    },
    /// The key trail does not hold.
    #[error("the key trail to archive is not good")]
    Trail {
        #[source]
        source: TrailError,
    },
    /// A checkpoint does not hold, or the receipts do not bear it out: the ledger was rolled back, or forked.
    #[error("the receipts to archive are not those that were signed for")]
    Checkpoints {
        #[source]
        source: CheckpointsError,
    },
    /// A policy that a receipt names was not given.
    #[error("the receipt at place {place} names policy {hash}, which was not given")]
    MissingPolicy {
        /// The receipt's place in the ledger, from 0.
        place: u64,
        hash: String,
    },
    /// A policy's bytes are not those its name stands for.
    #[error("the bytes given as policy {expected} have the SHA-256 {found}")]
    PolicyBytes {
        expected: String,
        /// The hash of its bytes.
        found: String,
    },
    /// The public key has no PEM form.
    #[error("writing the archive's public key failed")]
    PublicKey {
        #[source]
        source: KeyError,
    },
    /// The manifest has no JSON form.
    #[error("writing the archive's manifest failed")]
    Manifest {
        #[source]
        source: FormError,
    },
    /// The output failed.
    #[error("writing `{member}` to the archive failed")]
    Output {
        /// The member, or the end.
        member: String,
        #[source]
        source: io::Error,
    },
}

/// What stands in front of the receipts.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    pub account_id: &'a str,
    /// When the archive is made; the only time in it besides the receipts' own.
    pub created_at: Timestamp,
    /// The signed note over all of the receipts.
    pub checkpoint: &'a str,
    /// Earlier notes of the same ledger with their sizes, by size.
    pub checkpoints: &'a [(u64, String)],
    /// The key that signed the checkpoint: `auditor.pub`.
    pub public_key: &'a PublicKey,
    /// The key trail's receipts in order, without line feeds.
    pub key_trail: &'a [String],
}

/// What goes into an archive.
#[derive(Debug)]
pub struct ArchiveInput<'a, L> {
    /// What stands in front of the receipts.
    pub opening: Opening<'a>,
    /// The ledger's lines from `seq` 0, without line feeds.
    pub lines: L,
    /// At least the policies the receipts name, by hash. Others are left out.
    pub policies: &'a BTreeMap<String, Vec<u8>>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSummary {
    pub receipts: u64,
    /// The hash of the last of them.
    pub last_hash: String,
    /// Bytes of the archive.
    pub size_bytes: u64,
    /// SHA-256 of the archive in lower-case hex.
    pub sha256: String,
}

/// Writes an archive from lines that can be read in one go. Where they come in pages, use [`Writer`].
///
/// # Errors
/// [`WriteError`]; the archive is incomplete then.
pub fn write<W, L, E>(out: W, input: ArchiveInput<'_, L>) -> Result<ArchiveSummary, WriteError>
where
    W: Write,
    L: IntoIterator<Item = Result<String, E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let mut writer = Writer::new(out, &input.opening)?;
    for line in input.lines {
        let line = line.map_err(|source| WriteError::Lines {
            after: writer.chain.head().size,
            source: source.into(),
        })?;
        writer.push(&line)?;
    }
    writer.finish(input.policies).map(|(summary, _)| summary)
}

/// An archive in the making. Holds one chunk of receipts, never the ledger.
///
/// Refuses receipts that do not follow each other, so that what it finishes verifies; signatures are not checked again.
pub struct Writer<W: Write> {
    out: GzEncoder<Tally<W>>,
    account_id: String,
    keys: KeyRing,
    checkpoints: Checkpoints,
    created_at: Timestamp,
    chain: Chain,
    contents: Contents,
    chunk: Vec<u8>,
    chunk_lines: u64,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    ///
    /// # Errors
    /// [`WriteError::Output`] when the output fails.
    pub fn new(out: W, opening: &Opening<'_>) -> Result<Self, WriteError> {
        let form = |source| WriteError::Manifest { source };
        let earlier = checkpoint_lines(opening.checkpoints).map_err(form)?;
        let keys = KeyRing::from(opening.public_key.clone())
            .follow(opening.key_trail.iter().map(String::as_str))
            .map_err(|source| WriteError::Trail { source })?;
        let signer = opening.public_key.key_id();
        let checkpoints = Checkpoints::open(opening.checkpoint.as_bytes(), &earlier, signer, &keys)
            .map_err(|source| WriteError::Checkpoints { source })?;
        let out = GzBuilder::new()
            .mtime(0)
            .operating_system(255)
            .write(Tally::new(out), Compression::default());
        let pem = opening
            .public_key
            .to_pem()
            .map_err(|source| WriteError::PublicKey { source })?;
        let trail: String = opening.key_trail.iter().flat_map(|line| [line, "\n"]).collect();
        let mut writer = Self {
            out,
            account_id: opening.account_id.to_owned(),
            keys,
            checkpoints,
            created_at: opening.created_at,
            chain: Chain::of(opening.account_id),
            contents: Contents::new(opening.checkpoint, &pem, &trail),
            chunk: Vec::new(),
            chunk_lines: 0,
        };
        writer.member(CHECKPOINT, opening.checkpoint.as_bytes())?;
        writer.member(CHECKPOINTS, earlier.as_bytes())?;
        writer.member(AUDITOR_PUB, pem.as_bytes())?;
        writer.member(KEYS, trail.as_bytes())?;
        Ok(writer)
    }

    /// The output, to take out what was written so far. The rest comes with [`Writer::finish`].
    pub fn output(&mut self) -> &mut W {
        &mut self.out.get_mut().inner
    }

    /// Adds the next line of the ledger, without its line feed.
    ///
    /// # Errors
    /// [`WriteError::Ledger`] and [`WriteError::Key`] for a receipt that does not belong there,
    /// [`WriteError::Checkpoints`] for a ledger that is not the one an earlier checkpoint was signed over.
    pub fn push(&mut self, line: &str) -> Result<(), WriteError> {
        let receipt = self
            .chain
            .push_unverified(line)
            .map_err(|source| WriteError::Ledger { source })?;
        let revoked = self.keys.revocation(&receipt.key_id);
        let counts = revoked.is_none_or(|revoked| receipt.timestamp < revoked.from);
        if self.keys.get(&receipt.key_id).is_none() || !counts {
            return Err(WriteError::Key {
                place: receipt.seq,
                receipt_id: receipt.receipt_id,
                expected: self.keys.key_ids().collect::<Vec<_>>().join(", "),
                found: receipt.key_id,
            });
        }
        self.contents.add(line, &receipt);
        self.checkpoints
            .pass(self.chain.head().size, || self.chain.root())
            .map_err(|source| WriteError::Checkpoints { source })?;
        self.chunk.extend_from_slice(line.as_bytes());
        self.chunk.push(b'\n');
        self.chunk_lines += 1;
        if self.chunk_lines == CHUNK_LINES {
            self.end_chunk()
        } else {
            Ok(())
        }
    }

    /// The policies that [`Writer::finish`] must be given for the receipts so far, by hash.
    pub fn policies_named(&self) -> impl Iterator<Item = &str> {
        self.contents.policies.keys().map(String::as_str)
    }

    /// Adds what stands behind the receipts and ends the archive. Returns the output, flushed.
    ///
    /// # Errors
    /// [`WriteError`]; the archive is incomplete then.
    pub fn finish(mut self, policies: &BTreeMap<String, Vec<u8>>) -> Result<(ArchiveSummary, W), WriteError> {
        if self.chunk_lines > 0 {
            self.end_chunk()?;
        }
        for (hash, place) in std::mem::take(&mut self.contents.policies) {
            let Some(bytes) = policies.get(&hash) else {
                return Err(WriteError::MissingPolicy { place, hash });
            };
            let found = sha256_hex(bytes);
            if found != hash {
                return Err(WriteError::PolicyBytes {
                    expected: hash,
                    found,
                });
            }
            self.member(&policy_member(&hash), bytes)?;
        }
        let head = self.chain.head().clone();
        self.checkpoints
            .end(head.size, &self.chain.root())
            .and_then(|()| self.checkpoints.check_account(&self.account_id))
            .map_err(|source| WriteError::Checkpoints { source })?;
        let manifest =
            self.contents
                .manifest(&self.account_id, &head, &self.checkpoints.last, self.created_at);
        let manifest = jcs(&manifest).map_err(|source| WriteError::Manifest { source })?;
        self.member(MANIFEST, manifest.as_bytes())?;
        let report = self.contents.report(&self.account_id, &manifest);
        self.contents.add_sum(VERIFY, &sha256_hex(VERIFY_TEXT));
        self.contents.add_sum(REPORT, &sha256_hex(&report));
        let sums = self.contents.sums.clone();
        self.member(SUMS, sums.as_bytes())?;
        self.member(VERIFY, VERIFY_TEXT.as_bytes())?;
        self.member(REPORT, report.as_bytes())?;

        let at_end = |source| WriteError::Output {
            member: "its end".to_owned(),
            source,
        };
        self.out.write_all(&ZEROS).map_err(at_end)?;
        let mut tally = self.out.finish().map_err(at_end)?;
        tally.flush().map_err(at_end)?;
        let summary = ArchiveSummary {
            receipts: head.size,
            last_hash: head.last_hash,
            size_bytes: tally.bytes,
            sha256: tally.sha256(),
        };
        Ok((summary, tally.inner))
    }

    fn end_chunk(&mut self) -> Result<(), WriteError> {
        let name = self.contents.next_chunk();
        let bytes = std::mem::take(&mut self.chunk);
        let sha256 = self.member(&name, &bytes)?;
        self.contents.chunks.push(Chunk {
            name,
            lines: self.chunk_lines,
            sha256,
        });
        self.chunk = bytes;
        self.chunk.clear();
        self.chunk_lines = 0;
        Ok(())
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<String, WriteError> {
        let sha256 = sha256_hex(bytes);
        self.tar_member(name, bytes)
            .map_err(|source| WriteError::Output {
                member: name.to_owned(),
                source,
            })?;
        self.contents.add_sum(name, &sha256);
        Ok(sha256)
    }

    fn tar_member(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() as u64;
        self.out.write_all(header(name, size)?.as_bytes())?;
        self.out.write_all(bytes)?;
        self.out.write_all(ZEROS.get(..padding(size)).unwrap_or_default())
    }
}
