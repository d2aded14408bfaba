//! The HTTP front door: producers ask for actions, and are told how they stand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_lambda::types::{Environment, FunctionCode, Runtime};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::account::AccountId;
use domain::names::{SPOOL_PREFIX, key_segment};
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::signature::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::life::{gone, object, objects};
use crate::webhooks::Delivery;
use crate::world::{PATIENCE, PLAN, SKU, SYSTEM, World, alone, alongside, eventually, unique};

/// What was answered.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    status: u16,
    content_type: String,
    retry_after: Option<u64>,
    location: Option<String>,
    allow: Option<String>,
    text: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A request, ready to be made any number of times.
#[derive(Clone)]
struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Request {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn at(mut self, method: &'static str, path: &str) -> Self {
        (self.method, self.path) = (method, path.to_owned());
        self
    }
}

/// Somebody who asks for a tenant's actions.
struct Producer<'w> {
    world: &'w World,
    account: String,
    secret: Secret,
}

impl World {
    /// A producer with the secret of an account, derived from what the stack keeps.
    fn producer(&self, account: &str) -> Producer<'_> {
        let master = Secret::standard(&self.env.producer_secret).unwrap();
        let secret = master.of_producer(&AccountId::parse(account).unwrap());
        Producer {
            world: self,
            account: account.to_owned(),
            secret: secret.unwrap(),
        }
    }

    async fn make(&self, request: &Request) -> Answer {
        let url = format!("{}{}", self.env.api_url, request.path);
        let mut made = self.http.request(request.method.parse().unwrap(), url);
        for (name, value) in &request.headers {
            made = made.header(*name, value);
        }
        if !request.body.is_empty() {
            made = made
                .header("content-type", "application/json")
                .body(request.body.clone());
        }
        let answer = made.send().await.unwrap();
        let header = |name| answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        Answer {
            status: answer.status().as_u16(),
            content_type: header("content-type").unwrap_or_default(),
            retry_after: header("retry-after").map(|seconds| seconds.parse().unwrap()),
            location: header("location"),
            allow: header("allow"),
            text: answer.text().await.unwrap(),
        }
    }
}

/// A body that asks for an action that succeeds.
fn restart() -> Value {
    json!({ "template": "restart-service", "parameters": { "service": "web" } })
}

