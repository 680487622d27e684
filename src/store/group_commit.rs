//! Transactions, and how those of SQLite share a commit: with `synchronous=FULL` every commit waits for the disk, and
//! there is one writer. Each member of a group is a savepoint in one outer transaction; members take turns, in order
//! of arrival, and the outer transaction commits once those have had their turn who waited when the first was done.
//! Invariant: a commit is acknowledged only after the outer commit, and what a member leaves without a commit (an
//! error, a panic, a caller who is gone) is undone before anybody else's statement runs.
//! Must not know what a mutation does. On PostgreSQL each transaction is one of the database's own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
    prelude::async_trait::async_trait,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, watch},
    time::timeout,
};

use super::StoreError;

/// How many mutations share one commit at the most.
const MEMBERS_MAX: u32 = 64;
/// Nobody joins a group that is older, so that its first member does not wait long.
const AGE_MAX: Duration = Duration::from_millis(50);
/// How long a statement may take: longer than the database itself lets it.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(35);
/// How long a mutation waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// A transaction. Dropped without a commit, it leaves nothing behind.
pub struct Transaction(Kind);

enum Kind {
    Own(DatabaseTransaction),
    Member(Turn),
}

/// How many transactions of a store are being begun, or were when their callers left: only then may a connection
/// come back to its pool with an open one.
#[derive(Clone, Default)]
pub(super) struct Begins(Arc<AtomicU64>);

impl Begins {
    /// Whether a connection that is released must be rolled back.
    pub(super) fn may_be_open(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

/// Hands SQLite's writer to one mutation after the other.
#[derive(Clone)]
pub(super) struct Group {
    writer: DatabaseConnection,
    place: Arc<Mutex<Option<Open>>>,
    /// How many outer transactions did not commit.
    failures: Arc<AtomicU64>,
}

/// An outer transaction that has not ended.
struct Open {
    outer: DatabaseTransaction,
    began: Instant,
    /// How many wait for the commit.
    members: u32,
    /// Whether a member is at work, or has left something that must be undone.
    dirty: bool,
    ended: watch::Sender<Ending>,
    failures: Arc<AtomicU64>,
}

/// How an outer transaction ended.
enum Ending {
    NotYet,
    Committed,
    Failed(DbErr),
}

/// One member at work. It alone uses the writer while it lives.
struct Turn {
    group: Group,
    place: OwnedMutexGuard<Option<Open>>,
}

impl Transaction {
    /// Begins a transaction of its own. On SQLite it takes the write lock at once, so that it never has to be
    /// upgraded half-way.
    pub(super) async fn begin(pool: &DatabaseConnection, begins: &Begins) -> Result<Self, StoreError> {
        begins.0.fetch_add(1, Ordering::AcqRel);
        let begun = in_time(begin(pool)).await;
        // Of any other failure, and of a caller who leaves meanwhile, nobody knows what it left on its connection.
        if matches!(begun, Ok(_) | Err(DbErr::ConnectionAcquire(_) | DbErr::Conn(_))) {
            begins.0.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(Self(Kind::Own(begun?)))
    }

    /// Commits; see [`super::commit`].
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        match self.0 {
            Kind::Own(transaction) => {
                in_time(transaction.commit()).await.map_err(|error| StoreError::from(error).of_commit())
            }
            Kind::Member(turn) => turn.commit().await,
        }
    }

    fn inner(&self) -> Result<&DatabaseTransaction, DbErr> {
        match &self.0 {
            Kind::Own(transaction) => Ok(transaction),
            Kind::Member(turn) => turn.place.as_ref().map(|open| &open.outer).ok_or_else(ended_before),
        }
    }
}

async fn begin(pool: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    pool.begin_with_options(options).await
}

impl Group {
    /// Groups the mutations that go through this writer, which must have one connection.
    pub(super) fn new(writer: DatabaseConnection) -> Self {
        Self { writer, place: Arc::default(), failures: Arc::default() }
    }

    /// Begins a member, in its turn.
    ///
    /// # Errors
    /// `Unavailable` where the turn does not come in time, or the writer is not to be had.
    pub(super) async fn begin(&self) -> Result<Transaction, StoreError> {
        let turn = timeout(TURN_TIMEOUT, self.place.clone().lock_owned()).await;
        let place = turn.map_err(|_| DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))?;
        let mut turn = Turn { group: self.clone(), place };
        turn.join().await?;
        Ok(Transaction(Kind::Member(turn)))
    }

    /// How many outer transactions have failed so far, for [`Group::settle`].
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// Waits until all that any member had written when this was called has been committed. A refusal may rest on
    /// what another member wrote: it is told only after this.
    ///
    /// # Errors
    /// `Unavailable` where some of what was written since `failures_before` was read is gone again.
    pub(super) async fn settle(&self, failures_before: u64) -> Result<(), StoreError> {
        let waiting = self.place.lock().await.as_ref().map(|open| open.ended.subscribe());
        if let Some(ended) = waiting {
            committed(ended).await?;
        }
        if self.failures() == failures_before {
            return Ok(());
        }
        Err(StoreError::Unavailable { may_have_happened: false, source: ended_before() })
    }

    /// Commits the outer transaction once those who wait for their turn by now have had it.
    async fn end_in_turn(self) {
        let mut place = self.place.lock().await;
        if let Some(open) = place.take() {
            open.end().await;
        }
    }
}

impl Turn {
    /// Puts a savepoint into the open outer transaction, or into a new one.
    async fn join(&mut self) -> Result<(), DbErr> {
        if let Some(open) = self.place.as_mut()
            && (open.undo().await.is_err() || open.is_full())
            && let Some(open) = self.place.take()
        {
            open.end().await;
        }
        let open = match self.place.take() {
            Some(open) => open,
            None => Open::begin(&self.group).await?,
        };
        let open = self.place.insert(open);
        open.dirty = true;
        open.outer.execute_unprepared("SAVEPOINT member").await?;
        Ok(())
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        let open = self.place.as_mut().ok_or_else(ended_before)?;
        let released = open.outer.execute_unprepared("RELEASE member").await;
        released.map_err(|error| StoreError::from(error).of_commit())?;
        open.dirty = false;
        open.members += 1;
        let ended = open.ended.subscribe();
        if open.members == 1 {
            // Spawned, so that no caller who leaves keeps the others from their commit.
            tokio::spawn(self.group.clone().end_in_turn());
        }
        drop(self);
        committed(ended).await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // With others in the group, whoever comes next undoes what is left; alone, there is nothing to keep.
        if self.place.as_ref().is_some_and(|open| open.dirty && open.members == 0) {
            *self.place = None;
        }
    }
}

impl Open {
    async fn begin(group: &Group) -> Result<Self, DbErr> {
        Ok(Self {
            outer: begin(&group.writer).await?,
            began: Instant::now(),
            members: 0,
            dirty: false,
            ended: watch::Sender::new(Ending::NotYet),
            failures: group.failures.clone(),
        })
    }

