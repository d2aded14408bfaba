//! Whether one bundle may take another's place for a plan's tenants.

use std::collections::BTreeMap;

use semver::Version;
use serde::Serialize;

use crate::bundle::{Bundle, PolicyText};
use crate::ontology::{ActionSpec, Isolation, Quota};

/// The next bundle may be deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compatibility {
    /// It is the one already in place; there is nothing to deploy.
    Unchanged,
    /// It may take the previous one's place.
    Compatible(UpgradeSummary),
}

/// What an upgrade changes; lists are sorted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UpgradeSummary {
    /// The version replaced; none when the plan had no policy.
    pub previous_version: Option<Version>,
    pub version: Version,
    pub added: Vec<String>,
    /// Templates whose action, bounds or rules differ. A rule that gains or loses an action counts for all of its
    /// actions.
    pub changed: Vec<String>,
    /// Templates decided as before.
    pub unchanged: Vec<String>,
    /// The quota before and after, where it differs.
    pub quota_change: Option<QuotaChange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct QuotaChange {
    pub previous: Quota,
    pub next: Quota,
}

/// The next bundle may not be deployed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompatibilityError {
    /// The plans are `<sku>/<plan>`.
    #[error("policy is for {next}, but the one in force is for {previous}")]
    OtherPlan { previous: String, next: String },
    /// Precedence is SemVer 2.0.0 section 11's, so build metadata does not count.
    #[error("policy version {next} is not greater than {previous}, the version in force")]
    VersionNotGreater { previous: Version, next: Version },
    #[error("policy {next} removes {}, which tenants of {previous} may be using", templates.join(", "))]
    TemplatesRemoved {
        previous: Version,
        next: Version,
        /// Sorted.
        templates: Vec<String>,
    },
    #[error("policy changes isolation from {previous} to {next}, which would move tenants' records")]
    IsolationChanged { previous: Isolation, next: Isolation },
}

/// Compares the bundle in force with the one to deploy.
///
/// # Errors
/// When tenants could lose what they have: an action, their tables, or the order of versions.
pub fn check_upgrade(previous: Option<&Bundle>, next: &Bundle) -> Result<Compatibility, CompatibilityError> {
    let Some(previous) = previous else {
        return Ok(Compatibility::Compatible(summary(None, next)));
    };
    if (&previous.sku_id, &previous.plan_type) != (&next.sku_id, &next.plan_type) {
        return Err(CompatibilityError::OtherPlan {
            previous: plan_name(previous),
            next: plan_name(next),
        });
    }
    // Equal bundles have equal bytes, because bundle bytes are canonical.
    if previous == next {
        return Ok(Compatibility::Unchanged);
    }
    if next.version.cmp_precedence(&previous.version).is_le() {
        let (previous, next) = (previous.version.clone(), next.version.clone());
        return Err(CompatibilityError::VersionNotGreater { previous, next });
    }
    let (before, after) = (decided(previous), decided(next));
    let removed: Vec<String> = before
        .keys()
        .filter(|template| !after.contains_key(*template))
        .map(|&template| template.to_owned())
        .collect();
    if !removed.is_empty() {
        let (previous, next) = (previous.version.clone(), next.version.clone());
        return Err(CompatibilityError::TemplatesRemoved {
            previous,
            next,
            templates: removed,
        });
    }
    if previous.isolation != next.isolation {
        return Err(CompatibilityError::IsolationChanged {
            previous: previous.isolation,
            next: next.isolation,
        });
    }
    Ok(Compatibility::Compatible(summary(Some(previous), next)))
}

fn plan_name(bundle: &Bundle) -> String {
    format!("{}/{}", bundle.sku_id, bundle.plan_type)
}

/// What decides on each template: its action and the policies that apply to it.
fn decided(bundle: &Bundle) -> BTreeMap<&str, (&ActionSpec, Vec<&PolicyText>)> {
    let policies = |action: &ActionSpec| {
        bundle
            .cedar_policies
            .iter()
            .filter(|policy| policy.actions.contains(&action.template))
            .collect()
    };
    bundle
        .actions
        .iter()
        .map(|action| (action.template.as_str(), (action, policies(action))))
        .collect()
}

fn summary(previous: Option<&Bundle>, next: &Bundle) -> UpgradeSummary {
    let before = previous.map(decided).unwrap_or_default();
    let (mut added, mut changed, mut unchanged) = (Vec::new(), Vec::new(), Vec::new());
    for (template, now) in decided(next) {
        let list = match before.get(template) {
            None => &mut added,
            Some(then) if *then == now => &mut unchanged,
            Some(_) => &mut changed,
        };
        list.push(template.to_owned());
    }
    let quota_change = previous
        .filter(|previous| previous.quota != next.quota)
        .map(|previous| QuotaChange {
            previous: previous.quota,
            next: next.quota,
        });
    UpgradeSummary {
        previous_version: previous.map(|previous| previous.version.clone()),
        version: next.version.clone(),
        added,
        changed,
        unchanged,
        quota_change,
    }
}
