//! A law over expert counts and training budgets, with its uncertainty: what its plots show.
//!
//! A law that was fitted here carries joint draws of its coefficients; their 5th and 95th percentile
//! are the band. No covariance is published for the other laws. Their band of the loss is the stated
//! residual (1.645 standard deviations to each side), and their band of size and tokens holds the
//! models that lose less than one residual against the best: how flat the optimum is.

use serde::Serialize;

use crate::law::fit::spread;
use crate::law::surface::falling_root;
use crate::law::{Optimum, Scaling, Slice};
use crate::units::Flops;
use crate::{Error, Result};

/// Budgets between the ends of a curve, ends included.
const STEPS: u32 = 25;
/// Two-sided 90 % in standard deviations.
const Z90: f64 = 1.645;
/// Smaller and larger sizes that the flat part of an optimum may reach to, as a factor.
const SPAN: f64 = 1e3;

/// A value with its band.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Band {
    /// The value.
    pub value: f64,
    /// Low end.
    pub lo: f64,
    /// High end.
    pub hi: f64,
}

/// The best model of an expert count at a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BestAt {
    /// Experts per layer.
    pub experts: usize,
    /// Training budget.
    pub train_flops: f64,
    /// Loss in nats per token.
    pub loss_nats: Band,
    /// Loss of the first expert count at this budget minus this one's, in nats; 0 for the first. Errors
    /// that expert counts share cancel in it.
    pub gain_nats: Band,
    /// Active parameters.
    pub n_active: Band,
    /// Training tokens.
    pub tokens: Band,
    /// Whether every variable lies within the fitted runs.
    pub in_fit_range: bool,
}

/// A law over expert counts and budgets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// Identifier of the law.
    pub law: String,
    /// What the bands are.
    pub bands: String,
    /// For each budget, the best models by rising expert count.
    pub by_experts: Vec<Vec<BestAt>>,
    /// For each expert count, the best models by rising budget.
    pub by_budget: Vec<Vec<BestAt>>,
}

/// The best models of every expert count at every budget, and along the budgets between the lowest
/// and the highest.
///
/// # Errors
/// [`Error::Usage`] for an expert count that the law does not define, or without any budget.
pub fn sweep(law: &Scaling, name: &str, experts: &[usize], budgets: &[f64]) -> Result<Sweep> {
    let (low, high) = ends(budgets)?;
    let ratio = high / low;
    let steps: Vec<f64> =
        (0..STEPS).map(|i| low * ratio.powf(f64::from(i) / f64::from(STEPS - 1))).collect();
    let Some(&first) = experts.first() else {
        return Err(Error::usage("--experts", "no expert count"));
    };
    let row = |experts: &[usize], budgets: &[f64]| -> Result<Vec<BestAt>> {
        let pairs = experts.iter().flat_map(|&e| budgets.iter().map(move |&b| (e, b)));
        pairs.map(|(e, b)| best_at(law, (first, e), Flops(b))).collect()
    };
    let drawn = law.drawn_slices(first).len();
    Ok(Sweep {
        law: name.into(),
        bands: bands(drawn, law.residual_nats()),
        by_experts: budgets.iter().map(|&b| row(experts, &[b])).collect::<Result<_>>()?,
        by_budget: experts.iter().map(|&e| row(&[e], &steps)).collect::<Result<_>>()?,
    })
}

/// The lowest and the highest budget; around a single one, a factor of ten to each side.
fn ends(budgets: &[f64]) -> Result<(f64, f64)> {
    let low = budgets.iter().copied().fold(f64::INFINITY, f64::min);
    let high = budgets.iter().copied().fold(0.0, f64::max);
    if !(low > 0.0 && high.is_finite() && low <= high) {
        return Err(Error::usage("--train-flops", "no budget above zero"));
    }
    Ok(if low < high { (low, high) } else { (low / 10.0, high * 10.0) })
}

fn bands(drawn: usize, residual: f64) -> String {
    if drawn > 0 {
        return format!("5th to 95th percentile of {drawn} joint draws of the coefficients");
    }
    format!(
        "no covariance is published: loss +- 1.645 x {residual} nats, sizes and tokens that lose less \
         than {residual}"
    )
}

fn best_at(law: &Scaling, (first, experts): (usize, usize), budget: Flops) -> Result<BestAt> {
    let slice = law.slice(experts)?;
    let best = slice.optimum(budget);
    let draws: Vec<Optimum> =
        law.drawn_slices(experts).iter().map(|drawn| drawn.optimum(budget)).collect();
    let residual = law.residual_nats();
    let (loss_nats, n_active, tokens) = if draws.is_empty() {
        let (loss, half) = (best.loss.0, Z90 * residual);
        let (lo, hi) = flat_part(slice.as_ref(), best, budget, residual);
        let tokens = |n: f64| budget.0 / 6.0 / n;
        (
            Band { value: loss, lo: loss - half, hi: loss + half },
            Band { value: best.n_active, lo, hi },
            Band { value: best.tokens, lo: tokens(hi), hi: tokens(lo) },
        )
    } else {
        let band = |value: f64, of: fn(&Optimum) -> f64| {
            let drawn = spread(draws.iter().map(of).collect());
            drawn.map_or(Band { value, lo: value, hi: value }, |s| Band {
                value,
                lo: s.p5.min(value),
                hi: s.p95.max(value),
            })
        };
        (
            band(best.loss.0, |o| o.loss.0),
            band(best.n_active, |o| o.n_active),
            band(best.tokens, |o| o.tokens),
        )
    };
    Ok(BestAt {
        experts,
        train_flops: budget.0,
        loss_nats,
        gain_nats: gain(law, first, (best, &draws), budget)?,
        n_active,
        tokens,
        in_fit_range: law.extrapolation(experts, best.n_active, best.tokens).in_fit_range(),
    })
}

