//! Tenants apart: whatever their account ids are made of, and whatever one says in the name of another.

use std::collections::BTreeSet;

use aws::store::Item;
use domain::account::AccountId;
use domain::names::{LedgerId, Partition};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::life::{gone, objects};
use crate::webhooks::Delivery;
use crate::world::{
    Ledger, PATIENCE, PLAN, SKU, SYSTEM, Tenant, World, alone, alongside, eventually, operation, unique,
};

/// Account ids that could be mistaken for something, or for each other.
fn ids() -> Vec<String> {
    let mut ids: Vec<String> = [
        "_",
        "__x",
        "___system",
        "_queue:governor-t-x",
        "_webhook:standard#msg",
        "TENANT",
        "ACTION#1",
        " spaces  around ",
        "..",
        "../_log/x",
        "/",
        "a/b",
        "a%2Fb",
        "a%2fb",
        "A/B",
        "--account-id=_",
        "quote\" and 'quote'",
        "{\"account_id\":\"x\"}",
        "back\\slash",
        "<b>&amp;</b>",
        "é",
        "e\u{301}",
        "\u{202E}right to left",
        "\u{1F980}",
    ]
    .map(str::to_owned)
    .into();
    ids.extend(["x", "名", "\u{1F600}"].map(|character| character.repeat(256)));
    // Alike as far as names of queues can show.
    ids.push(format!("{}y", "x".repeat(255)));
    ids
}

/// Looks at tenants whose table key is not their account id.
impl World {
    async fn ledger_of(&self, account: &str) -> Ledger {
        let partition = Partition::of(&AccountId::parse(account).unwrap());
        let items = self
            .query_if_there(&self.env.receipts_table, partition.as_str())
            .await
            .unwrap();
        let lines = items.iter().map(|item| item["line"].as_s().unwrap().clone());
        self.checked(account, lines.collect())
    }

    /// Waits until the last receipt of an account is of this operation.
    async fn came_to(&self, account: &str, last: &str) -> Ledger {
        eventually(&format!("{last} of {account:?}"), PATIENCE, || async {
            let ledger = self.ledger_of(account).await;
            match ledger.operations().last() {
                Some(found) if *found == last => Ok(ledger),
                _ => Err(format!("{:?}", ledger.operations())),
            }
        })
        .await
    }

    /// Everything in the tables that is an account's.
    async fn everything_of(&self, account: &str) -> Vec<Item> {
        let mut everything = Vec::new();
        for table in [&self.env.tenants_table, &self.env.receipts_table] {
            everything.extend(self.query_if_there(table, account).await.unwrap());
        }
        everything
    }
}

#[tokio::test]
async fn accounts_of_any_name_live_side_by_side() {
    let world = alongside().await;
    let ids = ids();
    let mut subscribing = JoinSet::new();
    for id in ids.clone() {
        let world = world.clone();
        subscribing.spawn(async move {
            let answer = world.post(&Delivery::created(world.env, &id, SKU, PLAN)).await;
            assert_eq!(answer.status, 200, "{id:?}: {answer:?}");
            let tenant = world.provisioned(answer.body).await;
            assert_eq!(tenant.account, id);
            let action_id = unique("any-name");
            world.send(&tenant, tenant.restart(&action_id)).await;
            (tenant, action_id)
        });
    }
    let tenants = subscribing.join_all().await;
    let queues: BTreeSet<&str> = tenants.iter().map(|(tenant, _)| tenant.queue.as_str()).collect();
    assert_eq!(queues.len(), ids.len());
    for (tenant, action_id) in &tenants {
        let ledger = world.came_to(&tenant.account, "action_complete").await;
        assert_eq!(
            ledger.operations(),
            ["entitlement_active", "action_complete"],
            "{:?}",
            tenant.account
        );
        assert_eq!(ledger.receipts[1]["action_id"], action_id.as_str());
        assert_eq!(world.handler_saw(action_id).await, (1, 0), "{:?}", tenant.account);
    }

    let mut leaving = JoinSet::new();
    for (tenant, _) in tenants {
        let world = world.clone();
        leaving.spawn(async move {
            let answer = world
                .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
                .await;
            assert_eq!(answer.status, 200, "{:?}: {answer:?}", tenant.account);
            let ledger = world.came_to(&tenant.account, "decommission_complete").await;
            assert_eq!(
                ledger.receipts.len(),
                4,
                "{:?}: {:?}",
                tenant.account,
                ledger.operations()
            );
            let account = LedgerId::Customer(AccountId::parse(&tenant.account).unwrap());
            let path = ledger.receipts[3]["archive_path"].as_str().unwrap().to_owned();
            let folder = format!("s3://{}/{}/", world.env.audit_bucket, account.ledger().segment());
            assert!(path.starts_with(&folder), "{:?}: {path}", tenant.account);
            let export = format!("--account-id={}", tenant.account);
            let key = world.env.auditor_pub.to_str().unwrap();
            let export = [
                "export-receipts",
                &export,
                "--format",
                "jsonl",
                "--public-key",
                key,
            ];
            let exported = world.ggen(&export).await.ok();
            let exported: Vec<&str> = exported.lines().collect();
            assert_eq!(exported, ledger.lines, "{:?}", tenant.account);
            path
        });
    }
    let paths: BTreeSet<String> = leaving.join_all().await.into_iter().collect();
    assert_eq!(paths.len(), ids.len());
}

