//! What rows that are no keys have in common: what becomes of a batch of them, and the keys that they refer to.
//! Must not write. Invariant: memory is bounded by the batch and by the number of references that are remembered.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{planned::Planned, source::Row, values::trim};
use crate::{
    domain::{
        ids::{KeyId, OrganizationId, RecordId},
        import::{Note, Refusal, Refused, SOURCE_ID_LENGTH_MAX},
        text,
    },
    service::{Context, RowBatch, RowResult},
    store::{
        StoreError,
        imported_keys::{self, Held},
        imports::{self, Import, ImportKind},
    },
};

/// References that are remembered at the most, besides those of one batch.
const REMEMBERED_MAX: usize = 100_000;

/// What became of the rows of a batch. Each row is one of created, existing, skipped or refused.
#[derive(Debug, Default)]
pub(super) struct BatchCounts {
    pub(super) created: u64,
    /// What is here already, whole.
    pub(super) existing: u64,
    /// What means nothing any more: windows that have ended.
    pub(super) skipped: u64,
    /// By the id of the row, those first that could not even be read.
    pub(super) refused: Vec<(String, Refused)>,
    /// Of each row that came over changed, each at most once.
    pub(super) notes: Vec<Note>,
}

impl BatchCounts {
    pub(super) fn refuse(&mut self, row: &Row, refused: Refused) {
        self.refused.push((row.id.clone(), refused));
    }

    /// The rows that could be read, and what of each; the others are refused.
    pub(super) fn sort_out<'r, R, T>(
        &mut self,
        rows: impl IntoIterator<Item = (&'r Row, R)>,
        read: impl Fn(&'r Row, R) -> Result<T, Refused>,
    ) -> (Vec<&'r Row>, Vec<T>) {
        let (mut good, mut items) = (Vec::new(), Vec::new());
        for (row, rest) in rows {
            match read(row, rest) {
                Ok(item) => {
                    good.push(row);
                    items.push(item);
                }
                Err(refused) => self.refuse(row, refused),
            }
        }
        (good, items)
    }

    /// Counts the results of rows, in their order.
    pub(super) fn count<'r>(&mut self, rows: impl IntoIterator<Item = &'r Row>, results: Vec<RowResult>) {
        for (row, result) in rows.into_iter().zip(results) {
            match result {
                RowResult::Created => self.created += 1,
                RowResult::Existing => self.existing += 1,
                RowResult::Skipped => self.skipped += 1,
                RowResult::Refused(refused) => self.refuse(row, refused),
            }
        }
    }

    /// A batch of what could be read of `rows`, the others being refused by now.
    pub(super) fn batch_of<T>(&self, import_id: RecordId, after: &str, rows: &[Row], items: Vec<T>) -> RowBatch<T> {
        RowBatch {
            import_id,
            after: after.to_owned(),
            position: position_behind(after, rows),
            refused: i64::try_from(self.refused.len()).unwrap_or(i64::MAX),
            items,
        }
    }
}

/// Where an import stands behind these rows. No database can be told an id with a NUL: such rows are refused, and read
/// again by the next run where they were the last.
pub(super) fn position_behind(after: &str, rows: &[Row]) -> String {
    let last = rows.iter().rev().find(|row| !row.id.contains('\0'));
    last.map_or_else(|| after.to_owned(), |row| row.id.clone())
}

/// How many of these rows stand behind the position that they come to.
pub(super) fn rows_behind(position: &str, rows: &[Row]) -> usize {
    rows.iter().rev().take_while(|row| row.id != position).count()
}

/// Whether a row may have this id, or be referred to by it.
pub(super) fn is_row_id(text: &str) -> bool {
    !text.is_empty() && text::check_plain(text, SOURCE_ID_LENGTH_MAX).is_ok()
}

