//! `keystead serve`: runs the service until SIGTERM or SIGINT.
//!
//! Reads the configuration, sets the logs up and hands over to `app::serve`, which prints what there is to print.
//! Invariant: nothing is started before the whole configuration is found to be good.

use clap::Args;

use super::failure::{DONE, Failure};
use crate::config::{Config, Environment, Flags, ServeSettings};
use crate::{app, telemetry};

/// Flags of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    flags: Flags<ServeSettings>,
}

impl Serve {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let config = Config::load(&self.flags, environment)?;
        telemetry::init(&config.telemetry);
        app::serve(config).await?;
        Ok(DONE)
    }
}
