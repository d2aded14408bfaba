//! `ProofJson::parse` and `ConsistencyProof::parse`: what they read is read again from what they write. Only the
//! ledger's own lines, and its own past, are proved.
#![no_main]

use governor_fuzz::drafts::signer;
use governor_fuzz::{GOOD, ORIGIN, plant};
use libfuzzer_sys::fuzz_target;
use receipts::merkle::{consistency_proof, inclusion_proof};
use receipts::{Checkpoint, CompactRange, ConsistencyProof, ProofJson};

fuzz_target!(
    init: {
        let size = GOOD.lines.len();
        let inclusions = (0..size).map(|index| {
            serde_json::to_vec(&ProofJson {
                index: index as u64,
                size: size as u64,
                root: root(size),
                hashes: inclusion_proof(&GOOD.leaves, index as u64).expect("a proof"),
            })
        });
        let consistencies = (1..=size).map(|old| {
            serde_json::to_vec(&ConsistencyProof {
                old_size: old as u64,
                new_size: size as u64,
                old_root: root(old),
                new_root: root(size),
                hashes: consistency_proof(&GOOD.leaves, old as u64).expect("a proof"),
            })
        });
        plant("proof_json", inclusions.chain(consistencies).map(|json| json.expect("a proof in JSON")));
    },
    |bytes: &[u8]| {
        let checkpoint = |size: usize| {
            Checkpoint::verify(&GOOD.notes[size], ORIGIN, &signer().public_key()).expect("a good note")
        };
        let size = GOOD.lines.len();
        if let Ok(proof) = ProofJson::parse(bytes) {
            let json = serde_json::to_vec(&proof).expect("it was read");
            assert_eq!(ProofJson::parse(json).ok().as_ref(), Some(&proof));
            for (place, line) in GOOD.lines.iter().enumerate() {
                if proof.verify(line, &checkpoint(size)).is_ok() {
                    assert_eq!((proof.index, proof.size), (place as u64, size as u64));
                }
            }
        }
        if let Ok(proof) = ConsistencyProof::parse(bytes) {
            let json = serde_json::to_vec(&proof).expect("it was read");
            assert_eq!(ConsistencyProof::parse(json).ok().as_ref(), Some(&proof));
            // Another past of the same end can't be proved.
            if proof.verify().is_ok() && proof.new_size == size as u64 && proof.new_root == root(size) {
                assert_eq!(proof.old_root, root(proof.old_size as usize));
            }
            for old in 1..=size {
                if proof.verify_between(&checkpoint(old), &checkpoint(size)).is_ok() {
                    assert_eq!(proof.old_size, old as u64);
                }
            }
        }
    }
);

fn root(size: usize) -> receipts::merkle::Hash {
    CompactRange::of(&GOOD.leaves[..size]).root()
}
