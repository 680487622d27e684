//! The API key: the record that stands for a secret, and the closed sets of words that describe it.
//! Must not hold the secret or its digest, so that a record can be logged by its id without a second thought.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    ids::{KeyId, OrganizationId, RecordId},
    limits::{Credits, RateLimit},
    scope::Scope,
    time::Timestamp,
};

/// Defines an enum with the text that stands for each value in the database.
macro_rules! stored_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value),+ }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$value),+];

            /// The text that stands for this value at rest.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text),+ }
            }

            /// Reads the stored text, `None` for a word that this version does not know.
            #[must_use]
            pub fn from_stored(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$value),)+ _ => None }
            }
        }
    };
}
pub(crate) use stored_enum;

stored_enum! {
    /// Where a key may be used; shown in the secret itself.
    Environment { Live = "live", Test = "test" }
}

stored_enum! {
    /// What was decided about a key. Whether it has expired follows from the clock and is not stored.
    StoredStatus { Active = "active", Disabled = "disabled", Revoked = "revoked" }
}

stored_enum! {
    /// Why a key was revoked; the names follow RFC 5280, section 5.3.1, where it has one.
    RevocationReason {
        Unspecified = "unspecified",
        KeyCompromise = "key_compromise",
        Superseded = "superseded",
        OwnerLeft = "owner_left",
        PrivilegeWithdrawn = "privilege_withdrawn",
        Cessation = "cessation",
        Other = "other",
    }
}

/// The status of a key at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    Active,
    Disabled,
    Revoked,
    Expired,
}

impl StoredStatus {
    /// What it comes to at `now`; the first that applies of revoked, disabled, expired, active.
    #[must_use]
    pub fn at(self, expire_time: Option<Timestamp>, now: Timestamp) -> KeyStatus {
        match self {
            Self::Revoked => KeyStatus::Revoked,
            Self::Disabled => KeyStatus::Disabled,
            Self::Active if expire_time.is_some_and(|end| end <= now) => KeyStatus::Expired,
            Self::Active => KeyStatus::Active,
        }
    }
}

/// The end of a key: final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub time: Timestamp,
    /// The id of the key that revoked it, or a word such as `sql` where no key did.
    pub by: String,
    pub reason: RevocationReason,
    pub note: String,
}

/// An API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    pub name: String,
    /// Such as `pk_live_`, for display.
    pub prefix: String,
    /// The secret's last 4 characters, for display.
    pub hint: String,
    pub environment: Environment,
    pub stored_status: StoredStatus,
    pub scopes: Vec<Scope>,
    pub metadata: BTreeMap<String, String>,
    /// The owner's id in the caller's system, empty for none.
    pub owner_id: String,
    pub allowed_cidrs: Vec<IpNet>,
    pub rate_limits: Vec<RateLimit>,
    pub credits: Option<Credits>,
    /// When the credits are refilled next, where they are.
    pub refill_time: Option<Timestamp>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub expire_time: Option<Timestamp>,
    pub last_used_time: Option<Timestamp>,
    pub request_count: i64,
    /// The id of the key that created it, or `init`.
    pub created_by: String,
    pub revocation: Option<Revocation>,
    pub rotated_from_id: Option<KeyId>,
    /// The newest key of its chain of rotations, where it is not that itself: the one that holds the credits.
    pub successor_id: Option<KeyId>,
    /// The oldest key of its chain of rotations: the id under which rate limits count, so that rotating
    /// a key does not start its windows anew.
    pub counter_id: KeyId,
    /// Changes with every update.
    pub etag: i64,
}

impl ApiKey {
    /// The status at `now`.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> KeyStatus {
        self.stored_status.at(self.expire_time, now)
    }

    /// The credits as they stand at `now`: a refill that is due counts, also before a charge has written it down.
    #[must_use]
    pub fn credits_at(&self, now: Timestamp) -> Option<Credits> {
        let credits = self.credits?;
        match (credits.refill, self.refill_time) {
            (Some(refill), Some(due)) if due <= now => {
                Some(Credits { remaining: credits.remaining.max(refill.amount), ..credits })
            }
            _ => Some(credits),
        }
    }

    /// The key whose row holds the credits that this key spends.
    #[must_use]
    pub fn credits_id(&self) -> KeyId {
        self.successor_id.unwrap_or(self.id)
    }
}

