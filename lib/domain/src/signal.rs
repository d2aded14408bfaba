//! Signals: what a producer puts on a tenant's queue to ask for an action.

use receipts::wording;
use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::account::{AccountId, EntitlementId, SkuId};
use crate::json::{self, Object};

/// Longest action id accepted, in characters.
pub const MAX_ACTION_ID_CHARS: usize = 64;

/// A request for one action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signal {
    /// Names the action for ever: 1 to 64 of `[A-Za-z0-9_-]`. A second signal with the same id asks for nothing more.
    pub action_id: ActionId,
    /// The tenant it is for; must be the tenant whose queue it came from.
    pub account_id: AccountId,
    /// The product it is for: needed by accounts that hold entitlements to more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku_id: Option<SkuId>,
    /// The agreement it is for: needed by accounts that hold more than one to the same product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entitlement_id: Option<EntitlementId>,
    /// Template of the policy to run.
    pub template: String,
    #[serde(default, deserialize_with = "json::map")]
    pub parameters: Map<String, Value>,
    /// SHA-256 of the enforcer the producer believes in, lower hex.
    pub policy_hash: String,
}

/// An action's id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionId(String);

/// Why an action id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("action_id must be 1 to 64 characters of [A-Za-z0-9_-]")]
pub struct ActionIdError;

impl ActionId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ActionId {
    /// The id under which a message that is no signal is kept: the queue's own id of it, or a digest of that where it is
    /// not a legal action id.
    #[must_use]
    pub fn of_message(message_id: &str) -> Self {
        Self::try_from(message_id.to_owned()).unwrap_or_else(|_| {
            let digest = hex::encode(Sha256::digest(message_id.as_bytes()));
            Self(digest)
        })
    }
}

impl TryFrom<String> for ActionId {
    type Error = ActionIdError;
    fn try_from(text: String) -> Result<Self, ActionIdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if text.is_empty() || text.len() > MAX_ACTION_ID_CHARS || !text.bytes().all(legal) {
            return Err(ActionIdError);
        }
        Ok(Self(text))
    }
}

impl From<ActionId> for String {
    fn from(id: ActionId) -> Self {
        id.0
    }
}

/// Why a message on a tenant's queue is not a signal. The message names the field.
#[derive(Debug, thiserror::Error)]
#[error("signal field `{field}`: {}", wording::problem(source))]
pub struct SignalError {
    /// Path of the field, `.` for the whole message.
    pub field: String,
    #[source]
    pub source: serde_json::Error,
}

impl SignalError {
    /// What is wrong, without a word of what the message said: a ledger keeps it for ever, and producers put anything
    /// into messages.
    #[must_use]
    pub fn for_the_record(&self) -> String {
        let field = self
            .field
            .split(['.', '['])
            .next()
            .filter(|field| !field.is_empty())
            .unwrap_or(".");
        let text = self.source.to_string();
        let said = text.split(" at line ").next().unwrap_or_default();
        let problem = match (self.source.classify(), wording::expectation(&self.source)) {
            (Category::Io | Category::Syntax | Category::Eof, _) => "is not JSON".to_owned(),
            (Category::Data, Some(expected)) => format!("expected {expected}"),
            (Category::Data, None) if said.starts_with("missing field") => said.to_owned(),
            (Category::Data, None) if said.starts_with(json::TWICE) => match plain_name(said) {
                Some(name) => format!("has the name `{name}` twice"),
                None => "has a name twice".to_owned(),
            },
            (Category::Data, None) => "is not of its form".to_owned(),
        };
        format!("signal field `{field}`: {problem}")
    }
}

/// The name that stands twice, where it looks like one and can be no address.
fn plain_name(said: &str) -> Option<&str> {
    let name = said.strip_prefix(json::TWICE)?.strip_suffix('`')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (name.len() <= 64 && name.bytes().all(plain)).then_some(name)
}

impl Signal {
    /// Reads a queue message. Unknown fields are ignored.
    ///
    /// # Errors
    /// [`SignalError`] naming the field that is missing or mistyped.
    pub fn parse(message: &str) -> Result<Self, SignalError> {
        let mut reader = serde_json::Deserializer::from_str(message);
        let Object(signal) = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let path = e.path().to_string();
            SignalError {
                field: if path == "?" { ".".to_owned() } else { path },
                source: e.into_inner(),
            }
        })?;
        reader.end().map_err(|source| SignalError {
            field: ".".to_owned(),
            source,
        })?;
        Ok(signal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(message: &str, expected: Result<&str, &str>) {
        match (Signal::parse(message), expected) {
            (Ok(signal), Ok(id)) => assert_eq!(signal.action_id.as_str(), id),
            (Err(e), Err(start)) => {
                assert!(
                    e.to_string().starts_with(start),
                    "{:?} does not begin with {start:?}",
                    e.to_string()
                );
            }
            (got, _) => panic!("{got:?} for {message}"),
        }
    }

    #[test]
    fn signals() {
        check(
            r#"{"action_id":"a-1","account_id":"c","template":"t","policy_hash":"h","x":1}"#,
            Ok("a-1"),
        );
        check("", Err("signal field `.`: EOF"));
        check(
            r#"{"action_id":"a.1"}"#,
            Err("signal field `action_id`: action_id must be 1 to 64 characters"),
        );
        check(
            r#"{"action_id":"a"}"#,
            Err("signal field `.`: missing field `account_id`"),
        );
        check(
            r#"{"action_id":"a","account_id":"c","template":"t","policy_hash":"h","parameters":[]}"#,
            Err("signal field `parameters`: expected an object, found an array"),
        );
        check(
            r#"{"action_id":"a","account_id":"c","template":"t","policy_hash":"h","parameters":{"n":1,"n":2}}"#,
            Err("signal field `parameters`: duplicate name `n`"),
        );
        check(
            r#"["a","c",null,null,"t",{},"h"]"#,
            Err("signal field `.`: expected an object, found an array"),
        );
        check(
            r#"{"action_id":"a","account_id":"c","template":"t","policy_hash":"h"} {}"#,
            Err("signal field `.`: trailing"),
        );
    }

    #[test]
    fn the_record_quotes_nothing() {
        for (message, expected) in [
            (
                r#"{"action_id":"a","account_id":5}"#,
                "signal field `account_id`: expected a string",
            ),
            (
                r#"{"action_id":"me@example.org"}"#,
                "signal field `action_id`: is not of its form",
            ),
            (
                r#"{"action_id":"a","account_id":"c","template":"t","policy_hash":"h","parameters":"me@example.org"}"#,
                "signal field `parameters`: expected an object",
            ),
            (
                r#"{"parameters":{"me@example.org":1,"me@example.org":2}}"#,
                "signal field `parameters`: has a name twice",
            ),
            (
                r#"{"parameters":{"amount":1,"amount":2}}"#,
                "signal field `parameters`: has the name `amount` twice",
            ),
            (
                r#"{"parameters":{"me@example.org":x}}"#,
                "signal field `parameters`: is not JSON",
            ),
            (
                r#"{"action_id":"a"}"#,
                "signal field `.`: missing field `account_id`",
            ),
            ("me@example.org", "signal field `.`: is not JSON"),
        ] {
            assert_eq!(
                Signal::parse(message).unwrap_err().for_the_record(),
                expected,
                "{message}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_message_has_a_legal_id(id in ".{0,100}") {
            let made = ActionId::of_message(&id);
            prop_assert_eq!(ActionId::try_from(made.as_str().to_owned()), Ok(made));
        }

        #[test]
        fn no_message_panics(message in ".{0,200}") {
            let _ = Signal::parse(&message);
        }
    }
}
