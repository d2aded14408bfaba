//! A tenant's life.
//!
//! | state | subscribe | provisioned | provisioning failed | cancel | archived |
//! |---|---|---|---|---|---|
//! | absent | provisioning | – | – | – | – |
//! | provisioning | – | active | absent | – | – |
//! | active | – | – | – | decommissioning | – |
//! | decommissioning | – | – | – | – | decommissioned |
//! | decommissioned | provisioning (next generation) | – | – | – | – |
//!
//! A dash is an [`IllegalTransition`]: the caller says so to whoever asked, and nothing changes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::account::{AccountId, EntitlementId, SkuId};
use crate::entitlement::{Entitlement, Offer, Tombstones};
use crate::names;
use crate::provisioning::{Asked, Failure, Provisioning};
use crate::scale::Scale;
use crate::webhook::event::EntitlementEvent;

/// What the index says of tenants that something is under way or waits for.
pub const UNSETTLED: &str = "unsettled";
/// What the index says of tenants with running actions.
pub const BUSY: &str = "busy";

/// Where a tenant stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Never seen, or provisioning was undone.
    Absent,
    /// Resources are being made; intent is recorded.
    Provisioning,
    /// The governor runs actions.
    Active,
    /// Accepts nothing new; drains, archives, deletes.
    Decommissioning,
    /// Archived and gone; the ledger stays.
    Decommissioned,
}

impl Lifecycle {
    /// Every state, for tables.
    pub const ALL: [Self; 5] = [
        Self::Absent,
        Self::Provisioning,
        Self::Active,
        Self::Decommissioning,
        Self::Decommissioned,
    ];

    /// The name used in the table and in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Provisioning => "provisioning",
            Self::Active => "active",
            Self::Decommissioning => "decommissioning",
            Self::Decommissioned => "decommissioned",
        }
    }
}

/// What happens to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TenantEvent {
    /// A marketplace says the customer subscribed.
    Subscribe,
    /// Every resource stands.
    Provisioned,
    /// A step failed and what was done is undone.
    ProvisioningFailed,
    /// A marketplace says the customer cancelled.
    Cancel,
    /// Receipts are archived and resources deleted.
    Archived,
}

impl TenantEvent {
    /// Every event, for tables.
    pub const ALL: [Self; 5] = [
        Self::Subscribe,
        Self::Provisioned,
        Self::ProvisioningFailed,
        Self::Cancel,
        Self::Archived,
    ];
}

/// An event that has no meaning in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant that is {} has no transition for {event:?}", state.name())]
pub struct IllegalTransition {
    /// Where the tenant stands.
    pub state: Lifecycle,
    /// What happened.
    pub event: TenantEvent,
}

/// The state after an event.
///
/// # Errors
/// [`IllegalTransition`] when the event has no meaning in the state.
pub fn next(state: Lifecycle, event: TenantEvent) -> Result<Lifecycle, IllegalTransition> {
    use TenantEvent::{Archived, Cancel, Provisioned, ProvisioningFailed, Subscribe};
    match (state, event) {
        (Lifecycle::Absent | Lifecycle::Decommissioned, Subscribe) => Ok(Lifecycle::Provisioning),
        (Lifecycle::Provisioning, Provisioned) => Ok(Lifecycle::Active),
        (Lifecycle::Provisioning, ProvisioningFailed) => Ok(Lifecycle::Absent),
        (Lifecycle::Active, Cancel) => Ok(Lifecycle::Decommissioning),
        (Lifecycle::Decommissioning, Archived) => Ok(Lifecycle::Decommissioned),
        (
            Lifecycle::Absent | Lifecycle::Decommissioned,
            Provisioned | ProvisioningFailed | Cancel | Archived,
        )
        | (Lifecycle::Provisioning, Subscribe | Cancel | Archived)
        | (Lifecycle::Active, Subscribe | Provisioned | ProvisioningFailed | Archived)
        | (Lifecycle::Decommissioning, Subscribe | Provisioned | ProvisioningFailed | Cancel) => {
            Err(IllegalTransition { state, event })
        }
    }
}

/// What a plan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Actions a UTC calendar month.
    pub monthly_actions: u64,
    /// Actions at one time.
    pub concurrent_actions: u64,
}

/// Which enforcer decides for an entitlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPin {
    /// Semantic version of the policy.
    pub version: String,
    /// SHA-256 of the enforcer's bytes, lower hex.
    pub hash: String,
}

