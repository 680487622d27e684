//! How settings find their value, and what is said about those that are wrong.
//!
//! Flags are parsed by clap as in the binary; variables come from a map. Invariant: no test reads or changes the
//! environment of the process, so they run side by side.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Serve {
    #[command(flatten)]
    flags: Flags<ServeSettings>,
}

#[derive(Debug, Parser)]
struct Client {
    #[command(flatten)]
    flags: Flags<ClientSettings>,
}

fn serve_flags(line: &[&str]) -> Flags<ServeSettings> {
    Serve::try_parse_from(["serve"].iter().chain(line)).expect("flags").flags
}

fn client_flags(line: &[&str]) -> Flags<ClientSettings> {
    Client::try_parse_from(["client"].iter().chain(line)).expect("flags").flags
}

fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + use<> {
    let map: BTreeMap<String, OsString> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
    move |name| map.get(name).cloned()
}

fn load(line: &[&str], pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&serve_flags(line), &environment(pairs))
}

fn load_client(line: &[&str], pairs: &[(&str, &str)]) -> Result<ClientConfig, ConfigError> {
    ClientConfig::load(&client_flags(line), &environment(pairs))
}

/// A configuration file that lives as long as the first half of the answer.
fn file(content: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("keystead.toml");
    std::fs::write(&path, content).expect("a file");
    let path = path.to_str().expect("a path").to_owned();
    (directory, path)
}

#[test]
fn the_defaults_work_on_a_laptop() {
    let config = load(&[], &[]).expect("defaults");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:50051");
    assert!(config.server.reflection && !config.server.dev && config.server.tls.is_none());
    assert_eq!(config.server.verify_timeout, Duration::from_secs(2));
    assert_eq!(config.server.concurrent_streams_max, 1024);
    assert_eq!(config.server.message_bytes_max, 65_536);
    assert_eq!(config.cache.entry_age_max, Duration::from_mins(1));
    assert_eq!(config.cache.staleness_bound, Duration::from_secs(5));
    assert_eq!(config.limits.redis_url, None);
    assert_eq!(config.database.url.expose(), "sqlite://keystead.db");
    assert_eq!((config.usage.spool, config.usage.spool_bytes_max, config.usage.retention_days), (None, 256 << 20, 30));
    assert_eq!(config.telemetry.log_level, "info");
    let client = load_client(&[], &[]).expect("defaults");
    assert_eq!(client.address, "http://127.0.0.1:50051");
    assert!(matches!(client.token, TokenSource::Absent));
}

#[test]
fn a_flag_beats_a_variable_which_beats_the_file_which_beats_the_default() {
    let (_directory, path) = file("listen = '127.0.0.1:1'\nverify-timeout-ms = 1\nmigrate = true\n");
    let variables = [("KEYSTEAD_CONFIG", path.as_str()), ("KEYSTEAD_LISTEN", "127.0.0.1:2")];
    let port = |line: &[&str], pairs: &[(&str, &str)]| load(line, pairs).expect("good").server.listen.port();
    assert_eq!(port(&["--listen", "127.0.0.1:3"], &variables), 3);
    assert_eq!(port(&[], &variables), 2);
    assert_eq!(port(&["--config", &path], &[]), 1);
    assert_eq!(port(&[], &[]), 50_051);
    let config = load(&["--config", &path], &[]).expect("good");
    assert_eq!(config.server.verify_timeout, Duration::from_millis(1));
    assert!(config.database.migrate);
    let off = load(&["--config", &path, "--migrate=false"], &[]).expect("good");
    assert!(!off.database.migrate);
}

#[test]
fn an_empty_variable_is_an_absent_one() {
    let config = load(&[], &[("KEYSTEAD_LISTEN", ""), ("KEYSTEAD_CONFIG", "")]).expect("defaults");
    assert_eq!(config.server.listen.port(), 50_051);
}

