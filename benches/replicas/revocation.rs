//! What one revocation costs with 0, 1, 3 and 10 followers, which are further replicas on the same PostgreSQL: how long
//! `RevokeKey` takes on the first replica, and from its answer until every follower says `REVOKED`. Then how many
//! changes a second 16 clients make, each of which every follower reads, against `pgbench` that updates one row: changes
//! take their revisions from one row too, so that is the most that any of them could be.
//! The followers are at rest while the key is revoked, and asked from the answer on; so asking does not slow revoking.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use keystead::proto::v1::{
    ApiKey, Outcome, RevocationReason, RevokeKeyRequest, UpdateKeyRequest, VerifyKeyRequest, VerifyKeyResponse,
};
use prost_types::FieldMask;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio::time::sleep;

use crate::support::{
    Failure,
    compare::{Pairs, Spread, print_ratio},
    database::{Database, Engine},
    keys::{self, Limits},
    load::{self, Connections, Workload},
    pgbench,
    plan::Plan,
    process, requests,
    server::{Keys, Server},
};

/// Replicas besides the one that revokes. Of none is what the others are held against.
const FOLLOWERS: &[usize] = &[0, 1, 3, 10];
const FOLLOWERS_QUICK: &[usize] = &[0, 1];
/// The pause between two questions to a follower, and so about what the times can tell apart: without it ten followers
/// would be busy with questions.
const PACE: Duration = Duration::from_millis(1);
/// The staleness bound that the server has by itself: a verification that begins later must not be `VALID`.
const BOUND: Duration = Duration::from_secs(5);
/// Clients that change keys, each with a connection and one call in flight on it, and keys that they change.
const CLIENTS: usize = 16;
const CHANGED_KEYS: u32 = 100;

/// The one row that `pgbench` updates.
const TABLE: &str = "CREATE TABLE bench_counter (id bigint PRIMARY KEY, revision bigint NOT NULL); \
                     INSERT INTO bench_counter VALUES (1, 0)";
const SCRIPT: &str = "UPDATE bench_counter SET revision = revision + 1 WHERE id = 1;\n";

/// What one revocation took, in milliseconds.
struct Round {
    call: f64,
    everywhere: f64,
}

/// What stays the same with any number of followers.
struct Bench {
    plan: Plan,
    // In this order: the server ends before its database.
    first: Server,
    changes: Workload,
    script: PathBuf,
    database: Database,
}

/// Measures, with more and more followers.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    let bench = Bench::prepare(plan).await?;
    let first = bench.first.keys()?;
    let mut followers: Vec<Server> = Vec::new();
    let mut of_none = f64::NAN;
    // The keys with low numbers are revoked, one a round.
    let mut numbers = 1..;
    for count in plan.sized(FOLLOWERS, FOLLOWERS_QUICK).iter().copied() {
        while followers.len() < count {
            followers.push(bench.first.start_replica(&bench.database, followers.len() + 1).await?);
        }
        let clients: Vec<Keys> = followers.iter().map(Server::keys).collect::<Result<_, _>>()?;
        bench.settled(&followers).await?;
        // The first round opens connections, and does not count.
        let mut rounds = Vec::new();
        for number in numbers.by_ref().take(plan.repeats() + 1) {
            rounds.push(round(&first, &clients, &requests::secret(number)).await?);
        }
        let of = |time: fn(&Round) -> f64| Spread::of(&rounds.iter().skip(1).map(time).collect::<Vec<_>>());
        let (call, everywhere) = (of(|round| round.call), of(|round| round.everywhere));
        if count == 0 {
            of_none = call.median;
        }
        let ratio = call.median / of_none;
        println!("{count} followers: RevokeKey {call} ms; of that with none {ratio:.2}; goal none");
        if count > 0 {
            println!("  REVOKED on all of them {everywhere} ms after its answer; goal at most {BOUND:?}");
        }
        bench.changes(&followers).await?;
    }
    Ok(())
}

/// One key: valid on every replica, revoked on the first, and then asked about until every follower knows.
async fn round(first: &Keys, followers: &[Keys], secret: &str) -> Result<Round, Failure> {
    let key = verified(first, secret).await?;
    for answer in try_join_all(followers.iter().chain([first]).map(|replica| verified(replica, secret))).await? {
        expect(&answer, Outcome::Valid)?;
    }
    let request =
        RevokeKeyRequest { key_id: key.key_id, reason: RevocationReason::Cessation.into(), ..Default::default() };
    let begun = Instant::now();
    first.clone().revoke_key(request).await?;
    let answered = Instant::now();
    let seen = try_join_all(followers.iter().map(|follower| until_revoked(follower, secret, answered))).await?;
    expect(&verified(first, secret).await?, Outcome::Revoked)?;
    let everywhere = seen.into_iter().max().unwrap_or(answered);
    let milliseconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
    Ok(Round { call: milliseconds(begun, answered), everywhere: milliseconds(answered, everywhere) })
}

