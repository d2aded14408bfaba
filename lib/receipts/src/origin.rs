//! Whose ledger it is, as a name: the origin of its checkpoints, and its folder.

use crate::canonical::sha256_hex;

/// What receipts of the control plane's own ledger have as `account_id`. A customer may be called so too.
pub const SYSTEM: &str = "_system";

/// The longest segment that is written whole, in bytes: an object key has room for 1,024.
const WHOLE: usize = 512;
/// How much of a longer one is kept, before its digest.
const KEPT: usize = 400;

/// Whose ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ledger<'a> {
    /// A customer's, by account id.
    Customer(&'a str),
    /// The control plane's own.
    System,
}

impl Ledger<'_> {
    /// The `account_id` in its receipts.
    pub fn account_id(&self) -> &str {
        match self {
            Self::Customer(account_id) => account_id,
            Self::System => SYSTEM,
        }
    }

    /// One path segment that no other ledger has: `[A-Za-z0-9_-]` as they are, other bytes percent-encoded.
    ///
    /// Only the control plane's begin with an underscore: a customer's first one is percent-encoded too. Account ids may
    /// be 256 characters of four bytes, so a segment beyond 512 bytes is cut and made unique by a digest.
    pub fn segment(&self) -> String {
        let Self::Customer(account_id) = self else {
            return SYSTEM.to_owned();
        };
        let mut segment = segment(account_id);
        if let Some(rest) = segment.strip_prefix('_') {
            segment = format!("%5F{rest}");
        }
        if segment.len() > WHOLE {
            segment.truncate(KEPT);
            // `segment` never makes a `~`, so that a cut one can't equal a whole one.
            segment = format!("{segment}~{}", sha256_hex(account_id));
        }
        segment
    }

    /// The origin of its checkpoints: `<domain>/receipts/<segment>`.
    pub fn origin(&self, domain: &str) -> String {
        format!("{domain}/receipts/{}", self.segment())
    }
}

/// Percent-encodes everything but `[A-Za-z0-9_-]`, so that any text is one path segment.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex::encode_upper([byte]));
        }
    }
    out
}

/// Whether a checkpoint of this origin, under whatever domain, is about a ledger with this `account_id`.
pub fn names(origin: &str, account_id: &str) -> bool {
    let Some((domain, tenant)) = origin.rsplit_once("/receipts/") else {
        return false;
    };
    let customer = Ledger::Customer(account_id).segment();
    !domain.is_empty() && (tenant == customer || (account_id == SYSTEM && tenant == SYSTEM))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(ledger: Ledger<'_>, expected: &str) {
        let origin = ledger.origin("governor.example");
        assert_eq!(origin, format!("governor.example/receipts/{expected}"));
        assert!(names(&origin, ledger.account_id()), "{origin}");
        assert!(!names(&origin, "another"), "{origin}");
    }

    #[test]
    fn origins_name_one_ledger() {
        check(Ledger::Customer("customer-123"), "customer-123");
        check(Ledger::Customer("a/b c+d"), "a%2Fb%20c%2Bd");
        check(Ledger::Customer("é"), "%C3%A9");
        check(Ledger::System, "_system");
        check(Ledger::Customer("_system"), "%5Fsystem");
        check(Ledger::Customer("%5Fsystem"), "%255Fsystem");
        for origin in [
            "",
            "customer-123",
            "/receipts/customer-123",
            "governor.example/receipts/",
            "governor.example/receipts/customer-123/",
        ] {
            assert!(!names(origin, "customer-123"), "{origin}");
        }
    }

    proptest! {
        #[test]
        fn segments_are_distinct_and_fit(ids in proptest::collection::hash_set("\\PC{1,256}", 1..20)) {
            let mut segments = HashSet::from([Ledger::System.segment()]);
            for id in &ids {
                let segment = Ledger::Customer(id).segment();
                prop_assert!(segment.len() <= WHOLE && !segment.starts_with('_'), "{segment}");
                prop_assert!(segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_%~".contains(&b)), "{segment}");
                prop_assert!(segments.insert(segment));
            }
        }
    }
}
