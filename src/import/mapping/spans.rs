//! Spans of time and offsets from UTC, as the mapping file writes them.
//! Whole numbers alone, so that a window is never one microsecond short.

use std::{ops::RangeInclusive, time::Duration};

use time::UtcOffset;

use crate::domain::Invalid;

/// The bounds of `statement-timeout`.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_hours(24);

/// Reads a whole number with a unit: `500ms`, `30s`, `1m`, `12h`, `30d`.
///
/// # Errors
/// Refuses anything else.
pub(super) fn parse_span(text: &str) -> Result<Duration, Invalid> {
    let refused = || Invalid::new("must be a span such as 500ms, 30s, 1m, 12h or 30d");
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).ok_or_else(refused)?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(refused()),
    };
    let span = digits.parse().ok().and_then(|count: u64| count.checked_mul(unit_ms));
    span.map(Duration::from_millis).ok_or_else(refused)
}

/// Reads the longest time of a statement: 1 ms to 24 hours.
///
/// # Errors
/// Refuses anything else.
pub(super) fn parse_timeout(text: &str) -> Result<Duration, Invalid> {
    let span = parse_span(text)?;
    if TIMEOUT.contains(&span) { Ok(span) } else { Err(Invalid::new("must be 1ms to 24h")) }
}

/// Reads an offset: `+02:00`, `-05:30`, `Z` or `UTC`. Names of zones are refused: their offset changes with the date.
///
/// # Errors
/// Refuses anything else, and more than 18 hours.
pub(super) fn parse_zone(text: &str) -> Result<UtcOffset, Invalid> {
    let refused = || Invalid::new("must be an offset such as +02:00 or -05:30");
    if text == "Z" || text == "UTC" {
        return Ok(UtcOffset::UTC);
    }
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(refused()),
    };
    let (hours, minutes) = rest.split_once(':').ok_or_else(refused)?;
    let number = |text: &str, most: i32| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number: &i32| digits && *number <= most)
    };
    let seconds = number(hours, 18).zip(number(minutes, 59)).map(|(hours, minutes)| hours * 3600 + minutes * 60);
    let seconds = seconds.filter(|seconds| *seconds <= 18 * 3600).ok_or_else(refused)?;
    UtcOffset::from_whole_seconds(sign * seconds).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_whole_numbers_with_a_unit() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("1m", 60_000), ("12h", 43_200_000), ("2d", 172_800_000)] {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "30", "s", "1.5s", "-1s", "1 s", "1w", "99999999999999999d", "١s"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
        assert!(parse_timeout("0s").is_err() && parse_timeout("25h").is_err() && parse_timeout("30s").is_ok());
    }

    #[test]
    fn zones_are_fixed_offsets() {
        for (text, seconds) in [("Z", 0), ("UTC", 0), ("+00:00", 0), ("+02:00", 7200), ("-05:30", -19_800)] {
            assert_eq!(parse_zone(text).map(UtcOffset::whole_seconds), Ok(seconds), "{text}");
        }
        for text in ["", "Europe/Berlin", "+2", "+2:00", "+02:60", "+19:00", "+18:01", "02:00", "é"] {
            assert!(parse_zone(text).is_err(), "{text}");
        }
    }
}
