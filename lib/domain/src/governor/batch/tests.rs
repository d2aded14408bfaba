//! Tables of decisions.

use std::sync::Arc;

use crate::account::{AccountId, PlanType, SkuId};
use crate::control::Switches;
use crate::entitlement::{Entitlement, EventOrder, Isolation, Offer};
use crate::entitlement::{PolicyPin, Quota};
use crate::names::Partition;
use crate::tenant::{Lifecycle, Tenant};
use policy::enforcer::Enforcer;
use serde_json::json;

use super::*;

const POLICY: &str = include_str!("../../../../../policies/marketplace-sku-456/professional.yaml");

pub(crate) fn enforcer() -> Enforcer {
    Enforcer::load(&policy::compile(POLICY).unwrap().bytes).unwrap()
}

pub(crate) fn control() -> Control {
    let switches = Switches {
        armed: true,
        automation_enabled: true,
        safe_mode: false,
        rollout_tier: 2,
        disabled_templates: vec![],
    };
    Control {
        switches,
        ..Control::default()
    }
}

pub(crate) fn loaded(enforcer: &Enforcer) -> Enforcers {
    let again = Enforcer::load(&policy::compile(POLICY).unwrap().bytes).unwrap();
    assert_eq!(again.hash(), enforcer.hash());
    [(again.hash().to_owned(), Arc::new(again))].into()
}

pub(crate) fn account(enforcer: &Enforcer, concurrent: u64) -> Account {
    let at = Timestamp::UNIX_EPOCH;
    let offer = Offer {
        sku_id: SkuId::parse("s").unwrap(),
        plan_type: PlanType::parse("p").unwrap(),
        policy: PolicyPin {
            version: "1.0.0".to_owned(),
            hash: enforcer.hash().to_owned(),
        },
        quota: Quota {
            monthly_actions: 100,
            concurrent_actions: concurrent,
        },
        isolation: Isolation::Pool,
    };
    let order = EventOrder::at(at);
    let mut tenant = Tenant::absent(AccountId::parse("c").unwrap(), at);
    tenant.lifecycle = Lifecycle::Active;
    let held = Entitlement::granted(&offer, "us-east-1", None, order, at);
    tenant
        .entitlements
        .insert(EntitlementId::parse("s").unwrap(), held);
    Account {
        tenant: Some(tenant),
        ..Account::unknown(&Partition::from_key("c".to_owned()))
    }
}

pub(crate) fn message(enforcer: &Enforcer, id: &str, template: &str, parameters: Value) -> Message {
    let Value::Object(parameters) = parameters else {
        panic!()
    };
    let signal = Signal {
        action_id: id.to_owned().try_into().unwrap(),
        account_id: AccountId::parse("c").unwrap(),
        sku_id: None,
        entitlement_id: None,
        template: template.to_owned(),
        parameters,
        policy_hash: enforcer.hash().to_owned(),
    };
    Message {
        message_id: id.to_owned(),
        receipt_handle: String::new(),
        sent_at: Timestamp::UNIX_EPOCH,
        deliveries: 1,
        content: Content::Signal(signal),
        body: id.to_owned(),
    }
}

/// What is decided of signals that are all in hand.
fn decided(
    batch: &[Message],
    account: &Account,
    control: Option<&Control>,
    enforcers: &Enforcers,
) -> Vec<Step> {
    let batch: Vec<&Message> = batch.iter().collect();
    decide(&batch, account, control, enforcers, Timestamp::UNIX_EPOCH)
}

fn name(step: &Step) -> String {
    match step {
        Step::Settle(ActionEvent::Refused { code, rules, .. }) => {
            format!("{} {}", code.name(), rules.join(","))
        }
        Step::Settle(ActionEvent::Routed { code }) => code.name().to_owned(),
        Step::Execute(_) => "Execute".to_owned(),
        Step::Wait(NoPlace::Tenant) => "Wait".to_owned(),
        Step::Wait(NoPlace::Forsaken) => "Wait for the forsaken".to_owned(),
        Step::Wait(NoPlace::Entitlement(id)) => format!("Wait for {id}"),
        other => format!("{other:?}"),
    }
}

