//! `VerifyKey`: what an answer may rest on. After a revocation has been answered, no verification that begins
//! later says VALID; changes by SQL are seen within seconds; FRESH and `min_revision` read the database.
//! Invariant of the history checks: what was known when a verification began is noted before it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keystead::proto::v1::{ApiKey, Consistency, Outcome, RevokeKeyRequest, VerifyKeyRequest};
use tonic::Code;

use super::{World, bad_fields, fields, presenting, refused, updating, with};
use crate::harness::{TestDatabase, store_test, wait_until};

/// The feed is polled each second; a machine that is busy with other tests gets some more.
const FEED_LAG_MAX: Duration = Duration::from_secs(10);
const REVOCATIONS: usize = 100;
const VERIFIERS: usize = 4;

struct Victim {
    id: String,
    secret: String,
    /// Set as soon as `RevokeKey` has answered.
    answered: AtomicBool,
}

/// What the tasks of a history check share.
struct History {
    victims: Vec<Victim>,
    done: AtomicBool,
    verified: AtomicUsize,
}

impl History {
    /// Verifies all victims over and over until the revocations are done. Returns what must not be.
    async fn watch(self: Arc<Self>, mut keys: super::Keys, start: usize) -> Vec<String> {
        let mut faults = Vec::new();
        while !self.done.load(Ordering::SeqCst) {
            for at in 0..self.victims.len() {
                let victim = &self.victims[(start + at) % self.victims.len()];
                let was_answered = victim.answered.load(Ordering::SeqCst);
                let outcome =
                    keys.verify_key(presenting(&victim.secret)).await.map(|answer| answer.into_inner().outcome());
                self.verified.fetch_add(1, Ordering::Relaxed);
                match outcome {
                    Ok(Outcome::Revoked) => {}
                    Ok(Outcome::Valid) if !was_answered => {}
                    other => faults.push(format!("{}: {other:?}, revocation answered: {was_answered}", victim.id)),
                }
            }
        }
        faults
    }

    /// Changes all victims over and over, so that their entries are evicted and loaded all the time.
    async fn churn(self: Arc<Self>, mut keys: super::Keys) -> Vec<String> {
        let mut faults = Vec::new();
        let mut round = 0;
        while !self.done.load(Ordering::SeqCst) {
            for victim in &self.victims {
                round += 1;
                let key = ApiKey { id: victim.id.clone(), name: format!("round {round}"), ..Default::default() };
                let result = keys.update_key(updating(key, &["name"])).await;
                if let Err(status) = result
                    && status.code() != Code::FailedPrecondition
                {
                    faults.push(format!("{}: {status:?}", victim.id));
                }
            }
        }
        faults
    }

    /// Revokes every victim, and verifies it at once.
    async fn revoke_all(self: Arc<Self>, mut keys: super::Keys) -> Vec<String> {
        let mut faults = Vec::new();
        for victim in &self.victims {
            let request = RevokeKeyRequest { key_id: victim.id.clone(), ..Default::default() };
            keys.revoke_key(request).await.expect("the key is revoked");
            victim.answered.store(true, Ordering::SeqCst);
            let answer = keys.verify_key(presenting(&victim.secret)).await.expect("an answer").into_inner();
            if answer.outcome() != Outcome::Revoked {
                faults.push(format!("{}: {:?} right after the revocation", victim.id, answer.outcome()));
            }
        }
        self.done.store(true, Ordering::SeqCst);
        faults
    }
}

