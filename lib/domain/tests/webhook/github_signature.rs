//! Signatures of GitHub.

use proptest::prelude::*;

use super::domain::webhook::providers::github::{
    GITHUB_DELIVERY, GITHUB_SIGNATURE, sign_github, verify_github,
};
use super::domain::webhook::signature::{Headers, Secret, SecretError, SignatureError};
use super::{GITHUB_SECRET, headers};

// The example of GitHub's documentation.
const BODY: &[u8] = b"Hello, World!";
const SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

fn secret() -> Secret {
    Secret::github(GITHUB_SECRET).unwrap()
}

fn verify(secrets: &[Secret], headers: &Headers, body: &[u8]) -> Result<(), String> {
    verify_github(secrets, headers, body)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

#[track_caller]
fn check(signature: &str, id: &str, expected: Result<(), &str>) {
    let headers = headers([(GITHUB_SIGNATURE, signature), (GITHUB_DELIVERY, id)]);
    let got = verify(&[secret()], &headers, BODY);
    assert_eq!(got, expected.map_err(str::to_owned), "{headers:?}");
}

#[test]
fn published_vector() {
    assert_eq!(sign_github(&secret(), BODY), SIGNATURE);
    check(SIGNATURE, "72d3162e-cc78-11e3-81ab-4c9367dc0958", Ok(()));
}

#[test]
fn headers_that_are_none() {
    check("", "d", Err("header x-hub-signature-256 is missing"));
    check(SIGNATURE, "", Err("header x-github-delivery is missing"));
    assert_eq!(
        verify(&[secret()], &Headers::new(), BODY),
        Err("header x-hub-signature-256 is missing".to_owned())
    );
    let form = Err("header x-hub-signature-256 is not sha256= and 64 hex digits");
    let digits = SIGNATURE.strip_prefix("sha256=").unwrap();
    for signature in [
        "sha256=",
        &SIGNATURE[..70],
        &format!("{SIGNATURE}0"),
        &format!("{SIGNATURE} "),
        digits,
        &format!("sha1={digits}"),
        &format!("SHA256={digits}"),
        &SIGNATURE.replace("75", "zz"),
        &SIGNATURE.replace("75", "é"),
        "é",
        &format!("sha256={}", "0".repeat(100_000)),
    ] {
        check(signature, "d", form);
    }
    let joined =
        |header| format!("header {header} holds a comma, as a header does that is sent more than once");
    check(
        &format!("{SIGNATURE},{SIGNATURE}"),
        "d",
        Err(&joined(GITHUB_SIGNATURE)),
    );
    check(SIGNATURE, "d,d", Err(&joined(GITHUB_DELIVERY)));
    check(
        SIGNATURE,
        "d.d",
        Err("header x-github-delivery may hold only visible ASCII characters without dots"),
    );
    check(
        &format!("sha256={}", "0".repeat(64)),
        "d",
        Err("no signature matches"),
    );
}

#[test]
fn any_active_secret_will_do_and_none_will_not() {
    let headers = headers([(GITHUB_SIGNATURE, SIGNATURE), (GITHUB_DELIVERY, "d")]);
    let other = || Secret::github("another").unwrap();
    assert_eq!(verify(&[other(), secret()], &headers, BODY), Ok(()));
    for secrets in [vec![], vec![other()]] {
        let got = verify(&secrets, &headers, BODY);
        assert_eq!(got, Err("no signature matches".to_owned()));
    }
    for nothing in ["", "\n", " ", " \r\n"] {
        assert_eq!(
            Secret::github(nothing).err(),
            Some(SecretError::Empty),
            "{nothing:?}"
        );
    }
}

/// An editor or `echo` leaves a line feed behind; the console stores an object unless it is told not to.
#[test]
fn secrets_as_they_are_put() {
    let headers = headers([(GITHUB_SIGNATURE, SIGNATURE), (GITHUB_DELIVERY, "d")]);
    for end in ["", "\n", "\r\n", "\n\n"] {
        let secret = Secret::github(&format!("{GITHUB_SECRET}{end}")).unwrap();
        assert_eq!(verify(&[secret], &headers, BODY), Ok(()), "{end:?}");
    }
    for object in [r#"{"secret":"s"}"#, " {\"a\": \"b\", \"c\": \"d\"}\n", "{}"] {
        assert_eq!(
            Secret::github(object).err(),
            Some(SecretError::Object),
            "{object}"
        );
    }
    for text in ["{", "{secret}", "whsec_x", "v1,x", " inner and outer spaces "] {
        assert!(Secret::github(text).is_ok(), "{text}");
    }
}

proptest! {
    #[test]
    fn no_header_panics_and_no_guess_passes(id in ".{0,40}", signature in ".{0,80}", body: Vec<u8>) {
        let headers = headers([(GITHUB_SIGNATURE, signature.as_str()), (GITHUB_DELIVERY, id.as_str())]);
        prop_assert!(verify_github(&[secret()], &headers, &body).is_err());
    }

    #[test]
    fn what_we_sign_verifies_and_any_other_body_does_not(body: Vec<u8>, flip in any::<prop::sample::Index>()) {
        let signature = sign_github(&secret(), &body);
        let headers = headers([(GITHUB_SIGNATURE, signature.as_str()), (GITHUB_DELIVERY, "d")]);
        prop_assert!(verify_github(&[secret()], &headers, &body).is_ok());
        if !body.is_empty() {
            let mut other = body.clone();
            other[flip.index(body.len())] ^= 1;
            let got = verify_github(&[secret()], &headers, &other);
            prop_assert_eq!(got.err(), Some(SignatureError::NoMatch));
        }
    }
}
