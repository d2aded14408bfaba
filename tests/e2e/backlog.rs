//! Signals that wait: each runs once, as soon as a place is free, and waits for nobody but those before it. No clock decides
//! here: a busy machine makes all of it late, and `make bench` measures how late.

use std::cell::Cell;

use aws_sdk_sqs::types::QueueAttributeName;
use domain::names::dead_letter_queue_name;
use serde_json::{Value, json};

use crate::governor::tenant_of;
use crate::webhooks::Delivery;
use crate::world::{Ledger, PATIENCE, PLAN, Tenant, World, alongside, eventually, operation, unique};

/// How an action may end: the handler takes more than half of its deadline, which a busy machine may use up.
const ENDS: [&[&str]; 2] = [&["action_complete"], &["action_timeout", "action_rolled_back"]];

/// So many signals for which the handler works so long.
fn slow(tenant: &Tenant, count: usize, delay_ms: u64) -> Vec<Value> {
    let parameters = json!({ "service": "web", "delay_ms": delay_ms });
    (0..count)
        .map(|n| {
            tenant.signal(
                &unique(&format!("slow-{n}")),
                "restart-service",
                parameters.clone(),
            )
        })
        .collect()
}

async fn send(world: &World, tenant: &Tenant, signals: &[Value]) {
    for ten in signals.chunks(10) {
        world.send_batch(tenant, ten).await;
    }
}

fn id(signal: &Value) -> &str {
    signal["action_id"].as_str().unwrap()
}

/// Looks at a tenant while a backlog drained.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    all: u32,
    /// Nothing ran, though signals waited.
    idle: u32,
}

/// Waits until so many actions have ended, and holds at each look that no more run than may.
async fn ended(world: &World, tenant: &Tenant, count: usize, places: u64) -> Looks {
    let count = u64::try_from(count).unwrap();
    let what = format!("{count} actions of {} to end", tenant.account);
    let looks = Cell::new(Looks::default());
    eventually(&what, PATIENCE, || async {
        let stored = world.stored(&tenant.account).await.tenant.unwrap();
        let (ended, running) = (stored.actions_completed + stored.actions_failed, stored.in_flight);
        assert!(running <= places, "{running} at one time in {places} places");
        if ended == count && running == 0 {
            return Ok(());
        }
        // Until the first one runs, a process may have to start.
        if ended + running > 0 {
            let Looks { all, idle } = looks.get();
            looks.set(Looks {
                all: all + 1,
                idle: idle + u32::from(running == 0),
            });
        }
        Err(format!("{ended} ended, {running} run; {:?}", looks.get()))
    })
    .await;
    looks.get()
}

/// Each signal has one end, and the handler was called for it once.
async fn once_each(world: &World, tenant: &Tenant, signals: &[Value]) -> Ledger {
    let ledger = world.ledger(&tenant.account).await;
    for signal in signals {
        let of: Vec<&str> = ledger.of(id(signal)).into_iter().map(operation).collect();
        assert!(ENDS.contains(&of.as_slice()), "{}: {of:?}", id(signal));
        if of == ENDS[0] {
            assert_eq!(world.handler_saw(id(signal)).await, (1, 0), "{}", id(signal));
        }
    }
    ledger
}

/// Where in a ledger the last of these signals ended.
fn last_end(ledger: &Ledger, signals: &[Value]) -> usize {
    let is_end = |receipt: &Value| {
        let of = signals
            .iter()
            .any(|signal| receipt["action_id"] == signal["action_id"]);
        of && ["action_complete", "action_rolled_back"].contains(&operation(receipt))
    };
    ledger.receipts.iter().rposition(is_end).unwrap()
}

/// A call of the governor's that is counted.
async fn count(world: &World, tenant: &Tenant, service: &str, operation: &str) {
    let rule = json!({
        "mode": "delay", "ms": 0, "function": "governor", "operation": operation,
        "contains": if service == "sqs" { &tenant.queue } else { &tenant.account },
    });
    world.rule(&rule_name(tenant, service, operation), rule).await;
}

fn rule_name(tenant: &Tenant, service: &str, operation: &str) -> String {
    format!("{service}/{operation}-{}", tenant.account)
}

/// How many there were.
async fn counted(world: &World, tenant: &Tenant, service: &str, operation: &str) -> usize {
    let name = rule_name(tenant, service, operation);
    let met = world.met(service, name.split_once('/').unwrap().1).await;
    world.mend(&name).await;
    usize::try_from(met).unwrap()
}

/// Many more signals than places: all run, one after the other in each place, and while some wait others run. What waits
/// isn't handed out over and over: that costs reads and writes, and brings a message nearer to the dead letters each time. Of
/// each of them at most `calls` are made for a signal.
async fn check_backlog(name: &str, places: u64, waiting: usize, delay_ms: u64, calls: usize) {
    let world = alongside().await;
    let tenant = tenant_of(&world, name, 1000, places).await;
    let signals = slow(&tenant, waiting, delay_ms);
    let watched = [
        ("dynamodb", "TransactWriteItems"),
        ("dynamodb", "BatchGetItem"),
        ("sqs", "ChangeMessageVisibilityBatch"),
    ];
    for (service, operation) in watched {
        count(&world, &tenant, service, operation).await;
    }
    send(&world, &tenant, &signals).await;
    let looks = ended(&world, &tenant, waiting, places).await;
    assert!(looks.idle * 2 <= looks.all, "{name}: {looks:?}");
    world.drained(&tenant.queue_url).await;
    for (service, operation) in watched {
        let made = counted(&world, &tenant, service, operation).await;
        assert!(
            made <= waiting * calls,
            "{name}: {made} {operation} for {waiting} signals"
        );
    }
    once_each(&world, &tenant, &signals).await;
    let dead = dead_letter_queue_name(&tenant.queue);
    let dead = world.sqs.get_queue_url().queue_name(dead).send().await.unwrap();
    let visible = QueueAttributeName::ApproximateNumberOfMessages;
    let dead = world.queue_attribute(&dead.queue_url.unwrap(), visible).await;
    assert_eq!(dead, "0", "{name}: dead letters");
}

