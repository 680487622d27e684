//! Single texts of a row, or of the mapping, to values: each function reads one kind, in every form that is stated in
//! `docs/migrating.md`. What none of them reads is refused, never guessed. Knows neither row nor column, and must not
//! put a text that it was given into a message: it may be a secret in the wrong column.

mod lists;
mod metadata;
mod numbers;
mod shown;
mod times;
mod words;

use time::UtcOffset;

pub use self::{
    lists::{parse_cidrs, parse_scopes},
    metadata::{ENTRIES_MAX, Kept, parse_metadata},
    numbers::{parse_count, parse_micro_usd, parse_micros, parse_millis, parse_request_count},
    shown::{
        before_mask, hint_of_secret, last_characters, legal_name, prefix_of, reveals, slug_of, split_display, trim,
    },
    times::{Moment, parse_moment, states_zone},
    words::{Reason, StatusWord, parse_active, parse_environment, parse_flag, parse_plan, parse_reason, parse_status},
};
use super::mapping::{Field, Kind, Words};
use crate::domain::{
    Invalid,
    ids::OrganizationId,
    limits::Credits,
    organization::{SYSTEM_SLUG, parse_max_keys, parse_monthly_quota},
    secret::SecretPrefix,
    text,
    usage_report::{REPORTED_AMOUNT_MAX, STATUS_CODE_MAX},
};

/// Reads a text that names an organization that may take keys from elsewhere: its slug or its id.
///
/// # Errors
/// Refuses what can be neither, and the organization `system`.
pub fn check_organization(text: &str) -> Result<(), Invalid> {
    if text == SYSTEM_SLUG || OrganizationId::of_text(text)? == OrganizationId::SYSTEM {
        return Err(Invalid::new("must not be the organization `system`, which takes no keys from elsewhere"));
    }
    Ok(())
}

/// Whether a constant of the mapping can be read as its field will be for every row.
///
/// # Errors
/// Says why not.
pub fn check_constant(field: Field, text: &str, words: Option<&Words>, zone: UtcOffset) -> Result<(), Invalid> {
    match field.kind() {
        Kind::Material => Err(Invalid::new("must not be a constant")),
        Kind::Reference => check_organization(text),
        Kind::Text => check_text(field, text),
        Kind::Environment => parse_environment(text, words).map(drop),
        Kind::Status => parse_status(text, words).map(drop),
        Kind::Plan => parse_plan(text, words).map(drop),
        Kind::RevocationReason => text::parse_note(text).map(drop),
        Kind::Flag if field == Field::Active => parse_active(text, words).map(drop),
        Kind::Flag => parse_flag(text, words).map(drop),
        Kind::Time => parse_moment(text, zone).map(drop),
        Kind::Number => check_number(field, text),
        Kind::Scopes => parse_scopes(text).map(drop),
        Kind::Cidrs => parse_cidrs(text).map(drop),
        Kind::Metadata => check_metadata(text),
    }
}

fn check_text(field: Field, text: &str) -> Result<(), Invalid> {
    if field == Field::Name {
        return text::parse_name(text).map(drop);
    }
    if field == Field::OwnerId || field == Field::RevokedBy {
        return text::parse_owner(text).map(drop);
    }
    if field == Field::RevocationNote {
        return text::parse_note(text).map(drop);
    }
    if field == Field::SecretPrefix {
        return SecretPrefix::parse(text).map(drop);
    }
    text::check_plain(text, usize::try_from(field.length_max()).unwrap_or(usize::MAX))
}

fn check_number(field: Field, text: &str) -> Result<(), Invalid> {
    if field == Field::RequestCount {
        return parse_request_count(text).map(drop);
    }
    let number = if field == Field::CostUsd { parse_micro_usd(text)? } else { parse_count(text)? };
    if field == Field::CreditsRemaining {
        return Credits::parse(number, 0, None).map(drop);
    }
    if field == Field::MaxKeys {
        return parse_max_keys(number).map(drop);
    }
    if field == Field::MonthlyQuota {
        return parse_monthly_quota(number).map(drop);
    }
    if [Field::Tokens, Field::CostUsd, Field::CostMicroUsd].contains(&field) && number > REPORTED_AMOUNT_MAX {
        return Err(Invalid::new("must be at most 10^12"));
    }
    if field == Field::StatusCode && number > i64::from(STATUS_CODE_MAX) {
        return Err(Invalid::new("must be 0 to 999"));
    }
    Ok(())
}

