//! TLS with files that each test makes for itself: a server certificate, client certificates that are required where a
//! CA for them is named, files that change under a running server, and files that are bad.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::cli::{self, Ran};
use crate::harness::{Engine, Server, TestDatabase, keystead_command, rpcs, wait_until};

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for localhost, and its key.
    fn issue(&self) -> (String, String) {
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.expect("parameters").signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// The PEM files of one server.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    folder: PathBuf,
}

impl Files {
    fn new(database: &TestDatabase) -> Self {
        let at = |name| database.folder().join(name);
        Self {
            certificate: at("server.pem"),
            key: at("server.key"),
            client_ca: at("clients.pem"),
            folder: database.folder().to_owned(),
        }
    }

    fn write(&self, (certificate, key): &(String, String)) {
        fs::write(&self.certificate, certificate).expect("written");
        fs::write(&self.key, key).expect("written");
    }

    fn arguments(&self) -> Vec<&str> {
        vec!["--tls-certificate", text(&self.certificate), "--tls-key", text(&self.key)]
    }

    fn arguments_with_client_ca(&self) -> Vec<&str> {
        [self.arguments(), vec!["--tls-client-ca", text(&self.client_ca)]].concat()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A new connection to the server that trusts this CA, with a client's certificate or without; `None` where there is
/// none to be had, or no call comes through.
async fn connect(server: &Server, ca: &str, identity: Option<&(String, String)>) -> Option<Channel> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address())).expect("a URI");
    let channel = endpoint.tls_config(tls).expect("a TLS configuration").connect().await.ok()?;
    // With TLS 1.3 a client learns only now that its certificate was refused.
    HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.ok()?;
    Some(channel)
}

async fn is_serving(channel: &Channel) -> bool {
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving)
}

/// A server with TLS, which serves.
async fn serving(database: &TestDatabase, arguments: &[&str], ca: &str, identity: Option<&(String, String)>) -> Server {
    let mut server = Server::launch(database, arguments);
    server.wait_until_listening().await;
    wait_until("health to say SERVING over TLS", async || match connect(&server, ca, identity).await {
        Some(channel) => is_serving(&channel).await,
        None => false,
    })
    .await;
    server
}

async fn verify_empty(server: &Server, channel: &Channel) -> bool {
    let bearer = format!("Bearer {}", server.admin_secret());
    rpcs::call(channel, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[&bearer]).await.is_ok()
}

fn health_command(server: &Server, arguments: &[&str]) -> Ran {
    let mut command = cli::bare();
    command.args(["health", "--address", &format!("https://{}", server.address())]).args(arguments);
    cli::run(command, "")
}

#[tokio::test]
async fn calls_go_over_tls_to_a_client_that_trusts_the_certificate_and_to_no_other() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let (ca, other) = (Authority::new("ours"), Authority::new("another"));
    let files = Files::new(&database);
    files.write(&ca.issue());
    let server = serving(&database, &files.arguments(), &ca.pem, None).await;
    let channel = connect(&server, &ca.pem, None).await.expect("a connection");
    assert!(verify_empty(&server, &channel).await);
    assert!(connect(&server, &other.pem, None).await.is_none(), "a client that does not trust it");
    // A client that speaks in the clear gets nowhere.
    assert_eq!(server.health("").await, None);

    let trusted = files.folder.join("ca.pem");
    fs::write(&trusted, &ca.pem).expect("written");
    let ran = health_command(&server, &["--tls-ca", text(&trusted)]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "SERVING\n"), "{ran:?}");
    fs::write(&trusted, &other.pem).expect("written");
    assert_eq!(health_command(&server, &["--tls-ca", text(&trusted)]).code, 3);
    assert_eq!(health_command(&server, &[]).code, 2, "nothing to trust is a usage error");
}

#[tokio::test]
async fn where_a_client_ca_is_named_only_clients_with_its_certificates_get_in() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let (ca, clients, others) = (Authority::new("ours"), Authority::new("clients"), Authority::new("others"));
    let files = Files::new(&database);
    files.write(&ca.issue());
    fs::write(&files.client_ca, &clients.pem).expect("written");
    let known = clients.issue();
    let server = serving(&database, &files.arguments_with_client_ca(), &ca.pem, Some(&known)).await;
    let channel = connect(&server, &ca.pem, Some(&known)).await.expect("a known client");
    assert!(verify_empty(&server, &channel).await);
    assert!(connect(&server, &ca.pem, None).await.is_none(), "a client without a certificate");
    assert!(connect(&server, &ca.pem, Some(&others.issue())).await.is_none(), "a client of another CA");
    // A certificate is no credential.
    let refused = rpcs::call(&channel, "/keystead.v1.KeyService/VerifyKey", Vec::new(), &[]).await;
    assert_eq!(refused.expect_err("no secret").code(), tonic::Code::Unauthenticated);

    let at = |name: &str, content: &str| {
        let path = files.folder.join(name);
        fs::write(&path, content).expect("written");
        path
    };
    let (trusted, certificate, key) = (at("ca.pem", &ca.pem), at("client.pem", &known.0), at("client.key", &known.1));
    let with =
        ["--tls-ca", text(&trusted), "--tls-client-certificate", text(&certificate), "--tls-client-key", text(&key)];
    assert_eq!(health_command(&server, &with).code, 0);
    assert_eq!(health_command(&server, &with[..2]).code, 3);
}

