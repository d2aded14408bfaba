//! Size, cold start and memory of each function's release bootstrap, beside a function that does nothing.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a program that prints, and that has nothing better to do than to stop when it cannot go on"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use benches::percentile;
use benches::runtime_api::RuntimeApi;
use benches::stack::{self, Delivery, Tenant, fresh, variable};
use serde_json::{Value, json};

const STARTS: usize = 30;
const INIT_AIM_MS: f64 = 20.0;
const MEMORY_AIM_MIB: f64 = 40.0;

/// Whether an answer says that the work was done.
type IsGood = fn(&Value) -> bool;

/// A bootstrap to measure.
struct Subject {
    name: &'static str,
    bootstrap: PathBuf,
    env: BTreeMap<String, String>,
    /// Events to answer, in order.
    events: Vec<(Value, IsGood)>,
    init_ms: Vec<f64>,
    peak_mib: f64,
    resident_mib: f64,
}

impl Subject {
    fn new(name: &'static str, env: BTreeMap<String, String>, events: Vec<(Value, IsGood)>) -> Self {
        let bootstrap = PathBuf::from(variable("BOOTSTRAPS")).join(name);
        Self {
            name,
            bootstrap,
            env,
            events,
            init_ms: Vec::new(),
            peak_mib: 0.0,
            resident_mib: 0.0,
        }
    }

    fn binary_kib(&self) -> u64 {
        kib(&self.bootstrap)
    }

    fn zip_kib(&self) -> u64 {
        kib(&PathBuf::from(variable("ZIPS"))
            .join(self.name)
            .join("bootstrap.zip"))
    }
}

fn kib(path: &PathBuf) -> u64 {
    fs::metadata(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .len()
        / 1024
}

fn main() {
    stack::arm();
    let api = RuntimeApi::start();
    let mut subjects = subjects();
    // In turns, so that whatever else the machine does falls on all alike; the first turn fills the page cache.
    for turn in 0..=STARTS {
        for subject in &mut subjects {
            let started = api.execute(&subject.bootstrap, &subject.env);
            if turn > 0 {
                subject.init_ms.push(started.init.as_secs_f64() * 1e3);
            }
        }
    }
    for subject in &mut subjects {
        let mut started = api.execute(&subject.bootstrap, &subject.env);
        for (event, is_good) in &subject.events {
            let answer = started.invoke(event);
            assert!(is_good(&answer), "{} answered {answer}", subject.name);
        }
        subject.peak_mib = started.memory_kib("VmHWM") / 1024.0;
        subject.resident_mib = started.memory_kib("VmRSS") / 1024.0;
    }
    print(&subjects);
}

/// The functions with the environment that is deployed, each with a tenant, queue and SKU that nobody else touches.
fn subjects() -> Vec<Subject> {
    let sku = fresh("sku");
    stack::deploy(&stack::policy(&sku, "1.0.0"));
    let governed = Tenant::subscribe(&fresh("governed"), &sku);
    let leaving = Tenant::subscribe(&fresh("leaving"), &sku).account;

    let env = |name: &str| stack::environment(&variable(name));
    // The deployed function must not carry out the order before the measured one does.
    let mut cancel_env = env("CANCEL_FUNCTION");
    cancel_env.insert(
        "DECOMMISSION_QUEUE_URL".to_owned(),
        stack::make_queue(&fresh("orders")),
    );
    let order =
        json!({"account_id": leaving, "generation": 1, "requested_at": jiff::Timestamp::now().to_string()});
    let order = json!({"Records": [{
        "messageId": "order", "receiptHandle": "bench", "body": order.to_string(), "attributes": {},
        "messageAttributes": {}, "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:us-east-1:000000000000:orders",
        "awsRegion": "us-east-1"
    }]});

    let accepted: IsGood = |answer| answer["statusCode"] == 200;
    let settled: IsGood = |answer| answer["batchItemFailures"] == json!([]);
    let upgrade = json!({"ontology": stack::policy(&sku, "1.0.1")});
    vec![
        Subject::new(
            "baseline",
            stack::base_environment("baseline", "256"),
            vec![(json!({}), Value::is_object)],
        ),
        Subject::new(
            "entitlement",
            env("ENTITLEMENT_FUNCTION"),
            vec![(Delivery::created(&fresh("account"), &sku).event(), accepted)],
        ),
        Subject::new(
            "cancel",
            cancel_env,
            vec![
                (Delivery::cancelled(&leaving, &sku).event(), accepted),
                (order, settled),
            ],
        ),
        Subject::new(
            "governor",
            env("GOVERNOR_FUNCTION"),
            vec![(governed.signals(10), settled)],
        ),
        Subject::new(
            "health",
            env("HEALTH_FUNCTION"),
            vec![(json!({"probes": 1}), |answer| answer["probes"][0]["good"] == true)],
        ),
        Subject::new(
            "checkpoint",
            env("CHECKPOINT_FUNCTION"),
            vec![(json!({"account_id": governed.account}), |answer| {
                answer["size"].as_u64().is_some_and(|size| size > 0)
            })],
        ),
        Subject::new(
            "signals",
            env("SIGNALS_FUNCTION"),
            vec![(Delivery::signal(&governed.account).event(), |answer| {
                answer["statusCode"] == 202
            })],
        ),
        Subject::new(
            "scale",
            env("SCALE_FUNCTION"),
            vec![(json!({"poll": true}), |answer| answer["errors"] == json!([]))],
        ),
        // Last: it moves the tenants above to another policy.
        Subject::new(
            "policy-upgrade",
            env("POLICY_UPGRADE_FUNCTION"),
            vec![(upgrade, |answer| {
                answer.to_string().contains("\"governors_failed\":0")
            })],
        ),
    ]
}

fn print(subjects: &[Subject]) {
    println!(
        "\nBootstraps, profile release. init: exec to first poll of the Runtime API, {STARTS} starts; memory: after one \
         event\n(cancel: a webhook and its order; governor: a batch of 10). baseline: lambda_runtime and nothing else.\n"
    );
    println!(
        "{:<15}{:>11}{:>9}{:>10}{:>8}{:>10}{:>11}{:>11}{:>10}",
        "function",
        "binary KiB",
        "zip KiB",
        "init p50",
        "p95 ms",
        "/baseline",
        "VmHWM MiB",
        "VmRSS MiB",
        "/baseline"
    );
    println!(
        "{:<15}{:>11}{:>9}{:>10}{:>8}{:>10}{:>11}",
        "aim", "", "", "≤ 20.0", "", "", "≤ 40.0"
    );
    let bare = &subjects[0];
    let bare_ms = percentile(&bare.init_ms, 50);
    for subject in subjects {
        let p50 = percentile(&subject.init_ms, 50);
        let missed: String = [
            (p50 > INIT_AIM_MS, "  MISSED init"),
            (subject.peak_mib > MEMORY_AIM_MIB, "  MISSED memory"),
        ]
        .iter()
        .filter_map(|(is_missed, text)| is_missed.then_some(*text))
        .collect();
        println!(
            "{:<15}{:>11}{:>9}{:>10.1}{:>8.1}{:>10.1}{:>11.1}{:>11.1}{:>10.1}{missed}",
            subject.name,
            subject.binary_kib(),
            subject.zip_kib(),
            p50,
            percentile(&subject.init_ms, 95),
            p50 / bare_ms,
            subject.peak_mib,
            subject.resident_mib,
            subject.peak_mib / bare.peak_mib,
        );
    }
}
