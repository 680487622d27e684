//! `keystead import contract`: drops from the source what a mapping says is not needed any more, and creates it again,
//! empty, with `--down`.
//!
//! What is about to go is noted in Keystead before it does, so that it can be put back whenever the process dies; what
//! was noted and is still there is no fault. Then writers are locked out, the rows must be the verified ones, and each
//! of them what Keystead has at that moment: what `verify` has found may have been changed in Keystead since. Readers
//! wait only for the drop itself, where the source can do that.
//! Must not touch a table that was not verified. Invariant: nothing is dropped of which the fingerprint, taken under
//! the lock that the drop holds, is another than the verified one, nor by statements that nobody was shown.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    Event, ImportError, Tell,
    batches::{KeyBatches, RowBatches},
    checks::Checker,
    findings::{Findings, compare},
    fingerprint::{Fingerprint, Verified},
    mapping::{KeyTable, Mapping},
    places::Places,
    report::ContractReport,
    source::{
        SourceError,
        contract::{Contract, DropPlan, Undo, describe, down},
    },
    treat::TableReader,
};
use crate::{
    config::SourceUrl,
    domain::ids::RecordId,
    random,
    service::Context,
    store::imports::{self, Import, ImportKind},
};

/// Rows that are read at once under the lock: few, so that those with metadata of many megabytes are read within the
/// time that a statement has.
const BATCH: usize = 200;
/// How often others may be first to note something of the same table.
const NOTES_MAX: usize = 20;
/// What nobody should expect of `--down`.
const NEVER_BACK: &str = "The keys themselves cannot come back: only their digests are in Keystead.";
/// What nobody should expect before it.
const DOWN_IS_EMPTY: &str =
    "What is dropped cannot come back: --down creates the columns and their indexes again, with NULL in every row.";

/// What to do where a column has gone before.
const GONE_BEFORE: &str = "columns of this source were dropped before: create them again with `keystead import \
     contract --down`, or take out of drop = [...] what is gone already";

/// What is kept in Keystead of what goes from a table.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    #[serde(flatten)]
    undo: Undo,
    /// Whether it has gone; until then it is what somebody was about to do.
    #[serde(default)]
    dropped: bool,
    /// Another one each time, so that nobody takes another's for its own.
    #[serde(default)]
    id: String,
}

/// What was noted of a table, and what stood there before.
struct Note {
    import_id: RecordId,
    before: String,
    after: String,
}

/// A table of which something is dropped, or was.
struct Target<'m> {
    table: &'m KeyTable,
    import: Import,
}

/// Tells which statements would be run. Changes nothing.
///
/// # Errors
/// `Refused` where a table was not verified, or where something depends on a column; for files always.
pub async fn contract_plan(
    context: &Context,
    source: &SourceUrl,
    mapping: &Mapping,
    is_down: bool,
) -> Result<ContractReport, ImportError> {
    if is_down {
        let undos: Vec<Undo> = dropped(context, mapping).await?.into_iter().map(|(_, undo)| undo).collect();
        let statements = undos.iter().flat_map(Undo::statements).collect();
        let tables = undos.into_iter().map(|undo| undo.table).collect();
        return Ok(report(mapping, true, statements, tables, vec![NEVER_BACK.to_owned()]));
    }
    let targets = targets(context, mapping).await?;
    let plans = drop_plans(source, &targets).await?;
    let mut remarks: Vec<String> = plans.iter().map(|plan| plan.remains.clone()).collect();
    remarks.push(DOWN_IS_EMPTY.to_owned());
    Ok(report(mapping, false, statements(&plans), names(&targets), remarks))
}

/// What `contract` works on.
pub struct ContractJob<'a> {
    pub context: &'a Arc<Context>,
    pub source: &'a SourceUrl,
    pub mapping: &'a Mapping,
    /// What the operator was shown, by [`contract_plan`], and has agreed to.
    pub shown: &'a ContractReport,
    pub tell: Tell<'a>,
    pub stop: &'a CancellationToken,
}

