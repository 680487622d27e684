//! Bad input to the rpcs that read and change keys: `GetKey`, `ListKeys`, `UpdateKey`, `RotateKey`,
//! `RevokeKey`. Every bad field is named, nothing else is, nothing changes, and no refusal repeats a value that
//! may be a secret in the wrong field.

use keystead::proto::v1::{
    ApiKey, CreateKeyRequest, GetKeyRequest, ListKeysRequest, RateLimit, RevokeKeyRequest, RotateKeyRequest,
    UpdateKeyRequest, VerifyKeyRequest,
};
use tonic::Status;

use super::bad_input::{
    NO_MOMENTS, NUL, TURNED, bad_credits, bad_limits, bad_metadata, good_limit, hostile, many, unreadable,
};
use super::{Footprint, World, bad_fields, fault_of, fields, from_now, mask, seconds, texts, updating, with};
use crate::harness::{TestDatabase, contains, store_test};

store_test!(get_rotate_and_revoke_name_every_bad_field);
async fn get_rotate_and_revoke_name_every_bad_field(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let mut keys = world.server.keys();
    let before = Footprint::of(&database).await;
    for key_id in hostile() {
        let get = keys.get_key(GetKeyRequest { key_id: key_id.clone() }).await;
        assert_eq!(bad_fields(get), fields(&["key_id"]));
        let rotate = RotateKeyRequest { key_id: key_id.clone(), overlap: Some(seconds(-1)), etag: "x".repeat(65) };
        assert_eq!(bad_fields(keys.rotate_key(rotate).await), fields(&["key_id", "overlap", "etag"]));
        let revoke = RevokeKeyRequest { key_id, reason: 7, note: NUL.to_owned(), etag: "x".repeat(65) };
        assert_eq!(bad_fields(keys.revoke_key(revoke).await), fields(&["key_id", "reason", "note", "etag"]));
    }
    for reason in [7, 99, -1, i32::MIN] {
        let request = RevokeKeyRequest { key_id: key.id.clone(), reason, ..Default::default() };
        assert_eq!(bad_fields(keys.revoke_key(request).await), fields(&["reason"]));
    }
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.get(&key.id).await, key);
}

fn update_cases(good: &ApiKey) -> Vec<(String, UpdateKeyRequest)> {
    let mut cases = Vec::new();
    let mut add = |field: &str, path: &str, change: &dyn Fn(&mut ApiKey)| {
        cases.push((field.to_owned(), updating(with(good, |key| change(key)), &[path])));
    };
    for text in hostile() {
        add("key.id", "name", &|key| key.id.clone_from(&text));
        add("key.scopes[1]", "scopes", &|key| key.scopes = vec!["fine".to_owned(), text.clone()]);
        add("key.allowed_cidrs[0]", "allowed_cidrs", &|key| key.allowed_cidrs = vec![text.clone()]);
    }
    for text in unreadable() {
        add("key.name", "name", &|key| key.name.clone_from(&text));
        add("key.owner_id", "owner_id", &|key| key.owner_id.clone_from(&text));
    }
    add("key.name", "name", &|key| key.name = String::new());
    add("key.scopes", "scopes", &|key| key.scopes = many("scope", 1001));
    add("key.allowed_cidrs[0]", "allowed_cidrs", &|key| key.allowed_cidrs = texts(&["10.0.0.1/33"]));
    for limit in bad_limits() {
        add("key.rate_limits[1]", "rate_limits", &|key| key.rate_limits = vec![good_limit(), limit.clone()]);
    }
    let limits = |count| (0..count).map(|at| RateLimit { name: format!("l{at}"), ..good_limit() }).collect::<Vec<_>>();
    add("key.rate_limits", "rate_limits", &|key| key.rate_limits = limits(101));
    add("key.rate_limits[1].name", "rate_limits", &|key| key.rate_limits = vec![good_limit(), good_limit()]);
    for (field, credits) in bad_credits() {
        add(&format!("key.{field}"), "credits", &|key| key.credits = Some(credits));
    }
    for metadata in bad_metadata(50) {
        add("key.metadata", "metadata", &|key| key.metadata.clone_from(&metadata));
    }
    for moment in NO_MOMENTS {
        add("key.expire_time", "expire_time", &|key| key.expire_time = Some(moment));
    }
    cases
}

