//! What is refused, how, and that nothing of it is left behind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::webhook::MAX_BODY_BYTES;
use domain::webhook::providers::github::{GITHUB_DELIVERY, GITHUB_SIGNATURE};
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::signature::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::github::{account, purchased};
use crate::webhooks::{Answer, CANCEL, Delivery, ENTITLEMENT, created};
use crate::world::{PLAN, SKU, World, alongside, operation, unique};

const NOT_AUTHENTIC: &str = "Webhook signature refused";
const NOT_UNDERSTOOD: &str = "Webhook not understood";

/// Words of the libraries and the language that the functions are written in, which no sender should have to know.
pub(crate) const LIBRARY_WORDS: [&str; 13] = [
    "invalid type",
    "invalid length",
    "invalid value:",
    "struct ",
    " enum",
    "untagged",
    "Option<",
    "Some(",
    "Policy in",
    "budget",
    "HeaderMap",
    "u64",
    "sequence",
];

/// A delivery and the refusal it gets.
struct Case {
    name: &'static str,
    delivery: Delivery,
    status: u16,
    title: &'static str,
    /// The detail names what is wrong.
    says: &'static str,
}

fn case(
    name: &'static str,
    delivery: Delivery,
    status: u16,
    title: &'static str,
    says: &'static str,
) -> Case {
    Case {
        name,
        delivery,
        status,
        title,
        says,
    }
}

#[track_caller]
fn refused(case: &Case, answer: &Answer) {
    let name = case.name;
    assert_eq!(answer.status, case.status, "{name}: {answer:?}");
    assert_eq!(answer.content_type, "application/problem+json", "{name}");
    let problem = answer.json();
    assert_eq!(problem["type"], "about:blank", "{name}");
    assert_eq!(problem["status"], case.status, "{name}");
    assert_eq!(problem["title"], case.title, "{name}: {problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains(case.says),
        "{name}: {detail:?} does not say {:?}",
        case.says
    );
    for word in LIBRARY_WORDS {
        assert!(!detail.contains(word), "{name}: {detail:?} says {word:?}");
    }
}

/// Posts every case, and looks whether one of the accounts they name came to be.
async fn check(world: &World, cases: &[Case], accounts: &[&str]) {
    for case in cases {
        refused(case, &world.post(&case.delivery).await);
    }
    for account in accounts {
        assert_eq!(world.ledger(account).await.lines, [""; 0], "{account}");
        assert_eq!(world.table_items(account).await, 0, "{account}");
    }
}

