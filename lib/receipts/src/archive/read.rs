//! Checking an archive without unpacking it.

use std::collections::BTreeMap;
use std::io::Read;
use std::thread;

use jiff::Timestamp;
use serde::Deserialize;

use super::error::{ArchiveError, stray};
use super::members::{Limits, Members};
use super::receipts::{Ledger, Pipeline, receipts};
use super::{
    AUDITOR_PUB, CHECKPOINT, CHECKPOINTS, Checkpoints, Contents, FORMAT_VERSION, KEYS, MANIFEST, Manifest,
    REPORT, SUMS, VERIFY, VERIFY_TEXT, policy_member,
};
use crate::canonical::{jcs, sha256_hex};
use crate::checkpoint::Checkpoint;
use crate::key::{KeyRing, PublicKey};
use crate::ledger::Head;
use crate::verify::{Chain, difference};

/// What a good archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub account_id: String,
    pub receipts: u64,
    /// The hash of the last; 64 zeros when there is none.
    pub last_hash: String,
    /// The timestamp of the last; the Unix epoch when there is none.
    pub last_timestamp: Timestamp,
    /// The compact range of their Merkle tree, as a [`Head`] has it.
    pub range: Vec<String>,
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
/// one than the seller's, or the same tar packed differently: [`verify_closing`](super::verify_closing) finds that.
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
