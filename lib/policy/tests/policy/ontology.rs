//! Bad policy files, and what is said about them.

use policy::{Ontology, Quota};

use crate::{PROFESSIONAL, RICH, edited};

#[track_caller]
fn refused(yaml: &str, expected: &str) {
    let error = Ontology::parse(yaml).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains(expected),
        "expected {expected:?}\n     got {error:?}"
    );
}

/// Replaces a passage of the rich policy and expects exactly this error about it.
#[track_caller]
fn check(from: &str, to: &str, expected: &str) {
    let error = Ontology::parse(&edited(RICH, from, to))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert_eq!(error, expected);
}

#[test]
fn names() {
    let rule = "is not a name: a lower-case letter, then up to 63 of a-z, 0-9 and -";
    let long = "a".repeat(65);
    for (name, shown) in [
        ("Rich", "Rich"),
        ("9lives", "9lives"),
        ("a_b", "a_b"),
        ("\"\"", ""),
        ("\"a\\\"b\"", "a\\\"b"),
        (&long, &long),
    ] {
        check("rich-sku", name, &format!("sku_id: \"{shown}\" {rule}"));
    }
    assert!(Ontology::parse(&edited(RICH, "rich-sku", &"a".repeat(64))).is_ok());
    check("everything", "Pro", &format!("plan_type: \"Pro\" {rule}"));
    check(
        "provider: github",
        "provider: Git Hub",
        &format!("aliases[0].provider: \"Git Hub\" {rule}"),
    );
    check(
        "template: observe",
        "template: ob serve",
        &format!("actions[0].template: \"ob serve\" {rule}"),
    );
    check(
        "id: small-steps",
        "id: Small",
        &format!("rules[0].id: \"Small\" {rule}"),
    );
    check(
        "dry: {",
        "dry-run: {",
        "actions[1].parameters.dry-run: \"dry-run\" is not a parameter name: a lower-case letter, then up to 63 of a-z, \
         0-9 and _",
    );
    for reserved in ["parameter-schema", "evaluation-error", "unknown-action"] {
        let expected = format!("rules[1].id: {reserved:?} is reserved for the enforcer's own decisions");
        check("id: dry-only", &format!("id: {reserved}"), &expected);
    }
}

#[test]
fn values() {
    check(
        "2.3.4-rc.1",
        "\"1.0\"",
        "version: \"1.0\" is not a semantic version such as 1.4.0: unexpected end of input while parsing minor version \
         number",
    );
    let long = "a".repeat(65);
    for id in ["", "4 35", "../435", "ü", &long] {
        let expected =
            format!("aliases[0].plan_id: {id:?} is not a plan id: 1 to 64 of A-Z, a-z, 0-9, ., _ and -");
        check("\"435\"", &format!("{id:?}"), &expected);
    }
    assert!(Ontology::parse(&edited(RICH, "\"435\"", &"a".repeat(64))).is_ok());
    for value in ["0", "9007199254740992"] {
        let problem = format!("{value} is out of range: 1 to 9007199254740991");
        check(
            "monthly_actions: 9007199254740991",
            &format!("monthly_actions: {value}"),
            &format!("quota.monthly_actions: {problem}"),
        );
        check(
            "concurrent_actions: 1",
            &format!("concurrent_actions: {value}"),
            &format!("quota.concurrent_actions: {problem}"),
        );
    }
    check(
        "tier: 2",
        "tier: 3",
        "actions[1].tier: 3 is not a tier: 0 observes, 1 is reversible, 2 needs a deterministic match",
    );
    for path in [
        "actions/move",
        "/",
        "/a//b",
        "/a/../b",
        "/a/./b",
        "/a?b=c",
        "/a#b",
        "/a%2e",
        "//evil.example",
        "/a/",
    ] {
        check(
            "/actions/move",
            &format!("{path:?}"),
            &format!(
                "actions[1].handler: {path:?} is not a path such as /actions/restart: segments of letters, digits, \
                 . _ - after each /"
            ),
        );
    }
    check(
        "/rollbacks/move",
        "/actions/move",
        "actions[1].rollback: is the handler's own path; a rollback needs a path of its own",
    );
    check(
        "description: Looks.",
        "description: \" \"",
        "actions[0].description: must be 1 to 1000 characters, none of them control characters",
    );
    check(
        "description: Looks.",
        "description: \"a\\u0007\"",
        "actions[0].description: must be 1 to 1000 characters, none of them control characters",
    );
    check(
        "\"a\", \"ü\"]",
        "\"\"]",
        "actions[1].parameters.in.one_of[1]: must be 1 to 256 characters, none of them control characters",
    );
}

