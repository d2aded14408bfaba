//! Tables of (what is held, what happens): what is decided.

use super::*;
use crate::account::{AccountId, PlanType};
use crate::entitlement::PolicyPin;
use crate::tenant::Tables;
use crate::tenant::tests::{event, id, offer, tenant};
use crate::webhook::event::PlanReference;

const AROUND: Surroundings<'_> = Surroundings {
    queue_prefix: "mg",
    tenants_table: "tenants",
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn plan(plan_type: &str) -> PlanReference {
    PlanReference::Canonical {
        sku_id: SkuId::parse("s").unwrap(),
        plan_type: PlanType::parse(plan_type).unwrap(),
    }
}

fn granted() -> Change {
    Change::Granted {
        plan: plan("p"),
        region: "us-east-1".to_owned(),
        expires_at: None,
    }
}

fn changed() -> Change {
    Change::PlanChanged { plan: plan("q") }
}

fn asked(delivery_id: &str) -> DeliveryRef {
    DeliveryRef {
        provider: "standard".to_owned(),
        delivery_id: delivery_id.to_owned(),
        body_sha256: "00".to_owned(),
    }
}

/// An event about SKU `s`, effective at a second.
fn said(change: Change, second: i64) -> EntitlementEvent {
    EntitlementEvent {
        effective_at: Some(at(second)),
        ..event(change)
    }
}

/// Decides at second 1000; the plan of the event is known.
fn ask(tenant: Option<&Tenant>, event: &EntitlementEvent) -> Decision {
    let offer = match &event.change {
        Change::Granted { .. } => Some(offer("p")),
        Change::PlanChanged { .. } => Some(offer("q")),
        _ => None,
    };
    ask_with(tenant, event, offer.as_ref())
}

fn ask_with(tenant: Option<&Tenant>, event: &EntitlementEvent, offer: Option<&Offer>) -> Decision {
    let sku = SkuId::parse("s").unwrap();
    let context = EventContext {
        event,
        asked: &asked("d-1"),
        received_at: at(1_000),
        due_since: at(1_000),
        attempts: 0,
        waited: false,
        product: Some(&sku),
        offer,
    };
    decide(tenant, &context, AROUND, at(1_000))
}

fn name(decision: &Decision) -> String {
    match decision {
        Decision::Ignore { reason, .. } => format!("ignore: {reason}"),
        Decision::Refuse { step, .. } => format!("refuse {step}"),
        Decision::Defer {
            payload: Payload::EntitlementDeferred { reason, .. },
            ..
        } => format!("defer: {reason}"),
        Decision::Defer { .. } => "defer without its receipt".to_owned(),
        Decision::Busy { .. } => "busy".to_owned(),
        Decision::Resume => "resume".to_owned(),
        Decision::Begin(tenant) => {
            let saga = tenant.provisioning.as_ref().unwrap();
            format!(
                "begin g{} new={} dedicated={}",
                tenant.generation, saga.new_tenant, saga.dedicated
            )
        }
        Decision::Commit { payload, .. } => payload.operation().to_owned(),
    }
}

#[track_caller]
fn check(tenant: Option<&Tenant>, event: &EntitlementEvent, expected: &str) -> Decision {
    let decision = ask(tenant, event);
    assert!(
        name(&decision).starts_with(expected),
        "{} is not {expected}",
        name(&decision)
    );
    if let (Some(before), Some(after)) = (tenant, after(&decision)) {
        assert_eq!(after.revision, before.revision + 1, "{expected}");
    }
    decision
}

fn after(decision: &Decision) -> Option<&Tenant> {
    match decision {
        Decision::Begin(tenant) | Decision::Commit { tenant, .. } | Decision::Defer { tenant, .. } => {
            Some(tenant)
        }
        Decision::Ignore { tenant, .. } => tenant.as_deref(),
        Decision::Refuse { .. } | Decision::Busy { .. } | Decision::Resume => None,
    }
}

fn everything() -> [Change; 6] {
    [
        granted(),
        changed(),
        Change::Suspended,
        Change::Reinstated,
        Change::Renewed { expires_at: None },
        Change::Cancelled,
    ]
}

