//! Archives: what is written verifies, is the same every time, and no altered one passes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use receipts::archive::Opening;
use receipts::archive::{CHUNK_LINES, ClosingError, WriteError, Writer, verify, verify_closing, write};
use receipts::{
    ArchiveInput, ArchiveSummary, Checkpoint, CompactRange, Draft, Head, KeyRing, Limits, Payload, PublicKey,
    Signer, Verified, append, merkle, sha256_hex,
};

use crate::drafts::{any_drafts, draft, ledger, signer, time};
use crate::ledger::story;
use crate::report::page_of;

pub const POLICY: &[u8] = br#"{"version":"1.0.0"}"#;

pub fn keys() -> KeyRing {
    KeyRing::from(signer().public_key())
}

pub fn policies() -> BTreeMap<String, Vec<u8>> {
    [POLICY.to_vec(), b"not named by any receipt".to_vec()]
        .map(|bytes| (sha256_hex(&bytes), bytes))
        .into()
}

/// `count` drafts, some of which a policy decided.
pub fn drafts(count: usize) -> Vec<Draft> {
    (0..count)
        .map(|place| Draft {
            policy_hash: (place % 3 == 1).then(|| sha256_hex(POLICY)),
            ..draft(place % 18)
        })
        .collect()
}

/// The places of members in an archive of up to a thousand receipts, one policy among them.
pub const CHECKPOINT: usize = 0;
pub const EARLIER: usize = 1;
pub const AUDITOR_PUB: usize = 2;
pub const KEYS: usize = 3;
pub const RECEIPTS: usize = 4;
pub const POLICIES: usize = 5;
pub const MANIFEST: usize = 6;

/// The signed note over the first `size` of these lines.
pub fn note(lines: &[String], size: usize, signer: &Signer) -> String {
    let leaves: Vec<_> = lines[..size].iter().map(merkle::leaf_hash).collect();
    let checkpoint = Checkpoint {
        origin: "governor.example/receipts/a-1".to_owned(),
        size: size as u64,
        root: CompactRange::of(&leaves).root(),
    };
    checkpoint.sign(signer).unwrap()
}

/// The parts of an archive, to be altered before they are written.
pub struct Parts {
    pub account_id: String,
    pub lines: Vec<String>,
    pub checkpoint: String,
    pub checkpoints: Vec<(u64, String)>,
    pub public_key: PublicKey,
    pub key_trail: Vec<String>,
}

impl Parts {
    /// A ledger of these lines, with checkpoints behind the first and, where there are so many, the third receipt.
    pub fn of(lines: Vec<String>, signer: &Signer) -> Self {
        let earlier = [1, 3].into_iter().filter(|&size| size <= lines.len());
        Self {
            account_id: "a-1".to_owned(),
            checkpoint: note(&lines, lines.len(), signer),
            checkpoints: earlier
                .map(|size| (size as u64, note(&lines, size, signer)))
                .collect(),
            public_key: signer.public_key(),
            key_trail: Vec::new(),
            lines,
        }
    }

    pub fn opening(&self) -> Opening<'_> {
        Opening {
            account_id: &self.account_id,
            created_at: time("2027-02-03T04:05:06.789Z"),
            checkpoint: &self.checkpoint,
            checkpoints: &self.checkpoints,
            public_key: &self.public_key,
            key_trail: &self.key_trail,
        }
    }

    pub fn write(&self) -> Result<(Vec<u8>, ArchiveSummary), WriteError> {
        let mut bytes = Vec::new();
        let input = ArchiveInput {
            opening: self.opening(),
            lines: self.lines.iter().cloned().map(Ok::<_, std::io::Error>),
            policies: &policies(),
        };
        let summary = write(&mut bytes, input)?;
        Ok((bytes, summary))
    }
}

pub fn lines(drafts: &[Draft]) -> Vec<String> {
    ledger(drafts).0.into_iter().map(|sealed| sealed.line).collect()
}

/// The archive of these drafts, and where their ledger ends.
pub fn archive(drafts: &[Draft]) -> (Vec<u8>, ArchiveSummary, Head) {
    let (bytes, summary) = Parts::of(lines(drafts), &signer()).write().unwrap();
    (bytes, summary, ledger(drafts).1)
}

fn check_whole(bytes: &[u8]) -> Verified {
    verify(bytes, &keys(), Limits::default()).unwrap_or_else(|error| panic!("{}", story(&error)))
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    check_refused_with(bytes, &keys(), Limits::default(), expected);
}

#[track_caller]
fn check_refused_with(bytes: &[u8], keys: &KeyRing, limits: Limits, expected: &str) {
    let error = verify(bytes, keys, limits).expect_err("a bad archive");
    assert!(
        story(&error).contains(expected),
        "{:?} does not say {expected:?}",
        story(&error)
    );
}

