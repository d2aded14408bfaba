//! What a sweep finds stuck, missing or left over, and what becomes of it. Its patience is a parameter of the event, so
//! that nobody has to wait; these tests run alone, as to an impatient sweep everything under way is stuck.

use std::collections::BTreeMap;

use aws::clients;
use aws::store::{Store, StoreError};
use aws::tables::{Kind, TenantTables};
use aws_sdk_sqs::types::QueueAttributeName;
use domain::action::{Action, ActionEvent};
use domain::names;
use domain::signal::ActionId;
use domain::transaction::{Keys, Plan};
use jiff::{SignedDuration, Timestamp};
use receipts::Signer;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::life::gone;
use crate::webhooks::Delivery;
use crate::world::{
    PATIENCE, PLAN, SKU, SOON, Tenant, World, alone, alongside, eventually, operation, partition_of, unique,
};

/// One probe and one sweep that waits for nothing; gives what the sweep says.
async fn sweep(world: &World, scope: &str) -> Value {
    let mut report = world.invoke(&world.env.health, &impatient(scope)).await;
    assert_eq!(report["probes"][0]["good"], true, "{report}");
    report["sweep"].take()
}

/// The same twice, at once.
async fn two_sweeps(world: &World, scope: &str) -> (Value, Value) {
    // Of two probes at once one may read back what the other wrote, and who finds storage failing does not sweep.
    let sound = || {
        eventually("a round that sweeps", SOON, || async {
            let mut report = world.invoke(&world.env.health, &impatient(scope)).await;
            match report.get("sweep") {
                Some(_) => Ok(report["sweep"].take()),
                None => Err(report.to_string()),
            }
        })
    };
    tokio::join!(sound(), sound())
}

fn impatient(scope: &str) -> Value {
    json!({ "probes": 1, "sweep": scope, "stuck_after_seconds": 0, "orphan_age_seconds": 0 })
}

/// Whether a report's list has this name.
#[track_caller]
fn told(report: &Value, list: &str, name: &str) -> bool {
    report[list].as_array().unwrap().iter().any(|told| told == name)
}

/// Waits until a tenant's ledger tells of a repair, and gives what was found and done about what.
async fn repaired(world: &World, account: &str, resource: &str) -> (String, String) {
    eventually(&format!("{resource} to be repaired"), PATIENCE, || async {
        let ledger = world.ledger(account).await;
        let receipt = ledger
            .receipts
            .iter()
            .find(|r| operation(r) == "resource_repaired" && r["resource"] == resource);
        let text = |receipt: &Value, field: &str| receipt[field].as_str().unwrap().to_owned();
        receipt
            .map(|receipt| (text(receipt, "finding"), text(receipt, "repair")))
            .ok_or_else(|| format!("{:?}", ledger.operations()))
    })
    .await
}

/// A signal of the tenant runs to its end.
async fn works(world: &World, tenant: &Tenant) {
    let action_id = unique("after-repair");
    world.send(tenant, tenant.restart(&action_id)).await;
    world
        .settled(&tenant.account, &action_id, &["action_complete"])
        .await;
}

async fn mapping_deleted(world: &World, tenant: &Tenant) {
    let arn = QueueAttributeName::QueueArn;
    let arn = world.queue_attribute(&tenant.queue_url, arn).await;
    for mapping in world.mappings(&arn).await {
        let delete = world.lambda.delete_event_source_mapping();
        delete.set_uuid(mapping.uuid).send().await.unwrap();
    }
    assert_eq!(world.mappings(&arn).await, []);
}

