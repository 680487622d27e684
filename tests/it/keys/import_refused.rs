//! Bad input to `ImportKeys`. What is wrong with one key is told of that key and hinders no other; what is wrong with
//! the call (whose keys they are, where they come from, how many) refuses the call and names every bad field.
//! Invariant: a key that is refused leaves no trace, whatever is wrong with it.

use argon2::Algorithm;
use keystead::proto::v1::import_key::Material;
use keystead::proto::v1::{ImportKey, ImportKeysRequest, Outcome, RateLimit, RevocationReason};
use prost::Message as _;

use super::bad_input::{
    LEGAL, NO_MOMENTS, NUL, TURNED, bad_credits, bad_limits, bad_metadata, good_limit, hostile, many, unreadable,
};
use super::import_samples::{
    CHEAP, SOURCE, argon2_of, bare_slow, bcrypt_of, digest, import, of, plain, secret, sha256_hex, slow, told,
};
use super::{Footprint, World, bad_fields, fields, from_now, presenting, texts, with};
use crate::harness::{TestDatabase, store_test};

/// Keys that are each wrong in one way, with the reason that each is to be refused for.
type Cases = Vec<(&'static str, ImportKey)>;

/// How many bytes of keys go in one call here, well below what a message may have.
const CALL_BYTES: usize = 500_000;

fn bad_secrets() -> Cases {
    let mut cases = Cases::new();
    for text in [
        secret(0).repeat(15),
        "x".repeat(60_000),
        format!("{}\0", secret(0)),
        format!("{}\n{}", secret(0), secret(1)),
        format!("{}\u{1b}{}", secret(0), secret(1)),
        format!("{}\u{7f}{}", secret(0), secret(1)),
        format!("{}\u{85}{}", secret(0), secret(1)),
        // Native by their beginning and not by their shape: nobody could ever verify them.
        format!("pk_live_{}", sha256_hex("x")),
        format!("pk_test_{}", &sha256_hex("x")[..42]),
        format!("pk_live_{}", secret(0)),
        format!("pk_live_{}.", &sha256_hex("x")[..42]),
    ] {
        cases.push(("BAD_SECRET", plain(&text)));
    }
    for text in ["short", "Zx81kQp0aVn3Wc7", "aaaaaaaaaaaaaaaaaaaaaaaa", "abcdefghijklmnopqrstuvwxyz", "1111111111111"]
    {
        cases.push(("WEAK_SECRET", plain(text)));
    }
    for text in [bcrypt_of(&secret(0), "$2a$", CHEAP), argon2_of(&secret(0), Algorithm::Argon2id)] {
        cases.push(("STORED_HASH", plain(&text)));
    }
    cases.push(("MISSING_MATERIAL", ImportKey { material: None, ..plain("") }));
    cases
}

fn bad_hashes() -> Cases {
    let mut bad: Vec<Material> = Vec::new();
    let (hex, bcrypt, argon2) = (sha256_hex("x"), bcrypt_of("x", "$2b$", CHEAP), argon2_of("x", Algorithm::Argon2id));
    let spellings = [
        hex[1..].to_owned(),
        format!("{hex}0"),
        format!("{}g", &hex[1..]),
        hex.replacen(&hex[..2], "  ", 1),
        format!("sha256:{hex}"),
        "é".repeat(32),
        "a".repeat(60_000),
    ];
    bad.extend(spellings.map(Material::Sha256Hex));
    let base64 = "LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=";
    let spellings = [
        hex.clone(),
        base64[..42].to_owned(),
        format!("AAAA{base64}"),
        base64.replace('+', "*"),
        base64.replacen("LX", "_+", 1),
        "A".repeat(60_000),
    ];
    bad.extend(spellings.map(Material::Sha256Base64));
    let spellings = [
        "$2b$".to_owned(),
        bcrypt[..59].to_owned(),
        format!("{bcrypt}A"),
        bcrypt.replacen("$2b$", "$2c$", 1),
        bcrypt.replacen("$2b$", "$2$", 1),
        bcrypt.replacen("$2b$", "$1$", 1),
        bcrypt.replacen("$04$", "$03$", 1),
        bcrypt.replacen("$04$", "$15$", 1),
        bcrypt.replacen("$04$", "$31$", 1),
        bcrypt.replacen("$04$", "$4$", 1),
        bcrypt.replacen("$04$", "$0x$", 1),
        format!("{}!", &bcrypt[..59]),
        argon2.clone(),
        hex.clone(),
    ];
    bad.extend(spellings.map(Material::Bcrypt));
    let spellings = [
        "$argon2id$".to_owned(),
        "$argon2id$v=19$m=64,t=1,p=1".to_owned(),
        argon2[..argon2.rfind('$').expect("parts")].to_owned(),
        argon2.replacen("m=64", "m=65537", 1),
        argon2.replacen("m=64", "m=4294967295", 1),
        argon2.replacen("t=1", "t=11", 1),
        argon2.replacen("t=1", "t=0", 1),
        argon2.replacen("p=1", "p=17", 1),
        // Less memory than its lanes need: no secret could ever be compared with it.
        argon2.replacen("p=1", "p=9", 1),
        argon2.replacen("m=64,", "", 1),
        argon2.replacen("argon2id", "argon2", 1),
        argon2.replacen("argon2id", "scrypt", 1),
        argon2.replace('$', "%"),
        bcrypt,
        hex,
    ];
    bad.extend(spellings.map(Material::Argon2));
    bad.into_iter().map(|material| ("BAD_HASH", with(&of(material), |key| "sk_".clone_into(&mut key.prefix)))).collect()
}

/// Everything about whose key it is and what it may do.
fn bad_settings() -> Cases {
    let good = digest(&secret(0));
    let mut cases = Cases::new();
    let mut add = |reason: &'static str, change: &dyn Fn(&mut ImportKey)| {
        cases.push((reason, with(&good, |key| change(key))));
    };
    for text in unreadable() {
        add("BAD_NAME", &|key| key.name.clone_from(&text));
        add("BAD_OWNER_ID", &|key| key.owner_id.clone_from(&text));
        add("BAD_SOURCE_ID", &|key| key.source_id.clone_from(&text));
        add("BAD_PREFIX", &|key| key.prefix.clone_from(&text));
        add("BAD_HINT", &|key| key.hint.clone_from(&text));
    }
    for text in ["", " ", "\u{3000}", &"🔑".repeat(201)] {
        add("BAD_NAME", &|key| text.clone_into(&mut key.name));
    }
    add("BAD_OWNER_ID", &|key| key.owner_id = "🔑".repeat(201));
    add("BAD_SOURCE_ID", &|key| key.source_id = "x".repeat(201));
    add("BAD_PREFIX", &|key| key.prefix = "x".repeat(65));
    add("BAD_HINT", &|key| "abcde".clone_into(&mut key.hint));
    for text in ["sk_", &"x".repeat(129), NUL, TURNED] {
        let slow = slow(&secret(0));
        let material = slow.material.clone();
        add("BAD_LOOK_UP_ID", &|key| {
            key.material.clone_from(&material);
            text.clone_into(&mut key.look_up_id);
        });
    }
    let unfindable = bare_slow(&secret(0)).material;
    add("BAD_LOOK_UP_ID", &|key| key.material.clone_from(&unfindable));
    for number in [0, 3, 99, -1, i32::MAX] {
        add("BAD_ENVIRONMENT", &|key| key.environment = number);
    }
    for text in hostile() {
        add("BAD_SCOPES", &|key| key.scopes = vec!["fine".to_owned(), text.clone()]);
        add("BAD_ALLOWED_CIDRS", &|key| key.allowed_cidrs = vec![text.clone(), "::/0".to_owned()]);
    }
    for scope in ["a*b", "**", "*a", "a,b", &"x".repeat(129)] {
        add("BAD_SCOPES", &|key| key.scopes = texts(&[scope]));
    }
    add("BAD_SCOPES", &|key| key.scopes = many("scope", 101));
    for cidr in ["10.0.0.1/33", "10.0.0/8", "::/129", "10.0.0.1/", "any", "10.0.0.1:80"] {
        add("BAD_ALLOWED_CIDRS", &|key| key.allowed_cidrs = texts(&[cidr]));
    }
    add("BAD_ALLOWED_CIDRS", &|key| key.allowed_cidrs = many("10.0.0.", 101));
    for limit in bad_limits() {
        add("BAD_RATE_LIMITS", &|key| key.rate_limits = vec![good_limit(), limit.clone()]);
    }
    let limits = |count| (0..count).map(|at| RateLimit { name: format!("l{at}"), ..good_limit() }).collect::<Vec<_>>();
    add("BAD_RATE_LIMITS", &|key| key.rate_limits = limits(101));
    add("BAD_RATE_LIMITS", &|key| key.rate_limits = vec![good_limit(), good_limit()]);
    for (_, credits) in bad_credits() {
        add("BAD_CREDITS", &|key| key.credits = Some(credits));
    }
    for metadata in bad_metadata(50) {
        add("BAD_METADATA", &|key| key.metadata.clone_from(&metadata));
    }
    cases
}

