//! A policy's way: compile, check against the one in force, store by hash, publish, re-pin every tenant of the plan.
//!
//! The function compiles the ontology itself, so what it stores is what the compiler makes of what compliance wrote.
//! Proposing the same version again finishes what a crash left undone.

use std::time::Instant;

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::pages::Pages;
use aws::registry::{IndexEntry, Published, Registry, RegistryError, offer_of};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use domain::json::object;
use domain::names::{self, Partition, printable};
use domain::ontology;
use domain::operations::repin::{NewPolicy, repin};
use domain::transaction::{Account, Keys, Plan};
use jiff::Timestamp;
use policy::compile::Compiled;
use policy::upgrade::{Compatibility, check_upgrade};
use receipts::key::Signer;
use receipts::receipt::{Draft, Payload, PolicyOutcome};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, info};
use uuid::Uuid;

/// Most times that one deployment finds that another one was first.
const ATTEMPTS: usize = 8;

/// A plan of a product.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PlanName {
    pub sku_id: String,
    pub plan_type: String,
}

/// What is proposed.
#[derive(Debug, Clone, Deserialize)]
pub struct Proposal {
    /// The policy file, as compliance wrote it.
    ontology: String,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Answer {
    /// It is in force.
    Upgraded {
        policy_hash: String,
        policy_version: String,
        /// Tenants that were re-pinned.
        governors_updated: u64,
        /// Tenants that could not be.
        governors_failed: u64,
        /// The system ledger's receipts.
        receipts: Vec<Value>,
    },
    /// It was in force already, for every tenant.
    Unchanged {
        policy_hash: String,
        /// The system ledger's receipt.
        receipts: Vec<Value>,
    },
    /// It was refused; what was in force stays.
    Refused {
        reason: String,
        /// The system ledger's receipt.
        receipts: Vec<Value>,
    },
}

/// Why a proposal could not be carried out. Proposing it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("the policy registry is not available")]
    Registry(#[from] RegistryError),
    #[error("the tables are not available")]
    Store(#[from] StoreError),
    #[error("the signing key is not available")]
    Secrets(#[from] SecretsError),
    #[error("other policies of plan {} of SKU {} were deployed at the same moment; deploy it again", plan.plan_type, plan.sku_id)]
    Contended { plan: PlanName },
    #[error("the event or its answer is not of its form: {0}")]
    Form(#[from] serde_json::Error),
}

/// Everything `policy-upgrade` needs, made once per process.
pub struct PolicyUpgrade {
    store: Store,
    registry: Registry,
    secrets: Secrets,
    stack: Stack,
}

impl PolicyUpgrade {
    /// Reads the environment and makes the clients.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let sdk = clients::load().await;
        Ok(Self {
            store: Store::new(&sdk, stack.clone()),
            registry: Registry::new(sdk.s3(), registry),
            secrets: Secrets::new(&sdk),
            stack,
        })
    }

    /// Carries out what is asked for, and gives its answer: a [`Proposal`], or `{"repin": …}` with a plan whose tenants are
    /// pinned to another policy than the one in force, as the sweep asks.
    ///
    /// # Errors
    /// [`UpgradeError`] when the event is not of its form, or a part of the cloud did not answer.
    pub async fn handle(&self, event: &Value) -> Result<Value, UpgradeError> {
        let Some(plan) = event.get("repin") else {
            let answer = self.propose(&object(event)?).await?;
            return Ok(serde_json::to_value(answer)?);
        };
        let plan: PlanName = object(plan)?;
        let signer = self.secrets.signer(&self.stack.signing_key_secret).await?;
        let (governors_updated, governors_failed) = self.follow(&signer, &plan, None).await?;
        Ok(json!({ "governors_updated": governors_updated, "governors_failed": governors_failed }))
    }

    async fn propose(&self, proposal: &Proposal) -> Result<Answer, UpgradeError> {
        let started = Instant::now();
        let signer = self.secrets.signer(&self.stack.signing_key_secret).await?;
        let compiled = match ontology::compile(&proposal.ontology) {
            Ok(compiled) => compiled,
            Err(e) => return self.refuse(&signer, e.to_string(), None, None, started).await,
        };
        let next = &compiled.bundle;
        let plan = PlanName {
            sku_id: next.sku_id.clone(),
            plan_type: next.plan_type.clone(),
        };
        let version = next.version.to_string();
        let entry = IndexEntry {
            sku_id: plan.sku_id.clone(),
            plan_type: plan.plan_type.clone(),
            policy_version: version.clone(),
            policy_hash: compiled.hash.clone(),
        };
        // What the round before tried to put in force: a write may stand whose answer was lost.
        let mut tried: Option<(Compatibility, Option<String>)> = None;
        for _ in 0..ATTEMPTS {
            let current = self.registry.current(&plan.sku_id, &plan.plan_type).await?;
            let previous = match &current {
                Some(current) => Some(self.registry.enforcer(&current.entry.policy_hash).await?),
                None => None,
            };
            let previous_version = previous.as_ref().map(|e| e.bundle().version.to_string());
            let stands = current
                .as_ref()
                .is_some_and(|now| now.entry.policy_hash == compiled.hash);
            let before = tried.take().filter(|_| stands);
            let check = match check_upgrade(previous.as_ref().map(|e| e.bundle()), next) {
                Ok(check) => check,
                Err(e) => {
                    return self
                        .refuse(&signer, e.to_string(), Some(version), previous_version, started)
                        .await;
                }
            };
            self.registry
                .store_enforcer(&compiled.hash, &compiled.bytes)
                .await?;
            // Published first: a tenant provisioned from now on has the new one, and the walk below finds all others.
            match self
                .registry
                .publish(&entry, current.as_ref(), &next.aliases)
                .await?
            {
                Published::Done => {}
                // It is held against the one that was first.
                Published::Overtaken => {
                    tried = Some((check, previous_version));
                    continue;
                }
                Published::Taken {
                    provider,
                    plan_id,
                    by,
                } => {
                    let reason = format!(
                        "aliases: plan {plan_id} of {provider} is plan {} of SKU {}: deploy that policy without the alias first",
                        by.plan_type, by.sku_id
                    );
                    return self
                        .refuse(&signer, reason, Some(version), previous_version, started)
                        .await;
                }
            }
            let (check, previous_version) = before.unwrap_or((check, previous_version));
            let walked = (compiled.hash.as_str(), describe(&check));
            let (updated, failed) = self.follow(&signer, &plan, Some(walked)).await?;
            info!(policy_hash = compiled.hash, updated, failed, "policy in force");
            return self
                .answer(
                    &signer,
                    &compiled,
                    &check,
                    previous_version,
                    (updated, failed),
                    started,
                )
                .await;
        }
        Err(UpgradeError::Contended { plan })
    }

    /// Re-pins every tenant of a plan to the policy in force, and again where another one is in force by then: pins follow
    /// the registry, whichever of several deployments ends last. `published` is the hash that was put in force just now, and
    /// what its check said.
    async fn follow(
        &self,
        signer: &Signer,
        plan: &PlanName,
        published: Option<(&str, String)>,
    ) -> Result<(u64, u64), UpgradeError> {
        let (mut updated, mut failed) = (0, 0);
        let mut followed: Option<String> = None;
        loop {
            let Some(current) = self.registry.current(&plan.sku_id, &plan.plan_type).await? else {
                return Ok((updated, failed));
            };
            let hash = current.entry.policy_hash;
            if followed.as_ref() == Some(&hash) {
                return Ok((updated, failed));
            }
            let enforcer = self.registry.enforcer(&hash).await?;
            let offer = offer_of(enforcer.bundle(), &hash).map_err(|source| RegistryError::Name {
                hash: hash.clone(),
                source,
            })?;
            let policy = NewPolicy {
                offer,
                compatibility_check: match &published {
                    Some((published, check)) if *published == hash => check.clone(),
                    _ => "in force already".to_owned(),
                },
            };
            let (more_updated, now_failed) = self.repin(signer, &policy).await?;
            updated += more_updated;
            failed = now_failed;
            followed = Some(hash);
        }
    }

    async fn answer(
        &self,
        signer: &Signer,
        compiled: &Compiled,
        check: &Compatibility,
        previous_version: Option<String>,
        (governors_updated, governors_failed): (u64, u64),
        started: Instant,
    ) -> Result<Answer, UpgradeError> {
        let policy_hash = compiled.hash.clone();
        let policy_version = compiled.bundle.version.to_string();
        let mut payloads = Vec::new();
        if *check == Compatibility::Unchanged && governors_updated == 0 && governors_failed == 0 {
            payloads.push(Payload::PolicyUpgradeSkipped(PolicyOutcome {
                policy_version: Some(policy_version),
                previous_version,
                reason: "this policy is in force already".to_owned(),
                counterexample: None,
            }));
            let receipts = self.record(signer, Some(&policy_hash), payloads, started).await?;
            return Ok(Answer::Unchanged {
                policy_hash,
                receipts,
            });
        }
        if *check != Compatibility::Unchanged {
            payloads.push(Payload::PolicyDeployed {
                o_hash: compiled.ontology_hash.clone(),
                a_hash: policy_hash.clone(),
                ggen_version: compiled.bundle.compiler.clone(),
                deployment_timestamp: Timestamp::now(),
            });
        }
        if let Some(previous_version) = previous_version {
            payloads.push(Payload::PolicyUpgraded {
                policy_version: policy_version.clone(),
                previous_version,
                governors_updated,
                governors_failed,
                compatibility_check: describe(check),
            });
        }
        let receipts = self.record(signer, Some(&policy_hash), payloads, started).await?;
        Ok(Answer::Upgraded {
            policy_hash,
            policy_version,
            governors_updated,
            governors_failed,
            receipts,
        })
    }

    /// Re-pins every tenant of the plan that has another enforcer, each with its receipt.
    async fn repin(&self, signer: &Signer, policy: &NewPolicy) -> Result<(u64, u64), UpgradeError> {
        let offer = &policy.offer;
        let (mut updated, mut failed) = (0u64, 0u64);
        let mut pages = Pages::default();
        let page = async |after| {
            let store = &self.store;
            store
                .tenants_of_plan(offer.sku_id.as_str(), offer.plan_type.as_str(), after)
                .await
        };
        while let Some(partitions) = pages.next(&page).await? {
            for partition in partitions {
                match self.repin_one(signer, &partition, policy).await {
                    Ok(changed) => updated += u64::from(changed),
                    Err(e) => {
                        failed += 1;
                        error!(account = %partition, error = %e, "tenant not re-pinned; propose the policy again");
                    }
                }
            }
        }
        Ok((updated, failed))
    }

    async fn repin_one(
        &self,
        signer: &Signer,
        partition: &Partition,
        policy: &NewPolicy,
    ) -> Result<bool, StoreError> {
        let started = Instant::now();
        let receipt_id = Uuid::now_v7();
        let repin = |account: &Account, now| {
            let pinned = repin(account, policy, receipt_id, milliseconds(started), now);
            Ok::<_, StoreError>(pinned)
        };
        let (_, changed) = self
            .store
            .transact(signer, partition, &Keys::default(), None, repin)
            .await?;
        Ok(changed)
    }

    async fn refuse(
        &self,
        signer: &Signer,
        reason: String,
        policy_version: Option<String>,
        previous_version: Option<String>,
        started: Instant,
    ) -> Result<Answer, UpgradeError> {
        let payload = Payload::PolicyValidationFailed(PolicyOutcome {
            policy_version,
            previous_version,
            reason: printable(&reason, 1024),
            counterexample: None,
        });
        let receipts = self.record(signer, None, vec![payload], started).await?;
        Ok(Answer::Refused { reason, receipts })
    }

    async fn record(
        &self,
        signer: &Signer,
        policy_hash: Option<&str>,
        payloads: Vec<Payload>,
        started: Instant,
    ) -> Result<Vec<Value>, UpgradeError> {
        let now = Timestamp::now();
        let draft = |payload| {
            Draft::new(Uuid::now_v7(), names::SYSTEM_ACCOUNT, payload, now)
                .under(policy_hash.unwrap_or_default())
                .lasting(milliseconds(started))
        };
        let plan = Plan {
            drafts: payloads.into_iter().map(draft).collect(),
            ..Plan::default()
        };
        let record = |_: &Account, _| Ok::<_, StoreError>((plan.clone(), ()));
        let (committed, ()) = self
            .store
            .transact(signer, &Partition::system(), &Keys::default(), None, record)
            .await?;
        Ok(committed
            .sealed
            .iter()
            .filter_map(|sealed| serde_json::from_str(&sealed.line).ok())
            .collect())
    }
}

fn describe(check: &Compatibility) -> String {
    match check {
        Compatibility::Unchanged => "unchanged".to_owned(),
        Compatibility::Compatible(summary) => format!(
            "compatible: {} templates added, {} changed, {} unchanged",
            summary.added.len(),
            summary.changed.len(),
            summary.unchanged.len()
        ),
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
