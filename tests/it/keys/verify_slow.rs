//! `VerifyKey` of keys that were imported under a hash which takes long: the first success is VALID and stores the
//! digest, and from then on the key is as any other. How candidates are found, and what is counted of it. What is not
//! found is in `verify_slow_refused.rs`, load and faults in `verify_slow_load.rs`.
//! Invariant: a key is checked by a slow hash once.

use argon2::Algorithm;
use keystead::domain::digest::Digest;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{ApiKey, BatchVerifyKeysRequest, Consistency, ImportKey, KeyStatus, Outcome};
use sha2::{Digest as _, Sha256};

use super::import_samples::{
    CHEAP, METRICS, SOURCE, argon2_of, bare_slow, bcrypt_of, digest, events, import, is_slow, is_upgraded, look_up_id,
    naming, of, scanned, secret, sha256_hex, slow, told,
};
use super::{World, days, micros, presenting, with};
use crate::harness::{Engine, TestDatabase, contains, create_organization, hex, store_test, wait_until};

const VERIFIED: &str = "keystead_imported_verifications_total";

/// Each slow scheme in each of its versions.
const SLOW_SCHEMES: [fn(&str) -> Material; 6] = [
    |secret| Material::Bcrypt(bcrypt_of(secret, "$2a$", CHEAP)),
    |secret| Material::Bcrypt(bcrypt_of(secret, "$2b$", CHEAP)),
    |secret| Material::Bcrypt(bcrypt_of(secret, "$2y$", CHEAP)),
    |secret| Material::Argon2(argon2_of(secret, Algorithm::Argon2id)),
    |secret| Material::Argon2(argon2_of(secret, Algorithm::Argon2i)),
    |secret| Material::Argon2(argon2_of(secret, Algorithm::Argon2d)),
];

/// A key of this scheme, with what it is looked up by, and its secret.
fn hashed((at, hash): (usize, fn(&str) -> Material)) -> (String, ImportKey) {
    let secret = secret(at);
    let key = with(&of(hash(&secret)), |key| key.look_up_id = look_up_id(&secret));
    (secret, key)
}

store_test!(the_first_success_under_every_slow_scheme_stores_the_digest);
async fn the_first_success_under_every_slow_scheme_stores_the_digest(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let (secrets, keys): (Vec<String>, Vec<ImportKey>) = SLOW_SCHEMES.into_iter().enumerate().map(hashed).unzip();
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED"; 6]);
    for (secret, result) in secrets.iter().zip(&results) {
        let id = &result.key_id;
        let checks = world.slow_checks().await;
        assert!(is_slow(&database, id).await && !is_upgraded(&database, id, secret).await);
        let before = world.get(id).await;
        world.expect_valid(presenting(secret), id).await;
        assert!(is_upgraded(&database, id, secret).await, "before the answer");
        assert_eq!(world.slow_checks().await, checks + 1, "one candidate, one check");
        for request in [
            presenting(secret),
            naming(secret, id),
            with(&presenting(secret), |request| request.consistency = Consistency::Fresh.into()),
        ] {
            world.expect_valid(request, id).await;
        }
        assert_eq!(world.slow_checks().await, checks + 1, "and no further one");
        assert_eq!(events(&database, "key.rehash", id).await, 1);
        let after = world.get(id).await;
        assert_eq!((&after.name, after.status()), (&before.name, KeyStatus::Active));
        let times = (before.create_time, before.update_time);
        assert_eq!((after.create_time, after.update_time), times, "it was used and not changed");
    }
    let matched = world.counted("keystead_slow_checks_total", "result=\"matched\"").await;
    assert_eq!((matched, world.counted("keystead_slow_checks_total", "scheme=\"argon2\"").await), (6, 3));
}

store_test!(a_secret_is_compared_with_the_key_that_is_named_alone);
async fn a_secret_is_compared_with_the_key_that_is_named_alone(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let keys: Vec<ImportKey> = (0..10).map(|at| scanned(&secret(at))).collect();
    let results = world.import(keys).await;
    let id = &results[7].key_id;
    world.expect_valid(naming(&secret(7), &id.to_uppercase()), id).await;
    assert_eq!(world.slow_checks().await, 1, "and with none of the nine others");
    world.expect_valid(presenting(&secret(7)), id).await;
    assert_eq!(world.slow_checks().await, 1);
}

