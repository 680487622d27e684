//! Keys that exist elsewhere, from a source to Keystead's database: what `keystead import` does.
//!
//! In reading order: `mapping` says which column is what; `source` gives rows as text; `treat` makes a key of a row, or
//! a refusal; `run` brings tables in, batch by batch, and `plan` tells what that would do; `organizations`, `usage` and
//! `limits` bring in what is no key; `verify` reads everything again and compares; `contract` drops what is not needed
//! any more; `status` tells how far all of it is; `report` is what they come to.
//! Must not print, and must not show a key or a hash to anybody. Invariant: whenever a run ends, by whatever, the next
//! one brings in what is left and nothing twice; memory is bounded by two batches, however long a table is. `plan`
//! alone needs more, for all that a run would create: `planned.rs` says what and how much.

mod batches;
mod checks;
mod contract;
mod findings;
mod fingerprint;
mod limits;
mod mapping;
mod organizations;
mod passes;
mod places;
mod plan;
mod planned;
mod refused_file;
pub mod report;
mod rows;
mod run;
pub mod source;
mod status;
mod treat;
#[cfg(test)]
mod treat_tests;
mod usage;
mod values;
mod verify;
mod writer;

use std::{io, path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{
    domain::audit::Actor,
    service::{Context, ServiceError},
    store::{StoreError, connect::ConnectError, imports::ImportKind},
};

pub use self::{
    contract::{ContractJob, contract, contract_plan},
    mapping::{Mapping, MappingError},
    plan::plan,
    run::run,
    source::{Source, SourceError},
    status::{StatusQuery, status},
    verify::verify,
};

/// Rows of a batch unless the operator says how many.
pub const BATCH_DEFAULT: u16 = 2000;

/// What an operator may decide beside the mapping.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether weak keys are brought in too, flagged.
    pub allow_weak: bool,
    /// Rows of a batch, 1 to 10,000.
    pub batch: usize,
    /// Where the ids of refused rows go; `None` for a file named after the source in the working directory.
    pub refused_file: Option<PathBuf>,
    /// Whether rows that the import refuses, or that cannot be compared any more, pass a verification, and refused ones
    /// do not keep a run from past requests.
    pub accept_refused: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { allow_weak: false, batch: usize::from(BATCH_DEFAULT), refused_file: None, accept_refused: false }
    }
}

/// One command on an open source.
pub struct Job<'a> {
    pub context: &'a Arc<Context>,
    pub mapping: &'a Mapping,
    pub options: &'a Options,
    /// Told how far it is.
    pub tell: Tell<'a>,
    /// Cancelled when it is to end after the batch under way.
    pub stop: &'a CancellationToken,
    pub source: Source,
}

/// Who is told how far a command is.
pub type Tell<'a> = &'a (dyn Fn(Event<'_>) + Send + Sync);

/// What is told. Ids are those of rows; nothing of a row's key is told.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A table begins.
    Table {
        /// As the mapping writes it; empty for a file.
        table: &'a str,
        kind: ImportKind,
        /// All its rows; `None` where they cannot be counted.
        total: Option<u64>,
        /// Rows of it that an earlier run had read.
        before: u64,
    },
    /// So many of its rows are done in this run, of which so many were refused or do not match.
    Rows { done: u64, bad: u64 },
    /// A row is not as it should be.
    Mismatch { table: &'a str, id: &'a str, reason: &'a str },
    /// Something that the operator should know.
    Remark(&'a str),
    /// The table is over.
    End,
}

/// What kind of end an error makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It was refused, or could not be done.
    Refused,
    /// The mapping or a flag is wrong.
    Usage,
    /// The source or the database was not reached.
    Unreachable,
}

/// Why an import could not do its work. A row that is refused is none.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The mapping does not fit the source, Keystead or a flag.
    #[error("{0}")]
    Mapping(String),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the database could not do it")]
    Store(#[from] StoreError),
    #[error("the database could not answer: {0}")]
    Unanswered(String),
    #[error("the database lacks {0} migrations: run `keystead migrate up`, or start the server of this version")]
    PendingMigrations(usize),
    #[error("the file of refused rows {}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("given up; what was brought in stays, and the next run goes on from there")]
    GivenUp,
    #[error("the operating system refused")]
    System(#[from] io::Error),
}

impl ImportError {
    /// What kind of end this makes.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Mapping(_)
            | Self::Source(SourceError::Mapping(_))
            | Self::Connect(ConnectError::Url(_))
            | Self::File { .. } => ErrorKind::Usage,
            Self::Source(SourceError::Unreachable(_))
            | Self::Connect(ConnectError::Open(_))
            | Self::Store(StoreError::Unavailable { .. } | StoreError::Overloaded)
            | Self::Unanswered(_) => ErrorKind::Unreachable,
            Self::Refused(_)
            | Self::Source(SourceError::Refused(_))
            | Self::Connect(
                ConnectError::InUse(_) | ConnectError::LockFile { .. } | ConnectError::SqliteTooOld { .. },
            )
            | Self::Store(StoreError::Conflict(_) | StoreError::Corrupt(_) | StoreError::Unforeseen(_))
            | Self::PendingMigrations(_)
            | Self::GivenUp
            | Self::System(_) => ErrorKind::Refused,
        }
    }
}

impl From<ServiceError> for ImportError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Unavailable { reason, cause, .. } if cause.is_empty() => Self::Unanswered(reason.to_owned()),
            ServiceError::Unavailable { cause, .. } => Self::Unanswered(cause),
            ServiceError::FailedPrecondition { description, .. } => Self::Refused(description),
            other => Self::Refused(format!("{other:?}")),
        }
    }
}

/// Who acts in audit events.
fn actor() -> Actor {
    Actor { key_id: String::new(), name: crate::domain::import::ACTOR.to_owned(), request_id: String::new() }
}
