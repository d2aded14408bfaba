//! Governors, a queue with its mapping, a table and a handler, all in memory. Two ways through that world:
//!
//! - in any order ([`Happens`]): crashes behind each step, governors that sleep through their lease, messages delivered twice,
//!   handlers that are late, writes whose answer is lost. Whatever happens, each action ends once.
//! - in virtual time ([`Clock`]): each step takes as long as it does on AWS, roughly. While a signal waits no place is idle for
//!   longer than a second, no signal starves, and none comes near the dead letters by waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use crate::account::EntitlementId;
use crate::action::{Action, ActionEvent, ActionState, DEAD_LETTERED, MAX_DELIVERIES};
use crate::admission::Enforcers;
use crate::audit::ActionAudit;
use crate::control::Control;
use crate::names::Partition;
use crate::signal::ActionId;
use crate::tenant::{Pace, Tenant};
use crate::transaction::memory::{Kept, Memory};
use crate::transaction::{ATTEMPTS, Account, Keys, Plan, longest_wait};
use jiff::{SignedDuration, Timestamp};
use policy::enforcer::Enforcer;
use proptest::prelude::*;
use receipts::ledger::{Appended, Head};
use receipts::receipt::{Draft, Payload, Receipt, Status};
use serde_json::json;
use uuid::Uuid;

use super::{Effects, NextStep, Selection, Shift, Source};
use crate::governor::batch::tests::{account, control, enforcer, loaded, message};
use crate::governor::batch::{Content, Decided, Message, Run};

/// How long a message stays hidden after a delivery, in milliseconds.
const VISIBILITY: u64 = 30_000;
/// Governors that work side by side in any order.
const GOVERNORS: usize = 3;
/// How long a governor takes up new signals.
const SHIFT: Duration = Duration::from_millis(6_500);

static ENFORCER: LazyLock<Enforcer> = LazyLock::new(enforcer);
static ENFORCERS: LazyLock<Enforcers> = LazyLock::new(|| loaded(&ENFORCER));

/// How a handler takes the call of one action.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Quick,
    /// Says no, and can be undone.
    Fails,
    /// Says no, and cannot.
    FailsForGood,
    /// Does it when nobody waits any more.
    Late,
    /// Never answers, and does nothing.
    Silent,
}

/// What the handler remembers of an action.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    called: u32,
    applied: bool,
    undone: bool,
    late: bool,
}

/// One signal on the queue.
#[derive(Debug, Clone)]
struct Letter {
    message: Message,
    visible_at: u64,
    /// Whoever had it died: nobody can know of it before it is visible again.
    orphaned: bool,
}

/// A call on its way.
#[derive(Debug)]
struct Call {
    index: usize,
    run: Run,
    began: u64,
    ends_at: u64,
}

/// What a governor is in the middle of.
#[derive(Debug)]
enum Midst {
    Nothing,
    /// It has read the table, and is about to write.
    Read(Selection, Box<Account>),
    /// It has written; the queue does not know yet.
    Written(Effects),
}

#[derive(Debug)]
struct Governor {
    shift: Shift,
    began: u64,
    calls: Vec<Call>,
    midst: Midst,
}

struct World {
    /// Milliseconds.
    now: u64,
    tables: Memory,
    ledger: Vec<Draft>,
    control: Control,
    queue: Vec<Letter>,
    dead: Vec<Letter>,
    manners: BTreeMap<ActionId, (Manner, u32, u64)>,
    handler: BTreeMap<ActionId, Work>,
    governors: Vec<Option<Governor>>,
    /// The pace of the mapping; it may lag behind the tenant's limit.
    pace: Pace,
    next_id: u128,
    claims: u64,
    claimed_at: BTreeMap<ActionId, u64>,
    most_deliveries: u32,
    /// Messages received, and transactions written.
    received: u64,
    written: u64,
    /// The next write that stands is told as one that others prevented.
    misheard: bool,
    /// The next write fails, after it was done or before.
    cut: Option<bool>,
    /// How long undoing takes, in milliseconds.
    undo_takes: u64,
    /// The longest shift, in milliseconds.
    longest: u64,
}

/// Whose signals, how each is taken, how often undoing it fails, and how long its handler takes, in milliseconds.
type Signals<'a> = &'a [(Manner, u32, u64)];

static PARTITION: LazyLock<Partition> = LazyLock::new(|| Partition::from_key("c".to_owned()));

fn action_id(n: usize) -> ActionId {
    ActionId::try_from(format!("a-{n}")).unwrap()
}

