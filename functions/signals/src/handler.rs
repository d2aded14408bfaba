//! A producer's request's way: verify, parse, look up, decide, note the action as pending, put the signal on the queue, answer.

use std::time::{Duration, Instant};

use aws::clients;
use aws::config::{self, ConfigError, Stack};
use aws::control::ControlStore;
use aws::http::{self, Problem, Request};
use aws::queues::Messages;
use aws::registry::{Registry, RegistryError};
use aws::secrets::{Secrets, SecretsError};
use aws::spool::Spool;
use aws::store::{Store, StoreError};
use aws::telemetry;
use aws_lambda_events::apigw::ApiGatewayV2httpResponse as Response;
use domain::account::AccountId;
use domain::action::{Action, ActionState};
use domain::admission::Enforcers;
use domain::control::Control;
use domain::door::{
    self, ActionRequest, MessageTooLong, NoStatus, Refusal, RetryWhen, Route, RouteError, Step, decide,
};
use domain::gate::RefusalCode;
use domain::names::Partition;
use domain::signal::ActionId;
use domain::tenant::Tenant;
use domain::transaction::{Account, Keys};
use domain::webhook::providers::standard::verify_standard;
use domain::webhook::signature::{Secret, SecretError, SignatureError, Verified};
use jiff::Timestamp;
use lambda_runtime::Error;
use receipts::key::Signer;
use receipts::receipt::Draft;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{error, info, warn};

/// How long a request may take: below the function's timeout (10 s), so that the answer is ours.
const BUDGET: Duration = Duration::from_secs(8);

/// How often a request is decided anew because what it was decided by changed.
const DECISIONS: u32 = 4;

/// This function, in metrics.
const FUNCTION: &str = "signals";

/// Everything `signals` needs, made once per process.
pub struct Door {
    store: Store,
    registry: Registry,
    control: ControlStore,
    spool: Spool,
    secrets: Secrets,
    messages: Messages,
    signing_key: String,
    producer_secret: String,
}

/// Why a request could not be dealt with now. The caller is told in fewer words.
#[derive(Debug, thiserror::Error)]
enum DoorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("the tenant changed during each of {DECISIONS} decisions")]
    Unsettled,
}

impl DoorError {
    fn problem(self) -> Problem {
        let (kind, detail) = match &self {
            Self::Store(_) => ("tables", "the tables do not answer; retry later"),
            Self::Registry(_) => ("registry", "the policy cannot be read; retry later"),
            Self::Secrets(_) => ("secrets", "a secret cannot be read; retry later"),
            Self::Unsettled => ("tenant", "the tenant is being changed; retry later"),
        };
        error!(error = %self, "turned away");
        turned_away(kind, detail)
    }
}

/// A request that is asked to come back because of us.
fn turned_away(kind: &'static str, detail: &'static str) -> Problem {
    telemetry::count(FUNCTION, "signal_turned_away", ("error", kind));
    Problem::unavailable(detail)
}

