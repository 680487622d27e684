//! `ImportKeys`: what binds a call although every field is well formed. The key cap, scopes beyond the caller's own,
//! weak secrets, texts that are stored hashes, whose organization it is, the size of a message, the audit log.
//! Invariant: a key that is refused leaves nothing, and a call that changes nothing leaves no audit event.

use std::collections::HashMap;

use keystead::domain::digest::Digest;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{AuditEvent, ImportKey, ImportKeysRequest, ListAuditEventsRequest, Organization, Outcome};
use prost::Message as _;
use serde_json::Value;
use tonic::Code;

use super::import_samples::{
    CHEAP, argon2_of, bcrypt_of, digest, import, look_up_id, of, plain, secret, sha256_hex, slow, told,
};
use super::{Footprint, NOBODY, SYSTEM, World, from_now, presenting, refused, texts, with};
use crate::harness::{TestDatabase, contains, create_organization, hex, store_test};

impl World {
    /// The events of imports, newest first.
    async fn import_events(&self) -> Vec<AuditEvent> {
        let request = ListAuditEventsRequest { action: "key.import".to_owned(), ..Default::default() };
        self.server.audit().list_audit_events(request).await.expect("events").into_inner().events
    }
}

store_test!(the_key_cap_holds_and_what_is_revoked_needs_no_room);
async fn the_key_cap_holds_and_what_is_revoked_needs_no_room(database: TestDatabase) {
    let world = World::new(&database).await;
    world.create(world.new_key()).await;
    world.set(Organization { max_keys: 3, ..Default::default() }, &["max_keys"]).await;
    let mut keys: Vec<ImportKey> = (0..4).map(|at| digest(&secret(at))).collect();
    keys.push(with(&digest(&secret(4)), |key| key.revoke_time = Some(from_now(-60))));
    let expected = ["CREATED", "CREATED", "KEY_CAP_REACHED", "KEY_CAP_REACHED", "CREATED"];
    let dry_run = with(&world.importing(keys.clone()), |request| request.dry_run = true);
    assert_eq!(told(&import(world.server.keys(), dry_run).await), expected);
    assert_eq!(told(&world.import(keys.clone()).await), expected);
    assert_eq!(world.outcome(&secret(2)).await, Outcome::NotFound);
    let here = ["ALREADY_IMPORTED", "ALREADY_IMPORTED", "KEY_CAP_REACHED", "KEY_CAP_REACHED", "ALREADY_IMPORTED"];
    let before = Footprint::of(&database).await;
    assert_eq!(told(&world.import(keys.clone()).await), here, "what is here needs no room again");
    assert_eq!(Footprint::of(&database).await, before);
    world.set(Organization { max_keys: 4, ..Default::default() }, &["max_keys"]).await;
    let again = vec![keys[2].clone(), keys[2].clone(), keys[3].clone(), keys[3].clone()];
    let results = world.import(again).await;
    let expected = ["CREATED", "ALREADY_IMPORTED", "KEY_CAP_REACHED", "KEY_CAP_REACHED"];
    assert_eq!(told(&results), expected, "what found no room the first time finds none the second time");
    assert_eq!(results[1].key_id, results[0].key_id);
    world.expect_valid(presenting(&secret(2)), &results[0].key_id).await;
}

