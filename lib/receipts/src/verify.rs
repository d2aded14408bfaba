//! Checking a ledger line, and a chain of lines.

use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use thiserror::Error;
use uuid::Uuid;

use crate::canonical::{FormError, sha256_hex};
use crate::key::{KeyRing, PublicKey, SignatureError, signature_bytes, verify_batch};
use crate::ledger::{Head, Tip};
use crate::merkle::{Hash, RangeError, leaf_hash};
use crate::receipt::{Receipt, Signed};

/// How much of two differing texts an error quotes.
const QUOTED_CHARS: usize = 32;

/// A line that is not a good receipt.
#[derive(Debug, Error)]
pub enum LineError {
    /// Not JSON, or not the fields of a known operation.
    #[error("the line is not a receipt")]
    Parse {
        #[source]
        source: serde_json::Error,
    },
    /// A value no receipt may hold.
    #[error("the receipt has a value that no receipt may have")]
    Form {
        #[source]
        source: FormError,
    },
    /// Not exactly the canonical form of itself: white space, order, an unknown or repeated field, another spelling.
    #[error(
        "the line is not the canonical form of its receipt: at byte {at} expected {expected:?}, found {found:?}"
    )]
    NotCanonical {
        at: usize,
        expected: String,
        found: String,
    },
    /// `status` is not what the operation means.
    #[error("the status of `{operation}` is {expected:?}, found {found:?}")]
    Status {
        operation: &'static str,
        expected: &'static str,
        found: &'static str,
    },
    /// No signature.
    #[error("the receipt is not signed")]
    Unsigned,
    /// Signed by a key nobody vouched for.
    #[error("the receipt is signed by key {key_id}, trusted are: {trusted}")]
    UnknownKey { key_id: String, trusted: String },
    /// Signed by a key that was revoked.
    #[error(
        "the receipt is signed by key {key_id}, which is revoked from {} on: {reason}{}",
        in_millis(*.from),
        if *.placed { "" } else { "; only its place in a ledger shows whether it is older" }
    )]
    RevokedKey {
        key_id: String,
        from: Timestamp,
        reason: String,
        /// Whether the receipt was checked in its place, where its date can be believed.
        placed: bool,
    },
    /// The signature does not hold.
    #[error("the receipt's signature does not hold")]
    Signature {
        #[source]
        source: SignatureError,
    },
    /// A spool line that says it is none.
    #[error("`spooled` is false in a spool line")]
    NotSpooled,
}

/// Checks one ledger line (without its line feed) by itself: form, values, key, signature. Not its place in a ledger.
///
/// A receipt of a revoked key does not hold here, whatever its date: whoever has the key can write any date. Where a
/// proof shows its place, use [`verify_placed_line`].
///
/// # Errors
/// [`LineError`] says which rule the line breaks.
pub fn verify_line(line: &str, keys: &KeyRing) -> Result<Receipt, LineError> {
    read_signed(line, keys)
}

/// As [`verify_line`] for a line whose place in a ledger is proved by other means, so that its date can be believed: it
/// holds if its key was not revoked yet.
///
/// # Errors
/// [`LineError`] says which rule the line breaks.
pub fn verify_placed_line(line: &str, keys: &KeyRing) -> Result<Receipt, LineError> {
    let (receipt, signed_bytes) = read::<Receipt>(line)?;
    check_signature(&receipt, &signed_bytes, keys, receipt.placed_at())?;
    Ok(receipt)
}

/// As [`verify_line`], for every kind of signed line.
pub(crate) fn read_signed<T: Signed + DeserializeOwned>(line: &str, keys: &KeyRing) -> Result<T, LineError> {
    let (value, signed_bytes) = read::<T>(line)?;
    check_signature(&value, &signed_bytes, keys, None)?;
    Ok(value)
}

/// Reads a line strictly, and the bytes its signature and hash are over.
pub(crate) fn read<T: Signed + DeserializeOwned>(line: &str) -> Result<(T, String), LineError> {
    let value: T = serde_json::from_str(line).map_err(|source| LineError::Parse { source })?;
    let canonical = value.text().map_err(|source| LineError::Form { source })?;
    if canonical != line {
        let (at, expected, found) = difference(&canonical, line);
        return Err(LineError::NotCanonical { at, expected, found });
    }
    let payload = value.payload();
    let (expected, found) = (payload.status(), value.status());
    if expected != found {
        let operation = payload.operation();
        return Err(LineError::Status {
            operation,
            expected: expected.as_str(),
            found: found.as_str(),
        });
    }
    let signed_bytes = without_signature(line, value.signature()).ok_or(LineError::Unsigned)?;
    Ok((value, signed_bytes))
}

