//! `ImportKeys`: a result for each key in the order of the request, whatever becomes of the others, and keys that
//! their secrets open at once. What is kept of a key is in `import_kept.rs`, what binds a call in `import_bounds.rs`,
//! calls at the same time in `import_at_once.rs`, and bad input in `import_refused.rs`.
//! Invariant: a repeat and a dry run change nothing.

use std::collections::BTreeSet;

use argon2::Algorithm;
use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use keystead::domain::digest::Digest;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{Environment, ImportKey, KeyStatus, Outcome};

use super::import_samples::{
    CHEAP, argon2_of, bare_slow, bcrypt_of, digest, expect_unknown, import, look_up_id, naming, of, plain, secret,
    sha256_hex, slow, told,
};
use super::{Footprint, World, bad_fields, fields, from_now, presenting, with};
use crate::harness::{TestDatabase, create_organization, store_test};

async fn imports(database: &TestDatabase) -> i64 {
    database.query_i64("SELECT count(*) FROM imports").await
}

store_test!(each_key_has_its_result_in_the_order_of_the_request);
async fn each_key_has_its_result_in_the_order_of_the_request(database: TestDatabase) {
    let world = World::new(&database).await;
    let (native, native_secret) = world.create(world.new_key()).await;
    let keys = vec![
        plain(&secret(0)),
        with(&plain(&secret(1)), |key| key.name = String::new()),
        digest(&secret(2)),
        plain("short"),
        plain(&secret(0)),
        plain(&secret(2)),
        digest(&native_secret),
        slow(&secret(3)),
    ];
    let results = world.import(keys).await;
    let (created, already) = ("CREATED", "ALREADY_IMPORTED");
    let expected = [created, "BAD_NAME", created, "WEAK_SECRET", already, already, already, created];
    assert_eq!(told(&results), expected, "what was refused hinders no other");
    assert_eq!(results[4].key_id, results[0].key_id, "twice in one call is one key");
    assert_eq!(results[5].key_id, results[2].key_id, "also where it was given as a digest before");
    assert_eq!(results[6].key_id, native.id, "also where it was issued here");
    for (at, of) in [(0, 0), (2, 2), (3, 7)] {
        world.expect_valid(presenting(&secret(at)), &results[of].key_id).await;
    }
    world.expect_valid(presenting(&native_secret), &native.id).await;
    assert_eq!(world.outcome(&secret(1)).await, Outcome::NotFound);
    assert_eq!(world.outcome("short").await, Outcome::NotFound);
}

store_test!(a_dry_run_tells_the_results_and_changes_nothing);
async fn a_dry_run_tells_the_results_and_changes_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let first = world.import_one(plain(&secret(0))).await;
    let keys = vec![
        digest(&secret(0)),
        plain(&secret(1)),
        plain(&secret(1)),
        digest(&secret(2)),
        slow(&secret(3)),
        plain("short"),
        with(&plain(&secret(4)), |key| key.environment = 0),
    ];
    let before = (Footprint::of(&database).await, imports(&database).await);
    let elsewhere = with(&world.importing(keys.clone()), |request| {
        request.dry_run = true;
        "another".clone_into(&mut request.source);
    });
    import(world.server.keys(), elsewhere).await;
    let dry_run = with(&world.importing(keys.clone()), |request| request.dry_run = true);
    let dry = import(world.server.keys(), dry_run).await;
    assert_eq!((Footprint::of(&database).await, imports(&database).await), before);
    for at in 1..4 {
        assert_eq!(world.outcome(&secret(at)).await, Outcome::NotFound);
    }
    let results = world.import(keys).await;
    assert_eq!(told(&dry), told(&results), "it was told as it came");
    assert_eq!(dry[0].key_id, first, "the id of a key that is here is told");
    assert_eq!((dry[1].key_id.as_str(), dry[2].key_id.as_str()), ("", ""), "and what is to be created has none yet");
    for (at, of) in [(1, 1), (2, 3), (3, 4)] {
        world.expect_valid(presenting(&secret(at)), &results[of].key_id).await;
    }
}

