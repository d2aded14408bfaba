//! Canonical JSON (RFC 8785): the integers it keeps, and the hash that names it.

use std::ops::RangeInclusive;

use sha2::{Digest, Sha256};

/// Largest integer that survives every JSON reader unchanged: 2^53 − 1 (RFC 8785 section 3.2.2.3, RFC 7493).
pub const MAX_INTEGER: i64 = 9_007_199_254_740_991;

/// Integers that survive every JSON reader.
pub(crate) const INTEGERS: RangeInclusive<i64> = -MAX_INTEGER..=MAX_INTEGER;

/// Lower-case hex SHA-256, the name of every bundle.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
