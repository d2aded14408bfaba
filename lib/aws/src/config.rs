//! Every environment variable the product reads, by name, once, at start.

use std::env;
use std::time::Duration;

use domain::names::MAX_PREFIX;
use domain::scale::{Costs, Usd};

use crate::handler::{self, NetworksError, Target, TargetError};

/// A variable that is missing or not of its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The variable is not set, or empty.
    #[error(
        "environment variable {0} is missing: it is among the stack's outputs (docs/deploying.md says how to set them all), and \
         `. target/local-cloud/env.sh` sets it for a local stack"
    )]
    Missing(&'static str),
    /// The variable has a value that makes no sense.
    #[error("environment variable {name} is {found:?}, expected {expected}")]
    Invalid {
        name: &'static str,
        expected: &'static str,
        found: String,
    },
    /// The variable is no list of networks.
    #[error("environment variable {name} lists something else than networks: {source}")]
    Networks {
        name: &'static str,
        source: NetworksError,
    },
    /// The variable names an address that may not be called.
    #[error("environment variable {name} is refused: {source}")]
    Target {
        name: &'static str,
        /// Why; without the address, which may hold a password.
        source: TargetError,
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

/// Whom to trust that an endpoint is who it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roots {
    /// Amazon's own roots.
    Amazon,
    /// Whatever this machine trusts.
    Machine,
}

/// How regions begin where AWS's endpoints may have other roots: China, the isolated ones, the European Sovereign Cloud.
const OTHER_ROOTS: [&str; 4] = ["cn-", "us-iso", "eu-iso", "eusc-"];

/// Amazon's roots where a Lambda function calls AWS itself; the machine's for everything else: on a person's machine, at an
/// endpoint elsewhere that is https (a profile may name one, too), in regions that are apart, or where `SSL_CERT_FILE` or
/// `SSL_CERT_DIR` say whom to trust.
#[must_use]
pub fn roots() -> Roots {
    roots_of(
        env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    )
}

fn roots_of(variables: impl Iterator<Item = (String, String)>) -> Roots {
    let mut in_lambda = false;
    for (name, value) in variables.filter(|(_, value)| !value.is_empty()) {
        let elsewhere = match name.as_str() {
            "AWS_LAMBDA_FUNCTION_NAME" => {
                in_lambda = true;
                false
            }
            "SSL_CERT_FILE" | "SSL_CERT_DIR" | "AWS_CONFIG_FILE" | "AWS_PROFILE" => true,
            "AWS_REGION" => OTHER_ROOTS.iter().any(|region| value.starts_with(region)),
            name => name.starts_with(AWS_ENDPOINT_URL) && !value.starts_with("http://"),
        };
        if elsewhere {
            return Roots::Machine;
        }
    }
    match in_lambda {
        true => Roots::Amazon,
        false => Roots::Machine,
    }
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

/// How long evidence can be kept under lock, in days: a century.
pub const RETENTION_DAY_RANGE: std::ops::RangeInclusive<u32> = 1..=36_500;

/// What the names of tenants' queues and tables begin with: the stack's name.
///
/// # Errors
/// [`ConfigError`] when it is not set, or so long that SQS would refuse the names.
pub fn queue_prefix() -> Result<String, ConfigError> {
    check_prefix(required(QUEUE_PREFIX)?)
}

fn check_prefix(found: String) -> Result<String, ConfigError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if found.len() <= MAX_PREFIX && found.bytes().all(legal) {
        return Ok(found);
    }
    Err(ConfigError::Invalid {
        name: QUEUE_PREFIX,
        expected: "a stack name of at most 49 letters, digits and hyphens",
        found,
    })
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
        Ok(days) if RETENTION_DAY_RANGE.contains(&days) => Ok(days),
        _ => Err(ConfigError::Invalid {
            name: RETENTION_DAYS,
            expected: "a number of days from 1 to 36500",
            found,
        }),
    }
}

/// Where the action handler is, and the networks it may be in besides the public internet.
///
/// # Errors
/// [`ConfigError`] when no address is set, one of the networks is none, or the address may not be called: it must be https,
/// or http with a loopback address, and a literal address must be public or in one of the networks.
pub fn handler_target() -> Result<Target, ConfigError> {
    let networks = optional(HANDLER_NETWORKS).unwrap_or_default();
    check_target(&required(HANDLER_BASE_URL)?, &networks)
}

