//! What can go wrong at the database, as a closed set, and the one place that reads driver errors.
//! Must not reach a client as text: `grpc/status.rs` shows a code and a reason, the log shows the chain.
//! Invariant: "we do not know" (`Unavailable`) is never blurred with an answer about a row.

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, sqlx};

/// Which unique value was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    Slug,
    Email,
    RequestId,
    Digest,
    Id,
}

/// An error of the store. What several waited for together fails for all of them alike, so it can be cloned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A unique value is taken by another row; nothing was written.
    #[error("a unique value is taken: {0:?}")]
    Conflict(Conflict),
    /// A row holds what this version cannot read. The text names the row and the column, never the value.
    #[error("a row cannot be read: {0}")]
    Corrupt(String),
    /// The database could not answer. `may_have_happened` says whether a write may stand all the same.
    #[error("the database could not answer")]
    Unavailable {
        may_have_happened: bool,
        #[source]
        source: DbErr,
    },
    /// More work waits for the database already than it is good for; nothing was done.
    #[error("too much waits for the database")]
    Overloaded,
    /// The database refused a statement that should have been right.
    #[error("the database refused a statement")]
    Unforeseen(#[source] DbErr),
}

impl StoreError {
    /// A question that was given up because its time ran out; nothing was asked that would change anything.
    #[must_use]
    pub const fn timed_out() -> Self {
        Self::Unavailable { may_have_happened: false, source: DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) }
    }

    /// A question that was not asked, since the database has not answered lately.
    #[must_use]
    pub fn away() -> Self {
        let source = DbErr::Custom("the change feed has found it away".to_owned());
        Self::Unavailable { may_have_happened: false, source }
    }

    /// An answer that nothing can rest on.
    pub(super) fn standby() -> Self {
        let source = DbErr::Custom("it is a standby, whose state may be old".to_owned());
        Self::Unavailable { may_have_happened: false, source }
    }

    /// The error and what caused it, for the log. Never `Debug`: PostgreSQL puts whole rows into an error's detail.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// This error as one of a commit: where the connection broke, nobody knows whether it came through.
    #[must_use]
    pub fn of_commit(self) -> Self {
        match self {
            Self::Unavailable { source, .. } => Self::Unavailable { may_have_happened: true, source },
            Self::Conflict(_) | Self::Corrupt(_) | Self::Overloaded | Self::Unforeseen(_) => self,
        }
    }
}

/// This error as one of a single statement that writes: where the connection broke, nobody knows whether it was run.
pub(super) fn of_write(error: DbErr) -> StoreError {
    let never_sent = matches!(error, DbErr::ConnectionAcquire(_));
    let error = StoreError::from(error);
    if never_sent { error } else { error.of_commit() }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        if let Some(sea_orm::SqlErr::UniqueConstraintViolation(message)) = error.sql_err()
            && let Some(conflict) = conflict_of(&message)
        {
            return Self::Conflict(conflict);
        }
        if is_unavailable(&error) {
            return Self::Unavailable { may_have_happened: false, source: error };
        }
        Self::Unforeseen(error)
    }
}

/// Both engines name the columns in the constraint's name or in the message.
fn conflict_of(message: &str) -> Option<Conflict> {
    let known = [
        ("slug", Conflict::Slug),
        ("email", Conflict::Email),
        ("request_id", Conflict::RequestId),
        ("digest", Conflict::Digest),
        ("_pkey", Conflict::Id),
        (".id", Conflict::Id),
    ];
    known.into_iter().find(|(word, _)| message.contains(word)).map(|(_, conflict)| conflict)
}

fn is_unavailable(error: &DbErr) -> bool {
    match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => true,
        DbErr::Exec(RuntimeErr::SqlxError(source)) | DbErr::Query(RuntimeErr::SqlxError(source)) => {
            is_transient(source)
        }
        _ => false,
    }
}

/// Whether a statement gave up because somebody else held what it needed: a lock's time was up, or there was a deadlock.
pub(super) fn waited_for_lock(error: &DbErr) -> bool {
    let (DbErr::Exec(RuntimeErr::SqlxError(source)) | DbErr::Query(RuntimeErr::SqlxError(source))) = error else {
        return false;
    };
    let code = source.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| matches!(code.as_ref(), "55P03" | "40P01"))
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(refusal) => refusal.code().is_some_and(|code| is_transient_code(&code)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// PostgreSQL (five characters, Appendix A of its manual): connection exceptions, lack of resources, operator
/// intervention, serialization failure, deadlock, read-only standby, a lock that was not to be had in time. SQLite (result codes, low byte): busy, locked,
/// read-only, I/O error, full, cannot open.
fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 {
        let class = code.get(..2).unwrap_or_default();
        return matches!(class, "08" | "53" | "57" | "58") || matches!(code, "40001" | "40P01" | "25006" | "55P03");
    }
    code.parse::<i64>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_engines_tell_transient_from_final() {
        for code in ["08006", "57P01", "40001", "53300", "5", "261", "13"] {
            assert!(is_transient_code(code), "{code}");
        }
        for code in ["23505", "42703", "2067", "1"] {
            assert!(!is_transient_code(code), "{code}");
        }
    }

    #[test]
    fn conflicts_are_told_apart_in_both_engines_words() {
        assert_eq!(conflict_of("UNIQUE constraint failed: organizations.slug"), Some(Conflict::Slug));
        let postgres = "duplicate key value violates unique constraint \"api_keys_request_id\"";
        assert_eq!(conflict_of(postgres), Some(Conflict::RequestId));
        assert_eq!(conflict_of("something else"), None);
    }
}
