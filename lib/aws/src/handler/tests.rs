use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use super::*;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const DEADLINE: Duration = Duration::from_millis(DEADLINE_MS);
const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn call() -> Call {
    Call {
        action_id: "a-1".to_owned(),
        account_id: "c".to_owned(),
        template: "t".to_owned(),
        parameters: Map::new(),
    }
}

fn client_of(base: &str, networks: &str) -> HandlerClient {
    let target = Target::new(base, networks.parse().unwrap()).unwrap();
    HandlerClient::new(target, Duration::from_millis(2_000))
}

fn client(base: &str) -> HandlerClient {
    client_of(base, "127.0.0.0/8")
}

async fn act_with(client: &HandlerClient) -> ActionEvent {
    let secret = Secret::standard(SECRET).unwrap();
    client.act(&secret, "/actions/t", &call(), DEADLINE).await
}

async fn act(base: &str) -> ActionEvent {
    act_with(&client(base)).await
}

fn failed(error_code: &str, recoverable: bool) -> ActionEvent {
    ActionEvent::HandlerFailed {
        error_code: error_code.to_owned(),
        recoverable,
    }
}

fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}

/// One request, head and body.
fn request(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while !heard.ends_with(b"}") {
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "the caller left in the middle of its request");
        heard.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(heard).unwrap()
}

/// Waits until the caller closes, or breaks off.
fn closed(stream: &mut TcpStream) {
    let mut buffer = [0; 64];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
}

/// A handler that answers one request with these bytes, or never when there are none. Returns what it was sent.
fn handler(answer: Vec<u8>) -> (String, thread::JoinHandle<String>) {
    let (listener, address) = listener();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let heard = request(&mut stream);
        if answer.is_empty() {
            // The caller gives up first and closes.
            closed(&mut stream);
        }
        // A caller that stopped reading is part of what is tested.
        let _ = stream.write_all(&answer);
        heard
    });
    (address, served)
}

/// Waits beside the runtime, which may have to close the connection that the handler waits on.
async fn done<T: Send + 'static>(served: thread::JoinHandle<T>) -> T {
    tokio::task::spawn_blocking(|| served.join().unwrap())
        .await
        .unwrap()
}

