//! What bodies of Standard Webhooks say.

use serde_json::{Value, json};

use super::domain::account::{AccountId, EntitlementId, PlanType, SkuId};
use super::domain::webhook::event::{
    Change, EntitlementEvent, PlanReference, ProductReference, WebhookEvent,
};
use super::{date, refuses, standard};

const SPELLINGS: [&str; 8] = [
    "entitlement.created",
    "entitlement.purchased",
    "entitlement.changed",
    "entitlement.suspended",
    "entitlement.reinstated",
    "entitlement.renewed",
    "entitlement.cancelled",
    "entitlement.canceled",
];

fn plan() -> PlanReference {
    PlanReference::Canonical {
        sku_id: SkuId::parse("s").unwrap(),
        plan_type: PlanType::parse("p").unwrap(),
    }
}

/// An event about account `a` that says nothing but what happens.
fn plain(change: Change) -> EntitlementEvent {
    EntitlementEvent {
        account_id: AccountId::parse("a").unwrap(),
        entitlement_id: None,
        product: None,
        version: None,
        effective_at: None,
        change,
    }
}

fn ignored(account: Option<&str>, reason: &str) -> WebhookEvent {
    WebhookEvent::Ignored {
        account_id: account.map(|account| AccountId::parse(account).unwrap()),
        reason: reason.to_owned(),
    }
}

#[track_caller]
fn check(body: &Value, expected: EntitlementEvent) {
    assert_eq!(
        standard(body.to_string().as_bytes()),
        Ok(WebhookEvent::Entitlement(expected)),
        "{body}"
    );
}

