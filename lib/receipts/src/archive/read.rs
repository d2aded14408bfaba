//! Checking an archive without unpacking it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Chain as ChainedReader, Read, Take};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use flate2::bufread::GzDecoder;
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use uuid::Uuid;

use super::{
    AUDITOR_PUB, BLOCK, CHECKPOINT, CHECKPOINTS, CHUNK_LINES, Checkpoints, CheckpointsError, Chunk, Contents,
    FORMAT_VERSION, GZIP_HEADER, KEYS, MANIFEST, Manifest, REPORT, SUMS, Tally, VERIFY, VERIFY_TEXT, ZEROS,
    header, padding, policy_member,
};
use crate::canonical::{FormError, jcs, sha256_hex};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::key::{KeyError, KeyRing, PublicKey};
use crate::ledger::Head;
use crate::merkle::RangeError;
use crate::receipt::{Payload, Receipt};
use crate::trail::TrailError;
use crate::verify::{Chain, ChainError, Checked, LineError, check_lines, difference};

/// Receipts whose signatures are checked as one batch: half a member. A batch of 256 takes longer for each of them, one
/// of a thousand little less, and more memory.
const BATCH_LINES: usize = 500;
/// Bytes of receipts in a batch, but for the last one: what bounds the memory of those on their way.
const BATCH_BYTES: usize = 512 << 10;

/// How much an archive may ask of its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub archive_bytes: u64,
    /// Bytes of all members together, unpacked.
    pub unpacked_bytes: u64,
    /// Bytes of one member that is read whole: key, policy, manifest, sums, text.
    pub document_bytes: u64,
    /// Bytes of one receipt.
    pub line_bytes: u64,
    /// Members.
    pub members: u64,
    /// Threads that check receipts beside the one that unpacks; 0 leaves all to that one.
    pub threads: usize,
}

impl Default for Limits {
    /// Room for some ten million receipts; 16 MiB is the most that is held of any one member.
    fn default() -> Self {
        Self {
            archive_bytes: 8 << 30,
            unpacked_bytes: 32 << 30,
            document_bytes: 16 << 20,
            line_bytes: 64 << 10,
            members: 100_000,
            threads: 0,
        }
    }
}