/// The line without the field `signature`, as it was signed. `None` for a line that has none.
///
/// Cut rather than serialised again: inside a string the quotes would be escaped, so these bytes are the field. Searched
/// from the end, which is near.
fn without_signature(line: &str, signature: &str) -> Option<String> {
    const NAME: &str = "\"signature\":\"";
    let (before, rest) = line.rsplit_once(NAME)?;
    let after = rest.strip_prefix(signature)?.strip_prefix("\",")?;
    (!signature.is_empty()).then(|| [before, after].concat())
}

/// `placed_at` is the date of a line that stands in a ledger.
fn check_signature<T: Signed>(
    value: &T,
    signed_bytes: &str,
    keys: &KeyRing,
    placed_at: Option<Timestamp>,
) -> Result<(), LineError> {
    key_of(value, keys, placed_at)?
        .verify(signed_bytes.as_bytes(), value.signature())
        .map_err(|source| LineError::Signature { source })
}

/// The key that must have signed a line, if it is trusted and counts.
fn key_of<'k, T: Signed>(
    value: &T,
    keys: &'k KeyRing,
    placed_at: Option<Timestamp>,
) -> Result<&'k PublicKey, LineError> {
    let key = keys.get(value.key_id()).ok_or_else(|| LineError::UnknownKey {
        key_id: value.key_id().to_owned(),
        trusted: keys.key_ids().collect::<Vec<_>>().join(", "),
    })?;
    if let Some(revoked) = keys
        .revocation(value.key_id())
        .filter(|revoked| placed_at.is_none_or(|at| at >= revoked.from))
    {
        return Err(LineError::RevokedKey {
            key_id: value.key_id().to_owned(),
            from: revoked.from,
            reason: revoked.reason.clone(),
            placed: placed_at.is_some(),
        });
    }
    Ok(key)
}

/// A line that is good by itself, as its place and its tree need it.
#[derive(Debug)]
pub(crate) struct Checked {
    receipt: Receipt,
    hash: String,
    leaf: Hash,
}

/// As [`verify_placed_line`] for many lines, with their signatures as one batch: the good ones before the first bad one,
/// and what is wrong with that.
pub(crate) fn check_lines(lines: &[&str], keys: &KeyRing) -> (Vec<Checked>, Option<LineError>) {
    struct Line<'a, 'k> {
        text: &'a str,
        receipt: Receipt,
        signed_bytes: String,
        key: &'k PublicKey,
    }
    let mut good = Vec::with_capacity(lines.len());
    let mut signatures = Vec::with_capacity(lines.len());
    let mut wrong = None;
    for &text in lines {
        let line = read::<Receipt>(text).and_then(|(receipt, signed_bytes)| {
            let key = key_of(&receipt, keys, receipt.placed_at())?;
            let signature =
                signature_bytes(&receipt.signature).map_err(|source| LineError::Signature { source })?;
            signatures.push(signature);
            Ok(Line {
                text,
                receipt,
                signed_bytes,
                key,
            })
        });
        match line {
            Ok(line) => good.push(line),
            Err(error) => {
                wrong = Some(error);
                break;
            }
        }
    }
    let messages: Vec<_> = good.iter().map(|line| line.signed_bytes.as_bytes()).collect();
    let signers: Vec<_> = good.iter().map(|line| line.key).collect();
    if !verify_batch(&messages, &signatures, &signers) {
        // One after another: which it is, and in what way.
        let bad = good.iter().enumerate().find_map(|(at, line)| {
            let checked = line
                .key
                .verify(line.signed_bytes.as_bytes(), &line.receipt.signature);
            checked.err().map(|source| (at, source))
        });
        if let Some((at, source)) = bad {
            wrong = Some(LineError::Signature { source });
            good.truncate(at);
        }
    }
    let checked = good.into_iter().map(|line| Checked {
        hash: sha256_hex(line.signed_bytes),
        leaf: leaf_hash(line.text),
        receipt: line.receipt,
    });
    (checked.collect(), wrong)
}

/// The first byte where two texts differ, and what stands there in each.
pub(crate) fn difference(expected: &str, found: &str) -> (usize, String, String) {
    let at = expected
        .bytes()
        .zip(found.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let at = (0..=at)
        .rev()
        .find(|&at| expected.is_char_boundary(at) && found.is_char_boundary(at))
        .unwrap_or(0);
    let quote = |text: &str| {
        text.get(at..)
            .unwrap_or_default()
            .chars()
            .take(QUOTED_CHARS)
            .collect()
    };
    (at, quote(expected), quote(found))
}

/// What a receipt in its place must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// All receipts of a ledger name its account.
    Account,
    /// `seq` counts from 0 without gaps.
    Sequence,
    /// `prev_hash` is the predecessor's hash.
    PreviousHash,
    /// `timestamp` is not before the predecessor's.
    TimeOrder,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Account => "account_id is the ledger's",
            Self::Sequence => "seq has no gaps",
            Self::PreviousHash => "prev_hash is the predecessor's hash",
            Self::TimeOrder => "timestamp is not before the predecessor's",
        })
    }
}

