//! Sets a tenant's counters right.

use crate::action::Action;
use crate::sweep::recounted;
use crate::tenant::Tenant;
use crate::transaction::{Account, Plan};

/// Counts again, unless the tenant has changed since `read`: what was counted is then something else. Tells whether the
/// counters were wrong.
#[must_use]
pub fn recount(account: &Account, read: &Tenant, unfinished: &[Action]) -> (Plan, bool) {
    let same = account
        .tenant
        .as_ref()
        .filter(|now| now.revision == read.revision);
    let counted = same.and_then(|tenant| recounted(tenant, unfinished));
    let wrong = counted.is_some();
    (Plan::tenant(counted), wrong)
}
