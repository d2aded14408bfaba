//! `ggen canonicalize`: the bytes that are hashed and signed, offline.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use receipts::canonical::sha256_hex;
use serde::Serialize;

use crate::input::{self, InputError};
use crate::json::{self, MAX_BYTES, Refused};
use crate::out::Out;
use crate::report::Verdict;

const EXAMPLES: &str = "\
Examples:
  ggen canonicalize receipt.json | sha256sum
  jq 'del(.signature)' receipt.json | ggen canonicalize > signed-bytes
  ggen canonicalize --jsonl < exported.jsonl

Writes the RFC 8785 (JCS) form of one JSON value of at most 16 MiB, without a trailing line feed, so that it can be hashed
or passed to openssl as it is. The input must be I-JSON: UTF-8, no repeated keys, no lone surrogates, nothing after the
value, no integers that a double would round, at most 127 levels. Fractions are rounded to the nearest double, as RFC 8785
requires. --format json answers with the canonical text and its SHA-256.
Exit code 0 done, 1 the input has no canonical form (with the problem and its position), 2 it cannot be read.";

/// Arguments of `ggen canonicalize`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct CanonicalizeArgs {
    /// The JSON text; `-` for stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// End the output with a line feed
    #[arg(long)]
    newline: bool,
    /// Treat each line as a value of its own, and write one line for each
    #[arg(long)]
    jsonl: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalizeError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("line {line} of {} is larger than {MAX_BYTES} bytes", path.display())]
    Line {
        /// The file, or `-`.
        path: PathBuf,
        /// From 1.
        line: u64,
    },
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct Canonical<'a> {
    canonical: &'a str,
    sha256: String,
}

impl fmt::Display for Canonical<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.canonical)
    }
}

/// Writes canonical forms.
///
/// # Errors
/// When the input cannot be read; an input without a canonical form is a verdict.
pub fn run(args: &CanonicalizeArgs, out: &mut Out) -> Result<Verdict, CanonicalizeError> {
    if args.jsonl {
        return lines(&args.file, out);
    }
    let bytes = input::bytes(&args.file, MAX_BYTES)?;
    match json::canonical(&bytes) {
        Ok(text) => write(&text, args.newline, out),
        Err(error) => Ok(Refused::new(input::name(&args.file), &error).tell(out)?),
    }
}

/// One line after the other, up to the first that is refused: memory holds one.
fn lines(path: &Path, out: &mut Out) -> Result<Verdict, CanonicalizeError> {
    let unread = |source| InputError::Read {
        path: path.to_owned(),
        source,
    };
    let mut reader: Box<dyn BufRead> = if input::is_stdin(path) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).map_err(unread)?))
    };
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        // Room for the line feed, and for one byte that tells a line that is too long.
        let read = reader.as_mut().take(MAX_BYTES + 2).read_until(b'\n', &mut line);
        if read.map_err(unread)? == 0 || out.closed() {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.len() as u64 > MAX_BYTES {
            return Err(CanonicalizeError::Line {
                path: path.to_owned(),
                line: number,
            });
        }
        match json::canonical(text) {
            Ok(text) => write(&text, true, out)?,
            Err(error) => {
                let subject = format!("line {number} of {}, by itself", input::name(path));
                return Ok(Refused::new(subject, &error).tell(out)?);
            }
        };
    }
    Ok(Verdict::Good)
}

fn write(text: &str, newline: bool, out: &mut Out) -> Result<Verdict, CanonicalizeError> {
    if out.for_programs() {
        let sha256 = sha256_hex(text);
        out.show(&Canonical {
            canonical: text,
            sha256,
        })?;
    } else {
        out.write_all(text.as_bytes())?;
        if newline {
            out.write_all(b"\n")?;
        }
    }
    Ok(Verdict::Good)
}
