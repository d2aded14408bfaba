use domain::names::Partition;
use domain::scale::{self, WaitsFor};
use domain::tenant::{Lifecycle, Tenant};
use receipts::ledger::Head;
use serde_json::json;

use super::*;
use crate::table::WIDTH;

const NOW: &str = "2026-11-21T17:02:54.250Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn order() -> Value {
    json!({ "version": 3, "at": NOW, "granularity": "instant", "arrived_at": NOW })
}

fn entitlement(plan: &str, standing: &str, month: &str) -> Value {
    json!({
        "sku_id": "marketplace-sku-456",
        "plan_type": plan,
        "region": "us-east-1",
        "standing": standing,
        "policy": { "version": "1.0.0", "hash": "0123456789abcdef".repeat(4) },
        "quota": { "monthly_actions": 10_000, "concurrent_actions": 20 },
        "in_flight": 2,
        "month": month,
        "month_actions": 17,
        "order": order(),
        "plan_order": order(),
        "standing_order": order(),
        "term_order": order(),
        "granted_at": NOW,
        "expires_at": null,
    })
}

fn event(change: Value) -> Value {
    json!({
        "account_id": "customer-123",
        "entitlement_id": null,
        "product": { "sku": "marketplace-sku-456" },
        "version": null,
        "effective_at": null,
        "change": change,
    })
}

fn asked(id: &str) -> Value {
    json!({ "provider": "standard", "delivery_id": id, "body_sha256": "" })
}

/// A tenant of which everything that can be told is there.
fn tenant() -> Value {
    json!({
        "account_id": "customer-123",
        "lifecycle": "active",
        "generation": 2,
        "fsm_id": "mg-dev-t-customer-123-0f-g2",
        "entitlements": {
            "agreement-1": entitlement("professional", "active", "2026-11"),
            "agreement-2": entitlement("basic", "suspended", "2026-10"),
        },
        "tombstones": {
            "of": { "agreement-0": {
                "order": { "version": null, "at": "2026-11-20T00:00:00Z", "granularity": "day", "arrived_at": "2026-11-20T00:00:00Z" },
                "usage": { "in_flight": 0, "month": "", "month_actions": 0 },
            } },
            "all": { "version": 7, "at": "2026-11-19T00:00:00Z", "granularity": "day", "arrived_at": "2026-11-19T00:00:00Z" },
        },
        "resources": {
            "queue": "mg-dev-t-customer-123-0f-g2",
            "queue_url": "http://sqs/1/mg-dev-t-customer-123-0f-g2",
            "dead_letter_queue_url": "http://sqs/1/mg-dev-t-customer-123-0f-g2-dlq",
            "mapping_id": "8f0a",
        },
        "tables": null,
        "table_attempts": 0,
        "provisioning": {
            "entitlement_id": "agreement-3",
            "entitlement": entitlement("enterprise", "active", "2026-11"),
            "event": event(json!("suspended")),
            "asked": asked("msg-3"),
            "new_tenant": false,
            "dedicated": true,
            "received_at": NOW,
            "due_since": NOW,
            "attempts": 1,
            "waited": false,
            "table_attempt": 1,
            "began_at": NOW,
            "failure": { "step": "receipt_table", "reason": "LimitExceeded:\ntoo many tables", "lasting": false, "undone": [] },
        },
        "deferred": [
            { "event": event(json!("cancelled")), "asked": asked("msg-4"), "received_at": NOW,
              "due_since": NOW, "due_at": "2026-12-01T00:00:00Z", "attempts": 0 },
        ],
        "in_flight": 4,
        "scale": { "limit": 40, "floor": 20, "trial": { "from": 20, "lag": 11, "at": NOW } },
        "lease_until": "2026-11-21T17:03:00Z",
        "actions_completed": 15,
        "actions_failed": 1,
        "began_at": NOW,
        "changed_at": NOW,
        "revision": 9,
    })
}

fn account(tenant: Option<Value>, size: u64) -> Account {
    Account {
        tenant: tenant.map(|tenant| serde_json::from_value(tenant).unwrap()),
        head: Head {
            size,
            last_hash: "abcdef0123456789".repeat(4),
            timestamp: at(NOW),
            range: Vec::new(),
        },
        ..Account::unknown(&Partition::from_key("customer-123".to_owned()))
    }
}

fn shown(tenant: Option<Value>, receipts: Vec<Value>) -> TenantView {
    let id = AccountId::parse("customer-123").unwrap();
    TenantView::of(&account(tenant, receipts.len() as u64), &id, receipts, at(NOW))
}

fn receipts() -> Vec<Value> {
    vec![
        json!({ "seq": 0, "timestamp": NOW, "operation": "entitlement_active", "status": "success",
                "entitlement_id": "agreement-1", "plan_type": "professional", "policy_version": "1.0.0" }),
        json!({ "seq": 1, "timestamp": NOW, "operation": "action_failed", "status": "failed",
                "action_id": "a-1", "error_code": "TIMEOUT" }),
        // Of an operation that this version does not know.
        json!({ "seq": 2, "timestamp": "soon", "operation": "tenant_moved", "reason": "r".repeat(200) }),
    ]
}

