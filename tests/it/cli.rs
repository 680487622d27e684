//! The command line from end to end, as processes: what is printed where, tables for people and
//! JSON for programs, and the exit codes that scripts rest on: 0 done, 1 refused, 2 usage, 3 unreachable.
//! Here: preparing a database, health, and the exit codes. `objects`: keys, organizations, usage and audit.
//! `dev`: `serve --dev`, the newcomer's first command. (`harness::cli` is what runs the processes.)

mod dev;
mod objects;

use std::io::Write as _;

use keystead::proto::v1::ListOrganizationsRequest;
use serde_json::json;

use crate::harness::cli::{self, Ran};
use crate::harness::{Engine, Server, TestDatabase, create_organization, keystead_command, store_test, verify};

const MIGRATIONS: usize = 13;

fn is_a_secret(text: &str) -> bool {
    let random = text.strip_prefix("pk_live_").unwrap_or_default();
    random.len() == 43 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

store_test!(init_prints_the_secret_alone_and_refuses_a_second_time);
async fn init_prints_the_secret_alone_and_refuses_a_second_time(database: TestDatabase) {
    let first = cli::on_database(&database, &["init"]);
    assert_eq!(first.code, 0, "{first:?}");
    let secret = first.stdout.strip_suffix('\n').expect("a whole line").to_owned();
    assert!(is_a_secret(&secret), "the secret is the only line on standard output");
    assert!(!first.stderr.contains(&secret[8..]), "and nowhere else");

    let second = cli::on_database(&database, &["init"]);
    assert_eq!((second.code, second.stdout.as_str()), (1, ""), "{second:?}");
    assert!(second.stderr.contains("has been initialized"), "{second:?}");
    assert_eq!(database.query_i64("SELECT count(*) FROM api_keys").await, 1);
    assert_eq!(database.query_i64("SELECT count(*) FROM organizations").await, 1);
}

store_test!(of_several_inits_at_once_one_prints_a_secret);
async fn of_several_inits_at_once_one_prints_a_secret(database: TestDatabase) {
    let runs: Vec<Ran> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| cli::on_database(&database, &["init"]))).collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    let printed: Vec<&Ran> = runs.iter().filter(|ran| !ran.stdout.is_empty()).collect();
    assert_eq!(printed.len(), 1, "{runs:?}");
    assert_eq!(printed[0].code, 0);
    assert!(runs.iter().filter(|ran| ran.stdout.is_empty()).all(|ran| ran.code == 1), "{runs:?}");
    assert_eq!(database.query_i64("SELECT count(*) FROM api_keys").await, 1);
}

