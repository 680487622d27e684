//! Numbers as databases write them: decimals, also with an exponent, to whole numbers of the unit that is held.
//! Integer arithmetic alone: a sum of what is read here equals the sum that SQL makes. Must not take a negative number,
//! nor one too large to be held.

use std::time::Duration;

use crate::domain::{Invalid, import::REQUEST_COUNT_MAX};

/// The longest number, in characters; numbers of databases are shorter.
const LENGTH_MAX: usize = 64;
/// The highest power of ten within 128 bits.
const POWER_MAX: u32 = 38;

/// What becomes of digits that are finer than the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finer {
    /// There must be none but zeros.
    Refused,
    Cut,
    /// Half and more is rounded up.
    Rounded,
}

/// Reads a whole number that is not negative, also as `12.00` or `1.2e1`.
///
/// # Errors
/// Refuses anything else, and what does not fit into 63 bits.
pub fn parse_count(text: &str) -> Result<i64, Invalid> {
    scaled(text, 0, Finer::Refused).ok_or_else(|| Invalid::new("must be a whole number that is not negative"))
}

/// Reads how often a key was used.
///
/// # Errors
/// Refuses what [`parse_count`] refuses, and more than [`REQUEST_COUNT_MAX`].
pub fn parse_request_count(text: &str) -> Result<i64, Invalid> {
    let count = parse_count(text)?;
    if count <= REQUEST_COUNT_MAX { Ok(count) } else { Err(Invalid::new("must be at most 10^12")) }
}

/// Reads US dollars as a decimal number, as millionths of a dollar. What is finer is rounded, half up.
///
/// # Errors
/// Refuses anything else, negative amounts, and what does not fit into 63 bits.
pub fn parse_micro_usd(text: &str) -> Result<i64, Invalid> {
    let refused = || Invalid::new("must be an amount that is not negative, such as 0.0125");
    scaled(text, 6, Finer::Rounded).ok_or_else(refused)
}

/// Reads milliseconds as a decimal number. What is finer than a nanosecond is cut off.
///
/// # Errors
/// Refuses anything else, and negative numbers.
pub fn parse_millis(text: &str) -> Result<Duration, Invalid> {
    parse_span(text, 6)
}

/// Reads microseconds as a decimal number. What is finer than a nanosecond is cut off.
///
/// # Errors
/// Refuses anything else, and negative numbers.
pub fn parse_micros(text: &str) -> Result<Duration, Invalid> {
    parse_span(text, 3)
}

fn parse_span(text: &str, nanos_digits: i64) -> Result<Duration, Invalid> {
    let nanos = scaled(text, nanos_digits, Finer::Cut).and_then(|nanos| u64::try_from(nanos).ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| Invalid::new("must be a time span that is not negative"))
}

/// A decimal number times ten to the power of `scale`; `None` where it is none, negative or too large.
fn scaled(text: &str, scale: i64, finer: Finer) -> Option<i64> {
    if text.len() > LENGTH_MAX {
        return None;
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent_of(exponent)?),
        None => (text, 0),
    };
    let negative = mantissa.starts_with('-');
    let unsigned = mantissa.strip_prefix(['+', '-']).unwrap_or(mantissa);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut digits: u128 = 0;
    for byte in whole.bytes().chain(fraction.bytes()) {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        digits = digits.checked_mul(10)?.checked_add(u128::from(digit))?;
    }
    if negative && digits > 0 {
        return None;
    }
    let shift = exponent - i64::try_from(fraction.len()).ok()? + scale;
    i64::try_from(shifted(digits, shift, finer)?).ok()
}

fn exponent_of(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let legal = (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let exponent: i64 = if legal { digits.parse().ok()? } else { return None };
    Some(if text.starts_with('-') { -exponent } else { exponent })
}

/// `digits` times ten to the power of `shift`.
fn shifted(digits: u128, shift: i64, finer: Finer) -> Option<u128> {
    let power = u32::try_from(shift.unsigned_abs()).ok()?;
    if digits == 0 {
        return Some(0);
    }
    if shift >= 0 {
        return digits.checked_mul(10_u128.checked_pow(power)?);
    }
    // More than that many digits are never read, so nothing is left above the point.
    let unit = if power > POWER_MAX { None } else { 10_u128.checked_pow(power) };
    let (whole, rest) = unit.map_or((0, digits), |unit| (digits / unit, digits % unit));
    match finer {
        Finer::Refused => (rest == 0).then_some(whole),
        Finer::Cut => Some(whole),
        Finer::Rounded => {
            let half_up = unit.is_some_and(|unit| rest >= unit - rest);
            Some(whole + u128::from(half_up))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_are_whole_and_not_negative() {
        for (text, number) in [
            ("0", 0),
            ("42", 42),
            ("+42", 42),
            ("42.00", 42),
            ("-0", 0),
            ("1.2e1", 12),
            ("1E3", 1000),
            ("1200e-2", 12),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(parse_count(text), Ok(number), "{text}");
        }
        for text in [
            "",
            " ",
            "-1",
            "1.5",
            "1e-1",
            "1,000",
            "0x10",
            "NaN",
            "Infinity",
            "1e",
            "e1",
            ".",
            "+",
            "1 ",
            "٣",
            "9223372036854775808",
            "1e99",
            "1e1000",
            &"1".repeat(65),
        ] {
            assert!(parse_count(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn money_is_exact_to_a_millionth_of_a_dollar() {
        for (text, micro_usd) in [
            ("0.1", 100_000),
            ("0.000001", 1),
            ("0.0000005", 1),
            ("0.00000049", 0),
            ("1.5e-05", 15),
            ("0.30000000000000004", 300_000),
            ("12", 12_000_000),
            (".5", 500_000),
            ("5.", 5_000_000),
            ("9007199254.740993", 9_007_199_254_740_993),
            ("0.00000000000000000000000000000000000000000000000000000000009", 0),
            ("9e-99", 0),
            ("0e-999", 0),
        ] {
            assert_eq!(parse_micro_usd(text), Ok(micro_usd), "{text}");
        }
        for text in ["", "-0.01", "$1", "1.2.3", "9223372036854.775808"] {
            assert!(parse_micro_usd(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn spans_keep_their_fractions() {
        assert_eq!(parse_millis("12.5"), Ok(Duration::from_micros(12_500)));
        assert_eq!(parse_millis("0.0000019"), Ok(Duration::from_nanos(1)));
        assert_eq!(parse_micros("1500"), Ok(Duration::from_micros(1500)));
        assert!(parse_millis("-1").is_err() && parse_micros("fast").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_with_six_digits_comes_back(micro_usd in 0..=i64::MAX) {
            let text = format!("{}.{:06}", micro_usd / 1_000_000, micro_usd % 1_000_000);
            prop_assert_eq!(parse_micro_usd(&text), Ok(micro_usd));
        }

        #[test]
        fn no_text_makes_it_fail(text in "[-+0-9.eE]{0,70}") {
            let _ = (parse_count(&text), parse_micro_usd(&text), parse_millis(&text));
        }
    }
}
