//! What the fourth system's limits and quotas have counted, thousands of windows by the mapping of the documentation
//! and with their dirt: windows that are over, that nobody has a limit for, that are of nobody, or that make no sense.
//! Invariant: each counter stands where the old tables say, once, however often the import is repeated.

use keystead::proto::v1::Outcome::{QuotaExceeded, RateLimited, Valid};

use super::organizations::{
    KEYS, ORGANIZATIONS, Old, PLANLESS, TAKEN, beside, has_daily_limit, has_organization, key_id, month, now,
    organization_id, owner_of, written,
};
use super::world::{Report, World};
use crate::harness::source::{Cell, cell};
use crate::harness::{TestDatabase, store_test};

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;
/// A key whose day is spent, and an organization whose month is.
const SPENT_KEY: usize = 24;
const SPENT_ORGANIZATION: usize = 4;
/// A key with two windows that run.
const TWICE: usize = 0;
/// A key with a limit, for windows that make no sense.
const ODD: usize = 6;

fn came_over(organization: usize) -> bool {
    ![PLANLESS, TAKEN].contains(&organization)
}

/// What a key has counted today, in one window.
fn daily(at: usize) -> i64 {
    if at == SPENT_KEY { 1000 } else { i64::try_from(at % 50).expect("small") + 1 }
}

/// What an organization's requests of the present minute, as its window has it.
fn requests(at: usize) -> i64 {
    100 + i64::try_from(at).expect("small")
}

/// What the column of an organization says that it has used this month.
fn used(at: usize) -> i64 {
    i64::try_from(at).expect("small") * 1000
}

/// The same by its window: more than that of some, less of others.
fn monthly(at: usize) -> i64 {
    match at {
        SPENT_ORGANIZATION => 1_000_000,
        at if at.is_multiple_of(8) => used(at) + 7,
        at => used(at) / 2,
    }
}

/// The rows of `rate_limit_tracking`.
#[derive(Default)]
struct Windows(Vec<Vec<Cell>>);

impl Windows {
    fn add(&mut self, owner: (Cell, Cell), name: &str, (start, end): (i64, i64), count: i64) {
        let (key, organization) = owner;
        let row = cell((self.0.len() + 1).to_string());
        let span = [start, end].map(|seconds| cell(written(seconds)));
        self.0.push([vec![row, key, organization, cell(name)], span.into(), vec![cell(count.to_string())]].concat());
    }

    fn all() -> Self {
        let (running, over) = ((now() - HOUR, now() + HOUR), (now() - 4 * DAY, now() - 3 * DAY));
        let (this_month, last_month) = ((month(0), month(0) + 31 * DAY), (month(1), month(0)));
        let of_key = |at: usize| (cell(key_id(at)), None);
        let mut windows = Self::default();
        for at in 0..KEYS {
            windows.add(of_key(at), "daily", running, daily(at));
            windows.add(of_key(at), "daily", over, 1_000_000);
        }
        for at in 0..ORGANIZATIONS {
            let of_organization = || (None, cell(organization_id(at)));
            windows.add(of_organization(), "requests", running, requests(at));
            // A quota is the organization's, also where its row names the key that was used last.
            windows.add((cell(key_id(at)), cell(organization_id(at))), "monthly", this_month, monthly(at));
            windows.add(of_organization(), "monthly", last_month, 1_000_000);
        }
        windows.add(of_key(TWICE), "daily", running, 5);
        windows.add(of_key(ODD), "daily", running, 0);
        // From here on: refused.
        windows.add(of_key(ODD), "hourly", running, 1);
        windows.add(of_key(ODD), "monthly", this_month, 1);
        windows.add(of_key(ODD), "daily", (running.1, running.0), 1);
        windows.add(of_key(ODD), "daily", running, -1);
        windows.add((None, None), "daily", running, 1);
        windows
    }
}

async fn fill(old: &Old) {
    let columns = "id, api_key_id, organization_id, limit_name, window_start, window_end, request_count";
    old.source.insert("rate_limit_tracking", columns, &Windows::all().0).await;
}

/// The keys whose day is counted here.
fn counted_keys() -> impl Iterator<Item = usize> {
    (0..KEYS).filter(|at| has_organization(*at) && has_daily_limit(*at))
}

