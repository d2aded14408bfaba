//! Times from outside, as RFC 3339 writes them, and what two of their years mean.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A text that is no `date-time` of RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a date and time of RFC 3339, such as 2026-01-31T12:00:00Z or 2026-01-31T12:00:00.5+01:00")]
pub struct TimeError;

/// Reads a `date-time` of RFC 3339, section 5.6, and no other form of ISO 8601.
///
/// As the RFC has it, `t` and `z` may be lower case, a fraction has any number of digits (those after the ninth are cut
/// off), and the second may be 60 where a leap second can be: at 23:59 UTC on the last day of a month. A leap second
/// counts as the last nanosecond of its day, and the hours of year 9999 that no [`Timestamp`] reaches count as
/// [`Timestamp::MAX`].
///
/// # Errors
/// [`TimeError`] when the text is anything else.
pub fn rfc3339(text: &str) -> Result<Timestamp, TimeError> {
    Reader(text.as_bytes()).date_time().ok_or(TimeError)
}

/// When something happens, as far as its sender says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatedTime {
    /// The sender has no time for it: year 1 or before, where the clocks of several platforms begin.
    Unset,
    At(Timestamp),
    /// It does not happen: year 9999, where those clocks end.
    Never,
}

impl From<Timestamp> for StatedTime {
    fn from(at: Timestamp) -> Self {
        match TimeZone::UTC.to_datetime(at).year() {
            ..=1 => Self::Unset,
            9999.. => Self::Never,
            _ => Self::At(at),
        }
    }
}

impl StatedTime {
    /// The time, where there is one.
    #[must_use]
    pub fn at(self) -> Option<Timestamp> {
        match self {
            Self::At(at) => Some(at),
            Self::Unset | Self::Never => None,
        }
    }

    /// Itself, or what `other` says where this is not set.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match self {
            Self::Unset => other,
            Self::At(_) | Self::Never => self,
        }
    }
}

/// What is left of the text.
struct Reader<'t>(&'t [u8]);

