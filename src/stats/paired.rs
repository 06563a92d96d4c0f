//! Two things compared in turns: A B B A, then B A A B, so that a linear drift cancels.
//!
//! Each block gives one difference of mean log times; a t interval over blocks gives the effect.
//! Samples inside a block are not independent and are never counted as if they were.

use std::fmt;

use super::interval::median;

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

/// The log ratio ln(B / A) of one block of whole processes, the shorter of two executions on either side: other
/// programs of the machine only ever add to a time. `None` when one is not positive.
pub fn least_log_ratio(a: [f64; 2], b: [f64; 2]) -> Option<f64> {
    let least = |[one, other]: [f64; 2]| one.min(other);
    let is_time = |t: &&f64| **t > 0.0 && t.is_finite();
    let are_times = a.iter().chain(&b).filter(is_time).count() == 4;
    are_times.then(|| (least(b) / least(a)).ln())
}

/// Fewest blocks for which the signed ranks have a 95 % interval: 1 - 2 / 2^6 = 96.9 %.
const LEAST_RANKED: usize = 6;
/// Probability of an end of the interval of signed ranks. Rounds are looked at again and again until the interval
/// is narrow: with 97.5 % at each look, 2 to 3 % of comparisons of a thing with itself err in all (5 to 6 % with
/// 95 %), on recorded times of a machine with eight waiting threads.
const TAIL: f64 = 0.0125;
/// The normal's quantile for it.
const Z_TAIL: f64 = 2.241_402_727_604_947;
/// Most blocks whose signed ranks are counted one by one; above, their sum is close to normal.
const MOST_COUNTED: usize = 60;

/// The Hodges-Lehmann estimate over block log ratios, the median of the means of all pairs, with the interval
/// of Wilcoxon's signed ranks (Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", sections 3.2
/// and 3.3). For whole processes: on a machine that others use some of them take much longer, and a t interval
/// assumes that none does. It assumes that a block is as likely to be too high as too low, which turns see to.
/// `None` below six blocks or for a ratio that is not finite.
pub fn signed_rank_effect(log_ratios: &[f64]) -> Option<PairedEffect> {
    let n = log_ratios.len();
    if n < LEAST_RANKED || log_ratios.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let from = |at: usize| log_ratios[at..].iter();
    let pairs = (0..n).flat_map(|at| from(at).map(move |d| f64::midpoint(log_ratios[at], *d)));
    let mut means: Vec<f64> = pairs.collect();
    means.sort_by(f64::total_cmp);
    let rank = signed_rank(n);
    let effect = super::interval::median_sorted(&means).exp_m1();
    let (lo, hi) = (means[rank - 1].exp_m1(), means[means.len() - rank].exp_m1());
    Some(PairedEffect { effect, lo, hi })
}

/// The largest rank r for which Wilcoxon's sum of `n` signed ranks lies below r with a probability of at most
/// [`TAIL`], at least 1.
fn signed_rank(n: usize) -> usize {
    if n > MOST_COUNTED {
        let n = n as f64;
        let middle = n * (n + 1.0) / 4.0;
        let below = middle - Z_TAIL * (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0).sqrt();
        return crate::units::whole_part(below).max(1);
    }
    // Probabilities of each sum: every rank counts or does not, as coins fall.
    let mut shares = vec![1.0];
    for rank in 1..=n {
        let mut next = vec![0.0; shares.len() + rank];
        for (sum, share) in shares.iter().enumerate() {
            next[sum] += share / 2.0;
            next[sum + rank] += share / 2.0;
        }
        shares = next;
    }
    let mut below = 0.0;
    let is_rare = |share: &&f64| {
        below += **share;
        below <= TAIL
    };
    shares.iter().take_while(is_rare).count().max(1)
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
    use rand_distr::{Distribution, Exp, Normal};

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

    /// Executions of which three in ten wait for other programs: longer by 30 % in the mean.
    #[test]
    fn a_tenth_is_found_where_others_use_the_machine_and_nothing_is_where_there_is_none() {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        let (noise, wait) = (Normal::new(0.0, 0.03).unwrap(), Exp::new(1.0 / 0.3).unwrap());
        let mut time = |truth: f64| {
            let waited =
                if rand::Rng::random::<f64>(&mut rng) < 0.3 { wait.sample(&mut rng) } else { 0.0 };
            truth * f64::exp(noise.sample(&mut rng)) * (1.0 + waited)
        };
        let mut called = |truth: f64| {
            (0..500)
                .map(|_| {
                    let block = |_| {
                        let a = [time(1.0), time(1.0)];
                        least_log_ratio(a, [time(truth), time(truth)]).unwrap()
                    };
                    let ratios: Vec<f64> = (0..14).map(block).collect();
                    signed_rank_effect(&ratios).unwrap().verdict(0.0)
                })
                .filter(|v| matches!(v, Verdict::Faster | Verdict::Slower))
                .count()
        };
        let (alarms, found) = (called(1.0), called(1.1));
        assert!(alarms <= 30 && found >= 450, "{alarms} alarms, {found} found of 500");
    }

    #[test]
    fn outliers_do_not_hide_a_difference_from_the_median_block() {
        let mut ratios = vec![0.03, 0.032, 0.028, 0.031, 0.029, 0.03, 0.03, 0.033, 0.027];
        ratios.push(-0.9);
        let t = paired_effect(&ratios).unwrap();
        assert!(t.lo < 0.0 && t.hi > 0.0, "{t:?}");
        // In ten blocks one outlier is in more pairs than the interval leaves out: nothing is said, and more
        // blocks follow, among which it is not.
        assert_eq!(signed_rank_effect(&ratios).unwrap().verdict(0.0), Verdict::Ambiguous);
        let mut more = ratios.clone();
        more.extend(&ratios[..9]);
        let free = signed_rank_effect(&more).unwrap();
        assert!((free.effect - 0.03_f64.exp_m1()).abs() < 1e-3, "{free:?}");
        assert_eq!(free.verdict(0.0), Verdict::Slower);
        assert_eq!(signed_rank_effect(&ratios[..5]), None);
        assert_eq!(signed_rank_effect(&[f64::NAN; 6]), None);
    }

    #[test]
    fn signed_ranks_agree_with_the_table() {
        // Wilcoxon's distribution counted by another program.
        for (n, rank) in
            [(6, 1), (7, 1), (8, 3), (10, 6), (15, 21), (20, 46), (25, 80), (50, 407), (60, 612)]
        {
            assert_eq!(signed_rank(n), rank, "{n}");
        }
        // Where counting ends the normal distribution is close.
        assert!(signed_rank(MOST_COUNTED + 1).abs_diff(signed_rank(MOST_COUNTED)) < 40);
    }

    #[test]
    fn the_shorter_of_two_executions_counts() {
        let d = least_log_ratio([2.0, 1.0], [1.1, 9.0]).unwrap();
        assert!((d - 1.1_f64.ln()).abs() < 1e-12);
        assert_eq!(least_log_ratio([1.0, 0.0], [1.0, 1.0]), None);
        assert_eq!(least_log_ratio([1.0, 1.0], [1.0, f64::INFINITY]), None);
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