/// Everything about what a key has been through.
fn bad_histories() -> Cases {
    let good = digest(&secret(0));
    let mut cases = Cases::new();
    let mut add = |reason: &'static str, change: &dyn Fn(&mut ImportKey)| {
        cases.push((reason, with(&good, |key| change(key))));
    };
    for moment in NO_MOMENTS {
        add("BAD_EXPIRE_TIME", &|key| key.expire_time = Some(moment));
    }
    for moment in NO_MOMENTS.into_iter().chain([from_now(3600)]) {
        add("BAD_CREATE_TIME", &|key| key.create_time = Some(moment));
        add("BAD_LAST_USED_TIME", &|key| key.last_used_time = Some(moment));
        add("BAD_REVOKE_TIME", &|key| key.revoke_time = Some(moment));
    }
    for count in [-1, i64::MIN] {
        add("BAD_REQUEST_COUNT", &|key| key.request_count = count);
    }
    let past = from_now(-60);
    add("BAD_REVOCATION", &|key| key.revocation_reason = RevocationReason::Other.into());
    add("BAD_REVOCATION", &|key| "gone".clone_into(&mut key.revocation_note));
    for reason in [99, -1] {
        add("BAD_REVOCATION", &|key| (key.revoke_time, key.revocation_reason) = (Some(past), reason));
    }
    for note in ["a\0b", TURNED, &"x".repeat(1001)] {
        add("BAD_REVOCATION", &|key| (key.revoke_time, key.revocation_note) = (Some(past), note.to_owned()));
    }
    cases
}

