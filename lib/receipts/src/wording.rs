//! What a reader of JSON finds wrong, in the words of somebody who writes JSON rather than Rust.

use serde_json::Error;
use serde_json::error::Category;

/// Longest value that is quoted, in characters: a text may be as long as a body.
const QUOTED_CHARS: usize = 64;

/// What is wrong, what was expected, and where.
///
/// ```
/// let error = serde_json::from_str::<Vec<u64>>("[1, null]").unwrap_err();
/// assert_eq!(
///     governor_receipts::wording::problem(&error),
///     "expected a whole number, 0 or more, found null at line 1 column 8"
/// );
/// ```
#[must_use]
pub fn problem(error: &Error) -> String {
    let text = error.to_string();
    if error.classify() != Category::Data {
        return text;
    }
    let (said, place) = said(&text);
    let problem = match (mismatch(said), said.strip_prefix("invalid length ")) {
        (Some((found, wanted)), _) => format!("expected {}, found {}", expected(wanted), found_there(found)),
        (None, Some(length)) => match length.split_once(", expected ") {
            Some((_, wanted)) => format!("expected {}, found an array", expected(wanted)),
            None => said.to_owned(),
        },
        (None, None) if said.starts_with("data did not match any variant of ") => {
            "is of none of the forms known here".to_owned()
        }
        (None, None) => said.to_owned(),
    };
    format!("{problem}{place}")
}

/// What was expected instead, where the error is about the type or the value: nothing of what was found.
#[must_use]
pub fn expectation(error: &Error) -> Option<String> {
    let text = error.to_string();
    let (said, _) = said(&text);
    let (_, wanted) = mismatch(said)?;
    Some(expected(wanted).to_owned())
}

/// The message, and where in the text it is about.
fn said(text: &str) -> (&str, &str) {
    text.rfind(" at line ").map_or((text, ""), |at| text.split_at(at))
}

fn mismatch(said: &str) -> Option<(&str, &str)> {
    let rest = said
        .strip_prefix("invalid type: ")
        .or_else(|| said.strip_prefix("invalid value: "))?;
    rest.rsplit_once(", expected ")
}

/// What should stand there: serde has words of Rust for it.
fn expected(wanted: &str) -> &str {
    match wanted {
        "a map" => "an object",
        "a sequence" => "an array",
        "a borrowed string" | "a str" | "string" => "a string",
        "a boolean" => "true or false",
        "string or map" => "a string or an object",
        "unit" => "null",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        wanted if wanted.starts_with("struct ") => "an object",
        wanted if wanted.starts_with("tuple ") => "an array",
        wanted => wanted,
    }
}

/// What stands there.
fn found_there(found: &str) -> String {
    let quoted = |what: &str, otherwise: &str| match what.chars().count() <= QUOTED_CHARS {
        true => what.to_owned(),
        false => otherwise.to_owned(),
    };
    match found.split_once(' ') {
        _ if found == "map" => "an object".to_owned(),
        _ if found == "sequence" => "an array".to_owned(),
        _ if found == "unit value" => "null".to_owned(),
        Some(("boolean", value)) => value.trim_matches('`').to_owned(),
        Some(("integer", value)) => format!("the number {}", value.trim_matches('`')),
        Some(("floating", value)) => format!(
            "the number {}",
            value.trim_start_matches("point ").trim_matches('`')
        ),
        Some(("string", text)) => quoted(&format!("the text {text}"), "a long text"),
        _ => quoted(found, "something else"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[serde(rename = "name")]
        _name: Option<String>,
        #[serde(rename = "size")]
        _size: Option<u64>,
        #[serde(rename = "on")]
        _on: Option<bool>,
        #[serde(rename = "map")]
        _map: Option<BTreeMap<String, i64>>,
        #[serde(rename = "list")]
        _list: Option<Vec<f64>>,
        #[serde(rename = "form")]
        _form: Option<Form>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(#[allow(dead_code, reason = "only read")] u64),
        Text(#[allow(dead_code, reason = "only read")] String),
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = serde_json::from_str::<Sample>(text).unwrap_err();
        assert_eq!(problem(&error), expected, "{error}");
    }

    #[test]
    fn words_of_json() {
        check("7", "expected an object, found the number 7 at line 1 column 1");
        check("null", "expected an object, found null at line 1 column 4");
        check("[[]]", "expected a string, found an array at line 1 column 1");
        check("[\"a\"]", "expected an object, found an array at line 1 column 5");
        check(
            r#"{"name":{}}"#,
            "expected a string, found an object at line 1 column 8",
        );
        check(
            r#"{"name":true}"#,
            "expected a string, found true at line 1 column 12",
        );
        check(
            r#"{"size":-1}"#,
            "expected a whole number, 0 or more, found the number -1 at line 1 column 10",
        );
        check(
            r#"{"size":1.5}"#,
            "expected a whole number, 0 or more, found the number 1.5 at line 1 column 11",
        );
        check(
            r#"{"on":"yes, expected \"no\""}"#,
            r#"expected true or false, found the text "yes, expected \"no\"" at line 1 column 28"#,
        );
        check(
            r#"{"map":[]}"#,
            "expected an object, found an array at line 1 column 7",
        );
        check(
            r#"{"map":{"a":"b"}}"#,
            r#"expected a whole number, found the text "b" at line 1 column 15"#,
        );
        check(
            r#"{"list":{}}"#,
            "expected an array, found an object at line 1 column 8",
        );
        check(
            r#"{"form":[]}"#,
            "is of none of the forms known here at line 1 column 11",
        );
        check(
            r#"{"name":"a","name":"b"}"#,
            "duplicate field `name` at line 1 column 18",
        );
        check("{", "EOF while parsing an object at line 1 column 1");
        check("{]", "key must be a string at line 1 column 2");
        let long = format!(r#"{{"on":"{}"}}"#, "x".repeat(100));
        check(
            &long,
            "expected true or false, found a long text at line 1 column 108",
        );
    }

    #[test]
    fn an_expectation_quotes_nothing() {
        let of = |text: &str| expectation(&serde_json::from_str::<Sample>(text).unwrap_err());
        assert_eq!(of(r#"{"name":5}"#).as_deref(), Some("a string"));
        assert_eq!(of(r#"{"map":"me@example.org"}"#).as_deref(), Some("an object"));
        assert_eq!(of("{"), None);
    }
}
