//! What the commands of an import come to: counts by table, by scheme, by refusal and by note.
//! Plain values, for a table or for JSON; `cli/import/show.rs` makes both of them.
//! Must not hold a key, a hash or any value of a row but its id.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;

use crate::{
    domain::{
        ids::{KeyId, OrganizationId},
        import::Scheme,
        time::Timestamp,
    },
    store::imports::{ImportKind, ImportState},
};

/// Numbers by the word that they count.
pub type Counts = BTreeMap<&'static str, u64>;

/// What `plan` would do, or `run` did.
#[derive(Debug, Clone)]
pub struct Report {
    /// The label of the source.
    pub source: String,
    /// Whether nothing was written: what is counted as created would be.
    pub dry_run: bool,
    /// Whether it went on where an earlier run had ended; rows before that are not counted here.
    pub resumed: bool,
    /// Whether it was told to end before the last row.
    pub interrupted: bool,
    /// In the order in which they were read.
    pub tables: Vec<TableReport>,
    /// Tables of past requests that were left for a later pass, or would be, since rows that their keys come from were
    /// refused.
    pub withheld: Vec<String>,
    /// Where the ids of refused rows stand.
    pub refused_file: Option<PathBuf>,
    pub elapsed: Duration,
}

impl Report {
    /// How many rows were refused, of all tables.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.tables.iter().map(|table| table.refused).sum()
    }

    /// How many of those are of organizations and of keys, which past requests refer to.
    #[must_use]
    pub fn refused_owners(&self) -> u64 {
        let is_owner = |table: &&TableReport| matches!(table.kind, ImportKind::Organizations | ImportKind::Keys);
        self.tables.iter().filter(is_owner).map(|table| table.refused).sum()
    }
}

/// One table of it. Each row is exactly one of created, existing, duplicate, skipped or refused.
#[derive(Debug, Clone)]
pub struct TableReport {
    /// As the mapping writes it; empty for a file.
    pub table: String,
    pub kind: ImportKind,
    /// Whether reading began after rows that an earlier run had read.
    pub resumed: bool,
    /// How many of those are counted, of this pass or, for past requests, of all: rows without a key are not. The
    /// counts below are of this run alone.
    pub rows_before: u64,
    pub rows: u64,
    pub created: u64,
    /// What an earlier run had brought already.
    pub existing: u64,
    /// The same key again, in a row before or as a key of Keystead's.
    pub duplicates: u64,
    /// Rows that hold no key.
    pub skipped: u64,
    pub refused: u64,
    /// What was created, by scheme in the source.
    pub schemes: Counts,
    /// Refused rows by reason.
    pub refusals: Counts,
    /// Rows that came over changed, or need attention, by note.
    pub notes: Counts,
    pub elapsed: Duration,
}

impl TableReport {
    /// A table of which nothing has been read yet.
    #[must_use]
    pub fn new(table: &str, kind: ImportKind) -> Self {
        Self {
            table: table.to_owned(),
            kind,
            resumed: false,
            rows_before: 0,
            rows: 0,
            created: 0,
            existing: 0,
            duplicates: 0,
            skipped: 0,
            refused: 0,
            schemes: Counts::new(),
            refusals: Counts::new(),
            notes: Counts::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// Rows a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        rate(self.rows, self.elapsed)
    }
}

/// How many a second.
#[must_use]
pub fn rate(rows: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    // Exact up to 2^53 rows.
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
    let rows = rows as f64;
    if seconds > 0.0 { rows / seconds } else { 0.0 }
}

/// Adds to a count.
pub(super) fn add(counts: &mut Counts, word: &'static str) {
    *counts.entry(word).or_default() += 1;
}

/// What `verify` found.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// The label of the source.
    pub source: String,
    /// Whether every row is as it should be; only then may `contract` go on.
    pub passed: bool,
    /// Whether it was told to end before the last row, and so did not pass.
    pub interrupted: bool,
    pub tables: Vec<VerifiedTable>,
    pub elapsed: Duration,
}

