//! Drafts of every operation, fixed and random.

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use receipts::receipt::{
    ActionOutcome, ArchivedFile, Concurrency, EntitlementOutcome, PolicyOutcome, Quota, Resources, Scaling,
    UsdDelta,
};
use receipts::{Draft, Head, Payload, Sealed, Signer, append, canonical};
use uuid::Uuid;

/// How many operations there are; `payload` covers each.
pub const OPERATIONS: usize = 36;

pub fn signer() -> Signer {
    Signer::generate([42; 32])
}

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The payload of operation number `which`, made of these values.
pub fn payload(which: usize, [a, b, c]: [String; 3], [m, n]: [u64; 2], list: Vec<String>) -> Payload {
    let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let outcome = || PolicyOutcome {
        policy_version: optional(&a),
        previous_version: optional(&b),
        reason: c.clone(),
        counterexample: list.first().cloned(),
    };
    let scaling = || Scaling {
        concurrency: Concurrency { previous: m, new: n },
        quota_check: a.clone(),
        cost_delta_usd: UsdDelta::from_ten_thousandths((m % 1_000_000) as i64 - (n % 1_000_000_000) as i64)
            .unwrap(),
    };
    let action = || ActionOutcome {
        action_id: a.clone(),
        template: b.clone(),
        code: c.clone(),
    };
    let entitlement = || EntitlementOutcome {
        entitlement_id: a.clone(),
        sku_id: b.clone(),
    };
    let moment = |number: u64| Timestamp::from_millisecond((number % 4_102_444_800_000) as i64).unwrap();
    match which {
        0 => Payload::EntitlementActive {
            entitlement_id: optional(&c),
            sku_id: a.clone(),
            plan_type: b.clone(),
            region: c.clone(),
            policy_version: a.clone(),
            fsm_id: b.clone(),
            quota: Quota {
                monthly_actions: m,
                concurrent_actions: n,
            },
            resources: Resources {
                fsm_id: b,
                queue: c,
                table: a,
            },
        },
        1 => Payload::EntitlementFailed {
            entitlement_id: optional(&c),
            sku_id: a.clone(),
            plan_type: b.clone(),
            reason: c,
            step: a,
            undone: list,
        },
        2 => Payload::PolicyUpgraded {
            policy_version: a,
            previous_version: b,
            governors_updated: m,
            governors_failed: n,
            compatibility_check: c,
        },
        3 => Payload::PolicyValidationFailed(outcome()),
        4 => Payload::PolicyUpgradeSkipped(outcome()),
        5 => Payload::PolicyRollback(outcome()),
        6 => Payload::PolicyForced(outcome()),
        7 => Payload::GovernorScaled(scaling()),
        8 => Payload::QuotaExceeded(scaling()),
        9 => Payload::ScaleReverted(scaling()),
        10 => Payload::DegradedMode {
            reason: a,
            error_code: b,
            failure_count: m,
            affected_tenants: n,
            alert_severity: c,
        },
        11 => Payload::DegradedModeCleared {
            reason: a,
            downtime_seconds: m,
            actions_refused: n,
        },
        12 => Payload::ActionComplete(action()),
        13 => Payload::ActionRefused {
            detail: optional(&a),
            action_id: a,
            template: b,
            code: c,
            rules: list,
        },
        14 => Payload::ActionRouted(action()),
        15 => Payload::ActionTimeout {
            action_id: a,
            timeout_ms: m,
        },
        16 => Payload::ActionFailed {
            action_id: a,
            error_code: b,
            is_recoverable: m > n,
        },
        17 => Payload::ActionRolledBack {
            action_id: a,
            previous_action_receipt_id: Uuid::from_u64_pair(m, n),
            rollback_duration_ms: m,
        },
        18 => Payload::DecommissionStart {
            entitlement_id: optional(&b),
            sku_id: a,
            in_flight_actions: m,
        },
        19 => Payload::DecommissionComplete {
            actions_completed: m,
            actions_failed: n,
            receipts_archived: m,
            archive_version: optional(&c),
            dead_letters_archived: (m > n).then_some(m),
            dead_letters_path: optional(&b),
            actions_archive: list.first().map(|path| ArchivedFile {
                path: path.clone(),
                sha256: c.clone(),
                size_bytes: m,
                entries: n,
            }),
            archive_path: a,
            archive_size_bytes: n,
            archive_sha256: b,
        },
        20 => Payload::SwitchChanged {
            who: a,
            before: b,
            after: c,
        },
        21 => Payload::PolicyDeployed {
            o_hash: a,
            a_hash: b,
            ggen_version: c,
            deployment_timestamp: moment(m),
        },
        22 => Payload::WebhookIgnored {
            reason: a,
            provider: optional(&b),
            delivery_id: optional(&c),
        },
        23 => Payload::KeyRotated {
            previous_key_id: a.clone(),
            previous_public_key: b.clone(),
            new_key_id: c,
            new_public_key: b,
            endorsement: a,
        },
        24 => Payload::KeyRevoked {
            revoked_key_id: a,
            reason: b,
            revoked_from: moment(n),
        },
        25 => Payload::EntitlementChanged {
            entitlement_id: a.clone(),
            sku_id: b.clone(),
            previous_plan_type: c.clone(),
            plan_type: a,
            previous_policy_version: b,
            policy_version: c,
            quota: Quota {
                monthly_actions: m,
                concurrent_actions: n,
            },
        },
        26 => Payload::EntitlementSuspended(entitlement()),
        27 => Payload::EntitlementReinstated(entitlement()),
        28 => Payload::EntitlementRenewed {
            entitlement_id: a,
            sku_id: b,
            expires_at: optional(&c).map(|_| moment(m)),
        },
        29 => Payload::EntitlementCancelled {
            entitlement_id: a,
            sku_id: b,
            entitlements_left: m,
        },
        30 => Payload::EntitlementDeferred {
            entitlement_id: optional(&a),
            sku_id: optional(&b),
            event: c.clone(),
            reason: a,
            due_at: optional(&c).map(|_| moment(n)),
        },
        31 => Payload::ResourceRepaired {
            resource: a,
            finding: b,
            repair: c,
        },
        32 => Payload::ActionRedriven {
            action_id: a,
            previous_action_receipt_id: Uuid::from_u64_pair(m, n),
            who: b,
        },
        33 => Payload::ActionResolved {
            action_id: a,
            previous_action_receipt_id: Uuid::from_u64_pair(n, m),
            who: b,
            note: c,
        },
        34 => Payload::SignalRefused {
            detail: optional(&a),
            action_id: a,
            template: b,
            code: c,
            rules: list,
        },
        35 => Payload::EntitlementExpired {
            entitlement_id: a,
            sku_id: b,
            expires_at: moment(m),
        },
        other => panic!("there is no operation {other}"),
    }
}

