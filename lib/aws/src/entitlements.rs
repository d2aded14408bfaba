//! An event about an entitlement, from whoever brought it: look up, decide, commit, answer.
//!
//! Shared by the functions that take webhooks. What needs resources is only begun here: provisioning is `entitlement`'s.

use domain::account::{AccountId, SkuId};
use domain::entitlement::Offer;
use domain::entitlement::decide::{DEFERRED_SECONDS, Decision, Heard, Surroundings, decide, keep};
use domain::names::{self, LedgerId};
use domain::provisioning::Asked;
use domain::tenant::{Deferred, Lifecycle, Pace, Tenant};
use domain::webhook::event::{Change, EntitlementEvent, PlanReference, ProductReference};
use domain::webhook::provider::PROVIDERS;
use jiff::{SignedDuration, Timestamp};
use receipts::key::Signer;
use receipts::ledger::Sealed;
use receipts::receipt::{Draft, Payload};
use serde::{Deserialize, Serialize};
use tracing::error;
use uuid::Uuid;

use crate::http::Problem;
use crate::queues::Messages;
use crate::registry::{Registry, RegistryError};
use crate::store::{Store, StoreError};
use crate::webhooks::{answered_before, not_stored};
use domain::transaction::{Account, DeliveryPlan, DeliveryRecord, Keys, Plan};

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

/// An event to be carried out.
#[derive(Debug, Clone)]
pub struct Task {
    /// What happened.
    pub event: EntitlementEvent,
    /// The delivery that brought it.
    pub asked: Asked,
    /// When it came.
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
    pub fn delivered(event: EntitlementEvent, asked: Asked, now: Timestamp) -> Self {
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

    fn heard<'a>(&'a self, product: Option<&'a SkuId>, offer: Option<&'a Offer>) -> Heard<'a> {
        Heard {
            event: &self.event,
            asked: &self.asked,
            received_at: self.received_at,
            due_since: self.due_since,
            attempts: self.attempts,
            waited: self.waited,
            product,
            offer,
        }
    }
}

/// What became of a task.
#[derive(Debug)]
pub enum Taken {
    /// Done, ignored, refused or kept for later.
    Answered {
        /// The answer.
        record: DeliveryRecord,
        /// When what may run at once changed: the id of the tenant's mapping, and its pace now.
        pace: Option<(String, Pace)>,
    },
    /// Something has to be made: the account with the intent. `fresh` when it was recorded just now.
    Begun {
        /// The account as it now is.
        account: Box<Account>,
        /// Whether nobody can have begun to make it.
        fresh: bool,
    },
    /// A task that waits still waits, or somebody else was first.
    Waits,
}

/// Why a plan stops.
enum Stop {
    Store(StoreError),
    Problem(Problem),
    Answered(DeliveryRecord, Option<u64>),
}

impl From<StoreError> for Stop {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

/// Carries out events.
pub struct Entitlements {
    /// The tables.
    pub store: Store,
    /// The policies.
    pub registry: Registry,
    messages: Messages,
    decommission_queue: String,
    queue_prefix: String,
    tenants_table: String,
}

/// How a plan ends, beside what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answer(u16),
    Begun,
    Resume,
    Waits,
}

impl Entitlements {
    /// Over these tables and policies, for a stack whose tenants' names begin with `queue_prefix`.
    #[must_use]
    pub fn new(
        store: Store,
        registry: Registry,
        messages: Messages,
        decommission_queue: String,
        queue_prefix: String,
        tenants_table: String,
    ) -> Self {
        Self {
            store,
            registry,
            messages,
            decommission_queue,
            queue_prefix,
            tenants_table,
        }
    }

