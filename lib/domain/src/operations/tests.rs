//! All operations against the tables in memory: in any order, with writers in between and answers that are lost. Whatever
//! happens, an account is whole after each write.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use receipts::key::Signer;
use receipts::ledger::AppendError;
use receipts::receipt::{Draft, Payload, Receipt};
use serde_json::{Map, json};
use uuid::Uuid;

use super::abandon::abandon;
use super::apply_event::{Applied, ApplyError, LookedUp, Task, apply_event, ignore, ignored, postpone};
use super::decommission::{self, Closing};
use super::provision::{self, activate, close_failed, note_failure, note_undone};
use super::record_dead_letters::{DeadLetter, record_dead_letters};
use super::recount::recount;
use super::redrive::{Redrive, redrive};
use super::refuse_left::{LeftSignal, refuse_left};
use super::repair::repair;
use super::repin::{NewPolicy, repin};
use super::resolve::{self, Resolution};
use super::scale::scale;
use super::settle_spool::{self, settle_spool};
use super::wake::{StuckAction, wake};
use crate::account::{AccountId, PlanType, SkuId};
use crate::action::{Action, ActionEvent, ActionState, IllegalTransition, LEASE_SECONDS};
use crate::entitlement::decide::Surroundings;
use crate::entitlement::{Isolation, Offer};
use crate::gate::RefusalCode;
use crate::names::Partition;
use crate::provisioning::{DeliveryRef, Failure, Provisioning, Step};
use crate::scale::Costs;
use crate::signal::{ActionId, Signal};
use crate::sweep::Stuck;
use crate::tenant::tests::{event, id, offer as named};
use crate::tenant::{ArchivedActions, Lifecycle, Released, Tenant, TenantResources};
use crate::transaction::memory::{Memory, Mishap};
use crate::transaction::{Account, Committed, DeliveryRecord, Keys, Plan, Repeat};
use crate::webhook::event::{Change, EntitlementEvent, PlanReference};

const AROUND: Surroundings<'_> = Surroundings {
    queue_prefix: "mg",
    tenants_table: "tenants",
};
const LETTERS: &str = "dead-letters";

/// Why an operation did not write.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Close(#[from] decommission::CloseError),
}

/// What gets in the way of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Clear,
    /// Its first write stands, and it hears otherwise.
    AnswerLost,
    /// Its first write does not stand.
    Refused,
    /// Another operation is written between its read and its write.
    Overtaken,
}

/// One account, and what is needed to work on it.
struct World {
    memory: Memory,
    signer: Signer,
    now: Timestamp,
    ids: u128,
}

/// A hash of a policy, as receipts want it.
fn hash(of: u128) -> String {
    receipts::sha256_hex(of.to_be_bytes())
}

fn offer(plan: &str) -> Offer {
    let mut offer = named(plan);
    offer.policy.hash = hash(0);
    offer
}

fn partition() -> Partition {
    Partition::of(&account_id())
}

fn account_id() -> AccountId {
    AccountId::parse("c").unwrap()
}

fn action_id(n: u8) -> ActionId {
    ActionId::try_from(format!("a-{n}")).unwrap()
}

fn asked(delivery: u8, provider: &str) -> DeliveryRef {
    DeliveryRef {
        provider: provider.to_owned(),
        delivery_id: format!("d-{delivery}"),
        body_sha256: "00".to_owned(),
    }
}

fn keys_of(actions: impl IntoIterator<Item = ActionId>) -> Keys {
    Keys {
        actions: actions.into_iter().collect(),
        ..Keys::default()
    }
}

fn keys_of_delivery(asked: &DeliveryRef) -> Keys {
    Keys {
        delivery: Some(asked.key()),
        ..Keys::default()
    }
}

fn plan(plan_type: &str) -> PlanReference {
    PlanReference::Canonical {
        sku_id: SkuId::parse("s").unwrap(),
        plan_type: PlanType::parse(plan_type).unwrap(),
    }
}

fn change(which: u8) -> Change {
    match which % 6 {
        0 => Change::Granted {
            plan: plan("p"),
            region: "us-east-1".to_owned(),
            expires_at: None,
        },
        1 => Change::PlanChanged { plan: plan("q") },
        2 => Change::Suspended,
        3 => Change::Reinstated,
        4 => Change::Renewed { expires_at: None },
        _ => Change::Cancelled,
    }
}

