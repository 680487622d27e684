//! The end: on SIGTERM health says `NOT_SERVING`, calls that were sent are answered, what was gathered is written, and
//! the process ends with 0, whatever idle, watching or stuck clients do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use keystead::proto::v1::Outcome;
use keystead::proto::v1::key_service_client::KeyServiceClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Request, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::wire::{self, End, Tally};
use crate::callers::requests::{issuing, verifying};
use crate::harness::{Engine, Server, TestDatabase, create_key, create_organization, store_test, wait_until};

/// An end that nobody holds up comes far sooner; a drain that somebody holds up, with the timeouts set here, far later.
const SOON: Duration = Duration::from_secs(20);

const PATIENT_DRAIN: &[&str] = &["--drain-timeout-ms", "3600000"];

fn as_admin<T>(server: &Server, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", server.admin_secret());
    request.metadata_mut().insert("authorization", bearer.parse().expect("ASCII"));
    request
}

async fn watch(channel: Channel, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest { service: service.to_owned() };
    HealthClient::new(channel).watch(request).await.expect("a watch").into_inner()
}

async fn next(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    watch.message().await.expect("the stream goes on").expect("a status").status()
}

/// The statuses of a clean end.
async fn expect_clean_end(server: &mut Server) {
    let status = tokio::time::timeout(SOON, server.wait_exit()).await.expect("an end that nobody holds up");
    assert_eq!(status.code(), Some(0), "{}", server.log_text());
}

store_test!(under_load_sigterm_loses_no_call_and_writes_all_usage);
async fn under_load_sigterm_loses_no_call_and_writes_all_usage(database: TestDatabase) {
    let mut server = Server::start(&database, PATIENT_DRAIN).await;
    let organization = create_organization(&server, "acme").await.id;
    let (_, secret) = create_key(&server, &organization, &[]).await;
    let keys_before = database.query_i64("SELECT count(*) FROM api_keys").await;
    let (verified, created) = (Tally::default(), Tally::default());
    // The first misses of every cache are not what is to be shown here.
    let answer = server.keys().verify_key(verifying(&secret)).await;
    verified.count("VerifyKey", End::of(answer));
    let mut clients = JoinSet::new();
    for connection in 0..8 {
        let channel = wire::one_connection(server.address()).await;
        for task in 0..5 {
            // Few create: what is to be shown is the end, not how a database of a debug build stands a rush.
            let is_creator = task == 0 && connection < 2;
            let mut keys = KeyServiceClient::new(channel.clone());
            let (verify, create) =
                (as_admin(&server, verifying(&secret)), as_admin(&server, issuing(&organization, &[])));
            let (verified, created) = (verified.clone(), created.clone());
            clients.spawn(async move {
                loop {
                    let goes_on = if is_creator {
                        let request = copy(&create);
                        created.count("CreateKey", End::of(keys.create_key(request).await)).is_some()
                    } else {
                        let request = copy(&verify);
                        let answer = verified.count("VerifyKey", End::of(keys.verify_key(request).await));
                        answer.inspect(|answer| assert_eq!(answer.get_ref().outcome(), Outcome::Valid)).is_some()
                    };
                    if !goes_on {
                        return;
                    }
                }
            });
        }
    }
    wait_until("the load to be on", async || verified.answered() > 2000 && created.answered() > 20).await;
    server.sigterm();
    while let Some(ended) = clients.join_next().await {
        ended.expect("no call was lost or refused");
    }
    expect_clean_end(&mut server).await;

    let stopped = verified.not_sent.load(Ordering::Relaxed) + created.not_sent.load(Ordering::Relaxed);
    assert_eq!(stopped, 40, "every client went on until it was told to stop");
    let written = database.query_i64("SELECT CAST(sum(verifications) AS bigint) FROM usage_rollups").await;
    assert_eq!(u64::try_from(written), Ok(verified.answered()), "usage is written to the last call");
    let keys = database.query_i64("SELECT count(*) FROM api_keys").await - keys_before;
    assert_eq!(u64::try_from(keys), Ok(created.answered()), "a key for each answer");
    let sealed = database.query_i64("SELECT count(*) FROM audit_events WHERE hash = ''").await;
    assert_eq!(sealed, 0, "audit events are sealed to the last");
}

fn copy<T: Clone>(request: &Request<T>) -> Request<T> {
    let mut copy = Request::new(request.get_ref().clone());
    *copy.metadata_mut() = request.metadata().clone();
    copy
}

