//! The counters of one process that shares its limits with no other: a meter for each key and organization that is
//! charged, with a sliding window for each of its limits.
//! Invariant: with the key's meter and then the organization's locked, either every limit is charged or none is; the order is always this one, and no await happens under the locks. Who writes the counts through and
//! reads them back is `tracking.rs`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    steady_time::SteadyTime,
    tracking::{Change, Changed},
};
use crate::domain::{
    limits::{LimitStatus, RateLimit, SlidingWindow},
    organization::Organization,
    outcome::Outcome,
    record::KeyRecord,
    time::Timestamp,
};

/// Meters are found through so many maps, each with a lock of its own.
const SHARDS: usize = 16;

/// What one verification is charged for.
#[derive(Clone, Copy)]
pub struct Charge<'a> {
    pub key: &'a KeyRecord,
    /// Which of the key's limits are charged; empty for all. The organization's always are.
    pub limit_names: &'a [String],
    pub organization: &'a Organization,
    /// 0 charges nothing and tells where the limits stand for a cost of 1.
    pub cost: i64,
    pub now: Timestamp,
}

/// What became of a charge.
#[derive(Debug)]
pub struct Charged {
    /// Why nothing was charged, if so.
    pub denied: Option<Outcome>,
    /// Where every limit stands now: the key's first, then the organization's.
    pub statuses: Vec<LimitStatus>,
}

/// Counts for one process. There is a meter for each key and organization that was charged within its windows, or
/// within the day after: memory is bounded by how many are in use.
pub struct Limiter {
    shards: [Mutex<Meters>; SHARDS],
    pub(super) changed: Mutex<Changed>,
    pub(super) time: SteadyTime,
}

type Meters = HashMap<u128, Arc<Meter>, quick_cache::DefaultHashBuilder>;

/// The counts of one key or organization.
pub(super) struct Meter {
    /// The id of the key or organization.
    pub subject: u128,
    counts: Mutex<Counts>,
}

#[derive(Default)]
pub(super) struct Counts {
    pub windows: Vec<Window>,
    /// What has come since the last flush.
    pub change: Change,
    /// What of it the list of changed meters knows.
    pub noted: Change,
}

/// One limit's counter. The limit's value is no part of what names it: changing it keeps the count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub name: Box<str>,
    pub length_us: i64,
    pub counter: SlidingWindow,
    /// Start and count as they were last written through.
    pub written: Option<(i64, i64)>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            changed: Mutex::default(),
            time: SteadyTime::default(),
        }
    }
}

impl Limiter {
    /// Charges every limit, or none of them.
    pub fn charge(&self, charge: &Charge<'_>) -> Charged {
        let Charge { organization, cost, .. } = *charge;
        let charge = &Charge { now: self.time.at(charge.now), ..*charge };
        let own = charge.own_limits().next().map(|_| self.meter(charge.key.counter_id.as_u128()));
        let shared = charge.shared_limits().next().map(|_| self.meter(organization.id.as_u128()));
        let mut own_counts = own.as_ref().map(|meter| meter.lock());
        let mut shared_counts = shared.as_ref().map(|meter| meter.lock());

        let own_exceeded = own_counts.as_ref().is_some_and(|counts| counts.exceed(charge.own_limits(), charge));
        let shared_exceeded =
            shared_counts.as_ref().is_some_and(|counts| counts.exceed(charge.shared_limits(), charge));
        let denied = (own_exceeded || shared_exceeded).then_some(Outcome::RateLimited);

        let charges = denied.is_none() && cost > 0;
        let mut statuses = Vec::with_capacity(charge.key.rate_limits.len() + organization.rate_limits.len());
        if let (Some(meter), Some(counts)) = (&own, &mut own_counts) {
            statuses.extend(charge.own_limits().map(|limit| counts.settle(limit, charge, charges)));
            self.note(meter, counts);
        }
        if let (Some(meter), Some(counts)) = (&shared, &mut shared_counts) {
            statuses.extend(charge.shared_limits().map(|limit| counts.settle(limit, charge, charges)));
            self.note(meter, counts);
        }
        Charged { denied, statuses }
    }

    /// How many keys and organizations are counted for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether nothing is counted for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The meter of a key or organization.
    pub(super) fn meter(&self, subject: u128) -> Arc<Meter> {
        let mut meters = lock(self.shard(subject));
        let meter = meters.entry(subject).or_insert_with(|| Arc::new(Meter { subject, counts: Mutex::default() }));
        meter.clone()
    }

