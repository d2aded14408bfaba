//! What to do with a batch of signals: pure, so that it can be asked again whenever another writer was first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws::store::Account;
use domain::account::EntitlementId;
use domain::action::{Action, ActionEvent, Standing, standing};
use domain::control::Control;
use domain::gate::{
    EntitlementFacts, GateFacts, HeldFacts, PolicyAnswer, RefusalCode, TemplateFacts, TenantFacts, Verdict,
    gate,
};
use domain::names::printable;
use domain::signal::{ActionId, Signal};
use domain::tenant::{Selected, Tenant};
use jiff::Timestamp;
use policy::enforcer::{Decision, Enforcer};
use serde_json::{Map, Value};

/// Loaded enforcers by hash.
pub type Enforcers = BTreeMap<String, Arc<Enforcer>>;

/// A message of the batch, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// SQS's id, by which a failure is reported.
    pub message_id: String,
    /// Handle by which the message can be given back early.
    pub receipt_handle: String,
    /// When it was put on the queue.
    pub sent_at: Timestamp,
    /// How many times it was delivered, this time included.
    pub deliveries: u32,
    /// What it asks for.
    pub asked: Asked,
}

/// What a message asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// An action.
    Signal(Signal),
    /// Nothing that can be understood as this tenant's signal.
    Malformed {
        /// Id under which the refusal is kept: the message's own.
        action_id: ActionId,
        /// What is wrong with it.
        detail: String,
    },
}

impl Message {
    /// The action it is about.
    #[must_use]
    pub fn action_id(&self) -> &ActionId {
        match &self.asked {
            Asked::Signal(signal) => &signal.action_id,
            Asked::Malformed { action_id, .. } => action_id,
        }
    }

    /// What it asks for with.
    #[must_use]
    pub fn parameters(&self) -> Option<Map<String, Value>> {
        match &self.asked {
            Asked::Signal(signal) => Some(signal.parameters.clone()),
            Asked::Malformed { .. } => None,
        }
    }

    /// The template it names, safe for a receipt.
    #[must_use]
    pub fn template(&self) -> String {
        match &self.asked {
            Asked::Signal(signal) => printable(&signal.template, 64),
            Asked::Malformed { .. } => String::new(),
        }
    }
}

/// What to do with one message.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Its action is final, or another message of the batch asks for the same: acknowledge.
    Acknowledge,
    /// Not now: give it back.
    Later,
    /// Settle it without running anything: refused or routed.
    Settle(ActionEvent),
    /// Run it, under this entitlement.
    Execute(EntitlementId),
    /// Take it over from a governor that did not finish, and undo it.
    Undo,
}

impl Step {
    /// Whether the handler is called.
    #[must_use]
    pub fn calls_handler(&self) -> bool {
        matches!(self, Self::Execute(_) | Self::Undo)
    }
}

/// Decides each message of a batch, in order; what is let through counts against the limits of the next.
#[must_use]
pub fn decide(
    messages: &[Message],
    account: &Account,
    control: Option<&Control>,
    enforcers: &Enforcers,
    now: Timestamp,
) -> Vec<Step> {
    let mut seen = BTreeSet::new();
    // Let through so far, of each entitlement.
    let mut running: BTreeMap<EntitlementId, u64> = BTreeMap::new();
    messages
        .iter()
        .map(|message| {
            let step = if !seen.insert(message.action_id()) {
                Step::Acknowledge
            } else {
                match standing(account.actions.get(message.action_id()), now) {
                    Standing::Done => Step::Acknowledge,
                    Standing::Busy => Step::Later,
                    Standing::Undo => Step::Undo,
                    Standing::New => ask(message, account, control, enforcers, &running, now),
                }
            };
            if let Step::Execute(id) = &step {
                let count = running.entry(id.clone()).or_default();
                *count = count.saturating_add(1);
            }
            step
        })
        .collect()
}

