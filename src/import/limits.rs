//! What limits of a source have counted, from rows to batches of `service::import_limits`, which says how they go on
//! counting here.
//!
//! Where servers share Redis, the counters are there and the table is read by nobody: the context must then have been
//! made with that Redis. A server that runs on SQLite counts in memory and writes over what it did not count: whoever
//! brings windows in keeps it out meanwhile (`store::connect::lock_in_turn`). Must not write by itself.

use std::sync::Arc;

use time::UtcOffset;

use super::{
    mapping::{Field, LimitTable, Mapping},
    places::Places,
    planned::Planned,
    rows::{BatchCounts, KeyRefs, check_row_id},
    source::Row,
    treat::{Columns, OrganizationRef},
    values::{Moment, parse_count, parse_moment, trim},
};
use crate::{
    domain::{
        Invalid,
        import::{Refusal, Refused},
        time::Timestamp,
    },
    service::{self, Context, ServiceError, WindowCounts, WindowItem, WindowOwner},
    store::{StoreError, imports::Import},
};

/// The highest count of a window.
const COUNT_MAX: i64 = 1_000_000_000_000;

/// What the operator should know before windows come over: servers leave no trace of where they count.
pub(super) fn remark(context: &Context, mapping: &Mapping) -> Option<&'static str> {
    let counts_in_redis = context.limits.shared().is_some_and(|shared| shared.redis().is_some());
    (!mapping.limits.is_empty() && !counts_in_redis).then_some(
        "what limits have counted goes to the database: where servers count in Redis, this command needs their \
         --redis-url (KEYSTEAD_REDIS_URL) too, or nobody goes on from it",
    )
}

/// A table of what limits have counted.
pub(super) struct Limits {
    columns: Columns,
    zone: UtcOffset,
    /// The name of windows that are the month's quota.
    quota: Option<String>,
    keys: KeyRefs,
    places: Places,
}

/// What a row says, before anything is looked up.
struct Window<'r> {
    key: Option<&'r str>,
    organization: Option<OrganizationRef>,
    counts: WindowCounts,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    count: i64,
}

