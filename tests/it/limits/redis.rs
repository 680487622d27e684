//! The counters in Redis, called directly against real servers, a cluster, and a network with faults: the script counts
//! as the domain's arithmetic does, nothing is admitted beyond a limit, what a restart of Redis forgot comes back, and
//! no fault keeps a caller waiting or ends in anything but an error that says what is wrong.
//! Where a test is about counting, the budget is long, so that a busy machine does not decide about it.

use std::time::{Duration, Instant};

use keystead::config::RedisUrl;
use keystead::domain::ids::{OrganizationId, RecordId};
use keystead::domain::limits::{RateLimit, SlidingWindow};
use keystead::domain::time::Timestamp;
use keystead::limits::redis::{Answered, Asked, BUDGET, RedisCounters, RedisError};
use tokio::task::JoinSet;

use crate::harness::redis::ask;
use crate::harness::{Fault, OwnRedis, Proxy, RedisCluster, redis, wait_until};

/// 400 days: so long that no window ends during a test.
const LONG: Duration = Duration::from_hours(400 * 24);
const LONG_MS: i64 = 400 * 24 * 3_600_000;

/// Counters with the budget of a caller, connected.
async fn hasty(url: &str) -> RedisCounters {
    let url = RedisUrl::parse(url).expect("a URL of Redis");
    let counters = RedisCounters::new(&url).expect("a URL that can be used");
    connect(&counters).await;
    counters
}

/// Counters that wait for as long as a busy machine may need, connected.
async fn patient(url: &str) -> RedisCounters {
    hasty(url).await.with_budget(Duration::from_secs(20))
}

async fn connect(counters: &RedisCounters) {
    wait_until("Redis to serve", async || counters.probe().await.is_ok()).await;
}

/// A number that nothing else has: the id of an organization, or of a key's counter.
fn anyone() -> u128 {
    u128::from_ne_bytes(keystead::random::bytes())
}

fn limit(name: &str, limit: i64, window: Duration) -> RateLimit {
    RateLimit::parse(name, limit, window, false).expect("a limit")
}

fn asked(subject: u128, limit: &RateLimit) -> Asked<'_> {
    Asked { subject, limit, known: None, carry: 0 }
}

fn key(organization: u128, subject: u128, limit: &RateLimit) -> String {
    let (organization, subject) = (OrganizationId::from_u128(organization), RecordId::from_u128(subject));
    format!("keystead:{{{organization}}}:{subject}:{}:{}", limit.name, limit.window_us())
}

/// The counts of the present windows.
fn counts(answered: &Answered) -> Vec<i64> {
    answered.windows.iter().map(|window| window.current).collect()
}

/// A generator of numbers that are the same in each run: `SplitMix64` (Steele, Lea and Flood, 2014).
struct Numbers(u64);

impl Numbers {
    fn up_to(&mut self, most: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        i64::try_from((mixed ^ (mixed >> 31)) >> 1).expect("63 bits") % (most + 1)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let last = i64::try_from(choices.len()).expect("a few") - 1;
        choices[usize::try_from(self.up_to(last)).expect("an index")]
    }

    /// Nothing, a little, or anything up to `most`.
    fn count(&mut self, most: i64) -> i64 {
        let most = self.one_of(&[0, 10, most, most]);
        self.up_to(most)
    }

    fn window(&mut self, limit: &RateLimit, now: Timestamp) -> SlidingWindow {
        let windows = self.one_of(&[-3, -2, -1, -1, 0, 0, 0, 1, 2]);
        let start_us = SlidingWindow::empty(limit, now).start_us + windows * limit.window_us();
        SlidingWindow { start_us, current: self.count(1_000_000_000), previous: self.count(1_000_000_000) }
    }
}

/// One counter before a charge: what Redis holds of it, and what the process knows and charged alone.
struct Before {
    subject: u128,
    limit: RateLimit,
    stored: Option<SlidingWindow>,
    known: Option<SlidingWindow>,
    carry: i64,
}

impl Before {
    fn any(numbers: &mut Numbers, at: usize, now: Timestamp, cost: i64) -> Self {
        const WINDOWS_US: [u64; 6] =
            [1_000_000, 1_000_003, 60_000_000, 3_600_000_000, 86_400_000_000, 34_560_000_000_000];
        let window = Duration::from_micros(numbers.one_of(&WINDOWS_US));
        let shadow = numbers.up_to(4) == 0;
        let limit = RateLimit { name: format!("limit-{at}"), limit: 1, window, shadow };
        let stored = (numbers.up_to(3) > 0).then(|| numbers.window(&limit, now));
        let known = (numbers.up_to(1) > 0).then(|| numbers.window(&limit, now));
        let carry = if known.is_some() { numbers.count(1000) } else { 0 };
        let mut before = Self { subject: anyone(), limit, stored, known, carry };
        // Mostly the limit is where the cost just fits, or just does not.
        let merged = before.merged(now);
        let covered = (before.limit.window_us() - (now.micros() - merged.start_us)).clamp(0, before.limit.window_us());
        let faded = i128::from(merged.previous) * i128::from(covered) / i128::from(before.limit.window_us());
        let full = merged.current + i64::try_from(faded).expect("no more than before") + cost.max(1);
        let other = numbers.count(1_000_000_000);
        before.limit.limit = numbers.one_of(&[full - 1, full, full, full + 1, other]).max(1);
        before
    }