    /// Drops what has ended, and faded out in the window after it, by `time`.
    pub(super) fn forget_faded(&self, time: Timestamp) {
        for shard in &self.shards {
            // Whoever charges a meter got it under this lock: one that the map alone holds is in nobody's hands.
            lock(shard).retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.lock().forget_faded(time));
        }
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    fn shard(&self, subject: u128) -> &Mutex<Meters> {
        &self.shards[usize::try_from(subject % SHARDS as u128).unwrap_or(0)]
    }
}

impl<'a> Charge<'a> {
    /// Every limit that is charged, with the id under which it is counted: the key's first, then the organization's.
    pub(super) fn limits(&self) -> impl Iterator<Item = (u128, &'a RateLimit)> + use<'a> {
        let (key, organization) = (self.key.counter_id.as_u128(), self.organization.id.as_u128());
        let own = self.own_limits().map(move |limit| (key, limit));
        own.chain(self.shared_limits().map(move |limit| (organization, limit)))
    }

    fn own_limits(&self) -> impl Iterator<Item = &'a RateLimit> + use<'a> {
        let names = self.limit_names;
        self.key.rate_limits.iter().filter(move |limit| names.is_empty() || names.contains(&limit.name))
    }

    fn shared_limits(&self) -> impl Iterator<Item = &'a RateLimit> + use<'a> {
        self.organization.rate_limits.iter()
    }
}

impl Meter {
    pub fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }
}

impl Counts {
    /// The limit's counter as it stands at this moment, and whether the cost does not fit.
    fn standing(&self, limit: &RateLimit, charge: &Charge<'_>) -> (SlidingWindow, bool) {
        let known = self.windows.iter().find(|window| window.is_of(limit));
        let counter = known.map_or_else(|| SlidingWindow::empty(limit, charge.now), |window| window.counter);
        let counter = counter.at(limit, charge.now);
        (counter, !counter.admits(limit, charge.now, charge.cost.max(1)))
    }

    fn exceed<'a>(&self, mut limits: impl Iterator<Item = &'a RateLimit>, charge: &Charge<'_>) -> bool {
        limits.any(|limit| !limit.shadow && self.standing(limit, charge).1)
    }

    /// Charges the limit, if so, and tells where it stands.
    fn settle(&mut self, limit: &RateLimit, charge: &Charge<'_>, charges: bool) -> LimitStatus {
        let (mut counter, full) = self.standing(limit, charge);
        if charges {
            counter = counter.charged(charge.cost);
            self.change = self.change.max(self.change_of(limit, counter));
            if let Some(window) = self.windows.iter_mut().find(|window| window.is_of(limit)) {
                window.counter = counter;
            } else {
                let (name, length_us) = (limit.name.as_str().into(), limit.window_us());
                // Mostly there is one; a vector that grows by itself makes room for four.
                self.windows.reserve_exact(1);
                self.windows.push(Window { name, length_us, counter, written: None });
            }
        }
        counter.status(limit, charge.now, charge.cost.max(1), full)
    }

    /// Says whether nothing is left.
    fn forget_faded(&mut self, time: Timestamp) -> bool {
        self.windows.retain(|window| window.counter.start_us + 2 * window.length_us > time.micros());
        self.windows.is_empty() && self.noted == Change::Nothing
    }
}

