//! The compiler μ: ontology in, bundle out.
//!
//! A bundle is the canonical JSON (RFC 8785) of [`Bundle`] and its name is the SHA-256 of those bytes, so the same
//! ontology compiles to the same name wherever and whenever it is compiled.

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::cedar::{self, CedarError};
use crate::ontology::{ActionSpec, Alias, Isolation, Ontology, OntologyError, Quota};
use crate::sha256_hex;

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
    /// The SKU.
    pub sku_id: String,
    /// The plan within the SKU.
    pub plan_type: String,
    /// Version of the policy.
    pub version: Version,
    /// [`Ontology::hash`] of what it was compiled from.
    pub ontology_hash: String,
    /// What marketplaces call the plan, sorted.
    pub aliases: Vec<Alias>,
    /// Whether tenants share tables.
    pub isolation: Isolation,
    /// What a tenant may use.
    pub quota: Quota,
    /// The actions, sorted by template.
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
    /// For people: why it stands.
    pub description: String,
    /// Templates it decides on, sorted.
    pub actions: Vec<String>,
    /// Cedar policy text.
    pub text: String,
}

/// What [`compile`](compile()) makes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compiled {
    /// The bundle.
    pub bundle: Bundle,
    /// Its canonical JSON; what is stored.
    pub bytes: Vec<u8>,
    /// Lower-case hex SHA-256 of the bytes: the policy hash of receipts and signals.
    pub hash: String,
    /// [`Ontology::hash`] of what was compiled.
    pub ontology_hash: String,
}

/// A policy did not compile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The policy file was refused.
    #[error(transparent)]
    Ontology(#[from] OntologyError),
    /// The generated Cedar failed its own check. A defect of the compiler, told instead of shipped.
    #[error("compiled policy was refused: {0}")]
    Cedar(#[from] CedarError),
    /// The bundle could not be written as canonical JSON.
    #[error("writing the bundle as canonical JSON: {0}")]
    Canonical(#[source] serde_json::Error),
    /// The bundle is larger than [`MAX_BUNDLE_BYTES`].
    #[error("compiled policy of {bytes} bytes is larger than the {limit} an enforcer reads")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

/// Compiles a policy file to a bundle whose policies are strictly valid against its schema.
///
/// # Errors
/// When the file is refused, the bundle would be too large, or the generated Cedar does not hold.
pub fn compile(yaml: &str) -> Result<Compiled, CompileError> {
    let ontology = Ontology::parse(yaml)?;
    let ontology_hash = ontology.hash()?;
    let cedar_schema = cedar::schema_text(&ontology.actions);
    let cedar_policies = cedar::policy_texts(&ontology);
    cedar::parse(&cedar_schema, &cedar_policies)?;

    let Ontology {
        sku_id,
        plan_type,
        version,
        aliases,
        isolation,
        quota,
        actions,
        rules: _,
    } = ontology;
    let bundle = Bundle {
        format: BUNDLE_FORMAT,
        compiler: COMPILER_VERSION.to_owned(),
        sku_id,
        plan_type,
        version,
        ontology_hash: ontology_hash.clone(),
        aliases,
        isolation,
        quota,
        actions,
        cedar_schema,
        cedar_policies,
    };
    let bytes = serde_json_canonicalizer::to_vec(&bundle).map_err(CompileError::Canonical)?;
    if bytes.len() > MAX_BUNDLE_BYTES {
        return Err(CompileError::TooLarge {
            bytes: bytes.len(),
            limit: MAX_BUNDLE_BYTES,
        });
    }
    let hash = sha256_hex(&bytes);
    Ok(Compiled {
        bundle,
        bytes,
        hash,
        ontology_hash,
    })
}
