//! Queue lag to concurrency, inside quota and budget. The local cloud measures no queues, so alarms are the sample events
//! with a tenant's queue in them; how long a raise is on trial, and how long idleness lasts, are parameters of the event.

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::QueueAttributeName;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::life::gone;
use crate::webhooks::Delivery;
use crate::world::{PATIENCE, Tenant, World, alone, alongside, eventually, operation, project, unique};

/// A SKU with two plans: 15 actions at one time, and 1000.
const SKU: &str = "scaled-sku";
static DEPLOYED: OnceCell<()> = OnceCell::const_new();

async fn tenant(world: &World, name: &str, plan: &str) -> Tenant {
    let deploy = || async {
        let sku = format!("sku_id: {SKU}");
        for (plan, quota) in [("small", 15), ("large", 1000)] {
            let plan = format!("plan_type: {plan}");
            let quota = format!("concurrent_actions: {quota}");
            let changes = [
                ("sku_id: pool-sku", sku.as_str()),
                ("plan_type: starter", plan.as_str()),
                ("monthly_actions: 2", "monthly_actions: 10000"),
                ("concurrent_actions: 2", quota.as_str()),
            ];
            world.deploy_fixture("pool.yaml", &changes).await;
        }
    };
    DEPLOYED.get_or_init(deploy).await;
    let account = unique(name);
    let answer = world
        .post(&Delivery::created(world.env, &account, SKU, plan))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    world.provisioned(answer.body).await
}

/// A tenant whose queue nobody feeds to the governor, so that what is sent waits; its places count as taken, so that it waits
/// for one of them.
async fn unfed(world: &World, name: &str, plan: &str) -> Tenant {
    let tenant = tenant(world, name, plan).await;
    fed(world, &tenant, false).await;
    let text = |value: &str| AttributeValue::S(value.to_owned());
    let later = Timestamp::now() + SignedDuration::from_mins(10);
    let update = world.dynamodb.update_item().table_name(&world.env.tenants_table);
    update
        .key("account_id", text(&tenant.account))
        .key("sk", text("TENANT"))
        .update_expression("SET #tenant.full_at = :at")
        .expression_attribute_names("#tenant", "tenant")
        .expression_attribute_values(":at", text(&later.to_string()))
        .send()
        .await
        .unwrap();
    tenant
}

/// Signals that wait though places are free wait for a poll: more places would not help, and people are told.
#[tokio::test]
async fn signals_that_nobody_polls_raise_nothing() {
    let world = alongside().await;
    let tenant = tenant(&world, "unpolled", "large").await;
    fed(&world, &tenant, false).await;
    waiting(&world, &tenant, 11).await;
    let report = scale(&world, &impatient(&tenant)).await;
    assert_eq!(decided(&report), "");
    let expected = json!({
        "signals": 11, "largest_lag": 11, "oldest_age_seconds": 0, "tenants_for_a_place": 0,
        "tenants_for_an_entitlement": 0, "tenants_for_a_poll": 1,
        "unpolled": [tenant.account], "places_in_use": 0, "places": 10,
    });
    assert_eq!(report["waiting"], expected);
    let show = ["tenants", "show", "--account-id", &tenant.account];
    let told = world.ggen(&show).await.ok();
    assert!(
        told.contains("11 signals wait to be polled, though places are free"),
        "{told}"
    );
    let shown = world
        .ggen(&[&show[..], &["--format", "json"]].concat())
        .await
        .json();
    let expected = json!({
        "lag": 11, "waits_for": "poll", "oldest_age_seconds": null, "places_in_use": 0, "places": 10,
    });
    assert_eq!(shown["backlog"], expected);
    assert_eq!(on_record(&world, &tenant).await, []);
}

async fn fed(world: &World, tenant: &Tenant, enabled: bool) {
    let mapping = mapping(world, tenant).await;
    let update = world.lambda.update_event_source_mapping().set_uuid(mapping.uuid);
    update.enabled(enabled).send().await.unwrap();
}

async fn mapping(world: &World, tenant: &Tenant) -> aws_sdk_lambda::types::EventSourceMappingConfiguration {
    let arn = world.queue_attribute(&tenant.queue_url, QueueAttributeName::QueueArn);
    let mut mappings = world.mappings(&arn.await).await;
    assert_eq!(mappings.len(), 1, "{mappings:?}");
    mappings.remove(0)
}

