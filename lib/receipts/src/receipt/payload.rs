//! What an operation did: one typed payload for each.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::millis;

/// How an operation ended, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It did what it was asked to.
    Success,
    /// It was tried and did not work.
    Failed,
    /// It was not allowed, and nothing was done.
    Refused,
    /// A person decides; nothing was done.
    Routed,
    /// It began; another receipt says how it ended.
    Started,
    /// There was nothing to do.
    Ignored,
}

impl Status {
    /// The word as it stands in a receipt.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Routed => "routed",
            Self::Started => "started",
            Self::Ignored => "ignored",
        }
    }
}

/// What a tenant's plan allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quota {
    /// Actions in a calendar month.
    pub monthly_actions: u64,
    /// Actions in flight at once.
    pub concurrent_actions: u64,
}

/// What was provisioned for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Resources {
    /// The tenant's governor.
    pub fsm_id: String,
    /// The tenant's queue.
    pub queue: String,
    /// The table that holds the tenant.
    pub table: String,
}

/// A change of a governor's concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Concurrency {
    /// Before.
    pub previous: u64,
    /// After.
    pub new: u64,
}

/// A difference in cost per month, in US dollars, exact to 1/10,000 dollar.
///
/// The one amount that stands in receipts as a JSON number. Counted in ten-thousandths, so that the number has the
/// same digits in RFC 8785 and in `jq`, whatever computed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "f64", into = "f64")]
#[cfg_attr(test, schemars(transform = crate::schema::usd_delta))]
pub struct UsdDelta(i64);

impl UsdDelta {
    /// A dollar's parts.
    const PARTS: f64 = 10_000.0;
    /// ± a hundred million dollars; every value inside prints without an exponent.
    const LIMIT: i64 = 1_000_000_000_000;

    /// From ten-thousandths of a dollar; `None` from a hundred million dollars on.
    pub fn from_ten_thousandths(parts: i64) -> Option<Self> {
        (parts.unsigned_abs() < Self::LIMIT.unsigned_abs()).then_some(Self(parts))
    }

    /// In ten-thousandths of a dollar.
    pub fn ten_thousandths(self) -> i64 {
        self.0
    }
}

impl From<UsdDelta> for f64 {
    fn from(delta: UsdDelta) -> Self {
        delta.0 as Self / UsdDelta::PARTS
    }
}

impl TryFrom<f64> for UsdDelta {
    type Error = String;

    fn try_from(dollars: f64) -> Result<Self, Self::Error> {
        // Out of range saturates, and is then refused; NaN becomes 0, which JSON can't bring.
        Self::from_ten_thousandths((dollars * Self::PARTS).round() as i64)
            .ok_or_else(|| format!("a cost difference of {dollars} dollars is out of range"))
    }
}

/// The result of an attempt to change a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyOutcome {
    /// The version that was offered; absent when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<String>,
    /// The version that was in force; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// Why it came out so.
    pub reason: String,
    /// A request the two versions decide differently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counterexample: Option<String>,
}

/// A decision about a governor's concurrency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Scaling {
    /// Before and after; equal when nothing changed.
    pub concurrency: Concurrency,
    /// What the quota said.
    pub quota_check: String,
    /// What the change costs a month.
    pub cost_delta_usd: UsdDelta,
}

/// An action and how the gate or the handler answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActionOutcome {
    /// The action.
    pub action_id: String,
    /// Its template in the policy.
    pub template: String,
    /// The answer's code.
    pub code: String,
}

/// An entitlement whose state changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EntitlementOutcome {
    /// The agreement.
    pub entitlement_id: String,
    /// Its product.
    pub sku_id: String,
}

/// A file of entries that stands beside an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArchivedFile {
    /// Where it is.
    pub path: String,
    /// Its SHA-256 in lower-case hex.
    #[cfg_attr(test, schemars(schema_with = "crate::schema::sha256"))]
    pub sha256: String,
    /// Its bytes.
    pub size_bytes: u64,
    /// The entries in it.
    pub entries: u64,
}

