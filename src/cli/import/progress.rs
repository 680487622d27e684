//! How far an import is, on standard error: a bar with rate and time left on a terminal, elsewhere a line every few
//! seconds and one at the end of each table.
//! Must not print on standard output, which holds the report. Rows are named by table and id, never by what they hold.

use std::{
    io::{self, IsTerminal as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output;
use crate::import::{Event, report::rate};

/// How often a line is printed where nobody watches.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a bar is drawn anew while a batch takes long.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Of a table whose number of rows is known, and of one whose is not.
const BAR: &str = "{prefix} [{bar:32}] {human_pos}/{human_len} rows, {per_sec}, {eta} left{msg}";
const SPINNER: &str = "{prefix} {spinner} {human_pos} rows, {per_sec}{msg}";

/// What is told of one command.
pub(super) struct Progress {
    watched: bool,
    /// What bad rows are: refused, or mismatches.
    word: &'static str,
    table: Mutex<Option<Table>>,
}

/// The table that is being read.
struct Table {
    name: String,
    total: Option<u64>,
    /// Rows that an earlier run had read.
    before: u64,
    /// Rows of this run.
    done: u64,
    bad: u64,
    /// What `bad` counts.
    word: &'static str,
    begun: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Nothing told yet; `word` says what bad rows are.
    pub(super) fn new(word: &'static str) -> Self {
        Self { watched: io::stderr().is_terminal(), word, table: Mutex::new(None) }
    }

    /// Tells of an event.
    pub(super) fn tell(&self, event: &Event<'_>) {
        let mut table = self.table();
        match *event {
            Event::Table { table: name, kind, total, before } => {
                // A file has no name of a table.
                let name = if name.is_empty() { kind.as_str() } else { name };
                *table = Some(Table::new(output::escape(name), total, before, self.word, self.watched));
            }
            Event::Rows { done, bad } => {
                if let Some(table) = table.as_mut() {
                    table.advance(done, bad);
                }
            }
            Event::Mismatch { table: name, id, reason } => {
                let line =
                    format!("mismatch: table {}, row {}: {}", quoted(name), output::escape(id), output::escape(reason));
                aside(table.as_ref(), &line);
            }
            Event::Remark(text) => aside(table.as_ref(), &output::escape(text)),
            Event::End => {
                if let Some(table) = table.take() {
                    table.end();
                }
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file has no name of a table.
fn quoted(name: &str) -> String {
    if name.is_empty() { "-".to_owned() } else { output::escape(name) }
}

/// A line that a bar must not overwrite.
fn aside(table: Option<&Table>, line: &str) {
    match table.and_then(|table| table.bar.as_ref()) {
        Some(bar) => bar.suspend(|| output::note(line)),
        None => output::note(line),
    }
}

impl Table {
    fn new(name: String, total: Option<u64>, before: u64, word: &'static str, watched: bool) -> Self {
        let now = Instant::now();
        let bar = watched.then(|| bar(&name, total, before));
        Self { name, total, before, done: 0, bad: 0, word, begun: now, told: now, bar }
    }

    fn advance(&mut self, done: u64, bad: u64) {
        (self.done, self.bad) = (done, bad);
        if let Some(bar) = &self.bar {
            bar.set_position(self.before + done);
            bar.set_message(self.bad_words());
        } else if self.told.elapsed() >= LINE_INTERVAL {
            self.told = Instant::now();
            output::note(&self.line(self.begun.elapsed()));
        }
    }

    fn end(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let elapsed = self.begun.elapsed();
        let (name, done, bad) = (&self.name, self.done, self.bad_words());
        let (seconds, rate) = (elapsed.as_secs_f64(), rate(done, elapsed));
        output::note(&format!("{name}: {done} rows in {seconds:.1} s, {rate:.0}/s{bad}"));
    }

    fn line(&self, elapsed: Duration) -> String {
        let rate = rate(self.done, elapsed);
        let rows = self.before + self.done;
        let (name, bad) = (&self.name, self.bad_words());
        match self.total {
            Some(total) => {
                let left = time_left(total.saturating_sub(rows), rate);
                format!("{name}: {rows} of {total} rows, {rate:.0}/s, {left} left{bad}")
            }
            None => format!("{name}: {rows} rows, {rate:.0}/s{bad}"),
        }
    }

    fn bad_words(&self) -> String {
        if self.bad == 0 { String::new() } else { format!(", {} {}", self.bad, self.word) }
    }
}

fn bar(name: &str, total: Option<u64>, before: u64) -> ProgressBar {
    let (bar, template) = match total {
        // Rows that came since they were counted make no bar of more than its length.
        Some(total) => (ProgressBar::new(total.max(before)), BAR),
        None => (ProgressBar::no_length(), SPINNER),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name.to_owned());
    bar.set_position(before);
    // Else the rows of an earlier run would count into the rate.
    bar.reset_eta();
    bar.enable_steady_tick(TICK_INTERVAL);
    bar
}

/// How long so many rows will take at this rate, as a person says it.
fn time_left(rows: u64, rate: f64) -> String {
    if rows > 0 && rate < 1e-3 {
        return "a long time".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "shown in whole seconds")]
    let seconds = if rows == 0 { 0.0 } else { (rows as f64 / rate).ceil() };
    // A table of 10^15 rows would still fit.
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_said_in_the_units_of_its_size() {
        let said = [(0, 1000.0), (500, 1000.0), (90_000, 1000.0), (7_260_000, 1000.0), (1, 0.0)]
            .map(|(rows, rate)| time_left(rows, rate));
        assert_eq!(said, ["0 s", "1 s", "1 min 30 s", "2 h 1 min", "a long time"]);
    }

    #[test]
    fn a_line_says_how_far_a_table_is() {
        let mut table = Table::new("clients".to_owned(), Some(3000), 1000, "refused", false);
        let elapsed = Duration::from_secs(2);
        (table.done, table.bad) = (1000, 3);
        assert_eq!(table.line(elapsed), "clients: 2000 of 3000 rows, 500/s, 2 s left, 3 refused");
        table.total = None;
        assert_eq!(table.line(elapsed), "clients: 2000 rows, 500/s, 3 refused");
    }
}
