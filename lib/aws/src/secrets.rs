//! Secrets, from Secrets Manager only, kept for five minutes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_secretsmanager::Client;
use domain::webhook::signature::{Secret, SecretError};
use receipts::key::Signer;
use tokio::sync::Mutex;

use crate::clients::explain;

/// How long a secret is kept before it is read again; a rotation is seen within this time.
const KEEP: Duration = Duration::from_secs(300);

/// Why a secret could not be had. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Secrets Manager did not answer with it.
    #[error("reading secret {id}: {detail}")]
    Read {
        /// Which secret.
        id: String,
        /// What the SDK said.
        detail: String,
    },
    /// It has no text.
    #[error("secret {id} has no text value yet; put one with `aws secretsmanager put-secret-value`")]
    Empty {
        /// Which secret.
        id: String,
    },
    /// It is not a webhook secret.
    #[error("secret {id}: {source}")]
    Webhook {
        /// Which secret.
        id: String,
        /// What is wrong with it.
        #[source]
        source: SecretError,
    },
    /// It is not a signing key.
    #[error("secret {id} is not an Ed25519 private key in PKCS#8 PEM: {detail}")]
    Key {
        /// Which secret.
        id: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// Reads secrets and keeps them for a while.
pub struct Secrets {
    client: Client,
    kept: Mutex<HashMap<String, (Instant, String)>>,
}

impl Secrets {
    /// A reader on this account.
    #[must_use]
    pub fn new(sdk: &aws_config::SdkConfig) -> Self {
        Self {
            client: Client::new(sdk),
            kept: Mutex::new(HashMap::new()),
        }
    }

    async fn text(&self, id: &str) -> Result<String, SecretsError> {
        let mut kept = self.kept.lock().await;
        if let Some((at, text)) = kept.get(id)
            && at.elapsed() < KEEP
        {
            return Ok(text.clone());
        }
        let answer = self
            .client
            .get_secret_value()
            .secret_id(id)
            .send()
            .await
            .map_err(|e| SecretsError::Read {
                id: id.to_owned(),
                detail: explain(&e),
            })?;
        let text = answer.secret_string().filter(|text| !text.trim().is_empty());
        let text = text
            .ok_or_else(|| SecretsError::Empty { id: id.to_owned() })?
            .to_owned();
        kept.insert(id.to_owned(), (Instant::now(), text.clone()));
        Ok(text)
    }

    /// The secret shared with Standard Webhooks senders, or with the action handler.
    ///
    /// # Errors
    /// [`SecretsError`] when it cannot be read or is not `whsec_…`.
    pub async fn standard(&self, id: &str) -> Result<Secret, SecretsError> {
        let text = self.text(id).await?;
        Secret::standard(&text).map_err(|source| SecretsError::Webhook {
            id: id.to_owned(),
            source,
        })
    }

    /// The secret shared with GitHub.
    ///
    /// # Errors
    /// [`SecretsError`] when it cannot be read or is empty.
    pub async fn github(&self, id: &str) -> Result<Secret, SecretsError> {
        let text = self.text(id).await?;
        Secret::github(&text).map_err(|source| SecretsError::Webhook {
            id: id.to_owned(),
            source,
        })
    }

    /// The key that signs receipts.
    ///
    /// # Errors
    /// [`SecretsError`] when it cannot be read or is not an Ed25519 key.
    pub async fn signer(&self, id: &str) -> Result<Signer, SecretsError> {
        let text = self.text(id).await?;
        Signer::from_pem(&text).map_err(|e| SecretsError::Key {
            id: id.to_owned(),
            detail: e.to_string(),
        })
    }
}
