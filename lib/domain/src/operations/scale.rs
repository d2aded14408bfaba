//! Writes what was decided about a tenant's places.

use jiff::Timestamp;
use receipts::receipt::{Concurrency, Draft};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::scale::Decision;
use crate::tenant::{Lifecycle, Tenant};
use crate::transaction::{Account, Plan};

/// The answer to an operator who sets a tenant's base.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum ScaleOutcome {
    /// The limit is as asked.
    Scaled {
        /// Before and after.
        concurrency: Concurrency,
        receipt: Value,
        /// Why the mapping is not paced yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_paced: Option<String>,
    },
    /// It was so already.
    Unchanged {
        /// Actions at one time.
        concurrency: Concurrency,
    },
    /// The plans or the budget forbid it.
    Refused {
        reason: String,
        receipt: Value,
    },
    NotFound,
    /// The tenant runs nothing.
    NotActive {
        lifecycle: Lifecycle,
    },
}

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
