use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Map, json};
use uuid::Uuid;

use super::*;
use crate::action::{Action, ActionState};
use crate::action::{ActionEvent, DEAD_LETTERED};
use crate::entitlement::{Entitlement, EventOrder};
use crate::provisioning::{DeliveryRef, Provisioning};
use crate::signal::ActionId;
use crate::signal::Signal;
use crate::tenant::Pace;
use crate::tenant::tests::{event, id, offer, tenant};
use crate::tenant::{Deferred, Tables};
use crate::webhook::event::Change;

/// Seconds after a fixed instant.
fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn asked() -> DeliveryRef {
    DeliveryRef {
        provider: "standard".to_owned(),
        delivery_id: "d".to_owned(),
        body_sha256: String::new(),
    }
}

fn standing(lifecycle: Lifecycle) -> Tenant {
    Tenant {
        lifecycle,
        changed_at: at(0),
        ..tenant()
    }
}

fn making(mut tenant: Tenant) -> Tenant {
    let order = EventOrder::at(at(0));
    tenant.provisioning = Some(Provisioning {
        entitlement_id: id("e"),
        entitlement: Entitlement::granted(&offer("p"), "r", None, order, at(0)),
        event: event(Change::Suspended),
        asked: asked(),
        new_tenant: true,
        dedicated: false,
        received_at: at(0),
        due_since: at(0),
        attempts: 0,
        waited: false,
        table_attempt: 0,
        began_at: at(0),
        failure: None,
    });
    tenant
}

fn waiting(mut tenant: Tenant, due_at: i64) -> Tenant {
    tenant.deferred.push(Deferred {
        event: event(Change::Suspended),
        asked: asked(),
        received_at: at(0),
        due_at: at(due_at),
        due_since: at(due_at),
        attempts: 0,
    });
    tenant
}

#[track_caller]
fn check_due(tenant: &Tenant, after: i64, expected: Option<Due>) {
    assert_eq!(
        due(tenant, at(after), &Patience::default()),
        expected,
        "{after} s"
    );
}

#[test]
fn what_is_due() {
    let provisioning = making(standing(Lifecycle::Provisioning));
    check_due(&provisioning, 59, None);
    check_due(&provisioning, 60, Some(Due::Provisioning));
    // What waits behind a provisioning waits for it.
    check_due(&waiting(provisioning.clone(), 0), 59, None);
    check_due(&waiting(provisioning, 0), 60, Some(Due::Provisioning));
    for lifecycle in [Lifecycle::Active, Lifecycle::Absent, Lifecycle::Decommissioned] {
        check_due(&standing(lifecycle), 10_000, None);
        check_due(&waiting(standing(lifecycle), 5), 4, None);
        check_due(&waiting(standing(lifecycle), 5), 5, Some(Due::Waiting));
    }
}

#[test]
fn decommissioning_is_ordered_again_every_quarter_of_an_hour() {
    let leaving = waiting(standing(Lifecycle::Decommissioning), 0);
    check_due(&leaving, 89, None);
    for (minute, ordered) in [
        (2, true),
        (3, false),
        (16, false),
        (17, true),
        (18, false),
        (32, true),
    ] {
        check_due(&leaving, minute * 60, ordered.then_some(Due::Decommissioning));
    }
    let ordered = (0..3600).filter(|after| due(&leaving, at(*after), &Patience::default()).is_some());
    assert_eq!(ordered.count(), 4 * 60);
    assert_eq!(
        due(&leaving, at(0), &Patience::with(Some(0), None)),
        Some(Due::Decommissioning)
    );
}

#[track_caller]
fn check_busy(in_flight: (u64, u64), lease: Option<i64>, lifecycle: Lifecycle, expected: (bool, bool)) {
    let mut busy = standing(lifecycle);
    busy.in_flight = in_flight.0;
    busy.entitlements.get_mut(&id("s")).unwrap().in_flight = in_flight.1;
    busy.lease_until = lease.map(at);
    let looked_at = |scope| may_have_stuck_actions(&busy, scope, at(100), &Patience::default());
    assert_eq!((looked_at(Scope::Due), looked_at(Scope::Everything)), expected);
}

