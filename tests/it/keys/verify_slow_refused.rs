//! `VerifyKey` where a slow hash does not open: wrong secrets, stored hashes that are presented, keys of others, and
//! keys that their state denies. Whatever is not found is answered as what nobody has, byte for byte.
//! Invariant: the state of a key shows to the holder of its secret alone, and a wrong secret changes nothing.

use argon2::Algorithm;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{ApiKey, Consistency, ImportKey, Outcome, RequiredScopes, VerifyKeyRequest};
use tonic::Code;

use super::import_samples::{
    CHEAP, METRICS, argon2_of, bare_slow, bcrypt_of, expect_unknown, import, is_slow, is_upgraded, look_up_id, naming,
    of, scanned, secret, sha256_hex, slow, told,
};
use super::{Footprint, NOBODY, World, from_now, presenting, refused, texts, with};
use crate::harness::{TestDatabase, create_organization, store_test};

/// A secret that has the same public part, and is another one.
fn wrong(secret: &str) -> String {
    let end = if secret.ends_with('0') { "1" } else { "0" };
    format!("{}{end}", &secret[..secret.len() - 1])
}

/// The same request in the ways that a caller may ask.
fn in_each_way(request: &VerifyKeyRequest) -> [VerifyKeyRequest; 3] {
    [
        request.clone(),
        with(request, |request| request.consistency = Consistency::Fresh.into()),
        with(request, |request| request.cost = Some(0)),
    ]
}

store_test!(a_wrong_secret_is_unknown_however_close_it_comes);
async fn a_wrong_secret_is_unknown_however_close_it_comes(database: TestDatabase) {
    let world = World::new(&database).await;
    let results = world.import(vec![slow(&secret(0)), scanned(&secret(1))]).await;
    let before = Footprint::of(&database).await;
    for (at, result) in results.iter().enumerate() {
        let (right, id) = (secret(at), result.key_id.as_str());
        for text in [
            wrong(&right),
            format!("{right}0"),
            format!(" {right}"),
            right[..34].to_owned(),
            right.to_uppercase(),
            look_up_id(&right),
            "sk_".to_owned(),
            String::new(),
            format!("{right}\0"),
            "x".repeat(600),
        ] {
            for request in [presenting(&text), naming(&text, id)].iter().flat_map(in_each_way) {
                expect_unknown(world.server.keys(), request, &format!("{text:.60?} of {at}")).await;
            }
        }
        for other in [NOBODY, &results[1 - at].key_id, &world.organization] {
            expect_unknown(world.server.keys(), naming(&right, other), "the right secret of another key").await;
        }
        assert!(is_slow(&database, id).await);
    }
    assert_eq!(Footprint::of(&database).await, before);
    for (at, result) in results.iter().enumerate() {
        world.expect_valid(naming(&secret(at), &result.key_id), &result.key_id).await;
    }
}

store_test!(a_stored_hash_never_opens_its_key);
async fn a_stored_hash_never_opens_its_key(database: TestDatabase) {
    let world = World::new(&database).await;
    let hashes = [
        Material::Bcrypt(bcrypt_of(&secret(0), "$2b$", CHEAP)),
        Material::Bcrypt(bcrypt_of(&secret(1), "$2y$", CHEAP)),
        Material::Argon2(argon2_of(&secret(2), Algorithm::Argon2id)),
    ];
    let mut presented: Vec<(String, usize)> = Vec::new();
    let mut keys = Vec::new();
    for (at, material) in hashes.into_iter().enumerate() {
        if let Material::Bcrypt(hash) | Material::Argon2(hash) = &material {
            presented.extend([(hash.clone(), at), (hash[hash.len() - 31..].to_owned(), at)]);
        }
        // One can be scanned for, so that nothing but the comparison stands in the way.
        keys.push(with(&of(material), |key| "$".clone_into(&mut key.prefix)));
    }
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED"; 3]);
    for (text, at) in &presented {
        for request in [presenting(text), naming(text, &results[*at].key_id)] {
            expect_unknown(world.server.keys(), request, "a slow hash").await;
        }
        let credential = world.server.keys_as(text).verify_key(presenting(&secret(0))).await;
        refused(credential, Code::Unauthenticated, "UNAUTHENTICATED");
    }
    // The rows say wrongly how the secrets begin: whoever names the key has his compared all the same.
    for (at, result) in results.iter().enumerate() {
        assert!(is_slow(&database, &result.key_id).await);
        world.expect_valid(naming(&secret(at), &result.key_id), &result.key_id).await;
    }
    let id = world.import_one(slow(&secret(3))).await;
    world.expect_valid(presenting(&secret(3)), &id).await;
    let hex = sha256_hex(&secret(3));
    for text in [hex.to_uppercase(), format!("\\x{hex}"), hex] {
        for request in [presenting(&text), naming(&text, &id)] {
            expect_unknown(world.server.keys(), request, "the digest, after the first use").await;
        }
    }
}

