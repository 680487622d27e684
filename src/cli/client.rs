//! How the client commands reach a running service: connection, credential, deadline.
//!
//! Owns the channel and the caller's token; knows no single rpc. Invariant: the token is read from the environment,
//! a file or standard input, is marked sensitive and appears in no message made here.

use std::fs::File;
use std::future::Future;
use std::io::{self, IsTerminal as _, Read};
use std::path::Path;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::failure::{Failure, chain};
use super::output;
use crate::config::client::ClientTlsFiles;
use crate::config::{ClientConfig, ClientSettings, Environment, Flags, OutputFormat, TokenSource};
use crate::proto::v1::audit_service_client::AuditServiceClient;
use crate::proto::v1::key_service_client::KeyServiceClient;
use crate::proto::v1::organization_service_client::OrganizationServiceClient;

/// Longest time to connect, TLS included.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Largest answer: a page of 1000 keys with full metadata is far over tonic's 4 MiB.
pub(super) const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Largest headers of an answer: error details travel in one, and many field violations exceed hyper's 16 KiB.
const HEADER_BYTES_MAX: u32 = 1 << 20;
/// Longest token or secret file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// Longest PEM file, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// How much longer than the client the service may work on a call, so that it is the client who gives up first.
const DEADLINE_SLACK: Duration = Duration::from_millis(100);

/// A connection to a running service.
pub(super) struct Client {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    stdin_is_used: bool,
    address: String,
    timeout: Duration,
    output: OutputFormat,
}

impl Client {
    /// Reads configuration and token, and connects.
    pub(super) async fn open(flags: &Flags<ClientSettings>, environment: Environment<'_>) -> Result<Self, Failure> {
        let config = ClientConfig::load(flags, environment)?;
        let Some(token) = read_token(&config.token)? else {
            return Err(Failure::usage("no token: set KEYSTEAD_TOKEN or give --token-file".to_owned()));
        };
        Self::connect(config, Some(token)).await
    }

    /// Connects without a credential, for what is open to all.
    pub(super) async fn open_without_token(
        flags: &Flags<ClientSettings>,
        environment: Environment<'_>,
    ) -> Result<Self, Failure> {
        Self::connect(ClientConfig::load(flags, environment)?, None).await
    }

    async fn connect(config: ClientConfig, token: Option<MetadataValue<Ascii>>) -> Result<Self, Failure> {
        let wait = CONNECT_TIMEOUT_MAX.min(config.timeout);
        let stdin_is_used = matches!(config.token, TokenSource::Stdin);
        let address = config.address;
        let mut endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| Failure::usage(format!("{address} is not an address: {}", chain(&error))))?
            .connect_timeout(wait)
            .http2_max_header_list_size(HEADER_BYTES_MAX);
        if let Some(files) = &config.tls {
            endpoint = endpoint
                .tls_config(read_tls(files)?)
                .map_err(|error| Failure::usage(format!("the TLS files are not usable: {}", chain(&error))))?;
        }
        let unreachable = |reason: String| Failure::unreachable(format!("cannot reach {address}: {reason}"));
        let channel = match tokio::time::timeout(wait, endpoint.connect()).await {
            Ok(connected) => connected.map_err(|error| unreachable(chain(&error)))?,
            Err(_) => return Err(unreachable(format!("no connection within {} ms", wait.as_millis()))),
        };
        Ok(Self { channel, token, stdin_is_used, address, timeout: config.timeout, output: config.output })
    }

    /// How answers are to be shown.
    pub(super) fn output(&self) -> OutputFormat {
        self.output
    }

    /// Whether the token was read from standard input, which then holds nothing else.
    pub(super) fn stdin_is_used(&self) -> bool {
        self.stdin_is_used
    }

    /// The connection, for a service that is not Keystead's own.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn organizations(&self) -> OrganizationServiceClient<Channel> {
        OrganizationServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A request with credential and deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout.saturating_add(DEADLINE_SLACK));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// Waits for an answer, no longer than the timeout.
    pub(super) async fn call<T>(
        &self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::of_status(&status, &self.address)),
            Err(_) => Err(Failure::unreachable(format!(
                "no answer from {} within {} ms; a change may have been made",
                self.address,
                self.timeout.as_millis()
            ))),
        }
    }
}

