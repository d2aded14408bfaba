//! The tables: one consistent read, one transaction.
//!
//! [`Store::transact`] is the only way anything is written. It reads an account, asks a pure function what to write,
//! chains and signs the receipts, and commits state, receipts, head and dedup together. When another writer was first
//! it reads again and asks again, a bounded number of times, with jitter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::types::{KeysAndAttributes, ReturnConsumedCapacity};
use domain::names::Partition;
use domain::tenant::Tables;
use domain::transaction::{ATTEMPTS, Account, Keys};
use receipts::ledger::Head;
use uuid::Uuid;

pub use self::error::StoreError;
use self::items::{
    HEAD, TENANT, WEBHOOK, action_sk, attribute, delivery_partition, escalation_sk, key, once_sk, text,
};
pub use self::items::{Item, TurnedAwayAs};
pub use self::listings::ActionsCursor;
use crate::clients::{Sdk, explain};
use crate::config::Stack;

mod error;
mod formats;
mod items;
mod ledgers;
mod listings;
mod transact;
mod writes;

/// The tables.
pub struct Store {
    client: Client,
    stack: Stack,
    /// Own tables of the accounts that were loaded last, so that reading a ledger knows where its receipts stand.
    own_tables: Mutex<HashMap<Partition, Option<Tables>>>,
}

/// Accounts whose own tables are remembered: there is no growth without end.
const REMEMBERED: usize = 1000;

impl Store {
    /// The tables of a stack.
    #[must_use]
    pub fn new(sdk: &Sdk, stack: Stack) -> Self {
        Self {
            client: sdk.dynamodb(),
            stack,
            own_tables: Mutex::new(HashMap::new()),
        }
    }

