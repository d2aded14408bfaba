//! A webhook's way: verify, parse, look up, decide, commit, make what is needed, answer. What an earlier run left undone
//! comes in as a request of the sweep's, or of the function that decommissions.

use std::time::{Duration, Instant};

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::entitlements::{Entitlements, Retried, TaskOutcome};
use aws::functions::Functions;
use aws::http::{Problem, Request};
use aws::queues::{Messages, QueueError, TenantQueues};
use aws::registry::Registry;
use aws::secrets::Secrets;
use aws::store::{Store, TurnedAwayAs};
use aws::tables::TenantTables;
use aws::telemetry;
use aws::webhooks::{Webhooks, not_stored};
use domain::account::AccountId;
use domain::entitlement::decide::order_of;
use domain::json::object;
use domain::names::Partition;
use domain::operations::apply_event::{Task, expired, resends};
use domain::operations::provision;
use domain::provisioning::DeliveryRef;
use domain::tenant::{Deferred, Lifecycle, Pace};
use domain::transaction::{DeliveryRecord, Keys, Repeat};
use domain::webhook::event::WebhookEvent;
use jiff::Timestamp;
use lambda_runtime::Error;
use receipts::key::Signer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout_at;
use tracing::{error, info, warn};

use crate::saga::{Provisioner, SagaError, SagaOutcome};

/// How long one request goes on to carry out events that wait.
const BUDGET: Duration = Duration::from_secs(15);

/// How long a sender that does not post again is kept waiting while something is made. GitHub hangs up after ten seconds, and
/// shows the delivery as failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(7);

/// Everything `entitlement` needs, made once per process.
pub struct Entitlement {
    webhooks: Webhooks,
    provisioner: Provisioner,
    signing_key: String,
    /// Its own name, to have itself go on with what takes longer than its sender waits.
    function: String,
}

/// Why `entitlement` cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Queues(#[from] QueueError),
}

/// A request to go on with what an earlier run left: `{"resume": {"account_id": …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
struct Resume {
    account_id: AccountId,
    /// Whether what an active tenant needs is looked for, and made where it is missing.
    #[serde(default)]
    repair: bool,
}

/// A request to decide a delivery anew that changed nothing: `{"retry": {"delivery": "github#72d3162e-…"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Retry {
    /// Provider and id of the delivery.
    delivery: String,
}

/// What came of going on.
#[derive(Debug, Serialize)]
struct Resumed {
    lifecycle: &'static str,
    /// Answers to events that waited.
    carried_out: usize,
    /// Events that still wait.
    waiting: usize,
    /// What was missing and is made again.
    repaired: Vec<&'static str>,
}

impl Entitlement {
    /// Reads the environment and makes the clients.
    ///
    /// # Errors
    /// [`StartError`] naming what is missing.
    pub async fn from_env() -> Result<Self, StartError> {
        let stack = Stack::from_env()?;
        let bucket = config::required(config::REGISTRY_BUCKET)?;
        let governor = config::required(config::GOVERNOR_FUNCTION_ARN)?;
        let queue_prefix = config::queue_prefix()?;
        let decommission_queue = config::required(config::DECOMMISSION_QUEUE_URL)?;
        let function = config::required(config::AWS_LAMBDA_FUNCTION_NAME)?;
        let sdk = clients::load().await;
        let webhooks = Webhooks::from_env(Secrets::new(&sdk), "entitlement")?;
        Ok(Self {
            webhooks,
            function,
            signing_key: stack.signing_key_secret.clone(),
            provisioner: Provisioner {
                queues: TenantQueues::new(&sdk, governor.clone())?,
                tables: TenantTables::new(&sdk),
                functions: Functions::new(&sdk),
                governor,
                entitlements: Entitlements::new(
                    Store::new(&sdk, stack.clone()),
                    Registry::new(sdk.s3(), bucket),
                    Messages::new(&sdk),
                    decommission_queue,
                    queue_prefix,
                    stack.tenants_table,
                ),
            },
        })
    }

