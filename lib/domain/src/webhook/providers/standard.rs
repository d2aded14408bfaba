//! Senders that follow the Standard Webhooks specification (1.0).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::account::{AccountId, EntitlementId, PlanType, SkuId};
use crate::entitlement::Granularity;
use crate::json::object;
use crate::time::StatedTime;
use crate::webhook::event::{Change, EntitlementEvent, PlanReference, ProductReference, WebhookEvent};
use crate::webhook::payload::{self, DEFAULT_REGION, Date, Number, PayloadError};
use crate::webhook::provider::Provider;
use crate::webhook::signature::{
    self, Headers, Secret, SecretError, SignatureError, TOLERANCE_SECONDS, Verified, malformed, not_of_form,
};

/// The row of the table.
pub static PROVIDER: Provider = Provider {
    name: "standard",
    // The first two are older than the table; each takes the same events as the third.
    paths: &["/webhooks/entitlement", "/webhooks/cancel", "/webhooks/standard"],
    secret_variable: "STANDARD_WEBHOOK_SECRET_ID",
    resends: true,
    granularity: Granularity::Instant,
    secret: Secret::standard,
    verify: verify_standard,
    sign: |secret, id, now, body| {
        vec![
            (WEBHOOK_ID, id.to_owned()),
            (WEBHOOK_TIMESTAMP, now.as_second().to_string()),
            (WEBHOOK_SIGNATURE, sign_standard(secret, id, now, body)),
        ]
    },
    id_prefix: "msg_",
    plan_ids: None,
    parse,
};

/// Most signatures looked at in one header: a sender that rotates keys sends a few.
pub const MAX_SIGNATURES: usize = 16;

const NO_SIGNATURE: &str = "holds no `v1,` signature of 32 bytes in base64";

/// The sender's id of the delivery.
pub const WEBHOOK_ID: &str = "webhook-id";
/// When the delivery was signed, in seconds since 1970.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Space-separated `v1,<base64>` signatures.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";

/// One spelling of the three headers.
struct Names {
    id: &'static str,
    timestamp: &'static str,
    signature: &'static str,
}

const NAMES: Names = Names {
    id: WEBHOOK_ID,
    timestamp: WEBHOOK_TIMESTAMP,
    signature: WEBHOOK_SIGNATURE,
};
/// What senders that are hosted by Svix write, where they did not choose the names of the specification.
const BRANDED: Names = Names {
    id: "svix-id",
    timestamp: "svix-timestamp",
    signature: "svix-signature",
};

impl Names {
    /// The spelling of these headers. Never a mixture: no sender writes one, so who does means to confuse.
    fn of(headers: &Headers) -> &'static Self {
        let written = |names: &Self| {
            [names.id, names.timestamp, names.signature]
                .iter()
                .any(|name| headers.contains_key(*name))
        };
        if !written(&NAMES) && written(&BRANDED) {
            &BRANDED
        } else {
            &NAMES
        }
    }
}

impl Secret {
    /// Reads a Standard Webhooks secret, `whsec_` and 24 to 64 bytes in base64.
    ///
    /// # Errors
    /// [`SecretError`] when the text is not such a secret.
    pub fn standard(text: &str) -> Result<Self, SecretError> {
        let text = Self::plain(text)?.trim();
        if text.starts_with("v1,") {
            return Err(SecretError::Version);
        }
        let encoded = text.strip_prefix("whsec_").ok_or(SecretError::Prefix)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?;
        if !(24..=64).contains(&bytes.len()) {
            return Err(SecretError::Length(bytes.len()));
        }
        Self::new(&bytes)
    }
}

/// What the derivation of producers' secrets begins with; no account id continues it to that of another.
const PRODUCER: &[u8] = b"marketplace-governor/producer/v1\n";

impl Secret {
    /// The secret of those who ask for actions of one account, derived from this one: HMAC-SHA256 of
    /// `marketplace-governor/producer/v1`, a line feed and the account id. It tells nothing of this one or of another
    /// account's.
    ///
    /// # Errors
    /// [`SecretError`] never: 32 bytes are a key.
    pub fn of_producer(&self, account_id: &AccountId) -> Result<Self, SecretError> {
        Self::new(&self.producer_key(account_id))
    }

    /// The same as the producer is given it, `whsec_` and its 32 bytes in base64.
    #[must_use]
    pub fn producer_text(&self, account_id: &AccountId) -> String {
        format!("whsec_{}", STANDARD.encode(self.producer_key(account_id)))
    }

    fn producer_key(&self, account_id: &AccountId) -> [u8; 32] {
        self.mac(&[PRODUCER, account_id.as_str().as_bytes()])
    }
}

