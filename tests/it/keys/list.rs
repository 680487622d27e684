//! `ListKeys`: each filter by itself and several together, the order, and what a page holds.
//! How pages hang together is in `list_pages.rs`.
//! Invariant: a filter knows what the record shows; `%`, `_` and quotes are text like any other.

use keystead::proto::v1::create_key_request::Lifetime;
use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, Environment, KeyStatus, ListKeysRequest, Outcome, RevokeKeyRequest,
};
use tonic::Code;

use super::{NOBODY, World, from_now, micros, refused, seconds, with};
use crate::harness::{TestDatabase, create_organization, store_test, wait_until};

impl World {
    fn listing(&self) -> ListKeysRequest {
        ListKeysRequest { organization_id: self.organization.clone(), ..Default::default() }
    }

    async fn named(&self, name: &str, change: impl FnOnce(&mut CreateKeyRequest)) -> (ApiKey, String) {
        let request = CreateKeyRequest { name: name.to_owned(), ..self.new_key() };
        self.create(with(&request, change)).await
    }

    /// The names of the keys that a filter selects, in alphabetical order.
    async fn names(&self, filter: impl FnOnce(&mut ListKeysRequest)) -> Vec<String> {
        let mut names: Vec<String> =
            self.list(with(&self.listing(), filter)).await.into_iter().map(|key| key.name).collect();
        names.sort();
        names
    }
}

store_test!(keys_come_newest_first_as_get_key_shows_them);
async fn keys_come_newest_first_as_get_key_shows_them(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut created = Vec::new();
    for at in 0..5 {
        created.push(world.named(&format!("key {at}"), |_| ()).await.0);
    }
    created.reverse();
    let listed = world.list(world.listing()).await;
    assert_eq!(listed, created);
    assert_eq!(listed[2], world.get(&created[2].id).await);
    let rival = create_organization(&world.server, "rival").await.id;
    let none = world.list(ListKeysRequest { organization_id: rival, ..Default::default() }).await;
    assert!(none.is_empty(), "of another organization: {none:?}");
}

