//! What bounds the use of a key: rate limits over a sliding window, and credits that run down.
//! The arithmetic alone; who keeps the counts is `src/limits/`. All of it is integer arithmetic, so that
//! "remaining" is exact and no rounding ever admits one call more than the limit.

use std::time::Duration;

use super::{
    Invalid,
    key::stored_enum,
    time::{DAY_US, Timestamp},
};

/// The most limits on one key or organization.
pub const RATE_LIMITS_MAX: usize = 100;
/// The highest `limit` of a rate limit.
const LIMIT_MAX: i64 = 1_000_000_000;
/// The longest window: 400 days.
const WINDOW_MAX: Duration = Duration::from_micros(400 * DAY_US as u64);
/// The highest number of credits, and of a refill.
const CREDITS_MAX: i64 = 1_000_000_000_000;
/// The highest cost of one verification.
pub const COST_MAX: i64 = 1_000_000;

/// At most `limit` in any window of this length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    pub name: String,
    pub limit: i64,
    pub window: Duration,
    /// Counted and reported, never denies.
    pub shadow: bool,
}

impl RateLimit {
    /// Reads a limit: a name of 1 to 64 of `[a-z0-9_-]`, 1 to 1,000,000,000, 1 second to 400 days.
    ///
    /// # Errors
    /// Refuses anything else, naming the part that is wrong.
    pub fn parse(name: &str, limit: i64, window: Duration, shadow: bool) -> Result<Self, Invalid> {
        let name = parse_limit_name(name).map_err(|_| Invalid::new("must have a name of 1 to 64 of a-z 0-9 _ -"))?;
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Invalid::new(format!("must have a limit of 1 to {LIMIT_MAX}")));
        }
        if window < Duration::from_secs(1) || window > WINDOW_MAX {
            return Err(Invalid::new("must have a window of 1 second to 400 days"));
        }
        Ok(Self { name, limit, window, shadow })
    }

    /// The length of the window in microseconds.
    #[must_use]
    pub fn window_us(&self) -> i64 {
        i64::try_from(self.window.as_micros()).unwrap_or(i64::MAX)
    }
}

/// Reads the name of a limit: 1 to 64 of `[a-z0-9_-]`.
///
/// # Errors
/// Refuses anything else.
pub fn parse_limit_name(name: &str) -> Result<String, Invalid> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    if !(1..=64).contains(&name.len()) || !name.bytes().all(legal) {
        return Err(Invalid::new("must be 1 to 64 of a-z 0-9 _ -"));
    }
    Ok(name.to_owned())
}

/// One limit's standing after a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitStatus {
    pub name: String,
    pub limit: i64,
    /// What may still be charged now, never negative.
    pub remaining: i64,
    /// Where exceeded: the shortest wait after which the same cost fits, if nothing else is charged. Else: until
    /// the limit is entirely free. Absent where the cost is over the limit and so never fits.
    pub reset_after: Option<Duration>,
    pub exceeded: bool,
    pub shadow: bool,
}

/// The sliding-window counter of one limit: the count of the present fixed window, and of the one before it,
/// which weighs in by the part that the sliding window still covers.
/// Source: "Sliding window counters", S. Chandrasekaran, Cloudflare blog, 2017-06-07.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    /// The start of the present fixed window, a multiple of its length since the epoch.
    pub start_us: i64,
    pub current: i64,
    pub previous: i64,
}

impl SlidingWindow {
    /// A counter that has counted nothing.
    #[must_use]
    pub fn empty(limit: &RateLimit, now: Timestamp) -> Self {
        Self { start_us: now.micros() - now.micros() % limit.window_us(), current: 0, previous: 0 }
    }

    /// The counter as it stands at `now`. A clock that steps back leaves it where it is.
    #[must_use]
    pub fn at(self, limit: &RateLimit, now: Timestamp) -> Self {
        let fresh = Self::empty(limit, now);
        let passed = (fresh.start_us - self.start_us) / limit.window_us();
        match passed {
            ..=0 => self,
            1 => Self { previous: self.current, ..fresh },
            _ => fresh,
        }
    }

