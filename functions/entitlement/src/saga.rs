//! The saga of provisioning, carried out: each step forward, or all of them back. The order of both is
//! [`domain::provisioning`]'s.

use aws::clients::explain;
use aws::entitlements::Entitlements;
use aws::functions::{Functions, InvokeError};
use aws::queues::{QueueError, TenantQueues};
use aws::registry::RegistryError;
use aws::store::StoreError;
use aws::tables::{Kind, TableError, TenantTables};
use aws::telemetry;
use domain::names::{self, Partition, printable};
use domain::operations::provision::{self, Undone, is_under_way};
use domain::provisioning::{Failure, Provisioning, Step};
use domain::tenant::{Lifecycle, Tenant, TenantResources};
use domain::transaction::{Account, DeliveryRecord, Keys};
use jiff::{SignedDuration, Timestamp};
use receipts::key::Signer;
use serde_json::json;
use tracing::{error, warn};
use uuid::Uuid;

/// How long something may take to be ready until it counts as failed, in seconds.
const READY_SECONDS: i64 = 600;

/// What came of a saga.
pub(crate) enum SagaOutcome {
    /// The entitlement is in force.
    Active {
        account: Box<Account>,
        /// The answer to the delivery that asked.
        record: DeliveryRecord,
    },
    /// A step failed, and everything is undone.
    Undone {
        account: Box<Account>,
        step: &'static str,
        /// The answer to the delivery that asked; `None` when it should be posted again.
        record: Option<DeliveryRecord>,
    },
    /// Somebody else finished it, one way or the other.
    ByAnother(Option<DeliveryRecord>),
}

/// Why a saga stands where it is. It is taken up again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SagaError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something that was asked for is not ready yet: no failure, it only takes its time.
    #[error("{}: {source}", step.name())]
    NotYet {
        step: Step,
        /// What is not ready.
        #[source]
        source: StepError,
    },
    /// What was made could not be unmade yet.
    #[error("undoing {}: {source}", step.name())]
    Undo {
        step: Step,
        #[source]
        source: StepError,
    },
}

/// Why a step, or its undo, failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Governor(#[from] InvokeError),
    /// The governor answered that it cannot work.
    #[error("the governor is not ready: {0}")]
    NotReady(String),
}

impl StepError {
    /// What is put on record for ever, and answered: the operation, and not a word of the cloud's own, which may name
    /// accounts and roles. That is in the log.
    fn for_the_record(&self) -> String {
        match self {
            Self::Queue(QueueError::Call { operation, .. } | QueueError::Answer { operation, .. })
            | Self::Table(TableError::Call { operation, .. })
            | Self::Registry(RegistryError::Call { operation, .. }) => format!("{operation} did not succeed"),
            Self::Queue(QueueError::Arn { .. }) => "the governor's ARN is none".to_owned(),
            Self::Table(TableError::NotReady { .. }) => "a table was not ready in time".to_owned(),
            Self::Registry(_) => "the policy is not what its hash says".to_owned(),
            Self::Governor(_) => "the governor did not answer".to_owned(),
            Self::NotReady(reason) => format!("the governor is not ready: {reason}"),
        }
    }

    /// Whether it only takes its time.
    fn is_slow(&self) -> bool {
        matches!(self, Self::Table(TableError::NotReady { .. }))
    }

    /// Whether the same request would fail again: what is stored under the pinned hash is not what was pinned.
    fn is_lasting(&self) -> bool {
        matches!(self, Self::Registry(e) if e.is_lasting())
    }
}

/// What makes and unmakes a tenant's resources, and makes again what is missing.
pub(crate) struct Provisioner {
    pub(crate) entitlements: Entitlements,
    pub(crate) queues: TenantQueues,
    pub(crate) tables: TenantTables,
    pub(crate) functions: Functions,
    /// ARN of the governor.
    pub(crate) governor: String,
}