/// The first thing that is wrong with an archive.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// Not gzip as archives are written.
    #[error("the archive begins with the bytes {found}, expected the gzip header {expected}")]
    Gzip {
        /// In hex.
        expected: String,
        /// In hex.
        found: String,
    },
    /// The stream broke off, or its checksum does not hold.
    #[error("reading `{member}` from the archive failed")]
    Read {
        /// The member, or the place.
        member: String,
        /// What the stream said.
        #[source]
        source: io::Error,
    },
    /// More than the reader was told to accept.
    #[error("`{member}`: {what} above the limit of {limit}")]
    TooLarge {
        /// The member, or the archive.
        member: String,
        /// What was counted.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A member that does not belong there.
    #[error("expected member {expected:?}, found {found:?}")]
    UnexpectedMember {
        /// What could stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A tar header that is not the one this member has.
    #[error("the header of {member:?} has {found:#04x} at byte {at}, expected {expected:#04x}")]
    Header {
        /// The member.
        member: String,
        /// The byte of the header.
        at: usize,
        /// What it must be.
        expected: u8,
        /// What it is.
        found: u8,
    },
    /// A member that is a link, a folder or a device.
    #[error("{member:?} is not a plain file but of tar type {found:?}")]
    NotAFile {
        /// The member.
        member: String,
        /// Its type.
        found: char,
    },
    /// Bytes that are no part of any member.
    #[error("{place}: expected {expected}, found other bytes")]
    StrayBytes {
        /// Where.
        place: String,
        /// What must stand there.
        expected: &'static str,
    },
    /// `auditor.pub` is no key.
    #[error("`auditor.pub` is not a public key")]
    PublicKey {
        /// Why.
        #[source]
        source: KeyError,
    },
    /// `auditor.pub` is another key than the trusted ones.
    #[error("`auditor.pub` is key {found}, trusted are: {expected}")]
    UntrustedKey {
        /// The trusted key ids.
        expected: String,
        /// The archive's.
        found: String,
    },
    /// The key trail does not hold.
    #[error("`keys.jsonl` is not a good key trail")]
    Trail {
        /// Which line, and why.
        #[source]
        source: TrailError,
    },
    /// A checkpoint does not hold, or the receipts do not bear it out.
    #[error("the archive's checkpoints do not hold")]
    Checkpoints {
        /// Which, and why.
        #[source]
        source: CheckpointsError,
    },
    /// A receipt that is wrong, or in the wrong place.
    #[error("`{member}` holds a bad receipt")]
    Receipt {
        /// The member.
        member: String,
        /// Which, the rule, and both values.
        #[source]
        source: ChainError,
    },
    /// A member of `receipts/` with the wrong number of lines.
    #[error(
        "`{member}`: expected {CHUNK_LINES} receipts (1 to {CHUNK_LINES} in the last one), found {found}"
    )]
    ChunkLines {
        /// The member.
        member: String,
        /// Its lines.
        found: u64,
    },
    /// Text where the archive prescribes another.
    #[error("`{member}`: {place}: expected {expected:?}, found {found:?}")]
    Document {
        /// The member.
        member: String,
        /// Where the two part.
        place: String,
        /// What must stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The manifest is not one.
    #[error("`manifest.json` is not a manifest")]
    Manifest {
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest that the archive should have has no JSON form.
    #[error("working out the manifest that the archive should have failed")]
    ManifestForm {
        /// Why.
        #[source]
        source: FormError,
    },
    /// A format this version does not read.
    #[error("`manifest.json`: format_version: expected {FORMAT_VERSION}, found {found}")]
    Format {
        /// The archive's format.
        found: u64,
    },
    /// A policy whose bytes are not those its name stands for.
    #[error("`{member}`: its bytes must have the SHA-256 of its name: expected {expected}, found {found}")]
    PolicyBytes {
        /// The member.
        member: String,
        /// The hash in its name.
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
        /// The policy.
        hash: String,
        /// The member where it must stand.
        found: String,
    },
}

/// What a good archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Whose receipts.
    pub account_id: String,
    /// How many.
    pub receipts: u64,
    /// The hash of the last; 64 zeros when there is none.
    pub last_hash: String,
    /// The timestamp of the last; the Unix epoch when there is none.
    pub last_timestamp: Timestamp,
    /// The compact range of their Merkle tree, as a [`Head`] has it.
    pub range: Vec<String>,
    /// Receipts by operation.
    pub operations: BTreeMap<&'static str, u64>,
    /// The signed checkpoint over all of them.
    pub checkpoint: Checkpoint,
    /// Earlier checkpoints in the archive, each of them borne out by the receipts.
    pub checkpoints: u64,
    /// The key that signed the checkpoint: `auditor.pub`.
    pub key_id: String,
    /// Every key that signed a receipt, in order.
    pub key_ids: Vec<String>,
    /// The trusted keys and all that the archive's key trail leads to.
    pub keys: KeyRing,
    /// Policies in the archive.
    pub policies: u64,
    /// When the archive says it was made. Nothing but the closing receipt vouches for it.
    pub created_at: Timestamp,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file in lower-case hex.
    pub sha256: String,
}

impl Verified {
    /// The head of the ledger that ends with the archive's last receipt.
    pub fn head(&self) -> Head {
        Head {
            size: self.receipts,
            last_hash: self.last_hash.clone(),
            timestamp: self.last_timestamp,
            range: self.range.clone(),
        }
    }
}