fn check_metadata(text: &str) -> Result<(), Invalid> {
    let kept = parse_metadata(text)?;
    if kept.cut { Err(Invalid::new("must have at most 50 entries that the contract allows")) } else { Ok(()) }
}

/// Whether what the mapping says that a word means is known itself.
///
/// # Errors
/// Says what is known.
pub fn check_meaning(field: Field, meaning: &str) -> Result<(), Invalid> {
    match field.kind() {
        Kind::Environment => parse_environment(meaning, None).map(drop),
        Kind::Status => parse_status(meaning, None).map(drop),
        Kind::Plan => parse_plan(meaning, None).map(drop),
        Kind::RevocationReason => match parse_reason(meaning, None) {
            Reason::Known(_) => Ok(()),
            Reason::Free(_) => Err(Invalid::new("must be a reason such as key_compromise, owner_left or other")),
        },
        Kind::Flag if field == Field::Active => parse_active(meaning, None).map(drop),
        Kind::Flag => parse_flag(meaning, None).map(drop),
        Kind::Material
        | Kind::Reference
        | Kind::Text
        | Kind::Time
        | Kind::Number
        | Kind::Scopes
        | Kind::Cidrs
        | Kind::Metadata => Err(Invalid::new("must be a field that has words")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(field: Field, text: &str) -> Result<(), Invalid> {
        check_constant(field, text, None, UtcOffset::UTC)
    }

    #[test]
    fn constants_are_held_to_what_their_field_is_held_to() {
        for (field, text) in [
            (Field::Organization, "acme"),
            (Field::Name, "imported"),
            (Field::OwnerId, ""),
            (Field::Environment, "live"),
            (Field::Status, "disabled"),
            (Field::Enabled, "false"),
            (Field::Active, "suspended"),
            (Field::Plan, "pro"),
            (Field::ExpireTime, "2030-01-01"),
            (Field::Scopes, r#"["a:read"]"#),
            (Field::AllowedCidrs, "10.0.0.0/8"),
            (Field::Metadata, r#"{"team":"a"}"#),
            (Field::CreditsRemaining, "100"),
            (Field::MaxKeys, "0"),
            (Field::SecretPrefix, "acme"),
            (Field::CostUsd, "0.5"),
            (Field::RequestCount, "1000000000000"),
            (Field::Tokens, "1000000000000"),
            (Field::StatusCode, "999"),
        ] {
            assert_eq!(check(field, text), Ok(()), "{field:?}");
        }
        for (field, text) in [
            (Field::Organization, "system"),
            (Field::Organization, "00000000-0000-0000-0000-000000000001"),
            (Field::Organization, "a b"),
            (Field::Name, " "),
            (Field::OwnerId, "a\nb"),
            (Field::Environment, "eu"),
            (Field::Status, "frozen"),
            (Field::Enabled, "suspended"),
            (Field::Plan, "gold"),
            (Field::ExpireTime, "soon"),
            (Field::Scopes, "a b%"),
            (Field::AllowedCidrs, "any"),
            (Field::Metadata, r#"{"list":[]}"#),
            (Field::CreditsRemaining, "-1"),
            (Field::CreditsRemaining, "9000000000000"),
            (Field::MaxKeys, "9000000000"),
            (Field::RequestCount, "1000000000001"),
            (Field::Tokens, "1000000000001"),
            (Field::CostMicroUsd, "1000000000001"),
            (Field::CostUsd, "1000000.000001"),
            (Field::StatusCode, "1000"),
            (Field::SecretPrefix, "ACME"),
            (Field::Secret, "Zx81kQp0aVn3Wc7d"),
        ] {
            assert!(check(field, text).is_err(), "{field:?}");
        }
    }

    #[test]
    fn a_meaning_is_a_word_that_is_known() {
        for (field, meaning) in [
            (Field::Environment, "live"),
            (Field::Status, "revoked"),
            (Field::Plan, "enterprise"),
            (Field::RevocationReason, "key-compromise"),
            (Field::Enabled, "true"),
            (Field::Active, "false"),
        ] {
            assert_eq!(check_meaning(field, meaning), Ok(()), "{field:?}");
        }
        for (field, meaning) in [
            (Field::Environment, "eu"),
            (Field::Status, "frozen"),
            (Field::RevocationReason, "stolen"),
            (Field::Name, "x"),
        ] {
            assert!(check_meaning(field, meaning).is_err(), "{field:?}");
        }
    }
}
