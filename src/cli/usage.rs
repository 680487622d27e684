//! `keystead usage`: what the keys of an organization, or one key, were used for.
//!
//! One `UsageStats` call: totals, a bar for each hour, day or month, and tables of outcomes, endpoints, errors and
//! consumers. Invariant: what is asked about is named, exactly one organization or one key.

use std::fmt::Write as _;

use clap::Args;
use prost_types::Timestamp;
use time::OffsetDateTime;

use super::chart::{Bar, HATCHED, SOLID, Screen, draw};
use super::client::Client;
use super::failure::{DONE, Failure};
use super::output::{self, Fields, object};
use super::{fields, values};
use crate::config::{ClientSettings, Environment, Flags, OutputFormat};
use crate::proto::v1::usage_stats_request::Subject;
use crate::proto::v1::{Granularity, UsageStatsRequest, UsageStatsResponse, UsageTotals};

const GRANULARITIES: &[&str] = &["hour", "day", "month"];
const SUMS: &[&str] = &["verifications", "valid", "denied", "requests_reported", "errors", "response_time_p95"];

/// Flags of `usage`.
#[derive(Debug, Args)]
pub(super) struct Usage {
    #[command(flatten)]
    flags: Flags<ClientSettings>,
    #[command(flatten)]
    subject: SubjectFlags,
    /// Usage at or after this time; by default the start of the month of --to, UTC.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    from: Option<Timestamp>,
    /// Usage before this time; by default now.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    to: Option<Timestamp>,
    /// What one bar of the series stands for; by default a day.
    #[arg(long, value_parser = values::choice(GRANULARITIES, "GRANULARITY_", Granularity::from_str_name))]
    granularity: Option<i32>,
    /// How many endpoints, errors and consumers to name; 0 for the service's default.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    top: i32,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SubjectFlags {
    /// All keys of this organization.
    #[arg(long, value_name = "ID")]
    organization: Option<String>,
    /// This key alone.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
}

impl Usage {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let client = Client::open(&self.flags, environment).await?;
        let organization = self.subject.organization.map(Subject::OrganizationId);
        let request = UsageStatsRequest {
            subject: organization.or(self.subject.key.map(Subject::KeyId)),
            start_time: self.from,
            end_time: self.to,
            granularity: self.granularity.unwrap_or_default(),
            top: self.top,
        };
        let answer = client.call(client.keys().usage_stats(client.request(request))).await?;
        output::print(&match client.output() {
            OutputFormat::Table => show(&answer, self.granularity.unwrap_or_default(), Screen::new(environment)),
            OutputFormat::Json => output::json(&object(fields::usage(&answer))),
        })?;
        Ok(DONE)
    }
}

