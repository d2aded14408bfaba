//! Secrets, from Secrets Manager only, kept for five minutes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput};
use domain::webhook::signature::{Secret, SecretError};
use jiff::Timestamp;
use receipts::key::Signer;
use tracing::warn;

use crate::clients::{Sdk, explain};

/// How long a secret is kept before it is read again; a rotation is seen within this time.
const KEEP: Duration = Duration::from_secs(300);

/// The version everybody reads.
const CURRENT: &str = "AWSCURRENT";
/// The version that was read before.
const PREVIOUS: &str = "AWSPREVIOUS";
/// For how long after a rotation the version before still counts, in seconds: a day.
const ROTATION_SECONDS: i64 = 24 * 3600;
/// The version that is to be read next.
const PENDING: &str = "AWSPENDING";

/// Why a secret could not be had. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Secrets Manager did not answer with it.
    #[error("reading secret {id}: {detail}")]
    Read { id: String, detail: String },
    /// Secrets Manager did not do what was asked.
    #[error("{operation} of secret {id}: {detail}")]
    Change {
        operation: &'static str,
        id: String,
        detail: String,
    },
    /// It has no text.
    #[error("secret {id} has no text value yet; put one with `aws secretsmanager put-secret-value`")]
    Empty { id: String },
    /// It is not a webhook secret.
    #[error("secret {id}: {source}")]
    Webhook {
        id: String,
        #[source]
        source: SecretError,
    },
    /// It is not a signing key.
    #[error("secret {id} is not an Ed25519 private key in PKCS#8 PEM: {detail}")]
    Key { id: String, detail: String },
}

/// Reads secrets and keeps them for a while.
pub struct Secrets {
    client: Client,
    current: Kept<String>,
    staged: Kept<Staged>,
}

/// What was read of each secret, by its id.
struct Kept<T>(Mutex<HashMap<String, Arc<Slot<T>>>>);

/// What was read of one secret, and when. Whoever reads it holds the lock: others wait for the same answer.
type Slot<T> = tokio::sync::Mutex<Option<(Instant, T)>>;

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<T: Clone> Kept<T> {
    async fn get<E>(&self, id: &str, read: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(id.to_owned()).or_default())
        };
        let mut kept = slot.lock().await;
        if let Some((at, value)) = &*kept
            && at.elapsed() < KEEP
        {
            return Ok(value.clone());
        }
        let value = read().await?;
        *kept = Some((Instant::now(), value.clone()));
        Ok(value)
    }

    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// The current version of a secret and the previous one, where there are any.
type Staged = (Option<String>, Option<String>);

impl Secrets {
    /// A reader on this account.
    #[must_use]
    pub fn new(sdk: &Sdk) -> Self {
        Self {
            client: sdk.secrets(),
            current: Kept::default(),
            staged: Kept::default(),
        }
    }

    async fn text(&self, id: &str) -> Result<String, SecretsError> {
        self.current.get(id, async || self.read_text(id).await).await
    }

    async fn read_text(&self, id: &str) -> Result<String, SecretsError> {
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
        text.map(str::to_owned)
            .ok_or_else(|| SecretsError::Empty { id: id.to_owned() })
    }

    /// The secret shared with the action handler.
    ///
    /// # Errors
    /// [`SecretsError`] when it cannot be read or is not `whsec_…`.
    pub async fn standard(&self, id: &str) -> Result<Secret, SecretsError> {
        let text = self.text(id).await?;
        Secret::standard(&text).map_err(|source| webhook(id, source))
    }

    /// The secrets shared with a webhook's sender: the current one, and the one before it while a rotation is under way.
    /// None when no value was ever put.
    ///
    /// # Errors
    /// [`SecretsError`] when they cannot be read, or the current one is not of the form that `read` asks for.
    pub async fn shared_with_sender(
        &self,
        id: &str,
        read: fn(&str) -> Result<Secret, SecretError>,
    ) -> Result<Vec<Secret>, SecretsError> {
        let (current, previous) = self.staged(id).await?;
        let Some(current) = current else {
            return Ok(Vec::new());
        };
        let mut secrets = vec![read(&current).map_err(|source| webhook(id, source))?];
        if let Some(previous) = previous {
            match read(&previous) {
                Ok(secret) => secrets.push(secret),
                // It was never one that a sender could have signed with.
                Err(_) => warn!(
                    id,
                    "the previous version of a webhook secret is none, and is not used"
                ),
            }
        }
        Ok(secrets)
    }

    /// The current version and, for a day after that one was put, the one before it. Both are kept for a while.
    async fn staged(&self, id: &str) -> Result<Staged, SecretsError> {
        self.staged.get(id, async || self.read_staged(id).await).await
    }

