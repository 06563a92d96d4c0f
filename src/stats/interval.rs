//! The median with a distribution-free interval, and percentiles that are withheld when the
//! sample cannot carry them.
//!
//! The interval is a pair of order statistics: for n independent draws the number below the true
//! median is binomial (n, 1/2) whatever the distribution (David and Nagaraja, "Order Statistics",
//! section 7.1). No normality, no resampling.

/// Confidence of every interval in this program.
pub const CONFIDENCE: f64 = 0.95;

/// Fewest values for which a 95 % interval of the median exists: 1 - 2/2^6 = 96.9 %.
pub const MIN_BLOCKS: usize = 6;

/// A median with its interval, in the unit of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MedianInterval {
    /// The sample median.
    pub median: f64,
    /// Lower end: the order statistic of rank r.
    pub lo: f64,
    /// Upper end: the order statistic of rank n + 1 - r.
    pub hi: f64,
    /// Probability that such an interval covers the true median, at least 0.95.
    pub confidence: f64,
}

impl MedianInterval {
    /// (hi - lo) / (2 x median); zero for a median of zero with a zero-width interval.
    pub fn half_width_rel(&self) -> f64 {
        let half = (self.hi - self.lo) / 2.0;
        if half == 0.0 { 0.0 } else { half / self.median.abs() }
    }

    /// The interval of a positive value that may also be off by a share that all its draws have in common:
    /// wider by that share on either side.
    pub fn widened(self, share: f64) -> Self {
        Self { lo: self.lo / (1.0 + share), hi: self.hi * (1.0 + share), ..self }
    }
}

/// Median of values in any order; `None` for an empty slice or one with a NaN.
///
/// ```
/// assert_eq!(moe_frontier::stats::interval::median(&[3.0, 1.0, 2.0, 10.0]), Some(2.5));
/// ```
pub fn median(values: &[f64]) -> Option<f64> {
    sorted(values).map(|v| median_sorted(&v))
}

/// Median with its distribution-free 95 % interval; `None` below [`MIN_BLOCKS`] values or with a NaN.
pub fn median_interval(values: &[f64]) -> Option<MedianInterval> {
    let sorted = sorted(values)?;
    let (rank, confidence) = lower_rank(sorted.len(), CONFIDENCE)?;
    Some(MedianInterval {
        median: median_sorted(&sorted),
        lo: sorted[rank - 1],
        hi: sorted[sorted.len() - rank],
        confidence,
    })
}

/// The largest rank r (from 1) whose pair (r, n + 1 - r) covers the median with at least
/// `confidence`, and the probability with which it does; `None` when even (1, n) does not.
pub fn lower_rank(n: usize, confidence: f64) -> Option<(usize, f64)> {
    let mut ln_term = -(n as f64) * std::f64::consts::LN_2;
    let mut below = 0.0;
    let mut best = None;
    for rank in 1..=n / 2 {
        below += ln_term.exp();
        let coverage = 1.0 - 2.0 * below;
        if coverage < confidence {
            break;
        }
        best = Some((rank, coverage));
        ln_term += ((n - rank + 1) as f64 / rank as f64).ln();
    }
    best
}

/// A percentile, or how many samples it would need.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Percentile {
    /// The order statistic of rank ceil(p n).
    Value(f64),
    /// No 95 % upper bound exists for a sample of this size.
    Withheld {
        /// Fewest samples for which one exists.
        needs: usize,
        /// Samples at hand.
        has: usize,
    },
}

/// The p-quantile (0 < p < 1), printed only when the largest sample is a 95 % upper bound of it:
/// 1 - p^n >= 0.95, so n >= ln 0.05 / ln p. `None` for a p outside (0, 1) or a NaN among the values.
pub fn percentile(values: &[f64], p: f64) -> Option<Percentile> {
    if !(p > 0.0 && p < 1.0) {
        return None;
    }
    let (needs, has) = (samples_needed(p), values.len());
    if has < needs {
        return Some(Percentile::Withheld { needs, has });
    }
    let sorted = sorted(values)?;
    let rank = ceil_count(p * has as f64).clamp(1, has);
    Some(Percentile::Value(sorted[rank - 1]))
}

/// Fewest samples for which a 95 % upper bound of the p-quantile exists.
pub fn samples_needed(p: f64) -> usize {
    ceil_count((1.0 - CONFIDENCE).ln() / p.ln())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates; ranks and counts are small and never negative"
)]
fn ceil_count(value: f64) -> usize {
    // 0.9 x 30 is 27.000000000000004 in binary: without the slack it would count as 28.
    (value - 1e-9).ceil().max(0.0) as usize
}

fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// Median of a sorted, non-empty slice.
pub(super) fn median_sorted(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn ranks_agree_with_the_binomial_table() {
        let table = [(6, 1), (10, 2), (14, 3), (20, 6), (30, 10), (50, 18), (100, 40)];
        for (n, rank) in table {
            assert_eq!(lower_rank(n, 0.95).map(|(r, _)| r), Some(rank), "n = {n}");
        }
        let (_, coverage) = lower_rank(6, 0.95).unwrap();
        assert!((coverage - 0.96875).abs() < 1e-12);
        assert_eq!(lower_rank(5, 0.95), None);
        assert_eq!(lower_rank(0, 0.95), None);
    }

    #[test]
    fn ranks_stay_right_where_two_to_the_minus_n_underflows() {
        // Normal approximation: r is about n/2 - 0.98 sqrt(n).
        let (rank, coverage) = lower_rank(10_000, 0.95).unwrap();
        assert!((4_900..=4_904).contains(&rank), "{rank}");
        assert!((0.95..0.955).contains(&coverage));
    }

    #[test]
    fn too_few_values_and_nan_have_no_interval() {
        assert_eq!(median_interval(&[1.0; 5]), None);
        assert_eq!(median_interval(&[1.0, 2.0, 3.0, 4.0, 5.0, f64::NAN]), None);
        assert_eq!(median(&[]), None);
        let same = median_interval(&[2.0; 6]).unwrap();
        assert!(same.half_width_rel().abs() < 1e-15);
    }

    #[test]
    fn percentiles_are_withheld_below_their_minimal_sample() {
        let needs: Vec<usize> = [0.9, 0.95, 0.99, 0.999].map(samples_needed).to_vec();
        assert_eq!(needs, [29, 59, 299, 2995]);
        let values: Vec<f64> = (1..=300).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.99), Some(Percentile::Value(297.0)));
        assert_eq!(
            percentile(&values[..298], 0.99),
            Some(Percentile::Withheld { needs: 299, has: 298 })
        );
        assert_eq!(percentile(&values, 1.0), None);
    }

    #[test]
    fn the_interval_covers_the_true_median_as_often_as_it_says() {
        // Exponential draws: skewed, true median ln 2.
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for n in [6, 10, 20] {
            let nominal = lower_rank(n, 0.95).unwrap().1;
            let covered = (0..2000)
                .filter(|_| {
                    let draws: Vec<f64> =
                        (0..n).map(|_| -(1.0 - rng.random::<f64>()).ln()).collect();
                    let ci = median_interval(&draws).unwrap();
                    ci.lo <= std::f64::consts::LN_2 && std::f64::consts::LN_2 <= ci.hi
                })
                .count();
            let share = covered as f64 / 2000.0;
            assert!((share - nominal).abs() <= 0.02, "n = {n}: {share} against {nominal}");
        }
    }
}
