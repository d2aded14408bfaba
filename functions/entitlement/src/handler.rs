//! A webhook's way: verify, parse, load, decide, commit, answer.

use std::time::Instant;

use aws::config::{self, ConfigError, Stack};
use aws::http::{self, Problem, Request};
use aws::queues::{Messages, QueueError, TenantQueues};
use aws::registry::{IndexEntry, Registry, RegistryError};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Account, DeliveryPlan, DeliveryRecord, Keys, Plan, Store, StoreError};
use aws::webhooks::{Webhooks, answered_before, not_stored};
use aws::{clients, decommission};
use aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use domain::account::AccountId;
use domain::names;
use domain::tenant::{Lifecycle, PolicyPin, Quota, Tenant, TenantEvent, TenantResources, month_of, next};
use domain::webhook::DeliveryId;
use domain::webhook::payload::{PlanReference, WebhookEvent};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::receipt::{Draft, Payload, Resources};
use serde_json::Value;
use tracing::{error, info};
use uuid::Uuid;

/// Everything `entitlement` needs, made once per process.
pub struct Entitlement {
    webhooks: Webhooks,
    store: Store,
    registry: Registry,
    queues: TenantQueues,
    messages: Messages,
    stack: Stack,
    queue_prefix: String,
    decommission_queue: String,
}

/// Why `entitlement` cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A variable is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The governor's ARN is not one.
    #[error(transparent)]
    Queues(#[from] QueueError),
}

/// One subscription, as far as it is known when provisioning begins.
struct Subscription<'a> {
    account_id: &'a AccountId,
    partition: String,
    delivery: &'a DeliveryId,
    region: &'a str,
    now: Timestamp,
    started: Instant,
}

/// What a plan reference turned out to be.
enum PlanFound {
    Known(IndexEntry),
    Unknown { sku_id: String, plan_type: String },
}

enum Stop {
    Store(StoreError),
    Problem(Problem),
    Answered(DeliveryRecord),
}

impl From<StoreError> for Stop {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Stop {
    fn answer(self) -> Result<DeliveryRecord, Problem> {
        match self {
            Self::Store(e) => Err(not_stored(&e)),
            Self::Problem(problem) => Err(problem),
            Self::Answered(record) => Ok(record),
        }
    }
}

fn unavailable(what: &'static str, error: &dyn std::fmt::Display) -> Problem {
    error!(error = %error, "{what} is not available");
    Problem::new(
        503,
        "Not available",
        format!("{what} is not available; retry later"),
    )
}

impl Entitlement {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`StartError`] naming what is missing.
    pub async fn from_env() -> Result<Self, StartError> {
        let stack = Stack::from_env()?;
        let standard = config::required(config::STANDARD_WEBHOOK_SECRET_ID)?;
        let github = config::required(config::GITHUB_WEBHOOK_SECRET_ID)?;
        let bucket = config::required(config::REGISTRY_BUCKET)?;
        let governor = config::required(config::GOVERNOR_FUNCTION_ARN)?;
        let queue_prefix = config::required(config::QUEUE_PREFIX)?;
        let decommission_queue = config::required(config::DECOMMISSION_QUEUE_URL)?;
        let sdk = clients::load().await;
        Ok(Self {
            webhooks: Webhooks::new(Secrets::new(&sdk), standard, Some(github), "entitlement"),
            store: Store::new(&sdk, stack.clone()),
            registry: Registry::new(clients::s3(&sdk), bucket),
            queues: TenantQueues::new(&sdk, governor)?,
            messages: Messages::new(&sdk),
            stack,
            queue_prefix,
            decommission_queue,
        })
    }

    /// Answers one HTTP event. Never fails: what goes wrong is in the answer.
    pub async fn handle(&self, event: Value) -> ApiGatewayV2httpResponse {
        let answered = match http::request(event) {
            Ok(request) => self.receive(&request).await,
            Err(problem) => Err(problem),
        };
        match answered {
            Ok(record) => http::json_response(record.status, record.receipt),
            Err(problem) => problem.response(),
        }
    }

