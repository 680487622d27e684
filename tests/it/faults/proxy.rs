//! The proxy's faults, each against a plain server that sends back what it gets: what it lets pass, what it holds, what
//! it ends, and what comes when it is over.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{SILENT_FOR, SOON};
use crate::harness::{Fault, Proxy, wait_until};

/// A server that sends back what it gets, and a proxy before it.
struct Echo {
    proxy: Proxy,
    received: Arc<AtomicUsize>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = listener.local_addr().expect("a local address");
        let received = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&received);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(send_back(stream, Arc::clone(&counter)));
            }
        });
        Self { proxy: Proxy::start(target).await, received }
    }

    /// Bytes that reached the server.
    fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }

    /// A connection that has carried something both ways.
    async fn used(&self) -> Client {
        let mut client = self.client().await;
        client.exchange("hello").await;
        client
    }

    async fn client(&self) -> Client {
        Client(soon(TcpStream::connect(self.proxy.address())).await.expect("the proxy accepts"))
    }
}

async fn send_back(mut stream: TcpStream, received: Arc<AtomicUsize>) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        received.fetch_add(read, Ordering::SeqCst);
        if stream.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// One connection through the proxy.
struct Client(TcpStream);

impl Client {
    async fn say(&mut self, text: &str) {
        soon(self.0.write_all(text.as_bytes())).await.expect("the proxy takes it");
    }

    async fn hear(&mut self, text: &str) {
        let mut bytes = vec![0_u8; text.len()];
        soon(self.0.read_exact(&mut bytes)).await.expect("an answer");
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    async fn exchange(&mut self, text: &str) {
        self.say(text).await;
        self.hear(text).await;
    }

    /// Nothing comes, and the connection is not closed.
    async fn expect_silence(&mut self) {
        let heard = tokio::time::timeout(SILENT_FOR, self.read()).await;
        assert!(heard.is_err(), "instead of silence: {heard:?}");
    }

    /// What the next read says: so many bytes, 0 at the end.
    async fn read(&mut self) -> io::Result<usize> {
        self.0.read(&mut [0; 64]).await
    }

    async fn expect_reset(&mut self) {
        let error = soon(self.read()).await.expect_err("the connection is reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

/// What a future gives, which it has to in a while.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("nothing holds this back")
}

#[tokio::test]
async fn without_a_fault_every_byte_passes_in_order_and_the_end_of_each_side_too() {
    const MANY: usize = 8 << 20;
    let echo = Echo::start().await;
    let mut client = echo.used().await;
    // Far more than sockets hold, so that both sides have to wait for each other.
    let sent: Vec<u8> = (0..=250).cycle().take(MANY).collect();
    let mut received = Vec::new();
    let (mut reader, mut writer) = client.0.split();
    let write = async {
        writer.write_all(&sent).await?;
        writer.shutdown().await
    };
    let (written, read) = soon(async { tokio::join!(write, reader.read_to_end(&mut received)) }).await;
    written.expect("all is taken");
    read.expect("the end comes in good order");
    assert!(received == sent, "{} bytes came back", received.len());
    assert_eq!(echo.proxy.accepted(), 1);
}

#[tokio::test]
async fn a_cut_resets_what_exists_and_what_is_new_until_it_is_over() {
    let echo = Echo::start().await;
    let (mut one, mut other) = (echo.used().await, echo.used().await);
    echo.proxy.set(Fault::Cut);
    one.expect_reset().await;
    other.expect_reset().await;
    // The reset may come so soon that it is the answer to the connecting.
    match soon(TcpStream::connect(echo.proxy.address())).await {
        Ok(new) => Client(new).expect_reset().await,
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    echo.proxy.set(Fault::None);
    let mut client = echo.used().await;
    // However short it is.
    echo.proxy.set(Fault::Cut);
    echo.proxy.set(Fault::None);
    client.expect_reset().await;
    echo.used().await;
    assert_eq!(echo.proxy.accepted(), 5);
}

#[tokio::test]
async fn a_delay_holds_what_comes_from_the_target_back_and_keeps_its_order() {
    const DELAY: Duration = Duration::from_millis(300);
    let echo = Echo::start().await;
    let mut client = echo.used().await;
    echo.proxy.set(Fault::Delay(DELAY));
    let begun = Instant::now();
    for text in ["one ", "two ", "three"] {
        client.say(text).await;
    }
    client.hear("one two three").await;
    assert!(begun.elapsed() >= DELAY, "{:?}", begun.elapsed());

    // What goes to the target is not held back.
    echo.proxy.set(Fault::Delay(Duration::from_hours(1)));
    let before = echo.received();
    client.say("four").await;
    wait_until("the target to have it", async || echo.received() == before + 4).await;
    client.expect_silence().await;
    echo.proxy.set(Fault::None);
    client.hear("four").await;
}

#[tokio::test]
async fn in_silence_connections_stay_and_are_accepted_and_what_was_held_comes_after_it() {
    let echo = Echo::start().await;
    let mut old = echo.used().await;
    let before = echo.received();
    echo.proxy.set(Fault::Silence);
    let mut new = echo.client().await;
    wait_until("the new connection to be accepted", async || echo.proxy.accepted() == 2).await;
    old.say("old").await;
    new.say("new").await;
    old.expect_silence().await;
    new.expect_silence().await;
    assert_eq!(echo.received(), before, "nothing reached the target");
    echo.proxy.set(Fault::None);
    old.hear("old").await;
    new.hear("new").await;
}

#[tokio::test]
async fn half_open_connections_are_dead_for_ever_and_never_closed_while_new_ones_work() {
    let echo = Echo::start().await;
    let mut old = echo.used().await;
    echo.proxy.set(Fault::HalfOpen);
    let mut new = echo.used().await;
    let before = echo.received();
    old.say("is anybody there?").await;
    old.expect_silence().await;
    echo.proxy.set(Fault::None);
    old.expect_silence().await;
    assert_eq!(echo.received(), before, "nothing reached the target");
    new.exchange("still here").await;

    // The next time it is the turn of those that were new.
    echo.proxy.set(Fault::HalfOpen);
    new.say("is anybody there?").await;
    new.expect_silence().await;
    echo.used().await;
    echo.proxy.set(Fault::Cut);
    old.expect_reset().await;
    new.expect_reset().await;
}

#[tokio::test]
async fn a_proxy_that_is_dropped_ends_its_connections() {
    let echo = Echo::start().await;
    let (mut idle, mut held) = (echo.used().await, echo.used().await);
    echo.proxy.set(Fault::HalfOpen);
    held.say("nobody gets this").await;
    drop(echo);
    for client in [&mut idle, &mut held] {
        let end = soon(client.read()).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
}