fn show(answer: &UsageStatsResponse, granularity: i32, screen: Screen) -> String {
    let parts = fields::usage_parts(answer);
    let mut text = output::record(&answer.totals.as_ref().map(fields::totals).unwrap_or_default());
    text.push_str(&charts(answer, granularity, screen));
    let columns = |first: &[&'static str]| [first, SUMS].concat();
    let sections: [(&str, Vec<&'static str>, &[Fields]); 4] = [
        ("Outcomes", vec!["outcome", "count"], &parts.by_outcome),
        ("Endpoints", columns(&["endpoint"]), &parts.by_endpoint),
        ("Errors", vec!["error_code", "count"], &parts.by_error),
        ("Consumers", columns(&["key_id", "name"]), &parts.top_consumers),
    ];
    for (title, columns, rows) in sections {
        if !rows.is_empty() {
            let _ = write!(text, "\n{title}\n{}", output::table(&columns, rows));
        }
    }
    text
}

/// A chart of verifications, and one of what was reported where anything was.
fn charts(answer: &UsageStatsResponse, granularity: i32, screen: Screen) -> String {
    let granularity = Granularity::try_from(granularity).unwrap_or(Granularity::Day);
    let each = match granularity {
        Granularity::Hour => "hour",
        Granularity::Unspecified | Granularity::Day => "day",
        Granularity::Month => "month",
    };
    let bars = |split: fn(&UsageTotals) -> (i64, i64)| {
        let points = answer.series.iter().map(|point| {
            let (solid, hatched) = point.totals.as_ref().map(split).unwrap_or_default();
            let part = |count: i64| u64::try_from(count).unwrap_or(0);
            Bar { label: label(point.start_time.as_ref(), granularity), solid: part(solid), hatched: part(hatched) }
        });
        draw(&points.collect::<Vec<Bar>>(), screen)
    };
    let verified = bars(|totals| (totals.valid, totals.denied));
    let mut text = format!("\nSeries: verifications by {each}, UTC ({SOLID} valid, {HATCHED} denied)\n{verified}");
    if answer.totals.as_ref().is_some_and(|totals| totals.requests_reported > 0) {
        let reported = bars(|totals| (totals.requests_reported.saturating_sub(totals.errors), totals.errors));
        let _ = write!(
            text,
            "\nSeries: requests reported by {each}, UTC ({SOLID} without error, {HATCHED} errors)\n{reported}"
        );
    }
    text
}

/// When a point begins, as far as its length tells.
fn label(start: Option<&Timestamp>, granularity: Granularity) -> String {
    let Some(start) = start.and_then(|start| OffsetDateTime::from_unix_timestamp(start.seconds).ok()) else {
        return "-".to_owned();
    };
    let month = format!("{:04}-{:02}", start.year(), u8::from(start.month()));
    match granularity {
        Granularity::Month => month,
        Granularity::Unspecified | Granularity::Day => format!("{month}-{:02}", start.day()),
        Granularity::Hour => format!("{month}-{:02} {:02}:00", start.day(), start.hour()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{UsageByEndpoint, UsageByKey, UsageByOutcome, UsagePoint};

    /// 2026-11-01T00:00:00Z.
    const NOVEMBER: i64 = 1_793_491_200;

    fn sums(valid: i64, denied: i64, requests_reported: i64) -> UsageTotals {
        UsageTotals { verifications: valid + denied, valid, denied, requests_reported, ..UsageTotals::default() }
    }

    fn answer() -> UsageStatsResponse {
        let point = |hours: i64, totals| UsagePoint {
            start_time: Some(Timestamp { seconds: NOVEMBER + hours * 3600, nanos: 0 }),
            totals: Some(totals),
        };
        UsageStatsResponse {
            totals: Some(sums(30, 10, 5)),
            series: vec![point(0, sums(20, 10, 0)), point(24, sums(0, 0, 0)), point(48, sums(10, 0, 5))],
            by_endpoint: vec![UsageByEndpoint { endpoint: "/v1/invoices".to_owned(), totals: Some(sums(30, 10, 5)) }],
            by_outcome: vec![UsageByOutcome { outcome: 11, count: 30 }],
            by_error: vec![],
            top_consumers: vec![UsageByKey {
                key_id: "k".to_owned(),
                name: "first".to_owned(),
                totals: Some(sums(30, 10, 5)),
            }],
        }
    }

    #[test]
    fn an_answer_is_totals_charts_and_tables() {
        let expected = "\
verifications:     40
valid:             30
denied:            10
requests_reported: 5
errors:            0
tokens:            0
cost_micro_usd:    0

Series: verifications by day, UTC (█ valid, ░ denied)
2026-11-01  30  ████████████████░░░░░░░░
2026-11-02   0
2026-11-03  10  ████████

Series: requests reported by day, UTC (█ without error, ░ errors)
2026-11-01  0
2026-11-02  0
2026-11-03  5  █████████████████████████

Outcomes
OUTCOME  COUNT
VALID    30

Endpoints
ENDPOINT      VERIFICATIONS  VALID  DENIED  REQUESTS_REPORTED  ERRORS  RESPONSE_TIME_P95
/v1/invoices  40             30     10      5                  0       -

Consumers
KEY_ID  NAME   VERIFICATIONS  VALID  DENIED  REQUESTS_REPORTED  ERRORS  RESPONSE_TIME_P95
k       first  40             30     10      5                  0       -
";
        assert_eq!(show(&answer(), 0, Screen { columns: 40, coloured: false }), expected);
    }

    #[test]
    fn labels_tell_hours_days_and_months_in_utc() {
        let start = Timestamp { seconds: NOVEMBER + 13 * 3600, nanos: 0 };
        let labels = [Granularity::Hour, Granularity::Day, Granularity::Month].map(|of| label(Some(&start), of));
        assert_eq!(labels, ["2026-11-01 13:00", "2026-11-01", "2026-11"]);
        assert_eq!(label(None, Granularity::Day), "-");
    }
}