/// A body with one field of its data set to something else.
fn with(r#type: &str, field: &str, value: Value) -> Value {
    let mut body = json!({"type": r#type, "data": {"account_id": "a", "sku_id": "s", "plan_type": "p"}});
    body["data"][field] = value;
    body
}

#[test]
fn every_type() {
    let granted = |region: &str, expires_at| Change::Granted {
        plan: plan(),
        region: region.to_owned(),
        expires_at,
    };
    let product = Some(ProductReference::Sku(SkuId::parse("s").unwrap()));
    for r#type in ["entitlement.created", "entitlement.purchased"] {
        check(
            &json!({"type": r#type, "data": {"account_id": "a", "sku_id": "s", "plan_type": "p"}}),
            EntitlementEvent {
                product: product.clone(),
                ..plain(granted("us-east-1", None))
            },
        );
    }
    check(
        &json!({
            "type": "entitlement.created", "timestamp": "2026-01-01T00:00:00Z", "extra": [1],
            "data": {
                "account_id": "a", "entitlement_id": "e", "sku_id": "s", "plan_type": "p", "region": "eu-west-1",
                "version": 7, "effective_at": "2026-02-01T00:00:00.25+01:00", "expires_at": "2027-02-01T00:00:00Z",
                "seats": 5, "buyer": {"type": "company"}
            }
        }),
        EntitlementEvent {
            entitlement_id: Some(EntitlementId::parse("e").unwrap()),
            product: product.clone(),
            version: Some(7),
            effective_at: Some(date("2026-01-31T23:00:00.25Z")),
            ..plain(granted("eu-west-1", Some(date("2027-02-01T00:00:00Z"))))
        },
    );
    check(
        &json!({"type": "entitlement.changed", "data": {"account_id": "a", "sku_id": "s", "plan_type": "p"}}),
        EntitlementEvent {
            product: product.clone(),
            ..plain(Change::PlanChanged { plan: plan() })
        },
    );
    for (r#type, change) in [
        ("suspended", Change::Suspended),
        ("reinstated", Change::Reinstated),
        ("renewed", Change::Renewed { expires_at: None }),
        ("cancelled", Change::Cancelled),
        ("canceled", Change::Cancelled),
    ] {
        let r#type = format!("entitlement.{type}");
        check(
            &json!({"type": r#type, "data": {"account_id": "a"}}),
            plain(change.clone()),
        );
        let of_product = EntitlementEvent {
            product: product.clone(),
            ..plain(change)
        };
        check(
            &json!({"type": r#type, "data": {"account_id": "a", "sku_id": "s"}}),
            of_product,
        );
    }
    check(
        &json!({"type": "entitlement.renewed", "data": {"account_id": "a", "expires_at": "2027-02-01T00:00:00Z"}}),
        plain(Change::Renewed {
            expires_at: Some(date("2027-02-01T00:00:00Z")),
        }),
    );
}

#[test]
fn null_is_absent_and_a_missing_field_is_named() {
    for r#type in SPELLINGS {
        let mut body = json!({
            "type": r#type, "timestamp": null,
            "data": {
                "account_id": "a", "entitlement_id": null, "sku_id": "s", "plan_type": "p", "region": null,
                "version": null, "effective_at": null, "expires_at": null
            }
        });
        let full = standard(body.to_string().as_bytes()).unwrap();
        let WebhookEvent::Entitlement(event) = full else {
            panic!("{type} is ignored")
        };
        assert_eq!(
            (event.entitlement_id, event.version, event.effective_at),
            (None, None, None)
        );
        let names_a_plan = matches!(event.change, Change::Granted { .. } | Change::PlanChanged { .. });
        for (field, needed) in [
            ("sku_id", names_a_plan),
            ("plan_type", names_a_plan),
            ("account_id", true),
        ] {
            for value in [Some(Value::Null), None] {
                let kept = body["data"][field].clone();
                match value {
                    Some(value) => body["data"][field] = value,
                    None => drop(body["data"].as_object_mut().unwrap().remove(field)),
                }
                let got = standard(body.to_string().as_bytes());
                assert_eq!(got.is_err(), needed, "{type} without {field}: {got:?}");
                if let Err(message) = got {
                    assert!(message.contains(field), "{message}");
                }
                body["data"][field] = kept;
            }
        }
    }
}

#[test]
fn order_is_told_by_the_data_or_else_by_the_envelope() {
    let body = |timestamp: Value, effective_at: Value| {
        json!({
            "type": "entitlement.suspended", "timestamp": timestamp,
            "data": {"account_id": "a", "effective_at": effective_at}
        })
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T12:00:00.123456Z");
    for (timestamp, effective_at, expected) in [
        (json!(early), json!(late), Some(late)),
        (json!(early), Value::Null, Some(early)),
        (Value::Null, json!(late), Some(late)),
        (Value::Null, Value::Null, None),
    ] {
        check(
            &body(timestamp, effective_at),
            EntitlementEvent {
                effective_at: expected.map(date),
                ..plain(Change::Suspended)
            },
        );
    }
}

#[test]
fn dates() {
    for (text, same) in [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.5Z"),
        ("2026-01-31T12:00:00.123456789Z", "2026-01-31T12:00:00.123456789Z"),
        ("2026-01-31T12:00:00+00:00", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00-05:30", "2026-01-31T17:30:00Z"),
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00Z"),
        (
            "2026-01-31T12:00:00.1234567891Z",
            "2026-01-31T12:00:00.123456789Z",
        ),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999999Z"),
        ("9998-12-31T23:59:59Z", "9998-12-31T23:59:59Z"),
    ] {
        let event = EntitlementEvent {
            effective_at: Some(date(same)),
            ..plain(Change::Cancelled)
        };
        check(
            &json!({"type": "entitlement.cancelled", "data": {"account_id": "a", "effective_at": text}}),
            event,
        );
    }
    for text in [
        "",
        "soon",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-30T12:00:00Z",
        "1769860800",
        "é",
        "20260131T120000Z",
        "2026-01-31 12:00:00Z",
        "2026-01-31T12:00:00+25:00",
        "2026-01-31T12:00:00,5Z",
        "-000001-01-31T12:00:00Z",
    ] {
        let says = "not a date and time of RFC 3339, such as";
        for field in ["effective_at", "expires_at"] {
            let body = with("entitlement.created", field, json!(text)).to_string();
            refuses(
                standard(body.as_bytes()),
                &format!("body field `data.{field}`: {says}"),
            );
        }
        let body = json!({"type": "entitlement.cancelled", "timestamp": text, "data": {"account_id": "a"}});
        refuses(
            standard(body.to_string().as_bytes()),
            &format!("body field `timestamp`: {says}"),
        );
    }
    let body = with("entitlement.created", "expires_at", json!(1_769_860_800)).to_string();
    refuses(
        standard(body.as_bytes()),
        "body field `data.expires_at`: expected a string, found the number 1769860800",
    );
}

/// Year 1 says that the sender has no time, year 9999 that there will be none.
#[test]
fn dates_that_are_no_times() {
    let stated = "2026-01-02T12:00:00Z";
    for unset in [
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "0000-01-01T00:00:00Z",
    ] {
        for (effective_at, timestamp, expected) in [
            (unset, stated, Some(stated)),
            (unset, unset, None),
            (stated, unset, Some(stated)),
        ] {
            let data = json!({"account_id": "a", "effective_at": effective_at, "expires_at": unset});
            check(
                &json!({"type": "entitlement.renewed", "timestamp": timestamp, "data": data}),
                EntitlementEvent {
                    effective_at: expected.map(date),
                    ..plain(Change::Renewed { expires_at: None })
                },
            );
        }
    }
    for never in [
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59.9999999Z",
        "9999-01-01T00:00:00-12:00",
    ] {
        check(
            &json!({"type": "entitlement.renewed", "timestamp": never, "data": {"account_id": "a", "expires_at": never}}),
            plain(Change::Renewed { expires_at: None }),
        );
        let body = with("entitlement.cancelled", "effective_at", json!(never)).to_string();
        assert_eq!(
            standard(body.as_bytes()),
            Ok(ignored(
                Some("a"),
                "the cancellation never takes effect: its sender dates it in year 9999"
            )),
            "{body}"
        );
    }
}

#[test]
fn versions() {
    for (value, expected) in [
        (json!(0), 0),
        (json!(7), 7),
        (json!("7"), 7),
        (json!("007"), 7),
        (json!(u64::MAX), u64::MAX),
        (json!(u64::MAX.to_string()), u64::MAX),
    ] {
        check(
            &json!({"type": "entitlement.cancelled", "data": {"account_id": "a", "version": value}}),
            EntitlementEvent {
                version: Some(expected),
                ..plain(Change::Cancelled)
            },
        );
    }
    for value in [
        json!(-1),
        json!(1.5),
        json!(1e30),
        json!(true),
        json!([]),
        json!({}),
        json!(""),
        json!("-1"),
        json!("+1"),
        json!(" 1"),
        json!("1.0"),
        json!("18446744073709551616"),
        json!("v7"),
    ] {
        let body = with("entitlement.cancelled", "version", value).to_string();
        refuses(standard(body.as_bytes()), "body field `data.version`: ");
    }
}

#[test]
fn fields_of_the_wrong_type_are_named() {
    for r#type in SPELLINGS {
        for field in [
            "account_id",
            "entitlement_id",
            "sku_id",
            "plan_type",
            "region",
            "effective_at",
            "expires_at",
        ] {
            for value in [json!(5), json!(true), json!([]), json!({})] {
                let body = with(r#type, field, value).to_string();
                refuses(
                    standard(body.as_bytes()),
                    &format!("body field `data.{field}`: expected a string, found "),
                );
            }
        }
        for field in ["account_id", "entitlement_id", "sku_id", "plan_type"] {
            for (text, problem) in [("", "is empty"), ("a\nb", "holds the control character U+000A")] {
                let body = with(r#type, field, json!(text)).to_string();
                let message = format!("body field `data.{field}`: {field} {problem}");
                refuses(standard(body.as_bytes()), &message);
            }
        }
        for value in [json!(5), json!("x"), json!([]), Value::Null] {
            let body = json!({"type": r#type, "data": value}).to_string();
            refuses(
                standard(body.as_bytes()),
                "body field `data`: expected an object, found ",
            );
        }
        let body = json!({"type": r#type}).to_string();
        refuses(standard(body.as_bytes()), "body field `.`: missing field `data`");
    }
    for region in ["", "eu west", "a\nb", "é", &"x".repeat(65)] {
        let body = with("entitlement.created", "region", json!(region)).to_string();
        refuses(
            standard(body.as_bytes()),
            "body field `data.region`: not 1 to 64 visible ASCII characters",
        );
    }
}

#[test]
fn unknown_types_are_ignored_whatever_their_data_is() {
    let reason = "unknown event type \"invoice.paid\"";
    for (data, account) in [
        (json!({"account_id": "a", "sku_id": 5, "version": "x"}), Some("a")),
        (json!({"account_id": "a"}), Some("a")),
        (json!({"account_id": 5}), None),
        (json!({"account_id": ""}), None),
        (json!({}), None),
        (json!(7), None),
        (json!([]), None),
        (Value::Null, None),
    ] {
        let body = json!({"type": "invoice.paid", "timestamp": 5, "data": data}).to_string();
        assert_eq!(standard(body.as_bytes()), Ok(ignored(account, reason)), "{body}");
    }
    assert_eq!(standard(br#"{"type":"invoice.paid"}"#), Ok(ignored(None, reason)));
    // A word is told from ours by every letter.
    for r#type in ["entitlement", "Entitlement.Created", "entitlement.created ", ""] {
        let body = json!({"type": r#type, "data": {"account_id": "a"}}).to_string();
        let got = standard(body.as_bytes());
        assert!(matches!(got, Ok(WebhookEvent::Ignored { .. })), "{type}: {got:?}");
    }
}

#[test]
fn a_type_that_is_no_word_is_not_quoted() {
    for r#type in ["me@example.org", "a\u{7}", "é", "<b>", &"x".repeat(65)] {
        let body = json!({"type": r#type}).to_string();
        assert_eq!(
            standard(body.as_bytes()),
            Ok(ignored(None, "unknown event type")),
            "{body}"
        );
    }
}
