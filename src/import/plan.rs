//! `keystead import plan`: what a run would do, told without writing anything.
//!
//! It goes the same way as a run, with batches that are looked up and not written. `planned.rs` remembers the keys that
//! a run would have written by then, and `TakenNames` the organizations; the service decides with them as it does with
//! what is there.
//! Invariant: no row, no import and no refused file is written, and the source is read as a run reads it.

use std::{sync::Arc, time::Instant};

use super::{
    Event, ImportError, Job,
    batches::{KeyBatches, RowBatches},
    limits::{self, Limits},
    mapping::{KeyTable, OrganizationTable},
    organizations::Organizations,
    passes::Step,
    places::Places,
    planned::{CrowdedParts, Planned},
    report::{Report, TableReport},
    run::{check, check_organization, total},
    treat::TableReader,
    usage::Usage,
    writer::{KeyWriter, Tally},
};
use crate::{
    domain::ids::RecordId,
    random,
    service::{SLOW_CANDIDATES_MAX, SLOW_LOOKED_UP_MAX, TakenNames},
    store::imports::{self, ImportKind},
};

/// Tells what a run from the beginning would do. Usage goes on where the last run ended, as it does in a run.
///
/// # Errors
/// See [`ImportError`].
pub async fn plan(job: &mut Job<'_>) -> Result<Report, ImportError> {
    let begun = Instant::now();
    let steps = Step::all(job.mapping);
    check(job, &steps).await?;
    let (mut places, mut planned) = (Places::new(job.mapping), Planned::default());
    let mut tables = Vec::new();
    for step in steps {
        if job.stop.is_cancelled() {
            break;
        }
        tables.push(match step {
            Step::Organizations(table) => plan_organizations(job, table, &mut places, &mut planned).await?,
            Step::Keys(table) => plan_keys(job, table, &mut places, &mut planned).await?,
            Step::Usage(_) | Step::Limits(_) => plan_rows(job, step, &planned).await?,
        });
    }
    if let Some(words) = limits::remark(job.context, job.mapping) {
        (job.tell)(Event::Remark(words));
    }
    tell_crowded(job, &planned);
    let mut report = Report {
        source: job.mapping.source.clone(),
        dry_run: true,
        resumed: false,
        interrupted: job.stop.is_cancelled(),
        tables,
        withheld: Vec::new(),
        refused_file: None,
        elapsed: begun.elapsed(),
    };
    report.withheld = withheld(&report);
    tell_withheld(job, &report);
    Ok(report)
}

/// The tables of past requests that a run would leave out, of which there is something to be read.
fn withheld(report: &Report) -> Vec<String> {
    if report.refused_owners() == 0 {
        return Vec::new();
    }
    let is_left_out = |table: &&TableReport| matches!(table.kind, ImportKind::Usage) && table.rows > 0;
    report.tables.iter().filter(is_left_out).map(|table| table.table.clone()).collect()
}

fn tell_withheld(job: &Job<'_>, report: &Report) {
    if report.withheld.is_empty() {
        return;
    }
    let tables: Vec<String> = report.withheld.iter().map(|table| format!("{table:?}")).collect();
    (job.tell)(Event::Remark(&format!(
        "{} rows of organizations and keys would be refused: `run` then reads no past requests of {}, unless it is \
         given --accept-refused",
        report.refused_owners(),
        tables.join(", ")
    )));
}

/// Says where a secret would be compared with more slow keys than is good.
fn tell_crowded(job: &Job<'_>, planned: &Planned) {
    for (id, count) in planned.crowded() {
        (job.tell)(Event::Remark(&format!(
            "organization {id} would have {count} bcrypt or Argon2 keys without look-up part: a secret that comes \
             without key_id is compared with at most {SLOW_CANDIDATES_MAX} of them at once; map look-up-id, or have \
             callers send key_id"
        )));
    }
    for CrowdedParts { organization_id, parts, keys_max } in planned.crowded_parts() {
        (job.tell)(Event::Remark(&format!(
            "organization {organization_id} would have {parts} look-up parts that more than {SLOW_LOOKED_UP_MAX} \
             bcrypt or Argon2 keys share, one of them {keys_max}: a secret that comes without key_id is compared with \
             all of them, behind other checks, as if they had none; map as look-up-id what tells keys apart, or have \
             callers send key_id"
        )));
    }
}

