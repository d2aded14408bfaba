//! `ggen verify-archive`: a tenant's whole ledger, offline.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::path::PathBuf;
use std::thread;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use receipts::archive::{self, Limits};
use receipts::checkpoint::NOTE_BYTES;
use receipts::key::KeyRing;
use serde::Serialize;

use crate::evidence::{self, PublicKeyError, Rejected, TrustArgs};
use crate::input::{self, InputError};
use crate::out::Out;
use crate::report::{self, Verdict};

const EXAMPLES: &str = "\
Examples:
  ggen verify-archive 2026-01-31.tar.gz --public-key auditor.pub
  ggen verify-archive 2026-01-31.tar.gz --public-key auditor.pub --closing 2026-01-31.closing.json \\
      --closing-checkpoint 2026-01-31.closing.checkpoint

Checks every byte of the archive in one pass, offline and without unpacking it: the form, signature, sequence, chain,
account and time order of each receipt, the signed Merkle root, earlier checkpoints, the policies that receipts name, the
manifest and the checksums. --closing also checks the receipt that closed the ledger: that this is the file it names, whole
and unaltered. --closing-checkpoint also checks that the seller signed for that receipt in its place. An old archive with
its own old sidecars is valid too: compare its size with a checkpoint that the seller signs today (`ggen checkpoint`).
Rotated keys are followed along the archive's key trail; --key-trail adds what has happened to keys since, which exposes an
archive made with a stolen and revoked key.
Get the public key from the seller through another channel than the archive. Uses all cores.
Exit code 0 VERIFIED, 1 NOT VERIFIED (with the first problem), 2 could not tell.";

/// Arguments of `ggen verify-archive`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArchiveArgs {
    /// The archive, .tar.gz
    #[arg(value_name = "FILE")]
    archive: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// Receipts of key rotations and revocations, one per line, newer than the archive's own (`ggen keys trail`)
    #[arg(long, value_name = "FILE")]
    key_trail: Option<PathBuf>,
    /// The decommission_complete receipt stored next to the last archive of a tenant
    #[arg(long, value_name = "FILE")]
    closing: Option<PathBuf>,
    /// The checkpoint stored next to it
    #[arg(long, value_name = "FILE", requires = "closing")]
    closing_checkpoint: Option<PathBuf>,
}

/// Why an archive could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyArchiveError {
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    #[error(transparent)]
    Input(#[from] InputError),
    /// The archive cannot be read: a matter of the disk, not of the archive.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct VerifiedArchive {
    verified: bool,
    archive: PathBuf,
    size_bytes: u64,
    sha256: String,
    account_id: String,
    receipts: u64,
    last_hash: String,
    last_timestamp: Timestamp,
    operations: BTreeMap<&'static str, u64>,
    origin: String,
    root: String,
    /// Earlier checkpoints, each borne out by the receipts.
    checkpoints: u64,
    /// The key that signed the checkpoint.
    key_id: String,
    /// The keys that signed receipts.
    key_ids: Vec<String>,
    policies: u64,
    created_at: Timestamp,
    /// The closing receipt's id, where it was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_by: Option<String>,
    /// Whether the final checkpoint was checked.
    final_checkpoint: bool,
}

impl fmt::Display for VerifiedArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VERIFIED: {}", self.archive.display())?;
        writeln!(f, "  account     {}", self.account_id)?;
        writeln!(f, "  receipts    {} in order, chained and signed", self.receipts)?;
        writeln!(f, "  last        {} at {}", self.last_hash, self.last_timestamp)?;
        writeln!(
            f,
            "  checkpoint  {}: root {}, signed by {}",
            self.origin, self.root, self.key_id
        )?;
        writeln!(f, "  earlier     {} checkpoints match", self.checkpoints)?;
        writeln!(f, "  signed by   {}", self.key_ids.join(", "))?;
        writeln!(f, "  policies    {}", self.policies)?;
        writeln!(f, "  made at     {}", self.created_at)?;
        writeln!(f, "  SHA-256     {} ({} bytes)", self.sha256, self.size_bytes)?;
        for (operation, count) in &self.operations {
            writeln!(f, "  {count:>9} × {operation}")?;
        }
        match &self.closed_by {
            Some(receipt_id) => {
                let end = if self.final_checkpoint {
                    ", and signed for in its place"
                } else {
                    ""
                };
                write!(f, "  closed by   receipt {receipt_id}: nothing was cut off{end}")
            }
            None => write!(
                f,
                "  closed by   not checked: --closing FILE shows whether a later archive exists"
            ),
        }
    }
}