#[tokio::test]
async fn ten_places_drain_sixty_signals() {
    // Those that end at about the same time share their calls.
    check_backlog("sixty", 10, 60, 300, 1).await;
}

#[tokio::test]
async fn two_places_drain_twenty_signals() {
    // Each ends by itself: one call with its outcome and the next claim, and one that another governor made void.
    check_backlog("twenty", 2, 20, 200, 2).await;
}

/// What waits for an entitlement of one place is in nobody's way.
#[tokio::test]
async fn a_full_entitlement_keeps_no_other_waiting() {
    let world = alongside().await;
    let tenant = tenant_of(&world, "narrow", 1000, 1).await;
    let sku = unique("wide");
    let changes = [
        ("sku_id: pool-sku", format!("sku_id: {sku}")),
        ("plan_type: starter", format!("plan_type: {PLAN}")),
        ("monthly_actions: 2", "monthly_actions: 1000".to_owned()),
        ("concurrent_actions: 2", "concurrent_actions: 20".to_owned()),
    ];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(a, b)| (*a, b.as_str())).collect();
    let wide = world.deploy_fixture("pool.yaml", &changes).await;
    let second = world
        .post(&Delivery::created(world.env, &tenant.account, &sku, PLAN))
        .await;
    assert_eq!(second.status, 200, "{second:?}");
    let narrow: Value = serde_json::from_str(&tenant.line).unwrap();
    let of = |mut signals: Vec<Value>, sku: &Value, hash: &str| {
        for signal in &mut signals {
            signal["sku_id"] = sku.clone();
            signal["policy_hash"] = json!(hash);
        }
        signals
    };
    let waiting = of(slow(&tenant, 20, 300), &narrow["sku_id"], &tenant.policy_hash);
    let others = of(slow(&tenant, 10, 300), &json!(sku), &wide);
    send(&world, &tenant, &waiting).await;
    send(&world, &tenant, &others).await;
    ended(&world, &tenant, 30, 10).await;
    once_each(&world, &tenant, &waiting).await;
    let ledger = once_each(&world, &tenant, &others).await;
    let (waiting, others) = (last_end(&ledger, &waiting), last_end(&ledger, &others));
    assert!(
        others < waiting,
        "the others ended with receipt {others}, what waited with {waiting}"
    );
}

/// A queue that hangs keeps no outcome from being written: the governor would be killed over it, and what was done be undone.
#[tokio::test]
async fn outcomes_do_not_wait_for_a_queue_that_hangs() {
    let world = alongside().await;
    let tenant = tenant_of(&world, "hangs", 1000, 10).await;
    let rule = rule_name(&tenant, "sqs", "ReceiveMessage");
    let hangs = json!({
        "mode": "delay", "ms": 20_000, "function": "governor", "operation": "ReceiveMessage", "contains": &tenant.queue,
    });
    world.rule(&rule, hangs).await;
    let signals = slow(&tenant, 20, 1);
    send(&world, &tenant, &signals).await;
    ended(&world, &tenant, signals.len(), 10).await;
    assert!(
        world.met("sqs", rule.split_once('/').unwrap().1).await > 0,
        "nothing hung"
    );
    world.mend(&rule).await;
    let ledger = world.ledger(&tenant.account).await;
    for signal in &signals {
        let of: Vec<&str> = ledger.of(id(signal)).into_iter().map(operation).collect();
        assert_eq!(of, ["action_complete"], "{}", id(signal));
    }
}

/// One tenant's backlog is none of another's.
#[tokio::test]
async fn a_neighbours_backlog_keeps_no_tenant_waiting() {
    let world = alongside().await;
    let noisy = tenant_of(&world, "noisy", 1000, 2).await;
    let calm = tenant_of(&world, "calm", 1000, 2).await;
    let noise = slow(&noisy, 60, 300);
    send(&world, &noisy, &noise).await;
    let signals = slow(&calm, 5, 300);
    send(&world, &calm, &signals).await;
    ended(&world, &calm, signals.len(), 2).await;
    ended(&world, &noisy, noise.len(), 2).await;
    let (noisy, calm) = (
        once_each(&world, &noisy, &noise).await,
        once_each(&world, &calm, &signals).await,
    );
    let at = |ledger: &Ledger, signals: &[Value]| -> jiff::Timestamp {
        let end = &ledger.receipts[last_end(ledger, signals)];
        end["occurred_at"].as_str().unwrap().parse().unwrap()
    };
    assert!(at(&calm, &signals) < at(&noisy, &noise));
}
