//! `keystead import verify`: reads every row of organizations and keys again and compares it with what Keystead has and
//! would answer. Nothing is charged, recorded or changed, but that the tables are noted as verified, or not.
//!
//! A row of which Keystead knows the digest is asked for like a secret that is presented (`service::peek_outcome`); one
//! with a slow hash, or none, is looked up by the row that it came from. What differs is named by table and id.
//! Must not show a key. Invariant: a table counts as verified with the fingerprint of just those rows that were
//! compared, and only where every row of every table was as it should be.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{
    Event, ImportError, Job, Tell,
    batches::{KeyBatches, RowBatches},
    checks::{Checker, Found},
    fingerprint::Fingerprint,
    mapping::{KeyTable, OrganizationTable},
    organizations::Organizations,
    passes::Step,
    places::Places,
    report::{VerifiedTable, VerifyReport, add},
    run::{check, check_organization, total},
    treat::{OrganizationReader, TableReader},
};
use crate::{
    domain::{
        ids::OrganizationId,
        import::{Refusal, Refused},
    },
    store::{
        imported_organizations,
        imports::{self, Import},
    },
};

/// Compares every row with what Keystead has.
///
/// # Errors
/// See [`ImportError`]; `Refused` where a table of keys was never imported. A mismatch is no error.
pub async fn verify(job: &mut Job<'_>) -> Result<VerifyReport, ImportError> {
    let begun = Instant::now();
    let is_checked = |step: &Step<'_>| matches!(step, Step::Organizations(_) | Step::Keys(_));
    let steps: Vec<Step<'_>> = Step::all(job.mapping).into_iter().filter(is_checked).collect();
    check(job, &steps).await?;
    let mut places = Places::default();
    for step in &steps {
        check_organization(job, &mut places, *step).await?;
    }
    let imports = forget_verified(job).await?;
    let (mut tables, mut fingerprints) = (Vec::new(), Vec::new());
    let mut keys = job.mapping.keys.iter().zip(&imports);
    for step in steps {
        if job.stop.is_cancelled() {
            break;
        }
        if let Step::Organizations(table) = step {
            tables.push(verify_organizations(job, table).await?);
        } else if let Some((table, import)) = keys.next() {
            let (report, fingerprint) = verify_keys(job, table, import, &mut places).await?;
            tables.push(report);
            fingerprints.push(fingerprint);
        }
    }
    let interrupted = job.stop.is_cancelled();
    let passed = !interrupted && tables.iter().all(|table| table.mismatches == 0);
    if passed {
        let now = job.context.clock.now();
        for (import, fingerprint) in imports.iter().zip(&fingerprints) {
            imports::set_verified(job.context.store.write(), import.id, now, fingerprint).await?;
        }
    }
    Ok(VerifyReport { source: job.mapping.source.clone(), passed, interrupted, tables, elapsed: begun.elapsed() })
}

/// The imports of all tables of keys, which count as not verified from now on.
async fn forget_verified(job: &Job<'_>) -> Result<Vec<Import>, ImportError> {
    let (store, mapping) = (&job.context.store, job.mapping);
    let mut found = Vec::with_capacity(mapping.keys.len());
    for KeyTable { table, .. } in &mapping.keys {
        let Some(import) = imports::find(store.control(), &mapping.source, &table.name).await? else {
            let words = format!("table {:?} has not been imported yet: `keystead import run` comes first", table.name);
            return Err(ImportError::Refused(words));
        };
        found.push(import);
    }
    for import in &found {
        imports::clear_verified(store.write(), import.id).await?;
    }
    Ok(found)
}

/// What was found of one table, and who is told.
struct Findings<'j> {
    report: VerifiedTable,
    tell: Tell<'j>,
    accept_refused: bool,
    begun: Instant,
}

impl<'j> Findings<'j> {
    async fn begin(job: &mut Job<'j>, step: Step<'_>) -> Result<Self, ImportError> {
        let (table, tell, kind) = (&step.table().name, job.tell, step.kind());
        let total = total(job, step).await?;
        tell(Event::Table { table, kind, total, before: 0 });
        let accept_refused = job.options.accept_refused;
        Ok(Self { report: VerifiedTable::new(table, kind), tell, accept_refused, begun: Instant::now() })
    }

    fn matched(&mut self, outcome: &'static str) {
        self.report.matched += 1;
        add(&mut self.report.outcomes, outcome);
    }