store_test!(nobody_imports_a_key_with_a_permission_that_they_do_not_hold);
async fn nobody_imports_a_key_with_a_permission_that_they_do_not_hold(database: TestDatabase) {
    let world = World::new(&database).await;
    let held = ["keystead.keys.import", "keystead.usage.*"];
    let beyond = ["*", "k*", "keystead*", "keystead.*", "keystead.keys.*", "keystead.admin", "keystead.audit.read"];
    for organization in [SYSTEM, world.organization.as_str()] {
        let caller = world.caller(organization, &held).await;
        let scoped = |at: usize, scopes: &[&str]| with(&digest(&secret(at)), |key| key.scopes = texts(scopes));
        let mut keys: Vec<ImportKey> = Vec::new();
        for (at, scope) in beyond.into_iter().enumerate() {
            keys.push(scoped(at, &[scope]));
            keys.push(scoped(at, &["invoices:read", scope]));
        }
        let before = Footprint::of(&database).await;
        let results = import(world.server.keys_as(&caller), world.importing(keys)).await;
        assert!(told(&results).iter().all(|told| *told == "RESERVED_SCOPE"), "{results:?}");
        assert_eq!(Footprint::of(&database).await, before);
    }
    let caller = world.caller(&world.organization, &held).await;
    let within = ["keystead.keys.import", "keystead.usage.*", "keystead.usage.read", "invoices:*", "keystone.admin"];
    let keys = vec![
        with(&digest(&secret(100)), |key| key.scopes = texts(&within)),
        with(&digest(&secret(101)), |key| key.scopes = texts(&["keystead.admin"])),
        digest(&secret(102)),
    ];
    let results = import(world.server.keys_as(&caller), world.importing(keys)).await;
    assert_eq!(told(&results), ["CREATED", "RESERVED_SCOPE", "CREATED"]);
    assert_eq!(world.get(&results[0].key_id).await.scopes, texts(&within));
}

store_test!(an_organization_that_does_not_exist_for_the_caller_is_not_found);
async fn an_organization_that_does_not_exist_for_the_caller_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.import"]).await;
    let before = Footprint::of(&database).await;
    let into = |organization: &str| {
        with(&world.importing(vec![plain(&secret(0)), plain("short")]), |request| {
            organization.clone_into(&mut request.organization_id);
        })
    };
    for (mut keys, organization) in [
        (world.server.keys(), NOBODY),
        (world.server.keys_as(&caller), NOBODY),
        (world.server.keys_as(&caller), world.organization.as_str()),
        (world.server.keys_as(&caller), SYSTEM),
    ] {
        for dry_run in [false, true] {
            let request = with(&into(organization), |request| request.dry_run = dry_run);
            let details = refused(keys.import_keys(request).await, Code::NotFound, "ORGANIZATION_NOT_FOUND");
            assert_eq!(details.resource_info().expect("a ResourceInfo").resource_name, organization);
        }
    }
    assert_eq!(Footprint::of(&database).await, before);
    let results = import(world.server.keys_as(&caller), into(&rival)).await;
    assert_eq!(told(&results), ["CREATED", "WEAK_SECRET"], "its own is open to it");
    assert_eq!(world.get(&results[0].key_id).await.created_by, world.key_of(&caller).await);
}

store_test!(an_inactive_organization_gets_no_key);
async fn an_inactive_organization_gets_no_key(database: TestDatabase) {
    let world = World::new(&database).await;
    world.deactivate().await;
    let before = Footprint::of(&database).await;
    for dry_run in [false, true] {
        let request = with(&world.importing(vec![plain(&secret(0))]), |request| request.dry_run = dry_run);
        let result = world.server.keys().import_keys(request).await;
        let details = refused(result, Code::FailedPrecondition, "ORGANIZATION_INACTIVE");
        let precondition = details.precondition_failure().expect("a PreconditionFailure");
        assert!(precondition.violations[0].subject.contains(&world.organization), "{precondition:?}");
    }
    assert_eq!(Footprint::of(&database).await, before);
    world.activate().await;
    world.import_one(plain(&secret(0))).await;
}

