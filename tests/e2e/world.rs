//! What a test needs of the stack: its environment, clients, a tenant, a ledger, and turns.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws::clients;
use aws::config::Stack;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_lambda::types::{Environment as Variables, FunctionCode, Runtime};
use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry};
use receipts::key::{KeyRing, PublicKey};
use receipts::verify::Chain;
use serde_json::{Value, json};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::webhooks::Delivery;
use domain::names::Partition;

/// The sample policy most tests use.
pub(crate) const SKU: &str = "marketplace-sku-456";
pub(crate) const PLAN: &str = "professional";
/// Account of receipts that concern everybody.
pub(crate) const SYSTEM: &str = "_system";
/// How long anything that needs no queue may take. Generous: a busy machine must not fail a test.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// How long a way through a queue may take, a redelivery included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Tests that break something everybody shares take it for writing.
static TURNS: RwLock<()> = RwLock::const_new(());
/// Switches set and policies deployed, once.
static READY: OnceCell<()> = OnceCell::const_new();
static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(Environment::read);

/// What `stack.py exec` tells.
pub(crate) struct Environment {
    pub(crate) endpoint: String,
    pub(crate) api_url: String,
    pub(crate) handler_url: String,
    pub(crate) proxy_url: String,
    pub(crate) ggen: PathBuf,
    pub(crate) auditor_pub: PathBuf,
    pub(crate) standard_secret: String,
    pub(crate) github_secret: String,
    pub(crate) handler_secret: String,
    pub(crate) producer_secret: String,
    pub(crate) signing_key_secret_id: String,
    pub(crate) tenants_table: String,
    pub(crate) receipts_table: String,
    pub(crate) audit_bucket: String,
    pub(crate) registry_bucket: String,
    pub(crate) decommission_queue_url: String,
    pub(crate) entitlement: String,
    pub(crate) cancel: String,
    pub(crate) governor: String,
    pub(crate) health: String,
    pub(crate) policy_upgrade: String,
    pub(crate) checkpoint: String,
    pub(crate) scale: String,
    pub(crate) signals: String,
}

impl Environment {
    fn read() -> Self {
        let text = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!(
                    "environment variable {name} is missing: run these tests with `make test`, \
                     or below `infra/local/stack.py exec --`"
                )
            })
        };
        Self {
            endpoint: text("AWS_ENDPOINT_URL"),
            api_url: text("API_URL"),
            handler_url: text("HANDLER_URL"),
            proxy_url: text("PROXY_URL"),
            ggen: text("GGEN").into(),
            auditor_pub: text("AUDITOR_PUB").into(),
            standard_secret: text("STANDARD_WEBHOOK_SECRET"),
            github_secret: text("GITHUB_WEBHOOK_SECRET"),
            handler_secret: text("HANDLER_SECRET"),
            producer_secret: text("PRODUCER_SECRET"),
            signing_key_secret_id: text("SIGNING_KEY_SECRET_ID"),
            tenants_table: text("TENANTS_TABLE"),
            receipts_table: text("RECEIPTS_TABLE"),
            audit_bucket: text("AUDIT_BUCKET"),
            registry_bucket: text("REGISTRY_BUCKET"),
            decommission_queue_url: text("DECOMMISSION_QUEUE_URL"),
            entitlement: text("ENTITLEMENT_FUNCTION"),
            cancel: text("CANCEL_FUNCTION"),
            governor: text("GOVERNOR_FUNCTION"),
            health: text("HEALTH_FUNCTION"),
            policy_upgrade: text("POLICY_UPGRADE_FUNCTION"),
            checkpoint: text("CHECKPOINT_FUNCTION"),
            scale: text("SCALE_FUNCTION"),
            signals: text("SIGNALS_FUNCTION"),
        }
    }
}

/// The stack, as one test sees it. Clones share the test's turn.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) env: &'static Environment,
    pub(crate) http: reqwest::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) s3: aws_sdk_s3::Client,
    pub(crate) lambda: aws_sdk_lambda::Client,
    pub(crate) dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) secrets: aws_sdk_secretsmanager::Client,
    pub(crate) keys: KeyRing,
    _turn: Option<Arc<RwLockReadGuard<'static, ()>>>,
}

