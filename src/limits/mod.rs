//! What bounds the use of keys: rate limits, monthly quotas and credits, and who keeps their counts.
//!
//! Rate limits: where one process serves, on SQLite, it counts in memory (`counters`) and writes what changed through
//! to `rate_limit_tracking` (`tracking`). Replicas share the counters (`shared`, `seen`), in Redis (`redis`) or in that table
//! (`table`), and go on alone with their share while those are away. Quotas and credits have the database as their
//! authority (`quotas`, `credits`) and are never overspent: where it cannot be asked, that is an error.
//! Must not decide whether a key is valid.

mod counters;
mod credits;
mod quotas;
pub mod redis;
mod seen;
mod shared;
mod steady_time;
mod table;
mod tracking;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use self::{shared::Counters, table::TableCounters};
use crate::store::Store;

pub use self::redis::{RedisCounters, RedisUrlError};
pub use self::{
    counters::{Charge, Charged, Limiter},
    credits::Spender,
    quotas::Quotas,
    shared::SharedLimits,
};
pub use crate::store::turns::TurnError;

/// The rate limits of one process, alone or shared.
pub enum Limits {
    Alone(Box<Limiter>),
    Shared(Box<SharedLimits>),
}

impl Limits {
    /// Limits that are counted in Redis, where there is one; else in the database, where it is shared; else here.
    /// Statements run on `runtime`, and whoever waits for `statements` waits for them.
    #[must_use]
    pub fn new(redis: Option<RedisCounters>, store: &Store, runtime: Handle, statements: TaskTracker) -> Self {
        match redis {
            Some(redis) => Self::Shared(Box::new(SharedLimits::new(Counters::Redis(redis)))),
            None if store.is_shared() => {
                let table = TableCounters::new(store.clone(), runtime, statements);
                Self::Shared(Box::new(SharedLimits::new(Counters::Table(Box::new(table)))))
            }
            None => Self::Alone(Box::default()),
        }
    }

    /// Charges every limit, or none of them. Where one process counts, this waits for nothing.
    pub async fn charge(&self, charge: &Charge<'_>) -> Charged {
        match self {
            Self::Alone(limiter) => limiter.charge(charge),
            Self::Shared(shared) => Box::pin(shared.charge(charge)).await,
        }
    }

    /// The denial of a charge that cannot fit, where that is known without asking anybody.
    #[must_use]
    pub fn denied_for_certain(&self, charge: &Charge<'_>) -> Option<Charged> {
        self.shared()?.denied_for_certain(charge)
    }

    /// The counters of this process, where no other shares them.
    #[must_use]
    pub const fn alone(&self) -> Option<&Limiter> {
        match self {
            Self::Alone(limiter) => Some(limiter),
            Self::Shared(_) => None,
        }
    }

    /// The limits that others share.
    #[must_use]
    pub const fn shared(&self) -> Option<&SharedLimits> {
        match self {
            Self::Alone(_) => None,
            Self::Shared(shared) => Some(shared),
        }
    }

    /// How many keys and organizations are counted for here.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Alone(limiter) => limiter.len(),
            Self::Shared(shared) => shared.len(),
        }
    }

    /// Whether nothing is counted for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
