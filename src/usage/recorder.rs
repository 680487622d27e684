//! Gathers events between two flushes: counts by key, hour, endpoint and outcome, and rows of detail up to a bound.
//! A flush writes all of it in one transaction, together with the keys' request counts and times of last use, so
//! that there is never one write per verification. What a flush could not write goes into the next one.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, PoisonError},
};

use crate::{
    domain::{
        ids::{KeyId, RecordId},
        outcome::Outcome,
        time::Timestamp,
        usage::UsageEvent,
    },
    random,
    store::{Store, StoreError, api_keys, commit, usage, usage::RollupKey},
};

/// The most bytes of rows of detail that wait for a flush; beyond them only the counts go on.
const DETAIL_BYTES_MAX: usize = 16 << 20;
/// What a row of detail takes beside its texts.
const DETAIL_BYTES_FIXED: usize = 256;
/// The most different counts that wait for a flush; beyond them endpoints are counted together as `(other)`.
const COUNTS_MAX: usize = 50_000;
/// Stands for endpoints beyond the bound.
const OTHER_ENDPOINT: &str = "(other)";

/// What came since the last flush.
#[derive(Default)]
struct Gathered {
    counts: HashMap<RollupKey, i64>,
    used: HashMap<KeyId, (i64, Timestamp)>,
    details: Vec<UsageEvent>,
    detail_bytes: usize,
    details_left_out: u64,
}

/// Records verifications.
#[derive(Default)]
pub struct Recorder {
    gathered: Mutex<Gathered>,
    /// Held by a flush from taking its batch to its commit: whoever flushes next finds everything before it written.
    flushing: tokio::sync::Mutex<()>,
}

impl Recorder {
    /// Takes one event. Never waits for anything but the lock of the counts.
    pub fn record(&self, event: UsageEvent) {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner).take_in(event);
    }

    /// Notes that a key was used as a caller's own credential, which is no verification and stands in no rollup.
    pub fn record_caller(&self, key: KeyId, time: Timestamp) {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner).add_used(key, 1, time);
    }

    /// Writes what has been gathered. If that fails, it is gathered again, and nothing is lost but details
    /// beyond the bound. An answer that is lost after the commit went through would count the batch twice.
    ///
    /// # Errors
    /// The store's own.
    pub async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let _turn = self.flushing.lock().await;
        let batch = mem::take(&mut *self.gathered.lock().unwrap_or_else(PoisonError::into_inner));
        if batch.counts.is_empty() && batch.used.is_empty() {
            return Ok(());
        }
        if batch.details_left_out > 0 {
            tracing::warn!(count = batch.details_left_out, "rows of usage were left out; counts are exact");
        }
        let result = write(store, &batch).await;
        if result.is_err() {
            self.gathered.lock().unwrap_or_else(PoisonError::into_inner).put_back(batch);
        }
        result
    }
}

impl Gathered {
    fn take_in(&mut self, event: UsageEvent) {
        let mut rollup = RollupKey {
            key: event.key,
            hour: event.time.start_of_hour(),
            endpoint: event.endpoint.clone(),
            outcome: event.outcome,
        };
        if self.counts.len() >= COUNTS_MAX && !self.counts.contains_key(&rollup) {
            OTHER_ENDPOINT.clone_into(&mut rollup.endpoint);
        }
        *self.counts.entry(rollup).or_default() += 1;
        if let (Some((key, _)), Outcome::Valid) = (event.key, event.outcome) {
            self.add_used(key, 1, event.time);
        }
        self.keep_detail(event);
    }

    fn put_back(&mut self, batch: Self) {
        for (rollup, count) in batch.counts {
            *self.counts.entry(rollup).or_default() += count;
        }
        for (key, (count, time)) in batch.used {
            self.add_used(key, count, time);
        }
        for event in batch.details {
            self.keep_detail(event);
        }
    }

    fn add_used(&mut self, key: KeyId, count: i64, time: Timestamp) {
        let used = self.used.entry(key).or_insert((0, time));
        *used = (used.0 + count, used.1.max(time));
    }

    /// Attempts with unknown secrets are counted and leave no row: strangers must not be able to fill the disk.
    fn keep_detail(&mut self, event: UsageEvent) {
        if event.key.is_none() {
            return;
        }
        let bytes = DETAIL_BYTES_FIXED + text_bytes(&event);
        if self.detail_bytes + bytes <= DETAIL_BYTES_MAX {
            self.detail_bytes += bytes;
            self.details.push(event);
        } else {
            self.details_left_out += 1;
        }
    }
}

fn text_bytes(event: &UsageEvent) -> usize {
    let tags: usize = event.tags.iter().map(|(name, value)| name.len() + value.len()).sum();
    let texts = [&event.endpoint, &event.method, &event.client_address, &event.user_agent, &event.request_id];
    tags + texts.iter().map(|text| text.len()).sum::<usize>()
}

async fn write(store: &Store, batch: &Gathered) -> Result<(), StoreError> {
    let transaction = store.begin_usage().await?;
    let details: Vec<(RecordId, UsageEvent)> =
        batch.details.iter().map(|event| (RecordId::new(event.time, random::bytes()), event.clone())).collect();
    usage::insert_events(&transaction, &details).await?;
    let mut rollups: Vec<(RollupKey, i64)> = batch.counts.iter().map(|(key, count)| (key.clone(), *count)).collect();
    // One order for all writers, so that two of them never wait for each other in a circle.
    rollups.sort_by(|(a, _), (b, _)| a.order().cmp(&b.order()));
    usage::add_rollups(&transaction, &rollups).await?;
    let mut used: Vec<_> = batch.used.iter().collect();
    used.sort_by_key(|(key, _)| **key);
    for (key, (count, time)) in used {
        api_keys::update_used(&transaction, *key, *count, *time).await?;
    }
    commit(transaction).await
}
