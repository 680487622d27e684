//! The beginning of a connection: socket options, the TLS handshake where TLS is on, and the HTTP/2 preface, each
//! within a bound, before HTTP sees it. A peer that stays silent, or speaks something else, never reaches a state in
//! which a shutdown has to wait for it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

use super::tls::TlsReloader;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// TCP counts keepalive in whole seconds, and refuses less than one.
const TCP_KEEPALIVE_MIN: Duration = Duration::from_secs(1);

/// The bounds of a connection's beginning.
#[derive(Debug, Clone, Copy)]
pub struct ListenerLimits {
    /// For the TLS handshake and the HTTP/2 preface, each.
    pub handshake_timeout: Duration,
    /// After how long of silence TCP asks whether the peer is still there.
    pub keepalive_interval: Duration,
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
}

impl Peer {
    /// The address without its port; an IPv4 address written inside IPv6 is the IPv4 address that it is.
    pub fn ip(self) -> IpAddr {
        self.address.ip().to_canonical()
    }
}

/// A connection whose preface has been read, and is given to HTTP once more from the start.
pub enum Begun {
    Plain(Rewound<TcpStream>),
    Tls(Box<Rewound<TlsStream<TcpStream>>>),
}

/// Begins a connection, on the runtime that is to serve it; `None` where the peer does not speak HTTP/2 in time.
pub async fn begin(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    tls: Option<&TlsReloader>,
    limits: ListenerLimits,
) -> Option<Begun> {
    let stream = match prepare(stream, limits) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(error = %error, "the options of a socket could not be set");
            return None;
        }
    };
    let Some(tls) = tls else {
        return rewound(stream, limits).await.map(Begun::Plain);
    };
    match timeout(limits.handshake_timeout, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => rewound(stream, limits).await.map(Box::new).map(Begun::Tls),
        Ok(Err(error)) => {
            tracing::debug!(error = %error, peer = %peer, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

fn prepare(stream: std::net::TcpStream, limits: ListenerLimits) -> io::Result<TcpStream> {
    let keepalive = TcpKeepalive::new().with_time(limits.keepalive_interval.max(TCP_KEEPALIVE_MIN));
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    TcpStream::from_std(stream)
}

async fn rewound<S: AsyncRead + Unpin>(mut stream: S, limits: ListenerLimits) -> Option<Rewound<S>> {
    let mut preface = [0; PREFACE.len()];
    let read = timeout(limits.handshake_timeout, stream.read_exact(&mut preface)).await;
    let speaks_http2 = matches!(read, Ok(Ok(_))) && preface == *PREFACE;
    speaks_http2.then_some(Rewound { stream, preface_left: PREFACE })
}

/// A stream that gives the preface before what follows it.
pub struct Rewound<S> {
    stream: S,
    preface_left: &'static [u8],
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
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