/// The table at the head of the module, row by row.
#[test]
fn each_event_in_each_situation() {
    let held = tenant();
    let mut cancelled = tenant();
    cancelled.entitlements.clear();
    let order = EventOrder::at(at(100));
    cancelled.tombstones.bury(&id("s"), order, None);
    let mut buried = cancelled.clone();
    buried.lifecycle = Lifecycle::Absent;
    let expected = [
        // nothing held, held, cancelled before (tenant alive for others' sake), cancelled and gone
        (
            "begin g1 new=true",
            "ignore: the entitlement is live",
            "entitlement_active",
            "begin g2 new=true",
        ),
        (
            "begin g1 new=true",
            "entitlement_changed",
            "entitlement_active",
            "begin g2 new=true",
        ),
        (
            "defer: no purchase",
            "entitlement_suspended",
            "defer: no purchase",
            "defer: no purchase",
        ),
        (
            "defer: no purchase",
            "ignore: it is not suspended",
            "defer: no purchase",
            "defer: no purchase",
        ),
        (
            "defer: no purchase",
            "entitlement_renewed",
            "defer: no purchase",
            "defer: no purchase",
        ),
        (
            "ignore: the entitlement is not held",
            "decommission_start",
            "ignore: the entitlement is cancelled",
            "ignore: the entitlement is cancelled",
        ),
    ];
    for (change, (none, live, dead, gone)) in everything().into_iter().zip(expected) {
        let event = said(change, 200);
        check(None, &event, none);
        check(Some(&held), &event, live);
        check(Some(&cancelled), &event, dead);
        check(Some(&buried), &event, gone);
    }
    // From before the cancellation nothing counts.
    for change in everything() {
        check(Some(&cancelled), &said(change, 50), "ignore");
    }
}

/// What is older than what was applied last changes nothing, whatever it is.
#[test]
fn late_events_are_ignored() {
    let held = tenant();
    for change in everything() {
        let decision = check(Some(&held), &said(change, 50), "ignore");
        assert_eq!(after(&decision), None);
    }
    let mut versioned = tenant();
    versioned.entitlements.get_mut(&id("s")).unwrap().order.version = Some(5);
    let mut event = said(Change::Cancelled, 900);
    event.version = Some(4);
    check(Some(&versioned), &event, "ignore: the cancellation is older");
    event.version = Some(5);
    check(Some(&versioned), &event, "ignore: the cancellation is older");
    event.version = Some(6);
    event.effective_at = Some(at(1));
    check(Some(&versioned), &event, "decommission_start");
}

#[test]
fn a_cancellation_before_the_purchase_leaves_a_tombstone() {
    let decision = check(
        None,
        &said(Change::Cancelled, 500),
        "ignore: the entitlement is not held",
    );
    let buried = after(&decision).unwrap();
    assert_eq!(buried.lifecycle, Lifecycle::Absent);
    check(
        Some(buried),
        &said(granted(), 400),
        "ignore: a purchase from before",
    );
    // What the sender's clock cannot order, arrival orders: it was bought anew.
    check(Some(buried), &said(granted(), 500), "begin g1 new=true");
    check(Some(buried), &said(granted(), 501), "begin g1 new=true");
    // Without a purchase nothing rises from the dead.
    check(Some(buried), &said(changed(), 500), "ignore: plan change of");
    check(
        Some(buried),
        &said(Change::Suspended, 500),
        "ignore: suspension of",
    );
}

