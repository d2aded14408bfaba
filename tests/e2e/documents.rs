//! Every command in the documents is run, as it stands there, or is listed here with the reason why it is not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use domain::webhook::providers::github::GITHUB_DELIVERY;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::github;
use crate::life::objects;
use crate::webhooks::Delivery;
use crate::world::{PATIENCE, Ran, SKU, World, alone, eventually, project, unique};

/// Commands that are not run, by how they begin, and why. Each stands in some document.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "rm -f checkpoint.text",
        "needs an unpacked archive: lib/receipts/tests/receipts/shell.rs runs it in one",
    ),
    ("rm -f tree.signed", "the same"),
    ("rm -f receipt.*", "the same"),
    ("aws lambda ", "needs the AWS CLI"),
    ("aws cloudwatch ", "needs the AWS CLI, and metrics of AWS"),
    (
        "make ",
        "builds, or starts a stack of its own; this test runs under one of them",
    ),
    (
        "cargo lambda watch",
        "a server that compiles functions; what it serves, the deployed functions do here",
    ),
    ("cargo bench", "takes minutes: `make bench` runs it"),
    ("cargo fuzz", "needs cargo-fuzz: `make fuzz` runs it"),
    ("cargo metadata", "writes the Cargo.lock of another workspace"),
    (
        "cargo build --release",
        "takes minutes: `make release` compiles the same",
    ),
    (
        "UPDATE_SCHEMAS=1",
        "rewrites the project; lib/receipts/src/schema.rs checks what it would write",
    ),
    ("sam ", "needs the SAM CLI, and AWS or a container engine"),
    (
        "aws secretsmanager put-secret-value",
        "needs the AWS CLI; infra/local/stack.py puts the same secrets",
    ),
    (
        ". target/local-cloud/env.sh",
        "the environment of another stack; this test has its own",
    ),
    (
        "export PATH=$PWD/.venv/bin:$PATH",
        "for cargo-lambda, which is not run",
    ),
    (
        "python3 docs/samples/handler.py",
        "a server; ggen/tests/samples.rs calls it",
    ),
    (
        "HANDLER_SECRET=$(ggen keys secret) ggen handler",
        "a server; ggen/tests/cli.rs calls it, and the stack has one",
    ),
    (
        "head -n 1 receipts/",
        "needs check-jsonschema; lib/receipts/src/schema.rs checks receipts against the schemas",
    ),
];

/// Commands that tell something by another exit code than 0.
const CODES: &[(&str, &[i32])] = &[
    // 1 while any wait.
    ("ggen escalations", &[0, 1]),
    ("$GGEN escalations", &[0, 1]),
    ("ggen deliveries list", &[1]),
    ("$GGEN deliveries list", &[1]),
    // Its plan has no policy here.
    ("ggen deliveries retry", &[1]),
    ("$GGEN deliveries retry", &[1]),
    // What the handler says cannot be undone is not taken up again.
    ("ggen redrive --account-id customer-123 --action-id", &[1]),
];

/// What stands in a document to be run: one command, or a whole block of them.
#[derive(Debug)]
struct Script {
    document: String,
    line: usize,
    text: String,
}