impl Door {
    /// Reads the environment and makes the clients.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let registry = config::required(config::REGISTRY_BUCKET)?;
        let control = config::required(config::CONTROL_BUCKET)?;
        let audit = config::required(config::AUDIT_BUCKET)?;
        let producer_secret = config::required(config::PRODUCER_SECRET_ID)?;
        let sdk = clients::load().await;
        let s3 = sdk.s3();
        Ok(Self {
            signing_key: stack.signing_key_secret.clone(),
            store: Store::new(&sdk, stack),
            registry: Registry::new(s3.clone(), registry),
            control: ControlStore::new(s3.clone(), control),
            spool: Spool::new(s3, audit),
            secrets: Secrets::new(&sdk),
            messages: Messages::new(&sdk),
            producer_secret,
        })
    }

    /// Answers one HTTP request.
    ///
    /// # Errors
    /// When the answer cannot be written as JSON.
    pub async fn handle(&self, event: Value) -> Result<Value, Error> {
        let answered = match http::request(event) {
            Ok(request) => match timeout(BUDGET, Box::pin(self.answer(&request))).await {
                Ok(answered) => answered,
                Err(_) => {
                    error!(budget = ?BUDGET, "turned away: no end in sight");
                    Err(turned_away("time", "it takes too long now; retry later"))
                }
            },
            Err(problem) => Err(problem),
        };
        let response = answered.unwrap_or_else(|problem| problem.response());
        Ok(serde_json::to_value(response)?)
    }

    async fn answer(&self, request: &Request) -> Result<Response, Problem> {
        let way = Route::of(&request.method, &request.path).map_err(no_way)?;
        let verified = self.verify(way.account_id(), request).await?;
        match &way {
            Route::Ask { account_id } => Box::pin(self.ask(account_id, &verified)).await,
            Route::Tell {
                account_id,
                action_id,
            } => {
                if verified.delivery().id != action_id.as_str() {
                    let detail = "header webhook-id must be the action id in the path";
                    return Err(Problem::new(400, "Signature refused", detail));
                }
                Box::pin(self.tell(account_id, action_id)).await
            }
        }
    }

    /// Checks the signature, with the secrets as they are kept. Where none fits, they are read again: the value may have been put
    /// a moment ago.
    async fn verify<'a>(
        &self,
        account_id: &AccountId,
        request: &'a Request,
    ) -> Result<Verified<'a>, Problem> {
        let now = Timestamp::now();
        let verify = |secrets: &[Secret]| verify_standard(secrets, &request.headers, &request.body, now);
        let kept = self
            .secrets
            .shared_with_sender(&self.producer_secret, Secret::standard);
        let mut verified = verify(&Self::secrets_of(account_id, kept.await)?);
        if matches!(verified, Err(SignatureError::NoMatch)) {
            let read = self
                .secrets
                .shared_with_sender_now(&self.producer_secret, Secret::standard);
            verified = verify(&Self::secrets_of(account_id, read.await)?);
        }
        verified.map_err(|e| {
            // Whether there is such a tenant is nobody's to know who can't sign for it.
            telemetry::count(FUNCTION, "signal_rejected", ("reason", "signature"));
            warn!(error = %e, "signature refused");
            Problem::new(400, "Signature refused", e.to_string())
        })
    }

    /// The secrets an account's producers may sign with: derived from the stack's, and from the one before it while a
    /// rotation is under way.
    fn secrets_of(
        account_id: &AccountId,
        masters: Result<Vec<Secret>, SecretsError>,
    ) -> Result<Vec<Secret>, Problem> {
        let masters = masters.map_err(|e| DoorError::from(e).problem())?;
        if masters.is_empty() {
            error!("the producer secret has no value yet");
            return Err(turned_away(
                "secrets",
                "the producer secret is not set up yet; retry later",
            ));
        }
        let derived: Result<_, SecretError> = masters
            .iter()
            .map(|master| master.of_producer(account_id))
            .collect();
        derived.map_err(|e| {
            error!(error = %e, "no secret could be derived");
            turned_away("secrets", "the producer secret cannot be used; retry later")
        })
    }

    /// `POST …/signals`: an action is asked for.
    async fn ask(&self, account_id: &AccountId, verified: &Verified<'_>) -> Result<Response, Problem> {
        let started = Instant::now();
        let delivery = &verified.delivery().id;
        let asked = ActionRequest::parse(account_id, delivery, verified.body()).map_err(|e| {
            telemetry::count(FUNCTION, "signal_rejected", ("reason", "body"));
            // The full text quotes what stands in the body: only the sender gets that.
            let (account, detail) = (account_id.as_str(), e.for_the_record());
            warn!(account, delivery, detail, "signal not understood");
            Problem::new(400, "Signal not understood", e.to_string()).with("code", "MALFORMED_SIGNAL")
        })?;
        let control = match self.control.read().await {
            Ok(control) if !control.degraded() => control,
            Ok(_) => return Err(self.degraded(&asked, "the system is degraded", started).await),
            Err(e) => {
                error!(error = %e, "control is unreadable: everything is refused");
                return Err(self.degraded(&asked, "control cannot be read", started).await);
            }
        };
        let admitted = Box::pin(self.admit(&asked, &control, started)).await;
        match admitted.map_err(DoorError::problem)? {
            Admitted::Known(action) => {
                let told = self.told(account_id, &action).await.map_err(DoorError::problem)?;
                Ok(http::answered(200, told))
            }
            Admitted::Refused(problem) => Err(problem),
            Admitted::Send(letter) => self.send(&asked, letter).await,
        }
    }

    /// Reads what the request is about, decides, and writes what follows: the action as pending, or the refusal.
    async fn admit(
        &self,
        asked: &ActionRequest,
        control: &Control,
        started: Instant,
    ) -> Result<Admitted, DoorError> {
        let partition = Partition::of(&asked.account_id);
        let keys = Keys {
            actions: [asked.action_id.clone()].into(),
            ..Keys::default()
        };
        let mut account = self.store.load(&partition, &keys).await?;
        for _ in 0..DECISIONS {
            // Each time: by now the tenant may be pinned to another policy.
            let enforcers = self.enforcers(asked, account.tenant.as_ref()).await?;
            let step = |account: &Account, now| {
                let known = account.actions.get(&asked.action_id);
                let tenant = account.tenant.as_ref();
                decide(asked, tenant, known, control, &enforcers, now)
            };
            let sending = match step(&account, Timestamp::now()) {
                Step::Tell(action) => return Ok(Admitted::Known(action)),
                Step::Send(sending) => sending,
                Step::Refuse { refusal, on_record } => {
                    let draft = refusal.draft(asked, millis(started), Timestamp::now());
                    let kept = on_record && self.on_record(account, &draft).await?;
                    return Ok(Admitted::Refused(refused(
                        asked,
                        &refusal,
                        kept.then_some(&draft),
                    )));
                }
            };
            // Before anything is noted of it, and of one that is known too: the body may be another one now.
            let message = match sending.message() {
                Ok(message) => message,
                Err(e) => return Ok(Admitted::Refused(too_long(e))),
            };
            if sending.new.is_none() {
                return Ok(Admitted::Send(Letter {
                    message,
                    queue_url: sending.queue_url,
                    policy_hash: sending.signal.policy_hash,
                }));
            }
            let signer = self.secrets.signer(&self.signing_key).await?;
            // Another delivery may have been first: then it is decided anew, with what stands there.
            let note = |account: &Account, now| Ok::<_, DoorError>((step(account, now).note(), ()));
            let committed = self
                .store
                .transact(&signer, &partition, &keys, Some(account), note);
            account = committed.await?.0.account;
        }
        Err(DoorError::Unsettled)
    }

    /// The enforcer that decides about the request. One that is not what its hash says is left out: the gate then refuses.
    async fn enforcers(
        &self,
        asked: &ActionRequest,
        tenant: Option<&Tenant>,
    ) -> Result<Enforcers, RegistryError> {
        let Some(hash) = asked.pinned_hash(tenant) else {
            return Ok(Enforcers::new());
        };
        match self.registry.enforcer(hash).await {
            Ok(enforcer) => Ok([(hash.to_owned(), enforcer)].into()),
            Err(e) if e.is_lasting() => {
                telemetry::count(FUNCTION, "enforcer_refused", ("kind", "not_what_its_hash_says"));
                error!(account = asked.account_id.as_str(), error = %e, "enforcer refused");
                Ok(Enforcers::new())
            }
            Err(e) => Err(e),
        }
    }

    /// Appends a refusal to the tenant's ledger, once, and says whether it stands there: it does not where the tenant began
    /// to leave meanwhile.
    async fn on_record(&self, account: Account, draft: &Draft) -> Result<bool, DoorError> {
        let signer = self.secrets.signer(&self.signing_key).await?;
        let partition = account.partition.clone();
        let keys = Keys {
            once: [draft.receipt_id].into(),
            ..Keys::default()
        };
        let append = |account: &Account, _| Ok::<_, DoorError>((door::put_on_record(account, draft), ()));
        // Whether it was appended before was not read: then this is found out by the condition that fails.
        let (committed, ()) = self
            .store
            .transact(&signer, &partition, &keys, Some(account), append)
            .await?;
        Ok(!committed.sealed.is_empty() || committed.account.once.contains(&draft.receipt_id))
    }

    /// Storage fails: nothing touches the tables, and the refusal waits in the spool.
    async fn degraded(&self, asked: &ActionRequest, detail: &str, started: Instant) -> Problem {
        let refusal = Refusal::unavailable(detail);
        let draft = refusal.draft(asked, millis(started), Timestamp::now());
        let kept = match self.secrets.signer(&self.signing_key).await {
            Ok(signer) => self.keep(&draft, &signer).await,
            Err(e) => {
                error!(error = %e, "a refusal is not on record");
                None
            }
        };
        refused(asked, &refusal, kept)
    }

    async fn keep<'d>(&self, draft: &'d Draft, signer: &Signer) -> Option<&'d Draft> {
        match self.spool.keep(draft, signer).await {
            Ok(()) => Some(draft),
            Err(e) => {
                error!(error = %e, "a refusal is not on record");
                None
            }
        }
    }

    /// Puts the signal on the queue. When that fails its action stays pending, and the same request sends it again.
    async fn send(&self, asked: &ActionRequest, letter: Letter) -> Result<Response, Problem> {
        let account = asked.account_id.as_str();
        let action_id = asked.action_id.as_str();
        let sent = self.messages.send(&letter.queue_url, letter.message).await;
        sent.map_err(|e| {
            error!(account, action_id, error = %e, "turned away");
            turned_away("queue", "the queue does not take the signal; retry later")
                .with("action_id", action_id)
        })?;
        telemetry::count(FUNCTION, "signal_accepted", ("stage", "queue"));
        info!(account, action_id, "on the queue");
        let body = json!({
            "action_id": action_id,
            "state": ActionState::Pending.name(),
            "policy_hash": letter.policy_hash,
        });
        Ok(http::accepted(&body, &format!("actions/{action_id}")))
    }

    /// `GET …/actions/{action_id}`: how an action stands.
    async fn tell(&self, account_id: &AccountId, action_id: &ActionId) -> Result<Response, Problem> {
        let partition = Partition::of(account_id);
        let keys = Keys {
            actions: [action_id.clone()].into(),
            ..Keys::default()
        };
        let account = self.store.load(&partition, &keys).await;
        let account = account.map_err(|e| DoorError::from(e).problem())?;
        let found = door::look(account.tenant.as_ref(), account.actions.get(action_id));
        let action = found.map_err(|untold| {
            let problem = match untold {
                NoStatus::Unknown => Problem::new(404, "No such action", "nothing is known of this action"),
                NoStatus::Gone => {
                    let detail = "the tenant was decommissioned before the action began";
                    Problem::new(410, "Tenant is gone", detail).with("code", RefusalCode::Gone.name())
                }
            };
            problem.with("action_id", action_id.as_str())
        })?;
        let told = self.told(account_id, action).await.map_err(DoorError::problem)?;
        Ok(http::answered(200, told))
    }

    /// An action with its receipts. Those stand as they do in the ledger, byte for byte: they can be checked.
    async fn told(&self, account_id: &AccountId, action: &Action) -> Result<String, DoorError> {
        let partition = Partition::of(account_id);
        // The index may lag behind; `receipt_ids` has all.
        let lines = self.store.receipts_of(&partition, &action.receipts).await?;
        let mut body = json!({
            "action_id": action.action_id,
            "template": action.template,
            "state": action.state.name(),
            "policy_hash": action.policy_hash,
            "started_at": millisecond(action.started_at),
            "receipt_ids": action.receipts,
        });
        if let (Some(escalation), Some(body)) = (&action.escalation, body.as_object_mut()) {
            let escalation = json!({
                "error_code": escalation.error_code,
                "at": millisecond(escalation.at),
            });
            body.insert("escalation".to_owned(), escalation);
        }
        let body = body.to_string();
        let open = body.strip_suffix('}').unwrap_or(&body);
        Ok(format!("{open},\"receipts\":[{}]}}", lines.join(",")))
    }
}

