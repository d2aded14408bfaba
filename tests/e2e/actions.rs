//! Signals: once each, in order, and only a tenant's own.

use serde_json::{Value, json};

use crate::world::{PATIENCE, alongside, eventually, unique};

#[tokio::test]
async fn a_signal_sent_five_times_runs_once() {
    let world = alongside().await;
    let tenant = world.tenant("five-times").await;
    let action_id = unique("action");
    let signal = tenant.restart(&action_id);
    // Four together, so that some may meet in one batch and some in two; one after all is over.
    world.send_batch(&tenant, &vec![signal.clone(); 4]).await;
    world
        .settled(&tenant.account, &action_id, &["action_complete"])
        .await;
    world.send(&tenant, &signal).await;
    world.drained(&tenant.queue_url).await;

    assert_eq!(world.handler_saw(&action_id).await, (1, 0));
    let ledger = world.ledger(&tenant.account).await;
    assert_eq!(ledger.operations(), ["entitlement_active", "action_complete"]);
}

#[tokio::test]
async fn a_failed_action_sent_again_stays_rolled_back() {
    let world = alongside().await;
    let tenant = world.tenant("stays-back").await;
    let action_id = unique("action");
    let failing = tenant.signal(
        &action_id,
        "restart-service",
        json!({ "service": "web", "outcome": "fail" }),
    );
    world.send(&tenant, &failing).await;
    world
        .settled(
            &tenant.account,
            &action_id,
            &["action_failed", "action_rolled_back"],
        )
        .await;
    world.send(&tenant, tenant.restart(&action_id)).await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.handler_saw(&action_id).await, (0, 1));
    assert_eq!(world.ledger(&tenant.account).await.of(&action_id).len(), 2);
}

#[tokio::test]
async fn ten_signals_at_once_leave_ten_receipts_in_a_row() {
    let world = alongside().await;
    let tenant = world.tenant("ten").await;
    let mut action_ids: Vec<String> = (0..10).map(|n| unique(&format!("action-{n}"))).collect();
    let signals: Vec<Value> = action_ids.iter().map(|id| tenant.restart(id)).collect();
    world.send_batch(&tenant, &signals).await;
    for action_id in &action_ids {
        world
            .settled(&tenant.account, action_id, &["action_complete"])
            .await;
    }
    world.drained(&tenant.queue_url).await;

    let ledger = world.ledger(&tenant.account).await;
    let seqs: Vec<u64> = ledger
        .receipts
        .iter()
        .map(|r| r["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, (0..=10).collect::<Vec<_>>());
    let mut found: Vec<&str> = ledger.receipts[1..]
        .iter()
        .map(|r| r["action_id"].as_str().unwrap())
        .collect();
    found.sort_unstable();
    action_ids.sort_unstable();
    assert_eq!(found, action_ids);
    for action_id in &action_ids {
        assert_eq!(world.handler_saw(action_id).await, (1, 0), "{action_id}");
    }
}

#[tokio::test]
async fn messages_that_are_no_signals_are_refused_on_record() {
    let world = alongside().await;
    let tenant = world.tenant("malformed").await;
    let mut unnamed = tenant.restart("unused");
    unnamed.as_object_mut().unwrap().remove("action_id");
    let cases = [
        ("not JSON", "restart the service".to_owned(), "signal field `.`"),
        ("no action id", unnamed.to_string(), "missing field `action_id`"),
        (
            "mistyped parameters",
            tenant.signal("unused", "restart-service", json!([])).to_string(),
            "signal field `parameters`",
        ),
        (
            "illegal action id",
            tenant.restart("../unused").to_string(),
            "signal field `action_id`",
        ),
        (
            "an array of the fields' values",
            json!(["unused", tenant.account, null, null, "restart-service", {}, ""]).to_string(),
            "signal field `.`: expected an object",
        ),
        (
            "a parameter that stands twice",
            tenant
                .restart("unused")
                .to_string()
                .replace("\"parameters\":{", "\"parameters\":{\"service\":\"mail\","),
            "signal field `parameters`: has the name `service` twice",
        ),
    ];
    for (name, body, says) in &cases {
        let message_id = world.send(&tenant, body).await;
        let refused = world
            .settled(&tenant.account, &message_id, &["action_refused"])
            .await;
        assert_eq!(refused[0]["code"], "MALFORMED_SIGNAL", "{name}");
        let detail = refused[0]["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{name}: {detail:?} does not say {says:?}");
    }
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.ledger(&tenant.account).await.lines.len(), 1 + cases.len());
}

#[tokio::test]
async fn a_signal_for_another_tenant_is_refused_and_the_other_hears_nothing() {
    let world = alongside().await;
    let tenant = world.tenant("queue-owner").await;
    let other = world.tenant("other").await;
    let action_id = unique("stray");
    let message_id = world.send(&tenant, other.restart(&action_id)).await;
    let refused = world
        .settled(&tenant.account, &message_id, &["action_refused"])
        .await;
    assert_eq!(refused[0]["code"], "MALFORMED_SIGNAL", "{}", refused[0]);
    assert!(
        refused[0]["detail"].as_str().unwrap().contains("account_id"),
        "{}",
        refused[0]
    );
    world.drained(&tenant.queue_url).await;

    assert_eq!(
        world.ledger(&other.account).await.operations(),
        ["entitlement_active"]
    );
    assert_eq!(world.handler_saw(&action_id).await, (0, 0));
    // The id it named is still free for its own tenant.
    world.send(&other, other.restart(&action_id)).await;
    world
        .settled(&other.account, &action_id, &["action_complete"])
        .await;
}

#[tokio::test]
async fn a_slow_action_does_not_hold_up_the_others_of_its_batch() {
    let world = alongside().await;
    let tenant = world.tenant("mixed").await;
    let slow = unique("slow");
    let quick: Vec<String> = (0..4).map(|n| unique(&format!("quick-{n}"))).collect();
    let mut signals = vec![tenant.signal(
        &slow,
        "restart-service",
        json!({ "service": "db", "delay_ms": 3000 }),
    )];
    signals.extend(quick.iter().map(|id| tenant.restart(id)));
    world.send_batch(&tenant, &signals).await;
    for action_id in &quick {
        world
            .settled(&tenant.account, action_id, &["action_complete"])
            .await;
    }
    world
        .settled(&tenant.account, &slow, &["action_timeout", "action_rolled_back"])
        .await;
    // The handler is free of it before its three seconds are over, and applies nothing afterwards.
    eventually("the handler to have undone it", PATIENCE, || async {
        match world.handler_saw(&slow).await {
            (0, 1) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
}
