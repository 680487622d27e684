//! The half-migrated copy of the second system at the cost of real ones: thousands of clients, of which half have a
//! bcrypt hash of cost 10 in place of their key, and hundreds of those nothing that leads from a key to its hash. What
//! else becomes of such a copy is in `clients`. Most hashes are those of nobody's key: random salt and digest, which
//! cost as much to check and nothing to make. Invariant: a key that worked works, at the latest when its client has
//! asked again; each costs its slow checks once, and what is nobody's key is never valid.

use base64::Engine as _;
use base64::alphabet::BCRYPT;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::NO_PAD;
use keystead::proto::v1::Outcome::{NotFound, Valid};
use keystead::proto::v1::{VerifyKeyRequest, VerifyKeyResponse};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::world::{World, documented_slug, presenting, presenting_pair};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{Server, TestDatabase, store_test};
use crate::server::metrics::get;

const MAPPING: &str = "2-bcrypt-clients";
const CLIENTS: usize = 3000;
const COST: u32 = 10;
/// Rows of a batch. A scan goes by the ids of keys, and those of a batch are later than those of the batch before it.
const BATCH: &str = "100";
/// So many are looked through for a key without a look-up part, and at most so many of them in one search.
const SCANNED: u64 = 215;
const CHECKED_AT_ONCE: u64 = 200;
/// Of those, the only two that are hashes of keys: of the first batch, with eight of them, and of the last one.
const FIRST: usize = 1;
const FIRST_BATCH: u64 = 8;
const LAST: usize = 2997;
/// Longer than a whole search takes on a machine that has nothing else to do.
const VERIFY_TIMEOUT_MS: &str = "45000";
/// How often a client asks again, each time for as long as that, before it gives up.
const ASKED_MAX: usize = 12;

/// Every other client has a hash in place of its key.
fn is_hashed(at: usize) -> bool {
    !at.is_multiple_of(2)
}

/// Whether nothing leads from the key to its hash.
fn is_scanned(at: usize) -> bool {
    is_hashed(at) && (at / 2).is_multiple_of(7)
}

/// Whether it has a look-up part and a hash that is that of its key.
fn is_looked_up(at: usize) -> bool {
    is_hashed(at) && !is_scanned(at) && at / 2 % 60 == 1
}

fn is_genuine(at: usize) -> bool {
    [FIRST, LAST].contains(&at) || is_looked_up(at)
}

/// A hash of bcrypt that is no key's.
fn forged() -> String {
    const BASE_64: GeneralPurpose = GeneralPurpose::new(&BCRYPT, NO_PAD);
    let (salt, digest) = (keystead::random::bytes::<16>(), keystead::random::bytes::<23>());
    format!("$2b${COST}${}{}", BASE_64.encode(salt), BASE_64.encode(digest))
}

/// The old system, in the order of its rows.
struct Old {
    source: SourceDatabase,
    keys: Vec<String>,
    hashes: Vec<Option<String>>,
}

impl Old {
    async fn build(world: &World) -> Self {
        let engine: SourceEngine = world.database.engine.into();
        let source = SourceDatabase::new(engine).await;
        let (id, time) = match engine {
            SourceEngine::Postgres => ("bigserial PRIMARY KEY", "timestamp"),
            SourceEngine::Sqlite | SourceEngine::MariaDb => ("INTEGER PRIMARY KEY NOT NULL", "TIMESTAMP"),
        };
        source
            .run(&format!(
                "CREATE TABLE clients (id {id}, name VARCHAR(200) NOT NULL, api_key VARCHAR(255), \
                 api_key_hash VARCHAR(60), is_active BOOLEAN NOT NULL, created_at {time} NOT NULL, \
                 last_seen_at {time}, key_prefix VARCHAR(16)); CREATE INDEX clients_api_key ON clients (api_key)"
            ))
            .await;
        let keys = world.keys.texts("client", CLIENTS);
        let hash = |(at, key): (usize, &String)| {
            let genuine = || bcrypt::hash(key, COST).expect("a hash");
            is_hashed(at).then(|| if is_genuine(at) { genuine() } else { forged() })
        };
        let hashes: Vec<Option<String>> = keys.iter().enumerate().map(hash).collect();
        let row = |(at, key): (usize, &String)| -> Vec<Cell> {
            vec![
                cell((at + 1).to_string()),
                cell(format!("client no. {at}")),
                if is_hashed(at) { None } else { cell(key) },
                hashes[at].clone(),
                cell("1"),
                cell("2024-05-06 07:08:09"),
                None,
                if is_scanned(at) { None } else { cell(&key[..10]) },
            ]
        };
        let rows: Vec<Vec<Cell>> = keys.iter().enumerate().map(row).collect();
        let columns = "id, name, api_key, api_key_hash, is_active, created_at, last_seen_at, key_prefix";
        source.insert("clients", columns, &rows).await;
        Self { source, keys, hashes }
    }
}

/// A world whose server lets a caller wait for a whole search.
async fn patient(database: TestDatabase) -> World {
    let mut world = World::new(database, &documented_slug(MAPPING)).await;
    world.server.sigterm();
    assert!(world.server.wait_exit().await.success());
    let arguments = ["--metrics-listen", "127.0.0.1:0", "--verify-timeout-ms", VERIFY_TIMEOUT_MS];
    let server = Server::start(&world.database, &arguments).await;
    world.server = server;
    world
}

