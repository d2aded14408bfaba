//! `InclusionProof::parse`: what it reads writes itself again. Only the ledger's own lines are proved.
#![no_main]

use governor_fuzz::drafts::signer;
use governor_fuzz::{GOOD, ORIGIN, plant};
use libfuzzer_sys::fuzz_target;
use receipts::InclusionProof;
use receipts::merkle::inclusion_proof;

fuzz_target!(
    init: plant("proof", (1..=GOOD.lines.len()).flat_map(|size| (0..size).map(move |index| good(index, size)))),
    |bytes: &[u8]| {
        let Ok(proof) = InclusionProof::parse(bytes) else { return };
        assert_eq!(proof.to_text().as_bytes(), bytes);
        let key = signer().public_key();
        for (place, line) in GOOD.lines.iter().enumerate() {
            if let Ok(checkpoint) = proof.verify(line, ORIGIN, &key) {
                assert_eq!(proof.index(), place as u64);
                let json = proof.to_json_form(ORIGIN, &key).expect("its checkpoint holds");
                json.verify(line, &checkpoint).expect("the same proof");
            }
        }
        assert!(proof.verify("no line of the ledger", ORIGIN, &key).is_err());
    }
);

fn good(index: usize, size: usize) -> String {
    let hashes = inclusion_proof(&GOOD.leaves[..size], index as u64).expect("a proof");
    let mut proof = InclusionProof::new(index as u64, hashes, GOOD.notes[size].as_str()).expect("a proof");
    if index == 0 {
        proof = proof.with_extra(b"extra".to_vec()).expect("a little extra data");
    }
    proof.to_text()
}
