//! An event about an entitlement, from whoever brought it: look up, decide, commit, answer.
//!
//! Shared by the functions that take webhooks. What needs resources is only begun here: provisioning is `entitlement`'s.

use domain::account::{AccountId, SkuId};
use domain::entitlement::Offer;
use domain::entitlement::decide::Surroundings;
use domain::names::{LedgerId, Partition};
use domain::operations::apply_event::{
    self, Applied, ApplyError, LookedUp, Task, apply_event, ignored, leaving, pace_of, resends,
};
use domain::operations::end_expired::end_expired;
use domain::provisioning::DeliveryRef;
use domain::tenant::{IllegalTransition, Pace};
use domain::transaction::{Account, DeliveryRecord, Keys};
use domain::webhook::event::{Change, EntitlementEvent, PlanReference, ProductReference};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::receipt::Draft;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::error;
use uuid::Uuid;

use crate::http::Problem;
use crate::queues::Messages;
use crate::registry::{Registry, RegistryError};
use crate::store::{Store, StoreError};
use crate::webhooks::not_stored;

/// What the decommission queue carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecommissionOrder {
    pub account_id: AccountId,
    /// Which generation of it: an order that comes late must not touch the next one.
    pub generation: u64,
    /// When the marketplace's word came.
    pub requested_at: Timestamp,
}

/// What came of a delivery that changed nothing and was to be decided anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Retried {
    /// What its sender would be answered now.
    Answered { status: u16, receipt: Value },
    /// There is nothing to decide.
    Refused { refused: String },
}

/// What became of a task.
#[derive(Debug)]
pub enum TaskOutcome {
    /// Done, ignored, refused or kept for later.
    Answered {
        record: DeliveryRecord,
        /// When what may run at once changed: the id of the tenant's mapping, and its pace now.
        pace: Option<(String, Pace)>,
    },
    /// Something has to be made: the account with the intent. `fresh` when it was recorded just now.
    Begun {
        account: Box<Account>,
        /// Whether nobody can have begun to make it.
        fresh: bool,
    },
    /// A task that waits still waits, or somebody else was first.
    Waits,
}

/// Why an event stops.
#[derive(Debug, thiserror::Error)]
enum EventError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
}

impl From<EventError> for Problem {
    fn from(error: EventError) -> Self {
        match error {
            EventError::Store(e) => not_stored(&e),
            EventError::Apply(ApplyError::Busy { reason }) => Self::unavailable(reason),
            EventError::Illegal(e) => Self::unavailable(e.to_string()),
            EventError::Apply(reused @ ApplyError::DeliveryReused { .. }) => {
                Self::new(409, "Delivery id reused", reused.to_string())
            }
        }
    }
}

/// Carries out events.
pub struct Entitlements {
    pub store: Store,
    pub registry: Registry,
    messages: Messages,
    decommission_queue: String,
    queue_prefix: String,
    tenants_table: String,
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
    pub async fn take(&self, signer: &Signer, task: &Task, now: Timestamp) -> Result<TaskOutcome, Problem> {
        let looked_up = self.look_up(task).await?;
        let partition = Partition::of(&task.event.account_id);
        let keys = Keys {
            delivery: Some(task.asked.key()),
            ..Keys::default()
        };
        let receipt_id = Uuid::now_v7();
        // The time of an event is when it came, however often it is decided.
        let apply = |account: &Account, _| {
            let applied = apply_event(account, task, &looked_up, self.around(), receipt_id, now)?;
            Ok::<_, EventError>(applied)
        };
        let (committed, applied) = self
            .store
            .transact(signer, &partition, &keys, None, apply)
            .await?;
        let leaving = committed.account.tenant.as_ref().and_then(leaving);
        Ok(match applied {
            Applied::AnsweredBefore(record) => {
                // The order of the decommissioning may have been lost to a crash, and a second one is harmless.
                if let Some(generation) = leaving {
                    self.order(&task.event.account_id, generation, now).await?;
                }
                TaskOutcome::Answered { record, pace: None }
            }
            Applied::Answered { status, pace } => {
                if let Some(generation) = leaving {
                    let ordered = self.order(&task.event.account_id, generation, now).await;
                    // It is committed: where nobody posts it again, the sweep orders it.
                    if resends(&task.asked.provider) && !task.waited {
                        ordered?;
                    }
                }
                let record = DeliveryRecord::of(&task.asked, status, &committed.sealed);
                TaskOutcome::Answered { record, pace }
            }
            Applied::Begun => TaskOutcome::Begun {
                account: Box::new(committed.account),
                fresh: true,
            },
            Applied::UnderWay => TaskOutcome::Begun {
                account: Box::new(committed.account),
                fresh: false,
            },
            Applied::Waits => TaskOutcome::Waits,
        })
    }

