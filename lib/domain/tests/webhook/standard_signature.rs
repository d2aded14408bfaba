//! Signatures of Standard Webhooks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::domain::webhook::providers::standard::{
    WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP, sign_standard, verify_standard,
};
use super::domain::webhook::signature::{Headers, Secret, SecretError, SignatureError};
use super::{SECRET, headers, seconds};

// The published example.
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const AT: i64 = 1_614_265_330;
const TIME: &str = "1614265330";
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

const NO_SIGNATURE: Result<(), &str> =
    Err("header webhook-signature holds no `v1,` signature of 32 bytes in base64");
const TOO_MANY: Result<(), &str> = Err("header webhook-signature holds more than 16 signatures");
const NO_NUMBER: Result<(), &str> =
    Err("header webhook-timestamp is not a whole number of seconds since 1970");
const STALE: Result<(), &str> = Err("header webhook-timestamp is more than 300 s from now");
const NO_MATCH: Result<(), &str> = Err("no signature matches");

fn secret() -> Secret {
    Secret::standard(SECRET).unwrap()
}

fn other_secret() -> Secret {
    Secret::standard("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap()
}

fn signed(id: &str, timestamp: &str, signature: &str) -> Headers {
    headers([
        (WEBHOOK_ID, id),
        (WEBHOOK_TIMESTAMP, timestamp),
        (WEBHOOK_SIGNATURE, signature),
    ])
}

fn verify(secrets: &[Secret], headers: &Headers, now: i64) -> Result<(), String> {
    verify_standard(secrets, headers, BODY, seconds(now))
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[track_caller]
fn check_at(now: i64, headers: &Headers, expected: Result<(), &str>) {
    assert_eq!(
        verify(&[secret()], headers, now),
        expected.map_err(str::to_owned),
        "{headers:?} at {now}"
    );
}

#[track_caller]
fn check(id: &str, timestamp: &str, signature: &str, expected: Result<(), &str>) {
    check_at(AT, &signed(id, timestamp, signature), expected);
}

#[test]
fn published_vector() {
    assert_eq!(sign_standard(&secret(), ID, seconds(AT), BODY), SIGNATURE);
    check(ID, TIME, SIGNATURE, Ok(()));
}

#[test]
fn tolerance_is_300_seconds_both_ways() {
    let headers = signed(ID, TIME, SIGNATURE);
    check_at(AT + 300, &headers, Ok(()));
    check_at(AT - 300, &headers, Ok(()));
    check_at(AT + 301, &headers, STALE);
    check_at(AT - 301, &headers, STALE);
}

#[test]
fn signatures_that_are_none() {
    let digest = |bytes: usize| format!("v1,{}", STANDARD.encode(vec![7; bytes]));
    for signature in [
        "v1,",
        "v1",
        "v1, ",
        " ",
        "garbage",
        "v1,é",
        "é",
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1Oé=",
        // Neither another version's prefix, nor none, nor one in capitals.
        "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "V1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "sha256=g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        // Without its padding, and in the alphabet of URLs.
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE",
        "v1,g0hM9SsE-OTPJTGt_tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        &digest(0),
        &digest(1),
        &digest(31),
        &digest(33),
        &digest(64),
        &digest(100_000),
    ] {
        check(ID, TIME, signature, NO_SIGNATURE);
    }
    check(ID, TIME, "", Err("header webhook-signature is missing"));
    check(ID, TIME, &digest(32), NO_MATCH);
}

#[test]
fn several_signatures_are_looked_at_and_many_are_not() {
    let wrong = format!("v1,{}", STANDARD.encode([7; 32]));
    check(ID, TIME, &format!("v2,zzz v1,é  {wrong} {SIGNATURE}"), Ok(()));
    check(ID, TIME, &format!("{SIGNATURE} {wrong}"), Ok(()));
    check(ID, TIME, &format!("{wrong} {wrong}"), NO_MATCH);
    check(ID, TIME, &[wrong.as_str(); 15].join(" "), NO_MATCH);
    check(
        ID,
        TIME,
        &format!("{} {SIGNATURE}", [wrong.as_str(); 15].join(" ")),
        Ok(()),
    );
    check(ID, TIME, &[SIGNATURE; 17].join(" "), TOO_MANY);
    check(ID, TIME, &vec![SIGNATURE; 10_000].join(" "), TOO_MANY);
    check(ID, TIME, &" ".repeat(10_000), TOO_MANY);
}

#[test]
fn any_active_secret_will_do_and_none_will_not() {
    let headers = signed(ID, TIME, SIGNATURE);
    let theirs = signed(ID, TIME, &sign_standard(&other_secret(), ID, seconds(AT), BODY));
    let both = [secret(), other_secret()];
    assert_eq!(verify(&both, &headers, AT), Ok(()));
    assert_eq!(verify(&both, &theirs, AT), Ok(()));
    check_at(AT, &theirs, NO_MATCH);
    assert_eq!(verify(&[], &headers, AT), NO_MATCH.map_err(str::to_owned));
}

#[test]
fn ids_that_are_none() {
    let form = Err("header webhook-id may hold only visible ASCII characters without dots");
    check("", TIME, SIGNATURE, Err("header webhook-id is missing"));
    for id in ["a.b", ".", "a b", "é", "a\tb", "a\u{7f}"] {
        check(id, TIME, SIGNATURE, form);
    }
    check(&"x".repeat(128), TIME, SIGNATURE, NO_MATCH);
    check(
        &"x".repeat(129),
        TIME,
        SIGNATURE,
        Err("header webhook-id is longer than 128 characters"),
    );
}

#[test]
fn a_dot_in_the_id_cannot_move_the_border_to_the_time() {
    // `a.1614265330` at time 5 and `a` at time 1614265330 with the body `5.…` sign the same text.
    let signature = sign_standard(&secret(), "a", seconds(AT), b"5.{}");
    let headers = signed("a.1614265330", "5", &signature);
    let got = verify_standard(&[secret()], &headers, b"{}", seconds(5));
    assert_eq!(
        got.unwrap_err().to_string(),
        "header webhook-id may hold only visible ASCII characters without dots"
    );
}

#[test]
fn times_that_are_none() {
    check(ID, "", SIGNATURE, Err("header webhook-timestamp is missing"));
    for timestamp in [
        "-1614265330",
        "+1614265330",
        "1614265330.0",
        "1614265330 ",
        " 1614265330",
        "0x6037B732",
        "1e9",
        "soon",
        "2021-02-25T15:02:10Z",
        "١٦١٤٢٦٥٣٣٠",
        "1614265330000",
        "9223372036854775807",
        "-9223372036854775808",
        "99999999999999999999999999",
    ] {
        check(ID, timestamp, SIGNATURE, NO_NUMBER);
    }
    for timestamp in ["0", "161426533", "16142653300", "999999999999"] {
        check(ID, timestamp, SIGNATURE, STALE);
    }
    // What is signed is the text, not the number.
    check(ID, "01614265330", SIGNATURE, NO_MATCH);
}

#[test]
fn headers_that_were_sent_twice_are_joined_by_gateways() {
    let joined =
        |header| format!("header {header} holds a comma, as a header does that is sent more than once");
    let id = format!("{ID},{ID}");
    check(&id, TIME, SIGNATURE, Err(&joined(WEBHOOK_ID)));
    check(&format!("{ID}, {ID}"), TIME, SIGNATURE, Err(&joined(WEBHOOK_ID)));
    let time = format!("{TIME},{TIME}");
    check(ID, &time, SIGNATURE, Err(&joined(WEBHOOK_TIMESTAMP)));
    for signature in [
        format!("{SIGNATURE},{SIGNATURE}"),
        format!("{SIGNATURE}, {SIGNATURE}"),
        format!("{SIGNATURE} {SIGNATURE},v1,AAAA"),
        "v1,AAA,v1,BBB".to_owned(),
        "v1,,".to_owned(),
    ] {
        check(ID, TIME, &signature, Err(&joined(WEBHOOK_SIGNATURE)));
    }
}

#[test]
fn branded_headers_are_taken_as_a_whole_and_only_alone() {
    let branded = [
        ("svix-id", ID),
        ("svix-timestamp", TIME),
        ("svix-signature", SIGNATURE),
    ];
    check_at(AT, &headers(branded), Ok(()));
    check_at(
        AT + 301,
        &headers(branded),
        Err("header svix-timestamp is more than 300 s from now"),
    );
    for (left_out, _) in branded {
        let mut some = headers(branded);
        some.remove(left_out);
        check_at(AT, &some, Err(&format!("header {left_out} is missing")));
    }
    // Both whole: the names of the specification count.
    let mut both = signed(ID, TIME, SIGNATURE);
    both.extend(headers(branded.map(|(name, _)| (name, "x"))));
    check_at(AT, &both, Ok(()));
    let mut both = signed(ID, TIME, "v1,x");
    both.extend(headers(branded));
    check_at(AT, &both, NO_SIGNATURE);
    // One of each is neither.
    let mut mixed = headers(branded);
    mixed.insert(WEBHOOK_ID.to_owned(), ID.to_owned());
    check_at(AT, &mixed, Err("header webhook-timestamp is missing"));
    check_at(AT, &Headers::new(), Err("header webhook-id is missing"));
}

#[test]
fn secrets() {
    let check = |text: &str, expected| assert_eq!(Secret::standard(text).err(), expected, "{text}");
    let of = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
    check("", Some(SecretError::Prefix));
    check(" ", Some(SecretError::Prefix));
    check("whsec_", Some(SecretError::Length(0)));
    check("whsec_ ", Some(SecretError::Length(0)));
    check("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", Some(SecretError::Prefix));
    check("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", Some(SecretError::Prefix));
    check(
        "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        Some(SecretError::Prefix),
    );
    check(
        "v1,whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        Some(SecretError::Version),
    );
    check(
        r#"{"secret":"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}"#,
        Some(SecretError::Object),
    );
    check("whsec_!!", Some(SecretError::Base64));
    check("whsec_é", Some(SecretError::Base64));
    check(&of(23), Some(SecretError::Length(23)));
    check(&of(24), None);
    check(&of(64), None);
    check(&of(65), Some(SecretError::Length(65)));
    // As an editor leaves it.
    check(&format!("{SECRET}\n"), None);
    assert_eq!(format!("{:?}", secret()), "Secret(..)");
}

proptest! {
    #[test]
    fn no_header_panics_and_no_guess_passes(id in ".{0,40}", timestamp in ".{0,20}", signature in ".{0,80}", body: Vec<u8>) {
        let headers = signed(&id, &timestamp, &signature);
        prop_assert!(verify_standard(&[secret()], &headers, &body, seconds(AT)).is_err());
    }

    #[test]
    fn what_we_sign_verifies_and_any_other_body_does_not(body: Vec<u8>, flip in any::<prop::sample::Index>()) {
        let headers = signed(ID, TIME, &sign_standard(&secret(), ID, seconds(AT), &body));
        prop_assert!(verify_standard(&[secret()], &headers, &body, seconds(AT)).is_ok());
        if !body.is_empty() {
            let mut other = body.clone();
            other[flip.index(body.len())] ^= 1;
            let got = verify_standard(&[secret()], &headers, &other, seconds(AT));
            prop_assert_eq!(got.err(), Some(SignatureError::NoMatch));
        }
    }

    #[test]
    fn any_time_is_answered(timestamp: i64, now in -1_000_000_000_000_i64..250_000_000_000) {
        let headers = signed(ID, &timestamp.to_string(), SIGNATURE);
        let now = jiff::Timestamp::from_second(now).unwrap_or(jiff::Timestamp::MIN);
        prop_assert!(verify_standard(&[secret()], &headers, BODY, now).is_err());
    }
}
