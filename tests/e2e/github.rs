//! GitHub Marketplace's own deliveries.

use std::time::{Duration, Instant};

use domain::webhook::providers::github::{GITHUB_DELIVERY, GITHUB_EVENT, GITHUB_SIGNATURE};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::life::gone;
use crate::logs::log;
use crate::webhooks::Delivery;
use crate::world::{PATIENCE, PLAN, SKU, SOON, World, alongside, eventually, operation, unique};

const PURCHASED: &str = include_str!("../fixtures/github/purchased.json");
const FORM: &str = include_str!("../fixtures/github/purchased.urlencoded");
const PUSH: &str = include_str!("../fixtures/github/push.json");
const CANCELLED: &str = include_str!("../fixtures/github/cancelled.json");

/// A delivery of GitHub's with another account.
pub(crate) fn delivery_for(sample: &str, account: u64) -> Value {
    let mut body: Value = serde_json::from_str(sample).unwrap();
    body["marketplace_purchase"]["account"]["id"] = json!(account);
    body
}

pub(crate) fn purchased(account: u64) -> Value {
    delivery_for(PURCHASED, account)
}

/// A GitHub account id nobody else uses, of the size that GitHub's have.
pub(crate) fn account() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0 >> 20
}

#[tokio::test]
async fn purchased_then_cancelled() {
    let world = alongside().await;
    let github_id = account();
    let purchase = Delivery::github(world.env, purchased(github_id).to_string());
    let answer = world.post(&purchase).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let tenant = world.provisioned(answer.body.clone()).await;
    let receipt = answer.json();
    assert_eq!(tenant.account, format!("github-{github_id}"));
    assert_eq!(
        (&receipt["sku_id"], &receipt["plan_type"]),
        (&json!("github-marketplace"), &json!("basic"))
    );

    same_delivery_again(&world, &purchase, &answer.body, &tenant.account).await;

    let other_body = Delivery::github(world.env, purchased(account()).to_string());
    let conflict = world
        .post(&other_body.with(GITHUB_DELIVERY, purchase.header(GITHUB_DELIVERY)))
        .await;
    assert_eq!(
        (conflict.status, conflict.content_type.as_str()),
        (409, "application/problem+json")
    );

    let cancellation = Delivery::github(world.env, delivery_for(CANCELLED, github_id).to_string());
    let answer = world.post(&cancellation).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(operation(&answer.json()), "decommission_start");
    gone(&world, &tenant).await;
    // A delivery from before the end still has its answer, and revives nothing.
    let again = world.post(&purchase).await;
    assert_eq!((again.status, again.body), (200, tenant.line));
    assert_eq!(
        world.ledger(&tenant.account).await.operations(),
        [
            "entitlement_active",
            "decommission_start",
            "decommission_complete"
        ]
    );
}

/// GitHub repeats deliveries: whatever the number, there is one receipt, and every answer is that receipt.
async fn same_delivery_again(world: &World, delivery: &Delivery, first: &str, account: &str) {
    for _ in 0..3 {
        let again = world.post(delivery).await;
        assert_eq!((again.status, again.body.as_str()), (200, first));
    }
    assert_eq!(world.ledger(account).await.lines, [first]);
}

#[tokio::test]
async fn a_second_purchase_of_an_active_account_changes_nothing() {
    let world = alongside().await;
    let body = purchased(account()).to_string();
    let first = world.post(&Delivery::github(world.env, body.as_str())).await;
    let tenant = world.provisioned(first.body).await;
    let second = world.post(&Delivery::github(world.env, body.as_str())).await;
    assert_eq!(second.status, 200, "{second:?}");
    let ledger = world.ledger(&tenant.account).await;
    assert_eq!(ledger.operations(), ["entitlement_active", "webhook_ignored"]);
    assert_eq!(ledger.lines[1], second.body);
}

/// What GitHub says of an account, on a day and about a plan.
fn said(world: &World, action: &str, account: u64, plan: u64, date: &str) -> Delivery {
    let mut body = purchased(account);
    body["action"] = json!(action);
    body["effective_date"] = json!(date);
    body["marketplace_purchase"]["plan"]["id"] = json!(plan);
    Delivery::github(world.env, body.to_string())
}

