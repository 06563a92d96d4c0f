//! What a law becomes once everything but size and training tokens is fixed, and the searches on it.
//!
//! Some forms have no closed optimum, so each is found numerically: a grid over ln N on the line of
//! equal training FLOPs, then golden sections around the best point. The closed forms that exist are
//! checked against it.

use crate::law::{Inputs, Range, Variable};
use crate::units::{Flops, Nats};
use crate::{Error, Result};

/// Smallest and largest size that the searches consider.
pub(crate) const SIZES: (f64, f64) = (1e4, 1e16);
/// Smallest and largest training budget that the searches consider.
pub(crate) const BUDGETS: (f64, f64) = (1e12, 1e32);
/// Grid points per search; two per factor of two over the sizes above.
const GRID: u32 = 80;
/// Golden sections after the grid; each shrinks the bracket to 0.618, so that 1e-9 is left.
const SECTIONS: u32 = 45;
/// Halvings of a bracket in the logarithm: below one part in 10^13 of any bracket used here.
const HALVINGS: u32 = 60;

/// Sizes of one model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sizes {
    /// Parameters that one token meets, if the law can tell.
    pub n_active: Option<f64>,
    /// All parameters, if the law can tell.
    pub n_total: Option<f64>,
}

/// A size and a number of training tokens; N as the law counts it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SizeAndTokens {
    /// Parameters as the law counts them.
    pub n: f64,
    /// Training tokens.
    pub tokens: f64,
}

/// A law of size and tokens, everything else fixed.
pub trait Surface: Send + Sync {
    /// Loss of `n` parameters (as the law counts them) on `tokens` tokens, in nats per token.
    fn loss(&self, n: f64, tokens: f64) -> f64;

    /// Active and total parameters of `n` parameters as the law counts them.
    fn sizes(&self, n: f64) -> Sizes;

    /// Training FLOPs per token.
    fn train_flops_per_token(&self, n: f64) -> f64;

    /// N as the law counts it, from the sizes that were given.
    ///
    /// # Errors
    /// [`Error::Usage`] when the size is missing.
    fn size(&self, inputs: &Inputs) -> Result<f64>;

    /// Ranges of the fitted runs at what is fixed.
    fn ranges(&self) -> Vec<Range>;

    /// Further values that describe the model (granularity, experts), for ranges and output.
    fn fixed(&self) -> Inputs {
        Inputs::default()
    }

    /// What to know about this evaluation.
    fn notes(&self, _at: SizeAndTokens) -> Vec<String> {
        Vec::new()
    }

    /// Why size and tokens cannot be traded against each other, if they cannot.
    fn no_optimum(&self) -> Option<String> {
        None
    }

    /// The number of training tokens at which the law holds, if it is one only.
    fn only_tokens(&self) -> Option<f64> {
        None
    }

    /// Size and tokens of lowest loss at a training budget.
    ///
    /// # Errors
    /// [`Error::Unfit`] for a law without an optimum.
    fn optimum(&self, budget: Flops) -> Result<SizeAndTokens> {
        optimum(self, budget)
    }

    /// Smallest training budget whose optimum reaches `loss`.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when no budget reaches it; [`Error::Unfit`] for a law without an optimum.
    fn budget_for_loss(&self, loss: Nats) -> Result<Flops> {
        budget_for_loss(self, loss)
    }

    /// Tokens that a size needs to reach `loss`.
    ///
    /// # Errors
    /// [`Error::Infeasible`] when no number of tokens reaches it.
    fn tokens_for_loss(&self, n: f64, loss: Nats) -> Result<f64> {
        let curve = |tokens: f64| self.loss(n, tokens);
        falling_root(curve, (1.0, 1e30), loss.0).ok_or_else(|| {
            let floor = curve(1e30);
            out_of_reach(loss, floor, "use more parameters or a higher loss")
        })
    }
}

/// The error for a loss that a law cannot reach.
pub(crate) fn out_of_reach(loss: Nats, floor: f64, remedy: &str) -> Error {
    Error::infeasible(format!("law cannot reach L = {loss}: the floor here is {floor:.4}"), remedy)
}

