//! Size and tokens when serving is paid for as well: Sardana, Portes, Doubov and Frankle 2024,
//! *Beyond Chinchilla-Optimal*, arXiv 2401.00448, with active parameters in both compute terms for
//! MoE models (Ludziejewski et al. 2025, arXiv 2502.05172, section 4.4).
//!
//! FLOPs alone flatter large expert counts: memory and bandwidth follow all parameters. A ranking
//! therefore prices serving by measured cost, and shows this answer only beside it.

use crate::law::Slice;
use crate::law::surface::{SizeAndTokens, Surface, minimum};
use crate::units::{Flops, Nats};
use crate::{Error, Result, error};

/// FLOPs per active parameter and training token.
const TRAIN: f64 = 6.0;
/// FLOPs per active parameter and served token.
const INFER: f64 = 2.0;
/// Sizes that are considered lie within this factor of the training optimum.
const SPAN: f64 = 1e3;

/// Tokens that will be served, and what serving costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Serving {
    /// Tokens processed over the model's life.
    pub tokens: f64,
    /// Cost of an inference FLOP over that of a training FLOP; 1 when FLOPs alone count.
    pub relative_cost: f64,
}

impl Serving {
    /// So many tokens, counted in FLOPs.
    pub const fn in_flops(tokens: f64) -> Self {
        Self { tokens, relative_cost: 1.0 }
    }

    fn check(self) -> Result<()> {
        let served = self.tokens * self.relative_cost;
        if served.is_finite() && served >= 0.0 {
            return Ok(());
        }
        Err(Error::usage("--served-tokens", "not a finite number of zero or more"))
    }

    /// FLOPs (in training's money) of serving with `n_active` parameters.
    fn flops(self, n_active: f64) -> f64 {
        INFER * n_active * self.tokens * self.relative_cost
    }
}

/// A size with its training tokens, and what training and serving cost together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lifetime {
    /// Active parameters.
    pub n_active: f64,
    /// Training tokens.
    pub tokens: f64,
    /// Loss.
    pub loss: Nats,
    /// Training and serving.
    pub flops: Flops,
}

/// The cheapest model over its life that reaches `loss`: least `6 N D + 2 N D_inf`. At the optimum
/// `(N dL/dN) / (D dL/dD) = 1 + D_inf / (3 D)`.
///
/// # Errors
/// [`Error::Infeasible`] when the law cannot reach the loss; [`Error::Usage`] for a number of served
/// tokens that is negative or not finite.
pub fn cheapest(slice: &dyn Slice, loss: Nats, serving: Serving) -> Result<Lifetime> {
    serving.check()?;
    let largest = slice.optimum(slice.budget_for_loss(loss)?).n_active;
    let tokens = |n: f64| slice.tokens_for_loss(n, loss);
    let flops = |n: f64, d: f64| TRAIN * n * d + serving.flops(n);
    let (n_active, tokens) = least(largest, tokens, flops)?;
    Ok(Lifetime { n_active, tokens, loss, flops: Flops(flops(n_active, tokens)) })
}

/// The best model whose training and serving together cost `budget`.
///
/// # Errors
/// [`Error::Usage`] for a budget or a number of tokens that is not positive.
pub fn best(slice: &dyn Slice, budget: Flops, serving: Serving) -> Result<Lifetime> {
    error::positive("budget", budget.0)?;
    serving.check()?;
    let largest = slice.optimum(budget).n_active;
    let tokens = |n: f64| (budget.0 - serving.flops(n)) / (TRAIN * n);
    let (n_active, tokens) = lowest(largest, tokens, |n, d| slice.loss(n, d).0);
    Ok(Lifetime { n_active, tokens, loss: slice.loss(n_active, tokens), flops: budget })
}

/// [`cheapest`] for any law of size and tokens that knows its active parameters and training work.
///
/// # Errors
/// As [`cheapest`]; [`Error::Unfit`] for a law without an optimum or without active parameters.
pub fn cheapest_on(surface: &dyn Surface, loss: Nats, serving: Serving) -> Result<SizeAndTokens> {
    serving.check()?;
    let largest = surface.optimum(surface.budget_for_loss(loss)?)?.n;
    active(surface, largest)?;
    let tokens = |n: f64| surface.tokens_for_loss(n, loss);
    let (n, tokens) = least(largest, tokens, |n, d| life_flops(surface, n, d, serving))?;
    Ok(SizeAndTokens { n, tokens })
}

