//! A law at one expert count along the sizes of one architecture: loss against active parameters and
//! training tokens, and the searches that a ranking does on it.

use std::fmt::Debug;

use crate::Result;
use crate::law::Optimum;
use crate::law::surface::{SIZES, falling_root, minimum, out_of_reach};
use crate::units::{Flops, Nats};

/// Training FLOPs per active parameter and token.
pub(super) const TRAIN_FLOPS: f64 = 6.0;
/// Newton steps for a number of tokens; from the left of the root each doubles the correct digits.
const NEWTON_STEPS: u32 = 50;
/// Relative change of ln D at which Newton's method stops.
const CONVERGED: f64 = 1e-14;

/// Loss of one model against training tokens: `factor (floor + n1 D^nu1 + n2 D^nu2)` in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenCurve {
    /// Factor on the whole sum.
    pub factor: f64,
    /// What no number of tokens gets below, over the factor.
    pub floor: f64,
    /// Factor and negative exponent of each term in D; a term without a factor is none.
    pub terms: [(f64, f64); 2],
}

impl TokenCurve {
    /// A curve with one term in D.
    pub const fn new(floor: f64, (n, nu): (f64, f64)) -> Self {
        Self { factor: 1.0, floor, terms: [(n, nu), (0.0, -1.0)] }
    }

    /// Loss after `tokens` training tokens.
    pub fn loss(&self, tokens: f64) -> f64 {
        self.factor * (self.floor + self.data(tokens.ln()).0)
    }

    /// The terms in D and their derivative by ln D.
    fn data(&self, ln_tokens: f64) -> (f64, f64) {
        self.terms.iter().filter(|t| t.0 > 0.0).fold((0.0, 0.0), |(sum, slope), &(n, nu)| {
            let term = n * (nu * ln_tokens).exp();
            (sum + term, slope + nu * term)
        })
    }

    /// Training tokens that reach `loss`; `None` where none do.
    pub fn tokens_for(&self, loss: f64) -> Option<f64> {
        let reducible = loss / self.factor - self.floor;
        if !(reducible.is_finite() && reducible > 0.0) {
            return None;
        }
        // Each term alone is below the sum, so that its root lies left of the sum's.
        let alone = |&(n, nu): &(f64, f64)| (n > 0.0).then(|| (reducible / n).ln() / nu);
        let roots: Vec<f64> = self.terms.iter().filter_map(alone).collect();
        let mut ln_tokens = roots.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if roots.len() > 1 {
            for _ in 0..NEWTON_STEPS {
                let (sum, slope) = self.data(ln_tokens);
                let step = (sum - reducible) / slope;
                ln_tokens -= step;
                if step.abs() <= CONVERGED * ln_tokens.abs() {
                    break;
                }
            }
        }
        let tokens = ln_tokens.exp();
        (tokens.is_finite() && tokens > 0.0).then_some(tokens)
    }
}

/// A law at one expert count of one architecture; N in active parameters with embeddings, D in tokens.
pub trait Slice: Send + Sync + Debug {
    /// The loss against tokens of a model of `n_active` active parameters.
    fn curve(&self, n_active: f64) -> TokenCurve;

    /// Loss of `n_active` parameters on `tokens` tokens.
    fn loss(&self, n_active: f64, tokens: f64) -> Nats {
        Nats(self.curve(n_active).loss(tokens))
    }

    /// The size and tokens of lowest loss at `6 N D = budget`.
    fn optimum(&self, budget: Flops) -> Optimum {
        searched::optimum(self, budget)
    }

    /// Tokens that `n_active` parameters need to reach `loss`; `None` when they never do.
    fn tokens_for(&self, n_active: f64, loss: Nats) -> Option<f64> {
        self.curve(n_active).tokens_for(loss.0)
    }

    /// The same, or why they never do.
    ///
    /// # Errors
    /// [`crate::Error::Infeasible`] when that many parameters never reach it.
    fn tokens_for_loss(&self, n_active: f64, loss: Nats) -> Result<f64> {
        self.tokens_for(n_active, loss).ok_or_else(|| {
            let curve = self.curve(n_active);
            let floor = curve.factor * curve.floor;
            out_of_reach(loss, floor, "use more parameters or a higher loss")
        })
    }

    /// Parameters that reach `loss` on `tokens` tokens.
    ///
    /// # Errors
    /// [`crate::Error::Infeasible`] when that many tokens never reach it.
    fn n_for_loss(&self, tokens: f64, loss: Nats) -> Result<f64> {
        searched::n_for_loss(self, tokens, loss)
    }