store_test!(an_organization_that_does_not_exist_for_the_caller_is_not_found);
async fn an_organization_that_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.read"]).await;
    let mut restricted = world.server.keys_as(&caller);
    let of = |id: &str| ListKeysRequest { organization_id: id.to_owned(), ..Default::default() };
    for id in [NOBODY, super::SYSTEM, &world.organization] {
        refused(restricted.list_keys(of(id)).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    }
    refused(world.server.keys().list_keys(of(NOBODY)).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
    assert_eq!(restricted.list_keys(of(&rival)).await.expect("its own").into_inner().keys.len(), 1);
}

store_test!(the_status_filter_knows_the_status_that_is_shown);
async fn the_status_filter_knows_the_status_that_is_shown(database: TestDatabase) {
    let world = World::new(&database).await;
    let soon = |request: &mut CreateKeyRequest| request.lifetime = Some(Lifetime::Ttl(seconds(1)));
    world.named("active", |_| ()).await;
    world.named("active for an hour", |request| request.lifetime = Some(Lifetime::Ttl(seconds(3600)))).await;
    let (expired, _) = world.named("expired", soon).await;
    for (name, expires) in [("disabled", false), ("disabled and expired", true)] {
        let (key, _) = world
            .named(name, |request| {
                if expires {
                    soon(request);
                }
            })
            .await;
        world.update(ApiKey { enabled: false, ..key }, &["enabled"]).await;
    }
    for (name, expires) in [("revoked", false), ("revoked and expired", true)] {
        let (key, _) = world
            .named(name, |request| {
                if expires {
                    soon(request);
                }
            })
            .await;
        world.revoke(&key.id).await;
    }
    let (disabled, _) = world.named("revoked and disabled", |_| ()).await;
    world.update(ApiKey { enabled: false, ..disabled.clone() }, &["enabled"]).await;
    world.revoke(&disabled.id).await;
    let latest = micros(expired.expire_time) + 1_000_000;
    wait_until("the expiries", async || micros(Some(from_now(0))) > latest).await;

    for (status, expected) in [
        (KeyStatus::Active, vec!["active", "active for an hour"]),
        (KeyStatus::Disabled, vec!["disabled", "disabled and expired"]),
        (KeyStatus::Revoked, vec!["revoked", "revoked and disabled", "revoked and expired"]),
        (KeyStatus::Expired, vec!["expired"]),
    ] {
        assert_eq!(world.names(|filter| filter.status = status.into()).await, expected, "{status:?}");
        let shown = world.list(with(&world.listing(), |filter| filter.status = status.into())).await;
        assert!(shown.iter().all(|key| key.status() == status), "{shown:?}");
    }
    assert_eq!(world.names(|_| ()).await.len(), 8, "no filter, all of them");
}

store_test!(keys_are_found_by_environment_and_owner);
async fn keys_are_found_by_environment_and_owner(database: TestDatabase) {
    let world = World::new(&database).await;
    let test = |request: &mut CreateKeyRequest| request.environment = Environment::Test.into();
    world.named("live, anna", |request| "anna".clone_into(&mut request.owner_id)).await;
    world.named("live, Anna", |request| "Anna".clone_into(&mut request.owner_id)).await;
    world.named("live, a%a", |request| "a%a".clone_into(&mut request.owner_id)).await;
    world.named("live", |_| ()).await;
    world
        .named("test, anna", |request| {
            test(request);
            "anna".clone_into(&mut request.owner_id);
        })
        .await;
    world.named("test", test).await;
    assert_eq!(world.names(|filter| filter.environment = Environment::Test.into()).await, ["test", "test, anna"]);
    assert_eq!(world.names(|filter| filter.environment = Environment::Live.into()).await.len(), 4);
    assert_eq!(world.names(|filter| "anna".clone_into(&mut filter.owner_id)).await, ["live, anna", "test, anna"]);
    assert_eq!(world.names(|filter| "a%a".clone_into(&mut filter.owner_id)).await, ["live, a%a"], "exactly this owner");
    assert!(world.names(|filter| "ann".clone_into(&mut filter.owner_id)).await.is_empty());
    let both = world
        .names(|filter| {
            filter.environment = Environment::Test.into();
            "anna".clone_into(&mut filter.owner_id);
            "ANN".clone_into(&mut filter.name_contains);
            filter.status = KeyStatus::Active.into();
        })
        .await;
    assert_eq!(both, ["test, anna"], "filters are combined with and");
}

store_test!(a_part_of_a_name_is_taken_as_it_is_written);
async fn a_part_of_a_name_is_taken_as_it_is_written(database: TestDatabase) {
    let world = World::new(&database).await;
    let names = ["100% sure", "1000 sure", "a_b", "axb", r"back\slash", "🔑 prod", "مفتاح الإنتاج", "it'; --", "Größe"];
    for name in names {
        world.named(name, |_| ()).await;
    }
    for (part, expected) in [
        ("%", vec!["100% sure"]),
        ("0% S", vec!["100% sure"]),
        ("_", vec!["a_b"]),
        ("A_B", vec!["a_b"]),
        (r"\", vec![r"back\slash"]),
        ("🔑", vec!["🔑 prod"]),
        ("الإنتاج", vec!["مفتاح الإنتاج"]),
        ("'; --", vec!["it'; --"]),
        ("größe", vec!["Größe"]),
        ("SURE", vec!["100% sure", "1000 sure"]),
        ("nowhere", vec![]),
        ("' OR '1'='1", vec![]),
        ("%%", vec![]),
    ] {
        assert_eq!(world.names(|filter| part.clone_into(&mut filter.name_contains)).await, expected, "{part:?}");
    }
}

store_test!(keys_are_found_by_expiry);
async fn keys_are_found_by_expiry(database: TestDatabase) {
    let world = World::new(&database).await;
    let (soon, later) = (from_now(3600), from_now(7200));
    world.named("never", |_| ()).await;
    world.named("soon", |request| request.lifetime = Some(Lifetime::ExpireTime(soon))).await;
    world.named("later", |request| request.lifetime = Some(Lifetime::ExpireTime(later))).await;
    let (past, _) = world.named("past", |request| request.lifetime = Some(Lifetime::Ttl(seconds(1)))).await;
    let expiry = micros(past.expire_time);
    wait_until("an expiry", async || micros(Some(from_now(0))) > expiry).await;
    assert_eq!(world.names(|filter| filter.expiring_before = Some(from_now(9000))).await, ["later", "past", "soon"]);
    assert_eq!(world.names(|filter| filter.expiring_before = Some(later)).await, ["past", "soon"], "before, not at");
    assert_eq!(world.names(|filter| filter.expiring_before = Some(soon)).await, ["past"]);
    assert!(world.names(|filter| filter.expiring_before = past.create_time).await.is_empty());
}

store_test!(keys_are_found_by_disuse);
async fn keys_are_found_by_disuse(database: TestDatabase) {
    let world = World::new(&database).await;
    world.named("never", |_| ()).await;
    let (used, secret) = world.named("used", |_| ()).await;
    let before = from_now(0);
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    wait_until("the use to be written", async || world.get(&used.id).await.last_used_time.is_some()).await;
    let last_used = world.get(&used.id).await.last_used_time;
    assert_eq!(world.names(|filter| filter.unused_since = Some(before)).await, ["never"]);
    assert_eq!(world.names(|filter| filter.unused_since = last_used).await, ["never"], "used at this moment");
    assert_eq!(world.names(|filter| filter.unused_since = Some(from_now(60))).await, ["never", "used"]);
}

store_test!(a_rotated_key_is_listed_beside_the_new_one);
async fn a_rotated_key_is_listed_beside_the_new_one(database: TestDatabase) {
    let world = World::new(&database).await;
    let (old, _) = world.named("rotated", |_| ()).await;
    let rotated = world.rotate(&old.id, None).await;
    let listed = world.list(world.listing()).await;
    assert_eq!(listed, [rotated.key.expect("the new key"), rotated.previous_key.expect("the old key")]);
    let revoke = RevokeKeyRequest { key_id: listed[0].id.clone(), ..Default::default() };
    world.server.keys().revoke_key(revoke).await.expect("revoked");
    assert_eq!(world.names(|filter| filter.status = KeyStatus::Revoked.into()).await.len(), 2);
}
