//! Writing usage: rows of detail into `api_key_usage`, and counts into every table of sums at once.
//!
//! Sums are kept per key and hour (`usage_rollups`), per organization and hour, day and month (`usage_totals`), per
//! key and day and month (`usage_consumers`), and what only reports have per organization and key and hour, day and
//! month (`usage_errors`, `usage_response_times`); `usage_sums.rs` reads them.
//! Invariant: all of them say the same, so they are written in one transaction, tables and rows in one order for all
//! writers, so that two of them never wait for each other in a circle. Call one `add_` once per transaction.

use std::time::Duration;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QuerySelect as _, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, SimpleExpr},
};

use super::{
    StoreError,
    entity::{
        api_key_usage as event_row, usage_consumer as consumer, usage_error as error, usage_report as report,
        usage_response_time as response_time, usage_rollup as rollup, usage_total as total,
    },
    rows,
    rows::in_powers_of_two,
    usage_added::{AddedRows, Cell},
};
use crate::domain::{
    ids::{KeyId, OrganizationId, RecordId},
    outcome::Outcome,
    response_times,
    time::Timestamp,
    usage::UsageEvent,
    usage_report::UsageReport,
    usage_span::Granularity,
};

/// Rows per statement, far below SQLite's bound of 32,766 parameters.
const ROWS_PER_STATEMENT: usize = 500;
/// Rows of detail per statement, a power of two: 18 parameters each, below the same bound.
const EVENTS_PER_STATEMENT: usize = 512;
/// The outcome of rows of what was reported, which no verification has.
pub(super) const REPORTED: &str = "";

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

/// Writes one row per event, with its weight: how many events it stands for.
pub async fn insert_events(
    db: &impl ConnectionTrait,
    events: &[(RecordId, UsageEvent, i64)],
) -> Result<(), StoreError> {
    for chunk in in_powers_of_two(events, EVENTS_PER_STATEMENT) {
        let models = chunk.iter().map(|(id, event, weight)| event_model(*id, event, *weight));
        event_row::Entity::insert_many(models).exec_without_returning(db).await?;
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
        outcome: Set(event.outcome.as_str().to_owned()),
        client_address: Set(event.client_address.clone()),
        user_agent: Set(event.user_agent.clone()),
        request_id: Set(event.request_id.clone()),
        tags: Set(tags),
        weight: Set(weight),
        ..Default::default()
    }
}

/// Writes one row per report, with the organization of its key.
pub async fn insert_reports(
    db: &impl ConnectionTrait,
    reports: &[(RecordId, OrganizationId, UsageReport)],
) -> Result<(), StoreError> {
    for chunk in reports.chunks(ROWS_PER_STATEMENT) {
        let models = chunk.iter().map(|(id, organization, report)| report_model(*id, *organization, report));
        event_row::Entity::insert_many(models).exec_without_returning(db).await?;
    }
    Ok(())
}