#[tokio::test]
async fn what_active_tenants_lack_is_made_again() {
    alone(|world| async move {
        let unfed = world.tenant("unfed").await;
        let queueless = world.tenant("queueless").await;
        let whole = world.tenant("whole").await;
        mapping_deleted(&world, &unfed).await;
        let delete = world.sqs.delete_queue().queue_url(&queueless.queue_url);
        delete.send().await.unwrap();

        // Two at once do no more harm than one.
        let (report, other) = two_sweeps(&world, "everything").await;
        let (mapping, queue) = (
            format!("mapping {}", unfed.queue),
            format!("queue {}", queueless.queue),
        );
        for missing in [&mapping, &queue] {
            assert!(
                told(&report, "missing", missing) || told(&other, "missing", missing),
                "{report} {other}"
            );
        }
        assert_eq!((&report["errors"], &other["errors"]), (&json!([]), &json!([])));
        for (account, resource) in [(&unfed.account, &mapping), (&queueless.account, &queue)] {
            let found = repaired(&world, account, resource).await;
            assert_eq!(
                found,
                ("missing".to_owned(), "made again".to_owned()),
                "{resource}"
            );
        }
        for tenant in [&unfed, &queueless, &whole] {
            works(&world, tenant).await;
        }
        assert_eq!(
            world.ledger(&whole.account).await.operations(),
            ["entitlement_active", "action_complete"]
        );
        let report = sweep(&world, "everything").await;
        for missing in [&mapping, &queue] {
            assert!(!told(&report, "missing", missing), "{report}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_nobodys_is_taken_away() {
    alone(|world| async move {
        let tenant = world.tenant("orphaned").await;
        let cancelled = Delivery::cancelled(world.env, &tenant.account, SKU);
        assert_eq!(world.post(&cancelled).await.status, 200);
        gone(&world, &tenant).await;
        // As if a run that was slow had made it again, and then a queue that only looks like a tenant's.
        let stranger = unique("governor-t-stranger");
        for name in [&tenant.queue, &stranger] {
            world.sqs.create_queue().queue_name(name).send().await.unwrap();
        }
        let action_id = unique("too-late");
        world.send(&tenant, tenant.restart(&action_id)).await;

        let own = names::receipt_table_name(&tenant.queue, 0);
        let tables = TenantTables::new(&clients::load().await);
        tables.create(&own, Kind::Receipts).await.unwrap();

        // With the usual patience nobody touches what is this young.
        let usual = json!({ "probes": 1, "sweep": "everything" });
        let report = world.invoke(&world.env.health, &usual).await;
        assert!(!told(&report["sweep"], "orphans", &tenant.queue), "{report}");
        assert!(world.queue_exists(&tenant.queue).await);

        let report = sweep(&world, "everything").await;
        assert!(told(&report, "orphans", &tenant.queue), "{report}");
        assert!(!told(&report, "orphans", &stranger), "{report}");
        let errors = report["errors"].as_array().unwrap();
        let names_it = |error: &Value| error.as_str().unwrap().starts_with(stranger.as_str());
        assert!(errors.iter().any(names_it), "{report}");
        let (finding, repair) = repaired(&world, &tenant.account, &tenant.queue).await;
        assert_eq!(
            (finding.as_str(), repair.as_str()),
            ("orphan", "removed queue, table")
        );
        assert!(!tables.exists(&own).await.unwrap());
        assert!(!world.queue_exists(&tenant.queue).await);
        // A person decides about what we know nothing of.
        assert!(world.queue_exists(&stranger).await);
        let url = world.sqs.get_queue_url().queue_name(&stranger).send().await;
        let delete = world.sqs.delete_queue().set_queue_url(url.unwrap().queue_url);
        delete.send().await.unwrap();
        // What stood on it is refused on record.
        let refused = world
            .settled(&tenant.account, &action_id, &["action_refused"])
            .await;
        assert_eq!(refused[0]["code"], "UNAVAILABLE", "{}", refused[0]);
    })
    .await;
}

#[tokio::test]
async fn a_tenant_left_in_provisioning_is_finished() {
    alone(|world| async move {
        let account = unique("half-made");
        let delivery = Delivery::created(world.env, &account, SKU, PLAN);
        // The intent is recorded; neither the outcome nor a failure can be.
        let rule = json!({
            "mode": "refuse", "operation": "TransactWriteItems", "function": "entitlement", "skip": 1,
        });
        world.fault("dynamodb", rule).await;
        let answer = world.post(&delivery).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        world.mend("dynamodb").await;
        assert_eq!(world.ledger(&account).await.lines.len(), 0);

        let report = sweep(&world, "due").await;
        assert!(report["resumed"].as_u64() >= Some(1), "{report}");
        let line = eventually("the tenant to be provisioned", PATIENCE, || async {
            let ledger = world.ledger(&account).await;
            ledger
                .lines
                .first()
                .cloned()
                .ok_or_else(|| "an empty ledger".to_owned())
        })
        .await;
        let tenant = world.provisioned(line.clone()).await;
        works(&world, &tenant).await;
        // Its sender, who was turned away, is told what came of it.
        let answer = world.post(&delivery).await;
        assert_eq!((answer.status, answer.body), (200, line));
    })
    .await;
}

#[tokio::test]
async fn a_lost_order_to_decommission_is_given_again() {
    alone(|world| async move {
        let tenant = world.tenant("order-lost").await;
        let rule = json!({ "mode": "refuse", "operation": "SendMessage", "function": "cancel" });
        world.fault("sqs", rule).await;
        let answer = world
            .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
            .await;
        world.mend("sqs").await;
        assert_eq!(answer.status, 503, "{answer:?}");

        let report = sweep(&world, "due").await;
        assert!(report["ordered"].as_u64() >= Some(1), "{report}");
        gone(&world, &tenant).await;
        assert_eq!(
            world.ledger(&tenant.account).await.operations(),
            [
                "entitlement_active",
                "decommission_start",
                "decommission_complete"
            ]
        );
    })
    .await;
}

/// Writes what a governor writes that claims actions and is never heard of again; counters say `more` than that.
pub(crate) async fn abandoned(world: &World, tenant: &Tenant, actions: &[Action], more: u64) {
    let store = Store::new(&clients::load().await, world.stack());
    let signer = Signer::from_pem(&world.signing_key().await).unwrap();
    let (now, over) = (Timestamp::now(), Timestamp::now() - SignedDuration::from_secs(1));
    let plan = |account: &domain::transaction::Account, _| {
        let held = account.tenant.as_ref().unwrap();
        let id = held.entitlements.keys().next().unwrap().clone();
        let count = u64::try_from(actions.len()).unwrap() + more;
        let claimed = |action: &Action| {
            let running = action
                .next(&ActionEvent::Claimed, Uuid::nil(), now)
                .unwrap()
                .action;
            Action {
                entitlement_id: Some(id.clone()),
                ..running.owned_by(Uuid::new_v4(), over)
            }
        };
        let plan = Plan {
            actions: actions.iter().map(claimed).collect(),
            ..Plan::tenant(Some(held.claimed(
                &BTreeMap::from([(id.clone(), count)]),
                now,
                over,
            )))
        };
        Ok::<_, StoreError>((plan, ()))
    };
    store
        .transact(
            &signer,
            &partition_of(&tenant.account),
            &Keys::default(),
            None,
            plan,
        )
        .await
        .unwrap();
}

pub(crate) fn asked_for(tenant: &Tenant, name: &str, begun: Timestamp) -> Action {
    let action_id = ActionId::try_from(unique(name)).unwrap();
    let parameters = Map::from_iter([("service".to_owned(), json!("web"))]);
    Action {
        parameters: Some(parameters),
        ..Action::pending(action_id, "restart-service", &tenant.policy_hash, begun)
    }
}

#[tokio::test]
async fn actions_that_nobody_goes_on_with_are_undone_or_given_up() {
    alone(|world| async move {
        // With tables of its own: its actions are found there.
        let sku = unique("own-tables");
        world
            .deploy_fixture(
                "dedicated.yaml",
                &[("sku_id: dedicated-sku", &format!("sku_id: {sku}"))],
            )
            .await;
        let tenant = world.tenant_of("left-running", &sku).await;
        let leaking = world.tenant("leaking").await;
        let now = Timestamp::now();
        let ago = |minutes: i64| now - SignedDuration::from_mins(minutes);
        let lost = asked_for(&tenant, "lost", now);
        let unknown = Action {
            parameters: None,
            ..asked_for(&tenant, "unknown", now)
        };
        let in_vain = Action {
            nudged_at: Some(ago(6)),
            ..asked_for(&tenant, "in-vain", ago(61))
        };
        let nudged = Action {
            nudged_at: Some(ago(4)),
            ..asked_for(&tenant, "nudged", ago(5))
        };
        let actions = [lost, unknown, in_vain, nudged];
        abandoned(&world, &tenant, &actions, 0).await;
        abandoned(&world, &leaking, &[], 2).await;

        // Two at once: a signal may be put on the queue twice, and all the rest is done once.
        let (report, other) = two_sweeps(&world, "due").await;
        let sum = |field: &str| report[field].as_u64().unwrap() + other[field].as_u64().unwrap();
        assert_eq!((sum("escalated"), sum("recounted")), (2, 1), "{report} {other}");
        assert!((1..=2).contains(&sum("nudged")), "{report} {other}");
        assert_eq!((&report["errors"], &other["errors"]), (&json!([]), &json!([])));
        let [lost, unknown, in_vain, nudged] = actions.map(|action| String::from(action.action_id));
        let undone = ["action_timeout", "action_rolled_back"];
        world.settled(&tenant.account, &lost, &undone).await;
        assert_eq!(world.handler_saw(&lost).await, (0, 1));
        for action_id in [&unknown, &in_vain] {
            let failed = world
                .settled(&tenant.account, action_id, &["action_failed"])
                .await;
            assert_eq!(failed[0]["error_code"], "STUCK", "{}", failed[0]);
            assert_eq!(failed[0]["is_recoverable"], false, "{}", failed[0]);
            assert_eq!(world.handler_saw(action_id).await, (0, 0), "{action_id}");
        }
        // The one that was woken a moment ago is left alone for now.
        assert!(world.ledger(&tenant.account).await.of(&nudged).is_empty());
        eventually("one action to be in flight", SOON, || async {
            let held = world.stored(&tenant.account).await.tenant.unwrap();
            let counters = (held.in_flight, held.actions_failed);
            (counters == (1, 3))
                .then_some(())
                .ok_or_else(|| format!("{counters:?}"))
        })
        .await;
        let held = world.stored(&leaking.account).await.tenant.unwrap();
        assert_eq!((held.in_flight, held.lease_until), (0, None));
        assert!(held.entitlements.values().all(|held| held.in_flight == 0));
        works(&world, &leaking).await;

        // Again: nothing is done twice.
        let report = sweep(&world, "due").await;
        let done = ["nudged", "escalated", "recounted"].map(|field| &report[field]);
        assert_eq!(done, [&json!(0), &json!(0), &json!(0)], "{report}");
    })
    .await;
}

#[tokio::test]
async fn sweeps_go_beside_probes_where_storage_is_sound() {
    let world = alongside().await;
    let round = json!({ "probes": 2, "interval_seconds": 1, "sweep": "everything" });
    let report = world.invoke(&world.env.health, &round).await;
    assert_eq!(report["probes"].as_array().map(Vec::len), Some(2), "{report}");
    for number in ["resumed", "ordered", "nudged", "escalated", "recounted", "left"] {
        assert!(report["sweep"][number].is_u64(), "{number}: {report}");
    }
    for scope in [json!({ "probes": 1 }), json!({ "probes": 1, "sweep": "none" })] {
        let report = world.invoke(&world.env.health, &scope).await;
        assert_eq!(report.get("sweep"), None, "{report}");
    }
}

#[tokio::test]
async fn nothing_is_swept_while_storage_fails() {
    alone(|world| async move {
        world.fault("dynamodb", json!({ "mode": "refuse" })).await;
        let round = json!({ "probes": 1, "sweep": "everything" });
        let report = world.invoke(&world.env.health, &round).await;
        assert_eq!(report["probes"][0]["good"], false, "{report}");
        assert_eq!(report.get("sweep"), None, "{report}");
    })
    .await;
}

/// A part that fails is told, and the others do their work.
#[tokio::test]
async fn a_part_that_fails_does_not_stop_the_others() {
    alone(|world| async move {
        let tenant = world.tenant("order-lost").await;
        let rule = json!({ "mode": "refuse", "operation": "SendMessage", "function": "cancel" });
        world.fault("sqs", rule).await;
        let answer = world
            .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
            .await;
        assert_eq!(answer.status, 503, "{answer:?}");
        let rule = json!({
            "mode": "fail", "code": "AccessDenied", "status": 403, "operation": "ListQueues", "function": "health",
        });
        world.fault("sqs", rule).await;
        let report = sweep(&world, "everything").await;
        world.mend("sqs").await;
        assert!(report["ordered"].as_u64() >= Some(1), "{report}");
        assert_eq!((&report["missing"], &report["orphans"]), (&json!([]), &json!([])));
        let errors = report["errors"].as_array().unwrap();
        assert!(errors.iter().any(|e| e.as_str().unwrap().contains("ListQueues")), "{report}");
        gone(&world, &tenant).await;
    })
    .await;
}

/// The marketplace neither renewed it nor said that it ended.
#[tokio::test]
async fn what_expired_a_week_ago_ends() {
    alone(|world| async move {
        let expires_at = Timestamp::now() - SignedDuration::from_hours(8 * 24);
        let data = json!({
            "account_id": unique("over"), "sku_id": SKU, "plan_type": PLAN, "expires_at": expires_at.to_string(),
        });
        let answer = world
            .post(&Delivery::entitlement(world.env, "created", data))
            .await;
        let tenant = world.provisioned(answer.body).await;
        sweep(&world, "everything").await;
        gone(&world, &tenant).await;
        assert_eq!(
            world.ledger(&tenant.account).await.operations(),
            [
                "entitlement_active",
                "entitlement_expired",
                "decommission_start",
                "decommission_complete"
            ]
        );
    })
    .await;
}
