//! How long and how large: in full, for figures, or briefly, to see that everything works.
//! Must not hold what belongs to one benchmark alone; each scales its own sizes with `sized`.

use std::time::Duration;

/// The scale of a run.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Whether sizes and times are tiny. Figures mean nothing then; the checks of every answer are the same.
    pub quick: bool,
}

impl Plan {
    /// Pairs of alternating runs.
    pub const fn pairs(self) -> usize {
        if self.quick { 1 } else { 5 }
    }

    /// How long one run of a pair lasts.
    pub const fn run(self) -> Duration {
        if self.quick { Duration::from_millis(100) } else { Duration::from_secs(2) }
    }

    /// How often something that takes one call is timed.
    pub const fn repeats(self) -> usize {
        if self.quick { 3 } else { 50 }
    }

    /// The one size in full, the other briefly.
    pub const fn sized<T: Copy>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}
