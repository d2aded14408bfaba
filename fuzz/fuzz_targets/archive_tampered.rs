//! A good archive, edited. Where the tar's bytes are edited, only the same tar passes. Where its members are, and the
//! forger mends headers and sums, what passes holds the true receipts from the first one on, and the closing receipt
//! tells it from the true archive.
#![no_main]

use governor_fuzz::{GOOD, LIMITS, build, members, pack, plant};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use receipts::archive::{self, verify_closing};
use receipts::sha256_hex;

#[derive(Arbitrary, Debug)]
enum Edit {
    Change {
        at: u16,
        bits: u8,
    },
    Remove {
        at: u16,
        length: u16,
    },
    Insert {
        at: u16,
        bytes: Vec<u8>,
    },
    /// Bytes of one place once more at another: blocks, lines, numbers.
    Copy {
        from: u16,
        length: u16,
        to: u16,
    },
    Cut {
        at: u16,
    },
}

#[derive(Arbitrary, Debug)]
enum MemberEdit {
    Bytes {
        member: u8,
        edit: Edit,
    },
    /// A line of a member away, to another place, or twice.
    Line {
        member: u8,
        line: u8,
        to: Option<u8>,
        stays: bool,
    },
    Remove {
        member: u8,
    },
    Swap {
        one: u8,
        other: u8,
    },
    Twice {
        member: u8,
    },
    Rename {
        member: u8,
        edit: Edit,
    },
}

#[derive(Arbitrary, Debug)]
enum Tampering {
    Tar(Vec<Edit>),
    Members {
        edits: Vec<MemberEdit>,
        sums_again: bool,
    },
}

fuzz_target!(init: plant("archive_tampered", GOOD.archive.chunks(300).take(16)), |tampering: Tampering| {
    let (tar, by_bytes) = match tampering {
        Tampering::Tar(edits) => {
            let mut tar = GOOD.tar.clone();
            edits.iter().for_each(|edit| edit.apply(&mut tar));
            (tar, true)
        }
        Tampering::Members { edits, sums_again } => {
            let mut members = members(&GOOD.tar);
            edits.iter().for_each(|edit| edit.apply(&mut members));
            if sums_again {
                mend_sums(&mut members);
            }
            let Some(tar) = build(&members) else { return };
            (tar, !sums_again)
        }
    };
    let same = tar == GOOD.tar;
    let Ok(verified) = archive::verify(&*pack(&tar), &GOOD.keys, LIMITS) else {
        assert!(!same, "the good archive is refused");
        return;
    };
    assert!(same || !by_bytes, "an altered tar passes");
    let size = verified.receipts as usize;
    assert_eq!(verified.checkpoint.size, verified.receipts);
    assert_eq!(
        verified.head().root().ok(),
        Some(receipts::CompactRange::of(&GOOD.leaves[..size]).root())
    );
    // Packed differently, even the same tar is another file than the one that was closed.
    assert!(verify_closing(&GOOD.closing, None, &verified).is_err());
});

type Members = Vec<(String, Vec<u8>)>;

fn mend_sums(members: &mut Members) {
    let sums: String = members
        .iter()
        .filter(|(name, _)| name != "SHA256SUMS")
        .map(|(name, bytes)| format!("{}  {name}\n", sha256_hex(bytes)))
        .collect();
    if let Some((_, bytes)) = members.iter_mut().find(|(name, _)| name == "SHA256SUMS") {
        *bytes = sums.into_bytes();
    }
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: u16, bytes: &[u8]| usize::from(at).min(bytes.len());
        match self {
            Self::Change { at, bits } => {
                if let Some(byte) = bytes.get_mut(usize::from(*at)) {
                    *byte ^= bits;
                }
            }
            Self::Remove { at, length } => {
                let at = place(*at, bytes);
                bytes.drain(at..place(*length, &bytes[at..]) + at);
            }
            Self::Insert { at, bytes: new } => {
                let at = place(*at, bytes);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Copy { from, length, to } => {
                let from = place(*from, bytes);
                let copied = bytes[from..place(*length, &bytes[from..]) + from].to_vec();
                let to = place(*to, bytes);
                bytes.splice(to..to, copied);
            }
            Self::Cut { at } => bytes.truncate(usize::from(*at)),
        }
    }
}

impl MemberEdit {
    fn apply(&self, members: &mut Members) {
        let count = members.len();
        let place = |member: u8| usize::from(member) % count.max(1);
        if count == 0 {
            return;
        }
        match self {
            Self::Bytes { member, edit } => edit.apply(&mut members[place(*member)].1),
            Self::Line {
                member,
                line,
                to,
                stays,
            } => {
                let bytes = &mut members[place(*member)].1;
                let mut lines: Vec<Vec<u8>> = bytes
                    .split_inclusive(|&byte| byte == b'\n')
                    .map(Vec::from)
                    .collect();
                if lines.is_empty() {
                    return;
                }
                let at = usize::from(*line) % lines.len();
                let line = if *stays {
                    lines[at].clone()
                } else {
                    lines.remove(at)
                };
                if let Some(to) = to {
                    lines.insert(usize::from(*to) % (lines.len() + 1), line);
                }
                *bytes = lines.concat();
            }
            Self::Remove { member } => drop(members.remove(place(*member))),
            Self::Swap { one, other } => members.swap(place(*one), place(*other)),
            Self::Twice { member } => {
                let again = members[place(*member)].clone();
                members.insert(place(*member), again);
            }
            Self::Rename { member, edit } => {
                let name = &mut members[place(*member)].0;
                let mut bytes = name.clone().into_bytes();
                edit.apply(&mut bytes);
                *name = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
    }
}
