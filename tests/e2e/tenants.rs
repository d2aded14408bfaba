//! What operators see of tenants with `ggen tenants`.

use std::collections::BTreeMap;

use aws::clients;
use aws::store::{Store, StoreError};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::QueueAttributeName;
use domain::transaction::{Keys, Plan};
use jiff::{SignedDuration, Timestamp};
use receipts::Signer;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use crate::webhooks::Delivery;
use crate::world::{PATIENCE, PLAN, SKU, Tenant, World, alongside, eventually, partition_of, unique};

/// More than any run has tenants.
const ALL: &str = "100000";

impl World {
    /// What programs get of one tenant.
    async fn shown(&self, account: &str) -> Value {
        let show = ["tenants", "show", "--format", "json", "--account-id", account];
        let ran = self.ggen(&show).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()
    }

    /// What people get of one tenant: at most 120 columns, without colours.
    async fn told(&self, account: &str) -> String {
        let told = self
            .ggen(&["tenants", "show", "--account-id", account])
            .await
            .ok();
        fits(&told);
        told
    }

    /// The line of a tenant among those in a state.
    async fn listed(&self, state: &str, account: &str) -> Option<Value> {
        let list = [
            "tenants", "list", "--format", "json", "--limit", ALL, "--state", state,
        ];
        let ran = self.ggen(&list).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let mut listed = ran.json();
        assert_eq!(listed["more"], false, "{listed}");
        let mut tenants = listed["tenants"].as_array_mut().unwrap().drain(..);
        tenants.find(|tenant| tenant["account_id"] == account)
    }

    /// Posts an event about an entitlement, which is done at once or kept for later.
    async fn say(&self, event: &str, data: Value) -> Value {
        let answer = self.post(&Delivery::entitlement(self.env, event, data)).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        answer.json()
    }

    /// Writes a tenant as if something had become of it.
    async fn rewrite(
        &self,
        account: &str,
        change: impl Fn(&domain::tenant::Tenant) -> domain::tenant::Tenant,
    ) {
        let store = Store::new(&clients::load().await, self.stack());
        let signer = Signer::from_pem(&self.signing_key().await).unwrap();
        let plan = |account: &domain::transaction::Account, _| {
            Ok::<_, StoreError>((Plan::tenant(account.tenant.as_ref().map(&change)), ()))
        };
        let done = store
            .transact(&signer, &partition_of(account), &Keys::default(), None, plan)
            .await;
        done.unwrap();
    }
}