impl Limits {
    /// A table of a mapping, once its table of keys has been imported.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn open(context: &Context, mapping: &Mapping, table: &LimitTable) -> Result<Self, StoreError> {
        let keys = KeyRefs::of_table(context, &mapping.source, table.keys.as_deref()).await?;
        let (_, columns) = Columns::new(&table.table);
        let (zone, quota) = (mapping.time_zone, table.quota.clone());
        Ok(Self { columns, zone, quota, keys, places: Places::new(mapping) })
    }

    /// Brings in the rows that follow the position `after`, and moves the import on behind the last of them.
    ///
    /// # Errors
    /// `FailedPrecondition` where another run has gone on with the import; `Unavailable` where Redis does not count;
    /// the store's own.
    pub(super) async fn write_batch(
        &mut self,
        context: &Arc<Context>,
        import: &Import,
        after: &str,
        rows: &[Row],
    ) -> Result<BatchCounts, ServiceError> {
        let mut counts = BatchCounts::default();
        let mut windows = Vec::with_capacity(rows.len());
        for row in rows {
            match self.read(row) {
                Ok(window) => windows.push((row, window)),
                Err(refused) => counts.refuse(row, refused),
            }
        }
        self.keys.find(context, windows.iter().filter_map(|(_, window)| window.key)).await?;
        let named = windows.iter().filter_map(|(_, window)| window.organization.as_ref());
        self.places.find(context, named).await?;
        let (read, items) = counts.sort_out(windows, |row, window| self.item(row, window));
        let batch = counts.batch_of(import.id, after, rows, items);
        let results = service::import_limits(context, batch).await?;
        counts.count(read, results);
        Ok(counts)
    }

    /// Tells what would become of rows, where these keys would be there besides those that are. Whether their owners
    /// have such limits, and windows have ended, is told by a run alone.
    ///
    /// # Errors
    /// The store's own.
    pub(super) async fn plan_batch(
        &mut self,
        context: &Context,
        rows: &[Row],
        planned: &Planned,
    ) -> Result<BatchCounts, StoreError> {
        let mut counts = BatchCounts::default();
        self.keys.find(context, rows.iter().filter_map(|row| self.columns.reference(row))).await?;
        for row in rows {
            match self.read(row) {
                Ok(Window { key: Some(key), .. }) if !self.keys.is_planned(key, planned) => {
                    counts.refuse(row, unknown_key());
                }
                Ok(_) => counts.created += 1,
                Err(refused) => counts.refuse(row, refused),
            }
        }
        Ok(counts)
    }

    fn read<'r>(&self, row: &'r Row) -> Result<Window<'r>, Refused> {
        check_row_id(row, Refusal::BadLimit)?;
        let organization = self.columns.filled(row, Field::Organization);
        let organization = organization.map_err(|why| self.refused(Field::Organization, &why))?;
        let is_of_row = self.columns.raw(row, Field::Organization).is_some_and(|(text, _)| !trim(text).is_empty());
        let named = if is_of_row { OrganizationRef::of_row } else { OrganizationRef::of_mapping };
        let organization = organization.map(named);
        let name = self.filled(row, Field::Name, |text| Ok(text.to_owned()))?;
        let name = name.ok_or_else(|| self.refused(Field::Name, &Invalid::new("must be given")))?;
        let (start, end) = (self.time(row, Field::WindowStart)?, self.time(row, Field::WindowEnd)?);
        if start.is_none() && end.is_none() {
            return Err(self.refused(Field::WindowStart, &Invalid::new("must be given, or the end of the window")));
        }
        if start.zip(end).is_some_and(|(start, end)| end <= start) {
            return Err(self.refused(Field::WindowEnd, &Invalid::new("must be after the start of the window")));
        }
        let count = self.filled(row, Field::Count, parse_window_count)?;
        let count = count.ok_or_else(|| self.refused(Field::Count, &Invalid::new("must be given")))?;
        let is_quota = self.quota.as_ref() == Some(&name);
        // A quota is the organization's, also where the row names the key that used it last.
        let key = self.columns.reference(row).filter(|_| !(is_quota && organization.is_some()));
        if key.is_none() && organization.is_none() {
            return Err(names_nobody());
        }
        let counts = if is_quota { WindowCounts::Quota } else { WindowCounts::Limit(name) };
        Ok(Window { key, organization, counts, start, end, count })
    }

    fn item(&self, row: &Row, window: Window<'_>) -> Result<WindowItem, Refused> {
        let Window { key, organization, counts, start, end, count } = window;
        let owner = match (key, organization) {
            (Some(key), _) => self.keys.get(key).map(|(id, _)| WindowOwner::Key(id)).ok_or_else(unknown_key)?,
            (None, Some(name)) => {
                let found = self.places.get(&name).map(WindowOwner::Organization);
                found
                    .ok_or_else(|| Refused::new(Refusal::UnknownOrganization, "organization: Keystead has none such"))?
            }
            (None, None) => return Err(names_nobody()),
        };
        Ok(WindowItem { source_id: row.id.clone(), owner, counts, start, end, count })
    }

    fn time(&self, row: &Row, field: Field) -> Result<Option<Timestamp>, Refused> {
        self.filled(row, field, |text| match parse_moment(text, self.zone)? {
            Moment::At(time) => Ok(time),
            Moment::Never => Err(Invalid::new("must be a time that comes")),
        })
    }

    fn filled<T>(
        &self,
        row: &Row,
        field: Field,
        parse: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Refused> {
        self.columns.read_filled(row, field, Refusal::BadLimit, parse)
    }

    fn refused(&self, field: Field, why: &Invalid) -> Refused {
        self.columns.refused(field, Refusal::BadLimit, why)
    }
}

fn unknown_key() -> Refused {
    Refused::new(Refusal::UnknownKey, "key: no key came over from the row that it names")
}

fn names_nobody() -> Refused {
    Refused::new(Refusal::BadLimit, "the row names neither a key nor an organization")
}

fn parse_window_count(text: &str) -> Result<i64, Invalid> {
    let count = parse_count(text)?;
    if count <= COUNT_MAX { Ok(count) } else { Err(Invalid::new("must be at most 10^12")) }
}
