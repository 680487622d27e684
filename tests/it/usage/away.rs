//! A database that takes nothing, for a while or until the service ends: verifications that need nothing of it are
//! answered, and none of them is lost or counted twice.

use keystead::proto::v1::Outcome;

use super::ledger::{asking, totals};
use crate::harness::{Engine, Server, TestDatabase, create_key, create_organization, store_test, verify, wait_until};

store_test!(while_the_database_takes_no_writes_verifications_are_answered_and_counted_later);
async fn while_the_database_takes_no_writes_verifications_are_answered_and_counted_later(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let (_, secret) = create_key(&server, &organization, &[]).await;
    assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid);
    let mut answered = 1;
    let blocked = database.block_writes().await;
    wait_until("a flush to fail", async || {
        assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid);
        answered += 1;
        server.log_text().contains("a job fails")
    })
    .await;
    blocked.release().await;
    assert_eq!(totals(&server, &organization).await.verifications, answered);
}

/// On PostgreSQL alone: a file cannot be cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_away_hits_are_answered_and_counted_when_it_is_back() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let (_, secret) = create_key(&server, &organization, &[]).await;
    assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid);
    database.cut_off().await;
    let mut answered = 1;
    for _ in 0..100 {
        assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid, "a hit needs no database");
        answered += 1;
    }
    wait_until("a flush to fail", async || server.log_text().contains("a job fails")).await;
    // From here on a hit may be refused, once nothing has been heard of changes for too long.
    for _ in 0..100 {
        answered += i64::from(server.keys().verify_key(asking(&secret)).await.is_ok());
    }
    database.let_back().await;
    wait_until("all to be counted", async || {
        let sum = "SELECT CAST(coalesce(sum(verifications), 0) AS bigint) FROM usage_rollups";
        database.query_i64(sum).await == answered
    })
    .await;
    assert_eq!(totals(&server, &organization).await.verifications, answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgresql_did_not_take_before_sigterm_is_written_at_the_next_start() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut server = Server::start(&database, &[]).await;
    let organization = create_organization(&server, "acme").await.id;
    let (_, secret) = create_key(&server, &organization, &[]).await;
    assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid);
    database.cut_off().await;
    for _ in 0..50 {
        assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid);
    }
    server.sigterm();
    server.wait_exit().await;
    assert!(server.log_text().contains("for the next start"), "it says so");
    database.let_back().await;
    server.restart().await;
    assert_eq!(totals(&server, &organization).await.verifications, 51);
}
