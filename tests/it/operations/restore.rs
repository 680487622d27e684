//! Backup and restore by the page: what was revoked after the backup is found from each source that the page names and
//! redone before anybody is served, and a new epoch empties the caches of replicas that went on.

use std::collections::BTreeSet;
use std::fs;

use keystead::proto::v1::{Outcome, RevokeKeyRequest};

use super::{Replicas, Server, key_of};
use crate::harness::{Postgres, TestDatabase, create_key, create_organization, verify, wait_until};

/// Two replicas on a PostgreSQL of their own, and the empty database that a backup is put back into.
async fn start() -> (Postgres, Replicas) {
    let postgres = Postgres::start();
    let database = TestDatabase::on(&postgres).await;
    let url = database.url.clone();
    let (server, name) = url.rsplit_once('/').expect("a URL ends with the database's name");
    // The role of a test's database has its name.
    postgres.as_superuser(&format!("CREATE DATABASE restored OWNER {name}")).await;
    let mut replicas = Replicas::start_on(database, [url.clone(), url.clone()], &[]).await;
    for (variable, value) in [
        ("RESTORED_DATABASE_URL", format!("{server}/restored")),
        ("DATABASE", name.to_owned()),
        ("RESTORED_DATABASE", "restored".to_owned()),
        ("POSTGRES_ADMIN_URL", postgres.admin_url()),
        ("REPLICATION_URL", postgres.admin_url()),
    ] {
        replicas.shell.set(variable, value);
    }
    (postgres, replicas)
}

async fn revoke(replicas: &Replicas, key_id: &str) {
    let request = RevokeKeyRequest { key_id: key_id.to_owned(), ..Default::default() };
    replicas.first().keys().revoke_key(request).await.expect("it is revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_after_a_backup_is_redone_before_anybody_is_served() {
    let (_postgres, mut replicas) = start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let other = create_organization(replicas.first(), "other").await.id;
    let (_, kept) = create_key(replicas.first(), &organization, &[]).await;
    let (before, revoked_before) = create_key(replicas.first(), &organization, &[]).await;
    let (after, revoked_after) = create_key(replicas.first(), &organization, &[]).await;
    let (together, revoked_together) = key_of("ann", replicas.first(), &other).await;
    revoke(&replicas, &before.id).await;

    replicas.shell.run(&["backup-dump"]);
    revoke(&replicas, &after.id).await;
    replicas.shell.set("ORGANIZATION_ID", &other);
    replicas.shell.set("OWNER", "ann");
    replicas.shell.run(&["revoke-owner"]);
    replicas.shell.set("SINCE", "2000-01-01T00:00:00Z");
    assert!(replicas.shell.run(&["backup-audit"]).contains("head: "));

    replicas.stop().await;
    let logs: String = replicas.servers.iter().map(Server::log_text).collect();
    fs::write(replicas.shell.file("keystead.log"), logs).expect("a log");
    replicas.shell.run(&["restore-dump"]);
    assert!(replicas.shell.run(&["restore-epoch"]).contains("UPDATE 1"));

    let gathered = |source: &str| -> BTreeSet<String> {
        replicas.shell.run(&[source]);
        let ids = fs::read_to_string(replicas.shell.file("revoked.ids")).expect("the ids");
        ids.lines().map(str::to_owned).collect()
    };
    let one_by_one = BTreeSet::from([before.id, after.id]);
    let all: BTreeSet<String> = one_by_one.iter().cloned().chain([together.id]).collect();
    assert_eq!(gathered("redo-from-logs"), one_by_one, "RevokeKeys names no single key in the log");
    assert_eq!(gathered("redo-from-old-database"), all);
    assert_eq!(gathered("redo-from-audit-log"), all);
    assert!(replicas.shell.run(&["redo-look"]).contains("KeyService/RevokeKeys"));
    let applied = replicas.shell.run(&["redo-apply"]);
    assert!(applied.contains("UPDATE 2"), "two of the three were active again: {applied}");

    replicas.shell.run(&["restore-switch"]);
    replicas.start_again().await;
    replicas.all_say(&kept, Outcome::Valid).await;
    for secret in [&revoked_before, &revoked_after, &revoked_together] {
        replicas.all_say(secret, Outcome::Revoked).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_empties_the_caches_of_replicas_that_went_on() {
    let (_postgres, mut replicas) = start().await;
    let organization = create_organization(replicas.first(), "acme").await.id;
    let other = create_organization(replicas.first(), "other").await.id;
    let (_, of_other) = create_key(replicas.first(), &other, &[]).await;
    replicas.shell.run(&["backup-dump", "restore-dump"]);
    // The restored database has never heard of this one.
    let (_, gone) = create_key(replicas.first(), &organization, &[]).await;
    replicas.all_say(&of_other, Outcome::Valid).await;
    replicas.all_say(&gone, Outcome::Valid).await;
    replicas.shell.run(&["restore-switch"]);

    // Followers go on in the restored database, as this change of it shows, and have noticed nothing.
    replicas.shell.set("ORGANIZATION_ID", &other);
    replicas.shell.run(&["stop-organization-sql"]);
    replicas.all_have_seen().await;
    replicas.all_come_to_say(&of_other, Outcome::OrganizationInactive).await;
    replicas.all_say(&gone, Outcome::Valid).await;

    // Its name is the old one's now.
    let url = replicas.database.url.clone();
    replicas.shell.set("RESTORED_DATABASE_URL", url);
    replicas.shell.run(&["restore-epoch"]);
    for server in &replicas.servers {
        let has_gone = async || verify(server, &gone).await.outcome() == Outcome::NotFound;
        wait_until("the cache to be empty", has_gone).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_is_whole() {
    let (_postgres, mut replicas) = start().await;
    let folder = replicas.shell.file("base");
    replicas.shell.set("BACKUP_FOLDER", folder.to_string_lossy());
    assert!(replicas.shell.run(&["backup-base"]).contains("successfully verified"));
}
