//! The page of metrics and the probes, read over a plain socket as a scraper does.
//! Invariant: every metric that `docs/operations.md` names exists and counts what happened, and nothing that a client
//! sent stands in the page.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use keystead::proto::v1::{CreateKeyRequest, Environment, GetKeyRequest, RateLimit, VerifyKeyRequest};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::rpcs;
use crate::harness::{Engine, Server, TestDatabase, cli, create_key, create_organization, verify, wait_until};
use crate::structure::document;

const METRICS: &[&str] = &["--metrics-listen", "127.0.0.1:0"];

/// Sends bytes and reads until the peer closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A peer that closes on us in the middle has said all it will.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status and the body of a GET.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// The value of a series, written as in the page.
pub fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

#[tokio::test]
async fn the_page_counts_what_happened() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, METRICS).await;
    let address = server.metrics_address();
    let organization = create_organization(&server, "acme").await.id;
    let (key, secret) = create_key(&server, &organization, &[]).await;
    for _ in 0..3 {
        verify(&server, &secret).await;
    }
    verify(&server, "nonsense").await;
    let missing = GetKeyRequest { key_id: organization.clone() };
    server.keys().get_key(missing).await.expect_err("no such key");
    let unknown = rpcs::call(&server.channel(), "/keystead.v1.KeyService/pk_live_Typed", Vec::new(), &[]).await;
    unknown.expect_err("no such method");
    let (_, page) = get(address, "/metrics").await;
    let method = |name: &str, code: &str| {
        value(&page, &format!("keystead_calls_total{{method=\"keystead.v1.{name}\",code=\"{code}\"}}"))
    };
    assert_eq!(method("KeyService/VerifyKey", "OK"), Some(4.0), "{page}");
    assert_eq!(method("KeyService/GetKey", "NOT_FOUND"), Some(1.0));
    assert_eq!(method("KeyService/RotateKey", "OK"), Some(0.0));
    let unknown = "keystead_calls_total{method=\"(unknown)\",code=\"UNIMPLEMENTED\"}";
    assert_eq!(value(&page, unknown), Some(1.0));
    assert_eq!(value(&page, "keystead_verifications_total{outcome=\"VALID\"}"), Some(3.0));
    assert_eq!(value(&page, "keystead_verifications_total{outcome=\"NOT_FOUND\"}"), Some(1.0));
    let count = "keystead_call_duration_seconds_count{class=\"verification\"}";
    assert_eq!(value(&page, count), Some(4.0));
    let all = "keystead_call_duration_seconds_bucket{le=\"+Inf\",class=\"verification\"}";
    assert_eq!(value(&page, all), Some(4.0));
    assert_eq!(value(&page, "keystead_ready"), Some(1.0));
    for text in [secret.as_str(), server.admin_secret(), &key.id, &organization, "Typed", "nonsense"] {
        assert!(!page.contains(text), "{text} is in the page");
    }
    wait_until("each job to have run", async || {
        let (_, page) = get(address, "/metrics").await;
        ["usage", "limits", "audit", "pruning", "expire", "refill", "retention"].iter().all(|job| {
            let of = |metric: &str| value(&page, &format!("keystead_job_{metric}{{job=\"{job}\"}}"));
            of("runs_total") >= Some(1.0)
                && of("failures_total") == Some(0.0)
                && of("last_success_timestamp_seconds") > Some(1e9)
        })
    })
    .await;
}

#[tokio::test]
async fn the_page_shows_what_cache_limits_and_spool_hold() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let server = Server::start(&database, METRICS).await;
    let address = server.metrics_address();
    let organization = create_organization(&server, "acme").await.id;
    let rate_limits = vec![RateLimit { name: "long".to_owned(), limit: 9, window: Some(seconds(3600)), shadow: false }];
    let new = CreateKeyRequest {
        organization_id: organization,
        name: "limited".to_owned(),
        environment: Environment::Live.into(),
        rate_limits,
        ..Default::default()
    };
    let secret = server.keys().create_key(new).await.expect("a key").into_inner().secret;
    verify(&server, &secret).await;
    verify(&server, "nonsense").await;
    let (_, page) = get(address, "/metrics").await;
    // The caller's own key is in the cache too.
    for (series, expected) in
        [("cache_keys", 2.0), ("cache_unknown", 1.0), ("limiter_meters", 1.0), ("usage_spool_failing", 0.0)]
    {
        assert_eq!(value(&page, &format!("keystead_{series}")), Some(expected), "{series}: {page}");
    }
    assert!(value(&page, "keystead_cache_queries") >= Some(3.0), "{page}");
    database.cut_off().await;
    wait_until("usage to wait in the spool", async || {
        // From the cache, as long as it may be; what is answered or not does not matter here.
        let _ = server.keys().verify_key(VerifyKeyRequest { secret: secret.clone(), ..Default::default() }).await;
        let (_, page) = get(address, "/metrics").await;
        value(&page, "keystead_usage_spool_segments") >= Some(1.0)
            && value(&page, "keystead_usage_spool_bytes") > Some(0.0)
    })
    .await;
    database.let_back().await;
    wait_until("the spool to be empty again", async || {
        value(&get(address, "/metrics").await.1, "keystead_usage_spool_segments") == Some(0.0)
    })
    .await;
}

const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Names in a row of a table that begin with `keystead_`.
fn documented() -> BTreeSet<String> {
    let document = document("docs/operations.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `keystead_"));
    rows.filter_map(|row| row.split(['`', '{']).next()).map(|name| format!("keystead_{name}")).collect()
}

#[tokio::test]
async fn the_documented_metrics_are_those_of_the_page() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, METRICS).await;
    let address = server.metrics_address();
    wait_until("a job to have run", async || get(address, "/metrics").await.1.contains("job_runs_total{")).await;
    let (_, page) = get(address, "/metrics").await;
    assert!(page.ends_with("# EOF\n"));
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: BTreeSet<String> = types
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect();
    assert_eq!(shown, documented());
}

#[tokio::test]
async fn probes_follow_health_and_nothing_else_is_served() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut before = Server::start(&database, &[]).await;
    before.sigterm();
    assert!(before.wait_exit().await.success());
    database.cut_off().await;
    let mut server = Server::launch(&database, METRICS);
    server.wait_until_listening().await;
    let address = server.metrics_address();
    assert_eq!(get(address, "/livez").await.0, 200);
    assert_eq!(get(address, "/readyz").await.0, 503);
    database.let_back().await;
    server.wait_until_serving().await;
    wait_until("readiness", async || get(address, "/readyz").await.0 == 200).await;
    assert_eq!(get(address, "/").await.0, 404);
    assert_eq!(get(address, "/metrics/../metrics").await.0, 404);
    let post = exchange(address, "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    let long = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    assert!(!exchange(address, &long).await.contains("200 OK"), "a head beyond the bound is not read");
    // Closed within the bound though it says nothing: the read ends.
    assert_eq!(exchange(address, "GET /metrics").await.find("200 OK"), None);
}

#[tokio::test]
async fn an_address_for_metrics_that_is_taken_is_refused_with_what_to_do() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let server = Server::start(&database, METRICS).await;
    let address = server.metrics_address().to_string();
    let command = ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", &address];
    let refused = cli::on_database(&database, &command);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains(&address) && refused.stderr.contains("--metrics-listen"), "{refused:?}");
}
