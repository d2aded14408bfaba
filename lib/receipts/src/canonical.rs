//! The bytes that are hashed and signed: RFC 8785 (JCS), kept to what `jq -cS` prints byte for byte.

use std::ops::Range;

use serde::Serialize;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Integers in a receipt are below this: an IEEE 754 double, which is what JCS and `jq` print from, holds them exactly.
pub const INTEGER_LIMIT: u64 = 1 << 53;

/// The hash "before the first receipt": 64 zeros.
pub const ZERO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A value that can't stand in a receipt.
#[derive(Debug, Error)]
pub enum FormError {
    /// The value has no JSON form.
    #[error("writing the value as canonical JSON failed")]
    Unrepresentable {
        /// What the encoder said.
        #[source]
        source: serde_json::Error,
    },
    /// An integer a double can't hold exactly.
    #[error("`{field}` is {value}, and an integer in a receipt must be below {INTEGER_LIMIT}")]
    Integer {
        /// The field, or the field that holds the array.
        field: String,
        /// The digits as they would stand in the receipt.
        value: String,
    },
    /// U+007F, which `jq` escapes and RFC 8785 does not.
    #[error(
        "`{field}` contains U+007F, which `jq` and RFC 8785 write differently; see `canonical::without_delete`"
    )]
    Delete {
        /// The field, or the field that holds the array.
        field: String,
    },
    /// A `policy_hash` that is not a SHA-256 in hex.
    #[error("`policy_hash` is {value:?}, not 64 lower-case hex digits")]
    PolicyHash {
        /// What was given.
        value: String,
    },
}

/// The RFC 8785 canonical form of a value.
///
/// # Errors
/// [`FormError::Unrepresentable`] for a value without a JSON form (NaN, a map with keys that are not strings).
pub fn jcs<T: Serialize>(value: &T) -> Result<String, FormError> {
    serde_json_canonicalizer::to_string(value).map_err(|source| FormError::Unrepresentable { source })
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Replaces U+007F by U+FFFD, for text that comes from outside and must not stop a receipt from being written.
pub fn without_delete(text: &str) -> String {
    text.replace('\u{7f}', "\u{fffd}")
}

/// Whether `text` is a SHA-256 as receipts write it.
pub(crate) fn is_sha256_hex(text: &str) -> bool {
    text.len() == ZERO_HASH.len() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks the values of canonical JSON against what `jq` would print differently.
///
/// One pass over the text rather than over the typed value, so that writing and verifying hold the same rule at the
/// price of reading some hundred bytes.
pub(crate) fn check_values(canonical: &str) -> Result<(), FormError> {
    let mut field: Range<usize> = 0..0;
    let mut last_string: Range<usize> = 0..0;
    let mut string_start = None;
    let mut escaped = false;
    let mut integer: Option<(usize, u64)> = None;
    let mut fraction = false;
    let name = |range: &Range<usize>| canonical.get(range.clone()).unwrap_or_default().to_owned();

    for (at, byte) in canonical.bytes().enumerate() {
        if let Some(start) = string_start {
            match byte {
                0x7f => {
                    return Err(FormError::Delete { field: name(&field) });
                }
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    last_string = start..at;
                    string_start = None;
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string_start = Some(at + 1),
            b':' => field = last_string.clone(),
            b'.' => fraction = true,
            b'0'..=b'9' if !fraction => {
                let (start, value) = integer.unwrap_or((at, 0));
                let value = value.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                if value >= INTEGER_LIMIT {
                    let digits = canonical.get(start..).unwrap_or_default();
                    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                    let value = digits.get(..end).unwrap_or_default().to_owned();
                    return Err(FormError::Integer {
                        field: name(&field),
                        value,
                    });
                }
                integer = Some((start, value));
            }
            b',' | b'}' | b']' => {
                integer = None;
                fraction = false;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), &str>) {
        let found = check_values(text).map_err(|error| error.to_string());
        match expected {
            Ok(()) => assert_eq!(found, Ok(()), "{text}"),
            Err(part) => {
                let message = found.expect_err("the text breaks a rule");
                assert!(
                    message.contains(part),
                    "{text}: {message:?} does not say {part:?}"
                );
            }
        }
    }

    #[test]
    fn values_that_jq_prints_alike_pass() {
        check("{}", Ok(()));
        check(
            r#"{"a":9007199254740991,"b":[1,2,9007199254740991],"c":"99999999999999999999"}"#,
            Ok(()),
        );
        check(r#"{"a":0.90071992547409931,"b":-12.5}"#, Ok(()));
        check(r#"{"a":"quote \" then \\","b":"\u0000 tab\t é 😀"}"#, Ok(()));
    }

    #[test]
    fn values_that_jq_prints_differently_are_named() {
        check(r#"{"a":9007199254740992}"#, Err("`a` is 9007199254740992"));
        check(
            r#"{"a":1,"b":{"c":[1,18446744073709552000]}}"#,
            Err("`c` is 18446744073709552000"),
        );
        check(
            r#"{"a":0.5,"b":9007199254740993.5}"#,
            Err("`b` is 9007199254740993"),
        );
        check("{\"a\":\"x\",\"b\":\"\\\"\u{7f}\"}", Err("`b` contains U+007F"));
    }

    #[test]
    fn text_from_outside_can_be_made_fit() {
        assert_eq!(without_delete("a\u{7f}b\n"), "a\u{fffd}b\n");
    }
}
