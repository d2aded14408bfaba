//! What there is: actions, ledgers, escalations and tenants, a page at a time.

use crate::pages::Pages;
use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use aws_sdk_dynamodb::types::{ReturnConsumedCapacity, Select};
use domain::action::Action;
use domain::names::{LedgerId, Partition};
use domain::tenant::{BUSY, Lifecycle, Tenant};
use domain::transaction::DeliveryRecord;

use super::Store;
use super::error::StoreError;
use super::formats;
use super::items::{
    ACTION, ESCALATED, HEAD, Item, LEDGER, TENANT, TurnedAwayAs, WEBHOOK, attribute, delivery_partition, key,
    partition_of, queue_partition, sku_plan, text,
};

/// Where a listing of actions goes on.
#[derive(Debug, Clone, Default)]
pub struct ActionsCursor {
    own_table: bool,
    key: Option<Item>,
}

/// Ledgers listed at a time.
const LEDGERS_PAGE: i32 = 200;

impl Store {
    /// Whose a tenant queue is, for a message that does not say so itself.
    pub async fn queue_owner(&self, queue: &str) -> Result<Option<Partition>, StoreError> {
        let table = &self.stack.tenants_table;
        let answer = self
            .client
            .get_item()
            .table_name(table)
            .set_key(Some(key(&queue_partition(queue), "QUEUE")))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("GetItem", table, queue, e))?;
        Ok(answer
            .item
            .and_then(|item| Some(Partition::from_key(item.get("owner")?.as_s().ok()?.clone()))))
    }

    /// One page of an account's actions, by id: the actions and, when there are more, where to go on. Those of a tenant's
    /// own table come behind the others.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or an item is not of its form.
    pub async fn actions(
        &self,
        partition: &Partition,
        after: Option<ActionsCursor>,
    ) -> Result<(Vec<Action>, Option<ActionsCursor>), StoreError> {
        let ActionsCursor { own_table, key } = after.unwrap_or_default();
        let own = self
            .tables_of(partition)
            .await?
            .filter(|tables| tables.archived.is_none());
        let table = match &own {
            Some(tables) if own_table => &tables.actions,
            _ => &self.stack.tenants_table,
        };
        let answer = self
            .client
            .query()
            .table_name(table)
            .consistent_read(true)
            .key_condition_expression("account_id = :account AND begins_with(sk, :action)")
            .expression_attribute_values(":account", text(partition.as_str()))
            .expression_attribute_values(":action", text(ACTION))
            .set_exclusive_start_key(key)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("Query", table, partition.as_str(), e))?;
        let next = match answer.last_evaluated_key {
            Some(key) => Some(ActionsCursor {
                own_table,
                key: Some(key),
            }),
            None if own.is_some() && !own_table => Some(ActionsCursor {
                own_table: true,
                key: None,
            }),
            None => None,
        };
        let mut actions = Vec::new();
        for item in answer.items.unwrap_or_default() {
            let sk = item
                .get("sk")
                .and_then(|sk| sk.as_s().ok())
                .cloned()
                .unwrap_or_default();
            actions.extend(formats::action(partition, &sk, Some(item))?);
        }
        Ok((actions, next))
    }

    /// One page of a tenant's own actions: those that stand in its own table.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or an item is not of its form.
    pub async fn own_actions(
        &self,
        partition: &Partition,
        after: Option<ActionsCursor>,
    ) -> Result<(Vec<Action>, Option<ActionsCursor>), StoreError> {
        let own = ActionsCursor {
            own_table: true,
            key: None,
        };
        self.actions(partition, Some(after.unwrap_or(own))).await
    }

    /// One page of all ledgers there are, those behind `after` only: the ledgers in the order of their partitions. None
    /// behind the last.
    pub async fn ledgers(&self, after: Option<&LedgerId>) -> Result<Vec<LedgerId>, StoreError> {
        let table = &self.stack.tenants_table;
        let mut start = after.map(|ledger| {
            let mut start = key(&ledger.partition(), HEAD);
            start.insert("lifecycle".to_owned(), text(LEDGER));
            start
        });
        loop {
            let answer = self
                .by_index("by-lifecycle", "lifecycle", LEDGER, start)
                .limit(LEDGERS_PAGE)
                .send()
                .await
                .map_err(|e| Self::call_error("Query", table, "by-lifecycle", e))?;
            let items = answer.items.unwrap_or_default();
            let ledgers: Vec<LedgerId> = items
                .iter()
                .filter_map(|item| partition_of(item)?.ledger())
                .collect();
            start = answer.last_evaluated_key;
            if !ledgers.is_empty() || start.is_none() {
                return Ok(ledgers);
            }
        }
    }

    /// One page of the escalated actions of all tenants, as they were when that happened, each with its account's table
    /// key; and where to go on, when there are more. One that was dealt with a moment ago may still be listed.
    ///
    /// # Errors
    /// [`StoreError`] when the index or the table does not answer, or an item is not of its form.
    pub async fn escalations(
        &self,
        after: Option<Item>,
    ) -> Result<(Vec<(Partition, Action)>, Option<Item>), StoreError> {
        let table = &self.stack.tenants_table;
        let query = self.by_index("by-lifecycle", "lifecycle", ESCALATED, after);
        let answer = query.limit(LEDGERS_PAGE).send().await;
        let answer = answer.map_err(|e| Self::call_error("Query", table, ESCALATED, e))?;
        let listed = answer.items.unwrap_or_default().into_iter();
        let wanted = listed.filter_map(|mut item| {
            let (account, sk) = (item.remove("account_id")?, item.remove("sk")?);
            Some([("account_id".to_owned(), account), ("sk".to_owned(), sk)].into())
        });
        let mut found = Vec::new();
        for item in self.read(table, ESCALATED, wanted.collect()).await? {
            let named = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned();
            // The index lags behind the table.
            if named("lifecycle").as_deref() != Some(ESCALATED) {
                continue;
            }
            let partition = Partition::from_key(named("account_id").unwrap_or_default());
            let sk = named("sk").unwrap_or_default();
            let action = formats::action(&partition, &sk, Some(item))?;
            found.extend(action.map(|action| (partition, action)));
        }
        Ok((found, answer.last_evaluated_key))
    }

    /// One page of the deliveries that changed nothing: those that were refused, or those that were ignored; and where to go on,
    /// when there are more. One that was decided anew a moment ago may be missing.
    ///
    /// # Errors
    /// [`StoreError`] when the index or the table does not answer, or an item is not of its form.
    pub async fn turned_away(
        &self,
        answered: TurnedAwayAs,
        after: Option<Item>,
    ) -> Result<(Vec<DeliveryRecord>, Option<Item>), StoreError> {
        let table = &self.stack.tenants_table;
        let listed = answered.listed();
        let query = self.by_index("by-lifecycle", "lifecycle", listed, after);
        let answer = query.limit(LEDGERS_PAGE).send().await;
        let answer = answer.map_err(|e| Self::call_error("Query", table, listed, e))?;
        let keys = answer.items.unwrap_or_default();
        let wanted = keys
            .iter()
            .filter_map(partition_of)
            .map(|filed| key(&filed, WEBHOOK));
        let mut found = Vec::new();
        for item in self.read(table, listed, wanted.collect()).await? {
            let filed = partition_of(&item).unwrap_or_else(Partition::system);
            let record: Option<DeliveryRecord> = attribute(&filed, WEBHOOK, "delivery", Some(item))?;
            // The index lags behind the table.
            found.extend(record.filter(|record| {
                record.turned_away().is_some() && TurnedAwayAs::of(record.status) == answered
            }));
        }
        Ok((found, answer.last_evaluated_key))
    }

    /// What is known of a delivery, by its provider and id: `github#72d3162e-…`.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer, or the item is not of its form.
    pub async fn delivery(&self, delivery: &str) -> Result<Option<DeliveryRecord>, StoreError> {
        let filed = delivery_partition(delivery);
        let wanted = vec![key(&filed, WEBHOOK)];
        let mut items = self.items(&self.stack.tenants_table, &filed, wanted).await?;
        attribute(&filed, WEBHOOK, "delivery", items.remove(WEBHOOK))
    }

    /// Asks an index of the tenants table for what has this value, one page at a time.
    pub(super) fn by_index(
        &self,
        index: &str,
        attribute: &str,
        value: &str,
        after: Option<Item>,
    ) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.stack.tenants_table)
            .index_name(index)
            .key_condition_expression(format!("{attribute} = :value"))
            .expression_attribute_values(":value", text(value))
            .set_exclusive_start_key(after)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
    }

    /// Table keys of the tenants of a SKU and plan, one page: the keys and, when there are more, where to go on.
    pub async fn tenants_of_plan(
        &self,
        sku_id: &str,
        plan_type: &str,
        after: Option<Item>,
    ) -> Result<(Vec<Partition>, Option<Item>), StoreError> {
        let plan = sku_plan(sku_id, plan_type);
        self.accounts(self.by_index("by-plan", "sku_plan", &plan, after), &plan)
            .await
    }

    /// Table keys of the tenants that the index by lifecycle has in a state (see [`Tenant::index_state`]), one page: the
    /// keys and, when there are more, where to go on.
    pub async fn tenants_in(
        &self,
        state: &str,
        after: Option<Item>,
    ) -> Result<(Vec<Partition>, Option<Item>), StoreError> {
        let query = self.by_index("by-lifecycle", "lifecycle", state, after);
        self.accounts(query.limit(LEDGERS_PAGE), state).await
    }

    /// The accounts on a page of an index.
    pub(super) async fn accounts(
        &self,
        query: QueryFluentBuilder,
        of: &str,
    ) -> Result<(Vec<Partition>, Option<Item>), StoreError> {
        let answer = query.send().await;
        let answer = answer.map_err(|e| Self::call_error("Query", &self.stack.tenants_table, of, e))?;
        let items = answer.items.unwrap_or_default();
        Ok((
            items.iter().filter_map(partition_of).collect(),
            answer.last_evaluated_key,
        ))
    }

    /// One page of tenants that the index by lifecycle has in a state, read themselves, strongly consistent: the index may
    /// lag. Each that cannot be read stands as its error.
    pub async fn tenants_page(
        &self,
        state: &str,
        after: Option<Item>,
    ) -> Result<(Vec<Result<Tenant, StoreError>>, Option<Item>), StoreError> {
        let (partitions, next) = self.tenants_in(state, after).await?;
        Ok((self.tenants(&partitions, state).await?, next))
    }

    /// The tenants that have these table keys, strongly consistent, in no order; `of` tells which they are when that fails.
    /// Each that cannot be read stands as its error, one that is not there does not stand at all.
    pub async fn tenants(
        &self,
        partitions: &[Partition],
        of: &str,
    ) -> Result<Vec<Result<Tenant, StoreError>>, StoreError> {
        let wanted = partitions.iter().map(|p| key(p, TENANT)).collect();
        let mut tenants = Vec::with_capacity(partitions.len());
        for item in self.read(&self.stack.tenants_table, of, wanted).await? {
            let Some(partition) = partition_of(&item) else {
                continue;
            };
            let tenant = formats::tenant(&partition, Some(item));
            if let Ok(Some(tenant)) = &tenant {
                self.remember(&partition, tenant.tables.clone());
            }
            tenants.extend(tenant.transpose());
        }
        Ok(tenants)
    }

    /// How many tenants are active.
    pub async fn count_active(&self) -> Result<u64, StoreError> {
        let table = &self.stack.tenants_table;
        let mut count = 0u64;
        for state in [Lifecycle::Active.name(), BUSY] {
            let read = async |after| {
                let query = self
                    .by_index("by-lifecycle", "lifecycle", state, after)
                    .select(Select::Count);
                let answer = query.send().await;
                let answer = answer.map_err(|e| Self::call_error("Query", table, "by-lifecycle", e))?;
                Ok::<_, StoreError>((answer.count, answer.last_evaluated_key))
            };
            let mut pages = Pages::default();
            while let Some(page) = pages.next(&read).await? {
                count = count.saturating_add(u64::try_from(page).unwrap_or(0));
            }
        }
        Ok(count)
    }
}