    /// Answers one event: an HTTP request, or a request to go on or to try again.
    ///
    /// # Errors
    /// When a request to go on could not be carried out: whoever asks, asks again.
    pub async fn handle(&self, event: Value) -> Result<Value, Error> {
        if let Some(asked) = event.get("resume") {
            let asked: Resume = object(asked)?;
            return Ok(serde_json::to_value(Box::pin(self.resume(&asked)).await?)?);
        }
        if let Some(asked) = event.get("retry") {
            let asked: Retry = object(asked)?;
            return Ok(serde_json::to_value(Box::pin(self.retry(&asked)).await?)?);
        }
        let receive = async |request: Request| Box::pin(self.receive(&request)).await;
        Ok(self.webhooks.serve(event, receive).await?)
    }

    async fn receive(&self, request: &Request) -> Result<DeliveryRecord, Problem> {
        let (began, now) = (Instant::now(), Timestamp::now());
        let delivery = self.webhooks.read(request, now).await?;
        let (provider, asked) = (delivery.provider, delivery.asked());
        let until = (!provider.resends).then(|| began + ANSWER_WITHIN);
        let answer = Box::pin(self.answer(delivery.said, &asked, now, until)).await;
        if answer.as_ref().is_err_and(|problem| problem.status == 503) && !provider.resends {
            // A person has to have it delivered again: there, or it is lost.
            telemetry::count("entitlement", "delivery_turned_away", ("provider", provider.name));
            error!(
                provider = provider.name,
                delivery = asked.delivery_id,
                "turned away, and will not be posted again"
            );
        }
        answer
    }

    async fn answer(
        &self,
        said: WebhookEvent,
        asked: &DeliveryRef,
        now: Timestamp,
        until: Option<Instant>,
    ) -> Result<DeliveryRecord, Problem> {
        let signer = self.webhooks.signer(&self.signing_key).await?;
        match said {
            WebhookEvent::Entitlement(event) => {
                let task = Task::delivered(event, asked.clone(), now);
                Box::pin(self.carry_out(&signer, &task, now, until))
                    .await?
                    .ok_or_else(|| {
                        // Nothing that a sender brings is left without an answer; this says so if it ever were.
                        Problem::unavailable("the delivery was taken up by another one; retry later")
                    })
            }
            WebhookEvent::Ignored { account_id, reason } => {
                self.provisioner
                    .entitlements
                    .ignore(&signer, asked, account_id, reason, now)
                    .await
            }
        }
    }

    /// Carries out one event to its end; `None` when it still waits. What is still being made at `until` is gone on with by another
    /// run. Of one that is refused, a person is told: its sender does not ask again.
    async fn carry_out(
        &self,
        signer: &Signer,
        task: &Task,
        now: Timestamp,
        until: Option<Instant>,
    ) -> Result<Option<DeliveryRecord>, Problem> {
        let answer = Box::pin(self.take(signer, task, now, until)).await;
        if let Ok(Some(record)) = &answer
            && TurnedAwayAs::of(record.status) == TurnedAwayAs::Refused
        {
            refused(task);
        }
        answer
    }

    async fn take(
        &self,
        signer: &Signer,
        task: &Task,
        now: Timestamp,
        until: Option<Instant>,
    ) -> Result<Option<DeliveryRecord>, Problem> {
        let (account, fresh) = match self.provisioner.entitlements.take(signer, task, now).await? {
            TaskOutcome::Answered { record, pace } => {
                let (account, change) = (task.event.account_id.as_str(), task.event.change.name());
                info!(account, change, status = record.status, "answered");
                self.pace(pace).await;
                return Ok(Some(record));
            }
            TaskOutcome::Waits => return Ok(None),
            TaskOutcome::Begun { account, fresh } => (*account, fresh),
        };
        // Whatever it is at when the time is over: the intent is on record, and another run takes it up from there.
        let made = before(until, Box::pin(self.provisioner.make(signer, account, fresh))).await;
        let made = match made {
            Some(Ok(made)) => made,
            Some(Err(e)) => return self.not_made(task, &e),
            None => return Ok(Some(self.made_later(task).await)),
        };
        let waiting = match &made {
            SagaOutcome::Active { account, .. } | SagaOutcome::Undone { account, .. } => account
                .tenant
                .as_ref()
                .is_some_and(|tenant| !tenant.deferred.is_empty()),
            SagaOutcome::ByAnother(_) => false,
        };
        let answer = match made {
            SagaOutcome::Active { record, .. } => {
                info!(account = task.event.account_id.as_str(), "entitlement active");
                Ok(Some(record))
            }
            SagaOutcome::ByAnother(Some(record)) => Ok(Some(record)),
            // Another run is at it, and goes on by itself; who posts again may as well.
            SagaOutcome::ByAnother(None) if task.waited || resends(&task.asked.provider) => Err(
                Problem::unavailable("another delivery changed the account meanwhile; retry later"),
            ),
            SagaOutcome::ByAnother(None) => Ok(Some(provisioning(task))),
            SagaOutcome::Undone {
                record: Some(record), ..
            } => Ok(Some(record)),
            SagaOutcome::Undone {
                record: None, step, ..
            } => Err(Problem::unavailable(format!(
                "provisioning failed at {step} and is undone; retry later"
            ))),
        };
        if waiting && !task.waited {
            // What came in meanwhile is carried out now; what fails is left to the sweep.
            let partition = Partition::of(&task.event.account_id);
            let account = task.event.account_id.as_str();
            match before(until, Box::pin(self.carry_out_waiting(signer, &partition))).await {
                Some(Ok(_)) => {}
                Some(Err(problem)) => warn!(account, detail = problem.detail, "events still wait"),
                None => self.go_on_later(task).await,
            }
        }
        answer
    }

