//! One transaction: read, decide, chain and sign, write; again when another writer was first.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::transact_write_items::{TransactWriteItemsError, TransactWriteItemsOutput};
use aws_sdk_dynamodb::types::{ReturnConsumedCapacity, TransactWriteItem};
use domain::names::Partition;
use domain::transaction::{ATTEMPTS, Account, Committed, Keys, Plan, longest_wait};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::ledger;
use tracing::warn;

use super::Store;
use super::error::StoreError;
use super::items::{ESCALATED, Item, once_sk, queue_partition, text};
use super::writes::Place;

impl Store {
    /// Writes what `decide` says of the account, once it stands, and returns its answer with what was written; asks again with a
    /// fresh account when others were first.
    ///
    /// `decide` must be pure: it may be asked several times. `account` is what was read before, if it was.
    ///
    /// # Errors
    /// The decision's own error, or [`StoreError`] when the tables do not answer or others were first every time.
    pub async fn transact<T, E: From<StoreError>>(
        &self,
        signer: &Signer,
        partition: &Partition,
        keys: &Keys,
        account: Option<Account>,
        mut decide: impl FnMut(&Account, Timestamp) -> Result<(Plan, T), E>,
    ) -> Result<(Committed, T), E> {
        let mut account = match account {
            Some(account) => account,
            None => Box::pin(self.load(partition, keys)).await?,
        };
        let mut lost = Vec::new();
        for attempt in 1..=ATTEMPTS {
            let now = Timestamp::now();
            let (plan, answer) = decide(&account, now)?;
            let written = self.attempt_or_wait(signer, &account, &plan, now, attempt);
            let (committed, stands) = written.await?;
            if stands {
                return Ok((committed, answer));
            }
            account = Box::pin(self.load(partition, keys)).await?;
            lost.push((committed, answer));
            if let Some(stood) = stood(&mut lost, &account) {
                return Ok(stood);
            }
        }
        Err(StoreError::Contended {
            account: partition.to_string(),
        }
        .into())
    }

    /// As [`Store::attempt`]; waits a while when another writer was first.
    async fn attempt_or_wait(
        &self,
        signer: &Signer,
        account: &Account,
        plan: &Plan,
        now: Timestamp,
        attempt: u32,
    ) -> Result<(Committed, bool), StoreError> {
        // Boxed, as are the reads: a function's future would hold several of them by value.
        let (committed, stands) = Box::pin(self.attempt(signer, account, plan, now)).await?;
        if !stands {
            warn!(account = %account.partition, attempt, "another writer was first");
            // Full jitter: writers that lost together do not come back together.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..=longest_wait(attempt)))).await;
        }
        Ok((committed, stands))
    }

