//! The way out: a tenant's ledger as one archive in the audit bucket, under Object Lock.

mod download;

use std::collections::BTreeMap;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Config;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, ObjectLockMode};
use domain::account::AccountId;
use domain::names::{self, LedgerId, Partition};
use domain::tenant::ArchivedActions;
use receipts::archive::{ArchiveSummary, Opening, WriteError, Writer};
use receipts::key::Signer;
use receipts::ledger::Head;
use serde::Serialize;
use sha2::{Digest, Sha256};

pub use self::download::{ClosedArchive, Download, DownloadError};
use crate::audit::{Audit, AuditError, checksum};
use crate::clients::explain;
use crate::log::{Log, LogError};
use crate::pages::Pages;
use crate::registry::{Registry, RegistryError};
use crate::store::{Store, StoreError};

/// Bytes of a part. S3 takes 10,000 of them, so an archive may have 78 GiB.
const PART: usize = 8 << 20;
/// How long S3 may take to make one object of many parts.
const COMPLETION: Duration = Duration::from_secs(30);

/// What the names of the receipt and the checkpoint that close an archive end with, in place of its own ending.
const CLOSING: &str = ".closing.json";
const CLOSING_CHECKPOINT: &str = ".closing.checkpoint";

const ARCHIVE_TYPE: &str = "application/gzip";

