//! How the databases read a statistic: each table of sums through ranges of an index, never as a whole.
//! The plans are those that the engine itself tells for the very statements that the store sends.

use std::sync::Mutex;

use keystead::domain::{
    ids::KeyId,
    time::{HOUR_US, Timestamp},
    usage::UsageSubject,
    usage_span::{Granularity, UsageSpan},
};
use keystead::random;
use keystead::store::usage_sums;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, Statement};

use super::World;
use crate::harness::{TestDatabase, samples, store_test};

/// A connection that asks for the plan of every query before it runs it.
struct Explained {
    connection: DatabaseConnection,
    plans: Mutex<Vec<String>>,
}

#[tonic::async_trait]
impl ConnectionTrait for Explained {
    fn get_database_backend(&self) -> DbBackend {
        self.connection.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.connection.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.connection.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.connection.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let (explain, column) = match statement.db_backend {
            DbBackend::Postgres => ("EXPLAIN", "QUERY PLAN"),
            _ => ("EXPLAIN QUERY PLAN", "detail"),
        };
        let mut plan = statement.clone();
        plan.sql = format!("{explain} {}", statement.sql);
        for line in self.connection.query_all_raw(plan).await? {
            let line: String = line.try_get("", column)?;
            self.plans.lock().expect("no panic").push(line);
        }
        self.connection.query_all_raw(statement).await
    }
}

impl Explained {
    /// Asserts that everything since the last time was read through ranges of indexes.
    fn assert_ranges(&self, what: &str) {
        let plan = std::mem::take(&mut *self.plans.lock().expect("no panic"));
        let of_tables = |word: &str| plan.iter().filter(|line| line.contains(word)).collect::<Vec<_>>();
        let (whole, range) = if self.get_database_backend() == DbBackend::Postgres {
            ("Seq Scan on usage", "Index Cond")
        } else {
            ("SCAN usage", "SEARCH usage")
        };
        assert!(of_tables(whole).is_empty(), "{what}: {plan:#?}");
        let ranges = of_tables(range);
        assert!(!ranges.is_empty(), "{what}: {plan:#?}");
        for line in ranges {
            assert!(
                line.contains("start_us>") || line.contains("hour_us>") || line.contains("_us >="),
                "{what}: {line}"
            );
        }
    }
}

store_test!(every_statistic_is_read_through_ranges_of_indexes);
async fn every_statistic_is_read_through_ranges_of_indexes(database: TestDatabase) {
    let world = World::new(database).await;
    let connection = world.database.connect().await;
    if connection.get_database_backend() == DbBackend::Postgres {
        // The tables are empty, where reading them whole is cheapest; what matters is whether an index can serve.
        connection.execute_unprepared("SET enable_seqscan = off").await.expect("a setting");
    }
    let db = Explained { connection, plans: Mutex::default() };
    let start = samples::NOW.start_of_hour();
    let end = Timestamp::from_micros(start.micros() + 100 * 24 * HOUR_US + HOUR_US);
    let span = UsageSpan { start, end, nothing_from: Timestamp::LAST };
    let key = KeyId::new(samples::NOW, random::bytes());
    for subject in [UsageSubject::Organization(world.acme.id), UsageSubject::Key(key)] {
        for granularity in Granularity::ALL {
            usage_sums::list_points(&db, subject, &span, *granularity).await.expect("sums");
            db.assert_ranges("points");
            usage_sums::list_point_times(&db, subject, &span, *granularity).await.expect("sums");
            db.assert_ranges("response times of points");
        }
        usage_sums::list_endpoints(&db, subject, &span, 10).await.expect("sums");
        db.assert_ranges("endpoints");
        usage_sums::list_endpoint_times(&db, subject, &span, &["/a", "/b"]).await.expect("sums");
        db.assert_ranges("response times of endpoints");
        usage_sums::list_errors(&db, subject, &span, 10).await.expect("sums");
        db.assert_ranges("errors");
        usage_sums::list_consumers(&db, subject, &span, 10).await.expect("sums");
        db.assert_ranges("consumers");
    }
    let keys = [key.to_string(), world.acme.id.to_string()];
    usage_sums::list_key_times(&db, &span, &[&keys[0], &keys[1]]).await.expect("sums");
    db.assert_ranges("response times of consumers");
}
