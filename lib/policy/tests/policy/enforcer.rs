//! The enforcer: what it decides, and what it refuses to load.

use policy::{Bundle, Decision, Enforcer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{PROFESSIONAL, PROFESSIONAL_NEXT, RICH, compiled, edited, enforcer};

#[track_caller]
fn check(enforcer: &Enforcer, template: &str, parameters: &Value, expected: Result<&str, &str>) {
    let decision = enforcer.decide("customer-123", template, parameters.as_object().unwrap());
    let actual = match &decision {
        Decision::Allow { rules } => Ok(rules.join(" ")),
        Decision::Deny { rules, .. } => Err(rules.join(" ")),
    };
    let expected = expected.map(str::to_owned).map_err(str::to_owned);
    assert_eq!(actual, expected, "{template} {parameters}: {decision:?}");
}

#[test]
fn every_bound_from_both_sides() {
    let (first, next) = (enforcer(PROFESSIONAL), enforcer(PROFESSIONAL_NEXT));
    let permit = "permit:scale-service";
    for (replicas, in_first, in_next) in [
        (i64::MIN, Err("parameter-schema"), Err("parameter-schema")),
        (-1, Err(permit), Err(permit)),
        (0, Err(permit), Err(permit)),
        (1, Ok(permit), Ok(permit)),
        (2, Ok(permit), Ok(permit)),
        (9, Ok(permit), Ok(permit)),
        (10, Ok(permit), Ok(permit)),
        (11, Err("replicas-within-plan"), Ok(permit)),
        (19, Err("replicas-within-plan"), Ok(permit)),
        (20, Err("replicas-within-plan"), Ok(permit)),
        (21, Err("replicas-within-plan"), Err("replicas-within-plan")),
        (100, Err("replicas-within-plan"), Err("replicas-within-plan")),
        (101, Err("replicas-within-plan"), Err("replicas-within-plan")),
        (
            9_007_199_254_740_991,
            Err("replicas-within-plan"),
            Err("replicas-within-plan"),
        ),
        (
            9_007_199_254_740_992,
            Err("parameter-schema"),
            Err("parameter-schema"),
        ),
    ] {
        let parameters = json!({ "service": "api", "replicas": replicas });
        check(&first, "scale-service", &parameters, in_first);
        check(&next, "scale-service", &parameters, in_next);
    }
    let (permit, schema) = ("permit:restart-service", "parameter-schema");
    for (parameters, expected) in [
        (json!({ "service": "api" }), Ok(permit)),
        (json!({ "service": "" }), Ok(permit)),
        (json!({ "service": "é".repeat(64) }), Ok(permit)),
        (json!({ "service": "é".repeat(65) }), Err(schema)),
        (json!({ "service": "api", "delay_ms": -1 }), Err(permit)),
        (json!({ "service": "api", "delay_ms": 0 }), Ok(permit)),
        (json!({ "service": "api", "delay_ms": 1 }), Ok(permit)),
        (json!({ "service": "api", "delay_ms": 59_999 }), Ok(permit)),
        (json!({ "service": "api", "delay_ms": 60_000 }), Ok(permit)),
        (json!({ "service": "api", "delay_ms": 60_001 }), Err(permit)),
        (json!({ "service": "api", "outcome": "succeed" }), Ok(permit)),
        (
            json!({ "service": "api", "outcome": "fail-unrecoverable" }),
            Ok(permit),
        ),
        (json!({ "service": "api", "outcome": "Succeed" }), Err(permit)),
        (json!({ "service": "api", "outcome": "" }), Err(permit)),
    ] {
        check(&first, "restart-service", &parameters, expected);
    }
}

#[test]
fn parameters_other_than_declared_are_denied() {
    let enforcer = enforcer(PROFESSIONAL);
    for parameters in [
        json!({}),
        json!({ "service": "api" }),
        json!({ "replicas": 2 }),
        json!({ "service": null, "replicas": 2 }),
        json!({ "service": "api", "replicas": null }),
        json!({ "service": "api", "replicas": "2" }),
        json!({ "service": "api", "replicas": 2.0 }),
        json!({ "service": "api", "replicas": 2.5 }),
        json!({ "service": "api", "replicas": 1e300 }),
        json!({ "service": "api", "replicas": u64::MAX }),
        json!({ "service": "api", "replicas": true }),
        json!({ "service": "api", "replicas": [2] }),
        json!({ "service": { "__entity": { "type": "Tenant", "id": "a" } }, "replicas": 2 }),
        json!({ "service": 1, "replicas": 2 }),
        json!({ "service": "api", "replicas": 2, "force": true }),
        json!({ "service": "api", "replicas": 2, "": 1 }),
        json!({ "service": "api", "replicas": 2, "Replicas": 2 }),
        json!({ "service": "api", "replicas": 2, "outcome": null }),
    ] {
        check(&enforcer, "scale-service", &parameters, Err("parameter-schema"));
    }
    let parameters = json!({ "service": "api" });
    for template in [
        "",
        "scale",
        "Restart-service",
        "restart-service ",
        "permit:restart-service",
        "\"; permit",
    ] {
        check(&enforcer, template, &parameters, Err("unknown-action"));
        assert!(enforcer.action(template).is_none());
    }
    // Any account id is an id and nothing else.
    for account in [
        "",
        "\"",
        "a\"; permit(principal, action, resource);",
        "\u{0}",
        &"x".repeat(100_000),
    ] {
        let decision = enforcer.decide(account, "restart-service", parameters.as_object().unwrap());
        assert!(decision.is_allowed(), "{account:?}");
    }
}

#[test]
fn rules_join_and_missing_parameters_do_not_pass() {
    let enforcer = enforcer(RICH);
    for (template, parameters, expected) in [
        ("observe", json!({}), Ok("permit:observe")),
        ("shift", json!({ "steps": 0 }), Ok("permit:shift")),
        ("shift", json!({ "steps": 2 }), Ok("permit:shift")),
        ("shift", json!({ "steps": 3 }), Err("small-steps")),
        (
            "move",
            json!({ "dry": true, "in": "ü", "steps": 1 }),
            Ok("permit:move"),
        ),
        (
            "move",
            json!({ "dry": true, "in": "ü", "steps": 1, "any_number": -9_007_199_254_740_991_i64 }),
            Ok("permit:move"),
        ),
        (
            "move",
            json!({ "dry": true, "in": "ü", "steps": -1 }),
            Err("small-steps"),
        ),
        // `steps` and `in` are optional, but rules ask for them.
        ("move", json!({ "dry": true, "in": "ü" }), Err("small-steps")),
        ("move", json!({ "dry": true, "steps": 1 }), Err("dry-only")),
        (
            "move",
            json!({ "dry": false, "in": "ü", "steps": 1 }),
            Err("dry-only"),
        ),
        (
            "move",
            json!({ "dry": false, "in": "ü", "steps": 5 }),
            Err("dry-only small-steps"),
        ),
        ("move", json!({ "dry": false }), Err("dry-only small-steps")),
        (
            "move",
            json!({ "dry": true, "in": "ü", "steps": 1, "note": "abcd" }),
            Err("parameter-schema"),
        ),
    ] {
        check(&enforcer, template, &parameters, expected);
    }
}

#[test]
fn a_denial_says_why() {
    let enforcer = enforcer(PROFESSIONAL);
    for (parameters, expected) in [
        (
            json!({ "service": "api", "replicas": 11 }),
            "replicas-within-plan: A professional plan runs at most 10 replicas of a service.",
        ),
        (
            json!({ "service": "api", "replicas": 0 }),
            "parameter \"replicas\" must be an integer from 1 to 100",
        ),
        (
            json!({ "service": "api", "replicas": 1.5 }),
            "parameter \"replicas\" must be a whole number from -9007199254740991 to 9007199254740991",
        ),
        (json!({ "service": "api" }), "parameter \"replicas\" is missing"),
        (
            json!({ "service": 1, "replicas": 1 }),
            "parameter \"service\" must be a string of at most 64 characters",
        ),
        (
            json!({ "x": "secret" }),
            "a parameter is not declared; the action has: delay_ms, outcome, replicas, service",
        ),
    ] {
        match enforcer.decide("a", "scale-service", parameters.as_object().unwrap()) {
            Decision::Deny { detail, .. } => assert_eq!(detail, expected),
            Decision::Allow { .. } => panic!("{parameters} was allowed"),
        }
    }
}

/// The worked example of policies/README.md is true.
#[test]
fn the_readme_example() {
    let readme = include_str!("../../../../policies/README.md");
    let yaml = readme
        .split("```yaml")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let enforcer = enforcer(yaml);
    let mut checked = 0;
    for row in readme.lines().filter(|line| line.starts_with("| `{")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let rule = cells[3].split('`').nth(1).unwrap();
        for request in cells[1].split('`').filter(|part| part.starts_with('{')) {
            let expected = if cells[2] == "allowed" {
                Ok(rule)
            } else {
                Err(rule)
            };
            check(
                &enforcer,
                "scale-service",
                &serde_json::from_str(request).unwrap(),
                expected,
            );
            checked += 1;
        }
    }
    assert_eq!(checked, 6);
}

fn any_json() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3_i64..120).prop_map(Value::from),
        "(succeed|fail|api|\\PC{0,80})".prop_map(Value::from),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,8}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn any_parameters() -> impl Strategy<Value = Map<String, Value>> {
    let likely = (
        "service",
        any_json(),
        "replicas",
        any_json(),
        "outcome",
        any_json(),
        "delay_ms",
        any_json(),
    );
    let keep = prop::collection::vec(prop::bool::weighted(0.7), 4);
    let extra = prop::collection::btree_map("\\PC{0,8}", any_json(), 0..2);
    (likely, keep, extra).prop_map(|((a, av, b, bv, c, cv, d, dv), keep, extra)| {
        let named = [(a, av), (b, bv), (c, cv), (d, dv)]
            .into_iter()
            .zip(keep)
            .filter(|(_, keep)| *keep);
        let named = named.map(|((name, value), _)| (name.to_owned(), value));
        named.chain(extra).collect()
    })
}