/// The cloud resources that are a tenant's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantResources {
    /// Name of the signal queue.
    pub queue: String,
    /// URL of the signal queue.
    pub queue_url: String,
    /// URL of the dead-letter queue.
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
    /// Where it is.
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

/// An event that is carried out later: the tenant is between two states, or it takes effect later, or a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    /// What happened.
    pub event: EntitlementEvent,
    /// The delivery that brought it.
    pub asked: Asked,
    /// When it came.
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
    /// The customer.
    pub account_id: AccountId,
    /// Where it stands.
    pub lifecycle: Lifecycle,
    /// How many times resources were begun to be made for this account. Names carry it, so that none is used twice.
    pub generation: u64,
    /// Id of the governor's state machine: `<queue name>`.
    pub fsm_id: String,
    /// What it holds, live ones only.
    pub entitlements: BTreeMap<EntitlementId, Entitlement>,
    /// Cancellations that later purchases are held against.
    #[serde(default)]
    pub tombstones: Tombstones,
    /// Its queues and mapping.
    pub resources: TenantResources,
    /// Its own tables, if it has some.
    pub tables: Option<Tables>,
    /// Attempts to give this generation tables of its own after it was there.
    #[serde(default)]
    pub table_attempts: u64,
    /// What is being made.
    pub provisioning: Option<Provisioning>,
    /// Events that wait.
    #[serde(default)]
    pub deferred: Vec<Deferred>,
    /// How far its governor is scaled.
    #[serde(default)]
    pub scale: Scale,
    /// Actions claimed and not final, of live and of cancelled entitlements.
    pub in_flight: u64,
    /// When the last claim ends. Actions that are in flight later than that are stuck.
    pub lease_until: Option<Timestamp>,
    /// When a claim last took the last free place. Signals that wait while this is recent wait for a place; if it isn't, they
    /// wait for a poll of their queue.
    #[serde(default)]
    pub full_at: Option<Timestamp>,
    /// The last claim.
    #[serde(default)]
    pub last_claim: Option<LastClaim>,
    /// Actions completed since this generation began.
    pub actions_completed: u64,
    /// Actions failed, undone or escalated since this generation began.
    pub actions_failed: u64,
    /// When this generation began.
    pub began_at: Timestamp,
    /// When the lifecycle changed last.
    pub changed_at: Timestamp,
    /// Changes with every write; every write is conditioned on the one it read.
    pub revision: u64,
}

/// When actions were claimed last, and how long the oldest of their signals had waited: those that still wait are about as
/// old, as a queue hands out old signals first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastClaim {
    /// When.
    pub at: Timestamp,
    /// When the oldest of the claimed signals was put on the queue.
    pub sent_at: Timestamp,
}

/// Which entitlement a signal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selected<'a> {
    /// This one.
    One(&'a EntitlementId, &'a Entitlement),
    /// None fits what it names.
    None,
    /// More than one fits.
    Several,
}

/// How fast a tenant's queue is fed to the governor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pace {
    /// Most signals of one batch.
    pub batch_size: i32,
    /// Most batches at one time.
    pub maximum_concurrency: i32,
}

impl Pace {
    /// Most signals of any batch: SQS hands out no more at a time.
    pub const MOST: u64 = 10;

    /// The pace that hands out no more signals than can run at one time, except for a tenant with one place: two is the
    /// least concurrency that Lambda allows. Places that are left over are filled by governors that already run (ADR 17).
    #[must_use]
    pub fn of(concurrent_actions: u64) -> Self {
        let concurrency = concurrent_actions.div_ceil(Self::MOST).clamp(2, 1000);
        let batch = (concurrent_actions / concurrency).clamp(1, Self::MOST);
        Self {
            batch_size: i32::try_from(batch).unwrap_or(1),
            maximum_concurrency: i32::try_from(concurrency).unwrap_or(2),
        }
    }
}

/// What became of one claimed action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// The entitlement it ran under.
    pub entitlement_id: Option<EntitlementId>,
    /// Whether it was done; else it failed, was undone or escalated.
    pub completed: bool,
}

