//! What happens when storage fails. These tests run alone.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use domain::names::SPOOL_PREFIX;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::life::{gone, object, objects};
use crate::webhooks::Delivery;
use crate::world::{PATIENCE, PLAN, SKU, SYSTEM, World, alone, eventually, operation, unique};

#[tokio::test]
async fn storage_fails_and_comes_back() {
    alone(|world| async move {
        let tenant = world.tenant("degraded").await;
        let before = world.probe().await;
        assert_eq!(
            (&before["good"], &before["mode"]),
            (&json!(true), &json!("normal")),
            "{before}"
        );
        let system_before = world.ledger(SYSTEM).await.lines.len();

        world.fault("dynamodb", json!({ "mode": "refuse" })).await;
        for (failures, mode) in [(1, "normal"), (2, "normal"), (3, "degraded")] {
            let found = world.probe().await;
            assert_eq!(
                (&found["good"], &found["consecutive_failures"], &found["mode"]),
                (&json!(false), &json!(failures), &json!(mode)),
                "{found}"
            );
        }
        // A marketplace that posts meanwhile is asked to come back.
        let turned_away = unique("turned-away");
        let webhook = Delivery::created(world.env, &turned_away, SKU, PLAN);
        let answer = world.post(&webhook).await;
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (503, "application/problem+json"),
            "{answer:?}"
        );

        let refused = [unique("refused"), unique("refused")];
        for action_id in &refused {
            world.send(&tenant, tenant.restart(action_id)).await;
        }
        let spooled = spooled(&world, &refused).await;
        world.drained(&tenant.queue_url).await;
        for (action_id, receipt) in refused.iter().zip(&spooled) {
            assert_eq!(receipt["code"], "UNAVAILABLE", "{receipt}");
            assert_eq!(receipt["account_id"], tenant.account.as_str(), "{receipt}");
            assert_eq!(world.handler_saw(action_id).await, (0, 0), "{action_id}");
        }
        assert_eq!(
            world.ledger(&tenant.account).await.lines.len(),
            1,
            "nothing reached the ledger"
        );

        world.mend("dynamodb").await;
        let found = world.probe().await;
        assert_eq!(
            (&found["good"], &found["mode"]),
            (&json!(true), &json!("normal")),
            "{found}"
        );
        // Two refusals, degraded_mode and degraded_mode_cleared.
        assert_eq!(found["appended"], 4, "{found}");
        assert_eq!(objects(&world, SPOOL_PREFIX).await, [""; 0]);
        for (action_id, spooled) in refused.iter().zip(&spooled) {
            let kept = world
                .settled(&tenant.account, action_id, &["action_refused"])
                .await;
            for field in ["receipt_id", "occurred_at", "code", "template"] {
                assert_eq!(kept[0][field], spooled[field], "{field}");
            }
        }
        degradation_on_record(&world, system_before).await;

        // What was refused stays refused; what is new runs; who was turned away comes back.
        for action_id in &refused {
            world.send(&tenant, tenant.restart(action_id)).await;
        }
        let fresh = unique("fresh");
        world.send(&tenant, tenant.restart(&fresh)).await;
        world.settled(&tenant.account, &fresh, &["action_complete"]).await;
        world.drained(&tenant.queue_url).await;
        for action_id in &refused {
            assert_eq!(world.handler_saw(action_id).await, (0, 0), "{action_id}");
            assert_eq!(
                world.ledger(&tenant.account).await.of(action_id).len(),
                1,
                "{action_id}"
            );
        }
        let answer = world.post(&webhook).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            world.ledger(&turned_away).await.operations(),
            ["entitlement_active"]
        );
    })
    .await;
}

/// Waits until the refusals of these actions are in the spool, and gives them in the same order.
async fn spooled(world: &World, action_ids: &[String]) -> Vec<Value> {
    eventually("refusals in the spool", PATIENCE, || async {
        let mut found = Vec::new();
        for key in objects(world, SPOOL_PREFIX).await {
            let receipt: Value = serde_json::from_slice(&object(world, &key).await).unwrap();
            found.push(receipt);
        }
        let by_action = |id: &String| found.iter().find(|r| r["action_id"] == id.as_str()).cloned();
        let receipts: Option<Vec<Value>> = action_ids.iter().map(by_action).collect();
        receipts.ok_or_else(|| format!("{found:?}"))
    })
    .await
}