/// What the sample policy means, written a second time.
fn meant(template: &str, parameters: &Map<String, Value>) -> bool {
    let declared: &[&str] = match template {
        "scale-service" => &["service", "replicas", "outcome", "delay_ms"],
        "restart-service" | "rotate-credentials" => &["service", "outcome", "delay_ms"],
        _ => return false,
    };
    let service = parameters
        .get("service")
        .and_then(Value::as_str)
        .is_some_and(|text| text.chars().count() <= 64);
    let replicas = parameters
        .get("replicas")
        .and_then(Value::as_i64)
        .is_some_and(|n| (1..=10).contains(&n));
    let outcome = parameters.get("outcome").is_none_or(|value| {
        value
            .as_str()
            .is_some_and(|text| ["succeed", "fail", "fail-unrecoverable"].contains(&text))
    });
    let delay = parameters
        .get("delay_ms")
        .is_none_or(|value| value.as_i64().is_some_and(|n| (0..=60_000).contains(&n)));
    parameters.keys().all(|name| declared.contains(&name.as_str()))
        && service
        && (template != "scale-service" || replicas)
        && outcome
        && delay
}

#[test]
fn any_parameters_get_the_meant_answer() {
    let enforcer = enforcer(PROFESSIONAL);
    let template = prop_oneof![
        4 => Just("scale-service".to_owned()),
        2 => Just("restart-service".to_owned()),
        1 => Just("rotate-credentials".to_owned()),
        1 => "\\PC{0,20}",
    ];
    // Half of the requests are near the line between allowed and denied.
    let near = (
        0_i64..13,
        prop::option::of("(succeed|fail|x)"),
        prop::option::of(-1_i64..2),
    )
        .prop_map(|(n, o, d)| {
            let mut parameters = json!({ "service": "api", "replicas": n });
            if let Some(outcome) = o {
                parameters["outcome"] = outcome.into();
            }
            if let Some(delay) = d {
                parameters["delay_ms"] = delay.into();
            }
            parameters.as_object().unwrap().clone()
        });
    let config = ProptestConfig {
        cases: 2000,
        ..ProptestConfig::default()
    };
    proptest!(config, |(account in "\\PC{0,20}", template in template, parameters in prop_oneof![any_parameters(), near])| {
        let decision = enforcer.decide(&account, &template, &parameters);
        prop_assert_eq!(decision.is_allowed(), meant(&template, &parameters), "{:?}", decision);
        prop_assert!(!decision.rules().is_empty());
    });
}

