//! Words of a source: true and false, states of a key, environments, plans, reasons of a revocation.
//! The mapping's own words come first, then those that are known everywhere; case never matters. A word that is neither
//! is refused, never taken for the nearest. Must not show the word: it may be a secret in the wrong column.

use crate::{
    domain::{
        Invalid,
        key::{Environment, RevocationReason, StoredStatus},
        organization::Plan,
    },
    import::mapping::Words,
};

const TRUE: [&str; 7] = ["true", "1", "t", "yes", "y", "on", "\\x01"];
const FALSE: [&str; 7] = ["false", "0", "f", "no", "n", "off", "\\x00"];
const ACTIVE: [&str; 7] = ["active", "enabled", "valid", "live", "ok", "1", "true"];
const DISABLED: [&str; 9] =
    ["disabled", "inactive", "suspended", "paused", "blocked", "locked", "pending", "0", "false"];
const REVOKED: [&str; 6] = ["revoked", "deleted", "cancelled", "canceled", "compromised", "terminated"];
const EXPIRED: [&str; 1] = ["expired"];
const LIVE: [&str; 3] = ["live", "production", "prod"];
const TEST: [&str; 6] = ["test", "testing", "sandbox", "development", "dev", "staging"];

/// What a source says of a key in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusWord {
    Stored(StoredStatus),
    Expired,
}

/// Why a revoked key was revoked, and what is left of the text where no reason has that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason<'a> {
    Known(RevocationReason),
    Free(&'a str),
}

/// What the mapping says that a word means, or the word itself.
fn meaning<'a>(text: &'a str, words: Option<&'a Words>) -> &'a str {
    words.and_then(|words| words.get(&text.to_lowercase())).map_or(text, String::as_str)
}

fn is_one_of(text: &str, known: &[&str]) -> bool {
    known.iter().any(|known| known.eq_ignore_ascii_case(text))
}

/// Reads true or false, also as 1 and 0, yes and no, on and off, t and f, y and n, or one byte.
///
/// # Errors
/// Refuses anything else.
pub fn parse_flag(text: &str, words: Option<&Words>) -> Result<bool, Invalid> {
    let text = meaning(text, words);
    if is_one_of(text, &TRUE) {
        return Ok(true);
    }
    if is_one_of(text, &FALSE) { Ok(false) } else { Err(Invalid::new("must be true or false")) }
}

/// Reads the state of a key.
///
/// # Errors
/// Refuses words that neither the mapping nor this file knows.
pub fn parse_status(text: &str, words: Option<&Words>) -> Result<StatusWord, Invalid> {
    let text = meaning(text, words);
    let known: [(&[&str], StatusWord); 4] = [
        (&ACTIVE, StatusWord::Stored(StoredStatus::Active)),
        (&DISABLED, StatusWord::Stored(StoredStatus::Disabled)),
        (&REVOKED, StatusWord::Stored(StoredStatus::Revoked)),
        (&EXPIRED, StatusWord::Expired),
    ];
    let found = known.iter().find(|(words, _)| is_one_of(text, words)).map(|(_, status)| *status);
    found.ok_or_else(|| Invalid::new("must be a state that is known; name the word under words.status"))
}

/// Reads whether an organization is active: a truth value, or a state of which only the active ones are.
///
/// # Errors
/// Refuses anything else.
pub fn parse_active(text: &str, words: Option<&Words>) -> Result<bool, Invalid> {
    let state = || parse_status(text, words).map(|status| status == StatusWord::Stored(StoredStatus::Active));
    parse_flag(text, words).or_else(|_| state())
}

/// Reads an environment.
///
/// # Errors
/// Refuses words that neither the mapping nor this file knows.
pub fn parse_environment(text: &str, words: Option<&Words>) -> Result<Environment, Invalid> {
    let text = meaning(text, words);
    if is_one_of(text, &LIVE) {
        return Ok(Environment::Live);
    }
    if is_one_of(text, &TEST) {
        return Ok(Environment::Test);
    }
    Err(Invalid::new("must be live or test; name other words under words.environment"))
}

/// Reads a plan.
///
/// # Errors
/// Refuses words that neither the mapping nor this file knows.
pub fn parse_plan(text: &str, words: Option<&Words>) -> Result<Plan, Invalid> {
    let text = meaning(text, words);
    let found = Plan::ALL.iter().find(|plan| plan.as_str().eq_ignore_ascii_case(text)).copied();
    found.ok_or_else(|| Invalid::new("must be free, pro or enterprise; name other words under words.plan"))
}

