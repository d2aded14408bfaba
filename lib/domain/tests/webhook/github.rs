//! What GitHub's deliveries say.

use serde_json::{Value, json};

use super::domain::account::AccountId;
use super::domain::webhook::event::{
    Change, EntitlementEvent, PlanReference, ProductReference, WebhookEvent,
};
use super::{date, github, github_event, refuses};

const PURCHASED: &str = include_str!("../../../../tests/fixtures/github/purchased.json");
const FORM: &str = include_str!("../../../../tests/fixtures/github/purchased.urlencoded");
const PUSH: &str = include_str!("../../../../tests/fixtures/github/push.json");
const CANCELLED: &str = include_str!("../../../../tests/fixtures/github/cancelled.json");

fn plan(id: &str) -> PlanReference {
    PlanReference::Provider {
        provider: "github".to_owned(),
        plan_id: id.to_owned(),
    }
}

fn event(account: &str, plan_id: &str, at: Option<&str>, change: Change) -> WebhookEvent {
    WebhookEvent::Entitlement(EntitlementEvent {
        account_id: AccountId::parse(account).unwrap(),
        entitlement_id: None,
        product: Some(ProductReference::Plan(plan(plan_id))),
        version: None,
        effective_at: at.map(date),
        change,
    })
}

fn granted(plan_id: &str) -> Change {
    Change::Granted {
        plan: plan(plan_id),
        region: "us-east-1".to_owned(),
        expires_at: None,
    }
}

fn ignored(account: Option<&str>, reason: &str) -> WebhookEvent {
    WebhookEvent::Ignored {
        account_id: account.map(|account| AccountId::parse(account).unwrap()),
        reason: reason.to_owned(),
    }
}

/// The sample of a purchase, with one value changed.
fn with(pointer: &str, value: Value) -> String {
    let mut body: Value = serde_json::from_str(PURCHASED).unwrap();
    *body.pointer_mut(pointer).unwrap() = value;
    body.to_string()
}

#[track_caller]
fn check(body: &str, expected: WebhookEvent) {
    assert_eq!(github(body.as_bytes()), Ok(expected), "{body}");
}

#[test]
fn every_action() {
    let at = Some("2017-10-25T00:00:00Z");
    check(PURCHASED, event("github-18404719", "435", at, granted("435")));
    check(CANCELLED, event("github-28536653", "686", at, Change::Cancelled));
    check(
        &with("/action", json!("changed")),
        event(
            "github-18404719",
            "435",
            at,
            Change::PlanChanged { plan: plan("435") },
        ),
    );
    check(
        &with("/action", json!("pending_change")),
        ignored(
            Some("github-18404719"),
            "pending change to plan 435, effective 2017-10-25T00:00:00Z: its own event comes then",
        ),
    );
    check(
        &with("/action", json!("pending_change_cancelled")),
        ignored(
            Some("github-18404719"),
            "pending change withdrawn: plan 435, effective 2017-10-25T00:00:00Z",
        ),
    );
    check(
        &with("/action", json!("renamed")),
        ignored(Some("github-18404719"), "unhandled GitHub action \"renamed\""),
    );
}

#[test]
fn a_sender_of_the_sample_writes_more_and_less() {
    let at = Some("2017-10-25T00:00:00Z");
    let purchase = event("github-18404719", "435", at, granted("435"));
    for pointer in [
        "/sender",
        "/marketplace_purchase/unit_count",
        "/marketplace_purchase/billing_cycle",
        "/marketplace_purchase/next_billing_date",
        "/marketplace_purchase/plan/name",
        "/marketplace_purchase/account/login",
    ] {
        check(&with(pointer, Value::Null), purchase.clone());
        check(&with(pointer, json!([5])), purchase.clone());
    }
    check(
        &with("/marketplace_purchase/account/id", json!("18404719")),
        purchase.clone(),
    );
    check(&with("/marketplace_purchase/plan/id", json!("435")), purchase);
    let undated = event("github-18404719", "435", None, granted("435"));
    check(&with("/effective_date", Value::Null), undated.clone());
    check(
        r#"{"action":"purchased","marketplace_purchase":{"account":{"id":18404719},"plan":{"id":435}}}"#,
        undated,
    );
    check(
        r#"{"action":"pending_change","marketplace_purchase":{"account":{"id":1},"plan":{"id":2}}}"#,
        ignored(
            Some("github-1"),
            "pending change to plan 2, effective at a time not told: its own event comes then",
        ),
    );
}