impl Window {
    pub fn is_of(&self, limit: &RateLimit) -> bool {
        self.length_us == limit.window_us() && *self.name == *limit.name
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::samples;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    fn limit(name: &str, limit: i64, shadow: bool) -> RateLimit {
        RateLimit::parse(name, limit, Duration::from_hours(1), shadow).unwrap()
    }

    fn charge_at(limiter: &Limiter, limits: &[RateLimit], cost: i64, now: Timestamp) -> Charged {
        let key = KeyRecord { rate_limits: limits.into(), ..samples::key_record() };
        let organization = samples::organization();
        limiter.charge(&Charge { key: &key, limit_names: &[], organization: &organization, cost, now })
    }

    fn charge(limiter: &Limiter, limits: &[RateLimit], cost: i64) -> Charged {
        charge_at(limiter, limits, cost, NOW)
    }

    #[test]
    fn several_limits_are_charged_all_or_none() {
        let limiter = Limiter::default();
        let limits = [limit("wide", 10, false), limit("narrow", 1, false)];
        assert_eq!(charge(&limiter, &limits, 1).denied, None);
        for _ in 0..5 {
            let denied = charge(&limiter, &limits, 1);
            assert_eq!(denied.denied, Some(Outcome::RateLimited));
            let remaining: Vec<i64> = denied.statuses.iter().map(|status| status.remaining).collect();
            assert_eq!(remaining, [9, 0], "the wide limit was not charged for what the narrow one denied");
        }
    }

    #[test]
    fn a_shadow_limit_counts_and_reports_but_never_denies() {
        let limiter = Limiter::default();
        let limits = [limit("shadow", 1, true)];
        for _ in 0..3 {
            assert_eq!(charge(&limiter, &limits, 1).denied, None);
        }
        assert!(charge(&limiter, &limits, 1).statuses[0].exceeded);
    }

    #[test]
    fn changing_the_value_of_a_limit_keeps_its_count() {
        let limiter = Limiter::default();
        assert_eq!(charge(&limiter, &[limit("only", 10, false)], 7).statuses[0].remaining, 3);
        assert_eq!(charge(&limiter, &[limit("only", 8, true)], 0).statuses[0].remaining, 1);
    }

    #[test]
    fn a_limit_that_is_not_named_is_not_charged_and_the_organizations_always_is() {
        let limiter = Limiter::default();
        let key =
            KeyRecord { rate_limits: [limit("a", 9, false), limit("b", 9, false)].into(), ..samples::key_record() };
        let organization = Organization { rate_limits: vec![limit("c", 9, false)], ..samples::organization() };
        let names = ["b".to_owned()];
        let charge = Charge { key: &key, limit_names: &names, organization: &organization, cost: 2, now: NOW };
        let charged: Vec<String> = limiter.charge(&charge).statuses.into_iter().map(|status| status.name).collect();
        assert_eq!(charged, ["b", "c"]);
        let all = limiter.charge(&Charge { limit_names: &[], cost: 0, ..charge });
        assert_eq!(all.statuses.iter().map(|status| status.remaining).collect::<Vec<_>>(), [9, 7, 7]);
    }

    #[test]
    fn after_an_hours_step_back_a_limit_fades_as_it_would_have() {
        let limiter = Limiter::default();
        let limits = [RateLimit::parse("shortest", 1, Duration::from_secs(1), false).unwrap()];
        let back = NOW.minus(Duration::from_hours(1));
        assert_eq!(charge(&limiter, &limits, 1).denied, None);
        assert_eq!(charge_at(&limiter, &limits, 1, back).denied, Some(Outcome::RateLimited), "a step admits nothing");
        // A second or two; by the clock alone it would be an hour.
        while charge_at(&limiter, &limits, 1, back).denied.is_some() {}
        assert_eq!(charge_at(&limiter, &limits, 1, back).denied, Some(Outcome::RateLimited));
    }

    #[test]
    fn what_has_faded_is_forgotten_and_what_counts_is_not() {
        let limiter = Limiter::default();
        charge(&limiter, &[limit("hourly", 5, false)], 1);
        lock(&limiter.changed).much.clear();
        limiter.meter(samples::key_record().counter_id.as_u128()).lock().noted = Change::Nothing;
        limiter.forget_faded(NOW.plus(Duration::from_mins(59)));
        assert_eq!(limiter.len(), 1);
        limiter.forget_faded(NOW.plus(Duration::from_hours(2)));
        assert!(limiter.is_empty());
    }

    #[test]
    fn what_was_not_written_through_yet_is_not_forgotten() {
        let limiter = Limiter::default();
        charge(&limiter, &[limit("hourly", 5, false)], 1);
        limiter.forget_faded(NOW.plus(Duration::from_hours(20)));
        assert_eq!(limiter.len(), 1);
    }

    #[test]
    fn a_peek_charges_nothing() {
        let limiter = Limiter::default();
        let limits = [limit("only", 1, false)];
        for _ in 0..3 {
            assert_eq!(charge(&limiter, &limits, 0).denied, None);
        }
        assert_eq!(charge(&limiter, &limits, 1).denied, None);
        assert_eq!(charge(&limiter, &limits, 0).denied, Some(Outcome::RateLimited));
    }

    #[test]
    fn threads_that_charge_at_once_admit_exactly_the_limit() {
        let limiter = Limiter::default();
        let limits = [limit("only", 1000, false)];
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).filter(|_| charge(&limiter, &limits, 1).denied.is_none()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 1000);
    }
}
