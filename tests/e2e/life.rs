//! The life of a tenant, from its subscription to an archive that an auditor checks offline.

use aws_sdk_sqs::types::QueueAttributeName;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::evidence::locked;
use crate::sweep::{abandoned, asked_for};
use crate::webhooks::Delivery;
use crate::world::{
    PATIENCE, PLAN, SKU, SOON, Tenant, World, alongside, eventually, operation, project, unique,
};

#[tokio::test]
async fn a_tenant_lives_and_leaves_verifiable_evidence() {
    let world = alongside().await;
    let tenant = subscribe(&world).await;
    let queue_arn = provisioned_resources(&world, &tenant).await;
    signals(&world, &tenant).await;
    let (archive, closing) = cancel(&world, &tenant).await;
    verify(&world, &archive, &closing).await;
    locked(&world, &format!("{}/", tenant.account)).await;

    assert!(!world.queue_exists(&tenant.queue).await);
    assert!(!world.queue_exists(&format!("{}-dlq", tenant.queue)).await);
    assert_eq!(world.mappings(&queue_arn).await, []);
    let refused = world
        .ggen(&[
            "send-signal",
            "--account-id",
            &tenant.account,
            "--template",
            "restart-service",
        ])
        .await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    evidence_stays(&world, &tenant, &closing).await;
}

async fn subscribe(world: &World) -> Tenant {
    let account = unique("life");
    let answer = world
        .post(&Delivery::created(world.env, &account, SKU, PLAN))
        .await;
    assert_eq!(
        (answer.status, answer.content_type.as_str()),
        (200, "application/json"),
        "{answer:?}"
    );
    let tenant = world.provisioned(answer.body).await;

    let receipt = receipts::verify_line(&tenant.line, &world.keys).unwrap();
    assert!(receipt.timestamp >= receipt.occurred_at);
    assert_eq!(receipt.receipt_id.get_version_num(), 7);
    let mut fields: Value = serde_json::from_str(&tenant.line).unwrap();
    let policy = project("policies/marketplace-sku-456/professional.yaml");
    let compiled = world
        .ggen(&["policy", "compile", "--format", "json", policy.to_str().unwrap()])
        .await;
    // What only this delivery knows is taken out; the rest is known beforehand.
    for own in [
        "receipt_id",
        "timestamp",
        "occurred_at",
        "duration_ms",
        "signature",
    ] {
        assert!(fields.as_object_mut().unwrap().remove(own).is_some(), "{own}");
    }
    let expected = json!({
        "operation": "entitlement_active",
        "status": "success",
        "account_id": account,
        "seq": 0,
        "prev_hash": "0".repeat(64),
        "key_id": world.keys.key_ids().next(),
        "policy_hash": compiled.json()["policy_hash"],
        "policy_version": "1.0.0",
        "entitlement_id": SKU,
        "sku_id": SKU,
        "plan_type": PLAN,
        "region": "us-east-1",
        "quota": { "monthly_actions": 10_000, "concurrent_actions": 20 },
        "fsm_id": tenant.queue,
        "resources": { "fsm_id": tenant.queue, "queue": tenant.queue, "table": world.env.tenants_table },
    });
    assert_eq!(fields, expected);
    tenant
}

async fn provisioned_resources(world: &World, tenant: &Tenant) -> String {
    let dead_letters = format!("{}-dlq", tenant.queue);
    assert!(world.queue_exists(&dead_letters).await);
    let redrive = world
        .queue_attribute(&tenant.queue_url, QueueAttributeName::RedrivePolicy)
        .await;
    let redrive: Value = serde_json::from_str(&redrive).unwrap();
    assert!(
        redrive["deadLetterTargetArn"]
            .as_str()
            .unwrap()
            .ends_with(&dead_letters),
        "{redrive}"
    );
    let queue_arn = world
        .queue_attribute(&tenant.queue_url, QueueAttributeName::QueueArn)
        .await;
    let mappings = world.mappings(&queue_arn).await;
    assert_eq!(mappings.len(), 1, "{mappings:?}");
    assert_eq!(mappings[0].batch_size, Some(5));
    let responses: Vec<&str> = mappings[0]
        .function_response_types()
        .iter()
        .map(|t| t.as_str())
        .collect();
    assert_eq!(responses, ["ReportBatchItemFailures"]);
    queue_arn
}

