//! The start of a decommissioning, shared by every webhook that can ask for one.

use domain::account::AccountId;
use domain::names;
use domain::tenant::{Lifecycle, TenantEvent};
use domain::webhook::DeliveryId;
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::receipt::{Draft, Payload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::http::Problem;
use crate::queues::Messages;
use crate::store::{Account, DeliveryPlan, DeliveryRecord, Keys, Plan, Store, StoreError};
use crate::webhooks::{answered_before, not_stored};

/// What the decommission queue carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Whose tenant goes.
    pub account_id: AccountId,
    /// Which generation of it: an order that comes late must not touch the next one.
    pub generation: u64,
    /// When the marketplace's word came.
    pub requested_at: Timestamp,
}

enum StartError {
    Store(StoreError),
    Refused(Problem),
}

impl From<StoreError> for StartError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// Commits `decommission_start`, then orders the rest through the queue. The governor refuses new signals from here on.
///
/// A cancellation of a tenant that is not active changes nothing and leaves `webhook_ignored`.
///
/// # Errors
/// A [`Problem`] when the delivery id was used for another body, or nothing could be stored or ordered.
pub async fn start(
    store: &Store,
    signer: &Signer,
    messages: &Messages,
    queue_url: &str,
    account_id: &AccountId,
    delivery: &DeliveryId,
    now: Timestamp,
) -> Result<DeliveryRecord, Problem> {
    let partition = names::partition_key(account_id);
    let keys = Keys {
        delivery: Some(delivery.key()),
        ..Keys::default()
    };
    let receipt_id = Uuid::now_v7();
    let mut before = None;
    let committed = store
        .transact(signer, &partition, &keys, None, |account: &Account| {
            before = answered_before(delivery, account.delivery.as_ref()).map_err(StartError::Refused)?;
            Ok::<_, StartError>(match before {
                Some(_) => Plan::default(),
                None => plan(account, account_id, delivery, now, receipt_id),
            })
        })
        .await
        .map_err(|e| match e {
            StartError::Store(e) => not_stored(&e),
            StartError::Refused(problem) => problem,
        })?;
    // Also when the delivery was answered before: its order may have been lost to a crash, and a second one is harmless.
    if let Some(tenant) = committed
        .account
        .tenant
        .filter(|t| t.lifecycle == Lifecycle::Decommissioning)
    {
        let order = Order {
            account_id: account_id.clone(),
            generation: tenant.generation,
            requested_at: now,
        };
        let sent = match serde_json::to_string(&order) {
            Ok(body) => messages.send(queue_url, body).await.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(error) = sent {
            tracing::error!(
                account = account_id.as_str(),
                error,
                "decommissioning not ordered"
            );
            return Err(Problem::new(
                503,
                "Not available",
                "decommissioning could not be ordered; retry later",
            ));
        }
    }
    Ok(before.unwrap_or_else(|| DeliveryRecord {
        key: delivery.key(),
        body_sha256: delivery.body_sha256.clone(),
        status: 200,
        receipt: committed
            .sealed
            .first()
            .map(|s| s.line.clone())
            .unwrap_or_default(),
    }))
}

fn plan(
    account: &Account,
    account_id: &AccountId,
    delivery: &DeliveryId,
    now: Timestamp,
    receipt_id: Uuid,
) -> Plan {
    let after = account
        .tenant
        .as_ref()
        .and_then(|tenant| tenant.after(TenantEvent::Cancel).ok());
    let state = account
        .tenant
        .as_ref()
        .map_or(Lifecycle::Absent, |tenant| tenant.lifecycle);
    let payload = match &after {
        Some(tenant) => Payload::DecommissionStart {
            sku_id: tenant.sku_id.as_str().to_owned(),
            in_flight_actions: tenant.in_flight,
        },
        None => Payload::WebhookIgnored {
            reason: format!("cancellation of a tenant that is {}", state.name()),
        },
    };
    let draft = Draft {
        receipt_id,
        account_id: account_id.as_str().to_owned(),
        occurred_at: now,
        duration_ms: 0,
        policy_hash: None,
        payload,
    };
    Plan {
        tenant: after,
        drafts: vec![draft],
        delivery: Some(DeliveryPlan {
            key: delivery.key(),
            body_sha256: delivery.body_sha256.clone(),
            status: 200,
            draft: 0,
        }),
        ..Plan::default()
    }
}
