//! What people see of a key: its name, what its secret begins and ends with. Names are made legal, and whether one was
//! changed is told. Must not show more of a secret than its public beginning and its last four characters.

use std::borrow::Cow;

use crate::domain::{secret::hint_of, text};

/// Characters of a hint.
const HINT_LENGTH: usize = 4;
/// Secrets shorter than this show no part of themselves.
const SHOWN_LENGTH_MIN: usize = 16;
/// The most words, such as `sk_` and `live_`, and characters of a prefix that is taken from a secret.
const PREFIX_WORDS_MAX: usize = 3;
const PREFIX_LENGTH_MAX: usize = 24;
/// The most characters of such a word without its `_`.
const PREFIX_WORD_LENGTH_MAX: usize = 12;
/// First characters in a text that has first and last ones with nothing between.
const FIRST_LENGTH: usize = 3;

/// A text without white space of ASCII at its ends.
#[must_use]
pub fn trim(text: &str) -> &str {
    text.trim_matches(|character: char| character.is_ascii_whitespace() || character == '\x0b')
}

/// A name that is legal, and whether it had to be changed for that: what does not show is taken out, what is too long
/// is cut. `None` where nothing is left.
#[must_use]
pub fn legal_name(given: &str) -> Option<(Cow<'_, str>, bool)> {
    if text::check_plain(given, text::NAME_LENGTH_MAX).is_ok() {
        return (!given.trim().is_empty()).then_some((Cow::Borrowed(given), false));
    }
    let is_seen = |character: &char| text::check_plain(character.encode_utf8(&mut [0; 4]), 1).is_ok();
    let seen: String = given.chars().filter(is_seen).take(text::NAME_LENGTH_MAX).collect();
    (!seen.trim().is_empty()).then_some((Cow::Owned(seen), true))
}

/// A slug made of any text: its letters and digits of ASCII, in lower case, with `-` for what lies between.
#[must_use]
pub fn slug_of(given: &str) -> String {
    let mut slug = String::new();
    for character in given.chars() {
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        // All of it is ASCII, so this many bytes are this many characters.
        if slug.len() >= 63 {
            break;
        }
    }
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}

/// What a secret begins with that says whose it is, such as `sk_live_`: up to three words of small letters, each with
/// its `_`. Empty where it begins with none, or too little would be left.
#[must_use]
pub fn prefix_of(secret: &str) -> &str {
    let mut length = 0;
    for word in secret.split_inclusive('_').take(PREFIX_WORDS_MAX) {
        let Some(letters) = word.strip_suffix('_') else { break };
        let legal = letters.bytes().all(|byte| byte.is_ascii_lowercase());
        let whole = length + word.len();
        if !legal || !(1..=PREFIX_WORD_LENGTH_MAX).contains(&letters.len()) || whole > PREFIX_LENGTH_MAX {
            break;
        }
        if secret.len() < whole + SHOWN_LENGTH_MIN {
            break;
        }
        length = whole;
    }
    secret.get(..length).unwrap_or_default()
}

/// The last characters of a secret; empty where it is short.
#[must_use]
pub fn hint_of_secret(secret: &str) -> String {
    if secret.chars().count() < SHOWN_LENGTH_MIN { String::new() } else { hint_of(secret) }
}

/// Whether a text that will be shown or stored holds the secret.
#[must_use]
pub fn reveals(text: &str, secret: &str) -> bool {
    // Short ones stand in many a word by chance.
    if secret.len() < SHOWN_LENGTH_MIN { text == secret } else { text.contains(secret) }
}

/// What a text that shows parts of a secret says of its beginning and its end: what stands before and after `...`, `*`,
/// `…` or `•`; where there is none, the last four characters are the end.
#[must_use]
pub fn split_display(display: &str) -> (&str, &str) {
    let Some(start) = find_mask(display) else {
        return split_unmasked(display);
    };
    let (first, rest) = display.split_at_checked(start).unwrap_or((display, ""));
    let end = [rest.rfind(is_mask), rest.rfind("..").map(|at| at + 1)].into_iter().flatten().max().unwrap_or_default();
    let mut last = rest.get(end..).unwrap_or_default().chars();
    last.next();
    (trim(first), trim(last.as_str()))
}

/// What stands before `...`, `*`, `…` or `•`; all of it where none does.
#[must_use]
pub fn before_mask(display: &str) -> &str {
    trim(display.get(..find_mask(display).unwrap_or(display.len())).unwrap_or_default())
}

fn is_mask(character: char) -> bool {
    matches!(character, '*' | '…' | '•')
}

