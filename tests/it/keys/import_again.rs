//! `ImportKeys`: keys that meet what is here. A slow hash that comes again, before and after its first success; a row
//! whose secret is another by now; a text that is the stored hash of a key, whichever comes first; texts that hold the
//! secret; ids that are kept. Invariant: one secret is one key of one organization, and no two may do different things.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use keystead::domain::digest::Digest;
use keystead::proto::v1::{Credits, ImportKey, Outcome, RateLimit, RevocationReason};

use super::import_samples::{digest, import, naming, of, plain, secret, sha256_hex, slow, told};
use super::{Footprint, World, days, from_now, presenting, texts, with};
use crate::harness::{TestDatabase, create_organization, store_test};

/// The same key as a row of its source.
fn row(key: &ImportKey, id: &str) -> ImportKey {
    with(key, |key| id.clone_into(&mut key.source_id))
}

store_test!(a_slow_hash_is_one_key_before_and_after_its_first_success);
async fn a_slow_hash_is_one_key_before_and_after_its_first_success(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let key = slow(&secret(0));
    let results = world.import(vec![row(&key, "1"), row(&key, "2"), key.clone()]).await;
    assert_eq!(told(&results), ["CREATED", "ALREADY_IMPORTED", "ALREADY_IMPORTED"], "twice in one call is one key");
    let id = results[0].key_id.clone();
    for verified in [false, true] {
        if verified {
            world.expect_valid(presenting(&secret(0)), &id).await;
        }
        let before = Footprint::of(&database).await;
        let again = world.import(vec![row(&key, "1"), row(&key, "3"), key.clone()]).await;
        assert_eq!(told(&again), ["ALREADY_IMPORTED"; 3], "verified: {verified}");
        assert!(again.iter().all(|result| result.key_id == id));
        let elsewhere = with(&world.importing(vec![row(&key, "1"), key.clone()]), |request| {
            request.organization_id.clone_from(&rival);
        });
        let refused = import(world.server.keys(), elsewhere).await;
        assert_eq!(told(&refused), ["DUPLICATE_IN_OTHER_ORGANIZATION"; 2], "verified: {verified}");
        assert_eq!(Footprint::of(&database).await, before);
    }
}

store_test!(a_row_whose_secret_is_another_by_now_is_refused);
async fn a_row_whose_secret_is_another_by_now_is_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let first = vec![row(&plain(&secret(0)), "1"), row(&slow(&secret(1)), "2"), row(&slow(&secret(2)), "3")];
    let ids: Vec<String> = world.import(first).await.into_iter().map(|result| result.key_id).collect();
    world.expect_valid(presenting(&secret(2)), &ids[2]).await;
    let before = Footprint::of(&database).await;
    let changed = vec![
        row(&plain(&secret(10)), "1"),
        row(&slow(&secret(11)), "2"),
        row(&digest(&secret(11)), "2"),
        row(&slow(&secret(12)), "3"),
    ];
    let results = world.import(changed.clone()).await;
    assert_eq!(told(&results), ["ROW_CHANGED"; 4]);
    assert!(results[0].message.contains(&ids[0]), "{:?}", results[0]);
    let dry_run = with(&world.importing(changed), |request| request.dry_run = true);
    assert_eq!(told(&import(world.server.keys(), dry_run).await), ["ROW_CHANGED"; 4]);
    assert_eq!(Footprint::of(&database).await, before);
    for at in 10..13 {
        assert_eq!(world.outcome(&secret(at)).await, Outcome::NotFound);
    }
    world.expect_valid(presenting(&secret(0)), &ids[0]).await;
    let both = world.import(vec![row(&plain(&secret(20)), "9"), row(&plain(&secret(21)), "9")]).await;
    assert_eq!(told(&both), ["CREATED", "ROW_CHANGED"], "also in one call");
}

