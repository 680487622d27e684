//! `began_time_us` of `imports`: when the present pass over a table began. Keys that the source has issued since may not
//! be here yet, and so their past requests must wait.

use sea_orm_migration::prelude::*;

use crate::columns::number_or_null;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut column = number_or_null("began_time_us");
        manager.alter_table(Table::alter().table("imports").add_column(&mut column).to_owned()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.alter_table(Table::alter().table("imports").drop_column("began_time_us").to_owned()).await
    }
}