    /// The intent is on record, and is gone on with by the sweep: a sender that posts again may as well.
    fn not_made(&self, task: &Task, error: &SagaError) -> Result<Option<DeliveryRecord>, Problem> {
        error!(error = %error, "provisioning goes on with the next delivery or the sweep");
        if task.waited || resends(&task.asked.provider) {
            return Err(Problem::unavailable(
                "provisioning could not be finished; retry later",
            ));
        }
        Ok(Some(provisioning(task)))
    }

    /// The answer to who is not kept waiting for longer; what was begun is gone on with at once.
    async fn made_later(&self, task: &Task) -> DeliveryRecord {
        info!(
            account = task.event.account_id.as_str(),
            "provisioning goes on in another run"
        );
        self.go_on_later(task).await;
        provisioning(task)
    }

    /// Has another run go on with the account. Where it can't be asked, the sweep does within a few minutes.
    async fn go_on_later(&self, task: &Task) {
        let resume = json!({ "resume": { "account_id": task.event.account_id } });
        let asked = self
            .provisioner
            .functions
            .invoke_later(&self.function, &resume)
            .await;
        if let Err(e) = asked {
            warn!(error = %e, "what is under way is left to the sweep");
        }
    }

    /// Has the mapping follow the plans. What fails here is mended by the next repair; the gate holds the limits meanwhile.
    async fn pace(&self, pace: Option<(String, Pace)>) {
        let Some((mapping_id, pace)) = pace else {
            return;
        };
        if let Err(e) = self.provisioner.queues.pace_mapping(&mapping_id, pace).await {
            warn!(error = %e, "the mapping keeps its concurrency for now");
        }
    }

    /// Decides a delivery anew that changed nothing, from what was kept of it.
    async fn retry(&self, asked: &Retry) -> Result<Retried, Error> {
        let refused = |refused: String| Ok(Retried::Refused { refused });
        let delivery = asked.delivery.as_str();
        let store = &self.provisioner.entitlements.store;
        let Some(record) = store.delivery(delivery).await? else {
            return refused(format!("no delivery {delivery} is known"));
        };
        let Some(turned_away) = record.turned_away() else {
            return refused(format!(
                "delivery {delivery} was carried out, or is being carried out"
            ));
        };
        let Some(event) = turned_away.event.clone() else {
            return refused(format!(
                "delivery {delivery} asks for nothing: {}",
                turned_away.reason
            ));
        };
        let told = |problem: Problem| Error::from(problem.detail);
        let signer = self.webhooks.signer(&self.signing_key).await.map_err(told)?;
        let now = Timestamp::now();
        let task = Task::delivered(event, turned_away.asked.clone(), now);
        let answer = Box::pin(self.carry_out(&signer, &task, now, None))
            .await
            .map_err(told)?;
        let record = answer.ok_or("the delivery was taken up by another run")?;
        Ok(Retried::Answered {
            status: record.status,
            receipt: serde_json::from_str(&record.receipt)?,
        })
    }