#[test]
fn any_bounds_are_kept() {
    let limits = -9_007_199_254_740_991_i64..=9_007_199_254_740_991;
    let bound = prop_oneof![-20_i64..20, limits.clone()];
    proptest!(|(a in bound.clone(), b in bound.clone(), rule in bound, near in -2_i64..3, which in 0_usize..3)| {
        let (minimum, maximum) = (a.min(b), a.max(b));
        prop_assume!(rule >= minimum);
        let yaml = edited(PROFESSIONAL, "minimum: 1, maximum: 100", &format!("minimum: {minimum}, maximum: {maximum}"));
        let enforcer = enforcer(&edited(&yaml, "at_most: 10 ", &format!("at_most: {rule} ")));
        let value = [minimum, maximum, rule][which] + near;
        let parameters = json!({ "service": "api", "replicas": value });
        let decision = enforcer.decide("a", "scale-service", parameters.as_object().unwrap());
        let meant = limits.contains(&value) && (minimum..=maximum).contains(&value) && value <= rule;
        prop_assert_eq!(decision.is_allowed(), meant, "{} of {}..={}, at most {}", value, minimum, maximum, rule);
    });
}

/// The bytes of a bundle changed in one way, canonical again.
fn rewritten(change: impl FnOnce(&mut Bundle)) -> Vec<u8> {
    let mut bundle = compiled(PROFESSIONAL).bundle;
    change(&mut bundle);
    serde_json_canonicalizer::to_vec(&bundle).unwrap()
}

