//! Checking secrets against hashes that take long: in threads of their own, of the lowest priority, so that they take
//! what the hot path leaves and never what it needs. What waits is bounded by the number of checks; more is refused,
//! which is "we do not know" and never "it is not valid". Checks of a named or looked-up key go before scans, which go
//! by slices, so that the former wait for a slice and not for a scan; a slice has its turn between many of them.
//! Must not know where candidates come from or what follows from a match.
//! Invariant: whatever one asker presents, what another one waits for has its turn.

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    domain::{import::SlowHash, permission::Reach, secret::Secret},
    store::StoreError,
};

/// Threads at the most: half of the processors, and one at the least.
const THREADS_MAX: usize = 2;
/// Checks of one asker that may wait of those that were looked up. At some 60 ms each the last of them comes after a
/// second where nobody else asks; where `ASKERS` do it is the 128th, with slices of scans between, and its caller may
/// have given up by then. More at once are a scan.
pub const LOOKED_UP_MAX: usize = 16;
/// So many checks of a scan are made in one turn. What was looked up is never more, and so is done in one.
const SLICE: usize = LOOKED_UP_MAX;
/// Checks of one asker's scans that may wait beside the scans that have begun; a scan alone may be 200.
const SCANS_MAX: usize = 256;
/// Of all askers together so many times as many may wait.
const ASKERS: usize = 8;
/// So many checks of what was looked up go before a scan, one after the other, and then a slice of it has its turn.
const LOOKED_UP_IN_A_ROW: usize = 32;
/// The priority of the threads, as nice(2) counts it: the lowest. It tells them from the other threads of this process
/// alone: where processes are scheduled by groups (sessions, control groups) it means nothing to those of others.
const NICE: i32 = 19;
/// So a check that was kept waiting for a processor is followed by a rest of so many times that wait: where others want
/// the processors too, they get most of them.
const RESTS: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(500);

/// A secret and the hashes that it may be the secret of.
struct Job {
    secret: Secret,
    hashes: Vec<SlowHash>,
    /// So many of the first ones are checked.
    checked: usize,
    answer: oneshot::Sender<Option<usize>>,
}

impl Job {
    fn left(&self) -> usize {
        self.hashes.len().saturating_sub(self.checked)
    }

    /// Checks the next slice, up to the hash that is the secret's. Gives its place, and how long to rest afterwards.
    fn check_slice(&mut self) -> (Option<usize>, Duration) {
        let mut rest = Duration::ZERO;
        for (at, hash) in self.hashes.iter().enumerate().skip(self.checked).take(SLICE) {
            thread::sleep(rest);
            let (is_it, due) = timed(|| hash.is_of(self.secret.expose()));
            if is_it {
                return (Some(at), due);
            }
            (self.checked, rest) = (at + 1, due);
        }
        (None, rest)
    }
}

/// What waits, by who asks: each has a turn, and then the next.
#[derive(Default)]
struct Lane {
    /// Whose turn is next stands first; who has no job is not here.
    turns: VecDeque<(Reach, VecDeque<Job>)>,
}

impl Lane {
    /// Whoever has nothing waiting may add any number, as long as there is room for all.
    fn push(&mut self, asker: Reach, job: Job, each_max: usize) -> Result<(), StoreError> {
        let waits = |jobs: &VecDeque<Job>| jobs.iter().map(Job::left).sum::<usize>();
        let is_beyond = |waiting: usize, most: usize| waiting > 0 && waiting + job.left() > most;
        let of_all: usize = self.turns.iter().map(|(_, jobs)| waits(jobs)).sum();
        let of_own = self.turns.iter().find(|(other, _)| *other == asker).map_or(0, |(_, jobs)| waits(jobs));
        if is_beyond(of_all, each_max * ASKERS) || is_beyond(of_own, each_max) {
            return Err(StoreError::Overloaded);
        }
        self.put(asker, job);
        Ok(())
    }

    /// Puts a job at the end, however many wait: one that was let in is not refused when it comes back.
    fn put(&mut self, asker: Reach, job: Job) {
        match self.turns.iter_mut().find(|(other, _)| *other == asker) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.turns.push_back((asker, VecDeque::from([job]))),
        }
    }

    fn pop(&mut self) -> Option<(Reach, Job)> {
        let (asker, mut jobs) = self.turns.pop_front()?;
        let job = jobs.pop_front()?;
        if !jobs.is_empty() {
            self.turns.push_back((asker, jobs));
        }
        Some((asker, job))
    }
}

#[derive(Default)]
struct Queue {
    looked_up: Lane,
    scans: Lane,
    /// Checks of the first that went, one after the other.
    in_a_row: usize,
}

impl Queue {
    fn push(&mut self, asker: Reach, job: Job, is_scan: bool) -> Result<(), StoreError> {
        if is_scan || job.left() > LOOKED_UP_MAX {
            self.scans.push(asker, job, SCANS_MAX)
        } else {
            self.looked_up.push(asker, job, LOOKED_UP_MAX)
        }
    }

