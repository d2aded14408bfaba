//! `ggen export-receipts`: a ledger as it stands, in order.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::store::{Store, StoreError};
use clap::Args;
use indicatif::ProgressBar;
use receipts::key::KeyRing;
use receipts::ledger::Head;
use receipts::verify::{Chain, ChainError};
use serde::Deserialize;

use crate::cloud::{self, LedgerArgs, NEEDS_A_STACK};
use crate::evidence::{PublicKeyError, Rejected, trusted_keys};
use crate::out::{Format, Out};
use crate::report::{self, Verdict};

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen export-receipts --account-id customer-123
  ggen export-receipts --account-id customer-123 --format json --out receipts.json --public-key auditor.pub
  ggen export-receipts --system | tail -1 | ggen verify-receipt --receipt - --public-key auditor.pub

jsonl writes each receipt as the ledger holds it, byte for byte, one a line; json writes them as one array. With
--public-key the signatures, the chain and the ledger's head are checked on the way: everything is exported, the
verdict stands on stderr, and the exit code is 1 if it is NOT VERIFIED.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen export-receipts`.
#[derive(Args)]
#[command(after_help = after_help())]
pub struct ExportReceiptsArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Write here instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A public key you trust, SPKI PEM; repeat for several. Checks the receipts on the way
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
}

/// Why receipts could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportReceiptsError {
    /// `--format human`.
    #[error("receipts are exported as json or jsonl, not human")]
    Format,
    /// A variable is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key cannot be used.
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    /// The ledger cannot be read.
    #[error("cannot read the ledger")]
    Store(#[from] StoreError),
    /// There is nothing to export.
    #[error("account {account} has no receipts")]
    NoLedger {
        /// The account.
        account: String,
    },
    /// A line names no place, so that the next page cannot be asked for.
    #[error("a receipt behind place {after} of account {account} has no seq")]
    Line {
        /// The account.
        account: String,
        /// Receipts read before.
        after: u64,
        /// What the reader said.
        source: serde_json::Error,
    },
    /// The output cannot be written.
    #[error("cannot write {}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No runtime, or stdout cannot be written.
    #[error("cannot go on")]
    System(#[from] io::Error),
}

/// A ledger that does not hold.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    /// A receipt is wrong, or in the wrong place.
    #[error("the ledger holds a bad receipt")]
    Chain(#[from] ChainError),
    /// Receipts are missing at the end, or the last one is another.
    #[error(
        "the ledger has {found_size} receipts, the last with hash {found}; its head says {size} and {expected}"
    )]
    Head {
        /// Receipts the head counts.
        size: u64,
        /// The head's hash.
        expected: String,
        /// Receipts found.
        found_size: u64,
        /// The last receipt's hash.
        found: String,
    },
    /// The head's Merkle tree is not the ledger's.
    #[error("the head's Merkle range {expected:?} is not the ledger's {found:?}")]
    Range {
        /// The head's hashes.
        expected: Vec<String>,
        /// The ledger's.
        found: Vec<String>,
    },
}

/// Follows the ledger up to the first thing that is wrong.
struct Audit {
    keys: KeyRing,
    chain: Chain,
    failure: Option<AuditError>,
}

impl Audit {
    fn follow(&mut self, line: &str) {
        if self.failure.is_none() {
            self.failure = self.chain.push(line, &self.keys).err().map(AuditError::Chain);
        }
    }

    fn end(self, head: &Head) -> Result<(), AuditError> {
        let end = self.chain.head();
        match self.failure {
            Some(failure) => Err(failure),
            None if end.range != head.range && end.last_hash == head.last_hash => Err(AuditError::Range {
                expected: head.range.clone(),
                found: end.range.clone(),
            }),
            None if (end.size, &end.last_hash) == (head.size, &head.last_hash) => Ok(()),
            None => Err(AuditError::Head {
                size: head.size,
                expected: head.last_hash.clone(),
                found_size: end.size,
                found: end.last_hash.clone(),
            }),
        }
    }
}

/// Where the receipts go, as lines or as one array.
struct Sink<'a> {
    out: &'a mut Out,
    file: Option<(&'a Path, BufWriter<File>)>,
    array: bool,
    written: u64,
}

impl Sink<'_> {
    fn write(&mut self, text: &str) -> Result<(), ExportReceiptsError> {
        match &mut self.file {
            None => Ok(self.out.write_all(text.as_bytes())?),
            Some((path, file)) => {
                file.write_all(text.as_bytes())
                    .map_err(|source| ExportReceiptsError::Output {
                        path: path.to_path_buf(),
                        source,
                    })
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<(), ExportReceiptsError> {
        match (self.array, self.written) {
            (false, _) => {}
            (true, 0) => self.write("[\n")?,
            (true, _) => self.write(",\n")?,
        }
        self.write(line)?;
        if !self.array {
            self.write("\n")?;
        }
        self.written += 1;
        Ok(())
    }

    fn end(mut self) -> Result<u64, ExportReceiptsError> {
        if self.array {
            self.write(if self.written == 0 { "[]\n" } else { "\n]\n" })?;
        }
        if let Some((path, mut file)) = self.file {
            file.flush().map_err(|source| ExportReceiptsError::Output {
                path: path.to_owned(),
                source,
            })?;
        }
        Ok(self.written)
    }
}

/// Exports a ledger.
///
/// # Errors
/// When the stack does not answer or the output cannot be written; a ledger that does not hold is a verdict.
pub fn run(args: &ExportReceiptsArgs, out: &mut Out) -> Result<Verdict, ExportReceiptsError> {
    let array = match out.format() {
        Some(Format::Human) => return Err(ExportReceiptsError::Format),
        Some(Format::Json) => true,
        Some(Format::Jsonl) | None => false,
    };
    let keys = (!args.public_key.is_empty())
        .then(|| trusted_keys(&args.public_key))
        .transpose()?;
    cloud::block_on(export(args, array, keys, out))?
}

async fn export(
    args: &ExportReceiptsArgs,
    array: bool,
    keys: Option<KeyRing>,
    out: &mut Out,
) -> Result<Verdict, ExportReceiptsError> {
    let (account, partition) = (args.ledger.account(), args.ledger.partition());
    let store = Store::new(&clients::load().await, Stack::from_env()?);
    // Receipts appended from here on are another export's: the head read now is what the end is held against.
    let head = cloud::load(&store, &partition).await?.head;
    if head.size == 0 {
        return Err(ExportReceiptsError::NoLedger {
            account: account.to_owned(),
        });
    }
    let file = args.out.as_deref().map(|path| match File::create(path) {
        Ok(file) => Ok((path, BufWriter::new(file))),
        Err(source) => Err(ExportReceiptsError::Output {
            path: path.to_owned(),
            source,
        }),
    });
    let mut sink = Sink {
        out,
        file: file.transpose()?,
        array,
        written: 0,
    };
    let mut audit = keys.map(|keys| Audit {
        keys,
        chain: Chain::of(account),
        failure: None,
    });
    let bar = args
        .out
        .as_ref()
        .map_or_else(ProgressBar::hidden, |_| ProgressBar::new(head.size));

    let mut next = 0;
    while next < head.size && (audit.is_some() || !sink.out.closed()) {
        let page = store.receipts_from(&partition, next).await?;
        if page.is_empty() {
            break;
        }
        for line in &page {
            let seq = seq(line).map_err(|source| ExportReceiptsError::Line {
                account: account.to_owned(),
                after: sink.written,
                source,
            })?;
            next = seq.saturating_add(1);
            if seq >= head.size {
                break;
            }
            if let Some(audit) = &mut audit {
                audit.follow(line);
            }
            sink.line(line)?;
        }
        bar.set_position(next);
    }
    bar.finish_and_clear();
    let reader_left = sink.out.closed();
    let written = sink.end()?;
    conclude(account, written, reader_left, &head, audit)
}

/// Tells the verdict on stderr: stdout may be the receipts'.
fn conclude(
    account: &str,
    written: u64,
    reader_left: bool,
    head: &Head,
    audit: Option<Audit>,
) -> Result<Verdict, ExportReceiptsError> {
    match audit.map(|audit| audit.end(head)) {
        None if reader_left || written == head.size => Ok(Verdict::Good),
        None => {
            report::note(&format!(
                "account {account} has {written} receipts, its head says {}",
                head.size
            ));
            Ok(Verdict::NotGood)
        }
        Some(Ok(())) => {
            let hash = &head.last_hash;
            report::note(&format!(
                "VERIFIED: {written} receipts of account {account}, up to the head {hash}"
            ));
            Ok(Verdict::Good)
        }
        Some(Err(error)) => {
            report::note(&Rejected::new(format!("ledger of account {account}"), &error).to_string());
            Ok(Verdict::NotGood)
        }
    }
}

fn seq(line: &str) -> Result<u64, serde_json::Error> {
    #[derive(Deserialize)]
    struct Place {
        seq: u64,
    }
    serde_json::from_str(line).map(|Place { seq }| seq)
}
