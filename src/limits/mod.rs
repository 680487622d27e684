//! Who keeps the counts of rate limits and monthly quotas, how they survive a restart, and who spends credits.
//! One process counts in memory, under a lock for each key and organization, so that several limits are charged all or
//! none, and writes what changed through to `rate_limit_tracking` on a short interval and at shutdown. A `kill -9`
//! forgets at most what was charged since the last flush: of what grew by a hundredth of its limit or more, that is a
//! second, of the rest five. Credits are not counted here: they are spent by one statement in `store/credits.rs`, for
//! all that ask at once.

mod counters;
mod credits;
mod steady_time;
mod tracking;

pub use self::{
    counters::{Charge, Charged, Limiter},
    credits::{SpendError, Spender},
};
