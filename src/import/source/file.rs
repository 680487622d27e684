//! A source that is a file or standard input: comma-separated values, or a JSON object a line.
//!
//! Lines are read in order by a thread that may block, a batch at a time; what is read is not kept. Who goes on after
//! an id passes over the rows before it. Standard input can be read once. Invariant: a line that cannot be read is an
//! error that names the line and shows nothing of it, never a row that is left out.

mod csv_rows;
mod json_rows;

use std::{
    collections::HashSet,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Read,
    path::PathBuf,
};

use zeroize::Zeroizing;

use super::{Ask, AskColumn, Row, SourceError};
use crate::config::{SourceKind, SourceUrl};
use csv_rows::CsvRows;
use json_rows::JsonRows;

/// The longest line or record, in bytes.
const ROW_BYTES_MAX: u64 = 16 << 20;
/// How many problems of lines are told at once.
const PROBLEMS_MAX: usize = 10;
/// How many ids are remembered to find one that stands in two rows. Behind them it is not looked for.
const IDS_MAX: usize = 1 << 20;

/// The bytes of a file.
type Input = Box<dyn Read + Send>;

/// A file, and how far it is read.
pub struct FileSource {
    place: Place,
    open: Option<Box<Open>>,
    /// Whether what can be read once has been opened.
    begun: bool,
    /// How many rows there are, once that is known.
    rows: Option<u64>,
}

#[derive(Clone)]
struct Place {
    /// `None` is standard input.
    path: Option<PathBuf>,
    format: Format,
    /// Whether it can be read from the beginning again.
    again: bool,
}

#[derive(Clone, Copy)]
enum Format {
    Csv,
    JsonLines,
}

/// Why there is no row.
enum Fault {
    /// This line cannot be read; the next one may.
    Line(String),
    /// Nothing more can be read.
    End(SourceError),
}

impl From<Fault> for SourceError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Line(words) => Self::Refused(words),
            Fault::End(error) => error,
        }
    }
}

impl FileSource {
    pub(super) async fn open(url: &SourceUrl) -> Result<Self, SourceError> {
        let format = match url.kind() {
            SourceKind::Csv => Format::Csv,
            SourceKind::JsonLines => Format::JsonLines,
            SourceKind::Postgres | SourceKind::Sqlite | SourceKind::MySql => {
                return Err(SourceError::Mapping("the source is no file".to_owned()));
            }
        };
        let path = Some(PathBuf::from(url.path())).filter(|path| path.as_os_str() != "-");
        let place = blocking(move || {
            let again = match &path {
                Some(path) => fs::metadata(path).map_err(|error| gone(&error))?.is_file(),
                None => false,
            };
            Ok(Place { path, format, again })
        });
        Ok(Self { place: place.await?, open: None, begun: false, rows: None })
    }

    /// Reads a file to its end; of standard input the header alone, where there is one.
    pub(super) async fn check(&mut self, ask: &Ask) -> Result<(), SourceError> {
        let (place, ask) = (self.place.clone(), ask.clone());
        if self.place.again {
            self.rows = Some(blocking(move || scan(&place, ask)).await?);
            return Ok(());
        }
        let open = self.begin_or_go_on(&ask, None)?;
        self.open = Some(blocking(move || open.or_begin(&place, ask)).await?);
        Ok(())
    }

    pub(super) async fn count(&mut self) -> Result<Option<u64>, SourceError> {
        if self.place.again && self.rows.is_none() {
            let place = self.place.clone();
            let ask = Ask { table: String::new(), id: String::new(), columns: Vec::new() };
            self.rows = Some(blocking(move || scan(&place, ask)).await?);
        }
        Ok(self.rows)
    }

    pub(super) async fn read(&mut self, ask: &Ask, after: Option<&str>, limit: usize) -> Result<Vec<Row>, SourceError> {
        let open = self.begin_or_go_on(ask, after)?;
        let (place, ask, after) = (self.place.clone(), ask.clone(), after.map(str::to_owned));
        let (open, rows) = blocking(move || {
            let mut open = open.or_begin(&place, ask)?;
            let rows = open.batch(after.as_deref(), limit)?;
            Ok((open, rows))
        })
        .await?;
        self.open = Some(open);
        Ok(rows)
    }

    /// What is open already, if it stands where the next batch begins.
    fn begin_or_go_on(&mut self, ask: &Ask, after: Option<&str>) -> Result<Going, SourceError> {
        if let Some(open) = self.open.take().filter(|open| open.stands_at(ask, after)) {
            return Ok(Going::On(open));
        }
        if self.begun && !self.place.again {
            return Err(SourceError::Refused("standard input can be read once; write it to a file".to_owned()));
        }
        self.begun = true;
        Ok(Going::Anew)
    }
}

enum Going {
    On(Box<Open>),
    Anew,
}

