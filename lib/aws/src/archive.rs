//! The way out: a tenant's ledger as one archive in the audit bucket.

use std::collections::BTreeMap;
use std::io::{BufWriter, Seek, Write};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use domain::account::AccountId;
use domain::names;
use receipts::archive::{ArchiveSummary, WriteError, Writer};
use receipts::key::PublicKey;
use receipts::ledger::Head;

use crate::clients::explain;
use crate::registry::{Registry, RegistryError};
use crate::store::{Store, StoreError};

/// Why a ledger could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The ledger could not be read.
    #[error("reading the ledger")]
    Ledger(#[from] StoreError),
    /// A policy that a receipt names could not be read.
    #[error("reading a policy the ledger names")]
    Policy(#[from] RegistryError),
    /// The archive could not be written.
    #[error("writing the archive")]
    Write(#[from] WriteError),
    /// The temporary file could not be used.
    #[error("keeping the archive in a temporary file")]
    File(#[from] std::io::Error),
    /// The bucket did not take it.
    #[error("PutObject of s3://{bucket}/{key}: {detail}")]
    Upload {
        /// Which bucket.
        bucket: String,
        /// Which object.
        key: String,
        /// What the SDK said.
        detail: String,
    },
}

/// An archive in the audit bucket.
#[derive(Debug, Clone)]
pub struct Archived {
    /// Name of the object.
    pub key: String,
    /// Version of the object, where the bucket keeps versions.
    pub version: Option<String>,
    /// What is in it.
    pub summary: ArchiveSummary,
}

/// The audit bucket.
pub struct Archives {
    client: Client,
    bucket: String,
}

impl Archives {
    /// The audit bucket of a stack.
    #[must_use]
    pub fn new(client: Client, bucket: String) -> Self {
        Self { client, bucket }
    }

    /// Name of the bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Archives an account's ledger up to `head`. Memory does not grow with the ledger: pages go into a temporary file.
    ///
    /// The archive is made at the head's time, not the clock's: two runs over one ledger upload the same bytes, so it
    /// does not matter which of them is last.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing is uploaded then.
    pub async fn archive(
        &self,
        store: &Store,
        registry: &Registry,
        account: &AccountId,
        public_key: &PublicKey,
        head: &Head,
    ) -> Result<Archived, ArchiveError> {
        let partition = names::partition_key(account);
        let out = BufWriter::new(tempfile::tempfile()?);
        let mut writer = Writer::new(out, account.as_str(), public_key, head.timestamp)?;
        let mut next = 0u64;
        while next < head.size {
            let page = store.receipts_from(&partition, next).await?;
            if page.is_empty() {
                break;
            }
            for line in page
                .iter()
                .take(usize::try_from(head.size - next).unwrap_or(usize::MAX))
            {
                writer.push(line)?;
                next = next.saturating_add(1);
            }
        }
        let mut policies = BTreeMap::new();
        let named: Vec<String> = writer.policies_named().map(str::to_owned).collect();
        for hash in named {
            let bytes = registry.enforcer_bytes(&hash).await?;
            policies.insert(hash, bytes);
        }
        let (summary, out) = writer.finish(&policies)?;
        let mut file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.flush()?;
        file.rewind()?;
        let body = ByteStream::read_from()
            .file(tokio::fs::File::from_std(file))
            .build()
            .await;
        let key = names::archive_key(account, &head.timestamp.strftime("%Y-%m-%d").to_string());
        let body = body.map_err(|e| self.refused(&key, e))?;
        let version = self.put(&key, "application/gzip", body).await?;
        Ok(Archived {
            key,
            version,
            summary,
        })
    }

    /// Puts the closing receipt beside its archive.
    ///
    /// # Errors
    /// [`ArchiveError::Upload`] when the bucket does not take it.
    pub async fn put_closing(&self, archive_key: &str, line: &str) -> Result<String, ArchiveError> {
        let key = format!("{}.closing.json", archive_key.trim_end_matches(".tar.gz"));
        self.put(
            &key,
            "application/json",
            ByteStream::from(line.as_bytes().to_vec()),
        )
        .await?;
        Ok(key)
    }

    async fn put(
        &self,
        key: &str,
        content_type: &str,
        body: ByteStream,
    ) -> Result<Option<String>, ArchiveError> {
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .content_type(content_type);
        let answer = put
            .body(body)
            .send()
            .await
            .map_err(|e| self.refused(key, explain(&e)))?;
        Ok(answer.version_id)
    }

    fn refused(&self, key: &str, detail: impl std::fmt::Display) -> ArchiveError {
        ArchiveError::Upload {
            bucket: self.bucket.clone(),
            key: key.to_owned(),
            detail: detail.to_string(),
        }
    }
}