/// Why a ledger could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("reading the ledger")]
    Ledger(#[from] StoreError),
    /// The ledger's checkpoint could not be issued, or its earlier ones not be read.
    #[error("the ledger's checkpoints")]
    Log(#[from] LogError),
    /// A policy that a receipt names could not be read.
    #[error("reading a policy the ledger names")]
    Policy(#[from] RegistryError),
    /// The archive could not be written.
    #[error("writing the archive")]
    Write(#[from] WriteError),
    /// The bucket did not take it.
    #[error("storing the archive")]
    Upload(#[from] AuditError),
    /// An action or a dead letter has no JSON form.
    #[error("writing an action or a dead letter as JSON")]
    Action(#[source] serde_json::Error),
    /// It failed, and its parts are still in the bucket, until the bucket's lifecycle rule removes them.
    #[error("upload {upload_id} of s3://{bucket}/{key} was begun and could not be aborted: {detail}")]
    NotAborted {
        bucket: String,
        key: String,
        upload_id: String,
        /// What the SDK said about the abort.
        detail: String,
        /// Why it was to be aborted.
        #[source]
        source: Box<Self>,
    },
}

impl ArchiveError {
    /// Whether the ledger is not the one that was signed for. Trying again does not help then; a person must look.
    #[must_use]
    pub fn is_fork(&self) -> bool {
        match self {
            Self::Log(error) => error.is_fork(),
            Self::Write(error) => matches!(
                error,
                WriteError::Ledger { .. } | WriteError::Checkpoints { .. } | WriteError::Key { .. }
            ),
            Self::NotAborted { source, .. } => source.is_fork(),
            Self::Ledger(_) | Self::Policy(_) | Self::Upload(_) | Self::Action(_) => false,
        }
    }
}

/// An archive in the audit bucket.
#[derive(Debug, Clone)]
pub struct Archived {
    pub key: String,
    /// Version of the object, where the bucket keeps versions.
    pub version: Option<String>,
    pub summary: ArchiveSummary,
}

/// A message that nobody could settle, as it is kept.
#[derive(Debug, Serialize)]
pub struct DeadLetter<'a> {
    pub message_id: &'a str,
    /// When it was put on the tenant's queue, in milliseconds since 1970, as SQS says.
    pub sent_at_ms: Option<&'a str>,
    pub body: &'a str,
}

/// The archives in the audit bucket.
pub struct Archives {
    log: Log,
}

impl Archives {
    /// The archives beside these logs.
    #[must_use]
    pub fn new(log: Log) -> Self {
        Self { log }
    }

    /// Name of the bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        self.log.bucket()
    }

    /// The logs that archives are held against.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Archives an account's ledger up to `head`, once that is signed for. Memory does not grow with the ledger: what is
    /// written goes out in parts.
    ///
    /// The archive is made at the head's time, not the clock's: two runs over one ledger upload the same bytes, so it
    /// does not matter which of them is last.
    ///
    /// # Errors
    /// [`ArchiveError`]; there is no new object then.
    pub async fn archive(
        &self,
        store: &Store,
        registry: &Registry,
        signer: &Signer,
        account: &AccountId,
        head: &Head,
    ) -> Result<Archived, ArchiveError> {
        let ledger = LedgerId::Customer(account.clone());
        let issued = self.log.issue(store, signer, &ledger, head).await?;
        let mut earlier: Vec<(u64, String)> = Vec::new();
        for (size, _, note) in self.log.checkpoints(&ledger).await? {
            // Where several keys signed for one size, any of them will do.
            if size < head.size && earlier.last().is_none_or(|(before, _)| *before < size) {
                earlier.push((size, note));
            }
        }
        let key_trail = self.log.key_trail().await?;
        let opening = Opening {
            account_id: account.as_str(),
            created_at: head.timestamp,
            checkpoint: &issued.note,
            checkpoints: &earlier,
            public_key: &signer.public_key(),
            key_trail: &key_trail,
        };
        let key = names::archive_key(account, &head.timestamp.strftime("%Y-%m-%d").to_string());
        let mut upload = Upload::new(&self.log.audit, &key, ARCHIVE_TYPE);
        match self
            .stream(store, registry, account, head, &opening, &mut upload)
            .await
        {
            Ok((summary, version)) => Ok(Archived {
                key,
                version,
                summary,
            }),
            Err(error) => Err(upload.abort(error).await),
        }
    }

    async fn stream(
        &self,
        store: &Store,
        registry: &Registry,
        account: &AccountId,
        head: &Head,
        opening: &Opening<'_>,
        upload: &mut Upload<'_>,
    ) -> Result<(ArchiveSummary, Option<String>), ArchiveError> {
        let partition = Partition::of(account);
        let mut writer = Writer::new(Vec::new(), opening)?;
        let mut next = 0u64;
        while next < head.size {
            let page = store.receipts_from(&partition, next).await?;
            if page.is_empty() {
                // The writer says how many there should have been.
                break;
            }
            let left = usize::try_from(head.size - next).unwrap_or(usize::MAX);
            for line in page.iter().take(left) {
                writer.push(line)?;
                next = next.saturating_add(1);
                upload.take_parts(writer.output()).await?;
            }
        }
        let mut policies = BTreeMap::new();
        let named: Vec<String> = writer.policies_named().map(str::to_owned).collect();
        for hash in named {
            let bytes = registry.enforcer_bytes(&hash).await?;
            policies.insert(hash, bytes);
        }
        let (summary, mut out) = writer.finish(&policies)?;
        upload.take_parts(&mut out).await?;
        let version = upload.finish(out).await?;
        Ok((summary, version))
    }

    /// Archives the content of a tenant's own action table, one action a line, in the order of their ids.
    ///
    /// # Errors
    /// [`ArchiveError`]; there is no new object then.
    pub async fn archive_actions(
        &self,
        store: &Store,
        account: &AccountId,
        generation: u64,
    ) -> Result<ArchivedActions, ArchiveError> {
        let key = names::actions_archive_key(account, generation);
        let mut upload = Upload::new(&self.log.audit, &key, "application/jsonl");
        match self.stream_actions(store, account, &mut upload).await {
            Ok((sha256, size_bytes, entries)) => Ok(ArchivedActions {
                path: format!("s3://{}/{key}", self.bucket()),
                sha256,
                size_bytes,
                entries,
            }),
            Err(error) => Err(upload.abort(error).await),
        }
    }

    async fn stream_actions(
        &self,
        store: &Store,
        account: &AccountId,
        upload: &mut Upload<'_>,
    ) -> Result<(String, u64, u64), ArchiveError> {
        let partition = Partition::of(account);
        let (mut hash, mut size, mut entries) = (Sha256::new(), 0u64, 0u64);
        let (mut out, mut pages) = (Vec::new(), Pages::default());
        while let Some(actions) = pages
            .next(async |after| store.own_actions(&partition, after).await)
            .await?
        {
            for action in actions {
                let start = out.len();
                serde_json::to_writer(&mut out, &action).map_err(ArchiveError::Action)?;
                out.push(b'\n');
                let line = out.get(start..).unwrap_or_default();
                hash.update(line);
                size = size.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
                entries = entries.saturating_add(1);
                upload.take_parts(&mut out).await?;
            }
        }
        upload.finish(out).await?;
        Ok((hex::encode(hash.finalize()), size, entries))
    }

    /// Keeps a dead letter before it is taken off its queue, and says where. Keeping it again changes nothing.
    pub async fn keep_dead_letter(
        &self,
        account: &AccountId,
        generation: u64,
        letter: &DeadLetter<'_>,
    ) -> Result<String, ArchiveError> {
        let id = names::key_segment(letter.message_id);
        let key = format!("{}{id}.json", names::dead_letters_prefix(account, generation));
        let bytes = serde_json::to_vec(letter).map_err(ArchiveError::Action)?;
        let audit = &self.log.audit;
        audit.put_new_locked(&key, "application/json", bytes).await?;
        Ok(format!("s3://{}/{key}", self.bucket()))
    }

    /// How many dead letters of a generation are kept, and below which prefix.
    pub async fn dead_letters(
        &self,
        account: &AccountId,
        generation: u64,
    ) -> Result<(u64, String), ArchiveError> {
        let prefix = names::dead_letters_prefix(account, generation);
        let kept = self.log.audit.list_kept(&prefix).await?;
        let count = u64::try_from(kept.len()).unwrap_or(u64::MAX);
        Ok((count, format!("s3://{}/{prefix}", self.bucket())))
    }

    /// Puts what closes an archive beside it: the receipt, and the checkpoint of the ledger that ends with it. `seq` is
    /// the receipt's, `head` the ledger's end, then or later. Doing so again changes nothing.
    ///
    /// # Errors
    /// [`ArchiveError`]; what is missing is put when it is done again.
    pub async fn close(
        &self,
        store: &Store,
        signer: &Signer,
        account: &AccountId,
        archive_key: &str,
        closing: (u64, &str),
        head: &Head,
    ) -> Result<(), ArchiveError> {
        let (seq, line) = closing;
        let name = archive_key.trim_end_matches(".tar.gz");
        let audit = &self.log.audit;
        audit
            .put_locked(&format!("{name}{CLOSING}"), "application/json", line.into())
            .await?;
        let ledger = LedgerId::Customer(account.clone());
        let size = seq.saturating_add(1);
        // The archive's key trail may be older than the key that signs by now: a note that was signed then is better.
        let note = match self.log.note_at(&ledger, size, signer.key_id()).await? {
            Some(note) => note,
            None => {
                let issued = self.log.issue_at(store, signer, &ledger, size, head);
                issued.await?.note
            }
        };
        let key = format!("{name}{CLOSING_CHECKPOINT}");
        audit
            .put_locked(&key, "text/plain; charset=utf-8", note.into())
            .await?;
        Ok(())
    }
}

/// An object on its way: begun as an upload of parts only once there is more than one.
struct Upload<'a> {
    audit: &'a Audit,
    key: &'a str,
    content_type: &'static str,
    id: Option<String>,
    parts: Vec<CompletedPart>,
}

impl<'a> Upload<'a> {
    fn new(audit: &'a Audit, key: &'a str, content_type: &'static str) -> Self {
        Self {
            audit,
            key,
            content_type,
            id: None,
            parts: Vec::new(),
        }
    }

    fn client(&self) -> &Client {
        &self.audit.client
    }

    fn refused(&self, operation: &'static str, error: &(dyn std::error::Error + 'static)) -> AuditError {
        self.audit.error(operation, self.key, explain(error))
    }

    /// Takes whole parts out of what was written.
    async fn take_parts(&mut self, out: &mut Vec<u8>) -> Result<(), AuditError> {
        while out.len() >= PART {
            let rest = out.split_off(PART);
            let part = std::mem::replace(out, rest);
            self.put_part(part).await?;
        }
        Ok(())
    }

    async fn begun(&mut self) -> Result<String, AuditError> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let created = self
            .client()
            .create_multipart_upload()
            .bucket(&self.audit.bucket)
            .key(self.key)
            .content_type(self.content_type)
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .object_lock_mode(ObjectLockMode::Compliance)
            .object_lock_retain_until_date(self.audit.retain_until())
            .send()
            .await;
        let created = created.map_err(|e| self.refused("CreateMultipartUpload", &e))?;
        let id = created.upload_id.ok_or_else(|| {
            self.audit
                .error("CreateMultipartUpload", self.key, "the answer names no upload")
        })?;
        self.id = Some(id.clone());
        Ok(id)
    }

    async fn put_part(&mut self, bytes: Vec<u8>) -> Result<(), AuditError> {
        let id = self.begun().await?;
        let sum = checksum(&bytes);
        let number = i32::try_from(self.parts.len())
            .unwrap_or(i32::MAX)
            .saturating_add(1);
        let put = self
            .client()
            .upload_part()
            .bucket(&self.audit.bucket)
            .key(self.key)
            .upload_id(id)
            .part_number(number)
            .checksum_sha256(&sum);
        let put = put.body(ByteStream::from(bytes)).send().await;
        let put = put.map_err(|e| self.refused("UploadPart", &e))?;
        let part = CompletedPart::builder()
            .part_number(number)
            .set_e_tag(put.e_tag)
            .checksum_sha256(sum)
            .build();
        self.parts.push(part);
        Ok(())
    }

    /// Puts the rest, and makes one object of it all. Returns its version, where the bucket keeps them.
    async fn finish(&mut self, rest: Vec<u8>) -> Result<Option<String>, AuditError> {
        if self.id.is_none() {
            return self.audit.put_locked(self.key, self.content_type, rest).await;
        }
        if !rest.is_empty() {
            self.put_part(rest).await?;
        }
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(self.parts.clone()))
            .build();
        let patient = TimeoutConfig::builder()
            .operation_attempt_timeout(COMPLETION)
            .build();
        let completed = self
            .client()
            .complete_multipart_upload()
            .bucket(&self.audit.bucket)
            .key(self.key)
            .set_upload_id(self.id.clone())
            .multipart_upload(parts)
            .customize()
            .config_override(Config::builder().timeout_config(patient))
            .send()
            .await;
        let completed = completed.map_err(|e| self.refused("CompleteMultipartUpload", &e))?;
        Ok(completed.version_id)
    }

    /// Leaves nothing of a failed upload behind. Returns why it failed, and whether something is left.
    async fn abort(self, failed: impl Into<ArchiveError>) -> ArchiveError {
        let failed = failed.into();
        let Some(upload_id) = self.id.clone() else {
            return failed;
        };
        let abort = self
            .client()
            .abort_multipart_upload()
            .bucket(&self.audit.bucket)
            .key(self.key)
            .upload_id(&upload_id);
        match abort.send().await {
            Ok(_) => failed,
            // It is gone already: aborted by an attempt whose answer was lost, or made an object of.
            Err(e) if e.code() == Some("NoSuchUpload") => failed,
            Err(e) => ArchiveError::NotAborted {
                bucket: self.audit.bucket.clone(),
                key: self.key.to_owned(),
                upload_id,
                detail: explain(&e),
                source: Box::new(failed),
            },
        }
    }
}
