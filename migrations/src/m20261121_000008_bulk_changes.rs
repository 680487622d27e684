//! Many keys that change in one statement, on PostgreSQL: a change row each, and the counter updated once.
//! The row triggers of the change feed update `change_counter` once for each key. Within one transaction PostgreSQL has
//! to walk over every version of that row again, so that 20,000 keys took 5 s and 100,000 would take minutes.
//! A transaction that sets `keystead.bulk` gets one trigger for each statement in their place. Whoever does not know of
//! it, an operator's shell or an older server, changes nothing of the feed. SQLite updates the counter in place.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Postgres {
            manager.get_connection().execute_unprepared(UP).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Postgres {
            manager.get_connection().execute_unprepared(DOWN).await?;
        }
        Ok(())
    }
}

const UP: &str = "
CREATE FUNCTION keystead_keys_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH changed AS MATERIALIZED (
        SELECT b.id, b.organization_id, b.digest
        FROM keys_before AS b JOIN keys_after AS a ON a.id = b.id
        WHERE (b.organization_id, b.name, b.digest, b.scheme, b.stored_hash, b.look_up_id,
       b.environment, b.status, b.scopes, b.metadata, b.owner_id, b.allowed_cidrs,
       b.rate_limits, b.credits_remaining IS NULL, b.credits_refill_amount,
       b.credits_refill_interval, b.expire_time_us, b.successor_id, b.counter_id)
   IS DISTINCT FROM
      (a.organization_id, a.name, a.digest, a.scheme, a.stored_hash, a.look_up_id,
       a.environment, a.status, a.scopes, a.metadata, a.owner_id, a.allowed_cidrs,
       a.rate_limits, a.credits_remaining IS NULL, a.credits_refill_amount,
       a.credits_refill_interval, a.expire_time_us, a.successor_id, a.counter_id)
        UNION ALL
        SELECT a.id, a.organization_id, a.digest
        FROM keys_before AS b JOIN keys_after AS a ON a.id = b.id
        WHERE a.digest IS DISTINCT FROM b.digest AND a.digest IS NOT NULL
    ), counter AS (
        UPDATE change_counter SET revision = revision + (SELECT count(*) FROM changed)
        WHERE id = 1 AND EXISTS (SELECT 1 FROM changed) RETURNING revision
    )
    INSERT INTO key_changes (revision, kind, key_id, organization_id, digest, time_us)
    SELECT counter.revision - row_number() OVER () + 1, 'key', changed.id, changed.organization_id, changed.digest,
           (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    FROM changed, counter;
    PERFORM pg_notify('keystead_changes', revision::text) FROM change_counter WHERE id = 1;
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_changed_together AFTER UPDATE ON api_keys
REFERENCING OLD TABLE AS keys_before NEW TABLE AS keys_after FOR EACH STATEMENT
WHEN (current_setting('keystead.bulk', true) = 'on')
EXECUTE FUNCTION keystead_keys_changed();

DROP TRIGGER api_keys_changed ON api_keys;
CREATE TRIGGER api_keys_changed AFTER UPDATE ON api_keys FOR EACH ROW
WHEN (current_setting('keystead.bulk', true) IS DISTINCT FROM 'on' AND
      (OLD.organization_id, OLD.name, OLD.digest, OLD.scheme, OLD.stored_hash, OLD.look_up_id,
       OLD.environment, OLD.status, OLD.scopes, OLD.metadata, OLD.owner_id, OLD.allowed_cidrs,
       OLD.rate_limits, OLD.credits_remaining IS NULL, OLD.credits_refill_amount,
       OLD.credits_refill_interval, OLD.expire_time_us, OLD.successor_id, OLD.counter_id)
   IS DISTINCT FROM
      (NEW.organization_id, NEW.name, NEW.digest, NEW.scheme, NEW.stored_hash, NEW.look_up_id,
       NEW.environment, NEW.status, NEW.scopes, NEW.metadata, NEW.owner_id, NEW.allowed_cidrs,
       NEW.rate_limits, NEW.credits_remaining IS NULL, NEW.credits_refill_amount,
       NEW.credits_refill_interval, NEW.expire_time_us, NEW.successor_id, NEW.counter_id))
EXECUTE FUNCTION keystead_key_changed();
";

const DOWN: &str = "
DROP TRIGGER api_keys_changed ON api_keys;
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

DROP TRIGGER api_keys_changed_together ON api_keys;
DROP FUNCTION keystead_keys_changed();
";
