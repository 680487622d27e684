//! What one process knows of keys without a digest: whether there are any and what they look like, which secrets fit
//! none, how far searches have come, and which are under way.
//! Must not decide what is said of a key. Invariant: everything here is bounded in number and in age.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};
use tokio_util::task::TaskTracker;

use crate::{
    clock::Uptime,
    domain::{digest::Digest, ids::KeyId, import::Scheme, permission::Reach, record::KeyRecord},
    service::{Context, ServiceError},
    store::{
        Store,
        slow_keys::{self, Outline},
        turns::Turns,
    },
    verify::{GenerationCache, Hit, Slot, SlowChecks},
};

/// For how long the outline of such keys is taken as known: a key that another process imports may be unknown for so
/// long. Where it takes long to ask, it is asked less often, so that asking takes a small part of the time.
const OUTLINE_AGE: Duration = Duration::from_secs(1);
const OUTLINE_REST: u32 = 20;
/// For how long an older outline still serves while a new one is asked for, so that nobody waits for it.
const OUTLINE_GRACE: Duration = Duration::from_secs(4);
/// For how long a secret that no candidate fits is not checked again, and of how many that is remembered.
const REJECTED_AGE_MAX: Duration = Duration::from_secs(5);
const REJECTED_MAX: u64 = 10_000;
/// For how long it is known that a named key has no hash and is disabled.
const WITHOUT_HASH_AGE: Duration = Duration::from_secs(1);
/// Searches at once, and those of them that ask the database: a flood of unknown secrets must not take it from the
/// look-ups of others.
const SEARCHES_MAX: usize = 256;
const QUERIES_AT_ONCE: usize = 2;
/// Searches whose progress is remembered.
const PROGRESS_MAX: usize = 1000;

/// What keys without a digest look like, as of a while ago.
#[derive(Clone)]
struct Known {
    outline: Arc<Outline>,
    until: Uptime,
}

/// What is looked for: a secret, among the keys that may be its.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub(super) digest: Digest,
    pub(super) reach: Reach,
    pub(super) key_id: Option<KeyId>,
}

impl Slot for Ask {
    fn slot(&self) -> u64 {
        self.digest.spread()
    }
}

/// What a search came to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found {
    Nothing,
    /// The digest of this scheme's key stands in the database now.
    Rehashed(Scheme),
    /// The named key has nothing to compare a secret with.
    WithoutHash(KeyId),
    /// Too many candidates to check them all, and none of those that were checked fits.
    TooMany,
    /// The checks that wait are as many as may.
    Busy,
    /// The database could not say.
    Unknown,
}

pub(super) type Flights = Mutex<HashMap<Ask, watch::Receiver<Option<Found>>>>;

/// What is known of keys without a digest, for one process.
pub struct SlowKeys {
    pub(super) checks: SlowChecks,
    /// Whether there are any and what they look like.
    outline: Mutex<Option<Known>>,
    /// Asks that, for all who want to know at once.
    ask_outline: Turns<(), (), Arc<Outline>>,
    /// Who may search, and who of them may ask the database for candidates.
    pub(super) searches: Arc<Semaphore>,
    pub(super) queries: Semaphore,
    /// Up to where a search came that had too many candidates: the next one goes on from there.
    progress: Mutex<HashMap<Ask, KeyId>>,
    /// Named keys that have no hash and were disabled a moment ago.
    without_hash: GenerationCache<Ask, Arc<KeyRecord>>,
    rejected: GenerationCache<Ask, ()>,
    nothing: Arc<()>,
    pub(super) flights: Flights,
}

