//! What a command says besides its report: that rows of usage are left out, since their ids stand before those that
//! were read, or that rows are gone; and that an organization would have more keys under slow hashes than one secret is
//! compared with, or more under one look-up part than are no scan.
//! Invariant: what is counted stands in the words, and where all is well nothing is said.

use super::organizations::{now, written};
use super::world::World;
use crate::harness::cli::Ran;
use crate::harness::source::{Cell, SourceDatabase, cell};
use crate::harness::{TestDatabase, create_organization, hex, store_test};

const USAGE: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "client_keys"
id = "id"
[keys.columns]
secret = "secret"
[keys.values]
environment = "live"

[[usage]]
table = "requests"
id = "id"
[usage.columns]
key = "key_id"
time = "made_at"
endpoint = "path"
"#;

fn request(id: usize, key: &str) -> Vec<Cell> {
    vec![cell(id.to_string()), cell(key), cell(written(now() - 3600)), cell("/v1/things")]
}

/// A key, and requests with these ids; the last one names no key.
async fn counted(world: &World, ids: &[usize]) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    source
        .run(
            "CREATE TABLE client_keys (id bigint PRIMARY KEY NOT NULL, secret text);
             CREATE TABLE requests (id bigint PRIMARY KEY NOT NULL, key_id text, made_at text, path text)",
        )
        .await;
    source.insert("client_keys", "id, secret", &[vec![cell("1"), cell(world.keys.text("key"))]]).await;
    let last = ids.last();
    let rows: Vec<Vec<Cell>> =
        ids.iter().map(|id| request(*id, if Some(id) == last { "nobody" } else { "1" })).collect();
    source.insert("requests", "id, key_id, made_at, path", &rows).await;
    source
}

fn assert_said(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code, 0, "{ran:?}");
    for words in words {
        assert!(ran.stderr.contains(words), "{words:?} is not in {ran:?}");
    }
}

store_test!(rows_of_usage_that_are_left_out_or_gone_are_told_by_their_number);
async fn rows_of_usage_that_are_left_out_or_gone_are_told_by_their_number(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let source = counted(&world, &[10, 11, 12, 13, 14]).await;
    let import = world.import(&source.reader_url().await, USAGE);
    let requests = async || world.database.query_i64("SELECT count(*) FROM api_key_usage").await;
    for _ in 0..2 {
        let ran = import.ran(&["run"]);
        assert_said(&ran, &[]);
        assert!(!ran.stderr.contains("taken"), "refused rows are taken too, in whichever pass: {ran:?}");
        assert_eq!(requests().await, 4);
    }

    // One comes behind those that were read, two before them.
    let rows = [request(2, "1"), request(3, "1"), request(20, "1")];
    source.insert("requests", "id, key_id, made_at, path", &rows).await;
    let ran = import.ran(&["run"]);
    assert_said(&ran, &["table \"requests\" has 8 rows, of which 6 were taken: 2 have come since, or have ids before"]);
    assert_eq!(requests().await, 5, "the one behind them");

    source.run("DELETE FROM requests WHERE id IN (2, 3, 10, 11, 12)").await;
    let ran = import.ran(&["run"]);
    assert_said(&ran, &["6 rows of table \"requests\" were taken, of which 3 are not there any more"]);
    assert_eq!(requests().await, 5, "what was counted stays");
}

const CLIENTS: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
bcrypt = "hash"
look-up-id = "starts_with"
organization = "tenant"
[keys.values]
environment = "live"
"#;

/// So many keys are compared with one secret at the most.
const COMPARED_MAX: usize = 200;

/// What has the shape of a hash of bcrypt, and is nobody's.
fn shape() -> String {
    format!("$2b$10${}", &hex(&keystead::random::bytes::<27>())[..53])
}

/// Clients without a part by which they are looked up, and clients with one, of each of these organizations.
async fn clients(world: &World, organizations: &[(&str, usize, usize)]) -> SourceDatabase {
    let source = SourceDatabase::new(world.database.engine).await;
    source.run("CREATE TABLE clients (id bigint PRIMARY KEY NOT NULL, tenant text, hash text, starts_with text)").await;
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for (tenant, without, with) in organizations {
        for at in 0..without + with {
            let starts_with = (at >= *without).then(|| format!("sk_{at:05}"));
            rows.push(vec![cell(rows.len().to_string()), cell(*tenant), cell(shape()), starts_with]);
        }
    }
    source.insert("clients", "id, tenant, hash, starts_with", &rows).await;
    source
}

store_test!(more_slow_keys_than_one_secret_is_compared_with_are_told_before_they_come_in);
async fn more_slow_keys_than_one_secret_is_compared_with_are_told_before_they_come_in(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let quiet = create_organization(&world.server, "quiet").await.id;
    let of_each = [("acme", COMPARED_MAX + 1, 5), ("quiet", COMPARED_MAX, 50)];
    let source = clients(&world, &of_each).await;
    let import = world.import(&source.reader_url().await, CLIENTS);
    for come_over in [false, true] {
        // In many batches: what is counted is of the whole table.
        let ran = import.ran(&["plan", "--batch", "50"]);
        let words =
            format!("organization {} would have {} bcrypt or Argon2 keys", world.organization, COMPARED_MAX + 1);
        assert_said(&ran, &[words.as_str(), "look-up-id", "key_id"]);
        assert!(!ran.stderr.contains(&quiet), "just as many as are compared: {ran:?}");
        if !come_over {
            assert_eq!(import.run(&[]).table("clients").count("created"), 456);
        }
    }
}

/// So many keys of one look-up part are no scan.
const SHARED_MAX: usize = 16;

store_test!(look_up_parts_that_do_not_tell_keys_apart_are_told_before_they_come_in);
async fn look_up_parts_that_do_not_tell_keys_apart_are_told_before_they_come_in(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let quiet = create_organization(&world.server, "quiet").await.id;
    let source = clients(&world, &[]).await;
    let of_each = [
        ("acme", "sk_live_", SHARED_MAX + 4),
        ("acme", "sk_test_", SHARED_MAX + 1),
        ("acme", "sk_apart", SHARED_MAX),
        ("quiet", "sk_live_", SHARED_MAX),
    ];
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for (tenant, part, count) in of_each {
        for _ in 0..count {
            rows.push(vec![cell(rows.len().to_string()), cell(tenant), cell(shape()), cell(part)]);
        }
    }
    source.insert("clients", "id, tenant, hash, starts_with", &rows).await;
    let import = world.import(&source.reader_url().await, CLIENTS);
    for come_over in [false, true] {
        let ran = import.ran(&["plan", "--batch", "5"]);
        let parts = format!("organization {} would have 2 look-up parts", world.organization);
        let most = format!("share, one of them {}", SHARED_MAX + 4);
        assert_said(&ran, &[parts.as_str(), &most, "look-up-id", "key_id"]);
        assert!(!ran.stderr.contains(&quiet), "as many as are no scan: {ran:?}");
        if !come_over {
            assert_eq!(import.run(&[]).table("clients").count("created"), rows.len() as u64);
        }
    }
}
