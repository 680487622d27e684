//! Clients of all replicas at once: some create and revoke keys, one changes them by SQL as an operator does, and most
//! verify them over and over, on every replica. Every answer goes into the history; an error is one of them.
//! Invariants: no two change the same key at a time; the moment at which a call began is taken before it is sent; and
//! the clients pace themselves, so that three replicas, a database and the clients get along on two cores.

mod keys;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use keystead::proto::v1::RevokeKeyRequest;
use keystead::proto::v1::key_service_client::KeyServiceClient;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};

use self::keys::{Key, Place, Pool};
use crate::callers::requests::{issuing, verifying};
use crate::faults::history::{Call, Counts, Event, History, REPLICAS, Via, What};
use crate::harness::{Authorized, Server, TestDatabase, create_organization};

/// Keys that live at a time. Each is verified some times on every replica before it is revoked.
const LIVING: usize = 30;
/// Clients that verify, for each replica.
const VERIFIERS: usize = 2;
/// The least time between two calls of one of them.
const VERIFY_PACE: Duration = Duration::from_millis(4);
/// The least time between two changes by one client.
const CHANGE_PACE: Duration = Duration::from_millis(120);
/// The time between two calls that do not wait for each other.
const UNANSWERED_PACE: Duration = Duration::from_millis(50);
/// How long the last calls may take once the clients have been told to end.
const LAST_CALLS: Duration = Duration::from_mins(1);

/// Clients under way.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    organization: String,
    /// A client for each replica; a new one once the replica has been started again, on another port.
    clients: Vec<Mutex<KeyServiceClient<Authorized>>>,
    created: AtomicUsize,
    pool: Mutex<Pool>,
    history: Mutex<History>,
    over: AtomicBool,
}

impl Load {
    /// Creates the first keys, and starts the clients.
    pub async fn start(database: &TestDatabase, servers: &[Server]) -> Self {
        let shared = Arc::new(Shared {
            organization: create_organization(&servers[0], "acme").await.id,
            clients: servers.iter().map(|server| Mutex::new(server.keys())).collect(),
            created: AtomicUsize::default(),
            pool: Mutex::default(),
            history: Mutex::default(),
            over: AtomicBool::default(),
        });
        for at in 0..LIVING {
            shared.create(at % REPLICAS).await;
        }
        let mut tasks = JoinSet::new();
        for replica in 0..REPLICAS {
            for verifier in 0..VERIFIERS {
                tasks.spawn(shared.clone().verify_in_turn(replica, verifier * LIVING));
            }
            tasks.spawn(shared.clone().change(replica));
        }
        tasks.spawn(shared.clone().operate(database.connect().await));
        Self { shared, tasks }
    }

    /// The organization that the keys belong to.
    pub fn organization(&self) -> &str {
        &self.shared.organization
    }

    /// How much has happened so far.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.history).counts().clone()
    }

    /// How many answers so far broke the promise.
    pub fn violations(&self, bound: Duration) -> usize {
        lock(&self.shared.history).violations(bound).len()
    }

    /// The clients of a replica go on with its new process.
    pub fn reconnect(&self, replica: usize, server: &Server) {
        *lock(&self.shared.clients[replica]) = server.keys();
    }

    /// Verifies all keys that live now on a replica, so that its cache holds them, and has one more client verify these
    /// keys there to the end, whatever becomes of them. Gives them.
    pub async fn watch_living(&mut self, replica: usize) -> Witnesses {
        let keys = Witnesses(lock(&self.shared.pool).living());
        for key in &keys.0 {
            self.shared.verify(replica, key).await;
        }
        self.tasks.spawn(self.shared.clone().watch(replica, keys.clone()));
        keys
    }

    /// For `span`, begins verifications of these keys on a replica, none of which waits for another's answer. Gives
    /// them as they are then: under way, or answered.
    pub async fn begin_calls(&self, replica: usize, keys: &Witnesses, span: Duration) -> JoinSet<()> {
        let (begun, mut pace, mut calls) = (Instant::now(), paced(UNANSWERED_PACE), JoinSet::new());
        for key in keys.0.iter().cycle() {
            if begun.elapsed() >= span {
                break;
            }
            pace.tick().await;
            let (shared, key) = (self.shared.clone(), key.clone());
            calls.spawn(async move { shared.verify(replica, &key).await });
        }
        calls
    }

    /// Ends the clients, each with the answer that it waits for, and gives what all were told.
    pub async fn end(self) -> History {
        self.shared.over.store(true, Ordering::SeqCst);
        let ended = tokio::time::timeout(LAST_CALLS, self.tasks.join_all()).await;
        assert!(ended.is_ok(), "a call was not answered for {} s", LAST_CALLS.as_secs());
        std::mem::take(&mut *lock(&self.shared.history))
    }
}

/// Keys that a replica holds in its cache when something happens to it.
#[derive(Clone)]
pub struct Witnesses(Vec<Arc<Key>>);

