//! `ggen send-signal`: ask a tenant's governor for actions, through the tenant's queue.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::queues::{Messages, QueueError};
use aws::store::{Store, StoreError};
use clap::Args;
use domain::account::{AccountId, EntitlementId, IdError, SkuId};
use domain::action::ActionState;
use domain::names::Partition;
use domain::signal::{ActionId, ActionIdError, Signal};
use domain::tenant::{Lifecycle, Selected};
use domain::transaction::Keys;
use jiff::Timestamp;
use receipts::wording;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::Verdict;

/// Longest wait for actions to end, in seconds.
const MAX_WAIT_SECONDS: u64 = 3600;
/// Actions that are read in one call.
const READ_AT_ONCE: usize = 50;
/// How often those that have not ended are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Most signals of one call.
const MAX_COUNT: u64 = 100_000;

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen send-signal --account-id customer-123 --template restart-service --parameters '{{\"service\":\"web\"}}'
  ggen send-signal --account-id customer-123 --template restart-service --parameters '{{\"service\":\"web\"}}' --count 20
  ggen send-signal --account-id customer-123 --template restart-service --sku-id marketplace-sku-456
  ggen send-signal --account-id customer-123 --template restart-service --parameters '{{\"service\":\"web\"}}' --wait

Prints the action ids. Exit code 0 means that the signals are on the queue; `ggen action show` says what became of them. Two
signals with the same --action-id are one action. Exit code 1 if the tenant takes no signals. If the account has several
entitlements (ggen tenants show), choose one with --sku-id or --entitlement-id.