/// The world of a test that leaves everybody else's alone.
pub(crate) async fn alongside() -> World {
    let turn = TURNS.read().await;
    let mut world = World::new().await;
    world._turn = Some(Arc::new(turn));
    world
}

/// Runs a test while no other runs, and puts right afterwards what it may have left broken.
pub(crate) async fn alone<F>(test: impl FnOnce(World) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let _turn = TURNS.write().await;
    let world = World::new().await;
    let ended = tokio::spawn(test(world.clone())).await;
    world.restore().await;
    if let Err(error) = ended {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Looks until `look` finds what it looks for, and gives that; fails with what it last saw instead.
pub(crate) async fn eventually<T, F>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if Instant::now() >= deadline => {
                panic!("{what}: not within {within:?}; last seen: {seen}")
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A name nobody else uses.
pub(crate) fn unique(prefix: &str) -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", &id[..12])
}

pub(crate) fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// How `ggen` ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A provisioned tenant.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    pub(crate) account: String,
    pub(crate) queue: String,
    pub(crate) queue_url: String,
    pub(crate) policy_hash: String,
    /// The `entitlement_active` receipt, as it was answered.
    pub(crate) line: String,
}

impl Tenant {
    /// A signal for this tenant.
    pub(crate) fn signal(&self, action_id: &str, template: &str, parameters: Value) -> Value {
        json!({
            "action_id": action_id,
            "account_id": self.account,
            "template": template,
            "parameters": parameters,
            "policy_hash": self.policy_hash,
            "requested_at": jiff::Timestamp::now().to_string(),
        })
    }

    /// A signal that succeeds.
    pub(crate) fn restart(&self, action_id: &str) -> Value {
        self.signal(action_id, "restart-service", json!({ "service": "web" }))
    }
}

/// A tenant's receipts in order. Whoever reads one has its form, signatures and chain checked.
pub(crate) struct Ledger {
    pub(crate) lines: Vec<String>,
    pub(crate) receipts: Vec<Value>,
}

impl Ledger {
    pub(crate) fn operations(&self) -> Vec<&str> {
        self.receipts.iter().map(operation).collect()
    }

    /// The receipts about one action.
    pub(crate) fn of(&self, action_id: &str) -> Vec<&Value> {
        self.receipts
            .iter()
            .filter(|r| r["action_id"] == action_id)
            .collect()
    }

    /// The receipt with this id.
    pub(crate) fn find(&self, receipt_id: &Value) -> Option<&Value> {
        self.receipts.iter().find(|r| r["receipt_id"] == *receipt_id)
    }
}

pub(crate) fn operation(receipt: &Value) -> &str {
    receipt["operation"].as_str().unwrap_or_default()
}

/// Where the tables hold an account.
pub(crate) fn partition_of(account: &str) -> Partition {
    Partition::of(&domain::account::AccountId::parse(account).unwrap())
}

impl World {
    async fn new() -> Self {
        let env = &*ENVIRONMENT;
        // A second call finds it installed, which is what is wanted.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sdk = clients::load().await;
        let pem = std::fs::read_to_string(&env.auditor_pub).unwrap();
        let world = Self {
            env,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            sqs: sdk.sqs(),
            s3: sdk.s3(),
            lambda: clients::lambda_invoker(&sdk),
            dynamodb: sdk.dynamodb(),
            secrets: sdk.secrets(),
            keys: KeyRing::new([PublicKey::from_pem(&pem).unwrap()]),
            _turn: None,
        };
        READY.get_or_init(|| world.arrange()).await;
        world
    }

    /// Arms the switches and deploys the sample policies, the way an operator does.
    async fn arrange(&self) {
        self.arm().await;
        for sku in std::fs::read_dir(project("policies")).unwrap() {
            let folder = sku.unwrap().path();
            let files = std::fs::read_dir(&folder).into_iter().flatten();
            for file in files.map(|file| file.unwrap().path()) {
                if file.extension().is_some_and(|extension| extension == "yaml") {
                    self.ggen(&["policy", "deploy", file.to_str().unwrap()])
                        .await
                        .ok();
                }
            }
        }
    }

    async fn arm(&self) {
        let on = [
            "armed=true",
            "automation_enabled=true",
            "safe_mode=false",
            "rollout_tier=2",
            "disabled_templates=",
        ];
        self.switches(&on).await;
    }

    async fn restore(&self) {
        self.mend("dynamodb").await;
        self.mend("s3").await;
        eventually("normal mode", SOON, || async {
            let found = self.probe().await;
            if found["mode"] == "normal" {
                Ok(())
            } else {
                Err(found.to_string())
            }
        })
        .await;
        self.arm().await;
    }

    // -- operators

    pub(crate) async fn ggen(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(&self.env.ggen);
        command.args(arguments);
        let ran = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap();
        let ran = ran.unwrap_or_else(|e| panic!("cannot run {}: {e}", self.env.ggen.display()));
        Ran {
            code: ran.status.code(),
            stdout: String::from_utf8(ran.stdout).unwrap(),
            stderr: String::from_utf8(ran.stderr).unwrap(),
        }
    }

    pub(crate) async fn switches(&self, changes: &[&str]) -> Value {
        let mut arguments = vec!["switches", "set", "--format", "json", "--who", "end-to-end"];
        arguments.extend(changes);
        let ran = self.ggen(&arguments).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()
    }

    // -- tenants

    /// Subscribes a new account to the sample plan.
    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        self.tenant_of(name, SKU).await
    }

    /// Subscribes a new account to the professional plan of a SKU.
    pub(crate) async fn tenant_of(&self, name: &str, sku: &str) -> Tenant {
        let account = unique(name);
        let answer = self.post(&Delivery::created(self.env, &account, sku, PLAN)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        self.provisioned(answer.body).await
    }

    /// What an `entitlement_active` receipt says of a tenant.
    pub(crate) async fn provisioned(&self, line: String) -> Tenant {
        let receipt: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(operation(&receipt), "entitlement_active", "{receipt}");
        let queue = receipt["resources"]["queue"].as_str().unwrap().to_owned();
        let found = self.sqs.get_queue_url().queue_name(&queue).send().await;
        Tenant {
            account: receipt["account_id"].as_str().unwrap().to_owned(),
            queue_url: found.unwrap().queue_url.unwrap(),
            policy_hash: receipt["policy_hash"].as_str().unwrap().to_owned(),
            queue,
            line,
        }
    }

    /// Puts a message on a tenant's queue, and gives SQS's id of it.
    pub(crate) async fn send(&self, tenant: &Tenant, body: impl ToString) -> String {
        let send = self.sqs.send_message().queue_url(&tenant.queue_url);
        let sent = send.message_body(body.to_string()).send().await.unwrap();
        sent.message_id.unwrap()
    }

    /// Puts at most ten messages on a tenant's queue in one call.
    pub(crate) async fn send_batch(&self, tenant: &Tenant, bodies: &[Value]) {
        let entries = bodies.iter().enumerate().map(|(n, body)| {
            let entry = SendMessageBatchRequestEntry::builder().id(n.to_string());
            entry.message_body(body.to_string()).build().unwrap()
        });
        let send = self.sqs.send_message_batch().queue_url(&tenant.queue_url);
        let sent = send.set_entries(Some(entries.collect())).send().await.unwrap();
        assert_eq!(sent.successful.len(), bodies.len(), "{:?}", sent.failed);
    }

    pub(crate) async fn queue_exists(&self, name: &str) -> bool {
        match self.sqs.get_queue_url().queue_name(name).send().await {
            Ok(_) => true,
            Err(e) if e.as_service_error().is_some_and(|e| e.is_queue_does_not_exist()) => false,
            Err(e) => panic!("{name}: {e:?}"),
        }
    }

    pub(crate) async fn queue_attribute(&self, url: &str, name: QueueAttributeName) -> String {
        let get = self.sqs.get_queue_attributes().queue_url(url);
        let found = get.attribute_names(name.clone()).send().await.unwrap();
        found.attributes.unwrap().remove(&name).unwrap()
    }

    /// Mappings that feed the governor from a queue.
    pub(crate) async fn mappings(
        &self,
        queue_arn: &str,
    ) -> Vec<aws_sdk_lambda::types::EventSourceMappingConfiguration> {
        let list = self.lambda.list_event_source_mappings();
        let list = list.function_name(&self.env.governor).event_source_arn(queue_arn);
        list.send()
            .await
            .unwrap()
            .event_source_mappings
            .unwrap_or_default()
    }

    /// Waits until a queue holds nothing, seen twice because SQS counts are approximate.
    pub(crate) async fn drained(&self, queue_url: &str) {
        for _ in 0..2 {
            eventually(&format!("{queue_url} to be empty"), PATIENCE, || async {
                let waiting = QueueAttributeName::ApproximateNumberOfMessages;
                let hidden = QueueAttributeName::ApproximateNumberOfMessagesNotVisible;
                let waiting = self.queue_attribute(queue_url, waiting).await;
                let hidden = self.queue_attribute(queue_url, hidden).await;
                if waiting == "0" && hidden == "0" {
                    Ok(())
                } else {
                    Err(format!("{waiting} waiting, {hidden} in flight"))
                }
            })
            .await;
        }
    }

    /// Table items of an account: its tenant, head, actions and deliveries.
    pub(crate) async fn table_items(&self, account: &str) -> usize {
        self.query(&self.env.tenants_table, account).await.len()
    }

    // -- receipts

    /// The keys that the first one leads to by now.
    pub(crate) async fn keys_by_now(&self) -> KeyRing {
        let trail = self.ggen(&["keys", "trail"]).await.ok();
        self.keys.clone().follow(trail.lines()).unwrap()
    }

    /// What a writer of the tables needs to know.
    pub(crate) fn stack(&self) -> Stack {
        Stack {
            tenants_table: self.env.tenants_table.clone(),
            receipts_table: self.env.receipts_table.clone(),
            signing_key_secret: self.env.signing_key_secret_id.clone(),
        }
    }

    /// The private key that signs receipts.
    pub(crate) async fn signing_key(&self) -> String {
        let get = self.secrets.get_secret_value();
        let found = get
            .secret_id(&self.env.signing_key_secret_id)
            .send()
            .await
            .unwrap();
        found.secret_string.unwrap()
    }

    pub(crate) async fn put_signing_key(&self, pem: &str) {
        let put = self.secrets.put_secret_value();
        let put = put.secret_id(&self.env.signing_key_secret_id).secret_string(pem);
        put.send().await.unwrap();
    }

    /// An account's ledger, checked.
    pub(crate) async fn ledger(&self, account: &str) -> Ledger {
        let mut items = Vec::new();
        // Its own table first: once that is given up, everything stands in the shared one.
        while let Some(own) = self.own_receipts(account).await {
            if let Some(found) = self.query_if_there(&own, account).await {
                items = found;
                break;
            }
        }
        items.extend(self.query(&self.env.receipts_table, account).await);
        // While a tenant leaves, what stood in its own table stands in both.
        let lines: BTreeMap<&String, String> = items
            .iter()
            .map(|item| (item["seq"].as_s().unwrap(), item["line"].as_s().unwrap().clone()))
            .collect();
        let lines: Vec<String> = lines.into_values().collect();
        // Only tests of the system's ledger meet another key than the first.
        if account == SYSTEM {
            let world = Self {
                keys: self.keys_by_now().await,
                ..self.clone()
            };
            return world.checked(account, lines);
        }
        self.checked(account, lines)
    }

    /// The table of an account's own receipts, if it has one that is still there.
    pub(crate) async fn own_receipts(&self, account: &str) -> Option<String> {
        let get = self.dynamodb.get_item().table_name(&self.env.tenants_table);
        let get = get
            .key("account_id", AttributeValue::S(account.to_owned()))
            .key("sk", AttributeValue::S("TENANT".to_owned()));
        let item = get.consistent_read(true).send().await.unwrap().item?;
        let tables = item["tenant"].as_m().unwrap().get("tables")?.as_m().ok()?;
        let archived = tables.get("archived").is_some_and(AttributeValue::is_m);
        (!archived).then(|| tables["receipts"].as_s().unwrap().clone())
    }

    /// Lines that must be an account's whole ledger.
    #[track_caller]
    pub(crate) fn checked(&self, account: &str, lines: Vec<String>) -> Ledger {
        let mut chain = Chain::of(account);
        for line in &lines {
            if let Err(e) = chain.push(line, &self.keys) {
                panic!("ledger of {account}: {e:?}");
            }
        }
        let receipts = lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        Ledger { lines, receipts }
    }

    async fn query(&self, table: &str, account: &str) -> Vec<HashMap<String, AttributeValue>> {
        let found = self.query_if_there(table, account).await;
        found.unwrap_or_else(|| panic!("table {table} is gone"))
    }

    /// An account's items in a table; `None` when there is no such table.
    pub(crate) async fn query_if_there(
        &self,
        table: &str,
        account: &str,
    ) -> Option<Vec<HashMap<String, AttributeValue>>> {
        let (mut items, mut start) = (Vec::new(), None);
        loop {
            let query = self.dynamodb.query().table_name(table).consistent_read(true);
            let query = query
                .key_condition_expression("account_id = :account")
                .expression_attribute_values(":account", AttributeValue::S(account.to_owned()))
                .set_exclusive_start_key(start);
            let page = match query.send().await {
                Ok(page) => page,
                Err(e)
                    if e.as_service_error()
                        .is_some_and(|e| e.is_resource_not_found_exception()) =>
                {
                    return None;
                }
                Err(e) => panic!("{table}: {e:?}"),
            };
            items.extend(page.items.unwrap_or_default());
            start = page.last_evaluated_key;
            if start.is_none() {
                return Some(items);
            }
        }
    }

    /// Waits until an action left these receipts, in this order, and gives them.
    pub(crate) async fn settled(&self, account: &str, action_id: &str, operations: &[&str]) -> Vec<Value> {
        eventually(&format!("{operations:?} of {action_id}"), PATIENCE, || async {
            let ledger = self.ledger(account).await;
            let of = ledger.of(action_id);
            let found: Vec<&str> = of.iter().map(|r| operation(r)).collect();
            if found == operations {
                return Ok(of.into_iter().cloned().collect());
            }
            assert!(
                found.len() < operations.len(),
                "{action_id}: expected {operations:?}, found {found:?}"
            );
            Err(format!("{found:?}"))
        })
        .await
    }

    /// How often the handler applied and undid an action.
    pub(crate) async fn handler_saw(&self, action_id: &str) -> (usize, usize) {
        let url = format!("{}/log?action_id={action_id}", self.env.handler_url);
        let log: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        let count = |name: &str| log[name].as_array().unwrap().len();
        (count("applied"), count("undone"))
    }

    // -- functions and faults

    /// Invokes a function, which must not fail as a function.
    pub(crate) async fn invoke(&self, function: &str, event: &Value) -> Value {
        let invoke = self.lambda.invoke().function_name(function);
        let answer = invoke
            .payload(event.to_string().into_bytes().into())
            .send()
            .await
            .unwrap();
        let payload = String::from_utf8(answer.payload.unwrap().into_inner()).unwrap();
        assert_eq!(answer.function_error, None, "{function}: {payload}");
        serde_json::from_str(&payload).unwrap()
    }

    /// A copy of `entitlement` that never ran, so it knows no policy and no secret yet, with some variables changed; its
    /// name.
    pub(crate) async fn entitlement_with(&self, changes: &[(&str, &str)]) -> String {
        let get = self.lambda.get_function_configuration();
        let original = get.function_name(&self.env.entitlement).send().await.unwrap();
        let mut variables = original.environment.unwrap().variables.unwrap();
        for (name, value) in changes {
            variables.insert((*name).to_owned(), (*value).to_owned());
        }
        let stack = self.env.entitlement.strip_suffix("-entitlement").unwrap();
        let code = FunctionCode::builder().s3_bucket(format!("{stack}-artifacts"));
        let name = unique("entitlement");
        let create = self.lambda.create_function().function_name(&name);
        create
            .runtime(Runtime::Providedal2023)
            .role("arn:aws:iam::000000000000:role/test")
            .handler("bootstrap")
            .timeout(29)
            .code(code.s3_key("entitlement.zip").build())
            .environment(Variables::builder().set_variables(Some(variables)).build())
            .send()
            .await
            .unwrap();
        name
    }

    /// One health probe, and what it found.
    pub(crate) async fn probe(&self) -> Value {
        let mut report = self.invoke(&self.env.health, &json!({ "probes": 1 })).await;
        report["probes"][0].take()
    }

    /// Waits until the functions made a call like this since the last fault was set.
    pub(crate) async fn called(&self, what: &str, like: impl Fn(&Value) -> bool) {
        eventually(what, PATIENCE, || async {
            let url = format!("{}/_calls", self.env.proxy_url);
            let calls: Vec<Value> = self.http.get(url).send().await.unwrap().json().await.unwrap();
            let found = calls.iter().any(&like);
            found
                .then_some(())
                .ok_or_else(|| format!("{} other calls", calls.len()))
        })
        .await;
    }

    /// Breaks the functions' calls to a service; see infra/local/proxy.py.
    pub(crate) async fn fault(&self, service: &str, rule: Value) {
        let calls = format!("{}/_calls", self.env.proxy_url);
        self.http.delete(calls).send().await.unwrap();
        self.rule(service, rule).await;
    }

    /// Sets a rule of the proxy's and forgets no calls, so that it can count beside tests that look for theirs.
    pub(crate) async fn rule(&self, service: &str, rule: Value) {
        let url = format!("{}/_faults/{service}", self.env.proxy_url);
        let answer = self.http.put(url).json(&rule).send().await.unwrap();
        assert!(
            answer.status().is_success(),
            "{rule}: {}",
            answer.text().await.unwrap()
        );
    }

    /// How many requests a rule of the proxy's has applied to.
    pub(crate) async fn met(&self, service: &str, id: &str) -> u64 {
        let url = format!("{}/_faults", self.env.proxy_url);
        let rules: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        let met = rules[service][id]["met"].as_u64();
        met.unwrap_or_else(|| panic!("no rule {service}/{id}: {rules}"))
    }

    /// Ends a fault.
    pub(crate) async fn mend(&self, service: &str) {
        let url = format!("{}/_faults/{service}", self.env.proxy_url);
        self.http.delete(url).send().await.unwrap();
    }

    /// Calls a service that speaks AWS's JSON protocol and for which the workspace has no client.
    pub(crate) async fn aws_json(&self, service: &str, target: &str, body: &Value) -> Value {
        let scope = format!("Credential=test/20260101/us-east-1/{service}/aws4_request");
        let request = self
            .http
            .post(&self.env.endpoint)
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=00"),
            )
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .body(body.to_string());
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{target} {body}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    // -- what only operators see

    /// An account as the tables hold it.
    pub(crate) async fn stored(&self, account: &str) -> domain::transaction::Account {
        let store = aws::store::Store::new(&clients::load().await, self.stack());
        store
            .load(&partition_of(account), &domain::transaction::Keys::default())
            .await
            .unwrap()
    }

    /// An item of the tenants table, as it stands there.
    pub(crate) async fn item(&self, account: &str, sk: &str) -> HashMap<String, AttributeValue> {
        let get = self.dynamodb.get_item().table_name(&self.env.tenants_table);
        let get = get
            .key("account_id", AttributeValue::S(account.to_owned()))
            .key("sk", AttributeValue::S(sk.to_owned()));
        get.consistent_read(true).send().await.unwrap().item.unwrap()
    }

    /// Puts an item there behind everybody's back.
    pub(crate) async fn put_item(&self, item: HashMap<String, AttributeValue>) {
        let put = self.dynamodb.put_item().table_name(&self.env.tenants_table);
        put.set_item(Some(item)).send().await.unwrap();
    }

    /// Deploys a policy of `tests/fixtures/policies` with texts in it replaced, and gives its hash.
    pub(crate) async fn deploy_fixture(&self, name: &str, changes: &[(&str, &str)]) -> String {
        let sample = project(&format!("tests/fixtures/policies/{name}"));
        let sample = std::fs::read_to_string(sample).unwrap();
        let yaml = changes.iter().fold(sample, |yaml, (before, after)| {
            assert_eq!(yaml.matches(before).count(), 1, "{before}");
            yaml.replace(before, after)
        });
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, yaml).unwrap();
        let path = path.to_str().unwrap();
        let deployed = self.ggen(&["policy", "deploy", "--format", "json", path]).await;
        assert_eq!(deployed.code, Some(0), "{deployed:?}");
        deployed.json()["policy_hash"].as_str().unwrap().to_owned()
    }
}