/// SQS takes neither U+FFFE nor U+FFFF in a message, which are in no way forbidden in a name: the tenant comes, is asked and
/// leaves all the same.
#[tokio::test]
async fn characters_that_queues_refuse_hold_nothing_up() {
    let world = alongside().await;
    let account = unique("\u{FFFE}odd\u{FFFF}");
    let answer = world
        .post(&Delivery::created(world.env, &account, SKU, PLAN))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let tenant = world.provisioned(answer.body).await;
    let action_id = unique("odd");
    let signal = tenant
        .signal(&action_id, "restart-service", json!({ "service": "web\u{FFFF}" }))
        .to_string();
    let signal = signal
        .replace('\u{FFFE}', "\\ufffe")
        .replace('\u{FFFF}', "\\uffff");
    world.send(&tenant, signal).await;
    let ledger = world.came_to(&account, "action_complete").await;
    assert_eq!(ledger.operations(), ["entitlement_active", "action_complete"]);
    let answer = world.post(&Delivery::cancelled(world.env, &account, SKU)).await;
    assert_eq!(
        (answer.status, operation(&answer.json())),
        (200, "decommission_start"),
        "{answer:?}"
    );
    world.came_to(&account, "decommission_complete").await;
}

#[tokio::test]
async fn a_signal_for_another_account_is_refused_on_ones_own() {
    let world = alongside().await;
    let (one, other) = (world.tenant("one").await, world.tenant("other").await);
    let before = world.everything_of(&other.account).await;
    let action_id = unique("foreign");
    let mut forms = vec![other.restart(&action_id)];
    // Another's account under one's own agreement, and one's own under the name of another's queue.
    let mut mixed = other.restart(&unique("foreign"));
    mixed["entitlement_id"] = json!(SKU);
    forms.push(mixed);
    for signal in &forms {
        world.send(&one, signal).await;
    }
    world.drained(&one.queue_url).await;
    let ledger = world.ledger(&one.account).await;
    assert_eq!(
        ledger.operations(),
        ["entitlement_active", "action_refused", "action_refused"]
    );
    for receipt in &ledger.receipts[1..] {
        assert_eq!(
            (&receipt["code"], &receipt["account_id"]),
            (&json!("MALFORMED_SIGNAL"), &json!(one.account)),
            "{receipt}"
        );
    }
    assert_eq!(world.everything_of(&other.account).await, before);
    assert_eq!(world.handler_saw(&action_id).await, (0, 0));
    // Nor is the id used up for the one it was meant for.
    world.send(&other, &forms[0]).await;
    world
        .settled(&other.account, &action_id, &["action_complete"])
        .await;
    assert_eq!(world.handler_saw(&action_id).await, (1, 0));
}

