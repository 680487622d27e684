//! The baseline of `verify_hot`: a stock tonic server on a stock multi-thread runtime, with the window sizes, stream
//! limits and socket options of ours, that answers every `VerifyKey` with the same message: one that ours gave.
//! It is the benchmark's own program, started once more with a hidden argument. No credential is checked, nothing is
//! looked up, counted or logged. Must use nothing of Keystead but its messages, so that it stays stock.

use std::{
    convert::Infallible,
    env,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use keystead::proto::v1::{VerifyKeyRequest, VerifyKeyResponse};
use prost::Message as _;
use tokio::runtime::Builder;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::Service;

use super::Failure;

/// The hidden argument; behind it the answer, in base64.
pub const ARGUMENT: &str = "--bare-server";

type Answered<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// A running bare server. It ends when this is dropped, or this process ends.
pub struct BareServer {
    child: Child,
    pub address: SocketAddr,
}

impl BareServer {
    /// Starts one that answers with `message`.
    pub fn start(message: &[u8]) -> Result<Self, Failure> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(ARGUMENT).arg(BASE64_STANDARD.encode(message)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("a piped standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse().map_err(|_| "the bare server did not start")?;
        Ok(Self { child, address })
    }

    /// The process's id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input closes.
pub fn serve(answer: &str) -> Result<(), Failure> {
    let answer = VerifyKeyResponse::decode(BASE64_STANDARD.decode(answer)?.as_slice())?;
    Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
        let incoming = incoming.with_keepalive(Some(Duration::from_secs(30)));
        writeln!(io::stdout(), "{}", incoming.local_addr()?)?;
        let (closed, wait) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            // Nothing is ever sent: this returns when the other end is gone, however it went.
            let _ = io::stdin().read(&mut [0]);
            let _ = closed.send(());
        });
        // The values of `src/grpc/server.rs`.
        let server = Server::builder()
            .max_concurrent_streams(1024)
            .initial_connection_window_size(1 << 20)
            .initial_stream_window_size(1 << 16)
            .http2_max_local_error_reset_streams(Some(1024))
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .http2_max_header_list_size(16 << 10)
            .add_service(Bare { answer: Arc::new(answer) })
            .serve_with_incoming(incoming);
        tokio::select! {
            ended = server => Ok(ended?),
            _ = wait => Ok(()),
        }
    })
}

#[derive(Clone)]
struct Bare {
    answer: Arc<VerifyKeyResponse>,
}

impl NamedService for Bare {
    const NAME: &'static str = "keystead.v1.KeyService";
}

/// What `tonic-prost-build` generates for an rpc, for the one rpc that is called.
impl Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answered<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ProstCodec::<VerifyKeyResponse, VerifyKeyRequest>::default());
            Ok(grpc.unary(method, request).await)
        })
    }
}

impl UnaryService<VerifyKeyRequest> for Bare {
    type Response = VerifyKeyResponse;
    type Future = Answered<Result<Response<VerifyKeyResponse>, Status>>;

    fn call(&mut self, _: Request<VerifyKeyRequest>) -> Self::Future {
        let answer = Arc::clone(&self.answer);
        Box::pin(async move { Ok(Response::new(VerifyKeyResponse::clone(&answer))) })
    }
}