#[track_caller]
fn check(template: &str, parameters: Value, expected: &str) {
    let enforcer = enforcer();
    let batch = [message(&enforcer, "a", template, parameters)];
    let steps = decided(
        &batch,
        &account(&enforcer, 5),
        Some(&control()),
        &loaded(&enforcer),
    );
    assert_eq!(steps.iter().map(name).collect::<Vec<_>>(), [expected]);
}

#[test]
fn the_sample_policy_decides() {
    check("restart-service", json!({"service": "api"}), "Execute");
    check(
        "scale-service",
        json!({"service": "api", "replicas": 10}),
        "Execute",
    );
    check(
        "scale-service",
        json!({"service": "api", "replicas": 11}),
        "DENIED replicas-within-plan",
    );
    check(
        "restart-service",
        json!({"service": 5}),
        "DENIED parameter-schema",
    );
    check(
        "rotate-credentials",
        json!({"service": "api"}),
        "NO_DETERMINISTIC_MATCH",
    );
    check("drop-database", json!({}), "UNKNOWN_ACTION ");
}

#[test]
fn a_batch_never_exceeds_what_is_left_and_repeats_come_again() {
    let enforcer = enforcer();
    let ids = ["a", "b", "a", "c", "d"];
    let batch: Vec<Message> = ids
        .iter()
        .map(|id| message(&enforcer, id, "restart-service", json!({"service": "x"})))
        .collect();
    let steps = decided(
        &batch,
        &account(&enforcer, 2),
        Some(&control()),
        &loaded(&enforcer),
    );
    assert_eq!(
        steps.iter().map(name).collect::<Vec<_>>(),
        ["Execute", "Execute", "Busy", "Wait", "Wait"]
    );
}

/// Whose claims are over has governors that died, once their signals must have come again.
#[test]
fn places_that_nobody_is_at_work_on_are_told_apart() {
    let enforcer = enforcer();
    let batch = [message(
        &enforcer,
        "a",
        "restart-service",
        json!({"service": "x"}),
    )];
    for (claimed_until, expected) in [
        (None, "Wait"),
        (Some(20), "Wait"),
        (Some(-10), "Wait"),
        (Some(-11), "Wait for the forsaken"),
    ] {
        let mut account = account(&enforcer, 1);
        let tenant = account.tenant.as_mut().unwrap();
        tenant.in_flight = 1;
        tenant.entitlements.values_mut().next().unwrap().in_flight = 1;
        tenant.lease_until = claimed_until.map(|until| Timestamp::from_second(until).unwrap());
        let steps = decided(&batch, &account, Some(&control()), &loaded(&enforcer));
        assert_eq!(
            steps.iter().map(name).collect::<Vec<_>>(),
            [expected],
            "{claimed_until:?}"
        );
    }
}

/// Each entitlement has limits of its own, and a signal says which one it is for.
#[test]
fn entitlements_do_not_share_their_limits() {
    let enforcer = enforcer();
    let mut account = account(&enforcer, 1);
    let tenant = account.tenant.as_mut().unwrap();
    let mut other = tenant.entitlements.values().next().unwrap().clone();
    other.sku_id = SkuId::parse("t").unwrap();
    tenant
        .entitlements
        .insert(EntitlementId::parse("t").unwrap(), other);
    let for_sku = |id: &str, sku: Option<&str>| {
        let mut message = message(&enforcer, id, "restart-service", json!({"service": "x"}));
        let Content::Signal(signal) = &mut message.content else {
            panic!()
        };
        signal.sku_id = sku.map(|sku| SkuId::parse(sku).unwrap());
        message
    };
    let batch = [
        for_sku("a", Some("s")),
        for_sku("b", Some("t")),
        for_sku("c", Some("t")),
        for_sku("d", None),
        for_sku("e", Some("u")),
    ];
    let steps = decided(&batch, &account, Some(&control()), &loaded(&enforcer));
    assert_eq!(
        steps.iter().map(name).collect::<Vec<_>>(),
        [
            "Execute",
            "Execute",
            "Wait",
            "AMBIGUOUS_ENTITLEMENT ",
            "NO_ENTITLEMENT "
        ]
    );
    assert!(matches!(&steps[1], Step::Execute(id) if id.as_str() == "t"));
    let tenant = account.tenant.as_mut().unwrap();
    let held = tenant
        .entitlements
        .get_mut(&EntitlementId::parse("s").unwrap())
        .unwrap();
    held.quota.concurrent_actions = 5;
    let steps = decided(&batch[1..3], &account, Some(&control()), &loaded(&enforcer));
    assert_eq!(
        steps.iter().map(name).collect::<Vec<_>>(),
        ["Execute", "Wait for t"],
        "the tenant has places left"
    );
}

