//! Applies an event about an entitlement, from whoever brought it, and keeps the answer to its delivery.

use jiff::{SignedDuration, Timestamp};
use receipts::receipt::{Draft, Payload};
use uuid::Uuid;

use crate::account::SkuId;
use crate::entitlement::Offer;
use crate::entitlement::decide::{DEFERRED_SECONDS, Decision, EventContext, Surroundings, decide, keep};
use crate::names::printable;
use crate::provisioning::DeliveryRef;
use crate::tenant::{Deferred, Lifecycle, Pace, Tenant};
use crate::transaction::{Account, DeliveryPlan, DeliveryRecord, Plan, TurnedAway};
use crate::webhook::event::{Change, EntitlementEvent, PlanReference};
use crate::webhook::providers::of_name;

/// An event to be carried out.
#[derive(Debug, Clone)]
pub struct Task {
    pub event: EntitlementEvent,
    pub asked: DeliveryRef,
    pub received_at: Timestamp,
    /// When it could be carried out first: it is kept for seven days from then on.
    pub due_since: Timestamp,
    /// How often carrying it out has failed before.
    pub attempts: u32,
    /// Whether it is one of those that wait: its sender has an answer already.
    pub waited: bool,
}

impl Task {
    /// A delivery that came just now.
    #[must_use]
    pub fn delivered(event: EntitlementEvent, asked: DeliveryRef, now: Timestamp) -> Self {
        Self {
            event,
            asked,
            received_at: now,
            due_since: now,
            attempts: 0,
            waited: false,
        }
    }

    /// One of those that wait.
    #[must_use]
    pub fn waiting(waiting: Deferred) -> Self {
        Self {
            event: waiting.event,
            asked: waiting.asked,
            received_at: waiting.received_at,
            due_since: waiting.due_since,
            attempts: waiting.attempts,
            waited: true,
        }
    }

    fn context<'a>(&'a self, looked_up: &'a LookedUp) -> EventContext<'a> {
        EventContext {
            event: &self.event,
            asked: &self.asked,
            received_at: self.received_at,
            due_since: self.due_since,
            attempts: self.attempts,
            waited: self.waited,
            product: looked_up.product.as_ref(),
            offer: looked_up.offer.as_ref(),
        }
    }
}

/// What the registry says of the plan and product that an event names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LookedUp {
    /// The product, in our words.
    pub product: Option<SkuId>,
    /// The plan; `None` also when no policy is known for it.
    pub offer: Option<Offer>,
    /// Why the registry does not tell: the event is then kept, and looked up when it is carried out.
    pub unknown: Option<&'static str>,
}

/// Why an event can neither be carried out nor be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The delivery id came before with another body.
    #[error("delivery {delivery_id} was answered before with another body")]
    DeliveryReused { delivery_id: String },
    /// The account can take no event now: its sender has to come back.
    #[error("{reason}")]
    Busy { reason: String },
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// It was answered, with this HTTP status.
    Answered {
        /// The answer's status.
        status: u16,
        /// When what may run at once changed: the id of the tenant's mapping, and its pace now.
        pace: Option<(String, Pace)>,
    },
    /// Its delivery was answered before.
    AnsweredBefore(DeliveryRecord),
    /// Something has to be made: the intent is recorded.
    Begun,
    /// What it asks for is being made already.
    UnderWay,
    /// It waits, or is no longer among those that wait.
    Waits,
}

/// The generation that is to be decommissioned.
#[must_use]
pub fn leaving(tenant: &Tenant) -> Option<u64> {
    (tenant.lifecycle == Lifecycle::Decommissioning).then_some(tenant.generation)
}

/// How a tenant's mapping has to change, if it has.
#[must_use]
pub fn pace_of(before: Option<&Tenant>, after: Option<&Tenant>) -> Option<(String, Pace)> {
    let tenant = after.filter(|tenant| tenant.lifecycle == Lifecycle::Active)?;
    let now = tenant.pace();
    (before.map(Tenant::pace) != Some(now)).then(|| (tenant.resources.mapping_id.clone(), now))
}

