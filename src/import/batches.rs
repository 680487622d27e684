//! A table in batches: rows as the source gives them, and, of tables of keys, what is made of each row before anything
//! of it is looked up in Keystead but its organization.
//! Must not write. Invariant: no more than one batch is held at a time; whoever asks for the next one while the last is
//! being worked on holds two.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{
    ImportError,
    fingerprint::Fingerprint,
    places::Places,
    source::{Ask, Row, Source},
    treat::{OrganizationRef, TableReader, Treated},
};
use crate::{
    domain::{
        import::{ImportedKey, Note, Refusal, Refused},
        time::Timestamp,
    },
    service::{Context, ImportItem},
};

/// The rows of a table, a batch at a time.
pub(super) struct RowBatches<'j> {
    source: &'j mut Source,
    stop: &'j CancellationToken,
    ask: Ask,
    limit: usize,
    /// The id of the last row that was read.
    after: Option<String>,
    is_over: bool,
}

impl<'j> RowBatches<'j> {
    /// The rows after this id; empty for all.
    pub(super) fn new(
        source: &'j mut Source,
        stop: &'j CancellationToken,
        ask: Ask,
        limit: usize,
        after: &str,
    ) -> Self {
        let after = (!after.is_empty()).then(|| after.to_owned());
        Self { source, stop, ask, limit, after, is_over: false }
    }

    /// The next batch: empty behind the last row, and once it was told to stop.
    ///
    /// # Errors
    /// The source's own.
    pub(super) async fn next(&mut self) -> Result<Vec<Row>, ImportError> {
        if self.is_over {
            return Ok(Vec::new());
        }
        let rows = tokio::select! {
            biased;
            // What has been asked of the source is given up with it.
            () = self.stop.cancelled() => Vec::new(),
            rows = self.source.read(&self.ask, self.after.as_deref(), self.limit) => rows?,
        };
        self.is_over = rows.len() < self.limit;
        if let Some(last) = rows.last() {
            self.after = Some(last.id.clone());
        }
        Ok(rows)
    }
}

/// A row that is a key, and whose it would be.
pub(super) struct KeyRow {
    pub(super) id: String,
    pub(super) notes: Vec<Note>,
    pub(super) item: ImportItem,
}

/// What became of a batch of a table of keys so far. Each row is a key, skipped or refused.
pub(super) struct KeyBatch {
    pub(super) rows: u64,
    /// The id of its last row.
    pub(super) last_id: String,
    /// When it was treated.
    pub(super) now: Timestamp,
    pub(super) keys: Vec<KeyRow>,
    pub(super) skipped: u64,
    /// By the id of the row.
    pub(super) refused: Vec<(String, Refused)>,
}

/// The rows of a table of keys, a batch at a time, each treated.
pub(super) struct KeyBatches<'j> {
    rows: RowBatches<'j>,
    context: &'j Context,
    reader: Arc<TableReader>,
    places: &'j mut Places,
    /// Where the rows are to have one.
    pub(super) fingerprint: Option<Fingerprint>,
}

impl<'j> KeyBatches<'j> {
    /// Treats these rows; they must be read as `reader` asks.
    pub(super) fn new(
        rows: RowBatches<'j>,
        context: &'j Context,
        reader: Arc<TableReader>,
        places: &'j mut Places,
        fingerprint: Option<Fingerprint>,
    ) -> Self {
        Self { rows, context, reader, places, fingerprint }
    }

    /// The next batch; `None` behind the last row, and once it was told to stop.
    ///
    /// # Errors
    /// The source's own, or the store's.
    pub(super) async fn next(&mut self) -> Result<Option<KeyBatch>, ImportError> {
        let rows = self.rows.next().await?;
        let Some(last) = rows.last() else { return Ok(None) };
        let (count, last_id, now) = (rows.len() as u64, last.id.clone(), self.context.clock.now());
        if let Some(fingerprint) = &mut self.fingerprint {
            for row in &rows {
                fingerprint.add(&row.id, self.reader.material(row));
            }
        }
        let reader = self.reader.clone();
        // Slow where a hash that is slow on purpose stands beside its plaintext.
        let treated = spawn_blocking(move || {
            let treat = |row: Row| {
                let treated = reader.treat(&row, now);
                (row.id, treated)
            };
            rows.into_iter().map(treat).collect::<Vec<(String, Treated)>>()
        });
        let treated =
            treated.await.map_err(|panic| ImportError::Refused(format!("rows could not be treated: {panic}")))?;
        let names = treated.iter().filter_map(|(_, treated)| match treated {
            Treated::Key { organization, .. } => Some(organization.as_str()),
            Treated::Skipped | Treated::Refused(_) => None,
        });
        self.places.find(self.context, names).await?;
        let mut batch = KeyBatch { rows: count, last_id, now, keys: Vec::new(), skipped: 0, refused: Vec::new() };
        for (id, treated) in treated {
            match treated {
                Treated::Key { key, organization, notes } => self.place(&mut batch, id, *key, &organization, notes),
                Treated::Skipped => batch.skipped += 1,
                Treated::Refused(refused) => batch.refused.push((id, refused)),
            }
        }
        Ok(Some(batch))
    }

    fn place(
        &self,
        batch: &mut KeyBatch,
        id: String,
        key: ImportedKey,
        organization: &OrganizationRef,
        notes: Vec<Note>,
    ) {
        if let Some(organization_id) = self.places.get(organization.as_str()) {
            batch.keys.push(KeyRow { id, notes, item: ImportItem { organization_id, key } });
        } else {
            // The text is not repeated: it is a key where the mapping names the wrong column.
            let message = "organization must be one that Keystead has";
            batch.refused.push((id, Refused::new(Refusal::UnknownOrganization, message)));
        }
    }
}
