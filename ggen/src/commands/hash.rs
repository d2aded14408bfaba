//! `ggen hash`: a receipt's hash as its ledger has it, and other things' for comparison, offline.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use receipts::canonical::{jcs, sha256_hex};
use receipts::merkle::leaf_hash;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::input::{self, InputError};
use crate::json::{self, JsonError, MAX_BYTES, Refused};
use crate::out::Out;
use crate::report::{self, Verdict};

const EXAMPLES: &str = "\
Examples:
  sed -n 3p receipts/000000.jsonl | ggen hash
  ggen hash receipt.json --format json
  ggen hash --raw 2026-01-31.tar.gz

What is hashed, always with SHA-256 and printed in lower-case hex:
  a receipt     its RFC 8785 form without the field `signature`: what the key signed, and the next receipt's prev_hash.
                A receipt is an object with receipt_id, seq, prev_hash and signature
  other JSON    its whole RFC 8785 form
  --raw         the bytes as they are, of any size; for an archive, the archive_sha256 of its closing receipt
--format json also says whether the input was canonical as given and, for a receipt, the leaf_hash that inclusion proofs
start from: SHA-256 of a zero byte and the input as given, without its line feed. JSON is read as strictly as by
`ggen canonicalize`. A hash alone proves nothing: verify-receipt checks the signature.
Exit code 0 done, 1 the input has no canonical form (with the problem and its position), 2 it cannot be read.";

/// Bytes read at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// What makes an object a receipt. An operation that this version does not know has these too.
const RECEIPT_FIELDS: [&str; 4] = ["receipt_id", "seq", "prev_hash", "signature"];

/// Arguments of `ggen hash`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct HashArgs {
    /// The receipt, the JSON text or, with --raw, any file; `-` for stdin
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Hash the bytes as they are
    #[arg(long)]
    raw: bool,
}

/// Why there is no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct HashOfJson {
    hash: String,
    /// What it is the hash of: `receipt` without its signature, or `json`.
    of: &'static str,
    /// Whether the input was canonical as given.
    canonical: bool,
    /// Of a receipt: of the input as given.
    #[serde(skip_serializing_if = "Option::is_none")]
    leaf_hash: Option<String>,
}

impl fmt::Display for HashOfJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hash)
    }
}

#[derive(Serialize)]
struct HashOfBytes {
    hash: String,
    of: &'static str,
    size_bytes: u64,
}

impl fmt::Display for HashOfBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hash)
    }
}

/// Hashes one input.
///
/// # Errors
/// When it cannot be read; an input without a canonical form is a verdict.
pub fn run(args: &HashArgs, out: &mut Out) -> Result<Verdict, HashError> {
    if args.raw {
        out.show(&raw(&args.file)?)?;
        return Ok(Verdict::Good);
    }
    let bytes = input::bytes(&args.file, MAX_BYTES)?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    match of_json(line) {
        Ok(hash) => {
            out.show(&hash)?;
            if !hash.canonical && !out.for_programs() {
                report::note(
                    "the input is not in canonical form as given; this is the hash of its canonical form",
                );
            }
            Ok(Verdict::Good)
        }
        Err(error) => Ok(Refused::new(input::name(&args.file), &error).tell(out)?),
    }
}

fn of_json(line: &[u8]) -> Result<HashOfJson, JsonError> {
    let mut value = json::parse(line)?;
    let whole = jcs(&value)?;
    let canonical = whole.as_bytes() == line;
    Ok(match &mut value {
        Value::Object(fields) if RECEIPT_FIELDS.iter().all(|name| fields.contains_key(*name)) => {
            fields.remove("signature");
            HashOfJson {
                hash: sha256_hex(jcs(&value)?),
                of: "receipt",
                canonical,
                leaf_hash: Some(hex::encode(leaf_hash(line))),
            }
        }
        _ => HashOfJson {
            hash: sha256_hex(whole),
            of: "json",
            canonical,
            leaf_hash: None,
        },
    })
}

/// In one pass, with a progress bar for what has a size.
fn raw(path: &Path) -> Result<HashOfBytes, InputError> {
    let hashed = if input::is_stdin(path) {
        digest(io::stdin().lock())
    } else {
        File::open(path).and_then(|file| {
            let bar = progress(file.metadata()?.len());
            let hashed = digest(bar.wrap_read(file));
            bar.finish_and_clear();
            hashed
        })
    };
    hashed.map_err(|source| InputError::Read {
        path: path.to_owned(),
        source,
    })
}

fn digest(mut reader: impl Read) -> io::Result<HashOfBytes> {
    let mut sha256 = Sha256::new();
    let mut size_bytes = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        sha256.update(buffer.get(..read).unwrap_or_default());
        size_bytes += read as u64;
    }
    Ok(HashOfBytes {
        hash: hex::encode(sha256.finalize()),
        of: "bytes",
        size_bytes,
    })
}

/// A bar on stderr; where that is no terminal, nothing is drawn.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("hashing {bar:40} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    bar
}
