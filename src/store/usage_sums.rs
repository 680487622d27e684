//! Summing usage: what a statistic says, read from the fewest rows that hold it.
//! A span is covered by months, days and hours (`domain::usage_span`); each piece is one range of one index, and the
//! pieces are read as one table. What was asked for is grouped by the database, so that an answer costs memory for
//! its buckets, and time for its rows of sums: neither depends on how much was recorded.

use sea_orm::{
    ConnectionTrait, EntityTrait, QueryResult,
    sea_query::{Expr, ExprTrait as _, Order, Query, SelectStatement, SimpleExpr, UnionType},
};

use super::{
    StoreError,
    entity::{
        usage_consumer as consumer, usage_error as error, usage_response_time as response_time, usage_rollup as rollup,
        usage_total as total,
    },
    usage::REPORTED,
};
use crate::domain::{
    outcome::Outcome,
    time::Timestamp,
    usage::{UsageSubject, UsageTotals},
    usage_span::{Granularity, Piece, UsageSpan},
};

/// The columns of sums that all tables of usage have.
const SUMS: [&str; 6] =
    ["verifications", "requests_reported", "errors", "response_time_sum_us", "tokens", "cost_micro_usd"];
/// Sums are split at this power of two; see [`sum`].
const HALF: i64 = 1 << 31;

/// Sums of one row's hour, day or month, split by outcome.
#[derive(Debug, Clone)]
pub struct PointSum {
    pub start: Timestamp,
    /// `None`: of what was reported.
    pub outcome: Option<Outcome>,
    pub totals: UsageTotals,
}

/// How often one bucket of response times was met, by something: a moment, an endpoint, a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketSum<T> {
    pub of: T,
    pub bucket: i64,
    pub count: i64,
}

/// Sums for each row's start and outcome, oldest first. No row is of a bucket wider than `granularity`.
pub async fn list_points(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    span: &UsageSpan,
    granularity: Granularity,
) -> Result<Vec<PointSum>, StoreError> {
    let Some(rows) = rows_by_endpoint(subject, span, granularity) else {
        return Ok(Vec::new());
    };
    let mut select = summed(rows);
    select.columns(["start_us", "outcome"]).group_by_columns(["start_us", "outcome"]);
    select.order_by("start_us", Order::Asc);
    let mut points = Vec::new();
    for found in db.query_all(&select).await? {
        let word: String = found.try_get("", "outcome")?;
        let outcome = Outcome::from_stored(&word);
        if outcome.is_none() && word != REPORTED {
            return Err(StoreError::Corrupt("usage, column outcome".to_owned()));
        }
        let start = Timestamp::from_micros(found.try_get("", "start_us")?);
        points.push(PointSum { start, outcome, totals: totals(&found)? });
    }
    Ok(points)
}

/// The most used endpoints, most used first. Usage without one is not listed.
pub async fn list_endpoints(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    span: &UsageSpan,
    top: u64,
) -> Result<Vec<(String, UsageTotals)>, StoreError> {
    list_top(db, rows_by_endpoint(subject, span, Granularity::Month), "endpoint", top).await
}

/// The most used keys, by id, most used first.
pub async fn list_consumers(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    span: &UsageSpan,
    top: u64,
) -> Result<Vec<(String, UsageTotals)>, StoreError> {
    let rows = match subject {
        UsageSubject::Organization(id) => each_piece(span, Granularity::Month, |piece| match piece.granularity {
            Granularity::Hour => hourly("organization_id", id.to_string(), piece.start, piece.end, "key_id"),
            Granularity::Day | Granularity::Month => {
                let mut select = of_piece(consumer::Entity, "organization_id", &[&id.to_string()], piece);
                select.columns(SUMS).columns(["outcome", "key_id"]);
                select
            }
        }),
        UsageSubject::Key(id) => Some(hourly("key_id", id.to_string(), span.start, span.end, "key_id")),
    };
    list_top(db, rows, "key_id", top).await
}

