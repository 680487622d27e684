//! Moments and calendar arithmetic, all in UTC: microseconds since the Unix epoch, as the database holds them.
//! Reads no clock; `src/clock.rs` does. Years run from 1970 to 9999, as `google.protobuf.Timestamp` allows
//! from year 1 on but no key was created before 1970.

use std::{fmt, time::Duration};

use time::{Date, Month, OffsetDateTime, Time, format_description::well_known::Rfc3339};

/// A moment: microseconds since 1970-01-01T00:00:00Z, never negative, before the year 10000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// One hour in microseconds.
pub const HOUR_US: i64 = 3_600_000_000;
/// One day in microseconds.
pub const DAY_US: i64 = 24 * HOUR_US;
/// 9999-12-31T23:59:59.999999Z.
const LAST_US: i64 = 253_402_300_799_999_999;

impl Timestamp {
    /// The latest moment that can be written.
    pub const LAST: Self = Self(LAST_US);

    /// The moment `micros` after the epoch; values out of range are moved to the nearest end.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        if micros < 0 {
            Self(0)
        } else if micros > LAST_US {
            Self(LAST_US)
        } else {
            Self(micros)
        }
    }

    /// The moment of `seconds` and `nanos` as protobuf writes it, `None` outside 1970 to 9999 or where `nanos`
    /// is not in 0..1,000,000,000. What is finer than a microsecond is dropped.
    #[must_use]
    pub fn from_parts(seconds: i64, nanos: i32) -> Option<Self> {
        if !(0..1_000_000_000).contains(&nanos) {
            return None;
        }
        let micros = seconds.checked_mul(1_000_000)?.checked_add(i64::from(nanos / 1000))?;
        (0..=LAST_US).contains(&micros).then_some(Self(micros))
    }

    /// Microseconds since the epoch.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Seconds and nanoseconds, as protobuf writes a moment.
    #[must_use]
    pub fn to_parts(self) -> (i64, i32) {
        let nanos = i32::try_from(self.0 % 1_000_000).unwrap_or(0) * 1000;
        (self.0 / 1_000_000, nanos)
    }

    /// This moment moved on by `span`, at most to the last one.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_add(micros))
    }

    /// This moment moved back by `span`, at most to the epoch.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self::from_micros(self.0.saturating_sub(micros))
    }

    /// The span from `earlier` to this moment, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// The start of this moment's hour.
    #[must_use]
    pub const fn start_of_hour(self) -> Self {
        Self(self.0 - self.0 % HOUR_US)
    }

    /// The start of this moment's day, UTC.
    #[must_use]
    pub const fn start_of_day(self) -> Self {
        Self(self.0 - self.0 % DAY_US)
    }

    /// The start of this moment's calendar month, UTC.
    #[must_use]
    pub fn start_of_month(self) -> Self {
        let date = self.civil().date();
        Self::of_date(date.year(), date.month())
    }

    /// The start of the calendar month after this moment's, UTC.
    #[must_use]
    pub fn start_of_next_month(self) -> Self {
        let date = self.civil().date();
        match date.month() {
            Month::December => Self::of_date(date.year() + 1, Month::January),
            month => Self::of_date(date.year(), month.next()),
        }
    }

    fn of_date(year: i32, month: Month) -> Self {
        match Date::from_calendar_date(year, month, 1) {
            Ok(date) => Self::from_micros(date.with_time(Time::MIDNIGHT).assume_utc().unix_timestamp() * 1_000_000),
            Err(_) => Self::LAST,
        }
    }

    fn civil(self) -> OffsetDateTime {
        let nanos = i128::from(self.0) * 1000;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, such as `2026-11-21T08:00:00.25Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.civil().format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let moment = OffsetDateTime::parse(text, &Rfc3339).unwrap();
        Timestamp::from_parts(moment.unix_timestamp(), 0).unwrap()
    }

    #[test]
    fn months_begin_at_midnight_utc_also_over_new_year_and_leap_day() {
        assert_eq!(at("2028-02-29T23:59:59Z").start_of_month(), at("2028-02-01T00:00:00Z"));
        assert_eq!(at("2028-02-29T23:59:59Z").start_of_next_month(), at("2028-03-01T00:00:00Z"));
        assert_eq!(at("2026-12-31T12:00:00Z").start_of_next_month(), at("2027-01-01T00:00:00Z"));
        assert_eq!(at("9999-12-31T12:00:00Z").start_of_next_month(), Timestamp::LAST);
    }

    #[test]
    fn moments_out_of_range_are_refused() {
        assert_eq!(Timestamp::from_parts(-1, 0), None);
        assert_eq!(Timestamp::from_parts(253_402_300_800, 0), None);
        assert_eq!(Timestamp::from_parts(1, -1), None);
        assert_eq!(Timestamp::from_parts(1, 1_000_000_000), None);
        assert_eq!(Timestamp::from_parts(1, 5_000).map(Timestamp::micros), Some(1_000_005));
    }

    #[test]
    fn a_moment_prints_as_rfc_3339() {
        assert_eq!(at("2026-11-21T08:00:00Z").to_string(), "2026-11-21T08:00:00Z");
    }
}
