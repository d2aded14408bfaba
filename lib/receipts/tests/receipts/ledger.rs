//! Ledgers: what is appended verifies, and nothing else does.

use proptest::prelude::*;
use receipts::ledger::AppendError;
use receipts::verify::Rule;
use receipts::{
    Chain, ChainError, Draft, FormError, Head, KeyRing, LineError, Payload, Receipt, Signer, append,
    parse_spool_line, sha256_hex, spool_line, verify_line,
};

use crate::drafts::{OPERATIONS, any_draft, any_drafts, draft, ledger, signer, time};

fn keys() -> KeyRing {
    KeyRing::from(signer().public_key())
}

fn lines(drafts: &[Draft]) -> Vec<String> {
    ledger(drafts).0.into_iter().map(|sealed| sealed.line).collect()
}

fn follow(lines: &[String]) -> Result<Chain, ChainError> {
    let mut chain = Chain::new();
    for line in lines {
        chain.push(line, &keys())?;
    }
    Ok(chain)
}

/// An error with its sources, as a person reads it.
pub fn story(error: &dyn std::error::Error) -> String {
    let mut story = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        story += &format!(": {error}");
        source = error.source();
    }
    story
}

/// The form of a receipt is a promise to auditors: this line must never change.
#[test]
fn a_receipt_is_written_to_the_byte() {
    let mut draft = draft(13);
    draft.policy_hash = Some("ab".repeat(32));
    let (sealed, head) = ledger(&[draft]);
    let expected = concat!(
        r#"{"account_id":"a-1","action_id":"one","code":"three","detail":"one","duration_ms":12,"#,
        r#""key_id":"b600306cfa76723f","occurred_at":"2026-01-02T03:04:05.678Z","operation":"action_refused","#,
        r#""policy_hash":"abababababababababababababababababababababababababababababababab","#,
        r#""prev_hash":"0000000000000000000000000000000000000000000000000000000000000000","#,
        r#""receipt_id":"00000000-0000-0000-0000-00000000000e","rules":["first","second"],"seq":0,"#,
        r#""signature":"3WwFDbV3tOZ3c3fNv3tlgw7FQ0IATDPb9h26O/15/uzPiN19HGdYS2N7Ic3q7HuNYaJYOO0c1LQATy3O9MEfCA==","#,
        r#""status":"refused","template":"two","timestamp":"2027-01-15T08:00:00.000Z"}"#,
    );
    assert_eq!(sealed[0].line, expected);
    assert_eq!(
        sealed[0].hash,
        "8aca99a2935cc904d0b9e52b9fd70b3583f8e5f13feac8820f62bc8877e8246e"
    );
    assert_eq!(
        head,
        Head {
            size: 1,
            last_hash: sealed[0].hash.clone(),
            timestamp: time("2027-01-15T08:00:00Z"),
            range: vec![sha256_hex([b"\0", expected.as_bytes()].concat())],
        }
    );
}

#[test]
fn operations_and_statuses_are_these() {
    let table: Vec<String> = (0..OPERATIONS)
        .map(|which| {
            let payload = draft(which).payload;
            let json = serde_json::to_value(&payload).unwrap();
            assert_eq!(json["operation"], payload.operation());
            format!("{} {}", payload.operation(), payload.status().as_str())
        })
        .collect();
    assert_eq!(
        table,
        [
            "entitlement_active success",
            "entitlement_failed failed",
            "policy_upgraded success",
            "policy_validation_failed failed",
            "policy_upgrade_skipped ignored",
            "policy_rollback success",
            "policy_forced success",
            "governor_scaled success",
            "quota_exceeded refused",
            "scale_reverted success",
            "degraded_mode started",
            "degraded_mode_cleared success",
            "action_complete success",
            "action_refused refused",
            "action_routed routed",
            "action_timeout failed",
            "action_failed failed",
            "action_rolled_back success",
            "decommission_start started",
            "decommission_complete success",
            "switch_changed success",
            "policy_deployed success",
            "webhook_ignored ignored",
            "key_rotated success",
            "key_revoked success",
            "entitlement_changed success",
            "entitlement_suspended success",
            "entitlement_reinstated success",
            "entitlement_renewed success",
            "entitlement_cancelled success",
            "entitlement_deferred started",
            "resource_repaired success",
            "action_redriven started",
            "action_resolved success",
            "signal_refused refused",
            "entitlement_expired success",
        ]
    );
}

