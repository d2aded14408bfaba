//! Why the tables could not be read or written.

use domain::transaction::ATTEMPTS;
use receipts::ledger::AppendError;

/// Why the tables could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{operation} on {table} for account {account}: {detail}")]
    Call {
        operation: &'static str,
        table: String,
        account: String,
        detail: String,
    },
    /// An item is not of its form.
    #[error("item {sk} of account {account} cannot be read: {detail}")]
    Item {
        account: String,
        sk: String,
        detail: String,
    },
    /// Something could not be written as an item.
    #[error("writing {what} of account {account} as an item: {detail}")]
    Encode {
        account: String,
        what: &'static str,
        detail: String,
    },
    /// Other writers were first, every time.
    #[error("account {account} was changed by others during {ATTEMPTS} attempts")]
    Contended { account: String },
    /// Something stands where the ledger's next receipt belongs, and no writer of ours put it there: its head would have moved.
    #[error(
        "the ledger of account {account} is blocked: an item that is no receipt of it stands at place {seq}, behind its head; see \"A blocked ledger\" in docs/operating.md"
    )]
    Blocked { account: String, seq: u64 },
    /// The receipts could not be chained or signed.
    #[error("appending receipts for account {account}")]
    Append {
        account: String,
        #[source]
        source: AppendError,
    },
}
