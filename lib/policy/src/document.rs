//! The policy file as it stands on disk, and the way from it to an [`Ontology`].
//!
//! The shapes here hold whatever YAML of the right outline can hold; `check` turns each into its normal form or tells
//! where it is wrong. Nothing outside this file sees an unchecked value.

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;
use serde::{Deserialize, Deserializer};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy};

use crate::canonical::MAX_INTEGER;
use crate::decision::RESERVED_RULE_IDS;
use crate::ontology::{
    ActionSpec, Alias, ApprovalRule, Condition, DEFAULT_MAX_LENGTH, FieldError, Isolation,
    LARGEST_MAX_LENGTH, Literal, MAX_ENTRIES, MAX_ONTOLOGY_BYTES, MAX_PARAMETERS, Ontology, OntologyError,
    ParameterSpec, ProviderName, Quota, Requirement, Tier, is_name,
};

const MAX_DESCRIPTION: usize = 1000;
const MAX_PATH: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    sku_id: String,
    plan_type: String,
    version: String,
    #[serde(default, deserialize_with = "present")]
    aliases: Option<Vec<AliasEntry>>,
    isolation: Isolation,
    quota: QuotaEntry,
    actions: Vec<ActionEntry>,
    #[serde(default, deserialize_with = "present")]
    rules: Option<Vec<RuleEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaEntry {
    monthly_actions: u64,
    concurrent_actions: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AliasEntry {
    provider: String,
    plan_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionEntry {
    template: String,
    description: String,
    tier: u64,
    handler: String,
    rollback: String,
    #[serde(default)]
    parameters: BTreeMap<String, ParameterEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterEntry {
    r#type: ParameterType,
    #[serde(default)]
    required: bool,
    minimum: Option<i64>,
    maximum: Option<i64>,
    #[serde(default, deserialize_with = "present")]
    one_of: Option<Vec<String>>,
    max_length: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ParameterType {
    Integer,
    String,
    Boolean,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    #[serde(rename = "kind")]
    _kind: RuleKind,
    id: String,
    description: String,
    actions: Vec<String>,
    require: Vec<ConditionEntry>,
}

#[derive(Deserialize)]
enum RuleKind {
    ApprovalRule,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConditionEntry {
    parameter: String,
    at_most: Option<i64>,
    at_least: Option<i64>,
    equals: Option<Literal>,
    #[serde(default, deserialize_with = "present")]
    one_of: Option<Vec<Literal>>,
}

/// A list that is there, even as `rules:` with nothing after it, so that an unfinished line is not read as "none".
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}

type Checked<T> = Result<T, OntologyError>;

impl Ontology {
    /// Reads a policy file.
    ///
    /// # Errors
    /// When the text is too large, is not YAML of this shape, or a field is wrong; the first problem found is told.
    pub fn parse(yaml: &str) -> Result<Self, OntologyError> {
        if yaml.len() > MAX_ONTOLOGY_BYTES {
            return Err(OntologyError::TooLarge {
                bytes: yaml.len(),
                limit: MAX_ONTOLOGY_BYTES,
            });
        }
        let document = serde_saphyr::from_str_with_options(yaml, yaml_options());
        check(document.map_err(|source| OntologyError::Yaml {
            source: Box::new(source),
        })?)
    }
}

/// One plain document: no aliases (nothing can grow beyond what was written), no merge keys, no repeated keys, and
/// only `true` and `false` are booleans.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_aliases: 0,
            max_anchors: 0,
            max_depth: 16,
            // The second is refused by the reader itself, in clearer words than the budget's.
            max_documents: 2,
            max_nodes: 50_000,
            max_events: 200_000,
            max_total_scalar_bytes: MAX_ONTOLOGY_BYTES,
            max_merge_keys: 0,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 0,
            max_replay_stack_depth: 0,
            max_alias_expansions_per_anchor: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        // One line per error: it travels in answers and logs, not only to a terminal.
        with_snippet: false,
    }
}

fn check(document: Document) -> Checked<Ontology> {
    let sku_id = name("sku_id", document.sku_id)?;
    let plan_type = name("plan_type", document.plan_type)?;
    let version = version(&document.version)?;
    let aliases = document.aliases.map_or(Ok(Vec::new()), aliases)?;
    let quota = quota(document.quota)?;
    let actions = actions(document.actions)?;
    let rules = document
        .rules
        .map_or(Ok(Vec::new()), |entries| rules(entries, &actions))?;
    let mut ontology = Ontology {
        sku_id,
        plan_type,
        version,
        aliases,
        isolation: document.isolation,
        quota,
        actions: actions.into_values().collect(),
        rules,
    };
    ontology.aliases.sort();
    ontology.rules.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(ontology)
}

fn quota(entry: QuotaEntry) -> Checked<Quota> {
    let QuotaEntry {
        monthly_actions,
        concurrent_actions,
    } = entry;
    limit("quota.monthly_actions", monthly_actions)?;
    limit("quota.concurrent_actions", concurrent_actions)?;
    Ok(Quota {
        monthly_actions,
        concurrent_actions,
    })
}

fn version(text: &str) -> Checked<Version> {
    Version::parse(text).map_err(|error| {
        at(
            "version",
            FieldError::Version {
                value: text.to_owned(),
                reason: error.to_string(),
            },
        )
    })
}

fn aliases(entries: Vec<AliasEntry>) -> Checked<Vec<Alias>> {
    filled("aliases", entries.len(), MAX_ENTRIES)?;
    let mut seen = BTreeSet::new();
    let mut aliases = Vec::with_capacity(entries.len());
    for (index, AliasEntry { provider, plan_id }) in entries.into_iter().enumerate() {
        let provider = ProviderName::try_from(provider)
            .map_err(|problem| at(format!("aliases[{index}].provider"), problem))?;
        let place = format!("aliases[{index}].plan_id");
        let plain = plan_id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain || plan_id.is_empty() || plan_id.len() > 64 {
            return Err(at(place, FieldError::PlanId { value: plan_id }));
        }
        let alias = Alias { provider, plan_id };
        unique(&mut seen, alias.clone(), &place, &alias.plan_id)?;
        aliases.push(alias);
    }
    Ok(aliases)
}

/// Keyed by template, which is also the order they are kept in.
fn actions(entries: Vec<ActionEntry>) -> Checked<BTreeMap<String, ActionSpec>> {
    filled("actions", entries.len(), MAX_ENTRIES)?;
    let mut actions = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let place = format!("actions[{index}]");
        let action = action(&place, entry)?;
        let template = action.template.clone();
        if actions.insert(template.clone(), action).is_some() {
            return Err(at(
                format!("{place}.template"),
                FieldError::Duplicate { value: template },
            ));
        }
    }
    Ok(actions)
}

fn action(place: &str, entry: ActionEntry) -> Checked<ActionSpec> {
    let template = name(format!("{place}.template"), entry.template)?;
    let description = description(format!("{place}.description"), &entry.description)?;
    let tier = Tier::try_from(entry.tier).map_err(|problem| at(format!("{place}.tier"), problem))?;
    let handler = path(format!("{place}.handler"), entry.handler)?;
    let rollback = path(format!("{place}.rollback"), entry.rollback)?;
    if rollback == handler {
        return Err(at(format!("{place}.rollback"), FieldError::RollbackIsHandler));
    }
    at_most(
        &format!("{place}.parameters"),
        entry.parameters.len(),
        MAX_PARAMETERS,
    )?;
    let mut parameters = BTreeMap::new();
    for (parameter, entry) in entry.parameters {
        let place = format!("{place}.parameters.{parameter}");
        if !is_name(&parameter, b'_') {
            return Err(at(place, FieldError::ParameterName { value: parameter }));
        }
        let spec = parameter_spec(&place, entry)?;
        parameters.insert(parameter, spec);
    }
    Ok(ActionSpec {
        template,
        description,
        tier,
        handler,
        rollback,
        parameters,
    })
}

fn parameter_spec(place: &str, entry: ParameterEntry) -> Checked<ParameterSpec> {
    let ParameterEntry {
        r#type,
        required,
        minimum,
        maximum,
        one_of,
        max_length,
    } = entry;
    let inapplicable = |field: &str, present: bool, subject: &'static str| match present {
        true => Err(at(
            format!("{place}.{field}"),
            FieldError::DoesNotApply { subject },
        )),
        false => Ok(()),
    };
    match r#type {
        ParameterType::Integer => {
            inapplicable("one_of", one_of.is_some(), "an integer")?;
            inapplicable("max_length", max_length.is_some(), "an integer")?;
            let minimum = integer(format!("{place}.minimum"), minimum.unwrap_or(-MAX_INTEGER))?;
            let maximum = integer(format!("{place}.maximum"), maximum.unwrap_or(MAX_INTEGER))?;
            if minimum > maximum {
                return Err(at(place, FieldError::Range { minimum, maximum }));
            }
            Ok(ParameterSpec::Integer {
                required,
                minimum,
                maximum,
            })
        }
        ParameterType::String => {
            inapplicable("minimum", minimum.is_some(), "a string")?;
            inapplicable("maximum", maximum.is_some(), "a string")?;
            inapplicable(
                "max_length",
                max_length.is_some() && one_of.is_some(),
                "a string with one_of",
            )?;
            let max_length = length(&format!("{place}.max_length"), max_length)?;
            let one_of = one_of
                .map(|texts| choices(&format!("{place}.one_of"), texts))
                .transpose()?;
            Ok(ParameterSpec::String {
                required,
                max_length,
                one_of,
            })
        }
        ParameterType::Boolean => {
            inapplicable("minimum", minimum.is_some(), "a boolean")?;
            inapplicable("maximum", maximum.is_some(), "a boolean")?;
            inapplicable("one_of", one_of.is_some(), "a boolean")?;
            inapplicable("max_length", max_length.is_some(), "a boolean")?;
            Ok(ParameterSpec::Boolean { required })
        }
    }
}

