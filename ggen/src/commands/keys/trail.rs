//! `ggen keys rotate`, `revoke` and `trail`: the signing key passes on, on record.

use std::fmt;
use std::path::PathBuf;

use aws::clients;
use aws::config::Stack;
use aws::log::LogError;
use aws::secrets::{Secrets, SecretsError};
use aws::store::StoreError;
use clap::Args;
use domain::names::{LedgerId, Partition, SYSTEM_ACCOUNT};
use domain::time::rfc3339;
use domain::transaction::{Account, Keys, Plan};
use jiff::{SignedDuration, Timestamp};
use receipts::key::{KeyError, KeyRing, Signer};
use receipts::ledger;
use receipts::receipt::{Draft, Payload, Receipt};
use receipts::trail::{self, TrailError};
use serde::Serialize;
use uuid::Uuid;

use super::file::{FileError, create, random};
use crate::cloud::{self, NEEDS_A_STACK};
use crate::ledger::{Live, LiveError};

/// How long functions keep the key that signs (`aws::secrets`).
const KEPT: SignedDuration = SignedDuration::from_mins(5);

pub(super) fn rotate_help() -> String {
    format!(
        "\
Example:
  ggen keys rotate --public auditor.next.pub

Creates a new signing key, in steps that can each be repeated: the new key waits in the secret (AWSPENDING); a key_rotated
receipt, signed by the old key and endorsed by the new one, goes to the system's ledger and next to the archives (_keys/);
then the new key becomes the one that signs (AWSCURRENT). Functions pick it up within five minutes. Nothing is signed
again: receipts name their key, and the trail leads an auditor who trusts any one key to the others. If it is interrupted,
run it again.
{NEEDS_A_STACK}"
    )
}

pub(super) fn revoke_help() -> String {
    format!(
        "\
Examples:
  ggen keys revoke --key-id 89ab4c0f1e2d3c4b --reason \"laptop stolen\"
  ggen keys revoke --key-id 89ab4c0f1e2d3c4b --reason \"retired\" --from 2027-01-01T00:00:00Z

For a key that was stolen: first run `ggen keys rotate`, then revoke the old key. Receipts it signed that are dated after the
revocation fail, with the reason; older ones are valid in their place in a ledger, but not on their own. Functions keep a
key for five minutes, and honest receipts must stay valid, so the earliest revocation is five minutes after the rotation
(the default, or now if that is later). What a thief signed before that is in no ledger.
{NEEDS_A_STACK}"
    )
}

pub(super) fn trail_help() -> String {
    format!(
        "\
Example:
  ggen keys trail > keys.jsonl

Writes the receipts of all key rotations and revocations, one per line, for `ggen verify-receipt --key-trail`.
{NEEDS_A_STACK}"
    )
}

/// Arguments of `ggen keys rotate`.
#[derive(Args)]
pub struct RotateArgs {
    /// New file for the new public key
    #[arg(long, value_name = "FILE")]
    public: PathBuf,
}

/// Arguments of `ggen keys revoke`.
#[derive(Args)]
pub struct RevokeArgs {
    /// The key's id, as in receipts
    #[arg(long, value_name = "KEY_ID")]
    key_id: String,
    /// Why, for anyone who finds one of its signatures
    #[arg(long, value_name = "TEXT", value_parser = cloud::persons_text)]
    reason: String,
    /// When its signatures stop counting, RFC 3339 [default: now, or five minutes after its rotation]
    #[arg(long, value_name = "TIME", value_parser = rfc3339)]
    from: Option<Timestamp>,
}

