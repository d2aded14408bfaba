//! One invocation's work for one tenant, as a machine without I/O: what it has in hand, what runs, what is over, and what to
//! do next. [`Shift::next`] says that; whoever carries it out tells what came of it (ADR 17).
//!
//! A shift begins with the messages that the queue's mapping hands out. While its actions end and places are free it receives
//! further signals by itself, so that a free place waits for nobody: not for the slowest of a batch, nor for a poller. What
//! finds no place goes back at once, and comes to whoever has one:
//!
//! | what is full | what happens to a signal |
//! |---|---|
//! | the tenant, and this shift runs something | it stays in hand until a place frees, a second at the most |
//! | the tenant, and this shift runs nothing | it goes back, visible at once; the shift parks, so that the mapping does not bring it at once again |
//! | the tenant, by actions that nobody is at work on | the shift sends it anew, to the end of the queue: the signals that free those places may stand behind it |
//! | its entitlement only | as many as its places take within a second stay in hand so long, the others go back and come again one after the other, at the pace at which the entitlement can take them; the tenant's places are for others |
//!
//! Times are those since the shift began.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::account::EntitlementId;
use crate::action::{DEADLINE_MS, IllegalTransition};
use crate::admission::Enforcers;
use crate::control::Control;
use crate::operations::block::Unrecorded;
use crate::signal::ActionId;
use crate::tenant::{Lifecycle, Pace};
use crate::transaction::Account;
use jiff::Timestamp;
use uuid::Uuid;

use crate::governor::batch::{
    BUSY_SECONDS, Decided, EndedAction, Fate, Group, HeldSignal, Message, NoPlace, RENEWED_AT, Run, Step,
};

/// How long an outcome waits for others, so that they share a transaction: a transaction of one costs 12 write units, one of
/// ten 66.
const GROUP: Duration = Duration::from_millis(40);
/// How soon a shift looks again for places that others free.
const LOOK: Duration = Duration::from_millis(250);
/// How long a shift parks at least; twice that at the most.
const PARKED: Duration = Duration::from_millis(400);
/// How long no signals are looked for once there were none: whatever comes then is the mapping's to bring.
const NOTHING_WAITS: Duration = Duration::from_millis(500);
/// How long a signal is held in hand.
pub const HELD: Duration = Duration::from_secs(1);
/// Signals of entitlements without a free place that are held in hand, so that their next places have takers: at the least of
/// one entitlement, and at the most of all.
const STANDBY: (usize, usize) = (2, 20);
/// The longest that a signal is put aside because its entitlement is full: should that get more places, they are not
/// waited for longer.
const ASIDE: Duration = Duration::from_secs(60);
/// How soon a signal comes again while its tenant's ledger takes no receipt, in seconds.
const BARRED_SECONDS: u32 = 60;
/// How long an action is taken to be while none was measured.
const USUAL: Duration = Duration::from_millis(DEADLINE_MS / 2);
/// Signals that one governor runs or holds at a time.
const MOST: usize = Pace::MOST as usize;
/// Most items of one transaction that messages may take: a hundred less those of tenant, plans and head.
const ITEMS: usize = 92;
/// Items that an outcome takes at the most: action, mark and two receipts.
const ITEMS_OVER: usize = 4;
/// Items that a signal in hand takes at the most: action, mark and a receipt.
const ITEMS_IN_HAND: usize = 3;
/// Signals that are decided in one transaction.
const AT_ONCE: usize = 20;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Receive so many signals at the most.
    Receive(usize),
    /// Write what [`Shift::choose`] gives.
    Commit,
    /// Give back what [`Shift::release`] gives.
    Release,
    /// Wait for a call to end, at most so long.
    Wait(Duration),
    /// All is done.
    End,
}

/// Who brought a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The queue's mapping, which deletes what this invocation's answer does not name. Until then what is settled would count
    /// as waiting, so a shift that goes on deletes it itself.
    Mapping,
    /// The shift received it itself, and deletes it itself.
    Received,
}

