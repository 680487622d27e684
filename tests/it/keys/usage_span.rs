//! `UsageStats`: spans of time and the series over them. A series has a point for every hour, day or month of
//! its span, used or not, and usage of the past stands where it belongs.
//! Usage of other days is written past the service, since no test waits for one.

use keystead::domain::ids::{KeyId, OrganizationId};
use keystead::domain::outcome::Outcome as StoredOutcome;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{Granularity, UsagePoint, UsageStatsRequest, UsageStatsResponse};
use keystead::store::usage::{RollupKey, add_rollups};
use prost_types::Timestamp;

use super::{World, bad_fields, fields, from_now, presenting, with};
use crate::harness::{TestDatabase, store_test};

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
/// 2026-01-01T00:00:00Z.
const NEW_YEAR: i64 = 1_767_225_600;

impl World {
    fn span(&self, start: i64, end: i64, granularity: Granularity) -> UsageStatsRequest {
        UsageStatsRequest {
            subject: Some(Subject::OrganizationId(self.organization.clone())),
            start_time: Some(at(start)),
            end_time: Some(at(end)),
            granularity: granularity.into(),
            top: 0,
        }
    }

    async fn usage(&self, request: UsageStatsRequest) -> UsageStatsResponse {
        self.server.keys().usage_stats(request).await.expect("statistics").into_inner()
    }

    /// Adds so many valid verifications of a key in the hour that begins at `seconds`.
    async fn past_usage(&self, database: &TestDatabase, key_id: &str, seconds: i64, count: i64) {
        let ids = (KeyId::parse(key_id).expect("an id"), OrganizationId::parse(&self.organization).expect("an id"));
        let hour = keystead::domain::time::Timestamp::from_micros(seconds * 1_000_000);
        let rollup = RollupKey { key: Some(ids), hour, endpoint: "/past".to_owned(), outcome: StoredOutcome::Valid };
        let connection = database.connect().await;
        add_rollups(&connection, &[(rollup, count)]).await.expect("written");
        connection.close().await.expect("the connection closes");
    }
}

const fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn starts(stats: &UsageStatsResponse) -> Vec<i64> {
    stats.series.iter().map(|point| point.start_time.expect("a start").seconds).collect()
}

fn used(stats: &UsageStatsResponse) -> Vec<(i64, i64)> {
    let row =
        |point: &UsagePoint| (point.start_time.expect("a start").seconds, point.totals.expect("totals").verifications);
    stats.series.iter().map(row).filter(|(_, count)| *count > 0).collect()
}

store_test!(a_series_has_no_holes_and_counts_where_use_was);
async fn a_series_has_no_holes_and_counts_where_use_was(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    world.past_usage(&database, &key.id, NEW_YEAR, 1).await;
    world.past_usage(&database, &key.id, NEW_YEAR + 23 * HOUR, 2).await;
    world.past_usage(&database, &key.id, NEW_YEAR + DAY, 4).await;
    world.past_usage(&database, &key.id, NEW_YEAR + 40 * DAY + HOUR, 8).await;

    let hours = world.usage(world.span(NEW_YEAR, NEW_YEAR + 48 * HOUR, Granularity::Hour)).await;
    assert_eq!(starts(&hours), (0..48).map(|hour| NEW_YEAR + hour * HOUR).collect::<Vec<_>>());
    assert_eq!(used(&hours), [(NEW_YEAR, 1), (NEW_YEAR + 23 * HOUR, 2), (NEW_YEAR + DAY, 4)]);
    assert_eq!(hours.totals.expect("totals").verifications, 7);

    let days = world.usage(world.span(NEW_YEAR, NEW_YEAR + 60 * DAY, Granularity::Day)).await;
    assert_eq!(starts(&days), (0..60).map(|day| NEW_YEAR + day * DAY).collect::<Vec<_>>());
    assert_eq!(used(&days), [(NEW_YEAR, 3), (NEW_YEAR + DAY, 4), (NEW_YEAR + 40 * DAY, 8)]);

    let months = world.usage(world.span(NEW_YEAR, NEW_YEAR + 120 * DAY, Granularity::Month)).await;
    let first_of_month = [0, 31, 59, 90].map(|days| NEW_YEAR + days * DAY);
    assert_eq!(starts(&months), first_of_month);
    assert_eq!(used(&months), [(NEW_YEAR, 7), (NEW_YEAR + 31 * DAY, 8)]);

    let unspecified = world.usage(world.span(NEW_YEAR, NEW_YEAR + 60 * DAY, Granularity::Unspecified)).await;
    assert_eq!(unspecified.series, days.series, "days where nothing is said");
}

