//! What the commands that need a stack share: a runtime to wait in, and the ledger or tenant they are asked about.

use std::error::Error;
use std::future::Future;
use std::io;

use aws::clients;
use aws::config::{self, ConfigError};
use aws::store::{Store, StoreError};
use clap::Args;
use domain::account::{AccountId, IdError};
use domain::names::{self, LedgerId, Partition};
use domain::signal::{ActionId, ActionIdError};
use domain::tenant::Lifecycle;
use domain::transaction::{Account, Keys};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::{JoinError, JoinSet};

/// Items read at a time.
const READS_AT_ONCE: usize = 16;
/// Longest text of a person in a receipt, in characters.
const MAX_TEXT_CHARS: usize = 512;

/// The end of every help of a command that needs a stack.
pub const NEEDS_A_STACK: &str = "\
Needs the stack's names and AWS credentials in the environment (TENANTS_TABLE and so on): the stack's outputs in the cloud
(docs/deploying.md), target/local-cloud/env.sh for the local one.";

/// Runs to the end on this thread.
///
/// # Errors
/// When the system has no event queue to give.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future))
}

/// A function that could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot invoke function {function}")]
    Call {
        function: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("function {function} failed ({kind}): {}", message(answer))]
    Function {
        function: String,
        /// What kind of failure, in Lambda's words.
        kind: String,
        answer: String,
    },
    #[error("cannot read the answer of function {function}: {answer}")]
    Answer {
        function: String,
        answer: String,
        source: serde_json::Error,
    },
}

/// What a function that failed says of it; the whole answer where it does not say so as functions do.
fn message(answer: &str) -> String {
    let whole: Option<Value> = serde_json::from_str(answer).ok();
    let message = whole
        .as_ref()
        .and_then(|whole| whole.get("errorMessage")?.as_str());
    message.unwrap_or(answer).to_owned()
}

/// Invokes the function that an environment variable names and waits for its answer: as it is, and as `T`.
pub async fn invoke<T: DeserializeOwned>(
    variable: &'static str,
    event: &Value,
) -> Result<(Value, T), InvokeError> {
    let function = config::required(variable)?;
    let client = clients::lambda_invoker(&clients::load().await);
    let event = event.to_string().into_bytes();
    let invoked = client
        .invoke()
        .function_name(&function)
        .payload(event.into())
        .send()
        .await;
    let invoked = match invoked {
        Ok(invoked) => invoked,
        Err(error) => {
            let source = error.into();
            return Err(InvokeError::Call { function, source });
        }
    };
    let bytes = invoked.payload().map(AsRef::as_ref).unwrap_or_default();
    let answer = String::from_utf8_lossy(bytes).into_owned();
    if let Some(kind) = invoked.function_error() {
        let kind = kind.to_owned();
        return Err(InvokeError::Function {
            function,
            kind,
            answer,
        });
    }
    serde_json::from_slice(bytes)
        .and_then(|value: Value| Ok((T::deserialize(&value)?, value)))
        .map(|(outcome, value)| (value, outcome))
        .map_err(|source| InvokeError::Answer {
            function,
            answer,
            source,
        })
}

/// Whose ledger.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct LedgerArgs {
    /// The customer's account
    #[arg(long, value_name = "ID", value_parser = account_id)]
    account_id: Option<AccountId>,
    /// The system's own ledger: degraded mode, policies, switches, keys
    #[arg(long)]
    system: bool,
}

impl LedgerArgs {
    /// The account, as receipts name it.
    pub fn account(&self) -> &str {
        self.account_id
            .as_ref()
            .map_or(names::SYSTEM_ACCOUNT, AccountId::as_str)
    }

    /// The customer's account, unless it is the control plane's own ledger.
    pub fn customer(&self) -> Option<&str> {
        self.account_id.as_ref().map(AccountId::as_str)
    }

    pub fn id(&self) -> LedgerId {
        self.account_id
            .clone()
            .map_or(LedgerId::System, LedgerId::Customer)
    }

    /// The tables' key of the account.
    pub fn partition(&self) -> Partition {
        self.account_id
            .as_ref()
            .map_or_else(Partition::system, Partition::of)
    }
}

/// Reads an account id from the command line.
///
/// # Errors
/// [`IdError`], told as wrong usage.
pub fn account_id(text: &str) -> Result<AccountId, IdError> {
    AccountId::parse(text)
}

/// Reads an action id from the command line.
///
/// # Errors
/// [`ActionIdError`], told as wrong usage.
pub fn action_id(text: &str) -> Result<ActionId, ActionIdError> {
    ActionId::try_from(text.to_owned())
}

/// A text that a receipt does not keep.
#[derive(Debug, thiserror::Error)]
#[error("expected 1 to {MAX_TEXT_CHARS} printable characters on one line")]
pub struct TextError;

/// Reads what a person says for a receipt.
///
/// # Errors
/// [`TextError`], told as wrong usage.
pub fn persons_text(text: &str) -> Result<String, TextError> {
    // What turns the direction of writing makes a receipt say what it does not.
    let unprintable = |c: char| {
        c.is_control()
            || matches!(c, '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
    };
    let long = text.chars().count() > MAX_TEXT_CHARS;
    match long || text.trim().is_empty() || text.contains(unprintable) {
        true => Err(TextError),
        false => Ok(text.to_owned()),
    }
}

/// Reads an account's tenant and head.
pub async fn load(store: &Store, partition: &Partition) -> Result<Account, StoreError> {
    store.load(partition, &Keys::default()).await
}

/// Why a tenant takes no signals.
pub fn takes_no_signals(account_id: &AccountId, lifecycle: Option<Lifecycle>) -> String {
    match lifecycle {
        Some(lifecycle) => format!(
            "REFUSED: {account_id} is {} and takes no signals",
            lifecycle.name()
        ),
        None => format!("REFUSED: there is no tenant {account_id}"),
    }
}

/// Why a list could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a read was broken off")]
    BrokenOff(#[from] JoinError),
}

/// Reads several at a time, in any order.
///
/// # Errors
/// The first [`ReadError`].
pub async fn read_all<K, T, F>(
    keys: impl IntoIterator<Item = K>,
    read: impl Fn(K) -> F,
) -> Result<Vec<T>, ReadError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let mut reading = JoinSet::new();
    let mut all = Vec::new();
    for key in keys {
        if reading.len() >= READS_AT_ONCE
            && let Some(read) = reading.join_next().await
        {
            all.push(read??);
        }
        reading.spawn(read(key));
    }
    while let Some(read) = reading.join_next().await {
        all.push(read??);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_function_is_quoted_without_its_envelope() {
        let failed = |answer: &str| InvokeError::Function {
            function: "scale".to_owned(),
            kind: "Unhandled".to_owned(),
            answer: answer.to_owned(),
        };
        let answer =
            r#"{"errorType":"&alloc::boxed::Box<dyn core::error::Error>","errorMessage":"no such queue"}"#;
        assert_eq!(
            failed(answer).to_string(),
            "function scale failed (Unhandled): no such queue"
        );
        assert_eq!(
            failed("gone").to_string(),
            "function scale failed (Unhandled): gone"
        );
    }

    #[test]
    fn what_a_person_says_is_printable() {
        for good in ["x", "undone by hand, ticket 7", "é名", &"x".repeat(512)] {
            assert_eq!(persons_text(good).unwrap(), good);
        }
        for bad in ["", "  ", "a\nb", "a\u{7f}", "\u{202e}x", &"x".repeat(513)] {
            assert!(persons_text(bad).is_err(), "{bad:?}");
        }
    }
}
