//! Who keeps the counts of rate limits and monthly quotas, and how they survive a restart.
//! One process counts in memory under one lock, so that several limits are charged all or none, and writes what
//! changed through to `rate_limit_tracking` on a short interval and at shutdown. A `kill -9` forgets at most what was
//! charged since the last flush (one second). Credits are not counted here: they are one statement in `store/credits.rs`.

mod counters;
mod tracking;

pub use self::counters::{Charge, Charged, Limiter};
