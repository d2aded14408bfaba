//! GitHub Marketplace: `marketplace_purchase` events, signed by `X-Hub-Signature-256`.
//!
//! GitHub's numeric ids are its only stable ones: an account is `github-<id>`, the prefix keeps it apart from accounts
//! of other marketplaces, and a plan is known by its id.

use std::borrow::Cow;

use jiff::Timestamp;
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::account::AccountId;
use crate::entitlement::Granularity;
use crate::json::object;
use crate::time::StatedTime;
use crate::webhook::event::{Change, EntitlementEvent, PlanReference, ProductReference, WebhookEvent};
use crate::webhook::payload::{self, DEFAULT_REGION, Date, Number, PayloadError};
use crate::webhook::provider::{PlanIds, Provider};
use crate::webhook::signature::{self, Headers, Secret, SecretError, SignatureError, Verified, not_of_form};

/// The row of the table.
pub static PROVIDER: Provider = Provider {
    name: "github",
    paths: &["/webhooks/github"],
    secret_variable: "GITHUB_WEBHOOK_SECRET_ID",
    resends: false,
    // GitHub dates everything at midnight.
    granularity: Granularity::Day,
    secret: Secret::github,
    verify: verify_at_any_time,
    sign: |secret, id, _, body| {
        vec![
            (GITHUB_DELIVERY, id.to_owned()),
            (GITHUB_SIGNATURE, sign_github(secret, body)),
            (GITHUB_EVENT, MARKETPLACE_PURCHASE.to_owned()),
        ]
    },
    id_prefix: "",
    plan_ids: Some(PlanIds {
        accepts: |id| {
            let digits = id.bytes().all(|byte| byte.is_ascii_digit());
            digits && (1..=18).contains(&id.len()) && !id.starts_with('0')
        },
        form: "1 to 18 digits, the first not 0",
    }),
    parse,
};

/// GitHub's signature header.
pub const GITHUB_SIGNATURE: &str = "x-hub-signature-256";
/// GitHub's delivery id header.
pub const GITHUB_DELIVERY: &str = "x-github-delivery";
/// What GitHub names the kind of event in. It is not signed, and neither is the delivery's id.
pub const GITHUB_EVENT: &str = "x-github-event";
/// The kind of event that is about entitlements.
const MARKETPLACE_PURCHASE: &str = "marketplace_purchase";

impl Secret {
    /// Takes GitHub's secret, any text but a JSON object. A line feed at its end is no part of it.
    ///
    /// # Errors
    /// [`SecretError`] when there is none, or it is an object around one.
    pub fn github(text: &str) -> Result<Self, SecretError> {
        let text = Self::plain(text)?;
        if text.trim().is_empty() {
            return Err(SecretError::Empty);
        }
        Self::new(text.as_bytes())
    }
}

/// Signs as GitHub does: `sha256=` and lower hex HMAC-SHA256 of the body.
#[must_use]
pub fn sign_github(secret: &Secret, body: &[u8]) -> String {
    format!("sha256={}", hex::encode(secret.mac(&[body])))
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
    let given = signature::required(headers, GITHUB_SIGNATURE)?;
    let id = signature::delivery_id(headers, GITHUB_DELIVERY)?;
    let given = digest(given)
        .ok_or_else(|| not_of_form(GITHUB_SIGNATURE, given, "is not sha256= and 64 hex digits"))?;
    if !signature::matches(secrets, &[body], &[given]) {
        return Err(SignatureError::NoMatch);
    }
    Ok(Verified::new(PROVIDER.name, id, body))
}

fn verify_at_any_time<'a>(
    secrets: &[Secret],
    headers: &Headers,
    body: &'a [u8],
    _now: Timestamp,
) -> Result<Verified<'a>, SignatureError> {
    verify_github(secrets, headers, body)
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text.strip_prefix("sha256=")?, &mut digest).ok()?;
    Some(digest)
}

#[derive(Deserialize)]
struct Delivery<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    effective_date: Option<Date>,
    #[serde(deserialize_with = "object")]
    marketplace_purchase: Purchase,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Purchase {
    #[serde(deserialize_with = "object")]
    account: Numbered,
    #[serde(deserialize_with = "object")]
    plan: Numbered,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Numbered {
    id: Number,
}

/// What is read of a delivery that is not what ours are.
#[derive(Deserialize)]
struct Other<'a> {
    #[serde(borrow)]
    action: Option<Cow<'a, str>>,
    /// In the `ping` that GitHub sends for a new webhook.
    zen: Option<IgnoredAny>,
    #[serde(rename = "marketplace_purchase")]
    _purchase: Option<IgnoredAny>,
}

/// The one thing looked for in a delivery whose action we do not know.
#[derive(Deserialize)]
struct Named {
    #[serde(deserialize_with = "object")]
    marketplace_purchase: NamedPurchase,
}

#[derive(Deserialize)]
struct NamedPurchase {
    #[serde(deserialize_with = "object")]
    account: Numbered,
}

