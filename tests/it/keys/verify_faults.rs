//! `VerifyKey` when the database cannot say: "we do not know" is `UNAVAILABLE` with a `RetryInfo`, and never an
//! outcome. A row that cannot be read refuses itself and no other; a database that is away is asked again
//! when it is back. Invariant: no fault here is ever answered with `NOT_FOUND`, or with VALID for a doubtful key.

use keystead::proto::v1::{
    Consistency, GetKeyRequest, KeyStatus, ListKeysRequest, Outcome, UsageStatsRequest, usage_stats_request,
};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::{World, presenting, refused, with};
use crate::harness::{Engine, TestDatabase, store_test, wait_until};

/// Asserts that a call could not be answered, for one of these reasons, and says when to try again.
fn unavailable<T>(result: Result<Response<T>, Status>, reasons: &[&str]) {
    let Err(status) = result else {
        panic!("answered, although the database cannot say");
    };
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    assert!(reasons.contains(&reason.as_str()), "{status:?}");
    let details = refused::<T>(Err(status), Code::Unavailable, &reason);
    let retry = details.retry_info().expect("a RetryInfo").retry_delay.expect("a delay");
    assert!(!retry.is_zero());
}

store_test!(a_row_that_cannot_be_read_refuses_itself_and_no_other);
async fn a_row_that_cannot_be_read_refuses_itself_and_no_other(database: TestDatabase) {
    let world = World::new(&database).await;
    let corruptions = [
        "status = 'nonsense'",
        "status = ''",
        "environment = 'moon'",
        "scopes = '[\"invoices:'",
        "scopes = '[\"a b\"]'",
        "metadata = '[]'",
        "allowed_cidrs = '[\"10.0.0.1/33\"]'",
        "rate_limits = '[{\"name\":\"x\"}]'",
        "counter_id = 'x'",
        "credits_remaining = -1",
        "credits_refill_interval = 'year', credits_remaining = 5",
    ];
    let keys = world.create_many("row", corruptions.len() + 2).await;
    for (_, secret) in &keys {
        assert_eq!(world.outcome(secret).await, Outcome::Valid);
    }
    for (corruption, (key, _)) in corruptions.iter().zip(&keys) {
        let sql = format!("UPDATE api_keys SET {corruption} WHERE id = '{}'", key.id);
        assert_eq!(database.raw_sql(&sql).await, 1);
    }
    let (damaged, sound) = keys.split_at(corruptions.len());
    for (corruption, (key, secret)) in corruptions.iter().zip(damaged) {
        wait_until(corruption, async || world.server.keys().verify_key(presenting(secret)).await.is_err()).await;
        unavailable(world.server.keys().verify_key(presenting(secret)).await, &["ROW_UNREADABLE"]);
        let fresh = with(&presenting(secret), |request| request.consistency = Consistency::Fresh.into());
        unavailable(world.server.keys().verify_key(fresh).await, &["ROW_UNREADABLE"]);
        let request = keystead::proto::v1::GetKeyRequest { key_id: key.id.clone() };
        unavailable(world.server.keys().get_key(request).await, &["ROW_UNREADABLE"]);
    }
    for (_, secret) in sound {
        assert_eq!(world.outcome(secret).await, Outcome::Valid);
    }
    let request = ListKeysRequest { organization_id: world.organization.clone(), page_size: 1, ..Default::default() };
    let mut listed: Vec<String> = world.list(request).await.into_iter().map(|key| key.id).collect();
    listed.sort();
    let mut expected: Vec<String> = sound.iter().map(|(key, _)| key.id.clone()).collect();
    expected.sort();
    assert_eq!(listed, expected, "a list leaves out what it cannot read, and goes on");
    let (key, secret) = &damaged[0];
    database.raw_sql(&format!("UPDATE api_keys SET status = 'active' WHERE id = '{}'", key.id)).await;
    wait_until("the row to be read again", async || {
        world.server.keys().verify_key(presenting(secret)).await.is_ok_and(|answer| {
            assert_eq!(answer.into_inner().outcome(), Outcome::Valid);
            true
        })
    })
    .await;
    assert_eq!(world.get(&key.id).await.status(), KeyStatus::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_is_away_what_is_unknown_is_unavailable_and_never_not_found() {
    let database = TestDatabase::new(Engine::Postgres).await;
    let world = World::new(&database).await;
    let (known, cached) = world.create(world.new_key()).await;
    let (_, never_seen) = world.create(world.new_key()).await;
    assert_eq!(world.outcome(&cached).await, Outcome::Valid);
    let away = ["DATABASE_UNAVAILABLE", "TIMED_OUT"];
    let unknown = format!("pk_live_{}", "A".repeat(43));
    let fresh = with(&presenting(&cached), |request| request.consistency = Consistency::Fresh.into());

    database.cut_off().await;
    for _ in 0..3 {
        unavailable(world.server.keys().verify_key(presenting(&never_seen)).await, &away);
        unavailable(world.server.keys().verify_key(presenting(&unknown)).await, &away);
        unavailable(world.server.keys().verify_key(fresh.clone()).await, &away);
        match world.server.keys().verify_key(presenting(&cached)).await {
            Ok(answer) => assert_eq!(answer.into_inner().outcome(), Outcome::Valid, "a hit goes on"),
            refusal => unavailable(refusal, &away),
        }
        if let Ok(answer) = world.server.keys().verify_key(presenting("pk_live_malformed")).await {
            assert_eq!(answer.into_inner().outcome(), Outcome::NotFound, "its shape says so, no look-up is due");
        }
    }
    let get = GetKeyRequest { key_id: known.id.clone() };
    unavailable(world.server.keys().get_key(get).await, &away);
    unavailable(world.server.keys().create_key(world.new_key()).await, &away);
    let list = ListKeysRequest { organization_id: world.organization.clone(), ..Default::default() };
    unavailable(world.server.keys().list_keys(list).await, &away);
    let revoke = keystead::proto::v1::RevokeKeyRequest { key_id: known.id.clone(), ..Default::default() };
    unavailable(world.server.keys().revoke_key(revoke).await, &away);
    let subject = Some(usage_stats_request::Subject::KeyId(known.id.clone()));
    let usage = UsageStatsRequest { subject, ..Default::default() };
    unavailable(world.server.keys().usage_stats(usage).await, &away);

    database.let_back().await;
    wait_until("the service to find its database again", async || {
        match world.server.keys().verify_key(presenting(&never_seen)).await {
            Ok(answer) => {
                assert_eq!(answer.into_inner().outcome(), Outcome::Valid);
                true
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                false
            }
        }
    })
    .await;
    assert_eq!(world.outcome(&unknown).await, Outcome::NotFound);
    // The control plane asks nobody before the feed has found the database, which it tries now and then.
    let get = GetKeyRequest { key_id: known.id.clone() };
    wait_until("the control plane to be back", async || match world.server.keys().get_key(get.clone()).await {
        Ok(_) => true,
        refusal => {
            unavailable(refusal, &away);
            false
        }
    })
    .await;
    assert_eq!(world.get(&known.id).await.status(), KeyStatus::Active, "what was refused was not done");
    world.create(world.new_key()).await;
    world.revoke(&known.id).await;
    assert_eq!(world.outcome(&cached).await, Outcome::Revoked);
}