/// Batch size and maximum concurrency of a tenant's mapping.
async fn pace(world: &World, tenant: &Tenant) -> (i32, i32) {
    let mapping = mapping(world, tenant).await;
    let most = mapping.scaling_config.unwrap().maximum_concurrency.unwrap();
    (mapping.batch_size.unwrap(), most)
}

async fn limit(world: &World, tenant: &Tenant) -> u64 {
    let shown = [
        "tenants",
        "show",
        "--account-id",
        &tenant.account,
        "--format",
        "json",
    ];
    let shown = world.ggen(&shown).await.json();
    shown["in_flight_action_limit"].as_u64().unwrap()
}

/// Puts signals on a tenant's queue, and gives their ids.
async fn waiting(world: &World, tenant: &Tenant, count: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|n| unique(&format!("waits-{n}"))).collect();
    let signals: Vec<Value> = ids.iter().map(|id| tenant.restart(id)).collect();
    for batch in signals.chunks(10) {
        world.send_batch(tenant, batch).await;
    }
    ids
}

fn sample(name: &str) -> String {
    std::fs::read_to_string(project(&format!("events/scale/{name}.json"))).unwrap()
}

/// A sample alarm about a tenant's queue.
fn alarm(name: &str, tenant: &Tenant) -> Value {
    let sampled = "governor-t-github-18404719-e2cb2e4e62eb07b0843727d7d7ac18b8-g1";
    let event = sample(name);
    assert!(event.contains(sampled), "{event}");
    serde_json::from_str(&event.replace(sampled, &tenant.queue)).unwrap()
}

/// An alarm to which a raise has had its time, and idleness counts at once.
fn impatient(tenant: &Tenant) -> Value {
    let mut event = alarm("alarm", tenant);
    event["trial_seconds"] = json!(0);
    event["idle_seconds"] = json!(0);
    event
}

async fn scale(world: &World, event: &Value) -> Value {
    let report = world.invoke(&world.env.scale, event).await;
    assert_eq!(report["errors"], json!([]), "{report}");
    report
}