/// The actions we know.
enum Action {
    Purchased,
    Changed,
    Cancelled,
    PendingChange,
    PendingChangeCancelled,
}

impl Action {
    fn of(action: &str) -> Option<Self> {
        Some(match action {
            "purchased" => Self::Purchased,
            "changed" => Self::Changed,
            "cancelled" => Self::Cancelled,
            "pending_change" => Self::PendingChange,
            "pending_change_cancelled" => Self::PendingChangeCancelled,
            _ => return None,
        })
    }
}

/// Reads a delivery: JSON, or a form around it, as the listing's content type says. What is about something else than
/// `marketplace_purchase` is not looked into. Unknown fields are ignored.
///
/// # Errors
/// [`PayloadError`] naming the field that is missing or mistyped.
fn parse(delivery: &Verified<'_>, headers: &Headers) -> Result<WebhookEvent, PayloadError> {
    match headers.get(GITHUB_EVENT).map(String::as_str) {
        None | Some(MARKETPLACE_PURCHASE) => {}
        Some("ping") => return Ok(ping()),
        Some(event) => {
            let reason = format!("unhandled GitHub event{}", payload::named(event));
            return Ok(ignored(None, reason));
        }
    }
    let json = of_form(delivery.body());
    let body = json.as_deref().unwrap_or_else(|| delivery.body());
    let Delivery {
        action,
        effective_date,
        marketplace_purchase: purchase,
    } = match payload::read(body) {
        Ok(delivery) => delivery,
        // What an action that is not ours tells may be anything.
        Err(error) => return other(body).ok_or(error),
    };
    let account_id = account(&purchase.account)?;
    let Number(plan) = purchase.plan.id;
    let stated = payload::stated(effective_date);
    let bought = || PlanReference::Provider {
        provider: PROVIDER.name.to_owned(),
        plan_id: plan.to_string(),
    };
    let change = match Action::of(&action) {
        Some(Action::Purchased) => Change::Granted {
            plan: bought(),
            region: DEFAULT_REGION.to_owned(),
            expires_at: None,
        },
        Some(Action::Changed) => Change::PlanChanged { plan: bought() },
        Some(Action::Cancelled) => Change::Cancelled,
        Some(Action::PendingChange) => {
            let reason = format!(
                "pending change to plan {plan}, effective {}: its own event comes then",
                date(stated)
            );
            return Ok(ignored(Some(account_id), reason));
        }
        Some(Action::PendingChangeCancelled) => {
            let reason = format!(
                "pending change withdrawn: plan {plan}, effective {}",
                date(stated)
            );
            return Ok(ignored(Some(account_id), reason));
        }
        None => return Ok(unhandled(Some(account_id), &action)),
    };
    if stated == StatedTime::Never {
        return Ok(WebhookEvent::never(account_id, &change));
    }
    Ok(WebhookEvent::Entitlement(EntitlementEvent {
        account_id,
        entitlement_id: None,
        product: Some(ProductReference::Plan(bought())),
        version: None,
        effective_at: stated.at(),
        change,
    }))
}

/// What a body says that is none of an action we know.
fn other(body: &[u8]) -> Option<WebhookEvent> {
    let other: Other<'_> = payload::read(body).ok()?;
    match other.action {
        Some(action) if Action::of(&action).is_some() => None,
        Some(action) => {
            let named: Option<Named> = payload::read(body).ok();
            let account_id = named.and_then(|named| account(&named.marketplace_purchase.account).ok());
            Some(unhandled(account_id, &action))
        }
        None => other.zen.map(|_| ping()),
    }
}

/// The JSON in a body of `application/x-www-form-urlencoded`, which is GitHub's default. The body itself tells: it is what is
/// signed.
fn of_form(body: &[u8]) -> Option<Vec<u8>> {
    if body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let mut fields = body.split(|byte| *byte == b'&');
    let payload = fields.find_map(|field| field.strip_prefix(b"payload="))?;
    let spaced: Vec<u8> = payload
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    Some(percent_decode(&spaced).collect())
}

fn ping() -> WebhookEvent {
    ignored(None, "GitHub's ping".to_owned())
}

fn account(account: &Numbered) -> Result<AccountId, PayloadError> {
    let Number(id) = account.id;
    AccountId::parse(format!("github-{id}"))
        .map_err(|e| PayloadError::custom("marketplace_purchase.account.id", e))
}

fn date(stated: StatedTime) -> String {
    match stated {
        StatedTime::Unset => "at a time not told".to_owned(),
        StatedTime::At(at) => at.to_string(),
        StatedTime::Never => "never".to_owned(),
    }
}

fn unhandled(account_id: Option<AccountId>, action: &str) -> WebhookEvent {
    ignored(
        account_id,
        format!("unhandled GitHub action{}", payload::named(action)),
    )
}

fn ignored(account_id: Option<AccountId>, reason: String) -> WebhookEvent {
    WebhookEvent::Ignored { account_id, reason }
}
