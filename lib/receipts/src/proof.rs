//! Proofs that travel: that a ledger has a line, and that it has only grown.
//!
//! [`InclusionProof`] is the text `c2sp.org/tlog-proof@v1`: index, hashes and signed checkpoint in one file, which with
//! the line itself and the public key is all that a check needs. [`ProofJson`] is the same without the checkpoint,
//! which then stands beside it, and [`ConsistencyProof`] leads from one checkpoint to a later one.

use std::str::Utf8Error;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::canonical::is_sha256_hex;
use crate::checkpoint::{Checkpoint, CheckpointError, NOTE_BYTES};
use crate::key::PublicKey;
use crate::merkle::{Hash, ProofError, leaf_hash, verify_consistency, verify_inclusion};

/// The most hashes of an inclusion proof: one for each level of the highest tree that a size can name.
pub const INCLUSION_HASHES: usize = 64;

/// The most hashes of a consistency proof: that many, and the subtree it starts from.
pub const CONSISTENCY_HASHES: usize = INCLUSION_HASHES + 1;

/// The most extra data, in bytes.
pub const EXTRA_BYTES: usize = 1 << 16;

/// The longest portable proof that is read, in bytes: room for the longest checkpoint, the most extra data as base64,
/// and the most hashes.
pub const PROOF_BYTES: usize = NOTE_BYTES + 2 * EXTRA_BYTES;

/// The longest JSON proof that is read, in bytes: several times what the most hashes take.
pub const JSON_BYTES: usize = 1 << 15;

const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// How much of a wrong text an error shows, in characters.
const SHOWN: usize = 80;

/// A portable proof that can't be read, or does not prove.
#[derive(Debug, Error)]
pub enum PortableProofError {
    /// More bytes than are read.
    #[error("the proof has {found} bytes, the most are {limit}")]
    TooLarge { found: usize, limit: usize },
    /// Not text.
    #[error("the proof is not UTF-8")]
    Utf8 {
        #[source]
        source: Utf8Error,
    },
    /// Another first line.
    #[error("the proof begins with {found:?}, expected \"{HEADER}\"")]
    Header {
        /// The line, cut short.
        found: String,
    },
    /// An `extra` line with what is not base64 (standard alphabet, padded).
    #[error("the proof's line {found:?} is not `extra <base64>`")]
    Extra {
        /// The line, cut short.
        found: String,
    },
    /// Extra data that is empty or more than is read.
    #[error("the proof has {found} bytes of extra data, expected from 1 to {EXTRA_BYTES}")]
    ExtraLength { found: usize },
    /// No index where it must stand, or not a decimal number below 2^64 without leading zeros.
    #[error("the proof's line {found:?} is not `index <number>`")]
    Index {
        /// The line, cut short.
        found: String,
    },
    /// A line that is not the base64 (standard alphabet, padded) of 32 bytes.
    #[error("hash {place} of the proof, {found:?}, is not the base64 of 32 bytes")]
    Hash {
        /// Its place in the proof, from 0.
        place: usize,
        /// The line, cut short.
        found: String,
    },
    /// More hashes than any tree has levels.
    #[error("the proof has more than {limit} hashes")]
    TooManyHashes {
        /// The most there may be.
        limit: usize,
    },
    /// No blank line with a checkpoint behind it.
    #[error("the proof has no checkpoint behind a blank line")]
    NoCheckpoint,
    /// The checkpoint does not hold.
    #[error("the proof's checkpoint does not hold")]
    Checkpoint {
        #[source]
        source: CheckpointError,
    },
    /// Not the JSON of such a proof.
    #[error("the proof is not the JSON it should be")]
    Json {
        #[source]
        source: serde_json::Error,
    },
    /// Proof and checkpoint are of different trees.
    #[error("the proof is for {field} {found}, the checkpoint says {expected}")]
    Mismatch {
        /// What differs: `origin`, `size`, `root`, and with `old_` or `new_` before it.
        field: &'static str,
        expected: String,
        found: String,
    },
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// That a ledger has a certain line at a certain place, with the signed checkpoint that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    index: u64,
    hashes: Vec<Hash>,
    checkpoint: String,
    extra: Option<Vec<u8>>,
}