/// GitHub dates everything at midnight: what happens on one day is ordered by its arrival.
#[test]
fn one_day_of_a_sender_that_dates_to_the_day() {
    const MIDNIGHT: i64 = 86_400 * 3;
    let play = |deliveries: &[(Change, Option<i64>)]| {
        let mut tenant: Option<Tenant> = None;
        let mut found = Vec::new();
        for (n, (change, effective)) in (0..).zip(deliveries) {
            let event = EntitlementEvent {
                effective_at: effective.map(at),
                ..event(change.clone())
            };
            let asked = DeliveryRef {
                provider: "github".to_owned(),
                ..asked(&format!("d-{n}"))
            };
            let now = at(MIDNIGHT + 40_000 + 60 * n);
            let (sku, offer) = (SkuId::parse("s").unwrap(), offer("p"));
            let context = EventContext {
                event: &event,
                asked: &asked,
                received_at: now,
                due_since: now,
                attempts: 0,
                waited: false,
                product: Some(&sku),
                offer: Some(&offer),
            };
            let decision = decide(tenant.as_ref(), &context, AROUND, now);
            found.push(
                name(&decision)
                    .split([' ', ':'])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            );
            tenant = after(&decision).cloned().or(tenant);
            tenant = tenant.map(|tenant| match tenant.lifecycle {
                Lifecycle::Provisioning => tenant.provisioned(None, 0, now).unwrap().0,
                Lifecycle::Decommissioning => tenant.after(TenantEvent::Archived, now).unwrap(),
                _ => tenant,
            });
        }
        found.join(" ")
    };
    let (today, yesterday) = (Some(MIDNIGHT), Some(MIDNIGHT - 86_400));
    let bought = |day| (granted(), day);
    let cancelled = |day| (Change::Cancelled, day);
    for (deliveries, expected) in [
        (
            [bought(today), cancelled(today), bought(today)],
            "begin decommission_start begin",
        ),
        // A cancellation that is dated ends a purchase that is not.
        (
            [bought(None), cancelled(today), bought(None)],
            "begin decommission_start begin",
        ),
        (
            [bought(today), cancelled(None), bought(today)],
            "begin decommission_start begin",
        ),
        // Days are still in order.
        (
            [bought(yesterday), cancelled(today), bought(yesterday)],
            "begin decommission_start ignore",
        ),
        (
            [bought(today), cancelled(yesterday), cancelled(today)],
            "begin ignore decommission_start",
        ),
    ] {
        assert_eq!(play(&deliveries), expected, "{deliveries:?}");
    }
}

/// A cancellation was lost: what was bought anew holds.
#[test]
fn bought_anew_while_it_is_thought_to_be_live() {
    let again = |plan_type: &str, second, expires_at| {
        said(
            Change::Granted {
                plan: plan(plan_type),
                region: "us-east-1".to_owned(),
                expires_at,
            },
            second,
        )
    };
    let ask = |event: &EntitlementEvent, plan: &str| ask_with(Some(&tenant()), event, Some(&offer(plan)));
    let decision = ask(&again("q", 200, Some(at(9_000))), "q");
    assert_eq!(name(&decision), "entitlement_changed");
    let held = &after(&decision).unwrap().entitlements[&id("s")];
    assert_eq!(
        (
            held.plan_type.as_str(),
            held.policy.hash.as_str(),
            held.expires_at
        ),
        ("q", "hash-q", Some(at(9_000)))
    );
    let decision = ask(&again("p", 200, Some(at(9_000))), "p");
    assert_eq!(name(&decision), "entitlement_renewed");
    let held = &after(&decision).unwrap().entitlements[&id("s")];
    assert_eq!(held.expires_at, Some(at(9_000)));
    // An agreement with an id has its plan until a change is told.
    let mut agreement = again("q", 200, None);
    agreement.entitlement_id = Some(id("s"));
    assert!(name(&ask(&agreement, "q")).starts_with("ignore"));
    // One that is older than what holds is a repeat.
    assert!(name(&ask(&again("q", 1, None), "q")).starts_with("ignore"));
}

#[test]
fn a_cancellation_that_names_nothing_is_remembered_for_everything() {
    let heard_of = |tenant: Option<&Tenant>, event: &EntitlementEvent| {
        let context = EventContext {
            event,
            asked: &asked("d"),
            received_at: at(1_000),
            due_since: at(1_000),
            attempts: 0,
            waited: false,
            product: None,
            offer: None,
        };
        decide(tenant, &context, AROUND, at(1_000))
    };
    let decision = heard_of(None, &said(Change::Cancelled, 500));
    let buried = after(&decision).unwrap();
    check(
        Some(buried),
        &said(granted(), 400),
        "ignore: a purchase from before",
    );
    assert_eq!(
        name(&heard_of(Some(&tenant()), &said(Change::Cancelled, 500))),
        "decommission_start"
    );
    let mut two = tenant();
    two.entitlements
        .insert(id("other"), two.entitlements[&id("s")].clone());
    assert_eq!(
        name(&heard_of(Some(&two), &said(Change::Cancelled, 500))),
        "refuse find_entitlement"
    );
    for change in [Change::Suspended, Change::Reinstated] {
        assert!(name(&heard_of(None, &said(change, 500))).starts_with("ignore"));
    }
    // Its version counted the changes of one agreement, and says nothing about another.
    let mut counted = said(Change::Cancelled, 500);
    counted.version = Some(7);
    let decision = heard_of(None, &counted);
    let mut first = said(granted(), 501);
    first.version = Some(1);
    first.entitlement_id = Some(id("agreement-2"));
    check(after(&decision), &first, "begin g1 new=true");
}

