//! A row of `api_key_usage`: one recorded request, and how many it stands for. Empty text stands for "not known".

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "api_key_usage")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub key_id: String,
    pub organization_id: String,
    pub time_us: i64,
    pub endpoint: String,
    pub method: String,
    pub status_code: Option<i64>,
    pub outcome: String,
    pub response_time_us: Option<i64>,
    pub tokens: i64,
    pub cost_micro_usd: i64,
    pub client_address: String,
    pub user_agent: String,
    pub error_code: String,
    pub error_message: String,
    pub request_id: String,
    pub tags: String,
    pub weight: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