async fn signals(world: &World, tenant: &Tenant) {
    let web = |more: Value| {
        let mut parameters = json!({ "service": "web" });
        parameters
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        parameters.to_string()
    };
    let cases = [
        (
            "done",
            "restart-service",
            web(json!({})),
            &["action_complete"][..],
            (1, 0),
        ),
        (
            "slow",
            "restart-service",
            web(json!({ "delay_ms": 5000 })),
            &["action_timeout", "action_rolled_back"],
            (0, 1),
        ),
        (
            "fails",
            "restart-service",
            web(json!({ "outcome": "fail" })),
            &["action_failed", "action_rolled_back"],
            (0, 1),
        ),
        (
            "broken",
            "restart-service",
            web(json!({ "outcome": "fail-unrecoverable" })),
            &["action_failed"],
            (0, 0),
        ),
        (
            "denied",
            "scale-service",
            web(json!({ "replicas": 11 })),
            &["action_refused"],
            (0, 0),
        ),
        (
            "unknown",
            "format-disk",
            web(json!({})),
            &["action_refused"],
            (0, 0),
        ),
        (
            "tier-2",
            "rotate-credentials",
            web(json!({})),
            &["action_routed"],
            (0, 0),
        ),
    ];
    let id = |name: &str| format!("{name}-{}", tenant.account);
    for (name, template, parameters, ..) in &cases {
        let action_id = id(name);
        let sent = world
            .ggen(&[
                "send-signal",
                "--account-id",
                &tenant.account,
                "--template",
                template,
                "--parameters",
                parameters,
                "--action-id",
                &action_id,
            ])
            .await;
        assert_eq!(sent.ok().trim(), action_id);
    }
    let mut left = std::collections::BTreeMap::new();
    for (name, _, _, operations, handler) in &cases {
        let found = world.settled(&tenant.account, &id(name), operations).await;
        for receipt in &found {
            assert_eq!(receipt["policy_hash"], tenant.policy_hash.as_str(), "{receipt}");
        }
        assert_eq!(
            world.handler_saw(&id(name)).await,
            *handler,
            "{name}: (applied, undone)"
        );
        left.insert(*name, found);
    }

    let check = |name: &str, n: usize, expected: Value| {
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(
                left[name][n][field], *value,
                "{name}: {field} of {}",
                left[name][n]
            );
        }
    };
    check(
        "done",
        0,
        json!({ "code": "COMPLETE", "template": "restart-service", "status": "success" }),
    );
    check("slow", 0, json!({ "timeout_ms": 500, "status": "failed" }));
    check(
        "slow",
        1,
        json!({ "previous_action_receipt_id": left["slow"][0]["receipt_id"], "status": "success" }),
    );
    check(
        "fails",
        0,
        json!({ "error_code": "SIMULATED_FAILURE", "is_recoverable": true, "status": "failed" }),
    );
    check(
        "fails",
        1,
        json!({ "previous_action_receipt_id": left["fails"][0]["receipt_id"] }),
    );
    check(
        "broken",
        0,
        json!({ "error_code": "SIMULATED_FAILURE", "is_recoverable": false }),
    );
    check(
        "denied",
        0,
        json!({ "code": "DENIED", "rules": ["replicas-within-plan"], "template": "scale-service" }),
    );
    check(
        "unknown",
        0,
        json!({ "code": "UNKNOWN_ACTION", "rules": [], "status": "refused" }),
    );
    check(
        "tier-2",
        0,
        json!({ "code": "NO_DETERMINISTIC_MATCH", "status": "routed" }),
    );
    assert!(
        left["slow"][0]["duration_ms"].as_u64().unwrap() >= 500,
        "{}",
        left["slow"][0]
    );
    assert!(left["slow"][1]["rollback_duration_ms"].is_u64());
}

