//! Times as receipts write them: RFC 3339, UTC, exactly milliseconds.

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serializer};

/// Cuts a time to whole milliseconds.
pub(crate) fn truncate(time: Timestamp) -> Timestamp {
    // In range: the result lies between the time itself and the epoch.
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:.3}", truncate(*time)))
}

/// The same for a time that may be absent; one that is, is best skipped.
pub(crate) fn serialize_some<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serialize(time, serializer),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    Timestamp::deserialize(deserializer)
}