fn choices(place: &str, texts: Vec<String>) -> Checked<Vec<String>> {
    filled(place, texts.len(), MAX_PARAMETERS)?;
    let mut seen = BTreeSet::new();
    for (index, choice) in texts.into_iter().enumerate() {
        let place = format!("{place}[{index}]");
        text(&place, &choice, DEFAULT_MAX_LENGTH as usize)?;
        let value = format!("{choice:?}");
        unique(&mut seen, choice, &place, &value)?;
    }
    Ok(seen.into_iter().collect())
}

fn rules(entries: Vec<RuleEntry>, actions: &BTreeMap<String, ActionSpec>) -> Checked<Vec<ApprovalRule>> {
    filled("rules", entries.len(), MAX_ENTRIES)?;
    let mut seen = BTreeSet::new();
    let mut rules = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let place = format!("rules[{index}]");
        let rule = rule(&place, entry, actions)?;
        unique(&mut seen, rule.id.clone(), &format!("{place}.id"), &rule.id)?;
        rules.push(rule);
    }
    Ok(rules)
}

fn rule(place: &str, entry: RuleEntry, actions: &BTreeMap<String, ActionSpec>) -> Checked<ApprovalRule> {
    let id = name(format!("{place}.id"), entry.id)?;
    if RESERVED_RULE_IDS.contains(&id.as_str()) {
        return Err(at(format!("{place}.id"), FieldError::Reserved { value: id }));
    }
    let description = description(format!("{place}.description"), &entry.description)?;

    filled(&format!("{place}.actions"), entry.actions.len(), MAX_ENTRIES)?;
    let mut templates = BTreeSet::new();
    let mut governed = Vec::new();
    for (index, template) in entry.actions.into_iter().enumerate() {
        let place = format!("{place}.actions[{index}]");
        match actions.get(&template) {
            Some(action) => governed.push(action),
            None => return Err(at(place, FieldError::UnknownTemplate { template })),
        }
        unique(&mut templates, template.clone(), &place, &template)?;
    }

    filled(&format!("{place}.require"), entry.require.len(), MAX_ENTRIES)?;
    let mut require = BTreeSet::new();
    for (index, entry) in entry.require.into_iter().enumerate() {
        let place = format!("{place}.require[{index}]");
        let condition = condition(&place, entry)?;
        for action in &governed {
            resolve(&place, &condition, action)?;
        }
        unique(&mut require, condition, &place, "the same condition")?;
    }
    let actions = templates.into_iter().collect();
    Ok(ApprovalRule {
        id,
        description,
        actions,
        require: require.into_iter().collect(),
    })
}

