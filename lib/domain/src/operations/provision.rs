//! How a saga of provisioning ends, as far as the tables know of it: in force, or undone.

use jiff::Timestamp;
use receipts::receipt::{Draft, Payload};
use uuid::Uuid;

use super::apply_event::{expired, resends, retry_in, turned_away};
use crate::entitlement::decide::{Surroundings, active_payload, changed_payload};
use crate::provisioning::{Failure, Provisioning, Step};
use crate::tenant::{Deferred, Tenant, TenantResources};
use crate::transaction::{Account, DeliveryPlan, Keys, Plan};

/// What is read with an account that something is being made for: the answer to the delivery that asked for it.
#[must_use]
pub fn keys(saga: &Provisioning) -> Keys {
    Keys {
        delivery: Some(saga.asked.key()),
        ..Keys::default()
    }
}

/// Whether the tenant's saga is this one, whichever way it goes.
#[must_use]
pub fn is_under_way(tenant: &Tenant, saga: &Provisioning) -> bool {
    let same = |known: &Provisioning| known.asked == saga.asked && known.began_at == saga.began_at;
    tenant.provisioning.as_ref().is_some_and(same)
}

fn under_way<'a>(account: &'a Account, saga: &Provisioning) -> Option<&'a Tenant> {
    account
        .tenant
        .as_ref()
        .filter(|tenant| is_under_way(tenant, saga))
}

/// Puts the entitlement in force, answers the delivery that asked for it, and tells whether that is so: it is not when the
/// saga is not the account's any more, or is being undone.
#[must_use]
pub fn activate(
    account: &Account,
    saga: &Provisioning,
    resources: Option<&TenantResources>,
    around: Surroundings<'_>,
    receipt_id: Uuid,
    now: Timestamp,
) -> (Plan, bool) {
    let provisioned = under_way(account, saga)
        .and_then(|tenant| Some((tenant, tenant.provisioned(resources, account.head.size, now)?.0)));
    let Some((before, after)) = provisioned else {
        return (Plan::default(), false);
    };
    let id = &saga.entitlement_id;
    let (was, held) = (before.entitlements.get(id), after.entitlements.get(id));
    let held = held.unwrap_or(&saga.entitlement);
    let payload = match was {
        Some(was) => changed_payload(id, was, held),
        None => active_payload(&after, id, held, around),
    };
    let draft = draft(receipt_id, saga, payload, &after, now).under(&held.policy.hash);
    // Of an event that waited, the sender has an answer already.
    let unanswered = !saga.waited && account.unanswered();
    let plan = Plan {
        drafts: vec![draft],
        delivery: unanswered.then(|| DeliveryPlan::of(&saga.asked, 200)),
        ..Plan::tenant(Some(after))
    };
    (plan, true)
}

/// Notes that everything is to be undone, and tells whether that is so: it is not when somebody else was first, with this or
/// with the outcome.
#[must_use]
pub fn note_failure(account: &Account, saga: &Provisioning, failure: &Failure) -> (Plan, bool) {
    let failed = under_way(account, saga).and_then(|tenant| tenant.failed(failure.clone()));
    let noted = failed.is_some();
    (Plan::tenant(failed), noted)
}

/// Notes what could be undone so far, for the receipt.
#[must_use]
pub fn note_undone(account: &Account, saga: &Provisioning, undone: &[Step]) -> Plan {
    let tenant = under_way(account, saga).filter(|_| !undone.is_empty());
    let mut next = tenant.map(Tenant::written);
    let under_way = next.as_mut().and_then(|tenant| tenant.provisioning.as_mut());
    if let Some(failure) = under_way.and_then(|saga| saga.failure.as_mut()) {
        failure.undone.extend(undone);
    }
    Plan::tenant(next)
}

/// A saga that was undone.
#[derive(Debug, Clone, PartialEq)]
pub struct Undone {
    /// What had failed.
    pub failure: Failure,
    /// HTTP status of the answer to whoever asked; `None` when it has to be posted again.
    pub status: Option<u16>,
}

/// Ends a saga of which all is undone; `None` when somebody else has ended it. An event whose sender does not post it again is
/// kept, and tried later.
#[must_use]
pub fn close_failed(
    account: &Account,
    saga: &Provisioning,
    undone: &[Step],
    receipt_id: Uuid,
    now: Timestamp,
) -> (Plan, Option<Undone>) {
    let closed = under_way(account, saga).and_then(|tenant| tenant.undone(now));
    let Some((mut after, saga, failure)) = closed else {
        return (Plan::default(), None);
    };
    let lasting = failure.lasting || expired(saga.due_since, now);
    let keep = !lasting && (saga.waited || !resends(&saga.asked.provider));
    if keep {
        let attempts = saga.attempts.saturating_add(1);
        after.deferred.push(Deferred {
            event: saga.event.clone(),
            asked: saga.asked.clone(),
            received_at: saga.received_at,
            due_at: now.saturating_add(retry_in(attempts)).unwrap_or(now),
            due_since: saga.due_since,
            attempts,
        });
    }
    // What is to be posted again has no answer that is kept.
    let status = match (lasting, keep) {
        (true, _) => Some(422),
        (false, true) => Some(202),
        (false, false) => None,
    };
    let payload = Payload::EntitlementFailed {
        entitlement_id: Some(saga.entitlement_id.as_str().to_owned()),
        sku_id: saga.entitlement.sku_id.as_str().to_owned(),
        plan_type: saga.entitlement.plan_type.as_str().to_owned(),
        reason: failure.reason.clone(),
        step: failure.step.name().to_owned(),
        undone: names_of(&saga, &failure, undone),
    };
    let draft = draft(receipt_id, &saga, payload, &after, now);
    let delivery = match status {
        // Also of one that waited: nobody has been told of this end.
        Some(422) => turned_away(
            account,
            422,
            &saga.asked,
            saga.received_at,
            &failure.reason,
            &saga.event,
        ),
        Some(status) if !saga.waited && account.unanswered() => Some(DeliveryPlan::of(&saga.asked, status)),
        _ => None,
    };
    let plan = Plan {
        drafts: vec![draft],
        delivery,
        ..Plan::tenant(Some(after))
    };
    (plan, Some(Undone { failure, status }))
}

/// What was undone, by every run that took part, as a receipt names it.
fn names_of(saga: &Provisioning, failure: &Failure, undone: &[Step]) -> Vec<String> {
    let record = saga.new_tenant.then_some(Step::TenantRecord);
    let mut names: Vec<String> = Vec::new();
    for step in failure.undone.iter().chain(undone).chain(&record) {
        if !names.iter().any(|name| name == step.name()) {
            names.push(step.name().to_owned());
        }
    }
    names
}

/// A receipt of what the saga was begun for, which lasted from then on.
fn draft(receipt_id: Uuid, saga: &Provisioning, payload: Payload, tenant: &Tenant, now: Timestamp) -> Draft {
    let taken = now.duration_since(saga.began_at).as_millis().max(0);
    Draft::new(receipt_id, tenant.account_id.as_str(), payload, saga.received_at)
        .lasting(u64::try_from(taken).unwrap_or(u64::MAX))
}