pub fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut tar).unwrap();
    tar
}

pub fn pack(tar: &[u8]) -> Vec<u8> {
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::default());
    gzip.write_all(tar).unwrap();
    gzip.finish().unwrap()
}

pub type Members = Vec<(String, Vec<u8>)>;

pub fn members(bytes: &[u8]) -> Members {
    tar::Archive::new(&*unpack(bytes))
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
        })
        .collect()
}

pub fn header(name: &str, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    // Past `set_path`, which would refuse what a forger would not.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_cksum();
    header
}

pub fn build(members: &Members) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        tar.append(&header(name, bytes.len()), &**bytes).unwrap();
    }
    pack(&tar.into_inner().unwrap())
}

/// What a forger does last: a page and sums that fit.
pub fn sum_again(members: &mut Members) {
    let page = members.iter().position(|(member, _)| member == "report.html");
    if let Some((at, page)) = page.zip(page_of(members)) {
        members[at].1 = page.into_bytes();
    }
    let end = place(members, "SHA256SUMS");
    let sums: String = members
        .iter()
        .filter(|(name, _)| name != "SHA256SUMS")
        .map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes)))
        .collect();
    members[end].1 = sums.into_bytes();
}

pub fn place(members: &Members, name: &str) -> usize {
    members.iter().position(|(member, _)| member == name).unwrap()
}

pub fn replace(members: &mut Members, name: &str, from: &str, to: &str) {
    let place = place(members, name);
    let text = String::from_utf8(members[place].1.clone()).unwrap();
    assert!(text.contains(from), "{name} holds {from:?}");
    members[place].1 = text.replacen(from, to, 1).into_bytes();
}

/// Changes the members of a good archive; the forger mends the sums.
#[track_caller]
fn check_forged(change: impl FnOnce(&mut Members), expected: &str) {
    let mut members = members(&archive(&drafts(5)).0);
    change(&mut members);
    sum_again(&mut members);
    check_refused(&build(&members), expected);
}

#[test]
fn archives_of_every_size_verify() {
    let full = usize::try_from(CHUNK_LINES).unwrap();
    for count in [0, 1, 5, full - 1, full, full + 1, 2 * full + 500] {
        let (bytes, summary, head) = archive(&drafts(count));
        let verified = check_whole(&bytes);
        assert_eq!(verified.receipts, count as u64);
        assert_eq!(verified.operations.values().sum::<u64>(), count as u64);
        assert_eq!(
            (verified.account_id.as_str(), verified.key_id.as_str()),
            ("a-1", signer().key_id())
        );
        assert_eq!(
            (&verified.last_hash, verified.last_timestamp),
            (&head.last_hash, head.timestamp)
        );
        assert_eq!(verified.policies, u64::from(count > 1));
        let expected = ArchiveSummary {
            receipts: count as u64,
            last_hash: head.last_hash,
            size_bytes: bytes.len() as u64,
            sha256: sha256_hex(&bytes),
        };
        assert_eq!(summary, expected);
        assert_eq!(
            (verified.size_bytes, verified.sha256),
            (summary.size_bytes, summary.sha256)
        );
    }
}

#[test]
fn the_members_are_these_in_this_order() {
    let (bytes, ..) = archive(&drafts(5));
    let members = members(&bytes);
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    let policy = format!("policies/{}.json", sha256_hex(POLICY));
    assert_eq!(
        names,
        [
            "checkpoint",
            "checkpoints.jsonl",
            "auditor.pub",
            "keys.jsonl",
            "receipts/000000.jsonl",
            &policy,
            "manifest.json",
            "SHA256SUMS",
            "VERIFY.md",
            "report.html"
        ]
    );
    let manifest: serde_json::Value = serde_json::from_slice(&members[MANIFEST].1).unwrap();
    let (_, _, head) = archive(&drafts(5));
    let expected = serde_json::json!({
        "format_version": 2, "account_id": "a-1", "created_at": "2027-02-03T04:05:06.789Z", "receipts": 5,
        "first_seq": 0, "last_seq": 4, "last_hash": head.last_hash, "key_ids": [signer().key_id()],
        "origin": "governor.example/receipts/a-1", "root": hex::encode(head.root().unwrap()),
        "chunk_lines": CHUNK_LINES,
        "chunks": [{"name": "receipts/000000.jsonl", "lines": 5, "sha256": sha256_hex(&members[RECEIPTS].1)}],
    });
    assert_eq!(manifest, expected);
    assert_eq!(
        build(&members),
        bytes,
        "nothing stands in the file besides its members"
    );
}

