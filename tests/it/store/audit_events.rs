//! `store::audit_events`: an event stands or falls with its change, sealing makes one gapless chain whoever seals,
//! and the chain recomputes from what a list shows.

use keystead::domain::{
    audit::{Actor, AuditAction, AuditFilter, GENESIS_HASH, NewAuditEvent, SealedEvent, encode_hash, event_hash},
    ids::OrganizationId,
    time::Timestamp,
};
use keystead::store::{Database, Store, audit_events};

use super::{World, commit_all, nobody, page};
use crate::harness::{TestDatabase, samples, store_test};

fn event(organization: OrganizationId, time: Timestamp) -> NewAuditEvent {
    NewAuditEvent {
        time,
        actor: Actor { key_id: "key-1".to_owned(), name: "root 🔑".to_owned(), request_id: "r-1".to_owned() },
        action: AuditAction::KeyRevoke,
        target_id: "target-1".to_owned(),
        organization_id: organization,
        detail: "{\"reason\":\"key_compromise\"}".to_owned(),
    }
}

async fn insert(db: &impl Database, event: &NewAuditEvent) -> String {
    let id = samples::record_id();
    audit_events::insert(db, id, event).await.expect("written");
    id.to_string()
}

/// Everything that is sealed, oldest first, page by page.
async fn chain(store: &Store, filter: &AuditFilter) -> Vec<SealedEvent> {
    let (mut events, mut after) = (Vec::new(), None);
    loop {
        let listed = audit_events::list(store.control(), filter, &page(100, after)).await.expect("a page");
        events.extend(listed.rows);
        after = listed.next;
        if after.is_none() {
            events.reverse();
            return events;
        }
    }
}

/// The first event whose place or hash is not what the ones before it make of it.
fn first_broken(chain: &[SealedEvent]) -> Option<i64> {
    let mut previous = GENESIS_HASH;
    for (expected, event) in (1..).zip(chain) {
        let hash = event_hash(&previous, &event.record);
        let linked = event.previous_hash == encode_hash(&previous) && event.hash == encode_hash(&hash);
        if event.record.sequence != expected || !linked {
            return Some(expected);
        }
        previous = hash;
    }
    None
}

async fn seal(world: &World) -> usize {
    audit_events::seal(&world.store).await.expect("sealed")
}

store_test!(an_event_is_shown_once_it_is_sealed_with_every_field_as_it_was_written);
async fn an_event_is_shown_once_it_is_sealed_with_every_field_as_it_was_written(database: TestDatabase) {
    let world = World::new(database).await;
    assert_eq!(seal(&world).await, 0, "nothing waits");
    let written = event(world.acme.id, samples::NOW);
    let id = insert(world.db(), &written).await;
    assert!(chain(&world.store, &AuditFilter::default()).await.is_empty());
    assert_eq!(seal(&world).await, 1);
    let shown = chain(&world.store, &AuditFilter::default()).await;
    let record = &shown[0].record;
    assert_eq!((record.sequence, record.id.as_str(), record.time_us), (1, id.as_str(), samples::NOW.micros()));
    assert_eq!((record.actor_key_id.as_str(), record.actor.as_str()), ("key-1", "root 🔑"));
    assert_eq!((record.action.as_str(), record.target_type.as_str()), ("key.revoke", "key"));
    assert_eq!((record.target_id.as_str(), record.request_id.as_str()), ("target-1", "r-1"));
    assert_eq!((&record.organization_id, &record.detail), (&world.acme.id.to_string(), &written.detail));
    assert_eq!(first_broken(&shown), None);
}

store_test!(an_event_falls_with_the_change_it_tells_of);
async fn an_event_falls_with_the_change_it_tells_of(database: TestDatabase) {
    let world = World::new(database).await;
    let transaction = world.begin().await;
    insert(&transaction, &event(world.acme.id, samples::NOW)).await;
    drop(transaction);
    assert_eq!(seal(&world).await, 0);
    let transaction = world.begin().await;
    insert(&transaction, &event(world.acme.id, samples::NOW)).await;
    commit_all(transaction).await;
    assert_eq!(seal(&world).await, 1);
}

