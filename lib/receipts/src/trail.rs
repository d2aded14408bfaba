//! The key trail: how the signing key passes on, and which keys are revoked.
//!
//! Both are receipts in the control plane's ledger. `key_rotated` is signed by the previous key and endorsed by the new
//! one, so that an auditor who trusts any one key of the trail is led to all others, forwards and back. `key_revoked` is
//! signed by another key than the one it revokes.
//!
//! A trail has no forks: a key passes on once. Whoever stole a key can sign a second rotation, and that shows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use crate::key::{KeyRing, PublicKey, Revocation, SignatureError, Signer};
use crate::origin::SYSTEM;
use crate::receipt::{Payload, Receipt};
use crate::verify::{LineError, read, verify_placed_line};

/// The most lines a trail may have: a rotation a day for some decades.
pub const TRAIL_LINES: usize = 10_000;

/// What the new key signs: who passes on to whom.
fn endorsed(previous: &str, new: &str) -> String {
    format!("marketplace-governor key rotation\n{previous}\n{new}\n")
}

/// A trail that does not hold.
#[derive(Debug, Error)]
pub enum TrailError {
    /// More lines than are read.
    #[error("the key trail has more than {TRAIL_LINES} lines")]
    TooLong,
    /// A line that is not a receipt as ledgers have them.
    #[error("line {line} of the key trail is not good")]
    Line {
        /// Which, from 1.
        line: usize,
        #[source]
        source: LineError,
    },
    /// A receipt about something else, or of another ledger.
    #[error(
        "line {line} of the key trail is receipt {receipt_id} `{operation}` of account {account_id:?}, expected `key_rotated` or \
         `key_revoked` of {SYSTEM:?}"
    )]
    Operation {
        /// Which, from 1.
        line: usize,
        receipt_id: Uuid,
        operation: &'static str,
        account_id: String,
    },
    /// A field that names another key than it should, or none.
    #[error("line {line} of the key trail: `{field}` is {found:?}, expected {expected}")]
    Key {
        /// Which, from 1.
        line: usize,
        field: &'static str,
        expected: String,
        found: String,
    },
    /// The new key did not endorse the rotation.
    #[error("line {line} of the key trail: the endorsement by {new_key_id} does not hold")]
    Endorsement {
        /// Which, from 1.
        line: usize,
        new_key_id: String,
        #[source]
        source: SignatureError,
    },
    /// A key that passed on twice, or was passed on to twice.
    #[error(
        "line {line} of the key trail: key {key_id} stands in a second rotation; a stolen key may have signed it"
    )]
    Fork {
        /// Which, from 1.
        line: usize,
        key_id: String,
    },
    /// A revocation that the revoked key signed itself: a thief could say so too, and from when on.
    #[error("line {line} of the key trail: key {key_id} can't revoke itself")]
    OwnRevocation {
        /// Which, from 1.
        line: usize,
        key_id: String,
    },
    /// A revocation by a key that nothing leads to.
    #[error("line {line} of the key trail revokes {key_id}, signed by {by}, which no trusted key leads to")]
    Stranger {
        /// Which, from 1.
        line: usize,
        key_id: String,
        by: String,
    },
}

/// What the receipt says that passes the key on. It must be sealed by `previous`.
pub fn rotation(previous: &PublicKey, new: &Signer) -> Payload {
    let (previous_public_key, new_public_key) = (previous.to_base64(), new.public_key().to_base64());
    Payload::KeyRotated {
        endorsement: new.sign(endorsed(&previous_public_key, &new_public_key).as_bytes()),
        previous_key_id: previous.key_id().to_owned(),
        previous_public_key,
        new_key_id: new.key_id().to_owned(),
        new_public_key,
    }
}

struct Rotation {
    line: usize,
    timestamp: Timestamp,
    previous: PublicKey,
    new: PublicKey,
}

struct Revoking {
    line: usize,
    by: String,
    key_id: String,
    revocation: Revocation,
    text: String,
}