#[test]
fn pages_written_one_by_one_give_the_same_archive() {
    let (expected, summary, _) = archive(&drafts(7));
    let parts = Parts::of(lines(&drafts(7)), &signer());
    let mut writer = Writer::new(Vec::new(), &parts.opening()).unwrap();
    let mut uploaded = Vec::new();
    for line in &parts.lines {
        writer.push(line).unwrap();
        uploaded.append(writer.output());
    }
    assert_eq!(writer.policies_named().collect::<Vec<_>>(), [sha256_hex(POLICY)]);
    let (written, rest) = writer.finish(&policies()).unwrap();
    uploaded.extend(rest);
    assert_eq!((written, uploaded), (summary, expected));
}

#[test]
fn what_would_not_verify_is_not_written() {
    let parts = Parts::of(lines(&drafts(5)), &signer());
    let lines = parts.lines.clone();
    let begin = |account: &str| {
        let opening = Opening {
            account_id: account,
            ..parts.opening()
        };
        Writer::new(Vec::new(), &opening).unwrap()
    };

    let error = begin("a-1").push(&lines[1]).unwrap_err();
    assert!(story(&error).contains("seq has no gaps"), "{}", story(&error));
    let error = begin("a-2").push(&lines[0]).unwrap_err();
    assert!(
        story(&error).contains("account_id is the ledger's"),
        "{}",
        story(&error)
    );
    let other = Signer::generate([1; 32]);
    let foreign = append(&Head::empty(), &drafts(1), time("2027-01-01T00:00:00Z"), &other).unwrap();
    assert!(matches!(
        begin("a-1").push(&foreign.sealed[0].line),
        Err(WriteError::Key { place: 0, .. })
    ));

    let mut writer = begin("a-1");
    lines.iter().for_each(|line| writer.push(line).unwrap());
    assert!(matches!(
        writer.finish(&BTreeMap::new()),
        Err(WriteError::MissingPolicy { place: 1, .. })
    ));
    let mut writer = begin("a-1");
    lines.iter().for_each(|line| writer.push(line).unwrap());
    let wrong = BTreeMap::from([(sha256_hex(POLICY), b"{}".to_vec())]);
    assert!(matches!(
        writer.finish(&wrong),
        Err(WriteError::PolicyBytes { .. })
    ));

    let lines = lines
        .into_iter()
        .take(2)
        .map(Ok)
        .chain([Err("the table is gone")]);
    let input = ArchiveInput {
        opening: parts.opening(),
        lines,
        policies: &policies(),
    };
    assert!(matches!(
        write(Vec::new(), input),
        Err(WriteError::Lines { after: 2, .. })
    ));
}

pub fn closing(summary: &ArchiveSummary, head: &Head, change: impl FnOnce(&mut Draft)) -> String {
    let mut draft = Draft {
        payload: Payload::DecommissionComplete {
            actions_completed: 1,
            actions_failed: 0,
            receipts_archived: summary.receipts,
            archive_path: "a-1/2027-02-03.tar.gz".to_owned(),
            archive_size_bytes: summary.size_bytes,
            archive_sha256: summary.sha256.clone(),
            archive_version: Some("v1".to_owned()),
            dead_letters_archived: Some(0),
            dead_letters_path: None,
            actions_archive: None,
        },
        ..draft(19)
    };
    change(&mut draft);
    append(head, &[draft], time("2027-02-03T04:05:07Z"), &signer())
        .unwrap()
        .sealed
        .remove(0)
        .line
}

