//! What to do with a batch of signals: pure, so that it can be asked again whenever another writer was first.

use std::collections::BTreeSet;

use aws::store::Account;
use domain::action::{Action, ActionEvent, Standing, standing};
use domain::control::Control;
use domain::gate::{GateFacts, PolicyAnswer, RefusalCode, TemplateFacts, TenantFacts, Verdict, gate};
use domain::names::printable;
use domain::signal::{ActionId, Signal};
use jiff::Timestamp;
use policy::enforcer::{Decision, Enforcer};

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
    /// Run it.
    Execute,
    /// Take it over from a governor that did not finish, and undo it.
    Undo,
}

impl Step {
    /// Whether the handler is called.
    #[must_use]
    pub fn calls_handler(&self) -> bool {
        matches!(self, Self::Execute | Self::Undo)
    }
}

/// Decides each message of a batch, in order; what is let through counts against the limits of the next.
#[must_use]
pub fn decide(
    messages: &[Message],
    account: &Account,
    control: Option<&Control>,
    enforcer: Option<&Enforcer>,
    now: Timestamp,
) -> Vec<Step> {
    let mut seen = BTreeSet::new();
    let mut running = 0u64;
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
                    Standing::New => ask(message, account, control, enforcer, running, now),
                }
            };
            running += u64::from(step == Step::Execute);
            step
        })
        .collect()
}

fn ask(
    message: &Message,
    account: &Account,
    control: Option<&Control>,
    enforcer: Option<&Enforcer>,
    running: u64,
    now: Timestamp,
) -> Step {
    let signal = match &message.asked {
        Asked::Signal(signal) => signal,
        Asked::Malformed { detail, .. } => {
            return refuse(RefusalCode::MalformedSignal, Some(detail.clone()), Vec::new());
        }
    };
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
            pinned_hash: &tenant.policy.hash,
            monthly_left: tenant.monthly_left(now).saturating_sub(running),
            concurrent_left: tenant.concurrent_left().saturating_sub(running),
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
    match gate(&facts, policy) {
        Verdict::Execute => Step::Execute,
        Verdict::NotNow => Step::Later,
        Verdict::Refuse { code, rules, detail } => refuse(code, detail, rules),
        Verdict::Route(code) => Step::Settle(ActionEvent::Routed { code }),
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
pub fn action_of(message: &Message, account: &Account, policy_hash: &str, now: Timestamp) -> Action {
    let known = account.actions.get(message.action_id()).cloned();
    known.unwrap_or_else(|| {
        Action::pending(message.action_id().clone(), &message.template(), policy_hash, now)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aws::store::Account;
    use domain::account::{AccountId, PlanType, SkuId};
    use domain::action::ActionState;
    use domain::control::Switches;
    use domain::tenant::{Lifecycle, PolicyPin, Quota, Tenant, TenantResources};
    use receipts::ledger::Head;
    use serde_json::{Map, Value, json};
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

    fn account(enforcer: &Enforcer, concurrent: u64) -> Account {
        let tenant = Tenant {
            account_id: AccountId::parse("c").unwrap(),
            lifecycle: Lifecycle::Active,
            generation: 1,
            sku_id: SkuId::parse("s").unwrap(),
            plan_type: PlanType::parse("p").unwrap(),
            region: "us-east-1".to_owned(),
            fsm_id: "q".to_owned(),
            policy: PolicyPin {
                version: "1.0.0".to_owned(),
                hash: enforcer.hash().to_owned(),
            },
            quota: Quota {
                monthly_actions: 100,
                concurrent_actions: concurrent,
            },
            resources: TenantResources::default(),
            in_flight: 0,
            month: "1970-01".to_owned(),
            month_actions: 0,
            actions_completed: 0,
            actions_failed: 0,
            subscribed_at: Timestamp::UNIX_EPOCH,
            revision: 1,
        };
        Account {
            partition: "c".to_owned(),
            tenant: Some(tenant),
            head: Head::empty(),
            actions: BTreeMap::new(),
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
            Some(&enforcer),
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
            Some(&enforcer),
            now,
        );
        assert_eq!(
            steps.iter().map(name).collect::<Vec<_>>(),
            ["Execute", "Execute", "Acknowledge", "Later", "Later"]
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
            (ActionState::Running, 1_001, "Later"),
            (ActionState::Running, 1_000, "Undo"),
            (ActionState::TimedOut, 999, "Undo"),
        ] {
            let mut account = account(&enforcer, 2);
            let lease = Timestamp::from_second(lease).unwrap();
            let action = Action {
                state,
                ..action_of(&batch[0], &account, "h", now)
            }
            .owned_by(Uuid::nil(), lease);
            account.actions.insert(action.action_id.clone(), action);
            let steps = decide(&batch, &account, None, None, now);
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
            Some(&enforcer),
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
        let steps = decide(&batch, &nobody, Some(&control()), None, now);
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
