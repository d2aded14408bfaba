//! A stretch of time, and where in a ledger it begins.
//!
//! Timestamps never go back along a ledger, so a stretch of time is a run of neighbouring receipts, and its first one
//! is found in few reads however long the ledger is.

use std::fmt;

use domain::time::rfc3339;
use jiff::Timestamp;

/// A text that is no time.
#[derive(Debug, thiserror::Error)]
pub enum TimeError {
    #[error(
        "{text:?} is neither an RFC 3339 time with its offset, such as 2026-11-21T08:30:00Z, nor a date, such as 2026-11-21"
    )]
    Unreadable { text: String },
}

/// Reads an RFC 3339 instant, or a date for its first instant in UTC.
///
/// # Errors
/// [`TimeError`] repeats the text.
pub fn time(text: &str) -> Result<Timestamp, TimeError> {
    rfc3339(text)
        .or_else(|_| rfc3339(&format!("{text}T00:00:00Z")))
        .map_err(|_| TimeError::Unreadable {
            text: text.to_owned(),
        })
}

/// A range that holds no instant.
#[derive(Debug, thiserror::Error)]
#[error("--from {from} is not before --to {to}: nothing lies between them")]
pub struct EmptyRangeError {
    /// The first instant asked for.
    pub from: Timestamp,
    /// The instant behind the last one asked for.
    pub to: Timestamp,
}

/// From an instant up to, and without, another one; open where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
}

impl Range {
    /// Holds the two against each other.
    ///
    /// # Errors
    /// [`EmptyRangeError`] when `from` is not before `to`.
    pub fn new(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<Self, EmptyRangeError> {
        match (from, to) {
            (Some(from), Some(to)) if from >= to => Err(EmptyRangeError { from, to }),
            _ => Ok(Self { from, to }),
        }
    }

    /// The first instant, where there is one.
    pub fn from(&self) -> Option<Timestamp> {
        self.from
    }

    /// Whether it is open at both ends.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether `time` lies in it.
    pub fn holds(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && !self.is_over(time)
    }

    /// Whether `time`, and with it everything later, lies behind it.
    pub fn is_over(&self, time: Timestamp) -> bool {
        self.to.is_some_and(|to| to <= time)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (Some(from), Some(to)) => write!(f, "from {from} to before {to}"),
            (Some(from), None) => write!(f, "from {from} on"),
            (None, Some(to)) => write!(f, "before {to}"),
            (None, None) => f.write_str("of all times"),
        }
    }
}

/// The search for a ledger's first receipt at or after an instant. It says where to read, and is told what stands
/// there.
#[derive(Clone, Copy, Debug)]
pub struct Bisect {
    from: Timestamp,
    /// Everything before this place is too early.
    low: u64,
    /// Everything from this place on is late enough, or not there.
    high: u64,
    /// The longest page so far.
    reach: u64,
}

impl Bisect {
    /// A search among the first `size` receipts.
    pub fn new(from: Timestamp, size: u64) -> Self {
        Self {
            from,
            low: 0,
            high: size,
            reach: 0,
        }
    }

    /// The place to read a page from next; `None` once [`Bisect::found`] is the answer.
    pub fn probe(&self) -> Option<u64> {
        let open = self.high.saturating_sub(self.low);
        // What one page shows whole need not be halved any further.
        let ahead = if open <= self.reach { 0 } else { open / 2 };
        (open > 0).then(|| self.low.saturating_add(ahead))
    }

    /// Takes in the page at `probe`: the timestamps there, in order and as many as came.
    pub fn told(&mut self, probe: u64, page: &[Timestamp]) {
        self.reach = self.reach.max(page.len() as u64);
        let early = page.partition_point(|time| *time < self.from);
        let first = probe.saturating_add(early as u64);
        if early > 0 {
            self.low = self.low.max(first);
        }
        // A page that ends too early leaves open what follows it, but one that is empty has nothing behind it.
        if early < page.len() || page.is_empty() {
            self.high = self.high.min(first);
        }
    }

