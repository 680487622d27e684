//! `keystead keys verify`: one `VerifyKey` call on a secret that is read, never passed as an argument.
//!
//! Shows the outcome and what belongs to it. Invariant: exit code 0 means VALID and nothing else, so that a script
//! can rest on it.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::client::{Client, read_presented_secret};
use crate::cli::failure::{DONE, Failure, REFUSED};
use crate::cli::output::{self, object};
use crate::cli::{fields, values};
use crate::config::OutputFormat;
use crate::proto::v1::{Consistency, Outcome, RequiredScopes, VerifyKeyRequest};

const CONSISTENCIES: &[&str] = &["cached", "fresh"];

/// Flags of `keys verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// File with the secret; without it, or with `-`, it is read from standard input.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The secret must be that of this key.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Scope that the key must have; may be repeated.
    #[arg(long = "all-of", value_name = "SCOPE", value_delimiter = ',')]
    all_of: Vec<String>,
    /// The key must have one of these scopes; may be repeated.
    #[arg(long = "any-of", value_name = "SCOPE", value_delimiter = ',')]
    any_of: Vec<String>,
    /// What this use costs; 0 consumes nothing, 1 by default.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cost: Option<i64>,
    /// Limit of the key to charge, in place of all; may be repeated.
    #[arg(long = "limit-name", value_name = "NAME", value_delimiter = ',')]
    limit_names: Vec<String>,
    /// Address of the end client.
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    client_address: String,
    /// What is being called, for usage.
    #[arg(long, default_value = "", hide_default_value = true)]
    endpoint: String,
    /// How it is being called, for usage.
    #[arg(long, default_value = "", hide_default_value = true)]
    method: String,
    /// What the client calls itself, for usage.
    #[arg(long, default_value = "", hide_default_value = true)]
    user_agent: String,
    /// Id of the request that is decided on, for usage.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    request_id: String,
    /// Label for usage; may be repeated.
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = values::pair)]
    tags: Vec<(String, String)>,
    /// Whether the cache will do, or the database must be read.
    #[arg(long, value_parser = values::choice(CONSISTENCIES, "CONSISTENCY_", Consistency::from_str_name))]
    consistency: Option<i32>,
    /// Answer from a state at least this new.
    #[arg(long, value_name = "REVISION", allow_negative_numbers = true)]
    min_revision: Option<i64>,
}

impl Verify {
    pub(super) async fn run(self, client: &Client) -> Result<u8, Failure> {
        let file = self.secret_file.as_deref().unwrap_or(Path::new("-"));
        if client.stdin_is_used() && file.as_os_str() == "-" {
            return Err(Failure::usage(
                "standard input cannot hold both token and secret: give --secret-file FILE".to_owned(),
            ));
        }
        let secret = read_presented_secret(file)?;
        let request = client.request(self.request(&secret));
        let answer = client.call(client.keys().verify_key(request)).await?;
        let shown = fields::verification(&answer);
        output::print(&match client.output() {
            OutputFormat::Table => output::record(&shown),
            OutputFormat::Json => output::json(&object(shown)),
        })?;
        Ok(if answer.outcome == i32::from(Outcome::Valid) { DONE } else { REFUSED })
    }

    fn request(self, secret: &str) -> VerifyKeyRequest {
        let scopes_required = !self.all_of.is_empty() || !self.any_of.is_empty();
        VerifyKeyRequest {
            secret: secret.to_owned(),
            key_id: self.key,
            required_scopes: scopes_required.then_some(RequiredScopes { all_of: self.all_of, any_of: self.any_of }),
            cost: self.cost,
            limit_names: self.limit_names,
            client_address: self.client_address,
            endpoint: self.endpoint,
            method: self.method,
            user_agent: self.user_agent,
            request_id: self.request_id,
            tags: self.tags.into_iter().collect(),
            consistency: self.consistency.unwrap_or_default(),
            min_revision: self.min_revision,
        }
    }
}
