//! `VerifyKey`: what limits and quotas remember of a process that was killed. What the table of counts shows is never
//! forgotten, and what was charged after it counts once at the most.
//! Windows here are so long that none ends during a test, and what a killed process wrote is read from the table.

use keystead::proto::v1::Outcome;

use super::World;
use super::verify_limits::{limit, remaining};
use crate::harness::{Engine, TestDatabase, store_test, wait_until};

/// The name under which a quota is counted.
const QUOTA: &str = "monthly quota";

/// What the table shows of each of these subjects and names.
async fn written<const N: usize>(database: &TestDatabase, counters: [(&str, &str); N]) -> [i64; N] {
    let mut counts = [0; N];
    for ((subject, name), count) in counters.into_iter().zip(&mut counts) {
        let sql = format!(
            "SELECT CAST(coalesce(sum(count), 0) AS bigint) FROM rate_limit_tracking
             WHERE subject_id = '{subject}' AND limit_name = '{name}'"
        );
        *count = database.query_i64(&sql).await;
    }
    counts
}

store_test!(a_kill_forgets_at_most_what_was_charged_since_the_last_flush);
async fn a_kill_forgets_at_most_what_was_charged_since_the_last_flush(database: TestDatabase) {
    const KNOWN: i64 = 300;
    const MORE: i64 = 40;
    const ALL: i64 = KNOWN + MORE;
    let mut world = World::new(&database).await;
    world.set_limits(&[limit("org", 10_000)]).await;
    world.set_quota(2000).await;
    let (key, secret) = world.limited(&[limit("own", 1000)]).await;
    let (_, unlimited) = world.limited(&[]).await;
    let organization = world.organization.clone();
    let counters = [(key.id.as_str(), "own"), (organization.as_str(), "org"), (organization.as_str(), QUOTA)];
    assert_eq!(world.charge(&secret, KNOWN).await.outcome(), Outcome::Valid);
    wait_until("the table to show it all", async || written(&database, counters).await == [KNOWN; 3]).await;
    for _ in 0..MORE {
        assert_eq!(world.charge(&secret, 1).await.outcome(), Outcome::Valid);
    }
    world.server.kill9();
    let [own, org, spent] = written(&database, counters).await;
    // Replicas that share the table charge it before they answer; one process on SQLite writes it through.
    let least = if database.engine == Engine::Postgres { ALL } else { KNOWN };
    assert!([own, org].iter().all(|count| (least..=ALL).contains(count)), "{own} {org}");
    // Of a quota nothing is forgotten, and what a block had left is lost: at most a 64th of what was left.
    assert!((ALL..=ALL + (2000 - KNOWN) / 64).contains(&spent), "{spent}");
    world.server.restart().await;

    let answer = world.charge(&secret, 0).await;
    let [("own", own_left), ("org", org_left)] = remaining(&answer)[..] else {
        panic!("{answer:?}");
    };
    assert!((1000 - ALL..=1000 - own).contains(&own_left), "{own_left} are left, {own} were written");
    assert!((10_000 - ALL..=10_000 - org).contains(&org_left), "{org_left} are left, {org} were written");
    // Answers do not tell what is left of a quota; what fits does.
    let beyond = world.charge(&unlimited, 2000 - spent + 1).await;
    assert_eq!(beyond.outcome(), Outcome::QuotaExceeded, "{spent} were written");
    assert_eq!(world.charge(&unlimited, 2000 - spent).await.outcome(), Outcome::Valid, "to the last unit");
}

store_test!(a_crash_loop_forgets_nothing_that_was_written);
async fn a_crash_loop_forgets_nothing_that_was_written(database: TestDatabase) {
    const EACH: i64 = 3;
    let mut world = World::new(&database).await;
    let (key, secret) = world.limited(&[limit("own", 100)]).await;
    for round in 1..=10 {
        for _ in 0..EACH {
            assert_eq!(world.charge(&secret, 1).await.outcome(), Outcome::Valid, "round {round}");
        }
        let shown = async || written(&database, [(key.id.as_str(), "own")]).await;
        wait_until("the table to show the round", async || shown().await == [EACH * round]).await;
        world.server.kill9();
        world.server.restart().await;
        let answer = world.charge(&secret, 0).await;
        assert_eq!(remaining(&answer), [("own", 100 - EACH * round)], "after {round} kills");
    }
    assert_eq!(world.charge(&secret, 100 - 10 * EACH).await.outcome(), Outcome::Valid);
    assert_eq!(world.charge(&secret, 1).await.outcome(), Outcome::RateLimited);
}

store_test!(a_count_of_which_little_was_charged_is_written_too);
async fn a_count_of_which_little_was_charged_is_written_too(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let (key, secret) = world.limited(&[limit("own", 1_000_000)]).await;
    for count in 1..=2 {
        assert_eq!(world.charge(&secret, 1).await.outcome(), Outcome::Valid);
        let shown = async || written(&database, [(key.id.as_str(), "own")]).await;
        wait_until("the table to show it", async || shown().await == [count]).await;
    }
    world.server.kill9();
    world.server.restart().await;
    assert_eq!(remaining(&world.charge(&secret, 0).await), [("own", 999_998)]);
}