impl Producer<'_> {
    fn request(&self, method: &'static str, path: &str, id: &str, body: Vec<u8>, at: Timestamp) -> Request {
        Request {
            method,
            path: format!("/tenants/{}/{path}", key_segment(&self.account)),
            headers: vec![
                (WEBHOOK_SIGNATURE, sign_standard(&self.secret, id, at, &body)),
                (WEBHOOK_TIMESTAMP, at.as_second().to_string()),
                (WEBHOOK_ID, id.to_owned()),
            ],
            body,
        }
    }

    fn asking(&self, id: &str, body: &Value) -> Request {
        self.request(
            "POST",
            "signals",
            id,
            body.to_string().into_bytes(),
            Timestamp::now(),
        )
    }

    fn looking(&self, action_id: &str) -> Request {
        let path = format!("actions/{action_id}");
        self.request("GET", &path, action_id, Vec::new(), Timestamp::now())
    }

    async fn ask(&self, id: &str, body: &Value) -> Answer {
        self.world.make(&self.asking(id, body)).await
    }

    async fn look(&self, action_id: &str) -> Answer {
        self.world.make(&self.looking(action_id)).await
    }

    /// Asks, and is let in.
    async fn accepted(&self, id: &str, body: &Value) -> Value {
        let answer = self.ask(id, body).await;
        assert_eq!(answer.status, 202, "{id}: {answer:?}");
        let said = answer.json();
        let action_id = said["action_id"].as_str().unwrap();
        assert_eq!(said["state"], "pending", "{answer:?}");
        assert_eq!(
            answer.location,
            Some(format!("actions/{action_id}")),
            "{answer:?}"
        );
        said
    }

    /// Waits until an action stands so, and gives what is told of it: its receipts are those of the ledger, byte for byte.
    async fn stands(&self, action_id: &str, state: &str) -> Value {
        let answer = eventually(&format!("{action_id} to be {state}"), PATIENCE, || async {
            let answer = self.look(action_id).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let told = answer.json();
            let receipts = told["receipts"].as_array().unwrap().len();
            let all = receipts == told["receipt_ids"].as_array().unwrap().len();
            if told["state"] == state && all {
                Ok(answer)
            } else {
                Err(answer.text)
            }
        })
        .await;
        let told = answer.json();
        assert_eq!(told["action_id"], action_id, "{told}");
        let ledger = self.world.ledger(&self.account).await;
        for (receipt, id) in told["receipts"]
            .as_array()
            .unwrap()
            .iter()
            .zip(told["receipt_ids"].as_array().unwrap())
        {
            assert_eq!(ledger.find(id), Some(receipt), "{told}");
            let line = ledger
                .lines
                .iter()
                .find(|line| line.contains(id.as_str().unwrap()));
            assert!(answer.text.contains(line.unwrap()), "{answer:?}");
        }
        told
    }

    /// Asks, and is refused: the answer says why, the ledger has one receipt of it however often it is asked, and the id
    /// stays free.
    async fn refused(&self, id: &str, body: &Value, status: u16, code: &str) -> Value {
        let answer = self.ask(id, body).await;
        let said = self.problem(&answer, status, code);
        assert_eq!(
            self.ask(id, body).await.json()["receipt_id"],
            said["receipt_id"],
            "{said}"
        );
        let ledger = self.world.ledger(&self.account).await;
        let found: Vec<&Value> = ledger.of(said["action_id"].as_str().unwrap());
        let found: Vec<&&Value> = found.iter().filter(|r| r["code"] == code).collect();
        assert_eq!(found.len(), 1, "{code}: {found:?}");
        let receipt = found[0];
        assert_eq!(
            (&receipt["operation"], &receipt["status"], &receipt["receipt_id"]),
            (&json!("signal_refused"), &json!("refused"), &said["receipt_id"]),
            "{receipt}"
        );
        assert_eq!(
            (&receipt["detail"], &receipt["rules"]),
            (&said["detail"], &said["rules"]),
            "{receipt}"
        );
        said
    }

    #[track_caller]
    fn problem(&self, answer: &Answer, status: u16, code: &str) -> Value {
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (status, "application/problem+json"),
            "{answer:?}"
        );
        let said = answer.json();
        assert_eq!(
            (&said["status"], &said["code"]),
            (&json!(status), &json!(code)),
            "{answer:?}"
        );
        assert_eq!(
            answer.retry_after.is_some(),
            [429, 503].contains(&status),
            "{answer:?}"
        );
        said
    }
}

#[tokio::test]
async fn a_request_becomes_an_action() {
    let world = alongside().await;
    let tenant = world.tenant("front-door").await;
    let producer = world.producer(&tenant.account);
    let printed = world
        .ggen(&["keys", "producer", "--account-id", &tenant.account])
        .await
        .ok();
    let given = Secret::standard(&printed).unwrap();
    let at = Timestamp::now();
    assert_eq!(
        sign_standard(&given, "m", at, b""),
        sign_standard(&producer.secret, "m", at, b"")
    );

    // The delivery names the action, or the body does.
    let delivery = unique("msg");
    let said = producer.accepted(&delivery, &restart()).await;
    assert_eq!(
        (&said["action_id"], &said["policy_hash"]),
        (&json!(delivery), &json!(tenant.policy_hash))
    );
    let action_id = unique("action");
    let mut named = restart();
    named["action_id"] = json!(action_id);
    named["policy_hash"] = json!(tenant.policy_hash);
    named["account_id"] = json!(tenant.account);
    let said = producer.accepted(&unique("msg"), &named).await;
    assert_eq!(said["action_id"], action_id.as_str());

    for id in [&delivery, &action_id] {
        let told = producer.stands(id, "complete").await;
        assert_eq!(told["template"], "restart-service", "{told}");
        assert_eq!(told["receipts"][0]["operation"], "action_complete", "{told}");
        assert_eq!(told["policy_hash"], tenant.policy_hash.as_str(), "{told}");
        assert!(told["started_at"].as_str().unwrap().ends_with('Z'), "{told}");
        assert_eq!(world.handler_saw(id).await, (1, 0), "{id}");
    }
    // What is over is told to who asks again, and nothing more happens.
    let again = producer.ask(&delivery, &restart()).await;
    assert_eq!(
        (again.status, again.json()["state"].clone()),
        (200, json!("complete")),
        "{again:?}"
    );
    assert_eq!(again.text, producer.look(&delivery).await.text);
    // An id with which another action was asked for.
    let mut other = restart();
    other["template"] = json!("rotate-credentials");
    producer.refused(&delivery, &other, 409, "ACTION_ID_REUSED").await;

    // Who writes to the queue gets the same.
    let direct = unique("direct");
    world.send(&tenant, tenant.restart(&direct)).await;
    let direct_told = eventually("the action to be known", PATIENCE, || async {
        let answer = producer.look(&direct).await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.text)
        }
    });
    direct_told.await;
    producer.stands(&direct, "complete").await;
    let mut named = restart();
    named["action_id"] = json!(direct);
    let answer = producer.ask(&unique("msg"), &named).await;
    assert_eq!(
        (answer.status, answer.json()["state"].clone()),
        (200, json!("complete")),
        "{answer:?}"
    );
    assert_eq!(world.handler_saw(&direct).await, (1, 0));

    // How the others end.
    let mut failing = restart();
    failing["parameters"]["outcome"] = json!("fail");
    let id = unique("failing");
    producer.accepted(&id, &failing).await;
    let told = producer.stands(&id, "rolled_back").await;
    assert_eq!(told["receipts"].as_array().unwrap().len(), 2, "{told}");
    failing["parameters"]["outcome"] = json!("fail-unrecoverable");
    let id = unique("escalating");
    producer.accepted(&id, &failing).await;
    let told = producer.stands(&id, "escalated").await;
    assert!(told["escalation"]["error_code"].is_string(), "{told}");
}

