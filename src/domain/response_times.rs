//! How response times are spread: a sparse histogram whose buckets grow by a constant factor.
//! After `DDSketch` (Masson, Rim, Lee: A fast and fully-mergeable quantile sketch with relative-error guarantees,
//! VLDB 2019): histograms add up bucket by bucket, and any percentile of any sum is off by at most 2 % of its value.

use std::{collections::BTreeMap, time::Duration};

/// The factor between the bounds of a bucket. A percentile is off by at most (GROWTH - 1) / (GROWTH + 1) of its value.
const GROWTH: f64 = 1.04;

/// The bucket of a response time, in whole microseconds: bucket `n` ends with `GROWTH` to the power of `n`, from 0 for
/// one microsecond to 643 for a day; bucket -1 holds 0 alone.
#[must_use]
pub fn bucket_of(time: Duration) -> i64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a response time is at most a day, and its logarithm a small number"
    )]
    match time.as_micros() {
        0 => -1,
        micros => ((micros as f64).ln() / GROWTH.ln()).ceil() as i64,
    }
}

/// The time that stands for all of a bucket: as far from its lower bound as from its upper one, relative to either.
fn middle_of(bucket: i64) -> Duration {
    if bucket < 0 {
        return Duration::ZERO;
    }
    let exponent = i32::try_from(bucket).unwrap_or(i32::MAX);
    let micros = 2.0 * GROWTH.powi(exponent) / (GROWTH + 1.0);
    Duration::try_from_secs_f64(micros / 1e6).unwrap_or(Duration::MAX)
}

/// How often each bucket was met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseTimes {
    counts: BTreeMap<i64, i64>,
}

impl ResponseTimes {
    /// Adds so many response times of a bucket.
    pub fn add(&mut self, bucket: i64, count: i64) {
        let sum = self.counts.entry(bucket).or_default();
        *sum = sum.saturating_add(count);
    }

    /// How many response times there are.
    #[must_use]
    pub fn count(&self) -> i64 {
        self.counts.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The time that `percent` of a hundred requests did not exceed (nearest rank), 1 to 100; `None` where there is
    /// none.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Option<Duration> {
        let rank = (i128::from(self.count()) * i128::from(percent) + 99) / 100;
        let mut seen = 0;
        let bucket = self.counts.iter().find(|(_, count)| {
            seen += i128::from(**count);
            seen >= rank && **count > 0
        })?;
        Some(middle_of(*bucket.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_no_percentile_and_zero_is_zero() {
        assert_eq!(ResponseTimes::default().percentile(50), None);
        let mut times = ResponseTimes::default();
        times.add(bucket_of(Duration::from_nanos(999)), 3);
        assert_eq!((times.count(), times.percentile(50)), (3, Some(Duration::ZERO)));
        assert_eq!(bucket_of(Duration::from_hours(24)), 643);
    }

    proptest! {
        #[test]
        fn every_percentile_is_within_two_percent_of_the_exact_one(
            mut micros in prop::collection::vec(prop_oneof![1_u64..20, 1_u64..1_000_000, 1_u64..86_400_000_001], 1..300),
            percent in 1_u8..=100,
        ) {
            let mut times = ResponseTimes::default();
            for micros in &micros {
                times.add(bucket_of(Duration::from_micros(*micros)), 1);
            }
            micros.sort_unstable();
            let rank = (micros.len() * usize::from(percent)).div_ceil(100);
            let exact = Duration::from_micros(micros[rank - 1]).as_secs_f64();
            let found = times.percentile(percent).map_or(0.0, |time| time.as_secs_f64());
            // A time is told in whole nanoseconds.
            prop_assert!((found - exact).abs() <= 0.02 * exact + 1e-9, "{found} for {exact}");
        }
    }
}
