//! The tables that the service is named for: `organizations` and `api_keys`; `imports`, the batches that
//! keys came in; and `service_state`, the few values that belong to the database as a whole.
//! A key cannot outlive its organization unseen: the reference restricts deletion.

use sea_orm_migration::prelude::*;

use crate::columns::{count, index, number, number_or_null, text, text_or_empty, text_or_null};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(service_state()).await?;
        manager.create_table(organizations()).await?;
        manager.create_table(api_keys()).await?;
        manager.create_table(imports()).await?;
        for statement in indexes() {
            manager.create_index(statement).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["imports", "api_keys", "organizations", "service_state"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// Rows: `page_token_key` (32 random bytes in hex), `audit_head` (sequence and hash).
fn service_state() -> TableCreateStatement {
    Table::create()
        .table("service_state")
        .col(text("name").primary_key())
        .col(count("number"))
        .col(text_or_empty("value"))
        .to_owned()
}

fn organizations() -> TableCreateStatement {
    Table::create()
        .table("organizations")
        .col(text("id").primary_key())
        .col(text("name"))
        .col(text("name_folded"))
        .col(text("slug").unique_key())
        .col(text_or_null("email").unique_key())
        .col(text("plan"))
        .col(ColumnDef::new("active").boolean().not_null().default(true))
        .col(count("max_keys"))
        .col(text("rate_limits"))
        .col(count("monthly_quota"))
        .col(text_or_empty("secret_prefix"))
        .col(text("metadata"))
        .col(number("create_time_us"))
        .col(number("update_time_us"))
        .col(text_or_null("request_id").unique_key())
        .col(count("etag"))
        .to_owned()
}

fn api_keys() -> TableCreateStatement {
    Table::create()
        .table("api_keys")
        .col(text("id").primary_key())
        .col(text("organization_id"))
        .col(text("name"))
        .col(text("name_folded"))
        .col(ColumnDef::new("digest").binary().null().unique_key())
        .col(text("scheme"))
        .col(text_or_null("stored_hash"))
        .col(text_or_null("look_up_id"))
        .col(text("prefix"))
        .col(text("hint"))
        .col(text("environment"))
        .col(text("status"))
        .col(text("scopes"))
        .col(text("metadata"))
        .col(text_or_empty("owner_id"))
        .col(text("allowed_cidrs"))
        .col(text("rate_limits"))
        .col(number_or_null("credits_remaining"))
        .col(count("credits_refill_amount"))
        .col(text_or_empty("credits_refill_interval"))
        .col(number_or_null("credits_refill_time_us"))
        .col(number("create_time_us"))
        .col(number("update_time_us"))
        .col(number_or_null("expire_time_us"))
        .col(number_or_null("last_used_time_us"))
        .col(count("request_count"))
        .col(text("created_by"))
        .col(number_or_null("revoke_time_us"))
        .col(text_or_empty("revoked_by"))
        .col(text_or_empty("revocation_reason"))
        .col(text_or_empty("revocation_note"))
        .col(text_or_null("rotated_from_id"))
        .col(text_or_null("successor_id"))
        .col(text("counter_id"))
        .col(text_or_null("import_id"))
        .col(text_or_null("source_id"))
        .col(text_or_null("request_id"))
        .col(count("etag"))
        .foreign_key(
            ForeignKey::create()
                .name("api_keys_organization_id")
                .from("api_keys", "organization_id")
                .to("organizations", "id")
                .on_delete(ForeignKeyAction::Restrict),
        )
        .to_owned()
}

fn imports() -> TableCreateStatement {
    Table::create()
        .table("imports")
        .col(text("id").primary_key())
        .col(text("organization_id"))
        .col(text("source"))
        .col(text("state"))
        .col(text_or_empty("position"))
        .col(count("created_count"))
        .col(count("existing_count"))
        .col(count("refused_count"))
        .col(number("create_time_us"))
        .col(number("update_time_us"))
        .to_owned()
}

fn indexes() -> Vec<IndexCreateStatement> {
    let keys = "api_keys";
    vec![
        index("organizations_list", "organizations", &["create_time_us", "id"], false),
        index("api_keys_list", keys, &["organization_id", "create_time_us", "id"], false),
        index("api_keys_by_owner", keys, &["organization_id", "owner_id", "create_time_us", "id"], false),
        index("api_keys_by_status", keys, &["organization_id", "status", "create_time_us", "id"], false),
        index("api_keys_by_expiry", keys, &["expire_time_us"], false),
        index("api_keys_by_last_use", keys, &["organization_id", "last_used_time_us"], false),
        index("api_keys_by_successor", keys, &["successor_id"], false),
        index("api_keys_by_look_up_id", keys, &["look_up_id"], false),
        index("api_keys_by_scheme", keys, &["organization_id", "scheme"], false),
        index("api_keys_by_import", keys, &["import_id", "source_id"], false),
        index("api_keys_request_id", keys, &["organization_id", "request_id"], true),
    ]
}
