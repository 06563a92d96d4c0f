//! What few bits cost in loss: training in them, and rounding weights after training (Kumar et al. 2024,
//! arXiv 2411.04330, table 2; 465 runs up to 1.7B parameters and 26B tokens, 3 to 16 bits).
//!
//! - Trained in `P` bits, a model is worth the parameters
//!   `N (1 - exp(-P_w / g_w)) (1 - exp(-P_a / g_a)) (1 - exp(-P_kv / g_kv))` of weights, activations and cached
//!   keys and values ([`TrainedBits::effective`], against training in 16 bits).
//! - Weights rounded to `P` bits after training add `C D^a / N^b exp(-P / g)` nats ([`rounding`]). Rounding to
//!   no fewer bits than a model was trained in adds nothing.
//!
//! The table has offsets on the bits in both terms, which are known here at second hand and left out: losses
//! are then too small, the rounding's up to threefold ([`TrainedBits::effective_at_worst`] has them). The
//! runs were dense: active and total parameters of a MoE model count alike. Rounding of activations or of the
//! cache after training is in no term.

use serde::{Deserialize, Serialize};

/// Bits of a training that loses nothing.
pub const FULL_BITS: f64 = 16.0;
/// Fewest bits of the runs.
pub const FEWEST_BITS: f64 = 3.0;
/// Largest runs: parameters and tokens.
const RUNS: (f64, f64) = (1.7e9, 26e9);

/// Bits over which each part's loss of parameters falls by a factor e, and the offset in the exponent.
const WEIGHTS: (f64, f64) = (2.6745, 0.3037);
const ACTIVATIONS: (f64, f64) = (2.2102, 1.4072);
const CACHE: (f64, f64) = (0.9578, 2.4185);

/// Loss of rounding: factor, exponents of tokens and parameters, bits of a factor e.
const ROUNDED: (f64, f64, f64, f64) = (0.0598, 0.5068, 0.3439, 0.5907);

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

    /// Share of the parameters that are left, against 16 bits.
    pub fn effective(&self) -> f64 {
        self.share(0.0)
    }

    /// The same with the table's offsets.
    pub fn effective_at_worst(&self) -> f64 {
        self.share(1.0)
    }

    fn share(&self, offsets: f64) -> f64 {
        let left = |bits: f64, (scale, offset): (f64, f64)| {
            let lost = |bits: f64| (-bits / scale + offsets * offset).exp();
            (1.0 - lost(bits)).max(0.0) / (1.0 - lost(FULL_BITS))
        };
        left(self.weights, WEIGHTS) * left(self.activations, ACTIVATIONS) * left(self.cache, CACHE)
    }
}

/// Nats that rounding weights to `bits` adds to a model of `n` parameters after `tokens` tokens.
pub fn rounding(bits: f64, n: f64, tokens: f64) -> f64 {
    let (factor, of_tokens, of_size, scale) = ROUNDED;
    factor * tokens.powf(of_tokens) / n.powf(of_size) * (-bits / scale).exp()
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
        assert!((TrainedBits::FULL.effective_at_worst() - 1.0).abs() < 1e-15);
        let falling: Vec<f64> =
            [16.0, 12.0, 8.0, 6.0, 4.0, 3.0].map(|b| bits(b, b, b).effective()).to_vec();
        assert!(falling.windows(2).all(|w| w[1] < w[0]), "{falling:?}");
    }

    #[test]
    fn shares_are_those_of_the_printed_coefficients() {
        // 1 - exp(-8/2.6745) = 0.94977, over 0.99748 at 16; activations 0.97321 over 0.99928.
        assert!((bits(8.0, 16.0, 16.0).effective() - 0.95217).abs() < 1e-4);
        assert!((bits(16.0, 8.0, 16.0).effective() - 0.97391).abs() < 1e-4);
        assert!((bits(16.0, 16.0, 4.0).effective() - 0.98464).abs() < 1e-4);
        assert!((bits(4.0, 16.0, 16.0).effective() - 0.77786).abs() < 1e-4);
        let fp8 = bits(8.0, 8.0, 16.0);
        assert!(fp8.effective_at_worst() < fp8.effective() - 0.05);
    }

    #[test]
    fn the_far_end_is_named() {
        assert!((outside(1e9, 1e10) - 1.0).abs() < 1e-12);
        assert!((outside(17e9, 26e9) - 10.0).abs() < 1e-9);
        assert!((outside(17e9, 26e11) - 100.0).abs() < 1e-9);
    }
}
