//! What an auditor does without our code: `jq`, `openssl`, `sha256sum`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use flate2::read::GzDecoder;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use crate::archive::{archive, drafts};
use crate::checkpoint::checkpoint;
use crate::drafts::{any_drafts, ledger, signer};

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

/// The `sh` blocks of VERIFY.md, run in the unpacked archive as one script.
fn follow_instructions(folder: &Path) -> Output {
    for tool in ["jq", "openssl", "sha256sum", "base64"] {
        assert!(
            run(Command::new(tool).arg("--version"), b"")
                .status
                .code()
                .is_some(),
            "{tool} must be installed"
        );
    }
    let text = std::fs::read_to_string(folder.join("VERIFY.md")).unwrap();
    let script: String = text
        .split("```sh\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert_eq!(script.lines().count(), 6, "{script}");
    run(
        Command::new("sh").args(["-e", "-c", &script]).current_dir(folder),
        b"",
    )
}

fn unpack() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tar::Archive::new(GzDecoder::new(&*archive(&drafts(5)).0))
        .unpack(folder.path())
        .unwrap();
    folder
}

#[test]
fn the_instructions_in_the_archive_work() {
    let folder = unpack();
    let output = follow_instructions(folder.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said.matches(": OK").count(), 4, "{said}");
    assert!(said.contains("Signature Verified Successfully"), "{said}");
    let expected = ledger(&drafts(5)).0[0].hash.clone();
    assert!(
        said.lines()
            .any(|line| line == format!("{expected}  receipt.signed")),
        "{said}"
    );
}

#[test]
fn the_instructions_find_a_change() {
    for mend_sums in [false, true] {
        let folder = unpack();
        let chunk = folder.path().join("receipts/000000.jsonl");
        let text = std::fs::read_to_string(&chunk).unwrap();
        std::fs::write(
            &chunk,
            text.replacen("\"duration_ms\":12", "\"duration_ms\":13", 1),
        )
        .unwrap();
        if mend_sums {
            let members = "sha256sum auditor.pub receipts/* policies/* manifest.json > SHA256SUMS";
            assert!(
                run(
                    Command::new("sh")
                        .args(["-c", members])
                        .current_dir(folder.path()),
                    b""
                )
                .status
                .success()
            );
        }
        let output = follow_instructions(folder.path());
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{said}");
        let expected = if mend_sums {
            "Signature Verification Failure"
        } else {
            "receipts/000000.jsonl: FAILED"
        };
        assert!(
            said.contains(expected),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
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
