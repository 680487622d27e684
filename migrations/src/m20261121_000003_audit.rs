//! `audit_events`: one row per change to an organization or key, written in the change's own transaction.
//! `sequence`, `previous_hash` and `hash` are empty until the sealing job links the row into the chain;
//! the chain's head stands in `service_state`. Rows outlive what they speak of, so they reference nothing.

use sea_orm_migration::prelude::*;

use crate::columns::{index, number, number_or_null, text, text_or_empty};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(audit_events()).await?;
        for statement in indexes() {
            manager.create_index(statement).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("audit_events").to_owned()).await?;
        let head = Query::delete().from_table("service_state").and_where(Expr::col("name").eq("audit_head")).to_owned();
        manager.exec_stmt(head).await
    }
}

fn audit_events() -> TableCreateStatement {
    Table::create()
        .table("audit_events")
        .col(text("id").primary_key())
        .col(number_or_null("sequence").unique_key())
        .col(number("time_us"))
        .col(text_or_empty("actor_key_id"))
        .col(text("actor"))
        .col(text("action"))
        .col(text("target_type"))
        .col(text("target_id"))
        .col(text_or_empty("organization_id"))
        .col(text_or_empty("request_id"))
        .col(text("detail"))
        .col(text_or_empty("previous_hash"))
        .col(text_or_empty("hash"))
        .to_owned()
}

fn indexes() -> Vec<IndexCreateStatement> {
    let table = "audit_events";
    vec![
        index("audit_events_unsealed", table, &["hash", "time_us", "id"], false),
        index("audit_events_by_organization", table, &["organization_id", "sequence"], false),
        index("audit_events_by_target", table, &["target_id", "sequence"], false),
        index("audit_events_by_actor", table, &["actor_key_id", "sequence"], false),
        index("audit_events_by_action", table, &["action", "sequence"], false),
        index("audit_events_by_time", table, &["time_us", "sequence"], false),
    ]
}
