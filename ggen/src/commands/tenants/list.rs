//! `ggen tenants list`: every tenant, one line each.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::pages::Pages;
use aws::store::Store;
use clap::{Args, ValueEnum};
use domain::account::AccountId;
use domain::entitlement::Isolation;
use domain::entitlement::{Entitlement, Standing};
use domain::names::Partition;
use domain::tenant::{BUSY, Lifecycle, Tenant, UNSETTLED};
use jiff::Timestamp;
use serde::Serialize;

use crate::cloud::{self, NEEDS_A_STACK, ReadError};
use crate::out::{Format, Out};
use crate::report::{self, Verdict};
use crate::table::{self, Column, WIDTH, minute, numbers, words};

/// Most tenants of one answer.
const MAX_LIMIT: u64 = 100_000;

/// The end of the command's help.
pub fn after_help() -> String {
    format!(
        "\
Examples:
  ggen tenants list
  ggen tenants list --state unsettled
  ggen tenants list --format jsonl | jq -r .account_id

HELD counts entitlements, RUN actions in flight, EVTS waiting webhook events; SINCE is when the lifecycle last changed. The
list comes from an index that lags by a moment; the details are read from the tenants themselves. --format json has
`tenants` and `more`; jsonl has one tenant per line.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen tenants list`.
#[derive(Args)]
pub struct ListArgs {
    /// Only tenants in this state [default: all]
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    /// Most tenants to list, in order of account
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=MAX_LIMIT))]
    limit: u64,
}

/// What the index says of a tenant.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Active, with no action running
    Active,
    /// Active, with actions running
    Busy,
    /// Between two states, or with events waiting
    Unsettled,
    /// Never provisioned, or rolled back
    Absent,
    /// Archived and removed; its ledger is kept
    Decommissioned,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Active => Lifecycle::Active.name(),
            Self::Busy => BUSY,
            Self::Unsettled => UNSETTLED,
            Self::Absent => Lifecycle::Absent.name(),
            Self::Decommissioned => Lifecycle::Decommissioned.name(),
        }
    }
}

/// Why tenants could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the tables")]
    Read(#[from] ReadError),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

/// Whose tables a tenant uses now.
pub(super) fn isolation(tenant: &Tenant) -> &'static str {
    match &tenant.tables {
        Some(tables) if tables.archived.is_none() => Isolation::Dedicated.as_str(),
        _ => Isolation::Pool.as_str(),
    }
}

#[derive(Serialize)]
struct HeldPlan {
    entitlement_id: String,
    sku_id: String,
    plan_type: String,
    standing: Standing,
}

#[derive(Serialize)]
struct TenantLine {
    account_id: AccountId,
    /// What the index says.
    state: &'static str,
    lifecycle: Lifecycle,
    changed_at: Timestamp,
    generation: u64,
    entitlements: Vec<HeldPlan>,
    /// The plan that is being provisioned.
    provisioning: Option<HeldPlan>,
    in_flight: u64,
    /// Events that wait.
    waiting_events: usize,
    isolation: &'static str,
}

impl TenantLine {
    fn of(tenant: &Tenant) -> Self {
        let held = |id: &dyn fmt::Display, held: &Entitlement| HeldPlan {
            entitlement_id: id.to_string(),
            sku_id: held.sku_id.to_string(),
            plan_type: held.plan_type.to_string(),
            standing: held.standing,
        };
        let saga = tenant.provisioning.as_ref();
        Self {
            account_id: tenant.account_id.clone(),
            state: tenant.index_state(),
            lifecycle: tenant.lifecycle,
            changed_at: tenant.changed_at,
            generation: tenant.generation,
            entitlements: tenant.entitlements.iter().map(|(id, e)| held(id, e)).collect(),
            provisioning: saga.map(|saga| held(&saga.entitlement_id, &saga.entitlement)),
            in_flight: tenant.in_flight,
            waiting_events: tenant.deferred.len(),
            isolation: isolation(tenant),
        }
    }

    /// `sku/plan` of each, once. What is particular about it comes first: an end may be cut.
    fn plans(&self) -> String {
        let plan = |note: &str, held: &HeldPlan| format!("{note}{}/{}", held.sku_id, held.plan_type);
        let mut plans: Vec<String> = Vec::new();
        for held in &self.entitlements {
            plans.push(match held.standing {
                Standing::Active => plan("", held),
                Standing::Suspended => plan("suspended: ", held),
            });
        }
        plans.sort();
        plans.dedup();
        let making = self.provisioning.iter();
        plans.extend(making.map(|held| plan("provisioning: ", held)));
        plans.join(", ")
    }

    fn row(&self) -> [String; 9] {
        [
            self.account_id.to_string(),
            self.lifecycle.name().to_owned(),
            self.generation.to_string(),
            self.entitlements.len().to_string(),
            self.plans(),
            self.in_flight.to_string(),
            self.waiting_events.to_string(),
            self.isolation.to_owned(),
            // To the minute: room for plans is scarce.
            minute(self.changed_at),
        ]
    }
}

const COLUMNS: [Column; 9] = [
    words("ACCOUNT"),
    words("LIFECYCLE"),
    numbers("GEN"),
    numbers("HELD"),
    words("PLANS"),
    numbers("RUN"),
    numbers("EVTS"),
    words("ISOLATION"),
    words("SINCE"),
];

#[derive(Serialize)]
struct TenantList {
    tenants: Vec<TenantLine>,
    /// Whether there are more than were asked for.
    more: bool,
}

impl fmt::Display for TenantList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tenants.is_empty() {
            return f.write_str("no tenants");
        }
        let rows: Vec<_> = self.tenants.iter().map(TenantLine::row).collect();
        f.write_str(table::layout(&COLUMNS, &rows, WIDTH).trim_end())
    }
}

/// Lists tenants.
pub async fn list(args: &ListArgs, out: &mut Out) -> Result<Verdict, ListError> {
    let store = Arc::new(Store::new(&clients::load().await, Stack::from_env()?));
    let limit = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let states: Vec<State> = match args.state {
        Some(state) => vec![state],
        None => State::value_variants().to_vec(),
    };
    let mut found = BTreeSet::new();
    for state in states {
        // The index is in the order of accounts, so more than this of one state cannot be among the first.
        found.extend(first(&store, state, limit.saturating_add(1)).await?);
    }
    let more = found.len() > limit;
    let tenants = cloud::read_all(found.into_iter().take(limit), |key| {
        let store = Arc::clone(&store);
        async move {
            let account = cloud::load(&store, &key).await?;
            Ok(account.tenant.as_ref().map(TenantLine::of))
        }
    });
    let mut tenants: Vec<TenantLine> = tenants.await?.into_iter().flatten().collect();
    // What has moved on since the index was written is no longer what was asked for.
    tenants.retain(|tenant| args.state.is_none_or(|state| state.name() == tenant.state));
    tenants.sort_by(|one, other| one.account_id.cmp(&other.account_id));

    let listed = TenantList { tenants, more };
    out.list(&listed, &listed.tenants)?;
    if more && out.format() != Some(Format::Json) {
        report::note(&format!("there are more than {limit}: raise --limit"));
    }
    Ok(Verdict::Good)
}

/// Table keys of the first tenants in a state.
async fn first(store: &Store, state: State, most: usize) -> Result<Vec<Partition>, ReadError> {
    let (mut keys, mut pages) = (Vec::new(), Pages::default());
    while let Some(page) = pages
        .next(async |after| store.tenants_in(state.name(), after).await)
        .await?
    {
        keys.extend(page);
        if keys.len() >= most {
            keys.truncate(most);
            break;
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn line(account: &str, plans: &[(&str, Standing)]) -> TenantLine {
        let held = |plan: &str, standing| HeldPlan {
            entitlement_id: format!("agreement-{plan}"),
            sku_id: "marketplace-sku-456".to_owned(),
            plan_type: plan.to_owned(),
            standing,
        };
        TenantLine {
            account_id: AccountId::parse(account).unwrap(),
            state: "active",
            lifecycle: Lifecycle::Active,
            changed_at: "2026-11-21T17:02:54.250Z".parse().unwrap(),
            generation: 1,
            entitlements: plans
                .iter()
                .map(|(plan, standing)| held(plan, *standing))
                .collect(),
            provisioning: None,
            in_flight: 2,
            waiting_events: 0,
            isolation: "pool",
        }
    }

    #[test]
    fn one_line_each() {
        let tenants = vec![
            line("customer-1", &[("professional", Standing::Active)]),
            line(
                "customer-22",
                &[
                    ("basic", Standing::Active),
                    ("basic", Standing::Active),
                    ("x", Standing::Suspended),
                ],
            ),
        ];
        let expected = "\
ACCOUNT      LIFECYCLE  GEN  HELD  PLANS                                         RUN  EVTS  ISOLATION  SINCE
customer-1   active       1     1  marketplace-sku-456/professional                2     0  pool       2026-11-21 17:02Z
customer-22  active       1     3  marketplace-sku-456/basic, suspended: marke…    2     0  pool       2026-11-21 17:02Z";
        let listed = TenantList { tenants, more: false };
        assert_eq!(listed.to_string(), expected);
        let none = TenantList {
            tenants: Vec::new(),
            more: false,
        };
        assert_eq!(none.to_string(), "no tenants");
    }

    #[test]
    fn nothing_is_shortened_for_programs() {
        let value: Value = serde_json::to_value(line("a", &[("professional", Standing::Suspended)])).unwrap();
        let expected = json!({
            "account_id": "a",
            "state": "active",
            "lifecycle": "active",
            "changed_at": "2026-11-21T17:02:54.25Z",
            "generation": 1,
            "entitlements": [{
                "entitlement_id": "agreement-professional",
                "sku_id": "marketplace-sku-456",
                "plan_type": "professional",
                "standing": "suspended",
            }],
            "provisioning": null,
            "in_flight": 2,
            "waiting_events": 0,
            "isolation": "pool",
        });
        assert_eq!(value, expected);
    }

    /// Each tenant is in one of the states that can be asked for, and no other is in the index.
    #[test]
    fn states_are_those_of_the_index() {
        let names: Vec<&str> = State::value_variants().iter().map(|state| state.name()).collect();
        assert_eq!(names, ["active", "busy", "unsettled", "absent", "decommissioned"]);
    }
}