    fn pop(&mut self) -> Option<(Reach, Job)> {
        if self.in_a_row < LOOKED_UP_IN_A_ROW
            && let Some((asker, job)) = self.looked_up.pop()
        {
            self.in_a_row += job.left();
            return Some((asker, job));
        }
        self.in_a_row = 0;
        self.scans.pop().or_else(|| self.looked_up.pop())
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
    /// hangs up. Who has the same reach is one asker.
    ///
    /// # Errors
    /// `Overloaded` where too many checks wait already.
    pub async fn find(
        &self,
        asker: Reach,
        secret: Secret,
        hashes: Vec<SlowHash>,
        is_scan: bool,
    ) -> Result<Option<usize>, StoreError> {
        self.started.get_or_init(|| self.start());
        let (answer, answered) = oneshot::channel();
        self.shared.queue().push(asker, Job { secret, hashes, checked: 0, answer }, is_scan)?;
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
            let (asker, job) = self.take();
            thread::sleep(self.go_on(asker, job));
        }
    }

    /// Checks a slice of a job; answers, or puts the rest back. Gives how long to rest before the next check: whoever
    /// waits for the answer need not wait for that.
    fn go_on(&self, asker: Reach, mut job: Job) -> Duration {
        // A defect of one check must not end the thread: whoever asked is told that nobody knows.
        let Ok((found, rest)) = panic::catch_unwind(AssertUnwindSafe(|| job.check_slice())) else {
            return Duration::ZERO;
        };
        if found.is_none() && job.left() > 0 {
            // No other thread is woken for it: this one comes back, after its rest.
            self.queue().scans.put(asker, job);
        } else {
            // Fails where whoever asked has hung up.
            let _ = job.answer.send(found);
        }
        rest
    }

