//! The `usage` section: where recorded usage waits for the database, how much of it, and how long rows are kept.
//!
//! Declares and reads; opens no folder. Without a folder of its own the spool of a SQLite file lies beside it, and
//! that of PostgreSQL in the working directory. Invariant: the bound leaves room for several segments.

use std::path::PathBuf;

use super::parse;
use super::settings::Setting;
use super::sources::{Reported, Sources};

const SPOOL: Setting = Setting::optional(
    "usage-spool",
    "DIR",
    "Folder on a local disk where usage waits for the database [default: the SQLite file and `-spool`, or keystead-spool]",
);
const SPOOL_BYTES_MAX: Setting = Setting::new(
    "usage-spool-bytes-max",
    "BYTES",
    "268435456",
    "Usage that waits, beyond which rows of detail are thinned out; counts stay exact",
);
const RETENTION_DAYS: Setting =
    Setting::new("usage-retention-days", "DAYS", "30", "Age at which rows of usage are deleted; sums stay");

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] = &[SPOOL, SPOOL_BYTES_MAX, RETENTION_DAYS];

/// Where recorded usage waits, and how long rows of it are kept.
#[derive(Debug, Clone)]
pub struct UsageConfig {
    /// The folder of the spool; `None` for the default of the database.
    pub spool: Option<PathBuf>,
    /// Bytes of usage that may wait for the database, 16 MiB to 1 TiB.
    pub spool_bytes_max: u64,
    /// Days for which a row of detail is kept, 1 to 36,500.
    pub retention_days: u32,
}

impl UsageConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        let spool = sources.optional(&SPOOL, parse::path);
        let spool_bytes_max = sources.required(&SPOOL_BYTES_MAX, parse::number(16 << 20..=1 << 40));
        let retention_days = sources.required(&RETENTION_DAYS, parse::number(1..=36_500));
        Ok(Self { spool: spool?, spool_bytes_max: spool_bytes_max?, retention_days: retention_days? })
    }
}
