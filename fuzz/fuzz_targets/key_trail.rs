//! `KeyRing::follow`: no trail takes away a trusted key or brings in one that nobody vouched for.
#![no_main]

use std::collections::BTreeSet;

use governor_fuzz::drafts::draft;
use governor_fuzz::{GOOD, SEED, plant, rotations, seal, signed_again};
use jiff::Timestamp;
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use receipts::trail::rotation;
use receipts::{Draft, Head, KeyRing, Payload, Signer};

/// Whoever signs in a trail here. The last one is a thief: nobody passes on to him, and he signs what he likes.
const KEYS: [u8; 5] = [SEED, 1, 2, 3, THIEF];
const THIEF: u8 = 9;

#[derive(Arbitrary, Debug)]
struct Step {
    signed_by: u8,
    system: bool,
    is: What,
}

#[derive(Arbitrary, Debug)]
enum What {
    Rotation {
        from: u8,
        to: u8,
        endorsed_by: Option<u8>,
    },
    Revocation {
        of: u8,
        from_second: u32,
    },
    Other {
        operation: u8,
    },
}

fuzz_target!(
    init: {
        let trail = rotations();
        plant("key_trail", [trail.join("\n"), trail[..1].join("\n"), trail[1..].join("\n")]);
    },
    |bytes: &[u8]| {
        if let Ok(text) = str::from_utf8(bytes) {
            follow(text.lines());
            // Each line by the key that it names.
            let signed: Vec<_> = text.lines().filter_map(|line| signed_again(line, named(line)?, |_| {})).collect();
            follow(signed.iter().map(String::as_str));
        }
        if let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(bytes)) {
            check(&steps[..steps.len().min(12)]);
        }
    }
);

fn key(which: u8) -> Signer {
    Signer::generate([which; 32])
}

fn named(line: &str) -> Option<u8> {
    let fields: serde_json::Value = serde_json::from_str(line).ok()?;
    let key_id = fields.get("key_id")?.as_str()?;
    KEYS.into_iter().find(|&seed| key(seed).key_id() == key_id)
}

fn follow<'a>(lines: impl Iterator<Item = &'a str>) -> Option<KeyRing> {
    let ring = GOOD.keys.clone().follow(lines).ok()?;
    assert!(GOOD.keys.keys().all(|key| ring.get(key.key_id()) == Some(key)));
    assert!(ring.keys().all(|key| ring.get(key.key_id()) == Some(key)));
    Some(ring)
}

fn check(steps: &[Step]) {
    let seed = |which: u8| KEYS[usize::from(which) % KEYS.len()];
    let mut head = Head::empty();
    let mut lines = Vec::new();
    // Pairs of keys that vouched for each other.
    let mut passed = BTreeSet::new();
    let mut revokers = BTreeSet::new();
    for step in steps {
        let by = seed(step.signed_by);
        let payload = match step.is {
            What::Rotation {
                from,
                to,
                endorsed_by,
            } => {
                let (from, to) = (seed(from), seed(to));
                let mut payload = rotation(&key(from).public_key(), &key(to));
                let other = endorsed_by.map(seed).filter(|&other| other != to);
                if let (Payload::KeyRotated { endorsement, .. }, Some(other)) = (&mut payload, other)
                    && let Payload::KeyRotated {
                        endorsement: theirs, ..
                    } = rotation(&key(from).public_key(), &key(other))
                {
                    *endorsement = theirs;
                }
                if by == from && other.is_none() {
                    passed.insert((from, to));
                }
                payload
            }
            What::Revocation { of, from_second } => {
                let of = seed(of);
                revokers.insert((by, of));
                Payload::KeyRevoked {
                    revoked_key_id: key(of).key_id().to_owned(),
                    reason: "stolen".to_owned(),
                    revoked_from: Timestamp::from_second(i64::from(from_second)).expect("within 200 years"),
                }
            }
            What::Other { operation } => draft(usize::from(operation) % 23).payload,
        };
        let account_id = if step.system { "_system" } else { "a-1" }.to_owned();
        let (line, next) = seal(
            &head,
            Draft {
                account_id,
                payload,
                ..draft(23)
            },
            &key(by),
        );
        head = next;
        lines.push(line);
    }
    let Some(ring) = follow(lines.iter().map(String::as_str)) else {
        return;
    };
    assert!(
        steps
            .iter()
            .all(|step| step.system && !matches!(step.is, What::Other { .. }))
    );
    // Reached from the trusted key, forwards and back, over nothing but honest rotations.
    let mut reached = BTreeSet::from([SEED]);
    while let Some(&new) = passed
        .iter()
        .filter(|(from, to)| reached.contains(from) != reached.contains(to))
        .map(|(from, to)| if reached.contains(from) { to } else { from })
        .next()
    {
        reached.insert(new);
    }
    let mut expected: Vec<_> = reached
        .iter()
        .map(|&seed| key(seed).key_id().to_owned())
        .collect();
    expected.sort();
    assert_eq!(ring.key_ids().collect::<Vec<_>>(), expected);
    for of in KEYS {
        let by_known = revokers
            .iter()
            .any(|(by, revoked)| *revoked == of && reached.contains(by) && *by != of);
        assert_eq!(
            ring.revocation(key(of).key_id()).is_some(),
            by_known && reached.contains(&of),
            "key {of}"
        );
    }
}
