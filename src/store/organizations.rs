//! Queries over `organizations`.
//! Every query that serves a caller takes its reach. The key count is not a column: it is counted, so that raw SQL
//! cannot make it wrong.

use std::collections::HashSet;

use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _, Select,
    sea_query::{Expr, ExprTrait as _, LockType},
};

use super::{StoreError, api_keys::contains, engine, entity::organization as row, entity::organization::Column, rows};
use crate::domain::{
    ids::{OrganizationId, RecordId},
    organization::{Organization, OrganizationFilter, OrganizationSelector},
    page::{Page, PageRequest},
    permission::Reach,
    text,
};

/// Ids per statement, a power of two far below both engines' bound of parameters.
const IDS_PER_STATEMENT: usize = 1024;

/// Organizations that exist for a caller.
fn in_reach(reach: Reach) -> Select<row::Entity> {
    match reach {
        Reach::All => row::Entity::find(),
        Reach::Only(organization) => row::Entity::find().filter(Column::Id.eq(organization.to_string())),
    }
}

async fn one(db: &impl ConnectionTrait, select: Select<row::Entity>) -> Result<Option<Organization>, StoreError> {
    let found = db.query_one(select.as_query()).await?;
    found.as_ref().map(rows::read::<row::Model, Organization>).transpose()
}

fn selected(reach: Reach, selector: &OrganizationSelector) -> Select<row::Entity> {
    match selector {
        OrganizationSelector::Id(id) => in_reach(reach).filter(Column::Id.eq(id.to_string())),
        OrganizationSelector::Slug(slug) => in_reach(reach).filter(Column::Slug.eq(slug)),
        OrganizationSelector::Email(email) => in_reach(reach).filter(Column::Email.eq(email)),
    }
}

/// The organization that is named by id, slug or email.
pub async fn find(
    db: &impl ConnectionTrait,
    reach: Reach,
    selector: &OrganizationSelector,
) -> Result<Option<Organization>, StoreError> {
    one(db, selected(reach, selector)).await
}

/// The organization with this id.
pub async fn find_by_id(
    db: &impl ConnectionTrait,
    reach: Reach,
    id: OrganizationId,
) -> Result<Option<Organization>, StoreError> {
    find(db, reach, &OrganizationSelector::Id(id)).await
}

/// The organization with this id, locked until the transaction ends.
pub async fn find_locked(
    db: &impl ConnectionTrait,
    reach: Reach,
    id: OrganizationId,
) -> Result<Option<Organization>, StoreError> {
    engine::line_up(db, id, true).await?;
    one(db, selected(reach, &OrganizationSelector::Id(id)).lock_exclusive()).await
}

/// The organization with this id, which nobody changes or deletes until the transaction ends; others may share it.
pub async fn find_shared(
    db: &impl ConnectionTrait,
    reach: Reach,
    id: OrganizationId,
) -> Result<Option<Organization>, StoreError> {
    engine::line_up(db, id, false).await?;
    one(db, selected(reach, &OrganizationSelector::Id(id)).lock_shared()).await
}

/// Those of these organizations that exist, each as [`find_shared`] would find it, or, `alone`, as [`find_locked`]
/// would. `ids` must ascend, so that two that ask do not wait for each other in a circle.
pub async fn list_locked(
    db: &impl ConnectionTrait,
    ids: &[OrganizationId],
    alone: bool,
) -> Result<Vec<Organization>, StoreError> {
    let mut organizations = Vec::with_capacity(ids.len());
    engine::line_up_all(db, ids, alone).await?;
    for chunk in rows::in_powers_of_two(ids, IDS_PER_STATEMENT) {
        let select = row::Entity::find()
            .filter(Column::Id.is_in(chunk.iter().map(ToString::to_string)))
            .order_by_asc(Column::Id);
        let select = if alone { select.lock_exclusive() } else { select.lock_shared() };
        for found in db.query_all(select.as_query()).await? {
            organizations.push(rows::read::<row::Model, Organization>(&found)?);
        }
    }
    Ok(organizations)
}

