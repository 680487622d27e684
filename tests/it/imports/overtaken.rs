//! Two runs of one import at the same time, over one database. Each stands where the test lets it: whoever comes with
//! rows behind a position that is not the import's any more is told so and ends. Invariant: whatever the other one
//! does, no row comes in twice, none is passed over, and the position never goes back.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use keystead::proto::v1::Outcome;
use serde_json::json;

use super::fed::{FedRun, SOURCE};
use super::world::{Report, World, refused_rows};
use crate::harness::cli::Ran;
use crate::harness::{TestDatabase, store_test, wait_until};

const MAPPING: &str = r#"
source = "portal"
organization = "acme"

[[keys]]
id = "id"
[keys.columns]
secret = "secret"
[keys.values]
environment = "live"
"#;

/// A row with a key that is refused.
const WEAK: usize = 4;

fn secret(world: &World, at: usize) -> String {
    if at == WEAK { "weak".to_owned() } else { world.keys.text(&format!("row {at}")) }
}

/// These rows of the source, which has six.
fn lines(world: &World, rows: RangeInclusive<usize>) -> String {
    rows.fold(String::new(), |mut text, at| {
        let _ = writeln!(text, "{}", json!({"id": format!("row-{at}"), "secret": secret(world, at)}));
        text
    })
}

/// The file of refused rows of one of the runs: two do not share one.
fn refused_file(world: &World, run: &str) -> String {
    world.path(&format!("refused-{run}.csv")).to_str().expect("text").to_owned()
}

/// Starts a run in batches of two rows.
fn start(world: &World, name: &str) -> FedRun {
    let file = refused_file(world, name);
    FedRun::start(&world.import(SOURCE, MAPPING), &["--batch", "2", "--refused-file", &file])
}

async fn stands_behind(world: &World, row: &str) {
    let sql = format!("SELECT count(*) FROM imports WHERE position = '{row}'");
    wait_until("a batch to be in", async || world.database.query_i64(&sql).await == 1).await;
}

/// Where the import stands, what it has counted, and how many keys and events there are.
async fn state(world: &World) -> (String, i64, i64) {
    let sql = "SELECT state || ' ' || position || ' ' || created_count || ' ' || existing_count || ' ' || \
               refused_count FROM imports";
    let events = "SELECT count(*) FROM audit_events WHERE action = 'key.import'";
    (world.database.query_string(sql).await, world.key_count().await, world.database.query_i64(events).await)
}

fn assert_told(ran: &Ran) {
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("another run has gone on with this table"), "{ran:?}");
    assert!(!ran.stderr.contains("panicked"), "{ran:?}");
}

async fn assert_all_in(world: &World) {
    let secrets: Vec<String> = (1..=6).filter(|at| *at != WEAK).map(|at| secret(world, at)).collect();
    world.assert_all(&secrets, Outcome::Valid).await;
    let again = world.import(SOURCE, MAPPING).reading(&lines(world, 1..=6)).run(&[]);
    assert_eq!(again.table("").counts(["rows", "created", "existing", "refused"]), [6, 0, 5, 1], "nothing was lost");
    assert_eq!(world.key_count().await, 5);
    world.assert_told_nobody(&secrets);
}

store_test!(a_run_that_another_one_has_overtaken_is_told_so_and_changes_nothing);
async fn a_run_that_another_one_has_overtaken_is_told_so_and_changes_nothing(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let mut slow = start(&world, "slow");
    slow.feed(&lines(&world, 1..=2));
    stands_behind(&world, "row-2").await;

    // The other one goes on from there, to the end.
    let file = refused_file(&world, "fast");
    let fast = world.import(SOURCE, MAPPING).reading(&lines(&world, 1..=6));
    let report = fast.run(&["--batch", "2", "--refused-file", &file]);
    assert!(report.is("resumed"));
    assert_eq!(report.table("").counts(["rows", "created", "existing", "refused"]), [4, 3, 0, 1]);
    let before = state(&world).await;
    assert_eq!(before, ("done row-6 5 0 1".to_owned(), 5, 3));

    slow.feed(&lines(&world, 3..=4));
    assert_told(&slow.end().await);
    assert_eq!(state(&world).await, before, "not even counts or the position");
    let names = refused_rows(file.as_ref());
    assert_eq!(names.into_keys().collect::<Vec<_>>(), [(String::new(), "row-4".to_owned())]);
    assert_all_in(&world).await;
}

store_test!(of_two_runs_at_once_one_brings_the_rows_in_and_the_other_is_told);
async fn of_two_runs_at_once_one_brings_the_rows_in_and_the_other_is_told(database: TestDatabase) {
    let world = World::new(database, "acme").await;
    let mut loser = start(&world, "loser");
    loser.feed(&lines(&world, 1..=2));
    stands_behind(&world, "row-2").await;
    let mut winner = start(&world, "winner");
    winner.feed(&lines(&world, 1..=4));
    stands_behind(&world, "row-4").await;
    let before = state(&world).await;
    assert_eq!(before, ("running row-4 3 0 1".to_owned(), 3, 2));

    loser.feed(&lines(&world, 3..=4));
    assert_told(&loser.end().await);
    assert_eq!(state(&world).await, before);

    winner.feed(&lines(&world, 5..=6));
    let report = Report::of(&winner.end().await);
    assert_eq!(report.table("").counts(["rows", "created", "refused"]), [4, 3, 1]);
    assert_eq!(state(&world).await, ("done row-6 5 0 1".to_owned(), 5, 3), "the other one was no hindrance");
    assert_all_in(&world).await;
}
