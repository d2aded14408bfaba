//! Webhooks: is this delivery authentic, and what does it say?
//!
//! [`signature`] answers the first question over raw bytes; only its [`signature::Verified`] can be parsed, so nothing
//! unverified is ever looked into. [`payload`] answers the second.

pub mod payload;
pub mod signature;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Largest webhook body accepted, in bytes (256 KiB).
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// Who posts webhooks, and by which convention they sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// Any sender that follows the Standard Webhooks specification.
    Standard,
    /// GitHub Marketplace.
    Github,
}

impl Provider {
    /// The name used in keys, logs and receipts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Github => "github",
        }
    }
}

/// Which delivery this is: the same delivery, however often repeated, has the same identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    /// Who sent it.
    pub provider: Provider,
    /// The sender's id of the delivery.
    pub id: String,
    /// SHA-256 of the body in lower hex: the same id with another body is a conflict.
    pub body_sha256: String,
}

impl DeliveryId {
    /// Identity of a delivery with this body.
    #[must_use]
    pub fn new(provider: Provider, id: &str, body: &[u8]) -> Self {
        Self {
            provider,
            id: id.to_owned(),
            body_sha256: hex::encode(Sha256::digest(body)),
        }
    }

    /// The text that tells one delivery from another of any provider.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}#{}", self.provider.name(), self.id)
    }
}
