//! The follower of the change feed: evicts what changed, so that a change made elsewhere, by SQL too, is seen here, and
//! knows how old that knowledge is. A poll each second is the guarantee; notifications only make it come sooner.
//! Invariants: the position moves past a change only after its eviction; a gap, another epoch, or another change at the
//! position than the one that was seen there empties the cache; and the feed was "heard" at the moment when a poll that
//! succeeded BEGAN, since what was committed later it need not have seen. It also tells the store whether the database
//! is away, so that one task asks for it and nobody else queues up.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{Freshness, Records};
use crate::{
    clock::Uptime,
    random,
    store::{
        Store, StoreError,
        key_changes::{self, Head, Trace},
        replicas,
        turns::{TurnError, Turns},
    },
};

/// How often the feed is polled at the least; with a short bound it is a quarter of that.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest that one poll may take. A database that is slower than this is as good as away.
const POLL_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause after the first poll that failed; after later ones it is the interval, give or take half of it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// So many polls have to fail in a row before the database counts as away.
const FAILURES: u32 = 2;
/// The pause between a notification and the poll that it wakes: many changes then cost few polls.
const WAKE_PAUSE: Duration = Duration::from_millis(5);
/// So many polls may find changes that no notification told of before the listener counts as lost.
const UNTOLD_MAX: u32 = 3;
/// More changes than this at once empty the cache.
const CHANGES_MAX: i64 = 5000;
/// The position of a follower that has not heard anything yet.
const UNHEARD: i64 = -1;

/// Follows the change feed.
pub struct Feed {
    store: Store,
    records: Arc<Records>,
    /// For how long what was heard holds.
    staleness_bound: Duration,
    position: AtomicI64,
    history: Mutex<History>,
    heard_us: AtomicU64,
    failures: AtomicU32,
    /// How often the history turned out to be another one.
    turns_of_history: AtomicU64,
    /// Live replicas, as the last poll counted them.
    live: AtomicU32,
    /// When the last outage was over.
    back_us: AtomicU64,
    /// Asks for the revision past everything, those who ask together in one query.
    revision: Turns<(), (), i64>,
    /// Of the present listener.
    listening: Mutex<Arc<AtomicBool>>,
    wake: Arc<Notify>,
}

/// Which of all possible histories the position is in.
#[derive(Clone, PartialEq, Eq)]
struct History {
    epoch: String,
    /// The change at the position.
    trace: Option<Trace>,
}

/// What an answer rests on.
#[derive(Debug, Clone, Copy)]
pub struct Basis {
    /// Where the answer may come from.
    pub freshness: Freshness,
    /// It knows of everything that had been committed by then.
    as_of: Uptime,
}

impl Feed {
    /// A follower that has not heard anything yet. What it hears holds for `staleness_bound`.
    #[must_use]
    pub fn new(store: Store, records: Arc<Records>, staleness_bound: Duration) -> Self {
        let own = store.clone();
        let find = move |(), askers: Vec<()>| {
            let store = own.clone();
            Box::pin(async move { Ok(vec![key_changes::find_revision(store.verify()).await?; askers.len()]) }) as _
        };
        let (runtime, tasks) = (Handle::current(), TaskTracker::new());
        let revision = Turns::new(store.clone(), runtime, tasks, 1, Box::new(find));
        Self {
            store,
            records,
            staleness_bound,
            position: AtomicI64::new(UNHEARD),
            history: Mutex::new(History { epoch: String::new(), trace: None }),
            heard_us: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            turns_of_history: AtomicU64::new(0),
            live: AtomicU32::new(1),
            back_us: AtomicU64::new(0),
            revision,
            listening: Mutex::default(),
            wake: Arc::default(),
        }
    }