/// Checks a whole archive in one pass: every byte of the tar, every receipt, the chain, the policies, the sums.
///
/// Memory is bounded by `limits`, whatever the archive says of itself. A good archive may still be an older or shorter
/// one than the seller's, or the same tar packed differently: [`verify_closing`] finds that.
///
/// # Errors
/// [`ArchiveError`]: the first thing that is wrong, by member, receipt and rule, with both values.
pub fn verify(reader: impl Read, keys: &KeyRing, limits: Limits) -> Result<Verified, ArchiveError> {
    let mut members = Members::open(reader, limits)?;
    let mut document = |name: &str| {
        let member = members.next(name)?;
        let bytes = members.document(&member, name)?;
        String::from_utf8(bytes).map_err(|_| stray(name, "UTF-8"))
    };
    let note = document(CHECKPOINT)?;
    let earlier = document(CHECKPOINTS)?;
    let auditor_pub = document(AUDITOR_PUB)?;
    let key_trail = document(KEYS)?;
    if key_trail.contains('\r') || !(key_trail.is_empty() || key_trail.ends_with('\n')) {
        return Err(stray(KEYS, "lines that end in a line feed"));
    }
    let keys = keys
        .clone()
        .follow(key_trail.lines())
        .map_err(|source| ArchiveError::Trail { source })?;
    let key = public_key(&auditor_pub, &keys)?;
    let not_borne_out = |source| ArchiveError::Checkpoints { source };
    let checkpoints =
        Checkpoints::open(note.as_bytes(), &earlier, key.key_id(), &keys).map_err(not_borne_out)?;
    let mut contents = Contents::new(&note, &auditor_pub, &key_trail);
    for (name, text) in [
        (CHECKPOINT, &note),
        (CHECKPOINTS, &earlier),
        (AUDITOR_PUB, &auditor_pub),
        (KEYS, &key_trail),
    ] {
        contents.add_sum(name, &sha256_hex(text));
    }
    let earlier = checkpoints.earlier.len() as u64;

    let mut ledger = Ledger {
        chain: Chain::new(),
        checkpoints,
        contents,
    };
    let mut member = thread::scope(|scope| {
        let pipeline = Pipeline::start(scope, &keys, limits.threads);
        receipts(&mut members, &mut ledger, pipeline)
    })?;
    let Ledger {
        chain,
        checkpoints,
        mut contents,
    } = ledger;

    let policies = std::mem::take(&mut contents.policies);
    for (hash, &place) in &policies {
        let name = policy_member(hash);
        if member.name != name {
            return Err(ArchiveError::MissingPolicy {
                place,
                hash: hash.clone(),
                found: member.name,
            });
        }
        let found = sha256_hex(members.document(&member, &name)?);
        if found != *hash {
            return Err(ArchiveError::PolicyBytes {
                member: name,
                expected: hash.clone(),
                found,
            });
        }
        contents.add_sum(&name, &found);
        member = members.next(MANIFEST)?;
    }

    let bytes = members.document(&member, MANIFEST)?;
    let head = chain.head();
    checkpoints.end(head.size, &chain.root()).map_err(not_borne_out)?;
    let manifest = check_manifest(&bytes, &contents, &chain, &checkpoints)?;
    checkpoints
        .check_account(&manifest.account_id)
        .map_err(not_borne_out)?;
    // Prescribed, so these bytes are UTF-8.
    let report = contents.report(&manifest.account_id, &String::from_utf8_lossy(&bytes));
    contents.add_sum(MANIFEST, &sha256_hex(&bytes));
    contents.add_sum(VERIFY, &sha256_hex(VERIFY_TEXT));
    contents.add_sum(REPORT, &sha256_hex(&report));
    for (name, expected) in [
        (SUMS, contents.sums.as_str()),
        (VERIFY, VERIFY_TEXT),
        (REPORT, &report),
    ] {
        let member = members.next(name)?;
        check_text(name, expected, &members.document(&member, name)?)?;
    }
    let (size_bytes, sha256) = members.finish()?;

    Ok(Verified {
        account_id: manifest.account_id,
        receipts: head.size,
        last_hash: head.last_hash.clone(),
        last_timestamp: head.timestamp,
        range: head.range.clone(),
        operations: contents.operations,
        checkpoint: checkpoints.last,
        checkpoints: earlier,
        key_id: key.key_id().to_owned(),
        key_ids: contents.key_ids.into_iter().collect(),
        keys,
        policies: policies.len() as u64,
        created_at: manifest.created_at,
        size_bytes,
        sha256,
    })
}

/// What the receipts are held against, and what is gathered from them, in order.
struct Ledger {
    chain: Chain,
    checkpoints: Checkpoints,
    contents: Contents,
}

impl Ledger {
    fn take(&mut self, batch: Batch) -> Result<(), ArchiveError> {
        let Batch {
            member,
            lines,
            good,
            wrong,
        } = batch;
        let bad = |source| ArchiveError::Receipt {
            member: member.clone(),
            source,
        };
        for (line, checked) in lines.iter().zip(good) {
            let receipt = self.chain.place(checked).map_err(bad)?;
            self.contents.add(line, &receipt);
            self.checkpoints
                .pass(self.chain.head().size, || self.chain.root())
                .map_err(|source| ArchiveError::Checkpoints { source })?;
        }
        match wrong {
            Some(source) => Err(bad(self.chain.wrong_line(source))),
            None => Ok(()),
        }
    }
}