impl World {
    fn new(signals: Signals<'_>, concurrent: u64, monthly: u64, governors: usize) -> Self {
        let mut tables = Memory::default();
        let mut tenant = account(&ENFORCER, concurrent).tenant.unwrap();
        tenant.scale.floor = Some(concurrent);
        tenant.resources.queue_url = "queue".to_owned();
        for held in tenant.entitlements.values_mut() {
            held.quota.monthly_actions = monthly;
        }
        let pace = tenant.pace();
        tables.of_mut(&PARTITION).tenant = Some(tenant);
        let letter = |n: usize| {
            let mut message = message(
                &ENFORCER,
                action_id(n).as_str(),
                "restart-service",
                json!({"service": "x"}),
            );
            message.receipt_handle = message.message_id.clone();
            message.sent_at = Timestamp::from_microsecond(i64::try_from(n).unwrap()).unwrap();
            Letter {
                message,
                visible_at: 0,
                orphaned: false,
            }
        };
        Self {
            now: 0,
            tables,
            ledger: Vec::new(),
            control: control(),
            queue: (0..signals.len()).map(letter).collect(),
            dead: Vec::new(),
            manners: signals
                .iter()
                .enumerate()
                .map(|(n, how)| (action_id(n), *how))
                .collect(),
            handler: BTreeMap::new(),
            governors: (0..governors).map(|_| None).collect(),
            pace,
            next_id: 0,
            claims: 0,
            claimed_at: BTreeMap::new(),
            most_deliveries: 0,
            received: 0,
            written: 0,
            misheard: false,
            cut: None,
            undo_takes: 5,
            longest: 0,
        }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_millisecond(i64::try_from(self.now).unwrap()).unwrap()
    }

    fn id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    fn table(&self) -> &Kept {
        self.tables.of(&PARTITION).unwrap()
    }

    fn tenant(&mut self) -> &mut Tenant {
        self.tables.of_mut(&PARTITION).tenant.as_mut().unwrap()
    }

    /// What a governor reads: tenant, head, and the actions that it asks for.
    fn read(&self, actions: Vec<ActionId>) -> Account {
        let actions = actions.into_iter().collect();
        self.tables.load(
            &PARTITION,
            &Keys {
                actions,
                ..Keys::default()
            },
        )
    }

    /// Writes a plan on the conditions that the tables put on it; tells the account afterwards, `None` when others were first.
    /// Receipts are counted, and neither chained nor signed: that is another test's.
    fn write(&mut self, read: &Account, plan: &Plan) -> Option<Account> {
        let size = read.head.size + plan.drafts.len() as u64;
        let head = Head {
            size,
            ..read.head.clone()
        };
        let claimed = |action: &&Action| {
            let before = self
                .table()
                .actions
                .get(&action.action_id)
                .map(|action| action.state);
            action.state == ActionState::Running && before != Some(ActionState::Running)
        };
        let claimed: Vec<ActionId> = plan
            .actions
            .iter()
            .filter(claimed)
            .map(|a| a.action_id.clone())
            .collect();
        let (committed, stands) = self.tables.write(
            read,
            plan,
            Appended {
                head,
                sealed: Vec::new(),
            },
        );
        if !stands {
            return None;
        }
        self.claims += claimed.len() as u64;
        self.claimed_at
            .extend(claimed.into_iter().map(|id| (id, self.now)));
        self.ledger.extend(plan.drafts.iter().cloned());
        self.written += u64::from(!plan.is_empty());
        if !plan.is_empty() && self.manners.len() < 100 {
            self.hold();
        }
        let misheard = !plan.is_empty() && std::mem::take(&mut self.misheard);
        (!misheard).then_some(committed.account)
    }

    /// What must be true of the table after each write.
    fn hold(&self) {
        let tenant = self.table().tenant.as_ref().unwrap();
        let in_flight = self
            .table()
            .actions
            .values()
            .filter(|a| a.state.in_flight())
            .count() as u64;
        assert_eq!(tenant.in_flight, in_flight, "places are counted exactly");
        let held: u64 = tenant.entitlements.values().map(|held| held.in_flight).sum();
        assert_eq!(held, in_flight);
        let quota = |of: fn(&crate::entitlement::Entitlement) -> u64| -> u64 {
            tenant.entitlements.values().map(of).sum()
        };
        let left: u64 = tenant
            .entitlements
            .values()
            .map(|held| held.monthly_left(self.time()))
            .sum();
        assert_eq!(
            left + self.claims,
            quota(|held| held.quota.monthly_actions),
            "the month is counted exactly"
        );
    }

    /// SQS hands out what is visible; `again` hands it out without hiding it.
    fn receive(&mut self, most: usize, again: bool) -> Vec<Message> {
        let now = self.now;
        let mut handed = Vec::new();
        for letter in self
            .queue
            .iter_mut()
            .filter(|letter| letter.visible_at <= now)
            .take(most)
        {
            letter.message.deliveries += 1;
            letter.orphaned = false;
            self.received += 1;
            self.most_deliveries = self.most_deliveries.max(letter.message.deliveries);
            if !again {
                letter.visible_at = now + VISIBILITY;
            }
            handed.push(letter.message.clone());
        }
        handed
    }

    fn place_of(&self, message_id: &str) -> Option<usize> {
        self.queue
            .iter()
            .position(|letter| letter.message.message_id == message_id)
    }

    fn delete(&mut self, message_id: &str) {
        if let Some(place) = self.place_of(message_id) {
            self.queue.remove(place);
        }
    }

    fn carry_out(&mut self, effects: &Effects) {
        for handle in &effects.delete {
            self.delete(handle);
        }
        for (handle, seconds) in &effects.give_back {
            let Some(place) = self.place_of(handle) else {
                continue;
            };
            self.queue[place].visible_at = self.now + u64::from(*seconds) * 1_000;
            if self.queue[place].message.deliveries >= MAX_DELIVERIES {
                let letter = self.queue.remove(place);
                self.dead.push(letter);
            }
        }
    }

