//! Outliers are counted, never removed; the spread is told by a robust coefficient of variation.
//!
//! Fences: Tukey, "Exploratory Data Analysis" (1977). MAD scale 1.4826: consistent with the
//! standard deviation of a normal distribution.

use super::interval::{median, median_sorted};

/// Samples beyond Tukey's fences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutlierCounts {
    /// Between 1.5 and 3 interquartile ranges outside the quartiles.
    pub mild: usize,
    /// More than 3 interquartile ranges outside.
    pub severe: usize,
}

/// Counts the values beyond the quartiles by 1.5 (mild) and 3 (severe) interquartile ranges.
/// Fewer than four values, or a NaN, have no quartiles: nothing is counted.
pub fn tukey_counts(values: &[f64]) -> OutlierCounts {
    if values.len() < 4 || values.iter().any(|v| v.is_nan()) {
        return OutlierCounts::default();
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let q1 = median_sorted(&sorted[..half]);
    let q3 = median_sorted(&sorted[sorted.len() - half..]);
    let range = q3 - q1;
    let beyond = |v: &f64, fences: f64| *v < q1 - fences * range || *v > q3 + fences * range;
    let severe = sorted.iter().filter(|v| beyond(v, 3.0)).count();
    let mild = sorted.iter().filter(|v| beyond(v, 1.5)).count() - severe;
    OutlierCounts { mild, severe }
}

/// 1.4826 x median absolute deviation / median; `None` without values or for a median of zero.
pub fn robust_cv(values: &[f64]) -> Option<f64> {
    let centre = median(values)?;
    if centre == 0.0 {
        return None;
    }
    let deviations: Vec<f64> = values.iter().map(|v| (v - centre).abs()).collect();
    median(&deviations).map(|mad| 1.4826 * mad / centre.abs())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Normal};

    use super::*;

    #[test]
    fn fences_separate_mild_from_severe() {
        let mut values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(tukey_counts(&values), OutlierCounts::default());
        values.extend([35.0, 60.0]);
        assert_eq!(tukey_counts(&values), OutlierCounts { mild: 1, severe: 1 });
    }

    #[test]
    fn too_few_or_nan_values_count_nothing() {
        assert_eq!(tukey_counts(&[1.0, 2.0, 900.0]), OutlierCounts::default());
        assert_eq!(tukey_counts(&[1.0, 2.0, 3.0, f64::NAN, 900.0]), OutlierCounts::default());
        assert_eq!(robust_cv(&[]), None);
        assert_eq!(robust_cv(&[0.0, 0.0]), None);
    }

    #[test]
    fn the_robust_spread_is_the_standard_deviation_and_ignores_a_tail() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let normal = Normal::new(100.0, 2.0).unwrap();
        let mut values: Vec<f64> = (0..20_000).map(|_| normal.sample(&mut rng)).collect();
        let clean = robust_cv(&values).unwrap();
        assert!((clean - 0.02).abs() < 0.001, "{clean}");
        for v in values.iter_mut().take(1_000) {
            *v *= 50.0;
        }
        let dirty = robust_cv(&values).unwrap();
        assert!((dirty - clean).abs() < 0.003, "{dirty}");
    }
}
