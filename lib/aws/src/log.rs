//! A ledger's published log in the audit bucket: signed checkpoints, and the Merkle tree behind them as tiles.
//!
//! Laid out as a C2SP tile log (`c2sp.org/tlog-tiles`) below [`names::log_prefix`]: `checkpoint` is the latest,
//! `tile/…` the tree. Beside them, `checkpoints/<size>-<key id>` is each checkpoint there ever was, under Object Lock: a
//! table that was rolled back, or restored and written on, contradicts one of them, and [`Log::issue`] says so instead of
//! signing. The key trail is below `_keys/`.

mod error;

pub use self::error::LogError;
use std::collections::VecDeque;

use aws_sdk_s3::Client;
use domain::names::{self, LedgerId};
use receipts::checkpoint::{Checkpoint, CheckpointError};
use receipts::key::{KeyRing, Signer};
use receipts::ledger::Head;
use receipts::merkle::{Hash, leaf_hash};
use receipts::tile::{TILE_WIDTH, Tile, TileError, TileWriter, Tiles, edge_tiles};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::audit::{Audit, AuditError, Kept, Put};
use crate::config::{self, ConfigError};
use crate::store::Store;
use domain::transaction::Keys;

/// Objects read or written at a time.
const AT_ONCE: usize = 16;

const NOTE_TYPE: &str = "text/plain; charset=utf-8";
const TILE_TYPE: &str = "application/octet-stream";

/// A signed checkpoint, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The signed note.
    pub note: String,
    /// Receipts it is over.
    pub size: u64,
    /// The root of their Merkle tree.
    pub root: Hash,
    /// Whether it was signed just now.
    pub fresh: bool,
}

/// A stored checkpoint, by what its key says.
#[derive(Debug, Clone)]
struct Stored {
    size: u64,
    key_id: String,
    kept: Kept,
}

/// The logs of a stack.
#[derive(Debug, Clone)]
pub struct Log {
    pub(crate) audit: Audit,
    domain: String,
}

/// The ring of the keys that the signer's own leads to, forwards and back, along the key trail in this bucket.
///
/// # Errors
/// As [`Log::ring`].
pub async fn key_ring(s3: &Client, audit_bucket: &str, signer: &Signer) -> Result<KeyRing, LogError> {
    // Nothing is put, so neither domain nor retention matters.
    let days = *config::RETENTION_DAY_RANGE.start();
    Log::new(s3.clone(), audit_bucket.to_owned(), String::new(), days)
        .ring(signer)
        .await
}

/// One checkpoint's making.
struct Job<'a> {
    signer: &'a Signer,
    ring: KeyRing,
    ledger: &'a LedgerId,
    origin: String,
    prefix: String,
    stored: Vec<Stored>,
    /// Whether `checkpoint` is there.
    latest_there: bool,
}

impl Log {
    /// The logs in the audit bucket, as `<domain>/receipts/…`; what is evidence is locked for so many days.
    #[must_use]
    pub fn new(s3: Client, audit_bucket: String, domain: String, retention_days: u32) -> Self {
        Self {
            audit: Audit::new(s3, audit_bucket, retention_days),
            domain,
        }
    }

    /// The logs that the environment names.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable that is missing or not of its form.
    pub fn from_env(s3: Client) -> Result<Self, ConfigError> {
        let bucket = config::required(config::AUDIT_BUCKET)?;
        Ok(Self::new(
            s3,
            bucket,
            config::receipts_domain()?,
            config::retention_days()?,
        ))
    }

