//! `keystead import run`: brings the tables of a mapping in, one after the other, batch by batch.
//!
//! The next batch is read while the last one is written. A batch commits together with the position behind it, so that
//! a run that was killed goes on there. Where it may be killed: before a batch commits, its refused rows may stand in
//! the file and will again; after it, rows that Keystead itself refused may be missing in the file, which the next run
//! notices and says; between two tables, the marks of `passes.rs` tell which are done.
//! Past requests of a key that is not here are passed over for ever, since usage is read once: where organizations or
//! keys were refused, a pass leaves usage as it is, unless the operator accepts the loss; and it ends before the first
//! request of a key that may have been issued since the keys were read, for the next pass to go on with.
//! Invariant: a position never stands behind a row that is neither in nor counted.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use super::{
    Event, ImportError, Job,
    batches::{KeyBatches, RowBatches},
    limits::{self, Limits},
    mapping::{Field, KeyTable},
    organizations::Organizations,
    passes::{self, Stage, Step},
    places::Places,
    refused_file::{self, RefusedFile},
    report::{Report, TableReport},
    rows::{BatchCounts, position_behind, rows_behind},
    source::{Row, SourceError},
    treat::{OrganizationRef, TableReader},
    usage::Usage,
    writer::{KeyWriter, Pace, Tally},
};
use crate::{
    domain::time::Timestamp,
    service::{Context, ServiceError},
    store::imports::{self, Advance, Import, ImportState},
};

/// Brings in what is left of a pass that was begun, or everything anew, of which nothing comes in twice.
///
/// # Errors
/// See [`ImportError`].
pub async fn run(job: &mut Job<'_>) -> Result<Report, ImportError> {
    let begun = Instant::now();
    let steps = Step::all(job.mapping);
    check(job, &steps).await?;
    let mut places = Places::new(job.mapping);
    if job.mapping.organizations.is_none() {
        // Before anything is written.
        for step in steps {
            check_organization(job, &mut places, step).await?;
        }
    }
    let (stages, resumed) = passes::begin(job.context, job.mapping).await?;
    let path = job.options.refused_file.clone();
    let path = path.unwrap_or_else(|| refused_file::default_path(&job.mapping.source));
    let (mut file, written) = RefusedFile::open(&path, resumed)?;
    if resumed {
        tell_resumed(job, &stages, &written);
    }
    if let Some(words) = limits::remark(job.context, job.mapping) {
        (job.tell)(Event::Remark(words));
    }
    let (tables, withheld) = bring(job, &stages, &mut places, &mut file).await?;
    Ok(Report {
        source: job.mapping.source.clone(),
        dry_run: false,
        resumed,
        interrupted: job.stop.is_cancelled(),
        tables,
        withheld,
        refused_file: Some(PathBuf::from(file.path())),
        elapsed: begun.elapsed(),
    })
}

/// Goes through what this pass has not been through; gives the tables that it has been through now, and the names of
/// those that it leaves out.
async fn bring(
    job: &mut Job<'_>,
    stages: &[Stage<'_>],
    places: &mut Places,
    file: &mut RefusedFile,
) -> Result<(Vec<TableReport>, Vec<String>), ImportError> {
    let (mut tables, mut withheld, mut refused) = (Vec::new(), Vec::new(), 0);
    for stage in stages {
        let name = &stage.step.table().name;
        if stage.step.is_referred_to() {
            refused += u64::try_from(stage.import.refused_count).unwrap_or(0);
        }
        if stage.done {
            if stage.import.state == ImportState::Withheld {
                tell_left_for_later(job, name);
                withheld.push(name.clone());
            }
            continue;
        }
        if job.stop.is_cancelled() {
            break;
        }
        let mut state = ImportState::Done;
        if refused > 0 && loses_history(job, stage).await? {
            tell_withheld(job, name, refused);
            withheld.push(name.clone());
            state = ImportState::Withheld;
        } else {
            let report = match stage.step {
                Step::Keys(table) => bring_keys(job, stage, table, places, file).await?,
                Step::Organizations(_) | Step::Usage(_) | Step::Limits(_) => {
                    let (report, is_whole) = bring_rows(job, stage, passes::keys_read_from(stages), file).await?;
                    if !is_whole {
                        withheld.push(name.clone());
                        state = ImportState::Withheld;
                    }
                    report
                }
            };
            if stage.step.is_referred_to() {
                refused += report.refused;
            }
            tables.push(report);
        }
        if !job.stop.is_cancelled() {
            imports::finish(job.context.store.write(), stage.import.id, state, job.context.clock.now()).await?;
        }
    }
    Ok((tables, withheld))
}

/// Whether there are past requests to be read, and nobody has accepted that some of their keys are not here.
async fn loses_history(job: &mut Job<'_>, stage: &Stage<'_>) -> Result<bool, ImportError> {
    if job.options.accept_refused || !matches!(stage.step, Step::Usage(_)) {
        return Ok(false);
    }
    let after = Some(stage.import.position.as_str()).filter(|position| !position.is_empty());
    Ok(!job.source.read(&stage.step.ask(), after, 1).await?.is_empty())
}

fn tell_withheld(job: &Job<'_>, table: &str, refused: u64) {
    let words = format!(
        "table {table:?} was not read: {refused} rows of organizations and keys were refused, and past requests of a \
         key that is not here would be passed over for ever; correct those rows or the mapping and run again, or let \
         their requests go with --accept-refused"
    );
    (job.tell)(Event::Remark(&words));
}

/// Of a table that is not looked at again in this pass, whatever has become of the rows that were refused.
fn tell_left_for_later(job: &Job<'_>, table: &str) {
    let words = format!("table {table:?} was left out by the run that this one went on with: run once more");
    (job.tell)(Event::Remark(&words));
}

/// Checks that every table is there as the mapping says; every problem of all of them at once.
pub(super) async fn check(job: &mut Job<'_>, steps: &[Step<'_>]) -> Result<(), ImportError> {
    let mut problems = Vec::new();
    for step in steps {
        match job.source.check(&step.ask()).await {
            Ok(()) => {}
            Err(SourceError::Mapping(words)) => problems.push(words),
            Err(error @ (SourceError::Unreachable(_) | SourceError::Refused(_))) => return Err(error.into()),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ImportError::Mapping(problems.join("\n"))) }
}

