//! What was dropped from a table, as it is kept in Keystead, and the statements that bring it back.
//!
//! Definitions come from the catalog of the database that they go back to. Invariant: a column comes back as NULL in
//! every row, whatever it held; nothing here knows a value.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::super::{postgres::quoted_table, rows::quoted};
use crate::config::SourceKind;

/// Whose SQL the definitions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
    /// MySQL or MariaDB.
    MySql,
}

impl Engine {
    /// The kind of source that it is.
    #[must_use]
    pub const fn kind(self) -> SourceKind {
        match self {
            Self::Postgres => SourceKind::Postgres,
            Self::Sqlite => SourceKind::Sqlite,
            Self::MySql => SourceKind::MySql,
        }
    }
}

/// What was dropped from a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Whose SQL it is.
    pub engine: Engine,
    /// The table as the mapping names it.
    pub table: String,
    /// The columns.
    pub columns: Vec<DroppedColumn>,
    /// The indexes that held one of them, those of UNIQUE constraints too.
    pub indexes: Vec<DroppedIndex>,
}

/// A column that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedColumn {
    /// Its name.
    pub name: String,
    /// Type and collation, as SQL writes them behind the name. Without NOT NULL: the column comes back as NULL.
    pub definition: String,
    /// What new rows had in it unless they said otherwise. PostgreSQL alone: elsewhere old rows would get it too.
    pub default: Option<String>,
    /// Its place among the columns of then. It comes back as the last one.
    pub position: u32,
}

/// An index that was dropped, or a UNIQUE constraint with its index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedIndex {
    /// Its name; a constraint and its index have the same one.
    pub name: String,
    /// The statement that makes it, by ALTER TABLE where it is a constraint; of MySQL what stands behind ADD.
    pub definition: String,
}

/// What is there again already.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) columns: BTreeSet<String>,
    pub(super) indexes: BTreeSet<String>,
}

impl Undo {
    /// Every statement that brings all of it back, to be shown.
    #[must_use]
    pub fn statements(&self) -> Vec<String> {
        self.missing(&Present::default())
    }

    /// The statements that bring back what is not there.
    pub(super) fn missing(&self, present: &Present) -> Vec<String> {
        let columns: Vec<&DroppedColumn> =
            self.columns.iter().filter(|column| !present.columns.contains(&column.name)).collect();
        let indexes: Vec<&DroppedIndex> =
            self.indexes.iter().filter(|index| !present.indexes.contains(&index.name)).collect();
        match self.engine {
            Engine::Postgres => one_by_one(&quoted_table(&self.table), &columns, &indexes),
            Engine::Sqlite => one_by_one(&super::sqlite::quoted_table(&self.table), &columns, &indexes),
            Engine::MySql => at_once(&super::mysql::quoted_table(&self.table), &columns, &indexes),
        }
    }
}

fn one_by_one(table: &str, columns: &[&DroppedColumn], indexes: &[&DroppedIndex]) -> Vec<String> {
    let mut statements = Vec::new();
    for column in columns {
        let (name, definition) = (quoted(&column.name, '"'), &column.definition);
        statements.push(format!("ALTER TABLE {table} ADD COLUMN {name} {definition}").trim_end().to_owned());
        if let Some(default) = &column.default {
            statements.push(format!("ALTER TABLE {table} ALTER COLUMN {name} SET DEFAULT {default}"));
        }
    }
    statements.extend(indexes.iter().map(|index| index.definition.clone()));
    statements
}

fn at_once(table: &str, columns: &[&DroppedColumn], indexes: &[&DroppedIndex]) -> Vec<String> {
    let columns = columns.iter().map(|column| {
        let (name, definition) = (quoted(&column.name, '`'), &column.definition);
        format!("ADD COLUMN {name} {definition} NULL")
    });
    let changes: Vec<String> = columns.chain(indexes.iter().map(|index| format!("ADD {}", index.definition))).collect();
    if changes.is_empty() {
        return Vec::new();
    }
    vec![format!("ALTER TABLE {table} {}", changes.join(", "))]
}
