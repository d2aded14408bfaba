//! A checkpoint's way: read the head, hold the ledger against what was signed before, sign, publish.
//!
//! Asked for one ledger, or for all of them: then it goes through the index, a few at a time, and before its time is over
//! it has itself invoked again to go on. One ledger that fails does not keep the others from their checkpoints.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws::clients::{self, explain};
use aws::config::{self, ConfigError, Stack};
use aws::functions::{Functions, InvokeError};
use aws::log::{Issued, Log, LogError};
use aws::secrets::{Secrets, SecretsError};
use aws::store::{Store, StoreError};
use aws::telemetry;
use domain::account::AccountId;
use domain::names::{LedgerId, Partition};
use domain::transaction::Keys;
use receipts::key::Signer;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{error, info};

/// Ledgers worked on at a time.
const AT_ONCE: usize = 8;
/// For how long new ledgers are taken up, in seconds. The function has five minutes more, for those it has begun. Not
/// the invocation's own deadline: not everything that runs functions gives one.
const BUDGET_SECONDS: u64 = 600;
/// Failures that are named in an answer; all of them are logged.
const NAMED: usize = 50;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "CheckpointRequest")]
pub enum Order {
    /// A checkpoint of this ledger.
    One(LedgerId),
    /// Checkpoints of all ledgers.
    All(Walk),
}

/// A way through all ledgers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// Where the invocation before this one stopped.
    after: Option<LedgerId>,
    /// Ledgers that failed in the invocations before this one.
    failed: u64,
    /// For how long to go on, in seconds.
    budget_seconds: u64,
}

/// An order as it comes and goes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account_id: Option<AccountId>,
    #[serde(default)]
    system: bool,
    #[serde(default)]
    all: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(default)]
    failed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget_seconds: Option<u64>,
}

/// An order that is none.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Not one thing is asked for.
    #[error("expected one of `account_id`, `system: true` and `all: true`")]
    What,
    /// Not where an invocation stopped.
    #[error("`after` is {found:?}, which no ledger has as its partition")]
    After { found: String },
}

impl TryFrom<CheckpointRequest> for Order {
    type Error = OrderError;

    fn try_from(asked: CheckpointRequest) -> Result<Self, OrderError> {
        match (asked.account_id, asked.system, asked.all) {
            (Some(account_id), false, false) => Ok(Self::One(LedgerId::Customer(account_id))),
            (None, true, false) => Ok(Self::One(LedgerId::System)),
            (None, false, true) => {
                let after = match asked.after {
                    None => None,
                    Some(found) => {
                        let ledger = Partition::from_key(found.clone()).ledger();
                        Some(ledger.ok_or(OrderError::After { found })?)
                    }
                };
                Ok(Self::All(Walk {
                    after,
                    failed: asked.failed,
                    budget_seconds: asked.budget_seconds.unwrap_or(BUDGET_SECONDS).min(BUDGET_SECONDS),
                }))
            }
            _ => Err(OrderError::What),
        }
    }
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// A ledger's checkpoint.
    One {
        ledger: String,
        /// Receipts it is over.
        size: u64,
        /// The root of their Merkle tree, in hex; none of an empty ledger.
        root: Option<String>,
        /// The signed note; none of an empty ledger.
        checkpoint: Option<String>,
        /// Whether it was signed just now.
        fresh: bool,
    },
    /// A ledger that contradicts what was signed for it: nothing is signed.
    Refused {
        ledger: String,
        /// In what it does, with both values.
        refused: String,
    },
    /// How all of them went.
    All(Report),
}

/// How a way through the ledgers went.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    checked: u64,
    issued: u64,
    unchanged: u64,
    /// The first of them only.
    failed: Vec<Failure>,
    /// All of them, those of the invocations before this one as well.
    failed_count: u64,
    /// Where the next invocation goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

/// A ledger without its checkpoint.
#[derive(Debug, Serialize)]
struct Failure {
    ledger: String,
    error: String,
}

/// How long, behind the budget, ledgers that failed in passing are tried again: well within what Lambda leaves.
const SECOND_CHANCES: Duration = Duration::from_secs(120);

