//! `keystead organizations`, `keys`, `usage` and `audit` on a running service, each action once as a table and once as
//! JSON, with the life of an organization and its keys from beginning to end.

use serde_json::{Value, json};

use super::is_a_secret;
use crate::harness::cli::{self, Ran};
use crate::harness::{Server, TestDatabase, store_test};

struct Client(Server);

impl Client {
    async fn new(database: &TestDatabase) -> Self {
        Self(Server::start(database, &[]).await)
    }

    /// The answer of a command that must succeed, as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        cli::as_admin(&self.0, &[arguments, &["--output", "json"]].concat()).json()
    }

    /// The answer of a command that must succeed, as a person sees it.
    fn table(&self, arguments: &[&str]) -> String {
        let ran = cli::as_admin(&self.0, arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        cli::as_admin(&self.0, arguments)
    }

    fn verify(&self, secret: &str, arguments: &[&str]) -> Ran {
        let arguments = [&["keys", "verify", "--output", "json"], arguments].concat();
        cli::as_caller(&self.0, self.0.admin_secret(), &arguments, &format!("{secret}\n"))
    }

    fn organization(&self, slug: &str) -> String {
        let email = format!("{slug}@example.com");
        let made = self.json(&["organizations", "create", "--name", slug, "--slug", slug, "--email", &email]);
        text(&made["organization"]["id"])
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not text: {value}")).to_owned()
}

store_test!(organizations_are_created_read_changed_stopped_and_deleted_by_command);
async fn organizations_are_created_read_changed_stopped_and_deleted_by_command(database: TestDatabase) {
    let client = Client::new(&database).await;
    let made = client.json(&[
        "organizations",
        "create",
        "--name",
        "Acme",
        "--slug",
        "acme",
        "--email",
        "Ops@acme.example",
        "--plan",
        "pro",
        "--max-keys",
        "5",
        "--rate-limit",
        "all=100/1m/shadow",
        "--monthly-quota",
        "9",
        "--secret-prefix",
        "acme",
        "--metadata",
        "team=billing",
    ]);
    let organization = &made["organization"];
    let id = text(&organization["id"]);
    assert_eq!(organization["email"], "ops@acme.example");
    assert_eq!((&organization["plan"], &organization["active"]), (&json!("PRO"), &json!(true)));
    assert_eq!((&organization["max_keys"], &organization["monthly_quota"]), (&json!(5), &json!(9)));
    assert_eq!(organization["rate_limits"], json!([{"name": "all", "limit": 100, "window": "60s", "shadow": true}]));
    assert_eq!(organization["metadata"], json!({"team": "billing"}));

    for arguments in [vec![id.as_str()], vec!["--slug", "acme"], vec!["--email", "ops@acme.example"]] {
        let arguments = [vec!["organizations", "get"], arguments].concat();
        assert_eq!(client.json(&arguments), made, "{arguments:?}");
        assert!(client.table(&arguments).contains(&id));
    }
    let changed =
        client.json(&["organizations", "update", &id, "--name", "Acme 2", "--no-rate-limits", "--max-keys", "0"]);
    let changed = &changed["organization"];
    assert_eq!((&changed["name"], &changed["rate_limits"]), (&json!("Acme 2"), &json!([])));
    assert_eq!(changed["metadata"], organization["metadata"], "what was not given stays");
    let stale = client.run(&["organizations", "update", &id, "--name", "x", "--etag", &text(&organization["etag"])]);
    assert_eq!(stale.code, 1);
    assert!(stale.stderr.contains("ABORTED ETAG_MISMATCH"), "{stale:?}");

    assert_eq!(client.json(&["organizations", "deactivate", &id])["organization"]["active"], false);
    let list = client.json(&["organizations", "list", "--active", "false"]);
    assert_eq!(list["organizations"].as_array().map(Vec::len), Some(1));
    assert_eq!(client.json(&["organizations", "activate", &id])["organization"]["active"], true);
    let table = client.table(&["organizations", "list"]);
    let mut lines = table.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("ID ") && line.contains("SLUG")), "{table}");
    assert!(lines.next().is_some_and(|line| line.contains("acme")), "newest first: {table}");
    let part = client.json(&["organizations", "list", "--name-contains", "ACME"]);
    assert_eq!(part["organizations"].as_array().map(Vec::len), Some(1));

    client.json(&["keys", "create", "--organization", &id, "--name", "k", "--environment", "live"]);
    let refused = client.run(&["organizations", "delete", &id]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("ORGANIZATION_HAS_KEYS"), "{refused:?}");
    client.table(&["organizations", "delete", &id, "--force"]);
    assert_eq!(client.run(&["organizations", "get", &id]).code, 1);
}

