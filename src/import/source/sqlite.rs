//! A source in a file of SQLite.
//!
//! One connection, one query a batch. SQLite has no statement timeout: a progress handler ends what takes too long. A
//! column may hold values of any kind, so each value is turned to text by what it is. Invariant: ids are compared by
//! their kind, all integers, all texts or all blobs; a table with ids of several kinds, of numbers with a fraction or
//! without an id in some row is refused, since nobody could go on after one of them.

use std::{
    collections::BTreeSet,
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, SqlSafeStr, Sqlite, SqliteConnection,
    sqlite::SqliteConnectOptions,
};

use super::{
    Ask, Plan, Row, SourceError, count_of,
    error::{connected, within},
    lacking, limit_of,
    rows::{self, Cells, quoted, split_table},
};
use crate::config::SourceUrl;

/// Steps of SQLite's machine between two looks at the clock: well under a millisecond.
const STEPS: i32 = 10_000;
/// How many rows the thread that reads may be ahead.
const ROWS_AHEAD: usize = 1024;
/// How long somebody else's lock is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const TABLE: &str = "SELECT name, type FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
/// Columns, generated ones included: name, declared type, place in the primary key.
const COLUMNS: &str = "SELECT name, type, CAST(pk AS TEXT) FROM pragma_table_xinfo(?1, 'main')";
/// The columns of unique indexes: index, where it comes from, whether it is partial, column, collation.
const UNIQUE: &str = "SELECT l.name, l.origin, CAST(l.partial AS TEXT), x.name, x.coll \
     FROM pragma_index_list(?1, 'main') AS l, pragma_index_xinfo(l.name, 'main') AS x \
     WHERE l.\"unique\" = 1 AND x.key = 1";

/// A connection to the source.
pub struct SqliteSource {
    connection: SqliteConnection,
    statement_timeout: Duration,
    deadline: Deadline,
    plan: Option<Arc<(Plan, IdKind)>>,
}

/// What the ids of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IdKind {
    Integer,
    Text,
    Blob,
}

/// When the statement under way has to end.
struct Deadline {
    begun: Instant,
    end_ms: Arc<AtomicU64>,
}

