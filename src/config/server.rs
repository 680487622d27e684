//! The `server` section: socket, TLS files, timeouts and the bounds on what a client may send.
//!
//! Declares and reads; opens nothing. Where each bound comes from is the table "The server under attack" of the
//! design. Invariant: certificate and key are given together, a client CA only with them, and a batch may be at
//! least as large as a single message.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::parse;
use super::settings::Setting;
use super::sources::{Origin, Reported, Sources};

const LISTEN: Setting = Setting::new("listen", "ADDRESS", "127.0.0.1:50051", "Address and port to serve gRPC on");
const METRICS_LISTEN: Setting = Setting::new(
    "metrics-listen",
    "ADDRESS|off",
    "127.0.0.1:9090",
    "Address and port of /metrics, /livez and /readyz over plain HTTP, or off",
);
const DEV: Setting = Setting::switch("dev", "Prepare a new database as `init` does, and print lines to paste");
const REFLECTION: Setting =
    Setting::new("reflection", "true|false", "true", "Serve gRPC reflection, without a credential");
const TLS_CERTIFICATE: Setting =
    Setting::optional("tls-certificate", "FILE", "PEM certificate chain; with --tls-key turns TLS on");
const TLS_KEY: Setting = Setting::optional("tls-key", "FILE", "PEM private key of the certificate");
const TLS_CLIENT_CA: Setting =
    Setting::optional("tls-client-ca", "FILE", "PEM certificates that client certificates must come from (mTLS)");
const VERIFY_TIMEOUT: Setting =
    Setting::new("verify-timeout-ms", "MS", "2000", "Longest time for one verification call");
const CONTROL_TIMEOUT: Setting = Setting::new("control-timeout-ms", "MS", "10000", "Longest time for any other call");
const DRAIN_TIMEOUT: Setting =
    Setting::new("drain-timeout-ms", "MS", "30000", "Longest time for calls in flight after SIGTERM");
const HANDSHAKE_TIMEOUT: Setting =
    Setting::new("handshake-timeout-ms", "MS", "5000", "Longest time for the TLS handshake and the HTTP/2 preface");
const KEEPALIVE_INTERVAL: Setting =
    Setting::new("keepalive-interval-ms", "MS", "30000", "Pause between HTTP/2 pings on a connection");
const KEEPALIVE_TIMEOUT: Setting =
    Setting::new("keepalive-timeout-ms", "MS", "20000", "Longest wait for the answer to a ping");
const CONCURRENT_STREAMS_MAX: Setting =
    Setting::new("concurrent-streams-max", "N", "1024", "Calls in flight on one connection, 256 to 1024");
const MESSAGE_BYTES_MAX: Setting = Setting::new("message-bytes-max", "BYTES", "65536", "Largest request message");
const BATCH_BYTES_MAX: Setting =
    Setting::new("batch-bytes-max", "BYTES", "1048576", "Largest request message of the batch calls");

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] = &[
    LISTEN,
    METRICS_LISTEN,
    DEV,
    REFLECTION,
    TLS_CERTIFICATE,
    TLS_KEY,
    TLS_CLIENT_CA,
    VERIFY_TIMEOUT,
    CONTROL_TIMEOUT,
    DRAIN_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    KEEPALIVE_INTERVAL,
    KEEPALIVE_TIMEOUT,
    CONCURRENT_STREAMS_MAX,
    MESSAGE_BYTES_MAX,
    BATCH_BYTES_MAX,
];

/// How the server listens and what it bounds.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where metrics and probes are served; `None` for nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether a new database is prepared at start and lines to paste are printed.
    pub dev: bool,
    /// Whether gRPC reflection is served.
    pub reflection: bool,
    /// TLS, where it is on.
    pub tls: Option<TlsFiles>,
    /// Longest time for one verification call.
    pub verify_timeout: Duration,
    /// Longest time for any other call.
    pub control_timeout: Duration,
    /// Longest time from SIGTERM to the end.
    pub drain_timeout: Duration,
    /// Longest time for the TLS handshake and the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Pause between HTTP/2 pings on a connection.
    pub keepalive_interval: Duration,
    /// Longest wait for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// Calls in flight on one connection, 256 to 1024.
    pub concurrent_streams_max: u32,
    /// Largest request message in bytes.
    pub message_bytes_max: usize,
    /// Largest request message of a batch call in bytes, at least `message_bytes_max`.
    pub batch_bytes_max: usize,
}

