//! The load generator: a closed loop over HTTP/2, so many calls in flight over so many connections, all on the one
//! thread of the caller's runtime. It shares the machine with what it measures, so it does little: bodies come
//! encoded, answers are looked at and not decoded whole.
//! Invariant: every answer is checked. One that is not what was asked for makes the run void.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use h2::{
    RecvStream,
    client::{self, SendRequest},
};
use hdrhistogram::Histogram;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use prost::{
    Message,
    bytes::{Bytes, BytesMut},
};
use tokio::{net::TcpStream, task::JoinSet};

use super::{Failure, compare::float};

/// Flow control of the generator's side: so large that no server ever waits for it.
const WINDOW_BYTES: u32 = 16 << 20;
/// The longest latency that is told apart, in nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Bytes before a gRPC message.
const PREFIX_BYTES: usize = 5;

/// What is called, and what counts as the right answer.
#[derive(Clone)]
pub struct Workload {
    /// Such as `keystead.v1.KeyService/VerifyKey`.
    pub method: &'static str,
    /// The caller's secret.
    pub caller: String,
    /// The body of the next call.
    pub body: Arc<dyn Fn() -> Bytes + Send + Sync>,
    /// Looks at an answer's message and says what is wrong with it.
    pub check: fn(&[u8]) -> Result<(), Failure>,
}

/// Open connections to one server.
pub struct Connections {
    address: SocketAddr,
    senders: Vec<SendRequest<Bytes>>,
}

/// What one run came to.
pub struct Run {
    pub calls: u64,
    pub elapsed: Duration,
    /// In nanoseconds.
    pub latency: Histogram<u64>,
}

impl Run {
    /// Calls per second.
    pub fn per_second(&self) -> f64 {
        float(self.calls) / self.elapsed.as_secs_f64()
    }

    /// The latency that this part of the calls did not exceed, in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        float(self.latency.value_at_quantile(quantile)) / 1000.0
    }
}

impl Connections {
    /// Opens connections. They last until this is dropped.
    pub async fn open(address: SocketAddr, count: usize) -> Result<Self, Failure> {
        let mut senders = Vec::with_capacity(count);
        for _ in 0..count {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut builder = client::Builder::new();
            builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
            let (sender, connection) = builder.handshake::<_, Bytes>(stream).await?;
            // Its errors show in the calls.
            tokio::spawn(connection);
            senders.push(sender);
        }
        Ok(Self { address, senders })
    }

    /// Keeps `in_flight` calls going for `time`, spread over the connections, and waits for the last answers.
    pub async fn run(&self, workload: &Workload, in_flight: usize, time: Duration) -> Result<Run, Failure> {
        let end = Instant::now() + time;
        self.run_while(workload, in_flight, move |_, answered| answered < end).await
    }

    /// As `run`, for as many calls, or a few more.
    pub async fn run_times(&self, workload: &Workload, in_flight: usize, calls: u64) -> Result<Run, Failure> {
        self.run_while(workload, in_flight, move |answers, _| answers < calls).await
    }

