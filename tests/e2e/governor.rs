//! The governor: each action once, whatever is repeated, cut off or done at the same time; and never more than is allowed.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::world::{PATIENCE, Tenant, World, alongside, eventually, unique};

/// The event with which the tenant's queue hands out a signal for the `deliveries`-th time.
fn delivery(tenant: &Tenant, signals: &[Value], deliveries: u32) -> Value {
    let records: Vec<Value> = signals
        .iter()
        .map(|signal| {
            json!({
                "messageId": unique("message"), "receiptHandle": "", "body": signal.to_string(),
                "attributes": {
                    "ApproximateReceiveCount": deliveries.to_string(), "SentTimestamp": "1795219200000",
                    "SenderId": "000000000000", "ApproximateFirstReceiveTimestamp": "1795219200000",
                },
                "messageAttributes": {}, "eventSource": "aws:sqs", "awsRegion": "us-east-1",
                "eventSourceARN": format!("arn:aws:sqs:us-east-1:000000000000:{}", tenant.queue),
            })
        })
        .collect();
    json!({ "Records": records })
}

/// As many governors at once as there are events.
async fn govern(world: &World, events: Vec<Value>) {
    let mut governors = JoinSet::new();
    for event in events {
        let world = world.clone();
        governors.spawn(async move { world.invoke(&world.env.governor, &event).await });
    }
    governors.join_all().await;
}

/// A governor that gets no further than some of its writes: `skip` of them pass, and what it tries behind them is lost.
fn cut_off(mode: &str, skip: u64, tenant: &Tenant) -> Value {
    json!({
        "mode": mode, "function": "governor", "operation": "TransactWriteItems", "contains": tenant.account,
        // Every attempt of the SDK.
        "skip": skip, "count": 3,
    })
}

/// Cuts a governor off, and holds how the action ends all the same, what the handler did, and what is on record.
async fn check_cut_off(
    world: &World,
    name: &str,
    rule: (&str, u64),
    seen: (usize, usize),
    receipts: &[&str],
) {
    let tenant = world.tenant(name).await;
    let action_id = unique("action");
    let service = format!("dynamodb/{name}");
    let (mode, skip) = rule;
    world.fault(&service, cut_off(mode, skip, &tenant)).await;
    world.send(&tenant, tenant.restart(&action_id)).await;
    world.settled(&tenant.account, &action_id, receipts).await;
    world.drained(&tenant.queue_url).await;
    world.mend(&service).await;
    assert_eq!(world.handler_saw(&action_id).await, seen, "{name}");
    let stored = world.stored(&tenant.account).await.tenant.unwrap();
    assert_eq!(stored.in_flight, 0, "{name}: no place is lost");
    assert_eq!(stored.actions_completed + stored.actions_failed, 1, "{name}");
    let audit = world.ggen(&["audit", "--account-id", &tenant.account]).await;
    assert_eq!(audit.code, Some(0), "{name}: {audit:?}");
}

/// Before the claim nothing has happened; between claim and commit nobody can tell, so it is undone; behind the commit all
/// is done. A reply that is lost is no reason to do anything twice.
#[tokio::test]
async fn a_governor_cut_off_at_each_step_leaves_one_end() {
    let world = alongside().await;
    let undone = ["action_timeout", "action_rolled_back"];
    let done = ["action_complete"];
    tokio::join!(
        check_cut_off(&world, "no-claim", ("close", 0), (1, 0), &done),
        check_cut_off(&world, "claim-unheard", ("lose-reply", 0), (0, 1), &undone),
        check_cut_off(&world, "no-commit", ("close", 1), (1, 1), &undone),
        check_cut_off(&world, "commit-unheard", ("lose-reply", 1), (1, 0), &done),
    );
}

/// SQS delivers at least once, Lambda runs as many governors as it likes, and acknowledgements are lost.
#[tokio::test]
async fn many_governors_with_one_batch_call_the_handler_once() {
    let world = alongside().await;
    let tenant = world.tenant("many").await;
    let actions: Vec<String> = (0..5).map(|n| unique(&format!("action-{n}"))).collect();
    let signals: Vec<Value> = actions.iter().map(|id| tenant.restart(id)).collect();
    let event = delivery(&tenant, &signals, 1);
    govern(&world, vec![event.clone(); 8]).await;
    // Those who came second gave the messages back; a delivery later all of it is over.
    let answer = world.invoke(&world.env.governor, &event).await;
    assert_eq!(answer["batchItemFailures"], json!([]), "{answer}");
    let before = world.ledger(&tenant.account).await;
    for action_id in &actions {
        assert_eq!(world.handler_saw(action_id).await, (1, 0), "{action_id}");
        assert_eq!(before.of(action_id).len(), 1, "{action_id}");
    }
    world
        .invoke(&world.env.governor, &delivery(&tenant, &signals, 7))
        .await;
    let after = world.ledger(&tenant.account).await;
    assert_eq!(
        after.lines.len(),
        before.lines.len(),
        "a late delivery changes nothing"
    );
}

