//! The last admin key: no rpc takes it away, by whatever path, so that the operator is never locked out.
//! Invariant: at any moment `system` has a key with `keystead.admin` that is enabled, never expires, and works
//! from any address.

use keystead::proto::v1::{ApiKey, CreateKeyRequest, Environment, ListKeysRequest, RevokeKeyRequest};
use tonic::Code;

use super::{
    Footprint, Keys, SYSTEM, World, at_once, days, from_now, presenting, refused, seconds, texts, updating, with,
};
use crate::harness::{TestDatabase, create_key, store_test};

/// The words of every refusal here.
const LAST: &str = "LAST_ADMIN_KEY";

fn revoking(key_id: &str) -> RevokeKeyRequest {
    RevokeKeyRequest { key_id: key_id.to_owned(), ..Default::default() }
}

impl World {
    async fn first_admin(&self) -> ApiKey {
        self.get(&self.key_of(self.server.admin_secret()).await).await
    }

    async fn lasting_admins(&self) -> usize {
        let keys = self.list(ListKeysRequest { organization_id: SYSTEM.to_owned(), ..Default::default() }).await;
        let admin = texts(&["keystead.admin"]);
        let lasts = |key: &&ApiKey| {
            key.scopes == admin && key.expire_time.is_none() && key.enabled && key.revoke_time.is_none()
        };
        keys.iter().filter(lasts).count()
    }
}

store_test!(the_last_admin_key_cannot_be_taken_away_by_any_path);
async fn the_last_admin_key_cannot_be_taken_away_by_any_path(database: TestDatabase) {
    let world = World::new(&database).await;
    let admin = world.first_admin().await;
    // None of these keeps the operator from being locked out.
    create_key(&world.server, &world.organization, &["keystead.admin"]).await;
    create_key(&world.server, SYSTEM, &["keystead.keys.*"]).await;
    let mortal = CreateKeyRequest {
        organization_id: SYSTEM.to_owned(),
        name: "for a day".to_owned(),
        environment: Environment::Live.into(),
        scopes: texts(&["keystead.admin"]),
        lifetime: Some(keystead::proto::v1::create_key_request::Lifetime::Ttl(days(1))),
        ..Default::default()
    };
    let (mortal, _) = world.create(mortal).await;
    let before = Footprint::of(&database).await;
    let mut keys = world.server.keys();
    let details = refused(keys.revoke_key(revoking(&admin.id)).await, Code::FailedPrecondition, LAST);
    let failure = details.precondition_failure().expect("a PreconditionFailure");
    assert!(failure.violations[0].subject.contains(&admin.id), "{failure:?}");
    for (new, path) in [
        (ApiKey { enabled: false, ..admin.clone() }, "enabled"),
        (ApiKey { scopes: vec![], ..admin.clone() }, "scopes"),
        (ApiKey { scopes: texts(&["keystead.keys.*"]), ..admin.clone() }, "scopes"),
        (ApiKey { expire_time: Some(from_now(86_400)), ..admin.clone() }, "expire_time"),
        (ApiKey { allowed_cidrs: texts(&["192.0.2.0/24"]), ..admin.clone() }, "allowed_cidrs"),
    ] {
        refused(keys.update_key(updating(new, &[path])).await, Code::FailedPrecondition, LAST);
    }
    assert_eq!(Footprint::of(&database).await, before);
    world.update(ApiKey { name: "root".to_owned(), scopes: texts(&["*"]), ..admin.clone() }, &["name", "scopes"]).await;
    world.update(ApiKey { expire_time: None, ..mortal.clone() }, &["expire_time"]).await;
    keys.revoke_key(revoking(&admin.id)).await.expect("there is another one now");
}

store_test!(an_admin_key_can_go_once_there_is_another);
async fn an_admin_key_can_go_once_there_is_another(database: TestDatabase) {
    let world = World::new(&database).await;
    let first = world.first_admin().await;
    let (second, secret) = create_key(&world.server, SYSTEM, &["keystead.admin"]).await;
    let mut keys = world.server.keys_as(&secret);
    keys.revoke_key(revoking(&first.id)).await.expect("the second stays");
    refused(world.server.keys().list_keys(ListKeysRequest::default()).await, Code::Unauthenticated, "UNAUTHENTICATED");
    refused(keys.revoke_key(revoking(&second.id)).await, Code::FailedPrecondition, LAST);
    keys.revoke_key(revoking(&first.id)).await.expect("a repeat is no second revocation");
}

