//! Signatures of webhooks, over raw bytes: Standard Webhooks (specification 1.0) and GitHub (`X-Hub-Signature-256`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq};

use super::{DeliveryId, Provider};

/// How far a delivery's timestamp may lie from our clock, in seconds, either way.
pub const TOLERANCE_SECONDS: i64 = 300;
/// Most signatures looked at in one header: a sender that rotates keys sends a few.
pub const MAX_SIGNATURES: usize = 16;
/// Longest delivery id accepted, in characters.
pub const MAX_ID_CHARS: usize = 128;

/// Header names of Standard Webhooks.
pub const WEBHOOK_ID: &str = "webhook-id";
/// When the delivery was signed, in seconds since 1970.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Space-separated `v1,<base64>` signatures.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
/// GitHub's signature header.
pub const GITHUB_SIGNATURE: &str = "x-hub-signature-256";
/// GitHub's delivery id header.
pub const GITHUB_DELIVERY: &str = "x-github-delivery";

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
    /// An empty secret would accept anybody's signature.
    #[error("webhook secret is empty")]
    Empty,
}

/// A key shared with a sender. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Reads a Standard Webhooks secret, `whsec_` and 24 to 64 bytes in base64.
    ///
    /// # Errors
    /// [`SecretError`] when the text is not such a secret.
    pub fn standard(text: &str) -> Result<Self, SecretError> {
        let encoded = text.trim().strip_prefix("whsec_").ok_or(SecretError::Prefix)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?;
        if !(24..=64).contains(&bytes.len()) {
            return Err(SecretError::Length(bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// Takes GitHub's secret, any text.
    ///
    /// # Errors
    /// [`SecretError::Empty`] when there is none.
    pub fn github(text: &str) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        Ok(Self(text.as_bytes().to_vec()))
    }

    fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        // HMAC takes keys of any length (RFC 2104), so this cannot fail; an unusable key matches nothing.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return [0; 32];
        };
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// Why a delivery was not believed. The text says what was wrong with the form, never how near a signature was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// A header is missing.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// A header is not of its form.
    #[error("header {header} {problem}")]
    Malformed {
        /// Which header.
        header: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The timestamp is too far from our clock.
    #[error("header webhook-timestamp is more than {TOLERANCE_SECONDS} s from now")]
    Stale,
    /// No signature fits.
    #[error("no signature matches")]
    NoMatch,
}

/// A delivery whose signature was checked. Only this module makes one.
#[derive(Debug, Clone)]
pub struct Verified<'a> {
    delivery: DeliveryId,
    body: &'a [u8],
}

impl<'a> Verified<'a> {
    /// Which delivery it is.
    #[must_use]
    pub fn delivery(&self) -> &DeliveryId {
        &self.delivery
    }

    /// The bytes that were signed.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// Headers of one delivery by lower-case name.
pub type Headers = std::collections::BTreeMap<String, String>;

fn required<'h>(headers: &'h Headers, name: &'static str) -> Result<&'h str, SignatureError> {
    headers
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
        .ok_or(SignatureError::Missing(name))
}

fn malformed(header: &'static str, problem: &'static str) -> SignatureError {
    SignatureError::Malformed { header, problem }
}

fn delivery_id(header: &'static str, id: &str) -> Result<(), SignatureError> {
    if id.len() > MAX_ID_CHARS {
        return Err(malformed(header, "is longer than 128 characters"));
    }
    // A dot would make `id.timestamp.body` ambiguous, and the specification's ids have none.
    if !id.bytes().all(|b| b.is_ascii_graphic() && b != b'.') {
        return Err(malformed(
            header,
            "may hold only visible ASCII characters without dots",
        ));
    }
    Ok(())
}

fn timestamp_seconds(text: &str) -> Result<i64, SignatureError> {
    let digits = !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| malformed(WEBHOOK_TIMESTAMP, "is not a whole number of seconds since 1970"))
}

/// Signs as a Standard Webhooks sender does: `v1,` and base64 HMAC-SHA256 of `id.timestamp.body`.
#[must_use]
pub fn sign_standard(secret: &Secret, id: &str, timestamp: Timestamp, body: &[u8]) -> String {
    let seconds = timestamp.as_second().to_string();
    let mac = secret.mac(&[id.as_bytes(), b".", seconds.as_bytes(), b".", body]);
    format!("v1,{}", STANDARD.encode(mac))
}

/// Signs as GitHub does: `sha256=` and lower hex HMAC-SHA256 of the body.
#[must_use]
pub fn sign_github(secret: &Secret, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(secret.mac(&[body])))
}

