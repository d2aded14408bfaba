//! Policy: from what compliance writes to what a governor enforces.
//!
//! ```text
//! ontology O (YAML)  ──compile (μ)──▶  bundle A (canonical JSON, named by its SHA-256)  ──load──▶  Enforcer::decide
//! ```
//!
//! - [`ontology`]: the policy file, read strictly and brought to one normal form;
//! - [`compile`](mod@compile): the [`bundle`] with its Cedar schema Σ and policies, checked against each other;
//! - [`enforcer`]: loads a bundle once, then answers each request for an action with a [`decision`];
//! - [`upgrade`]: whether one bundle may take another's place.
//!
//! Everything here is a function of its arguments: no clock, no environment, no input or output.

pub mod bundle;
mod canonical;
mod cedar;
pub mod compile;
pub mod decision;
mod document;
pub mod enforcer;
pub mod ontology;
pub mod upgrade;
mod yaml;

pub use bundle::{Bundle, PolicyText};
pub use canonical::MAX_INTEGER;
pub use cedar::CedarError;
pub use compile::{CompileError, Compiled, compile};
pub use decision::{Decision, is_permit};
pub use enforcer::{BundleError, Enforcer};
pub use ontology::{
    ActionSpec, Alias, ApprovalRule, Condition, FieldError, Isolation, Literal, Ontology, OntologyError,
    ParameterSpec, ProviderName, Quota, Requirement, Tier,
};
pub use upgrade::{Compatibility, CompatibilityError, QuotaChange, UpgradeSummary, check_upgrade};