    /// Whether `cost` more fits at `now`; the counter must stand `at(now)`.
    #[must_use]
    pub fn admits(self, limit: &RateLimit, now: Timestamp, cost: i64) -> bool {
        self.weighted(limit, now) + i128::from(cost) * i128::from(limit.window_us())
            <= i128::from(limit.limit) * i128::from(limit.window_us())
    }

    /// The counter with `cost` charged.
    #[must_use]
    pub const fn charged(self, cost: i64) -> Self {
        Self { current: self.current.saturating_add(cost), ..self }
    }

    /// The standing that an answer reports; `exceeded` says that `cost` did not fit.
    #[must_use]
    pub fn status(self, limit: &RateLimit, now: Timestamp, cost: i64, exceeded: bool) -> LimitStatus {
        let window = i128::from(limit.window_us());
        let free = i128::from(limit.limit) * window - self.weighted(limit, now);
        let wait = if exceeded { self.wait_for(limit, now, cost) } else { self.until_free(limit, now) };
        LimitStatus {
            name: limit.name.clone(),
            limit: limit.limit,
            remaining: i64::try_from(free.max(0) / window).unwrap_or(0),
            reset_after: (!exceeded || cost <= limit.limit)
                .then(|| Duration::from_micros(u64::try_from(wait).unwrap_or(0))),
            exceeded,
            shadow: limit.shadow,
        }
    }

    /// The count within the sliding window, times the window's length so that it stays whole.
    fn weighted(self, limit: &RateLimit, now: Timestamp) -> i128 {
        let window = i128::from(limit.window_us());
        i128::from(self.current) * window + i128::from(self.previous) * (window - self.elapsed(limit, now))
    }

    fn elapsed(self, limit: &RateLimit, now: Timestamp) -> i128 {
        self.since_start(now).clamp(0, i128::from(limit.window_us()))
    }

    /// Negative where the clock has stepped back to before this window: then a wait has to bring it here again.
    fn since_start(self, now: Timestamp) -> i128 {
        i128::from(now.micros()) - i128::from(self.start_us)
    }

    fn until_free(self, limit: &RateLimit, now: Timestamp) -> i128 {
        let window = i128::from(limit.window_us());
        let rest = window - self.since_start(now);
        match (self.current, self.previous) {
            (0, 0) => 0,
            (0, _) => rest,
            (_, _) => rest + window,
        }
    }

    /// Microseconds until `cost` fits: within this window while the previous count fades, else in the next one
    /// while the present count does.
    fn wait_for(self, limit: &RateLimit, now: Timestamp, cost: i64) -> i128 {
        let window = i128::from(limit.window_us());
        let since_start = self.since_start(now);
        let room = i128::from(limit.limit) - i128::from(self.current) - i128::from(cost);
        if room >= 0 && self.previous > 0 {
            return (fade(self.previous, room, window) - since_start).max(0);
        }
        let room = (i128::from(limit.limit) - i128::from(cost)).max(0);
        window - since_start + fade(self.current, room, window)
    }
}

/// Charges `cost` to all of these limits or, where it does not fit into one that is no shadow, to none; says whether it
/// was denied. A cost of 0 charges nothing and asks for 1. The windows are those of the limits, in the same order, and
/// stand at `now` already.
pub fn charge_all(limits: &[&RateLimit], windows: &mut [SlidingWindow], now: Timestamp, cost: i64) -> bool {
    let mut standings = limits.iter().zip(windows.iter());
    let denied = standings.any(|(limit, window)| !limit.shadow && !window.admits(limit, now, cost.max(1)));
    if !denied {
        for window in windows {
            *window = window.charged(cost);
        }
    }
    denied
}

/// How far into a window a count of the window before must have faded to leave no more than `room`.
fn fade(count: i64, room: i128, window: i128) -> i128 {
    let count = i128::from(count).max(1);
    (window * (count - room).max(0) + count - 1) / count
}

stored_enum! {
    /// How often credits are refilled: at midnight, or on the first of the month, UTC.
    RefillInterval { Day = "day", Month = "month" }
}

/// A refill: at each such moment what remains is raised to `amount`, never lowered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refill {
    pub amount: i64,
    pub interval: RefillInterval,
}

impl RefillInterval {
    /// The first moment of refill after `now`.
    #[must_use]
    pub fn next_after(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Day => Timestamp::from_micros(now.start_of_day().micros() + DAY_US),
            Self::Month => now.start_of_next_month(),
        }
    }
}

