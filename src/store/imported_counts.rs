//! What limits and quotas have counted elsewhere, added to what they count here.
//!
//! Beside each counter of a source stands how much of it has come over, in the same table, under a subject that no key
//! and no organization has. A repeat adds what came on top of that, and no more: what both have counted adds up,
//! nothing counts twice, and nothing is forgotten. Such a row goes as all do, a day after its window has faded, and
//! lasts for as long as its counter weighs in, however short the source's own window was.
//! Must not decide where a window lies. Invariant: whoever adds has locked its import's position, so that no two do.

use std::collections::{BTreeMap, HashMap};

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryTrait as _,
    sea_query::{Expr, ExprTrait as _, OnConflict, Query, SimpleExpr},
};

use super::{
    StoreError,
    entity::{
        api_key as key_row,
        rate_limit_tracking::{Column, Entity},
    },
    quotas, rows,
    rows::in_powers_of_two,
};
use crate::domain::{
    ids::{KeyId, OrganizationId, RecordId},
    key::ApiKey,
    limits::RateLimit,
    time::Timestamp,
};

/// Rows per statement, a power of two: 5 parameters each, far below both engines' bound.
const ROWS_PER_STATEMENT: usize = 512;
/// Values per look-up, a power of two.
const VALUES_PER_STATEMENT: usize = 1024;
/// What a subject begins with that is no key and no organization.
const LEDGER: &str = "import";

/// How much a counter of a source has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceCount {
    /// What has come over of it stands here.
    ledger: Place,
    /// What comes on top is added here.
    counter: Place,
    count: i64,
    /// Whether nothing of it can have come over, whatever stands there: the counter has just been made.
    is_new: bool,
}

/// A row: subject, name, start and end of the window.
type Place = (String, String, i64, i64);
/// What a row is found by.
type Identity = (String, String, i64);

impl SourceCount {
    /// A window of a limit. `row_id` names it in the source, with its own start and end there; `start` is where the
    /// window begins in which it counts here. For another subject the same row has not come over: its key is a new one.
    #[must_use]
    pub fn of_limit(
        import_id: RecordId,
        row_id: &str,
        own: (Timestamp, Timestamp),
        subject_id: String,
        limit: &RateLimit,
        start: Timestamp,
        count: i64,
    ) -> Self {
        let (name, start_us) = (limit.name.clone(), start.micros());
        let noted = format!("{LEDGER} {import_id} {row_id} {subject_id}");
        Self {
            // A repeat brings the row for as long after its end as the limit looks back.
            ledger: (noted, name.clone(), own.0.micros(), own.1.plus(limit.window).micros()),
            counter: (subject_id, name, start_us, start_us.saturating_add(limit.window_us())),
            count,
            is_new: false,
        }
    }

    /// What is spent of an organization's quota for the month that begins at `month`; from whichever table that is
    /// known, it is the same.
    #[must_use]
    pub fn of_quota(id: OrganizationId, month: Timestamp, count: i64, is_new: bool) -> Self {
        let (name, end_us) = (quotas::NAME.to_owned(), month.start_of_next_month().micros());
        Self {
            ledger: (format!("{LEDGER} {id}"), name.clone(), month.micros(), end_us),
            counter: (id.to_string(), name, month.micros(), end_us),
            count,
            is_new,
        }
    }
}

/// Adds to the counters what their sources have counted and has not come over yet; says how much of each, in order.
pub async fn add(db: &impl ConnectionTrait, counts: &[SourceCount]) -> Result<Vec<i64>, StoreError> {
    let mut known = list_known(db, counts).await?;
    let (mut ledger, mut counters) = (BTreeMap::new(), BTreeMap::new());
    let mut added = Vec::with_capacity(counts.len());
    for SourceCount { ledger: place, counter, count, is_new } in counts {
        let identity = (place.0.clone(), place.1.clone(), place.2);
        let before = known.get(&identity).copied().filter(|_| !is_new).unwrap_or(0);
        let news = Ord::max(*count - before, 0);
        added.push(news);
        if news > 0 {
            known.insert(identity, *count);
            ledger.insert(place.clone(), *count);
            *counters.entry(counter.clone()).or_insert(0_i64) += news;
        }
    }
    write(db, ledger, |column| Expr::col(("excluded", column))).await?;
    // By its table's name: PostgreSQL would not know which row of the two is meant.
    write(db, counters, |column| Expr::col((Entity, column)).add(Expr::col(("excluded", column)))).await?;
    Ok(added)
}