    async fn receive(&self, request: &Request) -> Result<DeliveryRecord, Problem> {
        let (now, started) = (Timestamp::now(), Instant::now());
        let (delivery, said) = self.webhooks.read(request, now).await?;
        let signer = self.signer().await?;
        match said {
            WebhookEvent::Subscribed {
                account_id,
                plan,
                region,
            } => {
                let partition = names::partition_key(&account_id);
                let (delivery, account_id) = (&delivery, &account_id);
                let to = Subscription {
                    account_id,
                    partition,
                    delivery,
                    region: &region,
                    now,
                    started,
                };
                self.subscribe(&signer, &to, plan).await
            }
            WebhookEvent::Cancelled { account_id, .. } => {
                let (store, messages, queue) = (&self.store, &self.messages, &self.decommission_queue);
                decommission::start(store, &signer, messages, queue, &account_id, &delivery, now).await
            }
            WebhookEvent::Ignored { reason } => self.ignore(&signer, &delivery, reason, now).await,
        }
    }

    async fn signer(&self) -> Result<Signer, Problem> {
        let signer = self
            .webhooks
            .secrets()
            .signer(&self.stack.signing_key_secret)
            .await;
        signer.map_err(|e: SecretsError| unavailable("the signing key", &e))
    }

    async fn subscribe(
        &self,
        signer: &Signer,
        to: &Subscription<'_>,
        plan: PlanReference,
    ) -> Result<DeliveryRecord, Problem> {
        let registry_down = |e: RegistryError| unavailable("the policy registry", &e);
        let entry = match self.find_plan(plan).await.map_err(registry_down)? {
            PlanFound::Known(entry) => entry,
            PlanFound::Unknown { sku_id, plan_type } => {
                return self.refuse(signer, to, sku_id, plan_type).await;
            }
        };
        let enforcer = self
            .registry
            .enforcer(&entry.policy_hash)
            .await
            .map_err(registry_down)?;
        let quota = Quota {
            monthly_actions: enforcer.bundle().quota.monthly_actions,
            concurrent_actions: enforcer.bundle().quota.concurrent_actions,
        };
        // Intent first: a crash from here on leaves a tenant that says `provisioning`, and the repeated delivery goes on.
        let intended = match self.intend(signer, to, &entry, quota).await {
            Ok(intended) => intended,
            Err(stop) => return stop.answer(),
        };
        let Some(tenant) = &intended.tenant else {
            return Err(unavailable("the tenant", &"not written"));
        };
        let resources = self.queues.create(&tenant.fsm_id, &quota).await;
        let resources = resources.map_err(|e| unavailable("the tenant's queue", &e))?;
        let record = self.activate(signer, to, intended, resources).await;
        let record = record.or_else(Stop::answer)?;
        info!(
            account = to.account_id.as_str(),
            status = record.status,
            "entitlement active"
        );
        Ok(record)
    }

    async fn find_plan(&self, plan: PlanReference) -> Result<PlanFound, RegistryError> {
        let (found, sku_id, plan_type) = match plan {
            PlanReference::Canonical { sku_id, plan_type } => (
                self.registry.current(sku_id.as_str(), plan_type.as_str()).await?,
                sku_id.into(),
                plan_type.into(),
            ),
            PlanReference::Provider { provider, plan_id } => {
                let alias = self.registry.alias(provider, &plan_id).await?;
                (alias, provider.to_owned(), names::printable(&plan_id, 128))
            }
        };
        Ok(found.map_or(PlanFound::Unknown { sku_id, plan_type }, PlanFound::Known))
    }

    /// Records the intent to provision, or finds it recorded by an attempt that did not finish.
    async fn intend(
        &self,
        signer: &Signer,
        to: &Subscription<'_>,
        entry: &IndexEntry,
        quota: Quota,
    ) -> Result<Account, Stop> {
        let keys = Keys {
            delivery: Some(to.delivery.key()),
            ..Keys::default()
        };
        let ignored_id = Uuid::now_v7();
        let mut already_active = false;
        let committed = self
            .store
            .transact(signer, &to.partition, &keys, None, |account| {
                answered(to.delivery, account)?;
                let state = account.tenant.as_ref().map_or(Lifecycle::Absent, |t| t.lifecycle);
                already_active = state == Lifecycle::Active;
                match state {
                    Lifecycle::Provisioning => Ok(Plan::default()),
                    Lifecycle::Active => {
                        let reason = "the account already has an active entitlement".to_owned();
                        Ok(to.plan(
                            200,
                            to.draft(ignored_id, None, Payload::WebhookIgnored { reason }),
                        ))
                    }
                    Lifecycle::Decommissioning => Err(Stop::Problem(Problem::new(
                        503,
                        "Not yet",
                        "the previous subscription is still being decommissioned; retry later",
                    ))),
                    Lifecycle::Absent | Lifecycle::Decommissioned => {
                        let tenant = self.new_tenant(to, account.tenant.as_ref(), entry, quota)?;
                        Ok(Plan {
                            tenant: Some(tenant),
                            ..Plan::default()
                        })
                    }
                }
            })
            .await?;
        if already_active {
            return Err(Stop::Answered(to.record(200, &committed.sealed)));
        }
        Ok(committed.account)
    }

