//! CPU time and memory of a child, as Linux tells them under `/proc`, and how it is halted and let go on.
//! Must not measure the benchmark's own process, which does other work besides.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use super::Failure;

/// One tick of the times in `/proc`: Linux shows them in hundredths of a second whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);
/// How often a process is looked at that should come to rest, and how often at the most.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS_MAX: usize = 100;

/// Time that the process spent on the CPU so far, its threads and what ended of them included.
pub fn cpu_time(process: u32) -> Result<Duration, Failure> {
    let stat = read(process, "stat")?;
    // The second field is the program's name in parentheses and may hold anything; the 14th and 15th are `utime`
    // and `stime` (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(')').ok_or("a stat file without a name")?;
    let ticks: Vec<u32> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(TICK * ticks.iter().sum())
}

/// Memory that the process holds, in bytes.
pub fn resident_bytes(process: u32) -> Result<u64, Failure> {
    let status = read(process, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("a status file without VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Waits until the process hardly uses the CPU any more, so that what it put off counts for the run that caused it and
/// does not slow the next one. Gives up after a while: some work never ends.
pub async fn settled(process: u32) -> Result<(), Failure> {
    let mut before = cpu_time(process)?;
    for _ in 0..LOOKS_MAX {
        tokio::time::sleep(LOOK).await;
        let now = cpu_time(process)?;
        if now.saturating_sub(before) <= TICK {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}

/// Halts the process: it uses no CPU until it is let go on.
pub fn halt(process: u32) -> Result<(), Failure> {
    signal(process, Signal::STOP)
}

/// Lets a halted process go on.
pub fn go_on(process: u32) -> Result<(), Failure> {
    signal(process, Signal::CONT)
}

fn signal(process: u32, signal: Signal) -> Result<(), Failure> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or("a process id out of range")?;
    Ok(kill_process(process, signal)?)
}

fn read(process: u32, file: &str) -> Result<String, Failure> {
    let path = format!("/proc/{process}/{file}");
    fs::read_to_string(&path).map_err(|error| format!("{path}: {error}; these figures need Linux").into())
}