    fn is_full(&self) -> bool {
        self.members >= MEMBERS_MAX || self.began.elapsed() >= AGE_MAX
    }

    /// Undoes what a member left without a commit. Fails where the database has rolled everything back by itself.
    async fn undo(&mut self) -> Result<(), DbErr> {
        if self.dirty {
            self.outer.execute_unprepared("ROLLBACK TO member").await?;
            self.outer.execute_unprepared("RELEASE member").await?;
            self.dirty = false;
        }
        Ok(())
    }

    async fn end(mut self) {
        let ending = match self.undo().await {
            Ok(()) => self.outer.commit().await,
            Err(error) => Err(error),
        };
        let ending = match ending {
            Ok(()) => Ending::Committed,
            Err(error) => {
                self.failures.fetch_add(1, Ordering::AcqRel);
                Ending::Failed(error)
            }
        };
        self.ended.send_replace(ending);
    }
}

/// Waits for the outer commit. Nobody knows whether one that failed, or was given up, came through.
async fn committed(mut ended: watch::Receiver<Ending>) -> Result<(), StoreError> {
    let ending = ended.wait_for(|ending| !matches!(ending, Ending::NotYet)).await;
    let source = match ending.as_deref() {
        Ok(Ending::Committed) => return Ok(()),
        Ok(Ending::Failed(error)) => error.clone(),
        Ok(Ending::NotYet) | Err(_) => ended_before(),
    };
    Err(StoreError::Unavailable { may_have_happened: true, source })
}

fn ended_before() -> DbErr {
    DbErr::Conn(RuntimeErr::Internal("the shared transaction did not commit".to_owned()))
}

/// A statement, unless the other end of its connection is gone, which TCP alone would take a quarter of an hour to notice.
async fn in_time<T>(statement: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    let hangs = |_| Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout));
    timeout(STATEMENT_TIMEOUT, statement).await.unwrap_or_else(hangs)
}

#[async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        match &self.0 {
            Kind::Own(transaction) => transaction.get_database_backend(),
            Kind::Member(_) => DbBackend::Sqlite,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        in_time(self.inner()?.execute_raw(statement)).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        in_time(self.inner()?.execute_unprepared(sql)).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        in_time(self.inner()?.query_one_raw(statement)).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        in_time(self.inner()?.query_all_raw(statement)).await
    }
}