fn ask(
    message: &Message,
    account: &Account,
    control: Option<&Control>,
    enforcers: &Enforcers,
    running: &BTreeMap<EntitlementId, u64>,
    now: Timestamp,
) -> Step {
    let signal = match &message.asked {
        Asked::Signal(signal) => signal,
        Asked::Malformed { detail, .. } => {
            return refuse(RefusalCode::MalformedSignal, Some(detail.clone()), Vec::new());
        }
    };
    let selected = account.tenant.as_ref().map(|tenant| selected(signal, tenant));
    let held = match selected {
        Some(Selected::One(id, held)) => Some((id, held)),
        Some(Selected::None | Selected::Several) | None => None,
    };
    let enforcer = held
        .and_then(|(_, held)| enforcers.get(&held.policy.hash))
        .map(Arc::as_ref);
    let template = enforcer
        .and_then(|e| e.action(&signal.template))
        .map(|action| TemplateFacts {
            tier: u8::try_from(action.tier.level()).unwrap_or(u8::MAX),
            named_by_rule: enforcer.is_some_and(|e| named_by_rule(e, &signal.template)),
        });
    let facts = GateFacts {
        control,
        tenant: account.tenant.as_ref().map(|tenant| TenantFacts {
            lifecycle: tenant.lifecycle,
            entitlement: match selected {
                Some(Selected::One(id, held)) => {
                    let running = running.get(id).copied().unwrap_or_default();
                    EntitlementFacts::One(HeldFacts {
                        standing: held.standing,
                        pinned_hash: &held.policy.hash,
                        monthly_left: held.monthly_left(now).saturating_sub(running),
                        concurrent_left: held.concurrent_left().saturating_sub(running),
                    })
                }
                Some(Selected::Several) => EntitlementFacts::Several,
                Some(Selected::None) | None => EntitlementFacts::None,
            },
        }),
        enforcer_hash: enforcer.map(Enforcer::hash),
        signal_hash: &signal.policy_hash,
        template_name: &signal.template,
        template,
    };
    let policy = || match enforcer
        .map(|e| e.decide(signal.account_id.as_str(), &signal.template, &signal.parameters))
    {
        Some(Decision::Allow { .. }) => PolicyAnswer::Allow,
        Some(Decision::Deny { rules, detail }) => PolicyAnswer::Deny {
            rules,
            detail: Some(printable(&detail, 512)),
        },
        None => PolicyAnswer::Deny {
            rules: Vec::new(),
            detail: None,
        },
    };
    match (gate(&facts, policy), held) {
        (Verdict::Execute, Some((id, _))) => Step::Execute(id.clone()),
        // The gate lets nothing through without an entitlement.
        (Verdict::Execute, None) => refuse(RefusalCode::NoEntitlement, None, Vec::new()),
        (Verdict::NotNow, _) => Step::Later,
        (Verdict::Refuse { code, rules, detail }, _) => refuse(code, detail, rules),
        (Verdict::Route(code), _) => Step::Settle(ActionEvent::Routed { code }),
    }
}

/// The entitlement a signal is about.
fn selected<'a>(signal: &Signal, tenant: &'a Tenant) -> Selected<'a> {
    tenant.select(signal.entitlement_id.as_ref(), signal.sku_id.as_ref())
}

/// Hash of the policy a message is decided by; empty when no entitlement can be told.
#[must_use]
pub fn policy_of(message: &Message, account: &Account) -> String {
    let Asked::Signal(signal) = &message.asked else {
        return String::new();
    };
    match account.tenant.as_ref().map(|tenant| selected(signal, tenant)) {
        Some(Selected::One(_, held)) => held.policy.hash.clone(),
        Some(Selected::None | Selected::Several) | None => String::new(),
    }
}

fn refuse(code: RefusalCode, detail: Option<String>, rules: Vec<String>) -> Step {
    Step::Settle(ActionEvent::Refused { code, detail, rules })
}

/// Whether one of compliance's own rules names the template; the permit that every template has is not such a rule.
fn named_by_rule(enforcer: &Enforcer, template: &str) -> bool {
    let permit = format!("permit:{template}");
    let policies = &enforcer.bundle().cedar_policies;
    policies
        .iter()
        .any(|p| p.id != permit && p.actions.iter().any(|action| action == template))
}

/// The action a message asks for, as it stands before this batch touches it.
#[must_use]
pub fn action_of(message: &Message, account: &Account, now: Timestamp) -> Action {
    let known = account.actions.get(message.action_id()).cloned();
    known.unwrap_or_else(|| {
        let policy_hash = policy_of(message, account);
        Action::pending(
            message.action_id().clone(),
            &message.template(),
            &policy_hash,
            now,
        )
    })
}

#[cfg(test)]
mod tests {
    use domain::account::{AccountId, PlanType, SkuId};
    use domain::action::ActionState;
    use domain::control::Switches;
    use domain::entitlement::{Entitlement, EventOrder, Isolation, Offer};
    use domain::tenant::{Lifecycle, PolicyPin, Quota};
    use receipts::ledger::Head;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    const POLICY: &str = include_str!("../../../policies/marketplace-sku-456/professional.yaml");

    fn enforcer() -> Enforcer {
        Enforcer::load(&policy::compile(POLICY).unwrap().bytes).unwrap()
    }

