//! Rate limits that replicas share: by counters in Redis or, where there is none, in the database; and what is done
//! while those cannot be asked.
//!
//! What was seen of the shared counts denies for certain, so that whoever is over a limit costs nothing. While the counters
//! are away each replica goes on by itself with its share: it counts on from what it saw last, and each of its charges
//! weighs as many times as there are live replicas, so that all together stay within the limit; one charge a window
//! gets through where what was seen has room for it. When the counters are back they are told what was charged alone.
//! Invariant: whether a key is valid never depends on this: a charge always has an answer.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::redis::{Answered, Asked, RedisCounters, RedisError};
use super::{
    counters::{Charge, Charged},
    seen::Seen,
    table::TableCounters,
};
use crate::{
    clock::Uptime,
    domain::{
        limits::{LimitStatus, RateLimit, SlidingWindow},
        organization::Organization,
        outcome::Outcome,
        time::Timestamp,
    },
    random,
};

/// A charge that stays without an answer is a strike of so much, and one that is answered takes one away: with so many
/// strikes nobody waits for an answer any more. Three in a row do that, and more than one out of four in the long run.
const STRIKE: u32 = 3;
const STRIKES_MAX: u32 = 9;
/// How often the counters are asked whether they are there; up to as much again is added at random.
const PROBE_INTERVAL: Duration = Duration::from_millis(400);
/// For how long what was seen may deny without asking: an operator may have cleared what stood against it in the table.
const SEEN_DENIES: Duration = Duration::from_secs(5);
/// What was seen is kept in so many maps, each with a lock of its own.
const SHARDS: usize = 16;

/// Why the shared counters did not answer.
#[derive(Debug, Clone)]
pub struct Unanswered {
    pub cause: String,
    /// It is about this charge alone, and says nothing of others.
    pub alone: bool,
}

impl Unanswered {
    /// The counters did not answer.
    pub fn new(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), alone: false }
    }
}

impl From<RedisError> for Unanswered {
    fn from(error: RedisError) -> Self {
        // A value of another type, put there by hand, is in the way of its own limit and of no other.
        let alone = matches!(&error, RedisError::Refused(text) if text.starts_with("WRONGTYPE"));
        Self { cause: error.to_string(), alone }
    }
}

/// The counters that all replicas charge.
pub(super) enum Counters {
    Redis(RedisCounters),
    Table(Box<TableCounters>),
}

/// Rate limits over several replicas, as one of them sees them.
pub struct SharedLimits {
    counters: Counters,
    shards: [Mutex<HashMap<u128, Vec<Seen>>>; SHARDS],
    strikes: AtomicU32,
    charged_alone: AtomicU64,
    degraded: AtomicBool,
    /// Whether the log says that this replica counts alone.
    told: AtomicBool,
    /// How many replicas are live, this one included.
    live: AtomicU32,
    /// The counters' clock, as microseconds ahead of this machine's uptime; 0 before the first answer.
    clock_us: AtomicI64,
}

impl SharedLimits {
    /// Limits that are counted there. Until they have been reached, this replica counts alone.
    pub(super) fn new(counters: Counters) -> Self {
        let is_redis = matches!(counters, Counters::Redis(_));
        Self {
            counters,
            shards: std::array::from_fn(|_| Mutex::default()),
            strikes: AtomicU32::new(0),
            charged_alone: AtomicU64::new(0),
            degraded: AtomicBool::new(is_redis),
            told: AtomicBool::new(false),
            live: AtomicU32::new(1),
            clock_us: AtomicI64::new(0),
        }
    }