/// Refuses a mapping that gives the keys of a table to an organization that Keystead does not have.
pub(super) async fn check_organization(job: &Job<'_>, places: &mut Places, step: Step<'_>) -> Result<(), ImportError> {
    let Step::Keys(KeyTable { table, .. }) = step else { return Ok(()) };
    let named = table.values.get(&Field::Organization).or(job.mapping.organization.as_ref());
    let Some(name) = named.map(|name| name.trim()).filter(|_| !table.columns.contains_key(&Field::Organization)) else {
        return Ok(());
    };
    let reference = OrganizationRef::of_mapping(name);
    places.find(job.context, std::iter::once(&reference)).await?;
    if places.get(&reference).is_some() {
        return Ok(());
    }
    Err(ImportError::Mapping(format!("Keystead has no organization {name:?} that could get keys: create it first")))
}

/// How many rows a table has, where that can be told. Rows that come or go meanwhile do not matter.
pub(super) async fn total(job: &mut Job<'_>, step: Step<'_>) -> Result<Option<u64>, ImportError> {
    match job.source.count(&step.ask()).await {
        Ok(total) => Ok(total),
        // To count may take longer than the source allows, and only the time left depends on it.
        Err(SourceError::Refused(_)) => Ok(None),
        Err(error @ (SourceError::Unreachable(_) | SourceError::Mapping(_))) => Err(error.into()),
    }
}

/// Says where a run goes on, and which refused rows are not in the file.
fn tell_resumed(job: &Job<'_>, stages: &[Stage<'_>], written: &BTreeMap<String, u64>) {
    let Some(stage) = stages.iter().find(|stage| !stage.done) else { return };
    let table = &stage.step.table().name;
    (job.tell)(Event::Remark(&format!("going on with table {table:?}, where an earlier run ended")));
    for stage in stages {
        if matches!(stage.step, Step::Usage(_)) {
            // Counted since the first pass, and the file is of this one.
            continue;
        }
        let table = &stage.step.table().name;
        let refused = u64::try_from(stage.import.refused_count).unwrap_or(0);
        let missing = refused.saturating_sub(written.get(table).copied().unwrap_or(0));
        if missing > 0 {
            let words = format!(
                "{missing} rows of table {table:?} that the earlier run refused are not in the file of refused rows; \
                 a further run, from the beginning, names them"
            );
            (job.tell)(Event::Remark(&words));
        }
    }
}

/// Rows that are counted as read before this run.
fn rows_before(import: &Import) -> u64 {
    u64::try_from(import.created_count + import.existing_count + import.refused_count).unwrap_or(0)
}

async fn bring_keys(
    job: &mut Job<'_>,
    stage: &Stage<'_>,
    table: &KeyTable,
    places: &mut Places,
    file: &mut RefusedFile,
) -> Result<TableReport, ImportError> {
    check_organization(job, places, stage.step).await?;
    let (context, name, import) = (job.context, &table.table.name, &stage.import);
    let total = total(job, stage.step).await?;
    let mut tally = Tally::new(name, stage.step.kind(), total, rows_before(import), job.tell);
    tally.report.resumed = !import.position.is_empty();
    let reader = Arc::new(TableReader::new(job.mapping, table, job.options.allow_weak));
    let rows = RowBatches::new(&mut job.source, job.stop, reader.ask.clone(), job.options.batch, &import.position);
    let mut batches = KeyBatches::new(rows, context, reader, places, None);
    let (source, after) = (job.mapping.source.as_str(), import.position.clone());
    let mut writer = KeyWriter { context, source, import_id: import.id, after, tally };
    let mut pace = Pace::new();
    let mut next = batches.next().await?;
    while let Some(batch) = next {
        let write = async {
            writer.write(batch, file).await?;
            pace.keep(context).await;
            Ok::<(), ImportError>(())
        };
        let (read, written) = tokio::join!(batches.next(), write);
        written?;
        next = read?;
    }
    Ok(writer.tally.finish())
}

