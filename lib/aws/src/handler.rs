//! Calls to the seller's action handler: signed, idempotent, to permitted addresses only, and never waited for beyond
//! their budget.
//!
//! | what came back, in time | outcome |
//! |---|---|
//! | 2xx, whatever follows its head | done |
//! | another status with `{"error_code", "recoverable"}` | failed, as it says |
//! | 5xx, 408, 425 or 429 without such a body; no whole answer | failed, recoverable: it is undone |
//! | 1xx, 3xx or another 4xx without such a body | failed, unrecoverable |
//! | nothing | out of time: it is undone |
//! | not even asked, as the address is forbidden | failed with `HANDLER_FORBIDDEN`, unrecoverable |

mod targets;

use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use domain::action::{ActionEvent, DEADLINE_MS, idempotency_key};
use domain::names::printable;
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

pub use self::targets::{Forbidden, Networks, NetworksError, Target, TargetError};

/// Most bytes kept of an answer: an error needs no more. Bodies are never inflated (reqwest is built without gzip, brotli,
/// deflate and zstd), so it is also the most that one can become; of a head hyper takes 100 headers and 400 KiB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// What one rollback call may be given, in milliseconds.
pub const ROLLBACK_BUDGET_MS: RangeInclusive<u64> = 100..=10_000;
/// How long an invocation of the governor lives, in milliseconds (infra/template.yaml).
const INVOCATION_MS: u64 = 15_000;
// The call, its rollback, and then time to commit what became of them.
const _: () = assert!(DEADLINE_MS + *ROLLBACK_BUDGET_MS.end() + 4_000 <= INVOCATION_MS);

/// Why the client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("making the handler's HTTP client")]
pub struct ClientError(#[from] reqwest::Error);

/// What a handler is asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Call {
    pub action_id: String,
    /// For whom.
    pub account_id: String,
    /// Template of the policy.
    pub template: String,
    /// The signal's parameters.
    pub parameters: Map<String, Value>,
}

/// What a handler says when it says no.
#[derive(Debug, Deserialize)]
struct Refusal {
    error_code: String,
    recoverable: bool,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// After how long its handler said so.
    Done(Duration),
    Refused {
        error_code: String,
        recoverable: bool,
    },
    OutOfTime,
}

impl Outcome {
    fn refused(error_code: &str, recoverable: bool) -> Self {
        Self::Refused {
            error_code: error_code.to_owned(),
            recoverable,
        }
    }
}

/// What a request is made of besides its call.
struct Envelope<'a> {
    path: &'a str,
    /// Idempotency key and message id: an id may not hold a dot, and an action id has none.
    key: String,
    /// 1-based.
    attempt: u64,
    budget: Duration,
}

/// A client of one handler, with its connections.
pub struct HandlerClient {
    http: OnceLock<Client>,
    target: Target,
    rollback_budget: Duration,
}

impl HandlerClient {
    /// A client of the handler at `target`, whose rollbacks have `rollback_budget` each. It reads the machine's TLS roots
    /// when it is first used, not now: that takes milliseconds, and a cold start has none to spare.
    #[must_use]
    pub fn new(target: Target, rollback_budget: Duration) -> Self {
        Self {
            http: OnceLock::new(),
            target,
            rollback_budget,
        }
    }

    /// Makes ready what the first call would otherwise spend its deadline on.
    ///
    /// # Errors
    /// [`ClientError`] when TLS cannot be set up.
    pub fn prepare(&self) -> Result<&Client, ClientError> {
        if let Some(http) = self.http.get() {
            return Ok(http);
        }
        // A second call finds it installed, which is what is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .dns_resolver(self.target.resolver())
            .connect_timeout(Duration::from_secs(1))
            .pool_idle_timeout(Duration::from_secs(60))
            .build()?;
        Ok(self.http.get_or_init(|| http))
    }

    /// Asks for an action, which is done once at most, and says how it ended within `budget` from now.
    pub async fn act(&self, secret: &Secret, path: &str, call: &Call, budget: Duration) -> ActionEvent {
        let envelope = Envelope {
            path,
            key: idempotency_key(&call.account_id, &call.action_id),
            attempt: 1,
            budget,
        };
        match self.post(secret, call, &envelope).await {
            Outcome::Done(_) => ActionEvent::HandlerOk,
            Outcome::Refused {
                error_code,
                recoverable,
            } => ActionEvent::HandlerFailed {
                error_code,
                recoverable,
            },
            Outcome::OutOfTime => ActionEvent::DeadlineExceeded,
        }
    }

