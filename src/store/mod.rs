//! The database: a file of queries for each table, on SQLite and PostgreSQL alike; `api_keys` has `key_counts`,
//! `key_records`, `new_keys`, `imported_keys`, `slow_keys`, `callers`, `rotations`, `revocations`, `expiries`, `refills`
//! and `credits` beside it; usage is written by one file and summed by another, and `imported_` files bring both in.
//!
//! Contract: `find_` gives an option, `list_` a page, `insert_` may conflict, `update_` and `delete_` say whether a
//! row changed. Queries that serve a caller take its `Reach`, so that the tenant filter cannot be forgotten.
//! Every function takes the connection or transaction it runs on. Must not decide anything: a row that cannot be
//! read is `StoreError::Corrupt` for that row, and never an answer about another.
//! Engine differences live in `connect.rs` and, in SQL, in `engine.rs`, but for the error codes, which `error.rs` reads, and for what spares SQLite
//! commits (`group_commit.rs`) and PostgreSQL round trips (`new_keys.rs`, `row_arrays.rs`).

pub mod api_keys;
pub mod audit_events;
pub mod callers;
pub mod connect;
pub mod credits;
pub mod engine;
mod entity;
mod error;
pub mod expiries;
mod group_commit;
pub mod imported_counts;
pub mod imported_keys;
pub mod imported_organizations;
pub mod imported_usage;
pub mod imports;
pub mod job_leases;
pub mod key_changes;
pub mod key_counts;
pub mod key_records;
pub mod migrate;
pub mod new_keys;
mod notices;
pub mod organizations;
pub mod quotas;
pub mod rate_limits;
pub mod refills;
pub mod replicas;
pub mod revocations;
pub mod rotations;
mod row_arrays;
mod rows;
pub mod slow_keys;
pub mod state;
pub mod turns;
pub mod usage;
mod usage_added;
pub mod usage_reports;
pub mod usage_retention;
pub mod usage_spools;
pub mod usage_sums;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use sea_orm::{DatabaseConnection, sqlx::postgres::PgConnectOptions};
use tokio::sync::watch;

use self::group_commit::{Begins, Group};
pub use self::{
    error::{Conflict, StoreError},
    group_commit::Transaction,
    notices::Notices,
};

/// Whatever a query can run on: a pool, or a transaction.
pub use sea_orm::ConnectionTrait as Database;

/// Access to one database. On PostgreSQL each kind of work has a pool of its own, so that none starves another; on
/// SQLite there is one writer connection and a pool of readers.
#[derive(Clone)]
pub struct Store {
    verify: DatabaseConnection,
    control: DatabaseConnection,
    write: DatabaseConnection,
    usage: DatabaseConnection,
    feed: Arc<RwLock<DatabaseConnection>>,
    /// Where mutations share commits: on SQLite.
    group: Option<Group>,
    begins: Begins,
    /// Where notifications come from: PostgreSQL.
    listen: Option<PgConnectOptions>,
    away: Arc<watch::Sender<bool>>,
    charge_timeout: Duration,
}

/// What does not end so long after the database came back waits on a connection whose other end is gone.
const STUCK_AFTER: Duration = Duration::from_secs(5);

impl Store {
    /// For the look-ups of verifications.
    #[must_use]
    pub const fn verify(&self) -> &DatabaseConnection {
        &self.verify
    }

    /// For reads of the control plane.
    #[must_use]
    pub const fn control(&self) -> &DatabaseConnection {
        &self.control
    }

    /// How long a verification may wait for shared counters in the database: a quarter of its time.
    #[must_use]
    pub const fn charge_timeout(&self) -> Duration {
        self.charge_timeout
    }

    /// For single statements with which a verification is charged: not those of changes, which must get through.
    #[must_use]
    pub const fn charge(&self) -> &DatabaseConnection {
        if self.is_shared() { &self.verify } else { &self.write }
    }

    /// For what is written in the background.
    #[must_use]
    pub const fn usage(&self) -> &DatabaseConnection {
        &self.usage
    }