#[track_caller]
fn fits(told: &str) {
    for line in told.lines() {
        assert!(line.width() <= 120, "{line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}

/// Checks that the table has a line that begins with these words.
#[track_caller]
fn has_line(told: &str, words: &[&str]) {
    let found = told.lines().any(|line| {
        let mut found = line.split_whitespace();
        words.iter().all(|word| found.next() == Some(*word))
    });
    assert!(found, "{words:?} begin no line of\n{told}");
}

#[tokio::test]
async fn a_fresh_tenant() {
    let world = alongside().await;
    let tenant = world.tenant("seen").await;
    let account = tenant.account.as_str();

    let line = world.listed("active", account).await.unwrap();
    let entitlement = json!({
        "entitlement_id": SKU, "sku_id": SKU, "plan_type": PLAN, "standing": "active",
    });
    let expected = json!({
        "account_id": account,
        "state": "active",
        "lifecycle": "active",
        "changed_at": line["changed_at"],
        "generation": 1,
        "entitlements": [entitlement],
        "provisioning": null,
        "in_flight": 0,
        "waiting_events": 0,
        "isolation": "pool",
    });
    assert_eq!(line, expected);
    for other in ["busy", "unsettled", "absent", "decommissioned"] {
        assert_eq!(world.listed(other, account).await, None, "{other}");
    }

    let mut shown = world.shown(account).await;
    let active: Value = serde_json::from_str(&tenant.line).unwrap();
    assert_eq!(shown["receipts"].take(), json!([active]));
    assert_eq!(shown["changed_at"].take(), line["changed_at"]);
    let attribute = world.queue_attribute(&tenant.queue_url, QueueAttributeName::QueueArn);
    let mappings = world.mappings(&attribute.await).await;
    let lag = json!({ "waiting": 0, "in_flight": 0, "delayed": 0 });
    let dead_letters = format!("{}-dlq", tenant.queue);
    let held = &shown["entitlements"][0];
    let expected = json!({
        "account_id": account,
        "lifecycle": "active",
        "state": "active",
        "changed_at": null,
        "generation": 1,
        "began_at": shown["began_at"],
        "fsm_id": tenant.queue,
        "revision": shown["revision"],
        "in_flight": 0,
        "in_flight_action_limit": 10,
        "concurrent_actions": 20,
        "backlog": {
            "lag": 0,
            "waits_for": null,
            "oldest_age_seconds": null,
            "places_in_use": 0,
            "places": 10,
        },
        "scale": {
            "limit": null,
            "floor": null,
            "trial": null,
            "rest_until": null,
            "exceeded": null,
            "idle": null, "quiet_since": null,
        },
        "lease_until": null,
        "actions_completed": 0,
        "actions_failed": 0,
        "entitlements": [{
            "entitlement_id": SKU,
            "sku_id": SKU,
            "plan_type": PLAN,
            "region": "us-east-1",
            "standing": "active",
            "policy": { "version": active["policy_version"], "hash": tenant.policy_hash },
            "quota": { "monthly_actions": 10_000, "concurrent_actions": 20 },
            "in_flight": 0,
            "month": held["month"],
            "month_actions": 0,
            "granted_at": held["granted_at"],
            "expires_at": null,
            "last_event": held["last_event"],
        }],
        "provisioning": null,
        "waiting_events": [],
        "cancellations": [],
        "isolation": "pool",
        "tables": null,
        "queues": {
            "signals": { "name": tenant.queue, "url": tenant.queue_url, "lag": lag },
            "dead_letters": {
                "name": dead_letters,
                "url": format!("{}-dlq", tenant.queue_url),
                "lag": lag,
            },
            "mapping_id": mappings[0].uuid,
        },
        "ledger": {
            "size": 1,
            "last_hash": receipts::verify_line(&tenant.line, &world.keys).unwrap().hash().unwrap(),
            "timestamp": active["timestamp"],
        },
        "receipts": null,
    });
    assert_eq!(shown, expected);

    let told = world.told(account).await;
    has_line(&told, &[account]);
    has_line(&told, &["lifecycle", "active", "since"]);
    has_line(&told, &[SKU, SKU, PLAN, "active"]);
    has_line(&told, &[SKU, "0", "of", "10000", "0", "of", "20", "1.0.0"]);
    has_line(&told, &[&tenant.queue, "0", "0", "0"]);
    has_line(&told, &[&dead_letters, "0", "0", "0"]);
    assert!(told.contains("entitlement_active"), "{told}");
}

/// What has run, and what runs.
#[tokio::test]
async fn a_busy_tenant() {
    let world = alongside().await;
    let tenant = world.tenant("busy").await;
    let account = tenant.account.as_str();
    let action_id = unique("busy");
    world.send(&tenant, tenant.restart(&action_id)).await;
    world.settled(account, &action_id, &["action_complete"]).await;
    // No action takes long enough to be seen while it runs, however slow the machine, so three are only claimed.
    let lease = Timestamp::now() + SignedDuration::from_hours(1);
    world
        .rewrite(account, |read| {
            let id = read.entitlements.keys().next().unwrap().clone();
            read.claimed(&BTreeMap::from([(id, 3)]), Timestamp::now(), lease)
        })
        .await;

    assert_eq!(world.listed("active", account).await, None);
    let line = world.listed("busy", account).await.unwrap();
    assert_eq!(
        (&line["in_flight"], &line["lifecycle"]),
        (&json!(3), &json!("active"))
    );
    let shown = world.shown(account).await;
    assert_eq!(shown["state"], "busy");
    assert_eq!(
        (&shown["in_flight"], &shown["actions_completed"]),
        (&json!(3), &json!(1))
    );
    let held = &shown["entitlements"][0];
    assert_eq!(
        (&held["in_flight"], &held["month_actions"]),
        (&json!(3), &json!(4))
    );
    assert_eq!(shown["lease_until"], json!(lease));

    let told = world.told(account).await;
    has_line(&told, &[SKU, "4", "of", "10000", "3", "of", "20"]);
    has_line(&told, &["actions", "3", "in", "flight", "of", "10,", "until"]);
    let last = told.lines().last().unwrap();
    assert!(
        last.contains("action_complete") && last.contains(&action_id),
        "{told}"
    );

    // Only the last receipt, or none.
    let show = |count: &'static str| {
        let show = [
            "tenants",
            "show",
            "--format",
            "json",
            "--receipts",
            count,
            "--account-id",
            account,
        ];
        let world = &world;
        async move { world.ggen(&show).await.json()["receipts"].take() }
    };
    assert_eq!(show("1").await[0]["seq"], 1);
    assert_eq!(show("0").await, json!([]));
}

/// Suspended, with a second entitlement that was cancelled, and with an event that waits for its time.
#[tokio::test]
async fn a_tenant_with_a_history() {
    let world = alongside().await;
    let tenant = world.tenant("story").await;
    let account = tenant.account.as_str();
    let about = |id: &str| json!({ "account_id": account, "entitlement_id": id, "sku_id": SKU });
    let mut second = about("agreement-2");
    second["plan_type"] = json!(PLAN);
    second["region"] = json!("us-east-1");
    world.say("created", second).await;
    world.say("cancelled", about("agreement-2")).await;
    world.say("suspended", about(SKU)).await;
    let mut later = about(SKU);
    let due = Timestamp::now() + SignedDuration::from_hours(48);
    later["effective_at"] = json!(due.to_string());
    let deferred = world.say("reinstated", later).await;
    assert_eq!(deferred["operation"], "entitlement_deferred");

    assert_eq!(world.listed("active", account).await, None);
    let line = world.listed("unsettled", account).await.unwrap();
    assert_eq!(line["waiting_events"], 1);
    assert_eq!(line["entitlements"][0]["standing"], "suspended");
    let shown = world.shown(account).await;
    assert_eq!(shown["entitlements"].as_array().unwrap().len(), 1);
    assert_eq!(shown["entitlements"][0]["standing"], "suspended");
    let waiting = &shown["waiting_events"][0];
    assert_eq!(
        (
            &waiting["event"],
            &waiting["entitlement_id"],
            &waiting["attempts"]
        ),
        (&json!("reinstatement"), &json!(SKU), &json!(0))
    );
    assert_eq!(waiting["due_at"], json!(due));
    assert_eq!(waiting["delivery"]["provider"], "standard");
    assert_eq!(shown["cancellations"][0]["entitlement_id"], "agreement-2");

    let told = world.told(account).await;
    has_line(&told, &[SKU, SKU, PLAN, "suspended"]);
    has_line(&told, &["reinstatement", SKU]);
    has_line(&told, &["agreement-2"]);
    let table = world.ggen(&["tenants", "list", "--limit", ALL]).await.ok();
    fits(&table);
    has_line(&table, &["ACCOUNT", "LIFECYCLE", "GEN", "HELD", "PLANS"]);
    has_line(&table, &[account, "active", "1", "1"]);
}

#[tokio::test]
async fn a_tenant_that_left() {
    let world = alongside().await;
    let Tenant { account, .. } = world.tenant("left").await;
    let gone = Delivery::cancelled(world.env, &account, SKU);
    assert_eq!(world.post(&gone).await.status, 200);
    let line = eventually("the tenant to be gone", PATIENCE, || async {
        let line = world.listed("decommissioned", &account).await;
        line.ok_or_else(|| "not yet".to_owned())
    })
    .await;
    assert_eq!(line["entitlements"], json!([]));

    let shown = world.shown(&account).await;
    assert_eq!(shown["lifecycle"], "decommissioned");
    assert_eq!(shown["queues"], Value::Null);
    assert_eq!(shown["cancellations"][0]["entitlement_id"], SKU);
    let last = shown["receipts"].as_array().unwrap().last().unwrap();
    assert_eq!(last["operation"], "decommission_complete");
    let told = world.told(&account).await;
    has_line(&told, &["lifecycle", "decommissioned", "since"]);
    assert!(!told.contains("QUEUE"), "{told}");
}

/// An account that never was is told from one that only has receipts.
#[tokio::test]
async fn unknown_accounts() {
    let world = alongside().await;
    let account = unique("nobody");
    let ran = world.ggen(&["tenants", "show", "--account-id", &account]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.starts_with("NOT FOUND"), "{ran:?}");
    let show = ["tenants", "show", "--format", "json", "--account-id", &account];
    let ran = world.ggen(&show).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.json(), json!({ "account_id": account, "known": false }));

    let refused = Delivery::created(world.env, &account, SKU, "no-such-plan");
    assert_eq!(world.post(&refused).await.status, 422);
    let shown = world.shown(&account).await;
    assert_eq!(shown["lifecycle"], "absent");
    assert_eq!(shown["receipts"][0]["operation"], "entitlement_failed");
    world.told(&account).await;
}

/// No more than asked for, the first by account, and it is said that there are more.
#[tokio::test]
async fn a_list_is_bounded() {
    let world = alongside().await;
    let (a, b) = (world.tenant("bound").await, world.tenant("bound").await);
    let list = ["tenants", "list", "--limit", "1"];
    let ran = world.ggen(&list).await;
    assert!(ran.stderr.contains("there are more than 1"), "{ran:?}");
    assert_eq!(ran.ok().lines().count(), 2);
    let ran = world.ggen(&[&list[..], &["--format", "json"]].concat()).await;
    let listed = ran.json();
    assert_eq!(listed["more"], true);
    assert_eq!(listed["tenants"].as_array().unwrap().len(), 1);

    let all = ["tenants", "list", "--limit", ALL, "--format", "jsonl"];
    let all = world.ggen(&all).await.ok();
    let accounts: Vec<String> = all
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["account_id"].clone())
        .map(|account| account.as_str().unwrap().to_owned())
        .collect();
    assert!(accounts.is_sorted(), "{accounts:?}");
    assert!(accounts.contains(&a.account) && accounts.contains(&b.account));
}

