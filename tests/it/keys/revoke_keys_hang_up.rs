//! `RevokeKeys` whose caller hangs up in the middle: it runs to its end all the same, with an audit event for each key,
//! and at no moment are some keys revoked and others not.

use std::time::Duration;

use keystead::proto::v1::{Outcome, RevokeKeysRequest};
use sea_orm::ConnectionTrait as _;
use tonic::{Code, Request};

use super::{World, copies};
use crate::harness::{Engine, TestDatabase, store_test, wait_until};

/// Long enough for a call to arrive on a busy machine, and shorter than a database waits for a lock.
const TINY_DEADLINE: Duration = Duration::from_secs(2);

/// More keys than one statement revokes, so that a revocation has a middle.
const COUNT: usize = 2500;

impl World {
    /// How many keys are revoked, and how many audit events tell so, as of one moment.
    async fn revoked(&self, database: &TestDatabase) -> (i64, i64) {
        let organization = &self.organization;
        let sql = format!(
            "SELECT 1000000 * (SELECT count(*) FROM api_keys
                               WHERE organization_id = '{organization}' AND status = 'revoked')
                    + (SELECT count(*) FROM audit_events
                       WHERE organization_id = '{organization}' AND action = 'key.revoke')"
        );
        let both = database.query_i64(&sql).await;
        (both / 1_000_000, both % 1_000_000)
    }

    fn all_keys(&self) -> RevokeKeysRequest {
        RevokeKeysRequest { organization_id: self.organization.clone(), ..Default::default() }
    }

    /// Waits until all of so many keys are revoked; before, none may be.
    async fn wait_for_all_or_none(&self, database: &TestDatabase, count: i64) {
        wait_until("the revocation to be there", async || {
            let revoked = self.revoked(database).await;
            assert!([(0, 0), (count, count)].contains(&revoked), "{revoked:?} of {count}");
            revoked.0 == count
        })
        .await;
    }
}

store_test!(a_revocation_goes_on_when_its_caller_hangs_up);
async fn a_revocation_goes_on_when_its_caller_hangs_up(database: TestDatabase) {
    let world = World::new(&database).await;
    let keys = world.create_many("key", 5).await;
    for (_, secret) in &keys {
        assert_eq!(world.outcome(secret).await, Outcome::Valid, "and cached");
    }
    let blocked = database.block_writes().await;
    let mut request = Request::new(world.all_keys());
    request.set_timeout(TINY_DEADLINE);
    let given_up = world.server.keys().revoke_keys(request).await.expect_err("the database is slow");
    assert!(matches!(given_up.code(), Code::Cancelled | Code::DeadlineExceeded), "{given_up:?}");
    assert_eq!(world.revoked(&database).await, (0, 0));
    blocked.release().await;
    world.wait_for_all_or_none(&database, 5).await;
    for (_, secret) in &keys {
        // The row is written a moment before the cache is told.
        wait_until("the cache to be told", async || world.outcome(secret).await == Outcome::Revoked).await;
    }
}

/// PostgreSQL alone, where one table can be locked, and a waiting statement be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_hangs_up_in_the_middle_of_thousands_of_revocations_stops_none() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let (template, secret) = world.create(world.new_key()).await;
    let secrets = copies(&database, &template, COUNT - 1).await;
    let cached = [&secret, &secrets[0], &secrets[COUNT - 2]];
    for secret in cached {
        assert_eq!(world.outcome(secret).await, Outcome::Valid, "and cached");
    }
    let held = database.connect().await;
    held.execute_unprepared("BEGIN; LOCK TABLE audit_events IN EXCLUSIVE MODE").await.expect("locked");
    let (mut keys, request) = (world.server.keys(), world.all_keys());
    let call = tokio::spawn(async move { keys.revoke_keys(request).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock' AND query LIKE 'INSERT%audit_events%'";
    wait_until("some keys to be revoked and their events to wait", async || database.query_i64(waiting).await == 1)
        .await;
    call.abort();
    let noticed = |line: &str| line.contains("KeyService/RevokeKeys") && line.contains("CANCELLED");
    wait_until("the service to notice", async || world.server.log_text().lines().any(noticed)).await;
    assert_eq!(world.revoked(&database).await, (0, 0), "nothing of the first statement is seen");
    held.execute_unprepared("ROLLBACK").await.expect("let go");
    held.close().await.expect("the connection closes");
    world.wait_for_all_or_none(&database, i64::try_from(COUNT).expect("small")).await;
    for secret in cached {
        wait_until("the cache to be told", async || world.outcome(secret).await == Outcome::Revoked).await;
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    wait_until("no transaction to be open", async || database.query_i64(open).await == 0).await;
}
