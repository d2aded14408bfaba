//! A test for each row of the table, and what holds whatever happens.

use proptest::prelude::*;

use super::*;
use crate::tenant::LastClaim;
use crate::tenant::tests::{id, tenant};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn costs(per_action: &str, budget: &str) -> Costs {
    Costs {
        per_action: Usd::parse(per_action).unwrap(),
        budget: Usd::parse(budget).unwrap(),
    }
}

fn usual() -> Costs {
    costs("1.0950", "100")
}

/// A tenant whose plan allows so much, and whose places were all taken a moment ago, whenever that is.
fn allowed(quota: u64) -> Tenant {
    let mut tenant = tenant();
    tenant.full_at = Some(at(1_000_000));
    tenant
        .entitlements
        .get_mut(&id("s"))
        .unwrap()
        .quota
        .concurrent_actions = quota;
    tenant
}

fn scaled(quota: u64, scale: Scale) -> Tenant {
    Tenant {
        scale,
        ..allowed(quota)
    }
}

fn waiting(visible: u64) -> Queue {
    Queue {
        visible,
        ..Queue::default()
    }
}

fn on_trial(limit: u64, from: u64, lag: u64) -> Scale {
    Scale {
        limit: Some(limit),
        trial: Some(Trial { from, lag, at: at(0) }),
        ..Scale::default()
    }
}

/// The decision as `verdict previous→new cost: check`, beside the scale it leaves.
fn told(tenant: &Tenant, lag: u64, costs: &Costs, second: i64) -> (String, Scale) {
    match decide(tenant, waiting(lag), costs, &Patience::default(), at(second)) {
        None => ("nothing".to_owned(), tenant.scale.clone()),
        Some(decision) => (text(&decision), decision.scale),
    }
}

fn text(decision: &Decision) -> String {
    let said = |kind: &str, scaling: &Scaling| {
        format!(
            "{} {kind} {}→{} {}: {}",
            decision.verdict.name(),
            scaling.concurrency.previous,
            scaling.concurrency.new,
            f64::from(scaling.cost_delta_usd),
            scaling.quota_check
        )
    };
    match &decision.payload {
        None => decision.verdict.name().to_owned(),
        Some(Payload::GovernorScaled(scaling)) => said("governor_scaled", scaling),
        Some(Payload::QuotaExceeded(scaling)) => said("quota_exceeded", scaling),
        Some(Payload::ScaleReverted(scaling)) => said("scale_reverted", scaling),
        Some(other) => panic!("{other:?}"),
    }
}

#[track_caller]
fn check(tenant: &Tenant, lag: u64, second: i64, expected: &str) -> Scale {
    let (found, scale) = told(tenant, lag, &usual(), second);
    assert_eq!(found, expected);
    scale
}

#[test]
fn row_1_tenants_that_do_not_run_are_left_alone() {
    for lifecycle in Lifecycle::ALL {
        let tenant = Tenant {
            lifecycle,
            ..allowed(100)
        };
        let raised = told(&tenant, 50, &usual(), 0).0 != "nothing";
        assert_eq!(raised, lifecycle == Lifecycle::Active, "{lifecycle:?}");
    }
    let mut suspended = allowed(100);
    let held = suspended.entitlements.get_mut(&id("s")).unwrap();
    held.standing = Standing::Suspended;
    let other = held.clone();
    check(&suspended, 50, 0, "nothing");
    suspended.entitlements.insert(id("other"), other);
    check(&suspended, 50, 0, "nothing");
    suspended.entitlements.get_mut(&id("other")).unwrap().standing = Standing::Active;
    assert!(told(&suspended, 50, &usual(), 0).0.starts_with("raised"));
}

#[test]
fn row_2_a_trial_has_its_minute() {
    check(&scaled(100, on_trial(20, 10, 15)), 500, 59, "nothing");
}

