//! Portable proofs: what is written is what the specification says, nothing else is read, and only what holds verifies.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use receipts::checkpoint::NOTE_BYTES;
use receipts::merkle::{Hash, consistency_proof, inclusion_proof, leaf_hash};
use receipts::proof::{CONSISTENCY_HASHES, EXTRA_BYTES, INCLUSION_HASHES, JSON_BYTES, PROOF_BYTES};
use receipts::{
    Checkpoint, CompactRange, ConsistencyProof, InclusionProof, PortableProofError, ProofJson, PublicKey,
    Signer,
};

use crate::checkpoint::ORIGIN;
use crate::drafts::signer;
use crate::ledger::story;

const SIZE: usize = 21;

fn lines() -> Vec<String> {
    (0..SIZE).map(|place| format!("line {place}")).collect()
}

fn leaves() -> Vec<Hash> {
    lines().iter().map(leaf_hash).collect()
}

fn checkpoint(size: usize) -> Checkpoint {
    Checkpoint {
        origin: ORIGIN.to_owned(),
        size: size as u64,
        root: CompactRange::of(&leaves()[..size]).root(),
    }
}

fn key() -> PublicKey {
    signer().public_key()
}

fn note(size: usize) -> String {
    checkpoint(size).sign(&signer()).unwrap()
}

fn proof(index: usize) -> InclusionProof {
    let hashes = inclusion_proof(&leaves(), index as u64).unwrap();
    InclusionProof::new(index as u64, hashes, note(SIZE)).unwrap()
}

fn consistency(old: usize) -> ConsistencyProof {
    ConsistencyProof {
        old_size: old as u64,
        new_size: SIZE as u64,
        old_root: checkpoint(old).root,
        new_root: checkpoint(SIZE).root,
        hashes: consistency_proof(&leaves(), old as u64).unwrap(),
    }
}

#[track_caller]
fn check_refused<T: std::fmt::Debug>(result: Result<T, PortableProofError>, expected: &str) {
    let error = result.expect_err("a proof that is not one");
    assert!(story(&error).contains(expected), "{}", story(&error));
}

/// Line 0 of two, made from the specification's words with `openssl` and a few lines of Python, not with this crate.
const KNOWN: &str = "\
c2sp.org/tlog-proof@v1
index 0
+XkNsR2y7VQbU4fH3oHlwpF/E0FdMTGhZkm/FpmESq0=

governor.example/receipts/a-1
2
8o6oHYw/OLGccQaMdpkqP9FMPsR/ZNMrz3GGX6VFl38=

— governor.example/receipts/a-1 \
viiySC8uzL2vXt5P4bCIJ6hEqt5roOzF/uRVY1KbdHXIKQSyectHiYm+rRmzKtLy4Sgvgpqmd2eTbW3dAtiRvqeCWAc=
";

#[test]
fn a_proof_is_written_to_the_byte() {
    let proof = InclusionProof::new(0, vec![leaf_hash("line 1")], note(2)).unwrap();
    assert_eq!(proof.to_text(), KNOWN);
    let read = InclusionProof::parse(KNOWN).unwrap();
    assert_eq!(read, proof);
    assert_eq!(read.verify("line 0", ORIGIN, &key()).unwrap(), checkpoint(2));
    let extra = KNOWN.replacen("index", "extra aGVsbG8=\nindex", 1);
    let read = InclusionProof::parse(&extra).unwrap();
    assert_eq!(read, proof.with_extra(b"hello".to_vec()).unwrap());
    assert_eq!((read.extra(), read.to_text()), (Some(&b"hello"[..]), extra));
    read.verify("line 0", ORIGIN, &key()).unwrap();
}

#[test]
fn every_line_is_proved_and_no_other() {
    for (index, line) in lines().iter().enumerate() {
        let text = proof(index).to_text();
        let read = InclusionProof::parse(&text).unwrap();
        assert_eq!((read.index(), read.checkpoint()), (index as u64, &*note(SIZE)));
        assert_eq!(read.verify(line, ORIGIN, &key()).unwrap(), checkpoint(SIZE));
        let json = read.to_json_form(ORIGIN, &key()).unwrap();
        json.verify(line, &checkpoint(SIZE)).unwrap();
        for other in lines().iter().filter(|other| *other != line) {
            check_refused(read.verify(other, ORIGIN, &key()), "the proof leads to");
            check_refused(json.verify(other, &checkpoint(SIZE)), "the proof leads to");
        }
    }
    // The line feed is not part of the line.
    check_refused(proof(3).verify("line 3\n", ORIGIN, &key()), "the proof leads to");
}

