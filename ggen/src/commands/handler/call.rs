//! A call of the sample handler, and its answer.

use std::collections::BTreeMap;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

/// A call for an action, or for its rollback.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Call {
    /// The `Idempotency-Key` of the action; a rollback's without what it ends with.
    #[serde(skip)]
    pub(super) key: String,
    pub(super) action_id: String,
    #[serde(default)]
    pub(super) account_id: String,
    #[serde(default)]
    pub(super) template: String,
    #[serde(default)]
    pub(super) parameters: Parameters,
}

/// The parameters that steer the handler, and the rest, which only tell one call from another.
#[derive(Clone, Debug, Default, Hash, Deserialize)]
pub(super) struct Parameters {
    #[serde(default)]
    pub(super) outcome: Outcome,
    #[serde(default)]
    pub(super) delay_ms: u64,
    #[serde(flatten)]
    pub(super) others: BTreeMap<String, Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    #[default]
    Succeed,
    Fail,
    FailUnrecoverable,
    FailRollback,
}

/// A status and a JSON body.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Answer {
    pub(super) fn done(status: &str, action_id: &str) -> Self {
        Self {
            status: 200,
            body: json!({ "status": status, "action_id": action_id }),
        }
    }

    /// What a governor reads from a failed action.
    pub(super) fn failure(status: u16, error_code: &str, recoverable: bool) -> Self {
        Self {
            status,
            body: json!({ "error_code": error_code, "recoverable": recoverable }),
        }
    }

    /// The call itself is wrong: problem details (RFC 9457) that also read as a failure no retry repairs.
    pub(super) fn problem(status: u16, error_code: &str, detail: &str) -> Self {
        let body = json!({
            "type": "about:blank", "title": error_code, "status": status, "detail": detail,
            "error_code": error_code, "recoverable": false,
        });
        Self { status, body }
    }

    pub(super) fn rolled_back() -> Self {
        Self::problem(
            409,
            "ROLLED_BACK",
            "the action was rolled back before it was applied",
        )
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = if self.body.get("title").is_some() {
            "application/problem+json"
        } else {
            "application/json"
        };
        (status, [(header::CONTENT_TYPE, kind)], self.body.to_string()).into_response()
    }
}
