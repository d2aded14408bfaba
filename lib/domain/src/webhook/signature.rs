//! What signatures of all providers have in common: keys, headers, errors, and the proof that a delivery was checked.

use std::collections::BTreeMap;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::de::IgnoredAny;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use super::DeliveryId;

/// How far a delivery's timestamp may lie from our clock, in seconds, either way.
pub const TOLERANCE_SECONDS: i64 = 300;
/// Longest delivery id accepted, in characters.
pub const MAX_ID_CHARS: usize = 128;

/// Why a secret cannot be used. The text never holds the secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// A Standard Webhooks secret begins with `whsec_`.
    #[error("webhook secret does not begin with whsec_")]
    Prefix,
    /// The part after `whsec_` is base64.
    #[error("webhook secret is not base64 after whsec_")]
    Base64,
    /// The specification asks for 24 to 64 bytes.
    #[error("webhook secret has {0} bytes; Standard Webhooks allows 24 to 64")]
    Length(usize),
    /// `v1` names the kind of signature, and is no part of the secret.
    #[error("webhook secret begins with `v1,`; put what follows it, from whsec_ on")]
    Version,
    /// The console of Secrets Manager stores an object unless it is told to store plain text.
    #[error(
        "webhook secret is a JSON object, as the console stores key/value pairs; put the secret itself as plain text"
    )]
    Object,
    /// An empty secret would accept anybody's signature.
    #[error("webhook secret is empty")]
    Empty,
}

/// A key shared with a sender. Its `Debug` shows nothing of it.
///
/// It is kept as the state that HMAC-SHA256 begins with, which costs half a small webhook's arithmetic to derive.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A key of these bytes. Providers say which bytes they accept.
    pub(super) fn new(key: &[u8]) -> Result<Self, SecretError> {
        if key.is_empty() {
            return Err(SecretError::Empty);
        }
        // HMAC takes keys of any length (RFC 2104), so this does not fail.
        Hmac::new_from_slice(key)
            .map(Self)
            .map_err(|_| SecretError::Length(key.len()))
    }

    /// What was put as a secret, without the line feed that an editor or `echo` leaves at its end.
    ///
    /// # Errors
    /// [`SecretError::Object`] when it is no text but a JSON object around one.
    pub(super) fn plain(text: &str) -> Result<&str, SecretError> {
        let text = text.trim_end_matches(['\r', '\n']);
        let object = text.trim_start().starts_with('{');
        let object = object && serde_json::from_str::<BTreeMap<String, IgnoredAny>>(text).is_ok();
        if object {
            Err(SecretError::Object)
        } else {
            Ok(text)
        }
    }

    /// HMAC-SHA256 of the parts, one after the other.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// Why a delivery was not believed. The text says what was wrong with the form, never how near a signature was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A header is missing or empty.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header is not of its form.
    #[error("header {header} {problem}")]
    Malformed {
        header: &'static str,
        problem: &'static str,
    },
    /// The timestamp is too far from our clock.
    #[error("header {header} is more than {TOLERANCE_SECONDS} s from now")]
    Stale { header: &'static str },
    /// No signature fits.
    #[error("no signature matches")]
    NoMatch,
}

/// A delivery whose signature was checked. Only providers make one.
#[derive(Debug, Clone)]
pub struct Verified<'a> {
    delivery: DeliveryId,
    body: &'a [u8],
}

impl<'a> Verified<'a> {
    /// What a provider has checked.
    pub(super) fn new(provider: &'static str, id: &str, body: &'a [u8]) -> Self {
        Self {
            delivery: DeliveryId::new(provider, id, body),
            body,
        }
    }

    /// Which delivery it is.
    #[must_use]
    pub fn delivery(&self) -> &DeliveryId {
        &self.delivery
    }

    /// Which delivery it is, once its body was read.
    #[must_use]
    pub fn into_delivery(self) -> DeliveryId {
        self.delivery
    }

    /// The bytes that were signed.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Headers of one delivery by lower-case name.
pub type Headers = BTreeMap<String, String>;

pub(super) fn malformed(header: &'static str, problem: &'static str) -> SignatureError {
    SignatureError::Malformed { header, problem }
}

/// A header that has to be there.
pub(super) fn required<'h>(headers: &'h Headers, name: &'static str) -> Result<&'h str, SignatureError> {
    headers
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
        .ok_or(SignatureError::Missing(name))
}

/// What is wrong with a header whose form is wrong. Gateways join one that was sent twice with a comma, which is in
/// none of the forms.
pub(super) fn not_of_form(header: &'static str, value: &str, problem: &'static str) -> SignatureError {
    let joined = "holds a comma, as a header does that is sent more than once";
    malformed(header, if value.contains(',') { joined } else { problem })
}

/// The id of a delivery.
pub(super) fn delivery_id<'h>(headers: &'h Headers, name: &'static str) -> Result<&'h str, SignatureError> {
    let id = required(headers, name)?;
    if id.len() > MAX_ID_CHARS {
        return Err(not_of_form(name, id, "is longer than 128 characters"));
    }
    // A dot would make the signed text `id.timestamp.body` ambiguous: the specification asks for ids without.
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'.' | b',');
    if !id.bytes().all(plain) {
        let problem = "may hold only visible ASCII characters without dots";
        return Err(not_of_form(name, id, problem));
    }
    Ok(id)
}

/// Whether one of the candidates is the HMAC of the parts under one of the secrets. All pairs are compared, each in
/// constant time, so that the time taken says nothing about any of them.
pub(super) fn matches(secrets: &[Secret], parts: &[&[u8]], candidates: &[[u8; 32]]) -> bool {
    let mut matched = Choice::from(0);
    for secret in secrets {
        let ours = secret.mac(parts);
        for candidate in candidates {
            matched |= ours.as_slice().ct_eq(candidate);
        }
    }
    matched.into()
}
