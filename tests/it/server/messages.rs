//! What a client may send: messages up to their bound, that are messages, to methods that exist. Everything else gets
//! a status with its details, and the connection goes on.

use std::time::{self, Instant};

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::get_organization_request::Selector;
use keystead::proto::v1::usage_stats_request::Subject;
use keystead::proto::v1::{
    BatchVerifyKeysRequest, CreateKeyRequest, GetOrganizationRequest, Outcome, ReportUsageRequest, UsageRecord,
    UsageStatsRequest, VerifyKeyRequest, VerifyKeyResponse,
};
use prost::Message as _;
use prost::bytes::Bytes;
use prost_types::{Duration, Timestamp};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::wire;
use crate::callers::requests::issuing;
use crate::harness::{Engine, Server, TestDatabase, contains, create_organization, expect_error, rpcs, wait_until};

const SINGLE_MAX: usize = 65_536;
const BATCH_MAX: usize = 1_048_576;
const BATCHES: &[&str] = &["KeyService/BatchVerifyKeys", "KeyService/ImportKeys", "KeyService/ReportUsage"];

async fn sqlite_server(arguments: &[&str]) -> (TestDatabase, Server) {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, arguments).await;
    (database, server)
}

/// Bytes that every message takes, exactly so many: a field that no message knows, which protobuf has to skip.
fn unknown_field(length: usize) -> Vec<u8> {
    // Field 2047, length-delimited: a tag of two bytes, then the length.
    for bytes_of_length in 1..=4 {
        let payload = length - 2 - bytes_of_length;
        let mut message = vec![0xfa, 0x7f];
        prost::encoding::encode_varint(payload as u64, &mut message);
        message.resize(message.len() + payload, b'x');
        if message.len() == length {
            return message;
        }
    }
    panic!("no message of {length} bytes");
}

