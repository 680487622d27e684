//! A row of `imports`: one table of a source that keys, organizations or usage came from, and how far it has come.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "imports")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub organization_id: String,
    pub source: String,
    pub table_name: String,
    pub kind: String,
    pub state: String,
    pub position: String,
    pub created_count: i64,
    pub existing_count: i64,
    pub refused_count: i64,
    pub create_time_us: i64,
    pub update_time_us: i64,
    pub verified_time_us: Option<i64>,
    pub fingerprint: String,
    pub contracted: String,
    pub began_time_us: Option<i64>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
