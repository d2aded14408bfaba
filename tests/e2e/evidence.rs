//! What an auditor does with a live ledger, and what shows when somebody with every right rewrites it.

use aws::spool::Spool;
use aws::store::{Store, StoreError};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_s3::types::ObjectLockMode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::transaction::{Account, Keys, Plan};
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::{Signer as _, SigningKey};
use receipts::receipt::{Draft, Payload};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::life::{gone, object, objects};
use crate::webhooks::Delivery;
use crate::world::{
    PATIENCE, SKU, SOON, SYSTEM, Tenant, World, alone, alongside, eventually, partition_of, unique,
};

/// Files of a test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

/// A tenant that had `count` actions done.
async fn busy(world: &World, name: &str, count: usize) -> Tenant {
    let tenant = world.tenant(name).await;
    act(world, &tenant, count).await;
    tenant
}

async fn act(world: &World, tenant: &Tenant, count: usize) {
    let ids: Vec<String> = (0..count).map(|_| unique("act")).collect();
    let signals: Vec<Value> = ids.iter().map(|id| tenant.restart(id)).collect();
    for batch in signals.chunks(10) {
        world.send_batch(tenant, batch).await;
    }
    for id in &ids {
        world.settled(&tenant.account, id, &["action_complete"]).await;
    }
}

/// `ggen audit` of an account: exit code and answer.
async fn audit(world: &World, account: &str) -> (Option<i32>, Value) {
    let ran = world
        .ggen(&["audit", "--account-id", account, "--format", "json"])
        .await;
    assert!(!ran.stdout.is_empty(), "{ran:?}");
    (ran.code, ran.json())
}

#[track_caller]
fn check_found((code, answer): (Option<i32>, Value), expected: &str) {
    let told = answer.to_string();
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(expected), "{told} does not say {expected:?}");
}

async fn issue(world: &World, account: &str, more: &[&str]) -> crate::world::Ran {
    let mut arguments = vec!["checkpoint", "--account-id", account];
    arguments.extend(more);
    world.ggen(&arguments).await
}

