//! What a signal meets before it may become an action: its tenant, the entitlement it is for, that one's enforcer, the gate.
//!
//! Whoever takes signals asks here: the front door before it puts one on the queue, the governor before it runs one. Facts
//! may differ in between, so the governor has the last word.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use policy::{Decision, Enforcer, is_permit};

use crate::account::EntitlementId;
use crate::control::Control;
use crate::entitlement::Entitlement;
use crate::gate::{
    EntitlementFacts, GateFacts, HeldFacts, PolicyAnswer, TemplateFacts, TenantFacts, Verdict, gate,
};
use crate::names::printable;
use crate::signal::Signal;
use crate::tenant::{Selected, Tenant};

/// Loaded enforcers by hash.
pub type Enforcers = BTreeMap<String, Arc<Enforcer>>;

/// What was let through before, in the same batch: it counts, though no table has it yet.
#[derive(Debug, Clone, Default)]
pub struct Admissions(BTreeMap<EntitlementId, u64>);

impl Admissions {
    /// One more, of this entitlement.
    pub fn add(&mut self, id: &EntitlementId) {
        let count = self.0.entry(id.clone()).or_default();
        *count = count.saturating_add(1);
    }

    fn of(&self, id: &EntitlementId) -> u64 {
        self.0.get(id).copied().unwrap_or_default()
    }

    fn all(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether the tenant has a free place behind all these.
    #[must_use]
    pub fn leave_room(&self, tenant: &Tenant) -> bool {
        tenant.in_flight.saturating_add(self.all()) < tenant.in_flight_action_limit()
    }

    /// How many, by entitlement.
    #[must_use]
    pub fn by_entitlement(&self) -> &BTreeMap<EntitlementId, u64> {
        &self.0
    }
}

/// The gate's answer about one signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub verdict: Verdict,
    /// The entitlement the signal is for, when that can be told.
    pub entitlement: Option<EntitlementId>,
    /// Hash of the policy that entitlement is pinned to; empty when no entitlement can be told.
    pub policy_hash: String,
}

/// The entitlement a signal is for, when that can be told.
#[must_use]
pub fn held<'a>(signal: &Signal, tenant: Option<&'a Tenant>) -> Option<(&'a EntitlementId, &'a Entitlement)> {
    match selected(signal, tenant?) {
        Selected::One(id, held) => Some((id, held)),
        Selected::None | Selected::Several => None,
    }
}

fn selected<'a>(signal: &Signal, tenant: &'a Tenant) -> Selected<'a> {
    tenant.select(signal.entitlement_id.as_ref(), signal.sku_id.as_ref())
}

/// Asks the gate about a signal.
#[must_use]
pub fn admit(
    signal: &Signal,
    tenant: Option<&Tenant>,
    control: Option<&Control>,
    enforcers: &Enforcers,
    let_through: &Admissions,
    now: Timestamp,
) -> Admission {
    let held = held(signal, tenant);
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
        tenant: tenant.map(|tenant| TenantFacts {
            lifecycle: tenant.lifecycle,
            entitlement: match selected(signal, tenant) {
                Selected::One(id, held) => {
                    let of_tenant = tenant
                        .in_flight_action_limit()
                        .saturating_sub(tenant.in_flight)
                        .saturating_sub(let_through.all());
                    let of_entitlement = held.concurrent_left().saturating_sub(let_through.of(id));
                    EntitlementFacts::One(HeldFacts {
                        standing: held.standing,
                        expired: held.expired(now),
                        pinned_hash: &held.policy.hash,
                        monthly_left: held.monthly_left(now).saturating_sub(let_through.of(id)),
                        concurrent_left: of_tenant.min(of_entitlement),
                    })
                }
                Selected::Several => EntitlementFacts::Several,
                Selected::None => EntitlementFacts::None,
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
    Admission {
        verdict: gate(&facts, policy),
        entitlement: held.map(|(id, _)| id.clone()),
        policy_hash: held.map(|(_, held)| held.policy.hash.clone()).unwrap_or_default(),
    }
}

/// Whether one of compliance's own rules names the template; the permit that every template has is not such a rule.
fn named_by_rule(enforcer: &Enforcer, template: &str) -> bool {
    let policies = &enforcer.bundle().cedar_policies;
    policies
        .iter()
        .any(|p| !is_permit(&p.id) && p.actions.iter().any(|action| action == template))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = include_str!("../../../policies/marketplace-sku-456/professional.yaml");

    #[test]
    fn a_template_is_named_by_compliances_own_rules_only() {
        let enforcer = |yaml: &str| Enforcer::load(&policy::compile(yaml).unwrap().bytes).unwrap();
        let ruled = enforcer(POLICY);
        assert!(named_by_rule(&ruled, "scale-service"));
        for template in ["rotate-credentials", "no-such-template"] {
            assert!(!named_by_rule(&ruled, template), "{template}");
        }
        let (actions_alone, _) = POLICY.split_once("\nrules:").unwrap();
        let unruled = enforcer(actions_alone);
        assert!(unruled.action("scale-service").is_some());
        assert!(!named_by_rule(&unruled, "scale-service"));
    }
}
