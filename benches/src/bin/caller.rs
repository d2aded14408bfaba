//! The least that a governor could be: a function that calls the action handler for each signal of a batch, and nothing
//! else. What the governor's time and CPU are held against.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "it runs in a bench, which has nothing better to do than to stop when this cannot go on"
)]

use std::time::Duration;

use domain::action::{DEADLINE_MS, idempotency_key};
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinSet;

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = Client::builder()
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(60))
        .build()?;
    let secret = Secret::standard(&variable("HANDLER_SECRET"))?;
    let base_url = variable("HANDLER_BASE_URL");
    let call = |record: &Value| call(&http, &base_url, &secret, record);
    run(service_fn(|event: LambdaEvent<Value>| {
        let records = event.payload["Records"].as_array().cloned().unwrap_or_default();
        let calls: Vec<RequestBuilder> = records.iter().map(call).collect();
        async move {
            let mut answers = JoinSet::new();
            for call in calls {
                answers.spawn(tokio::time::timeout(
                    Duration::from_millis(DEADLINE_MS),
                    call.send(),
                ));
            }
            while let Some(answer) = answers.join_next().await {
                answer???.error_for_status()?;
            }
            Ok::<_, Error>(json!({"batchItemFailures": []}))
        }
    }))
    .await
}

/// The call that a governor would make for this message: same body, same headers.
fn call(http: &Client, base_url: &str, secret: &Secret, record: &Value) -> RequestBuilder {
    let signal = record["body"].as_str().unwrap_or_default();
    let signal: Value = serde_json::from_str(signal).expect("a signal in JSON");
    let text = |name: &str| signal[name].as_str().unwrap_or_default();
    let body = json!({
        "action_id": text("action_id"),
        "account_id": text("account_id"),
        "template": text("template"),
        "parameters": signal["parameters"],
    });
    let (body, now) = (body.to_string().into_bytes(), Timestamp::now());
    let key = idempotency_key(text("account_id"), text("action_id"));
    http.post(format!("{base_url}/actions/{}", text("template")))
        .header("content-type", "application/json")
        .header("idempotency-key", &key)
        .header("x-deadline-ms", DEADLINE_MS.to_string())
        .header(WEBHOOK_ID, &key)
        .header(WEBHOOK_TIMESTAMP, now.as_second().to_string())
        .header(WEBHOOK_SIGNATURE, sign_standard(secret, &key, now, &body))
        .body(body)
}
