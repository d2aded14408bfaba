//! Many tenants, and many deliveries, at once.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use crate::webhooks::Delivery;
use crate::world::{PLAN, SKU, alongside, unique};

#[tokio::test]
async fn twenty_tenants_at_once() {
    let world = alongside().await;
    let mut subscribing = JoinSet::new();
    for n in 0..20 {
        let world = world.clone();
        subscribing.spawn(async move { world.tenant(&format!("crowd-{n}")).await });
    }
    let tenants = subscribing.join_all().await;
    let queues: BTreeSet<&str> = tenants.iter().map(|t| t.queue.as_str()).collect();
    assert_eq!(queues.len(), 20);

    let signals: Vec<String> = tenants.iter().map(|_| unique("crowd")).collect();
    for (tenant, action_id) in tenants.iter().zip(&signals) {
        world.send(tenant, tenant.restart(action_id)).await;
    }
    for (tenant, action_id) in tenants.iter().zip(&signals) {
        world
            .settled(&tenant.account, action_id, &["action_complete"])
            .await;
        assert_eq!(world.ledger(&tenant.account).await.lines[0], tenant.line);
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