#[test]
fn row_3_a_raise_that_made_it_worse_is_taken_back_once() {
    let trial = scaled(100, on_trial(40, 20, 15));
    let expected = "reverted scale_reverted 40→20 -21.9: 16 signals wait, 15 did before the raise";
    let back = check(&trial, 16, 60, expected);
    assert_eq!(
        (back.limit, &back.trial, back.rest_until),
        (Some(20), &None, Some(at(660)))
    );
    check(&scaled(100, back), 500, 61, "nothing");
    let first = check(
        &scaled(100, on_trial(20, 10, 15)),
        16,
        60,
        "reverted scale_reverted 20→10 -10.95: 16 signals wait, 15 did before the raise",
    );
    assert_eq!(first.limit, None);
}

#[test]
fn row_4_a_raise_that_did_no_harm_stays() {
    let stays = check(&scaled(100, on_trial(20, 10, 15)), 9, 60, "confirmed");
    assert_eq!((stays.limit, &stays.trial), (Some(20), &None));
    // As many as before is not more; and still too many, so it goes on.
    let expected = "raised governor_scaled 20→40 21.9: within quota: 40 of 100";
    check(&scaled(100, on_trial(20, 10, 15)), 15, 60, expected);
    // The plan shrank meanwhile: there is nothing to take back, and what is left is all there is.
    let expected = "exceeded quota_exceeded 8→8 0: 99 signals wait, the plans allow 8 at one time";
    let shrunk = check(&scaled(8, on_trial(20, 10, 15)), 99, 60, expected);
    assert_eq!(shrunk.trial, None);
}

#[test]
fn row_5_after_a_raise_in_vain_there_is_none_for_ten_minutes() {
    let rests = Scale {
        rest_until: Some(at(600)),
        ..Scale::default()
    };
    check(&scaled(100, rests.clone()), 50, 599, "nothing");
    let expected = "raised governor_scaled 10→20 10.95: within quota: 20 of 100";
    assert_eq!(check(&scaled(100, rests), 50, 600, expected).rest_until, None);
}

#[test]
fn row_6_a_raise_doubles_as_far_as_plans_and_budget_go() {
    check(&allowed(100), 10, 0, "nothing");
    let expected = "raised governor_scaled 10→20 10.95: within quota: 20 of 100";
    let raised = check(&allowed(100), 11, 0, expected);
    let trial = Trial {
        from: 10,
        lag: 11,
        at: at(0),
    };
    assert_eq!((raised.limit, raised.trial), (Some(20), Some(trial)));
    check(
        &allowed(13),
        11,
        0,
        "raised governor_scaled 10→13 3.285: within quota: 13 of 13",
    );
    let (found, raised) = told(&allowed(100), 11, &costs("1.0950", "5"), 0);
    let expected = "raised governor_scaled 10→14 4.38: within quota: 14 of 100, 5.00 USD a month afford 14";
    assert_eq!((found.as_str(), raised.limit), (expected, Some(14)));
    let (found, _) = told(&allowed(100), 11, &costs("0", "0"), 0);
    assert_eq!(found, "raised governor_scaled 10→20 0: within quota: 20 of 100");
}

#[test]
fn row_7_that_it_goes_no_further_is_told_once() {
    let expected = "exceeded quota_exceeded 10→10 0: 30 signals wait, the plans allow 10 at one time";
    let told_once = check(&allowed(10), 30, 0, expected);
    assert_eq!(told_once.exceeded, Some(10));
    check(&scaled(10, told_once.clone()), 30, 60, "nothing");
    // Fewer that wait are no end of it, nor do they make it anew.
    check(&scaled(10, told_once.clone()), 1, 90, "nothing");
    // Row 12: the episode ends, and the next one is told again.
    let over = check(&scaled(10, told_once.clone()), 0, 120, "noted");
    check(&scaled(10, over), 30, 180, expected);
    // Another limit is another matter, and a larger plan is used.
    let smaller = "exceeded quota_exceeded 9→9 0: 30 signals wait, the plans allow 9 at one time";
    check(&scaled(9, told_once.clone()), 30, 60, smaller);
    let larger = "raised governor_scaled 10→11 1.095: within quota: 11 of 11";
    check(&scaled(11, told_once), 30, 60, larger);
}

