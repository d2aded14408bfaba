//! The enforcer: a bundle, loaded once, that decides each request for an action.
//!
//! It denies whatever it is not sure of. A request is allowed only when its parameters are exactly of the declared
//! types, Cedar evaluates every policy without an error, a `permit` holds and no `forbid` does.

use std::collections::BTreeMap;

use cedar_policy::{
    Authorizer, Context, Entities, EntityTypeName, EntityUid, PolicySet, Request, Response,
    RestrictedExpression, Schema,
};
use serde_json::{Map, Value};

use crate::bundle::{BUNDLE_FORMAT, Bundle, MAX_BUNDLE_BYTES};
use crate::canonical::{INTEGERS, MAX_INTEGER, sha256_hex};
use crate::cedar::{self, CedarError};
use crate::decision::{Decision, EVALUATION_ERROR, PARAMETER_SCHEMA, UNKNOWN_ACTION, permit_id};
use crate::ontology::{ActionSpec, Literal, ParameterSpec, within_length};

/// A loaded bundle.
#[derive(Debug)]
pub struct Enforcer {
    hash: String,
    bundle: Bundle,
    schema: Schema,
    policies: PolicySet,
    authorizer: Authorizer,
    tenant: EntityTypeName,
    plan: EntityUid,
    actions: BTreeMap<String, EntityUid>,
}

/// A bundle was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    #[error("bundle of {bytes} bytes is larger than the {limit} allowed")]
    TooLarge { bytes: usize, limit: usize },
    #[error("cannot read the bundle: {0}")]
    Json(#[source] serde_json::Error),
    #[error("bundle has format {found}, but this enforcer reads format {expected}")]
    Format { found: u32, expected: u32 },
    #[error("bundle is not canonical JSON (RFC 8785)")]
    NotCanonical,
    /// Its actions are not sorted, or one is listed twice.
    #[error("bundle's actions are out of order at {template:?}")]
    Actions { template: String },
    /// An action has no `permit` to hold its bounds.
    #[error("bundle has no policy {id:?}")]
    NoPermit { id: String },
    #[error("cannot use the bundle's policies: {0}")]
    Cedar(#[from] CedarError),
}

impl Enforcer {
    /// Loads a bundle: canonical bytes, known format, schema and policies strictly valid.
    ///
    /// The caller compares [`hash`](Self::hash) with what it asked for; the bytes themselves do not say.
    ///
    /// # Errors
    /// When any of this does not hold.
    pub fn load(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLarge {
                bytes: bytes.len(),
                limit: MAX_BUNDLE_BYTES,
            });
        }
        let bundle: Bundle = serde_json::from_slice(bytes).map_err(BundleError::Json)?;
        if bundle.format != BUNDLE_FORMAT {
            return Err(BundleError::Format {
                found: bundle.format,
                expected: BUNDLE_FORMAT,
            });
        }
        // Writing it again catches all that parsing forgives: spaces, key order, repeated keys.
        if serde_json_canonicalizer::to_vec(&bundle).map_err(BundleError::Json)? != bytes {
            return Err(BundleError::NotCanonical);
        }
        let (schema, policies) = cedar::parse(&bundle.cedar_schema, &bundle.cedar_policies)?;
        let actions = action_entities(&bundle)?;
        let plan = cedar::entity(
            cedar::entity_type(cedar::PLAN)?,
            &cedar::plan_id(&bundle.sku_id, &bundle.plan_type),
        );
        Ok(Self {
            hash: sha256_hex(bytes),
            bundle,
            schema,
            policies,
            authorizer: Authorizer::new(),
            tenant: cedar::entity_type(cedar::TENANT)?,
            plan,
            actions,
        })
    }

    /// Lower-case hex SHA-256 of the bytes loaded.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What was loaded.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The action of a template, if the policy has it.
    #[must_use]
    pub fn action(&self, template: &str) -> Option<&ActionSpec> {
        let actions = &self.bundle.actions;
        let found = actions
            .binary_search_by(|action| action.template.as_str().cmp(template))
            .ok()?;
        actions.get(found)
    }

    /// Decides whether a tenant may run an action with these parameters.
    #[must_use]
    pub fn decide(&self, account_id: &str, template: &str, parameters: &Map<String, Value>) -> Decision {
        let (Some(action), Some(action_entity)) = (self.action(template), self.actions.get(template)) else {
            return Decision::deny(UNKNOWN_ACTION, "the policy has no such action");
        };
        let values = match typed(action, parameters) {
            Ok(values) => values,
            Err(detail) => return Decision::deny(PARAMETER_SCHEMA, detail),
        };
        match self.authorize(account_id, action_entity, &values) {
            Ok(response) => self.decision(action, &values, &response),
            Err(detail) => Decision::deny(EVALUATION_ERROR, detail),
        }
    }

    fn authorize(
        &self,
        account_id: &str,
        action: &EntityUid,
        values: &Values<'_>,
    ) -> Result<Response, String> {
        let fields = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), expression(value)));
        let record = RestrictedExpression::new_record(fields).map_err(|error| error.to_string())?;
        let context = Context::from_pairs([(cedar::PARAMETERS.to_owned(), record)])
            .map_err(|error| error.to_string())?;
        let tenant = cedar::entity(self.tenant.clone(), account_id);
        let request = Request::new(
            tenant,
            action.clone(),
            self.plan.clone(),
            context,
            Some(&self.schema),
        )
        .map_err(|error| error.to_string())?;
        Ok(self
            .authorizer
            .is_authorized(&request, &self.policies, &Entities::empty()))
    }

    /// Cedar leaves a policy that fails to evaluate out of its answer; here it denies, whatever the others say.
    fn decision(&self, action: &ActionSpec, values: &Values<'_>, response: &Response) -> Decision {
        let allowed = response.decision() == cedar_policy::Decision::Allow;
        let mut rules: Vec<String> = response
            .diagnostics()
            .reason()
            .map(|id| AsRef::<str>::as_ref(id).to_owned())
            .collect();
        rules.sort_unstable();
        let errors: Vec<String> = response.diagnostics().errors().map(ToString::to_string).collect();
        if !errors.is_empty() {
            return Decision::deny(EVALUATION_ERROR, errors.join("; "));
        }
        if allowed {
            return Decision::Allow { rules };
        }
        if rules.is_empty() {
            // Nothing forbids it, but its permit does not hold: some parameter is outside its bounds.
            return Decision::deny(permit_id(&action.template), out_of_bounds(action, values));
        }
        let described = self
            .bundle
            .cedar_policies
            .iter()
            .filter(|policy| rules.contains(&policy.id));
        let detail = described.map(|policy| format!("{}: {}", policy.id, policy.description));
        let detail = detail.collect::<Vec<_>>().join("; ");
        Decision::Deny { rules, detail }
    }
}