/// One receipt of each operation, as they were before any of them named its entitlement.
const OLD_LEDGER: &str = include_str!("../../vectors/ledger/before_entitlement_id.jsonl");

#[test]
fn receipts_from_before_a_field_hold_as_they_were() {
    let lines: Vec<String> = OLD_LEDGER.lines().map(str::to_owned).collect();
    let chain = follow(&lines).unwrap();
    assert_eq!(chain.head().size, 25);
    // With nothing to say in the new fields, the same receipts are written to the byte.
    let drafts: Vec<Draft> = lines
        .iter()
        .map(|line| {
            let receipt: Receipt = serde_json::from_str(line).unwrap();
            Draft {
                receipt_id: receipt.receipt_id,
                account_id: receipt.account_id,
                occurred_at: receipt.occurred_at,
                duration_ms: receipt.duration_ms,
                policy_hash: receipt.policy_hash,
                payload: receipt.payload,
            }
        })
        .collect();
    assert_eq!(self::lines(&drafts), lines);
}

/// Times of a payload are cut to milliseconds and come back; one that is absent leaves no trace in the line.
#[track_caller]
fn check_time(given: Option<&str>, written: Option<&str>) {
    let moment = given.map(time);
    let renewed = Payload::EntitlementRenewed {
        entitlement_id: "e-1".to_owned(),
        sku_id: "s-1".to_owned(),
        expires_at: moment,
    };
    let deferred = Payload::EntitlementDeferred {
        entitlement_id: None,
        sku_id: None,
        event: "cancellation".to_owned(),
        reason: "it takes effect later".to_owned(),
        due_at: moment,
    };
    for (field, payload) in [("expires_at", renewed), ("due_at", deferred)] {
        let line = lines(&[Draft { payload, ..draft(0) }]).remove(0);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json.get(field).map(|value| value.as_str().unwrap()), written);
        let receipt = verify_line(&line, &keys()).unwrap();
        let (Payload::EntitlementRenewed { expires_at: read, .. }
        | Payload::EntitlementDeferred { due_at: read, .. }) = receipt.payload
        else {
            panic!("another operation: {line}");
        };
        assert_eq!(read, written.map(time));
    }
}

#[test]
fn optional_times_are_written_in_milliseconds_or_not_at_all() {
    check_time(None, None);
    check_time(Some("2026-01-02T03:04:05Z"), Some("2026-01-02T03:04:05.000Z"));
    check_time(
        Some("2026-01-02T03:04:05.678912Z"),
        Some("2026-01-02T03:04:05.678Z"),
    );
    check_time(
        Some("2026-01-02T03:04:05.6+02:00"),
        Some("2026-01-02T01:04:05.600Z"),
    );
}

#[test]
fn a_clock_that_goes_back_does_not_go_back_in_the_ledger() {
    let first = append(
        &Head::empty(),
        &[draft(0)],
        time("2026-01-02T00:00:00.5009Z"),
        &signer(),
    )
    .unwrap();
    assert_eq!(first.head.timestamp, time("2026-01-02T00:00:00.500Z"));
    let second = append(&first.head, &[draft(1)], time("2026-01-01T00:00:00Z"), &signer()).unwrap();
    assert_eq!(second.head.timestamp, first.head.timestamp);
    follow(&[first.sealed[0].line.clone(), second.sealed[0].line.clone()]).unwrap();
}

#[test]
fn appending_nothing_leaves_the_head() {
    let (_, head) = ledger(&[draft(0)]);
    let appended = append(&head, &[], time("2030-01-01T00:00:00Z"), &signer()).unwrap();
    assert_eq!((appended.sealed.len(), appended.head), (0, head));
}

#[test]
fn drafts_of_two_accounts_are_refused() {
    let mut other = draft(1);
    other.account_id = "a-2".to_owned();
    let error = append(
        &Head::empty(),
        &[draft(0), other],
        time("2026-01-01T00:00:00Z"),
        &signer(),
    )
    .unwrap_err();
    assert!(
        matches!(&error, AppendError::MixedAccounts { expected, found, .. } if expected == "a-1" && found == "a-2"),
        "{error}"
    );
}

