//! What a verification leans on: the cache of records, the loader behind it, and the follower of the change feed.
//! Must not decide an outcome. Invariant: once an eviction has returned, no look-up gives what was loaded before it.

mod cache;
mod feed;
mod key_caches;
mod loader;
mod organizations;
mod records;
mod slow_checks;

pub use self::{
    cache::{GenerationCache, Hit, Slot},
    feed::{Basis, Feed},
    key_caches::CacheLimits,
    records::{Freshness, Records},
    slow_checks::{LOOKED_UP_MAX as SLOW_LOOKED_UP_MAX, SlowChecks},
};
