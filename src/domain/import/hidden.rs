//! Whether a text that will be stored or shown gives a secret away: as a whole, or more of it than a beginning.
//! What is looked at comes from elsewhere, where people put keys into names and notes.
//! Must not keep what it is given.

use super::Material;
use crate::domain::{digest::Digest, secret::hint_of};

/// The fewest characters of a secret that may show its last ones, and that stand in no other text by chance.
const SHOWN_LENGTH_MIN: usize = 16;

/// A text without the white space of ASCII around it, which files and forms leave behind.
#[must_use]
pub fn without_blanks(text: &str) -> &str {
    text.trim_matches(|character: char| character.is_ascii_whitespace() || character == '\x0b')
}

/// The last characters of a secret, for display; none of one that is so short that they would be much of it.
#[must_use]
pub fn shown_end_of(secret: &str) -> String {
    if secret.chars().count() < SHOWN_LENGTH_MIN { String::new() } else { hint_of(secret) }
}

/// Whether a text holds a secret, as far as that can be told: nothing can where only a slow hash is known.
#[must_use]
pub fn gives_away(text: &str, secret: Option<&str>, material: &Material) -> bool {
    let bare = without_blanks(text);
    match (secret, material) {
        (Some(secret), _) if secret.len() < SHOWN_LENGTH_MIN => bare == secret,
        (Some(secret), _) => text.contains(secret),
        (None, Material::Digest(digest)) => {
            let is_it = |text: &str| Digest::of(text) == *digest;
            // Systems have hashed secrets with the white space around them, too.
            !bare.is_empty() && (is_it(bare) || (bare.len() < text.len() && is_it(text)))
        }
        (None, Material::Slow(_) | Material::Missing) => false,
    }
}

/// Whether what is said to be a secret's beginning is more than half of it.
#[must_use]
pub fn is_most_of(beginning: &str, secret: &str) -> bool {
    secret.starts_with(beginning) && beginning.len() * 2 > secret.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "sk_Zx81kQp0aVn3Wc7d";

    #[test]
    fn a_text_with_the_secret_in_it_gives_it_away() {
        let material = Material::Digest(Digest::of(SECRET));
        for text in [SECRET.to_owned(), format!("the key {SECRET}, do not lose it")] {
            assert!(gives_away(&text, Some(SECRET), &material), "{text}");
        }
        assert!(gives_away(SECRET, None, &material), "the digest tells the whole text");
        let spaced = format!(" {SECRET}\n");
        assert!(gives_away(&spaced, None, &material), "white space around it hides nothing");
        assert!(gives_away(&spaced, None, &Material::Digest(Digest::of(&spaced))), "nor where it was hashed with it");
        for text in ["", "sk_", "Zx81kQp0", "the key of Ann"] {
            assert!(!gives_away(text, Some(SECRET), &material) && !gives_away(text, None, &material), "{text}");
        }
    }

    #[test]
    fn a_short_secret_is_looked_for_as_a_whole_text_and_shows_no_end() {
        let material = Material::Digest(Digest::of("test"));
        assert!(gives_away("test", Some("test"), &material) && gives_away(" test\n", Some("test"), &material));
        assert!(!gives_away("testing", Some("test"), &material));
        assert_eq!((shown_end_of("test"), shown_end_of(SECRET)), (String::new(), "Wc7d".to_owned()));
    }

    #[test]
    fn half_of_a_secret_is_no_beginning_any_more() {
        assert!(is_most_of(SECRET, SECRET) && is_most_of(&SECRET[..10], SECRET));
        for text in [&SECRET[..9], "", "another beginning"] {
            assert!(!is_most_of(text, SECRET), "{text}");
        }
    }

    #[test]
    fn white_space_around_a_text_is_taken_off() {
        assert_eq!(without_blanks(" \t\r\n\x0b\x0ca b\n"), "a b");
        assert_eq!(without_blanks("\u{3000}a"), "\u{3000}a");
    }
}