#[test]
fn row_8_the_plans_come_before_the_budget() {
    let (found, _) = told(&allowed(10), 11, &costs("1", "0"), 0);
    assert_eq!(
        found,
        "exceeded quota_exceeded 10→10 0: 11 signals wait, the plans allow 10 at one time"
    );
}

#[test]
fn row_9_the_budget_is_a_limit_too() {
    let (found, scale) = told(&allowed(100), 11, &costs("1.0950", "1"), 0);
    assert_eq!(
        found,
        "exceeded quota_exceeded 10→10 0: 11 signals wait, 1.00 USD a month afford 10"
    );
    let (found, _) = told(&scaled(100, scale), 11, &costs("1.0950", "1"), 60);
    assert_eq!(found, "nothing");
}

#[test]
fn rows_10_to_12_time_without_work_ends_a_raise() {
    let high = Scale {
        limit: Some(40),
        ..Scale::default()
    };
    let quiet = check(&scaled(100, high.clone()), 0, 0, "noted");
    check(&scaled(100, quiet.clone()), 0, 299, "nothing");
    let since = at(0);
    let expected = format!("lowered governor_scaled 40→10 -32.85: nothing waits or runs since {since}");
    assert_eq!(
        check(&scaled(100, quiet.clone()), 0, 300, &expected),
        Scale::default()
    );
    // A signal waits, or an action ended meanwhile: it begins again.
    let busy = check(&scaled(100, quiet.clone()), 1, 300, "noted");
    assert_eq!(busy, high);
    let thin = Tenant {
        in_flight: 20,
        ..scaled(100, quiet.clone())
    };
    // Work that half the limit would do as well, for half an hour.
    let half = format!(
        "lowered governor_scaled 40→20 -21.9: nothing waits and half the places are free since {since}"
    );
    assert_eq!(check(&thin, 0, 1800, &half).limit, Some(20));
    let more = Tenant {
        in_flight: 21,
        ..thin
    };
    assert_eq!(check(&more, 0, 1800, "noted").quiet_since, None);
    let interrupted = Tenant {
        actions_completed: 1,
        ..scaled(100, quiet.clone())
    };
    let again = check(&interrupted, 0, 300, "noted");
    assert_eq!(again.idle.unwrap().since, at(300));
    let running = Tenant {
        in_flight: 1,
        ..scaled(100, quiet)
    };
    assert_eq!(check(&running, 0, 300, "noted").idle, None);
    // Back to the base that an operator set, and no further than the plan.
    let set = Scale {
        floor: Some(30),
        ..high
    };
    let patience = Patience { trial: 0, idle: 0 };
    let lowered = |quota| {
        decide(
            &scaled(quota, set.clone()),
            waiting(0),
            &usual(),
            &patience,
            at(0),
        )
    };
    assert!(text(&lowered(100).unwrap()).starts_with("lowered governor_scaled 40→30 -10.95"));
    // What the plan keeps from counting is forgotten, and on no record: nothing changes by it.
    let forgotten = lowered(30).unwrap();
    assert_eq!((forgotten.payload, forgotten.scale.limit), (None, None));
}

#[test]
fn row_13_what_is_as_it_should_be_stays() {
    check(&allowed(100), 0, 0, "nothing");
    check(&allowed(5), 10, 0, "nothing");
}

#[test]
fn messages_in_work_do_not_wait() {
    let queue = |visible, hidden, delayed| Queue {
        visible,
        hidden,
        delayed,
    };
    assert_eq!(queue(3, 20, 4).lag(20), 7);
    assert_eq!(queue(3, 25, 4).lag(20), 12);
    assert_eq!(queue(3, 0, 4).lag(20), 7);
    assert_eq!(queue(u64::MAX, 99, 1).lag(20), u64::MAX);
}

