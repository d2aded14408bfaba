//! The tables: one consistent read, one transaction.
//!
//! [`Store::transact`] is the only way anything is written. It reads an account, asks a pure function what to write,
//! chains and signs the receipts, and commits state, receipts, head and dedup together. When another writer was first
//! it reads again and asks again, a bounded number of times, with jitter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use aws_sdk_dynamodb::operation::transact_write_items::{TransactWriteItemsError, TransactWriteItemsOutput};
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, KeysAndAttributes, Put, ReturnConsumedCapacity, TransactWriteItem,
};
use domain::action::{Action, ActionState};
use domain::names::{self, LedgerId};
use domain::signal::ActionId;
use domain::tenant::{BUSY, Lifecycle, Tables, Tenant};
use domain::transaction::{Account, Committed, DeliveryPlan, DeliveryRecord, Keys, Plan};
use jiff::Timestamp;
use receipts::key::Signer;
use receipts::ledger::{self, AppendError, Head, Sealed};
use serde::Serialize;
use tracing::warn;
use uuid::Uuid;

use crate::clients::explain;
use crate::config::Stack;

/// Times a commit is tried before it is given up and left to its caller's own retries.
///
/// Simulated with 16 writers of one account that never pause, and calls of 13 to 90 ms: no commit given up within two
/// minutes, three to seven attempts a commit, the slowest of a hundred after 1.2 to 4 s. With 16 attempts and waits that
/// only grow, one commit in 200 was given up: who has just committed comes back at once, and wins again.
pub const ATTEMPTS: u32 = 48;
/// How long a delivery's answer is kept, in seconds: senders retry for days.
const DELIVERY_KEPT_SECONDS: i64 = 7 * 24 * 3600;

/// How long an action that nobody began is kept, in seconds: as long as SQS keeps its signal, and a day.
const PENDING_KEPT_SECONDS: i64 = 15 * 24 * 3600;

/// An item, or where a page goes on.
pub type Item = HashMap<String, AttributeValue>;

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

/// Where a listing of actions goes on.
#[derive(Debug, Clone, Default)]
pub struct After {
    own_table: bool,
    key: Option<Item>,
}

/// The tables.
pub struct Store {
    client: Client,
    stack: Stack,
    /// Own tables of the accounts that were loaded last, so that reading a ledger knows where its receipts stand.
    own_tables: Mutex<HashMap<String, Option<Tables>>>,
}

/// Where a receipt may be put.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Where nothing is.
    Free,
    /// Where nothing is, or the very same receipt from an attempt before.
    FreeOrItsOwn,
}

/// Accounts whose own tables are remembered: there is no growth without end.
const REMEMBERED: usize = 1000;

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn key(partition: &str, sk: &str) -> Item {
    [
        ("account_id".to_owned(), text(partition)),
        ("sk".to_owned(), text(sk)),
    ]
    .into()
}

fn action_sk(id: &ActionId) -> String {
    format!("{ACTION}{}", id.as_str())
}

fn escalation_sk(id: &ActionId) -> String {
    format!("ESCALATION#{}", id.as_str())
}

/// The table key of a delivery's answer. Deliveries are not filed under the account they name: the same id with another
/// account in its body is still the same id.
fn delivery_partition(delivery: &str) -> String {
    format!("_webhook:{delivery}")
}

fn once_sk(id: Uuid) -> String {
    format!("ONCE#{id}")
}

/// The table key of the note that says whose a queue is.
fn queue_partition(queue: &str) -> String {
    format!("_queue:{queue}")
}

const ACTION: &str = "ACTION#";
const TENANT: &str = "TENANT";
const HEAD: &str = "HEAD";
const WEBHOOK: &str = "WEBHOOK";

/// What marks of escalated actions have as their `lifecycle`, so that the index of tenants by lifecycle lists them too.
const ESCALATED: &str = "escalated";

/// What ledger heads have as their `lifecycle`, so that the index of tenants by lifecycle lists them too: ledgers of
/// accounts that were never a tenant, and the system's, have no other item to be found by.
const LEDGER: &str = "ledger";
/// Ledgers listed at a time.
const LEDGERS_PAGE: i32 = 200;

