//! `cache`: the crates that could hold the keys, by what a verification needs of one: fast hits from two threads, real
//! keys that stay while a flood of random ones passes through, little memory. Keys are digests, values are shared.
//! Each is measured in a process of its own, so that one's memory is not another's. The choice stands in
//! `docs/performance.md`.

use std::{
    env, hint,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Instant,
};

use keystead::domain::digest::Digest;

use crate::support::{
    Failure,
    compare::{Spread, float, title},
    plan::Plan,
    process::resident_bytes,
    random::Random,
    requests::{self, UNKNOWN},
};

/// The hidden argument of the process that measures one; behind it the crate's name and how many entries.
pub const ARGUMENT: &str = "--cache";
const CRATES: &[&str] = &["moka", "quick_cache", "scc"];
/// Gets for each entry. They are drawn once and used again and again, so that drawing them is not measured.
const GETS_PER_ENTRY: u64 = 10;

/// What is stored: as large as a pointer's target can be at the least.
type Value = Arc<u64>;

/// What a verification needs of a cache.
trait Cache: Send + Sync {
    fn get(&self, key: &Digest) -> Option<Value>;
    fn insert(&self, key: Digest, value: Value);
}

impl Cache for moka::sync::Cache<Digest, Value> {
    fn get(&self, key: &Digest) -> Option<Value> {
        self.get(key)
    }

    fn insert(&self, key: Digest, value: Value) {
        self.insert(key, value);
    }
}

impl Cache for quick_cache::sync::Cache<Digest, Value> {
    fn get(&self, key: &Digest) -> Option<Value> {
        self.get(key)
    }

    fn insert(&self, key: Digest, value: Value) {
        self.insert(key, value);
    }
}

impl Cache for scc::HashCache<Digest, Value> {
    fn get(&self, key: &Digest) -> Option<Value> {
        // The way that counts as a use.
        self.get_sync(key).map(|entry| Arc::clone(entry.get()))
    }

    fn insert(&self, key: Digest, value: Value) {
        // Fails where the key is there already, as it may be when two threads miss at once.
        let _ = self.put_sync(key, value);
    }
}

/// Runs the benchmark.
pub fn run(plan: Plan) -> Result<(), Failure> {
    let entries = plan.sized(100_000, 1000);
    title("cache", &format!("{entries} digests, hits spread as by Zipf's law"));
    println!("crate, ns per get by 1 thread, by 2 threads, part of hits during a scan, resident bytes per entry");
    for name in CRATES {
        let mut command = Command::new(env::current_exe()?);
        let status = command.args([ARGUMENT, name, &entries.to_string()]).stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("{name}: {status}").into());
        }
    }
    Ok(())
}

/// Measures one crate, in this process.
pub fn measure(name: &str, entries: &str) -> Result<(), Failure> {
    let count: usize = entries.parse()?;
    let capacity = u64::try_from(count)?;
    let before = resident_bytes(std::process::id())?;
    let cache: Arc<dyn Cache> = match name {
        "moka" => Arc::new(moka::sync::Cache::<Digest, Value>::new(capacity)),
        "quick_cache" => Arc::new(quick_cache::sync::Cache::<Digest, Value>::new(count)),
        "scc" => Arc::new(scc::HashCache::<Digest, Value>::with_capacity(0, count)),
        _ => return Err("a crate that is not compared".into()),
    };
    for number in 0..capacity {
        cache.insert(digest(number), Arc::new(number));
    }
    let held = float(resident_bytes(std::process::id())?.saturating_sub(before)) / float(capacity);
    let draws: Arc<[Digest]> = draw(capacity).into();
    let one = nanoseconds_per_get(&cache, &draws, 1)?;
    let two = nanoseconds_per_get(&cache, &draws, 2)?;
    let hits = hits_during_scan(&*cache, &draws);
    println!("{name}, {one}, {two}, {hits:.3}, {held:.0}");
    Ok(())
}

fn digest(number: u64) -> Digest {
    Digest::of(&requests::secret(number))
}

/// Keys by Zipf's law with exponent 1: the second is asked for half as often as the first, and so on.
fn draw(count: u64) -> Vec<Digest> {
    let digests: Vec<Digest> = (0..count).map(digest).collect();
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=count)
        .map(|rank| {
            sum += 1.0 / float(rank);
            sum
        })
        .collect();
    let mut random = Random::new(4);
    let ranks = (0..count * GETS_PER_ENTRY).map(|_| {
        let at = random.fraction() * sum;
        cumulative.partition_point(|edge| *edge <= at)
    });
    ranks.filter_map(|rank| digests.get(rank).copied()).collect()
}

fn nanoseconds_per_get(cache: &Arc<dyn Cache>, draws: &Arc<[Digest]>, threads: usize) -> Result<Spread, Failure> {
    let mut rounds = Vec::new();
    for _ in 0..6 {
        let begun = Instant::now();
        let running: Vec<_> = (0..threads)
            .map(|nth| {
                let (cache, draws) = (Arc::clone(cache), Arc::clone(draws));
                let skip = nth * draws.len() / threads;
                thread::spawn(move || {
                    for key in draws.iter().cycle().skip(skip).take(draws.len()) {
                        hint::black_box(cache.get(key));
                    }
                })
            })
            .collect();
        for thread in running {
            thread.join().map_err(|_| "a thread ended")?;
        }
        rounds.push(begun.elapsed().as_secs_f64() * 1e9 / float(draws.len() as u64));
    }
    // The first warms up.
    Ok(Spread::of(rounds.get(1..).unwrap_or_default()))
}

/// The part of the gets that hit, while an equal number of keys that nobody asks for again is put in between. What
/// misses is put in again, as a verification would.
fn hits_during_scan(cache: &dyn Cache, draws: &[Digest]) -> f64 {
    let mut hits = 0;
    for (key, number) in draws.iter().zip(UNKNOWN..) {
        let other = digest(number);
        if cache.get(&other).is_none() {
            cache.insert(other, Arc::new(number));
        }
        if cache.get(key).is_some() {
            hits += 1;
        } else {
            cache.insert(*key, Arc::new(0));
        }
    }
    float(hits) / float(draws.len() as u64)
}
