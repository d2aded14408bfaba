//! The same for people.

use std::fmt;

use domain::scale::WaitsFor;
use domain::tenant::Tables;
use jiff::Timestamp;
use serde_json::Value;

use super::answer::{Lag, Queue, TenantView};
use crate::table::{self, Column, WIDTH, indented, numbers, short, when, words};

/// Cancellations told to people.
const CANCELLATIONS: usize = 5;
/// Spaces before each line of a section.
const INDENT: usize = 2;
/// What stands where there is nothing.
const NONE: &str = "-";

impl TenantView {
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

impl TenantView {
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

impl fmt::Display for TenantView {
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
