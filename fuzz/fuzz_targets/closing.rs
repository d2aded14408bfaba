//! `verify_closing`: a line, a blank line, and the final checkpoint. What closes the archive names it.
#![no_main]

use governor_fuzz::{GOOD, SEED, plant, signed_again, signed_note};
use libfuzzer_sys::fuzz_target;
use receipts::archive::verify_closing;
use receipts::{CompactRange, Payload, merkle::leaf_hash};

fuzz_target!(
    init: {
        let Some((text, _)) = GOOD.end.split_once("\n\n") else { unreachable!("a note has a blank line") };
        let both = |note: &str| format!("{}\n\n{note}", GOOD.closing);
        plant("closing", [GOOD.closing.clone(), both(&GOOD.end), both(&format!("{text}\n")), both(&GOOD.notes[5])]);
    },
    |bytes: &[u8]| {
        let Ok(text) = str::from_utf8(bytes) else { return };
        let (line, note) = match text.split_once("\n\n") {
            Some((line, note)) => (line, Some(note)),
            None => (text, None),
        };
        check(line, note);
        check(line, note.map(signed_note).as_deref());
        if let Some(line) = signed_again(line, SEED, |_| {}) {
            check(&line, note);
            check(&line, note.map(signed_note).as_deref());
        }
    }
);

fn check(line: &str, note: Option<&str>) {
    let verified = &GOOD.verified;
    let Ok(closed) = verify_closing(line, note.map(str::as_bytes), verified) else {
        return;
    };
    let receipt = &closed.receipt;
    assert_eq!(
        (receipt.seq, &receipt.prev_hash),
        (verified.receipts, &verified.last_hash)
    );
    assert_eq!(receipt.account_id, verified.account_id);
    let Payload::DecommissionComplete {
        receipts_archived,
        archive_size_bytes,
        archive_sha256,
        ..
    } = &receipt.payload
    else {
        panic!("an archive is closed by {}", receipt.payload.operation());
    };
    assert_eq!(
        (*receipts_archived, *archive_size_bytes, archive_sha256),
        (verified.receipts, verified.size_bytes, &verified.sha256)
    );
    assert_eq!(closed.checkpoint.is_some(), note.is_some());
    if let Some(checkpoint) = closed.checkpoint {
        let line = receipts::jcs(receipt).expect("it was read");
        let leaves = [&GOOD.leaves[..], &[leaf_hash(line)]].concat();
        assert_eq!(checkpoint.size, leaves.len() as u64);
        assert_eq!(checkpoint.root, CompactRange::of(&leaves).root());
    }
}
