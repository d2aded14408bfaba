//! Archives: what is written verifies, is the same every time, and no altered one passes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use receipts::archive::{CHUNK_LINES, ClosingError, WriteError, Writer, verify, verify_closing, write};
use receipts::{
    ArchiveInput, ArchiveSummary, Draft, Head, KeyRing, Limits, Payload, Signer, Verified, append, sha256_hex,
};

use crate::drafts::{any_drafts, draft, ledger, signer, time};
use crate::ledger::story;

const POLICY: &[u8] = br#"{"version":"1.0.0"}"#;

fn keys() -> KeyRing {
    KeyRing::from(signer().public_key())
}

fn policies() -> BTreeMap<String, Vec<u8>> {
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

/// The archive of these drafts, and where their ledger ends.
pub fn archive(drafts: &[Draft]) -> (Vec<u8>, ArchiveSummary, Head) {
    let (sealed, head) = ledger(drafts);
    let mut bytes = Vec::new();
    let input = ArchiveInput {
        account_id: "a-1",
        created_at: time("2027-02-03T04:05:06.789Z"),
        public_key: &signer().public_key(),
        lines: sealed
            .into_iter()
            .map(|sealed| Ok::<_, std::io::Error>(sealed.line)),
        policies: &policies(),
    };
    let summary = write(&mut bytes, input).unwrap();
    (bytes, summary, head)
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

fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut tar).unwrap();
    tar
}

fn pack(tar: &[u8]) -> Vec<u8> {
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::default());
    gzip.write_all(tar).unwrap();
    gzip.finish().unwrap()
}

type Members = Vec<(String, Vec<u8>)>;

fn members(bytes: &[u8]) -> Members {
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

fn header(name: &str, size: usize) -> tar::Header {
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

fn build(members: &Members) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        tar.append(&header(name, bytes.len()), &**bytes).unwrap();
    }
    pack(&tar.into_inner().unwrap())
}

/// What a forger does last: sums that fit.
fn sum_again(members: &mut Members) {
    let end = place(members, "SHA256SUMS");
    let sums: String = members[..end]
        .iter()
        .map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes)))
        .collect();
    members[end].1 = sums.into_bytes();
}

fn place(members: &Members, name: &str) -> usize {
    members.iter().position(|(member, _)| member == name).unwrap()
}

fn replace(members: &mut Members, name: &str, from: &str, to: &str) {
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
            "auditor.pub",
            "receipts/000000.jsonl",
            &policy,
            "manifest.json",
            "SHA256SUMS",
            "VERIFY.md"
        ]
    );
    let manifest: serde_json::Value = serde_json::from_slice(&members[3].1).unwrap();
    let (_, _, head) = archive(&drafts(5));
    let expected = serde_json::json!({
        "format_version": 1, "account_id": "a-1", "created_at": "2027-02-03T04:05:06.789Z", "receipts": 5,
        "first_seq": 0, "last_seq": 4, "last_hash": head.last_hash, "key_ids": [signer().key_id()],
        "chunk_lines": CHUNK_LINES,
        "chunks": [{"name": "receipts/000000.jsonl", "lines": 5, "sha256": sha256_hex(&members[1].1)}],
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
    let key = signer().public_key();
    let mut writer = Writer::new(Vec::new(), "a-1", &key, time("2027-02-03T04:05:06.789Z")).unwrap();
    for sealed in ledger(&drafts(7)).0 {
        writer.push(&sealed.line).unwrap();
    }
    assert_eq!(writer.policies_named().collect::<Vec<_>>(), [sha256_hex(POLICY)]);
    assert_eq!(writer.finish(&policies()).unwrap(), (summary, expected));
}

#[test]
fn what_would_not_verify_is_not_written() {
    let lines: Vec<String> = ledger(&drafts(5))
        .0
        .into_iter()
        .map(|sealed| sealed.line)
        .collect();
    let key = signer().public_key();
    let begin = |account: &str| Writer::new(Vec::new(), account, &key, time("2027-02-03T04:05:06Z")).unwrap();

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
        account_id: "a-1",
        created_at: time("2027-02-03T04:05:06Z"),
        public_key: &key,
        lines,
        policies: &policies(),
    };
    assert!(matches!(
        write(Vec::new(), input),
        Err(WriteError::Lines { after: 2, .. })
    ));
}

