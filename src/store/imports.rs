//! Queries over `imports`: one row for each table of a source, and for each organization and source of `ImportKeys`.
//! Invariant: the position moves in the transaction that writes the rows up to it, so that what a process brought in
//! before it died is neither lost nor brought in again.

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, ExprTrait as _, OnConflict},
};

use super::{StoreError, entity::import as row, entity::import::Column};
use crate::domain::{
    ids::{OrganizationId, RecordId},
    key::stored_enum,
    time::Timestamp,
};

stored_enum! {
    /// What the rows of a source's table are.
    ImportKind {
        Organizations = "organizations",
        Keys = "keys",
        Usage = "usage",
        Limits = "limits",
        /// Keys, by calls of `ImportKeys`.
        Calls = "calls",
    }
}

stored_enum! {
    /// How far a pass over a table has come.
    ImportState {
        Running = "running",
        Done = "done",
        /// The pass left the table as it is, for a later one.
        Withheld = "withheld",
    }
}

/// One table of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    pub id: RecordId,
    pub source: String,
    pub table_name: String,
    pub kind: ImportKind,
    /// Whose keys calls brought in; `None` for tables.
    pub organization_id: Option<OrganizationId>,
    pub state: ImportState,
    /// The id of the last row that was taken, as the source writes it; empty before the first.
    pub position: String,
    /// Of the present pass, as the others.
    pub created_count: i64,
    pub existing_count: i64,
    pub refused_count: i64,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub verified_time: Option<Timestamp>,
    /// Of the source's rows when they were verified; empty where they were not.
    pub fingerprint: String,
    /// JSON: what was dropped from the source; empty for nothing.
    pub contracted: String,
    /// When the present pass began; `None` where that is not known.
    pub began_time: Option<Timestamp>,
}

/// What a row of `imports` is found or made by.
#[derive(Debug, Clone)]
pub struct NewImport<'a> {
    pub id: RecordId,
    pub source: &'a str,
    pub table_name: &'a str,
    pub kind: ImportKind,
    pub organization_id: Option<OrganizationId>,
    pub now: Timestamp,
}

/// What a batch adds to its import.
#[derive(Debug, Clone, Default)]
pub struct Advance {
    /// The new position; `None` leaves it.
    pub position: Option<String>,
    pub created: i64,
    pub existing: i64,
    pub refused: i64,
}

impl TryFrom<row::Model> for Import {
    type Error = StoreError;

    fn try_from(row: row::Model) -> Result<Self, StoreError> {
        let corrupt = |column: &str| StoreError::Corrupt(format!("imports row {:?}, column {column}", row.id));
        let organization_id = match row.organization_id.as_str() {
            "" => None,
            id => Some(OrganizationId::parse(id).map_err(|_| corrupt("organization_id"))?),
        };
        Ok(Self {
            id: RecordId::parse(&row.id).map_err(|_| corrupt("id"))?,
            kind: ImportKind::from_stored(&row.kind).ok_or_else(|| corrupt("kind"))?,
            state: ImportState::from_stored(&row.state).ok_or_else(|| corrupt("state"))?,
            organization_id,
            create_time: Timestamp::from_micros(row.create_time_us),
            update_time: Timestamp::from_micros(row.update_time_us),
            verified_time: row.verified_time_us.map(Timestamp::from_micros),
            began_time: row.began_time_us.map(Timestamp::from_micros),
            source: row.source,
            table_name: row.table_name,
            position: row.position,
            created_count: row.created_count,
            existing_count: row.existing_count,
            refused_count: row.refused_count,
            fingerprint: row.fingerprint,
            contracted: row.contracted,
        })
    }
}

/// The import of this source and table: the one that stands, or a new one at its beginning.
pub async fn find_or_insert(db: &impl ConnectionTrait, new: &NewImport<'_>) -> Result<Import, StoreError> {
    let organization_id = new.organization_id.map_or_else(String::new, |id| id.to_string());
    let model = row::ActiveModel {
        id: Set(new.id.to_string()),
        organization_id: Set(organization_id.clone()),
        source: Set(new.source.to_owned()),
        table_name: Set(new.table_name.to_owned()),
        kind: Set(new.kind.as_str().to_owned()),
        state: Set(ImportState::Running.as_str().to_owned()),
        create_time_us: Set(new.now.micros()),
        update_time_us: Set(new.now.micros()),
        began_time_us: Set(Some(new.now.micros())),
        ..Default::default()
    };
    let identity = [Column::Source, Column::TableName, Column::OrganizationId];
    row::Entity::insert(model)
        .on_conflict(OnConflict::columns(identity).do_nothing().to_owned())
        .exec_without_returning(db)
        .await?;
    let stands = find_of(db, new.source, new.table_name, &organization_id).await?;
    stands.ok_or_else(|| StoreError::Corrupt("imports: a row that was inserted is not there".to_owned()))
}

/// The import of a source's table.
pub async fn find(db: &impl ConnectionTrait, source: &str, table_name: &str) -> Result<Option<Import>, StoreError> {
    find_of(db, source, table_name, "").await
}

/// The import by calls of an organization's keys from a source.
pub async fn find_called(
    db: &impl ConnectionTrait,
    source: &str,
    organization: OrganizationId,
) -> Result<Option<Import>, StoreError> {
    find_of(db, source, "", &organization.to_string()).await
}