async fn cancel(world: &World, tenant: &Tenant) -> (Vec<u8>, String) {
    let cancellation = Delivery::cancelled(world.env, &tenant.account, SKU);
    let answer = world.post(&cancellation).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let start = answer.json();
    assert_eq!(operation(&start), "decommission_start", "{start}");
    assert_eq!(
        (&start["sku_id"], &start["in_flight_actions"]),
        (&json!(SKU), &json!(0)),
        "{start}"
    );
    assert_eq!(world.post(&cancellation).await, answer, "the same delivery again");

    let closing = eventually("the closing receipt beside the archive", PATIENCE, || async {
        let keys = objects(world, &format!("{}/", tenant.account)).await;
        match keys.iter().find(|key| key.ends_with(".closing.json")) {
            Some(key) => Ok(String::from_utf8(object(world, key).await).unwrap()),
            None => Err(format!(
                "{keys:?}, ledger {:?}",
                world.ledger(&tenant.account).await.operations()
            )),
        }
    })
    .await;
    let receipt: Value = serde_json::from_str(&closing).unwrap();
    let path = receipt["archive_path"].as_str().unwrap().to_owned();
    let key = path
        .strip_prefix(&format!("s3://{}/", world.env.audit_bucket))
        .unwrap_or_else(|| panic!("{path}"));
    let archive = object(world, key).await;

    let ledger = world.ledger(&tenant.account).await;
    assert_eq!(ledger.lines.last(), Some(&closing));
    let expected = json!({
        "actions_completed": 1,
        "actions_failed": 3,
        "receipts_archived": ledger.lines.len() - 1,
        "archive_size_bytes": archive.len(),
        "archive_sha256": receipts::sha256_hex(&archive),
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(receipt[field], *value, "{field} of {receipt}");
    }
    (archive, closing)
}

/// `ggen verify-archive`, also of an archive with one byte changed and of another tenant's closing receipt.
async fn verify(world: &World, archive: &[u8], closing: &str) {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (good, closing) = (
        write("good.tar.gz", archive),
        write("closing.json", closing.as_bytes()),
    );
    let mut bytes = archive.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let tampered = write("tampered.tar.gz", &bytes);
    let key = world.env.auditor_pub.to_str().unwrap();

    let verified = world
        .ggen(&[
            "verify-archive",
            &good,
            "--public-key",
            key,
            "--closing",
            &closing,
        ])
        .await;
    assert!(verified.stdout.starts_with("VERIFIED"), "{verified:?}");
    assert!(verified.stdout.contains("nothing was cut off"), "{verified:?}");
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let refused = world
        .ggen(&["verify-archive", &tampered, "--public-key", key])
        .await;
    assert!(!refused.stdout.starts_with("VERIFIED"), "{refused:?}");
    assert_eq!(refused.code, Some(1), "{refused:?}");
}

async fn evidence_stays(world: &World, tenant: &Tenant, closing: &str) {
    let key = world.env.auditor_pub.to_str().unwrap();
    let exported = world
        .ggen(&[
            "export-receipts",
            "--account-id",
            &tenant.account,
            "--format",
            "jsonl",
            "--public-key",
            key,
        ])
        .await
        .ok();
    let lines: Vec<String> = exported.lines().map(str::to_owned).collect();
    let ledger = world.checked(&tenant.account, lines);
    let operations = ledger.operations();
    assert_eq!(ledger.lines.last().map(String::as_str), Some(closing));
    assert_eq!(operations[0], "entitlement_active");
    assert_eq!(
        operations[operations.len() - 2..],
        ["decommission_start", "decommission_complete"]
    );
    // Nine receipts of seven actions stand between them; their own order is checked with each.
    assert_eq!(operations.len(), 12, "{operations:?}");
    let array = world
        .ggen(&[
            "export-receipts",
            "--account-id",
            &tenant.account,
            "--format",
            "json",
        ])
        .await;
    assert_eq!(array.json(), Value::from(ledger.receipts));
    assert_eq!(
        world.handler_saw(&format!("slow-{}", tenant.account)).await,
        (0, 1),
        "never applied late"
    );
}

#[tokio::test]
async fn a_customer_who_comes_back_gets_a_new_queue_and_keeps_the_ledger() {
    let world = alongside().await;
    let tenant = world.tenant("comes-back").await;
    let answer = world
        .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    gone(&world, &tenant).await;

    let again = world
        .post(&Delivery::created(world.env, &tenant.account, SKU, PLAN))
        .await;
    assert_eq!(again.status, 200, "{again:?}");
    let second = world.provisioned(again.body).await;
    assert_ne!(second.queue, tenant.queue);
    let action_id = unique("after-return");
    world.send(&second, second.restart(&action_id)).await;
    world
        .settled(&tenant.account, &action_id, &["action_complete"])
        .await;
    assert_eq!(
        world.ledger(&tenant.account).await.operations(),
        [
            "entitlement_active",
            "decommission_start",
            "decommission_complete",
            "entitlement_active",
            "action_complete"
        ]
    );
}

/// As after a crash of the decommissioning behind the deletion of the mapping.
#[tokio::test]
async fn what_waits_when_the_governor_is_no_longer_fed_is_refused_on_record() {
    let world = alongside().await;
    let tenant = world.tenant("not-fed").await;
    let arn = world
        .queue_attribute(&tenant.queue_url, QueueAttributeName::QueueArn)
        .await;
    for mapping in world.mappings(&arn).await {
        let delete = world.lambda.delete_event_source_mapping();
        delete.set_uuid(mapping.uuid).send().await.unwrap();
    }
    let action_id = unique("waits");
    world.send(&tenant, tenant.restart(&action_id)).await;
    let message_id = world.send(&tenant, "no signal").await;
    let answer = world
        .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    gone(&world, &tenant).await;

    let ledger = world.ledger(&tenant.account).await;
    let mut refused: Vec<&str> = ledger
        .receipts
        .iter()
        .filter(|r| operation(r) == "action_refused" && r["code"] == "UNAVAILABLE")
        .filter_map(|r| r["action_id"].as_str())
        .collect();
    refused.sort_unstable();
    let mut sent = [action_id.as_str(), message_id.as_str()];
    sent.sort_unstable();
    assert_eq!(refused, sent);
    assert_eq!(ledger.operations().last(), Some(&"decommission_complete"));
}

/// An action whose governor is never heard of again ends when its time is over, on record, and is counted.
#[tokio::test]
async fn what_runs_when_a_tenant_leaves_ends_in_its_time() {
    let world = alongside().await;
    let tenant = world.tenant("leaves-running").await;
    let action = asked_for(&tenant, "left-running", Timestamp::now());
    let action_id = action.action_id.as_str().to_owned();
    abandoned(&world, &tenant, &[action], 0).await;
    let answer = world
        .post(&Delivery::cancelled(world.env, &tenant.account, SKU))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["in_flight_actions"], 1);
    gone(&world, &tenant).await;

    let ledger = world.ledger(&tenant.account).await;
    assert_eq!(
        ledger.operations(),
        [
            "entitlement_active",
            "decommission_start",
            "action_failed",
            "decommission_complete"
        ]
    );
    let failed = &ledger.receipts[2];
    assert_eq!(
        (
            &failed["action_id"],
            &failed["error_code"],
            &failed["is_recoverable"]
        ),
        (&json!(action_id), &json!("DECOMMISSIONED"), &json!(false)),
        "{failed}"
    );
    let complete = &ledger.receipts[3];
    assert_eq!(
        (&complete["actions_completed"], &complete["actions_failed"]),
        (&json!(0), &json!(1)),
        "{complete}"
    );
}

