//! Logs as JSON lines and metrics in CloudWatch's embedded metric format, both on standard output.

use std::io::Write;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config;

/// Namespace of every metric.
pub const NAMESPACE: &str = "MarketplaceGovernor";

/// Why a function cannot start. `main` shows an error by its `Debug`, so that is the sentence itself.
pub struct StartFailure(String);

impl StartFailure {
    /// The failure as a log line and as what `main` returns.
    pub fn new(error: impl std::error::Error) -> Self {
        tracing::error!(error = %error, "cannot start");
        Self(error.to_string())
    }
}

impl std::fmt::Debug for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartFailure {}

/// Sends log events to standard output as JSON, filtered by `RUST_LOG` (default `info`).
pub fn init() {
    // No filter by spans or fields: that would bring regular expressions into every function.
    let wanted = config::optional(config::RUST_LOG).and_then(|wanted| {
        // An empty directive would stand for errors only.
        let directives: Vec<&str> = wanted
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
            .collect();
        directives.join(",").parse().ok()
    });
    let filter: Targets = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false);
    let subscriber = tracing_subscriber::registry().with(filter).with(lines);
    // Fails only where a subscriber is already set, and then that one serves.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Counts one occurrence of `name`, by function and one more dimension.
pub fn count(function: &str, name: &str, dimension: (&str, &str)) {
    let (key, value) = dimension;
    let fields = [
        ("function", json!(function)),
        (key, json!(value)),
        (name, json!(1)),
    ];
    emit(&[&["function"], &["function", key]], &[(name, "Count")], fields);
}

/// Tells values, each as name, value and CloudWatch's name of its unit, by function.
pub fn measure(function: &str, values: &[(&str, u64, &str)]) {
    let units: Vec<(&str, &str)> = values.iter().map(|(name, _, unit)| (*name, *unit)).collect();
    let fields = values.iter().map(|(name, value, _)| (*name, json!(value)));
    let fields = fields.chain([("function", json!(function))]);
    emit(&[&["function"]], &units, fields);
}

/// CloudWatch makes metrics of the line without a call to it, see the embedded metric format specification.
fn emit<'a>(
    dimensions: &[&[&str]],
    units: &[(&str, &str)],
    fields: impl IntoIterator<Item = (&'a str, Value)>,
) {
    let metrics: Vec<Value> = units
        .iter()
        .map(|(name, unit)| json!({ "Name": name, "Unit": unit }))
        .collect();
    let about = json!({
        "Timestamp": Timestamp::now().as_millisecond(),
        "CloudWatchMetrics": [{ "Namespace": NAMESPACE, "Dimensions": dimensions, "Metrics": metrics }],
    });
    let fields = fields.into_iter().chain([("_aws", about)]);
    let line: Map<String, Value> = fields.map(|(name, value)| (name.to_owned(), value)).collect();
    // A metric that cannot be written must not fail the work it counts; the log has the event as well.
    let _ = writeln!(std::io::stdout().lock(), "{}", Value::Object(line));
}