/// What a run decided about the one tenant that it looked at: `verdict previous→new`.
#[track_caller]
fn decided(report: &Value) -> String {
    let changed = report["changed"].as_array().unwrap();
    let told = changed.iter().map(|changed| {
        let of = |field: &str| changed["concurrency"][field].as_u64().unwrap();
        let verdict = changed["verdict"].as_str().unwrap();
        format!("{verdict} {}→{}", of("previous"), of("new"))
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Receipts about a tenant's concurrency: operation, previous and new limit, what quota and budget said, cost.
async fn on_record(world: &World, tenant: &Tenant) -> Vec<(String, u64, u64, String, f64)> {
    let ledger = world.ledger(&tenant.account).await;
    let about = ledger.receipts.iter().filter(|r| r.get("quota_check").is_some());
    let told = about.map(|r| {
        assert!(r["duration_ms"].is_u64(), "{r}");
        let status = if operation(r) == "quota_exceeded" {
            "refused"
        } else {
            "success"
        };
        assert_eq!(r["status"], status, "{r}");
        (
            operation(r).to_owned(),
            r["concurrency"]["previous"].as_u64().unwrap(),
            r["concurrency"]["new"].as_u64().unwrap(),
            r["quota_check"].as_str().unwrap().to_owned(),
            r["cost_delta_usd"].as_f64().unwrap(),
        )
    });
    told.collect()
}

fn record(
    operation: &str,
    previous: u64,
    new: u64,
    check: &str,
    cost: f64,
) -> (String, u64, u64, String, f64) {
    (operation.to_owned(), previous, new, check.to_owned(), cost)
}

#[tokio::test]
async fn signals_that_wait_raise_the_limit_once_however_often_it_is_told() {
    let world = alongside().await;
    let tenant = unfed(&world, "lag", "large").await;
    assert_eq!(
        (limit(&world, &tenant).await, pace(&world, &tenant).await),
        (10, (5, 2))
    );
    waiting(&world, &tenant, 10).await;
    let report = scale(&world, &alarm("alarm", &tenant)).await;
    assert_eq!((decided(&report), &report["looked"]), (String::new(), &json!(1)));
    let seen = &report["waiting"];
    assert_eq!(
        (
            &seen["signals"],
            &seen["tenants_for_a_place"],
            &seen["tenants_for_a_poll"]
        ),
        (&json!(10), &json!(1), &json!(0))
    );

    waiting(&world, &tenant, 5).await;
    let event = alarm("alarm", &tenant);
    let (one, other) = tokio::join!(scale(&world, &event), scale(&world, &event));
    let mut both = [decided(&one), decided(&other)];
    both.sort();
    assert_eq!(both, ["", "raised 10→20"]);
    assert_eq!(decided(&scale(&world, &event).await), "");
    assert_eq!(limit(&world, &tenant).await, 20);
    let first = record("governor_scaled", 10, 20, "within quota: 20 of 1000", 10.95);
    assert_eq!(on_record(&world, &tenant).await, std::slice::from_ref(&first));

    // As EventBridge and SNS bring it; off, it asks for nothing.
    for name in ["alarm-eventbridge", "alarm-sns"] {
        let report = scale(&world, &alarm(name, &tenant)).await;
        assert_eq!(
            (decided(&report), &report["looked"]),
            (String::new(), &json!(1)),
            "{name}"
        );
    }
    let report = scale(&world, &alarm("alarm-ok", &tenant)).await;
    assert_eq!(
        (
            report["looked"].as_u64(),
            report["ignored"].as_array().unwrap().len()
        ),
        (Some(0), 1)
    );

    // No more wait than before: the raise stays, and there is another. The mapping follows.
    assert_eq!(decided(&scale(&world, &impatient(&tenant)).await), "raised 20→40");
    assert_eq!(
        (limit(&world, &tenant).await, pace(&world, &tenant).await),
        (40, (10, 4))
    );
    let second = record("governor_scaled", 20, 40, "within quota: 40 of 1000", 21.9);
    assert_eq!(on_record(&world, &tenant).await, [first, second]);
    let told = world
        .ggen(&["tenants", "show", "--account-id", &tenant.account])
        .await
        .ok();
    assert!(
        told.contains("40 at one time, the plans allow 1000; base 10; on trial since"),
        "{told}"
    );
}

#[tokio::test]
async fn at_the_quota_it_is_told_once_while_signals_wait() {
    let world = alongside().await;
    let tenant = unfed(&world, "quota", "small").await;
    waiting(&world, &tenant, 12).await;
    assert_eq!(decided(&scale(&world, &impatient(&tenant)).await), "raised 10→15");
    assert_eq!(
        decided(&scale(&world, &impatient(&tenant)).await),
        "exceeded 15→15"
    );
    for _ in 0..3 {
        assert_eq!(decided(&scale(&world, &impatient(&tenant)).await), "");
    }
    let raised = record("governor_scaled", 10, 15, "within quota: 15 of 15", 5.475);
    let check = "12 signals wait, the plans allow 15 at one time";
    let exceeded = record("quota_exceeded", 15, 15, check, 0.0);
    assert_eq!(
        on_record(&world, &tenant).await,
        [raised.clone(), exceeded.clone()]
    );

    // The next time that signals wait it is told again, and nothing lasts when there is nothing to do.
    emptied(&world, &tenant).await;
    assert_eq!(
        decided(&scale(&world, &impatient(&tenant)).await),
        "lowered 15→10"
    );
    assert_eq!(limit(&world, &tenant).await, 10);
    waiting(&world, &tenant, 12).await;
    assert_eq!(decided(&scale(&world, &impatient(&tenant)).await), "raised 10→15");
    assert_eq!(
        decided(&scale(&world, &impatient(&tenant)).await),
        "exceeded 15→15"
    );
    let all = on_record(&world, &tenant).await;
    assert_eq!(
        (all.len(), &all[2].0, all[2].4, &all[4]),
        (5, &raised.0, -5.475, &exceeded)
    );
}

async fn emptied(world: &World, tenant: &Tenant) {
    world
        .sqs
        .purge_queue()
        .queue_url(&tenant.queue_url)
        .send()
        .await
        .unwrap();
    world.drained(&tenant.queue_url).await;
}

#[tokio::test]
async fn a_raise_that_did_not_help_is_taken_back() {
    let world = alongside().await;
    let tenant = unfed(&world, "worse", "large").await;
    waiting(&world, &tenant, 11).await;
    for expected in ["raised 10→20", "raised 20→40"] {
        assert_eq!(decided(&scale(&world, &impatient(&tenant)).await), expected);
    }
    assert_eq!(pace(&world, &tenant).await, (10, 4));
    waiting(&world, &tenant, 1).await;
    // It has its minute.
    assert_eq!(decided(&scale(&world, &alarm("alarm", &tenant)).await), "");
    let event = impatient(&tenant);
    let (one, other) = tokio::join!(scale(&world, &event), scale(&world, &event));
    let mut both = [decided(&one), decided(&other)];
    both.sort();
    assert_eq!(both, ["", "reverted 40→20"]);
    assert_eq!(
        (limit(&world, &tenant).await, pace(&world, &tenant).await),
        (20, (10, 2))
    );
    let expected = record(
        "scale_reverted",
        40,
        20,
        "12 signals wait, 11 did before the raise",
        -21.9,
    );
    assert_eq!(on_record(&world, &tenant).await[2..], [expected]);
    // No raise for ten minutes.
    waiting(&world, &tenant, 10).await;
    assert_eq!(decided(&scale(&world, &event).await), "");
    assert_eq!(on_record(&world, &tenant).await.len(), 3);
}

/// All that waited runs at the raised pace; then it is taken back.
#[tokio::test]
async fn when_nothing_is_to_do_the_limit_goes_back_to_its_base() {
    let world = alongside().await;
    let tenant = unfed(&world, "idle", "large").await;
    let ran = world
        .ggen(&["scale", "--account-id", &tenant.account, "--concurrency", "12"])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ids = waiting(&world, &tenant, 15).await;
    assert_eq!(decided(&scale(&world, &impatient(&tenant)).await), "raised 12→24");
    fed(&world, &tenant, true).await;
    for id in &ids {
        world.settled(&tenant.account, id, &["action_complete"]).await;
    }
    world.drained(&tenant.queue_url).await;
    assert_eq!(pace(&world, &tenant).await, (8, 3));

    // Not before its time: it is noted since when, and what is done meanwhile counts.
    let mut event = impatient(&tenant);
    event["idle_seconds"] = json!(300);
    let report = scale(&world, &event).await;
    assert_eq!(
        (decided(&report), &report["decided"]),
        (String::new(), &json!({ "confirmed": 1 }))
    );
    assert_eq!(scale(&world, &event).await["decided"], json!({}));
    let id = unique("meanwhile");
    world.send(&tenant, tenant.restart(&id)).await;
    world.settled(&tenant.account, &id, &["action_complete"]).await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(scale(&world, &event).await["decided"], json!({ "noted": 1 }));

    assert_eq!(
        decided(&scale(&world, &impatient(&tenant)).await),
        "lowered 24→12"
    );
    assert_eq!(
        (limit(&world, &tenant).await, pace(&world, &tenant).await),
        (12, (6, 2))
    );
    let all = on_record(&world, &tenant).await;
    let told: Vec<_> = all
        .iter()
        .map(|(what, from, to, _, cost)| (what.as_str(), *from, *to, *cost))
        .collect();
    let expected = [
        ("governor_scaled", 10, 12, 2.19),
        ("governor_scaled", 12, 24, 13.14),
        ("governor_scaled", 24, 12, -13.14),
    ];
    assert_eq!(told, expected);
    assert_eq!(scale(&world, &impatient(&tenant)).await["decided"], json!({}));
}

#[tokio::test]
async fn an_operator_sets_the_base() {
    let world = alongside().await;
    let tenant = tenant(&world, "operator", "large").await;
    let asked = |concurrency: &'static str| {
        let (world, account) = (world.clone(), tenant.account.clone());
        async move {
            let arguments = ["scale", "--account-id", &account, "--concurrency", concurrency];
            let people = world.ggen(&arguments).await;
            let programs = world
                .ggen(&[&arguments[..], &["--format", "json"]].concat())
                .await;
            (people, programs)
        }
    };
    let (people, programs) = asked("30").await;
    assert_eq!(
        (people.code, programs.code),
        (Some(0), Some(0)),
        "{people:?} {programs:?}"
    );
    let told = format!(
        "SCALED: account {} runs 30 at one time, 10 before\ncost 21.9 USD a month\n",
        tenant.account
    );
    assert!(people.stdout.starts_with(&told), "{}", people.stdout);
    let same = json!({ "previous": 30, "new": 30 });
    let expected = json!({ "account_id": tenant.account, "outcome": "unchanged", "concurrency": same });
    assert_eq!(programs.json(), expected);
    assert_eq!(
        (limit(&world, &tenant).await, pace(&world, &tenant).await),
        (30, (10, 3))
    );

    // More than the plans allow, and more than the budget affords.
    for (concurrency, says) in [
        ("1001", "1001 at one time are asked for, the plans allow 1000"),
        (
            "102",
            "102 at one time are asked for, 100.00 USD a month afford 101",
        ),
    ] {
        let (people, programs) = asked(concurrency).await;
        assert_eq!(
            (people.code, programs.code),
            (Some(1), Some(1)),
            "{people:?} {programs:?}"
        );
        assert!(
            people.stdout.starts_with(&format!("REFUSED: {says}\n")),
            "{}",
            people.stdout
        );
        let answer = programs.json();
        assert_eq!(
            (&answer["outcome"], &answer["reason"]),
            (&json!("refused"), &json!(says))
        );
        let ledger = world.ledger(&tenant.account).await;
        assert_eq!(
            ledger.find(&answer["receipt"]["receipt_id"]),
            Some(&answer["receipt"])
        );
        assert_eq!(operation(&answer["receipt"]), "quota_exceeded");
    }
    assert_eq!(limit(&world, &tenant).await, 30);
    assert_eq!(on_record(&world, &tenant).await.len(), 5);

    let nobody = ["scale", "--account-id", "nobody-at-all", "--concurrency", "5"];
    let ran = world.ggen(&nobody).await;
    assert_eq!(
        (ran.code, ran.stdout.starts_with("NOT FOUND: ")),
        (Some(1), true),
        "{ran:?}"
    );
    let ran = world.ggen(&[&nobody[..], &["--format", "json"]].concat()).await;
    assert_eq!(
        ran.json(),
        json!({ "account_id": "nobody-at-all", "outcome": "not_found" })
    );
    let ran = world
        .ggen(&["scale", "--account-id", &tenant.account, "--concurrency", "0"])
        .await;
    assert_eq!(ran.code, Some(2), "{ran:?}");

    let cancel = Delivery::cancelled(world.env, &tenant.account, SKU);
    assert_eq!(world.post(&cancel).await.status, 200);
    gone(&world, &tenant).await;
    let (people, programs) = asked("20").await;
    assert_eq!(people.code, Some(1), "{people:?}");
    let answer = programs.json();
    assert_eq!(
        (&answer["outcome"], &answer["lifecycle"]),
        (&json!("not_active"), &json!("decommissioned"))
    );
}

/// With one action at one time, none begins before the one before it has ended.
#[tokio::test]
async fn the_gate_holds_the_limit() {
    let world = alongside().await;
    let tenant = tenant(&world, "one-by-one", "large").await;
    let ran = world
        .ggen(&["scale", "--account-id", &tenant.account, "--concurrency", "1"])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ids: Vec<String> = (0..4).map(|n| unique(&format!("slow-{n}"))).collect();
    let slow = json!({ "service": "web", "delay_ms": 300 });
    let signals: Vec<Value> = (ids.iter())
        .map(|id| tenant.signal(id, "restart-service", slow.clone()))
        .collect();
    world.send_batch(&tenant, &signals).await;
    let mut times = Vec::new();
    for id in &ids {
        let receipts = world.settled(&tenant.account, id, &["action_complete"]).await;
        let ended: Timestamp = receipts[0]["occurred_at"].as_str().unwrap().parse().unwrap();
        let taken = receipts[0]["duration_ms"].as_i64().unwrap();
        times.push((ended - SignedDuration::from_millis(taken), ended));
        assert_eq!(world.handler_saw(id).await, (1, 0));
    }
    times.sort();
    for pair in times.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two at a time: {times:?}");
    }
}

/// A look at all tenants, while the queue of one and the mapping of another do not answer.
#[tokio::test]
async fn a_poll_looks_at_all_and_none_stops_the_others() {
    alone(|world| async move {
        let lagging = unfed(&world, "poll-lagging", "large").await;
        let silent = unfed(&world, "poll-silent", "large").await;
        let unpaced = unfed(&world, "poll-unpaced", "large").await;
        let quiet = tenant(&world, "poll-quiet", "large").await;
        for tenant in [&lagging, &silent, &unpaced] {
            waiting(&world, tenant, 11).await;
            let ran = world
                .ggen(&["scale", "--account-id", &tenant.account, "--concurrency", "20"])
                .await;
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
        let fails = |contains: &str| json!({ "mode": "fail", "code": "Throttled", "function": "scale", "contains": contains });
        world.fault("sqs/silent", fails(&silent.queue)).await;
        let uuid = mapping(&world, &unpaced).await.uuid.unwrap();
        world.fault("lambda/unpaced", fails(&uuid)).await;

        let poll: Value = serde_json::from_str(&sample("schedule")).unwrap();
        let report = world.invoke(&world.env.scale, &poll).await;
        let errors = report["errors"].as_array().unwrap();
        let about = |tenant: &Tenant| errors.iter().any(|e| e.as_str().unwrap().starts_with(&tenant.account));
        assert!(errors.len() == 2 && about(&silent) && about(&unpaced), "{report}");
        assert_eq!(report["left"], 0, "{report}");
        let limits = |tenants: [&Tenant; 4]| {
            let (world, tenants) = (world.clone(), tenants.map(Clone::clone));
            async move {
                let mut limits = Vec::new();
                for tenant in &tenants {
                    limits.push(limit(&world, tenant).await);
                }
                limits
            }
        };
        let all = [&lagging, &silent, &unpaced, &quiet];
        assert_eq!(limits(all).await, [40, 20, 40, 10]);
        assert_eq!((pace(&world, &lagging).await, pace(&world, &unpaced).await), ((10, 4), (10, 2)));

        world.mend("sqs/silent").await;
        world.mend("lambda/unpaced").await;
        let report = scale(&world, &poll).await;
        assert_eq!(report["left"], 0, "{report}");
        assert_eq!(limits(all).await, [40, 40, 40, 10]);
        eventually("the mapping to be paced", PATIENCE, || async {
            // Another process may take the next run, and remember nothing; when the trial is over it is paced all the same.
            let mut event = poll.clone();
            event["trial_seconds"] = json!(0);
            scale(&world, &event).await;
            let pace = pace(&world, &unpaced).await;
            if pace.1 >= 4 { Ok(()) } else { Err(format!("{pace:?}")) }
        })
        .await;
        assert_eq!(on_record(&world, &quiet).await, []);
    })
    .await;
}

#[tokio::test]
async fn while_degraded_nothing_is_scaled() {
    alone(|world| async move {
        let tenant = unfed(&world, "scale-degraded", "large").await;
        waiting(&world, &tenant, 11).await;
        world.fault("dynamodb", json!({ "mode": "refuse" })).await;
        for _ in 0..3 {
            world.probe().await;
        }
        for event in [json!({ "poll": true }), alarm("alarm", &tenant)] {
            let report = scale(&world, &event).await;
            assert_eq!(
                (&report["skipped"], &report["looked"]),
                (&json!("degraded"), &json!(0))
            );
        }
        let asked = ["scale", "--account-id", &tenant.account, "--concurrency", "20"];
        let ran = world.ggen(&asked).await;
        assert_eq!(
            (ran.code, ran.stderr.contains("degraded")),
            (Some(2), true),
            "{ran:?}"
        );
        world.mend("dynamodb").await;
        world.probe().await;
        assert_eq!(
            decided(&scale(&world, &alarm("alarm", &tenant)).await),
            "raised 10→20"
        );
    })
    .await;
}

/// What nobody can act on is told, and changes nothing.
#[tokio::test]
async fn alarms_about_other_queues_are_ignored_and_other_events_refused() {
    let world = alongside().await;
    let tenant = unfed(&world, "other-queue", "large").await;
    waiting(&world, &tenant, 11).await;
    let mut dead_letters = tenant.clone();
    dead_letters.queue.push_str("-dlq");
    let report = scale(&world, &alarm("alarm", &dead_letters)).await;
    let ignored = report["ignored"][0].as_str().unwrap();
    assert!(ignored.ends_with("is no queue of a tenant that runs"), "{report}");
    assert_eq!(limit(&world, &tenant).await, 10);
    let invoke = world.lambda.invoke().function_name(&world.env.scale);
    let answer = invoke
        .payload(b"{\"Records\":[]}".to_vec().into())
        .send()
        .await
        .unwrap();
    let said = String::from_utf8(answer.payload.unwrap().into_inner()).unwrap();
    assert!(
        answer.function_error.is_some() && said.contains("expected {\\\"poll\\\": true}"),
        "{said}"
    );
}