/// Why a checkpoint could not be signed. Asking again goes on.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the signing key is not available")]
    Secrets(#[from] SecretsError),
    /// The ledgers could not be listed.
    #[error("listing the ledgers")]
    Store(#[from] StoreError),
    /// The one ledger asked for.
    #[error("{}", explain(.0))]
    Log(#[from] LogError),
    #[error(transparent)]
    Invoke(#[from] InvokeError),
    /// Some of all ledgers.
    #[error("{failed} ledgers have no checkpoint; {named}")]
    Some {
        /// How many.
        failed: u64,
        /// The first of them, each with its error.
        named: String,
    },
}

/// What working on one ledger needs.
struct Issuer {
    store: Store,
    log: Log,
}

impl Issuer {
    async fn issue(&self, signer: &Signer, ledger: &LedgerId) -> Result<Issued, LogError> {
        let account = self.store.load(&ledger.partition(), &Keys::default()).await?;
        self.log.issue(&self.store, signer, ledger, &account.head).await
    }
}

/// Everything `checkpoint` needs, made once per process.
pub struct Checkpoints {
    issuer: Arc<Issuer>,
    functions: Functions,
    function: String,
    secrets: Secrets,
    stack: Stack,
}

impl Checkpoints {
    /// Reads the environment and makes the clients.
    pub async fn from_env() -> Result<Self, ConfigError> {
        let stack = Stack::from_env()?;
        let function = config::required(config::CHECKPOINT_FUNCTION)?;
        let sdk = clients::load().await;
        let log = Log::from_env(sdk.s3())?;
        let store = Store::new(&sdk, stack.clone());
        Ok(Self {
            issuer: Arc::new(Issuer { store, log }),
            functions: Functions::new(&sdk),
            function,
            secrets: Secrets::new(&sdk),
            stack,
        })
    }

    /// Signs one ledger's checkpoint, or those of all ledgers that have grown.
    ///
    /// # Errors
    /// [`CheckpointError`]; of all ledgers only once the others were done.
    pub async fn handle(&self, order: Order) -> Result<Answer, CheckpointError> {
        let signer = self.secrets.signer(&self.stack.signing_key_secret).await?;
        match order {
            Order::One(ledger) => self.one(&signer, &ledger).await,
            Order::All(walk) => self.all(Arc::new(signer), walk).await,
        }
    }

    async fn one(&self, signer: &Signer, ledger: &LedgerId) -> Result<Answer, CheckpointError> {
        let origin = self.issuer.log.origin(ledger);
        match self.issuer.issue(signer, ledger).await {
            Ok(issued) => Ok(Answer::One {
                ledger: origin,
                size: issued.size,
                root: Some(hex::encode(issued.root)),
                checkpoint: Some(issued.note),
                fresh: issued.fresh,
            }),
            Err(LogError::Empty { .. }) => Ok(Answer::One {
                ledger: origin,
                size: 0,
                root: None,
                checkpoint: None,
                fresh: false,
            }),
            Err(e) => {
                e.tell("checkpoint");
                // Whoever asks is to know that it is the ledger, and not that the question could not be answered.
                if e.is_fork() {
                    let (ledger, refused) = (origin, explain(&e));
                    return Ok(Answer::Refused { ledger, refused });
                }
                Err(e.into())
            }
        }
    }

    async fn all(&self, signer: Arc<Signer>, walk: Walk) -> Result<Answer, CheckpointError> {
        let mut going = Round {
            log: &self.issuer.log,
            report: Report {
                failed_count: walk.failed,
                ..Report::default()
            },
            again: Vec::new(),
        };
        let until = Instant::now() + Duration::from_secs(walk.budget_seconds);
        let mut after = walk.after;
        let mut running = JoinSet::new();
        let whole = 'walk: loop {
            let page = self.issuer.store.ledgers(after.as_ref()).await?;
            if page.is_empty() {
                break true;
            }
            for ledger in page {
                // Each invocation gets on by one ledger at least, so that they come to an end.
                if going.report.checked > 0 && Instant::now() >= until {
                    break 'walk false;
                }
                if running.len() >= AT_ONCE {
                    going.settle(running.join_next().await);
                }
                going.report.checked += 1;
                after = Some(ledger.clone());
                let (issuer, signer) = (Arc::clone(&self.issuer), Arc::clone(&signer));
                running.spawn(async move {
                    let issued = issuer.issue(&signer, &ledger).await;
                    (ledger, issued)
                });
            }
        };
        while !running.is_empty() {
            going.settle(running.join_next().await);
        }
        // What failed in passing gets a second chance; what has failed for good was told already.
        let give_up = until + SECOND_CHANCES;
        for (ledger, error) in std::mem::take(&mut going.again) {
            if Instant::now() >= give_up {
                going.fail(&ledger, &error);
                continue;
            }
            match self.issuer.issue(&signer, &ledger).await {
                Ok(issued) => going.count(&issued),
                Err(e) => going.fail(&ledger, &e),
            }
        }
        if whole {
            self.look_for_lost(&mut going).await?;
        }
        let mut report = going.report;
        if !whole {
            report.after = after.map(|ledger| ledger.partition().to_string());
            let rest = CheckpointRequest {
                all: true,
                after: report.after.clone(),
                failed: report.failed_count,
                budget_seconds: Some(walk.budget_seconds),
                ..CheckpointRequest::default()
            };
            self.functions.invoke_later(&self.function, &rest).await?;
        }
        info!(
            checked = report.checked,
            issued = report.issued,
            unchanged = report.unchanged,
            failed = report.failed_count,
            whole,
            "ledgers checked"
        );
        // The last invocation answers for all: if each one with a failure were retried, so would all that follow it be.
        if whole && report.failed_count > 0 {
            let named = report.failed.iter().map(|f| format!("{}: {}", f.ledger, f.error));
            return Err(CheckpointError::Some {
                failed: report.failed_count,
                named: named.collect::<Vec<_>>().join("; "),
            });
        }
        Ok(Answer::All(report))
    }
}

impl Checkpoints {
    /// A ledger that has a log and no head any more was taken out of the table.
    async fn look_for_lost(&self, going: &mut Round<'_>) -> Result<(), CheckpointError> {
        let mut lost: BTreeSet<String> = self.issuer.log.segments().await?.into_iter().collect();
        let mut after = None;
        loop {
            let page = self.issuer.store.ledgers(after.as_ref()).await?;
            for ledger in &page {
                lost.remove(&ledger.ledger().segment());
            }
            match page.into_iter().last() {
                Some(last) => after = Some(last),
                None => break,
            }
        }
        for segment in lost {
            telemetry::count("checkpoint", "ledger_forked", ("kind", "lost"));
            error!(segment, "a ledger that was signed for has no head");
            going.name(
                segment,
                "it was signed for and has no head in the table: it was taken out".to_owned(),
            );
        }
        Ok(())
    }
}

type Ended = Result<(LedgerId, Result<Issued, LogError>), JoinError>;

/// A way through the ledgers, half gone.
struct Round<'a> {
    log: &'a Log,
    report: Report,
    again: Vec<(LedgerId, LogError)>,
}

impl Round<'_> {
    fn settle(&mut self, ended: Option<Ended>) {
        match ended {
            None => {}
            Some(Ok((_, Ok(issued)))) => self.count(&issued),
            Some(Ok((ledger, Err(e)))) if e.is_fork() => self.fail(&ledger, &e),
            Some(Ok((ledger, Err(e)))) => self.again.push((ledger, e)),
            // A panic in a task: a bug, told and counted instead of hidden.
            Some(Err(e)) => self.name("a task".to_owned(), e.to_string()),
        }
    }

    fn count(&mut self, issued: &Issued) {
        if issued.fresh {
            self.report.issued += 1;
        } else {
            self.report.unchanged += 1;
        }
    }

    fn fail(&mut self, ledger: &LedgerId, error: &LogError) {
        error.tell("checkpoint");
        self.name(self.log.origin(ledger), explain(error));
    }

    fn name(&mut self, ledger: String, error: String) {
        self.report.failed_count += 1;
        if self.report.failed.len() < NAMED {
            self.report.failed.push(Failure { ledger, error });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[track_caller]
    fn check(event: &str, expected: Result<Order, &str>) {
        let order: Result<Order, _> = serde_json::from_str(event);
        match (order, expected) {
            (Ok(order), Ok(expected)) => assert_eq!(order, expected),
            (Err(e), Err(said)) => assert!(e.to_string().contains(said), "{e}"),
            (order, expected) => assert!(order.is_err() && expected.is_err(), "{event}: {order:?}"),
        }
    }

    fn walk(after: Option<LedgerId>, failed: u64, budget_seconds: u64) -> Order {
        Order::All(Walk {
            after,
            failed,
            budget_seconds,
        })
    }

    fn customer(id: &str) -> LedgerId {
        LedgerId::Customer(AccountId::parse(id).unwrap())
    }

    #[test]
    fn orders_say_one_thing() {
        check(r#"{"account_id":"c"}"#, Ok(Order::One(customer("c"))));
        check(r#"{"account_id":"_system"}"#, Ok(Order::One(customer("_system"))));
        check(r#"{"system":true}"#, Ok(Order::One(LedgerId::System)));
        check(r#"{"all":true}"#, Ok(walk(None, 0, 600)));
        let rest = r#"{"all":true,"after":"___x","failed":2,"budget_seconds":9000}"#;
        check(rest, Ok(walk(Some(customer("_x")), 2, 600)));
        let after_system = r#"{"all":true,"after":"_system","budget_seconds":0}"#;
        check(after_system, Ok(walk(Some(LedgerId::System), 0, 0)));
        check(
            r#"{"all":true,"after":"_queue:x"}"#,
            Err("no ledger has as its partition"),
        );
        check("{}", Err("expected one of"));
        check(r#"{"all":false}"#, Err("expected one of"));
        check(r#"{"account_id":"c","all":true}"#, Err("expected one of"));
        check(r#"{"account":"c"}"#, Err("unknown field"));
    }

    #[test]
    fn the_sample_events_are_orders() {
        let events = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/checkpoint");
        for (file, expected) in [
            ("schedule.json", walk(None, 0, 600)),
            ("account.json", Order::One(customer("github-18404719"))),
            ("system.json", Order::One(LedgerId::System)),
        ] {
            check(&fs::read_to_string(events.join(file)).unwrap(), Ok(expected));
        }
    }

    #[test]
    fn what_is_left_to_do_is_an_order() {
        for ledger in [customer("c"), customer("_system"), LedgerId::System] {
            let rest = CheckpointRequest {
                all: true,
                after: Some(ledger.partition().to_string()),
                failed: 3,
                budget_seconds: Some(60),
                ..CheckpointRequest::default()
            };
            let event = serde_json::to_string(&rest).unwrap();
            check(&event, Ok(walk(Some(ledger), 3, 60)));
        }
    }
}
