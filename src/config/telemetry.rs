//! The `telemetry` section: what is logged, and in which form.
//!
//! Declares and reads; `crate::telemetry` sets the logs up. Invariant: the level is a filter that the subscriber
//! accepts, so that a typing error is refused at start instead of silencing the logs.

use tracing_subscriber::EnvFilter;

use super::settings::Setting;
use super::sources::{Reported, Sources};

const FORMAT: Setting = Setting::new("log-format", "text|json", "text", "Form of the log lines");
const LEVEL: Setting =
    Setting::new("log-level", "FILTER", "info", "What is logged: a level, or directives such as info,keystead=debug");

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] = &[FORMAT, LEVEL];

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for programs.
    Json,
}

/// What is logged, and in which form.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// A directive of `tracing_subscriber::EnvFilter`.
    pub log_level: String,
}

impl TelemetryConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        let log_format = sources.required(&FORMAT, |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("neither text nor json".to_owned()),
        });
        let log_level = sources.required(&LEVEL, parse_level);
        Ok(Self { log_format: log_format?, log_level: log_level? })
    }
}

/// The subscriber takes a bare word that is no level for the name of a module, so `inof` would log nothing at
/// all. A bare word must therefore be a level.
fn parse_level(text: &str) -> Result<String, String> {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let wrong =
        || "not a level (off, error, warn, info, debug, trace) or directives such as info,keystead=debug".to_owned();
    let words_known = text.split(',').map(str::trim).all(|directive| {
        directive.contains(['=', '[']) || LEVELS.iter().any(|level| directive.eq_ignore_ascii_case(level))
    });
    if !words_known {
        return Err(wrong());
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|_| wrong())
}
