//! The server as its clients and its operator meet it: health that tells the truth from the first
//! moment on, reflection, and calls that are answered whatever the database does.
//! `wire`: connections that a test controls. `messages`: what a client may send. `connections`: many calls and bad
//! peers. `drain`: the end. `hang_up`: callers who leave. `tls`: certificates. `health_parts`: what is said of the parts
//! that may be away.

mod connections;
mod drain;
mod hang_up;
mod health_parts;
mod jobs;
mod messages;
pub mod metrics;
mod tls;
mod wire;

use keystead::proto::v1::{ListOrganizationsRequest, Outcome};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_reflection::pb::v1alpha;
use tonic_types::StatusExt as _;

use crate::callers::requests::verifying;
use crate::harness::{
    Engine, Server, TestDatabase, create_key, create_organization, expect_error, rpcs, store_test, verify, wait_until,
};

/// What health tells of: everything, and each service.
fn told_of() -> Vec<String> {
    let mut names = vec![String::new()];
    names.extend(rpcs::services());
    names
}

store_test!(health_tells_of_the_whole_and_of_each_service_without_a_credential);
async fn health_tells_of_the_whole_and_of_each_service_without_a_credential(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    assert_eq!(told_of().len(), 4);
    for service in told_of() {
        assert_eq!(server.health(&service).await, Some(ServingStatus::Serving), "{service:?}");
    }
    for unknown in ["keystead.v1.Nothing", "keystead.v1", "KeyService", &"x".repeat(10_000)] {
        let request = HealthCheckRequest { service: unknown.to_owned() };
        let refused = HealthClient::new(server.channel()).check(request).await;
        expect_error(refused, Code::NotFound, "NOT_FOUND");
    }
}

