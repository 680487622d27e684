//! Dropping columns in PostgreSQL: the lock, what depends on a column, and the definitions that bring it back.
//!
//! Everything comes from the catalog, which knows each dependency. Invariant: what goes besides the columns are
//! indexes and UNIQUE constraints, but for those to which two NULLs are the same, which could not come back; and the
//! columns' own defaults and NOT NULL. Anything else that depends on them is named and refused.

use std::collections::BTreeSet;

use super::super::{
    SourceError, no_column,
    postgres::{PostgresSource, Table, quoted_table},
    rows::{Cells, quoted},
};
use super::{DropPlan, DroppedColumn, DroppedIndex, Engine, STATEMENT_TIMEOUT, Undo, depends, undo::Present};
use crate::config::SourceUrl;

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = '30s'; \
     SET LOCAL lock_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = 0";

/// Columns: name, place, type, collation where it is not the type's, default.
const COLUMNS: &str = "SELECT a.attname::text, a.attnum::text, format_type(a.atttypid, a.atttypmod), \
     CASE WHEN a.attcollation <> t.typcollation THEN quote_ident(s.nspname) || '.' || quote_ident(o.collname) END, \
     CASE WHEN COALESCE(to_jsonb(a) ->> 'attgenerated', '') = '' THEN pg_get_expr(d.adbin, d.adrelid) END \
     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
     LEFT JOIN pg_collation o ON o.oid = a.attcollation LEFT JOIN pg_namespace s ON s.oid = o.collnamespace \
     LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
     WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// What depends on the columns: column, kind, the thing's own number, the thing in words. A constraint owns its index,
/// so that an index in here is one that stands for itself. A foreign key depends on the columns that it refers to, too.
/// With NULLS NOT DISTINCT neither index nor constraint comes back over columns of NULL.
const DEPENDENTS: &str = "SELECT DISTINCT a.attname::text, \
     CASE WHEN k.relkind IN ('i', 'I') AND pg_get_indexdef(k.oid) LIKE '%NULLS NOT DISTINCT%' THEN 'other' \
     WHEN k.relkind IN ('i', 'I') THEN 'index' \
     WHEN f.adnum = d.refobjsubid AND COALESCE(to_jsonb(a) ->> 'attgenerated', '') = '' THEN 'own' \
     WHEN n.contype = 'n' THEN 'own' \
     WHEN n.contype = 'u' AND pg_get_constraintdef(n.oid) NOT LIKE '%NULLS NOT DISTINCT%' THEN 'unique' \
     ELSE 'other' END, d.objid::text, \
     CASE WHEN w.oid IS NOT NULL THEN 'view ' || w.ev_class::regclass::text \
     WHEN f.oid IS NOT NULL THEN 'generated column ' || (SELECT quote_ident(g.attname) FROM pg_attribute g \
     WHERE g.attrelid = f.adrelid AND g.attnum = f.adnum) \
     ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END \
     FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
     LEFT JOIN pg_class k ON d.classid = 'pg_class'::regclass AND k.oid = d.objid \
     LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid \
     LEFT JOIN pg_constraint n ON d.classid = 'pg_constraint'::regclass AND n.oid = d.objid \
     LEFT JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid \
     WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid ORDER BY 1, 2, 4";

/// Indexes: number, schema, name, definition; number and definition of the UNIQUE constraint that owns it, which always
/// has the name of its index.
const INDEXES: &str = "SELECT i.indexrelid::text, n.nspname::text, c.relname::text, pg_get_indexdef(i.indexrelid), \
     u.oid::text, pg_get_constraintdef(u.oid) \
     FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
     LEFT JOIN pg_constraint u ON u.conindid = i.indexrelid AND u.conrelid = i.indrelid AND u.contype = 'u' \
     WHERE i.indrelid = $1::oid ORDER BY c.relname";

pub(super) async fn begin(url: &SourceUrl, tables: &[&str]) -> Result<PostgresSource, SourceError> {
    let mut source = PostgresSource::connect(url, STATEMENT_TIMEOUT, false).await?;
    source.run(BEGIN.to_owned()).await?;
    lock(&mut source, tables, "SHARE ROW EXCLUSIVE").await?;
    Ok(source)
}

/// Keeps readers out too. Whoever only reads waits for nothing of ours, and so lets go in the end. Who has read in a
/// transaction and then wants to write waits for us as we do for it: PostgreSQL ends one of the two at once.
pub(super) async fn keep_readers_out(source: &mut PostgresSource, tables: &[&str]) -> Result<(), SourceError> {
    lock(source, tables, "ACCESS EXCLUSIVE").await
}

