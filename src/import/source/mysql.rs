//! A source in MySQL or MariaDB.
//!
//! One connection, one query a batch; the server casts what is selected to text of utf8mb4 and cuts it. The two servers
//! name the statement timeout differently, and old ones have none: ours bounds what is waited for in any case.
//! Invariant: the session is in UTC, without modes that change what a value is (as one that pads CHAR does), and
//! read-only, but for the one that `contract` makes.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, MySql, MySqlConnection, SqlSafeStr,
    mysql::MySqlConnectOptions,
};

use super::{
    Ask, AskColumn, Plan, Row, SourceError, count_of,
    error::{connected, within},
    lacking, limit_of,
    rows::{self, Cells, quoted, split_table},
};
use crate::config::SourceUrl;

const SESSION: &str = "SET NAMES utf8mb4, SESSION sql_mode = '', SESSION time_zone = '+00:00', \
                       SESSION sql_select_limit = DEFAULT, SESSION sql_big_selects = 1";

const TABLE: &str = "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES \
     WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?";
const COLUMNS: &str = "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, IS_NULLABLE, CHARACTER_SET_NAME, COLLATION_NAME, \
     CAST(NUMERIC_PRECISION AS CHAR), CAST(NUMERIC_SCALE AS CHAR), CAST(ORDINAL_POSITION AS CHAR) \
     FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION";
/// Columns that are unique by themselves, in their whole length.
const UNIQUE: &str = "SELECT MIN(COLUMN_NAME) FROM information_schema.STATISTICS \
     WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND NON_UNIQUE = 0 \
     GROUP BY INDEX_NAME HAVING COUNT(*) = 1 AND MAX(SUB_PART) IS NULL";

/// A connection to the source.
pub struct MySqlSource {
    connection: MySqlConnection,
    statement_timeout: Duration,
    /// The database that the URL names, for tables that name none.
    database: String,
    plan: Option<Arc<Plan>>,
}

/// A table as the catalog knows it.
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
}

impl Table {
    /// Quoted, with its schema.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema, '`'), quoted(&self.name, '`'))
    }
}

impl MySqlSource {
    pub(super) async fn open(url: &SourceUrl, statement_timeout: Duration) -> Result<Self, SourceError> {
        let mut source = Self::connect(url, statement_timeout).await?;
        source.run("SET SESSION TRANSACTION READ ONLY".to_owned()).await?;
        source.set_statement_timeout(statement_timeout).await;
        Ok(source)
    }

    /// A session that may write and has no statement timeout yet.
    pub(super) async fn connect(url: &SourceUrl, statement_timeout: Duration) -> Result<Self, SourceError> {
        let options = MySqlConnectOptions::from_str(url.expose())?.disable_statement_logging();
        let connection = connected(options.connect()).await?;
        let mut source = Self { connection, statement_timeout, database: String::new(), plan: None };
        source.run(SESSION.to_owned()).await?;
        let found = source.catalog("SELECT DATABASE()", &[]).await?;
        source.database = found.first().map(|cells| cells.text(0).to_owned()).unwrap_or_default();
        Ok(source)
    }

    /// Sets the timeout in the words of MariaDB or MySQL, whichever the server knows. Of MySQL it holds for SELECT
    /// alone. Zero is none.
    pub(super) async fn set_statement_timeout(&mut self, timeout: Duration) {
        let (seconds, milliseconds) = (timeout.as_secs_f64(), timeout.as_millis());
        if self.run(format!("SET SESSION max_statement_time = {seconds}")).await.is_err() {
            // A server that knows neither is older than both: our own bound is left.
            let _ = self.run(format!("SET SESSION max_execution_time = {milliseconds}")).await;
        }
    }

    pub(super) async fn check(&mut self, ask: &Ask) -> Result<(), SourceError> {
        self.plan = None;
        self.plan(ask).await.map(|_| ())
    }

    pub(super) async fn count(&mut self, ask: &Ask) -> Result<u64, SourceError> {
        let plan = self.plan(ask).await?;
        Ok(count_of(&self.catalog(AssertSqlSafe(Arc::clone(&plan.count)), &[]).await?))
    }

