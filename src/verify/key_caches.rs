//! The two caches of digests: of those that belong to a key, and, apart and briefly, of those that belong to none, so
//! that a flood of garbage cannot evict a real key.

use std::{sync::Arc, time::Duration};

use super::cache::{Begun, GenerationCache, Hit, Slot};
use crate::{
    clock::Uptime,
    domain::{digest::Digest, record::KeyRecord},
};

/// The bounds of the caches, and of what fills them.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    pub entries_max: u64,
    pub entry_age_max: Duration,
    pub negative_entries_max: u64,
    pub negative_age_max: Duration,
    /// The longest that one look-up in the database may take.
    pub query_timeout: Duration,
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
            query_timeout: Duration::ZERO,
        }
    }
}

/// A look-up that has begun, in both caches.
pub type KeyLoad = (Begun, Begun);

/// What the caches know of a digest.
pub enum Cached {
    /// It is this key's; see [`Hit`].
    Key(Hit<KeyRecord>),
    /// It is no key's.
    Unknown,
}

/// Known and unknown digests.
pub struct KeyCaches {
    keys: GenerationCache<Digest, KeyRecord>,
    unknown: GenerationCache<Digest, ()>,
    nothing: Arc<()>,
}

impl Slot for Digest {
    fn slot(&self) -> u64 {
        self.spread()
    }
}

impl KeyCaches {
    /// Empty caches with these bounds.
    pub fn new(limits: &CacheLimits) -> Self {
        Self {
            keys: GenerationCache::new(limits.entries_max, limits.entry_age_max),
            unknown: GenerationCache::new(limits.negative_entries_max, limits.negative_age_max),
            nothing: Arc::default(),
        }
    }

    /// What is known; `None` where only the database can say.
    pub fn get(&self, digest: &Digest) -> Option<Cached> {
        let now = Uptime::now();
        if let Some(hit) = self.keys.get(digest, now) {
            return Some(Cached::Key(hit));
        }
        self.unknown.get(digest, now).map(|_| Cached::Unknown)
    }

    /// Call before the database is asked.
    pub fn begin_load(&self, digest: &Digest) -> KeyLoad {
        let now = Uptime::now();
        (self.keys.begin_load(digest, now), self.unknown.begin_load(digest, now))
    }

    /// Keeps a key that was found.
    pub fn insert(&self, digest: Digest, record: KeyRecord, begun: KeyLoad) -> Arc<KeyRecord> {
        let record = Arc::new(record);
        self.keys.insert(digest, record.clone(), begun.0);
        record
    }

    /// Remembers that a digest is no key's.
    pub fn insert_unknown(&self, digest: Digest, begun: KeyLoad) {
        self.unknown.insert(digest, self.nothing.clone(), begun.1);
    }

    /// Forgets a digest; a look-up that begins after this sees the database's state.
    pub fn evict(&self, digest: &Digest) {
        self.keys.evict(digest);
        self.unknown.evict(digest);
    }

    /// Forgets everything.
    pub fn evict_all(&self) {
        self.keys.evict_all();
        self.unknown.evict_all();
    }

    /// How many known and unknown digests are held.
    pub fn len(&self) -> (usize, usize) {
        (self.keys.len(), self.unknown.len())
    }
}