async fn find_of(
    db: &impl ConnectionTrait,
    source: &str,
    table_name: &str,
    organization_id: &str,
) -> Result<Option<Import>, StoreError> {
    let found = row::Entity::find()
        .filter(Column::Source.eq(source))
        .filter(Column::TableName.eq(table_name))
        .filter(Column::OrganizationId.eq(organization_id))
        .one(db)
        .await?;
    found.map(Import::try_from).transpose()
}

/// The import with this id.
pub async fn find_by_id(db: &impl ConnectionTrait, id: RecordId) -> Result<Option<Import>, StoreError> {
    row::Entity::find_by_id(id.to_string()).one(db).await?.map(Import::try_from).transpose()
}

/// Every import, by source and table.
pub async fn list(db: &impl ConnectionTrait) -> Result<Vec<Import>, StoreError> {
    let order = row::Entity::find().order_by_asc(Column::Source).order_by_asc(Column::TableName);
    let found = order.order_by_asc(Column::OrganizationId).all(db).await?;
    found.into_iter().map(Import::try_from).collect()
}

/// Locks an import until the transaction ends: one at a time brings its rows in.
pub async fn lock(db: &impl ConnectionTrait, id: RecordId) -> Result<(), StoreError> {
    row::Entity::find_by_id(id.to_string()).lock_exclusive().one(db).await?;
    Ok(())
}

/// Begins a new pass at the table's beginning.
pub async fn restart(db: &impl ConnectionTrait, id: RecordId, now: Timestamp) -> Result<(), StoreError> {
    let changes = row::ActiveModel {
        state: Set(ImportState::Running.as_str().to_owned()),
        position: Set(String::new()),
        created_count: Set(0),
        existing_count: Set(0),
        refused_count: Set(0),
        update_time_us: Set(now.micros()),
        began_time_us: Set(Some(now.micros())),
        ..Default::default()
    };
    update(db, id, changes).await
}

/// Goes on after the position that a pass came to which is over.
pub async fn resume(db: &impl ConnectionTrait, id: RecordId, now: Timestamp) -> Result<(), StoreError> {
    let changes = row::ActiveModel {
        state: Set(ImportState::Running.as_str().to_owned()),
        update_time_us: Set(now.micros()),
        ..Default::default()
    };
    update(db, id, changes).await
}

/// Adds what a batch did, in its transaction.
pub async fn advance(
    db: &impl ConnectionTrait,
    id: RecordId,
    advance: &Advance,
    now: Timestamp,
) -> Result<(), StoreError> {
    let added = |column: Column, amount: i64| Expr::col(column).add(amount);
    let mut update = row::Entity::update_many()
        .col_expr(Column::CreatedCount, added(Column::CreatedCount, advance.created))
        .col_expr(Column::ExistingCount, added(Column::ExistingCount, advance.existing))
        .col_expr(Column::RefusedCount, added(Column::RefusedCount, advance.refused))
        .col_expr(Column::UpdateTimeUs, Expr::val(now.micros()));
    if let Some(position) = &advance.position {
        update = update.col_expr(Column::Position, Expr::val(position.as_str()));
    }
    update.filter(Column::Id.eq(id.to_string())).exec(db).await?;
    Ok(())
}

/// Notes that a pass has come to the table's end, or leaves it out: `state` says which.
pub async fn finish(
    db: &impl ConnectionTrait,
    id: RecordId,
    state: ImportState,
    now: Timestamp,
) -> Result<(), StoreError> {
    let changes = row::ActiveModel {
        state: Set(state.as_str().to_owned()),
        update_time_us: Set(now.micros()),
        ..Default::default()
    };
    update(db, id, changes).await
}

/// Notes that every row of the table was found as it should be, and which rows those were.
pub async fn set_verified(
    db: &impl ConnectionTrait,
    id: RecordId,
    time: Timestamp,
    fingerprint: &str,
) -> Result<(), StoreError> {
    let changes = row::ActiveModel {
        verified_time_us: Set(Some(time.micros())),
        fingerprint: Set(fingerprint.to_owned()),
        ..Default::default()
    };
    update(db, id, changes).await
}

/// Forgets that the table was verified.
pub async fn clear_verified(db: &impl ConnectionTrait, id: RecordId) -> Result<(), StoreError> {
    let changes =
        row::ActiveModel { verified_time_us: Set(None), fingerprint: Set(String::new()), ..Default::default() };
    update(db, id, changes).await
}

/// Notes what was dropped from the table, as JSON; empty for nothing. Only where `before` still stands: says whether.
pub async fn set_contracted(
    db: &impl ConnectionTrait,
    id: RecordId,
    before: &str,
    contracted: &str,
) -> Result<bool, StoreError> {
    let changes = row::ActiveModel { contracted: Set(contracted.to_owned()), ..Default::default() };
    let update = row::Entity::update_many().set(changes).filter(Column::Id.eq(id.to_string()));
    Ok(update.filter(Column::Contracted.eq(before)).exec(db).await?.rows_affected > 0)
}

async fn update(db: &impl ConnectionTrait, id: RecordId, changes: row::ActiveModel) -> Result<(), StoreError> {
    row::Entity::update_many().set(changes).filter(Column::Id.eq(id.to_string())).exec(db).await?;
    Ok(())
}
