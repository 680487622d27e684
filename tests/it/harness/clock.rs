//! A wall clock that a test moves under one server, with libfaketime loaded before the C library. Only the wall clock:
//! `CLOCK_MONOTONIC` and `CLOCK_BOOTTIME`, by which the server measures spans and ages, stay the machine's, as they do
//! when somebody sets the clock of a machine. Times of files stay too. `faults::processes` shows it.

use std::fs;
use std::path::{Path, PathBuf};

use super::tools;

/// The dynamic linker's variable that names what to load first.
const PRELOAD: &str = if cfg!(target_os = "macos") { "DYLD_INSERT_LIBRARIES" } else { "LD_PRELOAD" };

/// The wall clock of the servers that are started in its `environment`. It begins at the real time.
pub struct FakeClock {
    faketime: PathBuf,
    folder: PathBuf,
}

impl FakeClock {
    /// Keeps its state in a folder of its own below `folder`, which must live as long as the servers.
    pub fn new(folder: &Path) -> Self {
        let own = tempfile::Builder::new().prefix("clock-").tempdir_in(folder).expect("a folder").keep();
        let clock = Self { faketime: tools::faketime(), folder: own };
        clock.step(0);
        clock
    }

    /// What puts a process on this clock.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().expect("a path of text").to_owned();
        let on = || "1".to_owned();
        let variables = [
            (PRELOAD, text(&self.faketime)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.offset())),
            // The file is read at each look at the clock, and so a step is seen at once.
            ("FAKETIME_NO_CACHE", on()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", on()),
            ("NO_FAKE_STAT", on()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// Sets the clock so many seconds ahead of the real time, or behind it.
    pub fn step(&self, seconds: i64) {
        // Whoever reads meanwhile finds the old file or the new one, never half of one.
        let next = self.folder.join("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("the offset is written");
        fs::rename(&next, self.offset()).expect("the offset takes its place");
    }

    fn offset(&self) -> PathBuf {
        self.folder.join("offset")
    }
}

/// What libfaketime keeps in memory for a process. A killed process leaves it behind.
pub fn traces(process: u32) -> [PathBuf; 2] {
    ["faketime_shm", "sem.faketime_sem"].map(|name| PathBuf::from(format!("/dev/shm/{name}_{process}")))
}

/// Removes what a process that was killed left behind.
pub(super) fn remove_traces(process: u32) {
    for trace in traces(process) {
        // There is none where the process had no fake clock.
        let _ = fs::remove_file(trace);
    }
}
