//! `keystead usage`: what the keys of an organization, or one key, were used for.
//!
//! One `UsageStats` call, shown as tables: totals, outcomes, series, endpoints, errors, consumers. Invariant: what
//! is asked about is named, exactly one organization or one key.

use std::fmt::Write as _;

use clap::Args;
use prost_types::Timestamp;

use super::client::Client;
use super::failure::{DONE, Failure};
use super::output::{self, Fields, object};
use super::{fields, values};
use crate::config::{ClientSettings, Environment, Flags, OutputFormat};
use crate::proto::v1::usage_stats_request::Subject;
use crate::proto::v1::{Granularity, UsageStatsRequest, UsageStatsResponse};

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
    /// Length of one line of the series.
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
            OutputFormat::Table => tables(&answer),
            OutputFormat::Json => output::json(&object(fields::usage(&answer))),
        })?;
        Ok(DONE)
    }
}

fn tables(answer: &UsageStatsResponse) -> String {
    let parts = fields::usage_parts(answer);
    let mut text = output::record(&answer.totals.as_ref().map(fields::totals).unwrap_or_default());
    let columns = |first: &[&'static str]| [first, SUMS].concat();
    let sections: [(&str, Vec<&'static str>, &[Fields]); 5] = [
        ("Outcomes", vec!["outcome", "count"], &parts.by_outcome),
        ("Series", columns(&["start_time"]), &parts.series),
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
