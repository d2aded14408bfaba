//! The gate: the ordered checks before an action. First match wins.
//!
//! | order | check | outcome |
//! |---|---|---|
//! | 1 | control unreadable, or mode degraded | refuse `UNAVAILABLE` |
//! | 2 | tenant unknown / not yet or no longer active / gone | refuse `NOT_FOUND` / `UNAVAILABLE` / `GONE` |
//! | 2b | none, or more than one, of its entitlements fits what the signal names | refuse `NO_ENTITLEMENT` / `AMBIGUOUS_ENTITLEMENT` |
//! | 2c | the entitlement is suspended | refuse `SUSPENDED` |
//! | 2d | the entitlement's term is over | refuse `EXPIRED` |
//! | 3 | not armed | refuse `DISARMED` |
//! | 4 | signal's policy hash ≠ enforcer's hash, or enforcer's hash ≠ the tenant's pin | refuse `POLICY_HASH_MISMATCH` |
//! | 5 | unknown action template | refuse `UNKNOWN_ACTION` |
//! | 6 | policy rules | refuse `DENIED` |
//! | 7 | safe mode, automation off, template disabled, tier above the rollout tier, tier 2 without a rule that names it | route |
//! | 8 | monthly quota | refuse `QUOTA_EXCEEDED` |
//! | 9 | concurrency limit | not now |

use crate::control::Control;
use crate::entitlement::Standing;
use crate::tenant::Lifecycle;

/// Machine-readable reason of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// The system is degraded, or the tenant is not ready or draining.
    Unavailable,
    /// No such tenant.
    NotFound,
    /// The tenant has been decommissioned.
    Gone,
    /// The account holds no entitlement that the signal could be for.
    NoEntitlement,
    /// The account holds several, and the signal does not say for which it is.
    AmbiguousEntitlement,
    /// The marketplace suspended the entitlement.
    Suspended,
    /// The entitlement's term is over, and the marketplace did not renew it.
    Expired,
    /// Operators have not armed the system.
    Disarmed,
    /// The signal, the enforcer and the tenant's pin do not agree on the policy.
    PolicyHashMismatch,
    /// The policy has no such template.
    UnknownAction,
    /// A policy rule said no.
    Denied,
    /// The month's actions are used up.
    QuotaExceeded,
    /// The message is not a signal of this tenant.
    MalformedSignal,
}

impl RefusalCode {
    /// The code as receipts and answers carry it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "UNAVAILABLE",
            Self::NotFound => "NOT_FOUND",
            Self::Gone => "GONE",
            Self::NoEntitlement => "NO_ENTITLEMENT",
            Self::AmbiguousEntitlement => "AMBIGUOUS_ENTITLEMENT",
            Self::Suspended => "SUSPENDED",
            Self::Expired => "EXPIRED",
            Self::Disarmed => "DISARMED",
            Self::PolicyHashMismatch => "POLICY_HASH_MISMATCH",
            Self::UnknownAction => "UNKNOWN_ACTION",
            Self::Denied => "DENIED",
            Self::QuotaExceeded => "QUOTA_EXCEEDED",
            Self::MalformedSignal => "MALFORMED_SIGNAL",
        }
    }
}

/// Machine-readable reason why a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteCode {
    /// Safe mode is on.
    SafeMode,
    /// Automation is off.
    AutomationDisabled,
    /// The template is disabled.
    TemplateDisabled,
    /// The action's tier is above the rollout tier.
    TierAboveRollout,
    /// A tier 2 action that no rule of the policy names.
    NoDeterministicMatch,
}

impl RouteCode {
    /// The code as receipts carry it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SafeMode => "SAFE_MODE",
            Self::AutomationDisabled => "AUTOMATION_DISABLED",
            Self::TemplateDisabled => "TEMPLATE_DISABLED",
            Self::TierAboveRollout => "TIER_ABOVE_ROLLOUT",
            Self::NoDeterministicMatch => "NO_DETERMINISTIC_MATCH",
        }
    }
}

/// What the gate needs to know of the tenant.
#[derive(Debug, Clone, Copy)]
pub struct TenantFacts<'a> {
    pub lifecycle: Lifecycle,
    /// The entitlement the signal is for.
    pub entitlement: EntitlementFacts<'a>,
}

/// What the gate needs to know of the entitlement a signal is for.
#[derive(Debug, Clone, Copy)]
pub enum EntitlementFacts<'a> {
    /// None fits.
    None,
    /// More than one fits.
    Several,
    One(HeldFacts<'a>),
}

/// What the gate needs to know of an entitlement.
#[derive(Debug, Clone, Copy)]
pub struct HeldFacts<'a> {
    pub standing: Standing,
    /// Whether its term is over.
    pub expired: bool,
    /// Hash its policy is pinned to.
    pub pinned_hash: &'a str,
    /// Actions left this month, those already let through in this batch taken off.
    pub monthly_left: u64,
    /// Actions that may start now, those already let through in this batch taken off.
    pub concurrent_left: u64,
}

/// What the gate needs to know of the action's template.
#[derive(Debug, Clone, Copy)]
pub struct TemplateFacts {
    /// 0 to 2.
    pub tier: u8,
    /// Whether a rule of the policy names the template.
    pub named_by_rule: bool,
}