store_test!(a_key_that_comes_again_to_do_something_else_is_refused);
async fn a_key_that_comes_again_to_do_something_else_is_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let limit = RateLimit { name: "long".to_owned(), limit: 9, window: Some(days(400)), shadow: false };
    let first = with(&plain(&secret(0)), |key| {
        key.scopes = texts(&["invoices:read"]);
        key.credits = Some(Credits { remaining: 5, ..Default::default() });
    });
    let id = world.import_one(first.clone()).await;
    let others = vec![
        with(&first, |key| key.scopes.clear()),
        with(&first, |key| key.allowed_cidrs = texts(&["192.0.2.0/24"])),
        with(&first, |key| key.rate_limits = vec![limit.clone()]),
        with(&first, |key| key.credits = None),
        with(&first, |key| key.credits = Some(Credits { remaining: 4, ..Default::default() })),
    ];
    let before = Footprint::of(&database).await;
    assert_eq!(told(&world.import(others.clone()).await), ["DUPLICATE_DIFFERS"; 5]);
    let both = vec![plain(&secret(1)), with(&plain(&secret(1)), |key| key.scopes = texts(&["a:b"]))];
    let dry_run = with(&world.importing(both), |request| request.dry_run = true);
    assert_eq!(told(&import(world.server.keys(), dry_run).await), ["CREATED", "DUPLICATE_DIFFERS"]);
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(told(&world.import(vec![first]).await), ["ALREADY_IMPORTED"]);
    // What people have set here since is theirs.
    let renamed = keystead::proto::v1::ApiKey { id, name: "Renamed".to_owned(), ..Default::default() };
    world.update(renamed, &["name"]).await;
    assert_eq!(told(&world.import(others).await), ["ALREADY_IMPORTED"; 5]);
}

store_test!(a_hash_whose_text_is_a_secret_already_is_refused);
async fn a_hash_whose_text_is_a_secret_already_is_refused(database: TestDatabase) {
    let world = World::new(&database).await;
    let spellings: [fn(&str) -> String; 6] = [
        sha256_hex,
        |secret| sha256_hex(secret).to_uppercase(),
        |secret| STANDARD.encode(Digest::of(secret).as_bytes()),
        |secret| STANDARD_NO_PAD.encode(Digest::of(secret).as_bytes()),
        |secret| URL_SAFE.encode(Digest::of(secret).as_bytes()),
        |secret| URL_SAFE_NO_PAD.encode(Digest::of(secret).as_bytes()),
    ];
    let texts: Vec<ImportKey> = spellings.iter().enumerate().map(|(at, spell)| plain(&spell(&secret(at)))).collect();
    assert_eq!(told(&world.import(texts).await), ["CREATED"; 6], "nobody's hashes yet");
    let before = Footprint::of(&database).await;
    let hashes = (0..6).map(|at| digest(&secret(at))).collect();
    assert_eq!(told(&world.import(hashes).await), ["STORED_HASH"; 6]);
    assert_eq!(Footprint::of(&database).await, before);
    let keys = (0..6).map(|at| plain(&secret(at))).collect();
    assert_eq!(told(&world.import(keys).await), ["STORED_HASH"; 6], "nor the keys, whose digests would be stored");
    // Of one call the one whose secret would be the other's stored hash, though neither text is known.
    let both = vec![digest(&sha256_hex(&secret(11))), digest(&secret(11))];
    assert_eq!(told(&world.import(both).await), ["STORED_HASH", "CREATED"]);
    // The other way round, in base64 too.
    world.import_one(digest(&secret(10))).await;
    let texts = spellings.iter().map(|spell| plain(&spell(&secret(10)))).collect();
    assert_eq!(told(&world.import(texts).await), ["STORED_HASH"; 6]);
}

