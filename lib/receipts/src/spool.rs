//! The spool's lines: receipts that wait, signed, while the ledger can't be written.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::canonical::FormError;
use crate::key::{KeyRing, Signer};
use crate::millis;
use crate::receipt::{Draft, Payload, Signed, Status, signed};
use crate::verify::{LineError, read_signed};

/// A receipt in the spool: signed, without a place in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Spooled {
    receipt_id: Uuid,
    #[serde(with = "millis")]
    occurred_at: Timestamp,
    account_id: String,
    status: Status,
    duration_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy_hash: Option<String>,
    key_id: String,
    /// Always true. It keeps the two kinds of signed bytes apart.
    spooled: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    signature: String,
    #[serde(flatten)]
    payload: Payload,
}

signed!(Spooled, |_| None);

/// A signed line for the spool, where receipts wait while the ledger can't be written: without `seq`, `prev_hash` and
/// `timestamp`, which only the ledger can give, and with `spooled: true`.
///
/// # Errors
/// [`FormError`] when the draft holds a value that no receipt may hold.
pub fn spool_line(draft: &Draft, signer: &Signer) -> Result<String, FormError> {
    let mut spooled = Spooled {
        receipt_id: draft.receipt_id,
        occurred_at: draft.occurred_at,
        account_id: draft.account_id.clone(),
        status: draft.payload.status(),
        duration_ms: draft.duration_ms,
        policy_hash: draft.policy_hash.clone(),
        key_id: signer.key_id().to_owned(),
        spooled: true,
        signature: String::new(),
        payload: draft.payload.clone(),
    };
    spooled.signature = signer.sign(spooled.text()?.as_bytes());
    spooled.text()
}

/// Reads a spool line back, verified, as the draft to append. Its `occurred_at` is in whole milliseconds.
///
/// # Errors
/// [`LineError`] as for a ledger line.
pub fn parse_spool_line(line: &str, keys: &KeyRing) -> Result<Draft, LineError> {
    let spooled: Spooled = read_signed(line, keys)?;
    if !spooled.spooled {
        return Err(LineError::NotSpooled);
    }
    Ok(Draft {
        receipt_id: spooled.receipt_id,
        account_id: spooled.account_id,
        occurred_at: spooled.occurred_at,
        duration_ms: spooled.duration_ms,
        policy_hash: spooled.policy_hash,
        payload: spooled.payload,
    })
}