/// Reads all of `receipts/`; returns the member behind it.
fn receipts<R: Read>(
    members: &mut Members<R>,
    ledger: &mut Ledger,
    mut pipeline: Pipeline<'_>,
) -> Result<Member, ArchiveError> {
    let read = read_receipts(members, ledger, &mut pipeline);
    // What is still on its way stands before the place where reading failed.
    pipeline.finish(ledger)?;
    read
}

fn read_receipts<R: Read>(
    members: &mut Members<R>,
    ledger: &mut Ledger,
    pipeline: &mut Pipeline<'_>,
) -> Result<Member, ArchiveError> {
    let mut member = members.next(&ledger.contents.next_chunk())?;
    while member.name == ledger.contents.next_chunk() {
        if let Some(last) = ledger
            .contents
            .chunks
            .last()
            .filter(|last| last.lines != CHUNK_LINES)
        {
            return Err(ArchiveError::ChunkLines {
                member: last.name.clone(),
                found: last.lines,
            });
        }
        let mut lines = 0;
        let sha256 = members.lines(&member, |line| {
            lines += 1;
            pipeline.push(&member.name, line, ledger)
        })?;
        pipeline.flush(&member.name, ledger)?;
        if !(1..=CHUNK_LINES).contains(&lines) {
            return Err(ArchiveError::ChunkLines {
                member: member.name,
                found: lines,
            });
        }
        ledger.contents.add_sum(&member.name, &sha256);
        ledger.contents.chunks.push(Chunk {
            name: member.name,
            lines,
            sha256,
        });
        member = members.next(MANIFEST)?;
    }
    Ok(member)
}

/// Some lines of one member, checked by themselves.
struct Batch {
    member: String,
    lines: Vec<String>,
    /// For each of the lines, up to a bad one.
    good: Vec<Checked>,
    /// What is wrong with the line behind the good ones.
    wrong: Option<LineError>,
}

/// Lines on their way to be checked, and where the result goes.
struct Job {
    member: String,
    lines: Vec<String>,
    done: SyncSender<Batch>,
}

impl Job {
    fn check(member: String, lines: Vec<String>, keys: &KeyRing) -> Batch {
        let texts: Vec<_> = lines.iter().map(String::as_str).collect();
        let (good, wrong) = check_lines(&texts, keys);
        Batch {
            member,
            lines,
            good,
            wrong,
        }
    }
}

/// Receipts are checked by themselves on other threads, and put in their places in order here.
struct Pipeline<'k> {
    keys: &'k KeyRing,
    lines: Vec<String>,
    bytes: usize,
    jobs: Option<Sender<Job>>,
    pending: VecDeque<Receiver<Batch>>,
    /// Batches that may be on their way.
    most: usize,
}

impl<'k> Pipeline<'k> {
    fn start<'s>(scope: &'s thread::Scope<'s, 'k>, keys: &'k KeyRing, threads: usize) -> Self
    where
        'k: 's,
    {
        let mut pipeline = Self {
            keys,
            lines: Vec::new(),
            bytes: 0,
            jobs: None,
            pending: VecDeque::new(),
            most: threads.saturating_mul(2),
        };
        if threads > 0 {
            let (jobs, taken) = channel::<Job>();
            let taken = std::sync::Arc::new(Mutex::new(taken));
            for _ in 0..threads {
                let taken = taken.clone();
                scope.spawn(move || {
                    loop {
                        let job = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(Job { member, lines, done }) = job else {
                            return;
                        };
                        // Nobody waits any more where something before was wrong.
                        drop(done.send(Job::check(member, lines, keys)));
                    }
                });
            }
            pipeline.jobs = Some(jobs);
        }
        pipeline
    }

    fn push(&mut self, member: &str, line: &str, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        self.bytes += line.len();
        self.lines.push(line.to_owned());
        if self.lines.len() >= BATCH_LINES || self.bytes >= BATCH_BYTES {
            return self.flush(member, ledger);
        }
        Ok(())
    }

