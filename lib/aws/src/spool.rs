//! The spool: signed receipts in S3 that wait until the tables work again.

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectError;
use aws_sdk_s3::primitives::ByteStream;
use domain::names;
use receipts::canonical::FormError;
use receipts::key::Signer;
use receipts::receipt::Draft;
use receipts::spool_line;

use crate::clients::explain;

/// Why the spool could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("{operation} of s3://{bucket}/{key}: {detail}")]
    Call {
        operation: &'static str,
        bucket: String,
        key: String,
        detail: String,
    },
    /// A receipt could not be written as canonical bytes.
    #[error("receipt for the spool")]
    Form(#[from] FormError),
    /// An object is not text.
    #[error("s3://{bucket}/{key} is not UTF-8")]
    Text { bucket: String, key: String },
}

/// The spool.
pub struct Spool {
    client: Client,
    bucket: String,
}

impl Spool {
    /// The spool of a stack.
    #[must_use]
    pub fn new(client: Client, bucket: String) -> Self {
        Self { client, bucket }
    }

    /// Keeps a receipt until the tables work again. Keeping the same one again changes nothing.
    pub async fn keep(&self, draft: &Draft, signer: &Signer) -> Result<(), SpoolError> {
        let line = spool_line(draft, signer)?;
        let key = names::spool_key(draft.occurred_at, draft.receipt_id, draft.payload.operation());
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(&key)
            .content_type("application/json");
        let answer = put.body(ByteStream::from(line.into_bytes())).send().await;
        answer
            .map(|_| ())
            .map_err(|e| self.error("PutObject", &key, explain(&e)))
    }

    /// Whether a receipt is kept.
    pub async fn has(&self, draft: &Draft) -> Result<bool, SpoolError> {
        let key = names::spool_key(draft.occurred_at, draft.receipt_id, draft.payload.operation());
        match self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(&key)
            .send()
            .await
        {
            Ok(_) => Ok(true),
            Err(e) if e.as_service_error().is_some_and(HeadObjectError::is_not_found) => Ok(false),
            Err(e) => Err(self.error("HeadObject", &key, explain(&e))),
        }
    }

    /// Keys of receipts that wait, oldest first, at most 1,000, those after `after` only.
    pub async fn list(&self, after: Option<String>) -> Result<Vec<String>, SpoolError> {
        let list = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(names::SPOOL_PREFIX);
        let answer = list.set_start_after(after).send().await;
        let answer = answer.map_err(|e| self.error("ListObjectsV2", names::SPOOL_PREFIX, explain(&e)))?;
        Ok(answer
            .contents
            .unwrap_or_default()
            .into_iter()
            .filter_map(|object| object.key)
            .collect())
    }

    /// A receipt that waits.
    ///
    /// # Errors
    /// [`SpoolError`] when the bucket does not answer or the object is not text.
    pub async fn read(&self, key: &str) -> Result<String, SpoolError> {
        let answer = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await;
        let answer = answer.map_err(|e| self.error("GetObject", key, explain(&e)))?;
        let body = answer
            .body
            .collect()
            .await
            .map_err(|e| self.error("GetObject", key, e))?;
        String::from_utf8(body.to_vec()).map_err(|_| SpoolError::Text {
            bucket: self.bucket.clone(),
            key: key.to_owned(),
        })
    }

    /// Takes a receipt out once it stands in its ledger.
    ///
    /// # Errors
    /// [`SpoolError`] when the bucket does not do it; appending it again then changes nothing.
    pub async fn remove(&self, key: &str) -> Result<(), SpoolError> {
        let answer = self
            .client
            .delete_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await;
        answer
            .map(|_| ())
            .map_err(|e| self.error("DeleteObject", key, explain(&e)))
    }

    fn error(&self, operation: &'static str, key: &str, detail: impl std::fmt::Display) -> SpoolError {
        let (bucket, key, detail) = (self.bucket.clone(), key.to_owned(), detail.to_string());
        SpoolError::Call {
            operation,
            bucket,
            key,
            detail,
        }
    }
}