    /// Tries once to write a plan of an account as it was read. `None` when another writer was first: read again, ask again,
    /// and wait for [`longest_wait`] at the most.
    pub async fn commit(
        &self,
        signer: &Signer,
        account: &Account,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<Option<Committed>, StoreError> {
        let (committed, stands) = self.attempt(signer, account, plan, now).await?;
        Ok(stands.then_some(committed))
    }

    /// What a plan comes to, and whether it was written.
    async fn attempt(
        &self,
        signer: &Signer,
        account: &Account,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<(Committed, bool), StoreError> {
        let partition = &account.partition;
        if plan.is_empty() {
            let (account, sealed) = (account.clone(), Vec::new());
            return Ok((Committed { account, sealed }, true));
        }
        let appended = ledger::append(&account.head, &plan.drafts, now, signer).map_err(|source| {
            StoreError::Append {
                account: partition.to_string(),
                source,
            }
        })?;
        let mut writes = Vec::new();
        if let Some(tenant) = &plan.tenant {
            writes.push(self.put_tenant(account, tenant)?);
            writes.extend(self.put_plans(account, tenant)?);
        }
        let tenant = plan.tenant.as_ref().or(account.tenant.as_ref());
        let tables = tenant.and_then(|tenant| tenant.tables.as_ref());
        for action in &plan.actions {
            writes.push(self.put_action(account, tables, action)?);
            writes.extend(self.mark_escalation(account, action)?);
        }
        if let Some(action) = &plan.unmarked {
            let marked = [(":escalated".to_owned(), text(ESCALATED))].into();
            writes.push(self.put_mark(&account.partition, action, "lifecycle = :escalated", marked)?);
        }
        if !appended.sealed.is_empty() {
            writes.push(self.put_head(account, &appended.head)?);
            // Where receipts stand is the tenant's to say: it must still say what was read.
            if let (Some(tenant), None) = (&account.tenant, &plan.tenant) {
                writes.push(self.unchanged(account, tenant)?);
            }
        } else if plan.ledger_stands {
            writes.push(self.stands(account)?);
        }
        let receipts_at = writes.len();
        for sealed in &appended.sealed {
            writes.push(self.put_receipt(partition, tables, sealed, Place::Free)?);
        }
        for id in &plan.once {
            writes.push(self.put(
                partition,
                &once_sk(*id),
                Item::new(),
                "attribute_not_exists(sk)",
                Item::new(),
            )?);
        }
        if let Some(delivery) = &plan.delivery {
            writes.push(self.put_delivery(account, delivery, &appended.sealed, now)?);
        }
        if let Some(queue) = &plan.queue {
            let owner = [("owner".to_owned(), text(partition.as_str()))].into();
            writes.push(self.put(&queue_partition(queue), "QUEUE", owner, "", Item::new())?);
        }
        let mut after = account.clone();
        after.head = appended.head;
        if let Some(tenant) = &plan.tenant {
            after.tenant = Some(tenant.clone());
        }
        for action in &plan.actions {
            after.actions.insert(action.action_id.clone(), action.clone());
            let new = !account.actions.contains_key(&action.action_id);
            if new && tables.is_some_and(|tables| tables.until.is_none()) {
                after.own_actions.insert(action.action_id.clone());
            }
        }
        if let Some(delivery) = &plan.delivery {
            after.delivery = Some(delivery.record(&appended.sealed));
        }
        let committed = Committed {
            account: after,
            sealed: appended.sealed,
        };
        match self.write(writes).await {
            Ok(_) => Ok((committed, true)),
            Err(e) if others_were_first(&e) => {
                let taken = first_refused(&e, receipts_at..receipts_at + committed.sealed.len());
                let taken = taken.and_then(|n| committed.sealed.get(n - receipts_at));
                if let Some(taken) = taken {
                    self.check_head_moved(account, taken.seq).await?;
                }
                Ok((committed, false))
            }
            Err(e) => Err(Self::call_error(
                "TransactWriteItems",
                &self.stack.tenants_table,
                partition.as_str(),
                e,
            )),
        }
    }

    /// A receipt and its head are written in one transaction: where a place is taken, the head has moved behind it.
    async fn check_head_moved(&self, account: &Account, seq: u64) -> Result<(), StoreError> {
        let now = Box::pin(self.load(&account.partition, &Keys::default())).await?;
        if now.head.size > seq {
            return Ok(());
        }
        Err(StoreError::Blocked {
            account: account.partition.to_string(),
            seq,
        })
    }

    pub(super) async fn write(
        &self,
        writes: Vec<TransactWriteItem>,
    ) -> Result<TransactWriteItemsOutput, SdkError<TransactWriteItemsError>> {
        self.client
            .transact_write_items()
            .set_transact_items(Some(writes))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
    }
}

/// Of attempts that were told that somebody else was first the one that stands all the same: it was only slow.
fn stood<T>(lost: &mut Vec<(Committed, T)>, account: &Account) -> Option<(Committed, T)> {
    let stands = lost
        .iter()
        .position(|(committed, _)| committed.stood(&account.head))?;
    Some(lost.swap_remove(stands))
}

/// Whether a transaction failed only because another writer changed what it was conditioned on, or was writing it.
fn others_were_first<R>(error: &SdkError<TransactWriteItemsError, R>) -> bool {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => cancelled
            .cancellation_reasons()
            .iter()
            .filter_map(|reason| reason.code())
            .filter(|code| *code != "None")
            .all(|code| code == "ConditionalCheckFailed" || code == "TransactionConflict"),
        Some(TransactWriteItemsError::TransactionInProgressException(_)) => true,
        _ => false,
    }
}

/// The first of these writes whose condition did not hold.
fn first_refused<R>(error: &SdkError<TransactWriteItemsError, R>, writes: Range<usize>) -> Option<usize> {
    let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error.as_service_error()
    else {
        return None;
    };
    let reasons = cancelled.cancellation_reasons();
    writes.into_iter().find(|n| {
        let reason = reasons.get(*n).and_then(|reason| reason.code());
        reason == Some("ConditionalCheckFailed")
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]
mod tests {
    use aws_sdk_dynamodb::types::CancellationReason;
    use aws_sdk_dynamodb::types::error::TransactionCanceledException;

    use super::*;

    #[track_caller]
    fn check(codes: &[&str], retried: bool) {
        let reasons = codes
            .iter()
            .map(|code| CancellationReason::builder().code(*code).build())
            .collect();
        let cancelled = TransactionCanceledException::builder()
            .set_cancellation_reasons(Some(reasons))
            .build();
        let error = TransactWriteItemsError::TransactionCanceledException(cancelled);
        assert_eq!(
            others_were_first(&SdkError::service_error(error, ())),
            retried,
            "{codes:?}"
        );
    }

    // The local cloud never answers TransactionConflict; AWS does, so that path is held here.
    #[test]
    fn which_cancellations_are_retried() {
        check(&["None", "ConditionalCheckFailed"], true);
        check(&["TransactionConflict", "None"], true);
        check(&["ConditionalCheckFailed", "ValidationError"], false);
        check(&["ItemCollectionSizeLimitExceeded"], false);
    }
}
