//! What the processes of one server printed, byte for byte, over all its restarts; and where its present process said
//! that it listens. Invariant: nothing that was printed is lost or cut.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What the processes of one server printed.
#[derive(Clone, Default)]
pub(super) struct Output(Arc<Mutex<Printed>>);

#[derive(Default)]
struct Printed {
    bytes: Vec<u8>,
    /// Where the present process's part begins.
    present: usize,
}

impl Output {
    fn printed(&self) -> MutexGuard<'_, Printed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.printed().bytes.clone()
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed().bytes).into_owned()
    }

    pub(super) fn begin_process(&self) {
        let mut printed = self.printed();
        printed.present = printed.bytes.len();
    }

    /// The address in the line `listening ... address=127.0.0.1:PORT` of the present process.
    pub(super) fn listening_address(&self) -> Option<SocketAddr> {
        self.address_after("listening", "address")
    }

    /// The address in the present process's line that holds both words.
    pub(super) fn address_after(&self, line: &str, field: &str) -> Option<SocketAddr> {
        let printed = self.printed();
        let text = String::from_utf8_lossy(&printed.bytes[printed.present..]);
        let line = text.lines().find(|printed| printed.contains(line) && printed.contains(field))?;
        let address = &line[line.find("127.0.0.1:")?..];
        let end = address.find(|letter: char| !matches!(letter, '0'..='9' | '.' | ':'));
        address[..end.unwrap_or(address.len())].parse().ok()
    }

    /// Copies a stream, whole lines at a time so that two streams do not cut into each other's.
    pub(super) fn read_from(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let output = self.clone();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                output.printed().bytes.append(&mut line);
            }
        })
    }
}