impl KeyRing {
    /// The ring with every key that the trusted ones lead to, and what is revoked. `lines` are the receipts of the trail
    /// in ledger order, without line feeds.
    ///
    /// # Errors
    /// [`TrailError`] names the first line that is wrong; nothing of a trail with a wrong line is believed.
    pub fn follow<'a>(mut self, lines: impl IntoIterator<Item = &'a str>) -> Result<Self, TrailError> {
        let (mut rotations, mut revocations) = (Vec::new(), Vec::new());
        for (at, text) in lines.into_iter().enumerate() {
            if at == TRAIL_LINES {
                return Err(TrailError::TooLong);
            }
            read_line(at + 1, text, &mut rotations, &mut revocations)?;
        }
        self.extend(&rotations)?;
        for revoking in revocations {
            self.apply(revoking)?;
        }
        for rotation in &rotations {
            let key_id = rotation.previous.key_id();
            if let Some(revoked) = self.revocation(key_id).filter(|it| rotation.timestamp >= it.from) {
                let source = LineError::RevokedKey {
                    key_id: key_id.to_owned(),
                    from: revoked.from,
                    reason: revoked.reason.clone(),
                    placed: true,
                };
                return Err(TrailError::Line {
                    line: rotation.line,
                    source,
                });
            }
        }
        Ok(self)
    }

    fn apply(&mut self, revoking: Revoking) -> Result<(), TrailError> {
        let Revoking {
            line,
            by,
            key_id,
            revocation,
            text,
        } = revoking;
        match (self.get(&by), self.get(&key_id)) {
            // Of a lineage that has nothing to do with the trusted keys.
            (_, None) => return Ok(()),
            (None, Some(_)) => return Err(TrailError::Stranger { line, key_id, by }),
            (Some(_), Some(_)) => {}
        }
        verify_placed_line(&text, self).map_err(|source| TrailError::Line { line, source })?;
        self.revoke(&key_id, revocation);
        Ok(())
    }

    fn extend(&mut self, rotations: &[Rotation]) -> Result<(), TrailError> {
        let (mut ahead, mut behind) = (BTreeMap::new(), BTreeMap::new());
        for rotation in rotations {
            let (previous, new) = (rotation.previous.key_id(), rotation.new.key_id());
            let again = ahead.insert(previous.to_owned(), &rotation.new).is_some();
            // Against what an earlier trail said as well: a thief leaves lines out, and puts others in.
            if again || !self.pass_on(previous, new, rotation.timestamp) {
                return Err(TrailError::Fork {
                    line: rotation.line,
                    key_id: previous.to_owned(),
                });
            }
            behind.insert(new.to_owned(), &rotation.previous);
        }
        // Without forks the trail is a line (or several): walked both ways from each trusted key.
        let mut waiting: Vec<String> = self.key_ids().map(str::to_owned).collect();
        while let Some(key_id) = waiting.pop() {
            for key in [ahead.remove(&key_id), behind.remove(&key_id)]
                .into_iter()
                .flatten()
            {
                if self.get(key.key_id()).is_none() {
                    self.add(key.clone());
                    waiting.push(key.key_id().to_owned());
                }
            }
        }
        Ok(())
    }
}

fn read_line(
    line: usize,
    text: &str,
    rotations: &mut Vec<Rotation>,
    revocations: &mut Vec<Revoking>,
) -> Result<(), TrailError> {
    let (receipt, signed_bytes) =
        read::<Receipt>(text).map_err(|source| TrailError::Line { line, source })?;
    let operation = receipt.payload.operation();
    let other = TrailError::Operation {
        line,
        receipt_id: receipt.receipt_id,
        operation,
        account_id: receipt.account_id.clone(),
    };
    if receipt.account_id != SYSTEM {
        return Err(other);
    }
    match receipt.payload {
        Payload::KeyRotated {
            previous_key_id,
            previous_public_key,
            new_key_id,
            new_public_key,
            endorsement,
        } => {
            let key = |field, text: &str| {
                PublicKey::from_base64(text).ok_or_else(|| TrailError::Key {
                    line,
                    field,
                    expected: "an Ed25519 public key in base64".to_owned(),
                    found: text.to_owned(),
                })
            };
            let named = |field, key: &PublicKey, found: &str| {
                if key.key_id() == found {
                    return Ok(());
                }
                Err(TrailError::Key {
                    line,
                    field,
                    expected: key.key_id().to_owned(),
                    found: found.to_owned(),
                })
            };
            let previous = key("previous_public_key", &previous_public_key)?;
            let new = key("new_public_key", &new_public_key)?;
            named("previous_key_id", &previous, &previous_key_id)?;
            named("new_key_id", &new, &new_key_id)?;
            named("key_id", &previous, &receipt.key_id)?;
            previous
                .verify(signed_bytes.as_bytes(), &receipt.signature)
                .map_err(|source| TrailError::Line {
                    line,
                    source: LineError::Signature { source },
                })?;
            new.verify(
                endorsed(&previous_public_key, &new_public_key).as_bytes(),
                &endorsement,
            )
            .map_err(|source| TrailError::Endorsement {
                line,
                new_key_id,
                source,
            })?;
            rotations.push(Rotation {
                line,
                timestamp: receipt.timestamp,
                previous,
                new,
            });
        }
        Payload::KeyRevoked {
            revoked_key_id: key_id,
            reason,
            revoked_from,
        } => {
            if key_id == receipt.key_id {
                return Err(TrailError::OwnRevocation { line, key_id });
            }
            revocations.push(Revoking {
                line,
                by: receipt.key_id,
                key_id,
                revocation: Revocation {
                    reason,
                    from: revoked_from,
                },
                text: text.to_owned(),
            });
        }
        _ => return Err(other),
    }
    Ok(())
}
