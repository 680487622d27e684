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
    time::Duration,
};

use crate::clock::Uptime;

/// Generations; at 100,000 entries one eviction makes about 25 others reload.
const SLOTS: usize = 4096;
/// How long after a reload ahead of time was asked for it is asked for again, should it not have come.
const REFRESH_RETRY: Duration = Duration::from_secs(1);

/// Something that names a slot.
pub trait Slot {
    /// A number that spreads evenly over all its values.
    fn slot(&self) -> u64;
}

/// A load that has begun: what it will find is cached only as of this moment.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    generation: u64,
    at: Uptime,
}

impl Begun {
    /// The generation that the load belongs to: loads of different generations must not share what they find.
    #[must_use]
    pub const fn generation(self) -> u64 {
        self.generation
    }
}

struct Entry<V> {
    value: Arc<V>,
    begun: Begun,
    /// From when on a hit asks for a reload.
    refresh_at: Uptime,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), ..*self }
    }
}

/// What the cache holds for a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Hit<V> {
    /// It may be served.
    Fresh(Arc<V>),
    /// It may be served, and whoever is told so should load it again: it is about to grow too old.
    Ageing(Arc<V>),
}

/// A cache from `K` to `V`, bounded in number and in age.
pub struct GenerationCache<K, V> {
    entries: quick_cache::sync::Cache<K, Entry<V>>,
    generations: Box<[AtomicU64]>,
    age_max: Duration,
}

impl<K, V> GenerationCache<K, V>
where
    K: Slot + Hash + Eq + Copy,
{
    /// An empty cache of at most about `entries_max` entries, each served for at most `age_max`; in the
    /// last quarter of it a hit says that the entry is ageing.
    pub fn new(entries_max: u64, age_max: Duration) -> Self {
        Self {
            entries: quick_cache::sync::Cache::new(usize::try_from(entries_max).unwrap_or(usize::MAX)),
            generations: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            age_max,
        }
    }

    /// What is cached, unless it is too old or was evicted since its load began.
    pub fn get(&self, key: &K, now: Uptime) -> Option<Hit<V>> {
        let entry = self.entries.get(key)?;
        let fresh = now.since(entry.begun.at) < self.age_max;
        let current = entry.begun.generation == self.generation(key).load(Ordering::Acquire);
        if !fresh || !current {
            return None;
        }
        if now < entry.refresh_at {
            return Some(Hit::Fresh(entry.value));
        }
        let value = entry.value.clone();
        // One hit in a while is told. If the entry was evicted meanwhile, its generation keeps it dead.
        self.entries.insert(*key, Entry { refresh_at: now.plus(REFRESH_RETRY), ..entry });
        Some(Hit::Ageing(value))
    }

    /// Call before the database is asked.
    pub fn begin_load(&self, key: &K, now: Uptime) -> Begun {
        Begun { generation: self.generation(key).load(Ordering::Acquire), at: now }
    }

    /// Keeps what a load found.
    pub fn insert(&self, key: K, value: Arc<V>, begun: Begun) {
        let refresh_at = begun.at.plus(self.age_max / 4 * 3);
        self.entries.insert(key, Entry { value, begun, refresh_at });
    }

    /// Makes everything that was loaded for this key, or is being loaded, as good as absent.
    pub fn evict(&self, key: &K) {
        self.generation(key).fetch_add(1, Ordering::AcqRel);
        self.entries.remove(key);
    }

    /// Makes every entry as good as absent.
    pub fn evict_all(&self) {
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::AcqRel);
        }
        self.entries.clear();
    }

    /// How many entries there are, those that may not be served any more included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
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

    const NOW: Uptime = Uptime::from_micros(1_000_000);

    impl Slot for u64 {
        fn slot(&self) -> u64 {
            *self
        }
    }

    fn cache(age_max: Duration) -> GenerationCache<u64, &'static str> {
        GenerationCache::new(100, age_max)
    }

    fn served(cache: &GenerationCache<u64, &'static str>, key: u64) -> Option<&'static str> {
        cache.get(&key, NOW).map(|hit| match hit {
            Hit::Fresh(value) | Hit::Ageing(value) => *value,
        })
    }

    #[test]
    fn a_load_that_began_before_an_eviction_is_not_served_after_it() {
        let cache = cache(Duration::from_mins(1));
        let begun = cache.begin_load(&7, NOW);
        cache.evict(&7);
        cache.insert(7, "old".into(), begun);
        assert_eq!(served(&cache, 7), None);
        let begun = cache.begin_load(&7, NOW);
        cache.insert(7, "new".into(), begun);
        assert_eq!(served(&cache, 7), Some("new"));
    }

    #[test]
    fn without_the_generation_check_a_load_from_before_an_eviction_would_be_served() {
        let cache = cache(Duration::from_mins(1));
        let begun = cache.begin_load(&7, NOW);
        cache.evict(&7);
        cache.insert(7, "old".into(), begun);
        // It is there and it is young; nothing but its generation keeps it back.
        let unchecked = cache.entries.get(&7).filter(|entry| NOW.since(entry.begun.at) < cache.age_max);
        assert_eq!(unchecked.map(|entry| *entry.value), Some("old"));
        assert_eq!(served(&cache, 7), None);
    }

    #[test]
    fn evicting_everything_reaches_loads_under_way() {
        let cache = cache(Duration::from_mins(1));
        let begun = cache.begin_load(&1, NOW);
        cache.evict_all();
        cache.insert(1, "old".into(), begun);
        assert_eq!(served(&cache, 1), None);
    }

    #[test]
    fn an_entry_is_not_served_beyond_its_age() {
        let cache = cache(Duration::ZERO);
        let begun = cache.begin_load(&1, NOW);
        cache.insert(1, "old".into(), begun);
        assert_eq!(served(&cache, 1), None);
    }

    #[test]
    fn one_hit_in_a_while_is_told_that_the_entry_is_ageing() {
        let cache = cache(Duration::from_hours(1));
        let begun = cache.begin_load(&1, NOW);
        cache.insert(1, "value".into(), begun);
        let get = |after| cache.get(&1, NOW.plus(after));
        assert_eq!(get(Duration::ZERO), Some(Hit::Fresh("value".into())));
        let late = Duration::from_mins(46);
        assert_eq!(get(late), Some(Hit::Ageing("value".into())));
        assert_eq!(get(late), Some(Hit::Fresh("value".into())), "a reload is under way");
        assert_eq!(get(late + Duration::from_secs(2)), Some(Hit::Ageing("value".into())), "which has not come");
        assert_eq!(get(Duration::from_hours(1)), None);
    }

    #[test]
    fn an_entry_that_is_evicted_while_it_ages_stays_dead() {
        let cache = cache(Duration::from_hours(1));
        let begun = cache.begin_load(&1, NOW);
        cache.insert(1, "value".into(), begun);
        let entry = cache.entries.get(&1).unwrap();
        cache.evict(&1);
        cache.entries.insert(1, entry);
        assert_eq!(cache.get(&1, NOW.plus(Duration::from_mins(46))), None);
    }
}