    fn asked(&self) -> Asked<'_> {
        Asked { subject: self.subject, limit: &self.limit, known: self.known, carry: self.carry }
    }

    /// Where the counter stands before the charge: the highest of what is stored and known, each moved on to the newest
    /// window there is, with what the process charged alone on top.
    fn merged(&self, now: Timestamp) -> SlidingWindow {
        // What a clock far ahead has counted counts now.
        let length = self.limit.window_us();
        let sane = |window: SlidingWindow| {
            let is_far_ahead = window.start_us > now.micros() + length;
            let start_us = if is_far_ahead { now.micros() - now.micros() % length } else { window.start_us };
            SlidingWindow { start_us, ..window }
        };
        let (stored, known) = (self.stored.map(sane), self.known.map(sane));
        let starts = [stored, known].into_iter().flatten().map(|window| window.start_us);
        let newest = Timestamp::from_micros(starts.fold(now.micros(), i64::max));
        let moved = |window: Option<SlidingWindow>| match window {
            Some(window) => window.at(&self.limit, newest),
            None => SlidingWindow::empty(&self.limit, newest),
        };
        let alone = moved(known.map(|known| SlidingWindow { current: self.carry, previous: 0, ..known }));
        let (stored, known) = (moved(stored), moved(known));
        SlidingWindow {
            start_us: stored.start_us,
            current: stored.current.max(known.current) + alone.current,
            previous: stored.previous.max(known.previous) + alone.previous,
        }
    }
}

/// What a charge must answer, by the domain's own arithmetic.
fn expected(counters: &[Before], cost: i64, now: Timestamp) -> Answered {
    let merged: Vec<SlidingWindow> = counters.iter().map(|before| before.merged(now)).collect();
    let denies = |(before, window): (&Before, &SlidingWindow)| {
        !before.limit.shadow && !window.admits(&before.limit, now, cost.max(1))
    };
    let refused = counters.iter().zip(&merged).any(denies);
    let charged = if refused { 0 } else { cost };
    Answered { now, denied: refused, windows: merged.into_iter().map(|window| window.charged(charged)).collect() }
}