#[test]
fn the_closing_receipt_closes_its_archive_only() {
    let (bytes, summary, head) = archive(&drafts(5));
    let verified = check_whole(&bytes);
    assert_eq!(verified.head(), head);
    let line = closing(&summary, &head, |_| {});
    let closed = verify_closing(&line, None, &verified).unwrap();
    assert_eq!((closed.receipt.seq, &closed.checkpoint), (5, &None));
    assert_eq!(
        verify_closing(&format!("{line}\n"), None, &verified).unwrap(),
        closed
    );
    let all: Vec<String> = lines(&drafts(5)).into_iter().chain([line.clone()]).collect();
    let note = note(&all, 6, &signer());
    let closed = verify_closing(&line, Some(note.as_bytes()), &verified).unwrap();
    assert_eq!(closed.checkpoint.unwrap().size, 6);
    for (note, expected) in [
        (self::note(&all, 5, &signer()), "size is 5, expected 6"),
        (
            self::note(&[&all[1..], &all[..1]].concat(), 6, &signer()),
            "final checkpoint's root is",
        ),
        (
            note.replace("\n6\n", "\n7\n"),
            "signature by governor.example/receipts/a-1 does not hold",
        ),
        (
            note.replace("/a-1", "/a-2"),
            "signature by governor.example/receipts/a-2",
        ),
        (String::new(), "does not end in a blank line"),
    ] {
        let error = verify_closing(&line, Some(note.as_bytes()), &verified).expect_err("not its end");
        assert!(
            story(&error).contains(expected),
            "{:?} does not say {expected:?}",
            story(&error)
        );
    }

    let check = |line: &str, verified: &Verified, expected: &str| {
        let error = verify_closing(line, None, verified).expect_err("a closing receipt of another archive");
        assert!(
            story(&error).contains(expected),
            "{:?} does not say {expected:?}",
            story(&error)
        );
    };
    let shorter = check_whole(&archive(&drafts(4)).0);
    check(&line, &shorter, "seq has no gaps\": expected 4, found 5");
    let other = archive(&drafts(4).into_iter().chain([draft(17)]).collect::<Vec<_>>());
    check(
        &line,
        &check_whole(&other.0),
        "prev_hash is the predecessor's hash",
    );
    check(
        &line.replace("v1", "v2"),
        &verified,
        "signature was not made by key",
    );
    check("", &verified, "not a receipt");
    let forged = Verified {
        range: Vec::new(),
        ..verified.clone()
    };
    check(&line, &forged, "has 2 hashes, found 0");
    check(
        &closing(&summary, &head, |closing| closing.payload = draft(18).payload),
        &verified,
        "decommission_start",
    );
    let claims = |receipts: u64, size: u64, sha256: &str| {
        let claimed = ArchiveSummary {
            receipts,
            size_bytes: size,
            sha256: sha256.to_owned(),
            ..summary.clone()
        };
        closing(&claimed, &head, |_| {})
    };
    check(
        &claims(4, summary.size_bytes, &summary.sha256),
        &verified,
        "`receipts_archived` is 4, the archive's is 5",
    );
    check(
        &claims(5, 1, &summary.sha256),
        &verified,
        "`archive_size_bytes` is 1, ",
    );
    check(
        &claims(5, summary.size_bytes, &"0".repeat(64)),
        &verified,
        "`archive_sha256` is 000",
    );
    let foreign = closing(&summary, &head, |closing| closing.account_id = "a-2".to_owned());
    check(&foreign, &verified, "account_id is the ledger's");
}

