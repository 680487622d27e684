//! A source in PostgreSQL, 9.6 and later.
//!
//! One connection, one query a batch; the server casts what is selected to text and cuts it. Statements are planned
//! anew each time, since a plan for every id alike may sort the whole table. Row-level security is switched off, so
//! that a table of which our role sees only a part is refused instead of being read in part. Invariant: the session is
//! read-only, but for the one that `contract` makes.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Postgres, SqlSafeStr,
    postgres::PgConnectOptions,
};

use super::{
    Ask, Plan, Row, SourceError, count_of,
    error::{connected, within},
    lacking, limit_of,
    rows::{self, Cells, quoted, split_table},
};
use crate::config::SourceUrl;

/// What every session of ours is like, whatever the URL and the server's settings say.
const SESSION: &str = "SET TIME ZONE 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; \
                       SET bytea_output = 'hex'; SET row_security = off; SET default_transaction_read_only = ";

/// The table that a name means, and whether it has children, whose rows no index of it covers.
const TABLE: &str = "SELECT c.oid::text, n.nspname::text, c.relname::text, c.relkind::text, \
     (c.relkind = 'r' AND EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhparent = c.oid))::text, \
     EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid)::text \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)";

/// Columns: name, whether NULL is ruled out, type as SQL writes it, and how it becomes text. A domain is what it is
/// made of.
const COLUMNS: &str = "SELECT a.attname::text, a.attnotnull::text, format_type(a.atttypid, a.atttypmod), \
     (WITH RECURSIVE base(oid) AS (SELECT a.atttypid UNION ALL \
     SELECT t.typbasetype FROM pg_type t JOIN base b ON t.oid = b.oid WHERE t.typtype = 'd') \
     SELECT CASE WHEN t.typcategory = 'A' THEN 'array' WHEN t.oid = 'bytea'::regtype THEN 'bytea' ELSE 'text' END \
     FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype <> 'd') \
     FROM pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Columns that are unique by themselves in every row, compared as the column is. Before version 11 there is no
/// `indnkeyatts`.
const UNIQUE: &str = "SELECT a.attname::text FROM pg_index i \
     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attcollation = i.indcollation[0] \
     WHERE i.indrelid = $1::oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
     AND COALESCE((to_jsonb(i) ->> 'indnkeyatts')::int, i.indnatts) = 1";

/// A connection to the source.
pub struct PostgresSource {
    connection: PgConnection,
    statement_timeout: Duration,
    plan: Option<Arc<Plan>>,
}

/// A table as the catalog knows it.
pub(super) struct Table {
    pub(super) oid: String,
    /// Quoted, with its schema.
    pub(super) name: String,
    /// `r` for a plain table, `p` for a partitioned one.
    pub(super) kind: String,
    /// Whether tables inherit from it, which partitions do not count for.
    pub(super) has_children: bool,
    /// Whether it inherits from another, or is a partition of it.
    pub(super) is_child: bool,
}

impl PostgresSource {
    pub(super) async fn open(url: &SourceUrl, statement_timeout: Duration) -> Result<Self, SourceError> {
        Self::connect(url, statement_timeout, true).await
    }

