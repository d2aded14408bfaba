//! Bodies that are hardly JSON, of every provider.

use proptest::prelude::*;

use super::domain::webhook::MAX_BODY_BYTES;
use super::domain::webhook::event::WebhookEvent;
use super::{github, refuses, standard};

/// A body of each provider that is understood, up to the brace that closes it.
const STANDARD: &str =
    r#"{"type":"entitlement.created","data":{"account_id":"a","sku_id":"s","plan_type":"p"}"#;
const GITHUB: &str = r#"{"action":"purchased","marketplace_purchase":{"account":{"id":1},"plan":{"id":2}}"#;

type Read = fn(&[u8]) -> Result<WebhookEvent, String>;

fn each() -> [(Read, &'static str); 2] {
    [(standard, STANDARD), (github, GITHUB)]
}

#[test]
fn bodies_that_are_no_json() {
    for (read, start) in each() {
        assert!(read(format!("{start}}}").as_bytes()).is_ok());
        refuses(read(b""), "body is empty");
        refuses(read(b" "), "body field `.`: EOF while parsing");
        refuses(read(b"{"), "body field `.`: EOF while parsing");
        refuses(read(start.as_bytes()), "body field `.`: EOF while parsing");
        refuses(read(b"data=%7B%7D"), "body field `.`: expected value");
        refuses(read(b"\xef\xbb\xbf{}"), "body field `.`: expected value");
        refuses(read(b"null"), "body field `.`: expected an object, found null");
        refuses(
            read(b"7"),
            "body field `.`: expected an object, found the number 7",
        );
        refuses(
            read(b"\"text\""),
            "body field `.`: expected an object, found the text \"text\"",
        );
        for rest in ["x", "{}", ",", "\0"] {
            let body = format!("{start}}} {rest}");
            refuses(read(body.as_bytes()), "body field `.`: trailing characters");
        }
    }
}

#[test]
fn bodies_that_are_no_utf8() {
    for (read, start) in each() {
        refuses(read(b"\xff"), "body field `.`: not UTF-8: invalid utf-8 sequence");
        // Where nobody looks at it, too: what is kept for an auditor is text.
        let mut body = format!("{start},\"name\":\"").into_bytes();
        let at = body.len();
        body.extend(b"\xe9\"}");
        refuses(
            read(&body),
            &format!("body field `.`: not UTF-8: invalid utf-8 sequence of 1 bytes from index {at}"),
        );
    }
}

#[test]
fn fields_that_are_there_twice() {
    for body in [
        r#"{"type":"entitlement.cancelled","data":{"account_id":"a","account_id":"b"}}"#,
        r#"{"type":"entitlement.cancelled","data":{"account_id":"a","version":1,"version":1}}"#,
    ] {
        refuses(standard(body.as_bytes()), "body field `data`: duplicate field `");
    }
    for body in [
        r#"{"type":"entitlement.cancelled","type":"entitlement.cancelled","data":{"account_id":"a"}}"#,
        r#"{"type":"entitlement.cancelled","data":{"account_id":"a"},"data":{"account_id":"b"}}"#,
        r#"{"type":"x","data":{"account_id":"a"},"data":{"account_id":"b"}}"#,
        r#"{"type":"x","type":"entitlement.cancelled","data":{"account_id":"a"}}"#,
    ] {
        refuses(standard(body.as_bytes()), "body field `.`: duplicate field `");
    }
    let body = r#"{"action":"purchased","action":"cancelled","marketplace_purchase":{}}"#;
    refuses(
        github(body.as_bytes()),
        "body field `.`: duplicate field `action`",
    );
    let body = r#"{"action":"purchased","marketplace_purchase":{"account":{"id":1,"id":2},"plan":{"id":2}}}"#;
    refuses(
        github(body.as_bytes()),
        "body field `marketplace_purchase.account`: duplicate field `id`",
    );
}

#[test]
fn deep_bodies_do_not_go_deep() {
    const DEPTH: usize = 100_000;
    for (read, start) in each() {
        let (open, close) = ("[".repeat(DEPTH), "]".repeat(DEPTH));
        // A field that nobody reads may be as deep as it likes: passing over it takes no stack.
        assert!(read(format!("{start},\"other\":{open}{close}}}").as_bytes()).is_ok());
        refuses(
            read(format!("{start},\"other\":{open}").as_bytes()),
            "body field `other`: EOF while parsing a list",
        );
        refuses(read(open.as_bytes()), "body field `");
        refuses(read(format!("{open}{close}").as_bytes()), "body field `");
    }
    let deep = "{\"data\":".repeat(DEPTH);
    refuses(
        standard(format!("{{\"type\":\"entitlement.created\",\"data\":{deep}").as_bytes()),
        "body field `data",
    );
    let deep = format!(
        r#"{{"type":"x","data":{}{}}}"#,
        "[".repeat(DEPTH),
        "]".repeat(DEPTH)
    );
    assert!(matches!(
        standard(deep.as_bytes()),
        Ok(WebhookEvent::Ignored { .. })
    ));
}

#[test]
fn bodies_as_large_as_allowed() {
    for (read, start) in each() {
        let padded = |bytes: usize| {
            let rest = bytes - start.len() - r#","note":""}"#.len();
            format!("{start},\"note\":\"{}\"}}", "x".repeat(rest))
        };
        for bytes in [MAX_BODY_BYTES - 1, MAX_BODY_BYTES] {
            let body = padded(bytes);
            assert_eq!(body.len(), bytes);
            assert!(read(body.as_bytes()).is_ok());
        }
        let noise = "x".repeat(MAX_BODY_BYTES);
        refuses(read(noise.as_bytes()), "body field `.`: expected value");
    }
}

#[test]
fn escapes_are_undone_before_words_are_compared() {
    let body = STANDARD.replace("entitlement.created", "entitlement\\u002ecreated");
    assert_eq!(
        standard(format!("{body}}}").as_bytes()),
        standard(format!("{STANDARD}}}").as_bytes())
    );
    let body = GITHUB.replace("purchased", "p\\u0075rchased");
    assert_eq!(
        github(format!("{body}}}").as_bytes()),
        github(format!("{GITHUB}}}").as_bytes())
    );
}

/// Any JSON under the names of fields that are read.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,10}".prop_map(Into::into),
        Just("2026-01-31T12:00:00Z".into()),
        Just("entitlement.created".into()),
        Just("purchased".into()),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        let name = prop::sample::select(vec![
            "type",
            "timestamp",
            "data",
            "account_id",
            "sku_id",
            "plan_type",
            "region",
            "version",
            "effective_at",
            "expires_at",
            "entitlement_id",
            "action",
            "effective_date",
            "marketplace_purchase",
            "account",
            "plan",
            "id",
            "zen",
            "other",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((name, inner), 0..8).prop_map(|fields| {
                let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value));
                serde_json::Value::Object(fields.collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_panics(body: Vec<u8>) {
        for (read, _) in each() {
            prop_assert!(read(&body).is_err());
        }
    }

    #[test]
    fn no_json_panics_and_every_error_names_a_field(value in value()) {
        for (read, _) in each() {
            if let Err(message) = read(value.to_string().as_bytes()) {
                prop_assert!(message.starts_with("body field `"), "{}", message);
            }
        }
    }

    #[test]
    fn any_data_of_a_known_type_is_read_or_refused(data in value()) {
        let body = serde_json::json!({"type": "entitlement.cancelled", "data": data});
        let got = standard(body.to_string().as_bytes());
        prop_assert!(!matches!(got, Ok(WebhookEvent::Ignored { .. })), "{:?}", got);
    }
}
