//! The load of a rolling restart: clients that verify, create and revoke keys, each call on the next replica in turn,
//! and on the one after it where no server took the call up or the answer was UNAVAILABLE. That is all they do about a
//! replica that ends: what they know of its new address is told to them, as by a service directory.
//! Invariants: a call that fails for good ends its client with a panic; and each key is changed by one client alone, so
//! that what becomes of it is known.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::{CreateKeyRequest, CreateKeyResponse, Outcome, RevokeKeyRequest, RevokeKeyResponse};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::attempts::{Failure, channel};
use crate::callers::requests::{issuing, verifying};
use crate::harness::{Server, create_organization, expect_error, wait_until};

/// Clients that verify.
const VERIFIERS: usize = 6;
/// What one of them does between two calls: the request that the verification was for.
const VERIFY_PAUSE: Duration = Duration::from_millis(5);
/// Clients that create and revoke.
const CHANGERS: usize = 3;
const CHANGE_PAUSE: Duration = Duration::from_millis(50);
/// Keys of one of them that live at a time.
const LIVING: usize = 5;
/// Of so many creations one is sent again, as by a client that has not heard the answer.
const REPEATED_EACH: usize = 3;
/// How often a call is tried again.
const RETRIES_MAX: usize = 5;
const BACKOFF: Duration = Duration::from_millis(20);
/// What has to be answered until the load counts as on: verifications of each replica, and changes in all.
const ANSWERS_MIN: usize = 50;
const CHANGES_MIN: usize = 10;
/// How long the last calls may take once the clients have been told to end.
const LAST_CALLS: Duration = Duration::from_mins(1);

/// Clients under way.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// A key that was acknowledged.
pub struct Key {
    pub id: String,
    pub secret: String,
    /// Turns true before the revocation is sent.
    revoking: AtomicBool,
    /// Turns true when it was acknowledged.
    revoked: AtomicBool,
}

impl Key {
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answers of each replica.
    pub answered: Vec<usize>,
    pub created: usize,
    pub revoked: usize,
    /// Attempts that no server took up, by the code that tonic gives them.
    pub untaken: BTreeMap<String, usize>,
    /// Attempts that failed in any other way.
    pub faults: Vec<String>,
}

struct Shared {
    organization: String,
    authorization: MetadataValue<Ascii>,
    /// A channel to each replica; a new one once it has been started again, on another port.
    replicas: Vec<Mutex<Channel>>,
    turn: AtomicUsize,
    issued: AtomicUsize,
    keys: Mutex<Vec<Arc<Key>>>,
    tally: Mutex<Tally>,
    over: AtomicBool,
}

impl Load {
    /// Starts the clients, and waits until all replicas answer them.
    pub async fn start(servers: &[Server]) -> Self {
        let authorization = format!("Bearer {}", servers[0].admin_secret()).parse().expect("a secret is plain ASCII");
        let shared = Arc::new(Shared {
            organization: create_organization(&servers[0], "acme").await.id,
            authorization,
            replicas: servers.iter().map(|server| Mutex::new(channel(server.address()))).collect(),
            turn: AtomicUsize::default(),
            issued: AtomicUsize::default(),
            keys: Mutex::default(),
            tally: Mutex::new(Tally { answered: vec![0; servers.len()], ..Tally::default() }),
            over: AtomicBool::default(),
        });
        let mut tasks = JoinSet::new();
        for verifier in 0..VERIFIERS {
            tasks.spawn(shared.clone().verify_in_turn(verifier));
        }
        for _ in 0..CHANGERS {
            tasks.spawn(shared.clone().change());
        }
        let load = Self { shared, tasks };
        load.goes_on(None).await;
        load
    }

    /// The organization that the keys belong to.
    pub fn organization(&self) -> &str {
        &self.shared.organization
    }

    pub fn tally(&self) -> Tally {
        lock(&self.shared.tally).clone()
    }

    /// How many attempts no server took up so far.
    pub fn untaken(&self) -> usize {
        self.tally().untaken.values().sum()
    }

    /// Tells the clients where a replica is now.
    pub fn reconnect(&self, replica: usize, server: &Server) {
        *lock(&self.shared.replicas[replica]) = channel(server.address());
    }

    /// Waits until from now on enough was created and revoked, and answered by each replica but one that is away.
    pub async fn goes_on(&self, away: Option<usize>) {
        let before = self.tally();
        wait_until("the load to go on", async || {
            let now = self.tally();
            let answered = (0..now.answered.len())
                .filter(|replica| Some(*replica) != away)
                .all(|replica| now.answered[replica] - before.answered[replica] >= ANSWERS_MIN);
            let changed = [now.created - before.created, now.revoked - before.revoked];
            answered && changed.iter().all(|changes| *changes >= CHANGES_MIN)
        })
        .await;
    }

    /// Ends the clients, each with the answer that it waits for. Gives what happened, and the keys.
    pub async fn end(self) -> (Tally, Vec<Arc<Key>>) {
        self.shared.over.store(true, Ordering::SeqCst);
        let ended = tokio::time::timeout(LAST_CALLS, self.tasks.join_all()).await;
        assert!(ended.is_ok(), "a call was not answered for {} s", LAST_CALLS.as_secs());
        let keys = std::mem::take(&mut *lock(&self.shared.keys));
        (lock(&self.shared.tally).clone(), keys)
    }
}