/// Where a message stands.
#[derive(Debug, Clone)]
enum Stand {
    /// In hand: not decided yet, or waiting for a place.
    HeldSignal { waits: Option<NoPlace> },
    /// Its handler is called.
    Running,
    /// Its handler has answered.
    EndedAction { run: Box<Run>, since: Duration },
    /// Nothing is left to do about it here.
    Gone(Fate),
}

#[derive(Debug, Clone)]
struct Letter {
    message: Message,
    source: Source,
    ids: (Uuid, Uuid),
    since: Duration,
    stand: Stand,
}

impl Letter {
    fn is_in_hand(&self) -> bool {
        matches!(self.stand, Stand::HeldSignal { .. })
    }
}

/// What is to be done once a group is written.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Messages for whose actions the handler is to be called.
    pub calls: Vec<usize>,
    /// Handles of messages to delete.
    pub delete: Vec<String>,
    /// Handles of messages to give back, and after how many seconds they come again.
    pub give_back: Vec<(String, u32)>,
    /// Messages to send anew, before [`Shift::renewed`] has the old ones deleted.
    pub renew: Vec<usize>,
}

/// Which letters a group is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    over: Vec<usize>,
    hand: Vec<usize>,
}

impl Selection {
    /// Whether signals are to be decided.
    #[must_use]
    pub fn decides(&self) -> bool {
        !self.hand.is_empty()
    }
}

/// One invocation's work for one tenant.
#[derive(Debug)]
pub struct Shift {
    letters: Vec<Letter>,
    /// The account as it was read or written last.
    account: Option<Account>,
    /// Another writer was first: what is known of the account is old.
    outdated: bool,
    /// Until when it takes up new signals.
    until: Duration,
    /// Whether the tenant was looked at.
    opened: bool,
    /// Whether it may receive signals at all.
    receives: bool,
    /// When it may receive again.
    look_after: Duration,
    /// When signals in hand were decided last.
    decided_at: Duration,
    /// When the next attempt to write may be made.
    write_after: Duration,
    /// How often others were first, since the last write.
    lost: u32,
    /// Until when it parks.
    parked_until: Duration,
    /// Where the line of put-aside signals of an entitlement ends.
    lines: BTreeMap<EntitlementId, Duration>,
    /// Calls that ended, and how long they took together.
    measured: (u32, Duration),
    /// Handles of the mapping's messages that are settled and not deleted.
    settled: Vec<String>,
}

impl Shift {
    /// A shift that takes up new signals for so long.
    #[must_use]
    pub fn new(until: Duration) -> Self {
        Self {
            letters: Vec::new(),
            account: None,
            outdated: false,
            until,
            opened: false,
            receives: true,
            look_after: Duration::ZERO,
            decided_at: Duration::ZERO,
            write_after: Duration::ZERO,
            lost: 0,
            parked_until: Duration::ZERO,
            lines: BTreeMap::new(),
            measured: (0, Duration::ZERO),
            settled: Vec::new(),
        }
    }

    /// Takes messages in hand. `ids` are those of the receipts that they may leave.
    pub fn take(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
        source: Source,
        now: Duration,
        mut ids: impl FnMut() -> Uuid,
    ) {
        let before = self.letters.len();
        self.letters.extend(messages.into_iter().map(|message| Letter {
            message,
            source,
            ids: (ids(), ids()),
            since: now,
            stand: Stand::HeldSignal { waits: None },
        }));
        if source == Source::Received && self.letters.len() == before {
            self.look_after = now + NOTHING_WAITS;
        }
    }

    /// The queue does not answer: no more is received.
    pub fn receives_no_more(&mut self) {
        self.receives = false;
    }

    fn count(&self, of: impl Fn(&Letter) -> bool) -> usize {
        self.letters.iter().filter(|letter| of(letter)).count()
    }

    fn running(&self) -> usize {
        self.count(|letter| matches!(letter.stand, Stand::Running))
    }

    fn in_hand(&self) -> usize {
        self.count(Letter::is_in_hand)
    }

