//! `decoded_digest`: where the text of an imported secret reads as a SHA-256 digest, in hex or base64, the SHA-256 of
//! the 32 bytes that it says. These bytes themselves would be the secret. A key that comes with that very hash is
//! refused, since its stored hash is a secret.

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut column = ColumnDef::new("decoded_digest").binary().null().to_owned();
        manager.alter_table(Table::alter().table("api_keys").add_column(&mut column).to_owned()).await?;
        manager.get_connection().execute_unprepared(INDEX).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared("DROP INDEX api_keys_decoded_digest").await?;
        manager.alter_table(Table::alter().table("api_keys").drop_column("decoded_digest").to_owned()).await
    }
}

const INDEX: &str = "
CREATE INDEX api_keys_decoded_digest ON api_keys (decoded_digest) WHERE decoded_digest IS NOT NULL;
";
