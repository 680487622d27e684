//! How far searches have come whose candidates are too many for one: the searches for one secret are a chain, in which
//! each goes on behind the keys that the one before it has checked.
//! Invariant: a chain begins before the first candidate, and where it began is remembered by what had been imported
//! until then. Only where nothing was imported since has a chain that is through checked every candidate.
//! Bounded in number and in age; a chain that is forgotten begins again.

use std::{sync::Arc, time::Duration};

use super::state::Ask;
use crate::{
    clock::Uptime,
    domain::ids::KeyId,
    verify::{GenerationCache, Hit},
};

/// For how long the next search may take to come, and of how many secrets it is known where it goes on.
const AGE_MAX: Duration = Duration::from_mins(10);
const CHAINS_MAX: u64 = 10_000;

/// Which candidates are checked: first those that the secret's beginning leads to, then the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    LookUp,
    Scan,
}

/// Where a search goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// `Outline::imports` when the chain began.
    pub(super) imports: i64,
    pub(super) stage: Stage,
    /// Of this stage, all up to this one are checked.
    pub(super) after: Option<KeyId>,
}

impl Progress {
    /// The beginning of a chain.
    pub(super) const fn beginning(imports: i64) -> Self {
        Self { imports, stage: Stage::LookUp, after: None }
    }

    pub(super) const fn behind(self, last: KeyId) -> Self {
        Self { after: Some(last), ..self }
    }

    /// All that the secret's beginning leads to are checked.
    pub(super) const fn scanning(self) -> Self {
        Self { stage: Stage::Scan, after: None, ..self }
    }
}

/// The chains, with where each goes on; `None` for one that is through: to evict it would end its neighbours, too.
pub(super) struct Chains(GenerationCache<Ask, Option<Progress>>);

impl Chains {
    pub(super) fn new() -> Self {
        Self(GenerationCache::new(CHAINS_MAX, AGE_MAX))
    }

    /// Where the last search for this ended, if it was not through.
    pub(super) fn find(&self, ask: &Ask, now: Uptime) -> Option<Progress> {
        match self.0.get(ask, now)? {
            Hit::Fresh(progress) | Hit::Ageing(progress) => *progress,
        }
    }

    pub(super) fn note(&self, ask: Ask, progress: Progress, now: Uptime) {
        self.keep(ask, Some(progress), now);
    }

    /// The chain is through.
    pub(super) fn end(&self, ask: Ask, now: Uptime) {
        self.keep(ask, None, now);
    }

    fn keep(&self, ask: Ask, progress: Option<Progress>, now: Uptime) {
        let begun = self.0.begin_load(&ask, now);
        self.0.insert(ask, Arc::new(progress), begun);
    }

    pub(super) fn forget(&self) {
        self.0.evict_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{digest::Digest, permission::Reach};

    const NOW: Uptime = Uptime::from_micros(1_000_000);

    fn ask(secret: u64) -> Ask {
        Ask { digest: Digest::of(&secret.to_string()), reach: Reach::All, key_id: None }
    }

    fn progress() -> Progress {
        Progress::beginning(7).behind(KeyId::from_bytes([3; 16]))
    }

    #[test]
    fn a_chain_goes_on_where_it_was_however_many_others_never_ended() {
        let chains = Chains::new();
        for secret in 0..3 * CHAINS_MAX {
            chains.note(ask(secret), progress(), NOW);
            assert_eq!(chains.find(&ask(secret), NOW), Some(progress()), "{secret}");
        }
    }

    #[test]
    fn a_chain_that_is_old_or_forgotten_or_through_begins_again() {
        let chains = Chains::new();
        let noted = || chains.note(ask(1), progress(), NOW);
        noted();
        assert_eq!(chains.find(&ask(1), NOW.plus(AGE_MAX / 2)), Some(progress()));
        assert_eq!(chains.find(&ask(1), NOW.plus(AGE_MAX)), None);
        chains.forget();
        assert_eq!(chains.find(&ask(1), NOW), None);
        noted();
        chains.end(ask(1), NOW);
        assert_eq!(chains.find(&ask(1), NOW), None);
    }

    #[test]
    fn the_end_of_a_chain_is_none_of_others() {
        let chains = Chains::new();
        // Of the same slot, since it is the secret that names it.
        let neighbour = Ask { key_id: Some(KeyId::from_bytes([4; 16])), ..ask(1) };
        chains.note(neighbour, progress(), NOW);
        chains.note(ask(1), progress(), NOW);
        chains.end(ask(1), NOW);
        assert_eq!((chains.find(&ask(1), NOW), chains.find(&neighbour, NOW)), (None, Some(progress())));
    }
}