    fn work(&mut self, id: &ActionId) -> &mut Work {
        self.handler.entry(id.clone()).or_default()
    }

    fn act(&mut self, id: &ActionId) -> ActionEvent {
        let (manner, ..) = self.manners[id];
        let work = self.work(id);
        work.called += 1;
        let failed = |recoverable| ActionEvent::HandlerFailed {
            error_code: "NO".to_owned(),
            recoverable,
        };
        if work.undone {
            return failed(false);
        }
        match manner {
            Manner::Quick => {
                work.applied = true;
                ActionEvent::HandlerOk
            }
            Manner::Fails => failed(true),
            Manner::FailsForGood => failed(false),
            Manner::Late => {
                work.late = true;
                ActionEvent::DeadlineExceeded
            }
            Manner::Silent => ActionEvent::DeadlineExceeded,
        }
    }

    fn undo(&mut self, id: &ActionId) -> ActionEvent {
        let refusals = &mut self.manners.get_mut(id).unwrap().1;
        if *refusals > 0 {
            *refusals -= 1;
            return ActionEvent::UndoFailed { recoverable: true };
        }
        let work = self.work(id);
        work.undone = true;
        work.applied = false;
        ActionEvent::UndoOk {
            rollback_duration_ms: 1,
        }
    }

    /// What handlers do when nobody waits for them any more.
    fn catch_up(&mut self) {
        for work in self.handler.values_mut().filter(|work| work.late && !work.undone) {
            work.applied = true;
        }
    }

    /// A call begins: what the handler does it does at once, and says later.
    fn call(&mut self, index: usize, action: Action) -> Call {
        let id = action.action_id.clone();
        let now = self.time();
        let mut run = Run::new(action);
        let (manner, _, takes) = self.manners[&id];
        let mut lasts = 5;
        if run.action.state == ActionState::Running {
            let event = self.act(&id);
            run.take(&event, self.id(), 1, now).unwrap();
            lasts = match manner {
                Manner::Late | Manner::Silent => crate::action::DEADLINE_MS,
                _ => takes,
            };
        }
        if run.action.state.undo_due() {
            let event = self.undo(&id);
            run.take(&event, self.id(), 1, now).unwrap();
            lasts += self.undo_takes;
        }
        Call {
            index,
            run,
            began: self.now,
            ends_at: self.now + lasts,
        }
    }

    fn begin(&mut self, which: usize, messages: Vec<Message>) {
        let mut shift = Shift::new(SHIFT);
        let mut ids = Vec::new();
        for _ in 0..messages.len() * 2 {
            ids.push(self.id());
        }
        let mut ids = ids.into_iter();
        shift.take(messages, Source::Mapping, Duration::ZERO, || ids.next().unwrap());
        self.governors[which] = Some(Governor {
            shift,
            began: self.now,
            calls: Vec::new(),
            midst: Midst::Nothing,
        });
    }

    /// One governor takes its next step. How long that takes, in milliseconds; `None` when there is nothing to do.
    fn step(&mut self, which: usize, again: bool) -> Option<u64> {
        let Some(mut governor) = self.governors[which].take() else {
            let messages = self.receive(usize::try_from(self.pace.batch_size).unwrap(), again);
            if messages.is_empty() {
                return None;
            }
            self.begin(which, messages);
            return Some(10);
        };
        let elapsed = Duration::from_millis(self.now - governor.began);
        let ended = governor.calls.iter().position(|call| call.ends_at <= self.now);
        if let Some(ended) = ended {
            let call = governor.calls.remove(ended);
            let took = Duration::from_millis(call.ends_at - call.began);
            governor.shift.ended(call.index, Some(call.run), took, elapsed);
            self.governors[which] = Some(governor);
            return Some(0);
        }
        let took = match std::mem::replace(&mut governor.midst, Midst::Nothing) {
            Midst::Read(chosen, read) => self.commit(&mut governor, chosen, &read, elapsed),
            Midst::Written(effects) => {
                self.carry_out(&effects);
                Some(3)
            }
            Midst::Nothing => match governor.shift.next(elapsed) {
                NextStep::Receive(most) => {
                    let messages = self.receive(most, again);
                    let mut ids = Vec::new();
                    for _ in 0..messages.len() * 2 {
                        ids.push(self.id());
                    }
                    let mut ids = ids.into_iter();
                    governor
                        .shift
                        .take(messages, Source::Received, elapsed, || ids.next().unwrap());
                    Some(5)
                }
                NextStep::Commit => {
                    let chosen = governor.shift.choose();
                    if let Some(actions) = governor.shift.to_read(&chosen) {
                        governor.shift.read(self.read(actions));
                    }
                    let account = governor.shift.account().unwrap().clone();
                    governor.midst = Midst::Read(chosen, Box::new(account));
                    Some(5)
                }
                NextStep::Release => {
                    governor.midst = Midst::Written(governor.shift.release(elapsed, 0.5));
                    Some(0)
                }
                NextStep::Wait(time) => {
                    let until = self.now + u64::try_from(time.as_millis()).unwrap().max(1);
                    let next = governor.calls.iter().map(|call| call.ends_at).min();
                    let until = next.map_or(until, |next| next.min(until));
                    self.governors[which] = Some(governor);
                    return Some(until.saturating_sub(self.now).max(1));
                }
                NextStep::End => {
                    self.longest = self.longest.max(self.now - governor.began);
                    let unsettled = governor.shift.unsettled();
                    for message_id in governor.shift.brought() {
                        if !unsettled.contains(&message_id) {
                            self.delete(&message_id);
                        }
                    }
                    return Some(5);
                }
            },
        };
        self.governors[which] = Some(governor);
        took
    }