    /// Whether this replica counts alone.
    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Acquire)
    }

    /// The counters in Redis, where they are there.
    #[must_use]
    pub const fn redis(&self) -> Option<&RedisCounters> {
        match &self.counters {
            Counters::Redis(redis) => Some(redis),
            Counters::Table(_) => None,
        }
    }

    /// Says how many replicas share the limits.
    pub fn set_live(&self, replicas: u32) {
        self.live.store(replicas.max(1), Ordering::Release);
    }

    /// Charges all limits, or none of them. The charge's own time counts only before the shared clock is known.
    pub(super) async fn charge(&self, charge: &Charge<'_>) -> Charged {
        let limits: Vec<(u128, &RateLimit)> = charge.limits().collect();
        if !self.is_degraded() {
            match self.ask(charge, &limits).await {
                Ok(answered) => return self.answered(charge, &limits, &answered),
                Err(error) if error.alone => {}
                Err(error) => self.strike(&error, STRIKE),
            }
        }
        self.charge_alone(charge, &limits)
    }

    /// Denies what cannot fit, without asking: counts only grow while their window lasts, so that the shared ones are at
    /// least what was seen of them. Whoever is over a limit costs next to nothing until it could fit.
    pub fn denied_for_certain(&self, charge: &Charge<'_>) -> Option<Charged> {
        let (now, cost, uptime) = (self.shared_time()?, charge.cost.max(1), Uptime::now());
        if self.is_degraded() {
            return None;
        }
        let limits: Vec<(u128, &RateLimit)> = charge.limits().collect();
        let mut denied = false;
        let seen = self.seen(charge.organization);
        let standing = |(subject, limit): &(u128, &RateLimit)| {
            let known = seen.get(subject).and_then(|all| all.iter().find(|seen| seen.is_of(limit)));
            let window = known.map_or_else(|| SlidingWindow::empty(limit, now), |seen| seen.weighted(1));
            let window = window.at(limit, now);
            let lately = known.is_some_and(|seen| uptime.since(seen.answered_at) < SEEN_DENIES);
            denied |= lately && !limit.shadow && !window.admits(limit, now, cost);
            window
        };
        let windows: Vec<SlidingWindow> = limits.iter().map(standing).collect();
        drop(seen);
        denied.then(|| Charged {
            denied: Some(Outcome::RateLimited),
            statuses: statuses(&limits, &windows, now, charge, denied),
        })
    }

    async fn ask<'a>(&self, charge: &Charge<'a>, limits: &[(u128, &'a RateLimit)]) -> Result<Answered, Unanswered> {
        let asked: Vec<Asked<'_>> = {
            let mut seen = self.seen(charge.organization);
            let known = |(subject, limit): &(u128, &'a RateLimit)| {
                let known = seen.get_mut(subject).and_then(|all| all.iter_mut().find(|seen| seen.is_of(limit)));
                let (known, carry) = known.map_or((None, 0), |seen| (Some(seen.window), seen.hand_over()));
                Asked { subject: *subject, limit, known, carry }
            };
            limits.iter().map(known).collect()
        };
        let carries = asked.iter().filter(|asked| asked.carry > 0);
        let carries =
            carries.filter_map(|asked| Some((asked.subject, asked.limit, asked.known?.start_us, asked.carry)));
        let mut handed = HandedOver { limits: self, organization: charge.organization, carries: carries.collect() };
        let answer = match &self.counters {
            Counters::Redis(redis) => {
                let answer = redis.charge(charge.organization.id.as_u128(), &asked, charge.cost).await;
                answer.map_err(Unanswered::from)
            }
            Counters::Table(table) => table.charge(charge.organization.id, &asked, charge.cost).await,
        };
        if answer.is_ok() {
            handed.carries.clear();
        }
        answer
    }

    fn answered(&self, charge: &Charge<'_>, limits: &[(u128, &RateLimit)], answered: &Answered) -> Charged {
        self.take_strike_away();
        let now = Uptime::now();
        let ahead = answered.now.micros().saturating_sub(i64::try_from(now.micros()).unwrap_or(i64::MAX));
        self.clock_us.store(ahead, Ordering::Release);
        let mut seen = self.seen(charge.organization);
        for ((subject, limit), window) in limits.iter().zip(&answered.windows) {
            let seen = Seen::entry(&mut seen, *subject, limit, *window);
            // An answer that was overtaken by a later one is old news, or an operator has cleared what was counted.
            if (window.start_us, window.current) >= (seen.window.start_us, seen.window.current) {
                (seen.window, seen.answered_at) = (*window, now);
            }
        }
        drop(seen);
        let statuses = statuses(limits, &answered.windows, answered.now, charge, answered.denied);
        Charged { denied: answered.denied.then_some(Outcome::RateLimited), statuses }
    }

    fn strike(&self, error: &Unanswered, strike: u32) {
        let strikes = self.strikes.fetch_add(strike, Ordering::AcqRel).saturating_add(strike);
        if strikes < STRIKES_MAX {
            return;
        }
        self.strikes.store(STRIKES_MAX, Ordering::Release);
        self.degraded.store(true, Ordering::Release);
        if !self.told.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                error = error.cause,
                "{} does not answer: rate limits go on with this replica's share",
                self.name()
            );
        }
    }

    fn take_strike_away(&self) {
        if self.strikes.load(Ordering::Relaxed) > 0 {
            let _ = self.strikes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |strikes| strikes.checked_sub(1));
        }
    }

    /// How many charges this replica has made alone.
    pub fn charged_alone(&self) -> u64 {
        self.charged_alone.load(Ordering::Relaxed)
    }

    const fn name(&self) -> &'static str {
        match self.counters {
            Counters::Redis(_) => "Redis",
            Counters::Table(_) => "The database",
        }
    }

    /// Charges this replica's share, or none.
    fn charge_alone(&self, charge: &Charge<'_>, limits: &[(u128, &RateLimit)]) -> Charged {
        self.charged_alone.fetch_add(1, Ordering::Relaxed);
        let (now, live) = (self.now(charge), i64::from(self.live.load(Ordering::Acquire)));
        let mut seen = self.seen(charge.organization);
        let cost = charge.cost.max(1);
        let mut denied = false;
        let mut windows = Vec::with_capacity(limits.len());
        for (subject, limit) in limits {
            let seen = Seen::entry(&mut seen, *subject, limit, SlidingWindow::empty(limit, now));
            seen.move_on(limit, now, live);
            let weighted = seen.weighted(live);
            // At least one a window, where what was seen has room for it, and no more than the share.
            let share = (limit.limit / live).max(1);
            let first = seen.alone == 0 && cost <= share && seen.window.admits(limit, now, cost);
            let fits = weighted.admits(limit, now, cost.saturating_mul(live)) || first;
            denied |= !fits && !limit.shadow;
            windows.push((weighted, fits));
        }
        let charges = !denied && charge.cost > 0;
        let settled = limits.iter().zip(windows).map(|((subject, limit), (weighted, fits))| {
            let mut standing = weighted;
            if charges {
                let seen = Seen::entry(&mut seen, *subject, limit, weighted);
                seen.alone = seen.alone.saturating_add(charge.cost);
                standing = seen.weighted(live);
            }
            standing.status(limit, now, cost, !fits)
        });
        let statuses = settled.collect();
        Charged { denied: denied.then_some(Outcome::RateLimited), statuses }
    }

    /// The shared counters' time, as well as it is known: replicas that count alone then count in the same windows.
    fn now(&self, charge: &Charge<'_>) -> Timestamp {
        self.shared_time().unwrap_or(charge.now)
    }

    fn shared_time(&self) -> Option<Timestamp> {
        let ahead = self.clock_us.load(Ordering::Acquire);
        let uptime = i64::try_from(Uptime::now().micros()).unwrap_or(i64::MAX);
        (ahead != 0).then(|| Timestamp::from_micros(uptime.saturating_add(ahead)))
    }

    /// Asks the counters now and then whether they are there, for ever: the only one who waits for them while they are
    /// not, and whoever notices where nobody else asks.
    pub async fn follow(&self) {
        loop {
            let asks = match &self.counters {
                Counters::Redis(_) => true,
                // The change feed knows of the database already.
                Counters::Table(table) => self.is_degraded() || table.is_away(),
            };
            if asks {
                self.probe().await;
            }
            tokio::time::sleep(PROBE_INTERVAL + random::jitter(PROBE_INTERVAL)).await;
        }
    }

    /// Asks the counters whether they are there, and connects to them. Takes seconds at the most.
    pub async fn probe(&self) {
        let probed = match &self.counters {
            Counters::Redis(redis) => redis.probe().await.map_err(Unanswered::from),
            Counters::Table(table) => table.probe().await,
        };
        match probed {
            Ok(()) if self.is_degraded() => self.come_back(),
            Ok(()) => self.take_strike_away(),
            Err(error) => self.strike(&error, if self.is_degraded() { STRIKES_MAX } else { STRIKE }),
        }
    }

    fn come_back(&self) {
        self.strikes.store(0, Ordering::Release);
        self.degraded.store(false, Ordering::Release);
        if self.told.swap(false, Ordering::AcqRel) {
            tracing::info!("{} answers again", self.name());
        }
    }

    /// Drops what has faded out by now.
    pub fn forget_faded(&self, wall: Timestamp) {
        let now = self.shared_time().unwrap_or(wall);
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, all| {
                all.retain(|seen| seen.window.start_us.saturating_add(2 * seen.length_us) > now.micros());
                !all.is_empty()
            });
        }
    }

    /// How many keys and organizations are counted for.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// All that a charge is about stands under its organization, and so under one lock.
    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    fn seen(&self, organization: &Organization) -> MutexGuard<'_, HashMap<u128, Vec<Seen>>> {
        let shard = usize::try_from(organization.id.spread() % SHARDS as u64).unwrap_or(0);
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the shared counters are being told was charged alone; what they have not confirmed when this is dropped, also
/// because the caller hung up, is told once more with the next charge.
struct HandedOver<'a> {
    limits: &'a SharedLimits,
    organization: &'a Organization,
    carries: Vec<(u128, &'a RateLimit, i64, i64)>,
}

impl Drop for HandedOver<'_> {
    fn drop(&mut self) {
        if self.carries.is_empty() {
            return;
        }
        let mut seen = self.limits.seen(self.organization);
        for (subject, limit, start_us, carry) in self.carries.drain(..) {
            let of_limit = seen.get_mut(&subject).and_then(|all| all.iter_mut().find(|seen| seen.is_of(limit)));
            if let Some(seen) = of_limit {
                seen.take_back(start_us, carry);
            }
        }
    }
}

/// Where limits stand, and which of them the cost did not fit into before it was charged.
fn statuses(
    limits: &[(u128, &RateLimit)],
    windows: &[SlidingWindow],
    now: Timestamp,
    charge: &Charge<'_>,
    denied: bool,
) -> Vec<LimitStatus> {
    let (cost, charged) = (charge.cost.max(1), if denied { 0 } else { charge.cost });
    let status = |((_, limit), window): (&(u128, &RateLimit), &SlidingWindow)| {
        let before = window.charged(-charged);
        window.status(limit, now, cost, !before.admits(limit, now, cost))
    };
    limits.iter().zip(windows).map(status).collect()
}
