//! Random bytes from the operating system's generator, in one place. Nothing else draws randomness.
//! Must not fall back to a weaker source: where the system has none, the process has to stop.

use std::time::Duration;

use rand::{Rng as _, TryRng as _, rngs::SysRng};
use zeroize::Zeroizing;

/// `N` random bytes.
///
/// # Panics
/// Where the operating system cannot give random bytes, which Linux does only before it has any entropy at boot.
/// No key can be issued safely then, and none should be.
#[must_use]
#[expect(clippy::expect_used, reason = "without randomness there is no safe way on")]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).expect("the operating system must give random bytes");
    bytes
}

/// `N` random bytes for an id: as unpredictable, but from a generator of this thread's own that the operating system
/// seeds now and then, because an id is drawn for every call and is no secret.
#[must_use]
pub fn id_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::disallowed_methods, reason = "this is the one place that draws randomness")]
    rand::rng().fill_bytes(&mut bytes);
    bytes
}

/// 32 random bytes for a secret, wiped on drop.
#[must_use]
pub fn secret_bytes() -> Zeroizing<[u8; 32]> {
    Zeroizing::new(bytes())
}

/// A random part of `most`, so that replicas that start, or lose the database, together do not come back together.
#[must_use]
pub fn jitter(most: Duration) -> Duration {
    most * u32::from(u8::from_ne_bytes(bytes())) / 256
}
