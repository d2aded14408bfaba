//! A backlog on the deployed stack: how soon it is gone beside the work that is in it, alone and next to a noisy neighbour;
//! signals a second beside a loop that only calls the handler; what a signal costs however many wait; and what more
//! governors of one tenant gain.
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a program that prints, and that has nothing better to do than to stop when it cannot go on"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use benches::http::Connection;
use benches::percentile;
use benches::stack::{
    self, Call, Tenant, calls, forget_calls, fresh, invocations, roomy_policy, set_variable, variable,
};
use domain::action::{DEADLINE_MS, idempotency_key};
use domain::webhook::providers::standard::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard};
use domain::webhook::signature::Secret;
use jiff::Timestamp;
use serde_json::{Value, json};

/// How long the handler works for a signal, in milliseconds. Well inside its deadline.
const SLOW_MS: u64 = 300;
/// Signals, and places.
const CASES: [(usize, usize); 6] = [
    (100, 2),
    (100, 10),
    (100, 50),
    (1_000, 10),
    (1_000, 50),
    (1_000, 2),
];
/// A backlog may take so many times its work ÷ places, and so many seconds more.
const DRAIN_AIM: (f64, f64) = (1.3, 2.0);
/// Signals of the neighbour that wait at any time.
const NOISE: usize = 1_000;

/// Places of a tenant that nobody scaled.
const PLAIN: usize = 10;
/// Instant signals of each tenant.
const INSTANT: usize = 300;
const TENANTS: [usize; 2] = [1, 10];

const DEPTHS: [usize; 3] = [1, 100, 1_000];
/// Signals that are sent one after the other for a depth of one.
const SINGLE: usize = 20;
const FLAT_AIM: f64 = 1.2;

/// Places of one tenant, ten for each governor; ten are fed by two, which is Lambda's least.
const PLACES: [usize; 6] = [10, 20, 50, 100, 200, 500];
const GOVERNED: usize = 500;

/// How long beyond its aim a backlog is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked. Each look costs the local cloud some milliseconds, which it then does not have for the governors.
const LOOK: Duration = Duration::from_millis(50);

fn main() {
    stack::arm();
    println!(
        "\nBacklogs on the deployed stack: the queue's mapping feeds the deployed governor, which calls the sample handler. \
         Two\nor more processes of the governor, the local cloud and this bench share the machine."
    );
    let parts: [(&str, fn()); 5] = [
        ("drain", drain),
        ("neighbour", neighbour),
        ("instant", instant),
        ("cost", cost),
        ("governors", governors),
    ];
    // Any of them by name; cargo's own arguments are none.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    for (name, run) in parts {
        if wanted.is_empty() || wanted.iter().any(|one| one == name) {
            run();
        }
    }
}

/// Whether what takes minutes is left out.
fn short() -> bool {
    std::env::var("BACKLOG_SHORT").is_ok_and(|short| short == "1")
}

/// A new tenant that may run so many actions at one time.
fn tenant(places: usize) -> Tenant {
    let sku = fresh("backlog");
    stack::deploy(&roomy_policy(&sku, places));
    let tenant = Tenant::subscribe(&fresh("backlog"), &sku);
    if places > PLAIN {
        stack::scale(&tenant.account, places);
    }
    tenant
}

fn parameters(delay_ms: u64) -> Value {
    match delay_ms {
        0 => json!({"service": "web"}),
        delay_ms => json!({"service": "web", "delay_ms": delay_ms}),
    }
}

/// Signals on a tenant's queue, and when each was sent.
struct Backlog<'a> {
    tenant: &'a Tenant,
    delay_ms: u64,
    /// What had ended before.
    before: stack::Standing,
    sent: BTreeMap<String, Timestamp>,
}

/// What became of a backlog.
struct Drained {
    done: usize,
    /// Of them, those that were not completed: given up by the deadline and undone, most likely.
    undone: usize,
    /// How long each signal that was completed waited, beside its own work, in seconds.
    waits: Vec<f64>,
}

