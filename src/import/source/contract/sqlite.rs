//! Dropping columns in a file of SQLite: the lock, what depends on a column, and the definitions that bring it back.
//!
//! SQLite does not tell what depends on a column, so a plan is tried out in the transaction and rolled back: what a
//! view, a trigger, a generated column or a constraint holds is refused in SQLite's own words. Invariant: after a plan
//! the file is as it was before.

use std::collections::BTreeMap;

use super::super::{
    SourceError, no_column,
    rows::{mentions, quoted, split_table},
    sqlite::SqliteSource,
};
use super::{DropPlan, DroppedColumn, DroppedIndex, Engine, STATEMENT_TIMEOUT, Undo, depends, undo::Present};
use crate::config::SourceUrl;

const COLUMNS: &str = "SELECT name, type, CAST(pk AS TEXT), CAST(cid AS TEXT) FROM pragma_table_xinfo(?1, 'main')";

/// The columns of indexes: index, where it comes from, whether it is partial, column, place of the column, definition.
/// An expression has no name and the place -2.
const INDEXES: &str = "SELECT l.name, l.origin, CAST(l.partial AS TEXT), x.name, CAST(x.cid AS TEXT), \
     (SELECT s.sql FROM main.sqlite_schema AS s WHERE s.type = 'index' AND s.name = l.name) \
     FROM pragma_index_list(?1, 'main') AS l, pragma_index_xinfo(l.name, 'main') AS x WHERE x.key = 1";

/// Foreign keys from and to the table: in words, column.
const FOREIGN_KEYS: &str = "SELECT 'a foreign key', f.\"from\" FROM pragma_foreign_key_list(?1, 'main') AS f \
     UNION ALL SELECT 'a foreign key of ' || m.name, f.\"to\" \
     FROM main.sqlite_schema AS m, pragma_foreign_key_list(m.name, 'main') AS f \
     WHERE m.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE";

pub(super) async fn begin(url: &SourceUrl) -> Result<SqliteSource, SourceError> {
    let mut source = SqliteSource::connect(url, STATEMENT_TIMEOUT, false).await?;
    source.run("BEGIN IMMEDIATE".to_owned()).await?;
    Ok(source)
}

/// A name of the mapping as SQL writes it.
pub(super) fn quoted_table(name: &str) -> String {
    format!("\"main\".{}", quoted(split_table(name).1, '"'))
}

pub(super) async fn plan(source: &mut SqliteSource, table: &str, columns: &[String]) -> Result<DropPlan, SourceError> {
    let name = source.table(table).await?;
    let known = source.catalog(COLUMNS, &[&name]).await?;
    let indexes = source.catalog(INDEXES, &[&name]).await?;
    let foreign_keys = source.catalog(FOREIGN_KEYS, &[&name]).await?;

    let mut dropped = Vec::new();
    let mut missing = Vec::new();
    let mut problems = Vec::new();
    let mut gone: BTreeMap<&str, &str> = BTreeMap::new();
    for column in columns {
        let Some(cells) = known.iter().find(|cells| cells.text(0).eq_ignore_ascii_case(column)) else {
            missing.push(no_column(table, column, known.iter().map(|cells| cells.text(0))));
            continue;
        };
        if cells.text(2) != "0" {
            problems.push(depends(table, column, "the primary key"));
        }
        for keys in foreign_keys.iter().filter(|keys| keys.text(1).eq_ignore_ascii_case(column)) {
            problems.push(depends(table, column, keys.text(0)));
        }
        for index in &indexes {
            let definition = index.text(5);
            let is_key = index.text(3).eq_ignore_ascii_case(column);
            let may_hold = index.is(2) || index.text(4) == "-2";
            if !(is_key || may_hold && mentions(definition, column)) {
                continue;
            }
            match index.text(1) {
                "c" => {
                    gone.insert(index.text(0), definition);
                }
                "u" => problems.push(depends(table, column, "a UNIQUE constraint")),
                // The primary key is named already.
                _ => {}
            }
        }
        dropped.push(DroppedColumn {
            name: cells.text(0).to_owned(),
            definition: type_of(cells.text(1)),
            default: None,
            position: cells.text(3).parse().unwrap_or_default(),
        });
    }
    if !missing.is_empty() {
        return Err(SourceError::of_problems(&missing));
    }
    if !problems.is_empty() {
        return Err(SourceError::Refused(problems.join("\n")));
    }
    let main = format!("\"main\".{}", quoted(&name, '"'));
    let mut statements: Vec<String> =
        gone.keys().map(|index| format!("DROP INDEX \"main\".{}", quoted(index, '"'))).collect();
    for column in &dropped {
        statements.push(format!("ALTER TABLE {main} DROP COLUMN {}", quoted(&column.name, '"')));
    }
    try_out(source, table, &statements).await?;
    let indexes = gone
        .into_iter()
        .map(|(name, definition)| DroppedIndex { name: name.to_owned(), definition: definition.to_owned() })
        .collect();
    let undo = Undo { engine: Engine::Sqlite, table: table.to_owned(), columns: dropped, indexes };
    let remains = "Dropped values are overwritten in the file; backups and copies of it keep them.".to_owned();
    Ok(DropPlan { statements, undo, remains })
}

async fn try_out(source: &mut SqliteSource, table: &str, statements: &[String]) -> Result<(), SourceError> {
    source.run("SAVEPOINT keystead_trial".to_owned()).await?;
    let mut tried = Ok(());
    for statement in statements {
        tried = source.run(statement.clone()).await;
        if tried.is_err() {
            break;
        }
    }
    source.run("ROLLBACK TO keystead_trial".to_owned()).await?;
    source.run("RELEASE keystead_trial".to_owned()).await?;
    tried.map_err(|error| match error {
        SourceError::Refused(words) => SourceError::Refused(format!("nothing of {table:?} is dropped: {words}")),
        other @ (SourceError::Unreachable(_) | SourceError::Mapping(_)) => other,
    })
}

/// A declared type, or none where it is not made of words: SQLite takes any text for one.
fn type_of(declared: &str) -> String {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || " _(),".contains(letter);
    if declared.chars().all(legal) { declared.to_owned() } else { String::new() }
}

pub(super) async fn present(source: &mut SqliteSource, table: &str) -> Result<Present, SourceError> {
    let name = source.table(table).await?;
    let columns = source.catalog(COLUMNS, &[&name]).await?;
    let indexes = source.catalog(INDEXES, &[&name]).await?;
    Ok(Present {
        columns: columns.iter().map(|cells| cells.text(0).to_owned()).collect(),
        indexes: indexes.iter().map(|cells| cells.text(0).to_owned()).collect(),
    })
}
