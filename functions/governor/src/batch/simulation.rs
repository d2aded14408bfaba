//! Governors, a queue, a table and a handler, all in memory, in any order: crashes after each step, governors that sleep
//! through their lease, messages delivered twice, handlers that are late. Whatever happens, each action ends once.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use domain::audit::ActionAudit;
use domain::control::Control;
use policy::enforcer::Enforcer;
use proptest::prelude::*;
use receipts::receipt::{Draft, Receipt, Status};
use serde_json::json;

use super::tests::{account, control, enforcer, loaded, message};
use super::*;

/// How long a message stays hidden after a delivery, in seconds.
const VISIBILITY: i64 = 30;
/// Governors that work side by side.
const GOVERNORS: usize = 3;

static ENFORCER: LazyLock<Enforcer> = LazyLock::new(enforcer);
static ENFORCERS: LazyLock<Enforcers> = LazyLock::new(|| loaded(&ENFORCER));

/// How a handler takes the call of one action.
#[derive(Debug, Clone, Copy)]
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
    visible_at: i64,
}

/// A governor between two of its steps.
enum Governor {
    Idle,
    /// It has read the table.
    Loaded(Vec<Message>, Read),
    /// Its claim stands.
    Claimed(Hand),
    /// The handler has answered.
    Called(Hand, BTreeMap<ActionId, Run>),
    /// Its outcomes stand; the queue does not know yet.
    Committed(Vec<Message>, Vec<Fate>),
}

/// The table as it was read.
#[derive(Clone)]
struct Read {
    account: Account,
    size: usize,
}

/// What a governor has in its hands behind its claim.
struct Hand {
    messages: Vec<Message>,
    owner: Uuid,
    ids: Vec<(Uuid, Uuid)>,
    steps: Vec<Step>,
    read: Read,
}

impl Hand {
    fn batch(&self) -> Batch<'_> {
        Batch {
            account_id: "c",
            messages: &self.messages,
            owner: self.owner,
            ids: &self.ids,
        }
    }
}

struct World {
    now: i64,
    table: Account,
    ledger: Vec<Draft>,
    control: Control,
    queue: Vec<Letter>,
    dead: Vec<Letter>,
    manners: BTreeMap<ActionId, (Manner, u32)>,
    handler: BTreeMap<ActionId, Work>,
    governors: Vec<Governor>,
    next_id: u128,
    claims: u64,
    /// The next write that stands is told as one that others prevented.
    misheard: bool,
}