/// How many slow checks the server has made.
async fn checks(world: &World) -> u64 {
    let (_, page) = get(world.server.metrics_address(), "/metrics").await;
    let series = page.lines().filter(|line| line.starts_with("keystead_slow_checks_total{"));
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Asks as clients do, which take "we do not know" for what it is and ask again; says how often they were told so.
async fn ask_again(world: &World, request: VerifyKeyRequest) -> (VerifyKeyResponse, usize) {
    for unknown in 0..ASKED_MAX {
        match world.server.keys().verify_key(request.clone()).await {
            Ok(answer) => return (answer.into_inner(), unknown),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
                // The time is up where many share this machine; the search goes on.
                assert!(["TOO_MANY_CANDIDATES", "TIMED_OUT"].contains(&reason.as_str()), "{status:?}");
            }
        }
    }
    panic!("nobody knows after {ASKED_MAX} searches");
}

async fn id_of(world: &World, at: usize) -> String {
    world.id_of_row("clients", &(at + 1).to_string()).await.expect("a key")
}

/// Fails unless nobody's secrets are unknown to the keys that are named with them, each at the cost of a check where
/// there is a hash to compare with.
async fn assert_named_strangers_are_unknown(world: &World, old: &Old) {
    let forged: Vec<usize> = (0..CLIENTS).filter(|at| is_hashed(*at) && !is_genuine(*at)).take(3).collect();
    for at in &forged {
        let (id, hash) = (id_of(world, *at).await, old.hashes[*at].as_ref().expect("a hash"));
        for secret in [&old.keys[*at], hash] {
            let before = checks(world).await;
            let (answer, _) = ask_again(world, presenting_pair(&id, secret)).await;
            assert_eq!(answer.outcome(), NotFound, "client {at}");
            assert_eq!(checks(world).await, before + 1, "the one that is named is compared");
        }
    }
    let before = checks(world).await;
    let fast = id_of(world, 0).await;
    assert_eq!(world.ask(presenting_pair(&fast, &old.keys[forged[0]])).await.outcome(), NotFound);
    assert_eq!(checks(world).await, before, "there is no hash to compare with");
}

store_test!(thousands_of_clients_under_real_hashes_work_and_each_is_slow_once);
async fn thousands_of_clients_under_real_hashes_work_and_each_is_slow_once(database: TestDatabase) {
    let world = patient(database).await;
    let old = Old::build(&world).await;
    let import = world.documented(&old.source.reader_url().await, MAPPING);
    let report = import.run(&["--batch", BATCH]);
    let table = report.table("clients");
    assert_eq!(table.counts(["rows", "created", "skipped", "refused"]), [3000, 3000, 0, 0]);
    assert_eq!(table.by("schemes"), [("bcrypt".to_owned(), 1500), ("plaintext".to_owned(), 1500)].into());
    assert_eq!(table.by("notes").get("SCANNED"), Some(&SCANNED));

    let plain: Vec<String> = (0..CLIENTS).filter(|at| !is_hashed(*at)).map(|at| old.keys[at].clone()).collect();
    world.assert_all(&plain, Valid).await;
    assert_eq!(checks(&world).await, 0, "what came as it is has never been slow");

    let looked_up: Vec<usize> = (0..CLIENTS).filter(|at| is_looked_up(*at)).collect();
    assert!(looked_up.len() > 20);
    for (before, at) in (0..).zip(&looked_up) {
        assert_eq!(checks(&world).await, before);
        let answer = world.present(&old.keys[*at]).await;
        assert_eq!((answer.outcome(), answer.name), (Valid, format!("client no. {at}")), "at once");
    }
    let before = checks(&world).await;
    assert_eq!(before, looked_up.len() as u64, "one check each");

    let (answer, _) = ask_again(&world, presenting(&old.keys[FIRST])).await;
    assert_eq!((answer.outcome(), answer.key_id), (Valid, id_of(&world, FIRST).await));
    let first = checks(&world).await - before;
    assert!((1..=FIRST_BATCH).contains(&first), "it stands among the first: {first}");
    let (answer, unknown) = ask_again(&world, presenting(&old.keys[LAST])).await;
    assert_eq!((answer.outcome(), answer.key_id), (Valid, id_of(&world, LAST).await));
    let last = checks(&world).await - before - first;
    assert!(unknown > 0 && (CHECKED_AT_ONCE + 1..SCANNED).contains(&last), "{last} checks, {unknown} times unknown");

    let (answer, unknown) = ask_again(&world, presenting(&world.keys.text("stranger"))).await;
    assert_eq!((answer.outcome(), unknown > 0), (NotFound, true), "all were compared, and not at once");
    assert_eq!(checks(&world).await - before - first - last, SCANNED - 2, "all but the two that are fast by now");
    assert_named_strangers_are_unknown(&world, &old).await;

    assert_fast_by_now(&world, &old).await;
    let again = import.run(&[]);
    assert_eq!(again.table("clients").counts(["created", "existing", "refused"]), [0, 3000, 0]);
    assert!(import.verify(&[]).is("passed"));
    world.assert_told_nobody(&[old.keys, old.hashes.into_iter().flatten().collect()].concat());
}

/// Fails unless every key that was slow is as fast as any other.
async fn assert_fast_by_now(world: &World, old: &Old) {
    let before = checks(world).await;
    let genuine: Vec<usize> = (0..CLIENTS).filter(|at| is_genuine(*at)).collect();
    for at in &genuine {
        let answer = world.present(&old.keys[*at]).await;
        assert_eq!((answer.outcome(), answer.name), (Valid, format!("client no. {at}")));
    }
    assert_eq!(checks(world).await, before, "nothing is checked once more");
    let rehashed = "SELECT count(*) FROM audit_events WHERE action = 'key.rehash'";
    assert_eq!(world.database.query_i64(rehashed).await, i64::try_from(genuine.len()).expect("few"));
}