#[tokio::test]
async fn requests_that_policy_or_tenant_refuse() {
    let world = alongside().await;
    let tenant = world.tenant("refused").await;
    let producer = world.producer(&tenant.account);
    let scale = |replicas: Value| {
        let parameters = json!({ "service": "web", "replicas": replicas });
        json!({ "template": "scale-service", "parameters": parameters })
    };
    let with = |name: &str, value: Value| {
        let mut body = restart();
        body[name] = value;
        body
    };
    for (body, status, code, rule) in [
        (scale(json!(11)), 403, "DENIED", Some("replicas-within-plan")),
        (scale(json!("ten")), 422, "DENIED", Some("parameter-schema")),
        (
            with("parameters", json!({ "service": "web", "delay_ms": 60_001 })),
            422,
            "DENIED",
            Some("permit:restart-service"),
        ),
        (
            with("template", json!("format-disk")),
            422,
            "UNKNOWN_ACTION",
            None,
        ),
        (
            with("policy_hash", json!("another")),
            409,
            "POLICY_HASH_MISMATCH",
            None,
        ),
        (with("sku_id", json!("another")), 404, "NO_ENTITLEMENT", None),
    ] {
        let id = unique("refused");
        let said = producer.refused(&id, &body, status, code).await;
        if let Some(rule) = rule {
            assert!(said["rules"].as_array().unwrap().contains(&json!(rule)), "{said}");
        }
        assert_eq!(producer.look(&id).await.status, 404, "{code}");
        // The id is free: the same delivery with what is allowed goes on.
        producer.accepted(&id, &restart()).await;
        producer.stands(&id, "complete").await;
    }

    // Two bodies under one delivery's id are two refusals, each on record.
    let id = unique("bodies");
    let first = producer
        .refused(
            &id,
            &with("template", json!("format-disk")),
            422,
            "UNKNOWN_ACTION",
        )
        .await;
    let answer = producer.ask(&id, &with("template", json!("format-tape"))).await;
    let second = producer.problem(&answer, 422, "UNKNOWN_ACTION");
    let ledger = world.ledger(&tenant.account).await;
    assert_eq!(ledger.of(&id).len(), 2, "{first} {second}");
    for (said, template) in [(&first, "format-disk"), (&second, "format-tape")] {
        let receipt = ledger.find(&said["receipt_id"]).unwrap();
        assert_eq!(receipt["template"], template, "{said}");
    }

    // Suspended, with several entitlements, and gone.
    let data = json!({ "account_id": tenant.account, "sku_id": SKU });
    let suspended = Delivery::entitlement(world.env, "suspended", data.clone());
    assert_eq!(world.post(&suspended).await.status, 200);
    producer
        .refused(&unique("suspended"), &restart(), 403, "SUSPENDED")
        .await;
    let reinstated = Delivery::entitlement(world.env, "reinstated", data);
    assert_eq!(world.post(&reinstated).await.status, 200);
    let mut second = json!({ "account_id": tenant.account, "sku_id": SKU, "plan_type": PLAN });
    second["entitlement_id"] = json!("agreement-2");
    let second = Delivery::entitlement(world.env, "created", second);
    assert_eq!(world.post(&second).await.status, 200);
    let id = unique("several");
    producer
        .refused(&id, &restart(), 422, "AMBIGUOUS_ENTITLEMENT")
        .await;
    let named = with("entitlement_id", json!("agreement-2"));
    producer.accepted(&id, &named).await;
    producer.stands(&id, "complete").await;

    for agreement in ["agreement-2", SKU] {
        let data = json!({ "account_id": tenant.account, "entitlement_id": agreement });
        let cancelled = Delivery::entitlement(world.env, "cancelled", data);
        assert_eq!(world.post(&cancelled).await.status, 200, "{agreement}");
    }
    gone(&world, &tenant).await;
    let before = world.ledger(&tenant.account).await.lines.len();
    let answer = producer.ask(&unique("gone"), &restart()).await;
    assert_eq!(producer.problem(&answer, 410, "GONE")["receipt_id"], Value::Null);
    assert_eq!(world.ledger(&tenant.account).await.lines.len(), before);
    // What was done before is still told.
    producer.stands(&id, "complete").await;

    let nobody = unique("nobody");
    let answer = world.producer(&nobody).ask(&unique("nobody"), &restart()).await;
    assert_eq!(
        world.producer(&nobody).problem(&answer, 404, "NOT_FOUND")["receipt_id"],
        Value::Null
    );
    assert_eq!(world.table_items(&nobody).await, 0);
    assert_eq!(world.producer(&nobody).look("a").await.status, 404);
}

