//! The wall clock, in one place, so that tests can move it. Everything else gets its moment as an argument.
//! Must not be used to measure durations: `std::time::Instant` does that, and does not jump.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::domain::time::Timestamp;

/// The clock of one service: the system's, moved by an offset that is zero outside tests.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    offset_us: Arc<AtomicI64>,
}

impl Clock {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the wall clock")]
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let micros = i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(micros.saturating_add(self.offset_us.load(Ordering::Relaxed)))
    }

    /// Moves the clock on, or back, by so many microseconds; every holder of this clock sees it.
    pub fn step(&self, micros: i64) {
        self.offset_us.fetch_add(micros, Ordering::Relaxed);
    }
}