impl Shared {
    /// Creates and revokes on one replica: whichever key has lived longest, so that each meets one replica or another.
    async fn change(self: Arc<Self>, replica: usize) {
        let mut pace = paced(CHANGE_PACE);
        while !self.is_over() {
            pace.tick().await;
            if lock(&self.pool).wants_more(LIVING) {
                self.create(replica).await;
            }
            let Some(key) = lock(&self.pool).take_oldest() else { continue };
            if self.revoke(replica, &key).await {
                lock(&self.pool).put(key.clone(), Place::Revoked);
                // Right after the acknowledgement, where it was given.
                self.verify(replica, &key).await;
            } else {
                // It may be revoked by now, and somebody revokes it again.
                lock(&self.pool).put(key, Place::First);
            }
        }
    }

    /// Changes keys by SQL: some are revoked, some are revoked and soon again by an rpc, some are reactivated right
    /// after their revocation, and some a while later.
    async fn operate(self: Arc<Self>, connection: DatabaseConnection) {
        const REVOKE: &str = "status='revoked'";
        const REACTIVATE: &str = "status='active', revoke_time_us=NULL, revoked_by='', revocation_reason='', \
                                  revocation_note=''";
        let mut pace = paced(CHANGE_PACE);
        for turn in 0_usize.. {
            if self.is_over() {
                break;
            }
            pace.tick().await;
            let (chosen, what, settings, position) = match turn % 4 {
                0 => (lock(&self.pool).take_oldest(), What::Revoked, REVOKE, Place::Revoked),
                1 => (lock(&self.pool).take_oldest(), What::Revoked, REVOKE, Place::First),
                2 => (lock(&self.pool).take_last_revoked(), What::Reactivated, REACTIVATE, Place::First),
                _ => (lock(&self.pool).take_first_revoked(), What::Reactivated, REACTIVATE, Place::Last),
            };
            let Some(key) = chosen else { continue };
            let statement = format!("UPDATE api_keys SET {settings} WHERE id = '{}'", key.id);
            let call = Call::begin(key.number, Via::Sql);
            let changed = connection.execute_unprepared(&statement).await.expect("SQL changes a key").rows_affected();
            self.note(call.end(what));
            assert_eq!(changed, 1, "{statement}");
            lock(&self.pool).put(key, position);
        }
        connection.close().await.expect("the operator's connection closes");
    }

    /// Verifies keys on one replica, living and revoked ones in turn.
    async fn verify_in_turn(self: Arc<Self>, replica: usize, first: usize) {
        let mut pace = paced(VERIFY_PACE);
        for turn in first.. {
            if self.is_over() {
                break;
            }
            pace.tick().await;
            let picked = lock(&self.pool).pick(turn);
            if let Some(key) = picked {
                self.verify(replica, &key).await;
            }
        }
    }

    async fn watch(self: Arc<Self>, replica: usize, keys: Witnesses) {
        let mut pace = paced(VERIFY_PACE);
        for key in keys.0.iter().cycle() {
            if self.is_over() {
                break;
            }
            pace.tick().await;
            self.verify(replica, key).await;
        }
    }

    async fn create(&self, replica: usize) {
        let number = self.created.fetch_add(1, Ordering::Relaxed);
        let call = Call::begin(number, Via::Replica(replica));
        let answer = self.client(replica).create_key(issuing(&self.organization, &[])).await;
        match answer {
            Ok(created) => {
                self.note(call.end(What::Created));
                let created = created.into_inner();
                let id = created.key.expect("the key").id;
                lock(&self.pool).put(Arc::new(Key { number, id, secret: created.secret }), Place::Last);
            }
            Err(status) => self.note(call.end(What::ChangeFailed(status.code()))),
        }
    }

    /// Says whether it was acknowledged.
    async fn revoke(&self, replica: usize, key: &Key) -> bool {
        let request = RevokeKeyRequest { key_id: key.id.clone(), ..Default::default() };
        let call = Call::begin(key.number, Via::Replica(replica));
        let answer = self.client(replica).revoke_key(request).await;
        self.note(call.end(match &answer {
            Ok(_) => What::Revoked,
            Err(status) => What::ChangeFailed(status.code()),
        }));
        answer.is_ok()
    }

    async fn verify(&self, replica: usize, key: &Key) {
        let call = Call::begin(key.number, Via::Replica(replica));
        let answer = self.client(replica).verify_key(verifying(&key.secret)).await;
        self.note(call.end(match answer {
            Ok(verified) => What::Verified(verified.into_inner().outcome()),
            Err(status) => What::VerifyFailed(status.code()),
        }));
    }

    fn client(&self, replica: usize) -> KeyServiceClient<Authorized> {
        lock(&self.clients[replica]).clone()
    }

    fn note(&self, event: Event) {
        lock(&self.history).add(event);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ticks at most that often, however long it takes between two ticks.
fn paced(pace: Duration) -> Interval {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
