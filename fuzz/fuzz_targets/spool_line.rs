//! `parse_spool_line`: the draft it gives makes the same spool line, and nothing else is read as one.
#![no_main]

use governor_fuzz::drafts::{OPERATIONS, draft, signer};
use governor_fuzz::{GOOD, SEED, plant, signed_again};
use libfuzzer_sys::fuzz_target;
use receipts::{parse_spool_line, spool_line, verify_line};

fuzz_target!(
    init: {
        let spooled = |which| spool_line(&draft(which), &signer()).expect("a spool line");
        plant("spool_line", (0..OPERATIONS).map(spooled));
    },
    |bytes: &[u8]| {
        let Ok(line) = str::from_utf8(bytes) else { return };
        check(line);
        signed_again(line, SEED, |_| {}).iter().for_each(|line| check(line));
    }
);

fn check(line: &str) {
    let Ok(draft) = parse_spool_line(line, &GOOD.keys) else {
        return;
    };
    // Ed25519 signs the same bytes the same way.
    assert_eq!(spool_line(&draft, &signer()).ok().as_deref(), Some(line));
    assert!(
        verify_line(line, &GOOD.keys).is_err(),
        "a spool line is no ledger line"
    );
}