/// What an operation did. One variant for each operation; the tag `operation` is the variant's name in snake case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Payload {
    /// A tenant was provisioned.
    EntitlementActive {
        /// The agreement; absent where the sender names none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entitlement_id: Option<String>,
        /// The product.
        sku_id: String,
        /// The plan.
        plan_type: String,
        /// Where the tenant lives.
        region: String,
        /// The policy in force.
        policy_version: String,
        /// The tenant's governor.
        fsm_id: String,
        /// What the plan allows.
        quota: Quota,
        /// What was made.
        resources: Resources,
    },
    /// Provisioning failed and was undone.
    EntitlementFailed {
        /// The agreement; absent where the sender names none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entitlement_id: Option<String>,
        /// The product asked for.
        sku_id: String,
        /// The plan asked for.
        plan_type: String,
        /// Why.
        reason: String,
        /// The step that failed.
        step: String,
        /// The steps that were undone, in the order of undoing.
        undone: Vec<String>,
    },
    /// An entitlement has another plan; policy and limits changed with it.
    EntitlementChanged {
        /// The agreement.
        entitlement_id: String,
        /// The product.
        sku_id: String,
        /// The plan until now.
        previous_plan_type: String,
        /// The plan from now on.
        plan_type: String,
        /// The policy in force until now.
        previous_policy_version: String,
        /// The policy in force from now on.
        policy_version: String,
        /// What the new plan allows.
        quota: Quota,
    },
    /// An entitlement was suspended: everything is kept, and nothing runs until it is reinstated.
    EntitlementSuspended(EntitlementOutcome),
    /// A suspended entitlement is in force again.
    EntitlementReinstated(EntitlementOutcome),
    /// An entitlement goes on.
    EntitlementRenewed {
        /// The agreement.
        entitlement_id: String,
        /// The product.
        sku_id: String,
        /// When it ends unless it is renewed again; absent where the sender does not say.
        #[serde(
            default,
            serialize_with = "millis::serialize_some",
            skip_serializing_if = "Option::is_none"
        )]
        #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
        expires_at: Option<Timestamp>,
    },
    /// An entitlement ended on its day, as its marketplace neither renewed nor cancelled it.
    EntitlementExpired {
        /// The agreement.
        entitlement_id: String,
        /// The product.
        sku_id: String,
        /// When it ended.
        #[serde(serialize_with = "millis::serialize")]
        #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
        expires_at: Timestamp,
    },
    /// One of several entitlements of an account was cancelled; the tenant lives on.
    EntitlementCancelled {
        /// The agreement.
        entitlement_id: String,
        /// The product.
        sku_id: String,
        /// Entitlements the account still has.
        entitlements_left: u64,
    },
    /// An event is kept and carried out later.
    EntitlementDeferred {
        /// The agreement; absent where the sender names none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entitlement_id: Option<String>,
        /// The product; absent where the sender names none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sku_id: Option<String>,
        /// What is to happen.
        event: String,
        /// Why not now.
        reason: String,
        /// When it is carried out; absent when it waits for something else than a time.
        #[serde(
            default,
            serialize_with = "millis::serialize_some",
            skip_serializing_if = "Option::is_none"
        )]
        #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
        due_at: Option<Timestamp>,
    },
    /// Tenants moved to a new policy.
    PolicyUpgraded {
        /// The policy in force now.
        policy_version: String,
        /// The policy in force before.
        previous_version: String,
        /// Governors that took it.
        governors_updated: u64,
        /// Governors that did not.
        governors_failed: u64,
        /// What the compatibility check said.
        compatibility_check: String,
    },
    /// A policy was not valid.
    PolicyValidationFailed(PolicyOutcome),
    /// A policy was not taken.
    PolicyUpgradeSkipped(PolicyOutcome),
    /// An earlier policy was put back.
    PolicyRollback(PolicyOutcome),
    /// A policy was put in force against the compatibility check.
    PolicyForced(PolicyOutcome),
    /// A governor's concurrency changed.
    GovernorScaled(Scaling),
    /// A governor's concurrency was not raised: the quota is used up.
    QuotaExceeded(Scaling),
    /// A change of concurrency was taken back.
    ScaleReverted(Scaling),
    /// Storage failed; the system refuses everything until it recovers.
    DegradedMode {
        /// Why.
        reason: String,
        /// The storage's error.
        error_code: String,
        /// Failed probes in a row.
        failure_count: u64,
        /// Tenants that are refused.
        affected_tenants: u64,
        /// How loud the alert is.
        alert_severity: String,
    },
    /// Storage recovered.
    DegradedModeCleared {
        /// Why.
        reason: String,
        /// How long it lasted, in seconds.
        downtime_seconds: u64,
        /// Actions refused meanwhile.
        actions_refused: u64,
    },
    /// An action was done.
    ActionComplete(ActionOutcome),
    /// An action was refused by the gate.
    ActionRefused {
        /// The action.
        action_id: String,
        /// The template asked for.
        template: String,
        /// The gate's code.
        code: String,
        /// What the gate adds for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// The policy rules that decided.
        rules: Vec<String>,
    },
    /// An action waits for a person.
    ActionRouted(ActionOutcome),
    /// An action did not answer in time.
    ActionTimeout {
        /// The action.
        action_id: String,
        /// Its deadline, in milliseconds.
        timeout_ms: u64,
    },
    /// An action failed.
    ActionFailed {
        /// The action.
        action_id: String,
        /// The handler's error.
        error_code: String,
        /// Whether undoing it makes sense.
        is_recoverable: bool,
    },
    /// An action was undone.
    ActionRolledBack {
        /// The action.
        action_id: String,
        /// The receipt of what was undone.
        #[cfg_attr(test, schemars(schema_with = "crate::schema::uuid"))]
        previous_action_receipt_id: Uuid,
        /// How long undoing took, in milliseconds.
        rollback_duration_ms: u64,
    },
    /// A person had an escalated action taken up again, where it was given up, or a routed one decided anew.
    ActionRedriven {
        /// The action.
        action_id: String,
        /// The receipt of how it was escalated or routed.
        #[cfg_attr(test, schemars(schema_with = "crate::schema::uuid"))]
        previous_action_receipt_id: Uuid,
        /// Who.
        who: String,
    },
    /// A person dealt with an escalated action, or declined a routed one.
    ActionResolved {
        /// The action.
        action_id: String,
        /// The receipt of how it was escalated or routed.
        #[cfg_attr(test, schemars(schema_with = "crate::schema::uuid"))]
        previous_action_receipt_id: Uuid,
        /// Who.
        who: String,
        /// How, in their words.
        note: String,
    },
    /// A producer's request for an action was refused at the door: nothing was accepted, and its id is free.
    SignalRefused {
        /// The action asked for.
        action_id: String,
        /// The template asked for.
        template: String,
        /// The gate's code.
        code: String,
        /// What the gate adds for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
        /// The policy rules that decided.
        rules: Vec<String>,
    },
    /// A tenant leaves.
    DecommissionStart {
        /// The agreement; absent where none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        entitlement_id: Option<String>,
        /// The product.
        sku_id: String,
        /// Actions still running.
        in_flight_actions: u64,
    },
    /// A tenant left; closes the ledger.
    DecommissionComplete {
        /// Actions done in the tenant's life.
        actions_completed: u64,
        /// Actions failed in the tenant's life.
        actions_failed: u64,
        /// Receipts in the archive.
        receipts_archived: u64,
        /// Where the archive is.
        archive_path: String,
        /// The archive's bytes.
        archive_size_bytes: u64,
        /// The archive's SHA-256 in lower-case hex.
        #[cfg_attr(test, schemars(schema_with = "crate::schema::sha256"))]
        archive_sha256: String,
        /// The stored object's version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        archive_version: Option<String>,
        /// Messages archived from the dead-letter queue; absent in receipts from before they were counted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dead_letters_archived: Option<u64>,
        /// Where those messages are; absent when there were none to keep.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dead_letters_path: Option<String>,
        /// The content of a tenant's own action table; absent when the tenant had none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        actions_archive: Option<ArchivedFile>,
    },
    /// Somebody moved a switch.
    SwitchChanged {
        /// Who.
        who: String,
        /// The switches before.
        before: String,
        /// The switches after.
        after: String,
    },
    /// A policy bundle was deployed.
    PolicyDeployed {
        /// The ontology's hash.
        #[serde(rename = "O_hash")]
        o_hash: String,
        /// The enforcer's hash.
        #[serde(rename = "A_hash")]
        a_hash: String,
        /// The compiler that made it.
        ggen_version: String,
        /// When.
        #[serde(with = "millis")]
        #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
        deployment_timestamp: Timestamp,
    },
    /// A verified webhook changed nothing.
    WebhookIgnored {
        /// Why.
        reason: String,
        /// Who sent it; absent in receipts from before it was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provider: Option<String>,
        /// The sender's id of the delivery; absent in receipts from before it was said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        delivery_id: Option<String>,
    },
    /// Something of a tenant's was missing, or was nobody's.
    ResourceRepaired {
        /// What it is about: a queue, a table, a mapping.
        resource: String,
        /// What was found.
        finding: String,
        /// What was done.
        repair: String,
    },
    /// The signing key passed on to another: signed by the previous key, endorsed by the new one.
    KeyRotated {
        /// The key that signs until now, and this receipt.
        previous_key_id: String,
        /// Its 32 bytes (RFC 8032) in base64.
        previous_public_key: String,
        /// The key that signs from now on.
        new_key_id: String,
        /// Its 32 bytes (RFC 8032) in base64.
        new_public_key: String,
        /// The new key's signature over both keys, in base64: see [`crate::trail`].
        endorsement: String,
    },
    /// What a key signs from a time on does not count.
    KeyRevoked {
        /// The key.
        revoked_key_id: String,
        /// Why.
        reason: String,
        /// From when on.
        #[serde(with = "millis")]
        #[cfg_attr(test, schemars(schema_with = "crate::schema::timestamp"))]
        revoked_from: Timestamp,
    },
}