store_test!(the_life_of_a_key_goes_by_command_and_its_secret_is_printed_once);
async fn the_life_of_a_key_goes_by_command_and_its_secret_is_printed_once(database: TestDatabase) {
    let client = Client::new(&database).await;
    let organization = client.organization("acme");
    let made = client.json(&[
        "keys",
        "create",
        "--organization",
        &organization,
        "--name",
        "billing",
        "--environment",
        "live",
        "--scope",
        "invoices:*,users:read",
        "--metadata",
        "team=billing",
        "--owner",
        "ann",
        "--rate-limit",
        "calls=100/1m",
        "--credits",
        "10",
        "--credits-refill",
        "20/month",
        "--ttl",
        "30d",
        "--cidr",
        "127.0.0.0/8",
    ]);
    let (id, secret) = (text(&made["key"]["id"]), text(&made["secret"]));
    assert!(is_a_secret(&secret));
    assert_eq!((&made["key"]["status"], &made["key"]["environment"]), (&json!("ACTIVE"), &json!("LIVE")));
    assert_eq!(made["key"]["scopes"], json!(["invoices:*", "users:read"]));
    assert_eq!(made["key"]["credits"]["remaining"], 10);
    assert_eq!(made["key"]["hint"], secret[47..]);
    let shown = client.table(&["keys", "get", &id]);
    assert!(shown.contains(&id) && !shown.contains(&secret[8..]), "{shown}");

    let from_here = ["--client-address", "127.0.0.1"];
    let verified = client.verify(&secret, &from_here);
    assert_eq!((verified.code, &verified.any_json()["outcome"]), (0, &json!("VALID")));
    assert_eq!(verified.any_json()["credits_remaining"], 9);
    let scoped = client.verify(&secret, &[&from_here[..], &["--all-of", "admin"]].concat());
    assert_eq!((scoped.code, &scoped.any_json()["outcome"]), (1, &json!("INSUFFICIENT_SCOPE")));
    let elsewhere = client.verify(&secret, &[]);
    assert_eq!((elsewhere.code, &elsewhere.any_json()["outcome"]), (1, &json!("ADDRESS_NOT_ALLOWED")));
    let mistyped = client.verify(&secret[..50], &[]);
    assert_eq!((mistyped.code, &mistyped.any_json()["outcome"]), (1, &json!("NOT_FOUND")));

    let changed = client.json(&["keys", "update", &id, "--no-cidrs", "--no-credits", "--enabled", "false"]);
    assert_eq!((&changed["key"]["status"], &changed["key"]["credits"]), (&json!("DISABLED"), &Value::Null));
    assert_eq!(client.verify(&secret, &[]).any_json()["outcome"], "DISABLED");
    client.json(&["keys", "update", &id, "--enabled", "true"]);

    let rotated = client.json(&["keys", "rotate", &id, "--overlap", "1h"]);
    let (new_id, new_secret) = (text(&rotated["key"]["id"]), text(&rotated["secret"]));
    assert!(is_a_secret(&new_secret) && new_secret != secret);
    assert_eq!(rotated["key"]["rotated_from_id"], json!(id));
    assert_eq!(rotated["previous_key"]["id"], json!(id));
    assert_eq!((client.verify(&secret, &[]).code, client.verify(&new_secret, &[]).code), (0, 0));

    let revoked = client.json(&["keys", "revoke", &new_id, "--reason", "key-compromise", "--note", "leaked"]);
    assert_eq!(revoked["key"]["revocation_reason"], "KEY_COMPROMISE");
    assert!(revoked["revision"].as_i64().is_some_and(|revision| revision > 0), "{revoked}");
    assert_eq!(client.verify(&new_secret, &[]).any_json()["outcome"], "REVOKED");

    let list = client.json(&["keys", "list", "--organization", &organization, "--status", "revoked"]);
    assert_eq!(list["keys"].as_array().map(Vec::len), Some(1));
    let first = client.json(&["keys", "list", "--organization", &organization, "--page-size", "1"]);
    let token = text(&first["next_page_token"]);
    let second =
        client.json(&["keys", "list", "--organization", &organization, "--page-size", "1", "--page-token", &token]);
    assert_eq!((&first["keys"][0]["id"], &second["keys"][0]["id"]), (&json!(new_id), &json!(id)));
    // One token in 64 begins with a dash; it is a value all the same.
    let dashed = client.run(&["keys", "list", "--organization", &organization, "--page-token", "-B-not-a-token"]);
    assert_eq!(dashed.code, 1, "{dashed:?}");
    assert!(dashed.stderr.contains("page_token"), "{dashed:?}");
    let all = client.table(&["keys", "list", "--organization", &organization, "--page-size", "1", "--all"]);
    assert_eq!(all.lines().count(), 3, "a heading and two keys: {all}");
}

store_test!(a_new_secret_stands_on_a_line_of_its_own_for_people);
async fn a_new_secret_stands_on_a_line_of_its_own_for_people(database: TestDatabase) {
    let client = Client::new(&database).await;
    let organization = client.organization("acme");
    let made =
        client.table(&["keys", "create", "--organization", &organization, "--name", "k", "--environment", "test"]);
    let secrets: Vec<&str> = made.lines().filter_map(|line| line.strip_prefix("secret: ")).collect();
    assert_eq!(secrets.len(), 1, "{made}");
    assert!(secrets[0].starts_with("pk_test_"));
    assert_eq!(client.verify(secrets[0], &[]).code, 0);
    assert_eq!(made.matches(&secrets[0][8..]).count(), 1);
}

