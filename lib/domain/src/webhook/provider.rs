//! What a provider is: where it posts, how it signs, and how what it says is read.

use jiff::Timestamp;

use super::event::WebhookEvent;
use super::payload::PayloadError;
use super::signature::{Headers, Secret, SecretError, SignatureError, Verified};
use crate::entitlement::Granularity;

/// Checks a body and its headers against every active secret, at a time of our clock.
pub type Verify =
    for<'a> fn(&[Secret], &Headers, &'a [u8], Timestamp) -> Result<Verified<'a>, SignatureError>;

/// Headers that sign a body, under a delivery id and at a time of our clock: what the sender would write.
pub type Sign = fn(&Secret, &str, Timestamp, &[u8]) -> Vec<(&'static str, String)>;

/// How the deliveries of one sender are taken: where they arrive, how they are signed, what they say.
#[derive(Debug)]
pub struct Provider {
    /// The name used in keys, logs and receipts.
    pub name: &'static str,
    /// Paths it posts to. No two providers share one.
    pub paths: &'static [&'static str],
    /// Environment variable that holds the id of its secret in Secrets Manager.
    pub secret_variable: &'static str,
    /// Whether it posts a delivery again that was not answered with success. Of one that does not, what is answered with
    /// "later" is lost.
    pub resends: bool,
    /// How exactly it dates what happened: events are ordered no finer than that.
    pub granularity: Granularity,
    /// Reads a secret, as it is configured.
    pub secret: fn(&str) -> Result<Secret, SecretError>,
    /// Checks a delivery.
    pub verify: Verify,
    /// Signs one, for who tries a webhook out.
    pub sign: Sign,
    /// What its delivery ids begin with.
    pub id_prefix: &'static str,
    /// The ids it has of its own for plans, which policies give as aliases; none where it names our SKUs and plans.
    pub plan_ids: Option<PlanIds>,
    /// Reads what a delivery says. Headers beyond those that were checked are the carrier's word.
    pub parse: fn(&Verified<'_>, &Headers) -> Result<WebhookEvent, PayloadError>,
}

/// A provider's own ids of plans.
#[derive(Debug)]
pub struct PlanIds {
    /// Whether a text is one.
    pub accepts: fn(&str) -> bool,
    /// For people: how one looks.
    pub form: &'static str,
}

impl Provider {
    /// Environment variable with the secret itself, for who tries a webhook out.
    #[must_use]
    pub fn secret_name(&self) -> &'static str {
        self.secret_variable
            .strip_suffix("_ID")
            .unwrap_or(self.secret_variable)
    }
}