/// Imports all of these, as many in a call as fit, and gives what was not told as expected.
async fn faults(world: &World, cases: Cases) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut keys, mut expected, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut cases = cases.into_iter().peekable();
    while let Some((reason, key)) = cases.next() {
        bytes += key.encoded_len();
        keys.push(key);
        expected.push(reason);
        let next = cases.peek().map_or(CALL_BYTES, |(_, key)| key.encoded_len());
        if bytes + next < CALL_BYTES {
            continue;
        }
        bytes = 0;
        let told_of: Vec<ImportKey> = std::mem::take(&mut keys);
        let results = world.import(told_of.clone()).await;
        for ((expected, told), key) in expected.drain(..).zip(told(&results)).zip(&told_of) {
            if told != expected {
                let key = String::from_utf8_lossy(&key.encode_to_vec()).chars().take(300).collect::<String>();
                faults.push(format!("{expected}, but told was {told}: {key:?}"));
            }
        }
    }
    faults
}

store_test!(each_bad_key_is_refused_by_its_reason_and_leaves_nothing);
async fn each_bad_key_is_refused_by_its_reason_and_leaves_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let before = Footprint::of(&database).await;
    let mut found = Vec::new();
    for cases in [bad_secrets(), bad_hashes(), bad_settings(), bad_histories()] {
        found.extend(faults(&world, cases).await);
    }
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(Footprint::of(&database).await, before);
}

store_test!(a_bad_key_hinders_none_of_those_around_it);
async fn a_bad_key_hinders_none_of_those_around_it(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys = Vec::new();
    let cases: Cases = [bad_hashes(), bad_histories()].into_iter().flatten().collect();
    for (at, (_, bad)) in cases.iter().filter(|(_, key)| key.encoded_len() < 10_000).enumerate() {
        keys.extend([bad.clone(), plain(&secret(1000 + at))]);
    }
    let results = world.import(keys).await;
    let told = told(&results);
    for (at, pair) in told.chunks(2).enumerate() {
        assert_ne!(pair[0], "CREATED", "{at}");
        assert_eq!(pair[1], "CREATED", "{at}");
        world.expect_valid(presenting(&secret(1000 + at)), &results[2 * at + 1].key_id).await;
    }
}

store_test!(a_key_without_anything_is_refused_and_the_call_is_answered);
async fn a_key_without_anything_is_refused_and_the_call_is_answered(database: TestDatabase) {
    let world = World::new(&database).await;
    let empty = [
        ImportKey::default(),
        of(Material::Secret(String::new())),
        of(Material::Sha256Hex(String::new())),
        of(Material::Sha256Base64(String::new())),
        of(Material::Bcrypt(String::new())),
        of(Material::Argon2(String::new())),
    ];
    let results = world.import(empty.to_vec()).await;
    let refusals = ["MISSING_MATERIAL", "BAD_SECRET", "WEAK_SECRET", "BAD_HASH", "BAD_NAME", "BAD_ENVIRONMENT"];
    assert!(told(&results).iter().all(|told| refusals.contains(told)), "{results:?}");
    assert_eq!(world.outcome("").await, Outcome::NotFound);
}

