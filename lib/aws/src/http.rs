//! The envelope of what comes over HTTP: API Gateway's event in, JSON or problem details (RFC 9457) out.

use aws_lambda_events::apigw::{ApiGatewayV2httpRequest, ApiGatewayV2httpResponse};
use aws_lambda_events::encodings::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::webhook::MAX_BODY_BYTES;
use domain::webhook::signature::Headers;
use receipts::wording;
use serde_json::{Value, json};

/// When a sender that is turned away for now should come back, in seconds.
const RETRY_AFTER_SECONDS: u64 = 10;

/// A request as it came: method, path, headers by lower-case name, raw bytes.
#[derive(Debug)]
pub struct Request {
    /// Method, such as `POST`.
    pub method: String,
    /// Path without the stage, such as `/webhooks/github`.
    pub path: String,
    /// Headers by lower-case name.
    pub headers: Headers,
    /// The bytes that were posted.
    pub body: Vec<u8>,
}

/// A refusal, as its caller reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub status: u16,
    /// Short and the same for every occurrence.
    pub title: &'static str,
    /// What was wrong this time.
    pub detail: String,
    /// What a machine reads of it, beside the members above.
    pub members: Vec<(&'static str, Value)>,
    /// When to come back, in seconds. Where a 503 says nothing, it is ten.
    pub retry_after: Option<u64>,
    /// The methods that the path takes, of a 405.
    pub allow: Option<&'static str>,
}

impl Problem {
    /// A problem with its status, title and detail.
    #[must_use]
    pub fn new(status: u16, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            title,
            detail: detail.into(),
            members: Vec::new(),
            retry_after: (status == 503).then_some(RETRY_AFTER_SECONDS),
            allow: None,
        }
    }

    /// The problem with one member more.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.push((name, value.into()));
        self
    }

    /// Something we depend on does not answer now: status 503.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(503, "Not available", detail)
    }

    /// The problem as `application/problem+json`.
    #[must_use]
    pub fn response(&self) -> ApiGatewayV2httpResponse {
        let mut body = json!({
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        });
        if let Some(body) = body.as_object_mut() {
            // What RFC 9457 names stays as it is.
            for (name, value) in &self.members {
                body.entry(*name).or_insert_with(|| value.clone());
            }
        }
        let mut response = answer(self.status, "application/problem+json", body.to_string());
        if let Some(seconds) = self.retry_after {
            response.headers.insert("retry-after", seconds.into());
        }
        if let Some(Ok(allow)) = self.allow.map(str::parse) {
            response.headers.insert("allow", allow);
        }
        response
    }
}

/// The answer to a delivery that left a receipt: the receipt's line, as it stands in the ledger. Of what could not be done
/// the answer is a problem (RFC 9457) that has the receipt as its member `receipt`.
#[must_use]
pub fn answered(status: u16, receipt: String) -> ApiGatewayV2httpResponse {
    if status < 400 {
        return answer(status, "application/json", receipt);
    }
    let receipt: Value = serde_json::from_str(&receipt).unwrap_or(Value::String(receipt));
    let body = json!({
        "type": "about:blank",
        "title": "Not possible",
        "status": status,
        "detail": receipt.get("reason").cloned().unwrap_or_default(),
        "receipt": receipt,
    });
    answer(status, "application/problem+json", body.to_string())
}

/// The answer to what is done later: where to look for it, relative to where it was asked for.
#[must_use]
pub fn accepted(body: &Value, location: &str) -> ApiGatewayV2httpResponse {
    let mut response = answer(202, "application/json", body.to_string());
    if let Ok(location) = location.parse() {
        response.headers.insert("location", location);
    }
    response
}

fn answer(status: u16, content_type: &str, body: String) -> ApiGatewayV2httpResponse {
    let mut response = ApiGatewayV2httpResponse::default();
    response.status_code = i64::from(status);
    if let Ok(value) = content_type.parse() {
        response.headers.insert("content-type", value);
    }
    response.body = Some(Body::Text(body));
    response
}

/// Reads an event. Nothing in it is trusted: sizes and encodings are checked here, signatures by the caller.
///
/// # Errors
/// A [`Problem`] with status 400 for bytes that cannot be read, 413 for a body over 256 KiB.
pub fn request(event: Value) -> Result<Request, Problem> {
    let bad = |detail: String| Problem::new(400, "Malformed request", detail);
    let event: ApiGatewayV2httpRequest = serde_json::from_value(event).map_err(|e| {
        bad(format!(
            "not an HTTP API event (payload format 2.0): {}",
            unreadable(&e)
        ))
    })?;
    let text = event.body.unwrap_or_default();
    // Base64 spends four characters on three bytes.
    if text.len() > MAX_BODY_BYTES.div_ceil(3) * 4 {
        return Err(too_large());
    }
    let body = if event.is_base64_encoded {
        STANDARD
            .decode(text.as_bytes())
            .map_err(|e| bad(format!("body is marked base64 and is not: {e}")))?
    } else {
        text.into_bytes()
    };
    if body.len() > MAX_BODY_BYTES {
        return Err(too_large());
    }
    let mut headers = Headers::new();
    for (name, value) in &event.headers {
        // Bytes that are no text stay visible as such, so that the check names the header as malformed, not as missing.
        let value = String::from_utf8_lossy(value.as_bytes());
        headers.insert(name.as_str().to_ascii_lowercase(), value.into_owned());
    }
    Ok(Request {
        method: event.request_context.http.method.to_string(),
        path: event.raw_path.unwrap_or_default(),
        headers,
        body,
    })
}