    pub(super) async fn connect(
        url: &SourceUrl,
        statement_timeout: Duration,
        read_only: bool,
    ) -> Result<Self, SourceError> {
        let options =
            PgConnectOptions::from_str(url.expose())?.application_name("keystead import").disable_statement_logging();
        let connection = connected(options.connect()).await?;
        let mut source = Self { connection, statement_timeout, plan: None };
        let milliseconds = i32::try_from(statement_timeout.as_millis()).unwrap_or(i32::MAX).max(1);
        let read_only = if read_only { "on" } else { "off" };
        source.run(format!("{SESSION}{read_only}; SET statement_timeout = {milliseconds}")).await?;
        Ok(source)
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
            None => sqlx::query::<Postgres>(AssertSqlSafe(Arc::clone(&plan.first))),
            Some(id) => sqlx::query::<Postgres>(AssertSqlSafe(Arc::clone(&plan.next))).bind(id),
        };
        let query = query.bind(limit_of(limit)).persistent(false);
        within(self.statement_timeout, rows::collect(self.connection.fetch(query), ask.columns.len(), limit)).await
    }

    pub(super) async fn close(self) {
        // Nothing depends on it: the server notices the end of the connection too.
        let _ = self.connection.close().await;
    }

    /// Runs statements that give no rows.
    pub(super) async fn run(&mut self, statements: String) -> Result<(), SourceError> {
        within(self.statement_timeout, self.connection.execute(AssertSqlSafe(statements))).await.map(|_| ())
    }

    /// Asks the catalog, or for a count.
    pub(super) async fn catalog(&mut self, sql: impl SqlSafeStr, texts: &[&str]) -> Result<Vec<Cells>, SourceError> {
        let mut query = sqlx::query::<Postgres>(sql).persistent(false);
        for text in texts {
            query = query.bind(*text);
        }
        within(self.statement_timeout, rows::catalog(self.connection.fetch(query))).await
    }

    /// Finds a table by its name in the mapping.
    pub(super) async fn table(&mut self, name: &str) -> Result<Table, SourceError> {
        let found = self.catalog(TABLE, &[&quoted_table(name)]).await?;
        let Some(cells) = found.first() else {
            return Err(SourceError::Mapping(format!("there is no table {name:?}")));
        };
        Ok(Table {
            oid: cells.text(0).to_owned(),
            name: format!("{}.{}", quoted(cells.text(1), '"'), quoted(cells.text(2), '"')),
            kind: cells.text(3).to_owned(),
            has_children: cells.is(4),
            is_child: cells.is(5),
        })
    }

    async fn plan(&mut self, ask: &Ask) -> Result<Arc<Plan>, SourceError> {
        if let Some(plan) = self.plan.as_ref().filter(|plan| plan.ask == *ask) {
            return Ok(Arc::clone(plan));
        }
        let table = self.table(&ask.table).await?;
        let mut problems = Vec::new();
        if !matches!(table.kind.as_str(), "r" | "p") {
            problems.push(format!("{:?} is not a table; rows are read by a unique column of one", ask.table));
        }
        if table.has_children {
            problems.push(format!("tables inherit from {:?}: name each of them", ask.table));
        }
        let columns = self.catalog(COLUMNS, &[&table.oid]).await?;
        let unique = self.catalog(UNIQUE, &[&table.oid]).await?;
        problems.extend(lacking(ask, &columns, |column, asked| column == asked));
        let id = columns.iter().find(|cells| cells.text(0) == ask.id);
        if id.is_some_and(|id| !id.is(1)) {
            problems.push(format!("column {:?} of {:?} may be NULL and so is no id", ask.id, ask.table));
        }
        if id.is_some() && !unique.iter().any(|cells| cells.text(0) == ask.id) {
            problems.push(format!("column {:?} of {:?} has no unique index and so is no id", ask.id, ask.table));
        }
        let Some(id) = id.filter(|_| problems.is_empty()) else {
            return Err(SourceError::of_problems(&problems));
        };
        let plan = Arc::new(plan_of(ask, &table.name, id, &columns));
        self.plan = Some(Arc::clone(&plan));
        Ok(plan)
    }
}

/// A name of the mapping as SQL writes it.
pub(super) fn quoted_table(name: &str) -> String {
    match split_table(name) {
        (Some(schema), table) => format!("{}.{}", quoted(schema, '"'), quoted(table, '"')),
        (None, table) => quoted(table, '"'),
    }
}

/// Everything is named with its table: a bare name in ORDER BY would mean the text that is selected. The type of the id
/// comes from the catalog, which quotes it.
fn plan_of(ask: &Ask, table: &str, id: &Cells, columns: &[Cells]) -> Plan {
    let key = format!("s.{}", quoted(&ask.id, '"'));
    let mut texts = vec![format!("{key}::text")];
    for column in &ask.columns {
        let name = format!("s.{}", quoted(&column.name, '"'));
        let (characters, bytes) = (column.characters(), column.bytes());
        let kind = columns.iter().find(|cells| cells.text(0) == column.name).map_or("text", |cells| cells.text(3));
        let text = match kind {
            "array" => format!("to_jsonb({name})::text"),
            "bytea" if column.is_text => {
                texts.push(format!("substring({name} FROM 1 FOR {bytes})"));
                continue;
            }
            "bytea" => format!("E'\\\\x' || encode(substring({name} FROM 1 FOR {bytes}), 'hex')"),
            _ => format!("{name}::text"),
        };
        texts.push(format!("left({text}, {characters})"));
    }
    let (texts, of_type) = (texts.join(", "), id.text(2));
    Plan {
        ask: ask.clone(),
        first: format!("SELECT {texts} FROM {table} AS s ORDER BY {key} LIMIT $1").into(),
        next: format!("SELECT {texts} FROM {table} AS s WHERE {key} > $1::{of_type} ORDER BY {key} LIMIT $2").into(),
        count: format!("SELECT count(*)::text FROM {table}").into(),
    }
}
