//! The sample handlers of docs/handlers.md, called as a governor calls them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on should stop loudly"
)]

/// As the document shows it.
#[rustfmt::skip]
#[path = "../../docs/samples/handler.rs"]
mod handler;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use domain::action::idempotency_key;
use domain::webhook::providers::standard::sign_standard;
use domain::webhook::signature::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A call, with the headers that a governor sends; the status and body of its answer.
fn call(port: u16, action_id: &str, suffix: &str, secret: &str, age_seconds: i64) -> (u16, Value) {
    let body = json!({ "action_id": action_id, "account_id": "customer-123", "template": "restart-service", "parameters": {} })
        .to_string();
    let key = format!("{}{suffix}", idempotency_key("customer-123", action_id));
    let at = Timestamp::now() - SignedDuration::from_secs(age_seconds);
    let signature = sign_standard(&Secret::standard(secret).unwrap(), &key, at, body.as_bytes());
    let path = if suffix.is_empty() {
        "/actions/restart-service"
    } else {
        "/rollbacks/restart-service"
    };
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         idempotency-key: {key}\r\nx-deadline-ms: 500\r\nx-attempt: 1\r\nwebhook-id: {key}\r\nwebhook-timestamp: {}\r\n\
         webhook-signature: v1,AAAA {signature}\r\ncontent-length: {}\r\n\r\n{body}",
        at.as_second(),
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn check(port: u16) {
    let done = |before: Value, now: &str| (200, json!({ "before": before, "now": now }));
    // Done once, however often it is asked for, and undone.
    assert_eq!(call(port, "a-1", "", SECRET, 0), done(Value::Null, "do"));
    assert_eq!(call(port, "a-1", "", SECRET, 200), done(json!("do"), "do"));
    assert_eq!(
        call(port, "a-1", ":rollback", SECRET, 0),
        done(json!("do"), "undo")
    );
    assert_eq!(
        call(port, "a-1", ":rollback", SECRET, 0),
        done(json!("undo"), "undo")
    );
    // A rollback of what never came is accepted, and the call that comes late does nothing.
    assert_eq!(
        call(port, "a-2", ":rollback", SECRET, 0),
        done(Value::Null, "undo")
    );
    let late = call(port, "a-2", "", SECRET, 0);
    assert_eq!(
        late,
        (409, json!({ "error_code": "ROLLED_BACK", "recoverable": false }))
    );
    // Somebody else's, and an old one that somebody kept.
    let refused = (401, json!({ "error_code": "UNAUTHORIZED", "recoverable": false }));
    assert_eq!(call(port, "a-3", "", OTHER_SECRET, 0), refused);
    assert_eq!(call(port, "a-3", "", SECRET, 400), refused);
    assert_eq!(call(port, "a-3", "", SECRET, -400), refused);
    assert_eq!(call(port, "a-3", "", SECRET, 0), done(Value::Null, "do"));
}

#[tokio::test]
async fn the_sample_in_rust_keeps_the_contract() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving =
        tokio::spawn(async move { handler::serve(listener, SECRET).await.map_err(|e| e.to_string()) });
    tokio::task::spawn_blocking(move || check(port)).await.unwrap();
    assert!(!serving.is_finished());
    serving.abort();
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_sample_in_python_keeps_the_contract() {
    // A port that the system chooses, said by the server itself: the sample ends in `serve_forever()`.
    let sample = std::fs::read_to_string("../docs/samples/handler.py").unwrap();
    let last = "ThreadingHTTPServer((\"127.0.0.1\", int(sys.argv[1])), Handler).serve_forever()\n";
    let sample = sample.strip_suffix(last).expect("the sample ends by serving");
    let sample = format!(
        "{sample}server = ThreadingHTTPServer((\"127.0.0.1\", 0), Handler)\nprint(server.server_port, flush=True)\n\
         server.serve_forever()\n"
    );
    let mut command = Command::new("python3");
    let command = command.args(["-c", &sample]).env("HANDLER_SECRET", SECRET);
    let mut running = Running(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut said = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let port = line.trim().parse().unwrap();
    check(port);
    // Each effect once.
    let mut effects = Vec::new();
    for _ in 0..3 {
        line.clear();
        said.read_line(&mut line).unwrap();
        effects.push(line.split(' ').next().unwrap().to_owned());
    }
    assert_eq!(effects, ["do", "undo", "do"]);
}

#[test]
fn the_document_shows_the_samples() {
    let document = std::fs::read_to_string("../docs/handlers.md").unwrap();
    for (language, path) in [
        ("python", "../docs/samples/handler.py"),
        ("rust", "../docs/samples/handler.rs"),
    ] {
        let sample = std::fs::read_to_string(path).unwrap();
        assert!(
            document.contains(&format!("```{language}\n{sample}```\n")),
            "docs/handlers.md does not show {path} as it is"
        );
    }
}
