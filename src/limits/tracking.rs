//! How counts survive a restart: what changed is written through to `rate_limit_tracking` on a short interval and at
//! shutdown, and read back at the start. Counts that grew by less than a hundredth of their limit wait for a longer one:
//! most counts are such, and writing each of them each second would cost more than the verifications that they count.
//! A `kill -9` forgets at most what was charged since the last flush, and that hundredth.
//! Must not hold a meter's lock over an await.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use super::counters::{Counts, Limiter, Meter, Window, lock};
use crate::{
    domain::{
        ids::RecordId,
        limits::{RateLimit, SlidingWindow},
        time::Timestamp,
    },
    store::{Store, StoreError, rate_limits, rate_limits::TrackedWindow},
};

/// For how long a counter that no longer counts is kept: a clock may step back.
const SLACK: Duration = Duration::from_hours(24);

/// A count that has grown by this part of its limit is written through with the next flush.
const MUCH: i64 = 100;

/// Meters whose counts have changed since they were last written through.
#[derive(Default)]
pub(super) struct Changed {
    pub much: Vec<Arc<Meter>>,
    pub little: Vec<Arc<Meter>>,
}

/// How much has been charged since the last flush: it decides how soon the next one has to come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    #[default]
    Nothing,
    /// Of each limit less than the part that [`MUCH`] says.
    Little,
    Much,
}

impl Limiter {
    /// Reads back what was counted before a restart.
    ///
    /// # Errors
    /// The store's own.
    pub async fn restore(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let mut tracked = rate_limits::list_counting_at(store.control(), now).await?;
        tracked.sort_by_key(|window| window.window_start_us);
        for window in tracked {
            // What a clock that was ahead has counted would lock its holder out until then.
            if window.window_start_us > now.plus(SLACK).micros() {
                continue;
            }
            // Subjects are ids that this service wrote; what else may stand there counts for nobody.
            if let Ok(subject) = RecordId::parse(&window.subject_id) {
                self.meter(subject.as_u128()).lock().restore(window);
            }
        }
        Ok(())
    }

    /// Drops the counters that no longer count, here and in the table.
    ///
    /// # Errors
    /// The store's own.
    pub async fn prune(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        self.forget_faded(now.minus(SLACK));
        rate_limits::delete_faded(store.write(), now).await.map(|_| ())
    }

    /// Writes all counts that changed since they were last written.
    ///
    /// # Errors
    /// As [`Limiter::flush_much`].
    pub async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let Changed { mut much, little } = mem::take(&mut *lock(&self.changed));
        much.extend(little);
        self.write(store, much).await
    }

    /// Writes the counts that grew by a hundredth of their limit or more. What fails to be written is written with the
    /// next flush.
    ///
    /// # Errors
    /// The store's own.
    pub async fn flush_much(&self, store: &Store) -> Result<(), StoreError> {
        let much = mem::take(&mut lock(&self.changed).much);
        self.write(store, much).await
    }

    async fn write(&self, store: &Store, meters: Vec<Arc<Meter>>) -> Result<(), StoreError> {
        // By their primary key, so that two writers of the same rows never wait for each other in a circle.
        let mut rows = BTreeMap::new();
        for meter in &meters {
            let mut counts = meter.lock();
            (counts.change, counts.noted) = (Change::Nothing, Change::Nothing);
            for row in counts.tracked(meter) {
                rows.insert((row.subject_id.clone(), row.limit_name.clone(), row.window_start_us), row);
            }
        }
        let rows: Vec<TrackedWindow> = rows.into_values().collect();
        let result = rate_limits::upsert(store.write(), &rows).await;
        if result.is_err() {
            self.put_back(&meters);
        }
        result
    }

    /// Puts a meter among those to be written through, once.
    pub(super) fn note(&self, meter: &Arc<Meter>, counts: &mut Counts) {
        if counts.change > counts.noted {
            counts.noted = counts.change;
            let mut changed = lock(&self.changed);
            let list = if counts.change == Change::Much { &mut changed.much } else { &mut changed.little };
            list.push(meter.clone());
        }
    }

    fn put_back(&self, meters: &[Arc<Meter>]) {
        for meter in meters {
            let mut counts = meter.lock();
            counts.windows.iter_mut().for_each(|window| window.written = None);
            counts.change = Change::Much;
            self.note(meter, &mut counts);
        }
    }
}

impl Counts {
    /// How much of the limit this counter has that is not written yet.
    pub(super) fn change_of(&self, limit: &RateLimit, counter: SlidingWindow) -> Change {
        let written = self.windows.iter().find(|window| window.is_of(limit)).and_then(|window| window.written);
        let written = written.filter(|(start, _)| *start == counter.start_us).map_or(0, |(_, count)| count);
        if (counter.current - written).saturating_mul(MUCH) >= limit.limit { Change::Much } else { Change::Little }
    }