/// Adds to what organizations have used of the quota for the month that begins at `month`.
pub async fn add_to_quotas(
    db: &impl ConnectionTrait,
    month: Timestamp,
    used: &BTreeMap<OrganizationId, i64>,
) -> Result<(), StoreError> {
    let end_us = month.start_of_next_month().micros();
    let place = |id: &OrganizationId| (id.to_string(), quotas::NAME.to_owned(), month.micros(), end_us);
    let rows = used.iter().map(|(id, count)| (place(id), *count)).collect();
    write(db, rows, |column| Expr::col((Entity, column)).add(Expr::col(("excluded", column)))).await
}

/// What of these has come over already.
async fn list_known(db: &impl ConnectionTrait, counts: &[SourceCount]) -> Result<HashMap<Identity, i64>, StoreError> {
    let subjects: Vec<&str> = counts.iter().map(|count| count.ledger.0.as_str()).collect();
    let mut known = HashMap::new();
    for chunk in in_powers_of_two(&subjects, VALUES_PER_STATEMENT) {
        let rows = Entity::find().filter(Column::SubjectId.is_in(chunk.iter().copied())).all(db).await?;
        known.extend(rows.into_iter().map(|row| ((row.subject_id, row.limit_name, row.window_start_us), row.count)));
    }
    Ok(known)
}

/// Writes rows, in the order of their primary key; `merged` says what becomes of the count of one that stands.
async fn write(
    db: &impl ConnectionTrait,
    rows: BTreeMap<Place, i64>,
    merged: impl Fn(Column) -> SimpleExpr,
) -> Result<(), StoreError> {
    let rows: Vec<(Place, i64)> = rows.into_iter().collect();
    let identity = [Column::SubjectId, Column::LimitName, Column::WindowStartUs];
    for chunk in in_powers_of_two(&rows, ROWS_PER_STATEMENT) {
        let mut insert = Query::insert();
        insert.into_table(Entity).columns([
            Column::SubjectId,
            Column::LimitName,
            Column::WindowStartUs,
            Column::WindowEndUs,
            Column::Count,
        ]);
        for ((subject, name, start_us, end_us), count) in chunk {
            let values =
                [subject.as_str().into(), name.as_str().into(), (*start_us).into(), (*end_us).into(), (*count).into()];
            insert.values(values).map_err(|error| sea_orm::DbErr::Custom(error.to_string()))?;
        }
        insert.on_conflict(OnConflict::columns(identity).value(Column::Count, merged(Column::Count)).to_owned());
        db.execute(&insert).await?;
    }
    Ok(())
}

/// What limits a key has, and under which id they count.
#[derive(Debug, Clone)]
pub struct KeyLimits {
    pub id: KeyId,
    pub organization_id: OrganizationId,
    pub counter_id: KeyId,
    pub rate_limits: Vec<RateLimit>,
}

/// The limits of those of these keys that exist.
pub async fn list_key_limits(db: &impl ConnectionTrait, ids: &[KeyId]) -> Result<Vec<KeyLimits>, StoreError> {
    let mut limits = Vec::with_capacity(ids.len());
    for chunk in in_powers_of_two(ids, VALUES_PER_STATEMENT) {
        let wanted = chunk.iter().map(ToString::to_string);
        let select = key_row::Entity::find().filter(key_row::Column::Id.is_in(wanted));
        for found in db.query_all(select.as_query()).await? {
            let key: ApiKey = rows::read::<key_row::Model, ApiKey>(&found)?;
            let ApiKey { id, organization_id, counter_id, rate_limits, .. } = key;
            limits.push(KeyLimits { id, organization_id, counter_id, rate_limits });
        }
    }
    Ok(limits)
}