impl World {
    fn new(manners: &[(Manner, u32)], concurrent: u64, monthly: u64) -> Self {
        let mut table = account(&ENFORCER, concurrent);
        let tenant = table.tenant.as_mut().unwrap();
        for held in tenant.entitlements.values_mut() {
            held.quota.monthly_actions = monthly;
        }
        let id = |n: usize| ActionId::try_from(format!("a-{n}")).unwrap();
        let letter = |n: usize| Letter {
            message: message(
                &ENFORCER,
                id(n).as_str(),
                "restart-service",
                json!({"service": "x"}),
            ),
            visible_at: 0,
        };
        Self {
            now: 0,
            table,
            ledger: Vec::new(),
            control: control(),
            queue: (0..manners.len()).map(letter).collect(),
            dead: Vec::new(),
            manners: manners.iter().enumerate().map(|(n, how)| (id(n), *how)).collect(),
            handler: BTreeMap::new(),
            governors: (0..GOVERNORS).map(|_| Governor::Idle).collect(),
            next_id: 0,
            claims: 0,
            misheard: false,
        }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    fn id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    fn read(&self) -> Read {
        Read {
            account: self.table.clone(),
            size: self.ledger.len(),
        }
    }

    /// Writes a plan on the conditions that the tables put on it; says whether they held.
    fn write(&mut self, read: &Read, plan: &Plan) -> bool {
        let revision = |account: &Account| account.tenant.as_ref().map(|tenant| tenant.revision);
        let state = |account: &Account, id: &ActionId| {
            let action = account.actions.get(id);
            action.map(|action| (action.state, action.owner))
        };
        let tenant = plan.tenant.is_some() || !plan.drafts.is_empty();
        let stands = (!tenant || revision(&self.table) == revision(&read.account))
            && (plan.drafts.is_empty() || self.ledger.len() == read.size)
            && plan.actions.iter().all(|action| {
                state(&self.table, &action.action_id) == state(&read.account, &action.action_id)
            });
        if !stands {
            return false;
        }
        if let Some(tenant) = &plan.tenant {
            assert_eq!(
                tenant.revision,
                read.account.tenant.as_ref().unwrap().revision + 1
            );
            self.table.tenant = Some(tenant.clone());
        }
        for action in &plan.actions {
            let claimed = action.state == ActionState::Running;
            self.claims += u64::from(claimed);
            self.table
                .actions
                .insert(action.action_id.clone(), action.clone());
        }
        self.ledger.extend(plan.drafts.iter().cloned());
        self.hold();
        let written = plan.tenant.is_some() || !plan.drafts.is_empty() || !plan.actions.is_empty();
        !(written && std::mem::take(&mut self.misheard))
    }

    /// What must be true of the table after each write.
    fn hold(&self) {
        let tenant = self.table.tenant.as_ref().unwrap();
        let in_flight = self
            .table
            .actions
            .values()
            .filter(|a| a.state.in_flight())
            .count() as u64;
        assert_eq!(tenant.in_flight, in_flight, "places are counted exactly");
        assert!(in_flight <= tenant.in_flight_action_limit());
        let held = tenant.entitlements.values().next().unwrap();
        assert_eq!(held.in_flight, in_flight);
        assert!(held.in_flight <= held.quota.concurrent_actions);
        let left = held.monthly_left(self.time());
        assert_eq!(
            left + self.claims,
            held.quota.monthly_actions,
            "the month is counted exactly"
        );
    }

    /// SQS hands out what is visible; `again` hands it out without hiding it.
    fn receive(&mut self, again: bool) -> Vec<Message> {
        let now = self.now;
        let mut handed = Vec::new();
        for letter in self
            .queue
            .iter_mut()
            .filter(|letter| letter.visible_at <= now)
            .take(10)
        {
            letter.message.deliveries += 1;
            if !again {
                letter.visible_at = now + VISIBILITY;
            }
            handed.push(letter.message.clone());
        }
        handed
    }

    fn report(&mut self, messages: &[Message], fates: &[Fate]) {
        for (message, fate) in messages.iter().zip(fates) {
            let place = self
                .queue
                .iter()
                .position(|l| l.message.message_id == message.message_id);
            let Some(place) = place else { continue };
            match fate {
                Fate::Acknowledged => {
                    self.queue.remove(place);
                }
                Fate::Later if message.is_last_delivery() => {
                    let letter = self.queue.remove(place);
                    self.dead.push(letter);
                }
                Fate::Later => self.queue[place].visible_at = self.now + 2,
            }
        }
    }

    fn work(&mut self, id: &ActionId) -> &mut Work {
        self.handler.entry(id.clone()).or_default()
    }

    fn act(&mut self, id: &ActionId) -> ActionEvent {
        let (manner, _) = self.manners[id];
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

    /// One governor takes its next step.
    fn step(&mut self, which: usize, again: bool) {
        let governor = std::mem::replace(&mut self.governors[which], Governor::Idle);
        self.governors[which] = match governor {
            Governor::Idle => match self.receive(again) {
                messages if messages.is_empty() => Governor::Idle,
                messages => Governor::Loaded(messages, self.read()),
            },
            Governor::Loaded(messages, read) => self.claim(messages, read),
            Governor::Claimed(hand) => {
                let runs = self.call(&hand);
                Governor::Called(hand, runs)
            }
            Governor::Called(hand, runs) => self.settle(hand, runs),
            Governor::Committed(messages, fates) => {
                self.report(&messages, &fates);
                Governor::Idle
            }
        };
    }

    fn claim(&mut self, messages: Vec<Message>, read: Read) -> Governor {
        let now = self.time();
        let owner = self.id();
        let ids = messages.iter().map(|_| (self.id(), self.id())).collect();
        let steps = decide(&messages, &read.account, Some(&self.control), &ENFORCERS, now);
        let mut hand = Hand {
            messages,
            owner,
            ids,
            steps,
            read,
        };
        let plan = hand.batch().claim(&hand.steps, &hand.read.account, now).unwrap();
        if !self.write(&hand.read, &plan) {
            return Governor::Loaded(hand.messages, self.read());
        }
        hand.read = self.read();
        Governor::Claimed(hand)
    }

    fn call(&mut self, hand: &Hand) -> BTreeMap<ActionId, Run> {
        let now = self.time();
        let mut runs = BTreeMap::new();
        for (message, step) in hand.messages.iter().zip(&hand.steps) {
            if !step.calls_handler() {
                continue;
            }
            let id = message.action_id();
            let mut run = Run::new(hand.read.account.actions[id].clone());
            if run.action.state == ActionState::Running {
                let event = self.act(id);
                run.take(&event, self.id(), 1, now).unwrap();
            }
            if run.action.state.undo_due() {
                let event = self.undo(id);
                run.take(&event, self.id(), 1, now).unwrap();
            }
            runs.insert(id.clone(), run);
        }
        runs
    }

    fn settle(&mut self, mut hand: Hand, runs: BTreeMap<ActionId, Run>) -> Governor {
        let settled = hand
            .batch()
            .settle(&hand.steps, &runs, &hand.read.account, 1, self.time());
        let (plan, fates) = settled.unwrap();
        if self.write(&hand.read, &plan) {
            return Governor::Committed(hand.messages, fates);
        }
        hand.read = self.read();
        Governor::Called(hand, runs)
    }

    /// Lets everything come to its end, with nothing more going wrong.
    fn calm(&mut self) {
        for _ in 0..400 {
            for which in 0..GOVERNORS {
                for _ in 0..6 {
                    self.step(which, false);
                }
            }
            self.now += 7;
            self.catch_up();
            if self.queue.is_empty() && self.governors.iter().all(|g| matches!(g, Governor::Idle)) {
                return;
            }
        }
        panic!("{} signals never ended", self.queue.len());
    }

    /// What must be true in the end.
    fn judge(&self) {
        let tenant = self.table.tenant.as_ref().unwrap();
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
        let mut ended = (0, 0);
        for id in self.manners.keys() {
            let action = &self.table.actions[id];
            audit.action(action, late).unwrap();
            let work = self.handler.get(id).copied().unwrap_or_default();
            let told = self
                .ledger
                .iter()
                .filter(|draft| about(draft) == Some(id.as_str()));
            let told: Vec<Uuid> = told.map(|draft| draft.receipt_id).collect();
            assert_eq!(action.receipts, told, "the action knows its receipts");
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

/// What goes on in the world, one after the other.
#[derive(Debug, Clone, Copy)]
enum Happens {
    /// A governor takes its next step.
    Step(usize),
    /// A governor that has nothing to do is handed a message that stays visible: SQS delivers at least once.
    Twice(usize),
    /// A governor ends without a word.
    Crash(usize),
    /// A transaction is told as one that others prevented, and stands: its first attempt was only slow.
    Misheard,
    /// Seconds go by; handlers do late what they do late.
    Time(i64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (0..GOVERNORS).prop_map(Happens::Step),
        2 => (0..GOVERNORS).prop_map(Happens::Twice),
        1 => (0..GOVERNORS).prop_map(Happens::Crash),
        1 => Just(Happens::Misheard),
        2 => (0..45i64).prop_map(Happens::Time),
    ]
}

fn manner() -> impl Strategy<Value = (Manner, u32)> {
    let manner = prop_oneof![
        3 => Just(Manner::Quick),
        1 => Just(Manner::Fails),
        1 => Just(Manner::FailsForGood),
        1 => Just(Manner::Late),
        1 => Just(Manner::Silent),
    ];
    // How often undoing it fails: from five times on it is escalated.
    (manner, prop_oneof![3 => Just(0u32), 1 => 1..7u32])
}

fn play(manners: &[(Manner, u32)], concurrent: u64, monthly: u64, story: &[Happens]) -> World {
    let mut world = World::new(manners, concurrent, monthly);
    for happening in story {
        match *happening {
            Happens::Step(which) => world.step(which, false),
            Happens::Twice(which) => world.step(which, true),
            Happens::Misheard => world.misheard = true,
            Happens::Crash(which) => world.governors[which] = Governor::Idle,
            Happens::Time(seconds) => {
                world.now += seconds;
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
        manners in proptest::collection::vec(manner(), 1..8),
        concurrent in 1..5u64,
        monthly in 1..12u64,
        story in proptest::collection::vec(happens(), 0..120),
    ) {
        play(&manners, concurrent, monthly, &story);
    }
}

/// A governor that crashes behind each of its steps: read, claim, call, commit.
#[test]
fn a_crash_after_each_step_leaves_one_end() {
    for (steps, expected) in [
        (1, ActionState::Complete),
        (2, ActionState::RolledBack),
        (3, ActionState::RolledBack),
        (4, ActionState::Complete),
    ] {
        let mut story = vec![Happens::Step(0); steps];
        story.push(Happens::Crash(0));
        let world = play(&[(Manner::Quick, 0)], 1, 10, &story);
        let ended: Vec<_> = world.table.actions.values().map(|a| a.state).collect();
        assert_eq!(ended, [expected], "after {steps} steps");
    }
}

/// An outcome that was written, and that its writer does not know of, is not written again.
#[test]
fn an_outcome_stands_once_whatever_its_writer_hears() {
    use Happens::{Misheard, Step};
    for manner in [Manner::Quick, Manner::FailsForGood, Manner::Fails] {
        for undos in [0, 1] {
            let story = [Step(0), Step(0), Step(0), Misheard, Step(0), Step(0), Step(0)];
            play(&[(manner, undos)], 1, 10, &story);
        }
    }
}

/// A governor that wakes up when its lease is over and another one has undone its action: its success does not count.
#[test]
fn a_late_success_does_not_win() {
    use Happens::{Step, Time};
    let mut story = vec![Step(0), Step(0), Step(0), Time(60)];
    story.extend([Step(1); 5]);
    story.extend([Step(0); 2]);
    let world = play(&[(Manner::Quick, 0)], 1, 10, &story);
    let told: Vec<_> = world.ledger.iter().map(|d| d.payload.operation()).collect();
    assert_eq!(told, ["action_timeout", "action_rolled_back"]);
}

/// What waits for a place too often is given up on record, and goes to the dead letters.
#[test]
fn a_signal_that_never_finds_a_place_is_escalated() {
    let mut world = World::new(&[(Manner::Quick, 0)], 1, 10);
    let tenant = world.table.tenant.as_mut().unwrap();
    tenant.entitlements.values_mut().next().unwrap().in_flight = 1;
    tenant.in_flight = 1;
    world.queue[0].message.deliveries = MAX_DELIVERIES - 1;
    world.step(0, false);
    let Governor::Loaded(messages, read) = std::mem::replace(&mut world.governors[0], Governor::Idle) else {
        panic!()
    };
    let steps = decide(
        &messages,
        &read.account,
        Some(&world.control),
        &ENFORCERS,
        world.time(),
    );
    assert_eq!(steps, [Step::GiveUp]);
    let hand = Hand {
        messages,
        owner: Uuid::nil(),
        ids: vec![(Uuid::from_u128(1), Uuid::from_u128(2))],
        steps,
        read,
    };
    let settled = hand
        .batch()
        .settle(&hand.steps, &BTreeMap::new(), &hand.read.account, 1, world.time());
    let (plan, fates) = settled.unwrap();
    assert_eq!(fates, [Fate::Later]);
    assert_eq!(plan.drafts[0].payload.operation(), "action_failed");
    let action = &plan.actions[0];
    assert_eq!(action.resumes_at(), Some(ActionState::Pending));
    assert_eq!(action.escalation.as_ref().unwrap().error_code, DEAD_LETTERED);
    assert!(action.parameters.is_some(), "it can be taken up again");
    world.report(&hand.messages, &fates);
    assert_eq!((world.queue.len(), world.dead.len()), (0, 1));
}