store_test!(a_span_is_widened_to_full_hours_and_its_end_is_outside);
async fn a_span_is_widened_to_full_hours_and_its_end_is_outside(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    for (hour, count) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
        world.past_usage(&database, &key.id, NEW_YEAR + hour * HOUR, count).await;
    }
    for (start, end, expected) in [
        (HOUR, 3 * HOUR, 2 + 4),
        (HOUR, 3 * HOUR + 1, 2 + 4 + 8),
        (2 * HOUR - 1, 3 * HOUR, 2 + 4),
        (HOUR + 5, HOUR + 6, 2),
        (0, 4 * HOUR, 15),
        (4 * HOUR, 5 * HOUR, 0),
    ] {
        for granularity in [Granularity::Hour, Granularity::Day, Granularity::Month] {
            let stats = world.usage(world.span(NEW_YEAR + start, NEW_YEAR + end, granularity)).await;
            assert_eq!(stats.totals.expect("totals").verifications, expected, "{start} to {end}");
            assert_eq!(used(&stats).iter().map(|(_, count)| count).sum::<i64>(), expected, "{start} to {end}");
        }
    }
}

store_test!(the_first_point_begins_where_its_day_or_month_does);
async fn the_first_point_begins_where_its_day_or_month_does(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    world.past_usage(&database, &key.id, NEW_YEAR + 4 * HOUR, 1).await;
    world.past_usage(&database, &key.id, NEW_YEAR + 6 * HOUR, 2).await;
    for granularity in [Granularity::Day, Granularity::Month] {
        let stats = world.usage(world.span(NEW_YEAR + 5 * HOUR, NEW_YEAR + 7 * HOUR, granularity)).await;
        assert_eq!(starts(&stats), [NEW_YEAR], "{granularity:?}: it may begin before the time asked for");
        assert_eq!(used(&stats), [(NEW_YEAR, 2)], "{granularity:?}: its totals do not");
    }
}

store_test!(without_a_span_it_is_the_current_month_until_now);
async fn without_a_span_it_is_the_current_month_until_now(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    world.outcome(&secret).await;
    let long_ago = from_now(0).seconds / HOUR * HOUR - 45 * DAY;
    world.past_usage(&database, &key.id, long_ago, 100).await;
    let open = with(&world.span(0, 0, Granularity::Day), |request| {
        request.start_time = None;
        request.end_time = None;
    });
    let stats = world.usage(open.clone()).await;
    assert_eq!(stats.totals.expect("totals").verifications, 1, "45 days ago was another month");
    let days = starts(&stats);
    assert!(days.windows(2).all(|pair| pair[1] - pair[0] == DAY), "{days:?}");
    assert!(days.last().is_some_and(|last| *last == from_now(0).seconds / DAY * DAY), "today: {days:?}");
    let month = with(&open, |request| request.granularity = Granularity::Month.into());
    let month = world.usage(month).await;
    assert_eq!(month.series.len(), 1, "one month: {:?}", month.series);
    assert_eq!(month.series[0].start_time, stats.series[0].start_time, "from its first day on");
    let since = with(&open, |request| request.start_time = Some(at(long_ago)));
    assert_eq!(world.usage(since).await.totals.expect("totals").verifications, 101, "up to now");
}

store_test!(empty_reversed_and_endless_spans_are_refused);
async fn empty_reversed_and_endless_spans_are_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let bad = [
        world.span(NEW_YEAR, NEW_YEAR, Granularity::Day),
        world.span(NEW_YEAR + 1, NEW_YEAR, Granularity::Day),
        world.span(NEW_YEAR + DAY, NEW_YEAR, Granularity::Hour),
        world.span(NEW_YEAR, NEW_YEAR + 400 * DAY + 1, Granularity::Hour),
        world.span(0, 253_402_300_799, Granularity::Hour),
        world.span(0, 253_402_300_799, Granularity::Day),
    ];
    for request in bad {
        assert_eq!(
            bad_fields(world.server.keys().usage_stats(request.clone()).await),
            fields(&["end_time"]),
            "{request:?}"
        );
    }
    let future = with(&world.span(0, 0, Granularity::Day), |request| {
        request.start_time = Some(from_now(DAY));
        request.end_time = None;
    });
    let named = bad_fields(world.server.keys().usage_stats(future).await);
    assert!(named.len() == 1 && (named.contains("start_time") || named.contains("end_time")), "{named:?}");
    let longest = world.usage(world.span(NEW_YEAR, NEW_YEAR + 400 * DAY, Granularity::Hour)).await;
    assert_eq!(longest.series.len(), 9600);
    let months = world.usage(world.span(NEW_YEAR, NEW_YEAR + 36_524 * DAY, Granularity::Month)).await;
    assert_eq!(months.series.len(), 1200, "a hundred years of months are not many points");
}

store_test!(a_verification_counts_in_its_own_hour);
async fn a_verification_counts_in_its_own_hour(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    let before = from_now(0).seconds / HOUR * HOUR;
    world.ask(presenting(&secret)).await;
    let after = from_now(0).seconds / HOUR * HOUR;
    let stats = world.usage(world.span(before - 2 * HOUR, after + HOUR, Granularity::Hour)).await;
    let used = used(&stats);
    assert!(used == [(before, 1)] || used == [(after, 1)], "{used:?}");
}