/// Signs as a Standard Webhooks sender does: `v1,` and base64 HMAC-SHA256 of `id.timestamp.body`.
#[must_use]
pub fn sign_standard(secret: &Secret, id: &str, timestamp: Timestamp, body: &[u8]) -> String {
    let seconds = timestamp.as_second().to_string();
    let mac = secret.mac(&[id.as_bytes(), b".", seconds.as_bytes(), b".", body]);
    format!("v1,{}", STANDARD.encode(mac))
}

/// Checks a Standard Webhooks delivery against every active secret. `svix-*` headers are taken in place of `webhook-*`
/// ones where there are none of these.
///
/// # Errors
/// [`SignatureError`] when a header is missing or malformed, the timestamp is more than 300 s away, or nothing matches.
pub fn verify_standard<'a>(
    secrets: &[Secret],
    headers: &Headers,
    body: &'a [u8],
    now: Timestamp,
) -> Result<Verified<'a>, SignatureError> {
    let names = Names::of(headers);
    let id = signature::delivery_id(headers, names.id)?;
    let timestamp = signature::required(headers, names.timestamp)?;
    let signatures = signature::required(headers, names.signature)?;
    let seconds = seconds(timestamp).ok_or_else(|| {
        let problem = "is not a whole number of seconds since 1970";
        not_of_form(names.timestamp, timestamp, problem)
    })?;
    if seconds.abs_diff(now.as_second()) > TOLERANCE_SECONDS.unsigned_abs() {
        return Err(SignatureError::Stale {
            header: names.timestamp,
        });
    }
    let candidates = candidates(names.signature, signatures)?;
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
    if !signature::matches(secrets, &signed, &candidates) {
        return Err(SignatureError::NoMatch);
    }
    Ok(Verified::new(PROVIDER.name, id, body))
}

/// Twelve digits last for 30,000 years, and are too few for today's milliseconds.
fn seconds(text: &str) -> Option<i64> {
    let digits = text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The `v1` signatures of a header. Other versions are another algorithm's: skipped, as the specification asks.
fn candidates(header: &'static str, text: &str) -> Result<Vec<[u8; 32]>, SignatureError> {
    let mut found = Vec::with_capacity(2);
    for (place, signature) in text.split(' ').enumerate() {
        if place == MAX_SIGNATURES {
            return Err(malformed(header, "holds more than 16 signatures"));
        }
        let Some(encoded) = signature.strip_prefix("v1,") else {
            continue;
        };
        match digest(encoded) {
            Some(digest) => found.push(digest),
            None if encoded.contains(',') => return Err(not_of_form(header, encoded, NO_SIGNATURE)),
            None => {}
        }
    }
    if found.is_empty() {
        return Err(malformed(header, NO_SIGNATURE));
    }
    Ok(found)
}

fn digest(encoded: &str) -> Option<[u8; 32]> {
    // Decoders work in groups of three bytes.
    let mut bytes = [0; 33];
    let length = STANDARD.decode_slice(encoded, &mut bytes).ok()?;
    bytes.first_chunk().copied().filter(|_| length == 32)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    timestamp: Option<Date>,
    #[serde(deserialize_with = "object")]
    data: Data,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Data {
    account_id: AccountId,
    entitlement_id: Option<EntitlementId>,
    sku_id: Option<SkuId>,
    plan_type: Option<PlanType>,
    region: Option<String>,
    version: Option<Number>,
    effective_at: Option<Date>,
    expires_at: Option<Date>,
}

/// What is read of an event whose data is not what ours hold.
#[derive(Deserialize)]
struct Other<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(rename = "data")]
    _data: Option<IgnoredAny>,
}

/// The one thing looked for in an event that we do not know.
#[derive(Deserialize)]
struct Named {
    #[serde(deserialize_with = "object")]
    data: NamedData,
}

#[derive(Deserialize)]
struct NamedData {
    account_id: AccountId,
}

/// The types of events we know.
enum Kind {
    Created,
    Changed,
    Suspended,
    Reinstated,
    Renewed,
    Cancelled,
}

impl Kind {
    fn of(r#type: &str) -> Option<Self> {
        Some(match r#type {
            "entitlement.created" | "entitlement.purchased" => Self::Created,
            "entitlement.changed" => Self::Changed,
            "entitlement.suspended" => Self::Suspended,
            "entitlement.reinstated" => Self::Reinstated,
            "entitlement.renewed" => Self::Renewed,
            "entitlement.cancelled" | "entitlement.canceled" => Self::Cancelled,
            _ => return None,
        })
    }
}

