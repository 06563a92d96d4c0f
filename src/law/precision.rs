//! What few bits cost in loss: training in them, and rounding weights after training (Kumar et al. 2024,
//! arXiv 2411.04330, appendix K, table 2; fitted to runs of 30M to 220M parameters and 1.5B to 26B tokens,
//! held against 1.7B; integer formats, rounding by GPTQ).
//!
//! - Trained in `P` bits, a model is worth the parameters
//!   `N (1 - exp(n_w - P_w / g_w)) (1 - exp(n_a - P_a / g_a)) (1 - exp(n_kv - P_kv / g_kv))` of weights,
//!   activations and cached keys and values ([`TrainedBits::effective`], against training in 16 bits). By it
//!   7 bits of all three are worth their parameters best, as the paper says.
//! - Weights rounded to `P` bits after training add `C D^a / N^b exp(n_post - P / g)` nats ([`rounding`]).
//!   Rounding to no fewer bits than a model was trained in adds nothing.
//!
//! The main text leaves the offsets `n` out "for notation"; the coefficients were fitted with them. The paper
//! lists the last one as `b` without naming its place; it is taken as the fourth offset. The runs were dense:
//! active and total parameters of a MoE model count alike. Rounding of activations or of the cache after
//! training is in no term, nor is that a model trained in few bits loses less when it is rounded.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bits of a training that loses nothing.
pub const FULL_BITS: f64 = 16.0;
/// Fewest bits of weights in the runs.
pub const FEWEST_BITS: f64 = 3.0;
/// Fewest bits of activations and of the cache: with 3 most runs diverged and were not fitted.
pub const FEWEST_STATE_BITS: f64 = 4.0;
/// Largest runs that were fitted: parameters and tokens.
const RUNS: (f64, f64) = (220e6, 26e9);

/// Bits over which each part's loss of parameters falls by a factor e, and the offset in the exponent.
const WEIGHTS: (f64, f64) = (2.6745, 0.3037);
const ACTIVATIONS: (f64, f64) = (2.2102, 1.4072);
const CACHE: (f64, f64) = (0.9578, 2.4185);

/// Loss of rounding: factor, exponents of tokens and parameters.
const ROUNDED: (f64, f64, f64) = (0.0598, 0.5068, 0.3439);
/// Bits over which it falls by a factor e, and the offset in the exponent.
const ROUNDED_BITS: (f64, f64) = (0.5907, 1.1277);

/// Bits that a model is trained in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainedBits {
    /// Of weights.
    pub weights: f64,
    /// Of activations.
    pub activations: f64,
    /// Of keys and values.
    pub cache: f64,
}

impl TrainedBits {
    /// 16 bits of everything.
    pub const FULL: Self = Self { weights: FULL_BITS, activations: FULL_BITS, cache: FULL_BITS };

    /// Checks that the runs say something about such bits.
    ///
    /// # Errors
    /// [`Error::Usage`] outside the bits of the runs.
    pub fn validate(&self) -> Result<()> {
        let states = FEWEST_STATE_BITS..=FULL_BITS;
        let known = (FEWEST_BITS..=FULL_BITS).contains(&self.weights)
            && states.contains(&self.activations)
            && states.contains(&self.cache);
        let reason = || {
            format!(
                "the loss of few bits is known for weights of {FEWEST_BITS} to {FULL_BITS} bits, and for \
                 activations and a cache of {FEWEST_STATE_BITS} to {FULL_BITS}"
            )
        };
        if known { Ok(()) } else { Err(Error::usage("--train-bits", reason())) }
    }

    /// Share of the parameters that are left, against 16 bits.
    pub fn effective(&self) -> f64 {
        let left = |bits: f64, part: (f64, f64)| {
            (1.0 - lost(bits, part)).max(0.0) / (1.0 - lost(FULL_BITS, part))
        };
        left(self.weights, WEIGHTS) * left(self.activations, ACTIVATIONS) * left(self.cache, CACHE)
    }
}

