//! The admin secret, changed while both work for a while, and replaced in the database where it is lost. What counts is
//! which secret opens the control plane, on every replica, at each step.

use keystead::proto::v1::ListOrganizationsRequest;

use super::Replicas;

/// Whether every replica lets this secret in, or none does.
async fn opens(replicas: &Replicas, secret: &str) -> bool {
    let mut opened = Vec::new();
    for server in &replicas.servers {
        let listed = server.organizations_as(secret).list_organizations(ListOrganizationsRequest::default()).await;
        opened.push(listed.is_ok());
    }
    assert!(opened.iter().all(|open| *open == opened[0]), "the replicas disagree: {opened:?}");
    opened[0]
}

/// The id of the first admin key, from a list that names it.
fn id_of_admin(listed: &str) -> String {
    let line = listed.lines().find(|line| line.contains("first admin")).expect("the first admin key");
    line.split_whitespace().next().expect("an id").to_owned()
}

fn last_line(printed: &str) -> String {
    printed.lines().last().expect("a line").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_admin_secret_is_changed_without_a_moment_in_which_none_works() {
    let mut replicas = Replicas::start().await;
    let old = replicas.first().admin_secret().to_owned();
    let listed = replicas.shell.run(&["admin-find"]);
    replicas.shell.set("ADMIN_KEY_ID", id_of_admin(&listed));
    let new = last_line(&replicas.shell.run(&["admin-rotate", "admin-show"]));
    assert_ne!(new, old);
    assert!(opens(&replicas, &old).await && opens(&replicas, &new).await, "both work");

    replicas.shell.set("NEW_TOKEN", &new);
    replicas.shell.run(&["admin-end"]);
    assert!(!opens(&replicas, &old).await && opens(&replicas, &new).await, "the new one alone works");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_admin_secret_is_replaced_in_the_database() {
    let mut replicas = Replicas::start().await;
    let old = replicas.first().admin_secret().to_owned();
    let listed = replicas.shell.run(&["admin-lost-find"]);
    replicas.shell.set("ADMIN_KEY_ID", id_of_admin(&listed));
    // Nobody knows the old one any more.
    replicas.shell.set("KEYSTEAD_TOKEN", "");
    let new = last_line(&replicas.shell.run(&["admin-lost-set", "admin-show"]));
    assert!(opens(&replicas, &new).await && !opens(&replicas, &old).await, "the new one alone works");
}