#[test]
fn parameters() {
    let at = "actions[1].parameters";
    check(
        "minimum: -5, maximum: 5",
        "minimum: 6, maximum: 5",
        &format!("{at}.steps: minimum 6 is above maximum 5"),
    );
    for field in ["minimum", "maximum"] {
        for value in ["9007199254740992", "-9007199254740992"] {
            check(
                "any_number: { type: integer }",
                &format!("any_number: {{ type: integer, {field}: {value} }}"),
                &format!(
                    "{at}.any_number.{field}: {value} is out of range: -9007199254740991 to 9007199254740991"
                ),
            );
        }
        check(
            "max_length: 3",
            &format!("{field}: 1"),
            &format!("{at}.note.{field}: does not apply to a string"),
        );
        check(
            "required: true }\n      note",
            &format!("{field}: 1 }}\n      note"),
            &format!("{at}.dry.{field}: does not apply to a boolean"),
        );
    }
    check(
        "type: integer }",
        "type: integer, max_length: 1 }",
        &format!("{at}.any_number.max_length: does not apply to an integer"),
    );
    check(
        "type: integer }",
        "type: integer, one_of: [a] }",
        &format!("{at}.any_number.one_of: does not apply to an integer"),
    );
    check(
        "type: boolean,",
        "type: boolean, one_of: [a],",
        &format!("{at}.dry.one_of: does not apply to a boolean"),
    );
    check(
        "max_length: 3",
        "max_length: 3, one_of: [a]",
        &format!("{at}.note.max_length: does not apply to a string with one_of"),
    );
    for value in ["0", "4097"] {
        check(
            "max_length: 3",
            &format!("max_length: {value}"),
            &format!("{at}.note.max_length: {value} is out of range: 1 to 4096"),
        );
    }
}

#[test]
fn lists() {
    let empty = "is empty: add an entry or leave the field out";
    check(
        "[\"b \\\"quoted\\\" \\\\ back\", \"a\", \"ü\"]",
        "[]",
        &format!("actions[1].parameters.in.one_of: {empty}"),
    );
    check("[shift, move]", "[]", &format!("rules[0].actions: {empty}"));
    check(
        "one_of: [2, 0, 1]",
        "one_of: []",
        &format!("rules[0].require[2].one_of: {empty}"),
    );
    refused(
        &format!("{}rules: []", PROFESSIONAL.split("rules:").next().unwrap()),
        &format!("rules: {empty}"),
    );
    refused(
        &edited(PROFESSIONAL, "isolation:", "aliases: []\nisolation:"),
        &format!("aliases: {empty}"),
    );
    refused(
        "{sku_id: a, plan_type: b, version: 1.0.0, isolation: pool, quota: {monthly_actions: 1, concurrent_actions: 1}, actions: []}",
        &format!("actions: {empty}"),
    );

    check(
        "plan_id: \"99\"",
        "plan_id: \"435\"",
        "aliases[1].plan_id: 435 is listed twice",
    );
    check(
        "template: shift",
        "template: move",
        "actions[2].template: move is listed twice",
    );
    check(
        "\"a\", \"ü\"]",
        "\"a\", \"a\"]",
        "actions[1].parameters.in.one_of[2]: \"a\" is listed twice",
    );
    check(
        "[shift, move]",
        "[shift, move, shift]",
        "rules[0].actions[2]: shift is listed twice",
    );
    check(
        "[2, 0, 1]",
        "[2, 0, 2]",
        "rules[0].require[2].one_of[2]: 2 is listed twice",
    );
    check(
        "id: dry-only",
        "id: small-steps",
        "rules[1].id: small-steps is listed twice",
    );
    check(
        "at_least: -2",
        "at_most: 2",
        "rules[0].require[1]: the same condition is listed twice",
    );

    let many: Vec<String> = (0..101)
        .map(|n| format!("{{provider: github, plan_id: \"{}\"}}", n + 1))
        .collect();
    refused(
        &edited(
            PROFESSIONAL,
            "isolation:",
            &format!("aliases: [{}]\nisolation:", many.join(", ")),
        ),
        "aliases: has 101 entries, more than the 100 allowed",
    );
}