store_test!(a_thousand_keys_come_in_by_one_call_and_one_more_is_too_many);
async fn a_thousand_keys_come_in_by_one_call_and_one_more_is_too_many(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys: Vec<ImportKey> = (0..1001).map(|at| digest(&secret(at))).collect();
    let before = Footprint::of(&database).await;
    for keys in [keys.clone(), vec![]] {
        let request = world.importing(keys);
        assert_eq!(bad_fields(world.server.keys().import_keys(request).await), fields(&["keys"]));
    }
    assert_eq!(Footprint::of(&database).await, before);
    keys.truncate(1000);
    let results = world.import(keys).await;
    assert!(told(&results).iter().all(|told| *told == "CREATED"), "{results:?}");
    let ids: BTreeSet<&str> = results.iter().map(|result| result.key_id.as_str()).collect();
    assert_eq!(ids.len(), 1000, "each has an id of its own");
    for at in [0, 499, 999] {
        world.expect_valid(presenting(&secret(at)), &results[at].key_id).await;
    }
    let sql = format!("SELECT count(*) FROM api_keys WHERE organization_id = '{}'", world.organization);
    assert_eq!(database.query_i64(&sql).await, 1000);
    assert_eq!(imports(&database).await, 1);
}

/// The digest of a secret in one spelling of base64.
fn base64(engine: &GeneralPurpose, secret: &str) -> Material {
    Material::Sha256Base64(engine.encode(Digest::of(secret).as_bytes()))
}

/// Every spelling of every kind of material.
const SPELLINGS: [fn(&str) -> Material; 14] = [
    |secret| Material::Secret(secret.to_owned()),
    |secret| Material::Sha256Hex(sha256_hex(secret)),
    |secret| Material::Sha256Hex(sha256_hex(secret).to_uppercase()),
    |secret| Material::Sha256Hex(sha256_hex(secret).replace('a', "A").replace('d', "D")),
    |secret| base64(&STANDARD, secret),
    |secret| base64(&STANDARD_NO_PAD, secret),
    |secret| base64(&URL_SAFE, secret),
    |secret| base64(&URL_SAFE_NO_PAD, secret),
    |secret| Material::Bcrypt(bcrypt_of(secret, "$2a$", CHEAP)),
    |secret| Material::Bcrypt(bcrypt_of(secret, "$2b$", CHEAP)),
    |secret| Material::Bcrypt(bcrypt_of(secret, "$2y$", CHEAP)),
    |secret| Material::Argon2(argon2_of(secret, Algorithm::Argon2id)),
    |secret| Material::Argon2(argon2_of(secret, Algorithm::Argon2i)),
    |secret| Material::Argon2(argon2_of(secret, Algorithm::Argon2d)),
];

/// A key in this spelling, with what it is to be found by, and its secret. Both characters in which the alphabets of
/// base64 differ are in the digest.
fn spelled((place, spelling): (usize, fn(&str) -> Material)) -> (String, ImportKey) {
    let tells = |secret: &String| {
        let text = STANDARD.encode(Digest::of(secret).as_bytes());
        text.contains('+') && text.contains('/')
    };
    let secret = (place * 1000..(place + 1) * 1000).map(secret).find(tells).expect("one in four");
    let key = with(&of(spelling(&secret)), |key| {
        if matches!(key.material, Some(Material::Bcrypt(_) | Material::Argon2(_))) {
            key.look_up_id = look_up_id(&secret);
        }
    });
    (secret, key)
}

