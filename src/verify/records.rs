//! The records that verifications look up: digest to key, organization id to organization, each through a cache.
//! Keys that are not cached come through the loader.
//! Invariant: "no such key" is said only where the database said so; a fault is an error, never an absence.

use std::sync::Arc;

use super::{
    cache::Hit,
    key_caches::{CacheLimits, Cached, KeyCaches},
    loader::Loader,
    organizations::Organizations,
};
use crate::{
    domain::{digest::Digest, ids::OrganizationId, organization::Organization, record::KeyRecord},
    store::{Store, StoreError, key_changes::Changed},
};

/// Whether an answer may come from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    Cached,
    /// Reads the database.
    Fresh,
}

/// The cached records of one process.
pub struct Records {
    keys: Arc<KeyCaches>,
    loader: Loader,
    organizations: Arc<Organizations>,
}

impl Records {
    /// An empty cache over this store.
    #[must_use]
    pub fn new(store: Store, limits: CacheLimits) -> Self {
        let keys = Arc::new(KeyCaches::new(&limits));
        Self {
            loader: Loader::new(store.clone(), keys.clone(), limits.query_timeout),
            organizations: Arc::new(Organizations::new(store, &limits)),
            keys,
        }
    }

    /// The key with this digest, or `None` where the database knows no such key.
    ///
    /// # Errors
    /// Where the database cannot say.
    pub async fn find_key(&self, digest: &Digest, freshness: Freshness) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        match freshness {
            Freshness::Cached => self.cached_key(digest).await,
            // The loader's queries begin after they are asked for, so what they find is fresh.
            Freshness::Fresh => Box::pin(self.loader.find(*digest)).await,
        }
    }

    async fn cached_key(&self, digest: &Digest) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        match self.keys.get(digest) {
            Some(Cached::Key(Hit::Fresh(key))) => Ok(Some(key)),
            Some(Cached::Key(Hit::Ageing(key))) => {
                self.loader.refresh(*digest);
                Ok(Some(key))
            }
            Some(Cached::Unknown) => Ok(None),
            // In a box, so that a hit does not carry the room for a miss around.
            None => Box::pin(self.loader.find(*digest)).await,
        }
    }

    /// The organization with this id, or `None` where the database knows no such one.
    ///
    /// # Errors
    /// Where the database cannot say.
    pub async fn find_organization(
        &self,
        id: OrganizationId,
        freshness: Freshness,
    ) -> Result<Option<Arc<Organization>>, StoreError> {
        match freshness {
            Freshness::Cached => self.organizations.find(id).await,
            Freshness::Fresh => Box::pin(self.organizations.find_fresh(id)).await,
        }
    }

    /// Forgets a key; a look-up that begins after this sees the database's state.
    pub fn evict_key(&self, digest: &Digest) {
        self.keys.evict(digest);
    }

    /// Forgets an organization.
    pub fn evict_organization(&self, id: OrganizationId) {
        self.organizations.evict(id);
    }

    /// Forgets everything.
    pub fn evict_all(&self) {
        self.keys.evict_all();
        self.organizations.evict_all();
    }

    /// Forgets what a change of the feed made old.
    pub fn evict_changed(&self, changed: &Changed) {
        match changed {
            Changed::Key(digest) => self.evict_key(digest),
            Changed::KeyWithoutDigest => {}
            Changed::Organization(id) => self.evict_organization(*id),
            Changed::Unknown => self.evict_all(),
        }
    }

    /// How many queries misses have made so far; each looks up many digests.
    #[must_use]
    pub fn queries(&self) -> u64 {
        self.loader.queries()
    }

    /// How many keys, unknown digests and organizations are held.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        let (known, unknown) = self.keys.len();
        (known, unknown, self.organizations.len())
    }
}
