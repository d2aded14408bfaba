//! What a customer holds: one entitlement for each agreement, and the order of what marketplaces say about it.

pub mod decide;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
pub use policy::{Isolation, Quota};
use serde::{Deserialize, Serialize};

use crate::account::{EntitlementId, PlanType, SkuId};

/// Most live entitlements of one account: they stand in one item of at most 400 KB.
pub const MAX_ENTITLEMENTS: usize = 50;
/// How long an entitlement that expired is kept for a renewal that is late, in seconds: as long as senders repeat one.
pub const EXPIRY_GRACE_SECONDS: i64 = 7 * 24 * 3600;
/// Most cancellations remembered for one account, the oldest go first.
pub const MAX_TOMBSTONES: usize = 200;

/// How exactly a sender dates what happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// As it is written: the time of day counts.
    Instant,
    /// To the day, in UTC: the time of day says nothing.
    Day,
}

/// When something happened to an entitlement, as its sender tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventOrder {
    /// The sender's own count, where it keeps one.
    pub version: Option<u64>,
    /// Effective time by the sender's clock; the time of arrival where it tells none.
    pub at: Timestamp,
    /// How much of `at` counts.
    pub granularity: Granularity,
    /// When it arrived first: the order of what senders cannot order.
    pub arrived_at: Timestamp,
}

impl EventOrder {
    /// What happened at this instant, of a sender that keeps no count.
    #[must_use]
    pub fn at(at: Timestamp) -> Self {
        Self {
            version: None,
            at,
            granularity: Granularity::Instant,
            arrived_at: at,
        }
    }

    /// Where this stands beside another event: by version where both have one, else by time, and by that no finer than both
    /// are dated. `Equal` is what senders cannot order: then the order of arrival counts.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        let day = |order: &Self| order.at.to_zoned(TimeZone::UTC).date();
        match (self.version, other.version) {
            (Some(ours), Some(theirs)) => ours.cmp(&theirs),
            _ if [self.granularity, other.granularity].contains(&Granularity::Day) => {
                day(self).cmp(&day(other))
            }
            _ => self.at.cmp(&other.at),
        }
    }

    /// Whether this came before `other`. Of two events at one time the one that arrived later counts; of two with one
    /// version the first.
    #[must_use]
    pub fn is_stale(&self, other: &Self) -> bool {
        match self.compare(other) {
            Ordering::Less => true,
            Ordering::Equal if self.version.is_some() && other.version.is_some() => true,
            Ordering::Equal => self.arrived_at < other.arrived_at,
            Ordering::Greater => false,
        }
    }

    /// The later of the two. Where neither is, the one that is dated more exactly, so that what comes next is held against it.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        let last = match (other.compare(&self), self.granularity) {
            (Ordering::Greater, _) => return other,
            (Ordering::Less, _) => return self,
            (Ordering::Equal, Granularity::Day) => other,
            (Ordering::Equal, Granularity::Instant) => self,
        };
        Self {
            version: self.version.or(other.version),
            arrived_at: self.arrived_at.max(other.arrived_at),
            ..last
        }
    }

    /// Whether this came after `other` beyond doubt.
    #[must_use]
    pub fn is_after(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Greater
    }

    /// Where this stands in a queue that is carried out in order: by day, and within one by the instant, which is that of
    /// arrival where the sender dates to the day. Versions of different entitlements say nothing to each other, and need not.
    #[must_use]
    pub fn place(&self) -> (Option<u64>, Date, Timestamp, Timestamp) {
        let instant = match self.granularity {
            Granularity::Instant => self.at,
            Granularity::Day => self.arrived_at,
        };
        let day = self.at.to_zoned(TimeZone::UTC).date();
        (self.version, day, instant, self.arrived_at)
    }
}

/// Whether an entitlement's signals may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// They may.
    Active,
    /// They are refused; everything is kept.
    Suspended,
}