/// Carries an event out as far as one commit can do it.
///
/// # Errors
/// [`ApplyError`] when it can neither be carried out nor be kept.
pub fn apply_event(
    account: &Account,
    task: &Task,
    looked_up: &LookedUp,
    around: Surroundings<'_>,
    receipt_id: Uuid,
    now: Timestamp,
) -> Result<(Plan, Applied), ApplyError> {
    let mut tenant = account.tenant.clone();
    if task.waited {
        let rest = tenant
            .as_ref()
            .and_then(|tenant| tenant.without_deferred(&task.asked));
        let Some((_, rest)) = rest else {
            return Ok((Plan::default(), Applied::Waits));
        };
        tenant = Some(rest);
    } else if let Some(record) = known(&task.asked, account.delivery.as_ref())?
        && !account.unanswered()
    {
        return Ok((Plan::default(), Applied::AnsweredBefore(record.clone())));
    }
    let before = account.delivery.as_ref().and_then(DeliveryRecord::turned_away);
    let again = before.map(|before| Task {
        received_at: before.received_at,
        ..task.clone()
    });
    let task = again.as_ref().unwrap_or(task);
    // Of a task that waited, the tenant is written without it whatever is decided.
    let rest = tenant
        .as_ref()
        .filter(|_| task.waited)
        .map(Tenant::written)
        .map(Box::new);
    let answer = |status: u16, next: Option<Box<Tenant>>, payload: Payload, policy_hash: &str| {
        let tenant = next.map(|next| *next);
        let account_id = task.event.account_id.as_str();
        let applied = Applied::Answered {
            status,
            pace: pace_of(
                account.tenant.as_ref(),
                tenant.as_ref().or(account.tenant.as_ref()),
            ),
        };
        let plan = Plan {
            drafts: vec![Draft::new(receipt_id, account_id, payload, now).under(policy_hash)],
            delivery: (!task.waited).then(|| DeliveryPlan::of(&task.asked, status)),
            ..Plan::tenant(tenant)
        };
        (plan, applied)
    };
    // What changes nothing, as it did before, is answered as before; else it is kept, so that it can be decided anew.
    let nothing = |status: u16, reason: &str, next: Option<Box<Tenant>>, payload: Payload| {
        let record = account.delivery.as_ref().filter(|record| record.status == status);
        if let Some(record) = record
            && !task.waited
            && before.is_some_and(|before| before.reason == reason)
        {
            return (Plan::default(), Applied::AnsweredBefore(record.clone()));
        }
        let (mut plan, applied) = answer(status, next, payload, "");
        plan.delivery = turned_away(
            account,
            status,
            &task.asked,
            task.received_at,
            reason,
            &task.event,
        );
        (plan, applied)
    };
    let context = task.context(looked_up);
    let decision = match looked_up.unknown {
        None => decide(tenant.as_ref(), &context, around, now),
        Some(reason) => keep(tenant.as_ref(), &context, around, now, reason),
    };
    Ok(match decision {
        Decision::Ignore { reason, tenant } => nothing(
            200,
            &reason,
            tenant.or(rest),
            ignored(reason.clone(), &task.asked),
        ),
        Decision::Refuse { step, reason } => {
            nothing(422, &reason, rest, failed(&context, step, reason.clone()))
        }
        Decision::Defer { .. } if task.waited => {
            if !expired(task.due_since, now) {
                return Ok((Plan::default(), Applied::Waits));
            }
            let reason = "it waited for seven days, and could not be carried out".to_owned();
            nothing(422, &reason, rest, failed(&context, "deferred", reason.clone()))
        }
        Decision::Defer { tenant, payload } => answer(202, Some(tenant), payload, ""),
        Decision::Busy { reason } => return Err(ApplyError::Busy { reason }),
        Decision::Resume => (Plan::default(), Applied::UnderWay),
        Decision::Begin(tenant) => {
            let plan = Plan {
                // Whose the queue is must be known before there is one.
                queue: Some(tenant.fsm_id.clone()),
                // Of two bodies under one id, one is carried out.
                delivery: (!task.waited).then(|| DeliveryPlan::under_way(&task.asked)),
                ..Plan::tenant(Some(*tenant))
            };
            (plan, Applied::Begun)
        }
        Decision::Commit {
            tenant,
            payload,
            policy_hash,
        } => answer(
            200,
            Some(tenant),
            payload,
            policy_hash.as_deref().unwrap_or_default(),
        ),
    })
}

/// Puts a waiting event that could not be carried out back in line: later each time, and for seven days at the most.
#[must_use]
pub fn postpone(account: &Account, task: &Task, reason: &str, receipt_id: Uuid, now: Timestamp) -> Plan {
    let tenant = account.tenant.as_ref();
    let Some((waiting, mut rest)) = tenant.and_then(|tenant| tenant.without_deferred(&task.asked)) else {
        return Plan::default();
    };
    let mut drafts = Vec::new();
    let mut delivery = None;
    if expired(waiting.due_since, now) {
        delivery = turned_away(account, 422, &task.asked, task.received_at, reason, &task.event);
        let payload = failed(&task.context(&LookedUp::default()), "deferred", reason.to_owned());
        drafts.push(Draft::new(
            receipt_id,
            task.event.account_id.as_str(),
            payload,
            now,
        ));
    } else {
        let attempts = waiting.attempts.saturating_add(1);
        rest.deferred.push(Deferred {
            attempts,
            due_at: now.saturating_add(retry_in(attempts)).unwrap_or(now),
            ..waiting
        });
    }
    Plan {
        drafts,
        delivery,
        ..Plan::tenant(Some(rest.written()))
    }
}

