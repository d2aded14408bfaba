//! Lines through `Chain::push`: as they are, signed again, and signed again with `seq` and `prev_hash` that fit.
#![no_main]

use governor_fuzz::{GOOD, SEED, all_operations, plant, signed_again};
use libfuzzer_sys::fuzz_target;
use receipts::merkle::leaf_hash;
use receipts::{Chain, CompactRange};

fuzz_target!(
    init: plant("chain", [GOOD.lines.join("\n"), all_operations()[18..21].join("\n"), GOOD.lines[..2].join("\n")]),
    |bytes: &[u8]| {
        let Ok(text) = str::from_utf8(bytes) else { return };
        check(text, |line, _| Some(line.to_owned()));
        check(text, |line, _| signed_again(line, SEED, |_| {}));
        check(text, |line, chain| {
            let head = chain.head().clone();
            signed_again(line, SEED, |fields| {
                fields.insert("seq".to_owned(), head.size.into());
                fields.insert("prev_hash".to_owned(), head.last_hash.into());
            })
        });
    }
);

fn check(text: &str, forge: impl Fn(&str, &Chain) -> Option<String>) {
    let mut chain = Chain::new();
    let mut leaves = Vec::new();
    for line in text.split('\n') {
        let Some(line) = forge(line, &chain) else { continue };
        let before = chain.clone();
        match chain.push(&line, &GOOD.keys) {
            Ok(receipt) => {
                leaves.push(leaf_hash(&line));
                let (old, new) = (before.head(), chain.head());
                assert_eq!((receipt.seq, &receipt.prev_hash), (old.size, &old.last_hash));
                assert_eq!(receipt.hash().ok().as_ref(), Some(&new.last_hash));
                assert!(receipt.timestamp >= old.timestamp);
                assert_eq!(chain.account_id(), Some(receipt.account_id.as_str()));
            }
            Err(_) => assert_eq!(
                (chain.head(), chain.account_id()),
                (before.head(), before.account_id())
            ),
        }
    }
    let head = chain.head();
    assert_eq!(head.size, leaves.len() as u64);
    assert_eq!(chain.root(), CompactRange::of(&leaves).root());
    assert_eq!(head.root().ok(), Some(chain.root()));
}