impl Deadline {
    fn new() -> Self {
        Self { begun: Instant::now(), end_ms: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn set(&self, timeout: Duration) {
        let end = self.begun.elapsed().saturating_add(timeout);
        self.end_ms.store(u64::try_from(end.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Says whether a statement may go on.
    fn handler(&self) -> impl FnMut() -> bool + Send + use<> {
        let (begun, end_ms) = (self.begun, Arc::clone(&self.end_ms));
        move || begun.elapsed().as_millis() < u128::from(end_ms.load(Ordering::Relaxed))
    }
}

impl SqliteSource {
    pub(super) async fn open(url: &SourceUrl, statement_timeout: Duration) -> Result<Self, SourceError> {
        Self::connect(url, statement_timeout, true).await
    }

    /// What is dropped from a file that is opened for writing is overwritten with zeros.
    pub(super) async fn connect(
        url: &SourceUrl,
        statement_timeout: Duration,
        read_only: bool,
    ) -> Result<Self, SourceError> {
        let options = SqliteConnectOptions::from_str(url.expose())?
            .create_if_missing(false)
            .read_only(read_only)
            .pragma("query_only", if read_only { "ON" } else { "OFF" })
            .pragma("secure_delete", "ON")
            .foreign_keys(false)
            .busy_timeout(BUSY_TIMEOUT)
            .row_buffer_size(ROWS_AHEAD)
            .disable_statement_logging();
        let mut connection = connected(options.connect()).await?;
        let deadline = Deadline::new();
        connection.lock_handle().await?.set_progress_handler(STEPS, deadline.handler());
        let mut source = Self { connection, statement_timeout, deadline, plan: None };
        // Only now is the file itself read: it may be none of SQLite's.
        source.catalog("SELECT type FROM main.sqlite_schema LIMIT 1", &[]).await?;
        Ok(source)
    }

    pub(super) async fn check(&mut self, ask: &Ask) -> Result<(), SourceError> {
        self.plan = None;
        self.plan(ask).await.map(|_| ())
    }

    pub(super) async fn count(&mut self, ask: &Ask) -> Result<u64, SourceError> {
        let plan = self.plan(ask).await?;
        Ok(count_of(&self.catalog(AssertSqlSafe(Arc::clone(&plan.0.count)), &[]).await?))
    }

    pub(super) async fn read(&mut self, ask: &Ask, after: Option<&str>, limit: usize) -> Result<Vec<Row>, SourceError> {
        let plan = self.plan(ask).await?;
        let (plan, kind) = (&plan.0, plan.1);
        let query = match after {
            None => sqlx::query::<Sqlite>(AssertSqlSafe(Arc::clone(&plan.first))).bind(None::<String>),
            Some(id) => {
                let query = sqlx::query::<Sqlite>(AssertSqlSafe(Arc::clone(&plan.next)));
                match kind {
                    IdKind::Integer | IdKind::Text => query.bind(id),
                    IdKind::Blob => query.bind(bytes_of(id)),
                }
            }
        };
        let query = query.bind(limit_of(limit));
        self.deadline.set(self.statement_timeout);
        within(self.statement_timeout, rows::collect(self.connection.fetch(query), ask.columns.len(), limit)).await
    }

    pub(super) async fn close(self) {
        // The file was read, or what was written is committed.
        let _ = self.connection.close().await;
    }

    /// Runs a statement that gives no rows.
    pub(super) async fn run(&mut self, statement: String) -> Result<(), SourceError> {
        self.deadline.set(self.statement_timeout);
        within(self.statement_timeout, self.connection.execute(AssertSqlSafe(statement))).await.map(|_| ())
    }

    /// Asks the catalog, or for a few texts.
    pub(super) async fn catalog(&mut self, sql: impl SqlSafeStr, texts: &[&str]) -> Result<Vec<Cells>, SourceError> {
        let mut query = sqlx::query::<Sqlite>(sql).persistent(false);
        for text in texts {
            query = query.bind(*text);
        }
        self.deadline.set(self.statement_timeout);
        within(self.statement_timeout, rows::catalog(self.connection.fetch(query))).await
    }

    /// The name of a table as the file writes it.
    pub(super) async fn table(&mut self, name: &str) -> Result<String, SourceError> {
        let (schema, table) = split_table(name);
        if schema.is_some_and(|schema| !schema.eq_ignore_ascii_case("main")) {
            return Err(SourceError::Mapping(format!(
                "table {name:?}: a file of SQLite has the schema \"main\" alone"
            )));
        }
        let found = self.catalog(TABLE, &[table]).await?;
        match found.iter().find(|cells| matches!(cells.text(1), "table" | "view")) {
            Some(cells) if cells.text(1) == "table" => Ok(cells.text(0).to_owned()),
            Some(_) => {
                Err(SourceError::Mapping(format!("{name:?} is not a table; rows are read by a unique column of one")))
            }
            None => Err(SourceError::Mapping(format!("there is no table {name:?}"))),
        }
    }

    async fn plan(&mut self, ask: &Ask) -> Result<Arc<(Plan, IdKind)>, SourceError> {
        if let Some(plan) = self.plan.as_ref().filter(|plan| plan.0.ask == *ask) {
            return Ok(Arc::clone(plan));
        }
        let table = self.table(&ask.table).await?;
        let columns = self.catalog(COLUMNS, &[&table]).await?;
        let unique = self.catalog(UNIQUE, &[&table]).await?;
        let mut problems = lacking(ask, &columns, str::eq_ignore_ascii_case);
        let table = format!("\"main\".{}", quoted(&table, '"'));
        let mut order = None;
        let mut kind = IdKind::Integer;
        if columns.iter().any(|cells| cells.text(0).eq_ignore_ascii_case(&ask.id)) {
            order = collation(&ask.id, &columns, &unique);
            if order.is_none() {
                problems.push(format!("column {:?} of {:?} has no unique index and so is no id", ask.id, ask.table));
            }
            let sql = format!("SELECT DISTINCT typeof(s.{}) FROM {table} AS s", quoted(&ask.id, '"'));
            match kind_of(&self.catalog(AssertSqlSafe(sql), &[]).await?) {
                Ok(found) => kind = found,
                Err(reason) => problems.push(format!("column {:?} of {:?} {reason}", ask.id, ask.table)),
            }
        }
        let Some(order) = order.filter(|_| problems.is_empty()) else {
            return Err(SourceError::of_problems(&problems));
        };
        let plan = Arc::new((plan_of(ask, &table, kind, &order), kind));
        self.plan = Some(Arc::clone(&plan));
        Ok(plan)
    }
}

/// The collation under which a column is unique by itself, empty for the row's own number; `None` where it is not.
fn collation(id: &str, columns: &[Cells], unique: &[Cells]) -> Option<String> {
    let keys: Vec<&Cells> = columns.iter().filter(|cells| cells.text(2) != "0").collect();
    let is_row_number = matches!(keys.as_slice(), [key] if key.text(0).eq_ignore_ascii_case(id)
            && key.text(1).eq_ignore_ascii_case("INTEGER"))
        && !unique.iter().any(|cells| cells.text(1) == "pk");
    if is_row_number {
        return Some(String::new());
    }
    let alone = |index: &str| unique.iter().filter(|cells| cells.text(0) == index).count() == 1;
    unique
        .iter()
        .find(|cells| cells.text(3).eq_ignore_ascii_case(id) && !cells.is(2) && alone(cells.text(0)))
        .map(|cells| cells.text(4).to_owned())
}

fn kind_of(found: &[Cells]) -> Result<IdKind, String> {
    let kinds: BTreeSet<&str> = found.iter().map(|cells| cells.text(0)).collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    match kinds.as_slice() {
        // An empty table has nothing to go on after.
        [] | ["integer"] => Ok(IdKind::Integer),
        ["text"] => Ok(IdKind::Text),
        ["blob"] => Ok(IdKind::Blob),
        kinds if kinds.contains(&"null") => Err("is NULL in some rows and so is no id".to_owned()),
        kinds => Err(format!("holds values of kinds that have no order as ids: {}", kinds.join(", "))),
    }
}

fn plan_of(ask: &Ask, table: &str, kind: IdKind, order: &str) -> Plan {
    let name = format!("s.{}", quoted(&ask.id, '"'));
    let (key, id, after) = match kind {
        IdKind::Integer => (name.clone(), format!("CAST({name} AS TEXT)"), "CAST(?1 AS INTEGER)"),
        IdKind::Text if order.is_empty() => (name.clone(), name.clone(), "?1"),
        IdKind::Text => (format!("{name} COLLATE {}", quoted(order, '"')), name.clone(), "?1"),
        IdKind::Blob => (name.clone(), format!(r"'\x' || lower(hex({name}))"), "?1"),
    };
    let mut texts = vec![id];
    for column in &ask.columns {
        let name = format!("s.{}", quoted(&column.name, '"'));
        let (characters, bytes) = (column.characters(), column.bytes());
        let blob = if column.is_text {
            format!("substr({name}, 1, {bytes})")
        } else {
            format!("substr('\\x' || lower(hex(substr({name}, 1, {bytes}))), 1, {characters})")
        };
        // substr() stops at a NUL, and would make another text of one that holds it: such a text is marked instead.
        texts.push(format!(
            "CASE typeof({name}) \
             WHEN 'blob' THEN {blob} \
             WHEN 'text' THEN CASE WHEN instr({name}, char(0)) > 0 THEN char(0) || substr({name}, 1, {characters}) \
             ELSE substr({name}, 1, {characters}) END \
             ELSE CAST({name} AS TEXT) END"
        ));
    }
    let texts = texts.join(", ");
    Plan {
        ask: ask.clone(),
        first: format!("SELECT {texts} FROM {table} AS s ORDER BY {key} LIMIT ?2").into(),
        next: format!("SELECT {texts} FROM {table} AS s WHERE {key} > {after} ORDER BY {key} LIMIT ?2").into(),
        count: format!("SELECT CAST(count(*) AS TEXT) FROM {table}").into(),
    }
}

/// The bytes of an id that is a blob, from the text that we made of it.
fn bytes_of(id: &str) -> Vec<u8> {
    let digits = id.strip_prefix("\\x").unwrap_or(id).as_bytes();
    let value = |digit: &u8| char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
    digits.chunks(2).map(|pair| pair.iter().fold(0_u8, |byte, digit| (byte << 4) | value(digit))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_back_from_its_text() {
        assert_eq!(bytes_of("\\x00ffab"), [0x00, 0xff, 0xab]);
        assert_eq!(bytes_of("\\x"), Vec::<u8>::new());
    }
}
