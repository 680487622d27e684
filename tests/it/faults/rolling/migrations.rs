//! Binary and schema of different versions. A newer schema comes under replicas that do not know it, as any future
//! migration may bring it: they go on, and start on it. A schema that lacks what the binary knows is refused with what
//! to do. And replicas that all mean to migrate do it once.

use std::time::{Duration, Instant};

use keystead::proto::v1::{Outcome, RevokeKeyRequest};
use sea_orm::ConnectionTrait;

use super::{Load, assert_no_attempt_failed, assert_nothing_lost, end, replace, replicas};
use crate::callers::requests::{creating, issuing, verifying};
use crate::harness::cli::on_database;
use crate::harness::{Engine, Server, Setup, TestDatabase, create_key, create_organization, verify, wait_until};

/// The staleness bound of a service that was told none.
const BOUND: Duration = Duration::from_secs(5);

/// What a later version may do to the schema while this one runs: a column that may be NULL and one with a default, a
/// table, an index, and a kind of change that tells of more than one key. One transaction, as each migration is.
/// It gives way where it cannot have a table soon: calls wait behind it meanwhile, and of two that wait for each other
/// PostgreSQL would end one after a second, which may be the call.
const NEWER_SCHEMA: &str = "
BEGIN;
SET LOCAL lock_timeout = '500ms';
ALTER TABLE organizations ADD COLUMN region text, ADD COLUMN seats bigint NOT NULL DEFAULT 0;
ALTER TABLE api_keys ADD COLUMN scope_set_id text, ADD COLUMN strictness bigint NOT NULL DEFAULT 1;
CREATE TABLE scope_sets (
    id text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id) ON DELETE RESTRICT,
    scopes text NOT NULL
);
CREATE INDEX api_keys_by_scope_set ON api_keys (scope_set_id) WHERE scope_set_id IS NOT NULL;
SELECT keystead_record_change('scope_set', '', '', NULL);
INSERT INTO seaql_migrations (version, applied_at)
VALUES ('m20991231_000001_scope_sets', extract(epoch FROM clock_timestamp())::bigint);
COMMIT;
";

/// How much of it there is: four columns, a table, an index, and the row.
const NEWER_PARTS: &str = "
SELECT (SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' AND
        column_name IN ('region', 'seats', 'scope_set_id', 'strictness'))
     + (SELECT count(*) FROM pg_class WHERE relname IN ('scope_sets', 'api_keys_by_scope_set'))
     + (SELECT count(*) FROM seaql_migrations WHERE version = 'm20991231_000001_scope_sets')
";

/// Changes a key in a way that no trigger tells of.
async fn change_silently(database: &TestDatabase, key_id: &str, owner: &str) {
    let sql = format!(
        "BEGIN; ALTER TABLE api_keys DISABLE TRIGGER USER; \
         UPDATE api_keys SET owner_id = '{owner}' WHERE id = '{key_id}'; \
         ALTER TABLE api_keys ENABLE TRIGGER USER; COMMIT"
    );
    database.raw_sql(&sql).await;
    let changed = format!("SELECT count(*) FROM api_keys WHERE id = '{key_id}' AND owner_id = '{owner}'");
    assert_eq!(database.query_i64(&changed).await, 1);
}

/// Makes the newer schema, as the owner of the tables.
async fn make_newer(database: &TestDatabase) {
    let connection = database.connect().await;
    wait_until("the newer schema to find its turn", async || {
        let Err(error) = connection.execute_unprepared(NEWER_SCHEMA).await else { return true };
        connection.execute_unprepared("ROLLBACK").await.expect("the transaction ends");
        assert!(error.to_string().contains("lock timeout"), "{error}");
        false
    })
    .await;
    connection.close().await.expect("the connection closes");
    assert_eq!(database.query_i64(NEWER_PARTS).await, 7);
}

/// Waits until a replica says what the change feed has to bring it: no verification that begins later than the bound
/// after the change may miss it.
async fn learnt(what: &str, changed: Instant, mut says: impl AsyncFnMut() -> bool) {
    wait_until(what, async || {
        let asked_after = changed.elapsed();
        let said = says().await;
        assert!(said || asked_after <= BOUND, "waited for {what}, which did not come within the bound");
        said
    })
    .await;
}

/// Revokes a key on one replica that another one holds in its cache.
async fn assert_revocation_reaches(on: &Server, other: &Server, organization: &str) {
    let (key, secret) = create_key(on, organization, &[]).await;
    assert_eq!(verify(other, &secret).await.outcome(), Outcome::Valid);
    on.keys().revoke_key(RevokeKeyRequest { key_id: key.id, ..Default::default() }).await.expect("a revocation");
    let acknowledged = Instant::now();
    assert_eq!(verify(on, &secret).await.outcome(), Outcome::Revoked);
    let revoked = async || verify(other, &secret).await.outcome() == Outcome::Revoked;
    learnt("the revocation to be seen on the other replica", acknowledged, revoked).await;
}

