//! Rows of a file with a JSON object a line (JSON Lines).
//!
//! Texts come as they are, numbers and booleans as JSON writes them, lists and objects as JSON text, null and what is
//! not there as NULL. Empty lines are passed over. Invariant: a line is bounded before it is parsed, nothing of it is
//! in an error, and a number that came to us rounded is neither an id nor a text: as a text it would be another one.

use std::io::{BufRead as _, BufReader, Read as _};

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Ask, AskColumn, Fault, Input, ROW_BYTES_MAX, Row, SourceError, cut};

const BUFFER_BYTES: usize = 1 << 16;
/// The most characters that are asked for of what is read as a number. Of anything else more is asked for.
const NUMBER_LENGTH_MAX: u32 = 64;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A reader of lines.
pub(super) struct JsonRows {
    input: BufReader<Input>,
    buffer: Vec<u8>,
    line: u64,
    /// Whether any row was read.
    any: bool,
    /// The fields that no row had so far.
    unseen: Vec<String>,
}

impl JsonRows {
    pub(super) fn begin(input: Input) -> Self {
        let input = BufReader::with_capacity(BUFFER_BYTES, input);
        Self { input, buffer: Vec::new(), line: 0, any: false, unseen: Vec::new() }
    }

    pub(super) fn turn_to(&mut self, ask: &Ask) {
        self.unseen = ask.columns.iter().map(|column| column.name.clone()).collect();
    }

    /// The fields that no row had, once all are read. A file without rows has nothing to say.
    pub(super) fn unseen(&self) -> &[String] {
        if self.any { &self.unseen } else { &[] }
    }

    /// The line that was read last.
    pub(super) const fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn next(&mut self, ask: &Ask) -> Result<Option<Row>, Fault> {
        let line = loop {
            if !self.fill()? {
                return Ok(None);
            }
            let bytes = match self.buffer.strip_prefix(BYTE_ORDER_MARK) {
                Some(rest) if self.line == 1 => rest,
                Some(_) | None => self.buffer.as_slice(),
            };
            if !bytes.trim_ascii().is_empty() {
                break bytes;
            }
        };
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
            let (line, column) = (self.line, error.column());
            Fault::Line(format!("line {line}: not a JSON object, as of column {column}"))
        })?;
        self.any = true;
        if !self.unseen.is_empty() {
            self.unseen.retain(|name| !object.contains_key(name));
        }
        let id = if ask.id.is_empty() {
            Some(self.line.to_string())
        } else {
            let id = object.get(&ask.id);
            if id.is_some_and(is_rounded) {
                let words = "its id is a number too large, or with a fraction: write it as a text";
                return Err(Fault::Line(format!("line {}: {words}", self.line)));
            }
            id.and_then(text_of)
        };
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            return Err(Fault::Line(format!("line {}: no id", self.line)));
        };
        let values = ask.columns.iter().map(|column| object.get(&column.name).and_then(|value| cut_of(value, column)));
        Ok(Some(Row { id, values: values.collect() }))
    }

    /// Reads a line. `false` at the end.
    fn fill(&mut self) -> Result<bool, Fault> {
        self.buffer.clear();
        let mut bounded = self.input.by_ref().take(ROW_BYTES_MAX + 1);
        let read = bounded.read_until(b'\n', &mut self.buffer);
        let count = read.map_err(|error| Fault::End(super::gone(&error)))?;
        self.line += 1;
        if u64::try_from(count).unwrap_or(u64::MAX) > ROW_BYTES_MAX {
            let words = format!("line {}: more than {ROW_BYTES_MAX} bytes", self.line);
            return Err(Fault::End(SourceError::Refused(words)));
        }
        Ok(count > 0)
    }
}

/// Whether a number may have lost digits: it has a fraction or an exponent, or more than 64 bits.
fn is_rounded(value: &Value) -> bool {
    matches!(value, Value::Number(number) if number.is_f64())
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Some(value.to_string()),
    }
}

fn cut_of(value: &Value, column: &AskColumn) -> Option<Zeroizing<String>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(cut(text, column)),
        // As what is no UTF-8 text, it is refused wherever a control character is.
        Value::Number(number) if column.length_max > NUMBER_LENGTH_MAX && is_rounded(value) => {
            Some(cut(&format!("\0{number}"), column))
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Some(cut(&value.to_string(), column)),
    }
}
