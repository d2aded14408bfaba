//! What the fuzz targets share: a small good ledger with its archive, seeds made of it, and a forger who signs.
//!
//! The ledger's key is known here. So a target gives its input to a reader twice: as it is, and with the signature made
//! again, which is how the fuzzer comes past the signature checks.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::LazyLock;
use std::{fs, str};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use receipts::archive::{Opening, write};
use receipts::merkle::{Hash, leaf_hash};
use receipts::{
    ArchiveInput, ArchiveSummary, Checkpoint, CompactRange, Draft, Head, KeyRing, Limits, Payload, Signer,
    Verified, append, archive, sha256_hex,
};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

#[path = "../../lib/receipts/tests/receipts/drafts.rs"]
pub mod drafts;

/// The ledger's key, as `drafts::signer` has it.
pub const SEED: u8 = 42;

/// The ledger's checkpoints are signed under this name.
pub const ORIGIN: &str = "governor.example/receipts/a-1";

const POLICY: &[u8] = br#"{"version":"1.0.0"}"#;

/// Far below what a reader accepts by itself, so that a bomb would be slow, and seen.
pub const LIMITS: Limits = Limits {
    archive_bytes: 1 << 18,
    unpacked_bytes: 1 << 20,
    document_bytes: 1 << 18,
    line_bytes: 1 << 13,
    members: 32,
    threads: 0,
};

/// A good ledger, and what is made of it.
pub struct Good {
    pub keys: KeyRing,
    pub lines: Vec<String>,
    pub leaves: Vec<Hash>,
    pub head: Head,
    /// A signed checkpoint for each size from 0.
    pub notes: Vec<String>,
    pub tar: Vec<u8>,
    pub archive: Vec<u8>,
    pub verified: Verified,
    /// The receipt that closes the archive, and the checkpoint behind it.
    pub closing: String,
    pub end: String,
}

pub static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let drafts: Vec<_> = [12, 13, 17, 7, 21]
        .into_iter()
        .map(|which| Draft {
            policy_hash: (which == 13).then(|| sha256_hex(POLICY)),
            ..drafts::draft(which)
        })
        .collect();
    let (sealed, head) = drafts::ledger(&drafts);
    let lines: Vec<_> = sealed.into_iter().map(|one| one.line).collect();
    let leaves: Vec<_> = lines.iter().map(leaf_hash).collect();
    let notes: Vec<_> = (0..=lines.len()).map(|size| note_of(&leaves[..size])).collect();
    let checkpoints = [1, 3].map(|size| (size as u64, notes[size].clone()));
    let (archive, summary) = write_archive(&lines, &notes[lines.len()], &checkpoints);
    let keys = KeyRing::from(drafts::signer().public_key());
    let verified = archive::verify(&*archive, &keys, LIMITS).expect("a good archive");
    let closing = close(&summary, &head);
    let end = note_of(&[&leaves[..], &[leaf_hash(&closing)]].concat());
    Good {
        tar: unpack(&archive),
        keys,
        lines,
        leaves,
        head,
        notes,
        archive,
        verified,
        closing,
        end,
    }
});

fn note_of(leaves: &[Hash]) -> String {
    let checkpoint = Checkpoint {
        origin: ORIGIN.to_owned(),
        size: leaves.len() as u64,
        root: CompactRange::of(leaves).root(),
    };
    checkpoint.sign(&drafts::signer()).expect("a note")
}

fn write_archive(
    lines: &[String],
    checkpoint: &str,
    checkpoints: &[(u64, String)],
) -> (Vec<u8>, ArchiveSummary) {
    let mut bytes = Vec::new();
    let input = ArchiveInput {
        opening: Opening {
            account_id: "a-1",
            created_at: drafts::time("2027-02-03T04:05:06.789Z"),
            checkpoint,
            checkpoints,
            public_key: &drafts::signer().public_key(),
            key_trail: &rotations()[..2],
        },
        lines: lines.iter().cloned().map(Ok::<_, io::Error>),
        policies: &BTreeMap::from([(sha256_hex(POLICY), POLICY.to_vec())]),
    };
    let summary = write(&mut bytes, input).expect("an archive");
    (bytes, summary)
}

fn close(summary: &ArchiveSummary, head: &Head) -> String {
    let draft = Draft {
        payload: Payload::DecommissionComplete {
            actions_completed: 1,
            actions_failed: 0,
            receipts_archived: summary.receipts,
            archive_path: "a-1/2027-02-03.tar.gz".to_owned(),
            archive_size_bytes: summary.size_bytes,
            archive_sha256: summary.sha256.clone(),
            archive_version: Some("v1".to_owned()),
            dead_letters_archived: Some(2),
            dead_letters_path: Some("a-1/2027-02-03.dead-letters.jsonl".to_owned()),
            actions_archive: None,
        },
        ..drafts::draft(19)
    };
    seal(head, draft, &drafts::signer()).0
}

