//! Writes: what each puts, and on what condition.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::{ConditionCheck, Put, TransactWriteItem};
use domain::action::{Action, ActionState};
use domain::names::Partition;
use domain::tenant::{Tables, Tenant};
use domain::transaction::{Account, DeliveryPlan, Repeat};
use jiff::Timestamp;
use receipts::ledger::{Head, Sealed};

use super::Store;
use super::error::StoreError;
use super::formats;
use super::items::{
    ESCALATED, HEAD, Item, LEDGER, TENANT, TurnedAwayAs, WEBHOOK, action_sk, delivery_partition, encode,
    escalation_sk, key, number, sku_plan, text,
};

/// How long a delivery's answer is kept, in seconds: senders retry for days.
const DELIVERY_KEPT_SECONDS: i64 = 7 * 24 * 3600;

/// How long a delivery that changed nothing is kept, in seconds: until a person has seen it, and done something about it.
const TURNED_AWAY_KEPT_SECONDS: i64 = 30 * 24 * 3600;

/// How long an action that nobody began is kept, in seconds: as long as SQS keeps its signal, and a day.
const PENDING_KEPT_SECONDS: i64 = 15 * 24 * 3600;

/// Where a receipt may be put.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Where nothing is.
    Free,
    /// Where nothing is, or the very same receipt from an attempt before.
    FreeOrItsOwn,
}

impl Store {
    pub(super) fn put(
        &self,
        partition: &Partition,
        sk: &str,
        fields: Item,
        condition: &str,
        values: Item,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut item = key(partition, sk);
        item.extend(fields);
        self.put_into(&self.stack.tenants_table, partition, item, condition, values)
    }

