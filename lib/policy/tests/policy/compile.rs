//! The compiler: golden output, and the same output for files that mean the same.

use policy::{Compiled, Enforcer, Ontology};
use proptest::prelude::*;
use serde_json::Value;

use crate::{BASIC, PREMIUM, PROFESSIONAL, PROFESSIONAL_NEXT, RICH, compiled, edited};

fn cedar(yaml: &str) -> String {
    let bundle = compiled(yaml).bundle;
    let policies = bundle
        .cedar_policies
        .iter()
        .map(|policy| policy.text.as_str())
        .collect::<Vec<_>>()
        .join("\n\n");
    format!("{}\n{policies}\n", bundle.cedar_schema)
}

/// These bytes and this hash are what governors pin: a change here is a change of every deployed policy's name.
#[test]
fn golden_bundle() {
    let compiled = compiled(PROFESSIONAL);
    insta::assert_snapshot!(
        "professional_hash",
        format!("{}\n{}", compiled.hash, compiled.ontology_hash)
    );
    insta::assert_snapshot!("professional_bundle", String::from_utf8(compiled.bytes).unwrap());
}

/// Deployed tenants are pinned to these: no change of the compiler may rename a policy.
#[test]
fn golden_hashes() {
    let samples = [PROFESSIONAL, PROFESSIONAL_NEXT, BASIC, PREMIUM, RICH];
    let hashes = samples.map(|yaml| {
        let Compiled {
            bundle,
            hash,
            ontology_hash,
            ..
        } = compiled(yaml);
        format!("{} {} {hash} {ontology_hash}", bundle.plan_type, bundle.version)
    });
    insta::assert_snapshot!("sample_hashes", hashes.join("\n"));
}

#[test]
fn golden_cedar() {
    insta::assert_snapshot!("professional_cedar", cedar(PROFESSIONAL));
    insta::assert_snapshot!("rich_cedar", cedar(RICH));
}

#[test]
fn every_sample_compiles_and_loads() {
    for yaml in [PROFESSIONAL, PROFESSIONAL_NEXT, BASIC, PREMIUM, RICH] {
        let compiled = compiled(yaml);
        let enforcer = Enforcer::load(&compiled.bytes).unwrap();
        assert_eq!(enforcer.hash(), compiled.hash);
        assert_eq!(enforcer.bundle(), &compiled.bundle);
        assert_eq!(
            compiled.ontology_hash,
            Ontology::parse(yaml).unwrap().hash().unwrap()
        );
        assert_eq!(compiled.bundle.ontology_hash, compiled.ontology_hash);
    }
}

/// Everything the policy says reaches the hash.
#[test]
fn a_change_of_meaning_changes_both_hashes() {
    let rich = compiled(RICH);
    for (from, to) in [
        ("rich-sku", "poor-sku"),
        ("everything", "something"),
        ("2.3.4-rc.1", "2.3.4"),
        ("\"99\"", "\"98\""),
        ("dedicated", "pool"),
        ("concurrent_actions: 1", "concurrent_actions: 2"),
        ("Looks.", "Sees."),
        ("tier: 0", "tier: 1"),
        ("/actions/observe", "/actions/look"),
        ("/rollbacks/observe", "/rollbacks/look"),
        ("dry: { type: boolean, required: true }", "dry: { type: boolean }"),
        ("maximum: 5", "maximum: 6"),
        ("max_length: 3", "max_length: 4"),
        ("any_number: { type: integer }", "any_number: { type: boolean }"),
        ("at_most: 2", "at_most: 3"),
        ("Never far.", "Not far."),
        ("[shift, move]", "[shift]"),
        ("equals: true", "equals: false"),
    ] {
        let other = compiled(&edited(RICH, from, to));
        assert_ne!(other.hash, rich.hash, "{to}");
        assert_ne!(other.ontology_hash, rich.ontology_hash, "{to}");
    }
}

