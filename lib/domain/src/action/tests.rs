use proptest::prelude::*;

use super::*;

fn action(state: ActionState) -> Action {
    let id = ActionId::try_from("a-1".to_owned()).unwrap();
    Action {
        state,
        escalation: state.is_a_persons().then(|| Escalation {
            error_code: "ROLLBACK_EXHAUSTED".to_owned(),
            resume: Some(match state {
                ActionState::Routed => ActionState::Pending,
                _ => ActionState::TimedOut,
            }),
            at: Timestamp::UNIX_EPOCH,
        }),
        ..Action::pending(id, "restart-service", "00", Timestamp::UNIX_EPOCH)
    }
}

fn event(name: &str) -> ActionEvent {
    let mut known = events().into_iter();
    known.find(|(known, _)| *known == name).unwrap().1
}

/// The action after these events, in this order, with its receipts.
#[track_caller]
fn after(events: &[&str]) -> (Action, Vec<&'static str>) {
    let (mut now, mut receipts) = (action(ActionState::Pending), Vec::new());
    for (n, name) in events.iter().enumerate() {
        let id = Uuid::from_u128(n as u128 + 1);
        let next = now.next(&event(name), id, Timestamp::UNIX_EPOCH).unwrap();
        receipts.extend(next.receipt.map(|payload| payload.operation()));
        now = next.action;
    }
    (now, receipts)
}

fn events() -> Vec<(&'static str, ActionEvent)> {
    vec![
        (
            "refused",
            ActionEvent::Refused {
                code: RefusalCode::Denied,
                detail: None,
                rules: vec![],
            },
        ),
        (
            "routed",
            ActionEvent::Routed {
                code: RouteCode::SafeMode,
            },
        ),
        ("claimed", ActionEvent::Claimed),
        ("ok", ActionEvent::HandlerOk),
        (
            "failed",
            ActionEvent::HandlerFailed {
                error_code: "X".to_owned(),
                recoverable: true,
            },
        ),
        (
            "fatal",
            ActionEvent::HandlerFailed {
                error_code: "X".to_owned(),
                recoverable: false,
            },
        ),
        ("deadline", ActionEvent::DeadlineExceeded),
        ("expired", ActionEvent::LeaseExpired),
        (
            "undone",
            ActionEvent::UndoOk {
                rollback_duration_ms: 5,
            },
        ),
        ("undo-failed", ActionEvent::UndoFailed { recoverable: true }),
        ("undo-refused", ActionEvent::UndoFailed { recoverable: false }),
        (
            "abandoned",
            ActionEvent::Abandoned {
                error_code: "DECOMMISSIONED",
            },
        ),
        ("redriven", ActionEvent::Redriven { by: "ops".to_owned() }),
        (
            "resolved",
            ActionEvent::Resolved {
                by: "ops".to_owned(),
                note: "done by hand".to_owned(),
            },
        ),
    ]
}

#[test]
fn every_state_and_event() {
    let mut table = String::new();
    for state in ActionState::ALL {
        let row: Vec<String> = events()
            .iter()
            .map(
                |(name, event)| match action(state).next(event, Uuid::nil(), Timestamp::UNIX_EPOCH) {
                    Ok(t) => {
                        let receipt = t.receipt.map_or("no receipt", |p| p.operation());
                        format!("{name}={:?}/{receipt}", t.action.state)
                    }
                    Err(_) => format!("{name}=-"),
                },
            )
            .filter(|cell| !cell.ends_with("=-"))
            .collect();
        table.push_str(&format!("{state:?}: {}\n", row.join(" ")));
    }
    let golden = "\
Pending: refused=Refused/action_refused routed=Routed/action_routed claimed=Running/no receipt abandoned=Escalated/action_failed
Running: ok=Complete/action_complete failed=Failed/action_failed fatal=Escalated/action_failed deadline=TimedOut/action_timeout expired=TimedOut/action_timeout abandoned=Escalated/action_failed
Complete: \n\
Failed: undone=RolledBack/action_rolled_back undo-failed=Failed/no receipt undo-refused=Escalated/action_failed abandoned=Escalated/action_failed
TimedOut: undone=RolledBack/action_rolled_back undo-failed=TimedOut/no receipt undo-refused=Escalated/action_failed abandoned=Escalated/action_failed
RolledBack: \n\
Escalated: redriven=TimedOut/action_redriven resolved=Resolved/action_resolved
Refused: \n\
Routed: redriven=Pending/action_redriven resolved=Resolved/action_resolved
Resolved: \n";
    assert_eq!(table, golden);
}