fn closing(summary: &ArchiveSummary, head: &Head, change: impl FnOnce(&mut Draft)) -> String {
    let mut draft = Draft {
        payload: Payload::DecommissionComplete {
            actions_completed: 1,
            actions_failed: 0,
            receipts_archived: summary.receipts,
            archive_path: "a-1/2027-02-03.tar.gz".to_owned(),
            archive_size_bytes: summary.size_bytes,
            archive_sha256: summary.sha256.clone(),
            archive_version: Some("v1".to_owned()),
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
    let receipt = verify_closing(&line, &verified, &keys()).unwrap();
    assert_eq!(receipt.seq, 5);
    assert_eq!(
        verify_closing(&format!("{line}\n"), &verified, &keys()).unwrap(),
        receipt
    );

    let check = |line: &str, verified: &Verified, expected: &str| {
        let error =
            verify_closing(line, verified, &keys()).expect_err("a closing receipt of another archive");
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
            let error = verify_closing(&line, &verified, &keys()).expect_err("another file");
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
    assert_eq!(padding[1023], 0, "auditor.pub is shorter than a block");
    padding[1023] = 1;
    check_refused(
        &pack(&padding),
        "auditor.pub: expected zeros up to the next block",
    );
    check_refused(b"", "the gzip header");
    check_refused(b"PK\x03\x04 is not gzip", "expected the gzip header");
}

#[test]
fn members_out_of_place_are_found() {
    let policy = format!("policies/{}.json", sha256_hex(POLICY));
    for name in [
        "auditor.pub",
        "receipts/000000.jsonl",
        &policy,
        "manifest.json",
        "SHA256SUMS",
        "VERIFY.md",
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
    check_forged(
        |members| members.push(("extra".to_owned(), vec![])),
        "two empty blocks",
    );
    check_forged(
        |members| members[0].0 = "../auditor.pub".to_owned(),
        "found \"../auditor.pub\"",
    );
    check_forged(
        |members| members[0].0 = "/auditor.pub".to_owned(),
        "found \"/auditor.pub\"",
    );
    check_forged(|members| members[0].0 = "./auditor.pub".to_owned(), "auditor.pub");
    check_forged(
        |members| members[1].0 = "receipts/000001.jsonl".to_owned(),
        "found \"receipts/000001.jsonl\"",
    );
    check_forged(
        |members| drop(members.remove(2)),
        "the receipt at place 1 names a policy",
    );
    check_forged(
        |members| members[2].1.push(b' '),
        "its bytes must have the SHA-256 of its name",
    );
    let other = format!("policies/{}.json", sha256_hex("not named"));
    check_forged(
        |members| members.insert(3, (other, b"not named".to_vec())),
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
            members[1].1.pop();
        },
        "a line feed at its end",
    );
    check_forged(|members| members[1].1[0] = 0xff, "expected UTF-8");
    check_forged(|members| members[1].1.clear(), "found 0");
    check_forged(
        |members| {
            let cut = members[1].1.iter().rposition(|&byte| byte == b'}').unwrap();
            let cut = members[1].1[..cut]
                .iter()
                .rposition(|&byte| byte == b'\n')
                .unwrap();
            members[1].1.truncate(cut + 1);
        },
        "`manifest.json`: at byte",
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
        |members| replace(members, manifest, "\"format_version\":1", "\"format_version\":2"),
        "found 2",
    );
    check_forged(
        |members| replace(members, manifest, "{", "{ "),
        "`manifest.json`: at byte 1",
    );
    check_forged(
        |members| replace(members, manifest, "{", "{\"a\":1,"),
        "unknown field `a`",
    );
    check_forged(|members| members[3].1.clear(), "not a manifest");
    check_forged(
        |members| replace(members, "VERIFY.md", "sha256sum -c", "echo"),
        "`VERIFY.md`: at byte",
    );
    check_forged(
        |members| replace(members, "auditor.pub", "PUBLIC", "PRIVATE"),
        "not a public key",
    );
    let other = Signer::generate([1; 32]).public_key();
    check_forged(
        |members| members[0].1 = other.to_pem().unwrap().into_bytes(),
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
            let cut = members[1].1.iter().position(|&byte| byte == b'\n').unwrap();
            let rest = members[1].1.split_off(cut + 1);
            members.insert(2, ("receipts/000001.jsonl".to_owned(), rest));
        },
        "`receipts/000000.jsonl`: expected 1000 receipts (1 to 1000 in the last one), found 1",
    );
    let mut members = members(&archive(&drafts(usize::try_from(CHUNK_LINES).unwrap() + 1)).0);
    let rest = members.remove(2).1;
    members[1].1.extend(rest);
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
        "the header of \"auditor.pub\"",
    );
    check_refused(
        &forge(|header| header.set_uid(1)),
        "the header of \"auditor.pub\"",
    );
    check_refused(
        &forge(|header| header.set_mode(0o755)),
        "the header of \"auditor.pub\"",
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
            unpacked_bytes: 4_000,
            ..defaults
        },
        "bytes unpacked above the limit of 4000",
    );
    check(
        Limits {
            document_bytes: 112,
            ..defaults
        },
        "`auditor.pub`: bytes above the limit of 112",
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
            members: 5,
            ..defaults
        },
        "`VERIFY.md`: number of members above the limit of 5",
    );
    let exact = Limits {
        archive_bytes: bytes.len() as u64,
        members: 6,
        ..defaults
    };
    verify(&*bytes, &keys(), exact).unwrap();

    // 64 MiB that look like one receipt, in 64 KiB.
    check_forged(
        |members| members[1].1 = vec![b' '; 64 << 20],
        "bytes in a line above the limit of 65536",
    );
    check_forged(
        |members| members[3].1 = vec![b' '; 64 << 20],
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