/// Reads the reason of a revocation: one of ours, with `_`, `-` or a space between its words, or free text.
#[must_use]
pub fn parse_reason<'a>(text: &'a str, words: Option<&Words>) -> Reason<'a> {
    let meant = meaning(text, words);
    let is_meant = |reason: &&RevocationReason| {
        let name = reason.as_str();
        let same = |(one, other): (u8, u8)| match one {
            b'_' => matches!(other, b'_' | b'-' | b' '),
            one => one.eq_ignore_ascii_case(&other),
        };
        name.len() == meant.len() && name.bytes().zip(meant.bytes()).all(same)
    };
    RevocationReason::ALL.iter().find(is_meant).map_or(Reason::Free(text), |reason| Reason::Known(*reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pairs: &[(&str, &str)]) -> Words {
        pairs.iter().map(|(word, meaning)| ((*word).to_owned(), (*meaning).to_owned())).collect()
    }

    #[test]
    fn truth_has_many_spellings_and_no_default() {
        for text in ["true", "TRUE", "t", "1", "Yes", "on", "\\x01"] {
            assert_eq!(parse_flag(text, None), Ok(true), "{text}");
        }
        for text in ["false", "F", "0", "no", "OFF", "\\x00"] {
            assert_eq!(parse_flag(text, None), Ok(false), "{text}");
        }
        for text in ["", "2", "maybe", "tru", "null"] {
            assert!(parse_flag(text, None).is_err(), "{text:?}");
        }
        assert_eq!(parse_flag("gesperrt", Some(&words(&[("gesperrt", "false")]))), Ok(false));
    }

    #[test]
    fn states_are_known_in_any_case_and_strange_ones_are_refused() {
        let stored = |status| Ok(StatusWord::Stored(status));
        for text in ACTIVE.iter().chain(&["Active", "LIVE"]) {
            assert_eq!(parse_status(text, None), stored(StoredStatus::Active), "{text}");
        }
        for text in DISABLED.iter().chain(&["Suspended"]) {
            assert_eq!(parse_status(text, None), stored(StoredStatus::Disabled), "{text}");
        }
        for text in REVOKED.iter().chain(&["DELETED"]) {
            assert_eq!(parse_status(text, None), stored(StoredStatus::Revoked), "{text}");
        }
        assert_eq!(parse_status("Expired", None), Ok(StatusWord::Expired));
        for text in ["", "frozen", "activ", "2"] {
            assert!(parse_status(text, None).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_mappings_words_come_before_the_known_ones() {
        let words = words(&[("frozen", "disabled"), ("live", "revoked")]);
        assert_eq!(parse_status("FROZEN", Some(&words)), Ok(StatusWord::Stored(StoredStatus::Disabled)));
        assert_eq!(parse_status("Live", Some(&words)), Ok(StatusWord::Stored(StoredStatus::Revoked)));
        assert_eq!(parse_status("ok", Some(&words)), Ok(StatusWord::Stored(StoredStatus::Active)));
    }

    #[test]
    fn environments_plans_and_activity_are_words_too() {
        assert_eq!(parse_environment("Production", None), Ok(Environment::Live));
        assert_eq!(parse_environment("sandbox", None), Ok(Environment::Test));
        assert!(parse_environment("eu-west", None).is_err());
        assert_eq!(parse_plan("PRO", None), Ok(Plan::Pro));
        assert_eq!(parse_plan("starter", Some(&words(&[("starter", "free")]))), Ok(Plan::Free));
        assert!(parse_plan("starter", None).is_err());
        for (text, active) in [("true", true), ("active", true), ("suspended", false), ("0", false)] {
            assert_eq!(parse_active(text, None), Ok(active), "{text}");
        }
        assert!(parse_active("frozen", None).is_err());
    }

    #[test]
    fn a_reason_is_one_of_ours_or_free_text() {
        for text in ["key_compromise", "Key-Compromise", "KEY COMPROMISE"] {
            assert_eq!(parse_reason(text, None), Reason::Known(RevocationReason::KeyCompromise), "{text}");
        }
        let words = words(&[("left", "owner_left")]);
        assert_eq!(parse_reason("left", Some(&words)), Reason::Known(RevocationReason::OwnerLeft));
        assert_eq!(parse_reason("found on a forum", None), Reason::Free("found on a forum"));
        assert_eq!(parse_reason("", None), Reason::Free(""));
    }
}