/// What the gate sent to a person keeps what it asks for, so that it can be decided anew.
#[test]
fn what_is_routed_can_be_released_or_declined() {
    let asked = Action {
        parameters: Some(Map::new()),
        ..action(ActionState::Pending)
    };
    let next = |action: &Action, name| action.next(&event(name), Uuid::nil(), Timestamp::UNIX_EPOCH);
    let routed = next(&asked, "routed").unwrap().action;
    let why = routed.escalation.clone().unwrap();
    assert_eq!(
        (why.error_code.as_str(), why.resume),
        ("SAFE_MODE", Some(ActionState::Pending))
    );
    assert_eq!(routed.parameters, asked.parameters);
    let released = next(&routed, "redriven").unwrap().action;
    assert_eq!(
        (released.state, released.escalation),
        (ActionState::Pending, None)
    );
    assert_eq!(released.parameters, asked.parameters);
    let declined = next(&routed, "resolved").unwrap().action;
    assert_eq!(
        (declined.state, declined.parameters),
        (ActionState::Resolved, None)
    );
}

#[test]
fn a_handlers_code_is_never_taken_for_ours() {
    for ours in OURS {
        assert_eq!(handlers_code(ours), format!("handler:{ours}"));
    }
    for (said, kept) in [
        ("DISK_FULL", "DISK_FULL"),
        ("HTTP_500", "handler:HTTP_500"),
        ("handler:X", "handler:handler:X"),
        ("rollback_exhausted", "rollback_exhausted"),
    ] {
        assert_eq!(handlers_code(said), kept);
    }
}

