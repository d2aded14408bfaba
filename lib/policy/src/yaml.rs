//! What a reader of YAML finds wrong, in the words of somebody who writes policies: what stands there, and what to write.

use std::borrow::Cow;

use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter};

/// The error, with its line and column.
pub(crate) fn explained(error: &Error) -> String {
    error.render_with_formatter(&Plain)
}

struct Plain;

impl MessageFormatter for Plain {
    fn format_message<'e>(&self, error: &'e Error) -> Cow<'e, str> {
        let text = match error {
            Error::WithSnippet { error, .. } => return self.format_message(error),
            Error::AliasError { error, .. } => return self.format_message(error),
            Error::Budget { breach, .. } => beyond(breach),
            Error::UnknownAnchor { .. }
            | Error::AliasReplayCounterOverflow { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. }
            | Error::RecursiveReferencesRequireWeakTypes { .. } => ALIASES.to_owned(),
            Error::MergeKeyNotAllowed { .. } | Error::MergeValueNotMapOrSeqOfMaps { .. } => {
                MERGE_KEYS.to_owned()
            }
            Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("duplicate mapping key: {key} is written twice; write it once")
            }
            Error::DuplicateMappingKey { key: None, .. } => {
                "duplicate mapping key: a field is written twice; write it once".to_owned()
            }
            Error::MultipleDocuments { .. } => {
                "multiple YAML documents: a policy is one document; remove what follows the line `---`"
                    .to_owned()
            }
            Error::NullIntoString { .. } => "a text is expected, and nothing stands there".to_owned(),
            Error::InvalidBooleanStrict { .. } => "expected true or false".to_owned(),
            Error::InvalidScalar { ty, .. } => format!("expected {}", expected(ty)),
            Error::SerdeInvalidType {
                unexpected,
                expected: wanted,
                ..
            }
            | Error::SerdeInvalidValue {
                unexpected,
                expected: wanted,
                ..
            } => {
                format!("expected {}, found {}", expected(wanted), found(unexpected))
            }
            Error::SerdeInvalidLength { expected: wanted, .. } => format!("expected {}", expected(wanted)),
            Error::Unexpected { expected: wanted, .. } => format!("expected {}", expected(wanted)),
            Error::TaggedScalarCannotDeserializeIntoString { .. } | Error::BinaryNotUtf8 { .. } => {
                "a tag (!name) stands before the text; remove it".to_owned()
            }
            Error::UnsupportedTag { tag, .. } => {
                format!("the tag {tag} has no meaning in a policy; remove it")
            }
            Error::TaggedEnumMismatch { tagged, .. } => {
                format!("the tag {tagged} has no meaning in a policy; remove it")
            }
            Error::ExpectedStringKeyForExternallyTaggedEnum { .. }
            | Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. }
            | Error::UnexpectedValueForUnitEnumVariant { .. } => "expected one word".to_owned(),
            _ => return DefaultMessageFormatter.format_message(error),
        };
        Cow::Owned(text)
    }
}

const ALIASES: &str = "anchors and aliases (&name, *name) are not allowed in a policy; write the value out";
const MERGE_KEYS: &str = "a merge key (<<) is not allowed in a policy; write the fields out";

/// More of something than a policy may have.
fn beyond(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Aliases { .. } | BudgetBreach::Anchors { .. } => ALIASES.to_owned(),
        BudgetBreach::MergeKeys { .. } => MERGE_KEYS.to_owned(),
        BudgetBreach::Depth { .. } => {
            "lists and fields are nested deeper than a policy's ever are".to_owned()
        }
        BudgetBreach::Documents { .. } => {
            "a policy is one document; remove what follows the line `---`".to_owned()
        }
        _ => "the policy has more entries than 50,000; split it".to_owned(),
    }
}

/// What should stand there. The reader knows it by its type.
fn expected(wanted: &str) -> &str {
    match wanted {
        "u64" | "u32" | "usize" => "a whole number, 0 or more",
        "i64" | "i32" => "a whole number",
        "bool" | "a boolean" => "true or false",
        "a map" | "mapping start" | "mapping" => "fields, each as `name: value`",
        "a sequence" | "sequence start" | "sequence" => "a list",
        "string scalar" | "string" | "a string" | "scalar" => "a text",
        other if other.starts_with("struct ") => "fields, each as `name: value`",
        other => other,
    }
}

fn found(unexpected: &str) -> &str {
    match unexpected {
        "map" => "fields",
        "sequence" => "a list",
        "unit value" | "null" | "Option value" => "nothing",
        other => other,
    }
}
