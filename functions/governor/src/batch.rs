//! What to do with a batch of signals: pure, so that it can be asked again whenever another writer was first.
//!
//! [`decide`] says what each message means, [`Batch::claim`] what is written before the handler is called, and
//! [`Batch::settle`] what is written when all of it is over. In between a [`Run`] takes what the handler said.

use std::collections::{BTreeMap, BTreeSet};

use aws::store::{Account, Plan};
use domain::account::EntitlementId;
use domain::action::{
    Action, ActionEvent, ActionState, DEAD_LETTERED, IllegalTransition, LEASE_SECONDS, MAX_DELIVERIES,
    Standing, standing,
};
use domain::admission::{self, Enforcers, LetThrough, admit};
use domain::control::Control;
use domain::entitlement::Entitlement;
use domain::gate::{RefusalCode, Verdict};
use domain::names::printable;
use domain::signal::{ActionId, Signal};
use domain::tenant::Released;
use jiff::{SignedDuration, Timestamp};
use receipts::receipt::Payload;
use serde_json::{Map, Value};
use uuid::Uuid;

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

    /// Whether SQS takes it to the dead letters when it is not settled now.
    #[must_use]
    pub fn is_last_delivery(&self) -> bool {
        self.deliveries >= MAX_DELIVERIES
    }

    /// What it asks for with.
    #[must_use]
    pub fn parameters(&self) -> Option<Map<String, Value>> {
        match &self.asked {
            Asked::Signal(signal) => Some(signal.parameters.clone()),
            Asked::Malformed { .. } => None,
        }
    }

    /// The entitlement it is for, when that can be told.
    fn held<'a>(&self, account: &'a Account) -> Option<(&'a EntitlementId, &'a Entitlement)> {
        match &self.asked {
            Asked::Signal(signal) => admission::held(signal, account.tenant.as_ref()),
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
    /// It has waited for a place too often: SQS takes it to the dead letters, and a person has to look.
    GiveUp,
}

/// What becomes of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Settled: SQS may delete it.
    Acknowledged,
    /// Comes back soon, or goes to the dead letters when it came too often.
    Later,
}

/// A claimed action on its way through the handler.
#[derive(Debug, Clone)]
pub struct Run {
    /// As it was claimed.
    claimed: Action,
    /// As it stands.
    pub action: Action,
    /// Receipts so far, in order, with how long each took in milliseconds.
    pub records: Vec<(Uuid, Payload, u64)>,
}

impl Run {
    /// An action that was claimed.
    #[must_use]
    pub fn new(action: Action) -> Self {
        Self {
            claimed: action.clone(),
            action,
            records: Vec::new(),
        }
    }

    /// What the claim of `owner` has become of in the table.
    fn claim(&self, stored: Option<&Action>, owner: Uuid) -> Claim {
        let Some(stored) = stored.filter(|stored| stored.owner == owner) else {
            return Claim::Lost;
        };
        let telling = |action: &Action| (action.state, action.rollback_attempts, action.receipts.len());
        match (telling(stored) == telling(&self.claimed), stored.state.is_final()) {
            (true, _) => Claim::Stands,
            (false, is_final) => Claim::Settled { is_final },
        }
    }

    /// Takes what happened to it, which took so many milliseconds.
    ///
    /// # Errors
    /// [`IllegalTransition`] when that has no meaning now.
    pub fn take(
        &mut self,
        event: &ActionEvent,
        receipt_id: Uuid,
        taken_ms: u64,
        now: Timestamp,
    ) -> Result<(), IllegalTransition> {
        let next = self.action.next(event, receipt_id, now)?;
        self.action = next.action;
        self.records
            .extend(next.receipt.map(|payload| (receipt_id, payload, taken_ms)));
        Ok(())
    }
}

/// What has become of a claim.
enum Claim {
    /// It is in force.
    Stands,
    /// Its outcome was written already: the writer was told otherwise.
    Settled {
        /// Whether the action is over.
        is_final: bool,
    },
    /// Somebody else took the action over, and brings it to its end.
    Lost,
}

