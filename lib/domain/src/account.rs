//! Account, SKU and plan identifiers: strings that come from outside and are checked once, here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest account id accepted, in characters.
pub const MAX_ACCOUNT_ID_CHARS: usize = 256;
/// Longest SKU, entitlement id or plan type accepted, in characters.
pub const MAX_PLAN_ID_CHARS: usize = 128;

/// Why an identifier was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The identifier has no characters.
    #[error("{what} is empty")]
    Empty { what: &'static str },
    /// The identifier is longer than allowed.
    #[error("{what} has {found} characters, more than {limit}")]
    TooLong {
        what: &'static str,
        /// Characters found.
        found: usize,
        /// Characters allowed.
        limit: usize,
    },
    /// The identifier holds a control character, which no ledger line may carry.
    #[error("{what} holds the control character U+{code:04X}")]
    Control {
        what: &'static str,
        /// Code point found.
        code: u32,
    },
}

fn check(what: &'static str, text: &str, limit: usize) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    // Nearly all are visible ASCII, of which a byte is a character and none a control character.
    if text.len() <= limit && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    let found = text.chars().count();
    if found > limit {
        return Err(IdError::TooLong { what, found, limit });
    }
    if let Some(c) = text.chars().find(|c| c.is_control()) {
        return Err(IdError::Control {
            what,
            code: u32::from(c),
        });
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps an identifier.
            ///
            /// # Errors
            /// [`IdError`] when it is empty, too long or holds a control character.
            pub fn parse(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check($what, &text, $limit)?;
                Ok(Self(text))
            }

            /// The identifier as its sender wrote it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// A customer's account at the marketplace: 1 to 256 characters, no control characters.
    AccountId,
    "account_id",
    MAX_ACCOUNT_ID_CHARS
);
identifier!(
    /// A product at the marketplace: 1 to 128 characters, no control characters.
    SkuId,
    "sku_id",
    MAX_PLAN_ID_CHARS
);
identifier!(
    /// A marketplace's own id of one agreement: 1 to 128 characters, no control characters.
    EntitlementId,
    "entitlement_id",
    MAX_PLAN_ID_CHARS
);
identifier!(
    /// A plan of a product: 1 to 128 characters, no control characters.
    PlanType,
    "plan_type",
    MAX_PLAN_ID_CHARS
);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_account(input: &str, expected: Result<(), &str>) {
        let got = AccountId::parse(input).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    #[test]
    fn account_ids() {
        check_account("customer-123", Ok(()));
        check_account("ünïcode/../_system #1", Ok(()));
        check_account(&"x".repeat(256), Ok(()));
        check_account("", Err("account_id is empty"));
        check_account(
            &"x".repeat(257),
            Err("account_id has 257 characters, more than 256"),
        );
        check_account("a\u{7f}b", Err("account_id holds the control character U+007F"));
        check_account("a\nb", Err("account_id holds the control character U+000A"));
    }
}