    /// Signals that it may receive: as many as find a place, as far as it knows.
    fn room(&self) -> usize {
        let Some(tenant) = self.account.as_ref().and_then(|account| account.tenant.as_ref()) else {
            return 0;
        };
        if tenant.lifecycle != Lifecycle::Active {
            return 0;
        }
        let ending = self.count(|letter| match &letter.stand {
            Stand::EndedAction { run, .. } => run.action.state.is_final(),
            _ => false,
        });
        let free = tenant
            .in_flight_action_limit()
            .saturating_sub(tenant.in_flight.saturating_sub(ending as u64));
        // What waits for its entitlement takes none of these.
        let waiting = self.count(|letter| match &letter.stand {
            Stand::HeldSignal { waits } => !matches!(waits, Some(NoPlace::Entitlement(_))),
            _ => false,
        });
        let free = usize::try_from(free)
            .unwrap_or(usize::MAX)
            .saturating_sub(waiting);
        free.min(MOST.saturating_sub(self.running() + waiting))
    }

    /// Whether nothing runs, and no outcome is to be written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.count(|letter| matches!(letter.stand, Stand::Running | Stand::EndedAction { .. })) == 0
    }

    /// Whether it is too late to claim anything: what is claimed later may not end in the invocation's time.
    #[must_use]
    pub fn is_late(&self, now: Duration) -> bool {
        now >= self.until + HELD
    }

    /// What to do next.
    #[must_use]
    pub fn next(&self, now: Duration) -> NextStep {
        if now < self.write_after {
            return NextStep::Wait(self.write_after - now);
        }
        if self.is_late(now) && self.in_hand() > 0 {
            return NextStep::Release;
        }
        let fresh = self.count(|letter| matches!(letter.stand, Stand::HeldSignal { waits: None }));
        if fresh > 0 {
            return NextStep::Commit;
        }
        let (running, in_hand) = (self.running(), self.in_hand());
        let first_over = self.letters.iter().filter_map(|letter| match letter.stand {
            Stand::EndedAction { since, .. } => Some(since),
            _ => None,
        });
        let first_over = first_over.min();
        // What takes up no more leaves its places to others.
        let takes_more = self.receives && now < self.until;
        let due = first_over.is_some_and(|since| running == 0 || now >= since + GROUP);
        let room = match takes_more {
            true => self.room(),
            false => 0,
        };
        if room > 0 && now >= self.look_after && now >= self.parked_until && (due || first_over.is_none()) {
            return NextStep::Receive(room);
        }
        if due && (running == 0 || in_hand > 0 || !takes_more) {
            return NextStep::Commit;
        }
        let held = self.letters.iter().filter(|letter| letter.is_in_hand());
        let release_at = held.map(|letter| letter.since + HELD).min();
        if release_at.is_some_and(|at| now >= at) {
            return NextStep::Release;
        }
        let decide_at = (in_hand > 0).then(|| self.decided_at + LOOK);
        if decide_at.is_some_and(|at| now >= at) {
            return NextStep::Commit;
        }
        if running == 0 && in_hand == 0 && first_over.is_none() {
            return match now < self.parked_until {
                true => NextStep::Wait(self.parked_until - now),
                false => NextStep::End,
            };
        }
        let look_at = (room > 0).then(|| self.look_after.max(self.parked_until));
        let group_at = first_over.map(|since| since + GROUP);
        let wake = [release_at, decide_at, look_at, group_at.filter(|at| *at > now)];
        let wake = wake.into_iter().flatten().min();
        // Something runs: its end wakes as well.
        NextStep::Wait(
            wake.map_or(HELD, |at| at.saturating_sub(now))
                .max(Duration::from_millis(1)),
        )
    }

    /// What is to be written now: as much of what is over and in hand as one transaction takes.
    #[must_use]
    pub fn choose(&self) -> Selection {
        let which = |of: fn(&Stand) -> bool, most: usize| -> Vec<usize> {
            let letters = self.letters.iter().enumerate();
            let fitting = letters.filter(|(_, letter)| of(&letter.stand));
            fitting.map(|(index, _)| index).take(most).collect()
        };
        let over = which(|stand| matches!(stand, Stand::EndedAction { .. }), AT_ONCE);
        let left = ITEMS.saturating_sub(over.len() * ITEMS_OVER) / ITEMS_IN_HAND;
        let most = left.min(AT_ONCE);
        let mut hand = which(|stand| matches!(stand, Stand::HeldSignal { .. }), usize::MAX);
        // Old signals first; where not all fit, those that were not decided yet.
        let crowded = hand.len() > most;
        hand.sort_by_key(|index| {
            let letter = self.letters.get(*index);
            let waits = |letter: &Letter| !matches!(letter.stand, Stand::HeldSignal { waits: None });
            (
                crowded && letter.is_some_and(waits),
                letter.map(|letter| letter.message.sent_at),
            )
        });
        hand.truncate(most);
        Selection { over, hand }
    }

    /// Actions of which a group has to know how they stand. What this shift wrote itself it knows.
    #[must_use]
    pub fn to_read(&self, chosen: &Selection) -> Option<Vec<ActionId>> {
        let ids = |which: &[usize]| -> Vec<ActionId> {
            let letters = which.iter().filter_map(|index| self.letters.get(*index));
            letters.map(|letter| letter.message.action_id().clone()).collect()
        };
        let mut wanted = ids(&chosen.hand);
        if self.outdated {
            wanted.extend(ids(&chosen.over));
        }
        (!wanted.is_empty() || self.outdated || self.account.is_none()).then_some(wanted)
    }

    /// The account as it was read just now, with what this shift knows of its own actions.
    pub fn read(&mut self, mut account: Account) {
        if let Some(known) = self.account.take() {
            for (id, action) in known.actions {
                if account.actions.contains_key(&id) {
                    continue;
                }
                let own = |letter: &Letter| {
                    *letter.message.action_id() == id
                        && matches!(letter.stand, Stand::Running | Stand::EndedAction { .. })
                };
                if self.letters.iter().any(own) {
                    if known.own_actions.contains(&id) {
                        account.own_actions.insert(id.clone());
                    }
                    account.actions.insert(id, action);
                }
            }
        }
        self.account = Some(account);
        self.outdated = false;
    }

    /// The account as far as it is known.
    #[must_use]
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// What to write of the chosen letters, given how the account stands.
    ///
    /// # Errors
    /// [`IllegalTransition`] when what happened does not fit the actions.
    pub fn plan(
        &self,
        chosen: &Selection,
        account: &Account,
        decided_by: (&str, Uuid),
        facts: (Option<&Control>, &Enforcers),
        now: (Duration, Timestamp),
    ) -> Result<Decided, IllegalTransition> {
        let elapsed_ms = |letter: &Letter| {
            u64::try_from((now.0.saturating_sub(letter.since)).as_millis()).unwrap_or(u64::MAX)
        };
        let over = chosen.over.iter().filter_map(|index| self.letters.get(*index));
        let over = over.filter_map(|letter| match &letter.stand {
            Stand::EndedAction { run, .. } => Some(EndedAction {
                message: &letter.message,
                run,
                receipt_id: letter.ids.1,
                elapsed_ms: elapsed_ms(letter),
            }),
            _ => None,
        });
        let hand = chosen.hand.iter().filter_map(|index| self.letters.get(*index));
        let hand = hand.map(|letter| HeldSignal {
            message: &letter.message,
            receipt_id: letter.ids.0,
            elapsed_ms: elapsed_ms(letter),
        });
        let group = Group {
            account_id: decided_by.0,
            owner: decided_by.1,
            over: over.collect(),
            hand: hand.collect(),
        };
        group.plan(account, facts.0, facts.1, now.1)
    }

    /// The group was written, and left the account so. `jitter` is a number from 0 to 1.
    pub fn written(
        &mut self,
        chosen: &Selection,
        decided: &Decided,
        account: Account,
        now: Duration,
        jitter: f64,
    ) -> Effects {
        self.lost = 0;
        self.account = Some(account);
        let mut effects = Effects::default();
        for (index, fate) in chosen.over.iter().zip(&decided.fates) {
            self.leave(*index, *fate, &mut effects);
        }
        if !chosen.hand.is_empty() {
            self.place(chosen, decided, now, jitter, &mut effects);
        }
        if !effects.delete.is_empty() || self.running() > 0 || self.in_hand() > 0 {
            effects.delete.append(&mut self.settled);
        }
        effects
    }

    /// The signals in hand were decided.
    fn place(
        &mut self,
        chosen: &Selection,
        decided: &Decided,
        now: Duration,
        jitter: f64,
        effects: &mut Effects,
    ) {
        if !self.opened {
            self.open(now);
        }
        self.decided_at = now;
        for (index, step) in chosen.hand.iter().zip(&decided.steps) {
            let Some(letter) = self.letters.get_mut(*index) else {
                continue;
            };
            match step {
                Step::Acknowledge | Step::Settle(_) => self.leave(*index, Fate::Acknowledged, effects),
                Step::Busy => self.leave(*index, Fate::Again(BUSY_SECONDS), effects),
                // SQS takes it to the dead letters when it would show it again.
                Step::GiveUp => self.leave(*index, Fate::Again(0), effects),
                Step::Execute(_) | Step::Undo => {
                    letter.stand = Stand::Running;
                    effects.calls.push(*index);
                }
                Step::Wait(full) => {
                    letter.stand = Stand::HeldSignal {
                        waits: Some(full.clone()),
                    }
                }
            }
        }
        let idle = self.running() == 0;
        let mut standing_by: BTreeMap<&EntitlementId, usize> = BTreeMap::new();
        let mut all_standing_by = 0;
        for (index, step) in chosen.hand.iter().zip(&decided.steps) {
            let Step::Wait(full) = step else { continue };
            let deliveries = self.letters.get(*index).map(|letter| letter.message.deliveries);
            let passed = idle && *full == NoPlace::Forsaken;
            if passed || deliveries.is_some_and(|deliveries| deliveries >= RENEWED_AT) {
                effects.renew.push(*index);
            }
            match full {
                // At its end of the queue it lets pass what frees a place.
                NoPlace::Forsaken if idle => self.park(now, jitter),
                NoPlace::Tenant if idle => {
                    self.leave(*index, Fate::Again(0), effects);
                    self.park(now, jitter);
                }
                NoPlace::Tenant | NoPlace::Forsaken => {}
                NoPlace::Entitlement(id) => {
                    let held = standing_by.entry(id).or_default();
                    if all_standing_by >= STANDBY.1 || *held >= self.takers(id) {
                        let seconds = self.put_aside(id, now);
                        self.leave(*index, Fate::Again(seconds), effects);
                    } else {
                        *held += 1;
                        all_standing_by += 1;
                    }
                }
            }
        }
    }

    /// The first look at the tenant: a batch that is not full says that nothing else waits.
    fn open(&mut self, now: Duration) {
        self.opened = true;
        let brought = self.letters.len();
        let tenant = self.account.as_ref().and_then(|account| account.tenant.as_ref());
        let batch = tenant.map(|tenant| tenant.pace().batch_size);
        if !batch.is_some_and(|batch| usize::try_from(batch).is_ok_and(|batch| brought >= batch)) {
            self.look_after = now + NOTHING_WAITS;
        }
    }

    /// Keeps the mapping from bringing again at once what was given back.
    fn park(&mut self, now: Duration, jitter: f64) {
        self.parked_until = now + PARKED.mul_f64(1.0 + jitter);
    }

    /// How long the tenant's shifts together leave, on average, between two signals that one of them has to offer to the
    /// places of an entitlement.
    fn gap(&self, id: &EntitlementId) -> Duration {
        let tenant = self.account.as_ref().and_then(|account| account.tenant.as_ref());
        let held = tenant.and_then(|tenant| tenant.entitlements.get(id));
        let places = held.map_or(1, |held| held.quota.concurrent_actions.max(1));
        let shifts = tenant.map_or(2, |tenant| tenant.pace().maximum_concurrency.unsigned_abs());
        let (calls, time) = self.measured;
        let usual = time.checked_div(calls).unwrap_or(USUAL);
        usual * shifts / u32::try_from(places).unwrap_or(u32::MAX)
    }

    /// Signals of an entitlement that this shift holds in hand: what its places take from it while it holds them.
    fn takers(&self, id: &EntitlementId) -> usize {
        let takers = HELD.as_millis() / self.gap(id).as_millis().max(1);
        usize::try_from(takers)
            .unwrap_or(STANDBY.1)
            .clamp(STANDBY.0, STANDBY.1)
    }

    /// Gives a signal its turn behind all that this shift put aside for the same entitlement, and says in how many seconds
    /// that is. The line is taken to move twice as fast as measured: who comes too early is put aside again, and who comes
    /// too late leaves a place free.
    fn put_aside(&mut self, id: &EntitlementId, now: Duration) -> u32 {
        let gap = self.gap(id) / 2;
        let line = self.lines.entry(id.clone()).or_insert(now);
        *line = (*line).max(now) + gap;
        let aside = line.saturating_sub(now).min(ASIDE);
        u32::try_from(aside.as_secs()).unwrap_or(u32::MAX).max(1)
    }

    /// A message is no longer this shift's.
    fn leave(&mut self, index: usize, fate: Fate, effects: &mut Effects) {
        let Some(letter) = self.letters.get_mut(index) else {
            return;
        };
        letter.stand = Stand::Gone(fate);
        letter.message.forget();
        let handle = &letter.message.receipt_handle;
        match (fate, letter.source) {
            _ if handle.is_empty() => {}
            (Fate::Acknowledged, Source::Received) => effects.delete.push(handle.clone()),
            (Fate::Acknowledged, Source::Mapping) => self.settled.push(handle.clone()),
            (Fate::Again(seconds), _) => effects.give_back.push((handle.clone(), seconds)),
            (Fate::Later, _) => {}
        }
    }

    /// Gives back what was held in hand for long enough, and everything when it is too late to claim it.
    pub fn release(&mut self, now: Duration, jitter: f64) -> Effects {
        let mut effects = Effects::default();
        let late = self.is_late(now);
        for index in 0..self.letters.len() {
            let due = |letter: &&Letter| late || now >= letter.since + HELD;
            let Some(Stand::HeldSignal { waits }) =
                self.letters.get(index).filter(due).map(|letter| &letter.stand)
            else {
                continue;
            };
            let seconds = match waits.clone() {
                Some(NoPlace::Entitlement(id)) => self.put_aside(&id, now),
                _ => 0,
            };
            self.leave(index, Fate::Again(seconds), &mut effects);
        }
        if self.running() == 0 {
            self.park(now, jitter);
        }
        effects
    }

    /// Another writer was first: the next attempt is made after so long. How often that was so in a row.
    pub fn outrun(&mut self, now: Duration, wait: impl FnOnce(u32) -> Duration) -> u32 {
        self.lost += 1;
        self.outdated = true;
        self.write_after = now + wait(self.lost);
        self.lost
    }

    /// The group could not be written, and nobody knows whether it was: signals in hand go back to the queue. What is over is
    /// tried once more without them.
    pub fn failed(&mut self, chosen: &Selection) {
        self.lost = 0;
        self.outdated = true;
        self.receives = false;
        let lost = match chosen.hand.is_empty() {
            true => &chosen.over,
            false => &chosen.hand,
        };
        for index in lost {
            self.leave(*index, Fate::Later, &mut Effects::default());
        }
    }

    /// The chosen signals in hand were settled without the tables, as nothing may run.
    pub fn refused(&mut self, chosen: &Selection, fates: &[Fate]) -> Effects {
        let mut effects = Effects::default();
        self.receives = false;
        for (index, fate) in chosen.hand.iter().zip(fates) {
            self.leave(*index, *fate, &mut effects);
        }
        effects
    }

    /// Nothing may be run until the ledger takes receipts again: the chosen signals in hand come again.
    pub fn barred(&mut self, chosen: &Selection) -> Effects {
        self.refused(chosen, &vec![Fate::Again(BARRED_SECONDS); chosen.hand.len()])
    }

    /// Of the chosen actions that are over these were escalated, as the ledger took no receipt; the others are somebody else's.
    pub fn escalated(&mut self, chosen: &Selection, escalated: &BTreeSet<ActionId>) -> Effects {
        let mut effects = self.barred(chosen);
        self.outdated = true;
        for index in &chosen.over {
            let is_ours = self
                .message(*index)
                .is_some_and(|m| escalated.contains(m.action_id()));
            let fate = match is_ours {
                true => Fate::Acknowledged,
                false => Fate::Again(BUSY_SECONDS),
            };
            self.leave(*index, fate, &mut effects);
        }
        effects.delete.append(&mut self.settled);
        effects
    }

    /// The actions that are over among the chosen letters: each with whose claim it ran under, and the id of a receipt.
    pub fn unrecorded(&self, chosen: &Selection) -> Vec<Unrecorded> {
        let over = chosen.over.iter().filter_map(|index| self.letters.get(*index));
        let over = over.filter_map(|letter| match &letter.stand {
            Stand::EndedAction { run, .. } => Some(Unrecorded {
                action_id: run.action.action_id.clone(),
                owner: run.action.owner,
                receipt_id: letter.ids.1,
            }),
            _ => None,
        });
        over.collect()
    }

    /// A signal that waits was sent anew.
    pub fn renewed(&mut self, index: usize) -> Effects {
        let mut effects = Effects::default();
        self.leave(index, Fate::Acknowledged, &mut effects);
        effects.delete.append(&mut self.settled);
        effects
    }

    /// A call has ended; without a run it was lost, and the action is left to whoever finds its claim over.
    pub fn ended(&mut self, index: usize, run: Option<Run>, took: Duration, now: Duration) {
        let Some(run) = run else {
            self.leave(index, Fate::Later, &mut Effects::default());
            return;
        };
        self.measured = (self.measured.0 + 1, self.measured.1 + took);
        if let Some(letter) = self.letters.get_mut(index) {
            letter.stand = Stand::EndedAction {
                run: Box::new(run),
                since: now,
            };
        }
    }

    /// A call died without saying which one it was. Once no call is left, what still counts as running is left to whoever
    /// finds its claim over.
    pub fn forsake(&mut self) {
        for letter in &mut self.letters {
            if matches!(letter.stand, Stand::Running) {
                letter.stand = Stand::Gone(Fate::Later);
            }
        }
    }

    /// A message of the shift.
    #[must_use]
    pub fn message(&self, index: usize) -> Option<&Message> {
        self.letters.get(index).map(|letter| &letter.message)
    }

    /// The chosen messages that are in hand.
    pub fn in_hand_of<'a>(&'a self, chosen: &'a Selection) -> impl Iterator<Item = &'a Message> {
        chosen.hand.iter().filter_map(|index| self.message(*index))
    }

    #[cfg(test)]
    fn brought(&self) -> Vec<String> {
        let letters = self
            .letters
            .iter()
            .filter(|letter| letter.source == Source::Mapping);
        letters.map(|letter| letter.message.message_id.clone()).collect()
    }

    /// Messages that are this shift's still.
    #[cfg(test)]
    fn held(&self) -> impl Iterator<Item = String> {
        let held = self
            .letters
            .iter()
            .filter(|letter| !matches!(letter.stand, Stand::Gone(_)));
        held.map(|letter| letter.message.message_id.clone())
    }

    /// Ids of the mapping's messages that are not settled: they come again.
    #[must_use]
    pub fn unsettled(&self) -> Vec<String> {
        let open = |letter: &&Letter| {
            letter.source == Source::Mapping && !matches!(letter.stand, Stand::Gone(Fate::Acknowledged))
        };
        let letters = self.letters.iter().filter(open);
        letters.map(|letter| letter.message.message_id.clone()).collect()
    }
}

#[cfg(test)]
mod simulation;