#[test]
fn references() {
    check(
        "[shift, move]",
        "[shift, fly]",
        "rules[0].actions[1]: no action has the template \"fly\"",
    );
    check(
        "parameter: dry, equals: true",
        "parameter: wet, equals: true",
        "rules[1].require[0].parameter: action \"move\" has no parameter \"wet\"",
    );
    check(
        "[shift, move]",
        "[observe]",
        "rules[0].require[0].parameter: action \"observe\" has no parameter \"steps\"",
    );
    for (to, count) in [
        ("parameter: steps", 0),
        ("parameter: steps, at_most: 1, equals: 1", 2),
    ] {
        check(
            "parameter: steps, at_least: -2",
            to,
            &format!(
                "rules[0].require[1]: needs exactly one of at_most, at_least, equals and one_of, but has {count}"
            ),
        );
    }
    let shift = |value: &str| {
        format!(
            "parameter \"steps\" of action \"shift\" does not accept {value}: it must be an integer from 0 to 3"
        )
    };
    let note = |value: &str| {
        format!(
            "parameter \"note\" of action \"move\" does not accept {value}: it must be a string of at most 3 characters"
        )
    };
    let dry = "parameter \"dry\" of action \"move\" does not accept 1: it must be true or false";
    for (from, to, at, expected) in [
        (
            "at_most: 2",
            "at_most: -6",
            "rules[0].require[0].at_most",
            shift("-6"),
        ),
        (
            "at_least: -2",
            "at_least: 4",
            "rules[0].require[1].at_least",
            shift("4"),
        ),
        ("[2, 0, 1]", "[2, -1]", "rules[0].require[2].one_of", shift("-1")),
        (
            "one_of: [2, 0, 1]",
            "equals: \"2\"",
            "rules[0].require[2].equals",
            shift("\"2\""),
        ),
        (
            "parameter: dry, equals: true",
            "parameter: dry, equals: 1",
            "rules[1].require[0].equals",
            dry.to_owned(),
        ),
        (
            "parameter: dry, equals: true",
            "parameter: note, at_most: 1",
            "rules[1].require[0].at_most",
            note("1"),
        ),
        (
            "parameter: dry, equals: true",
            "parameter: note, equals: long",
            "rules[1].require[0].equals",
            note("\"long\""),
        ),
    ] {
        check(from, to, &format!("{at}: {expected}"));
    }
}