    async fn run_while(
        &self,
        workload: &Workload,
        in_flight: usize,
        go_on: impl Fn(u64, Instant) -> bool + Copy + Send + 'static,
    ) -> Result<Run, Failure> {
        let head = Head::new(self.address, workload)?;
        let begun = Instant::now();
        let latency = Arc::new(Mutex::new(Histogram::new_with_max(LATENCY_MAX_NS, 3)?));
        let mut clients = JoinSet::new();
        for sender in self.senders.iter().cycle().take(in_flight) {
            let (mut sender, head, workload) = (sender.clone(), head.clone(), workload.clone());
            let latency = Arc::clone(&latency);
            clients.spawn(async move {
                loop {
                    let body = (workload.body)();
                    let sent = Instant::now();
                    let message = call(&mut sender, &head, body).await?;
                    let answered = Instant::now();
                    (workload.check)(&message)?;
                    let mut latency = latency.lock().unwrap_or_else(PoisonError::into_inner);
                    latency.saturating_record(u64::try_from((answered - sent).as_nanos())?);
                    if !go_on(latency.len(), answered) {
                        return Ok::<_, Failure>(());
                    }
                }
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        let elapsed = begun.elapsed();
        let latency = latency.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Run { calls: latency.len(), elapsed, latency })
    }

    /// One call.
    pub async fn call(&self, workload: &Workload) -> Result<Bytes, Failure> {
        let mut sender = self.senders.first().ok_or("no connection is open")?.clone();
        let message = call(&mut sender, &Head::new(self.address, workload)?, (workload.body)()).await?;
        (workload.check)(&message)?;
        Ok(message)
    }
}

/// What every call of a workload sends before its body.
#[derive(Clone)]
struct Head {
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn new(address: SocketAddr, workload: &Workload) -> Result<Self, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("user-agent", HeaderValue::from_static("keystead-bench"));
        headers.insert("authorization", format!("Bearer {}", workload.caller).parse()?);
        Ok(Self { uri: format!("http://{address}/{}", workload.method).parse()?, headers })
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        request.uri_mut().clone_from(&self.uri);
        request.headers_mut().clone_from(&self.headers);
        request
    }
}

async fn call(sender: &mut SendRequest<Bytes>, head: &Head, body: Bytes) -> Result<Bytes, Failure> {
    poll_fn(|context| sender.poll_ready(context)).await?;
    let (answer, mut stream) = sender.send_request(head.request(), false)?;
    stream.send_data(body, true)?;
    let answer = answer.await?;
    if answer.status() != StatusCode::OK {
        return Err(format!("HTTP status {}", answer.status()).into());
    }
    // A refusal comes without a body, its status among the headers.
    if answer.headers().contains_key("grpc-status") {
        check_status(answer.headers())?;
    }
    let (message, trailers) = read(answer.into_body()).await?;
    check_status(&trailers)?;
    Ok(message)
}

async fn read(mut body: RecvStream) -> Result<(Bytes, HeaderMap), Failure> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        whole.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await?.ok_or("an answer without trailers")?;
    let length = whole.get(1..PREFIX_BYTES).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    let length = length.ok_or("an answer without a message")?;
    let message = whole.split_off(PREFIX_BYTES).freeze();
    if message.len() == usize::try_from(length)? {
        Ok((message, trailers))
    } else {
        Err("a message was cut off".into())
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => Ok(()),
        // The message comes percent-encoded; blanks are enough for people.
        status => Err(format!("gRPC status {status}: {}", text("grpc-message").replace("%20", " ")).into()),
    }
}

/// The one field of a `VerifyKeyResponse` that is looked at; the others are skipped.
#[derive(Clone, PartialEq, Eq, Message)]
struct Decision {
    #[prost(enumeration = "keystead::proto::v1::Outcome", tag = "1")]
    outcome: i32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Decisions {
    #[prost(message, repeated, tag = "1")]
    responses: Vec<Decision>,
}

/// The answer must be `VALID`.
pub fn valid(message: &[u8]) -> Result<(), Failure> {
    expect(&Decision::decode(message)?, keystead::proto::v1::Outcome::Valid)
}

/// The answer must be `NOT_FOUND`.
pub fn not_found(message: &[u8]) -> Result<(), Failure> {
    expect(&Decision::decode(message)?, keystead::proto::v1::Outcome::NotFound)
}

/// Each of so many answers must be `VALID`.
pub fn all_valid<const COUNT: usize>(message: &[u8]) -> Result<(), Failure> {
    let decisions = Decisions::decode(message)?.responses;
    if decisions.len() != COUNT {
        return Err(format!("{} answers to {COUNT} questions", decisions.len()).into());
    }
    decisions.iter().try_for_each(|decision| expect(decision, keystead::proto::v1::Outcome::Valid))
}

/// The answer must hold something.
pub fn answered(message: &[u8]) -> Result<(), Failure> {
    if message.is_empty() { Err("an empty answer".into()) } else { Ok(()) }
}

fn expect(decision: &Decision, outcome: keystead::proto::v1::Outcome) -> Result<(), Failure> {
    if decision.outcome() == outcome {
        return Ok(());
    }
    Err(format!("{} instead of {}", decision.outcome().as_str_name(), outcome.as_str_name()).into())
}
