//! `ggen export-receipts`: a ledger as it stands, or a stretch of it, in order.

mod csv;
mod range;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use aws::clients;
use aws::config::{ConfigError, Stack};
use aws::store::{Store, StoreError};
use clap::Args;
use indicatif::ProgressBar;
use jiff::Timestamp;
use receipts::key::KeyRing;
use receipts::ledger::Head;
use serde::Deserialize;

use crate::cloud::{self, LedgerArgs, NEEDS_A_STACK};
use crate::evidence::{PublicKeyError, Rejected, trusted_keys};
use crate::ledger::{LedgerCheck, LedgerError, Live, LiveError};
use crate::out::{Format, Out};
use crate::report::{self, Verdict};
use domain::names::Partition;

use self::csv::RowError;
use self::range::{Bisect, EmptyRangeError, Range, time};

fn after_help() -> String {
    format!(
        "\
Examples:
  ggen export-receipts --account-id customer-123
  ggen export-receipts --account-id customer-123 --format json --out receipts.json --public-key auditor.pub
  ggen export-receipts --account-id customer-123 --format csv --from 2026-11-01 --to 2026-12-01 --out november.csv
  ggen export-receipts --system | tail -1 | ggen verify-receipt --receipt - --public-key auditor.pub

jsonl writes each receipt byte for byte as the ledger holds it, one per line; json writes them as one array.
csv is for people (RFC 4180, with a header): the fields that every receipt has, then the operation's own fields as
canonical JSON in the column payload. A cell that begins with = + - @, a tab or a line end gets a leading apostrophe, so that no
spreadsheet runs it as a formula. Signatures may begin with +, so verify the jsonl instead.
--from and --to select by timestamp, the time of appending, which is the order of the ledger, so there are no gaps. A date
means its start in UTC.
With --public-key, the whole ledger is read and its signatures, chain and head are checked, even if only a range is
exported. The export is complete either way; the verdict goes to stderr, and the exit code is 1 if it is NOT VERIFIED.
Without --public-key, only the range is read.
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
    /// Only receipts appended at this time or later: RFC 3339, or a date
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only receipts appended before this time: RFC 3339, or a date
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<Timestamp>,
    /// A public key you trust, SPKI PEM; repeat for several. Checks the receipts while exporting
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
}

/// Why receipts could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportReceiptsError {
    /// `--format human`.
    #[error("receipts are exported as json, jsonl or csv, not human")]
    Format,
    #[error(transparent)]
    Range(#[from] EmptyRangeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    #[error("cannot read the ledger")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error("account {account} has no receipts")]
    NoLedger { account: String },
    /// A line names no place, so that the next page cannot be asked for, or no time, so that no range can be chosen.
    #[error("the receipt at or after place {place} of account {account} has no {field}")]
    Line {
        account: String,
        /// Where its page was read from.
        place: u64,
        field: &'static str,
        source: serde_json::Error,
    },
    #[error("receipt {seq} of account {account} cannot be written as a row: export it as jsonl")]
    Row {
        account: String,
        seq: u64,
        source: RowError,
    },
    #[error("cannot write {}", path.display())]
    Output { path: PathBuf, source: io::Error },
    #[error("cannot start the runtime, or write to stdout")]
    System(#[from] io::Error),
}

/// Follows the ledger up to the first thing that is wrong.
struct Audit {
    following: LedgerCheck,
    failure: Option<LedgerError>,
}

impl Audit {
    fn follow(&mut self, line: &str) {
        if self.failure.is_none() {
            self.failure = self.following.push(line).err();
        }
    }

    fn end(self, head: &Head) -> Result<(), LedgerError> {
        self.failure.map_or_else(|| self.following.end(head), Err)
    }
}

/// What stands before, between and after the receipts, and how each is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Lines,
    Array,
    Table,
}

impl Form {
    /// What comes before the receipt after `written` others.
    fn before(self, written: u64) -> &'static str {
        match (self, written) {
            (Self::Array, 0) => "[\n",
            (Self::Array, _) => ",\n",
            (Self::Table, 0) => csv::HEADER,
            (Self::Table | Self::Lines, _) => "",
        }
    }

    fn receipt(self, line: &str) -> Result<Cow<'_, str>, RowError> {
        Ok(match self {
            Self::Lines => Cow::Owned(format!("{line}\n")),
            Self::Array => Cow::Borrowed(line),
            Self::Table => Cow::Owned(csv::receipt(line)?),
        })
    }

    /// What comes behind all `written` receipts.
    fn end(self, written: u64) -> &'static str {
        match (self, written) {
            (Self::Array, 0) => "[]\n",
            (Self::Array, _) => "\n]\n",
            (Self::Table, 0) => csv::HEADER,
            (Self::Table | Self::Lines, _) => "",
        }
    }
}

