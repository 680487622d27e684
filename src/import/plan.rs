//! `keystead import plan`: what a run would do, told without writing anything.
//!
//! It goes the same way as a run, with batches that are looked up and not written; `planned.rs` remembers what a run
//! would have written by then.
//! Invariant: no row, no import and no refused file is written, and the source is read as a run reads it.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{
    Event, ImportError, Job,
    batches::{KeyBatches, RowBatches},
    limits::Limits,
    mapping::{KeyTable, OrganizationTable},
    organizations::Organizations,
    passes::Step,
    places::Places,
    planned::Planned,
    report::{Report, TableReport},
    run::{check, check_organization, total},
    treat::{OrganizationReader, TableReader},
    usage::Usage,
    writer::{KeyWriter, Tally},
};
use crate::{domain::ids::RecordId, random, store::imports};

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
            Step::Usage(_) | Step::Limits(_) => plan_rows(job, step).await?,
        });
    }
    for (id, count) in planned.crowded() {
        (job.tell)(Event::Remark(&format!(
            "organization {id} would have {count} bcrypt or Argon2 keys without look-up part: a secret that comes \
             without key_id is compared with at most 200 of them at once; map look-up-id, or have callers send key_id"
        )));
    }
    Ok(Report {
        source: job.mapping.source.clone(),
        dry_run: true,
        resumed: false,
        interrupted: job.stop.is_cancelled(),
        tables,
        refused_file: None,
        elapsed: begun.elapsed(),
    })
}

async fn plan_organizations(
    job: &mut Job<'_>,
    table: &OrganizationTable,
    places: &mut Places,
    planned: &mut Planned,
) -> Result<TableReport, ImportError> {
    let step = Step::Organizations(table);
    let (reading, reader) = (Organizations::new(job.mapping, table), OrganizationReader::new(job.mapping, table));
    let mut tally = Tally::new(&table.table.name, step.kind(), total(job, step).await?, 0, job.tell);
    let mut batches = RowBatches::new(&mut job.source, job.stop, step.ask(), job.options.batch, "");
    loop {
        let rows = batches.next().await?;
        if rows.is_empty() {
            return Ok(tally.finish());
        }
        let (counts, there) = reading.plan_batch(job.context, &rows).await?;
        tally.count(rows.len(), &counts);
        let (there, now) = (there.into_iter().collect::<HashSet<_>>(), job.context.clock.now());
        let read = rows.iter().filter_map(|row| reader.read(row, now).ok());
        for organization in read.filter(|organization| there.contains(&organization.id)) {
            planned.organizations.insert(organization.id);
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

/// Rows that refer to keys: whether those will be there is not known before they are.
async fn plan_rows(job: &mut Job<'_>, step: Step<'_>) -> Result<TableReport, ImportError> {
    let table = step.table();
    let found = imports::find(job.context.store.control(), &job.mapping.source, &table.name).await?;
    // As a run does: past requests are only ever added to.
    let after = match step {
        Step::Usage(_) => found.map(|import| import.position).unwrap_or_default(),
        Step::Organizations(_) | Step::Keys(_) | Step::Limits(_) => String::new(),
    };
    let reading = Referring::open(job, step).await?;
    let mut tally = Tally::new(&table.name, step.kind(), total(job, step).await?, 0, job.tell);
    tally.report.resumed = !after.is_empty();
    let mut batches = RowBatches::new(&mut job.source, job.stop, step.ask(), job.options.batch, &after);
    loop {
        let rows = batches.next().await?;
        if rows.is_empty() {
            return Ok(tally.finish());
        }
        let counts = match &reading {
            Referring::Usage(usage) => usage.plan_batch(job.context, &rows),
            Referring::Limits(limits) => limits.plan_batch(&rows),
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
            Step::Usage(table) => Self::Usage(Usage::open(job.context, job.mapping, table).await?),
            Step::Limits(table) => Self::Limits(Limits::open(job.context, job.mapping, table).await?),
            Step::Organizations(_) | Step::Keys(_) => Self::Nothing,
        })
    }
}
