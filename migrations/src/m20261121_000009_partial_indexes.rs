//! Indexes hold the rows that are looked for through them, and no others: a plain key then costs half the entries, and
//! an audit event stands in those of the lists once it is sealed, not before and again after.
//! Changes no data.

use sea_orm_migration::prelude::*;

use crate::columns::index;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(UP).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(DOWN).await?;
        for (name, table, columns, unique) in WHOLE {
            manager.create_index(index(name, table, columns, *unique)).await?;
        }
        Ok(())
    }
}

const UP: &str = "
DROP INDEX api_keys_by_expiry;
CREATE INDEX api_keys_by_expiry ON api_keys (expire_time_us) WHERE expire_time_us IS NOT NULL;
DROP INDEX api_keys_by_successor;
CREATE INDEX api_keys_by_successor ON api_keys (successor_id) WHERE successor_id IS NOT NULL;
DROP INDEX api_keys_by_look_up_id;
CREATE INDEX api_keys_by_look_up_id ON api_keys (look_up_id) WHERE look_up_id IS NOT NULL;
DROP INDEX api_keys_by_import;
CREATE INDEX api_keys_by_import ON api_keys (import_id, source_id) WHERE import_id IS NOT NULL;
DROP INDEX api_keys_request_id;
CREATE UNIQUE INDEX api_keys_request_id ON api_keys (organization_id, request_id) WHERE request_id IS NOT NULL;
DROP INDEX api_keys_by_refill;
CREATE INDEX api_keys_by_refill ON api_keys (credits_refill_time_us)
    WHERE successor_id IS NULL AND credits_refill_time_us IS NOT NULL;
DROP INDEX audit_events_unsealed;
CREATE INDEX audit_events_unsealed ON audit_events (time_us, id) WHERE sequence IS NULL;
DROP INDEX audit_events_by_organization;
CREATE INDEX audit_events_by_organization ON audit_events (organization_id, sequence) WHERE sequence IS NOT NULL;
DROP INDEX audit_events_by_target;
CREATE INDEX audit_events_by_target ON audit_events (target_id, sequence) WHERE sequence IS NOT NULL;
DROP INDEX audit_events_by_actor;
CREATE INDEX audit_events_by_actor ON audit_events (actor_key_id, sequence) WHERE sequence IS NOT NULL;
DROP INDEX audit_events_by_action;
CREATE INDEX audit_events_by_action ON audit_events (action, sequence) WHERE sequence IS NOT NULL;
DROP INDEX audit_events_by_time;
CREATE INDEX audit_events_by_time ON audit_events (time_us, sequence) WHERE sequence IS NOT NULL;
";

const DOWN: &str = "
DROP INDEX api_keys_by_expiry;
DROP INDEX api_keys_by_successor;
DROP INDEX api_keys_by_look_up_id;
DROP INDEX api_keys_by_import;
DROP INDEX api_keys_request_id;
DROP INDEX api_keys_by_refill;
CREATE INDEX api_keys_by_refill ON api_keys (credits_refill_time_us) WHERE successor_id IS NULL;
DROP INDEX audit_events_unsealed;
DROP INDEX audit_events_by_organization;
DROP INDEX audit_events_by_target;
DROP INDEX audit_events_by_actor;
DROP INDEX audit_events_by_action;
DROP INDEX audit_events_by_time;
";

/// The indexes as they were: name, table, columns, and whether it is unique.
const WHOLE: &[(&str, &str, &[&str], bool)] = &[
    ("api_keys_by_expiry", "api_keys", &["expire_time_us"], false),
    ("api_keys_by_successor", "api_keys", &["successor_id"], false),
    ("api_keys_by_look_up_id", "api_keys", &["look_up_id"], false),
    ("api_keys_by_import", "api_keys", &["import_id", "source_id"], false),
    ("api_keys_request_id", "api_keys", &["organization_id", "request_id"], true),
    ("audit_events_unsealed", "audit_events", &["hash", "time_us", "id"], false),
    ("audit_events_by_organization", "audit_events", &["organization_id", "sequence"], false),
    ("audit_events_by_target", "audit_events", &["target_id", "sequence"], false),
    ("audit_events_by_actor", "audit_events", &["actor_key_id", "sequence"], false),
    ("audit_events_by_action", "audit_events", &["action", "sequence"], false),
    ("audit_events_by_time", "audit_events", &["time_us", "sequence"], false),
];