/// Where the receipts go.
struct Sink<'a> {
    out: &'a mut Out,
    file: Option<(&'a Path, BufWriter<File>)>,
    form: Form,
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

    fn receipt(&mut self, account: &str, seq: u64, line: &str) -> Result<(), ExportReceiptsError> {
        let text = self
            .form
            .receipt(line)
            .map_err(|source| ExportReceiptsError::Row {
                account: account.to_owned(),
                seq,
                source,
            })?;
        self.write(self.form.before(self.written))?;
        self.write(&text)?;
        self.written += 1;
        Ok(())
    }

    fn end(mut self) -> Result<u64, ExportReceiptsError> {
        self.write(self.form.end(self.written))?;
        if let Some((path, mut file)) = self.file {
            file.flush().map_err(|source| ExportReceiptsError::Output {
                path: path.to_owned(),
                source,
            })?;
        }
        Ok(self.written)
    }
}

/// Exports a ledger, or the receipts of a range.
///
/// # Errors
/// When it cannot be read or written; a ledger that does not hold is a verdict.
pub fn run(args: &ExportReceiptsArgs, out: &mut Out) -> Result<Verdict, ExportReceiptsError> {
    let form = match out.format() {
        Some(Format::Human) => return Err(ExportReceiptsError::Format),
        Some(Format::Json) => Form::Array,
        Some(Format::Csv) => Form::Table,
        Some(Format::Jsonl) | None => Form::Lines,
    };
    let range = Range::new(args.from, args.to)?;
    let keys = (!args.public_key.is_empty())
        .then(|| trusted_keys(&args.public_key))
        .transpose()?;
    cloud::block_on(export(args, form, range, keys, out))?
}

async fn export(
    args: &ExportReceiptsArgs,
    form: Form,
    range: Range,
    keys: Option<KeyRing>,
    out: &mut Out,
) -> Result<Verdict, ExportReceiptsError> {
    let (account, partition) = (args.ledger.account(), args.ledger.partition());
    let sdk = clients::load().await;
    let store = Store::new(&sdk, Stack::from_env()?);
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
        form,
        written: 0,
    };
    let mut audit = match keys {
        None => None,
        Some(keys) => {
            let live = Live::of(&sdk)?;
            Some(Audit {
                following: LedgerCheck::new(account, live.follow(keys).await?),
                failure: None,
            })
        }
    };
    let bar = args
        .out
        .as_ref()
        .map_or_else(ProgressBar::hidden, |_| ProgressBar::new(head.size));

    // A chain is checked from its beginning; what nobody checks need not be read.
    let mut next = match range.from() {
        Some(from) if audit.is_none() => first_at(&store, account, &partition, from, head.size).await?,
        _ => 0,
    };
    let mut reading = Reading {
        start: next,
        read: 0,
        end: head.size,
    };
    'pages: while next < head.size && (audit.is_some() || !sink.out.closed()) {
        let page = store.receipts_from(&partition, next).await?;
        if page.is_empty() {
            break;
        }
        for line in &page {
            let seq = seq(account, next, line)?;
            if seq >= head.size {
                break 'pages;
            }
            next = seq.saturating_add(1);
            if let Some(audit) = &mut audit {
                audit.follow(line);
            }
            let wanted = match choose(range, line) {
                Ok(choice) => choice,
                // The audit has just refused the line; its verdict says why.
                Err(_) if audit.is_some() => Choice::Skip,
                Err(source) => return Err(no_field(account, seq, "timestamp", source)),
            };
            match wanted {
                Choice::Write => sink.receipt(account, seq, line)?,
                Choice::End if audit.is_none() => {
                    reading.end = seq;
                    break 'pages;
                }
                Choice::Skip | Choice::End => {}
            }
            reading.read += 1;
        }
        bar.set_position(next);
    }
    bar.finish_and_clear();
    let reader_left = sink.out.closed();
    let written = sink.end()?;
    if written == 0 && !reader_left {
        report::note(&format!("account {account} has no receipts {range}"));
    }
    Ok(match audit {
        Some(audit) => audited(account, written, range, &head, audit),
        None => Verdict::when(reader_left || reading.is_whole(account)),
    })
}

/// What is to be done with a receipt.
enum Choice {
    Skip,
    Write,
    End,
}

fn choose(range: Range, line: &str) -> Result<Choice, serde_json::Error> {
    if range.is_everything() {
        return Ok(Choice::Write);
    }
    let time = timestamp(line)?;
    Ok(if range.holds(time) {
        Choice::Write
    } else if range.is_over(time) {
        Choice::End
    } else {
        Choice::Skip
    })
}

/// What was read of a ledger without checking it.
struct Reading {
    /// The first place.
    start: u64,
    /// Receipts read.
    read: u64,
    /// Behind the last place.
    end: u64,
}

