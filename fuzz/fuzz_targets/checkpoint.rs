//! `Checkpoint::open` and `Checkpoint::verify`: what they read is what was signed, and both say the same.
#![no_main]

use governor_fuzz::drafts::signer;
use governor_fuzz::{GOOD, ORIGIN, plant, signed_note};
use libfuzzer_sys::fuzz_target;
use receipts::Checkpoint;

fuzz_target!(
    init: {
        let texts = GOOD.notes.iter().filter_map(|note| note.split_once("\n\n")).map(|(text, _)| format!("{text}\n"));
        plant("checkpoint", GOOD.notes.iter().cloned().chain(texts));
    },
    |bytes: &[u8]| {
        check(bytes);
        if let Ok(text) = str::from_utf8(bytes) {
            check(signed_note(text).as_bytes());
        }
    }
);

fn check(note: &[u8]) {
    let key = signer().public_key();
    let opened = Checkpoint::open(note, &GOOD.keys);
    if let Ok(verified) = Checkpoint::verify(note, ORIGIN, &key) {
        assert_eq!(verified.origin, ORIGIN);
        assert!(opened.is_ok());
    }
    let Ok((checkpoint, key_id)) = opened else { return };
    assert_eq!(key_id, signer().key_id());
    assert!(note.starts_with(format!("{}\n", checkpoint.text()).as_bytes()));
    assert_eq!(
        Checkpoint::verify(note, &checkpoint.origin, &key).ok().as_ref(),
        Some(&checkpoint)
    );
    let again = checkpoint.sign(&signer()).expect("an origin that was read");
    assert_eq!(
        Checkpoint::open(again, &GOOD.keys).ok(),
        Some((checkpoint, key_id))
    );
}
