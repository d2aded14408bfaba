//! JSON from anywhere, read so strictly that its canonical form is the only one it can have.
//!
//! RFC 8785 (JCS) is defined for I-JSON (RFC 7493). Where an ordinary reader is lenient, two readers can take one text
//! for two values, and a hash of one reading would vouch for the other: a repeated key is refused rather than the last
//! one kept, and an integer that a double rounds is refused rather than changed, unless it is the one that RFC 8785 prints
//! for that double: a canonical form is its own. Unicode noncharacters, which I-JSON also rules out, are kept: all readers
//! agree on them, and a receipt may quote one.

use std::error::Error;
use std::fmt;
use std::io;

use receipts::canonical::{FormError, jcs};
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::out::Out;
use crate::report::{self, Verdict};

/// Most bytes of one JSON value.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// A text without an RFC 8785 form.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("the input is not UTF-8 at line {line} column {column}")]
    NotText {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// Half of a character: `\ud800` to `\udfff` without its other half.
    #[error("the input has a lone surrogate in a string before line {line} column {column}")]
    Surrogate {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    /// Not one JSON value, or one with a repeated key, a number out of range, more than 127 levels.
    #[error("the input is not one I-JSON value")]
    Parse {
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "a double cannot hold the integer {value} at line {line} column {column}: RFC 8785 would print {rounded}"
    )]
    Integer {
        /// As it stands in the input, cut if it is long.
        value: String,
        /// The nearest double, as RFC 8785 prints it.
        rounded: String,
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
    },
    #[error(transparent)]
    Form(#[from] FormError),
}

/// Reads one I-JSON value.
///
/// # Errors
/// [`JsonError`] says what is wrong and where.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let (line, column) = position(bytes, error.valid_up_to());
        JsonError::NotText { line, column }
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Place::Root
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(named)?;
    check_integers(bytes)?;
    Ok(value)
}

/// The reader calls a surrogate followed by nothing an unexpected end, which says little; it has no code for it.
fn named(source: serde_json::Error) -> JsonError {
    if source.is_syntax() && source.to_string().contains("hex escape") {
        let (line, column) = (source.line(), source.column());
        JsonError::Surrogate { line, column }
    } else {
        JsonError::Parse { source }
    }
}

/// The RFC 8785 form of one I-JSON value.
///
/// # Errors
/// As [`parse`].
pub fn canonical(bytes: &[u8]) -> Result<String, JsonError> {
    Ok(jcs(&parse(bytes)?)?)
}

/// Why an input has no canonical form, for people or for programs.
#[derive(Debug, Serialize)]
pub struct Refused {
    refused: bool,
    subject: String,
    problem: String,
    causes: Vec<String>,
}

impl Refused {
    /// `subject` is refused because of `error`.
    pub fn new(subject: impl Into<String>, error: &JsonError) -> Self {
        let causes = std::iter::successors(error.source(), |&error| error.source());
        Self {
            refused: true,
            subject: subject.into(),
            problem: error.to_string(),
            causes: causes.map(report::in_plain_words).collect(),
        }
    }

    /// Answers with it: on stderr, unless a program asked, because what is on stdout may go straight into a hash.
    pub fn tell(&self, out: &mut Out) -> io::Result<Verdict> {
        if out.for_programs() {
            out.show(self)?;
        } else {
            report::note(&self.to_string());
        }
        Ok(Verdict::NotGood)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "REFUSED: {}\n  {}", self.subject, self.problem)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n  {cause}"))
    }
}

/// Where in the document a value stands. Displayed as its JSON Pointer (RFC 6901).
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(parent, key) => {
                write!(f, "{parent}/{}", key.replace('~', "~0").replace('/', "~1"))
            }
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for &Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(&Place::Item(self, array.len()))? {
            array.push(item);
        }
        // A document of many small arrays would otherwise hold several times its own size in spare room.
        array.shrink_to_fit();
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                let place = match self {
                    Place::Root => "the outermost object".to_owned(),
                    place => format!("the object at {place}"),
                };
                return Err(A::Error::custom(format_args!(
                    "the key {key:?} stands twice in {place}"
                )));
            }
            let value = members.next_value_seed(&Place::Member(self, &key))?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Looks for integers that a double does not hold, in what is known to be JSON: outside of strings only numbers have
