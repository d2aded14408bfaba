//! Webhooks: is this delivery authentic, and what does it say?
//!
//! A [`provider::Provider`] answers both in its own way. What it checked over raw bytes is a [`signature::Verified`], and only that
//! can be parsed, so nothing unverified is ever looked into. What it read is an [`event`] in our words.

pub mod event;
pub mod payload;
pub mod provider;
pub mod providers;
pub mod signature;

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
            body_sha256: receipts::sha256_hex(body),
        }
    }

    /// The text that tells one delivery from another of any provider.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}#{}", self.provider, self.id)
    }
}
