//! The keys that the clients work on: who lives, who is being changed, and who was revoked not long ago. Whoever
//! changes a key takes it out and puts it back; verifications see it all the
//! time, since that is when they are of interest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a revoked key goes on being verified: well beyond the bound of the tests, so that a replica that would
/// answer from an old state is asked to.
const REVOKED_AGE_MAX: Duration = Duration::from_secs(5);

/// A key, as a client knows it.
pub struct Key {
    /// By which the history names it.
    pub number: usize,
    pub id: String,
    pub secret: String,
}

/// Where a key goes after a change.
#[derive(Clone, Copy)]
pub enum Place {
    /// Among the living, as the next to be revoked.
    First,
    /// Among the living, as the last to be revoked.
    Last,
    Revoked,
}

/// All of them.
#[derive(Default)]
pub struct Pool {
    living: VecDeque<Arc<Key>>,
    changing: Vec<Arc<Key>>,
    /// By the time of their revocation.
    revoked: VecDeque<(Instant, Arc<Key>)>,
}

impl Pool {
    /// Whether there are fewer than so many that may be changed and live.
    pub fn wants_more(&self, most: usize) -> bool {
        self.living.len() < most
    }

    /// All that live, those that are being changed included.
    pub fn living(&self) -> Vec<Arc<Key>> {
        self.living.iter().chain(&self.changing).cloned().collect()
    }

    /// Takes the one that is next to be revoked.
    pub fn take_oldest(&mut self) -> Option<Arc<Key>> {
        let key = self.living.pop_front()?;
        self.changing.push(key.clone());
        Some(key)
    }

    /// Takes the one that was revoked last.
    pub fn take_last_revoked(&mut self) -> Option<Arc<Key>> {
        let (_, key) = self.revoked.pop_back()?;
        self.changing.push(key.clone());
        Some(key)
    }

    /// Takes the one that was revoked longest ago.
    pub fn take_first_revoked(&mut self) -> Option<Arc<Key>> {
        let (_, key) = self.revoked.pop_front()?;
        self.changing.push(key.clone());
        Some(key)
    }

    /// Puts a key that was taken, or that is new.
    pub fn put(&mut self, key: Arc<Key>, place: Place) {
        self.changing.retain(|other| other.number != key.number);
        match place {
            Place::First => self.living.push_front(key),
            Place::Last => self.living.push_back(key),
            Place::Revoked => self.revoked.push_back((Instant::now(), key)),
        }
        while self.revoked.front().is_some_and(|(since, _)| since.elapsed() > REVOKED_AGE_MAX) {
            self.revoked.pop_front();
        }
    }

    /// The key that comes at this turn: living and revoked ones alternate.
    pub fn pick(&self, turn: usize) -> Option<Arc<Key>> {
        let at = turn / 2;
        if turn.is_multiple_of(2) {
            let at = at.checked_rem(self.living.len() + self.changing.len())?;
            self.living.get(at).or_else(|| self.changing.get(at - self.living.len())).cloned()
        } else {
            let at = at.checked_rem(self.revoked.len())?;
            self.revoked.get(at).map(|(_, key)| key.clone())
        }
    }
}
