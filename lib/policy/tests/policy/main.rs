//! What lib/policy promises, seen from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

// The name the rest of the workspace knows it by.
extern crate governor_policy as policy;

mod compile;
mod enforcer;
mod ontology;
mod upgrade;

use policy::{Compiled, Enforcer};

pub(crate) const PROFESSIONAL: &str =
    include_str!("../../../../policies/marketplace-sku-456/professional.yaml");
pub(crate) const PROFESSIONAL_NEXT: &str =
    include_str!("../../../../policies/marketplace-sku-456/next/professional.yaml");
pub(crate) const BASIC: &str = include_str!("../../../../policies/github-marketplace/basic.yaml");
pub(crate) const PREMIUM: &str = include_str!("../../../../policies/github-marketplace/premium.yaml");

/// Every kind of entry and condition at once.
pub(crate) const RICH: &str = include_str!("rich.yaml");

#[track_caller]
pub(crate) fn compiled(yaml: &str) -> Compiled {
    policy::compile(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[track_caller]
pub(crate) fn enforcer(yaml: &str) -> Enforcer {
    Enforcer::load(&compiled(yaml).bytes).unwrap()
}

/// The policy with one passage replaced, which must be there.
#[track_caller]
pub(crate) fn edited(yaml: &str, from: &str, to: &str) -> String {
    assert!(yaml.contains(from), "{from:?} is not in the policy");
    yaml.replacen(from, to, 1)
}
