//! The governor as one warm process: how late its deadline is, what a signal takes beside a function that only calls the
//! handler, by batch size; a tenant's first signal; and what a killed governor leaves to the next.
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
use std::path::PathBuf;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use benches::handler::{Handler, Heard};
use benches::percentile;
use benches::runtime_api::{Bootstrap, RuntimeApi};
use benches::stack::{self, Delivery, Tenant, calls, forget_calls, fresh, variable};
use domain::action::{DEADLINE_MS, LEASE_SECONDS};
use serde_json::{Value, json};

/// Actions at once, and how many times.
const SLOW: [(usize, usize); 3] = [(1, 30), (20, 10), (50, 4)];
/// Actions at one time of a tenant that nobody scaled.
const PLAIN: usize = 10;
const OVERSHOOT_AIM_MS: f64 = 5.0;

const BATCHES: [usize; 4] = [1, 2, 5, 10];
const ROUNDS: usize = 10;
/// Of each batch size in each round.
const SIGNALS: usize = 40;
const READS_AIM: usize = 1;
const WRITES_AIM: usize = 2;

const FIRST_COLD: usize = 5;
const FIRST_WARM: usize = 15;
const FIRST_AIM_MS: f64 = 1_000.0;

/// How long a queue keeps a message from others after it was received, as the queues of tenants are made.
const VISIBILITY: Duration = Duration::from_secs(30);
const RECOVERY_AIM_MS: f64 = 1_000.0;

fn main() {
    stack::arm();
    let sku = fresh("sku");
    let policy = stack::policy(&sku, "1.0.0");
    let limit = "concurrent_actions: 20";
    assert!(
        policy.contains(limit),
        "the sample policy is not the one this bench knows"
    );
    stack::deploy(&policy.replace(limit, "concurrent_actions: 60"));
    let handler = Handler::start();
    println!("\nThe governor in one process, started under a Runtime API of the bench, on the local cloud.");
    type Part = fn(&Handler, &str);
    let parts: [(&str, Part); 4] = [
        ("deadline", deadline),
        ("batches", by_batch_size),
        ("first-signal", first_signal),
        ("recovery", recovery),
    ];
    // Any of them by name; cargo's own arguments are none.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            run(&handler, &sku);
        }
    }
}

fn bootstrap(name: &str) -> PathBuf {
    PathBuf::from(variable("BOOTSTRAPS")).join(name)
}

/// The deployed governor's environment, with the bench's own handler.
fn governors(handler: &Handler) -> BTreeMap<String, String> {
    let mut env = stack::environment(&variable("GOVERNOR_FUNCTION"));
    env.insert("HANDLER_BASE_URL".to_owned(), handler.url());
    env
}

