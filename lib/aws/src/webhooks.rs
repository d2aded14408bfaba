//! Webhooks at the door: which provider, is it authentic, what does it say.

use domain::webhook::payload::{self, PayloadError, WebhookEvent};
use domain::webhook::signature::{self, SignatureError};
use domain::webhook::{DeliveryId, Provider};
use jiff::Timestamp;
use tracing::{error, warn};

use crate::http::{Problem, Request};
use crate::secrets::Secrets;
use crate::store::{DeliveryRecord, StoreError};
use crate::telemetry;

/// Path of GitHub's webhooks; every other webhook path is Standard Webhooks.
const GITHUB_PATH: &str = "/webhooks/github";

/// Checks and reads deliveries.
pub struct Webhooks {
    secrets: Secrets,
    standard_secret: String,
    github_secret: Option<String>,
    function: &'static str,
}

impl Webhooks {
    /// A reader for one function, with the ids of the secrets it may read.
    #[must_use]
    pub fn new(
        secrets: Secrets,
        standard_secret: String,
        github_secret: Option<String>,
        function: &'static str,
    ) -> Self {
        Self {
            secrets,
            standard_secret,
            github_secret,
            function,
        }
    }

    /// The secrets it reads with.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Verifies the raw bytes, and only then reads them.
    ///
    /// # Errors
    /// A [`Problem`]: 400 for a delivery that is not authentic or not understood, 503 when the secret cannot be read.
    pub async fn read(
        &self,
        request: &Request,
        now: Timestamp,
    ) -> Result<(DeliveryId, WebhookEvent), Problem> {
        let provider = match (&self.github_secret, request.path.ends_with(GITHUB_PATH)) {
            (Some(_), true) => Provider::Github,
            _ => Provider::Standard,
        };
        let unavailable = |e: &dyn std::fmt::Display| {
            error!(error = %e, "webhook secret is not available");
            Problem::new(
                503,
                "Not available",
                "the webhook secret cannot be read; retry later",
            )
        };
        let verified = match (provider, &self.github_secret) {
            (Provider::Github, Some(id)) => {
                let secret = self.secrets.github(id).await.map_err(|e| unavailable(&e))?;
                signature::verify_github(&[secret], &request.headers, &request.body)
            }
            (Provider::Standard | Provider::Github, _) => {
                let secret = self
                    .secrets
                    .standard(&self.standard_secret)
                    .await
                    .map_err(|e| unavailable(&e))?;
                signature::verify_standard(&[secret], &request.headers, &request.body, now)
            }
        };
        let verified = verified.map_err(|e| self.rejected(provider, &e))?;
        let said = match provider {
            Provider::Standard => payload::standard(&verified),
            Provider::Github => payload::github(&verified),
        };
        let said = said.map_err(|e| {
            telemetry::count(self.function, "webhook_unreadable", ("provider", provider.name()));
            // The full text quotes what stands in the body, an address perhaps: only the sender gets that.
            let field = match &e {
                PayloadError::Field { field, .. } if !field.contains('@') => field.as_str(),
                PayloadError::Field { .. } | PayloadError::Empty => ".",
            };
            let (provider, delivery) = (provider.name(), &verified.delivery().id);
            warn!(provider, delivery, field, "webhook not understood");
            Problem::new(400, "Webhook not understood", e.to_string())
        })?;
        Ok((verified.delivery().clone(), said))
    }

    fn rejected(&self, provider: Provider, error: &SignatureError) -> Problem {
        telemetry::count(self.function, "webhook_rejected", ("provider", provider.name()));
        warn!(provider = provider.name(), error = %error, "webhook signature refused");
        Problem::new(400, "Webhook signature refused", error.to_string())
    }
}

/// What was answered to this delivery before, if it was.
///
/// # Errors
/// A [`Problem`] with status 409 when the same id came with another body.
pub fn answered_before(
    delivery: &DeliveryId,
    record: Option<&DeliveryRecord>,
) -> Result<Option<DeliveryRecord>, Problem> {
    match record {
        Some(record) if record.body_sha256 != delivery.body_sha256 => Err(Problem::new(
            409,
            "Delivery id reused",
            format!("delivery {} was answered before with another body", delivery.id),
        )),
        other => Ok(other.cloned()),
    }
}

/// The answer when the tables do not take it: the sender keeps the delivery and tries again.
#[must_use]
pub fn not_stored(error: &StoreError) -> Problem {
    error!(error = %error, "nothing was stored");
    Problem::new(
        503,
        "Not available",
        "the delivery could not be stored; retry later",
    )
}