#[test]
fn a_backlog_says_what_it_waits_for_and_since_when() {
    let told = |tenant: &Tenant, lag| {
        let seen = backlog(tenant, waiting(lag), at(100));
        (seen.waits_for, seen.oldest_age_seconds)
    };
    let mut tenant = allowed(100);
    tenant.full_at = None;
    assert_eq!(told(&tenant, 0), (None, None));
    assert_eq!(
        told(&tenant, 1),
        (Some(WaitsFor::Poll), None),
        "no place was ever taken"
    );
    tenant.in_flight = 10;
    assert_eq!(told(&tenant, 1).0, Some(WaitsFor::Place));
    tenant.in_flight = 9;
    tenant.full_at = Some(at(41));
    tenant.last_claim = Some(LastClaim {
        at: at(95),
        sent_at: at(30),
    });
    assert_eq!(told(&tenant, 1), (Some(WaitsFor::Place), Some(70)));
    tenant.full_at = Some(at(40));
    assert_eq!(
        told(&tenant, 1).0,
        Some(WaitsFor::Poll),
        "a minute with free places"
    );
    assert_eq!(told(&tenant, 0), (None, None));
    let seen = backlog(&tenant, waiting(3), at(100));
    assert_eq!((seen.lag, seen.places_in_use, seen.places), (3, 9, 10));
}

/// Governors died with all places taken, and nobody polls the signals that would free them.
#[test]
fn places_of_dead_governors_wait_for_a_poll() {
    let mut tenant = allowed(100);
    tenant.full_at = Some(at(0));
    tenant.in_flight = 10;
    tenant.lease_until = Some(at(20));
    let told = |now| backlog(&tenant, waiting(11), at(now));
    assert_eq!(told(79).waits_for, Some(WaitsFor::Place));
    assert_eq!(told(80).waits_for, Some(WaitsFor::Poll));
    assert!(told(80).is_unpolled() && !told(79).is_unpolled());
    assert!(!backlog(&tenant, waiting(10), at(80)).is_unpolled());
    tenant.scale.floor = Some(40);
    assert!(!backlog(&tenant, waiting(40), at(80)).is_unpolled());
    assert!(backlog(&tenant, waiting(41), at(80)).is_unpolled());
}

#[test]
fn row_5b_more_places_do_not_help_signals_that_wait_for_a_poll() {
    let mut tenant = allowed(100);
    tenant.full_at = None;
    check(&tenant, 11, 0, "nothing");
    check(&tenant, 1_000_000, 0, "nothing");
    // Also where there would be none.
    let mut tenant = allowed(5);
    tenant.full_at = None;
    check(&tenant, 11, 0, "nothing");
    // The last place was taken a minute ago, and just less than that.
    let mut tenant = allowed(100);
    tenant.full_at = Some(at(0));
    check(&tenant, 11, 60, "nothing");
    let expected = "raised governor_scaled 10→20 10.95: within quota: 20 of 100";
    check(&tenant, 11, 59, expected);
}

#[test]
fn row_5b_more_places_do_not_help_signals_whose_entitlement_is_full() {
    let mut tenant = allowed(100);
    tenant.full_at = None;
    let told = |tenant: &Tenant, now| backlog(tenant, waiting(11), at(now)).waits_for;
    let (narrow, mut held) = tenant.entitlements.pop_first().unwrap();
    let another = id("another");
    tenant.entitlements.insert(another, held.clone());
    held.quota.concurrent_actions = 5;
    tenant.entitlements.insert(narrow.clone(), held.claimed(5, at(0)));
    tenant.in_flight = 5;
    assert_eq!(told(&tenant, 1_000), Some(WaitsFor::Entitlement));
    tenant.entitlements.get_mut(&narrow).unwrap().in_flight = 4;
    assert_eq!(told(&tenant, 59), Some(WaitsFor::Entitlement));
    assert_eq!(told(&tenant, 60), Some(WaitsFor::Poll));
}

