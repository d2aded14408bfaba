//! Switches of the whole system. These tests run alone.

use serde_json::{Value, json};

use crate::world::{SYSTEM, Tenant, World, alone, unique};

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
