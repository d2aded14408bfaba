//! What a sweep does about tenants and actions that stand still between two states, and about resources that are not
//! where they should be.
//!
//! | found | done about it |
//! |---|---|
//! | provisioning that nobody went on with | `entitlement` goes on with it, forward or back |
//! | an event whose time has come | `entitlement` carries it out |
//! | decommissioning that nobody went on with | ordered again, now and then |
//! | an action whose claim is long over | its signal is put on the queue again, so that the governor undoes it |
//! | such an action that can't be undone, or wasn't after an hour | escalated, on record |
//! | a dead letter whose action nobody goes on with | escalated, on record; the letter stays for a person |
//! | a dead letter that is no signal | refused, on record; it stays as well |
//! | counters that are not what the actions say | set right |
//! | an active tenant's resource that is not there | `entitlement` makes it again |
//! | a resource that is no living tenant's | `cancel` takes it away |
//!
//! Each of them is harmless when it is done twice, or beside whoever was only slow.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::account::AccountId;
use crate::action::{Action, ActionState, Standing, standing};
use crate::admission;
use crate::names;
use crate::signal::Signal;
use crate::tenant::{Lifecycle, Pace, Tenant};

/// Minutes between two looks at everything there is.
const EVERYTHING_MINUTES: i64 = 15;
/// Minutes between two orders of one decommissioning: a long archive may be under way.
const ORDER_MINUTES: i64 = 15;
/// Seconds before an action's signal is put on the queue once more.
const NUDGE_AGAIN_SECONDS: i64 = 300;
/// Seconds after its begin at which an action that was woken in vain is given up.
const GIVE_UP_SECONDS: i64 = 3600;

/// How far a sweep goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Nowhere.
    #[default]
    None,
    /// To what is stuck or due.
    Due,
    /// To every tenant, and every resource there is.
    Everything,
}

impl Scope {
    /// How far it goes now: who asks every minute for what is due has everything looked at four times an hour.
    #[must_use]
    pub fn at(self, now: Timestamp) -> Self {
        match self {
            Self::Due if minutes(now) % EVERYTHING_MINUTES == 0 => Self::Everything,
            scope => scope,
        }
    }

    /// A number that is the next one when a sweep of this scope comes round again.
    #[must_use]
    pub fn round(self, now: Timestamp) -> u64 {
        let every = match self {
            Self::None | Self::Due => 1,
            Self::Everything => EVERYTHING_MINUTES,
        };
        (minutes(now) / every).unsigned_abs()
    }
}

/// How long each thing may take before it counts as stuck, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Making what a tenant needs: longer than the function lives that does it.
    pub provisioning: i64,
    /// Decommissioning, before it is ordered again: longer than it takes when nothing is in the way.
    pub decommissioning: i64,
    /// An action, from the end of its claim on.
    pub action: i64,
    /// A tenant that is active, before its resources must be listed: listings lag.
    pub active: i64,
    /// A resource that is nobody's, before it is taken away: somebody may be about to note whose it is.
    pub orphan: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            provisioning: 60,
            decommissioning: 90,
            action: 60,
            active: 120,
            orphan: 600,
        }
    }
}

impl Patience {
    /// The usual patience, but for what is given: with everything that may be stuck, and with orphans.
    #[must_use]
    pub fn with(stuck: Option<u32>, orphan: Option<u32>) -> Self {
        let usual = Self::default();
        let of = |given: Option<u32>, usual: i64| given.map_or(usual, i64::from);
        Self {
            provisioning: of(stuck, usual.provisioning),
            decommissioning: of(stuck, usual.decommissioning),
            action: of(stuck, usual.action),
            active: of(stuck, usual.active),
            orphan: of(orphan, usual.orphan),
        }
    }
}

/// What is to be done about a tenant that stands between two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Go on with its provisioning, and then with what waits.
    Provisioning,
    /// Carry out events that wait: nothing went wrong, their time has come.
    Waiting,
    /// Order its decommissioning again.
    Decommissioning,
}

