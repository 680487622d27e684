//! `UsageStats`: sums of what was recorded, for an organization or a key, from sums kept by the hour,
//! day and month: an answer costs the same however much was recorded.
//! Writes what waits in this process first, so that a caller sees the verifications it has been answered.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{Call, Context, Resource, ServiceError};
use crate::{
    domain::{
        Invalid,
        ids::KeyId,
        outcome::Outcome,
        permission::Reach,
        response_times::ResponseTimes,
        time::{DAY_US, Timestamp},
        usage::{Consumer, Usage, UsageQuestion, UsageStats, UsageSubject, UsageTotals},
        usage_report::REPORT_AHEAD_MAX,
        usage_span::{Granularity, UsageSpan},
    },
    store::{Database, api_keys, organizations, usage_sums, usage_sums::BucketSum},
};

/// The longest span that is answered by the hour, in microseconds.
const HOURLY_SPAN_MAX_US: i64 = 400 * DAY_US;
/// The most buckets of a series.
const BUCKETS_MAX: usize = 10_000;
/// How far the clock of another process that writes usage may be ahead of ours.
const CLOCKS_APART_MAX: Duration = Duration::from_mins(1);

/// Sums usage over a span.
///
/// # Errors
/// `NotFound` for a subject that does not exist for the caller; `InvalidArgument` for a span that is empty, reversed,
/// or too long for its granularity.
pub async fn usage_stats(
    context: &std::sync::Arc<Context>,
    call: &Call,
    question: &UsageQuestion,
) -> Result<UsageStats, ServiceError> {
    let buckets = buckets(question)?;
    check_subject(context, call.caller.reach(), question.subject).await?;
    let writer = context.clone();
    context.run_to_end(async move { Ok(writer.recorder.flush(&writer.store).await?) }).await?;
    let (start, end) = whole_hours(question);
    let nothing_from = context.clock.now().plus(REPORT_AHEAD_MAX + CLOCKS_APART_MAX);
    let span = UsageSpan { start, end, nothing_from };
    let db = context.store.control();
    let mut stats = points(db, question, &span, buckets).await?;
    stats.by_endpoint = by_endpoint(db, question, &span).await?;
    stats.by_error = usage_sums::list_errors(db, question.subject, &span, question.top).await?;
    stats.top_consumers = consumers(db, call.caller.reach(), question, &span).await?;
    Ok(stats)
}

/// Totals, series and outcomes, which are all sums of the same rows.
async fn points(
    db: &impl Database,
    question: &UsageQuestion,
    span: &UsageSpan,
    buckets: Vec<Timestamp>,
) -> Result<UsageStats, ServiceError> {
    let granularity = question.granularity;
    let mut usage = Usage::default();
    let mut series: BTreeMap<Timestamp, Usage> = buckets.into_iter().map(|bucket| (bucket, Usage::default())).collect();
    let mut outcomes: HashMap<Outcome, i64> = HashMap::new();
    for sum in usage_sums::list_points(db, question.subject, span, granularity).await? {
        usage.totals.add(&sum.totals);
        series.entry(granularity.bucket_of(sum.start)).or_default().totals.add(&sum.totals);
        if let Some(outcome) = sum.outcome {
            *outcomes.entry(outcome).or_default() += sum.totals.verifications;
        }
    }
    if usage.totals.requests_reported > 0 {
        for sum in usage_sums::list_point_times(db, question.subject, span, granularity).await? {
            usage.response_times.add(sum.bucket, sum.count);
            series.entry(granularity.bucket_of(sum.of)).or_default().response_times.add(sum.bucket, sum.count);
        }
    }
    let mut by_outcome: Vec<(Outcome, i64)> = outcomes.into_iter().collect();
    // In the order in which outcomes are decided, which is that of the enum.
    by_outcome.sort_by_key(|(outcome, _)| *outcome as u8);
    Ok(UsageStats { usage, series: series.into_iter().collect(), by_outcome, ..UsageStats::default() })
}

