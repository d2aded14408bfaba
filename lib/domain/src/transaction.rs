//! What one transaction about an account reads and writes, whatever tables hold it.
//!
//! A decision is a function of an [`Account`] as it was read, what is asked and the time; it gives a [`Plan`]. Whoever holds
//! the tables writes the plan on the condition that the account still stands as it was read, or asks again.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use receipts::ledger::{Head, Sealed};
use receipts::receipt::Draft;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::action::Action;
use crate::names::Partition;
use crate::provisioning::DeliveryRef;
use crate::signal::ActionId;
use crate::tenant::Tenant;
use crate::webhook::event::EntitlementEvent;

#[cfg(test)]
pub(crate) mod memory;

/// Times a commit is tried before it is given up and left to its caller's own retries.
///
/// Simulated with 16 writers of one account that never pause, and calls of 13 to 90 ms: no commit given up within two
/// minutes, three to seven attempts a commit, the slowest of a hundred after 1.2 to 4 s. With 16 attempts and waits that
/// only grow, one commit in 200 was given up: who has just committed comes back at once, and wins again.
pub const ATTEMPTS: u32 = 48;

/// Which items of an account to read beside its tenant and head.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    pub actions: BTreeSet<ActionId>,
    pub delivery: Option<String>,
    /// Receipts that must be appended once only.
    pub once: BTreeSet<Uuid>,
    /// The mark of an action: what is left of an escalated one whose table went with its tenant.
    pub mark: Option<ActionId>,
}

/// An account as the tables hold it.
#[derive(Debug, Clone)]
pub struct Account {
    /// The tables' key of the account.
    pub partition: Partition,
    /// The tenant, if there ever was one.
    pub tenant: Option<Tenant>,
    pub head: Head,
    /// The actions asked for that exist.
    pub actions: BTreeMap<ActionId, Action>,
    /// Those of them that stand in the tenant's own table.
    pub own_actions: BTreeSet<ActionId>,
    /// The delivery asked for, if it came before.
    pub delivery: Option<DeliveryRecord>,
    /// The receipts asked for that were appended before.
    pub once: BTreeSet<Uuid>,
    /// The action asked for as it was marked when it was escalated, or when it no longer was.
    pub marked: Option<Box<Action>>,
}

impl Account {
    /// Whether the delivery that was asked for has no answer that stands.
    #[must_use]
    pub fn unanswered(&self) -> bool {
        let answer = self.delivery.as_ref();
        answer.is_none_or(|record| !record.repeat.is_answered())
    }

    /// The answer to the delivery that was asked for; `None` as well while it is being carried out.
    #[must_use]
    pub fn answer(self) -> Option<DeliveryRecord> {
        self.delivery.filter(|record| record.repeat != Repeat::UnderWay)
    }

    /// An account that nothing is known of.
    #[must_use]
    pub fn unknown(partition: &Partition) -> Self {
        Self {
            partition: partition.clone(),
            tenant: None,
            head: Head::empty(),
            actions: BTreeMap::new(),
            own_actions: BTreeSet::new(),
            delivery: None,
            once: BTreeSet::new(),
            marked: None,
        }
    }
}

/// What to write. An empty plan writes nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The tenant afterwards, its `revision` one more than the one read.
    pub tenant: Option<Tenant>,
    /// Actions afterwards. Each is conditioned on what was read: absent, or of the same owner and state.
    pub actions: Vec<Action>,
    /// Receipts to append, in order.
    pub drafts: Vec<Draft>,
    /// Appends that must happen once only: their `receipt_id`s.
    pub once: Vec<Uuid>,
    /// The answer to keep, with the index of the draft that is its receipt.
    pub delivery: Option<DeliveryPlan>,
    /// A queue to note as this account's.
    pub queue: Option<String>,
    /// Whether the ledger must end where it was read to end, though nothing is appended.
    pub ledger_stands: bool,
    /// An action that was escalated and stands in no table any more, as it is now: its mark is taken off and nothing else
    /// of it is written. Conditioned on the mark being there.
    pub unmarked: Option<Action>,
}

impl Plan {
    /// Whether it writes nothing, and is conditioned on nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Appends a receipt, and writes nothing else.
    #[must_use]
    pub fn append(draft: Draft) -> Self {
        Self {
            drafts: vec![draft],
            ..Self::default()
        }
    }

    /// Writes the tenant, and nothing else; nothing at all when there is none.
    #[must_use]
    pub fn tenant(tenant: Option<Tenant>) -> Self {
        Self {
            tenant,
            ..Self::default()
        }
    }
}

/// The answer to a delivery, before its receipt is sealed. It takes the place of the record that was read, if one was.
#[derive(Debug, Clone, PartialEq)]
pub struct DeliveryPlan {
    pub key: String,
    pub body_sha256: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Which of the plan's drafts is the receipt.
    pub draft: usize,
    pub repeat: Repeat,
}

