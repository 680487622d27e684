//! Spans of usage: hours, days and months in UTC, and which rows of sums cover a span.
//! Sums are kept by the hour, day and month, so that a long span is read from few rows; here is decided which.
//! Invariant: the pieces of a cover do not overlap and leave no gap.

use super::{
    key::stored_enum,
    time::{DAY_US, HOUR_US, Timestamp},
};

stored_enum! {
    /// The width of one sum: of a bucket of a series, or of a row. Finest first.
    Granularity { Hour = "HOUR", Day = "DAY", Month = "MONTH" }
}

impl Granularity {
    /// The start of the bucket that `time` falls in.
    #[must_use]
    pub fn bucket_of(self, time: Timestamp) -> Timestamp {
        match self {
            Self::Hour => time.start_of_hour(),
            Self::Day => time.start_of_day(),
            Self::Month => time.start_of_month(),
        }
    }

    /// The start of the bucket after the one that `time` falls in.
    #[must_use]
    pub fn next_bucket(self, time: Timestamp) -> Timestamp {
        match self {
            Self::Hour => Timestamp::from_micros(time.start_of_hour().micros() + HOUR_US),
            Self::Day => Timestamp::from_micros(time.start_of_day().micros() + DAY_US),
            Self::Month => time.start_of_next_month(),
        }
    }

    /// `time` where a bucket starts at it, else the start of the next one.
    #[must_use]
    pub fn raised(self, time: Timestamp) -> Timestamp {
        if self.bucket_of(time) == time { time } else { self.next_bucket(time) }
    }

    const fn finer(self) -> Option<Self> {
        match self {
            Self::Hour => None,
            Self::Day => Some(Self::Hour),
            Self::Month => Some(Self::Day),
        }
    }
}

/// A run of whole buckets: `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub granularity: Granularity,
    pub start: Timestamp,
    pub end: Timestamp,
}

/// What a statistic is about: `[start, end)` in whole hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageSpan {
    pub start: Timestamp,
    pub end: Timestamp,
    /// No usage is recorded for this moment or a later one. A bucket that only such moments are missing from counts
    /// as whole, so that the present month is one row and not all of its days and hours.
    pub nothing_from: Timestamp,
}

impl UsageSpan {
    /// The pieces that hold the usage of this span and no other, oldest first, none coarser than `coarsest`: the
    /// coarsest that fit, finer ones at the edges. At most five.
    #[must_use]
    pub fn cover(&self, coarsest: Granularity) -> Vec<Piece> {
        let end = if self.end < self.nothing_from { self.end } else { coarsest.raised(self.end) };
        let mut pieces = Vec::new();
        cover(&mut pieces, coarsest, self.start, end);
        pieces
    }
}

fn cover(pieces: &mut Vec<Piece>, granularity: Granularity, start: Timestamp, end: Timestamp) {
    if start >= end {
        return;
    }
    let whole = Piece { granularity, start: granularity.raised(start), end: granularity.bucket_of(end) };
    match granularity.finer() {
        None => pieces.push(whole),
        Some(finer) if whole.start < whole.end => {
            cover(pieces, finer, start, whole.start);
            pieces.push(whole);
            cover(pieces, finer, whole.end, end);
        }
        Some(finer) => cover(pieces, finer, start, end),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-02-01T00:00:00Z.
    const FEBRUARY: i64 = 1_769_904_000_000_000;

    fn hours(from: i64, to: i64) -> UsageSpan {
        let at = |hours: i64| Timestamp::from_micros(FEBRUARY + hours * HOUR_US);
        UsageSpan { start: at(from), end: at(to), nothing_from: Timestamp::LAST }
    }

    fn words(span: &UsageSpan, coarsest: Granularity) -> Vec<(&'static str, i64, i64)> {
        let number = |time: Timestamp| (time.micros() - FEBRUARY) / HOUR_US;
        let pieces = span.cover(coarsest);
        pieces.iter().map(|piece| (piece.granularity.as_str(), number(piece.start), number(piece.end))).collect()
    }

    #[test]
    fn a_span_is_months_then_days_then_hours_at_its_edges() {
        let february = 28 * 24;
        let expected = [
            ("HOUR", -26, -24),
            ("DAY", -24, 0),
            ("MONTH", 0, february),
            ("DAY", february, february + 48),
            ("HOUR", february + 48, february + 49),
        ];
        assert_eq!(words(&hours(-26, february + 49), Granularity::Month), expected);
        assert_eq!(words(&hours(0, february), Granularity::Day), [("DAY", 0, february)]);
        assert_eq!(words(&hours(0, 50), Granularity::Hour), [("HOUR", 0, 50)]);
        assert_eq!(words(&hours(1, 3), Granularity::Month), [("HOUR", 1, 3)]);
    }

    #[test]
    fn the_present_month_is_one_row_and_an_end_before_which_usage_may_still_be_missing_is_not() {
        let nothing_from = Timestamp::from_micros(FEBRUARY + 49 * HOUR_US);
        let open = UsageSpan { nothing_from, ..hours(0, 49) };
        assert_eq!(words(&open, Granularity::Month), [("MONTH", 0, 28 * 24)]);
        assert_eq!(words(&open, Granularity::Day), [("DAY", 0, 72)]);
        let past = UsageSpan { nothing_from, ..hours(0, 48) };
        assert_eq!(words(&past, Granularity::Month), [("DAY", 0, 48)]);
    }

    proptest! {
        #[test]
        fn pieces_lie_end_to_end_on_their_own_borders(
            start in 0_i64..20_000, length in 1_i64..20_000, coarsest in 0_usize..3,
        ) {
            let span = hours(start, start + length);
            let pieces = span.cover(Granularity::ALL[coarsest]);
            prop_assert!(pieces.len() <= 5);
            prop_assert_eq!(pieces.first().map(|piece| piece.start), Some(span.start));
            prop_assert_eq!(pieces.last().map(|piece| piece.end), Some(span.end));
            prop_assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
            for piece in pieces {
                prop_assert!(piece.start < piece.end);
                for edge in [piece.start, piece.end] {
                    prop_assert_eq!(piece.granularity.bucket_of(edge), edge);
                }
            }
        }
    }
}
