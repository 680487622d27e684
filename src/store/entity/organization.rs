//! A row of `organizations`. JSON columns are text; `store/rows.rs` reads them.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "organizations")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    pub name_folded: String,
    pub slug: String,
    pub email: Option<String>,
    pub plan: String,
    pub active: bool,
    pub max_keys: i64,
    pub rate_limits: String,
    pub monthly_quota: i64,
    pub secret_prefix: String,
    pub metadata: String,
    pub create_time_us: i64,
    pub update_time_us: i64,
    pub request_id: Option<String>,
    pub etag: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