async fn plan_organizations(
    job: &mut Job<'_>,
    table: &OrganizationTable,
    places: &mut Places,
    planned: &mut Planned,
) -> Result<TableReport, ImportError> {
    let step = Step::Organizations(table);
    let (reading, mut taken) = (Organizations::new(job.mapping, table), TakenNames::default());
    let mut tally = Tally::new(&table.table.name, step.kind(), total(job, step).await?, 0, job.tell);
    let mut batches = RowBatches::new(&mut job.source, job.stop, step.ask(), job.options.batch, "");
    loop {
        let rows = batches.next().await?;
        if rows.is_empty() {
            return Ok(tally.finish());
        }
        let (counts, new) = reading.plan_next(job.context, &rows, &mut taken).await?;
        tally.count(rows.len(), &counts);
        for organization in new {
            planned.add_organization(organization.id, organization.max_keys);
            places.plan(organization.id, organization.slug);
        }
    }
}

async fn plan_keys(
    job: &mut Job<'_>,
    table: &KeyTable,
    places: &mut Places,
    planned: &mut Planned,
) -> Result<TableReport, ImportError> {
    let step = Step::Keys(table);
    check_organization(job, places, step).await?;
    let found = imports::find(job.context.store.control(), &job.mapping.source, &table.table.name).await?;
    let import_id = found.map(|import| import.id);
    let import_id = import_id.unwrap_or_else(|| RecordId::new(job.context.clock.now(), random::bytes()));
    planned.add_table(&table.table.name, import_id);
    let tally = Tally::new(&table.table.name, step.kind(), total(job, step).await?, 0, job.tell);
    let reader = Arc::new(TableReader::new(job.mapping, table, job.options.allow_weak));
    let rows = RowBatches::new(&mut job.source, job.stop, reader.ask.clone(), job.options.batch, "");
    let mut batches = KeyBatches::new(rows, job.context, reader, places, None);
    let (source, after) = (job.mapping.source.as_str(), String::new());
    let mut writer = KeyWriter { context: job.context, source, import_id, after, tally };
    let mut next = batches.next().await?;
    while let Some(batch) = next {
        let (read, told) = tokio::join!(batches.next(), writer.plan(batch, planned));
        told?;
        next = read?;
    }
    Ok(writer.tally.finish())
}

/// Rows that refer to keys.
async fn plan_rows(job: &mut Job<'_>, step: Step<'_>, planned: &Planned) -> Result<TableReport, ImportError> {
    let table = step.table();
    let found = imports::find(job.context.store.control(), &job.mapping.source, &table.name).await?;
    // As a run does: past requests are only ever added to.
    let after = match step {
        Step::Usage(_) => found.map(|import| import.position).unwrap_or_default(),
        Step::Organizations(_) | Step::Keys(_) | Step::Limits(_) => String::new(),
    };
    let mut reading = Referring::open(job, step).await?;
    let mut tally = Tally::new(&table.name, step.kind(), total(job, step).await?, 0, job.tell);
    tally.report.resumed = !after.is_empty();
    let mut batches = RowBatches::new(&mut job.source, job.stop, step.ask(), job.options.batch, &after);
    loop {
        let rows = batches.next().await?;
        if rows.is_empty() {
            return Ok(tally.finish());
        }
        let counts = match &mut reading {
            Referring::Usage(usage) => usage.plan_batch(job.context, &rows, planned).await?,
            Referring::Limits(limits) => limits.plan_batch(job.context, &rows, planned).await?,
            Referring::Nothing => return Ok(tally.finish()),
        };
        tally.count(rows.len(), &counts);
    }
}

/// Tables that refer to keys.
enum Referring {
    Usage(Usage),
    Limits(Limits),
    Nothing,
}

impl Referring {
    async fn open(job: &Job<'_>, step: Step<'_>) -> Result<Self, ImportError> {
        Ok(match step {
            Step::Usage(table) => {
                let now = job.context.clock.now();
                Self::Usage(Usage::open(job.context, job.mapping, table, now).await?)
            }
            Step::Limits(table) => Self::Limits(Limits::open(job.context, job.mapping, table).await?),
            Step::Organizations(_) | Step::Keys(_) => Self::Nothing,
        })
    }
}
