//! Where existing keys come from: tables of PostgreSQL, SQLite, MySQL and MariaDB, and files.
//!
//! A source gives rows as text, in batches, in the order of an id, and knows nothing of keys. It is opened read-only
//! with a statement timeout of its own; only `contract.rs` writes. A name of a table or column is always quoted as an
//! identifier, and no value is pasted into SQL. Invariant: a batch is bounded by its limit and by the length that is
//! asked for of each column, however long the values in the source are; and who goes on after the last id of a batch
//! misses no row that was there when the first batch was read.

pub mod contract;
mod error;
mod file;
mod mysql;
mod postgres;
mod rows;
mod sqlite;

use std::{fmt, sync::Arc, time::Duration};

use zeroize::Zeroizing;

pub use error::SourceError;

use crate::config::{SourceKind, SourceUrl};
use file::FileSource;
use mysql::MySqlSource;
use postgres::PostgresSource;
use sqlite::SqliteSource;

/// What is read of a table: the id first, then the columns in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `table` or `schema.table`; empty for files.
    pub table: String,
    /// A column that is unique and never NULL; empty for the number of the line in a file.
    pub id: String,
    /// The columns, each with a bound.
    pub columns: Vec<AskColumn>,
}

/// A column and how much of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskColumn {
    /// The name of the column, as the source writes it.
    pub name: String,
    /// What is longer than this many characters comes as its first `length_max + 1`.
    pub length_max: u32,
    /// Whether a binary value is the bytes of a text. Otherwise it comes as `\x` and two digits a byte.
    pub is_text: bool,
}

impl AskColumn {
    /// How many characters come over at the most: one more than is allowed, so that too long is told from just fits.
    fn characters(&self) -> u32 {
        self.length_max.saturating_add(1).min(CHARACTERS_MAX)
    }

    /// How many bytes of a binary value are enough for that many characters, of a text or of `\x` and two digits a byte.
    fn bytes(&self) -> u32 {
        if self.is_text {
            self.characters().saturating_mul(CHARACTER_BYTES_MAX).min(CHARACTERS_MAX)
        } else {
            self.characters() / 2 + 1
        }
    }
}

/// Of UTF-8.
const CHARACTER_BYTES_MAX: u32 = 4;
/// What every engine takes as a length: 32 bits with a sign.
const CHARACTERS_MAX: u32 = 0x7fff_0000;

/// A row of a table. Its values may be keys: they are wiped on drop, and `Debug` shows the id alone.
pub struct Row {
    /// The id as text. It is what the next batch goes on after.
    pub id: String,
    /// The values as text, in the order of the columns; `None` for NULL. A value that is no UTF-8 text begins with a
    /// NUL.
    pub values: Vec<Option<Zeroizing<String>>>,
}

impl fmt::Debug for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Row").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A source that is open for reading.
pub enum Source {
    /// Tables of PostgreSQL.
    Postgres(PostgresSource),
    /// Tables of SQLite.
    Sqlite(SqliteSource),
    /// Tables of MySQL or MariaDB.
    MySql(MySqlSource),
    /// A file or standard input.
    File(FileSource),
}

impl Source {
    /// Opens a source, read-only. `statement_timeout` is the longest statement of a database.
    ///
    /// # Errors
    /// `Unreachable` where it is not there, `Mapping` where the URL cannot be read.
    pub async fn open(url: &SourceUrl, statement_timeout: Duration) -> Result<Self, SourceError> {
        match url.kind() {
            SourceKind::Postgres => PostgresSource::open(url, statement_timeout).await.map(Self::Postgres),
            SourceKind::Sqlite => SqliteSource::open(url, statement_timeout).await.map(Self::Sqlite),
            SourceKind::MySql => MySqlSource::open(url, statement_timeout).await.map(Self::MySql),
            SourceKind::Csv | SourceKind::JsonLines => FileSource::open(url).await.map(Self::File),
        }
    }

    /// Checks that table and columns exist, and that the id is unique and never NULL. Of a file every line is read.
    ///
    /// # Errors
    /// `Mapping` with every problem, a line each; of a file `Refused` with the lines that cannot be read.
    pub async fn check(&mut self, ask: &Ask) -> Result<(), SourceError> {
        match self {
            Self::Postgres(source) => source.check(ask).await,
            Self::Sqlite(source) => source.check(ask).await,
            Self::MySql(source) => source.check(ask).await,
            Self::File(source) => source.check(ask).await,
        }
    }

    /// How many rows there are; `None` of standard input.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub async fn count(&mut self, ask: &Ask) -> Result<Option<u64>, SourceError> {
        match self {
            Self::Postgres(source) => source.count(ask).await.map(Some),
            Self::Sqlite(source) => source.count(ask).await.map(Some),
            Self::MySql(source) => source.count(ask).await.map(Some),
            Self::File(source) => source.count().await,
        }
    }

    /// The next rows after that id, at most `limit`; fewer than that only at the end. `after` is what [`Row::id`]
    /// gave, `None` for the beginning.
    ///
    /// # Errors
    /// `Unreachable` where the source went away, `Refused` with its words or the line that cannot be read, `Mapping`
    /// where `check` would say it.
    pub async fn read(&mut self, ask: &Ask, after: Option<&str>, limit: usize) -> Result<Vec<Row>, SourceError> {
        match self {
            Self::Postgres(source) => source.read(ask, after, limit).await,
            Self::Sqlite(source) => source.read(ask, after, limit).await,
            Self::MySql(source) => source.read(ask, after, limit).await,
            Self::File(source) => source.read(ask, after, limit).await,
        }
    }

    /// Closes the connection and says so to the server.
    pub async fn close(self) {
        match self {
            Self::Postgres(source) => source.close().await,
            Self::Sqlite(source) => source.close().await,
            Self::MySql(source) => source.close().await,
            Self::File(_) => {}
        }
    }
}

/// The statements that read a table, put together once for many batches.
struct Plan {
    ask: Ask,
    /// The first batch. Takes the limit.
    first: Arc<str>,
    /// A batch after an id. Takes the id and the limit.
    next: Arc<str>,
    /// The number of rows.
    count: Arc<str>,
}

/// A limit as the databases take it.
fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The one number of a count.
fn count_of(cells: &[rows::Cells]) -> u64 {
    cells.first().and_then(|cells| cells.text(0).parse().ok()).unwrap_or(0)
}

/// A problem for each column that is asked for and that a table does not have, the id first. `columns` are rows of the
/// catalog that begin with a name.
fn lacking(ask: &Ask, columns: &[rows::Cells], is_same: fn(&str, &str) -> bool) -> Vec<String> {
    let known = || columns.iter().map(|cells| cells.text(0));
    let asked = std::iter::once(&ask.id).chain(ask.columns.iter().map(|column| &column.name));
    let absent = asked.filter(|name| !known().any(|column| is_same(column, name)));
    absent.map(|name| no_column(&ask.table, name, known())).collect()
}

/// A problem of a mapping: no such column. A file has no name of a table.
fn no_column<'a>(table: &str, name: &str, mut known: impl Iterator<Item = &'a str>) -> String {
    let close = known.find(|other| other.eq_ignore_ascii_case(name));
    let hint = close.map(|other| format!(" (did you mean {other:?}?)")).unwrap_or_default();
    let place = if table.is_empty() { "the file".to_owned() } else { format!("table {table:?}") };
    format!("{place} has no column {name:?}{hint}")
}

#[cfg(test)]
mod tests;
