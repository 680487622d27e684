//! `ReportUsage`: reports are counted where they belong, once each, however often, at once and after whatever they
//! are sent; and `UsageStats` tells what was reported. What is refused is in `usage_report_refused.rs`.

use std::collections::BTreeMap;

use keystead::domain::time::{HOUR_US, Timestamp as Moment};
use keystead::domain::usage_span::Granularity as Width;
use keystead::proto::v1::{
    Granularity, ReportUsageRequest, ReportUsageResponse, UsageRecord, UsageStatsRequest, UsageStatsResponse,
    UsageTotals,
};
use prost_types::{Duration, Timestamp};

use super::usage::{consumers, endpoints, of_key, of_organization};
use super::{Footprint, Keys, World, at_once, from_now, micros, with};
use crate::harness::{TestDatabase, create_organization, store_test};

impl World {
    pub(super) async fn report(&self, records: Vec<UsageRecord>) -> ReportUsageResponse {
        report(self.server.keys(), records).await
    }
}

pub(super) async fn report(mut keys: Keys, records: Vec<UsageRecord>) -> ReportUsageResponse {
    keys.report_usage(ReportUsageRequest { records }).await.expect("an answer").into_inner()
}

/// A report with nothing but what is required.
pub(super) fn record(key_id: &str, request_id: &str) -> UsageRecord {
    UsageRecord { key_id: key_id.to_owned(), request_id: request_id.to_owned(), ..Default::default() }
}

pub(super) fn accepted(accepted: i32, duplicates: i32) -> ReportUsageResponse {
    ReportUsageResponse { accepted, duplicates, rejected: vec![] }
}

/// So many reports of a key over the last 30 days; each has an error, a time, tokens and a cost of its own.
fn reports(key_id: &str, count: i64) -> Vec<UsageRecord> {
    let now = from_now(0).seconds;
    let one = |number: i64| UsageRecord {
        time: Some(Timestamp { seconds: now - number * 7919 % (30 * 86_400 - 60), nanos: 5000 }),
        endpoint: ["/a", "/b", "/a"][usize::try_from(number % 3).expect("small")].to_owned(),
        status_code: if number % 5 == 0 { 503 } else { 200 },
        error_code: if number % 10 == 0 { "TIMEOUT".to_owned() } else { String::new() },
        response_time: (number % 4 != 0).then(|| Duration {
            seconds: 0,
            nanos: i32::try_from(1000 * (number * number * 37 % 900_000 + 1)).expect("less than a second"),
        }),
        tokens: number,
        cost_micro_usd: number * 3,
        ..record(key_id, &format!("request {number}"))
    };
    (0..count).map(one).collect()
}

fn span_micros(span: &Duration) -> i64 {
    span.seconds * 1_000_000 + i64::from(span.nanos / 1000)
}

/// What statistics have to say of these reports, counted one by one. Percentiles are left out.
fn counted<'a>(records: impl Iterator<Item = &'a UsageRecord>) -> UsageTotals {
    let mut totals = UsageTotals::default();
    let (mut sum, mut timed) = (0, 0);
    for record in records {
        totals.requests_reported += 1;
        totals.errors += i64::from(record.status_code == 503);
        totals.tokens += record.tokens;
        totals.cost_micro_usd += record.cost_micro_usd;
        if let Some(time) = &record.response_time {
            (sum, timed) = (sum + span_micros(time), timed + 1);
        }
    }
    totals.response_time_mean = (timed > 0).then(|| Duration {
        seconds: sum / timed / 1_000_000,
        nanos: i32::try_from(sum / timed % 1_000_000 * 1000).expect("in range"),
    });
    totals
}

/// Asserts that totals are those of the reports, percentiles to within 2.5 %.
fn assert_counted(found: &UsageTotals, records: &[&UsageRecord], what: &str) {
    let percentiles = [(50, found.response_time_p50), (95, found.response_time_p95), (99, found.response_time_p99)];
    let rest = UsageTotals { response_time_p50: None, response_time_p95: None, response_time_p99: None, ..*found };
    assert_eq!(rest, counted(records.iter().copied()), "{what}");
    let mut times: Vec<i64> =
        records.iter().filter_map(|record| record.response_time.as_ref()).map(span_micros).collect();
    times.sort_unstable();
    for (percent, found) in percentiles {
        if times.is_empty() {
            assert_eq!(found, None, "{what}");
            continue;
        }
        let exact = times[(times.len() * percent).div_ceil(100) - 1];
        let found = found.unwrap_or_else(|| panic!("{what}: no p{percent}"));
        let off = (span_micros(&found) - exact).abs();
        // A microsecond is what is lost between nanoseconds and the test's own rounding.
        assert!(off * 1000 <= exact * 25 + 1000, "{what}, p{percent}: {found:?} for {exact} µs");
    }
}