/// A count of uses that runs down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credits {
    pub remaining: i64,
    pub refill: Option<Refill>,
}

impl Credits {
    /// Reads credits: 0 to 10^12 remaining; a refill has both an amount of 1 to 10^12 and an interval, or neither.
    ///
    /// # Errors
    /// Refuses anything else.
    pub fn parse(remaining: i64, refill_amount: i64, interval: Option<RefillInterval>) -> Result<Self, Invalid> {
        if !(0..=CREDITS_MAX).contains(&remaining) || !(0..=CREDITS_MAX).contains(&refill_amount) {
            return Err(Invalid::new(format!("must have amounts of 0 to {CREDITS_MAX}")));
        }
        let refill = match (refill_amount, interval) {
            (0, None) => None,
            (1.., Some(interval)) => Some(Refill { amount: refill_amount, interval }),
            _ => return Err(Invalid::new("must have both refill_amount and refill_interval, or neither")),
        };
        Ok(Self { remaining, refill })
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(limit: i64, seconds: u64) -> RateLimit {
        RateLimit::parse("requests", limit, Duration::from_secs(seconds), false).unwrap()
    }

    const fn seconds(count: i64) -> Timestamp {
        Timestamp::from_micros(count * 1_000_000)
    }

    #[test]
    fn a_full_window_fades_in_the_next_one() {
        let limit = limit(10, 60);
        let mut window = SlidingWindow::empty(&limit, seconds(0));
        for _ in 0..10 {
            assert!(window.admits(&limit, seconds(1), 1));
            window = window.charged(1);
        }
        assert!(!window.admits(&limit, seconds(59), 1));
        let next = window.at(&limit, seconds(60));
        assert!(!next.admits(&limit, seconds(60), 1), "all ten still lie within the last minute");
        assert!(next.admits(&limit, seconds(66), 1), "a tenth of them has left it");
        assert!(!next.admits(&limit, seconds(66), 2));
        assert_eq!(window.at(&limit, seconds(180)), SlidingWindow::empty(&limit, seconds(180)));
    }

    #[test]
    fn the_wait_is_the_shortest_after_which_the_cost_fits() {
        let limit = limit(10, 60);
        let full = SlidingWindow { start_us: 0, current: 10, previous: 0 };
        for (cost, now) in [(1, 30), (4, 1), (10, 59)] {
            let status = full.status(&limit, seconds(now), cost, true);
            let ready = seconds(now).plus(status.reset_after.unwrap());
            assert!(full.at(&limit, ready).admits(&limit, ready, cost));
            let early = ready.minus(Duration::from_micros(1));
            assert!(!full.at(&limit, early).admits(&limit, early, cost));
        }
    }

    #[test]
    fn remaining_counts_down_and_a_step_back_of_the_clock_frees_nothing() {
        let limit = limit(3, 3600);
        let window = SlidingWindow::empty(&limit, seconds(7200)).charged(2);
        assert_eq!(window.status(&limit, seconds(7200), 1, false).remaining, 1);
        let back = window.at(&limit, seconds(3600));
        assert_eq!(back, window);
        assert!(!back.admits(&limit, seconds(3600), 2));
    }

    #[test]
    fn refills_fall_on_midnight_and_on_the_first() {
        let now = seconds(1_000_000);
        assert_eq!(RefillInterval::Day.next_after(now), seconds(1_036_800));
        assert_eq!(RefillInterval::Month.next_after(now), seconds(31 * 86_400));
    }

    #[test]
    fn limits_and_credits_out_of_range_are_refused() {
        let day = Duration::from_hours(24);
        assert!(RateLimit::parse("", 1, day, false).is_err());
        assert!(RateLimit::parse("A", 1, day, false).is_err());
        assert!(RateLimit::parse("a", 0, day, false).is_err());
        assert!(RateLimit::parse("a", 1, Duration::from_millis(999), false).is_err());
        assert!(RateLimit::parse("a", 1, 401 * day, false).is_err());
        assert!(Credits::parse(-1, 0, None).is_err());
        assert!(Credits::parse(1, 5, None).is_err());
        assert!(Credits::parse(1, 0, Some(RefillInterval::Day)).is_err());
    }
}