/// Fifty at once are claimed and settled in as many transactions as it takes.
#[tokio::test]
async fn a_large_batch_is_one_run() {
    let world = alongside().await;
    let tenant = tenant_of(&world, "large", 1000, 50).await;
    let scaled = ["scale", "--account-id", &tenant.account, "--concurrency", "50"];
    assert_eq!(world.ggen(&scaled).await.code, Some(0));
    let ask = async || {
        let actions: Vec<String> = (0..50).map(|n| unique(&format!("action-{n}"))).collect();
        let signals: Vec<Value> = actions.iter().map(|id| tenant.restart(id)).collect();
        let event = delivery(&tenant, &signals, 1);
        let answer = world.invoke(&world.env.governor, &event).await;
        let back = answer["batchItemFailures"].as_array().unwrap().len();
        let ledger = world.ledger(&tenant.account).await;
        let done = actions.iter().filter(|id| !ledger.of(id).is_empty()).count();
        (done, back)
    };
    assert_eq!(ask().await, (50, 0));
    // The second twenty can't be claimed: they come back, and all others are done.
    world.fault("dynamodb/large", cut_off("close", 1, &tenant)).await;
    assert_eq!(ask().await, (30, 20));
    world.mend("dynamodb/large").await;
    let stored = world.stored(&tenant.account).await.tenant.unwrap();
    assert_eq!((stored.in_flight, stored.actions_completed), (0, 80));
}

/// A tenant whose plan allows so many actions a month, and at one time.
pub(crate) async fn tenant_of(world: &World, name: &str, monthly: u64, concurrent: u64) -> Tenant {
    let sku = unique(name);
    let changes = [
        ("sku_id: pool-sku", format!("sku_id: {sku}")),
        ("plan_type: starter", "plan_type: professional".to_owned()),
        ("monthly_actions: 2", format!("monthly_actions: {monthly}")),
        (
            "concurrent_actions: 2",
            format!("concurrent_actions: {concurrent}"),
        ),
    ];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(a, b)| (*a, b.as_str())).collect();
    world.deploy_fixture("pool.yaml", &changes).await;
    world.tenant_of(name, &sku).await
}

/// A month's actions and those at one time are limits, not aims: signals for both at the same moment, from many governors.
#[tokio::test]
async fn quotas_are_exact_when_many_ask_at_once() {
    let world = alongside().await;
    let tenant = tenant_of(&world, "exact", 7, 3).await;
    let actions: Vec<String> = (0..12).map(|n| unique(&format!("action-{n}"))).collect();
    let signals: Vec<Value> = actions.iter().map(|id| tenant.restart(id)).collect();
    // Each signal by itself and all together, side by side.
    let mut events: Vec<Value> = signals
        .iter()
        .map(|signal| delivery(&tenant, std::slice::from_ref(signal), 1))
        .collect();
    events.push(delivery(&tenant, &signals[..10], 1));
    world.send_batch(&tenant, &signals[2..]).await;
    govern(&world, events).await;
    eventually("every signal to be settled", PATIENCE, || async {
        // Repeats that only found others at work come back as SQS would bring them.
        let answer = world
            .invoke(&world.env.governor, &delivery(&tenant, &signals, 2))
            .await;
        let stored = world.stored(&tenant.account).await.tenant.unwrap();
        assert!(stored.in_flight <= 3, "{} at one time", stored.in_flight);
        let back = answer["batchItemFailures"].as_array().unwrap().len();
        (back == 0)
            .then_some(())
            .ok_or_else(|| format!("{back} came back"))
    })
    .await;
    let ledger = world.ledger(&tenant.account).await;
    let told = |name: &str| ledger.operations().iter().filter(|found| **found == name).count();
    assert_eq!((told("action_complete"), told("action_refused")), (7, 5));
    let mut applied = 0;
    for action_id in &actions {
        assert_eq!(ledger.of(action_id).len(), 1, "{action_id}");
        applied += world.handler_saw(action_id).await.0;
    }
    assert_eq!(applied, 7);
    let stored = world.stored(&tenant.account).await.tenant.unwrap();
    assert_eq!((stored.in_flight, stored.actions_completed), (0, 7));
}
