//! The sliding window against a slow, obviously right model: it keeps every charge and counts from the definition.
//! The definition is the sliding-window counter's: charges of the present fixed window count whole, those of the one
//! before by the part of it that the sliding window still covers. Time moves on, jumps over windows and steps back.
//! A charge made while the clock stands before a window that has been charged counts in that window.

use std::time::Duration;

use proptest::prelude::*;

use super::{COST_MAX, RateLimit, SlidingWindow, Timestamp};

/// A fraction; the denominator is the window's length, and positive.
#[derive(Clone, Copy)]
struct Fraction {
    over: i128,
    under: i128,
}

impl Fraction {
    fn plus(self, whole: i64) -> Self {
        Self { over: self.over + i128::from(whole) * self.under, ..self }
    }

    fn is_at_most(self, whole: i64) -> bool {
        self.over <= i128::from(whole) * self.under
    }

    fn ceiling(self) -> i64 {
        i64::try_from((self.over + self.under - 1) / self.under).unwrap()
    }
}

/// One limit's charges, ever.
#[derive(Default)]
struct Model {
    /// The number of the fixed window, and the cost.
    charges: Vec<(i64, i64)>,
}

impl Model {
    fn present(&self, limit: &RateLimit, now: i64) -> i64 {
        self.charges.iter().map(|(number, _)| *number).fold(now / length(limit), i64::max)
    }

    fn count(&self, number: i64) -> i64 {
        self.charges.iter().filter(|(of, _)| *of == number).map(|(_, cost)| cost).sum()
    }

    fn estimate(&self, limit: &RateLimit, now: i64) -> Fraction {
        let present = self.present(limit, now);
        let covered = length(limit) - (now - present * length(limit)).max(0);
        let before = i128::from(self.count(present - 1)) * i128::from(covered);
        Fraction { over: before, under: i128::from(length(limit)) }.plus(self.count(present))
    }

    fn admits(&self, limit: &RateLimit, now: i64, cost: i64) -> bool {
        self.estimate(limit, now).plus(cost).is_at_most(limit.limit)
    }

    fn charge(&mut self, limit: &RateLimit, now: i64, cost: i64) {
        self.charges.push((self.present(limit, now), cost));
    }

    /// The least wait after which something holds that holds from some moment on, if nothing is charged meanwhile.
    fn least_wait(&self, limit: &RateLimit, now: i64, holds: impl Fn(i64) -> bool) -> i64 {
        let last = (self.present(limit, now) + 2) * length(limit) - now;
        let (mut low, mut high) = (0, last);
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(now + middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    fn wait(&self, limit: &RateLimit, now: i64, cost: i64, exceeded: bool) -> i64 {
        if exceeded {
            self.least_wait(limit, now, |then| self.admits(limit, then, cost))
        } else {
            self.least_wait(limit, now, |then| self.estimate(limit, then).over == 0)
        }
    }
}

fn length(limit: &RateLimit) -> i64 {
    limit.window_us()
}

/// How the clock moves between two verifications.
#[derive(Debug, Clone)]
enum Move {
    By(i64),
    /// By the wait that the last answer told and so much more or less: to the very edge of what fits.
    ByTheWaitAnd(i64),
}

/// What happens between two verifications, and what the second costs; at the edge it costs the same again.
#[derive(Debug, Clone)]
struct Step {
    clock: Move,
    cost: i64,
    new_limit: Option<i64>,
}

fn steps(window_us: i64) -> impl Strategy<Value = Vec<Step>> {
    let hour_us = 3_600_000_000_i64;
    let moves = prop_oneof![
        4 => Just(0),
        8 => 0..=window_us / 4,
        2 => window_us / 2..=window_us,
        1 => Just(window_us),
        1 => window_us..=5 * window_us,
        2 => -window_us..=-1,
        1 => -2 * window_us..=-window_us,
        1 => Just(-hour_us),
    ];
    let clocks = prop_oneof![3 => moves.prop_map(Move::By), 1 => (-1..=1_i64).prop_map(Move::ByTheWaitAnd)];
    let costs = prop_oneof![6 => 0..=5_i64, 2 => 0..=40_i64, 1 => 0..=COST_MAX];
    let limits = prop_oneof![9 => Just(None), 1 => (1..=60_i64).prop_map(Some)];
    let step = (clocks, costs, limits).prop_map(|(clock, cost, new_limit)| Step { clock, cost, new_limit });
    prop::collection::vec(step, 1..80)
}

fn runs() -> impl Strategy<Value = (i64, bool, i64, Vec<Step>)> {
    let window_us = prop_oneof![
        Just(1_000_000_i64),
        1_000_000..=10_000_000_i64,
        Just(60_000_000_i64),
        Just(86_400_000_000_i64),
        Just(400 * 86_400_000_000_i64),
    ];
    window_us.prop_flat_map(|window_us| {
        (Just(window_us), any::<bool>(), prop_oneof![1..=30_i64, 1..=2_000_000_i64], steps(window_us))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_window_admits_and_reports_what_its_definition_says((window_us, shadow, units, steps) in runs()) {
        let length = Duration::from_micros(u64::try_from(window_us).unwrap());
        let mut limit = RateLimit::parse("requests", units, length, shadow).unwrap();
        let mut now = 1_800_000_000_000_000;
        let mut stored: Option<SlidingWindow> = None;
        let mut model = Model::default();
        let (mut last_cost, mut last_wait) = (0, 0);
        for step in steps {
            let step_cost = match step.clock {
                Move::By(_) => step.cost,
                Move::ByTheWaitAnd(_) => last_cost,
            };
            now += match step.clock {
                Move::By(micros) => micros,
                Move::ByTheWaitAnd(micros) => last_wait + micros,
            };
            limit.limit = step.new_limit.unwrap_or(limit.limit);
            let at = Timestamp::from_micros(now);
            let window = stored.unwrap_or_else(|| SlidingWindow::empty(&limit, at)).at(&limit, at);
            // A peek is answered as a cost of 1 would be.
            let cost = step_cost.max(1);
            let admitted = window.admits(&limit, at, cost);
            prop_assert_eq!(admitted, model.admits(&limit, now, cost), "at {}", now);
            let charged = step_cost > 0 && (admitted || shadow);
            let window = if charged { window.charged(step_cost) } else { window };
            if charged {
                model.charge(&limit, now, step_cost);
                stored = Some(window);
            }
            let status = window.status(&limit, at, cost, !admitted);
            prop_assert_eq!(status.remaining, (limit.limit - model.estimate(&limit, now).ceiling()).max(0));
            let never = !admitted && cost > limit.limit;
            let wait = (!never).then(|| model.wait(&limit, now, cost, !admitted));
            prop_assert_eq!(status.reset_after.map(|wait| i64::try_from(wait.as_micros()).unwrap()), wait);
            (last_cost, last_wait) = (step_cost, wait.unwrap_or(0));
            if charged && !shadow {
                prop_assert!(model.estimate(&limit, now).is_at_most(limit.limit), "more than the limit at {}", now);
            }
        }
    }
}