/// Checks an archive, and its closing receipt if given.
///
/// # Errors
/// When a file cannot be read; an archive that does not hold is a verdict.
pub fn run(args: &VerifyArchiveArgs, out: &mut Out) -> Result<Verdict, VerifyArchiveError> {
    let trusted = args.trust.keys()?;
    let keys = match evidence::follow(trusted.clone(), args.key_trail.as_deref())? {
        Ok(keys) => keys,
        Err(error) => return reject(out, args, &error),
    };
    let limits = Limits {
        threads: thread::available_parallelism().map_or(1, NonZero::get),
        ..Limits::default()
    };
    let closing = args
        .closing
        .as_ref()
        .map(|path| input::text(path, limits.line_bytes))
        .transpose()?;
    let end = args
        .closing_checkpoint
        .as_ref()
        .map(|path| input::bytes(path, NOTE_BYTES as u64))
        .transpose()?;

    let verified = match read(args, &keys, limits)? {
        Ok(verified) => verified,
        Err(error) => return reject(out, args, &error),
    };
    let closed = closing
        .map(|line| archive::verify_closing(&line, end.as_deref(), &verified))
        .transpose();
    let closed = match closed {
        Ok(closed) => closed,
        Err(error) => return reject(out, args, &error),
    };
    if args.key_trail.is_none() && trusted.get(&verified.key_id).is_none() {
        report::note(&format!(
            "only the archive's own key trail leads to key {}, which signed it, and whoever stole that key could omit its \
             revocation: check it with --key-trail and the seller's current trail",
            verified.key_id
        ));
    }
    out.show(&VerifiedArchive {
        verified: true,
        archive: args.archive.clone(),
        size_bytes: verified.size_bytes,
        sha256: verified.sha256,
        account_id: verified.account_id,
        receipts: verified.receipts,
        last_hash: verified.last_hash,
        last_timestamp: verified.last_timestamp,
        operations: verified.operations,
        origin: verified.checkpoint.origin,
        root: hex::encode(verified.checkpoint.root),
        checkpoints: verified.checkpoints,
        key_id: verified.key_id,
        key_ids: verified.key_ids,
        policies: verified.policies,
        created_at: verified.created_at,
        final_checkpoint: closed.as_ref().is_some_and(|closed| closed.checkpoint.is_some()),
        closed_by: closed.map(|closed| closed.receipt.receipt_id.to_string()),
    })?;
    Ok(Verdict::Good)
}

fn reject(
    out: &mut Out,
    args: &VerifyArchiveArgs,
    error: &(dyn std::error::Error + 'static),
) -> Result<Verdict, VerifyArchiveError> {
    Ok(Rejected::new(args.archive.display().to_string(), error).show(out)?)
}

/// The outer error is the disk's, the inner one the archive's.
fn read(
    args: &VerifyArchiveArgs,
    keys: &KeyRing,
    limits: Limits,
) -> Result<Result<archive::Verified, archive::ArchiveError>, VerifyArchiveError> {
    let failed = |source| VerifyArchiveError::Read {
        path: args.archive.clone(),
        source,
    };
    let file = File::open(&args.archive).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let bar = progress(size);
    let disk = Cell::new(None);
    let verified = archive::verify(
        bar.wrap_read(Watched {
            inner: file,
            failure: &disk,
        }),
        keys,
        limits,
    );
    bar.finish_and_clear();
    match disk.take() {
        Some(error) => Err(failed(error)),
        None => Ok(verified),
    }
}

/// A bar on stderr; where that is no terminal, nothing is drawn.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("verifying {bar:40} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Keeps the system's own read error, which must not pass for a fault of the archive.
struct Watched<'a, R> {
    inner: R,
    failure: &'a Cell<Option<io::Error>>,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure
                    .set(Some(io::Error::new(error.kind(), error.to_string())));
            }
        })
    }
}
