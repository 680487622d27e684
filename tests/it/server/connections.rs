//! Connections, honest and other: ten thousand calls in flight on one connection are all
//! answered, refused ones too; peers that stay silent, stop half-way or speak something else are closed within the
//! handshake's bound; a flood of invalid streams ends its connection and no other.

use std::time::Duration;

use keystead::proto::v1::Outcome;
use keystead::proto::v1::key_service_client::KeyServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::{Code, Request};

use super::wire::{self, End};
use crate::callers::SYSTEM;
use crate::callers::requests::verifying;
use crate::harness::{Engine, Server, TestDatabase, create_key, rpcs, wait_until};

/// Far below every other bound (keepalive 30 s and 20 s), far above the handshake's.
const SOON: Duration = Duration::from_secs(20);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn sqlite_server(arguments: &[&str]) -> (TestDatabase, Server) {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, arguments).await;
    (database, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_in_flight_on_one_connection_are_all_answered() {
    let (_database, server) = sqlite_server(QUIET).await;
    let mut created = Vec::new();
    for _ in 0..8 {
        created.push(create_key(&server, SYSTEM, &[]).await);
    }
    let channel = wire::one_connection(server.address()).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let mut calls = JoinSet::new();
    for at in 0..10_000 {
        let (key, secret) = &created[at % created.len()];
        let mut keys = KeyServiceClient::new(channel.clone());
        let mut request = Request::new(verifying(secret));
        request.metadata_mut().insert("authorization", bearer.parse().expect("ASCII"));
        let id = key.id.clone();
        calls.spawn(async move { (id, End::of(keys.verify_key(request).await)) });
    }
    let mut answered = 0;
    while let Some(call) = calls.join_next().await {
        match call.expect("no panic") {
            (id, End::Answered(Ok(answer))) => {
                let answer = answer.into_inner();
                assert_eq!((answer.outcome(), answer.key_id), (Outcome::Valid, id), "each is told of its own key");
            }
            (_, other) => panic!("after {answered} answers: {other:?}"),
        }
        answered += 1;
    }
    assert_eq!(answered, 10_000);
}

/// Calls that are refused, many at once on one connection: each must be told, whatever the refusal comes from.
async fn expect_refused(server: &Server, count: usize, path: &'static str, request: Vec<u8>, code: Code) {
    let channel = wire::one_connection(server.address()).await;
    let mut calls = JoinSet::new();
    for _ in 0..count {
        let (channel, request) = (channel.clone(), request.clone());
        calls.spawn(async move { End::of(rpcs::call(&channel, path, request, &[]).await) });
    }
    let mut answered = 0;
    while let Some(end) = calls.join_next().await {
        match end.expect("no panic") {
            End::Answered(Err(status)) => assert_eq!(status.code(), code, "{status:?}"),
            other => panic!("{path}, after {answered} answers: {other:?}"),
        }
        answered += 1;
    }
    assert_eq!(answered, count);
}

const QUIET: &[&str] = &["--log-level", "warn,keystead::app=info", "--verify-timeout-ms", "60000"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_unauthenticated_calls_in_flight_on_one_connection_are_all_answered() {
    let (_database, server) = sqlite_server(QUIET).await;
    let request = prost::Message::encode_to_vec(&verifying("x"));
    expect_refused(&server, 10_000, "/keystead.v1.KeyService/VerifyKey", request, Code::Unauthenticated).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_of_unknown_methods_in_flight_on_one_connection_are_all_answered() {
    let (_database, server) = sqlite_server(QUIET).await;
    let request = prost::Message::encode_to_vec(&verifying("x"));
    expect_refused(&server, 10_000, "/keystead.v1.KeyService/Nothing", request.clone(), Code::Unimplemented).await;
    expect_refused(&server, 10_000, "/no.such.Service/Nothing", request, Code::Unimplemented).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_malformed_calls_in_flight_on_one_connection_are_all_answered() {
    let (_database, server) = sqlite_server(QUIET).await;
    expect_refused(&server, 5000, "/keystead.v1.KeyService/VerifyKey", vec![0xff; 20], Code::InvalidArgument).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_too_large_calls_in_flight_on_one_connection_are_all_answered() {
    let (_database, server) = sqlite_server(QUIET).await;
    let request = prost::Message::encode_to_vec(&verifying(&"x".repeat(70_000)));
    expect_refused(&server, 2000, "/keystead.v1.KeyService/VerifyKey", request, Code::InvalidArgument).await;
}

/// Whether the server closes the connection soon after these bytes.
async fn is_closed_after(server: &Server, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(server.address()).await.expect("the server accepts");
    // It may have been closed while this was on its way.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    // Ends at the end of the stream, or with a reset.
    tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.is_ok()
}

#[tokio::test]
async fn peers_that_are_silent_stop_half_way_or_speak_something_else_are_closed_within_the_bound() {
    let (_database, server) = sqlite_server(&["--handshake-timeout-ms", "300"]).await;
    let kinds: [(&str, &[u8]); 7] = [
        ("silent", b""),
        ("one byte", b"P"),
        ("half the preface", &PREFACE[..12]),
        ("all but one byte of it", &PREFACE[..23]),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("TLS", &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("garbage", &[0xff; 1000]),
    ];
    for (what, bytes) in kinds {
        assert!(is_closed_after(&server, bytes).await, "a peer is kept: {what}");
    }
}

#[tokio::test]
async fn a_hundred_silent_peers_keep_nobody_out() {
    let (_database, server) = sqlite_server(&["--handshake-timeout-ms", "60000"]).await;
    let mut silent = Vec::new();
    for at in 0..300 {
        let mut stream = TcpStream::connect(server.address()).await.expect("the server accepts");
        stream.write_all(&PREFACE[..at % 24]).await.expect("written");
        silent.push(stream);
    }
    let channel = wire::one_connection(server.address()).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    rpcs::call(&channel, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer]).await.expect("an answer");
}

#[tokio::test]
async fn silent_peers_do_not_hold_up_the_end() {
    let (_database, mut server) =
        sqlite_server(&["--handshake-timeout-ms", "60000", "--drain-timeout-ms", "3600000"]).await;
    let mut silent = Vec::new();
    for bytes in [b"".as_slice(), &PREFACE[..5], &PREFACE[..23]] {
        let mut stream = TcpStream::connect(server.address()).await.expect("the server accepts");
        stream.write_all(bytes).await.expect("written");
        silent.push(stream);
    }
    server.sigterm();
    let status = tokio::time::timeout(SOON, server.wait_exit()).await.expect("an end that nobody holds up");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_closed_and_does_not_hold_up_the_end() {
    let (_database, mut server) = sqlite_server(&[
        "--keepalive-interval-ms",
        "200",
        "--keepalive-timeout-ms",
        "200",
        "--drain-timeout-ms",
        "3600000",
    ])
    .await;
    // A whole handshake, and then nothing: a machine that was switched off.
    let hello = [PREFACE, EMPTY_SETTINGS].concat();
    assert!(is_closed_after(&server, &hello).await, "a dead peer is kept for ever");
    let mut dead = TcpStream::connect(server.address()).await.expect("the server accepts");
    dead.write_all(&hello).await.expect("written");
    server.sigterm();
    let status = tokio::time::timeout(SOON, server.wait_exit()).await.expect("an end that nobody holds up");
    assert_eq!(status.code(), Some(0));
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn a_flood_of_invalid_streams_ends_its_connection_and_no_other() {
    let (_database, server) = sqlite_server(&[]).await;
    let honest = wire::one_connection(server.address()).await;
    let mut stream = TcpStream::connect(server.address()).await.expect("the server accepts");
    stream.write_all(&[PREFACE, EMPTY_SETTINGS].concat()).await.expect("written");
    let (mut reading, mut writing) = stream.into_split();
    let flood = tokio::spawn(async move {
        for at in 0..1_000_000_u32 {
            // A request without a path: malformed, so the server has to reset the stream. HPACK: `:method GET`.
            let bytes = frame(1, 0x5, 2 * at + 1, &[0x82]);
            if writing.write_all(&bytes).await.is_err() {
                return at;
            }
        }
        u32::MAX
    });
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(SOON, reading.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "the flood goes on for ever");
    let sent = flood.await.expect("no panic");
    assert!(sent < 1_000_000, "the connection took every one of them");
    let bearer = format!("Bearer {}", server.admin_secret());
    rpcs::call(&honest, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer]).await.expect("an answer");
}

// Linux alone, where `prlimit` (util-linux) lowers a running process's limit.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_runs_out_of_descriptors_pauses_and_recovers() {
    let (_database, server) = sqlite_server(&["--handshake-timeout-ms", "60000"]).await;
    let bearer = format!("Bearer {}", server.admin_secret());
    let honest = wire::one_connection(server.address()).await;
    rpcs::call(&honest, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer]).await.expect("an answer");
    let limit = std::process::Command::new("prlimit")
        .args(["--pid", &server.pid().to_string(), "--nofile=60:60"])
        .status()
        .expect("prlimit (util-linux) runs");
    assert!(limit.success());
    let mut peers = Vec::new();
    for _ in 0..100 {
        peers.push(TcpStream::connect(server.address()).await.expect("the system's queue takes it"));
    }
    let refusals = || server.log_text().matches("could not be accepted").count();
    wait_until("descriptors to run out", async || refusals() > 0).await;
    rpcs::call(&honest, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer])
        .await
        .expect("an established connection goes on");
    let (before, begun) = (refusals(), std::time::Instant::now());
    wait_until("some more refusals", async || refusals() >= before + 5).await;
    let (more, passed) = (refusals() - before, begun.elapsed());
    let most = usize::try_from(passed.as_millis() / 100 + 2).expect("small");
    assert!(more <= most, "{more} refusals in {passed:?}: the loop does not pause");
    drop(peers);
    wait_until("new connections to be served again", async || {
        let channel = server.new_channel();
        rpcs::call(&channel, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer]).await.is_ok()
    })
    .await;
}
