//! `ListKeys`, page by page: thousands of keys while others come and go, sizes, and tokens that work for the
//! list they came from and for nobody else.
//! The thousands are written by SQL, as copies of one real key, many of them with the same time of creation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keystead::proto::v1::{
    CreateKeyRequest, Environment, KeyStatus, ListAuditEventsRequest, ListKeysRequest, ListOrganizationsRequest,
    RevokeKeyRequest, RotateKeyRequest,
};

use prost::Message;

use super::{Keys, World, bad_fields, fields, from_now, with};
use crate::harness::{TestDatabase, create_key, create_organization, store_test};

/// Columns of a key that a copy takes over as they are.
const COPIED: &str = "organization_id, name_folded, scheme, prefix, hint, environment, status, scopes, metadata, \
                      owner_id, allowed_cidrs, rate_limits, update_time_us, created_by, counter_id";

/// The id of copy `at`.
fn copy_id(at: usize) -> String {
    format!("0198c7a4-5b7e-7c3a-9f00-{}", 100_000_000_000_usize + at)
}

impl World {
    /// Adds `count` copies of one key by SQL, three to a microsecond. Returns their ids.
    async fn seed(&self, database: &TestDatabase, request: CreateKeyRequest, count: usize) -> Vec<String> {
        let (key, _) = self.create(request).await;
        let sql = format!(
            "INSERT INTO api_keys (id, name, create_time_us, {COPIED}) \
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {count}) \
             SELECT '0198c7a4-5b7e-7c3a-9f00-' || CAST(100000000000 + i AS text), 'copy', \
                    create_time_us - i / 3, {COPIED} FROM api_keys, n WHERE id = '{}'",
            key.id
        );
        assert_eq!(database.raw_sql(&sql).await, count as u64);
        (0..count).map(copy_id).collect()
    }
}

/// How often each key was seen while a list was read page by page.
async fn read_pages(mut keys: Keys, mut request: ListKeysRequest) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    loop {
        let page = keys.list_keys(request.clone()).await.expect("a page").into_inner();
        let size = usize::try_from(request.page_size).expect("a size");
        assert!(page.keys.len() <= size, "{} of {size}", page.keys.len());
        assert!(page.keys.len() == size || page.next_page_token.is_empty(), "only the last page is short");
        for key in page.keys {
            *seen.entry(key.id).or_default() += 1;
        }
        if page.next_page_token.is_empty() {
            return seen;
        }
        request.page_token = page.next_page_token;
    }
}

/// Creates, rotates and revokes keys until it is told to end. Returns how many it created.
async fn come_and_go(mut keys: Keys, new: CreateKeyRequest, doomed: Vec<String>, done: Arc<AtomicBool>) -> usize {
    let mut created = 0;
    for id in doomed {
        if done.load(Ordering::SeqCst) {
            break;
        }
        let key = keys.create_key(new.clone()).await.expect("a key is created").into_inner().key.expect("the key");
        let rotate = RotateKeyRequest { key_id: key.id, ..Default::default() };
        keys.rotate_key(rotate).await.expect("the key is rotated");
        let revoke = RevokeKeyRequest { key_id: id, ..Default::default() };
        keys.revoke_key(revoke).await.expect("the key is revoked");
        created += 2;
    }
    created
}

store_test!(each_key_that_lasts_is_seen_once_while_others_come_and_go);
async fn each_key_that_lasts_is_seen_once_while_others_come_and_go(database: TestDatabase) {
    let world = World::new(&database).await;
    let copies = world.seed(&database, world.new_key(), 4000).await;
    // Every fourth is revoked during the reading, spread over all pages; the others last.
    let doomed: Vec<String> = copies.iter().step_by(4).cloned().collect();
    let done = Arc::new(AtomicBool::new(false));
    let churn = tokio::spawn(come_and_go(world.server.keys(), world.new_key(), doomed.clone(), done.clone()));
    let all = ListKeysRequest { organization_id: world.organization.clone(), page_size: 97, ..Default::default() };
    let active = with(&all, |request| request.status = KeyStatus::Active.into());
    let (everything, lasting) =
        tokio::join!(read_pages(world.server.keys(), all), read_pages(world.server.keys(), active));
    done.store(true, Ordering::SeqCst);
    let created = churn.await.expect("the others come and go");
    assert!(created > 0, "nothing happened during the reading");
    for id in &copies {
        assert_eq!(everything.get(id), Some(&1), "{id}: a revoked key is a key");
        let times = lasting.get(id).copied().unwrap_or(0);
        assert!(times == 1 || (times == 0 && doomed.contains(id)), "{id}: {times} times among the active");
    }
    assert!(everything.values().chain(lasting.values()).all(|times| *times == 1), "no key came twice");
}

store_test!(a_page_holds_fifty_unless_asked_and_a_thousand_at_most);
async fn a_page_holds_fifty_unless_asked_and_a_thousand_at_most(database: TestDatabase) {
    let world = World::new(&database).await;
    world.seed(&database, world.new_key(), 1200).await;
    let mut keys = world.server.keys();
    for (page_size, expected) in [(0, 50), (1, 1), (73, 73), (1000, 1000), (1001, 1000), (i32::MAX, 1000)] {
        let request = ListKeysRequest { organization_id: world.organization.clone(), page_size, ..Default::default() };
        let page = keys.list_keys(request).await.expect("a page").into_inner();
        assert_eq!(page.keys.len(), expected, "{page_size}");
        assert!(!page.next_page_token.is_empty());
    }
    let all = ListKeysRequest { organization_id: world.organization.clone(), page_size: 1201, ..Default::default() };
    assert_eq!(world.list(all).await.len(), 1201);
    for page_size in [-1, i32::MIN] {
        let request = ListKeysRequest { organization_id: world.organization.clone(), page_size, ..Default::default() };
        assert_eq!(bad_fields(keys.list_keys(request).await), fields(&["page_size"]));
    }
}