impl Reader<'_> {
    fn date_time(mut self) -> Option<Timestamp> {
        let year = self.digits(4)?;
        self.sign(b'-')?;
        let month = self.two_digits()?;
        self.sign(b'-')?;
        let date = Date::new(year, month, self.two_digits()?).ok()?;
        self.sign(b'T')?;
        let hour = self.two_digits()?;
        self.sign(b':')?;
        let minute = self.two_digits()?;
        self.sign(b':')?;
        let second = self.two_digits()?;
        let nanosecond = self.fraction()?;
        let offset = self.offset()?;
        if !self.0.is_empty() {
            return None;
        }
        let is_leap = second == 60;
        let time = Time::new(hour, minute, if is_leap { 59 } else { second }, nanosecond).ok()?;
        // At the end of year 9999 there is nothing later to be off to.
        let utc = DateTime::from_parts(date, time).saturating_sub(offset);
        let utc = if is_leap { leap_second(utc)? } else { utc };
        Some(TimeZone::UTC.to_timestamp(utc).unwrap_or(Timestamp::MAX))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// One sign of the grammar, whose letters have no case.
    fn sign(&mut self, expected: u8) -> Option<()> {
        self.byte()?.eq_ignore_ascii_case(&expected).then_some(())
    }

    fn digits(&mut self, count: usize) -> Option<i16> {
        (0..count).try_fold(0, |number, _| {
            let byte = self.byte().filter(u8::is_ascii_digit)?;
            Some(number * 10 + i16::from(byte - b'0'))
        })
    }

    fn two_digits(&mut self) -> Option<i8> {
        self.digits(2)?.try_into().ok()
    }

    /// `time-secfrac`, in nanoseconds; 0 where there is none.
    fn fraction(&mut self) -> Option<i32> {
        let Some(digits) = self.0.strip_prefix(b".") else {
            return Some(0);
        };
        let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.0 = digits.get(count..)?;
        let kept = digits.get(..count).filter(|digits| !digits.is_empty())?;
        let zeros = std::iter::repeat(&b'0');
        Some(
            kept.iter()
                .chain(zeros)
                .take(9)
                .fold(0, |number, digit| number * 10 + i32::from(digit - b'0')),
        )
    }

    /// `time-offset`: how far local time is ahead of UTC.
    fn offset(&mut self) -> Option<SignedDuration> {
        let sign = match self.byte()? {
            b'Z' | b'z' => return Some(SignedDuration::ZERO),
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let hours = self.two_digits().filter(|hours| *hours < 24)?;
        self.sign(b':')?;
        let minutes = self.two_digits().filter(|minutes| *minutes < 60)?;
        Some(SignedDuration::from_mins(
            sign * (i64::from(hours) * 60 + i64::from(minutes)),
        ))
    }
}

/// A leap second, given the second before it in UTC, where one can be.
fn leap_second(before: DateTime) -> Option<DateTime> {
    let can_be = (before.day(), before.hour(), before.minute()) == (before.days_in_month(), 23, 59);
    can_be.then(|| before.date().at(23, 59, 59, 999_999_999))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(
            rfc3339(text).map(|at| at.to_string()),
            Ok(expected.to_owned()),
            "{text}"
        );
    }

    #[test]
    fn every_form_of_the_rfc() {
        // The examples of section 5.8.
        check("1985-04-12T23:20:50.52Z", "1985-04-12T23:20:50.52Z");
        check("1996-12-19T16:39:57-08:00", "1996-12-20T00:39:57Z");
        check("1990-12-31T23:59:60Z", "1990-12-31T23:59:59.999999999Z");
        check("1990-12-31T15:59:60-08:00", "1990-12-31T23:59:59.999999999Z");
        check("1937-01-01T12:00:27.87+00:20", "1937-01-01T11:40:27.87Z");
        // Letters have no case, and -00:00 is UTC.
        check("2026-01-31t12:00:00z", "2026-01-31T12:00:00Z");
        check("2026-01-31T12:00:00-00:00", "2026-01-31T12:00:00Z");
        check("2026-01-31T12:00:00+23:59", "2026-01-30T12:01:00Z");
        // A fraction of any length; what a nanosecond cannot say is cut off.
        check("2026-01-31T12:00:00.0Z", "2026-01-31T12:00:00Z");
        check(
            "2026-01-31T12:00:00.1234567891Z",
            "2026-01-31T12:00:00.123456789Z",
        );
        check(
            &format!("2026-01-31T12:00:00.{}Z", "9".repeat(1000)),
            "2026-01-31T12:00:00.999999999Z",
        );
        // Leap seconds are UTC's, and stand in their day.
        check("2017-01-01T08:59:60.7+09:00", "2016-12-31T23:59:59.999999999Z");
        check("2015-06-30T23:59:60z", "2015-06-30T23:59:59.999999999Z");
        // Leap years.
        check("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z");
        check("2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z");
        // The ends of what four digits can say.
        check("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z");
        check("0000-01-01T00:00:00+01:00", "-000001-12-31T23:00:00Z");
        for end in [
            "9999-12-31T23:59:59Z",
            "9999-12-31T23:59:59.9999999Z",
            "9999-12-31T23:59:60-23:59",
        ] {
            assert_eq!(rfc3339(end), Ok(Timestamp::MAX), "{end}");
        }
    }

    #[test]
    fn nothing_else() {
        for text in [
            "",
            "now",
            "2026-01-31",
            "12:00:00Z",
            "20260131T120000Z",
            "2026-01-31T120000Z",
            "2026-01-31T12:00Z",
            "2026-01-31T12Z",
            "2026-01-31T12:00:00",
            "2026-01-31 12:00:00Z",
            "2026-01-31_12:00:00Z",
            "2026-01-31T12:00:00,5Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.5",
            "2026-01-31T12:00:00. 5Z",
            "2026-01-31T12:00:00+25:00",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00+01:60",
            "2026-01-31T12:00:00+0100",
            "2026-01-31T12:00:00+01",
            "2026-01-31T12:00:00+01:00:00",
            "2026-01-31T12:00:00\u{2212}01:00",
            "2026-01-31T12:00:00Z[UTC]",
            "2026-01-31T12:00:00+01:00[Europe/Paris]",
            "2026-01-31T12:00:00ZZ",
            "2026-01-31T12:00:00Z ",
            " 2026-01-31T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:61Z",
            "2026-01-31T12:00:60Z",
            "2026-01-30T23:59:60Z",
            "2016-12-31T23:59:60+09:00",
            "2026-00-31T12:00:00Z",
            "2026-13-31T12:00:00Z",
            "2026-01-00T12:00:00Z",
            "2026-02-29T12:00:00Z",
            "1900-02-29T12:00:00Z",
            "2026-1-31T12:00:00Z",
            "26-01-31T12:00:00Z",
            "02026-01-31T12:00:00Z",
            "-0001-01-31T12:00:00Z",
            "-000001-01-31T12:00:00Z",
            "+002026-01-31T12:00:00Z",
            "2026-W05-6T12:00:00Z",
            "2026-031T12:00:00Z",
            "2026-01-31T12:00:00.\u{0665}Z",
            "1769860800",
        ] {
            assert_eq!(rfc3339(text), Err(TimeError), "{text}");
        }
    }

    #[test]
    fn two_years_are_no_times() {
        for (text, expected) in [
            ("0000-01-01T00:00:00Z", StatedTime::Unset),
            ("0001-01-01T00:00:00Z", StatedTime::Unset),
            ("0001-01-01T00:00:00+14:00", StatedTime::Unset),
            ("0001-12-31T23:59:59Z", StatedTime::Unset),
            ("9999-01-01T00:00:00Z", StatedTime::Never),
            ("9999-12-31T23:59:59.9999999Z", StatedTime::Never),
            ("9999-12-31T00:00:00-12:00", StatedTime::Never),
        ] {
            assert_eq!(rfc3339(text).map(StatedTime::from), Ok(expected), "{text}");
        }
        for text in [
            "0002-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "9998-12-31T23:59:59Z",
        ] {
            let at = rfc3339(text).unwrap();
            assert_eq!(StatedTime::from(at), StatedTime::At(at), "{text}");
        }
    }

    proptest! {
        /// What is taken is a time that the library knows as well, and the same one; leap seconds and the last hours of
        /// year 9999 apart, which it has no instants for.
        #[test]
        fn as_the_library_reads_it(
            date in "(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]", time in "[0-2][0-9]:[0-6][0-9]:[0-5][0-9](\\.[0-9]{1,9})?",
            offset in "Z|z|[+-][0-2][0-9]:[0-6][0-9]"
        ) {
            let text = format!("{date}T{time}{offset}");
            let theirs: Option<Timestamp> = text.parse().ok();
            let ours = rfc3339(&text).ok();
            // It takes offsets of more than a day.
            if ours.is_some() || !text.ends_with(|c: char| c.is_ascii_digit()) {
                prop_assert_eq!(ours, theirs, "{}", text);
            }
        }

        /// Every instant that receipts can hold is read back as it was written.
        #[test]
        fn what_is_written_is_read(second in -62_167_219_200_i64..=253_402_207_200, nanosecond in 0_i32..1_000_000_000) {
            let at = Timestamp::new(second, nanosecond).unwrap();
            prop_assert_eq!(rfc3339(&at.to_string()), Ok(at));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = rfc3339(&text);
        }
    }
}