store_test!(calls_in_flight_at_sigterm_are_answered_after_health_has_gone_off);
async fn calls_in_flight_at_sigterm_are_answered_after_health_has_gone_off(database: TestDatabase) {
    let mut server = Server::start(&database, PATIENT_DRAIN).await;
    let organization = create_organization(&server, "acme").await.id;
    let mut watches = Vec::new();
    for service in super::told_of() {
        let mut watch = watch(wire::one_connection(server.address()).await, &service).await;
        assert_eq!(next(&mut watch).await, ServingStatus::Serving, "{service:?}");
        watches.push((service, watch));
    }
    let channel = wire::one_connection(server.address()).await;
    let blocked = database.block_writes().await;
    let tally = Tally::default();
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let (mut keys, request) =
            (KeyServiceClient::new(channel.clone()), as_admin(&server, issuing(&organization, &[])));
        calls.spawn(async move { End::of(keys.create_key(request).await) });
    }
    // An answer on the same connection that was asked for after them: they have arrived.
    tokio::task::yield_now().await;
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.expect("an answer");

    server.sigterm();
    for (service, watch) in &mut watches {
        assert_eq!(next(watch).await, ServingStatus::NotServing, "{service:?}");
    }
    blocked.release().await;
    while let Some(end) = calls.join_next().await {
        tally.count("CreateKey", end.expect("no panic"));
    }
    assert!(tally.answered() > 0, "some were in flight");
    drop(watches);
    expect_clean_end(&mut server).await;
    let keys = database.query_i64("SELECT count(*) FROM api_keys").await - 1;
    assert_eq!(u64::try_from(keys), Ok(tally.answered()));
}

#[tokio::test]
async fn clients_that_watch_health_or_are_idle_do_not_hold_up_the_end() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let mut server = Server::start(&database, PATIENT_DRAIN).await;
    let mut watch = watch(wire::one_connection(server.address()).await, "").await;
    assert_eq!(next(&mut watch).await, ServingStatus::Serving);
    let idle = wire::one_connection(server.address()).await;
    HealthClient::new(idle.clone()).check(HealthCheckRequest::default()).await.expect("an answer");
    server.sigterm();
    assert_eq!(next(&mut watch).await, ServingStatus::NotServing);
    expect_clean_end(&mut server).await;
    drop((watch, idle));
}

#[tokio::test]
async fn an_open_reflection_stream_does_not_hold_up_the_end() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let database = TestDatabase::new(Engine::Sqlite).await;
    let mut server = Server::start(&database, PATIENT_DRAIN).await;
    let (questions, stream) = tokio::sync::mpsc::channel(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let list = tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(String::new());
    questions.send(super::question_v1(list)).await.expect("sent");
    let channel = wire::one_connection(server.address()).await;
    let mut answers =
        ServerReflectionClient::new(channel).server_reflection_info(stream).await.expect("a stream").into_inner();
    answers.message().await.expect("an answer");
    server.sigterm();
    expect_clean_end(&mut server).await;
    drop(questions);
}

store_test!(a_call_that_is_stuck_holds_up_the_end_no_longer_than_the_deadline);
async fn a_call_that_is_stuck_holds_up_the_end_no_longer_than_the_deadline(database: TestDatabase) {
    let mut server = Server::start(&database, &["--drain-timeout-ms", "300", "--control-timeout-ms", "600000"]).await;
    let organization = create_organization(&server, "acme").await.id;
    let blocked = database.block_writes().await;
    let (mut keys, request) = (server.keys(), issuing(&organization, &[]));
    let stuck = tokio::spawn(async move { keys.create_key(request).await });
    tokio::task::yield_now().await;
    assert_eq!(server.health("").await, Some(ServingStatus::Serving));
    server.sigterm();
    tokio::time::timeout(SOON, server.wait_exit()).await.expect("an end that comes in any case");
    blocked.release().await;
    stuck.abort();
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_that_takes_too_long() {
    // PostgreSQL alone, where a waiting statement can be seen.
    let database = TestDatabase::new(Engine::Postgres).await;
    let arguments = [PATIENT_DRAIN, &["--control-timeout-ms", "600000"]].concat();
    let mut server = Server::start(&database, &arguments).await;
    let organization = create_organization(&server, "acme").await.id;
    let blocked = database.block_writes().await;
    let (mut keys, request) = (server.keys(), issuing(&organization, &[]));
    let stuck = tokio::spawn(async move { keys.create_key(request).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the call to be stuck", async || database.query_i64(waiting).await > 0).await;
    server.sigterm();
    wait_until("the drain to begin", async || server.log_text().contains("draining")).await;
    server.sigterm();
    tokio::time::timeout(SOON, server.wait_exit()).await.expect("an end that is not waited for");
    blocked.release().await;
    stuck.abort();
}

#[tokio::test]
async fn ctrl_c_drains_as_sigterm_does() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let mut server = Server::start(&database, PATIENT_DRAIN).await;
    let (_, secret) = create_key(&server, crate::callers::SYSTEM, &[]).await;
    server.keys().verify_key(verifying(&secret)).await.expect("an answer");
    let sent = std::process::Command::new("sh").args(["-c", "kill -INT \"$0\"", &server.pid().to_string()]).status();
    assert!(sent.expect("sh runs").success());
    expect_clean_end(&mut server).await;
    assert_eq!(database.query_i64("SELECT CAST(sum(verifications) AS bigint) FROM usage_rollups").await, 1);
}

#[tokio::test]
async fn sigterm_before_the_database_has_answered_ends_it_too() {
    // PostgreSQL alone: SQLite never keeps the start waiting.
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut server = Server::start(&database, &[]).await;
    server.sigterm();
    expect_clean_end(&mut server).await;
    database.cut_off().await;
    let mut server = Server::launch(&database, PATIENT_DRAIN);
    server.wait_until_listening().await;
    server.sigterm();
    expect_clean_end(&mut server).await;
    database.let_back().await;
}
