//! What a law is worth beyond the runs that it was fitted to: its error as a process that grows with
//! the distance outside them, the share of over-training that pays, and repeated data.
//!
//! The scales are what published runs show when the largest are left out and predicted by a fit to the
//! others; `tests/law_beyond.rs` repeats that. In size and experts (Clark et al. 2022, 223 runs): an
//! error of [`SIZE_NATS`] an e-fold of size that all expert counts share, [`SLOPE_NATS`] an e-fold and
//! unit of ln(expansion), and [`OWN_NATS`] of each expert count by itself. In tokens per parameter
//! (Gadre et al. 2024, 104 runs): of what a fit to ratios up to 85 says that further tokens save, the
//! share [`REALISED`] is saved.

use std::sync::Arc;

use crate::law::{Extrapolation, Scaling, Slice, TokenCurve, precision};
use crate::units::Nats;

/// Error per e-fold of size beyond the runs that all expert counts share, in nats.
pub const SIZE_NATS: f64 = 0.016;
/// Error per e-fold of size beyond the runs and unit of ln(expansion) against the reference.
pub const SLOPE_NATS: f64 = 0.0075;
/// Error per e-fold of size beyond the runs of each expert count by itself.
pub const OWN_NATS: f64 = 0.002;
/// Share of what a law promises from tokens beyond its runs that they bring: mean and standard
/// deviation.
pub const REALISED: (f64, f64) = (0.75, 0.25);
/// The share is never drawn below this: more tokens never make a model worse.
const LEAST_REALISED: f64 = 0.1;
/// Tokens per parameter at which the runs behind a law end where its paper does not say: those of the
/// default law's.
pub const LISTED_TOKENS_PER_PARAM: f64 = 73.0;
/// Tokens per parameter of a compute-optimal run, to turn a largest budget into a largest size.
pub(super) const OPTIMAL_RATIO: f64 = 20.0;
/// Repetitions of a corpus whose tokens are worth (1 - 1/e) of new ones (Muennighoff et al. 2023,
/// arXiv 2305.16264, R*_D).
const REPETITIONS: f64 = 15.387_756;

/// Fixed-point steps for the tokens of a model that is rounded afterwards.
const ROUNDING_STEPS: usize = 400;

/// Standard normals behind one draw of a law's error.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorDraw {
    /// Common to all expert counts.
    pub size: f64,
    /// Of the slope in ln(expansion).
    pub slope: f64,
    /// Of the reference model's residual: another run than any candidate.
    pub reference: f64,
    /// Of the share of over-training that pays.
    pub realised: f64,
    /// Of each expert count's own error.
    pub own: Vec<f64>,
}

impl ErrorDraw {
    /// The draw in which nothing is drawn.
    pub fn none(expert_counts: usize) -> Self {
        Self { size: 0.0, slope: 0.0, reference: 0.0, realised: 0.0, own: vec![0.0; expert_counts] }
    }

    /// The share of over-training that pays in this draw.
    pub fn realised_share(&self) -> f64 {
        (REALISED.0 + REALISED.1 * self.realised).max(LEAST_REALISED)
    }
}

/// How far one model lies outside the runs of a law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// E-folds of size beyond the largest run; 0 within.
    pub distance: f64,
    /// ln of expansion over the reference's.
    pub ln_expansion: f64,
    /// Tokens per active parameter at which the runs end.
    pub ratio_limit: f64,
}

impl Standing {
    /// A model of a law, against the expansion of the reference.
    pub fn of(law: &Scaling, experts: usize, n_active: f64, reference: usize) -> Self {
        let outside = law.extrapolation(experts, n_active, OPTIMAL_RATIO * n_active);
        let size = outside.n_active.max(outside.train_flops.sqrt());
        let expansion =
            |experts| law.template().at_width(experts, law.template().aspect).expansion();
        Self {
            distance: size.ln().max(0.0),
            ln_expansion: (expansion(experts) / expansion(reference)).ln(),
            ratio_limit: ratio_limit(&outside),
        }
    }

    /// Error of the law at this model in nats: what its loss lies above the law's. `own` is the normal
    /// of the model's own error, `residual` the law's within its runs.
    pub fn error(&self, draw: &ErrorDraw, own: f64, residual: f64) -> f64 {
        let shared = SIZE_NATS * draw.size + SLOPE_NATS * self.ln_expansion * draw.slope;
        self.distance * (shared + OWN_NATS * own) + residual * own
    }

    /// Standard deviation of [`Self::error`].
    pub fn sigma(&self, residual: f64) -> f64 {
        let shared = SIZE_NATS.hypot(SLOPE_NATS * self.ln_expansion) * self.distance;
        shared.hypot(OWN_NATS * self.distance + residual)
    }
}

/// Tokens per active parameter at which the runs behind a law end, from how far a run of
/// [`OPTIMAL_RATIO`] lies outside them.
pub(super) fn ratio_limit(outside: &Extrapolation) -> f64 {
    if outside.tokens_per_param > 0.0 {
        OPTIMAL_RATIO / outside.tokens_per_param
    } else {
        LISTED_TOKENS_PER_PARAM
    }
}

