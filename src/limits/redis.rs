//! The counters that replicas share, in Redis, on one server or a cluster. A charge is one script, `charge.lua`: it
//! moves all windows on by Redis's own clock and charges every limit or none, so that replicas that charge at once
//! admit no more than the limit.
//! Must not keep a caller waiting: a charge takes the connection that there is, and gives up at its budget; `probe`
//! alone connects, in the background. When to ask Redis at all, and what counts meanwhile, is decided elsewhere.
//! Invariant: all keys of a charge carry the organization's id as their hash tag, so that one node has all of them.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, IntoConnectionInfo as _, RedisResult, Script, ServerErrorKind,
    aio::MultiplexedConnection,
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    config::RedisUrl,
    domain::{
        ids::{OrganizationId, RecordId},
        limits::{RateLimit, SlidingWindow},
        time::Timestamp,
    },
};

/// How long a caller waits for a charge at the most.
pub const BUDGET: Duration = Duration::from_millis(50);
/// How long connecting may take, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long connecting to one node of a cluster may take: one that is gone must not use up the time for the others.
const NODE_TIMEOUT: Duration = Duration::from_millis(400);
/// A connection on which no answer comes within this time is given up.
const PATIENCE: Duration = Duration::from_millis(500);
/// Charges under way on one connection; the next ones wait, within their budget.
const IN_FLIGHT_MAX: usize = 1024;
/// How often a cluster's client follows a slot that has moved, or tries once more, and how long it rests in between.
const RETRIES: u32 = 3;
const RETRY_WAIT_MS: (u64, u64) = (1, 10);

const SCRIPT: &str = include_str!("charge.lua");
/// Arguments of the script for each limit.
const ARGUMENTS: usize = 7;
/// The highest number that the script counts with, 2^53 - 1.
const WHOLE_MAX: i64 = (1 << 53) - 1;

/// Numbers of our own counters, one in each sixteenth of all slots: together they reach every node of a usual cluster.
const CHECKED: [u8; 16] = [13, 3, 62, 40, 12, 2, 63, 41, 11, 1, 60, 42, 10, 0, 61, 43];
/// What a check charges: 1 to a window of a second that nothing exceeds.
const CHECK: [i64; 1 + ARGUMENTS] = [1, 1_000_000, 1, 1, 0, 0, 0, 0];

/// Characters of what Redis says that are handed on.
const REFUSAL_MAX: usize = 160;

/// One limit that a charge asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The id of the key's counter or of the organization.
    pub subject: u128,
    pub limit: &'a RateLimit,
    /// What this process last saw.
    pub known: Option<SlidingWindow>,
    /// What this process charged alone while Redis was away, in the window that begins at `known.start_us`, and has
    /// not told Redis yet.
    pub carry: i64,
}

/// What became of a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Redis's own time.
    pub now: Timestamp,
    /// Whether nothing was charged, because a limit that is no shadow denies it.
    pub denied: bool,
    /// Where the limits stand at `now`, in the order asked, with the charge if it was made.
    pub windows: Vec<SlidingWindow>,
}

/// Why Redis counts nothing now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// There is no connection, or it was lost.
    #[error("Redis cannot be reached")]
    Away,
    /// No answer came in time.
    #[error("Redis does not answer in time")]
    Silent,
    /// The answer is an error, such as READONLY, LOADING or OOM.
    #[error("Redis refuses: {0}")]
    Refused(String),
}

/// The URL of Redis cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the URL of Redis cannot be used: {0}")]
pub struct RedisUrlError(String);

/// Counts in one Redis. Cheap to clone; clones share one connection.
#[derive(Clone)]
pub struct RedisCounters {
    shared: Arc<Shared>,
    budget: Duration,
}

struct Shared {
    server: Server,
    script: Script,
    connection: RwLock<Option<Connection>>,
    /// Held while a probe runs: one replaces the connection at a time.
    probing: Mutex<()>,
}

impl RedisCounters {
    /// Counters that are not connected yet.
    ///
    /// # Errors
    /// The URL holds what no connection can be made of.
    pub fn new(url: &RedisUrl) -> Result<Self, RedisUrlError> {
        // What the crate says of a URL is a phrase of its own, without any part of it.
        let server = Server::of(url).map_err(|error| RedisUrlError(error.to_string()))?;
        let (connection, probing) = (RwLock::default(), Mutex::default());
        let shared = Shared { server, script: Script::new(SCRIPT), connection, probing };
        Ok(Self { shared: Arc::new(shared), budget: BUDGET })
    }

    /// The same counters with another budget than [`BUDGET`].
    #[must_use]
    pub fn with_budget(self, budget: Duration) -> Self {
        Self { budget, ..self }
    }