impl Provisioner {
    /// Makes what the account's intent names and commits the outcome, or undoes all of it.
    ///
    /// # Errors
    /// [`SagaError`] when neither end was reached: the intent stays, and whoever comes next goes on.
    pub(crate) async fn make(
        &self,
        signer: &Signer,
        account: Account,
        fresh: bool,
    ) -> Result<SagaOutcome, SagaError> {
        let under_way = account
            .tenant
            .as_ref()
            .and_then(|tenant| Some((tenant, tenant.provisioning.as_ref()?)));
        let Some((tenant, saga)) = under_way.map(|(tenant, saga)| (tenant.clone(), saga.clone())) else {
            return Ok(SagaOutcome::ByAnother(account.answer()));
        };
        let partition = account.partition.clone();
        let failure = match &saga.failure {
            Some(failure) => failure.clone(),
            None => match self.forward(&tenant, &saga, fresh).await {
                Ok(resources) => match self.activate(signer, account, &saga, resources.as_ref()).await {
                    Ok(Some((account, record))) => {
                        let account = Box::new(account);
                        return Ok(SagaOutcome::Active { account, record });
                    }
                    Ok(None) => return self.after_another(signer, &partition, &tenant, &saga).await,
                    Err(e) => Failure {
                        step: Step::Receipt,
                        reason: told(Step::Receipt, &e, "the tables did not take it"),
                        lasting: false,
                        undone: Vec::new(),
                    },
                },
                Err((step, source)) if source.is_slow() && still_early(&saga) => {
                    return Err(SagaError::NotYet { step, source });
                }
                Err((step, e)) => Failure {
                    step,
                    reason: told(step, &e, &e.for_the_record()),
                    lasting: e.is_lasting(),
                    undone: Vec::new(),
                },
            },
        };
        if saga.failure.is_none() {
            error!(
                account = tenant.account_id.as_str(),
                step = failure.step.name(),
                reason = failure.reason,
                "provisioning failed"
            );
            // The intent to undo is recorded before anything is undone: nobody may go forward from here on.
            if !self.note_failure(signer, &partition, &saga, &failure).await? {
                return self.after_another(signer, &partition, &tenant, &saga).await;
            }
        }
        self.back_and_close(signer, &partition, &tenant, &saga).await
    }

    /// Does every step. What each finds done it leaves.
    async fn forward(
        &self,
        tenant: &Tenant,
        saga: &Provisioning,
        fresh: bool,
    ) -> Result<Option<TenantResources>, (Step, StepError)> {
        let queue = tenant.fsm_id.as_str();
        let mut made = TenantResources {
            queue: queue.to_owned(),
            ..TenantResources::default()
        };
        for step in saga.steps() {
            let failed = |e: StepError| (step, e);
            match step {
                Step::TenantRecord | Step::Receipt => {}
                Step::DeadLetterQueue => {
                    let url = self.queues.dead_letter_queue(queue).await;
                    made.dead_letter_queue_url = url.map_err(|e| failed(e.into()))?;
                }
                Step::Queue => {
                    let url = self.queues.signal_queue(queue).await;
                    made.queue_url = url.map_err(|e| failed(e.into()))?;
                }
                Step::ActionTable => {
                    let table = names::action_table_name(queue, saga.table_attempt);
                    let made = self.tables.create(&table, Kind::Actions).await;
                    made.map_err(|e| failed(e.into()))?;
                }
                Step::ReceiptTable => {
                    // Both are asked for before either is waited for.
                    let receipts = names::receipt_table_name(queue, saga.table_attempt);
                    let actions = names::action_table_name(queue, saga.table_attempt);
                    let made = self.tables.create(&receipts, Kind::Receipts).await;
                    made.map_err(|e| failed(e.into()))?;
                    for (table, kind) in [(&receipts, Kind::Receipts), (&actions, Kind::Actions)] {
                        let ready = self.tables.ready(table, kind).await;
                        ready.map_err(|e| failed(e.into()))?;
                    }
                }
                Step::PolicyPin => {
                    let hash = &saga.entitlement.policy.hash;
                    self.entitlements
                        .registry
                        .enforcer(hash)
                        .await
                        .map_err(|e| failed(e.into()))?;
                }
                Step::Mapping => {
                    let mapping = self.mapping(tenant, fresh).await;
                    made.mapping_id = mapping.map_err(|e| failed(e.into()))?;
                }
                Step::GovernorBoot => self.boot(tenant, saga).await.map_err(failed)?,
            }
        }
        Ok(saga.new_tenant.then_some(made))
    }

