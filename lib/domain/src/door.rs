//! The front door to a tenant's queue: what a producer's request asks for, whether it is let in, and what it is told.
//!
//! | code | status | come back |
//! |---|---|---|
//! | `UNAVAILABLE`, `DISARMED` | 503 | soon |
//! | `NOT_FOUND`, `NO_ENTITLEMENT` | 404 | |
//! | `GONE` | 410 | |
//! | `AMBIGUOUS_ENTITLEMENT`, `UNKNOWN_ACTION` | 422 | |
//! | `SUSPENDED` | 403 | |
//! | `POLICY_HASH_MISMATCH`, `ACTION_ID_REUSED` | 409 | |
//! | `DENIED` by the parameters' schema or bounds alone | 422 | |
//! | `DENIED` by a rule | 403 | |
//! | `QUOTA_EXCEEDED` | 429 | next month |
//! | `MALFORMED_SIGNAL` | 400 | |
//!
//! The gate is asked as the governor asks it, and the governor has the last word: what has to wait and what goes to a person
//! is let in.

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use percent_encoding::percent_decode_str;
use policy::decision::{PARAMETER_SCHEMA, is_permit};
use receipts::receipt::{Draft, Payload};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::account::{AccountId, EntitlementId, IdError, SkuId};
use crate::action::{Action, ActionState};
use crate::admission::{Admissions, Enforcers, admit, held};
use crate::control::Control;
use crate::gate::{RefusalCode, Verdict};
use crate::json::{self, Object};
use crate::names::{as_queues_take, printable};
use crate::operations::append_once::append_once;
use crate::signal::{ActionId, ActionIdError, Signal, SignalError};
use crate::tenant::{Lifecycle, Tenant};
use crate::transaction::{Account, Plan};

/// Longest message put on a queue, in bytes: SQS's most.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Characters of a template that tables and receipts keep.
const TEMPLATE_CHARS: usize = 64;

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `POST /tenants/{account_id}/signals`: an action is asked for.
    Ask { account_id: AccountId },
    /// `GET /tenants/{account_id}/actions/{action_id}`: how does an action stand?
    Tell {
        account_id: AccountId,
        action_id: ActionId,
    },
}