/// GitHub dates everything at midnight, so that of one day only the order of arrival is known.
#[tokio::test]
async fn bought_cancelled_and_bought_again_on_one_day() {
    let world = alongside().await;
    let account = account();
    let today = |action| said(&world, action, account, 435, "2026-01-31T00:00:00+00:00");
    let bought = world.post(&today("purchased")).await;
    let tenant = world.provisioned(bought.body).await;
    let cancelled = world.post(&today("cancelled")).await;
    assert_eq!(
        operation(&cancelled.json()),
        "decommission_start",
        "{cancelled:?}"
    );
    gone(&world, &tenant).await;
    let again = world.post(&today("purchased")).await;
    assert_eq!(operation(&again.json()), "entitlement_active", "{again:?}");
    world.provisioned(again.body).await;
}

/// The customer changed to a plan that nobody deployed a policy for, and left.
#[tokio::test]
async fn a_cancellation_needs_no_policy() {
    let world = alongside().await;
    let account = account();
    let bought = world
        .post(&said(&world, "purchased", account, 435, "2026-01-01T00:00:00Z"))
        .await;
    let tenant = world.provisioned(bought.body).await;
    let changed = world
        .post(&said(&world, "changed", account, 999_999, "2026-02-01T00:00:00Z"))
        .await;
    assert_eq!(changed.status, 422, "{changed:?}");
    let cancelled = world
        .post(&said(
            &world,
            "cancelled",
            account,
            999_999,
            "2026-03-01T00:00:00Z",
        ))
        .await;
    assert_eq!(
        (cancelled.status, operation(&cancelled.json())),
        (200, "decommission_start"),
        "{cancelled:?}"
    );
    gone(&world, &tenant).await;
}

/// The cancellation between them was lost: the plan that was bought last holds.
#[tokio::test]
async fn bought_anew_with_another_plan() {
    let world = alongside().await;
    let account = account();
    let bought = world
        .post(&said(&world, "purchased", account, 435, "2026-01-01T00:00:00Z"))
        .await;
    world.provisioned(bought.body).await;
    let anew = world
        .post(&said(&world, "purchased", account, 686, "2026-02-01T00:00:00Z"))
        .await;
    let receipt = anew.json();
    assert_eq!(
        (operation(&receipt), &receipt["plan_type"]),
        ("entitlement_changed", &json!("premium")),
        "{anew:?}"
    );
}

/// The content type that GitHub proposes for a listing. The signature is over the form as it stands.
#[tokio::test]
async fn a_form_is_taken_as_its_json_is() {
    let world = alongside().await;
    let github_id = account();
    let form = FORM.trim_end().replace("18404719", &github_id.to_string());
    let purchase = Delivery::github(world.env, form.as_str());
    let answer = world.post(&purchase).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let tenant = world.provisioned(answer.body.clone()).await;
    assert_eq!(tenant.account, format!("github-{github_id}"));
    same_delivery_again(&world, &purchase, &answer.body, &tenant.account).await;
    let forged = Delivery::github(world.env, form.replace("purchased", "cancelled"));
    let refused = world
        .post(&forged.with(GITHUB_SIGNATURE, purchase.header(GITHUB_SIGNATURE)))
        .await;
    assert_eq!(refused.status, 400, "{refused:?}");
}

/// What the listing's address gets beside purchases changes nothing, and GitHub does not show it as failed.
#[tokio::test]
async fn other_events_are_ignored_by_their_name() {
    let world = alongside().await;
    for event in ["push", "installation", "ping"] {
        let delivery = Delivery::github(world.env, PUSH).with(GITHUB_EVENT, event);
        let answer = world.post(&delivery).await;
        assert_eq!(answer.status, 200, "{event}: {answer:?}");
        assert_eq!(operation(&answer.json()), "webhook_ignored");
    }
}

