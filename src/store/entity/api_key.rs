//! A row of `api_keys`. JSON columns are text; `store/rows.rs` reads them.

use sea_orm::entity::prelude::*;

#[derive(Clone, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_keys")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub organization_id: String,
    pub name: String,
    pub name_folded: String,
    pub digest: Option<Vec<u8>>,
    pub scheme: String,
    pub stored_hash: Option<String>,
    pub decoded_digest: Option<Vec<u8>>,
    pub look_up_id: Option<String>,
    pub prefix: String,
    pub hint: String,
    pub environment: String,
    pub status: String,
    pub scopes: String,
    pub metadata: String,
    pub owner_id: String,
    pub allowed_cidrs: String,
    pub rate_limits: String,
    pub credits_remaining: Option<i64>,
    pub credits_refill_amount: i64,
    pub credits_refill_interval: String,
    pub credits_refill_time_us: Option<i64>,
    pub create_time_us: i64,
    pub update_time_us: i64,
    pub expire_time_us: Option<i64>,
    pub expire_told_us: i64,
    pub last_used_time_us: Option<i64>,
    pub request_count: i64,
    pub import_request_count: i64,
    pub created_by: String,
    pub revoke_time_us: Option<i64>,
    pub revoked_by: String,
    pub revocation_reason: String,
    pub revocation_note: String,
    pub rotated_from_id: Option<String>,
    pub successor_id: Option<String>,
    pub counter_id: String,
    pub import_id: Option<String>,
    pub source_id: Option<String>,
    pub request_id: Option<String>,
    pub etag: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl std::fmt::Debug for Model {
    /// The type's name alone: the row holds what must not be logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}
