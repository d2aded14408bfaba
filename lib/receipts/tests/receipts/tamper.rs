//! Every attack on an archive that has a name, in one table: who finds it, and in what words.
//!
//! The forger is a good one. He mends whatever he can without the ledger's key: manifest, sums, names and headers of
//! members; he has a key of his own, the seller's other ledgers, and every archive that was ever handed out.

use std::cell::Cell;
use std::io::{self, Read};
use std::sync::LazyLock;

use receipts::archive::{CHUNK_LINES, verify, verify_closing};
use receipts::merkle::leaf_hash;
use receipts::{
    ArchiveSummary, Checkpoint, CompactRange, Draft, Head, Limits, Signer, Verified, append, jcs, sha256_hex,
};
use serde_json::{Value, json};

use crate::archive::{
    AUDITOR_PUB, CHECKPOINT, EARLIER, KEYS, MANIFEST, Members, POLICIES, Parts, RECEIPTS, archive, build,
    closing, drafts, header, keys, lines, members, note, pack, place, replace, sum_again, unpack,
};
use crate::drafts::{draft, signer, time};
use crate::ledger::story;

/// Receipts in the archive that is attacked.
const COUNT: usize = 5;

/// Who finds an attack.
enum Found {
    /// `archive::verify`, with nothing but the file and the key.
    InTheArchive,
    /// `verify_closing`: the file is a good archive, of another day or in other words.
    ByTheClosingReceipt,
}
use Found::{ByTheClosingReceipt, InTheArchive};

/// What the forger hands in.
struct Forgery {
    archive: Vec<u8>,
    /// Instead of the true ones.
    closing: Option<(String, Option<String>)>,
}

impl From<Vec<u8>> for Forgery {
    fn from(archive: Vec<u8>) -> Self {
        Self {
            archive,
            closing: None,
        }
    }
}

/// The archive before the forger had it, with what closes it.
struct Good {
    archive: Vec<u8>,
    lines: Vec<String>,
    head: Head,
    closing: String,
    end: String,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| Good::new(COUNT));

impl Good {
    fn new(count: usize) -> Self {
        let (archive, summary, head) = archive(&drafts(count));
        let lines = lines(&drafts(count));
        let closing = closing(&summary, &head, |_| {});
        let all: Vec<_> = lines.iter().cloned().chain([closing.clone()]).collect();
        Self {
            end: note(&all, all.len(), &signer()),
            archive,
            lines,
            head,
            closing,
        }
    }
}

fn forger() -> Signer {
    Signer::generate([66; 32])
}

/// Changes members, and nothing is mended that does not follow from the sums.
fn members_changed(change: impl FnOnce(&mut Members)) -> Forgery {
    let mut members = members(&GOOD.archive);
    change(&mut members);
    sum_again(&mut members);
    build(&members).into()
}

/// Changes the ledger's lines; the manifest, the chunks and the sums follow.
fn lines_changed(change: impl FnOnce(&mut Vec<String>)) -> Forgery {
    members_changed(|members| {
        let mut lines = lines_of(members);
        change(&mut lines);
        put_lines(members, &lines);
    })
}

