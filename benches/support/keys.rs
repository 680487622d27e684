//! An organization with as many keys as a benchmark takes. One of them is created by the service itself; the others
//! are copies of its row with another id, digest and moment, written by SQL, since a million calls would take longer
//! than what is measured. Key N has the secret of `requests::secret(N)`, 1 to the number asked for.
//! Must name no column but those in which the copies differ, so that a new column needs nothing here.

use keystead::{
    domain::{digest::Digest, ids::KeyId, time::Timestamp},
    proto::v1::{ApiKey, CreateKeyRequest, CreateOrganizationRequest, Environment, RateLimit},
};
use rusqlite::params;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use super::{Failure, database::Database, requests, server::Server};

/// The organization whose keys may act on every other.
const SYSTEM: &str = "00000000-0000-0000-0000-000000000001";

/// Who asks, and whose keys are asked about.
pub struct Keys {
    /// The secret of a key that may verify, and no more.
    pub caller: String,
    pub organization_id: String,
}

/// What each key has besides a name and two scopes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    None,
    /// One limit, which is not reached: ten thousand a minute.
    One,
}

/// Makes an organization with `count` keys, and a caller.
pub async fn make(server: &Server, database: &Database, count: u64, limits: Limits) -> Result<Keys, Failure> {
    let organization_id = organization(server).await?;
    let caller = CreateKeyRequest {
        organization_id: SYSTEM.to_owned(),
        name: "A service that verifies".to_owned(),
        environment: Environment::Live.into(),
        scopes: vec!["keystead.keys.verify".to_owned()],
        ..Default::default()
    };
    let caller = server.keys()?.create_key(caller).await?.into_inner().secret;
    let limit = RateLimit {
        name: "requests".to_owned(),
        limit: 10_000,
        window: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        shadow: false,
    };
    let request = CreateKeyRequest {
        rate_limits: if limits == Limits::One { vec![limit] } else { Vec::new() },
        ..creation(&organization_id)
    };
    let model = server.keys()?.create_key(request).await?.into_inner().key.ok_or("an answer without a key")?;
    match database.file() {
        Some(file) => copy_in_sqlite(rusqlite::Connection::open(file)?, &model, count)?,
        None => copy_in_postgres(database, &model, count).await?,
    }
    Ok(Keys { caller, organization_id })
}

/// Makes an organization without keys, and gives its id.
pub async fn organization(server: &Server) -> Result<String, Failure> {
    let request = CreateOrganizationRequest {
        name: "Acme".to_owned(),
        slug: "acme".to_owned(),
        email: "keys@acme.example".to_owned(),
        ..Default::default()
    };
    let answer = server.organizations()?.create_organization(request).await?.into_inner();
    Ok(answer.organization.ok_or("an answer without an organization")?.id)
}

/// A key as most are.
pub fn creation(organization_id: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        organization_id: organization_id.to_owned(),
        name: "Billing of the web shop".to_owned(),
        environment: Environment::Live.into(),
        scopes: vec!["invoices:read".to_owned(), "invoices:write".to_owned()],
        ..Default::default()
    }
}

/// Columns in which the copies differ, and what they hold there; all others are the model's.
fn insert(columns: &[String], differs: &[(&str, &str)], from: &str) -> String {
    let value = |column: &str| differs.iter().find(|(name, _)| *name == column).map(|(_, value)| *value);
    let values: Vec<&str> = columns.iter().map(|column| value(column).unwrap_or(column)).collect();
    format!("INSERT INTO api_keys ({}) SELECT {} FROM {from}", columns.join(", "), values.join(", "))
}

fn copy_in_sqlite(mut connection: rusqlite::Connection, model: &ApiKey, count: u64) -> Result<(), Failure> {
    let columns: Vec<String> = connection
        .prepare("SELECT name FROM pragma_table_info('api_keys')")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let differs = [
        ("id", "?2"),
        ("counter_id", "?2"),
        ("digest", "?3"),
        ("create_time_us", "create_time_us + ?4"),
        ("request_id", "NULL"),
    ];
    let statement = insert(&columns, &differs, "api_keys WHERE id = ?1");
    let created = model.create_time.as_ref().map_or(0, |time| time.seconds * 1_000_000);
    let transaction = connection.transaction()?;
    let mut prepared = transaction.prepare(&statement)?;
    for number in 1..=count {
        let after = i64::try_from(number)?;
        let id = KeyId::new(Timestamp::from_micros(created + after), keystead::random::bytes()).to_string();
        let digest = Digest::of(&requests::secret(number));
        prepared.execute(params![model.id, id, digest.as_bytes(), after])?;
    }
    drop(prepared);
    transaction.commit()?;
    connection.execute_batch("ANALYZE; PRAGMA wal_checkpoint(TRUNCATE);")?;
    Ok(())
}

async fn copy_in_postgres(database: &Database, model: &ApiKey, count: u64) -> Result<(), Failure> {
    let connection = database.connect().await?;
    let found = "SELECT column_name::text FROM information_schema.columns \
                 WHERE table_name = 'api_keys' AND table_schema = current_schema()";
    let rows = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, found)).await?;
    let columns: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
    // UUIDs of version 7: 48 bits of milliseconds, then random ones. Made in the FROM clause, once a row, since both
    // id columns hold it.
    let differs = [
        ("id", "copy.id"),
        ("counter_id", "copy.id"),
        ("digest", "sha256(convert_to('pk_live_' || lpad(copy.number::text, 43, '0'), 'UTF8'))"),
        ("create_time_us", "create_time_us + copy.number"),
        ("request_id", "NULL"),
    ];
    let from = "(SELECT number, substr(time, 1, 8) || '-' || substr(time, 9) || '-7' || substr(random, 1, 3) || '-8' \
                || substr(random, 4, 3) || '-' || substr(random, 7, 12) AS id FROM (SELECT number, \
                lpad(to_hex(1700000000000 + number / 1000), 12, '0') AS time, md5(number::text) AS random \
                FROM generate_series(1, $2) AS number) AS parts) AS copy, api_keys WHERE api_keys.id = $1";
    let sql = insert(&columns, &differs, from);
    let values = [model.id.clone().into(), i64::try_from(count)?.into()];
    connection.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, values)).await?;
    connection.execute_unprepared("VACUUM ANALYZE api_keys").await?;
    connection.close().await?;
    Ok(())
}
