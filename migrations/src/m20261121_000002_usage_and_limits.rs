//! What keys were used for (`api_key_usage`, one row per request, and `usage_rollups`, summed per hour), and
//! what limits have counted (`rate_limit_tracking`, one row per subject, limit and window).
//! No references to keys: usage of unknown keys is counted too, and history may outlive a key.

use sea_orm_migration::prelude::*;

use crate::columns::{count, index, number, number_or_null, text, text_or_empty};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(api_key_usage()).await?;
        manager.create_table(usage_rollups()).await?;
        manager.create_table(rate_limit_tracking()).await?;
        for statement in indexes() {
            manager.create_index(statement).await?;
        }
        manager.get_connection().execute_unprepared(ERROR_INDEXES).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["rate_limit_tracking", "usage_rollups", "api_key_usage"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// Errors are few among requests; these serve the statistics of errors without a look at the rest.
const ERROR_INDEXES: &str = "
CREATE INDEX api_key_usage_errors_by_organization ON api_key_usage (organization_id, time_us) WHERE error_code <> '';
CREATE INDEX api_key_usage_errors_by_key ON api_key_usage (key_id, time_us) WHERE error_code <> '';
";

fn api_key_usage() -> TableCreateStatement {
    Table::create()
        .table("api_key_usage")
        .col(text("id").primary_key())
        .col(text_or_empty("key_id"))
        .col(text_or_empty("organization_id"))
        .col(number("time_us"))
        .col(text_or_empty("endpoint"))
        .col(text_or_empty("method"))
        .col(number_or_null("status_code"))
        .col(text_or_empty("outcome"))
        .col(number_or_null("response_time_us"))
        .col(count("tokens"))
        .col(count("cost_micro_usd"))
        .col(text_or_empty("client_address"))
        .col(text_or_empty("user_agent"))
        .col(text_or_empty("error_code"))
        .col(text_or_empty("error_message"))
        .col(text_or_empty("request_id"))
        .col(text_or_empty("tags"))
        .to_owned()
}

fn usage_rollups() -> TableCreateStatement {
    Table::create()
        .table("usage_rollups")
        .col(text("organization_id"))
        .col(number("hour_us"))
        .col(text("key_id"))
        .col(text("endpoint"))
        .col(text("outcome"))
        .col(count("verifications"))
        .col(count("requests_reported"))
        .col(count("errors"))
        .col(count("response_time_sum_us"))
        .col(text_or_empty("response_time_histogram"))
        .col(count("tokens"))
        .col(count("cost_micro_usd"))
        .primary_key(Index::create().col("organization_id").col("hour_us").col("key_id").col("endpoint").col("outcome"))
        .to_owned()
}

fn rate_limit_tracking() -> TableCreateStatement {
    Table::create()
        .table("rate_limit_tracking")
        .col(text("subject_id"))
        .col(text("limit_name"))
        .col(number("window_start_us"))
        .col(number("window_end_us"))
        .col(count("count"))
        .primary_key(Index::create().col("subject_id").col("limit_name").col("window_start_us"))
        .to_owned()
}

fn indexes() -> Vec<IndexCreateStatement> {
    vec![
        index("api_key_usage_by_organization", "api_key_usage", &["organization_id", "time_us"], false),
        index("api_key_usage_by_key", "api_key_usage", &["key_id", "time_us"], false),
        index("api_key_usage_by_time", "api_key_usage", &["time_us"], false),
        index("usage_rollups_by_key", "usage_rollups", &["key_id", "hour_us"], false),
        index("rate_limit_tracking_by_end", "rate_limit_tracking", &["window_end_us"], false),
    ]
}