impl InclusionProof {
    /// A proof for leaf `index`: hashes from the leaf's sibling up, and the note as it was signed. Only
    /// [`InclusionProof::verify`] says whether it holds.
    ///
    /// # Errors
    /// [`PortableProofError`] when it has more hashes or a longer note than would be read again, or no note.
    pub fn new(
        index: u64,
        hashes: Vec<Hash>,
        checkpoint: impl Into<String>,
    ) -> Result<Self, PortableProofError> {
        let checkpoint = checkpoint.into();
        check_count(hashes.len(), INCLUSION_HASHES)?;
        if checkpoint.is_empty() {
            return Err(PortableProofError::NoCheckpoint);
        }
        if checkpoint.len() > NOTE_BYTES {
            let source = CheckpointError::TooLarge {
                found: checkpoint.len(),
            };
            return Err(PortableProofError::Checkpoint { source });
        }
        Ok(Self {
            index,
            hashes,
            checkpoint,
            extra: None,
        })
    }

    /// Adds data that travels with the proof. Nothing vouches for it.
    ///
    /// # Errors
    /// [`PortableProofError::ExtraLength`] for none, and for more than is read again.
    pub fn with_extra(self, extra: Vec<u8>) -> Result<Self, PortableProofError> {
        if !(1..=EXTRA_BYTES).contains(&extra.len()) {
            return Err(PortableProofError::ExtraLength { found: extra.len() });
        }
        Ok(Self {
            extra: Some(extra),
            ..self
        })
    }

    /// Reads the text form strictly: what [`InclusionProof::to_text`] writes, and nothing else. The checkpoint is taken
    /// as it is: nothing of it is looked at before its signature holds.
    ///
    /// # Errors
    /// [`PortableProofError`] names what is wrong first.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, PortableProofError> {
        let text = text.as_ref();
        check_length(text, PROOF_BYTES)?;
        let text = std::str::from_utf8(text).map_err(|source| PortableProofError::Utf8 { source })?;
        // No line of the proof itself is empty.
        let (proof, checkpoint) = text.split_once("\n\n").unwrap_or((text, ""));
        let mut lines = proof.split('\n');
        let header = lines.next().unwrap_or_default();
        if header != HEADER {
            return Err(PortableProofError::Header { found: shown(header) });
        }
        let mut line = lines.next().unwrap_or_default();
        let mut extra = None;
        if let Some(data) = line.strip_prefix("extra ") {
            let data = STANDARD.decode(data);
            extra = Some(data.map_err(|_| PortableProofError::Extra { found: shown(line) })?);
            line = lines.next().unwrap_or_default();
        }
        let index = line
            .strip_prefix("index ")
            .and_then(decimal)
            .ok_or_else(|| PortableProofError::Index { found: shown(line) })?;
        let mut hashes = Vec::new();
        for (place, line) in lines.enumerate() {
            check_count(place + 1, INCLUSION_HASHES)?;
            let hash = STANDARD.decode(line).ok().and_then(|bytes| bytes.try_into().ok());
            hashes.push(hash.ok_or_else(|| PortableProofError::Hash {
                place,
                found: shown(line),
            })?);
        }
        let proof = Self::new(index, hashes, checkpoint)?;
        match extra {
            Some(extra) => proof.with_extra(extra),
            None => Ok(proof),
        }
    }

    /// The text form, for a file `<name>.tlog-proof`.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        if let Some(extra) = &self.extra {
            text += &format!("extra {}\n", STANDARD.encode(extra));
        }
        text += &format!("index {}\n", self.index);
        for hash in &self.hashes {
            text += &STANDARD.encode(hash);
            text += "\n";
        }
        text + "\n" + &self.checkpoint
    }

    /// Checks that the checkpoint is signed by `key` for `origin`, and that its tree has `line` (the bytes of a ledger
    /// line without their line feed) at [`InclusionProof::index`]. Gives back what the checkpoint says.
    ///
    /// # Errors
    /// [`PortableProofError::Checkpoint`] or [`PortableProofError::Proof`].
    pub fn verify(
        &self,
        line: impl AsRef<[u8]>,
        origin: &str,
        key: &PublicKey,
    ) -> Result<Checkpoint, PortableProofError> {
        let checkpoint = verified(&self.checkpoint, origin, key)?;
        let Checkpoint { size, root, .. } = &checkpoint;
        verify_inclusion(self.index, *size, &leaf_hash(line), &self.hashes, root)?;
        Ok(checkpoint)
    }

    /// The proof in JSON. Size and root are the checkpoint's, so that must hold.
    ///
    /// # Errors
    /// [`PortableProofError::Checkpoint`].
    pub fn to_json_form(&self, origin: &str, key: &PublicKey) -> Result<ProofJson, PortableProofError> {
        Ok(self.under(&verified(&self.checkpoint, origin, key)?))
    }

    /// As [`InclusionProof::to_json_form`], under its checkpoint as it was opened.
    pub fn under(&self, checkpoint: &Checkpoint) -> ProofJson {
        ProofJson {
            index: self.index,
            size: checkpoint.size,
            root: checkpoint.root,
            hashes: self.hashes.clone(),
        }
    }

    /// The leaf's place in the ledger, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The hashes, from the leaf's sibling up.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The signed note, unverified.
    pub fn checkpoint(&self) -> &str {
        &self.checkpoint
    }

    /// Data that came with the proof, which nothing vouches for.
    pub fn extra(&self) -> Option<&[u8]> {
        self.extra.as_deref()
    }
}