/// What became of a request that was decided.
enum Admitted {
    /// Its action was begun, or is over.
    Known(Box<Action>),
    /// Its action is pending: its signal goes on the queue.
    Send(Letter),
    /// It is refused.
    Refused(Problem),
}

/// A message and where it goes.
struct Letter {
    message: String,
    queue_url: String,
    policy_hash: String,
}

fn too_long(error: MessageTooLong) -> Problem {
    Problem::new(413, "Body too large", error.to_string())
}

fn refused(asked: &ActionRequest, refusal: &Refusal, on_record: Option<&Draft>) -> Problem {
    let (reply, code) = (refusal.reply(), refusal.code.name());
    telemetry::count(FUNCTION, "signal_refused", ("code", code));
    let (account, action_id) = (asked.account_id.as_str(), asked.action_id.as_str());
    info!(account, action_id, code, "refused");
    let mut problem = Problem::new(reply.status, reply.title, refusal.detail.as_str())
        .with("code", code)
        .with("rules", refusal.rules.as_slice())
        .with("action_id", action_id);
    if let Some(draft) = on_record {
        problem = problem.with("receipt_id", draft.receipt_id.to_string());
    }
    if reply.again == RetryWhen::NextMonth {
        problem.retry_after = Some(door::seconds_to_next_month(Timestamp::now()));
    }
    problem
}

fn no_way(error: RouteError) -> Problem {
    match &error {
        RouteError::Path => Problem::new(404, "No such path", error.to_string()),
        RouteError::Method { allowed } => Problem {
            allow: Some(allowed),
            ..Problem::new(405, "Method not allowed", error.to_string())
        },
        RouteError::Encoding { .. } | RouteError::Account(_) | RouteError::Action(_) => {
            Problem::new(400, "Path not understood", error.to_string())
        }
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// A time as receipts tell it: RFC 3339, UTC, milliseconds.
fn millisecond(at: Timestamp) -> String {
    format!("{at:.3}")
}
