use axum::{Json, Router, body::Bytes, extract::State, http::{HeaderMap, StatusCode}};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use std::{collections::HashMap, sync::Arc, time::{Duration, SystemTime, UNIX_EPOCH}};

/// The key, and for each action whether it was done or undone: keep that in the database that your work changes.
type Handler = Arc<(Vec<u8>, tokio::sync::Mutex<HashMap<String, &'static str>>)>;

async fn call(State(handler): State<Handler>, headers: HeaderMap, body: Bytes) -> (StatusCode, Json<Value>) {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (id, at) = (header("webhook-id"), header("webhook-timestamp"));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&handler.0).expect("an HMAC key may have any length");
    mac.update(format!("{id}.{at}.").as_bytes());
    mac.update(&body);
    let given = header("webhook-signature").split(' ').filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
    let sent = UNIX_EPOCH + Duration::from_secs(at.parse().unwrap_or(0).min(1 << 40));
    let age = SystemTime::now().duration_since(sent).unwrap_or_else(|early| early.duration());
    if !given.into_iter().any(|one| mac.clone().verify_slice(&one).is_ok()) || age.as_secs() > 300 {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error_code": "UNAUTHORIZED", "recoverable": false})));
    }
    let (action, wanted) = id.strip_suffix(":rollback").map_or((id, "do"), |action| (action, "undo"));
    let mut state = handler.1.lock().await;
    let before = state.get(action).copied();
    if (before, wanted) == (Some("undo"), "do") { // this call was slow, and its rollback came first
        return (StatusCode::CONFLICT, Json(json!({"error_code": "ROLLED_BACK", "recoverable": false})));
    }
    if before != Some(wanted) && (before.is_some() || wanted == "do") { // what never happened need not be undone
        println!("{wanted} {}", String::from_utf8_lossy(&body)); // your work goes here
    }
    state.insert(action.to_owned(), wanted);
    (StatusCode::OK, Json(json!({"before": before, "now": wanted})))
}

pub async fn serve(listener: tokio::net::TcpListener, secret: &str) -> Result<(), Box<dyn std::error::Error>> {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret))?;
    let handler = Handler::new((key, Default::default()));
    Ok(axum::serve(listener, Router::new().fallback(call).with_state(handler)).await?)
}