#[tokio::test]
async fn receipts_are_proved_and_checkpoints_continue_each_other() {
    let world = alongside().await;
    let files = Files::new();
    let tenant = busy(&world, "proved", 3).await;
    let account = tenant.account.as_str();
    let entitled: Value = serde_json::from_str(&tenant.line).unwrap();
    let id = entitled["receipt_id"].as_str().unwrap();

    // Not covered yet: no proof, and the receipt verifies by itself.
    let early = world.ggen(&["prove", "--receipt-id", id]).await;
    assert_eq!(early.code, Some(2), "{early:?}");
    assert!(early.stderr.contains("no checkpoint covers receipt"), "{early:?}");
    let alone = world
        .ggen(&["verify-receipt", "--receipt-id", id, "--account-id", account])
        .await;
    assert!(
        alone.stderr.contains("no checkpoint covers the receipt yet"),
        "{alone:?}"
    );
    assert!(alone.ok().starts_with("VERIFIED"));

    let first = issue(&world, account, &[]).await.ok();
    let size = world.ledger(account).await.lines.len();
    assert!(
        first.contains(&format!("/receipts/{account}\n{size}\n")),
        "{first}"
    );
    assert_eq!(
        issue(&world, account, &[]).await.ok(),
        first,
        "nothing new to sign"
    );
    let first = files.write("first", &first);

    let proof = world.ggen(&["prove", "--receipt-id", id]).await.ok();
    assert!(proof.starts_with("c2sp.org/tlog-proof@v1\nindex 0\n"), "{proof}");
    let proof = files.write("proof", &proof);
    let receipt = files.write("receipt.json", &tenant.line);
    let key = world.env.auditor_pub.to_str().unwrap();
    let verify = ["verify-receipt", "--receipt", &receipt, "--public-key", key];
    let proved = world
        .ggen(&[&verify[..], &["--proof", &proof]].concat())
        .await
        .ok();
    assert!(proved.contains(&format!("one of {size} receipts")), "{proved}");
    let (checkpoint, copy) = (files.path("checkpoint"), files.path("copy.json"));
    let more = [
        "--format",
        "json",
        "--checkpoint",
        &checkpoint,
        "--receipt",
        &copy,
    ];
    let json = world
        .ggen(&[&["prove", "--receipt-id", id, "--account-id", account][..], &more].concat())
        .await
        .ok();
    assert_eq!(
        std::fs::read_to_string(&copy).unwrap(),
        format!("{}\n", tenant.line)
    );
    let json = files.write("proof.json", &json);
    let with = ["--proof", &json, "--checkpoint", &checkpoint];
    world.ggen(&[&verify[..], &with].concat()).await.ok();
    let live = world.ggen(&["verify-receipt", "--receipt-id", id]).await.ok();
    assert!(live.contains("covered by"), "{live}");

    act(&world, &tenant, 4).await;
    let second = issue(&world, account, &["--since", &first]).await;
    assert!(
        second
            .stderr
            .contains(&format!("CONSISTENT: the first {size} of")),
        "{second:?}"
    );
    let second = files.write("second", &second.ok());
    let back = issue(&world, account, &["--since", &second, "--format", "json"]).await;
    assert_eq!(back.json()["continues"]["hashes"], json!([]), "{back:?}");
    // An auditor who kept another ledger's checkpoint, or one that was never signed.
    let other = busy(&world, "other", 1).await;
    let foreign = issue(&world, &other.account, &["--since", &first]).await;
    assert_eq!(foreign.code, Some(1), "{foreign:?}");
    let text = std::fs::read_to_string(&first).unwrap();
    let altered = files.write("altered", &text.replacen(&format!("\n{size}\n"), "\n1\n", 1));
    let altered = issue(&world, account, &["--since", &altered]).await;
    assert_eq!(altered.code, Some(1), "{altered:?}");
    assert!(
        altered.stdout.contains("the older checkpoint does not hold"),
        "{altered:?}"
    );

    let (code, audited) = audit(&world, account).await;
    assert_eq!(code, Some(0), "{audited}");
    assert_eq!(
        (&audited["checkpoints"], &audited["actions_finished"]),
        (&json!(2), &json!(7))
    );
    let nobody = world.ggen(&["audit", "--account-id", &unique("nobody")]).await;
    assert_eq!(nobody.code, Some(2), "{nobody:?}");
    locked(&world, &format!("_log/{account}/checkpoints/")).await;
}

/// Evidence is under retention that not even an administrator can shorten.
pub(crate) async fn locked(world: &World, prefix: &str) {
    let keys = objects(world, prefix).await;
    assert!(!keys.is_empty(), "{prefix}");
    for key in keys {
        let get = world.s3.get_object_retention().bucket(&world.env.audit_bucket);
        let found = get
            .key(&key)
            .send()
            .await
            .unwrap_or_else(|e| panic!("{key}: {e:?}"));
        let retention = found.retention.unwrap();
        assert_eq!(
            retention.mode.unwrap().as_str(),
            ObjectLockMode::Compliance.as_str(),
            "{key}"
        );
        let head = world.s3.head_object().bucket(&world.env.audit_bucket).key(&key);
        let version = head.send().await.unwrap().version_id.unwrap();
        let delete = world.s3.delete_object().bucket(&world.env.audit_bucket).key(&key);
        assert!(
            delete.version_id(version).send().await.is_err(),
            "{key} could be deleted"
        );
    }
}