    fn commit(
        &mut self,
        governor: &mut Governor,
        chosen: Selection,
        read: &Account,
        elapsed: Duration,
    ) -> Option<u64> {
        let owner = self.id();
        let facts = (Some(&self.control), &*ENFORCERS);
        let now = (elapsed, self.time());
        let decided: Decided = governor
            .shift
            .plan(&chosen, read, ("c", owner), facts, now)
            .unwrap();
        if let Some(done) = self.cut.take() {
            if done {
                self.write(read, &decided.plan);
            }
            governor.shift.failed(&chosen);
            return Some(50);
        }
        let Some(account) = self.write(read, &decided.plan) else {
            let lost = governor.shift.outrun(elapsed, |lost| {
                Duration::from_millis(longest_wait(lost) * u64::from(lost * 7 % 10) / 10)
            });
            assert!(lost < ATTEMPTS, "others are not always first");
            return Some(10);
        };
        let effects = governor.shift.written(&chosen, &decided, account, elapsed, 0.5);
        for index in effects.calls.clone() {
            let id = governor.shift.message(index).unwrap().action_id().clone();
            let action = governor.shift.account().unwrap().actions[&id].clone();
            let call = self.call(index, action);
            governor.calls.push(call);
        }
        let mut effects = effects;
        for index in std::mem::take(&mut effects.renew) {
            let Some(place) = self.place_of(&governor.shift.message(index).unwrap().message_id) else {
                continue;
            };
            let mut again = self.queue[place].clone();
            let name = format!("{}-again-{}", again.message.message_id, self.next_id);
            again.message.message_id.clone_from(&name);
            again.message.receipt_handle = name;
            again.message.deliveries = 0;
            again.visible_at = self.now;
            self.queue.push(again);
            effects.delete.extend(governor.shift.renewed(index).delete);
        }
        governor.midst = Midst::Written(effects);
        Some(10)
    }

    /// A governor ends without a word.
    fn crash(&mut self, which: usize) {
        let Some(governor) = self.governors[which].take() else {
            return;
        };
        let mut ids: BTreeSet<String> = governor.shift.held().collect();
        if let Midst::Written(effects) = governor.midst {
            // The queue has not heard yet that it gives them back.
            ids.extend(effects.give_back.into_iter().map(|(handle, _)| handle));
        }
        for letter in &mut self.queue {
            letter.orphaned |= ids.contains(&letter.message.message_id);
        }
    }

    /// Lets everything come to its end, with nothing more going wrong.
    fn calm(&mut self) {
        self.misheard = false;
        self.cut = None;
        for _ in 0..4_000 {
            for which in 0..self.governors.len() {
                for _ in 0..6 {
                    self.step(which, false);
                }
            }
            self.now += 500;
            self.catch_up();
            if self.queue.is_empty() && self.governors.iter().all(Option::is_none) {
                return;
            }
        }
        panic!("{} signals never ended", self.queue.len());
    }

    /// What must be true in the end.
    fn judge(&self) {
        let tenant = self.table().tenant.as_ref().unwrap();
        assert_eq!(tenant.in_flight, 0, "no place is lost");
        let mut audit = ActionAudit::new();
        for (seq, draft) in self.ledger.iter().enumerate() {
            audit.receipt(&receipt(seq as u64, draft)).unwrap();
        }
        let late = self.time() + SignedDuration::from_hours(1);
        let found = audit.end(late).unwrap();
        assert_eq!(found.in_progress, 0);
        assert_eq!(
            found.finished,
            self.manners.len() as u64,
            "each signal ends in one final receipt"
        );
        let mut told: BTreeMap<&str, Vec<Uuid>> = BTreeMap::new();
        for draft in &self.ledger {
            told.entry(about(draft).unwrap())
                .or_default()
                .push(draft.receipt_id);
        }
        let mut ended = (0, 0);
        for id in self.manners.keys() {
            let action = &self.table().actions[id];
            audit.action(action, late).unwrap();
            let work = self.handler.get(id).copied().unwrap_or_default();
            assert_eq!(
                action.receipts,
                told[id.as_str()],
                "the action knows its receipts"
            );
            assert!(work.called <= 1, "{id:?} was called {} times", work.called);
            match action.state {
                ActionState::Complete => {
                    assert!(work.applied && !work.undone, "{id:?}");
                    ended.0 += 1;
                }
                ActionState::RolledBack => {
                    assert!(!work.applied && work.undone, "{id:?}");
                    ended.1 += 1;
                }
                ActionState::Escalated => ended.1 += 1,
                ActionState::Refused => assert_eq!(work.called, 0, "{id:?}"),
                other => panic!("{id:?} ended as {other:?}"),
            }
        }
        assert_eq!((tenant.actions_completed, tenant.actions_failed), ended);
    }
}

