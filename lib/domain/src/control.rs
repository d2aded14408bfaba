//! The control object: mode and switches of the whole system, and how health probes change the mode.
//!
//! It lives in S3 and changes only by compare-and-swap, so that it works while the tables do not.

use jiff::Timestamp;
use receipts::receipt::Payload;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Consecutive failed probes that switch to degraded mode.
pub const FAILURES_TO_DEGRADE: u64 = 3;

/// Whether actions may run at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Mode {
    /// Storage answers.
    Normal,
    /// Storage failed: every signal is refused.
    Degraded {
        /// When it began.
        since: Timestamp,
        /// Id of the `degraded_mode` receipt, chosen with the switch so that the receipt is written exactly once.
        receipt_id: Uuid,
        /// Whether that receipt is in the spool.
        announced: bool,
        /// What the last failed probe said.
        reason: String,
        /// Machine-readable code of that failure.
        error_code: String,
        /// Probes that had failed when the mode changed.
        failure_count: u64,
    },
}

/// A recovery whose bookkeeping is not finished: the spool is being drained and the clearing receipt is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// When degraded mode began.
    pub degraded_since: Timestamp,
    /// When the good probe ended it.
    pub cleared_at: Timestamp,
    /// Id of the `degraded_mode_cleared` receipt, chosen once.
    pub receipt_id: Uuid,
    /// Actions refused meanwhile, once they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions_refused: Option<u64>,
}

/// What operators switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switches {
    /// Off: every signal is refused `DISARMED`.
    pub armed: bool,
    /// Off: actions are routed to a person.
    pub automation_enabled: bool,
    /// On: actions are routed to a person.
    pub safe_mode: bool,
    /// Highest tier that runs without a person, 0 to 2.
    pub rollout_tier: u8,
    /// Templates that are routed to a person; `*` is every template.
    pub disabled_templates: Vec<String>,
}

impl Default for Switches {
    /// A fresh install: disarmed, nothing automatic, no template enabled.
    fn default() -> Self {
        Self {
            armed: false,
            automation_enabled: false,
            safe_mode: true,
            rollout_tier: 0,
            disabled_templates: vec!["*".to_owned()],
        }
    }
}

impl Switches {
    /// Whether a template runs without a person.
    #[must_use]
    pub fn template_enabled(&self, template: &str) -> bool {
        !self.disabled_templates.iter().any(|t| t == "*" || t == template)
    }
}

/// The control object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Mode, as `mode` and its fields.
    #[serde(flatten)]
    pub mode: Mode,
    pub switches: Switches,
    /// Probes failed in a row.
    pub consecutive_failures: u64,
    /// Tenants active when storage was last seen well.
    pub active_tenants: u64,
    /// Recoveries still being booked, oldest first. Storage may fail again before the first is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<Recovery>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            mode: Mode::Normal,
            switches: Switches::default(),
            consecutive_failures: 0,
            active_tenants: 0,
            recoveries: Vec::new(),
        }
    }
}

/// What a health probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A value was written and read back.
    Good {
        /// Tenants active now.
        active_tenants: u64,
    },
    /// It was not.
    Failed {
        /// What was tried and what came back.
        reason: String,
        /// Machine-readable code.
        error_code: String,
    },
}

impl Control {
    /// Whether degraded mode is on.
    #[must_use]
    pub fn degraded(&self) -> bool {
        matches!(self.mode, Mode::Degraded { .. })
    }

    /// The control object after a probe. Equal to `self` when nothing has to be written.
    ///
    /// `fresh_id` names the receipt this probe may cause.
    #[must_use]
    pub fn after_probe(&self, probe: &Probe, now: Timestamp, fresh_id: Uuid) -> Self {
        let mut next = self.clone();
        match probe {
            Probe::Good { active_tenants } => {
                next.consecutive_failures = 0;
                next.active_tenants = *active_tenants;
                if let Mode::Degraded { since, .. } = self.mode {
                    next.mode = Mode::Normal;
                    next.recoveries.push(Recovery {
                        degraded_since: since,
                        cleared_at: now,
                        receipt_id: fresh_id,
                        actions_refused: None,
                    });
                }
            }
            Probe::Failed { reason, error_code } => match self.mode {
                // Counting on while degraded would write the object every ten seconds and tell nobody anything new.
                Mode::Degraded { .. } => {}
                Mode::Normal => {
                    next.consecutive_failures = self.consecutive_failures.saturating_add(1);
                    if next.consecutive_failures >= FAILURES_TO_DEGRADE {
                        next.mode = Mode::Degraded {
                            since: now,
                            receipt_id: fresh_id,
                            announced: false,
                            reason: reason.clone(),
                            error_code: error_code.clone(),
                            failure_count: next.consecutive_failures,
                        };
                    }
                }
            },
        }
        next
    }

    /// The `degraded_mode` receipt that is due, with its id.
    #[must_use]
    pub fn announcement_due(&self) -> Option<(Uuid, Timestamp, Payload)> {
        match &self.mode {
            Mode::Degraded {
                since,
                receipt_id,
                announced: false,
                reason,
                error_code,
                failure_count,
            } => Some((
                *receipt_id,
                *since,
                Payload::DegradedMode {
                    reason: reason.clone(),
                    error_code: error_code.clone(),
                    failure_count: *failure_count,
                    affected_tenants: self.active_tenants,
                    alert_severity: "critical".to_owned(),
                },
            )),
            Mode::Degraded { .. } | Mode::Normal => None,
        }
    }

