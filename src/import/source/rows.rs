//! Rows of a database as text, the same way for every engine, and the names of tables and columns in SQL.
//!
//! Every statement of a source casts what it selects to text on the server, so that only bytes come over. Invariant: a
//! text that is not UTF-8 never comes as if it were another one: it comes with a NUL before it, which is refused
//! wherever a control character is, so that one bad row costs that row and no other.

use futures_util::{Stream, TryStreamExt as _};
use sqlx::{ColumnIndex, Decode};
use zeroize::Zeroizing;

use super::{Row, SourceError};

/// Rows that are waited for at once at the most, whatever the limit says.
const ROWS_RESERVED_MAX: usize = 10_000;

/// Collects what a statement gave that selects the id and then `columns` columns.
pub(super) async fn collect<R>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    columns: usize,
    limit: usize,
) -> Result<Vec<Row>, SourceError>
where
    R: sqlx::Row,
    usize: ColumnIndex<R>,
    for<'r> &'r [u8]: Decode<'r, R::Database>,
{
    let mut collected = Vec::with_capacity(limit.min(ROWS_RESERVED_MAX));
    while let Some(row) = rows.try_next().await? {
        collected.push(row_of(&row, columns)?);
    }
    Ok(collected)
}

fn row_of<R>(row: &R, columns: usize) -> Result<Row, SourceError>
where
    R: sqlx::Row,
    usize: ColumnIndex<R>,
    for<'r> &'r [u8]: Decode<'r, R::Database>,
{
    let id = row.try_get_unchecked::<Option<&[u8]>, usize>(0)?;
    let id = id.ok_or_else(|| SourceError::Refused("a row has no id".to_owned()))?;
    let id = std::str::from_utf8(id).map_err(|_| SourceError::Refused("an id is not UTF-8 text".to_owned()))?;
    let mut values = Vec::with_capacity(columns);
    for index in 1..=columns {
        let value = row.try_get_unchecked::<Option<&[u8]>, usize>(index)?;
        values.push(value.map(text_of));
    }
    Ok(Row { id: id.to_owned(), values })
}

/// Bytes as text; see the invariant above.
pub(super) fn text_of(bytes: &[u8]) -> Zeroizing<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Zeroizing::new(text.to_owned()),
        Err(_) => Zeroizing::new(format!("\0{}", String::from_utf8_lossy(bytes))),
    }
}

/// A row of a catalog: names, types, definitions. Nothing of it is a secret.
pub(super) struct Cells(Vec<Option<String>>);

impl Cells {
    /// The text of a column, empty for NULL.
    pub(super) fn text(&self, index: usize) -> &str {
        self.get(index).unwrap_or_default()
    }

    /// The text of a column.
    pub(super) fn get(&self, index: usize) -> Option<&str> {
        self.0.get(index).and_then(Option::as_deref)
    }

    /// Whether a column says yes, in the words of any of the engines.
    pub(super) fn is(&self, index: usize) -> bool {
        matches!(self.text(index), "true" | "1" | "YES")
    }
}

/// Collects the rows of a catalog.
pub(super) async fn catalog<R>(
    mut rows: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
) -> Result<Vec<Cells>, SourceError>
where
    R: sqlx::Row,
    usize: ColumnIndex<R>,
    for<'r> &'r [u8]: Decode<'r, R::Database>,
{
    let mut collected = Vec::new();
    while let Some(row) = rows.try_next().await? {
        let mut cells = Vec::with_capacity(row.len());
        for index in 0..row.len() {
            let bytes = row.try_get_unchecked::<Option<&[u8]>, usize>(index)?;
            cells.push(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()));
        }
        collected.push(Cells(cells));
    }
    Ok(collected)
}

/// A name as an identifier of SQL, in these quotes.
pub(super) fn quoted(name: &str, quote: char) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push(quote);
    for letter in name.chars() {
        if letter == quote {
            text.push(quote);
        }
        text.push(letter);
    }
    text.push(quote);
    text
}

/// `schema.table` in two. A table whose own name holds a dot cannot be named.
pub(super) fn split_table(name: &str) -> (Option<&str>, &str) {
    match name.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, name),
    }
}

/// Whether a text of SQL holds a name as a word of its own, in any case.
pub(super) fn mentions(sql: &str, name: &str) -> bool {
    let (sql, name) = (sql.to_lowercase(), name.to_lowercase());
    let is_part = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '$');
    sql.match_indices(&name).any(|(start, found)| {
        let before = sql.get(..start).and_then(|text| text.chars().next_back());
        let after = sql.get(start + found.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(quoted("Owner\"; DROP", '"'), "\"Owner\"\"; DROP\"");
        assert_eq!(quoted("a`b", '`'), "`a``b`");
    }

    #[test]
    fn bytes_that_are_no_text_are_marked() {
        assert_eq!(text_of(b"plain").as_str(), "plain");
        assert_eq!(text_of(b"a\xffb").as_str(), "\0a\u{fffd}b");
    }

    #[test]
    fn a_name_is_found_as_a_word_alone() {
        assert!(mentions("CREATE INDEX i ON t(lower(API_KEY))", "api_key"));
        assert!(mentions("WHERE \"api_key\" IS NOT NULL", "api_key"));
        assert!(!mentions("CREATE INDEX api_key_at ON t(id)", "api_key"));
        assert!(!mentions("x_api_key", "api_key"));
    }

    #[test]
    fn a_table_may_name_its_schema() {
        assert_eq!(split_table("public.sessions"), (Some("public"), "sessions"));
        assert_eq!(split_table("sessions"), (None, "sessions"));
    }
}