#[test]
fn whose_actions_are_looked_at() {
    check_busy((1, 1), Some(40), Lifecycle::Active, (true, true));
    check_busy((1, 1), Some(41), Lifecycle::Active, (false, true));
    check_busy((1, 1), None, Lifecycle::Active, (true, true));
    check_busy((0, 1), None, Lifecycle::Active, (true, true));
    check_busy((0, 0), None, Lifecycle::Active, (false, false));
    check_busy((1, 1), Some(0), Lifecycle::Decommissioning, (false, false));
}

fn action(name: &str) -> Action {
    let action_id = ActionId::try_from(name.to_owned()).unwrap();
    Action {
        state: ActionState::Running,
        lease_until: at(20),
        entitlement_id: Some(id("s")),
        parameters: Some(Map::new()),
        ..Action::pending(action_id, "t", "h", at(0))
    }
}

#[track_caller]
fn check_stuck(action: &Action, after: i64, expected: Option<Stuck>) {
    assert_eq!(
        stuck(action, at(after), &Patience::default()),
        expected,
        "{after} s"
    );
}

#[test]
fn stuck_actions_are_nudged_and_given_up_in_the_end() {
    let mut action = action("a");
    check_stuck(&action, 79, None);
    check_stuck(&action, 80, Some(Stuck::Nudge));
    // Nobody looked for hours: it has its chance first.
    check_stuck(&action, 10_000, Some(Stuck::Nudge));
    action.nudged_at = Some(at(100));
    check_stuck(&action, 399, None);
    check_stuck(&action, 400, Some(Stuck::Nudge));
    check_stuck(&action, 3599, Some(Stuck::Nudge));
    check_stuck(&action, 3600, Some(Stuck::Escalate));
    action.nudged_at = Some(at(3400));
    check_stuck(&action, 3600, None);
    action.nudged_at = None;
    action.parameters = None;
    check_stuck(&action, 79, None);
    check_stuck(&action, 80, Some(Stuck::Escalate));
    for state in ActionState::ALL {
        let stuck = stuck(
            &Action {
                state,
                ..action.clone()
            },
            at(80),
            &Patience::default(),
        );
        assert_eq!(stuck.is_none(), !state.in_flight(), "{state:?}");
    }
    // A claim that was taken over is in force again.
    check_stuck(&action.owned_by(Uuid::nil(), at(10_000)), 9_000, None);
}

#[test]
fn dead_letters_of_unfinished_actions_are_escalated_or_refused() {
    let running = |until: i64| action("a").owned_by(Uuid::nil(), at(until));
    let of = |state| Action {
        state,
        ..running(100)
    };
    let check = |action: Option<&Action>, signal: Letter, other: Letter| {
        let found = [true, false].map(|is_signal| letter(is_signal, action, at(100)));
        assert_eq!(found, [signal, other], "{:?}", action.map(|action| action.state));
    };
    check(None, Letter::Escalate, Letter::Refuse);
    check(Some(&running(101)), Letter::Busy, Letter::Busy);
    for state in ActionState::ALL {
        let (signal, other) = match state {
            ActionState::Pending => (Letter::Escalate, Letter::Refuse),
            state if state.in_flight() => (Letter::Escalate, Letter::Known),
            _ => (Letter::Known, Letter::Known),
        };
        check(Some(&of(state)), signal, other);
    }
    // One that a person had taken up again a moment ago has another signal on its way.
    let reopened = |state, ago: i64| Action {
        receipts: vec![Uuid::nil()],
        ..of(state).owned_by(Uuid::nil(), at(100 - ago))
    };
    for state in [ActionState::Pending, ActionState::TimedOut] {
        check(Some(&reopened(state, 299)), Letter::Busy, Letter::Busy);
    }
    check(
        Some(&reopened(ActionState::Pending, 300)),
        Letter::Escalate,
        Letter::Refuse,
    );
}

