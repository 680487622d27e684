//! The schema of Keystead, as migrations that run on SQLite and on PostgreSQL alike.
//! Imports nothing of `src/`: a migration must go on meaning what it meant when it landed.
//! Every migration has a tested `down`; `LOSSES` says what going down destroys.
//!
//! Conventions: ids are UUIDs as text, so that the same SQL names a row in both databases' shells;
//! times are microseconds since the Unix epoch in UTC (`*_us`), because SQLite has no time type that
//! compares rightly; lists and maps are JSON text, read by the code alone.

use sea_orm_migration::prelude::*;
pub use sea_orm_migration::{Migration, MigratorTrait};

mod columns;
mod m20261121_000001_organizations_and_keys;
mod m20261121_000002_usage_and_limits;
mod m20261121_000003_audit;
mod m20261121_000004_change_feed;
mod m20261121_000005_usage_totals;
mod m20261121_000006_usage_spool;
mod m20261121_000007_job_leases;
mod m20261121_000008_bulk_changes;
mod m20261121_000009_partial_indexes;
mod m20261121_000010_replicas;
mod m20261121_000011_imports;
mod m20261122_000012_decoded_digests;
mod m20261122_000013_import_passes;

/// All migrations, oldest first.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261121_000001_organizations_and_keys::Migration),
            Box::new(m20261121_000002_usage_and_limits::Migration),
            Box::new(m20261121_000003_audit::Migration),
            Box::new(m20261121_000004_change_feed::Migration),
            Box::new(m20261121_000005_usage_totals::Migration),
            Box::new(m20261121_000006_usage_spool::Migration),
            Box::new(m20261121_000007_job_leases::Migration),
            Box::new(m20261121_000008_bulk_changes::Migration),
            Box::new(m20261121_000009_partial_indexes::Migration),
            Box::new(m20261121_000010_replicas::Migration),
            Box::new(m20261121_000011_imports::Migration),
            Box::new(m20261122_000012_decoded_digests::Migration),
            Box::new(m20261122_000013_import_passes::Migration),
        ]
    }
}

/// What `down` of a migration destroys, by the migration's name; shown before an operator confirms.
///
/// Returns "nothing" for a name without an entry.
#[must_use]
pub fn losses(name: &str) -> &'static str {
    match name {
        "m20261121_000001_organizations_and_keys" => {
            "every organization, every API key, the imports, and with them the service itself"
        }
        "m20261121_000002_usage_and_limits" => "all usage, raw and summed, and what limits have counted",
        "m20261121_000003_audit" => "all audit events and the head of their chain",
        "m20261121_000004_change_feed" => "the change feed and its revision: replicas start from an empty cache",
        "m20261121_000005_usage_totals" => {
            "sums of usage by day and month (made anew by going up), and for good: error codes, response times, and \
             which reports have been counted"
        }
        "m20261121_000006_usage_spool" => {
            "how many requests a row of usage stands for, and what of each usage spool has been written: usage that \
             waits in a spool may be counted twice"
        }
        "m20261121_000007_job_leases" => {
            "when background jobs ran last, and which expiries were told: after going up again each is told once more"
        }
        "m20261121_000008_bulk_changes" => "no data; revoking very many keys at once takes long on PostgreSQL",
        "m20261121_000009_partial_indexes" => "no data; keys are created more slowly",
        "m20261121_000010_replicas" => "no data; replicas no longer know of each other, and TRUNCATE reaches no cache",
        "m20261121_000011_imports" => {
            "how far each table of a source has come and what was verified of it: an import starts anew, and finds the \
             keys that it has brought in before by their digests alone"
        }
        "m20261122_000012_decoded_digests" => {
            "which imported secrets read as a SHA-256 digest: a key that comes with that very hash is no longer refused"
        }
        "m20261122_000013_import_passes" => {
            "when an import that is under way began: past requests of keys that are not here yet wait for a run that \
             begins anew"
        }
        _ => "nothing",
    }
}
