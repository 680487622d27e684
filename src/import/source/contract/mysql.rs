//! Dropping columns in MySQL or MariaDB: the lock, what depends on a column, and the definitions that bring it back.
//!
//! Both commit each ALTER TABLE by itself, while the lock is kept. The table is written anew (FORCE), since a column
//! that is dropped in an instant stays in its pages; that takes as long as it takes, so it has no statement timeout.
//! What depends on a column is told by the text of definitions alone. Invariant: what may depend on a column is
//! refused, even where a definition only has the same word in it.

use std::{collections::BTreeMap, time::Duration};

use super::super::{
    SourceError,
    mysql::{MySqlSource, Table},
    no_column,
    rows::{Cells, mentions, quoted, split_table},
};
use super::{DropPlan, DroppedColumn, DroppedIndex, Engine, STATEMENT_TIMEOUT, Undo, depends, undo::Present};
use crate::config::SourceUrl;

/// The columns of indexes in order: index, whether it is not unique, column, length, direction, kind.
const INDEXES: &str = "SELECT INDEX_NAME, CAST(NON_UNIQUE AS CHAR), COLUMN_NAME, CAST(SUB_PART AS CHAR), COLLATION, \
     INDEX_TYPE FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? \
     ORDER BY INDEX_NAME, SEQ_IN_INDEX";

/// Foreign keys from and to the table: in words, column.
const FOREIGN_KEYS: &str = "SELECT CONCAT('foreign key ', CONSTRAINT_NAME), COLUMN_NAME \
     FROM information_schema.KEY_COLUMN_USAGE \
     WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND REFERENCED_TABLE_NAME IS NOT NULL \
     UNION ALL SELECT CONCAT('foreign key ', CONSTRAINT_NAME, ' of ', TABLE_NAME), REFERENCED_COLUMN_NAME \
     FROM information_schema.KEY_COLUMN_USAGE WHERE REFERENCED_TABLE_SCHEMA = ? AND REFERENCED_TABLE_NAME = ?";

/// Things and the text of their definitions. Not every server has every one of these tables.
const GENERATED: &str = "SELECT CONCAT('generated column ', COLUMN_NAME), GENERATION_EXPRESSION \
     FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND GENERATION_EXPRESSION <> ''";
const CHECKS_OF_MARIADB: &str = "SELECT CONCAT('check ', CONSTRAINT_NAME), CHECK_CLAUSE \
     FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = ? AND TABLE_NAME = ?";
const CHECKS_OF_MYSQL: &str = "SELECT CONCAT('check ', c.CONSTRAINT_NAME), c.CHECK_CLAUSE \
     FROM information_schema.CHECK_CONSTRAINTS c JOIN information_schema.TABLE_CONSTRAINTS t \
     ON t.CONSTRAINT_SCHEMA = c.CONSTRAINT_SCHEMA AND t.CONSTRAINT_NAME = c.CONSTRAINT_NAME \
     WHERE t.TABLE_SCHEMA = ? AND t.TABLE_NAME = ? AND t.CONSTRAINT_TYPE = 'CHECK'";
const TRIGGERS: &str = "SELECT CONCAT('trigger ', TRIGGER_NAME), ACTION_STATEMENT \
     FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = ? AND EVENT_OBJECT_TABLE = ?";
const VIEWS: &str = "SELECT CONCAT('view ', TABLE_SCHEMA, '.', TABLE_NAME), VIEW_DEFINITION \
     FROM information_schema.VIEWS WHERE TABLE_SCHEMA <> 'sys' AND INSTR(VIEW_DEFINITION, ?) > 0";

pub(super) async fn begin(url: &SourceUrl, tables: &[&str]) -> Result<MySqlSource, SourceError> {
    let mut source = MySqlSource::connect(url, STATEMENT_TIMEOUT).await?;
    source.set_statement_timeout(STATEMENT_TIMEOUT).await;
    source.run("SET SESSION lock_wait_timeout = 5, SESSION innodb_lock_wait_timeout = 5".to_owned()).await?;
    let mut locks = BTreeMap::new();
    for table in tables {
        locks.insert(source.table(table).await?.quoted(), "WRITE");
    }
    if !locks.is_empty() {
        let locks: Vec<String> = locks.into_iter().map(|(table, mode)| format!("{table} {mode}")).collect();
        source.run(format!("LOCK TABLES {}", locks.join(", "))).await?;
    }
    Ok(source)
}

pub(super) async fn execute(source: &mut MySqlSource, statement: String) -> Result<(), SourceError> {
    source.set_statement_timeout(Duration::ZERO).await;
    source.run_unbounded(statement).await
}

/// A name of the mapping as SQL writes it.
pub(super) fn quoted_table(name: &str) -> String {
    match split_table(name) {
        (Some(schema), table) => format!("{}.{}", quoted(schema, '`'), quoted(table, '`')),
        (None, table) => quoted(table, '`'),
    }
}