store_test!(a_weak_secret_comes_in_by_consent_alone_and_is_marked);
async fn a_weak_secret_comes_in_by_consent_alone_and_is_marked(database: TestDatabase) {
    let world = World::new(&database).await;
    let weak = ["Zx81kQp0aVn3Wc7", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abcdefghijklmnopqrstuvwxyz", "0000000000000001"];
    let mut keys: Vec<ImportKey> = weak.iter().map(|secret| plain(secret)).collect();
    assert_eq!(told(&world.import(keys.clone()).await), ["WEAK_SECRET"; 4]);
    for secret in weak {
        assert_eq!(world.outcome(secret).await, Outcome::NotFound);
    }
    keys.push(plain("Zx81kQp0aVn3Wc7d"));
    keys.push(digest("0000000000000002"));
    for key in &mut keys {
        key.metadata = HashMap::from([("team".to_owned(), "billing".to_owned())]);
    }
    let consenting = with(&world.importing(keys), |request| request.allow_weak = true);
    let results = import(world.server.keys(), consenting).await;
    assert_eq!(told(&results), ["CREATED"; 6]);
    for (at, result) in results.iter().enumerate() {
        let key = world.get(&result.key_id).await;
        let mark = key.metadata.get("imported-weak").map(String::as_str);
        assert_eq!(mark, (at < 4).then_some("true"), "whose text is not known cannot be judged");
        assert_eq!(key.metadata["team"], "billing");
    }
    for (secret, result) in weak.iter().zip(&results) {
        world.expect_valid(presenting(secret), &result.key_id).await;
    }
}

store_test!(a_text_that_is_a_stored_hash_never_becomes_a_secret);
async fn a_text_that_is_a_stored_hash_never_becomes_a_secret(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, native) = world.create(world.new_key()).await;
    let imported = world.import_one(plain(&secret(0))).await;
    let hashes = [
        sha256_hex(&native),
        sha256_hex(&native).to_uppercase(),
        sha256_hex(&secret(0)),
        bcrypt_of(&secret(1), "$2b$", CHEAP),
        bcrypt_of(&secret(1), "$2y$", CHEAP).replacen("$04$", "$31$", 1),
        argon2_of(&secret(1), argon2::Algorithm::Argon2id),
    ];
    let before = Footprint::of(&database).await;
    let keys: Vec<ImportKey> = hashes.iter().map(|hash| plain(hash)).collect();
    let results = import(world.server.keys(), with(&world.importing(keys), |request| request.allow_weak = true)).await;
    assert_eq!(told(&results), ["STORED_HASH"; 6]);
    assert_eq!(Footprint::of(&database).await, before);
    for hash in &hashes {
        assert_eq!(world.outcome(hash).await, Outcome::NotFound);
    }
    // In one call, where the digest comes in before its own text.
    let both = world.import(vec![digest(&secret(2)), plain(&sha256_hex(&secret(2)))]).await;
    assert_eq!(told(&both), ["CREATED", "STORED_HASH"]);
    assert_eq!(world.outcome(&sha256_hex(&secret(2))).await, Outcome::NotFound);
    // A secret that merely looks like a digest, and is none of any key here.
    let alike = hex(Digest::of("nobody's").as_bytes());
    let id = world.import_one(plain(&alike)).await;
    world.expect_valid(presenting(&alike), &id).await;
    world.expect_valid(presenting(&secret(0)), &imported).await;
}

/// A request of exactly so many bytes, in which every key is good.
fn of_size(world: &World, bytes: usize) -> ImportKeysRequest {
    let large = |at: usize| {
        with(&digest(&secret(at)), |key| {
            key.metadata = (0..50).map(|at| (format!("entry{at:02}"), "x".repeat(500))).collect();
        })
    };
    let mut request = world.importing(vec![]);
    while request.encoded_len() + 30_000 < bytes {
        request.keys.push(large(request.keys.len()));
    }
    let last = request.keys.len();
    request.keys.push(digest(&secret(last)));
    for at in 0.. {
        let missing = bytes - request.encoded_len();
        let entry = (format!("filler{at:02}"), "x".repeat(missing.saturating_sub(40).min(450)));
        request.keys[last].metadata.insert(entry.0, entry.1);
        if missing < 490 {
            break;
        }
    }
    // The rest, byte by byte, since lengths take one byte or two.
    while request.encoded_len() < bytes {
        request.keys[last].owner_id.push('x');
    }
    request
}