/// How training data turns into loss beyond a law's runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Data {
    /// Share of over-training that pays.
    pub realised: f64,
    /// Tokens of the corpus that are not repeated; `None` is endless data.
    pub unique_tokens: Option<f64>,
    /// Bits that weights are rounded to after training; `None` keeps those of the training.
    pub rounded_bits: Option<f64>,
}

impl Data {
    /// Data without a limit, over-training worth what the runs show on average.
    pub const ENDLESS: Self =
        Self { realised: REALISED.0, unique_tokens: None, rounded_bits: None };

    /// Training tokens with which `n_active` parameters reach `loss`; `None` where none do.
    pub fn tokens_for(
        &self,
        curve: &TokenCurve,
        (n_active, ratio_limit): (f64, f64),
        loss: f64,
    ) -> Option<f64> {
        // Rounding costs more the longer a model was trained, so that the loss before it must be lower.
        let mut before = loss;
        for _ in 0..ROUNDING_STEPS {
            let tokens = self.trained(curve, (n_active, ratio_limit), before)?;
            let next = loss - self.rounding(n_active, tokens);
            if (next - before).abs() <= 1e-13 {
                return Some(tokens);
            }
            before = next;
        }
        None
    }

    /// Nats that rounding adds to a model of `n_active` parameters after `tokens` tokens.
    pub fn rounding(&self, n_active: f64, tokens: f64) -> f64 {
        self.rounded_bits.map_or(0.0, |bits| precision::rounding(bits, n_active, tokens))
    }

    /// Training tokens for a loss before rounding.
    fn trained(
        &self,
        curve: &TokenCurve,
        (n_active, ratio_limit): (f64, f64),
        loss: f64,
    ) -> Option<f64> {
        let end = n_active * ratio_limit;
        let mut fresh = curve.tokens_for(loss);
        if fresh.is_none_or(|tokens| tokens > end) {
            let at_end = curve.loss(end);
            fresh = curve.tokens_for(at_end - (at_end - loss) / self.realised);
        }
        self.repeated(fresh?)
    }

    /// Loss of `n_active` parameters after `tokens` training tokens.
    pub fn loss(
        &self,
        curve: &TokenCurve,
        (n_active, ratio_limit): (f64, f64),
        tokens: f64,
    ) -> f64 {
        let (fresh, end) = (self.worth(tokens), n_active * ratio_limit);
        let at_end = curve.loss(end);
        let trained = if fresh <= end {
            curve.loss(fresh)
        } else {
            at_end - self.realised * (at_end - curve.loss(fresh))
        };
        trained + self.rounding(n_active, tokens)
    }

    /// New tokens that are worth as much as `tokens` of the corpus, repeated as often as it takes.
    pub fn worth(&self, tokens: f64) -> f64 {
        match self.unique_tokens {
            Some(unique) if tokens > unique => {
                let repeated = tokens / unique - 1.0;
                unique * (1.0 - REPETITIONS * (-repeated / REPETITIONS).exp_m1())
            }
            _ => tokens,
        }
    }

    /// Tokens of the corpus that are worth `fresh` new ones; `None` where no repetition is.
    fn repeated(&self, fresh: f64) -> Option<f64> {
        match self.unique_tokens {
            Some(unique) if fresh > unique => {
                let share = (fresh / unique - 1.0) / REPETITIONS;
                (share < 1.0).then(|| unique * (1.0 - REPETITIONS * (-share).ln_1p()))
            }
            _ => Some(fresh),
        }
    }
}

/// A law at one expert count as its models turn out: over-training pays its share, repeated data what
/// they are worth, rounding costs what it costs.
#[derive(Clone, Debug)]
pub(super) struct Trained {
    /// The law by itself, on its architecture.
    pub(super) slice: Arc<dyn Slice>,
    /// Tokens per active parameter at which the law's runs end.
    pub(super) ratio_limit: f64,
    pub(super) data: Data,
}

impl Slice for Trained {
    /// The law by itself; [`Data`] stands between it and the models.
    fn curve(&self, n_active: f64) -> TokenCurve {
        self.slice.curve(n_active)
    }

    fn loss(&self, n_active: f64, tokens: f64) -> Nats {
        Nats(self.data.loss(&self.curve(n_active), (n_active, self.ratio_limit), tokens))
    }

