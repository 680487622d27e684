//! `keystead keys revoke-all`: ends all keys of an organization, or of one owner in it, with one `RevokeKeys` call.
//!
//! Without `--yes` a dry run counts the keys first, and a person on a terminal is asked. Invariant: nothing is revoked
//! that nobody said yes to; which keys there are is the service's to say, in the call that revokes them.

use clap::Args;
use serde_json::json;

use super::REASONS;
use crate::cli::client::Client;
use crate::cli::confirm::confirm;
use crate::cli::failure::{DONE, Failure};
use crate::cli::{output, values};
use crate::config::OutputFormat;
use crate::proto::v1::{RevocationReason, RevokeKeysRequest, RevokeKeysResponse};

/// Flags of `keys revoke-all`.
#[derive(Debug, Args)]
pub(super) struct RevokeAll {
    /// Id of the organization.
    #[arg(long, value_name = "ID")]
    organization: String,
    /// Only keys of this owner.
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// Why.
    #[arg(long, value_parser = values::choice(REASONS, "REVOCATION_REASON_", RevocationReason::from_str_name))]
    reason: Option<i32>,
    /// Note for the records.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Only tell which keys it would be.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Revoke without asking.
    #[arg(long)]
    yes: bool,
}

impl RevokeAll {
    pub(super) async fn run(self, client: &Client) -> Result<u8, Failure> {
        let whole = RevokeKeysRequest {
            organization_id: self.organization,
            owner_id: self.owner,
            reason: self.reason.unwrap_or_default(),
            note: self.note,
            dry_run: false,
        };
        if self.yes {
            return show(client, &call(client, whole).await?);
        }
        let told = call(client, RevokeKeysRequest { dry_run: true, ..whole.clone() }).await?;
        if self.dry_run {
            return show(client, &told);
        }
        output::note(&format!("This revokes {} keys for good.", told.key_count));
        confirm("revoke", "not revoked")?;
        show(client, &call(client, whole).await?)
    }
}

async fn call(client: &Client, request: RevokeKeysRequest) -> Result<RevokeKeysResponse, Failure> {
    client.call(client.keys().revoke_keys(client.request(request))).await
}

fn show(client: &Client, answer: &RevokeKeysResponse) -> Result<u8, Failure> {
    output::print(&match client.output() {
        OutputFormat::Table => {
            let rows: Vec<_> = answer.key_ids.iter().map(|id| vec![("key_id", json!(id))]).collect();
            let sums = vec![("key_count", json!(answer.key_count)), ("revision", json!(answer.revision))];
            output::table(&["key_id"], &rows) + "\n" + &output::record(&sums)
        }
        OutputFormat::Json => output::json(
            &json!({ "key_ids": answer.key_ids, "key_count": answer.key_count, "revision": answer.revision }),
        ),
    })?;
    Ok(DONE)
}
