//! The fingerprint of a table of keys: SHA-256 over every row in order, with its id and whatever it holds of secrets
//! and hashes, so that a table in which one of them was changed, added or taken away has another one.
//! Must not be shown beside rows. Invariant: each text has its length in front, and NULL is told from an empty text, so
//! that nothing moves from one row or column into the next unseen; which column is which is a part of it.

use sha2::{Digest as _, Sha256};

use super::mapping::{Field, KeyTable};
use crate::domain::audit::encode_hash;

/// Changes where the same rows would have another fingerprint than before.
const VERSION: &str = "keystead import 1";

/// What a verification that has passed leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) fingerprint: String,
    /// Whether refused rows were accepted.
    pub(super) accept_refused: bool,
    /// Whether weak keys were let in.
    pub(super) allow_weak: bool,
}

/// The words behind a fingerprint.
const ACCEPT_REFUSED: &str = "accept-refused";
const ALLOW_WEAK: &str = "allow-weak";

impl Verified {
    /// Reads what [`Verified::to_text`] wrote.
    pub(super) fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let fingerprint = words.next().unwrap_or_default().to_owned();
        let (mut accept_refused, mut allow_weak) = (false, false);
        for word in words {
            accept_refused |= word == ACCEPT_REFUSED;
            allow_weak |= word == ALLOW_WEAK;
        }
        Self { fingerprint, accept_refused, allow_weak }
    }

    /// For the column `fingerprint`.
    pub(super) fn to_text(&self) -> String {
        let words = [(self.accept_refused, ACCEPT_REFUSED), (self.allow_weak, ALLOW_WEAK)];
        let said = words.iter().filter(|(is_said, _)| *is_said);
        said.fold(self.fingerprint.clone(), |text, (_, word)| format!("{text} {word}"))
    }
}

/// The columns that hold material, in the order of [`Field::MATERIAL`].
fn material(table: &KeyTable) -> impl Iterator<Item = (Field, &String)> {
    Field::MATERIAL.iter().filter_map(|field| Some((*field, table.table.columns.get(field)?)))
}

/// A fingerprint in the making.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Of a table of which no row was read yet.
    pub(super) fn new(table: &KeyTable) -> Self {
        let mut fingerprint = Self(Sha256::new());
        fingerprint.add_text(VERSION);
        fingerprint.add_text(&table.table.name);
        fingerprint.add_text(&table.table.id);
        for (field, column) in material(table) {
            fingerprint.add_text(field.as_str());
            fingerprint.add_text(column);
        }
        fingerprint
    }

    /// Adds the next row.
    pub(super) fn add<'r>(&mut self, id: &str, material: impl Iterator<Item = Option<&'r str>>) {
        self.add_text(id);
        for text in material {
            match text {
                None => self.0.update([0_u8]),
                Some(text) => {
                    self.0.update([1_u8]);
                    self.add_text(text);
                }
            }
        }
    }

    /// What it comes to, as lower-case hex.
    pub(super) fn finish(self) -> String {
        encode_hash(&self.0.finalize().into())
    }

    fn add_text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::Mapping;

    fn table(material: &str) -> KeyTable {
        let text = format!(
            "source = \"portal\"\norganization = \"acme\"\n[[keys]]\ntable = \"clients\"\nid = \"id\"\n\
             [keys.columns]\nname = \"name\"\n{material}\n"
        );
        Mapping::parse(&text).expect("a mapping").keys.remove(0)
    }

    fn of(table: &KeyTable, rows: &[(&str, &[Option<&str>])]) -> String {
        let mut fingerprint = Fingerprint::new(table);
        for (id, material) in rows {
            fingerprint.add(id, material.iter().copied());
        }
        fingerprint.finish()
    }

    #[test]
    fn every_row_and_every_place_counts() {
        let both = table("secret = \"a\"\nsha256-hex = \"b\"");
        let base = of(&both, &[("1", &[Some("x"), None]), ("2", &[None, Some("y")])]);
        let others = [
            of(&both, &[("1", &[Some("x"), None])]),
            of(&both, &[("2", &[None, Some("y")]), ("1", &[Some("x"), None])]),
            of(&both, &[("1", &[None, Some("x")]), ("2", &[None, Some("y")])]),
            of(&both, &[("1", &[Some("x"), Some("")]), ("2", &[None, Some("y")])]),
            of(&table("secret = \"b\"\nsha256-hex = \"a\""), &[("1", &[Some("x"), None]), ("2", &[None, Some("y")])]),
        ];
        assert!(others.iter().all(|other| *other != base));
        assert_eq!(base, of(&both, &[("1", &[Some("x"), None]), ("2", &[None, Some("y")])]));
    }

    #[test]
    fn what_was_accepted_is_remembered() {
        for (accept_refused, allow_weak) in [(false, false), (true, false), (false, true), (true, true)] {
            let verified = Verified { fingerprint: "0a1b".to_owned(), accept_refused, allow_weak };
            assert_eq!(Verified::parse(&verified.to_text()), verified);
        }
        assert_eq!(Verified::parse("0a1b").fingerprint, "0a1b");
    }
}
