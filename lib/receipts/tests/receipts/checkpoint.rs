//! Signed checkpoints: what is written is what the specification says, and nothing else is read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use proptest::sample::Index;
use receipts::checkpoint::{NOTE_BYTES, SIGNATURE_LINES};
use receipts::{Checkpoint, Signer};
use sha2::{Digest as _, Sha256};

use crate::drafts::signer;
use crate::ledger::story;

pub const ORIGIN: &str = "governor.example/receipts/a-1";

pub fn checkpoint() -> Checkpoint {
    Checkpoint {
        origin: ORIGIN.to_owned(),
        size: 3,
        root: Sha256::digest("root").into(),
    }
}

/// Made from the specification's words with `openssl pkey` and `openssl pkeyutl -sign -rawin`, not with this crate.
const KNOWN: &str = "\
governor.example/receipts/a-1
3
SBNJTRN+FjG7owHVrKtue7eqdM4RhdRWVl71HXN2d7I=

— governor.example/receipts/a-1 \
viiySKcRDlLgwoM68d1hTYKqrAIG1XVJr3S0pR5SY2SnXimUcHuzlqzO5AZbUnngS6/RNOl98R5WSSykW1v8Q/Ms0gU=
";

#[test]
fn a_checkpoint_is_written_to_the_byte() {
    assert_eq!(checkpoint().sign(&signer()).unwrap(), KNOWN);
    assert_eq!(
        Checkpoint::verify(KNOWN, ORIGIN, &signer().public_key()).unwrap(),
        checkpoint()
    );
}

#[track_caller]
fn check_refused(note: impl AsRef<[u8]>, expected: &str) {
    let error = Checkpoint::verify(note, ORIGIN, &signer().public_key())
        .expect_err("a checkpoint that does not hold");
    assert!(story(&error).contains(expected), "{}", story(&error));
}

/// A note over any text, signed as `name`; key hash and signature as the specification has them.
fn note(text: &str, name: &str, key: &Signer) -> String {
    let pem = key.public_key().to_pem().unwrap();
    let der = STANDARD.decode(pem.lines().nth(1).unwrap()).unwrap();
    let hash = Sha256::digest([name.as_bytes(), b"\n\x01", &der[12..]].concat());
    // The crate signs nothing but receipts and checkpoints.
    let secret = STANDARD
        .decode(key.to_pem().unwrap().lines().nth(1).unwrap())
        .unwrap();
    let secret = ed25519_dalek::SigningKey::from_bytes(secret[16..].try_into().unwrap());
    let signature = ed25519_dalek::Signer::sign(&secret, text.as_bytes()).to_bytes();
    let signature = STANDARD.encode([&hash[..4], &signature].concat());
    format!("{text}\n— {name} {signature}\n")
}

#[test]
fn the_notes_of_this_test_are_notes() {
    assert_eq!(note(&checkpoint().text(), ORIGIN, &signer()), KNOWN);
}

#[test]
fn a_note_that_is_not_whole_is_refused() {
    check_refused("", "does not end in a blank line");
    check_refused(checkpoint().text(), "does not end in a blank line");
    check_refused(checkpoint().text() + "\n", "does not end in a blank line");
    check_refused(KNOWN.trim_end(), "does not end in a blank line");
    check_refused(KNOWN.to_owned() + "\n", "does not end in a blank line");
    check_refused(KNOWN.replace('\n', "\r\n"), "control character 0x0d at byte 29");
    check_refused(
        KNOWN.replacen("receipts", "rec\0eipts", 1),
        "control character 0x00",
    );
    check_refused(
        KNOWN
            .bytes()
            .map(|byte| if byte == b'g' { 0xff } else { byte })
            .collect::<Vec<_>>(),
        "not UTF-8",
    );
    check_refused(vec![b'\n'; NOTE_BYTES + 1], "has 1048577 bytes");
}

#[test]
fn signature_lines_are_read_strictly() {
    for line in [
        "",
        "- a AAAAAAA=",
        "— a",
        "—  AAAAAAA=",
        "— a+b AAAAAAA=",
        "— a\u{a0}b AAAAAAA=",
        "— a AAAAAAA",
        "— a AAAAAAB=",
        "— a AAAA AAAA",
        "— a AAAAAA==",
    ] {
        let expected = if line.is_empty() {
            "does not end in a blank line"
        } else {
            "line 2 behind the text"
        };
        check_refused(format!("{KNOWN}{line}\n"), expected);
    }
}

