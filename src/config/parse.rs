//! Text of a setting to its value, for the kinds that several sections share.
//!
//! Each function says what is wrong as a phrase that completes "VALUE is ...". None looks at a source, and none
//! shows the value: the caller knows whether it is a secret. Invariant: a returned number is within its bounds.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A whole number within `bounds`.
pub(super) fn number<T>(bounds: RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + std::fmt::Display,
{
    move |text| match text.parse::<T>() {
        Ok(number) if bounds.contains(&number) => Ok(number),
        Ok(_) | Err(_) => Err(format!("not a whole number from {} to {}", bounds.start(), bounds.end())),
    }
}

/// A whole number of milliseconds within `bounds`.
pub(super) fn milliseconds(bounds: RangeInclusive<u64>) -> impl FnOnce(&str) -> Result<Duration, String> {
    move |text| number(bounds)(text).map(Duration::from_millis).map_err(|reason| format!("{reason} (milliseconds)"))
}

/// A whole number with a unit, `ms`, `s` or `m`, within `bounds`.
pub(super) fn span(bounds: RangeInclusive<Duration>) -> impl FnOnce(&str) -> Result<Duration, String> {
    move |text| {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let unit_ms = match unit {
            "ms" => Some(1),
            "s" => Some(1000),
            "m" => Some(60_000),
            _ => None,
        };
        let span = digits.parse().ok().zip(unit_ms).and_then(|(count, unit): (u64, u64)| count.checked_mul(unit));
        span.map(Duration::from_millis).filter(|span| bounds.contains(span)).ok_or_else(|| {
            let (least, most) = (bounds.start().as_secs(), bounds.end().as_secs());
            format!("not a time such as 500ms, 5s or 1m, from {least}s to {most}s")
        })
    }
}

/// `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

/// A path. Whether it exists is found out where it is opened.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("not a path".to_owned());
    }
    Ok(PathBuf::from(text))
}
