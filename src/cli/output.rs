//! What the commands print: tables for people, JSON for programs.
//!
//! Answers go to standard output, errors and hints to standard error; nothing is printed past this file. Texts
//! come from a server and may hold anything. Invariant: no control character and no character that turns the
//! direction of writing reaches the terminal raw, so a key's name cannot move the cursor or fake a line.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Map, Value};

use super::failure::Failure;

/// A message as its fields in the order of the contract; absent ones are `Null`.
pub(super) type Fields = Vec<(&'static str, Value)>;

/// The same fields as a JSON object.
pub(super) fn object(fields: Fields) -> Value {
    let map: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Value::Object(map)
}

/// A JSON document with a line feed at its end.
pub(super) fn json(value: &Value) -> String {
    let mut text = String::new();
    // Inside a document such characters can only stand in strings, where `\u` means the same.
    for character in format!("{value:#}").chars() {
        if character != '\n' && is_unsafe(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(character);
        }
    }
    text.push('\n');
    text
}

/// One record, a line per field; empty fields are left out.
pub(super) fn record(fields: &Fields) -> String {
    let shown: Vec<(&str, String)> =
        fields.iter().map(|(name, value)| (*name, cell(value))).filter(|(_, text)| !text.is_empty()).collect();
    let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown.iter().fold(String::new(), |mut lines, (name, text)| {
        let label = format!("{name}:");
        let _ = writeln!(lines, "{label:<width$} {text}", width = width + 1);
        lines
    })
}

/// Records as a table with the named columns.
pub(super) fn table(columns: &[&'static str], records: &[Fields]) -> String {
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|name| name.to_uppercase()).collect()];
    for fields in records {
        let cells = columns.iter().map(|column| {
            let value = fields.iter().find(|(name, _)| name == column);
            let text = value.map(|(_, value)| cell(value)).unwrap_or_default();
            if text.is_empty() { "-".to_owned() } else { text }
        });
        lines.push(cells.collect());
    }
    let width = |at: usize| {
        let cells = lines.iter().filter_map(|line| line.get(at));
        cells.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    lines.iter().fold(String::new(), |mut text, line| {
        let padded: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
        text
    })
}

/// A value as a person reads it, made safe for a terminal. Absent is empty.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => escape(text),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{}={}", escape(name), cell(value))).collect::<Vec<_>>().join(" ")
        }
    }
}

/// Text with everything that a terminal could act on written out.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// Writes an answer to standard output. A reader that went away (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    match write(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::refused(format!("standard output cannot be written: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes an answer to standard output, for answers that must not get lost.
pub(super) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard error. Where even that cannot be written nobody is left to tell.
pub(super) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_and_direction_characters_never_reach_the_terminal_raw() {
        let nasty = "a\u{1b}[2J\r\n\u{9b}31m\u{202e}b\u{7f}";
        let fields: Fields = vec![("name", json!(nasty)), ("tags", json!({nasty: [nasty]}))];
        let value = object(fields.clone());
        let texts = [record(&fields), table(&["name", "tags"], &[fields]), json(&value)];
        for text in texts {
            assert!(text.chars().all(|c| c == '\n' || !is_unsafe(c)), "{text:?}");
            assert!(text.lines().count() < 20);
        }
        assert_eq!(serde_json::from_str::<Value>(&json(&value)).ok(), Some(value));
    }

    #[test]
    fn columns_line_up_and_absent_values_are_dashes() {
        let records: Vec<Fields> =
            vec![vec![("id", json!("1")), ("name", json!("first"))], vec![("id", json!("22")), ("name", Value::Null)]];
        assert_eq!(table(&["id", "name"], &records), "ID  NAME\n1   first\n22  -\n");
    }

    #[test]
    fn a_record_leaves_empty_fields_out() {
        let fields: Fields = vec![("id", json!("1")), ("note", json!("")), ("enabled", json!(false))];
        assert_eq!(record(&fields), "id:      1\nenabled: false\n");
    }
}