/// Drops the columns of a mapping, or creates them again, just as it was shown.
///
/// # Errors
/// `Refused` where a table was not verified, or is another one since, or what is to be done is; `GivenUp` where it was
/// told to stop in time.
pub async fn contract(job: &ContractJob<'_>) -> Result<ContractReport, ImportError> {
    let ContractJob { context, source, mapping, shown, .. } = *job;
    if shown.down {
        return put_back(context, source, mapping, shown).await;
    }
    let targets = targets(context, mapping).await?;
    let plans = drop_plans(source, &targets).await?;
    let statements = statements(&plans);
    check_shown(&statements, shown)?;
    let mut notes = Vec::with_capacity(plans.len());
    for (target, plan) in targets.iter().zip(&plans) {
        notes.push(note(context, target.import.id, &plan.undo, false).await?);
    }
    match drop_columns(job, &targets, &plans).await {
        Ok(()) => {
            for (target, plan) in targets.iter().zip(&plans) {
                if let Err(error) = note(context, target.import.id, &plan.undo, true).await {
                    // It is done all the same.
                    let name = &target.table.table.name;
                    let words = format!("that columns of {name:?} are gone could not be noted: {error}");
                    (job.tell)(Event::Remark(&words));
                }
            }
            Ok(report(mapping, false, statements, names(&targets), Vec::new()))
        }
        Err(end) => {
            if end.is_untouched {
                // Whoever has noted something since means to drop it, or has.
                for Note { import_id, before, after } in &notes {
                    imports::set_contracted(context.store.write(), *import_id, after, before).await?;
                }
            }
            Err(end.error)
        }
    }
}

/// What is run must be what was shown.
fn check_shown(statements: &[String], shown: &ContractReport) -> Result<(), ImportError> {
    if statements == shown.statements {
        return Ok(());
    }
    let words = "the tables have changed since the statements were shown: nothing was done; look at them again";
    Err(ImportError::Refused(words.to_owned()))
}

/// Why nothing was dropped, or not everything.
struct End {
    error: ImportError,
    /// Whether it is certain that nothing was.
    is_untouched: bool,
}

impl End {
    /// Nothing was dropped.
    fn untouched(error: impl Into<ImportError>) -> Self {
        Self { error: error.into(), is_untouched: true }
    }
}

/// Locks, looks once more, and drops.
async fn drop_columns(job: &ContractJob<'_>, targets: &[Target<'_>], plans: &[DropPlan]) -> Result<(), End> {
    let tables: Vec<&str> = targets.iter().map(|target| target.table.table.name.as_str()).collect();
    let mut contract = Contract::begin(job.source, &tables).await.map_err(End::untouched)?;
    if let Err(error) = check_unchanged(job, &mut contract, &tables, targets, plans).await {
        contract.rollback().await;
        return Err(End::untouched(error));
    }
    let each_commits = contract.commits_each_statement();
    if let Err(error) = contract.execute(&statements(plans)).await {
        contract.rollback().await;
        return Err(End { error: error.into(), is_untouched: !each_commits });
    }
    match contract.commit().await {
        Ok(()) => Ok(()),
        Err(error) => {
            let is_untouched = !each_commits && matches!(error, SourceError::Refused(_));
            Err(End { error: error.into(), is_untouched })
        }
    }
}

