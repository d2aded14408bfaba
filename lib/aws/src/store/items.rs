//! Items: where each stands, and what is in it.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use domain::names::{self, Partition};
use domain::signal::ActionId;
use serde::Serialize;
use uuid::Uuid;

use super::error::StoreError;

/// An item, or where a page goes on.
pub type Item = HashMap<String, AttributeValue>;

pub(super) const ACTION: &str = "ACTION#";
pub(super) const TENANT: &str = "TENANT";
pub(super) const HEAD: &str = "HEAD";
pub(super) const WEBHOOK: &str = "WEBHOOK";

/// What marks of escalated actions have as their `lifecycle`, so that the index of tenants by lifecycle lists them too.
pub(super) const ESCALATED: &str = "escalated";

/// What ledger heads have as their `lifecycle`, so that the index of tenants by lifecycle lists them too: ledgers of
/// accounts that were never a tenant, and the system's, have no other item to be found by.
pub(super) const LEDGER: &str = "ledger";

/// How a delivery that changed nothing was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAwayAs {
    Refused,
    Ignored,
}

impl TurnedAwayAs {
    /// Of a delivery that was answered with this HTTP status.
    #[must_use]
    pub fn of(status: u16) -> Self {
        if status < 400 {
            Self::Ignored
        } else {
            Self::Refused
        }
    }

    /// What such deliveries have as their `lifecycle`, so that the index of tenants by lifecycle lists them too.
    pub(super) fn listed(self) -> &'static str {
        match self {
            Self::Refused => "delivery_refused",
            Self::Ignored => "delivery_ignored",
        }
    }
}

pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

pub(super) fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(super) fn key(partition: &Partition, sk: &str) -> Item {
    [
        ("account_id".to_owned(), text(partition.as_str())),
        ("sk".to_owned(), text(sk)),
    ]
    .into()
}

/// Where an item stands; `None` when it does not say.
pub(super) fn partition_of(item: &Item) -> Option<Partition> {
    Some(Partition::from_key(item.get("account_id")?.as_s().ok()?.clone()))
}

pub(super) fn action_sk(id: &ActionId) -> String {
    format!("{ACTION}{}", id.as_str())
}

pub(super) fn escalation_sk(id: &ActionId) -> String {
    format!("ESCALATION#{}", id.as_str())
}

/// The table key of a delivery's answer. Deliveries are not filed under the account they name: the same id with another
/// account in its body is still the same id.
pub(super) fn delivery_partition(delivery: &str) -> Partition {
    Partition::from_key(format!("_webhook:{delivery}"))
}

pub(super) fn once_sk(id: Uuid) -> String {
    format!("ONCE#{id}")
}

/// The table key of the note that says whose a queue is.
pub(super) fn queue_partition(queue: &str) -> Partition {
    Partition::from_key(format!("_queue:{queue}"))
}

/// What stands in an item under a name, read as what it is; `None` when there is no item.
pub(super) fn attribute<T: serde::de::DeserializeOwned>(
    partition: &Partition,
    sk: &str,
    field: &str,
    item: Option<Item>,
) -> Result<Option<T>, StoreError> {
    let Some(mut item) = item else { return Ok(None) };
    let wrong = |detail: String| StoreError::Item {
        account: partition.to_string(),
        sk: sk.to_owned(),
        detail,
    };
    let value = item
        .remove(field)
        .ok_or_else(|| wrong(format!("attribute {field} is missing")))?;
    serde_dynamo::from_attribute_value(value)
        .map(Some)
        .map_err(|e| wrong(e.to_string()))
}

/// The ledger line in an item of the receipts table.
pub(super) fn line_of(
    partition: &Partition,
    item: &Item,
    place: impl FnOnce() -> String,
) -> Result<String, StoreError> {
    let line = item.get("line").and_then(|line| line.as_s().ok()).cloned();
    line.ok_or_else(|| StoreError::Item {
        account: partition.to_string(),
        sk: place(),
        detail: "attribute line is missing".to_owned(),
    })
}

/// The index key of a SKU and plan; each part is encoded, so the slash between them is the only one.
pub(super) fn sku_plan(sku_id: &str, plan_type: &str) -> String {
    format!("{}/{}", names::key_segment(sku_id), names::key_segment(plan_type))
}

pub(super) fn encode<T: Serialize>(
    partition: &Partition,
    what: &'static str,
    value: &T,
) -> Result<AttributeValue, StoreError> {
    serde_dynamo::to_attribute_value(value).map_err(|e| StoreError::Encode {
        account: partition.to_string(),
        what,
        detail: e.to_string(),
    })
}