/// The scripts of a document: lines that are indented as code, each with what continues it, and fenced blocks of shell.
fn scripts(document: &str, text: &str) -> Vec<Script> {
    let mut found: Vec<Script> = Vec::new();
    let (mut fence, mut continues, mut prompts) = (None::<String>, false, false);
    // Code that is indented stands behind an empty line or a heading: what continues a paragraph is indented as well.
    let (mut before_is_code, mut may_begin) = (false, true);
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(language) = trimmed.strip_prefix("```") {
            let opens = fence.is_none();
            fence = opens.then(|| language.to_owned());
            if opens && matches!(language, "sh" | "bash") {
                found.push(Script {
                    document: document.to_owned(),
                    line: index + 1,
                    text: String::new(),
                });
            }
            (continues, before_is_code, may_begin) = (false, false, true);
            continue;
        }
        match fence.as_deref() {
            Some("sh" | "bash") => {
                let script = &mut found.last_mut().unwrap().text;
                script.push_str(line);
                script.push('\n');
            }
            Some(_) => {}
            None if line.starts_with("    ") && (may_begin || before_is_code) => {
                // A session shows commands behind a prompt, and what they print.
                prompts = trimmed.starts_with("$ ") || (prompts && before_is_code);
                before_is_code = true;
                if continues {
                    let script = &mut found.last_mut().unwrap().text;
                    script.push('\n');
                    script.push_str(line);
                } else if !prompts || trimmed.starts_with("$ ") {
                    let text = trimmed.strip_prefix("$ ").unwrap_or(trimmed).to_owned();
                    // An example of JSON, or a drawing.
                    if text.starts_with('{') || text.contains(['→', '─', '│']) {
                        continue;
                    }
                    found.push(Script {
                        document: document.to_owned(),
                        line: index + 1,
                        text,
                    });
                } else {
                    continue;
                }
                continues = trimmed.ends_with('\\') || (trimmed.ends_with('|') && !trimmed.ends_with("||"));
            }
            None => {
                (continues, before_is_code, prompts) = (false, false, false);
                may_begin = trimmed.is_empty() || trimmed.starts_with('#');
            }
        }
    }
    found
}

/// Every document of the project, by its path in it.
fn documents() -> Vec<String> {
    fn walk(folder: &Path, below: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = format!("{below}{name}");
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && name != "target" {
                    walk(&entry.path(), &format!("{path}/"), found);
                }
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&project("."), "", &mut found);
    found.sort();
    found
}

#[test]
fn scripts_are_found() {
    let text = "Text\n\n    one # comment\n    two \\\n      more\n\n```json\n{}\n```\n```sh\na\nb\n```\n    $ three\n    output\n\n    {\"a\":1}\n1. list\n\n       four |\n         five\n2. item\n    continued\n## Heading\n    six\n";
    let found: Vec<_> = scripts("d", text)
        .into_iter()
        .map(|script| (script.line, script.text))
        .collect();
    let expected = [
        (3, "one # comment"),
        (4, "two \\\n      more"),
        (10, "a\nb\n"),
        (14, "$ three"),
        (20, "four |\n         five"),
        (25, "six"),
    ];
    let expected = expected.map(|(line, text)| (line, text.trim_start_matches("$ ").to_owned()));
    assert_eq!(found, expected);
}

/// Where the commands of one document are run: the project's files, and nothing that another document's left behind.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new(world: &World) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path();
        for name in ["docs", "events", "infra", "policies", "tests", "README.md"] {
            symlink(fs::canonicalize(project(name)).unwrap(), path.join(name)).unwrap();
        }
        fs::create_dir(path.join("target")).unwrap();
        let bin = path.join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(&world.env.ggen, bin.join("ggen")).unwrap();
        // An answer that refuses is a failure, also at the end of a pipe.
        executable(
            &bin.join("curl"),
            "#!/bin/sh\nPATH=${PATH#*:} exec curl --fail-with-body \"$@\"\n",
        );
        // Enough of the AWS CLI for the stack's outputs, which it asks the local cloud for.
        executable(
            &bin.join("aws"),
            &format!(
                "#!{}\n{}",
                fs::canonicalize(project(".venv/bin"))
                    .unwrap()
                    .join("python")
                    .display(),
                "import json, os, sys, boto3\n\
                 assert sys.argv[1:3] == ['cloudformation', 'describe-stacks'] and '--output' in sys.argv, sys.argv\n\
                 cloud = boto3.client('cloudformation', endpoint_url=os.environ['AWS_ENDPOINT_URL'])\n\
                 print(json.dumps(cloud.describe_stacks()['Stacks'][0]['Outputs']))\n"
            ),
        );
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a script with the stack's environment.
    async fn run(&self, script: &str) -> Ran {
        let path = format!(
            "{}:{}",
            self.path().join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.path())
            .env("PATH", path)
            .env("USER", "documents");
        let ran = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        Ran {
            code: ran.status.code(),
            stdout: String::from_utf8_lossy(&ran.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&ran.stderr).into_owned(),
        }
    }
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The functions that documents invoke by name.
fn function<'w>(world: &'w World, name: &str) -> &'w str {
    match name {
        "entitlement" => &world.env.entitlement,
        "cancel" => &world.env.cancel,
        "governor" => &world.env.governor,
        "health" => &world.env.health,
        "policy-upgrade" => &world.env.policy_upgrade,
        "checkpoint" => &world.env.checkpoint,
        "scale" => &world.env.scale,
        "signals" => &world.env.signals,
        name => panic!("there is no function {name}"),
    }
}