#[test]
fn a_ledger_of_one_line_needs_no_hash() {
    let proof = InclusionProof::new(0, Vec::new(), note(1)).unwrap();
    let text = format!("c2sp.org/tlog-proof@v1\nindex 0\n\n{}", note(1));
    assert_eq!(proof.to_text(), text);
    let read = InclusionProof::parse(text).unwrap();
    read.verify("line 0", ORIGIN, &key()).unwrap();
}

#[test]
fn malformed_texts_are_refused() {
    let check = |text: &str, expected: &str| check_refused(InclusionProof::parse(text), expected);
    let good = proof(3).to_text();
    let swap = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1)
    };
    let hash = good.lines().nth(2).unwrap();
    check("", "begins with \"\"");
    check("\n\n", "begins with \"\"");
    check(&note(SIZE), "begins with \"governor.example");
    check(&format!(" {good}"), "begins with \" c2sp");
    check(&format!("\u{feff}{good}"), "expected \"c2sp.org/tlog-proof@v1\"");
    check(&swap("@v1", "@v2"), "begins with \"c2sp.org/tlog-proof@v2\"");
    check(&swap("@v1\n", "@v1 \n"), "begins with");
    check(&good.replace('\n', "\r\n"), "begins with");
    check("c2sp.org/tlog-proof@v1", "line \"\" is not `index");
    check("c2sp.org/tlog-proof@v1\n", "line \"\" is not `index");
    check(&swap("index 3\n", ""), "is not `index <number>`");
    check(&swap("index 3", "index"), "line \"index\" is not");
    for index in [
        "",
        "03",
        "00",
        "+3",
        "-3",
        " 3",
        "3 ",
        "0x3",
        "٣",
        "3.0",
        "18446744073709551616",
    ] {
        check(
            &swap("index 3", &format!("index {index}")),
            "is not `index <number>`",
        );
    }
    check(&swap("index 3", "Index 3"), "is not `index");
    check(
        &swap("index 3", "index 3\nindex 3"),
        "hash 0 of the proof, \"index 3\",",
    );
    check(
        &swap("index 3", "index 3\nextra aGk="),
        "hash 0 of the proof, \"extra aGk=\",",
    );
    check(
        &swap("index 3", "extra aGk=\nextra aGk=\nindex 3"),
        "is not `index",
    );
    for extra in [
        "extra aGk",
        "extra aGl=",
        "extra  aGk=",
        "extra aGk= ",
        "extra aG-_",
    ] {
        check(
            &swap("index 3", &format!("{extra}\nindex 3")),
            "is not `extra <base64>`",
        );
    }
    check(&swap("index 3", "extra \nindex 3"), "has 0 bytes of extra data");
    check(&swap("index 3", "extra\nindex 3"), "line \"extra\" is not `index");
    check(
        &swap("index 3", "comment\nindex 3"),
        "line \"comment\" is not `index",
    );
    for wrong in [
        "AAAA".to_owned(),
        hash.trim_end_matches('=').to_owned(),
        format!("{hash} "),
        format!(" {hash}"),
        format!("{hash}AAAA"),
        hash.replace('=', "=="),
        STANDARD.encode([0; 33]),
        "a blank".to_owned(),
    ] {
        check(&swap(hash, &wrong), "hash 0 of the proof");
    }
    check(&swap("\n\n", "\n"), "hash 5 of the proof, \"governor.example");
    check(good.split_once("\n\n").unwrap().0, "no checkpoint");
    check(
        &format!("{}\n\n", good.split_once("\n\n").unwrap().0),
        "no checkpoint",
    );
    let at = good.find(hash).unwrap();
    let long = |count: usize| {
        let hashes = format!("{hash}\n").repeat(count);
        format!("{}{hashes}\n{}", &good[..at], note(SIZE))
    };
    assert_eq!(
        InclusionProof::parse(long(64)).unwrap().hashes().len(),
        INCLUSION_HASHES
    );
    check(&long(65), "more than 64 hashes");
    check(&long(20_000), "more than 64 hashes");
}

