//! Which bundle may follow which.

use policy::{Compatibility, QuotaChange, UpgradeSummary, check_upgrade};

use crate::{BASIC, PROFESSIONAL, PROFESSIONAL_NEXT, RICH, compiled, edited};

#[track_caller]
fn accepted(previous: Option<&str>, next: &str) -> UpgradeSummary {
    let previous = previous.map(|yaml| compiled(yaml).bundle);
    match check_upgrade(previous.as_ref(), &compiled(next).bundle).unwrap() {
        Compatibility::Compatible(summary) => summary,
        Compatibility::Unchanged => panic!("unchanged"),
    }
}

#[track_caller]
fn refused(previous: &str, next: &str, expected: &str) {
    let error = check_upgrade(Some(&compiled(previous).bundle), &compiled(next).bundle).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_sample_upgrade() {
    let summary = accepted(Some(PROFESSIONAL), PROFESSIONAL_NEXT);
    assert_eq!(summary.previous_version.unwrap().to_string(), "1.0.0");
    assert_eq!(summary.version.to_string(), "1.1.0");
    assert_eq!(summary.added, [""; 0]);
    assert_eq!(summary.changed, ["scale-service"]);
    assert_eq!(summary.unchanged, ["restart-service", "rotate-credentials"]);
    assert_eq!(summary.quota_change, None);
}

#[test]
fn a_first_policy_adds_everything() {
    let summary = accepted(None, PROFESSIONAL);
    assert_eq!(summary.previous_version, None);
    assert_eq!(
        summary.added,
        ["restart-service", "rotate-credentials", "scale-service"]
    );
    assert_eq!(
        (
            summary.changed.len(),
            summary.unchanged.len(),
            summary.quota_change
        ),
        (0, 0, None)
    );
}

#[test]
fn the_same_policy_is_unchanged() {
    let bundle = compiled(PROFESSIONAL).bundle;
    assert_eq!(
        check_upgrade(Some(&bundle), &bundle),
        Ok(Compatibility::Unchanged)
    );
    let commented = compiled(&format!("# the same\n{PROFESSIONAL}")).bundle;
    assert_eq!(
        check_upgrade(Some(&bundle), &commented),
        Ok(Compatibility::Unchanged)
    );
}

#[test]
fn each_change_is_told() {
    let next = edited(RICH, "2.3.4-rc.1", "2.3.4");
    for (from, to, changed) in [
        ("tier: 0", "tier: 1", &["observe"][..]),
        ("max_length: 3", "max_length: 4", &["move"]),
        ("at_most: 2", "at_most: 1", &["move", "shift"]),
        ("equals: true", "equals: false", &["move"]),
        ("\"99\"", "\"98\"", &[]),
    ] {
        assert_eq!(
            accepted(Some(RICH), &edited(&next, from, to)).changed,
            changed,
            "{to}"
        );
    }
    let QuotaChange { previous, next } = accepted(
        Some(RICH),
        &edited(&next, "concurrent_actions: 1", "concurrent_actions: 2"),
    )
    .quota_change
    .unwrap();
    assert_eq!((previous.concurrent_actions, next.concurrent_actions), (1, 2));
}

#[test]
fn refusals() {
    refused(
        PROFESSIONAL_NEXT,
        PROFESSIONAL,
        "policy version 1.0.0 is not greater than 1.1.0, the version in force",
    );
    refused(
        PROFESSIONAL,
        &edited(PROFESSIONAL, "monthly_actions: 10000", "monthly_actions: 1"),
        "policy version 1.0.0 is not greater than 1.0.0, the version in force",
    );
    for (version, lower) in [
        ("2.3.4-rc.1+build.2", true),
        ("2.3.4-beta", true),
        ("2.3.4-rc.2", false),
        ("10.0.0", false),
    ] {
        let next = edited(RICH, "2.3.4-rc.1", version);
        let result = check_upgrade(Some(&compiled(RICH).bundle), &compiled(&next).bundle);
        assert_eq!(result.is_err(), lower, "{version}");
    }
    refused(
        PROFESSIONAL,
        BASIC,
        "policy is for github-marketplace/basic, but the one in force is for marketplace-sku-456/professional",
    );
    refused(
        PROFESSIONAL,
        &edited(
            PROFESSIONAL_NEXT,
            "plan_type: professional",
            "plan_type: enterprise",
        ),
        "policy is for marketplace-sku-456/enterprise, but the one in force is for marketplace-sku-456/professional",
    );
    refused(
        PROFESSIONAL,
        &edited(PROFESSIONAL_NEXT, "isolation: pool", "isolation: dedicated"),
        "policy changes isolation from pool to dedicated, which would move tenants' records",
    );
    let renamed = edited(
        PROFESSIONAL_NEXT,
        "template: restart-service",
        "template: restart",
    );
    let renamed = edited(&renamed, "template: rotate-credentials", "template: rotate");
    refused(
        PROFESSIONAL,
        &renamed,
        "policy 1.1.0 removes restart-service, rotate-credentials, which tenants of 1.0.0 may be using",
    );
}
