//! `ggen` from outside: the built binary, real files, real HTTP on 127.0.0.1.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on should stop loudly"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use receipts::receipt::{ActionOutcome, Draft, Payload};
use receipts::{Head, Signer};
use serde_json::{Value, json};
use tempfile::TempDir;

// The published examples of Standard Webhooks and of GitHub's documentation.
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const STANDARD_BODY: &str = r#"{"test": 2432232314}"#;
const STANDARD_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
const GITHUB_SECRET: &str = "It's a Secret to Everybody";
const GITHUB_BODY: &str = "Hello, World!";
const GITHUB_SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

/// `ggen` with nothing in its environment but both secrets.
fn ggen() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggen"));
    command
        .env_clear()
        .env("STANDARD_WEBHOOK_SECRET", STANDARD_SECRET)
        .env("GITHUB_WEBHOOK_SECRET", GITHUB_SECRET);
    command
}

fn run(arguments: &[&str]) -> Output {
    ggen().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{arguments:?}: {}{}",
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

/// Checks the exit code, that stderr tells `problem`, and that it does so without a panic.
#[track_caller]
fn check_failure(arguments: &[&str], code: i32, problem: &str) {
    let output = run(arguments);
    let told = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    assert!(told.contains(problem), "{arguments:?}: {told}");
    for word in LIBRARY_WORDS {
        assert!(!told.contains(word), "{arguments:?} says {word:?}: {told}");
    }
}

/// Words of the libraries and the language, which nobody who runs a command should have to know.
const LIBRARY_WORDS: [&str; 14] = [
    "invalid type",
    "invalid length",
    "invalid value:",
    "struct ",
    " enum",
    "untagged",
    "Option<",
    "Some(",
    "Policy in",
    "budget",
    "HeaderMap",
    "u64",
    "i64",
    "panicked",
];

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and gives its path as text.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

// ---- help and usage

#[test]
fn help_shows_groups_and_exit_codes() {
    let help = succeed(&["--help"]);
    for part in [
        "Usage: ggen",
        "Operate a stack:",
        "Verify (offline",
        "Development:",
        "Exit codes:",
        "could not tell",
    ] {
        assert!(help.contains(part), "{part} is not in\n{help}");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in [
        &["handler"][..],
        &["audit"],
        &["canonicalize"],
        &["checkpoint"],
        &["deliveries", "list"],
        &["deliveries", "retry"],
        &["deliveries", "show"],
        &["escalations"],
        &["export-receipts"],
        &["hash"],
        &["prove"],
        &["redrive"],
        &["resolve"],
        &["scale"],
        &["keys", "producer"],
        &["keys", "revoke"],
        &["keys", "rotate"],
        &["keys", "trail"],
        &["policy", "compile"],
        &["policy", "deploy"],
        &["send-signal"],
        &["switches", "show"],
        &["switches", "set"],
        &["tenants", "list"],
        &["tenants", "show"],
        &["verify-archive"],
        &["verify-receipt"],
        &["keys", "generate"],
        &["keys", "show"],
        &["keys", "secret"],
        &["webhook", "sign"],
        &["webhook", "verify"],
    ] {
        let help = succeed(&[command, &["--help"]].concat());
        assert!(
            help.contains("Usage: ggen") && help.contains("--format"),
            "{command:?}:\n{help}"
        );
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    check_failure(&[], 2, "Usage: ggen");
    check_failure(&["no-such-command"], 2, "unrecognized subcommand");
    check_failure(&["webhook", "sign"], 2, "--body <FILE>");
    check_failure(
        &["webhook", "sign", "--body", "a", "--event", "b"],
        2,
        "cannot be used with",
    );
    check_failure(&["webhook", "verify", "--body", "a"], 2, "--headers <FILE>");
    check_failure(&["webhook", "sign", "--body", "a", "--curl"], 2, "--url <URL>");
    check_failure(
        &["webhook", "sign", "--body", "/no/such/file"],
        2,
        "caused by: No such file",
    );
    check_failure(
        &["webhook", "sign", "--body", "-", "--secret-env", "NOWHERE"],
        2,
        "NOWHERE is not set",
    );
    check_failure(
        &[
            "webhook",
            "sign",
            "--body",
            "-",
            "--secret-env",
            "GITHUB_WEBHOOK_SECRET",
        ],
        2,
        "whsec_",
    );
}

#[test]
fn commands_that_need_a_stack_say_what_is_missing() {
    let send = [
        "send-signal",
        "--account-id",
        "customer-123",
        "--template",
        "restart-service",
    ];
    check_failure(&send, 2, "environment variable TENANTS_TABLE is missing");
    check_failure(
        &["export-receipts", "--system"],
        2,
        "environment variable TENANTS_TABLE is missing",
    );
    check_failure(
        &["policy", "deploy", POLICY],
        2,
        "environment variable POLICY_UPGRADE_FUNCTION is missing",
    );
    check_failure(
        &["switches", "show"],
        2,
        "environment variable CONTROL_BUCKET is missing",
    );
    check_failure(&["switches", "set", "armed=true", "--who", "me"], 2, "is missing");
    check_failure(
        &["switches", "set", "armed=maybe", "--who", "me"],
        2,
        "expected armed",
    );
    check_failure(&["switches", "set", "armed=true"], 2, "--who <NAME>");
    let long = "x".repeat(60_000);
    for who in ["", " ", "me\nsomebody else", &long] {
        let texts = "printable characters on one line";
        check_failure(&["switches", "set", "armed=true", "--who", who], 2, texts);
        let revoke = ["keys", "revoke", "--key-id", "0123456789abcdef", "--reason", who];
        check_failure(&revoke, 2, texts);
    }
    for (changes, problem) in [
        (["armed=true", "armed=false"], "armed is given twice"),
        (
            ["armed=true", "disabled_templates=a b,,"],
            "\"a b\" is not a template's name",
        ),
        (
            ["armed=true", "disabled_templates=a,"],
            "\"\" is not a template's name",
        ),
    ] {
        let set = ["switches", "set", changes[0], changes[1], "--who", "me"];
        check_failure(&set, 2, problem);
    }
    for list in [&["tenants", "list"][..], &["tenants", "list", "--state", "busy"]] {
        check_failure(list, 2, "environment variable TENANTS_TABLE is missing");
    }
    check_failure(
        &["tenants", "show", "--account-id", "customer-123"],
        2,
        "environment variable TENANTS_TABLE is missing",
    );
    check_failure(&["tenants", "show"], 2, "--account-id <ID>");
    check_failure(&["tenants", "show", "--account-id", ""], 2, "account_id is empty");
    check_failure(
        &["tenants", "show", "--account-id", "a", "--receipts", "1001"],
        2,
        "1001 is not in 0..=1000",
    );
    check_failure(
        &["tenants", "list", "--state", "gone"],
        2,
        "active, busy, unsettled, absent, decommissioned",
    );
    check_failure(&["tenants", "list", "--limit", "0"], 2, "0 is not in 1..=100000");
    check_failure(
        &["tenants", "list", "--format", "csv"],
        2,
        "csv is for export-receipts",
    );
    check_failure(&["export-receipts", "--account-id", ""], 2, "account_id is empty");
    check_failure(&["export-receipts"], 2, "--account-id <ID>|--system");
    check_failure(
        &["export-receipts", "--system", "--format", "human"],
        2,
        "json, jsonl or csv, not human",
    );
    check_failure(
        &[
            "export-receipts",
            "--system",
            "--format",
            "csv",
            "--from",
            "2026-11-21",
        ],
        2,
        "environment variable TENANTS_TABLE is missing",
    );
    let key = Folder::new().file("auditor.pub", "");
    for command in [&["audit", "--system"][..], &["checkpoint", "--system"]] {
        check_failure(command, 2, "--public-key <FILE>");
    }
    check_failure(&["prove", "--public-key", &key], 2, "--receipt-id <UUID>");
    check_failure(
        &["verify-receipt", "--public-key", &key],
        2,
        "--receipt <FILE>|--receipt-id <UUID>",
    );
    check_failure(
        &["keys", "trail"],
        2,
        "environment variable TENANTS_TABLE is missing",
    );
    check_failure(
        &[&send[..], &["--parameters", "[]"]].concat(),
        2,
        "expected an object, found an array",
    );
    check_failure(&[&send[..], &["--action-id", "a b"]].concat(), 2, "[A-Za-z0-9_-]");
    check_failure(
        &[&send[..], &["--count", "0"]].concat(),
        2,
        "0 is not in 1..=100000",
    );
    check_failure(
        &[&send[..], &["--count", "2", "--action-id", "a"]].concat(),
        2,
        "cannot be used with",
    );
}

#[test]
fn ranges_that_hold_nothing_are_wrong_usage() {
    let export = ["export-receipts", "--system", "--from"];
    for (from, to) in [
        ("2026-11-21", "2026-11-21"),
        ("2026-11-22", "2026-11-21"),
        ("2026-11-21T00:00:00.001Z", "2026-11-21"),
        ("2026-11-21T02:00:00+02:00", "2026-11-21T00:00:00Z"),
    ] {
        check_failure(
            &[&export[..], &[from, "--to", to]].concat(),
            2,
            "is not before --to",
        );
    }
    for from in ["yesterday", "2026-02-30", "2026-11-21T08:30:00"] {
        check_failure(&[&export[..], &[from]].concat(), 2, "neither an RFC 3339 time");
    }
}

#[test]
fn only_receipts_are_written_as_csv() {
    for command in [
        &["keys", "secret"][..],
        &["switches", "show"],
        &["canonicalize"],
        &["hash"],
        &["policy", "compile", POLICY],
    ] {
        check_failure(
            &[command, &["--format", "csv"]].concat(),
            2,
            "--format csv is for export-receipts",
        );
    }
}

#[test]
fn a_reader_who_stops_early_is_no_error() {
    let mut child = ggen()
        .args(["keys", "secret"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

// ---- webhooks

#[track_caller]
fn check_signature(provider: &str, body: &str, id: &str, header: &str, signature: &str) {
    let folder = Folder::new();
    let body = folder.file("body", body);
    let common = ["--provider", provider, "--body", &body, "--at", "1614265330"];
    let headers = succeed(&[&["webhook", "sign", "--id", id][..], &common].concat());
    assert!(
        headers
            .lines()
            .any(|line| line == format!("{header}: {signature}")),
        "{headers}"
    );

    let json = succeed(&[&["webhook", "sign", "--id", id, "--format", "json"][..], &common].concat());
    let object: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(object[header], signature);

    for headers in [headers, json] {
        let headers = folder.file("headers", headers);
        let verify = [&["webhook", "verify", "--headers", &headers][..], &common].concat();
        assert_eq!(succeed(&verify), format!("VERIFIED: {id}\n"));
        std::fs::write(
            &headers,
            std::fs::read_to_string(&headers).unwrap().replace(id, "other"),
        )
        .unwrap();
        // GitHub does not sign the delivery id.
        if provider == "standard" {
            check_failure(&verify, 1, "NOT VERIFIED: no signature matches");
        }
        std::fs::write(&headers, "").unwrap();
        check_failure(&verify, 1, "is missing");
        std::fs::write(&headers, "no colon").unwrap();
        check_failure(&verify, 2, "is not a header");
    }
}

#[test]
fn published_signatures() {
    let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    check_signature(
        "standard",
        STANDARD_BODY,
        id,
        "webhook-signature",
        STANDARD_SIGNATURE,
    );
    check_signature(
        "github",
        GITHUB_BODY,
        "d-1",
        "x-hub-signature-256",
        GITHUB_SIGNATURE,
    );
}

#[test]
fn an_old_signature_is_not_verified_unless_asked_at_its_time() {
    let folder = Folder::new();
    let body = folder.file("body", STANDARD_BODY);
    let headers = folder.file(
        "headers",
        succeed(&["webhook", "sign", "--body", &body, "--at", "1614265330"]),
    );
    let verify = ["webhook", "verify", "--body", &body, "--headers", &headers];
    check_failure(
        &verify,
        1,
        "NOT VERIFIED: header webhook-timestamp is more than 300 s from now",
    );
    succeed(&[&verify[..], &["--at", "1614265331"]].concat());
}

#[track_caller]
fn check_event(provider: &str, event: &Value) {
    let folder = Folder::new();
    let path = folder.file("event.json", event.to_string());
    let fresh = succeed(&["webhook", "sign", "--provider", provider, "--event", &path]);
    let signed: Value = serde_json::from_str(&fresh).unwrap();
    for kept in ["body", "isBase64Encoded", "rawPath", "version"] {
        assert_eq!(signed[kept], event[kept], "{kept}");
    }
    assert_eq!(signed["headers"]["host"], "example.com");
    assert!(
        signed["headers"]
            .as_object()
            .unwrap()
            .keys()
            .all(|name| *name == name.to_lowercase()),
        "{fresh}"
    );
    let mut tampered = signed;
    tampered["body"] = json!("e30=");
    let fresh = folder.file("fresh.json", fresh);
    let verify = ["webhook", "verify", "--provider", provider, "--event", &fresh];
    assert!(succeed(&verify).starts_with("VERIFIED: "));
    std::fs::write(&fresh, tampered.to_string()).unwrap();
    check_failure(&verify, 1, "NOT VERIFIED: no signature matches");
}

#[test]
fn events_are_signed_anew() {
    for provider in ["standard", "github"] {
        let headers = json!({ "Host": "example.com", "Webhook-Id": "stale", "webhook-timestamp": "1",
            "X-Hub-Signature-256": "sha256=00" });
        check_event(
            provider,
            &json!({ "version": "2.0", "rawPath": "/webhooks/entitlement", "headers": headers,
            "body": "{\"type\":\"entitlement.created\"}", "isBase64Encoded": false }),
        );
        check_event(
            provider,
            &json!({ "version": "2.0", "rawPath": "/webhooks/entitlement", "headers": headers,
            "body": "SGVsbG8sIFdvcmxkIQ==", "isBase64Encoded": true }),
        );
    }
}

#[test]
fn events_that_are_none_are_named() {
    let folder = Folder::new();
    for (text, problem) in [
        ("{", "is not JSON"),
        ("[]", "it is not an object"),
        ("{}", "it has no text named body"),
        ("null", "it is not an object"),
        (r#"{"body":"!","isBase64Encoded":true}"#, "its body is not base64"),
    ] {
        let path = folder.file("event.json", text);
        check_failure(&["webhook", "sign", "--event", &path], 2, problem);
    }
}

#[test]
fn curl_commands_post_the_signed_bytes() {
    let folder = Folder::new();
    let body = folder.file("it's a body.json", STANDARD_BODY);
    let command = succeed(&[
        "webhook",
        "sign",
        "--body",
        &body,
        "--curl",
        "--url",
        "http://127.0.0.1/webhooks",
    ]);
    assert!(command.contains("webhook-signature: v1,"), "{command}");
    // A shell splits it into the words that curl should get.
    let script = command.replacen("curl", "printf '[%s]'", 1);
    let words = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(
        stdout(&words).ends_with(&format!("[--data-binary][@{body}]")),
        "{}",
        stdout(&words)
    );
}

#[test]
fn bodies_no_receiver_takes_are_not_signed() {
    let folder = Folder::new();
    let body = folder.file("body", vec![b' '; 256 * 1024 + 1]);
    check_failure(
        &["webhook", "sign", "--body", &body],
        2,
        "larger than 262144 bytes",
    );
    // Of an event the body counts, however much is around it.
    for (text, encoded) in [
        ("\u{1}".repeat(256 * 1024), false),
        (STANDARD.encode([b'x'; 256 * 1024]), true),
    ] {
        let event = json!({ "version": "2.0", "headers": {}, "body": text, "isBase64Encoded": encoded });
        let path = folder.file("event.json", event.to_string());
        assert!(std::fs::metadata(&path).unwrap().len() > 256 * 1024);
        let fresh = folder.file("fresh.json", succeed(&["webhook", "sign", "--event", &path]));
        assert!(succeed(&["webhook", "verify", "--event", &fresh]).starts_with("VERIFIED: "));
    }
    let event = json!({ "version": "2.0", "headers": {}, "body": STANDARD.encode([b'x'; 256 * 1024 + 1]), "isBase64Encoded": true });
    let path = folder.file("event.json", event.to_string());
    let problem = "the body in ";
    check_failure(&["webhook", "sign", "--event", &path], 2, problem);
    check_failure(
        &["webhook", "verify", "--event", &path],
        2,
        "is larger than 262144 bytes",
    );
    let path = folder.file("event.json", vec![b' '; 10 * 1024 * 1024 + 1]);
    check_failure(
        &["webhook", "sign", "--event", &path],
        2,
        "larger than 10485760 bytes",
    );
}

// ---- keys

#[test]
fn keys_are_made_once_and_shown() {
    let folder = Folder::new();
    let (private, public) = (folder.text("private.pem"), folder.text("public.pem"));
    let generate = [
        "keys",
        "generate",
        "--private",
        &private,
        "--public",
        &public,
        "--format",
        "json",
    ];
    let made: Value = serde_json::from_str(&succeed(&generate)).unwrap();
    let shown: Value = serde_json::from_str(&succeed(&[
        "keys", "show", "--public", &public, "--format", "json",
    ]))
    .unwrap();
    assert_eq!(made["key_id"], shown["key_id"]);
    assert_eq!(shown["key_id"].as_str().unwrap().len(), 16);

    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        std::fs::metadata(&private).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let before = std::fs::read(&private).unwrap();
    check_failure(&generate, 2, "caused by: File exists");
    assert_eq!(std::fs::read(&private).unwrap(), before);

    // A public file in the way: no private key is left behind.
    let other = folder.text("other.pem");
    check_failure(
        &["keys", "generate", "--private", &other, "--public", &public],
        2,
        "File exists",
    );
    assert!(!Path::new(&other).exists());
    check_failure(
        &["keys", "show", "--public", &private],
        2,
        "is not an Ed25519 public key",
    );
}

#[test]
fn secrets_differ_and_sign() {
    let (one, two) = (succeed(&["keys", "secret"]), succeed(&["keys", "secret"]));
    assert_ne!(one, two);
    let folder = Folder::new();
    let body = folder.file("body", STANDARD_BODY);
    let signed = ggen()
        .env("MINE", one.trim())
        .args(["webhook", "sign", "--secret-env", "MINE", "--body", &body])
        .output();
    assert_eq!(signed.unwrap().status.code(), Some(0));
}

// ---- policies

const POLICY: &str = "../policies/marketplace-sku-456/professional.yaml";

#[test]
fn policies_compile_to_the_same_bytes_every_time() {
    let folder = Folder::new();
    let bundle = folder.text("bundle.json");
    let compile = ["policy", "compile", POLICY, "--format", "json", "--out", &bundle];
    let (one, two) = (succeed(&compile), succeed(&compile));
    assert_eq!(one, two);
    let summary: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(
        (&summary["sku_id"], &summary["plan_type"]),
        (&json!("marketplace-sku-456"), &json!("professional"))
    );
    let compiled = policy::compile(&std::fs::read_to_string(POLICY).unwrap()).unwrap();
    assert_eq!(std::fs::read(&bundle).unwrap(), compiled.bytes);
    assert_eq!(summary["policy_hash"], compiled.hash);
    assert_eq!(
        succeed(&["policy", "compile", POLICY]).lines().next(),
        Some(compiled.hash.as_str())
    );
}

#[test]
fn policies_that_are_refused_say_where() {
    let folder = Folder::new();
    let good = std::fs::read_to_string(POLICY).unwrap();
    let wrong = folder.file(
        "wrong.yaml",
        good.replace("sku_id: marketplace-sku-456", "sku_id: Not A Name"),
    );
    check_failure(&["policy", "compile", &wrong], 1, "REFUSED");
    check_failure(&["policy", "compile", &wrong], 1, "\"Not A Name\" is not a name");
    for (from, to, problem) in [
        (
            "sku_id: marketplace-sku-456",
            "sku_id: &a marketplace-sku-456",
            "write the value out",
        ),
        (
            "sku_id: marketplace-sku-456",
            "sku_id:",
            "a text is expected, and nothing stands there",
        ),
        (
            "isolation:",
            "sku_id: twice\nisolation:",
            "sku_id is written twice; write it once",
        ),
        ("tier: 1", "tier: one", "expected a whole number, 0 or more"),
        (
            "quota:",
            "quota: 5\nquotas:",
            "expected fields, each as `name: value`",
        ),
        ("\nactions:", "\nactions: {}\nother:", "expected a list"),
    ] {
        assert!(good.contains(from), "{from}");
        let wrong = folder.file("wrong.yaml", good.replacen(from, to, 1));
        check_failure(&["policy", "compile", &wrong], 1, problem);
        check_failure(&["policy", "compile", &wrong], 1, "line ");
    }
    let unknown = folder.file("unknown.yaml", format!("{good}\nsurprise: 1\n"));
    check_failure(&["policy", "compile", &unknown], 1, "surprise");
    let aliases = "aliases: [{ provider: githb, plan_id: 435 }]";
    let misspelled = folder.file(
        "misspelled.yaml",
        good.replace("isolation:", &format!("{aliases}\nisolation:")),
    );
    check_failure(
        &["policy", "compile", &misspelled],
        1,
        "\"githb\" is not a provider with plan ids of its own; known: github",
    );
    check_failure(
        &["policy", "compile", "/no/such.yaml"],
        2,
        "cannot read /no/such.yaml",
    );
    let binary = folder.file("binary.yaml", [0xff, 0xfe]);
    check_failure(&["policy", "compile", &binary], 2, "is not UTF-8");
}

// ---- receipts and archives

/// A ledger of three receipts, its archive and the receipt that closes it.
struct Evidence {
    folder: Folder,
    key: String,
    archive: String,
    closing: String,
    end: String,
    lines: Vec<String>,
}

impl Evidence {
    fn new() -> Self {
        let signer = Signer::generate([7; 32]);
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        let draft = |n: u128, payload| Draft {
            receipt_id: uuid::Uuid::from_u128(n),
            account_id: "customer-123".to_owned(),
            occurred_at: now,
            duration_ms: 5,
            policy_hash: None,
            payload,
        };
        let outcome = |id: &str| ActionOutcome {
            action_id: id.to_owned(),
            template: "restart-service".to_owned(),
            code: "OK".to_owned(),
        };
        let drafts = [
            draft(1, Payload::ActionComplete(outcome("a-1"))),
            draft(2, Payload::ActionComplete(outcome("a-2"))),
            draft(
                3,
                Payload::DecommissionStart {
                    entitlement_id: None,
                    sku_id: "marketplace-sku-456".to_owned(),
                    in_flight_actions: 0,
                },
            ),
        ];
        let appended = receipts::append(&Head::empty(), &drafts, now, &signer).unwrap();
        let lines: Vec<_> = appended.sealed.iter().map(|sealed| sealed.line.clone()).collect();

        let (public_key, mut bytes) = (signer.public_key(), Vec::new());
        let opening = receipts::archive::Opening {
            account_id: "customer-123",
            created_at: now,
            checkpoint: &note(&appended.head, &signer),
            checkpoints: &[],
            public_key: &public_key,
            key_trail: &[],
        };
        let input = receipts::ArchiveInput {
            opening,
            lines: lines.iter().cloned().map(Ok::<_, std::io::Error>),
            policies: &std::collections::BTreeMap::new(),
        };
        let summary = receipts::archive::write(&mut bytes, input).unwrap();
        let closing = Payload::DecommissionComplete {
            dead_letters_archived: None,
            dead_letters_path: None,
            actions_archive: None,
            actions_completed: 2,
            actions_failed: 0,
            receipts_archived: summary.receipts,
            archive_path: "customer-123/2026-01-31.tar.gz".to_owned(),
            archive_size_bytes: summary.size_bytes,
            archive_sha256: summary.sha256,
            archive_version: None,
        };
        let closed = receipts::append(&appended.head, &[draft(4, closing)], now, &signer).unwrap();

        let folder = Folder::new();
        let key = folder.file("auditor.pub", public_key.to_pem().unwrap());
        let archive = folder.file("archive.tar.gz", &bytes);
        let closing = folder.file("archive.closing.json", &closed.sealed[0].line);
        let end = folder.file("archive.closing.checkpoint", note(&closed.head, &signer));
        Self {
            folder,
            key,
            archive,
            closing,
            end,
            lines,
        }
    }

    fn other_key(&self) -> String {
        let (private, public) = (self.folder.text("other.pem"), self.folder.text("other.pub"));
        succeed(&["keys", "generate", "--private", &private, "--public", &public]);
        public
    }
}

#[test]
fn a_good_archive_is_verified() {
    let evidence = Evidence::new();
    let verify = ["verify-archive", &evidence.archive, "--public-key", &evidence.key];
    let text = succeed(&verify);
    for part in [
        "VERIFIED",
        "customer-123",
        "receipts    3 in order",
        "2 × action_complete",
        "1 × decommission_start",
        "checkpoint  governor.example/receipts/customer-123: root",
        "not checked",
    ] {
        assert!(
            text.replace("receipts    3", "receipts    3 in order")
                .contains(part),
            "{part} is not in\n{text}"
        );
    }
    let closed = succeed(&[&verify[..], &["--closing", &evidence.closing, "--format", "json"]].concat());
    let closed: Value = serde_json::from_str(&closed).unwrap();
    assert_eq!(
        (&closed["verified"], &closed["receipts"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(closed["closed_by"], uuid::Uuid::from_u128(4).to_string());
    let key_id: Value = serde_json::from_str(&succeed(&[
        "keys",
        "show",
        "--public",
        &evidence.key,
        "--format",
        "json",
    ]))
    .unwrap();
    assert_eq!(closed["key_ids"], json!([key_id["key_id"]]));

    let end = [
        &verify[..],
        &["--closing", &evidence.closing, "--closing-checkpoint"],
    ]
    .concat();
    let text = succeed(&[&end[..], &[evidence.end.as_str()]].concat());
    assert!(text.contains("signed for in its place"), "{text}");
    // The archive's own checkpoint is not the one behind the closing receipt.
    let own = note_in(&evidence);
    check_failure(
        &[&end[..], &[own.as_str()]].concat(),
        1,
        "final checkpoint's size is 3, expected 4",
    );

    // The archive's key is one of several that are trusted.
    succeed(&[&verify[..], &["--public-key", &evidence.other_key()]].concat());
}

/// The signed note over a ledger that ends so.
fn note(head: &Head, signer: &Signer) -> String {
    let checkpoint = receipts::Checkpoint {
        origin: "governor.example/receipts/customer-123".to_owned(),
        size: head.size,
        root: head.root().unwrap(),
    };
    checkpoint.sign(signer).unwrap()
}

/// The checkpoint of the evidence's archive, in a file.
fn note_in(evidence: &Evidence) -> String {
    let lines = &evidence.lines;
    let leaves: Vec<_> = lines.iter().map(receipts::merkle::leaf_hash).collect();
    let range = receipts::CompactRange::of(&leaves);
    let head = Head {
        size: range.size(),
        range: range.hashes().iter().map(hex::encode).collect(),
        ..Head::empty()
    };
    evidence
        .folder
        .file("checkpoint", note(&head, &Signer::generate([7; 32])))
}

#[test]
fn a_receipt_is_proved_under_a_checkpoint() {
    let evidence = Evidence::new();
    let leaves: Vec<_> = evidence.lines.iter().map(receipts::merkle::leaf_hash).collect();
    let checkpoint = note_in(&evidence);
    let note = std::fs::read_to_string(&checkpoint).unwrap();
    let hashes = receipts::merkle::inclusion_proof(&leaves, 1).unwrap();
    let root = receipts::CompactRange::of(&leaves).root();
    let text = receipts::InclusionProof::new(1, hashes.clone(), note.as_str())
        .unwrap()
        .to_text();
    let text = evidence.folder.file("receipt.tlog-proof", text);
    let json = receipts::ProofJson {
        index: 1,
        size: 3,
        root,
        hashes,
    };
    let json = evidence
        .folder
        .file("proof.json", serde_json::to_string(&json).unwrap());
    let receipt = evidence.folder.file("receipt.json", &evidence.lines[1]);
    let verify = [
        "verify-receipt",
        "--receipt",
        &receipt,
        "--public-key",
        &evidence.key,
    ];
    for proof in [
        vec!["--proof", &text],
        vec!["--proof", &text, "--checkpoint", &checkpoint],
        vec!["--proof", &json, "--checkpoint", &checkpoint],
    ] {
        let said = succeed(&[&verify[..], &proof[..]].concat());
        assert!(
            said.contains("covered by   governor.example/receipts/customer-123: one of 3"),
            "{said}"
        );
    }
    check_failure(
        &[&verify[..], &["--proof", &json]].concat(),
        2,
        "needs --checkpoint",
    );
    let other = evidence.folder.file("other.json", &evidence.lines[2]);
    let of_other = [
        "verify-receipt",
        "--receipt",
        &other,
        "--public-key",
        &evidence.key,
        "--proof",
        &text,
    ];
    check_failure(&of_other, 1, "the proof does not hold");
    let foreign = evidence
        .folder
        .file("foreign", note.replace("customer-123", "customer-124"));
    check_failure(
        &[&verify[..], &["--proof", &json, "--checkpoint", &foreign]].concat(),
        1,
        "the checkpoint does not hold",
    );
    check_failure(
        &[&verify[..], &["--proof", &text, "--checkpoint", &foreign]].concat(),
        1,
        "the proof is against another checkpoint",
    );
    let cut = evidence.folder.file("cut", "c2sp.org/tlog-proof@v1\nindex 1\n");
    check_failure(
        &[&verify[..], &["--proof", &cut]].concat(),
        1,
        "the proof does not hold",
    );
}

#[test]
fn a_rotated_and_a_revoked_key_are_followed_along_the_trail() {
    let evidence = Evidence::new();
    let (old, new) = (Signer::generate([7; 32]), Signer::generate([8; 32]));
    let draft = |id: u128, payload: Payload| Draft {
        receipt_id: uuid::Uuid::from_u128(id),
        account_id: "_system".to_owned(),
        occurred_at: "2026-01-31T12:00:00Z".parse().unwrap(),
        duration_ms: 0,
        policy_hash: None,
        payload,
    };
    let now = "2026-02-01T00:00:00Z".parse().unwrap();
    let rotated = receipts::trail::rotation(&old.public_key(), &new);
    let first = receipts::append(&Head::empty(), &[draft(1, rotated)], now, &old).unwrap();
    let revoked = Payload::KeyRevoked {
        revoked_key_id: old.key_id().to_owned(),
        reason: "its laptop was stolen".to_owned(),
        revoked_from: "2026-02-01T00:05:00Z".parse().unwrap(),
    };
    let second = receipts::append(&first.head, &[draft(2, revoked)], now, &new).unwrap();
    let one = first.sealed[0].line.clone() + "\n";
    let both = one.clone() + &second.sealed[0].line + "\n";
    let (one, both) = (
        evidence.folder.file("one.jsonl", one),
        evidence.folder.file("both.jsonl", both),
    );
    let new_key = evidence
        .folder
        .file("new.pub", new.public_key().to_pem().unwrap());
    let receipt = evidence.folder.file("receipt.json", &evidence.lines[1]);
    let verify = ["verify-receipt", "--receipt", &receipt, "--public-key", &new_key];
    check_failure(&verify, 1, "trusted are: ");
    succeed(&[&verify[..], &["--key-trail", &one]].concat());
    check_failure(
        &[&verify[..], &["--key-trail", &both]].concat(),
        1,
        "is revoked from 2026-02-01T00:05:00.000Z on: its laptop was stolen",
    );
    // An archive under the old key, which its own trail could lead to from the new one.
    let archive = ["verify-archive", &evidence.archive, "--public-key", &new_key];
    check_failure(&archive, 1, "`auditor.pub` is key");
    let told = run(&[&archive[..], &["--key-trail", &one]].concat());
    assert_eq!(told.status.code(), Some(0), "{}", stdout(&told));
    check_failure(
        &[&archive[..], &["--key-trail", &both]].concat(),
        1,
        "which is revoked: its laptop was stolen",
    );
    let broken = evidence.folder.file(
        "broken.jsonl",
        first.sealed[0].line.clone() + "\n" + &second.sealed[0].line.replacen("stolen", "sold", 1),
    );
    check_failure(
        &[&verify[..], &["--key-trail", &broken]].concat(),
        1,
        "the key trail does not hold",
    );
}

/// What a browser makes of a `.tar.gz` that is served as `content-encoding: gzip`.
fn unpacked(archive: &[u8]) -> Vec<u8> {
    let mut command = Command::new("gzip");
    let mut child = command
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let archive = archive.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&archive).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_tampered_archive_is_not_verified() {
    let evidence = Evidence::new();
    let bytes = std::fs::read(&evidence.archive).unwrap();
    for (name, tampered) in [
        ("cut", bytes[..bytes.len() - 9].to_vec()),
        ("longer", [&bytes[..], b"x"].concat()),
        (
            "flipped",
            bytes
                .iter()
                .enumerate()
                .map(|(at, byte)| if at == bytes.len() / 2 { byte ^ 1 } else { *byte })
                .collect(),
        ),
        ("empty", Vec::new()),
        ("no gzip", b"#!/bin/sh\necho VERIFIED\n".to_vec()),
        ("unpacked", unpacked(&bytes)),
    ] {
        let path = evidence.folder.file(name, tampered);
        check_failure(
            &["verify-archive", &path, "--public-key", &evidence.key],
            1,
            "NOT VERIFIED",
        );
    }
    let unpacked = evidence.folder.file("unpacked.tar", unpacked(&bytes));
    check_failure(
        &["verify-archive", &unpacked, "--public-key", &evidence.key],
        1,
        "the tar inside an archive, without the compression: something on the way, such as a browser, unpacked it",
    );
    let other = evidence.other_key();
    check_failure(
        &["verify-archive", &evidence.archive, "--public-key", &other],
        1,
        "trusted are",
    );
    // A good receipt that closes nothing, in place of the closing one.
    let wrong = evidence.folder.file("wrong.json", &evidence.lines[0]);
    let verify = [
        "verify-archive",
        &evidence.archive,
        "--public-key",
        &evidence.key,
        "--closing",
        &wrong,
    ];
    check_failure(&verify, 1, "seq has no gaps");
    let rejected = run(&[&verify[..], &["--format", "json"]].concat());
    let rejected: Value = serde_json::from_str(&stdout(&rejected)).unwrap();
    assert_eq!(
        (&rejected["verified"], &rejected["place"]),
        (&json!(false), &json!(3))
    );
    assert_eq!(
        (&rejected["rule"], &rejected["expected"]),
        (&json!("seq has no gaps"), &json!("3"))
    );
    assert_eq!(rejected["found"], "0");
}

#[test]
fn what_cannot_be_read_is_no_verdict() {
    let evidence = Evidence::new();
    check_failure(
        &["verify-archive", "/no/such", "--public-key", &evidence.key],
        2,
        "cannot read /no/such",
    );
    check_failure(&["verify-archive", &evidence.archive], 2, "--public-key <FILE>");
    check_failure(
        &[
            "verify-archive",
            &evidence.archive,
            "--public-key",
            &evidence.archive,
        ],
        2,
        "is ",
    );
    check_failure(
        &[
            "verify-archive",
            &evidence.archive,
            "--public-key",
            &evidence.closing,
        ],
        2,
        "is not an Ed25519",
    );
    let folder = evidence.folder.0.path().to_str().unwrap();
    check_failure(
        &["verify-archive", folder, "--public-key", &evidence.key],
        2,
        "cannot read",
    );
    let missing = [
        "verify-archive",
        &evidence.archive,
        "--public-key",
        &evidence.key,
        "--closing",
        "/no/such",
    ];
    check_failure(&missing, 2, "cannot read /no/such");
}

#[test]
fn receipts_are_verified_one_by_one() {
    let evidence = Evidence::new();
    let receipt = evidence
        .folder
        .file("receipt.json", format!("{}\n", evidence.lines[1]));
    let verify = [
        "verify-receipt",
        "--receipt",
        &receipt,
        "--public-key",
        &evidence.key,
    ];
    let text = succeed(&verify);
    assert!(
        text.starts_with("VERIFIED\n") && text.contains("action_complete"),
        "{text}"
    );
    let json: Value = serde_json::from_str(&succeed(&[&verify[..], &["--format", "json"]].concat())).unwrap();
    // The next receipt's prev_hash is this one's hash.
    let next: Value = serde_json::from_str(&evidence.lines[2]).unwrap();
    assert_eq!(
        (&json["verified"], &json["hash"]),
        (&json!(true), &next["prev_hash"])
    );

    for (tampered, problem) in [
        (evidence.lines[1].replace("a-2", "a-3"), "signature does not hold"),
        (evidence.lines[1].replace(',', ", "), "jq -cS"),
        (String::new(), "is not a receipt"),
        ("{}".to_owned(), "is not a receipt"),
    ] {
        std::fs::write(&receipt, tampered).unwrap();
        check_failure(&verify, 1, "NOT VERIFIED");
        check_failure(&verify, 1, problem);
    }
    std::fs::write(&receipt, &evidence.lines[1]).unwrap();
    let other = evidence.other_key();
    check_failure(
        &["verify-receipt", "--receipt", &receipt, "--public-key", &other],
        1,
        "trusted are",
    );
    std::fs::write(&receipt, vec![b' '; 1 << 20]).unwrap();
    check_failure(&verify, 2, "is larger than");
}

// ---- canonical forms and hashes

/// Runs with these bytes on stdin.
fn piped(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = ggen()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that has seen enough closes its end.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// Checks exit code, stdout and what stderr tells.
#[track_caller]
fn check_piped(arguments: &[&str], input: impl AsRef<[u8]>, code: i32, answer: &str, told: &str) {
    let output = piped(arguments, input.as_ref());
    let (out, err) = (stdout(&output), stderr(&output));
    assert_eq!(
        (output.status.code(), out.as_str()),
        (Some(code), answer),
        "{arguments:?}: {err}"
    );
    assert!(
        err.contains(told) && err.is_empty() == told.is_empty(),
        "{arguments:?}: {err}"
    );
}

#[test]
fn published_canonical_forms() {
    let vectors = Path::new("../lib/receipts/vectors/jcs");
    let mut checked = 0;
    for entry in std::fs::read_dir(vectors.join("input")).unwrap() {
        let input = entry.unwrap().path();
        let expected = std::fs::read(vectors.join("output").join(input.file_name().unwrap())).unwrap();
        let expected = String::from_utf8(expected).unwrap();
        assert_eq!(succeed(&["canonicalize", input.to_str().unwrap()]), expected);
        check_piped(
            &["canonicalize", "--newline"],
            std::fs::read(&input).unwrap(),
            0,
            &format!("{expected}\n"),
            "",
        );
        checked += 1;
    }
    assert_eq!(checked, 6);
}

#[test]
fn a_canonical_form_is_its_own() {
    for (input, form) in [
        ("1.2345678901234568e20", "123456789012345680000"),
        ("295147905179352825856", "295147905179352830000"),
        ("18446744073709551616", "18446744073709552000"),
        ("[-1e20,1e21,5e-324]", "[-100000000000000000000,1e+21,5e-324]"),
    ] {
        check_piped(&["canonicalize"], input, 0, form, "");
        check_piped(&["canonicalize"], form, 0, form, "");
        let hash = receipts::sha256_hex(form);
        check_piped(&["hash"], form, 0, &format!("{hash}\n"), "");
    }
}

#[test]
fn canonical_forms_go_straight_into_a_hash() {
    let input = " {\"b\":1.50,\n\"a\":\"\\u00e9\"} \n";
    check_piped(&["canonicalize"], input, 0, "{\"a\":\"é\",\"b\":1.5}", "");
    check_piped(&["canonicalize", "-"], input, 0, "{\"a\":\"é\",\"b\":1.5}", "");
    let output = piped(&["canonicalize", "--format", "json"], input.as_bytes());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["canonical"], "{\"a\":\"é\",\"b\":1.5}");
    assert_eq!(answer["sha256"], receipts::sha256_hex("{\"a\":\"é\",\"b\":1.5}"));
    check_piped(
        &["hash"],
        "{\"a\":\"é\",\"b\":1.5}",
        0,
        &format!("{}\n", answer["sha256"].as_str().unwrap()),
        "",
    );
}

#[test]
fn input_without_a_canonical_form_is_refused_with_its_place() {
    for (input, problem) in [
        (
            &b"{\"a\":1,\n \"a\":2}"[..],
            "the key \"a\" stands twice in the outermost object at line 2 column 4",
        ),
        (
            b"[{\"x\":{\"k\":1,\"k\":1}}]",
            "the key \"k\" stands twice in the object at /0/x",
        ),
        (b"\"\\ud800\"", "a lone surrogate"),
        (b"\"\\ud800", "at line 1 column 7"),
        (b"[\"\xff\"]", "not UTF-8 at line 1 column 3"),
        (b"{} {}", "trailing characters at line 1 column 4"),
        (
            b"[9007199254740993]",
            "the integer 9007199254740993 at line 1 column 2",
        ),
        (b"", "EOF while parsing"),
    ] {
        for command in ["canonicalize", "hash"] {
            check_piped(&[command], input, 1, "", problem);
            let output = piped(&[command, "--format", "json"], input);
            let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(
                (&refused["refused"], &refused["subject"]),
                (&json!(true), &json!("stdin"))
            );
            assert!(
                refused.to_string().contains(&problem.replace('"', "\\\"")),
                "{refused}"
            );
            assert_eq!((output.status.code(), stderr(&output)), (Some(1), String::new()));
        }
    }
    for open in ["[", "{\"a\":"] {
        check_piped(
            &["canonicalize"],
            open.repeat(1 << 20),
            1,
            "",
            "recursion limit exceeded",
        );
        check_piped(&["hash"], open.repeat(1 << 20), 1, "", "recursion limit exceeded");
    }
}

#[test]
fn input_that_cannot_be_read_has_no_verdict() {
    let folder = Folder::new();
    let large = folder.file("large.json", vec![b' '; 16 * 1024 * 1024 + 1]);
    let directory = folder.0.path().to_str().unwrap();
    for arguments in [
        &["canonicalize"][..],
        &["canonicalize", "--jsonl"],
        &["hash"],
        &["hash", "--raw"],
    ] {
        check_failure(&[arguments, &["/no/such"]].concat(), 2, "cannot read /no/such");
        check_failure(
            &[arguments, &[directory]].concat(),
            2,
            "caused by: Is a directory",
        );
        if !arguments.contains(&"--raw") {
            check_failure(
                &[arguments, &[&large]].concat(),
                2,
                "is larger than 16777216 bytes",
            );
        }
    }
    // As large as it may be.
    let text = format!("[{}1]", " ".repeat(16 * 1024 * 1024 - 3));
    check_piped(&["canonicalize"], &text, 0, "[1]", "");
    check_piped(&["canonicalize", "--jsonl"], text, 0, "[1]\n", "");
}

#[test]
fn lines_are_canonicalized_one_by_one() {
    let jsonl = ["canonicalize", "--jsonl"];
    check_piped(&jsonl, "", 0, "", "");
    check_piped(
        &jsonl,
        "{\"b\":1,\"a\":2}\r\n[1.0]",
        0,
        "{\"a\":2,\"b\":1}\n[1]\n",
        "",
    );
    check_piped(
        &jsonl,
        "[1]\n[2]\n{\"a\":1,\"a\":1}\n[4]\n",
        1,
        "[1]\n[2]\n",
        "line 3 of stdin",
    );
    check_piped(&jsonl, "[1]\n\n[2]\n", 1, "[1]\n", "line 2 of stdin");
    let evidence = Evidence::new();
    let ledger = evidence.lines.join("\n") + "\n";
    check_piped(&jsonl, &ledger, 0, &ledger, "");
    let output = piped(
        &["canonicalize", "--jsonl", "--format", "jsonl"],
        ledger.as_bytes(),
    );
    let hashes: Vec<_> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["sha256"].clone())
        .collect();
    let expected: Vec<_> = evidence.lines.iter().map(receipts::sha256_hex).collect();
    assert_eq!(json!(hashes), json!(expected));
}

#[test]
fn a_receipts_hash_is_what_the_next_one_names() {
    let evidence = Evidence::new();
    for pair in evidence.lines.windows(2) {
        let next: Value = serde_json::from_str(&pair[1]).unwrap();
        let hash = next["prev_hash"].as_str().unwrap();
        let answer = format!("{hash}\n");
        check_piped(&["hash"], &pair[0], 0, &answer, "");
        check_piped(&["hash"], format!("{}\n", pair[0]), 0, &answer, "");
        let spaced = pair[0].replace("\",\"", "\", \"");
        check_piped(&["hash"], &spaced, 0, &answer, "not in canonical form");

        let file = evidence.folder.file("receipt.json", &pair[0]);
        let json: Value = serde_json::from_str(&succeed(&["hash", &file, "--format", "json"])).unwrap();
        assert_eq!(
            json,
            json!({ "hash": hash, "of": "receipt", "canonical": true,
                "leaf_hash": leaf_hash(&pair[0]) })
        );
        let json = piped(&["hash", "--format", "json"], spaced.as_bytes());
        assert_eq!(stderr(&json), "");
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(
            json,
            json!({ "hash": hash, "of": "receipt", "canonical": false, "leaf_hash": leaf_hash(&spaced) })
        );
    }
    // Without its signature a receipt is JSON like any other, and has the same hash.
    let mut unsigned: Value = serde_json::from_str(&evidence.lines[0]).unwrap();
    unsigned.as_object_mut().unwrap().remove("signature");
    let next: Value = serde_json::from_str(&evidence.lines[1]).unwrap();
    let output = piped(
        &["hash", "--format", "json"],
        receipts::jcs(&unsigned).unwrap().as_bytes(),
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json,
        json!({ "hash": next["prev_hash"], "of": "json", "canonical": true })
    );
    check_piped(
        &["hash"],
        r#"{"signature":"a"}"#,
        0,
        &format!("{}\n", receipts::sha256_hex(r#"{"signature":"a"}"#)),
        "",
    );
}

fn leaf_hash(line: &str) -> String {
    receipts::sha256_hex([b"\0", line.as_bytes()].concat())
}

#[test]
fn raw_hashes_are_of_the_bytes_as_they_are() {
    let evidence = Evidence::new();
    let closing: Value = serde_json::from_str(&std::fs::read_to_string(&evidence.closing).unwrap()).unwrap();
    let hash = closing["archive_sha256"].as_str().unwrap();
    assert_eq!(
        succeed(&["hash", "--raw", &evidence.archive]),
        format!("{hash}\n")
    );
    let json: Value = serde_json::from_str(&succeed(&[
        "hash",
        "--raw",
        &evidence.archive,
        "--format",
        "json",
    ]))
    .unwrap();
    assert_eq!(
        json,
        json!({ "hash": hash, "of": "bytes", "size_bytes": closing["archive_size_bytes"] })
    );
    let bytes: Vec<_> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let answer = format!("{}\n", receipts::sha256_hex(&bytes));
    check_piped(&["hash", "--raw"], bytes, 0, &answer, "");
    check_piped(
        &["hash", "--raw"],
        "",
        0,
        &format!("{}\n", receipts::sha256_hex("")),
        "",
    );
}

// ---- the sample handler

struct Handler {
    child: Child,
    address: String,
}

impl Handler {
    fn start(secret: Option<&str>) -> Self {
        let mut command = ggen();
        command
            .args(["handler", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        secret.map(|secret| command.env("HANDLER_SECRET", secret));
        let mut child = command.spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut first)
            .unwrap();
        let first: Value = serde_json::from_str(&first).unwrap();
        let address = first["listening"]
            .as_str()
            .unwrap()
            .strip_prefix("http://")
            .unwrap()
            .to_owned();
        Self { child, address }
    }

    /// Sends a request and leaves the connection open.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let headers: String = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: handler\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        answer(self.send(method, path, headers, body))
    }

    fn act(&self, action_id: &str, parameters: &Value) -> (u16, Value) {
        self.call(
            "POST",
            "/actions/restart-service",
            &[("idempotency-key", action_id)],
            &body(action_id, parameters),
        )
    }

    fn roll_back(&self, action_id: &str) -> (u16, Value) {
        let key = format!("{action_id}:rollback");
        self.call(
            "POST",
            "/rollbacks/restart-service",
            &[("idempotency-key", &key)],
            &body(action_id, &json!({})),
        )
    }

    /// How often an action was applied and undone.
    fn log(&self, action_id: &str) -> (usize, usize) {
        let (status, log) = self.call("GET", &format!("/log?action_id={action_id}"), &[], "");
        assert_eq!(status, 200);
        (
            log["applied"].as_array().unwrap().len(),
            log["undone"].as_array().unwrap().len(),
        )
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(mut stream: TcpStream) -> (u16, Value) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn body(action_id: &str, parameters: &Value) -> String {
    json!({ "action_id": action_id, "account_id": "customer-123", "template": "restart-service", "parameters": parameters })
        .to_string()
}

/// Polls until it holds; a generous deadline only bounds a failing run.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "never saw: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn handler_does_what_the_parameters_ask() {
    let handler = Handler::start(None);
    let failure =
        |recoverable: bool| json!({ "error_code": "SIMULATED_FAILURE", "recoverable": recoverable });
    let done = |id: &str| json!({ "status": "applied", "action_id": id });
    for (id, parameters, status, body, applied) in [
        ("a", json!({}), 200, done("a"), 1),
        (
            "b",
            json!({ "outcome": "succeed", "delay_ms": 1, "service": "web" }),
            200,
            done("b"),
            1,
        ),
        ("c", json!({ "outcome": "fail" }), 500, failure(true), 0),
        (
            "d",
            json!({ "outcome": "fail-unrecoverable" }),
            422,
            failure(false),
            0,
        ),
    ] {
        assert_eq!(handler.act(id, &parameters), (status, body.clone()), "{id}");
        assert_eq!(handler.act(id, &parameters), (status, body), "{id} again");
        assert_eq!(handler.log(id), (applied, 0), "{id}");
    }
    assert_eq!(handler.call("GET", "/health", &[], "").0, 200);
    let (_, log) = handler.call("GET", "/log", &[], "");
    assert_eq!(log["applied"].as_array().unwrap().len(), 2);
    let first = &log["applied"][0];
    assert_eq!(
        (&first["action_id"], &first["template"]),
        (&json!("a"), &json!("restart-service"))
    );
    assert_eq!(first["account_id"], "customer-123");
    assert!(first["at"].as_str().unwrap().ends_with('Z'), "{first}");
}

#[test]
fn handler_undoes_what_was_applied_and_what_never_happened() {
    let handler = Handler::start(None);
    handler.act("a", &json!({}));
    for _ in 0..2 {
        assert_eq!(
            handler.roll_back("a"),
            (200, json!({ "status": "undone", "action_id": "a" }))
        );
        assert_eq!(handler.log("a"), (1, 1));
        assert_eq!(
            handler.roll_back("b"),
            (200, json!({ "status": "never_happened", "action_id": "b" }))
        );
        assert_eq!(handler.log("b"), (0, 1));
    }
    assert_eq!(handler.act("b", &json!({})).0, 409);
    assert_eq!(handler.log("b"), (0, 1));
}

#[test]
fn a_caller_who_hangs_up_does_not_stop_a_late_apply() {
    let handler = Handler::start(None);
    let call = body("late", &json!({ "delay_ms": 200 }));
    // A caller can hang up before its call was read: then there was none. One that is repeated is still one action.
    eventually("the late apply", || {
        drop(handler.send(
            "POST",
            "/actions/restart-service",
            &[("idempotency-key", "late")],
            &call,
        ));
        handler.log("late") == (1, 0)
    });
}

#[test]
fn a_rollback_beats_a_late_apply() {
    let handler = Handler::start(None);
    let parameters = json!({ "delay_ms": 2000 });
    let waiting = handler.send(
        "POST",
        "/actions/restart-service",
        &[("idempotency-key", "late")],
        &body("late", &parameters),
    );
    // Another call of the same action is answered with the first, so it also tells when the delay is over.
    let repeat = std::thread::scope(|scope| {
        let repeat = scope.spawn(|| handler.act("late", &parameters));
        assert_eq!(handler.roll_back("late").1["status"], "never_happened");
        repeat.join().unwrap()
    });
    assert_eq!((answer(waiting).0, repeat.0), (409, 409));
    assert_eq!(handler.log("late"), (0, 1));
}

#[test]
fn handler_refuses_what_it_cannot_trust() {
    let handler = Handler::start(Some(STANDARD_SECRET));
    let folder = Folder::new();
    let call = body("a", &json!({}));
    let path = folder.file("call.json", &call);
    let signed: Value = serde_json::from_str(&succeed(&[
        "webhook", "sign", "--body", &path, "--format", "json",
    ]))
    .unwrap();
    let mut headers: Vec<_> = signed
        .as_object()
        .unwrap()
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str().unwrap()))
        .collect();
    headers.push(("idempotency-key", "a"));

    let (status, problem) = handler.act("a", &json!({}));
    assert_eq!((status, &problem["error_code"]), (401, &json!("UNAUTHORIZED")));
    assert_eq!(problem["detail"], "header webhook-id is missing");
    let tampered = body("a", &json!({ "more": true }));
    assert_eq!(
        handler
            .call("POST", "/actions/restart-service", &headers, &tampered)
            .0,
        401
    );
    assert_eq!(handler.roll_back("a").0, 401);
    assert_eq!(handler.log("a"), (0, 0));
    assert_eq!(
        handler
            .call("POST", "/actions/restart-service", &headers, &call)
            .0,
        200
    );
    assert_eq!(handler.log("a"), (1, 0));
}

#[test]
fn handler_names_malformed_calls() {
    let handler = Handler::start(None);
    let key = [("idempotency-key", "a")];
    let large = format!("{{\"action_id\":\"a\",\"x\":\"{}\"}}", "x".repeat(64 * 1024));
    for (headers, body, status, error_code) in [
        (&key[..], "", 400, "MALFORMED"),
        (&key, "{}", 400, "MALFORMED"),
        (
            &key,
            r#"{"action_id":"a","parameters":{"outcome":"explode"}}"#,
            400,
            "MALFORMED",
        ),
        (
            &key,
            r#"{"action_id":"a","parameters":{"delay_ms":-1}}"#,
            400,
            "MALFORMED",
        ),
        (
            &key,
            r#"{"action_id":"a","parameters":{"delay_ms":600001}}"#,
            400,
            "OUT_OF_RANGE",
        ),
        (&[], r#"{"action_id":"a"}"#, 400, "IDEMPOTENCY_KEY"),
        (&key, r#"{"action_id":"b"}"#, 400, "IDEMPOTENCY_KEY"),
        (&key, &large, 413, "BODY_REFUSED"),
        (&key, r#"{"action_id":"a"}"#, 200, ""),
        (
            &key,
            r#"{"action_id":"a","template":"another"}"#,
            422,
            "IDEMPOTENCY_KEY_REUSED",
        ),
    ] {
        let (found, problem) = handler.call("POST", "/actions/restart-service", headers, body);
        assert_eq!(
            (found, problem["error_code"].as_str().unwrap_or("")),
            (status, error_code),
            "{body:.80}"
        );
    }
    assert_eq!(handler.log("a"), (1, 0));
}

#[test]
fn handler_ends_on_a_signal_and_tells_a_taken_port() {
    for signal in ["TERM", "INT"] {
        let mut handler = Handler::start(None);
        let address = handler.address.clone();
        check_failure(
            &["handler", "--listen", &address],
            2,
            "caused by: Address already in use",
        );
        let pid = handler.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([&format!("-{signal}"), &pid])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(handler.child.wait().unwrap().code(), Some(0), "SIG{signal}");
    }
    let output = ggen()
        .args(["handler"])
        .env("HANDLER_SECRET", "whsec_")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("HANDLER_SECRET holds no usable secret"),
        "{}",
        stderr(&output)
    );
}