/// [`best`] for any law of size and tokens that knows its active parameters and training work.
///
/// # Errors
/// As [`best`]; [`Error::Unfit`] for a law without an optimum or without active parameters.
pub fn best_on(surface: &dyn Surface, budget: Flops, serving: Serving) -> Result<SizeAndTokens> {
    error::positive("budget", budget.0)?;
    serving.check()?;
    let largest = surface.optimum(budget)?.n;
    active(surface, largest)?;
    let tokens = |n: f64| {
        let served = life_flops(surface, n, 0.0, serving);
        (budget.0 - served) / surface.train_flops_per_token(n)
    };
    let (n, tokens) = lowest(largest, tokens, |n, d| surface.loss(n, d));
    Ok(SizeAndTokens { n, tokens })
}

/// Training and serving FLOPs of `n` parameters as the law counts them; NaN when it cannot tell.
pub fn life_flops(surface: &dyn Surface, n: f64, tokens: f64, serving: Serving) -> f64 {
    let active = surface.sizes(n).n_active.unwrap_or(f64::NAN);
    surface.train_flops_per_token(n) * tokens + serving.flops(active)
}

fn active(surface: &dyn Surface, n: f64) -> Result<f64> {
    surface.sizes(n).n_active.ok_or_else(|| {
        Error::unfit("served tokens", "this law does not say how many parameters a token meets")
    })
}

/// Size and tokens of least FLOPs among the sizes below `largest`: serving only ever argues for a
/// smaller model than training alone.
fn least(
    largest: f64,
    tokens: impl Fn(f64) -> Result<f64>,
    flops: impl Fn(f64, f64) -> f64,
) -> Result<(f64, f64)> {
    let total = |ln: f64| tokens(ln.exp()).map_or(f64::INFINITY, |d| flops(ln.exp(), d));
    let n = minimum(total, ((largest / SPAN).ln(), largest.ln())).exp();
    Ok((n, tokens(n)?))
}