fn last_month(world: &World, granularity: Granularity) -> UsageStatsRequest {
    let start_time = Some(from_now(-31 * 86_400));
    UsageStatsRequest { start_time, granularity: granularity.into(), ..of_organization(&world.organization) }
}

fn bucket(record: &UsageRecord, width: Width) -> i64 {
    width.bucket_of(Moment::from_micros(micros(record.time))).micros()
}

store_test!(statistics_are_those_of_what_was_reported_over_hours_days_and_months);
async fn statistics_are_those_of_what_was_reported_over_hours_days_and_months(database: TestDatabase) {
    let world = World::new(&database).await;
    let (busy, _) = world.create(world.new_key()).await;
    let (calm, _) = world.create(with(&world.new_key(), |request| "calm".clone_into(&mut request.name))).await;
    let records = [reports(&busy.id, 900), reports(&calm.id, 40)];
    for records in &records {
        assert_eq!(world.report(records.clone()).await, accepted(i32::try_from(records.len()).expect("few"), 0));
    }
    let all: Vec<&UsageRecord> = records.iter().flatten().collect();
    for (granularity, width) in
        [(Granularity::Hour, Width::Hour), (Granularity::Day, Width::Day), (Granularity::Month, Width::Month)]
    {
        let stats = world.stats(last_month(&world, granularity)).await;
        assert_counted(&stats.totals.expect("totals"), &all, "totals");
        let mut by_bucket: BTreeMap<i64, Vec<&UsageRecord>> = BTreeMap::new();
        for record in &all {
            by_bucket.entry(bucket(record, width)).or_default().push(record);
        }
        for point in &stats.series {
            let own = by_bucket.remove(&micros(point.start_time)).unwrap_or_default();
            assert_counted(&point.totals.expect("totals"), &own, &format!("{granularity:?} {point:?}"));
        }
        assert!(by_bucket.is_empty(), "{granularity:?}: {by_bucket:?}");
        assert_parts(&stats, &all, &[(busy.id.as_str(), &records[0]), (calm.id.as_str(), &records[1])]);
    }
    let of_busy = with(&last_month(&world, Granularity::Day), |request| request.subject = of_key(&busy.id).subject);
    let stats = world.stats(of_busy).await;
    assert_counted(&stats.totals.expect("totals"), &records[0].iter().collect::<Vec<_>>(), "one key");
    assert_parts(&stats, &records[0].iter().collect::<Vec<_>>(), &[(busy.id.as_str(), &records[0])]);
}

fn assert_parts(stats: &UsageStatsResponse, all: &[&UsageRecord], keys: &[(&str, &Vec<UsageRecord>)]) {
    let of = |endpoint: &str| all.iter().copied().filter(|record| record.endpoint == endpoint).collect::<Vec<_>>();
    let found = endpoints(stats);
    assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["/a", "/b"]);
    for (name, totals) in found {
        assert_counted(&totals, &of(name), name);
    }
    let found = consumers(stats);
    assert_eq!(found.len(), keys.len());
    for ((id, _, totals), (key, records)) in found.iter().zip(keys) {
        assert_eq!(id, key);
        assert_counted(totals, &records.iter().collect::<Vec<_>>(), id);
    }
    let with_code = all.iter().filter(|record| !record.error_code.is_empty()).count();
    let without = all.iter().filter(|record| record.error_code.is_empty() && record.status_code == 503).count();
    let mut errors: Vec<(&str, usize)> = vec![("TIMEOUT", with_code), ("", without)];
    errors.sort_by_key(|(code, count)| (std::cmp::Reverse(*count), *code));
    let found: Vec<(&str, usize)> = stats
        .by_error
        .iter()
        .map(|error| (error.error_code.as_str(), usize::try_from(error.count).expect("a count")))
        .collect();
    assert_eq!(found, errors);
    assert!(stats.by_outcome.is_empty(), "reports have no outcome");
}