store_test!(update_key_names_every_bad_field_and_changes_nothing);
async fn update_key_names_every_bad_field_and_changes_nothing(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let mut keys = world.server.keys();
    let before = Footprint::of(&database).await;
    let mut faults = Vec::new();
    for (field, request) in update_cases(&key) {
        faults.extend(fault_of(keys.update_key(request.clone()).await, &field, &request));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    let wrong = ApiKey {
        id: "mine".to_owned(),
        name: TURNED.to_owned(),
        scopes: texts(&["a b", "fine"]),
        owner_id: NUL.to_owned(),
        allowed_cidrs: texts(&["::/0", "10.0.0.1/33"]),
        rate_limits: vec![RateLimit::default()],
        credits: Some(bad_credits()[0].1),
        metadata: bad_metadata(50)[0].clone(),
        expire_time: Some(NO_MOMENTS[0]),
        ..Default::default()
    };
    let paths =
        ["name", "scopes", "owner_id", "nothing", "allowed_cidrs", "rate_limits", "credits", "metadata", "expire_time"];
    let request = UpdateKeyRequest { key: Some(wrong), update_mask: Some(mask(&paths)), etag: "x".repeat(65) };
    let named = [
        "key.id",
        "key.name",
        "key.scopes[0]",
        "key.owner_id",
        "key.allowed_cidrs[1]",
        "key.rate_limits[0]",
        "key.credits",
        "key.metadata",
        "key.expire_time",
        "update_mask.paths[3]",
        "etag",
    ];
    assert_eq!(bad_fields(keys.update_key(request.clone()).await), fields(&named));
    let unnamed = with(&request, |request| request.update_mask = None);
    let named = fields(&["key.id", "update_mask", "etag"]);
    assert_eq!(bad_fields(keys.update_key(unnamed).await), named, "fields outside the mask are not looked at");
    assert_eq!(bad_fields(keys.update_key(UpdateKeyRequest::default()).await), fields(&["key.id", "update_mask"]));
    assert_eq!(Footprint::of(&database).await, before);
    assert_eq!(world.get(&key.id).await, key);
}

store_test!(an_updates_expiry_in_the_past_is_named_with_all_else_that_is_bad);
async fn an_updates_expiry_in_the_past_is_named_with_all_else_that_is_bad(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, _) = world.create(world.new_key()).await;
    let wrong = ApiKey { name: String::new(), expire_time: Some(from_now(-60)), ..key };
    let result = world.server.keys().update_key(updating(wrong, &["name", "expire_time"])).await;
    assert_eq!(bad_fields(result), fields(&["key.expire_time", "key.name"]));
}

fn list_cases(good: &ListKeysRequest) -> Vec<(String, ListKeysRequest)> {
    let mut cases = Vec::new();
    let mut add = |field: &str, change: &dyn Fn(&mut ListKeysRequest)| {
        cases.push((field.to_owned(), with(good, |request| change(request))));
    };
    for text in hostile() {
        add("organization_id", &|request| request.organization_id.clone_from(&text));
        if !text.is_empty() {
            add("page_token", &|request| request.page_token.clone_from(&text));
        }
    }
    for text in unreadable() {
        add("owner_id", &|request| request.owner_id.clone_from(&text));
        add("name_contains", &|request| request.name_contains.clone_from(&text));
    }
    for number in [-1, i32::MIN] {
        add("page_size", &|request| request.page_size = number);
    }
    for number in [5, 99, -1] {
        add("status", &|request| request.status = number);
        add("environment", &|request| request.environment = number);
    }
    for moment in NO_MOMENTS {
        add("expiring_before", &|request| request.expiring_before = Some(moment));
        add("unused_since", &|request| request.unused_since = Some(moment));
    }
    cases
}