store_test!(once_a_revocation_is_answered_no_verification_says_valid);
async fn once_a_revocation_is_answered_no_verification_says_valid(database: TestDatabase) {
    let world = World::new(&database).await;
    let created = world.create_many("victim", REVOCATIONS).await;
    let victims = created.into_iter().map(|(key, secret)| Victim { id: key.id, secret, answered: false.into() });
    let history =
        Arc::new(History { victims: victims.collect(), done: false.into(), verified: AtomicUsize::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for verifier in 0..VERIFIERS {
        tasks.spawn(history.clone().watch(world.server.keys(), verifier * REVOCATIONS / VERIFIERS));
    }
    tasks.spawn(history.clone().churn(world.server.keys()));
    wait_until("every key to be cached", async || {
        history.verified.load(Ordering::Relaxed) > 2 * VERIFIERS * REVOCATIONS
    })
    .await;
    tasks.spawn(history.clone().revoke_all(world.server.keys()));
    let faults: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(faults.is_empty(), "{} faults, such as {:#?}", faults.len(), &faults[..faults.len().min(5)]);
}

store_test!(fresh_reads_the_database);
async fn fresh_reads_the_database(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let fresh = with(&presenting(&secret), |request| request.consistency = Consistency::Fresh.into());
    for name in ["first", "second", "third"] {
        world.outcome(&secret).await;
        let sql = format!("UPDATE api_keys SET name = '{name}' WHERE id = '{}'", key.id);
        database.raw_sql(&sql).await;
        assert_eq!(world.ask(fresh.clone()).await.name, name);
    }
    database.raw_sql(&format!("UPDATE organizations SET active = false WHERE id = '{}'", world.organization)).await;
    assert_eq!(world.ask(fresh.clone()).await.outcome(), Outcome::OrganizationInactive);
    database.raw_sql(&format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{}'", key.id)).await;
    assert_eq!(world.ask(fresh).await.outcome(), Outcome::Revoked);
}

store_test!(an_answer_is_at_least_as_new_as_the_revision_asked_for);
async fn an_answer_is_at_least_as_new_as_the_revision_asked_for(database: TestDatabase) {
    let world = World::new(&database).await;
    let at_least =
        |secret: &str, revision: i64| VerifyKeyRequest { min_revision: Some(revision), ..presenting(secret) };
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    assert_eq!(world.ask(at_least(&secret, 0)).await.outcome(), Outcome::Valid);
    let sql = format!("UPDATE api_keys SET status = 'revoked' WHERE id = '{}'", key.id);
    database.raw_sql(&sql).await;
    let revision = database.query_i64("SELECT revision FROM change_counter WHERE id = 1").await;
    assert_eq!(world.ask(at_least(&secret, revision)).await.outcome(), Outcome::Revoked, "ahead of the feed");
    let (other, secret) = world.create(world.new_key()).await;
    let revision = world.revoke(&other.id).await.revision;
    assert_eq!(world.ask(at_least(&secret, revision)).await.outcome(), Outcome::Revoked);
    let negative = world.server.keys().verify_key(at_least(&secret, -1)).await;
    assert_eq!(bad_fields(negative), fields(&["min_revision"]));
}

store_test!(a_revision_that_cannot_be_had_is_unavailable);
async fn a_revision_that_cannot_be_had_is_unavailable(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    let request = VerifyKeyRequest { min_revision: Some(i64::MAX), ..presenting(&secret) };
    let status = world.server.keys().verify_key(request).await.expect_err("no state is that new");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let reason = tonic_types::StatusExt::get_details_error_info(&status).expect("an ErrorInfo").reason;
    let details = refused::<()>(Err(status), Code::Unavailable, &reason);
    assert!(details.retry_info().is_some());
}

store_test!(a_revocation_by_sql_is_seen_within_seconds);
async fn a_revocation_by_sql_is_seen_within_seconds(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    let begun = Instant::now();
    database.raw_sql(&format!("UPDATE api_keys SET status='revoked' WHERE id = '{}'", key.id)).await;
    wait_until("the feed to bring the revocation", async || world.outcome(&secret).await == Outcome::Revoked).await;
    assert!(begun.elapsed() < FEED_LAG_MAX, "{:?}", begun.elapsed());
    let read = world.get(&key.id).await;
    assert_eq!(read.status(), keystead::proto::v1::KeyStatus::Revoked);
    assert_eq!(read.revoked_by, "sql", "no key revoked it");
}

store_test!(an_organization_switched_off_by_sql_is_seen_within_seconds);
async fn an_organization_switched_off_by_sql_is_seen_within_seconds(database: TestDatabase) {
    let world = World::new(&database).await;
    let keys = world.create_many("mine", 3).await;
    for (_, secret) in &keys {
        assert_eq!(world.outcome(secret).await, Outcome::Valid);
    }
    let begun = Instant::now();
    let sql = format!("UPDATE organizations SET active = false WHERE id = '{}'", world.organization);
    database.raw_sql(&sql).await;
    wait_until("the feed to bring the change", async || {
        world.outcome(&keys[0].1).await == Outcome::OrganizationInactive
    })
    .await;
    assert!(begun.elapsed() < FEED_LAG_MAX, "{:?}", begun.elapsed());
    for (_, secret) in &keys {
        assert_eq!(world.outcome(secret).await, Outcome::OrganizationInactive);
    }
}

store_test!(a_key_deleted_by_sql_is_not_found_within_seconds);
async fn a_key_deleted_by_sql_is_not_found_within_seconds(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    let begun = Instant::now();
    database.raw_sql(&format!("DELETE FROM api_keys WHERE id = '{}'", key.id)).await;
    wait_until("the feed to bring the deletion", async || world.outcome(&secret).await == Outcome::NotFound).await;
    assert!(begun.elapsed() < FEED_LAG_MAX, "{:?}", begun.elapsed());
}

store_test!(a_key_that_was_unknown_a_moment_ago_is_valid_once_it_is_created);
async fn a_key_that_was_unknown_a_moment_ago_is_valid_once_it_is_created(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let copy = |to: &str, from: &str| {
        format!("UPDATE api_keys SET digest = {to} WHERE id = '{}' AND digest IS {from}", key.id)
    };
    // The key leaves and comes back under its digest; in between, its absence is remembered.
    let digest = match database.engine {
        crate::harness::Engine::Sqlite => "SELECT lower(hex(digest)) FROM api_keys WHERE id = ",
        crate::harness::Engine::Postgres => "SELECT encode(digest, 'hex') FROM api_keys WHERE id = ",
    };
    let digest = database.query_string(&format!("{digest}'{}'", key.id)).await;
    let literal = match database.engine {
        crate::harness::Engine::Sqlite => format!("X'{digest}'"),
        crate::harness::Engine::Postgres => format!("'\\x{digest}'::bytea"),
    };
    assert_eq!(database.raw_sql(&copy("NULL", "NOT NULL")).await, 1);
    wait_until("the key to be unknown", async || world.outcome(&secret).await == Outcome::NotFound).await;
    let begun = Instant::now();
    assert_eq!(database.raw_sql(&copy(&literal, "NULL")).await, 1);
    wait_until("the key to be known again", async || world.outcome(&secret).await == Outcome::Valid).await;
    assert!(begun.elapsed() < FEED_LAG_MAX, "{:?}", begun.elapsed());
}
