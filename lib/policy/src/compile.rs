//! The compiler μ: ontology in, bundle out.
//!
//! A bundle is the canonical JSON (RFC 8785) of [`Bundle`] and its name is the SHA-256 of those bytes, so the same
//! ontology compiles to the same name wherever and whenever it is compiled.

use crate::bundle::{BUNDLE_FORMAT, Bundle, COMPILER_VERSION, MAX_BUNDLE_BYTES};
use crate::canonical::sha256_hex;
use crate::cedar::{self, CedarError};
use crate::ontology::{Ontology, OntologyError};

/// What [`compile`](compile()) makes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compiled {
    pub bundle: Bundle,
    /// Its canonical JSON; what is stored.
    pub bytes: Vec<u8>,
    /// Lower-case hex SHA-256 of the bytes: the policy hash of receipts and signals.
    pub hash: String,
    /// [`Ontology::hash`] of the policy file.
    pub ontology_hash: String,
}

/// A policy did not compile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    #[error(transparent)]
    Ontology(#[from] OntologyError),
    /// The generated Cedar failed its own check: a defect of the compiler.
    #[error("compiled policy is not valid: {0}")]
    Cedar(#[from] CedarError),
    #[error("cannot write the bundle as canonical JSON: {0}")]
    Canonical(#[source] serde_json::Error),
    #[error("compiled policy of {bytes} bytes is larger than the {limit} an enforcer reads")]
    TooLarge { bytes: usize, limit: usize },
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