    fn new_tenant(
        &self,
        to: &Subscription<'_>,
        before: Option<&Tenant>,
        entry: &IndexEntry,
        quota: Quota,
    ) -> Result<Tenant, Stop> {
        let malformed =
            |e: &dyn std::fmt::Display| Stop::Problem(unavailable("the policy registry's entry", e));
        let generation = before.map_or(1, |t| t.generation.saturating_add(1));
        let state = before.map_or(Lifecycle::Absent, |t| t.lifecycle);
        let queue = names::queue_name(&self.queue_prefix, to.account_id, generation);
        Ok(Tenant {
            account_id: to.account_id.clone(),
            lifecycle: next(state, TenantEvent::Subscribe).map_err(|e| malformed(&e))?,
            generation,
            sku_id: entry.sku_id.clone().try_into().map_err(|e| malformed(&e))?,
            plan_type: entry.plan_type.clone().try_into().map_err(|e| malformed(&e))?,
            region: to.region.to_owned(),
            fsm_id: queue.clone(),
            policy: PolicyPin {
                version: entry.policy_version.clone(),
                hash: entry.policy_hash.clone(),
            },
            quota,
            resources: TenantResources {
                queue,
                ..TenantResources::default()
            },
            in_flight: 0,
            month: month_of(to.now),
            month_actions: 0,
            actions_completed: 0,
            actions_failed: 0,
            subscribed_at: to.now,
            revision: before.map_or(1, |t| t.revision.saturating_add(1)),
        })
    }

    async fn activate(
        &self,
        signer: &Signer,
        to: &Subscription<'_>,
        intended: Account,
        resources: TenantResources,
    ) -> Result<DeliveryRecord, Stop> {
        let keys = Keys {
            delivery: Some(to.delivery.key()),
            ..Keys::default()
        };
        let receipt_id = Uuid::now_v7();
        let committed = self
            .store
            .transact(signer, &to.partition, &keys, Some(intended), |account| {
                answered(to.delivery, account)?;
                // Whoever was first may have finished what this delivery began, or something else altogether.
                let provisioned = account.tenant.as_ref().map(|t| t.after(TenantEvent::Provisioned));
                let Some(Ok(tenant)) = provisioned else {
                    let reason = "the account was provisioned by another delivery".to_owned();
                    return Ok::<_, Stop>(to.plan(
                        200,
                        to.draft(receipt_id, None, Payload::WebhookIgnored { reason }),
                    ));
                };
                let payload = Payload::EntitlementActive {
                    sku_id: tenant.sku_id.as_str().to_owned(),
                    plan_type: tenant.plan_type.as_str().to_owned(),
                    region: tenant.region.clone(),
                    policy_version: tenant.policy.version.clone(),
                    fsm_id: tenant.fsm_id.clone(),
                    quota: receipts::receipt::Quota {
                        monthly_actions: tenant.quota.monthly_actions,
                        concurrent_actions: tenant.quota.concurrent_actions,
                    },
                    resources: Resources {
                        fsm_id: tenant.fsm_id.clone(),
                        queue: resources.queue.clone(),
                        table: self.stack.tenants_table.clone(),
                    },
                };
                let draft = to.draft(receipt_id, Some(tenant.policy.hash.clone()), payload);
                let queue = Some(resources.queue.clone());
                let tenant = Some(Tenant {
                    resources: resources.clone(),
                    ..tenant
                });
                Ok(Plan {
                    tenant,
                    queue,
                    ..to.plan(200, draft)
                })
            })
            .await?;
        Ok(to.record(200, &committed.sealed))
    }

