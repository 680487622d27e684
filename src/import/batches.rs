//! A table in batches: rows as the source gives them, and, of tables of keys, what is made of each row before anything
//! of it is looked up in Keystead but its organization.
//! Must not write, and must not pass the id of a row on that holds the row's key. Invariant: no more than one batch is
//! held at a time; whoever asks for the next one while the last is being worked on holds two.

use std::{collections::HashSet, sync::Arc};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{
    ImportError,
    fingerprint::Fingerprint,
    mapping::{Field, KeyTable},
    places::Places,
    source::{Ask, Row, Source, contract::Contract},
    treat::{TableReader, Treated},
};
use crate::{
    domain::{
        import::{Note, Refusal, Refused},
        time::Timestamp,
    },
    service::{Context, ImportItem},
};

/// What stands for the id of a row that holds the row's key.
const HIDDEN_ID: &str = "-";

/// Where rows are read.
enum Reading<'j> {
    Source(&'j mut Source),
    /// Under the lock that `contract` holds.
    Locked(&'j mut Contract),
}

/// The rows of a table, a batch at a time.
pub(super) struct RowBatches<'j> {
    source: Reading<'j>,
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
        Self { source: Reading::Source(source), stop, ask, limit, after, is_over: false }
    }

    /// All rows of a table that is locked.
    pub(super) fn locked(contract: &'j mut Contract, stop: &'j CancellationToken, ask: Ask, limit: usize) -> Self {
        Self { source: Reading::Locked(contract), stop, ask, limit, after: None, is_over: false }
    }

    /// The next batch: empty behind the last row, and once it was told to stop.
    ///
    /// # Errors
    /// The source's own.
    pub(super) async fn next(&mut self) -> Result<Vec<Row>, ImportError> {
        if self.is_over {
            return Ok(Vec::new());
        }
        let after = self.after.as_deref();
        let rows = match &mut self.source {
            Reading::Source(source) => tokio::select! {
                biased;
                // What has been asked of the source is given up with it.
                () = self.stop.cancelled() => Vec::new(),
                rows = source.read(&self.ask, after, self.limit) => rows?,
            },
            // Its connection has a transaction to be ended.
            Reading::Locked(_) if self.stop.is_cancelled() => Vec::new(),
            Reading::Locked(contract) => contract.read(&self.ask, after, self.limit).await?,
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
    /// Whether a hash stands beside its plaintext.
    pub(super) is_pair: bool,
    /// What is wrong with the hash that stays when its plaintext is dropped.
    pub(super) stay_problem: Option<&'static str>,
    pub(super) item: ImportItem,
}

/// What became of a batch of a table of keys so far. Each row is a key, skipped or refused.
pub(super) struct KeyBatch {
    pub(super) rows: u64,
    /// The id of its last row that can be noted; `None` where none can.
    pub(super) position: Option<String>,
    /// When it was treated.
    pub(super) now: Timestamp,
    pub(super) keys: Vec<KeyRow>,
    pub(super) skipped: u64,
    /// By the id of the row.
    pub(super) refused: Vec<(String, Refused)>,
    /// Of the refused ones those with a hash beside their plaintext.
    pub(super) refused_pairs: HashSet<String>,
}

/// A row that was treated.
struct Done {
    id: String,
    is_pair: bool,
    stay_problem: Option<&'static str>,
    treated: Treated,
}

/// The rows of a table of keys, a batch at a time, each treated.
pub(super) struct KeyBatches<'j> {
    rows: RowBatches<'j>,
    context: &'j Context,
    reader: Arc<TableReader>,
    places: &'j mut Places,
    /// Where the rows are to have one.
    pub(super) fingerprint: Option<Fingerprint>,
    /// The values that are left out where the secret stands beside them.
    compared: Arc<[usize]>,
    /// Rows that were read so far.
    count: u64,
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
        Self { rows, context, reader, places, fingerprint, compared: Arc::default(), count: 0 }
    }

    /// Does not hold slow hashes against the secrets beside them: `verify` did, and passes no row in which they
    /// disagree. Only for whoever then sees by the fingerprint that the rows are those of `verify`.
    pub(super) fn compared_before(mut self, table: &KeyTable) -> Self {
        self.compared = slow_hashes(table, &self.reader.ask).into();
        self
    }

    /// The next batch; `None` behind the last row, and once it was told to stop.
    ///
    /// # Errors
    /// The source's own, or the store's.
    pub(super) async fn next(&mut self) -> Result<Option<KeyBatch>, ImportError> {
        let rows = self.rows.next().await?;
        if rows.is_empty() {
            return Ok(None);
        }
        let (count, now) = (rows.len() as u64, self.context.clock.now());
        // No database can be told an id with a NUL, nor may one hold a key: such rows are refused, and read again.
        let last = rows.iter().rev().find(|row| !row.id.contains('\0') && !self.reader.id_tells(row));
        let position = last.map(|row| row.id.clone());
        if let Some(fingerprint) = &mut self.fingerprint {
            for row in &rows {
                fingerprint.add(&row.id, self.reader.material(row));
            }
        }
        let (reader, compared, before) = (self.reader.clone(), self.compared.clone(), self.count);
        self.count += count;
        // Slow where a hash that is slow on purpose stands beside its plaintext.
        let treated = spawn_blocking(move || {
            let numbered = (before + 1..).zip(rows);
            numbered.map(|(number, row)| treat(&reader, number, row, now, &compared)).collect::<Vec<Done>>()
        });
        let treated =
            treated.await.map_err(|panic| ImportError::Refused(format!("rows could not be treated: {panic}")))?;
        let names = treated.iter().filter_map(|done| match &done.treated {
            Treated::Key { organization, .. } => Some(organization),
            Treated::Skipped | Treated::Refused(_) => None,
        });
        self.places.find(self.context, names).await?;
        let (keys, refused, refused_pairs) = (Vec::new(), Vec::new(), HashSet::new());
        let mut batch = KeyBatch { rows: count, position, now, keys, skipped: 0, refused, refused_pairs };
        for Done { id, is_pair, stay_problem, treated } in treated {
            match treated {
                Treated::Key { key, organization, notes } => {
                    if let Some(organization_id) = self.places.get(&organization) {
                        let item = ImportItem { organization_id, key: *key };
                        batch.keys.push(KeyRow { id, notes, is_pair, stay_problem, item });
                    } else {
                        // The text is not repeated: it is a key where the mapping names the wrong column.
                        let message = "organization must be one that Keystead has";
                        batch.refuse(id, is_pair, Refused::new(Refusal::UnknownOrganization, message));
                    }
                }
                Treated::Skipped => batch.skipped += 1,
                Treated::Refused(refused) => batch.refuse(id, is_pair, refused),
            }
        }
        Ok(Some(batch))
    }
}

