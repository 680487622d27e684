//! A load at a fixed rate, in an open loop: each call is due at a moment that a clock sets, whether or not those before
//! it were answered, and its time counts from that moment. So a pause of the server is felt by every call that falls
//! into it, and none is left out because the one before it was slow.
//! It runs on threads of its own, of a higher priority where that is allowed: it stands for clients on other machines,
//! and what it waits for a core of this one is not the server's time. That wait is told besides, as its lag.
//! Invariant: every answer is checked, and a wrong one ends the run.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    io,
    process::setpriority_process,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::{
    runtime::Builder,
    sync::{Notify, oneshot},
    task::JoinSet,
};

use crate::support::{
    Failure,
    load::{Connections, Run, Workload},
};

/// Connections that the calls take turns on.
const CONNECTIONS: usize = 4;
/// The nice value of the generator's threads.
const PRIORITY: i32 = -10;
/// The longest time that is told apart, in nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Ends loads that run, once for all who hold it.
#[derive(Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a load came to.
pub struct Paced {
    /// Times count from the moment when a call was due.
    pub run: Run,
    /// From that moment until the generator came to send the call, in nanoseconds.
    pub lag: Histogram<u64>,
    /// Whether the generator had its higher priority.
    pub raised: bool,
}

/// What one call took, from the moment when it was due.
struct Call {
    lag: Duration,
    latency: Duration,
}

struct Offer {
    address: SocketAddr,
    workload: Workload,
    interval: Duration,
    stop: Stop,
}

/// Offers so many calls a second until it is told to stop; what they came to arrives through the receiver.
pub fn offer(
    address: SocketAddr,
    workload: &Workload,
    per_second: u32,
    stop: &Stop,
) -> Result<oneshot::Receiver<Result<Paced, Failure>>, Failure> {
    let interval = Duration::from_secs(1) / per_second;
    let offer = Offer { address, workload: workload.clone(), interval, stop: stop.clone() };
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("offer".to_owned()).spawn(move || {
        // Whoever waited for it may have failed meanwhile.
        let _ = sender.send(offer.run());
    })?;
    Ok(receiver)
}

impl Offer {
    fn run(&self) -> Result<Paced, Failure> {
        // Of this thread alone, and of those that it starts.
        let raised = setpriority_process(None, PRIORITY).is_ok();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let ticks = Notify::new();
        thread::scope(|scope| {
            let clock = scope.spawn(|| {
                let ended = self.tick(&ticks);
                // However it ended: there will be no tick any more to wait for.
                self.stop.set();
                ticks.notify_one();
                ended
            });
            let calls = runtime.block_on(self.calls(&ticks, raised));
            self.stop.set();
            clock.join().map_err(|_| "the clock of the load panicked")??;
            calls
        })
    }

    /// Ticks at each moment when a call is due. The runtime's own timers know only milliseconds.
    fn tick(&self, ticks: &Notify) -> Result<(), Failure> {
        let clock = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let interval = Timespec::try_from(self.interval)?;
        let times = Itimerspec { it_interval: interval, it_value: interval };
        timerfd_settime(&clock, TimerfdTimerFlags::empty(), &times)?;
        let mut passed = [0_u8; 8];
        while !self.stop.is_set() {
            io::read(&clock, &mut passed)?;
            ticks.notify_one();
        }
        Ok(())
    }

    async fn calls(&self, ticks: &Notify, raised: bool) -> Result<Paced, Failure> {
        let mut connections = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            connections.push(Arc::new(Connections::open(self.address, 1).await?));
        }
        let workload = Arc::new(self.workload.clone());
        let (mut latency, mut lag) = (histogram()?, histogram()?);
        let mut record = |call: &Call| -> Result<(), Failure> {
            latency.saturating_record(u64::try_from(call.latency.as_nanos())?);
            lag.saturating_record(u64::try_from(call.lag.as_nanos())?);
            Ok(())
        };
        let mut turns = connections.iter().cycle();
        let mut calls = JoinSet::new();
        let begun = Instant::now();
        let mut due = begun;
        while !self.stop.is_set() {
            ticks.notified().await;
            let now = Instant::now();
            while due <= now {
                let connection = turns.next().ok_or("no connection is open")?;
                calls.spawn(call(Arc::clone(connection), Arc::clone(&workload), due));
                due += self.interval;
            }
            while let Some(ended) = calls.try_join_next() {
                record(&ended??)?;
            }
        }
        let elapsed = begun.elapsed();
        while let Some(ended) = calls.join_next().await {
            record(&ended??)?;
        }
        Ok(Paced { run: Run { calls: latency.len(), elapsed, latency }, lag, raised })
    }
}

async fn call(connection: Arc<Connections>, workload: Arc<Workload>, due: Instant) -> Result<Call, Failure> {
    let lag = due.elapsed();
    connection.call(&workload).await?;
    Ok(Call { lag, latency: due.elapsed() })
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_max(LATENCY_MAX_NS, 3)?)
}
