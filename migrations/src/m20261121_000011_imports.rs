//! What bringing keys in needs: for each source and table how far it has come and what was verified, that no row of a
//! source comes in twice and no slow hash twice, and the keys that are not known by a digest yet, found without a look
//! at the others. `import_request_count` is what a source had counted of a key: what is beyond that was counted here.
//! `api_keys_by_scheme` held every key and was read for none: now it holds those few.

use sea_orm_migration::prelude::*;

use crate::columns::{index, number_or_null, text_or_empty};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for mut column in columns() {
            manager.alter_table(Table::alter().table("imports").add_column(&mut column).to_owned()).await?;
        }
        manager.get_connection().execute_unprepared(UP).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await?;
        manager.create_index(index("api_keys_by_scheme", "api_keys", &["organization_id", "scheme"], false)).await?;
        for column in columns() {
            manager
                .alter_table(Table::alter().table("imports").drop_column(column.get_column_name()).to_owned())
                .await?;
        }
        Ok(())
    }
}

/// `kind` is `keys`, `organizations`, `usage` or `limits`. `fingerprint` is that of the source's rows when they were
/// verified; `contracted` is JSON: what was dropped from the source.
fn columns() -> [ColumnDef; 5] {
    [
        text_or_empty("table_name"),
        text_or_empty("kind"),
        number_or_null("verified_time_us"),
        text_or_empty("fingerprint"),
        text_or_empty("contracted"),
    ]
}

const UP: &str = "
CREATE UNIQUE INDEX imports_by_source ON imports (source, table_name, organization_id);
DROP INDEX api_keys_by_import;
CREATE UNIQUE INDEX api_keys_by_import ON api_keys (import_id, source_id) WHERE import_id IS NOT NULL;
DROP INDEX api_keys_by_scheme;
CREATE INDEX api_keys_by_scheme ON api_keys (scheme, organization_id) WHERE scheme <> 'sha256';
CREATE UNIQUE INDEX api_keys_stored_hash ON api_keys (stored_hash)
    WHERE stored_hash IS NOT NULL AND scheme <> 'missing';
ALTER TABLE api_keys ADD COLUMN import_request_count bigint NOT NULL DEFAULT 0;
";

const DOWN: &str = "
DROP INDEX api_keys_stored_hash;
ALTER TABLE api_keys DROP COLUMN import_request_count;
DROP INDEX imports_by_source;
DROP INDEX api_keys_by_import;
CREATE INDEX api_keys_by_import ON api_keys (import_id, source_id) WHERE import_id IS NOT NULL;
DROP INDEX api_keys_by_scheme;
";
