//! What marketplaces say about entitlements, in every order, and what an account with several of them gets.

use aws_sdk_sqs::types::QueueAttributeName;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::github;
use crate::life::{gone, object, objects};
use crate::webhooks::{Answer, Delivery};
use crate::world::{PATIENCE, PLAN, SKU, Tenant, World, alongside, eventually, operation, unique};

/// A SKU with three plans: two signals a month, many, and one with tables of its own.
const PLANS: &str = "three-plans";
static DEPLOYED: OnceCell<[String; 3]> = OnceCell::const_new();

/// Hashes of the policies of the plans `starter`, `growth` and `dedicated`.
async fn plans(world: &World) -> &'static [String; 3] {
    let deploy = || async {
        let sku = format!("sku_id: {PLANS}");
        let pool = ("sku_id: pool-sku", sku.as_str());
        let growth = [
            pool,
            ("plan_type: starter", "plan_type: growth"),
            ("monthly_actions: 2", "monthly_actions: 1000"),
            ("concurrent_actions: 2", "concurrent_actions: 20"),
        ];
        let dedicated = [
            ("sku_id: dedicated-sku", sku.as_str()),
            ("plan_type: professional", "plan_type: dedicated"),
        ];
        [
            world.deploy_fixture("pool.yaml", &[pool]).await,
            world.deploy_fixture("pool.yaml", &growth).await,
            world.deploy_fixture("dedicated.yaml", &dedicated).await,
        ]
    };
    DEPLOYED.get_or_init(deploy).await
}

/// Posts an event about an entitlement, which must be answered so; gives the receipt.
async fn say(world: &World, event: &str, data: Value, status: u16, receipt: &str) -> Value {
    let answer = world
        .post(&Delivery::entitlement(world.env, event, data.clone()))
        .await;
    answered(&format!("{event} {data}"), &answer, status, receipt)
}

#[track_caller]
fn answered(what: &str, answer: &Answer, status: u16, receipt: &str) -> Value {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    let mut found = answer.json();
    if status == 422 {
        // What cannot be done is told as a problem, which holds the receipt.
        assert_eq!(
            answer.content_type, "application/problem+json",
            "{what}: {answer:?}"
        );
        found = found["receipt"].take();
    }
    assert_eq!(operation(&found), receipt, "{what}: {found}");
    found
}

/// A new account with one of the three plans.
async fn subscribed(world: &World, name: &str, plan: &str) -> Tenant {
    plans(world).await;
    let data = json!({ "account_id": unique(name), "sku_id": PLANS, "plan_type": plan });
    let receipt = world
        .post(&Delivery::entitlement(world.env, "created", data))
        .await;
    assert_eq!(receipt.status, 200, "{receipt:?}");
    world.provisioned(receipt.body).await
}

/// A signal that says more than an ordinary one leaves a receipt of this operation and code; gives that.
async fn asked(world: &World, tenant: &Tenant, more: Value, expected: (&str, &str)) -> Value {
    let action_id = unique("asked");
    let mut signal = tenant.restart(&action_id);
    for (field, value) in more.as_object().unwrap() {
        signal[field] = value.clone();
    }
    world.send(tenant, &signal).await;
    let (operation, code) = expected;
    let mut receipts = world.settled(&tenant.account, &action_id, &[operation]).await;
    assert_eq!(receipts[0]["code"], code, "{signal}: {}", receipts[0]);
    receipts.remove(0)
}

const DONE: (&str, &str) = ("action_complete", "COMPLETE");

fn refused(code: &str) -> (&str, &str) {
    ("action_refused", code)
}

fn ago(seconds: i64) -> String {
    (Timestamp::now() - SignedDuration::from_secs(seconds)).to_string()
}