store_test!(a_report_is_counted_once_in_one_call_in_two_and_after_a_restart);
async fn a_report_is_counted_once_in_one_call_in_two_and_after_a_restart(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let (other, _) = world.create(world.new_key()).await;
    let twice = vec![record(&key.id, "a"), record(&key.id, "b"), with(&record(&key.id, "a"), |copy| copy.tokens = 99)];
    assert_eq!(world.report(twice.clone()).await, accepted(2, 1), "the first of two counts");
    assert_eq!(world.report(twice.clone()).await, accepted(0, 3));
    assert_eq!(world.report(vec![record(&other.id, "a"), record(&key.id, "A")]).await, accepted(2, 0));
    world.server.restart().await;
    assert_eq!(world.report(twice.clone()).await, accepted(0, 3));
    world.server.kill9();
    world.server.restart().await;
    assert_eq!(world.report(twice).await, accepted(0, 3), "an answer means that it is kept");
    let totals = world.stats(of_organization(&world.organization)).await.totals.expect("totals");
    assert_eq!((totals.requests_reported, totals.tokens), (4, 0));
    assert_eq!(world.stats(of_key(&key.id)).await.totals.expect("totals").requests_reported, 3);
}

store_test!(calls_that_report_the_same_at_once_count_it_once_and_all_are_answered);
async fn calls_that_report_the_same_at_once_count_it_once_and_all_are_answered(database: TestDatabase) {
    let world = World::new(&database).await;
    let keys = world.create_many("reporting", 4).await;
    let all: Vec<UsageRecord> = (0..200)
        .map(|number| UsageRecord { tokens: 1, ..record(&keys[number % 4].0.id, &number.to_string()) })
        .collect();
    let calls = (0..8).map(|call| {
        let mut records = all.clone();
        // Each in an order of its own.
        records.rotate_left(call * 25);
        if call % 2 == 1 {
            records.reverse();
        }
        report(world.server.keys(), records)
    });
    let answers = at_once(calls).await;
    assert!(answers.iter().all(|answer| answer.accepted + answer.duplicates == 200), "{answers:?}");
    assert_eq!(answers.iter().map(|answer| answer.accepted).sum::<i32>(), 200);
    let totals = world.stats(of_organization(&world.organization)).await.totals.expect("totals");
    assert_eq!((totals.requests_reported, totals.tokens), (200, 200));
    assert_eq!(database.query_i64("SELECT count(*) FROM api_key_usage WHERE outcome = ''").await, 200);
}

store_test!(a_report_leaves_a_row_of_detail_and_touches_nothing_else);
async fn a_report_leaves_a_row_of_detail_and_touches_nothing_else(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let before = Footprint::of(&database).await;
    let full = UsageRecord {
        time: Some(from_now(-3600)),
        endpoint: "/v1/chat".to_owned(),
        method: "POST".to_owned(),
        status_code: 429,
        response_time: Some(Duration { seconds: 1, nanos: 500_000_999 }),
        tokens: 1_000_000_000_000,
        cost_micro_usd: 7,
        client_address: "2001:db8::1".to_owned(),
        user_agent: "curl '\"🔑".to_owned(),
        error_code: "RATE_LIMITED".to_owned(),
        error_message: "too many\nrequests".to_owned(),
        ..record(&key.id, "request 1")
    };
    assert_eq!(world.report(vec![full.clone()]).await, accepted(1, 0));
    let columns = "key_id || '|' || organization_id || '|' || time_us || '|' || endpoint || '|' || method || '|' ||
                   status_code || '|' || outcome || '|' || response_time_us || '|' || tokens || '|' || cost_micro_usd
                   || '|' || client_address || '|' || user_agent || '|' || error_code || '|' || error_message || '|' ||
                   request_id";
    let row = database.query_string(&format!("SELECT {columns} FROM api_key_usage")).await;
    let expected = format!(
        "{}|{}|{}|/v1/chat|POST|429||1500000|1000000000000|7|2001:db8::1|curl '\"🔑|RATE_LIMITED|too many\nrequests|request 1",
        key.id,
        world.organization,
        micros(full.time)
    );
    assert_eq!(row, expected);
    assert_eq!(Footprint::of(&database).await, before, "no audit event, no change");
    let after = world.get(&key.id).await;
    assert_eq!((after.request_count, after.last_used_time), (0, None), "a report is no use of the key");
}

