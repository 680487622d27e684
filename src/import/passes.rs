//! The tables of a mapping in the order of the import, and where a pass over them stands.
//!
//! A pass takes the tables one after the other. It begins with a mark on every table, so that whoever comes after a
//! process that died knows which tables are done, which one is under way and which are still to come.
//! Invariant: a table before the first one under way is done in this pass; one behind it is not, whatever its mark
//! says, since the process may have died between two marks.

use super::{
    ImportError,
    mapping::{KeyTable, LimitTable, Mapping, OrganizationTable, Table, UsageTable},
    source::Ask,
};
use crate::{
    domain::{ids::RecordId, time::Timestamp},
    random,
    service::Context,
    store::imports::{self, Import, ImportKind, ImportState, NewImport},
};

/// A table of the mapping, as what it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'m> {
    Organizations(&'m OrganizationTable),
    Keys(&'m KeyTable),
    Usage(&'m UsageTable),
    Limits(&'m LimitTable),
}

impl<'m> Step<'m> {
    /// Every table, in the order of the import: whoever is referred to comes first.
    pub(super) fn all(mapping: &'m Mapping) -> Vec<Self> {
        let organizations = mapping.organizations.iter().map(Self::Organizations);
        let keys = mapping.keys.iter().map(Self::Keys);
        let usage = mapping.usage.iter().map(Self::Usage);
        let limits = mapping.limits.iter().map(Self::Limits);
        organizations.chain(keys).chain(usage).chain(limits).collect()
    }

    pub(super) const fn table(self) -> &'m Table {
        match self {
            Self::Organizations(organizations) => &organizations.table,
            Self::Keys(keys) => &keys.table,
            Self::Usage(usage) => &usage.table,
            Self::Limits(limits) => &limits.table,
        }
    }

    pub(super) const fn kind(self) -> ImportKind {
        match self {
            Self::Organizations(_) => ImportKind::Organizations,
            Self::Keys(_) => ImportKind::Keys,
            Self::Usage(_) => ImportKind::Usage,
            Self::Limits(_) => ImportKind::Limits,
        }
    }

    /// Whether rows of usage stand or fall with rows of this table: keys, or the organizations that have them.
    pub(super) const fn is_referred_to(self) -> bool {
        match self {
            Self::Organizations(_) | Self::Keys(_) => true,
            Self::Usage(_) | Self::Limits(_) => false,
        }
    }

    /// What is read of the table.
    pub(super) fn ask(self) -> Ask {
        self.table().ask()
    }
}

/// A table, where it stands, and what is to be done with it.
pub(super) struct Stage<'m> {
    pub(super) step: Step<'m>,
    pub(super) import: Import,
    /// Whether this pass has been through it, or left it out, before the process that began it ended.
    pub(super) done: bool,
}

/// Begins a pass, or finds the one that was begun and not ended; says whether it was the latter.
///
/// # Errors
/// The store's own; `Mapping` where a table was imported as something else.
pub(super) async fn begin<'m>(context: &Context, mapping: &'m Mapping) -> Result<(Vec<Stage<'m>>, bool), ImportError> {
    let steps = Step::all(mapping);
    let mut found = Vec::with_capacity(steps.len());
    for step in &steps {
        let import = imports::find(context.store.control(), &mapping.source, &step.table().name).await?;
        if let Some(import) = &import {
            check_kind(*step, import)?;
        }
        found.push(import);
    }
    let is_running = |import: &Option<Import>| import.as_ref().is_some_and(|one| one.state == ImportState::Running);
    let under_way = found.iter().position(is_running);
    // Where nothing is under way a new pass begins, also if a table is new in the mapping.
    let resumed = under_way.is_some_and(|at| at > 0 || found.iter().flatten().next().is_some_and(has_begun));
    let mut stages = Vec::with_capacity(steps.len());
    // Tables that are known are marked before new ones are written down, each of which is a mark of its own.
    for (at, (step, import)) in steps.iter().zip(&mut found).enumerate() {
        let done = under_way.is_some_and(|under_way| at < under_way);
        if let Some(import) = import
            && import.state != ImportState::Running
            && !done
        {
            *import = mark(context, *step, import.clone()).await?;
        }
    }
    for (at, (step, import)) in steps.into_iter().zip(found).enumerate() {
        let import = match import {
            Some(import) => import,
            None => insert(context, mapping, step).await?,
        };
        let done = import.state != ImportState::Running && under_way.is_some_and(|under_way| at < under_way);
        stages.push(Stage { step, import, done });
    }
    Ok((stages, resumed))
}

/// When this pass began to read keys: one that was issued before is here by the end of their tables, if it is ever to
/// be. The beginning of time where that is not known, and never where the mapping has no keys.
pub(super) fn keys_read_from(stages: &[Stage<'_>]) -> Timestamp {
    let keys = stages.iter().filter(|stage| matches!(stage.step, Step::Keys(_)));
    let began = keys.map(|stage| stage.import.began_time.unwrap_or(Timestamp::from_micros(0)));
    began.min().unwrap_or(Timestamp::from_micros(i64::MAX))
}

/// Whether rows of the table have been taken in this pass.
fn has_begun(import: &Import) -> bool {
    import.created_count + import.existing_count + import.refused_count > 0 || !import.position.is_empty()
}

/// What was brought in as one thing is not brought in as another.
fn check_kind(step: Step<'_>, import: &Import) -> Result<(), ImportError> {
    if import.kind == step.kind() {
        return Ok(());
    }
    let (table, was, is) = (&step.table().name, import.kind.as_str(), step.kind().as_str());
    Err(ImportError::Mapping(format!("table {table:?} was imported from this source as {was}, and not as {is}")))
}

async fn insert(context: &Context, mapping: &Mapping, step: Step<'_>) -> Result<Import, ImportError> {
    let now = context.clock.now();
    let new = NewImport {
        id: RecordId::new(now, random::bytes()),
        source: &mapping.source,
        table_name: &step.table().name,
        kind: step.kind(),
        organization_id: None,
        now,
    };
    Ok(imports::find_or_insert(context.store.write(), &new).await?)
}

/// Marks a table that a pass is over for as one that is to be gone through again. Requests of the past are only ever
/// added to, and counted once: their pass goes on where the last one ended.
async fn mark(context: &Context, step: Step<'_>, import: Import) -> Result<Import, ImportError> {
    let (db, now) = (context.store.write(), context.clock.now());
    match step {
        Step::Usage(_) => {
            imports::resume(db, import.id, now).await?;
            Ok(Import { state: ImportState::Running, ..import })
        }
        Step::Organizations(_) | Step::Keys(_) | Step::Limits(_) => {
            imports::restart(db, import.id, now).await?;
            let (state, position) = (ImportState::Running, String::new());
            let began_time = Some(now);
            Ok(Import { state, position, began_time, created_count: 0, existing_count: 0, refused_count: 0, ..import })
        }
    }
}
