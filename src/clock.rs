//! The two clocks, in one place: the wall clock, which tests can move and which may jump, and the time since the machine
//! started, which only goes on, and goes on while the machine sleeps. Everything else gets its moment as an argument.
//! Must not be used to measure how long something took: `std::time::Instant` does that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

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

/// A moment on a clock that nobody can set and that counts suspend (`CLOCK_BOOTTIME` of `clock_gettime(2)`): what bounds
/// the age of what is known. `Instant` stands still while a machine sleeps, so that it would wake up with a cache that
/// looks young.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(Duration);

impl Uptime {
    /// Before every other.
    pub const START: Self = Self(Duration::ZERO);

    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(COUNTS_SUSPEND);
        Self(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// How long `earlier` is ago, zero if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment moved on by `span`.
    #[must_use]
    pub const fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// The moment so many microseconds after the start; what [`Uptime::micros`] gave.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(Duration::from_micros(micros))
    }

    /// Microseconds since the start, for what keeps a moment in an atomic.
    #[must_use]
    pub fn micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }
}

/// On macOS it is the monotonic clock that counts suspend.
#[cfg(any(target_os = "linux", target_os = "android"))]
const COUNTS_SUSPEND: ClockId = ClockId::Boottime;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const COUNTS_SUSPEND: ClockId = ClockId::Monotonic;