store_test!(a_slow_key_of_another_organization_is_unknown_and_not_even_compared);
async fn a_slow_key_of_another_organization_is_unknown_and_not_even_compared(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.verify"]).await;
    let results = world.import(vec![slow(&secret(0)), scanned(&secret(1))]).await;
    for (at, result) in results.iter().enumerate() {
        let wanted = Some(RequiredScopes { all_of: texts(&["a:b"]), any_of: vec![] });
        let scoped = with(&presenting(&secret(at)), |request| request.required_scopes = wanted);
        for request in [presenting(&secret(at)), naming(&secret(at), &result.key_id), scoped] {
            for request in in_each_way(&request) {
                expect_unknown(world.server.keys_as(&caller), request, "another's key").await;
            }
        }
        assert!(is_slow(&database, &result.key_id).await, "and is not upgraded by strangers");
    }
    assert_eq!(world.slow_checks().await, 0);
    let own = with(&world.importing(vec![slow(&secret(2)), scanned(&secret(3))]), |request| {
        request.organization_id.clone_from(&rival);
    });
    let own = import(world.server.keys(), own).await;
    for (at, result) in (2..).zip(&own) {
        let answer = world.server.keys_as(&caller).verify_key(presenting(&secret(at))).await.expect("an answer");
        let answer = answer.into_inner();
        assert_eq!((answer.outcome(), &answer.key_id), (Outcome::Valid, &result.key_id), "its own are open to it");
    }
    assert_eq!(world.slow_checks().await, 2, "and compared with nobody else's");
    for (at, result) in results.iter().enumerate() {
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
    }
}

/// Slow keys that are denied, each for another reason, and the outcome of each.
fn denied() -> Vec<(ImportKey, Outcome)> {
    let past = from_now(-3600);
    vec![
        (with(&slow(&secret(0)), |key| key.enabled = Some(false)), Outcome::Disabled),
        (with(&slow(&secret(1)), |key| key.expire_time = Some(past)), Outcome::Expired),
        (with(&slow(&secret(2)), |key| key.revoke_time = Some(past)), Outcome::Revoked),
        (with(&slow(&secret(3)), |key| key.allowed_cidrs = texts(&["192.0.2.0/24"])), Outcome::AddressNotAllowed),
        (with(&scanned(&secret(4)), |key| key.enabled = Some(false)), Outcome::Disabled),
        (with(&scanned(&secret(5)), |key| key.expire_time = Some(past)), Outcome::Expired),
        (with(&scanned(&secret(6)), |key| key.revoke_time = Some(past)), Outcome::Revoked),
    ]
}

store_test!(the_state_of_a_slow_key_shows_to_the_holder_of_its_secret_alone);
async fn the_state_of_a_slow_key_shows_to_the_holder_of_its_secret_alone(database: TestDatabase) {
    let world = World::new(&database).await;
    let (keys, outcomes): (Vec<ImportKey>, Vec<Outcome>) = denied().into_iter().unzip();
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED"; 7]);
    for (at, result) in results.iter().enumerate() {
        for request in [presenting(&wrong(&secret(at))), naming(&wrong(&secret(at)), &result.key_id)] {
            expect_unknown(world.server.keys(), request, "a wrong secret").await;
        }
    }
    for (at, (result, outcome)) in results.iter().zip(&outcomes).enumerate() {
        for request in [presenting(&secret(at)), naming(&secret(at), &result.key_id), presenting(&secret(at))] {
            let answer = world.ask(request).await;
            assert_eq!((answer.outcome(), &answer.key_id), (*outcome, &result.key_id), "{at}");
            assert_eq!(answer.name, "An imported key", "all but what is unknown is told with its record");
        }
    }
    for at in [0, 4] {
        let enabled = ApiKey { id: results[at].key_id.clone(), enabled: true, ..Default::default() };
        world.update(enabled, &["enabled"]).await;
        world.expect_valid(presenting(&secret(at)), &results[at].key_id).await;
        assert!(is_upgraded(&database, &results[at].key_id, &secret(at)).await);
    }
    for (at, outcome) in [(1, Outcome::Expired), (2, Outcome::Revoked), (5, Outcome::Expired), (6, Outcome::Revoked)] {
        assert_eq!(world.outcome(&secret(at)).await, outcome, "{at}");
    }
}

store_test!(a_slow_key_needs_scopes_and_an_active_organization_as_any_other);
async fn a_slow_key_needs_scopes_and_an_active_organization_as_any_other(database: TestDatabase) {
    let world = World::new(&database).await;
    let keys = vec![
        with(&slow(&secret(0)), |key| key.scopes = texts(&["invoices:read"])),
        slow(&secret(1)),
        with(&bare_slow(&secret(2)), |key| secret(2)[31..].clone_into(&mut key.hint)),
    ];
    let results = world.import(keys).await;
    let needing = |at: usize, scope: &str| {
        let scopes = Some(RequiredScopes { all_of: texts(&[scope]), any_of: vec![] });
        with(&presenting(&secret(at)), |request| request.required_scopes = scopes)
    };
    assert_eq!(world.ask(needing(0, "users:write")).await.outcome(), Outcome::InsufficientScope);
    world.expect_valid(needing(0, "invoices:read"), &results[0].key_id).await;
    world.deactivate().await;
    for at in [1, 2] {
        let answer = world.ask(presenting(&secret(at))).await;
        assert_eq!((answer.outcome(), &answer.key_id), (Outcome::OrganizationInactive, &results[at].key_id));
        expect_unknown(world.server.keys(), presenting(&wrong(&secret(at))), "a wrong secret").await;
    }
    world.activate().await;
    for at in [1, 2] {
        world.expect_valid(presenting(&secret(at)), &results[at].key_id).await;
    }
}