/// An answer with this status and body.
fn answer(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} S\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[tokio::test]
async fn answers_become_events() {
    let long = |status: &str, length: usize| {
        let head = format!("HTTP/1.1 {status} S\r\nconnection: close\r\n\r\n");
        [head.into_bytes(), vec![b' '; length]].concat()
    };
    let headers = |count: usize, length: usize| {
        let header = format!("x: {}\r\n", "x".repeat(length));
        format!("HTTP/1.1 204 N\r\n{}\r\n", header.repeat(count)).into_bytes()
    };
    let said = r#"{"error_code":"NO\u0007PE","recoverable":true}"#;
    let inflated = r#"{"error_code":"INFLATED","recoverable":true}"#;
    let mut cases = vec![
        (NO_CONTENT.to_vec(), ActionEvent::HandlerOk),
        (answer(200, said), ActionEvent::HandlerOk),
        (answer(422, said), failed("NOPE", true)),
        (
            answer(500, r#"{"error_code":"DISK_FULL","recoverable":false}"#),
            failed("DISK_FULL", false),
        ),
        // What only the governor can know no handler says in its name.
        (
            answer(500, r#"{"error_code":"ROLLBACK_EXHAUSTED","recoverable":false}"#),
            failed("handler:ROLLBACK_EXHAUSTED", false),
        ),
        (
            answer(409, r#"{"error_code":" HTTP_503 ","recoverable":false}"#),
            failed("handler:HTTP_503", false),
        ),
        (answer(422, r#"["NOPE",true]"#), failed("HTTP_422", false)),
        (
            answer(409, r#"{"error_code":" ","recoverable":true}"#),
            failed("HTTP_409", true),
        ),
        (answer(409, r#"{"error_code":"NOPE"}"#), failed("HTTP_409", false)),
        (answer(500, "<html>"), failed("HTTP_500", true)),
        // A refusal behind 64 KiB of white space is not looked for; a success needs no end.
        (long("404", MAX_ANSWER_BYTES + 1), failed("HTTP_404", false)),
        (long("503", MAX_ANSWER_BYTES + 1), failed("HTTP_503", true)),
        (long("200", MAX_ANSWER_BYTES + 1), ActionEvent::HandlerOk),
        (
            b"HTTP/1.1 200 S\r\ncontent-length: 9\r\n\r\ncut".to_vec(),
            ActionEvent::HandlerOk,
        ),
        (
            b"HTTP/1.1 200 S\r\ncontent-length: 99999999\r\n\r\n".to_vec(),
            ActionEvent::HandlerOk,
        ),
        (
            b"HTTP/1.1 422 S\r\ncontent-length: 9\r\n\r\ncut".to_vec(),
            failed("HANDLER_UNREACHABLE", true),
        ),
        // Never inflated: read as it stands, whatever it says it is.
        (
            format!("HTTP/1.1 422 S\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n{inflated}")
                .into_bytes(),
            failed("INFLATED", true),
        ),
        // Redirects are not followed: the policy says where an action goes.
        (
            b"HTTP/1.1 307 R\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n".to_vec(),
            failed("HTTP_307", false),
        ),
        (
            b"HTTP/1.1 101 U\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec(),
            failed("HTTP_101", false),
        ),
        (
            b"HTTP/1.1 103 H\r\n\r\nHTTP/1.1 204 N\r\n\r\n".to_vec(),
            ActionEvent::HandlerOk,
        ),
        (headers(90, 1_000), ActionEvent::HandlerOk),
        (headers(101, 1), failed("HANDLER_UNREACHABLE", true)),
        (headers(1, 1_000_000), failed("HANDLER_UNREACHABLE", true)),
        (b"nonsense\r\n\r\n".to_vec(), failed("HANDLER_UNREACHABLE", true)),
        (Vec::new(), ActionEvent::DeadlineExceeded),
    ];
    for (status, recoverable) in [
        (300, false),
        (400, false),
        (401, false),
        (404, false),
        (408, true),
        (409, false),
        (425, true),
        (429, true),
        (499, false),
        (500, true),
        (599, true),
    ] {
        cases.push((answer(status, ""), failed(&format!("HTTP_{status}"), recoverable)));
    }
    for (answer, expected) in cases {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        let (base, served) = handler(answer);
        assert_eq!(act(&base).await, expected, "{shown}");
        done(served).await;
    }
}

#[tokio::test]
async fn nobody_listens() {
    let (listener, free) = listener();
    drop(listener);
    assert_eq!(act(&free).await, failed("HANDLER_UNREACHABLE", true));
}

fn headers(heard: &str) -> (BTreeMap<String, String>, &str) {
    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    (headers.collect(), body)
}

#[tokio::test]
async fn calls_are_signed_and_carry_their_key_attempt_and_deadline() {
    let (base, served) = handler(answer(200, ""));
    act(&base).await;
    let heard = done(served).await;
    let (headers, body) = headers(&heard);
    assert!(heard.starts_with("POST /actions/t HTTP/1.1"), "{heard}");
    assert_eq!(headers["idempotency-key"], idempotency_key("c", "a-1"));
    assert_ne!(idempotency_key("c", "a-1"), idempotency_key("d", "a-1"));
    assert_eq!(headers["x-deadline-ms"], "500");
    assert_eq!(headers["x-attempt"], "1");
    // Whoever has compressed bodies inflated asks for them.
    assert_eq!(headers.get("accept-encoding"), None);
    let secrets = [Secret::standard(SECRET).unwrap()];
    let verify = domain::webhook::providers::standard::verify_standard;
    assert!(verify(&secrets, &headers, body.as_bytes(), Timestamp::now()).is_ok());
}

#[tokio::test]
async fn a_rollback_has_its_own_key_budget_and_attempt() {
    let secret = Secret::standard(SECRET).unwrap();
    let (base, served) = handler(NO_CONTENT.to_vec());
    let undone = client(&base).undo(&secret, "/rollbacks/t", &call(), 3).await;
    assert!(matches!(undone, ActionEvent::UndoOk { .. }), "{undone:?}");
    let heard = done(served).await;
    let (headers, body) = headers(&heard);
    assert!(heard.starts_with("POST /rollbacks/t HTTP/1.1"), "{heard}");
    let key = format!("{}:rollback", idempotency_key("c", "a-1"));
    assert_eq!(
        (&headers["idempotency-key"], &headers["webhook-id"]),
        (&key, &key)
    );
    assert_eq!(headers["x-deadline-ms"], "2000");
    assert_eq!(headers["x-attempt"], "3");
    let verify = domain::webhook::providers::standard::verify_standard;
    assert!(
        verify(
            std::slice::from_ref(&secret),
            &headers,
            body.as_bytes(),
            Timestamp::now()
        )
        .is_ok()
    );

    for (answer, budget, recoverable) in [
        (answer(500, ""), 2_000, true),
        (answer(404, ""), 2_000, false),
        (Vec::new(), 100, true),
    ] {
        let (base, served) = handler(answer);
        let target = Target::new(&base, "127.0.0.0/8".parse().unwrap()).unwrap();
        let client = HandlerClient::new(target, Duration::from_millis(budget));
        let refused = client.undo(&secret, "/rollbacks/t", &call(), 1).await;
        assert_eq!(refused, ActionEvent::UndoFailed { recoverable });
        done(served).await;
    }
}

#[tokio::test]
async fn a_connection_serves_call_after_call() {
    let answers = [
        NO_CONTENT.to_vec(),
        answer(200, &"x".repeat(MAX_ANSWER_BYTES)),
        answer(500, "{}"),
        NO_CONTENT.to_vec(),
    ];
    let calls = answers.len();
    let (listener, base) = listener();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for answer in answers {
            request(&mut stream);
            stream.write_all(&answer).unwrap();
        }
        listener.set_nonblocking(true).unwrap();
        let another = listener.accept().map(|_| ());
        assert_eq!(another.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    });
    let client = client(&base);
    for _ in 0..calls {
        act_with(&client).await;
    }
    done(served).await;
}

/// The first call is given up on: its connection is closed, and what comes on it later answers no other call.
#[tokio::test]
async fn a_late_answer_is_heard_by_nobody() {
    let (listener, base) = listener();
    let (told, asked) = mpsc::channel();
    let served = thread::spawn(move || {
        for _ in 0..2 {
            let (mut late, _) = listener.accept().unwrap();
            request(&mut late);
            told.send(()).unwrap();
            closed(&mut late);
            let _ = late.write_all(NO_CONTENT);
        }
        let (mut stream, _) = listener.accept().unwrap();
        request(&mut stream);
        stream.write_all(&answer(409, "")).unwrap();
    });
    let client = client(&base);
    assert_eq!(act_with(&client).await, ActionEvent::DeadlineExceeded);
    asked.recv().unwrap();
    // One that is dropped before its deadline: as soon as the handler has heard it.
    let asked = tokio::task::spawn_blocking(move || asked.recv().unwrap());
    tokio::select! {
        biased;
        _ = asked => {}
        event = act_with(&client) => panic!("{event:?}"),
    }
    assert_eq!(act_with(&client).await, failed("HTTP_409", false));
    done(served).await;
}

/// From the start of the call, whatever it is spent on.
#[tokio::test]
async fn the_deadline_holds_wherever_a_handler_stalls() {
    let timely = |taken: Duration| taken >= DEADLINE && taken < DEADLINE + Duration::from_millis(250);
    let head = b"HTTP/1.1 422 S\r\ncontent-length: 9\r\n\r\n".as_slice();
    let trickle = b"HTTP/1.1 200 S\r\ncontent-length: 9\r\n\r\n".as_slice();
    for (scheme, stalls_after, expected) in [
        // Connected, and silent before TLS is spoken.
        ("https", None, ActionEvent::DeadlineExceeded),
        ("http", Some(b"".as_slice()), ActionEvent::DeadlineExceeded),
        (
            "http",
            Some(b"HTTP/1.1 20".as_slice()),
            ActionEvent::DeadlineExceeded,
        ),
        ("http", Some(head), ActionEvent::DeadlineExceeded),
        // Its head said that it is done; the rest is waited for no longer than for anything else.
        ("http", Some(trickle), ActionEvent::HandlerOk),
    ] {
        let (listener, base) = listener();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            if let Some(bytes) = stalls_after {
                request(&mut stream);
                stream.write_all(bytes).unwrap();
            }
            closed(&mut stream);
        });
        let client = client(&base.replace("http", scheme));
        client.prepare().unwrap();
        let started = Instant::now();
        let event = act_with(&client).await;
        let taken = started.elapsed();
        assert_eq!(event, expected, "{scheme} {stalls_after:?}");
        assert!(timely(taken), "{scheme} {stalls_after:?}: {taken:?}");
        done(served).await;
    }
}

/// `localhost` is in every machine's hosts file, so no name server is asked.
#[tokio::test]
async fn a_name_that_resolves_to_a_forbidden_address_is_not_called() {
    let (listener, base) = listener();
    let base = base.replace("http://127.0.0.1", "https://localhost");
    let forbidden = failed("HANDLER_FORBIDDEN", false);
    assert_eq!(act_with(&client_of(&base, "")).await, forbidden);
    assert_eq!(act_with(&client_of(&base, "10.0.0.0/8")).await, forbidden);
    let secret = Secret::standard(SECRET).unwrap();
    let undo = client_of(&base, "").undo(&secret, "/x", &call(), 1).await;
    assert_eq!(undo, ActionEvent::UndoFailed { recoverable: false });
    // A path that would leave the base is as forbidden.
    let elsewhere = client(&base).act(&secret, "@elsewhere/", &call(), DEADLINE).await;
    assert_eq!(elsewhere, forbidden);
    listener.set_nonblocking(true).unwrap();
    let nobody = listener.accept().map(|_| ());
    assert_eq!(nobody.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    // Where its address is listed the same name is connected to: no TLS is spoken here.
    listener.set_nonblocking(false).unwrap();
    let served = thread::spawn(move || drop(listener.accept().unwrap()));
    let reached = act_with(&client(&base)).await;
    assert_eq!(reached, failed("HANDLER_UNREACHABLE", true));
    done(served).await;
}

/// A name that is not found is no forbidden one.
#[tokio::test]
async fn a_name_that_is_unknown() {
    let event = act_with(&client_of("https://no-such-handler.invalid", "")).await;
    let slow = ActionEvent::DeadlineExceeded;
    assert!(
        event == failed("HANDLER_UNREACHABLE", true) || event == slow,
        "{event:?}"
    );
}