/// Asks until the answer is `REVOKED`, and gives the moment of that answer.
async fn until_revoked(follower: &Keys, secret: &str, answered: Instant) -> Result<Instant, Failure> {
    loop {
        let asked = Instant::now();
        let answer = verified(follower, secret).await?;
        if answer.outcome() == Outcome::Revoked {
            return Ok(Instant::now());
        }
        expect(&answer, Outcome::Valid)?;
        let late = asked.saturating_duration_since(answered);
        if late > BOUND {
            return Err(format!("a follower says VALID {late:?} after the revocation was answered").into());
        }
        sleep(PACE).await;
    }
}

async fn verified(replica: &Keys, secret: &str) -> Result<VerifyKeyResponse, Failure> {
    let request = VerifyKeyRequest { secret: secret.to_owned(), ..Default::default() };
    Ok(replica.clone().verify_key(request).await?.into_inner())
}

fn expect(answer: &VerifyKeyResponse, outcome: Outcome) -> Result<(), Failure> {
    if answer.outcome() == outcome {
        return Ok(());
    }
    Err(format!("{} instead of {}", answer.outcome().as_str_name(), outcome.as_str_name()).into())
}

impl Bench {
    async fn prepare(plan: Plan) -> Result<Self, Failure> {
        let database = Database::new(Engine::Postgres, plan)?;
        let first = Server::start(&database, &[]).await?;
        let keys = keys::make(&first, &database, plan.sized(1000, 200), Limits::None).await?;
        let connection = database.connect().await?;
        connection.execute_unprepared(TABLE).await?;
        // The newest, which have the highest numbers and are not revoked.
        let sql = "SELECT id FROM api_keys WHERE organization_id = $1 ORDER BY create_time_us DESC LIMIT $2";
        let values = [keys.organization_id.into(), i64::from(CHANGED_KEYS).into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        let rows = connection.query_all_raw(statement).await?;
        let ids: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
        connection.close().await?;
        let script = database.folder().join("update.sql");
        fs::write(&script, SCRIPT)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644))?;
        let changes = changing(first.admin.clone(), ids);
        Ok(Self { plan, first, changes, script, database })
    }

    /// Changes a second, with these followers.
    async fn changes(&self, followers: &[Server]) -> Result<(), Failure> {
        let connections = Connections::open(self.first.address, CLIENTS).await?;
        let postgres = self.database.postgres()?;
        let pairs = Pairs::alternate(
            self.plan.pairs(),
            async || {
                self.settled(followers).await?;
                Ok(connections.run(&self.changes, CLIENTS, self.plan.run()).await?.per_second())
            },
            async || {
                self.settled(followers).await?;
                pgbench::script(postgres, &self.script, CLIENTS, self.plan.run()).await
            },
        )
        .await?;
        let what = format!("  changes by {CLIENTS} clients");
        print_ratio(&what, "/s", "pgbench UPDATE of one row", pairs.spreads(|rate| *rate), "none");
        Ok(())
    }

    async fn settled(&self, followers: &[Server]) -> Result<(), Failure> {
        for server in followers.iter().chain([&self.first]) {
            process::settled(server.process()).await?;
        }
        Ok(())
    }
}

/// New names for these keys in turn: neighbours in time change different rows, and wait for each other only where every
/// change waits for every other.
fn changing(caller: String, ids: Vec<String>) -> Workload {
    let next = AtomicUsize::new(0);
    Workload {
        method: "keystead.v1.KeyService/UpdateKey",
        caller,
        body: Arc::new(move || {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let id = ids.get(number % ids.len().max(1)).cloned().unwrap_or_default();
            let request = UpdateKeyRequest {
                key: Some(ApiKey { id, name: format!("Change {number}"), ..Default::default() }),
                update_mask: Some(FieldMask { paths: vec!["name".to_owned()] }),
                ..Default::default()
            };
            // An empty body would be refused, and the run be void.
            requests::frame(&request).unwrap_or_default()
        }),
        check: load::answered,
    }
}
