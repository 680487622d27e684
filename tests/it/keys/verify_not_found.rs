//! `VerifyKey`: the outcome `NOT_FOUND`, for all that is no key of the caller's. Whatever the cause, the answer
//! is the same bytes, so that nobody learns from it whether a key exists.
//! Invariant: each case here is compared with the encoding of a message that holds the outcome and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use keystead::proto::v1::{
    Consistency, DeleteOrganizationRequest, Outcome, RequiredScopes, VerifyKeyRequest, VerifyKeyResponse,
};
use prost::Message;
use sha2::{Digest, Sha256};

use super::{NOBODY, World, presenting, texts, with};
use crate::harness::{TestDatabase, create_key, create_organization, store_test};

/// Verifies each request as the holder of `caller` and compares the answer's bytes with those of a bare `NOT_FOUND`.
async fn assert_all_not_found(world: &World, caller: &str, requests: Vec<(String, VerifyKeyRequest)>) {
    let mut keys = world.server.keys_as(caller);
    let bare = VerifyKeyResponse { outcome: Outcome::NotFound.into(), ..Default::default() }.encode_to_vec();
    for (case, request) in requests {
        let answer = keys.verify_key(request).await.unwrap_or_else(|status| panic!("{case}: {status:?}"));
        assert_eq!(answer.into_inner().encode_to_vec(), bare, "{case}");
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// What a digest looks like to somebody who has stolen one.
fn digests(secret: &str) -> Vec<String> {
    let digest = Sha256::digest(secret.as_bytes());
    let hex = hex_of(&digest);
    let native = format!("pk_live_{}", URL_SAFE_NO_PAD.encode(digest));
    assert_eq!(native.len(), 51, "this one even has the shape of a secret");
    vec![
        hex.to_uppercase(),
        format!("sha256:{hex}"),
        format!("\\x{hex}"),
        hex,
        STANDARD.encode(digest),
        URL_SAFE.encode(digest),
        URL_SAFE_NO_PAD.encode(digest),
        native,
    ]
}

fn unknown_secrets(secret: &str) -> Vec<String> {
    let swapped_end = if secret.ends_with('A') { "B" } else { "A" };
    let mut unknown = vec![
        format!("pk_live_{}", "A".repeat(43)),
        format!("pk_test_{}", "0".repeat(43)),
        secret.replacen("live", "test", 1),
        secret.to_uppercase(),
        secret.to_lowercase(),
        format!("{}{swapped_end}", &secret[..50]),
        secret[..50].to_owned(),
        secret[8..].to_owned(),
        format!("{secret}A"),
        format!(" {secret}"),
        format!("{secret} "),
        format!("Bearer {secret}"),
        "pk_live_".to_owned(),
        "pk".to_owned(),
        String::new(),
        "sk_4eC39HqLyjWDarjtT1zdp7dc".to_owned(),
        "x".repeat(512),
        "x".repeat(513),
        "x".repeat(600),
        format!("{secret}{}", "x".repeat(549)),
        "x".repeat(60_000),
        "🔑".repeat(20),
        "\u{202e}evil".to_owned(),
        "' OR 1=1; --".to_owned(),
        "%".to_owned(),
        "_".repeat(51),
    ];
    for control in ['\0', '\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{85}'] {
        unknown.push(format!("{secret}{control}"));
        unknown.push(format!("{control}{secret}"));
        unknown.push(format!("{}{control}{}", &secret[..20], &secret[20..]));
    }
    unknown
}

store_test!(an_unknown_or_malformed_secret_is_not_found);
async fn an_unknown_or_malformed_secret_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    let mut requests = Vec::new();
    for text in unknown_secrets(&secret) {
        let request = presenting(&text);
        requests.push((format!("{text:.60?}"), request.clone()));
        let fresh = with(&request, |request| request.consistency = Consistency::Fresh.into());
        requests.push((format!("{text:.60?}, fresh"), fresh));
    }
    assert_all_not_found(&world, world.server.admin_secret(), requests).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
}

store_test!(a_digest_never_authenticates);
async fn a_digest_never_authenticates(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let mut requests = Vec::new();
    for text in digests(&secret) {
        requests.push((text.clone(), presenting(&text)));
        requests.push((text.clone(), with(&presenting(&text), |request| request.key_id = Some(key.id.clone()))));
    }
    assert_all_not_found(&world, world.server.admin_secret(), requests).await;
    for text in digests(world.server.admin_secret()) {
        let refusal = world.server.keys_as(&text).verify_key(presenting(&secret)).await;
        super::refused(refusal, tonic::Code::Unauthenticated, "UNAUTHENTICATED");
    }
}

store_test!(a_secret_of_another_key_than_the_named_one_is_not_found);
async fn a_secret_of_another_key_than_the_named_one_is_not_found(database: TestDatabase) {
    let world = World::new(&database).await;
    let (first, secret) = world.create(world.new_key()).await;
    let (second, other) = world.create(world.new_key()).await;
    let named = |secret: &str, id: &str| with(&presenting(secret), |request| request.key_id = Some(id.to_owned()));
    let requests = vec![
        ("another key".to_owned(), named(&secret, &second.id)),
        ("the other way round".to_owned(), named(&other, &first.id)),
        ("no key at all".to_owned(), named(&secret, NOBODY)),
        ("the organization".to_owned(), named(&secret, &world.organization)),
    ];
    assert_all_not_found(&world, world.server.admin_secret(), requests.clone()).await;
    assert_eq!(world.ask(named(&secret, &first.id)).await.outcome(), Outcome::Valid);
    assert_eq!(world.ask(named(&secret, &first.id.to_uppercase())).await.outcome(), Outcome::Valid);
    world.revoke(&first.id).await;
    assert_all_not_found(&world, world.server.admin_secret(), requests).await;
}

store_test!(another_tenants_key_is_not_found_whatever_its_state);
async fn another_tenants_key_is_not_found_whatever_its_state(database: TestDatabase) {
    let world = World::new(&database).await;
    let rival = create_organization(&world.server, "rival").await.id;
    let caller = world.caller(&rival, &["keystead.keys.verify"]).await;
    let request = with(&world.new_key(), |request| {
        request.allowed_cidrs = texts(&["10.0.0.0/8"]);
        request.scopes = texts(&["invoices:read"]);
    });
    let (key, secret) = world.create(request).await;
    let (revoked, revoked_secret) = world.create(world.new_key()).await;
    world.revoke(&revoked.id).await;
    let scopes = RequiredScopes { all_of: texts(&["users:write"]), any_of: vec![] };
    let plain = presenting(&secret);
    let requests = vec![
        ("valid".to_owned(), plain.clone()),
        ("named".to_owned(), with(&plain, |request| request.key_id = Some(key.id.clone()))),
        ("revoked".to_owned(), presenting(&revoked_secret)),
        ("scope".to_owned(), with(&plain, |request| request.required_scopes = Some(scopes))),
        ("address".to_owned(), with(&plain, |request| "192.0.2.1".clone_into(&mut request.client_address))),
        ("limit".to_owned(), with(&plain, |request| request.limit_names = texts(&["no-such-limit"]))),
        ("peek".to_owned(), with(&plain, |request| request.cost = Some(0))),
        ("fresh".to_owned(), with(&plain, |request| request.consistency = Consistency::Fresh.into())),
        ("first admin".to_owned(), presenting(world.server.admin_secret())),
    ];
    assert_all_not_found(&world, &caller, requests.clone()).await;
    world.deactivate().await;
    assert_all_not_found(&world, &caller, requests).await;
    let (_, own) = create_key(&world.server, &rival, &[]).await;
    let answer = world.server.keys_as(&caller).verify_key(presenting(&own)).await.expect("an answer").into_inner();
    assert_eq!(answer.outcome(), Outcome::Valid, "its own keys exist for it");
}

store_test!(a_deleted_key_is_not_found_at_once);
async fn a_deleted_key_is_not_found_at_once(database: TestDatabase) {
    let world = World::new(&database).await;
    let (_, secret) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&secret).await, Outcome::Valid);
    let request =
        DeleteOrganizationRequest { organization_id: world.organization.clone(), force: true, ..Default::default() };
    world.server.organizations().delete_organization(request).await.expect("it is deleted with its keys");
    assert_all_not_found(&world, world.server.admin_secret(), vec![("deleted".to_owned(), presenting(&secret))]).await;
}
