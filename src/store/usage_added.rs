//! Rows that add up: amounts are gathered by a row's identity, then written on top of what stands there.
//! Must not know what is summed. Invariant: rows are written sorted by identity and each once, so that two writers
//! take row locks in one order; and no sum overflows, it stays at the largest number instead, so that one sender of
//! absurd amounts cannot make a table unwritable.

use std::{collections::BTreeMap, sync::Arc};

use sea_orm::{
    ConnectionTrait, DbErr, EntityTrait,
    sea_query::{Expr, ExprTrait as _, InsertStatement, OnConflict, Query, SimpleExpr},
};

use super::{
    StoreError,
    row_arrays::{self, ArrayColumn},
};

/// Rows per statement: up to 10 parameters each, below SQLite's bound of 32,766.
const ROWS_PER_STATEMENT: usize = 1000;

/// One column of a row's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    /// Shared, since the same text stands in many rows.
    Text(Arc<str>),
    Number(i64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Cell> for SimpleExpr {
    fn from(cell: Cell) -> Self {
        match cell {
            Cell::Text(text) => Self::from(&*text),
            Cell::Number(number) => Self::from(number),
        }
    }
}

/// Amounts of `N` columns, to be added to the rows of one table.
pub(super) struct AddedRows<const N: usize>(BTreeMap<Vec<Cell>, [i64; N]>);

impl<const N: usize> Default for AddedRows<N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<const N: usize> AddedRows<N> {
    /// Adds amounts, none of them negative, to one row.
    pub(super) fn add(&mut self, identity: Vec<Cell>, amounts: [i64; N]) {
        let row = self.0.entry(identity).or_insert([0; N]);
        for (sum, amount) in row.iter_mut().zip(amounts) {
            *sum = sum.saturating_add(amount);
        }
    }

    /// Writes the rows, whose primary key is `identity`, in the order of the cells. Columns that are not named start
    /// at their default.
    pub(super) async fn write<E: EntityTrait>(
        self,
        db: &impl ConnectionTrait,
        table: E,
        identity: &[&'static str],
        columns: [&'static str; N],
    ) -> Result<(), StoreError> {
        let mut rows = self.0.into_iter().peekable();
        while rows.peek().is_some() {
            let mut insert = Query::insert();
            insert.into_table(table.table_ref()).columns(identity.iter().copied().chain(columns));
            let whole = |(cells, amounts): (Vec<Cell>, [i64; N])| cells.into_iter().chain(amounts.map(Cell::Number));
            fill(&mut insert, rows.by_ref().take(ROWS_PER_STATEMENT).map(whole), row_arrays::are_taken(db))?;
            let sums = columns.map(|column| (column, added(table.table_name(), column)));
            insert.on_conflict(OnConflict::columns(identity.iter().copied()).values(sums).to_owned());
            db.execute(&insert).await?;
        }
        Ok(())
    }
}

/// Puts rows into an insertion, as arrays of their columns or one after the other.
fn fill(
    insert: &mut InsertStatement,
    rows: impl Iterator<Item = impl Iterator<Item = Cell>>,
    as_arrays: bool,
) -> Result<(), DbErr> {
    let refused = |error: sea_orm::sea_query::error::Error| DbErr::Custom(error.to_string());
    let mut columns: Vec<ArrayColumn> = Vec::new();
    for row in rows {
        if !as_arrays {
            insert.values(row.map(SimpleExpr::from)).map_err(refused)?;
            continue;
        }
        for (place, cell) in row.enumerate() {
            if columns.len() == place {
                columns.push(match cell {
                    Cell::Text(_) => ArrayColumn::texts(),
                    Cell::Number(_) => ArrayColumn::numbers(),
                });
            }
            match (columns.get_mut(place), &cell) {
                (Some(column), Cell::Text(text)) => column.push_text(text),
                (Some(column), Cell::Number(number)) => column.push_number(Some(*number)),
                (None, _) => {}
            }
        }
    }
    if as_arrays {
        insert.select_from(row_arrays::rows_of(columns)).map_err(refused)?;
    }
    Ok(())
}

/// What stands there and what is added, at most the largest number.
fn added(table: &str, column: &'static str) -> SimpleExpr {
    let (stands, added) = (Expr::col((table.to_owned(), column)), Expr::col(("excluded", column)));
    let overflows = stands.clone().gt(Expr::val(i64::MAX).sub(added.clone()));
    Expr::case(overflows, i64::MAX).finally(stands.add(added)).into()
}
