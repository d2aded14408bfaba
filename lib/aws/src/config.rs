//! Every environment variable the product reads, by name, once, at start.

use std::env;

use crate::audit;

/// A variable that is missing or not of its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The variable is not set, or empty.
    #[error(
        "environment variable {0} is missing: set it (infra/template.yaml does, and `make run` prints a file that does)"
    )]
    Missing(&'static str),
    /// The variable has a value that makes no sense.
    #[error("environment variable {name} is {found:?}, expected {expected}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
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

/// The name that checkpoints begin with.
///
/// # Errors
/// [`ConfigError`] when it is not set, or can't stand in a checkpoint's origin.
pub fn receipts_domain() -> Result<String, ConfigError> {
    check_domain(required(RECEIPTS_DOMAIN)?)
}

fn check_domain(found: String) -> Result<String, ConfigError> {
    let wrong = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if found.contains(wrong) || found.starts_with('/') || found.ends_with('/') {
        return Err(ConfigError::Invalid {
            name: RECEIPTS_DOMAIN,
            expected: "a name such as governor.example: no space, no `+`, no slash at an end",
            found,
        });
    }
    Ok(found)
}

/// For how many days evidence can't be deleted.
///
/// # Errors
/// [`ConfigError`] when it is not set, or not a number of days that Object Lock is used with.
pub fn retention_days() -> Result<u32, ConfigError> {
    check_days(required(RETENTION_DAYS)?)
}

fn check_days(found: String) -> Result<u32, ConfigError> {
    match found.parse() {
        Ok(days) if audit::RETENTION_DAYS.contains(&days) => Ok(days),
        _ => Err(ConfigError::Invalid {
            name: RETENTION_DAYS,
            expected: "a number of days from 1 to 36500",
            found,
        }),
    }
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
    /// Name of the entitlement function.
    ENTITLEMENT_FUNCTION = "ENTITLEMENT_FUNCTION";
    /// Name of the policy-upgrade function.
    POLICY_UPGRADE_FUNCTION = "POLICY_UPGRADE_FUNCTION";
    /// Name of the checkpoint function.
    CHECKPOINT_FUNCTION = "CHECKPOINT_FUNCTION";
    /// First part of the origin of every checkpoint.
    RECEIPTS_DOMAIN = "RECEIPTS_DOMAIN";
    /// For how many days archives, checkpoints and the key trail can't be deleted by anybody.
    RETENTION_DAYS = "RETENTION_DAYS";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(found: &str, domain: bool, days: Option<u32>) {
        assert_eq!(check_domain(found.to_owned()).is_ok(), domain, "{found:?}");
        assert_eq!(check_days(found.to_owned()).ok(), days, "{found:?}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        check("governor.example", true, None);
        check("governor.example/eu", true, None);
        check("governor.example/", false, None);
        check("/governor", false, None);
        check("a b", false, None);
        check("a+b", false, None);
        check("1", true, Some(1));
        check("2557", true, Some(2557));
        check("36500", true, Some(36_500));
        check("36501", true, None);
        check("0", true, None);
        check("-1", true, None);
        check("7 years", false, None);
    }
}
