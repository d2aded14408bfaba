//! What an enforcer answers, and the ids of the rules it names.

/// Rule id of a denial because the policy has no such action.
pub const UNKNOWN_ACTION: &str = "unknown-action";
/// Rule id of a denial because the parameters are not those the action declares.
pub const PARAMETER_SCHEMA: &str = "parameter-schema";
/// Rule id of a denial because a policy could not be evaluated.
pub const EVALUATION_ERROR: &str = "evaluation-error";

const PERMIT: &str = "permit:";

/// Ids no approval rule may take.
pub(crate) const RESERVED_RULE_IDS: [&str; 3] = [UNKNOWN_ACTION, PARAMETER_SCHEMA, EVALUATION_ERROR];

/// Id of the `permit` of an action; the colon keeps it apart from every rule a policy can name.
pub(crate) fn permit_id(template: &str) -> String {
    format!("{PERMIT}{template}")
}

/// Whether a rule is the `permit` of an action, which holds the bounds of its parameters, and not one of compliance's own.
#[must_use]
pub fn is_permit(rule: &str) -> bool {
    rule.starts_with(PERMIT)
}

/// Whether a request may run, and which rules say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow {
        /// Ids of the policies that permit it, sorted.
        rules: Vec<String>,
    },
    /// It may not.
    Deny {
        /// Ids of what denies it, sorted; never empty. An approval rule's id, `permit:<template>` when a parameter
        /// is outside its bounds, [`PARAMETER_SCHEMA`], [`UNKNOWN_ACTION`] or [`EVALUATION_ERROR`].
        rules: Vec<String>,
        /// For people: why. Names parameters, never quotes a text the request carried.
        detail: String,
    },
}

impl Decision {
    /// Whether the request may run.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// Ids of the deciding rules, sorted.
    #[must_use]
    pub fn rules(&self) -> &[String] {
        match self {
            Self::Allow { rules } | Self::Deny { rules, .. } => rules,
        }
    }

    pub(crate) fn deny(rule: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Deny {
            rules: vec![rule.into()],
            detail: detail.into(),
        }
    }
}