impl Standing {
    /// The name used in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// Which enforcer decides for an entitlement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyPin {
    /// Semantic version of the policy.
    pub version: String,
    /// SHA-256 of the enforcer's bytes, lower hex.
    pub hash: String,
}

/// What a plan is here: its policy, and what that allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub sku_id: SkuId,
    pub plan_type: PlanType,
    /// The enforcer in force for it.
    pub policy: PolicyPin,
    pub quota: Quota,
    /// Whose tables it asks for.
    pub isolation: Isolation,
}

/// One agreement in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entitlement {
    pub sku_id: SkuId,
    pub plan_type: PlanType,
    pub region: String,
    pub standing: Standing,
    /// The enforcer that decides.
    pub policy: PolicyPin,
    pub quota: Quota,
    /// Actions claimed and not final.
    pub in_flight: u64,
    /// UTC month (`YYYY-MM`) that `month_actions` counts.
    pub month: String,
    /// Actions executed in `month`.
    pub month_actions: u64,
    /// When a claim last took the last of its free places. While this is recent its signals wait for one.
    pub full_at: Option<Timestamp>,
    /// The last event of all.
    pub order: EventOrder,
    /// The last event about its plan. A plan and a suspension have nothing to do with each other, so an event about one
    /// does not make an older one about the other late.
    pub plan_order: EventOrder,
    /// The last event about its standing.
    pub standing_order: EventOrder,
    /// The last event about when it ends.
    pub term_order: EventOrder,
    pub granted_at: Timestamp,
    /// When it ends unless it is renewed, as the marketplace said. From then on its signals are refused.
    pub expires_at: Option<Timestamp>,
}

/// The UTC month of an instant, `YYYY-MM`.
#[must_use]
pub fn month_of(now: Timestamp) -> String {
    now.strftime("%Y-%m").to_string()
}

impl Entitlement {
    /// An entitlement to what is offered.
    #[must_use]
    pub fn granted(
        offer: &Offer,
        region: &str,
        expires_at: Option<Timestamp>,
        order: EventOrder,
        now: Timestamp,
    ) -> Self {
        Self {
            sku_id: offer.sku_id.clone(),
            plan_type: offer.plan_type.clone(),
            region: region.to_owned(),
            standing: Standing::Active,
            policy: offer.policy.clone(),
            quota: offer.quota,
            in_flight: 0,
            month: month_of(now),
            month_actions: 0,
            full_at: None,
            order,
            plan_order: order,
            standing_order: order,
            term_order: order,
            granted_at: now,
            expires_at,
        }
    }

    /// The entitlement with what it had used when it was cancelled before.
    #[must_use]
    pub fn with_usage(self, usage: Option<Usage>) -> Self {
        match usage {
            Some(usage) => Self {
                in_flight: usage.in_flight,
                month: usage.month,
                month_actions: usage.month_actions,
                ..self
            },
            None => self,
        }
    }

    /// What it has used.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            in_flight: self.in_flight,
            month: self.month.clone(),
            month_actions: self.month_actions,
        }
    }

    /// The entitlement with another plan of its product. What was used of the month stays used.
    #[must_use]
    pub fn changed(&self, offer: &Offer, order: EventOrder) -> Self {
        Self {
            plan_type: offer.plan_type.clone(),
            policy: offer.policy.clone(),
            quota: offer.quota,
            order: self.order.later(order),
            plan_order: order,
            ..self.clone()
        }
    }

    /// Whether its time is over: its signals are refused.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// When it ended, if that is so long ago that no renewal is to be expected.
    #[must_use]
    pub fn over(&self, now: Timestamp) -> Option<Timestamp> {
        let grace = SignedDuration::from_secs(EXPIRY_GRACE_SECONDS);
        self.expires_at.filter(|end| now.duration_since(*end) >= grace)
    }

    /// How many actions are left this month.
    #[must_use]
    pub fn monthly_left(&self, now: Timestamp) -> u64 {
        let used = if self.month == month_of(now) {
            self.month_actions
        } else {
            0
        };
        self.quota.monthly_actions.saturating_sub(used)
    }

    /// How many actions may start now.
    #[must_use]
    pub fn concurrent_left(&self) -> u64 {
        self.quota.concurrent_actions.saturating_sub(self.in_flight)
    }

    /// The entitlement after `count` actions were claimed.
    #[must_use]
    pub fn claimed(&self, count: u64, now: Timestamp) -> Self {
        let month = month_of(now);
        let used = if self.month == month {
            self.month_actions
        } else {
            0
        };
        let in_flight = self.in_flight.saturating_add(count);
        let full = in_flight >= self.quota.concurrent_actions;
        Self {
            in_flight,
            month,
            month_actions: used.saturating_add(count),
            full_at: if full { Some(now) } else { self.full_at },
            ..self.clone()
        }
    }
}