/// What one tenant's producer calls an action is no other tenant's: neither is it done for it, nor undone.
#[tokio::test]
async fn an_action_id_of_another_tenant_is_another_action() {
    let world = alongside().await;
    let (one, other) = (world.tenant("first").await, world.tenant("second").await);
    let action_id = unique("shared");
    world.send(&one, one.restart(&action_id)).await;
    world
        .settled(&one.account, &action_id, &["action_complete"])
        .await;
    let fails = json!({ "service": "web", "outcome": "fail" });
    world
        .send(&other, other.signal(&action_id, "restart-service", fails))
        .await;
    let undone = ["action_failed", "action_rolled_back"];
    let receipts = world.settled(&other.account, &action_id, &undone).await;
    assert_eq!(receipts[0]["error_code"], "SIMULATED_FAILURE", "{}", receipts[0]);
    assert_eq!(world.ledger(&one.account).await.of(&action_id).len(), 1);
    let url = format!("{}/log?action_id={action_id}", world.env.handler_url);
    let log: Value = world.http.get(url).send().await.unwrap().json().await.unwrap();
    let whose = |what: &str| -> Vec<Value> {
        let entries = log[what].as_array().unwrap().iter();
        entries.map(|entry| entry["account_id"].clone()).collect()
    };
    assert_eq!(
        (whose("applied"), whose("undone")),
        (vec![json!(one.account)], vec![json!(other.account)]),
        "{log}"
    );
}

#[tokio::test]
async fn a_webhook_touches_only_the_account_it_names() {
    let world = alongside().await;
    let agreement = json!("agreement-1");
    let mut tenants: Vec<Tenant> = Vec::new();
    for name in ["named", "unnamed"] {
        let data = json!({
            "account_id": unique(name), "sku_id": SKU, "plan_type": PLAN, "entitlement_id": agreement,
        });
        let answer = world
            .post(&Delivery::entitlement(world.env, "created", data))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        tenants.push(world.provisioned(answer.body).await);
    }
    let [named, unnamed] = [&tenants[0], &tenants[1]];
    let before = world.everything_of(&unnamed.account).await;
    let events = [
        ("suspended", "entitlement_suspended"),
        ("reinstated", "entitlement_reinstated"),
        ("renewed", "entitlement_renewed"),
        ("created", "webhook_ignored"),
        ("cancelled", "decommission_start"),
    ];
    for (event, receipt) in events {
        let data = json!({
            "account_id": named.account, "sku_id": SKU, "plan_type": PLAN, "entitlement_id": agreement,
        });
        let answer = world.post(&Delivery::entitlement(world.env, event, data)).await;
        assert_eq!(
            (answer.status, operation(&answer.json())),
            (200, receipt),
            "{event}: {answer:?}"
        );
    }
    gone(&world, named).await;
    assert_eq!(world.everything_of(&unnamed.account).await, before);
    let action_id = unique("unnamed");
    world.send(unnamed, unnamed.restart(&action_id)).await;
    world
        .settled(&unnamed.account, &action_id, &["action_complete"])
        .await;
}

/// A customer may be called like the control plane's own ledger, also while refusals go around the tables.
#[tokio::test]
async fn a_customer_called_like_the_system_stays_apart_from_it() {
    alone(|world| async move {
        let answer = world.post(&Delivery::created(world.env, SYSTEM, SKU, PLAN)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let tenant = world.provisioned(answer.body).await;
        let system = world.ledger(SYSTEM).await.lines.len();
        world.fault("dynamodb", json!({ "mode": "refuse" })).await;
        for _ in 0..3 {
            assert_eq!(world.probe().await["good"], false);
        }
        let action_id = unique("degraded");
        world.send(&tenant, tenant.restart(&action_id)).await;
        world.drained(&tenant.queue_url).await;
        world.mend("dynamodb").await;
        let found = world.probe().await;
        assert_eq!(
            (&found["good"], &found["mode"]),
            (&json!(true), &json!("normal")),
            "{found}"
        );

        let ledger = world.came_to(SYSTEM, "action_refused").await;
        assert_eq!(ledger.operations(), ["entitlement_active", "action_refused"]);
        assert_eq!(ledger.receipts[1]["action_id"], action_id.as_str());
        let operations = ["degraded_mode", "degraded_mode_cleared"];
        assert_eq!(world.ledger(SYSTEM).await.operations()[system..], operations);

        let answer = world.post(&Delivery::cancelled(world.env, SYSTEM, SKU)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let ledger = world.came_to(SYSTEM, "decommission_complete").await;
        let path = ledger.receipts[3]["archive_path"].as_str().unwrap();
        assert!(path.contains("/%5Fsystem/"), "{path}");
        let kept = objects(&world, "%5Fsystem/").await;
        assert!(kept.iter().any(|key| path.ends_with(key.as_str())), "{kept:?}");
        // The system's own goes on behind, undisturbed.
        assert_eq!(world.ledger(SYSTEM).await.operations()[system..], operations);
    })
    .await;
}
