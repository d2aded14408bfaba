//! What the verifying commands share: the keys an auditor trusts, and how a refusal is told.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use receipts::archive::ArchiveError;
use receipts::key::{KeyError, KeyRing, PublicKey};
use receipts::trail::TrailError;
use receipts::verify::ChainError;
use serde::Serialize;

use crate::input::{self, InputError};
use crate::out::Out;
use crate::report::{self, Verdict};

/// Largest public key file, in bytes; an Ed25519 key has 113.
const MAX_KEY_BYTES: u64 = 4 * 1024;
/// Largest key trail file, in bytes: some ten thousand rotations.
const MAX_TRAIL_BYTES: u64 = 16 << 20;

/// A public key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PublicKeyError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{} is not an Ed25519 public key in SPKI PEM", path.display())]
    Key { path: PathBuf, source: KeyError },
}

/// Reads a public key file.
pub fn public_key(path: &Path) -> Result<PublicKey, PublicKeyError> {
    let pem = input::text(path, MAX_KEY_BYTES)?;
    PublicKey::from_pem(&pem).map_err(|source| PublicKeyError::Key {
        path: path.to_owned(),
        source,
    })
}

/// Reads the public keys an auditor trusts.
///
/// # Errors
/// [`PublicKeyError`] names the first file that is no key.
pub fn trusted_keys(paths: &[PathBuf]) -> Result<KeyRing, PublicKeyError> {
    paths.iter().map(|path| public_key(path)).collect()
}

/// What an auditor trusts.
#[derive(Args)]
pub struct TrustArgs {
    /// A public key you trust, SPKI PEM; repeat for several
    #[arg(long, value_name = "FILE", required = true, env = "AUDITOR_PUB")]
    public_key: Vec<PathBuf>,
}

impl TrustArgs {
    /// The keys by themselves.
    ///
    /// # Errors
    /// [`PublicKeyError`] names the first file that is no key.
    pub fn keys(&self) -> Result<KeyRing, PublicKeyError> {
        trusted_keys(&self.public_key)
    }
}

/// The trusted keys and those that a file with a key trail leads to; the keys alone without a file. The outer error is
/// the file's, the inner one the trail's.
pub fn follow(trusted: KeyRing, key_trail: Option<&Path>) -> Result<Result<KeyRing, TrailError>, InputError> {
    let Some(path) = key_trail else {
        return Ok(Ok(trusted));
    };
    Ok(trusted.follow(input::text(path, MAX_TRAIL_BYTES)?.lines()))
}

/// Why something is not verified: what it is, the error and its causes, and the receipt it is about.
#[derive(Debug, Serialize)]
pub struct Rejected {
    verified: bool,
    subject: String,
    problem: String,
    causes: Vec<String>,
    #[serde(flatten)]
    place: Place,
}

/// The first bad receipt, as far as the error tells.
#[derive(Debug, Default, Serialize)]
struct Place {
    /// Its place in the ledger, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
}

impl Rejected {
    /// `subject` is not verified because of `error`.
    pub fn new(subject: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut place = place_in(error);
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(report::in_plain_words(error));
            place = place.or_else(|| place_in(error));
            cause = error.source();
        }
        let place = place.unwrap_or_default();
        Self {
            verified: false,
            subject: subject.into(),
            problem: error.to_string(),
            causes,
            place,
        }
    }

    /// Tells it: the verdict.
    pub fn show(&self, out: &mut Out) -> io::Result<Verdict> {
        out.show(self)?;
        Ok(Verdict::NotGood)
    }

    /// Adds what the reader may try next.
    pub fn hint(mut self, hint: &str) -> Self {
        self.causes.push(hint.to_owned());
        self
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NOT VERIFIED: {}\n  {}", self.subject, self.problem)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n  {cause}"))
    }
}

/// Programs get the place in fields of their own.
fn place_in(error: &(dyn Error + 'static)) -> Option<Place> {
    if let Some(error) = error.downcast_ref::<ChainError>() {
        return Some(match error {
            ChainError::Line { place, .. } => Place {
                place: Some(*place),
                ..Place::default()
            },
            ChainError::Link {
                place,
                receipt_id,
                rule,
                expected,
                found,
            } => Place {
                place: Some(*place),
                receipt_id: Some(receipt_id.to_string()),
                rule: Some(rule.to_string()),
                expected: Some(expected.clone()),
                found: Some(found.clone()),
            },
        });
    }
    match error.downcast_ref::<ArchiveError>()? {
        ArchiveError::MissingPolicy { place, .. } => Some(Place {
            place: Some(*place),
            ..Place::default()
        }),
        _ => None,
    }
}
