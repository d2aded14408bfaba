//! `ggen handler`: the sample action handler, for development, the story and tests.
//!
//! It is what a seller writes for real: an HTTP service that applies an action once however often it is asked, and that
//! undoes it. The signal's parameters steer it: `outcome` (`succeed`, `fail`, `fail-unrecoverable`, and `fail-rollback`,
//! which fails and then can't be undone) and `delay_ms`.

mod call;
mod journal;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::HeaderMap;
use axum::routing::{get, post};
use clap::Args;
use domain::webhook::providers::standard::verify_standard;
use domain::webhook::signature::{Secret, SecretError};
use jiff::Timestamp;
use receipts::wording;
use serde::Deserialize;
use serde_json::json;

use self::call::{Answer, Call};
use self::journal::{Begin, Journal, Waiting};
use crate::out::Out;
use crate::report::{self, Verdict};

/// Largest body accepted, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Actions remembered; the oldest is forgotten for a newer one.
const MAX_REMEMBERED: usize = 10_000;
/// Longest `delay_ms`, in milliseconds.
const MAX_DELAY_MS: u64 = 600_000;
/// Longest id or name remembered, in bytes.
const MAX_NAME_BYTES: usize = 1_024;

const EXAMPLES: &str = "\
Examples:
  HANDLER_SECRET=$(ggen keys secret) ggen handler --listen 127.0.0.1:0
  curl -s \"$HANDLER_URL/log?action_id=a-1\"

A signal's parameters control it: \"delay_ms\" (0 to 600000) and \"outcome\" (succeed, fail, fail-unrecoverable, fail-rollback).

Routes: POST /actions/{name}, POST /rollbacks/{name}, GET /log[?action_id=ID], GET /health.
The first line on stdout is {\"listening\":\"http://127.0.0.1:PORT\"}. SIGTERM or Ctrl-C stops it.";

/// Arguments of `ggen handler`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct HandlerArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Environment variable with the secret (whsec_…) that calls are signed with; if unset, calls are not checked
    #[arg(long, value_name = "NAME", default_value = "HANDLER_SECRET")]
    secret_env: String,
}

/// Why the handler cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    #[error("environment variable {name} holds no usable secret")]
    Secret { name: String, source: SecretError },
    #[error("cannot listen on {listen}")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("the handler cannot continue")]
    System(#[from] io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the secret is unusable, the address is taken, or the system fails.
pub fn run(args: &HandlerArgs, out: &mut Out) -> Result<Verdict, HandlerError> {
    let secret = match std::env::var(&args.secret_env) {
        Ok(text) => {
            let secret = Secret::standard(&text);
            Some(secret.map_err(|source| HandlerError::Secret {
                name: args.secret_env.clone(),
                source,
            })?)
        }
        Err(_) => {
            report::note(&format!(
                "{} is not set: calls are accepted without a signature",
                args.secret_env
            ));
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args.listen, secret, out))
}

async fn serve(listen: SocketAddr, secret: Option<Secret>, out: &mut Out) -> Result<Verdict, HandlerError> {
    let at = |source| HandlerError::Listen { listen, source };
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(at)?;
    let address = listener.local_addr()?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    writeln!(out, "{}", json!({ "listening": format!("http://{address}") }))?;
    out.flush()?;

    let service = Arc::new(Service {
        secrets: secret.map(|secret| [secret]),
        journal: Mutex::new(Journal::new(MAX_REMEMBERED)),
    });
    // Calls in flight are cut at the end: a governor takes silence for a timeout and rolls back.
    tokio::select! {
        served = axum::serve(listener, routes(service)) => served?,
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(Verdict::Good)
}

fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/actions/{name}", post(act))
        .route("/rollbacks/{name}", post(roll_back))
        .route("/log", get(log))
        .route(
            "/health",
            get(async || Answer {
                status: 200,
                body: json!({ "status": "ok" }),
            }),
        )
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(service)
}

struct Service {
    secrets: Option<[Secret; 1]>,
    journal: Mutex<Journal>,
}

type Incoming = Result<Bytes, BytesRejection>;

async fn act(State(service): State<Arc<Service>>, headers: HeaderMap, body: Incoming) -> Answer {
    let call = match service.admit(&headers, body, "") {
        Ok(call) => call,
        Err(refusal) => return refusal,
    };
    let begin = service.journal().begin(&call);
    match begin {
        Begin::Refuse(refusal) => refusal,
        Begin::Repeat(waiting) => answered(waiting).await,
        Begin::Run(answers, waiting) => {
            // A task of its own, because this future ends with the caller's connection and a real handler does not:
            // what a caller gave up on may still be applied, which is what rollback is for.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(call.parameters.delay_ms)).await;
                let answer = service.journal().finish(&call, Timestamp::now());
                answers.send_replace(Some(answer));
            });
            answered(waiting).await
        }
    }
}

async fn answered(mut waiting: Waiting) -> Answer {
    match waiting.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(answer)) => answer.clone(),
        Ok(None) | Err(_) => Answer::failure(503, "STOPPING", true),
    }
}

async fn roll_back(State(service): State<Arc<Service>>, headers: HeaderMap, body: Incoming) -> Answer {
    match service.admit(&headers, body, ":rollback") {
        Ok(call) => service.journal().undo(&call, Timestamp::now()),
        Err(refusal) => refusal,
    }
}

#[derive(Deserialize)]
struct LogQuery {
    action_id: Option<String>,
}

async fn log(State(service): State<Arc<Service>>, Query(query): Query<LogQuery>) -> axum::Json<journal::Log> {
    axum::Json(service.journal().log(query.action_id.as_deref()))
}

impl Service {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        // Nothing in the journal can panic half-way; if it did, its records would each still be whole.
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the signature over the raw bytes, then reads the call.
    fn admit(&self, headers: &HeaderMap, body: Incoming, key_suffix: &str) -> Result<Call, Answer> {
        let body = body.map_err(|rejection| {
            Answer::problem(
                rejection.status().as_u16(),
                "BODY_REFUSED",
                &rejection.body_text(),
            )
        })?;
        if let Some(secrets) = &self.secrets {
            let headers = headers
                .iter()
                .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
                .collect();
            verify_standard(secrets, &headers, &body, Timestamp::now())
                .map_err(|error| Answer::problem(401, "UNAUTHORIZED", &error.to_string()))?;
        }
        let call: Call = serde_json::from_slice(&body).map_err(|error| {
            Answer::problem(
                400,
                "MALFORMED",
                &format!("the body is not an action: {}", wording::problem(&error)),
            )
        })?;
        let names = [&call.action_id, &call.account_id, &call.template];
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) || call.parameters.delay_ms > MAX_DELAY_MS {
            let limits =
                format!("ids have at most {MAX_NAME_BYTES} bytes, delay_ms is at most {MAX_DELAY_MS}");
            return Err(Answer::problem(400, "OUT_OF_RANGE", &limits));
        }
        let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        // Action ids are each tenant's own: what tells calls apart stands before it.
        let expected = format!("{}{key_suffix}", call.action_id);
        let of_action = key.filter(|key| key.ends_with(&expected));
        let Some(key) = of_action.and_then(|key| key.strip_suffix(key_suffix)) else {
            let found = key.unwrap_or("missing");
            let detail =
                format!("header Idempotency-Key is {found:?}, expected one that ends with {expected:?}");
            return Err(Answer::problem(400, "IDEMPOTENCY_KEY", &detail));
        };
        Ok(Call {
            key: key.to_owned(),
            ..call
        })
    }
}
