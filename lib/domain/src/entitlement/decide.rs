//! What an event about an entitlement means, given what the account holds: a function of (tenant, event, now).
//!
//! | | not held | held | cancelled before |
//! |---|---|---|---|
//! | purchase | grant | its term holds from then on, and its plan unless the agreement has an id: a cancellation was lost | grant unless it came before the cancellation |
//! | plan change | grant: the purchase was lost or comes late | other plan | ignored |
//! | suspension, reinstatement, renewal | wait for the purchase | refuse its signals, in force, longer | ignored |
//! | cancellation | remembered | taken away; the tenant goes with the last one | ignored |
//!
//! What came after a cancellation beyond doubt counts as if there had been none: its purchase is on the way. A purchase counts
//! also where the sender's clock cannot order the two: then arrival does. An event older than the last one is ignored, also
//! where that one changed nothing. While the tenant is provisioned or decommissioned, and before an event takes effect, it
//! waits.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use receipts::receipt::{EntitlementOutcome, Payload, Quota as ReceiptQuota, Resources};

use super::{Entitlement, EventOrder, Granularity, Isolation, MAX_ENTITLEMENTS, Offer, Standing};
use crate::account::{EntitlementId, SkuId};
use crate::names::printable;
use crate::provisioning::{DeliveryRef, Provisioning};
use crate::tenant::{Deferred, IllegalTransition, Lifecycle, Tenant, TenantEvent};
use crate::webhook::event::{Change, EntitlementEvent, PlanReference};
use crate::webhook::providers::of_name;
use crate::webhook::signature::TOLERANCE_SECONDS;

/// Most events that wait for one account.
pub const MAX_DEFERRED: usize = 32;
/// How long an event waits for what it needs, in seconds: as long as senders repeat one.
pub const DEFERRED_SECONDS: i64 = 7 * 24 * 3600;

/// An event, with what the registry says of the plan and product it names.
#[derive(Debug, Clone)]
pub struct EventContext<'a> {
    pub event: &'a EntitlementEvent,
    pub asked: &'a DeliveryRef,
    pub received_at: Timestamp,
    /// When it could be carried out first.
    pub due_since: Timestamp,
    /// How often carrying it out has failed before.
    pub attempts: u32,
    /// Whether its sender has an answer already.
    pub waited: bool,
    /// The product it names, in our words.
    pub product: Option<&'a SkuId>,
    /// The plan it names; `None` also when no policy is known for it.
    pub offer: Option<&'a Offer>,
}

/// What of the stack stands in names and receipts.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// First part of every tenant's names.
    pub queue_prefix: &'a str,
    /// The table all tenants share.
    pub tenants_table: &'a str,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing changes, but perhaps what is remembered of cancellations.
    Ignore {
        reason: String,
        /// The tenant afterwards, when something is remembered.
        tenant: Option<Box<Tenant>>,
    },
    /// It cannot be done, and will not be possible by asking again.
    Refuse {
        /// Which step could not be done.
        step: &'static str,
        reason: String,
    },
    /// It is kept, and carried out later.
    Defer {
        /// The tenant with the event among those that wait.
        tenant: Box<Tenant>,
        payload: Payload,
    },
    /// It cannot even be kept: the sender has to come back.
    Busy { reason: String },
    /// What it asks for is under way: go on with it.
    Resume,
    /// Something has to be made first: the tenant with the saga's intent.
    Begin(Box<Tenant>),
    /// Done, once this is committed.
    Commit {
        /// The tenant afterwards.
        tenant: Box<Tenant>,
        payload: Payload,
        /// The enforcer in force.
        policy_hash: Option<String>,
    },
}

/// Decides.
#[must_use]
pub fn decide(
    tenant: Option<&Tenant>,
    context: &EventContext<'_>,
    around: Surroundings<'_>,
    now: Timestamp,
) -> Decision {
    asking(tenant, context, around, now, |asking| asking.decide())
}

/// Keeps an event without deciding: what is needed to decide cannot be had now.
#[must_use]
pub fn keep(
    tenant: Option<&Tenant>,
    context: &EventContext<'_>,
    around: Surroundings<'_>,
    now: Timestamp,
    reason: &str,
) -> Decision {
    asking(tenant, context, around, now, |asking| {
        let under_way = asking.tenant.provisioning.as_ref();
        if under_way.is_some_and(|saga| saga.asked == *context.asked) {
            return Decision::Resume;
        }
        asking.defer(reason.to_owned(), asking.order.at.max(now))
    })
}

