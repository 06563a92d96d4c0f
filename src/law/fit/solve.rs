//! The search: Huber loss on the residuals of ln L, minimised by L-BFGS inside bounds.
//!
//! Each coefficient `u` between its bounds is `low + (high - low) s(x)` with the logistic s, so that
//! the search over x is free. The forms are badly conditioned (factor and exponent of one term trade
//! against each other), which costs L-BFGS thousands of steps; so it runs in rounds, each in
//! coordinates in which the Gauss-Newton matrix at the round's start is the identity.

use std::sync::{Mutex, PoisonError};

use argmin::core::{CostFunction, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use nalgebra::{Const, DMatrix, DVector, Dyn, U1};
use num_dual::DualSVec64;

use crate::law::fit::forms::{Form, MOST};
use crate::law::fit::runs::Run;

/// Corrections that L-BFGS keeps; as many as the largest form has coefficients.
const MEMORY: usize = 12;
/// L-BFGS iterations in one round.
const ITERATIONS: u64 = 40;
/// Most rounds.
const ROUNDS: usize = 30;
/// A round that lowers the objective by less than this share ends the search.
const IMPROVEMENT: f64 = 1e-8;
/// Share of the largest diagonal element that is added to the Gauss-Newton matrix.
const DAMPING: f64 = 1e-9;
/// Deltas that a search from afar begins with.
const WIDER_DELTAS: [f64; 2] = [1.0, 0.01];
/// Stands for an objective that is no number; large, but still differentiable by subtraction.
const NOWHERE: f64 = 1e30;

/// What is minimised.
#[derive(Clone, Copy)]
pub(crate) struct Objective<'a> {
    pub(crate) form: Form,
    pub(crate) runs: &'a [Run],
    /// How often each run counts.
    pub(crate) weights: &'a [f64],
    pub(crate) delta: f64,
}

/// A point of the search: searched parameters and the Huber sum there.
#[derive(Clone, Debug)]
pub(crate) struct Solution {
    pub(crate) searched: [f64; MOST],
    pub(crate) huber: f64,
}

/// Huber's function of a residual: `r^2/2` up to delta, `delta (|r| - delta/2)` beyond.
pub(crate) fn huber(residual: f64, delta: f64) -> f64 {
    let size = residual.abs();
    if size <= delta { 0.5 * size * size } else { delta * (size - 0.5 * delta) }
}

impl Objective<'_> {
    pub(crate) fn count(&self) -> usize {
        self.form.parameters().len()
    }

    /// Residuals of ln L.
    pub(crate) fn residuals(&self, searched: &[f64; MOST]) -> Vec<f64> {
        self.runs.iter().map(|run| self.form.ln_loss(searched, run) - run.ln_loss).collect()
    }

    /// The weighted Huber sum.
    pub(crate) fn value(&self, searched: &[f64; MOST]) -> f64 {
        let residuals = self.runs.iter().zip(self.weights).map(|(run, weight)| {
            weight * huber(self.form.ln_loss(searched, run) - run.ln_loss, self.delta)
        });
        residuals.sum()
    }

    /// The residual of a run and its gradient in the searched parameters.
    fn gradient(&self, searched: &[DualSVec64<MOST>; MOST], run: &Run) -> (f64, [f64; MOST]) {
        let predicted = self.form.ln_loss(searched, run);
        let gradient = predicted.eps.unwrap_generic(Const::<MOST>, U1);
        (predicted.re - run.ln_loss, gradient.into())
    }

    /// Jacobian of the residuals in the searched parameters, one row a run.
    pub(crate) fn jacobian(&self, searched: &[f64; MOST]) -> DMatrix<f64> {
        let seeded = seeded(searched);
        let mut jacobian = DMatrix::zeros(self.runs.len(), self.count());
        for (row, run) in self.runs.iter().enumerate() {
            let (_, gradient) = self.gradient(&seeded, run);
            for column in 0..self.count() {
                jacobian[(row, column)] = gradient[column];
            }
        }
        jacobian
    }
}

fn seeded(searched: &[f64; MOST]) -> [DualSVec64<MOST>; MOST] {
    std::array::from_fn(|i| DualSVec64::from_re(searched[i]).derivative(i))
}

/// One round: the objective over y with `x = origin + back y`.
struct Round<'a> {
    objective: Objective<'a>,
    origin: DVector<f64>,
    back: DMatrix<f64>,
    /// The best point seen, kept here because a failed line search returns nothing.
    best: &'a Mutex<(f64, DVector<f64>)>,
}

