use std::sync::Arc;

use policy::enforcer::Enforcer;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::control::Switches;
use crate::entitlement::Quota;
use crate::entitlement::{Entitlement, EventOrder, Standing};
use crate::tenant::tests::offer;

const POLICY: &str = include_str!("../../../../policies/marketplace-sku-456/professional.yaml");

#[track_caller]
fn check_way(method: &str, path: &str, expected: Result<(&str, Option<&str>), &str>) {
    let got = Route::of(method, path).map_err(|e| e.to_string());
    let got = got.map(|way| match way {
        Route::Ask { account_id } => (account_id.as_str().to_owned(), None),
        Route::Tell {
            account_id,
            action_id,
        } => (
            account_id.as_str().to_owned(),
            Some(action_id.as_str().to_owned()),
        ),
    });
    let expected = expected.map_err(str::to_owned);
    assert_eq!(
        got,
        expected.map(|(a, b)| (a.to_owned(), b.map(str::to_owned))),
        "{method} {path}"
    );
}

#[test]
fn ways() {
    check_way("POST", "/tenants/c/signals", Ok(("c", None)));
    check_way("POST", "/stage/tenants/c/signals", Ok(("c", None)));
    check_way("GET", "/tenants/c/actions/a-1", Ok(("c", Some("a-1"))));
    // As they come from a gateway that decodes, and from one that does not.
    for path in [
        "/tenants/a/b/signals",
        "/tenants/a%2Fb/signals",
        "/tenants/a%2fb/signals",
    ] {
        check_way("POST", path, Ok(("a/b", None)));
    }
    check_way(
        "GET",
        "/tenants/a/actions/b/actions/c",
        Ok(("a/actions/b", Some("c"))),
    );
    check_way("GET", "/tenants/c/actions/signals", Ok(("c", Some("signals"))));
    check_way("POST", "/tenants/a%252Fb/signals", Ok(("a%2Fb", None)));
    check_way("POST", "/tenants/%F0%9F%A6%80+é/signals", Ok(("🦀+é", None)));
    check_way("POST", "/tenants//tenants/x/signals", Ok(("/tenants/x", None)));

    for path in [
        "/",
        "",
        "/tenants",
        "/tenants/",
        "/tenants/c",
        "/tenants/c/signals/",
        "/webhooks/github",
    ] {
        check_way("POST", path, Err("nothing is at this path"));
    }
    for method in ["GET", "PUT", "DELETE", "post", ""] {
        check_way(method, "/tenants/c/signals", Err("this path takes POST only"));
    }
    for method in ["POST", "HEAD", "get"] {
        check_way(method, "/tenants/c/actions/a", Err("this path takes GET only"));
    }
    let encoding = "the account id in the path is not percent-encoded UTF-8";
    for account in [
        "%",
        "%2",
        "%zz",
        "%+1",
        "a%",
        "%FF",
        "%C3",
        "%C3%28",
        "%ED%A0%80",
        "100%",
    ] {
        check_way("POST", &format!("/tenants/{account}/signals"), Err(encoding));
    }
    check_way(
        "POST",
        "/tenants//signals",
        Err("in the path: account_id is empty"),
    );
    let control = "in the path: account_id holds the control character U+000A";
    check_way("POST", "/tenants/a%0Ab/signals", Err(control));
    let long = format!("/tenants/{}/signals", "%41".repeat(257));
    check_way(
        "POST",
        &long,
        Err("in the path: account_id has 257 characters, more than 256"),
    );
    let action = "in the path: action_id must be 1 to 64 characters of [A-Za-z0-9_-]";
    for id in ["", "a.b", "%2E", "a%20"] {
        check_way("GET", &format!("/tenants/c/actions/{id}"), Err(action));
    }
    check_way(
        "GET",
        "/tenants/c/actions/%",
        Err("the action id in the path is not percent-encoded UTF-8"),
    );
}

fn customer() -> AccountId {
    AccountId::parse("c").unwrap()
}

#[track_caller]
fn check_body(body: &str, expected: Result<&str, &str>) {
    match (
        ActionRequest::parse(&customer(), "msg_1", body.as_bytes()),
        expected,
    ) {
        (Ok(asked), Ok(action_id)) => assert_eq!(asked.action_id.as_str(), action_id),
        (Err(e), Err(start)) => {
            let said = e.to_string();
            assert!(said.starts_with(start), "{said:?} does not begin with {start:?}");
        }
        (got, _) => panic!("{got:?} for {body}"),
    }
}