/// The account that a command is about.
fn account(script: &str) -> Option<&str> {
    let (_, rest) = script.split_once("--account-id ")?;
    rest.split_whitespace().next()
}

/// What a document's words stand for.
async fn filled_in(world: &World, script: &Script) -> String {
    let mut text = script.text.clone();
    let Some(account) = account(&script.text).map(str::to_owned) else {
        return text;
    };
    if text.contains(" archive download ") {
        let left = archived(world).await;
        return text.replace(&account, &left);
    }
    if text.contains(" ACTION") {
        let action = escalated(world, &account).await;
        text = text.replace(" ACTION", &format!(" {action}"));
    }
    if text.contains("--receipt-id ID") {
        let ledger = world.ledger(&account).await;
        let id = ledger.receipts[0]["receipt_id"].as_str().unwrap();
        text = text.replace("--receipt-id ID", &format!("--receipt-id {id}"));
    }
    text
}

/// An action of the account that waits for a person.
async fn escalated(world: &World, account: &str) -> String {
    let action = unique("documented");
    let send = [
        "send-signal",
        "--account-id",
        account,
        "--action-id",
        &action,
        "--template",
        "restart-service",
    ];
    let parameters = r#"{"service":"web","outcome":"fail-unrecoverable"}"#;
    world
        .ggen(&[&send[..], &["--parameters", parameters]].concat())
        .await
        .ok();
    world.settled(account, &action, &["action_failed"]).await;
    let list = ["escalations", "--account-id", account, "--format", "jsonl"];
    eventually("the action among those that wait", PATIENCE, || async {
        let listed = world.ggen(&list).await;
        if listed.stdout.contains(&action) {
            Ok(())
        } else {
            Err(listed.stdout)
        }
    })
    .await;
    action
}

async fn run(world: &World, place: &Place, script: &Script, used: &mut BTreeSet<&'static str>) {
    let shown = format!("{}:{}: {}", script.document, script.line, script.text);
    let text = script.text.trim_start();
    if let Some((start, _)) = NOT_RUN.iter().find(|(start, _)| text.starts_with(start)) {
        used.insert(start);
        return;
    }
    if let Some(arguments) = text.strip_prefix("cargo lambda invoke ") {
        let words: Vec<_> = arguments.split_whitespace().collect();
        let ["-A", "127.0.0.1", name, "--data-file", file] = words[..] else {
            panic!("{shown}: expected -A 127.0.0.1 FUNCTION --data-file FILE");
        };
        let event: Value =
            serde_json::from_str(&fs::read_to_string(place.path().join(file)).unwrap()).unwrap();
        world.invoke(function(world, name), &event).await;
        return;
    }
    let mut text = filled_in(world, script).await;
    if text.starts_with("eval ") {
        // Each output has become the variable that the local stack's own environment has.
        let same: Vec<_> = [
            "TENANTS_TABLE",
            "SIGNING_KEY_SECRET_ID",
            "SCALE_FUNCTION",
            "CONCURRENCY_COST_USD",
        ]
        .iter()
        .map(|name| format!("[ \"${name}\" = {:?} ]", std::env::var(name).unwrap()))
        .collect();
        let names = "unset TENANTS_TABLE SIGNING_KEY_SECRET_ID SCALE_FUNCTION CONCURRENCY_COST_USD";
        text = format!("{names}\n{text}\n{}\nggen tenants list", same.join("\n"));
    }
    let ran = place.run(&text).await;
    let codes = CODES
        .iter()
        .find(|(start, _)| text.starts_with(start))
        .map_or(&[0][..], |(_, codes)| codes);
    let good = ran.code.is_some_and(|code| codes.contains(&code));
    redate(place);
    assert!(
        good,
        "{shown}\nended with {:?}:\n{}{}",
        ran.code, ran.stdout, ran.stderr
    );
}

