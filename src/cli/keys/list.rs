//! `keystead keys list`: the keys of an organization, one page or all.
//!
//! Filters are the service's. Invariant: the arguments of a page are those of the page before, as its token demands.

use clap::Args;
use prost_types::Timestamp;

use super::ENVIRONMENTS;
use crate::cli::client::Client;
use crate::cli::failure::{DONE, Failure};
use crate::cli::page::{self, Page};
use crate::cli::{fields, values};
use crate::proto::v1::{Environment, KeyStatus, ListKeysRequest};

const STATUSES: &[&str] = &["active", "disabled", "revoked", "expired"];
const COLUMNS: &[&str] =
    &["id", "name", "prefix", "hint", "environment", "status", "owner_id", "expire_time", "last_used_time"];

/// Flags of `keys list`.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Id of the organization.
    #[arg(long, value_name = "ID")]
    organization: String,
    /// Only keys of this status.
    #[arg(long, value_parser = values::choice(STATUSES, "KEY_STATUS_", KeyStatus::from_str_name))]
    status: Option<i32>,
    /// Only keys of this environment.
    #[arg(long, value_parser = values::choice(ENVIRONMENTS, "ENVIRONMENT_", Environment::from_str_name))]
    environment: Option<i32>,
    /// Only keys of exactly this owner.
    #[arg(long, value_name = "OWNER", default_value = "", hide_default_value = true)]
    owner: String,
    /// Only keys whose name contains this text.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    name_contains: String,
    /// Only keys that expire before this time.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    expiring_before: Option<Timestamp>,
    /// Only keys not used at or after this time.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    unused_since: Option<Timestamp>,
    #[command(flatten)]
    page: Page,
}

impl List {
    pub(super) async fn run(self, client: &Client) -> Result<u8, Failure> {
        let mut records = Vec::new();
        let mut page_token = self.page.token.clone();
        loop {
            let request = client.request(self.request(&page_token));
            let answer = client.call(client.keys().list_keys(request)).await?;
            records.extend(answer.keys.iter().map(fields::key));
            let last = std::mem::replace(&mut page_token, answer.next_page_token);
            if !self.page.goes_on(&last, &page_token)? {
                break;
            }
        }
        page::print(client.output(), "keys", COLUMNS, records, &page_token)?;
        Ok(DONE)
    }

    fn request(&self, page_token: &str) -> ListKeysRequest {
        ListKeysRequest {
            organization_id: self.organization.clone(),
            page_size: self.page.size(),
            page_token: page_token.to_owned(),
            status: self.status.unwrap_or_default(),
            environment: self.environment.unwrap_or_default(),
            owner_id: self.owner.clone(),
            name_contains: self.name_contains.clone(),
            expiring_before: self.expiring_before,
            unused_since: self.unused_since,
        }
    }
}
