//! Usage summed further than by key and hour, so that statistics cost the same however much was recorded:
//! `usage_totals` by organization and hour, day or month; `usage_consumers` by key and day or month; `usage_errors`
//! and `usage_response_times` by organization or key and hour, day or month. `usage_reports` names the reports that
//! have been counted. What `usage_rollups` holds already is summed here once; its column `response_time_histogram`
//! stays empty, and stays, since an older server still writes it.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{count, index, number, text, text_or_empty};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [usage_totals(), usage_consumers(), usage_errors(), usage_response_times(), usage_reports()] {
            manager.create_table(table).await?;
        }
        manager.create_index(index("usage_reports_by_time", "usage_reports", &["time_us"], false)).await?;
        let month = match manager.get_database_backend() {
            DbBackend::Postgres => POSTGRES_MONTH,
            _ => SQLITE_MONTH,
        };
        for (granularity, start) in [("HOUR", HOUR), ("DAY", DAY), ("MONTH", month)] {
            let totals = fill("usage_totals", "endpoint", granularity, start);
            manager.get_connection().execute_unprepared(&totals).await?;
            if granularity != "HOUR" {
                let consumers = fill("usage_consumers", "key_id", granularity, start);
                manager.get_connection().execute_unprepared(&consumers).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["usage_reports", "usage_response_times", "usage_errors", "usage_consumers", "usage_totals"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// Starts of hour, day and month (UTC) of a row of `usage_rollups`, in microseconds.
const HOUR: &str = "hour_us";
const DAY: &str = "hour_us - hour_us % 86400000000";
const SQLITE_MONTH: &str =
    "CAST(strftime('%s', hour_us / 1000000, 'unixepoch', 'start of month') AS INTEGER) * 1000000";
const POSTGRES_MONTH: &str = "CAST(extract(epoch FROM date_trunc('month', to_timestamp(hour_us / 1000000) AT TIME ZONE 'UTC')) AS bigint) \
     * 1000000";

/// The columns that both the hourly rows and the new ones have.
const SUMS: [&str; 6] =
    ["verifications", "requests_reported", "errors", "response_time_sum_us", "tokens", "cost_micro_usd"];

/// The sum of a column, at most the largest 64-bit number: halves are summed apart, since SQLite fails where a sum
/// overflows, and PostgreSQL where it is cast back.
fn sum(column: &str) -> String {
    let (high, low) = (format!("sum({column} / 2147483648)"), format!("sum({column} % 2147483648)"));
    format!(
        "CAST(CASE WHEN {high} + {low} / 2147483648 >= 4294967295 THEN 9223372036854775807
              ELSE {high} * 2147483648 + {low} END AS bigint)"
    )
}

fn fill(table: &str, by: &str, granularity: &str, start: &str) -> String {
    let (columns, sums) = (SUMS.join(", "), SUMS.map(sum).join(", "));
    format!(
        "INSERT INTO {table} (organization_id, granularity, start_us, {by}, outcome, {columns})
         SELECT organization_id, '{granularity}', {start}, {by}, outcome, {sums}
         FROM usage_rollups WHERE organization_id <> '' GROUP BY organization_id, {start}, {by}, outcome"
    )
}

/// `granularity` is `HOUR`, `DAY` or `MONTH`. `outcome` is empty in rows of what was reported.
fn usage_totals() -> TableCreateStatement {
    Table::create()
        .table("usage_totals")
        .col(text("organization_id"))
        .col(text("granularity"))
        .col(number("start_us"))
        .col(text("endpoint"))
        .col(text("outcome"))
        .col(count("verifications"))
        .col(count("requests_reported"))
        .col(count("errors"))
        .col(count("response_time_sum_us"))
        .col(count("tokens"))
        .col(count("cost_micro_usd"))
        .primary_key(
            Index::create().col("organization_id").col("granularity").col("start_us").col("endpoint").col("outcome"),
        )
        .to_owned()
}

/// `granularity` is `DAY` or `MONTH`; by the hour stands in `usage_rollups`.
fn usage_consumers() -> TableCreateStatement {
    Table::create()
        .table("usage_consumers")
        .col(text("organization_id"))
        .col(text("granularity"))
        .col(number("start_us"))
        .col(text("key_id"))
        .col(text("outcome"))
        .col(count("verifications"))
        .col(count("requests_reported"))
        .col(count("errors"))
        .col(count("response_time_sum_us"))
        .col(count("tokens"))
        .col(count("cost_micro_usd"))
        .primary_key(
            Index::create().col("organization_id").col("granularity").col("start_us").col("key_id").col("outcome"),
        )
        .to_owned()
}

/// `subject_id` is an organization's or a key's: ids are unique among both.
fn usage_errors() -> TableCreateStatement {
    Table::create()
        .table("usage_errors")
        .col(text("subject_id"))
        .col(text("granularity"))
        .col(number("start_us"))
        .col(text_or_empty("error_code"))
        .col(count("count"))
        .primary_key(Index::create().col("subject_id").col("granularity").col("start_us").col("error_code"))
        .to_owned()
}

/// A sparse histogram: a row per bucket that was met. `bucket` numbers widths that grow by a constant factor.
fn usage_response_times() -> TableCreateStatement {
    Table::create()
        .table("usage_response_times")
        .col(text("subject_id"))
        .col(text("granularity"))
        .col(number("start_us"))
        .col(text("endpoint"))
        .col(number("bucket"))
        .col(count("count"))
        .primary_key(Index::create().col("subject_id").col("granularity").col("start_us").col("endpoint").col("bucket"))
        .to_owned()
}

/// One row per counted report, for as long as a repeat of it may come.
fn usage_reports() -> TableCreateStatement {
    Table::create()
        .table("usage_reports")
        .col(text("key_id"))
        .col(text("request_id"))
        .col(number("time_us"))
        .primary_key(Index::create().col("key_id").col("request_id"))
        .to_owned()
}
