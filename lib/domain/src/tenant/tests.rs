use super::*;
use crate::account::PlanType;
use crate::entitlement::{EventOrder, Isolation, PolicyPin, Quota};
use crate::webhook::event::Change;

pub(crate) fn offer(plan: &str) -> Offer {
    Offer {
        sku_id: SkuId::parse("s").unwrap(),
        plan_type: PlanType::parse(plan).unwrap(),
        policy: PolicyPin {
            version: "1.0.0".to_owned(),
            hash: format!("hash-{plan}"),
        },
        quota: Quota {
            monthly_actions: 10,
            concurrent_actions: 3,
        },
        isolation: Isolation::Pool,
    }
}

pub(crate) fn event(change: Change) -> EntitlementEvent {
    EntitlementEvent {
        account_id: AccountId::parse("c").unwrap(),
        entitlement_id: None,
        product: None,
        version: None,
        effective_at: None,
        change,
    }
}

pub(crate) fn id(text: &str) -> EntitlementId {
    EntitlementId::parse(text).unwrap()
}

/// An active tenant with one entitlement, `s`, granted at second 100.
pub(crate) fn tenant() -> Tenant {
    let at = Timestamp::from_second(100).unwrap();
    let order = EventOrder::at(at);
    let mut tenant = Tenant::absent(AccountId::parse("c").unwrap(), at);
    let granted = Entitlement::granted(&offer("p"), "us-east-1", None, order, at);
    tenant.entitlements.insert(id("s"), granted);
    tenant.lifecycle = Lifecycle::Active;
    tenant.generation = 1;
    tenant.fsm_id = "q".to_owned();
    tenant.revision = 7;
    tenant
}

#[test]
fn counters_follow_claims_and_outcomes() {
    let january: Timestamp = "2026-01-31T23:59:59Z".parse().unwrap();
    let february: Timestamp = "2026-02-01T00:00:00Z".parse().unwrap();
    let three = BTreeMap::from([(id("s"), 3)]);
    let busy = tenant().claimed(&three, january, february);
    let held = &busy.entitlements[&id("s")];
    assert_eq!(
        (busy.in_flight, held.in_flight, held.month_actions, busy.revision),
        (3, 3, 3, 8)
    );
    assert_eq!(
        (
            held.concurrent_left(),
            held.monthly_left(january),
            held.monthly_left(february)
        ),
        (0, 7, 10)
    );
    assert_eq!((busy.index_state(), busy.lease_until), (BUSY, Some(february)));
    let outcome = |completed| Released {
        entitlement_id: Some(id("s")),
        completed,
    };
    let done = busy.released(&[outcome(true), outcome(true)]);
    assert_eq!(done.lease_until, Some(february));
    let done = done.released(&[outcome(false)]);
    assert_eq!(
        (
            done.in_flight,
            done.actions_completed,
            done.actions_failed,
            done.revision
        ),
        (0, 2, 1, 10)
    );
    assert_eq!((done.index_state(), done.lease_until), ("active", None));
    assert_eq!(done.entitlements[&id("s")].in_flight, 0);
    let next_month = done.claimed(&BTreeMap::from([(id("s"), 1)]), february, february);
    let held = &next_month.entitlements[&id("s")];
    assert_eq!((held.month.as_str(), held.month_actions), ("2026-02", 1));
}

/// An action of an entitlement that was cancelled meanwhile still counts for the tenant.
#[test]
fn outcomes_of_cancelled_entitlements_count() {
    let now = Timestamp::UNIX_EPOCH;
    let mut busy = tenant().claimed(&BTreeMap::from([(id("s"), 1)]), now, now);
    busy.entitlements.clear();
    let done = busy.released(&[Released {
        entitlement_id: Some(id("s")),
        completed: true,
    }]);
    assert_eq!((done.in_flight, done.actions_completed), (0, 1));
}

/// Cancelled and bought again: what runs still counts against the limit, and what was used of the month stays used.
#[test]
fn buying_again_frees_nothing() {
    let now = Timestamp::from_second(200).unwrap();
    let mut busy = tenant().claimed(&BTreeMap::from([(id("s"), 2)]), now, now);
    let held = busy.entitlements.remove(&id("s")).unwrap();
    busy.tombstones.bury(&id("s"), held.order, Some(held.usage()));
    let one = Released {
        entitlement_id: Some(id("s")),
        completed: true,
    };
    let mut again = busy.released(std::slice::from_ref(&one));
    let usage = again.tombstones.raise(&id("s"));
    let order = EventOrder::at(now);
    let granted = Entitlement::granted(&offer("p"), "r", None, order, now).with_usage(usage);
    assert_eq!((granted.in_flight, granted.month_actions), (1, 2));
    again.entitlements.insert(id("s"), granted);
    let done = again.released(&[one]);
    assert_eq!((done.in_flight, done.entitlements[&id("s")].in_flight), (0, 0));
}

#[test]
fn a_signal_selects_what_it_names_or_the_only_one() {
    let mut tenant = tenant();
    let sku = |text: &str| SkuId::parse(text).unwrap();
    let name = |tenant: &Tenant, entitlement: Option<&str>, sku_id: Option<&str>| match tenant
        .select(entitlement.map(id).as_ref(), sku_id.map(sku).as_ref())
    {
        Selected::One(id, _) => id.as_str().to_owned(),
        Selected::None => "none".to_owned(),
        Selected::Several => "several".to_owned(),
    };
    assert_eq!(name(&tenant, None, None), "s");
    assert_eq!(name(&tenant, None, Some("other")), "none");
    let mut other = tenant.entitlements[&id("s")].clone();
    tenant.entitlements.insert(id("agreement-2"), other.clone());
    assert_eq!(name(&tenant, None, None), "several");
    assert_eq!(name(&tenant, None, Some("s")), "several");
    assert_eq!(name(&tenant, Some("agreement-2"), None), "agreement-2");
    assert_eq!(name(&tenant, Some("agreement-2"), Some("other")), "none");
    other.sku_id = sku("other");
    tenant.entitlements.insert(id("agreement-2"), other);
    assert_eq!(name(&tenant, None, Some("other")), "agreement-2");
    tenant.entitlements.clear();
    assert_eq!(name(&tenant, None, None), "none");
}

