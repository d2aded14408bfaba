//! The ontology O: what compliance writes, in the one form the compiler reads.
//!
//! [`Ontology::parse`] reads the YAML strictly (unknown and duplicate keys are errors), checks every name, limit and
//! reference, and sorts what has no order of its own. Two files that mean the same give equal ontologies.

use std::collections::BTreeMap;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::canonical::sha256_hex;
use crate::yaml;

/// Largest policy file accepted, in bytes.
pub const MAX_ONTOLOGY_BYTES: usize = 256 * 1024;
/// Most actions, rules or aliases in one policy.
pub const MAX_ENTRIES: usize = 100;
/// Most parameters of one action, and most choices of one `one_of`.
pub const MAX_PARAMETERS: usize = 64;
/// Longest a string parameter may be, in characters, where the policy names no `max_length`.
pub const DEFAULT_MAX_LENGTH: u32 = 256;
/// Largest `max_length` a policy may name, in characters.
pub const LARGEST_MAX_LENGTH: u32 = 4096;

/// One plan of one SKU: its quota, the actions it may run and the rules on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Ontology {
    /// The SKU, `[a-z][a-z0-9-]{0,63}`.
    pub sku_id: String,
    /// The plan within the SKU, `[a-z][a-z0-9-]{0,63}`.
    pub plan_type: String,
    /// Version of the policy; every change that is deployed raises it.
    pub version: Version,
    /// What marketplaces call this plan, sorted.
    pub aliases: Vec<Alias>,
    pub isolation: Isolation,
    pub quota: Quota,
    /// Sorted by template.
    pub actions: Vec<ActionSpec>,
    /// Sorted by id.
    pub rules: Vec<ApprovalRule>,
}

/// A marketplace's own name for a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    pub provider: ProviderName,
    /// The plan's id there, `[A-Za-z0-9._-]{1,64}`.
    pub plan_id: String,
}

/// A marketplace's name, `[a-z][a-z0-9-]{0,63}`. Whether there is such a marketplace is for the table of providers to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ProviderName(String);

impl ProviderName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ProviderName {
    type Error = FieldError;

    fn try_from(value: String) -> Result<Self, FieldError> {
        if is_name(&value, b'-') {
            Ok(Self(value))
        } else {
            Err(FieldError::Name(value))
        }
    }
}

/// Whether a policy may name a template so: `[a-z]`, then up to 63 of `[a-z0-9-]`.
#[must_use]
pub fn is_template_name(text: &str) -> bool {
    is_name(text, b'-')
}

/// `[a-z]`, then up to 63 of `[a-z0-9]` and the given joiner.
pub(crate) fn is_name(text: &str, joiner: u8) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == joiner)
}

/// Where a tenant's actions and receipts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In tables shared with other tenants.
    Pool,
    /// In tables of the tenant's own.
    Dedicated,
}

/// What a tenant may use; both limits are 1 to [`MAX_INTEGER`](crate::canonical::MAX_INTEGER).
///
/// Tenants are stored with it, so a field that a later version adds is read past. Files and bundles with such a field
/// are refused by their own readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Actions started in one calendar month.
    pub monthly_actions: u64,
    pub concurrent_actions: u64,
}

/// How much an action can break, and so how much trust running it alone takes.
///
/// The operator's rollout tier admits actions up to that tier; what is above goes to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub enum Tier {
    /// 0: observes, changes nothing.
    Observe,
    /// 1: changes something its rollback restores.
    Reversible,
    /// 2: changes something a rollback may not restore fully; runs only on a deterministic match.
    Deterministic,
}

/// An action the plan may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionSpec {
    /// The name signals ask for, `[a-z][a-z0-9-]{0,63}`.
    pub template: String,
    pub description: String,
    pub tier: Tier,
    /// Path below the handler's base URL that runs it.
    pub handler: String,
    /// Path below the handler's base URL that undoes it; accepts "never happened".
    pub rollback: String,
    /// Parameters by name, `[a-z][a-z0-9_]{0,63}`.
    pub parameters: BTreeMap<String, ParameterSpec>,
}

/// Type and bounds of one parameter; all bounds are inclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum ParameterSpec {
    Integer {
        required: bool,
        minimum: i64,
        maximum: i64,
    },
    String {
        required: bool,
        /// Longest text, in characters (Unicode scalar values).
        max_length: u32,
        /// The only texts accepted, sorted; any text where absent.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        one_of: Option<Vec<String>>,
    },
    Boolean {
        required: bool,
    },
}

/// A rule a request must meet besides the parameters' own bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ApprovalRule {
    /// Its name in decisions and receipts, `[a-z][a-z0-9-]{0,63}`.
    pub id: String,
    pub description: String,
    /// Templates it applies to, sorted.
    pub actions: Vec<String>,
    /// Conditions that must all hold, sorted.
    pub require: Vec<Condition>,
}

/// One condition on one parameter. A request without the parameter does not meet it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// The parameter; every action of the rule declares it.
    pub parameter: String,
    #[serde(flatten)]
    pub requirement: Requirement,
}

/// What a condition asks of a parameter's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    AtMost(i64),
    AtLeast(i64),
    Equals(Literal),
    /// One of these values, sorted, all of one type.
    OneOf(Vec<Literal>),
}

/// A value written in a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a whole number, a text, or true or false")]
pub enum Literal {
    Boolean(bool),
    Integer(i64),
    String(String),
}