fn about(draft: &Draft) -> Option<&str> {
    match &draft.payload {
        Payload::ActionComplete(outcome) | Payload::ActionRouted(outcome) => Some(&outcome.action_id),
        Payload::ActionRefused { action_id, .. }
        | Payload::ActionTimeout { action_id, .. }
        | Payload::ActionFailed { action_id, .. }
        | Payload::ActionRolledBack { action_id, .. } => Some(action_id),
        _ => None,
    }
}

fn receipt(seq: u64, draft: &Draft) -> Receipt {
    Receipt {
        receipt_id: draft.receipt_id,
        seq,
        timestamp: draft.occurred_at,
        occurred_at: draft.occurred_at,
        account_id: draft.account_id.clone(),
        status: Status::Success,
        duration_ms: draft.duration_ms,
        policy_hash: draft.policy_hash.clone(),
        prev_hash: String::new(),
        key_id: String::new(),
        signature: String::new(),
        payload: draft.payload.clone(),
    }
}

// ------------------------------------------------------------------ in any order

/// What goes on in the world, one after the other.
#[derive(Debug, Clone, Copy)]
enum Happens {
    /// A governor takes its next step.
    Step(usize),
    /// A governor takes its next step, and what it receives stays visible: SQS delivers at least once.
    Twice(usize),
    /// A governor ends without a word.
    Crash(usize),
    /// A transaction is told as one that others prevented, and stands: its first attempt was only slow.
    Misheard,
    /// A transaction fails, after it was written or before.
    Cut(bool),
    /// Milliseconds go by; handlers do late what they do late.
    Time(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        12 => (0..GOVERNORS).prop_map(Happens::Step),
        2 => (0..GOVERNORS).prop_map(Happens::Twice),
        1 => (0..GOVERNORS).prop_map(Happens::Crash),
        1 => Just(Happens::Misheard),
        1 => any::<bool>().prop_map(Happens::Cut),
        2 => (0..45_000u64).prop_map(Happens::Time),
        3 => (0..400u64).prop_map(Happens::Time),
    ]
}

fn manner() -> impl Strategy<Value = (Manner, u32, u64)> {
    let manner = prop_oneof![
        3 => Just(Manner::Quick),
        1 => Just(Manner::Fails),
        1 => Just(Manner::FailsForGood),
        1 => Just(Manner::Late),
        1 => Just(Manner::Silent),
    ];
    // How often undoing it fails: from five times on it is escalated.
    (manner, prop_oneof![3 => Just(0u32), 1 => 1..7u32], 0..499u64)
}

fn play(signals: Signals<'_>, concurrent: u64, monthly: u64, story: &[Happens]) -> World {
    let mut world = World::new(signals, concurrent, monthly, GOVERNORS);
    for happening in story {
        match *happening {
            Happens::Step(which) => {
                world.step(which, false);
            }
            Happens::Twice(which) => {
                world.step(which, true);
            }
            Happens::Misheard => world.misheard = true,
            Happens::Cut(done) => world.cut = Some(done),
            Happens::Crash(which) => world.crash(which),
            Happens::Time(milliseconds) => {
                world.now += milliseconds;
                world.catch_up();
            }
        }
    }
    world.calm();
    world.judge();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn each_action_ends_once_whatever_happens(
        signals in proptest::collection::vec(manner(), 1..8),
        concurrent in 1..5u64,
        monthly in 1..12u64,
        story in proptest::collection::vec(happens(), 0..160),
    ) {
        play(&signals, concurrent, monthly, &story);
    }
}

const QUICK: (Manner, u32, u64) = (Manner::Quick, 0, 0);

/// A governor that crashes behind each of its steps: received, read, claimed, told the queue, called, read, committed.
#[test]
fn a_crash_after_each_step_leaves_one_end() {
    for (steps, expected) in [
        (1, ActionState::Complete),
        (2, ActionState::Complete),
        (3, ActionState::RolledBack),
        (4, ActionState::RolledBack),
        (5, ActionState::RolledBack),
        (8, ActionState::Complete),
    ] {
        let mut story = vec![Happens::Step(0); steps];
        story.push(Happens::Crash(0));
        let world = play(&[QUICK], 1, 10, &story);
        let ended: Vec<_> = world.table().actions.values().map(|a| a.state).collect();
        assert_eq!(ended, [expected], "after {steps} steps");
    }
}

/// An outcome that was written, and that its writer does not know of, is not written again.
#[test]
fn an_outcome_stands_once_whatever_its_writer_hears() {
    use Happens::{Misheard, Step};
    for manner in [Manner::Quick, Manner::FailsForGood, Manner::Fails] {
        for undos in [0, 1] {
            for steps in 3..9 {
                let mut story = vec![Step(0); steps];
                story.push(Misheard);
                play(&[(manner, undos, 0)], 1, 10, &story);
            }
        }
    }
}

/// A governor that wakes up when its lease is over and another one has undone its action: its success does not count.
#[test]
fn a_late_success_does_not_win() {
    use Happens::{Step, Time};
    // The first one has claimed and called.
    let mut story = vec![Step(0), Step(0), Step(0), Time(60_000)];
    story.extend([Step(1); 8]);
    story.extend([Step(0); 8]);
    let world = play(&[QUICK], 1, 10, &story);
    let told: Vec<_> = world.ledger.iter().map(|d| d.payload.operation()).collect();
    assert_eq!(told, ["action_timeout", "action_rolled_back"]);
}