impl Round<'_> {
    fn x(&self, y: &[f64]) -> DVector<f64> {
        &self.origin + &self.back * DVector::from_column_slice(y)
    }

    fn scale(&self) -> f64 {
        self.objective.delta.powi(2)
    }
}

impl CostFunction for Round<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, y: &Self::Param) -> Result<f64, argmin::core::Error> {
        let x = self.x(y);
        let value = self.objective.value(&inside(&self.objective, &x).0) / self.scale();
        let value = if value.is_finite() { value } else { NOWHERE };
        if let Ok(mut best) = self.best.lock()
            && value < best.0
        {
            *best = (value, x);
        }
        Ok(value)
    }
}

impl Gradient for Round<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, y: &Self::Param) -> Result<Self::Gradient, argmin::core::Error> {
        let x = self.x(y);
        let (gradient, _) = derivatives(&self.objective, &x);
        Ok((self.back.transpose() * gradient / self.scale()).as_slice().to_vec())
    }
}

/// Searched parameters at a free point, and their derivatives in it.
fn inside(objective: &Objective, x: &DVector<f64>) -> ([f64; MOST], [f64; MOST]) {
    let (mut searched, mut slope) = ([0.0; MOST], [0.0; MOST]);
    for (i, parameter) in objective.form.parameters().iter().enumerate() {
        let logistic = 1.0 / (1.0 + (-x[i]).exp());
        let width = parameter.high - parameter.low;
        searched[i] = parameter.low + width * logistic;
        slope[i] = width * logistic * (1.0 - logistic);
    }
    (searched, slope)
}

/// The free point of searched parameters.
fn outside(objective: &Objective, searched: &[f64; MOST]) -> DVector<f64> {
    let parameters = objective.form.parameters();
    DVector::from_fn(parameters.len(), |i, _| {
        let share = (searched[i] - parameters[i].low) / (parameters[i].high - parameters[i].low);
        // A start on a bound would never leave it.
        let share = share.clamp(1e-6, 1.0 - 1e-6);
        (share / (1.0 - share)).ln()
    })
}

/// Gradient and Gauss-Newton matrix of the Huber sum at a free point.
fn derivatives(objective: &Objective, x: &DVector<f64>) -> (DVector<f64>, DMatrix<f64>) {
    let (searched, slope) = inside(objective, x);
    let seeded = seeded(&searched);
    let count = objective.count();
    let (mut gradient, mut matrix) = (DVector::zeros(count), DMatrix::zeros(count, count));
    for (run, weight) in objective.runs.iter().zip(objective.weights) {
        let (residual, by) = objective.gradient(&seeded, run);
        // Beyond delta the function is linear: its weight in the matrix falls as delta / |r|.
        let bent = (objective.delta / residual.abs()).min(1.0) * weight;
        let row = DVector::from_fn(count, |i, _| by[i] * slope[i]);
        gradient.axpy(residual * bent, &row, 1.0);
        matrix.ger(bent, &row, &row, 1.0);
    }
    (gradient, matrix)
}

/// Minimises from a start that may be far away: first with a wide delta, with which the sum is
/// nearly one of squares and the forms' valleys lead to the right place, then with narrower ones.
pub(crate) fn minimise_from_afar(objective: Objective, start: &[f64; MOST]) -> Solution {
    let wider = WIDER_DELTAS.into_iter().filter(|&wide| wide > objective.delta);
    let mut at = *start;
    for delta in wider {
        at = minimise(Objective { delta, ..objective }, &at).searched;
    }
    minimise(objective, &at)
}

/// Minimises from a start nearby.
pub(crate) fn minimise(objective: Objective, start: &[f64; MOST]) -> Solution {
    let count = objective.count();
    let scale = objective.delta.powi(2);
    let origin = outside(&objective, start);
    let first = objective.value(&inside(&objective, &origin).0) / scale;
    let best = Mutex::new((if first.is_finite() { first } else { NOWHERE }, origin));
    for _ in 0..ROUNDS {
        let Ok((before, origin)) = best.lock().map(|b| b.clone()) else { break };
        let (_, matrix) = derivatives(&objective, &origin);
        let Some(back) = whitening(matrix / scale) else { break };
        let round = Round { objective, origin, back, best: &best };
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY);
        // A failed line search ends a round; the best point seen so far stays.
        let _ = Executor::new(round, solver)
            .configure(|state| state.param(vec![0.0; count]).max_iters(ITERATIONS))
            .ctrlc(false)
            .run();
        let after = best.lock().map_or(before, |b| b.0);
        if before - after <= IMPROVEMENT * after {
            break;
        }
    }
    let (huber, x) = best.into_inner().unwrap_or_else(PoisonError::into_inner);
    Solution { searched: inside(&objective, &x).0, huber: huber * scale }
}

