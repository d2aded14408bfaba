//! Items of each format, as they stood in the table. A change to what is persisted shows here first: it needs a new format,
//! a conversion of the one before, and an item of its own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]

use std::collections::BTreeSet;

use domain::transaction::Account;
use serde_json::Value;

use super::*;
use crate::store::tests::store;

/// In the order of the releases that wrote them; the last as this one writes it.
const TENANTS: [&str; 3] = [
    include_str!("tenant-0.json"),
    include_str!("tenant-1.json"),
    include_str!("tenant-1-dated.json"),
];
const ACTIONS: [&str; 2] = [include_str!("action-0.json"), include_str!("action-1.json")];
const SK: &str = "ACTION#restart-7";

fn item(golden: &str) -> Item {
    let value: Value = serde_json::from_str(golden).unwrap();
    serde_dynamo::to_item(value).unwrap()
}

fn json(item: Item) -> Value {
    serde_dynamo::from_item(item).unwrap()
}

fn partition() -> Partition {
    Partition::from_key("customer-123".to_owned())
}

fn read_tenant(item: Item) -> Tenant {
    tenant(&partition(), Some(item)).unwrap().unwrap()
}

fn read_action(item: Item) -> Action {
    action(&partition(), SK, Some(item)).unwrap().unwrap()
}

#[test]
fn every_format_is_read() {
    let formats = |items: &[Item]| -> BTreeSet<Option<String>> {
        let format = |item: &Item| item.get(FORMAT).map(|format| format.as_n().unwrap().clone());
        items.iter().map(format).collect()
    };
    let every: BTreeSet<_> = (1..=LAST)
        .map(|format| Some(format.to_string()))
        .chain([None])
        .collect();
    let (tenants, actions) = (TENANTS.map(item), ACTIONS.map(item));
    assert_eq!((&formats(&tenants), &formats(&actions)), (&every, &every));
    let tenants = tenants.map(read_tenant);
    assert!(tenants.iter().all(|tenant| *tenant == tenants[0]));
    let actions = actions.map(read_action);
    assert!(actions.iter().all(|action| *action == actions[0]));
}

#[test]
fn the_last_format_is_written() {
    let account = Account::unknown(&partition());
    let (tenant, action) = (read_tenant(item(TENANTS[0])), read_action(item(ACTIONS[0])));
    let put = store().put_tenant(&account, &tenant).unwrap();
    assert_eq!(json(put.put().unwrap().item().clone()), json(item(TENANTS[2])));
    let put = store().put_action(&account, None, &action).unwrap();
    assert_eq!(json(put.put().unwrap().item().clone()), json(item(ACTIONS[1])));
}

/// What only a later release understands is not guessed at.
#[test]
fn a_later_format_is_refused() {
    for format in [number(LAST + 1), text("1"), AttributeValue::N("x".to_owned())] {
        let mut later = item(TENANTS[0]);
        later.insert(FORMAT.to_owned(), format);
        let error = tenant(&partition(), Some(later)).unwrap_err().to_string();
        assert!(error.contains("item TENANT of account customer-123"), "{error}");
        assert!(error.contains("reads up to 1"), "{error}");
    }
}

/// No item is missing any field by accident: what the conversion doesn't fill in is an error.
#[test]
fn a_field_that_is_missing_is_an_error() {
    for golden in TENANTS {
        let mut broken = item(golden);
        let AttributeValue::M(fields) = broken.get_mut("tenant").unwrap() else {
            panic!("a map");
        };
        fields.remove("in_flight");
        let error = tenant(&partition(), Some(broken)).unwrap_err().to_string();
        assert!(error.contains("in_flight"), "{error}");
    }
}