/// Items that a release wrote before there were formats are read, and written anew in today's.
#[tokio::test]
async fn a_tenant_of_an_older_release_goes_on() {
    let world = alongside().await;
    let tenant = world.tenant("older").await;
    let account = tenant.account.as_str();
    let mut older = world.item(account, "TENANT").await;
    let format = older.remove("format");
    assert_eq!(format, Some(AttributeValue::N("1".to_owned())));
    let fields = match older.get_mut("tenant") {
        Some(AttributeValue::M(fields)) => fields,
        other => panic!("{other:?}"),
    };
    for later in [
        "table_attempts",
        "deferred",
        "scale",
        "tombstones",
        "full_at",
        "last_claim",
    ] {
        assert!(fields.remove(later).is_some(), "{later}");
    }
    world.put_item(older).await;
    assert_eq!(world.shown(account).await["state"], "active");
    let action_id = unique("older");
    let signal = tenant.signal(&action_id, "restart-service", json!({ "service": "web" }));
    world.send(&tenant, signal).await;
    world.settled(account, &action_id, &["action_complete"]).await;
    for sk in ["TENANT", &format!("ACTION#{action_id}")] {
        assert_eq!(
            world.item(account, sk).await["format"],
            AttributeValue::N("1".to_owned()),
            "{sk}"
        );
    }
}
