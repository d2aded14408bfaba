//! The control object in S3, changed only by compare-and-swap on its ETag.

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectError;
use domain::control::Control;
use tokio::sync::Mutex;

use crate::clients::explain;
use crate::swap::swap;

/// Name of the object.
const KEY: &str = "control.json";
/// Times a change is tried when others change the object too.
const ATTEMPTS: u32 = 8;

/// Why the control object could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{operation} of s3://{bucket}/{KEY}: {detail}")]
    Call {
        operation: &'static str,
        bucket: String,
        detail: String,
    },
    /// The object is not of its form.
    #[error("s3://{bucket}/{KEY} is not a control object")]
    Form {
        bucket: String,
        #[source]
        source: serde_json::Error,
    },
    /// Others changed it, every time.
    #[error("s3://{bucket}/{KEY} was changed by others during {ATTEMPTS} attempts")]
    Contended { bucket: String },
}

/// The control object.
pub struct ControlStore {
    client: Client,
    bucket: String,
    /// The last object read, so that reading it again costs no body.
    last: Mutex<Option<(String, Control)>>,
}

/// A change of the control object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// As it was.
    pub before: Control,
    /// As it is.
    pub after: Control,
}

impl ControlStore {
    /// The control object of a stack.
    #[must_use]
    pub fn new(client: Client, bucket: String) -> Self {
        Self {
            client,
            bucket,
            last: Mutex::new(None),
        }
    }

    /// Reads the object. A stack that has none yet is a fresh install: disarmed.
    ///
    /// # Errors
    /// [`ControlError`] when the bucket does not answer or the object is not of its form.
    pub async fn read(&self) -> Result<Control, ControlError> {
        Ok(self.read_tagged().await?.1)
    }

    async fn read_tagged(&self) -> Result<(Option<String>, Control), ControlError> {
        let mut last = self.last.lock().await;
        let etag = last.as_ref().map(|(etag, _)| etag.clone());
        let get = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(KEY)
            .set_if_none_match(etag);
        let answer = match get.send().await {
            Ok(answer) => answer,
            Err(e) if e.raw_response().is_some_and(|r| r.status().as_u16() == 304) => {
                if let Some((etag, control)) = last.as_ref() {
                    return Ok((Some(etag.clone()), control.clone()));
                }
                return Err(self.call("GetObject", explain(&e)));
            }
            Err(e) if matches!(e.as_service_error(), Some(GetObjectError::NoSuchKey(_))) => {
                return Ok((None, Control::default()));
            }
            Err(e) => return Err(self.call("GetObject", explain(&e))),
        };
        let etag = answer.e_tag().map(str::to_owned);
        let body = answer
            .body
            .collect()
            .await
            .map_err(|e| self.call("GetObject", e.to_string()))?;
        let control: Control =
            serde_json::from_slice(&body.to_vec()).map_err(|source| ControlError::Form {
                bucket: self.bucket.clone(),
                source,
            })?;
        *last = etag.clone().map(|etag| (etag, control.clone()));
        Ok((etag, control))
    }

    /// Changes the object. `change` must be pure: it is asked again when another writer was first. Nothing is written
    /// when it returns what it was given.
    ///
    /// # Errors
    /// [`ControlError`] when the bucket does not answer or others were first every time.
    pub async fn change(&self, mut change: impl FnMut(&Control) -> Control) -> Result<Changed, ControlError> {
        for attempt in 1..=ATTEMPTS {
            let (etag, before) = self.read_tagged().await?;
            let after = change(&before);
            if after == before {
                return Ok(Changed { before, after });
            }
            let bytes = serde_json::to_vec(&after).map_err(|source| ControlError::Form {
                bucket: self.bucket.clone(),
                source,
            })?;
            match swap(&self.client, (&self.bucket, KEY), etag.as_deref(), bytes).await {
                Ok(true) => return Ok(Changed { before, after }),
                Ok(false) => {
                    let most = 10u64.saturating_mul(1 << attempt.min(6));
                    tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(0..=most))).await;
                }
                Err(e) => return Err(self.call("PutObject", explain(&e))),
            }
        }
        Err(ControlError::Contended {
            bucket: self.bucket.clone(),
        })
    }

    fn call(&self, operation: &'static str, detail: String) -> ControlError {
        ControlError::Call {
            operation,
            bucket: self.bucket.clone(),
            detail,
        }
    }
}
