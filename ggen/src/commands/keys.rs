//! `ggen keys`: signing keys for receipts and secrets for webhooks.

mod file;
mod producer;
mod trail;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use receipts::key::{KeyError, Signer};
use serde::Serialize;

use self::file::{FileError, create, random};
use crate::cloud;
use crate::evidence::{self, PublicKeyError};
use crate::out::Out;
use crate::report::Verdict;

const GENERATE_EXAMPLES: &str = "\
Example:
  ggen keys generate --private signing.pem --public auditor.pub

The private key is PKCS#8 PEM and readable only by its owner: store it as the signing key's secret, then delete the file.
The public key is SPKI PEM: give it to auditors. Neither file may already exist.";

const SECRET_EXAMPLES: &str = "\
Example:
  export STANDARD_WEBHOOK_SECRET=$(ggen keys secret)";

/// Kinds of keys.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Create an Ed25519 key pair for signing receipts
    Generate(GenerateArgs),
    /// Print the secret that an account's producers sign with
    #[command(after_help = producer::help())]
    Producer(producer::ProducerArgs),
    /// Revoke a key that no longer signs, on record
    #[command(after_help = trail::revoke_help())]
    Revoke(trail::RevokeArgs),
    /// Replace the signing key with a new one, on record
    #[command(after_help = trail::rotate_help())]
    Rotate(trail::RotateArgs),
    /// Show a public key's id, the `key_id` in receipts
    Show(ShowArgs),
    /// Create a Standard Webhooks secret (whsec_…) and print it
    #[command(after_help = SECRET_EXAMPLES)]
    Secret,
    /// Write the receipts of key rotations and revocations
    #[command(after_help = trail::trail_help())]
    Trail,
}

/// Arguments of `ggen keys generate`.
#[derive(Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub struct GenerateArgs {
    /// New file for the private key, readable only by its owner
    #[arg(long, value_name = "FILE")]
    private: PathBuf,
    /// New file for the public key
    #[arg(long, value_name = "FILE")]
    public: PathBuf,
}

/// Arguments of `ggen keys show`.
#[derive(Args)]
pub struct ShowArgs {
    /// The public key, SPKI PEM
    #[arg(long, value_name = "FILE")]
    public: PathBuf,
}

/// Why a key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    #[error("cannot write the new key")]
    Encode(#[from] KeyError),
    #[error(transparent)]
    Producer(#[from] producer::ProducerError),
    #[error(transparent)]
    Trail(#[from] trail::TrailCommandError),
    #[error("cannot write the answer")]
    Write(#[from] io::Error),
}

#[derive(Serialize)]
struct KeyAnswer<'a> {
    key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<&'a Path>,
    public: &'a Path,
}

impl fmt::Display for KeyAnswer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key id {}", self.key_id)?;
        if let Some(private) = self.private {
            write!(f, "\nprivate key in {} (keep it secret)", private.display())?;
        }
        write!(f, "\npublic key in {}", self.public.display())
    }
}

#[derive(Serialize)]
struct SecretAnswer {
    secret: String,
}

impl fmt::Display for SecretAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.secret)
    }
}

/// Makes or shows keys.
///
/// # Errors
/// When randomness or a file is missing, or a file exists that would be overwritten.
pub fn run(command: KeysCommand, out: &mut Out) -> Result<Verdict, KeysError> {
    match command {
        KeysCommand::Generate(GenerateArgs { private, public }) => {
            let key_id = generate(&private, &public)?;
            out.show(&KeyAnswer {
                key_id,
                private: Some(&private),
                public: &public,
            })?;
        }
        KeysCommand::Producer(args) => out.show(&cloud::block_on(producer::run(args))??)?,
        KeysCommand::Revoke(args) => out.show(&cloud::block_on(trail::revoke(args))??)?,
        KeysCommand::Rotate(args) => out.show(&cloud::block_on(trail::rotate(args))??)?,
        KeysCommand::Show(ShowArgs { public }) => {
            let key = evidence::public_key(&public)?;
            out.show(&KeyAnswer {
                key_id: key.key_id().to_owned(),
                private: None,
                public: &public,
            })?;
        }
        KeysCommand::Trail => {
            for line in cloud::block_on(trail::lines())?? {
                writeln!(out, "{line}")?;
            }
        }
        KeysCommand::Secret => out.show(&SecretAnswer {
            secret: format!("whsec_{}", STANDARD.encode(random()?)),
        })?,
    }
    Ok(Verdict::Good)
}

fn generate(private: &Path, public: &Path) -> Result<String, KeysError> {
    let signer = Signer::generate(random()?);
    let (private_pem, public_pem) = (signer.to_pem()?, signer.public_key().to_pem()?);
    create(private, 0o600, private_pem.as_bytes())?;
    create(public, 0o644, public_pem.as_bytes()).inspect_err(|_| {
        // Half a pair is no use, and would stand in the way of the next try.
        let _ = fs::remove_file(private);
    })?;
    Ok(signer.key_id().to_owned())
}