    fn take(&self) -> (Reach, Job) {
        let mut queue = self.queue();
        loop {
            if let Some(taken) = queue.pop() {
                return taken;
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Computes, and says how long to rest then: where it took longer than it computed.
fn timed<T>(compute: impl FnOnce() -> T) -> (T, Duration) {
    let (begun, computed) = (Instant::now(), computing_time());
    let result = compute();
    (result, rest_after(begun.elapsed(), computing_time().saturating_sub(computed)))
}

fn rest_after(took: Duration, computed: Duration) -> Duration {
    (took.saturating_sub(computed) * RESTS).min(REST_MAX)
}

/// For how long this thread has had a processor.
fn computing_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::domain::{ids::OrganizationId, import::SlowScheme};

    fn hash_of(secret: &str) -> SlowHash {
        SlowHash::parse(SlowScheme::Bcrypt, &bcrypt::hash(secret, 4).unwrap()).unwrap()
    }

    fn presented(text: &str) -> Secret {
        Secret::presented(Zeroizing::new(text.to_owned()))
    }

    fn organization(number: u8) -> Reach {
        Reach::Only(OrganizationId::from_bytes([number; 16]))
    }

    /// A job that is known by its secret.
    fn job(name: &str, hash: &SlowHash, checks: usize) -> Job {
        Job { secret: presented(name), hashes: vec![hash.clone(); checks], checked: 0, answer: oneshot::channel().0 }
    }

    /// The names of the jobs that go next, up to a number.
    fn next(queue: &mut Queue, count: usize) -> Vec<String> {
        (0..count).filter_map(|_| queue.pop()).map(|(_, job)| job.secret.expose().to_owned()).collect()
    }

    #[tokio::test]
    async fn the_hash_of_a_secret_is_found_among_others() {
        let pool = SlowChecks::default();
        let hashes: Vec<SlowHash> = ["a", "b", "c"].into_iter().map(hash_of).collect();
        assert_eq!(pool.find(Reach::All, presented("b"), hashes.clone(), true).await.unwrap(), Some(1));
        let hashes = [vec![hash_of("a"); 2 * SLICE], hashes].concat();
        assert_eq!(pool.find(Reach::All, presented("b"), hashes.clone(), true).await.unwrap(), Some(2 * SLICE + 1));
        assert_eq!(pool.find(organization(1), presented("d"), hashes, false).await.unwrap(), None);
    }

    #[test]
    fn between_the_slices_of_a_scan_others_have_their_turn() {
        let (shared, hash) = (Shared::default(), hash_of("a"));
        let push = |asker, name: &str, checks, is_scan| {
            shared.queue().push(organization(asker), job(name, &hash, checks), is_scan).unwrap();
        };
        let go_on = |()| {
            let (asker, job) = shared.take();
            let name = job.secret.expose().to_owned();
            shared.go_on(asker, job);
            name
        };
        push(1, "long", 2 * SLICE + 1, true);
        push(1, "own", 1, true);
        push(2, "other", 1, true);
        assert_eq!([(); 4].map(go_on), ["long", "other", "own", "long"]);
        push(2, "looked up", 1, false);
        assert_eq!([(); 2].map(go_on), ["looked up", "long"]);
        assert!(shared.queue().pop().is_none(), "what is through does not come back");
    }

    #[test]
    fn a_scan_that_has_begun_goes_on_however_many_wait() {
        let (mut queue, hash) = (Queue::default(), hash_of("a"));
        queue.push(organization(1), job("begun", &hash, 2 * SLICE), true).unwrap();
        let (asker, mut begun) = queue.pop().unwrap();
        begun.checked = SLICE;
        queue.push(organization(1), job("more", &hash, SCANS_MAX), true).unwrap();
        queue.scans.put(asker, begun);
        assert!(queue.push(organization(1), job("beyond", &hash, 1), true).is_err());
        assert_eq!(next(&mut queue, 9), ["more", "begun"]);
    }

    #[tokio::test]
    async fn more_checks_than_may_wait_are_refused_and_a_single_large_scan_is_not() {
        let pool = SlowChecks::default();
        // No thread takes anything away.
        pool.started.get_or_init(|| ());
        let hash = hash_of("a");
        let scan = |count: usize| pool.find(Reach::All, presented("b"), vec![hash.clone(); count], true);
        let waits = tokio::time::timeout(Duration::from_millis(1), scan(SCANS_MAX + 1)).await;
        assert!(waits.is_err(), "it waits");
        assert!(matches!(scan(1).await, Err(StoreError::Overloaded)));
        let looked_up = pool.find(Reach::All, presented("b"), vec![hash.clone()], false);
        assert!(tokio::time::timeout(Duration::from_millis(1), looked_up).await.is_err(), "it waits too");
    }

    #[test]
    fn more_looked_up_checks_than_may_wait_are_a_scan() {
        let (mut queue, hash) = (Queue::default(), hash_of("a"));
        queue.push(Reach::All, job("first", &hash, 1), false).unwrap();
        queue.push(Reach::All, job("many", &hash, LOOKED_UP_MAX + 1), false).unwrap();
        queue.push(Reach::All, job("few", &hash, LOOKED_UP_MAX - 1), false).unwrap();
        assert!(queue.push(Reach::All, job("beyond", &hash, 1), false).is_err());
        assert_eq!(next(&mut queue, 9), ["first", "few", "many"]);
    }

    #[test]
    fn askers_take_turns_and_what_one_waits_for_refuses_no_other() {
        for is_scan in [false, true] {
            let (mut queue, hash) = (Queue::default(), hash_of("a"));
            let most = if is_scan { SCANS_MAX } else { LOOKED_UP_MAX };
            for _ in 0..most {
                queue.push(organization(1), job("a", &hash, 1), is_scan).unwrap();
            }
            assert!(queue.push(organization(1), job("a", &hash, 1), is_scan).is_err(), "its own are as many as may");
            for name in ["b1", "b2"] {
                queue.push(organization(2), job(name, &hash, 1), is_scan).unwrap();
            }
            queue.push(Reach::All, job("c", &hash, 1), is_scan).unwrap();
            assert_eq!(next(&mut queue, 7), ["a", "b1", "c", "a", "b2", "a", "a"]);
        }
    }

    #[test]
    fn who_is_kept_waiting_rests_for_a_while_and_who_is_not_goes_on() {
        let millis = Duration::from_millis;
        assert_eq!(rest_after(millis(60), millis(60)), Duration::ZERO);
        assert_eq!(rest_after(millis(100), millis(60)), millis(120));
        assert_eq!(rest_after(millis(60_000), millis(60)), REST_MAX);
        assert_eq!(rest_after(millis(59), millis(60)), Duration::ZERO, "two clocks may differ");
        let before = computing_time();
        assert!(timed(|| hash_of("a").is_of("a")).0);
        assert!(computing_time() > before);
    }

    #[test]
    fn all_askers_together_have_a_bound() {
        let (mut queue, hash) = (Queue::default(), hash_of("a"));
        for asker in (0..=u8::MAX).take(ASKERS) {
            queue.push(organization(asker), job("a", &hash, LOOKED_UP_MAX), false).unwrap();
        }
        assert!(queue.push(organization(u8::MAX), job("b", &hash, 1), false).is_err());
    }

    #[test]
    fn a_scan_has_its_turn_however_many_looked_up_checks_wait() {
        let (mut queue, hash) = (Queue::default(), hash_of("a"));
        queue.push(organization(2), job("scan", &hash, 1), true).unwrap();
        let mut before = 0;
        loop {
            // Whatever goes is followed by another one.
            queue.push(organization(1), job("looked up", &hash, 1), false).unwrap();
            if next(&mut queue, 1) == ["scan"] {
                break;
            }
            before += 1;
            assert!(before <= LOOKED_UP_IN_A_ROW, "it waits for ever");
        }
        assert_eq!(before, LOOKED_UP_IN_A_ROW, "and goes behind them");
    }
}