    /// Charges all of these limits or none of them. A cost of 0 charges nothing and asks whether 1 would fit.
    ///
    /// What a process knows of a window and Redis does not, it takes over, charged or not. After an error the charge
    /// may have been made or may still be: whoever then charges by itself counts twice rather than not at all.
    ///
    /// # Errors
    /// Within the budget: at once where there is no connection.
    pub async fn charge(&self, organization: u128, asked: &[Asked<'_>], cost: i64) -> Result<Answered, RedisError> {
        let connection = self.shared.connection().ok_or(RedisError::Away)?;
        let organization = OrganizationId::from_u128(organization);
        let keys: Vec<String> = asked.iter().map(|asked| asked.key(organization)).collect();
        let mut arguments = Vec::with_capacity(1 + ARGUMENTS * asked.len());
        arguments.push(whole(cost));
        arguments.extend(asked.iter().flat_map(Asked::arguments));
        let answer = within(self.budget, self.shared.run(connection, &keys, &arguments)).await?;
        let answered = Answered::read(&answer).filter(|answered| answered.windows.len() == asked.len());
        answered.ok_or_else(|| RedisError::Refused("an answer that cannot be read".to_owned()))
    }

    /// Finds out whether Redis counts, by charging counters of its own, and connects anew where there is no connection
    /// or the one that there is does not serve. Takes seconds at the most; for a task in the background.
    ///
    /// # Errors
    /// Where the next charge would probably fail. `Silent` also tells that Redis answers, but not within the budget.
    pub async fn probe(&self) -> Result<(), RedisError> {
        let _alone = self.shared.probing.lock().await;
        if let Some(connection) = self.shared.connection() {
            match self.shared.check(&connection).await {
                // A new connection would be no faster.
                Ok(took) => return self.in_time(took),
                // It may be dead without a word, or lead to a server that is no longer the one that writes.
                Err(_) => self.shared.keep(None),
            }
        }
        let connection = within(CONNECT_TIMEOUT, self.shared.server.connect()).await.map_err(|error| match error {
            RedisError::Away | RedisError::Silent => RedisError::Away,
            RedisError::Refused(_) => error,
        })?;
        let took = self.shared.check(&connection).await?;
        self.shared.keep(Some(connection));
        self.in_time(took)
    }

    fn in_time(&self, took: Duration) -> Result<(), RedisError> {
        if took <= self.budget { Ok(()) } else { Err(RedisError::Silent) }
    }
}

impl Shared {
    fn connection(&self) -> Option<Connection> {
        self.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, connection: Option<Connection>) {
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// Runs the script. Its text is sent only where Redis does not have it, and is kept there.
    async fn run(&self, mut connection: Connection, keys: &[String], arguments: &[i64]) -> RedisResult<Vec<i64>> {
        let known = command("EVALSHA", self.script.get_hash(), keys, arguments);
        match connection.query(&known).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                connection.query(&command("EVAL", SCRIPT, keys, arguments)).await
            }
            result => result,
        }
    }

    /// Charges counters of our own: a server that answers but does not write is found out. Tells how long it took.
    async fn check(&self, connection: &Connection) -> Result<Duration, RedisError> {
        let begun = Instant::now();
        let checks = CHECKED.iter().take(connection.checks()).map(|number| async move {
            let keys = [format!("keystead:{{probe-{number}}}")];
            self.run(connection.clone(), &keys, &CHECK).await
        });
        within(PATIENCE, try_join_all(checks)).await?;
        Ok(begun.elapsed())
    }
}

impl Asked<'_> {
    fn key(&self, organization: OrganizationId) -> String {
        let subject = RecordId::from_u128(self.subject);
        format!("keystead:{{{organization}}}:{subject}:{}:{}", self.limit.name, self.limit.window_us())
    }

    fn arguments(&self) -> [i64; ARGUMENTS] {
        let known = self.known.unwrap_or(SlidingWindow { start_us: 0, current: 0, previous: 0 });
        [
            self.limit.window_us(),
            self.limit.limit,
            self.limit.shadow.into(),
            whole(known.start_us),
            whole(known.current),
            whole(known.previous),
            whole(self.carry),
        ]
    }
}

impl Answered {
    fn read(answer: &[i64]) -> Option<Self> {
        let [now, denied, counters @ ..] = answer else { return None };
        let (counters, []) = counters.as_chunks() else { return None };
        let window = |&[start_us, current, previous]: &[i64; 3]| SlidingWindow { start_us, current, previous };
        let windows = counters.iter().map(window).collect();
        Some(Self { now: Timestamp::from_micros(*now), denied: *denied != 0, windows })
    }
}

impl RedisError {
    fn of(error: &redis::RedisError) -> Self {
        // Why a cluster's client reached no node it tells only in words.
        let detail = error.detail().unwrap_or_default();
        match error.kind() {
            ErrorKind::Io if error.is_timeout() => Self::Silent,
            ErrorKind::Io if !detail.contains("AuthenticationFailed") => Self::Away,
            ErrorKind::ClusterConnectionNotFound => Self::Away,
            ErrorKind::Io | ErrorKind::AuthenticationFailed => Self::Refused("the name or the password".to_owned()),
            _ => {
                let code = error.code().unwrap_or_else(|| error.category());
                let text = format!("{code} {detail}");
                let shown = text.trim_end().chars().filter(|letter| !letter.is_control());
                Self::Refused(shown.take(REFUSAL_MAX).collect())
            }
        }
    }
}