    /// Sends what was gathered, and takes what is due.
    fn flush(&mut self, member: &str, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        let lines = std::mem::take(&mut self.lines);
        self.bytes = 0;
        if lines.is_empty() {
            return Ok(());
        }
        let member = member.to_owned();
        let Some(jobs) = &self.jobs else {
            return ledger.take(Job::check(member, lines, self.keys));
        };
        let (done, batch) = sync_channel(1);
        let job = Job { member, lines, done };
        if let Err(unsent) = jobs.send(job) {
            // No thread is left to take it.
            let Job { member, lines, .. } = unsent.0;
            return ledger.take(Job::check(member, lines, self.keys));
        }
        self.pending.push_back(batch);
        if self.pending.len() > self.most {
            self.take_next(ledger)?;
        }
        Ok(())
    }

    fn take_next(&mut self, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        let taken = match self.pending.pop_front().map(|batch| batch.recv()) {
            Some(Ok(batch)) => ledger.take(batch),
            Some(Err(_)) => Err(ArchiveError::Thread),
            None => Ok(()),
        };
        if taken.is_err() {
            // What is behind the first bad receipt has no place.
            self.pending.clear();
        }
        taken
    }

    fn finish(mut self, ledger: &mut Ledger) -> Result<(), ArchiveError> {
        while !self.pending.is_empty() {
            self.take_next(ledger)?;
        }
        Ok(())
    }
}

fn public_key(pem: &str, keys: &KeyRing) -> Result<PublicKey, ArchiveError> {
    let key = PublicKey::from_pem(pem).map_err(|source| ArchiveError::PublicKey { source })?;
    if keys.get(key.key_id()) != Some(&key) {
        let expected = keys.key_ids().collect::<Vec<_>>().join(", ");
        return Err(ArchiveError::UntrustedKey {
            expected,
            found: key.key_id().to_owned(),
        });
    }
    let written = key
        .to_pem()
        .map_err(|source| ArchiveError::PublicKey { source })?;
    check_text(AUDITOR_PUB, &written, pem.as_bytes())?;
    Ok(key)
}