/// What is escalated can be taken up again by the letter, and without it.
#[test]
fn a_letters_action_says_what_it_was_to_do() {
    let tenant = standing(Lifecycle::Active);
    let text = json!({
        "action_id": "a", "account_id": "c", "template": "t", "parameters": { "n": 1 }, "policy_hash": "hash-p",
    });
    let signal = Signal::parse(&text.to_string()).unwrap();
    let unknown = action_of_letter(&signal, None, &tenant, at(5));
    let abandoned = ActionEvent::Abandoned {
        error_code: DEAD_LETTERED,
    };
    let escalated = unknown
        .next(&abandoned, Uuid::from_u128(1), at(5))
        .unwrap()
        .action;
    assert_eq!(escalated.resumes_at(), Some(ActionState::Pending));
    let again = Signal {
        entitlement_id: Some(id("s")),
        ..signal.clone()
    };
    assert_eq!(escalated.signal(&tenant.account_id), again);
    let waited = Action {
        receipts: vec![Uuid::from_u128(7)],
        ..unknown.clone()
    };
    let known = action_of_letter(&signal, Some(&waited), &tenant, at(9));
    assert_eq!(known.receipts, waited.receipts);
    // What has begun is what the table says.
    let begun = Action {
        template: "another".to_owned(),
        ..action("a")
    };
    assert_eq!(action_of_letter(&signal, Some(&begun), &tenant, at(9)), begun);
    let nobodys = Tenant {
        entitlements: BTreeMap::new(),
        ..tenant
    };
    let unknown = action_of_letter(&signal, None, &nobodys, at(5));
    assert_eq!((unknown.entitlement_id, unknown.policy_hash.as_str()), (None, ""));
}

#[track_caller]
fn check_recounted(counted: (u64, u64), unfinished: &[Action], expected: Option<(u64, u64)>) {
    let mut busy = standing(Lifecycle::Active);
    busy.in_flight = counted.0;
    busy.entitlements.get_mut(&id("s")).unwrap().in_flight = counted.1;
    busy.lease_until = Some(at(20));
    let recounted = recounted(&busy, unfinished);
    let counters = |tenant: &Tenant| (tenant.in_flight, tenant.entitlements[&id("s")].in_flight);
    assert_eq!(recounted.as_ref().map(counters), expected);
    if let Some(next) = recounted {
        assert_eq!(next.revision, busy.revision + 1);
        assert_eq!(next.lease_until.is_none(), next.in_flight == 0);
    }
}

#[test]
fn counters_are_what_the_actions_say() {
    let of_another = Action {
        entitlement_id: Some(id("cancelled")),
        ..action("b")
    };
    check_recounted((1, 1), &[action("a")], None);
    check_recounted((2, 1), &[action("a"), of_another.clone()], None);
    check_recounted((1, 1), &[], Some((0, 0)));
    check_recounted((0, 1), &[], Some((0, 0)));
    check_recounted((3, 2), &[action("a"), of_another], Some((2, 1)));
}

#[test]
fn everything_is_looked_at_four_times_an_hour() {
    let hour = (0..60).map(|minute| Scope::Due.at(at(minute * 60 + 59)));
    assert_eq!(hour.filter(|scope| *scope == Scope::Everything).count(), 4);
    assert_eq!(
        Scope::Due.at("2026-01-01T10:45:59Z".parse().unwrap()),
        Scope::Everything
    );
    assert_eq!(Scope::Due.at("2026-01-01T10:46:00Z".parse().unwrap()), Scope::Due);
    assert_eq!(Scope::None.at(at(0)), Scope::None);
    assert_eq!(Scope::Everything.at(at(61)), Scope::Everything);
    for scope in [Scope::Due, Scope::Everything] {
        let every = if scope == Scope::Due { 60 } else { 900 };
        assert_eq!(scope.round(at(every)), scope.round(at(0)) + 1, "{scope:?}");
    }
}

/// What there is, as listings name it: a mapping by its queue and `>`, a slow one by `>>`.
fn found(names: &str) -> ExistingResources {
    let mut found = ExistingResources::default();
    for name in names.split_whitespace() {
        if let Some(queue) = name.strip_suffix(">>") {
            found.mapping(queue, Some(Pace::of(30)));
            continue;
        }
        match name.strip_suffix('>') {
            Some(queue) => found.mapping(queue, Some(Pace::of(3))),
            None if name.ends_with("-actions") || name.ends_with("-receipts") => found.table(name),
            None => found.queue(name),
        }
    }
    found
}

#[track_caller]
fn check_compared(tenants: &[Tenant], names: &str, missing: &str, orphans: &str) {
    let expected: Vec<Expected> = tenants
        .iter()
        .filter_map(|tenant| Expected::of(tenant, at(120), &Patience::default()))
        .collect();
    let findings = compare(&expected, &found(names));
    let told: Vec<String> = findings
        .missing
        .iter()
        .flat_map(|m| m.resources.iter().map(|r| format!("{} {}", r.name(), m.queue)))
        .collect();
    assert_eq!(
        (told.join(", "), findings.orphans.join(" ")),
        (missing.to_owned(), orphans.to_owned())
    );
}