/// What an entitlement has used: it is no less used when it is cancelled and bought again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Actions claimed and not final.
    pub in_flight: u64,
    /// UTC month (`YYYY-MM`) that `month_actions` counts.
    pub month: String,
    /// Actions executed in `month`.
    pub month_actions: u64,
}

/// An entitlement that was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tombstone {
    order: EventOrder,
    usage: Usage,
}

/// Cancellations that later purchases are held against.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tombstones {
    /// The last cancellation of each entitlement that is not live.
    of: BTreeMap<EntitlementId, Tombstone>,
    /// A cancellation that named no entitlement while there was none.
    all: Option<EventOrder>,
}

impl Tombstones {
    /// The last cancellation that concerns an entitlement.
    #[must_use]
    pub fn last(&self, id: &EntitlementId) -> Option<&EventOrder> {
        let one = self.of.get(id).map(|tombstone| &tombstone.order);
        match (one, &self.all) {
            (Some(one), Some(all)) if all.is_after(one) => Some(all),
            (Some(one), _) => Some(one),
            (None, all) => all.as_ref(),
        }
    }

    /// Remembers a cancellation, and what had been used until then.
    pub fn bury(&mut self, id: &EntitlementId, order: EventOrder, usage: Option<Usage>) {
        let known = self.of.get(id);
        let last = known.map_or(order, |known| order.later(known.order));
        let usage = usage
            .or_else(|| known.map(|known| known.usage.clone()))
            .unwrap_or_default();
        self.of.insert(id.clone(), Tombstone { order: last, usage });
        while self.of.len() > MAX_TOMBSTONES {
            let oldest = self
                .of
                .iter()
                .min_by_key(|(_, known)| known.order.at)
                .map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            self.of.remove(&oldest);
        }
    }

    /// Remembers a cancellation that named no entitlement. A version counts the changes of one entitlement only, so it says
    /// nothing here.
    pub fn bury_all(&mut self, order: EventOrder) {
        let order = EventOrder {
            version: None,
            ..order
        };
        self.all = Some(self.all.map_or(order, |known| order.later(known)));
    }

    /// Forgets the cancellation of an entitlement that is granted again, and gives what it had used.
    pub fn raise(&mut self, id: &EntitlementId) -> Option<Usage> {
        self.of.remove(id).map(|tombstone| tombstone.usage)
    }

    /// An action of a cancelled entitlement became final.
    pub fn released(&mut self, id: &EntitlementId) {
        if let Some(tombstone) = self.of.get_mut(id) {
            tombstone.usage.in_flight = tombstone.usage.in_flight.saturating_sub(1);
        }
    }

    /// No action of a cancelled entitlement is in flight any more.
    pub fn none_in_flight(&mut self) {
        for tombstone in self.of.values_mut() {
            tombstone.usage.in_flight = 0;
        }
    }

