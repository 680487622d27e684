//! The `limits` section: where replicas share the counters of rate limits.
//! Declares and reads; connects to nothing.

use super::redis::RedisUrl;
use super::settings::Setting;
use super::sources::{Reported, Sources};

const REDIS_URL: Setting = Setting::optional(
    "redis-url",
    "URL",
    "redis://HOST:PORT, rediss:// with TLS or redis+cluster://HOST:PORT,...: counts rate limits for all replicas",
)
.secret();

/// All settings of this section.
pub(super) const SETTINGS: &[Setting] = &[REDIS_URL];

/// Where rate limits are counted.
#[derive(Debug, Clone)]
pub struct LimitsConfig {
    /// The Redis that replicas share; without one they share the database.
    pub redis_url: Option<RedisUrl>,
}

impl LimitsConfig {
    /// Reads the section.
    pub(super) fn read(sources: &mut Sources<'_>) -> Result<Self, Reported> {
        Ok(Self { redis_url: sources.optional(&REDIS_URL, RedisUrl::parse)? })
    }
}
