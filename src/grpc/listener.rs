//! Connections: accepts them, shakes hands where TLS is on, and reads the HTTP/2 preface, each within a bound, before
//! tonic sees them. A peer that stays silent, or speaks something else, never reaches a state in which a shutdown has
//! to wait for it.
//! Must not end for an error of one connection; out of descriptors, it pauses instead of burning a core.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::tls::TlsReloader;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the accept loop pauses when the system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// TCP counts keepalive in whole seconds, and refuses less than one.
const TCP_KEEPALIVE_MIN: Duration = Duration::from_secs(1);
/// Connections that have shaken hands and wait for tonic to take them.
const READY_MAX: usize = 128;

/// The bounds of a connection's beginning.
#[derive(Debug, Clone, Copy)]
pub struct ListenerLimits {
    /// For the TLS handshake and the HTTP/2 preface, each.
    pub handshake_timeout: Duration,
    /// After how long of silence TCP asks whether the peer is still there.
    pub keepalive_interval: Duration,
}

/// The connections that are ready to be served.
pub type Connections = ReceiverStream<io::Result<Connection>>;

/// Where a connection comes from; handlers find it in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection whose preface has been read, and is given to tonic once more from the start.
pub struct Connection {
    stream: Box<dyn Stream>,
    peer: SocketAddr,
    preface_left: &'static [u8],
}

/// Accepts connections until the receiver of them is dropped.
pub fn accept(listener: TcpListener, tls: Option<Arc<TlsReloader>>, limits: ListenerLimits) -> Connections {
    let (ready, connections) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (ready, tls) = (ready.clone(), tls.clone());
                    tokio::spawn(async move {
                        if let Some(connection) = begin(stream, peer, tls.as_deref(), limits).await {
                            // Fails when the server has stopped taking connections: this one is closed.
                            let _ = ready.send(Ok(connection)).await;
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

async fn begin(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<&TlsReloader>,
    limits: ListenerLimits,
) -> Option<Connection> {
    let keepalive = TcpKeepalive::new().with_time(limits.keepalive_interval.max(TCP_KEEPALIVE_MIN));
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(error = %error, "the options of a socket could not be set");
        return None;
    }
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => match timeout(limits.handshake_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, peer = %peer, "a TLS handshake failed");
                return None;
            }
            Err(_) => return None,
        },
    };
    let mut preface = [0; PREFACE.len()];
    let read = timeout(limits.handshake_timeout, stream.read_exact(&mut preface)).await;
    let speaks_http2 = matches!(read, Ok(Ok(_))) && preface == *PREFACE;
    speaks_http2.then_some(Connection { stream, peer, preface_left: PREFACE })
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { address: self.peer }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface_left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let (now, later) = self.preface_left.split_at(self.preface_left.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.preface_left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