async fn by_endpoint(
    db: &impl Database,
    question: &UsageQuestion,
    span: &UsageSpan,
) -> Result<Vec<(String, Usage)>, ServiceError> {
    let sums = usage_sums::list_endpoints(db, question.subject, span, question.top).await?;
    let names: Vec<&str> = reporting(&sums).collect();
    let times = usage_sums::list_endpoint_times(db, question.subject, span, &names).await?;
    Ok(with_times(sums, times))
}

/// Those with reports, which alone have response times.
fn reporting(sums: &[(String, UsageTotals)]) -> impl Iterator<Item = &str> {
    sums.iter().filter(|(_, totals)| totals.requests_reported > 0).map(|(name, _)| name.as_str())
}

/// Puts sums and response times of the same name together.
fn with_times(sums: Vec<(String, UsageTotals)>, times: Vec<BucketSum<String>>) -> Vec<(String, Usage)> {
    let mut by_name: HashMap<String, ResponseTimes> = HashMap::new();
    for sum in times {
        by_name.entry(sum.of).or_default().add(sum.bucket, sum.count);
    }
    sums.into_iter()
        .map(|(name, totals)| {
            let response_times = by_name.remove(&name).unwrap_or_default();
            (name, Usage { totals, response_times })
        })
        .collect()
}

/// The span in whole hours, which is what sums hold.
fn whole_hours(question: &UsageQuestion) -> (Timestamp, Timestamp) {
    (question.start.start_of_hour(), Granularity::Hour.raised(question.end))
}

/// The start of every bucket; the first may begin before the span, which its sums do not.
fn buckets(question: &UsageQuestion) -> Result<Vec<Timestamp>, ServiceError> {
    let refused = |reason: &str| Err(ServiceError::invalid("end_time", Invalid::new(reason)));
    if question.start >= question.end {
        return refused("must be after start_time");
    }
    let (start, end) = whole_hours(question);
    if question.granularity == Granularity::Hour && end.micros() - start.micros() > HOURLY_SPAN_MAX_US {
        return refused("must be at most 400 days after start_time where the granularity is HOUR");
    }
    let mut buckets = vec![question.granularity.bucket_of(start)];
    let mut next = question.granularity.next_bucket(start);
    while next < end {
        if buckets.len() >= BUCKETS_MAX {
            return refused("must be nearer to start_time: the series would have more than 10,000 points");
        }
        buckets.push(next);
        next = question.granularity.next_bucket(next);
    }
    Ok(buckets)
}

async fn check_subject(context: &Context, reach: Reach, subject: UsageSubject) -> Result<(), ServiceError> {
    let db = context.store.control();
    let (exists, resource) = match subject {
        UsageSubject::Organization(id) => {
            (organizations::find_by_id(db, reach, id).await?.is_some(), Resource::organization(id))
        }
        UsageSubject::Key(id) => (api_keys::find(db, reach, id).await?.is_some(), Resource::key(id)),
    };
    if exists { Ok(()) } else { Err(ServiceError::NotFound(resource)) }
}

/// The most used keys, with the names of those that still exist.
async fn consumers(
    db: &impl Database,
    reach: Reach,
    question: &UsageQuestion,
    span: &UsageSpan,
) -> Result<Vec<Consumer>, ServiceError> {
    let sums = usage_sums::list_consumers(db, question.subject, span, question.top).await?;
    let reporting: Vec<&str> = reporting(&sums).collect();
    let times = usage_sums::list_key_times(db, span, &reporting).await?;
    let ids: Vec<KeyId> = sums.iter().filter_map(|(id, _)| KeyId::parse(id).ok()).collect();
    let names: HashMap<KeyId, String> = api_keys::find_names(db, reach, &ids).await?.into_iter().collect();
    Ok(with_times(sums, times)
        .into_iter()
        .filter_map(|(id, usage)| {
            let key_id = KeyId::parse(&id).ok()?;
            Some(Consumer { key_id, name: names.get(&key_id).cloned().unwrap_or_default(), usage })
        })
        .collect())
}