#[track_caller]
fn check_form(change: impl FnOnce(&mut Draft), expected: &str) {
    let mut draft = draft(15);
    change(&mut draft);
    let error = append(
        &Head::empty(),
        &[draft.clone()],
        time("2026-01-01T00:00:00Z"),
        &signer(),
    )
    .unwrap_err();
    assert!(story(&error).contains(expected), "{}", story(&error));
    let error: FormError = spool_line(&draft, &signer()).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn values_that_no_receipt_may_hold_are_refused() {
    check_form(
        |draft| draft.duration_ms = 1 << 53,
        "`duration_ms` is 9007199254740992",
    );
    check_form(
        |draft| draft.duration_ms = u64::MAX,
        "`duration_ms` is 18446744073709552000",
    );
    check_form(
        |draft| draft.account_id = "a\u{7f}".to_owned(),
        "`account_id` contains U+007F",
    );
    check_form(
        |draft| draft.policy_hash = Some("AB".repeat(32)),
        "not 64 lower-case hex digits",
    );
    check_form(
        |draft| draft.policy_hash = Some(String::new()),
        "not 64 lower-case hex digits",
    );
    check_form(
        |draft| {
            draft.payload = Payload::ActionTimeout {
                action_id: "a".to_owned(),
                timeout_ms: 1 << 60,
            }
        },
        "`timeout_ms` is 1152921504606847000",
    );
}

#[test]
fn a_head_at_the_limit_takes_no_more() {
    let full = Head {
        size: 1 << 53,
        range: vec!["ab".repeat(32)],
        ..Head::empty()
    };
    let error = append(&full, &[draft(0)], time("2026-01-01T00:00:00Z"), &signer()).unwrap_err();
    assert!(
        story(&error).contains("`seq` is 9007199254740992"),
        "{}",
        story(&error)
    );
}

/// A good line with one text in place of another.
#[track_caller]
fn check_line(from: &str, to: &str, expected: &str) {
    let line = lines(&[draft(15)]).remove(0);
    assert_eq!(line.matches(from).count(), 1, "{from} stands once in {line}");
    let error = verify_line(&line.replace(from, to), &keys()).unwrap_err();
    assert!(story(&error).contains(expected), "{}", story(&error));
}

#[test]
fn lines_that_are_not_canonical_receipts_are_refused() {
    check_line(
        r#""duration_ms":12"#,
        r#""duration_ms":13"#,
        "signature was not made by key",
    );
    check_line(
        r#""duration_ms":12"#,
        r#""duration_ms":12.0"#,
        "not a receipt: invalid type: floating point",
    );
    check_line(r#""duration_ms":12"#, r#""duration_ms": 12"#, r#"expected "12,\"#);
    check_line(
        r#""duration_ms":12"#,
        r#""duration_ms":12,"duration_ms":12"#,
        "duplicate field",
    );
    check_line(
        r#""duration_ms":12"#,
        r#""duration_ms":12,"extra":1"#,
        "not the canonical form",
    );
    check_line(
        r#""duration_ms":12"#,
        r#""duration_ms":-12"#,
        "not a receipt: invalid value",
    );
    check_line(
        r#""duration_ms":12"#,
        r#""duration_ms":9007199254740992"#,
        "below 9007199254740992",
    );
    check_line(
        r#""timeout_ms":3"#,
        r#""timeout_ms":3,"timeout_ms":3"#,
        "duplicate field",
    );
    check_line("action_timeout", "action_vanished", "unknown variant");
    check_line(
        r#""status":"failed""#,
        r#""status":"success""#,
        r#"is "failed", found "success""#,
    );
    check_line("03:04:05.678Z", "03:04:05.6780Z", "not the canonical form");
    check_line("03:04:05.678Z", "03:04:05.678+00:00", "not the canonical form");
    check_line("one", "\\u006fne", "not the canonical form");
    check_line("one", "\u{7f}", "`action_id` contains U+007F");
    check_line(r#""signature":""#, r#""signature":"A"#, "not standard base64");
    check_line(r#""signature":""#, r#""Signature":""#, "not the canonical form");
    check_line(
        r#""receipt_id":"0"#,
        r#""receipt_id":"F"#,
        "not the canonical form",
    );
}

#[test]
fn an_unsigned_line_is_refused() {
    let line = lines(&[draft(15)]).remove(0);
    let mut receipt: Receipt = serde_json::from_str(&line).unwrap();
    receipt.signature.clear();
    assert!(matches!(
        verify_line(&receipts::jcs(&receipt).unwrap(), &keys()),
        Err(LineError::Unsigned)
    ));
}

#[test]
fn another_key_is_found() {
    let line = lines(&[draft(15)]).remove(0);
    let other = Signer::generate([1; 32]);
    let error = verify_line(&line, &KeyRing::from(other.public_key())).unwrap_err();
    assert!(
        matches!(&error, LineError::UnknownKey { key_id, .. } if key_id == signer().key_id()),
        "{error}"
    );
    // The right id over another key's signature.
    let forged = append(&Head::empty(), &[draft(15)], time("2027-01-15T08:00:00Z"), &other).unwrap();
    let forged = forged.sealed[0].line.replace(other.key_id(), signer().key_id());
    assert!(matches!(
        verify_line(&forged, &keys()),
        Err(LineError::Signature { .. })
    ));
}

#[track_caller]
fn check_chain(change: impl FnOnce(&mut Vec<String>), expected_place: u64, expected_rule: Rule) {
    let mut lines = lines(&(0..6).map(draft).collect::<Vec<_>>());
    change(&mut lines);
    match follow(&lines) {
        Err(ChainError::Link {
            place,
            rule,
            expected,
            found,
            ..
        }) => {
            assert_eq!((place, rule), (expected_place, expected_rule));
            assert_ne!(expected, found);
        }
        other => panic!("expected a broken link, found {other:?}"),
    }
}

#[test]
fn lines_in_the_wrong_place_are_found() {
    check_chain(|lines| drop(lines.remove(0)), 0, Rule::Sequence);
    check_chain(|lines| drop(lines.remove(3)), 3, Rule::Sequence);
    check_chain(|lines| lines.swap(1, 2), 1, Rule::Sequence);
    check_chain(|lines| lines.insert(2, lines[1].clone()), 2, Rule::Sequence);
    check_chain(
        |lines| {
            let mut other = draft(9);
            other.account_id = "a-2".to_owned();
            lines[2] = self::lines(&[other]).remove(0);
        },
        2,
        Rule::Account,
    );
    // Signed with the right key, in the right place, behind another history.
    let fork = |now: &str| {
        let head = Head {
            size: 2,
            timestamp: time("2027-01-15T08:00:00Z"),
            range: vec!["ab".repeat(32)],
            ..Head::empty()
        };
        append(&head, &[draft(9)], time(now), &signer())
            .unwrap()
            .sealed
            .remove(0)
            .line
    };
    check_chain(
        |lines| lines[2] = fork("2027-01-15T08:00:00Z"),
        2,
        Rule::PreviousHash,
    );
    check_chain(
        |lines| {
            let chain = follow(&lines[..2]).unwrap();
            let early = Head {
                timestamp: time("2020-01-01T00:00:00Z"),
                ..chain.head().clone()
            };
            let receipt = append(&early, &[draft(9)], time("2020-01-01T00:00:00Z"), &signer()).unwrap();
            lines[2] = receipt.sealed[0].line.clone();
        },
        2,
        Rule::TimeOrder,
    );
}

#[test]
fn a_chain_can_be_taken_up_behind_a_trusted_head() {
    let drafts: Vec<Draft> = (0..6).map(draft).collect();
    let lines = lines(&drafts);
    let (_, head) = ledger(&drafts[..3]);
    let mut chain = Chain::after("a-1", head).unwrap();
    for line in &lines[3..] {
        chain.push(line, &keys()).unwrap();
    }
    assert_eq!(*chain.head(), ledger(&drafts).1);
    assert!(Chain::of("a-2").push(&lines[0], &keys()).is_err());
}

#[test]
fn spool_and_ledger_lines_are_not_each_other() {
    let spooled = spool_line(&draft(13), &signer()).unwrap();
    assert!(spooled.contains(r#","spooled":true,"#), "{spooled}");
    for absent in ["seq", "prev_hash", "timestamp"] {
        assert!(!spooled.contains(&format!("\"{absent}\":")), "{spooled}");
    }
    assert!(verify_line(&spooled, &keys()).is_err());
    let line = lines(&[draft(13)]).remove(0);
    assert!(parse_spool_line(&line, &keys()).is_err());
}

fn changed(line: &str, at: prop::sample::Index, mask: u8) -> Option<String> {
    let mut bytes = line.as_bytes().to_vec();
    let at = at.index(bytes.len());
    bytes[at] ^= mask;
    String::from_utf8(bytes).ok()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_appended_verifies(drafts in any_drafts(0..8)) {
        let (sealed, head) = ledger(&drafts);
        let mut chain = Chain::new();
        for (seq, (sealed, draft)) in sealed.iter().zip(&drafts).enumerate() {
            let receipt = chain.push(&sealed.line, &keys()).map_err(|error| TestCaseError::fail(story(&error)))?;
            prop_assert_eq!(receipt.hash().unwrap(), sealed.hash.clone());
            prop_assert_eq!((receipt.seq, sealed.seq), (seq as u64, seq as u64));
            prop_assert_eq!(sealed.operation, draft.payload.operation());
            let found = Draft {
                receipt_id: receipt.receipt_id,
                account_id: receipt.account_id,
                occurred_at: receipt.occurred_at,
                duration_ms: receipt.duration_ms,
                policy_hash: receipt.policy_hash,
                payload: receipt.payload,
            };
            prop_assert_eq!(&found, draft);
        }
        prop_assert_eq!(chain.head(), &head);
        prop_assert_eq!(sealed.len(), drafts.len());
    }

    #[test]
    fn grouping_changes_nothing_but_time(drafts in any_drafts(1..6)) {
        let now = time("2027-01-15T08:00:00Z");
        let together = append(&Head::empty(), &drafts, now, &signer()).unwrap();
        let mut head = Head::empty();
        for (draft, expected) in drafts.iter().zip(&together.sealed) {
            let alone = append(&head, std::slice::from_ref(draft), now, &signer()).unwrap();
            prop_assert_eq!(&alone.sealed[0], expected);
            head = alone.head;
        }
        prop_assert_eq!(head, together.head);
    }

    #[test]
    fn any_changed_byte_is_found_in_its_line(
        drafts in any_drafts(1..5),
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        mask in 1..=255_u8,
    ) {
        let mut lines = lines(&drafts);
        let which = which.index(lines.len());
        // Bytes that are no UTF-8 never become a line.
        if let Some(line) = changed(&lines[which], at, mask) {
            lines[which] = line;
            match follow(&lines) {
                Err(ChainError::Line { place, .. }) => prop_assert_eq!(place, which as u64),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn dropped_reordered_and_repeated_lines_are_found(
        drafts in any_drafts(2..6),
        one in any::<prop::sample::Index>(),
        other in any::<prop::sample::Index>(),
    ) {
        let good = lines(&drafts);
        let one = one.index(good.len() - 1);
        let other = one + 1 + other.index(good.len() - one - 1);
        let mut dropped = good.clone();
        dropped.remove(one);
        prop_assert!(follow(&dropped).is_err());
        let mut swapped = good.clone();
        swapped.swap(one, other);
        prop_assert!(follow(&swapped).is_err());
        let mut repeated = good.clone();
        repeated.insert(other, good[one].clone());
        prop_assert!(follow(&repeated).is_err());
    }

    #[test]
    fn the_spool_gives_back_what_it_was_given(
        draft in any_draft(),
        at in any::<prop::sample::Index>(),
        mask in 1..=255_u8,
    ) {
        let line = spool_line(&draft, &signer()).unwrap();
        prop_assert_eq!(parse_spool_line(&line, &keys()).unwrap(), draft);
        if let Some(line) = changed(&line, at, mask) {
            prop_assert!(parse_spool_line(&line, &keys()).is_err());
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in any::<String>()) {
        prop_assert!(verify_line(&text, &keys()).is_err());
        prop_assert!(parse_spool_line(&text, &keys()).is_err());
    }
}
