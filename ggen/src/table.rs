//! Tables for people: aligned columns that fit a terminal, out of words that others wrote.

use std::fmt::Write as _;

use jiff::Timestamp;
use unicode_width::UnicodeWidthChar as _;

/// Columns of a terminal that a line may take.
pub const WIDTH: usize = 120;
/// Spaces between columns.
const GAP: usize = 2;
/// No column that has more is cut to less.
const LEAST: usize = 8;

/// One column of a table.
#[derive(Clone, Copy)]
pub struct Column {
    header: &'static str,
    right: bool,
}

/// A column of words.
pub const fn words(header: &'static str) -> Column {
    Column { header, right: false }
}

/// A column of numbers, which end under each other.
pub const fn numbers(header: &'static str) -> Column {
    Column { header, right: true }
}

/// Lays a table out, each line at most `width` wide: where it is too wide, the widest columns are cut first. A table of
/// columns without headers has no line of them.
pub fn layout<const N: usize>(columns: &[Column; N], rows: &[[String; N]], width: usize) -> String {
    let headers = columns.map(|column| column.header.to_owned());
    let mut lines: Vec<[String; N]> = Vec::with_capacity(rows.len() + 1);
    if headers.iter().any(|header| !header.is_empty()) {
        lines.push(headers);
    }
    lines.extend(rows.iter().map(|row| row.each_ref().map(|cell| tame(cell))));

    let mut widths = [0; N];
    for line in &lines {
        for (widest, cell) in widths.iter_mut().zip(line) {
            *widest = (*widest).max(width_of(cell));
        }
    }
    let least = columns.map(|column| LEAST.max(column.header.len()));
    shrink(
        &mut widths,
        &least,
        width.saturating_sub(GAP * N.saturating_sub(1)),
    );

    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for ((cell, column), width) in line.iter().zip(columns).zip(widths) {
            let cell = cut(cell, width);
            let pad = width.saturating_sub(width_of(&cell));
            let (before, after) = if column.right { (pad, 0) } else { (0, pad) };
            // A String takes whatever is written.
            let _ = write!(row, "{:before$}{cell}{:after$}{:gap$}", "", "", "", gap = GAP);
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// The same text, each line this far to the right.
pub fn indented(text: &str, by: usize) -> String {
    let mut moved = String::with_capacity(text.len());
    for line in text.lines() {
        let _ = writeln!(moved, "{:by$}{line}", "");
    }
    moved
}

/// An instant for people, to the second.
pub fn when(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// An instant for people, to the minute.
pub fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%MZ").to_string()
}

/// The first digits of a hash: enough to tell it from others at a glance.
pub fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// Takes from the widest columns until all fit, or none may lose more.
fn shrink<const N: usize>(widths: &mut [usize; N], least: &[usize; N], room: usize) {
    while widths.iter().sum::<usize>() > room {
        let wide = widths
            .iter_mut()
            .zip(least)
            .filter(|(width, least)| **width > **least);
        match wide.max_by_key(|(width, _)| **width) {
            Some((width, _)) => *width -= 1,
            None => break,
        }
    }
}

/// As much of a text as fits, and a sign that there was more.
fn cut(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += columns_of(c);
        if used > width {
            break;
        }
        kept.push(c);
    }
    kept.push('…');
    kept
}

/// Account ids, plans and reasons are others' words. They must neither break a line nor turn the direction of writing, so
/// that what stands in a row is what it seems.
fn tame(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' => ' ',
            '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => '\u{FFFD}',
            c if c.is_control() => '\u{FFFD}',
            c => c,
        })
        .collect()
}

/// By characters, as [`cut`] takes them.
fn width_of(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Columns that a character takes on a terminal.
fn columns_of(c: char) -> usize {
    c.width().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COLUMNS: [Column; 3] = [words("ACCOUNT"), numbers("GEN"), words("PLANS")];

    #[track_caller]
    fn check(rows: &[[&str; 3]], width: usize, expected: &[&str]) {
        let rows: Vec<[String; 3]> = rows.iter().map(|row| row.map(str::to_owned)).collect();
        let text = layout(&COLUMNS, &rows, width);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn columns_are_aligned_and_the_widest_is_cut() {
        check(&[], 40, &["ACCOUNT  GEN  PLANS"]);
        check(
            &[["a", "1", "s/p"], ["customer-1", "1000", ""]],
            40,
            &[
                "ACCOUNT      GEN  PLANS",
                "a              1  s/p",
                "customer-1  1000",
            ],
        );
        check(
            &[["customer-1", "1", "marketplace-sku-456/professional"]],
            40,
            &[
                "ACCOUNT     GEN  PLANS",
                "customer-1    1  marketplace-sku-456/pr…",
            ],
        );
        // Below this nothing could be read, so the lines are wider.
        check(
            &[["customer-1", "1", "professional"]],
            10,
            &["ACCOUNT   GEN  PLANS", "custome…    1  profess…"],
        );
    }

    #[test]
    fn others_words_break_nothing() {
        check(
            &[["a\nb\u{1b}[31m", "1", "x\u{202e}y"], ["顧客-一", "2", "z"]],
            40,
            &["ACCOUNT   GEN  PLANS", "a b�[31m    1  x�y", "顧客-一     2  z"],
        );
    }

    #[test]
    fn columns_without_headers_have_no_line_of_them() {
        let rows = [["lifecycle".to_owned(), "active".to_owned()]];
        assert_eq!(
            layout(&[words(""), words("")], &rows, WIDTH),
            "lifecycle  active\n"
        );
        assert_eq!(indented("a\n\nb\n", 2), "  a\n  \n  b\n");
    }

    proptest! {
        /// Whatever accounts are called, each has its line, and none is wider than the terminal.
        #[test]
        fn every_table_fits(cells in proptest::collection::vec(any::<[String; 3]>(), 0..9), long in "[a-z顧]{0,300}") {
            let rows: Vec<[String; 3]> = cells.into_iter().map(|[a, b, c]| [a + &long, b, c]).collect();
            let text = layout(&COLUMNS, &rows, WIDTH);
            let lines: Vec<&str> = text.split_terminator('\n').collect();
            prop_assert_eq!(lines.len(), rows.len() + 1);
            for line in lines {
                prop_assert!(width_of(line) <= WIDTH, "{line}");
                prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
    }
}
