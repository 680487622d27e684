//! A bounded cache whose evictions are certain: every entry remembers the generation of its slot at the moment when
//! its load began, and an entry from an older generation is as good as absent.
//!
//! Without the generation, a load that began before an eviction could put the old record back after it. Here it
//! can, and nobody will see it: evicting is one addition to a counter, and a hit compares two numbers. Keys share a
//! fixed number of slots; an eviction empties one slot, which costs its neighbours one load each.
//! Must not be used for a decision that needs no bound on its age.

use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use moka::sync::Cache;

/// Generations; at 100,000 entries one eviction makes about 25 others reload.
const SLOTS: usize = 4096;

/// Something that names a slot.
pub trait Slot {
    /// A number that spreads evenly over all its values.
    fn slot(&self) -> u64;
}

/// A load that has begun: what it will find is cached only as of this moment.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    generation: u64,
    at: Instant,
}

impl Begun {
    /// The generation that the load belongs to: loads of different generations must not share what they find.
    #[must_use]
    pub const fn generation(self) -> u64 {
        self.generation
    }
}

struct Entry<V> {
    value: V,
    begun: Begun,
}

/// A cache from `K` to `V`, bounded in number and in age.
pub struct GenerationCache<K, V> {
    entries: Cache<K, Arc<Entry<V>>>,
    generations: Box<[AtomicU64]>,
    age_max: Duration,
}

impl<K, V> GenerationCache<K, V>
where
    K: Slot + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// An empty cache of at most about `entries_max` entries, each served for at most `age_max`.
    pub fn new(entries_max: u64, age_max: Duration) -> Self {
        Self {
            entries: Cache::builder().max_capacity(entries_max).time_to_live(age_max).build(),
            generations: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            age_max,
        }
    }

    /// What is cached, unless it is too old or was evicted since its load began.
    pub fn get(&self, key: &K) -> Option<V> {
        let entry = self.entries.get(key)?;
        let fresh = entry.begun.at.elapsed() < self.age_max;
        let current = entry.begun.generation == self.generation(key).load(Ordering::Acquire);
        (fresh && current).then(|| entry.value.clone())
    }

    /// Call before the database is asked.
    pub fn begin_load(&self, key: &K) -> Begun {
        Begun { generation: self.generation(key).load(Ordering::Acquire), at: Instant::now() }
    }

    /// Keeps what a load found.
    pub fn insert(&self, key: K, value: V, begun: Begun) {
        self.entries.insert(key, Arc::new(Entry { value, begun }));
    }

    /// Makes everything that was loaded for this key, or is being loaded, as good as absent.
    pub fn evict(&self, key: &K) {
        self.generation(key).fetch_add(1, Ordering::AcqRel);
        self.entries.invalidate(key);
    }

    /// Makes every entry as good as absent.
    pub fn evict_all(&self) {
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::AcqRel);
        }
        self.entries.invalidate_all();
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of slots")]
    fn generation(&self, key: &K) -> &AtomicU64 {
        let slot = usize::try_from(key.slot() % SLOTS as u64).unwrap_or(0);
        &self.generations[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Slot for u64 {
        fn slot(&self) -> u64 {
            *self
        }
    }

    fn cache() -> GenerationCache<u64, &'static str> {
        GenerationCache::new(100, Duration::from_mins(1))
    }

    #[test]
    fn a_load_that_began_before_an_eviction_is_not_served_after_it() {
        let cache = cache();
        let begun = cache.begin_load(&7);
        cache.evict(&7);
        cache.insert(7, "old", begun);
        assert_eq!(cache.get(&7), None);
        let begun = cache.begin_load(&7);
        cache.insert(7, "new", begun);
        assert_eq!(cache.get(&7), Some("new"));
    }

    #[test]
    fn evicting_everything_reaches_loads_under_way() {
        let cache = cache();
        let begun = cache.begin_load(&1);
        cache.evict_all();
        cache.insert(1, "old", begun);
        assert_eq!(cache.get(&1), None);
    }

    #[test]
    fn an_entry_is_not_served_beyond_its_age() {
        let cache = GenerationCache::<u64, &str>::new(100, Duration::ZERO);
        let begun = cache.begin_load(&1);
        cache.insert(1, "old", begun);
        assert_eq!(cache.get(&1), None);
    }
}