/// What brings in a table that holds no keys.
enum Rows {
    Organizations(Organizations),
    Usage(Usage),
    Limits(Limits),
}

impl Rows {
    /// `None` for a table of keys.
    async fn open(job: &Job<'_>, step: Step<'_>, keys_read_from: Timestamp) -> Result<Option<Self>, ImportError> {
        Ok(match step {
            Step::Organizations(table) => Some(Self::Organizations(Organizations::new(job.mapping, table))),
            Step::Usage(table) => {
                Some(Self::Usage(Usage::open(job.context, job.mapping, table, keys_read_from).await?))
            }
            Step::Limits(table) => Some(Self::Limits(Limits::open(job.context, job.mapping, table).await?)),
            Step::Keys(_) => None,
        })
    }

    /// How many of these rows can be taken now.
    async fn ready(&mut self, context: &Context, rows: &[Row]) -> Result<usize, ServiceError> {
        match self {
            Self::Usage(table) => Ok(table.ready(context, rows).await?),
            Self::Organizations(_) | Self::Limits(_) => Ok(rows.len()),
        }
    }

    async fn write_batch(
        &mut self,
        context: &Arc<Context>,
        import: &Import,
        after: &str,
        rows: &[Row],
    ) -> Result<BatchCounts, ServiceError> {
        match self {
            Self::Organizations(table) => table.write_batch(context, import, after, rows).await,
            Self::Usage(table) => table.write_batch(context, import, after, rows).await,
            Self::Limits(table) => table.write_batch(context, import, after, rows).await,
        }
    }
}

/// Brings in what can be brought in of a table that holds no keys; says whether that was all of it.
async fn bring_rows(
    job: &mut Job<'_>,
    stage: &Stage<'_>,
    keys_read_from: Timestamp,
    file: &mut RefusedFile,
) -> Result<(TableReport, bool), ImportError> {
    let (step, import) = (stage.step, &stage.import);
    let name = &step.table().name;
    let total = total(job, step).await?;
    let mut tally = Tally::new(name, step.kind(), total, rows_before(import), job.tell);
    tally.report.resumed = !import.position.is_empty();
    let Some(mut table) = Rows::open(job, step, keys_read_from).await? else { return Ok((tally.finish(), true)) };
    let context = job.context;
    let mut batches = RowBatches::new(&mut job.source, job.stop, step.ask(), job.options.batch, &import.position);
    let (mut after, mut pace, mut behind, mut is_whole) = (import.position.clone(), Pace::new(), 0, true);
    let mut rows = batches.next().await?;
    while !rows.is_empty() && is_whole {
        let ready = table.ready(context, &rows).await?;
        is_whole = ready == rows.len();
        rows.truncate(ready);
        let position = position_behind(&after, &rows);
        let unmoved = rows_behind(&position, &rows);
        behind = if unmoved < rows.len() { unmoved } else { behind + unmoved };
        let write = async {
            let counts = table.write_batch(context, import, &after, &rows).await?;
            file.write(name, counts.refused.iter().map(|(id, refused)| (id.as_str(), refused)))?;
            tally.count(rows.len(), &counts);
            pace.keep(context).await;
            Ok::<(), ImportError>(())
        };
        let (read, written) = tokio::join!(batches.next(), write);
        written?;
        (after, rows) = (position, read?);
    }
    drop(batches);
    if matches!(step, Step::Usage(_)) && behind > 0 {
        // The next pass goes on from the position, and counts them again.
        let taken_back = Advance { refused: -i64::try_from(behind).unwrap_or(i64::MAX), ..Advance::default() };
        imports::advance(context.store.write(), import.id, &taken_back, context.clock.now()).await?;
    }
    if !is_whole {
        tell_unsure(job, name);
    } else if matches!(step, Step::Usage(_)) && !job.stop.is_cancelled() {
        tell_left_out(job, step, rows_before(import) + tally.report.rows).await?;
    }
    Ok((tally.finish(), is_whole))
}

/// Says that a table was not read to its end.
fn tell_unsure(job: &Job<'_>, table: &str) {
    let words = format!(
        "table {table:?} was read up to the first request of a key that is not here and may have been issued since the \
         keys were read: run again"
    );
    (job.tell)(Event::Remark(&words));
}

/// Says where the source has another number of rows than were taken in all passes: rows of usage are read in the order
/// of their ids, each once, so that one whose id stands before those that were read is never met.
async fn tell_left_out(job: &mut Job<'_>, step: Step<'_>, taken: u64) -> Result<(), ImportError> {
    let Some(total) = total(job, step).await?.filter(|total| *total != taken) else { return Ok(()) };
    let table = &step.table().name;
    let words = if total > taken {
        format!(
            "table {table:?} has {total} rows, of which {taken} were taken: {} have come since, or have ids before \
             those that were read, and will not be read",
            total - taken
        )
    } else {
        format!("{taken} rows of table {table:?} were taken, of which {} are not there any more", taken - total)
    };
    (job.tell)(Event::Remark(&words));
    Ok(())
}
