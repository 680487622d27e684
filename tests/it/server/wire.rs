//! Connections that a test controls: channels of exactly one TCP connection, which never silently become two, so that
//! "on one connection" and "on an established connection" mean what they say; and how a call on one ended.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything may take here.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A channel over one TCP connection to the server, made now. When that one has ended, whatever is sent is refused.
/// The connection goes through a relay within the test, which takes no second one.
pub async fn one_connection(server: SocketAddr) -> Channel {
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = relay.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut client, _) = relay.accept().await.expect("the one connection");
        drop(relay);
        let mut server = TcpStream::connect(server).await.expect("the server accepts");
        client.set_nodelay(true).expect("an option");
        server.set_nodelay(true).expect("an option");
        // Ends when both sides have, or one breaks; the calls on it then tell.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a URI");
    endpoint.timeout(TIMEOUT).connect().await.expect("the one connection")
}

/// How a call on such a connection ended.
#[derive(Debug)]
pub enum End<T> {
    /// The server answered, with success or a status.
    Answered(Result<T, Status>),
    /// It was never sent: the connection had ended before.
    NotSent,
    /// It was sent, and no answer came.
    Lost(Status),
}

impl<T> End<T> {
    pub fn of(result: Result<T, Status>) -> Self {
        match result {
            Ok(answer) => Self::Answered(Ok(answer)),
            // A status that came over the wire has no source; one that the client made has.
            Err(status) => match status.source() {
                None => Self::Answered(Err(status)),
                Some(source) if never_sent(source) => Self::NotSent,
                Some(_) => Self::Lost(status),
            },
        }
    }
}

/// Whether the client could not connect, or gave the request back because the connection was closing: hyper calls
/// that, and nothing else, "canceled". Or the server said that it stops before this request: what comes after the last
/// stream of a GOAWAY was not looked at, and may be sent again (RFC 9113, section 6.8).
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let refused = error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
        let after_the_last = error.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        });
        if refused || after_the_last || error.to_string().contains("operation was canceled") {
            return true;
        }
        next = error.source();
    }
    false
}

/// Counts of what ended how, shared by many tasks.
#[derive(Clone, Default)]
pub struct Tally {
    pub answered: Arc<AtomicU64>,
    pub not_sent: Arc<AtomicU64>,
}

impl Tally {
    /// Counts one call, and says whether the connection still takes calls.
    ///
    /// # Panics
    /// Where a call that was sent got no answer, or a refusal.
    pub fn count<T>(&self, what: &str, end: End<T>) -> Option<T> {
        match end {
            End::Answered(Ok(answer)) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            End::Answered(Err(status)) => panic!("{what} was refused: {status:?}"),
            End::NotSent => {
                self.not_sent.fetch_add(1, Ordering::Relaxed);
                None
            }
            End::Lost(status) => panic!("{what} was sent and never answered: {status:?}"),
        }
    }

    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}
