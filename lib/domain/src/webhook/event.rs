//! What a marketplace tells us about a customer's entitlements, whoever said it and in whatever words.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::account::{AccountId, EntitlementId, PlanType, SkuId};

/// What a customer bought, in the words of whoever says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanReference {
    /// Our own SKU and plan.
    Canonical {
        sku_id: SkuId,
        /// The plan of the product.
        plan_type: PlanType,
    },
    /// A provider's own plan id; the registry's alias says which SKU and plan it means.
    Provider {
        /// Name of the provider.
        provider: String,
        /// The provider's id of the plan.
        plan_id: String,
    },
}

/// Which product an event is about, as far as its sender says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductReference {
    /// Our own SKU.
    Sku(SkuId),
    /// The product that a provider's plan belongs to.
    Plan(PlanReference),
}

/// What happens to an entitlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The customer subscribed.
    Granted {
        plan: PlanReference,
        region: String,
        /// When it ends unless it is renewed, where the sender says so.
        expires_at: Option<Timestamp>,
    },
    /// The customer has another plan of the same product.
    PlanChanged {
        /// The plan from now on.
        plan: PlanReference,
    },
    /// Nothing may run until the entitlement is reinstated.
    Suspended,
    /// A suspended entitlement is in force again.
    Reinstated,
    /// The entitlement goes on.
    Renewed {
        /// When it ends unless it is renewed again, where the sender says so.
        expires_at: Option<Timestamp>,
    },
    /// The customer cancelled.
    Cancelled,
}

impl Change {
    /// The name used in receipts and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Granted { .. } => "purchase",
            Self::PlanChanged { .. } => "plan change",
            Self::Suspended => "suspension",
            Self::Reinstated => "reinstatement",
            Self::Renewed { .. } => "renewal",
            Self::Cancelled => "cancellation",
        }
    }
}

/// One event about one entitlement of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntitlementEvent {
    pub account_id: AccountId,
    /// The sender's id of the agreement, where it gives one. Without it the entitlement is known by its SKU.
    pub entitlement_id: Option<EntitlementId>,
    /// The product it is about. `None` for an event that names neither product nor plan.
    pub product: Option<ProductReference>,
    /// The sender's own count of changes of this entitlement, where it keeps one.
    pub version: Option<u64>,
    /// When it takes effect, or happened, by the sender's clock.
    pub effective_at: Option<Timestamp>,
    pub change: Change,
}

/// A verified delivery, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebhookEvent {
    /// Something about an entitlement.
    Entitlement(EntitlementEvent),
    /// Nothing we act on; answered with success so that the sender does not repeat it for days.
    Ignored {
        /// Whose ledger says so; the control plane's own when no account is named.
        account_id: Option<AccountId>,
        reason: String,
    },
}

impl WebhookEvent {
    /// An event whose sender says that it never takes effect.
    pub(super) fn never(account_id: AccountId, change: &Change) -> Self {
        Self::Ignored {
            account_id: Some(account_id),
            reason: format!(
                "the {} never takes effect: its sender dates it in year 9999",
                change.name()
            ),
        }
    }
}
