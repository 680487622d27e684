//! Runs the real `keystead` binary on a free port, and ends it in each way that a machine may: SIGTERM,
//! `kill -9`, or the end of the test. Several servers of one database are replicas, each with a `Setup` of its own.
//! Invariant: a server is ended by the id that this file was given for it, and never outlives its test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::output::Output;
use super::{TestDatabase, clock, signals, wait_until};

/// Longer than any call's own deadline: a call that is never answered fails its test.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// The `keystead` command with no setting but the database, whatever this process's environment says.
pub fn keystead_command(database: &TestDatabase) -> Command {
    let mut command = bare_command(&database.url);
    // Not in the folder that the tests run in.
    command.env("KEYSTEAD_USAGE_SPOOL", database.spool());
    command
}

/// What sets one server of a database apart from another.
#[derive(Default)]
pub struct Setup {
    /// What it connects to, such as a proxy before the database; otherwise the database itself.
    pub database_url: Option<String>,
    /// Variables besides those that every server gets, which they override.
    pub environment: Vec<(String, String)>,
    /// Arguments after `serve`.
    pub arguments: Vec<String>,
    /// Where usage waits; otherwise in a folder of this server's own.
    pub spool: Option<PathBuf>,
}

/// A `keystead serve` on a test's database.
pub struct Server {
    database_url: String,
    spool: PathBuf,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    admin_secret: String,
    process: Option<Process>,
    output: Output,
    address: Option<SocketAddr>,
    channel: Option<Channel>,
}

struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Prepares the database if it is new (`keystead init`), starts the service with `arguments` after
    /// `serve`, and waits until its health is SERVING.
    pub async fn start(database: &TestDatabase, arguments: &[&str]) -> Self {
        let mut server = Self::launch(database, arguments);
        server.wait_until_serving().await;
        server
    }

    /// As `start`, without waiting: for a server that is expected to refuse, or to be not ready yet.
    pub fn launch(database: &TestDatabase, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self::launch_with(database, Setup { arguments, spool: Some(database.spool()), ..Setup::default() })
    }

    /// As `start`, for one of several servers of a database. `keystead init` goes to the database itself, whatever
    /// the server connects to.
    pub async fn start_with(database: &TestDatabase, setup: Setup) -> Self {
        let mut server = Self::launch_with(database, setup);
        server.wait_until_serving().await;
        server
    }

    /// As `start_with`, without waiting.
    pub fn launch_with(database: &TestDatabase, setup: Setup) -> Self {
        let admin_secret = database.admin_secret().unwrap_or_else(|| initialise(database));
        let mut server = Self {
            database_url: setup.database_url.unwrap_or_else(|| database.url.clone()),
            spool: setup.spool.unwrap_or_else(|| database.new_spool()),
            environment: setup.environment,
            arguments: setup.arguments,
            admin_secret,
            process: None,
            output: Output::default(),
            address: None,
            channel: None,
        };
        server.spawn();
        server
    }

    /// Ends the process if it still runs, the orderly way, and starts it again on the same database.
    /// Its port, and so `address` and `channel`, are new.
    pub async fn restart(&mut self) {
        if self.process.is_some() {
            self.sigterm();
            let status = self.wait_exit().await;
            assert!(status.success(), "after SIGTERM: {status}\n{}", self.log_text());
        }
        self.spawn();
        self.wait_until_serving().await;
    }

    /// Ends the process at once, as a crash would: nothing of it runs any more.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("a running server");
        process.child.kill().expect("SIGKILL is sent");
        process.child.wait().expect("the process ends");
        process.join_readers();
        clock::remove_traces(process.child.id());
    }

    /// Halts the process: it keeps its connections and does nothing.
    pub fn sigstop(&self) {
        signals::halt(&self.running().child);
    }

    /// Lets a halted process go on.
    pub fn sigcont(&self) {
        signals::go_on(&self.running().child);
    }

    /// Asks the process to end. It drains; `wait_exit` waits for that.
    pub fn sigterm(&self) {
        let kill =
            Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.pid().to_string()]).status().expect("sh runs");
        assert!(kill.success(), "SIGTERM could not be sent");
    }

    /// Waits for the process to end by itself or by `sigterm`.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("a running server");
        let mut status = None;
        wait_until("keystead to exit", async || {
            status = process.child.try_wait().expect("the process can be asked");
            status.is_some()
        })
        .await;
        process.join_readers();
        self.process = None;
        status.expect("the condition held")
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.running().child.id()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.expect("a server that was waited for")
    }

    /// The secret that `keystead init` printed for this database.
    pub fn admin_secret(&self) -> &str {
        &self.admin_secret
    }

    /// One HTTP/2 connection, shared by all clients of this server.
    pub fn channel(&self) -> Channel {
        self.channel.clone().expect("a server that was waited for")
    }

    /// An HTTP/2 connection of its own.
    pub fn new_channel(&self) -> Channel {
        connect(self.address())
    }

    /// Where the present process serves metrics, if it was started with `--metrics-listen 127.0.0.1:0`.
    pub fn metrics_address(&self) -> SocketAddr {
        self.output.address_after("metrics are served", "metrics").expect("a server that serves metrics")
    }

    /// What the process printed on both of its outputs, over all restarts.
    pub fn logs(&self) -> Vec<u8> {
        self.output.bytes()
    }

    /// The same as text.
    pub fn log_text(&self) -> String {
        self.output.text()
    }

    /// What health says of `service` (`""`: the whole server), or `None` where it does not answer.
    pub async fn health(&self, service: &str) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(self.channel()).check(request).await.ok()?;
        Some(answer.into_inner().status())
    }

    /// Waits until the server that was launched serves.
    pub async fn wait_until_serving(&mut self) {
        self.wait_until_listening().await;
        wait_until("health to say SERVING", async || self.health("").await == Some(ServingStatus::Serving)).await;
    }

    /// Waits until the server that was launched listens, whether it serves yet or not.
    pub async fn wait_until_listening(&mut self) {
        let output = self.output.clone();
        let process = self.process.as_mut().expect("a launched server");
        let mut address = None;
        wait_until("keystead to say where it listens", async || {
            address = output.listening_address();
            if address.is_none()
                && let Some(status) = process.child.try_wait().expect("the process can be asked")
            {
                panic!("keystead ended at its start: {status}\n{}", output.text());
            }
            address.is_some()
        })
        .await;
        let address = address.expect("the condition held");
        self.address = Some(address);
        self.channel = Some(connect(address));
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("a running server")
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "one process at a time");
        self.address = None;
        self.channel = None;
        self.output.begin_process();
        let mut command = bare_command(&self.database_url);
        command.arg("serve").args(&self.arguments).env("KEYSTEAD_LISTEN", "127.0.0.1:0");
        command.env("KEYSTEAD_USAGE_SPOOL", &self.spool);
        // Many servers share few cores here; tests about time set their own with a flag.
        command.env("KEYSTEAD_VERIFY_TIMEOUT_MS", "8000");
        command.envs(self.environment.clone());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("keystead runs");
        let readers = vec![
            self.output.read_from(child.stdout.take().expect("a piped standard output")),
            self.output.read_from(child.stderr.take().expect("a piped standard error")),
        ];
        self.process = Some(Process { child, readers });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Nothing is left to do where it has ended already.
            let _ = process.child.kill();
            let _ = process.child.wait();
            clock::remove_traces(process.child.id());
        }
        if std::thread::panicking() {
            eprintln!("--- what keystead printed ---\n{}", self.log_text());
        }
    }
}

impl Process {
    /// Waits until all that the ended process printed has been read.
    fn join_readers(&mut self) {
        for reader in self.readers.drain(..) {
            reader.join().expect("a reader does not panic");
        }
    }
}

/// Runs `keystead init` and returns the secret, the only line on its standard output.
fn initialise(database: &TestDatabase) -> String {
    let output = keystead_command(database).arg("init").stdin(Stdio::null()).output().expect("keystead runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "keystead init: {}\n{errors}", output.status);
    let printed = String::from_utf8(output.stdout).expect("text on standard output");
    let secret = printed.strip_suffix('\n').expect("a whole line");
    assert!(secret.len() == 51 && !secret.contains('\n'), "init prints the secret alone");
    database.remember_admin_secret(secret);
    secret.to_owned()
}

pub(super) fn bare_command(database_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("KEYSTEAD_") {
            command.env_remove(variable);
        }
    }
    // In the environment, because the URL of PostgreSQL holds a password and a process list shows arguments.
    command.env("KEYSTEAD_DATABASE_URL", database_url).env("NO_COLOR", "1");
    // Many servers share this machine; tests of metrics ask for a free port with the flag.
    command.env("KEYSTEAD_METRICS_LISTEN", "off");
    command
}

fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address makes a URI")
        .connect_timeout(CALL_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .connect_lazy()
}