#[test]
fn repinning_reaches_every_entitlement_of_the_plan_and_only_those() {
    let mut tenant = tenant();
    let mut other = tenant.entitlements[&id("s")].clone();
    other.plan_type = PlanType::parse("other").unwrap();
    tenant.entitlements.insert(id("other"), other);
    let mut newer = offer("p");
    assert_eq!(tenant.repinned(&newer), None);
    newer.policy.hash = "next".to_owned();
    newer.quota.concurrent_actions = 9;
    let repinned = tenant.repinned(&newer).unwrap();
    let pin = |name: &str| repinned.entitlements[&id(name)].policy.hash.as_str();
    assert_eq!((pin("s"), pin("other")), ("next", "hash-p"));
    assert_eq!(repinned.entitlements[&id("s")].quota.concurrent_actions, 9);
    assert_eq!(repinned.revision, tenant.revision + 1);
}

#[test]
fn a_claim_that_takes_the_last_place_says_so() {
    let now = Timestamp::from_second(200).unwrap();
    let two = tenant().claimed(&BTreeMap::from([(id("s"), 2)]), now, now);
    assert_eq!((two.full_at, two.is_full()), (None, false));
    let three = two.claimed(&BTreeMap::from([(id("s"), 1)]), now, now);
    assert_eq!((three.full_at, three.is_full()), (Some(now), true));
    let later = Timestamp::from_second(300).unwrap();
    let undone = three.claimed(&BTreeMap::new(), later, later);
    assert_eq!(undone.full_at, Some(now), "what is undone takes no new place");
}

#[test]
fn what_may_run_is_scaled_within_the_plans() {
    let scaled = |quota, limit, floor, in_flight| {
        let mut tenant = tenant();
        let held = tenant.entitlements.get_mut(&id("s")).unwrap();
        held.quota.concurrent_actions = quota;
        held.in_flight = in_flight;
        tenant.in_flight = in_flight;
        tenant.scale.limit = limit;
        tenant.scale.floor = floor;
        (tenant.in_flight_action_limit(), tenant.concurrent_left(&id("s")))
    };
    assert_eq!(scaled(3, None, None, 1), (3, 2));
    assert_eq!(scaled(100, None, None, 1), (10, 9));
    assert_eq!(scaled(100, None, Some(30), 30), (30, 0));
    assert_eq!(scaled(100, Some(40), Some(30), 50), (40, 0));
    assert_eq!(scaled(20, Some(40), None, 0), (20, 20));
    assert_eq!(scaled(20, Some(0), Some(0), 0), (1, 1));
    assert_eq!(scaled(0, None, None, 0), (0, 0));
    assert_eq!(tenant().concurrent_left(&id("other")), 0);
}

#[test]
fn what_is_taken_up_again_needs_a_place() {
    let now = Timestamp::UNIX_EPOCH;
    let mut tenant = tenant();
    tenant
        .entitlements
        .get_mut(&id("s"))
        .unwrap()
        .quota
        .concurrent_actions = 1;
    tenant.actions_failed = 1;
    let used = tenant.entitlements[&id("s")].monthly_left(now);
    let taken = tenant.taken_up(&id("s"), now).unwrap();
    assert_eq!((taken.in_flight, taken.actions_failed), (1, 0));
    assert_eq!(taken.entitlements[&id("s")].monthly_left(now), used);
    assert_eq!(taken.taken_up(&id("s"), now), None);
    assert_eq!(tenant.taken_up(&id("other"), now), None);
    let released = taken.released(&[Released {
        entitlement_id: Some(id("s")),
        completed: false,
    }]);
    assert_eq!((released.in_flight, released.actions_failed), (0, 1));
    assert_eq!(released.entitlements[&id("s")].in_flight, 0);
}

#[test]
fn a_new_generation_is_not_scaled() {
    let at = Timestamp::from_second(200).unwrap();
    let mut gone = tenant();
    gone.lifecycle = Lifecycle::Decommissioned;
    gone.scale.floor = Some(40);
    let order = EventOrder::at(at);
    let provisioning = Provisioning {
        entitlement_id: id("s"),
        entitlement: Entitlement::granted(&offer("p"), "r", None, order, at),
        event: event(Change::Suspended),
        asked: DeliveryRef {
            provider: "standard".to_owned(),
            delivery_id: "d".to_owned(),
            body_sha256: String::new(),
        },
        new_tenant: true,
        dedicated: false,
        received_at: at,
        due_since: at,
        attempts: 0,
        waited: false,
        table_attempt: 0,
        began_at: at,
        failure: None,
    };
    let again = gone.begun(provisioning, "mg", at).unwrap();
    assert_eq!((again.generation, again.scale), (2, Scale::default()));
}

/// Actions of cancelled entitlements, and those of others, take places as well.
#[test]
fn all_actions_share_the_tenants_places() {
    let mut tenant = tenant();
    let held = tenant.entitlements.get_mut(&id("s")).unwrap();
    held.quota.concurrent_actions = 8;
    let other = held.clone();
    tenant.entitlements.insert(id("other"), other);
    tenant.in_flight = 7;
    assert_eq!(
        (tenant.in_flight_action_limit(), tenant.concurrent_left(&id("s"))),
        (10, 3)
    );
    assert_eq!(tenant.pace(), Pace::of(10));
}