/// A request's parameters by name, of the declared types.
type Values<'a> = BTreeMap<&'a str, Literal>;

fn action_entities(bundle: &Bundle) -> Result<BTreeMap<String, EntityUid>, BundleError> {
    let action_type = cedar::entity_type(cedar::ACTION)?;
    let mut entities: BTreeMap<String, EntityUid> = BTreeMap::new();
    for ActionSpec { template, .. } in &bundle.actions {
        if entities
            .last_key_value()
            .is_some_and(|(last, _)| last >= template)
        {
            return Err(BundleError::Actions {
                template: template.clone(),
            });
        }
        let id = permit_id(template);
        if !bundle.cedar_policies.iter().any(|policy| policy.id == id) {
            return Err(BundleError::NoPermit { id });
        }
        entities.insert(template.clone(), cedar::entity(action_type.clone(), template));
    }
    Ok(entities)
}

/// The parameters as the action declares them, or what is wrong with them.
fn typed<'a>(action: &'a ActionSpec, parameters: &Map<String, Value>) -> Result<Values<'a>, String> {
    if parameters
        .keys()
        .any(|name| !action.parameters.contains_key(name))
    {
        let known: Vec<&str> = action.parameters.keys().map(String::as_str).collect();
        return Err(format!(
            "a parameter is not declared; the action has: {}",
            known.join(", ")
        ));
    }
    let mut values = Values::new();
    for (name, spec) in &action.parameters {
        match parameters.get(name) {
            Some(value) => {
                let value = literal(spec, value).ok_or_else(|| match spec {
                    ParameterSpec::String { max_length, .. } => {
                        format!("parameter {name:?} must be a string of at most {max_length} characters")
                    }
                    ParameterSpec::Integer { .. } => {
                        format!(
                            "parameter {name:?} must be a whole number from -{MAX_INTEGER} to {MAX_INTEGER}"
                        )
                    }
                    ParameterSpec::Boolean { .. } => format!("parameter {name:?} must be true or false"),
                })?;
                values.insert(name, value);
            }
            None if spec.required() => return Err(format!("parameter {name:?} is missing")),
            None => {}
        }
    }
    Ok(values)
}

/// Exactly the declared type: `5.0` is no integer, `"5"` neither, and null is no absence.
fn literal(spec: &ParameterSpec, value: &Value) -> Option<Literal> {
    match (spec, value) {
        (ParameterSpec::Integer { .. }, Value::Number(number)) => {
            let value = number.as_i64()?;
            INTEGERS.contains(&value).then_some(Literal::Integer(value))
        }
        (ParameterSpec::String { max_length, .. }, Value::String(text)) => {
            within_length(text, *max_length).then(|| Literal::String(text.clone()))
        }
        (ParameterSpec::Boolean { .. }, Value::Bool(value)) => Some(Literal::Boolean(*value)),
        _ => None,
    }
}

fn expression(value: &Literal) -> RestrictedExpression {
    match value {
        Literal::Boolean(value) => RestrictedExpression::new_bool(*value),
        Literal::Integer(value) => RestrictedExpression::new_long(*value),
        Literal::String(value) => RestrictedExpression::new_string(value.clone()),
    }
}

fn out_of_bounds(action: &ActionSpec, values: &Values<'_>) -> String {
    let outside = action.parameters.iter().filter(|(name, spec)| {
        let value = values.get(name.as_str());
        value.is_some_and(|value| !spec.accepts(value))
    });
    let outside: Vec<String> = outside
        .map(|(name, spec)| format!("parameter {name:?} must be {spec}"))
        .collect();
    if outside.is_empty() {
        "no policy permits it".to_owned()
    } else {
        outside.join("; ")
    }
}
