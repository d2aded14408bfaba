//! Deliveries and their answers: one id, one body, one answer, until what was refused can be carried out.

use domain::webhook::providers::github::GITHUB_DELIVERY;

use crate::github;
use crate::webhooks::{Answer, Delivery};
use crate::world::{alongside, operation, unique};

/// Several bodies under one id, all at once: one of them is carried out, and nothing of the others.
#[tokio::test]
async fn one_delivery_id_is_one_body() {
    let world = alongside().await;
    let id = unique("delivery");
    let deliveries: Vec<Delivery> = (0..4)
        .map(|_| {
            let body = github::purchased(github::account()).to_string();
            Delivery::github(world.env, body).with(GITHUB_DELIVERY, &id)
        })
        .collect();
    let [first, second, third, fourth] = deliveries.as_slice() else {
        panic!()
    };
    let answers: [Answer; 4] = tokio::join!(
        world.post(first),
        world.post(second),
        world.post(third),
        world.post(fourth)
    )
    .into();
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409], "{answers:?}");
    for (delivery, answer) in deliveries.iter().zip(&answers) {
        let again = world.post(delivery).await;
        assert_eq!(again.status, answer.status, "{again:?}");
        if answer.status == 200 {
            assert_eq!(again.body, answer.body);
        }
    }
}

/// What was turned away for want of a policy is carried out once there is one, as the same delivery.
#[tokio::test]
async fn a_refused_delivery_is_decided_anew() {
    let world = alongside().await;
    let sku = unique("later");
    let delivery = Delivery::created(world.env, &unique("early"), &sku, "starter");
    let refused = world.post(&delivery).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    // Nothing has changed: neither has the answer, and it leaves no receipt more.
    let again = world.post(&delivery).await;
    assert_eq!((again.status, &again.body), (422, &refused.body));
    let sku = format!("sku_id: {sku}");
    world
        .deploy_fixture("pool.yaml", &[("sku_id: pool-sku", sku.as_str())])
        .await;
    let taken = world.post(&delivery).await;
    assert_eq!(
        (taken.status, operation(&taken.json())),
        (200, "entitlement_active"),
        "{taken:?}"
    );
    let again = world.post(&delivery).await;
    assert_eq!((again.status, &again.body), (200, &taken.body));
    let tenant = world.provisioned(taken.body).await;
    assert_eq!(
        world.ledger(&tenant.account).await.operations(),
        ["entitlement_failed", "entitlement_active"]
    );
}

/// A product whose names are too long for what its policy would be stored under has none.
#[tokio::test]
async fn names_that_no_policy_can_have_are_refused() {
    let world = alongside().await;
    let delivery = Delivery::created(world.env, &unique("long"), &"🦀".repeat(128), "p");
    let refused = world.post(&delivery).await;
    assert_eq!(refused.status, 422, "{refused:?}");
}
