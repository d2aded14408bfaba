//! The tables in memory, for tests and simulations: the conditions of a write are those of the real ones, and answers can be
//! lost.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use receipts::key::Signer;
use receipts::ledger::{self, AppendError, Appended, Head, Sealed};
use uuid::Uuid;

use super::{Account, Committed, DeliveryRecord, Keys, Plan};
use crate::action::Action;
use crate::names::Partition;
use crate::signal::ActionId;
use crate::tenant::Tenant;

/// What one write may take: DynamoDB's transactions have a hundred items.
const ITEMS: usize = 100;

/// What is kept of one account.
#[derive(Debug, Clone)]
pub struct Kept {
    pub tenant: Option<Tenant>,
    pub head: Head,
    pub actions: BTreeMap<ActionId, Action>,
    marks: BTreeMap<ActionId, Action>,
    once: BTreeSet<Uuid>,
    pub ledger: Vec<Sealed>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            tenant: None,
            head: Head::empty(),
            actions: BTreeMap::new(),
            marks: BTreeMap::new(),
            once: BTreeSet::new(),
            ledger: Vec::new(),
        }
    }
}

/// What happens to the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It stands, and its writer is told that somebody else was first.
    AnswerLost,
    /// It does not stand, and its writer is told so.
    Refused,
}

/// The tables.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    accounts: BTreeMap<Partition, Kept>,
    deliveries: BTreeMap<String, DeliveryRecord>,
    mishap: Option<Mishap>,
}

impl Memory {
    /// Lets this happen to the next write.
    pub fn next_write(&mut self, mishap: Mishap) {
        self.mishap = Some(mishap);
    }

    /// Reads an account, as the tables do: tenant, head and what is asked for.
    #[must_use]
    pub fn load(&self, partition: &Partition, keys: &Keys) -> Account {
        let nothing = Kept::default();
        let kept = self.accounts.get(partition).unwrap_or(&nothing);
        let action = |id: &ActionId| Some((id.clone(), kept.actions.get(id)?.clone()));
        Account {
            tenant: kept.tenant.clone(),
            head: kept.head.clone(),
            actions: keys.actions.iter().filter_map(action).collect(),
            delivery: keys
                .delivery
                .as_ref()
                .and_then(|key| self.deliveries.get(key))
                .cloned(),
            once: keys.once.intersection(&kept.once).copied().collect(),
            marked: keys
                .mark
                .as_ref()
                .and_then(|id| kept.marks.get(id))
                .cloned()
                .map(Box::new),
            ..Account::unknown(partition)
        }
    }

    /// What is kept of an account.
    pub fn of(&self, partition: &Partition) -> Option<&Kept> {
        self.accounts.get(partition)
    }

    /// What is kept of an account, to be written behind everybody's back.
    pub fn of_mut(&mut self, partition: &Partition) -> &mut Kept {
        self.accounts.entry(partition.clone()).or_default()
    }

    /// What of a plan's conditions does not hold, given what was read; `None` when it can be written.
    fn contradiction(&self, read: &Account, plan: &Plan) -> Option<&'static str> {
        let nothing = Kept::default();
        let kept = self.accounts.get(&read.partition).unwrap_or(&nothing);
        let revision = |tenant: &Option<Tenant>| tenant.as_ref().map(|tenant| tenant.revision);
        let state = |action: Option<&Action>| action.map(|action| (action.state, action.owner));
        let appends = !plan.drafts.is_empty();
        if (plan.tenant.is_some() || appends && read.tenant.is_some())
            && revision(&kept.tenant) != revision(&read.tenant)
        {
            return Some("the tenant was written");
        }
        if (appends || plan.ledger_stands) && kept.head.size != read.head.size {
            return Some("receipts were appended");
        }
        let same = |action: &Action| {
            let id = &action.action_id;
            state(kept.actions.get(id)) == state(read.actions.get(id))
        };
        if !plan.actions.iter().all(same) {
            return Some("an action was written");
        }
        let marked = |action: &Action| {
            let mark = kept.marks.get(&action.action_id);
            mark.is_some_and(|mark| mark.state.is_a_persons())
        };
        if plan.unmarked.as_ref().is_some_and(|action| !marked(action)) {
            return Some("the action is not marked");
        }
        if plan.once.iter().any(|id| kept.once.contains(id)) {
            return Some("the receipt was appended before");
        }
        let answered = |key: &String| self.deliveries.get(key) != read.delivery.as_ref();
        plan.delivery
            .as_ref()
            .is_some_and(|delivery| answered(&delivery.key))
            .then_some("the delivery was answered")
    }

    /// Writes a plan of an account as it was read, and tells what it comes to and whether it stands: it does not when somebody
    /// else was first, or is said to have been.
    ///
    /// # Errors
    /// [`AppendError`] when the receipts cannot be chained.
    ///
    /// # Panics
    /// When the plan is none that the tables could take: an item twice, more than a transaction has room for, or a tenant
    /// that does not follow the one that was read.
    pub fn commit(
        &mut self,
        signer: &Signer,
        read: &Account,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<(Committed, bool), AppendError> {
        Ok(self.write(read, plan, ledger::append(&read.head, &plan.drafts, now, signer)?))
    }

    /// As [`Memory::commit`], of receipts that are chained already.
    pub fn write(&mut self, read: &Account, plan: &Plan, appended: Appended) -> (Committed, bool) {
        let ids: BTreeSet<&ActionId> = plan.actions.iter().map(|action| &action.action_id).collect();
        assert_eq!(ids.len(), plan.actions.len(), "an item is written once");
        let items = plan.actions.len() * 2 + plan.drafts.len() + plan.once.len();
        assert!(items + 8 <= ITEMS, "{items} items in one transaction");
        if let Some(tenant) = &plan.tenant {
            let before = read.tenant.as_ref().map_or(0, |tenant| tenant.revision);
            assert_eq!(tenant.revision, before + 1, "each write has a revision");
        }
        let mut account = read.clone();
        let mishap = self.mishap.take();
        if mishap == Some(Mishap::Refused) || self.contradiction(read, plan).is_some() {
            account.head = appended.head;
            let sealed = appended.sealed;
            return (Committed { account, sealed }, false);
        }
        let kept = self.of_mut(&read.partition);
        if let Some(tenant) = &plan.tenant {
            kept.tenant = Some(tenant.clone());
            account.tenant = Some(tenant.clone());
        }
        for action in plan.actions.iter().chain(&plan.unmarked) {
            let id = &action.action_id;
            let persons = |action: &Action| action.state.is_a_persons();
            if persons(action) || kept.marks.get(id).is_some_and(persons) {
                kept.marks.insert(id.clone(), action.clone());
            }
        }
        for action in &plan.actions {
            let id = &action.action_id;
            kept.actions.insert(id.clone(), action.clone());
            account.actions.insert(id.clone(), action.clone());
        }
        kept.once.extend(&plan.once);
        if !plan.drafts.is_empty() {
            kept.head.clone_from(&appended.head);
            account.head = appended.head;
            kept.ledger.extend(appended.sealed.iter().cloned());
        }
        if let Some(delivery) = &plan.delivery {
            let record = delivery.record(&appended.sealed);
            account.delivery = Some(record.clone());
            self.deliveries.insert(delivery.key.clone(), record);
        }
        let committed = Committed {
            account,
            sealed: appended.sealed,
        };
        (committed, mishap != Some(Mishap::AnswerLost))
    }
}