/// Why a request is about nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No such path.
    #[error("nothing is at this path")]
    Path,
    /// Another method is meant.
    #[error("this path takes {allowed} only")]
    Method { allowed: &'static str },
    /// A part of the path is not percent-encoded UTF-8.
    #[error("{part} in the path is not percent-encoded UTF-8")]
    Encoding { part: &'static str },
    /// The account id in the path is none.
    #[error("in the path: {0}")]
    Account(#[from] IdError),
    /// The action id in the path is none.
    #[error("in the path: {0}")]
    Action(#[from] ActionIdError),
}

impl Route {
    /// Reads method and path. An account id is percent-encoded in it, or decoded already as HTTP APIs hand it on, slashes
    /// included; what stands before `/tenants/` is the gateway's stage.
    ///
    /// # Errors
    /// [`RouteError`] when nothing is there, the method is another, or an id is none.
    pub fn of(method: &str, path: &str) -> Result<Self, RouteError> {
        let (_, rest) = path.split_once("/tenants/").ok_or(RouteError::Path)?;
        let (ask, tell) = (rest.strip_suffix("/signals"), rest.rsplit_once("/actions/"));
        match (method, ask, tell) {
            ("POST", Some(account), _) => Ok(Self::Ask {
                account_id: account_id(account)?,
            }),
            ("GET", _, Some((account, action))) => Ok(Self::Tell {
                account_id: account_id(account)?,
                action_id: ActionId::try_from(decoded("the action id", action)?)?,
            }),
            (_, Some(_), _) => Err(RouteError::Method { allowed: "POST" }),
            (_, None, Some(_)) => Err(RouteError::Method { allowed: "GET" }),
            (_, None, None) => Err(RouteError::Path),
        }
    }

    /// Whose tenant.
    #[must_use]
    pub fn account_id(&self) -> &AccountId {
        match self {
            Self::Ask { account_id } | Self::Tell { account_id, .. } => account_id,
        }
    }
}

fn account_id(encoded: &str) -> Result<AccountId, RouteError> {
    Ok(AccountId::parse(decoded("the account id", encoded)?)?)
}

/// Percent-decoding (RFC 3986, section 2.1) that forgives nothing: the crate leaves a stray percent sign as it is.
fn decoded(part: &'static str, text: &str) -> Result<String, RouteError> {
    let digits = |encoded: &str| {
        let digits = encoded.bytes().take(2).filter(u8::is_ascii_hexdigit);
        digits.count() == 2
    };
    let whole = text.split('%').skip(1).all(digits);
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|_| whole);
    decoded.map(Cow::into_owned).ok_or(RouteError::Encoding { part })
}

/// What a producer posts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(expecting = "an object")]
pub struct PostedSignal {
    /// Template of the policy to run.
    pub template: String,
    #[serde(default, deserialize_with = "json::map")]
    pub parameters: Map<String, Value>,
    /// Names the action; the delivery does otherwise.
    pub action_id: Option<ActionId>,
    /// The account, where the producer says it once more.
    pub account_id: Option<AccountId>,
    /// The product it is for.
    pub sku_id: Option<SkuId>,
    /// The agreement it is for.
    pub entitlement_id: Option<EntitlementId>,
    /// The policy the producer believes in; the one in force otherwise.
    pub policy_hash: Option<String>,
}

/// A request for an action, from somebody who may ask.
#[derive(Debug, Clone, PartialEq)]
pub struct ActionRequest {
    pub account_id: AccountId,
    /// The sender's id of the delivery.
    pub delivery_id: String,
    /// Names the action.
    pub action_id: ActionId,
    pub posted: PostedSignal,
    /// SHA-256 of the body, as it was sent.
    pub body_digest: [u8; 32],
}

impl ActionRequest {
    /// Reads a body. Unknown fields are passed over. Where no action is named the delivery's id names it, so that one that
    /// is sent again asks for the same action.
    ///
    /// # Errors
    /// [`SignalError`] naming the field that is missing or mistyped.
    pub fn parse(account_id: &AccountId, delivery_id: &str, body: &[u8]) -> Result<Self, SignalError> {
        let whole = |source| SignalError {
            field: ".".to_owned(),
            source,
        };
        let mut reader = serde_json::Deserializer::from_slice(body);
        let Object::<PostedSignal>(posted) = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let path = e.path().to_string();
            SignalError {
                field: if path == "?" { ".".to_owned() } else { path },
                source: e.into_inner(),
            }
        })?;
        reader.end().map_err(whole)?;
        if posted.account_id.as_ref().is_some_and(|said| said != account_id) {
            return Err(SignalError {
                field: "account_id".to_owned(),
                source: serde::de::Error::custom("is not the account in the path"),
            });
        }
        let named = posted.action_id.clone();
        Ok(Self {
            account_id: account_id.clone(),
            delivery_id: delivery_id.to_owned(),
            action_id: named.unwrap_or_else(|| ActionId::of_message(delivery_id)),
            posted,
            body_digest: Sha256::digest(body).into(),
        })
    }

    /// The template, as tables and receipts keep it.
    #[must_use]
    pub fn template(&self) -> String {
        printable(&self.posted.template, TEMPLATE_CHARS)
    }

    fn signal(&self, policy_hash: &str) -> Signal {
        let named = self.posted.policy_hash.as_deref();
        Signal {
            action_id: self.action_id.clone(),
            account_id: self.account_id.clone(),
            sku_id: self.posted.sku_id.clone(),
            entitlement_id: self.posted.entitlement_id.clone(),
            template: self.posted.template.clone(),
            parameters: self.posted.parameters.clone(),
            policy_hash: named.unwrap_or(policy_hash).to_owned(),
        }
    }

    /// Hash of the policy that decides about it, when that can be told.
    #[must_use]
    pub fn pinned_hash<'a>(&self, tenant: Option<&'a Tenant>) -> Option<&'a str> {
        held(&self.signal(""), tenant).map(|(_, held)| held.policy.hash.as_str())
    }
}