impl<'a> Backlog<'a> {
    fn send(tenant: &'a Tenant, count: usize, delay_ms: u64) -> Self {
        let parameters = parameters(delay_ms);
        let signals: Vec<Value> = (0..count).map(|_| tenant.signal(&parameters)).collect();
        let before = tenant.standing();
        let mut sent = BTreeMap::new();
        tenant.send_all(&signals, |ten| {
            let now = Timestamp::now();
            sent.extend(
                ten.iter()
                    .map(|signal| (text(signal, "action_id").to_owned(), now)),
            );
        });
        Self {
            tenant,
            delay_ms,
            before,
            sent,
        }
    }

    /// Waits until all have ended, or until then; whether they have.
    fn wait(&self, until: Instant) -> bool {
        loop {
            let ended = self.tenant.standing().ended() - self.before.ended();
            if ended >= self.sent.len() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            sleep(LOOK);
        }
    }

    /// What became of it, as tenant and ledger tell. Each action must have one end.
    fn drained(&self) -> Drained {
        let now = self.tenant.standing();
        let mut waits = Vec::new();
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        let ledger = self.tenant.ledger();
        for receipt in &ledger {
            let Some((id, sent)) = self.sent.get_key_value(text(receipt, "action_id")) else {
                continue;
            };
            if !["action_complete", "action_rolled_back"].contains(&text(receipt, "operation")) {
                continue;
            }
            *ends.entry(id).or_default() += 1;
            if receipt["operation"] == "action_complete" {
                let ended: Timestamp = text(receipt, "occurred_at").parse().expect("a time");
                let took = (ended.as_millisecond() - sent.as_millisecond()) as f64;
                waits.push((took - self.delay_ms as f64).max(0.0) / 1e3);
            }
        }
        let twice: Vec<_> = ends.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "actions with two ends: {twice:?}");
        let (done, undone) = (now.ended() - self.before.ended(), now.failed - self.before.failed);
        assert_eq!(
            ends.len(),
            done,
            "actions with an end in the ledger, and as the tenant counts them"
        );
        Drained { done, undone, waits }
    }
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

/// Throws away what waits, and waits for what runs, so that it disturbs nothing that is measured next.
fn abandon(tenant: &Tenant) {
    let until = Instant::now() + PATIENCE;
    // Again, as governors give signals back meanwhile.
    while tenant.standing().in_flight > 0 || tenant.messages() > 0 {
        if Instant::now() > until {
            println!("  {} does not come to rest", tenant.account);
            return;
        }
        tenant.purge();
        sleep(LOOK);
    }
}

/// Waits until no governor has anything to do, so that all invocations are in the log.
fn quiet(tenant: &Tenant, since: Timestamp) -> Vec<f64> {
    let function = variable("GOVERNOR_FUNCTION");
    let mut before = Vec::new();
    stack::wait_until("governors to come to rest", || {
        sleep(Duration::from_millis(1_500));
        let told = invocations(&function, since);
        tenant.messages() == 0 && told == std::mem::replace(&mut before, told.clone())
    });
    before
}

fn p50_p99(samples: &[f64], digits: usize) -> String {
    match samples {
        [] => "none".to_owned(),
        samples => format!(
            "{:.digits$} / {:.digits$}",
            percentile(samples, 50),
            percentile(samples, 99)
        ),
    }
}

fn verdict(holds: bool) -> &'static str {
    if holds { "ok" } else { "MISSED" }
}

fn heading() {
    println!(
        "{:>8}{:>8}{:>16}{:>12}{:>8}{:>9}{:>9}{:>8}{:>22}",
        "signals",
        "places",
        "work ÷ places s",
        "measured s",
        "ratio",
        "aim s",
        "",
        "undone",
        "waiting p50 / p99 s"
    );
}

fn drain() {
    let (times, more) = DRAIN_AIM;
    println!(
        "\nDrain: from the first of the signals to the last action's end, {SLOW_MS} ms of work each. Aim: {times} × work ÷ \
         places + {more} s.\nWaiting: from sent to the end of the action, less its work. undone: given up by the deadline.\n"
    );
    heading();
    for (signals, places) in cases() {
        drain_one(signals, places);
        println!();
    }
}

fn cases() -> impl Iterator<Item = (usize, usize)> {
    let minutes = |(signals, places): &(usize, usize)| signals * SLOW_MS as usize / places > 60_000;
    CASES.into_iter().filter(move |case| !(short() && minutes(case)))
}