/// Size and tokens of lowest loss at a training budget, by search.
///
/// # Errors
/// [`Error::Unfit`] for a law without an optimum.
pub fn optimum<S: Surface + ?Sized>(surface: &S, budget: Flops) -> Result<SizeAndTokens> {
    if let Some(reason) = surface.no_optimum() {
        return Err(Error::unfit("optimum", reason));
    }
    crate::error::positive(Variable::TrainFlops.flag(), budget.0)?;
    let tokens = |n: f64| budget.0 / surface.train_flops_per_token(n);
    let loss = |ln_n: f64| {
        let n = ln_n.exp();
        surface.loss(n, tokens(n))
    };
    let n = minimum(loss, (SIZES.0.ln(), SIZES.1.ln())).exp();
    Ok(SizeAndTokens { n, tokens: tokens(n) })
}

/// Smallest training budget whose optimum reaches `loss`, by bisection in its logarithm.
fn budget_for_loss<S: Surface + ?Sized>(surface: &S, loss: Nats) -> Result<Flops> {
    let best = |budget: f64| surface.optimum(Flops(budget)).map(|at| surface.loss(at.n, at.tokens));
    // Asks once for the refusal of a law without an optimum, and for the lowest loss there is.
    let floor = best(BUDGETS.1)?;
    let curve = |budget: f64| best(budget).unwrap_or(f64::NAN);
    falling_root(curve, BUDGETS, loss.0)
        .map(Flops)
        .ok_or_else(|| out_of_reach(loss, floor, "raise the target loss"))
}

/// The x in `range` at which a falling curve passes `value`, by bisection in ln x; `None` when the
/// curve does not pass it there.
pub fn falling_root(curve: impl Fn(f64) -> f64, range: (f64, f64), value: f64) -> Option<f64> {
    let (mut low, mut high) = range;
    if !value.is_finite() || curve(low) < value || curve(high) > value {
        return None;
    }
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        if curve(middle) > value { low = middle } else { high = middle }
    }
    Some((low * high).sqrt())
}

/// Where a function is smallest: the best point of a grid, then golden sections around it.
pub fn minimum(function: impl Fn(f64) -> f64, range: (f64, f64)) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let step = (range.1 - range.0) / f64::from(GRID);
    let at = |i: u32| range.0 + step * f64::from(i);
    let best = (0..=GRID).map(|i| (function(at(i)), i)).min_by(|a, b| a.0.total_cmp(&b.0));
    let centre = at(best.map_or(0, |(_, i)| i));
    let (mut low, mut high) = ((centre - step).max(range.0), (centre + step).min(range.1));
    let (mut left, mut right) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut at_left, mut at_right) = (function(left), function(right));
    for _ in 0..SECTIONS {
        if at_left < at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - GOLDEN * (high - low);
            at_left = function(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + GOLDEN * (high - low);
            at_right = function(right);
        }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minimum_is_found_inside_and_at_the_ends() {
        assert!((minimum(|x| (x - 3.0).powi(2), (0.0, 10.0)) - 3.0).abs() < 1e-7);
        assert!(minimum(|x| x, (2.0, 9.0)) - 2.0 < 1e-6);
        assert!(9.0 - minimum(|x| -x, (2.0, 9.0)) < 1e-6);
    }

    #[test]
    fn a_root_is_found_or_its_absence() {
        let root = falling_root(|x| 1.0 / x, (1e-3, 1e9), 1e-4).unwrap();
        assert!((root / 1e4 - 1.0).abs() < 1e-12);
        assert!(falling_root(|x| 1.0 / x, (1e-3, 1e9), 1e-12).is_none());
        assert!(falling_root(|x| 1.0 / x, (1e-3, 1e9), 1e12).is_none());
        assert!(falling_root(|x| 1.0 / x, (1e-3, 1e9), f64::NAN).is_none());
    }
}