async fn lock(source: &mut PostgresSource, tables: &[&str], mode: &str) -> Result<(), SourceError> {
    let names: BTreeSet<String> = tables.iter().map(|table| quoted_table(table)).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = names.into_iter().collect();
    source.run(format!("LOCK TABLE {} IN {mode} MODE", names.join(", "))).await
}

pub(super) async fn plan(
    source: &mut PostgresSource,
    table: &str,
    columns: &[String],
) -> Result<DropPlan, SourceError> {
    let found = source.table(table).await?;
    if found.kind != "r" || found.has_children || found.is_child {
        let reason = format!("{table:?} is no plain table, or inherits or is inherited from: drop its columns by hand");
        return Err(SourceError::Refused(reason));
    }
    let known = source.catalog(COLUMNS, &[&found.oid]).await?;
    let dependents = source.catalog(DEPENDENTS, &[&found.oid]).await?;
    let indexes = source.catalog(INDEXES, &[&found.oid]).await?;

    let mut dropped = Vec::new();
    let mut missing = Vec::new();
    for name in columns {
        let Some(cells) = known.iter().find(|cells| cells.text(0) == name) else {
            missing.push(no_column(table, name, known.iter().map(|cells| cells.text(0))));
            continue;
        };
        let collation = cells.get(3).map(|name| format!(" COLLATE {name}")).unwrap_or_default();
        dropped.push(DroppedColumn {
            name: name.clone(),
            definition: format!("{}{collation}", cells.text(2)),
            default: cells.get(4).map(str::to_owned),
            position: cells.text(1).parse().unwrap_or_default(),
        });
    }
    if !missing.is_empty() {
        return Err(SourceError::of_problems(&missing));
    }
    let mut problems = Vec::new();
    let mut held = BTreeSet::new();
    for cells in dependents.iter().filter(|cells| columns.iter().any(|name| name == cells.text(0))) {
        match cells.text(1) {
            kind @ ("index" | "unique") => {
                held.insert((kind, cells.text(2)));
            }
            "own" => {}
            _ => problems.push(depends(table, cells.text(0), cells.text(3))),
        }
    }
    if !problems.is_empty() {
        return Err(SourceError::Refused(problems.join("\n")));
    }
    let (mut statements, gone): (Vec<String>, Vec<DroppedIndex>) =
        indexes.iter().filter_map(|cells| drop_index(&found, cells, &held)).unzip();
    let drops: Vec<String> = columns.iter().map(|name| format!("DROP COLUMN {}", quoted(name, '"'))).collect();
    statements.push(format!("ALTER TABLE {} {}", found.name, drops.join(", ")));
    let remains = format!(
        "PostgreSQL keeps dropped values in the files of the table until VACUUM FULL {}; so do logs and backups.",
        found.name
    );
    let undo = Undo { engine: Engine::Postgres, table: table.to_owned(), columns: dropped, indexes: gone };
    Ok(DropPlan { statements, undo, remains })
}

/// The statement that drops an index, or the constraint that owns it, where it is among these; and what brings it back.
fn drop_index(table: &Table, cells: &Cells, held: &BTreeSet<(&str, &str)>) -> Option<(String, DroppedIndex)> {
    let name = quoted(cells.text(2), '"');
    let (statement, definition) = if held.contains(&("index", cells.text(0))) {
        (format!("DROP INDEX {}.{name}", quoted(cells.text(1), '"')), cells.text(3).to_owned())
    } else if held.contains(&("unique", cells.text(4))) {
        let (table, constraint) = (&table.name, cells.text(5));
        let statement = format!("ALTER TABLE {table} DROP CONSTRAINT {name}");
        (statement, format!("ALTER TABLE {table} ADD CONSTRAINT {name} {constraint}"))
    } else {
        return None;
    };
    Some((statement, DroppedIndex { name: cells.text(2).to_owned(), definition }))
}

pub(super) async fn present(source: &mut PostgresSource, table: &str) -> Result<Present, SourceError> {
    let found = source.table(table).await?;
    let columns = source.catalog(COLUMNS, &[&found.oid]).await?;
    let indexes = source.catalog(INDEXES, &[&found.oid]).await?;
    Ok(Present {
        columns: columns.iter().map(|cells| cells.text(0).to_owned()).collect(),
        indexes: indexes.iter().map(|cells| cells.text(2).to_owned()).collect(),
    })
}