fn settled(answer: &Value) -> bool {
    answer["batchItemFailures"] == json!([])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn p50_p99(samples: &[f64]) -> String {
    format!("{:.1} / {:.1}", percentile(samples, 50), percentile(samples, 99))
}

fn judge(what: &str, found: f64, most: f64) {
    let verdict = if found > most { "MISSED" } else { "ok" };
    println!("  aim: {what} ≤ {most} ms: {found:.1}, {verdict}");
}

/// How long after its deadline an action is given up, with others at the same time.
fn deadline(handler: &Handler, sku: &str) {
    println!(
        "\nDeadline of {DEADLINE_MS} ms, p50 / p99 ms. overshoot: from the first byte of the call to the end of its \
         connection, less the\ndeadline; on the receipt: duration_ms of action_timeout, whole; undo: its call's first \
         byte, after the deadline.\n\n\
         {:>8}{:>9}{:>18}{:>10}{:>18}{:>18}{:>14}",
        "at once", "actions", "overshoot", "most", "on the receipt", "undo", "given back"
    );
    let api = RuntimeApi::start();
    let mut governor = api.execute(&bootstrap("governor"), &governors(handler));
    let first = Tenant::subscribe(&fresh("slow"), sku);
    assert!(settled(&governor.invoke(&first.signals(1))), "a first signal");
    for (at_once, times) in SLOW {
        let slow = json!({"service": "web", "delay_ms": 60_000});
        let mut tenants = Vec::new();
        let mut given_back = 0;
        let _ = handler.take();
        for _ in 0..times {
            // One for each time: what of an earlier one was not settled still counts as in flight.
            let tenant = Tenant::subscribe(&fresh("slow"), sku);
            if at_once > PLAIN {
                stack::scale(&tenant.account, at_once);
            }
            let signals: Vec<_> = (0..at_once).map(|_| tenant.signal(&slow)).collect();
            let answer = governor.invoke(&tenant.delivered(&signals, 1));
            given_back += answer["batchItemFailures"].as_array().map_or(at_once, Vec::len);
            tenants.push(tenant);
        }
        let heard: Vec<Heard> = handler.take().into_values().collect();
        let after_deadline =
            |heard: &Heard, end: Option<Instant>| Some(millis(end? - heard.asked?) - DEADLINE_MS as f64);
        let overshoot: Vec<f64> = heard
            .iter()
            .filter_map(|heard| after_deadline(heard, heard.given_up))
            .collect();
        let undone: Vec<f64> = heard
            .iter()
            .filter_map(|heard| after_deadline(heard, heard.undone))
            .collect();
        let told: Vec<f64> = tenants
            .iter()
            .flat_map(Tenant::ledger)
            .filter(|receipt| receipt["operation"] == "action_timeout")
            .filter_map(|receipt| Some(receipt["duration_ms"].as_f64()? - DEADLINE_MS as f64))
            .collect();
        let of = |samples: &[f64]| match samples {
            [] => "none".to_owned(),
            samples => p50_p99(samples),
        };
        println!(
            "{at_once:>8}{:>9}{:>18}{:>10}{:>18}{:>18}{given_back:>14}",
            overshoot.len(),
            of(&overshoot),
            overshoot
                .iter()
                .copied()
                .reduce(f64::max)
                .map_or_else(String::new, |most| format!("{most:.1}")),
            of(&told),
            of(&undone),
        );
        let asked = at_once * times;
        if overshoot.len() < asked {
            println!("  MISSED: {} of {asked} actions ran", overshoot.len());
        }
        if given_back > 0 {
            println!("  MISSED: {given_back} of {asked} messages were given back, not settled");
        }
        if !overshoot.is_empty() {
            let late = percentile(&overshoot, 99).max(if told.is_empty() {
                0.0
            } else {
                percentile(&told, 99)
            });
            judge("overshoot, p99 of both", late, OVERSHOOT_AIM_MS);
        }
    }
}

/// One batch size: a governor's and a caller's time and CPU, and what the governor asks of the tables.
struct Row {
    size: usize,
    tenant: Tenant,
    /// Of each round, ms a signal: the governor's, and the caller's.
    time: [Vec<f64>; 2],
    /// Of all rounds.
    cpu: [Duration; 2],
}

fn by_batch_size(handler: &Handler, sku: &str) {
    let env = governors(handler);
    let mut bare = stack::base_environment("caller", "256");
    bare.insert("HANDLER_BASE_URL".to_owned(), handler.url());
    bare.insert("HANDLER_SECRET".to_owned(), variable("HANDLER_SECRET"));
    let apis = [RuntimeApi::start(), RuntimeApi::start()];
    let mut both = [
        apis[0].execute(&bootstrap("governor"), &env),
        apis[1].execute(&bootstrap("caller"), &bare),
    ];
    let mut rows = BATCHES.map(|size| Row {
        size,
        tenant: Tenant::subscribe(&fresh("batches"), sku),
        time: Default::default(),
        cpu: Default::default(),
    });
    // In turns, so that whatever else the machine does falls on all alike; the first round warms both up.
    for round in 0..=ROUNDS {
        for row in &mut rows {
            for (which, process) in both.iter_mut().enumerate() {
                let (time, cpu) = drive(process, row);
                if round > 0 {
                    row.time[which].push(millis(time) / SIGNALS as f64);
                    row.cpu[which] += cpu;
                }
            }
        }
    }
    drop(both);

    println!(
        "\nA signal of an instant handler, by batch size: {} each. ms: p50 of {ROUNDS} rounds, in turns; CPU: ms of \
         the process. caller:\na function that calls the handler with the same body and headers, and nothing else.\n\n\
         {:>6}{:>13}{:>11}{:>12}{:>11}{:>10}{:>14}{:>12}{:>10}",
        ROUNDS * SIGNALS,
        "batch",
        "governor ms",
        "signals/s",
        "caller ms",
        "signals/s",
        "/ caller",
        "governor CPU",
        "caller CPU",
        "/ caller",
    );
    for row in &rows {
        let [ours, bare] = [0, 1].map(|which: usize| percentile(&row.time[which], 50));
        let [our_cpu, bare_cpu] = row.cpu.map(|cpu| millis(cpu) / (ROUNDS * SIGNALS) as f64);
        println!(
            "{:>6}{ours:>13.2}{:>11.0}{bare:>12.2}{:>11.0}{:>10.1}{our_cpu:>14.2}{bare_cpu:>12.2}{:>10.1}",
            row.size,
            1e3 / ours,
            1e3 / bare,
            ours / bare,
            our_cpu / bare_cpu,
        );
    }

    // Through the proxy, which counts; its own time is not to be measured.
    let mut metered = env;
    metered.insert("AWS_ENDPOINT_URL".to_owned(), variable("PROXY_URL"));
    let api = RuntimeApi::start();
    let mut governor = api.execute(&bootstrap("governor"), &metered);
    println!(
        "\nWhat a warm batch asks of the cloud, as the proxy counts it.\n\n{:>6}{:>8}{:>14}{:>14}{:>14}{:>8}{:>14}",
        "batch", "calls", "/ signal", "table reads", "table writes", "WCU", "/ signal"
    );
    for row in &rows {
        assert!(
            settled(&governor.invoke(&row.tenant.signals(row.size))),
            "warming up"
        );
        forget_calls();
        assert!(
            settled(&governor.invoke(&row.tenant.signals(row.size))),
            "a batch"
        );
        let made = calls("governor");
        let tables = || made.iter().filter(|call| call.service == "dynamodb");
        let reads = tables().filter(|call| call.is_read()).count();
        let writes = tables().count() - reads;
        let units: f64 = tables().map(|call| call.write_units).sum();
        println!(
            "{:>6}{:>8}{:>14.1}{reads:>14}{writes:>14}{units:>8.1}{:>14.1}",
            row.size,
            made.len(),
            made.len() as f64 / row.size as f64,
            units / row.size as f64,
        );
        if reads > READS_AIM || writes > WRITES_AIM {
            println!("  MISSED aim: at most {READS_AIM} read and {WRITES_AIM} writes");
        }
    }
}

/// As many batches as make one round; the time and CPU they took.
fn drive(process: &mut Bootstrap<'_>, row: &Row) -> (Duration, Duration) {
    let events: Vec<_> = (0..SIGNALS / row.size)
        .map(|_| row.tenant.signals(row.size))
        .collect();
    let (cpu, before) = (process.cpu(), Instant::now());
    for event in &events {
        let answer = process.invoke(event);
        assert!(settled(&answer), "a batch of {}: {answer}", row.size);
    }
    (before.elapsed(), process.cpu() - cpu)
}

/// From the webhook's answer to the receipt of a signal that is sent then, by the deployed stack.
fn first_signal(_: &Handler, sku: &str) {
    println!(
        "\nFirst signal after the webhook, on the deployed stack with the sample handler, p50 / p99 ms. cold: entitlement \
         and governor\nhave no process when the webhook comes (it looks whether the governor can work, which starts \
         one).\n\n{:<6}{:>8}{:>22}{:>22}{:>22}",
        "", "tenants", "webhook → answer", "answer → receipt", "webhook → receipt"
    );
    for (name, runs) in [("cold", FIRST_COLD), ("warm", FIRST_WARM)] {
        let mut parts: [Vec<f64>; 3] = Default::default();
        for _ in 0..runs {
            if name == "cold" {
                stack::cool(&variable("ENTITLEMENT_FUNCTION"));
                stack::cool(&variable("GOVERNOR_FUNCTION"));
            }
            let account = fresh("first");
            let delivery = Delivery::created(&account, sku);
            let posted = Instant::now();
            let receipt = delivery.post();
            let answered = Instant::now();
            let tenant = Tenant::of(&account, &receipt);
            tenant.send(&tenant.signal(&json!({"service": "web"})));
            while !tenant.has_receipt("action_complete") {
                assert!(
                    answered.elapsed() < Duration::from_secs(20),
                    "waited in vain for {account}"
                );
                sleep(Duration::from_millis(5));
            }
            let ended = Instant::now();
            for (part, time) in parts
                .iter_mut()
                .zip([answered - posted, ended - answered, ended - posted])
            {
                part.push(millis(time));
            }
        }
        let [answer, receipt, whole] = &parts;
        println!(
            "{name:<6}{runs:>8}{:>22}{:>22}{:>22}",
            p50_p99(answer),
            p50_p99(receipt),
            p50_p99(whole)
        );
        judge("answer → receipt, p99", percentile(receipt, 99), FIRST_AIM_MS);
    }
}

/// When the message of a killed governor is delivered again.
#[derive(Clone, Copy)]
enum Redelivery {
    /// When the queue shows it again.
    Visibility,
    /// Every second: as soon as the claim's lease allows.
    EverySecond,
}

fn recovery(handler: &Handler, sku: &str) {
    println!(
        "\nRecovery: a governor is killed (SIGKILL) while a handler works for it, and another process gets the message \
         again.\nms from the kill to the answer, by which all receipts are committed; ours: the delivery that ends it, \
         with a cold start.\n\n{:<48}{:>10}{:>12}{:>10}{:>14}",
        "delivered again", "total", "of it wait", "ours", "deliveries"
    );
    let env = governors(handler);
    let _ = handler.take();
    let ways = [
        ("when the queue shows it again (30 s)", Redelivery::Visibility),
        (
            "every second (the claim's lease is 20 s)",
            Redelivery::EverySecond,
        ),
    ];
    let recovered: Vec<_> = thread::scope(|scope| {
        let runs: Vec<_> = ways
            .map(|(_, way)| {
                let env = &env;
                scope.spawn(move || recover(handler, sku, env, way))
            })
            .into();
        runs.into_iter()
            .map(|run| run.join().expect("a recovery"))
            .collect()
    });
    for ((name, _), (total, wait, deliveries)) in ways.iter().zip(recovered) {
        let ours = millis(total - wait);
        println!(
            "{name:<48}{:>10.0}{:>12.0}{ours:>10.0}{deliveries:>14}",
            millis(total),
            millis(wait)
        );
        judge("besides waiting", ours, RECOVERY_AIM_MS);
    }
}

/// From the kill to the final receipt: the whole, what of it was waiting, and how many deliveries it took.
fn recover(
    handler: &Handler,
    sku: &str,
    env: &BTreeMap<String, String>,
    way: Redelivery,
) -> (Duration, Duration, usize) {
    let api = RuntimeApi::start();
    let tenant = Tenant::subscribe(&fresh("killed"), sku);
    let signal = tenant.signal(&json!({"service": "web", "delay_ms": 60_000}));
    let action_id = signal["action_id"].as_str().expect("an id").to_owned();
    let mut victim = api.execute(&bootstrap("governor"), env);
    let received = Instant::now();
    victim.hand_out(&tenant.delivered(std::slice::from_ref(&signal), 1));
    handler.wait(&action_id, |heard| heard.asked.is_some());
    let killed = victim.kill();

    let mut deliveries = 1;
    let (began, ended) = loop {
        match way {
            Redelivery::Visibility => sleep(VISIBILITY.saturating_sub(received.elapsed())),
            Redelivery::EverySecond => sleep(Duration::from_secs(1)),
        }
        deliveries += 1;
        let began = Instant::now();
        let mut next = api.execute(&bootstrap("governor"), env);
        let answer = next.invoke(&tenant.delivered(std::slice::from_ref(&signal), deliveries));
        if settled(&answer) {
            break (began, Instant::now());
        }
        let most = Duration::from_secs(LEASE_SECONDS.unsigned_abs()) + VISIBILITY;
        assert!(killed.elapsed() < most, "{action_id} is not settled: {answer}");
    };
    let told: Vec<_> = tenant
        .ledger()
        .iter()
        .filter_map(|receipt| receipt["operation"].as_str().map(str::to_owned))
        .collect();
    for once in ["action_timeout", "action_rolled_back"] {
        let count = told.iter().filter(|operation| *operation == once).count();
        assert_eq!(count, 1, "{once} in the ledger of {}: {told:?}", tenant.account);
    }
    (ended - killed, began - killed, deliveries)
}