With --wait, waits until every action has ended, and prints each with its state: exit code 0 if all are complete, 1 if one is
not (refused, rolled back, escalated, for a person), 2 if one had not ended in time.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen send-signal`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct SendSignalArgs {
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// The action's template in the tenant's policy
    #[arg(long, value_name = "NAME")]
    template: String,
    /// The template's parameters, a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = parameters)]
    parameters: Map<String, Value>,
    /// The action's id: 1 to 64 characters of A-Z a-z 0-9 _ - [default: a new UUID]
    #[arg(long, value_name = "ID", value_parser = cloud::action_id, conflicts_with = "count")]
    action_id: Option<ActionId>,
    /// The product, if the account has entitlements to several
    #[arg(long, value_name = "SKU", value_parser = sku_id)]
    sku_id: Option<SkuId>,
    /// The entitlement, if the account has several to one product
    #[arg(long, value_name = "ID", value_parser = entitlement_id)]
    entitlement_id: Option<EntitlementId>,
    /// How many signals to send, each for its own action
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MAX_COUNT))]
    count: u64,
    /// Wait for the actions to end, for at most this long [default: 60]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "60",
          value_parser = clap::value_parser!(u64).range(1..=MAX_WAIT_SECONDS))]
    wait: Option<u64>,
    /// The policy hash the signal relies on; the governor refuses any other [default: the entitlement's]
    #[arg(long, value_name = "HASH")]
    policy_hash: Option<String>,
}

fn parameters(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| wording::problem(&e))
}

fn sku_id(text: &str) -> Result<SkuId, IdError> {
    SkuId::parse(text)
}

fn entitlement_id(text: &str) -> Result<EntitlementId, IdError> {
    EntitlementId::parse(text)
}

/// Why signals could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendSignalError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the tenant")]
    Store(#[from] StoreError),
    #[error("cannot make an action id")]
    ActionId(#[from] ActionIdError),
    #[error("cannot write the signal as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("sent {sent} of {count} signals; the next one failed")]
    Send {
        sent: usize,
        count: u64,
        source: QueueError,
    },
    #[error(
        "{open} of {count} actions have not ended after {seconds} s, action {first} among them: see `ggen action show`"
    )]
    StillOpen {
        open: usize,
        count: usize,
        seconds: u64,
        first: String,
    },
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

/// What a producer puts on the queue: the signal, and when it was asked for.
#[derive(Serialize)]
struct Message<'a> {
    #[serde(flatten)]
    signal: &'a Signal,
    /// RFC 3339, UTC, milliseconds.
    requested_at: String,
}

#[derive(Serialize)]
struct SentSignals {
    queue: String,
    policy_hash: String,
    action_ids: Vec<ActionId>,
}

impl fmt::Display for SentSignals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.action_ids.iter().map(ActionId::as_str).collect();
        f.write_str(&ids.join("\n"))
    }
}

/// What became of the actions, of those that had ended.
#[derive(Serialize)]
struct Ended {
    actions: Vec<EndedAction>,
}

#[derive(Serialize)]
struct EndedAction {
    action_id: ActionId,
    /// `null` while it has not ended.
    state: Option<ActionState>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |action: &EndedAction| {
            let state = action.state.map_or("not ended", ActionState::name);
            format!("{}  {state}", action.action_id.as_str())
        };
        f.write_str(&self.actions.iter().map(line).collect::<Vec<_>>().join("\n"))
    }
}

#[derive(Serialize)]
struct Refusal<'a> {
    refused: bool,
    account_id: &'a AccountId,
    /// The tenant's state; `null` when there never was one.
    lifecycle: Option<Lifecycle>,
    /// Why a tenant that takes signals takes not this one.
    reason: Option<&'static str>,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Some(reason) => write!(f, "REFUSED: {} {reason}", self.account_id),
            None => f.write_str(&cloud::takes_no_signals(self.account_id, self.lifecycle)),
        }
    }
}

/// Looks at the actions until all have ended, and tells how.
async fn wait(
    store: &Store,
    partition: &Partition,
    action_ids: Vec<ActionId>,
    seconds: u64,
    out: &mut Out,
) -> Result<Verdict, SendSignalError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut ended = BTreeMap::new();
    loop {
        // One that no governor has looked at yet is in no table.
        let open: Vec<_> = action_ids.iter().filter(|id| !ended.contains_key(*id)).collect();
        for some in open.chunks(READ_AT_ONCE) {
            let keys = Keys {
                actions: some.iter().map(|id| (*id).clone()).collect(),
                ..Keys::default()
            };
            let account = store.load(partition, &keys).await?;
            let actions = account.actions.into_values();
            ended.extend(
                actions
                    .filter(|action| action.state.is_final())
                    .map(|action| (action.action_id, action.state)),
            );
        }
        if ended.len() == action_ids.len() || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let open: Vec<_> = action_ids.iter().filter(|id| !ended.contains_key(*id)).collect();
    let still_open = open.first().map(|first| SendSignalError::StillOpen {
        open: open.len(),
        count: action_ids.len(),
        seconds,
        first: first.as_str().to_owned(),
    });
    let actions = action_ids.into_iter().map(|action_id| EndedAction {
        state: ended.get(&action_id).copied(),
        action_id,
    });
    out.show(&Ended {
        actions: actions.collect(),
    })?;
    match still_open {
        Some(error) => Err(error),
        None => Ok(Verdict::when(
            ended.into_values().all(|state| state == ActionState::Complete),
        )),
    }
}

/// Sends signals.
///
/// # Errors
/// When the stack does not answer; a tenant that takes none is a verdict.
pub fn run(args: &SendSignalArgs, out: &mut Out) -> Result<Verdict, SendSignalError> {
    cloud::block_on(send(args, out))?
}

async fn send(args: &SendSignalArgs, out: &mut Out) -> Result<Verdict, SendSignalError> {
    let stack = Stack::from_env()?;
    let sdk = clients::load().await;
    let store = Store::new(&sdk, stack);
    let partition = Partition::of(&args.account_id);
    let account = cloud::load(&store, &partition).await?;
    let tenant = match account.tenant {
        Some(tenant) if tenant.lifecycle == Lifecycle::Active => tenant,
        other => {
            let lifecycle = other.map(|tenant| tenant.lifecycle);
            out.show(&Refusal {
                refused: true,
                account_id: &args.account_id,
                lifecycle,
                reason: None,
            })?;
            return Ok(Verdict::NotGood);
        }
    };
    let messages = Messages::new(&sdk);
    let policy_hash = match tenant.select(args.entitlement_id.as_ref(), args.sku_id.as_ref()) {
        Selected::One(_, held) => args
            .policy_hash
            .clone()
            .unwrap_or_else(|| held.policy.hash.clone()),
        none_or_several => {
            out.show(&Refusal {
                refused: true,
                account_id: &args.account_id,
                lifecycle: Some(tenant.lifecycle),
                reason: Some(match none_or_several {
                    Selected::Several => {
                        "has several matching entitlements: choose one with --sku-id or --entitlement-id"
                    }
                    Selected::None | Selected::One(..) => "has no such entitlement",
                }),
            })?;
            return Ok(Verdict::NotGood);
        }
    };
    let mut sent = SentSignals {
        queue: tenant.resources.queue,
        policy_hash,
        action_ids: Vec::new(),
    };
    let mut outcome = Ok(Verdict::Good);
    for _ in 0..args.count {
        let action_id = match &args.action_id {
            Some(action_id) => action_id.clone(),
            None => ActionId::try_from(Uuid::now_v7().to_string())?,
        };
        let signal = Signal {
            action_id: action_id.clone(),
            account_id: args.account_id.clone(),
            sku_id: args.sku_id.clone(),
            entitlement_id: args.entitlement_id.clone(),
            template: args.template.clone(),
            parameters: args.parameters.clone(),
            policy_hash: sent.policy_hash.clone(),
        };
        let body = serde_json::to_string(&Message {
            signal: &signal,
            requested_at: format!("{:.3}", Timestamp::now()),
        })?;
        if let Err(source) = messages.send(&tenant.resources.queue_url, body).await {
            outcome = Err(SendSignalError::Send {
                sent: sent.action_ids.len(),
                count: args.count,
                source,
            });
            break;
        }
        sent.action_ids.push(action_id);
    }
    // What was sent is told even if not all was: those actions will happen.
    match args.wait {
        Some(seconds) if outcome.is_ok() => wait(&store, &partition, sent.action_ids, seconds, out).await,
        _ if sent.action_ids.is_empty() => outcome,
        _ => {
            out.show(&sent)?;
            outcome
        }
    }
}