/// A key trail: the ledger's key passes on to key 1, that to key 2, which revokes the first from the year 2090 on. A
/// checkpoint by the first does not hold then, so the archive has no more than the rotations.
pub fn rotations() -> Vec<String> {
    let of = |payload| Draft {
        account_id: "_system".to_owned(),
        payload,
        ..drafts::draft(23)
    };
    let key = |seed: u8| Signer::generate([seed; 32]);
    let passes = |from: u8, to: u8| of(receipts::trail::rotation(&key(from).public_key(), &key(to)));
    let revoked = Payload::KeyRevoked {
        revoked_key_id: key(SEED).key_id().to_owned(),
        reason: "stolen".to_owned(),
        revoked_from: drafts::time("2090-01-01T00:00:00Z"),
    };
    let (first, head) = seal(&Head::empty(), passes(SEED, 1), &key(SEED));
    let (second, head) = seal(&head, passes(1, 2), &key(1));
    let (third, _) = seal(&head, of(revoked), &key(2));
    vec![first, second, third]
}

/// One receipt behind a head, and the head behind it.
pub fn seal(head: &Head, draft: Draft, signer: &Signer) -> (String, Head) {
    let mut appended =
        append(head, &[draft], drafts::time("2027-03-01T00:00:00Z"), signer).expect("a receipt");
    (appended.sealed.remove(0).line, appended.head)
}

/// One receipt of each operation, in a ledger.
pub fn all_operations() -> Vec<String> {
    let drafts: Vec<_> = (0..drafts::OPERATIONS).map(drafts::draft).collect();
    let sealed = drafts::ledger(&drafts).0;
    sealed.into_iter().map(|one| one.line).collect()
}

/// Puts seeds into a target's corpus. A target does so when it starts, before the corpus is read.
pub fn plant<T: AsRef<[u8]>>(target: &str, seeds: impl IntoIterator<Item = T>) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&corpus).expect("a folder for the corpus");
    for (at, seed) in seeds.into_iter().enumerate() {
        fs::write(corpus.join(format!("seed-{at:02}")), seed).expect("a seed in the corpus");
    }
}

/// A signature by the key of this seed, in base64. Not by the crate's own means, which sign receipts only.
pub fn sign(seed: u8, message: &[u8]) -> String {
    STANDARD.encode(SigningKey::from_bytes(&[seed; 32]).sign(message).to_bytes())
}

/// The line as the forger would hand it in: changed, in canonical form, and signed by the key of this seed.
/// `None` for what is no JSON object.
pub fn signed_again(line: &str, seed: u8, change: impl FnOnce(&mut Map<String, Value>)) -> Option<String> {
    let mut fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    change(&mut fields);
    fields.remove("signature");
    let key_id = Signer::generate([seed; 32]).key_id().to_owned();
    fields.insert("key_id".to_owned(), key_id.into());
    let signature = sign(seed, receipts::jcs(&fields).ok()?.as_bytes());
    fields.insert("signature".to_owned(), signature.into());
    receipts::jcs(&fields).ok()
}

/// The text as a note that the ledger's key signed under the name in its first line.
pub fn signed_note(text: &str) -> String {
    let name = text.lines().next().unwrap_or_default();
    let key = SigningKey::from_bytes(&[SEED; 32]);
    let hash = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', 1])
        .chain_update(key.verifying_key().to_bytes())
        .finalize();
    let signature = key.sign(text.as_bytes()).to_bytes();
    let signature = STANDARD.encode([&hash[..4], &signature].concat());
    format!("{text}\n— {name} {signature}\n")
}

/// A tar in the gzip that archives have, stored rather than deflated: as good for a reader, and quick.
pub fn pack(tar: &[u8]) -> Vec<u8> {
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::none());
    gzip.write_all(tar).expect("memory takes all");
    let mut bytes = gzip.finish().expect("memory takes all");
    // The header says "fastest"; that of archives does not.
    bytes[8] = 0;
    bytes
}

pub fn unpack(archive: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    GzDecoder::new(archive)
        .read_to_end(&mut tar)
        .expect("a good gzip");
    tar
}

/// Name and bytes of each member of a good tar.
pub fn members(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("a good tar");
    let member = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.expect("a good tar");
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("a good tar");
        let name = entry.path_bytes().into_owned();
        (String::from_utf8(name).expect("a name"), bytes)
    };
    entries.map(member).collect()
}

/// A tar of these members, with the headers that archives have. `None` for a name that no header holds.
pub fn build(members: &[(String, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        // Past `set_path`, which would refuse what a forger would not.
        let room = header.as_mut_bytes().get_mut(..name.len().min(100))?;
        room.copy_from_slice(name.as_bytes().get(..room.len())?);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, &**bytes).ok()?;
    }
    tar.into_inner().ok()
}