store_test!(the_last_admin_key_can_be_rotated);
async fn the_last_admin_key_can_be_rotated(database: TestDatabase) {
    let world = World::new(&database).await;
    let admin = world.first_admin().await;
    let overlapping = world.rotate(&admin.id, Some(days(1))).await;
    assert_eq!(world.lasting_admins().await, 1, "the new one; the old one expires");
    let second = overlapping.key.expect("the new key");
    let mut keys = world.server.keys_as(&overlapping.secret);
    refused(keys.revoke_key(revoking(&second.id)).await, Code::FailedPrecondition, LAST);
    let request =
        keystead::proto::v1::RotateKeyRequest { key_id: second.id, overlap: Some(seconds(0)), ..Default::default() };
    let third = keys.rotate_key(request).await.expect("rotated at once").into_inner();
    refused(keys.verify_key(presenting("any")).await, Code::Unauthenticated, "UNAUTHENTICATED");
    let mut keys = world.server.keys_as(&third.secret);
    keys.revoke_key(revoking(&admin.id)).await.expect("the one that expires may go");
    let last = third.key.expect("the newest key").id;
    refused(keys.revoke_key(revoking(&last)).await, Code::FailedPrecondition, LAST);
}

/// Takes an admin key away by one of several paths.
async fn take_away(mut keys: Keys, admin: ApiKey, path: usize) -> Result<tonic::Response<()>, tonic::Status> {
    match path % 3 {
        0 => keys.revoke_key(revoking(&admin.id)).await.map(|_| tonic::Response::new(())),
        1 => {
            let new = ApiKey { enabled: false, ..admin };
            keys.update_key(updating(new, &["enabled"])).await.map(|_| tonic::Response::new(()))
        }
        _ => {
            let new = ApiKey { expire_time: Some(from_now(86_400)), ..admin };
            keys.update_key(updating(new, &["expire_time"])).await.map(|_| tonic::Response::new(()))
        }
    }
}

store_test!(of_two_admin_keys_that_are_taken_away_at_once_one_stays);
async fn of_two_admin_keys_that_are_taken_away_at_once_one_stays(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut admins = vec![(world.first_admin().await, world.server.admin_secret().to_owned())];
    for round in 0..6 {
        let (left, secret) = admins.pop().expect("an admin is left");
        let request = with(&world.new_key(), |request| {
            SYSTEM.clone_into(&mut request.organization_id);
            request.scopes = texts(&["keystead.admin"]);
        });
        let mut keys = world.server.keys_as(&secret);
        let created = keys.create_key(request).await.expect("an admin is created").into_inner();
        // A caller of its own: it must not be one of those that are taken away.
        let request = with(&world.new_key(), |request| {
            SYSTEM.clone_into(&mut request.organization_id);
            request.scopes = texts(&["*"]);
            request.lifetime = Some(keystead::proto::v1::create_key_request::Lifetime::Ttl(days(1)));
        });
        let caller = keys.create_key(request).await.expect("a caller is created").into_inner().secret;
        let pair = [(left, secret), (created.key.expect("the key"), created.secret)];
        let path = if round < 4 { 0 } else { round };
        let results = at_once(pair.into_iter().enumerate().map(|(at, (admin, secret))| {
            let keys = world.server.keys_as(&caller);
            async move { (admin.clone(), secret, take_away(keys, admin, path + at * (round / 4)).await) }
        }))
        .await;
        let mut refusals = 0;
        for (admin, secret, result) in results {
            if result.is_err() {
                refused(result, Code::FailedPrecondition, LAST);
                refusals += 1;
                admins.push((admin, secret));
            }
        }
        assert_eq!(refusals, 1, "round {round}: exactly one stays");
        let mut last = world.server.keys_as(&admins[0].1);
        last.verify_key(presenting("any")).await.expect("and it works");
    }
}
