//! Queries over `organizations` for an import: which of many are here, and which names of theirs are taken.
//! Must not write; a new organization is written as any other, by `organizations.rs`.

use sea_orm::{ColumnTrait as _, ConnectionTrait, EntityTrait, QueryFilter as _, QuerySelect as _, QueryTrait as _};

use super::{StoreError, entity::organization as row, entity::organization::Column, rows, rows::in_powers_of_two};
use crate::domain::{ids::OrganizationId, organization::Organization};

/// Values per look-up, a power of two.
const VALUES_PER_STATEMENT: usize = 1024;

/// Names that an organization has, and no other can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub id: OrganizationId,
    pub slug: String,
    pub email: Option<String>,
}

/// Those of these organizations that exist.
pub async fn list_by_ids(db: &impl ConnectionTrait, ids: &[OrganizationId]) -> Result<Vec<Organization>, StoreError> {
    let mut organizations = Vec::with_capacity(ids.len());
    for chunk in in_powers_of_two(ids, VALUES_PER_STATEMENT) {
        let select = row::Entity::find().filter(Column::Id.is_in(chunk.iter().map(ToString::to_string)));
        for found in db.query_all(select.as_query()).await? {
            organizations.push(rows::read::<row::Model, Organization>(&found)?);
        }
    }
    Ok(organizations)
}

/// The organizations that have one of these slugs.
pub async fn list_by_slugs(db: &impl ConnectionTrait, slugs: &[String]) -> Result<Vec<Names>, StoreError> {
    list_by(db, Column::Slug, slugs).await
}

/// The organizations that have one of these email addresses.
pub async fn list_by_emails(db: &impl ConnectionTrait, emails: &[String]) -> Result<Vec<Names>, StoreError> {
    list_by(db, Column::Email, emails).await
}

async fn list_by(db: &impl ConnectionTrait, column: Column, values: &[String]) -> Result<Vec<Names>, StoreError> {
    let mut names = Vec::new();
    for chunk in in_powers_of_two(values, VALUES_PER_STATEMENT) {
        let select = row::Entity::find()
            .select_only()
            .columns([Column::Id, Column::Slug, Column::Email])
            .filter(column.is_in(chunk));
        for found in db.query_all(select.as_query()).await? {
            let id: String = found.try_get("", "id")?;
            let corrupt = |_| StoreError::Corrupt(format!("organizations row {id:?}, column id"));
            names.push(Names {
                id: OrganizationId::parse(&id).map_err(corrupt)?,
                slug: found.try_get("", "slug")?,
                email: found.try_get("", "email")?,
            });
        }
    }
    Ok(names)
}
