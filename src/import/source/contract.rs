//! Getting rid of columns in the source: the only code that writes there.
//!
//! PostgreSQL and SQLite: one transaction that keeps writers out first, so that what is read through it, for a
//! fingerprint, is what is dropped, and readers only while it drops. MySQL and MariaDB lock everybody out from the
//! beginning, and commit each statement by itself: one ALTER TABLE a table. Nothing is dropped with CASCADE: a column
//! that something other than an index or a UNIQUE constraint depends on is refused in words. Invariant: nothing is
//! committed after a statement has failed, and what was dropped is described in an [`Undo`] before it is.

mod mysql;
mod postgres;
mod sqlite;
mod undo;

use std::time::Duration;

pub use undo::{DroppedColumn, DroppedIndex, Engine, Undo};

use super::{Ask, Row, SourceError, mysql::MySqlSource, postgres::PostgresSource, sqlite::SqliteSource};
use crate::config::{SourceKind, SourceUrl};

/// The longest statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// What dropping columns of a table means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropPlan {
    /// The statements, those on indexes and UNIQUE constraints first.
    pub statements: Vec<String>,
    /// What was there.
    pub undo: Undo,
    /// What the statements do not get rid of, as a sentence for the operator.
    pub remains: String,
}

/// A transaction on the source that holds its tables. Dropped without a commit, it is rolled back.
pub struct Contract {
    held: Held,
    failed: bool,
}

enum Held {
    Postgres(PostgresSource),
    Sqlite(SqliteSource),
    MySql(MySqlSource),
}

impl Contract {
    /// Begins, and locks the tables: nobody else writes them until the end. Of MySQL and MariaDB nobody reads them
    /// either: they know no way from one lock to the other but through a gap in which others write.
    ///
    /// # Errors
    /// `Refused` where a lock is not to be had in 5 s, and for files; `Mapping` where there is no such table.
    pub async fn begin(url: &SourceUrl, tables: &[&str]) -> Result<Self, SourceError> {
        let held = match url.kind() {
            SourceKind::Postgres => Held::Postgres(postgres::begin(url, tables).await?),
            SourceKind::Sqlite => Held::Sqlite(sqlite::begin(url).await?),
            SourceKind::MySql => Held::MySql(mysql::begin(url, tables).await?),
            SourceKind::Csv | SourceKind::JsonLines => return Err(of_file()),
        };
        Ok(Self { held, failed: false })
    }

    /// Whether each statement commits by itself, so that a later one that fails leaves those before it done.
    #[must_use]
    pub const fn commits_each_statement(&self) -> bool {
        match self.held {
            Held::Postgres(_) | Held::Sqlite(_) => false,
            Held::MySql(_) => true,
        }
    }

    /// Keeps readers out too, until the end: to be called once nothing is left but to drop. SQLite does so by itself
    /// when it commits.
    ///
    /// # Errors
    /// `Refused` where somebody reads on for 5 s. Nothing can be committed afterwards.
    pub async fn keep_readers_out(&mut self, tables: &[&str]) -> Result<(), SourceError> {
        let done = match &mut self.held {
            Held::Postgres(source) => postgres::keep_readers_out(source, tables).await,
            Held::Sqlite(_) | Held::MySql(_) => Ok(()),
        };
        self.failed |= done.is_err();
        done
    }

    /// As [`super::Source::read`], under the lock.
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self, ask: &Ask, after: Option<&str>, limit: usize) -> Result<Vec<Row>, SourceError> {
        let rows = match &mut self.held {
            Held::Postgres(source) => source.read(ask, after, limit).await,
            Held::Sqlite(source) => source.read(ask, after, limit).await,
            Held::MySql(source) => source.read(ask, after, limit).await,
        };
        self.failed |= rows.is_err();
        rows
    }

    /// Plans to drop columns of a table, with the indexes and UNIQUE constraints that hold them. Drops nothing.
    ///
    /// # Errors
    /// `Refused` with everything that depends on a column, a line each; `Mapping` where table or column are not there.
    pub async fn plan_drop(&mut self, table: &str, columns: &[String]) -> Result<DropPlan, SourceError> {
        let plan = match &mut self.held {
            Held::Postgres(source) => postgres::plan(source, table, columns).await,
            Held::Sqlite(source) => sqlite::plan(source, table, columns).await,
            Held::MySql(source) => mysql::plan(source, table, columns).await,
        };
        self.failed |= plan.is_err();
        plan
    }

    /// Runs statements of a plan.
    ///
    /// # Errors
    /// The database's own. Nothing can be committed afterwards.
    pub async fn execute(&mut self, statements: &[String]) -> Result<(), SourceError> {
        for statement in statements {
            let done = match &mut self.held {
                Held::Postgres(source) => source.run(statement.clone()).await,
                Held::Sqlite(source) => source.run(statement.clone()).await,
                Held::MySql(source) => mysql::execute(source, statement.clone()).await,
            };
            self.failed |= done.is_err();
            done?;
        }
        Ok(())
    }

    /// Commits and closes the connection.
    ///
    /// # Errors
    /// `Refused` where something failed before; `Unreachable` where the answer was lost and nobody knows.
    pub async fn commit(mut self) -> Result<(), SourceError> {
        if self.failed {
            self.rollback().await;
            return Err(SourceError::Refused("a statement failed, so that nothing was committed".to_owned()));
        }
        let done = match &mut self.held {
            Held::Postgres(source) => source.run("COMMIT".to_owned()).await,
            Held::Sqlite(source) => source.run("COMMIT".to_owned()).await,
            Held::MySql(source) => source.run("UNLOCK TABLES".to_owned()).await,
        };
        match (done, self.held) {
            (Ok(()), Held::Sqlite(mut source)) => {
                // What was dropped may still be in the log of the file.
                let _ = source.run("PRAGMA wal_checkpoint(TRUNCATE)".to_owned()).await;
                source.close().await;
                Ok(())
            }
            (Ok(()), held) => {
                held.close().await;
                Ok(())
            }
            (Err(SourceError::Unreachable(words)), _) => {
                Err(SourceError::Unreachable(format!("{words}; whether it was committed is not known")))
            }
            (Err(error), held) => {
                held.close().await;
                Err(error)
            }
        }
    }

    /// Gives up what was not committed, and closes the connection.
    pub async fn rollback(mut self) {
        // The end of the connection rolls back too.
        let _ = match &mut self.held {
            Held::Postgres(source) => source.run("ROLLBACK".to_owned()).await,
            Held::Sqlite(source) => source.run("ROLLBACK".to_owned()).await,
            Held::MySql(source) => source.run("UNLOCK TABLES".to_owned()).await,
        };
        self.held.close().await;
    }
}

