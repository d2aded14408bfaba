//! The bytes that are hashed and signed: RFC 8785 (JCS), kept to what `jq -cS` prints byte for byte.

use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::Range;

use serde::Serialize;
use serde_json::ser::{self, CompactFormatter, Formatter};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Integers in a receipt are below this: an IEEE 754 double, which is what JCS and `jq` print from, holds them exactly.
pub const INTEGER_LIMIT: u64 = 1 << 53;

/// The hash "before the first receipt": 64 zeros.
pub const ZERO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A value that can't stand in a receipt.
#[derive(Debug, Error)]
pub enum FormError {
    /// The value has no JSON form.
    #[error("writing the value as canonical JSON failed")]
    Unrepresentable {
        #[source]
        source: serde_json::Error,
    },
    /// An integer a double can't hold exactly.
    #[error("`{field}` is {value}, and an integer in a receipt must be below {INTEGER_LIMIT}")]
    Integer {
        /// The field, or the field that holds the array.
        field: String,
        /// The digits as they would stand in the receipt.
        value: String,
    },
    /// U+007F, which `jq` escapes and RFC 8785 does not.
    #[error(
        "`{field}` contains U+007F, which `jq` and RFC 8785 write differently; see `canonical::without_delete`"
    )]
    Delete {
        /// The field, or the field that holds the array.
        field: String,
    },
    /// A `policy_hash` that is not a SHA-256 in hex.
    #[error("`policy_hash` is {value:?}, not 64 lower-case hex digits")]
    PolicyHash { value: String },
}

/// The RFC 8785 canonical form of a value.
///
/// # Errors
/// [`FormError::Unrepresentable`] for a value without a JSON form (NaN, a map with keys that are not strings).
pub fn jcs<T: Serialize>(value: &T) -> Result<String, FormError> {
    if let Some(text) = plain_jcs(value) {
        return Ok(text);
    }
    serde_json_canonicalizer::to_string(value).map_err(|source| FormError::Unrepresentable { source })
}

/// As [`jcs`], with the values held to what `jq` prints alike.
pub(crate) fn checked_jcs<T: Serialize>(value: &T) -> Result<String, FormError> {
    match plain_jcs(value) {
        // All its integers are below the limit.
        Some(text) if !text.as_bytes().contains(&0x7f) => Ok(text),
        _ => {
            let text = jcs(value)?;
            check_values(&text)?;
            Ok(text)
        }
    }
}

/// The canonical form of a value that serde_json writes alike but for the order of its fields, as it does with every
/// receipt: several times faster than what can write any value. `None` for other values.
///
/// serde_json writes strings as RFC 8785 does, and so integers up to [`INTEGER_LIMIT`].
fn plain_jcs<T: Serialize>(value: &T) -> Option<String> {
    let text = RefCell::new(Vec::with_capacity(TYPICAL_BYTES));
    let sorter = Sorter {
        text: &text,
        fields: Vec::with_capacity(TYPICAL_FIELDS),
        objects: Vec::with_capacity(TYPICAL_DEPTH),
        scratch: Vec::with_capacity(TYPICAL_BYTES),
    };
    value
        .serialize(&mut ser::Serializer::with_formatter(Output(&text), sorter))
        .ok()?;
    String::from_utf8(text.into_inner()).ok()
}

/// Room for most receipts, to begin with.
const TYPICAL_BYTES: usize = 1024;
const TYPICAL_FIELDS: usize = 32;
const TYPICAL_DEPTH: usize = 4;

/// The text so far, shared with the [`Sorter`], which has to know where in it a field begins.
struct Output<'t>(&'t RefCell<Vec<u8>>);

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts the fields of each object in order when it ends, and refuses what is not plain.
struct Sorter<'t> {
    text: &'t RefCell<Vec<u8>>,
    /// The fields of all open objects.
    fields: Vec<Field>,
    /// For each open object, how many fields there were before it.
    objects: Vec<usize>,
    scratch: Vec<u8>,
}

/// Where a field stands in the text.
struct Field {
    key: Range<usize>,
    end: usize,
}

fn not_plain() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

impl Sorter<'_> {
    /// Sorts the fields of the object that ends.
    fn sort(&mut self) -> Option<()> {
        let first = self.objects.pop()?;
        let fields = self.fields.get_mut(first..)?;
        let text = &mut *self.text.borrow_mut();
        let key = |field: &Field| text.get(field.key.clone()).unwrap_or_default();
        let in_order = |a: &Field, b: &Field| key(a) < key(b);
        if !fields.is_sorted_by(in_order) {
            let start = fields.first()?.key.start;
            self.scratch.clear();
            fields.sort_unstable_by(|a, b| key(a).cmp(key(b)));
            // A repeated key has no order.
            if !fields.is_sorted_by(in_order) {
                return None;
            }
            for field in &*fields {
                self.scratch
                    .extend_from_slice(text.get(field.key.start..field.end)?);
                self.scratch.push(b',');
            }
            self.scratch.pop();
            text.truncate(start);
            text.extend_from_slice(&self.scratch);
        }
        self.fields.truncate(first);
        Some(())
    }
}

