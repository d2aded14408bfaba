//! What `scale` is asked: the schedule's look at all queues, an alarm about one of them, an operator's wish.

use domain::account::{AccountId, IdError};
use serde::Deserialize;
use serde_json::Value;

/// The dimension of an alarm's metric that names a queue.
const QUEUE_NAME: &str = "QueueName";
/// The state in which an alarm asks for something.
const ALARM: &str = "ALARM";

/// How long things take to be believed, where it is not the usual time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Timing {
    /// Seconds that a raise is on trial.
    pub(crate) trial_seconds: Option<u32>,
    /// Seconds without anything to do, before a raise is taken back.
    pub(crate) idle_seconds: Option<u32>,
}

/// An alarm about a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alarm {
    pub(crate) queue: String,
    /// Whether it is on; else it went off, or has too few data.
    pub(crate) on: bool,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Look at the queues of all tenants.
    Poll(Timing),
    /// Look at the queues that alarms are about.
    Alarms(Vec<Alarm>, Timing),
    /// Give a tenant this base.
    Set {
        account_id: AccountId,
        /// Actions at one time.
        concurrency: u64,
    },
}

/// An event that is none of these.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// It has no known form.
    #[error(
        "expected {{\"poll\": true}}, {{\"account_id\": …, \"concurrency\": …}}, or a CloudWatch alarm: invoked by the alarm \
         (`alarmData`), by EventBridge (`detail`) or by SNS (`Records[].Sns.Message`)"
    )]
    Unknown,
    /// An alarm's metric is no queue's.
    #[error("alarm {alarm:?} has no metric with the dimension {QUEUE_NAME}")]
    NoQueue { alarm: String },
    /// An alarm's state is none.
    #[error("alarm {alarm:?} says no state, expected ALARM, OK or INSUFFICIENT_DATA")]
    NoState { alarm: String },
    /// What SNS brought is not JSON.
    #[error("the message that SNS brought is not JSON, expected a CloudWatch alarm")]
    Message(#[source] serde_json::Error),
    /// The account id is none.
    #[error("`account_id` is not one")]
    AccountId(#[source] IdError),
    /// The concurrency is none.
    #[error("`concurrency` is {found}, expected a whole number from 1 on")]
    Concurrency { found: String },
    /// `trial_seconds` or `idle_seconds` is not a number of seconds.
    #[error("`trial_seconds` and `idle_seconds`, where given, are whole numbers of seconds")]
    Seconds(#[source] serde_json::Error),
}

impl Event {
    /// Reads an event.
    ///
    /// # Errors
    /// [`EventError`] says what was expected.
    pub(crate) fn read(event: &Value) -> Result<Self, EventError> {
        if !event.is_object() {
            return Err(EventError::Unknown);
        }
        let asked = Timing::deserialize(event).map_err(EventError::Seconds)?;
        if event.get("poll").and_then(Value::as_bool) == Some(true) {
            return Ok(Self::Poll(asked));
        }
        if let Some(account_id) = event.get("account_id").and_then(Value::as_str) {
            return wish(account_id, event.get("concurrency"));
        }
        if let Some(told) = event.get("alarmData").or_else(|| event.get("detail")) {
            return Ok(Self::Alarms(vec![configured(told)?], asked));
        }
        let records = event.get("Records").and_then(Value::as_array);
        let records = records.filter(|records| !records.is_empty());
        let messages = records.ok_or(EventError::Unknown)?.iter().map(|record| {
            let message = record.pointer("/Sns/Message").and_then(Value::as_str);
            let message = message.ok_or(EventError::Unknown)?;
            notified(&serde_json::from_str(message).map_err(EventError::Message)?)
        });
        Ok(Self::Alarms(messages.collect::<Result<_, _>>()?, asked))
    }
}

fn wish(account_id: &str, concurrency: Option<&Value>) -> Result<Event, EventError> {
    let account_id = AccountId::parse(account_id).map_err(EventError::AccountId)?;
    let wanted = concurrency.and_then(Value::as_u64).filter(|wanted| *wanted > 0);
    match wanted {
        Some(concurrency) => Ok(Event::Set {
            account_id,
            concurrency,
        }),
        None => Err(EventError::Concurrency {
            found: concurrency.map_or_else(|| "missing".to_owned(), Value::to_string),
        }),
    }
}

/// An alarm as CloudWatch and EventBridge tell it.
fn configured(told: &Value) -> Result<Alarm, EventError> {
    let alarm = told
        .get("alarmName")
        .and_then(Value::as_str)
        .ok_or(EventError::Unknown)?;
    let metrics = told.pointer("/configuration/metrics").and_then(Value::as_array);
    let queue = metrics
        .into_iter()
        .flatten()
        .find_map(|metric| queue_of(metric.pointer("/metricStat/metric/dimensions")?));
    made(alarm, queue, told.pointer("/state/value"))
}

/// An alarm as its message to SNS tells it.
fn notified(told: &Value) -> Result<Alarm, EventError> {
    let alarm = told
        .get("AlarmName")
        .and_then(Value::as_str)
        .ok_or(EventError::Unknown)?;
    let one = told.pointer("/Trigger/Dimensions").and_then(queue_of);
    let metrics = told.pointer("/Trigger/Metrics").and_then(Value::as_array);
    let several = || {
        let mut metrics = metrics.into_iter().flatten();
        metrics.find_map(|metric| queue_of(metric.pointer("/MetricStat/Metric/Dimensions")?))
    };
    made(alarm, one.or_else(several), told.get("NewStateValue"))
}

fn made(alarm: &str, queue: Option<&str>, state: Option<&Value>) -> Result<Alarm, EventError> {
    let name = || domain::names::printable(alarm, 256);
    let state = state.and_then(Value::as_str);
    Ok(Alarm {
        queue: queue
            .ok_or_else(|| EventError::NoQueue { alarm: name() })?
            .to_owned(),
        on: state.ok_or_else(|| EventError::NoState { alarm: name() })? == ALARM,
    })
}

/// The queue among a metric's dimensions: an object of names and values, or a list of both.
fn queue_of(dimensions: &Value) -> Option<&str> {
    match dimensions {
        Value::Object(dimensions) => dimensions.get(QUEUE_NAME)?.as_str(),
        Value::Array(dimensions) => {
            let named =
                |dimension: &&Value| dimension.get("name").and_then(Value::as_str) == Some(QUEUE_NAME);
            dimensions.iter().find(named)?.get("value")?.as_str()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(name: &str) -> Value {
        let path = format!("{}/../../events/scale/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn alarm(on: bool) -> Event {
        let queue = "governor-t-github-18404719-e2cb2e4e62eb07b0843727d7d7ac18b8-g1".to_owned();
        Event::Alarms(vec![Alarm { queue, on }], Timing::default())
    }

    #[test]
    fn samples() {
        let asked = Timing::default();
        assert_eq!(Event::read(&sample("schedule")).unwrap(), Event::Poll(asked));
        for name in ["alarm", "alarm-eventbridge", "alarm-sns"] {
            assert_eq!(Event::read(&sample(name)).unwrap(), alarm(true), "{name}");
        }
        assert_eq!(Event::read(&sample("alarm-ok")).unwrap(), alarm(false));
        let Event::Set { concurrency, .. } = Event::read(&sample("concurrency")).unwrap() else {
            panic!()
        };
        assert_eq!(concurrency, 20);
    }

    #[test]
    fn times_may_be_given() {
        let event = json!({ "poll": true, "trial_seconds": 0, "idle_seconds": 7 });
        let asked = Timing {
            trial_seconds: Some(0),
            idle_seconds: Some(7),
        };
        assert_eq!(Event::read(&event).unwrap(), Event::Poll(asked));
    }

    /// An alarm over several metrics, as SNS brings it.
    #[test]
    fn metric_math_names_its_queue_too() {
        let of = |name: &str, value: &str| json!({ "MetricStat": { "Metric": { "Dimensions": [{ "name": name, "value": value }] } } });
        let message = json!({
            "AlarmName": "a",
            "NewStateValue": "ALARM",
            "Trigger": { "Metrics": [{ "Expression": "m1 + m2" }, of("Other", "x"), of("QueueName", "q")] },
        });
        let event = json!({ "Records": [{ "Sns": { "Message": message.to_string() } }] });
        let Event::Alarms(alarms, _) = Event::read(&event).unwrap() else {
            panic!()
        };
        assert_eq!(alarms[0].queue, "q");
    }

    #[test]
    fn what_is_no_event_is_told_what_was_expected() {
        let expected = "expected {\"poll\": true}";
        let state = json!({ "value": "ALARM" });
        for (event, says) in [
            (json!(null), expected),
            (json!([]), expected),
            (json!({}), expected),
            (json!({ "poll": false }), expected),
            (json!({ "Records": [] }), expected),
            (
                json!({ "Records": [{ "eventSource": "aws:sqs", "body": "{}" }] }),
                expected,
            ),
            (json!({ "detail": { "something": "else" } }), expected),
            (
                json!({ "Records": [{ "Sns": { "Message": "ALARM: lag" } }] }),
                "is not JSON",
            ),
            (
                json!({ "alarmData": { "alarmName": "a\u{7}", "state": state } }),
                "has no metric with the dimension QueueName",
            ),
            (
                json!({ "poll": true, "trial_seconds": -1 }),
                "whole numbers of seconds",
            ),
            (
                json!({ "account_id": "", "concurrency": 1 }),
                "`account_id` is not one",
            ),
            (json!({ "account_id": "c" }), "`concurrency` is missing"),
            (
                json!({ "account_id": "c", "concurrency": 0 }),
                "`concurrency` is 0",
            ),
            (
                json!({ "account_id": "c", "concurrency": 1.5 }),
                "`concurrency` is 1.5",
            ),
        ] {
            let error = Event::read(&event).unwrap_err().to_string();
            assert!(error.contains(says), "{event}: {error}");
        }
        let mut stateless = sample("alarm");
        stateless["alarmData"]["state"] = json!({});
        let error = Event::read(&stateless).unwrap_err().to_string();
        assert!(error.contains("says no state"), "{error}");
    }
}
