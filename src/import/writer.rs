//! A batch of keys into Keystead, or what would become of it, and the count of what became of all of them.
//!
//! Rows that were refused before anything was looked up are in the file of refused rows before the batch commits; those
//! that Keystead refuses, right after it. Must not read the source. Invariant: each row is counted once, as one thing.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Event, ImportError, Tell, actor,
    batches::{KeyBatch, KeyRow},
    planned::Planned,
    refused_file::RefusedFile,
    report::{TableReport, add},
    rows::BatchCounts,
};
use crate::{
    domain::{
        ids::RecordId,
        import::{GivenScheme, Note, Refused},
    },
    service::{self, Context, ImportBatch, ImportItem, ItemResult},
    store::imports::ImportKind,
};

/// How long the file of SQLite may be written to without a pause, and how long that is: whoever else waits to write
/// asks for it at least each 100 ms (`sqliteDefaultBusyCallback`), and would never find it free between two batches.
const STINT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(110);

/// Lets other processes write in between.
pub(super) struct Pace(Instant);

impl Pace {
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// Pauses where that is due.
    pub(super) async fn keep(&mut self, context: &Context) {
        if !context.store.is_shared() && self.0.elapsed() >= STINT {
            tokio::time::sleep(PAUSE).await;
            self.0 = Instant::now();
        }
    }
}

/// What was counted of one table, and who is told.
pub(super) struct Tally<'j> {
    pub(super) report: TableReport,
    tell: Tell<'j>,
    begun: Instant,
}

impl<'j> Tally<'j> {
    /// Begins to count a table, and tells so. `before` rows of it were read by an earlier run.
    pub(super) fn new(table: &str, kind: ImportKind, total: Option<u64>, before: u64, tell: Tell<'j>) -> Self {
        tell(Event::Table { table, kind, total, before });
        let report = TableReport { rows_before: before, ..TableReport::new(table, kind) };
        Self { report, tell, begun: Instant::now() }
    }

    /// Counts a batch of rows that are no keys.
    pub(super) fn count(&mut self, rows: usize, counts: &BatchCounts) {
        let report = &mut self.report;
        report.rows += rows as u64;
        report.created += counts.created;
        report.existing += counts.existing;
        report.skipped += counts.skipped;
        for note in &counts.notes {
            add(&mut report.notes, note.as_str());
        }
        for (_, refused) in &counts.refused {
            self.refuse(refused);
        }
        self.tell_rows();
    }

    fn refuse(&mut self, refused: &Refused) {
        self.report.refused += 1;
        add(&mut self.report.refusals, refused.reason.as_str());
    }

    /// Counts a key with what became of it; gives the refusal where it was one.
    fn key(&mut self, given: GivenScheme, notes: &[Note], result: ItemResult) -> Option<Refused> {
        match result {
            ItemResult::Created(_) | ItemResult::WouldCreate => {
                self.report.created += 1;
                add(&mut self.report.schemes, given.as_str());
            }
            ItemResult::Existing(_) => self.report.existing += 1,
            ItemResult::Duplicate(_) => self.report.duplicates += 1,
            ItemResult::Refused(refused) => {
                self.refuse(&refused);
                return Some(refused);
            }
        }
        for note in notes {
            add(&mut self.report.notes, note.as_str());
        }
        None
    }

    fn tell_rows(&self) {
        (self.tell)(Event::Rows { done: self.report.rows, bad: self.report.refused });
    }

    /// The count of the whole table.
    pub(super) fn finish(mut self) -> TableReport {
        self.report.elapsed = self.begun.elapsed();
        (self.tell)(Event::End);
        self.report
    }
}

/// Brings batches of one table of keys in.
pub(super) struct KeyWriter<'j> {
    pub(super) context: &'j Arc<Context>,
    /// The label of the source.
    pub(super) source: &'j str,
    pub(super) import_id: RecordId,
    /// Where the import stands, as far as this run has brought it.
    pub(super) after: String,
    pub(super) tally: Tally<'j>,
}

/// What is left of a row once its key has gone to be written.
struct Sent {
    id: String,
    given: GivenScheme,
    notes: Vec<Note>,
}

impl KeyWriter<'_> {
    /// Writes a batch, and moves the import on behind it.
    ///
    /// # Errors
    /// The service's own, or the file's. The batch is there whole or not at all.
    pub(super) async fn write(&mut self, batch: KeyBatch, file: &mut RefusedFile) -> Result<(), ImportError> {
        let table = self.tally.report.table.clone();
        file.write(&table, batch.refused.iter().map(|(id, refused)| (id.as_str(), refused)))?;
        let (rows, skipped, refused) = (batch.rows, batch.skipped, batch.refused);
        let position = batch.position;
        let (sent, items) = split(batch.keys);
        let batch = ImportBatch {
            import_id: self.import_id,
            source: self.source.to_owned(),
            items,
            after: Some(self.after.clone()),
            position: position.clone(),
            refused: i64::try_from(refused.len()).unwrap_or(i64::MAX),
            planned: Vec::new(),
            rooms: BTreeMap::new(),
        };
        let results = service::import_batch(self.context, actor(), batch, false).await?;
        if let Some(position) = position {
            self.after = position;
        }
        let late = self.tally(rows, skipped, &refused, sent, results);
        file.write(&table, late.iter().map(|(id, refused)| (id.as_str(), refused)))
    }

    /// Tells what would become of a batch after those that came before it.
    ///
    /// # Errors
    /// The service's own.
    pub(super) async fn plan(&mut self, batch: KeyBatch, planned: &mut Planned) -> Result<(), ImportError> {
        let (sent, items) = split(batch.keys);
        let asked = ImportBatch {
            import_id: self.import_id,
            source: self.source.to_owned(),
            items: items.clone(),
            after: None,
            position: None,
            refused: 0,
            planned: planned.met_by(self.import_id, &items),
            rooms: planned.rooms(self.context, &items).await?,
        };
        let results = service::import_batch(self.context, actor(), asked, true).await?;
        planned.remember(self.import_id, &items, &results);
        self.tally(batch.rows, batch.skipped, &batch.refused, sent, results);
        Ok(())
    }

    /// Counts a batch; gives the rows of it that were refused when they were looked up.
    fn tally(
        &mut self,
        rows: u64,
        skipped: u64,
        refused: &[(String, Refused)],
        sent: Vec<Sent>,
        results: Vec<ItemResult>,
    ) -> Vec<(String, Refused)> {
        let tally = &mut self.tally;
        tally.report.rows += rows;
        tally.report.skipped += skipped;
        for (_, refused) in refused {
            tally.refuse(refused);
        }
        let mut late = Vec::new();
        for (sent, result) in sent.into_iter().zip(results) {
            late.extend(tally.key(sent.given, &sent.notes, result).map(|refused| (sent.id, refused)));
        }
        tally.tell_rows();
        late
    }
}

fn split(keys: Vec<KeyRow>) -> (Vec<Sent>, Vec<ImportItem>) {
    keys.into_iter().map(|KeyRow { id, notes, item, .. }| (Sent { id, given: item.key.given, notes }, item)).unzip()
}