#[test]
fn sizes_are_bounded() {
    let good = proof(3).to_text();
    let (head, _) = good.split_once("\n\n").unwrap();
    let long = |length: usize| format!("{head}\n\n{}", "n".repeat(length));
    InclusionProof::parse(long(NOTE_BYTES)).unwrap();
    check_refused(InclusionProof::parse(long(NOTE_BYTES + 1)), "has 1048577 bytes");
    check_refused(
        InclusionProof::parse(long(PROOF_BYTES)),
        "the proof has 1179905 bytes, the most are 1179648",
    );
    check_refused(
        InclusionProof::new(0, Vec::new(), "n".repeat(NOTE_BYTES + 1)),
        "has 1048577 bytes",
    );
    check_refused(InclusionProof::new(0, Vec::new(), ""), "no checkpoint");
    check_refused(
        InclusionProof::new(0, vec![[0; 32]; 65], "n"),
        "more than 64 hashes",
    );
    check_refused(proof(3).with_extra(Vec::new()), "has 0 bytes of extra data");
    check_refused(
        proof(3).with_extra(vec![0; EXTRA_BYTES + 1]),
        "has 65537 bytes of extra data",
    );
    // What may be made may be read.
    let full =
        InclusionProof::new(u64::MAX, vec![[0; 32]; INCLUSION_HASHES], "n".repeat(NOTE_BYTES)).unwrap();
    let full = full.with_extra(vec![0; EXTRA_BYTES]).unwrap();
    assert_eq!(InclusionProof::parse(full.to_text()).unwrap(), full);
    // And no error repeats what is too long.
    let error = InclusionProof::parse("é".repeat(PROOF_BYTES / 2)).unwrap_err();
    assert!(error.to_string().len() < 300);
    check_refused(InclusionProof::parse([b'c', 0xff]), "is not UTF-8");
}

#[test]
fn only_what_holds_verifies() {
    let stranger = Signer::generate([1; 32]);
    check_refused(
        proof(3).verify("line 3", ORIGIN, &stranger.public_key()),
        "has no signature by governor.example/receipts/a-1",
    );
    check_refused(
        proof(3).verify("line 3", "governor.example/receipts/a-2", &key()),
        "has no signature by governor.example/receipts/a-2",
    );
    let with = |index, hashes, note: String| InclusionProof::new(index, hashes, note).unwrap();
    let check = |proof: &InclusionProof, expected: &str| {
        check_refused(proof.verify("line 3", ORIGIN, &key()), expected);
        // As text, too.
        let read = InclusionProof::parse(proof.to_text()).unwrap();
        check_refused(read.verify("line 3", ORIGIN, &key()), expected);
    };
    let good = proof(3).hashes().to_vec();
    check(
        &with(3, good.clone(), note(SIZE).replacen("\n21\n", "\n22\n", 1)),
        "was not made by key",
    );
    check(
        &with(3, good.clone(), checkpoint(SIZE).text()),
        "does not end in a blank line",
    );
    check(
        &with(3, good.clone(), note(3)),
        "leaf 3 is not in a tree of 3 leaves",
    );
    check(&with(3, good.clone(), note(8)), "must have 3 hashes, found 5");
    check(&with(3, good.clone(), note(SIZE - 1)), "the proof leads to");
    check(&with(2, good.clone(), note(SIZE)), "the proof leads to");
    check(
        &with(u64::MAX, good.clone(), note(SIZE)),
        "is not in a tree of 21 leaves",
    );
    check(
        &with(3, good[1..].to_vec(), note(SIZE)),
        "must have 5 hashes, found 4",
    );
    check(
        &with(3, [&good[..], &good[..1]].concat(), note(SIZE)),
        "must have 5 hashes, found 6",
    );
    let mut swapped = good;
    swapped.swap(0, 1);
    check(&with(3, swapped, note(SIZE)), "the proof leads to");
}

