//! How fast a tenant's queue is fed to the governor.

/// How fast a tenant's queue is fed to the governor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pace {
    /// Most signals of one batch.
    pub batch_size: i32,
    /// Most batches at one time.
    pub maximum_concurrency: i32,
}

impl Pace {
    /// Most signals of any batch: SQS hands out no more at a time.
    pub const MOST: u64 = 10;

    /// The pace that hands out no more signals than can run at one time, except for a tenant with one place: two is the
    /// least concurrency that Lambda allows. Places that are left over are filled by governors that already run (ADR 17).
    #[must_use]
    pub fn of(concurrent_actions: u64) -> Self {
        let concurrency = concurrent_actions.div_ceil(Self::MOST).clamp(2, 1000);
        let batch = (concurrent_actions / concurrency).clamp(1, Self::MOST);
        Self {
            batch_size: i32::try_from(batch).unwrap_or(1),
            maximum_concurrency: i32::try_from(concurrency).unwrap_or(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_limit() {
        let pace = |limit| {
            let pace = Pace::of(limit);
            (pace.batch_size, pace.maximum_concurrency)
        };
        assert_eq!(
            [0, 1, 2, 3, 10].map(pace),
            [(1, 2), (1, 2), (1, 2), (1, 2), (5, 2)]
        );
        assert_eq!([15, 20, 25].map(pace), [(7, 2), (10, 2), (8, 3)]);
        assert_eq!([9_999, u64::MAX].map(pace), [(9, 1000), (10, 1000)]);
        for limit in 2..=10_000 {
            let (batch, concurrency) = pace(limit);
            let fed = u64::try_from(batch * concurrency).unwrap();
            assert!(fed <= limit, "{limit}: {fed} are fed");
        }
    }
}