/// Holds the manifest against what was read. Only `created_at`, and the account of an archive without receipts, are
/// its own word.
fn check_manifest(
    bytes: &[u8],
    contents: &Contents,
    chain: &Chain,
    checkpoints: &Checkpoints,
) -> Result<Manifest, ArchiveError> {
    #[derive(Deserialize)]
    struct Format {
        format_version: u64,
    }
    let not_one = |source| ArchiveError::Manifest { source };
    let Format {
        format_version: found,
    } = serde_json::from_slice(bytes).map_err(not_one)?;
    if found != FORMAT_VERSION {
        return Err(ArchiveError::Format { found });
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(not_one)?;
    let account_id = chain.account_id().unwrap_or(&manifest.account_id);
    let expected = contents.manifest(account_id, chain.head(), &checkpoints.last, manifest.created_at);
    let expected = jcs(&expected).map_err(|source| ArchiveError::ManifestForm { source })?;
    check_text(MANIFEST, &expected, bytes)?;
    Ok(manifest)
}

fn check_text(member: &str, expected: &str, found: &[u8]) -> Result<(), ArchiveError> {
    if expected.as_bytes() == found {
        return Ok(());
    }
    let (at, expected, found) = difference(expected, &String::from_utf8_lossy(found));
    Err(ArchiveError::Document {
        member: member.to_owned(),
        place: format!("at byte {at}"),
        expected,
        found,
    })
}

/// A sidecar that does not close this archive.
#[derive(Debug, Error)]
pub enum ClosingError {
    /// What is said to have been verified can't have been.
    #[error("the archive's {receipts} receipts are no place to stand behind")]
    Verified {
        /// Receipts it is said to hold.
        receipts: u64,
        /// What does not fit.
        #[source]
        source: RangeError,
    },
    /// It is no good receipt, or does not stand right behind the archive's last one.
    #[error("the closing receipt does not stand behind the archive's last receipt")]
    Receipt {
        /// The rule and both values.
        #[source]
        source: ChainError,
    },
    /// It is about something else.
    #[error("the closing receipt {receipt_id}: expected operation decommission_complete, found {found}")]
    Operation {
        /// The receipt.
        receipt_id: Uuid,
        /// Its operation.
        found: &'static str,
    },
    /// The final checkpoint is not good.
    #[error("the final checkpoint is not good")]
    Checkpoint {
        /// Why.
        #[source]
        source: CheckpointError,
    },
    /// The final checkpoint is another ledger's, or of another end.
    #[error("the final checkpoint's {field} is {found}, expected {expected}")]
    End {
        /// Which part of it.
        field: &'static str,
        /// What the archive and its closing receipt lead to.
        expected: String,
        /// What the checkpoint says.
        found: String,
    },
    /// It closes another archive.
    #[error("the closing receipt {receipt_id}: its `{field}` is {expected}, the archive's is {found}")]
    Archive {
        /// The receipt.
        receipt_id: Uuid,
        /// The field.
        field: &'static str,
        /// What the receipt says.
        expected: String,
        /// What the archive is.
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

/// A member's header, read and found in order.
struct Member {
    name: String,
    size: u64,
}

/// The file, counted and hashed, with the header that was already read put back in front.
type Compressed<R> = ChainedReader<io::Cursor<[u8; 10]>, BufReader<Tally<Take<R>>>>;

/// The members of an archive, one after the other.
struct Members<R: Read> {
    stream: BufReader<GzDecoder<Compressed<R>>>,
    limits: Limits,
    members: u64,
    unpacked: u64,
}

impl<R: Read> Members<R> {
    fn open(reader: R, limits: Limits) -> Result<Self, ArchiveError> {
        // One byte more than the limit, so that reaching it shows.
        let mut file = BufReader::new(Tally::new(reader.take(limits.archive_bytes.saturating_add(1))));
        let mut found = [0; GZIP_HEADER.len()];
        file.read_exact(&mut found).map_err(|source| ArchiveError::Read {
            member: "the gzip header".to_owned(),
            source,
        })?;
        if found != GZIP_HEADER {
            return Err(ArchiveError::Gzip {
                expected: hex::encode(GZIP_HEADER),
                found: hex::encode(found),
            });
        }
        // The decoder reads the header too.
        let stream = BufReader::new(GzDecoder::new(io::Cursor::new(found).chain(file)));
        Ok(Self {
            stream,
            limits,
            members: 0,
            unpacked: 0,
        })
    }

    /// The next header. `expected` is for the error when there is none.
    fn next(&mut self, expected: &str) -> Result<Member, ArchiveError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block, expected)?;
        let unexpected = |found: &str| ArchiveError::UnexpectedMember {
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        if block == [0; BLOCK] {
            return Err(unexpected("the end of the archive"));
        }
        self.members += 1;
        let found = tar::Header::from_byte_slice(&block);
        let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
        if !found.entry_type().is_file() {
            let found = char::from(found.entry_type().as_byte());
            return Err(ArchiveError::NotAFile { member: name, found });
        }
        let size = found.entry_size().map_err(|source| ArchiveError::Read {
            member: name.clone(),
            source,
        })?;
        // A name that leaves the folder has no header either.
        let expected_block = header(&name, size).map_err(|_| unexpected(&name))?;
        let bytes = expected_block.as_bytes().iter().zip(&block).enumerate();
        for (at, (&expected, &found)) in bytes {
            if expected != found {
                return Err(ArchiveError::Header {
                    member: name,
                    at,
                    expected,
                    found,
                });
            }
        }
        let Limits {
            members,
            unpacked_bytes,
            ..
        } = self.limits;
        self.within(&name, "number of members", self.members, members)?;
        self.within(
            &name,
            "bytes unpacked",
            self.unpacked.saturating_add(size),
            unpacked_bytes,
        )?;
        Ok(Member { name, size })
    }

    /// The bytes of a member that is read whole, if it is the one called `expected`.
    fn document(&mut self, member: &Member, expected: &str) -> Result<Vec<u8>, ArchiveError> {
        if member.name != expected {
            let (expected, found) = (expected.to_owned(), member.name.clone());
            return Err(ArchiveError::UnexpectedMember { expected, found });
        }
        self.within(&member.name, "bytes", member.size, self.limits.document_bytes)?;
        let mut bytes = Vec::new();
        // Grows with what is there, not with what the header promises.
        let read = (&mut self.stream).take(member.size).read_to_end(&mut bytes);
        let read = read.map_err(|source| self.broken(&member.name, source))?;
        if (read as u64) < member.size {
            return Err(self.broken(&member.name, io::ErrorKind::UnexpectedEof.into()));
        }
        self.unpacked += member.size;
        self.end(member)?;
        Ok(bytes)
    }

    /// Gives the lines of a member to `each`, without their line feeds; returns the member's SHA-256.
    fn lines(
        &mut self,
        member: &Member,
        mut each: impl FnMut(&str) -> Result<(), ArchiveError>,
    ) -> Result<String, ArchiveError> {
        let mut sha256 = Sha256::new();
        let mut line = Vec::new();
        let mut left = member.size;
        while left > 0 {
            line.clear();
            let most = left.min(self.limits.line_bytes.saturating_add(1));
            let read = (&mut self.stream).take(most).read_until(b'\n', &mut line);
            let read = read.map_err(|source| self.broken(&member.name, source))? as u64;
            sha256.update(&line);
            let Some(text) = line.strip_suffix(b"\n") else {
                self.within(&member.name, "bytes in a line", read, self.limits.line_bytes)?;
                if read < most {
                    return Err(self.broken(&member.name, io::ErrorKind::UnexpectedEof.into()));
                }
                return Err(stray(&member.name, "a line feed at its end"));
            };
            left -= read;
            self.unpacked += read;
            each(str::from_utf8(text).map_err(|_| stray(&member.name, "UTF-8"))?)?;
        }
        self.end(member)?;
        Ok(hex::encode(sha256.finalize()))
    }

    /// Reads what must stand behind the last member: two empty blocks, and nothing.
    fn finish(mut self) -> Result<(u64, String), ArchiveError> {
        const END: &str = "the end of the archive";
        let mut blocks = [0; 2 * BLOCK];
        self.fill(&mut blocks, END)?;
        if blocks != ZEROS {
            return Err(stray(END, "two empty blocks"));
        }
        // Asking for one more byte is also what makes the decoder check its checksum.
        let behind = self
            .stream
            .read(&mut [0])
            .map_err(|source| self.broken(END, source))?;
        if behind != 0 {
            return Err(stray(END, "nothing behind the tar"));
        }
        let (_, mut file) = self.stream.into_inner().into_inner().into_inner();
        let rest = file.fill_buf().map_err(|source| ArchiveError::Read {
            member: END.to_owned(),
            source,
        })?;
        if !rest.is_empty() {
            return Err(stray(END, "nothing behind the gzip stream"));
        }
        let file = file.into_inner();
        let limit = self.limits.archive_bytes;
        if file.bytes > limit {
            return Err(ArchiveError::TooLarge {
                member: "the archive".to_owned(),
                what: "bytes",
                limit,
            });
        }
        Ok((file.bytes, file.sha256()))
    }

    fn end(&mut self, member: &Member) -> Result<(), ArchiveError> {
        let mut block = [0; BLOCK];
        let padding = block.get_mut(..padding(member.size)).unwrap_or_default();
        self.fill(padding, &member.name)?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(stray(&member.name, "zeros up to the next block"));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], member: &str) -> Result<(), ArchiveError> {
        self.unpacked += buffer.len() as u64;
        self.stream
            .read_exact(buffer)
            .map_err(|source| self.broken(member, source))
    }

    /// A read that failed; because of the limit, where that is why.
    fn broken(&self, member: &str, source: io::Error) -> ArchiveError {
        let (_, file) = self.stream.get_ref().get_ref().get_ref();
        let limit = self.limits.archive_bytes;
        match self.within("the archive", "bytes", file.get_ref().bytes, limit) {
            Err(too_large) => too_large,
            Ok(()) => ArchiveError::Read {
                member: member.to_owned(),
                source,
            },
        }
    }

    fn within(&self, member: &str, what: &'static str, found: u64, limit: u64) -> Result<(), ArchiveError> {
        if found <= limit {
            return Ok(());
        }
        Err(ArchiveError::TooLarge {
            member: member.to_owned(),
            what,
            limit,
        })
    }
}

fn stray(place: &str, expected: &'static str) -> ArchiveError {
    ArchiveError::StrayBytes {
        place: place.to_owned(),
        expected,
    }
}
