//! The store suite: every function of `keystead::store`, called directly, on SQLite and on a real PostgreSQL.
//! One suite serves both engines: a test runs on one alone only where its call site says why.
//! Also here: `verify::Records`, `verify::Feed`, `limits::Spender` and `limits::Quotas`, whose promises rest on the
//! store's.

mod api_keys;
mod audit_events;
mod cancelled;
mod corrupt_rows;
mod credits;
mod feed;
mod flood;
mod group_commit;
mod jobs;
mod key_changes;
mod key_counts;
mod key_lists;
mod key_pages;
mod migrations;
mod open;
mod organization_lists;
mod organizations;
mod quotas;
mod rate_limits;
mod records;
mod replicas;
mod revisions;
mod spender;
mod state;
mod usage;
mod usage_plans;
mod usage_reports;
mod usage_sums;

use keystead::domain::{
    digest::Digest,
    ids::OrganizationId,
    key::ApiKey,
    organization::Organization,
    page::{PageRequest, Position},
    permission::Reach,
    record::KeyRecord,
};
use keystead::store::{
    Database, Store, StoreError, Transaction, api_keys as keys, commit,
    connect::{self, ConnectOptions, FileLock},
    key_records, migrate, organizations as tenants,
};
use sea_orm::DatabaseConnection;

use crate::harness::{Engine, TestDatabase, samples};

/// A migrated database with one organization, and the store on it.
struct World {
    store: Store,
    database: TestDatabase,
    /// Owns the keys of the test.
    acme: Organization,
    _lock: FileLock,
}

impl World {
    async fn new(database: TestDatabase) -> Self {
        let options = options(&database);
        migrate::up(&options).await.expect("an empty database can be migrated");
        let (store, lock) = connect::open(&options).await.expect("the database opens");
        let acme = samples::organization("acme");
        tenants::insert(store.write(), &acme, None).await.expect("the first organization");
        Self { store, database, acme, _lock: lock }
    }

    /// For single statements that read or write.
    fn db(&self) -> &DatabaseConnection {
        self.store.write()
    }

    async fn begin(&self) -> Transaction {
        self.store.begin().await.expect("a transaction begins")
    }

    /// Writes one more organization.
    async fn add_organization(&self, slug: &str) -> Organization {
        let organization = samples::organization(slug);
        tenants::insert(self.db(), &organization, None).await.expect("an organization is written");
        organization
    }

    /// Writes a key of `acme` as `change` makes it.
    async fn add_key(&self, change: impl FnOnce(&mut ApiKey)) -> ApiKey {
        let mut key = samples::key(self.acme.id);
        change(&mut key);
        insert(self.db(), &key).await;
        key
    }

    /// Writes an active key of `acme` with this name.
    async fn add_named(&self, name: &str) -> ApiKey {
        self.add_key(|key| name.clone_into(&mut key.name)).await
    }

    /// The key as the database has it.
    async fn stored(&self, key: &ApiKey) -> ApiKey {
        keys::find(self.db(), Reach::All, key.id).await.expect("a readable row").expect("a row")
    }

    /// Writes settings of a key in a transaction of its own.
    async fn update(&self, key: &ApiKey) {
        assert!(keys::update(self.db(), key).await.expect("an update"), "the key is there");
    }
}

/// Writes a key under the digest of the samples.
async fn insert(db: &impl Database, key: &ApiKey) {
    keys::insert(db, key, &samples::digest_of(key), None).await.expect("a key is written");
}

/// How the store is opened on a test's database.
fn options(database: &TestDatabase) -> ConnectOptions {
    ConnectOptions {
        verify_timeout: std::time::Duration::from_secs(20),
        url: database.url.clone(),
        verify_connections_max: 4,
        control_connections_max: 8,
        usage_connections_max: 2,
    }
}

/// A page of this size, after `after`.
const fn page(size: u64, after: Option<Position>) -> PageRequest {
    PageRequest { size, after }
}

/// An organization that is nobody's.
fn nobody() -> OrganizationId {
    samples::organization("nobody").id
}

/// Whether the database refused for a reason that has no word of its own, such as a reference.
fn is_refused<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unforeseen(_) | StoreError::Conflict(keystead::store::Conflict::Id)))
}

async fn commit_all(transaction: Transaction) {
    commit(transaction).await.expect("a commit");
}

/// The text of one query per engine, for what has no common name in both catalogues.
const fn by_engine(engine: Engine, sqlite: &'static str, postgres: &'static str) -> &'static str {
    match engine {
        Engine::Sqlite => sqlite,
        Engine::Postgres => postgres,
    }
}

/// What a verification would find under this digest.
async fn find_record(db: &impl Database, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
    let found = key_records::list_by_digests(db, std::slice::from_ref(digest)).await?;
    found.into_iter().find(|(stored, _)| stored == digest).map(|(_, record)| record).transpose()
}
