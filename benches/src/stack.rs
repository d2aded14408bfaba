//! The local stack this process runs in (`stack.py exec` gives it the environment), driven from outside.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use domain::account::AccountId;
use domain::webhook::providers::standard::sign_standard;
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::http;

/// Where Standard Webhooks that begin a subscription go.
pub const ENTITLEMENT_PATH: &str = "/webhooks/entitlement";
/// Where Standard Webhooks that end one go.
pub const CANCEL_PATH: &str = "/webhooks/cancel";

const POLICY: &str = include_str!("../../policies/marketplace-sku-456/professional.yaml");
const SKU: &str = "sku_id: marketplace-sku-456";
const VERSION: &str = "version: 1.0.0";

/// A variable of the stack's environment.
#[must_use]
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        eprintln!("{name} is not set: run `make bench`, which starts a local stack for this");
        std::process::exit(2)
    })
}

/// A name no earlier run has used.
#[must_use]
pub fn fresh(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("bench-{what}-{:x}-{count}", Timestamp::now().as_microsecond())
}

/// Runs `ggen`; its answer, once it says that all is good.
#[must_use]
pub fn ggen(arguments: &[&str], input: &str) -> String {
    let mut process = Command::new(variable("GGEN"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting ggen");
    let mut stdin = process.stdin.take().expect("ggen's standard input");
    stdin.write_all(input.as_bytes()).expect("writing to ggen");
    drop(stdin);
    let output = process.wait_with_output().expect("ggen's answer");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "ggen {} ended with {}: {text}",
        arguments.join(" "),
        output.status
    );
    text
}

/// Lets actions run without a person; a fresh stack is disarmed.
pub fn arm() {
    let switches = [
        "armed=true",
        "automation_enabled=true",
        "safe_mode=false",
        "rollout_tier=1",
        "disabled_templates=",
    ];
    let _ = ggen(
        &[&["switches", "set", "--who", "bench"], switches.as_slice()].concat(),
        "",
    );
}

/// The sample policy for a SKU of its own, so that a bench meets only the tenants it made.
#[must_use]
pub fn policy(sku: &str, version: &str) -> String {
    assert!(
        POLICY.contains(SKU) && POLICY.contains(VERSION),
        "the sample policy is not the one this bench knows"
    );
    POLICY
        .replace(SKU, &format!("sku_id: {sku}"))
        .replace(VERSION, &format!("version: {version}"))
}

/// The sample policy with so many actions at one time, and more a month than any bench asks for.
#[must_use]
pub fn roomy_policy(sku: &str, concurrent_actions: usize) -> String {
    let limits = [
        (
            "concurrent_actions: 20",
            format!("concurrent_actions: {concurrent_actions}"),
        ),
        ("monthly_actions: 10000", "monthly_actions: 1000000".to_owned()),
    ];
    limits
        .iter()
        .fold(policy(sku, "1.0.0"), |policy, (before, after)| {
            assert!(
                policy.contains(before),
                "the sample policy is not the one this bench knows: no {before}"
            );
            policy.replace(before, after)
        })
}

/// Puts a policy in force, as compliance does.
pub fn deploy(policy: &str) {
    let _ = ggen(&["policy", "deploy", "-"], policy);
}

/// Headers and body of a signed Standard Webhooks delivery.
pub struct Delivery {
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Delivery {
    /// A delivery that begins a subscription.
    #[must_use]
    pub fn created(account: &str, sku: &str) -> Self {
        let data =
            json!({"account_id": account, "sku_id": sku, "plan_type": "professional", "region": "us-east-1"});
        Self::new(ENTITLEMENT_PATH, "entitlement.created", &data)
    }

    /// A delivery that ends one.
    #[must_use]
    pub fn cancelled(account: &str, sku: &str) -> Self {
        Self::new(
            CANCEL_PATH,
            "entitlement.cancelled",
            &json!({"account_id": account, "sku_id": sku}),
        )
    }

    /// A producer's request for an action.
    #[must_use]
    pub fn signal(account: &str) -> Self {
        let id = AccountId::parse(account).expect("an account id");
        let secret = Secret::standard(&variable("PRODUCER_SECRET")).and_then(|all| all.of_producer(&id));
        Self::signed(
            format!("/tenants/{account}/signals"),
            &secret.expect("the stack's secret of producers"),
            &json!({"template": "restart-service", "parameters": {"service": "web"}}),
        )
    }

    fn new(path: &str, kind: &str, data: &Value) -> Self {
        let secret = Secret::standard(&variable("STANDARD_WEBHOOK_SECRET"));
        Self::signed(
            path.to_owned(),
            &secret.expect("the stack's webhook secret"),
            &json!({"type": kind, "timestamp": Timestamp::now().to_string(), "data": data}),
        )
    }

    fn signed(path: String, secret: &Secret, body: &Value) -> Self {
        let (id, now, body) = (fresh("delivery"), Timestamp::now(), body.to_string());
        let signature = sign_standard(secret, &id, now, body.as_bytes());
        let headers = [
            ("content-type", "application/json".to_owned()),
            ("webhook-id", id),
            ("webhook-timestamp", now.as_second().to_string()),
            ("webhook-signature", signature),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
        Self { path, headers, body }
    }

    /// Posts it to the HTTP API; what it was answered with, a webhook with its receipt.
    #[must_use]
    pub fn post(&self) -> Value {
        let url = format!("{}{}", variable("API_URL"), self.path);
        let answer = http::send("POST", &url, &self.headers, self.body.as_bytes());
        let said = String::from_utf8_lossy(&answer.body);
        assert!(
            [200, 202].contains(&answer.status),
            "POST {url}: {}: {said}",
            answer.status
        );
        serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("POST {url}: {e}: {said}"))
    }

    /// The event that the HTTP API makes of it (payload format 2.0).
    #[must_use]
    pub fn event(&self) -> Value {
        let headers: BTreeMap<_, _> = self.headers.iter().cloned().collect();
        json!({
            "version": "2.0",
            "routeKey": format!("POST {}", self.path),
            "rawPath": self.path,
            "rawQueryString": "",
            "headers": headers,
            "requestContext": {
                "accountId": "000000000000", "apiId": "bench", "domainName": "bench", "domainPrefix": "bench",
                "http": {"method": "POST", "path": self.path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1",
                         "userAgent": "bench"},
                "requestId": "bench", "routeKey": format!("POST {}", self.path), "stage": "$default",
                "time": "21/Nov/2026:00:00:00 +0000", "timeEpoch": 0
            },
            "body": self.body,
            "isBase64Encoded": false
        })
    }
}

/// A provisioned tenant, as its receipt tells.
pub struct Tenant {
    /// The account.
    pub account: String,
    queue: String,
    policy_hash: String,
}

impl Tenant {
    /// Subscribes an account through the HTTP API.
    #[must_use]
    pub fn subscribe(account: &str, sku: &str) -> Self {
        Self::of(account, &Delivery::created(account, sku).post())
    }

    /// The tenant of an `entitlement_active` receipt.
    #[must_use]
    pub fn of(account: &str, receipt: &Value) -> Self {
        let text = |at: &str| {
            let found = receipt.pointer(at).and_then(Value::as_str);
            found.unwrap_or_else(|| panic!("no {at} in {receipt}")).to_owned()
        };
        assert_eq!(text("/operation"), "entitlement_active", "{receipt}");
        Self {
            account: account.to_owned(),
            queue: text("/resources/queue"),
            policy_hash: text("/policy_hash"),
        }
    }

    /// A new signal, with these parameters of the template `restart-service`.
    #[must_use]
    pub fn signal(&self, parameters: &Value) -> Value {
        json!({
            "action_id": fresh("action"),
            "account_id": self.account,
            "template": "restart-service",
            "parameters": parameters,
            "policy_hash": self.policy_hash,
        })
    }

    /// The event that SQS makes of `count` new signals on the tenant's queue.
    #[must_use]
    pub fn signals(&self, count: usize) -> Value {
        let signals: Vec<_> = (0..count)
            .map(|_| self.signal(&json!({"service": "web"})))
            .collect();
        self.delivered(&signals, 1)
    }

    /// The event that SQS makes of signals on the tenant's queue, the `times`th time it delivers them.
    #[must_use]
    pub fn delivered(&self, signals: &[Value], times: usize) -> Value {
        let arn = format!(
            "arn:aws:sqs:{}:{}:{}",
            variable("AWS_REGION"),
            variable("AWS_ACCOUNT_ID"),
            self.queue
        );
        let now = Timestamp::now().as_millisecond().to_string();
        let record = |signal: &Value| {
            json!({
                "messageId": fresh("message"),
                "receiptHandle": "bench",
                "body": signal.to_string(),
                "attributes": {"ApproximateReceiveCount": times.to_string(), "SentTimestamp": now, "SenderId": "bench",
                               "ApproximateFirstReceiveTimestamp": now},
                "messageAttributes": {},
                "md5OfBody": "",
                "eventSource": "aws:sqs",
                "eventSourceARN": arn,
                "awsRegion": variable("AWS_REGION"),
            })
        };
        json!({"Records": signals.iter().map(record).collect::<Vec<_>>()})
    }

    /// Puts a signal on the tenant's queue, as a producer does.
    pub fn send(&self, signal: &Value) {
        let message = json!({"QueueUrl": self.queue_url(), "MessageBody": signal.to_string()});
        let _ = sqs("SendMessage", &message);
    }

    /// Puts signals on the tenant's queue, ten in a call. `sent` is told of each ten before they go.
    pub fn send_all(&self, signals: &[Value], mut sent: impl FnMut(&[Value])) {
        let url = self.queue_url();
        for ten in signals.chunks(10) {
            let entry = |(n, signal): (usize, &Value)| json!({"Id": n.to_string(), "MessageBody": signal.to_string()});
            let entries: Vec<Value> = ten.iter().enumerate().map(entry).collect();
            sent(ten);
            let answer = sqs("SendMessageBatch", &json!({"QueueUrl": url, "Entries": entries}));
            let taken = answer["Successful"].as_array().map_or(0, Vec::len);
            assert_eq!(taken, ten.len(), "SendMessageBatch to {}: {answer}", self.queue);
        }
    }

    /// Messages on the tenant's queue, those included that somebody works on, as SQS counts them.
    #[must_use]
    pub fn messages(&self) -> usize {
        let names = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        ];
        let asked = json!({"QueueUrl": self.queue_url(), "AttributeNames": names});
        let answer = sqs("GetQueueAttributes", &asked);
        let count = |name: &str| answer["Attributes"][name].as_str()?.parse::<usize>().ok();
        names.iter().filter_map(|name| count(name)).sum()
    }

    /// Throws away what is on the tenant's queue.
    pub fn purge(&self) {
        let _ = sqs("PurgeQueue", &json!({"QueueUrl": self.queue_url()}));
    }

    /// How its actions stand: one cheap call, to be asked often.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let item = json!({
            "TableName": variable("TENANTS_TABLE"),
            "Key": {"account_id": {"S": self.account}, "sk": {"S": "TENANT"}},
            "ConsistentRead": true,
        });
        let answer = aws("dynamodb", "DynamoDB_20120810.GetItem", &item);
        let count = |name: &str| {
            let found = answer["Item"]["tenant"]["M"][name]["N"].as_str();
            let number = found.and_then(|text| text.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in the tenant {}: {answer}", self.account))
        };
        Standing {
            completed: count("actions_completed"),
            failed: count("actions_failed"),
            in_flight: count("in_flight"),
        }
    }

    fn queue_url(&self) -> Value {
        sqs("GetQueueUrl", &json!({"QueueName": self.queue}))["QueueUrl"].take()
    }

    /// The tenant's ledger, oldest receipt first.
    #[must_use]
    pub fn ledger(&self) -> Vec<Value> {
        let exported = ggen(&["export-receipts", "--account-id", &self.account], "");
        let lines = exported.lines().filter(|line| line.starts_with('{'));
        lines
            .map(|line| serde_json::from_str(line).expect("a receipt in JSON"))
            .collect()
    }

    /// Whether one of the tenant's last receipts is such an operation: one cheap call, to be asked often.
    #[must_use]
    pub fn has_receipt(&self, operation: &str) -> bool {
        let query = json!({
            "TableName": variable("RECEIPTS_TABLE"),
            "KeyConditionExpression": "account_id = :account",
            "ExpressionAttributeValues": {":account": {"S": self.account}},
            "ScanIndexForward": false,
            "Limit": 5,
        });
        // A ledger's line is itself JSON, and so is quoted here.
        aws("dynamodb", "DynamoDB_20120810.Query", &query)
            .to_string()
            .contains(&format!("\\\"{operation}\\\""))
    }
}