/// digits. The literals are looked at because the parsed value no longer tells `1e30`, which says double, from 10³⁰
/// written out.
fn check_integers(json: &[u8]) -> Result<(), JsonError> {
    let mut at = 0;
    let mut in_string = false;
    while let Some(byte) = json.get(at) {
        match byte {
            b'\\' if in_string => at += 2,
            b'"' => {
                in_string = !in_string;
                at += 1;
            }
            b'-' | b'0'..=b'9' if !in_string => {
                let rest = json.get(at..).unwrap_or_default();
                let end = rest.iter().position(|byte| !is_in_number(*byte));
                let literal = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
                if let Some(rounded) = rounded_integer(literal) {
                    let (line, column) = position(json, at);
                    return Err(JsonError::Integer {
                        value: shortened(&String::from_utf8_lossy(literal)),
                        rounded,
                        line,
                        column,
                    });
                }
                at += literal.len();
            }
            _ => at += 1,
        }
    }
    Ok(())
}

fn is_in_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

/// What becomes of an integer that no double is equal to, unless RFC 8785 prints a double like that. Fractions and
/// exponents are no integers.
fn rounded_integer(literal: &[u8]) -> Option<String> {
    let digits = literal.strip_prefix(b"-").unwrap_or(literal);
    // Up to 15 digits every integer is a double.
    if digits.len() <= 15 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nearest: f64 = str::from_utf8(literal).ok()?.parse().ok()?;
    let exact = format!("{:.0}", nearest.abs());
    let printed = jcs(&nearest).ok()?;
    (exact.as_bytes() != digits && printed.as_bytes() != literal).then_some(printed)
}

fn shortened(literal: &str) -> String {
    const SHOWN: usize = 40;
    match literal.get(..SHOWN) {
        Some(start) if literal.len() > SHOWN => format!("{start}… ({} characters)", literal.len()),
        _ => literal.to_owned(),
    }
}