/// Why a request was refused, as a machine reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The gate said so.
    Gate(RefusalCode),
    /// The action id stands for an action of another template.
    ActionIdReused,
}

impl Code {
    /// The code as receipts and answers carry it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gate(code) => code.name(),
            Self::ActionIdReused => "ACTION_ID_REUSED",
        }
    }
}

/// When it is worth asking again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryWhen {
    /// Not without a change.
    Never,
    /// In a moment.
    Soon,
    /// When the next UTC month begins.
    NextMonth,
}

/// How a refusal is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Short and the same for every occurrence.
    pub title: &'static str,
    /// When it is worth asking again.
    pub again: RetryWhen,
    /// For people, where nobody said more.
    pub detail: &'static str,
}

/// A refusal at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    /// Rules that decided, when policy did.
    pub rules: Vec<String>,
    /// For people. Names parameters and rules, never quotes what the request carried.
    pub detail: String,
    /// The policy that decided, when one did.
    pub policy_hash: Option<String>,
}

impl Refusal {
    fn new(code: Code, rules: Vec<String>, detail: Option<String>, policy_hash: &str) -> Self {
        let detail = detail.unwrap_or_else(|| reply(code, &rules).detail.to_owned());
        Self {
            code,
            rules,
            detail,
            policy_hash: (!policy_hash.is_empty()).then(|| policy_hash.to_owned()),
        }
    }

    /// The refusal of everything while control is unreadable, or says that storage fails.
    #[must_use]
    pub fn unavailable(detail: &str) -> Self {
        let code = Code::Gate(RefusalCode::Unavailable);
        Self::new(code, Vec::new(), Some(detail.to_owned()), "")
    }

    /// How it is answered.
    #[must_use]
    pub fn reply(&self) -> Reply {
        reply(self.code, &self.rules)
    }

    /// What is put on record. The same delivery of the same body always leaves the same receipt for the same code.
    #[must_use]
    pub fn draft(&self, asked: &ActionRequest, duration_ms: u64, now: Timestamp) -> Draft {
        let (account, code) = (asked.account_id.as_str(), self.code.name());
        // No part holds a line feed.
        let (delivery, body) = (&asked.delivery_id, hex::encode(asked.body_digest));
        let name = format!("{account}\n{delivery}\n{code}\n{body}");
        let payload = Payload::SignalRefused {
            action_id: asked.action_id.as_str().to_owned(),
            template: asked.template(),
            code: code.to_owned(),
            detail: Some(self.detail.clone()),
            rules: self.rules.clone(),
        };
        let receipt_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
        Draft::new(receipt_id, account, payload, now)
            .under(self.policy_hash.as_deref().unwrap_or_default())
            .lasting(duration_ms)
    }
}