    /// Asks for an action to be undone, for the `attempt`th time (from 1), and says how it ended within the rollback budget
    /// from now.
    pub async fn undo(&self, secret: &Secret, path: &str, call: &Call, attempt: u64) -> ActionEvent {
        let envelope = Envelope {
            path,
            // A message of its own.
            key: format!("{}:rollback", idempotency_key(&call.account_id, &call.action_id)),
            attempt,
            budget: self.rollback_budget,
        };
        match self.post(secret, call, &envelope).await {
            Outcome::Done(taken) => ActionEvent::UndoOk {
                rollback_duration_ms: u64::try_from(taken.as_millis()).unwrap_or(u64::MAX),
            },
            Outcome::Refused {
                error_code,
                recoverable,
            } => {
                let action_id = &call.action_id;
                tracing::warn!(action_id, error_code, recoverable, attempt, "rollback refused");
                ActionEvent::UndoFailed { recoverable }
            }
            Outcome::OutOfTime => {
                tracing::warn!(action_id = call.action_id, attempt, "rollback out of time");
                ActionEvent::UndoFailed { recoverable: true }
            }
        }
    }

    /// Everything a call needs counts: looking up the name, connecting, TLS, and the answer. When time is up the request is
    /// dropped and its connection with it, so that what comes late is heard by nobody.
    async fn post(&self, secret: &Secret, call: &Call, envelope: &Envelope<'_>) -> Outcome {
        let started = Instant::now();
        let deadline = started + envelope.budget;
        let url = match self.target.at(envelope.path) {
            Ok(url) => url,
            Err(e) => return forbidden(call, &e),
        };
        let http = match self.prepare() {
            Ok(http) => http,
            Err(e) => {
                tracing::error!(error = %e, "no HTTP client");
                return Outcome::refused("HANDLER_UNREACHABLE", true);
            }
        };
        let Ok(body) = serde_json::to_vec(call) else {
            return Outcome::refused("UNENCODABLE_CALL", false);
        };
        let now = Timestamp::now();
        let key = &envelope.key;
        let request = http
            .post(url)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .header("x-deadline-ms", envelope.budget.as_millis().to_string())
            .header("x-attempt", envelope.attempt.to_string())
            .header(WEBHOOK_ID, key)
            .header(WEBHOOK_TIMESTAMP, now.as_second().to_string())
            .header(WEBHOOK_SIGNATURE, sign_standard(secret, key, now, &body))
            .body(body);
        let response = match timeout_at(deadline, request.send()).await {
            Err(_) => return Outcome::OutOfTime,
            Ok(Err(e)) => return unreached(call, e),
            Ok(Ok(response)) => response,
        };
        // A busy process may hear of it late.
        let taken = started.elapsed();
        if taken > envelope.budget {
            return Outcome::OutOfTime;
        }
        let status = response.status();
        // Read also where nobody wants it: a connection whose answer was read to its end is used again.
        let body = timeout_at(deadline, read(response)).await;
        if status.is_success() {
            return Outcome::Done(taken);
        }
        match body {
            Err(_) => Outcome::OutOfTime,
            Ok(Err(e)) => unreached(call, e),
            Ok(Ok(body)) => refusal(status, &body.unwrap_or_default()),
        }
    }
}

/// Nothing was sent, and nothing will be until the configuration or the name says otherwise.
fn forbidden(call: &Call, why: &Forbidden) -> Outcome {
    tracing::error!(action_id = call.action_id, error = %why, "handler may not be called");
    Outcome::refused("HANDLER_FORBIDDEN", false)
}

fn unreached(call: &Call, error: reqwest::Error) -> Outcome {
    if let Some(why) = Forbidden::within(&error) {
        return forbidden(call, why);
    }
    // No answer says nothing about what the handler did, so it is recoverable: undo it.
    tracing::warn!(action_id = call.action_id, error = %error.without_url(), "handler not reached");
    Outcome::refused("HANDLER_UNREACHABLE", true)
}

/// What an answer that is no success says: its body, or else its status.
fn refusal(status: StatusCode, body: &[u8]) -> Outcome {
    // Told to come later: it was not done, and asking to undo that does no harm.
    let later = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    );
    let by_status = format!("HTTP_{}", status.as_u16());
    let Ok(said) = serde_json::from_slice::<Refusal>(body) else {
        return Outcome::refused(&by_status, later || status.is_server_error());
    };
    match printable(&said.error_code, 64).trim() {
        "" => Outcome::refused(&by_status, said.recoverable),
        code => Outcome::refused(code, said.recoverable),
    }
}

/// A body to its end; none when it is longer than anything that is looked at.
async fn read(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let announced = response.content_length().unwrap_or_default();
    if usize::try_from(announced).is_ok_and(|length| length > MAX_ANSWER_BYTES) {
        return Ok(None);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
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
                answer(500, r#"{"error_code":"STUCK","recoverable":false}"#),
                failed("STUCK", false),
            ),
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
}
