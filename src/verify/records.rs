//! The records that verifications look up: digest to key, organization id to organization, each through a cache.
//! Digests that belong to no key are remembered briefly, in a bounded part of their own, so that a flood of garbage
//! cannot evict real keys. Concurrent misses of one digest ask the database once.
//! Invariant: "no such key" is said only where the database said so; a fault is an error, never an absence.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::OnceCell;

use super::cache::{Begun, GenerationCache, Slot};
use crate::{
    domain::{digest::Digest, ids::OrganizationId, key::ApiKey, organization::Organization, permission::Reach},
    store::{Database, Store, StoreError, api_keys, key_changes::Changed, organizations},
};

/// The bounds of the cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    pub entries_max: u64,
    pub entry_age_max: Duration,
    pub negative_entries_max: u64,
    pub negative_age_max: Duration,
}

impl CacheLimits {
    /// Holds nothing, for commands that verify nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            entries_max: 0,
            entry_age_max: Duration::ZERO,
            negative_entries_max: 0,
            negative_age_max: Duration::ZERO,
        }
    }
}

/// Whether an answer may come from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    Cached,
    /// Reads the database.
    Fresh,
    /// Reads the database, on the control plane's connections.
    FreshForControl,
}

/// Loads under way, by what they load and by the generation they began in: whoever asks after an eviction must not be
/// given what a load from before it finds.
struct Flights<K, V>(Mutex<HashMap<(K, u64), Flight<V>>>);

/// What one load finds: nothing, or the record.
type Flight<V> = Arc<OnceCell<Option<Arc<V>>>>;

/// A place on a load under way; leaving it, also by being cancelled, takes the load off the board.
struct Seat<'a, K: Copy + Eq + Hash, V> {
    flights: &'a Flights<K, V>,
    name: (K, u64),
    flight: Flight<V>,
}

impl<K: Copy + Eq + Hash, V> Flights<K, V> {
    fn none() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn board(&self, what: K, began: Begun) -> Seat<'_, K, V> {
        let name = (what, began.generation());
        let flight = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone();
        Seat { flights: self, name, flight }
    }
}

impl<K: Copy + Eq + Hash, V> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// The cached records of one process.
pub struct Records {
    store: Store,
    keys: GenerationCache<Digest, Arc<ApiKey>>,
    unknown: GenerationCache<Digest, ()>,
    organizations: GenerationCache<OrganizationId, Arc<Organization>>,
    key_flights: Flights<Digest, ApiKey>,
    organization_flights: Flights<OrganizationId, Organization>,
}

impl Slot for Digest {
    fn slot(&self) -> u64 {
        self.spread()
    }
}

impl Slot for OrganizationId {
    fn slot(&self) -> u64 {
        self.spread()
    }
}

impl Records {
    /// An empty cache over this store.
    #[must_use]
    pub fn new(store: Store, limits: CacheLimits) -> Self {
        Self {
            store,
            keys: GenerationCache::new(limits.entries_max, limits.entry_age_max),
            unknown: GenerationCache::new(limits.negative_entries_max, limits.negative_age_max),
            organizations: GenerationCache::new(limits.entries_max, limits.entry_age_max),
            key_flights: Flights::none(),
            organization_flights: Flights::none(),
        }
    }

    /// The key with this digest, or `None` where the database knows no such key.
    ///
    /// # Errors
    /// Where the database cannot say.
    pub async fn find_key(&self, digest: &Digest, freshness: Freshness) -> Result<Option<Arc<ApiKey>>, StoreError> {
        match freshness {
            Freshness::Cached => self.cached_key(digest).await,
            Freshness::Fresh => Ok(api_keys::find_by_digest(self.store.verify(), digest).await?.map(Arc::new)),
            Freshness::FreshForControl => {
                Ok(api_keys::find_by_digest(self.store.control(), digest).await?.map(Arc::new))
            }
        }
    }

    async fn cached_key(&self, digest: &Digest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        if let Some(key) = self.keys.get(digest) {
            return Ok(Some(key));
        }
        if self.unknown.get(digest).is_some() {
            return Ok(None);
        }
        let began = (self.keys.begin_load(digest), self.unknown.begin_load(digest));
        let seat = self.key_flights.board(*digest, began.0);
        seat.flight.get_or_try_init(|| self.load_key(digest, began)).await.cloned()
    }

    async fn load_key(&self, digest: &Digest, began: (Begun, Begun)) -> Result<Option<Arc<ApiKey>>, StoreError> {
        let found = api_keys::find_by_digest(self.store.verify(), digest).await?.map(Arc::new);
        match &found {
            Some(key) => self.keys.insert(*digest, key.clone(), began.0),
            None => self.unknown.insert(*digest, (), began.1),
        }
        Ok(found)
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
            Freshness::Cached => self.cached_organization(id).await,
            Freshness::Fresh => load_organization(self.store.verify(), id).await,
            Freshness::FreshForControl => load_organization(self.store.control(), id).await,
        }
    }

    async fn cached_organization(&self, id: OrganizationId) -> Result<Option<Arc<Organization>>, StoreError> {
        if let Some(organization) = self.organizations.get(&id) {
            return Ok(Some(organization));
        }
        let began = self.organizations.begin_load(&id);
        let load = async || {
            let found = load_organization(self.store.verify(), id).await?;
            if let Some(organization) = &found {
                self.organizations.insert(id, organization.clone(), began);
            }
            Ok(found)
        };
        let seat = self.organization_flights.board(id, began);
        seat.flight.get_or_try_init(load).await.cloned()
    }

    /// Forgets a key; a look-up that begins after this sees the database's state.
    pub fn evict_key(&self, digest: &Digest) {
        self.keys.evict(digest);
        self.unknown.evict(digest);
    }

    /// Forgets an organization.
    pub fn evict_organization(&self, id: OrganizationId) {
        self.organizations.evict(&id);
    }

    /// Forgets everything.
    pub fn evict_all(&self) {
        self.keys.evict_all();
        self.unknown.evict_all();
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
}

async fn load_organization(db: &impl Database, id: OrganizationId) -> Result<Option<Arc<Organization>>, StoreError> {
    Ok(organizations::find_by_id(db, Reach::All, id).await?.map(Arc::new))
}