#[test]
fn several_entitlements_of_one_account() {
    let one = tenant();
    let mut second = said(granted(), 200);
    second.entitlement_id = Some(id("agreement-2"));
    let decision = check(Some(&one), &second, "entitlement_active");
    let two = after(&decision).unwrap().clone();
    assert_eq!(two.entitlements.len(), 2);
    check(Some(&two), &second, "ignore: the entitlement is live already");
    // Both are of one product: which one is meant must be said.
    check(
        Some(&two),
        &said(Change::Cancelled, 300),
        "refuse find_entitlement",
    );
    let mut cancel = said(Change::Cancelled, 300);
    cancel.entitlement_id = Some(id("agreement-2"));
    let decision = check(Some(&two), &cancel, "entitlement_cancelled");
    let left = after(&decision).unwrap();
    assert_eq!((left.lifecycle, left.entitlements.len()), (Lifecycle::Active, 1));
    check(
        Some(left),
        &cancel,
        "ignore: the entitlement is cancelled already",
    );
    let decision = check(Some(left), &said(Change::Cancelled, 300), "decommission_start");
    let gone = after(&decision).unwrap();
    assert_eq!(
        (gone.lifecycle, gone.entitlements.len()),
        (Lifecycle::Decommissioning, 0)
    );
}

/// An agreement with an id of its own is found by its product as long as it is the only one.
#[test]
fn an_agreement_is_found_by_its_product() {
    let mut one = tenant();
    let held = one.entitlements.remove(&id("s")).unwrap();
    one.entitlements.insert(id("agreement-1"), held);
    check(Some(&one), &said(Change::Suspended, 300), "entitlement_suspended");
    // A purchase without an id is another agreement.
    check(Some(&one), &said(granted(), 300), "entitlement_active");
}

#[test]
fn too_many_entitlements_are_refused() {
    let mut full = tenant();
    for n in 1..MAX_ENTITLEMENTS {
        full.entitlements
            .insert(id(&format!("e-{n}")), full.entitlements[&id("s")].clone());
    }
    let mut more = said(granted(), 200);
    more.entitlement_id = Some(id("one-more"));
    check(Some(&full), &more, "refuse tenant_record");
}

#[test]
fn unknown_plans_are_refused_where_a_plan_is_needed() {
    let refused = |tenant: Option<&Tenant>, change| name(&ask_with(tenant, &said(change, 200), None));
    assert_eq!(refused(None, granted()), "refuse load_policy");
    assert_eq!(refused(Some(&tenant()), changed()), "refuse load_policy");
    // Of a purchase that changes nothing the policy does not matter.
    assert!(refused(Some(&tenant()), granted()).starts_with("ignore"));
    let other_sku = Offer {
        sku_id: SkuId::parse("t").unwrap(),
        ..offer("q")
    };
    let decision = ask_with(Some(&tenant()), &said(changed(), 200), Some(&other_sku));
    assert_eq!(name(&decision), "refuse load_policy");
}