impl Store {
    /// The tables of a stack.
    #[must_use]
    pub fn new(sdk: &SdkConfig, stack: Stack) -> Self {
        Self {
            client: Client::new(sdk),
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
    pub async fn load(&self, partition: &str, keys: &Keys) -> Result<Account, StoreError> {
        let mut wanted = vec![key(partition, TENANT), key(partition, HEAD)];
        wanted.extend(keys.actions.iter().map(|id| key(partition, &action_sk(id))));
        wanted.extend(keys.delivery.iter().map(|d| key(&delivery_partition(d), WEBHOOK)));
        wanted.extend(keys.once.iter().map(|id| key(partition, &once_sk(*id))));
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
                if let Some(action) = attribute::<Action>(partition, &sk, "action", items.remove(&sk))? {
                    account.actions.insert(id.clone(), action);
                    account.own_actions.insert(id.clone());
                }
            }
        }
        Ok(account)
    }

    fn remember(&self, partition: &str, tables: Option<Tables>) {
        let mut known = self.own_tables.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(partition.to_owned(), tables);
    }

    /// The own tables of an account, as they were when it was loaded last.
    async fn tables_of(&self, partition: &str) -> Result<Option<Tables>, StoreError> {
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
        partition: &str,
        wanted: Vec<Item>,
    ) -> Result<BTreeMap<String, Item>, StoreError> {
        let items = self.read(table, partition, wanted).await?.into_iter();
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
        partition: &str,
        keys: &Keys,
        mut items: BTreeMap<String, Item>,
    ) -> Result<Account, StoreError> {
        let mut actions = BTreeMap::new();
        for id in &keys.actions {
            let sk = action_sk(id);
            if let Some(action) = attribute::<Action>(partition, &sk, "action", items.remove(&sk))? {
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
        Ok(Account {
            partition: partition.to_owned(),
            tenant: attribute(partition, TENANT, "tenant", items.remove(TENANT))?,
            head: attribute(partition, HEAD, "head", items.remove(HEAD))?.unwrap_or_else(Head::empty),
            actions,
            own_actions: BTreeSet::new(),
            delivery,
            once,
        })
    }

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
        partition: &str,
        keys: &Keys,
        account: Option<Account>,
        mut decide: impl FnMut(&Account, Timestamp) -> Result<(Plan, T), E>,
    ) -> Result<(Committed, T), E> {
        let mut account = match account {
            Some(account) => account,
            None => Box::pin(self.load(partition, keys)).await?,
        };
        for attempt in 1..=ATTEMPTS {
            let now = Timestamp::now();
            let (plan, answer) = decide(&account, now)?;
            let committed = self.commit_or_wait(signer, &account, &plan, now, attempt);
            if let Some(committed) = committed.await? {
                return Ok((committed, answer));
            }
            account = Box::pin(self.load(partition, keys)).await?;
        }
        Err(StoreError::Contended {
            account: partition.to_owned(),
        }
        .into())
    }

    /// As [`Store::transact`], about one action that may be escalated and stand in no table any more, as its tenant's own
    /// went with the tenant: `decide` is also given the action as it was marked, if it ever was.
    ///
    /// # Errors
    /// As [`Store::transact`].
    pub async fn transact_marked<T, E: From<StoreError>>(
        &self,
        signer: &Signer,
        partition: &str,
        id: &ActionId,
        mut decide: impl FnMut(&Account, Option<&Action>, Timestamp) -> Result<(Plan, T), E>,
    ) -> Result<(Committed, T), E> {
        let keys = Keys {
            actions: BTreeSet::from([id.clone()]),
            ..Keys::default()
        };
        for attempt in 1..=ATTEMPTS {
            let account = Box::pin(self.load(partition, &keys)).await?;
            let marked = self.escalation(partition, id).await?;
            let now = Timestamp::now();
            let (plan, answer) = decide(&account, marked.as_ref(), now)?;
            let committed = self.commit_or_wait(signer, &account, &plan, now, attempt);
            if let Some(committed) = committed.await? {
                return Ok((committed, answer));
            }
        }
        Err(StoreError::Contended {
            account: partition.to_owned(),
        }
        .into())
    }

    /// Commits a plan. `None`, after a while, when a condition failed.
    async fn commit_or_wait(
        &self,
        signer: &Signer,
        account: &Account,
        plan: &Plan,
        now: Timestamp,
        attempt: u32,
    ) -> Result<Option<Committed>, StoreError> {
        // Boxed, as are the reads: a function's future would hold several of them by value.
        let commit = Box::pin(self.commit(signer, account, plan, now));
        if let Some(committed) = commit.await? {
            return Ok(Some(committed));
        }
        warn!(account = account.partition, attempt, "another writer was first");
        // Full jitter: writers that lost together do not come back together.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..=longest_wait(attempt)))).await;
        Ok(None)
    }

    /// Tries once to write a plan of an account as it was read. `None` when another writer was first: read again, ask again,
    /// and wait for [`longest_wait`] at the most.
    ///
    /// # Errors
    /// [`StoreError`] when the tables do not answer.
    pub async fn commit(
        &self,
        signer: &Signer,
        account: &Account,
        plan: &Plan,
        now: Timestamp,
    ) -> Result<Option<Committed>, StoreError> {
        let partition = account.partition.as_str();
        let appended = ledger::append(&account.head, &plan.drafts, now, signer).map_err(|source| {
            StoreError::Append {
                account: partition.to_owned(),
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
            writes.push(self.put_delivery(partition, delivery, &appended.sealed, now)?);
        }
        if let Some(queue) = &plan.queue {
            let owner = [("owner".to_owned(), text(partition))].into();
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
        let committed = Committed {
            account: after,
            sealed: appended.sealed,
        };
        if writes.is_empty() {
            return Ok(Some(committed));
        }
        let answer = self.write(writes).await;
        match answer {
            Ok(_) => Ok(Some(committed)),
            Err(e) if others_were_first(&e) => Ok(None),
            Err(e) => Err(Self::call_error(
                "TransactWriteItems",
                &self.stack.tenants_table,
                partition,
                e,
            )),
        }
    }

    async fn write(
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

    fn put(
        &self,
        partition: &str,
        sk: &str,
        fields: Item,
        condition: &str,
        values: Item,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut item = key(partition, sk);
        item.extend(fields);
        self.put_into(&self.stack.tenants_table, partition, item, condition, values)
    }

    fn put_into(
        &self,
        table: &str,
        partition: &str,
        item: Item,
        condition: &str,
        values: Item,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut put = Put::builder().table_name(table).set_item(Some(item));
        if !condition.is_empty() {
            put = put.condition_expression(condition);
        }
        if !values.is_empty() {
            put = put.set_expression_attribute_values(Some(values));
        }
        // Only names that are reserved words or repeat are aliased; `#` names appear where the expression uses them.
        for (alias, name) in [
            ("#size", "size"),
            ("#state", "action_state"),
            ("#owner", "action_owner"),
            ("#line", "line"),
        ] {
            if condition.contains(alias) {
                put = put.expression_attribute_names(alias, name);
            }
        }
        let put = put.build().map_err(|e| StoreError::Encode {
            account: partition.to_owned(),
            what: "transaction",
            detail: e.to_string(),
        })?;
        Ok(TransactWriteItem::builder().put(put).build())
    }

    fn put_tenant(&self, account: &Account, tenant: &Tenant) -> Result<TransactWriteItem, StoreError> {
        let fields = [
            ("tenant".to_owned(), encode(&account.partition, "tenant", tenant)?),
            ("lifecycle".to_owned(), text(tenant.index_state())),
            ("revision".to_owned(), number(tenant.revision)),
        ];
        match &account.tenant {
            None => self.put(
                &account.partition,
                TENANT,
                fields.into(),
                "attribute_not_exists(sk)",
                Item::new(),
            ),
            Some(read) => {
                let values = [(":revision".to_owned(), number(read.revision))].into();
                self.put(
                    &account.partition,
                    TENANT,
                    fields.into(),
                    "revision = :revision",
                    values,
                )
            }
        }
    }

    /// That the tenant is as it was read.
    fn unchanged(&self, account: &Account, tenant: &Tenant) -> Result<TransactWriteItem, StoreError> {
        let revision = [(":revision".to_owned(), number(tenant.revision))].into();
        self.check(account, TENANT, "revision = :revision", revision, None)
    }

    /// That the ledger ends where it was read to end.
    fn stands(&self, account: &Account) -> Result<TransactWriteItem, StoreError> {
        if account.head.size == 0 {
            return self.check(account, HEAD, "attribute_not_exists(sk)", Item::new(), None);
        }
        let size = [(":size".to_owned(), number(account.head.size))].into();
        self.check(account, HEAD, "#size = :size", size, Some(("#size", "size")))
    }

    fn check(
        &self,
        account: &Account,
        sk: &str,
        condition: &str,
        values: Item,
        alias: Option<(&str, &str)>,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut check = ConditionCheck::builder()
            .table_name(&self.stack.tenants_table)
            .set_key(Some(key(&account.partition, sk)))
            .condition_expression(condition);
        if !values.is_empty() {
            check = check.set_expression_attribute_values(Some(values));
        }
        if let Some((alias, name)) = alias {
            check = check.expression_attribute_names(alias, name);
        }
        let check = check.build().map_err(|e| StoreError::Encode {
            account: account.partition.clone(),
            what: "condition",
            detail: e.to_string(),
        })?;
        Ok(TransactWriteItem::builder().condition_check(check).build())
    }

    /// Notes by which plans the index finds the tenant, where that changes.
    fn put_plans(&self, account: &Account, tenant: &Tenant) -> Result<Vec<TransactWriteItem>, StoreError> {
        let before = account.tenant.as_ref().map(plans_of).unwrap_or_default();
        let after = plans_of(tenant);
        let mut writes = Vec::new();
        for plan in before.symmetric_difference(&after) {
            // Without the attribute an item is in no index: the tenant has the plan no more.
            let fields: Item = match after.contains(plan) {
                true => [("sku_plan".to_owned(), text(plan))].into(),
                false => Item::new(),
            };
            writes.push(self.put(
                &account.partition,
                &format!("PLAN#{plan}"),
                fields,
                "",
                Item::new(),
            )?);
        }
        Ok(writes)
    }

    fn put_action(
        &self,
        account: &Account,
        tables: Option<&Tables>,
        action: &Action,
    ) -> Result<TransactWriteItem, StoreError> {
        let id = &action.action_id;
        // An action stays where it was begun.
        let own = match account.actions.contains_key(id) {
            true => tables.filter(|_| account.own_actions.contains(id)),
            false => tables.filter(|tables| tables.until.is_none()),
        };
        let table = own.map_or(&self.stack.tenants_table, |tables| &tables.actions);
        let state = |action: &Action| encode(&account.partition, "action state", &action.state);
        let fields = [
            ("action".to_owned(), encode(&account.partition, "action", action)?),
            ("action_state".to_owned(), state(action)?),
            ("action_owner".to_owned(), text(action.owner.to_string())),
        ];
        let mut item = key(&account.partition, &action_sk(id));
        item.extend(fields);
        if action.state == ActionState::Pending {
            // No signal lives longer than its queue keeps it, unless it waits so long for a place that it is sent anew.
            let expires = action
                .lease_until
                .as_second()
                .saturating_add(PENDING_KEPT_SECONDS);
            item.insert("expires_at".to_owned(), number(expires.unsigned_abs()));
        }
        let (condition, values) = match account.actions.get(id) {
            None => ("attribute_not_exists(sk)", Item::new()),
            Some(read) => {
                let values = [
                    (":state".to_owned(), state(read)?),
                    (":owner".to_owned(), text(read.owner.to_string())),
                ];
                ("#state = :state AND #owner = :owner", values.into())
            }
        };
        self.put_into(table, &account.partition, item, condition, values)
    }

    /// Marks an action that is escalated now, or is so no more, where all tenants' are found: actions may stand in a
    /// tenant's own table, and that goes with the tenant.
    fn mark_escalation(
        &self,
        account: &Account,
        action: &Action,
    ) -> Result<Option<TransactWriteItem>, StoreError> {
        let escalated = |action: &Action| action.state == ActionState::Escalated;
        let before = account.actions.get(&action.action_id).is_some_and(escalated);
        if before == escalated(action) {
            return Ok(None);
        }
        self.put_mark(&account.partition, action, "", Item::new())
            .map(Some)
    }

    fn put_mark(
        &self,
        partition: &str,
        action: &Action,
        condition: &str,
        values: Item,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut fields: Item = [("action".to_owned(), encode(partition, "action", action)?)].into();
        // Without the attribute an item is in no index: nobody has to look any more.
        if action.state == ActionState::Escalated {
            fields.insert("lifecycle".to_owned(), text(ESCALATED));
        }
        let sk = escalation_sk(&action.action_id);
        self.put(partition, &sk, fields, condition, values)
    }

    fn put_head(&self, account: &Account, head: &Head) -> Result<TransactWriteItem, StoreError> {
        let fields = [
            ("head".to_owned(), encode(&account.partition, "head", head)?),
            ("size".to_owned(), number(head.size)),
            ("lifecycle".to_owned(), text(LEDGER)),
        ];
        if account.head.size == 0 {
            return self.put(
                &account.partition,
                HEAD,
                fields.into(),
                "attribute_not_exists(sk)",
                Item::new(),
            );
        }
        let values = [(":size".to_owned(), number(account.head.size))].into();
        self.put(&account.partition, HEAD, fields.into(), "#size = :size", values)
    }

    fn put_receipt(
        &self,
        partition: &str,
        tables: Option<&Tables>,
        sealed: &Sealed,
        place: Place,
    ) -> Result<TransactWriteItem, StoreError> {
        let item = [
            ("account_id".to_owned(), text(partition)),
            ("seq".to_owned(), text(format!("{:020}", sealed.seq))),
            ("receipt_id".to_owned(), text(sealed.receipt_id.to_string())),
            ("operation".to_owned(), text(sealed.operation)),
            ("line".to_owned(), text(sealed.line.clone())),
        ];
        let own = tables.filter(|tables| tables.hold(sealed.seq));
        let table = own.map_or(&self.stack.receipts_table, |tables| &tables.receipts);
        let (condition, values) = match place {
            Place::Free => ("attribute_not_exists(account_id)", Item::new()),
            Place::FreeOrItsOwn => (
                "attribute_not_exists(account_id) OR #line = :line",
                [(":line".to_owned(), text(sealed.line.clone()))].into(),
            ),
        };
        self.put_into(table, partition, item.into(), condition, values)
    }

    /// A receipt that stands elsewhere already, put into the shared table where nothing or itself is.
    fn put_line(&self, partition: &str, seq: u64, line: &str) -> Result<TransactWriteItem, StoreError> {
        let receipt: receipts::receipt::Receipt =
            serde_json::from_str(line).map_err(|e| StoreError::Item {
                account: partition.to_owned(),
                sk: format!("receipt {seq}"),
                detail: e.to_string(),
            })?;
        let sealed = Sealed {
            seq,
            receipt_id: receipt.receipt_id,
            operation: receipt.payload.operation(),
            hash: String::new(),
            line: line.to_owned(),
        };
        self.put_receipt(partition, None, &sealed, Place::FreeOrItsOwn)
    }

    fn put_delivery(
        &self,
        partition: &str,
        plan: &DeliveryPlan,
        sealed: &[Sealed],
        now: Timestamp,
    ) -> Result<TransactWriteItem, StoreError> {
        let receipt = sealed.get(plan.draft).map(|s| s.line.clone()).unwrap_or_default();
        let record = DeliveryRecord {
            key: plan.key.clone(),
            body_sha256: plan.body_sha256.clone(),
            status: plan.status,
            receipt,
        };
        let expires = now
            .as_second()
            .saturating_add(DELIVERY_KEPT_SECONDS)
            .unsigned_abs();
        let fields = [
            ("delivery".to_owned(), encode(partition, "delivery", &record)?),
            ("expires_at".to_owned(), number(expires)),
        ];
        let filed = delivery_partition(&plan.key);
        self.put(
            &filed,
            WEBHOOK,
            fields.into(),
            "attribute_not_exists(sk)",
            Item::new(),
        )
    }

    /// Whose a tenant queue is, for a message that does not say so itself.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer.
    pub async fn queue_owner(&self, queue: &str) -> Result<Option<String>, StoreError> {
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
            .and_then(|item| item.get("owner").and_then(|v| v.as_s().ok().cloned())))
    }

    /// One page of a ledger from `seq` on, in order.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer.
    pub async fn receipts_from(&self, partition: &str, seq: u64) -> Result<Vec<String>, StoreError> {
        let tables = self.tables_of(partition).await?;
        let own = tables.as_ref().filter(|tables| tables.hold(seq));
        let shared = &self.stack.receipts_table;
        let answer = self
            .client
            .query()
            .table_name(own.map_or(shared, |tables| &tables.receipts))
            .consistent_read(true)
            .key_condition_expression("account_id = :account AND seq >= :seq")
            .expression_attribute_values(":account", text(partition))
            .expression_attribute_values(":seq", text(format!("{seq:020}")))
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("Query", shared, partition, e))?;
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

    /// One receipt's line, as it stands in the ledger.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or the item is not of its form.
    pub async fn receipt(&self, partition: &str, seq: u64) -> Result<Option<String>, StoreError> {
        let tables = self.tables_of(partition).await?;
        let own = tables.as_ref().filter(|tables| tables.hold(seq));
        let table = own.map_or(&self.stack.receipts_table, |tables| &tables.receipts);
        let seq = format!("{seq:020}");
        let answer = self
            .client
            .get_item()
            .table_name(table)
            .key("account_id", text(partition))
            .key("seq", text(&seq))
            .consistent_read(true)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("GetItem", table, partition, e))?;
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
    pub async fn bring_home(&self, partition: &str, tables: &Tables) -> Result<(), StoreError> {
        let until = tables.until.unwrap_or(tables.since);
        // An attempt before may have ended in the middle; they are put in order.
        let mut next = self.home_already(partition, tables.since, until).await?;
        while next < until {
            let lines = self.receipts_from(partition, next).await?;
            if lines.is_empty() {
                return Err(StoreError::Item {
                    account: partition.to_owned(),
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
                self.write(writes)
                    .await
                    .map_err(|e| Self::call_error("TransactWriteItems", &tables.receipts, partition, e))?;
            }
        }
        Ok(())
    }

    /// The first receipt from `since` on that the shared table does not have yet, `until` when it has all.
    async fn home_already(&self, partition: &str, since: u64, until: u64) -> Result<u64, StoreError> {
        let Some(last) = until.checked_sub(1) else {
            return Ok(since);
        };
        let table = &self.stack.receipts_table;
        let answer = self
            .client
            .query()
            .table_name(table)
            .consistent_read(true)
            .key_condition_expression("account_id = :account AND seq BETWEEN :since AND :last")
            .expression_attribute_values(":account", text(partition))
            .expression_attribute_values(":since", text(format!("{since:020}")))
            .expression_attribute_values(":last", text(format!("{last:020}")))
            .scan_index_forward(false)
            .limit(1)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("Query", table, partition, e))?;
        let found = answer.items.unwrap_or_default().into_iter().next();
        let seq = found.and_then(|item| item.get("seq")?.as_s().ok()?.parse::<u64>().ok());
        Ok(seq.map_or(since, |seq| seq.saturating_add(1)))
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
        of: Option<&str>,
    ) -> Result<Vec<(String, u64)>, StoreError> {
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

    async fn find_receipt_in(&self, table: &str, receipt_id: Uuid) -> Result<Vec<(String, u64)>, StoreError> {
        let id = receipt_id.to_string();
        let mut found = Vec::new();
        let mut after = None;
        loop {
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
            for item in answer.items.unwrap_or_default() {
                let attribute = |name: &str| item.get(name).and_then(|value| value.as_s().ok());
                let place = attribute("account_id").zip(attribute("seq"));
                let place = place.and_then(|(partition, seq)| Some((partition.clone(), seq.parse().ok()?)));
                found.push(place.ok_or_else(|| StoreError::Item {
                    account: id.clone(),
                    sk: "by-receipt-id".to_owned(),
                    detail: "account_id or seq is missing".to_owned(),
                })?);
            }
            after = answer.last_evaluated_key;
            if after.is_none() {
                return Ok(found);
            }
        }
    }

    /// One page of an account's actions, by id: the actions and, when there are more, where to go on. Those of a tenant's
    /// own table come behind the others.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or an item is not of its form.
    pub async fn actions(
        &self,
        partition: &str,
        after: Option<After>,
    ) -> Result<(Vec<Action>, Option<After>), StoreError> {
        let After { own_table, key } = after.unwrap_or_default();
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
            .expression_attribute_values(":account", text(partition))
            .expression_attribute_values(":action", text(ACTION))
            .set_exclusive_start_key(key)
            .return_consumed_capacity(ReturnConsumedCapacity::Total)
            .send()
            .await
            .map_err(|e| Self::call_error("Query", table, partition, e))?;
        let next = match answer.last_evaluated_key {
            Some(key) => Some(After {
                own_table,
                key: Some(key),
            }),
            None if own.is_some() && !own_table => Some(After {
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
            actions.extend(attribute(partition, &sk, "action", Some(item))?);
        }
        Ok((actions, next))
    }

    /// One page of a tenant's own actions: those that stand in its own table.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer or an item is not of its form.
    pub async fn own_actions(
        &self,
        partition: &str,
        after: Option<After>,
    ) -> Result<(Vec<Action>, Option<After>), StoreError> {
        let own = After {
            own_table: true,
            key: None,
        };
        self.actions(partition, Some(after.unwrap_or(own))).await
    }

    /// One page of all ledgers there are, those behind `after` only: the ledgers in the order of their partitions. None
    /// behind the last.
    ///
    /// # Errors
    /// [`StoreError`] when the index does not answer.
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
                .filter_map(|item| LedgerId::of_partition(item.get("account_id")?.as_s().ok()?))
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
    ) -> Result<(Vec<(String, Action)>, Option<Item>), StoreError> {
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
            let (partition, sk) = (
                named("account_id").unwrap_or_default(),
                named("sk").unwrap_or_default(),
            );
            let action = attribute(&partition, &sk, "action", Some(item))?;
            found.extend(action.map(|action| (partition, action)));
        }
        Ok((found, answer.last_evaluated_key))
    }

    /// An action as it was marked when it was escalated, or when it no longer was; `None` when it never was.
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer, or the item is not of its form.
    pub async fn escalation(&self, partition: &str, id: &ActionId) -> Result<Option<Action>, StoreError> {
        let (table, sk) = (&self.stack.tenants_table, escalation_sk(id));
        let item = self
            .read(table, partition, vec![key(partition, &sk)])
            .await?
            .pop();
        attribute(partition, &sk, "action", item)
    }

    /// Asks an index of the tenants table for what has this value, one page at a time.
    fn by_index(&self, index: &str, attribute: &str, value: &str, after: Option<Item>) -> QueryFluentBuilder {
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
    ///
    /// # Errors
    /// [`StoreError`] when the index does not answer.
    pub async fn tenants_of_plan(
        &self,
        sku_id: &str,
        plan_type: &str,
        after: Option<Item>,
    ) -> Result<(Vec<String>, Option<Item>), StoreError> {
        let plan = sku_plan(sku_id, plan_type);
        self.accounts(self.by_index("by-plan", "sku_plan", &plan, after), &plan)
            .await
    }

    /// Table keys of the tenants that the index by lifecycle has in a state (see [`Tenant::index_state`]), one page: the
    /// keys and, when there are more, where to go on.
    ///
    /// # Errors
    /// [`StoreError`] when the index does not answer.
    pub async fn tenants_in(
        &self,
        state: &str,
        after: Option<Item>,
    ) -> Result<(Vec<String>, Option<Item>), StoreError> {
        let query = self.by_index("by-lifecycle", "lifecycle", state, after);
        self.accounts(query.limit(LEDGERS_PAGE), state).await
    }

    /// The accounts on a page of an index.
    async fn accounts(
        &self,
        query: QueryFluentBuilder,
        of: &str,
    ) -> Result<(Vec<String>, Option<Item>), StoreError> {
        let answer = query.send().await;
        let answer = answer.map_err(|e| Self::call_error("Query", &self.stack.tenants_table, of, e))?;
        let items = answer.items.unwrap_or_default();
        let accounts = items
            .iter()
            .filter_map(|item| item.get("account_id")?.as_s().ok().cloned());
        Ok((accounts.collect(), answer.last_evaluated_key))
    }

    /// One page of tenants that the index by lifecycle has in a state, read themselves, strongly consistent: the index may
    /// lag. Each that cannot be read stands as its error.
    ///
    /// # Errors
    /// [`StoreError`] when the index or the table does not answer.
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
    ///
    /// # Errors
    /// [`StoreError`] when the table does not answer.
    pub async fn tenants(
        &self,
        partitions: &[String],
        of: &str,
    ) -> Result<Vec<Result<Tenant, StoreError>>, StoreError> {
        let wanted = partitions.iter().map(|p| key(p, TENANT)).collect();
        let mut tenants = Vec::with_capacity(partitions.len());
        for item in self.read(&self.stack.tenants_table, of, wanted).await? {
            let partition = item.get("account_id").and_then(|id| id.as_s().ok()).cloned();
            let partition = partition.unwrap_or_default();
            let tenant = attribute::<Tenant>(&partition, TENANT, "tenant", Some(item));
            if let Ok(Some(tenant)) = &tenant {
                self.remember(&partition, tenant.tables.clone());
            }
            tenants.extend(tenant.transpose());
        }
        Ok(tenants)
    }

    /// How many tenants are active.
    ///
    /// # Errors
    /// [`StoreError`] when the index does not answer.
    pub async fn count_active(&self) -> Result<u64, StoreError> {
        let table = &self.stack.tenants_table;
        let mut count = 0u64;
        for state in [Lifecycle::Active.name(), BUSY] {
            let mut after = None;
            loop {
                let answer = self
                    .by_index("by-lifecycle", "lifecycle", state, after)
                    .select(aws_sdk_dynamodb::types::Select::Count)
                    .send()
                    .await
                    .map_err(|e| Self::call_error("Query", table, "by-lifecycle", e))?;
                count = count.saturating_add(u64::try_from(answer.count).unwrap_or(0));
                after = answer.last_evaluated_key;
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(count)
    }

    /// Writes a value and reads it back: does storage work? The value is of version 7, which is ordered by time.
    ///
    /// # Errors
    /// [`StoreError`] when it does not, naming the call that failed or the value that came back.
    pub async fn probe(&self, value: Uuid) -> Result<(), StoreError> {
        let table = &self.stack.tenants_table;
        let account = names::SYSTEM_ACCOUNT;
        let mut item = key(account, "PROBE");
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
            .set_key(Some(key(account, "PROBE")))
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

/// What stands in an item under a name, read as what it is; `None` when there is no item.
fn attribute<T: serde::de::DeserializeOwned>(
    partition: &str,
    sk: &str,
    field: &str,
    item: Option<Item>,
) -> Result<Option<T>, StoreError> {
    let Some(mut item) = item else { return Ok(None) };
    let wrong = |detail: String| StoreError::Item {
        account: partition.to_owned(),
        sk: sk.to_owned(),
        detail,
    };
    let value = item
        .remove(field)
        .ok_or_else(|| wrong(format!("attribute {field} is missing")))?;
    serde_dynamo::from_attribute_value(value)
        .map(Some)
        .map_err(|e| wrong(e.to_string()))
}

/// The ledger line in an item of the receipts table.
fn line_of(partition: &str, item: &Item, place: impl FnOnce() -> String) -> Result<String, StoreError> {
    let line = item.get("line").and_then(|line| line.as_s().ok()).cloned();
    line.ok_or_else(|| StoreError::Item {
        account: partition.to_owned(),
        sk: place(),
        detail: "attribute line is missing".to_owned(),
    })
}

/// How long to wait at most after this attempt, from 1, in milliseconds: briefly at first, as most often one other
/// writer was there once; then long, to make room; then less and less, so that who has lost often is not last for ever.
#[must_use]
pub fn longest_wait(attempt: u32) -> u64 {
    match attempt {
        0 | 1 => 40,
        2 => 80,
        later => 320 >> ((later - 2) / 4).min(3),
    }
}

/// The index key of a SKU and plan; each part is encoded, so the slash between them is the only one.
fn sku_plan(sku_id: &str, plan_type: &str) -> String {
    format!("{}/{}", names::key_segment(sku_id), names::key_segment(plan_type))
}

/// The plans by which the index finds a tenant: of what it holds, and of what is being provisioned.
fn plans_of(tenant: &Tenant) -> BTreeSet<String> {
    let waiting = tenant.provisioning.iter().map(|saga| &saga.entitlement);
    let held = tenant.entitlements.values().chain(waiting);
    held.map(|e| sku_plan(e.sku_id.as_str(), e.plan_type.as_str()))
        .collect()
}

fn encode<T: Serialize>(account: &str, what: &'static str, value: &T) -> Result<AttributeValue, StoreError> {
    serde_dynamo::to_attribute_value(value).map_err(|e| StoreError::Encode {
        account: account.to_owned(),
        what,
        detail: e.to_string(),
    })
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

    fn store() -> Store {
        let sdk = SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build();
        let stack = Stack {
            tenants_table: "tenants".to_owned(),
            receipts_table: "receipts".to_owned(),
            signing_key_secret: "key".to_owned(),
        };
        Store::new(&sdk, stack)
    }

    #[test]
    fn receipts_are_put_where_nothing_is() {
        let sealed = Sealed {
            seq: 7,
            receipt_id: Uuid::nil(),
            operation: "policy_upgraded",
            hash: String::new(),
            line: "{}".to_owned(),
        };
        let write = store()
            .put_receipt("customer-1", None, &sealed, Place::Free)
            .unwrap();
        let put = write.put().unwrap();
        assert_eq!(put.table_name(), "receipts");
        assert_eq!(
            put.condition_expression(),
            Some("attribute_not_exists(account_id)")
        );
        assert_eq!(put.item()["seq"], text("00000000000000000007"));
        assert!(write.update().is_none() && write.delete().is_none());
    }

    #[test]
    fn a_mark_says_whether_somebody_has_to_look() {
        let id = ActionId::try_from("a".to_owned()).unwrap();
        for (state, marked) in [(ActionState::Escalated, true), (ActionState::Resolved, false)] {
            let action = Action {
                state,
                ..Action::pending(id.clone(), "t", "", Timestamp::UNIX_EPOCH)
            };
            let write = store()
                .put_mark("customer-1", &action, "lifecycle = :escalated", Item::new())
                .unwrap();
            let put = write.put().unwrap();
            assert_eq!(put.item()["sk"], text("ESCALATION#a"));
            assert_eq!(put.item().contains_key("lifecycle"), marked);
            assert_eq!(put.condition_expression(), Some("lifecycle = :escalated"));
        }
    }

    #[test]
    fn waits_are_bounded() {
        let waits: Vec<u64> = (1..=15).map(longest_wait).collect();
        assert_eq!(
            waits,
            [40, 80, 320, 320, 320, 160, 160, 160, 160, 80, 80, 80, 80, 40, 40]
        );
        assert_eq!(longest_wait(u32::MAX), 40);
        // Half of that is waited as waits are drawn: a small part of any function's time.
        assert_eq!((1..ATTEMPTS).map(longest_wait).sum::<u64>(), 3_400);
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