/// How a tenant's actions stand.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Those that were done.
    pub completed: usize,
    /// Those that failed, were undone or escalated.
    pub failed: usize,
    /// Those that run.
    pub in_flight: usize,
}

impl Standing {
    /// Those that have come to an end.
    #[must_use]
    pub fn ended(self) -> usize {
        self.completed + self.failed
    }
}

fn signed_as(service: &str) -> (String, String) {
    let scope = format!("Credential=test/20260101/us-east-1/{service}/aws4_request");
    (
        "authorization".to_owned(),
        format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"),
    )
}

fn lambda(method: &str, path: &str, body: &[u8]) -> http::Answer {
    let url = format!("{}/2015-03-31/functions/{path}", variable("AWS_ENDPOINT_URL"));
    let answer = http::send(method, &url, &[signed_as("lambda")], body);
    let said = String::from_utf8_lossy(&answer.body);
    assert!(
        answer.status == 200 && !answer.head.contains("x-amz-function-error"),
        "{method} {url}: {said}"
    );
    answer
}

/// Invokes a deployed function and waits for its answer.
#[must_use]
pub fn invoke(function: &str, event: &Value) -> Value {
    let answer = lambda(
        "POST",
        &format!("{function}/invocations"),
        event.to_string().as_bytes(),
    );
    serde_json::from_slice(&answer.body).expect("an answer in JSON")
}