    /// What of the stack stands in names and receipts.
    #[must_use]
    pub fn around(&self) -> Surroundings<'_> {
        Surroundings {
            queue_prefix: &self.queue_prefix,
            tenants_table: &self.tenants_table,
        }
    }

    /// Carries out a task as far as commits alone can do it.
    ///
    /// # Errors
    /// A [`Problem`] when the delivery id was used for another body, or something we depend on does not answer.
    pub async fn take(&self, signer: &Signer, task: &Task, now: Timestamp) -> Result<Taken, Problem> {
        let looked_up = self.look_up(&task.event).await;
        let unknown = match &looked_up {
            Ok(_) => None,
            Err(e) => {
                error!(error = %e, "the policy registry does not tell the plan");
                if e.is_lasting() {
                    // As good as no policy, until somebody deploys one.
                    None
                } else if task.waited || resends(&task.asked.provider) {
                    let detail = "the policy registry is not available; retry later";
                    return Err(Problem::unavailable(detail));
                } else {
                    // Its sender does not post it again: it is kept, and looked up when it is carried out.
                    Some("the policy registry is not available")
                }
            }
        };
        let (product, offer) = looked_up.unwrap_or_default();
        let heard = task.heard(product.as_ref(), offer.as_ref());
        let partition = names::partition_key(&task.event.account_id);
        let keys = Keys {
            delivery: Some(task.asked.key()),
            ..Keys::default()
        };
        let receipt_id = Uuid::now_v7();
        let mut end = End::Waits;
        let mut before = None;
        let plan = |account: &Account| {
            before = account.tenant.as_ref().map(Tenant::pace);
            let (next, plan) = self.plan(account, task, &heard, unknown, receipt_id, now)?;
            end = next;
            Ok::<_, Stop>(plan)
        };
        let committed = match self.store.transact(signer, &partition, &keys, None, plan).await {
            Ok(committed) => committed,
            Err(Stop::Store(e)) => return Err(not_stored(&e)),
            Err(Stop::Problem(problem)) => return Err(problem),
            Err(Stop::Answered(record, leaving)) => {
                // The order of the decommissioning may have been lost to a crash, and a second one is harmless.
                if let Some(generation) = leaving {
                    self.order(&task.event.account_id, generation, now).await?;
                }
                return Ok(Taken::Answered { record, pace: None });
            }
        };
        match end {
            End::Answer(status) => {
                if let Some(generation) = committed.account.tenant.as_ref().and_then(leaving) {
                    let ordered = self.order(&task.event.account_id, generation, now).await;
                    // It is committed: where nobody posts it again, the sweep orders it.
                    if resends(&task.asked.provider) && !task.waited {
                        ordered?;
                    }
                }
                Ok(Taken::Answered {
                    record: record(&task.asked, status, &committed.sealed),
                    pace: pace_of(before, committed.account.tenant.as_ref()),
                })
            }
            End::Begun | End::Resume => Ok(Taken::Begun {
                account: Box::new(committed.account),
                fresh: end == End::Begun,
            }),
            End::Waits => Ok(Taken::Waits),
        }
    }

    fn plan(
        &self,
        account: &Account,
        task: &Task,
        heard: &Heard<'_>,
        unknown: Option<&str>,
        receipt_id: Uuid,
        now: Timestamp,
    ) -> Result<(End, Plan), Stop> {
        let mut tenant = account.tenant.clone();
        if task.waited {
            let Some((_, rest)) = tenant
                .as_ref()
                .and_then(|tenant| tenant.without_deferred(&task.asked))
            else {
                return Ok((End::Waits, Plan::default()));
            };
            tenant = Some(rest);
        } else if let Some(record) =
            answered_before(&task.asked, account.delivery.as_ref()).map_err(Stop::Problem)?
        {
            return Err(Stop::Answered(record, tenant.as_ref().and_then(leaving)));
        }
        // Of a task that waited, the tenant is written without it whatever is decided.
        let without = || {
            task.waited
                .then(|| tenant.as_ref().map(Tenant::written))
                .flatten()
        };
        let answer = |status: u16, tenant: Option<Tenant>, payload: Payload, policy_hash: Option<String>| {
            let delivery = (!task.waited).then(|| delivery_plan(&task.asked, status));
            let plan = Plan {
                tenant,
                drafts: vec![Draft {
                    policy_hash,
                    ..draft(receipt_id, task.event.account_id.as_str(), payload, now)
                }],
                delivery,
                ..Plan::default()
            };
            (End::Answer(status), plan)
        };
        let decision = match unknown {
            None => decide(tenant.as_ref(), heard, self.around(), now),
            Some(reason) => keep(tenant.as_ref(), heard, self.around(), now, reason),
        };
        let refused =
            |step: &str, reason: String| failed_payload(&task.event, heard, step, reason, Vec::new());
        Ok(match decision {
            Decision::Ignore { reason, tenant } => {
                let payload = ignored(reason, &task.asked);
                answer(200, tenant.map(|tenant| *tenant).or_else(without), payload, None)
            }
            Decision::Refuse { step, reason } => answer(422, without(), refused(step, reason), None),
            Decision::Defer { .. } if task.waited => {
                if !expired(task.due_since, now) {
                    return Ok((End::Waits, Plan::default()));
                }
                let reason = "it waited for seven days, and could not be carried out".to_owned();
                answer(422, without(), refused("deferred", reason), None)
            }
            Decision::Defer { tenant, payload } => answer(202, Some(*tenant), payload, None),
            Decision::Busy { reason } => return Err(Stop::Problem(Problem::unavailable(reason))),
            Decision::Resume => (End::Resume, Plan::default()),
            Decision::Begin(tenant) => {
                // Whose the queue is must be known before there is one.
                let queue = Some(tenant.fsm_id.clone());
                let plan = Plan {
                    tenant: Some(*tenant),
                    queue,
                    ..Plan::default()
                };
                (End::Begun, plan)
            }
            Decision::Commit {
                tenant,
                payload,
                policy_hash,
            } => answer(200, Some(*tenant), payload, policy_hash),
        })
    }

    /// What the registry says of the product and the plan an event names.
    async fn look_up(
        &self,
        event: &EntitlementEvent,
    ) -> Result<(Option<SkuId>, Option<Offer>), RegistryError> {
        match &event.change {
            Change::Granted { plan, .. } | Change::PlanChanged { plan } => {
                let offer = self.registry.offer(plan).await?;
                let named = match plan {
                    PlanReference::Canonical { sku_id, .. } => Some(sku_id.clone()),
                    PlanReference::Provider { .. } => None,
                };
                Ok((
                    named.or_else(|| offer.as_ref().map(|offer| offer.sku_id.clone())),
                    offer,
                ))
            }
            Change::Suspended | Change::Reinstated | Change::Renewed { .. } | Change::Cancelled => {
                let product = match &event.product {
                    None => None,
                    Some(ProductReference::Sku(sku_id)) => Some(sku_id.clone()),
                    Some(ProductReference::Plan(plan)) => self.registry.product(plan).await?,
                };
                Ok((product, None))
            }
        }
    }

    /// Puts a waiting event that could not be carried out back in line: later each time, and for seven days at the most.
    ///
    /// # Errors
    /// [`StoreError`] when the tables do not answer: it then stays where it is.
    pub async fn postpone(
        &self,
        signer: &Signer,
        task: &Task,
        problem: &Problem,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let partition = names::partition_key(&task.event.account_id);
        let receipt_id = Uuid::now_v7();
        let plan = |account: &Account| {
            let tenant = account.tenant.as_ref();
            let Some((waiting, mut rest)) = tenant.and_then(|tenant| tenant.without_deferred(&task.asked))
            else {
                return Ok::<_, StoreError>(Plan::default());
            };
            let mut drafts = Vec::new();
            if expired(waiting.due_since, now) {
                let payload = failed_payload(
                    &task.event,
                    &task.heard(None, None),
                    "deferred",
                    problem.detail.clone(),
                    Vec::new(),
                );
                drafts.push(draft(receipt_id, task.event.account_id.as_str(), payload, now));
            } else {
                let attempts = waiting.attempts.saturating_add(1);
                rest.deferred.push(Deferred {
                    attempts,
                    due_at: now.saturating_add(retry_in(attempts)).unwrap_or(now),
                    ..waiting
                });
            }
            Ok(Plan {
                tenant: Some(rest.written()),
                drafts,
                ..Plan::default()
            })
        };
        self.store
            .transact(signer, &partition, &Keys::default(), None, plan)
            .await?;
        Ok(())
    }

    /// Puts on record that a delivery changed nothing, once; in the control plane's own ledger when it names no account.
    ///
    /// # Errors
    /// A [`Problem`] when the delivery id was used for another body, or the tables do not answer.
    pub async fn ignore(
        &self,
        signer: &Signer,
        asked: &Asked,
        account_id: Option<AccountId>,
        reason: String,
        now: Timestamp,
    ) -> Result<DeliveryRecord, Problem> {
        let ledger = account_id.map_or(LedgerId::System, LedgerId::Customer);
        let account = ledger.ledger().account_id().to_owned();
        let draft = draft(Uuid::now_v7(), &account, ignored(reason, asked), now);
        let keys = Keys {
            delivery: Some(asked.key()),
            ..Keys::default()
        };
        let plan = |account: &Account| {
            match answered_before(asked, account.delivery.as_ref()) {
                Ok(None) => {}
                Ok(Some(record)) => return Err(Stop::Answered(record, None)),
                Err(problem) => return Err(Stop::Problem(problem)),
            }
            Ok(Plan {
                drafts: vec![draft.clone()],
                delivery: Some(delivery_plan(asked, 200)),
                ..Plan::default()
            })
        };
        match self
            .store
            .transact(signer, &ledger.partition(), &keys, None, plan)
            .await
        {
            Ok(committed) => Ok(record(asked, 200, &committed.sealed)),
            Err(Stop::Answered(record, _)) => Ok(record),
            Err(Stop::Problem(problem)) => Err(problem),
            Err(Stop::Store(e)) => Err(not_stored(&e)),
        }
    }

    /// Orders the decommissioning of a generation through its queue.
    ///
    /// # Errors
    /// A [`Problem`] when the queue does not take it: what was committed stays, and the next delivery or the sweep orders
    /// again.
    pub async fn order(
        &self,
        account_id: &AccountId,
        generation: u64,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let order = Order {
            account_id: account_id.clone(),
            generation,
            requested_at: now,
        };
        let sent = match serde_json::to_string(&order) {
            Ok(body) => self
                .messages
                .send(&self.decommission_queue, body)
                .await
                .map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        sent.map_err(|error| {
            error!(
                account = account_id.as_str(),
                error, "decommissioning not ordered"
            );
            Problem::unavailable("decommissioning could not be ordered; retry later")
        })
    }
}