#[tokio::test]
async fn changed_files_are_picked_up_without_a_restart_and_established_connections_go_on() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = Files::new(&database);
    files.write(&old.issue());
    let server = serving(&database, &files.arguments(), &old.pem, None).await;
    let established = connect(&server, &old.pem, None).await.expect("a connection");
    assert!(connect(&server, &new.pem, None).await.is_none());
    files.write(&new.issue());
    wait_until("the new certificate to be shown", async || connect(&server, &new.pem, None).await.is_some()).await;
    assert!(connect(&server, &old.pem, None).await.is_none(), "the old one is shown no longer");
    assert!(verify_empty(&server, &established).await, "an established connection goes on");
}

#[tokio::test]
async fn a_changed_client_ca_is_picked_up_without_a_restart() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let (ca, old, new) = (Authority::new("ours"), Authority::new("old"), Authority::new("new"));
    let files = Files::new(&database);
    files.write(&ca.issue());
    fs::write(&files.client_ca, &old.pem).expect("written");
    let (old_client, new_client) = (old.issue(), new.issue());
    let server = serving(&database, &files.arguments_with_client_ca(), &ca.pem, Some(&old_client)).await;
    assert!(connect(&server, &ca.pem, Some(&new_client)).await.is_none());
    fs::write(&files.client_ca, &new.pem).expect("written");
    wait_until("the new clients to get in", async || connect(&server, &ca.pem, Some(&new_client)).await.is_some())
        .await;
    assert!(connect(&server, &ca.pem, Some(&old_client)).await.is_none(), "and the old ones no longer");
}

#[tokio::test]
async fn bad_new_files_keep_the_old_ones_in_use_and_are_logged() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let ca = Authority::new("ours");
    let files = Files::new(&database);
    let good = ca.issue();
    files.write(&good);
    let server = serving(&database, &files.arguments(), &ca.pem, None).await;
    let complaints = || server.log_text().matches("the old ones stay in use").count();
    let stranger = KeyPair::generate().expect("a key").serialize_pem();
    let certificate_only = (good.0.clone(), String::new());
    let bad: [(&str, (String, String)); 4] = [
        ("garbage", ("not a certificate".to_owned(), good.1.clone())),
        ("an empty key", certificate_only),
        ("the key of another certificate", (good.0.clone(), stranger)),
        ("a cut certificate", (good.0[..good.0.len() / 2].to_owned(), good.1.clone())),
    ];
    for (what, pair) in bad {
        let before = complaints();
        files.write(&pair);
        wait_until(&format!("the log to complain of {what}"), async || complaints() > before).await;
        assert!(connect(&server, &ca.pem, None).await.is_some(), "the old files are in use with {what}");
    }
    fs::remove_file(&files.key).expect("removed");
    let before = complaints();
    wait_until("the log to complain of a missing file", async || {
        complaints() > before || connect(&server, &ca.pem, None).await.is_none()
    })
    .await;
    assert!(connect(&server, &ca.pem, None).await.is_some(), "the old files are in use with a missing one");
    assert!(!server.log_text().contains("PRIVATE KEY"), "no key is in the log");

    let next = Authority::new("next");
    files.write(&next.issue());
    wait_until("good files to be picked up again", async || connect(&server, &next.pem, None).await.is_some()).await;
}

#[tokio::test]
async fn bad_files_at_the_start_are_refused_with_their_name() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let files = Files::new(&database);
    files.write(&("not a certificate".to_owned(), "not a key".to_owned()));
    let serve = |arguments: &[&str]| {
        let mut command = keystead_command(&database);
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        cli::run(command, "")
    };
    let ran = serve(&files.arguments());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("server.pem"), "{ran:?}");
    let ran = serve(&["--tls-certificate", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("/nowhere/cert.pem"), "{ran:?}");
    assert_eq!(serve(&["--tls-certificate", "x.pem"]).code, 2, "half a pair is a usage error");
    assert_eq!(serve(&["--tls-client-ca", "x.pem"]).code, 2);
}

#[tokio::test]
async fn peers_that_are_silent_or_stop_in_the_middle_of_the_handshake_are_closed_and_hold_nothing_up() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let database = TestDatabase::new(Engine::Sqlite).await;
    let ca = Authority::new("ours");
    let files = Files::new(&database);
    files.write(&ca.issue());
    let arguments =
        [files.arguments(), vec!["--handshake-timeout-ms", "300", "--drain-timeout-ms", "3600000"]].concat();
    let mut server = serving(&database, &arguments, &ca.pem, None).await;
    let soon = std::time::Duration::from_secs(20);
    // The beginning of a ClientHello, which says that more will come.
    for bytes in [b"".as_slice(), &[0x16], &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]] {
        let mut stream = tokio::net::TcpStream::connect(server.address()).await.expect("accepted");
        stream.write_all(bytes).await.expect("written");
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(soon, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "a peer that sent {bytes:?} is kept");
    }
    assert!(connect(&server, &ca.pem, None).await.is_some());
    let _silent = tokio::net::TcpStream::connect(server.address()).await.expect("accepted");
    server.sigterm();
    let status = tokio::time::timeout(soon, server.wait_exit()).await.expect("an end that nobody holds up");
    assert_eq!(status.code(), Some(0));
}