impl KeyBatch {
    fn refuse(&mut self, id: String, is_pair: bool, refused: Refused) {
        if is_pair {
            self.refused_pairs.insert(id.clone());
        }
        self.refused.push((id, refused));
    }
}

/// Where the slow hashes of a table's rows are.
fn slow_hashes(table: &KeyTable, ask: &Ask) -> Vec<usize> {
    let columns = [Field::Bcrypt, Field::Argon2].into_iter().filter_map(|field| table.table.columns.get(&field));
    columns.filter_map(|name| ask.columns.iter().position(|column| column.name == *name)).collect()
}

/// What becomes of a row. Of one with a secret, the values in these places count as NULL.
fn treat(reader: &TableReader, number: u64, mut row: Row, now: Timestamp, compared: &[usize]) -> Done {
    let (is_pair, id_tells) = (reader.is_pair(&row), reader.id_tells(&row));
    if is_pair && !id_tells {
        for place in compared {
            if let Some(value) = row.values.get_mut(*place) {
                *value = None;
            }
        }
    }
    let mut treated = reader.treat(&row, now);
    let stay_problem = match &treated {
        Treated::Key { key, .. } => reader.stay_problem(&row, key),
        Treated::Skipped | Treated::Refused(_) => None,
    };
    if !id_tells {
        return Done { id: row.id, is_pair, stay_problem, treated };
    }
    if let Treated::Refused(refused) = &mut treated {
        refused.message = format!("{} (row {number} of those that were read)", refused.message);
    }
    Done { id: HIDDEN_ID.to_owned(), is_pair, stay_problem, treated }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::{domain::import::GivenScheme, import::mapping::Mapping};

    const MAPPING: &str = "source = \"test\"\norganization = \"acme\"\n[[keys]]\ntable = \"t\"\nid = \"id\"\n\
                           [keys.columns]\nsecret = \"secret\"\nbcrypt = \"bcrypt\"\n";
    /// Of another secret.
    const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuuWJ8ZpPOQ3z4lnmLrxm5UbyBhPqkjMDi";

    fn row(ask: &Ask, secret: Option<&str>) -> Row {
        let value = |name: &str| if name == "bcrypt" { Some(BCRYPT) } else { secret };
        let values = ask.columns.iter().map(|column| value(&column.name));
        Row {
            id: "1".to_owned(),
            values: values.map(|text| text.map(|text| Zeroizing::new(text.to_owned()))).collect(),
        }
    }

    #[test]
    fn a_slow_hash_is_held_against_its_secret_unless_that_was_done_before() {
        let mapping = Mapping::parse(MAPPING).expect("a mapping");
        let table = &mapping.keys[0];
        let reader = TableReader::new(&mapping, table, false);
        let compared = slow_hashes(table, &reader.ask);
        let now = Timestamp::from_micros(1_770_000_000_000_000);
        let treated = |secret, compared: &[usize]| treat(&reader, 1, row(&reader.ask, secret), now, compared);

        let secret = Some("Zx81kQp0aVn3Wc7dRt5Y");
        match treated(secret, &[]).treated {
            Treated::Refused(refused) => assert_eq!(refused.reason, Refusal::HashMismatch),
            other => panic!("{other:?}"),
        }
        let done = treated(secret, &compared);
        assert!(done.is_pair, "it has a hash, whether it is looked at or not");
        for (done, given) in [(done, GivenScheme::Plaintext), (treated(None, &compared), GivenScheme::Bcrypt)] {
            match done.treated {
                Treated::Key { key, .. } => assert_eq!(key.given, given),
                other => panic!("{other:?}"),
            }
        }
    }
}
