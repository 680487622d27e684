//! Configuration: every setting, where its value came from, and every problem at once.
//!
//! One file per section names its settings and reads them; `settings.rs` turns the names into flags and
//! `sources.rs` finds the values (flag over variable over file over default). Nothing here opens a socket, a
//! database or a certificate. Invariant: a section that exists is valid, so nothing behind it checks again, and
//! no text made here shows a secret.

pub mod cache;
pub mod client;
pub mod database;
pub mod import;
pub mod limits;
mod parse;
pub mod redis;
pub mod server;
pub mod settings;
mod sources;
pub mod telemetry;
pub mod usage;

use std::ffi::OsString;

pub use self::redis::RedisUrl;
pub use cache::CacheConfig;
pub use client::{ClientConfig, OutputFormat, TokenSource};
pub use database::{DatabaseConfig, DatabaseUrl};
pub use import::{ImportConfig, SourceKind, SourceUrl};
pub use limits::LimitsConfig;
pub use server::{ServerConfig, TlsFiles};
pub use settings::{Flags, Setting, SettingGroup};
pub use sources::{ConfigError, Environment};
pub use telemetry::{LogFormat, TelemetryConfig};
pub use usage::UsageConfig;

use sources::Sources;

/// Every section there is: the names that a configuration file may hold, whichever command reads it.
const ALL_SECTIONS: &[&[Setting]] = &[
    server::SETTINGS,
    cache::SETTINGS,
    database::SETTINGS,
    limits::SETTINGS,
    usage::SETTINGS,
    telemetry::SETTINGS,
    client::SETTINGS,
    import::SETTINGS,
];

/// What `keystead serve` needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Socket, TLS, timeouts and bounds.
    pub server: ServerConfig,
    /// The in-process key cache.
    pub cache: CacheConfig,
    /// Which database, and how many connections.
    pub database: DatabaseConfig,
    /// Where rate limits are counted.
    pub limits: LimitsConfig,
    /// Where usage waits for the database, and how long it is kept.
    pub usage: UsageConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
}

/// What the commands on the database itself need: `init` and `migrate`.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Which database, and how many connections.
    pub database: DatabaseConfig,
    /// Logs.
    pub telemetry: TelemetryConfig,
}

/// The flags of `keystead serve`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServeSettings;

impl SettingGroup for ServeSettings {
    const SECTIONS: &'static [&'static [Setting]] = &[
        server::SETTINGS,
        database::SETTINGS,
        cache::SETTINGS,
        limits::SETTINGS,
        usage::SETTINGS,
        telemetry::SETTINGS,
    ];
    const GLOBAL: bool = false;
}

/// The flags of `keystead init` and `keystead migrate`.
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreSettings;

impl SettingGroup for StoreSettings {
    const SECTIONS: &'static [&'static [Setting]] = &[database::SETTINGS, telemetry::SETTINGS];
    const GLOBAL: bool = true;
}

/// The flags of `keystead import`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportSettings;

impl SettingGroup for ImportSettings {
    const SECTIONS: &'static [&'static [Setting]] =
        &[import::SETTINGS, database::SETTINGS, limits::SETTINGS, telemetry::SETTINGS];
    const GLOBAL: bool = true;
}

/// The flags that every client command shares.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClientSettings;

impl SettingGroup for ClientSettings {
    const SECTIONS: &'static [&'static [Setting]] = &[client::SETTINGS];
    const GLOBAL: bool = true;
}

impl Config {
    /// Reads all sections of the server.
    ///
    /// # Errors
    /// Every problem of every section and of the file, not the first.
    pub fn load(flags: &Flags<ServeSettings>, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let mut sources = Sources::new(flags.given(), flags.file(), environment, ALL_SECTIONS);
        let server = ServerConfig::read(&mut sources);
        let cache = CacheConfig::read(&mut sources);
        let database = DatabaseConfig::read(&mut sources);
        let limits = LimitsConfig::read(&mut sources);
        let usage = UsageConfig::read(&mut sources);
        let telemetry = TelemetryConfig::read(&mut sources);
        sources.finish(|| {
            Ok(Self {
                server: server?,
                cache: cache?,
                database: database?,
                limits: limits?,
                usage: usage?,
                telemetry: telemetry?,
            })
        })
    }
}

impl StoreConfig {
    /// Reads the sections that `init` and `migrate` use.
    ///
    /// # Errors
    /// Every problem of these sections and of the file, not the first.
    pub fn load(flags: &Flags<StoreSettings>, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let mut sources = Sources::new(flags.given(), flags.file(), environment, ALL_SECTIONS);
        let database = DatabaseConfig::read(&mut sources);
        let telemetry = TelemetryConfig::read(&mut sources);
        sources.finish(|| Ok(Self { database: database?, telemetry: telemetry? }))
    }
}

impl ImportConfig {
    /// Reads the sections that `import` uses.
    ///
    /// # Errors
    /// Every problem of these sections and of the file, not the first.
    pub fn load(flags: &Flags<ImportSettings>, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let mut sources = Sources::new(flags.given(), flags.file(), environment, ALL_SECTIONS);
        let database = DatabaseConfig::read(&mut sources);
        let limits = LimitsConfig::read(&mut sources);
        let telemetry = TelemetryConfig::read(&mut sources);
        let source_url = import::read_source_url(&mut sources);
        sources.finish(|| {
            Ok(Self { database: database?, limits: limits?, telemetry: telemetry?, source_url: source_url? })
        })
    }
}

impl ClientConfig {
    /// Reads the section of the client commands.
    ///
    /// # Errors
    /// Every problem of the section and of the file, not the first.
    pub fn load(flags: &Flags<ClientSettings>, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let mut sources = Sources::new(flags.given(), flags.file(), environment, ALL_SECTIONS);
        let client = Self::read(&mut sources);
        sources.finish(|| client)
    }
}

/// The environment of this process, as the loaders take it.
#[must_use]
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests;
