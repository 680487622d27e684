//! Column shapes that the tables share, so that one word means one type everywhere.
//! Holds no table of its own and must not change once a migration that uses it has landed.

use sea_orm_migration::prelude::*;

/// A text column that is never NULL: empty stands for "none".
pub fn text(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    column.text().not_null();
    column
}

/// A text column that is never NULL and starts empty.
pub fn text_or_empty(name: &'static str) -> ColumnDef {
    let mut column = text(name);
    column.default("");
    column
}

/// A text column where NULL stands for "none", for the sake of unique indexes and references.
pub fn text_or_null(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    column.text().null();
    column
}

/// A 64-bit number that is never NULL: counts, and moments in microseconds since the epoch (`*_us`).
pub fn number(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    column.big_integer().not_null();
    column
}

/// A count that starts at 0.
pub fn count(name: &'static str) -> ColumnDef {
    let mut column = number(name);
    column.default(0);
    column
}

/// A 64-bit number where NULL stands for "never" or "unlimited".
pub fn number_or_null(name: &'static str) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    column.big_integer().null();
    column
}

/// An index over `columns` of `table`; unique where `unique` says so.
pub fn index(name: &'static str, table: &'static str, columns: &[&'static str], unique: bool) -> IndexCreateStatement {
    let mut statement = Index::create();
    statement.name(name).table(table);
    for column in columns {
        statement.col(*column);
    }
    if unique {
        statement.unique();
    }
    statement
}
