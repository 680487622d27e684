//! Queries over `api_key_usage` and `usage_rollups`: writing what was recorded, and summing it.
//! Sums come from rollups alone, but for error codes; what was asked for is grouped by the database, so that an
//! answer costs memory for its buckets and not for its events.

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QueryResult,
    QuerySelect as _, QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _, OnConflict, Order, SimpleExpr},
};

use super::{
    StoreError, entity::api_key_usage as event_row, entity::api_key_usage::Column as EventColumn,
    entity::usage_rollup as row, entity::usage_rollup::Column, rows,
};
use crate::domain::{
    ids::{KeyId, OrganizationId, RecordId},
    outcome::Outcome,
    time::Timestamp,
    usage::{UsageEvent, UsageSubject, UsageTotals},
};

/// Rows per statement, far below SQLite's bound of 32,766 parameters.
const ROWS_PER_STATEMENT: usize = 500;
/// Rows of detail per statement, a power of two: 18 parameters each, below the same bound.
const EVENTS_PER_STATEMENT: usize = 512;

/// Verifications of one key, hour, endpoint and outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RollupKey {
    /// `None` for secrets that belong to no key.
    pub key: Option<(KeyId, OrganizationId)>,
    pub hour: Timestamp,
    pub endpoint: String,
    pub outcome: Outcome,
}

impl RollupKey {
    /// The order of the table's primary key.
    #[must_use]
    pub fn order(&self) -> (Option<OrganizationId>, Timestamp, Option<KeyId>, &str, &'static str) {
        let (key, organization) = self.key.unzip();
        (organization, self.hour, key, &self.endpoint, self.outcome.as_str())
    }
}

/// Sums of one hour, split by outcome.
#[derive(Debug, Clone)]
pub struct HourSum {
    pub hour: Timestamp,
    pub outcome: Outcome,
    pub totals: UsageTotals,
}

/// Writes one row per event, with its weight: how many events it stands for.
pub async fn insert_events(
    db: &impl ConnectionTrait,
    events: &[(RecordId, UsageEvent, i64)],
) -> Result<(), StoreError> {
    let mut rest = events;
    while !rest.is_empty() {
        // Powers of two, so that a connection prepares ten statements and not one for every number of rows.
        let size = EVENTS_PER_STATEMENT.min(1 << rest.len().ilog2());
        let (chunk, after) = rest.split_at(size);
        let models = chunk.iter().map(|(id, event, weight)| event_model(*id, event, *weight));
        event_row::Entity::insert_many(models).exec_without_returning(db).await?;
        rest = after;
    }
    Ok(())
}

fn event_model(id: RecordId, event: &UsageEvent, weight: i64) -> event_row::ActiveModel {
    let tags = if event.tags.is_empty() { String::new() } else { rows::encode_json(&event.tags) };
    event_row::ActiveModel {
        id: Set(id.to_string()),
        key_id: Set(event.key.map_or_else(String::new, |(key, _)| key.to_string())),
        organization_id: Set(event.key.map_or_else(String::new, |(_, organization)| organization.to_string())),
        time_us: Set(event.time.micros()),
        endpoint: Set(event.endpoint.clone()),
        method: Set(event.method.clone()),
        status_code: Set(None),
        outcome: Set(event.outcome.as_str().to_owned()),
        response_time_us: Set(None),
        tokens: Set(0),
        cost_micro_usd: Set(0),
        client_address: Set(event.client_address.clone()),
        user_agent: Set(event.user_agent.clone()),
        error_code: Set(String::new()),
        error_message: Set(String::new()),
        request_id: Set(event.request_id.clone()),
        tags: Set(tags),
        weight: Set(weight),
    }
}

/// Adds verifications to the rollups.
pub async fn add_rollups(db: &impl ConnectionTrait, rollups: &[(RollupKey, i64)]) -> Result<(), StoreError> {
    for chunk in rollups.chunks(ROWS_PER_STATEMENT) {
        let models = chunk.iter().map(|(rollup, verifications)| row::ActiveModel {
            organization_id: Set(rollup.key.map_or_else(String::new, |(_, organization)| organization.to_string())),
            hour_us: Set(rollup.hour.micros()),
            key_id: Set(rollup.key.map_or_else(String::new, |(key, _)| key.to_string())),
            endpoint: Set(rollup.endpoint.clone()),
            outcome: Set(rollup.outcome.as_str().to_owned()),
            verifications: Set(*verifications),
            requests_reported: Set(0),
            errors: Set(0),
            response_time_sum_us: Set(0),
            response_time_histogram: Set(String::new()),
            tokens: Set(0),
            cost_micro_usd: Set(0),
        });
        let identity = [Column::OrganizationId, Column::HourUs, Column::KeyId, Column::Endpoint, Column::Outcome];
        let sum = Expr::col((row::Entity, Column::Verifications)).add(Expr::col(("excluded", "verifications")));
        row::Entity::insert_many(models)
            .on_conflict(OnConflict::columns(identity).value(Column::Verifications, sum).to_owned())
            .exec_without_returning(db)
            .await?;
    }
    Ok(())
}

/// What is summed, of `[start, end)` in whole hours.
fn of(subject: UsageSubject, start: Timestamp, end: Timestamp) -> Condition {
    let span = Condition::all().add(Column::HourUs.gte(start.micros())).add(Column::HourUs.lt(end.micros()));
    match subject {
        UsageSubject::Organization(id) => span.add(Column::OrganizationId.eq(id.to_string())),
        UsageSubject::Key(id) => span.add(Column::KeyId.eq(id.to_string())),
    }
}

