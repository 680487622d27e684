//! A time that does not go back: the wall clock, until it steps back; from then on the moment at which it did, and what
//! has passed since. Windows that were charged before the step then fade as they would have, and nobody is locked out,
//! or let through, for as long as the step was.
//! Must not be used for what the calendar decides, such as the month of a quota.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::domain::time::Timestamp;

/// Less than this is no step: clocks are slewed, and threads read them in turn.
const STEP_US: i64 = 1_000_000;
/// How exactly the latest moment is kept, so that it is not written with every call.
const GRAIN_US: i64 = 10_000;

/// The time of one process.
#[derive(Default)]
pub(super) struct SteadyTime {
    latest_us: AtomicI64,
    /// The moment at which the clock stepped back, and when that was seen.
    stepped: Mutex<Option<(i64, Instant)>>,
}

impl SteadyTime {
    /// The steady time where the wall clock shows `now`.
    pub(super) fn at(&self, now: Timestamp) -> Timestamp {
        let (now_us, latest_us) = (now.micros(), self.latest_us.load(Ordering::Relaxed));
        if now_us > latest_us + GRAIN_US {
            self.latest_us.fetch_max(now_us, Ordering::Relaxed);
        }
        if now_us + STEP_US >= latest_us { now } else { self.since_step(latest_us) }
    }

    fn since_step(&self, latest_us: i64) -> Timestamp {
        let mut stepped = self.stepped.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = |(at_us, seen): (i64, Instant)| at_us.saturating_add(micros(seen.elapsed()));
        let steady_us = stepped.map(passed).filter(|steady_us| *steady_us + STEP_US >= latest_us);
        let steady_us = steady_us.unwrap_or_else(|| {
            *stepped = Some((latest_us, Instant::now()));
            latest_us
        });
        self.latest_us.fetch_max(steady_us, Ordering::Relaxed);
        Timestamp::from_micros(steady_us)
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    fn at(time: &SteadyTime, hours: i64) -> i64 {
        time.at(Timestamp::from_micros(hours * HOUR_US)).micros()
    }

    #[test]
    fn it_is_the_wall_clock_until_that_steps_back() {
        let time = SteadyTime::default();
        assert_eq!([at(&time, 100), at(&time, 101)], [100 * HOUR_US, 101 * HOUR_US]);
        let back = time.at(Timestamp::from_micros(101 * HOUR_US - STEP_US / 2)).micros();
        assert_eq!(back, 101 * HOUR_US - STEP_US / 2, "threads may read the clock in any order");
    }

    #[test]
    fn after_a_step_back_it_goes_on_from_where_it_was() {
        let time = SteadyTime::default();
        at(&time, 101);
        let first = at(&time, 100);
        assert_eq!(first, 101 * HOUR_US);
        while at(&time, 100) < first + 1000 {}
        assert!(at(&time, 100) < 102 * HOUR_US);
        assert_eq!(at(&time, 103), 103 * HOUR_US, "where the clock is ahead again, it counts");
        assert!((103 * HOUR_US..104 * HOUR_US).contains(&at(&time, 102)), "a second step back");
    }
}