    /// Goes on with what an earlier run left undone.
    async fn resume(&self, asked: &Resume) -> Result<Resumed, Error> {
        let told = |problem: Problem| Error::from(problem.detail);
        let signer = self.webhooks.signer(&self.signing_key).await.map_err(told)?;
        let partition = Partition::of(&asked.account_id);
        let account = self
            .provisioner
            .entitlements
            .store
            .load(&partition, &Keys::default())
            .await?;
        let mut stuck = None;
        if let Some(saga) = account
            .tenant
            .as_ref()
            .and_then(|tenant| tenant.provisioning.as_ref())
        {
            let account = self
                .provisioner
                .entitlements
                .store
                .load(&partition, &provision::keys(saga))
                .await?;
            // What stands still holds up nothing else of the account.
            match Box::pin(self.provisioner.make(&signer, account, false)).await {
                Ok(_) => {}
                Err(e @ SagaError::NotYet { .. }) => info!(%partition, error = %e, "not ready yet"),
                Err(e) => stuck = Some(e),
            }
        }
        let carried_out = self.carry_out_waiting(&signer, &partition).await.map_err(told)?;
        let entitlements = &self.provisioner.entitlements;
        let pace = entitlements.end_expired(&signer, &asked.account_id).await;
        self.pace(pace.map_err(told)?).await;
        let repaired = match asked.repair {
            true => Box::pin(self.provisioner.repair(&signer, &partition)).await?,
            false => Vec::new(),
        };
        if let Some(e) = stuck {
            return Err(e.into());
        }
        let account = self
            .provisioner
            .entitlements
            .store
            .load(&partition, &Keys::default())
            .await?;
        let tenant = account.tenant.as_ref();
        Ok(Resumed {
            lifecycle: tenant.map_or(Lifecycle::Absent, |tenant| tenant.lifecycle).name(),
            carried_out,
            waiting: tenant.map_or(0, |tenant| tenant.deferred.len()),
            repaired,
        })
    }

    /// Carries out the events of an account that are due, in the order their senders tell.
    async fn carry_out_waiting(&self, signer: &Signer, partition: &Partition) -> Result<usize, Problem> {
        let account = self
            .provisioner
            .entitlements
            .store
            .load(partition, &Keys::default())
            .await;
        let account = account.map_err(|e| not_stored(&e))?;
        let now = Timestamp::now();
        let mut due: Vec<Deferred> = account.tenant.map(|tenant| tenant.deferred).unwrap_or_default();
        due.retain(|waiting| waiting.due_at <= now);
        due.sort_by_key(|waiting| order_of(&waiting.event, &waiting.asked, waiting.received_at).place());
        let (began, mut carried_out) = (Instant::now(), 0);
        for task in due.into_iter().map(Task::waiting) {
            if began.elapsed() >= BUDGET {
                warn!(%partition, "the rest of the events waits for the next run");
                break;
            }
            // One event is carried out by another's way, which may find that others wait: boxed, as it would not end.
            match Box::pin(self.carry_out(signer, &task, Timestamp::now(), None)).await {
                Ok(done) => carried_out += usize::from(done.is_some()),
                Err(problem) => {
                    // It goes back in line, and holds up nobody.
                    warn!(
                        %partition,
                        detail = problem.detail,
                        "an event could not be carried out yet"
                    );
                    let postponed = self.provisioner.entitlements.postpone(signer, &task, &problem);
                    postponed.await.map_err(|e| not_stored(&e))?;
                    if expired(task.due_since, now) {
                        refused(&task);
                    }
                }
            }
        }
        Ok(carried_out)
    }
}

/// The answer while what was asked for is being made.
fn provisioning(task: &Task) -> DeliveryRecord {
    let said = json!({ "status": "provisioning", "detail": "it goes on by itself" });
    DeliveryRecord {
        key: task.asked.key(),
        body_sha256: task.asked.body_sha256.clone(),
        status: 202,
        receipt: said.to_string(),
        repeat: Repeat::UnderWay,
    }
}

/// What comes of work that may be broken off at a time; `None` when it was.
async fn before<T>(until: Option<Instant>, work: impl Future<Output = T> + Unpin) -> Option<T> {
    match until {
        Some(until) => timeout_at(until.into(), work).await.ok(),
        None => Some(work.await),
    }
}

/// Has an alarm ring: an event changed nothing, and somebody may have to do something before it is tried again.
fn refused(task: &Task) {
    let provider = task.asked.provider.as_str();
    telemetry::count("entitlement", "delivery_refused", ("provider", provider));
    let (account, delivery) = (task.event.account_id.as_str(), task.asked.key());
    error!(
        account,
        delivery, "refused; `ggen deliveries` shows why, and tries it again"
    );
}
