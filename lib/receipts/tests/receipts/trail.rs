//! The key trail: rotation, revocation, and what a thief tries.

use jiff::{Timestamp, ToSpan as _};
use receipts::trail::rotation;
use receipts::{
    Chain, Checkpoint, Draft, Head, KeyRing, Payload, Signer, append, verify_line, verify_placed_line,
};
use uuid::Uuid;

use crate::drafts::time;

/// Keys 1, 2, 3 … of the tests.
fn key(which: u8) -> Signer {
    Signer::generate([which; 32])
}

fn rotated(previous: u8, new: u8) -> Payload {
    rotation(&key(previous).public_key(), &key(new))
}

fn revoked(which: u8, from: &str) -> Payload {
    Payload::KeyRevoked {
        revoked_key_id: key(which).key_id().to_owned(),
        reason: "the laptop it was on was stolen".to_owned(),
        revoked_from: time(from),
    }
}

/// A ledger of these payloads, each with its signer, an hour apart from 2026-01-01T00:00Z on.
fn ledger(account_id: &str, payloads: &[(u8, Payload)]) -> Vec<String> {
    let mut head = Head::empty();
    let mut lines = Vec::new();
    for (at, (signer, payload)) in payloads.iter().enumerate() {
        let now: Timestamp = time("2026-01-01T00:00:00Z") + (at as i64).hours();
        let draft = Draft {
            receipt_id: Uuid::from_u128(at as u128),
            account_id: account_id.to_owned(),
            occurred_at: now,
            duration_ms: 0,
            policy_hash: None,
            payload: payload.clone(),
        };
        let appended = append(&head, &[draft], now, &key(*signer)).unwrap();
        lines.push(appended.sealed[0].line.clone());
        head = appended.head;
    }
    lines
}

fn trail(payloads: &[(u8, Payload)]) -> Vec<String> {
    ledger("_system", payloads)
}

fn follow(trusted: u8, lines: &[String]) -> Result<KeyRing, String> {
    KeyRing::from(key(trusted).public_key())
        .follow(lines.iter().map(String::as_str))
        .map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        })
}

#[track_caller]
fn check(trusted: u8, payloads: &[(u8, Payload)], expected: &[u8]) {
    let ring = follow(trusted, &trail(payloads)).unwrap();
    let mut expected: Vec<_> = expected
        .iter()
        .map(|&which| key(which).key_id().to_owned())
        .collect();
    expected.sort();
    assert_eq!(ring.key_ids().collect::<Vec<_>>(), expected);
}

#[track_caller]
fn check_refused(trusted: u8, lines: &[String], expected: &str) {
    let refused = follow(trusted, lines).expect_err("a trail that does not hold");
    assert!(
        refused.contains(expected),
        "{refused:?} does not say {expected:?}"
    );
}

#[test]
fn any_key_of_a_trail_leads_to_all() {
    let payloads = [(1, rotated(1, 2)), (2, rotated(2, 3)), (3, rotated(3, 4))];
    for trusted in 1..=4 {
        check(trusted, &payloads, &[1, 2, 3, 4]);
    }
    check(9, &payloads, &[9]);
    check(1, &[], &[1]);
}

#[test]
fn a_thief_finds_no_way_into_a_trail() {
    let good = [(1, rotated(1, 2))];
    // Signed by another than the previous key.
    check_refused(1, &trail(&[(7, rotated(1, 7))]), "`key_id` is \"");
    // A second rotation of the stolen key.
    let fork = trail(&[(1, rotated(1, 2)), (1, rotated(1, 7))]);
    check_refused(1, &fork, "stands in a second rotation");
    check_refused(2, &fork, "stands in a second rotation");
    // Another key made to pass on to ours.
    check_refused(
        2,
        &trail(&[(1, rotated(1, 2)), (7, rotated(7, 2))]),
        "stands in a second rotation",
    );
    // Without the new key's word.
    let Payload::KeyRotated {
        previous_key_id,
        previous_public_key,
        new_key_id,
        new_public_key,
        ..
    } = rotated(1, 2)
    else {
        unreachable!()
    };
    let Payload::KeyRotated { endorsement, .. } = rotated(3, 2) else {
        unreachable!()
    };
    let unendorsed = Payload::KeyRotated {
        previous_key_id: previous_key_id.clone(),
        previous_public_key: previous_public_key.clone(),
        new_key_id: new_key_id.clone(),
        new_public_key: new_public_key.clone(),
        endorsement: endorsement.clone(),
    };
    check_refused(1, &trail(&[(1, unendorsed)]), "the endorsement by");
    for (previous, new, expected) in [
        ("", new_public_key.as_str(), "`previous_public_key` is \"\""),
        (&*previous_public_key, "AAAA", "`new_public_key` is \"AAAA\""),
        (&*new_public_key, &*new_public_key, "`previous_key_id` is"),
        (&*previous_public_key, &*previous_public_key, "`new_key_id` is"),
    ] {
        let payload = Payload::KeyRotated {
            previous_key_id: previous_key_id.clone(),
            previous_public_key: previous.to_owned(),
            new_key_id: new_key_id.clone(),
            new_public_key: new.to_owned(),
            endorsement: endorsement.clone(),
        };
        check_refused(1, &trail(&[(1, payload)]), expected);
    }
    let line = trail(&good).remove(0);
    check_refused(
        1,
        &[line.replacen("00:00:00", "00:00:01", 2)],
        "signature does not hold",
    );
    check_refused(1, &["{}".to_owned()], "line 1 of the key trail is not good");
    check_refused(1, &ledger("customer-1", &good), "of account \"customer-1\"");
    check_refused(1, &trail(&[(1, rotated(1, 2)), (2, work())]), "`webhook_ignored`");
}