/// Puts on record that a delivery changed nothing, once; tells the answer it had before, if it had one.
///
/// # Errors
/// [`ApplyError::DeliveryReused`].
pub fn ignore(
    account: &Account,
    asked: &DeliveryRef,
    draft: &Draft,
) -> Result<(Plan, Option<DeliveryRecord>), ApplyError> {
    if let Some(record) = known(asked, account.delivery.as_ref())? {
        return Ok((Plan::default(), Some(record.clone())));
    }
    let reason = match &draft.payload {
        Payload::WebhookIgnored { reason, .. } => reason.clone(),
        other => other.operation().to_owned(),
    };
    let delivery = TurnedAway {
        asked: asked.clone(),
        received_at: draft.occurred_at,
        reason,
        event: None,
    };
    let plan = Plan {
        delivery: Some(DeliveryPlan::turned_away(200, delivery)),
        ..Plan::append(draft.clone())
    };
    Ok((plan, None))
}

/// What is known of this delivery, if it came before.
fn known<'a>(
    asked: &DeliveryRef,
    record: Option<&'a DeliveryRecord>,
) -> Result<Option<&'a DeliveryRecord>, ApplyError> {
    match record {
        Some(record) if record.body_sha256 != asked.body_sha256 => Err(ApplyError::DeliveryReused {
            delivery_id: asked.delivery_id.clone(),
        }),
        other => Ok(other),
    }
}

/// Keeps an event that changed nothing, so that it can be decided anew; not where its delivery's id stands for another one by now.
pub(super) fn turned_away(
    account: &Account,
    status: u16,
    asked: &DeliveryRef,
    received_at: Timestamp,
    reason: &str,
    event: &EntitlementEvent,
) -> Option<DeliveryPlan> {
    let known = known(asked, account.delivery.as_ref());
    known.is_ok().then(|| {
        let delivery = TurnedAway {
            asked: asked.clone(),
            received_at,
            reason: reason.to_owned(),
            event: Some(event.clone()),
        };
        DeliveryPlan::turned_away(status, delivery)
    })
}

/// How long an event waits that could not be carried out, in seconds: the first time, and at most.
const RETRY_SECONDS: (i64, i64) = (60, 3600);

/// How long an event waits after so many failed attempts: doubled with each, from a minute to an hour.
#[must_use]
pub fn retry_in(attempts: u32) -> SignedDuration {
    let (first, most) = RETRY_SECONDS;
    let doubled = first.saturating_mul(1 << attempts.saturating_sub(1).min(10));
    SignedDuration::from_secs(doubled.min(most))
}

/// Whether a sender posts again what was not answered with success.
#[must_use]
pub fn resends(provider: &str) -> bool {
    of_name(provider).is_some_and(|known| known.resends)
}

/// Whether an event has waited for as long as any is kept, since it could first be carried out.
#[must_use]
pub fn expired(due_since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(due_since) >= SignedDuration::from_secs(DEFERRED_SECONDS)
}

/// The receipt of a delivery that changed nothing.
#[must_use]
pub fn ignored(reason: String, asked: &DeliveryRef) -> Payload {
    Payload::WebhookIgnored {
        reason,
        provider: Some(asked.provider.clone()),
        delivery_id: Some(printable(&asked.delivery_id, 128)),
    }
}

/// The receipt of an event that could not be carried out.
fn failed(context: &EventContext<'_>, step: &str, reason: String) -> Payload {
    let event = context.event;
    let (sku_id, plan_type) = match (context.offer, &event.change) {
        (Some(offer), _) => (
            offer.sku_id.as_str().to_owned(),
            offer.plan_type.as_str().to_owned(),
        ),
        (None, Change::Granted { plan, .. } | Change::PlanChanged { plan }) => match plan {
            PlanReference::Canonical { sku_id, plan_type } => {
                (sku_id.as_str().to_owned(), plan_type.as_str().to_owned())
            }
            PlanReference::Provider { provider, plan_id } => (provider.clone(), printable(plan_id, 128)),
        },
        (None, _) => {
            let product = context.product.map(|sku| sku.as_str().to_owned());
            (product.unwrap_or_default(), String::new())
        }
    };
    Payload::EntitlementFailed {
        entitlement_id: event.entitlement_id.as_ref().map(|id| id.as_str().to_owned()),
        sku_id,
        plan_type,
        reason,
        step: step.to_owned(),
        undone: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::retry_in;

    #[test]
    fn failed_events_are_tried_ever_later() {
        let waits: Vec<i64> = [0, 1, 2, 3, 7, 8, 1000].map(|n| retry_in(n).as_secs()).into();
        assert_eq!(waits, [60, 60, 120, 240, 3600, 3600, 3600]);
    }
}
