//! `ggen tenants show`: all there is to know of one tenant.

use std::cmp::Reverse;
use std::fmt;

use aws::clients;
use aws::config::Stack;
use aws::queues::{Backlog, QueueError, Teardown};
use aws::store::Store;
use clap::Args;
use domain::account::{AccountId, EntitlementId};
use domain::entitlement::{Entitlement, EventOrder, Standing};
use domain::entitlement::{PolicyPin, Quota, month_of};
use domain::names::{self, Partition};
use domain::provisioning::{Failure, Provisioning};
use domain::scale::limit::Scale;
use domain::scale::{self, WaitsFor};
use domain::tenant::{Deferred, Lifecycle, Tables, Tenant};
use domain::transaction::Account;
use domain::webhook::event::{EntitlementEvent, PlanReference, ProductReference};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::table::{self, Column, WIDTH, indented, numbers, short, words};
use super::{TenantsError, isolation, when};
use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::Verdict;

/// Most receipts of one answer; `ggen export-receipts` writes whole ledgers.
const MAX_RECEIPTS: u64 = 1000;
/// Cancellations told to people.
const CANCELLATIONS: usize = 5;
/// Spaces before each line of a section.
const INDENT: usize = 2;
/// What stands where there is nothing.
const NONE: &str = "-";

