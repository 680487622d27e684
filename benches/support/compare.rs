//! Alternating runs of two things, A B A B ..., so that whatever else the machine does meets both alike; the median of
//! each and of the ratio of each pair, and their spread. Prints lines that can be pasted into `docs/performance.md`.
//! Must not judge: a goal is printed beside its figure and never checked, since other machines are not this one.

use std::fmt;

use super::Failure;

/// The samples of alternating runs, pair by pair.
pub struct Pairs<T> {
    pub ours: Vec<T>,
    pub baseline: Vec<T>,
}

/// A median and the range of what it is the median of.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    least: f64,
    most: f64,
}

impl<T> Pairs<T> {
    /// Runs both in turn, once to warm up and then `pairs` times.
    pub async fn alternate(
        pairs: usize,
        mut ours: impl AsyncFnMut() -> Result<T, Failure>,
        mut baseline: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<Self, Failure> {
        ours().await?;
        baseline().await?;
        let mut samples = Self { ours: Vec::new(), baseline: Vec::new() };
        for _ in 0..pairs {
            samples.ours.push(ours().await?);
            samples.baseline.push(baseline().await?);
        }
        Ok(samples)
    }

    /// What `of` says of ours, of the baseline, and their ratio pair by pair.
    pub fn spreads(&self, of: impl Fn(&T) -> f64) -> [Spread; 3] {
        let ours: Vec<f64> = self.ours.iter().map(&of).collect();
        let baseline: Vec<f64> = self.baseline.iter().map(&of).collect();
        let ratios: Vec<f64> = ours.iter().zip(&baseline).map(|(ours, baseline)| ours / baseline).collect();
        [Spread::of(&ours), Spread::of(&baseline), Spread::of(&ratios)]
    }
}

impl Spread {
    /// The spread of some values; of none, it is not a number.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        // The two in the middle, which are one where their number is odd.
        let median = f64::midpoint(at(last / 2), at(sorted.len() / 2));
        Self { median, least: at(0), most: at(last) }
    }
}

impl fmt::Display for Spread {
    /// The median, and the range in parentheses, with as many digits as mean something.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.median {
            large if large >= 100.0 => 0,
            small if small < 0.1 => 4,
            _ => 2,
        };
        write!(f, "{:.digits$} ({:.digits$} to {:.digits$})", self.median, self.least, self.most)
    }
}

/// Prints the title of a benchmark.
pub fn title(name: &str, what: &str) {
    println!("\n## {name}: {what}");
}

/// Prints how one rate compares to its baseline.
pub fn print_ratio(what: &str, unit: &str, baseline: &str, [ours, theirs, ratio]: [Spread; 3], goal: &str) {
    println!("{what}: {ours} {unit}; {baseline}: {theirs} {unit}; ratio {ratio}; goal {goal}");
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub const fn float(count: u64) -> f64 {
    count as f64
}