#[tokio::test]
async fn standard_webhooks_that_are_not_authentic() {
    let world = alongside().await;
    let env = world.env;
    let account = unique("not-authentic");
    for path in [ENTITLEMENT, CANCEL] {
        let body = created(&account, SKU, PLAN).to_string();
        let good = || Delivery::standard(env, path, body.as_str());
        let aged =
            |seconds| Delivery::standard_at(env, path, body.as_str(), SignedDuration::from_secs(seconds));
        let other = Delivery::standard(env, path, "{}");
        let refuse = |name, delivery, says| case(name, delivery, 400, NOT_AUTHENTIC, says);
        let cases = [
            refuse(
                "no id",
                good().without(WEBHOOK_ID),
                "header webhook-id is missing",
            ),
            refuse(
                "no time",
                good().without(WEBHOOK_TIMESTAMP),
                "header webhook-timestamp is missing",
            ),
            refuse(
                "no signature",
                good().without(WEBHOOK_SIGNATURE),
                "header webhook-signature is missing",
            ),
            refuse(
                "empty signature",
                good().with(WEBHOOK_SIGNATURE, ""),
                "header webhook-signature is missing",
            ),
            refuse(
                "malformed signature",
                good().with(WEBHOOK_SIGNATURE, "v1,not base64!"),
                "webhook-signature holds no `v1,` signature",
            ),
            refuse(
                "only another version's signature",
                good().with(
                    WEBHOOK_SIGNATURE,
                    good().header(WEBHOOK_SIGNATURE).replace("v1,", "v2,"),
                ),
                "webhook-signature holds no `v1,` signature",
            ),
            refuse(
                "only the signature's version",
                good().with(WEBHOOK_SIGNATURE, "v1,"),
                "webhook-signature holds no `v1,` signature",
            ),
            refuse(
                "another prefix",
                good().with(
                    WEBHOOK_SIGNATURE,
                    good().header(WEBHOOK_SIGNATURE).replace("v1,", "sha256="),
                ),
                "webhook-signature holds no `v1,` signature",
            ),
            refuse(
                "a thousand signatures",
                // More bytes than these no gateway lets through in a header.
                good().with(WEBHOOK_SIGNATURE, vec!["v1,AA"; 1_000].join(" ")),
                "webhook-signature holds more than 16 signatures",
            ),
            refuse(
                "a letter that is no base64",
                good().with(WEBHOOK_SIGNATURE, "v1,\u{e9}\u{e9}\u{e9}\u{e9}"),
                "header webhook-signature",
            ),
            refuse(
                "a signature sent twice",
                good().with(
                    WEBHOOK_SIGNATURE,
                    [good().header(WEBHOOK_SIGNATURE), good().header(WEBHOOK_SIGNATURE)].join(","),
                ),
                "holds a comma",
            ),
            refuse(
                "an id sent twice",
                good().with(WEBHOOK_ID, "a,b"),
                "holds a comma",
            ),
            refuse(
                "dots in the id",
                good().with(WEBHOOK_ID, "a.b"),
                "header webhook-id",
            ),
            refuse(
                "a negative time",
                good().with(WEBHOOK_TIMESTAMP, "-1"),
                "webhook-timestamp is not a whole number",
            ),
            refuse(
                "the least of all times",
                good().with(WEBHOOK_TIMESTAMP, i64::MIN.to_string()),
                "webhook-timestamp is not a whole number",
            ),
            refuse(
                "a time with a plus",
                good().with(WEBHOOK_TIMESTAMP, format!("+{}", Timestamp::now().as_second())),
                "webhook-timestamp is not a whole number",
            ),
            refuse(
                "a time in milliseconds",
                good().with(WEBHOOK_TIMESTAMP, Timestamp::now().as_millisecond().to_string()),
                "header webhook-timestamp",
            ),
            refuse(
                "the far future",
                good().with(WEBHOOK_TIMESTAMP, "99999999999"),
                "webhook-timestamp is more than 300 s from now",
            ),
            refuse(
                "signature of another body",
                good().with(WEBHOOK_SIGNATURE, other.header(WEBHOOK_SIGNATURE)),
                "no signature matches",
            ),
            refuse(
                "signature of another id",
                good().with(WEBHOOK_ID, "msg-other"),
                "no signature matches",
            ),
            refuse("old", aged(400), "webhook-timestamp is more than 300 s from now"),
            refuse(
                "from the future",
                aged(-400),
                "webhook-timestamp is more than 300 s from now",
            ),
            refuse(
                "time that is no number",
                good().with(WEBHOOK_TIMESTAMP, Timestamp::now().to_string()),
                "webhook-timestamp is not a whole number",
            ),
        ];
        check(&world, &cases, &[&account]).await;
    }
}

