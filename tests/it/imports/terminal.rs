//! What a run shows of how far it is: on a terminal a bar with the rate and the time left, drawn over itself; elsewhere
//! plain lines, now and then and at the end of a table. The terminal is a real one, made by Python's `pty`, and a row
//! keeps the run in its midst while it is looked at. A plain line is due after 5 s of the clock, which have to pass
//! here: as long as no rows come there is no line to be waited for. What lines say is tested beside the code, in
//! `src/cli/import/progress.rs`. Invariant: neither of them shows a key, nor a plain line what only a terminal reads.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, DatabaseConnection};

use super::under_way::{UnderWay, let_go};
use super::world::{World, texts_in};
use crate::harness::source::{Cell, SourceDatabase, SourceEngine, cell};
use crate::harness::{Engine, TestDatabase, tools, wait_until};

const ROWS: usize = 4000;
/// The row at which a run stops while the gate is closed.
const GATE_ROW: usize = 2000;
/// So few that a run takes many before that row.
const BATCH: &str = "20";
/// How often a plain line is printed at the most.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The source waits for as long as a statement may take.
const MAPPING: &str = r#"
source = "shown"
organization = "acme"
statement-timeout = "2m"

[[keys]]
table = "clients"
id = "id"
[keys.columns]
secret = "api_key"
name = "name"
[keys.values]
environment = "live"
"#;

/// One name becomes text by way of the gate.
const TABLES: &str = "
CREATE TYPE title AS (words text);
CREATE FUNCTION text_of(title) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
    IF ($1).words = 'gate' THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
    RETURN ($1).words;
END $$;
CREATE CAST (title AS text) WITH FUNCTION text_of(title);
CREATE TABLE clients (id bigint PRIMARY KEY, name title, api_key text);
CREATE TABLE other (number bigint)";

/// Sessions at the closed gate. What a session of another role waits for stands nowhere else.
const AT_GATE: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Runs a command on a terminal of 200 columns, and copies what it shows.
const ON_TERMINAL: &str = "
import fcntl, os, pty, struct, sys, termios
process, terminal = pty.fork()
if process == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 50, 200, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    try:
        shown = os.read(terminal, 65536)
    except OSError:
        break
    if not shown:
        break
    sys.stdout.buffer.write(shown)
    sys.stdout.buffer.flush()
_, status = os.waitpid(process, 0)
sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 255)
";

/// A command on a terminal. Dropped, it takes the terminal away, and the command ends with it.
struct Terminal {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn start(python: &Path, command: &Command) -> Self {
        let mut on_terminal = Command::new(python);
        on_terminal.arg("-c").arg(ON_TERMINAL).arg(command.get_program()).args(command.get_args());
        if let Some(folder) = command.get_current_dir() {
            on_terminal.current_dir(folder);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        on_terminal.env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = on_terminal.spawn().expect("Python runs");
        let mut output = child.stdout.take().expect("a piped standard output");
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let kept = shown.clone();
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..read]);
            }
        });
        Self { child, shown, reader: Some(reader) }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the process can be asked").is_some()
    }

    /// Waits for its end, which is to be a good one, and gives all that was shown.
    async fn ended(mut self) -> String {
        wait_until("the command on the terminal to end", async || self.has_ended()).await;
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a reader does not panic");
        }
        let status = self.child.wait().expect("the process has ended");
        assert!(status.success(), "{status}: {}", self.shown());
        self.shown()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing is left to do where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bar as it was drawn once.
#[derive(Debug)]
struct Bar {
    rows: usize,
    of: usize,
    /// Rows a second.
    rate: f64,
    /// The time left, in the unit of its size.
    left: u64,
}

/// The bars that were drawn, whole ones alone.
fn bars(shown: &str) -> Vec<Bar> {
    shown.split("clients [").skip(1).filter_map(bar).collect()
}

/// What follows its name, such as `====>    ] 1,200/4,000 rows, 812.5/s, 3s left`.
fn bar(text: &str) -> Option<Bar> {
    let (_, numbers) = text.split_once("] ")?;
    let (rows, numbers) = numbers.split_once('/')?;
    let (of, numbers) = numbers.split_once(" rows, ")?;
    let (rate, numbers) = numbers.split_once("/s, ")?;
    let (left, _) = numbers.split_once(" left")?;
    let plain = |number: &str| number.replace(',', "");
    let is_unit = |letter: char| letter.is_ascii_alphabetic();
    Some(Bar {
        rows: plain(rows).parse().ok()?,
        of: plain(of).parse().ok()?,
        rate: plain(rate).parse().ok()?,
        left: left.strip_suffix(is_unit)?.parse().ok()?,
    })
}