    /// Takes in one stored window; they come oldest first.
    fn restore(&mut self, stored: TrackedWindow) {
        let length_us = stored.window_end_us - stored.window_start_us;
        let same = |window: &Window| window.length_us == length_us && *window.name == *stored.limit_name;
        let mut counter = SlidingWindow { start_us: stored.window_start_us, current: stored.count, previous: 0 };
        if let Some(older) = self.windows.iter_mut().find(|window| same(window)) {
            if older.counter.start_us + length_us == stored.window_start_us {
                counter.previous = older.counter.current;
            }
            older.counter = counter;
            older.written = Some((counter.start_us, counter.current));
        } else {
            let written = Some((counter.start_us, counter.current));
            self.windows.push(Window { name: stored.limit_name.into(), length_us, counter, written });
        }
    }

    /// The rows of these counters that are not written yet: the present window, and the one before it, where it was
    /// charged after the last flush.
    fn tracked(&mut self, meter: &Meter) -> Vec<TrackedWindow> {
        let subject_id = RecordId::from_u128(meter.subject).to_string();
        let row = |name: &str, start: i64, end: i64, count: i64| TrackedWindow {
            subject_id: subject_id.clone(),
            limit_name: name.to_owned(),
            window_start_us: start,
            window_end_us: end,
            count,
        };
        let mut rows = Vec::with_capacity(2 * self.windows.len());
        for Window { name, length_us, counter, written } in &mut self.windows {
            let before = counter.start_us - *length_us;
            let was_told_of = written.is_some_and(|(start, _)| start == counter.start_us);
            if counter.previous > 0 && !was_told_of && *written != Some((before, counter.previous)) {
                rows.push(row(name, before, counter.start_us, counter.previous));
            }
            let present = Some((counter.start_us, counter.current));
            if *written != present {
                rows.push(row(name, counter.start_us, counter.start_us + *length_us, counter.current));
                *written = present;
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    fn window(counter: SlidingWindow) -> Window {
        Window {
            name: "hourly".into(),
            length_us: HOUR_US,
            counter,
            written: Some((counter.start_us, counter.current)),
        }
    }

    /// Start and count of each row that a flush would write.
    fn rows(counts: &mut Counts, meter: &Meter) -> Vec<(i64, i64)> {
        counts.tracked(meter).iter().map(|row| (row.window_start_us / HOUR_US, row.count)).collect()
    }

    #[test]
    fn a_count_is_written_when_it_has_changed_and_the_window_before_it_until_its_last_count_is() {
        let limiter = Limiter::default();
        let meter = limiter.meter(7);
        let mut counts = Counts::default();
        let mut charged = |hour: i64, current, previous| {
            let counter = SlidingWindow { start_us: hour * HOUR_US, current, previous };
            match counts.windows.first_mut() {
                Some(window) => window.counter = counter,
                None => counts.windows.push(Window { written: None, ..window(counter) }),
            }
            rows(&mut counts, &meter)
        };
        assert_eq!(charged(10, 3, 4), [(9, 4), (10, 3)], "nothing is written yet");
        assert_eq!(charged(10, 3, 4), [], "all is written");
        assert_eq!(charged(10, 5, 4), [(10, 5)]);
        assert_eq!(charged(11, 1, 5), [(11, 1)], "the window before was written to its end");
        assert_eq!(charged(12, 1, 6), [(11, 6), (12, 1)], "the window before was charged after it was written");
        assert_eq!(charged(12, 2, 6), [(12, 2)]);
    }

    #[test]
    fn a_hundredth_of_a_limit_is_much() {
        let limit = RateLimit::parse("hourly", 1000, Duration::from_hours(1), false).unwrap();
        let counter = |current| SlidingWindow { start_us: 10 * HOUR_US, current, previous: 0 };
        let mut counts = Counts::default();
        assert_eq!(counts.change_of(&limit, counter(9)), Change::Little);
        assert_eq!(counts.change_of(&limit, counter(10)), Change::Much);
        counts.windows.push(window(counter(500)));
        assert_eq!(counts.change_of(&limit, counter(509)), Change::Little, "500 are written");
        assert_eq!(counts.change_of(&limit, counter(510)), Change::Much);
    }

    #[test]
    fn counts_come_back_after_a_restart_the_window_before_included() {
        let limiter = Limiter::default();
        let meter = limiter.meter(7);
        let mut before = Counts::default();
        let counter = SlidingWindow { start_us: 10 * HOUR_US, current: 3, previous: 4 };
        before.windows.push(Window { written: None, ..window(counter) });
        let mut tracked = before.tracked(&meter);
        tracked.sort_by_key(|window| window.window_start_us);
        let mut after = Counts::default();
        // Twice, as where a start takes two tries.
        for window in tracked.iter().chain(&tracked) {
            after.restore(window.clone());
        }
        assert_eq!(after.windows, before.windows);
    }

    #[test]
    fn windows_that_do_not_meet_do_not_count_together() {
        let stored = |start: i64, count: i64| TrackedWindow {
            subject_id: String::new(),
            limit_name: "hourly".to_owned(),
            window_start_us: start * HOUR_US,
            window_end_us: (start + 1) * HOUR_US,
            count,
        };
        let mut counts = Counts::default();
        counts.restore(stored(10, 5));
        counts.restore(stored(12, 2));
        assert_eq!(counts.windows, [window(SlidingWindow { start_us: 12 * HOUR_US, current: 2, previous: 0 })]);
    }
}