/// The secret that a holder presents, for `keys verify`: from a file, or from standard input where `file` is `-`.
/// One line feed at the end is not part of it.
pub(super) fn read_presented_secret(file: &Path) -> Result<Zeroizing<String>, Failure> {
    if file.as_os_str() == "-" && io::stdin().is_terminal() {
        output::note("Enter the secret to verify:");
    }
    let text = read_secret("secret", file)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

fn read_token(source: &TokenSource) -> Result<Option<MetadataValue<Ascii>>, Failure> {
    let text = match source {
        TokenSource::Absent => return Ok(None),
        TokenSource::Value(text) => text.clone(),
        TokenSource::File(path) => read_secret("token", path)?,
        TokenSource::Stdin => read_secret("token", Path::new("-"))?,
    };
    bearer(&text).map(Some)
}

fn bearer(text: &str) -> Result<MetadataValue<Ascii>, Failure> {
    let token = text.trim();
    if token.is_empty() || !token.chars().all(|character| character.is_ascii_graphic()) {
        return Err(Failure::usage("the token is not one: it must be one line of printable characters".to_owned()));
    }
    let header = Zeroizing::new(format!("Bearer {token}"));
    let mut value: MetadataValue<Ascii> =
        header.parse().map_err(|_| Failure::usage("the token cannot be sent as a header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read_secret(what: &str, file: &Path) -> Result<Zeroizing<String>, Failure> {
    let on_stdin = file.as_os_str() == "-";
    let place = if on_stdin { "standard input".to_owned() } else { file.display().to_string() };
    let bytes =
        if on_stdin { read_up_to(io::stdin().lock(), SECRET_BYTES_MAX) } else { read_file(file, SECRET_BYTES_MAX) };
    let mut bytes =
        bytes.map_err(|error| Failure::usage(format!("the {what} cannot be read from {place}: {error}")))?;
    String::from_utf8(std::mem::take(&mut *bytes))
        .map(Zeroizing::new)
        .map_err(|_| Failure::usage(format!("the {what} in {place} is not UTF-8 text")))
}

fn read_tls(files: &ClientTlsFiles) -> Result<ClientTlsConfig, Failure> {
    let read = |path: &Path| {
        read_file(path, PEM_BYTES_MAX)
            .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))
    };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&files.ca)?.as_slice()));
    if let Some((certificate, key)) = &files.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?.as_slice(), read(key)?.as_slice()));
    }
    Ok(tls)
}

fn read_file(path: &Path, bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    read_up_to(File::open(path)?, bytes_max)
}

fn read_up_to(reader: impl Read, bytes_max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    reader.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_printable_line_and_never_shown() {
        let value = bearer(" pk_live_abc\n").expect("a token");
        assert_eq!(value.to_str().ok(), Some("Bearer pk_live_abc"));
        assert!(!format!("{value:?}").contains("abc"));
        for text in ["", " \n", "two\nlines", "two words", "\u{1b}abc", "schlüssel"] {
            let failure = bearer(text).expect_err(text);
            assert_eq!(failure.code, super::super::USAGE);
            assert!(text.trim().is_empty() || !failure.text.contains(text.trim()));
        }
    }

    #[test]
    fn a_presented_secret_loses_its_line_feed_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("secret");
        for (content, expected) in [("a b \r\n", "a b "), ("ab", "ab"), ("ab\n\n", "ab\n"), ("", "")] {
            std::fs::write(&file, content).expect("a file");
            let secret = read_presented_secret(&file).expect("a secret");
            assert_eq!(secret.as_str(), expected);
        }
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let failure = read_secret("token", Path::new("/dev/zero")).expect_err("endless");
        assert_eq!(failure.code, super::super::USAGE);
    }
}