#[tokio::test]
async fn a_month_that_is_used_up() {
    let world = alongside().await;
    let sku = unique("small");
    let changes = [
        ("sku_id: pool-sku", format!("sku_id: {sku}")),
        ("plan_type: starter", format!("plan_type: {PLAN}")),
        ("monthly_actions: 2", "monthly_actions: 1".to_owned()),
    ];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(a, b)| (*a, b.as_str())).collect();
    world.deploy_fixture("pool.yaml", &changes).await;
    let tenant = world.tenant_of("used-up", &sku).await;
    let producer = world.producer(&tenant.account);
    let first = unique("first");
    producer.accepted(&first, &restart()).await;
    producer.stands(&first, "complete").await;
    let second = unique("second");
    producer.refused(&second, &restart(), 429, "QUOTA_EXCEEDED").await;
    let answer = producer.ask(&second, &restart()).await;
    let month = Duration::from_secs(31 * 24 * 3600).as_secs();
    assert!(
        answer
            .retry_after
            .is_some_and(|seconds| (1..=month).contains(&seconds)),
        "{answer:?}"
    );
    // What was let in before is not refused when it comes again.
    assert_eq!(producer.ask(&first, &restart()).await.status, 200);
}

#[tokio::test]
async fn requests_that_are_not_signed_for_the_tenant() {
    let world = alongside().await;
    let (tenant, other) = (world.tenant("signed").await, world.tenant("other").await);
    let producer = world.producer(&tenant.account);
    let before = world.table_items(&tenant.account).await;
    let id = unique("forged");
    let good = producer.asking(&id, &restart());
    let old = Timestamp::now() - SignedDuration::from_secs(301);
    let body = restart().to_string().into_bytes();
    let elsewhere = world.producer(&other.account).asking(&id, &restart());
    // The stack's own secret, which only derives, and that of marketplaces.
    let signed_with = |secret: &str| {
        let secret = Secret::standard(secret).unwrap();
        let account = tenant.account.clone();
        Producer {
            world: &world,
            account,
            secret,
        }
        .asking(&id, &restart())
    };
    let zeros = format!("v1,{}", STANDARD.encode([0; 32]));
    for (request, problem) in [
        (
            good.clone().with(WEBHOOK_SIGNATURE, &zeros),
            "no signature matches",
        ),
        (good.clone().with(WEBHOOK_ID, "another"), "no signature matches"),
        (
            good.clone().with(WEBHOOK_SIGNATURE, ""),
            "header webhook-signature is missing",
        ),
        (
            producer.request("POST", "signals", &id, body, old),
            "is more than 300 s from now",
        ),
        (elsewhere.clone().at("POST", &good.path), "no signature matches"),
        (good.clone().at("POST", &elsewhere.path), "no signature matches"),
        (
            good.clone().at("POST", "/tenants/nobody-at-all/signals"),
            "no signature matches",
        ),
        (signed_with(&world.env.producer_secret), "no signature matches"),
        (signed_with(&world.env.standard_secret), "no signature matches"),
        (
            Request {
                body: b"{".to_vec(),
                ..good.clone()
            },
            "no signature matches",
        ),
        (
            producer.looking(&id).with(WEBHOOK_ID, "another"),
            "no signature matches",
        ),
        (
            world
                .producer(&other.account)
                .looking(&id)
                .at("GET", &producer.looking(&id).path),
            "no signature matches",
        ),
        // Good for another action only.
        (
            producer.request("GET", "actions/another", &id, Vec::new(), Timestamp::now()),
            "webhook-id must be the action id",
        ),
    ] {
        let answer = world.make(&request).await;
        assert_eq!(
            (answer.status, answer.content_type.as_str()),
            (400, "application/problem+json"),
            "{answer:?}"
        );
        let said = answer.json();
        assert!(
            said["detail"].as_str().unwrap().contains(problem),
            "{problem}: {said}"
        );
        assert_eq!(said["title"], "Signature refused", "{said}");
    }
    assert_eq!(world.table_items(&tenant.account).await, before);
    assert_eq!(world.ledger(&tenant.account).await.lines.len(), 1);
    assert_eq!(world.make(&good).await.status, 202);
}

