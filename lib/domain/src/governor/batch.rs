//! What to do with signals, and what to write of it: pure, so that it can be asked again whenever another writer was first.
//!
//! A governor decides and writes in groups: [`Group::plan`] says in one transaction what became of the actions that are over
//! and which of the signals in hand take the places that this frees. In between a [`Run`] takes what the handler said.

use std::collections::BTreeSet;

use crate::account::EntitlementId;
use crate::action::{
    Action, ActionEvent, ActionState, DEAD_LETTERED, IllegalTransition, LEASE_SECONDS, MAX_DELIVERIES,
    Standing, standing,
};
use crate::admission::{self, Admissions, Enforcers, admit};
use crate::control::Control;
use crate::entitlement::Entitlement;
use crate::gate::{RefusalCode, Verdict};
use crate::names::printable;
use crate::signal::{ActionId, Signal};
use crate::tenant::{LastClaim, Released, Tenant};
use crate::transaction::{Account, Plan};
use jiff::{SignedDuration, Timestamp};
use receipts::receipt::Payload;
use serde_json::{Map, Value};
use uuid::Uuid;

/// How soon an action that is still to be undone is tried again, in seconds: after the first failure, and at most.
const UNDO_AGAIN_SECONDS: (u32, u32) = (2, 60);
/// How soon a signal comes again about whose action another governor is at work, in seconds. Its claim holds for
/// [`LEASE_SECONDS`] at the most.
pub const BUSY_SECONDS: u32 = 2;
/// How long after the end of its claim the signal of an action comes again at the latest, when its governor died: a queue
/// hides it for 30 seconds from before the claim on.
const SHOWN_AGAIN_SECONDS: i64 = 30 - LEASE_SECONDS;
/// Deliveries from which on a signal that waits for a place is sent anew, so that no wait brings it among the dead letters.
pub const RENEWED_AT: u32 = MAX_DELIVERIES / 2;

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
    pub content: Content,
    /// As it was sent.
    pub body: String,
}

/// What a message asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// An action.
    Signal(Signal),
    /// Nothing that can be understood as this tenant's signal.
    Malformed {
        /// Id under which the refusal is kept: the message's own.
        action_id: ActionId,
        detail: String,
    },
}

impl Message {
    /// The action it is about.
    #[must_use]
    pub fn action_id(&self) -> &ActionId {
        match &self.content {
            Content::Signal(signal) => &signal.action_id,
            Content::Malformed { action_id, .. } => action_id,
        }
    }

    /// Drops what is large of it, once it is settled or given back: an invocation sees many.
    pub fn forget(&mut self) {
        self.body = String::new();
        if let Content::Signal(signal) = &mut self.content {
            signal.parameters = Map::new();
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
        match &self.content {
            Content::Signal(signal) => Some(signal.parameters.clone()),
            Content::Malformed { .. } => None,
        }
    }

    /// The entitlement it is for, when that can be told.
    fn held<'a>(&self, account: &'a Account) -> Option<(&'a EntitlementId, &'a Entitlement)> {
        match &self.content {
            Content::Signal(signal) => admission::held(signal, account.tenant.as_ref()),
            Content::Malformed { .. } => None,
        }
    }

    /// The template it names, safe for a receipt.
    #[must_use]
    pub fn template(&self) -> String {
        match &self.content {
            Content::Signal(signal) => printable(&signal.template, 64),
            Content::Malformed { .. } => String::new(),
        }
    }
}

/// What to do with one signal.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Its action is final, or another message in hand asks for the same: acknowledge.
    Acknowledge,
    /// Another governor is at work on it: give it back for a while.
    Busy,
    /// No place is free for it.
    Wait(NoPlace),
    /// Settle it without running anything: refused or routed.
    Settle(ActionEvent),
    /// Run it, under this entitlement.
    Execute(EntitlementId),
    /// Take it over from a governor that did not finish, and undo it.
    Undo,
    /// It has waited for a place too often: SQS takes it to the dead letters, and a person has to look.
    GiveUp,
}

