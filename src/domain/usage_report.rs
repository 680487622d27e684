//! Reports of what became of requests: what a good one holds, and why a bad one is refused.
//! A report is told from others by its key and request id. Must not hold a secret; nothing here is logged.

use std::time::Duration;

use super::{ids::KeyId, key::stored_enum, time::Timestamp};

/// How far ahead of the service's clock the time of a report may be.
pub const REPORT_AHEAD_MAX: Duration = Duration::from_mins(5);
/// How old a request may be when it is reported: 30 days.
pub const REPORT_AGE_MAX: Duration = Duration::from_hours(30 * 24);
/// How long it is remembered that a report has been counted, from its time or its arrival, whichever is later. Longer
/// than a report may be old, by a day for clocks that differ or step back: so no repeat of a report that states its
/// time is counted twice.
pub const REPORT_KEPT: Duration = Duration::from_hours(31 * 24);
/// The most reports in one call.
pub const REPORTS_MAX: usize = 1000;
/// The most tokens, and the highest cost in millionths of a US dollar, of one request.
pub const REPORTED_AMOUNT_MAX: i64 = 1_000_000_000_000;
/// The longest response time.
pub const RESPONSE_TIME_MAX: Duration = Duration::from_hours(24);
/// The highest status code.
pub const STATUS_CODE_MAX: i32 = 999;

/// What became of one request, as reported.
#[derive(Debug, Clone)]
pub struct UsageReport {
    pub request_id: String,
    pub key_id: KeyId,
    pub time: Timestamp,
    pub endpoint: String,
    pub method: String,
    pub status_code: i32,
    pub response_time: Option<Duration>,
    pub tokens: i64,
    pub cost_micro_usd: i64,
    pub client_address: String,
    pub user_agent: String,
    pub error_code: String,
    pub error_message: String,
}

impl UsageReport {
    /// Whether the request ended with an error: one with a code, a gRPC code but OK, or an HTTP status of 400 and more.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        !self.error_code.is_empty() || matches!(self.status_code, 1..=16 | 400..)
    }
}

stored_enum! {
    /// Why a report was not taken. A repeat of it would be refused again.
    Rejection {
        InvalidRequestId = "INVALID_REQUEST_ID",
        InvalidKeyId = "INVALID_KEY_ID",
        InvalidTime = "INVALID_TIME",
        TimeTooOld = "TIME_TOO_OLD",
        TimeInFuture = "TIME_IN_FUTURE",
        InvalidEndpoint = "INVALID_ENDPOINT",
        InvalidMethod = "INVALID_METHOD",
        InvalidStatusCode = "INVALID_STATUS_CODE",
        InvalidResponseTime = "INVALID_RESPONSE_TIME",
        InvalidTokens = "INVALID_TOKENS",
        InvalidCost = "INVALID_COST_MICRO_USD",
        InvalidClientAddress = "INVALID_CLIENT_ADDRESS",
        InvalidUserAgent = "INVALID_USER_AGENT",
        InvalidErrorCode = "INVALID_ERROR_CODE",
        InvalidErrorMessage = "INVALID_ERROR_MESSAGE",
        /// There is no such key, or none that the caller may know of.
        KeyNotFound = "KEY_NOT_FOUND",
    }
}

/// One call's reports: the good ones and the bad ones, each with its place in the call, from 0.
#[derive(Debug, Clone, Default)]
pub struct UsageReports {
    pub good: Vec<(i32, UsageReport)>,
    pub rejected: Vec<(i32, Rejection)>,
}

/// What became of one call's reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageReported {
    pub accepted: i32,
    pub duplicates: i32,
    /// By place.
    pub rejected: Vec<(i32, Rejection)>,
}
