//! What background jobs need that run once across processes: `job_leases`, one row per job; which expiry of a key was
//! told to the audit log (`api_keys.expire_told_us`); and indexes over the keys whose expiry or refill is due.
//! Neither column nor indexes touch the change feed: telling an expiry changes no verification.

use sea_orm_migration::prelude::*;

use crate::columns::{count, text, text_or_empty};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(job_leases()).await?;
        manager.get_connection().execute_unprepared(UP).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await?;
        manager.drop_table(Table::drop().table("job_leases").to_owned()).await
    }
}

/// Times are of the clocks of the processes that run the jobs; 0 stands for never.
fn job_leases() -> TableCreateStatement {
    Table::create()
        .table("job_leases")
        .col(text("name").primary_key())
        .col(text("holder"))
        .col(count("lease_until_us"))
        .col(count("last_start_us"))
        .col(count("last_end_us"))
        .col(text_or_empty("last_result"))
        .to_owned()
}

/// A key leaves the first index once its expiry was told; a rotated key's refills are its successor's.
const UP: &str = "
ALTER TABLE api_keys ADD COLUMN expire_told_us bigint NOT NULL DEFAULT 0;
CREATE INDEX api_keys_by_untold_expiry ON api_keys (expire_time_us) WHERE expire_told_us <> expire_time_us;
CREATE INDEX api_keys_by_refill ON api_keys (credits_refill_time_us) WHERE successor_id IS NULL;
";

const DOWN: &str = "
DROP INDEX api_keys_by_refill;
DROP INDEX api_keys_by_untold_expiry;
ALTER TABLE api_keys DROP COLUMN expire_told_us;
";
