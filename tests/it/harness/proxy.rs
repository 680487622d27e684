//! A TCP proxy between a server and its database or Redis, with the faults that a network has. It runs in the test
//! process, on a thread and a runtime of its own, so that neither a busy test nor one that ends stops it.
//! Invariant: when `set` has returned, no byte passes that the new fault does not let pass. Only the closing of
//! connections follows a moment later.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Bytes that are taken from a socket at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// Pieces that are held for one way of one connection; what comes after them stays with its sender.
const PIECES_MAX: usize = 1024;

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Connections that exist are reset, half-open ones too. New ones are accepted and reset at once.
    Cut,
    /// What comes from the target, its end included, arrives so much later, in order.
    Delay(Duration),
    /// Connections stay and new ones are accepted, and nothing passes either way. What was held passes when it is over.
    Silence,
    /// Connections that exist are dead for ever: nothing passes, and they are not closed. New ones work.
    HalfOpen,
}

/// A proxy to one target. Dropping it ends it and all its connections.
pub struct Proxy {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    network: watch::Sender<Network>,
    /// Dropped to end the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and carries what comes to `target` and back.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a local address");
        // It moves from the test's runtime to the proxy's.
        let listener = listener.into_std().expect("a listener without a runtime");
        let accepted = Arc::new(AtomicUsize::new(0));
        let (network, changes) = watch::channel(Network { fault: Fault::None, cut_below: 0, dead_below: 0 });
        let (running, ended) = oneshot::channel();
        let counter = Arc::clone(&accepted);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener on this runtime");
                tokio::select! {
                    () = accept(listener, target, counter, changes) => {}
                    _ = ended => {}
                }
            });
        });
        Self { address, accepted, network, running: Some(running), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what is wrong, on connections that exist and on new ones.
    pub fn set(&self, fault: Fault) {
        self.network.send_modify(|network| {
            let next = self.accepted.load(Ordering::SeqCst);
            network.fault = fault;
            match fault {
                Fault::Cut => network.cut_below = next,
                Fault::HalfOpen => network.dead_below = next,
                Fault::None | Fault::Delay(_) | Fault::Silence => {}
            }
        });
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(thread) = self.thread.take() {
            // Had it panicked, the test would have said so by what it waited for.
            let _ = thread.join();
        }
    }
}

/// What is wrong now, and what stays wrong. Connections are numbered as they are accepted.
#[derive(Clone, Copy)]
struct Network {
    fault: Fault,
    /// Connections below this number are reset, even if the cut was over before they heard of it.
    cut_below: usize,
    /// Connections below this number are dead.
    dead_below: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToTarget,
    ToClient,
}

/// Whether something may pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    Open,
    From(Instant),
    Closed,
}

impl Network {
    fn cuts(self, number: usize) -> bool {
        self.fault == Fault::Cut || number < self.cut_below
    }

