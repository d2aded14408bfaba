//! Writes what was decided about a tenant's places.

use jiff::Timestamp;
use receipts::receipt::Draft;
use uuid::Uuid;

use crate::scale::Decision;
use crate::tenant::Tenant;
use crate::transaction::{Account, Plan};

/// Writes what `decide` says of the tenant as it stands, and tells it; `None` where nothing changes. `duration_ms` is how
/// long that took so far.
#[must_use]
pub fn scale(
    account: &Account,
    decide: impl Fn(&Tenant) -> Option<Decision>,
    receipt_id: Uuid,
    duration_ms: u64,
    now: Timestamp,
) -> (Plan, Option<Decision>) {
    let decided = account
        .tenant
        .as_ref()
        .and_then(|tenant| Some((tenant, decide(tenant)?)));
    let Some((tenant, decision)) = decided else {
        return (Plan::default(), None);
    };
    let draft = decision
        .payload
        .clone()
        .map(|payload| Draft::new(receipt_id, tenant.account_id.as_str(), payload, now).lasting(duration_ms));
    let changed = (decision.scale != tenant.scale).then(|| Tenant {
        scale: decision.scale.clone(),
        ..tenant.written()
    });
    let plan = Plan {
        drafts: draft.into_iter().collect(),
        ..Plan::tenant(changed)
    };
    (plan, Some(decision))
}