store_test!(no_text_that_is_stored_holds_the_secret);
async fn no_text_that_is_stored_holds_the_secret(database: TestDatabase) {
    let world = World::new(&database).await;
    let (shown, note) = (secret(0), format!("the key {} leaked", secret(0)));
    let cases = |key: ImportKey| {
        vec![
            ("BAD_NAME", with(&key, |key| key.name.clone_from(&shown))),
            ("BAD_OWNER_ID", with(&key, |key| key.owner_id.clone_from(&shown))),
            ("BAD_SOURCE_ID", with(&key, |key| key.source_id.clone_from(&shown))),
            ("BAD_PREFIX", with(&key, |key| key.prefix.clone_from(&shown))),
            ("BAD_LOOK_UP_ID", with(&key, |key| key.look_up_id.clone_from(&shown))),
            ("BAD_KEY_ID", with(&key, |key| key.key_id.clone_from(&shown))),
            ("BAD_SCOPES", with(&key, |key| key.scopes = vec![shown.clone()])),
            ("BAD_METADATA", with(&key, |key| key.metadata = [("token".to_owned(), shown.clone())].into())),
            ("BAD_METADATA", with(&key, |key| key.metadata = [(shown.clone(), String::new())].into())),
        ]
    };
    let revoked = with(&plain(&shown), |key| {
        (key.revoke_time, key.revocation_reason) = (Some(from_now(-60)), RevocationReason::KeyCompromise.into());
        key.revocation_note.clone_from(&note);
    });
    let mut all = cases(plain(&shown));
    all.extend(cases(digest(&shown)));
    all.push(("BAD_REVOCATION", revoked));
    all.push(("BAD_NAME", with(&plain(&shown), |key| key.name.clone_from(&note))));
    all.push(("BAD_PREFIX", with(&plain(&shown), |key| shown[..18].clone_into(&mut key.prefix))));
    all.push(("BAD_LOOK_UP_ID", with(&plain(&shown), |key| shown[..18].clone_into(&mut key.look_up_id))));
    let before = Footprint::of(&database).await;
    let (expected, keys): (Vec<&str>, Vec<ImportKey>) = all.into_iter().unzip();
    assert_eq!(told(&world.import(keys).await), expected);
    assert_eq!(Footprint::of(&database).await, before);
    let short = with(&plain("test"), |key| "test".clone_into(&mut key.hint));
    let keys = vec![short.clone(), with(&short, |key| key.hint.clear())];
    let results = import(world.server.keys(), with(&world.importing(keys), |request| request.allow_weak = true)).await;
    assert_eq!(told(&results), ["BAD_HINT", "CREATED"]);
    assert_eq!(world.get(&results[1].key_id).await.hint, "", "four characters of four would be the secret");
}

store_test!(white_space_around_a_secret_or_a_hash_is_taken_off);
async fn white_space_around_a_secret_or_a_hash_is_taken_off(database: TestDatabase) {
    use keystead::proto::v1::import_key::Material;
    let world = World::new(&database).await;
    let keys = vec![
        plain(&format!(" \t{}\r\n", secret(0))),
        of(Material::Sha256Hex(format!("{}\n", sha256_hex(&secret(1))))),
        of(Material::Sha256Base64(format!(" {} ", STANDARD.encode(Digest::of(&secret(2)).as_bytes())))),
    ];
    let results = world.import(keys).await;
    assert_eq!(told(&results), ["CREATED"; 3]);
    for (at, result) in results.iter().enumerate() {
        world.expect_valid(presenting(&secret(at)), &result.key_id).await;
    }
}

store_test!(a_key_keeps_the_id_that_it_is_known_by);
async fn a_key_keeps_the_id_that_it_is_known_by(database: TestDatabase) {
    let world = World::new(&database).await;
    let uuid = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";
    let named = |key: &ImportKey, id: &str| with(key, |key| id.clone_into(&mut key.key_id));
    let bare = ImportKey { material: None, ..plain("") };
    let keys = vec![
        named(&plain(&secret(0)), uuid),
        named(&slow(&secret(1)), "ak_live:1"),
        named(&bare, "ak_live:2"),
        named(&digest(&secret(3)), "ak_live:1"),
        named(&digest(&secret(0)), "ak_live:9"),
        named(&digest(&secret(4)), "not an id"),
    ];
    let expected = ["CREATED", "CREATED", "CREATED", "ID_TAKEN", "DUPLICATE_SECRET", "BAD_KEY_ID"];
    let results = world.import(keys.clone()).await;
    assert_eq!(told(&results), expected);
    assert_eq!(results[0].key_id, uuid);
    world.expect_valid(naming(&secret(1), "ak_live:1"), &results[1].key_id).await;
    let answer = world.ask(naming("whatever was its secret", "ak_live:2")).await;
    assert_eq!((answer.outcome(), answer.key_id.as_str()), (Outcome::Disabled, results[2].key_id.as_str()));
    let again = world.import(keys[..3].to_vec()).await;
    assert_eq!(told(&again), ["ALREADY_IMPORTED"; 3]);
    assert_eq!(told(&world.import(vec![named(&bare, "ak_live:1")]).await), ["ID_TAKEN"]);
}