store_test!(a_secret_is_compared_with_those_that_its_look_up_part_leads_to);
async fn a_secret_is_compared_with_those_that_its_look_up_part_leads_to(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let found_by = |secret: &str, part: &str| with(&bare_slow(secret), |key| part.clone_into(&mut key.look_up_id));
    let whole = "ключ-Zx81kQp0aVn3Wc7d";
    let keys = vec![
        slow(&secret(0)),
        slow(&secret(1)),
        // The shortest and the longest part, and one of letters of several bytes.
        found_by(&secret(2), &secret(2)[..4]),
        found_by(&secret(3), &secret(3)),
        found_by(whole, "ключ-"),
        scanned(&secret(4)),
        scanned(&secret(5)),
    ];
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED"; 7]);
    for (at, secret) in [secret(0), secret(1), secret(2), secret(3), whole.to_owned()].iter().enumerate() {
        let checks = world.slow_checks().await;
        world.expect_valid(presenting(secret), &results[at].key_id).await;
        assert_eq!(world.slow_checks().await, checks + 1, "{secret}");
    }
    // Whoever has the same look-up part is a candidate too.
    let [one, other] = ["0", "1"].map(|end| format!("sk_shared_part_{end}_Zx81kQp0aVn3Wc7d"));
    let ids = world.import(vec![found_by(&one, "sk_shared_part"), found_by(&other, "sk_shared_part")]).await;
    world.expect_valid(presenting(&other), &ids[1].key_id).await;
    world.expect_valid(presenting(&one), &ids[0].key_id).await;
}

store_test!(a_secret_is_compared_with_those_whose_beginning_and_end_fit);
async fn a_secret_is_compared_with_those_whose_beginning_and_end_fit(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let shown = |at: usize, prefix: &str, hint: &str| {
        with(&bare_slow(&secret(at)), |key| (key.prefix, key.hint) = (prefix.to_owned(), hint.to_owned()))
    };
    let end = |at: usize| secret(at)[31..].to_owned();
    let keys = vec![
        shown(0, "sk_", &end(0)),
        shown(1, "sk_", &end(1)),
        shown(2, "", &end(2)),
        shown(3, "tk_", ""),
        shown(4, "tk_", &end(0)),
    ];
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED"; 5]);
    for (at, result) in results.iter().enumerate().take(3) {
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
        assert_eq!(world.slow_checks().await, u64::try_from(at).expect("small") + 1, "of {at}, and of no other");
    }
    for (at, result) in results.iter().enumerate().skip(3) {
        assert_eq!(world.outcome(&secret(at)).await, Outcome::NotFound, "it says that it begins otherwise");
        assert!(is_slow(&database, &result.key_id).await);
    }
    assert_eq!(world.slow_checks().await, 3);
}

store_test!(a_scan_finds_the_key_among_all_that_may_be_meant);
async fn a_scan_finds_the_key_among_all_that_may_be_meant(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let other = create_organization(&world.server, "other").await.id;
    let mut keys: Vec<ImportKey> = (0..20).map(|at| scanned(&secret(at))).collect();
    let elsewhere = with(&world.importing(keys.split_off(15)), |request| {
        request.organization_id.clone_from(&other);
    });
    let mut ids: Vec<String> = world.import(keys).await.into_iter().map(|result| result.key_id).collect();
    ids.extend(import(world.server.keys(), elsewhere).await.into_iter().map(|result| result.key_id));
    for at in [19, 0, 14, 15, 7] {
        let checks = world.slow_checks().await;
        world.expect_valid(presenting(&secret(at)), &ids[at]).await;
        let made = world.slow_checks().await - checks;
        assert!((1..=20).contains(&made), "{made} checks");
        assert!(is_upgraded(&database, &ids[at], &secret(at)).await);
        assert_eq!(events(&database, "key.rehash", &ids[at]).await, 1);
    }
    assert_eq!(database.query_i64("SELECT count(*) FROM audit_events WHERE action = 'key.rehash'").await, 5);
}