/// What is due of a tenant.
#[must_use]
pub fn due(tenant: &Tenant, now: Timestamp, patience: &Patience) -> Option<Due> {
    if tenant.lifecycle == Lifecycle::Decommissioning {
        // What waits is carried out once it is gone.
        let late = seconds(tenant.changed_at, now) - patience.decommissioning;
        return (late >= 0 && (late / 60) % ORDER_MINUTES == 0).then_some(Due::Decommissioning);
    }
    match &tenant.provisioning {
        Some(saga) => (seconds(saga.began_at, now) >= patience.provisioning).then_some(Due::Provisioning),
        None => {
            let waits = tenant.deferred.iter().any(|waiting| waiting.due_at <= now);
            waits.then_some(Due::Waiting)
        }
    }
}

/// Whether a tenant's actions have to be looked at one by one: some are in flight, and their claims are over. Claims of a
/// busy tenant never are, so a sweep of everything looks at all that are in flight.
#[must_use]
pub fn may_have_stuck_actions(tenant: &Tenant, scope: Scope, now: Timestamp, patience: &Patience) -> bool {
    let in_flight = tenant.in_flight > 0 || tenant.entitlements.values().any(|held| held.in_flight > 0);
    let over = || {
        let over = |until: Timestamp| seconds(until, now) >= patience.action;
        tenant.lease_until.is_none_or(over)
    };
    // One that leaves has its actions ended by whoever decommissions it.
    tenant.lifecycle == Lifecycle::Active && in_flight && (scope == Scope::Everything || over())
}

/// What is to be done about an action that nobody goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stuck {
    /// Put its signal on the queue again: the governor finds its claim over, and undoes it.
    Nudge,
    /// Give it up: a person has to look.
    Escalate,
}

/// What is due of an action.
#[must_use]
pub fn stuck(action: &Action, now: Timestamp, patience: &Patience) -> Option<Stuck> {
    let nudged = action.nudged_at.map(|at| seconds(at, now));
    let waits = seconds(action.lease_until, now) < patience.action
        || nudged.is_some_and(|ago| ago < NUDGE_AGAIN_SECONDS);
    if !action.state.in_flight() || waits {
        return None;
    }
    let in_vain = nudged.is_some() && seconds(action.started_at, now) >= GIVE_UP_SECONDS;
    Some(match action.parameters.is_none() || in_vain {
        true => Stuck::Escalate,
        false => Stuck::Nudge,
    })
}

/// What is to be done about a dead letter. It is left where it is in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Letter {
    /// Its action is over, or a person's already: nothing.
    Known,
    /// Somebody is at work on its action: a later look tells.
    Busy,
    /// Nobody goes on with its action: a person has to look.
    Escalate,
    /// It is no signal: refused, on record.
    Refuse,
}

/// How long a letter is left alone whose action a person had taken up again, in seconds.
const REOPENED_SECONDS: i64 = 300;

/// What is due of a dead letter. `action` is what is known of the action it asks for or, of one that is no signal, of the
/// one that it is kept as.
#[must_use]
pub fn letter(is_signal: bool, action: Option<&Action>, now: Timestamp) -> Letter {
    // Taken up again a moment ago: another signal of it is on its way.
    let reopened = |action: &&Action| !action.receipts.is_empty() && !action.state.is_final();
    if action
        .filter(reopened)
        .is_some_and(|action| seconds(action.lease_until, now) < REOPENED_SECONDS)
    {
        return Letter::Busy;
    }
    match (standing(action, now), is_signal) {
        (Standing::Done, _) => Letter::Known,
        (Standing::Busy, _) => Letter::Busy,
        (Standing::New | Standing::Undo, true) => Letter::Escalate,
        (Standing::New, false) => Letter::Refuse,
        // It is another signal's action, which brings it to its end.
        (Standing::Undo, false) => Letter::Known,
    }
}

/// The action that a dead letter asks for, as far as it is known: one that never began is known by its letter alone.
#[must_use]
pub fn action_of_letter(signal: &Signal, known: Option<&Action>, tenant: &Tenant, now: Timestamp) -> Action {
    if let Some(begun) = known.filter(|action| action.state != ActionState::Pending) {
        return begun.clone();
    }
    let held = admission::held(signal, Some(tenant));
    let policy_hash = held.map(|(_, held)| held.policy.hash.as_str());
    let template = names::printable(&signal.template, 64);
    Action {
        receipts: known.map(|action| action.receipts.clone()).unwrap_or_default(),
        entitlement_id: held.map(|(id, _)| id.clone()),
        parameters: Some(signal.parameters.clone()),
        ..Action::pending(
            signal.action_id.clone(),
            &template,
            policy_hash.unwrap_or_default(),
            now,
        )
    }
}

