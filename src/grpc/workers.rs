//! The threads that serve connections: one for each core, each with a runtime and connections of its own, so that a
//! call that the cache answers never crosses a thread. A new connection goes to the thread that has the fewest.
//! Must not touch the database: what a call has to wait for runs on the main runtime, see `calls.rs`.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    runtime::Builder,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::task::TaskTracker;

use super::server::Serving;

/// All threads. Dropping this ends them at once, whatever they are doing.
pub struct Workers {
    workers: Vec<Worker>,
    _alive: watch::Sender<()>,
}

struct Worker {
    given: mpsc::UnboundedSender<Given>,
    connections: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

/// A connection on its way to a worker.
struct Given {
    stream: TcpStream,
    peer: SocketAddr,
    counted: Counted,
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts one thread for each core.
    ///
    /// # Errors
    /// Where the system gives no thread or no event queue.
    pub fn start(serving: &Serving) -> io::Result<Self> {
        let (alive, killed) = watch::channel(());
        let count = thread::available_parallelism().map_or(1, usize::from);
        let start = |_| Worker::start(serving.clone(), killed.clone());
        let workers: io::Result<Vec<Worker>> = (0..count).map(start).collect();
        Ok(Self { workers: workers?, _alive: alive })
    }

    /// Gives a connection to the thread with the fewest.
    ///
    /// # Errors
    /// Where that thread has ended, which none does by itself.
    pub fn give(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let gone = || io::Error::other("a worker thread has ended");
        let least = self.workers.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed));
        let worker = least.ok_or_else(gone)?;
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(worker.connections.clone());
        worker.given.send(Given { stream, peer, counted }).map_err(|_| gone())
    }

    /// Waits until every connection has ended. No more are given.
    pub async fn finish(self) {
        for Worker { given, ended, .. } in self.workers {
            drop(given);
            // An error means that the thread is gone, and with it its connections.
            let _ = ended.await;
        }
    }
}

impl Worker {
    fn start(serving: Serving, mut killed: watch::Receiver<()>) -> io::Result<Self> {
        let (given, mut received) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let work = async move {
            tokio::select! {
                () = serve_given(&mut received, &serving) => {}
                // Fails when the sender is dropped, which is the only thing that happens to it.
                _ = killed.changed() => {}
            }
        };
        thread::Builder::new().name("keystead-worker".to_owned()).spawn(move || {
            runtime.block_on(work);
            drop(runtime);
            // Nobody listens where the threads were ended at once.
            let _ = end.send(());
        })?;
        Ok(Self { given, connections: Arc::default(), ended })
    }
}

/// Serves connections until no more are given and the last one has ended.
async fn serve_given(received: &mut mpsc::UnboundedReceiver<Given>, serving: &Serving) {
    let connections = TaskTracker::new();
    while let Some(Given { stream, peer, counted }) = received.recv().await {
        let serving = serving.clone();
        connections.spawn(async move {
            serving.serve(stream, peer).await;
            drop(counted);
        });
    }
    connections.close();
    connections.wait().await;
}
