//! Usage that was recorded elsewhere, written thousands of rows at a time, and how far an import of it has come.
//! What the sums are is said in `usage.rs`, and nowhere else.
//! Must not be called but in the transaction that moves the import's position. Invariant: whoever has locked the
//! position alone goes on from it, so that no row of the source counts twice.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QuerySelect as _, QueryTrait as _,
    sea_query::Query,
};

use super::{
    StoreError,
    entity::{api_key_usage as event_row, api_key_usage::Column, import as import_row, import::Column as ImportColumn},
    row_arrays::{self, ArrayColumn},
    usage,
};
use crate::domain::{
    ids::{OrganizationId, RecordId},
    usage_report::UsageReport,
};

/// Rows per statement where they go as arrays.
const ROWS_PER_STATEMENT: usize = 2000;

/// The position of an import, which nobody else moves until the transaction ends; `None` where there is no such one.
pub async fn find_position_locked(db: &impl ConnectionTrait, id: RecordId) -> Result<Option<String>, StoreError> {
    let select = import_row::Entity::find()
        .select_only()
        .column(ImportColumn::Position)
        .filter(ImportColumn::Id.eq(id.to_string()))
        .lock_exclusive();
    match db.query_one(select.as_query()).await? {
        Some(found) => Ok(Some(found.try_get("", "position")?)),
        None => Ok(None),
    }
}

/// Writes one row of detail for each report, with the organization of its key.
pub async fn insert_details(
    db: &impl ConnectionTrait,
    reports: &[(RecordId, OrganizationId, UsageReport)],
) -> Result<(), StoreError> {
    if !row_arrays::are_taken(db) {
        return usage::insert_reports(db, reports).await;
    }
    for chunk in reports.chunks(ROWS_PER_STATEMENT) {
        let mut insert = Query::insert();
        insert.into_table(event_row::Entity).columns(COLUMNS);
        let rows = row_arrays::rows_of(as_arrays(chunk));
        insert.select_from(rows).map_err(|error| sea_orm::DbErr::Custom(error.to_string()))?;
        db.execute(&insert).await?;
    }
    Ok(())
}

/// In the order in which `as_arrays` gives them; the others have defaults.
const COLUMNS: [Column; 16] = [
    Column::Id,
    Column::KeyId,
    Column::OrganizationId,
    Column::Endpoint,
    Column::Method,
    Column::Outcome,
    Column::ClientAddress,
    Column::UserAgent,
    Column::ErrorCode,
    Column::ErrorMessage,
    Column::RequestId,
    Column::TimeUs,
    Column::StatusCode,
    Column::ResponseTimeUs,
    Column::Tokens,
    Column::CostMicroUsd,
];
/// How many of the columns are text: they come first.
const TEXTS: usize = 11;
const NUMBERS: usize = COLUMNS.len() - TEXTS;

fn as_arrays(reports: &[(RecordId, OrganizationId, UsageReport)]) -> Vec<ArrayColumn> {
    let mut texts: [ArrayColumn; TEXTS] = std::array::from_fn(|_| ArrayColumn::texts());
    let mut numbers: [ArrayColumn; NUMBERS] = std::array::from_fn(|_| ArrayColumn::numbers());
    for (id, organization, report) in reports {
        let (id, key, organization) = (id.to_string(), report.key_id.to_string(), organization.to_string());
        let text: [&str; TEXTS] = [
            &id,
            &key,
            &organization,
            &report.endpoint,
            &report.method,
            usage::REPORTED,
            &report.client_address,
            &report.user_agent,
            &report.error_code,
            &report.error_message,
            &report.request_id,
        ];
        let response_time = report.response_time.map(|time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX));
        let number: [Option<i64>; NUMBERS] = [
            Some(report.time.micros()),
            Some(report.status_code.into()),
            response_time,
            Some(report.tokens),
            Some(report.cost_micro_usd),
        ];
        texts.iter_mut().zip(text).for_each(|(column, value)| column.push_text(value));
        numbers.iter_mut().zip(number).for_each(|(column, value)| column.push_number(value));
    }
    texts.into_iter().chain(numbers).collect()
}