/// What has no place in a key trail.
fn work() -> Payload {
    Payload::WebhookIgnored {
        reason: "r".to_owned(),
        provider: None,
        delivery_id: None,
    }
}

#[test]
fn a_revoked_key_fails_with_its_reason() {
    let payloads = [(1, rotated(1, 2)), (2, revoked(1, "2026-01-01T03:00:00Z"))];
    let ring = follow(1, &trail(&payloads)).unwrap();
    let lines = ledger(
        "customer-1",
        &[(1, work()), (1, work()), (2, work()), (1, work())],
    );
    let mut chain = Chain::new();
    for line in &lines[..3] {
        chain.push(line, &ring).unwrap();
    }
    let refused = chain.push(&lines[3], &ring).unwrap_err();
    let told = std::error::Error::source(&refused).unwrap().to_string();
    assert!(
        told.contains("which is revoked from 2026-01-01T03:00:00.000Z on: the laptop it was on was stolen"),
        "{told}"
    );
    // By itself even an old date proves nothing.
    verify_placed_line(&lines[0], &ring).unwrap();
    let told = verify_line(&lines[0], &ring).unwrap_err().to_string();
    assert!(told.contains("only its place in a ledger shows"), "{told}");
    verify_line(&lines[2], &ring).unwrap();

    let checkpoint = Checkpoint {
        origin: "governor.example/receipts/customer-1".to_owned(),
        size: chain.head().size,
        root: chain.head().root().unwrap(),
    };
    let (read, by) = Checkpoint::open(checkpoint.sign(&key(2)).unwrap(), &ring).unwrap();
    assert_eq!((read, by.as_str()), (checkpoint.clone(), key(2).key_id()));
    let told = Checkpoint::open(checkpoint.sign(&key(1)).unwrap(), &ring)
        .unwrap_err()
        .to_string();
    assert!(told.contains("is revoked: the laptop"), "{told}");
    let told = Checkpoint::open(checkpoint.sign(&key(3)).unwrap(), &ring)
        .unwrap_err()
        .to_string();
    assert!(told.contains("has no signature by"), "{told}");
}

#[test]
fn revocations_need_another_trusted_key() {
    let late = "2026-01-01T05:00:00Z";
    check_refused(1, &trail(&[(1, revoked(1, late))]), "can't revoke itself");
    check_refused(
        1,
        &trail(&[(9, revoked(1, late))]),
        "which no trusted key leads to",
    );
    // Of keys that have nothing to do with the trusted one.
    check(1, &[(8, revoked(9, late))], &[1]);
    // A rotation that the previous key signed when it did not count any more.
    let stolen = [(1, rotated(1, 2)), (2, revoked(1, "2025-12-31T23:00:00Z"))];
    check_refused(1, &trail(&stolen), "is revoked from 2025-12-31T23:00:00.000Z on");
    // The earlier of two holds, in whatever order they come.
    for (first, second) in [("2026-01-01T04:00:00Z", late), (late, "2026-01-01T04:00:00Z")] {
        let ring = follow(
            2,
            &trail(&[
                (1, rotated(1, 2)),
                (2, revoked(1, first)),
                (2, revoked(1, second)),
            ]),
        );
        let from = ring.unwrap().revocation(key(1).key_id()).unwrap().from;
        assert_eq!(from, time("2026-01-01T04:00:00Z"));
    }
}