/// What has no free place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPlace {
    /// All the tenant's places are taken.
    Tenant,
    /// All the tenant's places are taken, and nobody is at work on any of those actions: only their own signals free them,
    /// and some of these may stand behind this one on the queue.
    Forsaken,
    /// The tenant has places, and this entitlement has none.
    Entitlement(EntitlementId),
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Settled: it may be deleted.
    Acknowledged,
    /// It comes again after so many seconds, or goes to the dead letters when it came too often.
    Again(u32),
    /// It comes again when the queue shows it again.
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

    /// What has become of its claim in the table.
    fn claim(&self, stored: Option<&Action>) -> Claim {
        let Some(stored) = stored.filter(|stored| stored.owner == self.claimed.owner) else {
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

impl Step {
    /// Whether the handler is called.
    #[must_use]
    pub fn calls_handler(&self) -> bool {
        matches!(self, Self::Execute(_) | Self::Undo)
    }
}

/// Decides each signal, in order; what is let through counts against the limits of the next.
#[must_use]
pub fn decide(
    messages: &[&Message],
    account: &Account,
    control: Option<&Control>,
    enforcers: &Enforcers,
    now: Timestamp,
) -> Vec<Step> {
    let mut seen = BTreeSet::new();
    let mut let_through = Admissions::default();
    let steps = messages.iter().map(|message| {
        let step = if !seen.insert(message.action_id()) {
            Step::Acknowledge
        } else {
            match standing(account.actions.get(message.action_id()), now) {
                Standing::Done => Step::Acknowledge,
                Standing::Busy => Step::Busy,
                Standing::Undo => Step::Undo,
                Standing::New => ask(message, account, control, enforcers, &let_through, now),
            }
        };
        if let Step::Execute(id) = &step {
            let_through.add(id);
        }
        step
    });
    let mut steps: Vec<Step> = steps.collect();
    // Two messages that ask for the same action have the same fate: where the first one comes again, so does the other.
    let again: BTreeSet<&ActionId> = messages
        .iter()
        .zip(&steps)
        .filter(|(_, step)| matches!(step, Step::Busy | Step::Wait(_) | Step::Execute(_) | Step::Undo))
        .map(|(message, _)| message.action_id())
        .collect();
    for (message, step) in messages.iter().zip(&mut steps) {
        if *step == Step::Acknowledge && again.contains(message.action_id()) {
            *step = Step::Busy;
        }
    }
    steps
}

fn ask(
    message: &Message,
    account: &Account,
    control: Option<&Control>,
    enforcers: &Enforcers,
    let_through: &Admissions,
    now: Timestamp,
) -> Step {
    let signal = match &message.content {
        Content::Signal(signal) => signal,
        Content::Malformed { detail, .. } => {
            return refuse(RefusalCode::MalformedSignal, Some(detail.clone()), Vec::new());
        }
    };
    let tenant = account.tenant.as_ref();
    let admission = admit(signal, tenant, control, enforcers, let_through, now);
    match (admission.verdict, admission.entitlement) {
        (Verdict::Execute, Some(id)) => Step::Execute(id),
        // The gate lets nothing through without an entitlement.
        (Verdict::Execute, None) => refuse(RefusalCode::NoEntitlement, None, Vec::new()),
        (Verdict::NotNow, _) if message.is_last_delivery() => Step::GiveUp,
        (Verdict::NotNow, Some(id)) if tenant.is_some_and(|tenant| let_through.leave_room(tenant)) => {
            Step::Wait(NoPlace::Entitlement(id))
        }
        (Verdict::NotNow, _) if tenant.is_some_and(|tenant| is_forsaken(tenant, now)) => {
            Step::Wait(NoPlace::Forsaken)
        }
        (Verdict::NotNow, _) => Step::Wait(NoPlace::Tenant),
        (Verdict::Refuse { code, rules, detail }, _) => refuse(code, detail, rules),
        (Verdict::Route(code), _) => Step::Settle(ActionEvent::Routed { code }),
    }
}

/// Whether every claim of a tenant's actions is over, and for so long that their signals are visible again.
fn is_forsaken(tenant: &Tenant, now: Timestamp) -> bool {
    let shown_again = SignedDuration::from_secs(SHOWN_AGAIN_SECONDS);
    tenant
        .lease_until
        .is_some_and(|until| now.duration_since(until) > shown_again)
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

/// An action that is over as far as this governor goes: its handler has answered, or won't.
#[derive(Debug, Clone, Copy)]
pub struct EndedAction<'a> {
    /// The message it came with.
    pub message: &'a Message,
    pub run: &'a Run,
    /// Id of the receipt that it leaves should it be given up.
    pub receipt_id: Uuid,
    /// How long it has been in this governor's hands, in milliseconds.
    pub elapsed_ms: u64,
}

/// A signal in hand, not decided yet or waiting for a place.
#[derive(Debug, Clone, Copy)]
pub struct HeldSignal<'a> {
    pub message: &'a Message,
    /// Id of the receipt that deciding it leaves.
    pub receipt_id: Uuid,
    /// How long it has been in this governor's hands, in milliseconds.
    pub elapsed_ms: u64,
}

/// What is written at once, for one tenant.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// The tenant's account.
    pub account_id: &'a str,
    /// Whose claims those will be that it makes: another id for each attempt.
    pub owner: Uuid,
    pub over: Vec<EndedAction<'a>>,
    /// Signals to decide.
    pub hand: Vec<HeldSignal<'a>>,
}

