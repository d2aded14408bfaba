//! What each operation of the deployed stack costs: AWS calls by operation, and consumed units, as the proxy counts.
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
use std::thread::sleep;
use std::time::Duration;

use benches::stack::{
    self, Call, Delivery, Tenant, calls, forget_calls, fresh, ggen, invoke, variable, wait_until,
};
use serde_json::{Value, json};

const SECRET_READ: &str = "GetSecretValue";

/// An aim: what is counted, how many there may be, and which calls count.
type Aim = (&'static str, usize, fn(&Call) -> bool);

const AFTER_VERIFICATION: Aim = ("calls besides reads of secrets", 8, |call| {
    call.operation != SECRET_READ
});
const READS: Aim = ("table reads", 1, Call::is_read);
const WRITES: Aim = ("table writes", 2, |call| {
    call.service == "dynamodb" && !call.is_read()
});

fn main() {
    stack::arm();
    let sku = fresh("sku");
    stack::deploy(&stack::policy(&sku, "1.0.0"));
    println!(
        "\nAWS calls of the deployed functions, as the proxy counts them. RCU, WCU: units as the local tables say\n\
         (`?`: they do not).\n\n{:<50}{:>6}{:>10}{:>8}",
        "operation", "calls", "RCU", "WCU"
    );

    let function = variable("ENTITLEMENT_FUNCTION");
    let mut tenants = Vec::new();
    for title in [
        "entitlement webhook, cold start",
        "entitlement webhook, warm",
        "entitlement webhook, warm again",
    ] {
        let account = fresh("account");
        let (receipt, made) = metered(&function, "entitlement", || {
            Delivery::created(&account, &sku).post()
        });
        tenants.push(Tenant::of(&account, &receipt));
        report(title, &made, &[AFTER_VERIFICATION]);
    }

    let function = variable("GOVERNOR_FUNCTION");
    for (title, count) in [
        ("governor, batch of 10, cold start", 10),
        ("governor, batch of 10, warm", 10),
        ("governor, batch of 1, warm", 1),
    ] {
        let signals = tenants[0].signals(count);
        let (answer, made) = metered(&function, "governor", || invoke(&function, &signals));
        assert_eq!(
            answer["batchItemFailures"],
            json!([]),
            "the batch was not settled"
        );
        report(title, &made, &[READS, WRITES]);
        let written: f64 = made.iter().map(|call| call.write_units).sum();
        println!(
            "  a signal: {:.1} calls, {:.1} WCU",
            made.len() as f64 / count as f64,
            written / count as f64
        );
    }

    // By a tenant of its own: the governor goes on with it meanwhile.
    let function = variable("SIGNALS_FUNCTION");
    for title in [
        "signal at the front door, cold start",
        "signal at the front door, warm",
    ] {
        let (_, made) = metered(&function, "signals", || {
            Delivery::signal(&tenants[1].account).post()
        });
        report(title, &made, &[]);
    }

    let function = variable("HEALTH_FUNCTION");
    for title in [
        "health, one probe, cold start",
        "health, one probe, warm (first of a round)",
    ] {
        let (answer, made) = metered(&function, "health", || invoke(&function, &json!({"probes": 1})));
        assert_eq!(answer["probes"][0]["good"], true, "{answer}");
        report(title, &made, &[]);
    }

    let (_, made) = metered(&variable("POLICY_UPGRADE_FUNCTION"), "policy-upgrade", || {
        stack::deploy(&stack::policy(&sku, "1.0.1"));
        Value::Null
    });
    report(
        &format!("policy upgrade, {} tenants, warm", tenants.len()),
        &made,
        &[],
    );

    let (webhook, worker) = cancel(&tenants[0].account, &sku);
    report("cancel webhook, cold start", &webhook, &[]);
    report("cancel worker: drain, archive, remove", &worker, &[]);
}

/// Does something and gives back what one function called meanwhile.
fn metered(function: &str, app: &str, act: impl FnOnce() -> Value) -> (Value, Vec<Call>) {
    forget_calls();
    let answer = act();
    let made = calls(app);
    assert!(!made.is_empty(), "the proxy saw no call of {function}");
    (answer, made)
}

/// Cancels a tenant; the calls of the webhook, and those of the worker behind the queue.
fn cancel(account: &str, sku: &str) -> (Vec<Call>, Vec<Call>) {
    forget_calls();
    let _ = Delivery::cancelled(account, sku).post();
    wait_until("decommission_complete", || {
        ggen(&["export-receipts", "--account-id", account], "").contains("\"decommission_complete\"")
    });
    // The archive's closing receipt is put beside it after the ledger has it.
    let mut before = 0;
    wait_until("the worker's last call", || {
        sleep(Duration::from_millis(500));
        let now = calls("cancel").len();
        now == std::mem::replace(&mut before, now)
    });
    let mut webhook = calls("cancel");
    let order = webhook.iter().position(|call| call.operation == "SendMessage");
    let worker = webhook.split_off(order.expect("the webhook's order to the worker") + 1);
    (webhook, worker)
}

fn report(title: &str, made: &[Call], aims: &[Aim]) {
    println!("\n{title:<50}{:>6}{}", made.len(), units(made));
    let mut by_operation: BTreeMap<(&str, &str), Vec<&Call>> = BTreeMap::new();
    for call in made {
        by_operation
            .entry((&call.service, &call.operation))
            .or_default()
            .push(call);
    }
    for ((service, operation), made) in by_operation {
        let name = format!("  {service} {operation}");
        let units = match service {
            "dynamodb" => units(made.iter().copied()),
            _ => String::new(),
        };
        println!("{name:<50}{:>6}{units}", made.len());
    }
    for (what, most, counts) in aims {
        let found = made.iter().filter(|call| counts(call)).count();
        let verdict = if found > *most { "MISSED" } else { "ok" };
        println!("  aim: {what} ≤ {most}: {found}, {verdict}");
    }
}

/// Consumed units as two columns, with `?` where the tables did not say.
fn units<'a>(made: impl IntoIterator<Item = &'a Call>) -> String {
    let (mut reads, mut writes, mut unsaid) = (0.0, 0.0, "");
    for call in made {
        reads += call.read_units;
        writes += call.write_units;
        if call.is_read() && call.read_units == 0.0 {
            unsaid = "+?";
        }
    }
    format!("{:>10}{writes:>8.1}", format!("{reads:.1}{unsaid}"))
}