    /// The revision up to which every change has been evicted; -1 before the first poll.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.position.load(Ordering::Acquire)
    }

    /// How often the database turned out to be in another history than before: a backup was put back, or a standby took
    /// over that lacked the latest changes. What was taken from the database before may be known to nobody then.
    #[must_use]
    pub fn turns_of_history(&self) -> u64 {
        self.turns_of_history.load(Ordering::Acquire)
    }

    /// How many replicas are live, this one included.
    #[must_use]
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Acquire)
    }

    /// The revision that the database has reached, asked for after this was called.
    ///
    /// # Errors
    /// Where it cannot say.
    pub async fn find_revision(&self) -> Result<i64, TurnError> {
        self.revision.ask((), ()).await
    }

    /// How long ago it was that every change committed until then was known here.
    #[must_use]
    pub fn age(&self) -> Duration {
        Uptime::now().since(self.heard())
    }

    /// Whether notifications of changes are listened for.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).load(Ordering::Relaxed)
    }

    fn heard(&self) -> Uptime {
        Uptime::from_micros(self.heard_us.load(Ordering::Acquire))
    }

    /// What an answer that is wanted `freshness` can rest on now: the cache only while the feed was heard within the
    /// staleness bound. Call it before the look-up, and [`Feed::holds`] with it just before answering.
    #[must_use]
    pub fn basis(&self, freshness: Freshness) -> Basis {
        let (now, heard) = (Uptime::now(), self.heard());
        if freshness == Freshness::Cached && now.since(heard) <= self.staleness_bound {
            Basis { freshness, as_of: heard }
        } else {
            Basis { freshness: Freshness::Fresh, as_of: now }
        }
    }

    /// Whether an answer that rests on this may still be given.
    #[must_use]
    pub fn holds(&self, basis: Basis) -> bool {
        Uptime::now().since(basis.as_of) <= self.staleness_bound
    }

    /// Reads what is new and evicts it; gives how many changes there were.
    ///
    /// # Errors
    /// Where the database cannot say; the position stays where it was.
    pub async fn poll(&self) -> Result<usize, StoreError> {
        let began = Uptime::now();
        let position = self.position();
        let head = key_changes::find_head(&self.store.feed(), position).await?;
        self.count_live(head.live, began);
        let told = if position == UNHEARD || !self.goes_on(position, &head) {
            if position != UNHEARD {
                tracing::warn!("the database has another history than before: nothing that was cached counts");
                self.turns_of_history.fetch_add(1, Ordering::AcqRel);
            }
            // The first poll, or a database that was put back to another state: nothing cached can be trusted.
            self.records.evict_all();
            self.move_to(head.revision, History { epoch: head.epoch, trace: head.trace });
            0
        } else {
            self.catch_up(position, head).await?
        };
        self.heard_us.store(began.micros(), Ordering::Release);
        Ok(told)
    }

    /// Takes in how many replicas are live. After an outage, in which none could give a sign of life, those count on that
    /// did before, until each had time for one.
    fn count_live(&self, counted: i64, now: Uptime) {
        let counted = u32::try_from(counted).unwrap_or(u32::MAX).max(1);
        if self.failures.load(Ordering::Acquire) > 0 {
            self.back_us.store(now.micros(), Ordering::Release);
        }
        let back = Uptime::from_micros(self.back_us.load(Ordering::Acquire));
        let floor = if now.since(back) < replicas::LIVE { self.live() } else { 0 };
        self.live.store(counted.max(floor), Ordering::Release);
    }

    /// Whether the database is still in the history that this follower knows.
    fn goes_on(&self, position: i64, head: &Head) -> bool {
        let known = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        head.revision >= position && head.epoch == known.epoch && head.asked == known.trace
    }

    async fn catch_up(&self, mut position: i64, head: Head) -> Result<usize, StoreError> {
        let mut told = 0;
        if head.revision - position > CHANGES_MAX {
            // Evicting one by one would take long, and leave next to nothing.
            self.records.evict_all();
            self.move_to(head.revision, History { epoch: head.epoch, trace: head.trace });
            return Ok(1);
        }
        while position < head.revision {
            let changes = key_changes::list_after(&self.store.feed(), position).await?;
            let Some(last) = changes.last() else {
                self.records.evict_all();
                self.move_to(head.revision, History { epoch: head.epoch.clone(), trace: head.trace.clone() });
                return Ok(told);
            };
            let gap = changes.iter().zip(position + 1..).any(|(change, next)| change.revision != next);
            if gap {
                self.records.evict_all();
            }
            for change in &changes {
                self.records.evict_changed(&change.what);
            }
            told += changes.len();
            position = last.revision;
            self.move_to(position, History { epoch: head.epoch.clone(), trace: Some(last.trace.clone()) });
        }
        Ok(told)
    }

    fn move_to(&self, position: i64, history: History) {
        *self.history.lock().unwrap_or_else(PoisonError::into_inner) = history;
        self.position.store(position, Ordering::Release);
    }

    /// Polls for ever, each second or when a notification comes. A poll that fails is logged once, until one succeeds
    /// again.
    pub async fn follow(&self) {
        let mut listener = self.listen();
        let (mut untold, mut woken) = (0, false);
        loop {
            let result = timeout(POLL_TIMEOUT, self.poll()).await.unwrap_or_else(|_| Err(StoreError::timed_out()));
            self.note(result.as_ref().err());
            untold = match result {
                Ok(told) if told > 0 && !woken && self.is_listening() => untold + 1,
                Ok(told) if told > 0 => 0,
                Ok(_) | Err(_) => untold,
            };
            if untold > UNTOLD_MAX {
                tracing::warn!("notifications of changes do not come; they are listened for anew");
                drop(std::mem::replace(&mut listener, self.listen()));
                untold = 0;
            }
            tokio::select! {
                () = sleep(self.pause()) => woken = false,
                () = self.wake.notified() => {
                    woken = true;
                    sleep(WAKE_PAUSE).await;
                }
            }
        }
    }

    fn note(&self, error: Option<&StoreError>) {
        let failures = match error {
            Some(_) => self.failures.fetch_add(1, Ordering::AcqRel).saturating_add(1),
            None => self.failures.swap(0, Ordering::AcqRel),
        };
        match error {
            Some(error) if failures == 1 => {
                tracing::error!(error = error.chain(), "the change feed cannot be read");
            }
            None if failures > 0 => tracing::info!("the change feed answers again"),
            Some(_) | None => {}
        }
        self.store.set_away(error.is_some() && failures >= FAILURES);
        if error.is_some() {
            self.store.renew_feed();
        }
    }

    fn pause(&self) -> Duration {
        match self.failures.load(Ordering::Acquire) {
            0 => POLL_INTERVAL.min(self.staleness_bound / 4).max(POLL_INTERVAL_MIN),
            1 => RETRY_PAUSE,
            _ => POLL_INTERVAL / 2 + random::jitter(POLL_INTERVAL),
        }
    }

    /// Listens for notifications, where the database has such, until what this gives is dropped.
    fn listen(&self) -> AbortOnDropHandle<()> {
        let (store, wake, listening) = (self.store.clone(), self.wake.clone(), Arc::new(AtomicBool::new(false)));
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = listening.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                match store.listen().await {
                    Ok(Some(mut notices)) => {
                        listening.store(true, Ordering::Relaxed);
                        tracing::debug!("notifications of changes are listened for");
                        // What was committed until now was told to nobody.
                        wake.notify_one();
                        while notices.next().await.is_ok() {
                            wake.notify_one();
                        }
                        listening.store(false, Ordering::Relaxed);
                        tracing::warn!("the listener of changes was lost; the poll of each second goes on without it");
                    }
                    Ok(None) => return,
                    Err(error) => tracing::debug!(error = error.chain(), "changes cannot be listened for"),
                }
                sleep(POLL_INTERVAL / 2 + random::jitter(POLL_INTERVAL)).await;
            }
        }))
    }
}
