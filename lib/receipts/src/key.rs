//! Ed25519 keys: the one that signs, and the ring of those an auditor trusts.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{self, DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _};
use ed25519_dalek::pkcs8::{EncodePublicKey as _, KeypairBytes, spki};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use thiserror::Error;

use crate::canonical::sha256_hex;

/// How many hex digits of the public key's SHA-256 make its `key_id`.
const KEY_ID_DIGITS: usize = 16;

/// A key that can't be read or written.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The text is not an Ed25519 private key in PKCS#8 PEM.
    #[error("reading an Ed25519 private key from PKCS#8 PEM failed")]
    Private {
        #[source]
        source: pkcs8::Error,
    },
    /// The text is not an Ed25519 public key in SPKI PEM.
    #[error("reading an Ed25519 public key from SPKI PEM failed")]
    Public {
        #[source]
        source: spki::Error,
    },
    /// The point has small order: signatures under it prove nothing.
    #[error("the public key {key_id} is weak: anybody can make signatures that it accepts")]
    Weak { key_id: String },
    /// A private key could not be written as PEM.
    #[error("writing an Ed25519 private key as PKCS#8 PEM failed")]
    Encode {
        #[source]
        source: pkcs8::Error,
    },
}

/// A signature that does not hold.
#[derive(Debug, Error)]
pub enum SignatureError {
    /// Not base64 (standard alphabet, padded).
    #[error("the signature is not standard base64")]
    Base64 {
        #[source]
        source: base64::DecodeError,
    },
    /// Not 64 bytes.
    #[error("the signature has {found} bytes, an Ed25519 signature has 64")]
    Length { found: usize },
    /// Well formed, and not made by this key over these bytes.
    #[error("the signature was not made by key {key_id} over these bytes")]
    Mismatch {
        key_id: String,
        #[source]
        source: ed25519_dalek::SignatureError,
    },
}

/// The private key that signs receipts. Its `Debug` shows the key id only.
pub struct Signer {
    key: SigningKey,
    key_id: String,
}

impl Signer {
    /// Makes a key from 32 random bytes. The caller brings the randomness, so that this crate needs no source of it.
    pub fn generate(seed: [u8; 32]) -> Self {
        Self::new(SigningKey::from_bytes(&seed))
    }

    /// Reads a key from PKCS#8 PEM (RFC 8410), as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`KeyError::Private`] when the text is anything else.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem)
            .map(Self::new)
            .map_err(|source| KeyError::Private { source })
    }

    /// The key as PKCS#8 PEM. This is the secret itself: store it, don't log it.
    ///
    /// # Errors
    /// [`KeyError::Encode`], which no key made here causes.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        // Without the public half: that is PKCS#8 version 1, the form OpenSSL 3 reads.
        let pair = KeypairBytes {
            secret_key: self.key.to_bytes(),
            public_key: None,
        };
        let pem = pair
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|source| KeyError::Encode { source })?;
        Ok(pem.to_string())
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey {
            key: self.key.verifying_key(),
            key_id: self.key_id.clone(),
        }
    }

    /// First 16 hex digits of the SHA-256 of the raw public key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Signs bytes: Ed25519 (RFC 8032), in padded standard base64.
    pub(crate) fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.sign_raw(message))
    }

    /// As [`Signer::sign`], without base64.
    pub(crate) fn sign_raw(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    fn new(key: SigningKey) -> Self {
        let key_id = key_id(&key.verifying_key());
        Self { key, key_id }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// A public key that checks receipts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    key_id: String,
}

impl PublicKey {
    /// Reads a key from SPKI PEM, the form of `auditor.pub`.
    ///
    /// # Errors
    /// [`KeyError::Public`] for any other text, [`KeyError::Weak`] for a key of small order.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|source| KeyError::Public { source })?;
        let key_id = key_id(&key);
        if key.is_weak() {
            return Err(KeyError::Weak { key_id });
        }
        Ok(Self { key, key_id })
    }

    /// The key as SPKI PEM, ending in a line feed.
    ///
    /// # Errors
    /// [`KeyError::Public`], which no key made here causes.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.key
            .to_public_key_pem(LineEnding::LF)
            .map_err(|source| KeyError::Public { source })
    }

    /// First 16 hex digits of the SHA-256 of the raw public key.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The raw key (RFC 8032).
    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The raw key in base64, as a receipt of a rotation carries it.
    pub(crate) fn to_base64(&self) -> String {
        STANDARD.encode(self.to_bytes())
    }

    /// Reads [`PublicKey::to_base64`]; `None` for anything else, a weak key included.
    pub(crate) fn from_base64(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
        let key = VerifyingKey::from_bytes(&bytes)
            .ok()
            .filter(|key| !key.is_weak())?;
        let key_id = key_id(&key);
        Some(Self { key, key_id })
    }

    /// Checks a base64 signature strictly: one message and one key have one valid signature form.
    ///
    /// # Errors
    /// [`SignatureError`] says whether the text or the signature is wrong.
    pub fn verify(&self, message: &[u8], signature: &str) -> Result<(), SignatureError> {
        self.verify_raw(message, &signature_bytes(signature)?)
    }

    /// As [`PublicKey::verify`], without base64.
    pub(crate) fn verify_raw(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        let bytes: [u8; 64] = signature.try_into().map_err(|_| SignatureError::Length {
            found: signature.len(),
        })?;
        self.key
            .verify_strict(message, &Signature::from_bytes(&bytes))
            .map_err(|source| SignatureError::Mismatch {
                key_id: self.key_id.clone(),
                source,
            })
    }
}