#[tokio::test]
async fn an_account_holds_several_entitlements() {
    let world = alongside().await;
    let [_, growth, _] = plans(&world).await;
    let tenant = world.tenant("several").await;
    let account = &tenant.account;
    let of = |sku: &str, plan: &str| json!({ "account_id": account, "sku_id": sku, "plan_type": plan });
    asked(&world, &tenant, json!({}), DONE).await;

    let second = say(&world, "created", of(PLANS, "growth"), 200, "entitlement_active").await;
    assert_eq!(
        (&second["resources"]["queue"], &second["entitlement_id"]),
        (&json!(tenant.queue), &json!(PLANS)),
        "{second}"
    );
    asked(&world, &tenant, json!({}), refused("AMBIGUOUS_ENTITLEMENT")).await;
    asked(&world, &tenant, json!({ "sku_id": SKU }), DONE).await;
    let by_growth = |more: Value| {
        let mut more = more;
        more["policy_hash"] = json!(growth);
        more
    };
    let done = asked(&world, &tenant, by_growth(json!({ "sku_id": PLANS })), DONE).await;
    assert_eq!(done["policy_hash"], growth.as_str(), "{done}");
    asked(
        &world,
        &tenant,
        json!({ "sku_id": PLANS }),
        refused("POLICY_HASH_MISMATCH"),
    )
    .await;
    asked(
        &world,
        &tenant,
        json!({ "sku_id": "another" }),
        refused("NO_ENTITLEMENT"),
    )
    .await;
    asked(
        &world,
        &tenant,
        json!({ "entitlement_id": "another" }),
        refused("NO_ENTITLEMENT"),
    )
    .await;

    let mut agreement = of(PLANS, "growth");
    agreement["entitlement_id"] = json!("agreement/2");
    say(&world, "created", agreement.clone(), 200, "entitlement_active").await;
    asked(
        &world,
        &tenant,
        by_growth(json!({ "sku_id": PLANS })),
        refused("AMBIGUOUS_ENTITLEMENT"),
    )
    .await;
    asked(
        &world,
        &tenant,
        by_growth(json!({ "entitlement_id": "agreement/2" })),
        DONE,
    )
    .await;
    let contradiction = json!({ "entitlement_id": "agreement/2", "sku_id": SKU });
    asked(&world, &tenant, contradiction, refused("NO_ENTITLEMENT")).await;

    // A purchase that comes again, with another id, overwrites nothing.
    let held = plans_of(&world, account).await;
    assert_eq!(held.len(), 3, "{held:?}");
    let mut other_plan = agreement.clone();
    other_plan["plan_type"] = json!("starter");
    for again in [of(SKU, PLAN), agreement, other_plan] {
        say(&world, "created", again, 200, "webhook_ignored").await;
    }
    assert_eq!(plans_of(&world, account).await, held);

    // Two of this product could be meant.
    say(
        &world,
        "cancelled",
        json!({ "account_id": account, "sku_id": PLANS }),
        422,
        "entitlement_failed",
    )
    .await;
    say(
        &world,
        "cancelled",
        json!({ "account_id": account }),
        422,
        "entitlement_failed",
    )
    .await;
    let named = json!({ "account_id": account, "entitlement_id": "agreement/2" });
    let cancelled = say(&world, "cancelled", named, 200, "entitlement_cancelled").await;
    assert_eq!(
        (
            &cancelled["entitlement_id"],
            &cancelled["sku_id"],
            &cancelled["entitlements_left"]
        ),
        (&json!("agreement/2"), &json!(PLANS), &json!(2)),
        "{cancelled}"
    );
    asked(
        &world,
        &tenant,
        by_growth(json!({ "entitlement_id": "agreement/2" })),
        refused("NO_ENTITLEMENT"),
    )
    .await;
    asked(&world, &tenant, by_growth(json!({ "sku_id": PLANS })), DONE).await;

    // The address of cancellations takes one of several, too.
    let answer = world.post(&Delivery::cancelled(world.env, account, PLANS)).await;
    let cancelled = answered("cancelled", &answer, 200, "entitlement_cancelled");
    assert_eq!(cancelled["entitlements_left"], 1, "{cancelled}");
    asked(&world, &tenant, json!({}), DONE).await;
    say(
        &world,
        "cancelled",
        json!({ "account_id": account }),
        200,
        "decommission_start",
    )
    .await;
    gone(&world, &tenant).await;
}

/// What an account holds, as far as it is granted: agreement, plan, policy and what was used.
async fn plans_of(world: &World, account: &str) -> Vec<[String; 4]> {
    let held = world.stored(account).await.tenant.unwrap().entitlements;
    let told = held.into_iter().map(|(id, held)| {
        let (plan, policy) = (held.plan_type.to_string(), held.policy.hash);
        [id.to_string(), plan, policy, held.month_actions.to_string()]
    });
    told.collect()
}