/// What waits for a place until its last delivery all the same is given up on record, and goes to the dead letters.
#[test]
fn a_signal_that_never_finds_a_place_is_escalated() {
    let mut world = World::new(&[QUICK], 1, 10, 1);
    let tenant = world.tenant();
    let held = tenant.entitlements.values_mut().next().unwrap();
    held.in_flight = 1;
    held.month_actions = 1;
    tenant.in_flight = 1;
    world.claims = 1;
    world.tables.of_mut(&PARTITION).actions.insert(action_id(7), {
        let mut other = Action::pending(action_id(7), "t", "", Timestamp::UNIX_EPOCH);
        other.state = ActionState::Running;
        other
    });
    world.queue[0].message.deliveries = MAX_DELIVERIES - 1;
    for _ in 0..4 {
        world.step(0, false);
    }
    assert_eq!(world.ledger[0].payload.operation(), "action_failed");
    let action = &world.table().actions[&action_id(0)];
    assert_eq!(action.resumes_at(), Some(ActionState::Pending));
    assert_eq!(action.escalation.as_ref().unwrap().error_code, DEAD_LETTERED);
    assert!(action.parameters.is_some(), "it can be taken up again");
    assert_eq!((world.queue.len(), world.dead.len()), (0, 1));
}

// ------------------------------------------------------------------ in virtual time

/// What is held against the clock while a backlog drains.
#[derive(Debug, Default)]
struct Clock {
    /// Since when a place is free while a signal waits.
    idle_since: Option<u64>,
    /// The longest such time.
    idle: u64,
    /// When it was looked at last.
    looked: u64,
    /// Messages of settled signals that the queue still has, each for so many milliseconds.
    settled: u64,
}

impl World {
    /// Whether a signal waits for a place that it could have: `of` says which signals could.
    fn waits(&self, of: impl Fn(&Message) -> bool) -> bool {
        self.queue.iter().any(|letter| {
            let action = self.table().actions.get(letter.message.action_id());
            !letter.orphaned && action.is_none() && of(&letter.message)
        })
    }

    fn watch(&self, clock: &mut Clock) {
        let tenant = self.table().tenant.as_ref().unwrap();
        let settled = |letter: &&Letter| {
            let action = self.table().actions.get(letter.message.action_id());
            action.is_some_and(|action| action.state.is_final())
        };
        let settled = self.queue.iter().filter(settled).count() as u64;
        clock.settled += settled * (self.now - clock.looked);
        clock.looked = self.now;
        let takes = |message: &Message| {
            let Content::Signal(signal) = &message.content else {
                return false;
            };
            let id = signal.entitlement_id.as_ref();
            let held = id.map_or_else(
                || tenant.entitlements.values().next(),
                |id| tenant.entitlements.get(id),
            );
            held.is_some_and(|held| held.concurrent_left() > 0)
        };
        // Of twenty places one is always on its way from one action to the next.
        let limit = tenant.in_flight_action_limit();
        let free = limit.saturating_sub(tenant.in_flight);
        match free > limit / 20 && self.waits(takes) {
            true => {
                let since = *clock.idle_since.get_or_insert(self.now);
                clock.idle = clock.idle.max(self.now - since);
            }
            false => clock.idle_since = None,
        }
    }

    /// Drains the queue in virtual time; `happens` may change the world at any moment.
    fn drain(&mut self, mut happens: impl FnMut(&mut Self)) -> Clock {
        let mut clock = Clock::default();
        let mut ready: Vec<u64> = (0..self.governors.len() as u64).collect();
        let mut steps = 0u64;
        while !self.queue.is_empty() || self.governors.iter().any(Option::is_some) {
            steps += 1;
            assert!(steps < 50_000_000, "{} signals never end", self.queue.len());
            let (which, at) = ready
                .iter()
                .copied()
                .enumerate()
                .min_by_key(|(_, at)| *at)
                .unwrap();
            self.now = self.now.max(at);
            happens(self);
            let rests = self.governors[which].is_none()
                && which >= usize::try_from(self.pace.maximum_concurrency).unwrap();
            let took = match rests {
                true => None,
                false => self.step(which, false),
            };
            // A mapping that finds nothing polls until there is something.
            ready[which] = self.now + took.unwrap_or(25);
            self.watch(&mut clock);
        }
        clock
    }
}

/// Most governors of any case here: those of fifty places.
const MOST_GOVERNORS: usize = 5;

