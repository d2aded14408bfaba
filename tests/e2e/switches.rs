//! Switches of the whole system. These tests run alone.

use serde_json::{Value, json};

use crate::world::{Ran, SOON, SYSTEM, Tenant, World, alone, eventually, unique};

#[tokio::test]
async fn switches_stop_and_route_actions() {
    alone(|world| async move {
        let tenant = world.tenant("switched").await;
        let cases = [
            ("armed=false", "action_refused", "DISARMED"),
            ("automation_enabled=false", "action_routed", "AUTOMATION_DISABLED"),
            ("safe_mode=true", "action_routed", "SAFE_MODE"),
            ("rollout_tier=0", "action_routed", "TIER_ABOVE_ROLLOUT"),
            (
                "disabled_templates=other,restart-service",
                "action_routed",
                "TEMPLATE_DISABLED",
            ),
        ];
        for (change, operation, code) in cases {
            let changed = world.switches(&[change]).await;
            on_record(&world, &changed).await;
            let action_id = unique("switched");
            ask(&world, &tenant, &action_id, operation, code).await;

            world
                .switches(&[
                    "armed=true",
                    "automation_enabled=true",
                    "safe_mode=false",
                    "rollout_tier=2",
                    "disabled_templates=",
                ])
                .await;
            // A signal that was answered stays answered; a new one runs.
            world.send(&tenant, tenant.restart(&action_id)).await;
            world.drained(&tenant.queue_url).await;
            assert_eq!(world.handler_saw(&action_id).await, (0, 0), "{change}");
            ask(&world, &tenant, &unique("armed"), "action_complete", "COMPLETE").await;
        }
        let unchanged = world.switches(&["armed=true"]).await;
        assert_eq!(
            (&unchanged["changed"], &unchanged["receipt_id"]),
            (&json!(false), &Value::Null)
        );
    })
    .await;
}

async fn ask(world: &World, tenant: &Tenant, action_id: &str, operation: &str, code: &str) {
    world.send(tenant, tenant.restart(action_id)).await;
    let receipts = world.settled(&tenant.account, action_id, &[operation]).await;
    assert_eq!(receipts[0]["code"], code, "{}", receipts[0]);
}

/// An action that was routed waits for a person, who is reminded: it is listed, released to be decided anew, or declined.
#[tokio::test]
async fn a_person_releases_or_declines_what_was_routed() {
    alone(|world| async move {
        let tenant = world.tenant("routed").await;
        let account = tenant.account.as_str();
        let (released, declined) = (unique("released"), unique("declined"));
        world.switches(&["safe_mode=true"]).await;
        for action_id in [&released, &declined] {
            ask(&world, &tenant, action_id, "action_routed", "SAFE_MODE").await;
        }
        let list = ["escalations", "--format", "json", "--account-id", account];
        let ran = world.ggen(&list).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let waiting = ran.json();
        let waiting = waiting["escalations"].as_array().unwrap();
        assert_eq!(waiting.len(), 2, "{waiting:?}");
        for one in waiting {
            assert_eq!(
                [&one["state"], &one["error_code"], &one["redrivable"]],
                [&json!("routed"), &json!("SAFE_MODE"), &json!(true)]
            );
        }
        // For a sweep without patience, the hour is over.
        let waits = eventually("a round that sweeps", SOON, || async {
            let event = json!({ "probes": 1, "sweep": "everything", "stuck_after_seconds": 0 });
            let report = world.invoke(&world.env.health, &event).await;
            match report["sweep"]["waiting"].as_u64() {
                Some(waiting) => Ok(waiting),
                None => Err(report.to_string()),
            }
        })
        .await;
        assert!(waits >= 2, "{waits}");

        // The gate decides anew: while the switch is set it is a person's again.
        redriven(&world.redrive_routed(account, &released).await, "returned", 0);
        let so_far = ["action_routed", "action_redriven", "action_routed"];
        world.settled(account, &released, &so_far).await;
        world.switches(&["safe_mode=false"]).await;
        redriven(&world.redrive_routed(account, &released).await, "returned", 0);
        let all = [&so_far[..], &["action_redriven", "action_complete"]].concat();
        world.settled(account, &released, &all).await;
        assert_eq!(world.handler_saw(&released).await, (1, 0));
        redriven(&world.redrive_routed(account, &released).await, "already_over", 0);

        let decline = [
            "resolve",
            &declined,
            "--account-id",
            account,
            "--who",
            "end-to-end",
        ];
        let note = ["--note", "not during the freeze"];
        world.ggen(&[&decline[..], &note].concat()).await.ok();
        world
            .settled(account, &declined, &["action_routed", "action_resolved"])
            .await;
        redriven(&world.redrive_routed(account, &declined).await, "already_over", 0);
        assert_eq!(world.handler_saw(&declined).await, (0, 0));
        assert_eq!(world.ggen(&list).await.code, Some(0));
        let key = world.env.auditor_pub.to_str().unwrap();
        let audit = ["audit", "--account-id", account, "--public-key", key];
        world.ggen(&audit).await.ok();
    })
    .await;
}

#[track_caller]
fn redriven(ran: &Ran, outcome: &str, code: i32) {
    assert_eq!(ran.json()["letters"][0]["outcome"], outcome, "{ran:?}");
    assert_eq!(ran.code, Some(code), "{ran:?}");
}

impl World {
    async fn redrive_routed(&self, account: &str, action_id: &str) -> Ran {
        let redrive = ["redrive", "--format", "json", "--account-id", account];
        self.ggen(&[&redrive[..], &["--action-id", action_id, "--who", "end-to-end"]].concat())
            .await
    }
}

async fn on_record(world: &World, changed: &Value) {
    let system = world.ledger(SYSTEM).await;
    let receipt = system
        .find(&changed["receipt_id"])
        .unwrap_or_else(|| panic!("{changed}"));
    assert_eq!(
        (&receipt["operation"], &receipt["who"]),
        (&json!("switch_changed"), &json!("end-to-end"))
    );
    let switches = |field: &str| serde_json::from_str::<Value>(receipt[field].as_str().unwrap()).unwrap();
    assert_eq!(switches("after"), changed["switches"]);
    assert_ne!(switches("before"), switches("after"));
}
