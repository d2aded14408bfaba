//! Two ways in: a webhook says that a customer cancelled and is answered at once; the decommission queue then drains,
//! archives and deletes. Each step can be repeated, so a crash anywhere is finished by the next delivery.

use aws::archive::Archives;
use aws::config::{self, ConfigError, Stack};
use aws::entitlements::{Entitlements, TaskOutcome};
use aws::functions::Functions;
use aws::http::{Problem, Request};
use aws::log::Log;
use aws::queues::{Messages, QueueError, Teardown, TenantQueues};
use aws::registry::Registry;
use aws::secrets::Secrets;
use aws::store::{Store, TurnedAwayAs};
use aws::tables::TenantTables;
use aws::webhooks::Webhooks;
use aws::{clients, telemetry};
use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use domain::operations::apply_event::Task;
use domain::transaction::DeliveryRecord;
use domain::webhook::event::{Change, WebhookEvent};
use jiff::Timestamp;
use lambda_runtime::Error;
use serde_json::Value;
use tracing::error;

use crate::decommission::{DecommissionError, Decommissioner};
use std::sync::Arc;

/// How long an order that could not be carried out waits, in seconds.
const RETRY_SECONDS: u32 = 60;
/// Everything `cancel` needs, made once per process.
pub struct Cancel {
    webhooks: Webhooks,
    decommissioner: Decommissioner,
    messages: Messages,
    decommission_queue: String,
}

/// Why `cancel` cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Queues(#[from] QueueError),
}

impl Cancel {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`StartError`] naming what is missing or makes no sense.
    pub async fn from_env() -> Result<Self, StartError> {
        let stack = Stack::from_env()?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let decommission_queue = config::required(config::DECOMMISSION_QUEUE_URL)?;
        let queue_prefix = config::queue_prefix()?;
        let governor = config::required(config::GOVERNOR_FUNCTION_ARN)?;
        let entitlement_function = config::required(config::ENTITLEMENT_FUNCTION)?;
        let sdk = clients::load().await;
        let s3 = sdk.s3();
        let webhooks = Webhooks::from_env(Secrets::new(&sdk), "cancel")?;
        Ok(Self {
            messages: Messages::new(&sdk),
            decommission_queue: decommission_queue.clone(),
            decommissioner: Decommissioner {
                archives: Archives::new(Log::from_env(s3.clone())?),
                teardown: Teardown::new(&sdk),
                queues: TenantQueues::new(&sdk, governor)?,
                tables: TenantTables::new(&sdk),
                functions: Functions::new(&sdk),
                secrets: Arc::clone(webhooks.secrets()),
                signing_key: stack.signing_key_secret.clone(),
                entitlement_function,
                entitlements: Entitlements::new(
                    Store::new(&sdk, stack.clone()),
                    Registry::new(s3, registry),
                    Messages::new(&sdk),
                    decommission_queue,
                    queue_prefix,
                    stack.tenants_table,
                ),
            },
            webhooks,
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
        let receive = async |request: Request| self.receive(&request).await;
        Ok(self.webhooks.serve(event, receive).await?)
    }

    async fn receive(&self, request: &Request) -> Result<DeliveryRecord, Problem> {
        let now = Timestamp::now();
        let delivery = self.webhooks.read(request, now).await?;
        let asked = delivery.asked();
        let signer = self.webhooks.signer(&self.decommissioner.signing_key).await?;
        let event = match delivery.said {
            WebhookEvent::Entitlement(event) if event.change == Change::Cancelled => event,
            WebhookEvent::Entitlement(_) => {
                let detail = "this address takes entitlement.cancelled; send others to /webhooks/entitlement";
                return Err(Problem::new(422, "Wrong event type", detail));
            }
            WebhookEvent::Ignored { account_id, reason } => {
                return self
                    .decommissioner
                    .entitlements
                    .ignore(&signer, &asked, account_id, reason, now)
                    .await;
            }
        };
        let task = Task::delivered(event, asked, now);
        match self.decommissioner.entitlements.take(&signer, &task, now).await? {
            // A mapping of a tenant that lives on follows its plans at the next repair: this function may not change it.
            TaskOutcome::Answered { record, .. } => {
                if TurnedAwayAs::of(record.status) == TurnedAwayAs::Refused {
                    telemetry::count("cancel", "delivery_refused", ("provider", &task.asked.provider));
                    let delivery = task.asked.key();
                    error!(
                        delivery,
                        "refused; `ggen deliveries` shows why, and tries it again"
                    );
                }
                Ok(record)
            }
            // A cancellation begins nothing, and does not wait before it is kept.
            TaskOutcome::Begun { .. } | TaskOutcome::Waits => {
                Err(Problem::unavailable("the account is being changed; retry later"))
            }
        }
    }

    /// Carries out an order, and holds its message meanwhile.
    async fn carry_out(&self, message: &SqsMessage) -> Result<(), DecommissionError> {
        let body = message.body.as_deref().unwrap_or_default();
        let order = self.decommissioner.carry_out(body);
        let Some(handle) = message.receipt_handle.as_deref() else {
            return order.await;
        };
        tokio::select! {
            done = order => done,
            // Stopped anywhere, as if it had crashed: the next delivery goes on.
            lost = self.messages.hold(&self.decommission_queue, handle) => Err(lost.into()),
        }
    }

    async fn work(&self, batch: SqsEvent) -> SqsBatchResponse {
        let mut response = SqsBatchResponse::default();
        for message in batch.records {
            let Err(e) = self.carry_out(&message).await else {
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
}
