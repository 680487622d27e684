//! `keystead health`: asks the service whether it is ready, for probes and for people.
//!
//! Needs no token. Invariant: exit code 0 means SERVING and nothing else; 1 any other answer, 3 no answer.

use clap::Args;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::Client;
use super::failure::{DONE, Failure, REFUSED};
use super::output::{self, Fields, object};
use crate::config::{ClientSettings, Environment, Flags, OutputFormat};

/// Flags of `health`.
#[derive(Debug, Args)]
pub(super) struct Health {
    #[command(flatten)]
    flags: Flags<ClientSettings>,
    /// Ask about this service, such as keystead.v1.KeyService, and not about all.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
}

impl Health {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let client = Client::open_without_token(&self.flags, environment).await?;
        let request = client.request(HealthCheckRequest { service: self.service.clone() });
        let answer = client.call(HealthClient::new(client.channel()).check(request)).await?;
        let status = ServingStatus::try_from(answer.status).unwrap_or(ServingStatus::Unknown);
        let fields: Fields = vec![("service", json!(self.service)), ("status", json!(status.as_str_name()))];
        output::print(&match client.output() {
            OutputFormat::Table => format!("{}\n", status.as_str_name()),
            OutputFormat::Json => output::json(&object(fields)),
        })?;
        Ok(if status == ServingStatus::Serving { DONE } else { REFUSED })
    }
}
