//! Signed checkpoints: how many receipts a ledger has and the root of their Merkle tree, as a C2SP note
//! (`signed-note/v1.0.0`, `tlog-checkpoint/v1.0.0`) that any transparency-log tool reads.
//!
//! The key that signs receipts signs these too. Neither can pass for the other: a note's text has line feeds, which the
//! canonical form of a receipt never has.

use std::str::Utf8Error;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::key::{KeyRing, PublicKey, SignatureError, Signer};
use crate::merkle::Hash;

/// The longest note that is read, in bytes: room for the signatures of many witnesses.
pub const NOTE_BYTES: usize = 1 << 20;

/// The most signature lines a note may have. The specification asks for at least 16.
pub const SIGNATURE_LINES: usize = 100;

/// The signature type that `signed-note/v1.0.0` gives to Ed25519 over the note's text.
const ED25519: u8 = 1;

/// Bytes of a key hash.
const KEY_HASH: usize = 4;

const DASH: &str = "— ";

/// A checkpoint that does not hold, or can't be made.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// An origin that can't name a key.
    #[error(
        "the origin {origin:?} can't name a key: it must not be empty and have no space, control character or `+`"
    )]
    KeyName { origin: String },
    /// More bytes than are read.
    #[error("the checkpoint has {found} bytes, the most are {NOTE_BYTES}")]
    TooLarge { found: usize },
    /// Not text.
    #[error("the checkpoint is not UTF-8")]
    Utf8 {
        #[source]
        source: Utf8Error,
    },
    /// A control character other than a line feed, such as a carriage return.
    #[error("the checkpoint has the control character {found:#04x} at byte {at}")]
    Control { at: usize, found: u8 },
    /// No blank line with signature lines behind it, each ended by a line feed.
    #[error("the checkpoint does not end in a blank line and whole signature lines")]
    Unsigned,
    /// More signature lines than are read.
    #[error("the checkpoint has {found} signature lines, the most are {SIGNATURE_LINES}")]
    TooManySignatures { found: usize },
    /// A line among the signatures that is none.
    #[error("line {line} behind the text is not `— <key name> <base64 of a key hash and a signature>`")]
    SignatureLine {
        /// Which, from 1.
        line: usize,
    },
    /// Signed by others only.
    #[error("the checkpoint has no signature by {name} with key hash {key_hash}")]
    UnknownKeys {
        /// The key name that was looked for: the origin.
        name: String,
        /// The trusted key's hash in hex.
        key_hash: String,
    },
    /// Signed by a key that was revoked.
    #[error("the checkpoint is signed by key {key_id}, which is revoked: {reason}")]
    RevokedKey { key_id: String, reason: String },
    /// The trusted key's signature does not hold.
    #[error("the checkpoint's signature by {name} does not hold")]
    Signature {
        name: String,
        #[source]
        source: SignatureError,
    },
    /// More or fewer lines than origin, size and root. Extension lines, which the format knows, are never written here.
    #[error("the checkpoint's text has {found} lines, expected origin, size and root")]
    Lines { found: usize },
    /// Another ledger's.
    #[error("the checkpoint's origin is {found:?}, expected {expected:?}")]
    Origin { expected: String, found: String },
    /// Not a decimal number below 2^64 without leading zeros.
    #[error("the checkpoint's size {found:?} is not a canonical decimal number")]
    Size { found: String },
    /// Not the base64 (standard alphabet, padded) of 32 bytes.
    #[error("the checkpoint's root {found:?} is not the base64 of 32 bytes")]
    Root { found: String },
}

