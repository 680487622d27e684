//! The address under which replicas know their database, as a virtual address or a balancer gives one: it leads to one
//! server, and after a failover to another.
//! Invariant: once it leads elsewhere, connections to where it led before are gone.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// An address that leads somewhere. It lasts as long as the test's runtime.
pub struct Address {
    address: SocketAddr,
    target: watch::Sender<SocketAddr>,
}

impl Address {
    /// An address of its own that leads to `target`.
    pub async fn of(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a local address");
        let (target, changes) = watch::channel(target);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection is accepted");
                tokio::spawn(carry(client, changes.clone()));
            }
        });
        Self { address, target }
    }

    /// What `url` is by this address.
    pub fn in_place_of(&self, target: SocketAddr, url: &str) -> String {
        let named = format!("@{target}/");
        assert!(url.contains(&named), "the URL names {target}");
        url.replace(&named, &format!("@{}/", self.address))
    }

    /// Leads to another target from here on.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Leads nowhere from here on: connections are closed, new ones too.
    pub fn lead_nowhere(&self) {
        // Nobody listens on the discard port of a machine of today.
        self.lead_to(SocketAddr::from(([127, 0, 0, 1], 9)));
    }
}

/// Carries one connection until it ends, or the address leads elsewhere.
async fn carry(mut client: TcpStream, mut changes: watch::Receiver<SocketAddr>) {
    let target = *changes.borrow_and_update();
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        // However it ended, both sides are closed now.
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        _ = changes.changed() => {}
    }
}