    fn control() -> Control {
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

    fn loaded(enforcer: &Enforcer) -> Enforcers {
        let again = Enforcer::load(&policy::compile(POLICY).unwrap().bytes).unwrap();
        assert_eq!(again.hash(), enforcer.hash());
        [(again.hash().to_owned(), Arc::new(again))].into()
    }

    fn account(enforcer: &Enforcer, concurrent: u64) -> Account {
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
        let order = EventOrder { version: None, at };
        let mut tenant = Tenant::absent(AccountId::parse("c").unwrap(), at);
        tenant.lifecycle = Lifecycle::Active;
        let held = Entitlement::granted(&offer, "us-east-1", None, order, at);
        tenant
            .entitlements
            .insert(EntitlementId::parse("s").unwrap(), held);
        Account {
            partition: "c".to_owned(),
            tenant: Some(tenant),
            head: Head::empty(),
            actions: BTreeMap::new(),
            own_actions: BTreeSet::new(),
            delivery: None,
            once: BTreeSet::new(),
        }
    }

    fn message(enforcer: &Enforcer, id: &str, template: &str, parameters: Value) -> Message {
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
            asked: Asked::Signal(signal),
        }
    }

    fn name(step: &Step) -> String {
        match step {
            Step::Settle(ActionEvent::Refused { code, rules, .. }) => {
                format!("{} {}", code.name(), rules.join(","))
            }
            Step::Settle(ActionEvent::Routed { code }) => code.name().to_owned(),
            Step::Execute(_) => "Execute".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[track_caller]
    fn check(template: &str, parameters: Value, expected: &str) {
        let enforcer = enforcer();
        let batch = [message(&enforcer, "a", template, parameters)];
        let now = Timestamp::UNIX_EPOCH;
        let steps = decide(
            &batch,
            &account(&enforcer, 5),
            Some(&control()),
            &loaded(&enforcer),
            now,
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
    fn a_batch_never_exceeds_what_is_left_and_repeats_are_acknowledged() {
        let enforcer = enforcer();
        let ids = ["a", "b", "a", "c", "d"];
        let batch: Vec<Message> = ids
            .iter()
            .map(|id| message(&enforcer, id, "restart-service", json!({"service": "x"})))
            .collect();
        let now = Timestamp::UNIX_EPOCH;
        let steps = decide(
            &batch,
            &account(&enforcer, 2),
            Some(&control()),
            &loaded(&enforcer),
            now,
        );
        assert_eq!(
            steps.iter().map(name).collect::<Vec<_>>(),
            ["Execute", "Execute", "Acknowledge", "Later", "Later"]
        );
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
            let Asked::Signal(signal) = &mut message.asked else {
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
        let now = Timestamp::UNIX_EPOCH;
        let steps = decide(&batch, &account, Some(&control()), &loaded(&enforcer), now);
        assert_eq!(
            steps.iter().map(name).collect::<Vec<_>>(),
            [
                "Execute",
                "Execute",
                "Later",
                "AMBIGUOUS_ENTITLEMENT ",
                "NO_ENTITLEMENT "
            ]
        );
        assert!(matches!(&steps[1], Step::Execute(id) if id.as_str() == "t"));
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
            (ActionState::Running, 1_001, "Later"),
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
            let steps = decide(&batch, &account, None, &Enforcers::new(), now);
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
            asked: Asked::Malformed {
                action_id,
                detail: "x".to_owned(),
            },
        };
        let now = Timestamp::UNIX_EPOCH;
        let steps = decide(
            &[malformed],
            &account(&enforcer, 2),
            Some(&control()),
            &loaded(&enforcer),
            now,
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
        let steps = decide(&batch, &nobody, Some(&control()), &Enforcers::new(), now);
        assert_eq!(steps.iter().map(name).collect::<Vec<_>>(), ["NOT_FOUND "]);
    }

    #[test]
    fn the_sample_event_asks_the_github_tenant_for_an_action_of_its_policy() {
        let event: Value =
            serde_json::from_str(include_str!("../../../events/governor/signal.json")).unwrap();
        let record = &event["Records"][0];
        let signal = Signal::parse(record["body"].as_str().unwrap()).unwrap();
        let queue = record["eventSourceARN"]
            .as_str()
            .unwrap()
            .rsplit(':')
            .next()
            .unwrap();
        assert!(domain::names::queue_belongs_to(
            queue,
            "governor",
            &signal.account_id
        ));
        let basic = policy::compile(include_str!("../../../policies/github-marketplace/basic.yaml")).unwrap();
        assert_eq!(signal.policy_hash, basic.hash);
        let enforcer = Enforcer::load(&basic.bytes).unwrap();
        let decided = enforcer.decide(signal.account_id.as_str(), &signal.template, &signal.parameters);
        assert!(decided.is_allowed(), "{decided:?}");
    }
}