#[test]
fn a_plan_change_re_pins_at_once_and_keeps_what_was_used() {
    let now = at(150);
    let busy = tenant().claimed(&std::collections::BTreeMap::from([(id("s"), 2)]), now, now);
    let decision = check(Some(&busy), &said(changed(), 200), "entitlement_changed");
    let held = &after(&decision).unwrap().entitlements[&id("s")];
    let PolicyPin { hash, .. } = &held.policy;
    assert_eq!(
        (
            hash.as_str(),
            held.plan_type.as_str(),
            held.in_flight,
            held.month_actions
        ),
        ("hash-q", "q", 2, 2)
    );
    let Decision::Commit {
        policy_hash, payload, ..
    } = &decision
    else {
        panic!()
    };
    assert_eq!(policy_hash.as_deref(), Some("hash-q"));
    let Payload::EntitlementChanged {
        previous_plan_type,
        plan_type,
        ..
    } = payload
    else {
        panic!()
    };
    assert_eq!((previous_plan_type.as_str(), plan_type.as_str()), ("p", "q"));
    check(
        after(&decision),
        &said(changed(), 300),
        "ignore: the entitlement has this plan already",
    );
}

#[test]
fn suspended_and_reinstated() {
    let decision = check(
        Some(&tenant()),
        &said(Change::Suspended, 200),
        "entitlement_suspended",
    );
    let suspended = after(&decision).unwrap();
    assert_eq!(suspended.lifecycle, Lifecycle::Active);
    check(
        Some(suspended),
        &said(Change::Suspended, 300),
        "ignore: it is suspended already",
    );
    // Another plan does not lift it.
    let decision = check(Some(suspended), &said(changed(), 300), "entitlement_changed");
    let suspended = after(&decision).unwrap();
    assert_eq!(suspended.entitlements[&id("s")].standing, Standing::Suspended);
    let decision = check(
        Some(suspended),
        &said(Change::Reinstated, 300),
        "entitlement_reinstated",
    );
    assert_eq!(
        after(&decision).unwrap().entitlements[&id("s")].standing,
        Standing::Active
    );
    check(
        Some(suspended),
        &said(Change::Cancelled, 300),
        "decommission_start",
    );
}

#[test]
fn what_takes_effect_later_waits() {
    let decision = check(
        Some(&tenant()),
        &said(Change::Cancelled, 1_301),
        "defer: the cancellation takes effect later",
    );
    let waiting = after(&decision).unwrap();
    assert_eq!(
        (waiting.deferred[0].due_at, waiting.lifecycle),
        (at(1_301), Lifecycle::Active)
    );
    let Decision::Defer {
        payload: Payload::EntitlementDeferred { due_at, event, .. },
        ..
    } = &decision
    else {
        panic!()
    };
    assert_eq!((*due_at, event.as_str()), (Some(at(1_301)), "cancellation"));
    // Within the clocks' tolerance it is now.
    check(
        Some(&tenant()),
        &said(Change::Cancelled, 1_300),
        "decommission_start",
    );
}

#[test]
fn between_two_states_events_wait_in_line() {
    let Decision::Begin(provisioning) = ask(None, &said(granted(), 200)) else {
        panic!()
    };
    // The delivery that began it goes on with it; another one waits.
    assert_eq!(name(&ask(Some(&provisioning), &said(granted(), 200))), "resume");
    for change in everything().into_iter().skip(1) {
        let event = said(change, 300);
        assert!(
            name(&ask(Some(&provisioning), &event)).starts_with("defer: something is"),
            "{event:?}"
        );
    }
    let Decision::Commit { tenant: leaving, .. } = ask(Some(&tenant()), &said(Change::Cancelled, 200)) else {
        panic!()
    };
    check(
        Some(&leaving),
        &said(granted(), 300),
        "defer: what the account had",
    );
    check(
        Some(&leaving),
        &said(granted(), 199),
        "ignore: a purchase from before",
    );
    check(
        Some(&leaving),
        &said(Change::Cancelled, 300),
        "ignore: the entitlement is cancelled already",
    );
    let mut full = *provisioning;
    while full.deferred.len() < MAX_DEFERRED {
        let decision = ask(Some(&full), &said(Change::Suspended, 300));
        full = after(&decision).unwrap().clone();
    }
    check(Some(&full), &said(Change::Suspended, 300), "busy");
}

