//! Finds the programs that the tests need and did not build: PostgreSQL's, MariaDB's, Redis, libfaketime, curl, grpcurl,
//! Python with grpcio.
//! `tests/run` installs them and says where they are through the environment; without it the usual
//! places are searched. A program that is not there fails the test with words on what to do.
//! Invariant: with CI=true no client is ever left out.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folder that holds `initdb`, `postgres` and `pg_ctl`: the newest version where there are several.
pub fn postgres_folder() -> PathBuf {
    let mut folders: Vec<PathBuf> = env::var_os("KEYSTEAD_TEST_POSTGRES_BIN").map(PathBuf::from).into_iter().collect();
    let mut versions = installed_postgres_versions();
    versions.sort_by_key(|folder| std::cmp::Reverse(version_in(folder)));
    folders.extend(versions);
    folders.extend(search_path());
    folders
        .into_iter()
        .find(|folder| ["initdb", "postgres", "pg_ctl"].iter().all(|name| folder.join(name).is_file()))
        .unwrap_or_else(|| {
            panic!(
                "The PostgreSQL server programs (initdb, postgres, pg_ctl) were not found. Run the tests \
                 with ./tests/run, which installs them; or install the server package by hand (Debian, \
                 Ubuntu, Alpine: postgresql; Fedora: postgresql-server; macOS: brew install postgresql@17) \
                 or name their folder in KEYSTEAD_TEST_POSTGRES_BIN."
            )
        })
}

/// MariaDB's server, and the program that fills its folder. They may be in two folders; `KEYSTEAD_TEST_MARIADB_BIN` names
/// one or both, as PATH would.
pub fn mariadb() -> (PathBuf, PathBuf) {
    let named = env::var_os("KEYSTEAD_TEST_MARIADB_BIN").map(|folders| env::split_paths(&folders).collect::<Vec<_>>());
    let usual =
        ["/usr/sbin", "/usr/libexec", "/usr/bin", "/opt/homebrew/opt/mariadb/bin", "/usr/local/opt/mariadb/bin"];
    let folders: Vec<PathBuf> =
        named.unwrap_or_default().into_iter().chain(search_path()).chain(usual.map(PathBuf::from)).collect();
    let find = |names: [&str; 2]| {
        let mut files = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
        files.find(|path| path.is_file()).unwrap_or_else(|| {
            panic!(
                "The program {} of MariaDB was not found. Run the tests with ./tests/run, which installs it; or install \
                 it by hand (Debian, Ubuntu, Fedora: mariadb-server; Alpine: mariadb; macOS: brew install mariadb) or \
                 name its folder in KEYSTEAD_TEST_MARIADB_BIN.",
                names[0]
            )
        })
    };
    (find(["mariadbd", "mysqld"]), find(["mariadb-install-db", "mysql_install_db"]))
}

/// The program `redis-server`.
pub fn redis_server() -> PathBuf {
    let named = env::var_os("KEYSTEAD_TEST_REDIS_SERVER").map(PathBuf::from);
    let on_path = search_path().into_iter().map(|folder| folder.join("redis-server"));
    named.into_iter().chain(on_path).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "The program redis-server (Redis 7.0 or newer) was not found. Run the tests with ./tests/run, which \
             installs it; or install it by hand (Debian, Ubuntu: redis-server; Fedora, Alpine: redis; macOS: brew \
             install redis) or name it in KEYSTEAD_TEST_REDIS_SERVER."
        )
    })
}

/// The library that the program `faketime` loads, best the one for programs with several threads.
pub fn faketime() -> PathBuf {
    let named = env::var_os("KEYSTEAD_TEST_FAKETIME").map(PathBuf::from);
    // Debian has a folder for each architecture.
    let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let others = ["/usr/lib", "/usr/lib64", "/opt/homebrew/lib", "/usr/local/lib"].map(PathBuf::from);
    let files = ["libfaketimeMT.so.1", "libfaketime.so.1", "libfaketimeMT.1.dylib", "libfaketime.1.dylib"];
    let found = libraries.chain(others).flat_map(|folder| files.map(|file| folder.join("faketime").join(file)));
    named.into_iter().chain(found).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "The library libfaketime was not found. Run the tests with ./tests/run, which installs it; or install it \
             by hand (Debian, Ubuntu: faketime; Fedora, Alpine: libfaketime; macOS: brew install libfaketime) or name \
             the file, such as libfaketimeMT.so.1, in KEYSTEAD_TEST_FAKETIME."
        )
    })
}