/// One batch of one tenant, and who works on it.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The tenant's account.
    pub account_id: &'a str,
    /// What is asked for.
    pub messages: &'a [Message],
    /// This invocation's claim.
    pub owner: Uuid,
    /// Ids of the receipts that its own decisions leave: two for each message.
    pub ids: &'a [(Uuid, Uuid)],
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
    let mut let_through = LetThrough::default();
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
                    Standing::New => ask(message, account, control, enforcers, &let_through, now),
                }
            };
            if let Step::Execute(id) = &step {
                let_through.add(id);
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
    let_through: &LetThrough,
    now: Timestamp,
) -> Step {
    let signal = match &message.asked {
        Asked::Signal(signal) => signal,
        Asked::Malformed { detail, .. } => {
            return refuse(RefusalCode::MalformedSignal, Some(detail.clone()), Vec::new());
        }
    };
    let admission = admit(
        signal,
        account.tenant.as_ref(),
        control,
        enforcers,
        let_through,
        now,
    );
    match (admission.verdict, admission.entitlement) {
        (Verdict::Execute, Some(id)) => Step::Execute(id),
        // The gate lets nothing through without an entitlement.
        (Verdict::Execute, None) => refuse(RefusalCode::NoEntitlement, None, Vec::new()),
        (Verdict::NotNow, _) if message.is_last_delivery() => Step::GiveUp,
        (Verdict::NotNow, _) => Step::Later,
        (Verdict::Refuse { code, rules, detail }, _) => refuse(code, detail, rules),
        (Verdict::Route(code), _) => Step::Settle(ActionEvent::Routed { code }),
    }
}

fn refuse(code: RefusalCode, detail: Option<String>, rules: Vec<String>) -> Step {
    Step::Settle(ActionEvent::Refused { code, detail, rules })
}

/// The action a message asks for, as it stands before this batch touches it.
#[must_use]
pub fn action_of(message: &Message, account: &Account, now: Timestamp) -> Action {
    let known = account.actions.get(message.action_id()).cloned();
    let begun = |action: &Action| action.state != ActionState::Pending;
    if let Some(begun) = known.clone().filter(begun) {
        return begun;
    }
    let policy_hash = message
        .held(account)
        .map(|(_, held)| held.policy.hash.as_str())
        .unwrap_or_default();
    let id = message.action_id().clone();
    Action {
        // Of one that waited it is known what happened to it.
        receipts: known.map(|action| action.receipts).unwrap_or_default(),
        ..Action::pending(id, &message.template(), policy_hash, now)
    }
}