/// A policy file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OntologyError {
    #[error("policy of {bytes} bytes is larger than the {limit} allowed")]
    TooLarge { bytes: usize, limit: usize },
    /// Not YAML of the expected shape; the message carries line and column.
    #[error("cannot read the policy: {}", yaml::explained(.0))]
    Yaml(Box<serde_saphyr::Error>),
    #[error("{place}: {problem}")]
    Field {
        /// Path of the field, such as `actions[0].parameters.replicas.minimum`; lists count from 0.
        place: String,
        problem: FieldError,
    },
    #[error("cannot write the ontology as canonical JSON: {0}")]
    Canonical(#[source] serde_json::Error),
}

/// What is wrong with one field of a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    #[error("{0:?} is not a name: a lower-case letter, then up to 63 of a-z, 0-9 and -")]
    Name(String),
    #[error("{0:?} is not a parameter name: a lower-case letter, then up to 63 of a-z, 0-9 and _")]
    ParameterName(String),
    #[error("{0:?} is reserved for the enforcer's own decisions")]
    Reserved(String),
    #[error("{value:?} is not a semantic version such as 1.4.0: {reason}")]
    Version { value: String, reason: String },
    #[error("{0:?} is not a plan id: 1 to 64 of A-Z, a-z, 0-9, ., _ and -")]
    PlanId(String),
    #[error("{0} is listed twice")]
    Duplicate(String),
    #[error("is empty: add an entry or leave the field out")]
    Empty,
    #[error("has {count} entries, more than the {limit} allowed")]
    TooMany { count: usize, limit: usize },
    /// What other JSON readers would round is out of every range.
    #[error("{value} is out of range: {minimum} to {maximum}")]
    OutOfRange {
        value: String,
        minimum: i64,
        maximum: i64,
    },
    #[error("{0} is not a tier: 0 observes, 1 is reversible, 2 needs a deterministic match")]
    Tier(u64),
    #[error("{0:?} is not a path such as /actions/restart: segments of letters, digits, . _ - after each /")]
    Path(String),
    #[error("is the handler's own path; a rollback needs a path of its own")]
    RollbackIsHandler,
    #[error("must be 1 to {limit} characters, none of them control characters")]
    Text { limit: usize },
    #[error("does not apply to {0}")]
    DoesNotApply(&'static str),
    #[error("minimum {minimum} is above maximum {maximum}")]
    Range { minimum: i64, maximum: i64 },
    #[error("no action has the template {0:?}")]
    UnknownTemplate(String),
    #[error("action {template:?} has no parameter {parameter:?}")]
    UnknownParameter { template: String, parameter: String },
    #[error("needs exactly one of at_most, at_least, equals and one_of, but has {0}")]
    Requirements(usize),
    /// A requirement its parameter cannot be compared with, or can never meet.
    #[error("parameter {parameter:?} of action {template:?} does not accept {value}: it must be {accepts}")]
    Impossible {
        value: String,
        parameter: String,
        template: String,
        accepts: String,
    },
}

impl Ontology {
    /// Lower-case hex SHA-256 of the ontology's canonical JSON (RFC 8785): equal for files that mean the same.
    ///
    /// # Errors
    /// Only if the ontology cannot be written as JSON.
    pub fn hash(&self) -> Result<String, OntologyError> {
        let bytes = serde_json_canonicalizer::to_vec(self).map_err(OntologyError::Canonical)?;
        Ok(sha256_hex(&bytes))
    }
}

impl Tier {
    /// The tier as policies write it: 0, 1 or 2.
    #[must_use]
    pub fn level(self) -> u64 {
        match self {
            Self::Observe => 0,
            Self::Reversible => 1,
            Self::Deterministic => 2,
        }
    }
}

impl TryFrom<u64> for Tier {
    type Error = FieldError;

    fn try_from(level: u64) -> Result<Self, FieldError> {
        match level {
            0 => Ok(Self::Observe),
            1 => Ok(Self::Reversible),
            2 => Ok(Self::Deterministic),
            level => Err(FieldError::Tier(level)),
        }
    }
}

impl From<Tier> for u64 {
    fn from(tier: Tier) -> Self {
        tier.level()
    }
}

impl ParameterSpec {
    /// Whether a request must carry the parameter.
    #[must_use]
    pub fn required(&self) -> bool {
        match self {
            Self::Integer { required, .. } | Self::String { required, .. } | Self::Boolean { required } => {
                *required
            }
        }
    }

    /// Whether a value is of the type and within the bounds.
    #[must_use]
    pub fn accepts(&self, value: &Literal) -> bool {
        match (self, value) {
            (Self::Integer { minimum, maximum, .. }, Literal::Integer(value)) => {
                (minimum..=maximum).contains(&value)
            }
            (
                Self::String {
                    one_of: Some(choices),
                    ..
                },
                Literal::String(value),
            ) => choices.contains(value),
            (Self::String { max_length, .. }, Literal::String(value)) => within_length(value, *max_length),
            (Self::Boolean { .. }, Literal::Boolean(_)) => true,
            _ => false,
        }
    }
}

/// Whether a text has at most so many characters.
pub(crate) fn within_length(text: &str, limit: u32) -> bool {
    // Counting stops one past the limit, so a huge text costs no more than a long one.
    usize::try_from(limit).is_ok_and(|limit| text.chars().take(limit.saturating_add(1)).count() <= limit)
}

impl std::fmt::Display for ParameterSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer { minimum, maximum, .. } => write!(f, "an integer from {minimum} to {maximum}"),
            Self::String {
                one_of: Some(choices),
                ..
            } => write!(f, "one of {choices:?}"),
            Self::String { max_length, .. } => {
                write!(f, "a string of at most {max_length} characters")
            }
            Self::Boolean { .. } => f.write_str("true or false"),
        }
    }
}

impl std::fmt::Display for Literal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::String(value) => write!(f, "{value:?}"),
        }
    }
}

impl Isolation {
    /// As policies write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Dedicated => "dedicated",
        }
    }
}

impl std::fmt::Display for Isolation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