async fn list_top(
    db: &impl ConnectionTrait,
    rows: Option<SelectStatement>,
    by: &'static str,
    top: u64,
) -> Result<Vec<(String, UsageTotals)>, StoreError> {
    let Some(rows) = rows else {
        return Ok(Vec::new());
    };
    let used = Expr::col("verifications").add(Expr::col("requests_reported")).sum();
    let mut select = summed(rows);
    select.column(by).and_where(Expr::col(by).ne("")).group_by_col(by);
    select.order_by_expr(used, Order::Desc).order_by(by, Order::Asc).limit(top);
    let found = db.query_all(&select).await?;
    found.iter().map(|row| Ok((row.try_get("", by)?, totals(row)?))).collect()
}

/// The most frequent error codes, most frequent first; empty for errors without one.
pub async fn list_errors(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    span: &UsageSpan,
    top: u64,
) -> Result<Vec<(String, i64)>, StoreError> {
    let counted = each_piece(span, Granularity::Month, |piece| {
        let mut select = of_piece(error::Entity, "subject_id", &[&subject_id(subject)], piece);
        select.columns(["error_code", "count"]);
        select
    });
    let Some(rows) = counted else {
        return Ok(Vec::new());
    };
    let mut select = of_rows(rows);
    select.column("error_code").expr_as(sum(Expr::col("count")), "errors").group_by_col("error_code");
    select.order_by_expr(Expr::col("count").sum(), Order::Desc).order_by("error_code", Order::Asc).limit(top);
    let found = db.query_all(&select).await?;
    found.iter().map(|row| Ok((row.try_get("", "error_code")?, row.try_get("", "errors")?))).collect()
}

/// Response times by each row's start. No row is of a bucket wider than `granularity`.
pub async fn list_point_times(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    span: &UsageSpan,
    granularity: Granularity,
) -> Result<Vec<BucketSum<Timestamp>>, StoreError> {
    let rows = times(&[&subject_id(subject)], span, granularity, "start_us", |_| {});
    let found = list_times(db, rows, "start_us").await?;
    Ok(found
        .into_iter()
        .map(|BucketSum { of, bucket, count }| BucketSum { of: Timestamp::from_micros(of), bucket, count })
        .collect())
}

/// Response times of each of these endpoints.
pub async fn list_endpoint_times(
    db: &impl ConnectionTrait,
    subject: UsageSubject,
    span: &UsageSpan,
    endpoints: &[&str],
) -> Result<Vec<BucketSum<String>>, StoreError> {
    if endpoints.is_empty() {
        return Ok(Vec::new());
    }
    let rows = times(&[&subject_id(subject)], span, Granularity::Month, "endpoint", |select| {
        select.and_where(Expr::col("endpoint").is_in(endpoints.iter().copied()));
    });
    list_times(db, rows, "endpoint").await
}

/// Response times of each of these keys, by id.
pub async fn list_key_times(
    db: &impl ConnectionTrait,
    span: &UsageSpan,
    keys: &[&str],
) -> Result<Vec<BucketSum<String>>, StoreError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    list_times(db, times(keys, span, Granularity::Month, "subject_id", |_| {}), "subject_id").await
}

async fn list_times<T: sea_orm::TryGetable>(
    db: &impl ConnectionTrait,
    rows: Option<SelectStatement>,
    by: &'static str,
) -> Result<Vec<BucketSum<T>>, StoreError> {
    let Some(rows) = rows else {
        return Ok(Vec::new());
    };
    let mut select = of_rows(rows);
    select.columns([by, "bucket"]).expr_as(sum(Expr::col("count")), "count").group_by_columns([by, "bucket"]);
    let mut sums = Vec::new();
    for found in db.query_all(&select).await? {
        let (of, bucket, count) = (found.try_get("", by)?, found.try_get("", "bucket")?, found.try_get("", "count")?);
        sums.push(BucketSum { of, bucket, count });
    }
    Ok(sums)
}

fn subject_id(subject: UsageSubject) -> String {
    match subject {
        UsageSubject::Organization(id) => id.to_string(),
        UsageSubject::Key(id) => id.to_string(),
    }
}

