//! Policy: from what compliance writes to what a governor enforces.
//!
//! ```text
//! ontology O (YAML)  ──compile (μ)──▶  bundle A (canonical JSON, named by its SHA-256)  ──load──▶  Enforcer::decide
//! ```
//!
//! - [`ontology`]: the policy file, read strictly and brought to one normal form;
//! - [`compile`](mod@compile): the bundle with its Cedar schema Σ and policies, checked against each other;
//! - [`enforcer`]: loads a bundle once, then answers each request for an action;
//! - [`upgrade`]: whether one bundle may take another's place.
//!
//! Everything here is a function of its arguments: no clock, no environment, no input or output.

mod cedar;
pub mod compile;
mod document;
pub mod enforcer;
pub mod ontology;
pub mod upgrade;

pub use cedar::CedarError;
pub use compile::{Bundle, CompileError, Compiled, PolicyText, compile};
pub use enforcer::{BundleError, Decision, Enforcer};
pub use ontology::{
    ActionSpec, Alias, ApprovalRule, Condition, FieldError, Isolation, Literal, Ontology, OntologyError,
    ParameterSpec, Provider, Quota, Requirement, Tier,
};
pub use upgrade::{Compatibility, QuotaChange, UpgradeRefused, UpgradeSummary, check_upgrade};

use sha2::{Digest, Sha256};

/// Largest integer that survives every JSON reader unchanged: 2^53 − 1 (RFC 8785 section 3.2.2.3, RFC 7493).
pub const MAX_INTEGER: i64 = 9_007_199_254_740_991;

/// Lower-case hex SHA-256, the name of every bundle.
fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