/// The UTC month of an instant, `YYYY-MM`.
#[must_use]
pub fn month_of(now: Timestamp) -> String {
    now.strftime("%Y-%m").to_string()
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
    pub fn without_deferred(&self, asked: &Asked) -> Option<(Deferred, Self)> {
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
        if between || self.provisioning.is_some() || !self.deferred.is_empty() {
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
            lifecycle: next(self.lifecycle, event)?,
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
pub(crate) mod tests {
    use super::*;
    use crate::account::PlanType;
    use crate::entitlement::{EventOrder, Isolation};
    use crate::webhook::event::Change;

    #[test]
    fn every_state_and_event() {
        let mut table = String::new();
        for state in Lifecycle::ALL {
            for event in TenantEvent::ALL {
                let to = next(state, event).map_or("-", Lifecycle::name);
                table.push_str(&format!("{} {event:?} {to}\n", state.name()));
            }
        }
        let golden = "\
absent Subscribe provisioning
absent Provisioned -
absent ProvisioningFailed -
absent Cancel -
absent Archived -
provisioning Subscribe -
provisioning Provisioned active
provisioning ProvisioningFailed absent
provisioning Cancel -
provisioning Archived -
active Subscribe -
active Provisioned -
active ProvisioningFailed -
active Cancel decommissioning
active Archived -
decommissioning Subscribe -
decommissioning Provisioned -
decommissioning ProvisioningFailed -
decommissioning Cancel -
decommissioning Archived decommissioned
decommissioned Subscribe provisioning
decommissioned Provisioned -
decommissioned ProvisioningFailed -
decommissioned Cancel -
decommissioned Archived -
";
        assert_eq!(table, golden);
    }

    pub(crate) fn offer(plan: &str) -> Offer {
        Offer {
            sku_id: SkuId::parse("s").unwrap(),
            plan_type: PlanType::parse(plan).unwrap(),
            policy: PolicyPin {
                version: "1.0.0".to_owned(),
                hash: format!("hash-{plan}"),
            },
            quota: Quota {
                monthly_actions: 10,
                concurrent_actions: 3,
            },
            isolation: Isolation::Pool,
        }
    }

    pub(crate) fn event(change: Change) -> EntitlementEvent {
        EntitlementEvent {
            account_id: AccountId::parse("c").unwrap(),
            entitlement_id: None,
            product: None,
            version: None,
            effective_at: None,
            change,
        }
    }

    pub(crate) fn id(text: &str) -> EntitlementId {
        EntitlementId::parse(text).unwrap()
    }

    /// An active tenant with one entitlement, `s`, granted at second 100.
    pub(crate) fn tenant() -> Tenant {
        let at = Timestamp::from_second(100).unwrap();
        let order = EventOrder { version: None, at };
        let mut tenant = Tenant::absent(AccountId::parse("c").unwrap(), at);
        let granted = Entitlement::granted(&offer("p"), "us-east-1", None, order, at);
        tenant.entitlements.insert(id("s"), granted);
        tenant.lifecycle = Lifecycle::Active;
        tenant.generation = 1;
        tenant.fsm_id = "q".to_owned();
        tenant.revision = 7;
        tenant
    }

    #[test]
    fn counters_follow_claims_and_outcomes() {
        let january: Timestamp = "2026-01-31T23:59:59Z".parse().unwrap();
        let february: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
        let three = BTreeMap::from([(id("s"), 3)]);
        let busy = tenant().claimed(&three, january, february);
        let held = &busy.entitlements[&id("s")];
        assert_eq!(
            (busy.in_flight, held.in_flight, held.month_actions, busy.revision),
            (3, 3, 3, 8)
        );
        assert_eq!(
            (
                held.concurrent_left(),
                held.monthly_left(january),
                held.monthly_left(february)
            ),
            (0, 7, 10)
        );
        assert_eq!((busy.index_state(), busy.lease_until), (BUSY, Some(february)));
        let outcome = |completed| Released {
            entitlement_id: Some(id("s")),
            completed,
        };
        let done = busy.released(&[outcome(true), outcome(true)]);
        assert_eq!(done.lease_until, Some(february));
        let done = done.released(&[outcome(false)]);
        assert_eq!(
            (
                done.in_flight,
                done.actions_completed,
                done.actions_failed,
                done.revision
            ),
            (0, 2, 1, 10)
        );
        assert_eq!((done.index_state(), done.lease_until), ("active", None));
        assert_eq!(done.entitlements[&id("s")].in_flight, 0);
        let next_month = done.claimed(&BTreeMap::from([(id("s"), 1)]), february, february);
        let held = &next_month.entitlements[&id("s")];
        assert_eq!((held.month.as_str(), held.month_actions), ("2026-02", 1));
    }

    /// An action of an entitlement that was cancelled meanwhile still counts for the tenant.
    #[test]
    fn outcomes_of_cancelled_entitlements_count() {
        let now = Timestamp::UNIX_EPOCH;
        let mut busy = tenant().claimed(&BTreeMap::from([(id("s"), 1)]), now, now);
        busy.entitlements.clear();
        let done = busy.released(&[Released {
            entitlement_id: Some(id("s")),
            completed: true,
        }]);
        assert_eq!((done.in_flight, done.actions_completed), (0, 1));
    }

    /// Cancelled and bought again: what runs still counts against the limit, and what was used of the month stays used.
    #[test]
    fn buying_again_frees_nothing() {
        let now = Timestamp::from_second(200).unwrap();
        let mut busy = tenant().claimed(&BTreeMap::from([(id("s"), 2)]), now, now);
        let held = busy.entitlements.remove(&id("s")).unwrap();
        busy.tombstones.bury(&id("s"), held.order, Some(held.usage()));
        let one = Released {
            entitlement_id: Some(id("s")),
            completed: true,
        };
        let mut again = busy.released(std::slice::from_ref(&one));
        let usage = again.tombstones.raise(&id("s"));
        let order = EventOrder {
            version: None,
            at: now,
        };
        let granted = Entitlement::granted(&offer("p"), "r", None, order, now).with_usage(usage);
        assert_eq!((granted.in_flight, granted.month_actions), (1, 2));
        again.entitlements.insert(id("s"), granted);
        let done = again.released(&[one]);
        assert_eq!((done.in_flight, done.entitlements[&id("s")].in_flight), (0, 0));
    }

    #[test]
    fn a_signal_selects_what_it_names_or_the_only_one() {
        let mut tenant = tenant();
        let sku = |text: &str| SkuId::parse(text).unwrap();
        let name = |tenant: &Tenant, entitlement: Option<&str>, sku_id: Option<&str>| match tenant
            .select(entitlement.map(id).as_ref(), sku_id.map(sku).as_ref())
        {
            Selected::One(id, _) => id.as_str().to_owned(),
            Selected::None => "none".to_owned(),
            Selected::Several => "several".to_owned(),
        };
        assert_eq!(name(&tenant, None, None), "s");
        assert_eq!(name(&tenant, None, Some("other")), "none");
        let mut other = tenant.entitlements[&id("s")].clone();
        tenant.entitlements.insert(id("agreement-2"), other.clone());
        assert_eq!(name(&tenant, None, None), "several");
        assert_eq!(name(&tenant, None, Some("s")), "several");
        assert_eq!(name(&tenant, Some("agreement-2"), None), "agreement-2");
        assert_eq!(name(&tenant, Some("agreement-2"), Some("other")), "none");
        other.sku_id = sku("other");
        tenant.entitlements.insert(id("agreement-2"), other);
        assert_eq!(name(&tenant, None, Some("other")), "agreement-2");
        tenant.entitlements.clear();
        assert_eq!(name(&tenant, None, None), "none");
    }

    #[test]
    fn repinning_reaches_every_entitlement_of_the_plan_and_only_those() {
        let mut tenant = tenant();
        let mut other = tenant.entitlements[&id("s")].clone();
        other.plan_type = PlanType::parse("other").unwrap();
        tenant.entitlements.insert(id("other"), other);
        let mut newer = offer("p");
        assert_eq!(tenant.repinned(&newer), None);
        newer.policy.hash = "next".to_owned();
        newer.quota.concurrent_actions = 9;
        let repinned = tenant.repinned(&newer).unwrap();
        let pin = |name: &str| repinned.entitlements[&id(name)].policy.hash.as_str();
        assert_eq!((pin("s"), pin("other")), ("next", "hash-p"));
        assert_eq!(repinned.entitlements[&id("s")].quota.concurrent_actions, 9);
        assert_eq!(repinned.revision, tenant.revision + 1);
    }

    #[test]
    fn the_pace_follows_the_limit() {
        let pace = |limit| {
            let pace = Pace::of(limit);
            (pace.batch_size, pace.maximum_concurrency)
        };
        assert_eq!(
            [0, 1, 2, 3, 10].map(pace),
            [(1, 2), (1, 2), (1, 2), (1, 2), (5, 2)]
        );
        assert_eq!([15, 20, 25].map(pace), [(7, 2), (10, 2), (8, 3)]);
        assert_eq!([9_999, u64::MAX].map(pace), [(9, 1000), (10, 1000)]);
        for limit in 2..=10_000 {
            let (batch, concurrency) = pace(limit);
            let fed = u64::try_from(batch * concurrency).unwrap();
            assert!(fed <= limit, "{limit}: {fed} are fed");
        }
    }

    #[test]
    fn a_claim_that_takes_the_last_place_says_so() {
        let now = Timestamp::from_second(200).unwrap();
        let two = tenant().claimed(&BTreeMap::from([(id("s"), 2)]), now, now);
        assert_eq!((two.full_at, two.is_full()), (None, false));
        let three = two.claimed(&BTreeMap::from([(id("s"), 1)]), now, now);
        assert_eq!((three.full_at, three.is_full()), (Some(now), true));
        let later = Timestamp::from_second(300).unwrap();
        let undone = three.claimed(&BTreeMap::new(), later, later);
        assert_eq!(undone.full_at, Some(now), "what is undone takes no new place");
    }

    #[test]
    fn what_may_run_is_scaled_within_the_plans() {
        let scaled = |quota, limit, floor, in_flight| {
            let mut tenant = tenant();
            let held = tenant.entitlements.get_mut(&id("s")).unwrap();
            held.quota.concurrent_actions = quota;
            held.in_flight = in_flight;
            tenant.in_flight = in_flight;
            tenant.scale.limit = limit;
            tenant.scale.floor = floor;
            (tenant.in_flight_action_limit(), tenant.concurrent_left(&id("s")))
        };
        assert_eq!(scaled(3, None, None, 1), (3, 2));
        assert_eq!(scaled(100, None, None, 1), (10, 9));
        assert_eq!(scaled(100, None, Some(30), 30), (30, 0));
        assert_eq!(scaled(100, Some(40), Some(30), 50), (40, 0));
        assert_eq!(scaled(20, Some(40), None, 0), (20, 20));
        assert_eq!(scaled(20, Some(0), Some(0), 0), (1, 1));
        assert_eq!(scaled(0, None, None, 0), (0, 0));
        assert_eq!(tenant().concurrent_left(&id("other")), 0);
    }

    #[test]
    fn what_is_taken_up_again_needs_a_place() {
        let now = Timestamp::UNIX_EPOCH;
        let mut tenant = tenant();
        tenant
            .entitlements
            .get_mut(&id("s"))
            .unwrap()
            .quota
            .concurrent_actions = 1;
        tenant.actions_failed = 1;
        let used = tenant.entitlements[&id("s")].monthly_left(now);
        let taken = tenant.taken_up(&id("s"), now).unwrap();
        assert_eq!((taken.in_flight, taken.actions_failed), (1, 0));
        assert_eq!(taken.entitlements[&id("s")].monthly_left(now), used);
        assert_eq!(taken.taken_up(&id("s"), now), None);
        assert_eq!(tenant.taken_up(&id("other"), now), None);
        let released = taken.released(&[Released {
            entitlement_id: Some(id("s")),
            completed: false,
        }]);
        assert_eq!((released.in_flight, released.actions_failed), (0, 1));
        assert_eq!(released.entitlements[&id("s")].in_flight, 0);
    }

    #[test]
    fn a_new_generation_is_not_scaled() {
        let at = Timestamp::from_second(200).unwrap();
        let mut gone = tenant();
        gone.lifecycle = Lifecycle::Decommissioned;
        gone.scale.floor = Some(40);
        let order = EventOrder { version: None, at };
        let provisioning = Provisioning {
            entitlement_id: id("s"),
            entitlement: Entitlement::granted(&offer("p"), "r", None, order, at),
            event: event(Change::Suspended),
            asked: Asked {
                provider: "standard".to_owned(),
                delivery_id: "d".to_owned(),
                body_sha256: String::new(),
            },
            new_tenant: true,
            dedicated: false,
            received_at: at,
            due_since: at,
            attempts: 0,
            waited: false,
            table_attempt: 0,
            began_at: at,
            failure: None,
        };
        let again = gone.begun(provisioning, "mg", at).unwrap();
        assert_eq!((again.generation, again.scale), (2, Scale::default()));
    }

    /// Actions of cancelled entitlements, and those of others, take places as well.
    #[test]
    fn all_actions_share_the_tenants_places() {
        let mut tenant = tenant();
        let held = tenant.entitlements.get_mut(&id("s")).unwrap();
        held.quota.concurrent_actions = 8;
        let other = held.clone();
        tenant.entitlements.insert(id("other"), other);
        tenant.in_flight = 7;
        assert_eq!(
            (tenant.in_flight_action_limit(), tenant.concurrent_left(&id("s"))),
            (10, 3)
        );
        assert_eq!(tenant.pace(), Pace::of(10));
    }

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
