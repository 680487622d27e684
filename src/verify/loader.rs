//! The loader behind the key cache: gathers the misses that wait into one query, and bounds what a flood of unknown
//! secrets can make the database do: so many look-ups wait at the most, so many queries run at once, and queries that
//! find mostly nothing are paced.
//! Must not say "no such key" unless the database did. Invariant: whoever asks is answered from a query that began
//! after they asked, and what it finds is cached as of the moment when it began.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::key_caches::{KeyCaches, KeyLoad};
use crate::{
    domain::{digest::Digest, record::KeyRecord},
    store::{
        Store, StoreError,
        key_records::{self, DIGESTS_MAX},
    },
};

/// Look-ups that wait at the most; more are told that it is too much.
const WAITING_MAX: usize = 8192;
/// Queries that run at once at the most.
const LANES_MAX: usize = 4;
/// The pause between the beginnings of two queries after one that found mostly nothing: with it a flood of unknown
/// secrets makes at most 500 queries a second.
const UNKNOWN_PACE: Duration = Duration::from_millis(2);

/// What a look-up comes to.
type Answer = Result<Option<Arc<KeyRecord>>, StoreError>;

struct Waiting {
    digest: Digest,
    /// `None` for a reload ahead of time, which nobody waits for.
    answer: Option<oneshot::Sender<Answer>>,
}

struct Queue {
    waiting: VecDeque<Waiting>,
    lanes: usize,
    /// Whether the latest query found mostly nothing.
    pacing: bool,
    /// When the next query may begin, while pacing.
    next_at: Instant,
}

/// Loads records by digest.
#[derive(Clone)]
pub struct Loader {
    store: Store,
    caches: Arc<KeyCaches>,
    /// The longest that one query may take.
    query_timeout: Duration,
    queue: Arc<Mutex<Queue>>,
    queries: Arc<AtomicU64>,
}

impl Loader {
    /// A loader that fills these caches.
    pub fn new(store: Store, caches: Arc<KeyCaches>, query_timeout: Duration) -> Self {
        let queue = Queue { waiting: VecDeque::new(), lanes: 0, pacing: false, next_at: Instant::now() };
        Self { store, caches, query_timeout, queue: Arc::new(Mutex::new(queue)), queries: Arc::default() }
    }

    /// Looks a digest up in the database, together with whoever else is waiting.
    ///
    /// # Errors
    /// `Overloaded` where too many wait already; `Corrupt` for this key's row; or the database's own.
    pub async fn find(&self, digest: Digest) -> Answer {
        self.store.check_there()?;
        let (answer, answered) = oneshot::channel();
        self.enqueue(Waiting { digest, answer: Some(answer) })?;
        // Nobody answers only where the lane panicked.
        answered.await.unwrap_or(Err(StoreError::Overloaded))
    }

    /// How many queries have been run.
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// Looks a digest up again, some time soon; where too much waits already it does nothing.
    pub fn refresh(&self, digest: Digest) {
        if self.store.is_away() {
            return;
        }
        let _ = self.enqueue(Waiting { digest, answer: None });
    }

    fn enqueue(&self, waiting: Waiting) -> Result<(), StoreError> {
        let mut queue = self.queue();
        if queue.waiting.len() >= WAITING_MAX {
            return Err(StoreError::Overloaded);
        }
        queue.waiting.push_back(waiting);
        if queue.lanes < LANES_MAX {
            queue.lanes += 1;
            tokio::spawn(self.clone().run_lane());
        }
        Ok(())
    }

    /// Queries until nobody waits any more.
    async fn run_lane(self) {
        let lane = Lane { queue: &self.queue };
        while let Some(turn) = self.next_turn() {
            sleep_until(turn).await;
            let batch = self.take_batch();
            if !batch.is_empty() {
                let mostly_unknown = self.load(batch).await;
                self.queue().pacing = mostly_unknown;
            }
        }
        // It has been counted out when it was seen that nobody waits, under the same lock.
        mem::forget(lane);
    }

    /// When this lane may query next; `None` where nobody waits, and the lane is over.
    fn next_turn(&self) -> Option<Instant> {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            queue.lanes -= 1;
            return None;
        }
        let now = Instant::now();
        let turn = if queue.pacing { queue.next_at.max(now) } else { now };
        queue.next_at = turn + UNKNOWN_PACE;
        Some(turn)
    }

    /// Who is to be answered from the next query, by digest. Those who hung up are left out.
    fn take_batch(&self) -> HashMap<Digest, Vec<Waiting>> {
        let mut queue = self.queue();
        let mut batch: HashMap<Digest, Vec<Waiting>> = HashMap::new();
        while batch.len() < DIGESTS_MAX
            && let Some(waiting) = queue.waiting.pop_front()
        {
            if !waiting.answer.as_ref().is_some_and(oneshot::Sender::is_closed) {
                batch.entry(waiting.digest).or_default().push(waiting);
            }
        }
        batch
    }

    /// Runs one query, caches what it finds and answers whoever waits; says whether it found mostly nothing.
    async fn load(&self, mut batch: HashMap<Digest, Vec<Waiting>>) -> bool {
        let digests: Vec<Digest> = batch.keys().copied().collect();
        let begun: HashMap<Digest, KeyLoad> =
            digests.iter().map(|digest| (*digest, self.caches.begin_load(digest))).collect();
        self.queries.fetch_add(1, Ordering::Relaxed);
        let query = key_records::list_by_digests(self.store.verify(), &digests);
        let found = match timeout(self.query_timeout, query).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return fail(batch, &error),
            Err(_) => return fail(batch, &StoreError::timed_out()),
        };
        let mut known = 0;
        for (digest, record) in found {
            let (Some(waiting), Some(begun)) = (batch.remove(&digest), begun.get(&digest)) else { continue };
            known += 1;
            let record = record.map(|record| self.caches.insert(digest, record, *begun));
            answer_all(waiting, &record.map(Some));
        }
        for (digest, waiting) in batch {
            if let Some(begun) = begun.get(&digest) {
                self.caches.insert_unknown(digest, *begun);
            }
            answer_all(waiting, &Ok(None));
        }
        known * 2 < digests.len()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a lane out that does not come to its end, or four panics would stop all look-ups.
struct Lane<'a> {
    queue: &'a Mutex<Queue>,
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).lanes -= 1;
    }
}

/// Tells everybody that the database could not say; that is no reason to pace.
fn fail(batch: HashMap<Digest, Vec<Waiting>>, error: &StoreError) -> bool {
    for waiting in batch.into_values() {
        answer_all(waiting, &Err(error.clone()));
    }
    false
}

fn answer_all(waiting: Vec<Waiting>, answer: &Answer) {
    for sender in waiting.into_iter().filter_map(|waiting| waiting.answer) {
        // Fails where the caller has hung up meanwhile.
        let _ = sender.send(answer.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_panics_is_counted_out() {
        let queue = Queue { waiting: VecDeque::new(), lanes: 2, pacing: false, next_at: Instant::now() };
        let queue = Arc::new(Mutex::new(queue));
        let lane = queue.clone();
        let panicked = std::thread::spawn(move || {
            let _lane = Lane { queue: &lane };
            panic!("a defect");
        });
        panicked.join().expect_err("a panic");
        assert_eq!(queue.lock().unwrap_or_else(PoisonError::into_inner).lanes, 1);
    }
}