/// Size and tokens of lowest loss among the sizes below `largest`.
fn lowest(largest: f64, tokens: impl Fn(f64) -> f64, loss: impl Fn(f64, f64) -> f64) -> (f64, f64) {
    let at = |ln: f64| {
        let (n, d) = (ln.exp(), tokens(ln.exp()));
        if d > 0.0 { loss(n, d) } else { f64::INFINITY }
    };
    let n = minimum(at, ((largest / SPAN).ln(), largest.ln())).exp();
    (n, tokens(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::law::PowerLawSlice;
    use crate::law::load_scaling;

    /// Coefficients that the paper's own examples need: two-digit exponents give 9 % for the first.
    const SARDANA: PowerLawSlice =
        PowerLawSlice { m: 406.4, mu: -0.3392, n: 410.7, nu: -0.2849, c: 1.6934, coupling: 0.0 };

    fn close(got: f64, expected: f64, relative: f64) {
        assert!((got / expected - 1.0).abs() <= relative, "{got} against {expected}");
    }

    #[test]
    fn the_papers_examples_come_out() {
        // N of the Chinchilla model, its D and loss; D_inf; N, D (as a factor or outright), saving.
        let cases = [
            (30e9, 1.675e12, 1.9421, 5e12, 16.79e9, 3.402e12, 15.1),
            (7e9, 296.2e9, 2.1008, 1e11, 6.057e9, 1.164 * 296.2e9, 0.7),
        ];
        for (n, d, loss, served, best_n, best_d, saving) in cases {
            // The budget at which n is the optimum.
            let (p, q) = (-SARDANA.mu, -SARDANA.nu);
            let split = (p * SARDANA.m / (q * SARDANA.n)).powf(1.0 / (p + q));
            let tokens = (n / split).powf(p / q) / split;
            close(tokens, d, 5e-3);
            let reached = SARDANA.loss(n, tokens);
            assert!((reached.0 - loss).abs() < 1e-4, "{reached}");
            let serving = Serving::in_flops(served);
            let best = cheapest(&SARDANA, reached, serving).unwrap();
            close(best.n_active, best_n, 5e-3);
            close(best.tokens, best_d, 5e-3);
            let plain = TRAIN * n * tokens + serving.flops(n);
            let saved = (1.0 - best.flops.0 / plain) * 100.0;
            assert!((saved - saving).abs() <= 0.2, "{saved}");
        }
    }

    #[test]
    fn at_the_optimum_the_gradients_are_in_the_stated_ratio() {
        let loss = SARDANA.loss(7e9, 300e9);
        for served in [1e11, 1e12, 1e13] {
            let best = cheapest(&SARDANA, loss, Serving::in_flops(served)).unwrap();
            let by_n = SARDANA.m * SARDANA.mu * best.n_active.powf(SARDANA.mu);
            let by_d = SARDANA.n * SARDANA.nu * best.tokens.powf(SARDANA.nu);
            close(by_n / by_d, 1.0 + served / (3.0 * best.tokens), 1e-5);
        }
    }

    #[test]
    fn moe_optima_at_equal_loss_agree_with_the_computed_values() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let loss = law.slice(4).unwrap().optimum(Flops(1e21)).loss;
        // N and D in B, total FLOPs for E = 1, 4, 8, 16, 32.
        let rows = [
            (
                0.0,
                [
                    (6.918, 34.9, 1.447e21),
                    (4.390, 38.0, 1.000e21),
                    (3.296, 39.9, 7.88e20),
                    (2.432, 41.8, 6.10e20),
                    (1.787, 43.8, 4.69e20),
                ],
            ),
            (
                1e11,
                [
                    (3.162, 87.5, 2.291e21),
                    (2.105, 89.8, 1.554e21),
                    (1.624, 91.1, 1.212e21),
                    (1.231, 92.4, 9.29e20),
                    (0.928, 93.8, 7.08e20),
                ],
            ),
            (
                1e12,
                [
                    (1.464, 318.0, 5.726e21),
                    (0.994, 315.0, 3.869e21),
                    (0.777, 313.0, 3.013e21),
                    (0.596, 311.0, 2.305e21),
                    (0.455, 309.0, 1.753e21),
                ],
            ),
        ];
        for (served, cells) in rows {
            for (experts, (n, d, flops)) in [1, 4, 8, 16, 32].into_iter().zip(cells) {
                let slice = law.slice(experts).unwrap();
                let best = cheapest(slice.as_ref(), loss, Serving::in_flops(served)).unwrap();
                close(best.n_active, n * 1e9, 5e-3);
                close(best.tokens, d * 1e9, 5e-3);
                close(best.flops.0, flops, 5e-3);
            }
        }
    }

    #[test]
    fn joint_budgets_agree_with_the_computed_values() {
        let law = load_scaling("ludziejewski2025").unwrap();
        let cases =
            [(1, 1.633, 68.7, 2.4077), (4, 1.478, 79.45, 2.3640), (16, 1.307, 94.2, 2.3087)];
        for (experts, n, d, loss) in cases {
            let slice = law.slice(experts).unwrap();
            let got = best(slice.as_ref(), Flops(1e21), Serving::in_flops(1e11)).unwrap();
            close(got.n_active, n * 1e9, 5e-3);
            close(got.tokens, d * 1e9, 5e-3);
            assert!((got.loss.0 - loss).abs() <= 1e-4, "{}", got.loss);
        }
    }

    #[test]
    fn a_surface_gives_what_its_slice_gives() {
        let law = crate::law::load("ludziejewski2025", None).unwrap();
        let inputs = crate::law::Inputs::default().with(crate::law::Variable::Experts, 8.0);
        let surface = law.surface(&inputs).unwrap();
        let slice = load_scaling("ludziejewski2025").unwrap().slice(8).unwrap();
        let serving = Serving::in_flops(1e12);
        let whole = cheapest(slice.as_ref(), Nats(2.3), serving).unwrap();
        let at = cheapest_on(surface.as_ref(), Nats(2.3), serving).unwrap();
        close(at.n, whole.n_active, 1e-6);
        close(life_flops(surface.as_ref(), at.n, at.tokens, serving), whole.flops.0, 1e-9);
        let whole = best(slice.as_ref(), Flops(1e21), serving).unwrap();
        let at = best_on(surface.as_ref(), Flops(1e21), serving).unwrap();
        close(at.n, whole.n_active, 1e-6);
        close(life_flops(surface.as_ref(), at.n, at.tokens, serving), 1e21, 1e-9);
    }

    #[test]
    fn impossible_questions_are_refused() {
        assert_eq!(
            cheapest(&SARDANA, Nats(1.0), Serving::in_flops(1e11)).unwrap_err().exit_code(),
            5
        );
        assert!(best(&SARDANA, Flops(f64::NAN), Serving::in_flops(1e11)).is_err());
        assert!(best(&SARDANA, Flops(1e21), Serving::in_flops(-1.0)).is_err());
    }
}