    /// The smallest training budget whose optimum reaches `loss`.
    ///
    /// # Errors
    /// [`crate::Error::Infeasible`] when no size reaches it.
    fn budget_for_loss(&self, loss: Nats) -> Result<Flops> {
        searched::budget_for_loss(self, loss)
    }
}

/// The searches on a law that has no closed forms.
pub(super) mod searched {
    use super::{Flops, Nats, Optimum, Result, SIZES, Slice, TRAIN_FLOPS};
    use super::{falling_root, minimum, out_of_reach};

    /// [`Slice::optimum`] over ln N.
    pub(crate) fn optimum(slice: &(impl Slice + ?Sized), budget: Flops) -> Optimum {
        let tokens = |n: f64| budget.0 / TRAIN_FLOPS / n;
        let loss = |ln_n: f64| slice.loss(ln_n.exp(), tokens(ln_n.exp())).0;
        let n_active = minimum(loss, (SIZES.0.ln(), SIZES.1.ln())).exp();
        let tokens = tokens(n_active);
        Optimum { n_active, tokens, loss: slice.loss(n_active, tokens) }
    }

    /// [`Slice::n_for_loss`] by bisection.
    pub(crate) fn n_for_loss(
        slice: &(impl Slice + ?Sized),
        tokens: f64,
        loss: Nats,
    ) -> Result<f64> {
        let curve = |n: f64| slice.loss(n, tokens).0;
        falling_root(curve, SIZES, loss.0)
            .ok_or_else(|| out_of_reach(loss, curve(SIZES.1), "use more tokens or a higher loss"))
    }

    /// [`Slice::budget_for_loss`]: the size whose training to the loss is the least work.
    pub(crate) fn budget_for_loss(slice: &(impl Slice + ?Sized), loss: Nats) -> Result<Flops> {
        // ln of the training work of the size that needs exactly this loss.
        let work = |ln_n: f64| {
            let tokens = slice.tokens_for(ln_n.exp(), loss);
            tokens.map_or(f64::INFINITY, |tokens| ln_n + tokens.ln())
        };
        let best = work(minimum(work, (SIZES.0.ln(), SIZES.1.ln())));
        if best.is_finite() {
            return Ok(Flops(TRAIN_FLOPS * best.exp()));
        }
        let curve = slice.curve(SIZES.1);
        Err(out_of_reach(loss, curve.factor * curve.floor, "raise the target loss"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::PowerLawSlice;
    use proptest::prelude::*;

    /// The same law without its closed forms.
    #[derive(Debug)]
    struct Searched(PowerLawSlice);

    impl Slice for Searched {
        fn curve(&self, n_active: f64) -> TokenCurve {
            self.0.curve(n_active)
        }
    }

    const SLICE: PowerLawSlice =
        PowerLawSlice { m: 30.0, mu: -0.18, n: 54.0, nu: -0.2, c: 1.36, coupling: 0.0 };

    proptest! {
        #[test]
        fn tokens_undo_a_curve_of_two_terms(
            ln_tokens in 15.0..33.0f64, n in 1.0..5e3f64, second in 0.0..50.0f64,
        ) {
            let curve = TokenCurve {
                factor: 1.1,
                floor: 1.7,
                terms: [(n, -0.36), (second, -0.035)],
            };
            let found = curve.tokens_for(curve.loss(ln_tokens.exp())).unwrap();
            prop_assert!((found.ln() / ln_tokens - 1.0).abs() < 1e-8, "{found}");
        }

        #[test]
        fn searches_find_what_closed_forms_give(log_budget in 18.0..25.0f64) {
            let budget = Flops(10f64.powf(log_budget));
            let (closed, searched) = (SLICE.optimum(budget), Searched(SLICE).optimum(budget));
            prop_assert!((searched.n_active / closed.n_active - 1.0).abs() < 1e-5);
            prop_assert!((searched.loss.0 - closed.loss.0).abs() < 1e-10);
            let back = Searched(SLICE).budget_for_loss(closed.loss).unwrap();
            prop_assert!((back.0 / budget.0 - 1.0).abs() < 1e-8);
        }
    }

    #[test]
    fn a_loss_below_every_size_is_refused() {
        let error = Searched(SLICE).budget_for_loss(Nats(1.3)).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(SLICE.curve(1e9).tokens_for(1.36).is_none());
    }
}