impl World {
    fn new() -> Self {
        Self {
            memory: Memory::default(),
            signer: Signer::generate([7; 32]),
            now: Timestamp::from_second(1_000).unwrap(),
            ids: 0,
        }
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    /// Reads, decides and writes, as the store does; `way` is in it the first time.
    fn transact<T>(
        &mut self,
        way: Way,
        keys: &Keys,
        mut decide: impl FnMut(&Account, Timestamp) -> Result<(Plan, T), Stop>,
    ) -> Result<(Committed, T), Stop> {
        let mut account = self.memory.load(&partition(), keys);
        match way {
            Way::Clear => {}
            Way::AnswerLost => self.memory.next_write(Mishap::AnswerLost),
            Way::Refused => self.memory.next_write(Mishap::Refused),
            Way::Overtaken => self.somebody_else(),
        }
        for _ in 0..3 {
            let (plan, answer) = decide(&account, self.now)?;
            let (committed, stands) = self.memory.commit(&self.signer, &account, &plan, self.now)?;
            self.is_whole();
            account = self.memory.load(&partition(), keys);
            if stands || committed.stood(&account.head) {
                return Ok((committed, answer));
            }
        }
        panic!("nobody else writes");
    }

    /// Another writer: a receipt, and the tenant's revision.
    fn somebody_else(&mut self) {
        let account = self.memory.load(&partition(), &Keys::default());
        let receipt_id = self.id();
        let payload = ignored("in between".to_owned(), &asked(0, "standard"));
        let plan = Plan {
            drafts: vec![Draft::new(receipt_id, "c", payload, self.now)],
            ..Plan::tenant(account.tenant.as_ref().map(Tenant::written))
        };
        let written = self.memory.commit(&self.signer, &account, &plan, self.now);
        assert!(written.unwrap().1);
    }

    fn tenant(&self) -> Option<Tenant> {
        self.memory.load(&partition(), &Keys::default()).tenant
    }

    fn saga(&self) -> Option<Provisioning> {
        self.tenant()?.provisioning
    }

    fn actions(&self) -> impl Iterator<Item = &Action> {
        let kept = self.memory.of(&partition()).into_iter();
        kept.flat_map(|kept| kept.actions.values())
    }

    fn receipts(&self) -> Vec<Receipt> {
        let lines = self
            .memory
            .of(&partition())
            .into_iter()
            .flat_map(|kept| &kept.ledger);
        lines
            .map(|sealed| serde_json::from_str(&sealed.line).unwrap())
            .collect()
    }

    /// What must be true after each write.
    fn is_whole(&self) {
        let receipts = self.receipts();
        let ids: BTreeSet<Uuid> = receipts.iter().map(|receipt| receipt.receipt_id).collect();
        assert_eq!(ids.len(), receipts.len(), "a receipt stands on the ledger once");
        assert!(
            (0u64..).zip(&receipts).all(|(seq, receipt)| receipt.seq == seq),
            "the ledger has no gap"
        );
        for action in self.actions() {
            assert!(
                action.receipts.iter().all(|id| ids.contains(id)),
                "{action:?} names receipts that stand"
            );
            if action.state.is_final() && action.state != ActionState::Escalated {
                assert!(!action.receipts.is_empty(), "{action:?} ended on record");
            }
        }
        let Some(tenant) = self.tenant() else { return };
        let in_flight = self.actions().filter(|action| action.state.in_flight()).count() as u64;
        assert_eq!(tenant.in_flight, in_flight, "places are counted exactly");
        for (id, held) in &tenant.entitlements {
            let of =
                |action: &&Action| action.state.in_flight() && action.entitlement_id.as_ref() == Some(id);
            let counted = self.actions().filter(of).count() as u64;
            assert_eq!(held.in_flight, counted, "those of {id} too");
        }
        if tenant.lifecycle == Lifecycle::Decommissioned {
            assert_eq!(in_flight, 0, "nothing runs for a tenant that is gone");
        }
    }

    fn event(&mut self, way: Way, delivery: u8, which: u8, provider: &str) {
        let said = EntitlementEvent {
            effective_at: Some(self.now),
            ..event(change(which))
        };
        let task = Task::delivered(said, asked(delivery, provider), self.now);
        self.apply(way, &task);
    }

    fn apply(&mut self, way: Way, task: &Task) {
        let looked_up = LookedUp {
            product: Some(SkuId::parse("s").unwrap()),
            offer: match &task.event.change {
                Change::Granted { .. } => Some(offer("p")),
                Change::PlanChanged { .. } => Some(Offer {
                    isolation: Isolation::Dedicated,
                    ..offer("q")
                }),
                _ => None,
            },
            unknown: None,
        };
        self.apply_with(way, task, &looked_up);
    }

    fn delivery(&self, asked: &DeliveryRef) -> Option<DeliveryRecord> {
        self.memory.load(&partition(), &keys_of_delivery(asked)).delivery
    }

    fn apply_with(&mut self, way: Way, task: &Task, looked_up: &LookedUp) {
        let receipt_id = self.id();
        let keys = keys_of_delivery(&task.asked);
        let before = self.delivery(&task.asked);
        let applied = self.transact(way, &keys, |account, now| {
            Ok(apply_event(account, task, looked_up, AROUND, receipt_id, now)?)
        });
        let (committed, applied) = match applied {
            Ok(applied) => applied,
            Err(Stop::Apply(ApplyError::Busy { .. })) => return,
            Err(e) => panic!("{e}"),
        };
        let record = match applied {
            Applied::Answered { status, .. } if !task.waited => {
                DeliveryRecord::of(&task.asked, status, &committed.sealed)
            }
            Applied::AnsweredBefore(record) => record,
            Applied::Answered { .. } | Applied::Begun | Applied::UnderWay | Applied::Waits => return,
        };
        assert!(!record.receipt.is_empty(), "an answer is a receipt");
        let kept = self.delivery(&task.asked).unwrap();
        assert_eq!(kept.receipt, record.receipt, "what is told is kept");
        let stands = |before: &DeliveryRecord| before.repeat == Repeat::Answered;
        assert!(
            before.is_none_or(|before| before == kept || !stands(&before)),
            "what changed something has one answer"
        );
    }

    /// Claims actions for the tenant's entitlement, as a governor does.
    fn claim(&mut self, way: Way, ids: &[ActionId]) {
        let owner = self.id();
        let keys = keys_of(ids.iter().cloned());
        let claimed = self.transact(way, &keys, |account, now| {
            let lease = now + SignedDuration::from_secs(LEASE_SECONDS);
            let active = account
                .tenant
                .as_ref()
                .filter(|tenant| tenant.lifecycle == Lifecycle::Active);
            let Some(tenant) = active else {
                return Ok((Plan::default(), ()));
            };
            let mut actions = Vec::new();
            for action_id in ids.iter().filter(|id| !account.actions.contains_key(id)) {
                if tenant.concurrent_left(&id("s")) <= actions.len() as u64 {
                    break;
                }
                let pending = Action::pending(action_id.clone(), "t", &hash(0), now);
                let running = pending.next(&ActionEvent::Claimed, owner, now)?.action;
                actions.push(Action {
                    entitlement_id: Some(id("s")),
                    parameters: Some(Map::new()),
                    ..running.owned_by(owner, lease)
                });
            }
            let count = [(id("s"), actions.len() as u64)].into();
            let next = (!actions.is_empty()).then(|| tenant.claimed(&count, now, lease));
            Ok((
                Plan {
                    actions,
                    ..Plan::tenant(next)
                },
                (),
            ))
        });
        claimed.unwrap();
    }

    /// A handler has answered for an action.
    fn answer(&mut self, way: Way, action_id: &ActionId, event: &ActionEvent) {
        let receipt_id = self.id();
        let keys = keys_of([action_id.clone()]);
        let ended = self.transact(way, &keys, |account, now| {
            let running = |action: &&Action| action.state == ActionState::Running;
            let (Some(tenant), Some(action)) =
                (&account.tenant, account.actions.get(action_id).filter(running))
            else {
                return Ok((Plan::default(), ()));
            };
            let next = action.next(event, receipt_id, now)?;
            let ends = next.action.state.is_final().then(|| Released {
                entitlement_id: action.entitlement_id.clone(),
                completed: next.action.state == ActionState::Complete,
            });
            let draft = |payload| action.draft("c", receipt_id, payload, 1, now);
            let plan = Plan {
                drafts: next.receipt.map(draft).into_iter().collect(),
                actions: vec![next.action.owned_by(action.owner, now)],
                ..Plan::tenant(Some(tenant.released(&ends)))
            };
            Ok((plan, ()))
        });
        ended.unwrap();
    }

    fn give_up_all(&mut self, way: Way) {
        let unfinished: Vec<ActionId> = self
            .actions()
            .filter(|action| action.state.in_flight())
            .map(|action| action.action_id.clone())
            .collect();
        let group: Vec<(ActionId, Uuid)> = unfinished.into_iter().map(|id| (id, self.id())).collect();
        let keys = keys_of(group.iter().map(|(id, _)| id.clone()));
        let done = self.transact(way, &keys, |account, now| {
            Ok((abandon(account, &group, "DECOMMISSIONED", now)?, ()))
        });
        done.unwrap();
    }

    /// A leaving tenant's end, as `cancel` goes about it.
    fn decommission(&mut self, way: Way) {
        if self
            .tenant()
            .is_none_or(|tenant| tenant.lifecycle != Lifecycle::Decommissioning)
        {
            return;
        }
        self.give_up_all(way);
        let keys = Keys::default();
        let ended = self.transact(way, &keys, |account, _| {
            Ok((decommission::end_own_tables(account), ()))
        });
        let kept = ArchivedActions {
            path: "s3://audit/c".to_owned(),
            sha256: "00".to_owned(),
            size_bytes: 1,
            entries: 1,
        };
        ended.unwrap();
        let noted = self.transact(way, &keys, |account, _| {
            Ok((decommission::note_archived_actions(account, &kept), ()))
        });
        noted.unwrap();
        let size = self.memory.load(&partition(), &keys).head.size;
        let account_id = account_id();
        let closing = Closing {
            account_id: &account_id,
            requested_at: self.now,
            path: "s3://audit/c.tar.gz".to_owned(),
            receipts: size,
            size_bytes: 1,
            sha256: "00",
            version: None,
            dead_letters: (0, ""),
        };
        let receipt_id = self.id();
        let closed = self.transact(way, &keys, |account, now| {
            Ok(decommission::close(account, &closing, receipt_id, now)?)
        });
        match closed {
            Ok(_) => {}
            // The archive has to be made again; or the first attempt stood.
            Err(Stop::Close(decommission::CloseError::Moved)) => assert_eq!(way, Way::Overtaken),
            Err(Stop::Close(decommission::CloseError::State(Lifecycle::Decommissioned))) => {
                assert_eq!(way, Way::AnswerLost);
            }
            Err(e) => panic!("{e}"),
        }
        let last = self.receipts().pop().unwrap();
        if self.tenant().unwrap().lifecycle == Lifecycle::Decommissioned {
            let Payload::DecommissionComplete {
                receipts_archived, ..
            } = last.payload
            else {
                panic!("{last:?} closes the ledger")
            };
            assert_eq!(receipts_archived, last.seq, "right behind the archive");
        }
    }

    /// The saga goes forward, or fails and is undone.
    fn provision(&mut self, way: Way, fails: Option<bool>) {
        let Some(saga) = self.saga() else { return };
        let keys = provision::keys(&saga);
        let receipt_id = self.id();
        let failure = fails.map(|lasting| Failure {
            step: Step::Queue,
            reason: "no".to_owned(),
            lasting,
            undone: Vec::new(),
        });
        let (Some(failure), None) = (failure, &saga.failure) else {
            if saga.failure.is_none() {
                let resources = TenantResources {
                    queue: "q".to_owned(),
                    queue_url: "q".to_owned(),
                    dead_letter_queue_url: LETTERS.to_owned(),
                    mapping_id: "m".to_owned(),
                };
                let made = saga.new_tenant.then_some(&resources);
                let done = self.transact(way, &keys, |account, now| {
                    Ok(activate(account, &saga, made, AROUND, receipt_id, now))
                });
                let (_, ours) = done.unwrap();
                assert!(ours || way == Way::AnswerLost);
                assert_eq!(self.saga(), None);
            }
            return;
        };
        let noted = self.transact(way, &keys, |account, _| {
            Ok(note_failure(account, &saga, &failure))
        });
        noted.unwrap();
        let undone = self.transact(way, &keys, |account, _| {
            Ok((note_undone(account, &saga, &[Step::Queue]), ()))
        });
        undone.unwrap();
        let closed = self.transact(way, &keys, |account, now| {
            Ok(close_failed(account, &saga, &[Step::Queue], receipt_id, now))
        });
        closed.unwrap();
        assert_eq!(self.saga(), None);
        let told = self.receipts().pop().unwrap();
        let Payload::EntitlementFailed { undone, .. } = told.payload else {
            panic!("{told:?} says what failed")
        };
        assert_eq!(
            undone.iter().filter(|step| *step == "queue").count(),
            1,
            "each step is named once"
        );
    }

    fn waiting(&mut self, way: Way, fails: bool) {
        let Some(waiting) = self.tenant().and_then(|tenant| tenant.deferred.first().cloned()) else {
            return;
        };
        let task = Task::waiting(waiting);
        if !fails {
            return self.apply(way, &task);
        }
        let receipt_id = self.id();
        let keys = keys_of_delivery(&task.asked);
        let done = self.transact(way, &keys, |account, now| {
            Ok((
                postpone(account, &task, "the registry is away", receipt_id, now),
                (),
            ))
        });
        done.unwrap();
    }

    fn spool(&mut self, way: Way, n: u8) {
        let refused = Payload::ActionRefused {
            action_id: action_id(n).as_str().to_owned(),
            template: "t".to_owned(),
            code: RefusalCode::Unavailable.name().to_owned(),
            detail: None,
            rules: Vec::new(),
        };
        // The same signal makes the same receipt, however often it is refused.
        let receipt_id = Uuid::from_u128(u128::MAX - u128::from(n));
        let draft = Draft::new(receipt_id, "c", refused, self.now);
        let drafts = [draft.clone(), draft];
        let keys = settle_spool::keys(&drafts);
        let settled = self.transact(way, &keys, |account, _| Ok(settle_spool(account, &drafts)));
        let (_, dropped) = settled.unwrap();
        assert_eq!(dropped, 0);
        let appended = self.receipts();
        let of = |receipt: &&Receipt| receipt.receipt_id == receipt_id;
        assert_eq!(
            appended.iter().filter(of).count(),
            1,
            "a spooled receipt is appended once"
        );
    }
}

/// What goes on, one after the other.
#[derive(Debug, Clone, Copy)]
enum Does {
    /// A delivery brings an event.
    Event(u8, u8, bool),
    /// Provisioning succeeds, fails for now, or for good.
    Provision(Option<bool>),
    /// What waited is carried out, or could not be.
    Waiting(bool),
    Claim(u8),
    Succeed(u8),
    TimeOut(u8),
    FailForGood(u8),
    Abandon,
    Wake(u8, bool),
    DeadLetters(u8),
    Redrive(u8),
    Resolve(u8),
    RefuseLeft(u8),
    Decommission,
    Recount,
    Repin,
    Scale(u64),
    Repair,
    Spool(u8),
    Ignore(u8),
    Seconds(u32),
}

fn does() -> impl Strategy<Value = (Does, Way)> {
    let n = || 0..6u8;
    let does = prop_oneof![
        6 => (0..20u8, prop_oneof![4 => 0..6u8, 3 => Just(0u8)], any::<bool>())
            .prop_map(|(delivery, which, github)| Does::Event(delivery, which, github)),
        5 => prop_oneof![4 => Just(None), 1 => any::<bool>().prop_map(Some)].prop_map(Does::Provision),
        2 => any::<bool>().prop_map(Does::Waiting),
        4 => n().prop_map(Does::Claim),
        2 => n().prop_map(Does::Succeed),
        2 => n().prop_map(Does::TimeOut),
        1 => n().prop_map(Does::FailForGood),
        1 => Just(Does::Abandon),
        2 => (n(), any::<bool>()).prop_map(|(n, gives_up)| Does::Wake(n, gives_up)),
        2 => n().prop_map(Does::DeadLetters),
        2 => n().prop_map(Does::Redrive),
        2 => n().prop_map(Does::Resolve),
        1 => n().prop_map(Does::RefuseLeft),
        3 => Just(Does::Decommission),
        1 => Just(Does::Recount),
        1 => Just(Does::Repin),
        1 => (1..60u64).prop_map(Does::Scale),
        1 => Just(Does::Repair),
        1 => n().prop_map(Does::Spool),
        1 => n().prop_map(Does::Ignore),
        3 => (0..5_000u32).prop_map(Does::Seconds),
    ];
    let way = prop_oneof![
        4 => Just(Way::Clear),
        1 => Just(Way::AnswerLost),
        1 => Just(Way::Refused),
        1 => Just(Way::Overtaken),
    ];
    (does, way)
}

fn play(world: &mut World, does: Does, way: Way) {
    let id_of = action_id;
    match does {
        Does::Event(delivery, which, github) => {
            let provider = if github { "github" } else { "standard" };
            world.event(way, delivery, which, provider);
        }
        Does::Provision(fails) => world.provision(way, fails),
        Does::Waiting(fails) => world.waiting(way, fails),
        Does::Claim(n) => world.claim(way, &[id_of(n), id_of(n + 1)]),
        Does::Succeed(n) => world.answer(way, &id_of(n), &ActionEvent::HandlerOk),
        Does::TimeOut(n) => world.answer(way, &id_of(n), &ActionEvent::DeadlineExceeded),
        Does::FailForGood(n) => {
            let failed = ActionEvent::HandlerFailed {
                error_code: "NO".to_owned(),
                recoverable: false,
            };
            world.answer(way, &id_of(n), &failed);
        }
        Does::Abandon => world.give_up_all(way),
        Does::Wake(n, gives_up) => {
            let found = world
                .memory
                .load(&partition(), &keys_of([id_of(n)]))
                .actions
                .remove(&id_of(n))
                .filter(|action| action.state.in_flight());
            let Some(action) = found else { return };
            let due = if gives_up { Stuck::Escalate } else { Stuck::Nudge };
            let receipt_id = world.id();
            let stuck = [StuckAction {
                action,
                due,
                receipt_id,
            }];
            let woken = world.transact(way, &keys_of([id_of(n)]), |account, now| {
                Ok((wake(account, &stuck, now)?, ()))
            });
            woken.unwrap();
        }
        Does::DeadLetters(n) => {
            let body = json!({
                "action_id": id_of(n).as_str(), "account_id": "c", "template": "t", "parameters": {},
                "policy_hash": hash(0),
            });
            let (one, two, three) = (world.id(), world.id(), world.id());
            let of = Some(account_id());
            let letters = [
                DeadLetter::read("m-1", &body.to_string(), of.as_ref(), one),
                DeadLetter::read("m-2", &body.to_string(), of.as_ref(), two),
                DeadLetter::read("m-3", "no signal", of.as_ref(), three),
            ];
            let keys = keys_of(letters.iter().map(|letter| letter.action_id.clone()));
            let done = world.transact(way, &keys, |account, now| {
                Ok((record_dead_letters(account, LETTERS, &letters, now)?, ()))
            });
            done.unwrap();
        }
        Does::Redrive(n) => {
            let (id, receipt_id) = (id_of(n), world.id());
            let asked = Redrive {
                action_id: &id,
                signal: None,
                by: "ops",
                receipt_id,
            };
            let done = world.transact(way, &keys_of([id.clone()]), |account, now| {
                Ok(redrive(account, &asked, now)?)
            });
            done.unwrap();
        }
        Does::Resolve(n) => {
            let (id, receipt_id) = (id_of(n), world.id());
            let resolution = Resolution {
                action_id: &id,
                by: "ops",
                note: "by hand",
                receipt_id,
            };
            let done = world.transact(way, &resolve::keys(&id), |account, now| {
                Ok(resolve::resolve(account, &resolution, now)?)
            });
            done.unwrap();
        }
        Does::RefuseLeft(n) => {
            let signal = Signal {
                template: "t".to_owned(),
                ..Action::pending(id_of(n), "t", &hash(0), world.now).signal(&account_id())
            };
            let body = serde_json::to_string(&signal).unwrap();
            let receipt_id = world.id();
            let another = world.id();
            let left = [
                LeftSignal::read("m-1", &body, "it leaves".to_owned(), receipt_id),
                LeftSignal::read("m-2", &body, "it leaves".to_owned(), another),
            ];
            let done = world.transact(way, &keys_of([id_of(n)]), |account, now| {
                Ok((refuse_left(account, &account_id(), &left, now), ()))
            });
            done.unwrap();
        }
        Does::Decommission => world.decommission(way),
        Does::Recount => {
            let Some(read) = world.tenant() else { return };
            let unfinished: Vec<Action> = world
                .actions()
                .filter(|action| action.state.in_flight())
                .cloned()
                .collect();
            let keys = Keys::default();
            let counted = world.transact(way, &keys, |account, _| Ok(recount(account, &read, &unfinished)));
            let (_, wrong) = counted.unwrap();
            assert!(!wrong, "counters are never wrong");
        }
        Does::Repin => {
            let mut policy = NewPolicy {
                offer: offer("p"),
                compatibility_check: "compatible".to_owned(),
            };
            policy.offer.policy.hash = hash(world.ids);
            let receipt_id = world.id();
            let done = world.transact(way, &Keys::default(), |account, now| {
                Ok(repin(account, &policy, receipt_id, 1, now))
            });
            done.unwrap();
        }
        Does::Scale(wanted) => {
            let receipt_id = world.id();
            let costs = Costs {
                per_action: crate::scale::Usd::parse("1.0950").unwrap(),
                budget: crate::scale::Usd::parse("1000").unwrap(),
            };
            let done = world.transact(way, &Keys::default(), |account, now| {
                let set = |tenant: &Tenant| crate::scale::set(tenant, wanted, &costs);
                Ok(scale(account, set, receipt_id, 1, now))
            });
            done.unwrap();
        }
        Does::Repair => {
            let Some(found) = world.tenant() else { return };
            let made = [("queue", world.id())];
            let done = world.transact(way, &Keys::default(), |account, now| {
                Ok((repair(account, &found, &found.resources, &made, now), ()))
            });
            done.unwrap();
        }
        Does::Spool(n) => world.spool(way, n),
        Does::Ignore(n) => {
            let asked = asked(n, "ignored");
            let draft = Draft::new(world.id(), "c", ignored("a ping".to_owned(), &asked), world.now);
            let keys = Keys {
                delivery: Some(asked.key()),
                ..Keys::default()
            };
            let done = world.transact(way, &keys, |account, _| Ok(ignore(account, &asked, &draft)?));
            done.unwrap();
        }
        Does::Seconds(seconds) => world.now += SignedDuration::from_secs(i64::from(seconds)),
    }
}

fn without_policy() -> LookedUp {
    LookedUp {
        product: Some(SkuId::parse("s").unwrap()),
        ..LookedUp::default()
    }
}

fn purchase(delivery: u8, provider: &str, now: Timestamp) -> Task {
    Task::delivered(event(change(0)), asked(delivery, provider), now)
}

/// A plan whose policy comes late: the same delivery, posted again, is carried out.
#[test]
fn what_was_refused_is_decided_anew() {
    for way in [Way::Clear, Way::AnswerLost, Way::Refused, Way::Overtaken] {
        let mut world = World::new();
        let task = purchase(1, "github", world.now);
        world.apply_with(way, &task, &without_policy());
        let refused = world.delivery(&task.asked).unwrap();
        assert_eq!(
            (refused.status, refused.turned_away().unwrap().received_at),
            (422, world.now)
        );
        // Refused again for the same reason: nothing more is on record.
        let receipts = world.receipts().len();
        world.now += SignedDuration::from_secs(60);
        world.apply_with(Way::Clear, &purchase(1, "github", world.now), &without_policy());
        assert_eq!(world.delivery(&task.asked), Some(refused.clone()));
        assert_eq!(world.receipts().len(), receipts);
        world.apply(way, &purchase(1, "github", world.now));
        let saga = world.saga().expect("it is being provisioned");
        assert_eq!(saga.asked, task.asked);
        assert_eq!(saga.received_at, refused.turned_away().unwrap().received_at);
        play(&mut world, Does::Provision(None), Way::Clear);
        let done = world.delivery(&task.asked).unwrap();
        assert_eq!((done.status, &done.repeat), (200, &Repeat::Answered));
        assert!(done.receipt.contains("entitlement_active"), "{done:?}");
    }
}

/// A purchase without a time of its own that was ignored does not become the latest word by being posted again.
#[test]
fn what_was_ignored_keeps_its_place_among_the_others() {
    let mut world = World::new();
    world.apply(Way::Clear, &purchase(1, "standard", world.now));
    play(&mut world, Does::Provision(None), Way::Clear);
    world.now += SignedDuration::from_secs(10);
    world.apply(Way::Clear, &purchase(2, "standard", world.now));
    let ignored = world.delivery(&asked(2, "standard")).unwrap();
    assert!(
        ignored
            .turned_away()
            .is_some_and(|delivery| delivery.event.is_some())
    );
    world.now += SignedDuration::from_secs(10);
    world.event(Way::Clear, 3, 5, "standard");
    play(&mut world, Does::Decommission, Way::Clear);
    world.now += SignedDuration::from_secs(10);
    world.apply(Way::Clear, &purchase(2, "standard", world.now));
    assert_eq!(world.tenant().unwrap().lifecycle, Lifecycle::Decommissioned);
    // Posted as a delivery of its own it is a new purchase.
    world.apply(Way::Clear, &purchase(4, "standard", world.now));
    assert_eq!(world.tenant().unwrap().lifecycle, Lifecycle::Provisioning);
}

/// What waited and can't be carried out is kept as well: its sender has been told that it would be.
#[test]
fn what_waited_in_vain_can_be_tried_again() {
    for fails in [false, true] {
        let mut world = World::new();
        let renewal = Task::delivered(event(change(4)), asked(1, "github"), world.now);
        world.apply(Way::Clear, &purchase(2, "github", world.now));
        world.apply(Way::Clear, &renewal);
        assert_eq!(world.delivery(&renewal.asked).unwrap().repeat, Repeat::Answered);
        world.now += SignedDuration::from_hours(24 * 8);
        world.waiting(Way::Clear, fails);
        if !fails {
            assert!(world.tenant().unwrap().deferred.is_empty(), "it waits no more");
        }
        let kept = world.delivery(&renewal.asked).unwrap();
        assert_eq!(kept.status, 422, "{kept:?}");
        assert_eq!(kept.turned_away().unwrap().event.as_ref(), Some(&renewal.event));
    }
}

/// Two bodies under one id: the second is refused as soon as the first is taken up, whatever they ask for.
#[test]
fn of_two_bodies_under_one_id_one_is_carried_out() {
    let mut world = World::new();
    let first = purchase(1, "github", world.now);
    world.apply(Way::Clear, &first);
    assert!(world.saga().is_some());
    let keys = keys_of_delivery(&first.asked);
    let other = Task {
        asked: DeliveryRef {
            body_sha256: "11".to_owned(),
            ..first.asked.clone()
        },
        ..first.clone()
    };
    let read = world.memory.load(&partition(), &keys);
    let looked_up = LookedUp {
        offer: Some(offer("p")),
        ..without_policy()
    };
    let decided = |account: &Account, task: &Task| {
        apply_event(account, task, &looked_up, AROUND, Uuid::from_u128(99), world.now)
    };
    assert_eq!(
        decided(&read, &other).unwrap_err(),
        ApplyError::DeliveryReused {
            delivery_id: "d-1".to_owned()
        }
    );
    // Its repeat goes on with what is being made.
    assert_eq!(decided(&read, &first).unwrap().1, Applied::UnderWay);
    // Who read before the first was written, for another account: its write does not stand.
    let elsewhere = Account::unknown(&Partition::of(&AccountId::parse("other").unwrap()));
    let (plan, begun) = decided(&elsewhere, &other).unwrap();
    assert_eq!(begun, Applied::Begun);
    let now = world.now;
    let (_, stands) = world
        .memory
        .commit(&world.signer, &elsewhere, &plan, now)
        .unwrap();
    assert!(!stands, "both are carried out");
}

/// From a purchase to the archive, and bought again: what is on record of it, whatever gets in the way.
#[test]
fn a_life_leaves_the_same_receipts_whatever_gets_in_its_way() {
    use Does::{
        Abandon, Claim, DeadLetters, Decommission, Event, FailForGood, Provision, Redrive, RefuseLeft,
        Repair, Repin, Resolve, Scale, Seconds, Spool, Succeed, TimeOut, Wake,
    };
    let life = [
        (Event(1, 0, false), "active"),
        (Provision(Some(true)), "absent"),
        (Seconds(10), "absent"),
        (Event(2, 0, false), "provisioning"),
        (Provision(None), "active"),
        (Claim(0), "active"),
        (Succeed(0), "active"),
        (TimeOut(1), "active"),
        (Wake(1, true), "active"),
        (Redrive(1), "active"),
        (Abandon, "active"),
        (Resolve(1), "active"),
        (DeadLetters(4), "active"),
        (Claim(2), "active"),
        (FailForGood(2), "active"),
        (Spool(5), "active"),
        (Repin, "active"),
        (Repair, "active"),
        (Scale(1), "active"),
        (Seconds(10), "active"),
        // A plan with tables of its own, then the end.
        (Event(3, 1, false), "active"),
        (Provision(None), "active"),
        (Seconds(10), "active"),
        (Event(4, 5, false), "decommissioning"),
        (RefuseLeft(6), "decommissioning"),
    ];
    let ends = [
        (Decommission, "decommissioned"),
        (Seconds(10), "decommissioned"),
        (Event(5, 0, false), "provisioning"),
        (Provision(None), "active"),
    ];
    let mut told = BTreeSet::new();
    for way in [Way::Clear, Way::AnswerLost, Way::Refused, Way::Overtaken] {
        let mut world = World::new();
        let mut steps: Vec<(Does, &str)> = life.to_vec();
        if way == Way::Overtaken {
            // What was appended meanwhile is not in the archive: the next one has it.
            steps.push((Decommission, "decommissioning"));
        }
        steps.extend(ends);
        for (n, (does, lifecycle)) in steps.into_iter().enumerate() {
            let clear = matches!(does, Decommission) && lifecycle == "decommissioned";
            play(&mut world, does, if clear { Way::Clear } else { way });
            let stands = world.tenant().map_or("absent", |tenant| tenant.lifecycle.name());
            let first = n == 0 && stands == "provisioning";
            assert!(first || stands == lifecycle, "{way:?}: {stands} after {does:?}");
        }
        let receipts = world.receipts();
        let operations = receipts.iter().map(|receipt| receipt.payload.operation());
        let of_ours: Vec<&str> = operations.filter(|name| *name != "webhook_ignored").collect();
        told.insert(of_ours);
    }
    assert_eq!(told.len(), 1, "{told:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn an_account_is_whole_whatever_is_done_to_it(
        story in proptest::collection::vec(does(), 1..80),
    ) {
        let mut world = World::new();
        for (does, way) in story {
            play(&mut world, does, way);
        }
    }
}
