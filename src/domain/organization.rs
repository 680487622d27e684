//! The organization: the tenant that owns keys, with its plan, its key cap, its limits and its monthly quota.
//! Must not hold its keys; they are listed page by page.

use std::collections::BTreeMap;

use super::{
    Invalid,
    ids::{OrganizationId, RecordId},
    key::stored_enum,
    limits::RateLimit,
    secret::SecretPrefix,
    time::Timestamp,
};

/// The slug of the built-in organization whose keys act on every organization.
pub const SYSTEM_SLUG: &str = "system";
/// The highest key cap.
const KEYS_MAX: i64 = 1_000_000_000;
/// The highest monthly quota.
const MONTHLY_QUOTA_MAX: i64 = 1_000_000_000_000;

stored_enum! {
    /// A label that an organization carries; no limit follows from it.
    Plan { Free = "free", Pro = "pro", Enterprise = "enterprise" }
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    pub id: OrganizationId,
    pub name: String,
    pub slug: String,
    /// In ASCII lower case.
    pub email: Option<String>,
    pub plan: Plan,
    /// Keys of an inactive organization are refused.
    pub active: bool,
    /// The most keys, not counting revoked ones, that it may have; 0 for no cap.
    pub max_keys: i64,
    /// Charged by all its keys together.
    pub rate_limits: Vec<RateLimit>,
    /// The most that all its keys together may be charged in a calendar month, UTC; 0 for no quota.
    pub monthly_quota: i64,
    pub secret_prefix: SecretPrefix,
    pub metadata: BTreeMap<String, String>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    /// Changes with every update.
    pub etag: i64,
}

/// What a caller decides about a new organization.
#[derive(Debug, Clone)]
pub struct NewOrganization {
    pub name: String,
    pub slug: String,
    pub email: Option<String>,
    pub plan: Plan,
    pub max_keys: i64,
    pub rate_limits: Vec<RateLimit>,
    pub monthly_quota: i64,
    pub secret_prefix: SecretPrefix,
    pub metadata: BTreeMap<String, String>,
    /// A repeat with the same id never creates a second organization.
    pub request_id: Option<RecordId>,
}

/// New values for some settings of an organization; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default)]
pub struct OrganizationChanges {
    pub name: Option<String>,
    pub slug: Option<String>,
    /// `Some(None)` takes the address away.
    pub email: Option<Option<String>>,
    pub plan: Option<Plan>,
    pub max_keys: Option<i64>,
    pub rate_limits: Option<Vec<RateLimit>>,
    pub monthly_quota: Option<i64>,
    pub secret_prefix: Option<SecretPrefix>,
    pub metadata: Option<BTreeMap<String, String>>,
}

impl OrganizationChanges {
    /// The names of the settings that change, for the audit event.
    #[must_use]
    pub fn paths(&self) -> Vec<&'static str> {
        [
            ("name", self.name.is_some()),
            ("slug", self.slug.is_some()),
            ("email", self.email.is_some()),
            ("plan", self.plan.is_some()),
            ("max_keys", self.max_keys.is_some()),
            ("rate_limits", self.rate_limits.is_some()),
            ("monthly_quota", self.monthly_quota.is_some()),
            ("secret_prefix", self.secret_prefix.is_some()),
            ("metadata", self.metadata.is_some()),
        ]
        .into_iter()
        .filter_map(|(path, changes)| changes.then_some(path))
        .collect()
    }

    /// The organization as it will be.
    #[must_use]
    pub fn apply(self, mut organization: Organization) -> Organization {
        organization.name = self.name.unwrap_or(organization.name);
        organization.slug = self.slug.unwrap_or(organization.slug);
        organization.email = self.email.unwrap_or(organization.email);
        organization.plan = self.plan.unwrap_or(organization.plan);
        organization.max_keys = self.max_keys.unwrap_or(organization.max_keys);
        organization.rate_limits = self.rate_limits.unwrap_or(organization.rate_limits);
        organization.monthly_quota = self.monthly_quota.unwrap_or(organization.monthly_quota);
        organization.secret_prefix = self.secret_prefix.unwrap_or(organization.secret_prefix);
        organization.metadata = self.metadata.unwrap_or(organization.metadata);
        organization
    }
}

/// How one organization is named.
#[derive(Debug, Clone)]
pub enum OrganizationSelector {
    Id(OrganizationId),
    Slug(String),
    Email(String),
}

/// Which organizations a list shows.
#[derive(Debug, Clone, Default)]
pub struct OrganizationFilter {
    pub active: Option<bool>,
    /// Folded (see `text::fold`), never empty.
    pub name_contains: Option<String>,
}

/// Reads a key cap: 0 (none) to 1,000,000,000.
///
/// # Errors
/// Refuses anything else.
pub fn parse_max_keys(value: i64) -> Result<i64, Invalid> {
    parse_range(value, KEYS_MAX)
}

/// Reads a monthly quota: 0 (none) to 10^12.
///
/// # Errors
/// Refuses anything else.
pub fn parse_monthly_quota(value: i64) -> Result<i64, Invalid> {
    parse_range(value, MONTHLY_QUOTA_MAX)
}

fn parse_range(value: i64, max: i64) -> Result<i64, Invalid> {
    if (0..=max).contains(&value) { Ok(value) } else { Err(Invalid::new(format!("must be 0 to {max}"))) }
}
