//! CPU of verifying and reading one webhook, beside the one HMAC that no verification can do without.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program that prints, and that has nothing better to do than to stop when it cannot go on"
)]

use std::hint::black_box;
use std::time::Instant;

use benches::percentile;
use domain::webhook::payload;
use domain::webhook::signature::{Headers, Secret, sign_standard, verify_standard};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::json;
use sha2::Sha256;

const ROUNDS: usize = 60;
const KEY: [u8; 32] = [7; 32];
/// [`KEY`] as a Standard Webhooks secret.
const SECRET: &str = "whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

fn main() {
    println!(
        "\nCPU per webhook, µs: p50 of {ROUNDS} rounds, both in turns. hmac: HMAC-SHA256 of the body alone.\n"
    );
    println!(
        "{:<10}{:>10}{:>16}{:>9}",
        "body", "hmac", "verify + parse", "ratio"
    );
    for (name, bytes) in [("512 B", 512), ("16 KiB", 16 * 1024)] {
        let (bare, ours) = measure(&body(bytes), 20_000_000 / bytes / 20);
        println!("{name:<10}{bare:>10.2}{ours:>16.2}{:>9.2}", ours / bare);
    }
}

/// A subscription of exactly this many bytes: senders add fields of their own.
fn body(bytes: usize) -> Vec<u8> {
    let text = |padding: usize| {
        json!({
            "type": "entitlement.created",
            "timestamp": "2026-11-21T10:00:00Z",
            "data": {"account_id": "customer-123", "sku_id": "marketplace-sku-456", "plan_type": "professional",
                     "region": "us-east-1", "metadata": {"note": "x".repeat(padding)}}
        })
        .to_string()
    };
    text(bytes - text(0).len()).into_bytes()
}

fn measure(body: &[u8], times: usize) -> (f64, f64) {
    let now = Timestamp::now();
    let secrets = [Secret::standard(SECRET).expect("a secret of 32 bytes")];
    let mut headers = Headers::new();
    headers.insert("webhook-id".to_owned(), "msg_1".to_owned());
    headers.insert("webhook-timestamp".to_owned(), now.as_second().to_string());
    headers.insert(
        "webhook-signature".to_owned(),
        sign_standard(&secrets[0], "msg_1", now, body),
    );
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(micros(times, || {
            let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).expect("any key length");
            mac.update(black_box(body));
            mac.finalize().into_bytes()
        }));
        ours.push(micros(times, || {
            let verified =
                verify_standard(&secrets, &headers, black_box(body), now).expect("a good signature");
            payload::standard(&verified).expect("a good payload")
        }));
    }
    (percentile(&bare, 50), percentile(&ours, 50))
}

fn micros<T>(times: usize, mut act: impl FnMut() -> T) -> f64 {
    let started = Instant::now();
    for _ in 0..times {
        black_box(act());
    }
    started.elapsed().as_secs_f64() * 1e6 / times as f64
}