    fn refused(&mut self, id: &str, refused: &Refused) {
        let reason = refused.reason.as_str();
        // A hash that is not its plaintext's is no key that was refused: somebody's key would be lost.
        if self.accept_refused && refused.reason != Refusal::HashMismatch {
            self.report.accepted += 1;
            add(&mut self.report.reasons, reason);
        } else {
            self.mismatch(id, reason, &format!("REFUSED: {reason}: {}", refused.message));
        }
    }

    fn mismatch(&mut self, id: &str, word: &'static str, words: &str) {
        self.report.mismatches += 1;
        add(&mut self.report.reasons, word);
        (self.tell)(Event::Mismatch { table: &self.report.table, id, reason: words });
    }

    fn advance(&mut self, rows: u64) {
        self.report.rows += rows;
        (self.tell)(Event::Rows { done: self.report.rows, bad: self.report.mismatches });
    }

    fn finish(mut self) -> VerifiedTable {
        self.report.elapsed = self.begun.elapsed();
        (self.tell)(Event::End);
        self.report
    }
}

async fn verify_keys(
    job: &mut Job<'_>,
    table: &KeyTable,
    import: &Import,
    places: &mut Places,
) -> Result<(VerifiedTable, String), ImportError> {
    let mut findings = Findings::begin(job, Step::Keys(table)).await?;
    let context = job.context;
    let checker = Checker { context, source: &job.mapping.source, import_id: import.id };
    let reader = Arc::new(TableReader::new(job.mapping, table, job.options.allow_weak));
    let rows = RowBatches::new(&mut job.source, job.stop, reader.ask.clone(), job.options.batch, "");
    let mut batches = KeyBatches::new(rows, context, reader, places, Some(Fingerprint::new(table)));
    let mut next = batches.next().await?;
    while let Some(batch) = next {
        let (read, found) = tokio::join!(batches.next(), checker.check(&batch));
        findings.report.skipped += batch.skipped;
        for (id, refused) in &batch.refused {
            findings.refused(id, refused);
        }
        for (row, found) in batch.keys.iter().zip(found?) {
            match found {
                Found::AsExpected(outcome) => findings.matched(outcome),
                Found::Refused(refused) => findings.refused(&row.id, &refused),
                Found::Differs { word, words } => findings.mismatch(&row.id, word, &words),
            }
        }
        findings.advance(batch.rows);
        next = read?;
    }
    let fingerprint = batches.fingerprint.take().map(Fingerprint::finish).unwrap_or_default();
    Ok((findings.finish(), fingerprint))
}

/// Organizations must be there, whatever became of them since.
async fn verify_organizations(job: &mut Job<'_>, table: &OrganizationTable) -> Result<VerifiedTable, ImportError> {
    let step = Step::Organizations(table);
    let mut findings = Findings::begin(job, step).await?;
    let (planner, reader) = (Organizations::new(job.mapping, table), OrganizationReader::new(job.mapping, table));
    let context = job.context;
    let mut batches = RowBatches::new(&mut job.source, job.stop, step.ask(), job.options.batch, "");
    loop {
        let mut rows = batches.next().await?;
        if rows.is_empty() {
            return Ok(findings.finish());
        }
        let (count, now) = (rows.len() as u64, context.clock.now());
        let read = rows.iter().filter_map(|row| reader.read(row, now).ok());
        let ids: Vec<OrganizationId> = read.map(|organization| organization.id).collect();
        let there = imported_organizations::list_by_ids(context.store.control(), &ids).await?;
        let there: HashSet<OrganizationId> = there.into_iter().map(|organization| organization.id).collect();
        rows.retain(|row| {
            let is_there = reader.read(row, now).is_ok_and(|organization| there.contains(&organization.id));
            if is_there {
                findings.matched("THERE");
            }
            !is_there
        });
        // The rest was refused, or has not come over.
        let (counts, _) = planner.plan_batch(context, &rows).await?;
        for (id, refused) in &counts.refused {
            findings.refused(id, refused);
        }
        for row in rows.iter().filter(|row| !counts.refused.iter().any(|(id, _)| *id == row.id)) {
            findings.mismatch(&row.id, "NOT_FOUND", "NOT_FOUND: Keystead has no such organization");
        }
        findings.advance(count);
    }
}
