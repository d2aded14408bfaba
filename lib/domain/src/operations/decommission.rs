//! The steps of a tenant's end that the tables know of: its own tables end, their content is archived, its ledger is closed.

use jiff::Timestamp;
use receipts::receipt::{ArchivedFile, Draft, Payload};
use uuid::Uuid;

use crate::account::AccountId;
use crate::tenant::{ArchivedActions, Lifecycle, Tables, Tenant, TenantEvent};
use crate::transaction::{Account, Plan};

/// Own tables of a tenant that leaves, whose content is not archived yet.
#[must_use]
pub fn own_tables(account: &Account) -> Option<(&Tenant, &Tables)> {
    let tenant = account
        .tenant
        .as_ref()
        .filter(|tenant| tenant.lifecycle == Lifecycle::Decommissioning)?;
    let tables = tenant
        .tables
        .as_ref()
        .filter(|tables| tables.archived.is_none())?;
    Some((tenant, tables))
}

fn with_tables(tenant: &Tenant, tables: Tables) -> Tenant {
    Tenant {
        tables: Some(tables),
        ..tenant.written()
    }
}

/// Has receipts go to the shared table from here on, so that what has to be brought home has an end.
#[must_use]
pub fn end_own_tables(account: &Account) -> Plan {
    let open = own_tables(account).filter(|(_, tables)| tables.until.is_none());
    let next = open.map(|(tenant, tables)| {
        let until = Some(account.head.size);
        with_tables(
            tenant,
            Tables {
                until,
                ..tables.clone()
            },
        )
    });
    Plan {
        // A receipt that is appended meanwhile would stand in the table that goes.
        ledger_stands: next.is_some(),
        ..Plan::tenant(next)
    }
}

/// Notes where the actions of the own table are kept: nothing is read from those tables any more.
#[must_use]
pub fn note_archived_actions(account: &Account, actions: &ArchivedActions) -> Plan {
    Plan::tenant(own_tables(account).map(|(tenant, tables)| {
        let archived = Some(actions.clone());
        with_tables(
            tenant,
            Tables {
                archived,
                ..tables.clone()
            },
        )
    }))
}

/// An archive of everything, with which a ledger can be closed.
#[derive(Debug, Clone, PartialEq)]
pub struct Closing<'a> {
    pub account_id: &'a AccountId,
    /// When the marketplace cancelled.
    pub requested_at: Timestamp,
    /// Where the archive is, as a URL.
    pub path: String,
    /// How many receipts it holds.
    pub receipts: u64,
    /// How large it is, in bytes.
    pub size_bytes: u64,
    /// SHA-256 of its bytes.
    pub sha256: &'a str,
    /// Version of the object.
    pub version: Option<String>,
    /// Dead letters that are kept, and where.
    pub dead_letters: (u64, &'a str),
}

/// Why a ledger is not closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// The archive does not end where the ledger ends.
    #[error("a receipt was appended behind the archive")]
    Moved,
    /// The tenant does not leave.
    #[error("tenant is {}", .0.name())]
    State(Lifecycle),
}

/// Closes the ledger with the receipt of the archive, right behind the last receipt in it. Tells whether events wait for the
/// end of the tenant.
///
/// # Errors
/// [`CloseError`] when the archive is not the last word about this tenant.
pub fn close(
    account: &Account,
    closing: &Closing<'_>,
    receipt_id: Uuid,
    now: Timestamp,
) -> Result<(Plan, bool), CloseError> {
    let tenant = account
        .tenant
        .as_ref()
        .ok_or(CloseError::State(Lifecycle::Absent))?;
    let after = tenant
        .after(TenantEvent::Archived, now)
        .map_err(|e| CloseError::State(e.state))?;
    if account.head.size != closing.receipts {
        return Err(CloseError::Moved);
    }
    let actions = tenant.tables.as_ref().and_then(|tables| tables.archived.as_ref());
    let (dead_letters, dead_letters_path) = closing.dead_letters;
    let payload = Payload::DecommissionComplete {
        actions_completed: tenant.actions_completed,
        actions_failed: tenant.actions_failed,
        receipts_archived: closing.receipts,
        archive_path: closing.path.clone(),
        archive_size_bytes: closing.size_bytes,
        archive_sha256: closing.sha256.to_owned(),
        archive_version: closing.version.clone(),
        dead_letters_archived: Some(dead_letters),
        dead_letters_path: (dead_letters > 0).then(|| dead_letters_path.to_owned()),
        actions_archive: actions.map(|kept| ArchivedFile {
            path: kept.path.clone(),
            sha256: kept.sha256.clone(),
            size_bytes: kept.size_bytes,
            entries: kept.entries,
        }),
    };
    let waited = now.duration_since(closing.requested_at).as_millis().max(0);
    let draft = Draft::new(receipt_id, closing.account_id.as_str(), payload, now)
        .lasting(u64::try_from(waited).unwrap_or(0));
    let waiting = !after.deferred.is_empty();
    let plan = Plan {
        drafts: vec![draft],
        ..Plan::tenant(Some(Tenant {
            tables: None,
            ..after
        }))
    };
    Ok((plan, waiting))
}