impl Payload {
    /// The operation's name, as the field `operation` has it.
    pub fn operation(&self) -> &'static str {
        match self {
            Self::EntitlementActive { .. } => "entitlement_active",
            Self::EntitlementFailed { .. } => "entitlement_failed",
            Self::EntitlementChanged { .. } => "entitlement_changed",
            Self::EntitlementSuspended(_) => "entitlement_suspended",
            Self::EntitlementReinstated(_) => "entitlement_reinstated",
            Self::EntitlementRenewed { .. } => "entitlement_renewed",
            Self::EntitlementExpired { .. } => "entitlement_expired",
            Self::EntitlementCancelled { .. } => "entitlement_cancelled",
            Self::EntitlementDeferred { .. } => "entitlement_deferred",
            Self::PolicyUpgraded { .. } => "policy_upgraded",
            Self::PolicyValidationFailed(_) => "policy_validation_failed",
            Self::PolicyUpgradeSkipped(_) => "policy_upgrade_skipped",
            Self::PolicyRollback(_) => "policy_rollback",
            Self::PolicyForced(_) => "policy_forced",
            Self::GovernorScaled(_) => "governor_scaled",
            Self::QuotaExceeded(_) => "quota_exceeded",
            Self::ScaleReverted(_) => "scale_reverted",
            Self::DegradedMode { .. } => "degraded_mode",
            Self::DegradedModeCleared { .. } => "degraded_mode_cleared",
            Self::ActionComplete(_) => "action_complete",
            Self::ActionRefused { .. } => "action_refused",
            Self::ActionRouted(_) => "action_routed",
            Self::ActionTimeout { .. } => "action_timeout",
            Self::ActionFailed { .. } => "action_failed",
            Self::ActionRolledBack { .. } => "action_rolled_back",
            Self::ActionRedriven { .. } => "action_redriven",
            Self::ActionResolved { .. } => "action_resolved",
            Self::SignalRefused { .. } => "signal_refused",
            Self::DecommissionStart { .. } => "decommission_start",
            Self::DecommissionComplete { .. } => "decommission_complete",
            Self::SwitchChanged { .. } => "switch_changed",
            Self::PolicyDeployed { .. } => "policy_deployed",
            Self::WebhookIgnored { .. } => "webhook_ignored",
            Self::ResourceRepaired { .. } => "resource_repaired",
            Self::KeyRotated { .. } => "key_rotated",
            Self::KeyRevoked { .. } => "key_revoked",
        }
    }

    /// How the operation ended. It follows from the operation, so no receipt can claim another.
    pub fn status(&self) -> Status {
        match self {
            Self::EntitlementActive { .. }
            | Self::EntitlementChanged { .. }
            | Self::EntitlementSuspended(_)
            | Self::EntitlementReinstated(_)
            | Self::EntitlementRenewed { .. }
            | Self::EntitlementExpired { .. }
            | Self::EntitlementCancelled { .. }
            | Self::PolicyUpgraded { .. }
            | Self::PolicyRollback(_)
            | Self::PolicyForced(_)
            | Self::GovernorScaled(_)
            | Self::ScaleReverted(_)
            | Self::DegradedModeCleared { .. }
            | Self::ActionComplete(_)
            | Self::ActionRolledBack { .. }
            | Self::ActionResolved { .. }
            | Self::DecommissionComplete { .. }
            | Self::SwitchChanged { .. }
            | Self::PolicyDeployed { .. }
            | Self::ResourceRepaired { .. }
            | Self::KeyRotated { .. }
            | Self::KeyRevoked { .. } => Status::Success,
            Self::EntitlementFailed { .. }
            | Self::PolicyValidationFailed(_)
            | Self::ActionTimeout { .. }
            | Self::ActionFailed { .. } => Status::Failed,
            Self::QuotaExceeded(_) | Self::ActionRefused { .. } | Self::SignalRefused { .. } => {
                Status::Refused
            }
            Self::ActionRouted(_) => Status::Routed,
            Self::DegradedMode { .. }
            | Self::EntitlementDeferred { .. }
            | Self::ActionRedriven { .. }
            | Self::DecommissionStart { .. } => Status::Started,
            Self::PolicyUpgradeSkipped(_) | Self::WebhookIgnored { .. } => Status::Ignored,
        }
    }
}