/// Whoever types the address in at the marketplace may end it with a slash.
#[tokio::test]
async fn a_slash_at_the_end_of_the_path_is_no_other_path() {
    let world = alongside().await;
    let purchase = Delivery::github(world.env, purchased(account()).to_string());
    let answer = world.post(&purchase.to("/webhooks/github/")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let customer = unique("slash");
    for (delivery, path, expected) in [
        (
            Delivery::created(world.env, &customer, SKU, PLAN),
            "/webhooks/entitlement/",
            "entitlement_active",
        ),
        (
            Delivery::created(world.env, &customer, SKU, PLAN),
            "/webhooks/standard/",
            "webhook_ignored",
        ),
        (
            Delivery::cancelled(world.env, &customer, SKU),
            "/webhooks/cancel/",
            "decommission_start",
        ),
    ] {
        let answer = world.post(&delivery.to(path)).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(operation(&answer.json()), expected, "{path}");
    }
    let nowhere = Delivery::github(world.env, purchased(account()).to_string()).to("/webhooks/github/x");
    assert_eq!(world.post(&nowhere).await.status, 404);
}

/// A SKU whose plan GitHub knows by an id that nobody else uses: what a policy that is deployed later says.
fn another_plan() -> (String, u64, String) {
    let (sku, plan) = (unique("github-sku"), account());
    let aliased = format!("{sku}\naliases:\n  - {{ provider: github, plan_id: \"{plan}\" }}");
    (sku, plan, aliased)
}

fn of_plan(github_id: u64, plan: u64) -> String {
    let mut body = purchased(github_id);
    body["marketplace_purchase"]["plan"]["id"] = json!(plan);
    body.to_string()
}

/// A plan that is sold before its policy is deployed: the delivery waits for a person, and is neither lost nor refused for
/// ever.
#[tokio::test]
async fn a_purchase_refused_for_want_of_a_policy_is_tried_again() {
    let world = alongside().await;
    let (sku, plan, aliased) = another_plan();
    let redelivered = Delivery::github(world.env, of_plan(account(), plan));
    let retried = Delivery::github(world.env, of_plan(account(), plan));
    let id_of = |delivery: &Delivery| format!("github#{}", delivery.header(GITHUB_DELIVERY));
    for delivery in [&redelivered, &retried] {
        let answer = world.post(delivery).await;
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    // A person sees both, with the reason.
    let listed = world
        .ggen(&["deliveries", "list", "--answer", "refused", "--format", "json"])
        .await;
    assert_eq!(listed.code, Some(1), "{listed:?}");
    let listed = listed.json();
    let listed = listed["deliveries"].as_array().unwrap();
    for delivery in [&redelivered, &retried] {
        let id = id_of(delivery);
        let line = listed.iter().find(|line| line["delivery"] == id.as_str());
        let line = line.unwrap_or_else(|| panic!("{id} is not among {listed:?}"));
        assert_eq!(
            (&line["status"], &line["change"]),
            (&json!(422), &json!("purchase"))
        );
        assert!(
            line["reason"].as_str().unwrap().contains(&plan.to_string()),
            "{line}"
        );
    }
    // And is told: by a metric that has an alarm, and a line that says of what.
    for shows in ["\"delivery_refused\":1", &id_of(&retried)] {
        eventually(&format!("the log to show {shows}"), SOON, || async {
            let log = log(&world, &world.env.entitlement).await;
            let shown = log.iter().any(|line| line.contains(shows));
            shown.then_some(()).ok_or_else(|| format!("{} lines", log.len()))
        })
        .await;
    }
    let again = world
        .ggen(&["deliveries", "retry", &id_of(&retried), "--format", "jsonl"])
        .await;
    assert_eq!(
        (again.code, again.json()["status"].as_u64()),
        (Some(1), Some(422)),
        "{again:?}"
    );

    world.deploy_fixture("pool.yaml", &[("pool-sku", &aliased)]).await;
    // GitHub's own "Redeliver": the same id, the same body.
    let answer = world.post(&redelivered).await;
    assert_eq!(
        (answer.status, operation(&answer.json())),
        (200, "entitlement_active"),
        "{answer:?}"
    );
    assert_eq!(answer.json()["sku_id"], sku.as_str());
    assert_eq!(
        world.post(&redelivered).await,
        answer,
        "from now on the answer stands"
    );
    // Or nobody posts it, and it is carried out from what was kept of it.
    let done = world
        .ggen(&["deliveries", "retry", &id_of(&retried), "--format", "jsonl"])
        .await;
    assert_eq!(
        (done.code, done.json()["status"].as_u64()),
        (Some(0), Some(200)),
        "{done:?}"
    );
    let answer = world.post(&retried).await;
    assert_eq!(
        (answer.status, operation(&answer.json())),
        (200, "entitlement_active"),
        "{answer:?}"
    );
    let again = world.ggen(&["deliveries", "retry", &id_of(&retried)]).await;
    assert_eq!(
        again.code,
        Some(1),
        "what is carried out is not tried again: {again:?}"
    );
    let shown = world
        .ggen(&["deliveries", "show", &id_of(&retried), "--format", "json"])
        .await
        .json();
    assert_eq!(
        (&shown["state"], &shown["status"]),
        (&json!("carried out"), &json!(200)),
        "{shown}"
    );
    let unknown = world
        .ggen(&["deliveries", "show", "github#nobody-posted-this"])
        .await;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
}

/// One id with four bodies at once: one is carried out, and nothing of the others.
#[tokio::test]
async fn of_four_bodies_under_one_id_one_is_carried_out() {
    let world = alongside().await;
    let accounts: Vec<u64> = (0..4).map(|_| account()).collect();
    let id = unique("delivery");
    let mut posting = JoinSet::new();
    for github_id in accounts.clone() {
        let world = world.clone();
        let delivery =
            Delivery::github(world.env, purchased(github_id).to_string()).with(GITHUB_DELIVERY, &id);
        posting.spawn(async move { (github_id, delivery.clone(), world.post(&delivery).await) });
    }
    let answers = posting.join_all().await;
    let statuses = |of: u16| answers.iter().filter(|(.., answer)| answer.status == of).count();
    assert_eq!((statuses(200), statuses(409)), (1, 3), "{answers:?}");
    for (github_id, delivery, answer) in &answers {
        let ledger = world.ledger(&format!("github-{github_id}")).await;
        let expected: &[&str] = if answer.status == 200 {
            &["entitlement_active"]
        } else {
            &[]
        };
        assert_eq!(ledger.operations(), expected);
        assert_eq!(
            world.post(delivery).await.status,
            answer.status,
            "and so it stays"
        );
        let kept = world.table_items(&format!("github-{github_id}")).await;
        assert_eq!(
            kept == 0,
            answer.status == 409,
            "{kept} items of an account that was refused"
        );
    }
}

/// GitHub hangs up after ten seconds. A plan with tables of its own may take longer, and goes on after the answer.
#[tokio::test]
async fn what_takes_longer_than_github_waits_goes_on_after_the_answer() {
    let world = alongside().await;
    let (_, plan, aliased) = another_plan();
    world
        .deploy_fixture("dedicated.yaml", &[("dedicated-sku", &aliased)])
        .await;
    let github_id = account();
    let customer = format!("github-{github_id}");
    let queue = format!("-t-{}", &customer[..16]);
    let slow = json!({ "mode": "delay", "ms": 4000, "operation": "DescribeTable", "contains": queue });
    let rule = format!("dynamodb/slow-{customer}");
    world.rule(&rule, slow).await;
    let purchase = Delivery::github(world.env, of_plan(github_id, plan));
    let began = Instant::now();
    let answer = world.post(&purchase).await;
    let waited = began.elapsed();
    world.mend(&rule).await;
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (202, &json!("provisioning")),
        "{answer:?}"
    );
    assert!(
        waited < Duration::from_secs(9),
        "GitHub would have waited for {waited:?}"
    );
    let ledger = eventually("the entitlement to be active", PATIENCE, || async {
        let ledger = world.ledger(&customer).await;
        if ledger.lines.is_empty() {
            Err("nothing yet".to_owned())
        } else {
            Ok(ledger)
        }
    })
    .await;
    assert_eq!(ledger.operations(), ["entitlement_active"]);
    let answer = world.post(&purchase).await;
    assert_eq!((answer.status, &answer.body), (200, &ledger.lines[0]));
    assert_eq!(world.ledger(&customer).await.lines, ledger.lines);
}

/// A delivery that changed nothing, posted again by whoever has it: it stands where it stood.
#[tokio::test]
async fn an_ignored_delivery_that_comes_again_changes_nothing() {
    let world = alongside().await;
    let account = account();
    let today = |action| said(&world, action, account, 435, "2026-01-31T00:00:00Z");
    let too_early = today("cancelled");
    let ignored = world.post(&too_early).await;
    assert_eq!(operation(&ignored.json()), "webhook_ignored", "{ignored:?}");
    let bought = world.post(&today("purchased")).await;
    let tenant = world.provisioned(bought.body).await;
    let again = world.post(&too_early).await;
    assert_eq!((again.status, operation(&again.json())), (200, "webhook_ignored"));
    assert!(world.queue_exists(&tenant.queue).await);
    // The same for a purchase, behind the cancellation that it came before.
    let repeated = today("purchased");
    assert_eq!(operation(&world.post(&repeated).await.json()), "webhook_ignored");
    world.post(&today("cancelled")).await;
    gone(&world, &tenant).await;
    assert_eq!(operation(&world.post(&repeated).await.json()), "webhook_ignored");
}