pub(super) async fn plan(source: &mut MySqlSource, table: &str, columns: &[String]) -> Result<DropPlan, SourceError> {
    let found = source.table(table).await?;
    let known = source.columns(&found).await?;
    let indexes = source.catalog(INDEXES, &[&found.schema, &found.name]).await?;
    let dependents = dependents(source, &found).await?;

    let mut dropped = Vec::new();
    let mut missing = Vec::new();
    let mut problems = Vec::new();
    let mut gone: BTreeMap<&str, DroppedIndex> = BTreeMap::new();
    for column in columns {
        let Some(cells) = known.iter().find(|cells| cells.text(0).eq_ignore_ascii_case(column)) else {
            missing.push(no_column(table, column, known.iter().map(|cells| cells.text(0))));
            continue;
        };
        for dependent in dependents.iter().filter(|dependent| dependent.holds(column)) {
            problems.push(depends(table, column, &dependent.words));
        }
        for index in indexes.iter().filter(|index| index.text(2).eq_ignore_ascii_case(column)) {
            let name = index.text(0);
            if name == "PRIMARY" {
                problems.push(depends(table, column, "the primary key"));
            }
            gone.insert(name, DroppedIndex { name: name.to_owned(), definition: index_of(name, &indexes) });
        }
        dropped.push(DroppedColumn {
            name: cells.text(0).to_owned(),
            definition: definition_of(cells),
            default: None,
            position: cells.text(8).parse().unwrap_or_default(),
        });
    }
    if !missing.is_empty() {
        return Err(SourceError::of_problems(&missing));
    }
    if !problems.is_empty() {
        return Err(SourceError::Refused(problems.join("\n")));
    }
    let mut changes: Vec<String> = gone.keys().map(|name| format!("DROP INDEX {}", quoted(name, '`'))).collect();
    changes.extend(dropped.iter().map(|column| format!("DROP COLUMN {}", quoted(&column.name, '`'))));
    let statements = vec![format!("ALTER TABLE {} {}, FORCE", found.quoted(), changes.join(", "))];
    let indexes = gone.into_values().collect();
    let undo = Undo { engine: Engine::MySql, table: table.to_owned(), columns: dropped, indexes };
    let remains =
        "Each ALTER TABLE commits by itself and writes the table anew; binary logs and backups keep what was \
                   dropped."
            .to_owned();
    Ok(DropPlan { statements, undo, remains })
}

/// Something that may depend on columns.
struct Dependent {
    words: String,
    /// A column, or the text of a definition.
    text: String,
}

impl Dependent {
    fn holds(&self, column: &str) -> bool {
        mentions(&self.text, column)
    }
}

async fn dependents(source: &mut MySqlSource, table: &Table) -> Result<Vec<Dependent>, SourceError> {
    let names = [table.schema.as_str(), table.name.as_str()];
    let [schema, name] = names;
    let mut found = source.catalog(FOREIGN_KEYS, &[schema, name, schema, name]).await?;
    // A server that lacks one of these tables has no such things.
    found.extend(known_or_none(source.catalog(GENERATED, &names).await)?);
    match source.catalog(CHECKS_OF_MARIADB, &names).await {
        Err(SourceError::Refused(_)) => found.extend(known_or_none(source.catalog(CHECKS_OF_MYSQL, &names).await)?),
        other => found.extend(other?),
    }
    found.extend(source.catalog(TRIGGERS, &names).await?);
    found.extend(source.catalog(VIEWS, &[&quoted(&table.name, '`')]).await?);
    Ok(found
        .iter()
        .map(|cells| Dependent { words: cells.text(0).to_owned(), text: cells.text(1).to_owned() })
        .collect())
}

fn known_or_none(answer: Result<Vec<Cells>, SourceError>) -> Result<Vec<Cells>, SourceError> {
    match answer {
        Err(SourceError::Refused(_)) => Ok(Vec::new()),
        other => other,
    }
}

/// A column behind its name, without NULL and default.
fn definition_of(cells: &Cells) -> String {
    match (cells.get(4), cells.get(5)) {
        (Some(set), Some(collation)) => format!("{} CHARACTER SET {set} COLLATE {collation}", cells.text(2)),
        _ => cells.text(2).to_owned(),
    }
}

/// An index behind ADD.
fn index_of(name: &str, indexes: &[Cells]) -> String {
    let keys: Vec<&Cells> = indexes.iter().filter(|cells| cells.text(0) == name).collect();
    let parts: Vec<String> = keys
        .iter()
        .map(|cells| {
            let length = cells.get(3).map(|length| format!("({length})")).unwrap_or_default();
            let direction = if cells.text(4) == "D" { " DESC" } else { "" };
            format!("{}{length}{direction}", quoted(cells.text(2), '`'))
        })
        .collect();
    let kind = match keys.first() {
        Some(cells) if cells.text(5) == "FULLTEXT" => "FULLTEXT INDEX",
        Some(cells) if cells.text(5) == "SPATIAL" => "SPATIAL INDEX",
        Some(cells) if cells.text(1) == "0" => "UNIQUE INDEX",
        Some(_) | None => "INDEX",
    };
    format!("{kind} {} ({})", quoted(name, '`'), parts.join(", "))
}

pub(super) async fn present(source: &mut MySqlSource, table: &str) -> Result<Present, SourceError> {
    let found = source.table(table).await?;
    let columns = source.columns(&found).await?;
    let indexes = source.catalog(INDEXES, &[&found.schema, &found.name]).await?;
    Ok(Present {
        columns: columns.iter().map(|cells| cells.text(0).to_owned()).collect(),
        indexes: indexes.iter().map(|cells| cells.text(0).to_owned()).collect(),
    })
}