impl VerifyReport {
    /// How many rows are not as they should be, of all tables.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.tables.iter().map(|table| table.mismatches).sum()
    }
}

/// One table of it. Each row matched, was skipped, was accepted as refused, or is a mismatch.
#[derive(Debug, Clone)]
pub struct VerifiedTable {
    pub table: String,
    pub kind: ImportKind,
    pub rows: u64,
    pub matched: u64,
    /// Rows that hold no key.
    pub skipped: u64,
    /// Rows that the import refuses, where that was accepted.
    pub accepted: u64,
    pub mismatches: u64,
    /// What Keystead answers for the rows that matched; `UPGRADED`, `SLOW` and `MISSING` for those that nothing can be
    /// presented for.
    pub outcomes: Counts,
    /// Mismatches and accepted refusals, by reason.
    pub reasons: Counts,
    pub elapsed: Duration,
}

impl VerifiedTable {
    /// A table of which nothing has been read yet.
    #[must_use]
    pub fn new(table: &str, kind: ImportKind) -> Self {
        Self {
            table: table.to_owned(),
            kind,
            rows: 0,
            matched: 0,
            skipped: 0,
            accepted: 0,
            mismatches: 0,
            outcomes: Counts::new(),
            reasons: Counts::new(),
            elapsed: Duration::ZERO,
        }
    }

    /// Rows a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        rate(self.rows, self.elapsed)
    }
}

/// What `contract` did, or would do.
#[derive(Debug, Clone)]
pub struct ContractReport {
    /// The label of the source.
    pub source: String,
    /// Whether columns come back, rather than go.
    pub down: bool,
    /// The statements, in order.
    pub statements: Vec<String>,
    /// What must be said before they are run.
    pub remarks: Vec<String>,
    /// The tables that they change.
    pub tables: Vec<String>,
}

/// How far imports have come.
#[derive(Debug, Clone)]
pub struct Status {
    /// One for each source and table.
    pub imports: Vec<ImportStatus>,
    /// Keys that nobody has presented since they were imported, by owner, and that are neither revoked nor expired;
    /// `None` where they were not asked for.
    pub unseen: Option<Vec<KeyLine>>,
    /// Keys that came without a hash, by owner; `None` where they were not asked for.
    pub missing: Option<Vec<KeyLine>>,
    /// Whether a list was cut because it is too long.
    pub cut: bool,
}

/// How far one table has come.
#[derive(Debug, Clone)]
pub struct ImportStatus {
    pub source: String,
    /// Empty for a file, and for what came by calls.
    pub table: String,
    pub kind: ImportKind,
    /// Whose keys came by calls; `None` for tables.
    pub organization_id: Option<OrganizationId>,
    pub state: ImportState,
    /// Of the latest pass over the table.
    pub created: i64,
    pub existing: i64,
    pub refused: i64,
    /// Keys of this import that Keystead has now, by scheme at rest.
    pub schemes: Counts,
    /// How many of them have been presented since.
    pub seen: i64,
    /// How many have not, and can still be: keys that are revoked or expired are not among them.
    pub never_seen: i64,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub verified_time: Option<Timestamp>,
    /// What `contract` took away, as it can be put back.
    pub contracted: Option<Value>,
    /// The latest use of any of its keys, the source's account of it included.
    pub last_used_time: Option<Timestamp>,
}

/// A key in a list of `status`.
#[derive(Debug, Clone)]
pub struct KeyLine {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    pub owner_id: String,
    pub name: String,
    pub source: String,
    pub table: String,
    /// The id of its row there; empty where the source did not say.
    pub source_id: String,
    pub scheme: Scheme,
    /// `active`, `disabled`, `revoked` or `expired`.
    pub status: &'static str,
    pub last_used_time: Option<Timestamp>,
    pub request_count: i64,
}