store_test!(every_kind_of_material_makes_a_key_that_its_secret_opens);
async fn every_kind_of_material_makes_a_key_that_its_secret_opens(database: TestDatabase) {
    let world = World::new(&database).await;
    let (secrets, keys): (Vec<String>, Vec<ImportKey>) = SPELLINGS.into_iter().enumerate().map(spelled).unzip();
    let results = world.import(keys).await;
    assert!(told(&results).iter().all(|told| *told == "CREATED"), "{results:?}");
    for (secret, result) in secrets.iter().zip(&results) {
        world.expect_valid(presenting(secret), &result.key_id).await;
        world.expect_valid(presenting(secret), &result.key_id).await;
        world.expect_valid(naming(secret, &result.key_id), &result.key_id).await;
    }
}

store_test!(a_slow_hash_that_only_a_kept_id_leads_to_is_taken_and_found_by_that_id);
async fn a_slow_hash_that_only_a_kept_id_leads_to_is_taken_and_found_by_that_id(database: TestDatabase) {
    let world = World::new(&database).await;
    let kept = |key: ImportKey, id: &str| with(&key, |key| id.clone_into(&mut key.key_id));
    let argon2 = of(Material::Argon2(argon2_of(&secret(1), Algorithm::Argon2id)));
    let keys = vec![kept(bare_slow(&secret(0)), "ak_0"), kept(argon2, "ak_1"), bare_slow(&secret(2))];
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED", "CREATED", "BAD_LOOK_UP_ID"], "to the last one nothing leads");
    for (at, result) in results.iter().take(2).enumerate() {
        let named = format!("ak_{at}");
        expect_unknown(world.server.keys(), naming(&secret(2), &named), "another secret").await;
        world.expect_valid(naming(&secret(at), &named), &result.key_id).await;
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
    }
}

store_test!(a_secret_that_was_tried_before_its_import_is_valid_at_once);
async fn a_secret_that_was_tried_before_its_import_is_valid_at_once(database: TestDatabase) {
    let world = World::new(&database).await;
    for (at, make) in [plain, digest, slow].into_iter().enumerate() {
        let secret = secret(at);
        for _ in 0..2 {
            assert_eq!(world.outcome(&secret).await, Outcome::NotFound, "and known to be unknown");
        }
        let id = world.import_one(make(&secret)).await;
        world.expect_valid(presenting(&secret), &id).await;
    }
}