    pub(super) async fn read(&mut self, ask: &Ask, after: Option<&str>, limit: usize) -> Result<Vec<Row>, SourceError> {
        let plan = self.plan(ask).await?;
        let query = match after {
            None => sqlx::query::<MySql>(AssertSqlSafe(Arc::clone(&plan.first))),
            Some(id) => sqlx::query::<MySql>(AssertSqlSafe(Arc::clone(&plan.next))).bind(id),
        };
        let query = query.bind(limit_of(limit));
        within(self.statement_timeout, rows::collect(self.connection.fetch(query), ask.columns.len(), limit)).await
    }

    pub(super) async fn close(self) {
        // Nothing depends on it: the server notices the end of the connection too.
        let _ = self.connection.close().await;
    }

    /// Runs a statement that gives no rows.
    pub(super) async fn run(&mut self, statement: String) -> Result<(), SourceError> {
        within(self.statement_timeout, self.run_unbounded(statement)).await
    }

    /// Runs a statement that gives no rows and may take as long as it takes.
    pub(super) async fn run_unbounded(&mut self, statement: String) -> Result<(), SourceError> {
        self.connection.execute(AssertSqlSafe(statement)).await.map(|_| ()).map_err(SourceError::from)
    }

    /// Asks the catalog, or for a count.
    pub(super) async fn catalog(&mut self, sql: impl SqlSafeStr, texts: &[&str]) -> Result<Vec<Cells>, SourceError> {
        let mut query = sqlx::query::<MySql>(sql);
        for text in texts {
            query = query.bind(*text);
        }
        within(self.statement_timeout, rows::catalog(self.connection.fetch(query))).await
    }

    /// Finds a table by its name in the mapping.
    pub(super) async fn table(&mut self, name: &str) -> Result<Table, SourceError> {
        let (schema, table) = split_table(name);
        let schema = schema.unwrap_or(&self.database).to_owned();
        if schema.is_empty() {
            let reason = format!("table {name:?}: name the database in the URL or before the table");
            return Err(SourceError::Mapping(reason));
        }
        let found = self.catalog(TABLE, &[&schema, table]).await?;
        match found.first() {
            Some(cells) if cells.text(1).ends_with("VIEW") => {
                Err(SourceError::Mapping(format!("{name:?} is not a table; rows are read by a unique column of one")))
            }
            Some(cells) => Ok(Table { schema, name: cells.text(0).to_owned() }),
            None => Err(SourceError::Mapping(format!("there is no table {name:?}"))),
        }
    }

    /// The columns of a table: name, kind, type, whether NULL may be in it, character set, collation, precision, scale,
    /// place.
    pub(super) async fn columns(&mut self, table: &Table) -> Result<Vec<Cells>, SourceError> {
        self.catalog(COLUMNS, &[&table.schema, &table.name]).await
    }

    async fn plan(&mut self, ask: &Ask) -> Result<Arc<Plan>, SourceError> {
        if let Some(plan) = self.plan.as_ref().filter(|plan| plan.ask == *ask) {
            return Ok(Arc::clone(plan));
        }
        let table = self.table(&ask.table).await?;
        let columns = self.columns(&table).await?;
        let unique = self.catalog(UNIQUE, &[&table.schema, &table.name]).await?;
        let mut problems = lacking(ask, &columns, str::eq_ignore_ascii_case);
        let mut key = None;
        if let Some(id) = find(&columns, &ask.id) {
            if id.is(3) {
                problems.push(format!("column {:?} of {:?} may be NULL and so is no id", ask.id, ask.table));
            }
            if !unique.iter().any(|cells| cells.text(0).eq_ignore_ascii_case(&ask.id)) {
                problems.push(format!("column {:?} of {:?} has no unique index and so is no id", ask.id, ask.table));
            }
            key = key_of(id, &table);
            if key.is_none() {
                let kind = id.text(1);
                problems.push(format!("column {:?} of {:?} is a {kind}, which is no id here", ask.id, ask.table));
            }
        }
        let Some(key) = key.filter(|_| problems.is_empty()) else {
            return Err(SourceError::of_problems(&problems));
        };
        let plan = Arc::new(plan_of(ask, &table.quoted(), &key, &columns));
        self.plan = Some(Arc::clone(&plan));
        Ok(plan)
    }
}

