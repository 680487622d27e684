//! Values of flags that are more than text: times, durations, pairs, rate limits, credits, enum names.
//!
//! Only the form is checked here, so that a typing error is found before anything is sent; what is allowed is the
//! service's to say. Each function is a clap value parser. Invariant: no parser reads a clock, so the same command
//! line always means the same request.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use prost_types::{Duration, Timestamp};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::proto::v1::{Credits, RateLimit, RefillInterval};

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// A moment: RFC 3339 such as `2026-01-31T12:00:00Z`, or a date alone for its midnight in UTC.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .or_else(|_| OffsetDateTime::parse(&format!("{text}T00:00:00Z"), &Rfc3339))
        .map(|moment| Timestamp {
            seconds: moment.unix_timestamp(),
            nanos: i32::try_from(moment.nanosecond()).unwrap_or(0),
        })
        .map_err(|_| "not a time such as 2026-01-31T12:00:00Z, nor a date such as 2026-01-31".to_owned())
}

/// A span of time: numbers with units, such as `30d`, `12h`, `1h30m`, `90s`, `250ms`. A bare `0` is no time.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration such as 30d, 12h, 15m, 90s or 250ms".to_owned();
    if text == "0" {
        return Ok(Duration::default());
    }
    let mut rest = text;
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(letters).ok_or_else(wrong)?;
        let number: u32 = number.parse().map_err(|_| wrong())?;
        total += i128::from(number) * unit_nanos(unit).ok_or_else(wrong)?;
        rest = tail;
    }
    let seconds = i64::try_from(total / NANOS_PER_SECOND).map_err(|_| wrong())?;
    let nanos = i32::try_from(total % NANOS_PER_SECOND).map_err(|_| wrong())?;
    if text.is_empty() { Err(wrong()) } else { Ok(Duration { seconds, nanos }) }
}

fn unit_nanos(unit: &str) -> Option<i128> {
    let seconds: i128 = match unit {
        "ms" => return Some(NANOS_PER_SECOND / 1000),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    Some(seconds * NANOS_PER_SECOND)
}

/// `NAME=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| "not NAME=VALUE".to_owned())
}

/// `NAME=LIMIT/WINDOW` with `/shadow` for one that never denies, such as `burst=100/1m`.
pub(super) fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let wrong = || "not NAME=LIMIT/WINDOW or NAME=LIMIT/WINDOW/shadow, such as burst=100/1m".to_owned();
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (limit, rest) = rest.split_once('/').ok_or_else(wrong)?;
    let (window, shadow) = match rest.split_once('/') {
        Some((window, "shadow")) => (window, true),
        Some(_) => return Err(wrong()),
        None => (rest, false),
    };
    Ok(RateLimit {
        name: name.to_owned(),
        limit: limit.parse().map_err(|_| wrong())?,
        window: Some(span(window)?),
        shadow,
    })
}

/// `AMOUNT/day` or `AMOUNT/month`.
pub(super) fn refill(text: &str) -> Result<(i64, RefillInterval), String> {
    let wrong = || "not AMOUNT/day or AMOUNT/month".to_owned();
    let (amount, interval) = text.split_once('/').ok_or_else(wrong)?;
    let interval = match interval {
        "day" => RefillInterval::Day,
        "month" => RefillInterval::Month,
        _ => return Err(wrong()),
    };
    Ok((amount.parse().map_err(|_| wrong())?, interval))
}

/// Credits from their two flags.
pub(super) fn credits(remaining: i64, refill: Option<(i64, RefillInterval)>) -> Credits {
    let (refill_amount, interval) = refill.unwrap_or((0, RefillInterval::Unspecified));
    Credits { remaining, refill_amount, refill_interval: interval.into() }
}

/// The paths of an update mask: the names that were given.
pub(super) fn mask(fields: &[(&str, bool)]) -> Vec<String> {
    fields.iter().filter(|(_, given)| *given).map(|(name, _)| (*name).to_owned()).collect()
}

/// One of `names`, as the number of the enum value called `prefix` and the name in capitals.
pub(super) fn choice<E: Into<i32> + 'static>(
    names: &'static [&'static str],
    prefix: &'static str,
    from_name: fn(&str) -> Option<E>,
) -> impl TypedValueParser<Value = i32> {
    PossibleValuesParser::new(names).try_map(move |name| {
        let full = format!("{prefix}{}", name.to_uppercase().replace('-', "_"));
        from_name(&full).map(Into::into).ok_or_else(|| format!("{full} is not in the contract"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        let seconds = [
            ("30d", 2_592_000),
            ("12h", 43_200),
            ("15m", 900),
            ("90s", 90),
            ("1h30m", 5400),
            ("0", 0),
            ("2w", 1_209_600),
        ];
        for (text, expected) in seconds {
            assert_eq!(span(text), Ok(Duration { seconds: expected, nanos: 0 }), "{text}");
        }
        assert_eq!(span("1250ms"), Ok(Duration { seconds: 1, nanos: 250_000_000 }));
        for text in ["", "d", "30", "1.5h", "-1s", "30 d", "5y", "1h5", "99999999999d", "1é", "١s"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_rfc_3339_or_dates() {
        let noon = Timestamp { seconds: 1_769_860_800, nanos: 0 };
        assert_eq!(moment("2026-01-31T12:00:00Z"), Ok(noon));
        assert_eq!(moment("2026-01-31T14:00:00+02:00"), Ok(noon));
        assert_eq!(moment("2026-01-31"), Ok(Timestamp { seconds: 1_769_817_600, nanos: 0 }));
        assert_eq!(moment("1969-12-31T23:59:59.5Z"), Ok(Timestamp { seconds: -1, nanos: 500_000_000 }));
        for text in ["", "tomorrow", "2026-13-01", "2026-02-30T00:00:00Z", "2026-01-31 12:00"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rate_limits_have_name_limit_and_window() {
        let limit = rate_limit("burst=100/1m/shadow").expect("a rate limit");
        assert_eq!((limit.name.as_str(), limit.limit, limit.shadow), ("burst", 100, true));
        assert_eq!(limit.window, Some(Duration { seconds: 60, nanos: 0 }));
        for text in ["burst", "burst=100", "burst=x/1m", "burst=1/1", "burst=1/1m/quiet"] {
            assert!(rate_limit(text).is_err(), "{text}");
        }
    }
}
