//! What one replica has seen of a shared limit, and what it charged alone while the shared counters were away.
//! Must not decide. Invariant: a charge made alone is in `alone` until it has been handed over, and in `window` from
//! then on, once.

use std::collections::HashMap;

use crate::{
    clock::Uptime,
    domain::{
        limits::{RateLimit, SlidingWindow},
        time::Timestamp,
    },
};

/// One limit of one subject, as this replica knows it.
pub struct Seen {
    pub name: Box<str>,
    pub length_us: i64,
    /// As the shared counters said last, or as it went on from there.
    pub window: SlidingWindow,
    /// What was charged alone in that window, and the shared counters do not know.
    pub alone: i64,
    /// When the shared counters answered last.
    pub answered_at: Uptime,
}

impl Seen {
    pub fn is_of(&self, limit: &RateLimit) -> bool {
        self.length_us == limit.window_us() && *self.name == *limit.name
    }

    /// What is known of a limit; nothing yet is known as `window`.
    pub fn entry<'a>(
        seen: &'a mut HashMap<u128, Vec<Self>>,
        subject: u128,
        limit: &RateLimit,
        window: SlidingWindow,
    ) -> &'a mut Self {
        let all = seen.entry(subject).or_default();
        let at = all.iter().position(|seen| seen.is_of(limit)).unwrap_or_else(|| {
            let (name, length_us) = (limit.name.as_str().into(), limit.window_us());
            all.push(Self { name, length_us, window, alone: 0, answered_at: Uptime::START });
            all.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "it was found there, or has just been put there")]
        &mut all[at]
    }

    /// With what was charged alone, once for each live replica.
    pub const fn weighted(&self, live: i64) -> SlidingWindow {
        self.window.charged(self.alone.saturating_mul(live))
    }

    /// What was charged alone, for the shared counters to take over; from here on it counts once, as they will.
    pub const fn hand_over(&mut self) -> i64 {
        let carry = self.alone;
        (self.window, self.alone) = (self.window.charged(carry), 0);
        carry
    }

    /// What was handed over and may not have come through.
    pub const fn take_back(&mut self, start_us: i64, carry: i64) {
        if self.window.start_us == start_us {
            (self.window, self.alone) = (self.window.charged(-carry), self.alone.saturating_add(carry));
        }
    }

    /// Goes over to the present window; what was charged alone in the one before counts there as for all replicas.
    pub fn move_on(&mut self, limit: &RateLimit, now: Timestamp, live: i64) {
        let moved = self.weighted(live).at(limit, now);
        if moved.start_us != self.window.start_us {
            (self.window, self.alone) = (moved, 0);
        }
    }
}
