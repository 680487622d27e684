//! Shared commits, on SQLite alone, since PostgreSQL's transactions are the database's own: members of a group are
//! independent, nobody is answered before the outer commit, nobody at all if it fails, and whoever leaves half-way
//! holds nobody up.

use keystead::domain::ids::OrganizationId;
use keystead::store::{Database as _, Store, StoreError, commit};
use tokio::task::JoinHandle;

use super::{World, insert, nobody};
use crate::harness::{Engine, TestDatabase, samples, wait_until};

async fn world() -> World {
    World::new(TestDatabase::new(Engine::Sqlite).await).await
}

/// Writes one key in a mutation of its own.
async fn create(store: Store, organization: OrganizationId) -> Result<(), StoreError> {
    let transaction = store.begin().await?;
    insert(&transaction, &samples::key(organization)).await;
    commit(transaction).await
}

fn creating(world: &World) -> JoinHandle<Result<(), StoreError>> {
    tokio::spawn(create(world.store.clone(), world.acme.id))
}

async fn keys_stored(world: &World) -> i64 {
    world.database.query_i64("SELECT count(*) FROM api_keys").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_creations_at_once_are_all_there() {
    let world = world().await;
    let tasks: Vec<_> = (0..64).map(|_| creating(&world)).collect();
    for task in tasks {
        task.await.expect("it ends").expect("acknowledged");
    }
    assert_eq!(keys_stored(&world).await, 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_fails_panics_or_is_cancelled_takes_no_other_with_it() {
    let world = world().await;
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for round in 0..60 {
        good.push(creating(&world));
        let (store, acme) = (world.store.clone(), world.acme.id);
        let task = tokio::spawn(async move {
            let transaction = store.begin().await.expect("a turn");
            insert(&transaction, &samples::key(acme)).await;
            assert!(round % 3 != 0, "a mutation that panics");
            if round % 3 == 1 {
                std::future::pending::<()>().await;
            }
            drop(transaction);
        });
        if round % 3 == 1 {
            task.abort();
        }
        bad.push(task);
    }
    for task in good {
        task.await.expect("it ends").expect("acknowledged");
    }
    for task in bad {
        task.abort();
        let _ = task.await;
    }
    assert_eq!(keys_stored(&world).await, 60);
    // The writer is free again.
    world.add_key(|_| {}).await;
    create(world.store.clone(), world.acme.id).await.expect("acknowledged");
    assert_eq!(keys_stored(&world).await, 62);
}

/// One thread, so that the order of the turns is that of the lines.
#[tokio::test]
async fn nobody_is_acknowledged_before_the_outer_commit() {
    let world = world().await;
    let first = world.begin().await;
    insert(&first, &samples::key(world.acme.id)).await;
    let store = world.store.clone();
    let second = tokio::spawn(async move { store.begin().await });
    tokio::task::yield_now().await;
    let committing = tokio::spawn(commit(first));
    let second = second.await.expect("it ends").expect("a turn");
    insert(&second, &samples::key(world.acme.id)).await;

    assert_eq!(keys_stored(&world).await, 0, "nothing is committed while a member is at work");
    assert!(!committing.is_finished(), "the first was acknowledged before the outer commit");
    commit(second).await.expect("acknowledged");
    committing.await.expect("it ends").expect("acknowledged");
    assert_eq!(keys_stored(&world).await, 2);
}

#[tokio::test]
async fn an_outer_commit_that_fails_acknowledges_nobody_and_takes_back_what_refusals_rest_on() {
    let world = world().await;
    let failed_before = world.store.failed_commits();
    let first = world.begin().await;
    insert(&first, &samples::key(world.acme.id)).await;
    let store = world.store.clone();
    let second = tokio::spawn(async move { store.begin().await });
    tokio::task::yield_now().await;
    let committing = tokio::spawn(commit(first));
    let second = second.await.expect("it ends").expect("a turn");
    // A reference that is checked at the outer commit, and leads nowhere then.
    second.execute_unprepared("PRAGMA defer_foreign_keys = ON").await.expect("set");
    insert(&second, &samples::key(nobody())).await;

    for result in [commit(second).await, committing.await.expect("it ends")] {
        assert!(matches!(result, Err(StoreError::Unavailable { may_have_happened: true, .. })), "{result:?}");
    }
    assert!(world.store.settle(failed_before).await.is_err(), "a refusal of that time is no answer");
    assert_eq!(keys_stored(&world).await, 0);
    create(world.store.clone(), world.acme.id).await.expect("the next one is acknowledged");
    assert!(world.store.settle(world.store.failed_commits()).await.is_ok());
    assert_eq!(keys_stored(&world).await, 1);
}

#[tokio::test]
async fn a_refusal_waits_until_what_it_rests_on_has_been_committed() {
    let world = world().await;
    let failed_before = world.store.failed_commits();
    let first = world.begin().await;
    insert(&first, &samples::key(world.acme.id)).await;
    let begin = |store: Store| tokio::spawn(async move { store.begin().await });
    let (second, third) = (begin(world.store.clone()), begin(world.store.clone()));
    tokio::task::yield_now().await;
    let committing = tokio::spawn(commit(first));
    // It has read what the first wrote, and is refused for it.
    drop(second.await.expect("it ends").expect("a turn"));
    let third = third.await.expect("it ends").expect("a turn");
    let store = world.store.clone();
    let refusing = tokio::spawn(async move { store.settle(failed_before).await });

    assert_eq!(keys_stored(&world).await, 0, "nothing is committed while a member is at work");
    assert!(!refusing.is_finished(), "the refusal was told before the commit");
    commit(third).await.expect("acknowledged");
    refusing.await.expect("it ends").expect("the refusal stands");
    assert_eq!(keys_stored(&world).await, 1);
    committing.await.expect("it ends").expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_statements_come_through_while_mutations_never_stop() {
    let world = world().await;
    let (store, acme) = (world.store.clone(), world.acme.id);
    let load: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                while create(store.clone(), acme).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    wait_until("the first mutations", async || keys_stored(&world).await > 8).await;
    for _ in 0..5 {
        world.add_key(|_| {}).await;
    }
    for task in load {
        task.abort();
    }
}