#[test]
fn fields_of_the_wrong_type_are_named() {
    for field in ["marketplace_purchase.account.id", "marketplace_purchase.plan.id"] {
        let pointer = format!("/{}", field.replace('.', "/"));
        for value in [
            json!([]),
            json!(-1),
            json!(1.5),
            json!(""),
            json!("a"),
            json!("1 "),
            Value::Null,
        ] {
            refuses(
                github(with(&pointer, value).as_bytes()),
                &format!("body field `{field}`: "),
            );
        }
    }
    refuses(
        github(with("/effective_date", json!("soon")).as_bytes()),
        "body field `effective_date`: not a date and time of RFC 3339",
    );
    let never = github(with("/effective_date", json!("9999-12-31T23:59:59Z")).as_bytes());
    assert!(matches!(never, Ok(WebhookEvent::Ignored { .. })), "{never:?}");
    let unset = github(with("/effective_date", json!("0001-01-01T00:00:00Z")).as_bytes());
    assert!(
        matches!(&unset, Ok(WebhookEvent::Entitlement(event)) if event.effective_at.is_none()),
        "{unset:?}"
    );
    refuses(
        github(with("/action", json!(5)).as_bytes()),
        "body field `action`: expected a string",
    );
    refuses(
        github(with("/marketplace_purchase", Value::Null).as_bytes()),
        "body field `marketplace_purchase`: expected an object, found null",
    );
    refuses(github(b"{}"), "body field `.`: missing field `action`");
    for action in [
        "purchased",
        "changed",
        "cancelled",
        "pending_change",
        "pending_change_cancelled",
    ] {
        let body = json!({"action": action}).to_string();
        refuses(
            github(body.as_bytes()),
            "body field `.`: missing field `marketplace_purchase`",
        );
    }
}

#[test]
fn other_deliveries_are_ignored_whatever_they_hold() {
    let reason = "unhandled GitHub action \"deleted\"";
    for (purchase, account) in [
        (json!({"account": {"id": 5}}), Some("github-5")),
        (json!({"account": {"id": "x"}}), None),
        (json!({}), None),
        (json!(7), None),
        (Value::Null, None),
    ] {
        let body = json!({"action": "deleted", "effective_date": 5, "marketplace_purchase": purchase});
        check(&body.to_string(), ignored(account, reason));
    }
    check(r#"{"action":"deleted"}"#, ignored(None, reason));
    check(r#"{"action":"a@b"}"#, ignored(None, "unhandled GitHub action"));
    check(
        r#"{"zen":"Keep it logically awesome.","hook_id":5,"hook":{}}"#,
        ignored(None, "GitHub's ping"),
    );
}

/// A listing's content type is its owner's choice, and `application/x-www-form-urlencoded` is what GitHub proposes.
#[test]
fn a_form_says_what_its_json_says() {
    assert_eq!(github(FORM.trim_end().as_bytes()), github(PURCHASED.as_bytes()));
    let at = |date: &str| event("github-5", "6", Some(date), granted("6"));
    let json = r#"{"action":"purchased","marketplace_purchase":{"account":{"id":5},"plan":{"id":6}},"x":"&payload=a+b%","effective_date":"2026-01-31T12:00:00+00:00"}"#;
    check(json, at("2026-01-31T12:00:00Z"));
    let encoded: String = json.bytes().map(|b| format!("%{b:02X}")).collect();
    for form in [
        format!("payload={encoded}"),
        format!("payload={}", encoded.to_lowercase().replace("%20", "+")),
        format!("other=1&payload={encoded}&more=2"),
    ] {
        check(&form, at("2026-01-31T12:00:00Z"));
    }
    refuses(
        github(b"payload=%7B%7D"),
        "body field `.`: missing field `action`",
    );
    refuses(github(b"payload="), "body is empty");
    refuses(github(b"payload=%FF"), "body field `.`: not UTF-8");
    refuses(github(b"payloads=%7B%7D"), "body field `.`: expected value");
}

/// A webhook may be subscribed to everything that GitHub tells.
#[test]
fn events_about_something_else_are_ignored() {
    for (name, reason) in [
        ("push", "unhandled GitHub event \"push\""),
        (
            "marketplace_purchases",
            "unhandled GitHub event \"marketplace_purchases\"",
        ),
        ("a b", "unhandled GitHub event"),
        ("ping", "GitHub's ping"),
    ] {
        for body in [PUSH, PURCHASED, FORM, "", "not JSON"] {
            let got = github_event(name, body.as_bytes());
            assert_eq!(got, Ok(ignored(None, reason)), "{name}");
        }
    }
}
