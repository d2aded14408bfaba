//! Webhooks: is this delivery authentic, and what does it say?
//!
//! A [`provider::Provider`] answers both in its own way. What it checked over raw bytes is a [`signature::Verified`], and only that
//! can be parsed, so nothing unverified is ever looked into. What it read is an [`event`] in our words.

pub mod event;
pub mod payload;
pub mod provider;
pub mod providers;
pub mod signature;

use sha2::{Digest, Sha256};

/// Largest webhook body accepted, in bytes (256 KiB).
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// Which delivery this is: the same delivery, however often repeated, has the same identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    /// Name of the provider that sent it.
    pub provider: &'static str,
    /// The sender's id of the delivery.
    pub id: String,
    /// SHA-256 of the body in lower hex: the same id with another body is a conflict.
    pub body_sha256: String,
}

impl DeliveryId {
    /// Identity of a delivery with this body.
    #[must_use]
    pub fn new(provider: &'static str, id: &str, body: &[u8]) -> Self {
        Self {
            provider,
            id: id.to_owned(),
            body_sha256: hex_digest(&Sha256::digest(body).into()),
        }
    }

    /// The text that tells one delivery from another of any provider.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}#{}", self.provider, self.id)
    }
}

/// Lower hex of a digest, eight digits at a time: `hex::encode` writes single characters, which shows in the CPU of a
/// webhook.
fn hex_digest(digest: &[u8; 32]) -> String {
    let mut text = Vec::with_capacity(64);
    for word in digest.as_chunks().0 {
        // One nibble to a byte, the first one uppermost.
        let mut nibbles = u64::from(u32::from_be_bytes(*word));
        nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff;
        nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff;
        nibbles = (nibbles | nibbles << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        // Sixes carry out of the nibbles from ten on, whose digits are letters.
        let letters = ((nibbles + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
        let digits = nibbles + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'9' - 1);
        text.extend_from_slice(&digits.to_be_bytes());
    }
    String::from_utf8(text).unwrap_or_else(|_| hex::encode(digest))
}
