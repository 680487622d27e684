//! A row of `usage_spools`: how far one spool of usage has been written.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "usage_spools")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub spool_id: String,
    pub applied_number: i64,
    pub update_time_us: i64,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
