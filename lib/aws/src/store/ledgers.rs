//! Reading ledgers, and bringing home what stands in a tenant's own table.

use std::collections::BTreeSet;

use crate::pages::Pages;
use aws_sdk_dynamodb::types::ReturnConsumedCapacity;
use domain::names::Partition;
use domain::tenant::Tables;
use domain::transaction::{Account, Keys};
use uuid::Uuid;

use super::Store;
use super::error::StoreError;
use super::items::{line_of, text};

impl Store {
    /// One page of a ledger from `seq` on, in order.
    pub async fn receipts_from(&self, partition: &Partition, seq: u64) -> Result<Vec<String>, StoreError> {
        let tables = self.tables_of(partition).await?;
        let own = tables.as_ref().filter(|tables| tables.hold(seq));
        let shared = &self.stack.receipts_table;
        let answer = self
            .client
            .query()
            .table_name(own.map_or(shared, |tables| &tables.receipts))
            .consistent_read(true)
            .key_condition_expression("account_id = :account AND seq >= :seq")
            .expression_attribute_values(":account", text(partition.as_str()))
            .expression_attribute_values(":seq", text(format!("{seq:020}")))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("Query", shared, partition.as_str(), e))?;
        let place = || format!("receipt in the page from {seq}");
        let mut lines = Vec::new();
        for (item, seq) in answer.items.unwrap_or_default().iter().zip(seq..) {
            // Where the ledger goes on in another table the page ends.
            if tables.as_ref().is_some_and(|tables| tables.hold(seq)) != own.is_some() {
                break;
            }
            lines.push(line_of(partition, item, place)?);
        }
        Ok(lines)
    }

    /// Where an item stands behind a ledger's head: a place that no receipt of it has. Whatever is planted there keeps the ledger from
    /// growing.
    ///
    /// # Errors
    /// [`StoreError`] when a table does not answer.
    pub async fn behind_head(&self, partition: &Partition) -> Result<Option<u64>, StoreError> {
        let account = self.load(partition, &Keys::default()).await?;
        self.behind_head_of(&account).await
    }

    /// As [`Store::behind_head`], of an account that was read a moment ago.
    ///
    /// # Errors
    /// As [`Store::behind_head`].
    pub async fn behind_head_of(&self, account: &Account) -> Result<Option<u64>, StoreError> {
        let (partition, size) = (&account.partition, account.head.size);
        let own = self.tables_of(partition).await?;
        let own = own.filter(|tables| tables.archived.is_none());
        let mut found = None;
        for own in std::iter::once(None).chain(own.iter().map(|own| Some(own.receipts.as_str()))) {
            let last = self.last_place(own, partition, size, None).await?;
            // A place that is no number is none of a receipt's either.
            found = found.max(last.map(|place| place.unwrap_or(u64::MAX)));
        }
        let Some(found) = found else {
            return Ok(None);
        };
        // Receipts that were appended meanwhile stand there with good reason.
        let size = self.load(partition, &Keys::default()).await?.head.size;
        Ok((found >= size).then_some(found))
    }

    /// The last place from `since` on, and up to `last` where it is given, at which something stands, in a tenant's own table or
    /// the shared one; `Some(None)` for a place that is no number.
    async fn last_place(
        &self,
        own: Option<&str>,
        partition: &Partition,
        since: u64,
        last: Option<u64>,
    ) -> Result<Option<Option<u64>>, StoreError> {
        let table = own.unwrap_or(&self.stack.receipts_table);
        let within = match last {
            Some(_) => "account_id = :account AND seq BETWEEN :since AND :last",
            None => "account_id = :account AND seq >= :since",
        };
        let mut query = self
            .client
            .query()
            .table_name(table)
            .consistent_read(true)
            .key_condition_expression(within)
            .expression_attribute_values(":account", text(partition.as_str()))
            .expression_attribute_values(":since", text(format!("{since:020}")));
        if let Some(last) = last {
            query = query.expression_attribute_values(":last", text(format!("{last:020}")));
        }
        let answer = query
            .scan_index_forward(false)
            .limit(1)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("Query", table, partition.as_str(), e))?;
        let found = answer.items.unwrap_or_default().into_iter().next();
        Ok(found.map(|item| item.get("seq")?.as_s().ok()?.parse().ok()))
    }

    /// One receipt's line, as it stands in the ledger.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or the item is not of its form.
    pub async fn receipt(&self, partition: &Partition, seq: u64) -> Result<Option<String>, StoreError> {
        let tables = self.tables_of(partition).await?;
        let own = tables.as_ref().filter(|tables| tables.hold(seq));
        let table = own.map_or(&self.stack.receipts_table, |tables| &tables.receipts);
        let seq = format!("{seq:020}");
        let answer = self
            .client
            .get_item()
            .table_name(table)
            .key("account_id", text(partition.as_str()))
            .key("seq", text(&seq))
            .consistent_read(true)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("GetItem", table, partition.as_str(), e))?;
        let place = || format!("receipt {seq}");
        answer
            .item
            .map(|item| line_of(partition, &item, place))
            .transpose()
    }

    /// Puts receipts of a tenant's own table into the shared one, where nothing or the same is: a tenant that leaves
    /// takes its tables along, and its ledger stays.
    ///
    /// # Errors
    /// [`StoreError`] when a table does not answer, or another receipt stands in the shared table.
    pub async fn bring_home(&self, partition: &Partition, tables: &Tables) -> Result<(), StoreError> {
        let until = tables.until.unwrap_or(tables.since);
        // An attempt before may have ended in the middle; they are put in order.
        let mut next = self.home_already(partition, tables.since, until).await?;
        while next < until {
            let lines = self.receipts_from(partition, next).await?;
            if lines.is_empty() {
                return Err(StoreError::Item {
                    account: partition.to_string(),
                    sk: format!("receipt {next}"),
                    detail: format!("is not in table {}", tables.receipts),
                });
            }
            // A transaction takes a hundred items and 4 MB; a receipt has some kilobytes at the most.
            for lines in lines.chunks(50) {
                let mut writes = Vec::with_capacity(lines.len());
                for line in lines {
                    writes.push(self.put_line(partition, next, line)?);
                    next += 1;
                }
                self.write(writes).await.map_err(|e| {
                    Self::call_error("TransactWriteItems", &tables.receipts, partition.as_str(), e)
                })?;
            }
        }
        Ok(())
    }

    /// The first receipt from `since` on that the shared table does not have yet, `until` when it has all.
    pub(super) async fn home_already(
        &self,
        partition: &Partition,
        since: u64,
        until: u64,
    ) -> Result<u64, StoreError> {
        let Some(last) = until.checked_sub(1) else {
            return Ok(since);
        };
        let seq = self
            .last_place(None, partition, since, Some(last))
            .await?
            .flatten();
        Ok(seq.map_or(since, |seq| seq.saturating_add(1)))
    }

    /// The lines of receipts of one account by their ids, in that order. A moment after a commit the index may not know the
    /// last ones yet: those are left out.
    ///
    /// # Errors
    /// [`StoreError`] when the index or the table does not answer, or an item is not of its form.
    pub async fn receipts_of(&self, partition: &Partition, ids: &[Uuid]) -> Result<Vec<String>, StoreError> {
        let mut lines = Vec::with_capacity(ids.len());
        for id in ids {
            let places = self.find_receipt(*id, Some(partition)).await?;
            for (_, seq) in places.into_iter().filter(|(of, _)| of == partition) {
                lines.extend(self.receipt(partition, seq).await?);
            }
        }
        Ok(lines)
    }

    /// Where the receipts with this id stand: partition and `seq`. A moment after a commit the index may not know yet.
    ///
    /// One place, unless a receipt was written behind our back: whoever looks for it should see both. Receipts in a
    /// tenant's own table are found only when `of` says whose they are.
    ///
    /// # Errors
    /// [`StoreError`] when the index does not answer or has an item that is not of its form.
    pub async fn find_receipt(
        &self,
        receipt_id: Uuid,
        of: Option<&Partition>,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        let own = match of {
            Some(partition) => self.tables_of(partition).await?,
            None => None,
        };
        let own = own.filter(|tables| tables.archived.is_none());
        let mut found = BTreeSet::new();
        for table in std::iter::once(&self.stack.receipts_table).chain(own.iter().map(|own| &own.receipts)) {
            found.extend(self.find_receipt_in(table, receipt_id).await?);
        }
        Ok(found.into_iter().collect())
    }

    pub(super) async fn find_receipt_in(
        &self,
        table: &str,
        receipt_id: Uuid,
    ) -> Result<Vec<(Partition, u64)>, StoreError> {
        let id = receipt_id.to_string();
        let mut found = Vec::new();
        let read = async |after| {
            let answer = self
                .client
                .query()
                .table_name(table)
                .index_name("by-receipt-id")
                .key_condition_expression("receipt_id = :id")
                .expression_attribute_values(":id", text(&id))
                .set_exclusive_start_key(after)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
                .await
                .map_err(|e| Self::call_error("Query", table, &id, e))?;
            Ok::<_, StoreError>((answer.items.unwrap_or_default(), answer.last_evaluated_key))
        };
        let mut pages = Pages::default();
        while let Some(items) = pages.next(&read).await? {
            for item in items {
                let attribute = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
                let place = attribute("account_id").zip(attribute("seq"));
                let place = place.and_then(|(partition, seq)| {
                    Some((Partition::from_key(partition.clone()), seq.parse().ok()?))
                });
                found.push(place.ok_or_else(|| StoreError::Item {
                    account: id.clone(),
                    sk: "by-receipt-id".to_owned(),
                    detail: "account_id or seq is missing".to_owned(),
                })?);
            }
        }
        Ok(found)
    }
}