store_test!(what_is_an_error_follows_from_code_or_status);
async fn what_is_an_error_follows_from_code_or_status(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let statuses = [(0, 0), (1, 1), (16, 1), (17, 0), (200, 0), (399, 0), (400, 1), (599, 1), (999, 1)];
    let records: Vec<UsageRecord> = statuses
        .iter()
        .map(|(status, _)| UsageRecord { status_code: *status, ..record(&key.id, &status.to_string()) })
        .chain([UsageRecord { error_code: "ODD".to_owned(), status_code: 200, ..record(&key.id, "coded") }])
        .collect();
    assert_eq!(world.report(records).await, accepted(10, 0));
    let stats = world.stats(of_key(&key.id)).await;
    let expected: i64 = statuses.iter().map(|(_, error)| error).sum::<i64>() + 1;
    assert_eq!(stats.totals.expect("totals").errors, expected);
    let by_error: Vec<(&str, i64)> =
        stats.by_error.iter().map(|error| (error.error_code.as_str(), error.count)).collect();
    assert_eq!(by_error, [("", expected - 1), ("ODD", 1)]);
}

store_test!(a_report_from_the_future_within_reason_counts_in_its_own_hour);
async fn a_report_from_the_future_within_reason_counts_in_its_own_hour(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let ahead = with(&record(&key.id, "ahead"), |report| report.time = Some(from_now(290)));
    let hour = bucket(&ahead, Width::Hour);
    assert_eq!(world.report(vec![ahead]).await, accepted(1, 0));
    let moment = |micros: i64| Some(Timestamp { seconds: micros / 1_000_000, nanos: 0 });
    for (start, end, expected) in
        [(hour - HOUR_US, hour, 0), (hour, hour + HOUR_US, 1), (hour - HOUR_US, hour + HOUR_US, 1)]
    {
        let request = UsageStatsRequest {
            start_time: moment(start),
            end_time: moment(end),
            ..of_organization(&world.organization)
        };
        let stats = world.stats(request).await;
        assert_eq!(stats.totals.expect("totals").requests_reported, expected);
        assert_eq!(consumers(&stats).len(), usize::try_from(expected).expect("small"), "by every way to sum");
    }
}

store_test!(a_deleted_organization_leaves_nothing_of_its_reports);
async fn a_deleted_organization_leaves_nothing_of_its_reports(database: TestDatabase) {
    let world = World::new(&database).await;
    let doomed = create_organization(&world.server, "doomed").await.id;
    let (key, _) = world.create(world.new_key()).await;
    let (gone, _) = world.create(with(&world.new_key(), |request| request.organization_id.clone_from(&doomed))).await;
    for key in [&key.id, &gone.id] {
        world.report(reports(key, 20)).await;
    }
    let delete = keystead::proto::v1::DeleteOrganizationRequest {
        organization_id: doomed.clone(),
        force: true,
        etag: String::new(),
    };
    world.server.organizations().delete_organization(delete).await.expect("deleted");
    for (table, column) in [
        ("usage_reports", "key_id"),
        ("api_key_usage", "key_id"),
        ("usage_rollups", "key_id"),
        ("usage_consumers", "key_id"),
        ("usage_totals", "organization_id"),
        ("usage_errors", "subject_id"),
        ("usage_response_times", "subject_id"),
    ] {
        let left = |id: &str| format!("SELECT count(*) FROM {table} WHERE {column} = '{id}'");
        assert_eq!(database.query_i64(&left(&gone.id)).await + database.query_i64(&left(&doomed)).await, 0, "{table}");
        let kept = database.query_i64(&left(&key.id)).await + database.query_i64(&left(&world.organization)).await;
        assert!(kept > 0, "{table}: another organization's stay");
    }
    let late = world.report(vec![record(&gone.id, "late")]).await;
    assert_eq!((late.accepted, late.rejected[0].reason.as_str()), (0, "KEY_NOT_FOUND"), "and none comes back");
}