/// What a file leaves to the defaults is the same as writing the default out.
#[test]
fn defaults_written_out_change_nothing() {
    for (from, to) in [
        (
            "type: integer }",
            "type: integer, minimum: -9007199254740991, maximum: 9007199254740991, required: false }",
        ),
        ("type: string, one_of", "required: false, type: string, one_of"),
        (
            "rollback: /rollbacks/observe",
            "rollback: /rollbacks/observe\n    parameters: {}",
        ),
        ("\"435\"", "435"),
        ("|\n      Only\n      to try.", "Only to try."),
    ] {
        assert_eq!(compiled(&edited(RICH, from, to)), compiled(RICH), "{to}");
    }
    let note = edited(RICH, ", max_length: 3", "");
    let written = edited(RICH, "max_length: 3", "max_length: 256");
    assert_eq!(compiled(&note), compiled(&written));
}

/// Writes a value as YAML in a layout chosen by `dice`: order of keys and entries, line breaks and comments.
fn scrambled(value: &Value, dice: &mut dyn FnMut(usize) -> usize) -> String {
    let (mut items, open, close): (Vec<String>, _, _) = match value {
        Value::Array(items) => (items.iter().map(|item| scrambled(item, dice)).collect(), "[", "]"),
        Value::Object(fields) => (
            fields
                .iter()
                .map(|(name, value)| format!("{name}: {}", scrambled(value, dice)))
                .collect(),
            "{",
            "}",
        ),
        scalar => return scalar.to_string(),
    };
    for last in (1..items.len()).rev() {
        items.swap(last, dice(last + 1));
    }
    let mut text = open.to_owned();
    for item in items {
        let gap = [" ", "\n ", "  \n\n  ", " # a comment: [x]\n "][dice(4)];
        text.push_str(&format!("{gap}{item},"));
    }
    text + close
}

proptest! {
    #[test]
    fn order_layout_and_comments_mean_nothing(rolls in prop::collection::vec(any::<usize>(), 64..256)) {
        for yaml in [RICH, PROFESSIONAL] {
            let value: Value = serde_saphyr::from_str(yaml).unwrap();
            let mut rolls = rolls.iter().cycle();
            let text = scrambled(&value, &mut |sides| rolls.next().unwrap() % sides);
            prop_assert_eq!(compiled(&text), compiled(yaml));
        }
    }

    /// Choices of any letters stay data: the policy compiles, allows exactly them, and nothing else.
    #[test]
    fn no_text_becomes_cedar(choices in prop::collection::btree_set("[^\\p{Cc}]{1,20}", 1..5), other in "[^\\p{Cc}]{1,20}") {
        let list = serde_json::to_string(&choices).unwrap();
        let yaml = edited(RICH, "[\"b \\\"quoted\\\" \\\\ back\", \"a\", \"ü\"]", &list);
        let yaml = edited(&yaml, "[\"ü\", \"a\", \"b \\\"quoted\\\" \\\\ back\"]", &list);
        let enforcer = Enforcer::load(&compiled(&yaml).bytes).unwrap();
        let allowed = |text: &str| {
            let parameters = serde_json::json!({ "in": text, "steps": 1, "dry": true });
            enforcer.decide("a", "move", parameters.as_object().unwrap()).is_allowed()
        };
        for choice in &choices {
            prop_assert!(allowed(choice), "{:?}", choice);
        }
        prop_assert_eq!(allowed(&other), choices.contains(&other));
    }
}

/// Letters outside ASCII take more room in Cedar than in the file; what no enforcer would read is refused here.
#[test]
fn a_bundle_too_large_to_load_is_not_written() {
    let choices: Vec<String> = (0..64).map(|n| format!("{n:é>240}")).collect();
    let spec = format!(
        "{{ type: string, one_of: {} }}",
        serde_json::to_string(&choices).unwrap()
    );
    let parameters: Vec<String> = (0..8).map(|n| format!("p{n}: {spec}")).collect();
    let yaml = edited(
        RICH,
        "parameters:\n",
        &format!("parameters:\n      {}\n", parameters.join("\n      ")),
    );
    match policy::compile(&yaml).map(|_| ()) {
        Err(policy::CompileError::TooLarge { bytes, limit }) => assert!(bytes > limit),
        other => panic!("{other:?}"),
    }
}