async fn degradation_on_record(world: &World, since: usize) {
    let system = world.ledger(SYSTEM).await;
    let new = &system.receipts[since..];
    let operations: Vec<&str> = new.iter().map(operation).collect();
    assert_eq!(operations, ["degraded_mode", "degraded_mode_cleared"]);
    assert_eq!(
        (
            &new[0]["failure_count"],
            &new[0]["error_code"],
            &new[0]["alert_severity"]
        ),
        (&json!(3), &json!("STORAGE_UNAVAILABLE"), &json!("critical")),
        "{}",
        new[0]
    );
    assert!(new[0]["affected_tenants"].as_u64().unwrap() >= 1, "{}", new[0]);
    assert_eq!(new[1]["actions_refused"], 2, "{}", new[1]);
    assert!(new[0]["occurred_at"].as_str() < new[1]["occurred_at"].as_str());
}

/// Signals that are delivered while storage fails and nobody has noticed yet go back to the queue and run later.
#[tokio::test]
async fn a_signal_that_meets_failing_storage_is_not_lost() {
    alone(|world| async move {
        let tenant = world.tenant("not-lost").await;
        world
            .fault("dynamodb", json!({ "mode": "close", "function": "governor" }))
            .await;
        let action_id = unique("action");
        world.send(&tenant, tenant.restart(&action_id)).await;
        let tried = |call: &Value| {
            call["function"] == "governor" && call["service"] == "dynamodb" && call["status"].is_null()
        };
        world.called("the governor to have tried", tried).await;
        world.mend("dynamodb").await;
        world
            .settled(&tenant.account, &action_id, &["action_complete"])
            .await;
        assert_eq!(world.handler_saw(&action_id).await, (1, 0));
    })
    .await;
}

/// The first transaction records the intent, the second one activates: whichever reply is lost, there is one receipt.
#[tokio::test]
async fn a_lost_reply_leaves_one_receipt() {
    alone(|world| async move {
        for skip in [0, 1] {
            let rule = json!({
                "mode": "lose-reply", "operation": "TransactWriteItems", "function": "entitlement",
                "skip": skip, "count": 1,
            });
            check_repeated(&world, &format!("lost-reply-{skip}"), rule).await;
        }
    })
    .await;
}

/// The activation is refused for as long as the function tries: the marketplace repeats the delivery.
#[tokio::test]
async fn a_crash_between_intent_and_activation_is_finished_by_the_next_delivery() {
    alone(|world| async move {
        let rule = json!({
            "mode": "refuse", "operation": "TransactWriteItems", "function": "entitlement", "skip": 1, "count": 3,
        });
        let failed = check_repeated(&world, "crash", rule).await;
        assert!(failed, "the fault outlasts the SDK's three attempts");
    })
    .await;
}

