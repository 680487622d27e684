//! `keystead keys create`: one `CreateKey` call from flags.
//!
//! Checks the form of values and nothing else. Invariant: the secret of the answer goes to `show_secret` and
//! nowhere else.

use clap::Args;
use prost_types::{Duration, Timestamp};
use zeroize::Zeroizing;

use super::{ENVIRONMENTS, show_secret};
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::values;
use crate::proto::v1::create_key_request::Lifetime;
use crate::proto::v1::{CreateKeyRequest, Environment, RateLimit, RefillInterval};

/// Flags of `keys create`.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Id of the organization that is to own the key.
    #[arg(long, value_name = "ID")]
    organization: String,
    /// Name for people.
    #[arg(long)]
    name: String,
    /// What the key is meant for.
    #[arg(long, value_parser = values::choice(ENVIRONMENTS, "ENVIRONMENT_", Environment::from_str_name))]
    environment: i32,
    /// Scope such as invoices:read; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<String>,
    /// Metadata entry; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    metadata: Vec<(String, String)>,
    /// Who is to hold the key.
    #[arg(long, value_name = "OWNER", default_value = "", hide_default_value = true)]
    owner: String,
    /// Network that may use the key, such as 192.0.2.0/24; may be repeated.
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    cidrs: Vec<String>,
    /// Rate limit as NAME=LIMIT/WINDOW[/shadow], such as burst=100/1m; may be repeated.
    #[arg(long = "rate-limit", value_name = "LIMIT", value_parser = values::rate_limit)]
    rate_limits: Vec<RateLimit>,
    /// Credits to start with; without them uses are not counted down.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    credits: Option<i64>,
    /// Raise the credits to AMOUNT again, as AMOUNT/day or AMOUNT/month.
    #[arg(long, value_name = "REFILL", value_parser = values::refill, requires = "credits")]
    credits_refill: Option<(i64, RefillInterval)>,
    /// When the key expires, such as 2027-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    expire_time: Option<Timestamp>,
    /// How long the key lives, such as 90d.
    #[arg(long, value_name = "DURATION", value_parser = values::span, conflicts_with = "expire_time")]
    ttl: Option<Duration>,
    /// UUID that makes a retry safe.
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
    request_id: String,
}

impl Create {
    pub(super) async fn run(self, client: &Client) -> Result<u8, Failure> {
        let request = client.request(self.request());
        let answer = client.call(client.keys().create_key(request)).await?;
        let secret = Zeroizing::new(answer.secret);
        show_secret(client, answer.key.as_ref(), None, &secret)
    }

    fn request(self) -> CreateKeyRequest {
        let refill = self.credits_refill;
        CreateKeyRequest {
            organization_id: self.organization,
            name: self.name,
            environment: self.environment,
            scopes: self.scopes,
            metadata: self.metadata.into_iter().collect(),
            owner_id: self.owner,
            allowed_cidrs: self.cidrs,
            rate_limits: self.rate_limits,
            credits: self.credits.map(|remaining| values::credits(remaining, refill)),
            lifetime: self.expire_time.map(Lifetime::ExpireTime).or(self.ttl.map(Lifetime::Ttl)),
            request_id: self.request_id,
        }
    }
}
