//! What is made for a tenant in the cloud.

use serde::{Deserialize, Serialize};

use crate::names;

/// The cloud resources that are a tenant's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantResources {
    /// Name of the signal queue.
    pub queue: String,
    pub queue_url: String,
    pub dead_letter_queue_url: String,
    /// Id of the event source mapping to the governor.
    pub mapping_id: String,
}

/// The tables of a tenant whose plan asks for its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// Name of the table of its actions.
    pub actions: String,
    /// Name of the table of its receipts.
    pub receipts: String,
    /// The first receipt that stands there; those before it are in the shared table.
    pub since: u64,
    /// Set when the tenant leaves: from this receipt on the shared table is written again.
    pub until: Option<u64>,
    /// Set when its actions are archived and its receipts stand in the shared table too: nothing is read here any more.
    pub archived: Option<ArchivedActions>,
}

/// Where the content of a tenant's own action table is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchivedActions {
    pub path: String,
    /// SHA-256 of it, in lower hex.
    pub sha256: String,
    /// How long it is.
    pub size_bytes: u64,
    /// How many actions it holds.
    pub entries: u64,
}

impl Tables {
    /// The tables that go with a queue, made by this attempt, for a ledger that has `size` receipts so far.
    #[must_use]
    pub fn of_queue(queue: &str, attempt: u64, size: u64) -> Self {
        Self {
            actions: names::action_table_name(queue, attempt),
            receipts: names::receipt_table_name(queue, attempt),
            since: size,
            until: None,
            archived: None,
        }
    }

    /// Whether receipt `seq` stands in the tenant's own table.
    #[must_use]
    pub fn hold(&self, seq: u64) -> bool {
        self.archived.is_none() && self.since <= seq && self.until.is_none_or(|until| seq < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tables_hold_a_part_of_the_ledger() {
        let mut tables = Tables::of_queue("q", 0, 5);
        assert_eq!([4, 5, 6].map(|seq| tables.hold(seq)), [false, true, true]);
        tables.until = Some(6);
        assert_eq!([4, 5, 6].map(|seq| tables.hold(seq)), [false, true, false]);
        tables.archived = Some(ArchivedActions {
            path: String::new(),
            sha256: String::new(),
            size_bytes: 0,
            entries: 0,
        });
        assert_eq!([4, 5, 6].map(|seq| tables.hold(seq)), [false; 3]);
    }
}