/// Line and column of a byte, both from 1.
fn position(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = bytes.get(..at).unwrap_or(bytes);
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    (lines + 1, before.len() - line_start + 1)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(input: &str, expected: &str) {
        assert_eq!(canonical(input.as_bytes()).unwrap(), expected, "{input}");
    }

    #[track_caller]
    fn check_refused(input: impl AsRef<[u8]>, problem: &str) {
        let error = canonical(input.as_ref()).expect_err("the input has no canonical form");
        let told = Refused::new("stdin", &error).to_string();
        assert!(told.contains(problem), "{told:?} does not say {problem:?}");
    }

    #[test]
    fn values_have_one_form() {
        check(
            " { \"b\" : 1 , \"a\" : [ true , null ] } \n",
            r#"{"a":[true,null],"b":1}"#,
        );
        check(
            r#""\u20ac\u0024\u000F\u000aA'\u0042\u0022\u005c\\\"\/""#,
            r#""€$\u000f\nA'B\"\\\\\"/""#,
        );
        // Numbers of RFC 8785, section 3.2.2 and appendix B, and some that a hasty reader rounds wrongly.
        check(
            "[333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001]",
            "[333333333.3333333,1e+30,4.5,0.002,1e-27]",
        );
        check(
            "[-0, -0.0, 1.0, 1e21, 123e-2, 5e-324]",
            "[0,0,1,1e+21,1.23,5e-324]",
        );
        check(
            "[9007199254740991, -9007199254740992, 9007199254740994]",
            "[9007199254740991,-9007199254740992,9007199254740994]",
        );
        check("2.2250738585072011e-308", "2.225073858507201e-308");
        check("1.7976931348623157e308", "1.7976931348623157e+308");
        // Below 10^21 it prints the shortest digits and fills up with zeros, which no double need be equal to.
        check("1.2345678901234568e20", "123456789012345680000");
        check("123456789012345680000", "123456789012345680000");
        check("-295147905179352830000", "-295147905179352830000");
        check("295147905179352825856", "295147905179352830000");
        check("18446744073709551616", "18446744073709552000");
        check("18446744073709552000", "18446744073709552000");
        check("1152921504606847000", "1152921504606847000");
        // Keys are ordered by UTF-16 code units: a surrogate pair stands before U+FB33.
        check(
            "{\"\u{fb33}\":1,\"😀\":2,\"1\":3,\"\":4}",
            "{\"\":4,\"1\":3,\"😀\":2,\"\u{fb33}\":1}",
        );
        check(
            r#"{"a":{"a":1},"b":[{"a":1},{"a":1}],"A":1}"#,
            r#"{"A":1,"a":{"a":1},"b":[{"a":1},{"a":1}]}"#,
        );
    }

    #[test]
    fn what_two_readers_would_take_for_two_values_is_refused() {
        check_refused(
            r#"{"a":1,"a":1}"#,
            "the key \"a\" stands twice in the outermost object at line 1 column 10",
        );
        check_refused(r#"{"a":1,"\u0061":2}"#, "the key \"a\" stands twice");
        check_refused(
            r#"{"x":[0,{"a/b":{"k":1,"k":2}}]}"#,
            "the key \"k\" stands twice in the object at /x/1/a~1b",
        );
        check_refused("[\n 9007199254740993]", "9007199254740993 at line 2 column 2");
        check_refused(
            r#"{"\\\"1":-18446744073709551617}"#,
            "-18446744073709551617 at line 1 column 10",
        );
        check_refused("1000000000000000000000000000000", "RFC 8785 would print 1e+30");
        check_refused(format!("1{}", "7".repeat(200)), "… (201 characters)");
        check_refused("1e400", "number out of range");
        check_refused("1".repeat(400), "number out of range");
    }

    #[test]
    fn what_is_not_one_json_text_is_refused() {
        check_refused("", "EOF while parsing a value at line 1 column 0");
        check_refused("{}\n{}", "trailing characters at line 2 column 1");
        check_refused("[1,]", "trailing comma");
        check_refused("{'a':1}", "key must be a string");
        check_refused("[NaN]", "expected value");
        check_refused("[01]", "invalid number");
        check_refused("\"\n\"", "control character");
        check_refused("\u{feff}{}", "expected value at line 1 column 1");
        for lone in [
            r#""\ud800""#,
            r#""\udc00""#,
            r#"{"\ud83d\u0041":1}"#,
            r#""\ud83d\n""#,
            r#""\ud83dx""#,
        ] {
            check_refused(lone, "a lone surrogate in a string before line 1 column");
        }
        check_refused(r#""\u12g4""#, "invalid escape");
        check_refused(r#""\ud83d"#, "at line 1 column 7");
        check_refused(b"{\"a\":\n\"\xff\"}", "not UTF-8 at line 2 column 2");
        check_refused(b"\"\xed\xa0\x80\"", "not UTF-8 at line 1 column 2");
        check_refused("[".repeat(1 << 20), "recursion limit exceeded");
        check_refused("{\"a\":".repeat(1 << 18), "recursion limit exceeded");
    }

    proptest! {
        /// Whatever bytes come: an answer. And a canonical form is its own canonical form.
        #[test]
        fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(once) = canonical(&bytes) {
                prop_assert_eq!(canonical(once.as_bytes()).unwrap(), once);
            }
        }

        /// JSON-like text finds its way deeper into the reader than random bytes do.
        #[test]
        fn json_like_text_gets_an_answer(text in r#"[\[\]{}:,"a\\u0-9d8e.\-+ ]{0,40}"#) {
            if let Ok(once) = canonical(text.as_bytes()) {
                prop_assert_eq!(canonical(once.as_bytes()).unwrap(), once);
            }
        }

        /// Every number there is, as RFC 8785 prints it, is its own canonical form.
        #[test]
        fn canonical_numbers_stay(bits in any::<u64>(), whole in any::<f64>()) {
            for number in [f64::from_bits(bits), whole.trunc(), whole % 1e21, (whole % 1e21).trunc(), bits as f64] {
                if number.is_finite() {
                    let once = jcs(&number).unwrap();
                    prop_assert_eq!(canonical(once.as_bytes()).unwrap(), once);
                }
            }
        }

        /// Exactly the integers that survive the way through a double are taken, and those printed for one.
        #[test]
        fn integers_are_kept_or_refused(value in any::<i64>(), shift in 0_u32..63) {
            let value = value >> shift;
            // Through i128: at the ends of i64 a saturating cast would hide a rounding.
            let exact = value as f64 as i128 == i128::from(value);
            let printed = jcs(&(value as f64)).unwrap() == value.to_string();
            prop_assert_eq!(canonical(value.to_string().as_bytes()).is_ok(), exact || printed);
        }
    }
}
