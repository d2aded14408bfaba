//! Ends entitlements whose term is over and that their marketplace neither renewed nor cancelled.

use jiff::Timestamp;
use receipts::receipt::{Draft, Payload};
use uuid::Uuid;

use crate::entitlement::EventOrder;
use crate::entitlement::decide::taken_away;
use crate::tenant::{IllegalTransition, Lifecycle};
use crate::transaction::{Account, Plan};

/// Ends one of them, and tells whether there was one. Its receipt has the first id; when it was the account's last
/// entitlement, that of the decommissioning has the second. What is being provisioned for the account comes first.
///
/// # Errors
/// [`IllegalTransition`] when the tenant cannot leave now.
pub fn end_expired(
    account: &Account,
    receipt_ids: [Uuid; 2],
    now: Timestamp,
) -> Result<(Plan, bool), IllegalTransition> {
    let settled = account
        .tenant
        .as_ref()
        .filter(|tenant| tenant.lifecycle == Lifecycle::Active && tenant.provisioning.is_none());
    let over = settled.and_then(|tenant| {
        let mut held = tenant.entitlements.iter();
        held.find_map(|(id, held)| Some((tenant, id, held, held.over(now)?)))
    });
    let Some((tenant, id, held, expires_at)) = over else {
        return Ok((Plan::default(), false));
    };
    // It ended then: a purchase from after that counts.
    let after = taken_away(tenant, id, held, EventOrder::at(expires_at), now)?;
    let (entitlement_id, sku_id) = (id.as_str().to_owned(), held.sku_id.as_str().to_owned());
    let leaves = after.entitlements.is_empty().then(|| Payload::DecommissionStart {
        entitlement_id: Some(entitlement_id.clone()),
        sku_id: sku_id.clone(),
        in_flight_actions: tenant.in_flight,
    });
    let expired = Payload::EntitlementExpired {
        entitlement_id,
        sku_id,
        expires_at,
    };
    let drafts = [Some(expired), leaves].into_iter().flatten().zip(receipt_ids);
    let account_id = tenant.account_id.as_str();
    let plan = Plan {
        drafts: drafts
            .map(|(payload, receipt_id)| {
                Draft::new(receipt_id, account_id, payload, now).under(&held.policy.hash)
            })
            .collect(),
        ..Plan::tenant(Some(after))
    };
    Ok((plan, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entitlement::EXPIRY_GRACE_SECONDS;
    use crate::names::Partition;
    use crate::tenant::Tenant;
    use crate::tenant::tests::{id, tenant};

    const END: i64 = 1_000;
    const IDS: [Uuid; 2] = [Uuid::from_u128(1), Uuid::from_u128(2)];

    /// A tenant whose entitlements are named as given, each with its end.
    fn holding(held: &[(&str, Option<i64>)]) -> Tenant {
        let mut tenant = tenant();
        let (_, known) = tenant.entitlements.pop_first().unwrap();
        for (name, end) in held {
            let mut held = known.clone();
            held.expires_at = end.map(|end| Timestamp::from_second(end).unwrap());
            tenant.entitlements.insert(id(name), held);
        }
        tenant
    }

    #[track_caller]
    fn check(tenant: Tenant, second: i64, operations: &[&str], left: usize) -> Option<Tenant> {
        let account = Account {
            tenant: Some(tenant),
            ..Account::unknown(&Partition::from_key("c".to_owned()))
        };
        let now = Timestamp::from_second(second).unwrap();
        let (plan, ended) = end_expired(&account, IDS, now).unwrap();
        let found: Vec<&str> = plan
            .drafts
            .iter()
            .map(|draft| draft.payload.operation())
            .collect();
        assert_eq!((found.as_slice(), ended), (operations, !operations.is_empty()));
        let after = plan.tenant.as_ref().or(account.tenant.as_ref()).unwrap();
        assert_eq!(after.entitlements.len(), left);
        plan.tenant
    }

    #[test]
    fn what_is_over_ends_after_its_grace() {
        let over = END + EXPIRY_GRACE_SECONDS;
        check(holding(&[("a", Some(END))]), over - 1, &[], 1);
        check(holding(&[("a", None)]), over, &[], 1);
        let both = holding(&[("a", Some(END)), ("b", Some(over + 1))]);
        let one = check(both, over, &["entitlement_expired"], 1).unwrap();
        assert_eq!(one.lifecycle, Lifecycle::Active);
        let expected = ["entitlement_expired", "decommission_start"];
        let gone = check(holding(&[("a", Some(END))]), over, &expected, 0).unwrap();
        assert_eq!(gone.lifecycle, Lifecycle::Decommissioning);
        // It ended on its day, not when the sweep came: what was bought in between counts.
        let ended = EventOrder::at(Timestamp::from_second(END).unwrap());
        assert_eq!(gone.tombstones.last(&id("a")), Some(&ended));
        let mut leaving = holding(&[("a", Some(END))]);
        leaving.lifecycle = Lifecycle::Decommissioning;
        check(leaving, over, &[], 1);
    }

    #[test]
    fn signals_are_refused_from_the_end_on() {
        let tenant = holding(&[("a", Some(END))]);
        let (_, held) = tenant.entitlements.first_key_value().unwrap();
        let expired = |second| held.expired(Timestamp::from_second(second).unwrap());
        assert_eq!([expired(END - 1), expired(END)], [false, true]);
    }
}