#[tokio::test]
async fn a_message_of_the_largest_size_is_read_and_one_byte_more_is_refused() {
    let (_database, server) = sqlite_server(&[]).await;
    let channel = wire::one_connection(server.address()).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    for rpc in rpcs::rpcs() {
        let bound = if BATCHES.contains(&rpc.name.as_str()) { BATCH_MAX } else { SINGLE_MAX };
        let fits = rpcs::call(&channel, &rpc.path(), unknown_field(bound), &[&bearer]).await;
        let reason = fits.err().and_then(|status| status.get_details_error_info()).map(|info| info.reason);
        assert_ne!(reason.as_deref(), Some("MESSAGE_TOO_LARGE"), "{}", rpc.name);
        for length in [bound + 1, bound * 4] {
            let refused = rpcs::call(&channel, &rpc.path(), unknown_field(length), &[&bearer]).await;
            expect_error(refused, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
        }
    }
    // All of it on one connection, which still works.
    let request = VerifyKeyRequest { secret: "x".repeat(60_000), ..Default::default() }.encode_to_vec();
    rpcs::call(&channel, "/keystead.v1.KeyService/VerifyKey", request, &[&bearer]).await.expect("an answer");
}

#[tokio::test]
async fn the_bounds_of_messages_can_be_set() {
    let (_database, server) = sqlite_server(&["--message-bytes-max", "2000", "--batch-bytes-max", "4000"]).await;
    let channel = server.channel();
    let bearer = format!("Bearer {}", server.admin_secret());
    for (rpc, length, too_large) in [
        ("KeyService/VerifyKey", 2000, false),
        ("KeyService/VerifyKey", 2001, true),
        ("KeyService/ReportUsage", 4000, false),
        ("KeyService/ReportUsage", 4001, true),
    ] {
        let result = rpcs::call(&channel, &rpcs::path_of(rpc), unknown_field(length), &[&bearer]).await;
        let reason = result.err().and_then(|status| status.get_details_error_info()).map(|info| info.reason);
        assert_eq!(reason.as_deref() == Some("MESSAGE_TOO_LARGE"), too_large, "{rpc}, {length}: {reason:?}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_by_every_rpc_and_the_connection_goes_on() {
    let (_database, server) = sqlite_server(&[]).await;
    let channel = wire::one_connection(server.address()).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let malformed: [&[u8]; 5] = [
        &[0xff],
        // Field 1 says that it has 100 bytes, and has one.
        &[0x0a, 100, b'x'],
        // Field 1 as a varint that does not end.
        &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        // A group that is never closed.
        &[0x0b],
        // Field 0 does not exist.
        &[0x02, 0],
    ];
    for rpc in rpcs::rpcs() {
        for bytes in malformed {
            let refused = rpcs::call(&channel, &rpc.path(), bytes.to_vec(), &[&bearer]).await;
            expect_error(refused, Code::InvalidArgument, "MALFORMED_MESSAGE");
        }
    }
    // Text that is not UTF-8, in a field that is text.
    let refused =
        rpcs::call(&channel, "/keystead.v1.KeyService/VerifyKey", vec![0x0a, 2, 0xc3, 0x28], &[&bearer]).await;
    expect_error(refused, Code::InvalidArgument, "MALFORMED_MESSAGE");
    rpcs::call(&channel, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer]).await.expect("an answer");
}

#[tokio::test]
async fn what_a_refused_message_held_is_in_no_answer() {
    let (_database, server) = sqlite_server(&[]).await;
    let secret = server.admin_secret();
    // A valid secret, and then a field that is cut: the decoder must not quote what it has read.
    let mut bytes = VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() }.encode_to_vec();
    bytes.extend([0x12, 100]);
    let refused =
        rpcs::call(&server.channel(), "/keystead.v1.KeyService/VerifyKey", bytes, &[&format!("Bearer {secret}")])
            .await
            .expect_err("malformed");
    let shown = [refused.message().as_bytes(), refused.details()].concat();
    assert!(!contains(&shown, secret.as_bytes()), "{refused:?}");
}

#[tokio::test]
async fn methods_and_services_that_do_not_exist_are_unimplemented_with_details() {
    let (_database, server) = sqlite_server(&[]).await;
    let channel = wire::one_connection(server.address()).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    for path in [
        "/keystead.v1.KeyService/Nothing",
        "/keystead.v1.KeyService/verifyKey",
        "/keystead.v1.KeyService/VerifyKey/more",
        "/keystead.v1.KeyService/",
        "/keystead.v2.KeyService/VerifyKey",
        "/no.such.Service/Method",
        "/",
        "/keystead.v1.KeyService/%00%1b[31m",
    ] {
        for headers in [vec![bearer.as_str()], vec![]] {
            let refused = rpcs::call(&channel, path, Vec::new(), &headers).await;
            expect_error(refused, Code::Unimplemented, "UNKNOWN_METHOD");
        }
    }
    assert!(!server.logs().contains(&0x1b), "nothing of a path reaches a terminal raw");
}

#[tokio::test]
async fn every_answer_that_has_a_line_in_the_log_carries_its_request_id() {
    let (_database, server) = sqlite_server(&["--log-level", "debug"]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let mut seen = Vec::new();
    for (path, headers) in [
        ("/keystead.v1.KeyService/VerifyKey", vec![bearer.as_str()]),
        ("/keystead.v1.KeyService/GetKey", vec![bearer.as_str()]),
        ("/keystead.v1.KeyService/VerifyKey", vec![]),
        ("/keystead.v1.KeyService/Nothing", vec![]),
    ] {
        let result = rpcs::call(&server.channel(), path, Vec::new(), &headers).await;
        let metadata = match &result {
            Ok(response) => response.metadata(),
            Err(status) => status.metadata(),
        };
        let id = metadata.get("x-request-id").expect("a request id").to_str().expect("text").to_owned();
        assert!(server.log_text().contains(&id) || !seen.contains(&id));
        assert!(!seen.contains(&id), "{id}");
        seen.push(id);
    }
}

#[tokio::test]
async fn an_answered_verification_has_no_line_and_no_request_id_unless_they_are_asked_for() {
    let (_database, server) = sqlite_server(&[]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let path = "/keystead.v1.KeyService/VerifyKey";
    let answered = rpcs::call(&server.channel(), path, Vec::new(), &[&bearer]).await.expect("an answer");
    assert_eq!(answered.metadata().get("x-request-id"), None);
    let refused = rpcs::call(&server.channel(), path, Vec::new(), &[]).await.expect_err("no caller");
    let id = refused.metadata().get("x-request-id").expect("a request id").to_str().expect("text").to_owned();
    wait_until("the refusal to be logged", async || server.log_text().contains(&id)).await;
    assert_eq!(server.log_text().matches("KeyService/VerifyKey").count(), 1);
}

#[tokio::test]
async fn headers_beyond_their_bound_are_refused_and_the_server_goes_on() {
    let (_database, server) = sqlite_server(&[]).await;
    let mut request = Request::new(Vec::new());
    let value: MetadataValue<_> = "x".repeat(60_000).parse().expect("ASCII");
    request.metadata_mut().insert("x-large", value);
    let channel = wire::one_connection(server.address()).await;
    let refused = rpcs::call_with(&channel, "/keystead.v1.KeyService/VerifyKey", request).await;
    assert!(refused.is_err(), "{refused:?}");
    let bearer = format!("Bearer {}", server.admin_secret());
    rpcs::call(&server.new_channel(), "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer])
        .await
        .expect("others are served");
}

#[tokio::test]
async fn two_members_of_a_oneof_are_refused_and_not_one_of_them_taken() {
    let (_database, server) = sqlite_server(&[]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let organization = create_organization(&server, "acme").await.id;
    let time = Some(Lifetime::ExpireTime(Timestamp { seconds: 4_000_000_000, nanos: 0 }));
    let span = Some(Lifetime::Ttl(Duration { seconds: 60, nanos: 0 }));
    let subject = |subject| UsageStatsRequest { subject: Some(subject), ..Default::default() }.encode_to_vec();
    let selector = |selector| GetOrganizationRequest { selector: Some(selector) }.encode_to_vec();
    // Messages one after the other are one message on the wire, with the fields of both.
    for (rpc, bytes) in [
        (
            "KeyService/CreateKey",
            [
                CreateKeyRequest { lifetime: time, ..issuing(&organization, &[]) }.encode_to_vec(),
                CreateKeyRequest { lifetime: span, ..Default::default() }.encode_to_vec(),
            ],
        ),
        (
            "KeyService/UsageStats",
            [subject(Subject::OrganizationId(organization.clone())), subject(Subject::KeyId(organization.clone()))],
        ),
        (
            "OrganizationService/GetOrganization",
            [selector(Selector::OrganizationId(organization.clone())), selector(Selector::Slug("acme".to_owned()))],
        ),
    ] {
        let result = rpcs::call(&server.channel(), &rpcs::path_of(rpc), bytes.concat(), &[&bearer]).await;
        let code = result.as_ref().err().map(tonic::Status::code);
        assert_eq!(code, Some(Code::InvalidArgument), "{rpc}: {result:?}");
    }
}

#[tokio::test]
async fn a_batch_of_the_largest_size_is_read_before_it_is_judged() {
    let (_database, server) = sqlite_server(&[]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let requests = vec![VerifyKeyRequest { secret: "x".repeat(900), ..Default::default() }; 1000];
    let batch = BatchVerifyKeysRequest { requests }.encode_to_vec();
    let record = UsageRecord { request_id: "r".repeat(100), error_message: "e".repeat(800), ..Default::default() };
    let report = ReportUsageRequest { records: vec![record; 1000] }.encode_to_vec();
    for (rpc, bytes) in [("KeyService/BatchVerifyKeys", batch), ("KeyService/ReportUsage", report)] {
        assert!((SINGLE_MAX..BATCH_MAX).contains(&bytes.len()));
        rpcs::call(&server.channel(), &rpcs::path_of(rpc), bytes, &[&bearer]).await.expect("an answer");
    }
}

/// A call of `VerifyKey` on a connection of h2 itself: these bytes are sent, and the end of the body if `ended`. Gives
/// the answer, and the body of the request, which is reset when it is dropped.
async fn begin_verify(
    sender: &mut h2::client::SendRequest<Bytes>,
    server: &Server,
    bytes: &[u8],
    ended: bool,
) -> (http::Response<h2::RecvStream>, h2::SendStream<Bytes>) {
    let request = http::Request::post(format!("http://{}/keystead.v1.KeyService/VerifyKey", server.address()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", server.admin_secret()));
    let (answer, mut body) = sender.send_request(request.body(()).expect("a request"), false).expect("sent");
    if !bytes.is_empty() {
        body.send_data(Bytes::copy_from_slice(bytes), ended).expect("sent");
    }
    let answer = tokio::time::timeout(time::Duration::from_mins(1), answer).await.expect("an answer in time");
    (answer.expect("an answer"), body)
}

#[tokio::test]
async fn a_verify_key_whose_body_never_ends_is_given_up() {
    const OWN_TIME: time::Duration = time::Duration::from_millis(500);
    let (_database, server) = sqlite_server(&["--verify-timeout-ms", "500"]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    wait_until("the caller to be cached", async || {
        let path = "/keystead.v1.KeyService/VerifyKey";
        rpcs::call(&server.channel(), path, Vec::new(), &[&bearer]).await.is_ok()
    })
    .await;
    let message = VerifyKeyRequest { secret: "\n".to_owned(), ..Default::default() }.encode_to_vec();
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let whole = [&[0_u8][..], &length[..], &message[..]].concat();
    let stream = TcpStream::connect(server.address()).await.expect("the server accepts");
    let (mut sender, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::spawn(connection);
    // Nothing, a part of the prefix, and all but the last byte.
    for sent in [0, 3, whole.len() - 1] {
        sender = sender.ready().await.expect("the connection goes on");
        let begun = Instant::now();
        let (answer, _unended) = begin_verify(&mut sender, &server, &whole[..sent], false).await;
        assert!(begun.elapsed() >= OWN_TIME, "after {:?}, with {sent} bytes", begun.elapsed());
        let status = Status::from_header_map(answer.headers()).expect("a refusal without a message");
        let details = expect_error::<()>(Err(status), Code::Unavailable, "TIMED_OUT");
        assert!(details.retry_info().is_some());
    }
    sender = sender.ready().await.expect("the connection goes on");
    let (answer, _ended) = begin_verify(&mut sender, &server, &whole, true).await;
    let mut answer = answer.into_body();
    let message = answer.data().await.expect("a message").expect("all of it");
    let trailers = answer.trailers().await.expect("an end").expect("trailers");
    assert_eq!(Status::from_header_map(&trailers).expect("a status").code(), Code::Ok);
    let answer = VerifyKeyResponse::decode(&message[5..]).expect("a decision");
    assert_eq!(answer.outcome(), Outcome::NotFound);
}
