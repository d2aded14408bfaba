//! Why the tables could not be read or written.

use domain::transaction::ATTEMPTS;
use receipts::ledger::AppendError;

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