    /// For the change feed: one connection of its own, so that no flood of look-ups delays a revocation.
    #[must_use]
    pub fn feed(&self) -> DatabaseConnection {
        self.feed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the change feed connect anew. Its one connection may have died at a moment at which its pool waits for it
    /// for ever: sqlx asks a connection that is released once more whether it is there, without a bound.
    pub fn renew_feed(&self) {
        if let Some(options) = &self.listen {
            let fresh = connect::feed_pool(options, &self.begins);
            let old = std::mem::replace(&mut *self.feed.write().unwrap_or_else(PoisonError::into_inner), fresh);
            drop(old);
        }
    }

    /// For single statements that write, such as spending credits.
    #[must_use]
    pub const fn write(&self) -> &DatabaseConnection {
        &self.write
    }

    /// Listens for notifications of changes; `None` where the database has none.
    ///
    /// # Errors
    /// Where it cannot be connected to.
    pub async fn listen(&self) -> Result<Option<Notices>, StoreError> {
        match &self.listen {
            Some(options) => Notices::open(options).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether the database is shared with other processes.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.group.is_none()
    }

    /// Notes whether the database is away: then nobody but the feed asks it.
    pub fn set_away(&self, away: bool) {
        self.away.send_if_modified(|was| std::mem::replace(was, away) != away);
    }

    /// Whether the database is away, as far as the feed knows.
    #[must_use]
    pub fn is_away(&self) -> bool {
        *self.away.borrow()
    }

    /// Refuses at once where the database is away: whoever asked would wait in vain, and all who waited would come
    /// at once when it is back.
    ///
    /// # Errors
    /// `Unavailable` while it is.
    pub fn check_there(&self) -> Result<(), StoreError> {
        if self.is_away() { Err(StoreError::away()) } else { Ok(()) }
    }

    /// Ends once the database is away.
    pub async fn gone(&self) {
        let mut away = self.away.subscribe();
        // The sender is in this store, and so lives on.
        let _ = away.wait_for(|away| *away).await;
    }

    /// Runs `work`, but gives it up where the database went away and came back meanwhile and `work` did not end soon
    /// after: TCP alone would take a quarter of an hour to notice that the other end of its connection is gone.
    ///
    /// # Errors
    /// `Unavailable` where it was given up; a write may have happened.
    pub async fn unless_stuck<T>(&self, work: impl Future<Output = T>) -> Result<T, StoreError> {
        let mut away = self.away.subscribe();
        let stuck = async {
            // The sender is in this store, and so lives on.
            let _ = away.wait_for(|away| *away).await;
            let _ = away.wait_for(|away| !*away).await;
            tokio::time::sleep(STUCK_AFTER).await;
        };
        tokio::select! {
            done = work => Ok(done),
            () = stuck => Err(StoreError::away().of_commit()),
        }
    }

    /// Begins a transaction of the control plane; on SQLite one that shares its commit with others.
    ///
    /// The caller must not be cancellable between this and the commit: `service::run_to_end` sees to it.
    ///
    /// # Errors
    /// `Unavailable` where no connection is to be had.
    pub async fn begin(&self) -> Result<Transaction, StoreError> {
        self.check_there()?;
        match &self.group {
            Some(group) => group.begin().await,
            None => Transaction::begin(&self.write, &self.begins).await,
        }
    }

    /// Begins a transaction that writes usage. It shares its commit with nobody: it is a large one already.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub async fn begin_usage(&self) -> Result<Transaction, StoreError> {
        self.check_there()?;
        Transaction::begin(&self.usage, &self.begins).await
    }

    /// Begins a transaction that charges a verification, where replicas share the database.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub async fn begin_charge(&self) -> Result<Transaction, StoreError> {
        self.check_there()?;
        Transaction::begin(self.charge(), &self.begins).await
    }

    /// How many shared commits have failed so far, for [`Store::settle`].
    #[must_use]
    pub fn failed_commits(&self) -> u64 {
        self.group.as_ref().map_or(0, Group::failures)
    }

    /// Waits until what a refusal may rest on has been committed: where commits are shared, a mutation reads what
    /// another has written and not committed yet. `failed_before` is [`Store::failed_commits`] from before it began.
    ///
    /// # Errors
    /// `Unavailable` where some of that is gone again, and the refusal with it.
    pub async fn settle(&self, failed_before: u64) -> Result<(), StoreError> {
        match &self.group {
            Some(group) => group.settle(failed_before).await,
            None => Ok(()),
        }
    }

    /// Closes all connections, flushing what SQLite holds in its log.
    pub async fn close(self) {
        for pool in [self.feed(), self.verify, self.control, self.usage, self.write] {
            if let Err(error) = pool.close().await {
                tracing::warn!(error = %error, "closing a database pool failed");
            }
        }
    }
}

/// Commits. Where the answer is lost, the write may have happened, and the error says so.
///
/// # Errors
/// `Unavailable` with `may_have_happened` unless the database refused in words.
pub async fn commit(transaction: Transaction) -> Result<(), StoreError> {
    transaction.commit().await
}
