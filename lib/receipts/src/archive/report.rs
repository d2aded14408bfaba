//! `report.html`: the archive's page for people, which checks the receipts in the reader's own browser.
//!
//! One static template and data put into it, so that its bytes are prescribed like every other member's. Receipts hold
//! text that strangers chose: it stands in the page as escaped text only, the page's script shows it as text only, and
//! the content security policy admits no other script or style than the template's own, by hash, and no network.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

/// The most bytes of ledger lines that are put into the page; of a longer ledger the reader chooses the files.
pub(super) const EMBEDDED_BYTES: usize = 4 << 20;

const TEMPLATE: &str = include_str!("report.html");

/// Stands around the name of a place in the template where data goes. Nothing else in it has two of these in a row.
const MARK: &str = "%%";

/// What goes into the page.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) account_id: &'a str,
    /// The archive's key, as SPKI PEM.
    pub(super) auditor_pub: &'a str,
    /// The receipts of the key trail, each ended by a line feed; may be empty.
    pub(super) key_trail: &'a str,
    /// The signed note.
    pub(super) checkpoint: &'a str,
    pub(super) manifest: &'a str,
    /// How many receipts each operation has.
    pub(super) operations: &'a BTreeMap<&'static str, u64>,
    /// When the first receipt was appended.
    pub(super) first_timestamp: Option<Timestamp>,
    /// When the last receipt was appended.
    pub(super) last_timestamp: Option<Timestamp>,
    /// All ledger lines, each ended by a line feed; `None` where they are more than [`EMBEDDED_BYTES`].
    pub(super) receipts: Option<&'a str>,
}

/// The page. The same parts give the same bytes.
pub(super) fn render(parts: &Parts<'_>) -> String {
    let facts = facts(parts);
    let data = facts.len() + parts.manifest.len() + parts.key_trail.len() + parts.checkpoint.len();
    let mut page = String::with_capacity(TEMPLATE.len() + data + parts.receipts.map_or(0, str::len));
    // In one pass over the template, so that data can't name a place.
    for (at, piece) in TEMPLATE.split(MARK).enumerate() {
        if at % 2 == 0 {
            page.push_str(piece);
            continue;
        }
        match piece {
            "script-sha256" => page.push_str(&digest_of("script")),
            "style-sha256" => page.push_str(&digest_of("style")),
            "facts" => push_text(&mut page, &facts),
            "auditor-pub" => push_text(&mut page, parts.auditor_pub),
            "key-trail" => push_text(&mut page, parts.key_trail),
            "checkpoint" => push_text(&mut page, parts.checkpoint),
            "manifest" => push_text(&mut page, parts.manifest),
            "receipts" => push_text(&mut page, parts.receipts.unwrap_or_default()),
            // A place without data stays visible; the test finds it.
            other => drop(write!(page, "{MARK}{other}{MARK}")),
        }
    }
    page
}

/// What the page says before anything is checked, and holds against the receipts afterwards.
fn facts(parts: &Parts<'_>) -> String {
    let time = |time: Option<Timestamp>| time.map(|time| format!("{time:.3}"));
    // Keys in order: whether the map keeps it is a feature that another crate may switch on.
    serde_json::json!({
        "account_id": parts.account_id,
        "embedded": parts.receipts.is_some(),
        "first_timestamp": time(parts.first_timestamp),
        "last_timestamp": time(parts.last_timestamp),
        "operations": parts.operations,
    })
    .to_string()
}

/// What the content security policy calls the template's only `<script>` or `<style>`.
fn digest_of(element: &str) -> String {
    let content = TEMPLATE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(content, _)| content);
    STANDARD.encode(Sha256::digest(content))
}

/// Text for a `<pre>` whose `textContent` is that text again, to the byte.
///
/// The parser drops a line feed at the beginning, so there is one for it. It would read a carriage return as a line
/// feed. U+0000 it can't hold at all: no canonical JSON, key or note has one, and what has is made not to verify.
fn push_text(page: &mut String, text: &str) {
    page.push('\n');
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '\r' => page.push_str("&#13;"),
            '\0' => page.push(char::REPLACEMENT_CHARACTER),
            other => page.push(other),
        }
    }
}