/// Every hundredth row holds a key that is refused.
async fn clients(world: &World) -> (SourceDatabase, Vec<String>) {
    let source = SourceDatabase::new(SourceEngine::Postgres).await;
    source.run(TABLES).await;
    let keys = world.keys.texts("client", ROWS);
    let row = |(at, key): (usize, &String)| -> Vec<Cell> {
        let name = if at == GATE_ROW { "(gate)".to_owned() } else { format!("(client {at})") };
        vec![cell((at + 1).to_string()), cell(name), cell(if at % 100 == 99 { "weak" } else { key })]
    };
    let rows: Vec<Vec<Cell>> = keys.iter().enumerate().map(row).collect();
    source.insert("clients", "id, name, api_key", &rows).await;
    (source, keys)
}

/// Closes the gate for as long as the connection lives.
async fn closed_gate(source: &SourceDatabase) -> DatabaseConnection {
    let held = source.lock("other").await;
    held.execute_unprepared("SELECT pg_advisory_xact_lock(1)").await.expect("nobody is at the gate yet");
    held
}

/// Whether a run stands at the gate, with rows written before it.
async fn is_at_gate(world: &World, source: &SourceDatabase) -> bool {
    let under_way = "SELECT count(*) FROM imports WHERE state = 'running' AND position <> ''";
    source.number(AT_GATE).await == 1 && world.database.query_i64(under_way).await == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_a_run_draws_a_bar_with_the_rate_and_the_time_left() {
    let Some(python) = tools::python() else {
        eprintln!("!!! CLIENT NOT TRIED: Python");
        return;
    };
    let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
    let (source, keys) = clients(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let gate = closed_gate(&source).await;
    let mut terminal = Terminal::start(&python, &import.command(&["run", "--batch", BATCH]));
    wait_until("the run to stand at the gate", async || {
        assert!(!terminal.has_ended(), "{}", terminal.shown());
        is_at_gate(&world, &source).await
    })
    .await;
    wait_until("a bar with the rate and the time left", async || {
        assert!(!terminal.has_ended(), "{}", terminal.shown());
        let drawn = bars(&terminal.shown());
        drawn.iter().any(|bar| (1..ROWS).contains(&bar.rows) && bar.rate > 0.0 && bar.left > 0)
    })
    .await;
    let before = bars(&terminal.shown()).len();
    wait_until("the bar to be drawn anew though nothing comes", async || bars(&terminal.shown()).len() > before).await;
    let_go(gate).await;
    let shown = terminal.ended().await;

    let drawn = bars(&shown);
    assert!(drawn.iter().all(|bar| bar.of == ROWS && bar.rows <= ROWS), "{drawn:?}");
    assert!(drawn.is_sorted_by_key(|bar| bar.rows), "{drawn:?}");
    assert!(shown.contains(" left, "), "refused rows stand in the bar: {shown:?}");
    assert!(shown.contains("\u{1b}[2K"), "a bar is drawn over the last one: {shown:?}");
    assert!(!shown.contains(" of 4000 rows"), "there is no plain line besides: {shown:?}");
    let (_, end) = shown.rsplit_once("clients: ").expect("a line at the end of the table");
    assert!(end.starts_with("4000 rows in ") && end.contains("/s, 40 refused\r\n"), "{end:?}");
    assert!(texts_in(shown.as_bytes(), &keys).is_empty(), "a key was shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_terminal_a_run_prints_plain_lines() {
    let world = World::new(TestDatabase::new(Engine::Sqlite).await, "acme").await;
    let (source, keys) = clients(&world).await;
    let import = world.import(&source.reader_url().await, MAPPING);
    let mut command = import.command(&["run", "--batch", BATCH]);
    command.env("TERM", "xterm");
    let gate = closed_gate(&source).await;
    let mut run = UnderWay::start(command);
    wait_until("the run to stand at the gate", async || {
        run.expect_running();
        is_at_gate(&world, &source).await
    })
    .await;
    let held = Instant::now();
    wait_until("a line to be due", async || held.elapsed() > LINE_INTERVAL).await;
    let_go(gate).await;
    let ran = run.ended().await;

    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stderr.contains(['\r', '\u{1b}']) && !ran.stdout.contains(['\r', '\u{1b}']), "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().filter_map(|line| line.strip_prefix("clients: ")).collect();
    let [due @ .., end] = lines.as_slice() else { panic!("{ran:?}") };
    assert!(!due.is_empty(), "{ran:?}");
    for line in due {
        let (rows, numbers) = line.split_once(" of 4000 rows, ").expect("how far it is");
        let (rate, left) = numbers.split_once("/s, ").expect("the rate");
        let rows: usize = rows.parse().expect("a number of rows");
        assert!((1..ROWS).contains(&rows) && rate.parse::<u64>().is_ok_and(|rate| rate > 0), "{line}");
        assert!(left.contains(" left"), "{line}");
    }
    assert!(end.starts_with("4000 rows in ") && end.ends_with("/s, 40 refused"), "{end}");
    assert!(ran.stdout.contains("WEAK_SECRET"), "the report is for people: {ran:?}");
    let printed = [ran.stdout, ran.stderr].concat();
    assert!(texts_in(printed.as_bytes(), &keys).is_empty(), "a key was printed");
}