fn asking(
    tenant: Option<&Tenant>,
    context: &EventContext<'_>,
    around: Surroundings<'_>,
    now: Timestamp,
    answer: impl FnOnce(&Question<'_>) -> Decision,
) -> Decision {
    let absent;
    let tenant = match tenant {
        Some(tenant) => tenant,
        None => {
            absent = Tenant::absent(context.event.account_id.clone(), now);
            &absent
        }
    };
    answer(&Question {
        tenant,
        context,
        around,
        now,
        order: order_of(context.event, context.asked, context.received_at),
    })
}

/// Where an event stands among those of its entitlement: by the sender's clock and count, as exactly as the sender dates;
/// by its arrival where the sender tells no time.
#[must_use]
pub fn order_of(event: &EntitlementEvent, asked: &DeliveryRef, received_at: Timestamp) -> EventOrder {
    let granularity = match (event.effective_at, of_name(&asked.provider)) {
        (Some(_), Some(provider)) => provider.granularity,
        _ => Granularity::Instant,
    };
    EventOrder {
        version: event.version,
        at: event.effective_at.unwrap_or(received_at),
        granularity,
        arrived_at: received_at,
    }
}

/// The receipt of an entitlement that is in force.
#[must_use]
pub fn active_payload(
    tenant: &Tenant,
    id: &EntitlementId,
    held: &Entitlement,
    around: Surroundings<'_>,
) -> Payload {
    let table = tenant
        .tables
        .as_ref()
        .map_or(around.tenants_table, |tables| tables.actions.as_str());
    Payload::EntitlementActive {
        entitlement_id: Some(id.as_str().to_owned()),
        sku_id: held.sku_id.as_str().to_owned(),
        plan_type: held.plan_type.as_str().to_owned(),
        region: held.region.clone(),
        policy_version: held.policy.version.clone(),
        fsm_id: tenant.fsm_id.clone(),
        quota: quota(held),
        resources: Resources {
            fsm_id: tenant.fsm_id.clone(),
            queue: tenant.resources.queue.clone(),
            table: table.to_owned(),
        },
    }
}

/// The tenant without one of its entitlements, which ended at this place in the order of events. It leaves with the last one.
///
/// # Errors
/// [`IllegalTransition`] when the tenant cannot leave now.
pub fn taken_away(
    tenant: &Tenant,
    id: &EntitlementId,
    held: &Entitlement,
    order: EventOrder,
    now: Timestamp,
) -> Result<Tenant, IllegalTransition> {
    let mut next = match tenant.entitlements.len() {
        1 => tenant.after(TenantEvent::Cancel, now)?,
        _ => tenant.written(),
    };
    next.entitlements.remove(id);
    next.tombstones.bury(id, order, Some(held.usage()));
    Ok(next)
}

/// The receipt of an entitlement that has another plan.
#[must_use]
pub fn changed_payload(id: &EntitlementId, before: &Entitlement, after: &Entitlement) -> Payload {
    Payload::EntitlementChanged {
        entitlement_id: id.as_str().to_owned(),
        sku_id: after.sku_id.as_str().to_owned(),
        previous_plan_type: before.plan_type.as_str().to_owned(),
        plan_type: after.plan_type.as_str().to_owned(),
        previous_policy_version: before.policy.version.clone(),
        policy_version: after.policy.version.clone(),
        quota: quota(after),
    }
}

fn quota(held: &Entitlement) -> ReceiptQuota {
    ReceiptQuota {
        monthly_actions: held.quota.monthly_actions,
        concurrent_actions: held.quota.concurrent_actions,
    }
}

/// Which entitlement an event is about.
enum Subject {
    /// This one, held or not.
    One(EntitlementId),
    /// The event names none, and the account holds none.
    Nothing,
    /// The event names a product that nothing is known of.
    Unknown,
    /// More than one could be meant.
    Several,
}

struct Question<'a> {
    tenant: &'a Tenant,
    context: &'a EventContext<'a>,
    around: Surroundings<'a>,
    now: Timestamp,
    order: EventOrder,
}

fn ignore(reason: impl Into<String>) -> Decision {
    Decision::Ignore {
        reason: reason.into(),
        tenant: None,
    }
}

