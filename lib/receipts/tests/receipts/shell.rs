//! What an auditor does without our code: `jq`, `openssl`, `sha256sum`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use receipts::{Draft, Head, Signer, append};

use crate::archive::{Parts, drafts, lines, note};
use crate::checkpoint::checkpoint;
use crate::drafts::{any_drafts, draft, ledger, signer, time};

/// Runs a command; a missing tool fails the test, it does not skip it.
#[track_caller]
fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} must be installed for this test: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Beside the reading, so that neither side waits on a full pipe. A tool that ends early closes its input.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

/// The three commands of VERIFY.md in the unpacked archive, with this key: what each said, and whether it held.
fn follow_instructions(folder: &Path, key: &Path) -> Vec<(bool, String)> {
    let text = std::fs::read_to_string(folder.join("VERIFY.md")).unwrap();
    let blocks: Vec<_> = text
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert_eq!(blocks.len(), 3, "{text}");
    let follow = |block: &&str| {
        let output = run(
            Command::new("sh")
                .args(["-c", block])
                .env("KEY", key)
                .current_dir(folder),
            b"",
        );
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    blocks.iter().map(follow).collect()
}

struct Unpacked {
    folder: tempfile::TempDir,
    key: tempfile::NamedTempFile,
}

impl Unpacked {
    fn of(parts: &Parts, trusted: &Signer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (bytes, _) = parts.write().unwrap();
        tar::Archive::new(GzDecoder::new(&*bytes))
            .unpack(folder.path())
            .unwrap();
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), trusted.public_key().to_pem().unwrap()).unwrap();
        Self { folder, key }
    }

    fn follow(&self) -> Vec<(bool, String)> {
        follow_instructions(self.folder.path(), self.key.path())
    }

    /// Changes the lines of the receipts; mends the sums, as a forger would.
    fn forge(&self, change: impl FnOnce(&mut Vec<String>)) {
        let chunk = self.folder.path().join("receipts/000000.jsonl");
        let mut lines: Vec<String> = std::fs::read_to_string(&chunk)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        change(&mut lines);
        let text: String = lines.into_iter().map(|line| line + "\n").collect();
        std::fs::write(&chunk, text).unwrap();
        self.mend();
    }

    fn mend(&self) {
        let mend = "sha256sum $(cut -c 67- SHA256SUMS) > sums; mv sums SHA256SUMS";
        let mended = run(
            Command::new("sh")
                .args(["-e", "-c", mend])
                .current_dir(self.folder.path()),
            b"",
        );
        assert!(mended.status.success());
    }
}

fn good() -> Unpacked {
    Unpacked::of(&Parts::of(lines(&drafts(5)), &signer()), &signer())
}

#[test]
fn the_three_commands_in_the_archive_verify_it() {
    for count in [1, 2, 5, 1_234] {
        let unpacked = Unpacked::of(&Parts::of(lines(&drafts(count)), &signer()), &signer());
        let [signed, whole, one] = <[_; 3]>::try_from(unpacked.follow()).unwrap();
        assert!(signed.0 && whole.0 && one.0, "{signed:?}\n{whole:?}\n{one:?}");
        assert!(
            signed.1.contains(&format!("receipts/a-1\n{count}\n")),
            "{}",
            signed.1
        );
        assert!(whole.1.matches(": OK").count() >= 7, "{}", whole.1);
        for said in [&signed.1, &one.1] {
            assert!(said.contains("Signature Verified Successfully"), "{said}");
        }
    }
}

/// Which of the three commands fail on an altered archive.
#[track_caller]
fn check(unpacked: &Unpacked, expected: [bool; 3]) {
    let followed = unpacked.follow();
    let held: Vec<_> = followed.iter().map(|(held, _)| *held).collect();
    assert_eq!(held, expected, "{followed:#?}");
}

#[test]
fn the_three_commands_find_what_was_altered() {
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change, [bool; 3]); 8] = [
        (
            "a byte of the last receipt",
            |lines| lines[4] = lines[4].replacen("\"duration_ms\":12", "\"duration_ms\":13", 1),
            [true, false, false],
        ),
        (
            "a byte of another receipt",
            |lines| lines[1] = lines[1].replacen("\"duration_ms\":12", "\"duration_ms\":13", 1),
            [true, false, true],
        ),
        ("dropped", |lines| drop(lines.remove(2)), [true, false, true]),
        ("reordered", |lines| lines.swap(1, 2), [true, false, true]),
        (
            "duplicated",
            |lines| lines.insert(2, lines[2].clone()),
            [true, false, true],
        ),
        ("truncated", |lines| lines.truncate(3), [true, false, true]),
        (
            "of another account",
            |lines| {
                let of = |draft: Draft| Draft {
                    account_id: "a-2".to_owned(),
                    ..draft
                };
                *lines = self::lines(&drafts(5).into_iter().map(of).collect::<Vec<_>>());
            },
            [true, false, true],
        ),
        (
            "signed by another key",
            |lines| {
                let signed = append(&Head::empty(), &drafts(5), time("2027-01-01T00:00:00Z"), &thief());
                *lines = signed.unwrap().sealed.into_iter().map(|one| one.line).collect();
            },
            [true, false, false],
        ),
    ];
    for (what, change, expected) in changes {
        println!("{what}");
        let unpacked = good();
        unpacked.forge(change);
        check(&unpacked, expected);
    }
    // Without mended sums the sums tell.
    for member in [
        "manifest.json",
        "keys.jsonl",
        "checkpoints.jsonl",
        "VERIFY.md",
        "auditor.pub",
    ] {
        let unpacked = good();
        let path = unpacked.folder.path().join(member);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "\n").unwrap();
        check(&unpacked, [true, false, true]);
    }
    let unpacked = good();
    let checkpoint = unpacked.folder.path().join("checkpoint");
    let text = std::fs::read_to_string(&checkpoint).unwrap();
    std::fs::write(&checkpoint, text.replacen("\n5\n", "\n4\n", 1)).unwrap();
    unpacked.mend();
    check(&unpacked, [false, false, true]);
}