impl Formatter for Sorter<'_> {
    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.objects.push(self.fields.len());
        CompactFormatter.begin_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        CompactFormatter.begin_object_key(writer, first)?;
        let start = self.text.borrow().len();
        self.fields.push(Field {
            key: start..start,
            end: start,
        });
        Ok(())
    }

    fn end_object_key<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        let text = self.text.borrow();
        let field = self.fields.last_mut().ok_or_else(not_plain)?;
        field.key.end = text.len();
        // RFC 8785 sorts by UTF-16 code units of what the key says: such names are their own, and `"` ends them.
        let name = text.get(field.key.start + 1..field.key.end - 1);
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        match name {
            Some(name) if name.iter().all(is_plain) => Ok(()),
            _ => Err(not_plain()),
        }
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        let end = self.text.borrow().len();
        let open = self.fields.last_mut().ok_or_else(not_plain)?;
        open.end = end;
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.sort().ok_or_else(not_plain)?;
        CompactFormatter.end_object(writer)
    }

    fn write_u64<W: ?Sized + Write>(&mut self, writer: &mut W, value: u64) -> io::Result<()> {
        if value >= INTEGER_LIMIT {
            return Err(not_plain());
        }
        CompactFormatter.write_u64(writer, value)
    }

    fn write_i64<W: ?Sized + Write>(&mut self, writer: &mut W, value: i64) -> io::Result<()> {
        if value.unsigned_abs() >= INTEGER_LIMIT {
            return Err(not_plain());
        }
        CompactFormatter.write_i64(writer, value)
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        // Inside these bounds both write the shortest digits without an exponent, RFC 8785 no `.0`.
        if value.to_bits() != 0 && !(1e-6..1e15).contains(&value.abs()) {
            return Err(not_plain());
        }
        write!(writer, "{value}")
    }

    /// Which NaN becomes, too.
    fn write_null<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        Err(not_plain())
    }

    fn write_f32<W: ?Sized + Write>(&mut self, _: &mut W, _: f32) -> io::Result<()> {
        Err(not_plain())
    }

    fn write_i128<W: ?Sized + Write>(&mut self, _: &mut W, _: i128) -> io::Result<()> {
        Err(not_plain())
    }

    fn write_u128<W: ?Sized + Write>(&mut self, _: &mut W, _: u128) -> io::Result<()> {
        Err(not_plain())
    }

    fn write_number_str<W: ?Sized + Write>(&mut self, _: &mut W, _: &str) -> io::Result<()> {
        Err(not_plain())
    }

    fn write_raw_fragment<W: ?Sized + Write>(&mut self, _: &mut W, _: &str) -> io::Result<()> {
        Err(not_plain())
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hash_hex(&Sha256::digest(bytes).into())
}

/// A hash in lower-case hex: written in one go, as every receipt takes several.
pub(crate) fn hash_hex(hash: &[u8; 32]) -> String {
    let mut digits = [0; ZERO_HASH.len()];
    let written = hex::encode_to_slice(hash, &mut digits).is_ok();
    match str::from_utf8(&digits) {
        Ok(text) if written => text.to_owned(),
        // Never: the room is exact, and digits are text.
        _ => hex::encode(hash),
    }
}

/// Replaces U+007F by U+FFFD, for text that comes from outside and must not stop a receipt from being written.
pub fn without_delete(text: &str) -> String {
    text.replace('\u{7f}', "\u{fffd}")
}

