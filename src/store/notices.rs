//! Notifications of changes, from PostgreSQL's `LISTEN`: hints that the change feed has something new.
//! Must not be relied on: one is lost with its connection, and behind a pooler none may ever come. What they say is not
//! read; the feed is.

use std::time::Duration;

use sea_orm::sqlx::{
    self,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};

use super::StoreError;

/// The channel that the feed's triggers notify.
const CHANNEL: &str = "keystead_changes";
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that listens.
pub struct Notices(PgListener);

impl Notices {
    /// Begins to listen, on a connection and in a pool of its own: one that hangs is dropped with it.
    ///
    /// # Errors
    /// The database's own.
    pub(super) async fn open(options: &PgConnectOptions) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(CONNECT_TIMEOUT)
            .connect_lazy_with(options.clone().application_name("keystead-listen"));
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(CHANNEL).await?;
            Ok::<_, sqlx::Error>(listener)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, listening).await {
            Ok(listener) => Ok(Self(listener.map_err(sqlx_error)?)),
            Err(_) => Err(StoreError::timed_out()),
        }
    }

    /// Waits for the next notification.
    ///
    /// # Errors
    /// Where the connection is lost; then nothing will come any more.
    pub async fn next(&mut self) -> Result<(), StoreError> {
        match self.0.try_recv().await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(StoreError::away()),
            Err(error) => Err(sqlx_error(error)),
        }
    }
}

fn sqlx_error(error: sqlx::Error) -> StoreError {
    StoreError::from(sea_orm::DbErr::Conn(sea_orm::RuntimeErr::SqlxError(error.into())))
}
