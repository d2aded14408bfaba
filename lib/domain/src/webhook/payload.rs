//! Reading bodies as senders really write them: parse, don't validate.

use std::borrow::Cow;
use std::fmt;

use receipts::wording;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer};

use crate::json::Object;
use crate::time::{StatedTime, rfc3339};

/// Region of a subscription whose sender names none.
pub const DEFAULT_REGION: &str = "us-east-1";

/// Why a delivery could not be understood. The message names the field.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The body is empty.
    #[error("body is empty")]
    Empty,
    /// The body is not JSON, or a field is missing or of the wrong type.
    #[error("body field `{field}`: {}", wording::problem(source))]
    Field {
        /// Path of the field, `.` for the whole body.
        field: String,
        #[source]
        source: serde_json::Error,
    },
}

impl PayloadError {
    /// An error of this field that no reader of JSON knows of.
    pub(super) fn custom(field: &str, problem: impl fmt::Display) -> Self {
        Self::at(field, serde_json::Error::custom(problem))
    }

    /// This object lacks a field.
    pub(super) fn missing(object: &str, field: &'static str) -> Self {
        Self::at(object, serde_json::Error::missing_field(field))
    }

    fn at(field: &str, source: serde_json::Error) -> Self {
        Self::Field {
            field: field.to_owned(),
            source,
        }
    }
}

/// Reads a whole body, which is an object.
pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, PayloadError> {
    if body.is_empty() {
        return Err(PayloadError::Empty);
    }
    let text = str::from_utf8(body).map_err(|e| PayloadError::custom(".", format!("not UTF-8: {e}")))?;
    // Keeping track of paths costs more than reading does, so only a body that cannot be read is read with it.
    match serde_json::from_str(text) {
        Ok(Object(value)) => Ok(value),
        Err(_) => read_with_path(text),
    }
}

#[cold]
fn read_with_path<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, PayloadError> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let Object(value) = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        // The path tracker writes `?` when reading stopped before any field.
        let path = e.path().to_string();
        let field = if path == "?" { "." } else { &path };
        PayloadError::at(field, e.into_inner())
    })?;
    reader.end().map_err(|source| PayloadError::at(".", source))?;
    Ok(value)
}

/// Text that is looked at and not kept.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A date and time of RFC 3339, or the year that stands for none.
pub(super) struct Date(pub(super) StatedTime);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(reader)?;
        let at = rfc3339(&text).map_err(D::Error::custom)?;
        Ok(Self(at.into()))
    }
}

/// What an optional field says.
pub(super) fn stated(date: Option<Date>) -> StatedTime {
    date.map_or(StatedTime::Unset, |Date(stated)| stated)
}

/// A whole number from 0 to 2^64 - 1, which some senders and proxies write as text.
pub(super) struct Number(pub(super) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of at most 64 bits, or one as text")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                let digits = text.bytes().all(|b| b.is_ascii_digit());
                let number = digits.then(|| text.parse().ok()).flatten();
                number
                    .map(Number)
                    .ok_or_else(|| E::custom("text that is not a whole number of at most 64 bits"))
            }
        }

        reader.deserialize_any(Reader)
    }
}

/// A sender's own word for a kind of event, quoted only where it looks like one: a receipt keeps it for ever.
pub(super) fn named(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if word.len() <= 64 && word.bytes().all(plain) {
        format!(" \"{word}\"")
    } else {
        String::new()
    }
}