    async fn read_staged(&self, id: &str) -> Result<Staged, SecretsError> {
        let (current, previous) = tokio::join!(self.version(id, CURRENT), self.version(id, PREVIOUS));
        let current = current?;
        // A secret that was rotated because it leaked must not count for ever.
        let since = current.as_ref().and_then(|version| version.created_date);
        let rotating =
            since.is_none_or(|since| Timestamp::now().as_second() - since.secs() < ROTATION_SECONDS);
        let text = |version: Option<GetSecretValueOutput>| version.and_then(|version| version.secret_string);
        Ok((text(current), text(previous?).filter(|_| rotating)))
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

    /// Stores the key that is to sign next, beside the one that signs. Doing so again changes nothing.
    ///
    /// # Errors
    /// [`SecretsError`] when Secrets Manager does not take it, or has another one pending.
    pub async fn put_pending_key(&self, id: &str, next: &Signer) -> Result<(), SecretsError> {
        if let Some((_, pending)) = self.pending_version(id).await? {
            if pending.key_id() == next.key_id() {
                return Ok(());
            }
            return Err(SecretsError::Change {
                operation: "PutSecretValue",
                id: id.to_owned(),
                detail: format!(
                    "key {} is pending already, expected {} or none",
                    pending.key_id(),
                    next.key_id()
                ),
            });
        }
        let pem = next.to_pem().map_err(|e| SecretsError::Key {
            id: id.to_owned(),
            detail: e.to_string(),
        })?;
        self.client
            .put_secret_value()
            .secret_id(id)
            // A repeat whose first call did arrive is then the same version.
            .client_request_token(format!("governor-signing-key-{}", next.key_id()))
            .secret_string(pem)
            .version_stages(PENDING)
            .send()
            .await
            .map(|_| ())
            .map_err(|e| change("PutSecretValue", id, &e))
    }

    /// The key that is to sign next, if there is one.
    ///
    /// # Errors
    /// [`SecretsError`] when Secrets Manager does not answer, or what is pending is not a key.
    pub async fn pending_key(&self, id: &str) -> Result<Option<Signer>, SecretsError> {
        Ok(self.pending_version(id).await?.map(|(_, signer)| signer))
    }

    /// Makes the pending key the one that signs; the one that signed becomes the previous one. Functions see it within
    /// five minutes. Doing so again changes nothing.
    ///
    /// # Errors
    /// [`SecretsError`] when Secrets Manager does not do it, or when `key_id` neither signs nor is pending.
    pub async fn promote_pending_key(&self, id: &str, key_id: &str) -> Result<(), SecretsError> {
        const OPERATION: &str = "UpdateSecretVersionStage";
        let current = self.version(id, CURRENT).await?;
        let current_version = current.as_ref().and_then(|version| version.version_id.clone());
        let current_key = current.and_then(|version| Signer::from_pem(&version.secret_string?).ok());
        let pending = self.pending_version(id).await?;
        let signs = current_key.is_some_and(|current| current.key_id() == key_id);
        let Some((version, _)) = pending.filter(|(_, pending)| pending.key_id() == key_id) else {
            if signs {
                return Ok(());
            }
            return Err(SecretsError::Change {
                operation: OPERATION,
                id: id.to_owned(),
                detail: format!("key {key_id} is not pending"),
            });
        };
        if current_version.as_deref() != Some(&version) {
            self.client
                .update_secret_version_stage()
                .secret_id(id)
                .version_stage(CURRENT)
                .move_to_version_id(&version)
                .set_remove_from_version_id(current_version)
                .send()
                .await
                .map_err(|e| change(OPERATION, id, &e))?;
        }
        self.client
            .update_secret_version_stage()
            .secret_id(id)
            .version_stage(PENDING)
            .remove_from_version_id(&version)
            .send()
            .await
            .map_err(|e| change(OPERATION, id, &e))?;
        self.current.forget(id);
        Ok(())
    }

    async fn pending_version(&self, id: &str) -> Result<Option<(String, Signer)>, SecretsError> {
        let Some(version) = self.version(id, PENDING).await? else {
            return Ok(None);
        };
        let text = version.secret_string.unwrap_or_default();
        let signer = Signer::from_pem(&text).map_err(|e| SecretsError::Key {
            id: id.to_owned(),
            detail: format!("what is pending: {e}"),
        })?;
        Ok(Some((version.version_id.unwrap_or_default(), signer)))
    }

    /// The version with this stage; `None` when no version has it. Never kept.
    async fn version(&self, id: &str, stage: &str) -> Result<Option<GetSecretValueOutput>, SecretsError> {
        let get = self.client.get_secret_value().secret_id(id).version_stage(stage);
        match get.send().await {
            Ok(version) => Ok(Some(version)),
            Err(e)
                if matches!(
                    e.as_service_error(),
                    Some(GetSecretValueError::ResourceNotFoundException(_))
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(SecretsError::Read {
                id: id.to_owned(),
                detail: explain(&e),
            }),
        }
    }
}

fn webhook(id: &str, source: SecretError) -> SecretsError {
    SecretsError::Webhook {
        id: id.to_owned(),
        source,
    }
}

fn change(operation: &'static str, id: &str, error: &(dyn std::error::Error + 'static)) -> SecretsError {
    SecretsError::Change {
        operation,
        id: id.to_owned(),
        detail: explain(error),
    }
}