#[tokio::test]
async fn a_plan_changes_up_and_down() {
    let world = alongside().await;
    let [starter, growth, _] = plans(&world).await;
    let tenant = subscribed(&world, "plan-change", "starter").await;
    assert_eq!(tenant.policy_hash, *starter);
    let to = |plan: &str| json!({ "account_id": tenant.account, "sku_id": PLANS, "plan_type": plan });
    for _ in 0..2 {
        asked(&world, &tenant, json!({}), DONE).await;
    }
    asked(&world, &tenant, json!({}), refused("QUOTA_EXCEEDED")).await;
    let arn = world
        .queue_attribute(&tenant.queue_url, QueueAttributeName::QueueArn)
        .await;
    assert_eq!(world.mappings(&arn).await[0].batch_size, Some(1));

    let up = say(&world, "changed", to("growth"), 200, "entitlement_changed").await;
    let expected = json!({
        "entitlement_id": PLANS,
        "sku_id": PLANS,
        "previous_plan_type": "starter",
        "plan_type": "growth",
        "previous_policy_version": "1.0.0",
        "policy_version": "1.0.0",
        "quota": { "monthly_actions": 1000, "concurrent_actions": 20 },
        "policy_hash": growth,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(up[field], *value, "{field} of {up}");
    }
    assert_eq!(world.mappings(&arn).await[0].batch_size, Some(5));
    asked(&world, &tenant, json!({}), refused("POLICY_HASH_MISMATCH")).await;
    asked(&world, &tenant, json!({ "policy_hash": growth }), DONE).await;

    say(&world, "changed", to("growth"), 200, "webhook_ignored").await;
    say(&world, "changed", to("unheard-of"), 422, "entitlement_failed").await;
    asked(&world, &tenant, json!({ "policy_hash": growth }), DONE).await;

    // What was used of the month stays used.
    let down = say(&world, "changed", to("starter"), 200, "entitlement_changed").await;
    assert_eq!(down["quota"]["monthly_actions"], 2, "{down}");
    asked(
        &world,
        &tenant,
        json!({ "policy_hash": growth }),
        refused("POLICY_HASH_MISMATCH"),
    )
    .await;
    asked(&world, &tenant, json!({}), refused("QUOTA_EXCEEDED")).await;
}

#[tokio::test]
async fn a_suspended_tenant_keeps_everything() {
    let world = alongside().await;
    let tenant = world.tenant("suspended").await;
    let data = json!({ "account_id": tenant.account, "sku_id": SKU });
    asked(&world, &tenant, json!({}), DONE).await;
    let said = say(&world, "suspended", data.clone(), 200, "entitlement_suspended").await;
    assert_eq!(
        (&said["entitlement_id"], &said["sku_id"]),
        (&json!(SKU), &json!(SKU)),
        "{said}"
    );
    let before = asked(&world, &tenant, json!({}), refused("SUSPENDED")).await;
    say(&world, "suspended", data.clone(), 200, "webhook_ignored").await;
    assert!(world.queue_exists(&tenant.queue).await);

    let mut renewal = data.clone();
    renewal["expires_at"] = json!("2030-01-01T00:00:00Z");
    let renewed = say(&world, "renewed", renewal, 200, "entitlement_renewed").await;
    assert!(
        renewed["expires_at"]
            .as_str()
            .unwrap()
            .starts_with("2030-01-01T00:00:00"),
        "{renewed}"
    );
    asked(&world, &tenant, json!({}), refused("SUSPENDED")).await;

    say(&world, "reinstated", data.clone(), 200, "entitlement_reinstated").await;
    say(&world, "reinstated", data, 200, "webhook_ignored").await;
    asked(&world, &tenant, json!({}), DONE).await;
    // What was refused stays refused.
    let action_id = before["action_id"].as_str().unwrap();
    world.send(&tenant, tenant.restart(action_id)).await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.handler_saw(action_id).await, (0, 0));
    assert_eq!(world.ledger(&tenant.account).await.of(action_id).len(), 1);
}

/// A term that is over ends what runs at once; a renewal that comes late lets it run again.
#[tokio::test]
async fn an_expired_entitlement_runs_nothing() {
    let world = alongside().await;
    plans(&world).await;
    let mut data = json!({
        "account_id": unique("expired"), "sku_id": PLANS, "plan_type": "growth", "expires_at": ago(24 * 3600),
    });
    let receipt = world
        .post(&Delivery::entitlement(world.env, "created", data.clone()))
        .await;
    assert_eq!(receipt.status, 200, "{receipt:?}");
    let tenant = world.provisioned(receipt.body).await;
    asked(&world, &tenant, json!({}), refused("EXPIRED")).await;
    data["expires_at"] = json!(ago(-24 * 3600));
    say(&world, "renewed", data, 200, "entitlement_renewed").await;
    asked(&world, &tenant, json!({}), DONE).await;
}