    fn call_error<E, R>(
        operation: &'static str,
        table: &str,
        account: &str,
        error: SdkError<E, R>,
    ) -> StoreError
    where
        E: std::error::Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        StoreError::Call {
            operation,
            table: table.to_owned(),
            account: account.to_owned(),
            detail: explain(&error),
        }
    }

    /// Reads an account: tenant, head and the items asked for, in one strongly consistent call.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or an item is not of its form.
    pub async fn load(&self, partition: &Partition, keys: &Keys) -> Result<Account, StoreError> {
        let mut wanted = vec![key(partition, TENANT), key(partition, HEAD)];
        wanted.extend(keys.actions.iter().map(|id| key(partition, &action_sk(id))));
        wanted.extend(keys.delivery.iter().map(|d| key(&delivery_partition(d), WEBHOOK)));
        wanted.extend(keys.once.iter().map(|id| key(partition, &once_sk(*id))));
        wanted.extend(keys.mark.iter().map(|id| key(partition, &escalation_sk(id))));
        let items = self.items(&self.stack.tenants_table, partition, wanted).await?;
        let mut account = Self::account(partition, keys, items)?;
        let tables = account.tenant.as_ref().and_then(|tenant| tenant.tables.clone());
        self.remember(partition, tables.clone());
        // Only a tenant of a plan with its own tables pays for a second read; once it leaves they are no longer asked.
        if let Some(tables) = tables.filter(|tables| tables.until.is_none() && !keys.actions.is_empty()) {
            let wanted = keys
                .actions
                .iter()
                .map(|id| key(partition, &action_sk(id)))
                .collect();
            let mut items = self.items(&tables.actions, partition, wanted).await?;
            for id in &keys.actions {
                let sk = action_sk(id);
                if let Some(action) = formats::action(partition, &sk, items.remove(&sk))? {
                    account.actions.insert(id.clone(), action);
                    account.own_actions.insert(id.clone());
                }
            }
        }
        Ok(account)
    }

    fn remember(&self, partition: &Partition, tables: Option<Tables>) {
        let mut known = self.own_tables.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(partition.clone(), tables);
    }

    /// The own tables of an account, as they were when it was loaded last.
    async fn tables_of(&self, partition: &Partition) -> Result<Option<Tables>, StoreError> {
        let known = {
            let known = self.own_tables.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(partition).cloned()
        };
        match known {
            Some(tables) => Ok(tables),
            None => {
                let account = self.load(partition, &Keys::default()).await?;
                Ok(account.tenant.and_then(|tenant| tenant.tables))
            }
        }
    }

    /// Reads items of one account by key, by their `sk`.
    async fn items(
        &self,
        table: &str,
        partition: &Partition,
        wanted: Vec<Item>,
    ) -> Result<BTreeMap<String, Item>, StoreError> {
        let items = self.read(table, partition.as_str(), wanted).await?.into_iter();
        Ok(items
            .filter_map(|item| Some((item.get("sk")?.as_s().ok()?.clone(), item)))
            .collect())
    }

    /// Reads items by key, strongly consistent; `of` tells whose they are when that fails.
    async fn read(&self, table: &str, of: &str, mut wanted: Vec<Item>) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::with_capacity(wanted.len());
        let mut in_vain = 0;
        while !wanted.is_empty() {
            if in_vain > ATTEMPTS {
                return Err(StoreError::Contended {
                    account: of.to_owned(),
                });
            }
            // A BatchGetItem takes 100 keys; what is left over goes into the next round.
            let rest = wanted.split_off(wanted.len().min(100));
            let asked = wanted.len();
            let request = KeysAndAttributes::builder()
                .set_keys(Some(wanted))
                .consistent_read(true)
                .build();
            let request = request.map_err(|e| StoreError::Encode {
                account: of.to_owned(),
                what: "keys",
                detail: e.to_string(),
            })?;
            let answer = self
                .client
                .batch_get_item()
                .request_items(table, request)
                .return_consumed_capacity(ReturnConsumedCapacity::Total)
                .send()
                .await
                .map_err(|e| Self::call_error("BatchGetItem", table, of, e))?;
            let before = asked + rest.len();
            wanted = rest;
            for left in answer.unprocessed_keys.unwrap_or_default().into_values() {
                wanted.extend(left.keys);
            }
            // However many there are: only rounds that bring nothing on are counted.
            in_vain = match wanted.len() < before {
                true => 0,
                false => in_vain + 1,
            };
            items.extend(answer.responses.unwrap_or_default().into_values().flatten());
        }
        Ok(items)
    }

    fn account(
        partition: &Partition,
        keys: &Keys,
        mut items: BTreeMap<String, Item>,
    ) -> Result<Account, StoreError> {
        let mut actions = BTreeMap::new();
        for id in &keys.actions {
            let sk = action_sk(id);
            if let Some(action) = formats::action(partition, &sk, items.remove(&sk))? {
                actions.insert(id.clone(), action);
            }
        }
        let delivery = attribute(partition, WEBHOOK, "delivery", items.remove(WEBHOOK))?;
        let once = keys
            .once
            .iter()
            .copied()
            .filter(|id| items.contains_key(&once_sk(*id)))
            .collect();
        let marked = match &keys.mark {
            Some(id) => {
                let sk = escalation_sk(id);
                formats::action(partition, &sk, items.remove(&sk))?.map(Box::new)
            }
            None => None,
        };
        Ok(Account {
            partition: partition.clone(),
            tenant: formats::tenant(partition, items.remove(TENANT))?,
            head: attribute(partition, HEAD, "head", items.remove(HEAD))?.unwrap_or_else(Head::empty),
            actions,
            own_actions: BTreeSet::new(),
            delivery,
            once,
            marked,
        })
    }

    /// Writes a value and reads it back: does storage work? The value is of version 7, which is ordered by time.
    ///
    /// # Errors
    /// [`StoreError`] when it does not, naming the call that failed or the value that came back.
    pub async fn probe(&self, value: Uuid) -> Result<(), StoreError> {
        let table = &self.stack.tenants_table;
        let partition = Partition::system();
        let account = partition.as_str();
        let mut item = key(&partition, "PROBE");
        item.insert("value".to_owned(), text(value.to_string()));
        self.client
            .put_item()
            .table_name(table)
            .set_item(Some(item))
            .send()
            .await
            .map_err(|e| Self::call_error("PutItem", table, account, e))?;
        let answer = self
            .client
            .get_item()
            .table_name(table)
            .set_key(Some(key(&partition, "PROBE")))
            .consistent_read(true)
            .send()
            .await
            .map_err(|e| Self::call_error("GetItem", table, account, e))?;
        let found = answer
            .item
            .as_ref()
            .and_then(|item| item.get("value")?.as_s().ok());
        // Values are ordered by time: a later one is another probe's, and tells as well that what is written can be read.
        if found.is_some_and(|found| found.parse::<Uuid>().is_ok_and(|found| found >= value)) {
            return Ok(());
        }
        Err(StoreError::Item {
            account: account.to_owned(),
            sk: "PROBE".to_owned(),
            detail: format!("wrote {value}, read back {found:?}"),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Tables that are asked nothing.
    pub(crate) fn store() -> Store {
        let config = aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build();
        let stack = Stack {
            tenants_table: "tenants".to_owned(),
            receipts_table: "receipts".to_owned(),
            signing_key_secret: "key".to_owned(),
        };
        Store::new(&Sdk::from(config), stack)
    }
}
