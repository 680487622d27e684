//! Usage: what one verification leaves behind, and how sums over time are asked for and answered.
//! Must not hold the text of an unknown secret, nor anything of a key but its id and name.

use std::{collections::BTreeMap, time::Duration};

use super::{
    ids::{KeyId, OrganizationId},
    outcome::Outcome,
    time::{DAY_US, HOUR_US, Timestamp},
};

/// One answered verification. Unknown secrets are attempts too: they have neither key nor organization.
#[derive(Debug, Clone)]
pub struct UsageEvent {
    pub key: Option<(KeyId, OrganizationId)>,
    pub time: Timestamp,
    pub outcome: Outcome,
    pub endpoint: String,
    pub method: String,
    pub client_address: String,
    pub user_agent: String,
    pub request_id: String,
    pub tags: BTreeMap<String, String>,
}

/// What usage is summed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageSubject {
    Organization(OrganizationId),
    Key(KeyId),
}

/// The width of the buckets of a series, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    Hour,
    Day,
    Month,
}

impl Granularity {
    /// The start of the bucket that `time` falls in.
    #[must_use]
    pub fn bucket_of(self, time: Timestamp) -> Timestamp {
        match self {
            Self::Hour => time.start_of_hour(),
            Self::Day => time.start_of_day(),
            Self::Month => time.start_of_month(),
        }
    }

    /// The start of the bucket after the one that `time` falls in.
    #[must_use]
    pub fn next_bucket(self, time: Timestamp) -> Timestamp {
        match self {
            Self::Hour => Timestamp::from_micros(time.start_of_hour().micros() + HOUR_US),
            Self::Day => Timestamp::from_micros(time.start_of_day().micros() + DAY_US),
            Self::Month => time.start_of_next_month(),
        }
    }
}

/// What a caller asks of usage: sums over `[start, end)`.
#[derive(Debug, Clone)]
pub struct UsageQuestion {
    pub subject: UsageSubject,
    pub start: Timestamp,
    pub end: Timestamp,
    pub granularity: Granularity,
    /// How many endpoints, errors and consumers at the most.
    pub top: u64,
}

/// Sums over some span.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageTotals {
    pub verifications: i64,
    pub valid: i64,
    pub requests_reported: i64,
    pub errors: i64,
    pub response_time_sum: Duration,
    pub tokens: i64,
    pub cost_micro_usd: i64,
}

impl UsageTotals {
    /// Verifications that were not `VALID`.
    #[must_use]
    pub const fn denied(&self) -> i64 {
        self.verifications - self.valid
    }

    /// Adds other sums to these.
    pub fn add(&mut self, other: &Self) {
        self.verifications += other.verifications;
        self.valid += other.valid;
        self.requests_reported += other.requests_reported;
        self.errors += other.errors;
        self.response_time_sum += other.response_time_sum;
        self.tokens += other.tokens;
        self.cost_micro_usd += other.cost_micro_usd;
    }
}

/// The sums of one key.
#[derive(Debug, Clone)]
pub struct Consumer {
    pub key_id: KeyId,
    pub name: String,
    pub totals: UsageTotals,
}

/// The answer to a usage question.
#[derive(Debug, Clone, Default)]
pub struct UsageStats {
    pub totals: UsageTotals,
    /// Every bucket of the span, empty ones included, oldest first.
    pub series: Vec<(Timestamp, UsageTotals)>,
    /// Most used first.
    pub by_endpoint: Vec<(String, UsageTotals)>,
    pub by_outcome: Vec<(Outcome, i64)>,
    pub by_error: Vec<(String, i64)>,
    /// Most used first.
    pub top_consumers: Vec<Consumer>,
}