fn condition(place: &str, entry: ConditionEntry) -> Checked<Condition> {
    let one_of = entry
        .one_of
        .map(|literals| literal_choices(&format!("{place}.one_of"), literals))
        .transpose()?;
    let mut written = [
        entry.at_most.map(Requirement::AtMost),
        entry.at_least.map(Requirement::AtLeast),
        entry.equals.map(Requirement::Equals),
        one_of.map(Requirement::OneOf),
    ]
    .into_iter()
    .flatten();
    match (written.next(), written.count()) {
        (Some(requirement), 0) => Ok(Condition {
            parameter: entry.parameter,
            requirement,
        }),
        (first, rest) => {
            let count = rest + usize::from(first.is_some());
            Err(at(place, FieldError::Requirements { count }))
        }
    }
}

fn literal_choices(place: &str, literals: Vec<Literal>) -> Checked<Vec<Literal>> {
    filled(place, literals.len(), MAX_PARAMETERS)?;
    let mut seen = BTreeSet::new();
    for (index, literal) in literals.into_iter().enumerate() {
        let value = literal.to_string();
        unique(&mut seen, literal, &format!("{place}[{index}]"), &value)?;
    }
    Ok(seen.into_iter().collect())
}

/// Every value a condition names must be one the parameter can have: a rule nothing can meet, or a choice nothing can
/// take, is a mistake in the policy and not a way to forbid an action.
fn resolve(place: &str, condition: &Condition, action: &ActionSpec) -> Checked<()> {
    let Condition {
        parameter,
        requirement,
    } = condition;
    let template = &action.template;
    let Some(spec) = action.parameters.get(parameter) else {
        let problem = FieldError::UnknownParameter {
            template: template.clone(),
            parameter: parameter.clone(),
        };
        return Err(at(format!("{place}.parameter"), problem));
    };
    let (field, refused) = match requirement {
        // Named values must be possible; a bound must leave something, and may be wider than the parameter's own.
        Requirement::Equals(literal) => ("equals", (!spec.accepts(literal)).then(|| literal.clone())),
        Requirement::OneOf(literals) => (
            "one_of",
            literals.iter().find(|literal| !spec.accepts(literal)).cloned(),
        ),
        Requirement::AtMost(bound) => {
            let met = matches!(spec, ParameterSpec::Integer { minimum, .. } if bound >= minimum);
            ("at_most", (!met).then_some(Literal::Integer(*bound)))
        }
        Requirement::AtLeast(bound) => {
            let met = matches!(spec, ParameterSpec::Integer { maximum, .. } if bound <= maximum);
            ("at_least", (!met).then_some(Literal::Integer(*bound)))
        }
    };
    if let Requirement::AtMost(bound) | Requirement::AtLeast(bound) = requirement {
        integer(format!("{place}.{field}"), *bound)?;
    }
    match refused {
        None => Ok(()),
        Some(value) => {
            let problem = FieldError::Impossible {
                value: value.to_string(),
                parameter: parameter.clone(),
                template: template.clone(),
                accepts: spec.to_string(),
            };
            Err(at(format!("{place}.{field}"), problem))
        }
    }
}

