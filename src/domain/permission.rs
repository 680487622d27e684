//! Who a caller is and what it may do: the permissions of Keystead's own API, which are
//! scopes of the caller's key under `keystead.`, and the organizations that it reaches.
//! Must not look anything up. Invariant: nobody hands out a `keystead.` scope that they do not hold.

use std::sync::Arc;

use super::{
    ids::{KeyId, OrganizationId},
    record::KeyRecord,
    scope::Scope,
};

/// What stands before every permission of Keystead's own.
const OWN_SCOPES: &str = "keystead.";
/// The scope that stands for all permissions.
pub const ADMIN_SCOPE: &str = "keystead.admin";

/// A permission of Keystead's own API; each opens the rpcs that the table in the README names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    KeysVerify,
    KeysCreate,
    KeysImport,
    KeysUpdate,
    KeysRotate,
    KeysRead,
    KeysRevoke,
    UsageRead,
    UsageReport,
    OrganizationsRead,
    /// As `OrganizationsWrite`, but for keys of `system` alone.
    OrganizationsCreate,
    OrganizationsWrite,
    AuditRead,
}

impl Permission {
    /// The scope that grants this permission.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeysVerify => "keystead.keys.verify",
            Self::KeysCreate => "keystead.keys.create",
            Self::KeysImport => "keystead.keys.import",
            Self::KeysUpdate => "keystead.keys.update",
            Self::KeysRotate => "keystead.keys.rotate",
            Self::KeysRead => "keystead.keys.read",
            Self::KeysRevoke => "keystead.keys.revoke",
            Self::UsageRead => "keystead.usage.read",
            Self::UsageReport => "keystead.usage.report",
            Self::OrganizationsRead => "keystead.organizations.read",
            Self::OrganizationsCreate | Self::OrganizationsWrite => "keystead.organizations.write",
            Self::AuditRead => "keystead.audit.read",
        }
    }
}

/// The organizations that a caller acts on. What is out of reach does not exist for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Every organization: callers of the organization `system`.
    All,
    /// The caller's own organization alone.
    Only(OrganizationId),
}

impl Reach {
    /// Whether `organization` exists for the caller.
    #[must_use]
    pub fn includes(self, organization: OrganizationId) -> bool {
        match self {
            Self::All => true,
            Self::Only(own) => own == organization,
        }
    }
}

/// An authenticated caller: the key that it authenticated with.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Shared with the cache, so that knowing the caller of a verification copies nothing.
    key: Arc<KeyRecord>,
}

impl Caller {
    /// Whoever holds this key.
    #[must_use]
    pub const fn new(key: Arc<KeyRecord>) -> Self {
        Self { key }
    }

    /// The key's id.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.key.id
    }

    /// The key's name, for audit events.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// Which organizations the caller acts on.
    #[must_use]
    pub fn reach(&self) -> Reach {
        match self.key.organization_id {
            OrganizationId::SYSTEM => Reach::All,
            own => Reach::Only(own),
        }
    }

    /// Whether the caller holds `permission`.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        let covers = |held: &Scope| held.covers_text(permission.as_str()) || held.covers_text(ADMIN_SCOPE);
        self.key.scopes.iter().any(covers)
    }

    /// The first of `scopes` that the caller may not hand out, if any: one under `keystead.`, or a wildcard that
    /// reaches into it, which the caller's own scopes do not cover. Scopes of other systems are free.
    #[must_use]
    pub fn beyond_own<'a>(&self, scopes: &'a [Scope]) -> Option<&'a Scope> {
        scopes.iter().find(|scope| scope.reaches_into(OWN_SCOPES) && !self.covers_own(scope))
    }

    fn covers_own(&self, wanted: &Scope) -> bool {
        self.key.scopes.iter().any(|held| held.covers(wanted)) || is_admin(&self.key.scopes)
    }
}

/// Whether these scopes grant every permission.
#[must_use]
pub fn is_admin(scopes: &[Scope]) -> bool {
    scopes.iter().any(|held| held.covers_text(ADMIN_SCOPE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::samples;

    fn scopes(texts: &[&str]) -> Vec<Scope> {
        texts.iter().map(|text| Scope::parse(text).unwrap()).collect()
    }

    fn caller(texts: &[&str]) -> Caller {
        Caller::new(Arc::new(KeyRecord { scopes: scopes(texts).into(), ..samples::key_record() }))
    }

    #[test]
    fn permissions_come_from_scopes_wildcards_and_admin() {
        assert!(caller(&["keystead.keys.verify"]).may(Permission::KeysVerify));
        assert!(caller(&["keystead.keys.*"]).may(Permission::KeysRevoke));
        assert!(caller(&["keystead.admin"]).may(Permission::AuditRead));
        assert!(caller(&["*"]).may(Permission::AuditRead));
        assert!(!caller(&["keystead.keys.*"]).may(Permission::UsageRead));
        assert!(!caller(&["invoices:read"]).may(Permission::KeysRead));
    }

    #[test]
    fn nobody_hands_out_more_than_they_hold() {
        let creator = caller(&["keystead.keys.create", "keystead.usage.*"]);
        assert_eq!(creator.beyond_own(&scopes(&["invoices:*", "keystead.usage.read", "keystead.keys.create"])), None);
        for text in ["*", "k*", "keystead.*", "keystead.admin", "keystead.keys.*", "keystead.keys.read"] {
            assert!(creator.beyond_own(&scopes(&[text])).is_some(), "{text}");
        }
        assert_eq!(caller(&["keystead.admin"]).beyond_own(&scopes(&["*", "keystead.keys.*"])), None);
    }
}
