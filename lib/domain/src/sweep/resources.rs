//! What tenants should have in the cloud, held against what there is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Patience, seconds};
use crate::account::AccountId;
use crate::names;
use crate::tenant::{Lifecycle, Pace, Tenant};

/// One of the resources that are a tenant's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Its signal queue.
    Queue,
    /// The queue of signals that nobody could settle.
    DeadLetterQueue,
    Mapping,
    /// The mapping's pace.
    MappingPace,
    /// The table of its own actions.
    ActionTable,
    /// The table of its own receipts.
    ReceiptTable,
}

impl Resource {
    /// The name used in receipts and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::DeadLetterQueue => "dead_letter_queue",
            Self::Mapping => "mapping",
            Self::MappingPace => "mapping_pace",
            Self::ActionTable => "action_table",
            Self::ReceiptTable => "receipt_table",
        }
    }
}

/// What there should be of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub account_id: AccountId,
    /// Its queue, after which everything of it is named.
    pub queue: String,
    /// How fast the mapping must feed the governor.
    pub pace: Pace,
    /// What must be there. Of a tenant between two states that is nothing; what is there is its own all the same.
    pub needs: BTreeSet<Resource>,
}

impl Expected {
    /// What there should be of a tenant; `None` when it has no queue.
    #[must_use]
    pub fn of(tenant: &Tenant, now: Timestamp, patience: &Patience) -> Option<Self> {
        let mut needs = BTreeSet::new();
        match tenant.lifecycle {
            Lifecycle::Absent | Lifecycle::Decommissioned => return None,
            Lifecycle::Provisioning | Lifecycle::Decommissioning => {}
            Lifecycle::Active if seconds(tenant.changed_at, now) < patience.active => {}
            Lifecycle::Active => {
                needs.extend([Resource::Queue, Resource::DeadLetterQueue, Resource::Mapping]);
                let own = tenant.tables.as_ref();
                if own.is_some_and(|own| own.until.is_none() && own.archived.is_none()) {
                    needs.extend([Resource::ActionTable, Resource::ReceiptTable]);
                }
            }
        }
        Some(Self {
            account_id: tenant.account_id.clone(),
            queue: tenant.fsm_id.clone(),
            pace: tenant.pace(),
            needs,
        })
    }
}

/// What there is, by the queue it is named after.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExistingResources {
    there: BTreeMap<String, BTreeSet<Resource>>,
    paces: BTreeMap<String, Option<Pace>>,
}

impl ExistingResources {
    /// There is a queue of this name.
    pub fn queue(&mut self, name: &str) {
        let queue = names::queue_of_resource(name);
        self.add(
            queue,
            match queue == name {
                true => Resource::Queue,
                false => Resource::DeadLetterQueue,
            },
        );
    }

    /// There is a mapping from a queue of this name, with this pace as far as it says.
    pub fn mapping(&mut self, queue: &str, pace: Option<Pace>) {
        self.paces.insert(queue.to_owned(), pace);
        self.add(queue, Resource::Mapping);
    }

    /// There is a table of this name.
    pub fn table(&mut self, name: &str) {
        let queue = names::queue_of_resource(name);
        let actions = name.ends_with("-actions");
        self.add(
            queue,
            match actions {
                true => Resource::ActionTable,
                false => Resource::ReceiptTable,
            },
        );
    }

    fn add(&mut self, queue: &str, resource: Resource) {
        self.there.entry(queue.to_owned()).or_default().insert(resource);
    }

    /// What there is that is named after a queue.
    #[must_use]
    pub fn of(&self, queue: &str) -> BTreeSet<Resource> {
        self.there.get(queue).cloned().unwrap_or_default()
    }
}

/// What should be there and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub account_id: AccountId,
    /// The tenant's queue.
    pub queue: String,
    pub resources: Vec<Resource>,
}

/// How what there is differs from what there should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// What active tenants lack.
    pub missing: Vec<Missing>,
    /// Names of queues that no tenant expects, whether the queue itself is there or something named after it. Listings lag,
    /// and tenants come meanwhile: each has to be looked at again, see [`orphan`].
    pub orphans: Vec<String>,
}

/// Holds what there is against what there should be.
#[must_use]
pub fn compare(expected: &[Expected], found: &ExistingResources) -> Findings {
    let missing = expected.iter().filter_map(|tenant| {
        let there = found.of(&tenant.queue);
        let mut resources: Vec<Resource> = tenant.needs.difference(&there).copied().collect();
        // The plans moved on, and the mapping did not.
        let pace = found.paces.get(&tenant.queue).copied().flatten();
        if tenant.needs.contains(&Resource::Mapping) && pace.is_some_and(|pace| pace != tenant.pace) {
            resources.push(Resource::MappingPace);
        }
        (!resources.is_empty()).then(|| Missing {
            account_id: tenant.account_id.clone(),
            queue: tenant.queue.clone(),
            resources,
        })
    });
    let known: BTreeSet<&String> = expected.iter().map(|tenant| &tenant.queue).collect();
    let orphans = found.there.keys().filter(|queue| !known.contains(queue));
    Findings {
        missing: missing.collect(),
        orphans: orphans.cloned().collect(),
    }
}

/// Whether something that no tenant seemed to expect is nobody's indeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// It is a living tenant's.
    InUse,
    /// Too young to tell.
    Young,
    /// It is to be taken away.
    Nobodys,
}

/// What to make of a queue name, given the tenant it was made for and when the queue was made, if it is there.
#[must_use]
pub fn orphan(
    queue: &str,
    tenant: Option<&Tenant>,
    made_at: Option<Timestamp>,
    now: Timestamp,
    patience: &Patience,
) -> Orphan {
    let gone = |tenant: &Tenant| matches!(tenant.lifecycle, Lifecycle::Absent | Lifecycle::Decommissioned);
    if tenant.is_some_and(|tenant| tenant.fsm_id == queue && !gone(tenant)) {
        return Orphan::InUse;
    }
    // What was deleted a moment ago is listed for a while, and the tenant it belonged to has changed a moment ago.
    let last = made_at.max(tenant.map(|tenant| tenant.changed_at));
    match last.is_some_and(|last| seconds(last, now) < patience.orphan) {
        true => Orphan::Young,
        false => Orphan::Nobodys,
    }
}
