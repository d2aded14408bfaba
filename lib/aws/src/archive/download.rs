//! The way back: an archive as it is stored, with what closes it.

use aws_sdk_s3::primitives::ByteStream;
use domain::account::AccountId;
use domain::names;
use receipts::receipt::{Payload, Receipt};
use sha2::{Digest as _, Sha256};

use super::{Archives, CLOSING, CLOSING_CHECKPOINT};
use crate::audit::{Audit, AuditError};
use crate::clients::explain;

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// What stands beside an archive is no receipt.
    #[error("{key} of the audit bucket is not a receipt")]
    Receipt { key: String, source: serde_json::Error },
    /// It is the receipt of something else.
    #[error("{key} of the audit bucket is not the receipt that closes a ledger")]
    NotClosing { key: String },
    /// There was one a moment ago.
    #[error("{key} is not in the audit bucket")]
    Gone { key: String },
}

/// An archive, as the receipt that closed its ledger tells of it.
#[derive(Debug, Clone)]
pub struct ClosedArchive {
    key: String,
    version: Option<String>,
    pub size_bytes: u64,
    /// In lower-case hex.
    pub sha256: String,
    /// The receipt's line. Nothing but its form was checked.
    pub receipt: String,
    /// The final checkpoint; none where closing the archive was interrupted.
    pub checkpoint: Option<Vec<u8>>,
}

/// An archive's bytes on their way.
pub struct Download<'a> {
    audit: &'a Audit,
    key: &'a str,
    body: ByteStream,
    hash: Sha256,
}

impl Download<'_> {
    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// [`DownloadError`] when the bucket breaks off.
    pub async fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, DownloadError> {
        let Some(chunk) = self.body.next().await else {
            return Ok(None);
        };
        let chunk = chunk.map_err(|e| self.audit.error("GetObject", self.key, e))?;
        self.hash.update(&chunk);
        Ok(Some(chunk))
    }

    /// SHA-256 of what came, in lower-case hex.
    #[must_use]
    pub fn sha256(self) -> String {
        hex::encode(self.hash.finalize())
    }
}

impl Archives {
    /// The days on which ledgers of an account were closed, as YYYY-MM-DD, the last one last.
    ///
    /// # Errors
    /// [`DownloadError`] when the bucket does not answer.
    pub async fn closed_on(&self, account: &AccountId) -> Result<Vec<String>, DownloadError> {
        let any = names::archive_key(account, "");
        let folder = any.trim_end_matches(".tar.gz");
        let kept = self.log.audit.list_kept(folder).await?;
        let names = kept.iter().filter_map(|kept| kept.key.strip_prefix(folder));
        let dates = names.filter_map(|name| name.strip_suffix(CLOSING));
        Ok(dates
            .filter(|date| !date.contains('/'))
            .map(str::to_owned)
            .collect())
    }

    /// What closes the archive of a day.
    ///
    /// # Errors
    /// [`DownloadError`] when the bucket does not answer, or holds something else there.
    pub async fn closed(&self, account: &AccountId, date: &str) -> Result<ClosedArchive, DownloadError> {
        let audit = &self.log.audit;
        let key = names::archive_key(account, date);
        let name = key.trim_end_matches(".tar.gz");
        let closing = format!("{name}{CLOSING}");
        let Some(bytes) = audit.get(&closing).await? else {
            return Err(DownloadError::Gone { key: closing });
        };
        let receipt: Receipt = match serde_json::from_slice(&bytes) {
            Ok(receipt) => receipt,
            Err(source) => return Err(DownloadError::Receipt { key: closing, source }),
        };
        let Payload::DecommissionComplete {
            archive_version,
            archive_size_bytes,
            archive_sha256,
            ..
        } = receipt.payload
        else {
            return Err(DownloadError::NotClosing { key: closing });
        };
        let checkpoint = audit.get(&format!("{name}{CLOSING_CHECKPOINT}")).await?;
        Ok(ClosedArchive {
            version: archive_version,
            size_bytes: archive_size_bytes,
            sha256: archive_sha256,
            receipt: String::from_utf8_lossy(&bytes).into_owned(),
            checkpoint,
            key,
        })
    }

    /// Begins to read an archive: the version that its closing receipt names.
    ///
    /// # Errors
    /// [`DownloadError`] when the bucket does not answer.
    pub async fn open<'a>(&'a self, closed: &'a ClosedArchive) -> Result<Download<'a>, DownloadError> {
        let (audit, key) = (&self.log.audit, closed.key.as_str());
        let get = audit.client.get_object().bucket(&audit.bucket).key(key);
        let answer = get.set_version_id(closed.version.clone()).send().await;
        let answer = answer.map_err(|e| audit.error("GetObject", key, explain(&e)))?;
        Ok(Download {
            audit,
            key,
            body: answer.body,
            hash: Sha256::new(),
        })
    }
}