#[test]
fn what_is_there_is_held_against_what_should_be() {
    let called = |queue: &str, lifecycle| Tenant {
        fsm_id: queue.to_owned(),
        ..standing(lifecycle)
    };
    let active = called("q-g1", Lifecycle::Active);
    let whole = "q-g1 q-g1-dlq q-g1>";
    check_compared(&[], "", "", "");
    check_compared(std::slice::from_ref(&active), whole, "", "");
    check_compared(std::slice::from_ref(&active), "q-g1 q-g1-dlq", "mapping q-g1", "");
    let slow = "q-g1 q-g1-dlq q-g1>>";
    check_compared(std::slice::from_ref(&active), slow, "mapping_pace q-g1", "");
    check_compared(
        std::slice::from_ref(&active),
        "",
        "queue q-g1, dead_letter_queue q-g1, mapping q-g1",
        "",
    );
    let dedicated = Tenant {
        tables: Some(Tables::of_queue("q-g1", 0, 0)),
        ..active.clone()
    };
    let tables = format!("{whole} q-g1-receipts");
    check_compared(std::slice::from_ref(&dedicated), &tables, "action_table q-g1", "");
    let mut left = dedicated;
    left.tables.as_mut().unwrap().until = Some(7);
    check_compared(&[left], whole, "", "");
    // Between two states nothing is missing, and nothing is nobody's.
    for lifecycle in [Lifecycle::Provisioning, Lifecycle::Decommissioning] {
        check_compared(&[called("q-g1", lifecycle)], "q-g1-dlq q-g1-actions", "", "");
    }
    for lifecycle in [Lifecycle::Absent, Lifecycle::Decommissioned] {
        check_compared(&[called("q-g1", lifecycle)], "", "", "");
        check_compared(&[called("q-g1", lifecycle)], "q-g1-dlq", "", "q-g1");
    }
    let young = Tenant {
        changed_at: at(1),
        ..active.clone()
    };
    check_compared(&[young], "", "", "");
    let more = format!("{whole} a-g1> b-g1-receipts c-g1 c-g1-dlq q-g2");
    check_compared(&[active], &more, "", "a-g1 b-g1 c-g1 q-g2");
}

#[track_caller]
fn check_orphan(tenant: Option<&Tenant>, made: Option<i64>, after: i64, expected: Orphan) {
    assert_eq!(
        orphan("q", tenant, made.map(at), at(after), &Patience::default()),
        expected
    );
}

#[test]
fn only_what_is_old_and_nobodys_is_taken_away() {
    for lifecycle in Lifecycle::ALL {
        let own = standing(lifecycle);
        let gone = matches!(lifecycle, Lifecycle::Absent | Lifecycle::Decommissioned);
        let expected = if gone { Orphan::Nobodys } else { Orphan::InUse };
        check_orphan(Some(&own), Some(0), 600, expected);
    }
    let next = Tenant {
        fsm_id: "q-next".to_owned(),
        ..standing(Lifecycle::Active)
    };
    check_orphan(Some(&next), Some(0), 600, Orphan::Nobodys);
    check_orphan(Some(&next), Some(-900), 599, Orphan::Young);
    check_orphan(Some(&next), Some(1), 600, Orphan::Young);
    check_orphan(Some(&next), None, 600, Orphan::Nobodys);
    check_orphan(None, Some(0), 600, Orphan::Nobodys);
    check_orphan(None, Some(1), 600, Orphan::Young);
}

proptest! {
    /// Whatever there is too much of, everything has its turn.
    #[test]
    fn everything_has_its_turn(all in 0..60usize, most in 1..20usize, first in 0..1_000u64) {
        let items: Vec<usize> = (0..all).collect();
        let mut seen = BTreeSet::new();
        for round in first..first + 60 {
            let (now, left) = turn(items.clone(), most, round);
            prop_assert_eq!(now.len() + left, all);
            prop_assert!(now.len() <= most);
            seen.extend(now);
        }
        prop_assert_eq!(seen.len(), all);
    }
}
