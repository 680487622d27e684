//! `store::state`: the values that belong to the database as a whole, on which every replica has to agree.

use keystead::domain::audit::AuditHead;
use keystead::store::{StoreError, state};

use super::{World, commit_all};
use crate::harness::{TestDatabase, samples, store_test};

store_test!(the_first_id_of_a_database_stands);
async fn the_first_id_of_a_database_stands(database: TestDatabase) {
    let world = World::new(database).await;
    let first = samples::record_id();
    for fresh in [first, samples::record_id()] {
        assert_eq!(state::find_or_insert_database_id(world.db(), fresh).await.expect("an id"), first);
    }
    world.database.raw_sql("UPDATE service_state SET value = 'nonsense' WHERE name = 'database_id'").await;
    let unreadable = state::find_or_insert_database_id(world.db(), first).await;
    assert!(matches!(unreadable, Err(StoreError::Corrupt(_))), "{unreadable:?}");
}

store_test!(the_first_page_token_key_stands_for_every_restart);
async fn the_first_page_token_key_stands_for_every_restart(database: TestDatabase) {
    let world = World::new(database).await;
    for fresh in [[1; 32], [2; 32], [3; 32]] {
        let key = state::find_or_insert_page_token_key(world.db(), fresh).await.expect("a key");
        assert_eq!(key, [1; 32]);
    }
}

store_test!(replicas_that_start_at_once_agree_on_the_page_token_key);
async fn replicas_that_start_at_once_agree_on_the_page_token_key(database: TestDatabase) {
    let world = World::new(database).await;
    let tasks: Vec<_> = (0..10_u8)
        .map(|replica| {
            let store = world.store.clone();
            tokio::spawn(async move { state::find_or_insert_page_token_key(store.write(), [replica; 32]).await })
        })
        .collect();
    let mut keys = Vec::new();
    for task in tasks {
        keys.push(task.await.expect("no panic").expect("a key"));
    }
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

store_test!(the_head_of_the_audit_chain_begins_at_genesis_and_moves_on);
async fn the_head_of_the_audit_chain_begins_at_genesis_and_moves_on(database: TestDatabase) {
    let world = World::new(database).await;
    for expected in [AuditHead::GENESIS, AuditHead { sequence: 3, hash: [9; 32] }] {
        let transaction = world.begin().await;
        assert_eq!(state::find_audit_head_locked(&transaction).await.expect("a head"), expected);
        let next = AuditHead { sequence: 3, hash: [9; 32] };
        state::update_audit_head(&transaction, next).await.expect("an update");
        commit_all(transaction).await;
    }
}

store_test!(a_rolled_back_transaction_leaves_the_head_where_it_was);
async fn a_rolled_back_transaction_leaves_the_head_where_it_was(database: TestDatabase) {
    let world = World::new(database).await;
    let transaction = world.begin().await;
    state::find_audit_head_locked(&transaction).await.expect("a head");
    state::update_audit_head(&transaction, AuditHead { sequence: 3, hash: [9; 32] }).await.expect("an update");
    drop(transaction);
    let transaction = world.begin().await;
    assert_eq!(state::find_audit_head_locked(&transaction).await.expect("a head"), AuditHead::GENESIS);
}

store_test!(a_value_that_cannot_be_read_is_corrupt_and_never_made_up);
async fn a_value_that_cannot_be_read_is_corrupt_and_never_made_up(database: TestDatabase) {
    let world = World::new(database).await;
    state::find_or_insert_page_token_key(world.db(), [1; 32]).await.expect("a key");
    let transaction = world.begin().await;
    state::find_audit_head_locked(&transaction).await.expect("a head");
    commit_all(transaction).await;
    world.database.raw_sql("UPDATE service_state SET value = 'nonsense'").await;

    let refused = state::find_or_insert_page_token_key(world.db(), [2; 32]).await;
    assert!(matches!(&refused, Err(StoreError::Corrupt(text)) if !text.contains("nonsense")), "{refused:?}");
    let transaction = world.begin().await;
    let refused = state::find_audit_head_locked(&transaction).await;
    assert!(matches!(refused, Err(StoreError::Corrupt(_))), "{refused:?}");
}