#[test]
fn a_rollback_names_the_receipt_it_answers() {
    let timed_out = action(ActionState::Running)
        .next(
            &ActionEvent::DeadlineExceeded,
            Uuid::from_u128(1),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap()
        .action;
    let undone = timed_out
        .next(
            &ActionEvent::UndoOk {
                rollback_duration_ms: 7,
            },
            Uuid::from_u128(2),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
    let Some(Payload::ActionRolledBack {
        previous_action_receipt_id,
        ..
    }) = undone.receipt
    else {
        panic!()
    };
    assert_eq!(previous_action_receipt_id, Uuid::from_u128(1));
}

#[test]
fn undo_is_tried_five_times_and_then_escalated() {
    let mut now = action(ActionState::TimedOut);
    for _ in 0..4 {
        now = now
            .next(
                &ActionEvent::UndoFailed { recoverable: true },
                Uuid::nil(),
                Timestamp::UNIX_EPOCH,
            )
            .unwrap()
            .action;
        assert_eq!(now.state, ActionState::TimedOut);
    }
    let last = now
        .next(
            &ActionEvent::UndoFailed { recoverable: true },
            Uuid::nil(),
            Timestamp::UNIX_EPOCH,
        )
        .unwrap();
    assert_eq!(last.action.state, ActionState::Escalated);
    assert_eq!(last.receipt.unwrap().operation(), "action_failed");
}

/// What is redriven goes on where it was given up, with a budget of its own.
#[track_caller]
fn check_redrive(until: &[&str], resumes: Option<ActionState>) {
    let (escalated, _) = after(until);
    assert_eq!(escalated.state, ActionState::Escalated, "{until:?}");
    assert_eq!(escalated.resumes_at(), resumes, "{until:?}");
    let redriven = escalated.next(&event("redriven"), Uuid::max(), Timestamp::UNIX_EPOCH);
    match resumes {
        None => assert!(redriven.is_err(), "{until:?}"),
        Some(state) => {
            let action = redriven.unwrap().action;
            assert_eq!(action.state, state, "{until:?}");
            // Attempts are counted on: handlers may go by their number.
            let counted = (action.rollback_attempts, action.rollbacks_forgiven);
            let before = escalated.rollback_attempts;
            assert_eq!(counted, (before, before), "{until:?}");
            assert_eq!(
                (action.escalation, action.owner),
                (None, Uuid::nil()),
                "{until:?}"
            );
        }
    }
}

#[test]
fn where_redriven_actions_go_on() {
    let exhausted = ["claimed", "deadline"].into_iter().chain(["undo-failed"; 5]);
    check_redrive(&exhausted.collect::<Vec<_>>(), Some(ActionState::TimedOut));
    check_redrive(&["abandoned"], Some(ActionState::Pending));
    check_redrive(&["claimed", "abandoned"], Some(ActionState::TimedOut));
    check_redrive(&["claimed", "failed", "abandoned"], Some(ActionState::Failed));
    check_redrive(&["claimed", "fatal"], None);
    check_redrive(&["claimed", "failed", "undo-refused"], Some(ActionState::Failed));
}

#[test]
fn an_escalated_action_keeps_what_undoing_it_needs() {
    let asked = Some(Map::from_iter([("service".to_owned(), Value::from("web"))]));
    let keeps = |state, event_name: &str| {
        let before = Action {
            parameters: asked.clone(),
            ..action(state)
        };
        let next = before.next(&event(event_name), Uuid::nil(), Timestamp::UNIX_EPOCH);
        next.unwrap().action.parameters.is_some()
    };
    assert!(keeps(ActionState::TimedOut, "abandoned"));
    assert!(keeps(ActionState::Escalated, "redriven"));
    assert!(!keeps(ActionState::Running, "fatal"));
    assert!(!keeps(ActionState::Running, "ok"));
    assert!(!keeps(ActionState::Escalated, "resolved"));
}

#[test]
fn every_receipt_about_an_action_is_known_in_order() {
    let (action, receipts) = after(&["claimed", "deadline", "undone"]);
    assert_eq!(receipts, ["action_timeout", "action_rolled_back"]);
    assert_eq!(action.receipts, [Uuid::from_u128(2), Uuid::from_u128(3)]);
}

#[test]
fn standings() {
    let later = Timestamp::from_second(100).unwrap();
    let leased = |state| action(state).owned_by(Uuid::nil(), later);
    let before = Timestamp::from_second(99).unwrap();
    assert_eq!(standing(None, later), Standing::New);
    assert_eq!(
        standing(Some(&leased(ActionState::Complete)), later),
        Standing::Done
    );
    assert_eq!(
        standing(Some(&leased(ActionState::Running)), before),
        Standing::Busy
    );
    assert_eq!(
        standing(Some(&leased(ActionState::Running)), later),
        Standing::Undo
    );
    assert_eq!(
        standing(Some(&leased(ActionState::TimedOut)), later),
        Standing::Undo
    );
}

proptest! {
    #[test]
    fn a_final_state_changes_by_a_persons_word_only_and_leaves_a_receipt(
        picks in proptest::collection::vec(0usize..14, 0..60),
    ) {
        let events = events();
        let mut now = action(ActionState::Pending);
        for (n, pick) in picks.into_iter().enumerate() {
            let (name, event) = &events[pick];
            let Ok(t) = now.next(event, Uuid::from_u128(n as u128), Timestamp::UNIX_EPOCH) else {
                continue;
            };
            let person = ["redriven", "resolved"].contains(name);
            prop_assert!(!now.state.is_final() || (now.state.is_a_persons() && person));
            prop_assert_eq!(t.action.receipts.len(), now.receipts.len() + usize::from(t.receipt.is_some()));
            prop_assert!(!t.action.state.is_final() || t.receipt.is_some(), "a final state leaves a receipt");
            prop_assert_eq!(t.action.escalation.is_some(), t.action.state.is_a_persons());
            let counted = t.action.rollback_attempts - t.action.rollbacks_forgiven;
            prop_assert!(counted <= ROLLBACK_ATTEMPTS);
            // A place is taken by a claim, and given back with the end.
            prop_assert!(!t.action.state.is_final() || !t.action.state.in_flight());
            now = t.action;
        }
    }
}