    async fn mapping(&self, tenant: &Tenant, fresh: bool) -> Result<String, QueueError> {
        // Of a queue that was never fed before nobody can have made one.
        if !fresh && let Some(found) = self.queues.find_mapping(&tenant.fsm_id).await? {
            return Ok(found);
        }
        self.queues.mapping(&tenant.fsm_id, tenant.pace()).await
    }

    /// Has the governor look at everything it needs for this tenant, so that the first signal finds it ready.
    async fn boot(&self, tenant: &Tenant, saga: &Provisioning) -> Result<(), StepError> {
        let event = json!({
            "boot": { "account_id": tenant.account_id, "policy_hash": saga.entitlement.policy.hash }
        });
        let answer = self.functions.ask(&self.governor, &event).await?;
        match (answer.get("ready"), answer.get("reason")) {
            (Some(ready), _) if ready == true => Ok(()),
            (_, reason) => {
                let reason = reason
                    .and_then(|reason| reason.as_str())
                    .unwrap_or("it does not say why");
                Err(StepError::NotReady(printable(reason, 256)))
            }
        }
    }

    /// Undoes everything and ends the saga. What could be undone before an undo fails is remembered for the receipt.
    async fn back_and_close(
        &self,
        signer: &Signer,
        partition: &Partition,
        tenant: &Tenant,
        saga: &Provisioning,
    ) -> Result<SagaOutcome, SagaError> {
        let mut undone = Vec::new();
        let back = self.back(tenant, saga, &mut undone).await;
        if let Err(e) = back {
            if let Err(unnoted) = self.note_undone(signer, partition, saga, &undone).await {
                warn!(error = %unnoted, ?undone, "what is undone so far will not be on record");
            }
            return Err(e);
        }
        self.close_failed(signer, partition, saga, undone).await
    }

    async fn note_undone(
        &self,
        signer: &Signer,
        partition: &Partition,
        saga: &Provisioning,
        undone: &[Step],
    ) -> Result<(), StoreError> {
        let note =
            |account: &Account, _| Ok::<_, StoreError>((provision::note_undone(account, saga, undone), ()));
        let store = &self.entitlements.store;
        store
            .transact(signer, partition, &Keys::default(), None, note)
            .await?;
        Ok(())
    }

    /// Undoes everything, last first, and tells of each step that had left something.
    async fn back(
        &self,
        tenant: &Tenant,
        saga: &Provisioning,
        undone: &mut Vec<Step>,
    ) -> Result<(), SagaError> {
        let queue = tenant.fsm_id.as_str();
        for step in saga.undo() {
            let removed: Result<bool, StepError> = match step {
                Step::Mapping => self.queues.remove_mapping(queue).await.map_err(Into::into),
                Step::ReceiptTable => {
                    let table = names::receipt_table_name(queue, saga.table_attempt);
                    self.tables.delete(&table).await.map_err(Into::into)
                }
                Step::ActionTable => {
                    let table = names::action_table_name(queue, saga.table_attempt);
                    self.tables.delete(&table).await.map_err(Into::into)
                }
                Step::Queue => self.queues.remove_queue(queue).await.map_err(Into::into),
                Step::DeadLetterQueue => {
                    let queue = names::dead_letter_queue_name(queue);
                    self.queues.remove_queue(&queue).await.map_err(Into::into)
                }
                Step::TenantRecord | Step::PolicyPin | Step::GovernorBoot | Step::Receipt => Ok(false),
            };
            if removed.map_err(|source| SagaError::Undo { step, source })? {
                undone.push(step);
            }
        }
        Ok(())
    }

    /// Commits the outcome. `None` when the saga is not the account's any more, or is being undone.
    async fn activate(
        &self,
        signer: &Signer,
        account: Account,
        saga: &Provisioning,
        resources: Option<&TenantResources>,
    ) -> Result<Option<(Account, DeliveryRecord)>, StoreError> {
        let receipt_id = Uuid::now_v7();
        let partition = account.partition.clone();
        let around = self.entitlements.around();
        let activate = |account: &Account, now| {
            let activated = provision::activate(account, saga, resources, around, receipt_id, now);
            Ok::<_, StoreError>(activated)
        };
        let store = &self.entitlements.store;
        let keys = provision::keys(saga);
        let (committed, ours) = store
            .transact(signer, &partition, &keys, Some(account), activate)
            .await?;
        let record = DeliveryRecord::of(&saga.asked, 200, &committed.sealed);
        Ok(ours.then_some((committed.account, record)))
    }