#[test]
fn every_problem_is_reported_at_once_with_its_source() {
    let (_directory, path) = file(
        "cache_entries_max = 5\nspeed = 'fast'\nconcurrent-streams-max = 10\ncache-entry-age-max-ms = 60001\n\
         log-level = 'inof'\nmessage-bytes-max = [1]\n",
    );
    let error = load(
        &["--config", &path, "--listen", "localhost", "--tls-key", "key.pem", "--verify-timeout-ms", "-1"],
        &[("KEYSTEAD_REFLECTION", "yes"), ("KEYSTEAD_LOG_FORMAT", "xml")],
    )
    .expect_err("problems");
    let expected = [
        "line 1: unknown name \"cache_entries_max\" (did you mean \"cache-entries-max\"?)",
        "line 2: unknown name \"speed\"",
        "flag --listen: \"localhost\" is not an address",
        "variable KEYSTEAD_REFLECTION: \"yes\" is neither true nor false",
        "flag --tls-key: needs tls-certificate too",
        "flag --verify-timeout-ms: \"-1\" is not a whole number from 1 to 60000",
        "line 3, concurrent-streams-max: \"10\" is not a whole number from 256 to 1024",
        "line 6, message-bytes-max: must be text",
        "line 4, cache-entry-age-max-ms: \"60001\" is not a whole number from 0 to 60000",
        "variable KEYSTEAD_LOG_FORMAT: \"xml\" is neither text nor json",
        "line 5, log-level: \"inof\" is not a level",
    ];
    for text in expected {
        assert!(error.problems().iter().any(|problem| problem.contains(text)), "{text} is not in {error}");
    }
    assert_eq!(error.problems().len(), expected.len(), "{error}");
}

#[test]
fn a_file_that_is_not_toml_or_not_there_is_a_problem_beside_the_others() {
    let (_directory, path) = file("listen = \nlog-level = 'loud'\n");
    let error = load(&["--config", &path, "--dev=maybe"], &[]).expect_err("problems").to_string();
    assert!(error.contains("line 1: not TOML"), "{error}");
    assert!(error.contains("flag --dev: \"maybe\""), "{error}");
    let error = load(&["--config", "/nowhere/at/all.toml", "--dev=maybe"], &[]).expect_err("problems");
    assert_eq!(error.problems().len(), 2, "{error}");
}