fn find<'a>(columns: &'a [Cells], name: &str) -> Option<&'a Cells> {
    columns.iter().find(|cells| cells.text(0).eq_ignore_ascii_case(name))
}

/// How the id is selected, and how its text becomes a value of its own type again.
struct Key {
    column: String,
    text: String,
    value: String,
}

/// `None` for types whose text does not lead back to the value exactly, or that compare in another order than they
/// sort.
fn key_of(id: &Cells, table: &Table) -> Option<Key> {
    let column = format!("{}.{}", table.quoted(), quoted(id.text(0), '`'));
    let plain = format!("CONVERT(CAST({column} AS CHAR) USING utf8mb4)");
    let unsigned = if id.text(2).contains("unsigned") { "UNSIGNED" } else { "SIGNED" };
    let (text, value) = match id.text(1) {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => (plain, format!("CAST(? AS {unsigned})")),
        "year" => (plain, "CAST(? AS SIGNED)".to_owned()),
        "decimal" => {
            let (precision, scale): (u32, u32) = (id.text(6).parse().ok()?, id.text(7).parse().ok()?);
            (plain, format!("CAST(? AS DECIMAL({precision}, {scale}))"))
        }
        "date" => (plain, "CAST(? AS DATE)".to_owned()),
        "datetime" | "timestamp" => (plain, "CAST(? AS DATETIME(6))".to_owned()),
        "time" => (plain, "CAST(? AS TIME(6))".to_owned()),
        kind @ ("uuid" | "inet4" | "inet6") => (plain, format!("CAST(? AS {kind})")),
        "binary" | "varbinary" => {
            (format!("CONCAT({BACKSLASH_X}, LOWER(HEX({column})))"), "UNHEX(SUBSTRING(?, 3))".to_owned())
        }
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" => {
            let (set, collation) = (word(id.text(4))?, word(id.text(5))?);
            (format!("CONVERT({column} USING utf8mb4)"), format!("CONVERT(? USING {set}) COLLATE {collation}"))
        }
        _ => return None,
    };
    Some(Key { column, text, value })
}

/// The name of a character set or a collation, which SQL takes without quotes.
fn word(name: &str) -> Option<&str> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(legal)).then_some(name)
}

/// `\x`, whatever the server takes a backslash for.
const BACKSLASH_X: &str = "CHAR(92, 120 USING utf8mb4)";

/// A column as text. It is cut before it is converted: a function's result that is longer than a packet would be NULL.
fn text_of(column: &AskColumn, kind: &str, name: &str) -> String {
    let (characters, bytes) = (column.characters(), column.bytes());
    match kind {
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => {
            format!("CONVERT(SUBSTRING({name}, 1, {characters}) USING utf8mb4)")
        }
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" if column.is_text => {
            format!("SUBSTRING({name}, 1, {bytes})")
        }
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
            format!("SUBSTRING(CONCAT({BACKSLASH_X}, LOWER(HEX(SUBSTRING({name}, 1, {bytes})))), 1, {characters})")
        }
        "bit" => format!("CONVERT(CAST({name} + 0 AS CHAR) USING utf8mb4)"),
        "timestamp" => format!("CONVERT(CONCAT(CAST({name} AS CHAR), '+00:00') USING utf8mb4)"),
        _ => format!("SUBSTRING(CONVERT(CAST({name} AS CHAR) USING utf8mb4), 1, {characters})"),
    }
}

fn plan_of(ask: &Ask, table: &str, key: &Key, columns: &[Cells]) -> Plan {
    let mut texts = vec![key.text.clone()];
    for column in &ask.columns {
        let kind = find(columns, &column.name).map_or("", |cells| cells.text(1));
        texts.push(text_of(column, kind, &format!("{table}.{}", quoted(&column.name, '`'))));
    }
    let (texts, column, value) = (texts.join(", "), &key.column, &key.value);
    Plan {
        ask: ask.clone(),
        first: format!("SELECT {texts} FROM {table} ORDER BY {column} LIMIT ?").into(),
        next: format!("SELECT {texts} FROM {table} WHERE {column} > {value} ORDER BY {column} LIMIT ?").into(),
        count: format!("SELECT CAST(COUNT(*) AS CHAR) FROM {table}").into(),
    }
}