/// Events of one account: what, its place in the sender's own order, the answer.
type Sequence = &'static [(&'static str, &'static str, i64, u16, &'static str)];

/// Each is told by its effective time, in seconds from an hour ago, and then once more by its version.
const SEQUENCES: &[(&str, Sequence)] = &[
    (
        "cancelled before purchased",
        &[
            ("cancelled", "", 20, 200, "webhook_ignored"),
            ("created", "growth", 10, 200, "webhook_ignored"),
            ("created", "growth", 30, 200, "entitlement_active"),
        ],
    ),
    (
        "purchased late",
        &[
            ("created", "growth", 10, 200, "entitlement_active"),
            ("cancelled", "", 30, 200, "decommission_start"),
            ("created", "growth", 20, 200, "webhook_ignored"),
        ],
    ),
    (
        "changed back in time",
        &[
            ("created", "starter", 10, 200, "entitlement_active"),
            ("changed", "growth", 30, 200, "entitlement_changed"),
            ("changed", "starter", 20, 200, "webhook_ignored"),
            // Terms are not plans: the latest word of each counts.
            ("renewed", "", 25, 200, "entitlement_renewed"),
            ("renewed", "", 22, 200, "webhook_ignored"),
            ("cancelled", "", 5, 200, "webhook_ignored"),
            ("changed", "starter", 40, 200, "entitlement_changed"),
        ],
    ),
    (
        "changed before purchased",
        &[
            ("changed", "growth", 20, 200, "entitlement_active"),
            ("created", "starter", 10, 200, "webhook_ignored"),
        ],
    ),
    (
        "nothing to speak of",
        &[
            ("refunded", "", 10, 200, "webhook_ignored"),
            ("created", "unheard-of", 20, 422, "entitlement_failed"),
        ],
    ),
    (
        "told before the purchase",
        &[
            ("renewed", "", 20, 202, "entitlement_deferred"),
            ("reinstated", "", 30, 202, "entitlement_deferred"),
            ("created", "growth", 10, 200, "entitlement_active"),
            ("renewed", "", 15, 200, "webhook_ignored"),
        ],
    ),
];

#[tokio::test]
async fn events_come_in_any_order() {
    let world = alongside().await;
    plans(&world).await;
    let began = Timestamp::now() - SignedDuration::from_secs(3600);
    for by_version in [false, true] {
        for (name, events) in SEQUENCES {
            let account = unique("order");
            for (event, plan, place, status, receipt) in *events {
                let mut data = json!({ "account_id": account, "sku_id": PLANS });
                if !plan.is_empty() {
                    data["plan_type"] = json!(plan);
                }
                if by_version {
                    // A sender counts the events of one agreement, so that has a name.
                    data["version"] = json!(place);
                    data["entitlement_id"] = json!("agreement-1");
                } else {
                    data["effective_at"] = json!((began + SignedDuration::from_secs(*place)).to_string());
                }
                let answer = world.post(&Delivery::entitlement(world.env, event, data)).await;
                answered(
                    &format!("{name}, {event} at {place}, by version: {by_version}"),
                    &answer,
                    *status,
                    receipt,
                );
                if *status == 200 && *receipt == "webhook_ignored" {
                    assert!(
                        !answer.json()["reason"].as_str().unwrap().is_empty(),
                        "{answer:?}"
                    );
                }
            }
            let ledger = world.ledger(&account).await;
            let expected: Vec<&str> = events.iter().map(|event| event.4).collect();
            // What was carried out besides, nobody was answered.
            let carried_out = ["entitlement_renewed", "webhook_ignored", "decommission_complete"];
            let mut left = expected.iter().peekable();
            for operation in ledger.operations() {
                match left.next_if(|expected| **expected == operation) {
                    Some(_) => {}
                    None => assert!(
                        carried_out.contains(&operation),
                        "{name}: {:?}",
                        ledger.operations()
                    ),
                }
            }
            assert_eq!(left.next(), None, "{name}: {:?}", ledger.operations());
        }
    }
}