store_test!(usage_shows_what_was_verified_to_the_caller_who_asks_right_after);
async fn usage_shows_what_was_verified_to_the_caller_who_asks_right_after(database: TestDatabase) {
    let client = Client::new(&database).await;
    let organization = client.organization("acme");
    let made =
        client.json(&["keys", "create", "--organization", &organization, "--name", "k", "--environment", "live"]);
    let (id, secret) = (text(&made["key"]["id"]), text(&made["secret"]));
    for _ in 0..3 {
        assert_eq!(client.verify(&secret, &["--endpoint", "/v1/invoices"]).code, 0);
    }
    client.json(&["keys", "revoke", &id]);
    client.verify(&secret, &["--endpoint", "/v1/users"]);
    for subject in [["--organization", &organization], ["--key", &id]] {
        let usage = client.json(&[&["usage"], &subject[..]].concat());
        assert_eq!(usage["totals"]["verifications"], 4, "{usage}");
        assert_eq!((&usage["totals"]["valid"], &usage["totals"]["denied"]), (&json!(3), &json!(1)));
        assert_eq!(usage["by_endpoint"][0]["endpoint"], "/v1/invoices");
        assert_eq!(usage["by_endpoint"][0]["totals"]["valid"], 3);
        assert_eq!(usage["top_consumers"][0]["key_id"], json!(id));
        let outcomes = [json!({"outcome": "REVOKED", "count": 1}), json!({"outcome": "VALID", "count": 3})];
        assert_eq!(usage["by_outcome"], json!(outcomes), "in the order of the contract");
        let table = client.table(&[&["usage"], &subject[..], &["--granularity", "hour", "--top", "1"]].concat());
        for part in ["verifications:", "Outcomes", "VALID", "Series", "Endpoints", "/v1/invoices", "Consumers"] {
            assert!(table.contains(part), "{part} is not in {table}");
        }
        assert!(!table.contains("/v1/users"), "--top 1: {table}");
    }
    assert_eq!(client.run(&["usage"]).code, 2);
    assert_eq!(client.run(&["usage", "--key", &id, "--organization", &organization]).code, 2);
}

store_test!(audit_shows_who_did_what_filtered_and_page_by_page);
async fn audit_shows_who_did_what_filtered_and_page_by_page(database: TestDatabase) {
    let client = Client::new(&database).await;
    let organization = client.organization("acme");
    let made =
        client.json(&["keys", "create", "--organization", &organization, "--name", "k", "--environment", "live"]);
    let id = text(&made["key"]["id"]);
    client.json(&["keys", "revoke", &id]);
    let events = client.json(&["audit", "list", "--target", &id]);
    let actions: Vec<String> =
        events["events"].as_array().expect("events").iter().map(|event| text(&event["action"])).collect();
    assert_eq!(actions, ["key.revoke", "key.create"]);
    assert_eq!(events["events"][0]["actor"], "first admin");
    let filtered = client.json(&["audit", "list", "--organization", &organization, "--action", "organization.create"]);
    assert_eq!(filtered["events"].as_array().map(Vec::len), Some(1));
    let table = client.table(&["audit", "list", "--page-size", "1", "--all"]);
    assert_eq!(table.lines().count(), 6, "a heading and five events: {table}");
    let first = client.run(&["audit", "list", "--page-size", "1"]);
    assert!(first.stderr.starts_with("more: --page-token "), "{first:?}");
    assert_eq!(client.json(&["audit", "list", "--from", "2100-01-01"])["events"], json!([]));
}

store_test!(nothing_that_a_server_sends_reaches_a_terminal_raw);
async fn nothing_that_a_server_sends_reaches_a_terminal_raw(database: TestDatabase) {
    let client = Client::new(&database).await;
    let organization = client.organization("acme");
    let nasty = "a=\u{1b}[2J\u{9b}31m\r\u{202e}b\u{7f}\u{200b}";
    let made = client.json(&[
        "keys",
        "create",
        "--organization",
        &organization,
        "--name",
        "k",
        "--environment",
        "live",
        "--metadata",
        nasty,
    ]);
    let id = text(&made["key"]["id"]);
    assert_eq!(made["key"]["metadata"]["a"], nasty[2..], "as JSON it is all there");
    for arguments in [vec!["keys", "get", &id], vec!["keys", "get", &id, "--output", "json"]] {
        let ran = client.run(&arguments);
        let raw: Vec<char> = ran.stdout.chars().filter(|c| c.is_control() && *c != '\n').collect();
        assert!(raw.is_empty() && !ran.stdout.contains(['\u{202e}', '\u{200b}']), "{ran:?}");
    }
}
