//! Two ways in: a webhook says that a customer cancelled and is answered at once; the decommission queue then drains,
//! archives and deletes. Each step can be repeated, so a crash anywhere is finished by the next delivery.

use std::time::Duration;

use aws::archive::{ArchiveError, Archived, Archives};
use aws::config::{self, ConfigError, Stack};
use aws::decommission::{self, Order};
use aws::http::{self, Problem, Request};
use aws::log::{Log, LogError};
use aws::queues::{Left, Messages, QueueError, Teardown};
use aws::registry::Registry;
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Account, DeliveryRecord, Keys, Plan, Store, StoreError};
use aws::webhooks::Webhooks;
use aws::{clients, telemetry};
use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent};
use domain::action::{Action, ActionEvent, IllegalTransition};
use domain::gate::RefusalCode;
use domain::names::{self, LedgerId};
use domain::signal::{ActionId, Signal};
use domain::tenant::{Lifecycle, Tenant, TenantEvent};
use domain::webhook::payload::WebhookEvent;
use jiff::Timestamp;
use lambda_runtime::Error;
use receipts::key::Signer;
use receipts::ledger::Head;
use receipts::receipt::{Draft, Payload, Receipt};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tracing::{error, info};
use uuid::Uuid;

/// How long in-flight actions and waiting signals have to finish.
const DRAIN: Duration = Duration::from_secs(30);
/// How often the drain looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Receipts looked through at a time for the one that closed a ledger: they fit into a page of the table.
const LOOK_BACK: u64 = 32;
/// How long an order that could not be carried out waits, in seconds.
const RETRY_SECONDS: u32 = 60;
/// Times an archive is made again because a receipt was appended meanwhile.
const ARCHIVE_ATTEMPTS: u32 = 4;

/// Everything `cancel` needs, made once per process.
pub struct Cancel {
    webhooks: Webhooks,
    store: Store,
    registry: Registry,
    archives: Archives,
    teardown: Teardown,
    messages: Messages,
    stack: Stack,
    decommission_queue: String,
}

