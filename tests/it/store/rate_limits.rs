//! `store::rate_limits`: what limits have counted is written over, read back after a restart, and deleted once
//! nobody can need it. `store::imported_counts`: what came over from elsewhere is noted for as long as it counts.

use std::time::Duration;

use keystead::domain::{ids::RecordId, limits::RateLimit};
use keystead::store::imported_counts::{self, SourceCount};
use keystead::store::rate_limits::{self, TrackedWindow};

use super::{World, nobody};
use crate::harness::{TestDatabase, samples, store_test};

fn window(subject: &str, name: &str, start_s: i64, count: i64) -> TrackedWindow {
    TrackedWindow {
        subject_id: subject.to_owned(),
        limit_name: name.to_owned(),
        window_start_us: samples::seconds(start_s).micros(),
        window_end_us: samples::seconds(start_s + 60).micros(),
        count,
    }
}

async fn tracked(world: &World, at_s: i64) -> Vec<TrackedWindow> {
    let listed = rate_limits::list_counting_at(world.store.control(), samples::seconds(at_s)).await;
    let mut windows = listed.expect("windows");
    windows.sort_by(|a, b| {
        (&a.subject_id, &a.limit_name, a.window_start_us).cmp(&(&b.subject_id, &b.limit_name, b.window_start_us))
    });
    windows
}

store_test!(a_count_is_written_over_what_stood_and_every_other_window_stays);
async fn a_count_is_written_over_what_stood_and_every_other_window_stays(database: TestDatabase) {
    let world = World::new(database).await;
    rate_limits::upsert(world.db(), &[]).await.expect("nothing to write");
    let first = [window("a", "requests", 0, 5), window("a", "requests", 60, 1), window("b", "requests", 0, 7)];
    rate_limits::upsert(world.db(), &first).await.expect("written");
    assert_eq!(tracked(&world, 0).await, first);
    let over = [window("a", "requests", 0, 9), window("a", "slow", 0, 2)];
    rate_limits::upsert(world.db(), &over).await.expect("written");
    let expected = [over[0].clone(), first[1].clone(), over[1].clone(), first[2].clone()];
    assert_eq!(tracked(&world, 0).await, expected);
}

store_test!(a_window_is_kept_until_it_has_faded_out_in_the_one_after_it_and_a_day_more);
async fn a_window_is_kept_until_it_has_faded_out_in_the_one_after_it_and_a_day_more(database: TestDatabase) {
    let world = World::new(database).await;
    let long = TrackedWindow { window_end_us: samples::seconds(3600).micros(), ..window("b", "slow", 0, 3) };
    let windows = [window("a", "requests", 0, 1), window("a", "requests", 60, 2), long];
    rate_limits::upsert(world.db(), &windows).await.expect("written");
    // The first of 60 s ends at 60 and has faded out at 120; the clock may step back by a day.
    let faded = 120 + 86_400;
    assert_eq!(tracked(&world, faded - 1).await, windows);
    assert_eq!(tracked(&world, faded).await, windows[1..]);
    let delete = |at| rate_limits::delete_faded(world.db(), samples::seconds(at));
    assert_eq!(delete(faded - 1).await.expect("deleted"), 0);
    assert_eq!(delete(faded).await.expect("deleted"), 1);
    assert_eq!(tracked(&world, 0).await, windows[1..]);
    assert_eq!(delete(7199 + 86_400).await.expect("deleted"), 1);
    assert_eq!(tracked(&world, 0).await, windows[2..]);
}

store_test!(thousands_of_windows_are_written_at_once);
async fn thousands_of_windows_are_written_at_once(database: TestDatabase) {
    let world = World::new(database).await;
    let windows: Vec<_> = (0..2100).map(|at| window(&format!("subject {at:05}"), "requests", 0, at)).collect();
    rate_limits::upsert(world.db(), &windows).await.expect("written");
    rate_limits::upsert(world.db(), &windows).await.expect("written again");
    assert_eq!(tracked(&world, 0).await, windows);
}

store_test!(deleting_what_an_organization_counted_leaves_everybody_elses);
async fn deleting_what_an_organization_counted_leaves_everybody_elses(database: TestDatabase) {
    let world = World::new(database).await;
    let (own, other) = (world.acme.id.to_string(), nobody().to_string());
    let windows =
        [window(&own, "monthly quota", 0, 1), window(&own, "requests", 0, 2), window(&other, "requests", 0, 3)];
    rate_limits::upsert(world.db(), &windows).await.expect("written");
    rate_limits::delete_of_organization(world.db(), world.acme.id).await.expect("deleted");
    assert_eq!(tracked(&world, 0).await, windows[2..]);
}

/// How much of a window of a minute is added, which row `row` of a source says has counted 10.
async fn add(world: &World, row: &str, subject: &str, limit: &RateLimit) -> i64 {
    let own = (samples::seconds(0), samples::seconds(60));
    let import_id = RecordId::from_u128(7);
    let count = SourceCount::of_limit(import_id, row, own, subject.to_owned(), limit, own.0, 10);
    imported_counts::add(world.db(), &[count]).await.expect("added")[0]
}

store_test!(what_came_over_is_not_added_again_for_as_long_as_its_limit_looks_back);
async fn what_came_over_is_not_added_again_for_as_long_as_its_limit_looks_back(database: TestDatabase) {
    let world = World::new(database).await;
    let month = Duration::from_hours(24 * 30);
    let limit = RateLimit::parse("requests", 1000, month, false).expect("a limit");
    assert_eq!(add(&world, "1", "a", &limit).await, 10);
    assert_eq!(add(&world, "1", "a", &limit).await, 0);
    // A repeat passes over what ended longer ago than the limit's window. A minute fades in the next one.
    let month_s = i64::try_from(month.as_secs()).expect("a month");
    for at in [120 + 86_400, 60 + month_s] {
        rate_limits::delete_faded(world.db(), samples::seconds(at)).await.expect("deleted");
        assert_eq!(add(&world, "1", "a", &limit).await, 0, "{at} seconds after its beginning");
    }
    // Nor for ever.
    let faded = 2 * (60 + month_s) + 86_400;
    rate_limits::delete_faded(world.db(), samples::seconds(faded)).await.expect("deleted");
    assert_eq!(add(&world, "1", "a", &limit).await, 10);
}

store_test!(what_came_over_for_a_key_that_is_gone_has_not_come_over_for_its_successor);
async fn what_came_over_for_a_key_that_is_gone_has_not_come_over_for_its_successor(database: TestDatabase) {
    let world = World::new(database).await;
    let limit = RateLimit::parse("requests", 1000, Duration::from_mins(1), false).expect("a limit");
    assert_eq!(add(&world, "1", "a", &limit).await, 10);
    assert_eq!(add(&world, "1", "b", &limit).await, 10, "another key came from the same row");
    assert_eq!(add(&world, "2", "b", &limit).await, 10, "another row of the same key");
    assert_eq!(add(&world, "1", "b", &limit).await, 0);
}