fn check_target(base_url: &str, networks: &str) -> Result<Target, ConfigError> {
    let networks = networks.parse().map_err(|source| ConfigError::Networks {
        name: HANDLER_NETWORKS,
        source,
    })?;
    Target::new(base_url, networks).map_err(|source| ConfigError::Target {
        name: HANDLER_BASE_URL,
        source,
    })
}

/// How long one rollback call may take.
///
/// # Errors
/// [`ConfigError`] when it is not set, or would not fit into an invocation beside the call before it.
pub fn rollback_budget() -> Result<Duration, ConfigError> {
    check_rollback_budget(required(ROLLBACK_BUDGET_MS)?)
}

fn check_rollback_budget(found: String) -> Result<Duration, ConfigError> {
    match found.parse() {
        Ok(ms) if handler::ROLLBACK_BUDGET_MS.contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(ConfigError::Invalid {
            name: ROLLBACK_BUDGET_MS,
            expected: "milliseconds from 100 to 10000",
            found,
        }),
    }
}

/// What concurrency costs a month, and may cost each tenant.
///
/// # Errors
/// [`ConfigError`] when one of the amounts is not set, or is none.
pub fn concurrency_costs() -> Result<Costs, ConfigError> {
    Ok(Costs {
        per_action: check_amount(CONCURRENCY_COST_USD, required(CONCURRENCY_COST_USD)?)?,
        budget: check_amount(SCALE_BUDGET_USD, required(SCALE_BUDGET_USD)?)?,
    })
}

fn check_amount(name: &'static str, found: String) -> Result<Usd, ConfigError> {
    Usd::parse(&found).map_err(|_| ConfigError::Invalid {
        name,
        expected: "an amount in US dollars such as 1.0950",
        found,
    })
}

macro_rules! variables {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
    };
}