/// Lets so many actions of an account run at one time, as its plan must allow.
pub fn scale(account: &str, concurrency: usize) {
    let answer = invoke(
        &variable("SCALE_FUNCTION"),
        &json!({"account_id": account, "concurrency": concurrency}),
    );
    let is_so = ["scaled", "unchanged"]
        .map(Value::from)
        .contains(&answer["outcome"]);
    assert!(is_so, "scaling {account} to {concurrency}: {answer}");
}

/// A deployed function's environment, as Lambda would give it to a bootstrap.
#[must_use]
pub fn environment(function: &str) -> BTreeMap<String, String> {
    let answer = lambda("GET", &format!("{function}/configuration"), b"");
    let configuration: Value = serde_json::from_slice(&answer.body).expect("a configuration in JSON");
    let variables = configuration["Environment"]["Variables"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let mut env: BTreeMap<String, String> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_str()?.to_owned())))
        .collect();
    env.extend(base_environment(
        function,
        &configuration["MemorySize"].to_string(),
    ));
    env
}

/// What Lambda sets for every function.
#[must_use]
pub fn base_environment(function: &str, memory_mib: &str) -> BTreeMap<String, String> {
    let region = variable("AWS_REGION");
    [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_SESSION_TOKEN", "test"),
        ("AWS_REGION", &region),
        ("AWS_DEFAULT_REGION", &region),
        ("AWS_ENDPOINT_URL", &variable("AWS_ENDPOINT_URL")),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_rust"),
        ("AWS_LAMBDA_FUNCTION_NAME", function),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", memory_mib),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{function}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "2026/11/21/[$LATEST]0"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
        ("_HANDLER", "bootstrap"),
        ("PATH", "/usr/local/bin:/usr/bin/:/bin:/opt/bin"),
        ("LANG", "en_US.UTF-8"),
        ("TZ", ":UTC"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// One call of a service that speaks AWS's JSON protocol.
fn aws(service: &str, target: &str, body: &Value) -> Value {
    let headers = [
        signed_as(service),
        ("x-amz-target".to_owned(), target.to_owned()),
        ("content-type".to_owned(), "application/x-amz-json-1.0".to_owned()),
    ];
    let url = format!("{}/", variable("AWS_ENDPOINT_URL"));
    let answer = http::send("POST", &url, &headers, body.to_string().as_bytes());
    let said = String::from_utf8_lossy(&answer.body);
    assert!(answer.status == 200, "{target} {body}: {said}");
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

fn sqs(operation: &str, body: &Value) -> Value {
    aws("sqs", &format!("AmazonSQS.{operation}"), body)
}

/// Makes a queue that nothing reads; its URL.
#[must_use]
pub fn make_queue(name: &str) -> String {
    let made = sqs("CreateQueue", &json!({"QueueName": name}));
    made["QueueUrl"]
        .as_str()
        .unwrap_or_else(|| panic!("CreateQueue {name}: {made}"))
        .to_owned()
}

/// Has the next invocation of a deployed function start a process: what runs now is ended, as by any new configuration.
pub fn cool(function: &str) {
    let answer = lambda("GET", &format!("{function}/configuration"), b"");
    let configuration: Value = serde_json::from_slice(&answer.body).expect("a configuration in JSON");
    let same = json!({"MemorySize": configuration["MemorySize"]});
    let _ = lambda(
        "PUT",
        &format!("{function}/configuration"),
        same.to_string().as_bytes(),
    );
}

/// Gives a deployed function's variable another value; the one before.
pub fn set_variable(function: &str, name: &str, value: &str) -> String {
    let answer = lambda("GET", &format!("{function}/configuration"), b"");
    let mut configuration: Value = serde_json::from_slice(&answer.body).expect("a configuration in JSON");
    let mut variables = configuration["Environment"]["Variables"].take();
    let before = variables[name].as_str().unwrap_or_default().to_owned();
    variables[name] = json!(value);
    let changed = json!({"Environment": {"Variables": variables}});
    let _ = lambda(
        "PUT",
        &format!("{function}/configuration"),
        changed.to_string().as_bytes(),
    );
    before
}

/// How long each invocation of a deployed function took that ended since then, in milliseconds: what Lambda's `REPORT` lines
/// say. On the local cloud that includes the start of a process, and the way to it.
#[must_use]
pub fn invocations(function: &str, since: Timestamp) -> Vec<f64> {
    let asked = json!({
        "logGroupName": format!("/aws/lambda/{function}"),
        "filterPattern": "REPORT",
        "startTime": since.as_millisecond(),
    });
    let answer = aws("logs", "Logs_20140328.FilterLogEvents", &asked);
    let events = answer["events"].as_array();
    let events = events.unwrap_or_else(|| panic!("the log of {function} has no events: {answer}"));
    let lines = events.iter().filter_map(|event| event["message"].as_str());
    lines
        .filter(|line| line.starts_with("REPORT "))
        .filter_map(|line| line.split_once("\tDuration: ")?.1.split(' ').next()?.parse().ok())
        .collect()
}

/// One call that a deployed function made.
pub struct Call {
    /// Service, as in the credential scope.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// Status of the answer; 0 where there was none.
    pub status: u64,
    /// Consumed read units.
    pub read_units: f64,
    /// Consumed write units.
    pub write_units: f64,
}

impl Call {
    /// Whether it reads a table.
    #[must_use]
    pub fn is_read(&self) -> bool {
        let reads = ["GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems"];
        self.service == "dynamodb" && reads.contains(&self.operation.as_str())
    }
}

/// Empties the meter.
pub fn forget_calls() {
    let _ = http::send("DELETE", &format!("{}/_calls", variable("PROXY_URL")), &[], b"");
}

/// What a function has called since [`forget_calls`], oldest first.
#[must_use]
pub fn calls(function: &str) -> Vec<Call> {
    let answer = http::send("GET", &format!("{}/_calls", variable("PROXY_URL")), &[], b"");
    let calls: Vec<Value> = serde_json::from_slice(&answer.body).expect("the meter's calls in JSON");
    let text = |call: &Value, name: &str| call[name].as_str().unwrap_or("?").to_owned();
    let of_function = calls.iter().filter(|call| call["function"] == function);
    of_function
        .map(|call| Call {
            service: text(call, "service"),
            operation: text(call, "operation"),
            status: call["status"].as_u64().unwrap_or_default(),
            read_units: call["read_units"].as_f64().unwrap_or_default(),
            write_units: call["write_units"].as_f64().unwrap_or_default(),
        })
        .collect()
}

/// Waits for something that happens behind a queue.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(200));
    }
}