/// The rows of sums that have an endpoint. Those of a single key are the hourly ones.
fn rows_by_endpoint(subject: UsageSubject, span: &UsageSpan, coarsest: Granularity) -> Option<SelectStatement> {
    match subject {
        UsageSubject::Organization(id) => each_piece(span, coarsest, |piece| {
            let mut select = of_piece(total::Entity, "organization_id", &[&id.to_string()], piece);
            select.columns(SUMS).columns(["outcome", "start_us", "endpoint"]);
            select
        }),
        UsageSubject::Key(id) => {
            let mut select = hourly("key_id", id.to_string(), span.start, span.end, "endpoint");
            select.expr_as(Expr::col("hour_us"), "start_us");
            Some(select)
        }
    }
}

fn times(
    subjects: &[&str],
    span: &UsageSpan,
    coarsest: Granularity,
    by: &'static str,
    narrow: impl Fn(&mut SelectStatement),
) -> Option<SelectStatement> {
    each_piece(span, coarsest, |piece| {
        let mut select = of_piece(response_time::Entity, "subject_id", subjects, piece);
        select.columns(["bucket", "count"]).column(by);
        narrow(&mut select);
        select
    })
}

/// The hourly rows of a key, or of an organization.
fn hourly(owner: &'static str, id: String, start: Timestamp, end: Timestamp, by: &'static str) -> SelectStatement {
    Query::select()
        .from(rollup::Entity)
        .columns(SUMS)
        .columns(["outcome", by])
        .and_where(Expr::col(owner).eq(id))
        .and_where(Expr::col("hour_us").gte(start.micros()))
        .and_where(Expr::col("hour_us").lt(end.micros()))
        .to_owned()
}

/// The rows of one piece, without columns yet: one range of the table's primary key.
fn of_piece<E: EntityTrait>(table: E, owner: &'static str, ids: &[&str], piece: &Piece) -> SelectStatement {
    Query::select()
        .from(table.table_ref())
        .and_where(Expr::col(owner).is_in(ids.iter().copied()))
        .and_where(Expr::col("granularity").eq(piece.granularity.as_str()))
        .and_where(Expr::col("start_us").gte(piece.start.micros()))
        .and_where(Expr::col("start_us").lt(piece.end.micros()))
        .to_owned()
}

fn each_piece(
    span: &UsageSpan,
    coarsest: Granularity,
    rows: impl Fn(&Piece) -> SelectStatement,
) -> Option<SelectStatement> {
    let pieces = span.cover(coarsest);
    let mut selects = pieces.iter().map(rows);
    let mut first = selects.next()?;
    first.unions(selects.map(|select| (UnionType::All, select)));
    Some(first)
}

/// The sums over rows, to be grouped.
fn summed(rows: SelectStatement) -> SelectStatement {
    let valid = Expr::case(Expr::col("outcome").eq(Outcome::Valid.as_str()), Expr::col("verifications")).finally(0);
    let mut select = of_rows(rows);
    select.expr_as(sum(valid.into()), "valid");
    for column in SUMS {
        select.expr_as(sum(Expr::col(column)), column);
    }
    select
}

fn of_rows(rows: SelectStatement) -> SelectStatement {
    Query::select().from_subquery(rows, "rows_of_span").to_owned()
}

/// A sum of numbers that are not negative, at most the largest 64-bit number. The upper and lower halves are summed
/// apart, since SQLite fails where a sum overflows, and PostgreSQL where its wider one is cast back.
fn sum(of: SimpleExpr) -> SimpleExpr {
    let high = of.clone().div(HALF).sum();
    let low = of.modulo(HALF).sum();
    let whole = high.clone().mul(HALF).add(low.clone());
    let overflows = high.add(low.div(HALF)).gte(i64::MAX / HALF);
    Expr::case(overflows, i64::MAX).finally(whole).cast_as("bigint")
}

fn totals(row: &QueryResult) -> Result<UsageTotals, StoreError> {
    let number = |name: &str| row.try_get::<i64>("", name);
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
