//! A tenant: what a customer holds, and what was made for it.

mod lifecycle;
mod pace;
mod resources;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::lifecycle::{IllegalTransition, Lifecycle, TenantEvent};
pub use self::pace::Pace;
pub use self::resources::{ArchivedActions, Tables, TenantResources};
use crate::account::{AccountId, EntitlementId, SkuId};
use crate::entitlement::{Entitlement, Offer, Tombstones};
use crate::names;
use crate::provisioning::{DeliveryRef, Failure, Provisioning};
use crate::scale::limit::Scale;
use crate::webhook::event::EntitlementEvent;

/// What the index says of tenants that something is under way or waits for.
pub const UNSETTLED: &str = "unsettled";
/// What the index says of tenants with running actions.
pub const BUSY: &str = "busy";

/// An event that is carried out later: the tenant is between two states, or it takes effect later, or a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    pub event: EntitlementEvent,
    pub asked: DeliveryRef,
    pub received_at: Timestamp,
    /// Not before this time.
    pub due_at: Timestamp,
    /// When it could be carried out first: it is kept for seven days from then on.
    pub due_since: Timestamp,
    /// How often carrying it out has failed.
    pub attempts: u32,
}

/// A tenant as the table holds it: an account's entitlements, and what was made for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub account_id: AccountId,
    pub lifecycle: Lifecycle,
    /// How many times resources were begun to be made for this account. Names carry it, so that none is used twice.
    pub generation: u64,
    /// Id of the governor's state machine: `<queue name>`.
    pub fsm_id: String,
    /// What it holds, live ones only.
    pub entitlements: BTreeMap<EntitlementId, Entitlement>,
    /// Cancellations that later purchases are held against.
    pub tombstones: Tombstones,
    /// Its queues and mapping.
    pub resources: TenantResources,
    /// Its own tables, if it has some.
    pub tables: Option<Tables>,
    /// Attempts to give this generation tables of its own after it was there.
    pub table_attempts: u64,
    pub provisioning: Option<Provisioning>,
    /// Events that wait.
    pub deferred: Vec<Deferred>,
    /// How far its governor is scaled.
    pub scale: Scale,
    /// Actions claimed and not final, of live and of cancelled entitlements.
    pub in_flight: u64,
    /// When the last claim ends. Actions that are in flight later than that are stuck.
    pub lease_until: Option<Timestamp>,
    /// When a claim last took the last free place. Signals that wait while this is recent wait for a place; if it isn't, they
    /// wait for a poll of their queue.
    pub full_at: Option<Timestamp>,
    pub last_claim: Option<LastClaim>,
    /// The place behind the ledger's head where something stands that is no receipt of it: while it does nothing can be put on
    /// record, so nothing is run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger_blocked: Option<u64>,
    /// Actions completed since this generation began.
    pub actions_completed: u64,
    /// Actions failed, undone or escalated since this generation began.
    pub actions_failed: u64,
    pub began_at: Timestamp,
    pub changed_at: Timestamp,
    /// Changes with every write; every write is conditioned on the one it read.
    pub revision: u64,
}

/// When actions were claimed last, and how long the oldest of their signals had waited: those that still wait are about as
/// old, as a queue hands out old signals first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastClaim {
    pub at: Timestamp,
    /// When the oldest of the claimed signals was put on the queue.
    pub sent_at: Timestamp,
}

/// Which entitlement a signal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected<'a> {
    One(&'a EntitlementId, &'a Entitlement),
    /// None fits what it names.
    None,
    /// More than one fits.
    Several,
}

/// What became of one claimed action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The entitlement it ran under.
    pub entitlement_id: Option<EntitlementId>,
    /// Whether it was done; else it failed, was undone or escalated.
    pub completed: bool,
}

impl Tenant {
    /// An account that nothing was made for yet.
    #[must_use]
    pub fn absent(account_id: AccountId, now: Timestamp) -> Self {
        Self {
            account_id,
            lifecycle: Lifecycle::Absent,
            generation: 0,
            fsm_id: String::new(),
            entitlements: BTreeMap::new(),
            tombstones: Tombstones::default(),
            resources: TenantResources::default(),
            tables: None,
            table_attempts: 0,
            provisioning: None,
            deferred: Vec::new(),
            scale: Scale::default(),
            in_flight: 0,
            lease_until: None,
            full_at: None,
            last_claim: None,
            ledger_blocked: None,
            actions_completed: 0,
            actions_failed: 0,
            began_at: now,
            changed_at: now,
            // The first write makes it 1.
            revision: 0,
        }
    }

    /// The event that a delivery brought and that waits, and the tenant without it.
    #[must_use]
    pub fn without_deferred(&self, asked: &DeliveryRef) -> Option<(Deferred, Self)> {
        let place = self.deferred.iter().position(|waiting| waiting.asked == *asked)?;
        let mut rest = self.clone();
        let waiting = rest.deferred.remove(place);
        Some((waiting, rest))
    }