fn lines_of(members: &Members) -> Vec<String> {
    let text = str::from_utf8(&members[RECEIPTS].1).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Puts other receipts into an archive of one chunk, and mends the manifest as far as it follows from them.
fn put_lines(members: &mut Members, lines: &[String]) {
    members[RECEIPTS].1 = lines
        .iter()
        .flat_map(|line| [line, "\n"])
        .collect::<String>()
        .into();
    members.retain(|(name, _)| {
        let policy = name
            .strip_prefix("policies/")
            .and_then(|name| name.strip_suffix(".json"));
        policy.is_none_or(|hash| lines.iter().any(|line| line.contains(hash)))
    });
    let receipts: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let field = |at: usize, name: &str| receipts[at][name].as_str().unwrap().to_owned();
    let mut unsigned = receipts.last().unwrap().clone();
    unsigned.as_object_mut().unwrap().remove("signature");
    let leaves: Vec<_> = lines.iter().map(leaf_hash).collect();
    let mut key_ids: Vec<_> = (0..lines.len()).map(|at| field(at, "key_id")).collect();
    key_ids.sort();
    key_ids.dedup();
    let chunk = json!({
        "name": members[RECEIPTS].0, "lines": lines.len(), "sha256": sha256_hex(&members[RECEIPTS].1),
    });
    edit_manifest(members, |manifest| {
        manifest["account_id"] = field(0, "account_id").into();
        manifest["receipts"] = lines.len().into();
        manifest["last_seq"] = (lines.len() - 1).into();
        manifest["last_hash"] = sha256_hex(jcs(&unsigned).unwrap()).into();
        manifest["root"] = hex::encode(CompactRange::of(&leaves).root()).into();
        manifest["key_ids"] = key_ids.into();
        manifest["chunks"] = json!([chunk]);
    });
}

fn edit_manifest(members: &mut Members, edit: impl FnOnce(&mut Value)) {
    let place = place(members, "manifest.json");
    let mut manifest = serde_json::from_slice(&members[place].1).unwrap();
    edit(&mut manifest);
    members[place].1 = jcs(&manifest).unwrap().into();
}

fn manifest_changed(edit: impl FnOnce(&mut Value)) -> Forgery {
    members_changed(|members| edit_manifest(members, edit))
}

/// The same drafts in a ledger that another key signs throughout.
fn resealed(drafts: &[Draft], signer: &Signer) -> Vec<String> {
    let appended = append(&Head::empty(), drafts, time("2027-01-15T08:00:00Z"), signer).unwrap();
    appended.sealed.into_iter().map(|one| one.line).collect()
}

/// The seller's ledger of another customer, `a-2`.
fn neighbours() -> Vec<String> {
    let drafts = drafts(COUNT).into_iter().map(|draft| Draft {
        account_id: "a-2".to_owned(),
        ..draft
    });
    resealed(&drafts.collect::<Vec<_>>(), &signer())
}

fn neighbours_archive() -> (Vec<u8>, ArchiveSummary) {
    let lines = neighbours();
    let checkpoint = Checkpoint {
        origin: "governor.example/receipts/a-2".to_owned(),
        size: COUNT as u64,
        root: CompactRange::of(&lines.iter().map(leaf_hash).collect::<Vec<_>>()).root(),
    };
    let mut parts = Parts::of(lines, &signer());
    parts.account_id = "a-2".to_owned();
    parts.checkpoint = checkpoint.sign(&signer()).unwrap();
    parts.checkpoints.clear();
    parts.write().unwrap()
}

/// A tar header of another type in front of the first member, with bytes of its own.
fn special(kind: tar::EntryType, name: &str, link: &str, bytes: &[u8]) -> Forgery {
    let mut header = header(name, bytes.len());
    header.set_entry_type(kind);
    // Past `set_link_name`, as the name is put.
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend(unpack(&GOOD.archive));
    pack(&tar).into()
}

fn renamed(name: &str) -> Forgery {
    members_changed(|members| members[POLICIES].0 = name.to_owned())
}

/// Each place but the first, as a separate forgery.
fn at_each(change: impl Fn(&mut Vec<String>, usize)) -> Vec<Forgery> {
    (1..COUNT)
        .map(|at| lines_changed(|lines| change(lines, at)))
        .collect()
}

/// A row: the attack, who finds it, in what words, and the forgeries.
type Attack = (&'static str, Found, &'static str, Vec<Forgery>);

fn changes() -> Vec<Attack> {
    let bytes = GOOD.lines.concat().len();
    vec![
        (
            "one byte of a receipt",
            InTheArchive,
            "`receipts/000000.jsonl` holds a bad receipt",
            // Every seventh: it is a matter of seconds then, and a property takes any byte of the tar.
            (0..bytes)
                .step_by(7)
                .map(|at| {
                    members_changed(|members| {
                        let text = &mut members[RECEIPTS].1;
                        let letters: Vec<_> = (0..text.len()).filter(|&at| text[at] != b'\n').collect();
                        text[letters[at]] ^= 1;
                        let sha256 = sha256_hex(&*text);
                        edit_manifest(members, |manifest| {
                            manifest["chunks"][0]["sha256"] = sha256.into()
                        });
                    })
                })
                .collect(),
        ),
        (
            "a receipt's words",
            InTheArchive,
            "the receipt's signature does not hold",
            vec![lines_changed(|lines| {
                lines[2] = lines[2].replacen("\"one\"", "\"two\"", 1)
            })],
        ),
        (
            "a receipt's signature left out",
            InTheArchive,
            "the receipt is not signed",
            vec![lines_changed(|lines| {
                let mut receipt: Value = serde_json::from_str(&lines[2]).unwrap();
                receipt.as_object_mut().unwrap().remove("signature");
                lines[2] = jcs(&receipt).unwrap();
            })],
        ),
        (
            "drop a receipt",
            InTheArchive,
            "breaks the rule \"seq has no gaps\"",
            (0..COUNT - 1)
                .map(|at| lines_changed(|lines| drop(lines.remove(at))))
                .collect(),
        ),
        (
            "drop a receipt and count the rest again",
            InTheArchive,
            "the receipt's signature does not hold",
            vec![lines_changed(|lines| {
                drop(lines.remove(2));
                for (at, line) in lines.iter_mut().enumerate().skip(2) {
                    *line = line.replacen(&format!("\"seq\":{}", at + 1), &format!("\"seq\":{at}"), 1);
                }
            })],
        ),
        (
            "drop the last receipts",
            InTheArchive,
            "is of 5 receipts, expected the number of receipts, ",
            (1..COUNT)
                .map(|left| lines_changed(|lines| lines.truncate(left)))
                .collect(),
        ),
        (
            "reorder",
            InTheArchive,
            "breaks the rule \"seq has no gaps\"",
            at_each(|lines, at| lines.swap(at - 1, at)),
        ),
        (
            "duplicate",
            InTheArchive,
            "breaks the rule \"seq has no gaps\"",
            at_each(|lines, at| lines.insert(at, lines[at - 1].clone())),
        ),
        (
            "a duplicate in a chunk of its own",
            InTheArchive,
            "expected 1000 receipts (1 to 1000 in the last one), found 5",
            vec![members_changed(|members| {
                let again = members[RECEIPTS].1.clone();
                let sha256 = sha256_hex(&again);
                members.insert(RECEIPTS + 1, ("receipts/000001.jsonl".to_owned(), again));
                edit_manifest(members, |manifest| {
                    let second = json!({"name": "receipts/000001.jsonl", "lines": COUNT, "sha256": sha256});
                    manifest["chunks"].as_array_mut().unwrap().push(second);
                });
            })],
        ),
        (
            "a full chunk twice",
            InTheArchive,
            "`receipts/000001.jsonl` holds a bad receipt: receipt 00000000-0000-0000-0000-000000000001 at place 1000 \
             breaks the rule \"seq has no gaps\": expected 1000, found 0",
            vec![{
                let full = usize::try_from(CHUNK_LINES).unwrap();
                let mut members = members(&Good::new(full).archive);
                let again = members[RECEIPTS].1.clone();
                members.insert(RECEIPTS + 1, ("receipts/000001.jsonl".to_owned(), again));
                sum_again(&mut members);
                build(&members).into()
            }],
        ),
    ]
}

fn accounts() -> Vec<Attack> {
    vec![
        (
            "swap accounts: a receipt of a neighbour",
            InTheArchive,
            "breaks the rule \"account_id is the ledger's\": expected a-1, found a-2",
            at_each(|lines, at| lines[at] = neighbours()[at].clone()),
        ),
        (
            "swap accounts: all receipts of a neighbour",
            InTheArchive,
            "the checkpoint of 1 receipts has the root",
            vec![members_changed(|members| put_lines(members, &neighbours()))],
        ),
        (
            "swap accounts: a neighbour's archive under this customer's name",
            InTheArchive,
            "`manifest.json`: at byte",
            vec![{
                let mut members = members(&neighbours_archive().0);
                replace(
                    &mut members,
                    "manifest.json",
                    "\"account_id\":\"a-2\"",
                    "\"account_id\":\"a-1\"",
                );
                sum_again(&mut members);
                build(&members).into()
            }],
        ),
        (
            "swap accounts: a neighbour's archive as it is",
            ByTheClosingReceipt,
            "breaks the rule \"account_id is the ledger's\": expected a-2, found a-1",
            vec![neighbours_archive().0.into()],
        ),
        (
            "swap accounts: a neighbour's archive, and a closing receipt that says so",
            ByTheClosingReceipt,
            "the receipt's signature does not hold",
            vec![Forgery {
                archive: neighbours_archive().0,
                closing: Some((GOOD.closing.replace("\"a-1\"", "\"a-2\""), None)),
            }],
        ),
    ]
}

fn replays() -> Vec<Attack> {
    let old = || Good::new(3);
    let new = &*GOOD;
    vec![
        (
            "replay an old archive",
            ByTheClosingReceipt,
            "breaks the rule \"seq has no gaps\": expected 3, found 5",
            vec![old().archive.into()],
        ),
        (
            "replay an old archive with what closed it",
            ByTheClosingReceipt,
            "the final checkpoint's size is 6, expected 4",
            vec![Forgery {
                archive: old().archive,
                closing: Some((old().closing, Some(new.end.clone()))),
            }],
        ),
        (
            "replay an old checkpoint over the first receipts",
            ByTheClosingReceipt,
            "breaks the rule \"seq has no gaps\": expected 3, found 5",
            vec![members_changed(|members| {
                put_lines(members, &new.lines[..3]);
                members[CHECKPOINT].1 = note(&new.lines, 3, &signer()).into();
            })],
        ),
        (
            "another ledger of the same length that the seller signed: a fork",
            ByTheClosingReceipt,
            "breaks the rule \"prev_hash is the predecessor's hash\"",
            vec![{
                let other: Vec<_> = drafts(COUNT - 1).into_iter().chain([draft(17)]).collect();
                archive(&other).0.into()
            }],
        ),
        (
            "earlier checkpoints left out",
            ByTheClosingReceipt,
            "its `archive_sha256` is ",
            vec![members_changed(|members| members[EARLIER].1.clear())],
        ),
        (
            "the same tar packed in other words",
            ByTheClosingReceipt,
            "its `archive_sha256` is ",
            vec![stored(&unpack(&new.archive)).into()],
        ),
        (
            "another archive, and the closing receipt mended",
            ByTheClosingReceipt,
            "the receipt's signature does not hold",
            vec![{
                let archive = members_changed(|members| members[EARLIER].1.clear()).archive;
                let mut receipt: Value = serde_json::from_str(&new.closing).unwrap();
                receipt["archive_sha256"] = sha256_hex(&archive).into();
                receipt["archive_size_bytes"] = archive.len().into();
                Forgery {
                    closing: Some((jcs(&receipt).unwrap(), None)),
                    archive,
                }
            }],
        ),
        (
            "another archive, and a closing receipt by the forger",
            ByTheClosingReceipt,
            "the receipt is signed by key ",
            vec![{
                let archive = members_changed(|members| members[EARLIER].1.clear()).archive;
                let mut closing = draft(19);
                closing.account_id = "a-1".to_owned();
                let line = append(&new.head, &[closing], time("2027-02-03T04:05:07Z"), &forger()).unwrap();
                Forgery {
                    closing: Some((line.sealed[0].line.clone(), None)),
                    archive,
                }
            }],
        ),
    ]
}

fn keys_of_others() -> Vec<Attack> {
    let (forger, theirs) = (forger(), resealed(&drafts(COUNT), &forger()));
    let trail = || {
        let rotated = Draft {
            account_id: "_system".to_owned(),
            payload: receipts::trail::rotation(&signer().public_key(), &self::forger()),
            ..draft(23)
        };
        resealed(&[rotated], &self::forger())[0].clone() + "\n"
    };
    vec![
        (
            "re-sign everything with another key",
            InTheArchive,
            "`auditor.pub` is key ",
            vec![Parts::of(theirs.clone(), &forger).write().unwrap().0.into()],
        ),
        (
            "re-sign everything, with the seller's `auditor.pub`",
            InTheArchive,
            "the checkpoint has no signature by governor.example/receipts/a-1 with key hash ",
            vec![members_changed(|members| {
                put_lines(members, &theirs);
                members[CHECKPOINT].1 = note(&theirs, COUNT, &forger).into();
                members[EARLIER].1.clear();
            })],
        ),
        (
            "re-sign the receipts",
            InTheArchive,
            "the receipt is signed by key ",
            vec![
                members_changed(|members| put_lines(members, &theirs)),
                lines_changed(|lines| {
                    let of = append(
                        &Good::new(COUNT - 1).head,
                        &drafts(COUNT)[COUNT - 1..],
                        time("2027-01-20T00:00:00Z"),
                        &forger,
                    );
                    lines[COUNT - 1] = of.unwrap().sealed[0].line.clone();
                }),
            ],
        ),
        (
            "re-sign the receipts under the seller's key id",
            InTheArchive,
            "the receipt's signature does not hold",
            vec![lines_changed(|lines| {
                *lines = theirs
                    .iter()
                    .map(|line| line.replace(forger.key_id(), signer().key_id()))
                    .collect();
            })],
        ),
        (
            "a rotation to the forger's key that he signed himself",
            InTheArchive,
            "line 1 of the key trail: `key_id` is ",
            vec![members_changed(|members| members[KEYS].1 = trail().into())],
        ),
        (
            "a rotation to the forger's key under the seller's key id",
            InTheArchive,
            "line 1 of the key trail is not good: the receipt's signature does not hold",
            vec![members_changed(|members| {
                let place = |id: &str| format!("\"key_id\":\"{id}\"");
                let line = trail().replacen(&place(forger.key_id()), &place(signer().key_id()), 1);
                members[KEYS].1 = line.into();
            })],
        ),
        (
            "the forger's `auditor.pub` alone",
            InTheArchive,
            "`auditor.pub` is key ",
            vec![members_changed(|members| {
                members[AUDITOR_PUB].1 = forger.public_key().to_pem().unwrap().into();
            })],
        ),
        (
            "the forger's checkpoint of the true ledger",
            InTheArchive,
            "the checkpoint has no signature by governor.example/receipts/a-1 with key hash ",
            vec![members_changed(|members| {
                members[CHECKPOINT].1 = note(&GOOD.lines, COUNT, &forger).into();
            })],
        ),
    ]
}

fn documents() -> Vec<Attack> {
    type Edit = fn(&mut Value);
    let edits: [Edit; 11] = [
        |manifest| manifest["account_id"] = "a-2".into(),
        |manifest| manifest["receipts"] = 4.into(),
        |manifest| manifest["first_seq"] = 1.into(),
        |manifest| manifest["last_seq"] = 5.into(),
        |manifest| manifest["last_hash"] = "0".repeat(64).into(),
        |manifest| manifest["root"] = "0".repeat(64).into(),
        |manifest| manifest["origin"] = "governor.example/receipts/a-2".into(),
        |manifest| manifest["key_ids"] = json!([]),
        |manifest| manifest["chunks"] = json!([]),
        |manifest| manifest["chunks"][0]["name"] = "receipts/000001.jsonl".into(),
        |manifest| manifest["chunk_lines"] = 5.into(),
    ];
    vec![
        (
            "edit the manifest",
            InTheArchive,
            "`manifest.json`: at byte",
            edits.into_iter().map(manifest_changed).collect(),
        ),
        (
            "edit the manifest: another format",
            InTheArchive,
            "`manifest.json`: format_version: expected 2, found 3",
            vec![manifest_changed(|manifest| manifest["format_version"] = 3.into())],
        ),
        (
            "edit the manifest: a field more",
            InTheArchive,
            "`manifest.json` is not a manifest",
            vec![manifest_changed(|manifest| manifest["note"] = "good".into())],
        ),
        (
            "edit the manifest: the archive's date, for which only the closing receipt vouches",
            ByTheClosingReceipt,
            "its `archive_sha256` is ",
            vec![manifest_changed(|manifest| {
                manifest["created_at"] = "2027-02-03T04:05:06.788Z".into()
            })],
        ),
        (
            "other bytes as the policy",
            InTheArchive,
            "its bytes must have the SHA-256 of its name",
            vec![members_changed(|members| {
                members[POLICIES].1 = br#"{"version":"9.9.9"}"#.to_vec()
            })],
        ),
        (
            "another policy under its own name",
            InTheArchive,
            "the receipt at place 1 names a policy: expected `policies/",
            vec![members_changed(|members| {
                let policy = br#"{"version":"9.9.9"}"#.to_vec();
                members[POLICIES] = (format!("policies/{}.json", sha256_hex(&policy)), policy);
            })],
        ),
        (
            "instructions that would check nothing",
            InTheArchive,
            "`SHA256SUMS`: at byte",
            vec![members_changed(|members| {
                replace(members, "VERIFY.md", "sha256sum -c", "true")
            })],
        ),
        (
            "a sum",
            InTheArchive,
            "`SHA256SUMS`: at byte",
            vec![{
                let mut members = members(&GOOD.archive);
                assert_eq!(members[MANIFEST + 1].0, "SHA256SUMS");
                members[MANIFEST + 1].1[0] ^= 1;
                build(&members).into()
            }],
        ),
    ]
}

fn packings() -> Vec<Attack> {
    let good = &*GOOD;
    let tar = unpack(&good.archive);
    let cut = |at: usize| good.archive[..at].to_vec().into();
    let length = good.archive.len();
    let kinds = [
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::Directory,
        tar::EntryType::Char,
        tar::EntryType::Fifo,
        tar::EntryType::XHeader,
        tar::EntryType::XGlobalHeader,
        tar::EntryType::GNULongName,
        tar::EntryType::GNULongLink,
        tar::EntryType::GNUSparse,
    ];
    vec![
        (
            "cut the gzip",
            InTheArchive,
            "from the archive failed",
            // In its header, its data, its checksum.
            [
                0,
                9,
                10,
                11,
                length / 3,
                length / 2,
                length - 9,
                length - 8,
                length - 1,
            ]
            .map(cut)
            .into(),
        ),
        (
            "unpacked on the way",
            InTheArchive,
            "this is the tar inside an archive, without the compression",
            vec![tar.clone().into()],
        ),
        (
            "a short text that is no tar",
            InTheArchive,
            "it is not the file that the stack stored; download it again",
            vec![b"checkpoint".to_vec().into(), vec![b'x'; 4096].into()],
        ),
        (
            "cut the tar, in a whole gzip",
            InTheArchive,
            "from the archive failed",
            [0, 511, 512, tar.len() / 2, tar.len() - 1]
                .map(|at| pack(&tar[..at]).into())
                .into(),
        ),
        (
            "cut the tar at the end of a member",
            InTheArchive,
            "expected member \"SHA256SUMS\", found \"the end of the archive\"",
            vec![{
                let members = members(&good.archive);
                build(&members[..=MANIFEST].to_vec()).into()
            }],
        ),
        (
            "a second archive behind the first",
            InTheArchive,
            "nothing behind the gzip stream",
            vec![[&good.archive[..], &good.archive].concat().into()],
        ),
        (
            "a policy under another name",
            InTheArchive,
            "the receipt at place 1 names a policy: expected `policies/",
            [
                "a",
                "policies",
                "policies\\..\\x",
                "receipts/000001.json",
                "policies/x",
            ]
            .map(renamed)
            .into(),
        ),
        (
            "path traversal: out of the folder",
            InTheArchive,
            "expected member \"manifest.json\", found \"",
            ["../x", "..", "/etc/passwd", "policies/../../x"]
                .map(renamed)
                .into(),
        ),
        (
            "path traversal: a name in other letters",
            InTheArchive,
            "the header of \"",
            [
                "./policies/x",
                "policies//x",
                "policies/./x",
                "policies\0/../../x",
            ]
            .map(renamed)
            .into(),
        ),
        (
            "path traversal: a link, a folder, a device, a longer name",
            InTheArchive,
            " is not a plain file but of tar type ",
            kinds
                .map(|kind| special(kind, "checkpoint", "../../etc/passwd", b"../../etc/passwd\0"))
                .into(),
        ),
    ]
}

/// The same tar, not deflated, under the header that archives have.
fn stored(tar: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), flate2::Compression::none());
    io::Write::write_all(&mut gzip, tar).unwrap();
    let mut bytes = gzip.finish().unwrap();
    bytes[8] = 0;
    bytes
}

