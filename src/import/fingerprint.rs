//! The fingerprint of a table of keys: SHA-256 over every row in order, with its id and whatever it holds of secrets
//! and hashes, so that a table in which one of them was changed, added or taken away has another one.
//! Must not be shown beside rows. Invariant: each text has its length in front, and NULL is told from an empty text, so
//! that nothing moves from one row or column into the next unseen; which column is which is a part of it.

use sha2::{Digest as _, Sha256};

use super::{
    mapping::{Field, KeyTable},
    source::{Ask, Row},
};
use crate::domain::audit::encode_hash;

/// Changes where the same rows would have another fingerprint than before.
const VERSION: &str = "keystead import 1";

/// What is read of a table for its fingerprint alone, and where each part of it then is.
pub(super) struct MaterialAsk {
    pub(super) ask: Ask,
    /// Places of the material in a row, in the order of [`Field::MATERIAL`].
    places: Vec<usize>,
}

impl MaterialAsk {
    /// For a table of a mapping. Columns come with the lengths that they have when all of the table is read.
    pub(super) fn new(table: &KeyTable) -> Self {
        let mut ask = table.table.ask();
        let names: Vec<&String> = material(table).map(|(_, column)| column).collect();
        ask.columns.retain(|column| names.contains(&&column.name));
        let place = |name: &&String| ask.columns.iter().position(|column| column.name == **name);
        let places = names.iter().filter_map(place).collect();
        Self { ask, places }
    }

    /// The material of a row that was read so.
    pub(super) fn material<'r>(&'r self, row: &'r Row) -> impl Iterator<Item = Option<&'r str>> {
        self.places.iter().map(move |place| row.values.get(*place)?.as_ref().map(|text| text.as_str()))
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
    use zeroize::Zeroizing;

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
    fn what_is_read_for_it_alone_gives_the_same_material() {
        let both = table("bcrypt = \"h\"\nsecret = \"s\"");
        let asked = MaterialAsk::new(&both);
        let values = asked.ask.columns.iter().map(|column| Some(Zeroizing::new(format!("value of {}", column.name))));
        let row = Row { id: "1".to_owned(), values: values.collect() };
        let seen: Vec<Option<&str>> = asked.material(&row).collect();
        assert_eq!(seen, [Some("value of s"), Some("value of h")], "in the order of the fields");
    }
}