    /// Name of the audit bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.audit.bucket
    }

    /// The origin of a ledger's checkpoints.
    #[must_use]
    pub fn origin(&self, ledger: &LedgerId) -> String {
        ledger.ledger().origin(&self.domain)
    }

    /// Every checkpoint of a ledger by size, and by key id where several keys signed one: size, key id, note. The notes
    /// are as stored; whoever trusts a key verifies them.
    pub async fn checkpoints(&self, ledger: &LedgerId) -> Result<Vec<(u64, String, String)>, LogError> {
        let (stored, _) = self.stored(ledger).await?;
        let kept = stored.iter().map(|one| one.kept.clone()).collect();
        let notes = self.texts(kept).await?;
        Ok(stored
            .into_iter()
            .zip(notes)
            .map(|(one, note)| (one.size, one.key_id, note))
            .collect())
    }

    /// The largest checkpoint of a ledger as stored, but for those of keys that this ring has revoked: size, key id, note.
    pub async fn latest(
        &self,
        ledger: &LedgerId,
        keys: &KeyRing,
    ) -> Result<Option<(u64, String, String)>, LogError> {
        let (stored, _) = self.stored(ledger).await?;
        let counts = |one: &Stored| keys.revocation(&one.key_id).is_none();
        let Some(last) = stored.into_iter().rev().find(counts) else {
            return Ok(None);
        };
        let note = self.text(&last.kept).await?;
        Ok(Some((last.size, last.key_id, note)))
    }

    /// Tiles of a ledger's tree.
    ///
    /// # Errors
    /// [`LogError::Tile`] naming a tile that is missing, [`LogError::Audit`] when the bucket does not answer.
    pub async fn tiles(&self, ledger: &LedgerId, wanted: &[Tile]) -> Result<Tiles, LogError> {
        let prefix = names::log_prefix(ledger.ledger());
        let wrong = |source| LogError::Tile {
            ledger: self.origin(ledger),
            source,
        };
        let mut tiles = Tiles::new();
        let mut waiting: VecDeque<Tile> = wanted.iter().copied().collect();
        let mut running = JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(tile) = waiting.pop_front()
            {
                let (audit, key) = (self.audit.clone(), format!("{prefix}{}", tile.path()));
                running.spawn(async move { audit.get(&key).await.map(|bytes| (tile, bytes)) });
            }
            let Some((tile, bytes)) = next(&mut running).await? else {
                return Ok(tiles);
            };
            match bytes {
                Some(bytes) => tiles.insert(tile, bytes).map_err(wrong)?,
                // A log may drop a partial tile once the full one is there.
                None => match Tile::new(tile.level(), tile.index(), TILE_WIDTH).filter(|_| !tile.is_full()) {
                    Some(full) => waiting.push_back(full),
                    None => return Err(wrong(TileError::Missing { tile })),
                },
            }
        }
    }

    /// Segments of the ledgers that have a log: whatever the tables say now, something was signed for them.
    pub async fn segments(&self) -> Result<Vec<String>, LogError> {
        Ok(self.audit.folders(names::LOGS_PREFIX).await?)
    }

    /// The key trail's receipts in order, as stored; [`KeyRing::follow`] believes them or not.
    pub async fn key_trail(&self) -> Result<Vec<String>, LogError> {
        let kept = self.audit.list_kept(names::KEYS_PREFIX).await?;
        self.texts(kept).await
    }

    /// Publishes a receipt of the key trail, once it stands in the system's ledger at `seq`. Doing so again changes
    /// nothing.
    ///
    /// # Errors
    /// [`LogError::KeyTrail`] when there is another one, [`LogError::Audit`] when the bucket does not answer.
    pub async fn put_key_trail(&self, seq: u64, line: &str) -> Result<(), LogError> {
        let key = names::key_trail_key(seq);
        let put = self
            .audit
            .put_new_locked(&key, "application/json", line.into())
            .await?;
        match put {
            Put::Before(before) if before != line.as_bytes() => Err(LogError::KeyTrail {
                bucket: self.audit.bucket.clone(),
                key,
                expected: line.to_owned(),
                found: String::from_utf8_lossy(&before).into_owned(),
            }),
            Put::Before(_) | Put::Done => Ok(()),
        }
    }

    /// The ring of the keys that the signer's own leads to along the key trail.
    ///
    /// # Errors
    /// [`LogError::Trail`] when the trail does not hold, [`LogError::Audit`] when the bucket does not answer.
    pub async fn ring(&self, signer: &Signer) -> Result<KeyRing, LogError> {
        let trail = self.key_trail().await?;
        KeyRing::from(signer.public_key())
            .follow(trail.iter().map(String::as_str))
            .map_err(|source| LogError::Trail {
                bucket: self.audit.bucket.clone(),
                source,
            })
    }

    /// The checkpoint of a ledger that ends in `head`, which must have committed. Signed now, unless it was before.
    ///
    /// Only the receipts behind the largest checkpoint so far are read; memory does not grow with them. Nothing is signed
    /// that contradicts a checkpoint that was signed before.
    ///
    /// # Errors
    /// [`LogError::RolledBack`], [`LogError::Forked`] and [`LogError::Short`] when the table is not the ledger that was
    /// signed for, [`LogError::Empty`] for a ledger without receipts, others when a part of the cloud does not answer.
    pub async fn issue(
        &self,
        store: &Store,
        signer: &Signer,
        ledger: &LedgerId,
        head: &Head,
    ) -> Result<Issued, LogError> {
        self.issue_at(store, signer, ledger, head.size, head).await
    }

    /// As [`Log::issue`], of the first `size` receipts of the ledger that ends in `head`: for a checkpoint that a crash
    /// left unsigned.
    ///
    /// # Errors
    /// As [`Log::issue`].
    pub async fn issue_at(
        &self,
        store: &Store,
        signer: &Signer,
        ledger: &LedgerId,
        size: u64,
        head: &Head,
    ) -> Result<Issued, LogError> {
        let (stored, latest_there) = self.stored(ledger).await?;
        let job = Job {
            signer,
            ring: self.ring(signer).await?,
            ledger,
            origin: self.origin(ledger),
            prefix: names::log_prefix(ledger.ledger()),
            stored,
            latest_there,
        };
        let signed = job.stored.last().map_or(0, |last| last.size);
        if signed <= head.size {
            return self.sign(&job, store, size, head).await;
        }
        // Perhaps only this head is old: another run may have signed since it was read.
        let now = store.load(&ledger.partition(), &Keys::default()).await?.head;
        if now.size < signed {
            return Err(self.rolled_back(&job, &now).await?);
        }
        let issued = self.sign(&job, store, size, &now).await?;
        let read = self.root(&job, head)?;
        if size == head.size && issued.root != read {
            return Err(forked(&job, size, "the head as first read", &read, &issued.root));
        }
        Ok(issued)
    }

    async fn rolled_back(&self, job: &Job<'_>, head: &Head) -> Result<LogError, LogError> {
        let Some(last) = job.stored.last() else {
            return Ok(LogError::Empty {
                ledger: job.origin.clone(),
            });
        };
        let signed = self.open(job, last).await?.0;
        Ok(LogError::RolledBack {
            ledger: job.origin.clone(),
            signed_size: signed.size,
            signed_root: hex::encode(signed.root),
            size: head.size,
            root: hex::encode(self.root(job, head)?),
        })
    }

    fn root(&self, job: &Job<'_>, head: &Head) -> Result<Hash, LogError> {
        head.root().map_err(|source| LogError::Head {
            ledger: job.origin.clone(),
            source,
        })
    }

    async fn sign(&self, job: &Job<'_>, store: &Store, size: u64, head: &Head) -> Result<Issued, LogError> {
        if size == 0 {
            return Err(LogError::Empty {
                ledger: job.origin.clone(),
            });
        }
        if size > head.size {
            return Err(LogError::Short {
                ledger: job.origin.clone(),
                expected: size,
                found: head.size,
            });
        }
        let head_root = self.root(job, head)?;
        let own = |one: &&Stored| one.size == size && one.key_id == job.signer.key_id();
        if let Some(own) = job.stored.iter().find(own) {
            let (checkpoint, note) = self.open(job, own).await?;
            if size == head.size && checkpoint.root != head_root {
                return Err(forked(
                    job,
                    size,
                    "the signed checkpoint",
                    &checkpoint.root,
                    &head_root,
                ));
            }
            let issued = Issued {
                note,
                size,
                root: checkpoint.root,
                fresh: false,
            };
            self.put_latest(job, &issued).await?;
            return Ok(issued);
        }
        let base = match job.stored.iter().rfind(|one| one.size <= size) {
            Some(base) => Some(self.open(job, base).await?.0),
            None => None,
        };
        let at = self
            .grow(job, store, size, head, base.as_ref(), &head_root)
            .await?;
        let root = at.root();
        self.put_tiles(job, at.finish()).await?;
        let checkpoint = Checkpoint {
            origin: job.origin.clone(),
            size,
            root,
        };
        let key = names::checkpoint_key(job.ledger.ledger(), size, job.signer.key_id());
        let note = checkpoint.sign(job.signer);
        let note = note.map_err(|source| self.not_good(&key, source))?;
        let put = self.audit.put_new_locked(&key, NOTE_TYPE, note.clone().into());
        let fresh = match put.await? {
            Put::Done => true,
            Put::Before(before) if before == note.as_bytes() => false,
            Put::Before(before) => {
                let (other, _) = self.read(job, &key, job.signer.key_id(), before)?;
                return Err(forked(job, size, "the signed checkpoint", &other.root, &root));
            }
        };
        info!(origin = job.origin, size, fresh, "checkpoint signed");
        let issued = Issued {
            note,
            size,
            root,
            fresh,
        };
        self.put_latest(job, &issued).await?;
        Ok(issued)
    }

    /// The tree of `size` receipts: grown from the checkpoint before it, held against that and against the head.
    async fn grow(
        &self,
        job: &Job<'_>,
        store: &Store,
        size: u64,
        head: &Head,
        base: Option<&Checkpoint>,
        head_root: &Hash,
    ) -> Result<TileWriter, LogError> {
        let mut writer = match base {
            Some(base) => self.resume(job, base).await?,
            None => TileWriter::new(),
        };
        let partition = job.ledger.partition();
        let mut puts = JoinSet::new();
        let mut at = (writer.size() == size).then(|| writer.clone());
        while writer.size() < head.size {
            let page = store.receipts_from(&partition, writer.size()).await?;
            if page.is_empty() {
                return Err(LogError::Short {
                    ledger: job.origin.clone(),
                    expected: head.size,
                    found: writer.size(),
                });
            }
            let left = usize::try_from(head.size - writer.size()).unwrap_or(usize::MAX);
            for line in page.iter().take(left) {
                for (tile, bytes) in writer.push(leaf_hash(line)) {
                    if puts.len() >= AT_ONCE {
                        next(&mut puts).await?;
                    }
                    puts.spawn(self.put_tile(job, tile, bytes));
                }
                if let Some(base) = base.filter(|base| base.size == writer.size())
                    && base.root != writer.root()
                {
                    let (what, found) = ("the signed checkpoint", writer.root());
                    return Err(forked(job, base.size, what, &base.root, &found));
                }
                if writer.size() == size {
                    at = Some(writer.clone());
                }
            }
        }
        while next(&mut puts).await?.is_some() {}
        if writer.root() != *head_root {
            return Err(forked(
                job,
                head.size,
                "the table's head",
                head_root,
                &writer.root(),
            ));
        }
        Ok(at.unwrap_or(writer))
    }

    /// Goes on from a checkpoint's own tiles. Where they are not there or not its own, from nothing: the receipts make
    /// the same tiles again, and are held against the checkpoint on the way.
    async fn resume(&self, job: &Job<'_>, base: &Checkpoint) -> Result<TileWriter, LogError> {
        let resumed = match self.tiles(job.ledger, &edge_tiles(base.size)).await {
            Ok(tiles) => TileWriter::resume(base.size, &tiles),
            Err(LogError::Tile { source, .. }) => Err(source),
            Err(error) => return Err(error),
        };
        match resumed {
            Ok(writer) if writer.root() == base.root => Ok(writer),
            Ok(writer) => {
                let (expected, found) = (hex::encode(base.root), hex::encode(writer.root()));
                warn!(
                    origin = job.origin,
                    size = base.size,
                    expected,
                    found,
                    "the stored tiles are not the checkpoint's; they are made again"
                );
                Ok(TileWriter::new())
            }
            Err(error) => {
                warn!(origin = job.origin, size = base.size, %error, "the stored tiles are made again");
                Ok(TileWriter::new())
            }
        }
    }

    async fn put_tiles(&self, job: &Job<'_>, tiles: Vec<(Tile, Vec<u8>)>) -> Result<(), LogError> {
        // One a level at most.
        let mut puts = JoinSet::new();
        for (tile, bytes) in tiles {
            puts.spawn(self.put_tile(job, tile, bytes));
        }
        while next(&mut puts).await?.is_some() {}
        Ok(())
    }

    /// Puts a tile in place of what is there: only what a checkpoint stands for has to stay, and of a full tile that was
    /// made of a fork nothing does.
    fn put_tile(
        &self,
        job: &Job<'_>,
        tile: Tile,
        bytes: Vec<u8>,
    ) -> impl Future<Output = Result<(), AuditError>> + Send + use<> {
        let (audit, key) = (self.audit.clone(), format!("{}{}", job.prefix, tile.path()));
        async move { audit.put(&key, TILE_TYPE, bytes).await }
    }

    /// Makes `checkpoint` the latest one, unless a later one was signed.
    async fn put_latest(&self, job: &Job<'_>, issued: &Issued) -> Result<(), LogError> {
        if job.stored.last().is_some_and(|last| last.size > issued.size) {
            return Ok(());
        }
        let key = names::latest_checkpoint_key(job.ledger.ledger());
        if !issued.fresh
            && job.latest_there
            && self.audit.get(&key).await?.as_deref() == Some(issued.note.as_bytes())
        {
            return Ok(());
        }
        self.audit
            .put(&key, NOTE_TYPE, issued.note.clone().into())
            .await?;
        Ok(())
    }

    /// The stored checkpoints by size and key id, and whether `checkpoint` is there.
    async fn stored(&self, ledger: &LedgerId) -> Result<(Vec<Stored>, bool), LogError> {
        let checkpoints = names::checkpoints_prefix(ledger.ledger());
        let latest = names::latest_checkpoint_key(ledger.ledger());
        let kept = self.audit.list_kept(&latest).await?;
        let there = kept.iter().any(|one| one.key == latest);
        let stored = kept
            .into_iter()
            .filter(|one| one.key.starts_with(&checkpoints))
            .filter_map(|kept| {
                let (size, key_id) = names::checkpoint_of_key(&kept.key)?;
                let key_id = key_id.to_owned();
                Some(Stored { size, key_id, kept })
            })
            .collect();
        Ok((stored, there))
    }

    /// The note that stands in the log for so many receipts, by this key if there is one, else by any.
    pub(crate) async fn note_at(
        &self,
        ledger: &LedgerId,
        size: u64,
        key_id: &str,
    ) -> Result<Option<String>, LogError> {
        let (stored, _) = self.stored(ledger).await?;
        let fitting = |one: &&Stored| one.size == size;
        let own = stored.iter().filter(fitting).find(|one| one.key_id == key_id);
        match own.or_else(|| stored.iter().find(fitting)) {
            Some(one) => self.text(&one.kept).await.map(Some),
            None => Ok(None),
        }
    }

    async fn open(&self, job: &Job<'_>, stored: &Stored) -> Result<(Checkpoint, String), LogError> {
        let bytes = self.audit.get_kept(&stored.kept).await?;
        self.read(job, &stored.kept.key, &stored.key_id, bytes)
    }

    /// Reads a stored note. A key that was revoked since may have signed it: the ledger is held against it anyway.
    fn read(
        &self,
        job: &Job<'_>,
        key: &str,
        key_id: &str,
        bytes: Vec<u8>,
    ) -> Result<(Checkpoint, String), LogError> {
        let public_key = job.ring.get(key_id).ok_or_else(|| LogError::UnknownKey {
            bucket: self.audit.bucket.clone(),
            key: key.to_owned(),
            key_id: key_id.to_owned(),
        })?;
        let checkpoint = Checkpoint::verify(&bytes, &job.origin, public_key);
        let checkpoint = checkpoint.map_err(|source| self.not_good(key, source))?;
        if names::checkpoint_of_key(key).is_none_or(|(size, _)| size != checkpoint.size) {
            let found = checkpoint.size.to_string();
            return Err(self.not_good(key, CheckpointError::Size { found }));
        }
        Ok((checkpoint, self.utf8(key, bytes)?))
    }

    fn not_good(&self, key: &str, source: CheckpointError) -> LogError {
        LogError::Checkpoint {
            bucket: self.audit.bucket.clone(),
            key: key.to_owned(),
            source,
        }
    }

    fn utf8(&self, key: &str, bytes: Vec<u8>) -> Result<String, LogError> {
        String::from_utf8(bytes).map_err(|_| LogError::Text {
            bucket: self.audit.bucket.clone(),
            key: key.to_owned(),
        })
    }

    async fn text(&self, kept: &Kept) -> Result<String, LogError> {
        self.utf8(&kept.key, self.audit.get_kept(kept).await?)
    }

    /// Objects as text, in the order given.
    pub(crate) async fn texts(&self, kept: Vec<Kept>) -> Result<Vec<String>, LogError> {
        let mut found = vec![String::new(); kept.len()];
        let mut waiting = kept.into_iter().enumerate();
        let mut running = JoinSet::new();
        loop {
            while running.len() < AT_ONCE
                && let Some((at, kept)) = waiting.next()
            {
                let log = self.clone();
                running.spawn(async move { log.text(&kept).await.map(|text| (at, text)) });
            }
            let Some((at, text)) = next(&mut running).await? else {
                return Ok(found);
            };
            if let Some(place) = found.get_mut(at) {
                *place = text;
            }
        }
    }
}

fn forked(job: &Job<'_>, size: u64, what: &'static str, expected: &Hash, found: &Hash) -> LogError {
    LogError::Forked {
        ledger: job.origin.clone(),
        size,
        what,
        expected: hex::encode(expected),
        found: hex::encode(found),
    }
}

/// What the next task to end gave; `None` when none is left. A panic in one goes on in the caller.
async fn next<T: 'static, E: 'static>(running: &mut JoinSet<Result<T, E>>) -> Result<Option<T>, E> {
    match running.join_next().await {
        Some(Ok(ended)) => ended.map(Some),
        Some(Err(failed)) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
        // Nobody cancels a task but the set itself, when it is dropped.
        Some(Err(_)) | None => Ok(None),
    }
}
