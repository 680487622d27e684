//! What verifications read of `api_keys`: records by digest, many at once, and of each row only what a verification
//! needs. Invariant: a digest that is not in the answer belongs to no key; a row that cannot be read is in it as
//! `Corrupt`, and refuses its own key alone.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DbErr, EntityTrait, QueryFilter as _, QueryResult, QuerySelect as _,
    QueryTrait as _,
};

use super::{
    StoreError,
    entity::api_key::{Column, Entity},
    rows,
};
use crate::domain::{digest::Digest, record::KeyRecord};

/// The most digests of one look-up.
pub const DIGESTS_MAX: usize = 256;

/// The columns of a record; `rows::key_record` reads them by their place here.
const COLUMNS: [Column; 17] = [
    Column::Digest,
    Column::Id,
    Column::OrganizationId,
    Column::CounterId,
    Column::SuccessorId,
    Column::CreditsRemaining,
    Column::Environment,
    Column::Status,
    Column::ExpireTimeUs,
    Column::Name,
    Column::OwnerId,
    Column::Scopes,
    Column::Metadata,
    Column::AllowedCidrs,
    Column::RateLimits,
    Column::CreditsRefillInterval,
    Column::ImportId,
];

/// One key that was found, or what of its row cannot be read.
pub type Found = Result<KeyRecord, StoreError>;

/// The records with these digests, up to [`DIGESTS_MAX`], in no order.
pub async fn list_by_digests(
    db: &impl ConnectionTrait,
    digests: &[Digest],
) -> Result<Vec<(Digest, Found)>, StoreError> {
    let select = Entity::find()
        .select_only()
        .columns(COLUMNS)
        .filter(Column::Digest.is_in(padded(digests).map(|digest| digest.as_bytes().to_vec())));
    let rows = db.query_all(select.as_query()).await?;
    rows.iter().map(|row| Ok((digest_of(row)?, rows::key_record(row)))).collect()
}

/// The digests, with the last one repeated up to the next power of two: few lengths mean few statements to prepare.
fn padded(digests: &[Digest]) -> impl Iterator<Item = &Digest> {
    let more = digests.len().next_power_of_two() - digests.len();
    digests.iter().chain(digests.last().into_iter().cycle().take(more))
}

fn digest_of(row: &QueryResult) -> Result<Digest, StoreError> {
    let bytes: Vec<u8> = row.try_get_by_index(0)?;
    let digest = Digest::from_bytes(&bytes);
    digest.ok_or_else(|| StoreError::from(DbErr::Type("a digest that was asked for is not one".to_owned())))
}