#[test]
fn each_attack_is_found_and_named() {
    let good = &*GOOD;
    let verified = verify(&*good.archive, &keys(), Limits::default()).unwrap();
    verify_closing(&good.closing, Some(good.end.as_bytes()), &verified).unwrap();

    let attacks = [
        changes(),
        accounts(),
        replays(),
        keys_of_others(),
        documents(),
        packings(),
    ];
    let mut missed = Vec::new();
    for (attack, found, expected, forgeries) in attacks.into_iter().flatten() {
        assert!(!forgeries.is_empty(), "{attack}: nothing was tried");
        for (at, forgery) in forgeries.into_iter().enumerate() {
            assert_ne!(
                forgery.archive, good.archive,
                "{attack}, {at}: nothing was changed"
            );
            for threads in [0, 2] {
                let limits = Limits {
                    threads,
                    ..Limits::default()
                };
                let said = match (&found, verify(&*forgery.archive, &keys(), limits)) {
                    (InTheArchive, Err(error)) => story(&error),
                    (InTheArchive, Ok(_)) => "it is good".to_owned(),
                    (ByTheClosingReceipt, Ok(verified)) => close(good, &forgery, &verified),
                    (ByTheClosingReceipt, Err(error)) => format!("found too early: {}", story(&error)),
                };
                if !said.contains(expected) {
                    missed.push(format!("{attack}, {at}: {said:?} does not say {expected:?}"));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

fn close(good: &Good, forgery: &Forgery, verified: &Verified) -> String {
    let (line, end) = match &forgery.closing {
        Some((line, end)) => (line, end.as_deref()),
        None => (&good.closing, None),
    };
    match verify_closing(line, end.map(str::as_bytes), verified) {
        Ok(_) => "it closes".to_owned(),
        Err(error) => story(&error),
    }
}

/// Bytes that a bomb unpacks to, beyond what stands in front of them.
const BOMB: u64 = 1 << 30;

/// Counts what is taken from a file. Deflated zeros are a thousandth of what they unpack to, so what was taken bounds
/// what the reader can have held.
struct Counted<'a> {
    bytes: &'a [u8],
    taken: &'a Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.taken.set(self.taken.get() + read);
        Ok(read)
    }
}

/// A gzip of these bytes and a GiB of them repeated, without a GiB being held or deflated: deflated once more behind
/// themselves, they are the same bits each time.
fn bomb(front: &[u8], repeated: &[u8]) -> Vec<u8> {
    const PIECE: u64 = 1 << 20;
    let piece = repeated.repeat(PIECE as usize / repeated.len());
    let mut gzip = flate2::GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), flate2::Compression::default());
    let mut flushed = |bytes: &[u8]| {
        io::Write::write_all(&mut gzip, bytes).unwrap();
        io::Write::flush(&mut gzip).unwrap();
        gzip.get_ref().len()
    };
    flushed(front);
    let first = flushed(&piece);
    let second = flushed(&piece);
    let mut bytes = gzip.get_ref()[..second].to_vec();
    let again = bytes[first..].to_vec();
    (2..BOMB / PIECE).for_each(|_| bytes.extend_from_slice(&again));
    bytes
}

/// The good archive's tar up to a member, whose header says that it has a GiB.
fn up_to(member: usize) -> Vec<u8> {
    let mut good = members(&GOOD.archive);
    let name = good[member].0.clone();
    good.truncate(member);
    let mut tar = if good.is_empty() {
        Vec::new()
    } else {
        unpack(&build(&good))
    };
    tar.truncate(tar.len().saturating_sub(1024));
    tar.extend_from_slice(header(&name, BOMB as usize).as_bytes());
    tar
}

#[test]
fn bombs_are_put_out_before_they_unpack() {
    let whole = unpack(&GOOD.archive);
    // Of a chunk with nothing in it, as many as go into a GiB.
    let empty = header("receipts/000000.jsonl", 0).as_bytes().to_vec();
    let mut receipts = up_to(RECEIPTS);
    receipts.truncate(receipts.len() - 512);
    let defaults = Limits::default();
    let tight = Limits {
        unpacked_bytes: 1 << 20,
        ..defaults
    };
    let bombs: [(&str, Vec<u8>, Limits, &str); 8] = [
        (
            "a line",
            bomb(&up_to(RECEIPTS), &[0]),
            defaults,
            "`receipts/000000.jsonl`: bytes in a line above the limit of 65536",
        ),
        (
            "lines",
            bomb(&up_to(RECEIPTS), b"\n"),
            defaults,
            "the receipt at place 0 is not good",
        ),
        (
            "a document",
            bomb(&up_to(CHECKPOINT), b" "),
            defaults,
            "`checkpoint`: bytes above the limit of 16777216",
        ),
        (
            "a policy",
            bomb(&up_to(POLICIES), b" "),
            defaults,
            ".json`: bytes above the limit of 16777216",
        ),
        (
            "members",
            bomb(&receipts, &empty),
            defaults,
            "`receipts/000000.jsonl`: expected 1000 receipts (1 to 1000 in the last one), found 0",
        ),
        (
            "nothing but zeros",
            bomb(&[], &[0]),
            defaults,
            "found \"the end of the archive\"",
        ),
        (
            "zeros behind the tar",
            bomb(&whole, &[0]),
            defaults,
            "nothing behind the tar",
        ),
        (
            "more than there is room for",
            bomb(&up_to(RECEIPTS), &[0]),
            tight,
            "`receipts/000000.jsonl`: bytes unpacked above the limit of 1048576",
        ),
    ];
    for (what, bytes, limits, expected) in bombs {
        for threads in [0, 2] {
            let taken = Cell::new(0);
            let reader = Counted {
                bytes: &bytes,
                taken: &taken,
            };
            let error = verify(reader, &keys(), Limits { threads, ..limits }).expect_err("a bomb");
            assert!(
                story(&error).contains(expected),
                "{what}: {:?} does not say {expected:?}",
                story(&error)
            );
            assert!(
                taken.get() <= 64 << 10,
                "{what}: {} bytes of {} were taken",
                taken.get(),
                bytes.len()
            );
        }
    }
}