impl Shared {
    /// Verifies all keys over and over.
    async fn verify_in_turn(self: Arc<Self>, first: usize) {
        for turn in first.. {
            if self.is_over() {
                return;
            }
            let key = {
                let keys = lock(&self.keys);
                turn.checked_rem(keys.len()).map(|at| keys[at].clone())
            };
            if let Some(key) = key {
                self.verify(&key).await;
            }
            sleep(VERIFY_PAUSE).await;
        }
    }

    async fn verify(&self, key: &Key) {
        let request = verifying(&key.secret);
        let answer = self.call(&request, |mut keys, request| async move { keys.verify_key(request).await }).await;
        let outcome = answer.unwrap_or_else(|status| self.fail("VerifyKey", &status)).outcome();
        let revoking = key.revoking.load(Ordering::SeqCst);
        assert!(outcome == Outcome::Valid || (revoking && outcome == Outcome::Revoked), "{outcome:?} of {}", key.id);
    }

    /// Creates keys, and revokes those of its own that have lived longest.
    async fn change(self: Arc<Self>) {
        let mut living = VecDeque::new();
        while !self.is_over() {
            living.push_back(self.create().await);
            let oldest = if living.len() > LIVING { living.pop_front() } else { None };
            if let Some(key) = oldest {
                self.revoke(&key).await;
            }
            sleep(CHANGE_PAUSE).await;
        }
    }

    async fn create(&self) -> Arc<Key> {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let request_id = format!("0198c7a4-5b7e-7c3a-9f00-{number:012x}");
        let request = CreateKeyRequest { request_id, ..issuing(&self.organization, &[]) };
        let created = self.issue(&request).await.unwrap_or_else(|status| self.fail("CreateKey", &status));
        let id = created.key.expect("the key").id;
        lock(&self.tally).created += 1;
        if number.is_multiple_of(REPEATED_EACH) {
            let repeated = self.issue(&request).await;
            let details = expect_error(repeated, Code::AlreadyExists, "REQUEST_ID_REUSED");
            assert_eq!(details.resource_info().expect("the key is named").resource_name, id);
        }
        let (revoking, revoked) = (AtomicBool::default(), AtomicBool::default());
        let key = Arc::new(Key { id, secret: created.secret, revoking, revoked });
        lock(&self.keys).push(key.clone());
        key
    }

    async fn issue(&self, request: &CreateKeyRequest) -> Result<CreateKeyResponse, Status> {
        self.call(request, |mut keys, request| async move { keys.create_key(request).await }).await
    }

    /// Revokes a key twice; the second time changes nothing.
    async fn revoke(&self, key: &Key) {
        key.revoking.store(true, Ordering::SeqCst);
        let first = self.end_key(key).await;
        key.revoked.store(true, Ordering::SeqCst);
        lock(&self.tally).revoked += 1;
        let again = self.end_key(key).await;
        let of = |answer: RevokeKeyResponse| answer.key.map(|key| (key.id, key.revoke_time, key.etag));
        assert_eq!(of(again), of(first), "the first revocation stands");
    }

    async fn end_key(&self, key: &Key) -> RevokeKeyResponse {
        let request = RevokeKeyRequest { key_id: key.id.clone(), ..Default::default() };
        let answer = self.call(&request, |mut keys, request| async move { keys.revoke_key(request).await }).await;
        answer.unwrap_or_else(|status| self.fail("RevokeKey", &status))
    }

    /// Makes a call on the replica whose turn it is, and on the next one after an attempt that may be made again.
    async fn call<Q, A, F>(
        &self,
        message: &Q,
        send: impl Fn(KeyServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut retries = 0;
        loop {
            let replica = (turn + retries) % self.replicas.len();
            let keys = KeyServiceClient::new(lock(&self.replicas[replica]).clone());
            let mut request = Request::new(message.clone());
            request.metadata_mut().insert("authorization", self.authorization.clone());
            let status = match send(keys, request).await {
                Ok(answer) => {
                    lock(&self.tally).answered[replica] += 1;
                    return Ok(answer.into_inner());
                }
                Err(status) => status,
            };
            if !self.may_be_made_again(replica, &status) || retries == RETRIES_MAX {
                return Err(status);
            }
            retries += 1;
            sleep(BACKOFF).await;
        }
    }

    /// Notes how an attempt failed, and says whether it is one that a client tries again.
    fn may_be_made_again(&self, replica: usize, status: &Status) -> bool {
        let mut tally = lock(&self.tally);
        let (failure, is_unavailable) = (Failure::of(status), status.code() == Code::Unavailable);
        match failure {
            Failure::Untaken => *tally.untaken.entry(format!("{:?}", status.code())).or_default() += 1,
            // Refusals of another kind are the answer.
            Failure::Answered if !is_unavailable => {}
            Failure::Answered | Failure::Lost => {
                tally.faults.push(format!("{failure:?}, replica {replica}: {status:?}"));
            }
        }
        match failure {
            Failure::Untaken => true,
            Failure::Answered => is_unavailable,
            Failure::Lost => false,
        }
    }

    fn fail(&self, what: &str, status: &Status) -> ! {
        let tally = lock(&self.tally).clone();
        panic!("{what} failed for good: {status:?}\n{tally:?}");
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