#[tokio::test]
async fn a_suspension_that_comes_first_waits_for_its_purchase() {
    let world = alongside().await;
    let account = unique("early");
    let data = |seconds| json!({ "account_id": account, "sku_id": SKU, "plan_type": PLAN, "effective_at": ago(seconds) });
    let early = say(&world, "suspended", data(10), 202, "entitlement_deferred").await;
    assert_eq!(
        (&early["event"], &early["sku_id"]),
        (&json!("suspension"), &json!(SKU)),
        "{early}"
    );
    let created = Delivery::entitlement(world.env, "created", data(20));
    let answer = world.post(&created).await;
    answered("created", &answer, 200, "entitlement_active");
    let tenant = world.provisioned(answer.body).await;
    assert_eq!(
        world.ledger(&account).await.operations(),
        [
            "entitlement_deferred",
            "entitlement_active",
            "entitlement_suspended"
        ]
    );
    asked(&world, &tenant, json!({}), refused("SUSPENDED")).await;
}

#[tokio::test]
async fn what_takes_effect_later_is_kept() {
    let world = alongside().await;
    let account = unique("later");
    let at = (Timestamp::now() + SignedDuration::from_hours(24)).to_string();
    let data = json!({ "account_id": account, "sku_id": SKU, "plan_type": PLAN, "effective_at": at });
    let delivery = Delivery::entitlement(world.env, "created", data);
    let answer = world.post(&delivery).await;
    let kept = answered("created", &answer, 202, "entitlement_deferred");
    assert_eq!(kept["due_at"].as_str().unwrap()[..19], at[..19], "{kept}");
    assert_eq!(world.post(&delivery).await, answer);
    let resumed = json!({ "resume": { "account_id": account } });
    let resumed = world.invoke(&world.env.entitlement, &resumed).await;
    assert_eq!(
        (
            &resumed["lifecycle"],
            &resumed["carried_out"],
            &resumed["waiting"]
        ),
        (&json!("absent"), &json!(0), &json!(1)),
        "{resumed}"
    );
    assert_eq!(
        world.ledger(&account).await.operations(),
        ["entitlement_deferred"]
    );
}

/// Nobody posts anything again: what was told while the tenant left is carried out when it has left.
#[tokio::test]
async fn subscribing_again_while_leaving_makes_a_new_governor() {
    let world = alongside().await;
    let tenant = world.tenant("at-once").await;
    asked(&world, &tenant, json!({}), DONE).await;
    // So that it surely is still leaving when the purchase comes.
    let rule = format!("sqs/leaving-{}", tenant.account);
    let slow = json!({
        "mode": "delay", "ms": 4000, "count": 1, "operation": "GetQueueAttributes", "function": "cancel",
        "contains": tenant.queue,
    });
    world.fault(&rule, slow).await;
    let answer = world
        .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
        .await;
    answered("cancelled", &answer, 200, "decommission_start");
    let answer = world
        .post(&Delivery::created(world.env, &tenant.account, SKU, PLAN))
        .await;
    answered("created", &answer, 202, "entitlement_deferred");
    let second = eventually("the new governor", PATIENCE, || async {
        let ledger = world.ledger(&tenant.account).await;
        match ledger.operations().last() {
            Some(&"entitlement_active") => Ok(ledger.lines.last().unwrap().clone()),
            _ => Err(format!("{:?}", ledger.operations())),
        }
    })
    .await;
    world.mend(&rule).await;
    let second = world.provisioned(second).await;
    assert!(
        tenant.queue.ends_with("-g1") && second.queue.ends_with("-g2"),
        "{}",
        second.queue
    );
    asked(&world, &second, json!({}), DONE).await;
    assert!(!world.queue_exists(&tenant.queue).await);
    assert_eq!(
        world.ledger(&tenant.account).await.operations(),
        [
            "entitlement_active",
            "action_complete",
            "decommission_start",
            "entitlement_deferred",
            "decommission_complete",
            "entitlement_active",
            "action_complete"
        ]
    );
}

