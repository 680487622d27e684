//! `keystead import verify`: reads every row of organizations and keys again and compares it with what Keystead has and
//! would answer. Nothing is charged, recorded or changed, but that the tables are noted as verified, or not.
//!
//! A row of which Keystead knows the digest is asked for like a secret that is presented (`service::peek_outcome`); one
//! with a slow hash, or none, is looked up by the row that it came from, or as the key of another row. What a key may
//! is compared as long as nobody has changed the key here. What differs is named by table and id. A slow hash cannot be
//! compared with a digest: where a row has one that came with its key, it passes only if the operator accepts that, and
//! is counted as accepted.
//! Must not show a key. Invariant: a table counts as verified with the fingerprint of just those rows that were
//! compared, and only where every row of every table was as it should be.

use std::{collections::HashSet, sync::Arc, time::Instant};

use super::{
    ImportError, Job, Options,
    batches::{KeyBatches, RowBatches},
    checks::{Checker, HASHED, Verifying},
    findings::{Findings, compare},
    fingerprint::{Fingerprint, Verified},
    mapping::{KeyTable, OrganizationTable},
    organizations::Organizations,
    passes::Step,
    places::Places,
    report::{VerifiedTable, VerifyReport},
    run::{check, check_organization, total},
    treat::{OrganizationReader, TableReader},
};
use crate::{
    domain::ids::OrganizationId,
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
    let mut places = Places::new(job.mapping);
    for step in &steps {
        check_organization(job, &mut places, *step).await?;
    }
    let imports = forget_verified(job).await?;
    let (mut tables, mut fingerprints, mut inactive) = (Vec::new(), Vec::new(), HashSet::new());
    let mut keys = job.mapping.keys.iter().zip(&imports);
    for step in steps {
        if job.stop.is_cancelled() {
            break;
        }
        if let Step::Organizations(table) = step {
            tables.push(verify_organizations(job, table, &mut inactive).await?);
        } else if let Some((table, import)) = keys.next() {
            let (report, fingerprint) = verify_keys(job, table, import, &mut places, &inactive).await?;
            tables.push(report);
            fingerprints.push(fingerprint);
        }
    }
    let interrupted = job.stop.is_cancelled();
    let passed = !interrupted && tables.iter().all(|table| table.mismatches == 0);
    if passed {
        let now = job.context.clock.now();
        let Options { accept_refused, allow_weak, .. } = *job.options;
        for (import, fingerprint) in imports.iter().zip(fingerprints) {
            let verified = Verified { fingerprint, accept_refused, allow_weak }.to_text();
            imports::set_verified(job.context.store.write(), import.id, now, &verified).await?;
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

async fn verify_keys(
    job: &mut Job<'_>,
    table: &KeyTable,
    import: &Import,
    places: &mut Places,
    inactive: &HashSet<OrganizationId>,
) -> Result<(VerifiedTable, String), ImportError> {
    let step = Step::Keys(table);
    let total = total(job, step).await?;
    let mut findings = Findings::begin(&table.table.name, step.kind(), total, job.tell, job.options.accept_refused);
    let (context, source) = (job.context, job.mapping.source.as_str());
    let verifying = Verifying { inactive, accept_refused: job.options.accept_refused };
    let checker = Checker { context, source, import_id: import.id, verifying: Some(verifying) };
    let reader = Arc::new(TableReader::new(job.mapping, table, job.options.allow_weak));
    let rows = RowBatches::new(&mut job.source, job.stop, reader.ask.clone(), job.options.batch, "");
    let mut batches = KeyBatches::new(rows, context, reader, places, Some(Fingerprint::new(table)));
    compare(&mut batches, &checker, &mut findings).await?;
    let fingerprint = batches.fingerprint.take().map(Fingerprint::finish).unwrap_or_default();
    let mut report = findings.finish();
    set_hashed_apart(&mut report);
    Ok((report, fingerprint))
}

/// Rows that could not be compared are let pass where the operator accepts them. They are no rows that matched.
fn set_hashed_apart(table: &mut VerifiedTable) {
    if let Some(count) = table.outcomes.remove(HASHED) {
        table.matched -= count;
        table.accepted += count;
        *table.reasons.entry(HASHED).or_default() += count;
    }
}

/// Organizations must be there, whatever became of them since. Those that are not active in the source are added to
/// `inactive`.
async fn verify_organizations(
    job: &mut Job<'_>,
    table: &OrganizationTable,
    inactive: &mut HashSet<OrganizationId>,
) -> Result<VerifiedTable, ImportError> {
    let step = Step::Organizations(table);
    let total = total(job, step).await?;
    let mut findings = Findings::begin(&table.table.name, step.kind(), total, job.tell, job.options.accept_refused);
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
        let mut ids: Vec<OrganizationId> = Vec::with_capacity(rows.len());
        for organization in read {
            ids.push(organization.id);
            if !organization.active {
                inactive.insert(organization.id);
            }
        }
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
            findings.refused(id, refused, false);
        }
        for row in rows.iter().filter(|row| !counts.refused.iter().any(|(id, _)| *id == row.id)) {
            findings.mismatch(&row.id, "NOT_FOUND", "NOT_FOUND: Keystead has no such organization");
        }
        findings.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::imports::ImportKind;

    #[test]
    fn what_could_not_be_compared_is_counted_as_accepted_and_not_as_matched() {
        let mut table = VerifiedTable::new("clients", ImportKind::Keys);
        (table.rows, table.matched, table.accepted) = (6, 5, 1);
        table.outcomes.extend([("VALID", 3), (HASHED, 2)]);
        set_hashed_apart(&mut table);
        assert_eq!((table.rows, table.matched, table.accepted, table.mismatches), (6, 3, 3, 0));
        assert_eq!((table.outcomes.get(HASHED), table.reasons.get(HASHED)), (None, Some(&2)));
        set_hashed_apart(&mut table);
        assert_eq!((table.matched, table.accepted), (3, 3));
    }
}
