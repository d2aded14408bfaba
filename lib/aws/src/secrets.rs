//! Secrets, from Secrets Manager only, kept for five minutes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput};
use aws_sdk_secretsmanager::types::SecretVersionsListEntry;
use domain::webhook::signature::{Secret, SecretError};
use jiff::Timestamp;
use receipts::key::Signer;
use tracing::{error, warn};

use crate::clients::{Sdk, explain};

/// How long a secret is kept before it is read again; a rotation is seen within this time.
const KEEP: Duration = Duration::from_secs(300);
/// How often a sender's secrets are read before their time, for signatures that none of them fits: so often within
/// [`AGAIN_WITHIN`], however many forged ones are posted.
const READS_AGAIN: usize = 10;
const AGAIN_WITHIN: Duration = Duration::from_secs(60);
/// How many versions that hold one value are looked behind for the value before it.
const LOOK_BEHIND: usize = 10;

/// The version everybody reads.
const CURRENT: &str = "AWSCURRENT";
/// The version that was read before.
const PREVIOUS: &str = "AWSPREVIOUS";
/// For how long after a value became current the one before it still counts, in seconds: a day.
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
type Slot<T> = tokio::sync::Mutex<Held<T>>;

struct Held<T> {
    read: Option<(Instant, T)>,
    /// When it was read before its time, of late.
    again: VecDeque<Instant>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            read: None,
            again: VecDeque::new(),
        }
    }
}

impl<T: Clone> Held<T> {
    async fn read<E>(&mut self, read: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let value = read().await?;
        self.read = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<T: Clone> Kept<T> {
    fn slot(&self, id: &str) -> Arc<Slot<T>> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id.to_owned()).or_default())
    }

    /// What is kept of a secret, or else what is read now.
    async fn get<E>(&self, id: &str, read: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let slot = self.slot(id);
        let mut held = slot.lock().await;
        if let Some((at, value)) = &held.read
            && at.elapsed() < KEEP
        {
            return Ok(value.clone());
        }
        held.read(read).await
    }

    /// What is read now, or what is kept where that was done too often of late.
    async fn get_now<E>(&self, id: &str, read: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E> {
        let slot = self.slot(id);
        let mut held = slot.lock().await;
        held.again.retain(|at| at.elapsed() < AGAIN_WITHIN);
        if held.again.len() >= READS_AGAIN
            && let Some((_, value)) = &held.read
        {
            return Ok(value.clone());
        }
        held.again.push_back(Instant::now());
        held.read(read).await
    }

    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// The current value of a secret and the one before it, where there are any.
type Staged = (Option<String>, Option<String>);

/// A version of a secret, as far as the value before it is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    value: String,
    /// When it was put, in seconds since 1970.
    put_at: i64,
}

/// The value before the current one, and when the current one replaced it, in seconds since 1970. `versions` begin with the
/// current one, each before the next; of one that was put once, `changed_at` says when the secret was changed last.
fn replaced(versions: &[Version], changed_at: i64) -> Option<(&str, i64)> {
    let (current, _) = versions.split_first()?;
    let same = versions
        .iter()
        .take_while(|version| version.value == current.value);
    let same = same.count();
    let before = versions.get(same)?;
    let first = versions.get(same.checked_sub(1)?)?;
    // A value that was put once may have waited as pending since then. One that was put again was current the first time.
    let since = if same == 1 {
        first.put_at.max(changed_at)
    } else {
        first.put_at
    };
    Some((&before.value, since))
}

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
        let answer = self.client.get_secret_value().secret_id(id).send().await;
        let answer = answer.map_err(|e| unread(id, &e))?;
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
        let staged = self.staged.get(id, async || self.read_staged(id).await);
        of_staged(id, staged.await?, read)
    }

    /// The same, read again unless that was done often of late: for a signature that fits none of those that are kept, as one
    /// does that was made with a value put since.
    ///
    /// # Errors
    /// As [`Secrets::shared_with_sender`].
    pub async fn shared_with_sender_now(
        &self,
        id: &str,
        read: fn(&str) -> Result<Secret, SecretError>,
    ) -> Result<Vec<Secret>, SecretsError> {
        let staged = self.staged.get_now(id, async || self.read_staged(id).await);
        of_staged(id, staged.await?, read)
    }

    async fn read_staged(&self, id: &str) -> Result<Staged, SecretsError> {
        let (current, previous) = tokio::join!(self.version(id, CURRENT), self.version(id, PREVIOUS));
        let (current, previous) = (current?, previous?);
        let Some(current) = current.and_then(value_of) else {
            return Ok((None, None));
        };
        let now = current.value.clone();
        let mut versions = vec![current];
        versions.extend(previous.and_then(value_of));
        // Without an answer to these, the sender's new secret still counts: only the old one does not.
        match self.look_behind(id, &mut versions).await {
            Ok(changed_at) => {
                // A secret that was rotated because it leaked must not count for ever.
                let counts = |since: &i64| Timestamp::now().as_second() - since < ROTATION_SECONDS;
                let before = replaced(&versions, changed_at).filter(|(_, since)| counts(since));
                Ok((Some(now), before.map(|(before, _)| before.to_owned())))
            }
            Err(e) => {
                error!(error = %e, "the value before the current one of a webhook secret is left out");
                Ok((Some(now), None))
            }
        }
    }

    /// Adds older versions, where those that have a stage are of one value, until one is of another. Tells when the secret was
    /// changed last, where that matters.
    async fn look_behind(&self, id: &str, versions: &mut Vec<Version>) -> Result<i64, SecretsError> {
        let (Some(current), Some(previous)) = (versions.first(), versions.get(1)) else {
            return Ok(0);
        };
        let day_old = Timestamp::now().as_second() - current.put_at >= ROTATION_SECONDS;
        if previous.value != current.value {
            return if day_old {
                self.changed_at(id).await
            } else {
                Ok(current.put_at)
            };
        }
        let value = current.value.clone();
        for older in self.without_stage(id, previous.put_at).await? {
            let get = self.client.get_secret_value().secret_id(id).version_id(older);
            let found = get.send().await.map_err(|e| unread(id, &e))?;
            let found = value_of(found);
            let differs = found.as_ref().is_some_and(|version| version.value != value);
            versions.extend(found);
            if differs {
                break;
            }
        }
        Ok(0)
    }

    /// When anything of the secret was changed last, in seconds since 1970: no stage was moved later.
    async fn changed_at(&self, id: &str) -> Result<i64, SecretsError> {
        let answer = self.client.describe_secret().secret_id(id).send().await;
        let answer = answer.map_err(|e| unread(id, &e))?;
        Ok(answer.last_changed_date.map_or(0, |at| at.secs()))
    }

    /// Ids of the versions that have no stage any more and were put before this, the latest first.
    async fn without_stage(&self, id: &str, before: i64) -> Result<Vec<String>, SecretsError> {
        let list = self.client.list_secret_version_ids().secret_id(id);
        let answer = list
            .include_deprecated(true)
            .send()
            .await
            .map_err(|e| unread(id, &e))?;
        let put_at = |version: &SecretVersionsListEntry| version.created_date.map_or(0, |at| at.secs());
        let mut versions = answer.versions.unwrap_or_default();
        versions.retain(|version| version.version_stages().is_empty() && put_at(version) <= before);
        versions.sort_by_key(|version| std::cmp::Reverse(put_at(version)));
        let ids = versions.into_iter().filter_map(|version| version.version_id);
        Ok(ids.take(LOOK_BEHIND).collect())
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
            Err(e) => Err(unread(id, &e)),
        }
    }
}