#[tokio::test]
async fn standard_webhooks_that_are_not_understood() {
    let world = alongside().await;
    let env = world.env;
    let account = unique("not-understood");
    let changed = |field: &str, value: Option<Value>| {
        let mut body = created(&account, SKU, PLAN);
        match value {
            Some(value) => body["data"][field] = value,
            None => drop(body["data"].as_object_mut().unwrap().remove(field)),
        }
        Delivery::standard(env, ENTITLEMENT, body.to_string())
    };
    let raw = |body: &str| Delivery::standard(env, ENTITLEMENT, body);
    let refuse = |name, delivery, says| case(name, delivery, 400, NOT_UNDERSTOOD, says);
    let cases = [
        refuse("empty", raw(""), "body is empty"),
        refuse("not JSON", raw("type=entitlement.created"), "body field `.`"),
        refuse("cut off", raw("{\"type\":"), "EOF while parsing"),
        refuse(
            "nested too deep",
            raw(&format!(
                "{{\"type\":\"entitlement.created\",\"data\":{{\"x\":{}",
                "[".repeat(100_000)
            )),
            "body field `data.x`",
        ),
        refuse(
            "a key that is there twice",
            raw("{\"type\":\"entitlement.created\",\"type\":\"entitlement.created\",\"data\":{}}"),
            "duplicate field `type`",
        ),
        refuse(
            "an array of the fields' values",
            raw(&format!(
                "[\"entitlement.created\",null,[\"{account}\",\"e\",\"{SKU}\",\"{PLAN}\",null,null,null,null]]"
            )),
            "body field `.`: expected an object, found an array",
        ),
        refuse(
            "data that is an array",
            raw(&format!(
                "{{\"type\":\"entitlement.created\",\"data\":[\"{account}\",\"e\",\"{SKU}\",\"{PLAN}\",null,null,null,null]}}"
            )),
            "body field `data`: expected an object, found an array",
        ),
        refuse("no type", raw("{}"), "missing field `type`"),
        refuse("nothing", raw("null"), "expected an object, found null"),
        refuse("an array", raw("[]"), "body field `.`: "),
        refuse(
            "an array of what should be fields",
            raw("[\"entitlement.created\"]"),
            "body field `.`: ",
        ),
        refuse("mistyped type", raw("{\"type\":[]}"), "body field `type`"),
        refuse(
            "no data",
            raw("{\"type\":\"entitlement.created\"}"),
            "missing field `data`",
        ),
        refuse(
            "no account",
            changed("account_id", None),
            "missing field `account_id`",
        ),
        refuse(
            "mistyped account",
            changed("account_id", Some(json!(5))),
            "body field `data.account_id`",
        ),
        refuse(
            "empty account",
            changed("account_id", Some(json!(""))),
            "account_id is empty",
        ),
        refuse("no SKU", changed("sku_id", None), "missing field `sku_id`"),
        refuse(
            "mistyped SKU",
            changed("sku_id", Some(json!({}))),
            "body field `data.sku_id`",
        ),
        refuse("no plan", changed("plan_type", None), "missing field `plan_type`"),
        refuse(
            "mistyped plan",
            changed("plan_type", Some(json!(true))),
            "body field `data.plan_type`",
        ),
        refuse(
            "mistyped region",
            changed("region", Some(json!(1))),
            "body field `data.region`",
        ),
        refuse(
            "as large as allowed",
            raw(&"x".repeat(MAX_BODY_BYTES)),
            "body field `.`",
        ),
        case(
            "one byte too large",
            raw(&"x".repeat(MAX_BODY_BYTES + 1)),
            413,
            "Body too large",
            "more than 262144 bytes",
        ),
        case(
            "a subscription where cancellations go",
            Delivery::standard(env, CANCEL, created(&account, SKU, PLAN).to_string()),
            422,
            "Wrong event type",
            "/webhooks/entitlement",
        ),
    ];
    check(&world, &cases, &[&account]).await;
}

