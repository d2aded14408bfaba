//! `ggen archive`: the archive of a tenant that has left, from the stack to where an auditor checks it.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use aws::archive::{Archives, ClosedArchive, DownloadError};
use aws::clients;
use aws::config::ConfigError;
use aws::log::Log;
use clap::{Args, Subcommand};
use domain::account::AccountId;
use serde::Serialize;

use crate::cloud::{self, NEEDS_A_STACK};
use crate::out::Out;
use crate::report::Verdict;

fn download_help() -> String {
    format!(
        "\
Examples:
  ggen archive download --account-id customer-123
  ggen archive download --account-id customer-123 --date 2026-01-31 --out archives
  ggen verify-archive 2026-01-31.tar.gz --public-key auditor.pub --closing 2026-01-31.closing.json \\
      --closing-checkpoint 2026-01-31.closing.checkpoint

Writes the archive as it is stored, with the receipt that closed the ledger and the final checkpoint beside it, and holds the
file's SHA-256 against that receipt. Whether the receipts in it hold is for `ggen verify-archive` to say. Nothing is
overwritten. Exit code 1 if the account has no archive: a tenant is archived when it leaves.
{NEEDS_A_STACK}"
    )
}

/// What to do with archives.
#[derive(Subcommand)]
pub enum ArchiveCommand {
    /// Download the archive of a tenant that has left, with what closes it
    #[command(after_help = download_help())]
    Download(DownloadArgs),
}

/// Arguments of `ggen archive download`.
#[derive(Args)]
pub struct DownloadArgs {
    /// The account that left
    #[arg(long, value_name = "ID", value_parser = cloud::account_id)]
    account_id: AccountId,
    /// The day of the archive, if the account left more than once [default: the last one]
    #[arg(long, value_name = "YYYY-MM-DD")]
    date: Option<String>,
    /// The folder to write to
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    out: PathBuf,
}

/// Why an archive could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveCommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read the archive")]
    Download(#[from] DownloadError),
    #[error("{} is there already: move it away, or choose another folder with --out", path.display())]
    Exists { path: PathBuf },
    #[error("cannot write {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

#[derive(Serialize)]
struct Downloaded {
    account_id: AccountId,
    archive: PathBuf,
    closing: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    closing_checkpoint: Option<PathBuf>,
    size_bytes: u64,
    sha256: String,
}

impl fmt::Display for Downloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.archive.display())?;
        writeln!(f, "{}", self.closing.display())?;
        if let Some(path) = &self.closing_checkpoint {
            writeln!(f, "{}", path.display())?;
        }
        write!(
            f,
            "{} bytes, SHA-256 {}, as the closing receipt says",
            self.size_bytes, self.sha256
        )
    }
}

/// An account without the archive that was asked for, or an archive that is not the one the ledger was closed with.
#[derive(Serialize)]
struct Refused {
    account_id: AccountId,
    refused: bool,
    reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "REFUSED: account {}: {}", self.account_id, self.reason)
    }
}

/// Downloads.
///
/// # Errors
/// When the stack does not answer or a file cannot be written; an account without an archive is a verdict.
pub fn run(command: &ArchiveCommand, out: &mut Out) -> Result<Verdict, ArchiveCommandError> {
    let ArchiveCommand::Download(args) = command;
    cloud::block_on(download(args, out))?
}

async fn download(args: &DownloadArgs, out: &mut Out) -> Result<Verdict, ArchiveCommandError> {
    let archives = Archives::new(Log::from_env(clients::load().await.s3())?);
    let refuse = |reason: String| Refused {
        account_id: args.account_id.clone(),
        refused: true,
        reason,
    };
    let dates = archives.closed_on(&args.account_id).await?;
    let date = match (&args.date, dates.last()) {
        (Some(date), Some(_)) if dates.contains(date) => date,
        (None, Some(date)) => date,
        (Some(date), Some(_)) => {
            let reason = format!("no archive of {date}; there is one of {}", dates.join(", "));
            out.show(&refuse(reason))?;
            return Ok(Verdict::NotGood);
        }
        (_, None) => {
            out.show(&refuse(
                "no archive: a tenant is archived when it leaves".to_owned(),
            ))?;
            return Ok(Verdict::NotGood);
        }
    };
    let closed = archives.closed(&args.account_id, date).await?;
    let path = |end: &str| args.out.join(format!("{date}{end}"));
    let (archive, closing, checkpoint) = (
        path(".tar.gz"),
        path(".closing.json"),
        path(".closing.checkpoint"),
    );
    // Before minutes of downloading.
    if let Some(path) = [&archive, &closing, &checkpoint]
        .into_iter()
        .find(|path| path.exists())
    {
        return Err(ArchiveCommandError::Exists { path: path.clone() });
    }
    fs::create_dir_all(&args.out).map_err(failed(&args.out))?;
    let part = path(".tar.gz.part");
    let stored = stored(&archives, &closed, &part).await;
    let sha256 = match stored {
        Ok(sha256) if sha256 == closed.sha256 => sha256,
        other => {
            fs::remove_file(&part).map_err(failed(&part))?;
            let found = other?;
            let reason = format!(
                "the stored archive has the SHA-256 {found}, and its closing receipt says {}: it is not the file that the \
                 ledger was closed with",
                closed.sha256
            );
            out.show(&refuse(reason))?;
            return Ok(Verdict::NotGood);
        }
    };
    fs::rename(&part, &archive).map_err(failed(&archive))?;
    create(&closing, closed.receipt.as_bytes())?;
    if let Some(note) = &closed.checkpoint {
        create(&checkpoint, note)?;
    }
    out.show(&Downloaded {
        account_id: args.account_id.clone(),
        archive,
        closing,
        closing_checkpoint: closed.checkpoint.is_some().then_some(checkpoint),
        size_bytes: closed.size_bytes,
        sha256,
    })?;
    Ok(Verdict::Good)
}

/// Writes the archive as it is stored, and gives its SHA-256.
async fn stored(
    archives: &Archives,
    closed: &ClosedArchive,
    path: &Path,
) -> Result<String, ArchiveCommandError> {
    let mut file = BufWriter::new(File::create(path).map_err(failed(path))?);
    let mut download = archives.open(closed).await?;
    while let Some(chunk) = download.next().await? {
        file.write_all(chunk.as_ref()).map_err(failed(path))?;
    }
    file.flush().map_err(failed(path))?;
    Ok(download.sha256())
}

fn create(path: &Path, bytes: &[u8]) -> Result<(), ArchiveCommandError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ArchiveCommandError + '_ {
    |source| ArchiveCommandError::File {
        path: path.to_owned(),
        source,
    }
}