fn at(place: impl Into<String>, problem: FieldError) -> OntologyError {
    OntologyError::Field {
        place: place.into(),
        problem,
    }
}

fn name(place: impl Into<String>, value: String) -> Checked<String> {
    if is_name(&value, b'-') {
        Ok(value)
    } else {
        Err(at(place, FieldError::Name { value }))
    }
}

/// Handlers are reached below a base URL, so a path must not be able to leave it or carry a query.
fn path(place: String, value: String) -> Checked<String> {
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let valid = value.len() <= MAX_PATH
        && value
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(segment));
    if valid {
        Ok(value)
    } else {
        Err(at(place, FieldError::Path { value }))
    }
}

/// A description is one line; how the author broke it in the file means nothing.
fn description(place: String, value: &str) -> Checked<String> {
    let one_line = value.split_whitespace().collect::<Vec<_>>().join(" ");
    text(&place, &one_line, MAX_DESCRIPTION)?;
    Ok(one_line)
}

fn text(place: &str, value: &str, limit: usize) -> Checked<()> {
    let valid = !value.is_empty() && value.chars().count() <= limit && !value.contains(char::is_control);
    if valid {
        Ok(())
    } else {
        Err(at(place, FieldError::Text { limit }))
    }
}

fn length(place: &str, value: Option<u64>) -> Checked<u32> {
    let Some(value) = value else {
        return Ok(DEFAULT_MAX_LENGTH);
    };
    match u32::try_from(value) {
        Ok(length @ 1..=LARGEST_MAX_LENGTH) => Ok(length),
        _ => Err(at(
            place,
            FieldError::MaxLength {
                value,
                limit: LARGEST_MAX_LENGTH,
            },
        )),
    }
}

fn limit(place: &str, value: u64) -> Checked<()> {
    if (1..=MAX_INTEGER.unsigned_abs()).contains(&value) {
        Ok(())
    } else {
        Err(at(place, FieldError::Limit { value }))
    }
}

fn integer(place: String, value: i64) -> Checked<i64> {
    if (-MAX_INTEGER..=MAX_INTEGER).contains(&value) {
        Ok(value)
    } else {
        Err(at(place, FieldError::Integer { value }))
    }
}

fn filled(place: &str, count: usize, limit: usize) -> Checked<()> {
    if count == 0 {
        return Err(at(place, FieldError::Empty));
    }
    at_most(place, count, limit)
}

fn at_most(place: &str, count: usize, limit: usize) -> Checked<()> {
    if count > limit {
        Err(at(place, FieldError::TooMany { count, limit }))
    } else {
        Ok(())
    }
}

fn unique<T: Ord>(seen: &mut BTreeSet<T>, item: T, place: &str, value: &str) -> Checked<()> {
    if seen.insert(item) {
        Ok(())
    } else {
        Err(at(
            place,
            FieldError::Duplicate {
                value: value.to_owned(),
            },
        ))
    }
}