/// Every rpc must say that it does not know: not that something is wrong with the caller, and nothing of the cause.
async fn expect_unavailable(server: &Server, skipped: &[&str]) {
    let bearer = format!("Bearer {}", server.admin_secret());
    for rpc in rpcs::rpcs().into_iter().filter(|rpc| !skipped.contains(&rpc.name.as_str())) {
        let result = rpcs::call(&server.channel(), &rpc.path(), Vec::new(), &[&bearer]).await;
        let Err(status) = result else {
            panic!("{} answered without a database", rpc.name);
        };
        assert_eq!(status.code(), Code::Unavailable, "{}: {status:?}", rpc.name);
        let details = status.get_error_details();
        assert!(details.error_info().is_some_and(|info| info.domain == "keystead"), "{status:?}");
        assert!(details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
        let shown = format!("{} {}", status.message(), String::from_utf8_lossy(status.details())).to_lowercase();
        for inner in ["postgres", "sql", "pool", "connection", "test_"] {
            assert!(!shown.contains(inner), "{}: {shown}", rpc.name);
        }
    }
}

#[tokio::test]
async fn it_does_not_serve_until_the_database_answers_and_then_does_without_a_restart() {
    // PostgreSQL alone: a SQLite file that cannot be opened ends the process at once.
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut server = Server::start(&database, &[]).await;
    let (_, secret) = create_key(&server, &create_organization(&server, "acme").await.id, &[]).await;
    server.sigterm();
    assert!(server.wait_exit().await.success());
    database.cut_off().await;

    let mut server = Server::launch(&database, &[]);
    server.wait_until_listening().await;
    for service in told_of() {
        assert_eq!(server.health(&service).await, Some(ServingStatus::NotServing), "{service:?}");
    }
    expect_unavailable(&server, &[]).await;
    assert_eq!(server.health("").await, Some(ServingStatus::NotServing));

    database.let_back().await;
    server.wait_until_serving().await;
    for service in told_of() {
        assert_eq!(server.health(&service).await, Some(ServingStatus::Serving), "{service:?}");
    }
    assert_eq!(verify(&server, &secret).await.outcome(), Outcome::Valid);
    create_organization(&server, "beta").await;
}

#[tokio::test]
async fn while_the_database_is_away_the_control_plane_says_that_it_does_not_know() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let server = Server::start(&database, &[]).await;
    create_organization(&server, "acme").await;
    database.cut_off().await;
    // Verification may go on from the cache for a while; the control plane may not.
    expect_unavailable(&server, &["KeyService/VerifyKey", "KeyService/BatchVerifyKeys"]).await;
    let unknown = server.keys().verify_key(verifying(&format!("pk_live_{}", "7".repeat(43)))).await;
    let code = unknown.as_ref().err().map(Status::code);
    assert_eq!(code, Some(Code::Unavailable), "what is not known is not denied: {unknown:?}");
    database.let_back().await;
    wait_until("the control plane to answer again", async || {
        server.organizations().list_organizations(ListOrganizationsRequest::default()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_database_that_lacks_migrations_is_refused_with_what_to_do() {
    // PostgreSQL alone: on SQLite migrations always run.
    let database = TestDatabase::new(Engine::Postgres).await;
    let up = crate::harness::cli::on_database(&database, &["init"]);
    assert_eq!(up.code, 0);
    let down = crate::harness::cli::on_database(&database, &["migrate", "down", "--yes"]);
    assert_eq!(down.code, 0, "{down:?}");
    let refused = crate::harness::cli::on_database(&database, &["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("keystead migrate up"), "{refused:?}");
}

fn question_v1(message: MessageRequest) -> ServerReflectionRequest {
    ServerReflectionRequest { host: String::new(), message_request: Some(message) }
}

async fn reflect_v1(server: &Server, message: MessageRequest) -> Result<Option<ServerReflectionResponse>, Status> {
    let questions = tokio_stream::once(question_v1(message));
    let answers = ServerReflectionClient::new(server.channel()).server_reflection_info(questions).await?;
    answers.into_inner().message().await
}

async fn services_v1(server: &Server) -> Result<Vec<String>, Status> {
    let answer = reflect_v1(server, MessageRequest::ListServices(String::new())).await?;
    match answer.and_then(|answer| answer.message_response) {
        Some(MessageResponse::ListServicesResponse(list)) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => panic!("not a list of services: {other:?}"),
    }
}

async fn services_v1alpha(server: &Server) -> Result<Vec<String>, Status> {
    use v1alpha::server_reflection_request::MessageRequest as Question;
    use v1alpha::server_reflection_response::MessageResponse as Answer;
    let question = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(Question::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel());
    let answers = client.server_reflection_info(tokio_stream::once(question)).await?;
    match answers.into_inner().message().await?.and_then(|answer| answer.message_response) {
        Some(Answer::ListServicesResponse(list)) => Ok(list.service.into_iter().map(|service| service.name).collect()),
        other => panic!("not a list of services: {other:?}"),
    }
}

#[tokio::test]
async fn reflection_lists_every_service_in_both_of_its_versions_without_a_credential() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, &[]).await;
    let mut expected = rpcs::services();
    expected.push("grpc.health.v1.Health".to_owned());
    for listed in [services_v1(&server).await, services_v1alpha(&server).await] {
        let listed = listed.expect("a list");
        for service in &expected {
            assert!(listed.contains(service), "{service} is not in {listed:?}");
        }
    }
    let symbol = MessageRequest::FileContainingSymbol("keystead.v1.KeyService".to_owned());
    let answer = reflect_v1(&server, symbol).await.expect("an answer").and_then(|answer| answer.message_response);
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
}

#[tokio::test]
async fn reflection_can_be_closed() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, &["--reflection", "false"]).await;
    for listed in [services_v1(&server).await, services_v1alpha(&server).await] {
        let status = listed.expect_err("closed");
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    }
    assert_eq!(server.health("").await, Some(ServingStatus::Serving));
    create_organization(&server, "acme").await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_refused_with_its_name() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let server = Server::start(&database, &[]).await;
    let address = server.address().to_string();
    let refused = crate::harness::cli::on_database(&database, &["serve", "--listen", &address]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains(&address), "{refused:?}");
}