/// Reads a body: `{"type": …, "timestamp": …, "data": {…}}`. Unknown fields are ignored.
///
/// # Errors
/// [`PayloadError`] naming the field that is missing or mistyped.
fn parse(delivery: &Verified<'_>, _headers: &Headers) -> Result<WebhookEvent, PayloadError> {
    let body = delivery.body();
    let envelope: Envelope<'_> = match payload::read(body) {
        Ok(envelope) => envelope,
        // The data of an event that is not ours may be anything.
        Err(error) => {
            return match payload::read::<Other<'_>>(body) {
                Ok(other) if Kind::of(&other.r#type).is_none() => Ok(unknown(&other.r#type, account(body))),
                _ => Err(error),
            };
        }
    };
    let Some(kind) = Kind::of(&envelope.r#type) else {
        return Ok(unknown(&envelope.r#type, Some(envelope.data.account_id)));
    };
    let mut data = envelope.data;
    // What never ends has no end.
    let expires_at = payload::stated(data.expires_at.take()).at();
    let change = match kind {
        Kind::Created => Change::Granted {
            plan: data.plan()?,
            region: data.region()?,
            expires_at,
        },
        Kind::Changed => Change::PlanChanged { plan: data.plan()? },
        Kind::Suspended => Change::Suspended,
        Kind::Reinstated => Change::Reinstated,
        Kind::Renewed => Change::Renewed { expires_at },
        Kind::Cancelled => Change::Cancelled,
    };
    let effective_at = match payload::stated(data.effective_at.take()) {
        StatedTime::Never => return Ok(WebhookEvent::never(data.account_id, &change)),
        stated => stated.or(payload::stated(envelope.timestamp)).at(),
    };
    Ok(WebhookEvent::Entitlement(EntitlementEvent {
        account_id: data.account_id,
        entitlement_id: data.entitlement_id,
        product: data.sku_id.map(ProductReference::Sku),
        version: data.version.map(|Number(version)| version),
        effective_at,
        change,
    }))
}

impl Data {
    /// The plan, of an event that must name one.
    fn plan(&mut self) -> Result<PlanReference, PayloadError> {
        let missing = |field| PayloadError::missing("data", field);
        Ok(PlanReference::Canonical {
            sku_id: self.sku_id.clone().ok_or_else(|| missing("sku_id"))?,
            plan_type: self.plan_type.take().ok_or_else(|| missing("plan_type"))?,
        })
    }

    /// The region. It becomes part of receipts, which take no control characters.
    fn region(&mut self) -> Result<String, PayloadError> {
        let region = self.region.take().unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let named = (1..=64).contains(&region.len()) && region.bytes().all(|b| b.is_ascii_graphic());
        if !named {
            return Err(PayloadError::custom(
                "data.region",
                "not 1 to 64 visible ASCII characters",
            ));
        }
        Ok(region)
    }
}

fn account(body: &[u8]) -> Option<AccountId> {
    payload::read::<Named>(body)
        .ok()
        .map(|named| named.data.account_id)
}

fn unknown(r#type: &str, account_id: Option<AccountId>) -> WebhookEvent {
    WebhookEvent::Ignored {
        account_id,
        reason: format!("unknown event type{}", payload::named(r#type)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASTER: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    /// What Python's hmac makes of the derivation, and of a signature with what was derived.
    #[test]
    fn a_producers_secret_is_its_accounts() {
        let master = Secret::standard(MASTER).unwrap();
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let body = br#"{"template":"restart-service"}"#;
        for (account, text, signature) in [
            (
                "customer-123",
                "whsec_QaGy8NaWSLDidBVh+d94IawUhRuFe1FP8vyEqMgEQeQ=",
                "v1,9pGQrLRVyDLKBmZ5/O4WiV3Pgjf94CfV7XrNl01WkHw=",
            ),
            (
                "ünïcode/../_system #1",
                "whsec_7yRIgIU/edAlSIoXOPGIsmbZyTkNgHZDhAoi7QfosDA=",
                "v1,pHzHNCeghUC3OKHFxX2+2xJ6gx5tAY7gDTFfLtvcksE=",
            ),
            (
                "_system",
                "whsec_xrBkm0N1u2XZ4g8oLgzujldDsXvbeNe6kor1fGO8SyE=",
                "v1,J/ihUyILR/G9s9eSonjTFG7hmLwpJoYb+Z4riPdQ7kE=",
            ),
        ] {
            let account = AccountId::parse(account).unwrap();
            assert_eq!(master.producer_text(&account), text);
            let derived = master.of_producer(&account).unwrap();
            let given = Secret::standard(text).unwrap();
            for secret in [derived, given] {
                assert_eq!(sign_standard(&secret, "msg_1", at, body), signature, "{account}");
            }
        }
    }
}