/// How a tenant's mapping has to change, if it has.
fn pace_of(before: Option<Pace>, tenant: Option<&Tenant>) -> Option<(String, Pace)> {
    let tenant = tenant.filter(|tenant| tenant.lifecycle == Lifecycle::Active)?;
    let now = tenant.pace();
    (before != Some(now)).then(|| (tenant.resources.mapping_id.clone(), now))
}

/// The receipt of what happened just now.
fn draft(receipt_id: Uuid, account_id: &str, payload: Payload, now: Timestamp) -> Draft {
    Draft {
        receipt_id,
        account_id: account_id.to_owned(),
        occurred_at: now,
        duration_ms: 0,
        policy_hash: None,
        payload,
    }
}

/// The generation that is to be decommissioned.
fn leaving(tenant: &Tenant) -> Option<u64> {
    (tenant.lifecycle == Lifecycle::Decommissioning).then_some(tenant.generation)
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
    PROVIDERS
        .iter()
        .any(|known| known.name == provider && known.resends)
}

/// Whether an event has waited for as long as any is kept, since it could first be carried out.
#[must_use]
pub fn expired(due_since: Timestamp, now: Timestamp) -> bool {
    now.duration_since(due_since) >= SignedDuration::from_secs(DEFERRED_SECONDS)
}