/// Prints a row without its end.
fn drain_one(signals: usize, places: usize) {
    let tenant = tenant(places);
    let work = signals as f64 * SLOW_MS as f64 / 1e3 / places as f64;
    let (times, more) = DRAIN_AIM;
    let aim = times * work + more;
    let began = Instant::now();
    let backlog = Backlog::send(&tenant, signals, SLOW_MS);
    let ended = backlog.wait(began + Duration::from_secs_f64(aim) + PATIENCE);
    let took = began.elapsed().as_secs_f64();
    if !ended {
        abandon(&tenant);
    }
    let drained = backlog.drained();
    print!(
        "{signals:>8}{places:>8}{work:>16.1}{took:>12.1}{:>8.2}{aim:>9.1}{:>9}{:>8}{:>22}",
        took / work,
        verdict(ended && took <= aim),
        drained.undone,
        p50_p99(&drained.waits, 1),
    );
    if !ended {
        print!("  gave up after {} were done", drained.done);
    }
}

fn neighbour() {
    println!(
        "\nThe same next to another tenant of {PLAIN} places, of which {NOISE} such signals wait at any time. neighbour: signals \
         of it\nthat ended meanwhile, each second.\n"
    );
    heading();
    let noisy = tenant(PLAIN);
    let quiet = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| noise(&noisy, &quiet));
        stack::wait_until("the neighbour's noise", || noisy.standing().ended() > 0);
        for (signals, places) in cases() {
            let (began, before) = (Instant::now(), noisy.standing().ended());
            drain_one(signals, places);
            let rate = (noisy.standing().ended() - before) as f64 / began.elapsed().as_secs_f64();
            println!("  neighbour {rate:.1}");
        }
        quiet.store(true, Ordering::Relaxed);
    });
    abandon(&noisy);
}

/// Keeps so many signals of a tenant waiting.
fn noise(tenant: &Tenant, quiet: &AtomicBool) {
    let parameters = parameters(SLOW_MS);
    let mut sent = 0;
    while !quiet.load(Ordering::Relaxed) {
        let missing = (NOISE + tenant.standing().ended()).saturating_sub(sent);
        // A call takes ten.
        let missing = missing - missing % 10;
        let signals: Vec<Value> = (0..missing).map(|_| tenant.signal(&parameters)).collect();
        tenant.send_all(&signals, |_| ());
        sent += missing;
        sleep(Duration::from_millis(250));
    }
}

fn instant() {
    println!(
        "\nSignals a second of an instant handler, {INSTANT} of each tenant, {PLAIN} places each. bare: a loop that calls the \
         handler with the\nsame body and headers over {PLAIN} connections, and does nothing else.\n\n{:>8}{:>10}{:>12}\
         {:>14}{:>10}{:>10}{:>22}",
        "tenants", "signals", "signals/s", "bare calls/s", "/ bare", "undone", "waiting p50 / p99 s"
    );
    for count in TENANTS {
        let tenants: Vec<Tenant> = (0..count).map(|_| tenant(PLAIN)).collect();
        let bare = bare_calls_a_second(PLAIN, count * INSTANT);
        let began = Instant::now();
        let backlogs: Vec<_> = tenants
            .iter()
            .map(|tenant| Backlog::send(tenant, INSTANT, 0))
            .collect();
        let until = Instant::now() + PATIENCE;
        // One after the other: the last of them to end is what counts, and each look has its cost.
        let ended = backlogs.iter().filter(|backlog| backlog.wait(until)).count();
        let took = began.elapsed().as_secs_f64();
        if ended < count {
            tenants.iter().for_each(abandon);
        }
        let drained: Vec<_> = backlogs.iter().map(Backlog::drained).collect();
        let waits: Vec<f64> = drained.iter().flat_map(|one| one.waits.clone()).collect();
        let done: usize = drained.iter().map(|one| one.done).sum();
        let undone: usize = drained.iter().map(|one| one.undone).sum();
        let rate = done as f64 / took;
        print!(
            "{count:>8}{done:>10}{rate:>12.0}{bare:>14.0}{:>10.3}{undone:>10}{:>22}",
            rate / bare,
            p50_p99(&waits, 2)
        );
        match ended < count {
            true => println!("  gave up after {done} were done"),
            false => println!(),
        }
    }
}

