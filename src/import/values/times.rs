//! Moments as databases and files write them. Nothing is moved later: a date means its first moment, and what is finer
//! than a microsecond is cut off. Reads no clock. Must not guess: what has none of the forms is refused.

use time::{Date, Month, UtcOffset};

use crate::domain::{Invalid, time::Timestamp};

/// The day of 1970-01-01 in the count of days that `time` uses.
const EPOCH_DAY: i64 = 2_440_588;
/// The most digits of a number of seconds, of milliseconds and of microseconds since 1970.
const SECONDS_DIGITS: usize = 11;
const MILLIS_DIGITS: usize = 14;
const MICROS_DIGITS: usize = 17;

/// When something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    At(Timestamp),
    /// PostgreSQL's `infinity`.
    Never,
}

/// Reads a moment: RFC 3339, `2026-01-31 12:00:00.25+01`, `2026-01-31 12:00`, `2026-01-31`, a whole number of seconds
/// (up to 11 digits), milliseconds (12 to 14) or microseconds (15 to 17) since 1970, `infinity`, `-infinity` (1970).
/// `zone` counts where none is stated.
///
/// # Errors
/// Refuses anything else, and years before 1970 and after 9999.
pub fn parse_moment(text: &str, zone: UtcOffset) -> Result<Moment, Invalid> {
    let refused = || Invalid::new("must be a time from 1970 to 9999 such as 2026-01-31T12:00:00Z");
    let bytes = text.as_bytes();
    if bytes.iter().all(u8::is_ascii_digit) {
        return since_epoch(text).map(Moment::At).ok_or_else(refused);
    }
    if text.eq_ignore_ascii_case("infinity") {
        return Ok(Moment::Never);
    }
    if text.eq_ignore_ascii_case("-infinity") {
        return Ok(Moment::At(Timestamp::from_micros(0)));
    }
    civil(bytes, zone).map(Moment::At).ok_or_else(refused)
}

/// Whether a text that [`parse_moment`] reads means the same moment in every zone.
#[must_use]
pub fn states_zone(text: &str) -> bool {
    // Numbers count from one moment, and `infinity` is none.
    if !text.contains('-') || text.eq_ignore_ascii_case("-infinity") {
        return true;
    }
    let time = text.get("2026-01-31".len()..).unwrap_or_default();
    time.ends_with(['Z', 'z']) || time.ends_with("UTC") || time.contains(['+', '-'])
}

fn since_epoch(digits: &str) -> Option<Timestamp> {
    let number: i64 = digits.parse().ok()?;
    let unit_us = match digits.len() {
        1..=SECONDS_DIGITS => 1_000_000,
        12..=MILLIS_DIGITS => 1000,
        15..=MICROS_DIGITS => 1,
        _ => return None,
    };
    let micros = number.checked_mul(unit_us)?;
    (micros <= Timestamp::LAST.micros()).then(|| Timestamp::from_micros(micros))
}

fn civil(bytes: &[u8], zone: UtcOffset) -> Option<Timestamp> {
    let mut rest = Rest(bytes);
    let year = i32::try_from(rest.number(4)?).ok()?;
    rest.take(b"-")?;
    let month = u8::try_from(rest.number(2)?).ok()?;
    rest.take(b"-")?;
    let day = u8::try_from(rest.number(2)?).ok()?;
    let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
    let midnight = (i64::from(date.to_julian_day()) - EPOCH_DAY) * 86_400;
    let default = i64::from(zone.whole_seconds());
    if rest.0.is_empty() {
        return Timestamp::from_parts(midnight - default, 0);
    }
    rest.take(b"Tt ")?;
    let (seconds, nanos) = rest.time_of_day()?;
    let offset = rest.offset(default)?;
    if !rest.0.is_empty() {
        return None;
    }
    Timestamp::from_parts(midnight + seconds - offset, nanos)
}

