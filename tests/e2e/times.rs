//! Times as senders write them, from the webhook to the receipt.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::github::{account, purchased};
use crate::webhooks::{Delivery, ENTITLEMENT, created};
use crate::world::{PLAN, SKU, World, alongside, operation, unique};

/// Posts an event about the account's only entitlement, and gives the receipt that it left.
async fn event(world: &World, account: &str, event: &str, times: Value) -> Value {
    let mut data = json!({ "account_id": account, "sku_id": SKU });
    data.as_object_mut()
        .unwrap()
        .extend(times.as_object().unwrap().clone());
    let answer = world.post(&Delivery::entitlement(world.env, event, data)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn an_end_is_any_time_of_rfc_3339_or_never() {
    let world = alongside().await;
    let account = unique("times");
    let mut body = created(&account, SKU, PLAN);
    body["data"]["expires_at"] = json!("9999-12-31T23:59:59Z");
    let answer = world
        .post(&Delivery::standard(world.env, ENTITLEMENT, body.to_string()))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    world.provisioned(answer.body).await;
    let year = Timestamp::now()
        .strftime("%Y")
        .to_string()
        .parse::<u32>()
        .unwrap()
        + 1;
    for (text, expected) in [
        (
            format!("{year}-01-31T12:00:00.1234567891Z"),
            json!(format!("{year}-01-31T12:00:00.123Z")),
        ),
        (
            format!("{year}-01-31t12:00:00z"),
            json!(format!("{year}-01-31T12:00:00.000Z")),
        ),
        (
            format!("{year}-12-31T23:59:60Z"),
            json!(format!("{year}-12-31T23:59:59.999Z")),
        ),
        (
            format!("{year}-01-31T12:00:00+23:59"),
            json!(format!("{year}-01-30T12:01:00.000Z")),
        ),
        ("9999-12-31T23:59:59.9999999Z".to_owned(), Value::Null),
        ("0001-01-01T00:00:00Z".to_owned(), Value::Null),
    ] {
        let receipt = event(&world, &account, "renewed", json!({ "expires_at": text })).await;
        assert_eq!(operation(&receipt), "entitlement_renewed", "{text}: {receipt}");
        assert_eq!(receipt["expires_at"], expected, "{text}");
    }
}

#[tokio::test]
async fn what_never_takes_effect_is_ignored_on_record() {
    let world = alongside().await;
    let tenant = world.tenant("never").await;
    let never = json!({ "effective_at": "9999-12-31T23:59:59Z" });
    let receipt = event(&world, &tenant.account, "cancelled", never).await;
    assert_eq!(operation(&receipt), "webhook_ignored", "{receipt}");
    let reason = receipt["reason"].as_str().unwrap();
    assert!(reason.contains("the cancellation never takes effect"), "{reason}");
    // A time that is not set is the delivery's: the tenant is suspended at once.
    let unset = json!({ "effective_at": "0001-01-01T00:00:00Z" });
    let receipt = event(&world, &tenant.account, "suspended", unset).await;
    assert_eq!(operation(&receipt), "entitlement_suspended", "{receipt}");

    let id = account();
    let mut body = purchased(id);
    body["effective_date"] = json!("0001-01-01T00:00:00+00:00");
    let answer = world.post(&Delivery::github(world.env, body.to_string())).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(operation(&answer.json()), "entitlement_active");
}

#[tokio::test]
async fn what_is_not_rfc_3339_is_refused_by_its_field() {
    let world = alongside().await;
    let account = unique("no-time");
    let later = Timestamp::now() + SignedDuration::from_hours(24);
    for text in [
        later.strftime("%Y%m%dT%H%M%SZ").to_string(),
        later.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        later.strftime("%Y-%m-%dT%H:%M:%S+25:00").to_string(),
        later.strftime("%Y-%m-%dT%H:%M:%S,5Z").to_string(),
        later
            .strftime("%Y-%m-%dT%H:%M:60Z")
            .to_string()
            .replace("T23:59", "T23:58"),
        "-000001-01-31T12:00:00Z".to_owned(),
    ] {
        for field in ["expires_at", "effective_at"] {
            let mut body = created(&account, SKU, PLAN);
            body["data"][field] = json!(text);
            let answer = world
                .post(&Delivery::standard(world.env, ENTITLEMENT, body.to_string()))
                .await;
            assert_eq!(answer.status, 400, "{text}: {answer:?}");
            let expected = format!("body field `data.{field}`: not a date and time of RFC 3339");
            assert!(answer.body.contains(&expected), "{text}: {answer:?}");
        }
    }
    assert_eq!(world.table_items(&account).await, 0);
}