/// What the handler does for callers that do nothing else.
fn bare_calls_a_second(connections: usize, calls: usize) -> f64 {
    let secret = Secret::standard(&variable("HANDLER_SECRET")).expect("the handler's secret");
    let url = variable("HANDLER_URL");
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                let mut connection = Connection::open(&url);
                for _ in 0..calls / connections {
                    let (account, action_id) = ("bench-bare", fresh("bare"));
                    let body = json!({
                        "action_id": action_id, "account_id": account, "template": "restart-service",
                        "parameters": parameters(0),
                    });
                    let (body, now) = (body.to_string(), Timestamp::now());
                    let key = idempotency_key(account, &action_id);
                    let headers = [
                        ("content-type", "application/json".to_owned()),
                        ("idempotency-key", key.clone()),
                        ("x-deadline-ms", DEADLINE_MS.to_string()),
                        (WEBHOOK_TIMESTAMP, now.as_second().to_string()),
                        (
                            WEBHOOK_SIGNATURE,
                            sign_standard(&secret, &key, now, body.as_bytes()),
                        ),
                        (WEBHOOK_ID, key),
                    ];
                    let status = connection.post("/actions/restart-service", &headers, body.as_bytes());
                    assert_eq!(status, 200, "a bare call of the handler");
                }
            });
        }
    });
    calls as f64 / began.elapsed().as_secs_f64()
}

/// What a signal cost.
struct Cost {
    /// Calls by service and operation, a signal.
    calls: BTreeMap<String, f64>,
    write_units: f64,
    /// Of Lambda's time.
    lambda_ms: f64,
    invocations: f64,
    undone: usize,
    /// Signals that were given up, and are no part of this.
    left: usize,
}

impl Cost {
    fn calls(&self) -> f64 {
        self.calls.values().sum()
    }
}

fn cost() {
    println!(
        "\nWhat a signal costs by how many wait, {SLOW_MS} ms of work each, {PLAIN} places: AWS calls of the governor as the proxy \
         counts them\n(the mapping's own are not), WCU as the local tables say, Lambda's time as its REPORT lines say. A depth \
         of 1: {SINGLE} signals,\neach once the one before has ended.\n"
    );
    let costs = DEPTHS.map(cost_at);
    let row = |name: &str, of: &dyn Fn(&Cost) -> f64| {
        let found: Vec<f64> = costs.iter().map(of).collect();
        print!("{name:<42}");
        found.iter().for_each(|value| print!("{value:>12.2}"));
        (found[1] / found[0], found[2] / found[0], found[2] / found[1])
    };
    print!("{:<42}", "of each signal, at a depth of");
    DEPTHS.iter().for_each(|depth| print!("{depth:>12}"));
    println!("{:>12}{:>12}{:>14}", "100 / 1", "1,000 / 1", "1,000 / 100");
    let names: BTreeSet<&String> = costs.iter().flat_map(|cost| cost.calls.keys()).collect();
    for name in names {
        row(&format!("  {name}"), &|cost| {
            cost.calls.get(name).copied().unwrap_or_default()
        });
        println!();
    }
    row("  invocations", &|cost| cost.invocations);
    println!();
    row("  undone, of all", &|cost| cost.undone as f64);
    println!();
    if costs.iter().any(|cost| cost.left > 0) {
        row("  MISSED: given up, of all", &|cost| cost.left as f64);
        println!();
    }
    type Counted<'a> = (&'a str, &'a dyn Fn(&Cost) -> f64);
    let held: [Counted<'_>; 3] = [
        ("AWS calls", &Cost::calls),
        ("WCU", &|cost| cost.write_units),
        ("Lambda ms", &|cost| cost.lambda_ms),
    ];
    for (name, of) in held {
        let (some, many, growth) = row(name, of);
        let most = some.max(many).max(growth);
        println!("{some:>12.2}{many:>12.2}{growth:>14.2}");
        println!(
            "  aim: a signal's {name} at a greater depth ≤ {FLAT_AIM} times: {most:.2}, {}",
            verdict(most <= FLAT_AIM)
        );
    }
}