/// The tenant with counters that are what its unfinished actions say; `None` when they are. Only right for a tenant that
/// was read before its actions were, and is still the same.
#[must_use]
pub fn recounted<'a>(tenant: &Tenant, unfinished: impl IntoIterator<Item = &'a Action>) -> Option<Tenant> {
    let mut next = tenant.written();
    next.in_flight = 0;
    for held in next.entitlements.values_mut() {
        held.in_flight = 0;
    }
    for action in unfinished {
        next.in_flight = next.in_flight.saturating_add(1);
        let of = action.entitlement_id.as_ref();
        if let Some(held) = of.and_then(|id| next.entitlements.get_mut(id)) {
            held.in_flight = held.in_flight.saturating_add(1);
        }
    }
    if next.in_flight == 0 {
        next.lease_until = None;
    }
    let same = next.in_flight == tenant.in_flight && next.entitlements == tenant.entitlements;
    (!same).then_some(next)
}

/// One of the resources that are a tenant's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Its signal queue.
    Queue,
    /// The queue of signals that nobody could settle.
    DeadLetterQueue,
    /// What feeds the governor.
    Mapping,
    /// The mapping's pace.
    MappingPace,
    /// The table of its own actions.
    ActionTable,
    /// The table of its own receipts.
    ReceiptTable,
}

impl Resource {
    /// The name used in receipts and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::DeadLetterQueue => "dead_letter_queue",
            Self::Mapping => "mapping",
            Self::MappingPace => "mapping_pace",
            Self::ActionTable => "action_table",
            Self::ReceiptTable => "receipt_table",
        }
    }
}

/// What there should be of one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub account_id: AccountId,
    /// Its queue, after which everything of it is named.
    pub queue: String,
    /// How fast the mapping must feed the governor.
    pub pace: Pace,
    /// What must be there. Of a tenant between two states that is nothing; what is there is its own all the same.
    pub needs: BTreeSet<Resource>,
}

impl Expected {
    /// What there should be of a tenant; `None` when it has no queue.
    #[must_use]
    pub fn of(tenant: &Tenant, now: Timestamp, patience: &Patience) -> Option<Self> {
        let mut needs = BTreeSet::new();
        match tenant.lifecycle {
            Lifecycle::Absent | Lifecycle::Decommissioned => return None,
            Lifecycle::Provisioning | Lifecycle::Decommissioning => {}
            Lifecycle::Active if seconds(tenant.changed_at, now) < patience.active => {}
            Lifecycle::Active => {
                needs.extend([Resource::Queue, Resource::DeadLetterQueue, Resource::Mapping]);
                let own = tenant.tables.as_ref();
                if own.is_some_and(|own| own.until.is_none() && own.archived.is_none()) {
                    needs.extend([Resource::ActionTable, Resource::ReceiptTable]);
                }
            }
        }
        Some(Self {
            account_id: tenant.account_id.clone(),
            queue: tenant.fsm_id.clone(),
            pace: tenant.pace(),
            needs,
        })
    }
}

/// What there is, by the queue it is named after.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExistingResources {
    there: BTreeMap<String, BTreeSet<Resource>>,
    paces: BTreeMap<String, Option<Pace>>,
}

impl ExistingResources {
    /// There is a queue of this name.
    pub fn queue(&mut self, name: &str) {
        let queue = names::queue_of_resource(name);
        self.add(
            queue,
            match queue == name {
                true => Resource::Queue,
                false => Resource::DeadLetterQueue,
            },
        );
    }

    /// There is a mapping from a queue of this name, with this pace as far as it says.
    pub fn mapping(&mut self, queue: &str, pace: Option<Pace>) {
        self.paces.insert(queue.to_owned(), pace);
        self.add(queue, Resource::Mapping);
    }

    /// There is a table of this name.
    pub fn table(&mut self, name: &str) {
        let queue = names::queue_of_resource(name);
        let actions = name.ends_with("-actions");
        self.add(
            queue,
            match actions {
                true => Resource::ActionTable,
                false => Resource::ReceiptTable,
            },
        );
    }