    /// Whether what came at `arrived` may pass on this connection.
    fn passage(self, number: usize, way: Way, arrived: Instant) -> Passage {
        if self.cuts(number) || number < self.dead_below {
            return Passage::Closed;
        }
        match self.fault {
            Fault::Delay(delay) if way == Way::ToClient => {
                let due = arrived + delay;
                if due <= Instant::now() { Passage::Open } else { Passage::From(due) }
            }
            Fault::None | Fault::HalfOpen | Fault::Delay(_) => Passage::Open,
            Fault::Silence | Fault::Cut => Passage::Closed,
        }
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    accepted: Arc<AtomicUsize>,
    changes: watch::Receiver<Network>,
) {
    loop {
        let (client, _) = listener.accept().await.expect("a connection is accepted");
        let number = accepted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(carry(client, target, Gate { number, changes: changes.clone() }));
    }
}

/// Carries one connection to its end.
async fn carry(client: TcpStream, target: SocketAddr, gate: Gate) {
    let connected = tokio::select! {
        connected = gate.clone().connect(target) => connected,
        () = gate.clone().cut() => Err(ErrorKind::ConnectionReset.into()),
    };
    let Ok(target) = connected else {
        reset(&client);
        return;
    };
    let ended = tokio::select! {
        ended = both_ways(&client, &target, &gate) => ended,
        () = gate.clone().cut() => Err(ErrorKind::ConnectionReset.into()),
    };
    if ended.is_err() {
        reset(&client);
        reset(&target);
    }
}

/// Makes the closing of the socket, which follows, a reset.
fn reset(stream: &TcpStream) {
    // Where the peer has reset it already, nothing is left to do.
    let _ = stream.set_zero_linger();
}

/// Returns when both sides have ended in good order, or at once when one broke.
async fn both_ways(client: &TcpStream, target: &TcpStream, gate: &Gate) -> io::Result<()> {
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    let there = one_way(client, target, Way::ToTarget, gate.clone());
    let back = one_way(target, client, Way::ToClient, gate.clone());
    tokio::try_join!(there, back)?;
    Ok(())
}

/// Reading goes on while nothing may pass, so that each piece is stamped when it comes.
async fn one_way(from: &TcpStream, to: &TcpStream, way: Way, mut gate: Gate) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::channel(PIECES_MAX);
    let write = async {
        while let Some(piece) = pieces.recv().await {
            gate.hand_on(way, piece, to).await?;
        }
        Ok::<(), io::Error>(())
    };
    tokio::try_join!(read(from, sender), write)?;
    Ok(())
}

/// What came from one side: bytes, or none where it ended, or how it broke.
struct Piece {
    arrived: Instant,
    content: io::Result<Vec<u8>>,
}

/// Takes all that a side sends. That it broke is a piece too, which waits for its turn.
async fn read(from: &TcpStream, pieces: mpsc::Sender<Piece>) -> io::Result<()> {
    loop {
        let content = next_bytes(from).await;
        let goes_on = content.as_ref().is_ok_and(|bytes| !bytes.is_empty());
        let sent = pieces.send(Piece { arrived: Instant::now(), content }).await;
        if !goes_on || sent.is_err() {
            return Ok(());
        }
    }
}

async fn next_bytes(from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PIECE_BYTES];
    loop {
        from.readable().await?;
        match from.try_read(&mut bytes) {
            Ok(read) => {
                bytes.truncate(read);
                return Ok(bytes);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a connection sees of the network.
#[derive(Clone)]
struct Gate {
    number: usize,
    changes: watch::Receiver<Network>,
}

impl Gate {
    /// Waits until the connection has to be reset.
    async fn cut(mut self) {
        while !self.network().cuts(self.number) {
            self.changed().await;
        }
    }

    async fn connect(mut self, target: SocketAddr) -> io::Result<TcpStream> {
        self.wait_until_open(Way::ToTarget, Instant::now()).await;
        TcpStream::connect(target).await
    }

    async fn wait_until_open(&mut self, way: Way, arrived: Instant) {
        loop {
            match self.network().passage(self.number, way, arrived) {
                Passage::Open => return,
                Passage::Closed => self.changed().await,
                Passage::From(due) => {
                    tokio::select! {
                        () = self.changed() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    }

    /// Writes a piece, each part of it when it may pass.
    async fn hand_on(&mut self, way: Way, piece: Piece, to: &TcpStream) -> io::Result<()> {
        self.wait_until_open(way, piece.arrived).await;
        let bytes = piece.content?;
        if bytes.is_empty() {
            return SockRef::from(to).shutdown(Shutdown::Write);
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            to.writable().await?;
            self.wait_until_open(way, piece.arrived).await;
            // `set` waits while this is held, so that nothing passes once it has returned.
            let network = self.changes.borrow();
            if network.passage(self.number, way, piece.arrived) == Passage::Open {
                match to.try_write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn network(&self) -> Network {
        *self.changes.borrow()
    }

    async fn changed(&mut self) {
        self.changes.changed().await.expect("the proxy lives longer than its thread");
    }
}