/// The end of the command's help.
pub fn after_help() -> String {
    format!(
        "\
Examples:
  ggen tenants show --account-id customer-123
  ggen tenants show --account-id customer-123 --receipts 0 --format json | jq .backlog

The backlog is what the queue holds, less the actions in flight: what is hidden is in a governor's hands. Signals wait for a
free place, for one of their entitlement, or for a poll; the age of the oldest is exact only while all places are taken. In JSON:
backlog.lag, .waits_for (place, entitlement, poll or null), .oldest_age_seconds, .places_in_use and .places.

Shows hashes and long names cut; --format json has everything whole. Counts of queues are SQS's estimates. Exit code 1 if
nothing was ever heard of the account.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen tenants show`.
#[derive(Args)]
pub struct ShowArgs {
    /// The tenant's account
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// How many receipts to show, the last ones
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=MAX_RECEIPTS))]
    receipts: u64,
}

#[derive(Serialize)]
struct Held {
    entitlement_id: String,
    sku_id: String,
    plan_type: String,
    region: String,
    standing: Standing,
    policy: PolicyPin,
    quota: Quota,
    in_flight: u64,
    /// The UTC month now.
    month: String,
    month_actions: u64,
    granted_at: Timestamp,
    expires_at: Option<Timestamp>,
    last_event: EventOrder,
}

/// Who asked for what is under way or waits.
#[derive(Serialize)]
struct Delivery {
    provider: String,
    delivery_id: String,
    received_at: Timestamp,
}

#[derive(Serialize)]
struct Making {
    entitlement_id: String,
    sku_id: String,
    plan_type: String,
    new_tenant: bool,
    dedicated: bool,
    began_at: Timestamp,
    attempts: u32,
    /// Set once a step failed: everything is being undone.
    failure: Option<Failure>,
    delivery: Delivery,
}

#[derive(Serialize)]
struct Waiting {
    event: &'static str,
    /// The agreement, or else the product or plan, as far as the sender said.
    entitlement_id: Option<String>,
    product: Option<String>,
    due_at: Timestamp,
    attempts: u32,
    delivery: Delivery,
}

#[derive(Serialize)]
struct Cancellation {
    /// `null`: whatever the account held then.
    entitlement_id: Option<String>,
    version: Option<u64>,
    at: Timestamp,
}

#[derive(Serialize)]
struct Ledger {
    size: u64,
    last_hash: String,
    /// The last receipt's; `null` when there is none.
    #[serde(serialize_with = "as_in_receipts")]
    timestamp: Option<Timestamp>,
}

#[derive(Serialize)]
struct Lag {
    waiting: u64,
    in_flight: u64,
    delayed: u64,
}

#[derive(Serialize)]
struct Queue {
    name: String,
    url: String,
    /// `null` when SQS did not say.
    lag: Option<Lag>,
}

#[derive(Serialize)]
struct Queues {
    signals: Queue,
    dead_letters: Queue,
    mapping_id: String,
}

/// All of it, as programs read it.
#[derive(Serialize)]
struct Shown {
    account_id: AccountId,
    lifecycle: Lifecycle,
    /// What the index of `ggen tenants list --state` says.
    state: &'static str,
    /// `null` for an account that only has a ledger.
    changed_at: Option<Timestamp>,
    generation: u64,
    began_at: Option<Timestamp>,
    fsm_id: String,
    revision: u64,
    in_flight: u64,
    /// That may run at one time: as far as it is scaled, within what its plans allow.
    in_flight_action_limit: u64,
    /// That its plans allow at one time.
    concurrent_actions: u64,
    /// `null` when SQS did not say, or there is no queue.
    backlog: Option<scale::Backlog>,
    scale: Scale,
    lease_until: Option<Timestamp>,
    actions_completed: u64,
    actions_failed: u64,
    entitlements: Vec<Held>,
    provisioning: Option<Making>,
    waiting_events: Vec<Waiting>,
    /// The latest first.
    cancellations: Vec<Cancellation>,
    isolation: &'static str,
    tables: Option<Tables>,
    /// `null` when there are none: the tenant is not there yet, or no more.
    queues: Option<Queues>,
    ledger: Ledger,
    /// The last ones, in order.
    receipts: Vec<Value>,
}

#[derive(Serialize)]
struct NeverWas<'a> {
    account_id: &'a AccountId,
    known: bool,
}

/// A time as receipts write it: to the millisecond, always with three digits.
fn as_in_receipts<S: serde::Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(&format_args!("{at:.3}")),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for NeverWas<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "NOT FOUND: nothing was ever heard of account {}",
            self.account_id
        )
    }
}

/// Shows a tenant.
///
/// # Errors
/// [`TenantsError`] when the stack does not answer; an account that never was is a verdict.
pub async fn show(args: &ShowArgs, out: &mut Out) -> Result<Verdict, TenantsError> {
    let stack = Stack::from_env()?;
    let sdk = clients::load().await;
    let store = Store::new(&sdk, stack);
    let account = cloud::load(&store, &Partition::of(&args.account_id)).await?;
    if account.tenant.is_none() && account.head.size == 0 {
        let account_id = &args.account_id;
        out.show(&NeverWas {
            account_id,
            known: false,
        })?;
        return Ok(Verdict::NotGood);
    }
    let receipts = last_receipts(&store, &account, args.receipts).await?;
    let now = Timestamp::now();
    let mut shown = Shown::of(&account, &args.account_id, receipts, now);
    let asked = match &mut shown.queues {
        Some(queues) => lags(queues, &Teardown::new(&sdk)).await,
        None => Ok(()),
    };
    shown.backlog = shown.backlog_of(account.tenant.as_ref(), now);
    // Who asks while queues do not answer wants to know the rest all the more.
    out.show(&shown)?;
    asked?;
    Ok(Verdict::Good)
}

/// The end of the ledger, as far as its head reaches.
async fn last_receipts(store: &Store, account: &Account, count: u64) -> Result<Vec<Value>, TenantsError> {
    let size = account.head.size;
    let mut seq = size.saturating_sub(count);
    let mut receipts = Vec::new();
    while seq < size {
        let page = store.receipts_from(&account.partition, seq).await?;
        if page.is_empty() {
            break;
        }
        for line in page {
            if seq >= size {
                break;
            }
            let receipt = serde_json::from_str(&line).map_err(|source| TenantsError::Receipt {
                account: account.partition.to_string(),
                seq,
                source,
            })?;
            receipts.push(receipt);
            seq += 1;
        }
    }
    Ok(receipts)
}

async fn lags(queues: &mut Queues, teardown: &Teardown) -> Result<(), QueueError> {
    for queue in [&mut queues.signals, &mut queues.dead_letters] {
        let Backlog {
            waiting,
            in_flight,
            delayed,
        } = teardown.backlog(&queue.url).await?;
        queue.lag = Some(Lag {
            waiting,
            in_flight,
            delayed,
        });
    }
    Ok(())
}

impl Shown {
    fn of(account: &Account, account_id: &AccountId, receipts: Vec<Value>, now: Timestamp) -> Self {
        let known = account.tenant.as_ref();
        let nobody = Tenant::absent(account_id.clone(), now);
        let tenant = known.unwrap_or(&nobody);
        let mut cancellations: Vec<_> = tenant
            .tombstones
            .iter()
            .map(|(id, order)| Cancellation {
                entitlement_id: id.map(ToString::to_string),
                version: order.version,
                at: order.at,
            })
            .collect();
        cancellations.sort_by_key(|cancellation| Reverse(cancellation.at));
        let head = &account.head;
        Self {
            account_id: tenant.account_id.clone(),
            lifecycle: tenant.lifecycle,
            state: tenant.index_state(),
            changed_at: known.map(|tenant| tenant.changed_at),
            generation: tenant.generation,
            began_at: known.map(|tenant| tenant.began_at),
            fsm_id: tenant.fsm_id.clone(),
            revision: tenant.revision,
            in_flight: tenant.in_flight,
            in_flight_action_limit: tenant.in_flight_action_limit(),
            concurrent_actions: tenant.concurrent_actions(),
            backlog: None,
            scale: tenant.scale.clone(),
            lease_until: tenant.lease_until,
            actions_completed: tenant.actions_completed,
            actions_failed: tenant.actions_failed,
            entitlements: held(tenant, now),
            provisioning: tenant.provisioning.as_ref().map(making),
            waiting_events: tenant.deferred.iter().map(waiting).collect(),
            cancellations,
            isolation: isolation(tenant),
            tables: tenant.tables.clone(),
            queues: queues(tenant),
            ledger: Ledger {
                size: head.size,
                last_hash: head.last_hash.clone(),
                timestamp: (head.size > 0).then_some(head.timestamp),
            },
            receipts,
        }
    }

    /// What the queue's lag comes to, once it is known.
    fn backlog_of(&self, tenant: Option<&Tenant>, now: Timestamp) -> Option<scale::Backlog> {
        let lag = self.queues.as_ref()?.signals.lag.as_ref()?;
        let queue = scale::Queue {
            visible: lag.waiting,
            hidden: lag.in_flight,
            delayed: lag.delayed,
        };
        Some(scale::backlog(tenant?, queue, now))
    }

    /// What waits, and what for.
    fn backlog(&self) -> Option<String> {
        let backlog = self.backlog?;
        let Some(waits_for) = backlog.waits_for else {
            return Some("no signal waits".to_owned());
        };
        let lag = match backlog.lag {
            1 => "1 signal waits".to_owned(),
            lag => format!("{lag} signals wait"),
        };
        let what = match waits_for {
            WaitsFor::Place => "for a free place",
            WaitsFor::Entitlement => "for a free place of their entitlement",
            WaitsFor::Poll => "to be polled, though places are free",
        };
        // Signals are as old as those that were claimed last as long as claims go on: when all places are taken.
        let about = match backlog.places_in_use >= backlog.places {
            true => "about",
            false => "at most about",
        };
        let age = backlog.oldest_age_seconds;
        let age = age.map_or_else(String::new, |age| format!(", the oldest for {about} {age} s"));
        Some(format!("{lag} {what}{age}"))
    }

    /// How far it is scaled.
    fn limit(&self) -> String {
        let mut told = format!(
            "{} at one time, the plans allow {}",
            self.in_flight_action_limit, self.concurrent_actions
        );
        if self.scale.floor.is_some() || self.scale.limit.is_some() {
            told.push_str(&format!("; base {}", self.scale.base()));
        }
        if let Some(trial) = &self.scale.trial {
            told.push_str(&format!(
                "; on trial since {}, {} before",
                when(trial.at),
                trial.from
            ));
        }
        told
    }

    /// What there is one of, a line each.
    fn facts(&self) -> Vec<[String; 2]> {
        let since = |at: Option<Timestamp>| at.map_or_else(String::new, |at| format!(" since {}", when(at)));
        let mut facts = Vec::new();
        let mut fact = |name: &str, text: String| facts.push([name.to_owned(), text]);
        fact(
            "lifecycle",
            format!("{}{}", self.lifecycle.name(), since(self.changed_at)),
        );
        if self.generation > 0 {
            fact(
                "generation",
                format!("{}{}", self.generation, since(self.began_at)),
            );
            fact("governor", self.fsm_id.clone());
            let lease = self.lease_until.map(|until| format!(", until {}", when(until)));
            fact(
                "actions",
                format!(
                    "{} in flight of {}{}; {} completed, {} failed",
                    self.in_flight,
                    self.in_flight_action_limit,
                    lease.unwrap_or_default(),
                    self.actions_completed,
                    self.actions_failed
                ),
            );
            fact("limit", self.limit());
            if let Some(backlog) = self.backlog() {
                fact("backlog", backlog);
            }
        }
        fact(
            "tables",
            format!("{}: {}", self.isolation, reach(self.tables.as_ref())),
        );
        if let Some(tables) = self.tables.as_ref().filter(|tables| tables.archived.is_none()) {
            fact("", tables.actions.clone());
            fact("", tables.receipts.clone());
        }
        if let Some(queues) = &self.queues {
            fact("mapping", or_none(&queues.mapping_id));
        }
        fact(
            "ledger",
            match self.ledger.timestamp {
                Some(at) => format!(
                    "size {}, the last receipt {}, hash {}",
                    self.ledger.size,
                    when(at),
                    short(&self.ledger.last_hash)
                ),
                None => "no receipts".to_owned(),
            },
        );
        facts
    }
}

/// What stands in a tenant's own tables.
fn reach(tables: Option<&Tables>) -> String {
    let Some(tables) = tables else {
        return "those of all tenants".to_owned();
    };
    match (&tables.archived, tables.until) {
        (Some(archived), _) => format!(
            "those of all tenants; its own are archived with {} actions",
            archived.entries
        ),
        (None, Some(until)) => format!("its own, with receipts from {} to before {until}", tables.since),
        (None, None) => format!("its own, with receipts from {} on", tables.since),
    }
}

fn held(tenant: &Tenant, now: Timestamp) -> Vec<Held> {
    let month = month_of(now);
    let one = |(id, held): (&EntitlementId, &Entitlement)| {
        Held {
            entitlement_id: id.to_string(),
            sku_id: held.sku_id.to_string(),
            plan_type: held.plan_type.to_string(),
            region: held.region.clone(),
            standing: held.standing,
            policy: held.policy.clone(),
            quota: held.quota,
            in_flight: held.in_flight,
            // What was used of another month is no longer counted.
            month_actions: if held.month == month {
                held.month_actions
            } else {
                0
            },
            month: month.clone(),
            granted_at: held.granted_at,
            expires_at: held.expires_at,
            last_event: held.order,
        }
    };
    tenant.entitlements.iter().map(one).collect()
}

fn making(saga: &Provisioning) -> Making {
    Making {
        entitlement_id: saga.entitlement_id.to_string(),
        sku_id: saga.entitlement.sku_id.to_string(),
        plan_type: saga.entitlement.plan_type.to_string(),
        new_tenant: saga.new_tenant,
        dedicated: saga.dedicated,
        began_at: saga.began_at,
        attempts: saga.attempts,
        failure: saga.failure.clone(),
        delivery: Delivery {
            provider: saga.asked.provider.clone(),
            delivery_id: saga.asked.delivery_id.clone(),
            received_at: saga.received_at,
        },
    }
}

fn waiting(deferred: &Deferred) -> Waiting {
    Waiting {
        event: deferred.event.change.name(),
        entitlement_id: deferred.event.entitlement_id.as_ref().map(ToString::to_string),
        product: product(&deferred.event),
        due_at: deferred.due_at,
        attempts: deferred.attempts,
        delivery: Delivery {
            provider: deferred.asked.provider.clone(),
            delivery_id: deferred.asked.delivery_id.clone(),
            received_at: deferred.received_at,
        },
    }
}

/// What an event is about, as far as its sender says.
fn product(event: &EntitlementEvent) -> Option<String> {
    let plan = |plan: &PlanReference| match plan {
        PlanReference::Canonical { sku_id, .. } => sku_id.to_string(),
        PlanReference::Provider { provider, plan_id } => format!("plan {plan_id} of {provider}"),
    };
    event.product.as_ref().map(|product| match product {
        ProductReference::Sku(sku_id) => sku_id.to_string(),
        ProductReference::Plan(reference) => plan(reference),
    })
}

/// The queues of a tenant that has some; where they once were is still on record when it is gone.
fn queues(tenant: &Tenant) -> Option<Queues> {
    let resources = &tenant.resources;
    let there = match tenant.lifecycle {
        Lifecycle::Active | Lifecycle::Decommissioning => true,
        Lifecycle::Absent | Lifecycle::Provisioning | Lifecycle::Decommissioned => false,
    };
    there.then(|| Queues {
        signals: Queue {
            name: resources.queue.clone(),
            url: resources.queue_url.clone(),
            lag: None,
        },
        dead_letters: Queue {
            name: names::dead_letter_queue_name(&resources.queue),
            url: resources.dead_letter_queue_url.clone(),
            lag: None,
        },
        mapping_id: resources.mapping_id.clone(),
    })
}

fn or_none(text: &str) -> String {
    if text.is_empty() { NONE } else { text }.to_owned()
}

fn at_or_none(at: Option<Timestamp>) -> String {
    at.map_or_else(|| NONE.to_owned(), when)
}

/// What tells most about a receipt, in the words it has for it.
fn telling(receipt: &Value) -> String {
    let fields = [
        "action_id",
        "code",
        "error_code",
        "step",
        "reason",
        "resource",
        "repair",
        "entitlement_id",
        "plan_type",
        "policy_version",
        "quota_check",
        "archive_path",
    ];
    let said = fields
        .iter()
        .filter_map(|field| receipt.get(field)?.as_str())
        .filter(|text| !text.is_empty());
    said.collect::<Vec<_>>().join("  ")
}

fn text_of(receipt: &Value, field: &str) -> String {
    match receipt.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => NONE.to_owned(),
    }
}

/// A heading and a table below it; nothing for no rows.
fn section<const N: usize>(heading: &str, columns: &[Column; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let table = table::layout(columns, rows, WIDTH - INDENT);
    format!("\n{heading}\n{}", indented(&table, INDENT))
}

impl Shown {
    fn entitlement_sections(&self) -> [String; 2] {
        let agreements: Vec<_> = (self.entitlements.iter())
            .map(|held| {
                [
                    held.entitlement_id.clone(),
                    held.sku_id.clone(),
                    held.plan_type.clone(),
                    held.standing.name().to_owned(),
                    when(held.granted_at),
                    at_or_none(held.expires_at),
                ]
            })
            .collect();
        let agreement = [
            words("ENTITLEMENT"),
            words("SKU"),
            words("PLAN"),
            words("STANDING"),
            words("GRANTED"),
            words("EXPIRES"),
        ];
        let limits: Vec<_> = (self.entitlements.iter())
            .map(|held| {
                [
                    held.entitlement_id.clone(),
                    format!("{} of {}", held.month_actions, held.quota.monthly_actions),
                    format!("{} of {}", held.in_flight, held.quota.concurrent_actions),
                    held.policy.version.clone(),
                    short(&held.policy.hash),
                    or_none(&held.region),
                ]
            })
            .collect();
        let limit = [
            words("ENTITLEMENT"),
            words("THIS MONTH"),
            words("IN FLIGHT"),
            words("POLICY"),
            words("HASH"),
            words("REGION"),
        ];
        [
            section("Entitlements", &agreement, &agreements),
            section("Limits", &limit, &limits),
        ]
    }

    fn under_way_sections(&self) -> [String; 3] {
        let mut making = Vec::new();
        if let Some(saga) = &self.provisioning {
            let mut fact = |name: &str, text: String| making.push([name.to_owned(), text]);
            fact("entitlement", saga.entitlement_id.clone());
            fact("plan", format!("{}/{}", saga.sku_id, saga.plan_type));
            fact("since", when(saga.began_at));
            fact("attempts", saga.attempts.to_string());
            if let Some(failure) = &saga.failure {
                fact("failed step", failure.step.name().to_owned());
                fact("reason", failure.reason.clone());
            }
        }
        let making = section("Being provisioned", &[words(""), words("")], &making);

        let waiting: Vec<_> = (self.waiting_events.iter())
            .map(|event| {
                let about = event.entitlement_id.as_ref().or(event.product.as_ref());
                [
                    event.event.to_owned(),
                    about.cloned().unwrap_or_else(|| NONE.to_owned()),
                    when(event.due_at),
                    event.attempts.to_string(),
                    format!("{} {}", event.delivery.provider, event.delivery.delivery_id),
                ]
            })
            .collect();
        let columns = [
            words("EVENT"),
            words("ABOUT"),
            words("DUE"),
            numbers("ATTEMPTS"),
            words("DELIVERY"),
        ];
        let waiting = section("Waiting events", &columns, &waiting);

        let cancelled: Vec<_> = (self.cancellations.iter().take(CANCELLATIONS))
            .map(|one| {
                let version = one.version.map(|version| version.to_string());
                [
                    one.entitlement_id.clone().unwrap_or_else(|| "all".to_owned()),
                    when(one.at),
                    version.unwrap_or_else(|| NONE.to_owned()),
                ]
            })
            .collect();
        let columns = [words("ENTITLEMENT"), words("AT"), numbers("VERSION")];
        let heading = match self.cancellations.len() {
            all if all > CANCELLATIONS => format!("Cancellations (the last {CANCELLATIONS} of {all})"),
            _ => "Cancellations".to_owned(),
        };
        [making, waiting, section(&heading, &columns, &cancelled)]
    }

    fn queue_section(&self) -> String {
        let both = self
            .queues
            .iter()
            .flat_map(|queues| [&queues.signals, &queues.dead_letters]);
        let row = |queue: &Queue| {
            let count = |of: fn(&Lag) -> u64| {
                let lag = queue.lag.as_ref();
                lag.map_or_else(|| "?".to_owned(), |lag| of(lag).to_string())
            };
            [
                queue.name.clone(),
                count(|lag| lag.waiting),
                count(|lag| lag.in_flight),
                count(|lag| lag.delayed),
            ]
        };
        let columns = [
            words("QUEUE"),
            numbers("VISIBLE"),
            numbers("HIDDEN"),
            numbers("DELAYED"),
        ];
        section("Queues", &columns, &both.map(row).collect::<Vec<_>>())
    }

    fn receipt_section(&self) -> String {
        let row = |receipt: &Value| {
            let at = text_of(receipt, "timestamp");
            [
                text_of(receipt, "seq"),
                at.parse().map_or(at, when),
                text_of(receipt, "operation"),
                text_of(receipt, "status"),
                telling(receipt),
            ]
        };
        let columns = [
            numbers("SEQ"),
            words("TIME"),
            words("OPERATION"),
            words("STATUS"),
            words("ABOUT"),
        ];
        let rows: Vec<_> = self.receipts.iter().map(row).collect();
        section("Last receipts", &columns, &rows)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = [[self.account_id.to_string()]];
        let mut text = table::layout(&[words("")], &title, WIDTH);
        let facts = table::layout(&[words(""), words("")], &self.facts(), WIDTH - INDENT);
        text.push_str(&indented(&facts, INDENT));
        text.extend(self.entitlement_sections());
        text.extend(self.under_way_sections());
        text.push_str(&self.queue_section());
        text.push_str(&self.receipt_section());
        f.write_str(text.trim_end())
    }
}

#[cfg(test)]
mod tests;