    fn tokens_for(&self, n_active: f64, loss: Nats) -> Option<f64> {
        self.data.tokens_for(&self.curve(n_active), (n_active, self.ratio_limit), loss.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CURVE: TokenCurve = TokenCurve::new(1.9, (100.0, -0.22));

    proptest! {
        #[test]
        fn tokens_undo_losses(
            ln_tokens in 22.0..32.0f64, realised in 0.2..1.5f64, unique in 1e10..1e13f64,
        ) {
            let data = Data { realised, unique_tokens: Some(unique), ..Data::ENDLESS };
            let at = (1e9, 73.0);
            // Beyond forty repetitions a token more is worth nothing that could be inverted.
            let tokens = ln_tokens.exp().min(unique * 40.0);
            let loss = data.loss(&CURVE, at, tokens);
            let back = data.tokens_for(&CURVE, at, loss).unwrap();
            prop_assert!((back / tokens - 1.0).abs() < 1e-6, "{back} against {tokens}");
        }

        #[test]
        fn more_tokens_never_hurt(ln_tokens in 20.0..33.0f64, realised in 0.1..1.5f64) {
            let data = Data { realised, unique_tokens: Some(1e12), ..Data::ENDLESS };
            let at = |tokens: f64| data.loss(&CURVE, (1e9, 73.0), tokens);
            prop_assert!(at(1.1 * ln_tokens.exp()) <= at(ln_tokens.exp()));
        }
    }

    #[test]
    fn repeated_tokens_are_worth_what_the_paper_says() {
        let data = Data { realised: 1.0, unique_tokens: Some(1e11), ..Data::ENDLESS };
        // Up to four epochs are nearly as good as new data, forty are worth little more than sixteen.
        assert!(data.worth(4e11) / 4e11 > 0.9);
        assert!((data.worth(1e11 * (1.0 + REPETITIONS)) / 1e11 - 10.727).abs() < 1e-3);
        assert!(data.worth(1e14) / 1e11 <= 1.0 + REPETITIONS);
        assert!(data.tokens_for(&CURVE, (1e12, 73.0), CURVE.loss(2e12)).is_none());
    }

    #[test]
    fn fewer_bits_cost_loss_and_the_more_the_longer_the_training() {
        let at = |bits: f64| Data { rounded_bits: Some(bits), ..Data::ENDLESS };
        // 8.7B parameters on 3.6T tokens: nothing at 8 bits, more than a doubling of experts at 4.
        assert!(at(8.0).rounding(8.7e9, 3.6e12) < 1e-3);
        assert!((at(4.0).rounding(8.7e9, 3.6e12) - 0.1866).abs() < 2e-3);
        assert!(at(4.0).rounding(8.7e9, 3.6e12) > at(4.0).rounding(8.7e9, 3.6e11));
        let curve = CURVE;
        let loss = at(4.0).loss(&curve, (1e9, 73.0), 2e10);
        let tokens = at(4.0).tokens_for(&curve, (1e9, 73.0), loss).unwrap();
        assert!((tokens / 2e10 - 1.0).abs() < 1e-6, "{tokens}");
        assert!(at(1.0).tokens_for(&curve, (1e9, 73.0), 2.3).is_none());
    }

    #[test]
    fn a_trained_law_is_the_law_within_its_runs_and_pays_less_beyond() {
        let law = crate::law::load_scaling("ludziejewski2025").unwrap();
        let (raw, trained) = (law.slice(8).unwrap(), law.trained(Data::ENDLESS).slice(8).unwrap());
        for tokens in [1e9, 5e10] {
            assert!((raw.loss(1e9, tokens).0 - trained.loss(1e9, tokens).0).abs() < 1e-12);
        }
        let gain = |slice: &dyn Slice| slice.loss(1e9, 73e9).0 - slice.loss(1e9, 1e12).0;
        let share = gain(trained.as_ref()) / gain(raw.as_ref());
        assert!((share - REALISED.0).abs() < 1e-6, "{share}");
        let loss = trained.loss(1e9, 1e12);
        assert!((trained.tokens_for_loss(1e9, loss).unwrap() / 1e12 - 1.0).abs() < 1e-6);
        // A compute-optimal model lies within the ratios of the runs: it is the same one.
        let budget = crate::units::Flops(1e22);
        let (a, b) = (raw.optimum(budget), trained.optimum(budget));
        assert!((a.n_active / b.n_active - 1.0).abs() < 1e-4 && (a.loss.0 - b.loss.0).abs() < 1e-9);
        let back = trained.budget_for_loss(b.loss).unwrap();
        assert!((back.0 / budget.0 - 1.0).abs() < 1e-6, "{}", back.0);
    }

    #[test]
    fn error_is_the_residual_within_the_runs_and_grows_outside() {
        let law = crate::law::load_scaling("ludziejewski2025").unwrap();
        let residual = law.residual_nats();
        let near = Standing::of(&law, 4, 5e8, 4);
        assert!(
            (near.sigma(residual) - residual).abs() < 1e-12
                && (near.ratio_limit - 73.0).abs() < 1e-9
        );
        let far = Standing::of(&law, 32, 1e10, 4);
        assert!(far.distance > 3.0 && far.sigma(residual) > 0.04, "{far:?}");
        let draw = ErrorDraw { size: 1.0, ..ErrorDraw::none(2) };
        // Its own curve does not cancel it: a smaller model errs less.
        let smaller = Standing::of(&law, 32, 1e9, 4);
        assert!(far.error(&draw, 0.0, residual) > smaller.error(&draw, 0.0, residual));
    }
}
