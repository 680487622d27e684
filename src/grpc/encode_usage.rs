//! Usage, from domain to wire. Decides nothing: what no report states is absent already.

use super::encode::{encode_outcome, encode_span, encode_time};
use crate::{
    domain::{
        outcome::Outcome,
        time::Timestamp,
        usage::{Consumer, Usage, UsageStats},
        usage_report::{Rejection, UsageReported},
    },
    proto::v1,
};

/// Sums of usage.
pub fn encode_stats(stats: UsageStats) -> v1::UsageStatsResponse {
    let point = |(start, usage): (Timestamp, Usage)| v1::UsagePoint {
        start_time: Some(encode_time(start)),
        totals: Some(encode_totals(&usage)),
    };
    let endpoint =
        |(endpoint, usage): (String, Usage)| v1::UsageByEndpoint { endpoint, totals: Some(encode_totals(&usage)) };
    let outcome =
        |(outcome, count): (Outcome, i64)| v1::UsageByOutcome { outcome: encode_outcome(outcome).into(), count };
    let consumer = |consumer: Consumer| v1::UsageByKey {
        key_id: consumer.key_id.to_string(),
        name: consumer.name,
        totals: Some(encode_totals(&consumer.usage)),
    };
    v1::UsageStatsResponse {
        totals: Some(encode_totals(&stats.usage)),
        series: stats.series.into_iter().map(point).collect(),
        by_endpoint: stats.by_endpoint.into_iter().map(endpoint).collect(),
        by_outcome: stats.by_outcome.into_iter().map(outcome).collect(),
        by_error: stats
            .by_error
            .into_iter()
            .map(|(error_code, count)| v1::UsageByError { error_code, count })
            .collect(),
        top_consumers: stats.top_consumers.into_iter().map(consumer).collect(),
    }
}

/// What became of reports.
pub fn encode_reported(reported: UsageReported) -> v1::ReportUsageResponse {
    let rejected =
        |(index, rejection): (i32, Rejection)| v1::RejectedRecord { index, reason: rejection.as_str().to_owned() };
    v1::ReportUsageResponse {
        accepted: reported.accepted,
        duplicates: reported.duplicates,
        rejected: reported.rejected.into_iter().map(rejected).collect(),
    }
}

fn encode_totals(usage: &Usage) -> v1::UsageTotals {
    let totals = &usage.totals;
    let percentile = |percent| usage.response_times.percentile(percent).map(encode_span);
    v1::UsageTotals {
        verifications: totals.verifications,
        valid: totals.valid,
        denied: totals.denied(),
        requests_reported: totals.requests_reported,
        errors: totals.errors,
        response_time_mean: usage.response_time_mean().map(encode_span),
        response_time_p50: percentile(50),
        response_time_p95: percentile(95),
        response_time_p99: percentile(99),
        tokens: totals.tokens,
        cost_micro_usd: totals.cost_micro_usd,
    }
}