/// The secrets in the values that are current and were so before.
fn of_staged(
    id: &str,
    (current, previous): Staged,
    read: fn(&str) -> Result<Secret, SecretError>,
) -> Result<Vec<Secret>, SecretsError> {
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
                "the previous value of a webhook secret cannot be used, and is left out"
            ),
        }
    }
    Ok(secrets)
}

fn value_of(version: GetSecretValueOutput) -> Option<Version> {
    Some(Version {
        put_at: version.created_date.map_or(0, |at| at.secs()),
        value: version.secret_string?,
    })
}

fn unread(id: &str, error: &(dyn std::error::Error + 'static)) -> SecretsError {
    SecretsError::Read {
        id: id.to_owned(),
        detail: explain(error),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(newest_first: &[(&str, i64)]) -> Vec<Version> {
        let version = |(value, put_at): &(&str, i64)| Version {
            value: (*value).to_owned(),
            put_at: *put_at,
        };
        newest_first.iter().map(version).collect()
    }

    #[track_caller]
    fn check(newest_first: &[(&str, i64)], changed_at: i64, expected: Option<(&str, i64)>) {
        assert_eq!(
            replaced(&versions(newest_first), changed_at),
            expected,
            "{newest_first:?}"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn forged_signatures_cause_few_reads() {
        let (kept, reads) = (Kept::<usize>::default(), std::cell::Cell::new(0));
        let read = async || {
            reads.set(reads.get() + 1);
            Ok::<_, ()>(reads.get())
        };
        assert_eq!(kept.get("a", read).await, Ok(1));
        assert_eq!(kept.get("a", read).await, Ok(1), "it is kept");
        for n in 0..READS_AGAIN {
            assert_eq!(kept.get_now("a", read).await, Ok(n + 2));
        }
        for _ in 0..100 {
            assert_eq!(kept.get_now("a", read).await, Ok(READS_AGAIN + 1), "it is kept");
        }
        assert_eq!(
            kept.get_now("b", read).await,
            Ok(READS_AGAIN + 2),
            "another's is not"
        );
    }

    #[test]
    fn a_value_replaces_the_one_before_when_it_becomes_current() {
        check(&[], 9, None);
        check(&[("new", 5)], 9, None);
        check(&[("new", 5), ("old", 1)], 5, Some(("old", 5)));
        // It waited as pending, and was made current at 900.
        check(&[("new", 5), ("old", 1)], 900, Some(("old", 900)));
        // It was put twice: the old value was replaced by the first of the two.
        check(&[("new", 7), ("new", 5), ("old", 1)], 0, Some(("old", 5)));
        check(
            &[("new", 9), ("new", 7), ("new", 5), ("old", 1), ("older", 0)],
            0,
            Some(("old", 5)),
        );
        check(&[("new", 7), ("new", 5)], 9, None);
    }
}
