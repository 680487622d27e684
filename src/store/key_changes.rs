//! Queries over `key_changes`, the change feed that triggers write, and `change_counter`, its revision.
//! Reading only, but for pruning what every follower has long seen.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait, JoinType, QueryFilter as _, QueryOrder as _, QueryResult,
    QuerySelect as _,
    sea_query::{Expr, ExprTrait as _, Query},
};

use super::{
    StoreError, engine, entity::change_counter, entity::key_change as row, entity::key_change::Column, replicas,
};
use crate::domain::{digest::Digest, ids::OrganizationId, time::Timestamp};

/// How many changes one read gives.
const CHANGES_MAX: u64 = 1000;

/// One change that can alter a verification.
#[derive(Debug, Clone)]
pub struct Change {
    pub revision: i64,
    pub what: Changed,
    pub trace: Trace,
}

/// What tells one change from any other that may have had its revision in another history: after a backup was put
/// back, or a standby took over that lacked the latest changes, revisions are given out again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace(String);

/// Where the feed stands, as one query saw it.
#[derive(Debug, Clone)]
pub struct Head {
    pub revision: i64,
    /// Set anew by an operator who puts a backup back; any other value makes followers start anew.
    pub epoch: String,
    /// The change with this revision; `None` where there is none, or none any more.
    pub trace: Option<Trace>,
    /// The change at the revision that was asked about.
    pub asked: Option<Trace>,
    /// How many replicas gave a sign of life lately.
    pub live: i64,
}

/// What changed.
#[derive(Debug, Clone)]
pub enum Changed {
    /// The key that caches hold under this digest.
    Key(Digest),
    /// A key without a digest, which no cache holds.
    KeyWithoutDigest,
    Organization(OrganizationId),
    /// A kind of change that this version does not know: whoever caches anything has to drop it all.
    Unknown,
}

/// The revision that the feed has reached.
pub async fn find_revision(db: &impl ConnectionTrait) -> Result<i64, StoreError> {
    let counter = change_counter::Entity::find_by_id(1).one(db).await?;
    counter.map(|row| row.revision).ok_or_else(|| StoreError::Corrupt("change_counter".to_owned()))
}

/// Where the feed stands, and which change it has at `revision`.
///
/// # Errors
/// `Unavailable` also where the database is a standby: what it says may be old, so that nothing can rest on it.
pub async fn find_head(db: &impl ConnectionTrait, revision: i64) -> Result<Head, StoreError> {
    let at = |name: &'static str| Expr::col((name, Column::Revision));
    let counter = |column| Expr::col((change_counter::Entity, column));
    let mut select = Query::select();
    select
        .expr_as(counter(change_counter::Column::Revision), "revision")
        .expr_as(counter(change_counter::Column::Epoch), "epoch")
        .expr_as(engine::is_standby(db), "standby")
        .expr_as(replicas::count_live(db), "live")
        .from(change_counter::Entity)
        .join_as(JoinType::LeftJoin, row::Entity, ASKED, at(ASKED).eq(revision))
        .join_as(JoinType::LeftJoin, row::Entity, LATEST, at(LATEST).equals((change_counter::Entity, Column::Revision)))
        .and_where(counter(change_counter::Column::Id).eq(1));
    for name in [ASKED, LATEST] {
        for (column, alias) in TRACED {
            select.expr_as(Expr::col((name, column)), format!("{name}_{alias}"));
        }
    }
    let found = db.query_one(&select).await?;
    let found = found.ok_or_else(|| StoreError::Corrupt("change_counter".to_owned()))?;
    if found.try_get("", "standby")? {
        return Err(StoreError::standby());
    }
    let (asked, trace) = (trace_at(&found, ASKED)?, trace_at(&found, LATEST)?);
    let of = |name: &str| found.try_get::<i64>("", name);
    Ok(Head { revision: of("revision")?, epoch: found.try_get("", "epoch")?, trace, asked, live: of("live")? })
}

/// The two places of a change in the query of [`find_head`].
const ASKED: &str = "asked";
const LATEST: &str = "latest";
/// What a trace is made of.
const TRACED: [(Column, &str); 4] = [
    (Column::TimeUs, "time"),
    (Column::Kind, "kind"),
    (Column::KeyId, "key"),
    (Column::OrganizationId, "organization"),
];

fn trace_at(found: &QueryResult, name: &str) -> Result<Option<Trace>, StoreError> {
    let prefix = format!("{name}_");
    let Some(time) = found.try_get::<Option<i64>>(&prefix, "time")? else { return Ok(None) };
    let text = |column: &str| found.try_get::<String>(&prefix, column);
    Ok(Some(Trace::of(time, &text("kind")?, &text("key")?, &text("organization")?)))
}

impl Trace {
    fn of(time_us: i64, kind: &str, key_id: &str, organization_id: &str) -> Self {
        Self(format!("{time_us} {kind} {key_id} {organization_id}"))
    }
}

/// The changes after `revision`, in commit order, at most 1000.
pub async fn list_after(db: &impl ConnectionTrait, revision: i64) -> Result<Vec<Change>, StoreError> {
    let rows = row::Entity::find()
        .filter(Column::Revision.gt(revision))
        .order_by_asc(Column::Revision)
        .limit(CHANGES_MAX)
        .all(db)
        .await?;
    let change = |row: row::Model| Change {
        revision: row.revision,
        what: changed(&row),
        trace: Trace::of(row.time_us, &row.kind, &row.key_id, &row.organization_id),
    };
    Ok(rows.into_iter().map(change).collect())
}

fn changed(row: &row::Model) -> Changed {
    match row.kind.as_str() {
        "key" => match row.digest.as_deref() {
            None => Changed::KeyWithoutDigest,
            Some(bytes) => Digest::from_bytes(bytes).map_or(Changed::Unknown, Changed::Key),
        },
        "organization" => OrganizationId::parse(&row.organization_id).map_or(Changed::Unknown, Changed::Organization),
        _ => Changed::Unknown,
    }
}

/// Deletes changes from before `time`, but never the latest, by which followers know this history; gives their number.
pub async fn delete_before(db: &impl ConnectionTrait, time: Timestamp) -> Result<u64, StoreError> {
    let latest = Query::select().column(change_counter::Column::Revision).from(change_counter::Entity).to_owned();
    let result = row::Entity::delete_many()
        .filter(Column::TimeUs.lt(time.micros()))
        .filter(Column::Revision.not_in_subquery(latest))
        .exec(db)
        .await?;
    Ok(result.rows_affected)
}