store_test!(a_page_of_large_keys_is_one_that_any_client_takes);
async fn a_page_of_large_keys_is_one_that_any_client_takes(database: TestDatabase) {
    let world = World::new(&database).await;
    let large = with(&world.new_key(), |request| {
        request.metadata = (0..50).map(|at| (format!("{at}"), "x".repeat(512))).collect();
    });
    let copies = world.seed(&database, large, 400).await;
    let request =
        ListKeysRequest { organization_id: world.organization.clone(), page_size: 1000, ..Default::default() };
    let page = world.server.keys().list_keys(request.clone()).await.expect("a page").into_inner();
    assert!(page.encoded_len() < 4 << 20, "clients refuse more than 4 MiB: {}", page.encoded_len());
    let mut listed: Vec<String> = world.list(request).await.into_iter().map(|key| key.id).collect();
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), copies.len() + 1, "and the rest is on the next ones");
}

store_test!(the_last_page_has_no_token_also_where_it_is_full);
async fn the_last_page_has_no_token_also_where_it_is_full(database: TestDatabase) {
    let world = World::new(&database).await;
    world.create_many("page", 6).await;
    let request = ListKeysRequest { organization_id: world.organization.clone(), page_size: 3, ..Default::default() };
    let first = world.server.keys().list_keys(request.clone()).await.expect("a page").into_inner();
    let request = with(&request, |request| request.page_token = first.next_page_token);
    let last = world.server.keys().list_keys(request).await.expect("a page").into_inner();
    assert_eq!((last.keys.len(), last.next_page_token.as_str()), (3, ""));
}

store_test!(a_token_works_for_the_list_it_came_from_and_for_nobody_else);
async fn a_token_works_for_the_list_it_came_from_and_for_nobody_else(database: TestDatabase) {
    let mut world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    world.create_many("page", 5).await;
    create_key(&world.server, &rival, &[]).await;
    create_key(&world.server, &rival, &[]).await;
    let other_admin = world.caller(super::SYSTEM, &["keystead.admin"]).await;
    let base = ListKeysRequest { organization_id: world.organization.clone(), page_size: 2, ..Default::default() };
    let page = world.server.keys().list_keys(base.clone()).await.expect("a page").into_inner();
    let token = page.next_page_token;
    let next = with(&base, |request| request.page_token.clone_from(&token));

    let swapped = [
        with(&next, |request| request.organization_id.clone_from(&rival)),
        with(&next, |request| request.status = KeyStatus::Active.into()),
        with(&next, |request| request.environment = Environment::Live.into()),
        with(&next, |request| "anna".clone_into(&mut request.owner_id)),
        with(&next, |request| "page".clone_into(&mut request.name_contains)),
        with(&next, |request| request.expiring_before = Some(from_now(0))),
        with(&next, |request| request.unused_since = Some(from_now(0))),
    ];
    for request in swapped {
        assert_eq!(
            bad_fields(world.server.keys().list_keys(request.clone()).await),
            fields(&["page_token"]),
            "{request:?}"
        );
    }
    let by_another = world.server.keys_as(&other_admin).list_keys(next.clone()).await;
    assert_eq!(bad_fields(by_another), fields(&["page_token"]), "another caller");

    let organizations = ListOrganizationsRequest { page_token: token.clone(), ..Default::default() };
    let result = world.server.organizations().list_organizations(organizations).await;
    assert_eq!(bad_fields(result), fields(&["page_token"]), "another rpc");
    let events = ListAuditEventsRequest { page_token: token.clone(), ..Default::default() };
    assert_eq!(bad_fields(world.server.audit().list_audit_events(events).await), fields(&["page_token"]));

    let resized = with(&next, |request| request.page_size = 3);
    let rest = world.server.keys().list_keys(resized).await.expect("the size may change").into_inner();
    assert_eq!((rest.keys.len(), rest.next_page_token.as_str()), (3, ""));
    world.server.restart().await;
    let again = world.server.keys().list_keys(next).await.expect("a token outlives a restart").into_inner();
    assert_eq!(again.keys, rest.keys[..2]);
}

store_test!(a_token_that_was_tampered_with_is_refused);
async fn a_token_that_was_tampered_with_is_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    world.create_many("page", 3).await;
    let base = ListKeysRequest { organization_id: world.organization.clone(), page_size: 2, ..Default::default() };
    let page = world.server.keys().list_keys(base.clone()).await.expect("a page").into_inner();
    let token = page.next_page_token;
    let mut forged: Vec<String> = (1..token.len()).map(|cut| token[..cut].to_owned()).collect();
    forged.extend((1..token.len()).step_by(7).map(|cut| token[cut..].to_owned()));
    let bytes = URL_SAFE_NO_PAD.decode(&token).expect("a token is base64");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        forged.push(URL_SAFE_NO_PAD.encode(changed));
    }
    let plain = format!("{}:{}", 0, super::NOBODY);
    forged.extend([
        URL_SAFE_NO_PAD.encode(&plain),
        plain,
        format!("{token}A"),
        format!("{token}="),
        format!(" {token}"),
    ]);
    forged.extend(["0", "\0", "🔑", "\u{202e}", "%", "' OR 1=1"].map(ToOwned::to_owned));
    forged.push("A".repeat(60_000));
    for page_token in forged {
        let request = with(&base, |request| request.page_token.clone_from(&page_token));
        assert_eq!(
            bad_fields(world.server.keys().list_keys(request).await),
            fields(&["page_token"]),
            "{page_token:.99}"
        );
    }
}