store_test!(secrets_longer_than_a_hash_sees_are_known_whole_afterwards);
async fn secrets_longer_than_a_hash_sees_are_known_whole_afterwards(database: TestDatabase) {
    let world = World::new(&database).await;
    let long = |at: usize, length: usize| format!("{}{}", secret(at), secret(at + 1).repeat(20))[..length].to_owned();
    let lengths = [71, 72, 73, 100, 512];
    let secrets: Vec<String> = lengths.into_iter().enumerate().map(|(at, length)| long(at, length)).collect();
    let mut keys: Vec<ImportKey> = secrets.iter().map(|secret| slow(secret)).collect();
    let longest = long(50, 512);
    keys.push(with(&of(Material::Argon2(argon2_of(&longest, Algorithm::Argon2id))), |key| {
        key.look_up_id = look_up_id(&longest);
    }));
    let results = world.import(keys).await;
    for (secret, result) in secrets.iter().chain([&longest]).zip(&results) {
        world.expect_valid(presenting(secret), &result.key_id).await;
        assert!(is_upgraded(&database, &result.key_id, secret).await, "{}", secret.len());
        let mut other_end = secret.clone();
        other_end.replace_range(secret.len() - 1.., "!");
        assert_eq!(world.outcome(&other_end).await, Outcome::NotFound, "{}", secret.len());
    }
}

store_test!(a_batch_decides_on_slow_keys_too);
async fn a_batch_decides_on_slow_keys_too(database: TestDatabase) {
    let world = World::new(&database).await;
    let (native, native_secret) = world.create(world.new_key()).await;
    let results = world.import(vec![slow(&secret(0)), scanned(&secret(1)), digest(&secret(2))]).await;
    let requests = vec![
        presenting(&secret(0)),
        presenting(&native_secret),
        presenting(&secret(9)),
        presenting(&secret(1)),
        presenting(&secret(0)),
        naming(&secret(1), &results[0].key_id),
        presenting(&secret(2)),
    ];
    let answer = world.server.keys().batch_verify_keys(BatchVerifyKeysRequest { requests }).await;
    let answers = answer.expect("an answer").into_inner().responses;
    let ids: Vec<&str> = answers.iter().map(|answer| answer.key_id.as_str()).collect();
    let [first, second, third] = [0, 1, 2].map(|at: usize| results[at].key_id.as_str());
    assert_eq!(ids, [first, native.id.as_str(), "", second, first, "", third]);
    for answer in &answers {
        let expected = if answer.key_id.is_empty() { Outcome::NotFound } else { Outcome::Valid };
        assert_eq!(answer.outcome(), expected);
    }
    for (at, result) in results.iter().enumerate().take(2) {
        assert!(is_upgraded(&database, &result.key_id, &secret(at)).await);
        assert_eq!(events(&database, "key.rehash", &result.key_id).await, 1);
    }
}

store_test!(a_repeat_of_the_import_finds_the_key_also_under_its_digest);
async fn a_repeat_of_the_import_finds_the_key_also_under_its_digest(database: TestDatabase) {
    let world = World::new(&database).await;
    let key = with(&slow(&secret(0)), |key| "row 1".clone_into(&mut key.source_id));
    let id = world.import_one(key.clone()).await;
    world.expect_valid(presenting(&secret(0)), &id).await;
    // The same row; the same row hashed anew, which may be another secret's; and the secret from a table that had it as it is.
    let anew = with(&slow(&secret(0)), |key| "row 1".clone_into(&mut key.source_id));
    let results = world.import(vec![key, anew, digest(&secret(0))]).await;
    assert_eq!(told(&results), ["ALREADY_IMPORTED", "ROW_CHANGED", "ALREADY_IMPORTED"]);
    assert_eq!((results[0].key_id.as_str(), results[2].key_id.as_str()), (id.as_str(), id.as_str()), "{results:?}");
    assert!(is_upgraded(&database, &id, &secret(0)).await, "a digest never becomes a slow hash again");
}

store_test!(a_secret_that_reads_as_a_digest_is_told_from_a_stored_hash_after_its_first_success);
async fn a_secret_that_reads_as_a_digest_is_told_from_a_stored_hash_after_its_first_success(database: TestDatabase) {
    let world = World::new(&database).await;
    // Of this test and this database alone: what is at rest is looked through for it.
    let own = format!("{} in {}", secret(1), world.organization);
    let text = format!("0x{}", sha256_hex(&own));
    let id = world.import_one(slow(&text)).await;
    let ordinary = world.import_one(slow(&secret(0))).await;
    world.expect_valid(presenting(&text), &id).await;
    world.expect_valid(presenting(&secret(0)), &ordinary).await;
    let says = Digest::of(&own);
    let kept: [u8; 32] = Sha256::digest(says.as_bytes()).into();
    let bytes = match database.engine {
        Engine::Sqlite => format!("X'{}'", hex(&kept)),
        Engine::Postgres => format!("'\\x{}'::bytea", hex(&kept)),
    };
    let counted = |condition: &str| format!("SELECT count(*) FROM api_keys WHERE decoded_digest {condition}");
    assert_eq!(database.query_i64(&counted(&format!("= {bytes} AND id = '{id}'"))).await, 1);
    assert_eq!(database.query_i64(&counted("IS NOT NULL")).await, 1, "of no other key");
    let results = world.import(vec![digest(&own)]).await;
    assert_eq!(told(&results), ["STORED_HASH"], "whoever has seen that hash holds a key");
    let at_rest = database.bytes_at_rest().await;
    assert!(contains(&at_rest, &kept), "what is at rest is looked through");
    for clothes in [says.as_bytes().as_slice(), &text.as_bytes()[2..]] {
        assert!(!contains(&at_rest, clothes), "from either the secret can be told");
    }
}

