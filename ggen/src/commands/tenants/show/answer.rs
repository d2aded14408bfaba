//! All there is to know of one tenant, as programs read it.

use std::cmp::Reverse;

use domain::account::{AccountId, EntitlementId};
use domain::entitlement::{Entitlement, EventOrder, PolicyPin, Quota, Standing, month_of};
use domain::names;
use domain::provisioning::{Failure, Provisioning};
use domain::scale;
use domain::scale::limit::Scale;
use domain::tenant::{Deferred, Lifecycle, Tables, Tenant};
use domain::transaction::Account;
use domain::webhook::event::{EntitlementEvent, PlanReference, ProductReference};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::super::list::isolation;

#[derive(Serialize)]
pub(super) struct EntitlementView {
    pub(super) entitlement_id: String,
    pub(super) sku_id: String,
    pub(super) plan_type: String,
    pub(super) region: String,
    pub(super) standing: Standing,
    pub(super) policy: PolicyPin,
    pub(super) quota: Quota,
    pub(super) in_flight: u64,
    /// The UTC month now.
    pub(super) month: String,
    pub(super) month_actions: u64,
    pub(super) granted_at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) last_event: EventOrder,
}

/// Who asked for what is under way or waits.
#[derive(Serialize)]
pub(super) struct Delivery {
    pub(super) provider: String,
    pub(super) delivery_id: String,
    pub(super) received_at: Timestamp,
}

#[derive(Serialize)]
pub(super) struct ProvisioningView {
    pub(super) entitlement_id: String,
    pub(super) sku_id: String,
    pub(super) plan_type: String,
    pub(super) new_tenant: bool,
    pub(super) dedicated: bool,
    pub(super) began_at: Timestamp,
    pub(super) attempts: u32,
    /// Set once a step failed: everything is being undone.
    pub(super) failure: Option<Failure>,
    pub(super) delivery: Delivery,
}

#[derive(Serialize)]
pub(super) struct WaitingEvent {
    pub(super) event: &'static str,
    /// The agreement, or else the product or plan, as far as the sender said.
    pub(super) entitlement_id: Option<String>,
    pub(super) product: Option<String>,
    pub(super) due_at: Timestamp,
    pub(super) attempts: u32,
    pub(super) delivery: Delivery,
}

#[derive(Serialize)]
pub(super) struct Cancellation {
    /// `null`: whatever the account held then.
    pub(super) entitlement_id: Option<String>,
    pub(super) version: Option<u64>,
    pub(super) at: Timestamp,
}

#[derive(Serialize)]
pub(super) struct Ledger {
    pub(super) size: u64,
    pub(super) last_hash: String,
    /// The last receipt's; `null` when there is none.
    #[serde(serialize_with = "as_in_receipts")]
    pub(super) timestamp: Option<Timestamp>,
}

#[derive(Serialize)]
pub(super) struct Lag {
    pub(super) waiting: u64,
    pub(super) in_flight: u64,
    pub(super) delayed: u64,
}

#[derive(Serialize)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) url: String,
    /// `null` when SQS did not say.
    pub(super) lag: Option<Lag>,
}

#[derive(Serialize)]
pub(super) struct Queues {
    pub(super) signals: Queue,
    pub(super) dead_letters: Queue,
    pub(super) mapping_id: String,
}

/// All of it, as programs read it.
#[derive(Serialize)]
pub(super) struct TenantView {
    pub(super) account_id: AccountId,
    pub(super) lifecycle: Lifecycle,
    /// What the index of `ggen tenants list --state` says.
    pub(super) state: &'static str,
    /// `null` for an account that only has a ledger.
    pub(super) changed_at: Option<Timestamp>,
    pub(super) generation: u64,
    pub(super) began_at: Option<Timestamp>,
    pub(super) fsm_id: String,
    pub(super) revision: u64,
    pub(super) in_flight: u64,
    /// That may run at one time: as far as it is scaled, within what its plans allow.
    pub(super) in_flight_action_limit: u64,
    /// That its plans allow at one time.
    pub(super) concurrent_actions: u64,
    /// `null` when SQS did not say, or there is no queue.
    pub(super) backlog: Option<scale::Backlog>,
    pub(super) scale: Scale,
    pub(super) lease_until: Option<Timestamp>,
    pub(super) actions_completed: u64,
    pub(super) actions_failed: u64,
    pub(super) entitlements: Vec<EntitlementView>,
    pub(super) provisioning: Option<ProvisioningView>,
    pub(super) waiting_events: Vec<WaitingEvent>,
    /// The latest first.
    pub(super) cancellations: Vec<Cancellation>,
    pub(super) isolation: &'static str,
    pub(super) tables: Option<Tables>,
    /// `null` when there are none: the tenant is not there yet, or no more.
    pub(super) queues: Option<Queues>,
    pub(super) ledger: Ledger,
    /// The last ones, in order.
    pub(super) receipts: Vec<Value>,
}

/// A time as receipts write it: to the millisecond, always with three digits.
fn as_in_receipts<S: serde::Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(&format_args!("{at:.3}")),
        None => serializer.serialize_none(),
    }
}