    /// Records that everything is to be undone. False when somebody else was first, with this or with the outcome.
    async fn note_failure(
        &self,
        signer: &Signer,
        partition: &Partition,
        saga: &Provisioning,
        failure: &Failure,
    ) -> Result<bool, SagaError> {
        let note =
            |account: &Account, _| Ok::<_, StoreError>(provision::note_failure(account, saga, failure));
        let store = &self.entitlements.store;
        let (_, noted) = store
            .transact(signer, partition, &Keys::default(), None, note)
            .await?;
        Ok(noted)
    }

    /// What a run finds that was not first: the answer, or something that is being undone or was. It helps to undo, as it
    /// may have made a part of it anew.
    async fn after_another(
        &self,
        signer: &Signer,
        partition: &Partition,
        begun: &Tenant,
        saga: &Provisioning,
    ) -> Result<SagaOutcome, SagaError> {
        let account = self
            .entitlements
            .store
            .load(partition, &provision::keys(saga))
            .await?;
        let now = account.tenant.as_ref();
        let ours = now
            .filter(|tenant| is_under_way(tenant, saga))
            .and_then(|tenant| tenant.provisioning.as_ref());
        if ours.is_some_and(|saga| saga.failure.is_some()) {
            return self.back_and_close(signer, partition, begun, saga).await;
        }
        // Still forward: a third run goes on with it. In use: another one has finished it. What any other saga makes has
        // names of its own.
        let in_use = now.is_some_and(|tenant| {
            let finished = match saga.new_tenant {
                true => tenant.generation == begun.generation && tenant.lifecycle != Lifecycle::Absent,
                false => {
                    let ours = names::receipt_table_name(&begun.fsm_id, saga.table_attempt);
                    tenant
                        .tables
                        .as_ref()
                        .is_some_and(|tables| tables.receipts == ours)
                }
            };
            finished || is_under_way(tenant, saga)
        });
        if !in_use {
            warn!(
                account = begun.account_id.as_str(),
                "provisioning was undone by another run"
            );
            self.back(begun, saga, &mut Vec::new()).await?;
        }
        Ok(SagaOutcome::ByAnother(account.answer()))
    }

    /// Commits that everything is undone. An event whose sender does not post it again is kept, and tried later.
    async fn close_failed(
        &self,
        signer: &Signer,
        partition: &Partition,
        saga: &Provisioning,
        undone: Vec<Step>,
    ) -> Result<SagaOutcome, SagaError> {
        let receipt_id = Uuid::now_v7();
        let close = |account: &Account, now| {
            Ok::<_, StoreError>(provision::close_failed(account, saga, &undone, receipt_id, now))
        };
        let store = &self.entitlements.store;
        let keys = provision::keys(saga);
        let (committed, closed) = store.transact(signer, partition, &keys, None, close).await?;
        let Some(Undone { failure, status }) = closed else {
            return Ok(SagaOutcome::ByAnother(committed.account.answer()));
        };
        telemetry::count("entitlement", "entitlement_failed", ("step", failure.step.name()));
        Ok(SagaOutcome::Undone {
            record: status.map(|status| DeliveryRecord::of(&saga.asked, status, &committed.sealed)),
            account: Box::new(committed.account),
            step: failure.step.name(),
        })
    }
}

/// Whether what is not ready may yet become so.
fn still_early(saga: &Provisioning) -> bool {
    Timestamp::now().duration_since(saga.began_at) < SignedDuration::from_secs(READY_SECONDS)
}

/// Logs why a step failed, and gives what is said of it.
fn told(step: Step, error: &(dyn std::error::Error + 'static), said: &str) -> String {
    error!(step = step.name(), error = explain(error), "step failed");
    said.to_owned()
}