fn sums(subject: UsageSubject, start: Timestamp, end: Timestamp) -> Select<row::Entity> {
    let valid = Expr::case(Expr::col(Column::Outcome).eq(Outcome::Valid.as_str()), Expr::col(Column::Verifications));
    row::Entity::find()
        .select_only()
        .expr_as(sum(Expr::col(Column::Verifications)), "verifications")
        .expr_as(sum(valid.finally(0).into()), "valid")
        .expr_as(sum(Expr::col(Column::RequestsReported)), "requests_reported")
        .expr_as(sum(Expr::col(Column::Errors)), "errors")
        .expr_as(sum(Expr::col(Column::ResponseTimeSumUs)), "response_time_sum_us")
        .expr_as(sum(Expr::col(Column::Tokens)), "tokens")
        .expr_as(sum(Expr::col(Column::CostMicroUsd)), "cost_micro_usd")
        .filter(of(subject, start, end))
}

/// PostgreSQL sums 64-bit numbers to a numeric; the cast keeps both engines at 64 bits.
fn sum(of: SimpleExpr) -> SimpleExpr {
    of.sum().cast_as("bigint")
}

fn totals(row: &QueryResult) -> Result<UsageTotals, StoreError> {
    let number = |name: &str| row.try_get::<Option<i64>>("", name).map(|value| value.unwrap_or(0));
    let response_time = u64::try_from(number("response_time_sum_us")?).unwrap_or(0);
    Ok(UsageTotals {
        verifications: number("verifications")?,
        valid: number("valid")?,
        requests_reported: number("requests_reported")?,
        errors: number("errors")?,
        response_time_sum: std::time::Duration::from_micros(response_time),
        tokens: number("tokens")?,
        cost_micro_usd: number("cost_micro_usd")?,
    })
}

/// Sums for each hour and outcome, oldest first.
pub async fn list_hours(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    start: Timestamp,
    end: Timestamp,
) -> Result<Vec<HourSum>, StoreError> {
    let select = sums(subject, start, end)
        .column(Column::HourUs)
        .column(Column::Outcome)
        .group_by(Column::HourUs)
        .group_by(Column::Outcome)
        .order_by_asc(Column::HourUs);
    let mut hours = Vec::new();
    for found in db.query_all(select.as_query()).await? {
        let word: String = found.try_get("", "outcome")?;
        let Some(outcome) = Outcome::from_stored(&word) else {
            return Err(StoreError::Corrupt("usage_rollups, column outcome".to_owned()));
        };
        let hour = Timestamp::from_micros(found.try_get("", "hour_us")?);
        hours.push(HourSum { hour, outcome, totals: totals(&found)? });
    }
    Ok(hours)
}

/// The most used endpoints, most used first. Verifications without one are not listed.
pub async fn list_endpoints(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    start: Timestamp,
    end: Timestamp,
    top: u64,
) -> Result<Vec<(String, UsageTotals)>, StoreError> {
    let select = sums(subject, start, end).filter(Column::Endpoint.ne(""));
    list_top(db, select, Column::Endpoint, "endpoint", top).await
}

/// The most used keys, by id, most used first.
pub async fn list_consumers(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    start: Timestamp,
    end: Timestamp,
    top: u64,
) -> Result<Vec<(String, UsageTotals)>, StoreError> {
    list_top(db, sums(subject, start, end), Column::KeyId, "key_id", top).await
}

async fn list_top(
    db: &impl ConnectionTrait,
    select: Select<row::Entity>,
    by: Column,
    name: &str,
    top: u64,
) -> Result<Vec<(String, UsageTotals)>, StoreError> {
    let used = sum(Expr::col(Column::Verifications)).add(sum(Expr::col(Column::RequestsReported)));
    let select = select.column(by).group_by(by).order_by(used, Order::Desc).order_by_asc(by).limit(top);
    let found = db.query_all(select.as_query()).await?;
    found.iter().map(|row| Ok((row.try_get("", name)?, totals(row)?))).collect()
}

/// The most frequent error codes, most frequent first.
pub async fn list_errors(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    start: Timestamp,
    end: Timestamp,
    top: u64,
) -> Result<Vec<(String, i64)>, StoreError> {
    let of_subject = match subject {
        UsageSubject::Organization(id) => EventColumn::OrganizationId.eq(id.to_string()),
        UsageSubject::Key(id) => EventColumn::KeyId.eq(id.to_string()),
    };
    let select = event_row::Entity::find()
        .select_only()
        .column(EventColumn::ErrorCode)
        .column_as(EventColumn::Id.count(), "errors")
        .filter(of_subject)
        .filter(EventColumn::TimeUs.gte(start.micros()))
        .filter(EventColumn::TimeUs.lt(end.micros()))
        .filter(EventColumn::ErrorCode.ne(""))
        .group_by(EventColumn::ErrorCode)
        .order_by(EventColumn::Id.count(), Order::Desc)
        .order_by_asc(EventColumn::ErrorCode)
        .limit(top);
    let found = db.query_all(select.as_query()).await?;
    found.iter().map(|row| Ok((row.try_get("", "error_code")?, row.try_get("", "errors")?))).collect()
}

/// Deletes all usage of an organization.
pub async fn delete_of_organization(db: &impl ConnectionTrait, id: OrganizationId) -> Result<(), StoreError> {
    row::Entity::delete_many().filter(Column::OrganizationId.eq(id.to_string())).exec(db).await?;
    event_row::Entity::delete_many().filter(EventColumn::OrganizationId.eq(id.to_string())).exec(db).await?;
    Ok(())
}