/// Under the lock: the rows must be those that were verified, each what Keystead has, and what depends on the columns
/// what was shown. Readers go on until nothing is left to be done but that last look, and the drop.
async fn check_unchanged(
    job: &ContractJob<'_>,
    contract: &mut Contract,
    tables: &[&str],
    targets: &[Target<'_>],
    plans: &[DropPlan],
) -> Result<(), ImportError> {
    for target in targets {
        check_rows(job, contract, target).await?;
    }
    contract.keep_readers_out(tables).await?;
    if job.stop.is_cancelled() {
        return Err(ImportError::GivenUp);
    }
    for (target, plan) in targets.iter().zip(plans) {
        let (name, drop) = (&target.table.table.name, &target.table.drop);
        if contract.plan_drop(name, drop).await? != *plan {
            let words = format!("what depends on the columns of {name:?} has changed: look at the statements again");
            return Err(ImportError::Refused(words));
        }
    }
    Ok(())
}

async fn check_rows(job: &ContractJob<'_>, contract: &mut Contract, target: &Target<'_>) -> Result<(), ImportError> {
    let Target { table, import } = target;
    let (name, verified) = (&table.table.name, Verified::parse(&import.fingerprint));
    let (context, source) = (job.context, job.mapping.source.as_str());
    let mut findings = Findings::begin(name, ImportKind::Keys, None, job.tell, verified.accept_refused);
    let checker = Checker { context, source, import_id: import.id, verifying: None };
    let mut places = Places::new(job.mapping);
    let reader = Arc::new(TableReader::new(job.mapping, table, verified.allow_weak));
    let rows = RowBatches::locked(contract, job.stop, reader.ask.clone(), BATCH);
    let batches = KeyBatches::new(rows, context, reader, &mut places, Some(Fingerprint::new(table)));
    let mut batches = batches.compared_before(table);
    compare(&mut batches, &checker, &mut findings).await?;
    let fingerprint = batches.fingerprint.take().map(Fingerprint::finish).unwrap_or_default();
    let mismatches = findings.finish().mismatches;
    if job.stop.is_cancelled() {
        return Err(ImportError::GivenUp);
    }
    if fingerprint != verified.fingerprint {
        return Err(ImportError::Refused(format!(
            "table {name:?} is not what was verified: run `keystead import verify` again"
        )));
    }
    if mismatches > 0 {
        return Err(ImportError::Refused(format!(
            "{mismatches} rows of table {name:?} are not what Keystead has any more: run `keystead import verify` again"
        )));
    }
    Ok(())
}

/// Creates again what was dropped, and forgets that it was.
async fn put_back(
    context: &Context,
    source: &SourceUrl,
    mapping: &Mapping,
    shown: &ContractReport,
) -> Result<ContractReport, ImportError> {
    let (imports, undos): (Vec<Import>, Vec<Undo>) = dropped(context, mapping).await?.into_iter().unzip();
    let all: Vec<String> = undos.iter().flat_map(Undo::statements).collect();
    check_shown(&all, shown)?;
    let statements = down(source, &undos).await?;
    for import in &imports {
        // What was noted since went after these came back, or is about to go.
        imports::set_contracted(context.store.write(), import.id, &import.contracted, "").await?;
    }
    let tables = undos.into_iter().map(|undo| undo.table).collect();
    Ok(report(mapping, true, statements, tables, Vec::new()))
}

/// The tables of which columns are to be dropped, all of them verified.
async fn targets<'m>(context: &Context, mapping: &'m Mapping) -> Result<Vec<Target<'m>>, ImportError> {
    let tables: Vec<&KeyTable> = mapping.keys.iter().filter(|table| !table.drop.is_empty()).collect();
    if tables.is_empty() {
        let words = "the mapping names no column to drop: write drop = [...] under [keys.contract]";
        return Err(ImportError::Mapping(words.to_owned()));
    }
    let mut targets = Vec::with_capacity(tables.len());
    for table in tables {
        let name = &table.table.name;
        let found = imports::find(context.store.control(), &mapping.source, name).await?;
        let verified = found.filter(|import| import.verified_time.is_some() && !import.fingerprint.is_empty());
        let Some(import) = verified else {
            return Err(ImportError::Refused(format!(
                "table {name:?} has not been verified: nothing is dropped before `keystead import verify` has passed"
            )));
        };
        targets.push(Target { table, import });
    }
    Ok(targets)
}