/// A policy whose evaluation overflows is well typed; it still lets nothing through.
#[test]
fn evaluation_errors_deny() {
    let overflow = "context.parameters[\"replicas\"] + 9223372036854775807 > 0";
    let permit = "context.parameters[\"replicas\"] <= 100";
    let unless = "context.parameters[\"replicas\"] <= 10";
    for (index, from) in [(2, permit), (3, unless)] {
        let bytes = rewritten(|bundle| {
            let text = &mut bundle.cedar_policies[index].text;
            *text = edited(text, from, overflow);
        });
        let enforcer = Enforcer::load(&bytes).unwrap();
        check(
            &enforcer,
            "scale-service",
            &json!({ "service": "api", "replicas": 2 }),
            Err("evaluation-error"),
        );
        check(
            &enforcer,
            "restart-service",
            &json!({ "service": "api" }),
            Ok("permit:restart-service"),
        );
    }
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let error = Enforcer::load(bytes).unwrap_err().to_string();
    assert!(
        error.contains(expected),
        "expected {expected:?}\n     got {error:?}"
    );
}

#[test]
fn bundles_that_do_not_load() {
    let good = compiled(PROFESSIONAL);
    let text = String::from_utf8(good.bytes.clone()).unwrap();
    let not_canonical = "bundle is not canonical JSON (RFC 8785)";
    refused(b"", "cannot read the bundle");
    refused(b"{}", "missing field `format`");
    refused(&good.bytes[..good.bytes.len() - 1], "cannot read the bundle");
    refused(format!("{text}x").as_bytes(), "cannot read the bundle");
    refused(format!("{text}\n").as_bytes(), not_canonical);
    refused(text.replacen(':', ": ", 1).as_bytes(), not_canonical);
    refused(
        serde_json::to_string_pretty(&good.bundle).unwrap().as_bytes(),
        not_canonical,
    );
    refused(
        text.replacen("\"Restarts", "\"\\u0052estarts", 1).as_bytes(),
        not_canonical,
    );
    refused(text.replacen('{', "{\"x\":1,", 1).as_bytes(), "unknown field `x`");
    refused(
        text.replacen('{', "{\"format\":1,", 1).as_bytes(),
        "duplicate field `format`",
    );
    refused(
        text.replacen("\"quota\":{", "\"quota\":{\"a\":1,", 1).as_bytes(),
        not_canonical,
    );
    refused(
        text.replacen("\"isolation\":\"pool\"", "\"isolation\":\"open\"", 1)
            .as_bytes(),
        "unknown variant `open`",
    );
    refused(
        text.replacen("\"tier\":1", "\"tier\":9", 1).as_bytes(),
        "9 is not a tier",
    );
    refused(
        &vec![b' '; 1024 * 1024 + 1],
        "bundle of 1048577 bytes is larger than the 1048576 allowed",
    );
    // Deep nesting ends in an error, not in the stack.
    refused("[".repeat(1_000_000).as_bytes(), "cannot read the bundle");
    refused(&[0xff, 0xfe], "cannot read the bundle");

    refused(
        &rewritten(|bundle| bundle.format = 2),
        "bundle has format 2, but this enforcer reads format 1",
    );
    refused(
        &rewritten(|bundle| bundle.actions.reverse()),
        "bundle's actions are out of order at \"rotate-credentials\"",
    );
    refused(
        &rewritten(|bundle| {
            let twice = bundle.actions[0].clone();
            bundle.actions.insert(0, twice);
        }),
        "bundle's actions are out of order at \"restart-service\"",
    );
    refused(
        &rewritten(|bundle| {
            bundle
                .cedar_policies
                .retain(|policy| policy.id != "permit:scale-service")
        }),
        "bundle has no policy \"permit:scale-service\"",
    );
    refused(
        &rewritten(|bundle| bundle.cedar_schema.push('}')),
        "Cedar schema is not valid",
    );
    refused(
        &rewritten(|bundle| bundle.cedar_policies[0].text.push('}')),
        "Cedar policy \"permit:restart-service\" does not parse",
    );
    refused(
        &rewritten(|bundle| {
            bundle.cedar_policies[0]
                .text
                .push_str("permit(principal, action, resource);")
        }),
        "Cedar policy \"permit:restart-service\" does not parse",
    );
    refused(
        &rewritten(|bundle| bundle.cedar_policies[0].id = "permit:all".to_owned()),
        "Cedar policy \"permit:all\" has a different @id",
    );
    refused(
        &rewritten(|bundle| {
            let twice = bundle.cedar_policies[0].clone();
            bundle.cedar_policies.push(twice);
        }),
        "cannot add Cedar policy",
    );
    refused(
        &rewritten(|bundle| {
            let text = &mut bundle.cedar_policies[3].text;
            *text = text.replace("replicas", "replica");
        }),
        "has a different @id",
    );
    refused(
        &rewritten(|bundle| {
            let text = &mut bundle.cedar_policies[3].text;
            *text = text.replace("\"replicas\"]", "\"service\"]");
        }),
        "Cedar policies do not fit their schema",
    );
}

#[test]
fn no_change_of_a_byte_goes_unseen() {
    let good = compiled(PROFESSIONAL);
    proptest!(|(at in 0..good.bytes.len(), byte in any::<u8>())| {
        prop_assume!(good.bytes[at] != byte);
        let mut bytes = good.bytes.clone();
        bytes[at] = byte;
        if let Ok(enforcer) = Enforcer::load(&bytes) {
            prop_assert_ne!(enforcer.hash(), &good.hash);
        }
    });
}

/// A function shares one enforcer between its tasks.
#[test]
fn an_enforcer_can_be_shared() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    shared(&enforcer(PROFESSIONAL));
}