#[tokio::test]
async fn github_changes_plans() {
    let world = alongside().await;
    let account = github::account();
    let event = |action: &str, plan: u64, account: Value, date: &str| {
        let mut body = github::purchased(0);
        body["action"] = json!(action);
        body["effective_date"] = json!(date);
        body["marketplace_purchase"]["account"]["id"] = account;
        body["marketplace_purchase"]["plan"]["id"] = json!(plan);
        Delivery::github(world.env, body.to_string())
    };
    let (number, text) = (json!(account), json!(account.to_string()));
    let purchase = world
        .post(&event(
            "purchased",
            435,
            text.clone(),
            "2026-01-01T00:00:00+00:00",
        ))
        .await;
    answered("purchased", &purchase, 200, "entitlement_active");
    let tenant = world.provisioned(purchase.body).await;
    assert_eq!(tenant.account, format!("github-{account}"));

    let cases = [
        (
            "pending_change",
            686,
            &number,
            "2026-03-01T00:00:00+00:00",
            "webhook_ignored",
        ),
        (
            "pending_change_cancelled",
            686,
            &text,
            "2026-03-01T00:00:00+00:00",
            "webhook_ignored",
        ),
        (
            "changed",
            686,
            &number,
            "2026-02-01T00:00:00.5+00:00",
            "entitlement_changed",
        ),
        (
            "changed",
            435,
            &number,
            "2026-01-15T00:00:00+00:00",
            "webhook_ignored",
        ),
        (
            "renamed",
            686,
            &number,
            "2026-02-02T00:00:00+00:00",
            "webhook_ignored",
        ),
    ];
    for (action, plan, account, date, receipt) in cases {
        let answer = world.post(&event(action, plan, account.clone(), date)).await;
        let found = answered(action, &answer, 200, receipt);
        assert_eq!(found["account_id"], tenant.account.as_str(), "{found}");
    }
    let ledger = world.ledger(&tenant.account).await;
    let changed = &ledger.receipts[3];
    assert_eq!(
        (&changed["previous_plan_type"], &changed["plan_type"]),
        (&json!("basic"), &json!("premium")),
        "{changed}"
    );
    asked(&world, &tenant, json!({}), refused("POLICY_HASH_MISMATCH")).await;
    let scaled = json!({
        "policy_hash": changed["policy_hash"], "template": "scale-service",
        "parameters": { "service": "web", "replicas": 5 },
    });
    asked(&world, &tenant, scaled, DONE).await;
    let answer = world
        .post(&event("cancelled", 686, text, "2026-02-03T00:00:00+00:00"))
        .await;
    answered("cancelled", &answer, 200, "decommission_start");
    gone(&world, &tenant).await;
}

/// The tables of a tenant's own: of its actions, and of its receipts.
async fn own(world: &World, tenant: &Tenant) -> [String; 2] {
    let stored = world.stored(&tenant.account).await.tenant.unwrap();
    let tables = stored.tables.unwrap();
    assert!(tables.actions.starts_with(&tenant.queue), "{tables:?}");
    [tables.actions, tables.receipts]
}

async fn count(world: &World, table: &str, account: &str) -> Option<usize> {
    world
        .query_if_there(table, account)
        .await
        .map(|items| items.len())
}

