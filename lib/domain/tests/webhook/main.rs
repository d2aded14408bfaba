//! Webhooks as senders write them, and as they should not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

mod github;
mod github_signature;
mod json;
mod standard;
mod standard_signature;

use std::collections::BTreeSet;

use governor_domain as domain;

use domain::webhook::DeliveryId;
use domain::webhook::event::WebhookEvent;
use domain::webhook::provider::Provider;
use domain::webhook::providers::github::{GITHUB_DELIVERY, GITHUB_EVENT, GITHUB_SIGNATURE, sign_github};
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::providers::{PROVIDERS, at_path};
use domain::webhook::signature::Headers;
use jiff::Timestamp;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

/// The key of the published example of Standard Webhooks.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// The secret of GitHub's documentation.
const GITHUB_SECRET: &str = "It's a Secret to Everybody";

fn headers<const N: usize>(pairs: [(&str, &str); N]) -> Headers {
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn date(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// What the provider at a path makes of a delivery.
fn deliver(
    path: &str,
    secret: &str,
    sign: impl Fn(&Provider) -> Headers,
    body: &[u8],
) -> Result<WebhookEvent, String> {
    let provider = at_path(path).unwrap();
    let secrets = [(provider.secret)(secret).unwrap()];
    let headers = sign(provider);
    let verified = (provider.verify)(&secrets, &headers, body, seconds(1_700_000_000)).unwrap();
    (provider.parse)(&verified, &headers).map_err(|e| e.to_string())
}

fn standard(body: &[u8]) -> Result<WebhookEvent, String> {
    let sign = |provider: &Provider| {
        let secret = (provider.secret)(SECRET).unwrap();
        headers([
            (WEBHOOK_ID, "m"),
            (WEBHOOK_TIMESTAMP, "1700000000"),
            (
                WEBHOOK_SIGNATURE,
                &sign_standard(&secret, "m", seconds(1_700_000_000), body),
            ),
        ])
    };
    deliver("/webhooks/standard", SECRET, sign, body)
}

fn github(body: &[u8]) -> Result<WebhookEvent, String> {
    github_event("marketplace_purchase", body)
}

fn github_event(event: &str, body: &[u8]) -> Result<WebhookEvent, String> {
    let sign = |provider: &Provider| {
        let secret = (provider.secret)(GITHUB_SECRET).unwrap();
        headers([
            (GITHUB_DELIVERY, "d"),
            (GITHUB_EVENT, event),
            (GITHUB_SIGNATURE, &sign_github(&secret, body)),
        ])
    };
    deliver("/webhooks/github", GITHUB_SECRET, sign, body)
}

/// Errors begin with the field; what the JSON reader says after it may go on.
#[track_caller]
fn refuses(got: Result<WebhookEvent, String>, expected: &str) {
    let message = got.unwrap_err();
    assert!(
        message.starts_with(expected),
        "{message:?} does not begin with {expected:?}"
    );
}

#[test]
fn every_path_has_one_provider() {
    let paths: Vec<_> = PROVIDERS.iter().flat_map(|provider| provider.paths).collect();
    assert_eq!(paths.iter().collect::<BTreeSet<_>>().len(), paths.len());
    let at = |path: &str| {
        at_path(path).map(|provider| (provider.name, provider.secret_variable, provider.resends))
    };
    for end in ["", "/"] {
        for path in ["/webhooks/entitlement", "/webhooks/cancel", "/webhooks/standard"] {
            let found = at(&format!("{path}{end}"));
            assert_eq!(found, Some(("standard", "STANDARD_WEBHOOK_SECRET_ID", true)));
        }
        assert_eq!(
            at(&format!("/webhooks/github{end}")),
            Some(("github", "GITHUB_WEBHOOK_SECRET_ID", false))
        );
    }
    for path in [
        "",
        "/",
        "/webhooks",
        "/webhooks/github//",
        "/webhooks/github/x",
        "/prod/webhooks/github",
        "/WEBHOOKS/GITHUB",
    ] {
        assert_eq!(at(path), None, "{path}");
    }
}

#[test]
fn a_delivery_is_its_provider_and_id_and_its_body_tells_a_conflict() {
    let id = DeliveryId::new("github", "d-1", b"abc");
    assert_eq!(id.key(), "github#d-1");
    // FIPS 180-2, appendix B.1.
    assert_eq!(
        id.body_sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_ne!(id, DeliveryId::new("github", "d-1", b"abd"));
}

proptest! {
    #[test]
    fn digests_are_written_in_lower_hex(body: Vec<u8>) {
        let id = DeliveryId::new("standard", "m", &body);
        prop_assert_eq!(id.body_sha256, hex::encode(Sha256::digest(&body)));
    }
}
