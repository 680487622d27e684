//! Free text and names that people choose: what is legal, in one place, with the lengths that the contract states.
//! Letters of every script and emoji are welcome in names; control characters and the marks that turn the
//! direction of text are not, since they make one name look like another in a terminal or a log.

use std::collections::BTreeMap;

use super::Invalid;

/// The longest `name_contains`, in characters.
pub const NAME_LENGTH_MAX: usize = 200;
const OWNER_LENGTH_MAX: usize = 200;
const NOTE_LENGTH_MAX: usize = 1000;
const EMAIL_LENGTH_MAX: usize = 254;
const METADATA_ENTRIES_MAX: usize = 50;
const METADATA_KEY_LENGTH_MAX: usize = 64;
const METADATA_VALUE_BYTES_MAX: usize = 512;

/// Reads text of at most `length_max` characters that shows as it is written; empty is legal.
///
/// # Errors
/// Refuses longer text, control characters and direction marks.
pub fn parse_plain(text: &str, length_max: usize) -> Result<String, Invalid> {
    check_plain(text, length_max).map(|()| text.to_owned())
}

/// As [`parse_plain`], for text that is kept where it is.
///
/// # Errors
/// Refuses what `parse_plain` refuses.
pub fn check_plain(text: &str, length_max: usize) -> Result<(), Invalid> {
    // No text has more characters than bytes.
    if text.len() > length_max && text.chars().count() > length_max {
        return Err(Invalid::new(format!("must have at most {length_max} characters")));
    }
    if text.chars().any(is_unseen) {
        return Err(Invalid::new("must not contain control characters or marks that turn the direction of text"));
    }
    Ok(())
}

/// Reads a name: 1 to 200 characters, not blank.
///
/// # Errors
/// Refuses what `parse_plain` refuses, and blank names.
pub fn parse_name(text: &str) -> Result<String, Invalid> {
    if text.trim().is_empty() {
        return Err(Invalid::new("must not be empty or blank"));
    }
    parse_plain(text, NAME_LENGTH_MAX)
}

/// Reads an owner's id in the caller's own system: up to 200 characters, empty for none.
///
/// # Errors
/// As `parse_plain`.
pub fn parse_owner(text: &str) -> Result<String, Invalid> {
    parse_plain(text, OWNER_LENGTH_MAX)
}

/// Reads a revocation note: up to 1000 characters; line breaks are legal.
///
/// # Errors
/// Refuses longer text, and control characters other than line feed.
pub fn parse_note(text: &str) -> Result<String, Invalid> {
    parse_plain(&text.replace('\n', " "), NOTE_LENGTH_MAX)?;
    Ok(text.to_owned())
}

/// Reads a slug: 2 to 63 of `[a-z0-9-]`, not beginning or ending with `-`.
///
/// # Errors
/// Refuses anything else.
pub fn parse_slug(text: &str) -> Result<String, Invalid> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = text.starts_with('-') || text.ends_with('-');
    if !(2..=63).contains(&text.len()) || !text.bytes().all(legal) || edges {
        return Err(Invalid::new("must be 2 to 63 of a-z 0-9 -, not beginning or ending with -"));
    }
    Ok(text.to_owned())
}

/// Reads an email address, in ASCII lower case since addresses are compared without regard to case.
///
/// # Errors
/// Refuses what has no `@` with text on both sides, white space, and more than 254 characters. Whether mail
/// arrives is not for a grammar to say.
pub fn parse_email(text: &str) -> Result<String, Invalid> {
    let refused = || Invalid::new("must be an email address of at most 254 characters");
    let (local, domain) = text.rsplit_once('@').ok_or_else(refused)?;
    let spaced = text.chars().any(|c| c.is_whitespace() || is_unseen(c));
    if local.is_empty() || domain.is_empty() || spaced || text.len() > EMAIL_LENGTH_MAX {
        return Err(refused());
    }
    Ok(text.to_ascii_lowercase())
}

/// Reads metadata: at most 50 entries, keys 1 to 64 of `[A-Za-z0-9_.-]`, values up to 512 bytes without NUL.
///
/// # Errors
/// Refuses anything else; the text names the fault, not the entry.
pub fn parse_metadata(
    entries: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, Invalid> {
    let metadata: BTreeMap<String, String> = entries.into_iter().collect();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if metadata.len() > METADATA_ENTRIES_MAX {
        return Err(Invalid::new(format!("must have at most {METADATA_ENTRIES_MAX} entries")));
    }
    for (key, value) in &metadata {
        if !(1..=METADATA_KEY_LENGTH_MAX).contains(&key.len()) || !key.bytes().all(legal) {
            return Err(Invalid::new("must have keys of 1 to 64 of A-Z a-z 0-9 _ . -"));
        }
        if value.len() > METADATA_VALUE_BYTES_MAX || value.contains('\0') {
            return Err(Invalid::new("must have values of at most 512 bytes, without NUL"));
        }
    }
    Ok(metadata)
}

/// The form of a name in which `name_contains` is compared: Unicode lower case, the same on every database.
#[must_use]
pub fn fold(name: &str) -> String {
    name.to_lowercase()
}

/// Control characters (Unicode Cc) and the explicit direction marks of UAX #9.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_script_are_welcome_and_hidden_marks_are_not() {
        for name in ["Acme", "مفتاح الإنتاج", "密钥", "🔑 prod", "'; DROP TABLE api_keys; --", "100%_sure"]
        {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        for name in ["", "  ", "a\0b", "a\nb", "\u{202e}evil", &"x".repeat(201)] {
            assert!(parse_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn slugs_and_emails_are_held_to_their_grammar() {
        assert!(parse_slug("acme-2").is_ok());
        for slug in ["", "a", "-a", "a-", "Acme", "a_b", "ä-b", &"x".repeat(64)] {
            assert!(parse_slug(slug).is_err(), "{slug:?}");
        }
        assert_eq!(parse_email("Ops@Acme.Example").as_deref(), Ok("ops@acme.example"));
        for email in ["", "ops", "@acme", "ops@", "o ps@acme", "ops@acme\0"] {
            assert!(parse_email(email).is_err(), "{email:?}");
        }
    }

    #[test]
    fn metadata_is_bounded() {
        let entry = |key: &str, value: &str| parse_metadata([(key.to_owned(), value.to_owned())]);
        assert!(entry("team", "billing 💸").is_ok());
        assert!(entry("", "x").is_err());
        assert!(entry("a b", "x").is_err());
        assert!(entry("a", &"x".repeat(513)).is_err());
        assert!(entry("a", "\0").is_err());
        assert!(parse_metadata((0..51).map(|i| (i.to_string(), String::new()))).is_err());
    }
}
