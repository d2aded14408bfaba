//! Appends a receipt that may stand on the ledger once only, however often it is asked for.

use receipts::receipt::Draft;

use crate::transaction::{Account, Plan};

/// Appends the receipt unless it stands there. Its id must be among the [`Keys`](crate::transaction::Keys) that were read; if
/// it was not, the write fails where it stands already, and the account is read again with it.
#[must_use]
pub fn append_once(account: &Account, draft: &Draft) -> Plan {
    if account.once.contains(&draft.receipt_id) {
        return Plan::default();
    }
    Plan {
        once: vec![draft.receipt_id],
        ..Plan::append(draft.clone())
    }
}