    async fn refuse(
        &self,
        signer: &Signer,
        to: &Subscription<'_>,
        sku_id: String,
        plan_type: String,
    ) -> Result<DeliveryRecord, Problem> {
        let payload = Payload::EntitlementFailed {
            reason: format!("no policy for plan {plan_type} of SKU {sku_id}"),
            sku_id,
            plan_type,
            step: "load_policy".to_owned(),
            undone: Vec::new(),
        };
        let draft = to.draft(Uuid::now_v7(), None, payload);
        self.answer_with(signer, &to.partition, to, 422, draft).await
    }

    async fn ignore(
        &self,
        signer: &Signer,
        delivery: &DeliveryId,
        reason: String,
        now: Timestamp,
    ) -> Result<DeliveryRecord, Problem> {
        // The event names no account that we understand, so the system's own ledger keeps the receipt.
        let draft = Draft {
            receipt_id: Uuid::now_v7(),
            account_id: names::SYSTEM_ACCOUNT.to_owned(),
            occurred_at: now,
            duration_ms: 0,
            policy_hash: None,
            payload: Payload::WebhookIgnored { reason },
        };
        let keys = Keys {
            delivery: Some(delivery.key()),
            ..Keys::default()
        };
        let plan = |account: &Account| {
            answered(delivery, account)?;
            Ok::<_, Stop>(plan_for(delivery, 200, draft.clone()))
        };
        match self
            .store
            .transact(signer, names::SYSTEM_ACCOUNT, &keys, None, plan)
            .await
        {
            Ok(committed) => Ok(record_for(delivery, 200, &committed.sealed)),
            Err(stop) => stop.answer(),
        }
    }

    async fn answer_with(
        &self,
        signer: &Signer,
        partition: &str,
        to: &Subscription<'_>,
        status: u16,
        draft: Draft,
    ) -> Result<DeliveryRecord, Problem> {
        let keys = Keys {
            delivery: Some(to.delivery.key()),
            ..Keys::default()
        };
        let plan = |account: &Account| {
            answered(to.delivery, account)?;
            Ok::<_, Stop>(to.plan(status, draft.clone()))
        };
        match self.store.transact(signer, partition, &keys, None, plan).await {
            Ok(committed) => Ok(to.record(status, &committed.sealed)),
            Err(stop) => stop.answer(),
        }
    }
}

/// Stops with the kept answer when this delivery was answered before.
fn answered(delivery: &DeliveryId, account: &Account) -> Result<(), Stop> {
    match answered_before(delivery, account.delivery.as_ref()) {
        Ok(None) => Ok(()),
        Ok(Some(record)) => Err(Stop::Answered(record)),
        Err(problem) => Err(Stop::Problem(problem)),
    }
}

fn plan_for(delivery: &DeliveryId, status: u16, draft: Draft) -> Plan {
    let (key, body_sha256) = (delivery.key(), delivery.body_sha256.clone());
    Plan {
        drafts: vec![draft],
        delivery: Some(DeliveryPlan {
            key,
            body_sha256,
            status,
            draft: 0,
        }),
        ..Plan::default()
    }
}

fn record_for(delivery: &DeliveryId, status: u16, sealed: &[receipts::ledger::Sealed]) -> DeliveryRecord {
    DeliveryRecord {
        key: delivery.key(),
        body_sha256: delivery.body_sha256.clone(),
        status,
        receipt: sealed.first().map(|s| s.line.clone()).unwrap_or_default(),
    }
}

impl Subscription<'_> {
    fn draft(&self, receipt_id: Uuid, policy_hash: Option<String>, payload: Payload) -> Draft {
        Draft {
            receipt_id,
            account_id: self.account_id.as_str().to_owned(),
            occurred_at: self.now,
            duration_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            policy_hash,
            payload,
        }
    }

    fn plan(&self, status: u16, draft: Draft) -> Plan {
        plan_for(self.delivery, status, draft)
    }

    fn record(&self, status: u16, sealed: &[receipts::ledger::Sealed]) -> DeliveryRecord {
        record_for(self.delivery, status, sealed)
    }
}