store_test!(an_upgraded_key_is_managed_as_any_other);
async fn an_upgraded_key_is_managed_as_any_other(database: TestDatabase) {
    let world = World::new(&database).await;
    let id = world.import_one(slow(&secret(0))).await;
    world.expect_valid(presenting(&secret(0)), &id).await;
    wait_until("the use to be counted", async || world.get(&id).await.request_count == 1).await;
    assert!(micros(world.get(&id).await.last_used_time) > 0);
    world.update(ApiKey { id: id.clone(), enabled: false, ..Default::default() }, &["enabled"]).await;
    assert_eq!(world.outcome(&secret(0)).await, Outcome::Disabled);
    world.update(ApiKey { id: id.clone(), enabled: true, ..Default::default() }, &["enabled"]).await;
    let rotated = world.rotate(&id, None).await;
    let new = rotated.key.expect("the new key");
    world.expect_valid(presenting(&rotated.secret), &new.id).await;
    assert_eq!(world.outcome(&secret(0)).await, Outcome::Revoked);
}

store_test!(a_slow_key_is_managed_before_its_first_use);
async fn a_slow_key_is_managed_before_its_first_use(database: TestDatabase) {
    let world = World::new(&database).await;
    let results = world.import(vec![slow(&secret(0)), slow(&secret(1)), slow(&secret(2))]).await;
    let [disabled, revoked, rotated] = [0, 1, 2].map(|at: usize| results[at].key_id.clone());
    world.update(ApiKey { id: disabled.clone(), enabled: false, ..Default::default() }, &["enabled"]).await;
    assert_eq!(world.outcome(&secret(0)).await, Outcome::Disabled);
    world.update(ApiKey { id: disabled.clone(), enabled: true, ..Default::default() }, &["enabled"]).await;
    world.expect_valid(presenting(&secret(0)), &disabled).await;
    world.revoke(&revoked).await;
    assert_eq!(world.outcome(&secret(1)).await, Outcome::Revoked);
    let answer = world.rotate(&rotated, Some(days(1))).await;
    world.expect_valid(presenting(&answer.secret), &answer.key.expect("the new key").id).await;
    world.expect_valid(presenting(&secret(2)), &rotated).await;
}

store_test!(verifications_are_counted_by_source_and_by_the_scheme_that_found_the_key);
async fn verifications_are_counted_by_source_and_by_the_scheme_that_found_the_key(database: TestDatabase) {
    let world = World::start(&database, &METRICS).await;
    let (_, native) = world.create(world.new_key()).await;
    let results = world.import(vec![slow(&secret(0)), digest(&secret(1))]).await;
    let elsewhere = with(&world.importing(vec![digest(&secret(2))]), |request| "other".clone_into(&mut request.source));
    import(world.server.keys(), elsewhere).await;
    for secret in [secret(0), secret(0), secret(0), secret(1), secret(2), secret(9), native] {
        world.outcome(&secret).await;
    }
    world.expect_valid(naming(&secret(1), &results[1].key_id), &results[1].key_id).await;
    let of_source = format!("source=\"{SOURCE}\"");
    wait_until("all to be counted", async || world.counted(VERIFIED, "").await == 6).await;
    assert_eq!(world.counted(VERIFIED, &of_source).await, 5, "neither natives nor strangers");
    assert_eq!(world.counted(VERIFIED, "source=\"other\"").await, 1);
    assert_eq!(world.counted(VERIFIED, "scheme=\"bcrypt\"").await, 1, "the old path is taken once");
    assert_eq!(world.counted(VERIFIED, "scheme=\"sha256\"").await, 5);
}
