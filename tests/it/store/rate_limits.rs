//! `store::rate_limits`: what limits have counted is written over, read back after a restart, and deleted once
//! nobody can need it.

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
