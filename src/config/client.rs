//! The `client` section: where a running service is, how to trust it and how answers are shown.
//!
//! Declares and reads; opens no file and no connection. The token itself is no setting: it comes from the variable
//! `KEYSTEAD_TOKEN`, a file or standard input, never from an argument that a process list would show. Invariant: an
//! `https://` address has a CA to trust, and TLS files are never given for an address that would not use them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::parse;
use super::settings::Setting;
use super::sources::{Origin, Reported, Sources};

/// The variable that holds the token itself.
const TOKEN_VARIABLE: &str = "KEYSTEAD_TOKEN";

const ADDRESS: Setting = Setting::new(
    "address",
    "URL",
    "http://127.0.0.1:50051",
    "Where the service is: http://HOST:PORT or https://HOST:PORT",
);
const TOKEN_FILE: Setting = Setting::optional(
    "token-file",
    "FILE",
    "File with the caller's secret, `-` for standard input; else KEYSTEAD_TOKEN holds the secret",
);
const TLS_CA: Setting =
    Setting::optional("tls-ca", "FILE", "PEM certificates that the service's must come from; needed with https://");
const TLS_CLIENT_CERTIFICATE: Setting =
    Setting::optional("tls-client-certificate", "FILE", "PEM certificate to present to the service (mTLS)");
const TLS_CLIENT_KEY: Setting =
    Setting::optional("tls-client-key", "FILE", "PEM private key of the client certificate");
const TIMEOUT: Setting = Setting::new("timeout-ms", "MS", "30000", "Longest wait for one answer");
const OUTPUT: Setting = Setting::new("output", "table|json", "table", "Tables for people or JSON for programs");

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] =
    &[ADDRESS, TOKEN_FILE, TLS_CA, TLS_CLIENT_CERTIFICATE, TLS_CLIENT_KEY, TIMEOUT, OUTPUT];

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Where the caller's secret comes from.
#[derive(Clone)]
pub enum TokenSource {
    /// It is not given.
    Absent,
    /// From `KEYSTEAD_TOKEN`.
    Value(Zeroizing<String>),
    /// In this file.
    File(PathBuf),
    /// On standard input.
    Stdin,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => formatter.write_str("Absent"),
            Self::Value(_) => formatter.write_str("Value"),
            Self::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Self::Stdin => formatter.write_str("Stdin"),
        }
    }
}

/// The files that the client's side of TLS is set up from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTlsFiles {
    /// Certificates that the service's must come from.
    pub ca: PathBuf,
    /// Certificate and private key of the client.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How to reach a running service.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub address: String,
    /// Where the caller's secret comes from.
    pub token: TokenSource,
    /// Set for `https://` addresses, and only for them.
    pub tls: Option<ClientTlsFiles>,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// How answers are shown.
    pub output: OutputFormat,
}

impl ClientConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        let address = sources.required(&ADDRESS, parse_address);
        let token = read_token(sources);
        let tls = read_tls(sources, address.as_deref().ok());
        let timeout = sources.required(&TIMEOUT, parse::milliseconds(1..=600_000));
        let output = sources.required(&OUTPUT, |text| match text {
            "table" => Ok(OutputFormat::Table),
            "json" => Ok(OutputFormat::Json),
            _ => Err("neither table nor json".to_owned()),
        });
        Ok(Self { address: address?, token: token?, tls: tls?, timeout: timeout?, output: output? })
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    let wrong = || "not http://HOST:PORT or https://HOST:PORT".to_owned();
    let uri: http::Uri = text.parse().map_err(|_| wrong())?;
    let scheme_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let bare = uri.path() == "/" && uri.query().is_none();
    let host =
        uri.authority().is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    if scheme_known && bare && host { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// A flag beats the variable `KEYSTEAD_TOKEN`, which beats the variable and the file entry that name a file.
fn read_token(sources: &mut Sources<'_>) -> Result<TokenSource, Reported> {
    let file = sources.optional(&TOKEN_FILE, parse::path);
    if sources.origin(&TOKEN_FILE) != Some(Origin::Flag)
        && let Some(token) = sources.variable(TOKEN_VARIABLE)
    {
        return token
            .into_string()
            .map(|token| TokenSource::Value(Zeroizing::new(token)))
            .map_err(|_| sources.note(format!("variable {TOKEN_VARIABLE}: not UTF-8 text")));
    }
    Ok(match file? {
        None => TokenSource::Absent,
        Some(path) if path.as_os_str() == "-" => TokenSource::Stdin,
        Some(path) => TokenSource::File(path),
    })
}

fn read_tls(sources: &mut Sources<'_>, address: Option<&str>) -> Result<Option<ClientTlsFiles>, Reported> {
    let ca = sources.optional(&TLS_CA, parse::path);
    let certificate = sources.optional(&TLS_CLIENT_CERTIFICATE, parse::path);
    let key = sources.optional(&TLS_CLIENT_KEY, parse::path);
    let (ca, certificate, key) = (ca?, certificate?, key?);
    let secure = address.ok_or(Reported)?.starts_with("https://");
    if !secure {
        return refuse_unused(sources);
    }
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (Some(_), None) => Err(wrong(sources, &TLS_CLIENT_CERTIFICATE, "needs tls-client-key too")),
        (None, Some(_)) => Err(wrong(sources, &TLS_CLIENT_KEY, "needs tls-client-certificate too")),
        (None, None) => Ok(None),
    };
    let Some(ca) = ca else {
        return Err(wrong(sources, &ADDRESS, "https:// needs tls-ca too: no root is built in"));
    };
    Ok(Some(ClientTlsFiles { ca, identity: identity? }))
}

/// TLS files with an `http://` address mean that the secret would travel in the clear against somebody's intent.
fn refuse_unused(sources: &mut Sources<'_>) -> Result<Option<ClientTlsFiles>, Reported> {
    let mut result = Ok(None);
    for setting in [&TLS_CA, &TLS_CLIENT_CERTIFICATE, &TLS_CLIENT_KEY] {
        if sources.origin(setting).is_some() {
            result = Err(wrong(sources, setting, "given for an address without https://"));
        }
    }
    result
}

fn wrong(sources: &mut Sources<'_>, setting: &Setting, text: &str) -> Reported {
    let origin = sources.origin(setting).unwrap_or(Origin::Default);
    sources.problem(setting, origin, text)
}
