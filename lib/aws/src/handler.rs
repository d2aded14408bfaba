//! Calls to the seller's action handler: signed, idempotent, and never waited for beyond their budget.

use std::sync::OnceLock;
use std::time::Duration;

use domain::action::{ActionEvent, idempotency_key};
use domain::names::printable;
use domain::webhook::signature::{Secret, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use jiff::Timestamp;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

/// Most bytes read of an answer: an error needs no more.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why the client could not be made.
#[derive(Debug, thiserror::Error)]
#[error("making the handler's HTTP client")]
pub struct ClientError(#[from] reqwest::Error);

/// What a handler is asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Call {
    /// Which action.
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
    Done,
    Refused { error_code: String, recoverable: bool },
    OutOfTime,
}

/// A client of one handler, with its connections.
pub struct HandlerClient {
    http: OnceLock<Client>,
    base_url: String,
}

impl HandlerClient {
    /// A client of the handler at `base_url`. It reads the machine's TLS roots when it is first used, not now: that
    /// takes milliseconds, and a cold start has none to spare.
    #[must_use]
    pub fn new(base_url: &str) -> Self {
        Self {
            http: OnceLock::new(),
            base_url: base_url.trim_end_matches('/').to_owned(),
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
            .connect_timeout(Duration::from_secs(1))
            .pool_idle_timeout(Duration::from_secs(60))
            .build()?;
        Ok(self.http.get_or_init(|| http))
    }

    /// Asks for an action, and says how it ended within `budget` from now.
    pub async fn act(&self, secret: &Secret, path: &str, call: &Call, budget: Duration) -> ActionEvent {
        let key = idempotency_key(&call.account_id, &call.action_id);
        match self.post(secret, path, call, &key, budget).await {
            Outcome::Done => ActionEvent::HandlerOk,
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

    /// Asks for an action to be undone, and says how it ended within `budget` from now.
    pub async fn undo(&self, secret: &Secret, path: &str, call: &Call, budget: Duration) -> ActionEvent {
        let started = Instant::now();
        let key = idempotency_key(&call.account_id, &call.action_id);
        match self
            .post(secret, path, call, &format!("{key}:rollback"), budget)
            .await
        {
            Outcome::Done => {
                let taken = started.elapsed().as_millis();
                ActionEvent::UndoOk {
                    rollback_duration_ms: u64::try_from(taken).unwrap_or(u64::MAX),
                }
            }
            Outcome::Refused { error_code, .. } => {
                tracing::warn!(action_id = call.action_id, error_code, "rollback refused");
                ActionEvent::UndoFailed
            }
            Outcome::OutOfTime => ActionEvent::UndoFailed,
        }
    }

    async fn post(&self, secret: &Secret, path: &str, call: &Call, key: &str, budget: Duration) -> Outcome {
        let deadline = Instant::now() + budget;
        let refused = |error_code: &str, recoverable| Outcome::Refused {
            error_code: error_code.to_owned(),
            recoverable,
        };
        let http = match self.prepare() {
            Ok(http) => http,
            Err(e) => {
                tracing::error!(error = %e, "no HTTP client");
                return refused("HANDLER_UNREACHABLE", true);
            }
        };
        let Ok(body) = serde_json::to_vec(call) else {
            return refused("UNENCODABLE_CALL", false);
        };
        let now = Timestamp::now();
        // A signature's id may not hold a dot, and an action id has none; a rollback is a message of its own.
        let request = http
            .post(format!("{}{path}", self.base_url))
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .header("x-deadline-ms", budget.as_millis().to_string())
            .header(WEBHOOK_ID, key)
            .header(WEBHOOK_TIMESTAMP, now.as_second().to_string())
            .header(WEBHOOK_SIGNATURE, sign_standard(secret, key, now, &body))
            .body(body);
        let answered = timeout_at(deadline, async {
            let response = request.send().await?;
            let status = response.status();
            let body = if status.is_success() {
                Vec::new()
            } else {
                read(response).await?
            };
            Ok::<_, reqwest::Error>((status, body))
        });
        match answered.await {
            Err(_) => Outcome::OutOfTime,
            Ok(Err(e)) => {
                // No answer says nothing about what the handler did, so it is recoverable: undo it.
                tracing::warn!(action_id = call.action_id, error = %e.without_url(), "handler not reached");
                refused("HANDLER_UNREACHABLE", true)
            }
            Ok(Ok((status, _))) if status.is_success() => Outcome::Done,
            Ok(Ok((status, body))) => match serde_json::from_slice::<Refusal>(&body) {
                Ok(said) => refused(&printable(&said.error_code, 64), said.recoverable),
                Err(_) => refused(&format!("HTTP_{}", status.as_u16()), status.is_server_error()),
            },
        }
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            break;
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn call() -> Call {
        Call {
            action_id: "a-1".to_owned(),
            account_id: "c".to_owned(),
            template: "t".to_owned(),
            parameters: Map::new(),
        }
    }

    /// A handler that answers one request with these bytes, or never when there are none. Returns what it was sent.
    fn handler(answer: &'static [u8]) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = Vec::new();
            let mut buffer = [0; 4096];
            while !heard.ends_with(b"}") {
                let read = stream.read(&mut buffer).unwrap();
                heard.extend_from_slice(&buffer[..read]);
            }
            if answer.is_empty() {
                // The caller gives up first and closes.
                let _ = stream.read(&mut buffer);
            }
            // A caller that stopped reading is part of what is tested.
            let _ = stream.write_all(answer);
            String::from_utf8(heard).unwrap()
        });
        (address, served)
    }

    /// Waits beside the runtime, which may have to close the connection that the handler waits on.
    async fn heard(served: thread::JoinHandle<String>) -> String {
        tokio::task::spawn_blocking(|| served.join().unwrap())
            .await
            .unwrap()
    }

    async fn act(base: &str) -> ActionEvent {
        let secret = Secret::standard(SECRET).unwrap();
        let client = HandlerClient::new(base);
        client
            .act(&secret, "/actions/t", &call(), Duration::from_millis(500))
            .await
    }

    fn failed(error_code: &str, recoverable: bool) -> ActionEvent {
        ActionEvent::HandlerFailed {
            error_code: error_code.to_owned(),
            recoverable,
        }
    }

    #[tokio::test]
    async fn answers_become_events() {
        let cases: [(&[u8], ActionEvent); 7] = [
            (b"HTTP/1.1 204 No Content\r\n\r\n", ActionEvent::HandlerOk),
            (b"HTTP/1.1 500 E\r\ncontent-length: 0\r\n\r\n", failed("HTTP_500", true)),
            (b"HTTP/1.1 404 E\r\ncontent-length: 0\r\n\r\n", failed("HTTP_404", false)),
            (
                b"HTTP/1.1 422 E\r\ncontent-length: 46\r\n\r\n{\"error_code\":\"NO\\u0007PE\",\"recoverable\":true}",
                failed("NOPE", true),
            ),
            // Redirects are not followed: the policy says where an action goes.
            (b"HTTP/1.1 307 R\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", failed("HTTP_307", false)),
            (b"nonsense\r\n\r\n", failed("HANDLER_UNREACHABLE", true)),
            (b"", ActionEvent::DeadlineExceeded),
        ];
        for (answer, expected) in cases {
            let (base, served) = handler(answer);
            assert_eq!(act(&base).await, expected, "{}", String::from_utf8_lossy(answer));
            heard(served).await;
        }
    }

    #[tokio::test]
    async fn nobody_listens() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(
            act(&format!("http://{free}")).await,
            failed("HANDLER_UNREACHABLE", true)
        );
    }

    #[tokio::test]
    async fn calls_are_signed_and_carry_their_key_and_deadline() {
        let (base, served) = handler(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        act(&base).await;
        let heard = heard(served).await;
        let (head, body) = heard.split_once("\r\n\r\n").unwrap();
        let headers: std::collections::BTreeMap<String, String> = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert!(head.starts_with("POST /actions/t HTTP/1.1"), "{head}");
        assert_eq!(headers["idempotency-key"], idempotency_key("c", "a-1"));
        assert_ne!(idempotency_key("c", "a-1"), idempotency_key("d", "a-1"));
        assert_eq!(headers["x-deadline-ms"], "500");
        let secrets = [Secret::standard(SECRET).unwrap()];
        let verify = domain::webhook::signature::verify_standard;
        assert!(verify(&secrets, &headers, body.as_bytes(), Timestamp::now()).is_ok());
    }
}