store_test!(what_is_wrong_with_the_call_refuses_the_call_and_is_named);
async fn what_is_wrong_with_the_call_refuses_the_call_and_is_named(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys = world.server.keys();
    let before = Footprint::of(&database).await;
    let good = world.importing(vec![plain(&secret(0))]);
    let mut cases: Vec<(&str, ImportKeysRequest)> = Vec::new();
    for text in hostile() {
        cases.push(("organization_id", with(&good, |request| request.organization_id.clone_from(&text))));
        cases.push(("source", with(&good, |request| request.source.clone_from(&text))));
    }
    let slug = with(&good, |request| "acme".clone_into(&mut request.organization_id));
    cases.push(("organization_id", slug));
    for text in ["a,b", "ä", "a*", &"x".repeat(65)] {
        cases.push(("source", with(&good, |request| text.clone_into(&mut request.source))));
    }
    cases.push(("keys", with(&good, |request| request.keys.clear())));
    for (field, request) in cases {
        let named = bad_fields(keys.import_keys(request).await);
        assert_eq!(named, fields(&[field]));
    }
    let nothing = bad_fields(keys.import_keys(ImportKeysRequest::default()).await);
    assert_eq!(nothing, fields(&["organization_id", "source", "keys"]), "all at once");
    // What is wrong with a key does not come into it.
    let bad_too = with(&good, |request| {
        request.source.clear();
        request.keys = vec![ImportKey::default()];
    });
    assert_eq!(bad_fields(keys.import_keys(bad_too).await), fields(&["source"]));
    assert_eq!(Footprint::of(&database).await, before);
    for source in ["a", &"x".repeat(64), "A-z_0.9:/b", SOURCE] {
        let request = with(&good, |request| source.clone_into(&mut request.source));
        assert_eq!(told(&import(world.server.keys(), request).await).len(), 1);
    }
}

store_test!(what_is_at_a_bound_or_in_any_script_is_taken);
async fn what_is_at_a_bound_or_in_any_script_is_taken(database: TestDatabase) {
    let world = World::new(&database).await;
    let longest = "🔑".repeat(200);
    let mut keys = Vec::new();
    for (at, text) in LEGAL.into_iter().chain([longest.as_str()]).enumerate() {
        keys.push(with(&plain(&secret(at)), |key| {
            text.clone_into(&mut key.name);
            text.clone_into(&mut key.owner_id);
        }));
    }
    keys.extend([
        plain(&secret(100).repeat(15)[..512]),
        plain("Zx81kQp0aVn3Wc7d"),
        plain(&format!("pk_live_{}", &sha256_hex("x")[..43])),
        plain("пароль 🔑 Zx81kQp0aVn3Wc7d"),
        with(&digest(&secret(101)), |key| (key.prefix, key.hint) = ("x".repeat(64), "🔑".repeat(4))),
        with(&digest(&secret(102)), |key| key.source_id = "x".repeat(200)),
        with(&digest(&secret(103)), |key| key.scopes = many("scope", 100)),
        with(&bare_slow(&secret(104)), |key| "sk_0".clone_into(&mut key.look_up_id)),
        with(&bare_slow(&secret(105)), |key| key.look_up_id = "x".repeat(128)),
        with(&digest(&secret(106)), |key| key.request_count = 1_000_000_000_000),
    ]);
    let dearest = [
        Material::Bcrypt(bcrypt_of(&secret(107), "$2b$", CHEAP).replacen("$04$", "$14$", 1)),
        Material::Argon2(argon2_of(&secret(108), Algorithm::Argon2i).replacen("m=64,t=1", "m=65536,t=10", 1)),
    ];
    keys.extend(dearest.map(|material| with(&of(material), |key| "sk_".clone_into(&mut key.prefix))));
    let results = world.import(keys.clone()).await;
    for ((told, result), key) in told(&results).iter().zip(&results).zip(&keys) {
        assert_eq!(*told, "CREATED", "{result:?}");
        let read = world.get(&result.key_id).await;
        assert_eq!((&read.name, &read.owner_id, &read.prefix), (&key.name, &key.owner_id, &key.prefix));
        if let Some(Material::Secret(secret)) = &key.material {
            world.expect_valid(presenting(secret), &result.key_id).await;
        }
    }
}
