//! Cedar: writing the schema Σ and the policies, and reading them back strictly checked.
//!
//! Names reach the text only after the reader of policy files has limited their letters, and every name or value is
//! written through [`quoted`], as a string literal, so no policy file can add Cedar of its own.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::str::FromStr as _;

use cedar_policy::{
    CedarSchemaError, EntityId, EntityTypeName, EntityUid, ParseErrors, Policy, PolicyId, PolicySet,
    PolicySetError, Schema, ValidationMode, Validator,
};

use crate::bundle::PolicyText;
use crate::decision::permit_id;
use crate::ontology::{ActionSpec, ApprovalRule, Condition, Literal, Ontology, ParameterSpec, Requirement};

pub(crate) const TENANT: &str = "Tenant";
pub(crate) const PLAN: &str = "Plan";
pub(crate) const ACTION: &str = "Action";
/// The context attribute that holds a request's parameters.
pub(crate) const PARAMETERS: &str = "parameters";

/// A bundle's Cedar text cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CedarError {
    #[error("Cedar schema is not valid: {0}")]
    Schema(#[source] Box<CedarSchemaError>),
    #[error("Cedar policy {id:?} does not parse: {source}")]
    Policy { id: String, source: Box<ParseErrors> },
    /// A policy's `@id` is not the id it is listed under.
    #[error("Cedar policy {id:?} has a different @id")]
    OtherId { id: String },
    #[error("cannot add Cedar policy {id:?} to the set: {source}")]
    Set { id: String, source: Box<PolicySetError> },
    /// Strict validation found problems.
    #[error("Cedar policies do not fit their schema: {}", problems.join("; "))]
    Mismatch { problems: Vec<String> },
    #[error("Cedar entity type {name:?} is not valid: {source}")]
    EntityType {
        name: &'static str,
        source: Box<ParseErrors>,
    },
}

/// Id of the resource every request of a plan names.
pub(crate) fn plan_id(sku_id: &str, plan_type: &str) -> String {
    format!("{sku_id}/{plan_type}")
}

/// The schema Σ: one action per template, its parameters typed.
pub(crate) fn schema_text(actions: &[ActionSpec]) -> String {
    let mut text = format!("entity {TENANT};\nentity {PLAN};\n");
    for ActionSpec {
        template, parameters, ..
    } in actions
    {
        let fields = parameters.iter().map(|(name, spec)| {
            let optional = if spec.required() { "" } else { "?" };
            format!("{}{optional}: {}", quoted(name), cedar_type(spec))
        });
        let record = joined(fields, ", ");
        _ = write!(
            text,
            "action {} appliesTo {{\n  principal: [{TENANT}],\n  resource: [{PLAN}],\n  \
             context: {{ {PARAMETERS}: {{ {record} }} }}\n}};\n",
            quoted(template),
        );
    }
    text
}

fn cedar_type(spec: &ParameterSpec) -> &'static str {
    match spec {
        ParameterSpec::Integer { .. } => "Long",
        ParameterSpec::String { .. } => "String",
        ParameterSpec::Boolean { .. } => "Bool",
    }
}

/// The policies of an ontology: each action's `permit`, then each rule's `forbid`, in the ontology's order.
pub(crate) fn policy_texts(ontology: &Ontology) -> Vec<PolicyText> {
    let plan = plan_id(&ontology.sku_id, &ontology.plan_type);
    let permits = ontology.actions.iter().map(|action| permit(action, &plan));
    permits.chain(ontology.rules.iter().map(forbid)).collect()
}

fn permit(action: &ActionSpec, plan: &str) -> PolicyText {
    let id = permit_id(&action.template);
    let mut text = format!(
        "@id({})\npermit (\n  principal is {TENANT},\n  action == {},\n  resource == {PLAN}::{}\n)",
        quoted(&id),
        action_literal(&action.template),
        quoted(plan),
    );
    let bounds = action.parameters.iter().filter_map(|(name, spec)| {
        let bounds = bounds(name, spec)?;
        // An absent optional parameter is within bounds; `if` is what lets the validator see that it is not read.
        Some(if spec.required() {
            bounds
        } else {
            format!("(if {} then {bounds} else true)", has(name))
        })
    });
    let bounds = joined(bounds, " &&\n  ");
    if !bounds.is_empty() {
        _ = write!(text, " when {{\n  {bounds}\n}}");
    }
    text.push(';');
    PolicyText {
        id,
        description: action.description.clone(),
        actions: vec![action.template.clone()],
        text,
    }
}