/// Its policy is longer than a part of an upload, and no compression helps.
#[tokio::test]
async fn a_large_archive_goes_up_in_parts_under_lock() {
    let world = alongside().await;
    let tenant = world.tenant("large").await;
    let account = tenant.account.as_str();
    let policy: Vec<u8> = (0..(9_u32 << 20) / 32)
        .flat_map(|n| receipts::merkle::leaf_hash(n.to_be_bytes()))
        .collect();
    let hash = receipts::sha256_hex(&policy);
    let put = world.s3.put_object().bucket(&world.env.registry_bucket);
    let put = put.key(format!("enforcers/{hash}.json")).body(policy.into());
    put.send().await.unwrap();
    let store = Store::new(&aws::clients::load().await, world.stack());
    let signer = receipts::Signer::from_pem(&world.signing_key().await).unwrap();
    let draft = Draft {
        receipt_id: uuid::Uuid::now_v7(),
        account_id: account.to_owned(),
        occurred_at: jiff::Timestamp::now(),
        duration_ms: 0,
        policy_hash: Some(hash),
        payload: Payload::WebhookIgnored {
            provider: None,
            delivery_id: None,
            reason: "a policy that is long".to_owned(),
        },
    };
    let plan = |_: &Account, _| Ok::<_, StoreError>((Plan::append(draft.clone()), ()));
    store
        .transact(&signer, &partition_of(account), &Keys::default(), None, plan)
        .await
        .unwrap();

    let cancelled = world.post(&Delivery::cancelled(world.env, account, SKU)).await;
    assert_eq!(cancelled.status, 200, "{cancelled:?}");
    gone(&world, &tenant).await;
    let beside = eventually("the final checkpoint beside the archive", PATIENCE, || async {
        let keys = objects(&world, &format!("{account}/")).await;
        if keys.len() == 3 {
            Ok(keys)
        } else {
            Err(format!("{keys:?}"))
        }
    })
    .await;
    let [checkpoint, closing, archive] = <[String; 3]>::try_from(beside).unwrap();
    let head = world
        .s3
        .head_object()
        .bucket(&world.env.audit_bucket)
        .key(&archive);
    let head = head.send().await.unwrap();
    assert!(head.content_length.unwrap() > 8 << 20, "{head:?}");
    let tag = head.e_tag.unwrap();
    assert!(
        tag.trim_matches('"').ends_with("-2"),
        "{tag} is not of an upload in two parts"
    );
    let receipt = world.ledger(account).await.receipts.pop().unwrap();
    assert_eq!(
        receipt["archive_version"].as_str(),
        head.version_id.as_deref(),
        "{receipt}"
    );

    let files = Files::new();
    let mut paths = Vec::new();
    for key in [&archive, &closing, &checkpoint] {
        let path = files.path(&key.replace('/', "-"));
        std::fs::write(&path, object(&world, key).await).unwrap();
        paths.push(path);
    }
    let verified = world
        .ggen(&[
            "verify-archive",
            &paths[0],
            "--closing",
            &paths[1],
            "--closing-checkpoint",
            &paths[2],
        ])
        .await
        .ok();
    assert!(verified.contains("signed for in its place"), "{verified}");
    // The local cloud passes over the lock of an upload in parts; that of a small archive is looked at in `life`.
    locked(&world, closing.strip_suffix("json").unwrap()).await;
}

#[tokio::test]
async fn exports_have_ranges_and_tables() {
    let world = alongside().await;
    let tenant = busy(&world, "exported", 3).await;
    let ledger = world.ledger(&tenant.account).await;
    let export = ["export-receipts", "--account-id", &tenant.account];
    let key = world.env.auditor_pub.to_str().unwrap();
    let from = ledger.receipts[1]["timestamp"].as_str().unwrap();
    let expected: Vec<&String> = ledger
        .lines
        .iter()
        .zip(&ledger.receipts)
        .filter(|(_, receipt)| receipt["timestamp"].as_str().unwrap() >= from)
        .map(|(line, _)| line)
        .collect();
    for more in [&[][..], &["--public-key", key]] {
        let found = world
            .ggen(&[&export[..], &["--from", from], more].concat())
            .await
            .ok();
        assert_eq!(found.lines().collect::<Vec<_>>(), expected);
        let none = [&export[..], &["--to", "2020-01-01", "--format", "json"], more].concat();
        let none = world.ggen(&none).await;
        assert!(none.stderr.contains("has no receipts"), "{none:?}");
        assert_eq!(none.ok(), "[]\n");
    }
    let table = world
        .ggen(&[&export[..], &["--format", "csv"]].concat())
        .await
        .ok();
    assert_eq!(table.matches("\r\n").count(), ledger.lines.len() + 1, "{table}");
    assert!(table.starts_with("seq,"), "{table}");
}