impl Batch<'_> {
    fn each(&self) -> impl Iterator<Item = (&Message, (Uuid, Uuid))> {
        let ids = self.ids.iter().copied();
        self.messages.iter().zip(ids)
    }

    /// What is written before the handler is called: claims of what is to run or to be undone. Nothing when there is neither.
    ///
    /// # Errors
    /// [`IllegalTransition`] when steps and actions do not fit.
    pub fn claim(
        &self,
        steps: &[Step],
        account: &Account,
        now: Timestamp,
    ) -> Result<Plan, IllegalTransition> {
        let lease = now
            .saturating_add(SignedDuration::from_secs(LEASE_SECONDS))
            .unwrap_or(now);
        let mut plan = Plan::default();
        let mut executing = LetThrough::default();
        for ((message, (claim_id, _)), step) in self.each().zip(steps) {
            let before = action_of(message, account, now);
            let claimed = match step {
                Step::Execute(id) => {
                    executing.add(id);
                    let before = Action {
                        entitlement_id: Some(id.clone()),
                        parameters: message.parameters(),
                        ..before
                    };
                    before.next(&ActionEvent::Claimed, claim_id, now)?.action
                }
                // Its governor is gone: the deadline it did not report is over.
                Step::Undo if before.state == ActionState::Running => {
                    let expired = before.next(&ActionEvent::LeaseExpired, claim_id, now)?;
                    let draft = |payload| before.draft(self.account_id, claim_id, payload, 0, now);
                    plan.drafts.extend(expired.receipt.map(draft));
                    expired.action
                }
                Step::Undo => before,
                Step::Acknowledge | Step::Later | Step::Settle(_) | Step::GiveUp => continue,
            };
            plan.actions.push(claimed.owned_by(self.owner, lease));
        }
        // Also what is undone has a claim that ends: the sweep waits for it.
        if !plan.actions.is_empty() {
            let tenant = account.tenant.as_ref();
            plan.tenant = tenant.map(|tenant| tenant.claimed(executing.by_entitlement(), now, lease));
        }
        Ok(plan)
    }

    /// What is written when all is over, every outcome with its receipts as one group, and what becomes of each message.
    /// `elapsed_ms` is how long the batch took so far.
    ///
    /// # Errors
    /// [`IllegalTransition`] when steps and actions do not fit.
    pub fn settle(
        &self,
        steps: &[Step],
        runs: &BTreeMap<ActionId, Run>,
        account: &Account,
        elapsed_ms: u64,
        now: Timestamp,
    ) -> Result<(Plan, Vec<Fate>), IllegalTransition> {
        let mut plan = Plan::default();
        let mut released = Vec::new();
        let mut fates = Vec::with_capacity(steps.len());
        for ((message, (_, settle_id)), step) in self.each().zip(steps) {
            let abandoned = ActionEvent::Abandoned {
                error_code: DEAD_LETTERED,
            };
            let (event, fate) = match step {
                Step::Acknowledge => (None, Fate::Acknowledged),
                Step::Later => (None, Fate::Later),
                Step::Settle(event) => (Some(event), Fate::Acknowledged),
                Step::GiveUp => (Some(&abandoned), Fate::Later),
                Step::Execute(_) | Step::Undo => {
                    let run = runs.get(message.action_id());
                    let stored = account.actions.get(message.action_id());
                    let claim = run.map(|run| (run, run.claim(stored, self.owner)));
                    fates.push(match claim {
                        Some((_, Claim::Settled { is_final: true })) => Fate::Acknowledged,
                        Some((_, Claim::Settled { is_final: false } | Claim::Lost)) | None => Fate::Later,
                        Some((run, Claim::Stands)) => {
                            let mut run = run.clone();
                            let unfinished = !run.action.state.is_final();
                            if unfinished && message.is_last_delivery() {
                                run.take(&abandoned, settle_id, elapsed_ms, now)?;
                            }
                            for (id, payload, duration_ms) in run.records {
                                let draft = run.action.draft(self.account_id, id, payload, duration_ms, now);
                                plan.drafts.push(draft);
                            }
                            if run.action.state.is_final() {
                                released.push(Released {
                                    entitlement_id: run.action.entitlement_id.clone(),
                                    completed: run.action.state == ActionState::Complete,
                                });
                            }
                            // The claim ends here: what still has to be undone may be taken up at once.
                            let owner = run.action.owner;
                            plan.actions.push(run.action.owned_by(owner, now));
                            match unfinished {
                                true => Fate::Later,
                                false => Fate::Acknowledged,
                            }
                        }
                    });
                    continue;
                }
            };
            fates.push(fate);
            // Another governor may have settled the same signal first.
            let open = |action: &Action| action.state == ActionState::Pending;
            let open = account.actions.get(message.action_id()).is_none_or(open);
            if let Some(event) = event.filter(|_| open) {
                let before = action_of(message, account, now);
                // What is given up may be taken up again, for the same entitlement.
                let before = Action {
                    parameters: message.parameters(),
                    entitlement_id: message.held(account).map(|(id, _)| id.clone()),
                    ..before
                };
                let settled = before.next(event, settle_id, now)?;
                let draft = |payload| before.draft(self.account_id, settle_id, payload, elapsed_ms, now);
                plan.drafts.extend(settled.receipt.map(draft));
                plan.actions.push(settled.action);
            }
        }
        if !released.is_empty() {
            plan.tenant = account.tenant.as_ref().map(|tenant| tenant.released(&released));
        }
        let mut given_back = BTreeSet::new();
        for (message, fate) in self.messages.iter().zip(&mut fates) {
            // Two messages that ask for the same action have the same fate.
            if *fate == Fate::Later {
                given_back.insert(message.action_id());
            } else if given_back.contains(message.action_id()) {
                *fate = Fate::Later;
            }
        }
        Ok((plan, fates))
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
