//! The policy file as it stands on disk, and the way from it to an [`Ontology`].
//!
//! The shapes here hold whatever YAML of the right outline can hold; `check` turns each into its normal form or tells
//! where it is wrong. Nothing outside this file sees an unchecked value.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use semver::Version;
use serde::{Deserialize, Deserializer};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy};

use crate::canonical::{INTEGERS, MAX_INTEGER};
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
    max_length: Option<u32>,
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

type Result<T, E = OntologyError> = std::result::Result<T, E>;

impl Ontology {
    /// Reads a policy file.
    ///
    /// # Errors
    /// When the text is too large, is not YAML of this shape, or a field is wrong; reports the first problem found.
    pub fn parse(yaml: &str) -> Result<Self> {
        if yaml.len() > MAX_ONTOLOGY_BYTES {
            return Err(OntologyError::TooLarge {
                bytes: yaml.len(),
                limit: MAX_ONTOLOGY_BYTES,
            });
        }
        let document = serde_saphyr::from_str_with_options(yaml, yaml_options());
        check(document.map_err(|source| OntologyError::Yaml(Box::new(source)))?)
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

fn check(document: Document) -> Result<Ontology> {
    let sku_id = name("sku_id", document.sku_id)?;
    let plan_type = name("plan_type", document.plan_type)?;
    let version = Version::parse(&document.version).map_err(|error| {
        let (value, reason) = (document.version.clone(), error.to_string());
        at("version", FieldError::Version { value, reason })
    })?;
    let aliases = document.aliases.map_or(Ok(Vec::new()), aliases)?;
    let QuotaEntry {
        monthly_actions,
        concurrent_actions,
    } = document.quota;
    in_range("quota.monthly_actions", monthly_actions, 1..=MAX_INTEGER)?;
    in_range("quota.concurrent_actions", concurrent_actions, 1..=MAX_INTEGER)?;
    let template = |action: &ActionSpec| (action.template.clone(), action.template.clone());
    let actions = distinct(
        "actions",
        ".template",
        document.actions,
        MAX_ENTRIES,
        action,
        template,
    )?;
    let rules = document
        .rules
        .map_or(Ok(Vec::new()), |entries| rules(entries, &actions))?;
    Ok(Ontology {
        sku_id,
        plan_type,
        version,
        aliases,
        isolation: document.isolation,
        quota: Quota {
            monthly_actions,
            concurrent_actions,
        },
        actions,
        rules,
    })
}

fn aliases(entries: Vec<AliasEntry>) -> Result<Vec<Alias>> {
    let alias = |place: &str, AliasEntry { provider, plan_id }| {
        let provider =
            ProviderName::try_from(provider).map_err(|problem| at(format!("{place}.provider"), problem))?;
        let plain = plan_id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        ensure(
            plain && (1..=64).contains(&plan_id.len()),
            format!("{place}.plan_id"),
            || FieldError::PlanId(plan_id.clone()),
        )?;
        Ok(Alias { provider, plan_id })
    };
    let key = |alias: &Alias| (alias.clone(), alias.plan_id.clone());
    distinct("aliases", ".plan_id", entries, MAX_ENTRIES, alias, key)
}

fn action(place: &str, entry: ActionEntry) -> Result<ActionSpec> {
    let template = name(format!("{place}.template"), entry.template)?;
    let description = description(format!("{place}.description"), &entry.description)?;
    let tier = Tier::try_from(entry.tier).map_err(|problem| at(format!("{place}.tier"), problem))?;
    let handler = path(format!("{place}.handler"), entry.handler)?;
    let rollback = path(format!("{place}.rollback"), entry.rollback)?;
    ensure(rollback != handler, format!("{place}.rollback"), || {
        FieldError::RollbackIsHandler
    })?;
    let place = format!("{place}.parameters");
    at_most(&place, entry.parameters.len(), MAX_PARAMETERS)?;
    let mut parameters = BTreeMap::new();
    for (parameter, entry) in entry.parameters {
        let place = format!("{place}.{parameter}");
        ensure(is_name(&parameter, b'_'), &place, || {
            FieldError::ParameterName(parameter.clone())
        })?;
        parameters.insert(parameter, parameter_spec(&place, entry)?);
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

fn parameter_spec(place: &str, entry: ParameterEntry) -> Result<ParameterSpec> {
    let ParameterEntry {
        r#type,
        required,
        minimum,
        maximum,
        one_of,
        max_length,
    } = entry;
    let (subject, applicable): (_, &[&str]) = match r#type {
        ParameterType::Integer => ("an integer", &["minimum", "maximum"]),
        ParameterType::String if one_of.is_some() => ("a string with one_of", &["one_of"]),
        ParameterType::String => ("a string", &["max_length"]),
        ParameterType::Boolean => ("a boolean", &[]),
    };
    for (field, written) in [
        ("minimum", minimum.is_some()),
        ("maximum", maximum.is_some()),
        ("one_of", one_of.is_some()),
        ("max_length", max_length.is_some()),
    ] {
        let applies = !written || applicable.contains(&field);
        ensure(applies, format!("{place}.{field}"), || {
            FieldError::DoesNotApply(subject)
        })?;
    }
    Ok(match r#type {
        ParameterType::Integer => {
            let minimum = minimum.unwrap_or(-MAX_INTEGER);
            let maximum = maximum.unwrap_or(MAX_INTEGER);
            in_range(format!("{place}.minimum"), minimum, INTEGERS)?;
            in_range(format!("{place}.maximum"), maximum, INTEGERS)?;
            ensure(minimum <= maximum, place, || FieldError::Range {
                minimum,
                maximum,
            })?;
            ParameterSpec::Integer {
                required,
                minimum,
                maximum,
            }
        }
        ParameterType::String => {
            let max_length = max_length.unwrap_or(DEFAULT_MAX_LENGTH);
            in_range(
                format!("{place}.max_length"),
                max_length,
                1..=LARGEST_MAX_LENGTH.into(),
            )?;
            let one_of = one_of.map(|texts| choices(&format!("{place}.one_of"), texts));
            ParameterSpec::String {
                required,
                max_length,
                one_of: one_of.transpose()?,
            }
        }
        ParameterType::Boolean => ParameterSpec::Boolean { required },
    })
}

fn choices(place: &str, texts: Vec<String>) -> Result<Vec<String>> {
    let choice =
        |place: &str, choice: String| text(place, &choice, DEFAULT_MAX_LENGTH as usize).map(|()| choice);
    let key = |choice: &String| (choice.clone(), format!("{choice:?}"));
    distinct(place, "", texts, MAX_PARAMETERS, choice, key)
}

fn rules(entries: Vec<RuleEntry>, actions: &[ActionSpec]) -> Result<Vec<ApprovalRule>> {
    let rule = |place: &str, entry| rule(place, entry, actions);
    let key = |rule: &ApprovalRule| (rule.id.clone(), rule.id.clone());
    distinct("rules", ".id", entries, MAX_ENTRIES, rule, key)
}

fn rule(place: &str, entry: RuleEntry, actions: &[ActionSpec]) -> Result<ApprovalRule> {
    let id = name(format!("{place}.id"), entry.id)?;
    let reserved = RESERVED_RULE_IDS.contains(&id.as_str());
    ensure(!reserved, format!("{place}.id"), || {
        FieldError::Reserved(id.clone())
    })?;
    let description = description(format!("{place}.description"), &entry.description)?;

    let governed: Vec<&ActionSpec> = entry
        .actions
        .iter()
        .filter_map(|template| actions.iter().find(|action| action.template == *template))
        .collect();
    let template = |place: &str, template: String| {
        let known = governed.iter().any(|action| action.template == template);
        ensure(known, place, || FieldError::UnknownTemplate(template.clone()))?;
        Ok(template)
    };
    let key = |template: &String| (template.clone(), template.clone());
    let actions = distinct(
        &format!("{place}.actions"),
        "",
        entry.actions.clone(),
        MAX_ENTRIES,
        template,
        key,
    )?;

    let condition = |place: &str, entry| {
        let condition = condition(place, entry)?;
        for action in &governed {
            resolve(place, &condition, action)?;
        }
        Ok(condition)
    };
    let key = |condition: &Condition| (condition.clone(), "the same condition".to_owned());
    let require = distinct(
        &format!("{place}.require"),
        "",
        entry.require,
        MAX_ENTRIES,
        condition,
        key,
    )?;
    Ok(ApprovalRule {
        id,
        description,
        actions,
        require,
    })
}

fn condition(place: &str, entry: ConditionEntry) -> Result<Condition> {
    let key = |literal: &Literal| (literal.clone(), literal.to_string());
    let one_of = entry.one_of.map(|literals| {
        let place = format!("{place}.one_of");
        distinct(
            &place,
            "",
            literals,
            MAX_PARAMETERS,
            |_, literal| Ok(literal),
            key,
        )
    });
    let mut written: Vec<Requirement> = [
        entry.at_most.map(Requirement::AtMost),
        entry.at_least.map(Requirement::AtLeast),
        entry.equals.map(Requirement::Equals),
        one_of.transpose()?.map(Requirement::OneOf),
    ]
    .into_iter()
    .flatten()
    .collect();
    let count = written.len();
    match written.pop() {
        Some(requirement) if count == 1 => Ok(Condition {
            parameter: entry.parameter,
            requirement,
        }),
        _ => Err(at(place, FieldError::Requirements(count))),
    }
}

/// Every value a condition names must be one the parameter can have: a rule nothing can meet, or a choice nothing can
/// take, is a mistake in the policy and not a way to forbid an action.
fn resolve(place: &str, condition: &Condition, action: &ActionSpec) -> Result<()> {
    let (parameter, template) = (&condition.parameter, &action.template);
    let Some(spec) = action.parameters.get(parameter) else {
        let (template, parameter) = (template.clone(), parameter.clone());
        let problem = FieldError::UnknownParameter { template, parameter };
        return Err(at(format!("{place}.parameter"), problem));
    };
    let (field, refused) = match &condition.requirement {
        // Named values must be possible; a bound must leave something, and may be wider than the parameter's own.
        Requirement::Equals(literal) => ("equals", (!spec.accepts(literal)).then(|| literal.to_string())),
        Requirement::OneOf(literals) => (
            "one_of",
            literals
                .iter()
                .find(|literal| !spec.accepts(literal))
                .map(Literal::to_string),
        ),
        Requirement::AtMost(bound) => {
            in_range(format!("{place}.at_most"), *bound, INTEGERS)?;
            let met = matches!(spec, ParameterSpec::Integer { minimum, .. } if bound >= minimum);
            ("at_most", (!met).then(|| bound.to_string()))
        }
        Requirement::AtLeast(bound) => {
            in_range(format!("{place}.at_least"), *bound, INTEGERS)?;
            let met = matches!(spec, ParameterSpec::Integer { maximum, .. } if bound <= maximum);
            ("at_least", (!met).then(|| bound.to_string()))
        }
    };
    refused.map_or(Ok(()), |value| {
        let (parameter, template) = (parameter.clone(), template.clone());
        let problem = FieldError::Impossible {
            value,
            parameter,
            template,
            accepts: spec.to_string(),
        };
        Err(at(format!("{place}.{field}"), problem))
    })
}

fn at(place: impl Into<String>, problem: FieldError) -> OntologyError {
    OntologyError::Field {
        place: place.into(),
        problem,
    }
}

fn ensure(valid: bool, place: impl Into<String>, problem: impl FnOnce() -> FieldError) -> Result<()> {
    if valid { Ok(()) } else { Err(at(place, problem())) }
}

fn name(place: impl Into<String>, value: String) -> Result<String> {
    ensure(is_name(&value, b'-'), place, || FieldError::Name(value.clone()))?;
    Ok(value)
}

/// Handlers are reached below a base URL, so a path must not be able to leave it or carry a query.
fn path(place: String, value: String) -> Result<String> {
    let segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let below = value.strip_prefix('/');
    let valid = value.len() <= MAX_PATH && below.is_some_and(|rest| rest.split('/').all(segment));
    ensure(valid, place, || FieldError::Path(value.clone()))?;
    Ok(value)
}

/// A description is one line; how the author broke it in the file means nothing.
fn description(place: String, value: &str) -> Result<String> {
    let one_line = value.split_whitespace().collect::<Vec<_>>().join(" ");
    text(&place, &one_line, MAX_DESCRIPTION)?;
    Ok(one_line)
}

fn text(place: &str, value: &str, limit: usize) -> Result<()> {
    let valid = !value.is_empty() && value.chars().count() <= limit && !value.contains(char::is_control);
    ensure(valid, place, || FieldError::Text { limit })
}

fn in_range(place: impl Into<String>, value: impl Into<i128>, range: RangeInclusive<i64>) -> Result<()> {
    let (value, (minimum, maximum)) = (value.into(), range.into_inner());
    let within = (minimum.into()..=maximum.into()).contains(&value);
    ensure(within, place, || FieldError::OutOfRange {
        value: value.to_string(),
        minimum,
        maximum,
    })
}

fn at_most(place: &str, count: usize, limit: usize) -> Result<()> {
    ensure(count <= limit, place, || FieldError::TooMany { count, limit })
}

/// Checks each entry of a list and sorts them by their keys. A list that is written has entries, and no key twice:
/// `key` gives it with how it is shown, `field` where in the entry it is written.
fn distinct<E, T, K: Ord>(
    place: &str,
    field: &str,
    entries: Vec<E>,
    limit: usize,
    check: impl Fn(&str, E) -> Result<T>,
    key: impl Fn(&T) -> (K, String),
) -> Result<Vec<T>> {
    ensure(!entries.is_empty(), place, || FieldError::Empty)?;
    at_most(place, entries.len(), limit)?;
    let mut distinct = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let place = format!("{place}[{index}]");
        let entry = check(&place, entry)?;
        let (key, shown) = key(&entry);
        let first = distinct.insert(key, entry).is_none();
        ensure(first, place + field, || FieldError::Duplicate(shown))?;
    }
    Ok(distinct.into_values().collect())
}
