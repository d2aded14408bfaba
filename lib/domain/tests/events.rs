//! The sample events in `events/` say what their README promises.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::fs;
use std::path::Path;

use domain::webhook::event::WebhookEvent;
use domain::webhook::providers::at_path;
use domain::webhook::signature::{Headers, SignatureError};
use governor_domain as domain;
use jiff::Timestamp;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

fn event(file: &str) -> Value {
    let path = root().join("events").join(file);
    serde_json::from_str(&fs::read_to_string(&path).unwrap())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn github(file: &str) -> Result<WebhookEvent, SignatureError> {
    let event = event(file);
    let headers: Headers = serde_json::from_value(event["headers"].clone()).unwrap();
    let provider = at_path("/webhooks/github").unwrap();
    let secret = (provider.secret)("It's a Secret to Everybody").unwrap();
    let body = event["body"].as_str().unwrap().as_bytes();
    let verified = (provider.verify)(&[secret], &headers, body, Timestamp::UNIX_EPOCH)?;
    Ok((provider.parse)(&verified, &headers).unwrap())
}

#[test]
fn github_events_are_signed_and_for_one_account() {
    for (file, change) in [
        ("entitlement/github-purchased.json", "purchase"),
        ("entitlement/github-cancelled.json", "cancellation"),
    ] {
        let Ok(WebhookEvent::Entitlement(event)) = github(file) else {
            panic!("{file} is about no entitlement")
        };
        assert_eq!(
            (event.account_id.as_str(), event.change.name()),
            ("github-18404719", change)
        );
    }
    assert_eq!(
        github("entitlement/bad-signature.json"),
        Err(SignatureError::NoMatch)
    );
}

#[test]
fn policy_events_hold_the_policy_files() {
    for (file, policy) in [
        ("professional-1.0.0", "marketplace-sku-456/professional.yaml"),
        ("professional-1.1.0", "marketplace-sku-456/next/professional.yaml"),
        ("github-basic-1.0.0", "github-marketplace/basic.yaml"),
    ] {
        let event = event(&format!("policy-upgrade/{file}.json"));
        let policy = fs::read_to_string(root().join("policies").join(policy)).unwrap();
        assert_eq!(
            event["ontology"].as_str(),
            Some(policy.as_str()),
            "{file} is not policies/{policy}"
        );
    }
}