/// `exp(offset - bits / scale)`.
fn lost(bits: f64, (scale, offset): (f64, f64)) -> f64 {
    (offset - bits / scale).exp()
}

/// Nats that rounding weights to `bits` adds to a model of `n` parameters after `tokens` tokens.
pub fn rounding(bits: f64, n: f64, tokens: f64) -> f64 {
    let (factor, of_tokens, of_size) = ROUNDED;
    factor * tokens.powf(of_tokens) / n.powf(of_size) * lost(bits, ROUNDED_BITS)
}

/// How far a model lies outside the runs: the larger factor in parameters or tokens, 1 inside.
pub fn outside(n: f64, tokens: f64) -> f64 {
    (n / RUNS.0).max(tokens / RUNS.1).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(weights: f64, activations: f64, cache: f64) -> TrainedBits {
        TrainedBits { weights, activations, cache }
    }

    #[test]
    fn sixteen_bits_lose_nothing_and_fewer_lose_more() {
        assert!((TrainedBits::FULL.effective() - 1.0).abs() < 1e-15);
        let falling: Vec<f64> =
            [16.0, 12.0, 8.0, 6.0, 4.0].map(|b| bits(b, b, b).effective()).to_vec();
        assert!(falling.windows(2).all(|w| w[1] < w[0]), "{falling:?}");
    }

    #[test]
    fn shares_are_those_of_the_printed_coefficients() {
        // Of weights 1 - exp(0.3037 - 8/2.6745) = 0.93195, over 0.99658 at 16.
        assert!((bits(8.0, 16.0, 16.0).effective() - 0.93515).abs() < 1e-4);
        // Of activations 1 - exp(1.4072 - 8/2.2102) = 0.89059, over 0.99707 at 16.
        assert!((bits(16.0, 8.0, 16.0).effective() - 0.89321).abs() < 1e-4);
        for (p, share) in [(8.0, 0.833), (6.0, 0.615), (4.0, 0.192)] {
            let left = bits(p, p, p).effective();
            assert!((left - share).abs() < 2e-3, "{p} bits: {left}");
        }
    }

    /// Section 4.3 of the paper: 7 to 8 bits train best for their compute. Parameters and tokens have the same
    /// exponent there, so that the best bits are those with most parameters left a bit.
    #[test]
    fn seven_bits_train_best_for_their_compute() {
        let best = (30..160).map(|tenth| f64::from(tenth) / 10.0).max_by(|&a, &b| {
            let worth = |p: f64| bits(p, p, p).effective() / p;
            worth(a).total_cmp(&worth(b))
        });
        assert!((6.5..=8.0).contains(&best.unwrap()), "{best:?}");
    }

    #[test]
    fn rounding_costs_more_after_more_tokens() {
        assert!(rounding(4.0, 1e9, 1e11) > rounding(4.0, 1e9, 1e10));
        assert!(
            rounding(8.0, 1e9, 1e11) < 1e-4 && rounding(3.0, 1e9, 1e11) > rounding(4.0, 1e9, 1e11)
        );
    }

    #[test]
    fn bits_that_no_run_had_are_refused() {
        assert!(bits(3.0, 4.0, 4.0).validate().is_ok() && TrainedBits::FULL.validate().is_ok());
        for wrong in
            [bits(2.0, 8.0, 8.0), bits(4.0, 3.0, 8.0), bits(4.0, 8.0, 3.0), bits(32.0, 8.0, 8.0)]
        {
            assert_eq!(wrong.validate().unwrap_err().exit_code(), 2, "{wrong:?}");
        }
        assert!(bits(f64::NAN, 8.0, 8.0).validate().is_err());
    }

    #[test]
    fn the_far_end_is_named() {
        assert!((outside(1e8, 1e10) - 1.0).abs() < 1e-12);
        assert!((outside(2.2e9, 26e9) - 10.0).abs() < 1e-9);
        assert!((outside(2.2e9, 26e11) - 100.0).abs() < 1e-9);
    }
}