/// What a caller decides about a new key.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub organization_id: OrganizationId,
    pub name: String,
    pub environment: Environment,
    pub scopes: Vec<Scope>,
    pub metadata: BTreeMap<String, String>,
    pub owner_id: String,
    pub allowed_cidrs: Vec<IpNet>,
    pub rate_limits: Vec<RateLimit>,
    pub credits: Option<Credits>,
    pub lifetime: Lifetime,
    /// A repeat with the same id never creates a second key.
    pub request_id: Option<RecordId>,
}

/// How long a new key lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    Unlimited,
    Until(Timestamp),
    For(std::time::Duration),
}

impl Lifetime {
    /// The moment of expiry of a key created at `now`.
    #[must_use]
    pub fn expire_time(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Unlimited => None,
            Self::Until(end) => Some(end),
            Self::For(span) => Some(now.plus(span)),
        }
    }
}

/// New values for some settings of a key; `None` leaves a setting as it is.
#[derive(Debug, Clone, Default)]
pub struct KeyChanges {
    pub name: Option<String>,
    pub scopes: Option<Vec<Scope>>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub owner_id: Option<String>,
    pub allowed_cidrs: Option<Vec<IpNet>>,
    pub rate_limits: Option<Vec<RateLimit>>,
    /// `Some(None)` makes the key unlimited.
    pub credits: Option<Option<Credits>>,
    /// `Some(None)` takes the expiry away.
    pub expire_time: Option<Option<Timestamp>>,
    pub enabled: Option<bool>,
}

impl KeyChanges {
    /// The names of the settings that change, for the audit event.
    #[must_use]
    pub fn paths(&self) -> Vec<&'static str> {
        [
            ("name", self.name.is_some()),
            ("scopes", self.scopes.is_some()),
            ("metadata", self.metadata.is_some()),
            ("owner_id", self.owner_id.is_some()),
            ("allowed_cidrs", self.allowed_cidrs.is_some()),
            ("rate_limits", self.rate_limits.is_some()),
            ("credits", self.credits.is_some()),
            ("expire_time", self.expire_time.is_some()),
            ("enabled", self.enabled.is_some()),
        ]
        .into_iter()
        .filter_map(|(path, changes)| changes.then_some(path))
        .collect()
    }

    /// The key as it will be.
    #[must_use]
    pub fn apply(self, mut key: ApiKey) -> ApiKey {
        key.name = self.name.unwrap_or(key.name);
        key.scopes = self.scopes.unwrap_or(key.scopes);
        key.metadata = self.metadata.unwrap_or(key.metadata);
        key.owner_id = self.owner_id.unwrap_or(key.owner_id);
        key.allowed_cidrs = self.allowed_cidrs.unwrap_or(key.allowed_cidrs);
        key.rate_limits = self.rate_limits.unwrap_or(key.rate_limits);
        key.credits = self.credits.unwrap_or(key.credits);
        key.expire_time = self.expire_time.unwrap_or(key.expire_time);
        if let Some(enabled) = self.enabled {
            key.stored_status = if enabled { StoredStatus::Active } else { StoredStatus::Disabled };
        }
        key
    }
}

/// Which keys of an organization a list shows.
#[derive(Debug, Clone)]
pub struct KeyFilter {
    pub organization_id: OrganizationId,
    pub status: Option<KeyStatus>,
    pub environment: Option<Environment>,
    pub owner_id: Option<String>,
    /// Folded (see `text::fold`), never empty.
    pub name_contains: Option<String>,
    pub expiring_before: Option<Timestamp>,
    pub unused_since: Option<Timestamp>,
}

impl KeyFilter {
    /// All keys of an organization.
    #[must_use]
    pub const fn all_of(organization_id: OrganizationId) -> Self {
        Self {
            organization_id,
            status: None,
            environment: None,
            owner_id: None,
            name_contains: None,
            expiring_before: None,
            unused_since: None,
        }
    }
}