/// What policy says of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyAnswer {
    /// It may run.
    Allow,
    /// It may not.
    Deny {
        /// Rules that decided.
        rules: Vec<String>,
        detail: Option<String>,
    },
}

/// Everything the gate looks at. `enforcer_hash` is `None` when no enforcer could be loaded.
#[derive(Debug, Clone, Copy)]
pub struct GateFacts<'a> {
    /// The control object, if it could be read.
    pub control: Option<&'a Control>,
    /// The tenant, if there is one.
    pub tenant: Option<TenantFacts<'a>>,
    /// Hash of the enforcer at hand.
    pub enforcer_hash: Option<&'a str>,
    /// The hash the signal names.
    pub signal_hash: &'a str,
    /// The template the signal names.
    pub template_name: &'a str,
    /// The enforcer's template of that name.
    pub template: Option<TemplateFacts>,
}

/// The gate's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Run it.
    Execute,
    /// Say no.
    Refuse {
        code: RefusalCode,
        /// Rules that decided, when policy did.
        rules: Vec<String>,
        detail: Option<String>,
    },
    /// Send it to a person.
    Route(RouteCode),
    /// Put it back: the concurrency limit is reached.
    NotNow,
}

fn refuse(code: RefusalCode) -> Verdict {
    Verdict::Refuse {
        code,
        rules: Vec::new(),
        detail: None,
    }
}

