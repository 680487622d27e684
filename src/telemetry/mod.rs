//! What operators see. Metrics (`metrics`, shown by `listener`), and logs: one line per call and one per event of the
//! process, as text for people or JSON for machines, on standard error. Names of fields are those of the contract:
//! `method`, `code`, `outcome`, `key_id`, `organization_id`, `duration_us`, `request_id`. Never a secret, a digest,
//! metadata or a database url.

mod imported;
pub mod listener;
mod metrics;

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{LogFormat, TelemetryConfig};

pub use imported::{CheckResult, ImportCounter, OTHER_SOURCE};
pub use metrics::{JobMetrics, Metrics};

/// What our dependencies may say at most: sqlx logs statements, h2 and rustls log bytes, and either may hold what
/// must not be logged.
const QUIET: &str =
    "sqlx=warn,sea_orm=warn,sea_orm_migration=warn,h2=warn,hyper=warn,rustls=warn,tonic=warn,tower=warn";

/// Turns logs on, once per process; a second call changes nothing.
pub fn init(config: &TelemetryConfig) {
    let filter = EnvFilter::builder().parse_lossy(format!("{},{QUIET}", config.log_level));
    let registry = tracing_subscriber::registry().with(filter);
    let result = match config.log_format {
        LogFormat::Text => {
            let layer = fmt::layer().with_writer(io::stderr).with_target(false);
            // On a terminal tracing-subscriber decides for itself, and honours NO_COLOR.
            let layer = if io::stderr().is_terminal() { layer } else { layer.with_ansi(false) };
            registry.with(layer).try_init()
        }
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(io::stderr).with_target(false)).try_init()
        }
    };
    // Fails only where logs are on already, as in a test that runs two commands.
    drop(result);
}
