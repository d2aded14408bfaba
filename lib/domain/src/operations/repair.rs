//! Notes what was missing of an active tenant and was made again: somebody had deleted it.

use jiff::Timestamp;
use receipts::receipt::{Draft, Payload};
use uuid::Uuid;

use crate::tenant::{Lifecycle, Tenant, TenantResources};
use crate::transaction::{Account, Plan};

/// Puts each thing that was made again on record, with the tenant's resources as they are now, unless the tenant that was
/// `found` lacking them is gone. Each comes with the id of its receipt.
#[must_use]
pub fn repair(
    account: &Account,
    found: &Tenant,
    resources: &TenantResources,
    made_again: &[(&'static str, Uuid)],
    now: Timestamp,
) -> Plan {
    let same =
        |tenant: &&Tenant| tenant.lifecycle == Lifecycle::Active && tenant.generation == found.generation;
    let Some(tenant) = account.tenant.as_ref().filter(same) else {
        return Plan::default();
    };
    let draft = |(resource, receipt_id): &(&str, Uuid)| {
        let payload = Payload::ResourceRepaired {
            resource: format!("{resource} {}", tenant.fsm_id),
            finding: "missing".to_owned(),
            repair: "made again".to_owned(),
        };
        Draft::new(*receipt_id, tenant.account_id.as_str(), payload, now)
    };
    Plan {
        drafts: made_again.iter().map(draft).collect(),
        ..Plan::tenant(Some(Tenant {
            resources: resources.clone(),
            ..tenant.written()
        }))
    }
}
