//! Webhooks at the door: who posts, is it authentic, what does it say.

use std::collections::BTreeMap;
use std::sync::Arc;

use domain::provisioning::DeliveryRef;
use domain::transaction::DeliveryRecord;
use domain::webhook::DeliveryId;
use domain::webhook::event::WebhookEvent;
use domain::webhook::payload::PayloadError;
use domain::webhook::provider::Provider;
use domain::webhook::providers::{PROVIDERS, at_path};
use domain::webhook::signature::{Secret, SignatureError, Verified};
use jiff::Timestamp;
use receipts::key::Signer;
use serde_json::Value;
use tracing::{error, warn};

use crate::config::{self, ConfigError};
use crate::http::{self, Problem, Request};
use crate::secrets::{Secrets, SecretsError};
use crate::store::StoreError;
use crate::telemetry;

/// Checks and reads deliveries.
pub struct Webhooks {
    secrets: Arc<Secrets>,
    /// Ids of the providers' secrets, by provider.
    secret_ids: BTreeMap<&'static str, String>,
    function: &'static str,
}

/// A delivery that is authentic, and what it says.
#[derive(Debug)]
pub struct Delivery {
    pub provider: &'static Provider,
    pub id: DeliveryId,
    pub said: WebhookEvent,
}

impl Delivery {
    /// The delivery as tenants remember it.
    #[must_use]
    pub fn asked(&self) -> DeliveryRef {
        DeliveryRef {
            provider: self.provider.name.to_owned(),
            delivery_id: self.id.id.clone(),
            body_sha256: self.id.body_sha256.clone(),
        }
    }
}

impl Webhooks {
    /// A reader for one function, with the secrets its environment names: one at least.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] when none is named.
    pub fn from_env(secrets: Secrets, function: &'static str) -> Result<Self, ConfigError> {
        let named = |provider: &'static Provider| {
            config::optional(provider.secret_variable).map(|id| (provider.name, id))
        };
        let secret_ids: BTreeMap<_, _> = PROVIDERS.iter().filter_map(|provider| named(provider)).collect();
        if secret_ids.is_empty() {
            let first = PROVIDERS.first().map_or("", |provider| provider.secret_variable);
            return Err(ConfigError::Missing(first));
        }
        Ok(Self {
            secrets: Arc::new(secrets),
            secret_ids,
            function,
        })
    }

    /// The secrets it reads with.
    #[must_use]
    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.secrets
    }

    /// Answers an HTTP event with what `receive` makes of its request.
    ///
    /// # Errors
    /// When the answer cannot be written as JSON.
    pub async fn serve(
        &self,
        event: Value,
        receive: impl AsyncFnOnce(Request) -> Result<DeliveryRecord, Problem>,
    ) -> Result<Value, serde_json::Error> {
        let answered = match http::request(event) {
            Ok(request) => receive(request).await,
            Err(problem) => Err(problem),
        };
        let response = match answered {
            Ok(record) => http::answered(record.status, record.receipt),
            Err(problem) => problem.response(),
        };
        serde_json::to_value(response)
    }

    /// The key that signs receipts; a [`Problem`] for the sender when it can't be had.
    pub async fn signer(&self, id: &str) -> Result<Signer, Problem> {
        self.secrets.signer(id).await.map_err(|e| {
            error!(error = %e, "the signing key is not available");
            Problem::unavailable("the signing key is not available; retry later")
        })
    }

    /// Verifies the raw bytes, and only then reads them.
    ///
    /// # Errors
    /// A [`Problem`]: 404 where nobody posts, 400 for a delivery that is not authentic or not understood, 503 when the
    /// secret cannot be read.
    pub async fn read(&self, request: &Request, now: Timestamp) -> Result<Delivery, Problem> {
        // A stage that is not the default one stands before the path.
        let start = request.path.rfind("/webhooks/").unwrap_or_default();
        let path = request.path.get(start..).unwrap_or_default();
        let known = at_path(path).and_then(|provider| Some((provider, self.secret_ids.get(provider.name)?)));
        let Some((provider, id)) = known else {
            return Err(Problem::new(
                404,
                "No such webhook",
                "no provider posts to this path",
            ));
        };
        let verified = self.verify(provider, id, request, now).await?;
        let said = (provider.parse)(&verified, &request.headers).map_err(|e| {
            telemetry::count(self.function, "webhook_unreadable", ("provider", provider.name));
            // The full text quotes what stands in the body, an address perhaps: only the sender gets that.
            let field = match &e {
                PayloadError::Field { field, .. } if !field.contains('@') => field.as_str(),
                PayloadError::Field { .. } | PayloadError::Empty => ".",
            };
            let (provider, delivery) = (provider.name, &verified.delivery().id);
            warn!(provider, delivery, field, "webhook not understood");
            Problem::new(400, "Webhook not understood", e.to_string())
        })?;
        Ok(Delivery {
            provider,
            id: verified.into_delivery(),
            said,
        })
    }

    /// Checks the signature, with the secrets as they are kept. Where they do not fit, or cannot be used, they are read again:
    /// the value may have been put a moment ago, and not every sender posts a delivery again.
    async fn verify<'a>(
        &self,
        provider: &'static Provider,
        id: &str,
        request: &'a Request,
        now: Timestamp,
    ) -> Result<Verified<'a>, Problem> {
        let verify = |secrets: &[Secret]| (provider.verify)(secrets, &request.headers, &request.body, now);
        if let Ok(kept) = self.secrets.shared_with_sender(id, provider.secret).await {
            match verify(&kept) {
                Ok(verified) => return Ok(verified),
                Err(SignatureError::NoMatch) => {}
                Err(e) => return Err(self.rejected(provider, &e)),
            }
        }
        let secrets = self.secrets.shared_with_sender_now(id, provider.secret).await;
        let secrets = secrets.map_err(|e| self.without_secret(provider, &e))?;
        if secrets.is_empty() {
            return Err(self.without_secret(provider, &SecretsError::Empty { id: id.to_owned() }));
        }
        verify(&secrets).map_err(|e| self.rejected(provider, &e))
    }

    /// Nothing of this provider can be checked, until a person puts a value that can be used. The others go on.
    fn without_secret(&self, provider: &Provider, error: &SecretsError) -> Problem {
        telemetry::count(
            self.function,
            "webhook_secret_unusable",
            ("provider", provider.name),
        );
        error!(provider = provider.name, error = %error, "deliveries of the provider are turned away");
        Problem::unavailable("the webhook secret cannot be used; retry later")
    }

    fn rejected(&self, provider: &Provider, error: &SignatureError) -> Problem {
        telemetry::count(self.function, "webhook_rejected", ("provider", provider.name));
        warn!(provider = provider.name, error = %error, "webhook signature refused");
        Problem::new(400, "Webhook signature refused", error.to_string())
    }
}

/// The answer when the tables do not take it: the sender keeps the delivery and tries again.
#[must_use]
pub fn not_stored(error: &StoreError) -> Problem {
    error!(error = %error, "nothing was stored");
    Problem::unavailable("the delivery could not be stored; retry later")
}