/// Why an order could not be carried out yet. It comes back through the queue.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The message is not an order.
    #[error("message is not a decommission order")]
    Form(#[from] serde_json::Error),
    /// The signing key is not available.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// The tables did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A queue or mapping could not be looked at or deleted.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The ledger could not be archived.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Actions or signals were still there when the time was over.
    #[error("{in_flight} actions in flight and {waiting} signals on the queue after {} s", DRAIN.as_secs())]
    NotDrained {
        /// Actions claimed and not final.
        in_flight: u64,
        /// Messages on the queue.
        waiting: u64,
    },
    /// The ledger's log could not be read, or contradicts the ledger.
    #[error("the ledger's checkpoints")]
    Log(#[from] LogError),
    /// Receipts were appended faster than they could be archived.
    #[error("receipts were appended during each of {ARCHIVE_ATTEMPTS} archives")]
    Moving,
    /// An action could not take an event: a bug, told instead of hidden.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The tenant is not in a state this order makes sense in.
    #[error("tenant is {}", .0.name())]
    State(Lifecycle),
}

enum CloseError {
    Store(StoreError),
    Moved,
    State(Lifecycle),
}

impl From<StoreError> for CloseError {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl Cancel {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable that is missing or makes no sense.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let standard = config::required(config::STANDARD_WEBHOOK_SECRET_ID)?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let decommission_queue = config::required(config::DECOMMISSION_QUEUE_URL)?;
        let sdk = clients::load().await;
        let s3 = clients::s3(&sdk);
        let archives = Archives::new(Log::from_env(s3.clone())?);
        Ok(Self {
            webhooks: Webhooks::new(Secrets::new(&sdk), standard, None, "cancel"),
            store: Store::new(&sdk, stack.clone()),
            registry: Registry::new(s3, registry),
            archives,
            teardown: Teardown::new(&sdk),
            messages: Messages::new(&sdk),
            stack,
            decommission_queue,
        })
    }

    /// Answers one event: a queue's batch or an HTTP request.
    ///
    /// # Errors
    /// When the event is neither, or the answer cannot be written as JSON.
    pub async fn handle(&self, event: Value) -> Result<Value, Error> {
        if event.get("Records").is_some() {
            return Ok(serde_json::to_value(
                self.work(serde_json::from_value(event)?).await,
            )?);
        }
        let answered = match http::request(event) {
            Ok(request) => self.receive(&request).await,
            Err(problem) => Err(problem),
        };
        let response = match answered {
            Ok(record) => http::json_response(record.status, record.receipt),
            Err(problem) => problem.response(),
        };
        Ok(serde_json::to_value(response)?)
    }

    async fn receive(&self, request: &Request) -> Result<DeliveryRecord, Problem> {
        let now = Timestamp::now();
        let (delivery, said) = self.webhooks.read(request, now).await?;
        let WebhookEvent::Cancelled { account_id, .. } = said else {
            let detail = "this address takes entitlement.cancelled; send others to /webhooks/entitlement";
            return Err(Problem::new(422, "Wrong event type", detail));
        };
        let signer = self.signer().await.map_err(|e| {
            error!(error = %e, "the signing key is not available");
            Problem::new(
                503,
                "Not available",
                "the signing key is not available; retry later",
            )
        })?;
        let (store, messages, queue) = (&self.store, &self.messages, &self.decommission_queue);
        decommission::start(store, &signer, messages, queue, &account_id, &delivery, now).await
    }

    async fn signer(&self) -> Result<Signer, SecretsError> {
        self.webhooks
            .secrets()
            .signer(&self.stack.signing_key_secret)
            .await
    }

    async fn work(&self, batch: SqsEvent) -> SqsBatchResponse {
        let mut response = SqsBatchResponse::default();
        for message in batch.records {
            let Err(e) = self.carry_out(message.body.as_deref().unwrap_or_default()).await else {
                continue;
            };
            telemetry::count("cancel", "decommission_delayed", ("reason", e.reason()));
            if e.is_fork() {
                telemetry::count("cancel", "ledger_forked", ("kind", "archive"));
            }
            error!(
                error = clients::explain(&e),
                "decommissioning goes on at the next delivery"
            );
            // The queue's own time is that of the longest archive; what only waits is looked at sooner.
            if let Some(handle) = message.receipt_handle {
                let soon = [(handle, RETRY_SECONDS)];
                if let Err(e) = self.messages.retry_in(&self.decommission_queue, &soon).await {
                    error!(error = %e, "the order comes back after the queue's own time");
                }
            }
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = message.message_id.unwrap_or_default();
            response.batch_item_failures.push(failure);
        }
        response
    }

    async fn carry_out(&self, body: &str) -> Result<(), OrderError> {
        let order: Order = serde_json::from_str(body)?;
        let partition = names::partition_key(&order.account_id);
        let account = self.store.load(&partition, &Keys::default()).await?;
        let Some(tenant) = account.tenant.filter(|t| t.generation == order.generation) else {
            info!(
                account = order.account_id.as_str(),
                "order is for a generation that is gone"
            );
            // It may have subscribed again before the run that closed its ledger had done all.
            return self.close_again(&order, &partition, &account.head).await;
        };
        match tenant.lifecycle {
            Lifecycle::Decommissioning => {}
            Lifecycle::Decommissioned => {
                return self.close_again(&order, &partition, &account.head).await;
            }
            state @ (Lifecycle::Absent | Lifecycle::Provisioning | Lifecycle::Active) => {
                return Err(OrderError::State(state));
            }
        }
        let signer = self.signer().await?;
        // First of all: of a tenant whose ledger is not the one that was signed for, nothing is taken away.
        let ledger = LedgerId::Customer(order.account_id.clone());
        let log = self.archives.log();
        log.issue(&self.store, &signer, &ledger, &account.head).await?;
        self.drain(&partition, &tenant).await?;
        self.teardown.delete_mapping(&tenant.resources.mapping_id).await?;
        for queue_url in [
            &tenant.resources.queue_url,
            &tenant.resources.dead_letter_queue_url,
        ] {
            self.refuse_left(&signer, &partition, &tenant, queue_url).await?;
        }
        for _ in 0..ARCHIVE_ATTEMPTS {
            let (store, registry) = (&self.store, &self.registry);
            let account = store.load(&partition, &Keys::default()).await?;
            if account
                .tenant
                .is_none_or(|t| t.lifecycle != Lifecycle::Decommissioning)
            {
                // Another run of this order was first; it may have ended before all of it was done.
                return self.close_again(&order, &partition, &account.head).await;
            }
            let archived = self
                .archives
                .archive(store, registry, &signer, &order.account_id, &account.head)
                .await?;
            self.teardown.delete_queue(&tenant.resources.queue_url).await?;
            self.teardown
                .delete_queue(&tenant.resources.dead_letter_queue_url)
                .await?;
            match self.close(&signer, &partition, &order, &archived).await {
                Ok((seq, line, head)) => {
                    let closing = (seq, line.as_str());
                    self.archives
                        .close(store, &signer, &order.account_id, &archived.key, closing, &head)
                        .await?;
                    info!(
                        account = order.account_id.as_str(),
                        archive = archived.key,
                        "decommissioned"
                    );
                    return Ok(());
                }
                Err(CloseError::Moved) => {}
                Err(CloseError::State(Lifecycle::Decommissioned)) => {
                    let head = store.load(&partition, &Keys::default()).await?.head;
                    return self.close_again(&order, &partition, &head).await;
                }
                Err(CloseError::Store(e)) => return Err(e.into()),
                Err(CloseError::State(state)) => return Err(OrderError::State(state)),
            }
        }
        Err(OrderError::Moving)
    }

    /// The run that closed the ledger may have ended before its closing receipt and checkpoint stood beside the archive.
    async fn close_again(&self, order: &Order, partition: &str, head: &Head) -> Result<(), OrderError> {
        let bucket = format!("s3://{}/", self.archives.bucket());
        let mut end = head.size;
        // Of this generation the last one is meant, and few receipts can come behind it.
        while end > 0 {
            let start = end.saturating_sub(LOOK_BACK);
            let lines = self.store.receipts_from(partition, start).await?;
            let few = usize::try_from(end - start).unwrap_or(usize::MAX);
            for line in lines.iter().take(few).rev() {
                let receipt: Receipt = serde_json::from_str(line)?;
                if let Payload::DecommissionComplete { archive_path, .. } = &receipt.payload
                    && let Some(key) = archive_path.strip_prefix(&bucket)
                {
                    let closing = (receipt.seq, line.as_str());
                    let signer = self.signer().await?;
                    self.archives
                        .close(&self.store, &signer, &order.account_id, key, closing, head)
                        .await?;
                    return Ok(());
                }
            }
            end = start;
        }
        Ok(())
    }

    /// Waits until no action is in flight and the queue is empty: the governor finishes what runs and refuses the rest.
    async fn drain(&self, partition: &str, tenant: &Tenant) -> Result<(), OrderError> {
        let deadline = Instant::now() + DRAIN;
        let mut quiet = 0;
        loop {
            let account = self.store.load(partition, &Keys::default()).await?;
            let in_flight = account.tenant.map_or(0, |t| t.in_flight);
            let backlog = self.teardown.backlog(&tenant.resources.queue_url).await?;
            // SQS counts are approximate, so one look that finds nothing is not enough.
            quiet = if in_flight == 0 && backlog.is_empty() {
                quiet + 1
            } else {
                0
            };
            if quiet == 2 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                // What only waits is not being fed to the governor, as after a crash behind the mapping's deletion: it
                // is refused from here.
                if in_flight == 0 && backlog.in_flight == 0 {
                    return Ok(());
                }
                let waiting = backlog
                    .waiting
                    .saturating_add(backlog.in_flight)
                    .saturating_add(backlog.delayed);
                return Err(OrderError::NotDrained { in_flight, waiting });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Refuses, on record, what stands on a queue that the governor is no longer fed from.
    async fn refuse_left(
        &self,
        signer: &Signer,
        partition: &str,
        tenant: &Tenant,
        queue_url: &str,
    ) -> Result<(), OrderError> {
        loop {
            let left = self.teardown.receive(queue_url).await?;
            if left.is_empty() {
                return Ok(());
            }
            let asked: Vec<(ActionId, String)> = left.iter().map(asked).collect();
            let ids: Vec<Uuid> = left.iter().map(|_| Uuid::now_v7()).collect();
            let keys = Keys {
                actions: asked.iter().map(|(id, _)| id.clone()).collect(),
                ..Keys::default()
            };
            let plan = |account: &Account| {
                let now = Timestamp::now();
                let event = ActionEvent::Refused {
                    code: RefusalCode::Unavailable,
                    detail: Some("the tenant is being decommissioned".to_owned()),
                    rules: Vec::new(),
                };
                let mut plan = Plan::default();
                for ((action_id, template), receipt_id) in asked.iter().zip(&ids) {
                    let planned = plan.actions.iter().any(|a: &Action| a.action_id == *action_id);
                    if planned || account.actions.contains_key(action_id) {
                        continue;
                    }
                    let refused =
                        Action::pending(action_id.clone(), template, "", now).next(&event, *receipt_id)?;
                    plan.actions.push(refused.action);
                    plan.drafts.extend(refused.receipt.map(|payload| Draft {
                        receipt_id: *receipt_id,
                        account_id: tenant.account_id.as_str().to_owned(),
                        occurred_at: now,
                        duration_ms: 0,
                        policy_hash: None,
                        payload,
                    }));
                }
                Ok::<_, OrderError>(plan)
            };
            self.store.transact(signer, partition, &keys, None, plan).await?;
            for message in &left {
                self.teardown
                    .delete_message(queue_url, &message.receipt_handle)
                    .await?;
            }
        }
    }

    async fn close(
        &self,
        signer: &Signer,
        partition: &str,
        order: &Order,
        archived: &Archived,
    ) -> Result<(u64, String, Head), CloseError> {
        let receipt_id = Uuid::now_v7();
        let plan = |account: &Account| {
            let now = Timestamp::now();
            let tenant = account
                .tenant
                .as_ref()
                .ok_or(CloseError::State(Lifecycle::Absent))?;
            let after = tenant
                .after(TenantEvent::Archived)
                .map_err(|e| CloseError::State(e.state))?;
            // The closing receipt must stand right behind the archive's last one.
            if account.head.size != archived.summary.receipts {
                return Err(CloseError::Moved);
            }
            let waited = now.duration_since(order.requested_at).as_millis().max(0);
            let draft = Draft {
                receipt_id,
                account_id: order.account_id.as_str().to_owned(),
                occurred_at: now,
                duration_ms: u64::try_from(waited).unwrap_or(0),
                policy_hash: None,
                payload: Payload::DecommissionComplete {
                    actions_completed: tenant.actions_completed,
                    actions_failed: tenant.actions_failed,
                    receipts_archived: archived.summary.receipts,
                    archive_path: format!("s3://{}/{}", self.archives.bucket(), archived.key),
                    archive_size_bytes: archived.summary.size_bytes,
                    archive_sha256: archived.summary.sha256.clone(),
                    archive_version: archived.version.clone(),
                },
            };
            Ok(Plan {
                tenant: Some(after),
                drafts: vec![draft],
                ..Plan::default()
            })
        };
        let committed = self
            .store
            .transact(signer, partition, &Keys::default(), None, plan)
            .await?;
        let sealed = committed.sealed.into_iter().next();
        let (seq, line) = sealed.map(|s| (s.seq, s.line)).unwrap_or_default();
        Ok((seq, line, committed.account.head))
    }
}

/// The action a leftover message asks for, and its template; a message that is no signal is known by its own id.
fn asked(message: &Left) -> (ActionId, String) {
    match Signal::parse(&message.body) {
        Ok(signal) => (signal.action_id, names::printable(&signal.template, 64)),
        Err(_) => (ActionId::of_message(&message.message_id), String::new()),
    }
}

impl OrderError {
    /// Whether the ledger is not the one that was signed for: a person must look, and until then nothing is deleted.
    fn is_fork(&self) -> bool {
        match self {
            Self::Log(error) => error.is_fork(),
            Self::Archive(error) => error.is_fork(),
            _ => false,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Form(_) => "malformed",
            Self::Secrets(_) => "signing_key",
            Self::Store(_) => "tables",
            Self::Queue(_) => "queue",
            Self::Archive(_) | Self::Log(_) if self.is_fork() => "ledger_forked",
            Self::Archive(_) => "archive",
            Self::Log(_) => "log",
            Self::NotDrained { .. } => "not_drained",
            Self::Moving => "ledger_moving",
            Self::State(_) => "state",
            Self::Illegal(_) => "illegal",
        }
    }
}
