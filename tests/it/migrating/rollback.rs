//! The ways back before the contract: what was brought in goes out again and can come in anew, and what was done in
//! Keystead since is listed.

use keystead::proto::v1::{Outcome, RevokeKeyRequest};

use super::ownership;
use crate::harness::{create_key, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_source_go_out_again_and_others_stay() {
    let migration = ownership::brought_in().await;
    let (_, own) = create_key(&migration.server, &migration.organization, &[]).await;
    let keys = ownership::all_keys(&migration.source).await;
    migration.all_are(&keys, Outcome::Valid).await;

    migration.shell.run(&["rollback-expand"]);
    wait_until("them to be gone", async || {
        migration.outcomes(&keys).await.iter().all(|outcome| *outcome == Outcome::NotFound)
    })
    .await;
    migration.all_are(&[own], Outcome::Valid).await;
    assert_eq!(migration.database.query_i64("SELECT count(*) FROM imports").await, 0);
    // Nothing is left to be done, and nothing hinders a second attempt.
    migration.shell.run(&["rollback-expand", "run", "verify-accepted"]);
    wait_until("them to be back", async || {
        migration.outcomes(&keys).await.iter().all(|outcome| *outcome == Outcome::Valid)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_and_revoked_since_is_listed() {
    let mut migration = ownership::brought_in().await;
    let (revoked, untouched) = (migration.id_of("sessions", "1").await, migration.id_of("sessions", "2").await);
    let request = RevokeKeyRequest { key_id: revoked.clone(), ..Default::default() };
    migration.server.keys().revoke_key(request).await.expect("revoked");
    let (issued, _) = create_key(&migration.server, &migration.organization, &[]).await;
    migration.shell.set("SINCE", "2000-01-01T00:00:00Z");
    let listed = migration.shell.run(&["rollback-since"]);
    assert!(listed.contains(&revoked) && listed.contains(&issued.id) && !listed.contains(&untouched), "{listed}");
    migration.shell.set("SINCE", "2999-01-01T00:00:00Z");
    let listed = migration.shell.run(&["rollback-since"]);
    assert!(!listed.contains(&revoked) && !listed.contains(&issued.id), "{listed}");
}