/// The table of answers.
fn reply(code: Code, rules: &[String]) -> Reply {
    let reply = |status, title, again, detail| Reply {
        status,
        title,
        again,
        detail,
    };
    let code = match code {
        Code::ActionIdReused => {
            let detail = "the action id stands for an action of another template";
            return reply(409, "Action id reused", RetryWhen::Never, detail);
        }
        Code::Gate(code) => code,
    };
    match code {
        RefusalCode::Unavailable => {
            let detail = "the tenant takes no signals now: it is being provisioned, or it leaves";
            reply(503, "Not available", RetryWhen::Soon, detail)
        }
        RefusalCode::Disarmed => {
            let detail = "operators have not armed the system";
            reply(503, "Disarmed", RetryWhen::Soon, detail)
        }
        RefusalCode::NotFound => reply(
            404,
            "No such tenant",
            RetryWhen::Never,
            "the account has no tenant",
        ),
        RefusalCode::Gone => reply(
            410,
            "Tenant is gone",
            RetryWhen::Never,
            "the tenant was decommissioned",
        ),
        RefusalCode::NoEntitlement => {
            let detail = "the account holds no entitlement that fits what the signal names";
            reply(404, "No such entitlement", RetryWhen::Never, detail)
        }
        RefusalCode::AmbiguousEntitlement => {
            let detail = "several entitlements fit: name sku_id or entitlement_id";
            reply(422, "Entitlement not named", RetryWhen::Never, detail)
        }
        RefusalCode::Suspended => {
            let detail = "the marketplace suspended the entitlement";
            reply(403, "Entitlement suspended", RetryWhen::Never, detail)
        }
        RefusalCode::Expired => {
            let detail = "the entitlement's term is over, and the marketplace did not renew it";
            reply(403, "Entitlement expired", RetryWhen::Never, detail)
        }
        RefusalCode::PolicyHashMismatch => {
            let detail = "the policy is another than the one in force for the entitlement";
            reply(409, "Policy hash mismatch", RetryWhen::Never, detail)
        }
        RefusalCode::UnknownAction => {
            let detail = "the policy has no template of this name";
            reply(422, "Unknown action", RetryWhen::Never, detail)
        }
        RefusalCode::Denied => {
            let bounds = |rule: &String| rule == PARAMETER_SCHEMA || is_permit(rule);
            let detail = "the policy denies it";
            match !rules.is_empty() && rules.iter().all(bounds) {
                true => reply(422, "Parameters not allowed", RetryWhen::Never, detail),
                false => reply(403, "Denied by policy", RetryWhen::Never, detail),
            }
        }
        RefusalCode::QuotaExceeded => {
            let detail = "the month's actions are used up";
            reply(429, "Quota exceeded", RetryWhen::NextMonth, detail)
        }
        RefusalCode::MalformedSignal => {
            let detail = "the body is not a signal";
            reply(400, "Signal not understood", RetryWhen::Never, detail)
        }
    }
}

/// Seconds until the next UTC month begins: at least one, and no more than 31 days have.
#[must_use]
pub fn seconds_to_next_month(now: Timestamp) -> u64 {
    let today = now.to_zoned(TimeZone::UTC).date();
    let next = next_month(today).and_then(|first| first.to_zoned(TimeZone::UTC).ok());
    let seconds = next.map_or(0, |next| next.timestamp().as_second() - now.as_second());
    u64::try_from(seconds).unwrap_or_default().max(1)
}

fn next_month(today: Date) -> Option<Date> {
    today.last_of_month().tomorrow().ok()
}

/// What to do about a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Its action was begun, or is over: tell how it stands.
    Tell(Box<Action>),
    /// Put this on the queue, once the action is known as pending.
    Send(Box<QueuedSignal>),
    /// Say no.
    Refuse {
        refusal: Refusal,
        /// Whether the tenant has a ledger that takes a receipt of it.
        on_record: bool,
    },
}

impl Step {
    /// What to write before anything is sent: an action that nothing is known of yet.
    #[must_use]
    pub fn note(self) -> Plan {
        let actions = match self {
            Self::Send(sending) => sending.new.into_iter().collect(),
            Self::Tell(_) | Self::Refuse { .. } => Vec::new(),
        };
        Plan {
            actions,
            ..Plan::default()
        }
    }
}

/// Appends a refusal to the tenant's ledger, once; not where the tenant is not active any more.
#[must_use]
pub fn put_on_record(account: &Account, refusal: &Draft) -> Plan {
    let active = |tenant: &Tenant| tenant.lifecycle == Lifecycle::Active;
    match account.tenant.as_ref().is_some_and(active) {
        true => append_once(account, refusal),
        false => Plan::default(),
    }
}

/// What goes on the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueuedSignal {
    pub signal: Signal,
    /// Where to.
    pub queue_url: String,
    /// The action to note before, where none is known yet.
    pub new: Option<Action>,
}