#[test]
fn the_json_form_goes_both_ways() {
    let json = proof(20).to_json_form(ORIGIN, &key()).unwrap();
    let text = serde_json::to_string(&json).unwrap();
    let hashes = json.hashes.iter().map(hex::encode).collect::<Vec<_>>();
    let expected = format!(
        r#"{{"index":20,"size":21,"root":"{}","hashes":["{}"]}}"#,
        hex::encode(checkpoint(SIZE).root),
        hashes.join(r#"",""#)
    );
    assert_eq!(text, expected);
    let read = ProofJson::parse(&text).unwrap();
    assert_eq!(read, json);
    assert_eq!(
        read.with_checkpoint(note(SIZE), ORIGIN, &key()).unwrap(),
        proof(20)
    );
    // Spaces and the order of fields say nothing.
    let pretty = serde_json::to_string_pretty(&serde_json::to_value(&json).unwrap()).unwrap();
    assert_eq!(ProofJson::parse(pretty).unwrap(), json);

    let attach = |note: String| json.clone().with_checkpoint(note, ORIGIN, &key());
    check_refused(
        attach(note(20)),
        "the proof is for size 21, the checkpoint says 20",
    );
    check_refused(attach(checkpoint(SIZE).text()), "does not end in a blank line");
    let other = Checkpoint {
        root: [7; 32],
        ..checkpoint(SIZE)
    };
    let expected = format!("is for root {}, the checkpoint says 0707", hex::encode(json.root));
    check_refused(attach(other.sign(&signer()).unwrap()), &expected);
    check_refused(json.verify("line 20", &other), &expected);
    check_refused(json.verify("line 20", &checkpoint(20)), "is for size 21");
    let unsigned = InclusionProof::new(0, Vec::new(), checkpoint(SIZE).text()).unwrap();
    check_refused(unsigned.to_json_form(ORIGIN, &key()), "checkpoint does not hold");
}

#[test]
fn malformed_json_is_refused() {
    let hash = "ab".repeat(32);
    let inclusion = format!(r#"{{"index":1,"size":3,"root":"{hash}","hashes":["{hash}"]}}"#);
    let consistency = format!(
        r#"{{"old_size":1,"new_size":3,"old_root":"{hash}","new_root":"{hash}","hashes":["{hash}"]}}"#
    );
    ProofJson::parse(&inclusion).unwrap();
    ConsistencyProof::parse(&consistency).unwrap();

    let many = |count| format!("[{}]", vec![format!("\"{hash}\""); count].join(","));
    let one = many(1);
    let check = |from: &str, to: &str, expected: &str| {
        let mut found = 0;
        if inclusion.contains(from) {
            check_refused(ProofJson::parse(inclusion.replacen(from, to, 1)), expected);
            found += 1;
        }
        if consistency.contains(from) {
            check_refused(
                ConsistencyProof::parse(consistency.replacen(from, to, 1)),
                expected,
            );
            found += 1;
        }
        assert!(found > 0, "{from}");
    };
    let upper = hash.to_uppercase();
    for wrong in [
        "",
        "ab",
        &hash[1..],
        &format!("{hash}00"),
        &upper,
        &"é".repeat(32),
        &"g".repeat(64),
    ] {
        check(&hash, wrong, "not 64 lower-case hex digits");
    }
    check("\"hashes\"", "\"hash\"", "unknown field `hash`");
    check("{\"", "{\"more\":1,\"", "unknown field `more`");
    check(
        "\"hashes\":",
        "\"hashes\":[],\"hashes\":",
        "duplicate field `hashes`",
    );
    check(&format!(",\"hashes\":{one}"), "", "missing field `hashes`");
    check(&one, "null", "not the JSON");
    check(&one, "[1]", "not the JSON");
    check("}", "", "not the JSON");
    check("}", "} x", "not the JSON");
    for number in ["-1", "1.0", "1e0", "\"1\"", "18446744073709551616", "01", "null"] {
        check("\"size\":3", &format!("\"size\":{number}"), "not the JSON");
        check("\"index\":1", &format!("\"index\":{number}"), "not the JSON");
        check(
            "\"old_size\":1",
            &format!("\"old_size\":{number}"),
            "not the JSON",
        );
        check(
            "\"new_size\":3",
            &format!("\"new_size\":{number}"),
            "not the JSON",
        );
    }
    check(
        "\"index\":1",
        "\"index\":3",
        "leaf 3 is not in a tree of 3 leaves",
    );
    check("\"size\":3", "\"size\":0", "leaf 1 is not in a tree of 0 leaves");
    check("\"old_size\":1", "\"old_size\":0", "not from 0");
    check("\"old_size\":1", "\"old_size\":4", "not from 4");
    check_refused(
        ProofJson::parse(inclusion.replace(&one, &many(INCLUSION_HASHES + 1))),
        "more than 64 hashes",
    );
    check_refused(
        ConsistencyProof::parse(consistency.replace(&one, &many(CONSISTENCY_HASHES + 1))),
        "more than 65 hashes",
    );
    ProofJson::parse(inclusion.replace(&one, &many(INCLUSION_HASHES))).unwrap();
    ConsistencyProof::parse(consistency.replace(&one, &many(CONSISTENCY_HASHES))).unwrap();

    for other in ["", "null", "1", "\"\"", "{", &format!("[1,3,\"{hash}\",[]]")] {
        check_refused(ProofJson::parse(other), "not the JSON");
        check_refused(ConsistencyProof::parse(other), "not the JSON");
    }
    let long = inclusion.clone() + &" ".repeat(JSON_BYTES);
    check_refused(ProofJson::parse(&long), "the most are 32768");
    check_refused(ConsistencyProof::parse(&long), "the most are 32768");
}

#[test]
fn growth_is_proved_between_two_checkpoints() {
    for old in 1..=SIZE {
        let proof = consistency(old);
        let text = serde_json::to_string(&proof).unwrap();
        let read = ConsistencyProof::parse(&text).unwrap();
        assert_eq!(read, proof);
        read.verify().unwrap();
        read.verify_between(&checkpoint(old), &checkpoint(SIZE)).unwrap();
    }
    let proof = consistency(8);
    let text = serde_json::to_string(&ConsistencyProof {
        hashes: vec![[1; 32]],
        ..proof.clone()
    })
    .unwrap();
    let [old, new] = [8, SIZE].map(|size| hex::encode(checkpoint(size).root));
    assert_eq!(
        text,
        format!(
            r#"{{"old_size":8,"new_size":21,"old_root":"{old}","new_root":"{new}","hashes":["{}"]}}"#,
            "01".repeat(32)
        )
    );
    let check = |proof: &ConsistencyProof, old: &Checkpoint, new: &Checkpoint, expected: &str| {
        check_refused(proof.verify_between(old, new), expected);
    };
    let [old, new] = [8, SIZE].map(checkpoint);
    check(&proof, &checkpoint(7), &new, "old_size 8, the checkpoint says 7");
    check(
        &proof,
        &old,
        &checkpoint(20),
        "new_size 21, the checkpoint says 20",
    );
    let other = |checkpoint: &Checkpoint| Checkpoint {
        root: [7; 32],
        ..checkpoint.clone()
    };
    check(&proof, &other(&old), &new, "is for old_root ");
    check(&proof, &old, &other(&new), "is for new_root ");
    let moved = Checkpoint {
        origin: "elsewhere".to_owned(),
        ..old.clone()
    };
    check(&proof, &moved, &new, "is for origin elsewhere");
    // Two roots that no tree connects.
    let forked = ConsistencyProof {
        old_root: [7; 32],
        ..proof.clone()
    };
    check(&forked, &other(&old), &new, "the proof leads to");
    let shorter = ConsistencyProof {
        hashes: proof.hashes[1..].to_vec(),
        ..proof.clone()
    };
    check(&shorter, &old, &new, "must have");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(
        index in any::<u64>(),
        hashes in vec(any::<Hash>(), 0..=INCLUSION_HASHES),
        checkpoint in "(?s).{1,100}",
        extra in proptest::option::of(vec(any::<u8>(), 1..100)),
    ) {
        let mut proof = InclusionProof::new(index, hashes, checkpoint).unwrap();
        if let Some(extra) = extra {
            proof = proof.with_extra(extra).unwrap();
        }
        prop_assert_eq!(InclusionProof::parse(proof.to_text()).unwrap(), proof);
    }

    #[test]
    fn no_changed_byte_verifies(index in 0..SIZE, at in any::<Index>(), mask in 1..=255_u8) {
        let mut text = proof(index).to_text().into_bytes();
        let at = at.index(text.len());
        text[at] ^= mask;
        let found = InclusionProof::parse(&text).and_then(|proof| {
            proof.verify(format!("line {index}"), ORIGIN, &key())
        });
        prop_assert!(found.is_err());
    }

    #[test]
    fn a_changed_json_proof_fails(index in 0..SIZE, at in any::<Index>(), mask in 1..=255_u8) {
        let mut text = serde_json::to_vec(&proof(index).to_json_form(ORIGIN, &key()).unwrap()).unwrap();
        let at = at.index(text.len());
        text[at] ^= mask;
        let found = ProofJson::parse(&text)
            .and_then(|proof| proof.verify(format!("line {index}"), &checkpoint(SIZE)));
        prop_assert!(found.is_err());
    }

    #[test]
    fn no_bytes_make_the_readers_panic(
        bytes in any::<Vec<u8>>(),
        lines in vec("extra [A-Za-z0-9+/=]{0,9}|index [0-9]{0,21}|[A-Za-z0-9+/]{43}=|.{0,20}", 0..6),
        json in "[{\\[]?(\"(index|size|root|hashes)\":([0-9]{1,20}|\"[0-9a-f]{64}\"|\\[\\]),?){0,5}\\}?",
    ) {
        prop_assert!(InclusionProof::parse(&bytes).is_err());
        prop_assert!(ProofJson::parse(&bytes).is_err());
        prop_assert!(ConsistencyProof::parse(&bytes).is_err());
        let text = format!("c2sp.org/tlog-proof@v1\n{}", lines.join("\n"));
        if let Ok(read) = InclusionProof::parse(&text) {
            prop_assert_eq!(read.to_text(), text);
            prop_assert!(read.verify("", ORIGIN, &key()).is_err());
        }
        if let Ok(read) = ProofJson::parse(&json) {
            prop_assert!(read.index < read.size);
        }
        prop_assert!(ConsistencyProof::parse(&json).is_err());
    }
}