/// What a group comes to.
#[derive(Debug)]
pub struct Decided {
    pub plan: Plan,
    /// What becomes of the messages of the actions that are over, in order.
    pub fates: Vec<Fate>,
    /// What to do with the signals in hand, in order.
    pub steps: Vec<Step>,
}

impl Group<'_> {
    /// Settles what is over, then decides what is in hand: the places that become free are given away again in the same
    /// transaction.
    ///
    /// # Errors
    /// [`IllegalTransition`] when what happened does not fit the actions.
    pub fn plan(
        &self,
        account: &Account,
        control: Option<&Control>,
        enforcers: &Enforcers,
        now: Timestamp,
    ) -> Result<Decided, IllegalTransition> {
        let mut plan = Plan::default();
        let fates = self.settle(&mut plan, account, now)?;
        let mut settled = account.clone();
        settled.tenant = plan.tenant.clone().or(settled.tenant);
        for action in &plan.actions {
            settled.actions.insert(action.action_id.clone(), action.clone());
        }
        let written: BTreeSet<ActionId> = plan.actions.iter().map(|a| a.action_id.clone()).collect();
        let messages: Vec<&Message> = self.hand.iter().map(|hand| hand.message).collect();
        let mut steps = decide(&messages, &settled, control, enforcers, now);
        for (message, step) in messages.iter().zip(&mut steps) {
            // A transaction writes an item once.
            if *step != Step::Acknowledge && written.contains(message.action_id()) {
                *step = Step::Busy;
            }
        }
        self.claim(&mut plan, &steps, &settled, now)?;
        if let (Some(after), Some(read)) = (&mut plan.tenant, &account.tenant) {
            // One write, however many reasons there are for it.
            after.revision = read.written().revision;
        }
        Ok(Decided { plan, fates, steps })
    }

    /// Writes what became of the actions that are over, with their receipts.
    fn settle(
        &self,
        plan: &mut Plan,
        account: &Account,
        now: Timestamp,
    ) -> Result<Vec<Fate>, IllegalTransition> {
        let mut released = Vec::new();
        let mut fates = Vec::with_capacity(self.over.len());
        for over in &self.over {
            let stored = account.actions.get(over.message.action_id());
            let mut run = over.run.clone();
            fates.push(match run.claim(stored) {
                Claim::Settled { is_final: true } => Fate::Acknowledged,
                Claim::Settled { is_final: false } => undo_again(&run),
                Claim::Lost => Fate::Again(BUSY_SECONDS),
                Claim::Stands => {
                    let unfinished = !run.action.state.is_final();
                    if unfinished && over.message.is_last_delivery() {
                        let abandoned = ActionEvent::Abandoned {
                            error_code: DEAD_LETTERED,
                        };
                        run.take(&abandoned, over.receipt_id, over.elapsed_ms, now)?;
                    }
                    for (id, payload, duration_ms) in std::mem::take(&mut run.records) {
                        let draft = run.action.draft(self.account_id, id, payload, duration_ms, now);
                        plan.drafts.push(draft);
                    }
                    if run.action.state.is_final() {
                        released.push(Released {
                            entitlement_id: run.action.entitlement_id.clone(),
                            completed: run.action.state == ActionState::Complete,
                        });
                    }
                    let fate = match unfinished {
                        true => undo_again(&run),
                        false => Fate::Acknowledged,
                    };
                    // The claim ends here: what still has to be undone may be taken up at once.
                    let owner = run.action.owner;
                    plan.actions.push(run.action.owned_by(owner, now));
                    fate
                }
            });
        }
        if !released.is_empty() {
            plan.tenant = account.tenant.as_ref().map(|tenant| tenant.released(&released));
        }
        Ok(fates)
    }

    /// Writes what was decided of the signals in hand: claims, and what is refused, routed or given up.
    fn claim(
        &self,
        plan: &mut Plan,
        steps: &[Step],
        account: &Account,
        now: Timestamp,
    ) -> Result<(), IllegalTransition> {
        let lease = now
            .saturating_add(SignedDuration::from_secs(LEASE_SECONDS))
            .unwrap_or(now);
        let mut executing = Admissions::default();
        let mut claims = false;
        let mut oldest: Option<Timestamp> = None;
        for (hand, step) in self.hand.iter().zip(steps) {
            let message = hand.message;
            let before = action_of(message, account, now);
            let mut record = |before: &Action, payload, duration_ms| {
                let draft = before.draft(self.account_id, hand.receipt_id, payload, duration_ms, now);
                plan.drafts.push(draft);
            };
            let claimed = match step {
                Step::Acknowledge | Step::Busy | Step::Wait(_) => continue,
                Step::Execute(id) => {
                    executing.add(id);
                    oldest = Some(oldest.map_or(message.sent_at, |oldest| oldest.min(message.sent_at)));
                    let before = Action {
                        entitlement_id: Some(id.clone()),
                        parameters: message.parameters(),
                        ..before
                    };
                    before.next(&ActionEvent::Claimed, hand.receipt_id, now)?.action
                }
                // Its governor is gone: the deadline it did not report is over.
                Step::Undo if before.state == ActionState::Running => {
                    let expired = before.next(&ActionEvent::LeaseExpired, hand.receipt_id, now)?;
                    if let Some(payload) = expired.receipt {
                        record(&before, payload, 0);
                    }
                    expired.action
                }
                Step::Undo => before,
                Step::Settle(_) | Step::GiveUp => {
                    // What is given up may be taken up again, for the same entitlement.
                    let before = Action {
                        parameters: message.parameters(),
                        entitlement_id: message.held(account).map(|(id, _)| id.clone()),
                        ..before
                    };
                    let settled = match step {
                        Step::Settle(event) => before.next(event, hand.receipt_id, now)?,
                        _ => before.abandoned(DEAD_LETTERED, hand.receipt_id, now)?,
                    };
                    if let Some(payload) = settled.receipt {
                        record(&before, payload, hand.elapsed_ms);
                    }
                    plan.actions.push(settled.action);
                    continue;
                }
            };
            claims = true;
            plan.actions.push(claimed.owned_by(self.owner, lease));
        }
        // Also what is undone has a claim that ends: the sweep waits for it.
        if claims {
            plan.tenant = account.tenant.as_ref().map(|tenant| {
                let mut claimed = tenant.claimed(executing.by_entitlement(), now, lease);
                let last = oldest.map(|sent_at| LastClaim { at: now, sent_at });
                claimed.last_claim = last.or(claimed.last_claim);
                claimed
            });
        }
        Ok(())
    }
}

/// When an action that is still to be undone comes again: ever later with each attempt.
fn undo_again(run: &Run) -> Fate {
    let (first, most) = UNDO_AGAIN_SECONDS;
    let failed = u32::try_from(run.action.rollback_attempts).unwrap_or(u32::MAX);
    let doubled = first.saturating_mul(1 << failed.saturating_sub(1).min(8));
    Fate::Again(doubled.min(most))
}

#[cfg(test)]
pub(crate) mod tests;
