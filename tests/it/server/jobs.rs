//! Background jobs over several real processes: what one process does for all is done once, also when the one that
//! did it is killed. What a job writes is in `store/jobs.rs`. Waits on rows, never on time.

use keystead::proto::v1::{CreateKeyRequest, Environment, create_key_request::Lifetime};

use crate::harness::{Engine, Server, TestDatabase, create_organization, store_test, wait_until};

/// A key whose expiry has passed by the time that anybody looks.
async fn create_expired(server: &Server, database: &TestDatabase, organization: &str) -> String {
    let request = CreateKeyRequest {
        organization_id: organization.to_owned(),
        name: "short".to_owned(),
        environment: Environment::Live.into(),
        lifetime: Some(Lifetime::Ttl(prost_types::Duration { seconds: 3600, nanos: 0 })),
        ..Default::default()
    };
    let created = server.keys().create_key(request).await.expect("a key is created").into_inner();
    let id = created.key.expect("the key").id;
    database.raw_sql(&format!("UPDATE api_keys SET expire_time_us = 1 WHERE id = '{id}'")).await;
    id
}

async fn events(database: &TestDatabase, key: &str) -> i64 {
    let sql = "SELECT count(*) FROM audit_events WHERE action = 'key.expire' AND target_id = ";
    database.query_i64(&format!("{sql}'{key}'")).await
}

/// Makes every job due now, whoever has run it.
async fn make_due(database: &TestDatabase) {
    database.raw_sql("UPDATE job_leases SET last_start_us = 0").await;
}

async fn wait_until_told(database: &TestDatabase, key: &str) {
    wait_until("the expiry to be told", async || events(database, key).await > 0).await;
}

store_test!(an_expiry_is_told_once_through_restarts);
async fn an_expiry_is_told_once_through_restarts(database: TestDatabase) {
    let mut server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let first = create_expired(&server, &database, &organization).await;
    make_due(&database).await;
    wait_until_told(&database, &first).await;
    server.kill9();
    server.restart().await;
    let second = create_expired(&server, &database, &organization).await;
    make_due(&database).await;
    wait_until_told(&database, &second).await;
    assert_eq!((events(&database, &first).await, events(&database, &second).await), (1, 1));
}

#[tokio::test]
async fn two_processes_run_a_job_once_for_each_time_that_it_is_due() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let one = Server::start(&database, &[]).await;
    let _other = Server::start(&database, &[]).await;
    let organization = create_organization(&one, "acme").await.id;
    // Every run leaves a row here, past the service.
    database
        .raw_sql(
            "CREATE TABLE runs (holder text);
             CREATE FUNCTION note_run() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO runs VALUES (NEW.holder); RETURN NULL; END $$;
             CREATE TRIGGER note_run AFTER UPDATE ON job_leases FOR EACH ROW
             WHEN (NEW.name = 'expire' AND NEW.last_start_us > OLD.last_start_us) EXECUTE FUNCTION note_run()",
        )
        .await;
    for _ in 0..3 {
        let key = create_expired(&one, &database, &organization).await;
        database.raw_sql("DELETE FROM runs").await;
        make_due(&database).await;
        wait_until_told(&database, &key).await;
        assert_eq!(events(&database, &key).await, 1);
        assert_eq!(database.query_i64("SELECT count(*) FROM runs").await, 1);
    }
}

#[tokio::test]
async fn a_job_of_a_process_that_was_killed_is_taken_over() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut dies = Server::start(&database, &[]).await;
    // Else the first round may still come to tell of the key, and no later one would have anything to do.
    let rounds = "SELECT count(*) FROM job_leases WHERE name = 'expire' AND last_end_us > 0";
    wait_until("the first round to be over", async || database.query_i64(rounds).await == 1).await;
    let organization = create_organization(&dies, "acme").await.id;
    let key = create_expired(&dies, &database, &organization).await;
    let blocked = database.block_writes().await;
    make_due(&database).await;
    let held = "SELECT count(*) FROM job_leases WHERE name = 'expire' AND lease_until_us > last_end_us";
    wait_until("the job to be taken", async || database.query_i64(held).await == 1).await;
    dies.kill9();
    blocked.release().await;
    let holder = database.query_string("SELECT holder FROM job_leases WHERE name = 'expire'").await;
    assert_eq!(events(&database, &key).await, 0, "it died before it told");
    let _lives = Server::start(&database, &[]).await;
    // As if the lease's time had passed.
    database.raw_sql("UPDATE job_leases SET last_start_us = 0, lease_until_us = 1").await;
    wait_until_told(&database, &key).await;
    assert_eq!(events(&database, &key).await, 1);
    assert_ne!(database.query_string("SELECT holder FROM job_leases WHERE name = 'expire'").await, holder);
}