impl SlowKeys {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let own = store.clone();
        let find = move |(), askers: Vec<()>| {
            let store = own.clone();
            Box::pin(async move {
                let outline = Arc::new(slow_keys::find_outline(store.verify()).await?);
                Ok(vec![outline; askers.len()])
            }) as _
        };
        let (runtime, tasks) = (Handle::current(), TaskTracker::new());
        Self {
            checks: SlowChecks::default(),
            outline: Mutex::default(),
            ask_outline: Turns::new(store, runtime, tasks, 1, Box::new(find)),
            searches: Arc::new(Semaphore::new(SEARCHES_MAX)),
            queries: Semaphore::new(QUERIES_AT_ONCE),
            progress: Mutex::default(),
            without_hash: GenerationCache::new(REJECTED_MAX, WITHOUT_HASH_AGE),
            rejected: GenerationCache::new(REJECTED_MAX, REJECTED_AGE_MAX),
            nothing: Arc::default(),
            flights: Flights::default(),
        }
    }
}

/// Takes a search off the board, also where it panics.
pub(super) struct Flight<'a> {
    pub(super) flights: &'a Flights,
    pub(super) ask: Ask,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.ask);
    }
}

impl SlowKeys {
    pub(super) fn is_rejected(&self, ask: &Ask) -> bool {
        matches!(self.rejected.get(ask, Uptime::now()), Some(Hit::Fresh(_) | Hit::Ageing(_)))
    }

    pub(super) fn reject(&self, ask: Ask) {
        let begun = self.rejected.begin_load(&ask, Uptime::now());
        self.rejected.insert(ask, self.nothing.clone(), begun);
    }

    /// Forgets what was known: keys have been imported.
    pub fn forget(&self) {
        *locked(&self.outline) = None;
        self.rejected.evict_all();
        self.without_hash.evict_all();
    }

    /// The key up to which candidates were checked by the search before this one.
    pub(super) fn progress(&self, ask: &Ask) -> Option<KeyId> {
        locked(&self.progress).get(ask).copied()
    }

    /// Notes how far a search has come; `None` where it is over.
    pub(super) fn note_progress(&self, ask: Ask, last: Option<KeyId>) {
        let mut progress = locked(&self.progress);
        match last {
            Some(last) if progress.len() < PROGRESS_MAX || progress.contains_key(&ask) => {
                progress.insert(ask, last);
            }
            Some(_) => {}
            None => {
                progress.remove(&ask);
            }
        }
    }

    /// What was answered a moment ago for a named key that has no hash.
    pub(super) fn without_hash(&self, ask: &Ask) -> Option<Arc<KeyRecord>> {
        match self.without_hash.get(&named(ask), Uptime::now())? {
            Hit::Fresh(answer) | Hit::Ageing(answer) => Some(answer.as_ref().clone()),
        }
    }

    pub(super) fn note_without_hash(&self, ask: &Ask, key: Arc<KeyRecord>) {
        let named = named(ask);
        let begun = self.without_hash.begin_load(&named, Uptime::now());
        self.without_hash.insert(named, Arc::new(key), begun);
    }
}

/// The same for whatever secret comes with the id.
fn named(ask: &Ask) -> Ask {
    Ask { digest: Digest::of(""), ..*ask }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the keys without a digest look like. Only the first who asks waits for the database; later an outline that is
/// a little too old serves while a new one is asked for.
pub(super) async fn outline(context: &Arc<Context>) -> Result<Arc<Outline>, ServiceError> {
    let known = locked(&context.slow_keys.outline).clone();
    let now = Uptime::now();
    match known {
        Some(known) if now < known.until => Ok(known.outline),
        Some(known) if now < known.until.plus(OUTLINE_GRACE) => {
            let own = context.clone();
            tokio::spawn(async move { ask_outline(&own).await });
            Ok(known.outline)
        }
        Some(_) | None => ask_outline(context).await,
    }
}

async fn ask_outline(context: &Context) -> Result<Arc<Outline>, ServiceError> {
    let asked = Uptime::now();
    let outline = context.slow_keys.ask_outline.ask((), ()).await?;
    let now = Uptime::now();
    let until = now.plus(OUTLINE_AGE.max(now.since(asked) * OUTLINE_REST));
    *locked(&context.slow_keys.outline) = Some(Known { outline: outline.clone(), until });
    Ok(outline)
}
