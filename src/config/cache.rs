//! The `cache` section: how much the in-process key cache holds, and for how long.
//!
//! Declares and reads. The age bound of 60 s is a promise (a cached entry is served at most that
//! long), so no setting can raise it. Invariant: known and unknown keys have bounds of their own.

use std::time::Duration;

use super::parse;
use super::settings::Setting;
use super::sources::{Reported, Sources};

const ENTRIES_MAX: Setting = Setting::new("cache-entries-max", "N", "100000", "Keys that the cache holds");
const ENTRY_AGE_MAX: Setting =
    Setting::new("cache-entry-age-max-ms", "MS", "60000", "Longest time that a cached key is served, at most 60000");
const NEGATIVE_ENTRIES_MAX: Setting =
    Setting::new("cache-negative-entries-max", "N", "10000", "Unknown secrets that the cache remembers");
const NEGATIVE_AGE_MAX: Setting = Setting::new(
    "cache-negative-age-max-ms",
    "MS",
    "5000",
    "Longest time that an unknown secret is remembered, at most 60000",
);
const STALENESS_BOUND: Setting = Setting::new(
    "staleness-bound",
    "TIME",
    "5s",
    "How long ago changes may have been heard of for a cached answer to be given, 2s to 60m: no revocation takes longer",
);

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] =
    &[ENTRIES_MAX, ENTRY_AGE_MAX, NEGATIVE_ENTRIES_MAX, NEGATIVE_AGE_MAX, STALENESS_BOUND];

/// Bounds of the in-process key cache.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Keys held; 0 holds none.
    pub entries_max: u64,
    /// Longest time that a key is served from the cache, at most 60 s.
    pub entry_age_max: Duration,
    /// Unknown secrets remembered; 0 remembers none.
    pub negative_entries_max: u64,
    /// Longest time that an unknown secret is remembered, at most 60 s.
    pub negative_age_max: Duration,
    /// Longest time since the change feed was heard with which a cached answer is given, 2 s to 1 h.
    pub staleness_bound: Duration,
}

impl CacheConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        let entries_max = sources.required(&ENTRIES_MAX, parse::number(0..=100_000_000));
        let entry_age_max = sources.required(&ENTRY_AGE_MAX, parse::milliseconds(0..=60_000));
        let negative_entries_max = sources.required(&NEGATIVE_ENTRIES_MAX, parse::number(0..=100_000_000));
        let negative_age_max = sources.required(&NEGATIVE_AGE_MAX, parse::milliseconds(0..=60_000));
        // The feed is polled each second: a shorter bound would ask the database all the time.
        let staleness_bound =
            sources.required(&STALENESS_BOUND, parse::span(Duration::from_secs(2)..=Duration::from_hours(1)));
        Ok(Self {
            entries_max: entries_max?,
            entry_age_max: entry_age_max?,
            negative_entries_max: negative_entries_max?,
            negative_age_max: negative_age_max?,
            staleness_bound: staleness_bound?,
        })
    }
}
