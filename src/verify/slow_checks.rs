//! Checking secrets against hashes that take long: in threads of their own, of the lowest priority, so that they take
//! what the hot path leaves and never what it needs. What waits is bounded by the number of checks; more is refused,
//! which is "we do not know" and never "it is not valid". Checks of a named or looked-up key go before scans.
//! Must not know where candidates come from or what follows from a match.

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
};

use tokio::sync::oneshot;

use crate::{
    domain::{import::SlowHash, secret::Secret},
    store::StoreError,
};

/// Threads at the most: half of the processors, and one at the least.
const THREADS_MAX: usize = 2;
/// Checks that may wait of those that were looked up: so many that the last of them comes before its caller gives up.
const LOOKED_UP_MAX: usize = 32;
/// Checks of scans that may wait; a scan alone may be 200.
const SCANS_MAX: usize = 256;
/// The priority of the threads, as nice(2) counts it: the lowest.
const NICE: i32 = 19;

/// A secret and the hashes that it may be the secret of.
struct Job {
    secret: Secret,
    hashes: Vec<SlowHash>,
    answer: oneshot::Sender<Option<usize>>,
}

#[derive(Default)]
struct Queue {
    looked_up: VecDeque<Job>,
    scans: VecDeque<Job>,
}

impl Queue {
    fn lane(&mut self, is_scan: bool) -> &mut VecDeque<Job> {
        if is_scan { &mut self.scans } else { &mut self.looked_up }
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

/// The pool; its threads begin with the first check.
#[derive(Default)]
pub struct SlowChecks {
    shared: Arc<Shared>,
    started: OnceLock<()>,
}

impl SlowChecks {
    /// The place of the first of these hashes that is the secret's; `None` where none is. Goes on if whoever asks
    /// hangs up.
    ///
    /// # Errors
    /// `Overloaded` where too many checks wait already.
    pub async fn find(
        &self,
        secret: Secret,
        hashes: Vec<SlowHash>,
        is_scan: bool,
    ) -> Result<Option<usize>, StoreError> {
        self.started.get_or_init(|| self.start());
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.shared.queue();
            let lane = queue.lane(is_scan);
            let waiting: usize = lane.iter().map(|job| job.hashes.len()).sum();
            let most = if is_scan { SCANS_MAX } else { LOOKED_UP_MAX };
            if waiting > 0 && waiting + hashes.len() > most {
                return Err(StoreError::Overloaded);
            }
            lane.push_back(Job { secret, hashes, answer });
        }
        self.shared.more.notify_one();
        // Nobody answers only where the thread panicked.
        answered.await.map_err(|_| StoreError::Overloaded)
    }

    fn start(&self) {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        for number in 0..(processors / 2).clamp(1, THREADS_MAX) {
            let shared = self.shared.clone();
            let started = thread::Builder::new().name(format!("slow-checks-{number}")).spawn(move || shared.work());
            if let Err(error) = started {
                tracing::error!(error = %error, "a thread for slow hashes could not be started");
            }
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks for ever.
    fn work(&self) {
        // Of this thread alone, as Linux does it.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(error = %error, "the threads for slow hashes keep their priority");
        }
        loop {
            let job = self.take();
            let check = || job.hashes.iter().position(|hash| hash.is_of(job.secret.expose()));
            // A defect of one check must not end the thread: whoever asked is told that nobody knows.
            if let Ok(found) = panic::catch_unwind(AssertUnwindSafe(check)) {
                // Fails where whoever asked has hung up.
                let _ = job.answer.send(found);
            }
        }
    }

    fn take(&self) -> Job {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.looked_up.pop_front().or_else(|| queue.scans.pop_front()) {
                return job;
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::domain::import::SlowScheme;

    fn hash_of(secret: &str) -> SlowHash {
        SlowHash::parse(SlowScheme::Bcrypt, &bcrypt::hash(secret, 4).unwrap()).unwrap()
    }

    fn presented(text: &str) -> Secret {
        Secret::presented(Zeroizing::new(text.to_owned()))
    }

    #[tokio::test]
    async fn the_hash_of_a_secret_is_found_among_others() {
        let pool = SlowChecks::default();
        let hashes: Vec<SlowHash> = ["a", "b", "c"].into_iter().map(hash_of).collect();
        assert_eq!(pool.find(presented("b"), hashes.clone(), true).await.unwrap(), Some(1));
        assert_eq!(pool.find(presented("d"), hashes, false).await.unwrap(), None);
    }

    #[tokio::test]
    async fn more_checks_than_may_wait_are_refused_and_a_single_large_scan_is_not() {
        let pool = SlowChecks::default();
        // No thread takes anything away.
        pool.started.get_or_init(|| ());
        let hash = hash_of("a");
        let scan = |count: usize| pool.find(presented("b"), vec![hash.clone(); count], true);
        let waits = tokio::time::timeout(std::time::Duration::from_millis(1), scan(SCANS_MAX + 1)).await;
        assert!(waits.is_err(), "it waits");
        assert!(matches!(scan(1).await, Err(StoreError::Overloaded)));
        let looked_up = pool.find(presented("b"), vec![hash.clone()], false);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), looked_up).await.is_err(), "it waits too");
    }
}
