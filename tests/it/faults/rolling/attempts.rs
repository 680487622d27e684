//! How one attempt of a call failed: by the service's word, untaken, or lost. A client may send again whatever no
//! server took up, and its user never hears of it; a call that was taken up and not answered is the server's failure.
//! gRPC's other clients say UNAVAILABLE for what was untaken, or send it again by themselves; tonic says CANCELLED,
//! INTERNAL or UNKNOWN too. So it is told by the cause, never by the code, and the codes are counted.
//! Invariant: what is called untaken is known not to have been looked at by any server.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use keystead::proto::v1::key_service_client::KeyServiceClient;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::callers::requests::verifying;

/// Longer than any call's own deadline.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// How an attempt ended that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The service said so.
    Answered,
    /// No server took it up: nobody listens, or the connection was ended or was said to end before it was.
    Untaken,
    /// It was sent to a server that had begun to talk, and no answer came.
    Lost,
}

impl Failure {
    pub fn of(status: &Status) -> Self {
        // A status that came over the wire has no source; one that the client made has.
        match status.source() {
            None => Self::Answered,
            Some(source) if is_untaken(source) => Self::Untaken,
            Some(_) => Self::Lost,
        }
    }
}

/// Whether the connection was never taken up (see [`Connection`]); or the client gave the request back unsent, since
/// the connection was closing: hyper calls that, and nothing else, canceled; or the server said with GOAWAY that it has
/// stopped before this request (RFC 9113, section 6.8).
fn is_untaken(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let refused = error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
        let unsent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let after_the_last = error.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
        if refused || unsent || after_the_last {
            return true;
        }
        next = error.source();
    }
    false
}

/// A channel to a server, which connects when it is needed and again when its connection has ended, as tonic's do.
pub fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address makes a URI");
    endpoint.timeout(CALL_TIMEOUT).connect_with_connector_lazy(Connector(address))
}

/// Connects to one address.
struct Connector(SocketAddr);

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0;
        Box::pin(async move {
            let stream = TcpStream::connect(address).await.map_err(|_| refused())?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(Connection { stream, taken_up: false }))
        })
    }
}

fn refused() -> io::Error {
    io::ErrorKind::ConnectionRefused.into()
}

/// A connection that is as good as refused until the server has said something on it. A server says its settings first
/// (RFC 9113, section 3.4), so one that went before has not looked at a request either: the system accepts connections
/// for a server, and ends them when the server stops listening. Other clients of gRPC wait for the settings; tonic does
/// not.
struct Connection {
    stream: TcpStream,
    taken_up: bool,
}

impl Connection {
    fn told<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        Poll::Ready(result.map_err(|error| if self.taken_up { error } else { refused() }))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.taken_up |= buffer.filled().len() > before;
        // The end of the stream is no error by itself.
        self.told(if self.taken_up { read } else { Err(refused()) })
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.told(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.told(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = ready!(Pin::new(&mut self.stream).poll_shutdown(context));
        self.told(ended)
    }
}

/// How a call fails where the server does this with its connection, and no more.
async fn failure_where(serve: impl AsyncFnOnce(TcpStream)) -> Failure {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut keys = KeyServiceClient::new(channel(listener.local_addr().expect("an address")));
    let serving = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        serve(stream).await;
    };
    let (answer, ()) = tokio::join!(keys.verify_key(verifying("a secret")), serving);
    Failure::of(&answer.expect_err("nobody answers"))
}

#[tokio::test]
async fn a_call_is_lost_where_a_server_took_it_up_and_untaken_where_none_did() {
    let reset = failure_where(async |stream| drop(stream)).await;
    assert_eq!(reset, Failure::Untaken, "closed before a word");
    let taken_up = failure_where(async |stream| {
        let mut connection = h2::server::handshake(stream).await.expect("a handshake");
        let call = connection.accept().await.expect("a call");
        assert!(call.is_ok(), "{:?}", call.err());
    });
    assert_eq!(taken_up.await, Failure::Lost, "closed with the call in hand");

    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut keys = KeyServiceClient::new(channel(nobody.local_addr().expect("an address")));
    drop(nobody);
    let status = keys.verify_key(verifying("a secret")).await.expect_err("nobody listens");
    assert_eq!(Failure::of(&status), Failure::Untaken, "{status:?}");
    assert_eq!(Failure::of(&Status::unavailable("as the service says it")), Failure::Answered);
}
