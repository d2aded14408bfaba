//! How tenants and actions stand in their items, by the release that wrote them.
//!
//! | format | what differs from the next one |
//! |---|---|
//! | 0 | the item has no number; of a tenant `tombstones`, `table_attempts`, `deferred`, `scale` and what was used of a cancelled entitlement may be missing, of a failed provisioning `undone`, of an action `rollbacks_forgiven` and `receipts` |
//! | 1 | – |
//!
//! Items are converted when they are read, and written in the last format. While a stack is updated both releases run, so
//! the one before must be able to read what this one writes: fields are added, and none is renamed (ADR 19).

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
        converted(partition, TENANT, "tenant", item, tenant_of_0)?,
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
        converted(partition, sk, "action", item, action_of_0)?,
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
    of_0: fn(&mut Item),
) -> Result<Option<Item>, StoreError> {
    let Some(mut item) = item else { return Ok(None) };
    let format = match item.get(FORMAT) {
        None => Some(0),
        Some(AttributeValue::N(format)) => format.parse().ok(),
        Some(_) => None,
    };
    match (format, item.get_mut(field)) {
        (Some(0), Some(AttributeValue::M(fields))) => of_0(fields),
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

fn tenant_of_0(tenant: &mut Item) {
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
        }
    }
    if let Some(failure) = inside(tenant, "provisioning").and_then(|saga| inside(saga, "failure")) {
        missing(failure, "undone", AttributeValue::L(Vec::new()));
    }
}

fn action_of_0(action: &mut Item) {
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