#[test]
fn plans_with_tables_of_their_own() {
    let dedicated = |plan| Offer {
        isolation: Isolation::Dedicated,
        ..offer(plan)
    };
    let begun = ask_with(None, &said(granted(), 200), Some(&dedicated("p")));
    assert_eq!(name(&begun), "begin g1 new=true dedicated=true");
    let begun = ask_with(Some(&tenant()), &said(changed(), 200), Some(&dedicated("q")));
    assert_eq!(name(&begun), "begin g1 new=false dedicated=true");
    // While tables are made for the change, everything else about the entitlement waits, and it stays as it is.
    let under_way = after(&begun).unwrap();
    assert_eq!(under_way.entitlements[&id("s")].plan_type.as_str(), "p");
    check(
        Some(under_way),
        &said(Change::Cancelled, 300),
        "defer: something is",
    );
    let (provisioned, _) = under_way.provisioned(None, 7, at(1_000)).unwrap();
    assert_eq!(provisioned.tables, Some(Tables::of_queue("q", 1, 7)));
    assert_eq!(provisioned.entitlements[&id("s")].plan_type.as_str(), "q");
    // A tenant that has its tables needs nothing more.
    let mut other = said(granted(), 300);
    other.entitlement_id = Some(id("agreement-2"));
    let granted = ask_with(Some(&provisioned), &other, Some(&dedicated("p")));
    assert_eq!(name(&granted), "entitlement_active");
}

#[test]
fn a_failed_saga_is_undone_and_the_next_one_has_names_of_its_own() {
    let Decision::Begin(begun) = ask(None, &said(granted(), 200)) else {
        panic!()
    };
    assert_eq!((begun.lifecycle, begun.generation), (Lifecycle::Provisioning, 1));
    assert_eq!(begun.undone(at(1)), None);
    let failure = crate::provisioning::Failure {
        step: crate::provisioning::Step::Mapping,
        reason: "r".to_owned(),
        lasting: false,
        undone: Vec::new(),
    };
    let failing = begun.failed(failure.clone()).unwrap();
    assert_eq!(failing.failed(failure), None, "once");
    assert_eq!(
        failing.provisioned(None, 0, at(1)),
        None,
        "no way forward any more"
    );
    let (undone, saga, failure) = failing.undone(at(1)).unwrap();
    assert_eq!(
        (undone.lifecycle, undone.provisioning.is_none()),
        (Lifecycle::Absent, true)
    );
    assert_eq!(
        (saga.entitlement_id.as_str(), failure.step.name()),
        ("s", "mapping")
    );
    let Decision::Begin(again) = ask(Some(&undone), &said(granted(), 200)) else {
        panic!()
    };
    assert_eq!(again.generation, 2);
    assert_ne!(again.fsm_id, begun.fsm_id);
}

#[test]
fn account_ids_reach_the_tenant() {
    let mut event = said(granted(), 200);
    event.account_id = AccountId::parse("ünï _system/..").unwrap();
    let Decision::Begin(begun) = ask(None, &event) else {
        panic!()
    };
    assert_eq!(begun.account_id, event.account_id);
}

/// A product that is named and not known is not taken for the account's only entitlement, unless something is taken away:
/// that needs no policy.
#[test]
fn what_is_named_and_not_known_is_not_guessed() {
    let mut two = tenant();
    two.entitlements
        .insert(id("other"), two.entitlements[&id("s")].clone());
    let ask = |tenant: Option<&Tenant>, change: Change| {
        let mut event = said(change, 500);
        event.product = Some(crate::webhook::event::ProductReference::Plan(
            PlanReference::Provider {
                provider: "github".to_owned(),
                plan_id: "9".to_owned(),
            },
        ));
        let context = EventContext {
            event: &event,
            asked: &asked("d"),
            received_at: at(1_000),
            due_since: at(1_000),
            attempts: 0,
            waited: false,
            product: None,
            offer: None,
        };
        name(&decide(tenant, &context, AROUND, at(1_000)))
    };
    let one = tenant();
    for (change, of_one, of_two, of_none) in [
        (
            Change::Cancelled,
            "decommission_start",
            "refuse find_entitlement",
            "ignore: the account holds no",
        ),
        (
            Change::Suspended,
            "entitlement_suspended",
            "refuse find_entitlement",
            "ignore: suspension of an account",
        ),
        (
            Change::Reinstated,
            "refuse load_policy",
            "refuse load_policy",
            "refuse load_policy",
        ),
        (
            Change::Renewed { expires_at: None },
            "refuse load_policy",
            "refuse load_policy",
            "refuse load_policy",
        ),
    ] {
        for (tenant, expected) in [(Some(&one), of_one), (Some(&two), of_two), (None, of_none)] {
            let found = ask(tenant, change.clone());
            assert!(found.starts_with(expected), "{found} is not {expected}");
        }
    }
}