    pub(super) fn put_into(
        &self,
        table: &str,
        partition: &Partition,
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
            account: partition.to_string(),
            what: "transaction",
            detail: e.to_string(),
        })?;
        Ok(TransactWriteItem::builder().put(put).build())
    }

    pub(super) fn put_tenant(
        &self,
        account: &Account,
        tenant: &Tenant,
    ) -> Result<TransactWriteItem, StoreError> {
        let fields = [
            ("tenant".to_owned(), encode(&account.partition, "tenant", tenant)?),
            formats::stamp(),
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
    pub(super) fn unchanged(
        &self,
        account: &Account,
        tenant: &Tenant,
    ) -> Result<TransactWriteItem, StoreError> {
        let revision = [(":revision".to_owned(), number(tenant.revision))].into();
        self.check(account, TENANT, "revision = :revision", revision, None)
    }

    /// That the ledger ends where it was read to end.
    pub(super) fn stands(&self, account: &Account) -> Result<TransactWriteItem, StoreError> {
        if account.head.size == 0 {
            return self.check(account, HEAD, "attribute_not_exists(sk)", Item::new(), None);
        }
        let size = [(":size".to_owned(), number(account.head.size))].into();
        self.check(account, HEAD, "#size = :size", size, Some(("#size", "size")))
    }

    pub(super) fn check(
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
            account: account.partition.to_string(),
            what: "condition",
            detail: e.to_string(),
        })?;
        Ok(TransactWriteItem::builder().condition_check(check).build())
    }

    /// Notes by which plans the index finds the tenant, where that changes.
    pub(super) fn put_plans(
        &self,
        account: &Account,
        tenant: &Tenant,
    ) -> Result<Vec<TransactWriteItem>, StoreError> {
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

    pub(super) fn put_action(
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
            formats::stamp(),
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

    /// Marks an action that waits for a person now, or does so no more, where all tenants' are found: actions may stand in a
    /// tenant's own table, and that goes with the tenant.
    pub(super) fn mark_escalation(
        &self,
        account: &Account,
        action: &Action,
    ) -> Result<Option<TransactWriteItem>, StoreError> {
        let before = account.actions.get(&action.action_id);
        let state = before
            .map(|before| before.state)
            .filter(|state| state.is_a_persons());
        // One that is routed again after it was released is marked anew, with why.
        if state == Some(action.state).filter(|state| state.is_a_persons()) {
            return Ok(None);
        }
        self.put_mark(&account.partition, action, "", Item::new())
            .map(Some)
    }

    pub(super) fn put_mark(
        &self,
        partition: &Partition,
        action: &Action,
        condition: &str,
        values: Item,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut fields: Item = [
            ("action".to_owned(), encode(partition, "action", action)?),
            formats::stamp(),
        ]
        .into();
        // Without the attribute an item is in no index: nobody has to look any more.
        if action.state.is_a_persons() {
            fields.insert("lifecycle".to_owned(), text(ESCALATED));
        }
        let sk = escalation_sk(&action.action_id);
        self.put(partition, &sk, fields, condition, values)
    }

    pub(super) fn put_head(&self, account: &Account, head: &Head) -> Result<TransactWriteItem, StoreError> {
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

    pub(super) fn put_receipt(
        &self,
        partition: &Partition,
        tables: Option<&Tables>,
        sealed: &Sealed,
        place: Place,
    ) -> Result<TransactWriteItem, StoreError> {
        let item = [
            ("account_id".to_owned(), text(partition.as_str())),
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
    pub(super) fn put_line(
        &self,
        partition: &Partition,
        seq: u64,
        line: &str,
    ) -> Result<TransactWriteItem, StoreError> {
        let receipt: receipts::receipt::Receipt =
            serde_json::from_str(line).map_err(|e| StoreError::Item {
                account: partition.to_string(),
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

    pub(super) fn put_delivery(
        &self,
        account: &Account,
        plan: &DeliveryPlan,
        sealed: &[Sealed],
        now: Timestamp,
    ) -> Result<TransactWriteItem, StoreError> {
        let record = plan.record(sealed);
        let (kept, listed) = match &record.repeat {
            Repeat::Answered | Repeat::UnderWay => (DELIVERY_KEPT_SECONDS, None),
            Repeat::TurnedAway(_) => (
                TURNED_AWAY_KEPT_SECONDS,
                Some(TurnedAwayAs::of(record.status).listed()),
            ),
        };
        let expires = now.as_second().saturating_add(kept).unsigned_abs();
        let mut fields: Item = [
            (
                "delivery".to_owned(),
                encode(&account.partition, "delivery", &record)?,
            ),
            ("expires_at".to_owned(), number(expires)),
        ]
        .into();
        if let Some(listed) = listed {
            fields.insert("lifecycle".to_owned(), text(listed));
        }
        let (condition, values) = match &account.delivery {
            None => ("attribute_not_exists(sk)", Item::new()),
            Some(read) => {
                let values = [
                    (":body".to_owned(), text(&read.body_sha256)),
                    (":receipt".to_owned(), text(&read.receipt)),
                ];
                let same = "delivery.body_sha256 = :body AND delivery.receipt = :receipt";
                (same, values.into())
            }
        };
        self.put(&delivery_partition(&plan.key), WEBHOOK, fields, condition, values)
    }
}

/// The plans by which the index finds a tenant: of what it holds, and of what is being provisioned.
pub(super) fn plans_of(tenant: &Tenant) -> BTreeSet<String> {
    let waiting = tenant.provisioning.iter().map(|saga| &saga.entitlement);
    let held = tenant.entitlements.values().chain(waiting);
    held.map(|e| sku_plan(e.sku_id.as_str(), e.plan_type.as_str()))
        .collect()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may stop at the first surprise"
)]
mod tests {
    use domain::signal::ActionId;
    use uuid::Uuid;

    use super::*;
    use crate::store::tests::store;

    fn partition() -> Partition {
        Partition::from_key("customer-1".to_owned())
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
            .put_receipt(&partition(), None, &sealed, Place::Free)
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
        for (state, marked) in [
            (ActionState::Escalated, true),
            (ActionState::Routed, true),
            (ActionState::Resolved, false),
            (ActionState::Pending, false),
        ] {
            let action = Action {
                state,
                ..Action::pending(id.clone(), "t", "", Timestamp::UNIX_EPOCH)
            };
            let write = store()
                .put_mark(&partition(), &action, "lifecycle = :escalated", Item::new())
                .unwrap();
            let put = write.put().unwrap();
            assert_eq!(put.item()["sk"], text("ESCALATION#a"));
            assert_eq!(put.item().contains_key("lifecycle"), marked);
            assert_eq!(put.condition_expression(), Some("lifecycle = :escalated"));
        }
    }
}