/// Checks many signatures at once, at half the price of one after another. `false` says that some do not hold, not which.
///
/// The equation of a batch lets through, one time in eight, what [`PublicKey::verify`] calls no signature and only the
/// key's owner can make: a good signature with a point of small order added. So a batch is for lines that a checkpoint
/// vouches for as well.
pub(crate) fn verify_batch(messages: &[&[u8]], signatures: &[[u8; 64]], keys: &[&PublicKey]) -> bool {
    let signatures: Vec<_> = signatures.iter().map(Signature::from_bytes).collect();
    let keys: Vec<_> = keys.iter().map(|key| key.key).collect();
    ed25519_dalek::verify_batch(messages, &signatures, &keys).is_ok()
}

/// Reads a signature from base64, as [`PublicKey::verify`] does.
pub(crate) fn signature_bytes(signature: &str) -> Result<[u8; 64], SignatureError> {
    let bytes = STANDARD
        .decode(signature)
        .map_err(|source| SignatureError::Base64 { source })?;
    let found = bytes.len();
    bytes.try_into().map_err(|_| SignatureError::Length { found })
}

/// From when on a key's signatures do not count, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub reason: String,
    /// What is dated from then on does not count.
    pub from: Timestamp,
}

/// The keys an auditor trusts, by key id, and which of them are revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyRing {
    keys: BTreeMap<String, PublicKey>,
    revoked: BTreeMap<String, Revocation>,
    /// Which key passed on to which, and when, of all trails that were followed.
    rotations: BTreeMap<String, (String, Timestamp)>,
}