#[track_caller]
fn check_drain(count: usize, places: u64, milliseconds: u64) {
    let signals = vec![(Manner::Quick, 0, milliseconds); count];
    let mut world = World::new(&signals, places, 1_000_000, MOST_GOVERNORS);
    let clock = world.drain(|_| {});
    world.judge();
    // What is spent beside the work: a wave is received, read and written.
    let work = |count: usize| (count as u64).div_ceil(places) * (milliseconds + 60);
    let what = format!(
        "{count} signals of {milliseconds} ms, {places} places: {} ms",
        world.now
    );
    assert!(clock.idle <= 1_000, "{what}: a place idle for {} ms", clock.idle);
    assert!(world.now <= work(count) + 2_000, "{what}");
    assert!(
        world.most_deliveries <= 20,
        "{what}: {} deliveries",
        world.most_deliveries
    );
    // What is settled does not pass for waiting: it leaves the queue in a moment, not with the end of a shift.
    let settled = clock.settled / world.now;
    let most = if milliseconds < 100 { 20 } else { 1 };
    assert!(settled <= most, "{what}: {settled} settled signals on the queue");
    // No signal starves: it waits for those before it, and for those that one shift takes before it at the most.
    for (id, at) in &world.claimed_at {
        let n: usize = id.as_str()[2..].parse().unwrap();
        assert!(
            *at <= 2 * work(n + 1) + 9_000,
            "{what}: {} waited {at} ms",
            id.as_str()
        );
    }
    // What is read and written for each does not grow with the depth.
    assert!(
        world.received <= 3 * count as u64 + 20,
        "{what}: {} received",
        world.received
    );
    assert!(
        world.written <= count as u64 + 10,
        "{what}: {} written",
        world.written
    );
}

#[test]
fn a_free_place_is_never_idle_while_a_signal_waits() {
    for (count, places, milliseconds) in [
        (1, 1, 300),
        (100, 1, 300),
        (100, 2, 300),
        (100, 3, 300),
        (100, 10, 300),
        (1_000, 10, 1),
        (1_000, 10, 300),
        (1_000, 15, 499),
        (1_000, 50, 300),
        (10_000, 50, 20),
    ] {
        check_drain(count, places, milliseconds);
    }
}

/// Places whose actions have ended are not kept from others until the slowest of their shift has been undone.
#[test]
fn slow_undos_keep_only_their_own_places() {
    let signals: Vec<_> = (0..400)
        .map(|n| {
            let manner = if n % 20 == 7 { Manner::Fails } else { Manner::Quick };
            (manner, 0, 100)
        })
        .collect();
    let mut world = World::new(&signals, 10, 1_000_000, MOST_GOVERNORS);
    world.undo_takes = 2_000;
    world.drain(|_| {});
    world.judge();
    // 400 × 0.1 s and 20 × 2 s in ten places.
    assert!(world.now <= 8_000 * 13 / 10 + 2_000, "{} ms", world.now);
    assert!(world.longest <= 10_000, "a shift of {} ms", world.longest);
}

/// What happens while a backlog drains, and after how many milliseconds.
#[derive(Debug, Clone, Copy)]
enum Meanwhile {
    Crash(usize),
    /// The tenant gets so many places. The mapping gets the pace of more at once, that of fewer only later.
    Places(u64),
}

fn meanwhile() -> impl Strategy<Value = (u64, Meanwhile)> {
    let what = prop_oneof![
        (0..MOST_GOVERNORS).prop_map(Meanwhile::Crash),
        (1..50u64).prop_map(Meanwhile::Places),
    ];
    (0..20_000u64, what)
}

fn work() -> impl Strategy<Value = (Manner, u32, u64)> {
    prop_oneof![
        6 => (1..499u64).prop_map(|takes| (Manner::Quick, 0, takes)),
        2 => (1..20u64).prop_map(|takes| (Manner::Quick, 0, takes)),
        1 => (1..499u64).prop_map(|takes| (Manner::Fails, 0, takes)),
        1 => Just((Manner::Silent, 0, 0)),
    ]
}

/// How long the mapping keeps its pace when a tenant has fewer places.
const MAPPING_LAGS: u64 = 5_000;