/// A forger who leaves files for the commands to find.
#[test]
fn the_three_commands_are_not_misled_by_planted_files() {
    let unpacked = good();
    unpacked.forge(|lines| drop(lines.remove(2)));
    // The tree of the forged receipts, as if it were the signed one, and a sum that does not hold.
    unpacked.follow();
    let folder = unpacked.folder.path();
    std::fs::copy(folder.join("tree.found"), folder.join("tree.signed")).unwrap();
    let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    std::fs::write(folder.join("SHA256SUMS"), sums.replacen('0', "1", 1)).unwrap();
    check(&unpacked, [true, false, true]);

    // A key of his own under the name of the trusted one, and under its own: which the third command says it took.
    for (named, taken) in [(signer(), false), (thief(), true)] {
        let unpacked = good();
        unpacked.forge(|lines| {
            let signed = append(&Head::empty(), &drafts(5), time("2027-01-01T00:00:00Z"), &thief());
            *lines = signed.unwrap().sealed.into_iter().map(|one| one.line).collect();
            let named = format!("\"key_id\":\"{}\"", named.key_id());
            let own = format!("\"key_id\":\"{}\"", thief().key_id());
            for line in lines {
                *line = line.replacen(&own, &named, 1);
            }
        });
        let rotated = receipts::trail::rotation(&thief().public_key(), &thief());
        let mut planted = serde_json::to_value(rotated).unwrap();
        planted["new_key_id"] = named.key_id().into();
        let path = unpacked.folder.path().join("keys.jsonl");
        std::fs::write(path, planted.to_string() + "\n").unwrap();
        unpacked.mend();
        let followed = unpacked.follow();
        let held: Vec<_> = followed.iter().map(|(held, _)| *held).collect();
        assert_eq!(held, [true, false, taken], "{followed:#?}");
        assert_eq!(
            followed[2].1.contains(&format!("key {}\n", thief().key_id())),
            taken
        );
    }
}

fn thief() -> Signer {
    Signer::generate([1; 32])
}

/// A whole archive made again under another key agrees with itself, and not with the key the auditor trusts.
#[test]
fn the_three_commands_need_the_key_that_is_trusted() {
    let signed = append(&Head::empty(), &drafts(5), time("2027-01-01T00:00:00Z"), &thief()).unwrap();
    let lines: Vec<_> = signed.sealed.into_iter().map(|one| one.line).collect();
    check(
        &Unpacked::of(&Parts::of(lines.clone(), &thief()), &signer()),
        [false, true, false],
    );
    check(
        &Unpacked::of(&Parts::of(lines, &thief()), &thief()),
        [true, true, true],
    );
}

#[test]
fn the_three_commands_know_the_previous_key() {
    let rotated = Draft {
        account_id: "_system".to_owned(),
        payload: receipts::trail::rotation(&signer().public_key(), &thief()),
        ..draft(23)
    };
    let trail = append(
        &Head::empty(),
        &[rotated],
        time("2027-01-20T00:00:00Z"),
        &signer(),
    )
    .unwrap();
    let mut parts = Parts::of(lines(&drafts(2)), &signer());
    parts.checkpoint = note(&parts.lines, 2, &thief());
    parts.public_key = thief().public_key();
    parts.key_trail = vec![trail.sealed[0].line.clone()];
    check(&Unpacked::of(&parts, &thief()), [true, true, true]);
}

/// A checkpoint's signature is over its text as it stands, so `sed` and `openssl` are enough.
#[test]
fn openssl_verifies_a_checkpoint() {
    const SCRIPT: &str = r#"
        sed '/^$/,$d' checkpoint > checkpoint.text
        sed '1,/^$/d' checkpoint | cut -d ' ' -f 3 | base64 -d | tail -c 64 > checkpoint.signature
        openssl pkeyutl -verify -rawin -pubin -inkey auditor.pub -in checkpoint.text -sigfile checkpoint.signature
    "#;
    let good = checkpoint().sign(&signer()).unwrap();
    for (note, expected) in [
        (good.clone(), "Signature Verified Successfully"),
        (
            good.replacen("\n3\n", "\n4\n", 1),
            "Signature Verification Failure",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("checkpoint"), &note).unwrap();
        std::fs::write(
            folder.path().join("auditor.pub"),
            signer().public_key().to_pem().unwrap(),
        )
        .unwrap();
        let output = run(
            Command::new("sh")
                .args(["-e", "-c", SCRIPT])
                .current_dir(folder.path()),
            b"",
        );
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains(expected),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.success(), note == good);
    }
}

/// The rule behind the rules for values: `jq -cS` prints a ledger as it is, so its bytes are the signed ones.
#[test]
fn jq_prints_every_line_as_it_is() {
    let drafts = any_drafts(400..401)
        .new_tree(&mut TestRunner::deterministic())
        .unwrap()
        .current();
    let lines: String = ledger(&drafts)
        .0
        .into_iter()
        .map(|sealed| sealed.line + "\n")
        .collect();
    let output = run(Command::new("jq").args(["-cS", "."]), lines.as_bytes());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    for (expected, found) in lines.lines().zip(printed.lines()) {
        assert_eq!(expected, found);
    }
    assert_eq!(lines, printed);
}