/// The first bad receipt of a ledger.
#[derive(Debug, Error)]
pub enum ChainError {
    /// The line is not a good receipt by itself.
    #[error("the receipt at place {place} is not good")]
    Line {
        /// Its place in the ledger, from 0.
        place: u64,
        #[source]
        source: LineError,
    },
    /// A good receipt in the wrong place.
    #[error(
        "receipt {receipt_id} at place {place} breaks the rule \"{rule}\": expected {expected}, found {found}"
    )]
    Link {
        /// Its place in the ledger, from 0.
        place: u64,
        receipt_id: Uuid,
        rule: Rule,
        expected: String,
        found: String,
    },
}

/// Follows one ledger, line by line, from its first receipt.
#[derive(Debug, Clone)]
pub struct Chain {
    account_id: Option<String>,
    tip: Tip,
}

impl Chain {
    /// A ledger from its start; the first receipt says whose it is.
    pub fn new() -> Self {
        Self {
            account_id: None,
            tip: Tip::empty(),
        }
    }

    /// The ledger of one account from its start.
    pub fn of(account_id: &str) -> Self {
        Self {
            account_id: Some(account_id.to_owned()),
            tip: Tip::empty(),
        }
    }

    /// The ledger of one account behind a head that is already trusted.
    ///
    /// # Errors
    /// [`RangeError`] when the head's Merkle range is not one of its size.
    pub fn after(account_id: &str, head: Head) -> Result<Self, RangeError> {
        Ok(Self {
            account_id: Some(account_id.to_owned()),
            tip: Tip::of(head)?,
        })
    }

    /// Where the chain ends so far.
    pub fn head(&self) -> &Head {
        self.tip.head()
    }

    /// The root of the tree over the lines so far.
    pub fn root(&self) -> Hash {
        self.tip.root()
    }

    /// Whose ledger it is; `None` before the first receipt of a [`Chain::new`].
    pub fn account_id(&self) -> Option<&str> {
        self.account_id.as_deref()
    }

    /// Checks the next line by itself and in its place. After an error the chain stands where it stood.
    ///
    /// # Errors
    /// [`ChainError`] names the receipt, the rule and both values.
    pub fn push(&mut self, line: &str, keys: &KeyRing) -> Result<Receipt, ChainError> {
        self.follow(line, |receipt, signed_bytes| {
            check_signature(receipt, signed_bytes, keys, receipt.placed_at())
        })
    }

    /// As [`Chain::push`] without checking the signature: for one who reads receipts it has stored itself.
    ///
    /// # Errors
    /// [`ChainError`] names the receipt, the rule and both values.
    pub fn push_unverified(&mut self, line: &str) -> Result<Receipt, ChainError> {
        self.follow(line, |_, _| Ok(()))
    }

    fn follow(
        &mut self,
        line: &str,
        check: impl FnOnce(&Receipt, &str) -> Result<(), LineError>,
    ) -> Result<Receipt, ChainError> {
        let checked = read::<Receipt>(line)
            .and_then(|(receipt, signed_bytes)| {
                check(&receipt, &signed_bytes)?;
                Ok(Checked {
                    receipt,
                    hash: sha256_hex(signed_bytes),
                    leaf: leaf_hash(line),
                })
            })
            .map_err(|source| self.wrong_line(source))?;
        self.place(checked)
    }

    /// The next line is not good by itself.
    pub(crate) fn wrong_line(&self, source: LineError) -> ChainError {
        let place = self.head().size;
        ChainError::Line { place, source }
    }

    /// Checks that a line stands in its place, and moves behind it.
    pub(crate) fn place(&mut self, checked: Checked) -> Result<Receipt, ChainError> {
        let Checked { receipt, hash, leaf } = checked;
        self.check_place(&receipt)?;
        self.account_id.get_or_insert_with(|| receipt.account_id.clone());
        self.tip.push(leaf, hash, receipt.timestamp);
        Ok(receipt)
    }

    fn check_place(&self, receipt: &Receipt) -> Result<(), ChainError> {
        let head = self.head();
        let broken = |rule, expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            Err(ChainError::Link {
                place: head.size,
                receipt_id: receipt.receipt_id,
                rule,
                expected: expected.to_string(),
                found: found.to_string(),
            })
        };
        if let Some(account_id) = self
            .account_id
            .as_ref()
            .filter(|&account_id| *account_id != receipt.account_id)
        {
            return broken(Rule::Account, account_id, &receipt.account_id);
        }
        if receipt.seq != head.size {
            return broken(Rule::Sequence, &head.size, &receipt.seq);
        }
        if receipt.prev_hash != head.last_hash {
            return broken(Rule::PreviousHash, &head.last_hash, &receipt.prev_hash);
        }
        if receipt.timestamp < head.timestamp {
            return broken(
                Rule::TimeOrder,
                &in_millis(head.timestamp),
                &in_millis(receipt.timestamp),
            );
        }
        Ok(())
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

fn in_millis(time: Timestamp) -> String {
    format!("{time:.3}")
}