/// Where it begins that characters are left out.
fn find_mask(display: &str) -> Option<usize> {
    [display.find(is_mask), display.find("..")].into_iter().flatten().min()
}

fn split_unmasked(display: &str) -> (&str, &str) {
    let skip = display.chars().count().saturating_sub(HINT_LENGTH);
    if skip < FIRST_LENGTH {
        return ("", last_characters(display));
    }
    let at = display.char_indices().nth(skip).map_or(display.len(), |(at, _)| at);
    display.split_at_checked(at).unwrap_or((display, ""))
}

/// The last four characters of a text.
#[must_use]
pub fn last_characters(text: &str) -> &str {
    let skip = text.chars().count().saturating_sub(HINT_LENGTH);
    let at = text.char_indices().nth(skip).map_or(text.len(), |(at, _)| at);
    text.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_of_ascii_is_taken_off_both_ends() {
        assert_eq!(trim(" \t\r\n\x0b\x0ckey with space\n\n"), "key with space");
        assert_eq!(trim("\u{a0}key"), "\u{a0}key", "other white space may be a part of it");
    }

    #[test]
    fn names_are_made_legal_and_it_is_told() {
        assert_eq!(legal_name("Acme prod"), Some((Cow::Borrowed("Acme prod"), false)));
        assert_eq!(legal_name("Acme\0 pr\nod\u{202e}"), Some((Cow::Owned("Acme prod".to_owned()), true)));
        let (cut, changed) = legal_name(&"ä".repeat(1000)).map(|(name, changed)| (name.into_owned(), changed)).unwrap();
        assert_eq!((cut.chars().count(), changed), (200, true));
        for blank in ["", "  ", "\n\t", "\u{202e}"] {
            assert_eq!(legal_name(blank), None, "{blank:?}");
        }
    }

    #[test]
    fn slugs_are_made_of_any_text() {
        for (text, slug) in [("Acme Corp.", "acme-corp"), ("--a__b--", "a-b"), ("acme", "acme"), ("密钥", ""), ("", "")]
        {
            assert_eq!(slug_of(text), slug, "{text}");
        }
        assert_eq!(slug_of(&"a".repeat(100)).len(), 63);
        assert_eq!(slug_of(&format!("{} b", "a".repeat(62))), "a".repeat(62));
    }

    #[test]
    fn a_prefix_is_words_that_the_secret_begins_with() {
        for (secret, prefix) in [
            ("sk_live_51H8xYzAbCdEfGhIj", "sk_live_"),
            ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_"),
            ("pk_live_4eC39HqLyjWDarjtT1zdp7dcAAAAAAAAAAAAAAAAAAAA", "pk_live_"),
            ("Zx81kQp0aVn3Wc7dZx81kQp0aVn3Wc7d", ""),
            ("aB_9f86d081884c7d659a2feaa0c55ad015", ""),
            ("sk_live_short", ""),
            ("_live_51H8xYzAbCdEfGhIj", ""),
            ("only_words_and_more_words_than_three_of_them", "only_words_and_"),
            ("", ""),
        ] {
            assert_eq!(prefix_of(secret), prefix, "{secret}");
        }
    }

    #[test]
    fn first_and_last_characters_are_told_apart() {
        for (display, expected) in [
            ("sk_...wxyz", ("sk_", "wxyz")),
            ("sk_....wxyz", ("sk_", "wxyz")),
            ("sk_l****wxyz", ("sk_l", "wxyz")),
            ("sk_…wxyz", ("sk_", "wxyz")),
            ("sk_••••wxyz", ("sk_", "wxyz")),
            ("sk_ ... wxyz", ("sk_", "wxyz")),
            ("****wxyz", ("", "wxyz")),
            ("sk_live_****", ("sk_live_", "")),
            ("abcwxyz", ("abc", "wxyz")),
            ("sk_live_abcwxyz", ("sk_live_abc", "wxyz")),
            ("wxyz", ("", "wxyz")),
            ("z", ("", "z")),
            ("", ("", "")),
        ] {
            assert_eq!(split_display(display), expected, "{display}");
        }
        assert_eq!((before_mask("sk_live_****"), before_mask("sk.live_a")), ("sk_live_", "sk.live_a"));
    }

    #[test]
    fn a_short_secret_shows_nothing_of_itself() {
        assert_eq!(hint_of_secret("secret123"), "");
        assert_eq!(hint_of_secret("Zx81kQp0aVn3Wc7d"), "Wc7d");
        assert!(reveals("key Zx81kQp0aVn3Wc7d of Acme", "Zx81kQp0aVn3Wc7d"));
        assert!(!reveals("acme", "a") && reveals("a", "a"));
    }
}
