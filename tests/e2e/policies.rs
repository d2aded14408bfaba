//! Policies: taking a new version, refusing a wrong one.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::webhooks::Delivery;
use crate::world::{PLAN, Ran, SYSTEM, World, alongside, operation, project, unique};

/// Policies of a SKU that only one test has.
struct OwnSku {
    sku: String,
    folder: TempDir,
}

impl OwnSku {
    fn new() -> Self {
        Self {
            sku: unique("sku"),
            folder: TempDir::new().unwrap(),
        }
    }

    /// The sample policy under this SKU, with other limits.
    fn policy(&self, version: &str, replicas: u32) -> PathBuf {
        let sample = project("policies/marketplace-sku-456/professional.yaml");
        let sample = std::fs::read_to_string(sample).unwrap();
        let changed = [
            ("sku_id: marketplace-sku-456", format!("sku_id: {}", self.sku)),
            ("version: 1.0.0", format!("version: {version}")),
            ("at_most: 10 }", format!("at_most: {replicas} }}")),
        ];
        let yaml = changed.iter().fold(sample, |yaml, (before, after)| {
            assert_eq!(yaml.matches(before).count(), 1, "{before}");
            yaml.replace(before, after)
        });
        self.write(&yaml)
    }

    fn write(&self, yaml: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{}.yaml", unique("policy")));
        std::fs::write(&path, yaml).unwrap();
        path
    }
}

async fn deploy(world: &World, policy: &std::path::Path) -> Ran {
    world
        .ggen(&["policy", "deploy", "--format", "json", policy.to_str().unwrap()])
        .await
}

/// The receipts an answer shows stand in the system's ledger.
async fn on_record(world: &World, answer: &Value, operations: &[&str]) {
    let shown = answer["receipts"].as_array().unwrap();
    let system = world.ledger(SYSTEM).await;
    let found: Vec<&str> = shown
        .iter()
        .map(|receipt| {
            let kept = system.find(&receipt["receipt_id"]);
            assert_eq!(kept, Some(receipt));
            operation(receipt)
        })
        .collect();
    assert_eq!(found, operations, "{answer}");
}