/// The organizations whose minute is counted here.
fn counted_organizations() -> impl Iterator<Item = usize> {
    (0..ORGANIZATIONS).filter(|at| came_over(*at) && at.is_multiple_of(3))
}

fn assert_refused(report: &Report) {
    let strangers = (0..KEYS).filter(|at| !has_organization(*at)).count();
    let without_limit = (0..KEYS).filter(|at| has_organization(*at) && !has_daily_limit(*at)).count();
    let without_minute = ORGANIZATIONS - 2 - counted_organizations().count();
    let expected = [
        ("BAD_LIMIT", 2 * without_limit + without_minute + 5),
        ("UNKNOWN_KEY", 2 * strangers),
        ("UNKNOWN_ORGANIZATION", 2 * 3),
    ];
    let expected = expected.map(|(reason, count)| (reason.to_owned(), count as u64));
    assert_eq!(report.table("rate_limit_tracking").by("refusals"), expected.into());
}

/// What counters of Keystead's own say, by what they are called and whose they are.
async fn counted(world: &World, name: &str, whose: &str) -> i64 {
    let sql = format!(
        "SELECT CAST(coalesce(sum(count), 0) AS bigint) FROM rate_limit_tracking \
         WHERE limit_name = '{name}' AND subject_id NOT LIKE 'import %' AND {whose}"
    );
    world.database.query_i64(&sql).await
}

async fn assert_counted(world: &World) {
    let all: i64 = counted_keys().map(daily).sum();
    assert_eq!(counted(world, "daily", "true").await, all + 5, "what all keys have counted today");
    for at in [1, SPENT_KEY, 2995] {
        assert_eq!(counted(world, "daily", &format!("subject_id = '{}'", key_id(at))).await, daily(at), "key {at}");
    }
    assert_eq!(counted(world, "daily", &format!("subject_id = '{}'", key_id(TWICE))).await, daily(TWICE) + 5);
    for at in 0..ORGANIZATIONS {
        let own = format!("subject_id = '{}'", organization_id(at));
        let of_minute = if counted_organizations().any(|counted| counted == at) { requests(at) } else { 0 };
        assert_eq!(counted(world, "requests", &own).await, of_minute, "the minute of organization {at}");
        // The column and the window tell of the same requests.
        let of_month = if came_over(at) { used(at).max(monthly(at)) } else { 0 };
        assert_eq!(counted(world, "monthly quota", &own).await, of_month, "the month of organization {at}");
    }
}

store_test!(what_the_old_system_counted_is_counted_here_once);
async fn what_the_old_system_counted_is_counted_here_once(database: TestDatabase) {
    let (mut world, old) = beside(database).await;
    fill(&old).await;
    let file = world.path("refused.csv");
    let file = file.to_str().expect("text");
    let report = old.bring_in(&mut world, file).await;
    // Of quotas those that the column of their organization had not told of already.
    let quotas = (0..ORGANIZATIONS).filter(|at| came_over(*at) && monthly(*at) > used(*at)).count();
    let known = ORGANIZATIONS - 2 - quotas;
    let (keys, organizations) = (counted_keys().count(), counted_organizations().count());
    let created = keys + organizations + quotas + 1;
    let names = ["created", "existing", "skipped"];
    let table = report.table("rate_limit_tracking");
    let counts = [created, known + 1, keys + ORGANIZATIONS - 2].map(|count| count as u64);
    assert_eq!(table.counts(names), counts);
    assert_eq!(table.count("rows"), 2 * KEYS as u64 + 3 * ORGANIZATIONS as u64 + 7);
    assert_refused(&report);
    assert_counted(&world).await;

    let again = old.bring_in(&mut world, file).await;
    assert_eq!(again.table("rate_limit_tracking").count("created"), 0);
    assert_eq!(again.table("rate_limit_tracking").count("existing"), (created + known + 1) as u64);
    assert_counted(&world).await;

    // And it counts.
    assert_eq!(owner_of(SPENT_KEY), 0);
    assert_eq!(world.outcome(&old.secrets[SPENT_KEY]).await, RateLimited);
    assert_eq!(world.outcome(&old.secrets[TWICE]).await, Valid, "another key of the same organization");
    let of_spent = SPENT_ORGANIZATION + ORGANIZATIONS;
    assert_eq!(world.outcome(&old.secrets[of_spent]).await, QuotaExceeded);
}