#[tokio::test]
async fn github_deliveries_that_are_refused() {
    let world = alongside().await;
    let env = world.env;
    let id = account();
    let body = purchased(id);
    let good = || Delivery::github(env, body.to_string());
    let changed = |pointer: &str, value: Value| {
        let mut body = body.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        Delivery::github(env, body.to_string())
    };
    let signed = |signature: &str| good().with(GITHUB_SIGNATURE, signature);
    let refuse = |name, delivery, says| case(name, delivery, 400, NOT_AUTHENTIC, says);
    let misread = |name, delivery, says| case(name, delivery, 400, NOT_UNDERSTOOD, says);
    let cases = [
        refuse(
            "no signature",
            good().without(GITHUB_SIGNATURE),
            "header x-hub-signature-256 is missing",
        ),
        refuse(
            "no delivery id",
            good().without(GITHUB_DELIVERY),
            "header x-github-delivery is missing",
        ),
        refuse(
            "empty signature",
            signed(""),
            "header x-hub-signature-256 is missing",
        ),
        refuse(
            "malformed signature",
            signed("sha256=xyz"),
            "header x-hub-signature-256 is not sha256=",
        ),
        refuse(
            "the old signature's form",
            signed(&format!("sha1={}", "0".repeat(40))),
            "header x-hub-signature-256 is not sha256=",
        ),
        refuse(
            "wrong signature",
            signed(&format!("sha256={}", "0".repeat(64))),
            "no signature matches",
        ),
        misread(
            "not JSON",
            Delivery::github(env, "payload=%7B%7D"),
            "body field `.`",
        ),
        misread("no action", Delivery::github(env, "{}"), "missing field `action`"),
        misread(
            "no purchase",
            Delivery::github(env, "{\"action\":\"purchased\"}"),
            "missing field `marketplace_purchase`",
        ),
        misread(
            "mistyped account",
            changed("/marketplace_purchase/account/id", json!([id])),
            "body field `marketplace_purchase.account.id`",
        ),
        misread(
            "mistyped plan",
            changed("/marketplace_purchase/plan", json!("Basic Plan")),
            "body field `marketplace_purchase.plan`",
        ),
        misread(
            "an array of the fields' values",
            Delivery::github(env, json!(["purchased", null, [[id], [1]]]).to_string()),
            "body field `.`: expected an object, found an array",
        ),
        misread(
            "an account that is an array",
            changed("/marketplace_purchase/account", json!([id])),
            "body field `marketplace_purchase.account`: expected an object, found an array",
        ),
        misread(
            "as large as allowed",
            Delivery::github(env, "x".repeat(MAX_BODY_BYTES)),
            "body field `.`",
        ),
        case(
            "one byte too large",
            Delivery::github(env, "x".repeat(MAX_BODY_BYTES + 1)),
            413,
            "Body too large",
            "more than 262144 bytes",
        ),
    ];
    check(&world, &cases, &[&format!("github-{id}")]).await;
}

