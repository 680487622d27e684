//! `keystead init`: prepares a database and prints the first admin secret.
//!
//! The work is `app::init`'s, which refuses on a database that has an admin key. Invariant: the secret is the only
//! line on standard output, is printed once and is kept nowhere.

use clap::Args;
use zeroize::Zeroizing;

use super::failure::{DONE, Failure};
use super::output;
use crate::config::{Environment, Flags, StoreConfig, StoreSettings};
use crate::{app, telemetry};

/// Flags of `init`.
#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    flags: Flags<StoreSettings>,
}

impl Init {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let config = StoreConfig::load(&self.flags, environment)?;
        telemetry::init(&config.telemetry);
        let secret = app::init(&config.database).await?;
        let line = Zeroizing::new(format!("{}\n", secret.as_str()));
        output::write(&line).map_err(|error| {
            Failure::refused(format!(
                "the admin secret could not be written and is lost ({error}); start again on a new database"
            ))
        })?;
        Ok(DONE)
    }
}