/// Everything an account is told, in every order: each event with its version, and what waits is tried again whenever
/// something changed. What is held in the end is always the same.
#[test]
fn the_order_of_arrival_does_not_matter() {
    let scripts: [(Vec<Change>, &str); 4] = [
        (
            vec![
                granted(),
                changed(),
                Change::Suspended,
                Change::Reinstated,
                Change::Renewed { expires_at: None },
            ],
            "q active",
        ),
        (vec![granted(), Change::Suspended, Change::Cancelled], "nothing"),
        (vec![granted(), Change::Suspended, changed()], "q suspended"),
        (
            vec![
                granted(),
                Change::Cancelled,
                granted(),
                changed(),
                Change::Suspended,
            ],
            "q suspended",
        ),
    ];
    for (script, expected) in scripts {
        let events: Vec<(u64, EntitlementEvent)> = (1..)
            .zip(script)
            .map(|(version, change)| {
                let mut event = event(change);
                event.version = Some(version);
                (version, event)
            })
            .collect();
        for order in permutations(events.len()) {
            let mut tenant = None;
            for place in &order {
                let (version, event) = &events[*place];
                tenant = settle(tenant, event, &asked(&format!("d-{version}")), false);
                for _ in 0..events.len() {
                    let mut waiting = tenant.iter().flat_map(|t| t.deferred.clone()).collect::<Vec<_>>();
                    waiting.sort_by_key(|waiting| waiting.event.version);
                    for waiting in waiting {
                        tenant = settle(tenant, &waiting.event, &waiting.asked, true);
                    }
                }
            }
            let held = tenant.as_ref().and_then(|t| t.entitlements.get(&id("s")));
            let found = held.map_or("nothing".to_owned(), |held| {
                format!("{} {}", held.plan_type, held.standing.name())
            });
            assert_eq!(found, expected, "{order:?}");
        }
    }
}

/// The tenant after an event, once all that it makes due is done.
fn settle(
    tenant: Option<Tenant>,
    event: &EntitlementEvent,
    asked: &DeliveryRef,
    waited: bool,
) -> Option<Tenant> {
    let before = match waited {
        true => Some(
            tenant
                .as_ref()
                .and_then(|tenant| tenant.without_deferred(asked))?
                .1,
        ),
        false => tenant.clone(),
    };
    let sku = SkuId::parse("s").unwrap();
    let plan = if matches!(event.change, Change::PlanChanged { .. }) {
        "q"
    } else {
        "p"
    };
    let offer = offer(plan);
    let context = EventContext {
        event,
        asked,
        received_at: at(1_000),
        due_since: at(1_000),
        attempts: 0,
        waited,
        product: Some(&sku),
        offer: Some(&offer),
    };
    match decide(before.as_ref(), &context, AROUND, at(1_000)) {
        Decision::Begin(begun) => Some(begun.provisioned(None, 0, at(1_000)).unwrap().0),
        Decision::Commit { tenant, .. } if tenant.lifecycle == Lifecycle::Decommissioning => {
            Some(tenant.after(TenantEvent::Archived, at(1_000)).unwrap())
        }
        Decision::Commit { tenant, .. } => Some(*tenant),
        Decision::Defer { .. } if waited => tenant,
        Decision::Defer { tenant, .. } => Some(*tenant),
        Decision::Ignore {
            tenant: Some(next), ..
        } => Some(*next),
        Decision::Ignore { tenant: None, .. } => before,
        other => panic!("{event:?}: {other:?}"),
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for n in 0..count {
        all = all
            .into_iter()
            .flat_map(|order: Vec<usize>| {
                (0..=order.len()).map(move |place| {
                    let mut longer = order.clone();
                    longer.insert(place, n);
                    longer
                })
            })
            .collect();
    }
    all
}