    fn add(&mut self, queue: &str, resource: Resource) {
        self.there.entry(queue.to_owned()).or_default().insert(resource);
    }

    /// What there is that is named after a queue.
    #[must_use]
    pub fn of(&self, queue: &str) -> BTreeSet<Resource> {
        self.there.get(queue).cloned().unwrap_or_default()
    }
}

/// What should be there and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    pub account_id: AccountId,
    /// The tenant's queue.
    pub queue: String,
    pub resources: Vec<Resource>,
}

/// How what there is differs from what there should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// What active tenants lack.
    pub missing: Vec<Missing>,
    /// Names of queues that no tenant expects, whether the queue itself is there or something named after it. Listings lag,
    /// and tenants come meanwhile: each has to be looked at again, see [`orphan`].
    pub orphans: Vec<String>,
}

/// Holds what there is against what there should be.
#[must_use]
pub fn compare(expected: &[Expected], found: &ExistingResources) -> Findings {
    let missing = expected.iter().filter_map(|tenant| {
        let there = found.of(&tenant.queue);
        let mut resources: Vec<Resource> = tenant.needs.difference(&there).copied().collect();
        // The plans moved on, and the mapping did not.
        let pace = found.paces.get(&tenant.queue).copied().flatten();
        if tenant.needs.contains(&Resource::Mapping) && pace.is_some_and(|pace| pace != tenant.pace) {
            resources.push(Resource::MappingPace);
        }
        (!resources.is_empty()).then(|| Missing {
            account_id: tenant.account_id.clone(),
            queue: tenant.queue.clone(),
            resources,
        })
    });
    let known: BTreeSet<&String> = expected.iter().map(|tenant| &tenant.queue).collect();
    let orphans = found.there.keys().filter(|queue| !known.contains(queue));
    Findings {
        missing: missing.collect(),
        orphans: orphans.cloned().collect(),
    }
}

/// Whether something that no tenant seemed to expect is nobody's indeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// It is a living tenant's.
    InUse,
    /// Too young to tell.
    Young,
    /// It is to be taken away.
    Nobodys,
}

/// What to make of a queue name, given the tenant it was made for and when the queue was made, if it is there.
#[must_use]
pub fn orphan(
    queue: &str,
    tenant: Option<&Tenant>,
    made_at: Option<Timestamp>,
    now: Timestamp,
    patience: &Patience,
) -> Orphan {
    let gone = |tenant: &Tenant| matches!(tenant.lifecycle, Lifecycle::Absent | Lifecycle::Decommissioned);
    if tenant.is_some_and(|tenant| tenant.fsm_id == queue && !gone(tenant)) {
        return Orphan::InUse;
    }
    // What was deleted a moment ago is listed for a while, and the tenant it belonged to has changed a moment ago.
    let last = made_at.max(tenant.map(|tenant| tenant.changed_at));
    match last.is_some_and(|last| seconds(last, now) < patience.orphan) {
        true => Orphan::Young,
        false => Orphan::Nobodys,
    }
}

/// As many as can be done at once, and how many are left: others in each round, so that none that always fails keeps the
/// others waiting for ever.
#[must_use]
pub fn turn<T>(mut items: Vec<T>, most: usize, round: u64) -> (Vec<T>, usize) {
    let all = items.len();
    if all > most {
        let done = usize::try_from(round).unwrap_or_default().wrapping_mul(most);
        items.rotate_left(done % all);
        items.truncate(most);
    }
    let left = all - items.len();
    (items, left)
}

fn minutes(now: Timestamp) -> i64 {
    now.as_second().div_euclid(60)
}