/// What can be connected to.
enum Server {
    Single(Box<Client>),
    Cluster(Box<ClusterClient>),
}

impl Server {
    fn of(url: &RedisUrl) -> RedisResult<Self> {
        // Charges are small and follow each other closely: none waits for the acknowledgement of the one before.
        let tcp = TcpSettings::default().set_nodelay(true);
        if !url.is_cluster() {
            let client = Client::open(url.expose().into_connection_info()?.set_tcp_settings(tcp))?;
            return Ok(Self::Single(Box::new(client)));
        }
        let (wait_min, wait_max) = RETRY_WAIT_MS;
        let client = ClusterClientBuilder::new(url.nodes())
            .tcp_settings(tcp)
            .connection_timeout(NODE_TIMEOUT)
            // It ends the client's own questions. A charge ends before, by its budget; else it would be made again.
            .response_timeout(CONNECT_TIMEOUT)
            .overall_response_timeout(None)
            .connection_concurrency_limit(IN_FLIGHT_MAX)
            .retries(RETRIES)
            .min_retry_wait(wait_min)
            .max_retry_wait(wait_max)
            .build()?;
        Ok(Self::Cluster(Box::new(client)))
    }

    async fn connect(&self) -> RedisResult<Connection> {
        match self {
            Self::Single(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(CONNECT_TIMEOUT))
                    .set_response_timeout(None)
                    .set_pipeline_buffer_size(IN_FLIGHT_MAX)
                    .set_concurrency_limit(IN_FLIGHT_MAX);
                client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
            }
            Self::Cluster(client) => client.get_async_connection().await.map(Connection::Cluster),
        }
    }
}

/// A connection for all who charge. A request that is given up stays on its way, and its answer is thrown away when it
/// comes; what is given up before it was written is not sent.
#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    /// Finds moved slots and lost nodes again by itself, but not a node that falls silent.
    Cluster(ClusterConnection),
}

impl Connection {
    async fn query(&mut self, command: &Cmd) -> RedisResult<Vec<i64>> {
        match self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// How many of our own counters a check has to charge.
    fn checks(&self) -> usize {
        match self {
            Self::Single(_) => 1,
            Self::Cluster(_) => CHECKED.len(),
        }
    }
}

fn command(name: &str, script: &str, keys: &[String], arguments: &[i64]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
    command
}

fn whole(number: i64) -> i64 {
    number.clamp(0, WHOLE_MAX)
}

async fn within<T>(limit: Duration, request: impl Future<Output = RedisResult<T>>) -> Result<T, RedisError> {
    match timeout(limit, request).await {
        Ok(result) => result.map_err(|error| RedisError::of(&error)),
        Err(_) => Err(RedisError::Silent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit() -> RateLimit {
        RateLimit::parse("hourly", 5, Duration::from_hours(1), true).unwrap()
    }

    #[test]
    fn a_key_names_organization_subject_limit_and_window_and_the_first_alone_decides_on_the_node() {
        let asked = Asked { subject: 2, limit: &limit(), known: None, carry: 0 };
        assert_eq!(
            asked.key(OrganizationId::from_u128(1)),
            "keystead:{00000000-0000-0000-0000-000000000001}:00000000-0000-0000-0000-000000000002:hourly:3600000000"
        );
    }

    #[test]
    fn what_the_script_could_not_count_with_is_not_sent() {
        let known = SlidingWindow { start_us: 7, current: i64::MAX, previous: -1 };
        let asked = Asked { subject: 2, limit: &limit(), known: Some(known), carry: i64::MIN };
        assert_eq!(asked.arguments(), [3_600_000_000, 5, 1, 7, 9_007_199_254_740_991, 0, 0]);
    }

    #[test]
    fn an_answer_of_another_shape_is_not_read() {
        let window = SlidingWindow { start_us: 10, current: 2, previous: 3 };
        let answered = Answered { now: Timestamp::from_micros(12), denied: true, windows: vec![window] };
        assert_eq!(Answered::read(&[12, 1, 10, 2, 3]), Some(answered));
        let others: [&[i64]; 4] = [&[], &[12], &[12, 1, 10, 2], &[12, 1, 10, 2, 3, 4]];
        for answer in others {
            assert_eq!(Answered::read(answer), None, "{answer:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_one_short_line() {
        let error = redis::make_extension_error("OOM".to_owned(), Some(format!("command\nnot allowed{:>500}", "!")));
        let RedisError::Refused(text) = RedisError::of(&error) else { panic!("{error}") };
        assert!(text.starts_with("OOM commandnot allowed"), "{text}");
        assert_eq!(text.chars().count(), REFUSAL_MAX);
        assert_eq!(RedisError::of(&std::io::Error::from(std::io::ErrorKind::TimedOut).into()), RedisError::Silent);
        assert_eq!(RedisError::of(&std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()), RedisError::Away);
    }
}
