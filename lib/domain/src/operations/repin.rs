//! Pins a tenant to a plan's new policy.

use jiff::Timestamp;
use receipts::receipt::{Draft, Payload};
use uuid::Uuid;

use crate::entitlement::Offer;
use crate::tenant::Tenant;
use crate::transaction::{Account, Plan};

/// The policy that a plan has from now on.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPolicy {
    /// The plan, with the policy to pin.
    pub offer: Offer,
    /// What the check against the one before said, for the receipt.
    pub compatibility_check: String,
}

/// Pins every entitlement of the plan that has another policy, and tells whether there was one. `duration_ms` is how long
/// that took so far.
#[must_use]
pub fn repin(
    account: &Account,
    policy: &NewPolicy,
    receipt_id: Uuid,
    duration_ms: u64,
    now: Timestamp,
) -> (Plan, bool) {
    let offer = &policy.offer;
    let repinned = account
        .tenant
        .as_ref()
        .and_then(|tenant| Some((tenant, tenant.repinned(offer)?)));
    let Some((before, tenant)) = repinned else {
        return (Plan::default(), false);
    };
    let payload = Payload::PolicyUpgraded {
        policy_version: offer.policy.version.clone(),
        previous_version: version_of(before, offer).unwrap_or_default(),
        governors_updated: 1,
        governors_failed: 0,
        compatibility_check: policy.compatibility_check.clone(),
    };
    let draft = Draft::new(receipt_id, tenant.account_id.as_str(), payload, now)
        .under(&offer.policy.hash)
        .lasting(duration_ms);
    let plan = Plan {
        drafts: vec![draft],
        ..Plan::tenant(Some(tenant))
    };
    (plan, true)
}

/// Version of the policy that a tenant has for a plan, when it is another one.
fn version_of(tenant: &Tenant, offer: &Offer) -> Option<String> {
    let waiting = tenant.provisioning.iter().map(|saga| &saga.entitlement);
    let mut held = tenant.entitlements.values().chain(waiting);
    let other = held.find(|e| {
        e.sku_id == offer.sku_id && e.plan_type == offer.plan_type && e.policy.hash != offer.policy.hash
    });
    other.map(|e| e.policy.version.clone())
}