store_test!(an_audit_insert_that_fails_leaves_no_change_behind);
async fn an_audit_insert_that_fails_leaves_no_change_behind(database: TestDatabase) {
    let world = World::new(database).await;
    let mut key = world.add_key(|_| {}).await;
    let (id, told) = (samples::record_id(), event(world.acme.id, samples::NOW));
    audit_events::insert(world.db(), id, &told).await.expect("written");
    "changed".clone_into(&mut key.name);
    let transaction = world.begin().await;
    keystead::store::api_keys::update(&transaction, &key).await.expect("an update");
    let refused = audit_events::insert(&transaction, id, &told).await;
    assert!(super::is_refused(&refused), "{refused:?}");
    drop(transaction);
    assert_ne!(world.stored(&key).await.name, "changed");
}

store_test!(the_chain_recomputes_over_many_batches_and_goes_on_where_it_was);
async fn the_chain_recomputes_over_many_batches_and_goes_on_where_it_was(database: TestDatabase) {
    let world = World::new(database).await;
    let mut total = 0;
    for count in [1, 1203, 2] {
        let transaction = world.begin().await;
        for at in 0..count {
            insert(&transaction, &event(world.acme.id, samples::seconds(at))).await;
        }
        commit_all(transaction).await;
        total += usize::try_from(count).expect("a small number");
        assert_eq!(seal(&world).await, usize::try_from(count).expect("a small number"));
        let chain = chain(&world.store, &AuditFilter::default()).await;
        assert_eq!((chain.len(), first_broken(&chain)), (total, None));
    }
}

store_test!(waiting_events_are_sealed_by_time);
async fn waiting_events_are_sealed_by_time(database: TestDatabase) {
    let world = World::new(database).await;
    for at in [3, 1, 2] {
        insert(world.db(), &event(world.acme.id, samples::seconds(at))).await;
    }
    seal(&world).await;
    // Sealed events stay where they are, whatever comes after them.
    insert(world.db(), &event(world.acme.id, samples::seconds(0))).await;
    seal(&world).await;
    let chain = chain(&world.store, &AuditFilter::default()).await;
    let times: Vec<i64> = chain.iter().map(|event| event.record.time_us).collect();
    assert_eq!(times, [1, 2, 3, 0].map(|at| samples::seconds(at).micros()));
    assert_eq!(first_broken(&chain), None);
}

store_test!(several_sealers_at_once_make_one_gapless_chain_while_events_come_in);
async fn several_sealers_at_once_make_one_gapless_chain_while_events_come_in(database: TestDatabase) {
    let world = World::new(database).await;
    let acme = world.acme.id;
    let mut writers = Vec::new();
    for _ in 0..3 {
        let store = world.store.clone();
        writers.push(tokio::spawn(async move {
            for at in 0..60 {
                insert(store.write(), &event(acme, samples::seconds(at))).await;
            }
        }));
    }
    let sealers: Vec<_> = (0..4)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let mut sealed = 0;
                for _ in 0..15 {
                    sealed += audit_events::seal(&store).await.expect("sealed");
                }
                sealed
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
    let mut sealed = 0;
    for sealer in sealers {
        sealed += sealer.await.expect("no panic");
    }
    sealed += seal(&world).await;
    assert_eq!(sealed, 180, "each event by one sealer");
    let chain = chain(&world.store, &AuditFilter::default()).await;
    assert_eq!((chain.len(), first_broken(&chain)), (180, None));
}