/// A plain draft of operation number `which`, for account `a-1`.
pub fn draft(which: usize) -> Draft {
    let texts = ["one".to_owned(), "two".to_owned(), "three".to_owned()];
    Draft {
        receipt_id: Uuid::from_u128(which as u128 + 1),
        account_id: "a-1".to_owned(),
        occurred_at: time("2026-01-02T03:04:05.678Z"),
        duration_ms: 12,
        policy_hash: None,
        payload: payload(
            which,
            texts,
            [3, 4],
            vec!["first".to_owned(), "second".to_owned()],
        ),
    }
}

/// One ledger of these drafts, in groups of three as a governor commits them.
pub fn ledger(drafts: &[Draft]) -> (Vec<Sealed>, Head) {
    let mut head = Head::empty();
    let mut sealed = Vec::new();
    for (group, drafts) in drafts.chunks(3).enumerate() {
        let now = Timestamp::from_millisecond(1_800_000_000_000 + group as i64).unwrap();
        let appended = append(&head, drafts, now, &signer()).unwrap();
        head = appended.head;
        sealed.extend(appended.sealed);
    }
    (sealed, head)
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..8)
        .prop_map(|chars| canonical::without_delete(&chars.into_iter().collect::<String>()))
}

fn integer() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..100_u64,
        0..canonical::INTEGER_LIMIT,
        Just(canonical::INTEGER_LIMIT - 1)
    ]
}

/// Any draft that a receipt may be made of, for account `a-1`.
pub fn any_draft() -> impl Strategy<Value = Draft> {
    let payloads = (
        0..OPERATIONS,
        [text(), text(), text()],
        [integer(), integer()],
        vec(text(), 0..3),
    )
        .prop_map(|(which, texts, integers, list)| payload(which, texts, integers, list));
    (
        any::<u128>(),
        0..4_102_444_800_000_i64,
        integer(),
        any::<Option<[u8; 32]>>(),
        payloads,
    )
        .prop_map(|(id, occurred_at, duration_ms, policy_hash, payload)| Draft {
            receipt_id: Uuid::from_u128(id),
            account_id: "a-1".to_owned(),
            occurred_at: Timestamp::from_millisecond(occurred_at).unwrap(),
            duration_ms,
            policy_hash: policy_hash.map(hex::encode),
            payload,
        })
}

/// Any group of drafts of one account.
pub fn any_drafts(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Draft>> {
    vec(any_draft(), size)
}
