//! The audit bucket: evidence is put there under Object Lock, and nothing here can delete.

use std::collections::BTreeMap;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::ObjectLockMode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::clients::explain;
use crate::pages::Pages;

const DAY_SECONDS: i64 = 24 * 3600;

/// A call of the audit bucket that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of s3://{bucket}/{key}: {detail}")]
pub struct AuditError {
    pub operation: &'static str,
    pub bucket: String,
    /// Which object, or which prefix was listed.
    pub key: String,
    pub detail: String,
}

/// What came of a put that must not replace anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is there now.
    Done,
    /// Something was there before, and stays: these bytes.
    Before(Vec<u8>),
}

/// A version of an object.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) key: String,
    /// Which version, where the bucket keeps versions.
    version: Option<String>,
}

/// The audit bucket of a stack.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    pub(crate) client: Client,
    pub(crate) bucket: String,
    retention_days: u32,
}

impl Audit {
    pub(crate) fn new(client: Client, bucket: String, retention_days: u32) -> Self {
        Self {
            client,
            bucket,
            retention_days,
        }
    }

    pub(crate) fn error(
        &self,
        operation: &'static str,
        key: &str,
        detail: impl std::fmt::Display,
    ) -> AuditError {
        AuditError {
            operation,
            bucket: self.bucket.clone(),
            key: key.to_owned(),
            detail: detail.to_string(),
        }
    }

    /// Until when what is put now can't be deleted by anybody: not the root user, not the account's owner.
    pub(crate) fn retain_until(&self) -> DateTime {
        let days = i64::from(self.retention_days);
        DateTime::from_secs(Timestamp::now().as_second().saturating_add(days * DAY_SECONDS))
    }

    /// An object's bytes; `None` where there is none.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, AuditError> {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let answer = match get.send().await {
            Ok(answer) => answer,
            Err(e) if matches!(e.as_service_error(), Some(GetObjectError::NoSuchKey(_))) => return Ok(None),
            Err(e) => return Err(self.error("GetObject", key, explain(&e))),
        };
        self.body(key, answer.body).await.map(Some)
    }

    async fn body(&self, key: &str, body: ByteStream) -> Result<Vec<u8>, AuditError> {
        let body = body.collect().await;
        body.map(|body| body.to_vec())
            .map_err(|e| self.error("GetObject", key, e))
    }

    /// The version of an object.
    pub(crate) async fn get_kept(&self, kept: &Kept) -> Result<Vec<u8>, AuditError> {
        let get = self.client.get_object().bucket(&self.bucket).key(&kept.key);
        let answer = get.set_version_id(kept.version.clone()).send().await;
        let answer = answer.map_err(|e| self.error("GetObject", &kept.key, explain(&e)))?;
        self.body(&kept.key, answer.body).await
    }

    /// What was ever put below a prefix, in the order of the keys: of each object the oldest version, which its lock keeps.
    /// A delete marker, which anybody with the right to delete can put in front of it, hides nothing here.
    pub(crate) async fn list_kept(&self, prefix: &str) -> Result<Vec<Kept>, AuditError> {
        let mut kept = BTreeMap::new();
        let (mut key_marker, mut version_marker) = (None, None);
        loop {
            let list = self
                .client
                .list_object_versions()
                .bucket(&self.bucket)
                .prefix(prefix)
                .set_key_marker(key_marker)
                .set_version_id_marker(version_marker);
            let page = list.send().await;
            let page = page.map_err(|e| self.error("ListObjectVersions", prefix, explain(&e)))?;
            // Newest first, so the last one of a key is the oldest.
            for version in page.versions.unwrap_or_default() {
                if let Some(key) = version.key {
                    kept.insert(key, version.version_id);
                }
            }
            (key_marker, version_marker) = (page.next_key_marker, page.next_version_id_marker);
            if page.is_truncated != Some(true) || key_marker.is_none() {
                return Ok(kept
                    .into_iter()
                    .map(|(key, version)| Kept { key, version })
                    .collect());
            }
        }
    }

    /// The names of the folders right below a prefix, in order.
    pub(crate) async fn folders(&self, prefix: &str) -> Result<Vec<String>, AuditError> {
        let mut folders = Vec::new();
        let read = async |token| {
            let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let page = list.delimiter("/").set_continuation_token(token).send().await;
            let page = page.map_err(|e| self.error("ListObjectsV2", prefix, explain(&e)))?;
            Ok::<_, AuditError>((
                page.common_prefixes.unwrap_or_default(),
                page.next_continuation_token,
            ))
        };
        let mut pages = Pages::default();
        while let Some(page) = pages.next(&read).await? {
            for folder in page {
                let name = folder
                    .prefix
                    .as_deref()
                    .and_then(|name| name.strip_prefix(prefix));
                folders.extend(name.map(|name| name.trim_end_matches('/').to_owned()));
            }
        }
        Ok(folders)
    }

    /// Puts an object that can be made again from others, in place of what is there.
    pub(crate) async fn put(&self, key: &str, content_type: &str, bytes: Vec<u8>) -> Result<(), AuditError> {
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .content_type(content_type)
            .checksum_sha256(checksum(&bytes));
        let answer = put.body(ByteStream::from(bytes)).send().await;
        answer
            .map(|_| ())
            .map_err(|e| self.error("PutObject", key, explain(&e)))
    }

    /// Puts evidence under lock. What is there stays as an older version. Returns the version, where the bucket keeps
    /// them.
    pub(crate) async fn put_locked(
        &self,
        key: &str,
        content_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Option<String>, AuditError> {
        let answer = self.locked(key, content_type, bytes).send().await;
        let answer = answer.map_err(|e| self.error("PutObject", key, explain(&e)))?;
        Ok(answer.version_id)
    }

    /// Puts evidence under lock where nothing is.
    pub(crate) async fn put_new_locked(
        &self,
        key: &str,
        content_type: &str,
        bytes: Vec<u8>,
    ) -> Result<Put, AuditError> {
        for _ in 0..2 {
            let put = self.locked(key, content_type, bytes.clone()).if_none_match("*");
            match put.send().await {
                Ok(_) => return Ok(Put::Done),
                // 412: something is there; 409: somebody is putting it right now. Either way it can be read, unless the
                // other one failed.
                Err(e)
                    if matches!(
                        e.code(),
                        Some("PreconditionFailed" | "ConditionalRequestConflict")
                    ) =>
                {
                    if let Some(before) = self.get(key).await? {
                        return Ok(Put::Before(before));
                    }
                }
                Err(e) => return Err(self.error("PutObject", key, explain(&e))),
            }
        }
        Err(self.error(
            "PutObject",
            key,
            "refused because something is there, which can't be read",
        ))
    }

    fn locked(
        &self,
        key: &str,
        content_type: &str,
        bytes: Vec<u8>,
    ) -> aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder {
        self.client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .content_type(content_type)
            .checksum_sha256(checksum(&bytes))
            .object_lock_mode(ObjectLockMode::Compliance)
            .object_lock_retain_until_date(self.retain_until())
            .body(ByteStream::from(bytes))
    }
}

/// SHA-256 as S3 wants it.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    STANDARD.encode(Sha256::digest(bytes))
}