impl Held {
    async fn close(self) {
        match self {
            Self::Postgres(source) => source.close().await,
            Self::Sqlite(source) => source.close().await,
            Self::MySql(source) => source.close().await,
        }
    }
}

/// What dropping these columns (table, columns) would mean, to be shown before anybody confirms. Tables that are named
/// twice are one. Changes nothing and holds no lock when it returns.
///
/// # Errors
/// As [`Contract::plan_drop`], of every table.
pub async fn describe(url: &SourceUrl, drops: &[(String, Vec<String>)]) -> Result<Vec<DropPlan>, SourceError> {
    let mut contract = match url.kind() {
        SourceKind::Postgres => {
            let source = PostgresSource::open(url, STATEMENT_TIMEOUT).await?;
            Contract { held: Held::Postgres(source), failed: false }
        }
        SourceKind::MySql => {
            let source = MySqlSource::open(url, STATEMENT_TIMEOUT).await?;
            Contract { held: Held::MySql(source), failed: false }
        }
        // A plan is tried out there, which needs the file.
        SourceKind::Sqlite | SourceKind::Csv | SourceKind::JsonLines => Contract::begin(url, &[]).await?,
    };
    let mut plans = Vec::new();
    let mut problems = Vec::new();
    for (table, columns) in merged(drops) {
        match contract.plan_drop(&table, &columns).await {
            Ok(plan) => plans.push(plan),
            Err(SourceError::Refused(words)) => problems.push(words),
            Err(error @ (SourceError::Unreachable(_) | SourceError::Mapping(_))) => return Err(error),
        }
    }
    contract.held.close().await;
    if problems.is_empty() { Ok(plans) } else { Err(SourceError::Refused(problems.join("\n"))) }
}

/// Brings columns, indexes and UNIQUE constraints back that are not there, the columns as NULL. Gives the statements
/// that were run.
///
/// # Errors
/// The database's own; nothing is done then, but for MySQL, which commits each statement by itself.
pub async fn down(url: &SourceUrl, undos: &[Undo]) -> Result<Vec<String>, SourceError> {
    let tables: Vec<&str> = undos.iter().map(|undo| undo.table.as_str()).collect();
    if let Some(undo) = undos.iter().find(|undo| undo.engine.kind() != url.kind()) {
        let reason = format!("table {:?} was dropped from in another kind of database than the URL names", undo.table);
        return Err(SourceError::Mapping(reason));
    }
    let mut contract = Contract::begin(url, &tables).await?;
    let mut all = Vec::new();
    for undo in undos {
        let present = match &mut contract.held {
            Held::Postgres(source) => postgres::present(source, &undo.table).await?,
            Held::Sqlite(source) => sqlite::present(source, &undo.table).await?,
            Held::MySql(source) => mysql::present(source, &undo.table).await?,
        };
        let statements = undo.missing(&present);
        contract.execute(&statements).await?;
        all.extend(statements);
    }
    contract.commit().await?;
    Ok(all)
}

fn merged(drops: &[(String, Vec<String>)]) -> Vec<(String, Vec<String>)> {
    let mut merged: Vec<(String, Vec<String>)> = Vec::new();
    for (table, columns) in drops {
        let place = merged.iter().position(|(known, _)| known == table).unwrap_or(merged.len());
        if place == merged.len() {
            merged.push((table.clone(), Vec::new()));
        }
        if let Some((_, known)) = merged.get_mut(place) {
            for column in columns {
                if !known.contains(column) {
                    known.push(column.clone());
                }
            }
        }
    }
    merged
}

fn of_file() -> SourceError {
    SourceError::Refused("the source is a file, from which nothing is dropped: delete it".to_owned())
}

/// A problem: something depends on a column.
fn depends(table: &str, column: &str, what: &str) -> String {
    format!("column {column:?} of {table:?} is not dropped: {what} depends on it; change or drop that first")
}

#[cfg(test)]
mod tests;