/// What the reader of YAML refuses itself: each names the field or the line.
#[test]
fn shape() {
    for (from, to, expected) in [
        (
            "isolation: dedicated",
            "isolation: dedicated\nregion: eu",
            &["unknown field `region`", "line 8"][..],
        ),
        ("sku_id: rich-sku\n", "", &["missing field `sku_id`"]),
        (
            "concurrent_actions: 1",
            "concurrent_actions: 1, daily_actions: 1",
            &["unknown field `daily_actions`", "line 8"],
        ),
        (
            "isolation: dedicated",
            "isolation: shared",
            &["unknown variant `shared`", "line 7"],
        ),
        (
            "type: boolean",
            "type: float",
            &["unknown variant `float`", "line 24"],
        ),
        (
            "kind: ApprovalRule",
            "kind: Wish",
            &["unknown variant `Wish`", "line 34"],
        ),
        ("tier: 0", "tier: -1", &["line 12"]),
        ("tier: 0", "tier: one", &["line 12"]),
        ("minimum: -5", "minimum: 0.5", &["line 22"]),
        ("required: true", "required: yes", &["line 24"]),
        (
            "equals: true",
            "equals: 0.5",
            &["expected a whole number, a text, or true or false"],
        ),
        (
            "equals: true",
            "equals: [1]",
            &["expected a whole number, a text, or true or false"],
        ),
        (
            "tier: 0",
            "tier: 0\n    tier: 1",
            &["duplicate mapping key: tier", "line 13"],
        ),
        (
            "minimum: -5, ",
            "minimum: -5, minimum: -4, ",
            &["duplicate mapping key: minimum"],
        ),
        (
            "      dry: {",
            "      steps: {",
            &["duplicate mapping key: steps"],
        ),
        (
            "sku_id: rich-sku",
            "sku_id: &a rich-sku",
            &["anchors and aliases (&name, *name) are not allowed", "line 1"],
        ),
        (
            "sku_id: rich-sku",
            "sku_id: *a",
            &["aliases (&name, *name) are not allowed"],
        ),
        (
            "sku_id: rich-sku",
            "<<: {sku_id: rich-sku}",
            &["a merge key (<<) is not allowed"],
        ),
        (
            "sku_id: rich-sku",
            "sku_id: !ruby rich-sku",
            &["tag", "remove it"],
        ),
        (
            "sku_id: rich-sku",
            "sku_id:",
            &["a text is expected, and nothing stands there", "line 1"],
        ),
        (
            "sku_id: rich-sku",
            "sku_id: {a: b}",
            &["expected a text", "line 1"],
        ),
        (
            "quota: {",
            "quota: 5 # {",
            &["expected fields, each as `name: value`"],
        ),
        ("sku_id: rich-sku", "\tsku_id: rich-sku", &["line 1"]),
        ("sku_id: rich-sku", "sku_id: [rich-sku", &["line"]),
        (
            "sku_id: rich-sku",
            "sku_id: [[[[[[[[[[[[[[[[[[[[rich-sku]]]]]]]]]]]]]]]]]]]]",
            &["expected a text"],
        ),
    ] {
        let error = Ontology::parse(&edited(RICH, from, to))
            .map(|_| ())
            .unwrap_err()
            .to_string();
        for word in [
            "budget", "Policy", "Options", "Option<", "struct ", "enum ", "u64", "i64", "scalar", "serde",
        ] {
            assert!(!error.contains(word), "{error:?} says {word:?}");
        }
        for part in expected {
            assert!(
                error.contains(part),
                "{to:?}: expected {part:?}\n     got {error:?}"
            );
        }
    }
    refused(&format!("{RICH}---\nsku_id: b\n"), "multiple YAML documents");
    refused("", "cannot read the policy");
    refused("just text", "cannot read the policy");
    refused(
        &" ".repeat(256 * 1024 + 1),
        "policy of 262145 bytes is larger than the 262144 allowed",
    );
    // An unfinished line is not "none".
    refused(
        &format!("{}rules:", PROFESSIONAL.split("rules:").next().unwrap()),
        "rules: is empty",
    );
}

#[test]
fn a_stored_quota_keeps_its_form() {
    let quota = Quota {
        monthly_actions: 100,
        concurrent_actions: 2,
    };
    let stored = r#"{"monthly_actions":100,"concurrent_actions":2}"#;
    assert_eq!(serde_json::to_string(&quota).unwrap(), stored);
    for stored in [stored, &stored.replace('}', r#","daily_actions":9}"#)] {
        assert_eq!(serde_json::from_str::<Quota>(stored).unwrap(), quota);
    }
}

#[test]
fn alias_bombs_do_not_grow() {
    let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (name, of) in ["b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .zip(["a", "b", "c", "d", "e", "f", "g"])
    {
        bomb.push_str(&format!(
            "{name}: &{name} [{}]\n",
            vec![format!("*{of}"); 9].join(",")
        ));
    }
    refused(&format!("{bomb}{RICH}"), "cannot read the policy");
}

/// Whatever the file holds, reading it ends in an answer.
#[test]
fn any_text_is_answered() {
    use proptest::prelude::*;
    proptest!(|(start in 0..RICH.len(), length in 0_usize..40, insert in ".{0,12}")| {
        let bytes = RICH.as_bytes();
        let end = (start + length).min(bytes.len());
        let mut text = bytes[..start].to_vec();
        text.extend(insert.as_bytes());
        text.extend(&bytes[end..]);
        if let Err(error) = policy::compile(&String::from_utf8_lossy(&text)) {
            let refused = matches!(error, policy::CompileError::Ontology(_));
            prop_assert!(refused, "the compiler broke its own output: {}", error);
        }
    });
}
