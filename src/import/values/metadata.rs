//! Metadata from a JSON object: what the contract allows of it is kept, and whether something was left out is told.
//! What lies deeper is skipped without being built, so that no nesting and no size costs memory. Must not change what a
//! value says: a number too large to be exact is left out.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::domain::{Invalid, text};

/// The most entries of metadata; the same as in the contract.
pub const ENTRIES_MAX: usize = 50;
/// Whole numbers up to here are exact as floating-point numbers: 2^53.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// What is kept of a JSON object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    pub entries: BTreeMap<String, String>,
    /// Whether something was left out.
    pub cut: bool,
}

impl Kept {
    /// Leaves out all entries but the first `count`, by name.
    pub fn keep_first(&mut self, count: usize) {
        while self.entries.len() > count {
            self.entries.pop_last();
            self.cut = true;
        }
    }
}

/// Reads the texts, numbers and truth values at the top of a JSON object, at most 50 that the contract allows. Blank
/// and `null` are an object without entries.
///
/// # Errors
/// Refuses what is no JSON object.
pub fn parse_metadata(json: &str) -> Result<Kept, Invalid> {
    let json = json.trim();
    if json.is_empty() || json == "null" {
        return Ok(Kept::default());
    }
    // The parser's own words could repeat a part of the text.
    let mut kept: Kept = serde_json::from_str(json).map_err(|_| Invalid::new("must be a JSON object"))?;
    kept.keep_first(ENTRIES_MAX);
    Ok(kept)
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeptVisitor)
    }
}

struct KeptVisitor;

impl<'de> Visitor<'de> for KeptVisitor {
    type Value = Kept;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kept, A::Error> {
        let mut kept = Kept::default();
        while let Some(name) = map.next_key::<String>()? {
            match map.next_value::<Entry>()? {
                Entry::Text(value) => match text::parse_metadata([(name, value)]) {
                    Ok(mut one) => kept.entries.append(&mut one),
                    Err(_) => kept.cut = true,
                },
                Entry::Null => {}
                Entry::Other => kept.cut = true,
            }
        }
        Ok(kept)
    }
}

/// A value at the top of the object.
enum Entry {
    /// A text, or a number or truth value as text.
    Text(String),
    Null,
    /// A list, an object, or a number too large to be exact.
    Other,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, value: &str) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Entry, E> {
        Ok(Entry::Text(value))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Entry, E> {
        Ok(Entry::Text(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Entry, E> {
        Ok(if value.abs() < EXACT_MAX { Entry::Text(value.to_string()) } else { Entry::Other })
    }

    fn visit_unit<E>(self) -> Result<Entry, E> {
        Ok(Entry::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Entry::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Entry::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(kept: &Kept) -> Vec<(&str, &str)> {
        kept.entries.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn texts_numbers_and_truth_values_are_kept_as_text() {
        let kept = parse_metadata(r#"{"team":"billing","seats":12,"rate":0.5,"debt":-3,"beta":true,"none":null}"#);
        let kept = kept.unwrap();
        let expected = [("beta", "true"), ("debt", "-3"), ("rate", "0.5"), ("seats", "12"), ("team", "billing")];
        assert_eq!(entries(&kept), expected);
        assert!(!kept.cut);
    }

    #[test]
    fn what_the_contract_does_not_allow_is_left_out_and_told() {
        let long = "x".repeat(513);
        for entry in [
            r#""list":[1,{"a":[2]}]"#,
            r#""object":{"deep":{"er":1}}"#,
            r#""a b":"name with a space""#,
            r#""":"no name""#,
            r#""big":123456789012345678901234567890"#,
            &format!(r#""long":"{long}""#),
            r#""nul":"\u0000""#,
        ] {
            let kept = parse_metadata(&format!(r#"{{"good":"1",{entry}}}"#)).unwrap();
            assert_eq!(entries(&kept), [("good", "1")], "{entry}");
            assert!(kept.cut, "{entry}");
        }
    }

    #[test]
    fn fifty_entries_are_kept() {
        let many: Vec<String> = (0..60).map(|number| format!(r#""k{number:02}":{number}"#)).collect();
        let kept = parse_metadata(&format!("{{{}}}", many.join(","))).unwrap();
        assert_eq!(kept.entries.len(), ENTRIES_MAX);
        assert!(kept.cut && kept.entries.contains_key("k49") && !kept.entries.contains_key("k50"));
    }

    #[test]
    fn nesting_of_any_depth_is_skipped() {
        let deep = format!(r#"{{"a":"1","deep":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
        assert_eq!(entries(&parse_metadata(&deep).unwrap()), [("a", "1")]);
    }

    #[test]
    fn only_objects_are_metadata() {
        for text in ["", " ", "null", "{}"] {
            assert_eq!(parse_metadata(text), Ok(Kept::default()), "{text:?}");
        }
        for text in ["[]", "1", "\"text\"", "{", "{'a': 1}", "a=1", "{\"a\":1} x"] {
            assert!(parse_metadata(text).is_err(), "{text}");
        }
    }
}