    /// The place of the first receipt, or the ledger's size if there is none.
    pub fn found(&self) -> u64 {
        self.low.min(self.high)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[track_caller]
    fn check_time(text: &str, expected: &str) {
        assert_eq!(time(text).unwrap().to_string(), expected, "{text}");
    }

    #[track_caller]
    fn check_no_time(text: &str) {
        let error = time(text).expect_err("the text is no time").to_string();
        assert!(error.contains("neither") && error.contains(text), "{error}");
    }

    #[test]
    fn times_are_instants_or_dates() {
        check_time("2026-11-21", "2026-11-21T00:00:00Z");
        check_time("2024-02-29", "2024-02-29T00:00:00Z");
        check_time("2026-11-21T08:30:00Z", "2026-11-21T08:30:00Z");
        check_time("2026-11-21T08:30:00.123+02:00", "2026-11-21T06:30:00.123Z");
        check_time("2026-11-21T23:30:00-01:00", "2026-11-22T00:30:00Z");
        // Behind everything.
        check_time("9999-12-31", &Timestamp::MAX.to_string());
        for text in [
            "",
            "now",
            "2026-11-21T08:30:00",
            "2026-11-31",
            "2026-02-29",
            "2026-13-01",
            "21.11.2026",
            "2026-11-21 ",
            "1763712000",
            "2026-11-21T25:00:00Z",
            "2026-11",
            "20261121T083000Z",
            "2026-11-21T08:30:00+25:00",
        ] {
            check_no_time(text);
        }
    }

    #[test]
    fn ranges_have_an_exclusive_end() {
        let range = Range::new(Some(second(10)), Some(second(20))).unwrap();
        for (at, holds, over) in [
            (9, false, false),
            (10, true, false),
            (19, true, false),
            (20, false, true),
        ] {
            assert_eq!(
                (range.holds(second(at)), range.is_over(second(at))),
                (holds, over),
                "{at}"
            );
        }
        assert!(Range::default().is_everything() && Range::default().holds(second(0)));
        assert!(!Range::new(None, Some(second(5))).unwrap().holds(second(5)));
        assert!(Range::new(Some(second(5)), None).unwrap().holds(second(5)));
        for from in [20, 21] {
            let error = Range::new(Some(second(from)), Some(second(20))).expect_err("nothing lies between");
            assert!(
                error
                    .to_string()
                    .contains("is not before --to 1970-01-01T00:00:20Z"),
                "{error}"
            );
        }
    }

    /// Finds the place in a ledger of these times, with pages of at most `page` receipts; counts the reads.
    fn find(times: &[Timestamp], size: u64, from: Timestamp, page: usize) -> (u64, u32) {
        let mut search = Bisect::new(from, size);
        let mut reads = 0;
        while let Some(probe) = search.probe() {
            let start = usize::try_from(probe).unwrap().min(times.len());
            let end = (start + page).min(times.len());
            search.told(probe, &times[start..end]);
            reads += 1;
            assert!(reads <= 64, "the search does not end");
        }
        (search.found(), reads)
    }

    #[track_caller]
    fn check_find(times: &[i64], from: i64, expected: u64) {
        let times: Vec<_> = times.iter().copied().map(second).collect();
        for page in 1..=times.len() + 1 {
            assert_eq!(
                find(&times, times.len() as u64, second(from), page).0,
                expected,
                "pages of {page}"
            );
        }
    }

    #[test]
    fn the_first_receipt_is_found() {
        check_find(&[], 5, 0);
        check_find(&[5], 4, 0);
        check_find(&[5], 5, 0);
        check_find(&[5], 6, 1);
        check_find(&[1, 2, 2, 2, 2, 2, 3], 2, 1);
        check_find(&[1, 2, 2, 2, 2, 2, 3], 3, 6);
        check_find(&[7; 9], 7, 0);
        check_find(&[7; 9], 8, 9);
    }

    #[test]
    fn a_long_ledger_takes_few_reads() {
        let times: Vec<_> = (0..1_000_000).map(second).collect();
        for from in [0, 1, 499_999, 999_999, 2_000_000] {
            let (found, reads) = find(&times, 1_000_000, second(from), 1500);
            assert_eq!(found, u64::try_from(from).unwrap().min(1_000_000));
            assert!(reads <= 12, "{from}: {reads} reads");
        }
        assert!(find(&times, 1_000_000, second(123_456), 1).1 <= 21);
    }

    proptest! {
        /// As a scan finds it, whatever the pages; also where the table holds fewer receipts than its head says, or
        /// more.
        #[test]
        fn searching_is_scanning(
            mut times in prop::collection::vec(0_i64..20, 0..40), from in -1_i64..21, page in 1_usize..8, off in -3_i64..4
        ) {
            times.sort_unstable();
            let times: Vec<_> = times.into_iter().map(second).collect();
            let size = (times.len() as i64 + off).max(0) as u64;
            let scanned = times.iter().position(|time| *time >= second(from)).unwrap_or(times.len()) as u64;
            prop_assert_eq!(find(&times, size, second(from), page).0, scanned.min(size));
        }

        /// Also where times go back, which only a broken ledger's do, the search ends inside of the ledger.
        #[test]
        fn disorder_does_not_trap_the_search(
            times in prop::collection::vec(0_i64..20, 0..40), from in -1_i64..21, page in 1_usize..8
        ) {
            let times: Vec<_> = times.into_iter().map(second).collect();
            prop_assert!(find(&times, times.len() as u64, second(from), page).0 <= times.len() as u64);
        }
    }
}