#[test]
fn all_of_a_tenant() {
    let mut shown = shown(Some(tenant()), receipts());
    if let Some(queues) = &mut shown.queues {
        queues.signals.lag = Some(Lag {
            waiting: 3,
            in_flight: 10,
            delayed: 0,
        });
    }
    let mut busy: Tenant = serde_json::from_value(tenant()).unwrap();
    busy.full_at = Some(at(NOW));
    busy.last_claim = Some(domain::tenant::LastClaim {
        at: at(NOW),
        sent_at: at("2026-11-21T17:02:42Z"),
    });
    shown.backlog = shown.backlog_of(Some(&busy), at(NOW));
    let expected = "\
customer-123
  lifecycle   active since 2026-11-21 17:02:54Z
  generation  2 since 2026-11-21 17:02:54Z
  governor    mg-dev-t-customer-123-0f-g2
  actions     4 in flight of 40, until 2026-11-21 17:03:00Z; 15 completed, 1 failed
  limit       40 at one time, the plans allow 60; base 20; on trial since 2026-11-21 17:02:54Z, 20 before
  backlog     9 signals wait for a free place, the oldest for at most about 12 s
  tables      pool: those of all tenants
  mapping     8f0a
  ledger      size 3, the last receipt 2026-11-21 17:02:54Z, hash abcdef012345

Entitlements
  ENTITLEMENT  SKU                  PLAN          STANDING   GRANTED               EXPIRES
  agreement-1  marketplace-sku-456  professional  active     2026-11-21 17:02:54Z  -
  agreement-2  marketplace-sku-456  basic         suspended  2026-11-21 17:02:54Z  -

Limits
  ENTITLEMENT  THIS MONTH   IN FLIGHT  POLICY  HASH          REGION
  agreement-1  17 of 10000  2 of 20    1.0.0   0123456789ab  us-east-1
  agreement-2  0 of 10000   2 of 20    1.0.0   0123456789ab  us-east-1

Being provisioned
  entitlement  agreement-3
  plan         marketplace-sku-456/enterprise
  since        2026-11-21 17:02:54Z
  attempts     1
  failed step  receipt_table
  reason       LimitExceeded: too many tables

Waiting events
  EVENT         ABOUT                DUE                   ATTEMPTS  DELIVERY
  cancellation  marketplace-sku-456  2026-12-01 00:00:00Z         0  standard msg-4

Cancellations
  ENTITLEMENT  AT                    VERSION
  agreement-0  2026-11-20 00:00:00Z        -
  all          2026-11-19 00:00:00Z        7

Queues
  QUEUE                            VISIBLE  HIDDEN  DELAYED
  mg-dev-t-customer-123-0f-g2            3      10        0
  mg-dev-t-customer-123-0f-g2-dlq        ?       ?        ?

Last receipts
  SEQ  TIME                  OPERATION           STATUS   ABOUT
    0  2026-11-21 17:02:54Z  entitlement_active  success  agreement-1  professional  1.0.0
    1  2026-11-21 17:02:54Z  action_failed       failed   a-1  TIMEOUT
    2  soon                  tenant_moved        -        ";
    let text = shown.to_string();
    let (seen, rest) = text.split_at_checked(expected.len()).unwrap_or((&text, ""));
    assert_eq!(seen, expected);
    assert!(rest.ends_with("rrr…") && !rest.contains('\n'), "{rest}");
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
}

#[test]
fn what_signals_wait_for() {
    #[track_caller]
    fn check(lag: u64, waits_for: Option<WaitsFor>, oldest_age_seconds: Option<u64>, expected: &str) {
        check_of(4, lag, waits_for, oldest_age_seconds, expected);
    }
    #[track_caller]
    fn check_of(
        places_in_use: u64,
        lag: u64,
        waits_for: Option<WaitsFor>,
        oldest_age_seconds: Option<u64>,
        expected: &str,
    ) {
        let mut shown = shown(Some(tenant()), Vec::new());
        shown.backlog = Some(scale::Backlog {
            lag,
            waits_for,
            oldest_age_seconds,
            places_in_use,
            places: 40,
        });
        let text = shown.to_string();
        assert!(text.contains(&format!("  backlog     {expected}\n")), "{text}");
        let value = serde_json::to_value(&shown).unwrap();
        assert_eq!(
            value["backlog"],
            json!({
                "lag": lag, "waits_for": waits_for, "oldest_age_seconds": oldest_age_seconds,
                "places_in_use": places_in_use, "places": 40,
            })
        );
    }
    let (place, poll) = (Some(WaitsFor::Place), Some(WaitsFor::Poll));
    check(0, None, None, "no signal waits");
    check(1, place, None, "1 signal waits for a free place");
    let expected = "30 signals wait for a free place, the oldest for about 7 s";
    check_of(40, 30, place, Some(7), expected);
    let expected = "30 signals wait for a free place, the oldest for at most about 7 s";
    check_of(39, 30, place, Some(7), expected);
    let narrow = Some(WaitsFor::Entitlement);
    check(
        2,
        narrow,
        None,
        "2 signals wait for a free place of their entitlement",
    );
    check(
        1,
        poll,
        None,
        "1 signal waits to be polled, though places are free",
    );
    let expected = "30 signals wait to be polled, though places are free, the oldest for at most about 7 s";
    check(30, poll, Some(7), expected);
    // Queues did not answer.
    let unknown = shown(Some(tenant()), Vec::new());
    assert_eq!(serde_json::to_value(&unknown).unwrap()["backlog"], Value::Null);
    assert!(!unknown.to_string().contains("backlog"), "{unknown}");
}