/// Each repeat orders the decommissioning again, so several runs of it race over one ledger.
#[tokio::test]
async fn a_cancellation_posted_many_times_at_once_leaves_one_archive() {
    let world = alongside().await;
    let tenant = world.tenant("cancelled-often").await;
    let cancellation = Delivery::cancelled(world.env, &tenant.account, SKU);
    let mut posting = JoinSet::new();
    for _ in 0..8 {
        let (world, cancellation) = (world.clone(), cancellation.clone());
        posting.spawn(async move { world.post(&cancellation).await });
    }
    let answers = posting.join_all().await;
    gone(&world, &tenant).await;
    world.drained(&world.env.decommission_queue_url).await;

    let ledger = world.ledger(&tenant.account).await;
    assert_eq!(
        ledger.operations(),
        [
            "entitlement_active",
            "decommission_start",
            "decommission_complete"
        ]
    );
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &ledger.lines[1]));
    }
    let bucket = &world.env.audit_bucket;
    let list = world
        .s3
        .list_object_versions()
        .bucket(bucket)
        .prefix(format!("{}/", tenant.account));
    let versions = list.send().await.unwrap().versions.unwrap_or_default();
    assert!(versions.len() >= 2, "{versions:?}");
    for version in versions {
        let (key, id) = (version.key.unwrap(), version.version_id.unwrap());
        let get = world
            .s3
            .get_object()
            .bucket(bucket)
            .key(&key)
            .version_id(id)
            .send()
            .await
            .unwrap();
        let bytes = get.body.collect().await.unwrap().to_vec();
        if key.ends_with(".closing.json") {
            assert_eq!(String::from_utf8(bytes).unwrap(), ledger.lines[2], "{key}");
        } else if key.ends_with(".closing.checkpoint") {
            let (end, _) = receipts::Checkpoint::open(&bytes, &world.keys).unwrap();
            let leaves: Vec<_> = ledger.lines.iter().map(receipts::merkle::leaf_hash).collect();
            assert_eq!(
                (end.size, end.root),
                (3, receipts::CompactRange::of(&leaves).root()),
                "{key}"
            );
        } else {
            assert_eq!(
                ledger.receipts[2]["archive_sha256"],
                receipts::sha256_hex(&bytes),
                "{key}"
            );
        }
    }
}

/// Waits until a tenant is decommissioned.
pub(crate) async fn gone(world: &World, tenant: &Tenant) {
    eventually("decommission_complete", PATIENCE, || async {
        let ledger = world.ledger(&tenant.account).await;
        match ledger.operations().last() {
            Some(&"decommission_complete") => Ok(()),
            _ => Err(format!("{:?}", ledger.operations())),
        }
    })
    .await;
    eventually("the queue to be gone", SOON, || async {
        if world.queue_exists(&tenant.queue).await {
            Err(tenant.queue.clone())
        } else {
            Ok(())
        }
    })
    .await;
}

/// Keys in the audit bucket.
pub(crate) async fn objects(world: &World, prefix: &str) -> Vec<String> {
    let list = world
        .s3
        .list_objects_v2()
        .bucket(&world.env.audit_bucket)
        .prefix(prefix);
    let found = list.send().await.unwrap().contents.unwrap_or_default();
    found.into_iter().filter_map(|object| object.key).collect()
}

/// An object of the audit bucket.
pub(crate) async fn object(world: &World, key: &str) -> Vec<u8> {
    let get = world.s3.get_object().bucket(&world.env.audit_bucket).key(key);
    get.send().await.unwrap().body.collect().await.unwrap().to_vec()
}