store_test!(migrations_go_up_are_told_and_go_down_with_consent_alone);
async fn migrations_go_up_are_told_and_go_down_with_consent_alone(database: TestDatabase) {
    let run = |arguments: &[&str]| cli::on_database(&database, arguments);
    let count = |ran: &Ran, word: &str| ran.stdout.matches(word).count();
    let status = run(&["migrate", "status"]);
    assert_eq!((status.code, count(&status, "pending")), (0, MIGRATIONS), "{status:?}");

    let up = run(&["migrate", "up"]);
    assert_eq!((up.code, count(&up, "applied m")), (0, MIGRATIONS), "{up:?}");
    let again = run(&["migrate", "up"]);
    assert_eq!((again.code, again.stdout.as_str()), (0, "nothing to do: none applied\n"));
    let status = run(&["migrate", "status"]);
    assert_eq!((count(&status, "applied"), count(&status, "pending")), (MIGRATIONS, 0), "{status:?}");

    // Without a terminal and without `--yes` there is nobody to agree.
    let refused = run(&["migrate", "down"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("loses") && refused.stderr.contains("--yes"), "{refused:?}");
    assert_eq!(count(&run(&["migrate", "status"]), "applied"), MIGRATIONS);

    let down = run(&["migrate", "down", "--yes"]);
    assert_eq!((down.code, count(&down, "undone m")), (0, 1), "{down:?}");
    assert!(down.stderr.contains("loses"), "what is lost is named in any case: {down:?}");
    let status = run(&["migrate", "status"]);
    assert_eq!((count(&status, "applied"), count(&status, "pending")), (MIGRATIONS - 1, 1), "{status:?}");

    let all = run(&["migrate", "down", "--yes", "--steps", "1000"]);
    assert_eq!((all.code, count(&all, "undone m")), (0, MIGRATIONS - 1), "{all:?}");
    assert_eq!(run(&["migrate", "down", "--yes"]).stdout, "nothing to do: none undone\n");
    assert_eq!(run(&["init"]).code, 0, "and up again from nothing");
}

store_test!(health_exits_with_zero_when_serving_alone);
async fn health_exits_with_zero_when_serving_alone(database: TestDatabase) {
    let mut server = Server::start(&database, &[]).await;
    let health = |arguments: &[&str]| {
        let mut command = cli::bare();
        command.arg("health").args(["--address", &format!("http://{}", server.address())]).args(arguments);
        cli::run(command, "")
    };
    let ran = health(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "SERVING\n"), "no token is needed: {ran:?}");
    let ran = health(&["--service", "keystead.v1.KeyService", "--output", "json"]);
    assert_eq!(ran.json(), json!({"service": "keystead.v1.KeyService", "status": "SERVING"}));
    let ran = health(&["--service", "keystead.v1.Nothing"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let address = format!("http://{}", server.address());
    server.kill9();
    let mut command = cli::bare();
    command.args(["health", "--address", &address]);
    let ran = cli::run(command, "");
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    assert!(ran.stderr.contains(&address), "{ran:?}");
}

#[tokio::test]
async fn health_exits_with_one_before_the_database_answers() {
    // PostgreSQL alone: SQLite never keeps the start waiting.
    let database = TestDatabase::new(Engine::Postgres).await;
    let mut server = Server::start(&database, &[]).await;
    server.sigterm();
    assert!(server.wait_exit().await.success());
    database.cut_off().await;
    let mut server = Server::launch(&database, &[]);
    server.wait_until_listening().await;
    let ran = cli::as_admin(&server, &["health"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "NOT_SERVING\n"), "{ran:?}");
    let ran = cli::as_admin(&server, &["organizations", "list"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("UNAVAILABLE"), "{ran:?}");
    database.let_back().await;
}

store_test!(each_way_to_fail_has_its_exit_code_and_says_why);
async fn each_way_to_fail_has_its_exit_code_and_says_why(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let address = format!("http://{}", server.address());
    let with = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = cli::bare();
        command.envs(variables.iter().copied()).args(arguments);
        cli::run(command, "")
    };
    let expect = |ran: Ran, code: i32, part: &str| {
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
        assert!(ran.stderr.contains(part), "{part:?} is not in {ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
    };
    let token = ("KEYSTEAD_TOKEN", server.admin_secret());
    let at = ("KEYSTEAD_ADDRESS", address.as_str());

    expect(with(&[], &[]), 2, "Usage");
    expect(with(&[], &["nothing"]), 2, "nothing");
    expect(with(&[token, at], &["keys", "get"]), 2, "ID");
    expect(with(&[token, at], &["keys", "create", "--name", "x"]), 2, "--organization");
    expect(with(&[token, at], &["keys", "get", "x", "--output", "yaml"]), 2, "yaml");
    expect(with(&[at], &["keys", "get", "x"]), 2, "KEYSTEAD_TOKEN");
    expect(with(&[("KEYSTEAD_TOKEN", "two words"), at], &["keys", "get", "x"]), 2, "token");
    expect(with(&[token, ("KEYSTEAD_ADDRESS", "nowhere")], &["keys", "get", "x"]), 2, "KEYSTEAD_ADDRESS");
    expect(with(&[token, at, ("KEYSTEAD_TIMEOUT_MS", "soon")], &["keys", "get", "x"]), 2, "KEYSTEAD_TIMEOUT_MS");
    expect(with(&[], &["serve", "--concurrent-streams-max", "1", "--listen", "x"]), 2, "--concurrent-streams-max");
    expect(with(&[("KEYSTEAD_DATABASE_URL", "mysql://x")], &["serve"]), 2, "KEYSTEAD_DATABASE_URL");

    expect(with(&[("KEYSTEAD_TOKEN", "pk_live_x"), at], &["keys", "get", "x"]), 1, "UNAUTHENTICATED");
    expect(with(&[token, at], &["keys", "get", "x"]), 1, "INVALID_ARGUMENT");
    let absent = "0198c7a4-5b7e-7c3a-9f00-2f1d6a8b9c0d";
    expect(with(&[token, at], &["keys", "get", absent]), 1, "NOT_FOUND");
    expect(with(&[token, at], &["audit", "verify", "--head", "1:xx"]), 2, "SEQUENCE:HASH");

    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let closed = format!("http://{closed}");
    expect(with(&[token, ("KEYSTEAD_ADDRESS", &closed)], &["keys", "get", absent]), 3, &closed);
    // A peer that accepts and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}", silent.local_addr().expect("an address"));
    let variables = [token, ("KEYSTEAD_ADDRESS", silent.as_str()), ("KEYSTEAD_TIMEOUT_MS", "300")];
    expect(with(&variables, &["keys", "get", absent]), 3, &silent);

    let help = with(&[], &["--help"]);
    assert_eq!(help.code, 0);
    assert!(
        help.stdout.contains("Exit codes: 0 done, 1 refused, 2 wrong command line or configuration, 3"),
        "{help:?}"
    );
    assert_eq!(with(&[], &["--version"]).code, 0);
}

#[tokio::test]
async fn all_problems_of_a_configuration_are_told_at_once_without_its_secrets() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let file = database.folder().join("keystead.toml");
    let text = "listen = \"nowhere\"\nverify-timeout-ms = 0\nlistem = 1\ndatabase-url = \"oracle://u:hunter2@h/d\"\n";
    std::fs::write(&file, text).expect("written");
    let mut command = cli::bare();
    command.args(["serve", "--config", file.to_str().expect("text"), "--log-format", "xml"]);
    let ran = cli::run(command, "");
    assert_eq!(ran.code, 2, "{ran:?}");
    for part in ["listen", "verify-timeout-ms", "listem", "database-url", "--log-format", "line 1", "line 2", "line 3"]
    {
        assert!(ran.stderr.contains(part), "{part:?} is not in {ran:?}");
    }
    assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
}

#[tokio::test]
async fn a_flag_beats_a_variable_which_beats_the_file() {
    let database = TestDatabase::new(Engine::Sqlite).await;
    let server = Server::start(&database, &[]).await;
    let good = format!("http://{}", server.address());
    let file = database.folder().join("keystead.toml");
    let run = |in_file: &str, variable: &str, flag: &str| {
        std::fs::write(&file, format!("address = \"{in_file}\"\n")).expect("written");
        let mut command = cli::bare();
        command.args(["health", "--config", file.to_str().expect("text")]);
        if !variable.is_empty() {
            command.env("KEYSTEAD_ADDRESS", variable);
        }
        if !flag.is_empty() {
            command.args(["--address", flag]);
        }
        cli::run(command, "").code
    };
    let bad = "http://127.0.0.1:1";
    assert_eq!(run(&good, "", ""), 0);
    assert_eq!(run(bad, &good, ""), 0);
    assert_eq!(run(bad, bad, &good), 0);
    assert_eq!(run(&good, &good, bad), 3);
    assert_eq!(run(&good, bad, ""), 3);
}

store_test!(the_token_comes_from_the_variable_a_file_or_standard_input_and_never_from_an_argument);
async fn the_token_comes_from_the_variable_a_file_or_standard_input_and_never_from_an_argument(database: TestDatabase) {
    let server = Server::start(&database, &[]).await;
    let secret = server.admin_secret();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "{secret}").expect("written");
    let path = file.path().to_str().expect("text").to_owned();
    let list = |variables: &[(&str, &str)], arguments: &[&str], stdin: &str| {
        let mut command = cli::bare();
        command.env("KEYSTEAD_ADDRESS", format!("http://{}", server.address()));
        command.envs(variables.iter().copied()).args(["organizations", "list"]).args(arguments);
        cli::run(command, stdin).code
    };
    assert_eq!(list(&[("KEYSTEAD_TOKEN", secret)], &[], ""), 0);
    assert_eq!(list(&[], &["--token-file", &path], ""), 0);
    assert_eq!(list(&[("KEYSTEAD_TOKEN_FILE", &path)], &[], ""), 0);
    assert_eq!(list(&[], &["--token-file", "-"], &format!("{secret}\n")), 0);
    assert_eq!(list(&[("KEYSTEAD_TOKEN", "wrong")], &["--token-file", &path], ""), 0, "a flag beats a variable");
    assert_eq!(list(&[], &["--token", secret], ""), 2);
    assert_eq!(list(&[], &["--token-file", "/nowhere/token"], ""), 2);
}

store_test!(serve_migrates_when_told_to_and_a_server_without_init_says_what_to_do);
async fn serve_migrates_when_told_to_and_a_server_without_init_says_what_to_do(database: TestDatabase) {
    // Everything but `init`, which the harness would run.
    let mut command = keystead_command(&database);
    command.args(["serve", "--migrate", "--listen", "127.0.0.1:0"]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("keystead runs");
    let (lines, seen) = std::sync::mpsc::channel();
    let stderr = std::io::BufReader::new(child.stderr.take().expect("piped"));
    std::thread::spawn(move || {
        std::io::BufRead::lines(stderr).try_for_each(|line| lines.send(line.unwrap_or_default()))
    });
    let mut told = false;
    let patience = std::time::Duration::from_mins(1);
    while let Ok(line) = seen.recv_timeout(patience) {
        told |= line.contains("keystead init");
        if line.contains(" ready") {
            break;
        }
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(told, "a server that nobody can call says why");
    let server = Server::start(&database, &[]).await;
    create_organization(&server, "acme").await;
    let all = server.organizations().list_organizations(ListOrganizationsRequest::default()).await.expect("a list");
    assert_eq!(all.into_inner().organizations.len(), 2);
    verify(&server, server.admin_secret()).await;
}