/// Asks the gate. `policy` is asked only when everything before it agrees.
pub fn gate(facts: &GateFacts<'_>, policy: impl FnOnce() -> PolicyAnswer) -> Verdict {
    let Some(control) = facts.control.filter(|control| !control.degraded()) else {
        return refuse(RefusalCode::Unavailable);
    };
    let Some(tenant) = facts.tenant else {
        return refuse(RefusalCode::NotFound);
    };
    match tenant.lifecycle {
        Lifecycle::Absent => return refuse(RefusalCode::NotFound),
        Lifecycle::Provisioning | Lifecycle::Decommissioning => {
            return refuse(RefusalCode::Unavailable);
        }
        Lifecycle::Decommissioned => return refuse(RefusalCode::Gone),
        Lifecycle::Active => {}
    }
    let held = match tenant.entitlement {
        EntitlementFacts::None => return refuse(RefusalCode::NoEntitlement),
        EntitlementFacts::Several => return refuse(RefusalCode::AmbiguousEntitlement),
        EntitlementFacts::One(held) => held,
    };
    if held.standing == Standing::Suspended {
        return refuse(RefusalCode::Suspended);
    }
    if held.expired {
        return refuse(RefusalCode::Expired);
    }
    let switches = &control.switches;
    if !switches.armed {
        return refuse(RefusalCode::Disarmed);
    }
    if facts.enforcer_hash != Some(facts.signal_hash) || facts.enforcer_hash != Some(held.pinned_hash) {
        return refuse(RefusalCode::PolicyHashMismatch);
    }
    let Some(template) = facts.template else {
        return refuse(RefusalCode::UnknownAction);
    };
    if let PolicyAnswer::Deny { rules, detail } = policy() {
        return Verdict::Refuse {
            code: RefusalCode::Denied,
            rules,
            detail,
        };
    }
    if switches.safe_mode {
        return Verdict::Route(RouteCode::SafeMode);
    }
    if !switches.automation_enabled {
        return Verdict::Route(RouteCode::AutomationDisabled);
    }
    if !switches.template_enabled(facts.template_name) {
        return Verdict::Route(RouteCode::TemplateDisabled);
    }
    if template.tier > switches.rollout_tier {
        return Verdict::Route(RouteCode::TierAboveRollout);
    }
    if template.tier >= 2 && !template.named_by_rule {
        return Verdict::Route(RouteCode::NoDeterministicMatch);
    }
    if held.monthly_left == 0 {
        return refuse(RefusalCode::QuotaExceeded);
    }
    if held.concurrent_left == 0 {
        return Verdict::NotNow;
    }
    Verdict::Execute
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::control::{Mode, Switches};

    /// A situation in which everything agrees; each row of the table breaks one thing.
    #[derive(Clone)]
    struct World {
        control: Option<Control>,
        lifecycle: Option<Lifecycle>,
        entitlements: usize,
        standing: Standing,
        expired: bool,
        enforcer: Option<&'static str>,
        signal: &'static str,
        pin: &'static str,
        template: Option<TemplateFacts>,
        deny: bool,
        monthly: u64,
        concurrent: u64,
    }

    fn world() -> World {
        let switches = Switches {
            armed: true,
            automation_enabled: true,
            safe_mode: false,
            rollout_tier: 2,
            disabled_templates: vec![],
        };
        World {
            control: Some(Control {
                switches,
                ..Control::default()
            }),
            lifecycle: Some(Lifecycle::Active),
            entitlements: 1,
            standing: Standing::Active,
            expired: false,
            enforcer: Some("h"),
            signal: "h",
            pin: "h",
            template: Some(TemplateFacts {
                tier: 1,
                named_by_rule: false,
            }),
            deny: false,
            monthly: 1,
            concurrent: 1,
        }
    }

    fn ask(world: &World) -> String {
        let facts = GateFacts {
            control: world.control.as_ref(),
            tenant: world.lifecycle.map(|lifecycle| TenantFacts {
                lifecycle,
                entitlement: match world.entitlements {
                    0 => EntitlementFacts::None,
                    1 => EntitlementFacts::One(HeldFacts {
                        standing: world.standing,
                        expired: world.expired,
                        pinned_hash: world.pin,
                        monthly_left: world.monthly,
                        concurrent_left: world.concurrent,
                    }),
                    _ => EntitlementFacts::Several,
                },
            }),
            enforcer_hash: world.enforcer,
            signal_hash: world.signal,
            template_name: "restart-service",
            template: world.template,
        };
        let verdict = gate(&facts, || {
            if world.deny {
                PolicyAnswer::Deny {
                    rules: vec!["r".to_owned()],
                    detail: None,
                }
            } else {
                PolicyAnswer::Allow
            }
        });
        match verdict {
            Verdict::Execute => "execute".to_owned(),
            Verdict::NotNow => "not now".to_owned(),
            Verdict::Route(code) => format!("route {}", code.name()),
            Verdict::Refuse { code, rules, .. } => {
                format!("refuse {}{}", code.name(), rules.concat())
            }
        }
    }

    type Break = fn(&mut World);

    fn switches(world: &mut World) -> &mut Switches {
        &mut world.control.as_mut().unwrap().switches
    }

    /// The rows in order, each as one thing that is wrong and what the gate then says.
    fn rows() -> Vec<(&'static str, Break)> {
        vec![
            ("refuse UNAVAILABLE", |w| w.control = None),
            ("refuse UNAVAILABLE", |w| {
                w.control.as_mut().unwrap().mode = Mode::Degraded {
                    since: Timestamp::UNIX_EPOCH,
                    receipt_id: Uuid::nil(),
                    announced: true,
                    reason: String::new(),
                    error_code: String::new(),
                    failure_count: 3,
                };
            }),
            ("refuse NOT_FOUND", |w| w.lifecycle = None),
            ("refuse GONE", |w| w.lifecycle = Some(Lifecycle::Decommissioned)),
            ("refuse UNAVAILABLE", |w| {
                w.lifecycle = Some(Lifecycle::Decommissioning)
            }),
            ("refuse UNAVAILABLE", |w| {
                w.lifecycle = Some(Lifecycle::Provisioning)
            }),
            ("refuse NO_ENTITLEMENT", |w| w.entitlements = 0),
            ("refuse AMBIGUOUS_ENTITLEMENT", |w| w.entitlements = 2),
            ("refuse SUSPENDED", |w| w.standing = Standing::Suspended),
            ("refuse EXPIRED", |w| w.expired = true),
            ("refuse DISARMED", |w| switches(w).armed = false),
            ("refuse POLICY_HASH_MISMATCH", |w| w.signal = "other"),
            ("refuse POLICY_HASH_MISMATCH", |w| w.pin = "other"),
            ("refuse POLICY_HASH_MISMATCH", |w| w.enforcer = None),
            ("refuse UNKNOWN_ACTION", |w| w.template = None),
            ("refuse DENIEDr", |w| w.deny = true),
            ("route SAFE_MODE", |w| switches(w).safe_mode = true),
            ("route AUTOMATION_DISABLED", |w| {
                switches(w).automation_enabled = false
            }),
            ("route TEMPLATE_DISABLED", |w| {
                switches(w).disabled_templates = vec!["restart-service".to_owned()]
            }),
            ("route TEMPLATE_DISABLED", |w| {
                switches(w).disabled_templates = vec!["*".to_owned()]
            }),
            ("route TIER_ABOVE_ROLLOUT", |w| switches(w).rollout_tier = 0),
            ("route NO_DETERMINISTIC_MATCH", |w| {
                w.template = Some(TemplateFacts {
                    tier: 2,
                    named_by_rule: false,
                })
            }),
            ("refuse QUOTA_EXCEEDED", |w| w.monthly = 0),
            ("not now", |w| w.concurrent = 0),
        ]
    }

    #[test]
    fn everything_agrees() {
        assert_eq!(ask(&world()), "execute");
        let named = World {
            template: Some(TemplateFacts {
                tier: 2,
                named_by_rule: true,
            }),
            ..world()
        };
        assert_eq!(ask(&named), "execute");
    }

    #[test]
    fn each_row_alone() {
        for (expected, break_it) in rows() {
            let mut world = world();
            break_it(&mut world);
            assert_eq!(ask(&world), expected);
        }
    }

    #[test]
    fn of_two_things_wrong_the_earlier_row_answers() {
        let rows = rows();
        for (first, (expected, break_first)) in rows.iter().enumerate() {
            for (_, break_second) in rows.iter().skip(first + 1) {
                let mut world = world();
                // The later row first: where both touch the same fact, the earlier one is what the gate sees.
                break_second(&mut world);
                break_first(&mut world);
                assert_eq!(ask(&world), *expected);
            }
        }
    }
}