#[tokio::test]
async fn an_overwritten_receipt_is_found() {
    let world = alongside().await;
    let tenant = busy(&world, "overwritten", 2).await;
    let account = tenant.account.as_str();
    assert_eq!(audit(&world, account).await.0, Some(0));
    let good = world.ledger(account).await.lines;

    // With an administrator's rights: the action has another code.
    let at = 1;
    let forged = good[at].replacen("\"code\":\"COMPLETE\"", "\"code\":\"DONE\"", 1);
    assert_ne!(forged, good[at]);
    overwrite(&world, account, at, &forged).await;
    let found = audit(&world, account).await;
    assert_eq!(found.1["place"], json!(at), "{}", found.1);
    check_found(found, "signature");

    // By somebody who has the signing key too: the chain tells.
    overwrite(&world, account, at, &resigned(&world, &good[at]).await).await;
    let found = audit(&world, account).await;
    assert_eq!(found.1["place"], json!(at + 1), "{}", found.1);
    assert_eq!(
        found.1["rule"], "prev_hash is the predecessor's hash",
        "{}",
        found.1
    );
    assert!(found.1["expected"] != found.1["found"], "{}", found.1);
    assert_eq!(found.0, Some(1));

    // The last one, which no other receipt names: the head does.
    overwrite(&world, account, at, &good[at]).await;
    let last = good.len() - 1;
    overwrite(&world, account, last, &resigned(&world, &good[last]).await).await;
    check_found(audit(&world, account).await, "its head says");
    overwrite(&world, account, last, &good[last]).await;
    let (code, audited) = audit(&world, account).await;
    assert_eq!(
        (code, &audited["actions_finished"]),
        (Some(0), &json!(2)),
        "{audited}"
    );
}

/// A receipt signed by the stack's own key, as a thief of it could.
async fn resigned(world: &World, line: &str) -> String {
    let mut receipt: Value = serde_json::from_str(line).unwrap();
    receipt["code"] = json!("DONE");
    receipt.as_object_mut().unwrap().remove("signature");
    let signed = receipts::jcs(&receipt).unwrap();
    let key = SigningKey::from_pkcs8_pem(&world.signing_key().await).unwrap();
    receipt["signature"] = json!(STANDARD.encode(key.sign(signed.as_bytes()).to_bytes()));
    receipts::jcs(&receipt).unwrap()
}

async fn overwrite(world: &World, account: &str, seq: usize, line: &str) {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let update = world
        .dynamodb
        .update_item()
        .table_name(&world.env.receipts_table)
        .key("account_id", text(account))
        .key("seq", text(&format!("{seq:020}")))
        .update_expression("SET line = :line")
        .expression_attribute_values(":line", text(line));
    update.send().await.unwrap();
}