#[tokio::test]
async fn a_tenant_with_tables_of_its_own_lives_and_leaves() {
    let world = alongside().await;
    let tenant = subscribed(&world, "own-tables", "dedicated").await;
    let account = tenant.account.as_str();
    let [actions, receipts] = own(&world, &tenant).await;
    let active: Value = serde_json::from_str(&tenant.line).unwrap();
    assert_eq!(active["resources"]["table"], actions.as_str(), "{active}");
    for _ in 0..3 {
        asked(&world, &tenant, json!({}), DONE).await;
    }
    let last = asked(
        &world,
        &tenant,
        json!({ "policy_hash": "0".repeat(64) }),
        refused("POLICY_HASH_MISMATCH"),
    )
    .await;
    assert_eq!(count(&world, &actions, account).await, Some(4));
    assert_eq!(count(&world, &receipts, account).await, Some(5));
    let shared = world
        .query_if_there(&world.env.tenants_table, account)
        .await
        .unwrap();
    let shared: Vec<&String> = shared.iter().map(|item| item["sk"].as_s().unwrap()).collect();
    assert!(!shared.iter().any(|sk| sk.starts_with("ACTION#")), "{shared:?}");
    assert_eq!(count(&world, &world.env.receipts_table, account).await, Some(0));
    evidence(&world, account, &last).await;

    // A repeat is known.
    let repeated = last["action_id"].as_str().unwrap();
    world.send(&tenant, tenant.restart(repeated)).await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.handler_saw(repeated).await, (0, 0));

    let answer = world.post(&Delivery::cancelled(world.env, account, PLANS)).await;
    answered("cancelled", &answer, 200, "decommission_start");
    gone(&world, &tenant).await;
    let ledger = world.ledger(account).await;
    assert_eq!(ledger.lines.len(), 7, "{:?}", ledger.operations());
    assert_eq!(count(&world, &actions, account).await, None);
    assert_eq!(count(&world, &receipts, account).await, None);
    assert_eq!(count(&world, &world.env.receipts_table, account).await, Some(7));
    let kept = &ledger.receipts[6]["actions_archive"];
    let key = kept["path"]
        .as_str()
        .unwrap()
        .strip_prefix(&format!("s3://{}/", world.env.audit_bucket));
    let bytes = object(&world, key.unwrap()).await;
    assert_eq!(
        (&kept["sha256"], &kept["size_bytes"], &kept["entries"]),
        (
            &json!(receipts::sha256_hex(&bytes)),
            &json!(bytes.len()),
            &json!(4)
        ),
        "{kept}"
    );
    let archived = String::from_utf8(bytes).unwrap();
    assert_eq!(archived.lines().count(), 4);
    assert!(archived.contains(repeated), "{archived}");
    evidence(&world, account, &last).await;

    let answer = world
        .post(&Delivery::created(world.env, account, PLANS, "dedicated"))
        .await;
    answered("created again", &answer, 200, "entitlement_active");
    let second = world.provisioned(answer.body).await;
    asked(&world, &second, json!({}), DONE).await;
    let [actions, receipts] = own(&world, &second).await;
    assert_eq!(count(&world, &actions, account).await, Some(1));
    assert_eq!(count(&world, &receipts, account).await, Some(2));
    assert_eq!(world.ledger(account).await.lines.len(), 9);
    evidence(&world, account, &last).await;
}

/// What auditors ask works wherever receipts stand.
async fn evidence(world: &World, account: &str, receipt: &Value) {
    let key = world.env.auditor_pub.to_str().unwrap();
    let export = [
        "export-receipts",
        "--account-id",
        account,
        "--format",
        "jsonl",
        "--public-key",
        key,
    ];
    let exported = world.ggen(&export).await.ok();
    let exported: Vec<String> = exported.lines().map(str::to_owned).collect();
    assert_eq!(exported, world.ledger(account).await.lines);
    world.ggen(&["checkpoint", "--account-id", account]).await.ok();
    world.ggen(&["audit", "--account-id", account]).await.ok();
    let receipt_id = receipt["receipt_id"].as_str().unwrap();
    let prove = ["prove", "--receipt-id", receipt_id, "--account-id", account];
    let proof = world.ggen(&prove).await.ok();
    assert!(proof.starts_with("c2sp.org/tlog-proof@v1\n"), "{proof}");
}

#[tokio::test]
async fn a_plan_change_moves_a_tenant_to_tables_of_its_own() {
    let world = alongside().await;
    let [_, _, dedicated] = plans(&world).await;
    let tenant = subscribed(&world, "moves", "growth").await;
    let account = tenant.account.as_str();
    let first = asked(&world, &tenant, json!({}), DONE).await;
    let data = json!({ "account_id": account, "sku_id": PLANS, "plan_type": "dedicated" });
    let changed = say(&world, "changed", data, 200, "entitlement_changed").await;
    assert_eq!(changed["policy_hash"], dedicated.as_str(), "{changed}");
    let [actions, receipts] = own(&world, &tenant).await;
    let last = asked(&world, &tenant, json!({ "policy_hash": dedicated }), DONE).await;
    // What was before stays where it is, and is still known.
    let repeated = first["action_id"].as_str().unwrap();
    world.send(&tenant, tenant.restart(repeated)).await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.handler_saw(repeated).await, (1, 0));
    assert_eq!(count(&world, &actions, account).await, Some(1));
    assert_eq!(count(&world, &receipts, account).await, Some(2));
    assert_eq!(count(&world, &world.env.receipts_table, account).await, Some(2));
    let operations = [
        "entitlement_active",
        "action_complete",
        "entitlement_changed",
        "action_complete",
    ];
    assert_eq!(world.ledger(account).await.operations(), operations);
    evidence(&world, account, &first).await;
    evidence(&world, account, &last).await;

    let answer = world.post(&Delivery::cancelled(world.env, account, PLANS)).await;
    answered("cancelled", &answer, 200, "decommission_start");
    gone(&world, &tenant).await;
    assert_eq!(count(&world, &receipts, account).await, None);
    assert_eq!(
        world.ledger(account).await.receipts[5]["actions_archive"]["entries"],
        1
    );
    evidence(&world, account, &last).await;
}

