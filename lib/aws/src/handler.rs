//! Calls to the seller's action handler: signed, idempotent, to permitted addresses only, and never waited for beyond
//! their budget.
//!
//! | what came back, in time | outcome |
//! |---|---|
//! | 2xx, whatever follows its head | done |
//! | another status with `{"error_code", "recoverable"}` | failed, as it says; a code that could be ours begins with `handler:` |
//! | 5xx, 408, 425 or 429 without such a body; no whole answer | failed, recoverable: it is undone |
//! | 1xx, 3xx or another 4xx without such a body | failed, unrecoverable |
//! | nothing | out of time: it is undone |
//! | not even asked, as the address is forbidden | failed with `HANDLER_FORBIDDEN`, unrecoverable |

mod targets;

use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use domain::action::{self, ActionEvent, DEADLINE_MS, idempotency_key};
use domain::json::Object;
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
                return Outcome::refused(action::HANDLER_UNREACHABLE, true);
            }
        };
        let Ok(body) = serde_json::to_vec(call) else {
            return Outcome::refused(action::UNENCODABLE_CALL, false);
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
    Outcome::refused(action::HANDLER_FORBIDDEN, false)
}

fn unreached(call: &Call, error: reqwest::Error) -> Outcome {
    if let Some(why) = Forbidden::within(&error) {
        return forbidden(call, why);
    }
    // No answer says nothing about what the handler did, so it is recoverable: undo it.
    tracing::warn!(action_id = call.action_id, error = %error.without_url(), "handler not reached");
    Outcome::refused(action::HANDLER_UNREACHABLE, true)
}

/// What an answer that is no success says: its body, or else its status.
fn refusal(status: StatusCode, body: &[u8]) -> Outcome {
    // Told to come later: it was not done, and asking to undo that does no harm.
    let later = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    );
    let by_status = format!("{}{}", action::BY_STATUS, status.as_u16());
    let Ok(Object(said)) = serde_json::from_slice::<Object<Refusal>>(body) else {
        return Outcome::refused(&by_status, later || status.is_server_error());
    };
    match printable(&said.error_code, 64).trim() {
        "" => Outcome::refused(&by_status, said.recoverable),
        code => Outcome::refused(&action::handlers_code(code), said.recoverable),
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
mod tests;