/// What a signed checkpoint says of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which ledger, `<domain>/receipts/<tenant>`; also the name its key signs under.
    pub origin: String,
    /// Receipts in it.
    pub size: u64,
    /// The root of their Merkle tree.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed: origin, size and root, each ended by a line feed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// The signed note. Only for a head that has committed: two notes that contradict each other can't be taken back.
    ///
    /// # Errors
    /// [`CheckpointError::KeyName`] for an origin that can't stand in a note.
    pub fn sign(&self, signer: &Signer) -> Result<String, CheckpointError> {
        check_origin(&self.origin)?;
        let text = self.text();
        let mut signature = key_hash(&self.origin, &signer.public_key()).to_vec();
        signature.extend(signer.sign_raw(text.as_bytes()));
        let signature = STANDARD.encode(signature);
        Ok(format!("{text}\n{DASH}{} {signature}\n", self.origin))
    }

    /// Reads a signed note of a ledger that is not known yet: its first line says which, and one of the trusted keys must
    /// have signed under that name. Whose ledger it names is then the caller's to check: [`crate::origin::names`].
    /// Returns the id of the key that signed as well. A revoked key can't vouch for anything: a note has no date.
    ///
    /// # Errors
    /// [`CheckpointError`] names what is wrong first.
    pub fn open(note: impl AsRef<[u8]>, keys: &KeyRing) -> Result<(Self, String), CheckpointError> {
        let (checkpoint, key_id) = Self::open_old(note, keys)?;
        match keys.revocation(&key_id) {
            None => Ok((checkpoint, key_id)),
            Some(revoked) => Err(CheckpointError::RevokedKey {
                key_id,
                reason: revoked.reason.clone(),
            }),
        }
    }

    /// As [`Checkpoint::open`], also by a key that was revoked since: for one who checks what the note says by other means.
    ///
    /// # Errors
    /// [`CheckpointError`] names what is wrong first.
    pub fn open_old(note: impl AsRef<[u8]>, keys: &KeyRing) -> Result<(Self, String), CheckpointError> {
        let (text, signatures) = split(note.as_ref())?;
        let origin = text.lines().next().unwrap_or_default();
        check_origin(origin)?;
        for key in keys.keys() {
            match check_signatures(text, signatures, origin, key) {
                Ok(()) => return Ok((parse(text)?, key.key_id().to_owned())),
                Err(CheckpointError::UnknownKeys { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let hashes: Vec<_> = keys
            .keys()
            .map(|key| hex::encode(key_hash(origin, key)))
            .collect();
        Err(CheckpointError::UnknownKeys {
            name: origin.to_owned(),
            key_hash: hashes.join(", "),
        })
    }

    /// Reads a signed note strictly. Signatures by other keys, such as witnesses', are not checked.
    ///
    /// # Errors
    /// [`CheckpointError`] names what is wrong first. Nothing of the text is looked at before its signature holds.
    pub fn verify(note: impl AsRef<[u8]>, origin: &str, key: &PublicKey) -> Result<Self, CheckpointError> {
        check_origin(origin)?;
        let (text, signatures) = split(note.as_ref())?;
        check_signatures(text, signatures, origin, key)?;
        let checkpoint = parse(text)?;
        if checkpoint.origin != origin {
            return Err(CheckpointError::Origin {
                expected: origin.to_owned(),
                found: checkpoint.origin,
            });
        }
        Ok(checkpoint)
    }
}

fn check_origin(origin: &str) -> Result<(), CheckpointError> {
    if !is_key_name(origin) {
        return Err(CheckpointError::KeyName {
            origin: origin.to_owned(),
        });
    }
    Ok(())
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// Tells apart the keys that sign under one name. An identifier, not a commitment: the key itself is what is trusted.
fn key_hash(name: &str, key: &PublicKey) -> [u8; KEY_HASH] {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', ED25519])
        .chain_update(key.to_bytes())
        .finalize()
        .into();
    let [a, b, c, d, ..] = digest;
    [a, b, c, d]
}

/// A note's text with its last line feed, and its signature lines without theirs.
fn split(note: &[u8]) -> Result<(&str, &str), CheckpointError> {
    if note.len() > NOTE_BYTES {
        return Err(CheckpointError::TooLarge { found: note.len() });
    }
    let note = std::str::from_utf8(note).map_err(|source| CheckpointError::Utf8 { source })?;
    let control = |&(_, byte): &(usize, u8)| byte < b' ' && byte != b'\n';
    if let Some((at, found)) = note.bytes().enumerate().find(control) {
        return Err(CheckpointError::Control { at, found });
    }
    // The last blank line: a text may have blank lines of its own.
    let parts = note.rfind("\n\n").and_then(|at| {
        let (text, rest) = note.split_at_checked(at + 1)?;
        let signatures = rest.strip_prefix('\n')?.strip_suffix('\n')?;
        Some((text, signatures))
    });
    parts.ok_or(CheckpointError::Unsigned)
}

fn check_signatures(
    text: &str,
    signatures: &str,
    origin: &str,
    key: &PublicKey,
) -> Result<(), CheckpointError> {
    let found = signatures.split('\n').count();
    if found > SIGNATURE_LINES {
        return Err(CheckpointError::TooManySignatures { found });
    }
    let key_hash = key_hash(origin, key);
    let mut known = false;
    for (at, line) in signatures.split('\n').enumerate() {
        let (name, signature) =
            signature_line(line).ok_or(CheckpointError::SignatureLine { line: at + 1 })?;
        let Some(signature) = signature.strip_prefix(&key_hash).filter(|_| name == origin) else {
            continue;
        };
        key.verify_raw(text.as_bytes(), signature)
            .map_err(|source| CheckpointError::Signature {
                name: origin.to_owned(),
                source,
            })?;
        known = true;
    }
    if !known {
        return Err(CheckpointError::UnknownKeys {
            name: origin.to_owned(),
            key_hash: hex::encode(key_hash),
        });
    }
    Ok(())
}

/// The key name, and key hash and signature in one.
fn signature_line(line: &str) -> Option<(&str, Vec<u8>)> {
    let (name, signature) = line.strip_prefix(DASH)?.split_once(' ')?;
    let signature = STANDARD.decode(signature).ok()?;
    (is_key_name(name) && signature.len() > KEY_HASH).then_some((name, signature))
}

fn parse(text: &str) -> Result<Checkpoint, CheckpointError> {
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
    let (Some(origin), Some(size), Some(root), None) =
        (lines.next(), lines.next(), lines.next(), lines.next())
    else {
        let found = text.matches('\n').count();
        return Err(CheckpointError::Lines { found });
    };
    Ok(Checkpoint {
        origin: origin.to_owned(),
        size: size
            .parse()
            .ok()
            .filter(|parsed: &u64| parsed.to_string() == size)
            .ok_or_else(|| CheckpointError::Size {
                found: size.to_owned(),
            })?,
        root: STANDARD
            .decode(root)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| CheckpointError::Root {
                found: root.to_owned(),
            })?,
    })
}