/// What was dropped of the tables of a mapping.
async fn dropped(context: &Context, mapping: &Mapping) -> Result<Vec<(Import, Undo)>, ImportError> {
    let mut dropped = Vec::new();
    for KeyTable { table, .. } in &mapping.keys {
        let found = imports::find(context.store.control(), &mapping.source, &table.name).await?;
        if let Some(import) = found
            && let Some(undo) = undo_of(&import)?
        {
            dropped.push((import, undo));
        }
    }
    if dropped.is_empty() {
        return Err(ImportError::Refused("nothing of this source was dropped that could be created again".to_owned()));
    }
    Ok(dropped)
}

/// What was noted of a table; `None` where nothing was.
fn undo_of(import: &Import) -> Result<Option<Undo>, ImportError> {
    if import.contracted.is_empty() {
        return Ok(None);
    }
    let unreadable = |error| ImportError::Refused(format!("what was dropped cannot be read any more: {error}"));
    serde_json::from_str(&import.contracted).map(|noted: Noted| Some(noted.undo)).map_err(unreadable)
}

/// Notes what goes from a table, or has gone, besides what stands there, which others may be changing.
async fn note(context: &Context, import_id: RecordId, undo: &Undo, dropped: bool) -> Result<Note, ImportError> {
    for _ in 0..NOTES_MAX {
        let Some(import) = imports::find_by_id(context.store.control(), import_id).await? else { break };
        let id = RecordId::new(context.clock.now(), random::bytes()).to_string();
        let after = noted(&import, undo, dropped, id)?;
        if imports::set_contracted(context.store.write(), import_id, &import.contracted, &after).await? {
            return Ok(Note { import_id, before: import.contracted, after });
        }
    }
    Err(ImportError::Refused("it cannot be noted: what is noted of the table was changed meanwhile".to_owned()))
}

/// What is to be noted: what goes now, and what went before.
fn noted(import: &Import, undo: &Undo, dropped: bool, id: String) -> Result<String, ImportError> {
    let mut all = undo.clone();
    if let Some(before) = undo_of(import)? {
        let is_new = |name: &String| !undo.columns.iter().any(|column| column.name == *name);
        all.columns.extend(before.columns.into_iter().filter(|column| is_new(&column.name)));
        let is_new = |name: &String| !undo.indexes.iter().any(|index| index.name == *name);
        all.indexes.extend(before.indexes.into_iter().filter(|index| is_new(&index.name)));
    }
    let noted = Noted { undo: all, dropped, id };
    serde_json::to_string(&noted).map_err(|error| ImportError::Refused(format!("it cannot be noted: {error}")))
}

/// What it means to drop the columns of these tables.
async fn drop_plans(source: &SourceUrl, targets: &[Target<'_>]) -> Result<Vec<DropPlan>, ImportError> {
    match describe(source, &drops(targets)).await {
        Err(SourceError::Mapping(words)) if targets.iter().any(|target| !target.import.contracted.is_empty()) => {
            Err(ImportError::Mapping(format!("{words}\n{GONE_BEFORE}")))
        }
        described => Ok(described?),
    }
}

fn drops(targets: &[Target<'_>]) -> Vec<(String, Vec<String>)> {
    targets.iter().map(|target| (target.table.table.name.clone(), target.table.drop.clone())).collect()
}

fn names(targets: &[Target<'_>]) -> Vec<String> {
    targets.iter().map(|target| target.table.table.name.clone()).collect()
}

fn statements(plans: &[DropPlan]) -> Vec<String> {
    plans.iter().flat_map(|plan| plan.statements.iter().cloned()).collect()
}

fn report(
    mapping: &Mapping,
    down: bool,
    statements: Vec<String>,
    tables: Vec<String>,
    remarks: Vec<String>,
) -> ContractReport {
    ContractReport { source: mapping.source.clone(), down, statements, remarks, tables }
}