#[tokio::test]
async fn a_new_version_reaches_its_tenants() {
    let world = alongside().await;
    let own = OwnSku::new();
    let first = deploy(&world, &own.policy("1.0.0", 10)).await;
    assert_eq!(
        (first.code, &first.json()["outcome"]),
        (Some(0), &json!("upgraded")),
        "{first:?}"
    );
    on_record(&world, &first.json(), &["policy_deployed"]).await;
    let tenant = world.tenant_of("upgraded", &own.sku).await;
    assert_eq!(first.json()["policy_hash"], tenant.policy_hash.as_str());

    let replicas = json!({ "service": "web", "replicas": 15 });
    let denied = unique("denied");
    world
        .send(&tenant, tenant.signal(&denied, "scale-service", replicas.clone()))
        .await;
    let refused = world.settled(&tenant.account, &denied, &["action_refused"]).await;
    assert_eq!(
        (&refused[0]["code"], &refused[0]["rules"]),
        (&json!("DENIED"), &json!(["replicas-within-plan"]))
    );

    let next = own.policy("1.1.0", 20);
    let upgraded = deploy(&world, &next).await;
    assert_eq!(upgraded.code, Some(0), "{upgraded:?}");
    let answer = upgraded.json();
    on_record(&world, &answer, &["policy_deployed", "policy_upgraded"]).await;
    assert_eq!(
        (&answer["governors_updated"], &answer["governors_failed"]),
        (&json!(1), &json!(0))
    );
    let ledger = world.ledger(&tenant.account).await;
    let receipt = ledger.receipts.last().unwrap();
    let expected = json!({
        "operation": "policy_upgraded",
        "policy_version": "1.1.0",
        "previous_version": "1.0.0",
        "governors_updated": 1,
        "governors_failed": 0,
        "policy_hash": answer["policy_hash"],
        "compatibility_check": "compatible: 0 templates added, 1 changed, 2 unchanged",
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(receipt[field], *value, "{field} of {receipt}");
    }

    let stale = unique("stale");
    world
        .send(&tenant, tenant.signal(&stale, "scale-service", replicas.clone()))
        .await;
    let refused = world.settled(&tenant.account, &stale, &["action_refused"]).await;
    assert_eq!(refused[0]["code"], "POLICY_HASH_MISMATCH", "{}", refused[0]);

    let mut moved = tenant.clone();
    moved.policy_hash = answer["policy_hash"].as_str().unwrap().to_owned();
    let allowed = unique("allowed");
    world
        .send(&moved, moved.signal(&allowed, "scale-service", replicas))
        .await;
    let done = world
        .settled(&tenant.account, &allowed, &["action_complete"])
        .await;
    assert_eq!(done[0]["policy_hash"], moved.policy_hash.as_str(), "{}", done[0]);
    assert_eq!(world.handler_saw(&allowed).await, (1, 0));

    // Whoever subscribes now has it at once.
    let newcomer = world.tenant_of("newcomer", &own.sku).await;
    assert_eq!(newcomer.policy_hash, moved.policy_hash);

    let before = world.ledger(&tenant.account).await.lines;
    let again = deploy(&world, &next).await;
    assert_eq!(
        (again.code, &again.json()["outcome"]),
        (Some(0), &json!("unchanged")),
        "{again:?}"
    );
    on_record(&world, &again.json(), &["policy_upgrade_skipped"]).await;
    assert_eq!(world.ledger(&tenant.account).await.lines, before);
}

#[tokio::test]
async fn policies_that_are_refused_change_nothing() {
    let world = alongside().await;
    let own = OwnSku::new();
    let in_force = deploy(&world, &own.policy("2.0.0", 10)).await;
    assert_eq!(in_force.code, Some(0), "{in_force:?}");
    let good = std::fs::read_to_string(own.policy("3.0.0", 10)).unwrap();
    let cases = [
        ("not YAML", "sku_id: [".to_owned(), ""),
        (
            "an unknown field",
            format!("{good}\nbackdoor: true\n"),
            "backdoor",
        ),
        (
            "an alias of a provider that is misspelled",
            good.replace(
                "isolation:",
                "aliases: [{ provider: githb, plan_id: 435 }]\nisolation:",
            ),
            "\"githb\"",
        ),
        (
            "a lower version",
            std::fs::read_to_string(own.policy("1.9.9", 20)).unwrap(),
            "1.9.9",
        ),
        (
            "the same version with other rules",
            std::fs::read_to_string(own.policy("2.0.0", 20)).unwrap(),
            "2.0.0",
        ),
        (
            "an action taken away",
            good.replace("rotate-credentials", "rotate-keys"),
            "rotate-credentials",
        ),
    ];
    for (name, yaml, says) in cases {
        let refused = deploy(&world, &own.write(&yaml)).await;
        assert_eq!(refused.code, Some(1), "{name}: {refused:?}");
        let answer = refused.json();
        assert_eq!(answer["outcome"], "refused", "{name}: {answer}");
        on_record(&world, &answer, &["policy_validation_failed"]).await;
        let reason = answer["receipts"][0]["reason"].as_str().unwrap();
        assert!(!reason.is_empty() && reason.contains(says), "{name}: {reason:?}");
    }
    let answer = world.tenant_of("unharmed", &own.sku).await;
    assert_eq!(
        in_force.json()["policy_hash"],
        answer.policy_hash.as_str(),
        "{PLAN}"
    );
}

/// Several versions of one plan, deployed at the same moment: in the end every tenant has the one in force.
#[tokio::test]
async fn versions_that_are_deployed_at_once() {
    let world = alongside().await;
    let own = OwnSku::new();
    let first = deploy(&world, &own.policy("1.0.0", 10)).await;
    assert_eq!(first.code, Some(0), "{first:?}");
    let created = Delivery::created(world.env, &unique("at-once"), &own.sku, PLAN);
    let tenant = world.provisioned(world.post(&created).await.body).await;
    let versions = ["1.1.0", "1.2.0", "1.3.0", "1.4.0"].map(|version| own.policy(version, 10));
    let [a, b, c, d] = &versions;
    let _ = tokio::join!(
        deploy(&world, a),
        deploy(&world, b),
        deploy(&world, c),
        deploy(&world, d)
    );
    // Whatever came of the others: the last version is newer than each of them.
    let last = deploy(&world, d).await;
    assert_eq!(last.code, Some(0), "{last:?}");
    let shown = world
        .ggen(&[
            "tenants",
            "show",
            "--account-id",
            &tenant.account,
            "--format",
            "json",
        ])
        .await
        .json();
    let pinned = &shown["entitlements"][0]["policy"]["hash"];
    assert_eq!(*pinned, last.json()["policy_hash"], "{shown}");
}

/// A marketplace's plan id means one plan, until that plan's own policy gives it up.
#[tokio::test]
async fn an_alias_is_not_taken_away() {
    let world = alongside().await;
    let (one, other) = (OwnSku::new(), OwnSku::new());
    let plan_id = uuid::Uuid::new_v4().as_u64_pair().0 >> 10;
    let aliased = |own: &OwnSku, version: &str, alias: bool| {
        let yaml = std::fs::read_to_string(own.policy(version, 10)).unwrap();
        let aliases = format!("aliases:\n  - {{ provider: github, plan_id: \"{plan_id}\" }}\n");
        own.write(&if alias { yaml + &aliases } else { yaml })
    };
    for (own, version, alias, code) in [
        (&one, "1.0.0", true, 0),
        (&other, "1.0.0", true, 1),
        (&one, "1.1.0", true, 0),
        (&one, "1.2.0", false, 0),
        (&other, "1.0.0", true, 0),
        (&one, "1.3.0", true, 1),
    ] {
        let ran = deploy(&world, &aliased(own, version, alias)).await;
        assert_eq!(ran.code, Some(code), "{version} {alias}: {ran:?}");
        if code == 1 {
            let reason = ran.json()["reason"].as_str().unwrap().to_owned();
            assert!(reason.contains("without the alias first"), "{reason}");
        }
    }
}

/// A product whose names are too long for what its policy would be stored under has none.
#[tokio::test]
async fn names_that_no_policy_can_have_are_refused() {
    let world = alongside().await;
    let delivery = Delivery::created(world.env, &unique("long"), &"🦀".repeat(128), "p");
    let refused = world.post(&delivery).await;
    assert_eq!(refused.status, 422, "{refused:?}");
}
