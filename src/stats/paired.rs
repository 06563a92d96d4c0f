//! Two things compared in turns: A B B A, then B A A B, so that a linear drift cancels.
//!
//! Each block gives one difference of mean log times; a t interval over blocks gives the effect.
//! Samples inside a block are not independent and are never counted as if they were.

use std::fmt;

use super::interval::{MedianInterval, median, median_interval};

/// What a comparison allows to be said about B against A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// B takes less time than A by more than the noise floor.
    Faster,
    /// B takes more time than A by more than the noise floor.
    Slower,
    /// The whole interval lies within the noise floor.
    Same,
    /// Everything else.
    Ambiguous,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Faster => "FASTER",
            Self::Slower => "SLOWER",
            Self::Same => "SAME",
            Self::Ambiguous => "AMBIGUOUS",
        })
    }
}

/// Effects below this are never called a difference, however quiet the machine.
pub const SMALLEST_EFFECT: f64 = 0.01;

/// Relative change of B's time against A's with a 95 % interval: 0.02 is 2 % slower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedEffect {
    /// exp(mean log ratio) - 1.
    pub effect: f64,
    /// Lower end of the interval.
    pub lo: f64,
    /// Upper end of the interval.
    pub hi: f64,
}

impl PairedEffect {
    /// The verdict, with `noise_floor` the half-width of this run's comparison of A with itself.
    pub fn verdict(&self, noise_floor: f64) -> Verdict {
        let bound = noise_floor.max(SMALLEST_EFFECT);
        if self.lo > -bound && self.hi < bound {
            Verdict::Same
        } else if self.lo > 0.0 && self.effect > bound {
            Verdict::Slower
        } else if self.hi < 0.0 && self.effect < -bound {
            Verdict::Faster
        } else {
            Verdict::Ambiguous
        }
    }
}

/// The log ratio ln(B / A) of one block whose slots ran A B B A or B A A B: the difference of the
/// mean logarithms of the slot medians. `None` when a slot is empty or not positive.
pub fn block_log_ratio(a: [&[f64]; 2], b: [&[f64]; 2]) -> Option<f64> {
    let ln = |slot: &[f64]| median(slot).filter(|m| *m > 0.0 && m.is_finite()).map(f64::ln);
    let mean_a = f64::midpoint(ln(a[0])?, ln(a[1])?);
    let mean_b = f64::midpoint(ln(b[0])?, ln(b[1])?);
    Some(mean_b - mean_a)
}

/// Effect over block log ratios: mean +- t(0.975, n - 1) s / sqrt n; `None` below two blocks or for
/// a ratio that is not finite.
pub fn paired_effect(log_ratios: &[f64]) -> Option<PairedEffect> {
    let n = log_ratios.len();
    if n < 2 || log_ratios.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let mean = log_ratios.iter().sum::<f64>() / n as f64;
    let squares: f64 = log_ratios.iter().map(|d| (d - mean).powi(2)).sum();
    let error = (squares / (n - 1) as f64 / n as f64).sqrt();
    let half = t_quantile_975(n - 1) * error;
    Some(PairedEffect {
        effect: mean.exp_m1(),
        lo: (mean - half).exp_m1(),
        hi: (mean + half).exp_m1(),
    })
}

/// The median block with its distribution-free interval, for whole processes: on a machine that others use
/// some of them take much longer, and a t interval assumes that none does. `None` below six blocks.
pub fn median_effect(log_ratios: &[f64]) -> Option<PairedEffect> {
    let MedianInterval { median, lo, hi, .. } = median_interval(log_ratios)?;
    Some(PairedEffect { effect: median.exp_m1(), lo: lo.exp_m1(), hi: hi.exp_m1() })
}