impl Reading {
    /// Whether as many receipts were read as there are places, told if not.
    fn is_whole(&self, account: &str) -> bool {
        let places = self.end.saturating_sub(self.start);
        if self.read != places {
            report::note(&format!(
                "the head of account {account} counts {places} receipts from place {1} on, but {0} were found",
                self.read, self.start
            ));
        }
        self.read == places
    }
}

/// The place of the first receipt at or after an instant, in a few reads.
async fn first_at(
    store: &Store,
    account: &str,
    partition: &Partition,
    from: Timestamp,
    size: u64,
) -> Result<u64, ExportReceiptsError> {
    let mut search = Bisect::new(from, size);
    while let Some(probe) = search.probe() {
        let page = store.receipts_from(partition, probe).await?;
        let times: Result<Vec<_>, _> = page.iter().map(|line| timestamp(line)).collect();
        let times = times.map_err(|source| no_field(account, probe, "timestamp", source))?;
        search.told(probe, &times);
    }
    Ok(search.found())
}

/// Tells the verdict on stderr: stdout may be the receipts'.
fn audited(account: &str, written: u64, range: Range, head: &Head, audit: Audit) -> Verdict {
    match audit.end(head) {
        Ok(()) => {
            let (size, hash) = (head.size, &head.last_hash);
            let exported = if range.is_everything() {
                String::new()
            } else {
                format!("; exported {written} of them, {range}")
            };
            report::note(&format!(
                "VERIFIED: {size} receipts of account {account}, up to the head {hash}{exported}"
            ));
            Verdict::Good
        }
        Err(error) => {
            report::note(&Rejected::new(format!("ledger of account {account}"), &error).to_string());
            Verdict::NotGood
        }
    }
}

fn no_field(
    account: &str,
    place: u64,
    field: &'static str,
    source: serde_json::Error,
) -> ExportReceiptsError {
    ExportReceiptsError::Line {
        account: account.to_owned(),
        place,
        field,
        source,
    }
}

fn seq(account: &str, place: u64, line: &str) -> Result<u64, ExportReceiptsError> {
    #[derive(Deserialize)]
    struct Place {
        seq: u64,
    }
    serde_json::from_str(line)
        .map(|Place { seq }| seq)
        .map_err(|source| no_field(account, place, "seq", source))
}

fn timestamp(line: &str) -> Result<Timestamp, serde_json::Error> {
    #[derive(Deserialize)]
    struct Appended {
        timestamp: Timestamp,
    }
    serde_json::from_str(line).map(|Appended { timestamp }| timestamp)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Two lines in each form, and none.
    #[track_caller]
    fn check(form: Form, two: &str, none: &str) {
        let mut text = String::new();
        for (written, line) in [(0, r#"{"seq":0}"#), (1, r#"{"seq":1}"#)] {
            text += form.before(written);
            text += &form.receipt(line).unwrap();
        }
        assert_eq!(text + form.end(2), two, "{form:?}");
        assert_eq!(form.end(0), none, "{form:?}");
    }

    #[test]
    fn receipts_stand_in_their_form() {
        check(Form::Lines, "{\"seq\":0}\n{\"seq\":1}\n", "");
        check(Form::Array, "[\n{\"seq\":0},\n{\"seq\":1}\n]\n", "[]\n");
        let header = csv::HEADER;
        let rows = format!("{header}0,,,,,,,,,,,,{{}}\r\n1,,,,,,,,,,,,{{}}\r\n");
        check(Form::Table, &rows, header);
    }

    #[test]
    fn a_range_chooses_by_timestamp() {
        let range = Range::new(
            Some(time("2026-11-21").unwrap()),
            Some(time("2026-11-22").unwrap()),
        );
        let range = range.unwrap();
        for (timestamp, choice) in [
            ("2026-11-20T23:59:59.999Z", "skip"),
            ("2026-11-21T00:00:00.000Z", "write"),
            ("2026-11-21T23:59:59.999Z", "write"),
            ("2026-11-22T00:00:00.000Z", "end"),
        ] {
            let line = format!(r#"{{"occurred_at":"2026-11-21T12:00:00.000Z","timestamp":"{timestamp}"}}"#);
            let found = match choose(range, &line).unwrap() {
                Choice::Skip => "skip",
                Choice::Write => "write",
                Choice::End => "end",
            };
            assert_eq!(found, choice, "{timestamp}");
        }
        assert!(choose(range, r#"{"timestamp":7}"#).is_err());
        assert!(matches!(choose(Range::default(), "{}"), Ok(Choice::Write)));
    }

    #[test]
    fn receipts_that_are_missing_show() {
        let reading = |start, read, end| Reading { start, read, end }.is_whole("customer-123");
        assert!(reading(0, 5, 5) && reading(3, 2, 5) && reading(5, 0, 5));
        assert!(!reading(0, 4, 5) && !reading(3, 0, 5) && !reading(3, 3, 5));
    }
}