impl KeyRing {
    /// A ring of these keys. [`KeyRing::follow`](Self::follow) adds those that they lead to.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        keys.into_iter().collect()
    }

    /// The key with this id, if it is trusted.
    pub fn get(&self, key_id: &str) -> Option<&PublicKey> {
        self.keys.get(key_id)
    }

    /// Whether and from when on a trusted key is revoked.
    pub fn revocation(&self, key_id: &str) -> Option<&Revocation> {
        self.revoked.get(key_id)
    }

    /// When a key passed on to the next, if it did.
    pub fn passed_on_at(&self, key_id: &str) -> Option<Timestamp> {
        self.rotations.get(key_id).map(|(_, at)| *at)
    }

    /// Notes that a key passed on. `false` where it, or the next one, stands in another rotation.
    pub(crate) fn pass_on(&mut self, previous: &str, next: &str, at: Timestamp) -> bool {
        match self.rotations.get(previous) {
            Some((known, _)) => known == next,
            None => {
                let taken = self.rotations.values().any(|(known, _)| known == next);
                let fits = previous != next && !taken;
                if fits {
                    self.rotations.insert(previous.to_owned(), (next.to_owned(), at));
                }
                fits
            }
        }
    }

    /// The trusted key ids, in order.
    pub fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// The trusted keys, in the order of their ids.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.values()
    }

    /// Trusts one more key.
    pub(crate) fn add(&mut self, key: PublicKey) {
        self.keys.insert(key.key_id.clone(), key);
    }

    /// Revokes a key; of two revocations the one from the earlier time holds.
    pub(crate) fn revoke(&mut self, key_id: &str, revocation: Revocation) {
        match self.revoked.get(key_id) {
            Some(known) if known.from <= revocation.from => {}
            _ => drop(self.revoked.insert(key_id.to_owned(), revocation)),
        }
    }
}

impl FromIterator<PublicKey> for KeyRing {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self {
            keys: keys.into_iter().map(|key| (key.key_id.clone(), key)).collect(),
            ..Self::default()
        }
    }
}

impl From<PublicKey> for KeyRing {
    fn from(key: PublicKey) -> Self {
        Self::new([key])
    }
}

fn key_id(key: &VerifyingKey) -> String {
    let mut id = sha256_hex(key.as_bytes());
    id.truncate(KEY_ID_DIGITS);
    id
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_pem() {
        let signer = Signer::generate([7; 32]);
        let again = Signer::from_pem(&signer.to_pem().unwrap()).unwrap();
        assert_eq!(again.public_key(), signer.public_key());
        let public = PublicKey::from_pem(&signer.public_key().to_pem().unwrap()).unwrap();
        assert_eq!(public, signer.public_key());
        public.verify(b"bytes", &again.sign(b"bytes")).unwrap();
    }

    /// RFC 8410 section 10.1 and 10.3: the same key with and without its public half, and its SPKI form.
    #[test]
    fn rfc_8410_examples_are_read() {
        let private = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
            MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
        let signer = Signer::from_pem(private).unwrap();
        assert_eq!(signer.public_key(), PublicKey::from_pem(public).unwrap());
        assert_eq!(signer.to_pem().unwrap(), private);
        assert_eq!(signer.public_key().to_pem().unwrap(), public);
        assert_eq!(signer.key_id().len(), KEY_ID_DIGITS);
    }

    #[test]
    fn debug_hides_the_secret() {
        let signer = Signer::generate([0xab; 32]);
        let shown = format!("{signer:?}");
        assert_eq!(shown, format!("Signer {{ key_id: {:?}, .. }}", signer.key_id()));
    }

    #[test]
    fn wrong_texts_are_refused() {
        assert!(matches!(
            Signer::from_pem("not pem"),
            Err(KeyError::Private { .. })
        ));
        assert!(matches!(PublicKey::from_pem(""), Err(KeyError::Public { .. })));
        // The identity point: every signature (R = S·B, S) over every message would pass a lax check.
        let mut spki = hex::decode("302a300506032b6570032100").unwrap();
        spki.extend([1].into_iter().chain([0; 31]));
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(spki)
        );
        assert!(matches!(PublicKey::from_pem(&pem), Err(KeyError::Weak { .. })));
    }

    #[track_caller]
    fn check_refused(signature: &str, expected: &str) {
        let key = Signer::generate([1; 32]).public_key();
        let message = key
            .verify(b"bytes", signature)
            .expect_err("a wrong signature")
            .to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn wrong_signatures_are_refused() {
        let good = Signer::generate([1; 32]).sign(b"bytes");
        check_refused("", "0 bytes");
        check_refused("????", "not standard base64");
        check_refused(good.trim_end_matches('='), "not standard base64");
        check_refused(&Signer::generate([2; 32]).sign(b"bytes"), "was not made by key");
        check_refused(&Signer::generate([1; 32]).sign(b"other"), "was not made by key");
    }
}
