//! What one process knows of keys without a digest: whether there are any and what they look like, which secrets fit
//! none, and which searches are under way; how far they have come is `progress.rs`'s.
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

use super::progress::Chains;
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

/// For how long the outline of such keys is taken as known. Where it takes long to ask, it is asked less often, so that
/// asking takes a small part of the time. A key that another process imports may be unknown for so long, and then for
/// `OUTLINE_GRACE` and as long as its secret is remembered as refused.
pub(super) const OUTLINE_AGE: Duration = Duration::from_secs(1);
const OUTLINE_REST: u32 = 20;
/// For how long an older outline still serves while a new one is asked for, so that nobody waits for it.
const OUTLINE_GRACE: Duration = Duration::from_secs(4);
/// For how long a secret that no candidate fits is not checked again, and of how many that is remembered.
const REJECTED_AGE_MAX: Duration = Duration::from_secs(5);
const REJECTED_MAX: u64 = 10_000;
/// For how long it is known that a named key has no hash and is disabled.
const WITHOUT_HASH_AGE: Duration = Duration::from_secs(1);
/// Searches at once, those of them that have the same reach, so that one asker leaves places to others, and those that
/// ask the database: a flood of unknown secrets must not take it from the look-ups of others.
const SEARCHES_MAX: usize = 1024;
pub(super) const SEARCHES_EACH_MAX: usize = 256;
const QUERIES_AT_ONCE: usize = 2;

/// What keys without a digest look like, as of a while ago.
#[derive(Clone)]
struct Known {
    outline: Arc<Outline>,
    until: Uptime,
}

/// The outline, and how often all was forgotten, since keys had been imported here.
#[derive(Default)]
struct Memory {
    known: Option<Known>,
    forgotten: u64,
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
    /// The key that was named has another secret, whatever else is imported.
    Different,
    /// The digest of this scheme's key stands in the database now.
    Rehashed(Scheme),
    /// The named key has nothing to compare a secret with.
    WithoutHash(KeyId),
    /// None of those that were checked fits, and there are more, or more came in meanwhile.
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
    memory: Mutex<Memory>,
    /// Asks that, for all who want to know at once.
    ask_outline: Turns<(), (), Arc<Outline>>,
    /// Who may search, and who of them may ask the database for candidates.
    pub(super) searches: Arc<Semaphore>,
    pub(super) queries: Semaphore,
    /// Up to where searches came that had too many candidates: the next ones go on from there.
    pub(super) chains: Chains,
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
            memory: Mutex::default(),
            ask_outline: Turns::new(store, runtime, tasks, 1, Box::new(find)),
            searches: Arc::new(Semaphore::new(SEARCHES_MAX)),
            queries: Semaphore::new(QUERIES_AT_ONCE),
            chains: Chains::new(),
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

    /// Notes that a secret fits none, as of a search that began when so often all had been forgotten. Where it was
    /// forgotten since, keys may have come in that the search passed over: nothing is noted, and it says so.
    pub(super) fn reject(&self, ask: Ask, forgotten: u64) -> bool {
        // Before it is compared: what is forgotten after that makes this older than its slot.
        let begun = self.rejected.begin_load(&ask, Uptime::now());
        let holds = self.forgotten() == forgotten;
        if holds {
            self.rejected.insert(ask, self.nothing.clone(), begun);
        }
        holds
    }

    /// How often all was forgotten.
    pub(super) fn forgotten(&self) -> u64 {
        locked(&self.memory).forgotten
    }

    /// Forgets what was known: keys have been imported. Call it before the import is answered.
    pub fn forget(&self) {
        {
            let mut memory = locked(&self.memory);
            *memory = Memory { known: None, forgotten: memory.forgotten + 1 };
        }
        self.rejected.evict_all();
        self.without_hash.evict_all();
        self.chains.forget();
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
    let known = locked(&context.slow_keys.memory).known.clone();
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
    let (asked, forgotten) = (Uptime::now(), context.slow_keys.forgotten());
    let outline = context.slow_keys.ask_outline.ask((), ()).await?;
    let now = Uptime::now();
    let until = now.plus(OUTLINE_AGE.max(now.since(asked) * OUTLINE_REST));
    let mut memory = locked(&context.slow_keys.memory);
    // What was imported while it was asked may be missing.
    if memory.forgotten == forgotten {
        memory.known = Some(Known { outline: outline.clone(), until });
    }
    Ok(outline)
}