/// The receipt of a delivery that changed nothing.
#[must_use]
pub fn ignored(reason: String, asked: &Asked) -> Payload {
    Payload::WebhookIgnored {
        reason,
        provider: Some(asked.provider.clone()),
        delivery_id: Some(names::printable(&asked.delivery_id, 128)),
    }
}

/// The receipt of an event that could not be carried out.
#[must_use]
pub fn failed_payload(
    event: &EntitlementEvent,
    heard: &Heard<'_>,
    step: &str,
    reason: String,
    undone: Vec<String>,
) -> Payload {
    let (sku_id, plan_type) = match (heard.offer, &event.change) {
        (Some(offer), _) => (
            offer.sku_id.as_str().to_owned(),
            offer.plan_type.as_str().to_owned(),
        ),
        (None, Change::Granted { plan, .. } | Change::PlanChanged { plan }) => match plan {
            PlanReference::Canonical { sku_id, plan_type } => {
                (sku_id.as_str().to_owned(), plan_type.as_str().to_owned())
            }
            PlanReference::Provider { provider, plan_id } => {
                (provider.clone(), names::printable(plan_id, 128))
            }
        },
        (None, _) => (
            heard
                .product
                .map(|sku| sku.as_str().to_owned())
                .unwrap_or_default(),
            String::new(),
        ),
    };
    Payload::EntitlementFailed {
        entitlement_id: event.entitlement_id.as_ref().map(|id| id.as_str().to_owned()),
        sku_id,
        plan_type,
        reason,
        step: step.to_owned(),
        undone,
    }
}

/// The answer to a delivery, kept with the plan's first receipt.
#[must_use]
pub fn delivery_plan(asked: &Asked, status: u16) -> DeliveryPlan {
    DeliveryPlan {
        key: asked.key(),
        body_sha256: asked.body_sha256.clone(),
        status,
        draft: 0,
    }
}

/// The answer to a delivery.
#[must_use]
pub fn record(asked: &Asked, status: u16, sealed: &[Sealed]) -> DeliveryRecord {
    DeliveryRecord {
        key: asked.key(),
        body_sha256: asked.body_sha256.clone(),
        status,
        receipt: sealed.first().map(|s| s.line.clone()).unwrap_or_default(),
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