/// How long ago something was; negative when it is still to come.
fn seconds(then: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(then).as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};
    use uuid::Uuid;

    use super::*;
    use crate::action::{ActionEvent, DEAD_LETTERED};
    use crate::entitlement::{Entitlement, EventOrder};
    use crate::provisioning::{DeliveryRef, Provisioning};
    use crate::signal::ActionId;
    use crate::tenant::tests::{event, id, offer, tenant};
    use crate::tenant::{Deferred, Tables};
    use crate::webhook::event::Change;

    /// Seconds after a fixed instant.
    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn asked() -> DeliveryRef {
        DeliveryRef {
            provider: "standard".to_owned(),
            delivery_id: "d".to_owned(),
            body_sha256: String::new(),
        }
    }

    fn standing(lifecycle: Lifecycle) -> Tenant {
        Tenant {
            lifecycle,
            changed_at: at(0),
            ..tenant()
        }
    }

    fn making(mut tenant: Tenant) -> Tenant {
        let order = EventOrder {
            version: None,
            at: at(0),
        };
        tenant.provisioning = Some(Provisioning {
            entitlement_id: id("e"),
            entitlement: Entitlement::granted(&offer("p"), "r", None, order, at(0)),
            event: event(Change::Suspended),
            asked: asked(),
            new_tenant: true,
            dedicated: false,
            received_at: at(0),
            due_since: at(0),
            attempts: 0,
            waited: false,
            table_attempt: 0,
            began_at: at(0),
            failure: None,
        });
        tenant
    }

    fn waiting(mut tenant: Tenant, due_at: i64) -> Tenant {
        tenant.deferred.push(Deferred {
            event: event(Change::Suspended),
            asked: asked(),
            received_at: at(0),
            due_at: at(due_at),
            due_since: at(due_at),
            attempts: 0,
        });
        tenant
    }

    #[track_caller]
    fn check_due(tenant: &Tenant, after: i64, expected: Option<Due>) {
        assert_eq!(
            due(tenant, at(after), &Patience::default()),
            expected,
            "{after} s"
        );
    }

    #[test]
    fn what_is_due() {
        let provisioning = making(standing(Lifecycle::Provisioning));
        check_due(&provisioning, 59, None);
        check_due(&provisioning, 60, Some(Due::Provisioning));
        // What waits behind a provisioning waits for it.
        check_due(&waiting(provisioning.clone(), 0), 59, None);
        check_due(&waiting(provisioning, 0), 60, Some(Due::Provisioning));
        for lifecycle in [Lifecycle::Active, Lifecycle::Absent, Lifecycle::Decommissioned] {
            check_due(&standing(lifecycle), 10_000, None);
            check_due(&waiting(standing(lifecycle), 5), 4, None);
            check_due(&waiting(standing(lifecycle), 5), 5, Some(Due::Waiting));
        }
    }

    #[test]
    fn decommissioning_is_ordered_again_every_quarter_of_an_hour() {
        let leaving = waiting(standing(Lifecycle::Decommissioning), 0);
        check_due(&leaving, 89, None);
        for (minute, ordered) in [
            (2, true),
            (3, false),
            (16, false),
            (17, true),
            (18, false),
            (32, true),
        ] {
            check_due(&leaving, minute * 60, ordered.then_some(Due::Decommissioning));
        }
        let ordered = (0..3600).filter(|after| due(&leaving, at(*after), &Patience::default()).is_some());
        assert_eq!(ordered.count(), 4 * 60);
        assert_eq!(
            due(&leaving, at(0), &Patience::with(Some(0), None)),
            Some(Due::Decommissioning)
        );
    }

    #[track_caller]
    fn check_busy(in_flight: (u64, u64), lease: Option<i64>, lifecycle: Lifecycle, expected: (bool, bool)) {
        let mut busy = standing(lifecycle);
        busy.in_flight = in_flight.0;
        busy.entitlements.get_mut(&id("s")).unwrap().in_flight = in_flight.1;
        busy.lease_until = lease.map(at);
        let looked_at = |scope| may_have_stuck_actions(&busy, scope, at(100), &Patience::default());
        assert_eq!((looked_at(Scope::Due), looked_at(Scope::Everything)), expected);
    }

    #[test]
    fn whose_actions_are_looked_at() {
        check_busy((1, 1), Some(40), Lifecycle::Active, (true, true));
        check_busy((1, 1), Some(41), Lifecycle::Active, (false, true));
        check_busy((1, 1), None, Lifecycle::Active, (true, true));
        check_busy((0, 1), None, Lifecycle::Active, (true, true));
        check_busy((0, 0), None, Lifecycle::Active, (false, false));
        check_busy((1, 1), Some(0), Lifecycle::Decommissioning, (false, false));
    }

    fn action(name: &str) -> Action {
        let action_id = ActionId::try_from(name.to_owned()).unwrap();
        Action {
            state: ActionState::Running,
            lease_until: at(20),
            entitlement_id: Some(id("s")),
            parameters: Some(Map::new()),
            ..Action::pending(action_id, "t", "h", at(0))
        }
    }

    #[track_caller]
    fn check_stuck(action: &Action, after: i64, expected: Option<Stuck>) {
        assert_eq!(
            stuck(action, at(after), &Patience::default()),
            expected,
            "{after} s"
        );
    }

    #[test]
    fn stuck_actions_are_nudged_and_given_up_in_the_end() {
        let mut action = action("a");
        check_stuck(&action, 79, None);
        check_stuck(&action, 80, Some(Stuck::Nudge));
        // Nobody looked for hours: it has its chance first.
        check_stuck(&action, 10_000, Some(Stuck::Nudge));
        action.nudged_at = Some(at(100));
        check_stuck(&action, 399, None);
        check_stuck(&action, 400, Some(Stuck::Nudge));
        check_stuck(&action, 3599, Some(Stuck::Nudge));
        check_stuck(&action, 3600, Some(Stuck::Escalate));
        action.nudged_at = Some(at(3400));
        check_stuck(&action, 3600, None);
        action.nudged_at = None;
        action.parameters = None;
        check_stuck(&action, 79, None);
        check_stuck(&action, 80, Some(Stuck::Escalate));
        for state in ActionState::ALL {
            let stuck = stuck(
                &Action {
                    state,
                    ..action.clone()
                },
                at(80),
                &Patience::default(),
            );
            assert_eq!(stuck.is_none(), !state.in_flight(), "{state:?}");
        }
        // A claim that was taken over is in force again.
        check_stuck(&action.owned_by(Uuid::nil(), at(10_000)), 9_000, None);
    }

    #[test]
    fn dead_letters_of_unfinished_actions_are_escalated_or_refused() {
        let running = |until: i64| action("a").owned_by(Uuid::nil(), at(until));
        let of = |state| Action {
            state,
            ..running(100)
        };
        let check = |action: Option<&Action>, signal: Letter, other: Letter| {
            let found = [true, false].map(|is_signal| letter(is_signal, action, at(100)));
            assert_eq!(found, [signal, other], "{:?}", action.map(|action| action.state));
        };
        check(None, Letter::Escalate, Letter::Refuse);
        check(Some(&running(101)), Letter::Busy, Letter::Busy);
        for state in ActionState::ALL {
            let (signal, other) = match state {
                ActionState::Pending => (Letter::Escalate, Letter::Refuse),
                state if state.in_flight() => (Letter::Escalate, Letter::Known),
                _ => (Letter::Known, Letter::Known),
            };
            check(Some(&of(state)), signal, other);
        }
        // One that a person had taken up again a moment ago has another signal on its way.
        let reopened = |state, ago: i64| Action {
            receipts: vec![Uuid::nil()],
            ..of(state).owned_by(Uuid::nil(), at(100 - ago))
        };
        for state in [ActionState::Pending, ActionState::TimedOut] {
            check(Some(&reopened(state, 299)), Letter::Busy, Letter::Busy);
        }
        check(
            Some(&reopened(ActionState::Pending, 300)),
            Letter::Escalate,
            Letter::Refuse,
        );
    }

    /// What is escalated can be taken up again by the letter, and without it.
    #[test]
    fn a_letters_action_says_what_it_was_to_do() {
        let tenant = standing(Lifecycle::Active);
        let text = json!({
            "action_id": "a", "account_id": "c", "template": "t", "parameters": { "n": 1 }, "policy_hash": "hash-p",
        });
        let signal = Signal::parse(&text.to_string()).unwrap();
        let unknown = action_of_letter(&signal, None, &tenant, at(5));
        let abandoned = ActionEvent::Abandoned {
            error_code: DEAD_LETTERED,
        };
        let escalated = unknown
            .next(&abandoned, Uuid::from_u128(1), at(5))
            .unwrap()
            .action;
        assert_eq!(escalated.resumes_at(), Some(ActionState::Pending));
        let again = Signal {
            entitlement_id: Some(id("s")),
            ..signal.clone()
        };
        assert_eq!(escalated.signal(&tenant.account_id), again);
        let waited = Action {
            receipts: vec![Uuid::from_u128(7)],
            ..unknown.clone()
        };
        let known = action_of_letter(&signal, Some(&waited), &tenant, at(9));
        assert_eq!(known.receipts, waited.receipts);
        // What has begun is what the table says.
        let begun = Action {
            template: "another".to_owned(),
            ..action("a")
        };
        assert_eq!(action_of_letter(&signal, Some(&begun), &tenant, at(9)), begun);
        let nobodys = Tenant {
            entitlements: BTreeMap::new(),
            ..tenant
        };
        let unknown = action_of_letter(&signal, None, &nobodys, at(5));
        assert_eq!((unknown.entitlement_id, unknown.policy_hash.as_str()), (None, ""));
    }

    #[track_caller]
    fn check_recounted(counted: (u64, u64), unfinished: &[Action], expected: Option<(u64, u64)>) {
        let mut busy = standing(Lifecycle::Active);
        busy.in_flight = counted.0;
        busy.entitlements.get_mut(&id("s")).unwrap().in_flight = counted.1;
        busy.lease_until = Some(at(20));
        let recounted = recounted(&busy, unfinished);
        let counters = |tenant: &Tenant| (tenant.in_flight, tenant.entitlements[&id("s")].in_flight);
        assert_eq!(recounted.as_ref().map(counters), expected);
        if let Some(next) = recounted {
            assert_eq!(next.revision, busy.revision + 1);
            assert_eq!(next.lease_until.is_none(), next.in_flight == 0);
        }
    }

    #[test]
    fn counters_are_what_the_actions_say() {
        let of_another = Action {
            entitlement_id: Some(id("cancelled")),
            ..action("b")
        };
        check_recounted((1, 1), &[action("a")], None);
        check_recounted((2, 1), &[action("a"), of_another.clone()], None);
        check_recounted((1, 1), &[], Some((0, 0)));
        check_recounted((0, 1), &[], Some((0, 0)));
        check_recounted((3, 2), &[action("a"), of_another], Some((2, 1)));
    }

    #[test]
    fn everything_is_looked_at_four_times_an_hour() {
        let hour = (0..60).map(|minute| Scope::Due.at(at(minute * 60 + 59)));
        assert_eq!(hour.filter(|scope| *scope == Scope::Everything).count(), 4);
        assert_eq!(
            Scope::Due.at("2026-01-01T10:45:59Z".parse().unwrap()),
            Scope::Everything
        );
        assert_eq!(Scope::Due.at("2026-01-01T10:46:00Z".parse().unwrap()), Scope::Due);
        assert_eq!(Scope::None.at(at(0)), Scope::None);
        assert_eq!(Scope::Everything.at(at(61)), Scope::Everything);
        for scope in [Scope::Due, Scope::Everything] {
            let every = if scope == Scope::Due { 60 } else { 900 };
            assert_eq!(scope.round(at(every)), scope.round(at(0)) + 1, "{scope:?}");
        }
    }

    /// What there is, as listings name it: a mapping by its queue and `>`, a slow one by `>>`.
    fn found(names: &str) -> ExistingResources {
        let mut found = ExistingResources::default();
        for name in names.split_whitespace() {
            if let Some(queue) = name.strip_suffix(">>") {
                found.mapping(queue, Some(Pace::of(30)));
                continue;
            }
            match name.strip_suffix('>') {
                Some(queue) => found.mapping(queue, Some(Pace::of(3))),
                None if name.ends_with("-actions") || name.ends_with("-receipts") => found.table(name),
                None => found.queue(name),
            }
        }
        found
    }

    #[track_caller]
    fn check_compared(tenants: &[Tenant], names: &str, missing: &str, orphans: &str) {
        let expected: Vec<Expected> = tenants
            .iter()
            .filter_map(|tenant| Expected::of(tenant, at(120), &Patience::default()))
            .collect();
        let findings = compare(&expected, &found(names));
        let told: Vec<String> = findings
            .missing
            .iter()
            .flat_map(|m| m.resources.iter().map(|r| format!("{} {}", r.name(), m.queue)))
            .collect();
        assert_eq!(
            (told.join(", "), findings.orphans.join(" ")),
            (missing.to_owned(), orphans.to_owned())
        );
    }

    #[test]
    fn what_is_there_is_held_against_what_should_be() {
        let called = |queue: &str, lifecycle| Tenant {
            fsm_id: queue.to_owned(),
            ..standing(lifecycle)
        };
        let active = called("q-g1", Lifecycle::Active);
        let whole = "q-g1 q-g1-dlq q-g1>";
        check_compared(&[], "", "", "");
        check_compared(std::slice::from_ref(&active), whole, "", "");
        check_compared(std::slice::from_ref(&active), "q-g1 q-g1-dlq", "mapping q-g1", "");
        let slow = "q-g1 q-g1-dlq q-g1>>";
        check_compared(std::slice::from_ref(&active), slow, "mapping_pace q-g1", "");
        check_compared(
            std::slice::from_ref(&active),
            "",
            "queue q-g1, dead_letter_queue q-g1, mapping q-g1",
            "",
        );
        let dedicated = Tenant {
            tables: Some(Tables::of_queue("q-g1", 0, 0)),
            ..active.clone()
        };
        let tables = format!("{whole} q-g1-receipts");
        check_compared(std::slice::from_ref(&dedicated), &tables, "action_table q-g1", "");
        let mut left = dedicated;
        left.tables.as_mut().unwrap().until = Some(7);
        check_compared(&[left], whole, "", "");
        // Between two states nothing is missing, and nothing is nobody's.
        for lifecycle in [Lifecycle::Provisioning, Lifecycle::Decommissioning] {
            check_compared(&[called("q-g1", lifecycle)], "q-g1-dlq q-g1-actions", "", "");
        }
        for lifecycle in [Lifecycle::Absent, Lifecycle::Decommissioned] {
            check_compared(&[called("q-g1", lifecycle)], "", "", "");
            check_compared(&[called("q-g1", lifecycle)], "q-g1-dlq", "", "q-g1");
        }
        let young = Tenant {
            changed_at: at(1),
            ..active.clone()
        };
        check_compared(&[young], "", "", "");
        let more = format!("{whole} a-g1> b-g1-receipts c-g1 c-g1-dlq q-g2");
        check_compared(&[active], &more, "", "a-g1 b-g1 c-g1 q-g2");
    }

    #[track_caller]
    fn check_orphan(tenant: Option<&Tenant>, made: Option<i64>, after: i64, expected: Orphan) {
        assert_eq!(
            orphan("q", tenant, made.map(at), at(after), &Patience::default()),
            expected
        );
    }

    #[test]
    fn only_what_is_old_and_nobodys_is_taken_away() {
        for lifecycle in Lifecycle::ALL {
            let own = standing(lifecycle);
            let gone = matches!(lifecycle, Lifecycle::Absent | Lifecycle::Decommissioned);
            let expected = if gone { Orphan::Nobodys } else { Orphan::InUse };
            check_orphan(Some(&own), Some(0), 600, expected);
        }
        let next = Tenant {
            fsm_id: "q-next".to_owned(),
            ..standing(Lifecycle::Active)
        };
        check_orphan(Some(&next), Some(0), 600, Orphan::Nobodys);
        check_orphan(Some(&next), Some(-900), 599, Orphan::Young);
        check_orphan(Some(&next), Some(1), 600, Orphan::Young);
        check_orphan(Some(&next), None, 600, Orphan::Nobodys);
        check_orphan(None, Some(0), 600, Orphan::Nobodys);
        check_orphan(None, Some(1), 600, Orphan::Young);
    }

    proptest! {
        /// Whatever there is too much of, everything has its turn.
        #[test]
        fn everything_has_its_turn(all in 0..60usize, most in 1..20usize, first in 0..1_000u64) {
            let items: Vec<usize> = (0..all).collect();
            let mut seen = BTreeSet::new();
            for round in first..first + 60 {
                let (now, left) = turn(items.clone(), most, round);
                prop_assert_eq!(now.len() + left, all);
                prop_assert!(now.len() <= most);
                seen.extend(now);
            }
            prop_assert_eq!(seen.len(), all);
        }
    }
}
