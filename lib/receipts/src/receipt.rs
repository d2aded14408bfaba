//! What a receipt says: what an operation did, and the fields every receipt has.

mod payload;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::canonical::{FormError, checked_jcs, is_sha256_hex, sha256_hex};
use crate::millis;

pub use payload::{
    ActionOutcome, ArchivedFile, Concurrency, EntitlementOutcome, Payload, PolicyOutcome, Quota, Resources,
    Scaling, Status, UsdDelta,
};

/// A receipt before it has its place in a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Made once, and kept through retries.
    pub receipt_id: Uuid,
    /// Whose ledger; `_system` for what concerns everybody.
    pub account_id: String,
    /// When it happened; stands in the receipt cut to milliseconds.
    pub occurred_at: Timestamp,
    /// How long the operation took, in milliseconds.
    pub duration_ms: u64,
    /// The enforcer that decided, where one did: 64 lower-case hex digits.
    pub policy_hash: Option<String>,
    /// What happened.
    pub payload: Payload,
}

impl Draft {
    /// What happened to an account, at once and under no policy.
    #[must_use]
    pub fn new(receipt_id: Uuid, account_id: &str, payload: Payload, occurred_at: Timestamp) -> Self {
        Self {
            receipt_id,
            account_id: account_id.to_owned(),
            occurred_at,
            duration_ms: 0,
            policy_hash: None,
            payload,
        }
    }

    /// The same, decided under a policy. An empty hash stands for none.
    #[must_use]
    pub fn under(self, policy_hash: &str) -> Self {
        Self {
            policy_hash: (!policy_hash.is_empty()).then(|| policy_hash.to_owned()),
            ..self
        }
    }

    /// The same, of an operation that took so many milliseconds.
    #[must_use]
    pub fn lasting(self, duration_ms: u64) -> Self {
        Self { duration_ms, ..self }
    }
}

/// A receipt in its place.
///
/// Serialised with [`jcs`](crate::jcs) this is the ledger line; without `signature` it is what was hashed and signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Receipt {
    /// Made once, and kept through retries.
    #[cfg_attr(test, schemars(schema_with = "crate::schema::uuid"))]
    pub receipt_id: Uuid,
    /// Place in the ledger, from 0, without gaps.
    pub seq: u64,
    /// When it was appended; never before its predecessor's.
    #[serde(with = "millis")]
    #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
    pub timestamp: Timestamp,
    /// When it happened.
    #[serde(with = "millis")]
    #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
    pub occurred_at: Timestamp,
    /// Whose ledger.
    pub account_id: String,
    /// How it ended.
    pub status: Status,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The enforcer that decided, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(schema_with = "crate::schema::sha256"))]
    pub policy_hash: Option<String>,
    /// The hash of the receipt before this one; 64 zeros for the first.
    #[cfg_attr(test, schemars(schema_with = "crate::schema::sha256"))]
    pub prev_hash: String,
    /// The key that signed.
    #[cfg_attr(test, schemars(schema_with = "crate::schema::key_id"))]
    pub key_id: String,
    /// Ed25519 in base64; empty only while the receipt is being signed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[cfg_attr(test, schemars(schema_with = "crate::schema::signature"))]
    pub signature: String,
    /// What happened, and the field `operation`.
    #[serde(flatten)]
    pub payload: Payload,
}

impl Receipt {
    /// SHA-256 of the canonical bytes without `signature`, in lower-case hex: the next receipt's `prev_hash`.
    ///
    /// # Errors
    /// [`FormError`] when the receipt holds a value that no receipt may hold.
    pub fn hash(&self) -> Result<String, FormError> {
        let unsigned = Self {
            signature: String::new(),
            ..self.clone()
        };
        Ok(sha256_hex(unsigned.text()?))
    }
}

/// What is signed as canonical JSON, with its signature inside.
pub(crate) trait Signed: Serialize + Sized {
    fn policy_hash(&self) -> Option<&str>;
    fn key_id(&self) -> &str;
    fn signature(&self) -> &str;
    fn status(&self) -> Status;
    fn payload(&self) -> &Payload;
    /// When it was put in its place in a ledger; `None` for what has none yet.
    fn placed_at(&self) -> Option<Timestamp>;

    /// The canonical text, held to the rules for values.
    fn text(&self) -> Result<String, FormError> {
        if let Some(value) = self.policy_hash().filter(|value| !is_sha256_hex(value)) {
            return Err(FormError::PolicyHash {
                value: value.to_owned(),
            });
        }
        checked_jcs(self)
    }
}

/// The same fields under the same names.
macro_rules! signed {
    ($type:ty, $placed_at:expr) => {
        impl Signed for $type {
            fn policy_hash(&self) -> Option<&str> {
                self.policy_hash.as_deref()
            }
            fn key_id(&self) -> &str {
                &self.key_id
            }
            fn signature(&self) -> &str {
                &self.signature
            }
            fn status(&self) -> Status {
                self.status
            }
            fn payload(&self) -> &Payload {
                &self.payload
            }
            fn placed_at(&self) -> Option<Timestamp> {
                $placed_at(self)
            }
        }
    };
}

signed!(Receipt, |receipt: &Receipt| Some(receipt.timestamp));

pub(crate) use signed;