#[tokio::test]
async fn a_table_that_was_put_back_is_a_visible_fork() {
    let world = alongside().await;
    let tenant = busy(&world, "rolled-back", 2).await;
    let account = tenant.account.as_str();
    let before = world.item(account, "HEAD").await;
    let kept = world.ledger(account).await.lines.len();
    act(&world, &tenant, 2).await;
    let signed = issue(&world, account, &[]).await.ok();
    let size = world.ledger(account).await.lines.len();

    // Hidden as well as it can be: a lock keeps the version, not its name.
    for key in objects(&world, &format!("_log/{account}/checkpoints/")).await {
        let delete = world.s3.delete_object().bucket(&world.env.audit_bucket);
        delete.key(key).send().await.unwrap();
    }
    let true_head = world.item(account, "HEAD").await;
    let true_lines = world.ledger(account).await.lines;

    // Restored from a backup: the head and the receipts of before.
    cut(&world, account, kept..size).await;
    world.put_item(before).await;
    check_found(audit(&world, account).await, "it was rolled back");
    let refused = issue(&world, account, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stdout.contains(&size.to_string()), "{refused:?}");

    // It grows on, past what was signed: other receipts than those.
    act(&world, &tenant, 3).await;
    check_found(audit(&world, account).await, "the ledger was rewritten");
    let refused = issue(&world, account, &[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stdout.contains("the stack signs no checkpoint"),
        "{refused:?}"
    );
    // What was signed before still stands where nobody can take it away.
    let list = world.s3.list_object_versions().bucket(&world.env.audit_bucket);
    let list = list.prefix(format!("_log/{account}/checkpoints/"));
    let versions = list.send().await.unwrap().versions.unwrap();
    assert_eq!(versions.len(), 1, "{versions:?}");
    let get = world.s3.get_object().bucket(&world.env.audit_bucket);
    let get = get
        .key(versions[0].key().unwrap())
        .version_id(versions[0].version_id().unwrap());
    let bytes = get.send().await.unwrap().body.collect().await.unwrap();
    assert_eq!(bytes.to_vec(), signed.as_bytes());

    // Put right again, for those who look at every ledger: an update makes the item where it is not.
    cut(&world, account, kept..world.ledger(account).await.lines.len()).await;
    for (seq, line) in true_lines.iter().enumerate().skip(kept) {
        overwrite(&world, account, seq, line).await;
    }
    world.put_item(true_head).await;
    assert_eq!(audit(&world, account).await.0, Some(0));
}

/// Takes receipts out of the table.
async fn cut(world: &World, account: &str, places: std::ops::Range<usize>) {
    for seq in places {
        let delete = world.dynamodb.delete_item().table_name(&world.env.receipts_table);
        let delete = delete.key("account_id", AttributeValue::S(account.to_owned()));
        let delete = delete.key("seq", AttributeValue::S(format!("{seq:020}")));
        delete.send().await.unwrap();
    }
}

#[tokio::test]
async fn the_daily_run_signs_for_every_ledger() {
    alone(|world| async move {
        let tenants = [busy(&world, "daily", 1).await, busy(&world, "daily", 2).await];
        let report = world.invoke(&world.env.checkpoint, &json!({ "all": true })).await;
        assert_eq!(report["failed"], json!([]), "{report}");
        assert!(report["issued"].as_u64().unwrap() >= 3, "{report}");
        for tenant in &tenants {
            let (code, audited) = audit(&world, &tenant.account).await;
            assert_eq!(code, Some(0), "{audited}");
            assert_eq!(audited["checkpointed"], audited["receipts"], "{audited}");
        }
        let again = world.invoke(&world.env.checkpoint, &json!({ "all": true })).await;
        assert_eq!(
            (&again["issued"], &again["failed"]),
            (&json!(0), &json!([])),
            "{again}"
        );
        let system = world.ggen(&["audit", "--system", "--format", "json"]).await;
        assert_eq!(system.code, Some(0), "{system:?}");
    })
    .await;
}

#[tokio::test]
async fn the_signing_key_passes_on_and_a_revoked_one_fails() {
    alone(|world| async move {
        let files = Files::new();
        let original = world.signing_key().await;
        let first = receipts::Signer::from_pem(&original).unwrap();
        let rotate = async |name: &str| {
            let public = files.path(name);
            let ran = world
                .ggen(&["keys", "rotate", "--public", &public, "--format", "json"])
                .await;
            assert_eq!(ran.code, Some(0), "{ran:?}");
            (ran.json(), public)
        };
        let (to_second, second) = rotate("second.pub").await;
        assert_eq!(to_second["previous_key_id"], first.key_id());
        // Every run of ggen reads the secret, so the next change is signed by the new key.
        let changed = world.switches(&["rollout_tier=1"]).await;
        let system = world.ledger(SYSTEM).await;
        let receipt = system.find(&changed["receipt_id"]).unwrap();
        assert_eq!(receipt["key_id"], to_second["key_id"], "{receipt}");
        for key in [world.env.auditor_pub.to_str().unwrap(), &second] {
            let audited = world.ggen(&["audit", "--system", "--public-key", key]).await;
            assert_eq!(audited.code, Some(0), "{audited:?}");
        }
        // What waited in the spool under a key that health has not seen yet is appended all the same.
        let tenant = world.tenant("spooled").await;
        let spool = Spool::new(world.s3.clone(), world.env.audit_bucket.clone());
        let draft = Draft {
            receipt_id: uuid::Uuid::now_v7(),
            account_id: tenant.account.clone(),
            occurred_at: jiff::Timestamp::now(),
            duration_ms: 0,
            policy_hash: None,
            payload: Payload::ActionRefused {
                action_id: unique("refused"),
                template: "restart-service".to_owned(),
                code: "UNAVAILABLE".to_owned(),
                detail: None,
                rules: Vec::new(),
            },
        };
        let by = receipts::Signer::from_pem(&world.signing_key().await).unwrap();
        assert_eq!(by.key_id(), to_second["key_id"]);
        spool.keep(&draft, &by).await.unwrap();
        world.probe().await;
        let ledger = world.ledger(&tenant.account).await;
        let appended = ledger.find(&json!(draft.receipt_id)).unwrap();
        let occurred_at: jiff::Timestamp = appended["occurred_at"].as_str().unwrap().parse().unwrap();
        assert_eq!(occurred_at.as_millisecond(), draft.occurred_at.as_millisecond());

        let (_, third) = rotate("third.pub").await;
        let revoke = [
            "keys",
            "revoke",
            "--key-id",
            to_second["key_id"].as_str().unwrap(),
        ];
        let revoked = world
            .ggen(&[&revoke[..], &["--reason", "lost on a train"]].concat())
            .await;
        assert_eq!(revoked.code, Some(0), "{revoked:?}");

        // Its receipt holds in its place, which a checkpoint by another key proves, and not by itself.
        let id = receipt["receipt_id"].as_str().unwrap();
        let trail = files.write("keys.jsonl", &world.ggen(&["keys", "trail"]).await.ok());
        let file = files.write("receipt.json", &receipts::jcs(receipt).unwrap());
        let verify = [
            "verify-receipt",
            "--receipt",
            &file,
            "--key-trail",
            &trail,
            "--public-key",
            &third,
        ];
        let refused = world.ggen(&verify).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stdout.contains("on: lost on a train"), "{refused:?}");
        let signed = eventually("a checkpoint of the system's ledger", SOON, || async {
            let ran = world.ggen(&["checkpoint", "--system"]).await;
            if ran.code == Some(0) {
                Ok(ran.stdout)
            } else {
                Err(format!("{ran:?}"))
            }
        })
        .await;
        assert!(signed.contains("/receipts/_system\n"), "{signed}");
        let proof = files.write("proof", &world.ggen(&["prove", "--receipt-id", id]).await.ok());
        world
            .ggen(&[&verify[..], &["--proof", &proof]].concat())
            .await
            .ok();
        world
            .ggen(&["audit", "--system", "--public-key", &third])
            .await
            .ok();
        let own = ["keys", "revoke", "--key-id", "0123456789abcdef", "--reason", "r"];
        let unknown = world.ggen(&own).await;
        assert_eq!(unknown.code, Some(2), "{unknown:?}");

        // The other tests go on with the first key, as functions that run still have it.
        world.put_signing_key(&original).await;
        world.switches(&["rollout_tier=2"]).await;
        world.ggen(&["audit", "--system"]).await.ok();
        locked(&world, "_keys/").await;
    })
    .await;
}