#[tokio::test]
async fn dead_letters_are_kept() {
    let world = alongside().await;
    let tenant = world.tenant("dead-letters").await;
    let queue = format!("{}-dlq", tenant.queue);
    let url = world
        .sqs
        .get_queue_url()
        .queue_name(queue)
        .send()
        .await
        .unwrap()
        .queue_url
        .unwrap();
    let action_id = unique("dead");
    let letters = [
        tenant.restart(&action_id).to_string(),
        "no signal \u{1F4A5} \"at all\"".to_owned(),
    ];
    for letter in &letters {
        let send = world.sqs.send_message().queue_url(&url);
        send.message_body(letter).send().await.unwrap();
    }
    let answer = world
        .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
        .await;
    answered("cancelled", &answer, 200, "decommission_start");
    gone(&world, &tenant).await;
    let ledger = world.ledger(&tenant.account).await;
    let operations = ledger.operations();
    assert_eq!(
        operations,
        [
            "entitlement_active",
            "decommission_start",
            "action_refused",
            "action_refused",
            "decommission_complete"
        ]
    );
    assert_eq!(ledger.of(&action_id)[0]["code"], "UNAVAILABLE");
    let folder = format!("{}/g1.dead-letters/", tenant.account);
    let closing = &ledger.receipts[4];
    assert_eq!(
        (&closing["dead_letters_archived"], &closing["dead_letters_path"]),
        (
            &json!(2),
            &json!(format!("s3://{}/{folder}", world.env.audit_bucket))
        ),
        "{closing}"
    );
    let mut bodies = Vec::new();
    for key in objects(&world, &folder).await {
        let kept: Value = serde_json::from_slice(&object(&world, &key).await).unwrap();
        bodies.push(kept["body"].as_str().unwrap().to_owned());
    }
    bodies.sort_unstable();
    let mut expected = letters;
    expected.sort_unstable();
    assert_eq!(bodies, expected);
    assert!(!world.queue_exists(&format!("{}-dlq", tenant.queue)).await);
}

/// What an account's other deliveries say while its first one is being carried out waits, and nobody has to post it again.
#[tokio::test]
async fn what_comes_while_a_tenant_is_made_waits() {
    let world = alongside().await;
    plans(&world).await;
    let account = unique("meanwhile");
    let rule = format!("lambda/made-{account}");
    let slow = json!({ "mode": "delay", "ms": 4000, "count": 1, "operation": "Invoke", "contains": account });
    world.fault(&rule, slow).await;
    let first = Delivery::created(world.env, &account, SKU, PLAN);
    let posting = tokio::spawn({
        let world = world.clone();
        async move { world.post(&first).await }
    });
    eventually("provisioning", PATIENCE, || async {
        let tenant = world.stored(&account).await.tenant;
        let found = tenant.map(|tenant| tenant.lifecycle.name());
        (found == Some("provisioning"))
            .then_some(())
            .ok_or_else(|| format!("{found:?}"))
    })
    .await;
    let second = json!({ "account_id": account, "sku_id": PLANS, "plan_type": "growth" });
    say(&world, "created", second, 202, "entitlement_deferred").await;
    let named = json!({ "account_id": account, "sku_id": SKU });
    say(&world, "suspended", named.clone(), 202, "entitlement_deferred").await;
    say(&world, "cancelled", named, 202, "entitlement_deferred").await;
    let answer = posting.await.unwrap();
    world.mend(&rule).await;
    answered("created", &answer, 200, "entitlement_active");
    let ledger = world.ledger(&account).await;
    assert_eq!(
        ledger.operations(),
        [
            "entitlement_deferred",
            "entitlement_deferred",
            "entitlement_deferred",
            "entitlement_active",
            "entitlement_active",
            "entitlement_suspended",
            "entitlement_cancelled"
        ]
    );
    assert_eq!(ledger.receipts[4]["sku_id"], PLANS, "{}", ledger.receipts[4]);
    assert_eq!(world.stored(&account).await.tenant.unwrap().deferred, []);
}
