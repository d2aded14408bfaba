//! `verify_line`: whatever it reads is, written again, the line itself.
#![no_main]

use governor_fuzz::{GOOD, SEED, all_operations, plant, signed_again};
use libfuzzer_sys::fuzz_target;
use receipts::{jcs, verify_line, verify_placed_line};

fuzz_target!(
    init: plant("line", all_operations()),
    |bytes: &[u8]| {
        let Ok(line) = str::from_utf8(bytes) else { return };
        check(line);
        signed_again(line, SEED, |_| {}).iter().for_each(|line| check(line));
    }
);

fn check(line: &str) {
    let Ok(receipt) = verify_line(line, &GOOD.keys) else {
        return;
    };
    assert_eq!(jcs(&receipt).ok().as_deref(), Some(line));
    assert_eq!(receipt.status, receipt.payload.status());
    assert!(receipt.hash().is_ok());
    assert_eq!(verify_placed_line(line, &GOOD.keys).ok(), Some(receipt));
}