#[test]
fn known_actions_do_not_pass_the_gate_again() {
    let enforcer = enforcer();
    let now = Timestamp::from_second(1_000).unwrap();
    let batch = [message(
        &enforcer,
        "a",
        "restart-service",
        json!({"service": "x"}),
    )];
    for (state, lease, expected) in [
        (ActionState::Complete, 0, "Acknowledge"),
        (ActionState::Running, 1_001, "Busy"),
        (ActionState::Running, 1_000, "Undo"),
        (ActionState::TimedOut, 999, "Undo"),
    ] {
        let mut account = account(&enforcer, 2);
        let lease = Timestamp::from_second(lease).unwrap();
        let action = Action {
            state,
            ..action_of(&batch[0], &account, now)
        }
        .owned_by(Uuid::nil(), lease);
        account.actions.insert(action.action_id.clone(), action);
        let steps = decide(&[&batch[0]], &account, None, &Enforcers::new(), now);
        assert_eq!(
            steps.iter().map(name).collect::<Vec<_>>(),
            [expected],
            "{state:?}"
        );
    }
}

#[test]
fn malformed_messages_and_missing_tenants_are_refused() {
    let enforcer = enforcer();
    let action_id: ActionId = "m-1".to_owned().try_into().unwrap();
    let malformed = Message {
        message_id: "m-1".to_owned(),
        receipt_handle: String::new(),
        sent_at: Timestamp::UNIX_EPOCH,
        deliveries: 1,
        content: Content::Malformed {
            action_id,
            detail: "x".to_owned(),
        },
        body: String::new(),
    };
    let steps = decided(
        &[malformed],
        &account(&enforcer, 2),
        Some(&control()),
        &loaded(&enforcer),
    );
    assert_eq!(steps.iter().map(name).collect::<Vec<_>>(), ["MALFORMED_SIGNAL "]);
    let mut nobody = account(&enforcer, 2);
    nobody.tenant = None;
    let batch = [message(
        &enforcer,
        "a",
        "restart-service",
        Value::Object(Map::new()),
    )];
    let steps = decided(&batch, &nobody, Some(&control()), &Enforcers::new());
    assert_eq!(steps.iter().map(name).collect::<Vec<_>>(), ["NOT_FOUND "]);
}

#[test]
fn the_sample_event_asks_the_github_tenant_for_an_action_of_its_policy() {
    let event: Value =
        serde_json::from_str(include_str!("../../../../../events/governor/signal.json")).unwrap();
    let record = &event["Records"][0];
    let signal = Signal::parse(record["body"].as_str().unwrap()).unwrap();
    let queue = record["eventSourceARN"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap();
    assert!(crate::names::queue_belongs_to(
        queue,
        "governor",
        &signal.account_id
    ));
    let basic = policy::compile(include_str!(
        "../../../../../policies/github-marketplace/basic.yaml"
    ))
    .unwrap();
    assert_eq!(signal.policy_hash, basic.hash);
    let enforcer = Enforcer::load(&basic.bytes).unwrap();
    let decided = enforcer.decide(signal.account_id.as_str(), &signal.template, &signal.parameters);
    assert!(decided.is_allowed(), "{decided:?}");
}