    /// Actions that all its plans together allow at one time.
    #[must_use]
    pub fn concurrent_actions(&self) -> u64 {
        let waiting = self.provisioning.iter().map(|saga| &saga.entitlement);
        let mut all = self.entitlements.values().chain(waiting);
        all.try_fold(0u64, |sum, e| sum.checked_add(e.quota.concurrent_actions))
            .unwrap_or(u64::MAX)
    }

    /// Actions that may run at one time, as far as it is scaled and never more than the plans allow: a plan that shrinks
    /// takes it along. At least one, unless no plan allows any.
    #[must_use]
    pub fn in_flight_action_limit(&self) -> u64 {
        self.scale.wanted().max(1).min(self.concurrent_actions())
    }

    /// Actions of an entitlement that may start now: within its own quota, and within what the tenant may run at one time.
    #[must_use]
    pub fn concurrent_left(&self, id: &EntitlementId) -> u64 {
        let of_all = self.in_flight_action_limit().saturating_sub(self.in_flight);
        let of_one = self.entitlements.get(id).map_or(0, Entitlement::concurrent_left);
        of_all.min(of_one)
    }

    /// How fast its queue is fed to the governor.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace::of(self.in_flight_action_limit())
    }

    /// The tenant as the next write leaves it.
    #[must_use]
    pub fn written(&self) -> Self {
        Self {
            revision: self.revision.saturating_add(1),
            ..self.clone()
        }
    }

    /// What the index of tenants by lifecycle says of it: `unsettled` while something is under way or waits, `busy`
    /// while actions run, else its lifecycle.
    #[must_use]
    pub fn index_state(&self) -> &'static str {
        let between = matches!(
            self.lifecycle,
            Lifecycle::Provisioning | Lifecycle::Decommissioning
        );
        let held_up = self.ledger_blocked.is_some() || !self.deferred.is_empty();
        if between || self.provisioning.is_some() || held_up {
            UNSETTLED
        } else if self.in_flight > 0 {
            BUSY
        } else {
            self.lifecycle.name()
        }
    }

    /// The entitlement a signal is about. What it does not name is chosen only when there is one choice.
    #[must_use]
    pub fn select(&self, id: Option<&EntitlementId>, sku_id: Option<&SkuId>) -> Selected<'_> {
        let mut fitting = self.entitlements.iter().filter(|(known, entitlement)| {
            id.is_none_or(|id| id == *known) && sku_id.is_none_or(|sku| *sku == entitlement.sku_id)
        });
        match (fitting.next(), fitting.next()) {
            (Some((id, entitlement)), None) => Selected::One(id, entitlement),
            (Some(_), Some(_)) => Selected::Several,
            (None, _) => Selected::None,
        }
    }

    /// The tenant after actions were claimed, so many for each entitlement, until `lease_until`.
    #[must_use]
    pub fn claimed(
        &self,
        counts: &BTreeMap<EntitlementId, u64>,
        now: Timestamp,
        lease_until: Timestamp,
    ) -> Self {
        let mut next = self.written();
        for (id, count) in counts {
            if let Some(entitlement) = next.entitlements.get_mut(id) {
                *entitlement = entitlement.claimed(*count, now);
            }
            next.in_flight = next.in_flight.saturating_add(*count);
        }
        next.lease_until = next.lease_until.max(Some(lease_until));
        if !counts.is_empty() && next.is_full() {
            next.full_at = Some(now);
        }
        next
    }

    /// The tenant as it stands once its ledger was found blocked, or free; `None` when that is known.
    #[must_use]
    pub fn with_ledger(&self, blocked: Option<u64>) -> Option<Self> {
        (self.ledger_blocked != blocked).then(|| Self {
            ledger_blocked: blocked,
            ..self.written()
        })
    }

    /// Whether all places are taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.in_flight >= self.in_flight_action_limit()
    }

    /// The tenant after actions it had claimed became final.
    #[must_use]
    pub fn released<'a>(&self, released: impl IntoIterator<Item = &'a Released>) -> Self {
        let mut next = self.written();
        for one in released {
            next.in_flight = next.in_flight.saturating_sub(1);
            let of = one.entitlement_id.as_ref();
            match of.map(|id| (id, next.entitlements.get_mut(id))) {
                Some((_, Some(held))) => held.in_flight = held.in_flight.saturating_sub(1),
                Some((id, None)) => next.tombstones.released(id),
                None => {}
            }
            let count = if one.completed {
                &mut next.actions_completed
            } else {
                &mut next.actions_failed
            };
            *count = count.saturating_add(1);
        }
        if next.in_flight == 0 {
            next.lease_until = None;
        }
        next
    }

    /// The tenant after one of its actions that was given up is taken up again, to be undone; `None` while no place among
    /// its concurrent actions is free, or what it ran under is gone. The month's quota is not asked again.
    #[must_use]
    pub fn taken_up(&self, id: &EntitlementId, now: Timestamp) -> Option<Self> {
        if self.concurrent_left(id) == 0 {
            return None;
        }
        let mut next = self.written();
        let held = next.entitlements.get_mut(id)?;
        held.in_flight = held.in_flight.saturating_add(1);
        next.in_flight = next.in_flight.saturating_add(1);
        next.actions_failed = next.actions_failed.saturating_sub(1);
        next.lease_until = next.lease_until.max(Some(now));
        Some(next)
    }

    /// The tenant after an event of its life.
    ///
    /// # Errors
    /// [`IllegalTransition`] when the event has no meaning now.
    pub fn after(&self, event: TenantEvent, now: Timestamp) -> Result<Self, IllegalTransition> {
        Ok(Self {
            lifecycle: lifecycle::next(self.lifecycle, event)?,
            changed_at: now,
            ..self.written()
        })
    }

    /// The tenant with another policy for each of its entitlements to a plan; `None` when none of them has another.
    #[must_use]
    pub fn repinned(&self, offer: &Offer) -> Option<Self> {
        let of_plan = |e: &Entitlement| e.sku_id == offer.sku_id && e.plan_type == offer.plan_type;
        let repin = |e: &mut Entitlement| {
            let wanted = of_plan(e) && e.policy.hash != offer.policy.hash;
            if wanted {
                e.policy = offer.policy.clone();
                e.quota = offer.quota;
            }
            wanted
        };
        let mut next = self.written();
        let mut changed = false;
        for entitlement in next.entitlements.values_mut() {
            changed |= repin(entitlement);
        }
        if let Some(provisioning) = &mut next.provisioning {
            changed |= repin(&mut provisioning.entitlement);
        }
        changed.then_some(next)
    }

    /// The tenant with a saga begun for an entitlement. A tenant that is not there yet begins a new generation.
    ///
    /// # Errors
    /// [`IllegalTransition`] when a tenant that is neither there nor gone would begin anew.
    pub fn begun(
        &self,
        provisioning: Provisioning,
        queue_prefix: &str,
        now: Timestamp,
    ) -> Result<Self, IllegalTransition> {
        if !provisioning.new_tenant {
            return Ok(Self {
                table_attempts: provisioning.table_attempt,
                provisioning: Some(provisioning),
                ..self.written()
            });
        }
        let begun = self.after(TenantEvent::Subscribe, now)?;
        let generation = self.generation.saturating_add(1);
        let fsm_id = names::queue_name(queue_prefix, &self.account_id, generation);
        let mut tombstones = self.tombstones.clone();
        tombstones.none_in_flight();
        Ok(Self {
            generation,
            tombstones,
            table_attempts: 0,
            resources: TenantResources {
                queue: fsm_id.clone(),
                ..TenantResources::default()
            },
            fsm_id,
            tables: None,
            provisioning: Some(provisioning),
            scale: Scale::default(),
            in_flight: 0,
            lease_until: None,
            full_at: None,
            last_claim: None,
            actions_completed: 0,
            actions_failed: 0,
            began_at: now,
            ..begun
        })
    }

    /// The tenant once everything stands: the entitlement is in force, and receipts from `size` on are its own table's
    /// where the plan asks for one. `None` when nothing is being made, or what is being made failed.
    #[must_use]
    pub fn provisioned(
        &self,
        resources: Option<&TenantResources>,
        size: u64,
        now: Timestamp,
    ) -> Option<(Self, Provisioning)> {
        let saga = self.provisioning.clone().filter(|saga| saga.failure.is_none())?;
        let mut next = if saga.new_tenant {
            self.after(TenantEvent::Provisioned, now).ok()?
        } else {
            self.written()
        };
        next.provisioning = None;
        // What it used before stays used, whether it is bought again or only gets another plan.
        let buried = next.tombstones.raise(&saga.entitlement_id);
        let before = self.entitlements.get(&saga.entitlement_id);
        let usage = before.map(Entitlement::usage).or(buried);
        let mut entitlement = saga.entitlement.clone().with_usage(usage);
        if let Some(before) = before {
            entitlement.standing = before.standing;
        }
        next.entitlements.insert(saga.entitlement_id.clone(), entitlement);
        if let Some(resources) = resources {
            next.resources = resources.clone();
        }
        if saga.dedicated && next.tables.is_none() {
            next.tables = Some(Tables::of_queue(&next.fsm_id, saga.table_attempt, size));
        }
        Some((next, saga))
    }

    /// The tenant whose saga failed: what was made is to be undone. `None` when there is none, or it failed before.
    #[must_use]
    pub fn failed(&self, failure: Failure) -> Option<Self> {
        let mut next = self.written();
        let saga = next.provisioning.as_mut().filter(|saga| saga.failure.is_none())?;
        saga.failure = Some(failure);
        Some(next)
    }

    /// The tenant once everything is undone, what was begun, and what failed. `None` when nothing failed.
    #[must_use]
    pub fn undone(&self, now: Timestamp) -> Option<(Self, Provisioning, Failure)> {
        let saga = self.provisioning.clone()?;
        let failure = saga.failure.clone()?;
        let mut next = if saga.new_tenant {
            self.after(TenantEvent::ProvisioningFailed, now).ok()?
        } else {
            self.written()
        };
        next.provisioning = None;
        Some((next, saga, failure))
    }
}

#[cfg(test)]
pub(crate) mod tests;