#[tokio::test]
async fn the_script_counts_as_the_domain_does() {
    let address = redis().await.address();
    let counters = patient(&redis().await.url()).await;
    let mut numbers = Numbers(4);
    let mut outcomes = [0; 2];
    for _ in 0..300 {
        let organization = anyone();
        let now = counters.charge(organization, &[], 1).await.expect("the time").now;
        let cost = numbers.one_of(&[0, 1, 1, 7, 1_000_000]);
        let limits = 1 + usize::try_from(numbers.up_to(3)).expect("a few");
        let mut before: Vec<Before> = (0..limits).map(|at| Before::any(&mut numbers, at, now, cost)).collect();
        for counter in &before {
            if let Some(SlidingWindow { start_us, current, previous }) = counter.stored {
                let (key, text) =
                    (key(organization, counter.subject, &counter.limit), format!("{start_us} {current} {previous}"));
                ask(address, &["SET", &key, &text]).await.expect("it is stored");
            }
        }
        // The second time, what the first left behind is found again and what was told is not added once more.
        for _ in 0..2 {
            let asked: Vec<Asked<'_>> = before.iter().map(Before::asked).collect();
            let answered = counters.charge(organization, &asked, cost).await.expect("an answer");
            assert_eq!(answered, expected(&before, cost, answered.now), "a charge of {cost}");
            outcomes[usize::from(answered.denied)] += 1;
            for (counter, window) in before.iter_mut().zip(answered.windows) {
                (counter.stored, counter.carry) = (Some(window), 0);
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 100), "admitted and denied: {outcomes:?}");
}

#[tokio::test]
async fn several_limits_are_charged_all_or_none_and_a_peek_charges_nothing() {
    let counters = patient(&redis().await.url()).await;
    let (organization, subject) = (anyone(), anyone());
    let (wide, narrow) = (limit("wide", 10, LONG), limit("narrow", 3, LONG));
    let shadow = RateLimit { shadow: true, ..limit("shadow", 1, LONG) };
    let limits = [asked(subject, &wide), asked(organization, &narrow), asked(subject, &shadow)];
    let told = async |cost| {
        let answered = counters.charge(organization, &limits, cost).await.expect("an answer");
        (answered.denied, counts(&answered))
    };
    assert_eq!(told(2).await, (false, vec![2, 2, 2]));
    assert_eq!(told(2).await, (true, vec![2, 2, 2]));
    assert_eq!(told(0).await, (false, vec![2, 2, 2]));
    assert_eq!(told(1).await, (false, vec![3, 3, 3]));
    assert_eq!(told(0).await, (true, vec![3, 3, 3]));
}

#[tokio::test]
async fn clients_that_charge_at_once_admit_exactly_the_limit() {
    let url = redis().await.url();
    let clients = [patient(&url).await, patient(&url).await];
    let (organization, subject) = (anyone(), anyone());
    let mut charges = JoinSet::new();
    for at in 0..200 {
        let counters = clients[at % 2].clone();
        charges.spawn(async move {
            let hundred = limit("hundred", 100, LONG);
            counters.charge(organization, &[asked(subject, &hundred)], 1).await.expect("an answer").denied
        });
    }
    let denied = charges.join_all().await;
    assert_eq!(denied.iter().filter(|denied| !**denied).count(), 100);
}

#[tokio::test]
async fn a_counter_expires_when_it_has_faded_out_and_a_peek_leaves_none() {
    let address = redis().await.address();
    let counters = patient(&redis().await.url()).await;
    let (organization, subject, long) = (anyone(), anyone(), limit("long", 5, LONG));
    let key = key(organization, subject, &long);
    for (cost, exists) in [(0, "0"), (6, "0"), (1, "1")] {
        counters.charge(organization, &[asked(subject, &long)], cost).await.expect("an answer");
        assert_eq!(ask(address, &["EXISTS", &key]).await.expect("an answer"), exists, "after a charge of {cost}");
    }
    let left: i64 = ask(address, &["PTTL", &key]).await.expect("an answer").parse().expect("milliseconds");
    // It lasts for the rest of its window, and the one after it.
    assert!((LONG_MS..=2 * LONG_MS).contains(&left), "{left} ms");
}

#[tokio::test]
async fn what_a_process_knew_comes_back_when_redis_has_forgotten_it() {
    let mut server = OwnRedis::start().await;
    let counters = patient(&server.url()).await;
    let (organization, subject, long) = (anyone(), anyone(), limit("long", 10, LONG));
    let known = async |known, carry, cost| {
        let asked = [Asked { known, carry, ..asked(subject, &long) }];
        counters.charge(organization, &asked, cost).await.map(|answered| answered.windows[0])
    };
    let seen = known(None, 0, 4).await.expect("an answer");
    ask(server.address(), &["FLUSHALL"]).await.expect("it forgets");
    let seen = known(Some(seen), 0, 1).await.expect("an answer");
    assert_eq!(seen.current, 5);

    server.kill9();
    assert_eq!(known(Some(seen), 0, 1).await, Err(RedisError::Away));
    server.start_again().await;
    connect(&counters).await;
    // What this process tells with a peek, another one is charged on top of.
    let told = known(Some(seen), 2, 0).await.expect("an answer");
    assert_eq!(told.current, 7, "5 were known, and 2 were charged meanwhile");
    let other = patient(&server.url()).await;
    let answered = other.charge(organization, &[asked(subject, &long)], 3).await.expect("an answer");
    assert_eq!((answered.denied, counts(&answered)), (false, vec![10]));
    let again = known(Some(told), 0, 0).await.expect("an answer");
    assert_eq!(again.current, 10, "what was told once is not added again");
}

#[tokio::test]
async fn what_a_hand_wrote_over_a_counter_is_refused_or_counts_as_nothing() {
    let address = redis().await.address();
    let counters = patient(&redis().await.url()).await;
    let long = limit("long", 5, LONG);
    for text in ["", "x", "1 2", "1 2 3 4", "-1 2 3", "0 1e9 0", "0 99999999999999999999 0", "7 5 5", "\u{1f4a5} 1 1"] {
        let (organization, subject) = (anyone(), anyone());
        ask(address, &["SET", &key(organization, subject, &long), text]).await.expect("it is stored");
        let answered = counters.charge(organization, &[asked(subject, &long)], 3).await.expect("an answer");
        assert_eq!((answered.denied, counts(&answered)), (false, vec![3]), "{text:?}");
    }
    let (organization, subject, other) = (anyone(), anyone(), limit("other", 5, LONG));
    ask(address, &["RPUSH", &key(organization, subject, &long), "x"]).await.expect("it is stored");
    let both = [asked(subject, &other), asked(subject, &long)];
    let refused = counters.charge(organization, &both, 1).await;
    assert!(matches!(&refused, Err(RedisError::Refused(why)) if why.starts_with("WRONGTYPE")), "{refused:?}");
    let answered = counters.charge(organization, &both[..1], 0).await.expect("an answer");
    assert_eq!(counts(&answered), [0], "none was charged where one was refused");
}

#[tokio::test]
async fn organizations_share_the_nodes_of_a_cluster() {
    let cluster = RedisCluster::start().await;
    let counters = patient(&cluster.url()).await;
    let (own, shared) = (limit("own", 5, LONG), limit("shared", 9, LONG));
    // Their slots lie on all three nodes.
    for organization in 1..=20 {
        for charged in 1..=2 {
            let asked = [asked(anyone(), &own), asked(organization, &shared)];
            let answered = counters.charge(organization, &asked, 1).await.expect("an answer");
            assert_eq!((answered.denied, counts(&answered)), (false, vec![1, charged]));
        }
    }
    let mut keys = Vec::new();
    for address in cluster.addresses() {
        let count = ask(address, &["EVAL", "return #redis.call('KEYS', 'keystead:{*}:*')", "0"]).await;
        keys.push(count.expect("an answer").parse::<i64>().expect("a number"));
    }
    assert!(keys.iter().all(|count| *count > 0), "{keys:?}");
    assert_eq!(keys.iter().sum::<i64>(), 60, "{keys:?}");
}

#[tokio::test]
async fn silence_costs_a_caller_the_budget_and_after_a_probe_nothing() {
    let proxy = Proxy::start(redis().await.address()).await;
    let counters = hasty(&format!("redis://{}", proxy.address())).await;
    proxy.set(Fault::Silence);
    let begun = Instant::now();
    assert_eq!(counters.charge(anyone(), &[], 1).await, Err(RedisError::Silent));
    assert!((BUDGET..BUDGET + Duration::from_secs(2)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(counters.probe().await, Err(RedisError::Away));
    assert_eq!(counters.charge(anyone(), &[], 1).await, Err(RedisError::Away));
    proxy.set(Fault::None);
    connect(&counters).await;
    wait_until("a charge", async || counters.charge(anyone(), &[], 1).await.is_ok()).await;
}

#[tokio::test]
async fn a_redis_slower_than_the_budget_is_not_taken_for_one_that_serves() {
    let proxy = Proxy::start(redis().await.address()).await;
    let counters = hasty(&format!("redis://{}", proxy.address())).await;
    proxy.set(Fault::Delay(3 * BUDGET));
    assert_eq!(counters.charge(anyone(), &[], 1).await, Err(RedisError::Silent));
    // Its own patience is longer, and may end first on a busy machine.
    wait_until("a slow answer", async || counters.probe().await == Err(RedisError::Silent)).await;
    proxy.set(Fault::None);
    connect(&counters).await;
}

#[tokio::test]
async fn a_connection_that_is_dead_without_a_word_is_replaced_by_a_probe() {
    let proxy = Proxy::start(redis().await.address()).await;
    let counters = hasty(&format!("redis://{}", proxy.address())).await;
    let connections = proxy.accepted();
    proxy.set(Fault::HalfOpen);
    assert_eq!(counters.charge(anyone(), &[], 1).await, Err(RedisError::Silent));
    connect(&counters).await;
    assert!(proxy.accepted() > connections);
    wait_until("a charge", async || counters.charge(anyone(), &[], 1).await.is_ok()).await;
}

#[tokio::test]
async fn a_redis_that_is_away_or_may_not_write_is_told_apart_and_found_again() {
    let mut server = OwnRedis::start().await;
    let counters = patient(&server.url()).await;
    let (organization, subject, long) = (anyone(), anyone(), limit("long", 5, LONG));
    let charge = async || counters.charge(organization, &[asked(subject, &long)], 1).await;
    let is_refusal = |error: Option<RedisError>| match error {
        Some(RedisError::Refused(why)) => why.starts_with("READONLY"),
        Some(RedisError::Away | RedisError::Silent) | None => false,
    };
    ask(server.address(), &["REPLICAOF", "127.0.0.1", "1"]).await.expect("it follows");
    assert!(is_refusal(charge().await.err()));
    wait_until("a probe to be refused", async || is_refusal(counters.probe().await.err())).await;
    ask(server.address(), &["REPLICAOF", "NO", "ONE"]).await.expect("it leads");
    connect(&counters).await;
    assert_eq!(charge().await.map(|answered| counts(&answered)), Ok(vec![1]));

    server.kill9();
    assert_eq!(charge().await, Err(RedisError::Away));
    assert_eq!(counters.probe().await, Err(RedisError::Away));
    server.start_again().await;
    assert_eq!(charge().await, Err(RedisError::Away), "a charge does not connect");
    connect(&counters).await;
    assert!(charge().await.is_ok());
}
