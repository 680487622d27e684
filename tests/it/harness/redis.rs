//! Real Redis servers: one for the whole test process, servers that a test has for itself and may kill, halt and start
//! again, and a cluster of three. Each keeps nothing on disk and listens on 127.0.0.1 alone.
//! None outlives the tests, however they end: `redis.sh` holds a pipe from this process and kills the server when the
//! pipe closes. Invariant: a server that is handed out answered as the very process that was started here.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::{signals, tools, wait_until};

/// Another process may take a port first; so often is another port tried.
const STARTS_MAX: usize = 5;

/// The longest time for an answer to the harness's own questions.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The first and the last slot of each node of a cluster: all 16,384 of them.
const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// What makes a server a node of a cluster.
const CLUSTER_NODE: &[&str] = &["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"];

/// The test process's Redis. Tests share it: keys carry ids of organizations, which are unique.
pub struct Redis(Node);

/// The shared server, started by whoever asks first.
pub async fn redis() -> &'static Redis {
    static SERVER: OnceCell<Redis> = OnceCell::const_new();
    SERVER.get_or_init(|| async { Redis(Node::start(&[]).await) }).await
}

impl Redis {
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// What `--redis-url` takes.
    pub fn url(&self) -> String {
        url(self.address())
    }
}

/// A Redis of one test alone. Dropping it ends it.
pub struct OwnRedis {
    port: u16,
    node: Option<Node>,
}

impl OwnRedis {
    pub async fn start() -> Self {
        let node = Node::start(&[]).await;
        Self { port: node.port, node: Some(node) }
    }

    /// Where it listens, whenever it runs.
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// What `--redis-url` takes.
    pub fn url(&self) -> String {
        url(self.address())
    }

    /// Ends the process at once, running or halted; all that it knew is gone.
    pub fn kill9(&mut self) {
        let mut node = self.node.take().expect("a running Redis");
        node.child.kill().expect("SIGKILL is sent");
        node.finish();
    }

    /// Starts a new process at the same port, which knows nothing.
    pub async fn start_again(&mut self) {
        assert!(self.node.is_none(), "one process at a time");
        let started = Node::start_at(self.port, &[]).await;
        self.node = Some(started.unwrap_or_else(|log| panic!("Redis did not start again: {log}")));
    }

    /// Halts the process: connections stay, new ones are taken by the kernel, and nothing is answered.
    pub fn pause(&self) {
        signals::halt(&self.running().child);
    }

    /// Lets a halted process go on; it answers what it was asked meanwhile.
    pub fn resume(&self) {
        signals::go_on(&self.running().child);
    }

    fn running(&self) -> &Node {
        self.node.as_ref().expect("a running Redis")
    }
}

/// Three masters of a Redis Cluster that share all slots. Dropping it ends them.
pub struct RedisCluster {
    nodes: Vec<Node>,
}

impl RedisCluster {
    /// Starts the nodes, makes them one cluster, and waits until each says that it is whole.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for (epoch, (first, last)) in (1_u8..).zip(SLOTS) {
            let node = Node::start(CLUSTER_NODE).await;
            node.tell(&["CLUSTER", "ADDSLOTSRANGE", first, last]).await;
            // Two masters with one epoch would first have to settle whose is higher.
            node.tell(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch.to_string()]).await;
            nodes.push(node);
        }
        for other in &nodes[1..] {
            nodes[0].tell(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string()]).await;
        }
        for node in &nodes {
            wait_until("the cluster to be whole", async || node.sees_whole_cluster().await).await;
        }
        Self { nodes }
    }

    /// Where each node listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// What `--redis-url` takes.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }
}

/// Asks a Redis one thing, on a connection of its own. The error holds Redis's words where it refuses.
pub async fn ask(address: SocketAddr, words: &[&str]) -> io::Result<String> {
    tokio::time::timeout(ANSWER_WITHIN, exchange(address, words)).await?
}