    /// The control object once the `degraded_mode` receipt is in the spool.
    #[must_use]
    pub fn announced(&self) -> Self {
        let mut next = self.clone();
        if let Mode::Degraded { announced, .. } = &mut next.mode {
            *announced = true;
        }
        next
    }

    /// The control object once a recovery's refused actions are counted.
    #[must_use]
    pub fn counted(&self, recovery: &Recovery, actions_refused: u64) -> Self {
        let mut next = self.clone();
        for r in next
            .recoveries
            .iter_mut()
            .filter(|r| r.receipt_id == recovery.receipt_id)
        {
            r.actions_refused.get_or_insert(actions_refused);
        }
        next
    }

    /// The control object once a recovery is booked.
    #[must_use]
    pub fn booked(&self, recovery: &Recovery) -> Self {
        let mut next = self.clone();
        next.recoveries.retain(|r| r.receipt_id != recovery.receipt_id);
        next
    }
}

impl Recovery {
    /// The `degraded_mode_cleared` receipt.
    #[must_use]
    pub fn receipt(&self) -> Payload {
        let seconds = self
            .cleared_at
            .duration_since(self.degraded_since)
            .as_secs()
            .max(0);
        Payload::DegradedModeCleared {
            reason: "a health probe succeeded".to_owned(),
            downtime_seconds: seconds.unsigned_abs(),
            actions_refused: self.actions_refused.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failed() -> Probe {
        Probe::Failed {
            reason: "PutItem refused".to_owned(),
            error_code: "STORAGE_UNAVAILABLE".to_owned(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_fresh_install_runs_nothing() {
        let switches = Switches::default();
        assert!(!switches.armed && !switches.automation_enabled && switches.safe_mode);
        assert!(!switches.template_enabled("restart-service"));
    }

    #[test]
    fn three_failures_degrade_and_one_good_probe_clears() {
        let mut control = Control {
            active_tenants: 4,
            ..Control::default()
        };
        for second in [10, 20] {
            control = control.after_probe(&failed(), at(second), Uuid::nil());
            assert!(!control.degraded());
        }
        control = control.after_probe(&failed(), at(30), Uuid::from_u128(1));
        assert!(control.degraded());
        let (id, since, payload) = control.announcement_due().unwrap();
        assert_eq!((id, since), (Uuid::from_u128(1), at(30)));
        assert!(matches!(
            payload,
            Payload::DegradedMode {
                failure_count: 3,
                affected_tenants: 4,
                ..
            }
        ));
        control = control.announced();
        assert!(control.announcement_due().is_none());
        assert_eq!(
            control.after_probe(&failed(), at(40), Uuid::from_u128(2)),
            control,
            "nothing new to write"
        );
        control = control.after_probe(&Probe::Good { active_tenants: 4 }, at(55), Uuid::from_u128(3));
        assert!(!control.degraded());
        let recovery = control.recoveries.first().cloned().unwrap();
        assert_eq!(recovery.receipt_id, Uuid::from_u128(3));
        let counted = control.counted(&recovery, 9);
        assert_eq!(counted.counted(&recovery, 0), counted, "counted once");
        let due = counted.recoveries.first().cloned().unwrap();
        assert!(matches!(
            due.receipt(),
            Payload::DegradedModeCleared {
                downtime_seconds: 25,
                actions_refused: 9,
                ..
            }
        ));
        assert!(control.booked(&recovery).recoveries.is_empty());
    }

    #[test]
    fn a_good_probe_between_failures_starts_the_count_again() {
        let mut control = Control::default();
        for probe in [
            failed(),
            failed(),
            Probe::Good { active_tenants: 0 },
            failed(),
            failed(),
        ] {
            control = control.after_probe(&probe, at(1), Uuid::nil());
        }
        assert!(!control.degraded());
        assert_eq!(control.consecutive_failures, 2);
    }

    #[test]
    fn the_stored_form_reads_back() {
        let degraded = (0..3).fold(Control::default(), |c, n| {
            c.after_probe(&failed(), at(n), Uuid::from_u128(7))
        });
        for control in [
            Control::default(),
            degraded.clone(),
            degraded.after_probe(&Probe::Good { active_tenants: 1 }, at(9), Uuid::nil()),
        ] {
            let text = serde_json::to_string(&control).unwrap();
            assert_eq!(serde_json::from_str::<Control>(&text).unwrap(), control, "{text}");
        }
        let text = serde_json::to_string(&Control::default()).unwrap();
        assert!(text.contains(r#""mode":"normal""#), "{text}");
    }

    proptest! {
        #[test]
        fn degraded_exactly_when_the_last_three_failed_or_none_was_good_since(probes in proptest::collection::vec(any::<bool>(), 0..40)) {
            let mut control = Control::default();
            let mut run = 0u64;
            let mut degraded = false;
            for (n, good) in probes.iter().enumerate() {
                let probe = if *good { Probe::Good { active_tenants: 0 } } else { failed() };
                control = control.after_probe(&probe, at(n as i64), Uuid::nil());
                run = if *good { 0 } else { run + 1 };
                degraded = !*good && (degraded || run >= 3);
                prop_assert_eq!(control.degraded(), degraded);
            }
        }
    }
}