/// A signal that no queue takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as a message the signal has more than {MAX_MESSAGE_BYTES} bytes")]
pub struct MessageTooLong;

impl QueuedSignal {
    /// The signal as a message: what producers write that use the queue themselves.
    ///
    /// # Errors
    /// [`MessageTooLong`] when it has more than [`MAX_MESSAGE_BYTES`].
    pub fn message(&self) -> Result<String, MessageTooLong> {
        let message = as_queues_take(serde_json::json!(self.signal).to_string());
        match message.len() > MAX_MESSAGE_BYTES {
            true => Err(MessageTooLong),
            false => Ok(message),
        }
    }
}

/// Why nothing is told of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoStatus {
    /// Nothing is known of it, or it was pending when its tenant's provisioning was undone.
    Unknown,
    /// It was pending when its tenant left, so it never runs.
    Gone,
}

/// What is told of an action to who looks. One that is pending is never run once its tenant is no more.
///
/// # Errors
/// [`NoStatus`] when there is nothing to tell.
pub fn look<'a>(tenant: Option<&Tenant>, known: Option<&'a Action>) -> Result<&'a Action, NoStatus> {
    let known = known.ok_or(NoStatus::Unknown)?;
    let lifecycle = tenant.map_or(Lifecycle::Absent, |tenant| tenant.lifecycle);
    match (known.state, lifecycle) {
        (ActionState::Pending, Lifecycle::Absent) => Err(NoStatus::Unknown),
        (ActionState::Pending, Lifecycle::Decommissioned) => Err(NoStatus::Gone),
        _ => Ok(known),
    }
}

/// Decides about a request.
///
/// What is known as pending was let in before, and may be on the queue: only what passes by itself is refused then, all else
/// is the governor's to say.
#[must_use]
pub fn decide(
    asked: &ActionRequest,
    tenant: Option<&Tenant>,
    known: Option<&Action>,
    control: &Control,
    enforcers: &Enforcers,
    now: Timestamp,
) -> Step {
    let active = tenant.filter(|tenant| tenant.lifecycle == Lifecycle::Active);
    let refuse = |refusal| Step::Refuse {
        refusal,
        on_record: active.is_some(),
    };
    if let Some(known) = known {
        if known.template != asked.template() {
            return refuse(Refusal::new(Code::ActionIdReused, Vec::new(), None, ""));
        }
        if known.state != ActionState::Pending {
            return Step::Tell(Box::new(known.clone()));
        }
    }
    let pin = asked.pinned_hash(tenant);
    let before = known.map(|action| action.policy_hash.as_str());
    let signal = asked.signal(pin.or(before).unwrap_or_default());
    let admission = admit(
        &signal,
        tenant,
        Some(control),
        enforcers,
        &Admissions::default(),
        now,
    );
    let passes = match &admission.verdict {
        Verdict::Execute | Verdict::NotNow | Verdict::Route(_) => true,
        Verdict::Refuse { code, rules, .. } => {
            let again = reply(Code::Gate(*code), rules).again;
            known.is_some() && again != RetryWhen::Soon
        }
    };
    match (active, admission.verdict) {
        (Some(tenant), _) if passes => Step::Send(Box::new(QueuedSignal {
            new: known.is_none().then(|| {
                let (id, hash) = (asked.action_id.clone(), &signal.policy_hash);
                Action::pending(id, &asked.template(), hash, now)
            }),
            queue_url: tenant.resources.queue_url.clone(),
            signal,
        })),
        (_, Verdict::Refuse { code, rules, detail }) => refuse(Refusal::new(
            Code::Gate(code),
            rules,
            detail,
            &admission.policy_hash,
        )),
        // The gate lets nothing through without an active tenant.
        (_, Verdict::Execute | Verdict::NotNow | Verdict::Route(_)) => {
            let code = Code::Gate(RefusalCode::Unavailable);
            refuse(Refusal::new(code, Vec::new(), None, ""))
        }
    }
}

#[cfg(test)]
mod tests;