/// Those of these organizations that exist; none of them can be deleted until the transaction ends.
/// `ids` must ascend, so that two that ask do not wait for each other in a circle.
pub async fn list_existing_shared(
    db: &impl ConnectionTrait,
    ids: &[OrganizationId],
) -> Result<HashSet<OrganizationId>, StoreError> {
    let mut existing = HashSet::new();
    for chunk in ids.chunks(IDS_PER_STATEMENT) {
        let select = row::Entity::find()
            .select_only()
            .column(Column::Id)
            .filter(Column::Id.is_in(chunk.iter().map(ToString::to_string)))
            .order_by_asc(Column::Id)
            .lock(LockType::KeyShare);
        for found in db.query_all(select.as_query()).await? {
            let id: String = found.try_get("", "id")?;
            existing.extend(OrganizationId::parse(&id));
        }
    }
    Ok(existing)
}

/// The organization that was created with this request id.
pub async fn find_by_request_id(
    db: &impl ConnectionTrait,
    request_id: RecordId,
) -> Result<Option<Organization>, StoreError> {
    one(db, row::Entity::find().filter(Column::RequestId.eq(request_id.to_string()))).await
}

/// Writes a new organization. `Conflict` where its slug, email or request id is taken.
pub async fn insert(
    db: &impl ConnectionTrait,
    organization: &Organization,
    request_id: Option<RecordId>,
) -> Result<(), StoreError> {
    let mut model = settings(organization);
    model.id = Set(organization.id.to_string());
    model.create_time_us = Set(organization.create_time.micros());
    model.request_id = Set(request_id.map(|id| id.to_string()));
    row::Entity::insert(model).exec_without_returning(db).await?;
    Ok(())
}

/// Writes the settings of an organization, its active flag among them; says whether there was such a one.
/// `Conflict` where the slug or email is taken.
pub async fn update(db: &impl ConnectionTrait, organization: &Organization) -> Result<bool, StoreError> {
    let result = row::Entity::update_many()
        .set(settings(organization))
        .filter(Column::Id.eq(organization.id.to_string()))
        .exec(db)
        .await?;
    Ok(result.rows_affected > 0)
}

fn settings(organization: &Organization) -> row::ActiveModel {
    row::ActiveModel {
        name: Set(organization.name.clone()),
        name_folded: Set(text::fold(&organization.name)),
        slug: Set(organization.slug.clone()),
        email: Set(organization.email.clone()),
        plan: Set(organization.plan.as_str().to_owned()),
        active: Set(organization.active),
        max_keys: Set(organization.max_keys),
        rate_limits: Set(rows::encode_rate_limits(&organization.rate_limits)),
        monthly_quota: Set(organization.monthly_quota),
        secret_prefix: Set(organization.secret_prefix.as_str().to_owned()),
        metadata: Set(rows::encode_json(&organization.metadata)),
        update_time_us: Set(organization.update_time.micros()),
        etag: Set(organization.etag),
        ..Default::default()
    }
}

/// One page of organizations, newest first.
pub async fn list(
    db: &impl ConnectionTrait,
    reach: Reach,
    filter: &OrganizationFilter,
    page: &PageRequest,
) -> Result<Page<Organization>, StoreError> {
    let mut select = in_reach(reach);
    if let Some(active) = filter.active {
        select = select.filter(Column::Active.eq(active));
    }
    if let Some(part) = &filter.name_contains {
        select = select.filter(Expr::col(Column::NameFolded).like(contains(part)));
    }
    if let Some(after) = &page.after {
        let row = Expr::tuple([Expr::col(Column::CreateTimeUs), Expr::col(Column::Id)]);
        select = select.filter(row.lt(Expr::tuple([after.sort.into(), after.id.clone().into()])));
    }
    let select = select.order_by_desc(Column::CreateTimeUs).order_by_desc(Column::Id).limit(page.size + 1);
    let found = db.query_all(select.as_query()).await?;
    rows::page::<row::Model, Organization>(found, page.size, rows::by_creation)
}

/// Deletes an organization; says whether there was one. Refused by the database while it has keys.
pub async fn delete(db: &impl ConnectionTrait, id: OrganizationId) -> Result<bool, StoreError> {
    let result = row::Entity::delete_by_id(id.to_string()).exec(db).await?;
    Ok(result.rows_affected > 0)
}
