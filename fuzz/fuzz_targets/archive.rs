//! `archive::verify` on any bytes: as a file, and as a tar in the gzip that archives have.
#![no_main]

use governor_fuzz::{GOOD, LIMITS, pack, plant};
use libfuzzer_sys::fuzz_target;
use receipts::{archive, sha256_hex};

fuzz_target!(
    init: plant("archive", [&GOOD.archive, &GOOD.tar, &GOOD.tar[..5_000].to_vec()]),
    |bytes: &[u8]| {
        check(bytes);
        check(&pack(bytes));
    }
);

fn check(bytes: &[u8]) {
    let Ok(verified) = archive::verify(bytes, &GOOD.keys, LIMITS) else {
        return;
    };
    assert_eq!(verified.size_bytes, bytes.len() as u64);
    assert_eq!(verified.sha256, sha256_hex(bytes));
    assert_eq!(verified.head().root().ok(), Some(verified.checkpoint.root));
    // The key signed for one ledger only.
    assert_eq!(verified.account_id, "a-1");
    assert_eq!(verified.checkpoint.root, GOOD.verified.checkpoint.root);
}