store_test!(list_keys_names_every_bad_field);
async fn list_keys_names_every_bad_field(database: TestDatabase) {
    let world = World::new(&database).await;
    let mut keys = world.server.keys();
    let good = ListKeysRequest { organization_id: world.organization.clone(), ..Default::default() };
    let mut faults = Vec::new();
    for (field, request) in list_cases(&good) {
        faults.extend(fault_of(keys.list_keys(request.clone()).await, &field, &request));
    }
    assert!(faults.is_empty(), "{faults:#?}");
    let wrong = ListKeysRequest {
        organization_id: "acme".to_owned(),
        page_size: -1,
        page_token: String::new(),
        status: 9,
        environment: 9,
        owner_id: NUL.to_owned(),
        name_contains: TURNED.to_owned(),
        expiring_before: Some(NO_MOMENTS[0]),
        unused_since: Some(NO_MOMENTS[5]),
    };
    let named = [
        "organization_id",
        "page_size",
        "status",
        "environment",
        "owner_id",
        "name_contains",
        "expiring_before",
        "unused_since",
    ];
    assert_eq!(bad_fields(keys.list_keys(wrong).await), fields(&named));
}

store_test!(a_bad_page_token_is_named_with_all_else_that_is_bad);
async fn a_bad_page_token_is_named_with_all_else_that_is_bad(database: TestDatabase) {
    let world = World::new(&database).await;
    let request = ListKeysRequest {
        organization_id: world.organization.clone(),
        page_size: -1,
        page_token: "forged".to_owned(),
        ..Default::default()
    };
    assert_eq!(bad_fields(world.server.keys().list_keys(request).await), fields(&["page_size", "page_token"]));
}

store_test!(a_secret_in_the_wrong_field_is_not_repeated);
async fn a_secret_in_the_wrong_field_is_not_repeated(database: TestDatabase) {
    let world = World::new(&database).await;
    let (key, secret) = world.create(world.new_key()).await;
    let mut keys = world.server.keys();
    let create = CreateKeyRequest {
        organization_id: secret.clone(),
        scopes: vec![format!("{secret} ")],
        allowed_cidrs: vec![secret.clone()],
        rate_limits: vec![RateLimit { name: secret.clone(), ..good_limit() }],
        request_id: secret.clone(),
        ..world.new_key()
    };
    let mut verify = VerifyKeyRequest { secret: secret.clone(), ..Default::default() };
    verify.client_address.clone_from(&secret);
    verify.tags.insert(format!("{secret} "), String::new());
    let named = VerifyKeyRequest { key_id: Some(secret.clone()), ..verify.clone() };
    let limits = VerifyKeyRequest { limit_names: vec![secret.clone()], secret: secret.clone(), ..Default::default() };
    let list = ListKeysRequest { page_token: secret.clone(), organization_id: secret.clone(), ..Default::default() };
    let update = UpdateKeyRequest { etag: secret.clone(), ..updating(key.clone(), &[&secret]) };
    let aborted = UpdateKeyRequest { etag: secret.clone(), ..updating(key.clone(), &["name"]) };
    let refusals: Vec<Option<Status>> = vec![
        keys.get_key(GetKeyRequest { key_id: secret.clone() }).await.err(),
        keys.create_key(create).await.err(),
        keys.verify_key(verify).await.err(),
        keys.verify_key(named).await.err(),
        keys.verify_key(limits).await.err(),
        keys.list_keys(list).await.err(),
        keys.update_key(update).await.err(),
        keys.update_key(aborted).await.err(),
        keys.revoke_key(RevokeKeyRequest { key_id: secret.clone(), ..Default::default() }).await.err(),
    ];
    let random = &secret[8..47];
    for (at, refusal) in refusals.into_iter().enumerate() {
        let status = refusal.unwrap_or_else(|| panic!("call {at} was not refused"));
        assert!(!status.message().contains(random), "call {at}");
        assert!(!contains(status.details(), random.as_bytes()), "call {at}");
    }
    assert!(!contains(&world.server.logs(), random.as_bytes()), "nor in the log");
}