fn cost_at(depth: usize) -> Cost {
    let tenant = tenant(PLAIN);
    // A process that has read what it keeps.
    let warm = Backlog::send(&tenant, 1, 0);
    assert!(
        warm.wait(Instant::now() + PATIENCE),
        "the first signal of {}",
        tenant.account
    );
    let _ = quiet(&tenant, Timestamp::now());
    let (since, before) = (Timestamp::now(), tenant.standing());
    forget_calls();
    let rounds = if depth == 1 { SINGLE } else { 1 };
    for _ in 0..rounds {
        let work = Duration::from_millis(depth as u64 * SLOW_MS / PLAIN as u64);
        let backlog = Backlog::send(&tenant, depth, SLOW_MS);
        if !backlog.wait(Instant::now() + work * 2 + PATIENCE) {
            abandon(&tenant);
        }
    }
    let lambda = quiet(&tenant, since);
    let (made, after) = (calls("governor"), tenant.standing());
    let ended = after.ended() - before.ended();
    let signals = ended.max(1) as f64;
    let mut by_operation = BTreeMap::new();
    for call in &made {
        let name = format!("{} {}", call.service, call.operation);
        *by_operation.entry(name).or_default() += 1.0 / signals;
    }
    Cost {
        calls: by_operation,
        write_units: made.iter().map(|call| call.write_units).sum::<f64>() / signals,
        lambda_ms: lambda.iter().sum::<f64>() / signals,
        invocations: lambda.len() as f64 / signals,
        undone: after.failed - before.failed,
        left: (depth * rounds).saturating_sub(ended),
    }
}

fn governors() {
    println!(
        "\nGovernors of one tenant: {GOVERNED} instant signals, by places. governors: as many as the mapping starts at most; \
         transactions:\nTransactWriteItems, and those of them that another writer made void. Processes are warm.\n\n{:>8}{:>11}\
         {:>12}{:>14}{:>14}{:>10}{:>8}{:>14}{:>14}{:>10}",
        "places",
        "governors",
        "signals/s",
        "transactions",
        "/ signal",
        "lost",
        "lost %",
        "calls / signal",
        "Lambda ms",
        "undone"
    );
    // What five hundred places cost a month is above what a tenant may cost by default.
    let scale = variable("SCALE_FUNCTION");
    let budget = set_variable(&scale, "SCALE_BUDGET_USD", "100000");
    for places in PLACES {
        govern(places);
    }
    let _ = set_variable(&scale, "SCALE_BUDGET_USD", &budget);
}

fn govern(places: usize) {
    let tenant = tenant(places);
    // So that each governor has a process.
    let warm = Backlog::send(&tenant, GOVERNED, 0);
    let warmed = warm.wait(Instant::now() + PATIENCE);
    let governors = places.div_ceil(PLAIN).max(2);
    if !warmed {
        abandon(&tenant);
        println!(
            "{places:>8}{governors:>11}  gave up after {} were done",
            warm.drained().done
        );
        return;
    }
    let _ = quiet(&tenant, Timestamp::now());
    forget_calls();
    let (since, began) = (Timestamp::now(), Instant::now());
    let backlog = Backlog::send(&tenant, GOVERNED, 0);
    let ended = backlog.wait(began + PATIENCE);
    let took = began.elapsed().as_secs_f64();
    if !ended {
        abandon(&tenant);
    }
    let lambda: f64 = quiet(&tenant, since).iter().sum();
    let made = calls("governor");
    let tried = |call: &&Call| call.operation == "TransactWriteItems";
    let transactions = made.iter().filter(tried).count();
    let lost = made
        .iter()
        .filter(tried)
        .filter(|call| call.status == 400)
        .count();
    let drained = backlog.drained();
    let done = drained.done.max(1) as f64;
    print!(
        "{places:>8}{governors:>11}{:>12.0}{transactions:>14}{:>14.2}{lost:>10}{:>8.0}{:>14.2}{:>14.1}{:>10}",
        drained.done as f64 / took,
        transactions as f64 / done,
        100.0 * lost as f64 / transactions.max(1) as f64,
        made.len() as f64 / done,
        lambda / done,
        drained.undone,
    );
    match ended {
        true => println!(),
        false => println!("  gave up after {} were done", drained.done),
    }
}
