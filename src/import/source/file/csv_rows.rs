//! Rows of a file of comma-separated values (RFC 4180) with a header line.
//!
//! Quoted cells, CRLF and a byte order mark are taken; an empty cell is NULL, since the format knows no other. Names of
//! the header are compared without white space around them. Invariant: a record is bounded before it is read, so that a
//! quote that is never closed does not swallow the file.

use std::io::{self, Read};

use csv::{ByteRecord, ErrorKind, ReaderBuilder};

use super::super::{no_column, rows::text_of};
use super::{Ask, Fault, Input, ROW_BYTES_MAX, Row, SourceError, cut};

const BUFFER_BYTES: usize = 1 << 16;

/// A reader of records.
pub(super) struct CsvRows {
    reader: csv::Reader<Bounded>,
    record: ByteRecord,
    header: Vec<String>,
    /// The place of the id; `None` for the number of the line.
    id: Option<usize>,
    columns: Vec<usize>,
}

impl CsvRows {
    pub(super) fn begin(input: Input) -> Result<Self, SourceError> {
        let bounded = Bounded { input, left: ROW_BYTES_MAX, ends: None };
        let mut reader = ReaderBuilder::new().buffer_capacity(BUFFER_BYTES).from_reader(bounded);
        let names = reader.byte_headers().map_err(|error| of_header(&error))?;
        let header: Vec<String> = names.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
        if header.is_empty() {
            return Err(SourceError::Refused("line 1: the file has no header line".to_owned()));
        }
        if reader.get_ref().ends == Some(Ends::Return) {
            return Err(SourceError::Refused("line 1: lines end with a carriage return alone".to_owned()));
        }
        Ok(Self { reader, record: ByteRecord::new(), header, id: None, columns: Vec::new() })
    }

    /// Finds the columns in the header.
    pub(super) fn turn_to(&mut self, ask: &Ask) -> Result<(), SourceError> {
        let mut problems = Vec::new();
        let mut find = |name: &str| {
            let mut places = self.header.iter().enumerate().filter(|(_, known)| *known == name).map(|(place, _)| place);
            let place = places.next();
            if place.is_none() {
                problems.push(no_column("", name, self.header.iter().map(String::as_str)));
            }
            if places.next().is_some() {
                problems.push(format!("the header has {name:?} twice"));
            }
            place.unwrap_or_default()
        };
        let id = if ask.id.is_empty() { None } else { Some(find(&ask.id)) };
        let columns: Vec<usize> = ask.columns.iter().map(|column| find(&column.name)).collect();
        if !problems.is_empty() {
            return Err(SourceError::of_problems(&problems));
        }
        (self.id, self.columns) = (id, columns);
        Ok(())
    }

    pub(super) fn next(&mut self, ask: &Ask) -> Result<Option<Row>, Fault> {
        self.reader.get_mut().left = ROW_BYTES_MAX;
        match self.reader.read_byte_record(&mut self.record) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(self.fault(&error)),
        }
        let id = match self.id {
            None => self.line().to_string(),
            Some(place) => match std::str::from_utf8(self.record.get(place).unwrap_or_default()) {
                Ok("") => return Err(Fault::Line(format!("line {}: no id", self.line()))),
                Ok(id) => id.to_owned(),
                Err(_) => return Err(Fault::Line(format!("line {}: its id is not UTF-8 text", self.line()))),
            },
        };
        let values = ask.columns.iter().zip(&self.columns).map(|(column, place)| {
            let bytes = self.record.get(*place).filter(|bytes| !bytes.is_empty())?;
            Some(match std::str::from_utf8(bytes) {
                Ok(text) => cut(text, column),
                Err(_) => cut(&text_of(bytes), column),
            })
        });
        Ok(Some(Row { id, values: values.collect() }))
    }

    /// The line on which the last record begins. The reader counts line feeds, and a record ends before that of a CRLF.
    pub(super) fn line(&self) -> u64 {
        let counted = self.record.position().map_or(0, csv::Position::line);
        if self.reader.get_ref().ends == Some(Ends::ReturnFeed) { counted + 1 } else { counted }
    }

    fn fault(&self, error: &csv::Error) -> Fault {
        let line = self.line();
        match error.kind() {
            ErrorKind::Io(_) if self.reader.get_ref().left == 0 => {
                Fault::End(SourceError::Refused(format!("line {line}: a row of more than {ROW_BYTES_MAX} bytes")))
            }
            ErrorKind::UnequalLengths { expected_len, len, .. } => {
                Fault::Line(format!("line {line}: {len} cells where the header has {expected_len}"))
            }
            ErrorKind::Io(error) => Fault::End(super::gone(error)),
            _ => Fault::End(SourceError::Refused(format!("line {line}: cannot be read as CSV"))),
        }
    }
}

fn of_header(error: &csv::Error) -> SourceError {
    match error.kind() {
        ErrorKind::Io(error) => super::gone(error),
        _ => SourceError::Refused("line 1: the header cannot be read as CSV".to_owned()),
    }
}

/// How the lines of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Feed,
    ReturnFeed,
    Return,
}

/// A file that gives no more than a bound until the bound is set again, and sees how its lines end.
struct Bounded {
    input: Input,
    left: u64,
    ends: Option<Ends>,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("a row is too long"));
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.input.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        self.left = self.left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        if self.ends.is_none() {
            self.ends = ends_of(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

/// How the first line ends that ends here; `None` where none does.
fn ends_of(bytes: &[u8]) -> Option<Ends> {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(0) => Some(Ends::Feed),
        Some(place) if bytes.get(place - 1) == Some(&b'\r') => Some(Ends::ReturnFeed),
        Some(_) => Some(Ends::Feed),
        None => bytes.iter().rev().skip(1).any(|byte| *byte == b'\r').then_some(Ends::Return),
    }
}