store_test!(a_call_of_a_mebibyte_is_taken_and_one_byte_more_is_not);
async fn a_call_of_a_mebibyte_is_taken_and_one_byte_more_is_not(database: TestDatabase) {
    let world = World::new(&database).await;
    let before = Footprint::of(&database).await;
    let larger = of_size(&world, 1_048_577);
    assert_eq!(larger.encoded_len(), 1_048_577);
    refused(world.server.keys().import_keys(larger).await, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
    assert_eq!(Footprint::of(&database).await, before);
    let largest = of_size(&world, 1_048_576);
    assert_eq!(largest.encoded_len(), 1_048_576);
    let results = import(world.server.keys(), largest).await;
    assert!(told(&results).iter().all(|told| *told == "CREATED"), "{results:?}");
    world.expect_valid(presenting(&secret(0)), &results[0].key_id).await;
}

store_test!(a_call_leaves_one_event_that_names_its_import_and_no_material);
async fn a_call_leaves_one_event_that_names_its_import_and_no_material(database: TestDatabase) {
    let world = World::new(&database).await;
    let caller = world.caller(&world.organization, &["keystead.keys.import"]).await;
    let request = world.importing(vec![plain(&secret(0)), digest(&secret(1)), slow(&secret(2)), plain("short")]);
    let results = import(world.server.keys_as(&caller), request.clone()).await;
    assert_eq!(told(&results), ["CREATED", "CREATED", "CREATED", "WEAK_SECRET"]);
    let events = world.import_events().await;
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!((event.target_type.as_str(), &event.organization_id), ("import", &world.organization));
    assert_eq!(event.actor_key_id, world.key_of(&caller).await);
    let detail: Value = serde_json::from_str(&event.detail).expect("the detail is JSON");
    assert_eq!((&detail["source"], &detail["created"]), (&Value::from("portal"), &Value::from(3)));
    let sum = detail["key_ids_sha256"].as_str().expect("a sum over the ids");
    assert!(sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{sum}");
    for result in &results[..3] {
        let sql = format!("SELECT import_id FROM api_keys WHERE id = '{}'", result.key_id);
        assert_eq!(database.query_string(&sql).await, event.target_id);
    }
    let material = [secret(0), sha256_hex(&secret(0)), sha256_hex(&secret(1)), "$2b$".to_owned()];
    for shown in material.iter().chain([&look_up_id(&secret(2))]) {
        assert!(!event.detail.contains(shown), "{}", event.detail);
    }

    import(world.server.keys_as(&caller), request.clone()).await;
    world.import(vec![plain("short")]).await;
    import(world.server.keys(), with(&request, |request| request.dry_run = true)).await;
    assert_eq!(world.import_events().await.len(), 1, "what changes nothing leaves none");
    world.import_one(digest(&secret(3))).await;
    let events = world.import_events().await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].target_id, events[1].target_id, "calls of one source are one import");
}

store_test!(no_secret_of_an_import_stays_in_the_database_the_log_or_an_answer);
async fn no_secret_of_an_import_stays_in_the_database_the_log_or_an_answer(database: TestDatabase) {
    let world = World::start(&database, &["--log-level", "debug"]).await;
    // Of this test alone, since PostgreSQL's log of changes is that of all tests.
    let secrets: Vec<String> = (0..4).map(|_| format!("sk_{}", hex(&keystead::random::bytes::<16>()))).collect();
    let hash = bcrypt_of(&secrets[2], "$2b$", CHEAP);
    let found = with(&of(Material::Bcrypt(hash.clone())), |key| key.look_up_id = look_up_id(&secrets[2]));
    let bad = with(&plain(&secrets[3]), |key| key.environment = 0);
    let results = world.import(vec![plain(&secrets[0]), digest(&secrets[1]), found, bad]).await;
    assert_eq!(told(&results), ["CREATED", "CREATED", "CREATED", "BAD_ENVIRONMENT"]);
    let mut answers = Vec::new();
    for result in &results[..3] {
        answers.extend(world.get(&result.key_id).await.encode_to_vec());
    }
    for secret in &secrets {
        answers.extend(world.ask(presenting(secret)).await.encode_to_vec());
    }
    let (at_rest, logs) = (database.bytes_at_rest().await, world.server.logs());
    for secret in &secrets {
        for bytes in [&at_rest, &logs, &answers] {
            assert!(!contains(bytes, &secret.as_bytes()[12..]), "{secret}");
            assert!(!contains(bytes, sha256_hex(secret).as_bytes()), "the digest of {secret} as text");
        }
    }
    for bytes in [&logs, &answers] {
        assert!(!contains(bytes, hash.as_bytes()), "a stored hash is neither logged nor shown");
    }
}