/// Asserts that the commands of this binary leave the newer schema as it is.
async fn assert_left_alone(database: &TestDatabase) {
    let status = on_database(database, &["migrate", "status"]);
    assert_eq!((status.code, status.stdout.contains("pending")), (0, false), "{status:?}");
    let up = on_database(database, &["migrate", "up"]);
    assert_eq!((up.code, up.stdout.as_str()), (0, "nothing to do: none applied\n"), "{up:?}");
    assert_eq!(database.query_i64(NEWER_PARTS).await, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_replicas_go_on_and_start_again_on_a_newer_schema_that_is_made_under_them() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut servers = replicas(&database, 2).await;
    let witness = create_organization(&servers[0], "witness").await.id;
    let (key, secret) = create_key(&servers[0], &witness, &[]).await;
    for server in &servers {
        assert_eq!(verify(server, &secret).await.owner_id, "");
    }
    change_silently(&database, &key.id, "newer").await;
    let load = Load::start(&servers).await;
    for server in &servers {
        assert_eq!(verify(server, &secret).await.owner_id, "", "what is cached and was not told of is not seen");
    }

    make_newer(&database).await;
    let made = Instant::now();
    for server in &servers {
        let emptied = async || {
            let verified = verify(server, &secret).await;
            assert_eq!(verified.outcome(), Outcome::Valid);
            verified.owner_id == "newer"
        };
        learnt("the cache to be emptied by a change of an unknown kind", made, emptied).await;
    }
    load.goes_on(None).await;
    assert_revocation_reaches(&servers[0], &servers[1], &witness).await;
    assert_revocation_reaches(&servers[1], &servers[0], &witness).await;
    assert_left_alone(&database).await;
    assert_eq!(load.untaken(), 0, "not one attempt failed: {:?}", load.tally());

    replace(&load, &mut servers, 1).await;
    assert_revocation_reaches(&servers[0], &servers[1], &witness).await;
    assert_eq!(verify(&servers[1], &secret).await.owner_id, "newer");
    assert_left_alone(&database).await;

    let organization = load.organization().to_owned();
    let (tally, keys) = load.end().await;
    eprintln!("across a migration: {tally:?}");
    assert_no_attempt_failed(&tally);
    assert_nothing_lost(&database, &servers, &organization, &keys).await;
}

#[tokio::test]
async fn a_replica_refuses_a_database_that_lacks_the_newest_migration_and_serves_it_once_it_is_applied() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut replica = Server::start_with(&database, Setup::default()).await;
    let organization = create_organization(&replica, "acme").await.id;
    let (_, secret) = create_key(&replica, &organization, &[]).await;
    end(&mut replica).await;
    let down = on_database(&database, &["migrate", "down", "--yes"]);
    let undone: Vec<&str> = down.stdout.lines().filter_map(|line| line.strip_prefix("undone ")).collect();
    let [newest] = undone[..] else { panic!("one step: {down:?}") };

    let mut refused = Server::launch_with(&database, Setup::default());
    let status = refused.wait_exit().await;
    assert_eq!(status.code(), Some(1), "{}", refused.log_text());
    assert!(refused.log_text().contains("keystead migrate up"), "{}", refused.log_text());
    let pending = on_database(&database, &["migrate", "status"]).stdout;
    let pending: Vec<&str> = pending.lines().filter(|line| line.contains("pending")).collect();
    assert!(pending.len() == 1 && pending[0].contains(newest), "nothing was applied: {pending:?}");

    let up = on_database(&database, &["migrate", "up"]);
    assert_eq!((up.code, up.stdout), (0, format!("applied {newest}\n")));
    refused.restart().await;
    assert_eq!(verify(&refused, &secret).await.outcome(), Outcome::Valid);
    create_key(&refused, &organization, &[]).await;
}

#[tokio::test]
async fn two_replicas_that_migrate_an_empty_schema_at_once_both_come_up_and_migrate_once() {
    let database = TestDatabase::new(Engine::Postgres).await;
    // The harness has prepared the database for its first server; that is taken away again.
    end(&mut Server::start(&database, &[]).await).await;
    let down = on_database(&database, &["migrate", "down", "--yes", "--steps", "1000"]);
    assert_eq!(down.code, 0, "{down:?}");
    database.raw_sql("DROP TABLE seaql_migrations").await;
    let tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'";
    assert_eq!(database.query_i64(tables).await, 0);

    let launch = || {
        let setup = Setup { arguments: vec!["--migrate".to_owned()], ..Setup::default() };
        Server::launch_with(&database, setup)
    };
    let mut replicas = [launch(), launch()];
    for replica in &mut replicas {
        replica.wait_until_serving().await;
    }
    let logs: String = replicas.iter().map(Server::log_text).collect();
    let applied = "SELECT string_agg(version, ' ' ORDER BY version) FROM seaql_migrations";
    for name in database.query_string(applied).await.split(' ') {
        let told = logs.lines().filter(|line| line.contains("migrated") && line.contains(name)).count();
        assert_eq!(told, 1, "{name} is applied once: {logs}");
    }
    let status = on_database(&database, &["migrate", "status"]);
    assert_eq!((status.code, status.stdout.contains("pending")), (0, false), "{status:?}");

    // The secret that the harness knows went with the schema.
    let init = on_database(&database, &["init"]);
    assert_eq!(init.code, 0, "{init:?}");
    let admin = init.stdout.trim_end();
    let created = replicas[0].organizations_as(admin).create_organization(creating("acme")).await;
    let organization = created.expect("an organization is created").into_inner().organization.expect("it").id;
    let issued = replicas[0].keys_as(admin).create_key(issuing(&organization, &[])).await;
    let secret = issued.expect("a key is created").into_inner().secret;
    let verified = replicas[1].keys_as(admin).verify_key(verifying(&secret)).await;
    assert_eq!(verified.expect("an answer").into_inner().outcome(), Outcome::Valid);
}
