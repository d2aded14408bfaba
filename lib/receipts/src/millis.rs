//! Times as receipts write them: RFC 3339, UTC, exactly milliseconds.

use jiff::Timestamp;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Cuts a time to whole milliseconds.
pub(crate) fn truncate(time: Timestamp) -> Timestamp {
    // In range: the result lies between the time itself and the epoch.
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// The first second of year 0: before it, a year has more than four digits.
const YEAR_0: i64 = -62_167_219_200;

pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    if time.as_second() < YEAR_0 {
        return Err(S::Error::custom("a time before year 0 cannot stand in a receipt"));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Holder(#[serde(serialize_with = "serialize")] Timestamp);

    #[test]
    fn years_have_four_digits() {
        let written = |second: i64| {
            let holder = Holder(Timestamp::from_second(second).unwrap());
            serde_json::to_string(&holder).map_err(|e| e.to_string())
        };
        assert_eq!(written(YEAR_0).as_deref(), Ok("\"0000-01-01T00:00:00.000Z\""));
        assert!(written(YEAR_0 - 1).is_err_and(|e| e.contains("before year 0")));
        let last = Timestamp::MAX.as_second();
        assert_eq!(written(last).as_deref(), Ok("\"9999-12-30T22:00:00.000Z\""));
    }
}
