//! Fits of downstream error against loss: least squares, which for one exponent are linear in the other two
//! coefficients, so that a search over the exponent alone finds the best.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::law::Variable;
use crate::law::downstream::{Coefficients, Downstream, ID, SCHEMA, SCHEMA_VERSION};
use crate::law::fit::{Run, groups};
use crate::law::surface::minimum;
use crate::{Error, Result};

/// The variable that each run must have; its response is called `error`.
pub const VARIABLES: [Variable; 1] = [Variable::Loss];
/// Name of the column of errors.
pub const RESPONSE: &str = "error";
/// Exponents that are tried, per nat.
const EXPONENTS: (f64, f64) = (0.01, 30.0);
/// Fewest runs, three for each coefficient and as many again to be predicted.
const FEWEST: usize = 12;
/// Share of the runs with the lowest losses that are left out and predicted.
const HELD_OUT: f64 = 0.25;

/// Fits `Err = epsilon - k exp(-gamma L)` to runs; `resamples` of their groups give the joint draws.
///
/// # Errors
/// [`Error::Unfit`] for too few runs, one loss for all, errors outside 0 to 1, or errors that do not rise
/// with the loss.
pub fn fit(runs: &[Run], source: &str, resamples: usize, seed: u64) -> Result<Downstream> {
    let count = groups(runs).len();
    if count < FEWEST {
        let reason = format!("{count} runs for 3 coefficients; at least {FEWEST} are needed");
        return Err(Error::unfit("fit", reason));
    }
    if let Some(run) = runs.iter().find(|r| r.ln_loss > 0.0) {
        let reason = format!("line {}: an error of {} is above 1", run.line, run.ln_loss.exp());
        return Err(Error::unfit("fit", reason));
    }
    let mut points: Vec<(f64, f64)> = runs.iter().map(point).collect();
    let coefficients = least_squares(&points).ok_or_else(|| {
        Error::unfit("fit", "errors do not rise with the loss: are the columns the right ones?")
    })?;
    points.sort_by(|a, b| b.0.total_cmp(&a.0));
    let kept = points.len() - crate::units::nearest_whole(points.len() as f64 * HELD_OUT).max(1);
    let (others, lowest) = points.split_at(kept);
    let held_out_rmse = least_squares(others).map_or(1.0, |c| rmse(&c, lowest));
    Ok(Downstream {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION.into(),
        form: ID.into(),
        source: source.into(),
        coefficients,
        rmse: rmse(&coefficients, &points),
        held_out_rmse,
        runs: count,
        loss_range_nats: (lowest.last().map_or(0.0, |p| p.0), points.first().map_or(0.0, |p| p.0)),
        draws: resampled(runs, resamples, seed),
    })
}

/// Loss and error of a run.
fn point(run: &Run) -> (f64, f64) {
    (run.value(Variable::Loss), run.ln_loss.exp())
}

fn rmse(c: &Coefficients, points: &[(f64, f64)]) -> f64 {
    let squares = points.iter().map(|p| (c.error(p.0) - p.1).powi(2)).sum::<f64>();
    (squares / points.len() as f64).sqrt()
}

/// The best coefficients; `None` where no rising curve fits.
fn least_squares(points: &[(f64, f64)]) -> Option<Coefficients> {
    let gamma = minimum(
        |ln_gamma| linear(points, ln_gamma.exp()).map_or(f64::INFINITY, |(_, squares)| squares),
        (EXPONENTS.0.ln(), EXPONENTS.1.ln()),
    );
    let (found, _) = linear(points, gamma.exp())?;
    (found.k > 0.0 && (0.0..=1.0).contains(&found.epsilon)).then_some(found)
}

/// Regression on `exp(-gamma (L - lowest))`, with its sum of squares.
fn linear(points: &[(f64, f64)], gamma: f64) -> Option<(Coefficients, f64)> {
    let lowest = points.iter().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let at = |loss: f64| (-gamma * (loss - lowest)).exp();
    let count = points.len() as f64;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / count;
    let (x, y) = (mean(&|p| at(p.0)), mean(&|p| p.1));
    let variance = mean(&|p| (at(p.0) - x).powi(2));
    if variance <= 1e-12 {
        return None;
    }
    let slope = mean(&|p| (at(p.0) - x) * (p.1 - y)) / variance;
    let epsilon = y - slope * x;
    let squares = points.iter().map(|p| (epsilon + slope * at(p.0) - p.1).powi(2)).sum();
    Some((Coefficients { epsilon, k: -slope * (gamma * lowest).exp(), gamma }, squares))
}

/// Fits to resampled groups of runs; draws without a rising curve are left out.
fn resampled(runs: &[Run], resamples: usize, seed: u64) -> Vec<Coefficients> {
    let groups = groups(runs);
    let draw = |i: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1 + i as u64);
        let picked =
            (0..groups.len()).flat_map(|_| groups[rng.random_range(0..groups.len())].clone());
        let points: Vec<(f64, f64)> = picked.map(|position| point(&runs[position])).collect();
        least_squares(&points)
    };
    (0..resamples).into_par_iter().filter_map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::Inputs;

    fn runs(error: impl Fn(f64) -> f64) -> Vec<Run> {
        let losses = (0..20).map(|i| 2.2 + 0.15 * f64::from(i));
        let run = |(line, loss): (usize, f64)| {
            let inputs = Inputs::new([(Variable::Loss, loss)]).unwrap();
            Run::new(inputs, error(loss), line, line)
        };
        losses.enumerate().map(run).collect()
    }

    #[test]
    fn the_coefficients_behind_exact_errors_are_found() {
        let truth = Coefficients { epsilon: 0.76, k: 1.9, gamma: 1.1 };
        let found = fit(&runs(|l| truth.error(l)), "made up", 20, 1).unwrap();
        let c = found.coefficients;
        assert!((c.epsilon - 0.76).abs() < 1e-5 && (c.gamma - 1.1).abs() < 1e-4, "{c:?}");
        assert!((c.k - 1.9).abs() < 1e-3 && found.rmse < 1e-7 && found.held_out_rmse < 1e-5);
        assert_eq!(found.draws.len(), 20);
        assert!((found.loss_range_nats.0 - 2.2).abs() < 1e-12);
        let again = fit(&runs(|l| truth.error(l)), "made up", 20, 1).unwrap();
        assert_eq!(again, found);
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let refused = |runs: &[Run]| fit(runs, "made up", 0, 1).unwrap_err().exit_code();
        assert_eq!(refused(&runs(|l| 0.2 + 0.1 * l)[..11]), 4);
        assert_eq!(refused(&runs(|l| 0.9 - 0.1 * l)), 4);
        assert_eq!(refused(&runs(|l| 0.5 * l)), 4);
        assert_eq!(refused(&runs(|_| 0.5)), 4);
    }
}