impl Question<'_> {
    fn decide(&self) -> Decision {
        let change = &self.context.event.change;
        let tolerance = SignedDuration::from_secs(TOLERANCE_SECONDS);
        if self.order.at > self.now.saturating_add(tolerance).unwrap_or(self.now) {
            return self.defer(format!("the {} takes effect later", change.name()), self.order.at);
        }
        let id = match self.about() {
            Subject::One(id) => id,
            Subject::Several => {
                return Decision::Refuse {
                    step: "find_entitlement",
                    reason: format!(
                        "the account holds several entitlements, and the {} does not say which one is meant",
                        change.name()
                    ),
                };
            }
            Subject::Nothing => return self.about_nothing(),
            Subject::Unknown => return self.no_policy(),
        };
        let under_way = self.tenant.provisioning.as_ref();
        if let Some(saga) = under_way {
            let same = saga.entitlement_id == id;
            // The purchase that is being carried out, repeated: whoever repeats it helps to finish it.
            if same && saga.event.change == *change && saga.asked == *self.context.asked {
                return Decision::Resume;
            }
            if same || self.tenant.lifecycle == Lifecycle::Provisioning {
                return self.defer(
                    "something is being provisioned for the account".to_owned(),
                    self.now,
                );
            }
        }
        match self.tenant.entitlements.get(&id) {
            Some(held) if self.tenant.lifecycle == Lifecycle::Active => self.about_held(id, held),
            _ => self.about_unheld(id),
        }
    }

    fn about(&self) -> Subject {
        let event = self.context.event;
        if let Some(id) = &event.entitlement_id {
            return Subject::One(id.clone());
        }
        let takes_away = matches!(event.change, Change::Cancelled | Change::Suspended);
        if event.product.is_some() && self.context.product.is_none() && !takes_away {
            // Named, but not known: the account's other entitlements are not meant. What takes away needs no policy: the
            // plan may be one that the customer changed to and that nothing is known of here.
            return Subject::Unknown;
        }
        let own = |sku: &SkuId| EntitlementId::parse(sku.as_str()).map_or(Subject::Nothing, Subject::One);
        if let (Change::Granted { .. }, Some(sku)) = (&event.change, self.context.product) {
            // An agreement without a name of its own has that of its product.
            return own(sku);
        }
        let waiting = self
            .tenant
            .provisioning
            .iter()
            .map(|saga| (&saga.entitlement_id, &saga.entitlement));
        let fitting: BTreeSet<&EntitlementId> = (self.tenant.entitlements.iter().chain(waiting))
            .filter(|(_, held)| self.context.product.is_none_or(|sku| *sku == held.sku_id))
            .map(|(id, _)| id)
            .collect();
        match (fitting.first(), fitting.len(), self.context.product) {
            (Some(id), 1, _) => Subject::One((*id).clone()),
            (Some(_), _, _) => Subject::Several,
            (None, _, Some(sku)) => own(sku),
            (None, _, None) => Subject::Nothing,
        }
    }

    fn about_nothing(&self) -> Decision {
        match &self.context.event.change {
            Change::Cancelled => {
                let mut next = self.tenant.written();
                next.tombstones.bury_all(self.order);
                Decision::Ignore {
                    reason: "the account holds no entitlement; a purchase from before this cancellation will not count"
                        .to_owned(),
                    tenant: Some(Box::new(next)),
                }
            }
            // Its plan has no policy here, so not even its product is known.
            Change::Granted { .. } | Change::PlanChanged { .. } => self.no_policy(),
            change @ (Change::Suspended | Change::Reinstated | Change::Renewed { .. }) => ignore(format!(
                "{} of an account that holds no entitlement",
                change.name()
            )),
        }
    }

    fn no_policy(&self) -> Decision {
        let reason = match &self.context.event.change {
            Change::Granted { plan, .. } | Change::PlanChanged { plan } => match plan {
                PlanReference::Canonical { sku_id, plan_type } => {
                    format!("no policy for plan {plan_type} of SKU {sku_id}")
                }
                PlanReference::Provider { provider, plan_id } => {
                    format!("no policy for plan {} of {provider}", printable(plan_id, 128))
                }
            },
            change => format!("no policy for a {}", change.name()),
        };
        Decision::Refuse {
            step: "load_policy",
            reason,
        }
    }

    fn about_unheld(&self, id: EntitlementId) -> Decision {
        let change = &self.context.event.change;
        // Of an entitlement known by its product alone a sender may count each agreement anew: its time says more.
        let order = match (
            &self.context.event.entitlement_id,
            self.context.event.effective_at,
        ) {
            (None, Some(_)) => EventOrder {
                version: None,
                ..self.order
            },
            _ => self.order,
        };
        let buried = self.tenant.tombstones.last(&id);
        let counts = buried.is_none_or(|buried| order.is_after(buried));
        match change {
            Change::Granted { .. } if buried.is_none_or(|buried| !order.is_stale(buried)) => self.grant(id),
            Change::PlanChanged { .. } if counts => self.grant(id),
            Change::Suspended | Change::Reinstated | Change::Renewed { .. } if counts => {
                self.defer("no purchase of the entitlement came yet".to_owned(), self.now)
            }
            Change::Cancelled => {
                let mut next = self.tenant.written();
                next.tombstones.bury(&id, self.order, None);
                let reason = if buried.is_some() {
                    "the entitlement is cancelled already"
                } else {
                    "the entitlement is not held; a purchase from before this cancellation will not count"
                };
                Decision::Ignore {
                    reason: reason.to_owned(),
                    tenant: Some(Box::new(next)),
                }
            }
            Change::Granted { .. } => ignore("a purchase from before the entitlement's cancellation"),
            Change::PlanChanged { .. } | Change::Suspended | Change::Reinstated | Change::Renewed { .. } => {
                ignore(format!("{} of an entitlement that is cancelled", change.name()))
            }
        }
    }

    fn about_held(&self, id: EntitlementId, held: &Entitlement) -> Decision {
        let change = &self.context.event.change;
        let last = match change {
            Change::PlanChanged { .. } => &held.plan_order,
            Change::Suspended | Change::Reinstated => &held.standing_order,
            Change::Renewed { .. } => &held.term_order,
            Change::Granted { .. } | Change::Cancelled => &held.order,
        };
        if self.order.is_stale(last) {
            return match change {
                Change::Granted { .. } => {
                    ignore("the entitlement is live already; a repeated purchase changes nothing")
                }
                _ => ignore(format!(
                    "the {} is older than what was applied last",
                    change.name()
                )),
            };
        }
        let mut next = self.tenant.written();
        let (entitlement_id, sku_id) = (id.as_str().to_owned(), held.sku_id.as_str().to_owned());
        let mut after = Entitlement {
            order: held.order.later(self.order),
            ..held.clone()
        };
        match change {
            Change::PlanChanged { .. } => after.plan_order = self.order,
            Change::Suspended | Change::Reinstated => after.standing_order = self.order,
            Change::Renewed { .. } => after.term_order = self.order,
            // A purchase begins anew: what is from before it is late.
            Change::Granted { .. } => {
                after.plan_order = after.plan_order.later(self.order);
                after.standing_order = after.standing_order.later(self.order);
                after.term_order = after.term_order.later(self.order);
            }
            Change::Cancelled => {}
        }
        let payload = match change {
            // An agreement with an id of its own has one plan until a change of it is told.
            Change::Granted { .. } if self.context.event.entitlement_id.is_none() && !self.has_plan(held) => {
                return self.change_plan(id, held, after);
            }
            Change::PlanChanged { .. } if !self.has_plan(held) => {
                return self.change_plan(id, held, after);
            }
            Change::PlanChanged { .. } => {
                return self.nothing_new(id, after, "the entitlement has this plan already");
            }
            Change::Granted {
                expires_at: Some(until),
                ..
            } if held.expires_at != Some(*until) => {
                after.expires_at = Some(*until);
                Payload::EntitlementRenewed {
                    entitlement_id,
                    sku_id,
                    expires_at: Some(*until),
                }
            }
            Change::Granted { .. } => {
                return self.nothing_new(
                    id,
                    after,
                    "the entitlement is live already; a repeated purchase changes nothing",
                );
            }
            Change::Cancelled => return self.cancel(&id, held),
            Change::Suspended if held.standing == Standing::Suspended => {
                return self.nothing_new(id, after, "it is suspended already");
            }
            Change::Suspended => {
                after.standing = Standing::Suspended;
                Payload::EntitlementSuspended(EntitlementOutcome {
                    entitlement_id,
                    sku_id,
                })
            }
            Change::Reinstated if held.standing == Standing::Active => {
                return self.nothing_new(id, after, "it is not suspended");
            }
            Change::Reinstated => {
                after.standing = Standing::Active;
                Payload::EntitlementReinstated(EntitlementOutcome {
                    entitlement_id,
                    sku_id,
                })
            }
            Change::Renewed { expires_at } => {
                after.expires_at = *expires_at;
                Payload::EntitlementRenewed {
                    entitlement_id,
                    sku_id,
                    expires_at: *expires_at,
                }
            }
        };
        next.entitlements.insert(id, after);
        Decision::Commit {
            tenant: Box::new(next),
            payload,
            policy_hash: Some(held.policy.hash.clone()),
        }
    }

    /// What changes nothing is still the last that was context: an older event that comes later must not count.
    fn nothing_new(&self, id: EntitlementId, after: Entitlement, reason: &str) -> Decision {
        let mut next = self.tenant.written();
        next.entitlements.insert(id, after);
        Decision::Ignore {
            reason: reason.to_owned(),
            tenant: Some(Box::new(next)),
        }
    }

    fn grant(&self, id: EntitlementId) -> Decision {
        let Some(offer) = self.context.offer else {
            return self.no_policy();
        };
        match self.tenant.lifecycle {
            Lifecycle::Decommissioning => {
                return self.defer(
                    "what the account had before is still being decommissioned".to_owned(),
                    self.now,
                );
            }
            Lifecycle::Provisioning => {
                return self.defer(
                    "something is being provisioned for the account".to_owned(),
                    self.now,
                );
            }
            Lifecycle::Absent | Lifecycle::Decommissioned | Lifecycle::Active => {}
        }
        if self.tenant.entitlements.len() >= MAX_ENTITLEMENTS {
            return Decision::Refuse {
                step: "tenant_record",
                reason: format!("the account holds {MAX_ENTITLEMENTS} entitlements, and more are not kept"),
            };
        }
        let (region, expires_at) = match &self.context.event.change {
            Change::Granted {
                region, expires_at, ..
            } => (region.as_str(), *expires_at),
            _ => (crate::webhook::payload::DEFAULT_REGION, None),
        };
        let mut entitlement = Entitlement::granted(offer, region, expires_at, self.order, self.now);
        if matches!(self.context.event.change, Change::PlanChanged { .. }) {
            // It says nothing about suspensions and terms: older words about those still count when they come.
            let floor = self.tenant.tombstones.last(&id).copied();
            let floor = floor.unwrap_or(EventOrder::at(Timestamp::MIN));
            entitlement.standing_order = floor;
            entitlement.term_order = floor;
        }
        let new_tenant = self.tenant.lifecycle != Lifecycle::Active;
        let tables_due =
            offer.isolation == Isolation::Dedicated && (new_tenant || self.tenant.tables.is_none());
        if new_tenant || tables_due {
            return self.begin(id, entitlement, new_tenant, tables_due);
        }
        let mut next = self.tenant.written();
        let entitlement = entitlement.with_usage(next.tombstones.raise(&id));
        next.entitlements.insert(id.clone(), entitlement.clone());
        Decision::Commit {
            payload: active_payload(&next, &id, &entitlement, self.around),
            tenant: Box::new(next),
            policy_hash: Some(offer.policy.hash.clone()),
        }
    }

    /// Whether an entitlement has the plan that the event names, as far as can be told without its policy.
    fn has_plan(&self, held: &Entitlement) -> bool {
        match (self.context.offer, &self.context.event.change) {
            (Some(offer), _) => (&offer.sku_id, &offer.plan_type) == (&held.sku_id, &held.plan_type),
            (
                None,
                Change::Granted {
                    plan: PlanReference::Canonical { sku_id, plan_type },
                    ..
                }
                | Change::PlanChanged {
                    plan: PlanReference::Canonical { sku_id, plan_type },
                },
            ) => (sku_id, plan_type) == (&held.sku_id, &held.plan_type),
            (None, _) => false,
        }
    }

    /// Another plan, of an entitlement that has heard the event.
    fn change_plan(&self, id: EntitlementId, held: &Entitlement, after: Entitlement) -> Decision {
        let Some(offer) = self.context.offer else {
            return self.no_policy();
        };
        if offer.sku_id != held.sku_id {
            return Decision::Refuse {
                step: "load_policy",
                reason: format!(
                    "the plan is of SKU {}, the entitlement of {}",
                    offer.sku_id, held.sku_id
                ),
            };
        }
        let mut after = after.changed(offer, self.order);
        if let Change::Granted {
            expires_at: Some(until),
            ..
        } = self.context.event.change
        {
            after.expires_at = Some(until);
        }
        if offer.isolation == Isolation::Dedicated && self.tenant.tables.is_none() {
            return self.begin(id, after, false, true);
        }
        let mut next = self.tenant.written();
        next.entitlements.insert(id.clone(), after.clone());
        Decision::Commit {
            tenant: Box::new(next),
            payload: changed_payload(&id, held, &after),
            policy_hash: Some(offer.policy.hash.clone()),
        }
    }

    fn begin(
        &self,
        entitlement_id: EntitlementId,
        entitlement: Entitlement,
        new_tenant: bool,
        dedicated: bool,
    ) -> Decision {
        if self.tenant.provisioning.is_some() {
            return self.defer(
                "something is being provisioned for the account".to_owned(),
                self.now,
            );
        }
        let saga = Provisioning {
            entitlement_id,
            entitlement,
            event: self.context.event.clone(),
            asked: self.context.asked.clone(),
            new_tenant,
            dedicated,
            received_at: self.context.received_at,
            due_since: self.context.due_since,
            attempts: self.context.attempts,
            waited: self.context.waited,
            table_attempt: match new_tenant {
                true => 0,
                false => self.tenant.table_attempts.saturating_add(1),
            },
            began_at: self.now,
            failure: None,
        };
        match self.tenant.begun(saga, self.around.queue_prefix, self.now) {
            Ok(tenant) => Decision::Begin(Box::new(tenant)),
            Err(e) => Decision::Busy {
                reason: e.to_string(),
            },
        }
    }

    fn cancel(&self, id: &EntitlementId, held: &Entitlement) -> Decision {
        let last = self.tenant.entitlements.len() == 1;
        if last && self.tenant.provisioning.is_some() {
            // Another entitlement waits for tables: only then is it known whether this was the last one.
            return self.defer(
                "something is being provisioned for the account".to_owned(),
                self.now,
            );
        }
        let tenant = match taken_away(self.tenant, id, held, self.order, self.now) {
            Ok(tenant) => tenant,
            Err(e) => {
                return Decision::Busy {
                    reason: e.to_string(),
                };
            }
        };
        let (entitlement_id, sku_id) = (id.as_str().to_owned(), held.sku_id.as_str().to_owned());
        let (payload, policy_hash) = if last {
            let payload = Payload::DecommissionStart {
                entitlement_id: Some(entitlement_id),
                sku_id,
                in_flight_actions: self.tenant.in_flight,
            };
            (payload, None)
        } else {
            let payload = Payload::EntitlementCancelled {
                entitlement_id,
                sku_id,
                entitlements_left: u64::try_from(tenant.entitlements.len()).unwrap_or(u64::MAX),
            };
            (payload, Some(held.policy.hash.clone()))
        };
        Decision::Commit {
            tenant: Box::new(tenant),
            payload,
            policy_hash,
        }
    }

    fn defer(&self, reason: String, due_at: Timestamp) -> Decision {
        if self.tenant.deferred.len() >= MAX_DEFERRED {
            return Decision::Busy {
                reason: format!("{MAX_DEFERRED} events of the account wait already"),
            };
        }
        let event = self.context.event;
        let mut next = self.tenant.written();
        next.deferred.push(Deferred {
            event: event.clone(),
            asked: self.context.asked.clone(),
            received_at: self.context.received_at,
            due_at,
            due_since: self.context.due_since.max(due_at),
            attempts: self.context.attempts,
        });
        Decision::Defer {
            tenant: Box::new(next),
            payload: Payload::EntitlementDeferred {
                entitlement_id: event.entitlement_id.as_ref().map(|id| id.as_str().to_owned()),
                sku_id: self.context.product.map(|sku| sku.as_str().to_owned()),
                event: event.change.name().to_owned(),
                reason,
                due_at: (due_at > self.now).then_some(due_at),
            },
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