/// The bounds Cedar checks. It cannot measure a string, so `max_length` stays with the enforcer's schema check.
fn bounds(name: &str, spec: &ParameterSpec) -> Option<String> {
    let value = value(name);
    match spec {
        ParameterSpec::Integer { minimum, maximum, .. } => {
            Some(format!("({value} >= {minimum} && {value} <= {maximum})"))
        }
        ParameterSpec::String {
            one_of: Some(choices),
            ..
        } => {
            let choices = joined(choices.iter().map(|choice| quoted(choice)), ", ");
            Some(format!("[{choices}].contains({value})"))
        }
        ParameterSpec::String { one_of: None, .. } | ParameterSpec::Boolean { .. } => None,
    }
}

/// `forbid … unless`: whatever does not show that the conditions hold, a missing parameter included, is denied.
fn forbid(rule: &ApprovalRule) -> PolicyText {
    let actions = joined(rule.actions.iter().map(|template| action_literal(template)), ", ");
    let conditions = joined(rule.require.iter().map(condition_text), " &&\n  ");
    let text = format!(
        "@id({})\nforbid (\n  principal,\n  action in [{actions}],\n  resource\n) unless {{\n  {conditions}\n}};",
        quoted(&rule.id),
    );
    PolicyText {
        id: rule.id.clone(),
        description: rule.description.clone(),
        actions: rule.actions.clone(),
        text,
    }
}

fn condition_text(condition: &Condition) -> String {
    let value = value(&condition.parameter);
    let test = match &condition.requirement {
        Requirement::AtMost(bound) => format!("{value} <= {bound}"),
        Requirement::AtLeast(bound) => format!("{value} >= {bound}"),
        Requirement::Equals(literal) => format!("{value} == {}", literal_text(literal)),
        Requirement::OneOf(literals) => {
            let literals = joined(literals.iter().map(literal_text), ", ");
            format!("[{literals}].contains({value})")
        }
    };
    format!("{} && {test}", has(&condition.parameter))
}

fn has(parameter: &str) -> String {
    format!("context.{PARAMETERS} has {}", quoted(parameter))
}

fn value(parameter: &str) -> String {
    format!("context.{PARAMETERS}[{}]", quoted(parameter))
}

fn action_literal(template: &str) -> String {
    format!("{ACTION}::{}", quoted(template))
}

fn literal_text(literal: &Literal) -> String {
    match literal {
        Literal::Boolean(value) => value.to_string(),
        Literal::Integer(value) => value.to_string(),
        Literal::String(value) => quoted(value),
    }
}

fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

/// A Cedar string literal: printable ASCII as it is, everything else as `\u{…}`.
fn quoted(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => literal.extend(['\\', c]),
            ' '..='~' => literal.push(c),
            _ => _ = write!(literal, "\\u{{{:x}}}", u32::from(c)),
        }
    }
    literal.push('"');
    literal
}

/// Reads schema and policies and validates them against each other, strictly.
pub(crate) fn parse(schema: &str, texts: &[PolicyText]) -> Result<(Schema, PolicySet), CedarError> {
    let schema = Schema::from_str(schema).map_err(|error| CedarError::Schema(Box::new(error)))?;
    let mut policies = PolicySet::new();
    for PolicyText { id, text, .. } in texts {
        let policy = Policy::parse(Some(PolicyId::new(id)), text).map_err(|source| CedarError::Policy {
            id: id.clone(),
            source: Box::new(source),
        })?;
        if policy.annotation("id") != Some(id) {
            return Err(CedarError::OtherId { id: id.clone() });
        }
        policies.add(policy).map_err(|source| CedarError::Set {
            id: id.clone(),
            source: Box::new(source),
        })?;
    }
    let validator = Validator::new(schema);
    let result = validator.validate(&policies, ValidationMode::Strict);
    if !result.validation_passed() {
        // The validator's own order is that of a hash map.
        let problems: BTreeSet<String> = result.validation_errors().map(ToString::to_string).collect();
        return Err(CedarError::Mismatch {
            problems: problems.into_iter().collect(),
        });
    }
    Ok((validator.schema().clone(), policies))
}

/// An entity type by its name.
pub(crate) fn entity_type(name: &'static str) -> Result<EntityTypeName, CedarError> {
    EntityTypeName::from_str(name).map_err(|source| CedarError::EntityType {
        name,
        source: Box::new(source),
    })
}

/// An entity of any id: ids are data and are never parsed.
pub(crate) fn entity(name: EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(name, EntityId::new(id))
}
