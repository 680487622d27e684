//! The `keystead` binary as a child, on a database of the benchmark's, with the settings that it has by itself but for
//! its port. Its log goes to a file, as a supervisor's would, and is emptied between runs.
//! Invariant: the child ends when this is dropped.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use keystead::proto::v1::key_service_client::KeyServiceClient;
use keystead::proto::v1::organization_service_client::OrganizationServiceClient;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Failure, database::Database};

/// How long a server may take to serve.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// The largest answer that set-up code reads: a page of a thousand keys.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A channel that sends a caller's secret with every call.
type Authorized = InterceptedService<Channel, Bearer>;

/// A client of `KeyService`.
pub type Keys = KeyServiceClient<Authorized>;

/// Adds `authorization: Bearer SECRET`.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A running `keystead serve`.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// The secret of the first admin key.
    pub admin: String,
    log: PathBuf,
}

impl Server {
    /// Prepares the database, starts the service with `arguments` after `serve`, and waits until it serves.
    pub async fn start(database: &Database, arguments: &[&str]) -> Result<Self, Failure> {
        let output = command(database).arg("init").stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(format!("keystead init: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let admin = String::from_utf8(output.stdout)?.trim().to_owned();
        Self::launch(database, admin, "keystead.log", arguments).await
    }

    /// Starts one more server on this one's database, which is PostgreSQL's, and waits until it serves. `number` tells
    /// it from the others, and is not 0.
    pub async fn start_replica(&self, database: &Database, number: usize) -> Result<Self, Failure> {
        Self::launch(database, self.admin.clone(), &format!("keystead-{number}.log"), &[]).await
    }

    async fn launch(database: &Database, admin: String, log: &str, arguments: &[&str]) -> Result<Self, Failure> {
        let log = database.folder().join(log);
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = command(database);
        command.arg("serve").args(arguments).env("KEYSTEAD_LISTEN", "127.0.0.1:0").stdin(Stdio::null());
        command.env("KEYSTEAD_METRICS_LISTEN", "off");
        command.stdout(file.try_clone()?).stderr(file);
        if database.plan.quick {
            // Where it is only to be seen that everything works, the machine may be busy and the program unoptimised.
            command.env("KEYSTEAD_VERIFY_TIMEOUT_MS", "30000");
        }
        let mut server = Self { child: command.spawn()?, address: SocketAddr::from(([127, 0, 0, 1], 0)), admin, log };
        server.wait_until_serving().await?;
        Ok(server)
    }

    /// The process's id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Empties the log, which grows by a line for each call.
    pub fn empty_log(&self) -> Result<(), Failure> {
        Ok(File::options().write(true).open(&self.log)?.set_len(0)?)
    }

    /// `KeyService` as the first admin.
    pub fn keys(&self) -> Result<Keys, Failure> {
        let client = KeyServiceClient::with_interceptor(self.channel()?, self.bearer()?);
        Ok(client.max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// `OrganizationService` as the first admin.
    pub fn organizations(&self) -> Result<OrganizationServiceClient<Authorized>, Failure> {
        Ok(OrganizationServiceClient::with_interceptor(self.channel()?, self.bearer()?))
    }

    fn channel(&self) -> Result<Channel, Failure> {
        Ok(Endpoint::from_shared(format!("http://{}", self.address))?.connect_lazy())
    }

    fn bearer(&self) -> Result<Bearer, Failure> {
        Ok(Bearer(format!("Bearer {}", self.admin).parse()?))
    }

    async fn wait_until_serving(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("keystead ended at its start: {status}: {}", fs::read_to_string(&self.log)?).into());
            }
            if let Some(address) = listening_address(&self.log)? {
                self.address = address;
                let answer = HealthClient::new(self.channel()?).check(HealthCheckRequest::default()).await;
                if answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
                    return Ok(());
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(format!("keystead does not serve: {}", fs::read_to_string(&self.log)?).into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the line `listening ... address=127.0.0.1:PORT`.
fn listening_address(log: &Path) -> Result<Option<SocketAddr>, Failure> {
    let text = fs::read_to_string(log)?;
    let line = text.lines().find(|line| line.contains("listening") && line.contains("127.0.0.1:"));
    let address = line.and_then(|line| line.split_once("127.0.0.1:")).and_then(|(_, rest)| {
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        rest.get(..end)?.parse::<u16>().ok()
    });
    Ok(address.map(|port| SocketAddr::from(([127, 0, 0, 1], port))))
}

/// `keystead` with no setting but the database, whatever this process's environment says.
fn command(database: &Database) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KEYSTEAD_")) {
        command.env_remove(variable);
    }
    // In the environment, because the URL of PostgreSQL holds a password and a process list shows arguments.
    command.env("KEYSTEAD_DATABASE_URL", &database.url).current_dir(database.folder());
    command
}