/// An inclusion proof without its checkpoint: `{"index":…,"size":…,"root":"<hex>","hashes":["<hex>",…]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProofJson {
    /// The leaf's place in the ledger, from 0.
    pub index: u64,
    /// Leaves of the tree that it is proved to be in.
    pub size: u64,
    /// That tree's root.
    #[serde(serialize_with = "hex_hash")]
    pub root: Hash,
    /// From the leaf's sibling up.
    #[serde(serialize_with = "hex_hashes")]
    pub hashes: Vec<Hash>,
}

impl ProofJson {
    /// Reads the JSON strictly: these fields, each once, and no others.
    ///
    /// # Errors
    /// [`PortableProofError`]; [`PortableProofError::Proof`] when the leaf is not in a tree of that size.
    pub fn parse(json: impl AsRef<[u8]>) -> Result<Self, PortableProofError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            index: u64,
            size: u64,
            root: Hex,
            hashes: Vec<Hex>,
        }
        let form: Form = from_json(json.as_ref())?;
        check_count(form.hashes.len(), INCLUSION_HASHES)?;
        let (index, size) = (form.index, form.size);
        if index >= size {
            return Err(ProofError::Index { index, size }.into());
        }
        Ok(Self {
            index,
            size,
            root: form.root.0,
            hashes: unhex(form.hashes),
        })
    }

    /// Checks that `checkpoint`, which has been verified, is of the proof's tree, and that the tree has `line` (the
    /// bytes of a ledger line without their line feed) at the proof's place.
    ///
    /// # Errors
    /// [`PortableProofError::Mismatch`] or [`PortableProofError::Proof`].
    pub fn verify(&self, line: impl AsRef<[u8]>, checkpoint: &Checkpoint) -> Result<(), PortableProofError> {
        self.check_tree(checkpoint)?;
        let leaf_hash = leaf_hash(line);
        Ok(verify_inclusion(
            self.index,
            self.size,
            &leaf_hash,
            &self.hashes,
            &self.root,
        )?)
    }

    /// The proof in one piece with the signed note `checkpoint`, which must hold and be of the proof's tree.
    ///
    /// # Errors
    /// [`PortableProofError::Checkpoint`] or [`PortableProofError::Mismatch`].
    pub fn with_checkpoint(
        self,
        checkpoint: impl Into<String>,
        origin: &str,
        key: &PublicKey,
    ) -> Result<InclusionProof, PortableProofError> {
        let note = checkpoint.into();
        self.check_tree(&verified(&note, origin, key)?)?;
        InclusionProof::new(self.index, self.hashes, note)
    }

    fn check_tree(&self, checkpoint: &Checkpoint) -> Result<(), PortableProofError> {
        check_size("size", checkpoint.size, self.size)?;
        check_root("root", &checkpoint.root, &self.root)
    }
}

/// That a ledger has only grown: `{"old_size":…,"new_size":…,"old_root":"<hex>","new_root":"<hex>","hashes":[…]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsistencyProof {
    /// Leaves of the older tree.
    pub old_size: u64,
    /// Leaves of the newer tree.
    pub new_size: u64,
    /// The older tree's root.
    #[serde(serialize_with = "hex_hash")]
    pub old_root: Hash,
    /// The newer tree's root.
    #[serde(serialize_with = "hex_hash")]
    pub new_root: Hash,
    /// As RFC 6962, section 2.1.2, orders them.
    #[serde(serialize_with = "hex_hashes")]
    pub hashes: Vec<Hash>,
}

