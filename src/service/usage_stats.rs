//! `UsageStats`: sums of what was recorded, for an organization or a key, from hourly rollups.
//! Writes what waits in this process first, so that a caller sees the verifications it has been answered.

use std::collections::{BTreeMap, HashMap};

use super::{Call, Context, Resource, ServiceError};
use crate::{
    domain::{
        Invalid,
        ids::KeyId,
        outcome::Outcome,
        permission::Reach,
        time::{DAY_US, HOUR_US, Timestamp},
        usage::{Consumer, Granularity, UsageQuestion, UsageStats, UsageSubject, UsageTotals},
    },
    store::{api_keys, organizations, usage},
};

/// The longest span that is answered by the hour, in microseconds.
const HOURLY_SPAN_MAX_US: i64 = 400 * DAY_US;
/// The most buckets of a series.
const BUCKETS_MAX: usize = 10_000;

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
    let db = context.store.control();
    let mut stats = UsageStats::default();
    let mut series: BTreeMap<Timestamp, UsageTotals> =
        buckets.into_iter().map(|bucket| (bucket, UsageTotals::default())).collect();
    let mut outcomes: HashMap<Outcome, i64> = HashMap::new();
    for sum in usage::list_hours(db, question.subject, start, end).await? {
        stats.totals.add(&sum.totals);
        *outcomes.entry(sum.outcome).or_default() += sum.totals.verifications;
        let bucket = question.granularity.bucket_of(sum.hour);
        series.entry(bucket).or_default().add(&sum.totals);
    }
    stats.series = series.into_iter().collect();
    stats.by_outcome = outcomes.into_iter().collect();
    // In the order in which outcomes are decided, which is that of the enum.
    stats.by_outcome.sort_by_key(|(outcome, _)| *outcome as u8);
    stats.by_endpoint = usage::list_endpoints(db, question.subject, start, end, question.top).await?;
    stats.by_error = usage::list_errors(db, question.subject, start, end, question.top).await?;
    stats.top_consumers = consumers(context, call.caller.reach(), question, (start, end)).await?;
    Ok(stats)
}

/// The span in whole hours, which is what rollups hold.
fn whole_hours(question: &UsageQuestion) -> (Timestamp, Timestamp) {
    let end = question.end.micros();
    let over = end % HOUR_US;
    let end = if over == 0 { end } else { end - over + HOUR_US };
    (question.start.start_of_hour(), Timestamp::from_micros(end))
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
    context: &Context,
    reach: Reach,
    question: &UsageQuestion,
    (start, end): (Timestamp, Timestamp),
) -> Result<Vec<Consumer>, ServiceError> {
    let db = context.store.control();
    let sums = usage::list_consumers(db, question.subject, start, end, question.top).await?;
    let ids: Vec<KeyId> = sums.iter().filter_map(|(id, _)| KeyId::parse(id).ok()).collect();
    let names: HashMap<KeyId, String> = api_keys::find_names(db, reach, &ids).await?.into_iter().collect();
    Ok(sums
        .into_iter()
        .filter_map(|(id, totals)| {
            let key_id = KeyId::parse(&id).ok()?;
            Some(Consumer { key_id, name: names.get(&key_id).cloned().unwrap_or_default(), totals })
        })
        .collect())
}