variables! {
    /// Where S3-compatible and other endpoints are, when not at AWS.
    AWS_ENDPOINT_URL = "AWS_ENDPOINT_URL";
    /// There where credentials are handed over as variables.
    AWS_ACCESS_KEY_ID = "AWS_ACCESS_KEY_ID";
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
    /// Secret shared with the action handler.
    HANDLER_SECRET_ID = "HANDLER_SECRET_ID";
    /// Secret that the secrets of accounts' producers are derived from.
    PRODUCER_SECRET_ID = "PRODUCER_SECRET_ID";
    /// Base of the action handler's address; a policy adds the path.
    HANDLER_BASE_URL = "HANDLER_BASE_URL";
    /// Networks, in CIDR notation with commas between, that the action handler may be in besides the public internet.
    HANDLER_NETWORKS = "HANDLER_NETWORKS";
    /// How long one rollback call may take, in milliseconds.
    ROLLBACK_BUDGET_MS = "ROLLBACK_BUDGET_MS";
    /// First part of every tenant queue's name.
    QUEUE_PREFIX = "QUEUE_PREFIX";
    /// ARN of the governor, target of every tenant's mapping.
    GOVERNOR_FUNCTION_ARN = "GOVERNOR_FUNCTION_ARN";
    /// Queue that drives decommissioning.
    DECOMMISSION_QUEUE_URL = "DECOMMISSION_QUEUE_URL";
    /// Name of the entitlement function.
    ENTITLEMENT_FUNCTION = "ENTITLEMENT_FUNCTION";
    /// Name of the function that runs, which Lambda sets.
    AWS_LAMBDA_FUNCTION_NAME = "AWS_LAMBDA_FUNCTION_NAME";
    /// Name of the policy-upgrade function.
    POLICY_UPGRADE_FUNCTION = "POLICY_UPGRADE_FUNCTION";
    /// Name of the checkpoint function.
    CHECKPOINT_FUNCTION = "CHECKPOINT_FUNCTION";
    /// Name of the scale function.
    SCALE_FUNCTION = "SCALE_FUNCTION";
    /// What one action at a time more costs a month, in US dollars.
    CONCURRENCY_COST_USD = "CONCURRENCY_COST_USD";
    /// What a tenant's concurrency above the free part may cost a month, in US dollars.
    SCALE_BUDGET_USD = "SCALE_BUDGET_USD";
    /// First part of the origin of every checkpoint.
    RECEIPTS_DOMAIN = "RECEIPTS_DOMAIN";
    /// Which log events to write: a level, or levels by module such as `info,governor_aws=debug`.
    RUST_LOG = "RUST_LOG";
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
    fn amazons_roots_are_for_functions_that_call_aws() {
        let check = |variables: &[(&str, &str)], expected| {
            let owned = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            assert_eq!(roots_of(owned), expected, "{variables:?}");
        };
        let lambda = ("AWS_LAMBDA_FUNCTION_NAME", "governor");
        check(&[], Roots::Machine);
        check(&[lambda], Roots::Amazon);
        check(&[lambda, ("AWS_REGION", "eu-central-1")], Roots::Amazon);
        for apart in [
            "cn-north-1",
            "us-iso-east-1",
            "us-isob-east-1",
            "eu-isoe-west-1",
            "eusc-de-east-1",
        ] {
            check(&[("AWS_REGION", apart), lambda], Roots::Machine);
        }
        check(&[lambda, ("AWS_REGION", "us-gov-west-1")], Roots::Amazon);
        check(&[lambda, ("AWS_CONFIG_FILE", "/opt/config")], Roots::Machine);
        check(
            &[lambda, ("AWS_ENDPOINT_URL", "http://127.0.0.1:4566")],
            Roots::Amazon,
        );
        check(
            &[lambda, ("AWS_ENDPOINT_URL", "https://cloud.example.com")],
            Roots::Machine,
        );
        check(
            &[lambda, ("AWS_ENDPOINT_URL_S3", "https://s3.example.com")],
            Roots::Machine,
        );
        check(&[lambda, ("AWS_ENDPOINT_URL", "")], Roots::Amazon);
        check(&[lambda, ("SSL_CERT_FILE", "/tmp/roots.pem")], Roots::Machine);
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

    #[test]
    fn a_stack_name_leaves_room_for_a_tenant() {
        for (found, good) in [
            ("marketplace-governor-staging", true),
            (&"a".repeat(MAX_PREFIX), true),
            (&"a".repeat(MAX_PREFIX + 1), false),
            ("marketplace_governor.dev", false),
        ] {
            assert_eq!(check_prefix(found.to_owned()).is_ok(), good, "{found}");
        }
    }

    #[test]
    fn amounts_are_decimals() {
        for (found, good) in [
            ("1.0950", true),
            ("0", true),
            ("1.09501", false),
            ("-1", false),
            ("1,5", false),
        ] {
            let amount = check_amount(SCALE_BUDGET_USD, found.to_owned());
            assert_eq!(amount.is_ok(), good, "{found}");
        }
    }

    #[test]
    fn rollback_budgets_fit_into_an_invocation() {
        for (found, ms) in [
            ("100", Some(100)),
            ("2000", Some(2_000)),
            ("10000", Some(10_000)),
            ("99", None),
            ("10001", None),
            ("0", None),
            ("-1", None),
            ("2s", None),
            ("2000.0", None),
        ] {
            let budget = check_rollback_budget(found.to_owned()).ok();
            assert_eq!(budget, ms.map(Duration::from_millis), "{found}");
        }
    }

    /// The variable is named, so that whoever reads the log knows what to change; a password is not repeated.
    #[test]
    fn a_handler_that_may_not_be_called_is_not_started_with() {
        let https = "https://handlers.example.com";
        assert!(check_target(https, "").is_ok());
        assert!(check_target("http://127.0.0.1:8080", "127.0.0.0/8").is_ok());
        for (base_url, networks, variable) in [
            ("http://handlers.example.com", "", HANDLER_BASE_URL),
            ("https://169.254.169.254/latest", "", HANDLER_BASE_URL),
            ("http://127.0.0.1:8080", "", HANDLER_BASE_URL),
            ("https://ann:hunter2@handlers.example.com", "", HANDLER_BASE_URL),
            (https, "10.0.0.0", HANDLER_NETWORKS),
            (https, "10.0.0.1/8", HANDLER_NETWORKS),
        ] {
            let error = check_target(base_url, networks).unwrap_err().to_string();
            let names = format!("environment variable {variable} ");
            assert!(error.starts_with(&names), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
