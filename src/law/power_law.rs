//! A loss that is a sum of two falling powers and a floor: what most laws become once the expert
//! count is fixed.
//!
//! `L(N, D) = N^k (m N^mu + n D^nu + c)` with negative mu and nu. In most laws k is zero; then the
//! optimum at a training budget `F = 6 N D` has a closed form (Hoffmann et al. 2022,
//! arXiv 2203.15556, equation 4). With a factor `N^k` (Yun et al. 2024) it is searched.

use crate::Result;
use crate::law::slice::{Slice, TRAIN_FLOPS, TokenCurve, searched};
use crate::law::surface::out_of_reach;
use crate::units::{Flops, Nats};

/// `N^k (m N^mu + n D^nu + c)`; N in active parameters, D in tokens, loss in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerLawSlice {
    /// Factor of the parameter term.
    pub m: f64,
    /// Exponent of the parameter term, negative.
    pub mu: f64,
    /// Factor of the token term.
    pub n: f64,
    /// Exponent of the token term, negative.
    pub nu: f64,
    /// Loss that no size and no data get below, where k is zero.
    pub c: f64,
    /// Exponent k of the factor on the whole sum.
    pub coupling: f64,
}

/// The best split of a training budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimum {
    /// Active parameters.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Loss reached.
    pub loss: Nats,
}

impl PowerLawSlice {
    fn is_coupled(&self) -> bool {
        self.coupling.abs() > 0.0
    }

    /// `N^k`.
    fn factor(&self, n_active: f64) -> f64 {
        if self.is_coupled() { n_active.powf(self.coupling) } else { 1.0 }
    }
}

impl Slice for PowerLawSlice {
    fn curve(&self, n_active: f64) -> TokenCurve {
        let floor = self.m * n_active.powf(self.mu) + self.c;
        TokenCurve { factor: self.factor(n_active), ..TokenCurve::new(floor, (self.n, self.nu)) }
    }

    /// With p = -mu and q = -nu: `G = (p m / (q n))^(1/(p+q))`, `N = G (F/6)^(q/(p+q))`,
    /// `D = (F/6)^(p/(p+q)) / G`.
    fn optimum(&self, budget: Flops) -> Optimum {
        if self.is_coupled() {
            return searched::optimum(self, budget);
        }
        let (p, q) = (-self.mu, -self.nu);
        let split = (p * self.m / (q * self.n)).powf(1.0 / (p + q));
        let work = budget.0 / TRAIN_FLOPS;
        let n_active = split * work.powf(q / (p + q));
        let tokens = work.powf(p / (p + q)) / split;
        Optimum { n_active, tokens, loss: self.loss(n_active, tokens) }
    }

    fn n_for_loss(&self, tokens: f64, loss: Nats) -> Result<f64> {
        if self.is_coupled() {
            return searched::n_for_loss(self, tokens, loss);
        }
        let floor = self.n * tokens.powf(self.nu) + self.c;
        power_inverse(loss.0 - floor, self.m, self.mu)
            .ok_or_else(|| out_of_reach(loss, floor, "use more tokens or a higher loss"))
    }

    /// Along the optimum both terms fall as the same power of the budget, so the inverse is closed:
    /// `L - c = K (F/6)^(-p q / (p + q))`.
    fn budget_for_loss(&self, loss: Nats) -> Result<Flops> {
        if self.is_coupled() {
            return searched::budget_for_loss(self, loss);
        }
        let (p, q) = (-self.mu, -self.nu);
        let reducible = self.optimum(Flops(TRAIN_FLOPS)).loss.0 - self.c;
        power_inverse(loss.0 - self.c, reducible, -p * q / (p + q))
            .map(|work| Flops(work * TRAIN_FLOPS))
            .ok_or_else(|| out_of_reach(loss, self.c, "raise the target loss"))
    }
}

/// x with `factor x^exponent = value`, if there is one.
fn power_inverse(value: f64, factor: f64, exponent: f64) -> Option<f64> {
    let x = (value / factor).powf(1.0 / exponent);
    (value > 0.0 && x.is_finite() && x > 0.0).then_some(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SLICE: PowerLawSlice =
        PowerLawSlice { m: 30.0, mu: -0.18, n: 54.0, nu: -0.2, c: 1.36, coupling: 0.0 };
    const COUPLED: PowerLawSlice = PowerLawSlice { coupling: -0.004, ..SLICE };

    proptest! {
        #[test]
        fn the_optimum_beats_its_neighbours_at_the_same_budget(log_budget in 17.0..24.0f64) {
            let budget = Flops(10f64.powf(log_budget));
            for slice in [SLICE, COUPLED] {
                let best = slice.optimum(budget);
                prop_assert!((6.0 * best.n_active * best.tokens / budget.0 - 1.0).abs() < 1e-9);
                for factor in [0.9, 1.1] {
                    let n = best.n_active * factor;
                    prop_assert!(slice.loss(n, budget.0 / 6.0 / n) > best.loss);
                }
            }
        }

        #[test]
        fn inverses_undo_the_law(log_n in 7.0..12.0f64, log_d in 8.0..13.0f64) {
            let (n, d) = (10f64.powf(log_n), 10f64.powf(log_d));
            for slice in [SLICE, COUPLED] {
                let loss = slice.loss(n, d);
                prop_assert!((slice.tokens_for_loss(n, loss).unwrap() / d - 1.0).abs() < 1e-8);
                prop_assert!((slice.n_for_loss(d, loss).unwrap() / n - 1.0).abs() < 1e-8);
            }
        }

        #[test]
        fn the_budget_for_an_optimal_loss_is_that_budget(log_budget in 17.0..24.0f64) {
            let budget = 10f64.powf(log_budget);
            for slice in [SLICE, COUPLED] {
                let loss = slice.optimum(Flops(budget)).loss;
                prop_assert!((slice.budget_for_loss(loss).unwrap().0 / budget - 1.0).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn a_loss_below_the_floor_is_refused() {
        for error in [
            SLICE.budget_for_loss(Nats(1.36)).unwrap_err(),
            SLICE.budget_for_loss(Nats(f64::NAN)).unwrap_err(),
            SLICE.tokens_for_loss(1e9, Nats(1.4)).unwrap_err(),
            SLICE.n_for_loss(1e9, Nats(1.4)).unwrap_err(),
            COUPLED.budget_for_loss(Nats(0.5)).unwrap_err(),
            COUPLED.n_for_loss(1e9, Nats(0.5)).unwrap_err(),
        ] {
            assert_eq!(error.exit_code(), 5, "{error}");
        }
    }
}
