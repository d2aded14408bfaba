//! Receipts as rows of a table: RFC 4180, and harmless in a spreadsheet.

use std::borrow::Cow;

use receipts::canonical::jcs;
use serde_json::Value;

use crate::json::{self, JsonError};

/// The columns, in order: what every receipt has, then `payload`, the operation's own fields as canonical JSON.
const COLUMNS: [&str; 12] = [
    "seq",
    "timestamp",
    "occurred_at",
    "account_id",
    "operation",
    "status",
    "duration_ms",
    "policy_hash",
    "receipt_id",
    "prev_hash",
    "key_id",
    "signature",
];

/// The first row, with its line end.
pub const HEADER: &str = "seq,timestamp,occurred_at,account_id,operation,status,duration_ms,policy_hash,receipt_id,\
    prev_hash,key_id,signature,payload\r\n";

/// A receipt that gives no row.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("the receipt is not a JSON object")]
    NoObject,
}

/// The row of a ledger line, with its line end. A field that the receipt lacks is an empty cell.
///
/// # Errors
/// [`RowError`] when the line is not a JSON object.
pub fn receipt(line: &str) -> Result<String, RowError> {
    let Value::Object(mut fields) = json::parse(line.as_bytes())? else {
        return Err(RowError::NoObject);
    };
    let mut cells = Vec::with_capacity(COLUMNS.len() + 1);
    for column in COLUMNS {
        cells.push(Cow::Owned(match fields.remove(column) {
            None => String::new(),
            Some(Value::String(text)) => text,
            Some(value) => jcs(&value).map_err(JsonError::Form)?,
        }));
    }
    cells.push(Cow::Owned(jcs(&fields).map_err(JsonError::Form)?));
    Ok(row(cells))
}

fn row<'a>(cells: impl IntoIterator<Item = Cow<'a, str>>) -> String {
    let cells: Vec<_> = cells.into_iter().map(|text| quoted(&harmless(&text))).collect();
    cells.join(",") + "\r\n"
}

/// Account ids come from outside, and a spreadsheet runs a cell that begins like a formula: an apostrophe makes it
/// text.
fn harmless(text: &str) -> Cow<'_, str> {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) {
        Cow::Owned(format!("'{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// RFC 4180, section 2, rules 5 to 7.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
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
    fn check_cell(text: &str, expected: &str) {
        assert_eq!(row([Cow::Borrowed(text)]), format!("{expected}\r\n"), "{text:?}");
    }

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        check_cell("", "");
        check_cell("plain text; with é", "plain text; with é");
        check_cell("a,b", "\"a,b\"");
        check_cell("say \"a\"", "\"say \"\"a\"\"\"");
        check_cell("two\nlines", "\"two\nlines\"");
        check_cell("two\r\nlines", "\"two\r\nlines\"");
        check_cell("{\"a\":\"\\\"\"}", "\"{\"\"a\"\":\"\"\\\"\"\"\"}\"");
    }

    #[test]
    fn no_cell_is_a_formula() {
        check_cell("=1+1", "'=1+1");
        check_cell(
            "=HYPERLINK(\"http://a\",\"b\")",
            "\"'=HYPERLINK(\"\"http://a\"\",\"\"b\"\")\"",
        );
        check_cell("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0");
        check_cell("-1", "'-1");
        check_cell("@SUM(A1)", "'@SUM(A1)");
        check_cell("\t=1", "'\t=1");
        check_cell("\r=1", "\"'\r=1\"");
        check_cell("\n=1", "\"'\n=1\"");
        check_cell("a=1", "a=1");
        check_cell("'a", "'a");
    }

    #[test]
    fn a_receipt_is_a_row_in_fixed_order() {
        let names = COLUMNS.into_iter().chain(["payload"]).map(Cow::Borrowed);
        assert_eq!(HEADER, row(names));
        let line = r#"{"account_id":"=a,1","duration_ms":5,"key_id":"k","occurred_at":"o","operation":"action_complete","prev_hash":"p","receipt_id":"r","seq":7,"signature":"+/==","status":"success","template":"t","timestamp":"t1","action_id":"a"}"#;
        assert_eq!(
            receipt(line).unwrap(),
            "7,t1,o,\"'=a,1\",action_complete,success,5,,r,p,k,'+/==,\"{\"\"action_id\"\":\"\"a\"\",\"\"template\"\":\"\"t\"\"}\"\r\n"
        );
        assert_eq!(receipt("{}").unwrap(), ",,,,,,,,,,,,{}\r\n");
        assert!(matches!(receipt("[]"), Err(RowError::NoObject)));
        assert!(matches!(receipt(r#"{"seq":1,"seq":2}"#), Err(RowError::Json(_))));
    }

    /// Reads one row as RFC 4180 says, by itself.
    fn read(row: &str) -> Vec<String> {
        let text = row.strip_suffix("\r\n").expect("a row ends its line");
        let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, quoted) {
                ('"', true) if chars.peek() == Some(&'"') => {
                    cell.push('"');
                    chars.next();
                }
                ('"', _) => quoted = !quoted,
                (',', false) => cells.push(std::mem::take(&mut cell)),
                ('\r' | '\n', false) => panic!("a line end outside of quotes"),
                (c, _) => cell.push(c),
            }
        }
        assert!(!quoted);
        cells.push(cell);
        cells
    }

    proptest! {
        #[test]
        fn rows_are_read_back(cells in prop::collection::vec("[a=+@,'\"\r\n\t -]{0,6}|.{0,6}", 1..5)) {
            let found = read(&row(cells.iter().map(|cell| Cow::Borrowed(cell.as_str()))));
            let expected: Vec<_> = cells.iter().map(|cell| harmless(cell).into_owned()).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