#[test]
fn bodies() {
    check_body(r#"{"template":"t"}"#, Ok("msg_1"));
    check_body(
        r#"{"template":"t","action_id":"a-1","parameters":{"x":1},"more":[]}"#,
        Ok("a-1"),
    );
    check_body(
        r#"{"template":"t","account_id":"c","sku_id":"s","entitlement_id":null}"#,
        Ok("msg_1"),
    );
    check_body("", Err("signal field `.`: EOF"));
    check_body("null", Err("signal field `.`: expected an object, found null"));
    check_body("[]", Err("signal field `.`: "));
    check_body("{}", Err("signal field `.`: missing field `template`"));
    check_body(
        r#"{"template":5}"#,
        Err("signal field `template`: expected a string, found the number 5"),
    );
    check_body(
        r#"{"template":"t","template":"u"}"#,
        Err("signal field `.`: duplicate field `template`"),
    );
    check_body(
        r#"{"template":"t","parameters":[]}"#,
        Err("signal field `parameters`: expected an object"),
    );
    check_body(
        r#"{"template":"t","action_id":"a.1"}"#,
        Err("signal field `action_id`: action_id must be"),
    );
    check_body(
        r#"{"template":"t","sku_id":""}"#,
        Err("signal field `sku_id`: sku_id is empty"),
    );
    check_body(
        r#"{"template":"t","entitlement_id":"\u0000"}"#,
        Err("signal field `entitlement_id`: entitlement_id holds the control character"),
    );
    check_body(
        r#"{"template":"t","account_id":"d"}"#,
        Err("signal field `account_id`: is not the account in the path"),
    );
    check_body(r#"{"template":"t"} {}"#, Err("signal field `.`: trailing"));
    check_body("{\"template\":\"t\"}\u{0}", Err("signal field `.`: trailing"));
    let deep = format!(
        r#"{{"template":"t","parameters":{{"x":{}{}}}}}"#,
        "[".repeat(200),
        "]".repeat(200)
    );
    check_body(&deep, Err("signal field `parameters"));
    assert!(ActionRequest::parse(&customer(), "m", b"{\"template\":\"\xff\"}").is_err());
}

#[test]
fn a_delivery_names_its_action() {
    let of = |delivery: &str| {
        let asked = ActionRequest::parse(&customer(), delivery, br#"{"template":"t"}"#).unwrap();
        asked.action_id.as_str().to_owned()
    };
    assert_eq!(of("msg_2b-X"), "msg_2b-X");
    // Not legal as an action id: too long, and a colon.
    for delivery in ["m".repeat(65), "msg:1".to_owned()] {
        let id = of(&delivery);
        assert_eq!((id.len(), id == of(&delivery)), (64, true), "{delivery}");
    }
    assert_ne!(of("msg:1"), of("msg:2"));
}

/// Every code and how it is answered: the table at the head of the module.
#[test]
fn answers() {
    use RetryWhen::{Never, NextMonth, Soon};
    let table = [
        (RefusalCode::Unavailable, 503, Soon),
        (RefusalCode::NotFound, 404, Never),
        (RefusalCode::Gone, 410, Never),
        (RefusalCode::NoEntitlement, 404, Never),
        (RefusalCode::AmbiguousEntitlement, 422, Never),
        (RefusalCode::Suspended, 403, Never),
        (RefusalCode::Expired, 403, Never),
        (RefusalCode::Disarmed, 503, Soon),
        (RefusalCode::PolicyHashMismatch, 409, Never),
        (RefusalCode::UnknownAction, 422, Never),
        (RefusalCode::Denied, 403, Never),
        (RefusalCode::QuotaExceeded, 429, NextMonth),
        (RefusalCode::MalformedSignal, 400, Never),
    ];
    for (code, status, again) in table {
        let found = reply(Code::Gate(code), &[]);
        assert_eq!((found.status, found.again), (status, again), "{code:?}");
        assert!(!found.title.is_empty() && !found.detail.is_empty(), "{code:?}");
    }
    let reused = reply(Code::ActionIdReused, &[]);
    assert_eq!((reused.status, reused.again), (409, Never));
    for (rules, status) in [
        (&["parameter-schema"][..], 422),
        (&["permit:scale-service"], 422),
        (&["replicas-within-plan"], 403),
        (&["permit:scale-service", "replicas-within-plan"], 403),
        (&["evaluation-error"], 403),
    ] {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        assert_eq!(
            reply(Code::Gate(RefusalCode::Denied), &rules).status,
            status,
            "{rules:?}"
        );
    }
}

#[test]
fn months() {
    for (now, seconds) in [
        ("2026-01-31T23:59:59Z", 1),
        ("2026-01-31T23:59:59.999Z", 1),
        ("2026-02-01T00:00:00Z", 28 * 86_400),
        ("2024-02-01T00:00:00Z", 29 * 86_400),
        ("2026-12-31T00:00:00Z", 86_400),
        ("9999-12-30T00:00:00Z", 1),
    ] {
        assert_eq!(seconds_to_next_month(now.parse().unwrap()), seconds, "{now}");
    }
}

/// A situation in which a request is let in; each case breaks one thing.
struct World {
    tenant: Option<Tenant>,
    known: Option<Action>,
    control: Control,
    enforcers: Enforcers,
    body: Value,
}

fn now() -> Timestamp {
    "2026-01-31T12:00:00Z".parse().unwrap()
}

fn hash() -> String {
    policy::compile(POLICY).unwrap().hash
}

fn world() -> World {
    let enforcer = Enforcer::load(&policy::compile(POLICY).unwrap().bytes).unwrap();
    let mut offer = offer("professional");
    offer.policy.hash = enforcer.hash().to_owned();
    let at = Timestamp::UNIX_EPOCH;
    let order = EventOrder::at(at);
    let mut tenant = Tenant::absent(customer(), at);
    tenant.lifecycle = Lifecycle::Active;
    tenant.resources.queue_url = "https://queue".to_owned();
    let held = Entitlement::granted(&offer, "us-east-1", None, order, at);
    tenant
        .entitlements
        .insert(EntitlementId::parse("s").unwrap(), held);
    let switches = Switches {
        armed: true,
        automation_enabled: true,
        safe_mode: false,
        rollout_tier: 2,
        disabled_templates: vec![],
    };
    World {
        tenant: Some(tenant),
        known: None,
        control: Control {
            switches,
            ..Control::default()
        },
        enforcers: [(enforcer.hash().to_owned(), Arc::new(enforcer))].into(),
        body: json!({ "template": "restart-service", "parameters": { "service": "web" } }),
    }
}

impl World {
    fn tenant(&mut self) -> &mut Tenant {
        self.tenant.as_mut().unwrap()
    }

    fn held(&mut self) -> &mut Entitlement {
        self.tenant().entitlements.values_mut().next().unwrap()
    }

    fn known(&mut self, template: &str, state: ActionState) {
        let id = ActionId::try_from("msg_1".to_owned()).unwrap();
        let mut action = Action::pending(id, template, &hash(), now());
        action.state = state;
        self.known = Some(action);
    }

    fn asked(&self) -> ActionRequest {
        ActionRequest::parse(&customer(), "msg_1", self.body.to_string().as_bytes()).unwrap()
    }

    fn decide(&self) -> Step {
        let (tenant, known) = (self.tenant.as_ref(), self.known.as_ref());
        decide(
            &self.asked(),
            tenant,
            known,
            &self.control,
            &self.enforcers,
            now(),
        )
    }
}

/// What was decided, in a word; with an asterisk where it is on record.
fn told(step: &Step) -> String {
    match step {
        Step::Tell(action) => format!("tell {}", action.state.name()),
        Step::Send(sending) if sending.new.is_some() => "send".to_owned(),
        Step::Send(_) => "send again".to_owned(),
        Step::Refuse { refusal, on_record } => {
            let star = if *on_record { "*" } else { "" };
            format!("{} {}{star}", refusal.reply().status, refusal.code.name())
        }
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut World), expected: &str) {
    let mut world = world();
    change(&mut world);
    assert_eq!(told(&world.decide()), expected);
}

#[test]
fn every_way_to_be_let_in_or_refused() {
    check(|_| {}, "send");
    check(|w| w.tenant = None, "404 NOT_FOUND");
    check(|w| w.tenant().lifecycle = Lifecycle::Absent, "404 NOT_FOUND");
    check(
        |w| w.tenant().lifecycle = Lifecycle::Provisioning,
        "503 UNAVAILABLE",
    );
    check(
        |w| w.tenant().lifecycle = Lifecycle::Decommissioning,
        "503 UNAVAILABLE",
    );
    check(|w| w.tenant().lifecycle = Lifecycle::Decommissioned, "410 GONE");
    check(|w| w.tenant().entitlements.clear(), "404 NO_ENTITLEMENT*");
    check(|w| w.body["sku_id"] = json!("other"), "404 NO_ENTITLEMENT*");
    let second = |w: &mut World| {
        let held = w.held().clone();
        w.tenant()
            .entitlements
            .insert(EntitlementId::parse("t").unwrap(), held);
    };
    check(second, "422 AMBIGUOUS_ENTITLEMENT*");
    check(
        |w| {
            second(w);
            w.body["entitlement_id"] = json!("t");
        },
        "send",
    );
    check(|w| w.held().standing = Standing::Suspended, "403 SUSPENDED*");
    check(|w| w.control.switches.armed = false, "503 DISARMED*");
    check(|w| w.body["policy_hash"] = json!(hash()), "send");
    check(
        |w| w.body["policy_hash"] = json!("another"),
        "409 POLICY_HASH_MISMATCH*",
    );
    check(|w| w.enforcers.clear(), "409 POLICY_HASH_MISMATCH*");
    check(
        |w| w.body["template"] = json!("format-disk"),
        "422 UNKNOWN_ACTION*",
    );
    check(|w| w.body["parameters"] = json!({}), "422 DENIED*");
    check(
        |w| w.body["parameters"]["delay_ms"] = json!(60_001),
        "422 DENIED*",
    );
    let replicas = |w: &mut World, n: u64| {
        w.body = json!({ "template": "scale-service", "parameters": { "service": "web", "replicas": n } });
    };
    check(|w| replicas(w, 10), "send");
    check(|w| replicas(w, 11), "403 DENIED*");
    let quota = |monthly, concurrent| Quota {
        monthly_actions: monthly,
        concurrent_actions: concurrent,
    };
    check(|w| w.held().quota = quota(0, 1), "429 QUOTA_EXCEEDED*");
    // What has to wait and what a person decides about is let in: the governor says so, on record.
    check(|w| w.held().quota = quota(1, 0), "send");
    check(|w| w.control.switches.safe_mode = true, "send");
    check(|w| w.control.switches.automation_enabled = false, "send");
    check(
        |w| w.control.switches.disabled_templates = vec!["*".to_owned()],
        "send",
    );
}

#[test]
fn what_is_known_of_the_action_comes_first() {
    for state in ActionState::ALL {
        let expected = match state {
            ActionState::Pending => "send again".to_owned(),
            state => format!("tell {}", state.name()),
        };
        check(|w| w.known("restart-service", state), &expected);
        check(|w| w.known("another", state), "409 ACTION_ID_REUSED*");
        // What is over is told whatever became of the tenant, and without the gate.
        if state != ActionState::Pending {
            check(
                |w| {
                    w.known("restart-service", state);
                    w.tenant().lifecycle = Lifecycle::Decommissioned;
                    w.control.switches.armed = false;
                },
                &expected,
            );
        }
    }
    let pending = |w: &mut World| w.known("restart-service", ActionState::Pending);
    let with = |change: fn(&mut World), expected: &str| {
        check(
            |w| {
                pending(w);
                change(w);
            },
            expected,
        );
    };
    with(|w| w.control.switches.armed = false, "503 DISARMED*");
    with(
        |w| w.tenant().lifecycle = Lifecycle::Decommissioning,
        "503 UNAVAILABLE",
    );
    with(|w| w.tenant().lifecycle = Lifecycle::Decommissioned, "410 GONE");
    with(|w| w.tenant = None, "404 NOT_FOUND");
    with(|w| w.held().quota.monthly_actions = 0, "send again");
    with(|w| w.held().standing = Standing::Suspended, "send again");
    with(|w| w.tenant().entitlements.clear(), "send again");
    with(|w| w.held().policy.hash = "another".to_owned(), "send again");
}

#[test]
fn a_signal_carries_the_pin_unless_the_producer_names_one() {
    let hash_of = |change: &dyn Fn(&mut World)| {
        let mut world = world();
        change(&mut world);
        let Step::Send(sending) = world.decide() else {
            panic!("{:?}", world.decide());
        };
        assert_eq!(sending.queue_url, "https://queue");
        if let Some(new) = &sending.new {
            assert_eq!((new.state, &new.parameters), (ActionState::Pending, &None));
            assert_eq!(
                (&new.policy_hash, &new.action_id),
                (&sending.signal.policy_hash, &sending.signal.action_id)
            );
        }
        sending.signal.policy_hash
    };
    assert_eq!(hash_of(&|_| {}), hash());
    let pending = |w: &mut World| w.known("restart-service", ActionState::Pending);
    // Pinned to another since: asked for anew it is under the new one, as named under the old one.
    let moved = |w: &mut World| {
        pending(w);
        w.held().policy.hash = "next".to_owned();
    };
    assert_eq!(hash_of(&moved), "next");
    assert_eq!(
        hash_of(&|w| {
            moved(w);
            w.body["policy_hash"] = json!(hash());
        }),
        hash()
    );
    assert_eq!(
        hash_of(&|w| {
            pending(w);
            w.tenant().entitlements.clear();
        }),
        hash()
    );
}

#[test]
fn a_refusal_is_on_record_once_for_each_delivery_body_and_code() {
    let mut refused = world();
    refused.body["parameters"]["service"] = json!("me@example.org".repeat(20));
    let Step::Refuse { refusal, .. } = refused.decide() else {
        panic!("{:?}", refused.decide());
    };
    let asked = refused.asked();
    let draft = refusal.draft(&asked, 7, now());
    assert_eq!(draft.policy_hash, Some(hash()));
    let Payload::SignalRefused {
        code,
        detail,
        rules,
        action_id,
        template,
    } = &draft.payload
    else {
        panic!("{draft:?}");
    };
    assert_eq!(
        (code.as_str(), action_id.as_str(), template.as_str()),
        ("DENIED", "msg_1", "restart-service")
    );
    assert!(!rules.is_empty());
    assert!(!detail.as_deref().unwrap().contains('@'), "{detail:?}");
    let id =
        |refusal: &Refusal, asked: &ActionRequest| refusal.draft(asked, 0, Timestamp::UNIX_EPOCH).receipt_id;
    assert_eq!(id(&refusal, &asked), draft.receipt_id);
    let down = Refusal::unavailable("the system is degraded");
    let mut ids = vec![draft.receipt_id, id(&down, &asked)];
    let other = ActionRequest {
        delivery_id: "msg_2".to_owned(),
        ..asked.clone()
    };
    ids.push(id(&refusal, &other));
    let other = ActionRequest {
        account_id: AccountId::parse("d").unwrap(),
        ..asked.clone()
    };
    ids.push(id(&refusal, &other));
    // Another body under the same delivery is another refusal, even where it says the same in other words.
    let spaced = format!(" {}", refused.body);
    let other = ActionRequest::parse(&customer(), "msg_1", spaced.as_bytes()).unwrap();
    assert_eq!(other.posted, asked.posted);
    ids.push(id(&refusal, &other));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 5);
}

fn sending(world: &World) -> QueuedSignal {
    match world.decide() {
        Step::Send(sending) => *sending,
        step => panic!("{step:?}"),
    }
}

/// SQS takes `#x9 | #xA | #xD | [#x20-#xD7FF] | [#xE000-#xFFFD] | [#x10000-#x10FFFF]`.
#[test]
fn a_message_has_characters_only_that_a_queue_takes() {
    let odd: String = (0..0x20)
        .chain([
            0x7f, 0xd7ff, 0xe000, 0xfffd, 0xfffe, 0xffff, 0x1_0000, 0x1_fffe, 0x10_ffff,
        ])
        .map(|code| char::from_u32(code).unwrap())
        .chain("\\\u{fffe}\\\\\u{ffff}\"".chars())
        .collect();
    let mut world = world();
    world.known("restart-service", ActionState::Pending);
    world.body["parameters"] = json!({ odd.as_str(): odd });
    let sending = sending(&world);
    let message = sending.message().unwrap();
    let taken = |c: char| !c.is_control() && !['\u{fffe}', '\u{ffff}'].contains(&c) || c == '\u{7f}';
    assert!(message.chars().all(taken), "{message:?}");
    let read: Signal = serde_json::from_str(&message).unwrap();
    assert_eq!(read, sending.signal);
}

#[test]
fn a_message_is_no_longer_than_a_queue_takes() {
    // Whether it is sent for the first time or again.
    for known in [false, true] {
        let mut world = world();
        let with = |world: &mut World, length: usize, text: &str| {
            world.body["parameters"] = json!({ "service": "web", "note": text.repeat(length) });
            if known {
                world.known("restart-service", ActionState::Pending);
            }
            let asked = world.asked();
            let signal = asked.signal(&hash());
            QueuedSignal {
                signal,
                queue_url: String::new(),
                new: None,
            }
        };
        let fixed = with(&mut world, 0, "").message().unwrap().len();
        let most = MAX_MESSAGE_BYTES - fixed;
        let longest = with(&mut world, most, "x").message().map(|message| message.len());
        assert_eq!(longest, Ok(MAX_MESSAGE_BYTES));
        assert_eq!(with(&mut world, most + 1, "x").message(), Err(MessageTooLong));
        // It is measured as it is written: three bytes of UTF-8 become six.
        let escaped = with(&mut world, most / 6, "\u{ffff}").message();
        assert!(escaped.is_ok());
        assert_eq!(
            with(&mut world, most / 6 + 1, "\u{ffff}").message(),
            Err(MessageTooLong)
        );
    }
}

#[test]
fn a_pending_action_is_told_while_it_may_run() {
    for state in ActionState::ALL {
        for lifecycle in Lifecycle::ALL {
            let mut world = world();
            world.known("restart-service", state);
            world.tenant().lifecycle = lifecycle;
            let found = look(world.tenant.as_ref(), world.known.as_ref());
            let expected = match (state, lifecycle) {
                (ActionState::Pending, Lifecycle::Absent) => Err(NoStatus::Unknown),
                (ActionState::Pending, Lifecycle::Decommissioned) => Err(NoStatus::Gone),
                _ => Ok(state),
            };
            assert_eq!(
                found.map(|action| action.state),
                expected,
                "{state:?} {lifecycle:?}"
            );
        }
    }
    let mut world = world();
    assert_eq!(look(world.tenant.as_ref(), None), Err(NoStatus::Unknown));
    world.known("restart-service", ActionState::Pending);
    assert_eq!(look(None, world.known.as_ref()), Err(NoStatus::Unknown));
}

#[test]
fn a_template_is_kept_as_a_receipt_can_hold_it() {
    let mut long = world();
    long.body["template"] = json!(format!("a\u{7f}{}", "é".repeat(100)));
    let kept = format!("a{}", "é".repeat(63));
    assert_eq!(long.asked().template(), kept);
    long.known(&kept, ActionState::Complete);
    assert_eq!(told(&long.decide()), "tell complete");
}

proptest! {
    #[test]
    fn no_path_panics_and_every_account_is_reached(account in "[^\\p{Cc}]{1,256}", method in ".{0,5}", path in ".{0,80}") {
        let _ = Route::of(&method, &path);
        let account = AccountId::parse(account).unwrap();
        let encoded = crate::names::key_segment(account.as_str());
        let ask = Route::of("POST", &format!("/tenants/{encoded}/signals"));
        prop_assert_eq!(ask.as_ref().map(Route::account_id), Ok(&account));
        let tell = Route::of("GET", &format!("/prod/tenants/{encoded}/actions/a"));
        prop_assert_eq!(tell.as_ref().map(Route::account_id), Ok(&account));
    }

    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,100}") {
        let _ = ActionRequest::parse(&customer(), &text, &body);
        let _ = ActionRequest::parse(&customer(), "m", format!(r#"{{"template":{text},"parameters":{{"x":{text}}}}}"#).as_bytes());
    }

    /// Whatever is asked for: what is decided has an answer, and what goes on the queue is what was asked for.
    #[test]
    fn what_is_let_in_is_what_was_asked_for(template in ".{0,70}", name in ".{0,8}", value in -20i64..20, hash in "[0-9a-f]{0,4}") {
        let mut world = world();
        world.body = json!({ "template": template, "parameters": { name: value }, "policy_hash": hash });
        match world.decide() {
            Step::Send(sending) => {
                prop_assert_eq!(&json!(sending.signal.parameters), &world.body["parameters"]);
                prop_assert_eq!(sending.signal.template, template);
            }
            Step::Refuse { refusal, .. } => {
                prop_assert!((400..=599).contains(&refusal.reply().status));
                prop_assert!(!refusal.detail.is_empty());
            }
            Step::Tell(action) => prop_assert!(false, "{:?}", action),
        }
    }
}