#[test]
fn row_5b_a_trial_is_judged_whatever_signals_wait_for() {
    let mut trial = scaled(100, on_trial(20, 10, 15));
    trial.full_at = None;
    check(&trial, 500, 59, "nothing");
    let expected = "reverted scale_reverted 20→10 -10.95: 16 signals wait, 15 did before the raise";
    check(&trial, 16, 60, expected);
    // It stays, and there is no other behind it.
    let stays = check(&trial, 15, 60, "confirmed");
    assert_eq!((stays.limit, stays.trial), (Some(20), None));
}

#[test]
fn an_operator_sets_the_base() {
    let told = |tenant: &Tenant, wanted, costs: &Costs| match set(tenant, wanted, costs) {
        None => "nothing".to_owned(),
        Some(decision) => format!("{} {:?}", text(&decision), decision.scale.floor),
    };
    let tenant = allowed(100);
    assert_eq!(
        told(&tenant, 30, &usual()),
        "set governor_scaled 10→30 21.9: within quota: 30 of 100 Some(30)"
    );
    assert_eq!(
        told(&tenant, 4, &usual()),
        "set governor_scaled 10→4 -6.57: within quota: 4 of 100 Some(4)"
    );
    assert_eq!(
        told(&tenant, 101, &usual()),
        "exceeded quota_exceeded 10→10 0: 101 at one time are asked for, the plans allow 100 None"
    );
    assert_eq!(
        told(&tenant, 15, &costs("1.0950", "5.00")),
        "exceeded quota_exceeded 10→10 0: 15 at one time are asked for, 5.00 USD a month afford 14 None"
    );
    let set = set(&scaled(100, on_trial(40, 20, 15)), 20, &usual()).unwrap();
    assert_eq!((set.scale.limit, &set.scale.trial), (None, &None));
    assert_eq!(told(&scaled(100, set.scale), 20, &usual()), "nothing");
}

#[test]
fn amounts() {
    for (amount, shown) in [
        ("0", "0.00"),
        ("1.0950", "1.095"),
        ("1.095", "1.095"),
        ("100", "100.00"),
        ("0.5", "0.50"),
        ("99999999.9999", "99999999.9999"),
    ] {
        let parsed = Usd::parse(amount).unwrap();
        assert_eq!(Usd::parse(&parsed.to_string()), Ok(parsed));
        let expected = if shown == "1.095" { "1.0950" } else { shown };
        assert_eq!(parsed.to_string(), expected);
    }
    for wrong in [
        "",
        ".",
        "1.",
        ".5",
        "-1",
        "+1",
        "1e3",
        "1.00001",
        "100000000",
        "1 ",
        "١",
        "99999999999999999999",
    ] {
        assert_eq!(Usd::parse(wrong), Err(AmountError), "{wrong:?}");
    }
}

#[test]
fn cost_differences_stay_in_range() {
    let dear = costs("99999999.9999", "99999999.9999");
    assert_eq!(dear.of_change(0, u64::MAX).ten_thousandths(), 999_999_999_999);
    assert_eq!(dear.of_change(u64::MAX, 0).ten_thousandths(), -999_999_999_999);
    assert_eq!(dear.affordable(), BASE_LIMIT + 1);
    assert_eq!(
        costs("0.0001", "99999999.9999").affordable(),
        BASE_LIMIT + 999_999_999_999
    );
}

/// What may happen to a tenant between two looks.
#[derive(Debug, Clone)]
enum Happens {
    Waits(u64),
    WaitsForPoll(u64),
    Idles,
    Quota(u64),
    Asked(u64),
}

