//! Many tenants, and many deliveries, at once.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::webhooks::Delivery;
use crate::world::{PLAN, SKU, alongside, unique};

/// Tenants that subscribe at once: twenty, or as many as `CROWD` says.
fn crowd() -> usize {
    std::env::var("CROWD").map_or(20, |count| count.parse().unwrap())
}

/// Everybody subscribes at the same moment, and each sends a first signal as soon as it is answered.
#[tokio::test]
async fn a_crowd_subscribes_at_once() {
    let world = alongside().await;
    let mut subscribing = JoinSet::new();
    let began = Instant::now();
    for n in 0..crowd() {
        let world = world.clone();
        subscribing.spawn(async move {
            let tenant = world.tenant(&format!("crowd-{n}")).await;
            let answered = began.elapsed();
            let action_id = unique("crowd");
            let sent = Instant::now();
            world.send(&tenant, tenant.restart(&action_id)).await;
            world
                .settled(&tenant.account, &action_id, &["action_complete"])
                .await;
            (tenant, answered, sent.elapsed(), began.elapsed())
        });
    }
    let lives = subscribing.join_all().await;
    let queues: BTreeSet<&str> = lives.iter().map(|(tenant, ..)| tenant.queue.as_str()).collect();
    assert_eq!(queues.len(), crowd());
    for (tenant, ..) in &lives {
        assert_eq!(world.ledger(&tenant.account).await.lines[0], tenant.line);
    }
    if std::env::var_os("PRINT_RATES").is_some() {
        let print = |what: &str, mut times: Vec<Duration>| {
            times.sort_unstable();
            let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_millis();
            let told = format!(
                "{:>4} at once, {what:<34} p50 {:>6} ms   p99 {:>6} ms",
                times.len(),
                at(50),
                at(99)
            );
            // Past the capture of a test that passes, for `make bench`.
            writeln!(std::io::stdout(), "{told}").unwrap();
        };
        print("webhook to its answer", lives.iter().map(|life| life.1).collect());
        print(
            "first signal to its receipt",
            lives.iter().map(|life| life.2).collect(),
        );
        print(
            "webhook to the first signal's receipt",
            lives.iter().map(|life| life.3).collect(),
        );
    }
}

#[tokio::test]
async fn one_delivery_posted_five_times_at_once_makes_one_tenant() {
    let world = alongside().await;
    let account = unique("stampede");
    let delivery = Delivery::created(world.env, &account, SKU, PLAN);
    let mut posting = JoinSet::new();
    for _ in 0..5 {
        let (world, delivery) = (world.clone(), delivery.clone());
        posting.spawn(async move { world.post(&delivery).await });
    }
    let answers = posting.join_all().await;
    let first = &world.ledger(&account).await.lines[0];
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, first), "{answer:?}");
    }
    assert_eq!(world.ledger(&account).await.operations(), ["entitlement_active"]);
}
