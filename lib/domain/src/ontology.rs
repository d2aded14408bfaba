//! Policy files as they are put in force: compiled, with aliases that the table of providers knows.

use policy::{Alias, CompileError, Compiled};

use crate::names;
use crate::webhook::providers::{PROVIDERS, of_name};

/// Most bytes of an object's key in S3: nothing is stored under a longer one.
pub const MAX_KEY_BYTES: usize = 1024;

/// Why a policy file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// An alias names a provider that is not there, or has no plan ids.
    #[error("aliases: {name:?} is not a provider with plan ids of its own; known: {}", known.join(", "))]
    Provider {
        name: String,
        /// Providers that an alias may name.
        known: Vec<&'static str>,
    },
    /// What the policy is stored under would be longer than S3 takes.
    #[error(
        "sku_id and plan_type together are too long: percent-encoded they take {found} bytes of at most {MAX_KEY_BYTES}"
    )]
    TooLong { found: usize },
    /// An alias gives an id that its provider has for no plan.
    #[error("aliases: {plan_id:?} is not a plan id of {provider}: {form}")]
    PlanId {
        /// The id as written.
        plan_id: String,
        /// Whose it should be.
        provider: &'static str,
        /// How that provider's ids look.
        form: &'static str,
    },
}

/// Compiles a policy file and checks its aliases against the table of providers.
///
/// # Errors
/// When it does not compile, or an alias is not a plan id of a provider in the table.
pub fn compile(yaml: &str) -> Result<Compiled, PolicyFileError> {
    let compiled = policy::compile(yaml)?;
    let found = names::index_key(&compiled.bundle.sku_id, &compiled.bundle.plan_type).len();
    if found > MAX_KEY_BYTES {
        return Err(PolicyFileError::TooLong { found });
    }
    for alias in &compiled.bundle.aliases {
        check(alias)?;
    }
    Ok(compiled)
}

fn check(alias: &Alias) -> Result<(), PolicyFileError> {
    let name = alias.provider.as_str();
    let row = of_name(name).and_then(|provider| Some((provider.name, provider.plan_ids.as_ref()?)));
    let Some((provider, plan_ids)) = row else {
        let named = PROVIDERS.iter().filter(|provider| provider.plan_ids.is_some());
        return Err(PolicyFileError::Provider {
            name: name.to_owned(),
            known: named.map(|provider| provider.name).collect(),
        });
    };
    if (plan_ids.accepts)(&alias.plan_id) {
        Ok(())
    } else {
        Err(PolicyFileError::PlanId {
            plan_id: alias.plan_id.clone(),
            provider,
            form: plan_ids.form,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIC: &str = include_str!("../../../policies/github-marketplace/basic.yaml");

    #[track_caller]
    fn check(from: &str, to: &str, expected: &str) {
        assert!(BASIC.contains(from), "{from:?} is not in the policy");
        let error = compile(&BASIC.replacen(from, to, 1)).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn aliases_are_plan_ids_of_known_providers() {
        let compiled = compile(BASIC).unwrap();
        assert_eq!(compiled, policy::compile(BASIC).unwrap());
        for name in ["gitlab", "githb", "standard"] {
            let expected =
                format!("aliases: {name:?} is not a provider with plan ids of its own; known: github");
            check("provider: github", &format!("provider: {name}"), &expected);
        }
        for id in ["0435", "4a", "1234567890123456789"] {
            let expected =
                format!("aliases: {id:?} is not a plan id of github: 1 to 18 digits, the first not 0");
            check("\"435\"", &format!("{id:?}"), &expected);
        }
        for id in ["1", "123456789012345678"] {
            assert!(compile(&BASIC.replacen("\"435\"", &format!("{id:?}"), 1)).is_ok());
        }
        check(
            "provider: github",
            "provider: GitHub",
            "aliases[0].provider: \"GitHub\" is not a name: a lower-case letter, then up to 63 of a-z, 0-9 and -",
        );
    }
}