/// An item planted behind the head lets nothing be put on record: the first outcome that meets it is escalated at once, no handler
/// is called any more, and audit and sweep say so. Once it is gone all goes on.
#[tokio::test]
async fn a_planted_item_is_seen_and_stops_the_tenant() {
    alone(|world| async move {
        let tenant = world.tenant("planted").await;
        let account = tenant.account.as_str();
        let seq = AttributeValue::S(format!("{:020}", 1));
        let key = [
            ("account_id".to_owned(), AttributeValue::S(account.to_owned())),
            ("seq".to_owned(), seq),
        ];
        let put = world.dynamodb.put_item().table_name(&world.env.receipts_table);
        let put = put
            .set_item(Some(key.clone().into()))
            .item("line", AttributeValue::S("{}".to_owned()));
        put.send().await.unwrap();
        check_found(audit(&world, account).await, "an item stands at place 1");

        let (met, later) = (unique("met"), unique("later"));
        world.send(&tenant, tenant.restart(&met)).await;
        let escalated = eventually("the escalation", PATIENCE, || async {
            let list = ["escalations", "--format", "json", "--account-id", account];
            let listed = world.ggen(&list).await.json();
            match listed["escalations"].as_array().unwrap().as_slice() {
                [one] => Ok(one.clone()),
                none => Err(format!("{none:?}")),
            }
        })
        .await;
        assert_eq!(
            (&escalated["action_id"], &escalated["error_code"]),
            (&json!(met), &json!("LEDGER_BLOCKED"))
        );
        assert_eq!(world.handler_saw(&met).await, (1, 0));
        world.drained(&tenant.queue_url).await;

        // The governor gives back what it is brought, and calls nobody.
        let arn = world
            .queue_attribute(
                &tenant.queue_url,
                aws_sdk_sqs::types::QueueAttributeName::QueueArn,
            )
            .await;
        let brought = json!({ "Records": [{
            "messageId": "m-1", "receiptHandle": "", "body": tenant.restart(&later).to_string(),
            "attributes": { "ApproximateReceiveCount": "1" }, "messageAttributes": {},
            "eventSource": "aws:sqs", "eventSourceARN": arn, "awsRegion": "us-east-1",
        }] });
        let answer = world.invoke(&world.env.governor, &brought).await;
        assert_eq!(
            answer["batchItemFailures"],
            json!([{ "itemIdentifier": "m-1" }]),
            "{answer}"
        );
        assert_eq!(world.handler_saw(&later).await, (0, 0));
        let swept = sweep(&world).await;
        let blocked = |swept: &Value| swept["blocked"].as_array().unwrap().contains(&json!(account));
        assert!(blocked(&swept), "{swept}");
        check_found(audit(&world, account).await, "an item stands at place 1");
        assert_eq!(
            world.stored(account).await.tenant.unwrap().ledger_blocked,
            Some(1)
        );

        let delete = world.dynamodb.delete_item().table_name(&world.env.receipts_table);
        delete.set_key(Some(key.into())).send().await.unwrap();
        let swept = sweep(&world).await;
        assert!(!blocked(&swept), "{swept}");
        world.settled(account, &met, &["action_failed"]).await;
        let resolve = ["resolve", &met, "--account-id", account, "--who", "end-to-end"];
        world
            .ggen(&[&resolve[..], &["--note", "removed"]].concat())
            .await
            .ok();
        world.send(&tenant, tenant.restart(&later)).await;
        world.settled(account, &later, &["action_complete"]).await;
        assert_eq!(world.handler_saw(&later).await, (1, 0));
        let (code, audited) = audit(&world, account).await;
        assert_eq!(code, Some(0), "{audited}");
    })
    .await;
}

/// A sweep of everything, beside one probe.
async fn sweep(world: &World) -> Value {
    let event = json!({ "probes": 1, "sweep": "everything" });
    eventually("a round that sweeps", SOON, || async {
        let mut report = world.invoke(&world.env.health, &event).await;
        match report.get("sweep") {
            Some(_) => Ok(report["sweep"].take()),
            None => Err(report.to_string()),
        }
    })
    .await
}