fn drain_through(signals: Signals<'_>, places: u64, story: &[(u64, Meanwhile)]) {
    let mut world = World::new(signals, places, 1_000_000, MOST_GOVERNORS);
    let mut story = story.to_vec();
    story.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let mut slower: Option<(u64, Pace)> = None;
    let clock = world.drain(|world| {
        if let Some((_, pace)) = slower.filter(|(at, _)| *at <= world.now) {
            world.pace = pace;
            slower = None;
        }
        while let Some((_, what)) = story.pop_if(|(at, _)| *at <= world.now) {
            match what {
                Meanwhile::Crash(which) => world.crash(which),
                Meanwhile::Places(places) => {
                    let tenant = world.tenant();
                    tenant.scale.floor = Some(places);
                    for held in tenant.entitlements.values_mut() {
                        held.quota.concurrent_actions = places;
                    }
                    tenant.revision += 1;
                    let pace = tenant.pace();
                    match pace.maximum_concurrency >= world.pace.maximum_concurrency {
                        true => world.pace = pace,
                        false => slower = Some((world.now + MAPPING_LAGS, pace)),
                    }
                }
            }
        }
    });
    world.judge();
    assert!(clock.idle <= 1_000, "a place idle for {} ms", clock.idle);
    assert!(
        world.most_deliveries <= 200,
        "{} deliveries",
        world.most_deliveries
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn no_place_is_idle_whatever_happens_meanwhile(
        signals in proptest::collection::vec(work(), 1..300),
        places in 1..50u64,
        story in proptest::collection::vec(meanwhile(), 0..6),
    ) {
        drain_through(&signals, places, &story);
    }
}

/// A governor that crashes behind any step, while another that crashed before still holds places: only the signals that it had
/// in hand, or was about to give back, come again late.
#[test]
fn a_crash_behind_any_step_leaves_no_place_idle() {
    let signals: Vec<_> = (0..24).map(|n| (Manner::Quick, 0, 1 + n * 37 % 99)).collect();
    for first in [4, 10, 20] {
        for second in 1.. {
            let mut world = World::new(&signals, 12, 1_000_000, MOST_GOVERNORS);
            let mut steps = [0, 0];
            let clock = world.drain(|world| {
                for (which, after) in [first, second].into_iter().enumerate() {
                    steps[which] += usize::from(steps[which] >= after || world.governors[which].is_some());
                    if steps[which] == after {
                        world.crash(which);
                    }
                }
            });
            world.judge();
            let idle = clock.idle;
            assert!(
                idle <= 1_000,
                "crashes after {first} and {second} steps: a place idle for {idle} ms"
            );
            if steps[1] < second {
                break;
            }
        }
    }
}

/// Places that a dead governor left behind are freed by signals that stand behind all others: those let them pass.
#[test]
fn what_frees_a_place_is_found_behind_a_backlog() {
    const BACKLOG: usize = 200;
    for places in [1, 2, 10] {
        let dead = usize::try_from(places).unwrap();
        let mut world = World::new(
            &vec![(Manner::Quick, 0, 300); BACKLOG + dead],
            places,
            1_000_000,
            5,
        );
        world.now = 60_000;
        let held = EntitlementId::parse("s").unwrap();
        for n in BACKLOG..BACKLOG + dead {
            let claimed = Action {
                state: ActionState::Running,
                entitlement_id: Some(held.clone()),
                ..Action::pending(action_id(n), "restart-service", "", Timestamp::UNIX_EPOCH)
            };
            world
                .tables
                .of_mut(&PARTITION)
                .actions
                .insert(action_id(n), claimed);
        }
        let until = Timestamp::from_second(20).unwrap();
        let mut tenant =
            world
                .tenant()
                .claimed(&[(held.clone(), places)].into(), Timestamp::UNIX_EPOCH, until);
        tenant.revision = 0;
        *world.tenant() = tenant;
        world.claims = places;
        let work = 60_000 + (BACKLOG as u64).div_ceil(places) * (300 + 60);
        world.drain(|_| {});
        world.judge();
        // Both shifts pass a batch at least in 0.6 s.
        assert!(
            world.now <= work + BACKLOG as u64 * 400,
            "{places} places: {} ms",
            world.now
        );
        assert!(
            world.most_deliveries <= 20,
            "{} deliveries",
            world.most_deliveries
        );
    }
}

/// An entitlement that is full by itself, in a tenant that is not, keeps its places busy, and no other entitlement's signals
/// waiting; what is put aside for it comes again a few times each.
#[track_caller]
fn check_full_entitlement(backlog: usize, places: u64, milliseconds: u64, limit: u64) {
    const OTHERS: usize = 40;
    let signals = vec![(Manner::Quick, 0, milliseconds); backlog + OTHERS];
    let mut world = World::new(&signals, limit, 1_000_000, MOST_GOVERNORS);
    let tenant = world.tenant();
    let (_, held) = tenant.entitlements.pop_first().unwrap();
    for (name, places) in [("narrow", places), ("wide", limit)] {
        let mut held = held.clone();
        held.quota.concurrent_actions = places;
        tenant
            .entitlements
            .insert(EntitlementId::parse(name).unwrap(), held);
    }
    for (n, letter) in world.queue.iter_mut().enumerate() {
        let Content::Signal(signal) = &mut letter.message.content else {
            panic!()
        };
        let name = if n < backlog { "narrow" } else { "wide" };
        signal.entitlement_id = Some(EntitlementId::parse(name).unwrap());
    }
    let clock = world.drain(|_| {});
    world.judge();
    let claimed = |n: usize| world.claimed_at[&action_id(n)];
    let others = (backlog..backlog + OTHERS).map(claimed).max().unwrap();
    // A wave is received, read and written beside its work.
    let work = (milliseconds + 60) * (backlog as u64).div_ceil(places);
    let what = format!("{backlog} of {milliseconds} ms, {places} of {limit} places");
    let received = world.received / signals.len() as u64;
    assert!(others < 6_000, "{what}: the others waited {others} ms");
    assert!(clock.idle <= 1_000, "{what}: a place idle for {} ms", clock.idle);
    assert!(
        world.now < work * 13 / 10 + 2_000,
        "{what}: {} ms for {work} ms of work",
        world.now
    );
    assert!(
        world.most_deliveries < 30,
        "{what}: {} deliveries",
        world.most_deliveries
    );
    assert!(received < 7, "{what}: {received} deliveries of each");
}

#[test]
fn a_full_entitlement_holds_up_nobody() {
    check_full_entitlement(200, 1, 300, 10);
    check_full_entitlement(100, 5, 450, 20);
    check_full_entitlement(100, 5, 450, 10);
    check_full_entitlement(400, 10, 300, 50);
    check_full_entitlement(100, 2, 50, 10);
    check_full_entitlement(40, 20, 450, 50);
}