    /// What the registry says of the event's product and plan. Where it does not answer, who posts again is asked to.
    async fn look_up(&self, task: &Task) -> Result<LookedUp, Problem> {
        let error = match self.find(&task.event).await {
            Ok((product, offer)) => {
                return Ok(LookedUp {
                    product,
                    offer,
                    unknown: None,
                });
            }
            Err(e) => e,
        };
        error!(error = %error, "the policy registry does not tell the plan");
        if error.is_lasting() {
            // As good as no policy, until somebody deploys one.
            return Ok(LookedUp::default());
        }
        if task.waited || resends(&task.asked.provider) {
            let detail = "the policy registry is not available; retry later";
            return Err(Problem::unavailable(detail));
        }
        // Its sender does not post it again: it is kept, and looked up when it is carried out.
        Ok(LookedUp {
            unknown: Some("the policy registry is not available"),
            ..LookedUp::default()
        })
    }

    /// What the registry says of the product and the plan an event names.
    async fn find(&self, event: &EntitlementEvent) -> Result<(Option<SkuId>, Option<Offer>), RegistryError> {
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
    pub async fn postpone(&self, signer: &Signer, task: &Task, problem: &Problem) -> Result<(), StoreError> {
        let partition = Partition::of(&task.event.account_id);
        let receipt_id = Uuid::now_v7();
        let postpone = |account: &Account, now| {
            let plan = apply_event::postpone(account, task, &problem.detail, receipt_id, now);
            Ok::<_, StoreError>((plan, ()))
        };
        let keys = Keys {
            delivery: Some(task.asked.key()),
            ..Keys::default()
        };
        self.store
            .transact(signer, &partition, &keys, None, postpone)
            .await?;
        Ok(())
    }

    /// Ends what expired a while ago, and tells how the account's mapping has to change then, if it has.
    ///
    /// # Errors
    /// A [`Problem`] when something we depend on does not answer: the sweep asks again.
    pub async fn end_expired(
        &self,
        signer: &Signer,
        account_id: &AccountId,
    ) -> Result<Option<(String, Pace)>, Problem> {
        let partition = Partition::of(account_id);
        let mut pace = None;
        loop {
            let receipt_ids = [Uuid::now_v7(), Uuid::now_v7()];
            let end = |account: &Account, now| {
                let (plan, ended) = end_expired(account, receipt_ids, now)?;
                let pace = pace_of(account.tenant.as_ref(), plan.tenant.as_ref());
                Ok::<_, EventError>((plan, ended.then_some(pace)))
            };
            let (committed, ended) = self
                .store
                .transact(signer, &partition, &Keys::default(), None, end)
                .await?;
            let Some(changed) = ended else { return Ok(pace) };
            pace = changed.or(pace);
            if let Some(generation) = committed.account.tenant.as_ref().and_then(leaving) {
                self.order(account_id, generation, Timestamp::now()).await?;
            }
        }
    }

    /// Puts on record that a delivery changed nothing, once; in the control plane's own ledger when it names no account.
    ///
    /// # Errors
    /// A [`Problem`] when the delivery id was used for another body, or the tables do not answer.
    pub async fn ignore(
        &self,
        signer: &Signer,
        asked: &DeliveryRef,
        account_id: Option<AccountId>,
        reason: String,
        now: Timestamp,
    ) -> Result<DeliveryRecord, Problem> {
        let ledger = account_id.map_or(LedgerId::System, LedgerId::Customer);
        let account = ledger.ledger().account_id().to_owned();
        let draft = Draft::new(Uuid::now_v7(), &account, ignored(reason, asked), now);
        let keys = Keys {
            delivery: Some(asked.key()),
            ..Keys::default()
        };
        let ignore = |account: &Account, _| Ok::<_, EventError>(apply_event::ignore(account, asked, &draft)?);
        let (committed, before) = self
            .store
            .transact(signer, &ledger.partition(), &keys, None, ignore)
            .await?;
        Ok(before.unwrap_or_else(|| DeliveryRecord::of(asked, 200, &committed.sealed)))
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
        let order = DecommissionOrder {
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