/// Whether `text` is a SHA-256 as receipts write it.
pub(crate) fn is_sha256_hex(text: &str) -> bool {
    text.len() == ZERO_HASH.len() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks the values of canonical JSON against what `jq` would print differently.
///
/// One pass over the text rather than over the typed value, so that writing and verifying hold the same rule at the
/// price of reading some hundred bytes.
pub(crate) fn check_values(canonical: &str) -> Result<(), FormError> {
    let mut field: Range<usize> = 0..0;
    let mut last_string: Range<usize> = 0..0;
    let mut string_start = None;
    let mut escaped = false;
    let mut integer: Option<(usize, u64)> = None;
    let mut fraction = false;
    let name = |range: &Range<usize>| canonical.get(range.clone()).unwrap_or_default().to_owned();

    for (at, byte) in canonical.bytes().enumerate() {
        if let Some(start) = string_start {
            match byte {
                0x7f => {
                    return Err(FormError::Delete { field: name(&field) });
                }
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    last_string = start..at;
                    string_start = None;
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => string_start = Some(at + 1),
            b':' => field = last_string.clone(),
            b'.' => fraction = true,
            b'0'..=b'9' if !fraction => {
                let (start, value) = integer.unwrap_or((at, 0));
                let value = value.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                if value >= INTEGER_LIMIT {
                    let digits = canonical.get(start..).unwrap_or_default();
                    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
                    let value = digits.get(..end).unwrap_or_default().to_owned();
                    return Err(FormError::Integer {
                        field: name(&field),
                        value,
                    });
                }
                integer = Some((start, value));
            }
            b',' | b'}' | b']' => {
                integer = None;
                fraction = false;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use serde::Serializer;
    use serde_json::{Value, json};

    use super::*;

    /// The canonical form as the library writes it for any value.
    fn library_jcs(value: &impl Serialize) -> String {
        serde_json_canonicalizer::to_string(value).unwrap()
    }

    /// Values of which many are plain: names as keys, small integers.
    fn any_value() -> impl Strategy<Value = Value> {
        let number = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (0..1_u64 << 54).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-1e8..1e8).prop_map(|dollars: f64| Value::from((dollars * 1e4).round() / 1e4)),
        ];
        let text = vec(any::<char>(), 0..8).prop_map(|chars| chars.into_iter().collect::<String>());
        let name = vec(
            proptest::char::ranges(vec!['a'..='c', '_'..='_', 'A'..='B'].into()),
            0..4,
        );
        let name = name.prop_map(|chars| chars.into_iter().collect::<String>());
        let key = prop_oneof![9 => name, 1 => text.clone()];
        let leaf = prop_oneof![
            number,
            text.prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null)
        ];
        leaf.prop_recursive(4, 64, 6, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec((key.clone(), inner), 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// Fields in the order they are given in, as a struct has them.
    struct InOrder(Vec<(String, Value)>);

    impl Serialize for InOrder {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
        }
    }

    proptest! {
        #[test]
        fn every_value_is_written_as_the_library_does(value in any_value()) {
            prop_assert_eq!(jcs(&value).unwrap(), library_jcs(&value));
        }

        #[test]
        fn fields_in_any_order_are_written_as_the_library_does(
            fields in btree_map("[a-cA-B_\u{e9}\"]{0,3}", any_value(), 0..8).prop_map(Vec::from_iter).prop_shuffle()
        ) {
            let value = InOrder(fields);
            prop_assert_eq!(jcs(&value).unwrap(), library_jcs(&value));
        }

        #[test]
        fn checking_while_writing_finds_what_checking_the_text_finds(value in any_value()) {
            let found = checked_jcs(&value).map_err(|error| error.to_string());
            let text = library_jcs(&value);
            let expected = check_values(&text).map(|()| text).map_err(|error| error.to_string());
            prop_assert_eq!(found, expected);
        }
    }

    #[track_caller]
    fn check_plain(value: impl Serialize, expected: Option<&str>) {
        assert_eq!(plain_jcs(&value).as_deref(), expected);
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_library() {
        check_plain(
            json!({"b": [1.5, -2, "é"], "a": {"z": true, "y": {}}}),
            Some(r#"{"a":{"y":{},"z":true},"b":[1.5,-2,"é"]}"#),
        );
        check_plain(
            [0.0, 5.0, -0.0001, 99_999_999.999_9],
            Some("[0,5,-0.0001,99999999.9999]"),
        );
        check_plain(-0.0, None);
        check_plain(1e-7, None);
        check_plain(1e15, None);
        check_plain(f64::NAN, None);
        check_plain(None::<u64>, None);
        check_plain(INTEGER_LIMIT - 1, Some("9007199254740991"));
        check_plain(INTEGER_LIMIT, None);
        check_plain(-9_007_199_254_740_992_i64, None);
        check_plain(json!({"a b": 1}), None);
        check_plain(
            InOrder(vec![("a".to_owned(), json!(1)), ("a".to_owned(), json!(2))]),
            None,
        );
    }

    #[test]
    fn a_value_without_a_json_form_is_refused() {
        assert!(matches!(jcs(&f64::NAN), Err(FormError::Unrepresentable { .. })));
    }

    #[track_caller]
    fn check(text: &str, expected: Result<(), &str>) {
        let found = check_values(text).map_err(|error| error.to_string());
        match expected {
            Ok(()) => assert_eq!(found, Ok(()), "{text}"),
            Err(part) => {
                let message = found.expect_err("the text breaks a rule");
                assert!(
                    message.contains(part),
                    "{text}: {message:?} does not say {part:?}"
                );
            }
        }
    }

    #[test]
    fn values_that_jq_prints_alike_pass() {
        check("{}", Ok(()));
        check(
            r#"{"a":9007199254740991,"b":[1,2,9007199254740991],"c":"99999999999999999999"}"#,
            Ok(()),
        );
        check(r#"{"a":0.90071992547409931,"b":-12.5}"#, Ok(()));
        check(r#"{"a":"quote \" then \\","b":"\u0000 tab\t é 😀"}"#, Ok(()));
    }

    #[test]
    fn values_that_jq_prints_differently_are_named() {
        check(r#"{"a":9007199254740992}"#, Err("`a` is 9007199254740992"));
        check(
            r#"{"a":1,"b":{"c":[1,18446744073709552000]}}"#,
            Err("`c` is 18446744073709552000"),
        );
        check(
            r#"{"a":0.5,"b":9007199254740993.5}"#,
            Err("`b` is 9007199254740993"),
        );
        check("{\"a\":\"x\",\"b\":\"\\\"\u{7f}\"}", Err("`b` contains U+007F"));
    }

    #[test]
    fn text_from_outside_can_be_made_fit() {
        assert_eq!(without_delete("a\u{7f}b\n"), "a\u{fffd}b\n");
    }
}