/// What is wrong with an event. It comes from whoever invoked the function directly: no gateway sends such a one.
fn unreadable(error: &serde_json::Error) -> String {
    match wording::problem(error) {
        // What the reader of headers calls what it expects.
        problem if problem.contains("HeaderMap") => {
            "its headers are not an object of texts by name".to_owned()
        }
        problem => problem,
    }
}

fn too_large() -> Problem {
    Problem::new(
        413,
        "Body too large",
        format!("body has more than {MAX_BODY_BYTES} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample event with some fields replaced.
    fn sample(changes: Value) -> Value {
        let mut event: Value =
            serde_json::from_str(include_str!("../../../events/entitlement/github-purchased.json")).unwrap();
        for (name, value) in changes.as_object().unwrap() {
            event[name] = value.clone();
        }
        event
    }

    #[track_caller]
    fn check(event: Value, expected: Result<&[u8], (u16, &str)>) {
        match (request(event), expected) {
            (Ok(request), Ok(body)) => assert_eq!(request.body, body),
            (Err(problem), Err((status, start))) => {
                assert_eq!(problem.status, status);
                assert!(problem.detail.starts_with(start), "{:?}", problem.detail);
            }
            (got, _) => panic!("{got:?}"),
        }
    }

    #[test]
    fn bodies() {
        check(sample(json!({"body": "hi"})), Ok(b"hi"));
        check(
            sample(json!({"body": "aGk=", "isBase64Encoded": true})),
            Ok(b"hi"),
        );
        check(sample(json!({"body": null})), Ok(b""));
        check(
            sample(json!({"body": "!", "isBase64Encoded": true})),
            Err((400, "body is marked base64 and is not")),
        );
        check(json!([1]), Err((400, "not an HTTP API event")));
        check(json!({}), Err((400, "not an HTTP API event")));
        check(
            sample(json!({"body": "x".repeat(MAX_BODY_BYTES)})),
            Ok("x".repeat(MAX_BODY_BYTES).as_bytes()),
        );
        check(
            sample(json!({"body": "x".repeat(MAX_BODY_BYTES + 1)})),
            Err((413, "body has more than 262144 bytes")),
        );
        let encoded = STANDARD.encode("x".repeat(MAX_BODY_BYTES + 1));
        check(
            sample(json!({"body": encoded, "isBase64Encoded": true})),
            Err((413, "body has more than 262144 bytes")),
        );
    }

    #[test]
    fn header_names_in_any_case() {
        let got = request(sample(json!({"headers": {"Webhook-ID": "m1"}}))).unwrap();
        assert_eq!(got.headers.get("webhook-id").map(String::as_str), Some("m1"));
        assert_eq!(got.path, "/webhooks/github");
        assert_eq!(got.method, "POST");
    }

    /// Status, body, and the headers besides the content type.
    #[track_caller]
    fn check_response(
        response: &ApiGatewayV2httpResponse,
        status: i64,
        body: &Value,
        headers: &[(&str, &str)],
    ) {
        assert_eq!(response.status_code, status);
        let Some(Body::Text(text)) = &response.body else {
            panic!("{response:?}");
        };
        assert_eq!(&serde_json::from_str::<Value>(text).unwrap(), body);
        assert_eq!(
            response.headers.len(),
            headers.len() + 1,
            "{:?}",
            response.headers
        );
        for (name, value) in headers {
            assert_eq!(
                response.headers.get(*name).unwrap().to_str().unwrap(),
                *value,
                "{name}"
            );
        }
    }

    #[test]
    fn problems_say_more_and_when_to_come_back() {
        let problem = Problem::new(429, "Quota exceeded", "used up")
            .with("code", "QUOTA_EXCEEDED")
            .with("status", 200);
        let body = json!({
            "type": "about:blank", "title": "Quota exceeded", "status": 429, "detail": "used up", "code": "QUOTA_EXCEEDED",
        });
        let later = Problem {
            retry_after: Some(86_400),
            ..problem.clone()
        };
        check_response(&problem.response(), 429, &body, &[]);
        check_response(&later.response(), 429, &body, &[("retry-after", "86400")]);
        let body = json!({ "type": "about:blank", "title": "Not available", "status": 503, "detail": "d" });
        check_response(
            &Problem::unavailable("d").response(),
            503,
            &body,
            &[("retry-after", "10")],
        );
        let body = json!({ "type": "about:blank", "title": "t", "status": 405, "detail": "d" });
        let method = Problem {
            allow: Some("POST"),
            ..Problem::new(405, "t", "d")
        };
        check_response(&method.response(), 405, &body, &[("allow", "POST")]);
        let body = json!({ "action_id": "a" });
        check_response(
            &accepted(&body, "actions/a"),
            202,
            &body,
            &[("location", "actions/a")],
        );
    }
}