/// What is left to read. Each function takes its part off the front, or gives `None` where it is not there.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn number(&mut self, digits: usize) -> Option<i64> {
        let (taken, rest) = self.0.split_at_checked(digits)?;
        let mut number = 0;
        for byte in taken {
            let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
            number = number * 10 + i64::from(digit);
        }
        self.0 = rest;
        Some(number)
    }

    /// Takes one of these bytes.
    fn take(&mut self, any_of: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        if !any_of.contains(first) {
            return None;
        }
        self.0 = rest;
        Some(*first)
    }

    /// `HH:MM`, with seconds and their fraction where they stand there: seconds and nanoseconds since midnight.
    fn time_of_day(&mut self) -> Option<(i64, i32)> {
        let hour = self.number(2).filter(|hour| *hour < 24)?;
        self.take(b":")?;
        let minute = self.number(2).filter(|minute| *minute < 60)?;
        let mut second = 0;
        let mut nanos = 0;
        if self.take(b":").is_some() {
            // A leap second is taken for the one before it.
            second = self.number(2).filter(|second| *second <= 60)?.min(59);
            if self.take(b".,").is_some() {
                nanos = self.fraction()?;
            }
        }
        Some((hour * 3600 + minute * 60 + second, nanos))
    }

    /// Digits after the point, at least one; what is finer than a nanosecond is cut off.
    fn fraction(&mut self) -> Option<i32> {
        let mut nanos = 0;
        let mut unit = 100_000_000;
        let mut any = false;
        while let Some(digit) = self.take(b"0123456789") {
            nanos += i32::from(digit - b'0') * unit;
            unit /= 10;
            any = true;
        }
        any.then_some(nanos)
    }

    /// `Z`, `UTC`, `+HH`, `+HHMM`, `+HH:MM` or `+HH:MM:SS`, also after a space, in seconds east; `default` where
    /// nothing stands there.
    fn offset(&mut self, default: i64) -> Option<i64> {
        if self.0.is_empty() {
            return Some(default);
        }
        let _ = self.take(b" ");
        if self.0 == b"UTC" || self.0 == b"Z" || self.0 == b"z" {
            self.0 = &[];
            return Some(0);
        }
        let sign = if self.take(b"+-")? == b'-' { -1 } else { 1 };
        let mut seconds = self.number(2).filter(|hours| *hours <= 18)? * 3600;
        for unit in [60, 1] {
            let separated = self.take(b":").is_some();
            if !separated && self.0.is_empty() {
                break;
            }
            seconds += self.number(2).filter(|number| *number < 60)? * unit;
        }
        Some(sign * seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_states_its_zone_or_not() {
        let zoned = ["2026-01-31T12:00:00Z", "2026-01-31 12:00:00.25+01", "2026-01-31 12:00 -05:30"];
        for text in zoned.into_iter().chain(["1770000000", "1770000000000", "infinity", "-Infinity"]) {
            assert!(states_zone(text), "{text}");
        }
        for text in ["2026-01-31", "2026-01-31 12:00", "2026-01-31T12:00:00.5"] {
            assert!(!states_zone(text), "{text}");
        }
    }

    fn read(text: &str) -> Option<String> {
        match parse_moment(text, UtcOffset::UTC).ok()? {
            Moment::At(time) => Some(time.to_string()),
            Moment::Never => Some("never".to_owned()),
        }
    }

    #[test]
    fn every_form_of_a_time_is_read() {
        for (text, expected) in [
            ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
            ("2026-01-31t12:00:00z", "2026-01-31T12:00:00Z"),
            ("2026-01-31T12:00:00.25+01:00", "2026-01-31T11:00:00.25Z"),
            ("2026-01-31 12:00:00.123456+00", "2026-01-31T12:00:00.123456Z"),
            ("2026-01-31 12:00:00-0530", "2026-01-31T17:30:00Z"),
            ("2026-01-31 12:00:00 +0000", "2026-01-31T12:00:00Z"),
            ("2026-01-31 12:00:00 UTC", "2026-01-31T12:00:00Z"),
            ("2026-01-31 12:00:00+00:53:28", "2026-01-31T11:06:32Z"),
            ("2026-01-31 12:00", "2026-01-31T12:00:00Z"),
            ("2026-01-31", "2026-01-31T00:00:00Z"),
            ("2028-02-29", "2028-02-29T00:00:00Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
            ("0", "1970-01-01T00:00:00Z"),
            ("1769860800", "2026-01-31T12:00:00Z"),
            ("1769860800123", "2026-01-31T12:00:00.123Z"),
            ("1769860800123456", "2026-01-31T12:00:00.123456Z"),
            ("infinity", "never"),
            ("-infinity", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_fraction_is_cut_off_and_never_rounded_up() {
        assert_eq!(read("2026-01-31T12:00:00.9999999999999Z").as_deref(), Some("2026-01-31T12:00:00.999999Z"));
    }

    #[test]
    fn a_time_without_a_zone_is_read_in_the_mappings() {
        let zone = UtcOffset::from_hms(2, 0, 0).unwrap();
        for (text, expected) in [
            ("2026-01-31 12:00:00", "2026-01-31T10:00:00Z"),
            ("2026-01-31", "2026-01-30T22:00:00Z"),
            ("2026-01-31 12:00:00+00", "2026-01-31T12:00:00Z"),
            ("1769860800", "2026-01-31T12:00:00Z"),
        ] {
            let Ok(Moment::At(time)) = parse_moment(text, zone) else { panic!("{text}") };
            assert_eq!(time.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            " ",
            "never",
            "tomorrow",
            "0000-00-00 00:00:00",
            "0001-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "9999-12-31T23:59:59-01:00",
            "2026-13-01",
            "2026-02-30",
            "2026-1-31",
            "2026-01-31T",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+",
            "2026-01-31T12:00:00+1",
            "2026-01-31T12:00:00+19:00",
            "2026-01-31T12:00:00Zulu",
            "2026-01-31 12:00:00 BC",
            "10000-01-01",
            "31.01.2026",
            "01/31/2026",
            "-1",
            "1769860800.5",
            "176986080012345678",
            "2026-01-31T12:00:00Z ",
            "２０２６-01-31",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }
}