/// Checks a Standard Webhooks delivery against every active secret.
///
/// # Errors
/// [`SignatureError`] when a header is missing or malformed, the timestamp is more than 300 s away, or nothing matches.
pub fn verify_standard<'a>(
    secrets: &[Secret],
    headers: &Headers,
    body: &'a [u8],
    now: Timestamp,
) -> Result<Verified<'a>, SignatureError> {
    let id = required(headers, WEBHOOK_ID)?;
    let timestamp = required(headers, WEBHOOK_TIMESTAMP)?;
    let signatures = required(headers, WEBHOOK_SIGNATURE)?;
    delivery_id(WEBHOOK_ID, id)?;
    let seconds = timestamp_seconds(timestamp)?;
    if seconds.abs_diff(now.as_second()) > TOLERANCE_SECONDS.unsigned_abs() {
        return Err(SignatureError::Stale);
    }
    if signatures.split(' ').count() > MAX_SIGNATURES {
        return Err(malformed(WEBHOOK_SIGNATURE, "holds more than 16 signatures"));
    }
    let mut well_formed = false;
    let mut matched = Choice::from(0);
    for signature in signatures.split(' ') {
        // Other versions than v1 are another algorithm's: skipped, as the specification asks.
        let Some(encoded) = signature.strip_prefix("v1,") else {
            continue;
        };
        let Ok(given) = STANDARD.decode(encoded) else {
            continue;
        };
        if given.len() != 32 {
            continue;
        }
        well_formed = true;
        for secret in secrets {
            let ours = secret.mac(&[id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
            matched |= ours.as_slice().ct_eq(&given);
        }
    }
    if !well_formed {
        return Err(malformed(
            WEBHOOK_SIGNATURE,
            "holds no `v1,` signature of 32 bytes in base64",
        ));
    }
    if !bool::from(matched) {
        return Err(SignatureError::NoMatch);
    }
    Ok(Verified {
        delivery: DeliveryId::new(Provider::Standard, id, body),
        body,
    })
}

/// Checks a GitHub delivery against every active secret. GitHub signs no time, so freshness is dedup's business.
///
/// # Errors
/// [`SignatureError`] when a header is missing or malformed, or nothing matches.
pub fn verify_github<'a>(
    secrets: &[Secret],
    headers: &Headers,
    body: &'a [u8],
) -> Result<Verified<'a>, SignatureError> {
    let signature = required(headers, GITHUB_SIGNATURE)?;
    let id = required(headers, GITHUB_DELIVERY)?;
    delivery_id(GITHUB_DELIVERY, id)?;
    let digest = signature
        .strip_prefix("sha256=")
        .filter(|digest| digest.len() == 64)
        .and_then(|digest| hex::decode(digest).ok())
        .ok_or_else(|| malformed(GITHUB_SIGNATURE, "is not sha256= and 64 hex digits"))?;
    let mut matched = Choice::from(0);
    for secret in secrets {
        matched |= secret.mac(&[body]).as_slice().ct_eq(&digest);
    }
    if !bool::from(matched) {
        return Err(SignatureError::NoMatch);
    }
    Ok(Verified {
        delivery: DeliveryId::new(Provider::Github, id, body),
        body,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    // The published example of Standard Webhooks.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn headers(id: &str, timestamp: &str, signature: &str) -> BTreeMap<String, String> {
        [
            (WEBHOOK_ID, id),
            (WEBHOOK_TIMESTAMP, timestamp),
            (WEBHOOK_SIGNATURE, signature),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
    }

    #[track_caller]
    fn check(id: &str, timestamp: &str, signature: &str, now: i64, expected: Result<(), &str>) {
        let secrets = [Secret::standard(SECRET).unwrap()];
        let got = verify_standard(&secrets, &headers(id, timestamp, signature), BODY, at(now));
        assert_eq!(
            got.map(|_| ()).map_err(|e| e.to_string()),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn published_vector() {
        let secret = Secret::standard(SECRET).unwrap();
        assert_eq!(sign_standard(&secret, ID, at(AT), BODY), SIGNATURE);
        check(ID, "1614265330", SIGNATURE, AT, Ok(()));
    }

    #[test]
    fn tolerance_is_300_seconds_both_ways() {
        check(ID, "1614265330", SIGNATURE, AT + 300, Ok(()));
        check(ID, "1614265330", SIGNATURE, AT - 300, Ok(()));
        let stale = Err("header webhook-timestamp is more than 300 s from now");
        check(ID, "1614265330", SIGNATURE, AT + 301, stale);
        check(ID, "1614265330", SIGNATURE, AT - 301, stale);
    }

    #[test]
    fn malformed_headers_are_named() {
        let form = Err("header webhook-signature holds no `v1,` signature of 32 bytes in base64");
        for signature in [
            "v1,",
            "v2,abc",
            "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            "v1,é",
            "v1,AAAA",
            "garbage",
        ] {
            check(ID, "1614265330", signature, AT, form);
        }
        check(
            ID,
            "1614265330",
            "",
            AT,
            Err("header webhook-signature is missing"),
        );
        check(
            "",
            "1614265330",
            SIGNATURE,
            AT,
            Err("header webhook-id is missing"),
        );
        check(
            "a.b",
            "1614265330",
            SIGNATURE,
            AT,
            Err("header webhook-id may hold only visible ASCII characters without dots"),
        );
        let many = vec![SIGNATURE; 17].join(" ");
        check(
            ID,
            "1614265330",
            &many,
            AT,
            Err("header webhook-signature holds more than 16 signatures"),
        );
        let number = Err("header webhook-timestamp is not a whole number of seconds since 1970");
        for timestamp in [
            "-1614265330",
            "+1614265330",
            "1614265330.0",
            "9223372036854775807",
            "soon",
            " 1614265330",
        ] {
            check(ID, timestamp, SIGNATURE, AT, number);
        }
        check(
            ID,
            "161426533000",
            SIGNATURE,
            AT,
            Err("header webhook-timestamp is more than 300 s from now"),
        );
    }

    #[test]
    fn several_signatures_and_rotating_secrets() {
        let other = Secret::standard("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
        let theirs = sign_standard(&other, ID, at(AT), BODY);
        check(ID, "1614265330", &theirs, AT, Err("no signature matches"));
        check(
            ID,
            "1614265330",
            &format!("v2,zzz {theirs} {SIGNATURE}"),
            AT,
            Ok(()),
        );
        let both = [Secret::standard(SECRET).unwrap(), other];
        assert!(verify_standard(&both, &headers(ID, "1614265330", &theirs), BODY, at(AT)).is_ok());
    }

    #[test]
    fn secrets_that_would_accept_anybody_are_refused() {
        assert_eq!(Secret::standard("whsec_").err(), Some(SecretError::Length(0)));
        assert_eq!(Secret::standard("").err(), Some(SecretError::Prefix));
        assert_eq!(Secret::standard("whsec_!!").err(), Some(SecretError::Base64));
        assert_eq!(Secret::standard("whsec_AAAA").err(), Some(SecretError::Length(3)));
        assert_eq!(Secret::github("").err(), Some(SecretError::Empty));
        assert_eq!(format!("{:?}", Secret::standard(SECRET).unwrap()), "Secret(..)");
    }

    #[track_caller]
    fn check_github(
        signature: Option<&str>,
        delivery: Option<&str>,
        body: &[u8],
        expected: Result<(), &str>,
    ) {
        let secret = Secret::github("It's a Secret to Everybody").unwrap();
        let mut headers = BTreeMap::new();
        signature.map(|s| headers.insert(GITHUB_SIGNATURE.to_owned(), s.to_owned()));
        delivery.map(|d| headers.insert(GITHUB_DELIVERY.to_owned(), d.to_owned()));
        let got = verify_github(&[secret], &headers, body);
        assert_eq!(
            got.map(|_| ()).map_err(|e| e.to_string()),
            expected.map_err(str::to_owned)
        );
    }

    #[test]
    fn github() {
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let body = b"Hello, World!";
        assert_eq!(
            sign_github(&Secret::github("It's a Secret to Everybody").unwrap(), body),
            good
        );
        check_github(Some(good), Some("d-1"), body, Ok(()));
        check_github(
            Some(good),
            Some("d-1"),
            b"Hello, World",
            Err("no signature matches"),
        );
        check_github(
            None,
            Some("d-1"),
            body,
            Err("header x-hub-signature-256 is missing"),
        );
        check_github(Some(good), None, body, Err("header x-github-delivery is missing"));
        let form = Err("header x-hub-signature-256 is not sha256= and 64 hex digits");
        for bad in [
            "sha256=",
            "sha1=757107ea",
            &good[..70],
            &format!("{good}0"),
            &good.replace("75", "zz"),
            "é",
        ] {
            check_github(Some(bad), Some("d-1"), body, form);
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_and_no_guess_passes(id in ".{0,40}", timestamp in ".{0,20}", signature in ".{0,80}", body: Vec<u8>) {
            let secrets = [Secret::standard(SECRET).unwrap()];
            prop_assert!(verify_standard(&secrets, &headers(&id, &timestamp, &signature), &body, at(AT)).is_err());
        }

        #[test]
        fn what_we_sign_verifies_and_any_other_body_does_not(body: Vec<u8>, flip in any::<prop::sample::Index>()) {
            let secret = Secret::standard(SECRET).unwrap();
            let signature = sign_standard(&secret, ID, at(AT), &body);
            let headers = headers(ID, &AT.to_string(), &signature);
            let secrets = [secret];
            prop_assert!(verify_standard(&secrets, &headers, &body, at(AT)).is_ok());
            if !body.is_empty() {
                let mut other = body.clone();
                other[flip.index(body.len())] ^= 1;
                prop_assert_eq!(verify_standard(&secrets, &headers, &other, at(AT)).err(), Some(SignatureError::NoMatch));
            }
        }
    }
}
