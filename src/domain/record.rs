//! The record: what a verification knows of a key, and nothing that it does not need.
//! Caches hold it by the hundred thousand, so it is packed: boxed texts and slices, no spare capacity.
//! Must not hold what changes without the change feed telling: credits, counts and times of use.

use ipnet::IpNet;

use super::{
    ids::{KeyId, OrganizationId, RecordId},
    key::{ApiKey, Environment, KeyStatus, StoredStatus},
    limits::RateLimit,
    scope::Scope,
    time::Timestamp,
};

/// What a verification knows of a key; the fields are those of [`ApiKey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    /// The id under which rate limits count: the oldest key of its chain of rotations.
    pub counter_id: KeyId,
    /// The key whose row holds the credits to spend; `None` where nothing bounds the key.
    pub credits_id: Option<KeyId>,
    pub environment: Environment,
    pub stored_status: StoredStatus,
    pub expire_time: Option<Timestamp>,
    pub name: Box<str>,
    pub owner_id: Box<str>,
    pub scopes: Box<[Scope]>,
    /// Sorted by name.
    pub metadata: Box<[(Box<str>, Box<str>)]>,
    pub allowed_cidrs: Box<[IpNet]>,
    pub rate_limits: Box<[RateLimit]>,
    /// The import that it came with.
    pub import_id: Option<Box<RecordId>>,
}

impl KeyRecord {
    /// The status at `now`.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> KeyStatus {
        self.stored_status.at(self.expire_time, now)
    }
}

impl From<ApiKey> for KeyRecord {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            organization_id: key.organization_id,
            counter_id: key.counter_id,
            credits_id: key.credits.map(|_| key.credits_id()),
            environment: key.environment,
            stored_status: key.stored_status,
            expire_time: key.expire_time,
            name: key.name.into(),
            owner_id: key.owner_id.into(),
            scopes: key.scopes.into(),
            metadata: key.metadata.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            allowed_cidrs: key.allowed_cidrs.into(),
            rate_limits: key.rate_limits.into(),
            import_id: None,
        }
    }
}
