//! Organizations by id, through a cache. One that is not cached is asked for once, however many wait for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{runtime::Handle, sync::OnceCell, time::timeout};
use tokio_util::task::TaskTracker;

use super::{
    cache::{GenerationCache, Hit, Slot},
    key_caches::CacheLimits,
};
use crate::{
    clock::Uptime,
    domain::{ids::OrganizationId, organization::Organization, permission::Reach},
    store::{
        Database, Store, StoreError, organizations,
        turns::{TurnError, Turns},
    },
};

/// Loads under way, by what they load and by the generation they began in: whoever asks after an eviction must not be
/// given what a load from before it finds.
type Flights = Mutex<HashMap<Name, Flight>>;
type Name = (OrganizationId, u64);

/// What one load finds.
type Flight = Arc<OnceCell<Option<Arc<Organization>>>>;

/// A place on a load under way; leaving it, also by being cancelled, takes the load off the board.
struct Seat<'a> {
    flights: &'a Flights,
    name: Name,
    flight: Flight,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // The board's own and this one: whoever leaves before the others leaves the load to them.
        if Arc::strong_count(&self.flight) <= 2 {
            flights.remove(&self.name);
        }
    }
}

/// Reads past the cache at once, each of another organization.
const FRESH_AT_ONCE: usize = 2;

/// The cached organizations.
pub struct Organizations {
    store: Store,
    cache: GenerationCache<OrganizationId, Organization>,
    flights: Flights,
    query_timeout: Duration,
    /// Reads past the cache, those that come together in one.
    fresh: Turns<OrganizationId, (), Option<Arc<Organization>>>,
}

impl Slot for OrganizationId {
    fn slot(&self) -> u64 {
        self.spread()
    }
}

impl Organizations {
    /// An empty cache over this store.
    pub fn new(store: Store, limits: &CacheLimits) -> Self {
        let cache = GenerationCache::new(limits.entries_max, limits.entry_age_max);
        let own = store.clone();
        let read_once = move |id, askers: Vec<()>| {
            let store = own.clone();
            Box::pin(async move { Ok(vec![read(store.verify(), id).await?; askers.len()]) }) as _
        };
        let (runtime, tasks) = (Handle::current(), TaskTracker::new());
        let fresh = Turns::new(store.clone(), runtime, tasks, FRESH_AT_ONCE, Box::new(read_once));
        Self { store, cache, flights: Flights::default(), query_timeout: limits.query_timeout, fresh }
    }

    /// The organization with this id, or `None` where the database knows no such one.
    ///
    /// # Errors
    /// Where the database cannot say.
    pub async fn find(self: &Arc<Self>, id: OrganizationId) -> Result<Option<Arc<Organization>>, StoreError> {
        match self.cache.get(&id, Uptime::now()) {
            Some(Hit::Fresh(organization)) => Ok(Some(organization)),
            Some(Hit::Ageing(organization)) => {
                let own = self.clone();
                tokio::spawn(async move { own.load(id).await });
                Ok(Some(organization))
            }
            // In a box, so that a hit does not carry the room for a miss around.
            None => Box::pin(self.load(id)).await,
        }
    }

    /// The organization with this id as the database has it, by a read that begins after this.
    ///
    /// # Errors
    /// Where the database cannot say.
    pub async fn find_fresh(&self, id: OrganizationId) -> Result<Option<Arc<Organization>>, StoreError> {
        self.fresh.ask(id, ()).await.map_err(|error| match error {
            TurnError::Store(error) => error,
            TurnError::Overloaded | TurnError::Abandoned => StoreError::Overloaded,
        })
    }

    async fn load(&self, id: OrganizationId) -> Result<Option<Arc<Organization>>, StoreError> {
        self.store.check_there()?;
        let begun = self.cache.begin_load(&id, Uptime::now());
        let name = (id, begun.generation());
        let flight = self.flights.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default().clone();
        let seat = Seat { flights: &self.flights, name, flight };
        let load = async || {
            let found = timeout(self.query_timeout, read(self.store.verify(), id)).await;
            let found = found.unwrap_or_else(|_| Err(StoreError::timed_out()))?;
            if let Some(organization) = &found {
                self.cache.insert(id, organization.clone(), begun);
            }
            Ok(found)
        };
        seat.flight.get_or_try_init(load).await.cloned()
    }

    /// Forgets an organization.
    pub fn evict(&self, id: OrganizationId) {
        self.cache.evict(&id);
    }

    /// Forgets all.
    pub fn evict_all(&self) {
        self.cache.evict_all();
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.cache.len()
    }
}

/// Reads an organization from the database, whoever asks.
async fn read(db: &impl Database, id: OrganizationId) -> Result<Option<Arc<Organization>>, StoreError> {
    Ok(organizations::find_by_id(db, Reach::All, id).await?.map(Arc::new))
}
