//! Which replicas serve this database, each with its last sign of life, so that each knows its share of the limits while
//! the shared counters are away. And a change row for `TRUNCATE`, on PostgreSQL, where no row trigger runs for it.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{number, text};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let replicas =
            Table::create().table("replicas").col(text("id").primary_key()).col(number("time_us")).to_owned();
        manager.create_table(replicas).await?;
        if manager.get_database_backend() == DbBackend::Postgres {
            manager.get_connection().execute_unprepared(UP).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Postgres {
            manager.get_connection().execute_unprepared(DOWN).await?;
        }
        manager.drop_table(Table::drop().table("replicas").to_owned()).await
    }
}

/// Followers do not know this kind of change, and so drop all that they have cached.
const UP: &str = "
CREATE FUNCTION keystead_truncated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM keystead_record_change('truncate', '', '', NULL);
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_truncated AFTER TRUNCATE ON api_keys FOR EACH STATEMENT
EXECUTE FUNCTION keystead_truncated();

CREATE TRIGGER organizations_truncated AFTER TRUNCATE ON organizations FOR EACH STATEMENT
EXECUTE FUNCTION keystead_truncated();
";

const DOWN: &str = "
DROP TRIGGER organizations_truncated ON organizations;
DROP TRIGGER api_keys_truncated ON api_keys;
DROP FUNCTION keystead_truncated();
";
