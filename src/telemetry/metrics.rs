//! The metrics of one process, in the text format of `OpenMetrics` 1.0: every name and its meaning, in one place.
//! What is counted on the way of a call is an atomic at a fixed place, found by an index and not by a name.
//! Invariant: no label comes from a request; a method that does not exist is `(unknown)`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use super::imported::Imported;
use crate::domain::{outcome::Outcome, time::Timestamp};

/// Codes of the gRPC specification, 0 (`OK`) to 16 (`UNAUTHENTICATED`).
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS_US: [u64; 15] =
    [50, 100, 200, 500, 1000, 2000, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 2_500_000, 10_000_000];
/// Methods share a latency histogram by what they cost.
const CLASSES: [&str; 3] = ["verification", "control", "other"];

/// Answered calls by method and code.
struct Calls {
    methods: Vec<&'static str>,
    counts: Vec<[AtomicU64; CODES.len()]>,
}

/// Verifications by outcome.
struct Verifications([AtomicU64; Outcome::ALL.len()]);

/// One histogram; a bucket counts what is above the bound before it and not above its own.
#[derive(Default)]
struct Latency {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

/// The histograms of [`CLASSES`].
struct Latencies([Latency; CLASSES.len()]);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfJob {
    job: &'static str,
}

/// What is known of background jobs.
#[derive(Default)]
struct AllJobs {
    runs: Family<OfJob, Counter>,
    failures: Family<OfJob, Counter>,
    rows: Family<OfJob, Counter>,
    duration: Family<OfJob, Gauge<f64, AtomicU64>>,
    last_success: Family<OfJob, Gauge<f64, AtomicU64>>,
}

/// What the parts of the service hold, read when the page is asked for.
#[derive(Default)]
pub struct State {
    pub cache_keys: Gauge<i64, AtomicI64>,
    pub cache_unknown: Gauge<i64, AtomicI64>,
    pub cache_queries: Gauge<i64, AtomicI64>,
    pub limiter_meters: Gauge<i64, AtomicI64>,
    pub limiter_degraded: Gauge<i64, AtomicI64>,
    pub limiter_alone: Gauge<i64, AtomicI64>,
    pub feed_age: Gauge<f64, AtomicU64>,
    pub feed_listening: Gauge<i64, AtomicI64>,
    pub database_away: Gauge<i64, AtomicI64>,
    pub replicas_live: Gauge<i64, AtomicI64>,
    pub spool_bytes: Gauge<i64, AtomicI64>,
    pub spool_bytes_max: Gauge<i64, AtomicI64>,
    pub spool_segments: Gauge<i64, AtomicI64>,
    pub spool_oldest_age: Gauge<f64, AtomicU64>,
    pub spool_merges: Gauge<i64, AtomicI64>,
    pub details_left_out: Gauge<i64, AtomicI64>,
    pub spool_failing: Gauge<i64, AtomicI64>,
}

/// The metrics of one process.
pub struct Metrics {
    registry: Registry,
    calls: Arc<Calls>,
    classes: Vec<usize>,
    latencies: Arc<Latencies>,
    verifications: Arc<Verifications>,
    jobs: AllJobs,
    pub imported: Imported,
    /// Read when the page is asked for, by whoever holds the parts.
    pub ready: Gauge<i64, AtomicI64>,
    pub feed_revision: Gauge<i64, AtomicI64>,
    pub mutations_in_flight: Gauge<i64, AtomicI64>,
    pub state: State,
}

impl Metrics {
    /// Metrics that have counted nothing. `methods` are those that calls are counted by; a call is counted by the
    /// index of its method in this list.
    #[must_use]
    pub fn new(methods: Vec<&'static str>) -> Self {
        let classes = methods.iter().map(|method| class(method)).collect();
        let counts = methods.iter().map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect();
        let mut metrics = Self {
            registry: Registry::with_prefix("keystead"),
            calls: Arc::new(Calls { methods, counts }),
            classes,
            latencies: Arc::new(Latencies(Default::default())),
            verifications: Arc::new(Verifications(std::array::from_fn(|_| AtomicU64::new(0)))),
            jobs: AllJobs::default(),
            imported: Imported::default(),
            ready: Gauge::default(),
            feed_revision: Gauge::default(),
            mutations_in_flight: Gauge::default(),
            state: State::default(),
        };
        metrics.register_calls();
        metrics.imported.register(&mut metrics.registry);
        metrics.register_jobs();
        metrics.register_state();
        metrics
    }