/// The ledger is closed, and then the function dies before the closing receipt stands beside the archive.
#[tokio::test]
async fn a_crash_before_the_closing_receipt_is_finished_by_the_next_delivery() {
    alone(|world| async move {
        let tenant = world.tenant("unclosed").await;
        // The SDK's attempts at the closing receipt.
        let rule = json!({
            "mode": "refuse", "operation": "PutObject", "function": "cancel", "path": ".closing.json", "count": 3,
        });
        world.fault("s3", rule).await;
        let answer = world.post(&Delivery::cancelled(world.env, &tenant.account, SKU)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        gone(&world, &tenant).await;
        let refused = |call: &Value| call["operation"] == "PutObject" && call["status"] == 503;
        world.called("the closing receipt to have been refused", refused).await;
        world.mend("s3").await;

        // What the queue would do two minutes later; its own copy goes, so that nobody waits for it.
        let purge = world.sqs.purge_queue().queue_url(&world.env.decommission_queue_url);
        purge.send().await.unwrap();
        let order = json!({ "account_id": tenant.account, "generation": 1, "requested_at": "2026-01-01T00:00:00Z" });
        let send = world.sqs.send_message().queue_url(&world.env.decommission_queue_url);
        send.message_body(order.to_string()).send().await.unwrap();
        let folder = format!("{}/", tenant.account);
        let closing = eventually("the closing receipt beside the archive", PATIENCE, || async {
            let keys = objects(&world, &folder).await;
            let key = keys.iter().find(|key| key.ends_with(".closing.json")).cloned();
            key.ok_or_else(|| format!("{keys:?}"))
        })
        .await;
        let closing = String::from_utf8(object(&world, &closing).await).unwrap();
        let ledger = world.ledger(&tenant.account).await;
        assert_eq!(ledger.operations(), ["entitlement_active", "decommission_start", "decommission_complete"]);
        assert_eq!(ledger.lines.last(), Some(&closing));
    })
    .await;
}

/// Posts a delivery under a fault until it is accepted; gives whether it was turned away at least once.
async fn check_repeated(world: &World, name: &str, rule: Value) -> bool {
    let account = unique(name);
    let delivery = Delivery::created(world.env, &account, SKU, PLAN);
    let mut turned_away = false;
    world.fault("dynamodb", rule).await;
    for _ in 0..3 {
        let answer = world.post(&delivery).await;
        if answer.status == 200 {
            world.mend("dynamodb").await;
            assert_eq!(
                operation(&answer.json()),
                "entitlement_active",
                "{name}: {answer:?}"
            );
            // What failed before is on record as undone, and nothing else is.
            let ledger = world.ledger(&account).await;
            let (last, before) = ledger.receipts.split_last().unwrap();
            assert_eq!(ledger.lines.last(), Some(&answer.body), "{name}");
            assert_eq!(last["operation"], "entitlement_active", "{name}");
            for receipt in before {
                assert_eq!(operation(receipt), "entitlement_failed", "{name}: {receipt}");
            }
            assert!(turned_away || before.is_empty(), "{name}: {before:?}");
            assert_eq!(
                world.post(&delivery).await,
                answer,
                "{name}: the same delivery again"
            );
            let tenant = world.provisioned(answer.body).await;
            let action_id = unique("action");
            world.send(&tenant, tenant.restart(&action_id)).await;
            world.settled(&account, &action_id, &["action_complete"]).await;
            return turned_away;
        }
        assert_eq!(answer.status, 503, "{name}: {answer:?}");
        turned_away = true;
    }
    panic!("{name}: turned away three times");
}

/// A run of the decommissioning that is killed is followed by the next within a minute, and never doubled meanwhile.
#[tokio::test]
async fn decommissioning_goes_on_within_a_minute_of_a_kill() {
    alone(|world| async move {
        let tenant = world.tenant("killed").await;
        let arn = world
            .queue_attribute(&tenant.queue_url, QueueAttributeName::QueueArn)
            .await;
        for mapping in world.mappings(&arn).await {
            let delete = world.lambda.delete_event_source_mapping();
            delete.set_uuid(mapping.uuid).send().await.unwrap();
        }
        // Nobody takes it, so the drain lasts 30 s: longer than the function may run.
        world.send(&tenant, tenant.restart(&unique("waits"))).await;
        let holds = json!({
            "mode": "delay", "ms": 0, "function": "cancel", "operation": "ChangeMessageVisibilityBatch",
        });
        world.rule("sqs/holds", holds).await;
        world.cancel_may_run(5).await;
        let delivery = Delivery::cancelled(world.env, &tenant.account, SKU);
        let answer = world.post(&delivery).await;
        let begun = world.held("the first run", 1).await;
        // The run that has begun keeps its five seconds.
        world.cancel_may_run(900).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let again = world.held("the second run", 2).await;
        let between = again.duration_since(begun);
        // A run that lives renews its hold every ten seconds.
        assert!(
            between > Duration::from_secs(30),
            "it was not killed: {between:?}"
        );
        assert!(between < Duration::from_secs(60), "{between:?}");
        world.mend("sqs").await;
        gone(&world, &tenant).await;
        let ledger = world.ledger(&tenant.account).await;
        let count = |name| ledger.operations().iter().filter(|found| **found == name).count();
        assert_eq!(count("decommission_complete"), 1, "{:?}", ledger.operations());
    })
    .await;
}

impl World {
    /// Sets how long `cancel` may run until it is killed, in seconds.
    async fn cancel_may_run(&self, seconds: i32) {
        let update = self.lambda.update_function_configuration();
        let update = update.function_name(&self.env.cancel).timeout(seconds);
        update.send().await.unwrap();
    }

    /// Waits until orders were held so many times in all; when that was seen.
    async fn held(&self, what: &str, times: u64) -> Instant {
        eventually(what, PATIENCE, || async {
            match self.met("sqs", "holds").await {
                met if met >= times => Ok(Instant::now()),
                met => Err(format!("{met} holds")),
            }
        })
        .await
    }
}