/// B with `B^T A B = 1` for the damped matrix A.
fn whitening(mut matrix: DMatrix<f64>) -> Option<DMatrix<f64>> {
    let largest = matrix.diagonal().max();
    if !(largest.is_finite() && largest > 0.0) {
        return None;
    }
    for i in 0..matrix.nrows() {
        matrix[(i, i)] += DAMPING * largest;
    }
    let lower = matrix.cholesky()?.l();
    lower.transpose().try_inverse()
}

/// Condition number of the Jacobian with columns scaled to one length: how far the runs tell the
/// coefficients apart. Infinite when a coefficient has no effect at all.
pub(crate) fn condition(jacobian: &DMatrix<f64>) -> f64 {
    let mut scaled: DMatrix<f64> = jacobian.clone();
    for mut column in scaled.column_iter_mut() {
        let length = column.norm();
        if length <= 0.0 || !length.is_finite() {
            return f64::INFINITY;
        }
        column /= length;
    }
    let values: DVector<f64> =
        nalgebra::SVD::<f64, Dyn, Dyn>::new(scaled, false, false).singular_values;
    values.max() / values.min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::{Inputs, Variable};

    /// Runs of a known dense law on a grid.
    fn grid() -> (Vec<Run>, [f64; MOST]) {
        let mut truth = [0.0; MOST];
        truth[..5].copy_from_slice(&[0.6, 6.2, 7.6, 0.348, 0.366]);
        let mut runs = Vec::new();
        for n in [1e8, 3e8, 1e9, 3e9] {
            for d in [2e9, 6e9, 2e10, 6e10] {
                let values = [(Variable::NActive, n), (Variable::Tokens, d)];
                let inputs = Inputs::new(values).unwrap();
                let ln = Form::Dense.ln_loss(&truth, &Run::new(inputs, 1.0, 0, 0));
                runs.push(Run::new(inputs, ln.exp(), runs.len(), 0));
            }
        }
        (runs, truth)
    }

    #[test]
    fn the_huber_function_is_square_inside_and_straight_outside() {
        assert!((huber(1e-4, 1e-3) - 5e-9).abs() < 1e-20);
        assert!((huber(-1e-2, 1e-3) - 1e-3 * (1e-2 - 5e-4)).abs() < 1e-18);
    }

    #[test]
    fn gradients_agree_with_differences() {
        let (runs, truth) = grid();
        let weights = vec![1.0; runs.len()];
        let objective =
            Objective { form: Form::Dense, runs: &runs, weights: &weights, delta: 1e-3 };
        let mut at = truth;
        at[1] += 0.3;
        let x = outside(&objective, &at);
        let (gradient, _) = derivatives(&objective, &x);
        for i in 0..5 {
            let shifted = |by: f64| {
                let mut moved = x.clone();
                moved[i] += by;
                objective.value(&inside(&objective, &moved).0)
            };
            let difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((gradient[i] - difference).abs() <= 1e-5 * difference.abs().max(1e-6));
        }
    }

    #[test]
    fn known_coefficients_are_found_again() {
        let (runs, truth) = grid();
        let weights = vec![1.0; runs.len()];
        let objective =
            Objective { form: Form::Dense, runs: &runs, weights: &weights, delta: 1e-3 };
        let mut start = truth;
        for (i, by) in [0.1, -0.8, 0.9, 0.05, -0.06].into_iter().enumerate() {
            start[i] += by;
        }
        let found = minimise(objective, &start);
        assert!(found.huber < 1e-14, "{}", found.huber);
        for (got, expected) in found.searched.iter().zip(truth) {
            assert!((got - expected).abs() < 1e-4, "{:?}", found.searched);
        }
    }

    #[test]
    fn coefficients_without_effect_make_the_condition_infinite() {
        let good = DMatrix::from_row_slice(2, 2, &[1.0, 0.0, 0.0, 5.0]);
        assert!((condition(&good) - 1.0).abs() < 1e-12);
        let bad = DMatrix::from_row_slice(2, 2, &[1.0, 0.0, 1.0, 0.0]);
        assert!(condition(&bad).is_infinite());
    }
}
