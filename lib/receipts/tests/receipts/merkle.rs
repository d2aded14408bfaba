//! The Merkle tree over a ledger: published proof vectors, and a naive tree to hold it against.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use receipts::ledger::AppendError;
use receipts::merkle::{
    Hash, SIZE_LIMIT, consistency_proof, inclusion_proof, leaf_hash, verify_consistency, verify_inclusion,
};
use receipts::{Chain, CompactRange, Draft, Head, ProofError, RangeError, append};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::drafts::{draft, ledger, signer, time};

fn vectors<T: serde::de::DeserializeOwned>(file: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors/rfc6962")
        .join(file);
    let cases: Vec<T> = fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(cases.len(), 98);
    cases
}

/// Some cases have hashes of another length, which have no form here. A short one, a word, stands for any other hash:
/// with zeros behind it is that still, and equal ones stay equal. An empty one stands for none.
fn hash(text: &str) -> Option<Hash> {
    let mut bytes = STANDARD.decode(text).unwrap();
    assert!(bytes.len() <= 32, "{text}");
    let empty = bytes.is_empty();
    bytes.resize(32, 0);
    (!empty).then(|| bytes.try_into().unwrap())
}

/// Empty hashes stay, as zeros: how many there are is for the verifier to see.
fn hashes(texts: Option<Vec<String>>) -> Vec<Hash> {
    let texts = texts.unwrap_or_default();
    texts.iter().map(|text| hash(text).unwrap_or_default()).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Inclusion {
    name: String,
    leaf_idx: u64,
    tree_size: u64,
    root: String,
    leaf_hash: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

#[test]
fn published_inclusion_proofs_hold_or_fail_as_they_must() {
    for case in vectors::<Inclusion>("inclusion.jsonl") {
        let (Some(leaf), Some(root)) = (hash(&case.leaf_hash), hash(&case.root)) else {
            // Without a leaf or a root there is nothing to ask.
            assert!(case.want_err, "{}", case.name);
            continue;
        };
        let found = verify_inclusion(case.leaf_idx, case.tree_size, &leaf, &hashes(case.proof), &root);
        assert_eq!(found.is_err(), case.want_err, "{}: {found:?}", case.name);
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Consistency {
    name: String,
    size1: u64,
    size2: u64,
    root1: String,
    root2: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

#[test]
fn published_consistency_proofs_hold_or_fail_as_they_must() {
    for case in vectors::<Consistency>("consistency.jsonl") {
        let found = verify_consistency(
            case.size1,
            case.size2,
            &hashes(case.proof),
            &hash(&case.root1).unwrap(),
            &hash(&case.root2).unwrap(),
        );
        assert_eq!(found.is_err(), case.want_err, "{}: {found:?}", case.name);
    }
}

fn sha256(parts: &[&[u8]]) -> Hash {
    Sha256::digest(parts.concat()).into()
}

/// RFC 6962, section 2.1, word for word.
fn naive_root(leaves: &[Vec<u8>]) -> Hash {
    match leaves {
        [] => sha256(&[]),
        [leaf] => sha256(&[&[0], leaf]),
        _ => {
            let mut k = 1;
            while 2 * k < leaves.len() {
                k *= 2;
            }
            let (left, right) = leaves.split_at(k);
            sha256(&[&[1], &naive_root(left), &naive_root(right)])
        }
    }
}

fn leaves(count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|place| format!("leaf {place}").into_bytes())
        .collect()
}

fn leaf_hashes(count: usize) -> Vec<Hash> {
    leaves(count).iter().map(leaf_hash).collect()
}

fn root(leaf_hashes: &[Hash]) -> Hash {
    CompactRange::of(leaf_hashes).root()
}

#[test]
fn the_range_has_the_root_of_the_naive_tree() {
    let leaves = leaves(300);
    let mut range = CompactRange::new();
    for size in 0..=leaves.len() {
        assert_eq!(range.size(), size as u64);
        assert_eq!(range.hashes().len(), size.count_ones() as usize);
        assert_eq!(range.root(), naive_root(&leaves[..size]), "{size} leaves");
        let again = CompactRange::from_hashes(range.size(), range.hashes().to_vec()).unwrap();
        assert_eq!(again, range);
        if let Some(leaf) = leaves.get(size) {
            range.push(leaf_hash(leaf));
        }
    }
}

#[test]
fn every_proof_of_a_small_tree_holds() {
    for size in 1..=70 {
        let leaves = leaf_hashes(size);
        let root = root(&leaves);
        for (index, leaf) in leaves.iter().enumerate() {
            let proof = inclusion_proof(&leaves, index as u64).unwrap();
            verify_inclusion(index as u64, size as u64, leaf, &proof, &root).unwrap();
            for wrong in (0..size).filter(|&wrong| wrong != index) {
                assert!(verify_inclusion(wrong as u64, size as u64, leaf, &proof, &root).is_err());
            }
        }
        for old in 1..=size {
            let old_root = self::root(&leaves[..old]);
            let proof = consistency_proof(&leaves, old as u64).unwrap();
            verify_consistency(old as u64, size as u64, &proof, &old_root, &root).unwrap();
        }
    }
}

#[test]
fn what_is_in_no_tree_has_no_proof() {
    let leaves = leaf_hashes(3);
    for index in [3, 4, u64::MAX] {
        let expected = ProofError::Index { index, size: 3 };
        assert_eq!(inclusion_proof(&leaves, index), Err(expected.clone()));
        assert_eq!(
            verify_inclusion(index, 3, &leaves[0], &[], &leaves[0]),
            Err(expected)
        );
    }
    for old_size in [0, 4, u64::MAX] {
        let expected = ProofError::Sizes {
            old_size,
            new_size: 3,
        };
        assert_eq!(consistency_proof(&leaves, old_size), Err(expected.clone()));
        assert_eq!(
            verify_consistency(old_size, 3, &[], &leaves[0], &leaves[0]),
            Err(expected)
        );
    }
    assert!(inclusion_proof(&[], 0).is_err());
    assert!(consistency_proof(&[], 0).is_err());
}

#[test]
fn a_range_that_is_not_one_of_its_size_is_refused() {
    let check = |size: u64, texts: &[&str], expected: RangeError| {
        assert_eq!(CompactRange::from_hex(size, texts), Err(expected.clone()));
        let head = Head {
            size,
            range: texts.iter().map(|&text| text.to_owned()).collect(),
            ..Head::empty()
        };
        assert_eq!(head.root(), Err(expected.clone()));
        assert_eq!(Chain::after("a-1", head.clone()).unwrap_err(), expected);
        match append(&head, &[draft(0)], time("2026-01-01T00:00:00Z"), &signer()) {
            Err(AppendError::Head { size: found, source }) => assert_eq!((found, source), (size, expected)),
            other => panic!("{other:?}"),
        }
    };
    let length = |size, expected, found| RangeError::Length {
        size,
        expected,
        found,
    };
    let good = "ab".repeat(32);
    check(0, &[&good], length(0, 0, 1));
    check(2, &[], length(2, 1, 0));
    check(2, &[&good, &good], length(2, 1, 2));
    check(3, &[&good], length(3, 2, 1));
    check(3, &[&good, ""], RangeError::Digits { place: 1 });
    check(2, &[&good.to_uppercase()], RangeError::Digits { place: 0 });
    check(2, &[&"é".repeat(32)], RangeError::Digits { place: 0 });
    let size = SIZE_LIMIT + 1;
    check(size, &[&good, &good], RangeError::Size { size });
    check(u64::MAX, &[], RangeError::Size { size: u64::MAX });
}

#[test]
fn the_largest_range_can_be_built_on() {
    let mut range = CompactRange::from_hashes(SIZE_LIMIT, vec![[1; 32]]).unwrap();
    range.push([2; 32]);
    assert_eq!((range.size(), range.hashes().len()), (SIZE_LIMIT + 1, 2));
}

#[test]
fn a_head_has_the_root_of_its_lines() {
    let drafts: Vec<Draft> = (0..21).map(draft).collect();
    let (sealed, _) = ledger(&drafts);
    let lines: Vec<Vec<u8>> = sealed
        .iter()
        .map(|sealed| sealed.line.clone().into_bytes())
        .collect();
    let mut chain = Chain::new();
    for (place, sealed) in sealed.iter().enumerate() {
        assert_eq!(chain.head().root().unwrap(), naive_root(&lines[..place]));
        chain.push_unverified(&sealed.line).unwrap();
        let (_, stored) = ledger(&drafts[..=place]);
        assert_eq!(*chain.head(), stored);
        let json = serde_json::to_string(&stored).unwrap();
        assert_eq!(serde_json::from_str::<Head>(&json).unwrap(), stored);
    }
}

#[test]
fn a_head_stored_without_a_range_is_read_but_not_built_on() {
    let stored = r#"{"size":1,"last_hash":"00","timestamp":"2026-01-01T00:00:00.000Z"}"#;
    let head: Head = serde_json::from_str(stored).unwrap();
    assert!(matches!(
        head.root(),
        Err(RangeError::Length {
            expected: 1,
            found: 0,
            ..
        })
    ));
}

/// Flips bits of one byte among all the hashes.
fn flip(hashes: &mut [Hash], at: Index, mask: u8) {
    let at = at.index(hashes.len() * 32);
    hashes[at / 32][at % 32] ^= mask;
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_inclusion_proof_fails(
        size in 1..=300_usize,
        index in any::<Index>(),
        at in any::<Index>(),
        mask in 1..=255_u8,
    ) {
        let leaves = leaf_hashes(size);
        let index = index.index(size);
        let proof = inclusion_proof(&leaves, index as u64).unwrap();
        let check = |leaf: &Hash, proof: &[Hash], root: &Hash| {
            verify_inclusion(index as u64, size as u64, leaf, proof, root)
        };
        let root = root(&leaves);
        prop_assert_eq!(check(&leaves[index], &proof, &root), Ok(()));

        let mut parts = [vec![leaves[index], root], proof.clone()].concat();
        flip(&mut parts, at, mask);
        let changed = check(&parts[0], &parts[2..], &parts[1]);
        prop_assert!(matches!(changed, Err(ProofError::Root { .. })), "{:?}", changed);

        let longer = [proof.clone(), vec![root]].concat();
        let length = |found| Err(ProofError::Length { expected: proof.len(), found });
        prop_assert_eq!(check(&leaves[index], &longer, &root), length(proof.len() + 1));
        if let Some((_, shorter)) = proof.split_last() {
            prop_assert_eq!(check(&leaves[index], shorter, &root), length(shorter.len()));
        }
    }

    #[test]
    fn a_changed_consistency_proof_fails(
        size in 1..=300_usize,
        old in any::<Index>(),
        at in any::<Index>(),
        mask in 1..=255_u8,
    ) {
        let leaves = leaf_hashes(size);
        let old = 1 + old.index(size);
        let proof = consistency_proof(&leaves, old as u64).unwrap();
        let check = |proof: &[Hash], old_root: &Hash, new_root: &Hash| {
            verify_consistency(old as u64, size as u64, proof, old_root, new_root)
        };
        let (old_root, new_root) = (root(&leaves[..old]), root(&leaves));
        prop_assert_eq!(check(&proof, &old_root, &new_root), Ok(()));

        let mut parts = [vec![old_root, new_root], proof.clone()].concat();
        flip(&mut parts, at, mask);
        let changed = check(&parts[2..], &parts[0], &parts[1]);
        prop_assert!(matches!(changed, Err(ProofError::Root { .. })), "{:?}", changed);

        let longer = [proof.clone(), vec![new_root]].concat();
        let length = |found| Err(ProofError::Length { expected: proof.len(), found });
        prop_assert_eq!(check(&longer, &old_root, &new_root), length(proof.len() + 1));
        if let Some((_, shorter)) = proof.split_last() {
            prop_assert_eq!(check(shorter, &old_root, &new_root), length(shorter.len()));
        }
    }

    #[test]
    fn no_input_makes_the_verifiers_panic(
        sizes in any::<[u64; 2]>(),
        proof in vec(any::<Hash>(), 0..130),
        hash in any::<Hash>(),
    ) {
        let [one, other] = sizes;
        prop_assert!(verify_inclusion(one, other, &hash, &proof, &hash).is_err());
        for other in [other, u64::MAX] {
            // Nothing random proves anything, but that a tree is itself.
            let found = verify_consistency(one, other, &proof, &hash, &hash);
            prop_assert_eq!(found.is_ok(), one == other && one > 0 && proof.is_empty());
        }
        prop_assert!(verify_inclusion(one, u64::MAX, &hash, &proof, &hash).is_err());
        prop_assert_eq!(
            CompactRange::from_hashes(one, proof.clone()).is_ok(),
            one <= SIZE_LIMIT && one.count_ones() as usize == proof.len()
        );
    }
}