#[test]
fn signatures_of_others_are_let_be_up_to_the_limit() {
    let key = signer().public_key();
    let other = "— other.example AAAAAAA=\n";
    let full = KNOWN.to_owned() + &other.repeat(SIGNATURE_LINES - 1);
    assert_eq!(Checkpoint::verify(&full, ORIGIN, &key).unwrap(), checkpoint());
    check_refused(full + other, "has 101 signature lines");
    // Another key under our name, and our name's hash under another name, are others.
    let stranger = note(&checkpoint().text(), ORIGIN, &Signer::generate([1; 32]));
    check_refused(&stranger, "no signature by governor.example/receipts/a-1");
    let line = stranger.lines().last().unwrap();
    Checkpoint::verify(format!("{KNOWN}{line}\n"), ORIGIN, &key).unwrap();
    check_refused(KNOWN.replace("— governor", "— warden"), "with key hash be28b248");
}

#[test]
fn a_signature_of_the_trusted_key_must_hold() {
    check_refused(KNOWN.replacen("\n3\n", "\n4\n", 1), "was not made by key");
    // Beside a good one, too.
    let other = note(&checkpoint().text().replace("\n3\n", "\n4\n"), ORIGIN, &signer());
    let line = other.lines().last().unwrap();
    check_refused(format!("{KNOWN}{line}\n"), "was not made by key");
    let twice = KNOWN.lines().last().unwrap();
    Checkpoint::verify(format!("{KNOWN}{twice}\n"), ORIGIN, &signer().public_key()).unwrap();
    check_refused(
        format!("{KNOWN}— {ORIGIN} viiySKcR\n"),
        "an Ed25519 signature has 64",
    );
}

#[test]
fn a_signed_text_must_be_a_checkpoint_of_this_origin() {
    let good = checkpoint().text();
    let root = good.lines().nth(2).unwrap();
    let check = |text: &str, expected: &str| check_refused(note(text, ORIGIN, &signer()), expected);
    check("\n", "has 1 lines");
    check(&format!("{ORIGIN}\n3\n"), "has 2 lines");
    check(&format!("{good}an extension\n"), "has 4 lines");
    check(&format!("{good}\n"), "has 4 lines");
    check(
        &good.replace("a-1", "a-2"),
        "is \"governor.example/receipts/a-2\", expected",
    );
    for size in [
        "",
        "03",
        "+3",
        "-3",
        " 3",
        "3 ",
        "0x3",
        "٣",
        "18446744073709551616",
    ] {
        check(&format!("{ORIGIN}\n{size}\n{root}\n"), "not a canonical decimal");
    }
    for root in ["", "AAAA", root.trim_end_matches('='), &root.replace("I=", "J=")] {
        check(&format!("{ORIGIN}\n3\n{root}\n"), "not the base64 of 32 bytes");
    }
    for size in ["0", "18446744073709551615"] {
        let note = note(&format!("{ORIGIN}\n{size}\n{root}\n"), ORIGIN, &signer());
        Checkpoint::verify(note, ORIGIN, &signer().public_key()).unwrap();
    }
}

#[test]
fn an_origin_that_cannot_name_a_key_is_refused() {
    for origin in ["", "a b", "a\nb", "a+b", "a\u{2003}b", "a\rb", "a\u{7f}b"] {
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            ..checkpoint()
        };
        let signed = checkpoint.sign(&signer()).expect_err(origin).to_string();
        let read = Checkpoint::verify(KNOWN, origin, &signer().public_key())
            .expect_err(origin)
            .to_string();
        assert!(signed.contains("can't name a key"), "{signed}");
        assert_eq!(signed, read);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_signed_verifies_and_no_changed_byte_does(
        tenant in "[a-z0-9_-]{1,40}",
        size in any::<u64>(),
        root in any::<[u8; 32]>(),
        at in any::<Index>(),
        mask in 1..=255_u8,
    ) {
        let origin = format!("governor.example/receipts/{tenant}");
        let checkpoint = Checkpoint { origin: origin.clone(), size, root };
        let mut note = checkpoint.sign(&signer()).unwrap().into_bytes();
        let key = signer().public_key();
        prop_assert_eq!(Checkpoint::verify(&note, &origin, &key).unwrap(), checkpoint);
        let at = at.index(note.len());
        note[at] ^= mask;
        prop_assert!(Checkpoint::verify(&note, &origin, &key).is_err());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in any::<Vec<u8>>(), text in any::<String>()) {
        let key = signer().public_key();
        prop_assert!(Checkpoint::verify(bytes, ORIGIN, &key).is_err());
        prop_assert!(Checkpoint::verify(&text, ORIGIN, &key).is_err());
        // Signed, so that the text itself is read.
        let signed = note(&(text + "\n"), ORIGIN, &signer());
        prop_assert!(Checkpoint::verify(signed, ORIGIN, &key).is_err());
    }
}
