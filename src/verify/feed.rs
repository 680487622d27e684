//! The follower of the change feed: polls `key_changes` each second and evicts what changed, so that a change made
//! elsewhere, by SQL too, is seen within about a second. Changes made by this process evict at once, without it.
//! Invariant: the position moves past a change only after its eviction; a gap in the revisions empties the cache.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use super::Records;
use crate::store::{Store, StoreError, key_changes};

/// How often the feed is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The position of a follower that has not heard anything yet.
const UNHEARD: i64 = -1;

/// Follows the change feed.
pub struct Feed {
    store: Store,
    records: Arc<Records>,
    position: AtomicI64,
}

impl Feed {
    /// A follower that has not heard anything yet.
    #[must_use]
    pub const fn new(store: Store, records: Arc<Records>) -> Self {
        Self { store, records, position: AtomicI64::new(UNHEARD) }
    }

    /// The revision up to which every change has been evicted; -1 before the first poll.
    #[must_use]
    pub fn position(&self) -> i64 {
        self.position.load(Ordering::Acquire)
    }

    /// Reads what is new and evicts it.
    ///
    /// # Errors
    /// Where the database cannot say; the position stays where it was.
    pub async fn poll(&self) -> Result<(), StoreError> {
        let position = self.position();
        let reached = key_changes::find_revision(self.store.feed()).await?;
        if position == UNHEARD || reached < position {
            // The first poll, or a database that was put back to an earlier state: nothing cached can be trusted.
            self.records.evict_all();
            self.position.store(reached, Ordering::Release);
            return Ok(());
        }
        let mut position = position;
        while position < reached {
            let changes = key_changes::list_after(self.store.feed(), position).await?;
            if changes.is_empty() {
                self.records.evict_all();
                position = reached;
            }
            for change in &changes {
                if change.revision != position + 1 {
                    self.records.evict_all();
                }
                self.records.evict_changed(&change.what);
                position = change.revision;
            }
            self.position.store(position, Ordering::Release);
        }
        Ok(())
    }

    /// Polls for ever. A poll that fails is logged once, until one succeeds again.
    pub async fn follow(&self) {
        let mut failing = false;
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let result = self.poll().await;
            match &result {
                Ok(()) if failing => tracing::info!("the change feed answers again"),
                Err(error) if !failing => tracing::error!(error = error.chain(), "the change feed cannot be read"),
                Ok(()) | Err(_) => {}
            }
            failing = result.is_err();
        }
    }
}