/// Loss of the first expert count minus that of another, draw by draw where there are draws; otherwise
/// the residuals of two expert counts are independent.
fn gain(
    law: &Scaling,
    first: usize,
    (best, draws): (Optimum, &[Optimum]),
    budget: Flops,
) -> Result<Band> {
    let base = law.slice(first)?.optimum(budget);
    let value = base.loss.0 - best.loss.0;
    if value.abs() <= 0.0 {
        return Ok(Band { value, lo: value, hi: value });
    }
    let bases = law.drawn_slices(first);
    let drawn = bases.iter().zip(draws).map(|(base, o)| base.optimum(budget).loss.0 - o.loss.0);
    let half = Z90 * law.residual_nats() * std::f64::consts::SQRT_2;
    let band = Band { value, lo: value - half, hi: value + half };
    Ok(spread(drawn.collect()).map_or(band, |s| Band {
        value,
        lo: s.p5.min(value),
        hi: s.p95.max(value),
    }))
}

/// Smallest and largest size that spend the budget and lose less than `slack` nats.
fn flat_part(slice: &dyn Slice, best: Optimum, budget: Flops, slack: f64) -> (f64, f64) {
    let limit = best.loss.0 + slack;
    let at = |n: f64| slice.loss(n, budget.0 / 6.0 / n).0;
    let n = best.n_active;
    // The loss falls towards the optimum from below, and from above in the inverse of the size.
    let low = falling_root(at, (n / SPAN, n), limit).unwrap_or(n / SPAN);
    let high = falling_root(|x| at(1.0 / x), (1.0 / n / SPAN, 1.0 / n), limit);
    (low, high.map_or(n * SPAN, |x| 1.0 / x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::load_scaling;

    fn published() -> Sweep {
        let law = load_scaling("ludziejewski2025").unwrap();
        sweep(&law, "ludziejewski2025", &[1, 4, 32], &[1e20, 1e22]).unwrap()
    }

    #[test]
    fn every_band_holds_its_value_and_the_loss_falls_along_both_axes() {
        let sweep = published();
        assert_eq!((sweep.by_experts.len(), sweep.by_budget.len()), (2, 3));
        for curve in sweep.by_experts.iter().chain(&sweep.by_budget) {
            assert!(curve.windows(2).all(|w| w[1].loss_nats.value < w[0].loss_nats.value));
            for band in curve.iter().flat_map(|p| [p.loss_nats, p.n_active, p.tokens]) {
                assert!(0.0 < band.lo && band.lo < band.value && band.value < band.hi, "{band:?}");
            }
        }
        for curve in &sweep.by_experts {
            let gains: Vec<Band> = curve.iter().map(|p| p.gain_nats).collect();
            assert!(gains[0].hi.abs() < 1e-15, "the first gains nothing on itself");
            let lost = curve[0].loss_nats.value - curve[2].loss_nats.value;
            assert!((gains[2].value - lost).abs() < 1e-12);
            assert!(gains[2].lo < lost && lost < gains[2].hi);
        }
        assert!(sweep.by_budget[0][0].in_fit_range, "dense at 1e20 was fitted");
        assert!(!sweep.by_experts[1][2].in_fit_range, "32 experts at 1e22 were not");
        assert!(sweep.bands.contains("no covariance"));
    }

    #[test]
    fn the_ends_of_the_flat_part_lose_one_residual() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let slice = law.slice(8).unwrap();
        let best = slice.optimum(Flops(1e21));
        let (low, high) = flat_part(slice.as_ref(), best, Flops(1e21), 0.004);
        for n in [low, high] {
            let lost = slice.loss(n, 1e21 / 6.0 / n).0 - best.loss.0;
            assert!((lost - 0.004).abs() < 1e-9, "{lost}");
        }
    }

    #[test]
    fn budgets_that_are_none_are_refused_and_one_is_looked_around() {
        assert_eq!(ends(&[]).unwrap_err().exit_code(), 2);
        assert_eq!(ends(&[f64::NAN]).unwrap_err().exit_code(), 2);
        let (low, high) = ends(&[1e21]).unwrap();
        assert!(low < 2e20 && high > 9e21);
        let law = load_scaling("ludziejewski2025").unwrap();
        assert_eq!(sweep(&law, "l", &[0], &[1e21]).unwrap_err().exit_code(), 2);
        assert_eq!(sweep(&law, "l", &[], &[1e21]).unwrap_err().exit_code(), 2);
    }
}