/// Why a key could not pass on or be revoked.
#[derive(Debug, thiserror::Error)]
pub enum TrailCommandError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write the new key")]
    Encode(#[from] KeyError),
    #[error(transparent)]
    Live(#[from] LiveError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("cannot append to the system's ledger")]
    Store(#[from] StoreError),
    #[error("cannot publish the key trail")]
    Log(#[from] LogError),
    #[error(
        "receipt {receipt_id} was appended but is not in the index yet: run the command again in a moment"
    )]
    NotFound { receipt_id: Uuid },
    #[error("key {key_id} is the signing key: run `ggen keys rotate` first, then revoke it")]
    Signs { key_id: String },
    #[error("functions may have signed with key {key_id} until {until}: --from must not be before that")]
    TooEarly {
        key_id: String,
        /// From when on it can be revoked.
        until: Timestamp,
    },
    #[error("another run has just rotated key {key_id}, and its receipt is not published yet")]
    PassedOn { key_id: String },
    #[error("the key trail would no longer hold; nothing was written")]
    Breaks(#[source] TrailError),
    #[error("key {key_id} is not one of this stack's keys: {known}")]
    UnknownKey {
        key_id: String,
        /// Those that the trail leads to.
        known: String,
    },
}

#[derive(Serialize)]
pub(super) struct KeyChange {
    operation: &'static str,
    receipt_id: Uuid,
    seq: u64,
    key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public: Option<PathBuf>,
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.previous_key_id {
            Some(previous) => write!(f, "key {} now signs, instead of {previous}", self.key_id)?,
            None => write!(f, "key {} is revoked", self.key_id)?,
        }
        write!(
            f,
            "\nreceipt {} at place {} of the system's ledger",
            self.receipt_id, self.seq
        )?;
        if let Some(public) = &self.public {
            write!(
                f,
                "\npublic key in {}: publish it, and keep the earlier ones",
                public.display()
            )?;
        }
        Ok(())
    }
}

/// The stack, and the secret with the signing key.
struct Keyring {
    live: Live,
    secrets: Secrets,
    secret_id: String,
}

impl Keyring {
    async fn open() -> Result<Self, TrailCommandError> {
        let sdk = clients::load().await;
        Ok(Self {
            live: Live::of(&sdk)?,
            secrets: Secrets::new(&sdk),
            secret_id: Stack::from_env().map_err(LiveError::from)?.signing_key_secret,
        })
    }

    async fn signer(&self) -> Result<Signer, TrailCommandError> {
        Ok(self.secrets.signer(&self.secret_id).await?)
    }

    /// Puts a receipt on the system's ledger once, however often it is asked, and publishes it. `step` is an id that no
    /// two receipts may share, where there is one.
    async fn put(
        &self,
        signer: &Signer,
        receipt_id: Uuid,
        step: Option<Uuid>,
        payload: Payload,
    ) -> Result<(u64, Receipt), TrailCommandError> {
        let once: Vec<Uuid> = [receipt_id].into_iter().chain(step).collect();
        let keys = Keys {
            once: once.iter().copied().collect(),
            ..Keys::default()
        };
        let trail = self.live.log.key_trail().await?;
        let draft = Draft::new(receipt_id, SYSTEM_ACCOUNT, payload, Timestamp::now());
        let append = |account: &Account, now| {
            if account.once.contains(&receipt_id) {
                return Ok::<_, TrailCommandError>((Plan::default(), ()));
            }
            // What is published can't be taken back for years: so it is held against the trail before it is written.
            let sealed = ledger::append(&account.head, std::slice::from_ref(&draft), now, signer);
            let sealed = sealed.map_err(|source| StoreError::Append {
                account: SYSTEM_ACCOUNT.to_owned(),
                source,
            })?;
            let lines = trail.iter().map(String::as_str);
            let lines = lines.chain(sealed.sealed.iter().map(|one| one.line.as_str()));
            KeyRing::from(signer.public_key())
                .follow(lines)
                .map_err(TrailCommandError::Breaks)?;
            if step.is_some_and(|step| account.once.contains(&step)) {
                return Err(TrailCommandError::PassedOn {
                    key_id: signer.key_id().to_owned(),
                });
            }
            let plan = Plan {
                once: once.clone(),
                ..Plan::append(draft.clone())
            };
            Ok((plan, ()))
        };
        let (committed, ()) = self
            .live
            .store
            .transact(signer, &Partition::system(), &keys, None, append)
            .await?;
        let (seq, line) = match committed.sealed.first() {
            Some(sealed) => (sealed.seq, sealed.line.clone()),
            // Appended by a run that broke off behind it.
            None => match self.live.find(receipt_id, Some(&LedgerId::System)).await {
                Ok(found) => (found.seq, found.line),
                Err(LiveError::NoReceipt { .. }) => return Err(TrailCommandError::NotFound { receipt_id }),
                Err(error) => return Err(error.into()),
            },
        };
        self.live.log.put_key_trail(seq, &line).await?;
        let receipt = serde_json::from_str(&line).map_err(|e| {
            TrailCommandError::Store(StoreError::Item {
                account: SYSTEM_ACCOUNT.to_owned(),
                sk: format!("receipt {seq}"),
                detail: e.to_string(),
            })
        })?;
        Ok((seq, receipt))
    }
}

/// An id that a repeat of the same step has as well.
fn receipt_id(step: &str, key_id: &str) -> Uuid {
    Uuid::new_v5(
        &Uuid::NAMESPACE_OID,
        format!("marketplace-governor {step} {key_id}").as_bytes(),
    )
}

/// Passes the signing key on.
///
/// # Errors
/// When the stack does not answer; running it again goes on.
pub(super) async fn rotate(args: RotateArgs) -> Result<KeyChange, TrailCommandError> {
    // Before anything is changed: an answer that can't be written would be lost.
    if args.public.exists() {
        create(&args.public, 0o644, b"")?;
    }
    let keyring = Keyring::open().await?;
    let signer = keyring.signer().await?;
    let secrets = &keyring.secrets;
    let id = &keyring.secret_id;
    let pending = secrets.pending_key(id).await?;
    let next = match pending {
        Some(pending) => pending,
        None => {
            let next = Signer::generate(random()?);
            secrets.put_pending_key(id, &next).await?;
            next
        }
    };
    let payload = trail::rotation(&signer.public_key(), &next);
    // A key passes on once, whoever asks, and however many at a time.
    let (receipt_id, step) = (
        receipt_id("rotates to", next.key_id()),
        receipt_id("rotates from", signer.key_id()),
    );
    let (seq, receipt) = keyring.put(&signer, receipt_id, Some(step), payload).await?;
    // Before the step behind which a repeat would begin another rotation.
    create(&args.public, 0o644, next.public_key().to_pem()?.as_bytes())?;
    let promoted = secrets.promote_pending_key(id, next.key_id()).await;
    promoted.inspect_err(|_| {
        // The next try writes it again.
        let _ = std::fs::remove_file(&args.public);
    })?;
    Ok(KeyChange {
        operation: "key_rotated",
        receipt_id,
        seq,
        key_id: next.key_id().to_owned(),
        previous_key_id: Some(receipt.key_id),
        public: Some(args.public),
    })
}

/// Revokes a key that does not sign any more.
///
/// # Errors
/// When the key signs, is unknown, or the stack does not answer.
pub(super) async fn revoke(args: RevokeArgs) -> Result<KeyChange, TrailCommandError> {
    let keyring = Keyring::open().await?;
    let signer = keyring.signer().await?;
    let key_id = args.key_id;
    if key_id == signer.key_id() {
        return Err(TrailCommandError::Signs { key_id });
    }
    let ring = keyring.live.follow(KeyRing::from(signer.public_key())).await?;
    if ring.get(&key_id).is_none() {
        let known = ring.key_ids().collect::<Vec<_>>().join(", ");
        return Err(TrailCommandError::UnknownKey { key_id, known });
    }
    let until = ring
        .passed_on_at(&key_id)
        .and_then(|at| at.checked_add(KEPT).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    let revoked_from = args.from.unwrap_or_else(|| Timestamp::now().max(until));
    if revoked_from < until {
        return Err(TrailCommandError::TooEarly { key_id, until });
    }
    let receipt_id = receipt_id("revokes", &format!("{key_id} {revoked_from} {}", args.reason));
    let payload = Payload::KeyRevoked {
        revoked_key_id: key_id.clone(),
        reason: args.reason,
        revoked_from,
    };
    let (seq, _) = keyring.put(&signer, receipt_id, None, payload).await?;
    Ok(KeyChange {
        operation: "key_revoked",
        receipt_id,
        seq,
        key_id,
        previous_key_id: None,
        public: None,
    })
}

/// The key trail as it is published.
///
/// # Errors
/// When the audit bucket does not answer.
pub(super) async fn lines() -> Result<Vec<String>, TrailCommandError> {
    let live = Live::open().await?;
    Ok(live.log.key_trail().await?)
}