/// What a repeat of a delivery gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repeat {
    /// The same answer.
    #[default]
    Answered,
    /// No answer yet: what it asks for is being made. Another body under its id is refused from now on.
    UnderWay,
    /// Another decision, as the one before changed nothing.
    TurnedAway(Box<TurnedAway>),
}

impl Repeat {
    fn is_answered(&self) -> bool {
        *self == Self::Answered
    }
}

/// A delivery that changed nothing, with what it takes to decide it anew. It holds no word of its body that was not understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnedAway {
    pub asked: DeliveryRef,
    /// When it came first: where its sender tells no time, this is its place among the others.
    pub received_at: Timestamp,
    pub reason: String,
    /// What it says of an entitlement, if it does.
    pub event: Option<EntitlementEvent>,
}

impl Committed {
    /// Whether this was written though its writer was told that somebody else was first, as when a first attempt was only slow:
    /// the ledger, read again, ends with the receipts of this. What is decided once more would leave them twice.
    #[must_use]
    pub fn stood(&self, head: &Head) -> bool {
        !self.sealed.is_empty() && self.account.head == *head
    }
}

impl DeliveryPlan {
    /// What is kept of the delivery, once these receipts stand.
    #[must_use]
    pub fn record(&self, sealed: &[Sealed]) -> DeliveryRecord {
        let receipt = sealed.get(self.draft).map(|sealed| sealed.line.clone());
        DeliveryRecord {
            key: self.key.clone(),
            body_sha256: self.body_sha256.clone(),
            status: self.status,
            receipt: receipt.unwrap_or_default(),
            repeat: self.repeat.clone(),
        }
    }

    /// The answer to a delivery, with the plan's first receipt.
    #[must_use]
    pub fn of(asked: &DeliveryRef, status: u16) -> Self {
        Self {
            key: asked.key(),
            body_sha256: asked.body_sha256.clone(),
            status,
            draft: 0,
            repeat: Repeat::Answered,
        }
    }

    /// The note that a delivery is being carried out, which has no answer yet. The status is for who finds one all the same.
    #[must_use]
    pub fn under_way(asked: &DeliveryRef) -> Self {
        Self {
            repeat: Repeat::UnderWay,
            ..Self::of(asked, 202)
        }
    }

    /// The answer to a delivery that changes nothing, so that a repeat is decided anew.
    #[must_use]
    pub fn turned_away(status: u16, delivery: TurnedAway) -> Self {
        Self {
            repeat: Repeat::TurnedAway(Box::new(delivery.clone())),
            ..Self::of(&delivery.asked, status)
        }
    }
}

impl DeliveryRecord {
    /// The answer to a delivery that was given with these receipts.
    #[must_use]
    pub fn of(asked: &DeliveryRef, status: u16, sealed: &[Sealed]) -> Self {
        Self {
            key: asked.key(),
            body_sha256: asked.body_sha256.clone(),
            status,
            receipt: sealed.first().map(|s| s.line.clone()).unwrap_or_default(),
            repeat: Repeat::Answered,
        }
    }

    /// What it says of a delivery that changed nothing.
    #[must_use]
    pub fn turned_away(&self) -> Option<&TurnedAway> {
        match &self.repeat {
            Repeat::TurnedAway(delivery) => Some(delivery),
            Repeat::Answered | Repeat::UnderWay => None,
        }
    }
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The account as it now is. Only what the plan touched is fresh.
    pub account: Account,
    /// The receipts as they stand in the ledger.
    pub sealed: Vec<Sealed>,
}

/// What was answered to a delivery, kept so that a repeat gets the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRecord {
    pub key: String,
    /// SHA-256 of the body that was answered.
    pub body_sha256: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// The receipt it left.
    pub receipt: String,
    /// What a repeat gets. Releases before this field gave the same answer.
    #[serde(default, skip_serializing_if = "Repeat::is_answered")]
    pub repeat: Repeat,
}

/// How long to wait at most after this attempt, from 1, in milliseconds: briefly at first, as most often one other
/// writer was there once; then long, to make room; then less and less, so that who has lost often is not last for ever.
#[must_use]
pub fn longest_wait(attempt: u32) -> u64 {
    match attempt {
        0 | 1 => 40,
        2 => 80,
        later => 320 >> ((later - 2) / 4).min(3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded() {
        let waits: Vec<u64> = (1..=15).map(longest_wait).collect();
        assert_eq!(
            waits,
            [40, 80, 320, 320, 320, 160, 160, 160, 160, 80, 80, 80, 80, 40, 40]
        );
        assert_eq!(longest_wait(u32::MAX), 40);
        // Half of that is waited as waits are drawn: a small part of any function's time.
        assert_eq!((1..ATTEMPTS).map(longest_wait).sum::<u64>(), 3_400);
    }
}