/// grpcurl, or `None` where this run was told to do without it.
pub fn grpcurl() -> Option<PathBuf> {
    client(
        "grpcurl",
        "KEYSTEAD_TEST_GRPCURL",
        "KEYSTEAD_TEST_SKIP_GRPCURL",
        &["bin/grpcurl"],
        "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3",
    )
}

/// A Python that can import what `tests/clients/requirements.txt` names, or `None` where this run was
/// told to do without it.
pub fn python() -> Option<PathBuf> {
    client(
        "Python grpcio",
        "KEYSTEAD_TEST_PYTHON",
        "KEYSTEAD_TEST_SKIP_PYTHON",
        &["venv/bin/python"],
        "python3 -m venv target/test-tools/venv && \
         target/test-tools/venv/bin/pip install -r tests/clients/requirements.txt",
    )
}

/// A search path on which an operator's shell finds what the pages call: `keystead`, PostgreSQL's programs, curl, and
/// grpcurl where there is one.
pub fn operators_path() -> OsString {
    let keystead = Path::new(env!("CARGO_BIN_EXE_keystead")).parent().map(Path::to_path_buf);
    let grpcurl = grpcurl().and_then(|path| path.parent().map(Path::to_path_buf));
    let folders: Vec<PathBuf> =
        keystead.into_iter().chain([postgres_folder()]).chain(grpcurl).chain(search_path()).collect();
    for (program, packages) in [
        ("psql", POSTGRES_CLIENTS),
        ("pg_dump", POSTGRES_CLIENTS),
        ("pg_restore", POSTGRES_CLIENTS),
        ("pg_basebackup", POSTGRES_CLIENTS),
        ("pg_verifybackup", POSTGRES_CLIENTS),
        ("curl", "curl"),
    ] {
        assert!(
            folders.iter().any(|folder| folder.join(program).is_file()),
            "The program {program} was not found. Run the tests with ./tests/run, which installs it; or install it by \
             hand: {packages}."
        );
    }
    env::join_paths(folders).expect("folders without a colon in their names")
}

/// The packages with PostgreSQL's clients.
const POSTGRES_CLIENTS: &str =
    "Debian, Ubuntu, Fedora: they come with the server; Alpine: postgresql-client; macOS: brew install postgresql@17";

/// The repository's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn client(name: &str, variable: &str, skip: &str, own: &[&str], by_hand: &str) -> Option<PathBuf> {
    let in_ci = env::var("CI").is_ok_and(|value| value == "true");
    if env::var(skip).is_ok_and(|value| value == "1") && !in_ci {
        return None;
    }
    let tools = repository().join("target/test-tools");
    let named = env::var_os(variable).map(PathBuf::from);
    let installed = own.iter().map(|path| tools.join(path));
    let on_path = search_path().into_iter().map(|folder| folder.join(name));
    let found = named.into_iter().chain(installed).chain(on_path).find(|path| path.is_file());
    assert!(
        found.is_some(),
        "The client {name} was not found. Run the tests with ./tests/run, which installs it; or install it \
         by hand:\n  {by_hand}\nor name it in {variable}. To leave it out, outside CI only, set {skip}=1."
    );
    found
}

fn installed_postgres_versions() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (parent, prefix, bin) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr/libexec", "postgresql", ""),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
    ] {
        let Ok(entries) = std::fs::read_dir(parent) else {
            continue;
        };
        found.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
                .map(|entry| entry.path().join(bin)),
        );
    }
    found
}

/// The last number in a path, such as 17 in `/usr/lib/postgresql/17/bin`.
fn version_in(folder: &Path) -> u32 {
    let text = folder.to_string_lossy();
    text.rsplit(|letter: char| !letter.is_ascii_digit()).find_map(|digits| digits.parse().ok()).unwrap_or(0)
}

fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}
