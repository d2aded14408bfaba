//! How many actions of a tenant may run at one time: what is kept of it, with the tenant.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Actions at one time of a tenant that nobody scaled.
pub const BASE_LIMIT: u64 = 10;

/// How far a tenant's governor is scaled. A new generation begins with none of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scale {
    /// Actions at one time, when it is not the base. The plans cap it wherever it is read.
    pub limit: Option<u64>,
    /// The base that an operator set, instead of [`BASE_LIMIT`].
    pub floor: Option<u64>,
    /// The raise that has to show its worth.
    pub trial: Option<Trial>,
    /// No raise before this time: the last one made things worse.
    pub rest_until: Option<Timestamp>,
    /// The limit of which it is on record that it can't be raised, though signals wait.
    pub exceeded: Option<u64>,
    /// Since when nothing is to do, as far as it was seen.
    pub idle: Option<Idle>,
    /// Since when half the limit would have done, as far as it was seen.
    pub quiet_since: Option<Timestamp>,
}

/// A raise that has to show its worth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The limit before.
    pub from: u64,
    /// Signals that waited then.
    pub lag: u64,
    /// When it was raised.
    pub at: Timestamp,
}

/// A time without anything to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// When it was first seen.
    pub since: Timestamp,
    /// Actions that had ended by then: another number later shows that it was interrupted.
    pub ended: u64,
}

impl Scale {
    /// Actions at one time while nothing asks for more.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.floor.unwrap_or(BASE_LIMIT)
    }

    /// Actions at one time, before the plans cap them.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.limit.unwrap_or_else(|| self.base())
    }

    pub(super) fn with_limit(self, limit: u64) -> Self {
        Self {
            limit: (limit != self.base()).then_some(limit),
            trial: None,
            exceeded: None,
            idle: None,
            quiet_since: None,
            ..self
        }
    }
}