#[test]
fn programs_get_it_whole() {
    let value = serde_json::to_value(shown(Some(tenant()), receipts())).unwrap();
    assert_eq!(value["state"], "unsettled");
    assert_eq!(
        value["entitlements"][1],
        json!({
            "entitlement_id": "agreement-2",
            "sku_id": "marketplace-sku-456",
            "plan_type": "basic",
            "region": "us-east-1",
            "standing": "suspended",
            "policy": { "version": "1.0.0", "hash": "0123456789abcdef".repeat(4) },
            "quota": { "monthly_actions": 10_000, "concurrent_actions": 20 },
            "in_flight": 2,
            "month": "2026-11",
            "month_actions": 0,
            "granted_at": "2026-11-21T17:02:54.25Z",
            "expires_at": null,
            "last_event": { "version": 3, "at": "2026-11-21T17:02:54.25Z", "granularity": "instant", "arrived_at": "2026-11-21T17:02:54.25Z" },
        })
    );
    assert_eq!(value["provisioning"]["failure"]["step"], "receipt_table");
    assert_eq!(value["waiting_events"][0]["delivery"]["delivery_id"], "msg-4");
    assert_eq!(value["cancellations"][1]["entitlement_id"], Value::Null);
    assert_eq!(value["ledger"]["last_hash"], "abcdef0123456789".repeat(4));
    assert_eq!(value["ledger"]["timestamp"], "2026-11-21T17:02:54.250Z");
    assert_eq!(value["receipts"], Value::Array(receipts()));
    assert_eq!(
        value["queues"]["dead_letters"],
        json!({
            "name": "mg-dev-t-customer-123-0f-g2-dlq",
            "url": "http://sqs/1/mg-dev-t-customer-123-0f-g2-dlq",
            "lag": null,
        })
    );
}

#[test]
fn an_account_that_only_has_a_ledger() {
    let expected = "\
customer-123
  lifecycle  absent
  tables     pool: those of all tenants
  ledger     size 1, the last receipt 2026-11-21 17:02:54Z, hash abcdef012345

Last receipts
  SEQ  TIME                  OPERATION      STATUS  ABOUT
    1  2026-11-21 17:02:54Z  action_failed  failed  a-1  TIMEOUT";
    let receipts = receipts().drain(1..2).collect();
    assert_eq!(shown(None, receipts).to_string(), expected);
}

/// Where a tenant's receipts and actions stand, at each step of its own tables' life.
#[test]
fn own_tables() {
    #[track_caller]
    fn check(until: Value, archived: Value, isolation: &str, expected: &str) {
        let mut tenant = tenant();
        tenant["tables"] = json!({
            "actions": "q-actions", "receipts": "q-receipts", "since": 2, "until": until, "archived": archived,
        });
        let shown = shown(Some(tenant), Vec::new());
        assert_eq!(shown.isolation, isolation);
        let text = shown.to_string();
        assert!(text.contains(&format!("  tables      {expected}\n")), "{text}");
        assert_eq!(text.contains("q-receipts"), isolation == "dedicated");
    }
    check(
        Value::Null,
        Value::Null,
        "dedicated",
        "dedicated: its own, with receipts from 2 on",
    );
    check(
        json!(9),
        Value::Null,
        "dedicated",
        "dedicated: its own, with receipts from 2 to before 9",
    );
    check(
        json!(9),
        json!({ "path": "p", "sha256": "", "size_bytes": 1, "entries": 4 }),
        "pool",
        "pool: those of all tenants; its own are archived with 4 actions",
    );
}

/// What is gone has no queues, whatever is still on record of them.
#[test]
fn queues_while_there_are_some() {
    for lifecycle in Lifecycle::ALL {
        let mut tenant = tenant();
        tenant["lifecycle"] = json!(lifecycle);
        let there = matches!(lifecycle, Lifecycle::Active | Lifecycle::Decommissioning);
        assert_eq!(
            shown(Some(tenant), Vec::new()).queues.is_some(),
            there,
            "{lifecycle:?}"
        );
    }
}