store_test!(a_changed_a_removed_and_a_reordered_event_break_the_chain_where_they_stand);
async fn a_changed_a_removed_and_a_reordered_event_break_the_chain_where_they_stand(database: TestDatabase) {
    let world = World::new(database).await;
    for at in 0..6 {
        insert(world.db(), &event(world.acme.id, samples::seconds(at))).await;
    }
    seal(&world).await;
    let tampering = [
        ("UPDATE audit_events SET actor = 'somebody else' WHERE sequence = 5", 5),
        ("DELETE FROM audit_events WHERE sequence = 4", 4),
        ("UPDATE audit_events SET sequence = CASE sequence WHEN 2 THEN 30 ELSE sequence END WHERE sequence = 2", 2),
    ];
    for (sql, broken) in tampering {
        assert_eq!(world.database.raw_sql(sql).await, 1);
        let chain = chain(&world.store, &AuditFilter::default()).await;
        assert_eq!(first_broken(&chain), Some(broken), "{sql}");
    }
}

store_test!(a_list_shows_the_newest_first_and_pages_without_gap_or_repeat);
async fn a_list_shows_the_newest_first_and_pages_without_gap_or_repeat(database: TestDatabase) {
    let world = World::new(database).await;
    for _ in 0..25 {
        insert(world.db(), &event(world.acme.id, samples::NOW)).await;
    }
    seal(&world).await;
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let request = page(5, after);
        let listed = audit_events::list(world.db(), &AuditFilter::default(), &request).await.expect("a page");
        assert_eq!(listed.rows.len(), 5);
        shown.extend(listed.rows.into_iter().map(|event| event.record.sequence));
        after = listed.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(shown, (1..=25).rev().collect::<Vec<i64>>());
}

store_test!(every_filter_shows_what_it_names_and_never_another_organizations);
async fn every_filter_shows_what_it_names_and_never_another_organizations(database: TestDatabase) {
    let world = World::new(database).await;
    let (acme, other) = (world.acme.id, nobody());
    let base = |at| event(acme, samples::seconds(at));
    let mut by_other_key = base(1);
    "key-2".clone_into(&mut by_other_key.actor.key_id);
    let events = [
        base(0),
        by_other_key,
        NewAuditEvent { target_id: "target-2".to_owned(), ..base(2) },
        NewAuditEvent { action: AuditAction::OrganizationDelete, ..base(3) },
        NewAuditEvent { organization_id: other, ..base(4) },
    ];
    for event in &events {
        insert(world.db(), event).await;
    }
    seal(&world).await;
    let of_acme = || AuditFilter { organization_id: Some(acme), ..AuditFilter::default() };
    let text = |text: &str| Some(text.to_owned());
    let cases: [(AuditFilter, &[i64]); 10] = [
        (AuditFilter::default(), &[1, 2, 3, 4, 5]),
        (of_acme(), &[1, 2, 3, 4]),
        (AuditFilter { organization_id: Some(other), ..AuditFilter::default() }, &[5]),
        (AuditFilter { organization_id: Some(OrganizationId::SYSTEM), ..AuditFilter::default() }, &[]),
        (AuditFilter { target_id: text("target-2"), ..of_acme() }, &[3]),
        (AuditFilter { actor_key_id: text("key-2"), ..of_acme() }, &[2]),
        (AuditFilter { action: Some(AuditAction::OrganizationDelete), ..of_acme() }, &[4]),
        (AuditFilter { target_id: text("' OR 1=1 --"), ..of_acme() }, &[]),
        (
            AuditFilter { start_time: Some(samples::seconds(1)), end_time: Some(samples::seconds(3)), ..of_acme() },
            &[2, 3],
        ),
        (AuditFilter { start_time: Some(samples::seconds(3)), target_id: text("target-1"), ..of_acme() }, &[4]),
    ];
    for (filter, expected) in cases {
        let shown = chain(&world.store, &filter).await;
        let sequences: Vec<i64> = shown.iter().map(|event| event.record.sequence).collect();
        assert_eq!(sequences, expected, "{filter:?}");
    }
}
