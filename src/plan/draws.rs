//! Random draws of everything uncertain, shared by all candidates of a draw where nature shares it.
//!
//! Differences between candidates are far better known than levels: prices, MFU, overheads and the
//! common part of kernel and law errors are drawn once per draw for all candidates, so that they
//! cancel where they cancel in reality.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use crate::law::beyond::ErrorDraw;
use crate::plan::inputs::Ranges;
use crate::serving::StepFactors;

/// Share of the kernel-time variance that all expert counts have in common: they run the same kernels
/// on the same device. No published figure exists; one half is the neutral choice.
const SHARED_KERNEL_VARIANCE: f64 = 0.5;

/// One draw of the world.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Training MFU that all expert counts share.
    pub mfu: f64,
    /// Multiplier on it of each expert count, in the order of the inputs.
    pub own_mfu: Vec<f64>,
    /// Serving price relative to the given one.
    pub price: f64,
    /// Error of the serving model: multiplier on the step of each expert count, in the order of the
    /// inputs.
    pub step: Vec<f64>,
    /// Routing: 0 nominal, 1 far end of the range.
    pub skew: f64,
    /// Standard normal of the kernel-time error of each expert count, in the order of the inputs.
    pub kernel: Vec<f64>,
    /// Error of the law; its own parts are in the order of the inputs.
    pub law: ErrorDraw,
    /// Which joint draw of the law's coefficients holds, for laws that have them; `None` in the
    /// nominal world.
    pub coefficients: Option<usize>,
}

impl Draw {
    /// The draw in which nothing is drawn.
    pub fn nominal(mfu: f64, expert_counts: usize) -> Self {
        Self {
            mfu,
            own_mfu: vec![1.0; expert_counts],
            price: 1.0,
            step: vec![1.0; expert_counts],
            skew: 0.0,
            kernel: vec![0.0; expert_counts],
            law: ErrorDraw::none(expert_counts),
            coefficients: None,
        }
    }

    /// Multipliers on the step of the expert count at `index`, whose kernel times have the given
    /// standard deviation in the logarithm.
    pub fn factors(&self, index: usize, experts_log_sigma: f64) -> StepFactors {
        StepFactors {
            experts: (self.kernel[index] * experts_log_sigma).exp(),
            step: self.step[index],
            skew: self.skew,
        }
    }
}

/// `count` draws for `expert_counts` expert counts; the same seed gives the same draws.
pub fn draws(count: usize, seed: u64, ranges: &Ranges, expert_counts: usize) -> Vec<Draw> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // The joint draws of a law are independent of each other, so that their own order will do.
    (0..count)
        .map(|i| Draw { coefficients: Some(i), ..draw(&mut rng, ranges, expert_counts) })
        .collect()
}

fn draw(rng: &mut ChaCha8Rng, ranges: &Ranges, expert_counts: usize) -> Draw {
    let shared_kernel = normal(rng) * SHARED_KERNEL_VARIANCE.sqrt();
    let shared_step = heavy(rng) * ranges.shared_log_sigma;
    let own_share = (1.0 - SHARED_KERNEL_VARIANCE).sqrt();
    Draw {
        mfu: uniform(rng, ranges.mfu),
        price: uniform(rng, ranges.price),
        step: (0..expert_counts)
            .map(|_| (shared_step + heavy(rng) * ranges.own_log_sigma).exp())
            .collect(),
        // Both ways about the nominal routing, so that value and interval share one centre.
        skew: uniform(rng, (-1.0, 1.0)),
        kernel: (0..expert_counts).map(|_| shared_kernel + own_share * normal(rng)).collect(),
        law: ErrorDraw {
            size: normal(rng),
            slope: normal(rng),
            reference: normal(rng),
            realised: normal(rng),
            own: (0..expert_counts).map(|_| normal(rng)).collect(),
        },
        own_mfu: (0..expert_counts).map(|_| (normal(rng) * ranges.mfu_log_sigma).exp()).collect(),
        coefficients: None,
    }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    rng.sample(StandardNormal)
}

/// Errors of the serving model have a few groups and rows ten robust standard deviations out: Student's t with
/// three degrees of freedom, with the quartiles of a standard normal.
fn heavy(rng: &mut ChaCha8Rng) -> f64 {
    const QUARTILES: f64 = 0.674_49 / 0.764_89;
    // t = z / sqrt(chi^2 / 3), chi^2 of three squares.
    let squares: f64 = (0..3).map(|_| normal(rng).powi(2)).sum();
    QUARTILES * normal(rng) / (squares / 3.0).sqrt()
}

fn uniform(rng: &mut ChaCha8Rng, (low, high): (f64, f64)) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGES: Ranges = Ranges {
        mfu: (0.3, 0.5),
        mfu_log_sigma: 0.1,
        price: (0.8, 1.2),
        zipf: 0.5,
        shared_log_sigma: 0.1,
        own_log_sigma: 0.05,
    };

    #[test]
    fn the_same_seed_gives_the_same_draws() {
        assert_eq!(draws(5, 7, &RANGES, 4), draws(5, 7, &RANGES, 4));
        assert_ne!(draws(5, 7, &RANGES, 4), draws(5, 8, &RANGES, 4));
    }

    #[test]
    fn draws_have_the_stated_spread_and_stay_in_range() {
        let all = draws(4000, 1, &RANGES, 2);
        let sd = |f: &dyn Fn(&Draw) -> f64| {
            let mean = all.iter().map(f).sum::<f64>() / all.len() as f64;
            (all.iter().map(|d| (f(d) - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt()
        };
        let within = |f: &dyn Fn(&Draw) -> f64, most: f64| {
            all.iter().filter(|d| f(d).abs() <= most).count() as f64 / all.len() as f64
        };
        // Errors of the server: quartiles of a normal of 0.1 and 0.05, and 14 % beyond two of its deviations.
        let own = |d: &Draw| (d.step[0] / d.step[1]).ln();
        let both = |d: &Draw| d.step[0].ln();
        assert!((within(&both, 0.078) - 0.5).abs() < 0.04, "{}", within(&both, 0.078));
        assert!(within(&own, 6.0 * 0.071) < 0.999 && within(&own, 6.0 * 0.071) > 0.97);
        assert!((sd(&|d| d.law.own[1]) - 1.0).abs() < 0.05);
        assert!((sd(&|d| d.kernel[0]) - 1.0).abs() < 0.05);
        assert!((sd(&|d| d.kernel[0] - d.kernel[1]) - 1.0).abs() < 0.05, "half is shared");
        assert!(all.iter().all(|d| (0.3..=0.5).contains(&d.mfu) && (0.8..=1.2).contains(&d.price)));
    }
}
