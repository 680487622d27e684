//! Many rows in one statement of a fixed text, on PostgreSQL: each column is one parameter, an array. A parameter for
//! each value costs more than the rows themselves, and a text for each number of rows is prepared anew each time.
//! So are many values to look for. Arrays travel in PostgreSQL's own spelling of them (its manual, 8.15.6), since the
//! ORM binds none.
//! Must not be asked on SQLite, which has no arrays. Invariant: all columns of a statement have equally many values.

use std::fmt::Write as _;

use sea_orm::{
    ConnectionTrait, DbBackend, Value,
    sea_query::{Expr, ExprTrait as _, Func, Query, SelectStatement, SimpleExpr},
};

/// Whether the database takes rows as arrays.
pub(super) fn are_taken(db: &impl ConnectionTrait) -> bool {
    db.get_database_backend() == DbBackend::Postgres
}

/// One column of many rows.
pub(super) struct ArrayColumn {
    /// As a statement names it.
    kind: &'static str,
    /// The array, but for its closing brace.
    text: String,
}

impl ArrayColumn {
    /// A column of text, without values yet.
    pub(super) fn texts() -> Self {
        Self { kind: "text[]", text: String::new() }
    }

    /// A column of 64-bit numbers, without values yet.
    pub(super) fn numbers() -> Self {
        Self { kind: "bigint[]", text: String::new() }
    }

    /// A column for values like this one, as the ORM holds them.
    pub(super) fn like(value: &Value) -> Self {
        let kind = match value {
            Value::BigInt(_) => "bigint[]",
            Value::Bytes(_) => "bytea[]",
            _ => "text[]",
        };
        Self { kind, text: String::new() }
    }

    /// Adds a value as the ORM holds it: a text, a 64-bit number, bytes, or NULL.
    pub(super) fn push(&mut self, value: &Value) {
        match value {
            Value::String(Some(text)) => self.push_text(text),
            Value::BigInt(number) => self.push_number(*number),
            Value::Bytes(Some(bytes)) => self.push_bytes(bytes),
            _ => self.push_number(None),
        }
    }

    /// Adds bytes, in hex as PostgreSQL reads them (its manual, 8.4.1).
    fn push_bytes(&mut self, bytes: &[u8]) {
        self.begin_value();
        self.text.push_str("\"\\\\x");
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{byte:02x}");
        }
        self.text.push('"');
    }

    /// Adds a text. Must hold no NUL, which PostgreSQL takes in no text.
    pub(super) fn push_text(&mut self, value: &str) {
        self.begin_value();
        self.text.push('"');
        for letter in value.chars() {
            if matches!(letter, '"' | '\\') {
                self.text.push('\\');
            }
            self.text.push(letter);
        }
        self.text.push('"');
    }

    /// Adds a number, or NULL.
    pub(super) fn push_number(&mut self, value: Option<i64>) {
        self.begin_value();
        match value {
            Some(number) => {
                // Writing to a string cannot fail.
                let _ = write!(self.text, "{number}");
            }
            None => self.text.push_str("NULL"),
        }
    }

    fn begin_value(&mut self) {
        self.text.push(if self.text.is_empty() { '{' } else { ',' });
    }

    /// The values as what a column is compared with: it is equal to any of them.
    pub(super) fn any(self) -> SimpleExpr {
        let kind = self.kind;
        Func::cust("any").arg(Expr::val(self.closed()).cast_as(kind)).into()
    }

    fn closed(mut self) -> String {
        if self.text.is_empty() {
            self.text.push('{');
        }
        self.text.push('}');
        self.text
    }
}

/// The rows of these columns, in order, as an insertion selects them.
pub(super) fn rows_of(columns: Vec<ArrayColumn>) -> SelectStatement {
    let mut select = Query::select();
    for column in columns {
        let kind = column.kind;
        // Several of them side by side go through their arrays together.
        select.expr(Func::cust("unnest").arg(Expr::val(column.closed()).cast_as(kind)));
    }
    select
}

#[cfg(test)]
mod tests {
    use sea_orm::sea_query::PostgresQueryBuilder;

    use super::*;

    #[test]
    fn values_are_spelled_as_postgresql_reads_them() {
        let (mut texts, mut numbers) = (ArrayColumn::texts(), ArrayColumn::numbers());
        for text in ["plain", "", "NULL", "a,b{c}", "say \"hi\" \\ bye", " é "] {
            texts.push_text(text);
        }
        numbers.push_number(Some(-7));
        numbers.push_number(None);
        assert_eq!(texts.closed(), r#"{"plain","","NULL","a,b{c}","say \"hi\" \\ bye"," é "}"#);
        assert_eq!(numbers.closed(), "{-7,NULL}");
        let mut bytes = ArrayColumn::like(&Value::Bytes(None));
        bytes.push(&Value::Bytes(Some(vec![0, 0xab])));
        bytes.push(&Value::Bytes(None));
        assert_eq!(bytes.closed(), r#"{"\\x00ab",NULL}"#);
        assert_eq!(ArrayColumn::texts().closed(), "{}");
    }

    #[test]
    fn a_column_is_compared_with_all_values_at_once() {
        let mut numbers = ArrayColumn::numbers();
        numbers.push_number(Some(7));
        let select = Query::select().column("a").from("t").and_where(Expr::col("a").eq(numbers.any())).to_owned();
        let text = r#"SELECT "a" FROM "t" WHERE "a" = any(CAST($1 AS bigint[]))"#;
        assert_eq!(select.build(PostgresQueryBuilder).0, text);
    }

    #[test]
    fn the_text_of_a_statement_does_not_depend_on_its_rows() {
        let statement = |count: i64| {
            let (mut names, mut counts) = (ArrayColumn::texts(), ArrayColumn::numbers());
            for number in 0..count {
                names.push_text("name");
                counts.push_number(Some(number));
            }
            rows_of(vec![names, counts]).build(PostgresQueryBuilder).0
        };
        assert_eq!(statement(1), "SELECT unnest(CAST($1 AS text[])), unnest(CAST($2 AS bigint[]))");
        assert_eq!(statement(1), statement(500));
    }
}