/// Request and answer in RESP2, the protocol that a connection of Redis begins with.
async fn exchange(address: SocketAddr, words: &[&str]) -> io::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(request, "${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(ErrorKind::UnexpectedEof)?;
    match kind {
        "+" | ":" => Ok(rest.to_owned()),
        "$" => {
            let length: usize = rest.parse().map_err(io::Error::other)?;
            let mut bytes = vec![0_u8; length];
            stream.read_exact(&mut bytes).await?;
            String::from_utf8(bytes).map_err(io::Error::other)
        }
        _ => Err(io::Error::other(line.trim_end())),
    }
}

/// One process. Dropping it ends it.
struct Node {
    port: u16,
    /// What `redis.sh` became: Redis. Its standard input is open for as long as this process lives, and no longer.
    child: Child,
    /// Its own, removed by `redis.sh`.
    folder: PathBuf,
}

impl Node {
    /// Starts one at a free port.
    async fn start(arguments: &[&str]) -> Self {
        let mut log = String::new();
        for _ in 0..STARTS_MAX {
            match Self::start_at(free_port(), arguments).await {
                Ok(node) => return node,
                Err(why) => log = why,
            }
        }
        panic!("The tests' Redis did not start: {log}");
    }

    /// Starts one and waits until it answers, or returns its log where it ends instead.
    async fn start_at(port: u16, arguments: &[&str]) -> Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("keystead-redis-").tempdir().expect("a temporary folder").keep();
        let child = command(port, &folder, arguments).spawn().expect("sh runs");
        let node = Self { port, child, folder };
        // Whoever else may have taken the port answers with another id.
        let itself = format!("process_id:{}\r\n", node.child.id());
        wait_until("Redis to answer", async || {
            signals::has_ended(&node.child)
                || ask(node.address(), &["INFO", "server"]).await.is_ok_and(|info| info.contains(&itself))
        })
        .await;
        if signals::has_ended(&node.child) {
            return Err(fs::read_to_string(node.folder.join("redis.log")).unwrap_or_else(|error| error.to_string()));
        }
        Ok(node)
    }

    fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// Gives an order, which must be carried out.
    async fn tell(&self, words: &[&str]) {
        let answer = ask(self.address(), words).await;
        assert!(answer.as_ref().is_ok_and(|answer| answer == "OK"), "{words:?}: {answer:?}");
    }

    async fn sees_whole_cluster(&self) -> bool {
        let Ok(info) = ask(self.address(), &["CLUSTER", "INFO"]).await else {
            return false;
        };
        ["cluster_state:ok\r\n", "cluster_slots_ok:16384\r\n", "cluster_known_nodes:3\r\n"]
            .iter()
            .all(|line| info.contains(line))
    }

    /// Lets the watchdog end the process if it still runs, and waits for both.
    fn finish(&mut self) {
        drop(self.child.stdin.take());
        if let Some(mut output) = self.child.stdout.take() {
            // Ends when the watchdog has done its work.
            let _ = output.read_to_end(&mut Vec::new());
        }
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.finish();
    }
}

fn command(port: u16, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(include_str!("redis.sh")).arg("redis");
    command.arg(folder).arg(tools::redis_server());
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]).arg("--dir").arg(folder);
    command.args(["--save", "", "--appendonly", "no", "--protected-mode", "yes", "--daemonize", "no"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // A group of its own, so that Ctrl-C in a terminal reaches the tests and not the clean-up.
    command.process_group(0);
    command
}

/// A port that is free now, and with it the one for the talk between nodes of a cluster, 10,000 above. Both are below
/// those that the system gives to clients: one of those would not stay free while a server is away, and a client that
/// keeps asking for it could end up connected to itself.
fn free_port() -> u16 {
    loop {
        let port = 10_000 + u16::from_ne_bytes(keystead::random::bytes()) % 12_000;
        if [port, port + 10_000].iter().all(|port| TcpListener::bind(local(*port)).is_ok()) {
            return port;
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn url(address: SocketAddr) -> String {
    format!("redis://{address}")
}
