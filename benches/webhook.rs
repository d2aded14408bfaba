//! CPU of verifying, reading and deciding one webhook, beside the one HMAC that no verification can do without.
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
use domain::account::{AccountId, EntitlementId, PlanType, SkuId};
use domain::entitlement::decide::{EventContext, Surroundings, decide};
use domain::entitlement::{Entitlement, EventOrder, Isolation, Offer};
use domain::entitlement::{PolicyPin, Quota};
use domain::provisioning::DeliveryRef;
use domain::tenant::{Lifecycle, Tenant};
use domain::webhook::event::WebhookEvent;
use domain::webhook::providers::at_path;
use domain::webhook::providers::standard::sign_standard;
use domain::webhook::signature::{Headers, Secret};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde_json::json;
use sha2::Sha256;

const ROUNDS: usize = 60;
const KEY: [u8; 32] = [7; 32];
/// [`KEY`] as a Standard Webhooks secret.
const SECRET: &str = "whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// Aim: verification, parsing and decision together, as a multiple of the bare HMAC.
const AIM: f64 = 3.0;

fn main() {
    println!(
        "\nCPU per webhook, µs: p50 of {ROUNDS} rounds, all in turns. hmac: HMAC-SHA256 of the body alone.\n\
         decide: what a purchase means for an account that holds it already, and for one that holds nothing.\n"
    );
    println!(
        "{:<10}{:>8}{:>16}{:>9}{:>15}{:>9}{:>15}{:>9}",
        "body", "hmac", "verify + parse", "ratio", "+ decide: held", "ratio", "+ decide: new", "ratio"
    );
    for (name, bytes) in [("512 B", 512), ("16 KiB", 16 * 1024)] {
        let [bare, read, held, new] = measure(&body(bytes), 20_000_000 / bytes / 20);
        let ratio = |ours: f64| ours / bare;
        println!(
            "{name:<10}{bare:>8.2}{read:>16.2}{:>9.2}{held:>15.2}{:>9.2}{new:>15.2}{:>9.2}",
            ratio(read),
            ratio(held),
            ratio(new)
        );
        let verdict = if ratio(held) > AIM { "MISSED" } else { "ok" };
        println!(
            "  aim: verify + parse + decide ≤ {AIM} × hmac: {:.2}, {verdict}",
            ratio(held)
        );
    }
}

/// What the registry says of the plan that is bought.
fn offer() -> Offer {
    Offer {
        sku_id: SkuId::parse("marketplace-sku-456").expect("a SKU"),
        plan_type: PlanType::parse("professional").expect("a plan"),
        policy: PolicyPin {
            version: "1.0.0".to_owned(),
            hash: "0".repeat(64),
        },
        quota: Quota {
            monthly_actions: 10_000,
            concurrent_actions: 20,
        },
        isolation: Isolation::Pool,
    }
}

/// A tenant that holds what is bought.
fn tenant(offer: &Offer, now: Timestamp) -> Tenant {
    let mut tenant = Tenant::absent(AccountId::parse("customer-123").expect("an account"), now);
    tenant.lifecycle = Lifecycle::Active;
    let order = EventOrder::at(now);
    let id = EntitlementId::parse("marketplace-sku-456").expect("an id");
    tenant
        .entitlements
        .insert(id, Entitlement::granted(offer, "us-east-1", None, order, now));
    tenant
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

/// The bare HMAC, and ours: verified and parsed; decided for a tenant that holds it; decided for nobody.
fn measure(body: &[u8], times: usize) -> [f64; 4] {
    let now = Timestamp::now();
    let provider = at_path("/webhooks/entitlement").expect("a provider");
    let secrets = [Secret::standard(SECRET).expect("a secret of 32 bytes")];
    let mut headers = Headers::new();
    headers.insert("webhook-id".to_owned(), "msg_1".to_owned());
    headers.insert("webhook-timestamp".to_owned(), now.as_second().to_string());
    headers.insert(
        "webhook-signature".to_owned(),
        sign_standard(&secrets[0], "msg_1", now, body),
    );
    let offer = offer();
    let tenant = tenant(&offer, now);
    let read = || {
        let verified = (provider.verify)(&secrets, &headers, black_box(body), now).expect("a good signature");
        let said = (provider.parse)(&verified, &headers).expect("a good payload");
        (verified.into_delivery(), said)
    };
    let whole = |tenant: Option<&Tenant>| {
        let (delivery, said) = read();
        let WebhookEvent::Entitlement(event) = said else {
            return None;
        };
        let asked = DeliveryRef {
            provider: delivery.provider.to_owned(),
            delivery_id: delivery.id,
            body_sha256: delivery.body_sha256,
        };
        let heard = EventContext {
            event: &event,
            asked: &asked,
            received_at: now,
            due_since: now,
            attempts: 0,
            waited: false,
            product: Some(&offer.sku_id),
            offer: Some(&offer),
        };
        let around = Surroundings {
            queue_prefix: "governor",
            tenants_table: "tenants",
        };
        Some(decide(tenant, &heard, around, now))
    };
    let mut times_of: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let [bare, parsed, held, new] = &mut times_of;
        bare.push(micros(times, || {
            let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).expect("any key length");
            mac.update(black_box(body));
            mac.finalize().into_bytes()
        }));
        parsed.push(micros(times, read));
        held.push(micros(times, || whole(Some(&tenant))));
        new.push(micros(times, || whole(None)));
    }
    times_of.map(|times| percentile(&times, 50))
}

fn micros<T>(times: usize, mut act: impl FnMut() -> T) -> f64 {
    let started = Instant::now();
    for _ in 0..times {
        black_box(act());
    }
    started.elapsed().as_secs_f64() * 1e6 / times as f64
}