#[tokio::test]
async fn unknown_plans_are_refused_with_a_receipt() {
    let world = alongside().await;
    let env = world.env;
    let github_id = account();
    let mut github = purchased(github_id);
    github["marketplace_purchase"]["plan"]["id"] = json!(999_999);
    let (sku, plan) = (unique("sku"), unique("plan"));
    let deliveries = [
        (
            sku.as_str(),
            PLAN,
            Delivery::created(env, &sku, &sku, PLAN),
            sku.clone(),
        ),
        (
            SKU,
            plan.as_str(),
            Delivery::created(env, &plan, SKU, &plan),
            plan.clone(),
        ),
        (
            "github",
            "999999",
            Delivery::github(env, github.to_string()),
            format!("github-{github_id}"),
        ),
    ];
    for (sku, plan, delivery, account) in deliveries {
        let answer = world.post(&delivery).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        assert_eq!(world.post(&delivery).await, answer, "the same delivery again");
        let ledger = world.ledger(&account).await;
        assert_eq!(answer.content_type, "application/problem+json", "{answer:?}");
        let problem = answer.json();
        assert_eq!(
            (&problem["status"], &problem["title"]),
            (&json!(422), &json!("Not possible"))
        );
        assert_eq!(problem["detail"], ledger.receipts[0]["reason"]);
        assert_eq!(ledger.receipts, [problem["receipt"].clone()]);
        let receipt = &ledger.receipts[0];
        assert_eq!(operation(receipt), "entitlement_failed");
        let expected = json!({
            "sku_id": sku, "plan_type": plan, "step": "load_policy", "undone": [], "status": "failed",
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(receipt[field], *value, "{field} of {receipt}");
        }
        assert!(receipt["reason"].as_str().unwrap().contains(plan), "{receipt}");
    }
}

#[tokio::test]
async fn events_we_do_not_act_on_are_accepted_and_ignored() {
    let world = alongside().await;
    let kind = unique("invoice.paid");
    let mut github = purchased(account());
    github["action"] = json!(kind);
    let body = json!({ "type": kind, "timestamp": "2026-01-01T00:00:00Z", "data": [] });
    for delivery in [
        Delivery::standard(world.env, ENTITLEMENT, body.to_string()),
        Delivery::github(world.env, github.to_string()),
    ] {
        let answer = world.post(&delivery).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let receipt = answer.json();
        assert_eq!(
            (operation(&receipt), &receipt["status"]),
            ("webhook_ignored", &json!("ignored"))
        );
        assert!(receipt["reason"].as_str().unwrap().contains(&kind), "{receipt}");
        assert_eq!(world.post(&delivery).await, answer, "the same delivery again");
        // Whose ledger says so: the account's where the delivery names one.
        let ledger = world.ledger(receipt["account_id"].as_str().unwrap()).await;
        assert_eq!(
            ledger.lines.iter().filter(|line| **line == answer.body).count(),
            1
        );
    }
}

#[tokio::test]
async fn a_cancellation_of_nobody_is_ignored() {
    let world = alongside().await;
    let account = unique("nobody");
    let answer = world.post(&Delivery::cancelled(world.env, &account, SKU)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(world.ledger(&account).await.operations(), ["webhook_ignored"]);
}

/// API Gateway never sends such events; whoever may invoke the function directly can.
#[tokio::test]
async fn events_that_no_gateway_sends_are_answered() {
    let world = alongside().await;
    let headers = json!({ "webhook-id": "m" });
    let event = |path: &str, body: &str, base64: bool| {
        json!({
            "version": "2.0", "rawPath": path, "headers": headers, "body": body, "isBase64Encoded": base64,
            "requestContext": { "http": { "method": "POST", "path": path } },
        })
    };
    for (function, path) in [
        (&world.env.entitlement, ENTITLEMENT),
        (&world.env.entitlement, "/webhooks/github"),
        (&world.env.cancel, CANCEL),
    ] {
        for (event, says) in [
            (event(path, "!!!", true), "body is marked base64 and is not"),
            (event(path, "aGk", true), "body is marked base64 and is not"),
            (json!([1]), "not an HTTP API event"),
            (json!({}), "not an HTTP API event"),
            (event(path, "hello", false), " is missing"),
        ] {
            let answer = world.invoke(function, &event).await;
            assert_eq!(answer["statusCode"], 400, "{function} {event}: {answer}");
            assert_eq!(
                answer["headers"]["content-type"], "application/problem+json",
                "{answer}"
            );
            assert!(
                answer["body"].as_str().unwrap().contains(says),
                "{function} {event}: {answer}"
            );
        }
    }
}

/// API Gateway encodes what it does not take for text; the signature is over the bytes that were posted.
#[tokio::test]
async fn bodies_that_the_gateway_encodes() {
    let world = alongside().await;
    let account = unique("encoded");
    let secret = Secret::standard(&world.env.standard_secret).unwrap();
    for (body, status, says) in [
        (
            created(&account, SKU, PLAN).to_string().into_bytes(),
            200,
            "entitlement_active",
        ),
        (b"{\"type\":\"\xff\"}".to_vec(), 400, "UTF-8"),
        (b"\xff\xfe".to_vec(), 400, "UTF-8"),
    ] {
        let (id, now) = (unique("msg"), Timestamp::now());
        let event = json!({
            "version": "2.0", "rawPath": ENTITLEMENT, "isBase64Encoded": true,
            "body": STANDARD.encode(&body),
            "headers": {
                "Webhook-Id": id, "WEBHOOK-TIMESTAMP": now.as_second().to_string(),
                "webhook-signature": sign_standard(&secret, &id, now, &body),
            },
            "requestContext": { "http": { "method": "POST", "path": ENTITLEMENT } },
        });
        let answer = world.invoke(&world.env.entitlement, &event).await;
        assert_eq!(answer["statusCode"], status, "{answer}");
        assert!(answer["body"].as_str().unwrap().contains(says), "{answer}");
    }
    assert_eq!(world.ledger(&account).await.operations(), ["entitlement_active"]);
}