impl ConsistencyProof {
    /// Reads the JSON strictly: these fields, each once, and no others.
    ///
    /// # Errors
    /// [`PortableProofError`]; [`PortableProofError::Proof`] for sizes that no proof connects.
    pub fn parse(json: impl AsRef<[u8]>) -> Result<Self, PortableProofError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Form {
            old_size: u64,
            new_size: u64,
            old_root: Hex,
            new_root: Hex,
            hashes: Vec<Hex>,
        }
        let form: Form = from_json(json.as_ref())?;
        check_count(form.hashes.len(), CONSISTENCY_HASHES)?;
        let (old_size, new_size) = (form.old_size, form.new_size);
        if old_size == 0 || old_size > new_size {
            return Err(ProofError::Sizes { old_size, new_size }.into());
        }
        Ok(Self {
            old_size,
            new_size,
            old_root: form.old_root.0,
            new_root: form.new_root.0,
            hashes: unhex(form.hashes),
        })
    }

    /// Checks that the newer tree begins with the older one. Where the roots are from is for the caller to know:
    /// [`ConsistencyProof::verify_between`] takes them from checkpoints.
    ///
    /// # Errors
    /// [`ProofError`] says what does not fit.
    pub fn verify(&self) -> Result<(), ProofError> {
        verify_consistency(
            self.old_size,
            self.new_size,
            &self.hashes,
            &self.old_root,
            &self.new_root,
        )
    }

    /// Checks that the proof leads from one checkpoint to another of the same ledger. Both must have been verified.
    ///
    /// # Errors
    /// [`PortableProofError::Mismatch`] or [`PortableProofError::Proof`].
    pub fn verify_between(&self, old: &Checkpoint, new: &Checkpoint) -> Result<(), PortableProofError> {
        if old.origin != new.origin {
            return Err(PortableProofError::Mismatch {
                field: "origin",
                expected: new.origin.clone(),
                found: old.origin.clone(),
            });
        }
        check_size("old_size", old.size, self.old_size)?;
        check_size("new_size", new.size, self.new_size)?;
        check_root("old_root", &old.root, &self.old_root)?;
        check_root("new_root", &new.root, &self.new_root)?;
        Ok(self.verify()?)
    }
}

fn verified(note: &str, origin: &str, key: &PublicKey) -> Result<Checkpoint, PortableProofError> {
    Checkpoint::verify(note, origin, key).map_err(|source| PortableProofError::Checkpoint { source })
}

fn check_length(bytes: &[u8], limit: usize) -> Result<(), PortableProofError> {
    let found = bytes.len();
    if found > limit {
        return Err(PortableProofError::TooLarge { found, limit });
    }
    Ok(())
}

fn check_count(hashes: usize, limit: usize) -> Result<(), PortableProofError> {
    if hashes > limit {
        return Err(PortableProofError::TooManyHashes { limit });
    }
    Ok(())
}

fn check_size(field: &'static str, expected: u64, found: u64) -> Result<(), PortableProofError> {
    if expected != found {
        return Err(PortableProofError::Mismatch {
            field,
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }
    Ok(())
}

fn check_root(field: &'static str, expected: &Hash, found: &Hash) -> Result<(), PortableProofError> {
    if expected != found {
        return Err(PortableProofError::Mismatch {
            field,
            expected: hex::encode(expected),
            found: hex::encode(found),
        });
    }
    Ok(())
}

fn shown(line: &str) -> String {
    line.chars().take(SHOWN).collect()
}

/// A number in its one decimal form.
fn decimal(text: &str) -> Option<u64> {
    text.parse()
        .ok()
        .filter(|number: &u64| number.to_string() == text)
}

fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, PortableProofError> {
    check_length(json, JSON_BYTES)?;
    // A list of the values, without the names, would do as well for the parser.
    if !json.trim_ascii_start().starts_with(b"{") {
        let source = serde_json::Error::custom("it is not an object");
        return Err(PortableProofError::Json { source });
    }
    serde_json::from_slice(json).map_err(|source| PortableProofError::Json { source })
}

/// A hash as 64 lower-case hex digits.
struct Hex(Hash);

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut hash = Hash::default();
        if !is_sha256_hex(&text) || hex::decode_to_slice(&text, &mut hash).is_err() {
            return Err(D::Error::custom("a hash is not 64 lower-case hex digits"));
        }
        Ok(Self(hash))
    }
}

fn unhex(hashes: Vec<Hex>) -> Vec<Hash> {
    hashes.into_iter().map(|hash| hash.0).collect()
}

fn hex_hash<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(hash))
}

fn hex_hashes<S: Serializer>(hashes: &[Hash], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(hashes.iter().map(hex::encode))
}
