//! The change feed: `key_changes`, one row per change that can alter a verification, in commit order.
//! Triggers write it, so that a plain `UPDATE api_keys SET status = 'revoked'` reaches every replica too.
//! Invariant: a revision comes from the one row of `change_counter`, updated in the change's transaction.
//! Its row lock makes revisions appear in commit order; a sequence would hand them out before commit, and a
//! follower would skip rows for ever. Creating keys, spending credits and recording use touch no trigger.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{count, index, number, text, text_or_empty};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(change_counter()).await?;
        manager.create_table(key_changes()).await?;
        manager.create_index(index("key_changes_by_time", "key_changes", &["time_us"], false)).await?;
        let first = Query::insert()
            .into_table("change_counter")
            .columns(["id", "revision"])
            .values_panic([1.into(), 0.into()])
            .to_owned();
        manager.exec_stmt(first).await?;
        let triggers = match manager.get_database_backend() {
            DbBackend::Postgres => POSTGRES_UP,
            _ => SQLITE_UP,
        };
        manager.get_connection().execute_unprepared(triggers).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let triggers = match manager.get_database_backend() {
            DbBackend::Postgres => POSTGRES_DOWN,
            _ => SQLITE_DOWN,
        };
        manager.get_connection().execute_unprepared(triggers).await?;
        for table in ["key_changes", "change_counter"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

fn change_counter() -> TableCreateStatement {
    Table::create()
        .table("change_counter")
        .col(number("id").primary_key())
        .col(count("revision"))
        .col(text_or_empty("epoch"))
        .to_owned()
}

/// `kind` is `key` or `organization`; a key's row carries the digest under which caches hold it.
fn key_changes() -> TableCreateStatement {
    Table::create()
        .table("key_changes")
        .col(number("revision").primary_key())
        .col(text("kind"))
        .col(text_or_empty("key_id"))
        .col(text("organization_id"))
        .col(ColumnDef::new("digest").binary().null())
        .col(number("time_us"))
        .to_owned()
}

const POSTGRES_UP: &str = "
CREATE FUNCTION keystead_record_change(kind text, key_id text, organization_id text, digest bytea)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE next bigint;
BEGIN
    UPDATE change_counter SET revision = revision + 1 WHERE id = 1 RETURNING revision INTO next;
    INSERT INTO key_changes (revision, kind, key_id, organization_id, digest, time_us)
    VALUES (next, kind, key_id, organization_id, digest,
            (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
    PERFORM pg_notify('keystead_changes', next::text);
END $$;

CREATE FUNCTION keystead_key_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM keystead_record_change('key', OLD.id, OLD.organization_id, OLD.digest);
    IF TG_OP = 'UPDATE' AND NEW.digest IS DISTINCT FROM OLD.digest AND NEW.digest IS NOT NULL THEN
        PERFORM keystead_record_change('key', NEW.id, NEW.organization_id, NEW.digest);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION keystead_organization_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM keystead_record_change('organization', '', OLD.id, NULL);
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_changed AFTER UPDATE ON api_keys FOR EACH ROW
WHEN ((OLD.organization_id, OLD.name, OLD.digest, OLD.scheme, OLD.stored_hash, OLD.look_up_id,
       OLD.environment, OLD.status, OLD.scopes, OLD.metadata, OLD.owner_id, OLD.allowed_cidrs,
       OLD.rate_limits, OLD.credits_remaining IS NULL, OLD.credits_refill_amount,
       OLD.credits_refill_interval, OLD.expire_time_us, OLD.successor_id, OLD.counter_id)
   IS DISTINCT FROM
      (NEW.organization_id, NEW.name, NEW.digest, NEW.scheme, NEW.stored_hash, NEW.look_up_id,
       NEW.environment, NEW.status, NEW.scopes, NEW.metadata, NEW.owner_id, NEW.allowed_cidrs,
       NEW.rate_limits, NEW.credits_remaining IS NULL, NEW.credits_refill_amount,
       NEW.credits_refill_interval, NEW.expire_time_us, NEW.successor_id, NEW.counter_id))
EXECUTE FUNCTION keystead_key_changed();

CREATE TRIGGER api_keys_deleted AFTER DELETE ON api_keys FOR EACH ROW
EXECUTE FUNCTION keystead_key_changed();

CREATE TRIGGER organizations_changed AFTER UPDATE ON organizations FOR EACH ROW
WHEN ((OLD.active, OLD.rate_limits, OLD.monthly_quota)
   IS DISTINCT FROM (NEW.active, NEW.rate_limits, NEW.monthly_quota))
EXECUTE FUNCTION keystead_organization_changed();

CREATE TRIGGER organizations_deleted AFTER DELETE ON organizations FOR EACH ROW
EXECUTE FUNCTION keystead_organization_changed();
";

const POSTGRES_DOWN: &str = "
DROP TRIGGER organizations_deleted ON organizations;
DROP TRIGGER organizations_changed ON organizations;
DROP TRIGGER api_keys_deleted ON api_keys;
DROP TRIGGER api_keys_changed ON api_keys;
DROP FUNCTION keystead_organization_changed();
DROP FUNCTION keystead_key_changed();
DROP FUNCTION keystead_record_change(text, text, text, bytea);
";

/// Runs in whatever `sqlite3` shell an operator has, so it uses nothing newer than version 3.15.
const SQLITE_UP: &str = "
CREATE TRIGGER api_keys_changed AFTER UPDATE ON api_keys FOR EACH ROW
WHEN (OLD.organization_id, OLD.name, OLD.digest, OLD.scheme, OLD.stored_hash, OLD.look_up_id,
      OLD.environment, OLD.status, OLD.scopes, OLD.metadata, OLD.owner_id, OLD.allowed_cidrs,
      OLD.rate_limits, OLD.credits_remaining IS NULL, OLD.credits_refill_amount,
      OLD.credits_refill_interval, OLD.expire_time_us, OLD.successor_id, OLD.counter_id)
  IS NOT
     (NEW.organization_id, NEW.name, NEW.digest, NEW.scheme, NEW.stored_hash, NEW.look_up_id,
      NEW.environment, NEW.status, NEW.scopes, NEW.metadata, NEW.owner_id, NEW.allowed_cidrs,
      NEW.rate_limits, NEW.credits_remaining IS NULL, NEW.credits_refill_amount,
      NEW.credits_refill_interval, NEW.expire_time_us, NEW.successor_id, NEW.counter_id)
BEGIN
    UPDATE change_counter SET revision = revision + 1 WHERE id = 1;
    INSERT INTO key_changes (revision, kind, key_id, organization_id, digest, time_us)
    SELECT revision, 'key', OLD.id, OLD.organization_id, OLD.digest, CAST(strftime('%s', 'now') AS INTEGER) * 1000000
    FROM change_counter WHERE id = 1;
END;

CREATE TRIGGER api_keys_digest_changed AFTER UPDATE OF digest ON api_keys FOR EACH ROW
WHEN NEW.digest IS NOT OLD.digest AND NEW.digest IS NOT NULL
BEGIN
    UPDATE change_counter SET revision = revision + 1 WHERE id = 1;
    INSERT INTO key_changes (revision, kind, key_id, organization_id, digest, time_us)
    SELECT revision, 'key', NEW.id, NEW.organization_id, NEW.digest, CAST(strftime('%s', 'now') AS INTEGER) * 1000000
    FROM change_counter WHERE id = 1;
END;

CREATE TRIGGER api_keys_deleted AFTER DELETE ON api_keys FOR EACH ROW
BEGIN
    UPDATE change_counter SET revision = revision + 1 WHERE id = 1;
    INSERT INTO key_changes (revision, kind, key_id, organization_id, digest, time_us)
    SELECT revision, 'key', OLD.id, OLD.organization_id, OLD.digest, CAST(strftime('%s', 'now') AS INTEGER) * 1000000
    FROM change_counter WHERE id = 1;
END;

CREATE TRIGGER organizations_changed AFTER UPDATE ON organizations FOR EACH ROW
WHEN (OLD.active, OLD.rate_limits, OLD.monthly_quota) IS NOT (NEW.active, NEW.rate_limits, NEW.monthly_quota)
BEGIN
    UPDATE change_counter SET revision = revision + 1 WHERE id = 1;
    INSERT INTO key_changes (revision, kind, organization_id, time_us)
    SELECT revision, 'organization', OLD.id, CAST(strftime('%s', 'now') AS INTEGER) * 1000000
    FROM change_counter WHERE id = 1;
END;

CREATE TRIGGER organizations_deleted AFTER DELETE ON organizations FOR EACH ROW
BEGIN
    UPDATE change_counter SET revision = revision + 1 WHERE id = 1;
    INSERT INTO key_changes (revision, kind, organization_id, time_us)
    SELECT revision, 'organization', OLD.id, CAST(strftime('%s', 'now') AS INTEGER) * 1000000
    FROM change_counter WHERE id = 1;
END;
";

const SQLITE_DOWN: &str = "
DROP TRIGGER organizations_deleted;
DROP TRIGGER organizations_changed;
DROP TRIGGER api_keys_deleted;
DROP TRIGGER api_keys_digest_changed;
DROP TRIGGER api_keys_changed;
";