    /// All that is remembered: what was cancelled, `None` for a cancellation that named no entitlement, and when.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&EntitlementId>, &EventOrder)> {
        let one = self.of.iter().map(|(id, tombstone)| (Some(id), &tombstone.order));
        one.chain(self.all.iter().map(|order| (None, order)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(version: Option<u64>, second: i64) -> EventOrder {
        EventOrder {
            version,
            ..EventOrder::at(Timestamp::from_second(second).unwrap())
        }
    }

    fn dated(day: &str) -> EventOrder {
        EventOrder {
            granularity: Granularity::Day,
            ..EventOrder::at(format!("{day}T00:00:00Z").parse().unwrap())
        }
    }

    #[track_caller]
    fn check(new: EventOrder, known: EventOrder, stale: bool, after: bool) {
        assert_eq!(
            (new.is_stale(&known), new.is_after(&known)),
            (stale, after),
            "{new:?} {known:?}"
        );
    }

    #[test]
    fn versions_before_times_and_ties() {
        check(order(Some(2), 1), order(Some(1), 9), false, true);
        check(order(Some(1), 9), order(Some(2), 1), true, false);
        check(order(Some(2), 9), order(Some(2), 1), true, false);
        check(order(None, 5), order(Some(9), 4), false, true);
        check(order(None, 4), order(None, 5), true, false);
        // What the sender's clock cannot order, arrival orders.
        check(order(None, 5), order(None, 5), false, false);
    }

    #[test]
    fn dates_are_compared_no_finer_than_to_the_day() {
        let at = |text: &str| EventOrder::at(text.parse().unwrap());
        let (monday, tuesday) = (dated("2026-11-23"), dated("2026-11-24"));
        check(monday, tuesday, true, false);
        check(tuesday, monday, false, true);
        check(monday, monday, false, false);
        for instant in [at("2026-11-23T00:00:00Z"), at("2026-11-23T23:59:59.999Z")] {
            let arrived = |order: EventOrder, hour: i64| EventOrder {
                arrived_at: monday.at + SignedDuration::from_hours(hour),
                ..order
            };
            check(arrived(monday, 2), arrived(instant, 1), false, false);
            check(arrived(instant, 2), arrived(monday, 1), false, false);
            // Of what arrived first and is decided anew the other is still the later one.
            check(arrived(monday, 1), arrived(instant, 2), true, false);
            check(arrived(instant, 1), arrived(monday, 2), true, false);
            check(instant, tuesday, true, false);
            check(tuesday, instant, false, true);
            let exact = |order: EventOrder| (order.granularity, order.at);
            assert_eq!(exact(monday.later(instant)), exact(instant));
            assert_eq!(exact(instant.later(monday)), exact(instant));
        }
        let counted = |version| EventOrder {
            version: Some(version),
            ..monday
        };
        check(counted(2), counted(1), false, true);
        check(counted(1), counted(1), true, false);
    }

    #[test]
    fn tombstones_keep_the_latest_and_are_bounded() {
        let id = |n: usize| EntitlementId::parse(format!("e-{n}")).unwrap();
        let used = Usage {
            in_flight: 2,
            month: "2026-01".to_owned(),
            month_actions: 7,
        };
        let mut tombstones = Tombstones::default();
        tombstones.bury(&id(0), order(None, 5), Some(used.clone()));
        tombstones.bury(&id(0), order(None, 4), None);
        assert_eq!(tombstones.last(&id(0)), Some(&order(None, 5)));
        assert_eq!(tombstones.last(&id(1)), None);
        tombstones.bury_all(order(Some(9), 7));
        assert_eq!(tombstones.last(&id(0)), Some(&order(None, 7)));
        assert_eq!(tombstones.last(&id(1)), Some(&order(None, 7)));
        tombstones.released(&id(0));
        assert_eq!(tombstones.raise(&id(0)), Some(Usage { in_flight: 1, ..used }));
        assert_eq!(tombstones.raise(&id(0)), None);
        let many = i64::try_from(MAX_TOMBSTONES).unwrap() + 3;
        for second in 100..100 + many {
            tombstones.bury(&id(usize::try_from(second).unwrap()), order(None, second), None);
        }
        assert_eq!(tombstones.of.len(), MAX_TOMBSTONES);
        assert!(tombstones.of.contains_key(&id(103)) && !tombstones.of.contains_key(&id(102)));
    }
}
