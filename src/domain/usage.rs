//! Usage: what one verification leaves behind, and how sums over time are asked for and answered.
//! Must not hold the text of an unknown secret, nor anything of a key but its id and name.

use std::{collections::BTreeMap, time::Duration};

use super::{
    ids::{KeyId, OrganizationId},
    outcome::Outcome,
    response_times::ResponseTimes,
    time::Timestamp,
    usage_span::Granularity,
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

/// Sums over some span. None overflows: what is too large for 64 bits stays at the largest number.
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
        let add = |sum: &mut i64, other: i64| *sum = sum.saturating_add(other);
        add(&mut self.verifications, other.verifications);
        add(&mut self.valid, other.valid);
        add(&mut self.requests_reported, other.requests_reported);
        add(&mut self.errors, other.errors);
        self.response_time_sum = self.response_time_sum.saturating_add(other.response_time_sum);
        add(&mut self.tokens, other.tokens);
        add(&mut self.cost_micro_usd, other.cost_micro_usd);
    }
}

/// The usage of something: sums, and how its response times were spread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub totals: UsageTotals,
    pub response_times: ResponseTimes,
}

impl Usage {
    /// The mean response time of the reports that state one; `None` where none does.
    #[must_use]
    pub fn response_time_mean(&self) -> Option<Duration> {
        let count = u128::try_from(self.response_times.count()).ok().filter(|count| *count > 0)?;
        let micros = self.totals.response_time_sum.as_micros() / count;
        u64::try_from(micros).ok().map(Duration::from_micros)
    }
}

/// The usage of one key.
#[derive(Debug, Clone)]
pub struct Consumer {
    pub key_id: KeyId,
    pub name: String,
    pub usage: Usage,
}

/// The answer to a usage question.
#[derive(Debug, Clone, Default)]
pub struct UsageStats {
    pub usage: Usage,
    /// Every bucket of the span, empty ones included, oldest first.
    pub series: Vec<(Timestamp, Usage)>,
    /// Most used first.
    pub by_endpoint: Vec<(String, Usage)>,
    pub by_outcome: Vec<(Outcome, i64)>,
    /// By error code; empty for errors without one. Most frequent first.
    pub by_error: Vec<(String, i64)>,
    /// Most used first.
    pub top_consumers: Vec<Consumer>,
}
