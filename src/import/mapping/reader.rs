//! A TOML document, part by part: texts, tables and lists of tables, each problem with its line and its place.
//! Knows no name of the mapping. Must not end at the first problem: what cannot be read is noted and left out, and
//! whoever reads goes on.

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use crate::domain::text::check_plain;

/// The longest text, in characters.
const TEXT_LENGTH_MAX: usize = 1000;

/// What was found wrong so far, each with its place in the document.
pub(super) struct Problems<'t> {
    document: &'t str,
    found: Vec<(usize, String)>,
}

impl<'t> Problems<'t> {
    /// None yet.
    pub(super) const fn new(document: &'t str) -> Self {
        Self { document, found: Vec::new() }
    }

    /// Notes one that begins `offset` bytes into the document.
    pub(super) fn note(&mut self, offset: usize, problem: String) {
        self.found.push((offset, problem));
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// All of them in the order of their lines.
    pub(super) fn finish(mut self) -> Vec<String> {
        self.found.sort_by_key(|(offset, _)| *offset);
        let line = |offset: usize| self.document.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        self.found.iter().map(|(offset, problem)| format!("line {}: {problem}", line(*offset))).collect()
    }
}

/// A table of the document.
pub(super) struct Part<'a> {
    /// What a person calls it, such as `[[keys]] "sessions"`; empty at the top.
    place: String,
    /// What stands before the names in it, such as `columns.`.
    path: String,
    offset: usize,
    entries: &'a DeTable<'a>,
}

/// An entry of a part: its name, where that stands, and its value.
type Entry<'a> = (&'a str, usize, &'a DeValue<'a>);

impl<'a> Part<'a> {
    /// The whole document.
    pub(super) const fn top(entries: &'a DeTable<'a>) -> Self {
        Self { place: String::new(), path: String::new(), offset: 0, entries }
    }

    /// What a person calls the entry `name`.
    pub(super) fn named(&self, name: &str) -> String {
        let Self { place, path, .. } = self;
        if place.is_empty() { format!("{path}{name}") } else { format!("{place}, {path}{name}") }
    }

    /// Every entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let entries: &'a DeTable<'a> = self.entries;
        entries.iter().map(|(name, value)| (text_of(name), name.span().start, value.get_ref()))
    }

    fn find(&self, name: &str) -> Option<Entry<'a>> {
        self.entries().find(|(known, _, _)| *known == name)
    }

    /// Notes what is wrong with the entry `name`, or with its absence.
    pub(super) fn note(&self, problems: &mut Problems<'_>, name: &str, problem: &str) {
        let offset = self.find(name).map_or(self.offset, |(_, offset, _)| offset);
        problems.note(offset, format!("{}: {problem}", self.named(name)));
    }

    /// Notes every name that is none of these.
    pub(super) fn check_names(&self, problems: &mut Problems<'_>, known: &[&str]) {
        for (name, offset, _) in self.entries() {
            if !known.contains(&name) {
                let kebab = name.replace('_', "-").to_lowercase();
                let meant = known.iter().find(|known| **known == kebab);
                let meant = meant.map_or_else(String::new, |meant| format!(" (did you mean {meant}?)"));
                problems.note(offset, format!("{}: is not a name that is known here{meant}", self.named(name)));
            }
        }
    }

    /// A text that is not blank, if there is one.
    pub(super) fn text(&self, problems: &mut Problems<'_>, name: &str) -> Option<String> {
        let (_, _, value) = self.find(name)?;
        match value {
            DeValue::String(text) if is_legal(text) => Some(text.to_string()),
            _ => {
                self.note(problems, name, "must be text, not blank and without control characters");
                None
            }
        }
    }

    /// A text that has to be there; empty where it is not.
    pub(super) fn required_text(&self, problems: &mut Problems<'_>, name: &str) -> String {
        if self.find(name).is_none() {
            self.note(problems, name, "must be given");
        }
        self.text(problems, name).unwrap_or_default()
    }

    /// A list of texts, if there is one.
    pub(super) fn texts(&self, problems: &mut Problems<'_>, name: &str) -> Vec<String> {
        let Some((_, _, value)) = self.find(name) else { return Vec::new() };
        let DeValue::Array(items) = value else {
            self.note(problems, name, "must be a list of texts");
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::String(text) if is_legal(text) => texts.push(text.to_string()),
                _ => self.note(problems, name, "must be a list of texts"),
            }
        }
        texts
    }

    /// The table `name` within this one, if there is one.
    pub(super) fn table(&self, problems: &mut Problems<'_>, name: &str) -> Option<Part<'a>> {
        let (_, offset, value) = self.find(name)?;
        let DeValue::Table(entries) = value else {
            self.note(problems, name, "must be a table");
            return None;
        };
        Some(Part { place: self.place.clone(), path: format!("{}{name}.", self.path), offset, entries })
    }

    /// The tables `[[name]]` within this one; one alone may also be written `[name]`.
    pub(super) fn tables(&self, problems: &mut Problems<'_>, name: &str) -> Vec<Part<'a>> {
        let Some((_, offset, value)) = self.find(name) else { return Vec::new() };
        let found: Vec<(usize, &'a DeValue<'a>)> = match value {
            DeValue::Array(items) => items.iter().map(|item| (item.span().start, item.get_ref())).collect(),
            one => vec![(offset, one)],
        };
        let mut parts = Vec::with_capacity(found.len());
        for (number, (offset, value)) in (1..).zip(found) {
            match value {
                DeValue::Table(entries) => parts.push(self.one_of(name, number, offset, entries)),
                _ => self.note(problems, name, "must be a table, or a list of tables"),
            }
        }
        parts
    }

    /// A table of a list: at the top it is called by its own `table`, or its number.
    fn one_of(&self, name: &str, number: usize, offset: usize, entries: &'a DeTable<'a>) -> Part<'a> {
        let part = Part { place: String::new(), path: String::new(), offset, entries };
        if !self.place.is_empty() {
            return Part { place: self.place.clone(), path: format!("{}{name}[{number}].", self.path), ..part };
        }
        let place = match part.find("table") {
            Some((_, _, DeValue::String(table))) => format!("[[{name}]] {table:?}"),
            _ => format!("[[{name}]] number {number}"),
        };
        Part { place, ..part }
    }
}

fn text_of<'a>(name: &'a Spanned<DeString<'_>>) -> &'a str {
    name.get_ref()
}

fn is_legal(text: &str) -> bool {
    !text.trim().is_empty() && check_plain(text, TEXT_LENGTH_MAX).is_ok()
}

/// The text that a column with this value would have: lists and tables become JSON.
pub(super) fn constant(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        DeValue::Datetime(time) => Ok(time.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Integer(_) | DeValue::Array(_) | DeValue::Table(_) => {
            json(value).map(|value| value.to_string()).ok_or("must be text, a number, true, false, a list or a table")
        }
    }
}

fn json(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::from(text.as_ref())),
        DeValue::Boolean(flag) => Some(Value::from(*flag)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::from),
        DeValue::Float(_) | DeValue::Datetime(_) => None,
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect(),
        DeValue::Table(entries) => {
            let entry = |(name, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
                Some((text_of(name).to_owned(), json(value.get_ref())?))
            };
            entries.iter().map(entry).collect::<Option<serde_json::Map<String, Value>>>().map(Value::Object)
        }
    }
}