#[test]
fn every_changed_byte_of_the_file_is_found() {
    let (bytes, summary, head) = archive(&drafts(3));
    let line = closing(&summary, &head, |_| {});
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        if let Ok(verified) = verify(&*changed, &keys(), Limits::default()) {
            // The same tar, packed in other words: a gzip stream has many, and only the closing receipt names one.
            assert_eq!(unpack(&changed), unpack(&bytes), "byte {at}");
            let error = verify_closing(&line, None, &verified).expect_err("another file");
            assert!(
                matches!(
                    error,
                    ClosingError::Archive {
                        field: "archive_sha256",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}

#[test]
fn every_cut_is_found() {
    let (bytes, ..) = archive(&drafts(3));
    for length in 0..bytes.len() {
        assert!(
            verify(&bytes[..length], &keys(), Limits::default()).is_err(),
            "cut to {length} bytes"
        );
    }
    let tar = unpack(&bytes);
    for length in (0..tar.len()).step_by(256) {
        assert!(
            verify(&*pack(&tar[..length]), &keys(), Limits::default()).is_err(),
            "cut to {length} bytes of tar"
        );
    }
}

#[test]
fn bytes_that_belong_to_nothing_are_found() {
    let (bytes, ..) = archive(&drafts(3));
    let tar = unpack(&bytes);
    check_refused(&[&bytes, &b"x"[..]].concat(), "nothing behind the gzip stream");
    check_refused(
        &[&bytes[..], &bytes[..]].concat(),
        "nothing behind the gzip stream",
    );
    check_refused(&pack(&[&tar[..], &[0]].concat()), "nothing behind the tar");
    let mut ends = tar.clone();
    *ends.last_mut().unwrap() = 1;
    check_refused(&pack(&ends), "two empty blocks");
    let mut padding = tar;
    assert_eq!(padding[1023], 0, "a checkpoint is shorter than a block");
    padding[1023] = 1;
    check_refused(&pack(&padding), "checkpoint: expected zeros up to the next block");
    check_refused(b"", "the gzip header");
    check_refused(b"PK\x03\x04 is not gzip", "expected the gzip header");
}

#[test]
fn members_out_of_place_are_found() {
    let policy = format!("policies/{}.json", sha256_hex(POLICY));
    for name in [
        "checkpoint",
        "checkpoints.jsonl",
        "auditor.pub",
        "keys.jsonl",
        "receipts/000000.jsonl",
        &policy,
        "manifest.json",
        "SHA256SUMS",
        "VERIFY.md",
        "report.html",
    ] {
        let good = members(&archive(&drafts(5)).0);
        let at = place(&good, name);
        let mut missing = good.clone();
        missing.remove(at);
        assert!(
            verify(&*build(&missing), &keys(), Limits::default()).is_err(),
            "without {name}"
        );
        let mut twice = good.clone();
        twice.insert(at, good[at].clone());
        assert!(
            verify(&*build(&twice), &keys(), Limits::default()).is_err(),
            "{name} twice"
        );
        let mut late = good.clone();
        late.rotate_left(at);
        assert!(
            at == 0 || verify(&*build(&late), &keys(), Limits::default()).is_err(),
            "{name} first"
        );
    }
    check_forged(
        |members| members.insert(1, ("extra".to_owned(), vec![])),
        "found \"extra\"",
    );
    let mut longer = members(&archive(&drafts(5)).0);
    longer.push(("extra".to_owned(), vec![]));
    check_refused(&build(&longer), "two empty blocks");
    check_forged(
        |members| members[CHECKPOINT].0 = "../checkpoint".to_owned(),
        "found \"../checkpoint\"",
    );
    check_forged(
        |members| members[CHECKPOINT].0 = "/checkpoint".to_owned(),
        "found \"/checkpoint\"",
    );
    check_forged(
        |members| members[CHECKPOINT].0 = "./checkpoint".to_owned(),
        "checkpoint",
    );
    check_forged(
        |members| members[RECEIPTS].0 = "receipts/000001.jsonl".to_owned(),
        "found \"receipts/000001.jsonl\"",
    );
    check_forged(
        |members| drop(members.remove(POLICIES)),
        "the receipt at place 1 names a policy",
    );
    check_forged(
        |members| members[POLICIES].1.push(b' '),
        "its bytes must have the SHA-256 of its name",
    );
    let other = format!("policies/{}.json", sha256_hex("not named"));
    check_forged(
        |members| members.insert(MANIFEST, (other, b"not named".to_vec())),
        "expected member \"manifest.json\"",
    );
}

#[test]
fn forged_members_are_found() {
    let receipts = "receipts/000000.jsonl";
    check_forged(
        |members| replace(members, receipts, "\"one\"", "\"two\""),
        "signature was not made by key",
    );
    check_forged(|members| replace(members, receipts, "\n", ""), "not a receipt");
    check_forged(
        |members| replace(members, receipts, "\n", "\n\n"),
        "place 1 is not good",
    );
    check_forged(
        |members| replace(members, receipts, "\n", "\r\n"),
        "not the canonical form",
    );
    check_forged(
        |members| {
            members[RECEIPTS].1.pop();
        },
        "a line feed at its end",
    );
    check_forged(|members| members[RECEIPTS].1[0] = 0xff, "expected UTF-8");
    check_forged(|members| members[RECEIPTS].1.clear(), "found 0");
    check_forged(
        |members| {
            let cut = members[RECEIPTS]
                .1
                .iter()
                .rposition(|&byte| byte == b'}')
                .unwrap();
            let cut = members[RECEIPTS].1[..cut]
                .iter()
                .rposition(|&byte| byte == b'\n')
                .unwrap();
            members[RECEIPTS].1.truncate(cut + 1);
        },
        "is of 5 receipts, expected the number of receipts, 4",
    );
    let manifest = "manifest.json";
    check_forged(
        |members| replace(members, manifest, "\"receipts\":5", "\"receipts\":6"),
        "`manifest.json`: at byte",
    );
    check_forged(
        |members| replace(members, manifest, "a-1", "a-2"),
        "expected \"1\\\"",
    );
    check_forged(
        |members| replace(members, manifest, "\"format_version\":2", "\"format_version\":1"),
        "found 1",
    );
    check_forged(
        |members| replace(members, manifest, "{", "{ "),
        "`manifest.json`: at byte 1",
    );
    check_forged(
        |members| replace(members, manifest, "{", "{\"a\":1,"),
        "unknown field `a`",
    );
    check_forged(|members| members[MANIFEST].1.clear(), "not a manifest");
    check_forged(
        |members| replace(members, "VERIFY.md", "sha256sum -c", "echo"),
        "`SHA256SUMS`: at byte",
    );
    let mut other_words = members(&archive(&drafts(5)).0);
    replace(&mut other_words, "VERIFY.md", "sha256sum -c", "echo");
    check_refused(&build(&other_words), "`VERIFY.md`: at byte");
    let mut other_page = members(&archive(&drafts(5)).0);
    replace(&mut other_page, "report.html", "VERIFIED", "verified");
    check_refused(&build(&other_page), "`report.html`: at byte");
    check_forged(
        |members| replace(members, "auditor.pub", "PUBLIC", "PRIVATE"),
        "not a public key",
    );
    let other = Signer::generate([1; 32]).public_key();
    check_forged(
        |members| members[AUDITOR_PUB].1 = other.to_pem().unwrap().into_bytes(),
        "trusted are: ",
    );
    // Honest members, sums left as they were.
    let mut members = members(&archive(&drafts(5)).0);
    replace(&mut members, "SHA256SUMS", "a", "b");
    check_refused(&build(&members), "`SHA256SUMS`: at byte");
}

#[test]
fn chunks_of_other_sizes_are_found() {
    check_forged(
        |members| {
            let cut = members[RECEIPTS]
                .1
                .iter()
                .position(|&byte| byte == b'\n')
                .unwrap();
            let rest = members[RECEIPTS].1.split_off(cut + 1);
            members.insert(RECEIPTS + 1, ("receipts/000001.jsonl".to_owned(), rest));
        },
        "`receipts/000000.jsonl`: expected 1000 receipts (1 to 1000 in the last one), found 1",
    );
    let mut members = members(&archive(&drafts(usize::try_from(CHUNK_LINES).unwrap() + 1)).0);
    let rest = members.remove(RECEIPTS + 1).1;
    members[RECEIPTS].1.extend(rest);
    check_refused(&build(&members), "found 1001");
}

#[test]
fn headers_are_prescribed_to_the_byte() {
    let forge = |change: fn(&mut tar::Header)| {
        let mut tar = unpack(&archive(&drafts(3)).0);
        let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
        change(&mut header);
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        pack(&tar)
    };
    check_refused(
        &forge(|header| header.set_entry_type(tar::EntryType::Symlink)),
        "of tar type '2'",
    );
    check_refused(
        &forge(|header| header.set_entry_type(tar::EntryType::Link)),
        "of tar type '1'",
    );
    check_refused(
        &forge(|header| header.set_entry_type(tar::EntryType::Directory)),
        "of tar type '5'",
    );
    check_refused(
        &forge(|header| header.set_entry_type(tar::EntryType::XHeader)),
        "of tar type 'x'",
    );
    check_refused(
        &forge(|header| header.set_entry_type(tar::EntryType::GNUSparse)),
        "of tar type 'S'",
    );
    check_refused(
        &forge(|header| header.set_mtime(1)),
        "the header of \"checkpoint\"",
    );
    check_refused(&forge(|header| header.set_uid(1)), "the header of \"checkpoint\"");
    check_refused(
        &forge(|header| header.set_mode(0o755)),
        "the header of \"checkpoint\"",
    );
    check_refused(
        &forge(|header| header.set_size(u64::MAX)),
        "bytes unpacked above the limit",
    );
    check_refused(
        &forge(|header| header.set_size(1 << 30)),
        "bytes above the limit of 16777216",
    );
}

#[test]
fn limits_hold_against_bombs() {
    let (bytes, ..) = archive(&drafts(5));
    let defaults = Limits::default();
    let check = |limits: Limits, expected: &str| check_refused_with(&bytes, &keys(), limits, expected);
    check(
        Limits {
            archive_bytes: bytes.len() as u64 - 1,
            ..defaults
        },
        "the archive`: bytes above the limit",
    );
    check(
        Limits {
            archive_bytes: 100,
            ..defaults
        },
        "the archive`: bytes above the limit of 100",
    );
    check(
        Limits {
            unpacked_bytes: 6_000,
            ..defaults
        },
        "bytes unpacked above the limit of 6000",
    );
    check(
        Limits {
            document_bytes: 112,
            ..defaults
        },
        "`checkpoint`: bytes above the limit of 112",
    );
    check(
        Limits {
            line_bytes: 100,
            ..defaults
        },
        "`receipts/000000.jsonl`: bytes in a line above the limit of 100",
    );
    check(
        Limits {
            members: 9,
            ..defaults
        },
        "`report.html`: number of members above the limit of 9",
    );
    let exact = Limits {
        archive_bytes: bytes.len() as u64,
        members: 10,
        ..defaults
    };
    verify(&*bytes, &keys(), exact).unwrap();

    // 64 MiB that look like one receipt, in 64 KiB.
    check_forged(
        |members| members[RECEIPTS].1 = vec![b' '; 64 << 20],
        "bytes in a line above the limit of 65536",
    );
    check_forged(
        |members| members[MANIFEST].1 = vec![b' '; 64 << 20],
        "bytes above the limit of 16777216",
    );
}

#[test]
fn another_trusted_key_does_not_help() {
    let other = Signer::generate([1; 32]);
    let (bytes, ..) = archive(&drafts(3));
    let stranger = KeyRing::from(other.public_key());
    check_refused_with(&bytes, &stranger, Limits::default(), "`auditor.pub` is key");
    check_refused_with(
        &bytes,
        &KeyRing::default(),
        Limits::default(),
        "`auditor.pub` is key",
    );
}

#[test]
fn checkpoints_that_the_receipts_do_not_bear_out_are_found() {
    let good = lines(&drafts(5));
    // An older checkpoint, a shorter one, another tree's, another ledger's, another key's.
    let forged = |parts: &Parts| {
        let members = members(&Parts::of(good.clone(), &signer()).write().unwrap().0);
        let mut members = members;
        members[CHECKPOINT].1 = parts.checkpoint.clone().into_bytes();
        let earlier = parts.checkpoints.iter().map(|(size, checkpoint)| {
            let line = serde_json::json!({ "checkpoint": checkpoint, "size": size });
            receipts::jcs(&line).unwrap() + "\n"
        });
        members[EARLIER].1 = earlier.collect::<String>().into_bytes();
        sum_again(&mut members);
        build(&members)
    };
    let other = [good[1].clone(), good[0].clone()];
    type Change<'a> = Box<dyn Fn(&mut Parts) + 'a>;
    let cases: Vec<(Change<'_>, &str)> = vec![
        (
            Box::new(|parts| parts.checkpoint = note(&good, 4, &signer())),
            "is of 4 receipts, expected the number of receipts, 5",
        ),
        (
            Box::new(|parts| {
                let turned: Vec<_> = good.iter().rev().cloned().collect();
                parts.checkpoint = note(&turned, 5, &signer());
            }),
            "the checkpoint of 5 receipts has the root",
        ),
        (
            Box::new(|parts| parts.checkpoints = vec![(2, note(&other, 2, &signer()))]),
            "the checkpoint of 2 receipts has the root",
        ),
        (
            Box::new(|parts| parts.checkpoints.reverse()),
            "line 2 of `checkpoints.jsonl` is of 1 receipts",
        ),
        (
            Box::new(|parts| parts.checkpoints.push((3, note(&good, 3, &signer())))),
            "line 3 of `checkpoints.jsonl` is of 3 receipts",
        ),
        (
            Box::new(|parts| parts.checkpoints[0].0 = 2),
            "line 1 of `checkpoints.jsonl` is of 1 receipts",
        ),
        (
            Box::new(|parts| {
                let note = parts.checkpoint.replacen("/a-1", "/a-2", 2);
                parts.checkpoint = note;
            }),
            "has no signature by governor.example/receipts/a-2",
        ),
        (
            Box::new(|parts| parts.checkpoint = note(&good, 5, &Signer::generate([1; 32]))),
            "has no signature by",
        ),
        (
            Box::new(|parts| parts.checkpoints[0].1.push(' ')),
            "line 1 of `checkpoints.jsonl` is not good",
        ),
    ];
    for (change, expected) in cases {
        let mut parts = Parts::of(good.clone(), &signer());
        change(&mut parts);
        check_refused(&forged(&parts), expected);
        let error = parts.write().expect_err("the writer looks too");
        assert!(
            story(&error).contains(expected),
            "{:?} does not say {expected:?}",
            story(&error)
        );
    }
    // Well signed, of somebody else's ledger.
    let mut parts = Parts::of(good.clone(), &signer());
    let (checkpoint, _) = Checkpoint::open(&parts.checkpoint, &keys()).unwrap();
    let of = |origin: &str| {
        let origin = origin.to_owned();
        Checkpoint {
            origin,
            ..checkpoint.clone()
        }
        .sign(&signer())
        .unwrap()
    };
    parts.checkpoints.clear();
    for origin in ["governor.example/receipts/a-2", "governor.example/other/a-1"] {
        parts.checkpoint = of(origin);
        let mut members = members(&forged(&parts));
        replace(
            &mut members,
            "manifest.json",
            "governor.example/receipts/a-1",
            origin,
        );
        sum_again(&mut members);
        check_refused(&build(&members), "expected the ledger of \"a-1\"");
    }
    check_forged(
        |members| members[EARLIER].1.extend(b"{}"),
        "line 3 of `checkpoints.jsonl` is not {",
    );
    check_forged(
        |members| members[EARLIER].1.insert(0, b' '),
        "line 1 of `checkpoints.jsonl` is not {",
    );
    check_forged(
        |members| members[KEYS].1.extend(b"{}\n"),
        "line 1 of the key trail is not good",
    );
    check_forged(|members| members[KEYS].1.push(0xff), "keys.jsonl: expected UTF-8");
}

#[test]
fn one_trusted_key_is_enough_through_rotations() {
    let next = Signer::generate([1; 32]);
    let rotated = Draft {
        account_id: "_system".to_owned(),
        payload: receipts::trail::rotation(&signer().public_key(), &next),
        ..draft(23)
    };
    let now = time("2027-01-20T00:00:00Z");
    let trail = append(&Head::empty(), &[rotated], now, &signer()).unwrap();
    let (sealed, head) = ledger(&drafts(3));
    let behind = append(&head, &drafts(4)[3..], now, &next).unwrap();
    let lines: Vec<String> = sealed
        .into_iter()
        .chain(behind.sealed)
        .map(|one| one.line)
        .collect();
    let mut parts = Parts::of(lines, &next);
    parts.checkpoints[0].1 = note(&parts.lines, 1, &signer());
    parts.key_trail = vec![trail.sealed[0].line.clone()];
    let (bytes, summary) = parts.write().unwrap();
    let mut both = vec![signer().key_id().to_owned(), next.key_id().to_owned()];
    both.sort();
    for trusted in [signer().public_key(), next.public_key()] {
        let verified = verify(&*bytes, &KeyRing::from(trusted), Limits::default())
            .unwrap_or_else(|error| panic!("{}", story(&error)));
        assert_eq!(verified.key_id, next.key_id());
        assert_eq!(verified.key_ids, both);
        let line = closing(&summary, &behind.head, |_| {});
        verify_closing(&line, None, &verified).unwrap();
    }
    check_refused_with(
        &bytes,
        &KeyRing::from(Signer::generate([2; 32]).public_key()),
        Limits::default(),
        "`auditor.pub` is key",
    );
    // Without the trail nothing leads from one key to the other.
    parts.key_trail.clear();
    let error = parts.write().expect_err("no trail");
    assert!(
        story(&error).contains("has no signature by") || story(&error).contains("is signed by key"),
        "{}",
        story(&error)
    );
}

#[test]
fn threads_find_the_same() {
    let full = usize::try_from(CHUNK_LINES).unwrap();
    let threads = |threads| Limits {
        threads,
        ..Limits::default()
    };
    let (bytes, ..) = archive(&drafts(2 * full + 700));
    let alone = check_whole(&bytes);
    let good = members(&bytes);
    for many in [1, 2, 7] {
        let verified =
            verify(&*bytes, &keys(), threads(many)).unwrap_or_else(|error| panic!("{}", story(&error)));
        assert_eq!(verified, alone);
        // The first of two bad receipts is named, also where the tar breaks off behind it.
        for (first, second) in [(0, 1), (255, 256), (256, 999), (998, 1_000), (1_001, 2_699)] {
            let mut members = good.clone();
            for place in [first, second] {
                let chunk = &mut members[RECEIPTS + place / full].1;
                let mut lines: Vec<String> = String::from_utf8(std::mem::take(chunk))
                    .unwrap()
                    .lines()
                    .map(str::to_owned)
                    .collect();
                lines[place % full] =
                    lines[place % full].replacen("\"duration_ms\":12", "\"duration_ms\":13", 1);
                *chunk = (lines.join("\n") + "\n").into_bytes();
            }
            let expected =
                format!("the receipt at place {first} is not good: the receipt's signature does not hold");
            check_refused_with(&build(&members), &keys(), threads(many), &expected);
            let cut = unpack(&build(&members));
            check_refused_with(
                &pack(&cut[..cut.len() - 2_000]),
                &keys(),
                threads(many),
                &expected,
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn archives_of_any_receipts_verify(mut drafts in any_drafts(0..8)) {
        for (place, draft) in drafts.iter_mut().enumerate() {
            draft.policy_hash = (place % 2 == 0).then(|| sha256_hex(POLICY));
        }
        let (bytes, summary, head) = archive(&drafts);
        prop_assert_eq!(&archive(&drafts).0, &bytes);
        let verified = check_whole(&bytes);
        prop_assert_eq!(verified.receipts, head.size);
        prop_assert_eq!(verified.last_hash, head.last_hash);
        prop_assert_eq!(verified.sha256, summary.sha256);
    }

    #[test]
    fn any_changed_byte_of_the_tar_is_found(at in any::<prop::sample::Index>(), mask in 1..=255_u8) {
        let mut tar = unpack(&archive(&drafts(3)).0);
        let at = at.index(tar.len());
        tar[at] ^= mask;
        prop_assert!(verify(&*pack(&tar), &keys(), Limits::default()).is_err());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        prop_assert!(verify(&*bytes, &keys(), Limits::default()).is_err());
        prop_assert!(verify(&*pack(&bytes), &keys(), Limits::default()).is_err());
    }
}
