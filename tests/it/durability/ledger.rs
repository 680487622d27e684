//! A ledger of acknowledgements: what clients were told, written down after the answer and before the next call, and
//! what they had asked for and were not told about, which may have happened or not. After a crash the first must be
//! there to the last, and nothing may be there that was never asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::{
    ApiKey, Consistency, KeyStatus, ListKeysRequest, Outcome, RevokeKeyRequest, VerifyKeyRequest,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Status;

use crate::callers::requests::{issuing, updating, verifying};
use crate::harness::{Authorized, Server, create_organization};

/// Clients of one round.
const CLIENTS: usize = 4;

/// What is known of one key.
#[derive(Debug)]
struct Entry {
    secret: String,
    /// The name that the last acknowledged update gave, and the one that was asked for after it.
    name: String,
    name_asked: String,
    revoked: bool,
    revocation_asked: bool,
}

/// What the clients of one round were told.
#[derive(Debug, Default)]
pub struct Written {
    organization: String,
    keys: HashMap<String, Entry>,
    /// Creations that were asked for and not answered.
    creations_open: usize,
    acknowledged: u64,
}

/// The rounds so far.
#[derive(Default)]
pub struct Ledger(Vec<Written>);

/// Clients under way.
pub struct Clients {
    organization: String,
    tasks: JoinSet<Written>,
    /// A permit for each acknowledgement.
    acknowledged: Arc<Semaphore>,
}

impl Clients {
    /// Starts the clients of a round, each on a connection of its own, in an organization of the round's own.
    pub async fn start(server: &Server, round: usize) -> Self {
        let organization = create_organization(server, &format!("round-{round}")).await.id;
        let acknowledged = Arc::new(Semaphore::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..CLIENTS {
            let (keys, organization) = (server.keys_on_new_connection(), organization.clone());
            let acknowledged = acknowledged.clone();
            tasks.spawn(async move {
                let mut written = Written { organization, ..Default::default() };
                let ended = work(keys, &mut written, &acknowledged).await;
                assert!(ended.is_err(), "clients work until the server is gone");
                written
            });
        }
        Self { organization, tasks, acknowledged }
    }

    /// Waits for so many acknowledgements.
    pub async fn wait_for(&self, wanted: u32) {
        let enough = tokio::time::timeout(Duration::from_mins(1), self.acknowledged.acquire_many(wanted)).await;
        assert!(enough.is_ok_and(|permits| permits.is_ok()), "waited for {wanted} acknowledgements in vain");
    }

    /// What the clients were told, once each has found the server gone.
    pub async fn end(mut self) -> Written {
        let mut all = Written { organization: self.organization, ..Default::default() };
        while let Some(written) = self.tasks.join_next().await {
            let written = written.expect("a client does not panic");
            all.keys.extend(written.keys);
            all.creations_open += written.creations_open;
            all.acknowledged += written.acknowledged;
        }
        all
    }
}

/// Creates keys, renames them and revokes every second one, until the server is gone.
async fn work(
    mut keys: KeyServiceClient<Authorized>,
    written: &mut Written,
    acknowledged: &Semaphore,
) -> Result<(), Status> {
    let tell = |written: &mut Written| {
        written.acknowledged += 1;
        acknowledged.add_permits(1);
    };
    for at in 0.. {
        written.creations_open = 1;
        let answer = keys.create_key(issuing(&written.organization, &[])).await?.into_inner();
        written.creations_open = 0;
        let key = answer.key.expect("the key");
        let entry = Entry {
            secret: answer.secret,
            name: key.name.clone(),
            name_asked: key.name,
            revoked: false,
            revocation_asked: false,
        };
        written.keys.insert(key.id.clone(), entry);
        tell(written);

        let name = format!("Renamed {at}");
        note(written, &key.id).name_asked.clone_from(&name);
        let renamed = ApiKey { id: key.id.clone(), name: name.clone(), ..Default::default() };
        keys.update_key(updating(renamed, "name")).await?;
        note(written, &key.id).name = name;
        tell(written);

        if at % 2 == 0 {
            note(written, &key.id).revocation_asked = true;
            keys.revoke_key(RevokeKeyRequest { key_id: key.id.clone(), ..Default::default() }).await?;
            note(written, &key.id).revoked = true;
            tell(written);
        }
    }
    Ok(())
}

fn note<'a>(written: &'a mut Written, id: &str) -> &'a mut Entry {
    written.keys.get_mut(id).expect("an entry")
}

impl Written {
    /// Everything acknowledged is there, and nothing that was never asked for.
    pub async fn expect_kept(&self, server: &Server, round: usize) {
        let found = self.found(server).await;
        for (id, entry) in &self.keys {
            let key = found.get(id).unwrap_or_else(|| panic!("round {round}: key {id} was acknowledged and is lost"));
            let names = [&entry.name, &entry.name_asked];
            assert!(names.contains(&&key.name), "round {round}: {} is neither of {names:?}", key.name);
            let revoked = key.status() == KeyStatus::Revoked;
            assert!(revoked || !entry.revoked, "round {round}: the revocation of {id} is lost");
            assert!(!revoked || entry.revocation_asked, "round {round}: nobody revoked {id}");
        }
        let strangers = found.keys().filter(|id| !self.keys.contains_key(*id)).count();
        assert!(strangers <= self.creations_open, "round {round}: {strangers} keys that nobody asked for");
        // What a verification says, from the database and past every cache: of a revoked key, and of one that lives.
        for revoked in [true, false] {
            let Some(entry) = self.keys.values().find(|one| (one.revoked, one.revocation_asked) == (revoked, revoked))
            else {
                continue;
            };
            let request = VerifyKeyRequest { consistency: Consistency::Fresh.into(), ..verifying(&entry.secret) };
            let outcome = server.keys().verify_key(request).await.expect("an answer").into_inner().outcome();
            assert_eq!(outcome, if revoked { Outcome::Revoked } else { Outcome::Valid }, "round {round}");
        }
    }

    async fn found(&self, server: &Server) -> HashMap<String, ApiKey> {
        let mut found = HashMap::new();
        let mut page_token = String::new();
        loop {
            let organization_id = self.organization.clone();
            let request = ListKeysRequest { organization_id, page_size: 1000, page_token, ..Default::default() };
            let answer = server.keys().list_keys(request).await.expect("a list").into_inner();
            found.extend(answer.keys.into_iter().map(|key| (key.id.clone(), key)));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    }
}

impl Ledger {
    pub fn add(&mut self, written: Written) {
        self.0.push(written);
    }

    pub fn acknowledged(&self) -> u64 {
        self.0.iter().map(|written| written.acknowledged).sum()
    }

    pub async fn expect_kept(&self, server: &Server) {
        for (round, written) in self.0.iter().enumerate() {
            written.expect_kept(server, round).await;
        }
    }
}