/// A copy of `signals` that never ran, with a secret of its own that had these values, one after the other; its name.
async fn signals_with(world: &World, secrets: &[&str]) -> String {
    let name = unique("signals");
    world.secrets.create_secret().name(&name).send().await.unwrap();
    for secret in secrets {
        let put = world.secrets.put_secret_value().secret_id(&name);
        put.secret_string(*secret).send().await.unwrap();
    }
    let get = world.lambda.get_function_configuration();
    let original = get.function_name(&world.env.signals).send().await.unwrap();
    let mut variables = original.environment.unwrap().variables.unwrap();
    variables.insert("PRODUCER_SECRET_ID".to_owned(), name.clone());
    let stack = world.env.signals.strip_suffix("-signals").unwrap();
    let code = FunctionCode::builder().s3_bucket(format!("{stack}-artifacts"));
    let create = world.lambda.create_function().function_name(&name);
    create
        .runtime(Runtime::Providedal2023)
        .role("arn:aws:iam::000000000000:role/test")
        .handler("bootstrap")
        .timeout(10)
        .code(code.s3_key("signals.zip").build())
        .environment(Environment::builder().set_variables(Some(variables)).build())
        .send()
        .await
        .unwrap();
    name
}

/// While producers take up what is derived from the stack's new secret, what was derived from the one before counts too.
#[tokio::test]
async fn both_producer_secrets_count_while_the_stacks_is_rotated() {
    const OLDEST: &str = "whsec_MDEyMzQ1Njc4OTo7PD0+P0BBQkNERUZH";
    const OLD: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    const NEW: &str = "whsec_GBkaGxwdHh8gISIjJCUmJygpKissLS4v";
    let world = alongside().await;
    let account = unique("rotating");
    for (values, statuses) in [(&[OLDEST, OLD, NEW][..], [400, 404, 404]), (&[], [503; 3])] {
        let function = signals_with(&world, values).await;
        for (master, status) in [OLDEST, OLD, NEW].into_iter().zip(statuses) {
            let secret = Secret::standard(master).unwrap();
            let producer = Producer {
                world: &world,
                account: account.clone(),
                secret: secret.of_producer(&AccountId::parse(&account).unwrap()).unwrap(),
            };
            let looking = producer.looking("a");
            let headers: BTreeMap<&str, String> = looking.headers.into_iter().collect();
            let event = json!({
                "version": "2.0", "rawPath": looking.path, "headers": headers, "isBase64Encoded": false,
                "requestContext": { "http": { "method": looking.method, "path": looking.path } },
            });
            let answer = world.invoke(&function, &event).await;
            assert_eq!(answer["statusCode"], status, "{master}: {answer}");
        }
        let delete = world.lambda.delete_function().function_name(&function);
        delete.send().await.unwrap();
    }
}

