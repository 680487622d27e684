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

async fn tracked(world: &World, after_s: i64) -> Vec<TrackedWindow> {
    let listed = rate_limits::list_ending_after(world.store.control(), samples::seconds(after_s)).await;
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

store_test!(windows_are_read_back_and_deleted_by_the_moment_they_end);
async fn windows_are_read_back_and_deleted_by_the_moment_they_end(database: TestDatabase) {
    let world = World::new(database).await;
    let windows = [window("a", "requests", 0, 1), window("a", "requests", 60, 2), window("a", "requests", 120, 3)];
    rate_limits::upsert(world.db(), &windows).await.expect("written");
    assert_eq!(tracked(&world, 60).await, windows[1..], "one that ends at that moment has ended");
    assert_eq!(tracked(&world, 59).await, windows);
    let deleted = rate_limits::delete_ended_before(world.db(), samples::seconds(120)).await.expect("deleted");
    assert_eq!(deleted, 1, "one that ends at that moment may still be looked at");
    assert_eq!(tracked(&world, 0).await, windows[1..]);
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
    let windows = [window(&own, "monthly quota", 0, 1), window(&own, "requests", 0, 2), window(&other, "requests", 0, 3)];
    rate_limits::upsert(world.db(), &windows).await.expect("written");
    rate_limits::delete_of_organization(world.db(), world.acme.id).await.expect("deleted");
    assert_eq!(tracked(&world, 0).await, windows[2..]);
}
