//! What can go wrong with a source, and how long is waited for one.
//!
//! Driver errors become a [`SourceError`] here and nowhere else. Only the primary message of a database is kept: its
//! detail can hold whole rows. Invariant: no text made here shows a value of the source, a password or a URL.

use std::time::Duration;

use sqlx::error::DatabaseError;

/// How long a source may take to let us in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much longer than its own statement timeout a database is waited for.
const GRACE: Duration = Duration::from_secs(5);

/// Why a source gave no rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It is not there, or went away.
    #[error("the source cannot be reached: {0}")]
    Unreachable(String),
    /// It answered in words: the database's, or the line of a file that cannot be read.
    #[error("the source refused: {0}")]
    Refused(String),
    /// What the mapping or the URL names is not there or cannot be used. Every problem, a line each.
    #[error("{0}")]
    Mapping(String),
}

impl SourceError {
    /// All problems of a mapping.
    pub(super) fn of_problems(problems: &[String]) -> Self {
        Self::Mapping(problems.join("\n"))
    }

    /// Whatever kept a connection from being made is a source that is not there, but for a URL that cannot be read.
    fn of_connect(error: sqlx::Error) -> Self {
        match Self::from(error) {
            Self::Refused(words) => Self::Unreachable(words),
            other @ (Self::Unreachable(_) | Self::Mapping(_)) => other,
        }
    }
}

impl From<sqlx::Error> for SourceError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(refusal) => of_database(&*refusal),
            // Its text may repeat a part of the URL.
            sqlx::Error::Configuration(_) => Self::Mapping("the URL of the source cannot be read".to_owned()),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                Self::Refused("a value came in a form that cannot be read".to_owned())
            }
            other => Self::Unreachable(other.to_string()),
        }
    }
}

fn of_database(refusal: &dyn DatabaseError) -> SourceError {
    let words = refusal.message().to_owned();
    match refusal.code() {
        Some(code) if code == "9" => SourceError::Refused("a statement took longer than its timeout".to_owned()),
        Some(code) if is_gone(&code) => SourceError::Unreachable(words),
        Some(_) | None => SourceError::Refused(words),
    }
}

/// Codes that say that the database is not there for us. SQLSTATE, of PostgreSQL and MySQL alike (five characters):
/// connection exceptions, wrong password, no such database, lack of resources, shutdown, system errors. Result codes
/// of SQLite (numbers, low byte): I/O error, corrupt, cannot open, not a database.
fn is_gone(code: &str) -> bool {
    if code.len() == 5 {
        let class = code.get(..2).unwrap_or_default();
        return matches!(class, "08" | "28" | "3D" | "53" | "58") || matches!(code, "57P01" | "57P02" | "57P03");
    }
    code.parse::<i64>().is_ok_and(|code| matches!(code & 0xff, 10 | 11 | 14 | 26))
}

/// Waits for a connection, within a bound.
pub(super) async fn connected<C>(connecting: impl Future<Output = Result<C, sqlx::Error>>) -> Result<C, SourceError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(SourceError::of_connect(error)),
        Err(_) => Err(SourceError::Unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

/// Waits for an answer. The database's own timeout comes first; this one is for a database that does not answer.
pub(super) async fn within<T, E: Into<SourceError>>(
    statement_timeout: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, SourceError> {
    let bound = statement_timeout.saturating_add(GRACE);
    match tokio::time::timeout(bound, work).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(SourceError::Unreachable(format!("no answer within {} s", bound.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_engine_tell_gone_from_refused() {
        for code in ["08006", "57P01", "53300", "28P01", "3D000", "08S01", "10", "266", "14", "26"] {
            assert!(is_gone(code), "{code}");
        }
        for code in ["42P01", "57014", "55P03", "25006", "42S02", "HY000", "70100", "1", "5", "9", "2067"] {
            assert!(!is_gone(code), "{code}");
        }
    }

    #[test]
    fn the_text_of_a_url_is_not_repeated() {
        let error = sqlx::Error::Configuration("unknown value \"hunter2\" for `sslmode`".into());
        assert_eq!(SourceError::from(error), SourceError::Mapping("the URL of the source cannot be read".to_owned()));
    }
}