impl Going {
    fn or_begin(self, place: &Place, ask: Ask) -> Result<Box<Open>, SourceError> {
        let mut open = match self {
            Self::On(open) => open,
            Self::Anew => Box::new(Open::begin(place)?),
        };
        if open.last.is_none() {
            open.turn_to(ask)?;
        }
        Ok(open)
    }
}

/// A file that is being read.
struct Open {
    rows: Rows,
    ask: Ask,
    /// The id of the last row that was given out.
    last: Option<String>,
}

enum Rows {
    Csv(Box<CsvRows>),
    JsonLines(Box<JsonRows>),
}

impl Open {
    fn begin(place: &Place) -> Result<Self, SourceError> {
        let input: Input = match &place.path {
            Some(path) => Box::new(File::open(path).map_err(|error| gone(&error))?),
            None => Box::new(std::io::stdin()),
        };
        let rows = match place.format {
            Format::Csv => Rows::Csv(Box::new(CsvRows::begin(input)?)),
            Format::JsonLines => Rows::JsonLines(Box::new(JsonRows::begin(input))),
        };
        let ask = Ask { table: String::new(), id: String::new(), columns: Vec::new() };
        Ok(Self { rows, ask, last: None })
    }

    fn stands_at(&self, ask: &Ask, after: Option<&str>) -> bool {
        self.last.is_none() || (self.ask == *ask && self.last.as_deref() == after)
    }

    fn turn_to(&mut self, ask: Ask) -> Result<(), SourceError> {
        match &mut self.rows {
            Rows::Csv(rows) => rows.turn_to(&ask)?,
            Rows::JsonLines(rows) => rows.turn_to(&ask),
        }
        self.ask = ask;
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Row>, Fault> {
        match &mut self.rows {
            Rows::Csv(rows) => rows.next(&self.ask),
            Rows::JsonLines(rows) => rows.next(&self.ask),
        }
    }

    /// The line of the row that was read last.
    fn line(&self) -> u64 {
        match &self.rows {
            Rows::Csv(rows) => rows.line(),
            Rows::JsonLines(rows) => rows.line(),
        }
    }

    /// What the mapping names and no row has, known at the end.
    fn missing(&self) -> Result<(), SourceError> {
        let missing = match &self.rows {
            Rows::Csv(_) => return Ok(()),
            Rows::JsonLines(rows) => rows.unseen(),
        };
        if missing.is_empty() {
            return Ok(());
        }
        let problems: Vec<String> = missing
            .iter()
            .map(|name| format!("no line has a field {name:?}: if that is right, take it out of the mapping"))
            .collect();
        Err(SourceError::of_problems(&problems))
    }

    fn batch(&mut self, after: Option<&str>, limit: usize) -> Result<Vec<Row>, SourceError> {
        if let Some(after) = after.filter(|_| self.last.is_none()) {
            self.pass(after)?;
        }
        let mut rows = Vec::new();
        while rows.len() < limit {
            let Some(row) = self.next()? else {
                self.missing()?;
                break;
            };
            rows.push(row);
        }
        if let Some(row) = rows.last() {
            self.last = Some(row.id.clone());
        }
        Ok(rows)
    }

    /// Passes over the rows up to that id.
    fn pass(&mut self, after: &str) -> Result<(), SourceError> {
        while let Some(row) = self.next()? {
            if row.id == after {
                self.last = Some(row.id);
                return Ok(());
            }
        }
        Err(SourceError::Refused(format!("no row has the id {after:?}, after which to go on: is it another file?")))
    }
}

/// Reads a file to its end and says what is wrong with it. Gives the number of its rows.
fn scan(place: &Place, ask: Ask) -> Result<u64, SourceError> {
    let mut open = Open::begin(place)?;
    open.turn_to(ask)?;
    let mut ids = HashSet::new();
    let mut problems = Vec::new();
    let mut rows: u64 = 0;
    while problems.len() < PROBLEMS_MAX {
        match open.next() {
            Ok(None) => break,
            Ok(Some(row)) => {
                rows += 1;
                let mut hasher = DefaultHasher::new();
                row.id.hash(&mut hasher);
                if ids.len() < IDS_MAX && !ids.insert(hasher.finish()) {
                    problems.push(format!("line {}: its id stands in an earlier row too", open.line()));
                }
            }
            Err(Fault::Line(words)) => problems.push(words),
            Err(Fault::End(error)) => return Err(error),
        }
    }
    if problems.is_empty() {
        return open.missing().map(|()| rows);
    }
    Err(SourceError::Refused(problems.join("\n")))
}

/// A text, cut to what is wanted of it.
fn cut(text: &str, column: &AskColumn) -> Zeroizing<String> {
    let characters = usize::try_from(column.characters()).unwrap_or(usize::MAX);
    let end = text.char_indices().nth(characters).map_or(text.len(), |(end, _)| end);
    Zeroizing::new(text.get(..end).unwrap_or_default().to_owned())
}

fn gone(error: &std::io::Error) -> SourceError {
    SourceError::Unreachable(error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(SourceError::Unreachable("reading the file was broken off".to_owned())),
    }
}

#[cfg(test)]
mod tests;
