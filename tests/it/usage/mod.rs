//! Usage on its way to the database: every answered verification counts once, whatever happens to the process, the
//! database, the spool or the disk. `ledger` and `away` ask the real binary; `spool`, `full` and `slots` ask the
//! recorder itself, so that they can end it at the worst moment; `retention` deletes.

mod away;
mod full;
mod ledger;
mod retention;
mod slots;
mod spool;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use keystead::domain::{
    ids::{KeyId, OrganizationId},
    key::ApiKey,
    outcome::Outcome,
    usage::UsageEvent,
};
use keystead::random;
use keystead::store::{Store, api_keys, connect, connect::ConnectOptions, connect::FileLock, migrate, organizations};
use keystead::usage::{Recorder, SpoolOptions};

use crate::harness::{TestDatabase, samples};

/// The smallest bound that a spool can have.
const BYTES_MAX: u64 = 16 << 20;

/// A migrated database with an organization and a key, and the store on it.
struct World {
    store: Store,
    key: ApiKey,
    _lock: FileLock,
    database: TestDatabase,
}

impl World {
    async fn new(database: TestDatabase) -> Self {
        let options = ConnectOptions {
            url: database.url.clone(),
            verify_connections_max: 2,
            control_connections_max: 4,
            usage_connections_max: 2,
            verify_timeout: std::time::Duration::from_secs(20),
        };
        migrate::up(&options).await.expect("an empty database can be migrated");
        let (store, lock) = connect::open(&options).await.expect("the database opens");
        let acme = samples::organization("acme");
        organizations::insert(store.write(), &acme, None).await.expect("an organization");
        let key = samples::key(acme.id);
        api_keys::insert(store.write(), &key, &samples::digest_of(&key), None).await.expect("a key");
        Self { store, key, _lock: lock, database }
    }

    /// A recorder on the spool of this database, as a process has when it has started.
    async fn recorder(&self) -> Recorder {
        self.recorder_in(&self.database.spool()).await
    }

    async fn recorder_in(&self, folder: &Path) -> Recorder {
        let recorder = Recorder::default();
        let options = SpoolOptions { folder: folder.to_owned(), bytes_max: BYTES_MAX };
        recorder.open(&self.store, &options).await.expect("the spool opens");
        recorder
    }

    /// The number-th verification of the key: VALID, a millisecond after the one before.
    fn event(&self, number: usize) -> UsageEvent {
        let after_us = i64::try_from(number).expect("a small number") * 1_000;
        UsageEvent {
            key: Some((self.key.id, self.key.organization_id)),
            time: keystead::domain::time::Timestamp::from_micros(samples::NOW.micros() + after_us),
            outcome: Outcome::Valid,
            endpoint: format!("/{}", number % 3),
            method: "GET".to_owned(),
            client_address: "2001:db8::1".to_owned(),
            user_agent: "tests".to_owned(),
            request_id: number.to_string(),
            tags: BTreeMap::new(),
        }
    }

    fn record(&self, recorder: &Recorder, count: usize) {
        (0..count).for_each(|number| recorder.record(&self.event(number)));
    }

    /// The number-th verification, in a record of some 8 KiB.
    fn large_event(&self, number: usize) -> UsageEvent {
        UsageEvent { user_agent: "u".repeat(8_000), ..self.event(number) }
    }

    async fn flush(&self, recorder: &Recorder) {
        recorder.flush(&self.store).await.expect("usage is written");
    }

    /// Verifications in the rollups.
    async fn counted(&self) -> i64 {
        let sql = "SELECT CAST(coalesce(sum(verifications), 0) AS bigint) FROM usage_rollups";
        self.database.query_i64(sql).await
    }

    /// What the rows of detail stand for.
    async fn weighed(&self) -> i64 {
        let sql = "SELECT CAST(coalesce(sum(weight), 0) AS bigint) FROM api_key_usage";
        self.database.query_i64(sql).await
    }

    /// Rows of detail.
    async fn rows(&self) -> i64 {
        self.database.query_i64("SELECT count(*) FROM api_key_usage").await
    }

    /// The key's count of requests.
    async fn requests(&self) -> i64 {
        let sql = format!("SELECT request_count FROM api_keys WHERE id = '{}'", self.key.id);
        self.database.query_i64(&sql).await
    }

    /// Asserts that so many verifications of the key are in the database, each counted once in every place.
    async fn expect(&self, count: i64) {
        let found = (self.counted().await, self.weighed().await, self.requests().await);
        assert_eq!(found, (count, count, count), "rollups, weights and requests of the key");
    }
}

/// The folders of the slots of the one database in a spool, in order.
fn slots(spool: &Path) -> Vec<PathBuf> {
    let databases = entries(spool);
    assert_eq!(databases.len(), 1, "{databases:?}");
    entries(&databases[0])
}

/// What a folder holds, by name.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(folder).expect("a folder that can be listed");
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Copies a folder and all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for path in entries(from) {
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

/// A key and an organization that nothing has.
fn nobody() -> (KeyId, OrganizationId) {
    (KeyId::new(samples::NOW, random::bytes()), OrganizationId::new(samples::NOW, random::bytes()))
}
