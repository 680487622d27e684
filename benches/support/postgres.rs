//! A PostgreSQL for one benchmark: in a temporary folder, as an ordinary user even where the benchmark runs as root,
//! reachable on 127.0.0.1 alone, with fsync on and the memory of a small server.
//! It runs in the script that the tests use too, which stops it when this process ends, however it ends.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{Failure, plan::Plan};

/// What a small server of one's own would be set to. The script's own values suit many tests at once.
const SETTINGS: &str = "shared_buffers = 512MB\nmax_wal_size = 4GB\n";

/// What has the server count statements.
const COUNTING: &str = "shared_preload_libraries = 'pg_stat_statements'\n";

/// A running server, with its administrator's password.
pub struct Postgres {
    pub port: u16,
    pub password: String,
    pub programs: PathBuf,
    /// Whether the extension `pg_stat_statements` can be created.
    pub counts_statements: bool,
    folder: PathBuf,
    /// The script. It stops the server when its standard input closes.
    script: Child,
}

impl Postgres {
    /// Starts one.
    pub fn start(plan: Plan) -> Result<Self, Failure> {
        Self::run(programs()?, plan, false)
    }

    /// Starts one that counts statements, where it comes with what counts them.
    pub fn start_counting(plan: Plan) -> Result<Self, Failure> {
        let programs = programs()?;
        let counts_statements = can_count_statements(&programs);
        Self::run(programs, plan, counts_statements)
    }

    fn run(programs: PathBuf, plan: Plan, counts_statements: bool) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("keystead-postgres-").tempdir()?.keep();
        let password = u128::from_ne_bytes(keystead::random::bytes()).to_string();
        fs::write(folder.join("password"), &password)?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(include_str!("../../tests/it/harness/postgres.sh")).arg("postgres");
        command.arg(&folder).arg(&programs).args(free_ports()?.iter().map(u16::to_string));
        command.current_dir(&folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.process_group(0).env("LC_ALL", "C");
        let counting = if counts_statements { COUNTING } else { "" };
        command.env("KEYSTEAD_POSTGRES_SETTINGS", format!("{}{counting}", plan.sized(SETTINGS, "")));
        for (variable, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(variable);
        }
        become_ordinary_user(&mut command, &folder)?;
        let mut script = command.spawn()?;
        let mut output = BufReader::new(script.stdout.take().ok_or("a piped standard output")?);
        let mut answer = String::new();
        output.read_line(&mut answer)?;
        let Some(port) = answer.trim().strip_prefix("ready ").and_then(|port| port.parse().ok()) else {
            output.read_to_string(&mut answer)?;
            return Err(format!("PostgreSQL from {} did not start: {answer}", programs.display()).into());
        };
        Ok(Self { port, password, programs, counts_statements, folder, script })
    }

    /// The one database that every server begins with.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
        // The script has removed it, unless it was itself killed.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The folder with `initdb`, `postgres`, `pg_ctl` and `pgbench`: the one that `tests/run` names, the newest of those
/// that Debian keeps, or one on the search path.
fn programs() -> Result<PathBuf, Failure> {
    let named = env::var_os("KEYSTEAD_TEST_POSTGRES_BIN").map(PathBuf::from);
    let mut versions: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    let versions = versions.into_iter().rev().map(|version| version.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let holds_all = |folder: &Path| {
        ["initdb", "postgres", "pg_ctl", "pgbench"].iter().all(|program| folder.join(program).is_file())
    };
    named.into_iter().chain(versions).chain(env::split_paths(&path)).find(|folder| holds_all(folder)).ok_or_else(|| {
        "initdb, postgres, pg_ctl and pgbench were not found in one folder. ./tests/run --provide-only installs them \
         on Debian and Ubuntu; elsewhere pgbench may be in the package postgresql-contrib. \
         KEYSTEAD_TEST_POSTGRES_BIN names the folder."
            .into()
    })
}

/// Whether the module that counts statements is installed. Its folder is beside the programs, where it has one of
/// several names.
fn can_count_statements(programs: &Path) -> bool {
    let folders = ["../lib", "../lib64", "../lib/postgresql", "../lib64/pgsql", "../lib/pgsql"];
    folders.iter().any(|folder| programs.join(folder).join("pg_stat_statements.so").is_file())
}

/// PostgreSQL refuses to run as root, so root hands the folder and the process to an ordinary user.
fn become_ordinary_user(command: &mut Command, folder: &Path) -> Result<(), Failure> {
    if id("-u", None) != Some(0) {
        return Ok(());
    }
    let user = ["postgres", "nobody"].into_iter().find(|name| id("-u", Some(name)).is_some_and(|uid| uid != 0));
    let user = user.ok_or("root needs a user called `postgres` or `nobody` to run PostgreSQL as; add one")?;
    let uid = id("-u", Some(user)).ok_or("the user's number")?;
    let gid = id("-g", Some(user)).ok_or("the group's number")?;
    for path in [folder, &folder.join("password")] {
        chown(path, Some(uid), Some(gid))?;
    }
    command.uid(uid).gid(gid);
    Ok(())
}

fn id(flag: &str, user: Option<&str>) -> Option<u32> {
    let output = Command::new("id").arg(flag).args(user).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// Ports that were free a moment ago; more than one, because another process may take the first.
fn free_ports() -> Result<Vec<u16>, Failure> {
    let listeners: Vec<TcpListener> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<_, std::io::Error>>()?)
}