/// The 0.975 quantile of Student's t: tabulated up to 4 degrees of freedom, above that the
/// expansion of Abramowitz and Stegun, 26.7.5, good to 1e-3 there.
pub fn t_quantile_975(degrees: usize) -> f64 {
    const SMALL: [f64; 4] = [12.7062, 4.3027, 3.1824, 2.7764];
    const Z: f64 = 1.959_963_985;
    match degrees {
        0 => f64::INFINITY,
        1..=4 => SMALL[degrees - 1],
        _ => {
            let v = degrees as f64;
            let g1 = (Z.powi(3) + Z) / 4.0;
            let g2 = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0;
            let g3 = (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0;
            let g4 = (79.0 * Z.powi(9) + 776.0 * Z.powi(7) + 1482.0 * Z.powi(5)
                - 1920.0 * Z.powi(3)
                - 945.0 * Z)
                / 92160.0;
            Z + g1 / v + g2 / v.powi(2) + g3 / v.powi(3) + g4 / v.powi(4)
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Normal};

    use super::*;

    #[test]
    fn t_quantiles_agree_with_the_tables() {
        for (df, t) in [(1, 12.706), (5, 2.571), (9, 2.262), (13, 2.160), (19, 2.093), (100, 1.984)]
        {
            assert!((t_quantile_975(df) - t).abs() < 2e-3, "{df}: {}", t_quantile_975(df));
        }
    }

    #[test]
    fn linear_drift_cancels_inside_a_block() {
        // Slots at times 0..4 of a kernel that slows down by 1 % a slot: A B B A.
        let at = |slot: i32| [1.0 * 1.01_f64.powi(slot)];
        let d = block_log_ratio([&at(0), &at(3)], [&at(1), &at(2)]).unwrap();
        assert!(d.abs() < 1e-12);
        assert_eq!(block_log_ratio([&[], &[1.0]], [&[1.0], &[1.0]]), None);
        assert_eq!(block_log_ratio([&[0.0], &[1.0]], [&[1.0], &[1.0]]), None);
    }

    #[test]
    fn verdicts_need_both_significance_and_size() {
        let effect = |effect, lo, hi| PairedEffect { effect, lo, hi };
        assert_eq!(effect(0.05, 0.03, 0.07).verdict(0.01), Verdict::Slower);
        assert_eq!(effect(-0.05, -0.07, -0.03).verdict(0.01), Verdict::Faster);
        assert_eq!(effect(0.004, 0.002, 0.006).verdict(0.0), Verdict::Same);
        assert_eq!(effect(0.05, 0.03, 0.07).verdict(0.06), Verdict::Ambiguous);
        assert_eq!(effect(0.05, -0.03, 0.13).verdict(0.01), Verdict::Ambiguous);
        assert_eq!(format!("{:>9}|", Verdict::Same), "     SAME|");
    }

    #[test]
    fn nothing_is_said_without_two_finite_blocks() {
        assert_eq!(paired_effect(&[0.1]), None);
        assert_eq!(paired_effect(&[0.1, f64::NAN]), None);
    }

    #[test]
    fn identical_kernels_are_called_different_in_at_most_six_percent() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let noise = Normal::new(0.0, 0.003).unwrap();
        for n in [6, 10, 20] {
            let false_alarms = (0..2000)
                .filter(|_| {
                    let d: Vec<f64> = (0..n).map(|_| noise.sample(&mut rng)).collect();
                    let e = paired_effect(&d).unwrap();
                    e.lo > 0.0 || e.hi < 0.0
                })
                .count();
            let share = false_alarms as f64 / 2000.0;
            assert!((0.03..=0.06).contains(&share), "n = {n}: {share}");
        }
    }

    #[test]
    fn outliers_do_not_hide_a_difference_from_the_median_block() {
        let mut ratios = vec![0.03, 0.032, 0.028, 0.031, 0.029, 0.03, 0.03, 0.033, 0.027];
        ratios.push(-0.9);
        let t = paired_effect(&ratios).unwrap();
        assert!(t.lo < 0.0 && t.hi > 0.0, "{t:?}");
        let free = median_effect(&ratios).unwrap();
        assert!((free.effect - 0.03_f64.exp_m1()).abs() < 1e-3, "{free:?}");
        assert_eq!(free.verdict(0.0), Verdict::Slower);
        assert_eq!(median_effect(&ratios[..5]), None);
    }

    #[test]
    fn a_true_two_percent_is_found_by_ten_blocks() {
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        // One percent between runs, two slots of each side in a block.
        let noise = Normal::new(1.02_f64.ln(), 0.01).unwrap();
        let found = (0..500)
            .filter(|_| {
                let d: Vec<f64> = (0..10).map(|_| noise.sample(&mut rng)).collect();
                paired_effect(&d).unwrap().lo > 0.0
            })
            .count();
        assert!(found > 490, "{found}");
    }
}
