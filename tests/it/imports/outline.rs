//! What keys without a digest look like is asked again once it is a little old, and nobody waits for that. Here the
//! database does not answer this one question: the function that it uses waits for a lock that the test holds. On
//! PostgreSQL alone, since SQLite has no such function and no such lock. Invariant: an unknown secret is answered while
//! the question waits, as long as what was known before may serve.

use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{Environment, ImportKey, ImportKeysRequest, Outcome};
use sea_orm::ConnectionTrait as _;

use super::world::World;
use crate::harness::{Engine, TestDatabase, wait_until};

/// A function in the place of the database's own, which waits for the lock of the test.
const STALL: &str = "
    CREATE FUNCTION public.char_length(given text) RETURNS integer LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_advisory_xact_lock_shared(4711);
        RETURN pg_catalog.char_length(given);
    END $$;
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
    END $$";

/// How many statements wait for the lock.
const WAITING: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn import_slow(world: &World, secret: &str) {
    let key = ImportKey {
        material: Some(Material::Bcrypt(bcrypt::hash(secret, 4).expect("a hash"))),
        name: "A slow key".to_owned(),
        environment: Environment::Live.into(),
        look_up_id: secret[..12].to_owned(),
        ..Default::default()
    };
    let (organization_id, source) = (world.organization.clone(), "portal".to_owned());
    let request = ImportKeysRequest { organization_id, source, keys: vec![key], ..Default::default() };
    world.server.keys().import_keys(request).await.expect("an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_what_slow_keys_look_like_to_be_asked_again() {
    let mut world = World::new(TestDatabase::new(Engine::Postgres).await, "acme").await;
    let secret = world.keys.text("slow");
    import_slow(&world, &secret).await;
    world.database.raw_sql(STALL).await;
    // Its new connections find that function.
    world.server.restart().await;
    let strangers = world.keys.texts("stranger", 10_000);
    let mut strangers = strangers.iter();
    let mut next = || strangers.next().expect("there are more than fit into the patience of a test");
    assert_eq!(world.outcome(next()).await, Outcome::NotFound, "what they look like is known by now");

    let held = world.database.connect().await;
    held.execute_unprepared("SELECT pg_advisory_lock(4711)").await.expect("the lock");
    wait_until("the question to be asked again, behind the answers", async || {
        assert_eq!(world.outcome(next()).await, Outcome::NotFound);
        world.database.query_i64(WAITING).await == 1
    })
    .await;
    assert_eq!(world.outcome(next()).await, Outcome::NotFound);
    assert_eq!(world.database.query_i64(WAITING).await, 1, "and it is not answered yet");

    held.close().await.expect("the lock is let go");
    wait_until("the question to be answered", async || world.database.query_i64(WAITING).await == 0).await;
    assert_eq!(world.outcome(next()).await, Outcome::NotFound);
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
}