/// The first block of JSON in the document about webhooks, which it says is `created.json`, as if written today.
fn created() -> String {
    let text = fs::read_to_string(project("docs/webhooks.md")).unwrap();
    let (_, rest) = text.split_once("```json\n").unwrap();
    let mut body: Value = serde_json::from_str(rest.split_once("```").unwrap().0).unwrap();
    let now = Timestamp::now();
    body["timestamp"] = json!(now.to_string());
    body["data"]["expires_at"] = json!((now + SignedDuration::from_hours(365 * 24)).to_string());
    body.to_string()
}

/// A customer who has left and is archived.
async fn archived(world: &World) -> String {
    let account = world.tenant("documented").await.account;
    world.post(&Delivery::cancelled(world.env, &account, SKU)).await;
    let sidecar = format!("{account}/");
    eventually("what closes the archive", PATIENCE, || async {
        let objects = objects(world, &sidecar).await;
        let closed = objects.iter().any(|key| key.ends_with(".closing.checkpoint"));
        if closed {
            Ok(())
        } else {
            Err(format!("{objects:?}"))
        }
    })
    .await;
    account
}

/// Gives what was downloaded today the date that the documents give it.
fn redate(place: &Place) {
    for file in fs::read_dir(place.path()).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        let (date, ends) = name.split_once('.').unwrap_or_default();
        if date != "2026-01-31" && (ends.starts_with("closing.") || ends == "tar.gz") {
            fs::rename(&file, place.path().join(format!("2026-01-31.{ends}"))).unwrap();
        }
    }
}

/// The order in which documents are run, as far as it matters: what they say of customers needs the customers, and their only
/// entitlement.
const FIRST: [&str; 5] = [
    "docs/webhooks.md",
    "README.md",
    "docs/operating.md",
    "docs/signals.md",
    "docs/escalations.md",
];

/// The delivery that documents speak of as refused.
async fn refused(world: &World) {
    let mut body = github::purchased(github::account());
    body["marketplace_purchase"]["plan"]["id"] = json!(999_999);
    let delivery = Delivery::github(world.env, body.to_string());
    let delivery = delivery.with(GITHUB_DELIVERY, "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    assert_eq!(world.post(&delivery).await.status, 422);
}

#[tokio::test]
async fn every_command_in_the_documents_works() {
    alone(|world| async move {
        let mut order: Vec<String> = FIRST.map(str::to_owned).to_vec();
        order.extend(
            documents()
                .into_iter()
                .filter(|document| !FIRST.contains(&document.as_str())),
        );
        refused(&world).await;
        let (mut used, mut count) = (BTreeSet::new(), 0);
        for document in order {
            let text = fs::read_to_string(project(&document)).unwrap();
            let scripts = scripts(&document, &text);
            if scripts.is_empty() {
                continue;
            }
            let place = Place::new(&world);
            if document != "docs/deploying.md" {
                fs::copy(&world.env.auditor_pub, place.path().join("auditor.pub")).unwrap();
            }
            fs::write(place.path().join("created.json"), created()).unwrap();
            for script in &scripts {
                run(&world, &place, script, &mut used).await;
                count += 1;
            }
        }
        let unused: Vec<_> = NOT_RUN
            .iter()
            .filter(|(start, _)| !used.contains(start))
            .collect();
        assert!(unused.is_empty(), "no document has these any more: {unused:?}");
        assert!(count > 60, "only {count} commands were found");
    })
    .await;
}
