//! How tenants and actions stand in their items, by the release that wrote them.
//!
//! | format | what differs from the next one |
//! |---|---|
//! | 0 | the item has no number; of a tenant `tombstones`, `table_attempts`, `deferred`, `scale` and what was used of a cancelled entitlement may be missing, of a failed provisioning `undone`, of an action `rollbacks_forgiven` and `receipts` |
//! | 1 | its older items do not say how exactly events are dated and when they arrived (`granularity`, `arrived_at`) |
//!
//! Items are converted when they are read, and written in the last format. While a stack is updated both releases run, so
//! the one before must be able to read what this one writes: a field that is added keeps the number, and what is missing is
//! filled in whichever release wrote it; none is renamed (ADR 19).

use aws_sdk_dynamodb::types::AttributeValue;
use domain::action::Action;
use domain::names::Partition;
use domain::tenant::Tenant;

use super::error::StoreError;
use super::items::{Item, TENANT, attribute, number, text};

/// The format that this release writes.
pub(super) const LAST: u64 = 1;

/// The attribute that holds the format.
const FORMAT: &str = "format";

/// The tenant in an item, whichever release wrote it.
pub(super) fn tenant(partition: &Partition, item: Option<Item>) -> Result<Option<Tenant>, StoreError> {
    attribute(
        partition,
        TENANT,
        "tenant",
        converted(partition, TENANT, "tenant", item, fill_tenant)?,
    )
}

/// The action in an item, whichever release wrote it.
pub(super) fn action(
    partition: &Partition,
    sk: &str,
    item: Option<Item>,
) -> Result<Option<Action>, StoreError> {
    attribute(
        partition,
        sk,
        "action",
        converted(partition, sk, "action", item, fill_action)?,
    )
}

/// What an item with a tenant or an action says of its format.
pub(super) fn stamp() -> (String, AttributeValue) {
    (FORMAT.to_owned(), number(LAST))
}

/// The item with its `field` in the last format.
fn converted(
    partition: &Partition,
    sk: &str,
    field: &str,
    item: Option<Item>,
    fill: fn(&mut Item),
) -> Result<Option<Item>, StoreError> {
    let Some(mut item) = item else { return Ok(None) };
    let format = match item.get(FORMAT) {
        None => Some(0),
        Some(AttributeValue::N(format)) => format.parse().ok(),
        Some(_) => None,
    };
    match (format, item.get_mut(field)) {
        (Some(0..=LAST), Some(AttributeValue::M(fields))) => fill(fields),
        (Some(0..=LAST), _) => {}
        (unknown, _) => {
            let unknown = unknown.map_or("an unknown format".to_owned(), |n: u64| format!("format {n}"));
            return Err(StoreError::Item {
                account: partition.to_string(),
                sk: sk.to_owned(),
                detail: format!(
                    "it has {unknown}, and this release reads up to {LAST}: deploy the release that wrote it"
                ),
            });
        }
    }
    Ok(Some(item))
}

fn fill_tenant(tenant: &mut Item) {
    missing(tenant, "table_attempts", number(0));
    missing(tenant, "deferred", AttributeValue::L(Vec::new()));
    missing(tenant, "scale", map([]));
    missing(tenant, "tombstones", map([]));
    if let Some(tombstones) = inside(tenant, "tombstones") {
        missing(tombstones, "of", map([]));
        let cancelled = inside(tombstones, "of").into_iter().flatten();
        for fields in cancelled.filter_map(|(_, tombstone)| fields(tombstone)) {
            let nothing = [
                ("in_flight", number(0)),
                ("month", text("")),
                ("month_actions", number(0)),
            ];
            missing(fields, "usage", map(nothing));
            dated(fields, &["order"]);
        }
        dated(tombstones, &["all"]);
    }
    let orders = ["order", "plan_order", "standing_order", "term_order"];
    let entitlements = inside(tenant, "entitlements").into_iter().flatten();
    for held in entitlements.filter_map(|(_, held)| fields(held)) {
        dated(held, &orders);
    }
    if let Some(saga) = inside(tenant, "provisioning") {
        if let Some(held) = inside(saga, "entitlement") {
            dated(held, &orders);
        }
        if let Some(failure) = inside(saga, "failure") {
            missing(failure, "undone", AttributeValue::L(Vec::new()));
        }
    }
}

/// Orders of events that do not say how exactly they are dated, or when they arrived: all were taken at their word.
fn dated(fields: &mut Item, orders: &[&str]) {
    for name in orders {
        if let Some(order) = inside(fields, name) {
            missing(order, "granularity", text("instant"));
            if let Some(at) = order.get("at").cloned() {
                missing(order, "arrived_at", at);
            }
        }
    }
}

fn fill_action(action: &mut Item) {
    missing(action, "rollbacks_forgiven", number(0));
    missing(action, "receipts", AttributeValue::L(Vec::new()));
}

fn missing(fields: &mut Item, name: &str, value: AttributeValue) {
    fields.entry(name.to_owned()).or_insert(value);
}

fn inside<'a>(item: &'a mut Item, name: &str) -> Option<&'a mut Item> {
    item.get_mut(name).and_then(fields)
}

fn fields(value: &mut AttributeValue) -> Option<&mut Item> {
    match value {
        AttributeValue::M(fields) => Some(fields),
        _ => None,
    }
}

fn map<const N: usize>(fields: [(&str, AttributeValue); N]) -> AttributeValue {
    AttributeValue::M(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

#[cfg(test)]
mod tests;
