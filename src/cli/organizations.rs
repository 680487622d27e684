//! `keystead organizations`: create, read, change, switch on and off, delete.
//!
//! Each action is one call of `OrganizationService`. What is allowed is the service's to say. Invariant: `update`
//! sends exactly the fields that were given, so an absent flag never changes anything.

use clap::{Args, Subcommand};
use prost_types::FieldMask;
use serde_json::json;

use super::client::Client;
use super::failure::{DONE, Failure};
use super::output::{self, object};
use super::page::{self, Page};
use super::{fields, values};
use crate::config::{ClientSettings, Environment, Flags, OutputFormat};
use crate::proto::v1::get_organization_request::Selector;
use crate::proto::v1::{
    ActivateOrganizationRequest, CreateOrganizationRequest, DeactivateOrganizationRequest, DeleteOrganizationRequest,
    GetOrganizationRequest, ListOrganizationsRequest, Organization, Plan, RateLimit, UpdateOrganizationRequest,
};

const PLANS: &[&str] = &["free", "pro", "enterprise"];
const COLUMNS: &[&str] = &["id", "slug", "name", "email", "plan", "active", "key_count", "create_time"];

/// Flags of `organizations`.
#[derive(Debug, Args)]
pub(super) struct Organizations {
    #[command(flatten)]
    flags: Flags<ClientSettings>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create an organization.
    Create(Create),
    /// Show one organization.
    Get(Get),
    /// List organizations, newest first.
    List(List),
    /// Change the given fields.
    Update(Update),
    /// Let the keys of an organization pass again.
    Activate(Named),
    /// Deny every key of an organization, until it is activated again.
    Deactivate(Named),
    /// Delete an organization.
    Delete {
        #[command(flatten)]
        named: Named,
        /// Delete its keys with it.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// Id of the organization.
    #[arg(value_name = "ID")]
    id: String,
    /// Only if the organization still has this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
}

#[derive(Debug, Args)]
struct Create {
    /// Name for people.
    #[arg(long)]
    name: String,
    /// Unique short name of a-z, 0-9 and -.
    #[arg(long)]
    slug: String,
    /// Unique contact address; without it, none.
    #[arg(long, default_value = "", hide_default_value = true)]
    email: String,
    /// What it subscribes to; free by default.
    #[arg(long, value_parser = values::choice(PLANS, "PLAN_", Plan::from_str_name))]
    plan: Option<i32>,
    /// Most keys at once; 0 for no cap.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
    max_keys: i64,
    /// Limit for all its keys together, as NAME=LIMIT/WINDOW[/shadow]; may be repeated.
    #[arg(long = "rate-limit", value_name = "LIMIT", value_parser = values::rate_limit)]
    rate_limits: Vec<RateLimit>,
    /// Units of cost in one calendar month; 0 for no quota.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
    monthly_quota: i64,
    /// What its secrets begin with in place of pk.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    secret_prefix: String,
    /// Metadata entry; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    metadata: Vec<(String, String)>,
    /// UUID that makes a retry safe.
    #[arg(long, value_name = "UUID", default_value = "", hide_default_value = true)]
    request_id: String,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Get {
    /// Id of the organization.
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Find it by slug.
    #[arg(long)]
    slug: Option<String>,
    /// Find it by email.
    #[arg(long)]
    email: Option<String>,
}

#[derive(Debug, Args)]
struct List {
    /// Only active or only inactive ones.
    #[arg(long, value_name = "true|false")]
    active: Option<bool>,
    /// Only those whose name contains this text.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    name_contains: String,
    #[command(flatten)]
    page: Page,
}

#[derive(Debug, Args)]
struct Update {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// New name.
    #[arg(long)]
    name: Option<String>,
    /// New slug.
    #[arg(long)]
    slug: Option<String>,
    /// New email.
    #[arg(long)]
    email: Option<String>,
    /// New plan.
    #[arg(long, value_parser = values::choice(PLANS, "PLAN_", Plan::from_str_name))]
    plan: Option<i32>,
    /// New key cap; 0 for none.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_keys: Option<i64>,
    /// New limits in place of all old ones; may be repeated.
    #[arg(long = "rate-limit", value_name = "LIMIT", value_parser = values::rate_limit)]
    rate_limits: Vec<RateLimit>,
    /// Remove all limits.
    #[arg(long, conflicts_with = "rate_limits")]
    no_rate_limits: bool,
    /// New monthly quota; 0 for none.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    monthly_quota: Option<i64>,
    /// New prefix for secrets issued from now on; empty for pk.
    #[arg(long, value_name = "PREFIX")]
    secret_prefix: Option<String>,
    /// New metadata in place of all old; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    metadata: Vec<(String, String)>,
    /// Remove all metadata.
    #[arg(long, conflicts_with = "metadata")]
    no_metadata: bool,
}

impl Organizations {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let client = Client::open(&self.flags, environment).await?;
        match self.action {
            Action::Create(create) => {
                let request = client.request(create.request());
                let answer = client.call(client.organizations().create_organization(request)).await?;
                show(&client, answer.organization)
            }
            Action::Get(get) => {
                let request = client.request(GetOrganizationRequest { selector: get.selector() });
                let answer = client.call(client.organizations().get_organization(request)).await?;
                show(&client, answer.organization)
            }
            Action::List(list) => list.run(&client).await,
            Action::Update(update) => {
                let request = client.request(update.request());
                let answer = client.call(client.organizations().update_organization(request)).await?;
                show(&client, answer.organization)
            }
            Action::Activate(Named { id, etag }) => {
                let request = client.request(ActivateOrganizationRequest { organization_id: id, etag });
                let answer = client.call(client.organizations().activate_organization(request)).await?;
                show(&client, answer.organization)
            }
            Action::Deactivate(Named { id, etag }) => {
                let request = client.request(DeactivateOrganizationRequest { organization_id: id, etag });
                let answer = client.call(client.organizations().deactivate_organization(request)).await?;
                show(&client, answer.organization)
            }
            Action::Delete { named: Named { id, etag }, force } => {
                let request = client.request(DeleteOrganizationRequest { organization_id: id, etag, force });
                let answer = client.call(client.organizations().delete_organization(request)).await?;
                show(&client, answer.organization)
            }
        }
    }
}

fn show(client: &Client, organization: Option<Organization>) -> Result<u8, Failure> {
    let organization = organization.unwrap_or_default();
    output::print(&match client.output() {
        OutputFormat::Table => output::record(&fields::organization(&organization)),
        OutputFormat::Json => output::json(&json!({ "organization": object(fields::organization(&organization)) })),
    })?;
    Ok(DONE)
}

impl Create {
    fn request(self) -> CreateOrganizationRequest {
        CreateOrganizationRequest {
            name: self.name,
            slug: self.slug,
            email: self.email,
            plan: self.plan.unwrap_or_default(),
            max_keys: self.max_keys,
            rate_limits: self.rate_limits,
            monthly_quota: self.monthly_quota,
            secret_prefix: self.secret_prefix,
            metadata: self.metadata.into_iter().collect(),
            request_id: self.request_id,
        }
    }
}

impl Get {
    fn selector(self) -> Option<Selector> {
        let id = self.id.map(Selector::OrganizationId);
        id.or(self.slug.map(Selector::Slug)).or(self.email.map(Selector::Email))
    }
}

impl List {
    async fn run(self, client: &Client) -> Result<u8, Failure> {
        let mut organizations = Vec::new();
        let mut page_token = self.page.token.clone();
        loop {
            let request = ListOrganizationsRequest {
                page_size: self.page.size(),
                page_token: page_token.clone(),
                active: self.active,
                name_contains: self.name_contains.clone(),
            };
            let answer = client.call(client.organizations().list_organizations(client.request(request))).await?;
            organizations.extend(answer.organizations);
            let last = std::mem::replace(&mut page_token, answer.next_page_token);
            if !self.page.goes_on(&last, &page_token)? {
                break;
            }
        }
        let records: Vec<_> = organizations.iter().map(fields::organization).collect();
        page::print(client.output(), "organizations", COLUMNS, records, &page_token)?;
        Ok(DONE)
    }
}

impl Update {
    fn request(self) -> UpdateOrganizationRequest {
        let changes = self.changes;
        let mask = [
            ("name", changes.name.is_some()),
            ("slug", changes.slug.is_some()),
            ("email", changes.email.is_some()),
            ("plan", changes.plan.is_some()),
            ("max_keys", changes.max_keys.is_some()),
            ("rate_limits", changes.no_rate_limits || !changes.rate_limits.is_empty()),
            ("monthly_quota", changes.monthly_quota.is_some()),
            ("secret_prefix", changes.secret_prefix.is_some()),
            ("metadata", changes.no_metadata || !changes.metadata.is_empty()),
        ];
        UpdateOrganizationRequest {
            organization: Some(Organization {
                id: self.named.id,
                name: changes.name.unwrap_or_default(),
                slug: changes.slug.unwrap_or_default(),
                email: changes.email.unwrap_or_default(),
                plan: changes.plan.unwrap_or_default(),
                max_keys: changes.max_keys.unwrap_or_default(),
                rate_limits: changes.rate_limits,
                monthly_quota: changes.monthly_quota.unwrap_or_default(),
                secret_prefix: changes.secret_prefix.unwrap_or_default(),
                metadata: changes.metadata.into_iter().collect(),
                ..Organization::default()
            }),
            update_mask: Some(FieldMask { paths: values::mask(&mask) }),
            etag: self.named.etag,
        }
    }
}