    fn register_calls(&mut self) {
        let registry = &mut self.registry;
        registry.register("calls", "Calls answered, by method and gRPC code", Shared(self.calls.clone()));
        registry.register_with_unit(
            "call_duration",
            "Time to answer a call, by class of method",
            Unit::Seconds,
            Shared(self.latencies.clone()),
        );
        let verifications = Shared(self.verifications.clone());
        registry.register("verifications", "Verifications answered, by outcome", verifications);
    }

    fn register_jobs(&mut self) {
        let (registry, jobs) = (&mut self.registry, &self.jobs);
        registry.register("job_runs", "Rounds of a background job that have ended", jobs.runs.clone());
        registry.register("job_failures", "Rounds of a background job that failed", jobs.failures.clone());
        registry.register("job_rows", "Rows that a background job wrote or deleted", jobs.rows.clone());
        registry.register_with_unit(
            "job_last_duration",
            "Time that the last round of a background job took",
            Unit::Seconds,
            jobs.duration.clone(),
        );
        registry.register_with_unit(
            "job_last_success_timestamp",
            "When a background job succeeded last, as Unix time",
            Unit::Seconds,
            jobs.last_success.clone(),
        );
    }

    fn register_state(&mut self) {
        let registry = &mut self.registry;
        registry.register("ready", "1 while calls are answered, else 0", self.ready.clone());
        registry.register(
            "feed_revision",
            "Revision up to which changes have reached this process's cache",
            self.feed_revision.clone(),
        );
        registry.register(
            "mutations_in_flight",
            "Mutations and rounds of jobs under way",
            self.mutations_in_flight.clone(),
        );
        let state = &self.state;
        for (name, help, gauge) in [
            ("cache_keys", "Keys in the cache", &state.cache_keys),
            ("cache_unknown", "Unknown secrets in the cache", &state.cache_unknown),
            ("cache_queries", "Queries that misses of the cache have made since the start", &state.cache_queries),
            ("limiter_meters", "Keys and organizations whose limits are counted", &state.limiter_meters),
            (
                "limiter_degraded",
                "1 while rate limits go on with this replica's share, else 0",
                &state.limiter_degraded,
            ),
            (
                "limiter_alone",
                "Charges of shared limits since the start that this replica made alone",
                &state.limiter_alone,
            ),
            ("feed_listening", "1 while notifications of changes are listened for, else 0", &state.feed_listening),
            ("database_away", "1 while the database does not answer the change feed, else 0", &state.database_away),
            ("replicas_live", "Replicas that gave a sign of life lately, this one included", &state.replicas_live),
            ("usage_spool_bytes", "Usage that waits in the spool for the database", &state.spool_bytes),
            ("usage_spool_bytes_max", "Bound on the usage that waits in the spool", &state.spool_bytes_max),
            ("usage_spool_segments", "Files of usage that wait for the database", &state.spool_segments),
            ("usage_spool_merges", "Times since the start that the full spool was merged", &state.spool_merges),
            ("usage_details_left_out", "Events since the start without a row of their own", &state.details_left_out),
            ("usage_spool_failing", "1 while new usage counts in memory alone, else 0", &state.spool_failing),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register_with_unit(
            "feed_age",
            "How long ago it was that this process knew of every change",
            Unit::Seconds,
            state.feed_age.clone(),
        );
        registry.register_with_unit(
            "usage_spool_oldest_age",
            "How long the oldest file of usage has waited for the database",
            Unit::Seconds,
            state.spool_oldest_age.clone(),
        );
        registry.register("build", "The version that runs", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
    }

    /// Counts an answered call: the index of its method, its code's number, and how long it took.
    pub fn call(&self, method: usize, code: usize, time: Duration) {
        if let Some(count) = self.calls.counts.get(method).and_then(|codes| codes.get(code)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(latency) = self.classes.get(method).and_then(|class| self.latencies.0.get(*class)) {
            latency.observe(time);
        }
    }

    /// Counts an answered verification.
    pub fn verification(&self, outcome: Outcome) {
        if let Some(count) = self.verifications.0.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The metrics of one background job.
    #[must_use]
    pub const fn job(&self, name: &'static str) -> JobMetrics<'_> {
        JobMetrics { jobs: &self.jobs, label: OfJob { job: name } }
    }

    /// The page that a scraper reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = String::new();
        // Writing into a string does not fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }
}

fn class(method: &str) -> usize {
    match method {
        "keystead.v1.KeyService/VerifyKey" | "keystead.v1.KeyService/BatchVerifyKeys" => 0,
        method if method.starts_with("keystead.") => 1,
        _ => 2,
    }
}

/// The metrics of one background job.
pub struct JobMetrics<'a> {
    jobs: &'a AllJobs,
    label: OfJob,
}

impl JobMetrics<'_> {
    /// Counts a round that succeeded at `now`, with the rows that it wrote or deleted.
    pub fn succeeded(&self, rows: u64, time: Duration, now: Timestamp) {
        self.ended(time);
        self.jobs.rows.get_or_create(&self.label).inc_by(rows);
        #[expect(clippy::cast_precision_loss, reason = "microseconds since 1970 fit for centuries to come")]
        let seconds = now.micros() as f64 / 1e6;
        self.jobs.last_success.get_or_create(&self.label).set(seconds);
    }

    /// Counts a round that failed.
    pub fn failed(&self, time: Duration) {
        self.ended(time);
        self.jobs.failures.get_or_create(&self.label).inc();
    }

    fn ended(&self, time: Duration) {
        self.jobs.runs.get_or_create(&self.label).inc();
        // So that a job that never failed shows a zero.
        self.jobs.failures.get_or_create(&self.label).inc_by(0);
        self.jobs.duration.get_or_create(&self.label).set(time.as_secs_f64());
    }
}

impl Latency {
    fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < micros);
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }
}

/// A metric that is read where it is counted.
struct Shared<T>(Arc<T>);

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

fn encode_count(mut encoder: MetricEncoder<'_>, count: &AtomicU64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&count.load(Ordering::Relaxed), None)
}

impl EncodeMetric for Shared<Calls> {
    /// Methods are shown from the start, codes once there was one.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (method, counts) in self.0.methods.iter().zip(&self.0.counts) {
            for (at, (code, count)) in CODES.iter().zip(counts).enumerate() {
                if at == 0 || count.load(Ordering::Relaxed) > 0 {
                    encode_count(encoder.encode_family(&[("method", *method), ("code", *code)])?, count)?;
                }
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl EncodeMetric for Shared<Verifications> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (outcome, count) in Outcome::ALL.iter().zip(&self.0.0) {
            encode_count(encoder.encode_family(&[("outcome", outcome.as_str())])?, count)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl EncodeMetric for Shared<Latencies> {
    #[expect(clippy::cast_precision_loss, reason = "bounds and sums of microseconds are far below 2^52")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BUCKETS_US.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
        for (class, latency) in CLASSES.iter().zip(&self.0.0) {
            let counts = latency.buckets.iter().map(|count| count.load(Ordering::Relaxed));
            let buckets: Vec<(f64, u64)> = bounds.clone().zip(counts).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = latency.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
            encoder.encode_family(&[("class", *class)])?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