store_test!(a_repeat_changes_nothing_and_names_the_same_keys);
async fn a_repeat_changes_nothing_and_names_the_same_keys(database: TestDatabase) {
    let world = World::new(&database).await;
    let from_row = |key: ImportKey, id: &str| with(&key, |key| id.clone_into(&mut key.source_id));
    let ended = |key: ImportKey| with(&key, |key| key.revoke_time = Some(from_now(-60)));
    let keys = vec![
        from_row(plain(&secret(0)), "row 1"),
        plain(&secret(1)),
        from_row(digest(&secret(2)), "row 2"),
        from_row(slow(&secret(3)), "row 3"),
        slow(&secret(4)),
        ended(digest(&secret(5))),
    ];
    let first = world.import(keys.clone()).await;
    assert_eq!(told(&first), ["CREATED"; 6]);
    let before = Footprint::of(&database).await;
    let renamed = |key: &ImportKey| with(key, |key| "Another name".clone_into(&mut key.name));
    for repeat in [keys.clone(), keys.iter().map(renamed).collect()] {
        let again = world.import(repeat).await;
        assert_eq!(told(&again), ["ALREADY_IMPORTED"; 6]);
        for (again, first) in again.iter().zip(&first) {
            assert_eq!(again.key_id, first.key_id);
            assert_eq!(world.get(&first.key_id).await.name, "An imported key");
        }
    }
    let elsewhere = with(&world.importing(keys[..3].to_vec()), |request| "another".clone_into(&mut request.source));
    let elsewhere = import(world.server.keys(), elsewhere).await;
    assert_eq!(told(&elsewhere), ["ALREADY_IMPORTED"; 3], "the material tells, wherever it comes from");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(a_row_of_a_source_comes_in_once_also_where_one_call_has_it_twice);
async fn a_row_of_a_source_comes_in_once_also_where_one_call_has_it_twice(database: TestDatabase) {
    let world = World::new(&database).await;
    let of_row = |at: usize| with(&plain(&secret(at)), |key| "row 1".clone_into(&mut key.source_id));
    let results = world.import(vec![of_row(0), of_row(1), plain(&secret(2))]).await;
    let told = told(&results);
    assert_eq!((told[0], told[2]), ("CREATED", "CREATED"));
    assert_ne!(told[1], "CREATED");
    assert_eq!(world.outcome(&secret(1)).await, Outcome::NotFound);
}

store_test!(a_key_that_comes_again_stricter_is_refused_and_never_loosened);
async fn a_key_that_comes_again_stricter_is_refused_and_never_loosened(database: TestDatabase) {
    let world = World::new(&database).await;
    let day = 86_400;
    let (end, later) = (from_now(day), from_now(2 * day));
    let open = world.import_one(plain(&secret(0))).await;
    let ending = world.import_one(with(&plain(&secret(1)), |key| key.expire_time = Some(end))).await;
    let ended = world.import_one(with(&plain(&secret(2)), |key| key.revoke_time = Some(from_now(-60)))).await;
    let before = Footprint::of(&database).await;
    let stricter = vec![
        with(&digest(&secret(0)), |key| key.enabled = Some(false)),
        with(&digest(&secret(0)), |key| key.revoke_time = Some(from_now(-60))),
        with(&digest(&secret(0)), |key| key.expire_time = Some(later)),
        with(&digest(&secret(1)), |key| key.expire_time = Some(from_now(day / 2))),
    ];
    let results = world.import(stricter).await;
    assert_eq!(told(&results), ["DUPLICATE_DIFFERS"; 4], "nobody may think that it was taken over");
    let looser = vec![
        with(&digest(&secret(1)), |key| key.expire_time = Some(later)),
        digest(&secret(1)),
        digest(&secret(2)),
        with(&digest(&secret(2)), |key| key.enabled = Some(false)),
    ];
    assert_eq!(told(&world.import(looser).await), ["ALREADY_IMPORTED"; 4]);
    assert_eq!(Footprint::of(&database).await, before);
    world.expect_valid(presenting(&secret(0)), &open).await;
    assert_eq!(world.get(&ending).await.expire_time, Some(end), "an expiry is never moved later");
    assert_eq!(world.get(&ended).await.status(), KeyStatus::Revoked);
    assert_eq!(world.outcome(&secret(2)).await, Outcome::Revoked);
}

store_test!(a_key_of_another_organization_is_refused_and_nothing_of_it_told);
async fn a_key_of_another_organization_is_refused_and_nothing_of_it_told(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let ids = [
        world.import_one(plain(&secret(0))).await,
        world.import_one(with(&digest(&secret(1)), |key| key.environment = Environment::Test.into())).await,
        world.create(world.new_key()).await.0.id,
    ];
    let caller = world.caller(&rival, &["keystead.keys.import"]).await;
    let request = with(&world.importing(vec![digest(&secret(0)), plain(&secret(1)), plain(&secret(2))]), |request| {
        request.organization_id.clone_from(&rival);
    });
    let expected = ["DUPLICATE_IN_OTHER_ORGANIZATION", "DUPLICATE_IN_OTHER_ORGANIZATION", "CREATED"];
    let results = import(world.server.keys_as(&caller), request).await;
    assert_eq!(told(&results), expected);
    for result in &results[..2] {
        for named in ids.iter().chain([&world.organization]) {
            assert!(!result.message.contains(named), "{result:?}");
        }
    }
    assert_eq!(world.ask(presenting(&secret(0))).await.organization_id, world.organization);
    assert_eq!(world.ask(presenting(&secret(2))).await.organization_id, rival);
}