fn happens() -> impl Strategy<Value = (i64, Happens)> {
    let what = prop_oneof![
        4 => (0u64..60).prop_map(Happens::Waits),
        1 => (1u64..60).prop_map(Happens::WaitsForPoll),
        2 => Just(Happens::Idles),
        1 => (1u64..200).prop_map(Happens::Quota),
        1 => (1u64..300).prop_map(Happens::Asked),
    ];
    (1i64..200, what)
}

proptest! {
    #[test]
    fn limits_hold_whatever_happens(
        quota in 1u64..200,
        per_action in 0u64..30_000,
        budget in 0u64..2_000_000,
        story in proptest::collection::vec(happens(), 1..80),
    ) {
        let costs = Costs { per_action: Usd(per_action), budget: Usd(budget) };
        let mut tenant = allowed(quota);
        let (mut second, mut lag) = (0, 0);
        let (mut trials, mut reverted_at) = (0, None);
        // The limit that is on record as exceeded, as long as its episode lasts.
        let mut episode = None;
        for (pause, event) in story {
            second += pause;
            let now = at(second);
            let before = tenant.in_flight_action_limit();
            let (mut asked, mut unpolled) = (false, false);
            let decision = match event {
                Happens::Quota(quota) => {
                    tenant.entitlements.get_mut(&id("s")).unwrap().quota.concurrent_actions = quota;
                    None
                }
                Happens::Asked(wanted) => {
                    asked = true;
                    set(&tenant, wanted, &costs)
                }
                Happens::Waits(_) | Happens::WaitsForPoll(_) | Happens::Idles => {
                    (lag, unpolled) = match event {
                        Happens::Waits(n) => (n, false),
                        Happens::WaitsForPoll(n) => (n, true),
                        _ => (0, false),
                    };
                    tenant.full_at = (!unpolled).then_some(now);
                    decide(&tenant, waiting(lag), &costs, &Patience::default(), now)
                }
            };
            if lag == 0 || episode.is_some_and(|told| told != before) {
                episode = None;
            }
            if let Some(decision) = decision {
                let changed = decision.scale != tenant.scale;
                prop_assert!(changed || asked, "a write that changes nothing");
                tenant.scale = decision.scale;
                let after = tenant.in_flight_action_limit();
                if after > before {
                    prop_assert!(after <= costs.affordable());
                    prop_assert!(after <= before * 2 || asked);
                }
                let more = [Verdict::Raised, Verdict::Exceeded].contains(&decision.verdict);
                prop_assert!(!(unpolled && more), "{:?} for signals that nobody polls", decision.verdict);
                match decision.verdict {
                    Verdict::Raised => {
                        trials += 1;
                        prop_assert!(reverted_at.is_none_or(|reverted| second - reverted >= REST_SECONDS));
                    }
                    Verdict::Reverted => {
                        trials -= 1;
                        prop_assert!(trials >= 0 && after < before);
                        reverted_at = Some(second);
                    }
                    Verdict::Exceeded if !asked => {
                        prop_assert_eq!(episode, None);
                        prop_assert_eq!(after, before);
                        episode = Some(after);
                    }
                    Verdict::Lowered => prop_assert!(after < before),
                    Verdict::Confirmed | Verdict::Noted | Verdict::Exceeded => prop_assert_eq!(after, before),
                    Verdict::Set => reverted_at = None,
                }
                if let Some(payload) = decision.payload {
                    let (Payload::GovernorScaled(said) | Payload::QuotaExceeded(said) | Payload::ScaleReverted(said)) = payload
                        else { panic!() };
                    prop_assert_eq!(said.concurrency, Concurrency { previous: before, new: after });
                    prop_assert_eq!(said.cost_delta_usd, costs.of_change(before, after));
                }
                // What was decided from is gone: the same look again changes nothing.
                let again = decide(&tenant, waiting(lag), &costs, &Patience::default(), now);
                prop_assert!(asked || again.is_none(), "{again:?}");
            }
            let limit = tenant.in_flight_action_limit();
            prop_assert!(1 <= limit && limit <= tenant.concurrent_actions());
        }
    }
}
