//! What the spools of usage need: `usage_spools`, which notes for each spool the last segment that was written, so
//! that a segment that is tried again counts once; and the weight of a row of detail, how many events it stands for.

use sea_orm_migration::prelude::*;

use crate::columns::{count, number, text};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(usage_spools()).await?;
        let mut weight = number("weight");
        weight.default(1);
        manager.alter_table(Table::alter().table("api_key_usage").add_column(weight).to_owned()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("api_key_usage").drop_column("weight").to_owned()).await?;
        manager.drop_table(Table::drop().table("usage_spools").to_owned()).await
    }
}

fn usage_spools() -> TableCreateStatement {
    Table::create()
        .table("usage_spools")
        .col(text("spool_id").primary_key())
        .col(count("applied_number"))
        .col(number("update_time_us"))
        .to_owned()
}
