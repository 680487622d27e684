//! `keystead audit`: reads the audit log, and checks that nobody tampered with it.
//!
//! `list` shows events; `verify` walks all of them, newest first, through `audit_chain.rs`, which holds the judgement.
//! Invariant: `verify` recomputes every hash here and takes none of the service's for granted.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use serde_json::json;

use super::audit_chain::{Chain, Head, Link, Report};
use super::client::Client;
use super::failure::{DONE, Failure, REFUSED};
use super::output::{self, Fields, object};
use super::page::{self, PAGE_SIZE_MAX, Page};
use super::{fields, values};
use crate::config::{ClientSettings, Environment, Flags, OutputFormat};
use crate::domain::audit::AuditRecord;
use crate::proto::v1::{AuditEvent, ListAuditEventsRequest};

const COLUMNS: &[&str] = &["sequence", "time", "actor", "action", "target_id", "organization_id", "detail"];

/// Flags of `audit`.
#[derive(Debug, Args)]
pub(super) struct Audit {
    #[command(flatten)]
    flags: Flags<ClientSettings>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List audit events, newest first.
    List(List),
    /// Check the whole log: every hash, every link, no gap. Needs a key of the organization `system`, since any
    /// other caller sees a part of the events only, which looks like removed ones.
    Verify {
        /// Head that an earlier check printed; finds events that were cut off the end since, or a log written anew.
        #[arg(long, value_name = "SEQUENCE:HASH", value_parser = Head::parse)]
        head: Option<Head>,
    },
}

#[derive(Debug, Args)]
struct List {
    /// Only events of this organization.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    organization: String,
    /// Only changes of this key or organization.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    target: String,
    /// Only changes made with this key.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    actor_key: String,
    /// Only this action, such as key.revoke.
    #[arg(long, default_value = "", hide_default_value = true)]
    action: String,
    /// Only events at or after this time.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    from: Option<Timestamp>,
    /// Only events before this time.
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    to: Option<Timestamp>,
    #[command(flatten)]
    page: Page,
}

impl Audit {
    pub(super) async fn run(self, environment: Environment<'_>) -> Result<u8, Failure> {
        let client = Client::open(&self.flags, environment).await?;
        match self.action {
            Action::List(list) => list.run(&client).await,
            Action::Verify { head } => verify(&client, head).await,
        }
    }
}

impl List {
    async fn run(self, client: &Client) -> Result<u8, Failure> {
        let mut records = Vec::new();
        let mut page_token = self.page.token.clone();
        loop {
            let request = ListAuditEventsRequest {
                organization_id: self.organization.clone(),
                target_id: self.target.clone(),
                actor_key_id: self.actor_key.clone(),
                action: self.action.clone(),
                start_time: self.from,
                end_time: self.to,
                page_size: self.page.size(),
                page_token: page_token.clone(),
            };
            let answer = client.call(client.audit().list_audit_events(client.request(request))).await?;
            records.extend(answer.events.iter().map(fields::audit_event));
            let last = std::mem::replace(&mut page_token, answer.next_page_token);
            if !self.page.goes_on(&last, &page_token)? {
                break;
            }
        }
        page::print(client.output(), "events", COLUMNS, records, &page_token)?;
        Ok(DONE)
    }
}

async fn verify(client: &Client, head: Option<Head>) -> Result<u8, Failure> {
    let mut chain = Chain::new(head);
    let mut page_token = String::new();
    loop {
        let request = ListAuditEventsRequest {
            page_size: PAGE_SIZE_MAX,
            page_token: page_token.clone(),
            ..ListAuditEventsRequest::default()
        };
        let answer = client.call(client.audit().list_audit_events(client.request(request))).await?;
        for event in answer.events {
            chain.push(link(event));
        }
        let last = std::mem::replace(&mut page_token, answer.next_page_token);
        if !page::has_next(&last, &page_token)? {
            break;
        }
    }
    let report = chain.finish();
    output::print(&show(&report, client.output()))?;
    Ok(if report.is_intact() { DONE } else { REFUSED })
}

fn link(event: AuditEvent) -> Link {
    let time = event.time.unwrap_or_default();
    Link {
        record: AuditRecord {
            sequence: event.sequence,
            id: event.id,
            time_us: time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos) / 1000),
            actor_key_id: event.actor_key_id,
            actor: event.actor,
            action: event.action,
            target_type: event.target_type,
            target_id: event.target_id,
            organization_id: event.organization_id,
            request_id: event.request_id,
            detail: event.detail,
        },
        previous_hash: event.previous_hash,
        hash: event.hash,
    }
}

fn show(report: &Report, format: OutputFormat) -> String {
    let faults: Vec<Fields> = report
        .faults
        .iter()
        .map(|fault| {
            vec![
                ("sequence", json!(fault.sequence)),
                ("kind", json!(fault.kind.name())),
                ("explanation", json!(fault.explanation())),
            ]
        })
        .collect();
    // The head of a chain that is not whole is nothing to rest a later check on.
    let head = report.head.as_ref().filter(|_| report.is_intact()).map(ToString::to_string);
    if format == OutputFormat::Json {
        let faults = faults.into_iter().map(object).collect();
        return output::json(&object(vec![
            ("intact", json!(report.is_intact())),
            ("events", json!(report.events)),
            ("head", json!(head)),
            ("fault_count", json!(report.fault_count)),
            ("faults", faults),
        ]));
    }
    let mut text = format!("events: {}\n", report.events);
    if let Some(head) = head {
        let _ = writeln!(text, "head: {head}");
    }
    if !report.is_intact() {
        let table = output::table(&["sequence", "kind", "explanation"], &faults);
        let _ = write!(text, "faults: {}\n{table}", report.fault_count);
    }
    text
}
