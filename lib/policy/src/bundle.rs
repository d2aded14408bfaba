//! The bundle A: what the compiler writes and an enforcer reads.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::ontology::{ActionSpec, Alias, Isolation, Quota};

/// Version of the bundle's shape; an enforcer loads this one only.
pub const BUNDLE_FORMAT: u32 = 1;
/// Version of the compiler, recorded in every bundle.
pub const COMPILER_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Largest bundle, in bytes: the compiler writes none larger, the enforcer reads none.
pub const MAX_BUNDLE_BYTES: usize = 1024 * 1024;

/// The enforcer A = μ(O) as stored: everything a governor needs to decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// [`BUNDLE_FORMAT`].
    pub format: u32,
    /// Version of the compiler that wrote it.
    pub compiler: String,
    pub sku_id: String,
    pub plan_type: String,
    pub version: Version,
    /// Hash of the ontology it was compiled from.
    pub ontology_hash: String,
    pub aliases: Vec<Alias>,
    pub isolation: Isolation,
    pub quota: Quota,
    /// Sorted by template.
    pub actions: Vec<ActionSpec>,
    /// The schema Σ, as Cedar schema text.
    pub cedar_schema: String,
    /// The policies: each action's `permit`, then each rule's `forbid`.
    pub cedar_policies: Vec<PolicyText>,
}

/// One Cedar policy of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyText {
    /// Its id, also its `@id`: `permit:<template>` or the approval rule's own.
    pub id: String,
    pub description: String,
    /// Templates it decides on, sorted.
    pub actions: Vec<String>,
    pub text: String,
}
