//! Every environment variable the product reads, by name, once, at start.

use std::env;

/// A variable that is missing or not of its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The variable is not set, or empty.
    #[error(
        "environment variable {0} is missing: set it (infra/template.yaml does, and `make run` prints a file that does)"
    )]
    Missing(&'static str),
}

/// Reads a variable that must be there.
///
/// # Errors
/// [`ConfigError::Missing`] when it is not set or empty.
pub fn required(name: &'static str) -> Result<String, ConfigError> {
    optional(name).ok_or(ConfigError::Missing(name))
}

/// Reads a variable that may be absent.
#[must_use]
pub fn optional(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

macro_rules! variables {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
    };
}

variables! {
    /// Where S3-compatible and other endpoints are, when not at AWS.
    AWS_ENDPOINT_URL = "AWS_ENDPOINT_URL";
    /// Table of tenants, heads, actions and deliveries.
    TENANTS_TABLE = "TENANTS_TABLE";
    /// Table of ledgers.
    RECEIPTS_TABLE = "RECEIPTS_TABLE";
    /// Bucket of archives and the spool.
    AUDIT_BUCKET = "AUDIT_BUCKET";
    /// Bucket of enforcers and their index.
    REGISTRY_BUCKET = "REGISTRY_BUCKET";
    /// Bucket of the control object.
    CONTROL_BUCKET = "CONTROL_BUCKET";
    /// Secret with the Ed25519 key that signs receipts.
    SIGNING_KEY_SECRET_ID = "SIGNING_KEY_SECRET_ID";
    /// Secret shared with Standard Webhooks senders.
    STANDARD_WEBHOOK_SECRET_ID = "STANDARD_WEBHOOK_SECRET_ID";
    /// Secret shared with GitHub.
    GITHUB_WEBHOOK_SECRET_ID = "GITHUB_WEBHOOK_SECRET_ID";
    /// Secret shared with the action handler.
    HANDLER_SECRET_ID = "HANDLER_SECRET_ID";
    /// Base of the action handler's address; a policy adds the path.
    HANDLER_BASE_URL = "HANDLER_BASE_URL";
    /// First part of every tenant queue's name.
    QUEUE_PREFIX = "QUEUE_PREFIX";
    /// ARN of the governor, target of every tenant's mapping.
    GOVERNOR_FUNCTION_ARN = "GOVERNOR_FUNCTION_ARN";
    /// Queue that drives decommissioning.
    DECOMMISSION_QUEUE_URL = "DECOMMISSION_QUEUE_URL";
    /// Name of the policy-upgrade function.
    POLICY_UPGRADE_FUNCTION = "POLICY_UPGRADE_FUNCTION";
}

/// Names of the parts every function shares.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Table of tenants, heads, actions and deliveries.
    pub tenants_table: String,
    /// Table of ledgers.
    pub receipts_table: String,
    /// Secret with the signing key.
    pub signing_key_secret: String,
}

impl Stack {
    /// Reads the shared names.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] naming the first variable that is not set.
    pub fn from_env() -> Result<Self, ConfigError> {
        Ok(Self {
            tenants_table: required(TENANTS_TABLE)?,
            receipts_table: required(RECEIPTS_TABLE)?,
            signing_key_secret: required(SIGNING_KEY_SECRET_ID)?,
        })
    }
}