/// A refusal of a row whose id is none.
///
/// # Errors
/// With this reason.
pub(super) fn check_row_id(row: &Row, reason: Refusal) -> Result<(), Refused> {
    if is_row_id(&row.id) {
        return Ok(());
    }
    let why = format!("the id of a row must have 1 to {SOURCE_ID_LENGTH_MAX} characters, none of control");
    Err(Refused::new(reason, why))
}

/// The keys that rows refer to, by what the source calls them: the id of a row of keys, or the id that a key kept.
pub(super) struct KeyRefs {
    /// The table of keys that is referred to, where there is one.
    table: Option<String>,
    /// Its import, where it has been imported.
    import_id: Option<RecordId>,
    /// Of everything that has been imported from this source: an id that was kept is no other system's.
    of_source: HashSet<RecordId>,
    known: HashMap<String, Option<(KeyId, OrganizationId)>>,
}

impl KeyRefs {
    /// References into this table of keys; `None` where ids that were kept are all that there is.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn of_table(context: &Context, source: &str, keys: Option<&str>) -> Result<Self, StoreError> {
        let mut imports = imports::list(context.store.control()).await?;
        imports.retain(|import| import.source == source && import.kind == ImportKind::Keys);
        let is_meant = |import: &&Import| keys.is_some_and(|keys| import.table_name == keys);
        let import_id = imports.iter().find(is_meant).map(|import| import.id);
        let of_source = imports.iter().map(|import| import.id).collect();
        Ok(Self { table: keys.map(str::to_owned), import_id, of_source, known: HashMap::new() })
    }

    /// Finds the keys of a batch; [`KeyRefs::get`] then knows all of these references.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn find<'t>(
        &mut self,
        context: &Context,
        references: impl Iterator<Item = &'t str>,
    ) -> Result<(), StoreError> {
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        let new: BTreeSet<&str> = references.filter(|text| !self.known.contains_key(*text)).collect();
        let new: Vec<String> = new.into_iter().map(str::to_owned).collect();
        if new.is_empty() {
            return Ok(());
        }
        let db = context.store.control();
        if let Some(import_id) = self.import_id {
            // What no row of keys can be called may be what a database cannot be asked for.
            let legal = |text: &&String| is_row_id(text);
            let asked: Vec<String> = new.iter().filter(legal).cloned().collect();
            for held in imported_keys::list_by_source_ids(db, import_id, &asked).await? {
                let place = place(&held);
                self.known.extend(held.source_id.map(|source_id| (source_id, Some(place))));
            }
        }
        let rest: Vec<String> = new.into_iter().filter(|text| !self.known.contains_key(text)).collect();
        let kept = |text: &String| KeyId::of_text(trim(text)).ok();
        let ids: BTreeSet<KeyId> = rest.iter().filter_map(kept).collect();
        let ids: Vec<KeyId> = ids.into_iter().collect();
        let held = imported_keys::list_by_ids(db, &ids).await?;
        let is_own = |held: &&Held| held.import_id.is_some_and(|import_id| self.of_source.contains(&import_id));
        let own = held.iter().filter(is_own);
        let by_id: HashMap<KeyId, (KeyId, OrganizationId)> = own.map(|held| (held.id, place(held))).collect();
        for text in rest {
            let found = kept(&text).and_then(|id| by_id.get(&id).copied());
            self.known.insert(text, found);
        }
        Ok(())
    }

    /// The key that a reference stands for, and whose it is; `None` where Keystead has none.
    pub(super) fn get(&self, reference: &str) -> Option<(KeyId, OrganizationId)> {
        self.known.get(reference).copied().flatten()
    }

    /// Whether Keystead has a key that a reference stands for, or would have one.
    pub(super) fn is_planned(&self, reference: &str, planned: &Planned) -> bool {
        self.get(reference).is_some() || planned.has_referred(self.table.as_deref(), reference)
    }
}

fn place(held: &Held) -> (KeyId, OrganizationId) {
    (held.id, held.organization_id)
}