/// The PEM files that TLS is set up from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// Private key of the first certificate.
    pub key: PathBuf,
    /// Who signs client certificates; with it they are required.
    pub client_ca: Option<PathBuf>,
}

impl ServerConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        let listen = sources.required(&LISTEN, |text| {
            text.parse().map_err(|_| "not an address and port such as 127.0.0.1:50051".to_owned())
        });
        let metrics_listen = sources.required(&METRICS_LISTEN, |text| match text {
            "off" => Ok(None),
            address => address.parse().map(Some).map_err(|_| "neither an address and port nor off".to_owned()),
        });
        let dev = sources.required(&DEV, parse::boolean);
        let reflection = sources.required(&REFLECTION, parse::boolean);
        let tls = read_tls(sources);
        let verify_timeout = sources.required(&VERIFY_TIMEOUT, parse::milliseconds(1..=60_000));
        let control_timeout = sources.required(&CONTROL_TIMEOUT, parse::milliseconds(1..=600_000));
        let drain_timeout = sources.required(&DRAIN_TIMEOUT, parse::milliseconds(0..=3_600_000));
        let handshake_timeout = sources.required(&HANDSHAKE_TIMEOUT, parse::milliseconds(1..=60_000));
        let keepalive_interval = sources.required(&KEEPALIVE_INTERVAL, parse::milliseconds(100..=3_600_000));
        let keepalive_timeout = sources.required(&KEEPALIVE_TIMEOUT, parse::milliseconds(100..=3_600_000));
        let concurrent_streams_max = sources.required(&CONCURRENT_STREAMS_MAX, parse::number(256..=1024));
        let (message_bytes_max, batch_bytes_max) = read_sizes(sources)?;
        Ok(Self {
            listen: listen?,
            metrics_listen: metrics_listen?,
            dev: dev?,
            reflection: reflection?,
            tls: tls?,
            verify_timeout: verify_timeout?,
            control_timeout: control_timeout?,
            drain_timeout: drain_timeout?,
            handshake_timeout: handshake_timeout?,
            keepalive_interval: keepalive_interval?,
            keepalive_timeout: keepalive_timeout?,
            concurrent_streams_max: concurrent_streams_max?,
            message_bytes_max,
            batch_bytes_max,
        })
    }
}

fn read_tls(sources: &mut Sources<'_>) -> Result<Option<TlsFiles>, Reported> {
    let certificate = sources.optional(&TLS_CERTIFICATE, parse::path);
    let key = sources.optional(&TLS_KEY, parse::path);
    let client_ca = sources.optional(&TLS_CLIENT_CA, parse::path);
    match (certificate?, key?, client_ca?) {
        (Some(certificate), Some(key), client_ca) => Ok(Some(TlsFiles { certificate, key, client_ca })),
        (Some(_), None, _) => Err(needs(sources, &TLS_CERTIFICATE, &TLS_KEY)),
        (None, Some(_), _) => Err(needs(sources, &TLS_KEY, &TLS_CERTIFICATE)),
        (None, None, Some(_)) => Err(needs(sources, &TLS_CLIENT_CA, &TLS_CERTIFICATE)),
        (None, None, None) => Ok(None),
    }
}

fn needs(sources: &mut Sources<'_>, given: &Setting, missing: &Setting) -> Reported {
    let origin = sources.origin(given).unwrap_or(Origin::Default);
    sources.problem(given, origin, &format!("needs {} too", missing.name))
}

fn read_sizes(sources: &mut Sources<'_>) -> Result<(usize, usize), Reported> {
    let message = sources.required(&MESSAGE_BYTES_MAX, parse::number(1024..=4_194_304));
    let batch = sources.required(&BATCH_BYTES_MAX, parse::number(1024..=16_777_216));
    let (message, batch) = (message?, batch?);
    if batch < message {
        let origin = sources.origin(&BATCH_BYTES_MAX).unwrap_or(Origin::Default);
        let text = format!("{batch} is less than message-bytes-max ({message})");
        return Err(sources.problem(&BATCH_BYTES_MAX, origin, &text));
    }
    Ok((message, batch))
}