fn report_model(id: RecordId, organization: OrganizationId, report: &UsageReport) -> event_row::ActiveModel {
    event_row::ActiveModel {
        id: Set(id.to_string()),
        key_id: Set(report.key_id.to_string()),
        organization_id: Set(organization.to_string()),
        time_us: Set(report.time.micros()),
        endpoint: Set(report.endpoint.clone()),
        method: Set(report.method.clone()),
        status_code: Set(Some(report.status_code.into())),
        outcome: Set(REPORTED.to_owned()),
        response_time_us: Set(report.response_time.map(micros)),
        tokens: Set(report.tokens),
        cost_micro_usd: Set(report.cost_micro_usd),
        client_address: Set(report.client_address.clone()),
        user_agent: Set(report.user_agent.clone()),
        error_code: Set(report.error_code.clone()),
        error_message: Set(report.error_message.clone()),
        request_id: Set(report.request_id.clone()),
        ..Default::default()
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Adds verifications to the sums, in any order.
pub async fn add_rollups(db: &impl ConnectionTrait, rollups: &[(RollupKey, i64)]) -> Result<(), StoreError> {
    let mut sums = Sums::default();
    for (rollup, verifications) in rollups {
        sums.add(rollup.key, rollup.hour, &rollup.endpoint, rollup.outcome.as_str(), [*verifications]);
    }
    sums.write(db, ["verifications"]).await
}

/// Adds reports, each with the organization of its key, to the sums, in any order.
pub async fn add_reports(
    db: &impl ConnectionTrait,
    reports: &[(RecordId, OrganizationId, UsageReport)],
) -> Result<(), StoreError> {
    let (mut sums, mut errors, mut times) = (Sums::default(), AddedRows::default(), AddedRows::default());
    for (_, organization, report) in reports {
        let response_time = report.response_time.map_or(0, micros);
        let amounts = [1, report.is_error().into(), response_time, report.tokens, report.cost_micro_usd];
        sums.add(Some((report.key_id, *organization)), report.time, &report.endpoint, REPORTED, amounts);
        for subject in [organization.to_string(), report.key_id.to_string()] {
            for granularity in Granularity::ALL.iter().copied() {
                let start = granularity.bucket_of(report.time);
                let of = |rest: &[Cell]| [&row_of(&subject, granularity, start), rest].concat();
                if report.is_error() {
                    errors.add(of(&[report.error_code.as_str().into()]), [1]);
                }
                if let Some(time) = report.response_time {
                    let bucket = response_times::bucket_of(time);
                    times.add(of(&[report.endpoint.as_str().into(), Cell::Number(bucket)]), [1]);
                }
            }
        }
    }
    sums.write(db, ["requests_reported", "errors", "response_time_sum_us", "tokens", "cost_micro_usd"]).await?;
    errors.write(db, error::Entity, &["subject_id", "granularity", "start_us", "error_code"], ["count"]).await?;
    let identity = ["subject_id", "granularity", "start_us", "endpoint", "bucket"];
    times.write(db, response_time::Entity, &identity, ["count"]).await
}

/// How the identity of a row of any sums but the hourly ones begins.
fn row_of(subject: &str, granularity: Granularity, start: Timestamp) -> [Cell; 3] {
    [subject.into(), granularity.as_str().into(), Cell::Number(start.micros())]
}

/// What is added to the three tables of sums that verifications and reports share.
#[derive(Default)]
struct Sums<const N: usize> {
    hours: AddedRows<N>,
    totals: AddedRows<N>,
    consumers: AddedRows<N>,
}

impl<const N: usize> Sums<N> {
    fn add(
        &mut self,
        key: Option<(KeyId, OrganizationId)>,
        time: Timestamp,
        endpoint: &str,
        outcome: &str,
        amounts: [i64; N],
    ) {
        let (key_id, organization) = key.map_or_else(Default::default, |(key, of)| (key.to_string(), of.to_string()));
        let hour = Cell::Number(time.start_of_hour().micros());
        let (by_key, by_endpoint) = (Cell::from(key_id.as_str()), Cell::from(endpoint));
        let outcome = Cell::from(outcome);
        let identity = [Cell::from(organization.as_str()), hour, by_key.clone(), by_endpoint.clone(), outcome.clone()];
        self.hours.add(identity.to_vec(), amounts);
        // Secrets that belong to no key belong to no organization: nobody asks for their sums by day.
        if key.is_none() {
            return;
        }
        for granularity in Granularity::ALL.iter().copied() {
            let row = row_of(&organization, granularity, granularity.bucket_of(time));
            self.totals.add([&row[..], &[by_endpoint.clone(), outcome.clone()]].concat(), amounts);
            if granularity != Granularity::Hour {
                self.consumers.add([&row[..], &[by_key.clone(), outcome.clone()]].concat(), amounts);
            }
        }
    }

    async fn write(self, db: &impl ConnectionTrait, columns: [&'static str; N]) -> Result<(), StoreError> {
        let identity = ["organization_id", "hour_us", "key_id", "endpoint", "outcome"];
        self.hours.write(db, rollup::Entity, &identity, columns).await?;
        let identity = ["organization_id", "granularity", "start_us", "endpoint", "outcome"];
        self.totals.write(db, total::Entity, &identity, columns).await?;
        let identity = ["organization_id", "granularity", "start_us", "key_id", "outcome"];
        self.consumers.write(db, consumer::Entity, &identity, columns).await
    }
}

/// Deletes all usage of an organization. Sums by key go last: they tell which keys there were, of whom errors, response
/// times and counted reports know the key alone.
pub async fn delete_of_organization(db: &impl ConnectionTrait, id: OrganizationId) -> Result<(), StoreError> {
    let id = id.to_string();
    let keys = consumer::Entity::find()
        .select_only()
        .column(consumer::Column::KeyId)
        .filter(consumer::Column::OrganizationId.eq(&id))
        .into_query();
    let of_subject = |subject: SimpleExpr| subject.clone().eq(&id).or(subject.in_subquery(keys.clone()));
    report::Entity::delete_many().filter(report::Column::KeyId.in_subquery(keys.clone())).exec(db).await?;
    event_row::Entity::delete_many().filter(event_row::Column::OrganizationId.eq(&id)).exec(db).await?;
    rollup::Entity::delete_many().filter(rollup::Column::OrganizationId.eq(&id)).exec(db).await?;
    total::Entity::delete_many().filter(total::Column::OrganizationId.eq(&id)).exec(db).await?;
    error::Entity::delete_many().filter(of_subject(Expr::col(error::Column::SubjectId))).exec(db).await?;
    let of_times = of_subject(Expr::col(response_time::Column::SubjectId));
    response_time::Entity::delete_many().filter(of_times).exec(db).await?;
    consumer::Entity::delete_many().filter(consumer::Column::OrganizationId.eq(&id)).exec(db).await?;
    Ok(())
}