#[test]
fn no_password_is_in_any_problem_or_debug_text() {
    let url = "mysql://u:hunter2@h/db";
    let (_directory, path) = file(&format!("database-url = '{url}'\nlisten = '{url}'\n"));
    let (_other_directory, broken) = file("listen = 1 2\ndatabase-url = postgres://u:hunter2@h/db\n");
    for error in [
        load(&["--database-url", url], &[]),
        load(&[], &[("KEYSTEAD_DATABASE_URL", url)]),
        load(&["--config", &path], &[]),
        load(&["--config", &broken], &[]),
    ] {
        let error = error.expect_err("problems");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let flags = serve_flags(&["--database-url", "postgres://u:hunter2@h/db"]);
    let config = Config::load(&flags, &environment(&[])).expect("good");
    assert!(!format!("{config:?} {flags:?}").contains("hunter2"));
    let client = load_client(&[], &[("KEYSTEAD_TOKEN", "hunter2")]).expect("good");
    assert!(!format!("{client:?}").contains("hunter2"));
}

#[test]
fn a_staleness_bound_has_a_unit_and_is_neither_shorter_nor_longer_than_what_can_be_kept() {
    let bound = |text: &str| load(&["--staleness-bound", text], &[]);
    for (text, seconds) in [("2s", 2), ("2000ms", 2), ("5s", 5), ("1m", 60), ("60m", 3600), ("3600s", 3600)] {
        let config = bound(text).expect(text);
        assert_eq!(config.cache.staleness_bound, Duration::from_secs(seconds), "{text}");
    }
    assert_eq!(bound("2001ms").expect("good").cache.staleness_bound, Duration::from_millis(2001));
    let refused = [
        ["500ms", "1999ms", "1s", "0s", "61m", "3601s", "3600001ms"],
        ["5", "s", "ms", "5 s", " 5s", "5S", "5sec"],
        ["", "+5s", "5.5s", "5e1s", "1h", "5s5", "1m30s"],
        [
            "18446744073709551615s",
            "18446744073709551616ms",
            "307445734561825861m",
            "\u{665}s",
            "5\u{2009}s",
            "s5",
            "5µs",
        ],
    ];
    for text in refused.into_iter().flatten() {
        let error = bound(text).expect_err(text);
        let expected =
            format!("flag --staleness-bound: {text:?} is not a time such as 500ms, 5s or 1m, from 2s to 3600s");
        assert_eq!(error.problems(), [expected]);
    }
    let error = load(&[], &[("KEYSTEAD_STALENESS_BOUND", "never")]).expect_err("problem");
    assert!(error.problems()[0].starts_with("variable KEYSTEAD_STALENESS_BOUND: \"never\" is not a time"), "{error}");
}

#[test]
fn a_redis_url_is_taken_from_every_source_and_shown_nowhere() {
    let good = "redis://u:hunter2@h:6379/1";
    let (_directory, path) = file(&format!("redis-url = '{good}'\n"));
    let flags = serve_flags(&["--redis-url", good]);
    for config in [
        Config::load(&flags, &environment(&[])),
        load(&[], &[("KEYSTEAD_REDIS_URL", good)]),
        load(&["--config", &path], &[]),
    ] {
        let config = config.expect("good");
        assert_eq!(config.limits.redis_url.as_ref().map(RedisUrl::expose), Some(good));
        assert!(!format!("{config:?} {flags:?}").contains("hunter2"));
    }
    // Wrong in many ways, the password in other places as well.
    for bad in [
        "hunter2",
        "http://u:hunter2@h",
        "redis://hunter2@h",
        "redis://u:hunter2@h:x",
        "redis://u:hunter2/@h",
        "redis://h/hunter2",
        "redis://h?password=hunter2",
        "redis://a:1,u:hunter2@b:x",
        "redis+cluster://:hunter2@a:1/0",
    ] {
        let (_directory, path) = file(&format!("redis-url = '{bad}'\n"));
        for (error, place) in [
            (load(&["--redis-url", bad], &[]), "flag --redis-url: ".to_owned()),
            (load(&[], &[("KEYSTEAD_REDIS_URL", bad)]), "variable KEYSTEAD_REDIS_URL: ".to_owned()),
            (load(&["--config", &path], &[]), format!("file {path}, line 1, redis-url: ")),
        ] {
            let error = error.expect_err(bad);
            assert!(error.problems().len() == 1 && error.problems()[0].starts_with(&place), "{bad}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{bad}: {error}");
        }
    }
    let (_directory, broken) = file("listen = 1 2\nredis-url = redis://u:hunter2@h\n");
    let error = load(&["--config", &broken], &[]).expect_err("problems");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}

#[test]
fn tls_files_come_together() {
    let line = ["--tls-certificate", "c", "--tls-key", "k", "--tls-client-ca", "a"];
    let tls = load(&line, &[]).expect("good").server.tls.expect("TLS");
    assert_eq!((tls.certificate, tls.client_ca), (PathBuf::from("c"), Some(PathBuf::from("a"))));
    for line in [["--tls-certificate", "c"], ["--tls-key", "k"], ["--tls-client-ca", "a"]] {
        assert_eq!(load(&line, &[]).expect_err("problem").problems().len(), 1);
    }
}

#[test]
fn a_batch_may_not_be_smaller_than_a_message() {
    let error = load(&["--message-bytes-max", "8192", "--batch-bytes-max", "4096"], &[]).expect_err("problem");
    assert_eq!(error.problems(), ["flag --batch-bytes-max: 4096 is less than message-bytes-max (8192)"]);
}

#[test]
fn a_bare_word_that_is_no_level_is_refused_and_directives_are_taken() {
    for level in ["debug", "INFO", "warn,keystead=trace", "off,h2=info"] {
        assert_eq!(load(&["--log-level", level], &[]).expect(level).telemetry.log_level, level);
    }
    for level in ["inof", "", "info,keystead", "keystead=loud"] {
        assert!(load(&["--log-level", level], &[]).is_err(), "{level}");
    }
}

#[test]
fn a_client_finds_its_token_and_refuses_tls_files_that_would_not_be_used() {
    let variables = [("KEYSTEAD_TOKEN", "t"), ("KEYSTEAD_TOKEN_FILE", "f")];
    assert!(matches!(load_client(&[], &variables).expect("good").token, TokenSource::Value(_)));
    let flag = load_client(&["--token-file", "-"], &variables).expect("good").token;
    assert!(matches!(flag, TokenSource::Stdin));
    assert!(matches!(load_client(&[], &variables[1..]).expect("good").token, TokenSource::File(_)));

    let secure = ["--address", "https://h:1", "--tls-ca", "ca"];
    assert!(load_client(&secure, &[]).expect("good").tls.is_some());
    assert!(load_client(&secure[..2], &[]).is_err());
    assert!(load_client(&secure[2..], &[]).is_err());
    for address in ["h:1", "ftp://h", "http://", "http://u:p@h", "http://h/path", "http://h?q"] {
        assert!(load_client(&["--address", address], &[]).is_err(), "{address}");
    }
}

#[test]
fn one_file_serves_all_commands_and_names_are_declared_once() {
    let (_directory, path) = file("listen = '127.0.0.1:1'\noutput = 'json'\ndatabase-url = 'sqlite://x'\n");
    assert!(load(&["--config", &path], &[]).is_ok());
    let client = load_client(&["--config", &path], &[]).expect("good");
    assert_eq!(client.output, OutputFormat::Json);

    let mut names: Vec<&str> = ALL_SECTIONS.iter().copied().flatten().map(|setting| setting.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