impl TenantView {
    pub(super) fn of(
        account: &Account,
        account_id: &AccountId,
        receipts: Vec<Value>,
        now: Timestamp,
    ) -> Self {
        let known = account.tenant.as_ref();
        let nobody = Tenant::absent(account_id.clone(), now);
        let tenant = known.unwrap_or(&nobody);
        let mut cancellations: Vec<_> = tenant
            .tombstones
            .iter()
            .map(|(id, order)| Cancellation {
                entitlement_id: id.map(ToString::to_string),
                version: order.version,
                at: order.at,
            })
            .collect();
        cancellations.sort_by_key(|cancellation| Reverse(cancellation.at));
        let head = &account.head;
        Self {
            account_id: tenant.account_id.clone(),
            lifecycle: tenant.lifecycle,
            state: tenant.index_state(),
            changed_at: known.map(|tenant| tenant.changed_at),
            generation: tenant.generation,
            began_at: known.map(|tenant| tenant.began_at),
            fsm_id: tenant.fsm_id.clone(),
            revision: tenant.revision,
            in_flight: tenant.in_flight,
            in_flight_action_limit: tenant.in_flight_action_limit(),
            concurrent_actions: tenant.concurrent_actions(),
            backlog: None,
            scale: tenant.scale.clone(),
            lease_until: tenant.lease_until,
            actions_completed: tenant.actions_completed,
            actions_failed: tenant.actions_failed,
            entitlements: held(tenant, now),
            provisioning: tenant.provisioning.as_ref().map(making),
            waiting_events: tenant.deferred.iter().map(waiting).collect(),
            cancellations,
            isolation: isolation(tenant),
            tables: tenant.tables.clone(),
            queues: queues(tenant),
            ledger: Ledger {
                size: head.size,
                last_hash: head.last_hash.clone(),
                timestamp: (head.size > 0).then_some(head.timestamp),
            },
            receipts,
        }
    }

    /// What the queue's lag comes to, once it is known.
    pub(super) fn backlog_of(&self, tenant: Option<&Tenant>, now: Timestamp) -> Option<scale::Backlog> {
        let lag = self.queues.as_ref()?.signals.lag.as_ref()?;
        let queue = scale::Queue {
            visible: lag.waiting,
            hidden: lag.in_flight,
            delayed: lag.delayed,
        };
        Some(scale::backlog(tenant?, queue, now))
    }
}

fn held(tenant: &Tenant, now: Timestamp) -> Vec<EntitlementView> {
    let month = month_of(now);
    let one = |(id, held): (&EntitlementId, &Entitlement)| {
        EntitlementView {
            entitlement_id: id.to_string(),
            sku_id: held.sku_id.to_string(),
            plan_type: held.plan_type.to_string(),
            region: held.region.clone(),
            standing: held.standing,
            policy: held.policy.clone(),
            quota: held.quota,
            in_flight: held.in_flight,
            // What was used of another month is no longer counted.
            month_actions: if held.month == month {
                held.month_actions
            } else {
                0
            },
            month: month.clone(),
            granted_at: held.granted_at,
            expires_at: held.expires_at,
            last_event: held.order,
        }
    };
    tenant.entitlements.iter().map(one).collect()
}

fn making(saga: &Provisioning) -> ProvisioningView {
    ProvisioningView {
        entitlement_id: saga.entitlement_id.to_string(),
        sku_id: saga.entitlement.sku_id.to_string(),
        plan_type: saga.entitlement.plan_type.to_string(),
        new_tenant: saga.new_tenant,
        dedicated: saga.dedicated,
        began_at: saga.began_at,
        attempts: saga.attempts,
        failure: saga.failure.clone(),
        delivery: Delivery {
            provider: saga.asked.provider.clone(),
            delivery_id: saga.asked.delivery_id.clone(),
            received_at: saga.received_at,
        },
    }
}

fn waiting(deferred: &Deferred) -> WaitingEvent {
    WaitingEvent {
        event: deferred.event.change.name(),
        entitlement_id: deferred.event.entitlement_id.as_ref().map(ToString::to_string),
        product: product(&deferred.event),
        due_at: deferred.due_at,
        attempts: deferred.attempts,
        delivery: Delivery {
            provider: deferred.asked.provider.clone(),
            delivery_id: deferred.asked.delivery_id.clone(),
            received_at: deferred.received_at,
        },
    }
}

/// What an event is about, as far as its sender says.
fn product(event: &EntitlementEvent) -> Option<String> {
    let plan = |plan: &PlanReference| match plan {
        PlanReference::Canonical { sku_id, .. } => sku_id.to_string(),
        PlanReference::Provider { provider, plan_id } => format!("plan {plan_id} of {provider}"),
    };
    event.product.as_ref().map(|product| match product {
        ProductReference::Sku(sku_id) => sku_id.to_string(),
        ProductReference::Plan(reference) => plan(reference),
    })
}

/// The queues of a tenant that has some; where they once were is still on record when it is gone.
fn queues(tenant: &Tenant) -> Option<Queues> {
    let resources = &tenant.resources;
    let there = match tenant.lifecycle {
        Lifecycle::Active | Lifecycle::Decommissioning => true,
        Lifecycle::Absent | Lifecycle::Provisioning | Lifecycle::Decommissioned => false,
    };
    there.then(|| Queues {
        signals: Queue {
            name: resources.queue.clone(),
            url: resources.queue_url.clone(),
            lag: None,
        },
        dead_letters: Queue {
            name: names::dead_letter_queue_name(&resources.queue),
            url: resources.dead_letter_queue_url.clone(),
            lag: None,
        },
        mapping_id: resources.mapping_id.clone(),
    })
}
