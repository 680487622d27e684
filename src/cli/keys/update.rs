//! `keystead keys update`: one `UpdateKey` call with exactly the fields that were given.
//!
//! Lists and maps are replaced as a whole, and emptied by a `--no-` flag, since "nothing given" means "leave it".
//! Invariant: a field is in the mask if and only if one of its flags was given.

use clap::Args;
use prost_types::{FieldMask, Timestamp};

use super::show;
use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::values;
use crate::proto::v1::{ApiKey, RateLimit, RefillInterval, UpdateKeyRequest};

/// Flags of `keys update`.
#[derive(Debug, Args)]
pub(super) struct Update {
    /// Id of the key.
    #[arg(value_name = "ID")]
    id: String,
    /// Only if the key still has this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Changes {
    /// New name.
    #[arg(long)]
    name: Option<String>,
    /// New scopes in place of all old ones; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<String>,
    /// Remove all scopes.
    #[arg(long, conflicts_with = "scopes")]
    no_scopes: bool,
    /// New metadata in place of all old; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    metadata: Vec<(String, String)>,
    /// Remove all metadata.
    #[arg(long, conflicts_with = "metadata")]
    no_metadata: bool,
    /// New owner; empty for none.
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// New networks in place of all old ones; may be repeated.
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    cidrs: Vec<String>,
    /// Allow any address.
    #[arg(long, conflicts_with = "cidrs")]
    no_cidrs: bool,
    /// New limits in place of all old ones, as NAME=LIMIT/WINDOW[/shadow]; may be repeated.
    #[arg(long = "rate-limit", value_name = "LIMIT", value_parser = values::rate_limit)]
    rate_limits: Vec<RateLimit>,
    /// Remove all limits.
    #[arg(long, conflicts_with = "rate_limits")]
    no_rate_limits: bool,
    /// Credits left, in place of the old credits and their refill.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    credits: Option<i64>,
    /// Raise the credits to AMOUNT again, as AMOUNT/day or AMOUNT/month.
    #[arg(long, value_name = "REFILL", value_parser = values::refill, requires = "credits")]
    credits_refill: Option<(i64, RefillInterval)>,
    /// Count uses down no more.
    #[arg(long, conflicts_with_all = ["credits", "credits_refill"])]
    no_credits: bool,
    /// New time of expiry.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    expire_time: Option<Timestamp>,
    /// Never expire.
    #[arg(long, conflicts_with = "expire_time")]
    no_expire_time: bool,
    /// Whether the key may be used.
    #[arg(long, value_name = "true|false")]
    enabled: Option<bool>,
}

impl Update {
    pub(super) async fn run(self, client: &Client) -> Result<u8, Failure> {
        let request = client.request(self.request());
        let answer = client.call(client.keys().update_key(request)).await?;
        show(client, answer.key.as_ref())
    }

    fn request(self) -> UpdateKeyRequest {
        let changes = self.changes;
        let paths = changes.mask();
        let refill = changes.credits_refill;
        UpdateKeyRequest {
            key: Some(ApiKey {
                id: self.id,
                name: changes.name.unwrap_or_default(),
                scopes: changes.scopes,
                metadata: changes.metadata.into_iter().collect(),
                owner_id: changes.owner.unwrap_or_default(),
                allowed_cidrs: changes.cidrs,
                rate_limits: changes.rate_limits,
                credits: changes.credits.map(|remaining| values::credits(remaining, refill)),
                expire_time: changes.expire_time,
                enabled: changes.enabled.unwrap_or_default(),
                ..ApiKey::default()
            }),
            update_mask: Some(FieldMask { paths }),
            etag: self.etag,
        }
    }
}

impl Changes {
    fn mask(&self) -> Vec<String> {
        values::mask(&[
            ("name", self.name.is_some()),
            ("scopes", self.no_scopes || !self.scopes.is_empty()),
            ("metadata", self.no_metadata || !self.metadata.is_empty()),
            ("owner_id", self.owner.is_some()),
            ("allowed_cidrs", self.no_cidrs || !self.cidrs.is_empty()),
            ("rate_limits", self.no_rate_limits || !self.rate_limits.is_empty()),
            ("credits", self.no_credits || self.credits.is_some()),
            ("expire_time", self.no_expire_time || self.expire_time.is_some()),
            ("enabled", self.enabled.is_some()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        update: Update,
    }

    fn parse(flags: &[&str]) -> Result<UpdateKeyRequest, clap::Error> {
        let line = ["update", "k"].iter().chain(flags);
        Command::try_parse_from(line).map(|command| command.update.request())
    }

    #[test]
    fn the_mask_names_exactly_what_was_given() {
        let request = parse(&["--enabled", "false", "--no-scopes", "--owner", ""]).expect("flags");
        let paths = request.update_mask.map(|mask| mask.paths);
        assert_eq!(paths, Some(vec!["scopes".to_owned(), "owner_id".to_owned(), "enabled".to_owned()]));
        let request = parse(&["--credits", "5", "--credits-refill", "10/day"]).expect("flags");
        let credits = request.key.and_then(|key| key.credits).expect("credits");
        assert_eq!((credits.remaining, credits.refill_amount), (5, 10));
    }

    #[test]
    fn nothing_to_change_and_contradictions_are_usage_errors() {
        let lines: [&[&str]; 5] = [
            &[],
            &["--etag", "e"],
            &["--no-scopes", "--scope", "a"],
            &["--credits-refill", "1/day"],
            &["--expire-time", "2026-01-31", "--no-expire-time"],
        ];
        for line in lines {
            assert_eq!(parse(line).expect_err("refused").exit_code(), 2, "{line:?}");
        }
    }
}