#[tokio::test]
async fn requests_that_are_no_requests() {
    let world = alongside().await;
    let tenant = world.tenant("malformed").await;
    let producer = world.producer(&tenant.account);
    let before = world.table_items(&tenant.account).await;
    let receipts = world.ledger(&tenant.account).await.lines.len();
    let bytes = |body: Vec<u8>| producer.request("POST", "signals", &unique("msg"), body, Timestamp::now());
    for (body, problem) in [
        ("", "signal field `.`: EOF"),
        ("[]", "signal field `.`: "),
        (r#"["t",{},"a",null]"#, "signal field `.`: "),
        (
            r#"{"template":"t","parameters":{"amount":1,"unit":"s","amount":2}}"#,
            "signal field `parameters`: duplicate name `amount`",
        ),
        (
            r#"{"template":"t","parameters":{"a":[{"amount":1,"amount":2}]}}"#,
            "duplicate name `amount`",
        ),
        ("{}", "missing field `template`"),
        (r#"{"template":"t","parameters":7}"#, "signal field `parameters`"),
        (
            r#"{"template":"t","action_id":"a b"}"#,
            "signal field `action_id`",
        ),
        (
            r#"{"template":"t","account_id":"another"}"#,
            "signal field `account_id`: is not the account in the path",
        ),
        ("{\"template\":\"t\"} trailing", "trailing"),
    ] {
        let answer = world.make(&bytes(body.as_bytes().to_vec())).await;
        let said = producer.problem(&answer, 400, "MALFORMED_SIGNAL");
        assert!(
            said["detail"].as_str().unwrap().contains(problem),
            "{problem}: {said}"
        );
    }
    let answer = world.make(&bytes(vec![0xff, 0xfe])).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let mut body = br#"{"template":"restart-service","parameters":{"service":""#.to_vec();
    body.resize(256 * 1024 + 1 - 3, b'x');
    body.extend(b"\"}}");
    let answer = world.make(&bytes(body)).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(
        answer.json()["detail"]
            .as_str()
            .unwrap()
            .contains("body has more than"),
        "{answer:?}"
    );

    let good = producer.asking(&unique("msg"), &restart());
    for (method, path, status, allow) in [
        ("GET", good.path.as_str(), 405, Some("POST")),
        ("DELETE", &good.path, 405, Some("POST")),
        ("PUT", &producer.looking("a").path, 405, Some("GET")),
        ("POST", "/tenants/x/other", 404, None),
        ("POST", "/tenants/%FF/signals", 400, None),
        ("POST", "/tenants/%25zz/signals", 400, None),
        (
            "POST",
            &format!("/tenants/{}/signals", "x".repeat(257)),
            400,
            None,
        ),
        ("GET", "/tenants/x/actions/a.b", 400, None),
    ] {
        let answer = world.make(&good.clone().at(method, path)).await;
        assert_eq!(
            (answer.status, answer.allow.as_deref()),
            (status, allow),
            "{method} {path}: {answer:?}"
        );
    }
    assert_eq!(world.ledger(&tenant.account).await.lines.len(), receipts);
    assert_eq!(world.table_items(&tenant.account).await, before);
}

#[tokio::test]
async fn twenty_deliveries_at_once_are_one_action() {
    let world = alongside().await;
    let tenant = world.tenant("twenty").await;
    let id = unique("twenty");
    let request = world.producer(&tenant.account).asking(&id, &restart());
    let mut made = JoinSet::new();
    for _ in 0..20 {
        let (world, request) = (world.clone(), request.clone());
        made.spawn(async move { world.make(&request).await });
    }
    for answer in made.join_all().await {
        assert!([200, 202].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.json()["action_id"], id.as_str(), "{answer:?}");
    }
    world.producer(&tenant.account).stands(&id, "complete").await;
    world.drained(&tenant.queue_url).await;
    assert_eq!(world.handler_saw(&id).await, (1, 0));
    assert_eq!(
        world.ledger(&tenant.account).await.operations(),
        ["entitlement_active", "action_complete"]
    );

    // Refused twenty times at once: one receipt.
    let id = unique("refused");
    let body = json!({ "template": "format-disk" });
    let request = world.producer(&tenant.account).asking(&id, &body);
    let mut made = JoinSet::new();
    for _ in 0..20 {
        let (world, request) = (world.clone(), request.clone());
        made.spawn(async move { world.make(&request).await });
    }
    for answer in made.join_all().await {
        world
            .producer(&tenant.account)
            .problem(&answer, 422, "UNKNOWN_ACTION");
    }
    assert_eq!(world.ledger(&tenant.account).await.of(&id).len(), 1);
}

#[tokio::test]
async fn accounts_of_any_name_are_reached() {
    let world = alongside().await;
    let unique = unique("odd");
    for account in [
        format!("{unique}/b"),
        format!("{unique}/signals"),
        format!("{unique}/actions/x"),
        format!("{unique}%2Fb"),
        format!("{unique}%"),
        format!(" {unique} é\u{1F980}+&=#:@"),
        format!("\"{unique}\\<b>;'"),
        format!("{unique}\u{FFFE}\u{FFFF}"),
    ] {
        let delivery = Delivery::created(world.env, &account, SKU, PLAN);
        assert_eq!(world.post(&delivery).await.status, 200, "{account:?}");
        let producer = world.producer(&account);
        let id = crate::world::unique("odd");
        producer.accepted(&id, &restart()).await;
        let told = producer.stands(&id, "complete").await;
        assert_eq!(told["receipts"][0]["account_id"], account.as_str(), "{told}");
    }
}

#[tokio::test]
async fn a_tenant_with_tables_of_its_own_is_asked_and_told() {
    let world = alongside().await;
    let sku = unique("own");
    let named = format!("sku_id: {sku}");
    world
        .deploy_fixture("dedicated.yaml", &[("sku_id: dedicated-sku", named.as_str())])
        .await;
    let tenant = world.tenant_of("own-door", &sku).await;
    let producer = world.producer(&tenant.account);
    let id = unique("own");
    producer.accepted(&id, &restart()).await;
    producer.stands(&id, "complete").await;
    producer
        .refused(
            &unique("own"),
            &json!({ "template": "none" }),
            422,
            "UNKNOWN_ACTION",
        )
        .await;
}

#[tokio::test]
async fn what_does_not_reach_the_queue_is_sent_again() {
    alone(|world| async move {
        let tenant = world.tenant("unsent").await;
        let producer = world.producer(&tenant.account);
        let id = unique("unsent");
        let rule = json!({ "mode": "refuse", "operation": "SendMessage", "function": "signals", "count": 3 });
        world.fault("sqs/unsent", rule).await;
        let answer = producer.ask(&id, &restart()).await;
        assert_eq!((answer.status, answer.retry_after), (503, Some(10)), "{answer:?}");
        let told = producer.stands(&id, "pending").await;
        assert_eq!(told["receipts"], json!([]), "{told}");
        world.mend("sqs/unsent").await;
        producer.accepted(&id, &restart()).await;
        producer.stands(&id, "complete").await;

        // SQS took it, and nobody heard: once more does no harm.
        let id = unique("unheard");
        let rule = json!({ "mode": "lose-reply", "operation": "SendMessage", "function": "signals", "count": 3 });
        world.fault("sqs/unsent", rule).await;
        let answer = producer.ask(&id, &restart()).await;
        world.mend("sqs/unsent").await;
        assert_eq!(answer.status, 503, "{answer:?}");
        let again = producer.ask(&id, &restart()).await;
        assert!([200, 202].contains(&again.status), "{again:?}");
        producer.stands(&id, "complete").await;
        world.drained(&tenant.queue_url).await;
        assert_eq!(world.handler_saw(&id).await, (1, 0));

        // Tables that do not answer, and tables that did what they do not say.
        let rule = json!({ "mode": "refuse", "function": "signals" });
        world.fault("dynamodb/unsent", rule).await;
        let id = unique("tables");
        let answer = producer.ask(&id, &restart()).await;
        assert_eq!((answer.status, answer.retry_after), (503, Some(10)), "{answer:?}");
        let answer = producer.look(&id).await;
        assert_eq!((answer.status, answer.retry_after), (503, Some(10)), "{answer:?}");
        let rule = json!({ "mode": "lose-reply", "operation": "TransactWriteItems", "function": "signals", "count": 1 });
        world.fault("dynamodb/unsent", rule).await;
        producer.accepted(&id, &restart()).await;
        producer.stands(&id, "complete").await;
        world.mend("dynamodb/unsent").await;

        // Control that cannot be read refuses, on record where the spool takes it.
        let rule = json!({ "mode": "refuse", "operation": "GetObject", "function": "signals", "path": "control.json" });
        world.fault("s3/unsent", rule).await;
        let id = unique("control");
        let answer = producer.ask(&id, &restart()).await;
        let said = producer.problem(&answer, 503, "UNAVAILABLE");
        world.mend("s3/unsent").await;
        let receipt = spooled(&world, &said["receipt_id"]).await;
        assert_eq!((&receipt["operation"], &receipt["action_id"]), (&json!("signal_refused"), &json!(id)));
        producer.accepted(&id, &restart()).await;
        producer.stands(&id, "complete").await;
    })
    .await;
}

/// The ids of the refusals in the spool: `_spool/<time>-<receipt id>-<operation>.json`.
async fn refusals_in_the_spool(world: &World) -> BTreeSet<String> {
    let keys = objects(world, SPOOL_PREFIX).await.into_iter();
    keys.filter_map(|key| {
        let (_, id) = key.strip_suffix("_refused.json")?.split_once('-')?;
        Some(id[..36].to_owned())
    })
    .collect()
}

/// The receipt with this id in the spool.
async fn spooled(world: &World, receipt_id: &Value) -> Value {
    let keys = objects(world, SPOOL_PREFIX).await;
    let key = keys.iter().find(|key| key.contains(receipt_id.as_str().unwrap()));
    let key = key.unwrap_or_else(|| panic!("{receipt_id} is not among {keys:?}"));
    serde_json::from_slice(&object(world, key).await).unwrap()
}

#[tokio::test]
async fn while_storage_fails_requests_are_refused_on_record() {
    alone(|world| async move {
        let tenant = world.tenant("degraded-door").await;
        let producer = world.producer(&tenant.account);
        let nobody = unique("nobody");
        let since = world.ledger(SYSTEM).await.receipts.len();
        world.fault("dynamodb", json!({ "mode": "refuse" })).await;
        for _ in 0..3 {
            world.probe().await;
        }
        let waiting = refusals_in_the_spool(&world).await;
        let id = unique("degraded");
        let answer = producer.ask(&id, &restart()).await;
        let said = producer.problem(&answer, 503, "UNAVAILABLE");
        assert_eq!(
            producer.ask(&id, &restart()).await.json()["receipt_id"],
            said["receipt_id"]
        );
        let kept = spooled(&world, &said["receipt_id"]).await;
        assert_eq!(
            (&kept["operation"], &kept["code"]),
            (&json!("signal_refused"), &json!("UNAVAILABLE"))
        );
        assert_eq!(producer.look(&id).await.status, 503);
        // Who can sign for an account without a tenant is refused as well.
        let answer = world.producer(&nobody).ask(&unique("nobody"), &restart()).await;
        let dropped = world.producer(&nobody).problem(&answer, 503, "UNAVAILABLE");
        spooled(&world, &dropped["receipt_id"]).await;
        // One that is repeated is one.
        let refused = refusals_in_the_spool(&world).await;
        assert_eq!(refused.len(), waiting.len() + 2, "{refused:?}");

        world.mend("dynamodb").await;
        let found = world.probe().await;
        assert_eq!(found["mode"], "normal", "{found}");
        eventually("the refusal in its ledger", PATIENCE, || async {
            let ledger = world.ledger(&tenant.account).await;
            match ledger.of(&id).as_slice() {
                [receipt] if receipt["receipt_id"] == said["receipt_id"] => Ok(()),
                found => {
                    world.probe().await;
                    Err(format!("{found:?}"))
                }
            }
        })
        .await;
        let counted = eventually("the recovery on record", PATIENCE, || async {
            let system = world.ledger(SYSTEM).await;
            let new = &system.receipts[since..];
            match new.iter().find(|r| r["operation"] == "degraded_mode_cleared") {
                Some(cleared) => Ok(cleared["actions_refused"].clone()),
                None => {
                    world.probe().await;
                    Err(format!("{new:?}"))
                }
            }
        })
        .await;
        assert_eq!(counted, refused.len());
        // What is on nobody's record is out of the spool, and left nothing in the tables.
        let keys = objects(&world, SPOOL_PREFIX).await;
        let id_of_it = dropped["receipt_id"].as_str().unwrap();
        assert!(!keys.iter().any(|key| key.contains(id_of_it)), "{keys:?}");
        assert_eq!(world.table_items(&nobody).await, 0);
        assert!(world.ledger(&nobody).await.lines.is_empty());
        // Nothing was accepted, so the same delivery is.
        producer.accepted(&id, &restart()).await;
        producer.stands(&id, "complete").await;
        let ledger = world.ledger(&tenant.account).await;
        assert_eq!(
            ledger.operations(),
            ["entitlement_active", "signal_refused", "action_complete"]
        );
    })
    .await;
}

#[tokio::test]
async fn switches_refuse_at_the_door_or_behind_it() {
    alone(|world| async move {
        let tenant = world.tenant("disarmed-door").await;
        let producer = world.producer(&tenant.account);
        world.switches(&["armed=false"]).await;
        let id = unique("disarmed");
        producer.refused(&id, &restart(), 503, "DISARMED").await;
        assert_eq!(producer.look(&id).await.status, 404);
        world.switches(&["armed=true", "safe_mode=true"]).await;
        producer.accepted(&id, &restart()).await;
        let told = producer.stands(&id, "routed").await;
        assert_eq!(told["receipts"][0]["code"], "SAFE_MODE", "{told}");
        assert_eq!(world.handler_saw(&id).await, (0, 0));
    })
    .await;
}
